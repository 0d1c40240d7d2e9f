//! Sums of two tensors, as residual branches have them.

use super::{flat, on_kernels, wrap};
use crate::Result;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use codec_kernels::zeros;

/// Adds two tensors of one shape.
pub(crate) fn add(xs: &Tensor, ys: &Tensor) -> Result<Tensor> {
    if !on_kernels(xs)? || !on_kernels(ys)? || xs.dims() != ys.dims() {
        return Ok((xs + ys)?);
    }
    Ok(xs.contiguous()?.apply_op2(&ys.contiguous()?, Add)?)
}

/// `xs + factors ys`, with one factor per step for all channels and items.
///
/// # Shapes
/// `xs`, `ys` `[batch, time, channels]`, `factors` `[1, time, 1]`, which track no gradient.
pub(crate) fn add_scaled_steps(xs: &Tensor, ys: &Tensor, factors: &Tensor) -> Result<Tensor> {
    if !on_kernels(xs)? || !on_kernels(ys)? || xs.dims() != ys.dims() {
        return Ok((ys.broadcast_mul(factors)? + xs)?);
    }
    Ok(xs.contiguous()?.apply_op3(&ys.contiguous()?, &factors.contiguous()?, AddScaled)?)
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "codec-add"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        ys: &CpuStorage,
        ys_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (xs, ys) = (flat(xs, xs_layout)?, flat(ys, ys_layout)?);
        let mut out = zeros(xs.len());
        codec_kernels::add(xs, ys, &mut out).map_err(wrap)?;
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        ys: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let for_each = |of: &Tensor| of.track_op().then(|| grad.clone());
        Ok((for_each(xs), for_each(ys)))
    }
}

struct AddScaled;

impl CustomOp3 for AddScaled {
    fn name(&self) -> &'static str {
        "codec-add-scaled"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        ys: &CpuStorage,
        ys_layout: &Layout,
        factors: &CpuStorage,
        factors_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, n_steps, channels) = xs_layout.shape().dims3()?;
        let (xs, ys, factors) = (flat(xs, xs_layout)?, flat(ys, ys_layout)?, flat(factors, factors_layout)?);
        let (mut out, len) = (zeros(xs.len()), (n_steps * channels).max(1));
        let items = xs.chunks_exact(len).zip(ys.chunks_exact(len)).zip(out.chunks_exact_mut(len));
        for ((xs, ys), out) in items {
            codec_kernels::add_scaled_rows(xs, ys, channels, factors, out).map_err(wrap)?;
        }
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        ys: &Tensor,
        factors: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let for_ys = ys.track_op().then(|| grad.broadcast_mul(&factors.detach())).transpose()?;
        Ok((xs.track_op().then(|| grad.clone()), for_ys, None))
    }
}
