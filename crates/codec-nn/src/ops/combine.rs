//! Sums of two tensors, as residual branches have them.

use super::floats::Floats;
use super::{Steps, flat, on_kernels, wrap};
use crate::{Error, Result};
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

/// [`add`] into the memory of either, where nobody else reads it.
pub(super) fn add_floats(xs: Floats, ys: Floats) -> Result<Floats> {
    if xs.dims() != ys.dims() {
        let (expected, actual) = (xs.dims().to_vec(), ys.dims().to_vec());
        return Err(Error::Shape { name: "steps to add".into(), expected, actual });
    }
    // A sum has the same bits either way round.
    let (to, from) = if xs.is_shared() { (ys, xs) } else { (xs, ys) };
    let from = from.dense()?;
    to.map_in_place(|to| codec_kernels::add_to(to, from.values().unwrap_or_default()))
}

impl Steps {
    /// `self + factors other`, with one factor per step for all channels and items.
    ///
    /// # Shapes
    /// `factors`: as many as steps.
    pub(crate) fn add_scaled(self, other: Self, factors: &[f32]) -> Result<Self> {
        let (batch, n_steps, channels) = self.dims3()?;
        if let (Some(xs), Some(ys)) = (self.floats(), other.floats())
            && xs.dims() == ys.dims()
        {
            let sum = Floats::new([batch, n_steps, channels], |out| {
                for (item_idx, out) in out.chunks_exact_mut((n_steps * channels).max(1)).enumerate() {
                    let (xs, ys) = (xs.item(item_idx), ys.item(item_idx));
                    codec_kernels::add_scaled_rows(xs, ys, channels, factors, out)?;
                }
                Ok(())
            });
            return Ok(sum?.into());
        }
        self.map_tensor(|xs| {
            let factors = Tensor::from_slice(factors, (1, n_steps, 1), xs.device())?;
            add_scaled_steps(&xs, &other.into_tensor()?, &factors)
        })
    }
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
