//! A linear map whose weight trains: the products read the weight as it lies, so nothing is transposed.
//!
//! The chains are those of a convolution of kernel 1, so both give the same bits.

use super::conv::Geometry;
use super::conv_grad::bias_gradient;
use super::{Items, expect_channels, flat, on_kernels, with_packed_items, wrap};
use crate::Result;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use codec_kernels::{PackedMatrix, Rows, Start, gemm, gemm_transposed, zeros};

/// `xs` times the transpose of `weight`, plus a bias.
///
/// # Shapes
/// `xs` `[batch, time, c_in]`, `weight` `[c_out, c_in]`, `bias` `[c_out]`, result `[batch, time, c_out]`.
pub(crate) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    expect_channels("input", xs, weight.dim(1)?)?;
    if !on_kernels(xs)? {
        return super::conv::plain(xs, &weight.t()?.contiguous()?, bias, Geometry::POINTWISE);
    }
    let (xs, weight) = (with_packed_items(xs)?, weight.contiguous()?);
    Ok(match bias {
        Some(bias) => xs.apply_op3(&weight, &bias.contiguous()?, Linear)?,
        None => xs.apply_op2(&weight, Linear)?,
    })
}

/// What a product reads: the rows of all items, one after the other.
fn rows(items: &Items<'_>) -> Vec<f32> {
    let mut all = Vec::with_capacity(items.batch * items.n_steps * items.channels);
    (0..items.batch).for_each(|batch_idx| all.extend_from_slice(items.get(batch_idx)));
    all
}

/// The product of all rows with a packed matrix.
fn product(items: &Items<'_>, matrix: &PackedMatrix, start: Start<'_>) -> Result<(CpuStorage, Shape)> {
    let n_rows = items.batch * items.n_steps;
    let mut out = zeros(n_rows * matrix.n());
    let copied;
    let data = if items.are_adjacent() {
        items.data
    } else {
        copied = rows(items);
        &copied
    };
    gemm(Rows::new(data, n_rows, items.channels, items.channels)?, matrix, start, &mut out)?;
    Ok((CpuStorage::F32(out), Shape::from((items.batch, items.n_steps, matrix.n()))))
}

struct Linear;

impl Linear {
    fn forward(
        xs: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (c_out, c_in) = weight.1.shape().dims2()?;
        let matrix = PackedMatrix::from_transposed(flat(weight.0, weight.1)?, c_in, c_out).map_err(wrap)?;
        product(&Items::new(xs.0, xs.1)?, &matrix, bias.map_or(Start::Zero, Start::Bias)).map_err(wrap)
    }

    /// The gradients of input and weight.
    fn backward(
        xs: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        // Detached, or the gradients would carry a graph of their own.
        let (inputs, matrix, grad) = (xs.detach(), weight.detach(), grad.detach().contiguous()?);
        let for_xs = xs.track_op().then(|| grad.apply_op2_no_bwd(&matrix.contiguous()?, &InputGradient));
        let for_weight = weight
            .track_op()
            .then(|| grad.apply_op2_no_bwd(&with_packed_items(&inputs).map_err(wrap)?, &WeightGradient));
        Ok((for_xs.transpose()?, for_weight.transpose()?))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "codec-linear"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Self::forward((xs, xs_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Self::backward(xs, weight, grad)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "codec-linear-bias"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Self::forward((xs, xs_layout), (weight, weight_layout), Some(flat(bias, bias_layout)?))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (for_xs, for_weight) = Self::backward(xs, weight, grad)?;
        let for_bias = bias.track_op().then(|| bias_gradient(&grad.detach())).transpose().map_err(wrap)?;
        Ok((for_xs, for_weight, for_bias))
    }
}

/// `grad` `[batch, time, c_out]` times `weight` `[c_out, c_in]`.
struct InputGradient;

impl CustomOp2 for InputGradient {
    fn name(&self) -> &'static str {
        "codec-linear-input-gradient"
    }

    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (c_out, c_in) = weight_layout.shape().dims2()?;
        let matrix = PackedMatrix::new(flat(weight, weight_layout)?, c_out, c_in).map_err(wrap)?;
        product(&Items::new(grad, grad_layout)?, &matrix, Start::Zero).map_err(wrap)
    }
}

/// The transpose of `grad` `[batch, time, c_out]` times `xs` `[batch, time, c_in]`: `[c_out, c_in]`.
struct WeightGradient;

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        "codec-linear-weight-gradient"
    }

    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        xs: &CpuStorage,
        xs_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (grads, xs) = (Items::new(grad, grad_layout)?, Items::new(xs, xs_layout)?);
        let (c_out, c_in) = (grads.channels, xs.channels);
        let whole = xs.are_adjacent() && grads.are_adjacent();
        // Batch and time are one axis where the items follow each other.
        let (n_items, n_steps) = if whole { (1, xs.batch * xs.n_steps) } else { (xs.batch, xs.n_steps) };
        let mut out = zeros(c_out * c_in);
        for item_idx in 0..n_items {
            let (item, grad) =
                if whole { (xs.data, grads.data) } else { (xs.get(item_idx), grads.get(item_idx)) };
            let packed =
                PackedMatrix::for_transposed(&item[..n_steps * c_in], n_steps, c_in).map_err(wrap)?;
            let grad = &grad[..n_steps * c_out];
            gemm_transposed(grad, c_out, c_out, &packed, Start::Accumulate, &mut out).map_err(wrap)?;
        }
        Ok((CpuStorage::F32(out), Shape::from((c_out, c_in))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::conv::conv;
    use super::super::testing::{Rng, values};
    use super::*;
    use candle_core::Var;

    #[test]
    fn has_the_bits_of_a_convolution_of_kernel_1_gradients_included() {
        let mut rng = Rng::new(1);
        for (batch, n_steps, c_in, c_out) in [(1, 1, 5, 3), (2, 9, 40, 70), (3, 200, 33, 2), (2, 150, 8, 64)]
        {
            let var = |xs: Tensor| Var::from_tensor(&xs).unwrap();
            let (xs, weight) = (var(rng.tensor(&[batch, n_steps, c_in])), var(rng.tensor(&[c_out, c_in])));
            let (bias, pull) = (var(rng.tensor(&[c_out])), rng.tensor(&[batch, n_steps, c_out]));
            let of = |ys: Tensor| {
                let grads = (&ys * &pull).unwrap().sum_all().unwrap().backward().unwrap();
                let grads = [&xs, &weight, &bias].map(|var| grads.get(var).map(values));
                (values(&ys), grads)
            };
            let rows = weight.t().unwrap().contiguous().unwrap();
            for bias in [None, Some(bias.as_tensor())] {
                let want = of(conv(&xs, &rows, bias, Geometry::POINTWISE).unwrap());
                assert_eq!(of(linear(&xs, &weight, bias).unwrap()), want);
            }
        }
    }
}
