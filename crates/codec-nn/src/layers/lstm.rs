//! Long short-term memory.

use super::{Chunk, Layer};
use crate::ops::{Filter, Form, Geometry, Recurrent};
use crate::{Error, Result, ops};
use candle_core::Tensor;

/// The weights of one layer, in PyTorch's layout and gate order (input, forget, candidate, output).
#[derive(Clone, Debug)]
pub struct LstmWeights {
    /// `weight_ih_l*`, `[4 * hidden, c_in]`.
    pub input: Tensor,
    /// `weight_hh_l*`, `[4 * hidden, hidden]`.
    pub recurrent: Tensor,
    /// `bias_ih_l*`, `[4 * hidden]`.
    pub input_bias: Tensor,
    /// `bias_hh_l*`, `[4 * hidden]`.
    pub recurrent_bias: Tensor,
}

/// Layers of LSTM in one direction, the output of each the input of the next.
///
/// EnCodec adds the input to the output: `Residual::new(lstm)`.
///
/// # Source
/// Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000, as `torch.nn.LSTM` states it.
#[derive(Debug)]
pub struct Lstm {
    cells: Vec<Cell>,
}

impl Lstm {
    /// Takes the weights of the layers, the first that sees the input first.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes are not those of [`LstmWeights`], [`Error::Config`] without a layer.
    pub fn new(layers: Vec<LstmWeights>) -> Result<Self> {
        if layers.is_empty() {
            return Err(Error::Config { field: "n_layers", why: "an LSTM needs one".into() });
        }
        Ok(Self { cells: layers.into_iter().map(Cell::new).collect::<Result<_>>()? })
    }
}

impl Layer for Lstm {
    /// Hidden and cell state of each layer, `[batch, 2, hidden]`; `None` stands for zeros.
    type State = Vec<Option<Tensor>>;

    fn init(&self) -> Self::State {
        vec![None; self.cells.len()]
    }

    fn step(&self, states: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        let Chunk { mut steps, end } = chunk.normalized();
        if let Some(xs) = &mut steps {
            for (cell, state) in self.cells.iter().zip(states.iter_mut()) {
                let (ys, next) = cell.run(xs, state.as_ref())?;
                (*xs, *state) = (ys, Some(next));
            }
        }
        if end {
            *states = self.init();
        }
        Ok(Chunk { steps, end })
    }
}

/// One layer: its weights where they may train, the operations made of them where they are fixed.
#[derive(Debug)]
enum Cell {
    Live(LstmWeights),
    Fixed(Gates),
}

impl Cell {
    fn new(weights: LstmWeights) -> Result<Self> {
        let LstmWeights { input, recurrent, input_bias, recurrent_bias } = &weights;
        let live = [input, recurrent, input_bias, recurrent_bias].iter().any(|tensor| tensor.track_op());
        // Made in either case: it is the check of the shapes.
        let gates = Gates::new(&weights)?;
        Ok(if live { Self::Live(weights) } else { Self::Fixed(gates) })
    }

    fn run(&self, xs: &Tensor, state: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Live(weights) => Gates::new(weights)?.run(xs, state),
            Self::Fixed(gates) => gates.run(xs, state),
        }
    }
}

/// What the four gates are made of.
#[derive(Debug)]
struct Gates {
    input: Filter,
    recurrent: Recurrent,
}

impl Gates {
    fn new(weights: &LstmWeights) -> Result<Self> {
        let bias = (&weights.input_bias + &weights.recurrent_bias)?;
        let recurrent = Recurrent::new(&weights.recurrent)?;
        ops::expect_shape("bias", &bias, &[4 * recurrent.hidden()?])?;
        let input = Filter::new(Form::Matrix, Geometry::POINTWISE, &weights.input, Some(&bias))?;
        Ok(Self { input, recurrent })
    }

