//! The nearest entry of a codebook.

use crate::error::Result;
use candle_core::{D, Tensor};
use codec_core::quantizer::{Distance, Latents, Quantizer, Vq};

/// Keeps the direction of a zero vector finite.
const NORM_FLOOR: f64 = 1e-12;

/// The codes of some vectors, by the same search that the finished codec uses.
///
/// # Shapes
/// `rows` `[n, dim]`, `codebook` `[codebook_size, dim]`, result `[n]` of `u32`.
pub(crate) fn nearest(rows: &Tensor, codebook: &Tensor, distance: Distance) -> Result<Tensor> {
    let (rows, codebook) = (rows.detach(), codebook.detach());
    if rows.device().is_cpu() {
        let dim = rows.dim(1)?;
        let vq = Vq::new(codebook.flatten_all()?.to_vec1()?, dim, distance)?;
        let values = rows.flatten_all()?.to_vec1::<f32>()?;
        let codes = vq.encode(Latents::new(&values, dim)?, 1)?;
        let row = codes.row(0).unwrap_or_default();
        return Ok(Tensor::from_slice(row, row.len(), rows.device())?);
    }
    let (rows, codebook) = match distance {
        Distance::Euclidean => (rows, codebook),
        Distance::Cosine => (normalized(&rows)?, normalized(&codebook)?),
    };
    let products = rows.contiguous()?.matmul(&codebook.t()?.contiguous()?)?;
    let norms = codebook.sqr()?.sum(1)?;
    Ok((products * -2.0)?.broadcast_add(&norms)?.argmin(D::Minus1)?)
}

/// Rows of length one.
pub(crate) fn normalized(rows: &Tensor) -> Result<Tensor> {
    let norms = rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(NORM_FLOOR)?;
    Ok(rows.broadcast_div(&norms)?)
}
