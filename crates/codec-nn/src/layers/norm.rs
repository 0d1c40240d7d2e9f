//! Normalisations.

use super::steps::join;
use super::{Chunk, Layer};
use crate::{Error, Result, ops};
use candle_core::Tensor;

/// Mean 0 and variance 1 over the channels of each step, then scale and shift.
///
/// # Source
/// Ba et al. 2016, "Layer normalization".
#[derive(Clone, Debug)]
pub struct LayerNorm {
    gamma: Tensor,
    beta: Option<Tensor>,
    epsilon: f32,
}

impl LayerNorm {
    /// Takes the scale and the shift, both `[channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are not vectors of one length.
    pub fn new(gamma: Tensor, beta: Option<Tensor>, epsilon: f32) -> Result<Self> {
        ops::expect_shape("scale", &gamma, &[gamma.elem_count()])?;
        if let Some(beta) = &beta {
            ops::expect_shape("shift", beta, gamma.dims())?;
        }
        Ok(Self { gamma, beta, epsilon })
    }
}

impl Layer for LayerNorm {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        let apply = |xs: Tensor| ops::layer_norm(&xs, &self.gamma, self.beta.as_ref(), self.epsilon);
        Ok(Chunk { steps: chunk.steps.map(apply).transpose()?, end: chunk.end })
    }
}

/// Mean 0 and variance 1 over a whole segment and the channels of a group, then scale and shift.
///
/// The statistics need every step, so the layer gives nothing before the end mark and then all: its memory
/// grows with the stream. It is for codecs that work on segments of bounded length.
///
/// # Source
/// Wu and He 2018, "Group normalization".
#[derive(Clone, Debug)]
pub struct GroupNorm {
    n_groups: usize,
    gamma: Tensor,
    beta: Tensor,
    epsilon: f32,
}

impl GroupNorm {
    /// Takes the number of groups, the scale and the shift, both `[channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when scale and shift are not vectors of one length, [`Error::Config`] when the
    /// groups do not divide the channels.
    pub fn new(n_groups: usize, gamma: Tensor, beta: Tensor, epsilon: f32) -> Result<Self> {
        let channels = gamma.elem_count();
        ops::expect_shape("scale", &gamma, &[channels])?;
        ops::expect_shape("shift", &beta, &[channels])?;
        if n_groups == 0 || !channels.is_multiple_of(n_groups) {
            let why = format!("{n_groups} groups do not divide {channels} channels");
            return Err(Error::Config { field: "n_groups", why });
        }
        Ok(Self { n_groups, gamma, beta, epsilon })
    }
}

impl Layer for GroupNorm {
    type State = Vec<Tensor>;

    fn init(&self) -> Vec<Tensor> {
        Vec::new()
    }

    fn step(&self, collected: &mut Vec<Tensor>, chunk: Chunk) -> Result<Chunk> {
        collected.extend(chunk.steps);
        if !chunk.end {
            return Ok(Chunk { steps: None, end: false });
        }
        let segment = join(&std::mem::take(collected))?;
        let apply = |xs: Tensor| ops::group_norm(&xs, self.n_groups, &self.gamma, &self.beta, self.epsilon);
        Ok(Chunk { steps: segment.map(apply).transpose()?, end: true })
    }
}
