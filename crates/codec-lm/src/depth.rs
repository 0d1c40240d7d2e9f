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

use crate::config::{DepthShape, heads};
use crate::error::{Error, Result};
use crate::model::{apply, block};
use crate::ops;
use candle_core::Tensor;
use codec_nn::layers::{
    Activation, AttentionSpec, Chunk, Layer, Linear, Norm, RmsNorm, Sight, TransformerLayer, Unary,
};
use codec_nn::weights::Weights;
use std::ops::Range;

/// Added to what the norms divide by.
const EPSILON: f32 = 1e-5;

/// The transformer over the codes of a step.
#[derive(Debug)]
pub struct Depth {
    dim: usize,
    input: Linear,
    embed: Tensor,
    /// Where each stream's tokens lie among the embeddings; those of the last are in none.
    rows: Vec<Range<usize>>,
    layers: Vec<TransformerLayer>,
    norm: RmsNorm,
    heads: Vec<Linear>,
}

/// A step whose codes are being predicted, for every item of a batch.
#[derive(Debug)]
pub struct DepthState {
    /// What each stream reads of the step, `[batch, n_streams, depth_dim]`.
    inputs: Tensor,
    layers: <Vec<TransformerLayer> as Layer>::State,
    stream_idx: usize,
}

impl Depth {
    /// `rows` and `columns` say for each stream where its tokens, and those of them that can be predicted, lie.
    pub(crate) fn new(
        shape: &DepthShape,
        temporal_dim: usize,
        bias: bool,
        rows: &[Range<usize>],
        columns: &[Range<usize>],
        weights: &Weights,
    ) -> Result<Self> {
        let (dim, n_streams) = (shape.dim, columns.len());
        let n_rows = rows.get(n_streams - 1).map_or(0, |last| last.start);
        let head = |(stream_idx, columns): (usize, &Range<usize>)| -> Result<Linear> {
            let weights = weights.pp("heads").pp(stream_idx);
            let bias = bias.then(|| weights.get(columns.len(), "bias")).transpose()?;
            Ok(Linear::new(&weights.get((columns.len(), dim), "weight")?, bias.as_ref())?)
        };
        let layer = |idx| layer(shape, &weights.pp("layers").pp(idx));
        let input = weights.pp("input").get((n_streams * dim, temporal_dim), "weight")?;
        Ok(Self {
            dim,
            input: Linear::new(&input, None)?,
            embed: weights.pp("embed").get((n_rows, dim), "weight")?,
            rows: rows.iter().take(n_streams).cloned().collect(),
            layers: (0..shape.n_layers).map(layer).collect::<Result<_>>()?,
            norm: RmsNorm::new(weights.pp("norm").get(dim, "weight")?, EPSILON)?,
            heads: columns.iter().enumerate().map(head).collect::<Result<_>>()?,
        })
    }

    fn n_streams(&self) -> usize {
        self.heads.len()
    }

