//! Residual vector quantization that keeps several paths through the stages instead of the nearest entry of
//! each.
//!
//! The entry that is nearest at one stage need not leave what the next stages code best. Any decoder reads the
//! codes: only the search differs.

use crate::codes::CodeLayout;
use crate::error::{Error, Result};
use crate::quantizer::blocks::{encode_blocks, grown};
use crate::quantizer::vq::{self, DistanceRow};
use crate::quantizer::{Distance, Latents, Quantizer, Rvq, Vq};
use codec_kernels::squared_norms;

/// An [`Rvq`] whose encoder keeps the `width` best paths of each frame at every stage.
///
/// The codes for fewer codebooks are those of a search that ends there, which need not be the first rows of a
/// longer one; both decode, as any prefix does. With a width of one the codes are those of the [`Rvq`].
///
/// # Source
/// M-algorithm: Anderson and Mohan 1984, "Sequential coding algorithms: a survey and cost analysis"; for
/// multi-stage codebooks LeBlanc et al. 1993, "Efficient search and design procedures for robust multi-stage VQ
/// of LPC parameters for 4 kb/s speech coding".
///
/// ```
/// use codec_core::quantizer::{BeamRvq, Latents, Quantizer, Rvq};
/// // 1.4 lies nearer to 1 than to 2, but the second stage can only take away.
/// let rvq = Rvq::from_codebooks(&[1.0, 2.0, 0.0, -0.6], 2, 1)?;
/// let latents = Latents::new(&[1.4], 1)?;
/// assert_eq!(rvq.decode(&rvq.encode(latents, 2)?)?, [1.0]);
/// let beam = BeamRvq::new(rvq, 2)?;
/// assert_eq!(beam.decode(&beam.encode(latents, 2)?)?, [1.4]);
/// # Ok::<(), codec_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct BeamRvq {
    rvq: Rvq,
    width: usize,
}

impl BeamRvq {
    /// Most paths of a frame.
    pub const MAX_WIDTH: usize = 64;

    /// Keeps `width` paths.
    ///
    /// # Errors
    /// [`Error::Range`] when the width is zero or above [`BeamRvq::MAX_WIDTH`]; [`Error::Mismatch`] for stages
    /// with projections, strides or another distance than the Euclidean, and for projections around the stack.
    pub fn new(rvq: Rvq, width: usize) -> Result<Self> {
        if !(1..=Self::MAX_WIDTH).contains(&width) {
            let (max, actual) = (Self::MAX_WIDTH as u64, width as u64);
            return Err(Error::Range { what: "width of a beam", min: 1, max, actual });
        }
        let is_plain = |stage: &Vq| stage.distance() == Distance::Euclidean && stage.projections().is_none();
        let has_strides = rvq.layout().codebooks().iter().any(|codebook| codebook.stride != 1);
        if has_strides || rvq.projections().is_some() || !rvq.stages().iter().all(is_plain) {
            let (left, right) = ("a beam".to_owned(), "projections, strides or cosine distance".to_owned());
            return Err(Error::Mismatch { what: "residual quantizer", left, right });
        }
        Ok(Self { rvq, width })
    }

    /// Codes the frames `xs`; `codes` holds the rows one after another.
    fn encode_block(
        &self,
        scratch: &mut Scratch,
        n_codebooks: usize,
        xs: &[f32],
        codes: &mut [u32],
    ) -> Result<()> {
        let dim = self.dim();
        let n_frames = xs.len() / dim;
        let Scratch { residuals, extended, norms, stages, vq, minima } = scratch;
        grown(residuals, xs.len()).copy_from_slice(xs);
        stages.resize_with(stages.len().max(n_codebooks), Vec::new);
        // Paths of each frame, best first.
        let mut n_paths = 1;
        for (stage, best) in self.rvq.stages().iter().take(n_codebooks).zip(stages.iter_mut()) {
            let n_rows = n_frames * n_paths;
            let n_next = self.width.min(n_paths.saturating_mul(stage.codebook_size()));
            let residual = &residuals[..n_rows * dim];
            let norms = grown(norms, n_rows);
            squared_norms(residual, dim, norms)?;
            best.clear();
            best.resize(n_frames * n_next, Extension { distance: f32::INFINITY, path_idx: 0, code: 0 });
            stage.for_each_row_of_distances(vq, residual, norms, |row_idx, row| {
                let (frame_idx, path_idx) = (row_idx / n_paths, row_idx % n_paths);
                extend(&mut best[frame_idx * n_next..][..n_next], path_idx as u32, row, minima);
            })?;
            let rows = grown(extended, n_frames * n_next * dim).chunks_exact_mut(dim);
            for (i, (to, extension)) in rows.zip(best.iter()).enumerate() {
                let row_idx = i / n_next * n_paths + extension.path_idx as usize;
                let entry = &stage.codebook()[extension.code as usize * dim..][..dim];
                let from = &residual[row_idx * dim..][..dim];
                to.iter_mut().zip(from.iter().zip(entry)).for_each(|(to, (x, e))| *to = x - e);
            }
            std::mem::swap(residuals, extended);
            n_paths = n_next;
        }
        // Back from the end of each frame's best path.
        for frame_idx in 0..n_frames {
            let mut path_idx = 0;
            for (stage_idx, best) in stages[..n_codebooks].iter().enumerate().rev() {
                let extension = best[frame_idx * (best.len() / n_frames) + path_idx];
                codes[stage_idx * n_frames + frame_idx] = extension.code;
                path_idx = extension.path_idx as usize;
            }
        }
        Ok(())
    }
}

