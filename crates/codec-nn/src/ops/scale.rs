//! A factor per channel, whose gradient is one pass over the data.

use super::conv_grad::column_sums;
use super::floats::Floats;
use super::{Steps, expect_channels, flat, on_kernels, on_values, wrap};
use crate::Result;
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use codec_kernels::zeros;

/// Every channel times its factor.
///
/// # Shapes
/// `xs` `[batch, time, channels]`, `factors` `[channels]`, result as `xs`.
pub(crate) fn channel_scale(xs: &Tensor, factors: &Tensor) -> Result<Tensor> {
    expect_channels("input", xs, factors.elem_count())?;
    if !on_kernels(xs)? {
        return Ok(xs.broadcast_mul(factors)?);
    }
    Ok(xs.contiguous()?.apply_op2(&factors.contiguous()?, Scale)?)
}

impl Steps {
    /// See [`channel_scale`].
    pub(crate) fn scale_channels(self, factors: &Tensor) -> Result<Self> {
        self.expect_channels("input", factors.elem_count())?;
        let floats = |xs: Floats| {
            on_values(&factors.contiguous()?, |factors| {
                xs.map(|xs, out| codec_kernels::scale_channels(xs, factors, out))
            })
        };
        self.by([factors], floats, |xs| channel_scale(xs, factors))
    }
}

struct Scale;

impl CustomOp2 for Scale {
    fn name(&self) -> &'static str {
        "codec-channel-scale"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        factors: &CpuStorage,
        factors_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (xs, factors) = (flat(xs, xs_layout)?, flat(factors, factors_layout)?);
        let mut out = zeros(xs.len());
        codec_kernels::scale_channels(xs, factors, &mut out).map_err(wrap)?;
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        factors: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        // Detached, or the gradients would carry a graph of their own.
        let (xs_values, factors_values) = (xs.detach(), factors.detach());
        let grad = grad.detach().contiguous()?;
        let for_xs = xs.track_op().then(|| grad.apply_op2_no_bwd(&factors_values.contiguous()?, &Self));
        let for_factors = factors.track_op().then(|| {
            grad.apply_op2_no_bwd(&xs_values.contiguous()?, &FactorGradient)?.reshape(factors.shape())
        });
        Ok((for_xs.transpose()?, for_factors.transpose()?))
    }
}

/// The sum over all steps of `grad * xs`: `[channels]`.
struct FactorGradient;

impl CustomOp2 for FactorGradient {
    fn name(&self) -> &'static str {
        "codec-channel-scale-gradient"
    }

    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        xs: &CpuStorage,
        xs_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let channels = xs_layout.dims().last().copied().unwrap_or(1);
        let (grad, xs) = (flat(grad, grad_layout)?, flat(xs, xs_layout)?);
        let out = column_sums(xs.len(), channels, |part, sums| {
            let rows = grad[part.clone()].chunks_exact(channels).zip(xs[part].chunks_exact(channels));
            for (grad, xs) in rows {
                sums.iter_mut().zip(grad).zip(xs).for_each(|((sum, g), x)| *sum += g * x);
            }
        });
        Ok((CpuStorage::F32(out), Shape::from(channels)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Rng, assert_close, values};
    use super::*;
    use candle_core::Var;

    #[test]
    fn equals_candle_gradients_included() {
        let mut rng = Rng::new(1);
        for (batch, n_steps, channels) in [(1, 1, 1), (2, 300, 7), (3, 700, 33)] {
            let shape = [batch, n_steps, channels];
            let var = |xs: Tensor| Var::from_tensor(&xs).unwrap();
            let (xs, factors) = (var(rng.tensor(&shape)), var(rng.tensor(&[channels])));
            let pull = rng.tensor(&shape);
            let of = |ys: Tensor| {
                let grads = (&ys * &pull).unwrap().sum_all().unwrap().backward().unwrap();
                (values(&ys), [&xs, &factors].map(|var| values(grads.get(var).unwrap())))
            };
            let (ys, got) = of(channel_scale(&xs, &factors).unwrap());
            let (plain, want) = of(xs.broadcast_mul(&factors).unwrap());
            assert_eq!(ys, plain);
            assert_eq!(got[0], want[0]);
            assert_close("factors", &got[1], &want[1], 1e-4);
        }
    }
}
