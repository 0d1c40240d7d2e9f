//! Finite scalar quantization: each value is rounded to one of a few levels; no codebook to search.

use crate::codes::{CodeLayout, CodebookSpec, MAX_CODEBOOK_SIZE};
use crate::error::{Error, Result};
use crate::quantizer::blocks::{decode_blocks, encode_blocks, grown};
use crate::quantizer::{Latents, Projections, Quantizer};
use codec_kernels::{Unary, unary_in_place};

/// A grid of `levels[0] x levels[1] x ...` points as one codebook, optionally between two
/// projections.
///
/// Value `i` is bounded to `tanh(x + shift) * half - offset` and rounded, ties to even, to one of
/// `levels[i]` whole numbers around zero: `-(l - 1) / 2 ..= (l - 1) / 2` for an odd number `l` of
/// levels, `-l / 2 ..= l / 2 - 1` for an even one. The code is the mixed-radix number of the levels,
/// the first value least significant. A decoded value is the whole number divided by `l / 2`,
/// rounded down, so it lies in [-1, 1].
///
/// # Source
/// Mentzer et al. 2023, arXiv 2309.15505, appendix A.1; google-research/google-research,
/// `fsq/fsq.ipynb`, with its constant `eps = 1e-3`.
///
/// ```
/// use codec_core::quantizer::{Fsq, Latents, Quantizer};
/// let fsq = Fsq::new(&[5, 3])?;
/// let codes = fsq.encode(Latents::new(&[0.0, 9.0], 2)?, 1)?;
/// assert_eq!(codes.row(0), Some([2 + 5 * 2].as_slice()));
/// assert_eq!(fsq.decode(&codes)?, [0.0, 1.0]);
/// # Ok::<(), codec_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Fsq {
    layout: CodeLayout,
    grid: Vec<Level>,
    projections: Option<Projections>,
}

impl Fsq {
    /// A grid with the given number of levels for each value.
    ///
    /// # Errors
    /// [`Error::Range`] when there is no value, when a number of levels is below 2, or when the grid
    /// has more than [`MAX_CODEBOOK_SIZE`] points.
    pub fn new(levels: &[u32]) -> Result<Self> {
        let max = u64::from(MAX_CODEBOOK_SIZE);
        if levels.is_empty() {
            return Err(Error::Range { what: "latent dimension", min: 1, max, actual: 0 });
        }
        let mut size = 1_u32;
        let mut grid = Vec::new();
        for &n_levels in levels {
            if n_levels < 2 {
                return Err(Error::Range { what: "levels", min: 2, max, actual: n_levels.into() });
            }
            let points = u64::from(size) * u64::from(n_levels);
            let grown = u32::try_from(points).ok().filter(|&points| points <= MAX_CODEBOOK_SIZE);
            size = grown.ok_or(Error::Range { what: "points of the grid", min: 2, max, actual: points })?;
            grid.push(Level::new(n_levels));
        }
        let layout = CodeLayout::new(vec![CodebookSpec { size, stride: 1 }])?;
        Ok(Self { layout, grid, projections: None })
    }

    /// Rounds between two projections: `dim` to one value per level and back.
    ///
    /// # Errors
    /// [`Error::Shape`] when the projections do not lead to as many values as there are levels.
    pub fn with_projections(mut self, projections: Projections) -> Result<Self> {
        projections.check_inner(self.grid.len())?;
        self.projections = Some(projections);
        Ok(self)
    }

    /// The number of levels of each value.
    pub fn levels(&self) -> impl ExactSizeIterator<Item = u32> {
        self.grid.iter().map(|level| level.n_levels)
    }

    /// The projections, if there are any.
    pub fn projections(&self) -> Option<&Projections> {
        self.projections.as_ref()
    }

    fn encode_block(&self, bounded: &mut Vec<f32>, xs: &[f32], codes: &mut [u32]) -> Result<()> {
        let bounded = grown(bounded, codes.len() * self.grid.len());
        match &self.projections {
            Some(projections) => projections.input().apply(xs, bounded)?,
            None => bounded.copy_from_slice(xs),
        }
        let rows = bounded.chunks_exact_mut(self.grid.len());
        rows.for_each(|row| row.iter_mut().zip(&self.grid).for_each(|(x, level)| *x += level.shift));
        unary_in_place(Unary::Tanh, bounded);
        for (row, code) in bounded.chunks_exact(self.grid.len()).zip(codes) {
            // Horner's rule over the mixed radix, most significant value first.
            let digits = row.iter().zip(&self.grid).rev();
            *code = digits.fold(0, |code, (&x, level)| code * level.n_levels + level.digit(x));
        }
        Ok(())
    }

