//! Depthwise convolution: every channel has its own filter.

use crate::error::{Error, Result, count_rows, expect_len, product};
use crate::pool;
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch, level};

mod gradient;

/// Neighbouring outputs that are made at a time: so many chains hide the latency of a multiply-add, and share
/// what is loaded of the weights.
const STEPS: usize = 8;

pub use self::gradient::{depthwise_input_gradient, depthwise_weight_gradient};

/// The steps that an output reads: `t * stride + j * dilation` for j below `kernel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depthwise {
    /// Steps of input per output.
    pub kernel: usize,
    /// Steps between the windows of neighbouring outputs.
    pub stride: usize,
    /// Steps between the inputs of one window.
    pub dilation: usize,
}

impl Depthwise {
    /// Steps of output that `n_in` steps of input give, without padding.
    pub fn n_out(&self, n_in: usize) -> usize {
        let span = self.kernel.saturating_sub(1).saturating_mul(self.dilation).saturating_add(1);
        if self.stride == 0 || n_in < span { 0 } else { (n_in - span) / self.stride + 1 }
    }
}

/// Convolves each channel of time-major data with its own filter.
///
/// `out[t, c] = bias[c] + Σ_j weights[j, c] * xs[t * stride + j * dilation, c]`, as one chain of fused
/// multiply-adds with j ascending.
///
/// # Shapes
/// `xs`: `[n_in, channels]`, `weights`: `[kernel, channels]`, `bias`: `[channels]`,
/// `out`: `[conv.n_out(n_in), channels]`.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Uneven`] where the sizes do not agree, [`Error::Zero`] for a kernel, stride or
/// number of channels of zero.
pub fn depthwise(
    xs: &[f32],
    channels: usize,
    conv: Depthwise,
    weights: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    let n_in = count_rows("channels", xs.len(), channels)?;
    for (what, value) in [("kernel", conv.kernel), ("stride", conv.stride)] {
        if value == 0 {
            return Err(Error::Zero { what });
        }
    }
    expect_len("weights", product("kernel * channels", conv.kernel, channels)?, weights.len())?;
    if let Some(bias) = bias {
        expect_len("bias", channels, bias.len())?;
    }
    expect_len("out", conv.n_out(n_in) * channels, out.len())?;
    let level = level();
    let n_threads = pool::threads_for(out.len().saturating_mul(conv.kernel), 8 * pool::GRAIN);
    pool::for_row_blocks(out, channels, 1, n_threads, |first, out| {
        let xs = &xs[first * conv.stride * channels..];
        dispatch(level, Windows { xs, channels, conv, weights, bias, out });
    });
    Ok(())
}

struct Windows<'a> {
    /// Holds the windows of all rows of `out`.
    xs: &'a [f32],
    channels: usize,
    conv: Depthwise,
    weights: &'a [f32],
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Windows<'_> {
    /// Makes the first `n_whole` channels, whole vectors, of `T` outputs from `step` on.
    #[inline(always)]
    #[expect(unsafe_code, reason = "no checks of bounds in the innermost loop")]
    fn steps<S: Simd, const T: usize>(&mut self, s: S, step: usize, n_whole: usize) {
        let (channels, conv) = (self.channels, self.conv);
        let (pitch, stride) = (conv.dilation * channels, conv.stride * channels);
        let xs = &self.xs[step * stride..];
        let out = &mut self.out[step * channels..(step + T) * channels];
        assert!(xs.len() >= (T - 1) * stride + (conv.kernel - 1) * pitch + channels);
        assert!(self.weights.len() == conv.kernel * channels && n_whole <= channels);
        for c in (0..n_whole).step_by(S::LANES) {
            let start = self.bias.map_or(s.splat(0.0), |bias| s.load(&bias[c..]));
            let mut acc = [start; T];
            // SAFETY: the last vector that is read starts at channel `n_whole - LANES` of the last tap of the
            // last window, which lies within `xs` as was checked; the vectors of the weights and of the output
            // are within their rows of `channels`.
            unsafe {
                for j in 0..conv.kernel {
                    let weight = s.load_ptr(self.weights.as_ptr().add(j * channels + c));
                    let xs = xs.as_ptr().add(j * pitch + c);
                    for (t, acc) in acc.iter_mut().enumerate() {
                        *acc = s.fma(weight, s.load_ptr(xs.add(t * stride)), *acc);
                    }
                }
                for (t, acc) in acc.into_iter().enumerate() {
                    s.store_ptr(acc, out.as_mut_ptr().add(t * channels + c));
                }
            }
        }
    }
}

