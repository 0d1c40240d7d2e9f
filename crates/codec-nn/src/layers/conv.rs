//! Convolution with every padding that the families use.

use super::steps::{head, tail};
use super::{Chunk, Flow, Layer, Steps, Work};
use crate::ops::{Filter, Form, Geometry};
use crate::{Error, Result};
use candle_core::Tensor;

/// What stands before the first and after the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// Zeros.
    #[default]
    Zero,
    /// The outermost step, again and again.
    Replicate,
    /// The steps mirrored about the outermost one.
    ///
    /// A clip no longer than the padding is first extended with zeros at the right and the extension is cut
    /// off after mirroring, as EnCodec's `pad1d` does.
    Reflect,
}

/// How a stream is extended at its ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Steps before the first.
    pub left: usize,
    /// Steps after the last.
    pub right: usize,
    /// Whether the right grows until the last window is full, so that no step is left over.
    pub align: bool,
    /// What the steps hold.
    pub fill: Fill,
}

impl Padding {
    /// Zeros, the same number on both sides, as `torch.nn.Conv1d` pads.
    pub fn symmetric(n_steps: usize) -> Self {
        Self { left: n_steps, right: n_steps, align: false, fill: Fill::Zero }
    }

    /// EnCodec's rule: `span - stride` steps in all, every one at the left when causal, otherwise half of
    /// them, rounded down, at the right; the last window is filled.
    ///
    /// # Source
    /// facebookresearch/encodec, encodec/modules/conv.py, `SConv1d`.
    pub fn same(kernel: usize, stride: usize, dilation: usize, causal: bool, fill: Fill) -> Self {
        let total = Geometry { kernel, stride, dilation }.span().saturating_sub(stride);
        let right = if causal { 0 } else { total / 2 };
        Self { left: total - right, right, align: true, fill }
    }
}

/// The shape of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// Steps of input per step of output.
    pub stride: usize,
    /// Steps between the inputs of one window.
    pub dilation: usize,
    /// 1, or the number of channels.
    pub groups: usize,
    /// What happens at the ends.
    pub padding: Padding,
}

impl Default for ConvSpec {
    fn default() -> Self {
        Self { stride: 1, dilation: 1, groups: 1, padding: Padding::default() }
    }
}

/// Convolution over time.
#[derive(Debug)]
pub struct Conv1d {
    filter: Filter,
    geometry: Geometry,
    padding: Padding,
    c_in: usize,
}

