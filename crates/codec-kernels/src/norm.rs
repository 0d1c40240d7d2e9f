//! Normalisation over channels and over time; statistics are summed in f64 in one fixed order.

use rayon::prelude::*;

use crate::error::{Error, Result, count_rows, expect_len};
use crate::pool;
use crate::reduce::tree;
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch, level};

mod gradient;

pub use self::gradient::layer_norm_gradient;

/// Steps of a group norm that are summed before the next ones, so that threads can share the work.
const BLOCK_STEPS: usize = 512;

/// Normalises each row to zero mean and unit variance, then scales and shifts it.
///
/// # Shapes
/// `xs`, `out`: `[rows, dim]`; `gamma`, `beta`: `[dim]`.
///
/// # Errors
/// [`Error::Shape`], [`Error::Uneven`] or [`Error::Zero`] where the sizes do not agree.
///
/// # Source
/// Ba, Kiros and Hinton 2016, "Layer normalization", eq. 4; the variance is that of the population.
pub fn layer_norm(xs: &[f32], gamma: &[f32], beta: Option<&[f32]>, eps: f32, out: &mut [f32]) -> Result<()> {
    let dim = gamma.len();
    count_rows("gamma", xs.len(), dim)?;
    expect_len("out", xs.len(), out.len())?;
    if let Some(beta) = beta {
        expect_len("beta", dim, beta.len())?;
    }
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(out, dim, 1, n_threads, |first, out| {
        let xs = &xs[first * dim..][..out.len()];
        for (xs, out) in xs.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            let mean = dispatch(level, WideSum { xs, power: Power::Value }) / dim as f64;
            let variance = dispatch(level, WideSum { xs, power: Power::Deviation(mean) }) / dim as f64;
            let scale = 1.0 / (variance + f64::from(eps)).sqrt();
            let (mean, scale) = (&[mean][..], &[scale][..]);
            dispatch(level, Affine { xs, mean, scale, group: dim, gamma, beta, out });
        }
    });
    Ok(())
}

/// Divides each row by its root mean square, then scales it.
///
/// # Shapes
/// `xs`, `out`: `[rows, dim]`; `gamma`: `[dim]`.
///
/// # Errors
/// [`Error::Shape`], [`Error::Uneven`] or [`Error::Zero`] where the sizes do not agree.
///
/// # Source
/// Zhang and Sennrich 2019, "Root mean square layer normalization", eq. 4, with `eps` added to the mean square.
pub fn rms_norm(xs: &[f32], gamma: &[f32], eps: f32, out: &mut [f32]) -> Result<()> {
    let dim = gamma.len();
    count_rows("gamma", xs.len(), dim)?;
    expect_len("out", xs.len(), out.len())?;
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(out, dim, 1, n_threads, |first, out| {
        let xs = &xs[first * dim..][..out.len()];
        for (xs, out) in xs.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            let square = dispatch(level, WideSum { xs, power: Power::Deviation(0.0) }) / dim as f64;
            let scale = 1.0 / (square + f64::from(eps)).sqrt();
            dispatch(level, Affine { xs, mean: &[0.0], scale: &[scale], group: dim, gamma, beta: None, out });
        }
    });
    Ok(())
}

