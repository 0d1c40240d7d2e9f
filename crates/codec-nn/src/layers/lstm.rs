//! Long short-term memory.

use super::{Chunk, Clip, Flow, Layer, LstmState, Steps, Work};
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
    /// One for each layer.
    type State = Vec<LstmState>;

    fn init(&self) -> Self::State {
        vec![LstmState::default(); self.cells.len()]
    }

    fn step(&self, states: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        let end = chunk.end;
        let mut layers = self.cells.iter().zip(states.iter_mut());
        let chunk = chunk.map_steps(|xs| layers.try_fold(xs, |xs, (cell, state)| cell.run(xs, state)))?;
        if end {
            *states = self.init();
        }
        Ok(chunk)
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        let n_weights = self.cells.iter().map(Cell::n_weights).sum();
        let hidden = self.cells.last().map_or(input.channels, Cell::hidden);
        let name = format!("{} lstm of {hidden}", self.cells.len());
        let work = Work::of(self, name, input).giving(1.0, hidden).with_product(n_weights);
        let output = work.output;
        list.push(work);
        output
    }
}

/// Layers of LSTM in both directions; what they give of a step stands side by side, the forward one first.
///
/// The backward direction begins with the last step, so nothing comes before the end mark and then all: the
/// state holds the whole clip.
///
/// # Source
/// Schuster and Paliwal 1997, "Bidirectional recurrent neural networks", as `torch.nn.LSTM` states it.
#[derive(Debug)]
pub struct BiLstm {
    /// Forward and backward.
    layers: Vec<[Cell; 2]>,
}

impl BiLstm {
    /// Takes the weights of the layers, forward and backward, the first that sees the input first.
    ///
    /// # Errors
    /// As [`Lstm::new`].
    pub fn new(layers: Vec<[LstmWeights; 2]>) -> Result<Self> {
        if layers.is_empty() {
            return Err(Error::Config { field: "n_layers", why: "an LSTM needs one".into() });
        }
        let cells = |[forward, backward]: [LstmWeights; 2]| Ok([Cell::new(forward)?, Cell::new(backward)?]);
        Ok(Self { layers: layers.into_iter().map(cells).collect::<Result<_>>()? })
    }
}

impl Layer for BiLstm {
    type State = Clip;

    fn init(&self) -> Clip {
        Clip::default()
    }

    fn step(&self, clip: &mut Clip, chunk: Chunk) -> Result<Chunk> {
        let Chunk { steps, end } = chunk.normalized();
        if !end {
            clip.push(steps)?;
            return Ok(Chunk { steps: None, end });
        }
        let reversed = |xs: &Tensor| xs.contiguous()?.flip(&[1]);
        let run = |cell: &Cell, xs: Tensor| cell.run(xs.into(), &mut LstmState::default())?.into_tensor();
        let both_ways = |mut xs: Tensor| {
            for [forward, backward] in &self.layers {
                let zs = run(backward, reversed(&xs)?)?;
                xs = Tensor::cat(&[run(forward, xs)?, reversed(&zs)?], 2)?;
            }
            Ok(xs)
        };
        let clip = Chunk { steps: clip.close(steps)?, end };
        clip.map_steps(|xs| xs.map_tensor(both_ways))
    }

