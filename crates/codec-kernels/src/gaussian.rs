//! Normal numbers that depend on their place alone.

use crate::pool;
use crate::rotary::cosine_of;
use crate::simd::{Kernel, Simd, dispatch, level};

/// The fractional part of the golden ratio: consecutive counts times it lie far apart.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// 2^-53, the distance of two uniform numbers.
const UNIT: f64 = 1.0 / (1_u64 << 53) as f64;

/// Writes the numbers at `position` and the places after it of the sequence that `seed` names: normally
/// distributed with mean 0 and variance 1, none beyond 8.6.
///
/// A number depends on seed and place alone, so a stream that is cut anywhere gets the same ones.
///
/// # Source
/// Box and Muller 1958, on the hash of Steele et al. 2014, "Fast splittable pseudorandom number generators",
/// of a counter.
pub fn gaussian(seed: u64, position: u64, out: &mut [f32]) {
    let first = hash(seed).wrapping_add(position);
    let level = level();
    let n_threads = pool::threads_for(out.len(), pool::GRAIN / 16);
    pool::for_row_blocks(out, 1, 1, n_threads, |step, out| {
        dispatch(level, Numbers { first: first.wrapping_add(step as u64), out });
    });
}

/// The numbers from place `first` on.
struct Numbers<'a> {
    first: u64,
    out: &'a mut [f32],
}

impl Kernel for Numbers<'_> {
    type Output = ();
    /// The compiler makes vectors of it: there are no branches, and every operation is IEEE 754's or an integer's.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (step, out) in self.out.iter_mut().enumerate() {
            let place = self.first.wrapping_add(step as u64);
            // In (0, 1], and in [0, 1).
            let radius = ((hash(place) >> 11) + 1) as f64 * UNIT;
            let angle = (hash(place ^ GOLDEN) >> 11) as f64 * UNIT;
            let cosine = cosine_of(angle * std::f64::consts::TAU);
            *out = ((-2.0 * ln(radius)).sqrt() * f64::from(cosine)) as f32;
        }
    }
}

/// The output function of SplitMix64 for the state after `x`.
#[inline(always)]
fn hash(x: u64) -> u64 {
    let x = x.wrapping_add(GOLDEN);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The logarithm of a normal number, within 1e-13 or that share of it: every operation is IEEE 754's, where
/// that of the system's library may differ from machine to machine.
#[inline(always)]
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let exponent = (bits >> 52) as i64 - 1023;
    let mantissa = f64::from_bits(bits & (u64::MAX >> 12) | 1023 << 52);
    // Around 1, so that the series below is short.
    let is_large = mantissa > std::f64::consts::SQRT_2;
    let exponent = exponent + i64::from(is_large);
    let mantissa = if is_large { mantissa * 0.5 } else { mantissa };
    // ln m = 2 artanh s with s = (m - 1) / (m + 1), |s| < 0.172: the next term is below 1e-16.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let series = (0..10).rev().fold(0.0, |sum, i| sum * s * s + 1.0 / f64::from(2 * i + 1));
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bits;

    #[test]
    fn the_logarithm_is_exact_enough() {
        for i in 1..100_000_u32 {
            let x = f64::from(i) / 65_536.0;
            assert!((ln(x) - x.ln()).abs() <= 1e-13 * x.ln().abs().max(1.0), "{x}: {} and {}", ln(x), x.ln());
        }
        assert!((ln(UNIT) - UNIT.ln()).abs() < 1e-12);
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn a_number_depends_on_its_place_alone() {
        let mut whole = [0.0; 1000];
        gaussian(7, 123, &mut whole);
        for (start, len) in [(0, 1), (1, 17), (500, 500), (999, 1)] {
            let mut part = vec![0.0; len];
            gaussian(7, 123 + start as u64, &mut part);
            assert_eq!(bits(&part), bits(&whole[start..start + len]));
        }
        let mut other = [0.0; 1000];
        gaussian(8, 123, &mut other);
        let product: f64 = whole.iter().zip(&other).map(|(x, y)| f64::from(x * y)).sum();
        assert!(product.abs() < 4.0 * 1000.0_f64.sqrt(), "two seeds are correlated: {product}");
        // The end of the count is a place like any other.
        gaussian(7, u64::MAX, &mut other);
        assert!(other.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn the_sequence_never_changes() {
        // By an implementation of the same formulas in another language.
        let want = [0.7299267, 0.6179579, -0.6346125, -0.1774285];
        let mut got = [0.0; 4];
        gaussian(1, 0, &mut got);
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got} and {want}");
        }
    }

    #[test]
    fn numbers_are_normal_and_white() {
        let n = 200_000;
        let mut xs = vec![0.0; n];
        gaussian(42, 0, &mut xs);
        let mean = |f: &dyn Fn(f64) -> f64| xs.iter().map(|&x| f(f64::from(x))).sum::<f64>() / n as f64;
        // Five standard errors each.
        assert!(mean(&|x| x).abs() < 0.0112);
        assert!((mean(&|x| x * x) - 1.0).abs() < 0.0158);
        assert!(mean(&|x| x.powi(3)).abs() < 0.0433);
        assert!((mean(&|x| x.powi(4)) - 3.0).abs() < 0.11);
        for (bound, share) in [(0.5, 0.382_925), (1.0, 0.682_689), (2.0, 0.954_500), (3.0, 0.997_300)] {
            let inside = mean(&|x| f64::from(u8::from(x.abs() < bound)));
            assert!((inside - share).abs() < 0.0056, "{inside} within {bound}");
        }
        for lag in [1, 2, 3, 64] {
            let product: f64 = xs.iter().zip(&xs[lag..]).map(|(x, y)| f64::from(x * y)).sum();
            assert!(product.abs() / (n as f64) < 0.0112, "lag {lag}");
        }
    }
}
