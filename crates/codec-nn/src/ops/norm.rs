//! Normalisations.

use super::floats::Floats;
use super::{
    Items, Steps, expect_channels, expect_shape, flat, on_kernels, on_values, vector_jacobian,
    with_packed_items, wrap,
};
use crate::Result;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use codec_kernels::zeros;

/// Normalises every step over its channels.
///
/// # Shapes
/// `xs` `[batch, time, channels]`, `gamma` and `beta` `[channels]`.
pub(crate) fn layer_norm(xs: &Tensor, gamma: &Tensor, beta: Option<&Tensor>, epsilon: f32) -> Result<Tensor> {
    expect_channels("input", xs, gamma.elem_count())?;
    if !on_kernels(xs)? {
        return layer_norm_plain(xs, gamma, beta, epsilon);
    }
    let (xs, gamma, op) = (xs.contiguous()?, gamma.contiguous()?, LayerNorm { epsilon });
    Ok(match beta {
        Some(beta) => xs.apply_op3(&gamma, &beta.contiguous()?, op)?,
        None => xs.apply_op2(&gamma, op)?,
    })
}

/// The same mathematics in candle operations, for any device.
pub(crate) fn layer_norm_plain(
    xs: &Tensor,
    gamma: &Tensor,
    beta: Option<&Tensor>,
    epsilon: f32,
) -> Result<Tensor> {
    let ys = standardize(xs, epsilon)?.broadcast_mul(gamma)?;
    Ok(match beta {
        Some(beta) => ys.broadcast_add(beta)?,
        None => ys,
    })
}

/// Divides every step by the root mean square of its channels.
///
/// # Shapes
/// `xs` `[batch, time, channels]`, `gamma` `[channels]`.
pub(crate) fn rms_norm(xs: &Tensor, gamma: &Tensor, epsilon: f32) -> Result<Tensor> {
    expect_channels("input", xs, gamma.elem_count())?;
    if !on_kernels(xs)? {
        return rms_norm_plain(xs, gamma, epsilon);
    }
    Ok(xs.contiguous()?.apply_op2(&gamma.contiguous()?, RmsNorm { epsilon })?)
}

/// The same mathematics in candle operations, for any device.
pub(crate) fn rms_norm_plain(xs: &Tensor, gamma: &Tensor, epsilon: f32) -> Result<Tensor> {
    let square = xs.sqr()?.mean_keepdim(xs.rank() - 1)?;
    Ok(xs.broadcast_div(&(square + f64::from(epsilon))?.sqrt()?)?.broadcast_mul(gamma)?)
}

/// Normalises every item over time and the channels of a group.
///
/// # Shapes
/// `xs` `[batch, time, channels]`, `gamma` and `beta` `[channels]`.
pub(crate) fn group_norm(
    xs: &Tensor,
    n_groups: usize,
    gamma: &Tensor,
    beta: &Tensor,
    epsilon: f32,
) -> Result<Tensor> {
    expect_channels("input", xs, gamma.elem_count())?;
    expect_shape("beta", beta, gamma.dims())?;
    if !on_kernels(xs)? {
        return group_norm_plain(xs, n_groups, gamma, beta, epsilon);
    }
    let op = GroupNorm { n_groups, epsilon };
    Ok(with_packed_items(xs)?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op)?)
}

/// The same mathematics in candle operations, for any device.
pub(crate) fn group_norm_plain(
    xs: &Tensor,
    n_groups: usize,
    gamma: &Tensor,
    beta: &Tensor,
    epsilon: f32,
) -> Result<Tensor> {
    let (batch, n_steps, channels) = xs.dims3()?;
    let width = channels / n_groups;
    let groups = xs.reshape((batch, n_steps, n_groups, width))?.transpose(1, 2)?.contiguous()?;
    let groups = standardize(&groups.reshape((batch, n_groups, n_steps * width))?, epsilon)?;
    let ys = groups.reshape((batch, n_groups, n_steps, width))?.transpose(1, 2)?.contiguous()?;
    Ok(ys.reshape((batch, n_steps, channels))?.broadcast_mul(gamma)?.broadcast_add(beta)?)
}

/// Mean 0 and variance 1 over the last dimension.
fn standardize(xs: &Tensor, epsilon: f32) -> Result<Tensor> {
    let last = xs.rank() - 1;
    let centred = xs.broadcast_sub(&xs.mean_keepdim(last)?)?;
    let variance = centred.sqr()?.mean_keepdim(last)?;
    Ok(centred.broadcast_div(&(variance + f64::from(epsilon))?.sqrt()?)?)
}

impl Steps {
    /// See [`layer_norm`].
    pub(crate) fn layer_norm(self, gamma: &Tensor, beta: Option<&Tensor>, epsilon: f32) -> Result<Self> {
        self.expect_channels("input", gamma.elem_count())?;
        let norm = |xs: Floats, gamma: &[f32], beta: Option<&[f32]>| {
            xs.map(|xs, out| codec_kernels::layer_norm(xs, gamma, beta, epsilon, out))
        };
        let floats = |xs: Floats| {
            on_values(&gamma.contiguous()?, |gamma| match beta {
                Some(beta) => on_values(&beta.contiguous()?, |beta| norm(xs, gamma, Some(beta))),
                None => norm(xs, gamma, None),
            })
        };
        self.by([gamma, beta.unwrap_or(gamma)], floats, |xs| layer_norm(xs, gamma, beta, epsilon))
    }

