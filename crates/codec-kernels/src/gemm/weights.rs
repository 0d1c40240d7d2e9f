//! How a packed matrix holds its numbers: as floats, or in a quarter of the memory where that loses nothing.

use rayon::prelude::*;

use super::{HALF_PANEL, NARROW, PANEL};
use crate::error::{Result, count_rows};
use crate::pages::Lines;
use crate::simd::{ROUND, Simd};

/// Matrices below this many numbers stay in the cache as floats too.
const FEWEST: usize = 1 << 14;
/// The largest integer of eight bits that a quantizer uses.
const LARGEST: f32 = 127.0;

/// Numbers in the order in which the kernels read them.
///
/// Panels are `[k, width]`, all `PANEL` wide but the last, which may be `HALF_PANEL` wide; columns past `n` are zero.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Weights {
    /// `[n, k]`: so few columns that lanes run over rows.
    Narrow(Vec<f32>),
    /// In panels.
    Floats(Lines),
    /// Every column is integers times one factor, the largest of them [`LARGEST`]: the numbers are those products, to
    /// the last bit.
    Bytes {
        /// In panels.
        values: Vec<i8>,
        /// Of the columns, and zeros up to the end of the last panel.
        scales: Vec<f32>,
    },
}

/// Rounds the columns of a row-major matrix to integers of eight bits times a factor each, which
/// [`PackedMatrix::new`](super::PackedMatrix::new) holds in a quarter of the memory.
///
/// A product with a few rows takes as long as its matrix takes to be read. A matrix that is small anyway is left as it
/// is, and so is what is not finite.
///
/// # Shapes
/// `weights`: `[k, n]`.
///
/// # Errors
/// [`crate::Error::Uneven`] or [`crate::Error::Zero`] where `weights` does not hold whole rows.
pub fn quantize_columns(weights: &mut [f32], n: usize) -> Result<()> {
    let k = count_rows("n", weights.len(), n)?;
    if k == 0 || n <= NARROW || k * n.next_multiple_of(HALF_PANEL) < FEWEST {
        return Ok(());
    }
    let mut largest = vec![0.0_f32; n];
    for row in weights.chunks_exact(n) {
        largest.iter_mut().zip(row).for_each(|(largest, x)| *largest = largest.max(x.abs()));
    }
    for row in weights.chunks_exact_mut(n) {
        for (x, largest) in row.iter_mut().zip(&largest) {
            let scale = largest / LARGEST;
            if x.is_finite() && scale.is_finite() {
                *x = if scale > 0.0 { f32::from((*x / scale).round_ties_even() as i8) * scale } else { 0.0 };
            }
        }
    }
    Ok(())
}

/// A number as it is stored.
pub(super) trait Weight: Copy + Sync {
    /// Whether columns have factors.
    const IS_SCALED: bool;

    /// Loads a vector of weights of columns whose factors are `scales`.
    ///
    /// # Safety
    /// `LANES` weights can be read at `from`.
    #[expect(unsafe_code, reason = "no checks of bounds in the innermost loop")]
    unsafe fn load<S: Simd>(s: S, from: *const Self, scales: S::V) -> S::V;
}

impl Weight for f32 {
    const IS_SCALED: bool = false;

    #[inline(always)]
    #[expect(unsafe_code, reason = "no checks of bounds in the innermost loop")]
    unsafe fn load<S: Simd>(s: S, from: *const Self, _: S::V) -> S::V {
        // SAFETY: as the caller's.
        unsafe { s.load_ptr(from) }
    }
}

impl Weight for i8 {
    const IS_SCALED: bool = true;

    #[inline(always)]
    #[expect(unsafe_code, reason = "no checks of bounds in the innermost loop")]
    unsafe fn load<S: Simd>(s: S, from: *const Self, scales: S::V) -> S::V {
        // SAFETY: as the caller's.
        s.mul(unsafe { s.load_bytes_ptr(from) }, scales)
    }
}

impl Weights {
    /// Holds panels of `k` rows as bytes, if that loses nothing.
    pub(super) fn of(lines: Lines, k: usize) -> Self {
        let floats = lines.as_slice();
        if floats.len() < FEWEST || !first_column_is_quantized(floats, k) {
            return Self::Floats(lines);
        }
        // A quarter of what needs large pages most.
        let mut values = vec![0; floats.len()];
        let mut scales = vec![0.0; floats.len() / k];
        let panels = floats.par_chunks(k * PANEL).zip(values.par_chunks_mut(k * PANEL));
        let is_quantized =
            panels.zip(scales.par_chunks_mut(PANEL)).all(|((floats, values), scales)| match scales.len() {
                PANEL => quantize::<PANEL>(floats, values, scales),
                _ => quantize::<HALF_PANEL>(floats, values, scales),
            });
        if is_quantized { Self::Bytes { values, scales } } else { Self::Floats(lines) }
    }
}

/// Whether it is worth looking at the others: of most matrices this column tells that they are not.
fn first_column_is_quantized(floats: &[f32], k: usize) -> bool {
    let width = (floats.len() / k).min(PANEL);
    let column: Vec<f32> = floats.iter().step_by(width).take(k).copied().collect();
    quantize::<1>(&column, &mut vec![0; k], &mut [0.0])
}

