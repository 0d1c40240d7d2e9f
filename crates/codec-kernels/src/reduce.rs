//! Sums and extrema in an order that no vector width or thread can change.
//!
//! A sum is sixteen interleaved partial sums, element i going to partial sum i mod 16, and then a fixed tree.

use crate::elementwise::MapInPlace;
use crate::elementwise::functions::{Exp, Function};
use crate::error::{Error, Result, count_rows, expect_len};
use crate::pool;
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch, level};

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

/// Adds sixteen partial sums, always in the same tree.
///
/// Each level has its own array: no loop over levels keeps the sums from staying in registers.
#[inline(always)]
pub(crate) fn tree<T: Copy + std::ops::Add<Output = T>>(xs: [T; MAX_LANES]) -> T {
    let xs: [T; 8] = std::array::from_fn(|i| xs[i] + xs[i + 8]);
    let xs: [T; 4] = std::array::from_fn(|i| xs[i] + xs[i + 4]);
    let xs: [T; 2] = std::array::from_fn(|i| xs[i] + xs[i + 2]);
    xs[0] + xs[1]
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
        (&mut a).zip(&mut b).for_each(|(a, b)| add_products(s, a, b, &mut acc));
        let (a, b) = (a.remainder(), b.remainder());
        if !a.is_empty() {
            let mut buffers = [[0.0; MAX_LANES]; 2];
            buffers[0][..a.len()].copy_from_slice(a);
            buffers[1][..a.len()].copy_from_slice(b);
            add_products(s, &buffers[0], &buffers[1], &mut acc);
        }
        let mut sums = [0.0; MAX_LANES];
        for (i, acc) in acc.into_iter().enumerate().take(MAX_LANES / S::LANES) {
            s.store(acc, &mut sums[i * S::LANES..]);
        }
        tree(sums)
    }
}

/// Goes on with the chains by `MAX_LANES` products.
#[inline(always)]
fn add_products<S: Simd>(s: S, a: &[f32], b: &[f32], acc: &mut [S::V; 2]) {
    for (i, acc) in acc.iter_mut().enumerate().take(MAX_LANES / S::LANES) {
        *acc = s.fma(s.load(&a[i * S::LANES..]), s.load(&b[i * S::LANES..]), *acc);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;
    use crate::testing::{assert_close, bits, n_rows, noise, same_everywhere};

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
        assert!(squared_norms(&[0.0; 4], 2, &mut [0.0; 3]).is_err());
        assert!(argmin(&[0.0; 4], 2, &mut [0; 3]).is_err());
    }
}
