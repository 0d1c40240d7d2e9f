//! The model: a decoder-only transformer over the steps of a sequence.
//!
//! ```text
//! tokens of a step -> sum of embeddings (+ sinusoidal position) -> layers -> norm -> heads -> logits
//!                                                                             or -> depth transformer
//! ```
//!
//! A layer is attention and a feed-forward network, both behind a norm; positions are rotary or added. What
//! a step predicts is the step after it, so a sequence is read behind [`Arrangement::start`].
//!
//! Every layer is one of `codec_nn::layers`: on the CPU a sequence read step by step gives the bits of one
//! read at once, and an item of a batch those of one read alone. With a context the keys and values that a
//! stream keeps are bounded, and so is its memory.
//!
//! # Tensors
//! | name | shape |
//! | --- | --- |
//! | `embed.weight` | `[n_rows, dim]`: the tokens of stream after stream, specials included, then the classes and the class of none |
//! | `layers.I.norm1.weight`, `norm2.weight` (and `.bias`) | `[dim]` |
//! | `layers.I.attention.input.weight` | `[3 * dim, dim]`: queries, keys, values |
//! | `layers.I.attention.output.weight` | `[dim, dim]` |
//! | `layers.I.feed_forward.input.weight`, `output.weight` | `[hidden, dim]`, `[dim, hidden]` |
//! | `norm.weight` (and `.bias`) | `[dim]` |
//! | `head.weight`, unless the heads are the embeddings | `[n_columns, dim]`: the codes of stream after stream |
//! | `head.bias` | `[n_columns]` |
//!
//! # Source
//! Vaswani et al. 2017, "Attention is all you need"; Su et al. 2021, "RoFormer"; summed embeddings and a
//! head for each codebook: Copet et al. 2023, "Simple and controllable music generation", section 2.2; tied
//! heads: Press and Wolf 2017, arXiv 1608.05859.

use crate::config::{DepthShape, ModelConfig, NormKind, Positions, Shape, heads};
use crate::depth::Depth;
use crate::error::{Error, Result};
use crate::ops;
use crate::pattern::Arrangement;
use crate::vocabulary::Special;
use candle_core::{Device, Tensor};
use codec_kernels::sin_cos;
use codec_nn::layers::{
    Activation, Attention, AttentionSpec, AttentionWeights, Chunk, Layer, LayerNorm, Linear, Merge, Norm,
    RmsNorm, Sight, TransformerLayer, transformer_layer,
};
use codec_nn::weights::Weights;
use std::f64::consts::LN_2;
use std::ops::Range;

/// The natural logarithm of 10000, the longest period of the sinusoidal positions.
const LN_MAX_PERIOD: f64 = 9.210_340_371_976_182;

/// A decoder-only transformer over codes.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    arrangement: Arrangement,
    /// Where each stream's tokens lie among the embeddings; the classes last.
    rows: Vec<Range<usize>>,
    /// Where each stream's codes lie among the logits.
    columns: Vec<Range<usize>>,
    embed: Tensor,
    layers: Vec<TransformerLayer>,
    norm: Norm,
    head: Head,
    n_parameters: usize,
}

/// From the last norm to logits.
#[derive(Debug)]
enum Head {
    /// All streams at once, in the form of the kernels.
    Fixed(Linear),
    /// The same while it trains; without a weight the embeddings serve.
    Live { weight: Option<Tensor>, bias: Option<Tensor> },
    /// One stream after the other.
    Deep(Depth),
}

/// What a stream keeps between two steps.
#[derive(Debug)]
pub struct State {
    layers: <Vec<TransformerLayer> as Layer>::State,
    /// Of the next step: one for the whole batch, or one for each item where states were merged.
    positions: Vec<u64>,
}