    fn decode_block(&self, points: &mut Vec<f32>, codes: &[u32], out: &mut [f32]) -> Result<()> {
        let look_up = |out: &mut [f32]| {
            for (row, &code) in out.chunks_exact_mut(self.grid.len()).zip(codes) {
                let mut rest = code;
                for (x, level) in row.iter_mut().zip(&self.grid) {
                    *x = level.value(rest % level.n_levels);
                    rest /= level.n_levels;
                }
            }
        };
        match &self.projections {
            None => look_up(out),
            Some(projections) => {
                let points = grown(points, codes.len() * self.grid.len());
                look_up(points);
                projections.output().apply(points, out)?;
            }
        }
        Ok(())
    }
}

impl Quantizer for Fsq {
    fn layout(&self) -> &CodeLayout {
        &self.layout
    }

    fn dim(&self) -> usize {
        self.projections.as_ref().map_or(self.grid.len(), |p| p.input().n_in())
    }

    fn encode_to(&self, latents: Latents<'_>, rows: &mut [Vec<u32>]) -> Result<()> {
        encode_blocks(&self.layout, self.dim(), latents, rows, |bounded, xs, codes| {
            self.encode_block(bounded, xs, codes)
        })
    }

    fn decode_to(&self, rows: &[&[u32]], out: &mut [f32]) -> Result<()> {
        decode_blocks(&self.layout, self.dim(), rows, out, |points, rows, out| {
            rows.iter().try_for_each(|row| self.decode_block(points, row, out))
        })
    }
}

/// The levels of one value.
#[derive(Clone, Copy, Debug)]
struct Level {
    n_levels: u32,
    /// Added before the bound, so that an input of 0 stays 0 when the levels are even in number.
    shift: f32,
    /// Half the width of the bounded range.
    half: f32,
    /// How far an even number of levels lies below zero.
    offset: f32,
}

impl Level {
    fn new(n_levels: u32) -> Self {
        // Keeps the bounded value clear of the next whole number.
        const EPS: f64 = 1e-3;
        let half = f64::from(n_levels - 1) * (1.0 - EPS) / 2.0;
        let offset = if n_levels.is_multiple_of(2) { 0.5 } else { 0.0 };
        let shift = tan(offset / half);
        Self { n_levels, shift: shift as f32, half: half as f32, offset: offset as f32 }
    }

    /// Index of the level of a value that went through tanh; the middle one for not-a-number.
    fn digit(self, tanh: f32) -> u32 {
        let whole = (tanh * self.half - self.offset).round_ties_even();
        // With very many levels, f32 rounding may reach past the last one.
        let digit = i64::from(self.n_levels / 2).saturating_add(whole as i64);
        digit.clamp(0, i64::from(self.n_levels - 1)) as u32
    }

    /// The value in [-1, 1] of a level.
    fn value(self, digit: u32) -> f32 {
        let half_width = self.n_levels / 2;
        (digit as f32 - half_width as f32) / half_width as f32
    }
}

