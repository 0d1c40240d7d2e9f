//! Sums of two arrays, as residual branches have them, and factors per channel.

use crate::error::{Result, count_rows, expect_len};
use crate::pool;
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch, level};

/// Adds two arrays: `out = xs + ys`.
///
/// # Errors
/// [`crate::Error::Shape`] where the lengths do not agree.
pub fn add(xs: &[f32], ys: &[f32], out: &mut [f32]) -> Result<()> {
    expect_len("ys", xs.len(), ys.len())?;
    expect_len("out", xs.len(), out.len())?;
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(out, 1, MAX_LANES, n_threads, |first, out| {
        let (xs, ys) = (&xs[first..][..out.len()], &ys[first..][..out.len()]);
        dispatch(level, Sum { xs, ys, factor: None, out });
    });
    Ok(())
}

/// Adds one array to another: `xs += ys`, with the bits of [`add`].
///
/// # Errors
/// [`crate::Error::Shape`] where the lengths do not agree.
pub fn add_to(xs: &mut [f32], ys: &[f32]) -> Result<()> {
    expect_len("ys", xs.len(), ys.len())?;
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(xs, 1, MAX_LANES, n_threads, |first, xs| {
        let ys = &ys[first..][..xs.len()];
        dispatch(level, SumTo { xs, ys });
    });
    Ok(())
}

/// Adds rows that are scaled by one factor each: `out[t, c] = xs[t, c] + factors[t] ys[t, c]`, the product
/// rounded before the sum.
///
/// # Shapes
/// `xs`, `ys`, `out`: `[time, channels]`; `factors`: `[time]`.
///
/// # Errors
/// [`crate::Error::Shape`], [`crate::Error::Uneven`] and [`crate::Error::Zero`] where the sizes do not agree.
pub fn add_scaled_rows(
    xs: &[f32],
    ys: &[f32],
    channels: usize,
    factors: &[f32],
    out: &mut [f32],
) -> Result<()> {
    let n_steps = count_rows("channels", xs.len(), channels)?;
    expect_len("factors", n_steps, factors.len())?;
    expect_len("ys", xs.len(), ys.len())?;
    expect_len("out", xs.len(), out.len())?;
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(out, channels, 1, n_threads, |first, out| {
        let rows = out.chunks_exact_mut(channels).zip(&factors[first..]).enumerate();
        for (i, (out, &factor)) in rows {
            let row = (first + i) * channels..(first + i + 1) * channels;
            let (xs, ys) = (&xs[row.clone()], &ys[row]);
            dispatch(level, Sum { xs, ys, factor: Some(factor), out });
        }
    });
    Ok(())
}

/// Gives each channel its factor: `out[t, c] = factors[c] xs[t, c]`.
///
/// # Shapes
/// `xs`, `out`: `[time, channels]`; `factors`: `[channels]`.
///
/// # Errors
/// [`crate::Error::Shape`], [`crate::Error::Uneven`] and [`crate::Error::Zero`] where the sizes do not agree.
pub fn scale_channels(xs: &[f32], factors: &[f32], out: &mut [f32]) -> Result<()> {
    let channels = factors.len();
    count_rows("channels", xs.len(), channels)?;
    expect_len("out", xs.len(), out.len())?;
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(out, channels, 1, n_threads, |first, out| {
        let rows = out.chunks_exact_mut(channels).zip(xs[first * channels..].chunks_exact(channels));
        for (out, xs) in rows {
            out.iter_mut().zip(xs).zip(factors).for_each(|((y, x), factor)| *y = x * factor);
        }
    });
    Ok(())
}

/// `xs += ys`, both of one length.
struct SumTo<'a> {
    xs: &'a mut [f32],
    ys: &'a [f32],
}

impl Kernel for SumTo<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mut xs, mut ys) = (self.xs.chunks_exact_mut(S::LANES), self.ys.chunks_exact(S::LANES));
        for (xs, ys) in (&mut xs).zip(&mut ys) {
            s.store(s.add(s.load(ys), s.load(xs)), xs);
        }
        xs.into_remainder().iter_mut().zip(ys.remainder()).for_each(|(x, y)| *x += y);
    }
}

/// `out = xs + factor ys`, all as long as `out`.
struct Sum<'a> {
    xs: &'a [f32],
    ys: &'a [f32],
    factor: Option<f32>,
    out: &'a mut [f32],
}

impl Kernel for Sum<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { xs, ys, factor, out } = self;
        let n_whole = out.len() - out.len() % S::LANES;
        let scaled = |y: S::V| factor.map_or(y, |factor| s.mul(s.splat(factor), y));
        for i in (0..n_whole).step_by(S::LANES) {
            s.store(s.add(scaled(s.load(&ys[i..])), s.load(&xs[i..])), &mut out[i..]);
        }
        for i in n_whole..out.len() {
            out[i] = factor.map_or(ys[i], |factor| factor * ys[i]) + xs[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;
    use crate::testing::{bits, noise, same_everywhere};

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

        #[test]
        fn are_the_sums_on_every_level_and_number_of_threads(
            seed in 0..1000_u64,
            channels in 1..40_usize,
            n_steps in 0..9_usize,
            long: bool,
        ) {
            let n_steps = if long { 3 * pool::GRAIN / channels } else { n_steps };
            let (xs, ys) = (noise(seed, n_steps * channels), noise(seed + 1, n_steps * channels));
            let factors = noise(seed + 2, n_steps);
            let got = same_everywhere(|| {
                let mut out = vec![0.0; 2 * xs.len()];
                let (sums, scaled) = out.split_at_mut(xs.len());
                add(&xs, &ys, sums).unwrap();
                let mut in_place = xs.clone();
                add_to(&mut in_place, &ys).unwrap();
                assert_eq!(bits(&in_place), bits(sums));
                add_scaled_rows(&xs, &ys, channels, &factors, scaled).unwrap();
                out
            });
            let sums = xs.iter().zip(&ys).map(|(x, y)| x + y);
            let scaled = (0..xs.len()).map(|i| factors[i / channels] * ys[i] + xs[i]);
            assert_eq!(bits(&got), bits(&sums.chain(scaled).collect::<Vec<_>>()));
        }
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        assert!(add(&[0.0; 2], &[0.0; 3], &mut [0.0; 2]).is_err());
        assert!(add(&[0.0; 2], &[0.0; 2], &mut [0.0; 3]).is_err());
        assert!(add_to(&mut [0.0; 2], &[0.0; 3]).is_err());
        let scaled = |n: usize, channels: usize, n_factors: usize| {
            add_scaled_rows(&vec![0.0; n], &[0.0; 4], channels, &vec![0.0; n_factors], &mut [0.0; 4])
        };
        assert!(scaled(4, 2, 2).is_ok());
        for (n, channels, n_factors) in [(3, 2, 2), (4, 2, 1), (4, 3, 2), (4, 0, 2), (5, 1, 5)] {
            assert!(scaled(n, channels, n_factors).is_err());
        }
    }
}
