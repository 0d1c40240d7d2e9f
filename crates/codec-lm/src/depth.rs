//! The transformer over the codes of a step, which are predicted one after the other.
//!
//! Its sequence is as long as a step has streams. Stream k reads what the temporal transformer says of the
//! step, through a projection of its own, and the code of the stream before it.
//!
//! # Tensors
//! | name | shape |
//! | --- | --- |
//! | `input.weight` | `[n_streams * depth_dim, dim]` |
//! | `embed.weight` | `[n_rows, depth_dim]`: the tokens of stream after stream but the last |
//! | `layers.I.*` | as in the temporal transformer, shared by the streams |
//! | `norm.weight` | `[depth_dim]` |
//! | `heads.K.weight`, `heads.K.bias` | `[n_columns, depth_dim]`, `[n_columns]` |
//!
//! # Source
//! Lee et al. 2022, "Autoregressive image generation using residual quantization", section 3.2; a projection
//! for each stream: Défossez et al. 2024, "Moshi", section 3.4.1.

use crate::config::DepthShape;
use crate::error::{Error, Result};
use crate::model::{DEPTH_EPSILON, apply, depth_layer};
use crate::ops;
use candle_core::Tensor;
use codec_nn::layers::{Chunk, Layer, Linear, RmsNorm, TransformerLayer};
use codec_nn::weights::Weights;

/// The transformer over the codes of a step.
#[derive(Debug)]
pub struct Depth {
    dim: usize,
    input: Linear,
    embed: Tensor,
    /// First row of each stream's tokens among the embeddings.
    first_rows: Vec<u32>,
    layers: Vec<TransformerLayer>,
    norm: RmsNorm,
    heads: Vec<Linear>,
}

/// A step whose codes are being predicted.
#[derive(Debug)]
pub struct DepthState {
    /// What each stream reads of the step, `[1, n_streams, depth_dim]`.
    inputs: Tensor,
    layers: <Vec<TransformerLayer> as Layer>::State,
    stream_idx: usize,
}

impl Depth {
    /// `tables` holds for each stream how many tokens it has and how many of them can be predicted.
    pub(crate) fn new(
        shape: &DepthShape,
        temporal_dim: usize,
        bias: bool,
        tables: impl Iterator<Item = (usize, usize)>,
        weights: &Weights,
    ) -> Result<Self> {
        let dim = shape.dim;
        let tables: Vec<(usize, usize)> = tables.collect();
        let mut n_rows = 0_usize;
        let mut first_rows = Vec::with_capacity(tables.len());
        for (n_tokens, _) in tables.iter().take(tables.len().saturating_sub(1)) {
            first_rows.push(n_rows as u32);
            n_rows += n_tokens;
        }
        let head = |(stream_idx, &(_, n_columns)): (usize, &(usize, usize))| -> Result<Linear> {
            let weights = weights.pp("heads").pp(stream_idx);
            let bias = bias.then(|| weights.get(n_columns, "bias")).transpose()?;
            Ok(Linear::new(&weights.get((n_columns, dim), "weight")?, bias.as_ref())?)
        };
        let layer = |idx| depth_layer(shape, &weights.pp("layers").pp(idx));
        let input = weights.pp("input").get((tables.len() * dim, temporal_dim), "weight")?;
        Ok(Self {
            dim,
            input: Linear::new(&input, None)?,
            // A table has a row even where there is only one stream.
            embed: weights.pp("embed").get((n_rows.max(1), dim), "weight")?,
            first_rows,
            layers: (0..shape.n_layers).map(layer).collect::<Result<_>>()?,
            norm: RmsNorm::new(weights.pp("norm").get(dim, "weight")?, DEPTH_EPSILON)?,
            heads: tables.iter().enumerate().map(head).collect::<Result<_>>()?,
        })
    }

    fn n_streams(&self) -> usize {
        self.heads.len()
    }

    /// `[n_items, dim]` to `[n_items, n_streams, depth_dim]`.
    fn inputs(&self, hidden: &Tensor) -> Result<Tensor> {
        let n_items = hidden.dim(0)?;
        let all = apply(&self.input, &hidden.unsqueeze(0)?)?;
        Ok(all.reshape((n_items, self.n_streams(), self.dim))?)
    }

    /// The logits of all codes of some steps, each with those before it given.
    ///
    /// # Shapes
    /// `hidden` `[n_items, dim]`, `tokens` `[n_items, n_streams]`, the result `[n_items, n_columns]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when tokens and items do not agree, or a stream does not have a token.
    pub fn logits(&self, hidden: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        let (n_items, n_streams) = (hidden.dim(0)?, self.n_streams());
        let expected = n_items * n_streams;
        if tokens.len() != expected {
            return Err(Error::Shape { what: "tokens of steps", expected, actual: tokens.len() });
        }
        let mut xs = self.inputs(hidden)?;
        if n_streams > 1 {
            let row = |(stream_idx, token): (usize, &u32)| -> Option<u32> {
                self.first_rows.get(stream_idx)?.checked_add(*token)
            };
            let steps = tokens.chunks_exact(n_streams);
            let rows = steps.flat_map(|step| step.iter().enumerate().filter_map(row)).collect();
            let known =
                ops::sum_of_rows(&self.embed, rows, 1)?.reshape((n_items, n_streams - 1, self.dim))?;
            let none = Tensor::zeros((n_items, 1, self.dim), xs.dtype(), xs.device())?;
            xs = (xs + Tensor::cat(&[none, known], 1)?)?;
        }
        let ys = apply(&self.norm, &apply(&self.layers, &xs)?)?;
        let heads = self.heads.iter().enumerate();
        let logits = heads.map(|(k, head)| apply(head, &ys.narrow(1, k, 1)?.contiguous()?));
        Ok(Tensor::cat(&logits.collect::<Result<Vec<_>>>()?, 2)?.squeeze(1)?)
    }

    /// Begins to predict the codes of a step.
    ///
    /// # Shapes
    /// `hidden`: `[1, dim]`.
    ///
    /// # Errors
    /// What the layers fail with.
    pub fn begin(&self, hidden: &Tensor) -> Result<DepthState> {
        Ok(DepthState { inputs: self.inputs(hidden)?, layers: self.layers.init(), stream_idx: 0 })
    }

    /// The logits of the next stream, `[n_columns]`; `token` is that of the stream before it, `None` for
    /// the first.
    ///
    /// # Errors
    /// [`Error::Shape`] behind the last stream, or when the token is none of its stream.
    pub fn step(&self, state: &mut DepthState, token: Option<u32>) -> Result<Tensor> {
        let stream_idx = state.stream_idx;
        let behind = || Error::Shape { what: "stream", expected: self.n_streams(), actual: stream_idx };
        let head = self.heads.get(stream_idx).ok_or_else(behind)?;
        let mut xs = state.inputs.narrow(1, stream_idx, 1)?.contiguous()?;
        let before = stream_idx.checked_sub(1).and_then(|before| self.first_rows.get(before));
        if let Some((&first_row, token)) = before.zip(token) {
            let row = first_row.saturating_add(token);
            xs = (xs + ops::sum_of_rows(&self.embed, vec![row], 1)?.unsqueeze(0)?)?;
        }
        state.stream_idx += 1;
        let ys = self.layers.step(&mut state.layers, Chunk::next(xs))?.steps.ok_or_else(behind)?;
        Ok(apply(head, &apply(&self.norm, &ys)?)?.flatten_all()?)
    }
}
