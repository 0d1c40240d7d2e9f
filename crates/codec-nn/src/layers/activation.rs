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
        chunk.map_steps(|xs| match self {
            Self::Unary(function) => ops::unary(&xs, *function),
            Self::Snake { alpha } => ops::snake(&xs, alpha),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_threads_agree, assert_trains};
    use super::*;
    use crate::ops::testing::Rng;

    fn all(channels: usize, rng: &mut Rng) -> Vec<Activation> {
        vec![
            Activation::elu(1.0),
            Activation::Unary(Unary::Tanh),
            Activation::Unary(Unary::Gelu),
            Activation::Unary(Unary::LeakyRelu { slope: 0.2 }),
            Activation::snake(&(rng.tensor(&[1, channels, 1]) + 1.5).unwrap()).unwrap(),
        ]
    }

    #[test]
    fn stream() {
        let mut rng = Rng::new(1);
        for n_steps in 1..30 {
            let xs = (rng.tensor(&[3, n_steps, 5]) * 4.0).unwrap();
            for layer in all(5, &mut rng) {
                assert_streams(&layer, &xs, &mut rng);
            }
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let mut rng = Rng::new(2);
        let xs = (rng.tensor(&[2, 5000, 37]) * 4.0).unwrap();
        for layer in all(37, &mut rng) {
            assert_threads_agree(&layer, &xs);
        }
    }

    #[test]
    fn train() {
        let mut rng = Rng::new(3);
        let xs = rng.tensor(&[2, 5, 3]);
        for function in [Unary::Tanh, Unary::Silu, Unary::GeluTanh] {
            assert_trains(&mut rng, xs.clone(), &[], |_| Activation::Unary(function));
        }
        let alpha = (rng.tensor(&[3]) + 1.5).unwrap();
        assert_trains(&mut rng, xs, &[alpha], |weights| Activation::snake(&weights[0]).unwrap());
    }
}
