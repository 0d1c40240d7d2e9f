//! Residual vector quantization: each stage codes what the stages before it left over.

use crate::codes::{CodeLayout, CodebookSpec};
use crate::error::{Error, Result};
use crate::quantizer::blocks::{decode_blocks, encode_blocks, grown};
use crate::quantizer::{Distance, Latents, Projections, Quantizer, Vq, vq};

/// Stages of one codebook each, coarse to fine, optionally between two projections.
///
/// A stage with stride `s` codes the mean of every `s` residuals and takes its entry from each of
/// the `s` frames (SNAC).
///
/// # Source
/// Zeghidour et al. 2021, arXiv 2107.03312, algorithm 1. Strides: hubertsiuzdak/snac, `vq.py`.
/// Projections around the stack: kyutai-labs/moshi, `quantization/vq.py`, `ResidualVectorQuantizer`.
///
/// ```
/// use codec_core::quantizer::{Distance, Latents, Quantizer, Rvq, Vq};
/// // Codes pairs of numbers: first in steps of 1, then in steps of 0.25.
/// let coarse = Vq::new(vec![0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0], 2, Distance::Euclidean)?;
/// let fine = Vq::new(vec![0.0, 0.0, 0.25, 0.0, 0.0, 0.25], 2, Distance::Euclidean)?;
/// let rvq = Rvq::new(vec![coarse, fine])?;
/// let codes = rvq.encode(Latents::new(&[1.2, 0.0], 2)?, 2)?;
/// assert_eq!(rvq.decode(&codes)?, [1.25, 0.0]);
/// assert_eq!(rvq.decode(&codes.truncated(1)?)?, [1.0, 0.0]);
/// # Ok::<(), codec_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rvq {
    layout: CodeLayout,
    stages: Vec<Vq>,
    inner_dim: usize,
    projections: Option<Projections>,
}

impl Rvq {
    /// Takes the stages, coarse to fine, one code per frame each.
    ///
    /// # Errors
    /// As [`Rvq::with_strides`].
    pub fn new(stages: Vec<Vq>) -> Result<Self> {
        Self::with_strides(stages.into_iter().map(|stage| (stage, 1)).collect())
    }

    /// Takes the stages, coarse to fine, each with the number of frames that share one of its codes.
    ///
    /// # Errors
    /// [`Error::Range`] as [`CodeLayout::new`], [`Error::Shape`] when the stages differ in dimension.
    pub fn with_strides(stages: Vec<(Vq, u32)>) -> Result<Self> {
        let spec = |(stage, stride): &(Vq, u32)| {
            stage
                .layout()
                .codebooks()
                .iter()
                .map(|c| CodebookSpec { stride: *stride, ..*c })
                .collect::<Vec<_>>()
        };
        let layout = CodeLayout::new(stages.iter().flat_map(spec).collect())?;
        let inner_dim = stages.first().map_or(0, |(stage, _)| stage.dim());
        if let Some((odd, _)) = stages.iter().find(|(stage, _)| stage.dim() != inner_dim) {
            let what = "dimension of a stage";
            return Err(Error::Shape { what, expected: inner_dim, actual: odd.dim() });
        }
        let stages = stages.into_iter().map(|(stage, _)| stage).collect();
        Ok(Self { layout, stages, inner_dim, projections: None })
    }

    /// Takes codebooks of one size and dimension that lie one after another, to be searched by
    /// Euclidean distance.
    ///
    /// # Shapes
    /// `codebooks`: `[n_codebooks, codebook_size, dim]`.
    ///
    /// # Errors
    /// [`Error::Range`] when a size is zero or too large, [`Error::Shape`] when the last codebook is
    /// not whole, [`Error::NotFinite`] when a value is not finite.
    pub fn from_codebooks(codebooks: &[f32], codebook_size: usize, dim: usize) -> Result<Self> {
        let per_codebook = super::checked_len("codebook", &[codebook_size, dim])?;
        Latents::new(codebooks, per_codebook)?;
        let stages = codebooks.chunks_exact(per_codebook);
        Self::new(stages.map(|c| Vq::new(c.to_vec(), dim, Distance::Euclidean)).collect::<Result<_>>()?)
    }

    /// Puts the whole stack between two projections.
    ///
    /// # Errors
    /// [`Error::Shape`] when the projections do not lead to the stages' dimension.
    pub fn with_projections(mut self, projections: Projections) -> Result<Self> {
        projections.check_inner(self.inner_dim)?;
        self.projections = Some(projections);
        Ok(self)
    }

