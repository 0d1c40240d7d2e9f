//! Rotary positions.

use super::floats::Floats;
use super::{expect_channels, flat, on_kernels, wrap};
use crate::Result;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Tensor};
use codec_kernels::{Rotary, zeros};
use std::sync::Arc;

/// Turns the channels of every head by the angles of its step, of which the first stands at `position`.
///
/// # Shapes
/// `xs` `[batch, time, n_heads * rotary.dim()]`, the result as well.
pub(crate) fn rotate(xs: &Tensor, rotary: &Rotary, n_heads: usize, position: u64) -> Result<Tensor> {
    expect_channels("input", xs, n_heads * rotary.dim())?;
    let mut table = vec![0.0; xs.dim(1)? * rotary.dim()];
    rotary.fill(position, &mut table)?;
    let turn = Turn { table: table.into(), dim: rotary.dim(), n_heads };
    if !on_kernels(xs)? {
        return turn.plain(xs);
    }
    Ok(xs.contiguous()?.apply_op1(turn)?)
}

/// [`rotate`] of floats.
pub(super) fn rotate_floats(xs: Floats, rotary: &Rotary, n_heads: usize, position: u64) -> Result<Floats> {
    let [_, n_steps, channels] = xs.dims();
    let table = Floats::new([1, n_steps, rotary.dim()], |table| Ok(rotary.fill(position, table)?))?;
    let (table, item_len) = (table.item(0), (n_steps * channels).max(1));
    xs.map(|xs, out| {
        let mut items = xs.chunks_exact(item_len).zip(out.chunks_exact_mut(item_len));
        items.try_for_each(|(xs, out)| codec_kernels::rotate(xs, table, rotary.dim(), n_heads, out))
    })
}

/// A rotation by given angles.
pub(super) struct Turn {
    /// Cosines and sines of each step, `[time, dim]`.
    pub(super) table: Arc<[f32]>,
    /// Channels per head.
    pub(super) dim: usize,
    pub(super) n_heads: usize,
}

impl Turn {
    /// The rotation in candle operations, for any device.
    pub(super) fn plain(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, n_steps, width) = xs.dims3()?;
        let half = self.dim / 2;
        let table = Tensor::new(self.table.as_ref(), &Device::Cpu)?.reshape((1, n_steps, 1, self.dim))?;
        let table = table.to_dtype(xs.dtype())?.to_device(xs.device())?;
        let (cosines, sines) = (table.narrow(3, 0, half)?, table.narrow(3, half, half)?);
        let xs = xs.reshape((batch, n_steps, self.n_heads, self.dim))?;
        let (a, b) = (xs.narrow(3, 0, half)?, xs.narrow(3, half, half)?);
        let to_a = (a.broadcast_mul(&cosines)? - b.broadcast_mul(&sines)?)?;
        let to_b = (b.broadcast_mul(&cosines)? + a.broadcast_mul(&sines)?)?;
        Ok(Tensor::cat(&[to_a, to_b], 3)?.reshape((batch, n_steps, width))?)
    }

    /// The rotation back: that of the gradients.
    fn inverse(&self) -> Self {
        let negated = |(i, &x): (usize, &f32)| if i % self.dim < self.dim / 2 { x } else { -x };
        Self { table: self.table.iter().enumerate().map(negated).collect(), ..*self }
    }
}

impl CustomOp1 for Turn {
    fn name(&self) -> &'static str {
        "codec-rotate"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let xs = flat(xs, layout)?;
        let mut out = zeros(xs.len());
        let item_len = self.table.len() * self.n_heads;
        for (xs, out) in xs.chunks_exact(item_len.max(1)).zip(out.chunks_exact_mut(item_len.max(1))) {
            codec_kernels::rotate(xs, &self.table, self.dim, self.n_heads, out).map_err(wrap)?;
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let inverse = self.inverse();
        let grad = grad.detach();
        if grad.device().is_cpu() && grad.dtype() == DType::F32 {
            return grad.contiguous()?.apply_op1_no_bwd(&inverse).map(Some);
        }
        inverse.plain(&grad).map(Some).map_err(wrap)
    }
}
