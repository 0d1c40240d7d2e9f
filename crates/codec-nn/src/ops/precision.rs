//! How exactly a model that does not train holds its weights.

use crate::Result;
use codec_kernels::quantize_columns;
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

thread_local! {
    static PRECISION: Cell<Precision> = const { Cell::new(Precision::Float32) };
}

/// Runs `load`; the weights that are fixed on this thread meanwhile are held in this precision, and those of what it
/// loads by [`load_both`].
///
/// Every loading of a model sets it, so one that a waiting thread takes on does not get another's.
pub(crate) fn with_precision<R>(precision: Precision, load: impl FnOnce() -> R) -> R {
    /// Puts the former precision back, also when `load` unwinds.
    struct Restore(Precision);
    impl Drop for Restore {
        fn drop(&mut self) {
            PRECISION.set(self.0);
        }
    }
    let _restore = Restore(PRECISION.replace(precision));
    load()
}

/// Runs both parts of a loading, side by side if there are threads, in the precision of this thread.
pub(crate) fn load_both<A: Send, B: Send>(
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    let precision = PRECISION.get();
    rayon::join(|| with_precision(precision, a), || with_precision(precision, b))
}

/// The precision of the loading that this thread is in.
pub(super) fn of_loading() -> Precision {
    PRECISION.get()
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
    fn a_precision_lasts_as_long_as_its_scope_and_reaches_both_parts() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let seen = || {
            // The second part waits for the first, so that another thread takes it.
            let (sender, receiver) = std::sync::mpsc::channel();
            let first = move || sender.send(std::thread::current().id()).map(|()| of_loading());
            let second = move || (receiver.recv().unwrap() != std::thread::current().id(), of_loading());
            let (b, a) = load_both(second, first);
            (a.unwrap(), b)
        };
        let (a, (is_apart, b)) = pool.install(|| with_precision(Precision::Int8, seen));
        assert!(is_apart);
        assert_eq!([a, b], [Precision::Int8; 2]);
        assert_eq!(of_loading(), Precision::Float32);
        let unwound = std::panic::catch_unwind(|| with_precision(Precision::Int8, || panic!("on purpose")));
        assert!(unwound.is_err());
        assert_eq!(of_loading(), Precision::Float32);
    }
}
