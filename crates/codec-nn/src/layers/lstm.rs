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
        let mut steps = chunk.steps;
        if let Some(xs) = &mut steps {
            for (cell, state) in self.cells.iter().zip(states.iter_mut()) {
                let (ys, next) = cell.run(xs, state.as_ref())?;
                (*xs, *state) = (ys, Some(next));
            }
        }
        if chunk.end {
            *states = self.init();
        }
        Ok(Chunk { steps, end: chunk.end })
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