    fn run(&self, xs: &Tensor, state: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let gates = self.input.apply(xs)?;
        match state {
            Some(state) => ops::lstm(&gates, &self.recurrent, state),
            None => {
                let shape = (xs.dim(0)?, 2, self.recurrent.hidden()?);
                let zeros = Tensor::zeros(shape, xs.dtype(), xs.device())?;
                ops::lstm(&gates, &self.recurrent, &zeros)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_threads_agree, assert_trains};
    use super::*;
    use crate::layers::Residual;
    use crate::ops::testing::{Rng, assert_close, values};
    use proptest::prelude::*;

    fn weights(rng: &mut Rng, c_in: usize, hidden: usize) -> LstmWeights {
        // PyTorch's range at the start of training, so that the gates work in their curved part.
        let scale = 1.0 / (hidden as f64).sqrt();
        let mut tensor = |dims: &[usize]| (rng.tensor(dims) * scale).unwrap();
        LstmWeights {
            input: tensor(&[4 * hidden, c_in]),
            recurrent: tensor(&[4 * hidden, hidden]),
            input_bias: tensor(&[4 * hidden]),
            recurrent_bias: tensor(&[4 * hidden]),
        }
    }

    /// One item `[time, c_in]` through one layer, straight from the equations of `torch.nn.LSTM`.
    fn reference(xs: &[f64], weights: &LstmWeights) -> Vec<f64> {
        let (n_gates, c_in) = weights.input.dims2().unwrap();
        let hidden = n_gates / 4;
        let [w, u, b, d] =
            [&weights.input, &weights.recurrent, &weights.input_bias, &weights.recurrent_bias].map(values);
        let (mut h, mut c, mut ys) = (vec![0.0; hidden], vec![0.0; hidden], Vec::new());
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for x in xs.chunks_exact(c_in) {
            let gate = |g: usize| -> f64 {
                let from_x: f64 = (0..c_in).map(|i| w[g * c_in + i] * x[i]).sum();
                let from_h: f64 = (0..hidden).map(|i| u[g * hidden + i] * h[i]).sum();
                from_x + from_h + b[g] + d[g]
            };
            let gates: Vec<f64> = (0..n_gates).map(gate).collect();
            for i in 0..hidden {
                let (forget, candidate) = (sigmoid(gates[hidden + i]), gates[2 * hidden + i].tanh());
                c[i] = forget * c[i] + sigmoid(gates[i]) * candidate;
                h[i] = sigmoid(gates[3 * hidden + i]) * c[i].tanh();
            }
            ys.extend_from_slice(&h);
        }
        ys
    }

    #[test]
    fn matches_the_equations() {
        let mut rng = Rng::new(1);
        let layers = [weights(&mut rng, 3, 5), weights(&mut rng, 5, 5)];
        let xs = rng.tensor(&[2, 40, 3]);
        let got = Lstm::new(layers.to_vec()).unwrap().forward(&xs).unwrap().unwrap();
        let want: Vec<f64> = values(&xs)
            .chunks_exact(40 * 3)
            .flat_map(|item| reference(&reference(item, &layers[0]), &layers[1]))
            .collect();
        assert_close("lstm", &values(&got), &want, 1e-5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn streams(c_in in 1usize..5, hidden in 1usize..20, n_steps in 1usize..20, seed in any::<u64>()) {
            let mut rng = Rng::new(seed);
            let layers = vec![weights(&mut rng, c_in, hidden), weights(&mut rng, hidden, hidden)];
            let xs = rng.tensor(&[3, n_steps, c_in]);
            assert_streams(&Lstm::new(layers).unwrap(), &xs, &mut rng);
            let block = Residual::new(Lstm::new(vec![weights(&mut rng, c_in, c_in)]).unwrap());
            assert_streams(&block, &xs, &mut rng);
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let mut rng = Rng::new(2);
        let layer = Lstm::new(vec![weights(&mut rng, 64, 160)]).unwrap();
        assert_threads_agree(&layer, &rng.tensor(&[3, 30, 64]));
    }

    #[test]
    fn trains() {
        let mut rng = Rng::new(3);
        let layers = [weights(&mut rng, 2, 3), weights(&mut rng, 3, 3)];
        let flat: Vec<Tensor> = layers
            .iter()
            .flat_map(|w| [&w.input, &w.recurrent, &w.input_bias, &w.recurrent_bias].map(Tensor::clone))
            .collect();
        let xs = rng.tensor(&[2, 5, 2]);
        assert_trains(&mut rng, xs, &flat, |flat| {
            let layer = |w: &[Tensor]| LstmWeights {
                input: w[0].clone(),
                recurrent: w[1].clone(),
                input_bias: w[2].clone(),
                recurrent_bias: w[3].clone(),
            };
            Lstm::new(flat.chunks_exact(4).map(layer).collect()).unwrap()
        });
    }

    #[test]
    fn refuses_weights_that_do_not_fit() {
        let mut rng = Rng::new(4);
        let good = weights(&mut rng, 2, 3);
        let bad = LstmWeights { recurrent: rng.tensor(&[12, 4]), ..good.clone() };
        assert!(matches!(Lstm::new(vec![bad]).unwrap_err(), Error::Shape { .. }));
        assert!(matches!(Lstm::new(Vec::new()).unwrap_err(), Error::Config { .. }));
    }
}
