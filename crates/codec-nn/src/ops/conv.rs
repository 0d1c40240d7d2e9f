//! Convolution as one matrix product over overlapping rows.
//!
//! In `[time, channels]` the window of `kernel` neighbouring steps is one run of `kernel * c_in` floats
//! and the next window starts `stride * c_in` further on, so the windows are the rows of a matrix that is
//! never copied. A dilated convolution is `kernel` products whose rows start one dilation later each, the
//! later ones going on with the chains of the earlier.

use super::conv_grad::{bias_gradient, input_gradient, rows_gradient};
use super::floats::Floats;
use super::{Items, expect_channels, flat, on_kernels, with_packed_items, wrap};
use crate::{Precision, Result};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use codec_kernels::{PackedMatrix, Rows, Start, for_items, gemm, zeros};
use std::sync::Arc;

/// Which steps a window reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Steps of input that one output reads.
    pub(crate) kernel: usize,
    /// Steps between neighbouring windows.
    pub(crate) stride: usize,
    /// Steps between the inputs of one window.
    pub(crate) dilation: usize,
}

impl Geometry {
    /// One step in, one step out.
    pub(crate) const POINTWISE: Self = Self { kernel: 1, stride: 1, dilation: 1 };

    /// Steps from the first to the last input of a window, both counted.
    pub(crate) fn span(&self) -> usize {
        self.kernel.saturating_sub(1).saturating_mul(self.dilation).saturating_add(1)
    }

    /// Whole windows in `n_in` steps.
    pub(crate) fn n_out(&self, n_in: usize) -> usize {
        if n_in < self.span() { 0 } else { (n_in - self.span()) / self.stride + 1 }
    }
}

/// A weight in row form, `[kernel * c_in, c_out]`, ready for the kernels.
#[derive(Debug)]
pub(crate) struct Packed {
    /// One matrix for all taps, or one per tap when dilation keeps them apart.
    taps: Vec<PackedMatrix>,
}

impl Packed {
    /// Packs `rows`, `[kernel * c_in, c_out]`, as they are.
    pub(crate) fn new(rows: &[f32], c_out: usize, geometry: Geometry) -> Result<Self> {
        Self::in_precision(Precision::Float32, rows, c_out, geometry)
    }

    /// Packs `rows`, `[kernel * c_in, c_out]`.
    pub(crate) fn in_precision(
        precision: Precision,
        rows: &[f32],
        c_out: usize,
        geometry: Geometry,
    ) -> Result<Self> {
        let n_taps = if geometry.dilation == 1 { 1 } else { geometry.kernel };
        let k = rows.len() / (c_out * n_taps).max(1);
        let taps = rows
            .chunks_exact((k * c_out).max(1))
            .map(|tap| Ok(PackedMatrix::new(&precision.rounded(tap, c_out)?, k, c_out)?))
            .collect::<Result<_>>()?;
        Ok(Self { taps })
    }

    /// One matrix, or one per tap where dilation keeps taps apart.
    pub(super) fn taps(&self) -> &[PackedMatrix] {
        &self.taps
    }

    fn c_out(&self) -> usize {
        self.taps.first().map_or(0, PackedMatrix::n)
    }

    /// Gives the row form back.
    fn unpack(&self) -> Result<Tensor> {
        let rows = self.taps.iter().map(PackedMatrix::unpacked).collect::<Vec<_>>().concat();
        let n_rows = rows.len() / self.c_out().max(1);
        Ok(Tensor::from_vec(rows, (n_rows, self.c_out()), &candle_core::Device::Cpu)?)
    }
}

/// Convolves with a weight that is fixed.
///
/// # Shapes
/// `xs` `[batch, n_in, c_in]`, `bias` `[c_out]`, result `[batch, n_out, c_out]`.
pub(crate) fn conv_fixed(
    xs: &Tensor,
    packed: &Arc<Packed>,
    bias: &Option<Arc<[f32]>>,
    geometry: Geometry,
) -> Result<Tensor> {
    let op = FixedConv { packed: packed.clone(), bias: bias.clone(), geometry };
    Ok(with_packed_items(xs)?.apply_op1(op)?)
}

/// [`conv_fixed`] of floats.
pub(super) fn conv_floats(
    xs: &Floats,
    packed: &Packed,
    bias: Option<&[f32]>,
    geometry: Geometry,
) -> Result<Floats> {
    let items = xs.items();
    let dims = [items.batch, geometry.n_out(items.n_steps), packed.c_out()];
    Floats::new(dims, |out| convolve(&items, packed, bias, geometry, out))
}

/// Convolves with a weight that may train, or lives on another device than the CPU.
///
/// # Shapes
/// `xs` `[batch, n_in, c_in]`, `rows` `[kernel * c_in, c_out]`, `bias` `[c_out]`, result
/// `[batch, n_out, c_out]`.
pub(crate) fn conv(xs: &Tensor, rows: &Tensor, bias: Option<&Tensor>, geometry: Geometry) -> Result<Tensor> {
    expect_channels("input", xs, rows.dim(0)? / geometry.kernel)?;
    if !on_kernels(xs)? {
        return plain(xs, rows, bias, geometry);
    }
    let (xs, rows) = (with_packed_items(xs)?, rows.contiguous()?);
    let op = LiveConv { geometry };
    Ok(match bias {
        Some(bias) => xs.apply_op3(&rows, &bias.contiguous()?, op)?,
        None => xs.apply_op2(&rows, op)?,
    })
}

