//! Depthwise convolution: every channel has its own window.

use super::conv::{Geometry, strided};
use super::conv_grad::bias_gradient;
use super::floats::Floats;
use super::{Items, expect_channels, flat, on_kernels, on_values, with_packed_items, wrap};
use crate::Result;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use codec_kernels::{for_items, zeros};
use rayon::prelude::*;

/// Convolves each channel with its own taps.
///
/// # Shapes
/// `xs` `[batch, n_in, channels]`, `taps` `[kernel, channels]`, `bias` `[channels]`, result
/// `[batch, n_out, channels]`.
pub(crate) fn depthwise(
    xs: &Tensor,
    taps: &Tensor,
    bias: Option<&Tensor>,
    geometry: Geometry,
) -> Result<Tensor> {
    expect_channels("input", xs, taps.dim(1)?)?;
    if !on_kernels(xs)? {
        return plain(xs, taps, bias, geometry);
    }
    let (xs, taps, op) = (with_packed_items(xs)?, taps.contiguous()?, Depthwise { geometry });
    Ok(match bias {
        Some(bias) => xs.apply_op3(&taps, &bias.contiguous()?, op)?,
        None => xs.apply_op2(&taps, op)?,
    })
}

/// [`depthwise`] of floats; `xs` has the channels of `taps`.
pub(super) fn depthwise_floats(
    xs: &Floats,
    taps: &Tensor,
    bias: Option<&Tensor>,
    geometry: Geometry,
) -> Result<Floats> {
    let items = xs.items();
    let dims = [items.batch, geometry.n_out(items.n_steps), items.channels];
    let convolve = |bias: Option<&[f32]>| {
        on_values(&taps.contiguous()?, |taps| {
            Floats::new(dims, |out| Ok(Depthwise { geometry }.convolve(&items, taps, bias, out)?))
        })
    };
    match bias {
        Some(bias) => on_values(&bias.contiguous()?, |bias| convolve(Some(bias))),
        None => convolve(None),
    }
}

/// The same mathematics in candle operations, for any device.
pub(crate) fn plain(xs: &Tensor, taps: &Tensor, bias: Option<&Tensor>, geometry: Geometry) -> Result<Tensor> {
    let n_out = geometry.n_out(xs.dim(1)?);
    let tap = |tap_idx: usize| -> Result<Tensor> {
        let steps = strided(xs, tap_idx * geometry.dilation, n_out, geometry.stride)?;
        Ok(steps.broadcast_mul(&taps.narrow(0, tap_idx, 1)?)?)
    };
    let mut ys = tap(0)?;
    for tap_idx in 1..geometry.kernel {
        ys = (ys + tap(tap_idx)?)?;
    }
    Ok(match bias {
        Some(bias) => ys.broadcast_add(bias)?,
        None => ys,
    })
}

struct Depthwise {
    geometry: Geometry,
}

impl Depthwise {
    fn forward(
        &self,
        items: &Items<'_>,
        taps: &[f32],
        bias: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n_out, channels) = (self.geometry.n_out(items.n_steps), items.channels);
        let mut out = zeros(items.batch * n_out * channels);
        self.convolve(items, taps, bias, &mut out).map_err(wrap)?;
        Ok((CpuStorage::F32(out), Shape::from((items.batch, n_out, channels))))
    }

    /// Writes all of `out`, `[batch, n_out, channels]`.
    fn convolve(
        &self,
        items: &Items<'_>,
        taps: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) -> codec_kernels::Result<()> {
        let Geometry { kernel, stride, dilation } = self.geometry;
        let (n_out, channels) = (self.geometry.n_out(items.n_steps), items.channels);
        let conv = codec_kernels::Depthwise { kernel, stride, dilation };
        for_items(out, n_out * channels, |batch_idx, out| {
            codec_kernels::depthwise(items.get(batch_idx), channels, conv, taps, bias, out)
        })
    }
}

impl Depthwise {
    /// The gradients of input and taps, where they are wanted.
    fn gradients(
        &self,
        xs: &Tensor,
        taps: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<[Option<Tensor>; 2]> {
        let Geometry { kernel, stride, dilation } = self.geometry;
        let conv = codec_kernels::Depthwise { kernel, stride, dilation };
        let (inputs, grad) = (xs.detach().contiguous()?, grad.detach().contiguous()?);
        let fixed_taps = taps.detach().contiguous()?;
        let of =
            |of: GradientOf| inputs.apply_op3_no_bwd(&fixed_taps, &grad, &DepthwiseGradient { conv, of });
        let for_xs = xs.track_op().then(|| of(GradientOf::Input)).transpose()?;
        Ok([for_xs, taps.track_op().then(|| of(GradientOf::Taps)).transpose()?])
    }
}

impl CustomOp2 for Depthwise {
    fn name(&self) -> &'static str {
        "codec-depthwise"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        taps: &CpuStorage,
        taps_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward(&Items::new(xs, xs_layout)?, flat(taps, taps_layout)?, None)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        taps: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [for_xs, for_taps] = self.gradients(xs, taps, grad)?;
        Ok((for_xs, for_taps))
    }
}

impl CustomOp3 for Depthwise {
    fn name(&self) -> &'static str {
        "codec-depthwise-bias"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        taps: &CpuStorage,
        taps_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let bias = flat(bias, bias_layout)?;
        self.forward(&Items::new(xs, xs_layout)?, flat(taps, taps_layout)?, Some(bias))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        taps: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [for_xs, for_taps] = self.gradients(xs, taps, grad)?;
        let for_bias = bias.track_op().then(|| bias_gradient(&grad.detach())).transpose().map_err(wrap)?;
        Ok((for_xs, for_taps, for_bias))
    }
}

/// For whom a gradient is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GradientOf {
    Input,
    Taps,
}

struct DepthwiseGradient {
    conv: codec_kernels::Depthwise,
    of: GradientOf,
}

impl CustomOp3 for DepthwiseGradient {
    fn name(&self) -> &'static str {
        "codec-depthwise-gradient"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        taps: &CpuStorage,
        taps_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, n_in, channels) = xs_layout.shape().dims3()?;
        let (_, n_out, _) = grad_layout.shape().dims3()?;
        let (xs, taps, grad) = (flat(xs, xs_layout)?, flat(taps, taps_layout)?, flat(grad, grad_layout)?);
        let (in_len, out_len) = ((n_in * channels).max(1), (n_out * channels).max(1));
        match self.of {
            GradientOf::Input => {
                let mut out = zeros(xs.len());
                for_items(&mut out, in_len, |item_idx, out| {
                    let grad = &grad[item_idx * n_out * channels..][..n_out * channels];
                    codec_kernels::depthwise_input_gradient(grad, channels, self.conv, taps, out)
                        .map_err(wrap)
                })?;
                Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
            }
            GradientOf::Taps => {
                let of_item = |(xs, grad): (&[f32], &[f32])| {
                    let mut out = vec![0.0; taps.len()];
                    codec_kernels::depthwise_weight_gradient(xs, channels, self.conv, grad, &mut out)?;
                    Ok(out)
                };
                let items = xs.par_chunks_exact(in_len).zip(grad.par_chunks_exact(out_len));
                let parts: Result<Vec<Vec<f32>>, codec_kernels::Error> = items.map(of_item).collect();
                // In the order of the items, whoever was ready first.
                let mut out = vec![0.0; taps.len()];
                for part in parts.map_err(wrap)? {
                    out.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
                }
                Ok((CpuStorage::F32(out), taps_layout.shape().clone()))
            }
        }
    }
}
