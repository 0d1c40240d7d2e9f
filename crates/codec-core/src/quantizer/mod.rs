//! Quantizers: latents to codes and back.

use crate::codes::{CodeLayout, Codes};
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
        if data.len() % dim != 0 {
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
    /// The entry with the largest cosine similarity.
    Cosine,
}

/// Turns latents into codes and codes into latents.
pub trait Quantizer: Debug + Send + Sync {
    /// The codebooks.
    fn layout(&self) -> &CodeLayout;

    /// Values per latent.
    fn dim(&self) -> usize;

    /// Codes of the first `n_codebooks` codebooks. Ties go to the lowest index.
    ///
    /// # Errors
    /// [`Error::Range`] when `n_codebooks` is not in 1..=`layout().n_codebooks()`,
    /// [`Error::Shape`] when the latents' dimension is not [`Quantizer::dim`] or the frames are not
    /// a multiple of [`CodeLayout::stride_frames`], [`Error::NotFinite`] when a latent is not finite.
    fn encode(&self, latents: Latents<'_>, n_codebooks: usize) -> Result<Codes>;

    /// Latents of the codes, `[n_frames, dim]`; any prefix of the codebooks.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the codes' layout is not a prefix of this quantizer's.
    fn decode(&self, codes: &Codes) -> Result<Vec<f32>>;
}