/// Normalises groups of channels over all time steps of one item, then scales and shifts each channel.
///
/// # Shapes
/// `xs`, `out`: `[time, channels]`; `gamma`, `beta`: `[channels]`; `n_groups` divides `channels`.
///
/// # Errors
/// [`Error::Shape`], [`Error::Uneven`] or [`Error::Zero`] where the sizes do not agree.
///
/// # Source
/// Wu and He 2018, "Group normalization", eq. 7; the variance is that of the population.
pub fn group_norm(
    xs: &[f32],
    n_groups: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    out: &mut [f32],
) -> Result<()> {
    let channels = gamma.len();
    let n_steps = count_rows("gamma", xs.len(), channels)?;
    let group = count_group(channels, n_groups)?;
    expect_len("beta", channels, beta.len())?;
    expect_len("out", xs.len(), out.len())?;
    if n_steps == 0 {
        return Ok(());
    }
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    let count = (n_steps * group) as f64;
    // Sums over blocks of steps per channel, then over blocks, then over the channels of a group.
    let group_sums = |means: Option<&[f64]>| -> Vec<f64> {
        let block_sum = |xs: &[f32]| dispatch(level, ChannelSums { xs, channels, group, means });
        let block_len = BLOCK_STEPS * channels;
        let blocks: Vec<Vec<f64>> = if n_threads > 1 {
            xs.par_chunks(block_len).map(block_sum).collect()
        } else {
            xs.chunks(block_len).map(block_sum).collect()
        };
        let mut sums = vec![0.0; channels];
        for block in blocks {
            for (sum, part) in sums.iter_mut().zip(block) {
                *sum += part;
            }
        }
        sums.chunks_exact(group).map(|sums| sums.iter().sum::<f64>() / count).collect()
    };
    let mean = group_sums(None);
    let variance = group_sums(Some(&mean));
    let scale: Vec<f64> = variance.iter().map(|v| 1.0 / (v + f64::from(eps)).sqrt()).collect();
    pool::for_row_blocks(out, channels, 1, n_threads, |first, out| {
        let xs = &xs[first * channels..][..out.len()];
        for (xs, out) in xs.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            let beta = Some(beta);
            dispatch(level, Affine { xs, mean: &mean, scale: &scale, group, gamma, beta, out });
        }
    });
    Ok(())
}

fn count_group(channels: usize, n_groups: usize) -> Result<usize> {
    if n_groups == 0 {
        return Err(Error::Zero { what: "n_groups" });
    }
    count_rows("n_groups", channels, n_groups)
}

/// What [`WideSum`] sums.
#[derive(Clone, Copy)]
enum Power {
    Value,
    /// The squared distance from a mean.
    Deviation(f64),
}

/// A sum in f64, in sixteen interleaved partial sums.
struct WideSum<'a> {
    xs: &'a [f32],
    power: Power,
}

impl Kernel for WideSum<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let mean = match self.power {
            Power::Value => 0.0,
            Power::Deviation(mean) => mean,
        };
        let mut acc = [s.wide_splat(0.0); 2];
        let chunks = self.xs.chunks_exact(MAX_LANES);
        let left = chunks.remainder();
        for chunk in chunks {
            for (i, acc) in acc.iter_mut().enumerate().take(MAX_LANES / S::LANES) {
                let x = s.widen(s.load(&chunk[i * S::LANES..]));
                *acc = match self.power {
                    Power::Value => s.wide_add(*acc, x),
                    Power::Deviation(_) => {
                        let d = s.wide_sub(x, s.wide_splat(mean));
                        s.wide_fma(d, d, *acc)
                    }
                };
            }
        }
        let mut sums = [0.0; MAX_LANES];
        for (i, acc) in acc.into_iter().enumerate().take(MAX_LANES / S::LANES) {
            s.store_wide(acc, &mut sums[i * S::LANES..]);
        }
        for (sum, &x) in sums.iter_mut().zip(left) {
            let x = f64::from(x);
            *sum = match self.power {
                Power::Value => *sum + x,
                Power::Deviation(_) => (x - mean).mul_add(x - mean, *sum),
            };
        }
        tree(sums)
    }
}

/// Per channel over the steps of `xs`: the sum, or the sum of squared distances from the group's mean.
struct ChannelSums<'a> {
    /// `[steps, channels]`.
    xs: &'a [f32],
    channels: usize,
    /// Channels per group.
    group: usize,
    means: Option<&'a [f64]>,
}

