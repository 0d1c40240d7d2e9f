//! An activation at twice the rate, so that the overtones that it makes do not fold back.

use super::steps::Queue;
use super::{Activation, Chunk, Conv1d, ConvSpec, ConvState, Fill, Flow, Layer, Padding, Work};
use crate::{Error, Result};
use candle_core::Tensor;

/// Steps in between for each step of the input.
const RATE: usize = 2;

/// An activation between a doubling and a halving of the rate, each through a low-pass filter.
///
/// Where a clip starts and ends its first and last step go on, at either rate.
///
/// # Source
/// Lee et al. 2022, "BigVGAN", arXiv 2206.04658, section 3.2; junjun3518/alias-free-torch, `UpSample1d` and
/// `DownSample1d` with the ratio 2.
#[derive(Debug)]
pub struct Oversampled {
    up: Doubled,
    activation: Activation,
    down: Conv1d,
}

impl Oversampled {
    /// Takes the filters of the way up and of the way down, each the same for all channels.
    ///
    /// # Shapes
    /// `up`: `[kernel]`, a multiple of four; `down`: `[kernel]`, even.
    ///
    /// # Errors
    /// [`Error::Shape`] for other kernels, and what the tensor library fails with.
    pub fn new(activation: Activation, up: &Tensor, down: &Tensor, channels: usize) -> Result<Self> {
        let kernel = even_kernel("filter of the way down", down, RATE)?;
        let padding =
            Padding { left: kernel / 2 - 1, right: kernel / 2, align: false, fill: Fill::Replicate };
        let down = depthwise(down, channels, RATE, padding)?;
        Ok(Self { up: Doubled::new(up, channels)?, activation, down })
    }
}

impl Layer for Oversampled {
    type State = (DoubledState, ConvState);

    fn init(&self) -> Self::State {
        (self.up.init(), self.down.init())
    }

    fn step(&self, (up, down): &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        let chunk = self.up.step(up, chunk)?;
        let chunk = self.activation.step(&mut (), chunk)?;
        self.down.step(down, chunk)
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        self.up.last_input(self.down.last_input(output_idx)?)
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        let doubled = self.up.list_work(input, list);
        let doubled = self.activation.list_work(doubled, list);
        self.down.list_work(doubled, list)
    }
}

/// Two steps for each: the first is a sum over the steps before it and half a kernel on, less one, the other
/// over those one step later.
///
/// A transposed convolution, taken apart into the convolutions that make its even and its odd steps, so that
/// an even step need not wait for its odd one.
#[derive(Debug)]
struct Doubled {
    even: Conv1d,
    odd: Conv1d,
}

/// The state of the doubling in [`Oversampled`].
#[derive(Debug, Default)]
pub struct DoubledState {
    even: ConvState,
    odd: ConvState,
    evens: Queue,
    odds: Queue,
    /// Whether the last step given was an even one.
    is_odd_next: bool,
}

impl Doubled {
    fn new(filter: &Tensor, channels: usize) -> Result<Self> {
        let kernel = even_kernel("filter of the way up", filter, 2 * RATE)?;
        let taps = filter.to_vec1::<f32>()?;
        // Of the zeros between the steps a sum meets none, so what it adds up to is half.
        let taps = |last: usize| -> Vec<f32> {
            taps[..=last].iter().rev().step_by(RATE).map(|tap| tap * RATE as f32).collect()
        };
        let phase = |last: usize, left: usize, right: usize| {
            let taps = Tensor::from_vec(taps(last), kernel / RATE, filter.device())?;
            depthwise(&taps, channels, 1, Padding { left, right, align: false, fill: Fill::Replicate })
        };
        let near = kernel / 4;
        Ok(Self { even: phase(kernel - 1, near, near - 1)?, odd: phase(kernel - 2, near - 1, near)? })
    }
}

impl Layer for Doubled {
    type State = DoubledState;

    fn init(&self) -> DoubledState {
        DoubledState::default()
    }

    fn step(&self, state: &mut DoubledState, chunk: Chunk) -> Result<Chunk> {
        let end = chunk.end;
        if let Some(steps) = self.even.step(&mut state.even, chunk.clone())?.steps {
            state.evens.push(steps)?;
        }
        if let Some(steps) = self.odd.step(&mut state.odd, chunk)?.steps {
            state.odds.push(steps)?;
        }
        let mut outputs = Queue::default();
        if state.is_odd_next
            && let Some(odd) = state.odds.take(1)?
        {
            outputs.push(odd)?;
            state.is_odd_next = false;
        }
        if !state.is_odd_next {
            let n_pairs = state.evens.len().min(state.odds.len());
            if let (Some(evens), Some(odds)) = (state.evens.take(n_pairs)?, state.odds.take(n_pairs)?) {
                let (batch, _, channels) = evens.dims3()?;
                let odds = odds.into_tensor()?;
                outputs.push(evens.map_tensor(|evens| {
                    let pairs = Tensor::stack(&[evens, odds], 2)?;
                    Ok(pairs.reshape((batch, RATE * n_pairs, channels))?)
                })?)?;
            }
            if let Some(even) = state.evens.take(1)? {
                outputs.push(even)?;
                state.is_odd_next = true;
            }
        }
        if end {
            *state = self.init();
        }
        Ok(Chunk { steps: outputs.take(usize::MAX)?, end })
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        let phase = if output_idx.is_multiple_of(RATE as u64) { &self.even } else { &self.odd };
        phase.last_input(output_idx / RATE as u64)
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        self.even.list_work(input, list);
        let phase = self.odd.list_work(input, list);
        Flow { rate: RATE as f64 * phase.rate, ..phase }
    }
}