impl State {
    /// The state of a batch whose items go on from states of one item each.
    pub(crate) fn merge(states: Vec<Self>) -> Result<Self> {
        if states.is_empty() {
            return Err(Error::Shape { what: "sequences", expected: 1, actual: 0 });
        }
        let (layers, positions): (Vec<_>, Vec<_>) =
            states.into_iter().map(|state| (state.layers, state.positions)).unzip();
        Ok(Self { layers: Merge::merge(layers)?, positions: positions.concat() })
    }
}

/// Steps for every item of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Steps<'a> {
    /// `[batch, n_steps, n_streams]`.
    pub tokens: &'a [u32],
    /// Items.
    pub batch: usize,
    /// The class of each item, `None` for that of none; empty for none at all.
    pub classes: &'a [Option<u32>],
}

impl<'a> Steps<'a> {
    /// Steps of one item of no class.
    pub fn one(tokens: &'a [u32]) -> Self {
        Self { tokens, batch: 1, classes: &[] }
    }
}

impl Model {
    /// Builds the model from its tensors.
    ///
    /// Tensors that are variables stay so, and gradients reach every one of them.
    ///
    /// # Errors
    /// As [`ModelConfig::check`]; [`Error::Nn`] for tensors that are missing or have another shape.
    pub fn new(config: &ModelConfig, weights: &Weights) -> Result<Self> {
        config.check()?;
        let arrangement = config.arrangement()?;
        let shape = &config.shape;
        let mut rows = runs(&arrangement, |arrangement, k| arrangement.vocabulary().n_tokens(k));
        let n_tokens = rows.last().map_or(0, |range| range.end);
        let n_classes = if config.classes.is_empty() { 0 } else { config.classes.len() + 1 };
        rows.push(n_tokens..n_tokens + n_classes);
        let columns = runs(&arrangement, n_columns);
        let embed = weights.pp("embed").get((n_tokens + n_classes, shape.dim), "weight")?;
        let layer = |idx| layer(shape, &weights.pp("layers").pp(idx));
        let layers = (0..shape.n_layers).map(layer).collect::<Result<_>>()?;
        let norm = norm(shape, &weights.pp("norm"))?;
        let mut model = Self {
            config: config.clone(),
            arrangement,
            rows,
            columns,
            embed,
            layers,
            norm,
            head: Head::Live { weight: None, bias: None },
            n_parameters: 0,
        };
        model.head = model.new_head(weights)?;
        model.n_parameters = model.count();
        Ok(model)
    }

    fn count(&self) -> usize {
        let Shape { dim, n_layers, hidden, norm, tied, head_bias, ref depth, .. } = self.config.shape;
        let n_columns = self.columns.last().map_or(0, |range| range.end);
        let norm = if norm == NormKind::Layer { 2 * dim } else { dim };
        let layer = |dim: usize, hidden: usize, norm: usize| 4 * dim * dim + 2 * dim * hidden + 2 * norm;
        let bias = if head_bias { n_columns } else { 0 };
        let head = match depth {
            Some(depth) => {
                let n_streams = self.columns.len();
                let n_rows = self.rows.get(n_streams - 1).map_or(0, |last| last.start);
                let DepthShape { dim: own, n_layers, hidden, .. } = *depth;
                let layers = n_layers * layer(own, hidden, own);
                n_streams * own * dim + n_rows * own + layers + own + n_columns * own
            }
            None if tied => 0,
            None => n_columns * dim,
        };
        self.embed.elem_count() + n_layers * layer(dim, hidden, norm) + norm + head + bias
    }

    fn new_head(&self, weights: &Weights) -> Result<Head> {
        let Shape { dim, tied, head_bias, ref depth, .. } = self.config.shape;
        if let Some(depth) = depth {
            let weights = weights.pp("depth");
            let depth = Depth::new(depth, dim, head_bias, &self.rows, &self.columns, &weights)?;
            return Ok(Head::Deep(depth));
        }
        let n_columns = self.columns.last().map_or(0, |range| range.end);
        let weights = weights.pp("head");
        let weight = if tied { None } else { Some(weights.get((n_columns, dim), "weight")?) };
        let bias = if head_bias { Some(weights.get(n_columns, "bias")?) } else { None };
        let is_live = |tensor: &Option<Tensor>| tensor.as_ref().is_some_and(Tensor::track_op);
        if self.embed.track_op() || is_live(&weight) || is_live(&bias) {
            return Ok(Head::Live { weight, bias });
        }
        let weight = weight.map_or_else(|| self.tied_head(), Ok)?;
        Ok(Head::Fixed(Linear::new(&weight, bias.as_ref())?))
    }

