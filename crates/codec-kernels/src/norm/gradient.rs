//! What a layer norm passes back.

use super::{Power, WideSum};
use crate::error::{Result, count_rows, expect_len};
use crate::simd::{Kernel, Simd, dispatch, level};
use rayon::prelude::*;

/// The gradients of [`super::layer_norm`] for its input, and, summed over rows in order, for gamma and beta.
///
/// # Shapes
/// `xs`, `grads`, `for_xs`: `[rows, dim]`; `gamma`, `for_gamma`, `for_beta`: `[dim]`.
///
/// # Errors
/// As [`super::layer_norm`].
pub fn layer_norm_gradient(
    xs: &[f32],
    gamma: &[f32],
    eps: f32,
    grads: &[f32],
    for_xs: &mut [f32],
    [for_gamma, for_beta]: [&mut [f32]; 2],
) -> Result<()> {
    /// Rows of one task; fixed, so that sums do not depend on the number of threads.
    const TASK_ROWS: usize = 256;
    let dim = gamma.len();
    count_rows("gamma", xs.len(), dim)?;
    expect_len("grads", xs.len(), grads.len())?;
    expect_len("for_xs", xs.len(), for_xs.len())?;
    expect_len("for_gamma", dim, for_gamma.len())?;
    expect_len("for_beta", dim, for_beta.len())?;
    let level = level();
    let task_len = TASK_ROWS * dim;
    let tasks = for_xs.par_chunks_mut(task_len).zip(xs.par_chunks(task_len)).zip(grads.par_chunks(task_len));
    let parts: Vec<[Vec<f32>; 2]> = tasks
        .map(|((for_xs, xs), grads)| {
            let mut sums = [vec![0.0; dim], vec![0.0; dim]];
            let rows = for_xs.chunks_exact_mut(dim).zip(xs.chunks_exact(dim)).zip(grads.chunks_exact(dim));
            for ((for_xs, xs), grads) in rows {
                let mean = dispatch(level, WideSum { xs, power: Power::Value }) / dim as f64;
                let variance = dispatch(level, WideSum { xs, power: Power::Deviation(mean) }) / dim as f64;
                let scale = 1.0 / (variance + f64::from(eps)).sqrt();
                let (mean, scale) = (mean as f32, scale as f32);
                let [for_gamma, for_beta] = &mut sums;
                dispatch(level, Row { xs, mean, scale, gamma, grads, for_xs, for_gamma, for_beta });
            }
            sums
        })
        .collect();
    for_gamma.fill(0.0);
    for_beta.fill(0.0);
    for [gamma, beta] in parts {
        for_gamma.iter_mut().zip(gamma).for_each(|(sum, x)| *sum += x);
        for_beta.iter_mut().zip(beta).for_each(|(sum, x)| *sum += x);
    }
    Ok(())
}

/// One row; all slices are of one length.
struct Row<'a> {
    xs: &'a [f32],
    mean: f32,
    scale: f32,
    gamma: &'a [f32],
    grads: &'a [f32],
    for_xs: &'a mut [f32],
    for_gamma: &'a mut [f32],
    for_beta: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        /// Partial sums side by side, so that the loop has lanes on every level and one order on all.
        const LANES: usize = 16;
        let Self { xs, mean, scale, gamma, grads, for_xs, for_gamma, for_beta } = self;
        let dim = xs.len();
        let (mut plain, mut along) = ([0.0_f32; LANES], [0.0_f32; LANES]);
        for first in (0..dim).step_by(LANES) {
            let n = LANES.min(dim - first);
            for lane in 0..n {
                let i = first + lane;
                let normal = (xs[i] - mean) * scale;
                let owed = grads[i] * gamma[i];
                for_gamma[i] += grads[i] * normal;
                for_beta[i] += grads[i];
                plain[lane] += owed;
                along[lane] += owed * normal;
            }
        }
        let plain = plain.iter().sum::<f32>() / dim as f32;
        let along = along.iter().sum::<f32>() / dim as f32;
        for i in 0..dim {
            let normal = (xs[i] - mean) * scale;
            for_xs[i] = scale * (grads[i] * gamma[i] - plain - normal * along);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer_norm;
    use crate::testing::{noise, same_everywhere};

    #[test]
    fn follows_the_function() {
        let (n_rows, dim, eps) = (6, 21, 1e-5);
        let (xs, gamma, beta) = (noise(1, n_rows * dim), noise(2, dim), noise(3, dim));
        let grads = noise(4, n_rows * dim);
        let run = || {
            let (mut for_xs, mut sums) = (vec![0.0; xs.len()], [vec![0.0; dim], vec![0.0; dim]]);
            let [for_gamma, for_beta] = &mut sums;
            layer_norm_gradient(&xs, &gamma, eps, &grads, &mut for_xs, [for_gamma, for_beta]).unwrap();
            for_xs.extend(sums.concat());
            for_xs
        };
        let got = same_everywhere(run);
        let loss = |xs: &[f32], gamma: &[f32], beta: &[f32]| -> f64 {
            let mut out = vec![0.0; xs.len()];
            layer_norm(xs, gamma, Some(beta), eps, &mut out).unwrap();
            out.iter().zip(&grads).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
        };
        let args = [xs.clone(), gamma.clone(), beta.clone()];
        let mut at = 0;
        for arg in 0..3 {
            for i in 0..args[arg].len() {
                let moved = |step: f32| {
                    let mut args = args.clone();
                    args[arg][i] += step;
                    loss(&args[0], &args[1], &args[2])
                };
                let want = ((moved(1e-2) - moved(-1e-2)) / 2e-2) as f32;
                assert!((got[at] - want).abs() < 3e-3, "argument {arg}, {i}: {} instead of {want}", got[at]);
                at += 1;
            }
        }
        assert_eq!(at, got.len());
    }
}
