//! Attention with rotary positions, over a bounded or unbounded past or the whole clip.

use super::{Chunk, Clip, Flow, Layer, Linear, Merge, Steps, Work};
use crate::ops::{self, Past, Sight};
use crate::{Error, Result};
use candle_core::Tensor;
use codec_kernels::{Heads, Rotary};

/// The shape of an [`Attention`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// How channels are split into heads.
    pub heads: Heads,
    /// What a step sees.
    pub sight: Sight,
    /// Base of the rotary frequencies; `None` for attention that knows no positions.
    pub rotary_base: Option<f64>,
}

/// The weights of an [`Attention`].
#[derive(Clone, Debug)]
pub struct AttentionWeights {
    /// Makes the queries, keys and values: `[(n_heads + 2 * n_kv_heads) * dim, channels]`, one below the other.
    ///
    /// With rotary positions channel j of a head pairs with channel j + dim/2; see [`half_split`].
    pub input: Tensor,
    /// As long as the rows of `input`.
    pub input_bias: Option<Tensor>,
    /// `[channels, n_heads * dim]`.
    pub output: Tensor,
    /// `[channels]`.
    pub output_bias: Option<Tensor>,
}

/// Self-attention of each step over itself and the steps that it sees.
///
/// Positions count the steps of the stream. Their angles are formed in f64, see [`Rotary`], so a stream of any
/// length keeps the precision of its start, and no table limits it.
///
/// # Source
/// Vaswani et al. 2017, "Attention is all you need", section 3.2.2; Su et al. 2021, "RoFormer".
#[derive(Debug)]
pub struct Attention {
    input: Linear,
    output: Linear,
    heads: Heads,
    sight: Sight,
    rotary: Option<Rotary>,
}

impl Attention {
    /// Takes the weights.
    ///
    /// # Errors
    /// [`Error::Shape`] when weights and heads do not fit, [`Error::Config`] for an empty context,
    /// [`Error::Kernels`] for heads that do not divide, odd heads with rotary positions, or a base not above 1.
    pub fn new(weights: &AttentionWeights, spec: AttentionSpec) -> Result<Self> {
        let Heads { n_heads, n_kv_heads, dim } = spec.heads;
        if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) || n_heads == 0 {
            let why = format!("{n_heads} heads do not share {n_kv_heads} heads of keys");
            return Err(Error::Config { field: "n_heads", why });
        }
        if matches!(spec.sight, Sight::Past { context: Some(0) }) {
            return Err(Error::Config { field: "context", why: "a step sees at least itself".into() });
        }
        let (channels, _) = weights.output.dims2()?;
        let width = n_heads.saturating_mul(dim);
        let n_rows = n_kv_heads.saturating_mul(dim).saturating_mul(2).saturating_add(width);
        ops::expect_shape("input of an attention", &weights.input, &[n_rows, channels])?;
        ops::expect_shape("output of an attention", &weights.output, &[channels, width])?;
        Ok(Self {
            input: Linear::new(&weights.input, weights.input_bias.as_ref())?,
            output: Linear::new(&weights.output, weights.output_bias.as_ref())?,
            heads: spec.heads,
            sight: spec.sight,
            rotary: spec.rotary_base.map(|base| Rotary::new(dim, base)).transpose()?,
        })
    }

    /// Attention of the next steps of one stream, `[batch, time, (n_heads + 2 * n_kv_heads) * dim]`.
    fn attend(&self, qkv: Steps, stream: &mut Stream) -> Result<Steps> {
        let position = stream.position;
        stream.position += qkv.n_steps()? as u64;
        qkv.attend((self.rotary.as_ref(), position), &mut stream.past, self.heads, self.sight)
    }
}

/// The state of [`Attention`].
#[derive(Debug)]
pub struct AttentionState {
    /// One for the whole batch, or one for each item where streams were merged.
    streams: Vec<Stream>,
    /// The clip so far, where steps see all of it.
    clip: Clip,
}

