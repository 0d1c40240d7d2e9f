//! Eight-bit integer arithmetic, exactly as XNNPACK does it, in `f32`.
//!
//! An activation is held as the integer less its zero point, in `f32`. Products of such numbers with
//! eight-bit weights are whole, and as long as every sum stays below 2^24, `f32` holds them without
//! rounding: so a convolution of integers is the usual one, on any device, and zero padding is the
//! integer zero point. Only the way back to eight bits needs layers of its own. Sums that could grow
//! beyond are refused when a model is loaded ([`check_sums`]).
//!
//! # Source
//! XNNPACK, `src/params.c` and the scalar kernels: `qs8-qc8w-gemm` with `fp32` requantization,
//! `qs8-vlrelu`, `qs8-vadd`, `f32-qs8-vcvt`. Whole graphs agree with ai-edge-litert 2.3 bit for bit.

use crate::layers::{Chunk, ConvTranspose1d, Flow, Layer, Steps, Work};
use crate::{Error, Result};
use candle_core::Tensor;

/// Whole numbers up to this are `f32` values.
const MAX_EXACT: i64 = 1 << 24;
/// Adding and subtracting it rounds a small number to the nearest whole one, ties to even.
const TO_WHOLE: f64 = (3 << 22) as f64;

/// real = scale * (integer - zero_point), the integer in -128..=127.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    scale: f32,
    zero_point: i32,
}

impl Scale {
    /// # Errors
    /// [`Error::Unsupported`] when the zero point is no eight-bit number.
    pub(crate) fn new(scale: f32, zero_point: i32) -> Result<Self> {
        if i8::try_from(zero_point).is_err() {
            return Err(Error::Unsupported { what: "zero point", value: zero_point.to_string() });
        }
        Ok(Self { scale, zero_point })
    }

    /// The largest magnitude of an integer less the zero point.
    pub(crate) fn max_magnitude(self) -> i64 {
        i64::from((127 - self.zero_point).max(128 + self.zero_point))
    }

    /// Cuts to what eight bits hold.
    fn clamp(self, xs: &Tensor) -> Result<Tensor> {
        Ok(xs.clamp(f64::from(-128 - self.zero_point), f64::from(127 - self.zero_point))?)
    }

    /// Rounds to the nearest integer, ties to even, and cuts to what eight bits hold.
    fn round(self, xs: &Tensor) -> Result<Tensor> {
        Ok(((self.clamp(xs)? + TO_WHOLE)? - TO_WHOLE)?)
    }
}

/// Fails when `bias + sum(weights * xs)` may not be a whole `f32` on the way.
///
/// # Errors
/// [`Error::Unsupported`].
pub(crate) fn check_sums(weights: impl Iterator<Item = i8>, bias: i32, from: Scale) -> Result<()> {
    let weights: i64 = weights.map(|weight| i64::from(weight).abs()).sum();
    let sum = i64::from(bias).abs() + weights * from.max_magnitude();
    if sum > MAX_EXACT {
        return Err(Error::Unsupported { what: "8-bit convolution with sums up to", value: sum.to_string() });
    }
    Ok(())
}

/// Real numbers to integers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quantize {
    pub(crate) to: Scale,
}

/// Integers to real numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dequantize {
    pub(crate) from: Scale,
}

/// Sums of products to integers.
#[derive(Clone, Debug)]
pub(crate) struct Requantize {
    /// Steps of the result per unit of a sum: `[channels]`, or `[1]` for all.
    factors: Tensor,
    to: Scale,
}

impl Requantize {
    /// For products of inputs with `from` and weights with `weight_scales`, `[channels]` or `[1]`.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub(crate) fn new(
        from: Scale,
        weight_scales: &[f32],
        to: Scale,
        device: &candle_core::Device,
    ) -> Result<Self> {
        let factors: Vec<f32> = weight_scales.iter().map(|scale| from.scale * scale / to.scale).collect();
        Ok(Self { factors: Tensor::new(factors, device)?, to })
    }
}

/// Leaky ReLU of integers: 8-bit fixed-point factors, halves rounded up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeakyRelu8 {
    positive: f32,
    negative: f32,
    to: Scale,
}

impl LeakyRelu8 {
    const ONE: f32 = 256.0;

    /// Leaky ReLU that also changes the scale.
    pub(crate) fn new(slope: f32, from: Scale, to: Scale) -> Self {
        let factor = from.scale / to.scale;
        let [positive, negative] = [factor, factor * slope].map(|f| (f * Self::ONE).round_ties_even());
        Self { positive, negative, to }
    }

