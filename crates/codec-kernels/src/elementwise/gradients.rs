//! What activations pass back: the gradient of their output times their slope.
//!
//! For training alone, so slopes are good to a few ulp of the largest term, without the care that the
//! functions themselves take.

use super::functions::{Exp, Function, Gelu, Sigmoid, Sin, Tanh, smooth_magnitude};
use super::{Map, Unary};
use crate::error::{Result, count_rows, expect_len};
use crate::pool;
use crate::simd::{MAX_LANES, Simd, dispatch, level};
use rayon::prelude::*;

/// `out = grads * op'(xs)`.
///
/// # Errors
/// [`crate::Error::Shape`] where the lengths differ.
pub fn unary_gradient(op: Unary, xs: &[f32], grads: &[f32], out: &mut [f32]) -> Result<()> {
    expect_len("grads", xs.len(), grads.len())?;
    expect_len("out", xs.len(), out.len())?;
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(out, 1, MAX_LANES, n_threads, |first, out| {
        let range = first..first + out.len();
        let (xs, grads) = (&xs[range.clone()], &grads[range]);
        dispatch(level, Map { f: Slope(op), xs, out });
        out.iter_mut().zip(grads).for_each(|(slope, grad)| *slope *= grad);
    });
    Ok(())
}

/// The gradients of [`super::snake`]: of its input, and of alpha, summed over time in order.
///
/// # Shapes
/// `xs`, `grads`, `for_xs`: `[time, channels]`; `alpha`, `for_alpha`: `[channels]`.
///
/// # Errors
/// [`crate::Error::Shape`] and [`crate::Error::Uneven`] where the sizes do not agree.
pub fn snake_gradient(
    xs: &[f32],
    alpha: &[f32],
    grads: &[f32],
    for_xs: &mut [f32],
    for_alpha: &mut [f32],
) -> Result<()> {
    /// Rows of one task; fixed, so that sums do not depend on the number of threads.
    const TASK_ROWS: usize = 256;
    let channels = alpha.len();
    count_rows("xs", xs.len(), channels)?;
    expect_len("grads", xs.len(), grads.len())?;
    expect_len("for_xs", xs.len(), for_xs.len())?;
    expect_len("for_alpha", channels, for_alpha.len())?;
    let level = level();
    let task_len = TASK_ROWS * channels;
    let tasks = for_xs.par_chunks_mut(task_len).zip(xs.par_chunks(task_len)).zip(grads.par_chunks(task_len));
    let sums: Vec<Vec<f32>> = tasks
        .map(|((for_xs, xs), grads)| {
            let mut angles = vec![0.0; xs.len()];
            let mut sums = vec![0.0; channels];
            for (angles, xs) in angles.chunks_exact_mut(channels).zip(xs.chunks_exact(channels)) {
                for ((angle, x), alpha) in angles.iter_mut().zip(xs).zip(alpha) {
                    *angle = 2.0 * alpha * x;
                }
            }
            // sin(2 a x), and cos(2 a x) as the sine a quarter turn on.
            dispatch(level, Map { f: Sin, xs: &angles, out: for_xs });
            angles.iter_mut().for_each(|angle| *angle += std::f32::consts::FRAC_PI_2);
            super::apply_in_place(level, Unary::Sin, &mut angles);
            let rows = for_xs.chunks_exact_mut(channels).zip(angles.chunks_exact(channels));
            let rows = rows.zip(xs.chunks_exact(channels).zip(grads.chunks_exact(channels)));
            for ((sines, cosines), (xs, grads)) in rows {
                for c in 0..channels {
                    let inverse = 1.0 / (alpha[c] + 1e-9);
                    let square = 0.5 - 0.5 * cosines[c];
                    sums[c] += grads[c] * inverse * (xs[c] * sines[c] - square * inverse);
                    sines[c] = grads[c] * (1.0 + sines[c] * alpha[c] * inverse);
                }
            }
            sums
        })
        .collect();
    for_alpha.fill(0.0);
    for part in sums {
        for_alpha.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    Ok(())
}

/// 2 √(2/π).
const SLOPE: f32 = 1.595_769_2;

/// The slope of a function.
#[derive(Clone, Copy)]
struct Slope(Unary);

impl Function for Slope {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let positive = s.lt(zero, x);
        // y (1 - y), the slope of the logistic function at its value.
        let logistic = |y: S::V| s.fnma(y, y, y);
        match self.0 {
            Unary::Exp => Exp.apply(s, x),
            Unary::Sin => Sin.apply(s, s.add(x, s.splat(std::f32::consts::FRAC_PI_2))),
            Unary::Sigmoid => logistic(Sigmoid.apply(s, x)),
            Unary::Tanh => {
                let y = Tanh.apply(s, x);
                s.fnma(y, y, one)
            }
            Unary::Silu => {
                let y = Sigmoid.apply(s, x);
                s.fma(x, logistic(y), y)
            }
            Unary::Gelu => {
                // The normal distribution at x, and its density times x. Near zero the quotient that gives
                // the distribution is replaced by its tangent.
                let density = Exp.apply(s, s.mul(s.mul(x, x), s.splat(-0.5)));
                let density = s.mul(density, s.splat(0.398_942_3));
                let is_small = s.lt(s.abs(x), s.splat(1e-3));
                let tangent = s.fma(x, s.splat(0.398_942_3), s.splat(0.5));
                let divisor = s.select(is_small, one, x);
                let distribution = s.select(is_small, tangent, s.div(Gelu.apply(s, x), divisor));
                s.fma(x, density, distribution)
            }
            Unary::GeluTanh => {
                // x sigmoid(2 u(x)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
                let square = s.mul(x, x);
                let inner = s.mul(x, s.fma(square, s.splat(0.044_715 * SLOPE), s.splat(SLOPE)));
                let y = Sigmoid.apply(s, inner);
                let steepness = s.fma(square, s.splat(3.0 * 0.044_715 * SLOPE), s.splat(SLOPE));
                s.fma(s.mul(x, logistic(y)), steepness, y)
            }
            Unary::Elu { alpha } => {
                let below = s.mul(Exp.apply(s, s.min(x, zero)), s.splat(alpha));
                s.select(positive, one, below)
            }
            Unary::LeakyRelu { slope } => s.select(positive, one, s.splat(slope)),
            Unary::Relu => s.select(positive, one, zero),
            Unary::SignedRoot { floor } => {
                // With the magnitude m: m^-1/2 - x²/2 m^-5/2.
                let x = s.widen(x);
                let magnitude = smooth_magnitude(s, x, floor);
                let inverse = s.wide_div(s.wide_splat(1.0), magnitude);
                let share = s.wide_mul(s.wide_mul(x, inverse), s.wide_mul(x, inverse));
                let bend = s.wide_fnma(share, s.wide_splat(0.5), s.wide_splat(1.0));
                s.narrow(s.wide_mul(bend, s.wide_sqrt(inverse)))
            }
            Unary::SignedSquare { floor } => {
                // m + x² / m; without a floor nothing bends at zero.
                let x = s.widen(x);
                let magnitude = smooth_magnitude(s, x, floor);
                let is_zero = s.wide_lt(magnitude, s.wide_splat(f64::MIN_POSITIVE));
                let divisor = s.wide_select(is_zero, s.wide_splat(1.0), magnitude);
                s.narrow(s.wide_add(magnitude, s.wide_div(s.wide_mul(x, x), divisor)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elementwise::{snake, unary};
    use crate::testing::{bits, noise, same_everywhere};

    const ALL: [Unary; 12] = [
        Unary::Exp,
        Unary::Sin,
        Unary::Sigmoid,
        Unary::Tanh,
        Unary::Silu,
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::Elu { alpha: 0.7 },
        Unary::LeakyRelu { slope: 0.1 },
        Unary::Relu,
        Unary::SignedRoot { floor: 0.2 },
        Unary::SignedSquare { floor: 0.2 },
    ];

    /// Central differences of the function itself, whose values are good to 1e-7.
    const STEP: f32 = 4e-3;
    const TOLERANCE: f32 = 2e-3;

    #[test]
    fn slopes_are_those_of_the_functions() {
        let xs: Vec<f32> = noise(1, 4000).iter().map(|x| 8.0 * x).filter(|x| x.abs() > STEP).collect();
        let ones = vec![1.0; xs.len()];
        for op in ALL {
            let at = |step: f32| {
                let moved: Vec<f32> = xs.iter().map(|x| x + step).collect();
                let mut out = vec![0.0; xs.len()];
                unary(op, &moved, &mut out).unwrap();
                out
            };
            let (above, below) = (at(STEP), at(-STEP));
            let mut got = vec![0.0; xs.len()];
            unary_gradient(op, &xs, &ones, &mut got).unwrap();
            for i in 0..xs.len() {
                let want = (above[i] - below[i]) / (2.0 * STEP);
                let error = (got[i] - want).abs() / want.abs().max(1.0);
                assert!(error < TOLERANCE, "{op:?} at {}: {} instead of {want}", xs[i], got[i]);
            }
        }
        // Around the point where the quotient of the Gelu is replaced.
        for x in [-1.001e-3, -0.999e-3, 0.0, 0.999e-3, 1.001e-3] {
            let mut got = [0.0];
            unary_gradient(Unary::Gelu, &[x], &[1.0], &mut got).unwrap();
            assert!((got[0] - (0.5 + 2.0 * 0.398_942_3 * x)).abs() < 1e-5, "{x}: {}", got[0]);
        }
    }

    #[test]
    fn every_level_and_thread_gives_the_same_bits() {
        let n = 3 * pool::GRAIN + 7;
        let xs: Vec<f32> = noise(2, n).iter().map(|x| 6.0 * x).collect();
        let grads = noise(3, n);
        for op in ALL {
            same_everywhere(|| {
                let mut out = vec![0.0; n];
                unary_gradient(op, &xs, &grads, &mut out).unwrap();
                out
            });
        }
        let alpha: Vec<f32> = noise(4, 13).iter().map(|a| a.abs() + 0.2).collect();
        let n = 13 * 700;
        same_everywhere(|| {
            let (mut for_xs, mut for_alpha) = (vec![0.0; n], vec![0.0; 13]);
            snake_gradient(&xs[..n], &alpha, &grads[..n], &mut for_xs, &mut for_alpha).unwrap();
            for_xs.extend(for_alpha);
            for_xs
        });
    }

    #[test]
    fn snake_passes_back_to_input_and_alpha() {
        let (n_steps, channels) = (9, 5);
        let xs: Vec<f32> = noise(5, n_steps * channels).iter().map(|x| 2.0 * x).collect();
        let grads = noise(6, n_steps * channels);
        let alpha: Vec<f32> = noise(7, channels).iter().map(|a| a.abs() + 0.5).collect();
        let (mut for_xs, mut for_alpha) = (vec![0.0; xs.len()], vec![0.0; channels]);
        snake_gradient(&xs, &alpha, &grads, &mut for_xs, &mut for_alpha).unwrap();
        let loss = |xs: &[f32], alpha: &[f32]| -> f32 {
            let mut out = vec![0.0; xs.len()];
            snake(xs, alpha, &mut out).unwrap();
            out.iter().zip(&grads).map(|(y, g)| y * g).sum()
        };
        let slope = |at: &[f32], i: usize, loss: &dyn Fn(&[f32]) -> f32| {
            let moved = |step: f32| {
                let mut moved = at.to_vec();
                moved[i] += step;
                loss(&moved)
            };
            (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
        };
        for (i, &got) in for_xs.iter().enumerate() {
            let want = slope(&xs, i, &|xs| loss(xs, &alpha));
            assert!((got - want).abs() < TOLERANCE, "input {i}: {got} instead of {want}");
        }
        for (i, &got) in for_alpha.iter().enumerate() {
            let want = slope(&alpha, i, &|alpha| loss(&xs, alpha));
            assert!((got - want).abs() < 4.0 * TOLERANCE, "alpha {i}: {got} instead of {want}");
        }
        assert_eq!(bits(&for_xs).len(), n_steps * channels);
    }
}