impl Conv1d {
    /// Takes a weight `[c_out, c_in / groups, kernel]` and a bias `[c_out]`, as `torch.nn.Conv1d` has them.
    ///
    /// # Errors
    /// [`Error::Shape`] when weight, bias and groups do not fit, [`Error::Unsupported`] for groups of several
    /// channels and for a stride that skips inputs, [`Error::Config`] for a zero.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, spec: ConvSpec) -> Result<Self> {
        let (c_out, group_width, kernel) = weight.dims3()?;
        for (field, value) in [
            ("kernel", kernel),
            ("stride", spec.stride),
            ("dilation", spec.dilation),
            ("groups", spec.groups),
        ] {
            if value == 0 {
                return Err(Error::Config { field, why: "must not be 0".into() });
            }
        }
        let geometry = Geometry { kernel, stride: spec.stride, dilation: spec.dilation };
        if spec.stride > geometry.span() {
            let value = format!("{} over {} steps", spec.stride, geometry.span());
            return Err(Error::Unsupported { what: "convolution stride", value });
        }
        let form = match (spec.groups, group_width) {
            (1, _) => Form::Conv,
            (groups, 1) if groups == c_out => Form::Depthwise,
            (groups, _) => {
                let value = format!("{groups} of {group_width} to {c_out} channels");
                return Err(Error::Unsupported { what: "convolution groups", value });
            }
        };
        let filter = Filter::new(form, geometry, weight, bias)?;
        Ok(Self { filter, geometry, padding: spec.padding, c_in: group_width * spec.groups })
    }

    /// Steps that a stream must bring before the padding at the left is known.
    fn n_needed(&self) -> usize {
        match self.padding.fill {
            Fill::Zero => 0,
            Fill::Replicate => 1,
            Fill::Reflect => self.padding.left + 1,
        }
    }

    /// Raw steps to remember for the padding at the right.
    fn n_remembered(&self) -> usize {
        let Padding { right, align, fill, .. } = self.padding;
        match fill {
            _ if right == 0 && (!align || self.geometry.stride == 1) => 0,
            // Zeros still need a step to take batch and type from.
            Fill::Zero | Fill::Replicate => 1,
            Fill::Reflect => right + self.geometry.stride,
        }
    }

    /// Steps after the last, once the length is known.
    fn n_right(&self, n_seen: usize) -> usize {
        let Padding { left, right, align, .. } = self.padding;
        // The windows of a padded clip start at 0, stride, ... <= slack; the rest of the division is missing.
        let (padded, span, stride) = (n_seen + left + right, self.geometry.span(), self.geometry.stride);
        let missing = match padded.checked_sub(span) {
            Some(slack) => slack.next_multiple_of(stride) - slack,
            None => (span - padded) % stride,
        };
        right + if align { missing } else { 0 }
    }

    /// The steps before the first.
    fn left_padding(&self, pieces: &[Option<Steps>]) -> Result<Option<Steps>> {
        let left = self.padding.left;
        let Some(first) = head(pieces, if self.padding.fill == Fill::Reflect { left + 1 } else { 1 })? else {
            return Ok(None);
        };
        Ok(match self.padding.fill {
            _ if left == 0 => None,
            Fill::Zero => Some(first.zeros(left)?),
            Fill::Replicate => Some(repeat(first, left)?),
            Fill::Reflect => Some(first.map_tensor(|first| {
                let missing = left + 1 - first.dim(1)?;
                let mirrored = first.pad_with_zeros(1, 0, missing)?.narrow(1, 1, left)?;
                Ok(mirrored.contiguous()?.flip(&[1])?)
            })?),
        })
    }

    /// The steps after the last.
    fn right_padding(&self, pieces: &[Option<Steps>], n_seen: usize) -> Result<Option<Steps>> {
        let right = self.n_right(n_seen);
        let Some(last) = tail(pieces, self.n_remembered().clamp(1, n_seen.max(1)))? else {
            return Ok(None);
        };
        let n_last = last.n_steps()?;
        Ok(match self.padding.fill {
            _ if right == 0 => None,
            Fill::Zero => Some(last.zeros(right)?),
            Fill::Replicate => Some(repeat(last.narrow(n_last - 1, 1)?, right)?),
            Fill::Reflect => Some(last.map_tensor(|last| {
                // EnCodec mirrors a short clip about the end of its extension; the cut then takes as many
                // steps as the extension has, so its zeros come first.
                let n_zeros = (self.padding.left.max(right) + 1).saturating_sub(n_seen);
                let n_mirrored = right.saturating_sub(n_zeros);
                let extended = last.pad_with_zeros(1, 0, n_zeros)?;
                let start = n_last + n_zeros - 1 - n_mirrored;
                let mirrored = extended.narrow(1, start, n_mirrored)?.contiguous()?;
                // Nothing to mirror has no order to turn round.
                let mirrored = if n_mirrored > 0 { mirrored.flip(&[1])? } else { mirrored };
                Ok(mirrored.pad_with_zeros(1, n_zeros.min(right), 0)?)
            })?),
        })
    }
}

/// The state of [`Conv1d`].
#[derive(Debug, Default)]
pub struct ConvState {
    /// The end of the padded input: what later windows or the right padding still read.
    buffer: Option<Steps>,
    /// Where in the buffer the next window starts.
    next: usize,
    /// Raw steps so far.
    n_seen: usize,
    /// Whether the left padding stands.
    began: bool,
}

impl Layer for Conv1d {
    type State = ConvState;

    fn init(&self) -> ConvState {
        ConvState::default()
    }

    fn step(&self, state: &mut ConvState, chunk: Chunk) -> Result<Chunk> {
        let Chunk { steps, end } = chunk.normalized();
        if let Some(steps) = &steps {
            steps.expect_channels("input", self.c_in)?;
            state.n_seen += steps.n_steps()?;
        }
        // The left padding, what is left of the steps before, the new ones, and the right padding.
        let [mut left, mut right] = [None, None];
        let steps = [state.buffer.take(), steps];
        if end && state.n_seen > 0 {
            right = self.right_padding(&steps, state.n_seen)?;
        }
        if !state.began && state.n_seen >= if end { 1 } else { self.n_needed().max(1) } {
            state.began = true;
            left = self.left_padding(&steps)?;
        }
        let [before, now] = steps;
        let outputs = match Steps::join(&mut [left, before, now, right])? {
            Some(buffer) => self.run(state, &buffer)?,
            None => None,
        };
        if end {
            *state = self.init();
        }
        Ok(Chunk { steps: outputs, end })
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        let Geometry { stride, .. } = self.geometry;
        let last = output_idx.saturating_mul(stride as u64).saturating_add(self.geometry.span() as u64 - 1);
        // A mirrored start has to be there before anything comes.
        Some(last.saturating_sub(self.padding.left as u64).max(self.n_needed().saturating_sub(1) as u64))
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        let Geometry { kernel, stride, dilation } = self.geometry;
        let name = format!("{} k{kernel} s{stride} d{dilation}", self.filter.name());
        let work = Work::of(self, name, input).giving(1.0 / stride as f64, self.filter.c_out());
        let output = work.output;
        list.push(work.with_product(self.filter.n_weights()));
        output
    }
}