    fn apply(self, xs: &Tensor) -> Result<Tensor> {
        let positive = (xs.maximum(0f32)? * f64::from(self.positive))?;
        let negative = (xs.minimum(0f32)? * f64::from(self.negative))?;
        let scaled = (positive + negative)?.affine(1.0 / f64::from(Self::ONE), 0.5)?;
        self.to.clamp(&scaled.floor()?)
    }
}

/// `inner(x) + x` of integers: 21-bit fixed-point factors, halves rounded up.
///
/// The inner layer must give one step for each step, at once.
#[derive(Debug)]
pub(crate) struct Residual8<L> {
    inner: L,
    from_inner: Factor,
    from_input: Factor,
    /// Binary places of the factors beyond the low part.
    places: i32,
    to: Scale,
}

/// `high * 2^10 + low`, so that the product of either part with an eight-bit number is a whole `f32`.
#[derive(Clone, Copy, Debug)]
struct Factor {
    high: f64,
    low: f64,
}

impl Factor {
    const LOW_PLACES: i32 = 10;
    const LOW_UNITS: f64 = (1 << Self::LOW_PLACES) as f64;

    fn new(fixed: f64) -> Self {
        let high = (fixed / Self::LOW_UNITS).floor();
        Self { high, low: fixed - high * Self::LOW_UNITS }
    }
}

impl<L> Residual8<L> {
    /// Adds the outputs of `inner`, of scale `inner_scale`, to its inputs, of scale `from`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the scales differ so much that fixed point does not hold them.
    pub(crate) fn new(inner: L, inner_scale: Scale, from: Scale, to: Scale) -> Result<Self> {
        let factors = [inner_scale, from].map(|scale| scale.scale / to.scale);
        let largest = factors[0].max(factors[1]);
        // The exponent of a normal number; the scales are positive.
        let exponent = (largest.to_bits() >> 23) as i32 - 127;
        let shift = 20 - exponent;
        if !(13..=30).contains(&shift) {
            return Err(Error::Unsupported { what: "ratio of scales in a sum", value: largest.to_string() });
        }
        let fixed =
            |factor: f32| Factor::new((f64::from(factor) * f64::from(shift).exp2()).round_ties_even());
        let places = shift - Factor::LOW_PLACES;
        Ok(Self { inner, from_inner: fixed(factors[0]), from_input: fixed(factors[1]), places, to })
    }

    fn add(&self, ys: &Tensor, xs: &Tensor) -> Result<Tensor> {
        let high = ((ys * self.from_inner.high)? + (xs * self.from_input.high)?)?;
        let low = ((ys * self.from_inner.low)? + (xs * self.from_input.low)?)?;
        let carry = (low / Factor::LOW_UNITS)?.floor()?;
        let unit = f64::from(self.places).exp2();
        self.to.clamp(&(high + carry)?.affine(1.0 / unit, 0.5)?.floor()?)
    }
}

impl<L: Layer> Layer for Residual8<L> {
    type State = L::State;

    fn init(&self) -> Self::State {
        self.inner.init()
    }

    fn step(&self, state: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        let end = chunk.end;
        let xs = chunk.steps.clone();
        let ys = self.inner.step(state, chunk)?.steps;
        let steps = match (ys, xs) {
            (Some(ys), Some(xs)) => {
                let xs = xs.into_tensor()?;
                Some(ys.map_tensor(|ys| self.add(&ys, &xs))?)
            }
            _ => None,
        };
        Ok(Chunk { steps, end })
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        self.inner.last_input(output_idx)
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        self.inner.list_work(input, list)
    }
}

/// Transposed convolution of integers whose result is rounded to eight bits once per frame.
///
/// The outputs of one frame are summed and rounded together. What lies beyond its end is added, as a
/// real number, to the outputs of the next. So, alone among the layers, this one gives other numbers
/// when the stream begins in the middle of a frame.
#[derive(Debug)]
pub(crate) struct ConvTranspose8 {
    /// Convolves a frame as if it were a clip.
    frame: (ConvTranspose1d, Requantize, Dequantize),
    /// Steps in and out of one frame, and steps beyond its end.
    n_in: usize,
    n_out: usize,
    n_beyond: usize,
    /// In every sum twice, and so taken from what lies beyond: `[channels]`.
    bias: Tensor,
}

impl ConvTranspose8 {
    /// Takes a convolution of stride `n_out / n_in` that is not trimmed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when a frame reaches beyond the next.
    pub(crate) fn new(
        frame: (ConvTranspose1d, Requantize, Dequantize),
        (n_in, n_out, n_beyond): (usize, usize, usize),
        bias: Tensor,
    ) -> Result<Self> {
        if n_beyond > n_out {
            let value = format!("of {n_out} steps with {n_beyond} beyond");
            return Err(Error::Unsupported { what: "frame of a transposed convolution", value });
        }
        Ok(Self { frame, n_in, n_out, n_beyond, bias })
    }