/// Finds the integers and factors of a panel of `W` columns; gives whether they are what it holds, to the last bit.
fn quantize<const W: usize>(floats: &[f32], values: &mut [i8], scales: &mut [f32]) -> bool {
    let (rows, _) = floats.as_chunks::<W>();
    let (values, _) = values.as_chunks_mut::<W>();
    let mut largest = [0.0_f32; W];
    for row in rows {
        for (largest, x) in largest.iter_mut().zip(row) {
            *largest = if x.abs() > *largest { x.abs() } else { *largest };
        }
    }
    // A factor is its column's largest number by the largest integer, give or take the rounding of both.
    let guess = largest.map(|x| x / LARGEST);
    let mut found = [0.0; W];
    let mut is_found = [false; W];
    for candidate in [guess, guess.map(f32::next_up), guess.map(f32::next_down)] {
        for i in 0..W {
            found[i] = if is_found[i] { found[i] } else { candidate[i] };
        }
        is_found = [true; W];
        for (row, values) in rows.iter().zip(values.iter_mut()) {
            for i in 0..W {
                // The integer lies in the low bits. One that does not fit gives another product.
                values[i] = (row[i] / found[i] + ROUND).to_bits() as i8;
                is_found[i] &= (f32::from(values[i]) * found[i]).to_bits() == row[i].to_bits();
            }
        }
        if is_found == [true; W] {
            scales.copy_from_slice(&found);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{PackedMatrix, Rows, Start, gemm};
    use crate::testing::{bits, noise, same_everywhere};
    use proptest::prelude::proptest;

    /// `[k, n]`, quantized unless it is too small; the last column is zero.
    fn quantized(seed: u64, k: usize, n: usize) -> Vec<f32> {
        let mut weights = noise(seed, k * n);
        weights.iter_mut().skip(n - 1).step_by(n).for_each(|x| *x = 0.0);
        quantize_columns(&mut weights, n).unwrap();
        weights
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

        #[test]
        fn bytes_give_the_bits_of_floats(
            seed in 0..1000_u64,
            n_rows in 1..40_usize,
            k in 1..600_usize,
            n in 5..80_usize,
        ) {
            // Some of these are too small to be bytes.
            let weights = quantized(seed, k, n);
            let matrix = PackedMatrix::new(&weights, k, n).unwrap();
            let is_large = k * n.next_multiple_of(HALF_PANEL) >= FEWEST;
            assert_eq!(matches!(matrix.weights, Weights::Bytes { .. }), is_large);
            let (xs, bias) = (noise(seed + 1, n_rows * k), noise(seed + 2, n));
            let got = same_everywhere(|| {
                let mut out = vec![0.0; n_rows * n];
                gemm(Rows::new(&xs, n_rows, k, k).unwrap(), &matrix, Start::Bias(&bias), &mut out).unwrap();
                out
            });
            let chain = |r: usize, c: usize| {
                (0..k).fold(bias[c], |sum, i| xs[r * k + i].mul_add(weights[i * n + c], sum))
            };
            let want: Vec<f32> = (0..n_rows * n).map(|i| chain(i / n, i % n)).collect();
            assert_eq!(bits(&got), bits(&want));
            assert_eq!(bits(&matrix.unpacked()), bits(&weights));
        }
    }

    #[test]
    fn quantizing_rounds_to_the_nearest_step_of_a_column() {
        let (k, n) = (300, 64);
        let weights = noise(5, k * n);
        let mut quantized = weights.clone();
        quantize_columns(&mut quantized, n).unwrap();
        for column in 0..n {
            let places = (0..k).map(|row| row * n + column);
            let step = places.clone().map(|i| weights[i].abs()).fold(0.0, f32::max) / LARGEST;
            assert!(places.clone().any(|i| quantized[i] != weights[i]));
            // Half a step and the rounding of the product.
            assert!(places.clone().all(|i| (quantized[i] - weights[i]).abs() <= 0.500_01 * step));
        }
        let mut odd = weights.clone();
        (odd[0], odd[n + 1]) = (f32::NAN, f32::INFINITY);
        quantize_columns(&mut odd, n).unwrap();
        assert!(odd[0].is_nan() && odd[n + 1] == f32::INFINITY && odd[2 * n + 1] == weights[2 * n + 1]);
        quantize_columns(&mut [], usize::MAX).unwrap();
        let mut small = weights[..20 * n].to_vec();
        quantize_columns(&mut small, n).unwrap();
        assert_eq!(small, weights[..20 * n]);
        assert!(quantize_columns(&mut small, 7).is_err() && quantize_columns(&mut small, 0).is_err());
    }

    #[test]
    fn what_is_not_quantized_stays_as_it_is() {
        let (k, n) = (256, 64);
        let weights = quantized(3, k, n);
        let is_bytes = |weights: &[f32]| {
            matches!(PackedMatrix::new(weights, k, n).unwrap().weights, Weights::Bytes { .. })
        };
        assert!(is_bytes(&weights) && !is_bytes(&noise(4, k * n)));
        let whole = weights.iter().position(|&x| x.abs() > 0.1).unwrap();
        for odd in [weights[whole].next_up(), f32::NAN, f32::INFINITY, -0.0] {
            let mut weights = weights.clone();
            weights[whole] = odd;
            assert!(!is_bytes(&weights), "{odd}");
        }
    }
}
