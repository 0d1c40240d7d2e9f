//! Quantizers: latents to codes and back.
//!
//! | type | codebooks | used by |
//! | --- | --- | --- |
//! | [`Vq`] | one, searched by Euclidean distance or by cosine similarity | single-codebook codecs |
//! | [`Rvq`] | stages on residuals, each with its stride and projections | EnCodec, DAC, SNAC, SoundStream |
//! | [`BeamRvq`] | an [`Rvq`] searched along several paths at once | this project's own codec |
//! | [`SplitRvq`] | a semantic and an acoustic [`Rvq`] of the same latents | Mimi |
//! | [`Grouped`] | one quantizer for each run of values | HiFi-Codec; group FSQ |
//! | [`Fsq`] | a grid that needs no table | NanoCodec |
//!
//! A beam is a way to search and not another code: what it writes, an [`Rvq`] reads.
//! Each encodes and decodes with any prefix of its codebooks, and a frame's result depends on that
//! frame alone (with strides: on its block alone), bit for bit: neither the number of frames in the
//! call nor the number of threads nor the CPU changes it.

mod beam;
mod blocks;
mod fsq;
mod grouped;
mod projection;
mod rvq;
mod split;
#[cfg(test)]
pub(crate) mod testing;
mod vq;

pub use beam::BeamRvq;
pub use fsq::Fsq;
pub use grouped::Grouped;
pub use projection::{Projection, Projections};
pub use rvq::Rvq;
pub use split::SplitRvq;
pub use vq::Vq;

use crate::codes::{CodeLayout, Codes, MAX_CODEBOOKS};
use crate::error::{Error, Result};
use std::fmt::Debug;

/// Latents seen as rows.
///
/// # Shapes
/// `[n_frames, dim]`, row-major.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latents<'a> {
    data: &'a [f32],
    dim: usize,
}

impl<'a> Latents<'a> {
    /// Views `data` as rows of `dim` values.
    ///
    /// # Errors
    /// [`Error::Range`] when `dim` is zero, [`Error::Shape`] when the last row is not whole.
    pub fn new(data: &'a [f32], dim: usize) -> Result<Self> {
        if dim == 0 {
            return Err(Error::Range { what: "latent dimension", min: 1, max: u64::MAX, actual: 0 });
        }
        if !data.len().is_multiple_of(dim) {
            let what = "values of the last latent";
            return Err(Error::Shape { what, expected: dim, actual: data.len() % dim });
        }
        Ok(Self { data, dim })
    }

    /// All values, row after row.
    pub fn data(self) -> &'a [f32] {
        self.data
    }

    /// Values per frame.
    pub fn dim(self) -> usize {
        self.dim
    }

    /// How many frames there are.
    pub fn n_frames(self) -> usize {
        self.data.len() / self.dim
    }
}

/// How a codebook is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Distance {
    /// The entry with the smallest squared Euclidean distance.
    Euclidean,
    /// The entry with the largest cosine similarity: the smallest Euclidean distance once both
    /// sides have unit length.
    Cosine,
}

/// Turns latents into codes and codes into latents.
pub trait Quantizer: Debug + Send + Sync {
    /// The codebooks.
    fn layout(&self) -> &CodeLayout;

    /// Values per latent.
    fn dim(&self) -> usize;