impl Quantizer for BeamRvq {
    fn layout(&self) -> &CodeLayout {
        self.rvq.layout()
    }

    fn dim(&self) -> usize {
        self.rvq.dim()
    }

    fn encode_to(&self, latents: Latents<'_>, rows: &mut [Vec<u32>]) -> Result<()> {
        let n_codebooks = rows.len();
        encode_blocks(self.layout(), self.dim(), latents, rows, |scratch, xs, codes| {
            self.encode_block(scratch, n_codebooks, xs, codes)
        })
    }

    fn decode_to(&self, rows: &[&[u32]], out: &mut [f32]) -> Result<()> {
        self.rvq.decode_to(rows, out)
    }
}

/// Buffers of one task, kept from block to block.
#[derive(Debug, Default)]
struct Scratch {
    /// Of every path of every frame, what its stages left over.
    residuals: Vec<f32>,
    /// The same after the next stage.
    extended: Vec<f32>,
    norms: Vec<f32>,
    /// For every stage the paths that are kept, in order, frame by frame.
    stages: Vec<Vec<Extension>>,
    vq: vq::Scratch,
    minima: Vec<f32>,
}

/// A path with one more code.
#[derive(Clone, Copy, Debug)]
struct Extension {
    /// What it leaves over, squared.
    distance: f32,
    path_idx: u32,
    code: u32,
}

impl Extension {
    /// Whether it goes before another: the order of equal ones must not depend on that of the search.
    fn precedes(&self, other: &Self) -> bool {
        self.distance < other.distance
            || self.distance == other.distance && (self.path_idx, self.code) < (other.path_idx, other.code)
    }
}