impl Conv1d {
    /// Convolves the whole windows of the padded input and keeps what is still needed of it.
    fn run(&self, state: &mut ConvState, buffer: &Steps) -> Result<Option<Steps>> {
        let n_steps = buffer.n_steps()?;
        let n_windows = if state.began { self.geometry.n_out(n_steps - state.next) } else { 0 };
        let mut outputs = None;
        if n_windows > 0 {
            let n_read = (n_windows - 1) * self.geometry.stride + self.geometry.span();
            outputs = Some(self.filter.apply(buffer.narrow(state.next, n_read)?)?);
            state.next += n_windows * self.geometry.stride;
        }
        let n_remembered = self.n_remembered().min(state.n_seen);
        let start = if state.began { state.next.min(n_steps - n_remembered) } else { 0 };
        state.next -= start;
        state.buffer = if start < n_steps { Some(buffer.keep(start, n_steps - start)?) } else { None };
        Ok(outputs)
    }
}

/// One step, `n` times.
fn repeat(step: Steps, n: usize) -> Result<Steps> {
    let (batch, _, channels) = step.dims3()?;
    step.map_tensor(|step| Ok(step.broadcast_as((batch, n, channels))?.contiguous()?))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_threads_agree, assert_trains};
    use super::*;
    use crate::ops::testing::{Rng, values};
    use proptest::prelude::*;

    /// EnCodec's `pad1d` on one channel, written from its description and not from the layer.
    fn pad(xs: &[f64], left: usize, right: usize, fill: Fill) -> Vec<f64> {
        let n = xs.len();
        match fill {
            Fill::Zero => [vec![0.0; left], xs.to_vec(), vec![0.0; right]].concat(),
            Fill::Replicate => [vec![xs[0]; left], xs.to_vec(), vec![xs[n - 1]; right]].concat(),
            Fill::Reflect => {
                let longest = left.max(right);
                let n_extra = if n <= longest { longest - n + 1 } else { 0 };
                let extended = [xs.to_vec(), vec![0.0; n_extra]].concat();
                let m = extended.len();
                let before = (1..=left).rev().map(|i| extended[i]);
                let after = (0..right).map(|i| extended[m - 2 - i]);
                let mut padded: Vec<f64> = before.chain(extended.iter().copied()).chain(after).collect();
                padded.truncate(padded.len() - n_extra);
                padded
            }
        }
    }

    /// EnCodec's `get_extra_padding_for_conv1d`, in floating point as there.
    fn extra(n: usize, span: usize, stride: usize, total: usize) -> usize {
        let n_frames = (n as f64 - span as f64 + total as f64) / stride as f64 + 1.0;
        let ideal = (n_frames.ceil() as i64 - 1) * stride as i64 + span as i64 - total as i64;
        (ideal - n as i64).max(0) as usize
    }

    /// One item `[time, c_in]` as nested loops.
    fn reference(xs: &[f64], weight: &Tensor, bias: &[f64], spec: ConvSpec) -> Vec<f64> {
        let (c_out, group_width, kernel) = weight.dims3().unwrap();
        let (w, c_in) = (values(weight), group_width * spec.groups);
        let n = xs.len() / c_in;
        if n == 0 {
            return Vec::new();
        }
        let Padding { left, right, align, fill } = spec.padding;
        let span = (kernel - 1) * spec.dilation + 1;
        let right = right + if align { extra(n, span, spec.stride, left + right) } else { 0 };
        let channel =
            |c: usize| pad(&xs.iter().skip(c).step_by(c_in).copied().collect::<Vec<_>>(), left, right, fill);
        let padded: Vec<Vec<f64>> = (0..c_in).map(channel).collect();
        let n_padded = padded[0].len();
        let mut ys = Vec::new();
        let mut start = 0;
        while start + span <= n_padded {
            for o in 0..c_out {
                let first = if spec.groups == 1 { 0 } else { o };
                let mut sum = bias[o];
                for i in 0..group_width {
                    for j in 0..kernel {
                        sum += w[(o * group_width + i) * kernel + j]
                            * padded[first + i][start + j * spec.dilation];
                    }
                }
                ys.push(sum);
            }
            start += spec.stride;
        }
        ys
    }

    fn spec() -> impl Strategy<Value = (usize, ConvSpec)> {
        let fill = prop_oneof![Just(Fill::Zero), Just(Fill::Replicate), Just(Fill::Reflect)];
        (1usize..9, 1usize..4, any::<prop::sample::Index>(), 0..3, fill, any::<bool>(), 0usize..6, 0usize..6)
            .prop_map(|(kernel, dilation, stride, rule, fill, align, left, right)| {
                let span = (kernel - 1) * dilation + 1;
                let stride = 1 + stride.index(span.min(6));
                let padding = match rule {
                    0 => Padding { left, right, align, fill },
                    _ => Padding { align, ..Padding::same(kernel, stride, dilation, rule == 1, fill) },
                };
                (kernel, ConvSpec { stride, dilation, groups: 1, padding })
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn matches_the_reference_and_streams(
            (kernel, mut spec) in spec(),
            n_steps in 0usize..40,
            (c_in, c_out) in (1usize..4, 1usize..6),
            is_depthwise in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let mut rng = Rng::new(seed);
            let c_out = if is_depthwise { c_in } else { c_out };
            spec.groups = if is_depthwise { c_in } else { 1 };
            let xs = rng.integers(&[3, n_steps, c_in]);
            let weight = rng.integers(&[c_out, c_in / spec.groups, kernel]);
            let bias = rng.integers(&[c_out]);
            let layer = Conv1d::new(&weight, Some(&bias), spec).unwrap();
            if n_steps == 0 {
                prop_assert!(layer.step(&mut layer.init(), Chunk::end()).unwrap().steps.is_none());
                return Ok(());
            }
            let ys = layer.forward(&xs).unwrap();
            let items = values(&xs);
            let items = items.chunks_exact(n_steps * c_in);
            let want: Vec<f64> = items.flat_map(|item| reference(item, &weight, &values(&bias), spec)).collect();
            prop_assert_eq!(ys.as_ref().map(values).unwrap_or_default(), want);
            if spec.padding.align && spec.padding.left + spec.padding.right + spec.stride == layer.geometry.span() {
                prop_assert_eq!(ys.map_or(0, |ys| ys.dim(1).unwrap()), n_steps.div_ceil(spec.stride));
            }

            // Bits, on values where the order of a sum would show.
            let layer = Conv1d::new(&rng.tensor(weight.dims()), Some(&rng.tensor(bias.dims())), spec).unwrap();
            assert_streams(&layer, &rng.tensor(xs.dims()), &mut rng);
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let mut rng = Rng::new(1);
        for dilation in [1, 2] {
            let padding = Padding::same(7, 1, dilation, true, Fill::Reflect);
            let spec = ConvSpec { dilation, padding, ..ConvSpec::default() };
            let layer = Conv1d::new(&rng.tensor(&[96, 64, 7]), Some(&rng.tensor(&[96])), spec).unwrap();
            assert_threads_agree(&layer, &rng.tensor(&[2, 700, 64]));
        }
    }

    #[test]
    fn trains() {
        let mut rng = Rng::new(2);
        for (groups, stride, dilation, fill, causal) in [
            (1, 1, 1, Fill::Reflect, true),
            (1, 2, 1, Fill::Reflect, false),
            (1, 1, 3, Fill::Replicate, false),
            (3, 2, 1, Fill::Zero, true),
        ] {
            let padding = Padding::same(4, stride, dilation, causal, fill);
            let spec = ConvSpec { stride, dilation, groups, padding };
            let weights = [rng.tensor(&[3, 3 / groups, 4]), rng.tensor(&[3])];
            let xs = rng.tensor(&[2, 11, 3]);
            assert_trains(&mut rng, xs, &weights, |weights| {
                Conv1d::new(&weights[0], Some(&weights[1]), spec).unwrap()
            });
        }
    }

    #[test]
    fn refuses_what_it_cannot_do() {
        let weight = Rng::new(3).tensor(&[4, 2, 3]);
        let build = |spec| Conv1d::new(&weight, None, spec);
        let groups = build(ConvSpec { groups: 2, ..ConvSpec::default() }).unwrap_err();
        assert!(matches!(groups, Error::Unsupported { what: "convolution groups", .. }), "{groups}");
        let stride = build(ConvSpec { stride: 4, ..ConvSpec::default() }).unwrap_err();
        assert!(matches!(stride, Error::Unsupported { what: "convolution stride", .. }), "{stride}");
        let zero = build(ConvSpec { dilation: 0, ..ConvSpec::default() }).unwrap_err();
        assert!(matches!(zero, Error::Config { field: "dilation", .. }), "{zero}");
        let bias = Conv1d::new(&weight, Some(&Rng::new(4).tensor(&[3])), ConvSpec::default()).unwrap_err();
        assert!(matches!(bias, Error::Shape { .. }), "{bias}");
        let layer = build(ConvSpec::default()).unwrap();
        let input = layer.forward(&Rng::new(5).tensor(&[1, 9, 3])).unwrap_err();
        assert!(matches!(input, Error::Shape { ref actual, .. } if actual == &[1, 9, 3]), "{input}");
    }
}