    fn last_input(&self, _: u64) -> Option<u64> {
        None
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        let n_weights = self.layers.iter().flatten().map(Cell::n_weights).sum();
        let hidden = self.layers.iter().flatten().last().map_or(input.channels, Cell::hidden);
        let name = format!("{} lstm of {hidden} both ways", self.layers.len());
        let work = Work::of(self, name, input).giving(1.0, 2 * hidden).with_product(n_weights);
        let output = work.output;
        list.push(work);
        output
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

    /// Width of the output.
    fn hidden(&self) -> usize {
        self.gate_columns() / 4
    }

    /// Weights of both products.
    fn n_weights(&self) -> usize {
        let recurrent = self.gate_columns() * self.hidden();
        recurrent
            + match self {
                Self::Live(weights) => weights.input.elem_count(),
                Self::Fixed(gates) => gates.input.n_weights(),
            }
    }

    fn gate_columns(&self) -> usize {
        match self {
            Self::Live(weights) => weights.input_bias.elem_count(),
            Self::Fixed(gates) => gates.input.c_out(),
        }
    }

    fn run(&self, xs: Steps, state: &mut LstmState) -> Result<Steps> {
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

    fn run(&self, xs: Steps, state: &mut LstmState) -> Result<Steps> {
        self.input.apply(xs)?.lstm(&self.recurrent, state)
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

    #[test]
    fn both_directions_match_the_equations() {
        let mut rng = Rng::new(5);
        let layers =
            [(3, 5), (10, 5)].map(|(c_in, hidden)| [(); 2].map(|()| weights(&mut rng, c_in, hidden)));
        let xs = rng.tensor(&[2, 40, 3]);
        let got = BiLstm::new(layers.to_vec()).unwrap().forward(&xs).unwrap().unwrap();
        let reversed = |xs: &[f64], width: usize| -> Vec<f64> {
            xs.chunks_exact(width).rev().flatten().copied().collect()
        };
        let both = |xs: &[f64], [forward, backward]: &[LstmWeights; 2]| -> Vec<f64> {
            let c_in = forward.input.dim(1).unwrap();
            let (ys, zs) = (reference(xs, forward), reversed(&reference(&reversed(xs, c_in), backward), 5));
            ys.chunks_exact(5).zip(zs.chunks_exact(5)).flat_map(|(y, z)| [y, z].concat()).collect()
        };
        let want: Vec<f64> = values(&xs)
            .chunks_exact(40 * 3)
            .flat_map(|item| both(&both(item, &layers[0]), &layers[1]))
            .collect();
        assert_close("bidirectional lstm", &values(&got), &want, 1e-5);
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
            let both = [(); 2].map(|()| weights(&mut rng, c_in, hidden));
            assert_streams(&BiLstm::new(vec![both]).unwrap(), &xs, &mut rng);
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let mut rng = Rng::new(2);
        let layer = Lstm::new(vec![weights(&mut rng, 64, 160)]).unwrap();
        assert_threads_agree(&layer, &rng.tensor(&[3, 30, 64]));
    }

    fn weights_of(flat: &[Tensor]) -> LstmWeights {
        LstmWeights {
            input: flat[0].clone(),
            recurrent: flat[1].clone(),
            input_bias: flat[2].clone(),
            recurrent_bias: flat[3].clone(),
        }
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
            Lstm::new(flat.chunks_exact(4).map(weights_of).collect()).unwrap()
        });
        let both = [weights(&mut rng, 2, 3), weights(&mut rng, 2, 3)];
        let flat: Vec<Tensor> = both
            .iter()
            .flat_map(|w| [&w.input, &w.recurrent, &w.input_bias, &w.recurrent_bias].map(Tensor::clone))
            .collect();
        let xs = rng.tensor(&[2, 5, 2]);
        assert_trains(&mut rng, xs, &flat, |flat| {
            BiLstm::new(vec![[weights_of(&flat[..4]), weights_of(&flat[4..])]]).unwrap()
        });
    }

    #[test]
    fn refuses_weights_that_do_not_fit() {
        let mut rng = Rng::new(4);
        let good = weights(&mut rng, 2, 3);
        let bad = LstmWeights { recurrent: rng.tensor(&[12, 4]), ..good.clone() };
        assert!(matches!(Lstm::new(vec![bad]).unwrap_err(), Error::Shape { .. }));
        assert!(matches!(Lstm::new(Vec::new()).unwrap_err(), Error::Config { .. }));
        assert!(matches!(BiLstm::new(Vec::new()).unwrap_err(), Error::Config { .. }));
    }
}