    /// See [`rms_norm`].
    pub(crate) fn rms_norm(self, gamma: &Tensor, epsilon: f32) -> Result<Self> {
        self.expect_channels("input", gamma.elem_count())?;
        let floats = |xs: Floats| {
            on_values(&gamma.contiguous()?, |gamma| {
                xs.map(|xs, out| codec_kernels::rms_norm(xs, gamma, epsilon, out))
            })
        };
        self.by([gamma], floats, |xs| rms_norm(xs, gamma, epsilon))
    }
}

struct LayerNorm {
    epsilon: f32,
}

impl LayerNorm {
    fn forward(
        &self,
        xs: (&CpuStorage, &Layout),
        gamma: (&CpuStorage, &Layout),
        beta: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let values = flat(xs.0, xs.1)?;
        let mut out = zeros(values.len());
        codec_kernels::layer_norm(values, flat(gamma.0, gamma.1)?, beta, self.epsilon, &mut out)
            .map_err(wrap)?;
        Ok((CpuStorage::F32(out), xs.1.shape().clone()))
    }
}

impl LayerNorm {
    /// The gradients of input, gamma and beta.
    fn gradients(&self, xs: &Tensor, gamma: &Tensor, grad: &Tensor) -> candle_core::Result<[Tensor; 3]> {
        let (inputs, gammas) = (xs.detach().contiguous()?, gamma.detach().contiguous()?);
        let op = LayerNormGradient { epsilon: self.epsilon };
        let all = inputs.apply_op3_no_bwd(&gammas, &grad.detach().contiguous()?, &op)?;
        let (n, dim) = (xs.elem_count(), gamma.elem_count());
        Ok([
            all.narrow(0, 0, n)?.reshape(xs.shape())?,
            all.narrow(0, n, dim)?.reshape(gamma.shape())?,
            all.narrow(0, n + dim, dim)?.reshape(gamma.shape())?,
        ])
    }
}

/// One after another: the gradients of input, gamma and beta.
struct LayerNormGradient {
    epsilon: f32,
}

impl CustomOp3 for LayerNormGradient {
    fn name(&self) -> &'static str {
        "codec-layer-norm-gradient"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (xs, gamma, grad) = (flat(xs, xs_layout)?, flat(gamma, gamma_layout)?, flat(grad, grad_layout)?);
        let mut out = zeros(xs.len() + 2 * gamma.len());
        let (for_xs, rest) = out.split_at_mut(xs.len());
        let sums = rest.split_at_mut(gamma.len()).into();
        codec_kernels::layer_norm_gradient(xs, gamma, self.epsilon, grad, for_xs, sums).map_err(wrap)?;
        let n = out.len();
        Ok((CpuStorage::F32(out), Shape::from(n)))
    }
}

impl CustomOp2 for LayerNorm {
    fn name(&self) -> &'static str {
        "codec-layer-norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward((xs, xs_layout), (gamma, gamma_layout), None)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        gamma: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [for_xs, for_gamma, _] = self.gradients(xs, gamma, grad)?;
        Ok((xs.track_op().then_some(for_xs), gamma.track_op().then_some(for_gamma)))
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "codec-layer-norm-bias"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward((xs, xs_layout), (gamma, gamma_layout), Some(flat(beta, beta_layout)?))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [for_xs, for_gamma, for_beta] = self.gradients(xs, gamma, grad)?;
        Ok((
            xs.track_op().then_some(for_xs),
            gamma.track_op().then_some(for_gamma),
            beta.track_op().then_some(for_beta),
        ))
    }
}

struct RmsNorm {
    epsilon: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "codec-rms-norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let values = flat(xs, xs_layout)?;
        let mut out = zeros(values.len());
        codec_kernels::rms_norm(values, flat(gamma, gamma_layout)?, self.epsilon, &mut out).map_err(wrap)?;
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        gamma: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [for_xs, for_gamma] =
            vector_jacobian([xs, gamma], grad, |[xs, gamma]| rms_norm_plain(xs, gamma, self.epsilon))?;
        Ok((for_xs, for_gamma))
    }
}

struct GroupNorm {
    n_groups: usize,
    epsilon: f32,
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "codec-group-norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let items = Items::new(xs, xs_layout)?;
        let (gamma, beta) = (flat(gamma, gamma_layout)?, flat(beta, beta_layout)?);
        let len = items.n_steps * items.channels;
        let mut out = zeros(items.batch * len);
        for (batch_idx, out) in out.chunks_exact_mut(len.max(1)).enumerate() {
            let item = items.get(batch_idx);
            codec_kernels::group_norm(item, self.n_groups, gamma, beta, self.epsilon, out).map_err(wrap)?;
        }
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [for_xs, for_gamma, for_beta] = vector_jacobian([xs, gamma, beta], grad, |[xs, gamma, beta]| {
            group_norm_plain(xs, self.n_groups, gamma, beta, self.epsilon)
        })?;
        Ok((for_xs, for_gamma, for_beta))
    }
}