    /// The embeddings of the codes, `[n_columns, dim]`.
    fn tied_head(&self) -> Result<Tensor> {
        let streams = self.rows.iter().zip(&self.columns);
        let codes = streams.flat_map(|(rows, columns)| rows.start..rows.start + columns.len());
        // One operation: its gradient is one table, where that of a cut for each stream would be as many.
        ops::sum_of_rows(&self.embed, codes.map(|row| row as u32).collect(), 1)
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How codes stand in its sequences.
    pub fn arrangement(&self) -> &Arrangement {
        &self.arrangement
    }

    /// Where each stream's codes lie among the logits.
    pub fn columns(&self) -> &[Range<usize>] {
        &self.columns
    }

    /// The transformer over the codes of a step, if there is one.
    pub fn depth(&self) -> Option<&Depth> {
        match &self.head {
            Head::Deep(depth) => Some(depth),
            _ => None,
        }
    }

    /// Numbers that training can move.
    pub fn n_parameters(&self) -> usize {
        self.n_parameters
    }

    /// The state of a sequence that has not begun.
    pub fn init(&self) -> State {
        State { layers: self.layers.init(), positions: vec![0] }
    }

    /// Reads steps and gives what the next step is predicted from.
    ///
    /// # Shapes
    /// The result: `[batch, n_steps, dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for no steps, or when tokens, streams or classes are not as many as the batch needs;
    /// [`Error::Token`] for a token that its stream does not have.
    pub fn step(&self, state: &mut State, steps: Steps<'_>) -> Result<Tensor> {
        let dim = self.config.shape.dim;
        let n_streams = self.arrangement.n_streams();
        let n_steps = steps.tokens.len() / (n_streams * steps.batch).max(1);
        let expected = steps.batch * n_steps.max(1) * n_streams;
        if steps.tokens.len() != expected {
            return Err(Error::Shape { what: "tokens of a batch", expected, actual: steps.tokens.len() });
        }
        let (rows, n_per_step) = self.rows_of(&steps, n_steps)?;
        let mut xs = ops::sum_of_rows(&self.embed, rows, n_per_step)?.reshape((steps.batch, n_steps, dim))?;
        if self.config.shape.positions == Positions::Sinusoidal {
            xs = xs.broadcast_add(&sinusoids(&state.positions, n_steps, dim, xs.device())?)?;
        }
        state.positions.iter_mut().for_each(|position| *position += n_steps as u64);
        let xs = self.layers.step(&mut state.layers, Chunk::next(xs))?.into_tensor()?;
        let xs = xs.ok_or(Error::Shape { what: "steps", expected: n_steps, actual: 0 })?;
        apply(&self.norm, &xs)
    }

    /// The rows of the embedding that each step sums, and how many a step has.
    fn rows_of(&self, steps: &Steps<'_>, n_steps: usize) -> Result<(Vec<u32>, usize)> {
        let n_streams = self.arrangement.n_streams();
        let classes = self.rows.last().cloned().unwrap_or(0..0);
        let n_per_step = n_streams + usize::from(!classes.is_empty());
        if !steps.classes.is_empty() && steps.classes.len() != steps.batch {
            let (expected, actual) = (steps.batch, steps.classes.len());
            return Err(Error::Shape { what: "classes of a batch", expected, actual });
        }
        let mut rows = Vec::with_capacity(steps.batch * n_steps * n_per_step);
        for (item_step, step) in steps.tokens.chunks_exact(n_streams).enumerate() {
            for (stream_idx, (&token, range)) in step.iter().zip(&self.rows).enumerate() {
                if token as usize >= range.len() {
                    let step_idx = item_step % n_steps;
                    return Err(Error::Token { step_idx, stream_idx, token });
                }
                rows.push(range.start as u32 + token);
            }
            if classes.is_empty() {
                continue;
            }
            let none = classes.len() - 1;
            let class = steps.classes.get(item_step / n_steps).copied().flatten();
            let class = class.map_or(none, |class| class as usize);
            if class > none {
                return Err(Error::Shape { what: "class", expected: none, actual: class });
            }
            rows.push((classes.start + class) as u32);
        }
        Ok((rows, n_per_step))
    }

    /// The logits of the codes of the next step, whose streams are predicted together.
    ///
    /// # Shapes
    /// `hidden` `[batch, n_steps, dim]`, the result `[batch, n_steps, n_columns]`, stream k in the columns
    /// `columns()[k]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when they are predicted one after the other: see [`Model::depth`].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.head {
            Head::Fixed(head) => apply(head, hidden),
            Head::Live { weight, bias } => {
                let weight = weight.clone().map_or_else(|| self.tied_head(), Ok)?;
                apply(&Linear::new(&weight, bias.as_ref())?, hidden)
            }
            Head::Deep(_) => {
                let (what, value) = ("logits of a step at once with a pattern", "depth".to_owned());
                Err(Error::Unsupported { what, value })
            }
        }
    }

    /// What some steps cost: for each stream the sum of `-ln p` of its targets, in nats.
    ///
    /// # Shapes
    /// `hidden` `[n_items, dim]`; `next` `[n_items, n_streams]`, the tokens that follow; the result
    /// `[n_streams]`, a tensor that gradients pass. Empty tokens cost nothing.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn cost(&self, hidden: &Tensor, next: &[u32]) -> Result<Tensor> {
        let n_streams = self.arrangement.n_streams();
        let logits = match &self.head {
            Head::Deep(depth) => depth.logits(hidden, next)?,
            _ => self.logits(&hidden.unsqueeze(0)?)?.squeeze(0)?,
        };
        let target = |(i, &token): (usize, &u32)| {
            let stream_idx = i % n_streams;
            let is_empty = token == self.arrangement.special(stream_idx, Special::Empty);
            if is_empty { ops::NO_TARGET } else { token }
        };
        ops::cost(&logits, &self.columns, next.iter().enumerate().map(target).collect())
    }
}

