//! Activations.

use super::floats::Floats;
use super::{Steps, expect_shape, flat, on_kernels, on_values, vector_jacobian, wrap};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use codec_kernels::{Unary, zeros};

/// Added to the divisor of Snake, so that an alpha of zero divides.
const SNAKE_EPSILON: f64 = 1e-9;

/// Applies `function` to every value.
pub(crate) fn unary(xs: &Tensor, function: Unary) -> Result<Tensor> {
    if !on_kernels(xs)? {
        return unary_plain(xs, function);
    }
    Ok(xs.contiguous()?.apply_op1(UnaryOp { function })?)
}

/// The same mathematics in candle operations, for any device.
pub(crate) fn unary_plain(xs: &Tensor, function: Unary) -> Result<Tensor> {
    Ok(match function {
        Unary::Exp => xs.exp()?,
        Unary::Sin => xs.sin()?,
        Unary::Sigmoid => candle_nn::ops::sigmoid(xs)?,
        Unary::Tanh => xs.tanh()?,
        Unary::Silu => xs.silu()?,
        Unary::Gelu => xs.gelu_erf()?,
        Unary::GeluTanh => xs.gelu()?,
        Unary::Elu { alpha } => xs.elu(f64::from(alpha))?,
        Unary::LeakyRelu { slope } => (xs.relu()? - (xs.neg()?.relu()? * f64::from(slope))?)?,
        Unary::Relu => xs.relu()?,
        Unary::SignedRoot { floor } => (xs / smooth_magnitude(xs, floor)?.sqrt()?)?,
        Unary::SignedSquare { floor } => (xs * smooth_magnitude(xs, floor)?)?,
        other => {
            let value = format!("{other:?}");
            return Err(Error::Unsupported { what: "activation", value });
        }
    })
}

/// `sqrt(x^2 + floor^2)`.
fn smooth_magnitude(xs: &Tensor, floor: f32) -> Result<Tensor> {
    Ok((xs.sqr()? + f64::from(floor).powi(2))?.sqrt()?)
}

/// `x + sin(alpha x)^2 / (alpha + 1e-9)`, one alpha per channel.
///
/// # Shapes
/// `xs` `[batch, time, channels]`, `alpha` `[channels]`.
///
/// # Source
/// Ziyin et al. 2020, "Neural networks fail to learn periodic functions and how to fix it", eq. 2; the
/// small constant is descript-audio-codec's.
pub(crate) fn snake(xs: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    expect_shape("alpha", alpha, &xs.dims()[xs.rank().saturating_sub(1)..])?;
    if !on_kernels(xs)? {
        return snake_plain(xs, alpha);
    }
    Ok(xs.contiguous()?.apply_op2(&alpha.contiguous()?, Snake)?)
}

/// The same mathematics in candle operations, for any device.
pub(crate) fn snake_plain(xs: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    snake_beta_plain(xs, alpha, alpha)
}

/// `x + sin(alpha x)^2 / (beta + 1e-9)`, one alpha and one beta per channel.
///
/// # Shapes
/// `xs` `[batch, time, channels]`, `alpha` and `beta` `[channels]`.
///
/// # Source
/// See [`codec_kernels::snake_beta`].
pub(crate) fn snake_beta(xs: &Tensor, alpha: &Tensor, beta: &Tensor) -> Result<Tensor> {
    let channels = &xs.dims()[xs.rank().saturating_sub(1)..];
    expect_shape("alpha", alpha, channels)?;
    expect_shape("beta", beta, channels)?;
    if !on_kernels(xs)? {
        return snake_beta_plain(xs, alpha, beta);
    }
    Ok(xs.contiguous()?.apply_op3(&alpha.contiguous()?, &beta.contiguous()?, SnakeBeta)?)
}

/// The same mathematics in candle operations, for any device.
pub(crate) fn snake_beta_plain(xs: &Tensor, alpha: &Tensor, beta: &Tensor) -> Result<Tensor> {
    let wave = xs.broadcast_mul(alpha)?.sin()?.sqr()?;
    Ok((xs + wave.broadcast_div(&(beta + SNAKE_EPSILON)?)?)?)
}

impl Steps {
    /// Applies `function` to every value.
    pub(crate) fn unary(self, function: Unary) -> Result<Self> {
        let floats = |xs: &mut [f32]| {
            codec_kernels::unary_in_place(function, xs);
            Ok::<(), Error>(())
        };
        self.by([], |xs| xs.map_in_place(floats), |xs| unary(xs, function))
    }

