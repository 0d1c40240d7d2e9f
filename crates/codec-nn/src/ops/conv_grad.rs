//! The gradients of a convolution, as products of the same kind.
//!
//! What an input is owed is a convolution of the outputs' gradient with the taps in reverse, or, with a
//! stride, a transposed convolution. What a weight is owed is the product of the transposed windows with the
//! outputs' gradient, which needs no transposed copy.

use super::conv::{Geometry, Packed};
use super::{Items, flat, wrap};
use crate::Result;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};
use codec_kernels::{PackedMatrix, Rows, Start, for_items, gemm, gemm_transposed, zeros};
use rayon::prelude::*;
use std::ops::Range;

/// The gradient of the input: every output hands its share back to the steps of its window.
///
/// # Shapes
/// `grad` `[batch, n_out, c_out]`, `rows` `[kernel * c_in, c_out]`, result `[batch, n_in, c_in]`.
pub(super) fn input_gradient(
    grad: &Tensor,
    rows: &Tensor,
    geometry: Geometry,
    n_in: usize,
) -> Result<Tensor> {
    Ok(grad.contiguous()?.apply_op2_no_bwd(&rows.contiguous()?, &InputGradient { geometry, n_in })?)
}

/// The gradient of the weight in row form.
///
/// # Shapes
/// `xs` `[batch, n_in, c_in]`, `grad` `[batch, n_out, c_out]`, result `[kernel * c_in, c_out]`.
pub(super) fn rows_gradient(xs: &Tensor, grad: &Tensor, geometry: Geometry) -> Result<Tensor> {
    Ok(super::with_packed_items(xs)?.apply_op2_no_bwd(&grad.contiguous()?, &RowsGradient { geometry })?)
}

/// The gradient of a bias: the sum over all but the last dimension, steps in order.
pub(super) fn bias_gradient(grad: &Tensor) -> Result<Tensor> {
    Ok(grad.contiguous()?.apply_op1_no_bwd(&ColumnSums)?)
}

struct InputGradient {
    geometry: Geometry,
    n_in: usize,
}

impl CustomOp2 for InputGradient {
    fn name(&self) -> &'static str {
        "codec-conv-input-gradient"
    }

    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let Geometry { kernel, stride, dilation } = self.geometry;
        let grads = Items::new(grad, grad_layout)?;
        let (n_rows, c_out) = rows_layout.shape().dims2()?;
        let rows = Rowed { values: flat(rows, rows_layout)?, c_in: n_rows / kernel, c_out };
        let mut out = zeros(grads.batch * self.n_in * rows.c_in);
        match (stride, dilation) {
            (1, _) => self.unit_stride(&grads, &rows, &mut out),
            (_, 1) => self.strided(&grads, &rows, &mut out),
            _ => self.by_taps(&grads, &rows, &mut out),
        }
        .map_err(wrap)?;
        Ok((CpuStorage::F32(out), Shape::from((grads.batch, self.n_in, rows.c_in))))
    }
}

/// A weight in row form.
struct Rowed<'a> {
    /// `[kernel, c_in, c_out]`.
    values: &'a [f32],
    c_in: usize,
    c_out: usize,
}

impl Rowed<'_> {
    /// The transposes of some taps, `[n_taps * c_out, c_in]`, zeros where there is no tap.
    fn transposed(&self, taps: impl Iterator<Item = usize>) -> Vec<f32> {
        let tap_len = self.c_in * self.c_out;
        let mut out = Vec::new();
        for tap_idx in taps {
            let start = out.len();
            out.resize(start + tap_len, 0.0);
            let Some(tap) = self.values.get(tap_idx * tap_len..(tap_idx + 1) * tap_len) else { continue };
            for (i, row) in tap.chunks_exact(self.c_out.max(1)).enumerate() {
                let column = out[start..].iter_mut().skip(i).step_by(self.c_in);
                column.zip(row).for_each(|(x, y)| *x = *y);
            }
        }
        out
    }
}

