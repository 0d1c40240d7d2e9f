//! The language model that comes with EnCodec for entropy coding (PyPI `encodec`, `LMModel`).
//!
//! It reads the codes of a frame and predicts all codebooks of the next one together. It normalises last:
//! after attention and feed-forward network, not before. Its code 0 is "missing", what is a code elsewhere
//! is one more here.
//!
//! A sequence starts from a zero vector: every layer's attention has seen one before the first step, and
//! attends to it as long as it is within its context.
//!
//! # Source
//! Défossez et al. 2022, "High fidelity neural audio compression", section 3.3; PyPI encodec 0.1.1,
//! `model.py` (`LMModel`) and `modules/transformer.py`; proved by `tests/vectors/lm_encodec.safetensors`.

use crate::config::{CodecIdentity, heads};
use crate::error::{Error, Result};
use crate::model::{apply, sinusoids};
use crate::ops::sum_of_rows;
use crate::pattern::{Arrangement, Pattern};
use crate::predict::{CHUNK, LanguageModel, Next, Opening, Reader, cell_costs, last_step};
use candle_core::{DType, Device, Tensor};
use codec_core::CodeLayout;
use codec_nn::layers::{
    Activation, Attention, AttentionSpec, AttentionWeights, Chunk, Layer, LayerNorm, Linear, Merge, Sight,
    Unary,
};
use codec_nn::weights::{Checkpoint, Weights};
use serde::Deserialize;
use std::ops::Range;

/// Of the reference's LayerNorm, which no argument changes.
const NORM_EPSILON: f32 = 1e-5;
/// Of the reference, where no configuration says otherwise.
const N_HEADS: usize = 8;
/// The published models by their number of codebooks, and the steps that a step sees beside itself: three
/// and a half seconds.
const PAST_CONTEXTS: [(usize, usize); 2] = [(32, 262), (16, 525)];

/// The arguments of the reference that its file does not hold; a `config.json` beside it may.
#[derive(Debug, Default, Deserialize)]
struct Arguments {
    num_heads: Option<usize>,
    past_context: Option<usize>,
}

/// EnCodec's language model, over some of its codebooks.
#[derive(Debug)]
pub struct EncodecLm {
    arrangement: Arrangement,
    columns: Vec<Range<usize>>,
    embed: Tensor,
    dim: usize,
    norm: LayerNorm,
    layers: Vec<PostNorm>,
    head: Linear,
    n_parameters: usize,
    device: Device,
}

/// A layer that normalises last.
#[derive(Debug)]
struct PostNorm {
    attention: Attention,
    norms: [LayerNorm; 2],
    feed_forward: (Linear, Activation, Linear),
}

/// Whether the checkpoint is one of these, by its tensors.
pub(crate) fn recognizes(checkpoint: &Checkpoint) -> bool {
    let names = ["emb.0.weight", "linears.0.weight", "transformer.norm_in.weight"];
    checkpoint.weights().is_some_and(|weights| names.iter().all(|name| weights.contains(name)))
}