/// Puts the extensions of one path by the codes of a run where they belong in `best`, which is in order.
fn extend(best: &mut [Extension], path_idx: u32, row: DistanceRow<'_>, scratch: &mut Vec<f32>) {
    let n_paths = best.len();
    let Some(last) = n_paths.checked_sub(1) else { return };
    let bound = match best[last].distance {
        // Where nothing is known yet, most codes of the first path would come in only to be pushed out.
        f32::INFINITY => row.bound_of_nearest(n_paths, scratch),
        distance => distance,
    };
    row.for_each_up_to(bound, |code, distance| {
        let new = Extension { distance, path_idx, code };
        if new.precedes(&best[last]) {
            let place = best.partition_point(|old| !new.precedes(old));
            best.copy_within(place..last, place + 1);
            best[place] = new;
        }
        best[last].distance.min(bound)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantizer::testing::{check_hostile, hostile_f32, hostile_size, noise};
    use proptest::prelude::*;

    /// Codebooks that shrink from stage to stage, as trained ones do.
    fn shrinking(n_codebooks: usize, size: usize, dim: usize) -> Rvq {
        let scale = |k: usize| 0.8_f32.powi(k as i32);
        let codebooks: Vec<f32> = (0..n_codebooks)
            .flat_map(|k| noise(k as u64, size * dim).into_iter().map(move |x| x * scale(k)))
            .collect();
        Rvq::from_codebooks(&codebooks, size, dim).unwrap()
    }

    fn left_over(quantizer: &impl Quantizer, xs: &[f32], n_codebooks: usize) -> f64 {
        let codes = quantizer.encode(Latents::new(xs, quantizer.dim()).unwrap(), n_codebooks).unwrap();
        let decoded = quantizer.decode(&codes).unwrap();
        xs.iter().zip(&decoded).map(|(x, y)| f64::from(x - y).powi(2)).sum()
    }

    #[test]
    fn a_width_of_one_is_the_nearest_entry_of_each_stage() {
        let rvq = shrinking(5, 1500, 12);
        let xs = noise(7, 150 * 12);
        let latents = Latents::new(&xs, 12).unwrap();
        let beam = BeamRvq::new(rvq.clone(), 1).unwrap();
        assert_eq!(beam.encode(latents, 5).unwrap(), rvq.encode(latents, 5).unwrap());
    }

    #[test]
    fn a_wider_beam_leaves_less() {
        let rvq = shrinking(6, 64, 16);
        let xs = noise(8, 200 * 16);
        for n_codebooks in [2, 6] {
            let left = [1, 4, 16]
                .map(|width| left_over(&BeamRvq::new(rvq.clone(), width).unwrap(), &xs, n_codebooks));
            assert!(left[1] < 0.97 * left[0] && left[2] < 0.99 * left[1], "{n_codebooks}: {left:?}");
        }
        // The first stage has no choice.
        let beam = BeamRvq::new(rvq.clone(), 16).unwrap();
        assert_eq!(left_over(&beam, &xs, 1), left_over(&rvq, &xs, 1));
    }

    #[test]
    fn a_beam_of_all_paths_finds_the_best_of_all() {
        let (size, dim) = (6, 3);
        let rvq = shrinking(2, size, dim);
        let xs = noise(9, 50 * dim);
        let beam = BeamRvq::new(rvq.clone(), size * size).unwrap();
        let codes = beam.encode(Latents::new(&xs, dim).unwrap(), 2).unwrap();
        let entry = |stage: usize, code: usize| &rvq.stages()[stage].codebook()[code * dim..][..dim];
        for (t, x) in xs.chunks_exact(dim).enumerate() {
            let distance = |a: usize, b: usize| -> f64 {
                let sum = entry(0, a).iter().zip(entry(1, b)).zip(x);
                sum.map(|((a, b), x)| f64::from(x - a - b).powi(2)).sum()
            };
            let pairs = (0..size).flat_map(|a| (0..size).map(move |b| (a, b)));
            let best = pairs.map(|(a, b)| distance(a, b)).fold(f64::INFINITY, f64::min);
            let row = |k: usize| codes.row(k).unwrap()[t] as usize;
            let got = distance(row(0), row(1));
            assert!(got <= best + 1e-5, "frame {t}: {got} instead of {best}");
        }
    }

    #[test]
    fn a_frame_does_not_depend_on_its_neighbours() {
        let (dim, n_frames) = (10, 150);
        let beam = BeamRvq::new(shrinking(4, 1100, dim), 5).unwrap();
        let xs = noise(10, n_frames * dim);
        let whole = beam.encode(Latents::new(&xs, dim).unwrap(), 4).unwrap();
        for (t, x) in xs.chunks_exact(dim).enumerate() {
            let alone = beam.encode(Latents::new(x, dim).unwrap(), 4).unwrap();
            let of_whole: Vec<u32> = whole.rows().map(|row| row[t]).collect();
            assert_eq!(alone.rows().map(|row| row[0]).collect::<Vec<_>>(), of_whole, "frame {t}");
        }
    }

    #[test]
    fn equal_paths_go_to_the_lowest_codes() {
        let rvq = Rvq::from_codebooks(&[1.0, 1.0, 0.5, 0.5, 0.5, 0.5], 2, 1).unwrap();
        let beam = BeamRvq::new(rvq, 4).unwrap();
        let codes = beam.encode(Latents::new(&[2.0, 1.5], 1).unwrap(), 3).unwrap();
        assert!(codes.rows().all(|row| row == [0, 0]), "{codes:?}");
        // Copies whose places the search sees in another order than that of their codes.
        let entries = noise(11, 20);
        for n_copies in [2, 7, 80] {
            let rvq = Rvq::from_codebooks(&entries.repeat(2 * n_copies), 20 * n_copies, 1).unwrap();
            let beam = BeamRvq::new(rvq, 8).unwrap();
            let codes = beam.encode(Latents::new(&entries, 1).unwrap(), 2).unwrap();
            assert!(codes.rows().flatten().all(|&code| code < 20), "{n_copies}: {codes:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let rvq = || Rvq::from_codebooks(&[0.0; 4], 2, 1).unwrap();
        for width in [0, BeamRvq::MAX_WIDTH + 1] {
            assert!(matches!(BeamRvq::new(rvq(), width), Err(Error::Range { .. })));
        }
        let cosine = Rvq::new(vec![Vq::new(vec![1.0, 2.0], 1, Distance::Cosine).unwrap()]).unwrap();
        assert!(matches!(BeamRvq::new(cosine, 2), Err(Error::Mismatch { .. })));
        let strided = Vq::new(vec![1.0, 2.0], 1, Distance::Euclidean).unwrap();
        let strided = Rvq::with_strides(vec![(strided, 2)]).unwrap();
        assert!(matches!(BeamRvq::new(strided, 2), Err(Error::Mismatch { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn nothing_panics(
            values in prop::collection::vec(hostile_f32(), 0..40),
            sizes in (hostile_size(), hostile_size()),
            xs in prop::collection::vec(hostile_f32(), 0..24),
            dim in hostile_size(),
            n_codebooks in hostile_size(),
            width in 1_usize..9,
        ) {
            if let Ok(rvq) = Rvq::from_codebooks(&values, sizes.0, sizes.1) {
                let beam = BeamRvq::new(rvq, width).unwrap();
                check_hostile(&beam, &xs, dim, n_codebooks);
                check_hostile(&beam, &xs, beam.dim(), 1);
            }
        }
    }
}