    /// The row of a token among the embeddings, counted as if the last stream's were there as well.
    fn row(&self, step_idx: usize, stream_idx: usize, token: u32) -> Result<u32> {
        let rows = self.rows.get(stream_idx).filter(|rows| (token as usize) < rows.len());
        let rows = rows.ok_or(Error::Token { step_idx, stream_idx, token })?;
        Ok(rows.start as u32 + token)
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
    /// [`Error::Shape`] when tokens and items do not agree; [`Error::Token`] for a token that its stream does
    /// not have.
    pub fn logits(&self, hidden: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        let (n_items, n_streams) = (hidden.dim(0)?, self.n_streams());
        let expected = n_items * n_streams;
        if tokens.len() != expected {
            return Err(Error::Shape { what: "tokens of steps", expected, actual: tokens.len() });
        }
        let mut rows = Vec::with_capacity(n_items * (n_streams - 1));
        for (step_idx, step) in tokens.chunks_exact(n_streams).enumerate() {
            for (stream_idx, &token) in step.iter().enumerate() {
                let row = self.row(step_idx, stream_idx, token)?;
                // Nothing stands behind the last stream.
                rows.extend((stream_idx + 1 < n_streams).then_some(row));
            }
        }
        let known = ops::sum_of_rows(&self.embed, rows, 1)?.reshape((n_items, n_streams - 1, self.dim))?;
        let xs = self.inputs(hidden)?;
        let none = Tensor::zeros((n_items, 1, self.dim), xs.dtype(), xs.device())?;
        let xs = (xs + Tensor::cat(&[none, known], 1)?)?;
        let ys = apply(&self.norm, &apply(&self.layers, &xs)?)?;
        let heads = self.heads.iter().enumerate();
        let logits = heads.map(|(k, head)| apply(head, &ys.narrow(1, k, 1)?.contiguous()?));
        Ok(Tensor::cat(&logits.collect::<Result<Vec<_>>>()?, 2)?.squeeze(1)?)
    }

    /// Begins to predict the codes of a step.
    ///
    /// # Shapes
    /// `hidden`: `[batch, dim]`.
    ///
    /// # Errors
    /// What the layers fail with.
    pub fn begin(&self, hidden: &Tensor) -> Result<DepthState> {
        Ok(DepthState { inputs: self.inputs(hidden)?, layers: self.layers.init(), stream_idx: 0 })
    }

    /// The logits of the next stream, `[batch, n_columns]`; `token` is that of the stream before it in every
    /// item, `None` for the first stream.
    ///
    /// # Errors
    /// [`Error::Shape`] behind the last stream, or for a token too many or too few; [`Error::Token`] for one
    /// that its stream does not have.
    pub fn step(&self, state: &mut DepthState, token: Option<u32>) -> Result<Tensor> {
        let stream_idx = state.stream_idx;
        let behind = || Error::Shape { what: "stream", expected: self.n_streams(), actual: stream_idx };
        let head = self.heads.get(stream_idx).ok_or_else(behind)?;
        let mut xs = state.inputs.narrow(1, stream_idx, 1)?.contiguous()?;
        match (stream_idx.checked_sub(1), token) {
            (None, None) => {}
            (Some(before), Some(token)) => {
                let rows = vec![self.row(0, before, token)?; xs.dim(0)?];
                xs = (xs + ops::sum_of_rows(&self.embed, rows, 1)?.unsqueeze(1)?)?;
            }
            (before, token) => {
                let (expected, actual) = (usize::from(before.is_some()), usize::from(token.is_some()));
                return Err(Error::Shape { what: "tokens before a stream", expected, actual });
            }
        }
        state.stream_idx += 1;
        let ys = self.layers.step(&mut state.layers, Chunk::next(xs))?.into_tensor()?.ok_or_else(behind)?;
        Ok(apply(head, &apply(&self.norm, &ys)?)?.squeeze(1)?)
    }
}

fn layer(shape: &DepthShape, weights: &Weights) -> Result<TransformerLayer> {
    let DepthShape { dim, n_heads, hidden, .. } = *shape;
    let sight = Sight::Past { context: None };
    let spec = AttentionSpec { heads: heads(dim, n_heads), sight, rotary_base: None };
    let norm = |name| -> Result<Norm> {
        Ok(Norm::Rms(RmsNorm::new(weights.pp(name).get(dim, "weight")?, EPSILON)?))
    };
    let norms = [norm("norm1")?, norm("norm2")?];
    block(dim, hidden, spec, norms, Activation::Unary(Unary::Gelu), weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{configs, random};
    use candle_core::{DType, Device};

    #[test]
    fn tokens_that_no_stream_has_are_refused() {
        // Three streams of 12 codes and an empty token.
        let (model, _) = random(&configs()[2], 1, false);
        let depth = model.depth().unwrap();
        let hidden = Tensor::zeros((2, 24), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(depth.logits(&hidden, &[12; 6]).unwrap().dims(), [2, 36]);
        assert!(matches!(depth.logits(&hidden, &[0; 5]), Err(Error::Shape { .. })));
        // 13 would be a row of the next stream, of the last one a row of none.
        for (cell, stream_idx) in [(3, 0), (5, 2)] {
            let mut tokens = [0; 6];
            tokens[cell] = 13;
            let refused = depth.logits(&hidden, &tokens);
            assert!(
                matches!(refused, Err(Error::Token { step_idx: 1, stream_idx: k, token: 13 }) if k == stream_idx)
            );
        }
        let mut state = depth.begin(&hidden).unwrap();
        assert!(matches!(depth.step(&mut state, Some(0)), Err(Error::Shape { actual: 1, .. })));
        assert_eq!(depth.step(&mut state, None).unwrap().dims(), [2, 12]);
        assert!(matches!(depth.step(&mut state, None), Err(Error::Shape { actual: 0, .. })));
        let refused = depth.step(&mut state, Some(13));
        assert!(matches!(refused, Err(Error::Token { stream_idx: 0, token: 13, .. })));
        // What was refused has not moved the step on.
        depth.step(&mut state, Some(12)).unwrap();
        depth.step(&mut state, Some(1)).unwrap();
        assert!(matches!(depth.step(&mut state, Some(1)), Err(Error::Shape { .. })));
    }
}