/// Loads the model for the first `n_codebooks` codebooks, all of them by default.
///
/// # Errors
/// [`Error::Config`] for a number of codebooks that the model does not have, or when nobody says how far a
/// step sees; [`Error::Nn`] for tensors that do not fit.
pub fn load(checkpoint: &Checkpoint, n_codebooks: Option<usize>) -> Result<EncodecLm> {
    let weights = checkpoint.weights().ok_or_else(|| Error::config("weights", "are not there"))?;
    let arguments = checkpoint.config().map_or(Ok(Arguments::default()), serde_json::from_str);
    let arguments = arguments.map_err(|e| Error::config("config.json", e.to_string()))?;
    let n_all = (0..).take_while(|k| weights.contains(&format!("emb.{k}.weight"))).count();
    let n_layers =
        (0..).take_while(|i| weights.contains(&format!("transformer.layers.{i}.norm1.weight"))).count();
    let n_codebooks = n_codebooks.unwrap_or(n_all);
    if n_codebooks == 0 || n_codebooks > n_all {
        return Err(Error::config("n_codebooks", format!("{n_codebooks} is not in 1..={n_all}")));
    }
    let published = PAST_CONTEXTS.iter().find(|(n, _)| *n == n_all).map(|(_, context)| *context);
    let past = arguments.past_context.or(published);
    let past = past.ok_or_else(|| Error::config("past_context", "is not known for this model"))?;
    let n_heads = arguments.num_heads.unwrap_or(N_HEADS);
    let (n_tokens, dim) = match weights.shape("emb.0.weight") {
        Some(&[n_tokens, dim]) if n_tokens > 1 && n_heads > 0 && dim.is_multiple_of(n_heads) && dim >= 4 => {
            (n_tokens, dim)
        }
        other => return Err(Error::config("emb.0.weight", format!("has the shape {other:?}"))),
    };
    let hidden = weights.shape("transformer.layers.0.linear1.bias").map_or(0, |shape| shape.iter().product());
    let size = n_tokens - 1;
    let stack = |name: &str, n_rows: usize| -> Result<Tensor> {
        let each = (0..n_all).map(|k| weights.pp(name).pp(k).get((n_rows, dim), "weight"));
        // All are read, so that a file that lacks one is refused; those in use come first.
        let each = each.collect::<codec_nn::Result<Vec<_>>>()?;
        Ok(Tensor::cat(&each[..n_codebooks], 0)?)
    };
    let biases = (0..n_all).map(|k| weights.pp("linears").pp(k).get(size, "bias"));
    let biases = biases.collect::<codec_nn::Result<Vec<_>>>()?;
    let head = Linear::new(&stack("linears", size)?, Some(&Tensor::cat(&biases[..n_codebooks], 0)?))?;
    let transformer = weights.pp("transformer");
    let spec = AttentionSpec {
        heads: heads(dim, n_heads),
        sight: Sight::Past { context: Some(past + 1) },
        rotary_base: None,
    };
    let layer = |idx| PostNorm::load(&transformer.pp("layers").pp(idx), dim, hidden, spec);
    let layout = CodeLayout::uniform(n_codebooks, size as u32)?;
    let model = EncodecLm {
        arrangement: Arrangement::new(Pattern::Parallel, layout)?,
        columns: (0..n_codebooks).map(|k| k * size..(k + 1) * size).collect(),
        embed: stack("emb", n_tokens)?,
        dim,
        norm: norm(&transformer.pp("norm_in"), dim)?,
        layers: (0..n_layers).map(layer).collect::<Result<_>>()?,
        head,
        n_parameters: n_codebooks * (n_tokens * dim + size * (dim + 1))
            + n_layers * (4 * dim * dim + 4 * dim + 2 * dim * hidden + hidden + 5 * dim)
            + 2 * dim,
        device: weights.device().clone(),
    };
    weights.finish(&[])?;
    Ok(model)
}

fn norm(weights: &Weights, dim: usize) -> Result<LayerNorm> {
    Ok(LayerNorm::new(weights.get(dim, "weight")?, Some(weights.get(dim, "bias")?), NORM_EPSILON)?)
}

impl PostNorm {
    fn load(weights: &Weights, dim: usize, hidden: usize, spec: AttentionSpec) -> Result<Self> {
        let own = weights.pp("self_attn");
        let attention = AttentionWeights {
            input: own.get((3 * dim, dim), "in_proj_weight")?,
            input_bias: Some(own.get(3 * dim, "in_proj_bias")?),
            output: own.pp("out_proj").get((dim, dim), "weight")?,
            output_bias: Some(own.pp("out_proj").get(dim, "bias")?),
        };
        let linear = |name: &str, c_out: usize, c_in: usize| -> Result<Linear> {
            let weights = weights.pp(name);
            Ok(Linear::new(&weights.get((c_out, c_in), "weight")?, Some(&weights.get(c_out, "bias")?))?)
        };
        Ok(Self {
            attention: Attention::new(&attention, spec)?,
            norms: [norm(&weights.pp("norm1"), dim)?, norm(&weights.pp("norm2"), dim)?],
            feed_forward: (
                linear("linear1", hidden, dim)?,
                Activation::Unary(Unary::Gelu),
                linear("linear2", dim, hidden)?,
            ),
        })
    }

    /// The state of a sequence, which has seen a zero vector.
    fn init(&self, dim: usize, device: &Device) -> Result<<Attention as Layer>::State> {
        let mut state = self.attention.init();
        let zero = Tensor::zeros((1, 1, dim), DType::F32, device)?;
        self.attention.step(&mut state, Chunk::next(zero))?;
        Ok(state)
    }

    fn step(&self, state: &mut <Attention as Layer>::State, xs: &Tensor) -> Result<Tensor> {
        let seen = self.attention.step(state, Chunk::next(xs.clone()))?.into_tensor()?;
        let seen = seen.ok_or(Error::Shape { what: "steps", expected: 1, actual: 0 })?;
        let xs = apply(&self.norms[0], &(xs + seen)?)?;
        let more = apply(&self.feed_forward, &xs)?;
        apply(&self.norms[1], &(xs + more)?)
    }
}