impl InputGradient {
    /// A convolution of the gradient between zeros with the taps in reverse.
    fn unit_stride(&self, grads: &Items<'_>, rows: &Rowed<'_>, out: &mut [f32]) -> Result<()> {
        let Geometry { kernel, dilation, .. } = self.geometry;
        let matrix = rows.transposed((0..kernel).rev());
        let packed = Packed::new(&matrix, rows.c_in, self.geometry)?;
        let around = (kernel - 1) * dilation;
        if kernel == 1 && grads.are_adjacent() {
            // Batch and time are one axis.
            let n_rows = grads.batch * grads.n_steps;
            let left = Rows::new(grads.data, n_rows, rows.c_out, rows.c_out)?;
            return Ok(gemm(left, &packed.taps()[0], Start::Zero, out)?);
        }
        // Steps beyond the last window are owed nothing.
        let n_reached = (grads.n_steps + around).min(self.n_in);
        for_items(out, self.n_in * rows.c_in, |batch_idx, out| {
            let item = grads.get(batch_idx);
            let mut padded = vec![0.0; (grads.n_steps + 2 * around) * rows.c_out];
            padded[around * rows.c_out..][..item.len()].copy_from_slice(item);
            let out = &mut out[..n_reached * rows.c_in];
            for (tap_idx, tap) in packed.taps().iter().enumerate() {
                let first = tap_idx * dilation * rows.c_out;
                let left = Rows::new(&padded[first..], n_reached, tap.k(), rows.c_out)?;
                gemm(left, tap, if tap_idx == 0 { Start::Zero } else { Start::Accumulate }, out)?;
            }
            Ok(())
        })
    }

    /// A row of `stride` steps of input is owed by the outputs whose windows reach it, oldest first.
    fn strided(&self, grads: &Items<'_>, rows: &Rowed<'_>, out: &mut [f32]) -> Result<()> {
        let Geometry { kernel, stride, .. } = self.geometry;
        let n_neighbours = kernel.div_ceil(stride);
        // [n_neighbours, stride, c_out, c_in] to [n_neighbours * c_out, stride * c_in].
        let taps = (0..n_neighbours).rev().flat_map(|age| (0..stride).map(move |phase| age * stride + phase));
        let taps = rows.transposed(taps);
        let width = stride * rows.c_in;
        let mut matrix = vec![0.0; taps.len()];
        for (tap_idx, tap) in taps.chunks_exact((rows.c_out * rows.c_in).max(1)).enumerate() {
            let (neighbour, phase) = (tap_idx / stride, tap_idx % stride);
            for (o, row) in tap.chunks_exact(rows.c_in).enumerate() {
                let at = (neighbour * rows.c_out + o) * width + phase * rows.c_in;
                matrix[at..at + rows.c_in].copy_from_slice(row);
            }
        }
        let packed = PackedMatrix::new(&matrix, n_neighbours * rows.c_out, width)?;
        let around = n_neighbours - 1;
        let n_rows = grads.n_steps + around;
        for_items(out, self.n_in * rows.c_in, |batch_idx, out| {
            let item = grads.get(batch_idx);
            let mut padded = vec![0.0; (grads.n_steps + 2 * around) * rows.c_out];
            let mut steps = vec![0.0; n_rows * width];
            padded[around * rows.c_out..][..item.len()].copy_from_slice(item);
            let left = Rows::new(&padded, n_rows, n_neighbours * rows.c_out, rows.c_out)?;
            gemm(left, &packed, Start::Zero, &mut steps)?;
            let n = steps.len().min(out.len());
            out[..n].copy_from_slice(&steps[..n]);
            Ok(())
        })
    }

