//! Sums, norms and extrema in an order that no vector width or thread can change.
//!
//! A sum is sixteen interleaved partial sums, element i going to partial sum i mod 16, and then a fixed tree.
//! Statistics of norms are summed in f64.

use rayon::prelude::*;

use crate::elementwise::MapInPlace;
use crate::elementwise::functions::{Exp, Function};
use crate::error::{Error, Result, count_rows, expect_len};
use crate::pool;
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch, level};

/// Steps of a group norm that are summed before the next ones, so that threads can share the work.
const BLOCK_STEPS: usize = 512;

/// Turns each row into weights that sum to 1: `exp(x - max) / Σ exp(x - max)`.
///
/// # Shapes
/// `xs`: `[rows, cols]`.
///
/// # Errors
/// [`Error::Uneven`] or [`Error::Zero`] where `xs` does not hold whole rows.
pub fn softmax(xs: &mut [f32], cols: usize) -> Result<()> {
    count_rows("cols", xs.len(), cols)?;
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(xs, cols, 1, n_threads, |_, xs| dispatch(level, SoftmaxRows { xs, cols }));
    Ok(())
}

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

/// The sum of squares of each row, as sixteen interleaved chains of fused multiply-adds and a fixed tree.
///
/// # Shapes
/// `xs`: `[rows, dim]`, `out`: `[rows]`.
///
/// # Errors
/// [`Error::Shape`], [`Error::Uneven`] or [`Error::Zero`] where the sizes do not agree.
pub fn squared_norms(xs: &[f32], dim: usize, out: &mut [f32]) -> Result<()> {
    let n_rows = count_rows("dim", xs.len(), dim)?;
    expect_len("out", n_rows, out.len())?;
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(out, 1, 1, n_threads, |first, out| {
        for (xs, out) in xs[first * dim..].chunks_exact(dim).zip(out) {
            *out = dispatch(level, Dot { a: xs, b: xs });
        }
    });
    Ok(())
}

/// The index of the smallest element of each row; the lowest index wins a tie, and a NaN never wins.
///
/// # Shapes
/// `xs`: `[rows, cols]`, `out`: `[rows]`; an index is below `cols`, 0 where a whole row is NaN.
///
/// # Errors
/// [`Error::Shape`], [`Error::Uneven`] or [`Error::Zero`] where the sizes do not agree, [`Error::Overflow`]
/// where an index does not fit in 32 bits.
pub fn argmin(xs: &[f32], cols: usize, out: &mut [u32]) -> Result<()> {
    arg_extremum::<false>(xs, cols, out)
}

/// The index of the largest element of each row; the lowest index wins a tie, and a NaN never wins.
///
/// # Shapes
/// `xs`: `[rows, cols]`, `out`: `[rows]`; an index is below `cols`, 0 where a whole row is NaN.
///
/// # Errors
/// As [`argmin`].
pub fn argmax(xs: &[f32], cols: usize, out: &mut [u32]) -> Result<()> {
    arg_extremum::<true>(xs, cols, out)
}

fn arg_extremum<const MAX: bool>(xs: &[f32], cols: usize, out: &mut [u32]) -> Result<()> {
    let n_rows = count_rows("cols", xs.len(), cols)?;
    expect_len("out", n_rows, out.len())?;
    if u32::try_from(cols).is_err() {
        return Err(Error::Overflow { what: "cols" });
    }
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(out, 1, 1, n_threads, |first, out| {
        for (xs, out) in xs[first * cols..].chunks_exact(cols).zip(out) {
            let best = dispatch(level, Extremum::<MAX> { xs });
            // Searching for the value found is the cheaper second half: it stops at the first tie.
            *out = xs.iter().position(|&x| x == best).unwrap_or(0) as u32;
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

/// Adds sixteen partial sums, always in the same tree.
#[inline(always)]
fn tree<T: Copy + std::ops::Add<Output = T>>(mut xs: [T; MAX_LANES]) -> T {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            xs[i] = xs[i] + xs[i + half];
        }
    }
    xs[0]
}

/// Calls `body` with 16 elements at a time, the last ones filled up with `fill`.
macro_rules! for_each_16 {
    ($xs:expr, $fill:expr, |$chunk:ident| $body:block) => {{
        let mut chunks = $xs.chunks_exact(MAX_LANES);
        for $chunk in &mut chunks $body
        let left = chunks.remainder();
        if !left.is_empty() {
            let mut buffer = [$fill; MAX_LANES];
            buffer[..left.len()].copy_from_slice(left);
            let $chunk = &buffer[..];
            $body
        }
    }};
}

/// `Σ a b`, in sixteen interleaved chains.
pub(crate) struct Dot<'a> {
    pub(crate) a: &'a [f32],
    /// As long as `a`.
    pub(crate) b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut acc = [s.splat(0.0); 2];
        let (mut a, mut b) = (self.a.chunks_exact(MAX_LANES), self.b.chunks_exact(MAX_LANES));
        for (a, b) in (&mut a).zip(&mut b) {
            for (i, acc) in acc.iter_mut().enumerate().take(MAX_LANES / S::LANES) {
                *acc = s.fma(s.load(&a[i * S::LANES..]), s.load(&b[i * S::LANES..]), *acc);
            }
        }
        let (a, b) = (a.remainder(), b.remainder());
        let mut sums = [0.0; MAX_LANES];
        for (i, acc) in acc.into_iter().enumerate().take(MAX_LANES / S::LANES) {
            s.store(acc, &mut sums[i * S::LANES..]);
        }
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum = a.mul_add(*b, *sum);
        }
        tree(sums)
    }
}