fn even_kernel(name: &str, filter: &Tensor, unit: usize) -> Result<usize> {
    let kernel = filter.dims1()?;
    if kernel == 0 || !kernel.is_multiple_of(unit) {
        let expected = vec![kernel.next_multiple_of(unit).max(unit)];
        return Err(Error::Shape { name: name.into(), expected, actual: vec![kernel] });
    }
    Ok(kernel)
}

/// The same taps for every channel.
fn depthwise(taps: &Tensor, channels: usize, stride: usize, padding: Padding) -> Result<Conv1d> {
    let kernel = taps.dims1()?;
    let weight = taps.reshape((1, 1, kernel))?.broadcast_as((channels, 1, kernel))?.contiguous()?;
    Conv1d::new(&weight, None, ConvSpec { stride, groups: channels, padding, ..ConvSpec::default() })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_threads_agree, assert_trains};
    use super::*;
    use crate::ops::testing::{Rng, values};
    use proptest::prelude::*;

    /// One channel, from the description of alias-free-torch: zeros between the steps of the extended clip,
    /// the filter over them, the extension off again; then the filter over every other step.
    fn reference(xs: &[f64], up: &[f64], down: &[f64], activation: impl Fn(f64) -> f64) -> Vec<f64> {
        let extend = |xs: &[f64], left: usize, right: usize| {
            let last = xs[xs.len() - 1];
            [vec![xs[0]; left], xs.to_vec(), vec![last; right]].concat()
        };
        let kernel = up.len();
        let more = kernel / 2 - 1;
        let extended = extend(xs, more, more);
        let mut full = vec![0.0; (extended.len() - 1) * 2 + kernel];
        for (t, x) in extended.iter().enumerate() {
            for (j, tap) in up.iter().enumerate() {
                full[2 * t + j] += 2.0 * tap * x;
            }
        }
        let left = more * 2 + (kernel - 2) / 2;
        let doubled: Vec<f64> = full[left..left + 2 * xs.len()].iter().map(|&x| activation(x)).collect();
        let kernel = down.len();
        let extended = extend(&doubled, kernel / 2 - 1, kernel / 2);
        let at = |t: usize| down.iter().enumerate().map(|(j, tap)| tap * extended[2 * t + j]).sum();
        (0..xs.len()).map(at).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn matches_the_reference_and_streams(
            (quarter, half) in (1usize..5, 1usize..9),
            n_steps in 0usize..40,
            channels in 1usize..5,
            seed in any::<u64>(),
        ) {
            let mut rng = Rng::new(seed);
            let (up, down) = (rng.integers(&[4 * quarter]), rng.integers(&[2 * half]));
            let relu = Activation::Unary(codec_kernels::Unary::Relu);
            let layer = Oversampled::new(relu, &up, &down, channels).unwrap();
            let xs = rng.integers(&[2, n_steps, channels]);
            if n_steps == 0 {
                prop_assert!(layer.step(&mut layer.init(), Chunk::end()).unwrap().steps.is_none());
                return Ok(());
            }
            let ys = values(&layer.forward(&xs).unwrap().unwrap());
            for (item, ys) in values(&xs).chunks_exact(n_steps * channels).zip(ys.chunks_exact(n_steps * channels)) {
                for c in 0..channels {
                    let channel = |xs: &[f64]| xs.iter().skip(c).step_by(channels).copied().collect::<Vec<_>>();
                    let want = reference(&channel(item), &values(&up), &values(&down), |x| x.max(0.0));
                    prop_assert_eq!(channel(ys), want);
                }
            }

            // Bits, on values where the order of a sum would show.
            let (up, down) = (rng.tensor(up.dims()), rng.tensor(down.dims()));
            let snake = Activation::snake(&(rng.tensor(&[channels]) + 1.5).unwrap()).unwrap();
            let layer = Oversampled::new(snake, &up, &down, channels).unwrap();
            assert_streams(&layer, &rng.tensor(xs.dims()), &mut rng);
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let mut rng = Rng::new(1);
        let (up, down) = (rng.tensor(&[12]), rng.tensor(&[12]));
        let layer = Oversampled::new(Activation::elu(1.0), &up, &down, 37).unwrap();
        assert_threads_agree(&layer, &rng.tensor(&[2, 900, 37]));
    }

    #[test]
    fn trains() {
        let mut rng = Rng::new(2);
        let (up, down) = (rng.tensor(&[4]), rng.tensor(&[6]));
        let (xs, alpha) = (rng.tensor(&[2, 7, 3]), (rng.tensor(&[3]) + 1.5).unwrap());
        assert_trains(&mut rng, xs, &[alpha], |weights| {
            Oversampled::new(Activation::snake(&weights[0]).unwrap(), &up, &down, 3).unwrap()
        });
    }

    #[test]
    fn odd_filters_are_refused() {
        let mut rng = Rng::new(3);
        for (up, down) in [(0, 2), (6, 2), (3, 2), (4, 0), (4, 3)] {
            let (up, down) = (rng.tensor(&[up]), rng.tensor(&[down]));
            let error = Oversampled::new(Activation::elu(1.0), &up, &down, 1).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
    }
}
