//! Differentiable operations on time-major activations: codec-kernels on the CPU, candle elsewhere.
//!
//! Every operation is written twice: a kernel path for `f32` on the CPU, whose bits do not depend on
//! batch, threads or chunking, and a plain path of candle operations for CUDA and Metal. Here is the only
//! place where devices part; layers call one method of [`Steps`]. The kernel path of a codec's stream runs on floats
//! in memory that is used again, that of training on tensors, and one that has no use for the former takes a copy
//! as a tensor ([`Steps::map_tensor`]). The plain path is also what defines the gradient:
//! either candle differentiates it, or the backward pass of the kernel path does so in its stead
//! ([`vector_jacobian`]). Convolutions, where training spends its time, have theirs written out.

mod attention;
mod combine;
mod conv;
mod conv_grad;
mod depthwise;
mod elementwise;
mod filter;
mod floats;
mod linear;
mod loading;
mod lstm;
mod norm;
mod rotary;
mod scale;
mod steps;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod weight_norm;

pub(crate) use attention::Past;
pub use attention::Sight;
use combine::add;
pub(crate) use conv::Geometry;
pub(crate) use elementwise::{snake, unary};
pub(crate) use filter::{Filter, Form};
pub(crate) use linear::linear;
pub use loading::{LoadOptions, Precision, Purpose};
pub(crate) use loading::{is_unwanted, joined, load_both, load_each, placeholder, purpose, with_options};
pub use lstm::LstmState;
pub(crate) use lstm::Recurrent;
pub(crate) use norm::group_norm;
pub use steps::Steps;
pub(crate) use weight_norm::{fold as fold_weight_norm, row_norms, weight_norm};

use crate::{Error, Result};
use candle_core::{CpuStorage, DType, Layout, Storage, Tensor, Var};

/// Whether the kernels run this tensor.
///
/// # Errors
/// [`Error::Unsupported`] for anything but `f32` on the CPU: the promise of equal bits holds for no other.
fn on_kernels(xs: &Tensor) -> Result<bool> {
    if !xs.device().is_cpu() {
        return Ok(false);
    }
    match xs.dtype() {
        DType::F32 => Ok(true),
        other => {
            Err(Error::Unsupported { what: "type of activations on the CPU", value: other.as_str().into() })
        }
    }
}

/// Fails unless the last dimension of `xs` has `channels` entries.
pub(crate) fn expect_channels(name: &str, xs: &Tensor, channels: usize) -> Result<()> {
    let (batch, n_steps, actual) = xs.dims3()?;
    if actual != channels {
        return Err(Error::Shape {
            name: name.into(),
            expected: vec![batch, n_steps, channels],
            actual: xs.dims().to_vec(),
        });
    }
    Ok(())
}

/// Fails unless `tensor` has exactly this shape.
pub(crate) fn expect_shape(name: &str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.dims() != expected {
        return Err(Error::Shape {
            name: name.into(),
            expected: expected.to_vec(),
            actual: tensor.dims().to_vec(),
        });
    }
    Ok(())
}

/// Makes the steps of every batch item one run of memory; the items themselves may lie apart, so that a
/// range of time of a batch needs no copy.
fn with_packed_items(xs: &Tensor) -> Result<Tensor> {
    let (_, _, channels) = xs.dims3()?;
    match xs.stride() {
        [_, time, 1] if *time == channels => Ok(xs.clone()),
        _ => Ok(xs.contiguous()?),
    }
}

/// The items of a `[batch, time, channels]` tensor, each one run of memory.
struct Items<'a> {
    data: &'a [f32],
    pitch: usize,
    batch: usize,
    n_steps: usize,
    channels: usize,
}

impl<'a> Items<'a> {
    /// Views a tensor that went through [`with_packed_items`].
    fn new(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<Self> {
        let (batch, n_steps, channels) = layout.shape().dims3()?;
        let data = storage.as_slice::<f32>()?;
        let data = data.get(layout.start_offset()..).unwrap_or_default();
        Ok(Self { data, pitch: layout.stride()[0], batch, n_steps, channels })
    }

    /// Item `batch_idx`: `[time, channels]`.
    fn get(&self, batch_idx: usize) -> &'a [f32] {
        let start = batch_idx * self.pitch;
        &self.data[start..start + self.n_steps * self.channels]
    }

    /// Whether the items follow each other without a gap.
    fn are_adjacent(&self) -> bool {
        self.batch == 1 || self.pitch == self.n_steps * self.channels
    }
}

/// The values of a contiguous tensor.
fn flat<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or(candle_core::Error::RequiresContiguous { op: "codec-nn kernel" })?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Hands the values of a contiguous f32 tensor on the CPU to `f`.
fn on_values<R>(xs: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = xs.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(flat(storage, layout)?),
        _ => Err(Error::Unsupported { what: "device of a kernel", value: format!("{:?}", xs.device()) }),
    }
}

/// Carries an error of the kernels or of this crate through a candle trait.
fn wrap(error: impl std::error::Error + Send + Sync + 'static) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// The gradients of `sum(plain(args) * grad)` for the arguments that track one.
fn vector_jacobian<const N: usize>(
    args: [&Tensor; N],
    grad: &Tensor,
    plain: impl Fn([&Tensor; N]) -> Result<Tensor>,
) -> candle_core::Result<[Option<Tensor>; N]> {
    // Fresh leaves: the walk back must end here and must not mix with the graph that is being walked.
    let mut leaves: [Option<Var>; N] = [const { None }; N];
    for (leaf, arg) in leaves.iter_mut().zip(args) {
        if arg.track_op() {
            *leaf = Some(Var::from_tensor(&arg.detach())?);
        }
    }
    let detached = args.map(Tensor::detach);
    let mut inputs = detached.each_ref();
    for (input, leaf) in inputs.iter_mut().zip(&leaves) {
        if let Some(leaf) = leaf {
            *input = leaf.as_tensor();
        }
    }
    let loss = (plain(inputs).map_err(wrap)? * grad.detach())?.sum_all()?;
    let mut store = loss.backward()?;
    Ok(leaves.map(|leaf| leaf.and_then(|leaf| store.remove(&leaf))))
}
