//! Activations: a function of each value.

use super::{Chunk, Flow, Layer, Work};
use crate::{Error, Result, ops};
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
    /// `x + sin(alpha x)^2 / (beta + 1e-9)`.
    SnakeBeta {
        /// `[channels]`.
        alpha: Tensor,
        /// `[channels]`.
        beta: Tensor,
    },
    /// Snake on the first channels, as many as there are alphas, and a leaky ReLU on the others (NeMo).
    HalfSnake {
        /// `[n]`, at most as many as channels.
        alpha: Tensor,
        /// Of the others below zero.
        slope: f32,
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

    /// Snake with waves of their own height, from the logarithms of alpha and beta.
    ///
    /// # Shapes
    /// `log_alpha`, `log_beta`: `[channels]`.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn snake_beta(log_alpha: &Tensor, log_beta: &Tensor) -> Result<Self> {
        let [alpha, beta] = [log_alpha, log_beta].map(|log| ops::unary(log, Unary::Exp));
        Ok(Self::SnakeBeta { alpha: alpha?, beta: beta? })
    }
}

impl Layer for Activation {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        chunk.map_steps(|xs| match self {
            Self::Unary(function) => xs.unary(*function),
            Self::Snake { alpha } => xs.snake(alpha),
            Self::SnakeBeta { alpha, beta } => xs.snake_beta(alpha, beta),
            Self::HalfSnake { alpha, slope } => xs.map_tensor(|xs| half_snake(&xs, alpha, *slope)),
        })
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        let name = match self {
            Self::Unary(function) => format!("{function:?}"),
            Self::Snake { .. } => "Snake".to_owned(),
            Self::SnakeBeta { .. } => "SnakeBeta".to_owned(),
            Self::HalfSnake { .. } => "HalfSnake".to_owned(),
        };
        list.push(Work::of(self, name, input));
        input
    }
}

fn half_snake(xs: &Tensor, alpha: &Tensor, slope: f32) -> Result<Tensor> {
    let (n_channels, n_snakes) = (xs.dim(2)?, alpha.dim(0)?);
    let Some(n_others) = n_channels.checked_sub(n_snakes) else {
        return Err(Error::Shape {
            name: "alpha".into(),
            expected: vec![n_channels],
            actual: vec![n_snakes],
        });
    };
    let snakes = ops::snake(&xs.narrow(2, 0, n_snakes)?, alpha)?;
    let others = ops::unary(&xs.narrow(2, n_snakes, n_others)?, Unary::LeakyRelu { slope })?;
    Ok(Tensor::cat(&[snakes, others], 2)?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_threads_agree, assert_trains};
    use super::*;
    use crate::ops::testing::{Rng, values};

    fn all(channels: usize, rng: &mut Rng) -> Vec<Activation> {
        vec![
            Activation::elu(1.0),
            Activation::Unary(Unary::Tanh),
            Activation::Unary(Unary::Gelu),
            Activation::Unary(Unary::LeakyRelu { slope: 0.2 }),
            Activation::snake(&(rng.tensor(&[1, channels, 1]) + 1.5).unwrap()).unwrap(),
            Activation::snake_beta(&rng.tensor(&[channels]), &rng.tensor(&[channels])).unwrap(),
            Activation::HalfSnake { alpha: (rng.tensor(&[channels / 2]) + 1.5).unwrap(), slope: 0.01 },
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
        assert_trains(&mut rng, xs.clone(), &[alpha], |weights| Activation::snake(&weights[0]).unwrap());
        let logs = [rng.tensor(&[3]), rng.tensor(&[3])];
        assert_trains(&mut rng, xs.clone(), &logs, |logs| {
            Activation::snake_beta(&logs[0], &logs[1]).unwrap()
        });
        let alpha = (rng.tensor(&[2]) + 1.5).unwrap();
        assert_trains(&mut rng, xs, &[alpha], |weights| Activation::HalfSnake {
            alpha: weights[0].clone(),
            slope: 0.2,
        });
    }

    #[test]
    fn half_of_a_snake_is_a_snake() {
        let mut rng = Rng::new(4);
        let (xs, alpha) = (rng.tensor(&[2, 5, 4]), (rng.tensor(&[3]) + 1.5).unwrap());
        let ys = Activation::HalfSnake { alpha: alpha.clone(), slope: 0.5 }.forward(&xs).unwrap().unwrap();
        let part = |xs: &Tensor, start: usize, n: usize| xs.narrow(2, start, n).unwrap();
        let snakes = Activation::snake(&alpha).unwrap().forward(&part(&xs, 0, 3)).unwrap().unwrap();
        assert_eq!(values(&part(&ys, 0, 3)), values(&snakes));
        let last = values(&part(&xs, 3, 1)).into_iter().map(|x| if x > 0.0 { x } else { 0.5 * x });
        assert_eq!(values(&part(&ys, 3, 1)), last.collect::<Vec<_>>());
        let alphas = Activation::HalfSnake { alpha: rng.tensor(&[5]), slope: 0.5 };
        assert!(matches!(alphas.forward(&xs), Err(Error::Shape { .. })));
    }
}