/// The smallest or largest element, NaN aside.
struct Extremum<'a, const MAX: bool> {
    xs: &'a [f32],
}

impl<const MAX: bool> Kernel for Extremum<'_, MAX> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let worst = if MAX { f32::NEG_INFINITY } else { f32::INFINITY };
        let mut acc = s.splat(worst);
        for_each_16!(self.xs, worst, |chunk| {
            for xs in chunk.chunks_exact(S::LANES) {
                // The second operand wins against a NaN.
                acc = if MAX { s.max(s.load(xs), acc) } else { s.min(s.load(xs), acc) };
            }
        });
        let mut lanes = [worst; MAX_LANES];
        s.store(acc, &mut lanes);
        lanes.into_iter().fold(worst, |a, b| if MAX { a.max(b) } else { a.min(b) })
    }
}

struct SoftmaxRows<'a> {
    /// Whole rows of `cols`.
    xs: &'a mut [f32],
    cols: usize,
}

impl Kernel for SoftmaxRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for xs in self.xs.chunks_exact_mut(self.cols) {
            let sum = exp_and_sum(s, xs);
            divide(s, xs, sum);
        }
    }
}

/// Turns `xs` into `exp(x - max)` and returns the sum.
#[inline(always)]
pub(crate) fn exp_and_sum<S: Simd>(s: S, xs: &mut [f32]) -> f32 {
    let max = Extremum::<true> { xs }.run(s);
    // A row of nothing but -inf has no weights; as it stands it gives NaN, like the formula.
    MapInPlace { f: ExpLess { max }, xs: &mut *xs }.run(s);
    let mut acc = [s.splat(0.0); 2];
    for_each_16!(xs, 0.0, |chunk| {
        for (i, acc) in acc.iter_mut().enumerate().take(MAX_LANES / S::LANES) {
            *acc = s.add(*acc, s.load(&chunk[i * S::LANES..]));
        }
    });
    let mut sums = [0.0; MAX_LANES];
    for (i, acc) in acc.into_iter().enumerate().take(MAX_LANES / S::LANES) {
        s.store(acc, &mut sums[i * S::LANES..]);
    }
    tree(sums)
}

/// Divides every element by `by`.
#[inline(always)]
pub(crate) fn divide<S: Simd>(s: S, xs: &mut [f32], by: f32) {
    MapInPlace { f: Over { by }, xs }.run(s);
}

#[derive(Clone, Copy)]
struct ExpLess {
    max: f32,
}
impl Function for ExpLess {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        Exp.apply(s, s.sub(x, s.splat(self.max)))
    }
}