/// Runs of tokens, stream after stream.
fn runs(arrangement: &Arrangement, len: impl Fn(&Arrangement, usize) -> u32) -> Vec<Range<usize>> {
    let mut next = 0;
    let run = |stream_idx| {
        let start = next;
        next += len(arrangement, stream_idx) as usize;
        start..next
    };
    (0..arrangement.n_streams()).map(run).collect()
}

/// Tokens of a stream that can be predicted: the codes, and an end behind the empty token that is none.
fn n_columns(arrangement: &Arrangement, stream_idx: usize) -> u32 {
    let vocabulary = arrangement.vocabulary();
    match vocabulary.special(stream_idx, Special::End) {
        Some(_) => vocabulary.n_tokens(stream_idx),
        None => vocabulary.n_codes(stream_idx),
    }
}

/// The steps that a layer without state makes of others.
pub(crate) fn apply<L: Layer>(layer: &L, xs: &Tensor) -> Result<Tensor> {
    let ys = layer.forward(xs)?;
    ys.ok_or_else(|| Error::Shape { what: "steps", expected: 1, actual: 0 })
}

/// A layer of the transformer.
fn layer(shape: &Shape, weights: &Weights) -> Result<TransformerLayer> {
    let Shape { dim, n_heads, hidden, context, .. } = *shape;
    let rotary_base = match shape.positions {
        Positions::Rotary { base } => Some(base),
        Positions::Sinusoidal => None,
    };
    let spec = AttentionSpec { heads: heads(dim, n_heads), sight: Sight::Past { context }, rotary_base };
    let norms = ["norm1", "norm2"].map(|name| norm(shape, &weights.pp(name)));
    let [first, second] = norms;
    block(dim, hidden, spec, [first?, second?], Activation::Unary(shape.activation.unary()), weights)
}

