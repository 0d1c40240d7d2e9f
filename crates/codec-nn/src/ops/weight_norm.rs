//! Weight normalization: a gain times a direction, row by row.

use super::{flat, on_kernels, wrap};
use crate::Result;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use rayon::prelude::*;

/// Values that one task folds: few, because each addition of a sum in f64 waits for the one before.
const PARALLEL_VALUES: usize = 1 << 16;

/// `gain * direction / |direction|`, the norm over all dimensions but the first.
///
/// # Shapes
/// `direction` and the result `[rows, ...]`, `gain` `[rows, 1, ...]`.
///
/// # Source
/// Salimans and Kingma 2016, equation 2; `torch.nn.utils.weight_norm`, dim 0.
pub(crate) fn weight_norm(direction: &Tensor, gain: &Tensor) -> Result<Tensor> {
    if !on_kernels(direction)? {
        return plain(direction, gain);
    }
    Ok(direction.contiguous()?.apply_op2(&gain.contiguous()?, WeightNorm)?)
}

/// The same mathematics in candle operations, for any device.
pub(crate) fn plain(direction: &Tensor, gain: &Tensor) -> Result<Tensor> {
    let norms = direction.flatten_from(1)?.sqr()?.sum_keepdim(1)?.sqrt()?.reshape(gain.dims())?;
    Ok(direction.broadcast_mul(&(gain / norms)?)?)
}

/// Folds in place, in f64; gives the first row whose norm is zero as an error.
///
/// # Shapes
/// `weight` `[rows, row_len]`, `gains` `[rows]`.
pub(crate) fn fold(gains: &[f32], weight: &mut [f32]) -> std::result::Result<(), usize> {
    let row_len = (weight.len() / gains.len().max(1)).max(1);
    let n_rows = PARALLEL_VALUES.div_ceil(row_len);
    let fold_rows = |(task_idx, (rows, gains)): (usize, (&mut [f32], &[f32]))| {
        for (row_idx, (row, &gain)) in rows.chunks_exact_mut(row_len).zip(gains).enumerate() {
            let norm = norm(row);
            if norm == 0.0 {
                return Some(task_idx * n_rows + row_idx);
            }
            let scale = f64::from(gain) / norm;
            for v in row {
                *v = (f64::from(*v) * scale) as f32;
            }
        }
        None
    };
    let tasks = weight.par_chunks_mut(n_rows * row_len).zip(gains.par_chunks(n_rows)).enumerate();
    match tasks.filter_map(fold_rows).min() {
        Some(row_idx) => Err(row_idx),
        None => Ok(()),
    }
}

/// The norm of each row, over all dimensions but the first.
pub(crate) fn row_norms(direction: &Tensor) -> Result<Vec<f32>> {
    let rows = direction.flatten_from(1)?.to_vec2::<f32>()?;
    Ok(rows.iter().map(|row| norm(row) as f32).collect())
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

struct WeightNorm;

impl CustomOp2 for WeightNorm {
    fn name(&self) -> &'static str {
        "codec-weight-norm"
    }

    fn cpu_fwd(
        &self,
        direction: &CpuStorage,
        direction_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut weight = flat(direction, direction_layout)?.to_vec();
        fold(flat(gain, gain_layout)?, &mut weight).map_err(|row_idx| {
            let row_len = weight.len() / direction_layout.dims()[0].max(1);
            wrap(crate::Error::NotFinite { name: "normalized weight".to_owned(), index: row_idx * row_len })
        })?;
        Ok((CpuStorage::F32(weight), direction_layout.shape().clone()))
    }

    fn bwd(
        &self,
        direction: &Tensor,
        gain: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let args = (direction.detach(), gain.detach(), grad.detach().contiguous()?);
        let both = args.0.contiguous()?.apply_op3_no_bwd(&args.1.contiguous()?, &args.2, &Backward)?;
        // One op has one result: the directions' gradients, then the gains'.
        let n = direction.elem_count();
        let for_direction =
            if direction.track_op() { Some(both.narrow(0, 0, n)?.reshape(direction.shape())?) } else { None };
        let for_gain = if gain.track_op() {
            Some(both.narrow(0, n, gain.elem_count())?.reshape(gain.shape())?)
        } else {
            None
        };
        Ok((for_direction, for_gain))
    }
}

/// `dv = g / |v| (dw - (dw . v/|v|) v/|v|)`, `dg = dw . v/|v|`.
struct Backward;

impl CustomOp3 for Backward {
    fn name(&self) -> &'static str {
        "codec-weight-norm-backward"
    }

    fn cpu_fwd(
        &self,
        direction: &CpuStorage,
        direction_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (weight, gains) = (flat(direction, direction_layout)?, flat(gain, gain_layout)?);
        let grad = flat(grad, grad_layout)?;
        let row_len = (weight.len() / gains.len().max(1)).max(1);
        let mut out = Vec::with_capacity(weight.len() + gains.len());
        let mut for_gains = Vec::with_capacity(gains.len());
        let rows = weight.chunks_exact(row_len).zip(grad.chunks_exact(row_len)).zip(gains);
        for ((row, grad), &gain) in rows {
            let norm = norm(row);
            let along: f64 = row.iter().zip(grad).map(|(&v, &d)| f64::from(v) * f64::from(d)).sum();
            let (scale, share) = (f64::from(gain) / norm, along / (norm * norm));
            let pairs = row.iter().zip(grad);
            out.extend(pairs.map(|(&v, &d)| (scale * (f64::from(d) - share * f64::from(v))) as f32));
            for_gains.push((along / norm) as f32);
        }
        out.append(&mut for_gains);
        let n = out.len();
        Ok((CpuStorage::F32(out), Shape::from(n)))
    }
}