impl LanguageModel for EncodecLm {
    fn arrangement(&self) -> &Arrangement {
        &self.arrangement
    }

    fn codec(&self) -> Option<&CodecIdentity> {
        None
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn n_parameters(&self) -> usize {
        self.n_parameters
    }

    fn begin_together(&self, openings: &[Opening<'_>]) -> Result<Box<dyn Reader + '_>> {
        if openings.iter().any(|opening| opening.class.is_some()) {
            return Err(Error::config("class", "the model has no classes"));
        }
        let start = self.arrangement.start();
        let (mut states, mut positions, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for opening in openings {
            let layers = self.layers.iter().map(|layer| layer.init(self.dim, &self.device));
            let mut state = State { layers: layers.collect::<Result<_>>()?, positions: vec![0] };
            let mut hidden = self.step(&mut state, 1, &start)?;
            for steps in opening.steps.chunks(CHUNK * start.len()) {
                hidden = self.step(&mut state, 1, steps)?;
            }
            ends.push(last_step(&hidden)?);
            states.push(state.layers);
            positions.append(&mut state.positions);
        }
        if openings.is_empty() {
            return Err(Error::Shape { what: "sequences", expected: 1, actual: 0 });
        }
        let state = State { layers: Merge::merge(states)?, positions };
        Ok(Box::new(EncodecReader { model: self, state, next: Next::new(Tensor::cat(&ends, 0)?) }))
    }
}

/// What sequences keep between two steps.
#[derive(Debug)]
struct State {
    layers: Vec<<Attention as Layer>::State>,
    /// Of each sequence's next step.
    positions: Vec<u64>,
}

impl EncodecLm {
    /// Reads the same steps in every sequence of a batch: `[batch, n_steps, dim]`.
    fn step(&self, state: &mut State, batch: usize, steps: &[u32]) -> Result<Tensor> {
        let n_streams = self.columns.len();
        let (n_steps, size) = (steps.len() / n_streams, self.columns[0].len() as u32);
        if steps.is_empty() || steps.len() != n_steps * n_streams {
            return Err(Error::Shape { what: "tokens", expected: n_streams, actual: steps.len() });
        }
        let row = |(i, &token): (usize, &u32)| {
            let (step_idx, stream_idx) = (i / n_streams, i % n_streams);
            // Here the empty token is the first one, and codes follow it.
            let index = if token == size { 0 } else { token + 1 };
            let row = stream_idx as u32 * (size + 1) + index;
            (token <= size).then_some(row).ok_or(Error::Token { step_idx, stream_idx, token })
        };
        let rows = steps.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?;
        let xs = sum_of_rows(&self.embed, rows.repeat(batch), n_streams)?;
        let xs = apply(&self.norm, &xs.reshape((batch, n_steps, self.dim))?)?;
        let places = sinusoids(&state.positions, n_steps, self.dim, xs.device())?;
        let mut xs = xs.broadcast_add(&places)?;
        state.positions.iter_mut().for_each(|position| *position += n_steps as u64);
        for (layer, state) in self.layers.iter().zip(&mut state.layers) {
            xs = layer.step(state, &xs)?;
        }
        Ok(xs)
    }
}

/// Sequences that the model reads.
#[derive(Debug)]
struct EncodecReader<'m> {
    model: &'m EncodecLm,
    state: State,
    next: Next,
}

impl Reader for EncodecReader<'_> {
    fn read(&mut self, steps: &[u32]) -> Result<()> {
        let hidden = self.model.step(&mut self.state, self.next.batch()?, steps)?;
        self.next = Next::new(last_step(&hidden)?);
        Ok(())
    }

    fn logits(&mut self, known: &[u32]) -> Result<Vec<f32>> {
        let model = self.model;
        self.next.logits(&model.columns, known.len(), |hidden| apply(&model.head, hidden))
    }

    fn costs(&mut self, steps: &[u32]) -> Result<Vec<f64>> {
        let hidden = self.model.step(&mut self.state, self.next.batch()?, steps)?;
        let before = self.next.follow(&hidden)?;
        let logits = apply(&self.model.head, &before)?.flatten_to(1)?;
        let steps = steps.repeat(hidden.dim(0)?);
        cell_costs(&logits, &self.model.columns, &steps, &self.model.arrangement)
    }
}