/// A layer from its parts.
pub(crate) fn block(
    dim: usize,
    hidden: usize,
    spec: AttentionSpec,
    norms: [Norm; 2],
    activation: Activation,
    weights: &Weights,
) -> Result<TransformerLayer> {
    let (attention, feed_forward) = (weights.pp("attention"), weights.pp("feed_forward"));
    let attention = AttentionWeights {
        input: attention.pp("input").get((3 * dim, dim), "weight")?,
        input_bias: None,
        output: attention.pp("output").get((dim, dim), "weight")?,
        output_bias: None,
    };
    let feed_forward = (
        Linear::new(&feed_forward.pp("input").get((hidden, dim), "weight")?, None)?,
        activation,
        Linear::new(&feed_forward.pp("output").get((dim, hidden), "weight")?, None)?,
    );
    Ok(transformer_layer(norms, Attention::new(&attention, spec)?, feed_forward, [None, None]))
}

fn norm(shape: &Shape, weights: &Weights) -> Result<Norm> {
    let gain = weights.get(shape.dim, "weight")?;
    let epsilon = shape.norm_epsilon as f32;
    Ok(match shape.norm {
        NormKind::Rms => Norm::Rms(RmsNorm::new(gain, epsilon)?),
        NormKind::Layer => Norm::Layer(LayerNorm::new(gain, Some(weights.get(shape.dim, "bias")?), epsilon)?),
    })
}

/// Cosines, then sines, of the angles of the steps behind some positions: `[n_positions, n_steps, dim]`.
///
/// # Source
/// audiocraft 896ec7c, `modules/transformer.py` (`create_sin_embedding`): the frequencies go down to
/// 1/10000 itself. Exponents, periods and angles are rounded to `f32` as there, which at position
/// 500 moves an angle by 1e-4.
pub(crate) fn sinusoids(positions: &[u64], n_steps: usize, dim: usize, device: &Device) -> Result<Tensor> {
    let half = dim / 2;
    let last = half.saturating_sub(1).max(1) as f32;
    let periods: Vec<f32> = (0..half).map(|i| power_of_max_period(i as f32 / last)).collect();
    let mut values = vec![0.0_f32; positions.len() * n_steps * dim];
    let steps = positions.iter().flat_map(|&position| position..position + n_steps as u64);
    for (position, row) in steps.zip(values.chunks_exact_mut(dim)) {
        let (cosines, sines) = row.split_at_mut(half);
        for ((cosine, sine), period) in cosines.iter_mut().zip(sines).zip(&periods) {
            let angle = position as f32 / period;
            (*sine, *cosine) = sin_cos(f64::from(angle));
        }
    }
    Ok(Tensor::from_vec(values, (positions.len(), n_steps, dim), &Device::Cpu)?.to_device(device)?)
}

/// 10000 to the power of a number in 0..=1, in operations that are the same on every machine: powers
/// of the system's library may differ in their last bits.
fn power_of_max_period(exponent: f32) -> f32 {
    let x = f64::from(exponent) * LN_MAX_PERIOD;
    let n = (x / LN_2).round_ties_even();
    let r = x - n * LN_2;
    // Taylor's series: |r| < 0.35, where the next term is below 1e-18.
    let series = (1..=14).rev().fold(1.0, |sum, i| 1.0 + r * sum / f64::from(i));
    let doublings = (0..n as u32).fold(1.0, |power, _| power * 2.0);
    (series * doublings) as f32
}

#[cfg(test)]
#[path = "model_tests.rs"]
pub(crate) mod tests;