impl Kernel for ChannelSums<'_> {
    type Output = Vec<f64>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f64> {
        let mut sums = vec![0.0; self.channels];
        let means: Vec<f64> = match self.means {
            Some(means) => (0..self.channels).map(|c| means[c / self.group]).collect(),
            None => Vec::new(),
        };
        for xs in self.xs.chunks_exact(self.channels) {
            let whole = self.channels - self.channels % S::LANES;
            for c in (0..whole).step_by(S::LANES) {
                let (x, sum) = (s.widen(s.load(&xs[c..])), s.load_wide(&sums[c..]));
                let sum = if self.means.is_some() {
                    let d = s.wide_sub(x, s.load_wide(&means[c..]));
                    s.wide_fma(d, d, sum)
                } else {
                    s.wide_add(sum, x)
                };
                s.store_wide(sum, &mut sums[c..]);
            }
            for c in whole..self.channels {
                let x = f64::from(xs[c]);
                sums[c] = match means.get(c) {
                    Some(mean) => (x - mean).mul_add(x - mean, sums[c]),
                    None => sums[c] + x,
                };
            }
        }
        sums
    }
}

/// `(x - mean) * scale * gamma + beta` for one row.
struct Affine<'a> {
    xs: &'a [f32],
    /// One per group.
    mean: &'a [f64],
    scale: &'a [f64],
    /// Elements per group; the groups fill the row.
    group: usize,
    gamma: &'a [f32],
    beta: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Kernel for Affine<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (group_idx, out) in self.out.chunks_exact_mut(self.group).enumerate() {
            let first = group_idx * self.group;
            let (xs, gamma) = (&self.xs[first..][..self.group], &self.gamma[first..][..self.group]);
            let beta = self.beta.map(|beta| &beta[first..][..self.group]);
            let (mean, scale) = (self.mean[group_idx], self.scale[group_idx]);
            let whole = self.group - self.group % S::LANES;
            for i in (0..whole).step_by(S::LANES) {
                let centred = s.wide_sub(s.widen(s.load(&xs[i..])), s.wide_splat(mean));
                let unit = s.narrow(s.wide_mul(centred, s.wide_splat(scale)));
                let shift = match beta {
                    Some(beta) => s.load(&beta[i..]),
                    None => s.splat(0.0),
                };
                s.store(s.fma(unit, s.load(&gamma[i..]), shift), &mut out[i..]);
            }
            for i in whole..self.group {
                let unit = ((f64::from(xs[i]) - mean) * scale) as f32;
                out[i] = unit.mul_add(gamma[i], beta.map_or(0.0, |beta| beta[i]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;
    use crate::testing::{assert_close, bits, n_rows, noise, same_everywhere};

    /// The mean and 1 / √(variance + eps).
    fn statistics(xs: &[f64], eps: f64) -> (f64, f64) {
        let n = xs.len() as f64;
        let mean = xs.iter().sum::<f64>() / n;
        let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        (mean, 1.0 / (variance + eps).sqrt())
    }

    fn wide(xs: &[f32]) -> Vec<f64> {
        xs.iter().map(|&x| f64::from(x)).collect()
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

        #[test]
        fn layer_norm_is_right_and_the_same_everywhere(
            seed in 0..1000_u64,
            dim in 1..70_usize,
            long: bool,
            offset in -100.0_f32..100.0,
        ) {
            let xs: Vec<f32> = noise(seed, n_rows(long, dim) * dim).iter().map(|x| x + offset).collect();
            let (gamma, beta) = (noise(seed + 1, dim), noise(seed + 2, dim));
            let beta = (seed % 2 == 0).then_some(&beta[..]);
            let run = |xs: &[f32]| {
                let mut out = vec![0.0; xs.len()];
                layer_norm(xs, &gamma, beta, 1e-5, &mut out).unwrap();
                out
            };
            let got = same_everywhere(|| run(&xs));
            let mut want = Vec::new();
            for row in xs.chunks_exact(dim) {
                let (mean, scale) = statistics(&wide(row), 1e-5);
                want.extend((0..dim).map(|c| {
                    let shift = beta.map_or(0.0, |beta| f64::from(beta[c]));
                    (f64::from(row[c]) - mean) * scale * f64::from(gamma[c]) + shift
                }));
            }
            // Two roundings of numbers below 9: the statistics add nothing.
            assert_close(&got, &want, 1.5e-6);
            let alone: Vec<f32> = xs.chunks_exact(dim).take(5).flat_map(run).collect();
            assert_eq!(bits(&got[..alone.len()]), bits(&alone));
        }

        #[test]
        fn rms_norm_is_right_and_the_same_everywhere(seed in 0..1000_u64, dim in 1..70_usize, long: bool) {
            let xs: Vec<f32> = noise(seed, n_rows(long, dim) * dim).iter().map(|x| 3.0 * x + 1.0).collect();
            let gamma = noise(seed + 1, dim);
            let run = |xs: &[f32]| {
                let mut out = vec![0.0; xs.len()];
                rms_norm(xs, &gamma, 1e-5, &mut out).unwrap();
                out
            };
            let got = same_everywhere(|| run(&xs));
            let mut want = Vec::new();
            for row in xs.chunks_exact(dim) {
                let square = wide(row).iter().map(|x| x * x).sum::<f64>() / dim as f64;
                want.extend((0..dim).map(|c| f64::from(row[c]) * f64::from(gamma[c]) / (square + 1e-5).sqrt()));
            }
            assert_close(&got, &want, 1.5e-6);
            let alone: Vec<f32> = xs.chunks_exact(dim).take(5).flat_map(run).collect();
            assert_eq!(bits(&got[..alone.len()]), bits(&alone));
        }

        #[test]
        fn group_norm_is_right_and_the_same_everywhere(
            seed in 0..1000_u64,
            n_groups in 1..5_usize,
            group in 1..20_usize,
            long: bool,
            offset in -100.0_f32..100.0,
        ) {
            let channels = n_groups * group;
            let n_steps = n_rows(long, channels);
            let xs: Vec<f32> = noise(seed, n_steps * channels).iter().map(|x| x + offset).collect();
            let (gamma, beta) = (noise(seed + 1, channels), noise(seed + 2, channels));
            let got = same_everywhere(|| {
                let mut out = vec![0.0; xs.len()];
                group_norm(&xs, n_groups, &gamma, &beta, 1e-5, &mut out).unwrap();
                out
            });
            let mut want = vec![0.0; xs.len()];
            for g in 0..n_groups {
                let members = || (0..xs.len()).filter(|i| i % channels / group == g);
                let of_group: Vec<f64> = members().map(|i| f64::from(xs[i])).collect();
                let (mean, scale) = statistics(&of_group, 1e-5);
                for i in members() {
                    let (gamma, beta) = (f64::from(gamma[i % channels]), f64::from(beta[i % channels]));
                    want[i] = (f64::from(xs[i]) - mean) * scale * gamma + beta;
                }
            }
            assert_close(&got, &want, 1.5e-6);
        }
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        assert!(layer_norm(&[0.0; 4], &[1.0; 2], Some(&[0.0; 3]), 1e-5, &mut [0.0; 4]).is_err());
        assert!(layer_norm(&[0.0; 4], &[1.0; 2], None, 1e-5, &mut [0.0; 3]).is_err());
        assert!(rms_norm(&[0.0; 4], &[1.0; 3], 1e-5, &mut [0.0; 4]).is_err());
        assert!(rms_norm(&[0.0; 4], &[1.0; 2], 1e-5, &mut [0.0; 3]).is_err());
        assert!(group_norm(&[0.0; 4], 3, &[1.0; 2], &[0.0; 2], 1e-5, &mut [0.0; 4]).is_err());
        assert!(group_norm(&[0.0; 4], 0, &[1.0; 2], &[0.0; 2], 1e-5, &mut [0.0; 4]).is_err());
        group_norm(&[], 1, &[1.0; 2], &[0.0; 2], 1e-5, &mut []).unwrap();
    }
}
