//! How a model that does not train is loaded: what holds its weights, and which of them.

use crate::Result;
use candle_core::{DType, Device, Shape, Tensor};
use codec_kernels::{quantize_columns, with_value};
use rayon::prelude::*;
use std::borrow::Cow;
use std::cell::Cell;

/// The numbers that the weights of convolutions, linear and recurrent layers are held in on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As the checkpoint has them.
    #[default]
    Float32,
    /// Rounded to integers of 8 bits with a factor for each column of a product: a quarter of the memory, which is
    /// faster where a step of a stream waits for its weights. Activations, norms, depthwise convolutions, codebooks
    /// and small matrices stay as they are. Codes and audio differ from those of [`Precision::Float32`], and are the
    /// same bits on every machine all the same.
    Int8,
}

/// Which networks of a codec are wanted. The other one is there too, so that all is known of the codec, but its
/// weights are neither read nor kept, and whatever would compute with them is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// To encode and to decode.
    #[default]
    Both,
    /// To encode only.
    Encoding,
    /// To decode only.
    Decoding,
}

impl Purpose {
    /// Whether the encoder is wanted.
    pub fn encodes(self) -> bool {
        self != Self::Decoding
    }

    /// Whether the decoder is wanted.
    pub fn decodes(self) -> bool {
        self != Self::Encoding
    }
}

/// How a codec that does not train is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// What its weights are held in, on the CPU. TFLite files have their own.
    pub precision: Precision,
    /// Which of its networks are wanted. TFLite files are loaded whole.
    pub purpose: Purpose,
}

impl From<Precision> for LoadOptions {
    fn from(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }
}

impl From<Purpose> for LoadOptions {
    fn from(purpose: Purpose) -> Self {
        Self { purpose, ..Self::default() }
    }
}

/// What a thread loads.
#[derive(Clone, Copy, Debug, Default)]
struct Loading {
    options: LoadOptions,
    /// Whether it is a network that is not wanted.
    is_unwanted: bool,
}

thread_local! {
    static LOADING: Cell<Loading> = Cell::default();
}

/// Runs `load`; the weights that are fixed on this thread meanwhile follow these options, and those of what it loads
/// by [`load_both`].
///
/// Every loading of a model sets them, so one that a waiting thread takes on does not get another's.
pub(crate) fn with_options<R>(options: LoadOptions, load: impl FnOnce() -> R) -> R {
    with_value(&LOADING, Loading { options, is_unwanted: false }, load)
}

/// Loads both networks of a codec, side by side if there are threads, with the options of this thread.
///
/// # Errors
/// The encoder's, or else the decoder's.
pub(crate) fn load_both<E: Send, D: Send>(
    encoder: impl FnOnce() -> Result<E> + Send,
    decoder: impl FnOnce() -> Result<D> + Send,
) -> Result<(E, D)> {
    let options = LOADING.get().options;
    let part = |is_wanted: bool| Loading { options, is_unwanted: !is_wanted };
    let (encoder, decoder) = rayon::join(
        || with_value(&LOADING, part(options.purpose.encodes()), encoder),
        || with_value(&LOADING, part(options.purpose.decodes()), decoder),
    );
    Ok((encoder?, decoder?))
}

/// Loads `n` things of one kind, side by side if there are threads.
///
/// # Errors
/// That of the first that cannot be loaded.
pub(crate) fn load_each<T: Send>(n: usize, load: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let loading = LOADING.get();
    let each = (0..n).into_par_iter().map(|i| with_value(&LOADING, loading, || load(i)));
    each.collect::<Vec<_>>().into_iter().collect()
}

/// A tensor of which only the shape is of use; it takes no memory.
///
/// # Errors
/// When the device fails.
pub(crate) fn placeholder(shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    Ok(Tensor::zeros((), DType::F32, device)?.broadcast_as(shape.into())?)
}

/// Weights one after the other along their first dimension; for a network that is not wanted, a [`placeholder`].
///
/// # Errors
/// When their other dimensions differ.
pub(crate) fn joined(parts: &[Tensor]) -> Result<Tensor> {
    match (parts, is_unwanted()) {
        ([first, ..], true) => {
            let n = parts.iter().map(|part| part.dim(0)).sum::<candle_core::Result<usize>>()?;
            let shape = [&[n], first.dims().get(1..).unwrap_or_default()].concat();
            placeholder(shape, first.device())
        }
        _ => Ok(Tensor::cat(parts, 0)?),
    }
}

/// The precision of the loading that this thread is in.
pub(super) fn precision() -> Precision {
    LOADING.get().options.precision
}

/// The purpose of the loading that this thread is in.
pub(crate) fn purpose() -> Purpose {
    LOADING.get().options.purpose
}

/// Whether this thread loads a network that is not wanted: its weights need not be read.
pub(crate) fn is_unwanted() -> bool {
    LOADING.get().is_unwanted
}

impl Precision {
    /// The matrix, `[k, n]`, in this precision.
    pub(super) fn rounded(self, matrix: &[f32], n: usize) -> Result<Cow<'_, [f32]>> {
        match self {
            Self::Float32 => Ok(Cow::Borrowed(matrix)),
            Self::Int8 => {
                let mut matrix = matrix.to_vec();
                quantize_columns(&mut matrix, n)?;
                Ok(Cow::Owned(matrix))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_last_as_long_as_their_scope_and_reach_both_networks() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let seen = || {
            // The first waits for the second, so that another thread takes that.
            let (sender, receiver) = std::sync::mpsc::channel();
            let encoder =
                move || Ok((receiver.recv().unwrap() != std::thread::current().id(), LOADING.get()));
            let decoder = move || {
                sender.send(std::thread::current().id()).unwrap();
                Ok(LOADING.get())
            };
            load_both(encoder, decoder).unwrap()
        };
        for purpose in [Purpose::Both, Purpose::Encoding, Purpose::Decoding] {
            let options = LoadOptions { precision: Precision::Int8, purpose };
            let ((is_apart, encoder), decoder) = pool.install(|| with_options(options, seen));
            assert!(is_apart);
            assert_eq!([encoder.options, decoder.options], [options; 2]);
            assert_eq!(encoder.is_unwanted, purpose == Purpose::Decoding);
            assert_eq!(decoder.is_unwanted, purpose == Purpose::Encoding);
        }
        let is_default = || !is_unwanted() && precision() == Precision::Float32 && purpose() == Purpose::Both;
        assert!(is_default());
        let options = LoadOptions { precision: Precision::Int8, purpose: Purpose::Decoding };
        let unwound = std::panic::catch_unwind(|| with_options(options, || panic!("on purpose")));
        assert!(unwound.is_err() && is_default());
    }
}