impl Kernel for Windows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let n_whole = self.channels - self.channels % S::LANES;
        let n_steps = self.out.len() / self.channels;
        let mut step = 0;
        while n_steps - step >= STEPS {
            self.steps::<S, STEPS>(s, step, n_whole);
            step += STEPS;
        }
        while step < n_steps {
            self.steps::<S, 1>(s, step, n_whole);
            step += 1;
        }
        let Self { xs, channels, conv, weights, bias, out } = self;
        let (c, left) = (n_whole, channels - n_whole);
        if left > 0 {
            for (t, out) in out.chunks_exact_mut(channels).enumerate() {
                let window = &xs[t * conv.stride * channels..];
                let pitch = conv.dilation * channels;
                let part = |xs: &[f32]| {
                    let mut buffer = [0.0; MAX_LANES];
                    buffer[..left].copy_from_slice(&xs[..left]);
                    buffer
                };
                let mut acc = match bias {
                    Some(bias) => s.load(&part(&bias[c..])),
                    None => s.splat(0.0),
                };
                for (j, weights) in weights.chunks_exact(channels).enumerate() {
                    let (w, x) = (part(&weights[c..]), part(&window[j * pitch + c..]));
                    acc = s.fma(s.load(&w), s.load(&x), acc);
                }
                let mut buffer = [0.0; MAX_LANES];
                s.store(acc, &mut buffer);
                out[c..].copy_from_slice(&buffer[..left]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;
    use crate::testing::{bits, noise, same_everywhere};

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        #[test]
        fn is_one_chain_for_any_cut_level_and_number_of_threads(
            seed in 0..1000_u64,
            channels in 1..50_usize,
            kernel in 1..8_usize,
            stride in 1..4_usize,
            dilation in 1..4_usize,
            long: bool,
            cut in 0.0..1.0,
        ) {
            let conv = Depthwise { kernel, stride, dilation };
            let n_out = if long { 16 * pool::GRAIN / (channels * kernel) + 9 } else { 9 };
            let n_in = (n_out - 1) * stride + (kernel - 1) * dilation + 1;
            assert_eq!(conv.n_out(n_in), n_out);
            let (xs, weights) = (noise(seed, n_in * channels), noise(seed + 1, kernel * channels));
            let bias = noise(seed + 2, channels);
            let bias = (seed % 2 == 0).then_some(&bias[..]);
            let run = |xs: &[f32], n_out: usize| {
                let mut out = vec![0.0; n_out * channels];
                depthwise(xs, channels, conv, &weights, bias, &mut out).unwrap();
                out
            };
            let want: Vec<f32> = (0..n_out * channels)
                .map(|i| {
                    let (t, c) = (i / channels, i % channels);
                    (0..kernel).fold(bias.map_or(0.0, |bias| bias[c]), |acc, j| {
                        weights[j * channels + c]
                            .mul_add(xs[(t * stride + j * dilation) * channels + c], acc)
                    })
                })
                .collect();
            assert_eq!(bits(&want), bits(&same_everywhere(|| run(&xs, n_out))));
            let cut = 1 + (cut * (n_out - 1) as f64) as usize;
            let last_in = (cut - 1) * stride + (kernel - 1) * dilation + 1;
            let first = run(&xs[..last_in * channels], cut);
            let last = if cut < n_out { run(&xs[cut * stride * channels..], n_out - cut) } else { vec![] };
            assert_eq!(bits(&want), bits(&[first, last].concat()));
        }
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        let conv = Depthwise { kernel: 2, stride: 1, dilation: 1 };
        let run = |xs: &[f32], conv, weights: &[f32], bias: &[f32], n_out: usize| {
            depthwise(xs, 2, conv, weights, Some(bias), &mut vec![0.0; n_out])
        };
        run(&[0.0; 6], conv, &[0.0; 4], &[0.0; 2], 4).unwrap();
        run(&[0.0; 2], conv, &[0.0; 4], &[0.0; 2], 0).unwrap();
        assert!(run(&[0.0; 5], conv, &[0.0; 4], &[0.0; 2], 4).is_err());
        assert!(run(&[0.0; 6], conv, &[0.0; 3], &[0.0; 2], 4).is_err());
        assert!(run(&[0.0; 6], conv, &[0.0; 4], &[0.0; 3], 4).is_err());
        assert!(run(&[0.0; 6], conv, &[0.0; 4], &[0.0; 2], 5).is_err());
        assert!(run(&[0.0; 6], Depthwise { stride: 0, ..conv }, &[0.0; 4], &[0.0; 2], 4).is_err());
    }
}