    /// Tap by tap: what is left over is rare.
    fn by_taps(&self, grads: &Items<'_>, rows: &Rowed<'_>, out: &mut [f32]) -> Result<()> {
        let Geometry { kernel, stride, dilation } = self.geometry;
        let mut shares = vec![0.0; grads.n_steps * rows.c_in];
        for tap_idx in 0..kernel {
            let packed =
                PackedMatrix::new(&rows.transposed(std::iter::once(tap_idx)), rows.c_out, rows.c_in)?;
            for (batch_idx, out) in out.chunks_exact_mut((self.n_in * rows.c_in).max(1)).enumerate() {
                let left = Rows::new(grads.get(batch_idx), grads.n_steps, rows.c_out, rows.c_out)?;
                gemm(left, &packed, Start::Zero, &mut shares)?;
                for (t, share) in shares.chunks_exact(rows.c_in.max(1)).enumerate() {
                    let first = (t * stride + tap_idx * dilation) * rows.c_in;
                    out[first..][..rows.c_in].iter_mut().zip(share).for_each(|(sum, share)| *sum += share);
                }
            }
        }
        Ok(())
    }
}

struct RowsGradient {
    geometry: Geometry,
}

impl CustomOp2 for RowsGradient {
    fn name(&self) -> &'static str {
        "codec-conv-rows-gradient"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (xs, grads) = (Items::new(xs, xs_layout)?, Items::new(grad, grad_layout)?);
        let Geometry { kernel, stride, dilation } = self.geometry;
        let (c_in, c_out) = (xs.channels, grads.channels);
        let mut out = vec![0.0; kernel * c_in * c_out];
        let whole = self.geometry == Geometry::POINTWISE && xs.are_adjacent() && grads.are_adjacent();
        // Batch and time are one axis where windows are single steps.
        let (n_items, n_steps) =
            if whole { (1, grads.batch * grads.n_steps) } else { (grads.batch, grads.n_steps) };
        for item_idx in 0..n_items {
            let (item, grad) =
                if whole { (xs.data, grads.data) } else { (xs.get(item_idx), grads.get(item_idx)) };
            let packed =
                PackedMatrix::for_transposed(&grad[..n_steps * c_out], n_steps, c_out).map_err(wrap)?;
            // The taps of an undilated window are one run of memory.
            let n_taps = if dilation == 1 { 1 } else { kernel };
            let n_rows = kernel / n_taps * c_in;
            for (tap_idx, out) in out.chunks_exact_mut((n_rows * c_out).max(1)).enumerate() {
                let first = tap_idx * dilation * c_in;
                gemm_transposed(&item[first..], n_rows, stride * c_in, &packed, Start::Accumulate, out)
                    .map_err(wrap)?;
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((kernel * c_in, c_out))))
    }
}

/// Sums over the rows of arrays of `len` elements, in an order that the number of threads does not change;
/// `add` adds a range of elements to sums.
pub(super) fn column_sums(
    len: usize,
    channels: usize,
    add: impl Fn(Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    /// Rows of one task; fixed, so that sums do not depend on the number of threads.
    const TASK_ROWS: usize = 1 << 7;
    let task_len = (TASK_ROWS * channels).max(1);
    let sums = |task_idx: usize| {
        let mut sums = vec![0.0; channels];
        add(task_idx * task_len..len.min((task_idx + 1) * task_len), &mut sums);
        sums
    };
    let parts: Vec<Vec<f32>> = (0..len.div_ceil(task_len)).into_par_iter().map(sums).collect();
    let mut out = vec![0.0; channels];
    parts.iter().for_each(|part| out.iter_mut().zip(part).for_each(|(sum, x)| *sum += x));
    out
}

struct ColumnSums;

impl CustomOp1 for ColumnSums {
    fn name(&self) -> &'static str {
        "codec-column-sums"
    }

    fn cpu_fwd(&self, grad: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let channels = layout.dims().last().copied().unwrap_or(1);
        let grad = flat(grad, layout)?;
        let out = column_sums(grad.len(), channels, |part, sums| {
            for row in grad[part].chunks_exact(channels) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        });
        Ok((CpuStorage::F32(out), Shape::from(channels)))
    }
}