    /// The stages, coarse to fine.
    pub fn stages(&self) -> &[Vq] {
        &self.stages
    }

    /// The projections around the stack, if there are any.
    pub fn projections(&self) -> Option<&Projections> {
        self.projections.as_ref()
    }

    /// The stages with the frames per code of each.
    fn strided_stages(&self) -> impl Iterator<Item = (&Vq, usize)> {
        self.stages.iter().zip(self.layout.codebooks().iter().map(|c| c.stride as usize))
    }

    /// Codes a block of whole strides; `codes` holds the rows one after another.
    fn encode_block(
        &self,
        scratch: &mut Scratch,
        n_codebooks: usize,
        xs: &[f32],
        mut codes: &mut [u32],
    ) -> Result<()> {
        let dim = self.inner_dim;
        let n_frames = xs.len() / self.dim();
        let Scratch { residual, pooled, entries, vq } = scratch;
        let residual = grown(residual, n_frames * dim);
        match &self.projections {
            Some(projections) => projections.input().apply(xs, residual)?,
            None => residual.copy_from_slice(xs),
        }
        for (stage_idx, (stage, stride)) in self.strided_stages().take(n_codebooks).enumerate() {
            let n_codes = n_frames / stride;
            let (row, rest) = codes.split_at_mut(n_codes);
            codes = rest;
            if stride == 1 {
                stage.encode_rows(vq, residual, row)?;
            } else {
                let pooled = grown(pooled, n_codes * dim);
                pool(residual, dim, stride, pooled);
                stage.encode_rows(vq, pooled, row)?;
            }
            if stage_idx + 1 < n_codebooks {
                let entries = grown(entries, n_codes * dim);
                stage.decode_rows(vq, row, entries)?;
                for_each_frame(residual, entries, dim, stride, |x, entry| *x -= entry);
            }
        }
        Ok(())
    }

    /// Decodes a block; `out` is zero.
    fn decode_block(&self, scratch: &mut Scratch, rows: &[&[u32]], out: &mut [f32]) -> Result<()> {
        let Scratch { residual: sum, entries, vq, .. } = scratch;
        match &self.projections {
            None => self.add_entries(entries, vq, rows, out),
            Some(projections) => {
                let n_frames = out.len() / self.dim();
                let sum = grown(sum, n_frames * self.inner_dim);
                sum.fill(0.0);
                self.add_entries(entries, vq, rows, sum)?;
                projections.output().apply(sum, out)
            }
        }
    }

    /// Adds every stage's entries to `sum`, `[n_frames, inner_dim]`, stage by stage.
    fn add_entries(
        &self,
        entries: &mut Vec<f32>,
        scratch: &mut vq::Scratch,
        rows: &[&[u32]],
        sum: &mut [f32],
    ) -> Result<()> {
        for ((stage, stride), row) in self.strided_stages().zip(rows) {
            let entries = grown(entries, row.len() * self.inner_dim);
            stage.decode_rows(scratch, row, entries)?;
            for_each_frame(sum, entries, self.inner_dim, stride, |x, entry| *x += entry);
        }
        Ok(())
    }
}

impl Quantizer for Rvq {
    fn layout(&self) -> &CodeLayout {
        &self.layout
    }

    fn dim(&self) -> usize {
        self.projections.as_ref().map_or(self.inner_dim, |p| p.input().n_in())
    }

    fn encode_to(&self, latents: Latents<'_>, rows: &mut [Vec<u32>]) -> Result<()> {
        let n_codebooks = rows.len();
        encode_blocks(&self.layout, self.dim(), latents, rows, |scratch, xs, codes| {
            self.encode_block(scratch, n_codebooks, xs, codes)
        })
    }

    fn decode_to(&self, rows: &[&[u32]], out: &mut [f32]) -> Result<()> {
        decode_blocks(&self.layout, self.dim(), rows, out, |scratch, rows, out| {
            self.decode_block(scratch, rows, out)
        })
    }
}

/// Buffers of one task, kept from block to block.
#[derive(Debug, Default)]
struct Scratch {
    residual: Vec<f32>,
    pooled: Vec<f32>,
    entries: Vec<f32>,
    vq: vq::Scratch,
}

