//! Transposed convolution: `stride` steps out for each step in.

use super::steps::{join, keep, zeros};
use super::{Chunk, Layer};
use crate::ops::{Filter, Form, Geometry};
use crate::{Error, Result};
use candle_core::Tensor;

/// Transposed convolution with `kernel >= stride`.
///
/// A row of `stride` outputs is reached by `ceil(kernel / stride)` neighbouring inputs, so the layer is an
/// ordinary product over overlapping rows of input; nothing is summed twice and every output is one chain,
/// oldest input first, wherever the stream is cut.
#[derive(Debug)]
pub struct ConvTranspose1d {
    filter: Filter,
    kernel: usize,
    stride: usize,
    n_neighbours: usize,
    trim_left: usize,
    trim_right: usize,
}

impl ConvTranspose1d {
    /// Takes a weight `[c_in, c_out, kernel]` and a bias `[c_out]`, as `torch.nn.ConvTranspose1d` has them.
    ///
    /// The first `trim_left` and the last `trim_right` outputs of the full length,
    /// `(n_in - 1) * stride + kernel`, are dropped.
    ///
    /// # Errors
    /// [`Error::Shape`] when weight and bias do not fit, [`Error::Unsupported`] for a kernel shorter than
    /// its stride, [`Error::Config`] for a trim that the kernel does not leave room for.
    pub fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        trim_left: usize,
        trim_right: usize,
    ) -> Result<Self> {
        let (_, _, kernel) = weight.dims3()?;
        if stride == 0 || kernel < stride {
            let value = format!("kernel {kernel}, stride {stride}");
            return Err(Error::Unsupported { what: "transposed convolution", value });
        }
        if trim_right > kernel - stride || trim_left >= kernel - trim_right {
            let why = format!("{trim_left} and {trim_right} do not fit kernel {kernel} with stride {stride}");
            return Err(Error::Config { field: "trim", why });
        }
        let n_neighbours = kernel.div_ceil(stride);
        let geometry = Geometry { kernel: n_neighbours, stride: 1, dilation: 1 };
        let filter = Filter::new(Form::Transposed { stride }, geometry, weight, bias)?;
        Ok(Self { filter, kernel, stride, n_neighbours, trim_left, trim_right })
    }

    /// Takes `kernel - stride` outputs off, `trim_right` of them at the right: EnCodec's rule, where a causal
    /// model takes all at the right.
    ///
    /// # Errors
    /// As [`ConvTranspose1d::new`].
    ///
    /// # Source
    /// facebookresearch/encodec, encodec/modules/conv.py, `SConvTranspose1d` with `trim_right_ratio` 1.
    pub fn same(weight: &Tensor, bias: Option<&Tensor>, stride: usize, causal: bool) -> Result<Self> {
        let total = weight.dim(2)?.saturating_sub(stride);
        let trim_right = if causal { total } else { total / 2 };
        Self::new(weight, bias, stride, total - trim_right, trim_right)
    }
}

/// The state of [`ConvTranspose1d`].
#[derive(Debug, Default)]
pub struct ConvTransposeState {
    /// The last `n_neighbours - 1` inputs; zeros before the first.
    past: Option<Tensor>,
    began: bool,
    n_trimmed: usize,
}

impl Layer for ConvTranspose1d {
    type State = ConvTransposeState;

    fn init(&self) -> ConvTransposeState {
        ConvTransposeState::default()
    }

    fn step(&self, state: &mut ConvTransposeState, chunk: Chunk) -> Result<Chunk> {
        let n_past = self.n_neighbours - 1;
        let mut pieces = Vec::new();
        if n_past > 0 {
            pieces.extend(state.past.take());
            if let (false, Some(steps)) = (state.began, &chunk.steps) {
                pieces.push(zeros(steps, n_past)?);
            }
            if let (true, Some(steps)) = (chunk.end, chunk.steps.as_ref().or(pieces.first())) {
                // The last inputs reach beyond themselves.
                let after = zeros(steps, n_past)?;
                pieces.extend(chunk.steps);
                pieces.push(after);
            } else {
                pieces.extend(chunk.steps);
            }
        } else {
            pieces.extend(chunk.steps);
        }
        let Some(rows) = join(&pieces)? else {
            return Ok(Chunk { steps: None, end: chunk.end });
        };
        state.began = true;
        let n_in = rows.dim(1)?;
        let steps = if n_in > n_past { self.outputs(&rows, state, chunk.end)? } else { None };
        if chunk.end {
            *state = self.init();
        } else if n_past > 0 {
            state.past = Some(keep(&rows, n_in - n_past, n_past)?);
        }
        Ok(Chunk { steps, end: chunk.end })
    }
}

impl ConvTranspose1d {
    fn outputs(&self, rows: &Tensor, state: &mut ConvTransposeState, end: bool) -> Result<Option<Tensor>> {
        let ys = self.filter.apply(rows)?;
        let (batch, n_rows, columns) = ys.dims3()?;
        let n_full = n_rows * self.stride;
        let ys = ys.reshape((batch, n_full, columns / self.stride))?;
        // The rows run on to whole strides; the taps end at `kernel`.
        let excess = self.n_neighbours * self.stride - self.kernel;
        let right = if end { excess + self.trim_right } else { 0 };
        let left = (self.trim_left - state.n_trimmed).min(n_full);
        state.n_trimmed += left;
        let n_out = n_full.saturating_sub(left + right);
        Ok(if n_out > 0 { Some(ys.narrow(1, left, n_out)?) } else { None })
    }
}