/// The same mathematics in candle operations, for any device.
pub(crate) fn plain(xs: &Tensor, rows: &Tensor, bias: Option<&Tensor>, geometry: Geometry) -> Result<Tensor> {
    let ys = unfold(xs, geometry)?.broadcast_matmul(rows)?;
    Ok(match bias {
        Some(bias) => ys.broadcast_add(bias)?,
        None => ys,
    })
}

/// Every `stride`-th step from `start`, `n` of them.
pub(super) fn strided(xs: &Tensor, start: usize, n: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(xs.narrow(1, start, n)?);
    }
    let (batch, n_in, channels) = xs.dims3()?;
    let (needed, available) = (n * stride, n_in - start);
    let steps = xs.narrow(1, start, needed.min(available))?;
    // The last window may end less than a stride after its first step.
    let steps = steps.pad_with_zeros(1, 0, needed.saturating_sub(available))?.contiguous()?;
    Ok(steps.reshape((batch, n, stride, channels))?.narrow(2, 0, 1)?.squeeze(2)?)
}

/// Lays the windows out as rows: `[batch, n_out, kernel * c_in]`.
fn unfold(xs: &Tensor, geometry: Geometry) -> Result<Tensor> {
    let n_out = geometry.n_out(xs.dim(1)?);
    let taps = (0..geometry.kernel)
        .map(|tap_idx| Ok(strided(xs, tap_idx * geometry.dilation, n_out, geometry.stride)?.contiguous()?))
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::cat(&taps, 2)?)
}

/// The product over all items, as a tensor.
fn forward(
    items: &Items<'_>,
    packed: &Packed,
    bias: Option<&[f32]>,
    geometry: Geometry,
) -> Result<(CpuStorage, Shape)> {
    let (n_out, c_out) = (geometry.n_out(items.n_steps), packed.c_out());
    let mut out = zeros(items.batch * n_out * c_out);
    convolve(items, packed, bias, geometry, &mut out)?;
    Ok((CpuStorage::F32(out), Shape::from((items.batch, n_out, c_out))))
}

/// The product over all items; the chains of an output run over taps, then channels.
///
/// # Shapes
/// `out`: `[batch, n_out, c_out]`, written whole.
fn convolve(
    items: &Items<'_>,
    packed: &Packed,
    bias: Option<&[f32]>,
    geometry: Geometry,
    out: &mut [f32],
) -> Result<()> {
    let (n_out, c_out) = (geometry.n_out(items.n_steps), packed.c_out());
    let start = bias.map_or(Start::Zero, Start::Bias);
    let pitch = geometry.stride * items.channels;
    if geometry == Geometry::POINTWISE && items.are_adjacent() {
        // Batch and time are one axis here: one product instead of `batch`.
        let n_rows = items.batch * n_out;
        gemm(Rows::new(items.data, n_rows, items.channels, pitch)?, &packed.taps[0], start, out)?;
    } else {
        for_items(out, n_out * c_out, |batch_idx, out| -> Result<()> {
            let item = items.get(batch_idx);
            for (tap_idx, tap) in packed.taps.iter().enumerate() {
                let first = tap_idx * geometry.dilation * items.channels;
                let rows = Rows::new(&item[first..], n_out, tap.k(), pitch)?;
                gemm(rows, tap, if tap_idx == 0 { start } else { Start::Accumulate }, out)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

struct FixedConv {
    packed: Arc<Packed>,
    bias: Option<Arc<[f32]>>,
    geometry: Geometry,
}

impl CustomOp1 for FixedConv {
    fn name(&self) -> &'static str {
        "codec-conv-fixed"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let items = Items::new(xs, layout)?;
        forward(&items, &self.packed, self.bias.as_deref(), self.geometry).map_err(wrap)
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let rows = self.packed.unpack().map_err(wrap)?;
        input_gradient(&grad.detach(), &rows, self.geometry, xs.dim(1)?).map(Some).map_err(wrap)
    }
}

struct LiveConv {
    geometry: Geometry,
}

impl LiveConv {
    fn forward(
        &self,
        xs: (&CpuStorage, &Layout),
        rows: (&CpuStorage, &Layout),
        bias: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, c_out) = rows.1.shape().dims2()?;
        let packed = Packed::new(flat(rows.0, rows.1)?, c_out, self.geometry).map_err(wrap)?;
        forward(&Items::new(xs.0, xs.1)?, &packed, bias, self.geometry).map_err(wrap)
    }

    fn backward(
        &self,
        xs: &Tensor,
        rows: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        // Detached, or the gradients would carry a graph of their own.
        let (inputs, matrix, grad) = (xs.detach(), rows.detach(), grad.detach().contiguous()?);
        let n_in = xs.dim(1)?;
        let for_xs = xs.track_op().then(|| input_gradient(&grad, &matrix, self.geometry, n_in));
        let for_rows = rows.track_op().then(|| rows_gradient(&inputs, &grad, self.geometry));
        Ok((for_xs.transpose()?, for_rows.transpose()?))
    }
}

impl CustomOp2 for LiveConv {
    fn name(&self) -> &'static str {
        "codec-conv"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward((xs, xs_layout), (rows, rows_layout), None)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        rows: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(xs, rows, grad).map_err(wrap)
    }
}

impl CustomOp3 for LiveConv {
    fn name(&self) -> &'static str {
        "codec-conv-bias"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward((xs, xs_layout), (rows, rows_layout), Some(flat(bias, bias_layout)?))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        rows: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (for_xs, for_rows) = self.backward(xs, rows, grad).map_err(wrap)?;
        let for_bias = bias.track_op().then(|| bias_gradient(&grad.detach())).transpose().map_err(wrap)?;
        Ok((for_xs, for_rows, for_bias))
    }
}
