//! Rotary positions: angles that are exact at any distance from the start, and the rotation by them.
//!
//! An angle is a position times a frequency. As one product in f32 it would lose a bit with every doubling of
//! the position: after three hours at 25 steps a second the fastest angles would be off by 0.01. So it is formed
//! and brought into one turn in f64, where even a year's stream leaves it good to 1e-8, and only its cosine and
//! sine are rounded to f32. They depend on the position alone, not on the steps that share a call.

use crate::error::{Error, Result, count_rows, expect_len, product};
use crate::simd::ROUND_WIDE;

/// 2/π.
const QUARTERS: f64 = std::f64::consts::FRAC_2_PI;
/// π/2 as an unevaluated sum: the first has 33 bits, so that its product with a quarter count below 2^20 is exact.
const HALF_PI: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_6e-21];

/// The frequencies of one head: pair j turns by `base^(-2 j / dim)` per step.
///
/// # Source
/// Su et al. 2021, "RoFormer", eq. 15.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// One per pair, in radians per step.
    frequencies: Vec<f64>,
}

impl Rotary {
    /// The frequencies for heads of `dim` channels.
    ///
    /// # Errors
    /// [`Error::Zero`] when `dim` is zero or `base` is not above one and finite, [`Error::Uneven`] when `dim`
    /// is odd.
    pub fn new(dim: usize, base: f64) -> Result<Self> {
        let n_pairs = count_rows("dim", dim, 2)?;
        if n_pairs == 0 {
            return Err(Error::Zero { what: "dim" });
        }
        if !(base > 1.0 && base.is_finite()) {
            return Err(Error::Zero { what: "base - 1" });
        }
        let ratio = root(base, n_pairs);
        let mut frequencies = vec![1.0; n_pairs];
        for j in 1..n_pairs {
            frequencies[j] = frequencies[j - 1] / ratio;
        }
        Ok(Self { frequencies })
    }

    /// Channels per head.
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Writes the cosines and then the sines of the angles at `position` and the steps after it.
    ///
    /// # Shapes
    /// `table`: `[steps, dim]`.
    ///
    /// # Errors
    /// [`Error::Uneven`] when the last row is not whole.
    pub fn fill(&self, position: u64, table: &mut [f32]) -> Result<()> {
        count_rows("table", table.len(), self.dim())?;
        for (step_idx, row) in table.chunks_exact_mut(self.dim()).enumerate() {
            let position = position.saturating_add(step_idx as u64) as f64;
            let (cosines, sines) = row.split_at_mut(self.frequencies.len());
            for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&self.frequencies) {
                (*sine, *cosine) = sin_cos(position * frequency);
            }
        }
        Ok(())
    }
}

/// Turns the pairs of every head by the angles of the step.
///
/// Channel j of a head pairs with channel j + dim/2.
///
/// # Shapes
/// `xs`, `out`: `[steps, n_heads * dim]`; `table`: `[steps, dim]`, as [`Rotary::fill`] writes it.
///
/// # Errors
/// [`Error::Shape`], [`Error::Uneven`] or [`Error::Zero`] where the sizes do not agree.
pub fn rotate(xs: &[f32], table: &[f32], dim: usize, n_heads: usize, out: &mut [f32]) -> Result<()> {
    let n_steps = count_rows("table", table.len(), dim)?;
    count_rows("dim", dim, 2)?;
    let width = product("width", dim, n_heads)?;
    if width == 0 {
        return Err(Error::Zero { what: "n_heads" });
    }
    expect_len("xs", product("xs", n_steps, width)?, xs.len())?;
    expect_len("out", xs.len(), out.len())?;
    let steps = xs.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(table.chunks_exact(dim));
    for ((xs, out), row) in steps {
        let (cosines, sines) = row.split_at(dim / 2);
        for (xs, out) in xs.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            let ((a, b), (to_a, to_b)) = (xs.split_at(dim / 2), out.split_at_mut(dim / 2));
            for j in 0..dim / 2 {
                to_a[j] = a[j] * cosines[j] - b[j] * sines[j];
                to_b[j] = b[j] * cosines[j] + a[j] * sines[j];
            }
        }
    }
    Ok(())
}

/// The `n`-th root of `x > 1` to the last bits, by halving an interval: every operation is IEEE 754's.
fn root(x: f64, n: usize) -> f64 {
    let (mut low, mut high) = (1.0, x);
    loop {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            return low;
        }
        let mut power = 1.0_f64;
        for _ in 0..n {
            power *= middle;
        }
        if power <= x { low = middle } else { high = middle }
    }
}