/// Where a stream stands.
#[derive(Debug, Default)]
struct Stream {
    /// Of the next step.
    position: u64,
    /// The keys and values that the next step may see.
    past: Past,
}

impl Merge for AttentionState {
    fn merge(states: Vec<Self>) -> Result<Self> {
        if states.iter().any(|state| !state.clip.is_empty()) {
            return Err(Error::unsupported("merging streams", "attention over whole clips"));
        }
        let streams = states.into_iter().flat_map(|state| state.streams).collect();
        Ok(Self { streams, clip: Clip::default() })
    }
}

impl Layer for Attention {
    type State = AttentionState;

    fn init(&self) -> AttentionState {
        AttentionState { streams: vec![Stream::default()], clip: Clip::default() }
    }

    fn step(&self, state: &mut AttentionState, chunk: Chunk) -> Result<Chunk> {
        let mut chunk = chunk.normalized();
        let end = chunk.end;
        if self.sight == Sight::Clip {
            let steps = chunk.steps.take();
            if end {
                chunk.steps = state.clip.close(steps)?;
            } else {
                state.clip.push(steps)?;
            }
        }
        let chunk = chunk.map_steps(|xs| {
            let qkv = self.input.apply(xs)?;
            let ys = match state.streams.as_mut_slice() {
                [stream] => self.attend(qkv, stream)?,
                streams => {
                    let (_, n_steps, width) = qkv.dims3()?;
                    let qkv = qkv.into_tensor()?;
                    ops::expect_shape("merged streams", &qkv, &[streams.len(), n_steps, width])?;
                    let items = streams.iter_mut().enumerate();
                    let items = items.map(|(idx, stream)| {
                        self.attend(qkv.narrow(0, idx, 1)?.into(), stream)?.into_tensor()
                    });
                    Tensor::cat(&items.collect::<Result<Vec<_>>>()?, 0)?.into()
                }
            };
            self.output.apply(ys)
        })?;
        if end {
            *state = self.init();
        }
        Ok(chunk)
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        (self.sight != Sight::Clip).then_some(output_idx)
    }

    /// The steps of a clip or of an unbounded past are not counted: the products with the weights alone.
    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        let Heads { n_heads, dim, .. } = self.heads;
        let mut work = Work::of(self, format!("attention of {n_heads} heads of {dim}"), input);
        work = work.with_product(self.input.n_weights() + self.output.n_weights());
        if let Sight::Past { context: Some(context) } = self.sight {
            work.multiply_adds += input.rate * (2 * context * n_heads * dim) as f64;
        }
        list.push(work);
        input
    }
}