    /// See [`snake`].
    pub(crate) fn snake(self, alpha: &Tensor) -> Result<Self> {
        self.expect_channels("input", alpha.elem_count())?;
        let floats = |xs: Floats| {
            on_values(&alpha.contiguous()?, |alpha| xs.map(|xs, out| codec_kernels::snake(xs, alpha, out)))
        };
        self.by([alpha], floats, |xs| snake(xs, alpha))
    }

    /// See [`snake_beta`].
    pub(crate) fn snake_beta(self, alpha: &Tensor, beta: &Tensor) -> Result<Self> {
        self.expect_channels("input", alpha.elem_count())?;
        let floats = |xs: Floats| {
            on_values(&alpha.contiguous()?, |alpha| {
                on_values(&beta.contiguous()?, |beta| {
                    xs.map(|xs, out| codec_kernels::snake_beta(xs, alpha, beta, out))
                })
            })
        };
        self.by([alpha, beta], floats, |xs| snake_beta(xs, alpha, beta))
    }
}

struct UnaryOp {
    function: Unary,
}

impl CustomOp1 for UnaryOp {
    fn name(&self) -> &'static str {
        "codec-unary"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let xs = flat(xs, layout)?;
        let mut out = zeros(xs.len());
        codec_kernels::unary(self.function, xs, &mut out).map_err(wrap)?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (xs, grad) = (xs.detach().contiguous()?, grad.detach().contiguous()?);
        xs.apply_op2_no_bwd(&grad, &UnaryGradient { function: self.function }).map(Some)
    }
}

struct UnaryGradient {
    function: Unary,
}

impl CustomOp2 for UnaryGradient {
    fn name(&self) -> &'static str {
        "codec-unary-gradient"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (xs, grad) = (flat(xs, xs_layout)?, flat(grad, grad_layout)?);
        let mut out = zeros(xs.len());
        codec_kernels::unary_gradient(self.function, xs, grad, &mut out).map_err(wrap)?;
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }
}

struct Snake;

impl CustomOp2 for Snake {
    fn name(&self) -> &'static str {
        "codec-snake"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        alpha: &CpuStorage,
        alpha_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (xs, alpha) = (flat(xs, xs_layout)?, flat(alpha, alpha_layout)?);
        let mut out = zeros(xs.len());
        codec_kernels::snake(xs, alpha, &mut out).map_err(wrap)?;
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        alpha: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (inputs, alphas) = (xs.detach().contiguous()?, alpha.detach().contiguous()?);
        let both = inputs.apply_op3_no_bwd(&alphas, &grad.detach().contiguous()?, &SnakeGradient)?;
        let n = xs.elem_count();
        let part = |start: usize, of: &Tensor| both.narrow(0, start, of.elem_count())?.reshape(of.shape());
        Ok((
            xs.track_op().then(|| part(0, xs)).transpose()?,
            alpha.track_op().then(|| part(n, alpha)).transpose()?,
        ))
    }
}

/// The gradient of the input, then that of alpha.
struct SnakeGradient;

impl CustomOp3 for SnakeGradient {
    fn name(&self) -> &'static str {
        "codec-snake-gradient"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        alpha: &CpuStorage,
        alpha_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (xs, alpha, grad) = (flat(xs, xs_layout)?, flat(alpha, alpha_layout)?, flat(grad, grad_layout)?);
        let mut out = zeros(xs.len() + alpha.len());
        let (for_xs, for_alpha) = out.split_at_mut(xs.len());
        codec_kernels::snake_gradient(xs, alpha, grad, for_xs, for_alpha).map_err(wrap)?;
        let n = out.len();
        Ok((CpuStorage::F32(out), Shape::from(n)))
    }
}

struct SnakeBeta;

impl CustomOp3 for SnakeBeta {
    fn name(&self) -> &'static str {
        "codec-snake-beta"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        alpha: &CpuStorage,
        alpha_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (xs, alpha, beta) = (flat(xs, xs_layout)?, flat(alpha, alpha_layout)?, flat(beta, beta_layout)?);
        let mut out = zeros(xs.len());
        codec_kernels::snake_beta(xs, alpha, beta, &mut out).map_err(wrap)?;
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        alpha: &Tensor,
        beta: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let plain = |[xs, alpha, beta]: [&Tensor; 3]| snake_beta_plain(xs, alpha, beta);
        let [for_xs, for_alpha, for_beta] = vector_jacobian([xs, alpha, beta], grad, plain)?;
        Ok((for_xs, for_alpha, for_beta))
    }
}