/// Tangent of `x` in [0, 1.1], to about 1e-15: the standard library's is the platform's, and may
/// differ in the last bit from one to the next.
fn tan(x: f64) -> f64 {
    const N_TERMS: u32 = 12;
    let series = |first: f64, first_power: u32| {
        let mut term = first;
        let mut sum = first;
        for i in 1..N_TERMS {
            let power = f64::from(first_power + 2 * i);
            term *= -x * x / (power * (power - 1.0));
            sum += term;
        }
        sum
    };
    series(x, 1) / series(1.0, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Codes;
    use crate::quantizer::Projection;
    use crate::quantizer::testing::{check_hostile, check_laws, hostile_f32, hostile_size, noise};
    use proptest::prelude::*;

    fn encode(fsq: &Fsq, xs: &[f32]) -> Vec<u32> {
        fsq.encode(Latents::new(xs, fsq.dim()).unwrap(), 1).unwrap().into_rows().concat()
    }

    #[test]
    fn the_tangent_is_one() {
        for i in 0..=1100 {
            let x = f64::from(i) / 1000.0;
            assert!((tan(x) - x.tan()).abs() <= 4.0 * f64::EPSILON * x.tan().max(f64::MIN_POSITIVE), "{x}");
        }
    }

    #[test]
    fn codes_agree_with_the_published_formula_in_f64() {
        let levels = [8, 5, 7, 2, 3];
        let fsq = Fsq::new(&levels).unwrap();
        let n_frames = 4000;
        let xs: Vec<f32> = noise(3, n_frames * levels.len()).iter().map(|x| 2.0 * x).collect();
        let codes = encode(&fsq, &xs);
        let (mut n_clear, mut smallest_margin) = (0, f64::INFINITY);
        for (row, &code) in xs.chunks_exact(levels.len()).zip(&codes) {
            let (mut expected, mut basis, mut margin) = (0, 1, f64::INFINITY);
            for (&x, &n_levels) in row.iter().zip(&levels) {
                let half = f64::from(n_levels - 1) * 0.999 / 2.0;
                let offset = if n_levels % 2 == 0 { 0.5 } else { 0.0 };
                let bounded = (f64::from(x) + (offset / half).tan()).tanh() * half - offset;
                let whole = bounded.round();
                margin = margin.min(0.5 - (bounded - whole).abs());
                expected += basis * (whole as i64 + i64::from(n_levels / 2)) as u32;
                basis *= n_levels;
            }
            smallest_margin = smallest_margin.min(margin);
            // A few roundings of numbers below 4.
            if margin > 4e-6 {
                n_clear += 1;
                assert_eq!(code, expected, "{row:?}");
            }
        }
        println!("{n_clear} of {n_frames} clear of a rounding edge, smallest margin {smallest_margin:e}");
        assert!(n_clear * 1000 >= n_frames * 999);
    }

    #[test]
    fn every_point_of_the_grid_has_its_own_code() {
        let fsq = Fsq::new(&[4, 3, 2]).unwrap();
        let all = Codes::new(fsq.layout().clone(), vec![(0..24).collect()]).unwrap();
        let points = fsq.decode(&all).unwrap();
        assert_eq!(points[..6], [-1.0, -1.0, -1.0, -0.5, -1.0, -1.0]);
        assert_eq!(points[23 * 3..], [0.5, 1.0, 0.0]);
        let distinct: std::collections::HashSet<_> =
            points.chunks_exact(3).map(|p| [p[0], p[1], p[2]].map(f32::to_bits)).collect();
        assert_eq!(distinct.len(), 24);
    }

    #[test]
    fn large_inputs_reach_the_outermost_levels() {
        for n_levels in [2, 3, 8, 9, 1 << 12, (1 << 24) - 1, 1 << 24] {
            let fsq = Fsq::new(&[n_levels]).unwrap();
            let codes = encode(&fsq, &[-1e30, 1e30, 0.0]);
            // With very many levels, the bound's 0.1 % keeps the outermost ones out of reach.
            let slack = n_levels / 1000;
            assert!(codes[0] <= slack && codes[1] >= n_levels - 1 - slack, "{n_levels}: {codes:?}");
            assert!(codes[2].abs_diff(n_levels / 2) <= 1, "{n_levels}: {codes:?}");
        }
    }

    #[test]
    fn the_laws_hold() {
        check_laws(&Fsq::new(&[8, 5, 5, 5]).unwrap(), 200);
        let projection = |seed, n_in: usize, n_out: usize| {
            Projection::new(noise(seed, n_in * n_out), None, n_in, n_out).unwrap()
        };
        let projections = Projections::new(projection(1, 10, 3), projection(2, 3, 10)).unwrap();
        let fsq = Fsq::new(&[8, 7, 6]).unwrap().with_projections(projections.clone()).unwrap();
        check_laws(&fsq, 150);
        let other = Fsq::new(&[8, 7]).unwrap();
        assert!(matches!(
            other.with_projections(projections),
            Err(Error::Shape { expected: 2, actual: 3, .. })
        ));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for levels in [&[][..], &[0], &[1], &[8, 1], &[1 << 24, 2], &[u32::MAX, u32::MAX]] {
            assert!(matches!(Fsq::new(levels), Err(Error::Range { .. })), "{levels:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn nothing_panics(
            levels in prop::collection::vec(prop_oneof![8 => 2_u32..9, 1 => any::<u32>()], 0..5),
            xs in prop::collection::vec(hostile_f32(), 0..24),
            dim in hostile_size(),
            n_codebooks in hostile_size(),
        ) {
            if let Ok(fsq) = Fsq::new(&levels) {
                prop_assert_eq!(fsq.levels().collect::<Vec<_>>(), levels);
                check_hostile(&fsq, &xs, dim, n_codebooks);
                check_hostile(&fsq, &xs, fsq.dim(), 1);
            }
        }
    }
}
