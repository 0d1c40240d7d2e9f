//! Activations: a function of each value.

use super::{Chunk, Layer};
use crate::{Result, ops};
use candle_core::Tensor;
use codec_kernels::Unary;

/// A function of each value.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Activation {
    /// One of the functions without weights.
    Unary(Unary),
    /// `x + sin(alpha x)^2 / (alpha + 1e-9)`.
    Snake {
        /// `[channels]`.
        alpha: Tensor,
    },
}

impl Activation {
    /// ELU, the activation of EnCodec.
    pub fn elu(alpha: f32) -> Self {
        Self::Unary(Unary::Elu { alpha })
    }

    /// Snake with one alpha per channel, `[channels]` or PyTorch's `[1, channels, 1]`.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn snake(alpha: &Tensor) -> Result<Self> {
        Ok(Self::Snake { alpha: alpha.flatten_all()? })
    }
}

impl Layer for Activation {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        let apply = |xs: Tensor| match self {
            Self::Unary(function) => ops::unary(&xs, *function),
            Self::Snake { alpha } => ops::snake(&xs, alpha),
        };
        Ok(Chunk { steps: chunk.steps.map(apply).transpose()?, end: chunk.end })
    }
}