/// Reorders the rows of a projection whose heads pair channel 2j with channel 2j + 1 so that channel j pairs with
/// channel j + dim/2.
///
/// # Shapes
/// `rows`: `[n_heads * dim, channels]`.
///
/// # Errors
/// [`Error::Shape`] when the heads do not divide the rows, or are odd.
pub fn half_split(rows: &Tensor, dim: usize) -> Result<Tensor> {
    let (n_rows, channels) = rows.dims2()?;
    if dim == 0 || !dim.is_multiple_of(2) || !n_rows.is_multiple_of(dim) {
        let expected = vec![n_rows.next_multiple_of(dim.max(1)), channels];
        return Err(Error::Shape { name: "rows of heads".into(), expected, actual: rows.dims().to_vec() });
    }
    let pairs = rows.reshape((n_rows / dim, dim / 2, 2, channels))?;
    Ok(pairs.transpose(1, 2)?.contiguous()?.reshape((n_rows, channels))?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_threads_agree, assert_trains};
    use super::*;
    use crate::layers::Residual;
    use crate::ops::testing::{Rng, assert_close, bits, values};
    use candle_core::{DType, Device, IndexOp};
    use proptest::prelude::*;

    fn weights(rng: &mut Rng, heads: Heads, channels: usize) -> AttentionWeights {
        let Heads { n_heads, n_kv_heads, dim } = heads;
        let n_rows = (n_heads + 2 * n_kv_heads) * dim;
        AttentionWeights {
            input: rng.tensor(&[n_rows, channels]),
            input_bias: Some(rng.tensor(&[n_rows])),
            output: rng.tensor(&[channels, n_heads * dim]),
            output_bias: Some(rng.tensor(&[channels])),
        }
    }

    /// One item `[time, channels]` as nested loops in f64, the first step at `position`.
    fn reference(xs: &Tensor, weights: &AttentionWeights, spec: AttentionSpec, position: usize) -> Vec<f64> {
        let Heads { n_heads, n_kv_heads, dim } = spec.heads;
        let wide = |xs: &Tensor| xs.to_dtype(DType::F64).unwrap();
        let bias = |bias: &Option<Tensor>, n| {
            bias.as_ref().map_or_else(|| Tensor::zeros(n, DType::F64, &Device::Cpu).unwrap(), wide)
        };
        let rows = wide(xs).matmul(&wide(&weights.input).t().unwrap()).unwrap();
        let rows = rows.broadcast_add(&bias(&weights.input_bias, weights.input.dim(0).unwrap())).unwrap();
        let n_steps = rows.dim(0).unwrap();
        // Head `head` of the part that starts at channel `start`, turned to the position of its step.
        let head = |step: usize, start: usize, head: usize, turned: bool| -> Vec<f64> {
            let channels = values(&rows.i(step).unwrap());
            let xs = &channels[start + head * dim..][..dim];
            let Some(base) = spec.rotary_base.filter(|_| turned) else { return xs.to_vec() };
            let at = |i: usize| {
                let pair = i % (dim / 2);
                let angle = (position + step) as f64 * base.powf(-2.0 * pair as f64 / dim as f64);
                let sign = if i < dim / 2 { -1.0 } else { 1.0 };
                xs[i] * angle.cos() + sign * xs[(i + dim / 2) % dim] * angle.sin()
            };
            (0..dim).map(at).collect()
        };
        let mut joined = Vec::new();
        for step in 0..n_steps {
            for head_idx in 0..n_heads {
                let kv_idx = head_idx * n_kv_heads / n_heads;
                let q = head(step, 0, head_idx, true);
                let seen = match spec.sight {
                    Sight::Clip => 0..n_steps,
                    Sight::Past { context } => {
                        context.map_or(0, |context| (step + 1).saturating_sub(context))..step + 1
                    }
                };
                let scores: Vec<f64> = seen
                    .clone()
                    .map(|past| {
                        let k = head(past, n_heads * dim, kv_idx, true);
                        let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                        (dot / (dim as f64).sqrt()).exp()
                    })
                    .collect();
                let sum: f64 = scores.iter().sum();
                let mut out = vec![0.0; dim];
                for (past, score) in seen.zip(scores) {
                    let v = head(past, (n_heads + n_kv_heads) * dim, kv_idx, false);
                    out.iter_mut().zip(v).for_each(|(out, v)| *out += score / sum * v);
                }
                joined.extend(out);
            }
        }
        let joined = Tensor::from_vec(joined, (n_steps, n_heads * dim), &Device::Cpu).unwrap();
        let ys = joined.matmul(&wide(&weights.output).t().unwrap()).unwrap();
        values(&ys.broadcast_add(&bias(&weights.output_bias, weights.output.dim(0).unwrap())).unwrap())
    }

    fn specs() -> impl Strategy<Value = AttentionSpec> {
        let heads = prop_oneof![Just((1, 1)), Just((3, 3)), Just((4, 2))];
        let past = prop::option::of(1usize..12).prop_map(|context| Sight::Past { context });
        let sight = prop_oneof![1 => Just(Sight::Clip), 3 => past];
        (heads, 1usize..5, sight, any::<bool>()).prop_map(|((n_heads, n_kv_heads), half, sight, rotary)| {
            let heads = Heads { n_heads, n_kv_heads, dim: 2 * half };
            AttentionSpec { heads, sight, rotary_base: rotary.then_some(100.0) }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn matches_the_reference_and_streams(spec in specs(), n_steps in 1usize..40, seed in any::<u64>()) {
            let mut rng = Rng::new(seed);
            let weights = weights(&mut rng, spec.heads, 6);
            let layer = Attention::new(&weights, spec).unwrap();
            let xs = rng.tensor(&[2, n_steps, 6]);
            let got = layer.forward(&xs).unwrap().unwrap();
            for item in 0..2 {
                let want = reference(&xs.i(item).unwrap(), &weights, spec, 0);
                assert_close("attention", &values(&got.i(item).unwrap()), &want, 1e-5);
            }
            assert_streams(&layer, &xs, &mut rng);
        }
    }

    #[test]
    fn hours_into_a_stream_nothing_has_drifted() {
        let mut rng = Rng::new(1);
        let heads = Heads { n_heads: 2, n_kv_heads: 2, dim: 16 };
        let spec =
            AttentionSpec { heads, sight: Sight::Past { context: Some(25) }, rotary_base: Some(10_000.0) };
        let weights = weights(&mut rng, heads, 8);
        let layer = Attention::new(&weights, spec).unwrap();
        let xs = rng.tensor(&[1, 60, 8]);
        let near = layer.forward(&xs).unwrap().unwrap();
        // Three hours and a week of 25 steps a second.
        for position in [270_000, 15_120_000] {
            let mut state = layer.init();
            state.streams[0].position = position;
            let far = layer.step(&mut state, Chunk::last(xs.clone())).unwrap();
            let far = far.into_tensor().unwrap().unwrap();
            assert_close("far against near", &values(&far), &values(&near), 1e-6);
            let want = reference(&xs.i(0).unwrap(), &weights, spec, position as usize);
            assert_close("far", &values(&far), &want, 1e-5);
            assert_eq!(state.streams[0].position, 0);
        }
    }

    #[test]
    fn merged_streams_have_the_bits_of_each_alone() {
        let mut rng = Rng::new(4);
        let heads = Heads { n_heads: 4, n_kv_heads: 2, dim: 4 };
        for (context, rotary_base) in [(Some(5), Some(100.0)), (None, None)] {
            let spec = AttentionSpec { heads, sight: Sight::Past { context }, rotary_base };
            let layer = Attention::new(&weights(&mut rng, heads, 6), spec).unwrap();
            let net = vec![Residual::new(layer)];
            let step = |state: &mut Vec<_>, xs: &Tensor| {
                net.step(state, Chunk::next(xs.clone())).unwrap().into_tensor().unwrap().unwrap()
            };
            // One that has read more than its context, one that has read a little, one that is new.
            let mut alone: Vec<_> = [9, 2, 0].map(|n| (n, net.init(), net.init())).into();
            for (n, state, again) in &mut alone {
                let xs = rng.tensor(&[1, *n, 6]);
                for state in [state, again].into_iter().filter(|_| *n > 0) {
                    step(state, &xs);
                }
            }
            let (states, mut alone): (Vec<_>, Vec<_>) =
                alone.into_iter().map(|(_, state, again)| (state, again)).unzip();
            let mut merged = Vec::merge(states).unwrap();
            for n in [1, 1, 3, 7] {
                let xs = rng.tensor(&[3, n, 6]);
                let ys = step(&mut merged, &xs);
                for (idx, state) in alone.iter_mut().enumerate() {
                    let item = |xs: &Tensor| xs.narrow(0, idx, 1).unwrap();
                    assert_eq!(bits(&item(&ys)), bits(&step(state, &item(&xs))), "item {idx}, {n} steps");
                }
            }
            let other = net.step(&mut merged, Chunk::next(rng.tensor(&[2, 1, 6])));
            assert!(matches!(other, Err(Error::Shape { .. })));
        }
    }

    #[test]
    fn streams_that_hold_steps_back_do_not_merge() {
        let mut rng = Rng::new(5);
        let spec = AttentionSpec { heads: Heads::one(2), sight: Sight::Clip, rotary_base: None };
        let layer = Attention::new(&weights(&mut rng, spec.heads, 6), spec).unwrap();
        let mut state = layer.init();
        layer.step(&mut state, Chunk::next(rng.tensor(&[1, 2, 6]))).unwrap();
        let merged = Merge::merge(vec![state, layer.init()]);
        assert!(matches!(merged, Err::<AttentionState, _>(Error::Unsupported { .. })));
        let fewer = Vec::merge(vec![vec![layer.init()], Vec::new()]);
        assert!(matches!(fewer, Err::<Vec<AttentionState>, _>(Error::ForeignState { .. })));
    }

    #[test]
    fn pairs_of_neighbours_become_pairs_of_halves() {
        let rows: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let rows = Tensor::from_vec(rows, (12, 1), &Device::Cpu).unwrap();
        let want = [0.0, 2.0, 4.0, 1.0, 3.0, 5.0, 6.0, 8.0, 10.0, 7.0, 9.0, 11.0];
        assert_eq!(values(&half_split(&rows, 6).unwrap()), want);
        for dim in [0, 3, 8] {
            assert!(matches!(half_split(&rows, dim), Err(Error::Shape { .. })));
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let mut rng = Rng::new(2);
        let heads = Heads { n_heads: 4, n_kv_heads: 4, dim: 32 };
        let spec =
            AttentionSpec { heads, sight: Sight::Past { context: Some(250) }, rotary_base: Some(10_000.0) };
        let layer = Attention::new(&weights(&mut rng, heads, 64), spec).unwrap();
        assert_threads_agree(&layer, &rng.tensor(&[2, 400, 64]));
    }

    #[test]
    fn trains() {
        let mut rng = Rng::new(3);
        let heads = Heads { n_heads: 2, n_kv_heads: 1, dim: 4 };
        for (sight, rotary_base) in [
            (Sight::Past { context: Some(3) }, Some(100.0)),
            (Sight::Past { context: None }, None),
            (Sight::Clip, None),
        ] {
            let spec = AttentionSpec { heads, sight, rotary_base };
            let all = weights(&mut rng, heads, 4);
            let flat = [all.input, all.input_bias.unwrap(), all.output, all.output_bias.unwrap()];
            let xs = rng.tensor(&[2, 6, 4]);
            assert_trains(&mut rng, xs, &flat, |w| {
                let weights = AttentionWeights {
                    input: w[0].clone(),
                    input_bias: Some(w[1].clone()),
                    output: w[2].clone(),
                    output_bias: Some(w[3].clone()),
                };
                Attention::new(&weights, spec).unwrap()
            });
        }
    }

    #[test]
    fn refuses_weights_that_do_not_fit() {
        let mut rng = Rng::new(4);
        let heads = Heads { n_heads: 2, n_kv_heads: 1, dim: 4 };
        let spec = AttentionSpec { heads, sight: Sight::Clip, rotary_base: Some(100.0) };
        let good = weights(&mut rng, heads, 6);
        let new = |heads, context, base| {
            let sight = Sight::Past { context };
            Attention::new(&good, AttentionSpec { heads, sight, rotary_base: Some(base) })
        };
        assert!(Attention::new(&good, spec).is_ok());
        assert!(matches!(new(heads, Some(0), 100.0), Err(Error::Config { .. })));
        assert!(matches!(new(heads, None, 1.0), Err(Error::Kernels(_))));
        for (n_heads, n_kv_heads, dim) in [(3, 2, 4), (2, 0, 4), (0, 1, 4)] {
            assert!(matches!(new(Heads { n_heads, n_kv_heads, dim }, None, 9.0), Err(Error::Config { .. })));
        }
        for (n_heads, n_kv_heads, dim) in [(2, 2, 4), (2, 1, 2), (2, 1, usize::MAX)] {
            assert!(matches!(new(Heads { n_heads, n_kv_heads, dim }, None, 9.0), Err(Error::Shape { .. })));
        }
    }
}