#[derive(Clone, Copy)]
struct Over {
    by: f32,
}
impl Function for Over {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.div(x, s.splat(self.by))
    }
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
    use crate::testing::{bits, noise, same_everywhere};

    /// Rows enough to be split over threads where `long`.
    fn n_rows(long: bool, cols: usize) -> usize {
        if long { 3 * pool::GRAIN / cols + 1 } else { 5 }
    }

    /// Fails with the worst position where the two are further apart than `bound`.
    fn assert_close(got: &[f32], want: &[f64], bound: f64) {
        assert_eq!(got.len(), want.len());
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            let off = (f64::from(got) - want).abs();
            assert!(off <= bound, "element {i}: {got} against {want}, off by {off}, bound {bound}");
        }
    }

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
        fn softmax_is_right_and_the_same_everywhere(seed in 0..1000_u64, cols in 1..70_usize, long: bool) {
            let xs: Vec<f32> = noise(seed, n_rows(long, cols) * cols).iter().map(|x| 30.0 * x).collect();
            let run = |xs: &[f32]| {
                let mut out = xs.to_vec();
                softmax(&mut out, cols).unwrap();
                out
            };
            let got = same_everywhere(|| run(&xs));
            let want: Vec<f64> = xs
                .chunks_exact(cols)
                .flat_map(|row| {
                    let exp: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
                    let sum: f64 = exp.iter().sum();
                    exp.into_iter().map(move |x| x / sum)
                })
                .collect();
            // The subtraction of the maximum rounds an argument of up to 60: 60 * 2^-24 of the result.
            assert_close(&got, &want, 4e-6);
            let alone: Vec<f32> = xs.chunks_exact(cols).take(5).flat_map(run).collect();
            assert_eq!(bits(&got[..alone.len()]), bits(&alone));
        }

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

        #[test]
        fn squared_norms_are_right_and_the_same_everywhere(
            seed in 0..1000_u64,
            dim in 1..70_usize,
            long: bool,
        ) {
            let xs = noise(seed, n_rows(long, dim) * dim);
            let run = |xs: &[f32]| {
                let mut out = vec![0.0; xs.len() / dim];
                squared_norms(xs, dim, &mut out).unwrap();
                out
            };
            let got = same_everywhere(|| run(&xs));
            let square = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum();
            let want: Vec<f64> = xs.chunks_exact(dim).map(square).collect();
            // Five terms per chain and four levels of the tree, of sums below 70.
            assert_close(&got, &want, 9.0 * 70.0 * f64::from(f32::EPSILON) / 2.0);
            let alone: Vec<f32> = xs.chunks_exact(dim).take(5).flat_map(run).collect();
            assert_eq!(bits(&got[..alone.len()]), bits(&alone));
        }

        #[test]
        fn extrema_are_the_first_ones(seed in 0..1000_u64, cols in 1..70_usize, long: bool) {
            // Few distinct values, so that ties are common, and some NaN.
            let coarse = |x: f32| if x > 0.9 { f32::NAN } else { (4.0 * x).round() };
            let xs: Vec<f32> = noise(seed, n_rows(long, cols) * cols).into_iter().map(coarse).collect();
            let find = |f: fn(&[f32], usize, &mut [u32]) -> Result<()>| {
                // Indices as floats, which hold them exactly.
                same_everywhere(|| {
                    let mut out = vec![0; xs.len() / cols];
                    f(&xs, cols, &mut out).unwrap();
                    out.into_iter().map(|i| i as f32).collect()
                })
            };
            let first = |better: fn(f32, f32) -> bool| -> Vec<f32> {
                let best = |row: &[f32]| {
                    let numbers = (0..cols).filter(|&i| !row[i].is_nan());
                    numbers.reduce(|a, b| if better(row[b], row[a]) { b } else { a }).unwrap_or(0)
                };
                xs.chunks_exact(cols).map(|row| best(row) as f32).collect()
            };
            assert_eq!(find(argmin), first(|a, b| a < b));
            assert_eq!(find(argmax), first(|a, b| a > b));
        }
    }

    #[test]
    fn infinities_can_win() {
        let mut out = [9; 2];
        let inf = f32::INFINITY;
        argmin(&[inf, inf, 1.0, -inf], 2, &mut out).unwrap();
        assert_eq!(out, [0, 1]);
        argmax(&[-inf, -inf, f32::NAN, -inf], 2, &mut out).unwrap();
        assert_eq!(out, [0, 1]);
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        assert!(softmax(&mut [0.0; 5], 2).is_err());
        assert!(softmax(&mut [0.0; 5], 0).is_err());
        assert!(layer_norm(&[0.0; 4], &[1.0; 2], Some(&[0.0; 3]), 1e-5, &mut [0.0; 4]).is_err());
        assert!(layer_norm(&[0.0; 4], &[1.0; 2], None, 1e-5, &mut [0.0; 3]).is_err());
        assert!(group_norm(&[0.0; 4], 3, &[1.0; 2], &[0.0; 2], 1e-5, &mut [0.0; 4]).is_err());
        assert!(group_norm(&[0.0; 4], 0, &[1.0; 2], &[0.0; 2], 1e-5, &mut [0.0; 4]).is_err());
        group_norm(&[], 1, &[1.0; 2], &[0.0; 2], 1e-5, &mut []).unwrap();
        assert!(squared_norms(&[0.0; 4], 2, &mut [0.0; 3]).is_err());
        assert!(argmin(&[0.0; 4], 2, &mut [0; 3]).is_err());
    }
}
