//! Finite scalar quantization while it trains: values are bounded and rounded, and the gradient passes.

use super::{LookedUp, Pass, linear};
use crate::error::Result;
use candle_core::{DType, Tensor};
use codec_nn::quantizer::ProjectionsNet;

/// Keeps the outermost levels reachable (fsq.ipynb).
const EPSILON: f64 = 1e-3;

/// Rounds latents to the grid.
///
/// # Source
/// Mentzer et al. 2023, arXiv 2309.15505, appendix A.1; the values are those of `codec_core`'s `Fsq`.
pub(super) fn forward(
    pass: &mut Pass,
    levels: &[u32],
    projections: Option<&ProjectionsNet>,
    latents: &Tensor,
) -> Result<Tensor> {
    let values = match projections {
        Some(projections) => linear(&projections.input, latents)?,
        None => latents.clone(),
    };
    let (batch, n_frames, dim) = values.dims3()?;
    let device = values.device();
    let row = |value: &dyn Fn(f64) -> f64| -> Result<Tensor> {
        let row: Vec<f32> = levels.iter().map(|&n| value(f64::from(n)) as f32).collect();
        Ok(Tensor::from_vec(row, (1, 1, dim), device)?)
    };
    let half = |n: f64| (n - 1.0) * (1.0 + EPSILON) / 2.0;
    let offset = |n: f64| if n % 2.0 == 0.0 { 0.5 } else { 0.0 };
    let shift = row(&|n| (offset(n) / half(n)).atanh())?;
    let bounded = values.broadcast_add(&shift)?.tanh()?;
    let bounded = bounded.broadcast_mul(&row(&half)?)?.broadcast_sub(&row(&offset)?)?;
    let whole = bounded.detach().round()?;
    let rounded = (&bounded + (&whole - bounded.detach())?)?;
    let points = rounded.broadcast_div(&row(&|n| (n / 2.0).floor())?)?;

    // Each value counts as a codebook of its own: which level it took.
    let digits = whole.broadcast_add(&row(&|n| (n / 2.0).floor())?)?.to_dtype(DType::U32)?;
    let (digits, rows) = (digits.flatten_to(1)?, values.detach().flatten_to(1)?);
    let items: Vec<usize> = (0..batch).flat_map(|item| std::iter::repeat_n(item, n_frames)).collect();
    for value_idx in 0..dim {
        pass.looked_up.push(LookedUp {
            rows: rows.narrow(1, value_idx, 1)?,
            codes: digits.narrow(1, value_idx, 1)?.flatten_all()?,
            items: items.clone(),
        });
    }
    match projections {
        Some(projections) => linear(&projections.output, &points),
        None => Ok(points),
    }
}