/// Means of `stride` rows each.
fn pool(xs: &[f32], dim: usize, stride: usize, out: &mut [f32]) {
    for (mean, rows) in out.chunks_exact_mut(dim).zip(xs.chunks_exact(stride * dim)) {
        mean.fill(0.0);
        for row in rows.chunks_exact(dim) {
            mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        mean.iter_mut().for_each(|sum| *sum /= stride as f32);
    }
}

/// Meets every value of every frame with that of the entry which the frame shares.
fn for_each_frame(
    frames: &mut [f32],
    entries: &[f32],
    dim: usize,
    stride: usize,
    meet: impl Fn(&mut f32, f32),
) {
    for (frames, entry) in frames.chunks_exact_mut(stride * dim).zip(entries.chunks_exact(dim)) {
        for frame in frames.chunks_exact_mut(dim) {
            frame.iter_mut().zip(entry).for_each(|(x, &e)| meet(x, e));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Codes;
    use crate::quantizer::Projection;
    use crate::quantizer::testing::{
        brute_force, check_hostile, check_laws, float_error, hostile_f32, hostile_size, noise,
    };
    use proptest::prelude::*;

    /// Codebooks that shrink from stage to stage, as trained ones do.
    fn shrinking(n_codebooks: usize, size: usize, dim: usize) -> Rvq {
        let scale = |k: usize| 0.8_f32.powi(k as i32);
        let codebooks: Vec<f32> = (0..n_codebooks)
            .flat_map(|k| noise(k as u64, size * dim).into_iter().map(move |x| x * scale(k)))
            .collect();
        Rvq::from_codebooks(&codebooks, size, dim).unwrap()
    }

    fn projection(seed: u64, n_in: usize, n_out: usize) -> Projection {
        let weight = noise(seed, n_in * n_out).iter().map(|x| x / (n_in as f32).sqrt()).collect();
        Projection::new(weight, Some(noise(seed + 1, n_out)), n_in, n_out).unwrap()
    }

    fn projections(seed: u64, dim: usize, inner: usize) -> Projections {
        Projections::new(projection(seed, dim, inner), projection(seed + 9, inner, dim)).unwrap()
    }

    /// DAC's shape: projections and a normalised look-up in every stage, strides if asked for.
    fn factorized(strides: &[u32], dim: usize) -> Rvq {
        let stage = |(k, &stride): (usize, &u32)| {
            let vq = Vq::new(noise(k as u64, 64 * 8), 8, Distance::Cosine).unwrap();
            (vq.with_projections(projections(k as u64 + 50, dim, 8)).unwrap(), stride)
        };
        Rvq::with_strides(strides.iter().enumerate().map(stage).collect()).unwrap()
    }

    #[test]
    fn stages_agree_with_a_search_in_f64() {
        let (n_codebooks, size, dim, n_frames) = (8, 256, 32, 200);
        let rvq = shrinking(n_codebooks, size, dim);
        let xs = noise(99, n_frames * dim);
        let codes = rvq.encode(Latents::new(&xs, dim).unwrap(), n_codebooks).unwrap();
        let (mut n_equal, mut n_clear, mut smallest_margin) = (0, 0, f64::INFINITY);
        for (t, x) in xs.chunks_exact(dim).enumerate() {
            let mut residual: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            for (stage, row) in rvq.stages().iter().zip(codes.rows()) {
                let (best, first, second) = brute_force(&residual, stage.codebook(), Distance::Euclidean);
                // The residual, too, was rounded in every stage before.
                let bound = 4.0 * float_error(dim, 8.0 * dim as f64);
                let code = row[t] as usize;
                n_equal += usize::from(code == best);
                smallest_margin = smallest_margin.min(second - first);
                if second - first > bound {
                    n_clear += 1;
                    assert_eq!(code, best, "frame {t}");
                }
                let entry = &stage.codebook()[code * dim..][..dim];
                residual.iter_mut().zip(entry).for_each(|(x, &e)| *x -= f64::from(e));
            }
        }
        let n_codes = n_codebooks * n_frames;
        println!("{n_equal} of {n_codes} equal, {n_clear} clear, smallest margin {smallest_margin:e}");
        assert!(n_clear * 100 >= n_codes * 95, "{n_clear} of {n_codes}");
    }

    #[test]
    fn more_stages_leave_less() {
        let dim = 16;
        let rvq = shrinking(8, 256, dim);
        let xs = noise(5, 100 * dim);
        let codes = rvq.encode(Latents::new(&xs, dim).unwrap(), 8).unwrap();
        let mut before = xs.iter().map(|&x| f64::from(x * x)).sum::<f64>();
        for n in 1..=8 {
            let decoded = rvq.decode(&codes.truncated(n).unwrap()).unwrap();
            let left: f64 = xs.iter().zip(&decoded).map(|(x, y)| f64::from(x - y).powi(2)).sum();
            assert!(left < 0.98 * before, "stage {n}: {left} of {before} are left");
            before = left;
        }
    }

    #[test]
    fn a_strided_stage_codes_the_mean_and_repeats_its_entry() {
        let coarse = Vq::new(vec![0.0, 10.0], 1, Distance::Euclidean).unwrap();
        let fine = Vq::new(vec![-1.0, 0.0, 1.0], 1, Distance::Euclidean).unwrap();
        let rvq = Rvq::with_strides(vec![(coarse, 2), (fine, 1)]).unwrap();
        let codes = rvq.encode(Latents::new(&[9.0, 11.2, 0.9, -1.1], 1).unwrap(), 2).unwrap();
        assert_eq!(codes.row(0), Some([1, 0].as_slice()));
        assert_eq!(codes.row(1), Some([0, 2, 2, 0].as_slice()));
        assert_eq!(rvq.decode(&codes).unwrap(), [9.0, 11.0, 1.0, -1.0]);
        assert_eq!(rvq.decode(&codes.truncated(1).unwrap()).unwrap(), [10.0, 10.0, 0.0, 0.0]);
        // Half a block has no codes.
        let half = Latents::new(&[9.0], 1).unwrap();
        assert!(matches!(rvq.encode(half, 2), Err(Error::Shape { expected: 2, actual: 1, .. })));
    }

    #[test]
    fn a_prefix_of_strided_codes_may_end_inside_a_block_of_the_full_layout() {
        let rvq = factorized(&[1, 2, 4], 6);
        let layout = rvq.layout().truncated(1).unwrap();
        let codes = Codes::new(layout, vec![vec![5; 67]]).unwrap();
        let decoded = rvq.decode(&codes).unwrap();
        assert_eq!(decoded.len(), 67 * 6);
        assert!(decoded.chunks_exact(6).all(|row| row == &decoded[..6]));
    }

    #[test]
    fn the_laws_hold() {
        check_laws(&shrinking(4, 100, 7), 200);
        check_laws(&factorized(&[1; 4], 24), 150);
        check_laws(&factorized(&[4, 2, 1], 12), 200);
        check_laws(&factorized(&[1, 3, 6, 2], 12), 200);
        check_laws(&shrinking(4, 64, 16).with_projections(projections(3, 32, 16)).unwrap(), 150);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let stage = |dim: usize| Vq::new(vec![0.0; 2 * dim], dim, Distance::Euclidean).unwrap();
        assert!(matches!(Rvq::new(vec![]), Err(Error::Range { .. })));
        assert!(matches!(
            Rvq::new(vec![stage(2), stage(3)]),
            Err(Error::Shape { expected: 2, actual: 3, .. })
        ));
        for stride in [0, 1 << 17, u32::MAX] {
            assert!(matches!(Rvq::with_strides(vec![(stage(1), stride)]), Err(Error::Range { .. })));
        }
        let inner = Rvq::new(vec![stage(2)]).unwrap();
        assert!(matches!(inner.with_projections(projections(0, 4, 3)), Err(Error::Shape { .. })));
        assert!(matches!(Rvq::from_codebooks(&[0.0; 7], 2, 2), Err(Error::Shape { .. })));
        assert!(matches!(Rvq::from_codebooks(&[], 2, 2), Err(Error::Range { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn nothing_panics(
            values in prop::collection::vec(hostile_f32(), 0..40),
            sizes in (hostile_size(), hostile_size()),
            strides in prop::collection::vec(prop_oneof![1_u32..4, Just(0), Just(65_536), any::<u32>()], 0..4),
            xs in prop::collection::vec(hostile_f32(), 0..24),
            dim in hostile_size(),
            n_codebooks in hostile_size(),
        ) {
            if let Ok(rvq) = Rvq::from_codebooks(&values, sizes.0, sizes.1) {
                check_hostile(&rvq, &xs, dim, n_codebooks);
                check_hostile(&rvq, &xs, rvq.dim(), 1);
            }
            let finite: Vec<f32> = values.into_iter().filter(|x| x.is_finite()).collect();
            let stage = |&stride: &u32| Vq::new(finite.clone(), 1, Distance::Euclidean).map(|vq| (vq, stride));
            let Ok(stages) = strides.iter().map(stage).collect::<Result<Vec<_>>>() else { return Ok(()) };
            if let Ok(rvq) = Rvq::with_strides(stages) {
                check_hostile(&rvq, &xs, 1, strides.len());
                check_hostile(&rvq, &xs, dim, n_codebooks);
                // The longest block that the layout knows.
                let block = rvq.layout().stride_frames() as usize;
                check_hostile(&rvq, &vec![0.5; block], 1, strides.len());
            }
        }
    }
}