    /// # Shapes
    /// `xs` `[batch, n_frames * n_in, c_in]`, result `[batch, n_frames * n_out, c_out]`.
    fn frames(&self, beyond: &mut Option<Tensor>, xs: &Tensor) -> Result<Tensor> {
        let (batch, n_steps, c_in) = xs.dims3()?;
        let n_frames = n_steps / self.n_in;
        let xs = xs.contiguous()?.reshape((batch * n_frames, self.n_in, c_in))?;
        let ys = self.frame.forward(&xs)?.ok_or_else(|| Error::Shape {
            name: "outputs of a frame".into(),
            expected: vec![self.n_out + self.n_beyond],
            actual: vec![0],
        })?;
        let c_out = ys.dim(2)?;
        let ys = ys.reshape((batch, n_frames, self.n_out + self.n_beyond, c_out))?;

        let ends = ys.narrow(2, self.n_out, self.n_beyond)?.broadcast_sub(&self.bias)?;
        let before = match beyond.take() {
            Some(before) => before,
            None => ends.narrow(1, 0, 1)?.zeros_like()?,
        };
        *beyond = Some(ends.narrow(1, n_frames - 1, 1)?.force_contiguous()?);
        let added = Tensor::cat(&[&before, &ends.narrow(1, 0, n_frames - 1)?], 1)?;
        let added = added.pad_with_zeros(2, 0, self.n_out - self.n_beyond)?;
        let ys = (ys.narrow(2, 0, self.n_out)? + added)?;
        Ok(ys.reshape((batch, n_frames * self.n_out, c_out))?)
    }
}

/// The state of [`ConvTranspose8`].
#[derive(Debug, Default)]
pub(crate) struct ConvTranspose8State {
    /// Steps of an unfinished frame.
    waiting: Option<Steps>,
    /// What the last frame gave beyond its end: `[batch, 1, n_beyond, channels]`.
    beyond: Option<Tensor>,
}

impl Layer for ConvTranspose8 {
    type State = ConvTranspose8State;

    fn init(&self) -> Self::State {
        Self::State::default()
    }

    /// Takes the next steps, see [`Layer::step`].
    ///
    /// # Errors
    /// [`Error::Shape`] also when the stream ends inside a frame.
    fn step(&self, state: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        let end = chunk.end;
        let mut steps = None;
        if let Some(xs) = Steps::join(&mut [state.waiting.take(), chunk.steps])? {
            let n_steps = xs.n_steps()?;
            let n_whole = n_steps - n_steps % self.n_in;
            if n_whole > 0 {
                let frames = |xs: Tensor| self.frames(&mut state.beyond, &xs);
                steps = Some(xs.narrow(0, n_whole)?.map_tensor(frames)?);
            }
            if n_whole < n_steps {
                state.waiting = Some(xs.keep(n_whole, n_steps - n_whole)?);
            }
        }
        if end {
            if let Some(waiting) = &state.waiting {
                let name = "steps of the last frame".into();
                return Err(Error::Shape {
                    name,
                    expected: vec![self.n_in],
                    actual: vec![waiting.n_steps()?],
                });
            }
            *state = self.init();
        }
        Ok(Chunk { steps, end })
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        let frame_idx = output_idx / self.n_out as u64;
        Some((frame_idx + 1).saturating_mul(self.n_in as u64) - 1)
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        self.frame.list_work(input, list)
    }
}

macro_rules! impl_pointwise_layer {
    ($($layer:ident: |$this:ident, $xs:ident| $body:expr;)+) => {
        $(impl Layer for $layer {
            type State = ();

            fn init(&self) {}

            fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
                let $this = self;
                let apply = |$xs: Tensor| -> Result<Tensor> { $body };
                // Tensors from the first of these layers on: nearly all of them are.
                let steps = chunk.steps.map(|xs| Ok::<Steps, Error>(apply(xs.into_tensor()?)?.into()));
                Ok(Chunk { steps: steps.transpose()?, end: chunk.end })
            }
        })+
    };
}

