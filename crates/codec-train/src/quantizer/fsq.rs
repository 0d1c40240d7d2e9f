//! Finite scalar quantization while it trains: values are bounded and rounded, and the gradient passes.

use super::{LookedUp, Pass, linear};
use crate::error::Result;
use candle_core::Tensor;
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

    // The code is a mixed-radix number, the first value least significant.
    let digits: Vec<f32> = whole.broadcast_add(&row(&|n| (n / 2.0).floor())?)?.flatten_all()?.to_vec1()?;
    let code = |digits: &[f32]| {
        digits.iter().zip(levels).rev().fold(0, |code, (&digit, &n)| code * n + digit as u32)
    };
    let codes: Vec<u32> = digits.chunks_exact(dim.max(1)).map(code).collect();
    let n = codes.len();
    pass.looked_up.push(LookedUp {
        rows: values.detach().reshape((batch * n_frames, dim))?,
        codes: Tensor::from_vec(codes, n, device)?,
        items: (0..batch).flat_map(|item| std::iter::repeat_n(item, n_frames)).collect(),
    });
    match projections {
        Some(projections) => linear(&projections.output, &points),
        None => Ok(points),
    }
}