/// The sine and cosine of an angle below 2^20 quarter turns within 0.51 ulp of f32; beyond, the error in radians
/// grows with the angle, at 2^-53 of it.
pub fn sin_cos(angle: f64) -> (f32, f32) {
    let quarters = (angle * QUARTERS).round_ties_even();
    let (sine, cosine) = reduced(angle, quarters);
    // The remainder of a count below 2^53 is exact.
    match quarters.rem_euclid(4.0) as u8 {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// The cosine that [`sin_cos`] gives of a positive angle below 2^20 quarter turns, without a branch.
#[inline(always)]
pub(crate) fn cosine_of(angle: f64) -> f32 {
    // The nearest integer, ties to even, as in `sin_cos`.
    let quarters = (angle * QUARTERS + ROUND_WIDE) - ROUND_WIDE;
    let (sine, cosine) = reduced(angle, quarters);
    let quarter = quarters as i32 & 3;
    let size = if quarter & 1 == 0 { cosine } else { sine };
    if quarter == 1 || quarter == 2 { -size } else { size }
}

/// The sine and cosine of what `quarters` quarter turns leave of an angle.
#[inline(always)]
fn reduced(angle: f64, quarters: f64) -> (f32, f32) {
    let r = ((angle - quarters * HALF_PI[0]) - quarters * HALF_PI[1]) - quarters * HALF_PI[2];
    let r2 = r * r;
    // Taylor's series: |r| <= π/4, where the next terms are below 1e-12.
    let sine = r + r * r2 * series(r2, &[-6.0, 120.0, -5_040.0, 362_880.0, -39_916_800.0]);
    let cosine = 1.0 + r2 * series(r2, &[-2.0, 24.0, -720.0, 40_320.0, -3_628_800.0, 479_001_600.0]);
    (sine as f32, cosine as f32)
}

/// `Σ x^i / divisors[i]`.
#[inline(always)]
fn series(x: f64, divisors: &[f64]) -> f64 {
    divisors.iter().rev().fold(0.0, |sum, divisor| sum * x + 1.0 / divisor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, bits, noise, ulps};

    #[test]
    fn frequencies_are_powers_of_the_base() {
        for (dim, base) in [(2, 10_000.0), (16, 10_000.0), (64, 10_000.0), (128, 1e6), (6, 1.5)] {
            let rotary = Rotary::new(dim, base).unwrap();
            for (j, frequency) in rotary.frequencies.iter().enumerate() {
                let want = base.powf(-2.0 * j as f64 / dim as f64);
                assert!((frequency / want - 1.0).abs() < 1e-14 * (j + 1) as f64, "{dim}, {base}: pair {j}");
            }
        }
    }

    #[test]
    fn angles_are_exact_near_the_start_and_hours_later() {
        let rotary = Rotary::new(64, 10_000.0).unwrap();
        // Up to some hours of 25 steps a second.
        for position in [0, 1, 2, 24, 25, 8_191, 8_192, 100_000, 270_000, 600_000] {
            let mut table = [0.0; 64];
            rotary.fill(position, &mut table).unwrap();
            for (j, frequency) in rotary.frequencies.iter().enumerate() {
                let angle = position as f64 * frequency;
                for (got, want) in [(table[j], angle.cos()), (table[j + 32], angle.sin())] {
                    // Next to a zero of the function the f64 angle itself is all that there is.
                    let near_zero = (f64::from(got) - want).abs() < 1e-15 * angle.max(1.0);
                    assert!(near_zero || ulps(got, want) < 0.51, "position {position}, pair {j}: {got}");
                }
            }
        }
        // A year: the angle is good to 1e-7.
        let (position, mut table) = (800_000_000, [0.0; 64]);
        rotary.fill(position, &mut table).unwrap();
        let want: Vec<f64> = rotary.frequencies.iter().map(|f| (position as f64 * f).cos()).collect();
        assert_close(&table[..32], &want, 3e-7);
    }

    #[test]
    fn a_position_does_not_depend_on_the_call() {
        let rotary = Rotary::new(6, 100.0).unwrap();
        let (mut whole, mut part) = ([0.0; 60], [0.0; 18]);
        rotary.fill(1_000_000, &mut whole).unwrap();
        rotary.fill(1_000_004, &mut part).unwrap();
        assert_eq!(bits(&whole[24..42]), bits(&part));
    }

    #[test]
    fn products_depend_on_the_distance_alone() {
        let (dim, n_heads) = (8, 3);
        let rotary = Rotary::new(dim, 10_000.0).unwrap();
        let (q, k) = (noise(1, dim * n_heads), noise(2, dim * n_heads));
        let product = |position: u64, distance: u64| -> Vec<f64> {
            let turned = |xs: &[f32], position| {
                let (mut table, mut out) = (vec![0.0; dim], vec![0.0; xs.len()]);
                rotary.fill(position, &mut table).unwrap();
                rotate(xs, &table, dim, n_heads, &mut out).unwrap();
                out
            };
            let (q, k) = (turned(&q, position + distance), turned(&k, position));
            let head = |(q, k): (&[f32], &[f32])| q.iter().zip(k).map(|(&q, &k)| f64::from(q * k)).sum();
            q.chunks_exact(dim).zip(k.chunks_exact(dim)).map(head).collect()
        };
        for distance in [0, 1, 249] {
            let near = product(0, distance);
            for position in [1, 250, 270_000, 100_000_000] {
                let far: Vec<f32> = product(position, distance).iter().map(|&x| x as f32).collect();
                // Eight products of numbers below 2, each good to four roundings.
                assert_close(&far, &near, 2e-6);
            }
        }
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        assert!(Rotary::new(0, 2.0).is_err());
        assert!(Rotary::new(3, 2.0).is_err());
        for base in [1.0, 0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Rotary::new(4, base).is_err());
        }
        let rotary = Rotary::new(4, 2.0).unwrap();
        assert!(rotary.fill(0, &mut [0.0; 5]).is_err());
        assert!(rotary.fill(u64::MAX, &mut [0.0; 8]).is_ok());
        assert!(rotate(&[0.0; 8], &[0.0; 4], 4, 2, &mut [0.0; 8]).is_ok());
        assert!(rotate(&[0.0; 8], &[0.0; 4], 4, 1, &mut [0.0; 8]).is_err());
        assert!(rotate(&[0.0; 8], &[0.0; 8], 4, 1, &mut [0.0; 4]).is_err());
        assert!(rotate(&[], &[], 4, 0, &mut []).is_err());
        assert!(rotate(&[], &[], 0, 1, &mut []).is_err());
        assert!(rotate(&[0.0; 3], &[0.0; 3], 3, 1, &mut [0.0; 3]).is_err());
    }
}