impl_pointwise_layer! {
    // The scale is turned over in `f32` first, as in the reference.
    Quantize: |this, xs| this.to.round(&(xs * f64::from(1.0 / this.to.scale))?);
    Dequantize: |this, xs| Ok((xs * f64::from(this.from.scale))?);
    Requantize: |this, xs| this.to.round(&xs.broadcast_mul(&this.factors)?);
    LeakyRelu8: |this, xs| this.apply(&xs);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Identity;
    use candle_core::Device;

    fn scale(scale: f32, zero_point: i32) -> Scale {
        Scale::new(scale, zero_point).unwrap()
    }

    fn run<L: Layer>(layer: &L, xs: &[f32]) -> Vec<f32> {
        let xs = Tensor::new(xs, &Device::Cpu).unwrap().reshape((1, (), 1)).unwrap();
        layer.forward(&xs).unwrap().unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// All integers less the zero point.
    fn all(scale: Scale) -> Vec<f32> {
        (-128..=127).map(|q: i32| (q - scale.zero_point) as f32).collect()
    }

    fn cut(x: i64, to: Scale) -> f32 {
        let zero_point = i64::from(to.zero_point);
        ((x + zero_point).clamp(-128, 127) - zero_point) as f32
    }

    #[test]
    fn rounds_halves_to_even_and_saturates() {
        let to = scale(0.5, 3);
        let xs = [0.25, 0.75, -0.25, -0.75, -1.25, 0.1, 61.9, 62.4, -65.5, -1e30, f32::INFINITY];
        let expected = [0.0, 2.0, 0.0, -2.0, -2.0, 0.0, 124.0, 124.0, -131.0, -131.0, 124.0];
        assert_eq!(run(&Quantize { to }, &xs), expected);
        assert_eq!(run(&Dequantize { from: to }, &[-131.0, 124.0]), [-65.5, 62.0]);
    }

    #[test]
    fn integers_survive_the_way_through_real_numbers() {
        for step in [0.1, 0.2634921, 17.6297, 3e-5] {
            let both = scale(step, -7);
            let net = (Dequantize { from: both }, Quantize { to: both });
            assert_eq!(run(&net, &all(both)), all(both), "{step}");
        }
    }

    #[test]
    fn requantizes_each_channel_by_its_own_factor() {
        let (from, to) = (scale(0.02, 5), scale(0.7, -9));
        let layer = Requantize::new(from, &[0.01, 0.03], to, &Device::Cpu).unwrap();
        let sums = Tensor::new(&[[[-400_000.0f32, 123_456.0], [8_765.0, -99.0]]], &Device::Cpu).unwrap();
        let ys = layer.forward(&sums).unwrap().unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(ys, [[[-114.0, 106.0], [3.0, 0.0]]].map(|batch| batch.map(Vec::from).to_vec()));
    }

    #[test]
    fn leaky_relu_is_the_fixed_point_formula() {
        for (from, to) in [(scale(17.6, 67), scale(6.39, -8)), (scale(0.24, 16), scale(0.138, -56))] {
            let factor = from.scale / to.scale;
            let factors = [factor, factor * 0.3].map(|f| i64::from((f * 256.0).round_ties_even() as i32));
            let expected = all(from).into_iter().map(|x| {
                let fixed = x as i64 * if x < 0.0 { factors[1] } else { factors[0] };
                cut((fixed + 128) >> 8, to)
            });
            assert_eq!(run(&LeakyRelu8::new(0.3, from, to), &all(from)), expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn sums_are_the_fixed_point_formula_for_every_pair() {
        let scales = [(4.53, 12.7165, 9.48763), (0.20612, 0.230294, 0.290639), (3.0, 0.001, 0.9)];
        for (inner, from, to) in scales {
            let [inner, from, to] = [(inner, 35), (from, 23), (to, -128)].map(|(s, z)| scale(s, z));
            let layer = Residual8::new(Identity, inner, from, to).unwrap();
            let factors = [inner, from].map(|s| s.scale / to.scale);
            let shift = 20 - factors[0].max(factors[1]).log2().floor() as i32;
            let fixed = factors.map(|f| (f64::from(f) * f64::from(shift).exp2()).round_ties_even() as i64);
            for x in all(from) {
                let ys = all(inner);
                let xs = vec![x; ys.len()];
                let tensor = |xs: &[f32]| Tensor::new(xs, &Device::Cpu).unwrap();
                let sums = layer.add(&tensor(&ys), &tensor(&xs)).unwrap().to_vec1::<f32>().unwrap();
                for (y, sum) in ys.into_iter().zip(sums) {
                    let exact = y as i64 * fixed[0] + x as i64 * fixed[1];
                    assert_eq!(sum, cut((exact + (1 << (shift - 1))) >> shift, to), "{y} + {x}");
                }
            }
        }
    }

    #[test]
    fn refuses_what_it_could_not_hold() {
        assert!(Scale::new(1.0, 128).is_err());
        assert!(check_sums([127; 500].into_iter(), 0, scale(1.0, 0)).is_ok());
        assert!(check_sums([127; 1100].into_iter(), 0, scale(1.0, 0)).is_err());
        assert!(check_sums([0].into_iter(), i32::MIN, scale(1.0, 0)).is_err());
        assert!(Residual8::new(Identity, scale(1e5, 0), scale(1.0, 0), scale(1e-3, 0)).is_err());
    }
}
