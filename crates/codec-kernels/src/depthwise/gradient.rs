//! What a depthwise convolution passes back.

use super::{Depthwise, depthwise};
use crate::error::{Result, count_rows, expect_len, product};
use crate::simd::{Kernel, Simd, dispatch, level};
use rayon::prelude::*;

/// The gradient of the input: every output hands its share back to the steps of its window.
///
/// # Shapes
/// `grads`: `[conv.n_out(n_in), channels]`, `weights`: `[kernel, channels]`, `out`: `[n_in, channels]`.
///
/// # Errors
/// As [`depthwise`].
pub fn depthwise_input_gradient(
    grads: &[f32],
    channels: usize,
    conv: Depthwise,
    weights: &[f32],
    out: &mut [f32],
) -> Result<()> {
    let n_in = count_rows("channels", out.len(), channels)?;
    expect_len("weights", product("kernel * channels", conv.kernel, channels)?, weights.len())?;
    expect_len("grads", product("n_out * channels", conv.n_out(n_in), channels)?, grads.len())?;
    out.fill(0.0);
    if grads.is_empty() {
        return Ok(());
    }
    // With zeros between the steps of a stride and around it all, it is a convolution with the taps in
    // reverse.
    let around = (conv.kernel - 1) * conv.dilation;
    let n_spread = (grads.len() / channels - 1) * conv.stride + 1;
    let mut spread = vec![0.0; (n_spread + 2 * around) * channels];
    let steps = spread[around * channels..].chunks_mut(conv.stride * channels);
    for (step, grad) in steps.zip(grads.chunks_exact(channels)) {
        step[..channels].copy_from_slice(grad);
    }
    let reversed: Vec<f32> = weights.chunks_exact(channels).rev().flatten().copied().collect();
    let n_reached = n_spread + around;
    let conv = Depthwise { stride: 1, ..conv };
    depthwise(&spread, channels, conv, &reversed, None, &mut out[..n_reached * channels])
}

/// The gradient of the weights, added to `out` in the order of the steps.
///
/// # Shapes
/// `xs`: `[n_in, channels]`, `grads`: `[conv.n_out(n_in), channels]`, `out`: `[kernel, channels]`.
///
/// # Errors
/// As [`depthwise`].
pub fn depthwise_weight_gradient(
    xs: &[f32],
    channels: usize,
    conv: Depthwise,
    grads: &[f32],
    out: &mut [f32],
) -> Result<()> {
    /// Steps of one task; fixed, so that sums do not depend on the number of threads.
    const TASK_STEPS: usize = 512;
    let n_in = count_rows("channels", xs.len(), channels)?;
    expect_len("out", product("kernel * channels", conv.kernel, channels)?, out.len())?;
    expect_len("grads", product("n_out * channels", conv.n_out(n_in), channels)?, grads.len())?;
    let level = level();
    let tasks = grads.par_chunks(TASK_STEPS * channels).enumerate();
    let parts: Vec<Vec<f32>> = tasks
        .map(|(task_idx, grads)| {
            let xs = &xs[task_idx * TASK_STEPS * conv.stride * channels..];
            let mut out = vec![0.0; conv.kernel * channels];
            dispatch(level, Windows { xs, channels, conv, grads, out: &mut out });
            out
        })
        .collect();
    for part in parts {
        out.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    Ok(())
}

struct Windows<'a> {
    /// Holds the windows of all rows of `grads`.
    xs: &'a [f32],
    channels: usize,
    conv: Depthwise,
    grads: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Windows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { xs, channels, conv, grads, out } = self;
        for (t, grads) in grads.chunks_exact(channels).enumerate() {
            for (j, out) in out.chunks_exact_mut(channels).enumerate() {
                let xs = &xs[(t * conv.stride + j * conv.dilation) * channels..][..channels];
                for ((sum, x), grad) in out.iter_mut().zip(xs).zip(grads) {
                    *sum += x * grad;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{noise, same_everywhere};

    #[test]
    fn are_the_transposes_of_the_convolution() {
        for (kernel, stride, dilation, n_in, channels) in
            [(7, 1, 1, 1300, 5), (3, 2, 1, 40, 17), (4, 3, 2, 61, 3), (1, 1, 1, 9, 2), (5, 1, 3, 30, 16)]
        {
            let conv = Depthwise { kernel, stride, dilation };
            let n_out = conv.n_out(n_in);
            let (xs, weights) = (noise(1, n_in * channels), noise(2, kernel * channels));
            let grads = noise(3, n_out * channels);
            let mut ys = vec![0.0; n_out * channels];
            depthwise(&xs, channels, conv, &weights, None, &mut ys).unwrap();
            let for_xs = same_everywhere(|| {
                let mut out = vec![1.0; xs.len()];
                depthwise_input_gradient(&grads, channels, conv, &weights, &mut out).unwrap();
                out
            });
            let for_weights = same_everywhere(|| {
                let mut out = vec![0.0; weights.len()];
                depthwise_weight_gradient(&xs, channels, conv, &grads, &mut out).unwrap();
                out
            });
            // The convolution is linear in both: all three products are the same number.
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
            };
            let want = dot(&ys, &grads);
            for got in [dot(&xs, &for_xs), dot(&weights, &for_weights)] {
                assert!((got - want).abs() < 1e-3 * want.abs().max(1.0), "{got} instead of {want}");
            }
            // One element of each, by its definition.
            let share: f32 =
                (0..n_out).map(|t| xs[t * stride * channels + 1] * grads[t * channels + 1]).sum();
            assert!((for_weights[1] - share).abs() < 1e-3);
            assert!((for_xs[1] - weights[1] * grads[1]).abs() < 1e-5);
        }
    }
}