    /// Codes latents with the first codebooks, as many as there are `rows`, and appends its codes to each row. Ties
    /// go to the lowest index.
    ///
    /// For few frames it allocates nothing but the rows, once it has coded as many before on this thread.
    /// [`Grouped`] allocates in each call.
    ///
    /// # Errors
    /// [`Error::Range`] when the number of rows is not in 1..=`layout().n_codebooks()`,
    /// [`Error::Shape`] when the latents' dimension is not [`Quantizer::dim`] or the frames are not
    /// a multiple of [`CodeLayout::stride_frames`], [`Error::NotFinite`] when a latent is not finite. What the rows
    /// hold then is not said.
    fn encode_to(&self, latents: Latents<'_>, rows: &mut [Vec<u32>]) -> Result<()>;

    /// Writes the latents of codes to `out`; any prefix of the codebooks.
    ///
    /// # Shapes
    /// `rows`: `[n_frames / stride]` for each codebook; `out`: `[n_frames, dim]`, written whole.
    ///
    /// # Errors
    /// [`Error::Range`] when the number of rows is not in 1..=`layout().n_codebooks()`, [`Error::Shape`] when a
    /// row has another length, [`Error::Code`] when a code is not below its codebook's size.
    fn decode_to(&self, rows: &[&[u32]], out: &mut [f32]) -> Result<()>;

    /// Codes of the first `n_codebooks` codebooks.
    ///
    /// # Errors
    /// As [`Quantizer::encode_to`].
    fn encode(&self, latents: Latents<'_>, n_codebooks: usize) -> Result<Codes> {
        let layout = self.layout().truncated(n_codebooks)?;
        let mut rows = vec![Vec::new(); n_codebooks];
        self.encode_to(latents, &mut rows)?;
        Codes::new(layout, rows)
    }

    /// Latents of the codes, `[n_frames, dim]`; any prefix of the codebooks.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the codes' layout is not a prefix of this quantizer's, [`Error::Memory`] when there
    /// is not that much memory.
    fn decode(&self, codes: &Codes) -> Result<Vec<f32>> {
        if !codes.layout().is_prefix_of(self.layout()) {
            let [left, right] = [codes.layout().as_ref(), self.layout()].map(ToString::to_string);
            return Err(Error::Mismatch { what: "code layout", left, right });
        }
        let mut out = zeros("decoded latents", codes.n_frames(), self.dim())?;
        with_rows(codes.rows(), |rows| self.decode_to(rows, &mut out))?;
        Ok(out)
    }
}

/// Hands rows of codes, the first [`MAX_CODEBOOKS`], to `f` as a slice that nothing was allocated for.
pub fn with_rows<'a, R>(rows: impl Iterator<Item = &'a [u32]>, f: impl FnOnce(&[&'a [u32]]) -> R) -> R {
    let mut slice: [&[u32]; MAX_CODEBOOKS] = [&[]; MAX_CODEBOOKS];
    let mut n_rows = 0;
    for (place, row) in slice.iter_mut().zip(rows) {
        *place = row;
        n_rows += 1;
    }
    f(&slice[..n_rows])
}

/// Checks what [`Quantizer::encode_to`] promises to refuse.
fn check_latents(layout: &CodeLayout, dim: usize, latents: Latents<'_>, n_codebooks: usize) -> Result<()> {
    layout.check_n_codebooks(n_codebooks)?;
    if latents.dim() != dim {
        return Err(Error::Shape { what: "latent dimension", expected: dim, actual: latents.dim() });
    }
    let stride = layout.stride_frames() as usize;
    let over = latents.n_frames() % stride;
    if over != 0 {
        return Err(Error::Shape { what: "frames of the last block", expected: stride, actual: over });
    }
    check_finite("latents", latents.data())
}

/// Checks what [`Quantizer::decode_to`] promises to refuse.
fn check_rows(layout: &CodeLayout, dim: usize, rows: &[&[u32]], out: &[f32]) -> Result<()> {
    layout.check_n_codebooks(rows.len())?;
    let n_frames = Latents::new(out, dim)?.n_frames();
    for (codebook_idx, (row, spec)) in rows.iter().zip(layout.codebooks()).enumerate() {
        if row.len().checked_mul(spec.stride as usize) != Some(n_frames) {
            let expected = n_frames / spec.stride as usize;
            return Err(Error::Shape { what: "codes of a row", expected, actual: row.len() });
        }
        if let Some(position) = row.iter().position(|&code| code >= spec.size) {
            return Err(Error::Code { codebook_idx, position, code: row[position], size: spec.size });
        }
    }
    Ok(())
}

fn check_finite(what: &'static str, values: &[f32]) -> Result<()> {
    match values.iter().position(|x| !x.is_finite()) {
        Some(index) => Err(Error::NotFinite { what, index }),
        None => Ok(()),
    }
}

/// The product of some sizes, none of them zero, as the length of a slice.
fn checked_len(what: &'static str, sizes: &[usize]) -> Result<usize> {
    let max = (isize::MAX as usize / size_of::<f32>()) as u64;
    let product = sizes.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    match product {
        Some(len) if len != 0 && len as u64 <= max => Ok(len),
        len => Err(Error::Range { what, min: 1, max, actual: len.map_or(u64::MAX, |len| len as u64) }),
    }
}

/// `n_rows * row_len` zeros, or an error when there is not that much memory.
fn zeros(what: &'static str, n_rows: usize, row_len: usize) -> Result<Vec<f32>> {
    let too_many = || Error::Memory { what, n_rows, row_len };
    let len = n_rows.checked_mul(row_len).ok_or_else(too_many)?;
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| too_many())?;
    values.resize(len, 0.0);
    Ok(values)
}
