//! Vector quantization: one codebook, searched whole.
//!
//! Deviation: DAC forms `z + (q - z)` in its forward pass, to let gradients through, and so hands
//! on `q` with a rounding error; here a decoded latent is the entry itself.

use crate::codes::{CodeLayout, CodebookSpec, MAX_CODEBOOK_SIZE};
use crate::error::Result;
use crate::quantizer::blocks::{decode_blocks, encode_blocks, grown};
use crate::quantizer::{Distance, Latents, Projections, Quantizer, check_finite};
use codec_kernels::{
    PackedMatrix, Rows, Start, covered_by_minimum, gemm, n_minima, squared_distances, squared_norms,
};
use std::borrow::Cow;

/// One codebook, optionally between two projections.
///
/// The whole codebook is searched with one matrix product per panel of entries; distances are
/// compared as `(|x|^2 - 2 x.e) + |e|^2`, rounded in this order, and the first smallest wins.
/// [`Distance::Cosine`] divides both sides by their norms (at least 1e-12) first, and still decodes
/// to the entry as it stands in the codebook. Latents so large that distances are not finite get
/// the code of whatever finite distance is left, or else code 0.
///
/// # Source
/// van den Oord et al. 2017, arXiv 1711.00937. Order of the distance: facebookresearch/encodec,
/// `quantization/core_vq.py`, `EuclideanCodebook.quantize`. Normalised look-up and projections:
/// descriptinc/descript-audio-codec, `nn/quantize.py`, `VectorQuantize`.
///
/// ```
/// use codec_core::quantizer::{Distance, Latents, Quantizer, Vq};
/// let vq = Vq::new(vec![1.0, 0.0, 0.0, 1.0], 2, Distance::Euclidean)?;
/// let codes = vq.encode(Latents::new(&[0.9, 0.2, -1.0, 0.5], 2)?, 1)?;
/// assert_eq!(codes.row(0), Some([0, 1].as_slice()));
/// assert_eq!(vq.decode(&codes)?, [1.0, 0.0, 0.0, 1.0]);
/// # Ok::<(), codec_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Vq {
    layout: CodeLayout,
    distance: Distance,
    codebook: Vec<f32>,
    codebook_dim: usize,
    panels: Vec<Panel>,
    projections: Option<Projections>,
}

impl Vq {
    /// Takes a codebook.
    ///
    /// # Shapes
    /// `codebook`: `[codebook_size, codebook_dim]`.
    ///
    /// # Errors
    /// [`crate::Error::Range`] when `codebook_dim` is zero or the number of entries is not in
    /// 1..=[`MAX_CODEBOOK_SIZE`], [`crate::Error::Shape`] when the last entry is not whole,
    /// [`crate::Error::NotFinite`] when a value is not finite.
    pub fn new(codebook: Vec<f32>, codebook_dim: usize, distance: Distance) -> Result<Self> {
        let entries = Latents::new(&codebook, codebook_dim)?;
        let layout = CodeLayout::new(vec![CodebookSpec { size: codebook_size(entries), stride: 1 }])?;
        check_finite("codebook", &codebook)?;

        let mut searched = Cow::Borrowed(&codebook);
        if distance == Distance::Cosine {
            normalize(searched.to_mut(), codebook_dim, &mut vec![0.0; entries.n_frames()])?;
        }
        let panels = searched.chunks(PANEL_ENTRIES.saturating_mul(codebook_dim));
        let panels = panels.map(|entries| Panel::new(entries, codebook_dim)).collect::<Result<_>>()?;
        Ok(Self { layout, distance, codebook, codebook_dim, panels, projections: None })
    }

    /// Looks up between two projections: `dim` to `codebook_dim` and back.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] when the projections do not lead to `codebook_dim`.
    pub fn with_projections(mut self, projections: Projections) -> Result<Self> {
        projections.check_inner(self.codebook_dim)?;
        self.projections = Some(projections);
        Ok(self)
    }

    /// The entries, `[codebook_size, codebook_dim]`.
    pub fn codebook(&self) -> &[f32] {
        &self.codebook
    }

    /// Values per entry.
    pub fn codebook_dim(&self) -> usize {
        self.codebook_dim
    }

    /// Number of entries.
    pub fn codebook_size(&self) -> usize {
        self.codebook.len() / self.codebook_dim
    }

    /// How the codebook is searched.
    pub fn distance(&self) -> Distance {
        self.distance
    }

    /// The projections, if there are any.
    pub fn projections(&self) -> Option<&Projections> {
        self.projections.as_ref()
    }

    /// Codes of rows `xs`, `[n, dim]`, into `codes`, `[n]`.
    pub(crate) fn encode_rows(&self, scratch: &mut Scratch, xs: &[f32], codes: &mut [u32]) -> Result<()> {
        let (dim, inner) = (self.dim(), self.codebook_dim);
        let Scratch { looked_up, norms, nearest, distances } = scratch;
        for (xs, codes) in xs.chunks(SEARCH_ROWS.saturating_mul(dim)).zip(codes.chunks_mut(SEARCH_ROWS)) {
            let n_rows = codes.len();
            let norms = grown(norms, n_rows);
            let looked_up = match (&self.projections, self.distance) {
                (None, Distance::Euclidean) => xs,
                (projections, distance) => {
                    let rows = grown(looked_up, n_rows * inner);
                    match projections {
                        Some(projections) => projections.input().apply(xs, rows)?,
                        None => rows.copy_from_slice(xs),
                    }
                    if distance == Distance::Cosine {
                        normalize(rows, inner, norms)?;
                    }
                    rows
                }
            };
            squared_norms(looked_up, inner, norms)?;
            nearest.clear();
            nearest.resize(n_rows, Nearest { distance: f32::INFINITY, code: 0 });
            let rows = Rows::new(looked_up, n_rows, inner, inner)?;
            let mut first_code = 0;
            for panel in &self.panels {
                panel.measure(distances, rows, norms)?;
                for (nearest, row) in nearest.iter_mut().zip(distances.rows(first_code)) {
                    nearest.improve(row);
                }
                first_code += PANEL_ENTRIES as u32;
            }
            for (code, nearest) in codes.iter_mut().zip(nearest.iter()) {
                *code = nearest.code;
            }
        }
        Ok(())
    }

    /// Visits the distances of rows, `[n, codebook_dim]` with squared norms `[n]`, from all entries, a run of
    /// entries at a time; `visit` gets the row's index first.
    ///
    /// Only for a codebook without projections that is searched by Euclidean distance.
    pub(crate) fn for_each_row_of_distances(
        &self,
        scratch: &mut Scratch,
        rows: &[f32],
        norms: &[f32],
        mut visit: impl FnMut(usize, DistanceRow<'_>),
    ) -> Result<()> {
        let dim = self.codebook_dim;
        let blocks = rows.chunks(SEARCH_ROWS.saturating_mul(dim)).zip(norms.chunks(SEARCH_ROWS));
        for (block_idx, (rows, norms)) in blocks.enumerate() {
            let rows = Rows::new(rows, norms.len(), dim, dim)?;
            for (panel_idx, panel) in self.panels.iter().enumerate() {
                panel.measure(&mut scratch.distances, rows, norms)?;
                let rows = scratch.distances.rows((panel_idx * PANEL_ENTRIES) as u32);
                rows.enumerate().for_each(|(i, row)| visit(block_idx * SEARCH_ROWS + i, row));
            }
        }
        Ok(())
    }

    /// Latents of `codes`, `[n]`, which are below the codebook's size, into `out`, `[n, dim]`.
    pub(crate) fn decode_rows(&self, scratch: &mut Scratch, codes: &[u32], out: &mut [f32]) -> Result<()> {
        let inner = self.codebook_dim;
        let look_up = |out: &mut [f32]| {
            for (row, &code) in out.chunks_exact_mut(inner).zip(codes) {
                let start = code as usize * inner;
                row.copy_from_slice(&self.codebook[start..start + inner]);
            }
        };
        match &self.projections {
            None => look_up(out),
            Some(projections) => {
                let entries = grown(&mut scratch.looked_up, codes.len() * inner);
                look_up(entries);
                projections.output().apply(entries, out)?;
            }
        }
        Ok(())
    }
}

impl Quantizer for Vq {
    fn layout(&self) -> &CodeLayout {
        &self.layout
    }

    fn dim(&self) -> usize {
        self.projections.as_ref().map_or(self.codebook_dim, |p| p.input().n_in())
    }

    fn encode_to(&self, latents: Latents<'_>, rows: &mut [Vec<u32>]) -> Result<()> {
        encode_blocks(&self.layout, self.dim(), latents, rows, |scratch, xs, codes| {
            self.encode_rows(scratch, xs, codes)
        })
    }

    fn decode_to(&self, rows: &[&[u32]], out: &mut [f32]) -> Result<()> {
        decode_blocks(&self.layout, self.dim(), rows, out, |scratch, rows, out| {
            rows.iter().try_for_each(|row| self.decode_rows(scratch, row, out))
        })
    }
}

/// What a look-up needs besides its input and output; kept from block to block.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    looked_up: Vec<f32>,
    norms: Vec<f32>,
    nearest: Vec<Nearest>,
    distances: DistanceRows,
}

/// Entries that one product covers: with [`SEARCH_ROWS`] rows the products stay in the L2 cache,
/// and a large codebook costs no more memory than a small one.
const PANEL_ENTRIES: usize = 1024;
/// Rows that one product covers.
const SEARCH_ROWS: usize = 64;

/// A run of entries, ready to be searched.
#[derive(Clone, Debug)]
struct Panel {
    entries: PackedMatrix,
    norms: Vec<f32>,
}

impl Panel {
    fn new(entries: &[f32], dim: usize) -> Result<Self> {
        let mut norms = vec![0.0; entries.len() / dim];
        squared_norms(entries, dim, &mut norms)?;
        Ok(Self { entries: PackedMatrix::from_transposed(entries, dim, norms.len())?, norms })
    }

    /// The distances of `rows`, whose squared norms are `row_norms`, from this run's entries.
    fn measure(&self, out: &mut DistanceRows, rows: Rows<'_>, row_norms: &[f32]) -> Result<()> {
        let (n_rows, n_entries) = (row_norms.len(), self.norms.len());
        (out.n_rows, out.n_entries) = (n_rows, n_entries);
        let distances = grown(&mut out.distances, n_rows * n_entries);
        let minima = grown(&mut out.minima, n_rows * n_minima(n_entries));
        gemm(rows, &self.entries, Start::Zero, distances)?;
        Ok(squared_distances(distances, row_norms, &self.norms, minima)?)
    }
}

/// The distances of several rows from a run of entries, with their [minima](squared_distances).
#[derive(Debug, Default)]
struct DistanceRows {
    n_rows: usize,
    n_entries: usize,
    distances: Vec<f32>,
    minima: Vec<f32>,
}

impl DistanceRows {
    /// Row by row; the first entry has the code `first_code`.
    fn rows(&self, first_code: u32) -> impl Iterator<Item = DistanceRow<'_>> {
        let n_entries = self.n_entries.max(1);
        let distances = self.distances.chunks_exact(n_entries);
        let minima = self.minima.chunks_exact(n_minima(n_entries));
        let rows = distances.zip(minima).take(self.n_rows);
        rows.map(move |(distances, minima)| DistanceRow { first_code, distances, minima })
    }
}

/// The distances of a row from a run of entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DistanceRow<'a> {
    first_code: u32,
    distances: &'a [f32],
    minima: &'a [f32],
}

impl DistanceRow<'_> {
    /// Visits codes, in no order, with their distances: those whose distance is not above `bound` at first, and then
    /// not above what the last visit gave back.
    pub(crate) fn for_each_up_to(self, mut bound: f32, mut visit: impl FnMut(u32, f32) -> f32) {
        for (minimum_idx, &minimum) in self.minima.iter().enumerate() {
            if minimum <= bound {
                for i in covered_by_minimum(minimum_idx, self.distances.len()) {
                    if self.distances[i] <= bound {
                        bound = visit(self.first_code + i as u32, self.distances[i]);
                    }
                }
            }
        }
    }

    /// A distance that at least `n` entries do not exceed, `n` being one or more; infinite where there are too few
    /// to say.
    pub(crate) fn bound_of_nearest(self, n: usize, scratch: &mut Vec<f32>) -> f32 {
        if n > self.minima.len() {
            return f32::INFINITY;
        }
        scratch.clear();
        scratch.extend_from_slice(self.minima);
        *scratch.select_nth_unstable_by(n - 1, f32::total_cmp).1
    }
}

/// The best entry so far.
#[derive(Clone, Copy, Debug)]
struct Nearest {
    distance: f32,
    code: u32,
}

impl Nearest {
    /// Looks at a run whose codes are above those seen before. Where distances are equal they lose against those; among
    /// themselves, the lowest wins.
    fn improve(&mut self, row: DistanceRow<'_>) {
        let before = self.distance;
        row.for_each_up_to(before, |code, distance| {
            if distance < self.distance || distance == self.distance && distance < before && code < self.code
            {
                *self = Self { distance, code };
            }
            self.distance
        });
    }
}

/// Scales rows to unit length, as `torch.nn.functional.normalize` does; `norms` is overwritten.
fn normalize(rows: &mut [f32], dim: usize, norms: &mut [f32]) -> Result<()> {
    const MIN_NORM: f32 = 1e-12;
    squared_norms(rows, dim, norms)?;
    for (row, norm) in rows.chunks_exact_mut(dim).zip(norms) {
        let norm = norm.sqrt().max(MIN_NORM);
        row.iter_mut().for_each(|x| *x /= norm);
    }
    Ok(())
}

/// The number of entries; one that no code can index comes out as too many.
fn codebook_size(entries: Latents<'_>) -> u32 {
    u32::try_from(entries.n_frames()).unwrap_or(MAX_CODEBOOK_SIZE.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Codes;
    use crate::error::Error;
    use crate::quantizer::testing::{
        brute_force, check_hostile, check_laws, float_error, hostile_f32, hostile_size, noise,
    };
    use crate::quantizer::{Projection, Quantizer};
    use proptest::prelude::*;

    fn encode(vq: &Vq, xs: &[f32]) -> Vec<u32> {
        vq.encode(Latents::new(xs, vq.dim()).unwrap(), 1).unwrap().into_rows().concat()
    }

    /// Compares with the search in f64 wherever it is clear of the float error.
    #[track_caller]
    fn check_search(size: usize, dim: usize, n_frames: usize, distance: Distance) {
        let codebook = noise(size as u64, size * dim);
        let xs = noise(7, n_frames * dim);
        let codes = encode(&Vq::new(codebook.clone(), dim, distance).unwrap(), &xs);
        let (mut n_equal, mut n_unclear, mut smallest_margin) = (0, 0, f64::INFINITY);
        for (x, &code) in xs.chunks_exact(dim).zip(&codes) {
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let (best, first, second) = brute_force(&x, &codebook, distance);
            // Each side of the comparison carries an error.
            let bound =
                2.0 * float_error(dim, if distance == Distance::Cosine { 4.0 } else { 8.0 * dim as f64 });
            let margin = second - first;
            if margin <= bound {
                n_unclear += 1;
            } else {
                assert_eq!(code as usize, best, "margin {margin:e}, bound {bound:e}");
            }
            n_equal += usize::from(code as usize == best);
            smallest_margin = smallest_margin.min(margin);
        }
        println!(
            "{size} x {dim}, {distance:?}: {n_equal} of {n_frames} equal, {n_unclear} within the float error, \
             smallest margin {smallest_margin:e}"
        );
        assert!(n_unclear * 20 <= n_frames, "{n_unclear} of {n_frames} prove nothing");
    }

    #[test]
    fn the_search_finds_what_a_search_in_f64_finds() {
        for distance in [Distance::Euclidean, Distance::Cosine] {
            check_search(1024, 128, 300, distance);
            check_search(1024, 8, 300, distance);
            check_search(16, 64, 300, distance);
            check_search(3000, 5, 100, distance);
            check_search(1, 3, 3, distance);
        }
    }

    #[test]
    fn the_nearest_entries_are_visited_and_bounded() {
        for (size, dim) in [(3, 4), (16, 4), (300, 5), (1024, 8)] {
            let vq = Vq::new(noise(3, size * dim), dim, Distance::Euclidean).unwrap();
            let rows = noise(4, 7 * dim);
            let mut norms = vec![0.0; 7];
            squared_norms(&rows, dim, &mut norms).unwrap();
            let mut n_rows = 0;
            let mut scratch = Scratch::default();
            // Buffers that held more and longer rows before.
            scratch.distances.distances.resize(20_000, -1.0);
            scratch.distances.minima.resize(20_000, -1.0);
            vq.for_each_row_of_distances(&mut scratch, &rows, &norms, |row_idx, row| {
                assert_eq!(row_idx, n_rows);
                n_rows += 1;
                let mut sorted = row.distances.to_vec();
                sorted.sort_by(f32::total_cmp);
                for n in [1, 2, 5, size] {
                    let n = n.min(size);
                    let bound = row.bound_of_nearest(n, &mut Vec::new());
                    assert!(bound >= sorted[n - 1], "{bound} leaves out one of {n}");
                    // Unless there are too few minima, it is not far off either.
                    assert!(n > 5 || size < 100 || bound <= sorted[4 * n], "{bound} lets in more than {n}");
                    let mut visited = Vec::new();
                    row.for_each_up_to(bound, |code, distance| {
                        assert_eq!(row.distances[code as usize].to_bits(), distance.to_bits());
                        visited.push(distance);
                        bound
                    });
                    visited.sort_by(f32::total_cmp);
                    let n_within = sorted.iter().take_while(|&&distance| distance <= bound).count();
                    assert_eq!(visited, sorted[..n_within]);
                }
            })
            .unwrap();
            assert_eq!(n_rows, 7);
        }
    }

    #[test]
    fn ties_go_to_the_lowest_index() {
        // Copies inside a chunk of lanes, across chunks and across panels.
        let dim = 3;
        let entries = noise(1, 5 * dim);
        for n_copies in [2, 7, 40, 500] {
            let vq = Vq::new(entries.repeat(n_copies), dim, Distance::Euclidean).unwrap();
            assert_eq!(encode(&vq, &entries), [0, 1, 2, 3, 4]);
            let vq = Vq::new(entries.repeat(n_copies), dim, Distance::Cosine).unwrap();
            assert_eq!(encode(&vq, &entries), [0, 1, 2, 3, 4]);
        }
        // Two entries at equal distance on both sides.
        let vq = Vq::new(vec![9.0, 1.0, -1.0], 1, Distance::Euclidean).unwrap();
        assert_eq!(encode(&vq, &[0.0]), [1]);
    }

    #[test]
    fn rounding_decides_near_ties_as_the_reference_order_does() {
        // |x|^2 is so large that f32 cannot tell the two distances apart: both come out as zero, and
        // the first entry wins although the second is the latent itself.
        let x = 4096.0_f32;
        let entries = [4095.75, 4096.0];
        assert_eq!(entries.map(|e| (x * x - 2.0 * (x * e)) + e * e), [0.0, 0.0]);
        let vq = Vq::new(entries.to_vec(), 1, Distance::Euclidean).unwrap();
        assert_eq!(encode(&vq, &[x]), [0]);
    }

    #[test]
    fn cosine_ignores_length_and_decodes_the_entry_as_it_stands() {
        let codebook = vec![10.0, 0.0, 0.0, 0.1];
        let euclidean = Vq::new(codebook.clone(), 2, Distance::Euclidean).unwrap();
        let cosine = Vq::new(codebook, 2, Distance::Cosine).unwrap();
        let x = [0.3, 0.1];
        assert_eq!(encode(&euclidean, &x), [1]);
        assert_eq!(encode(&cosine, &x), [0]);
        let codes = cosine.encode(Latents::new(&x, 2).unwrap(), 1).unwrap();
        assert_eq!(cosine.decode(&codes).unwrap(), [10.0, 0.0]);
    }

    #[test]
    fn projections_wrap_the_look_up() {
        let input = Projection::new(vec![1.0, 1.0, 0.0], Some(vec![0.5]), 3, 1).unwrap();
        let output = Projection::new(vec![1.0, 2.0, 3.0], Some(vec![0.0, 0.0, 1.0]), 1, 3).unwrap();
        let projections = Projections::new(input, output).unwrap();
        let vq = Vq::new(vec![0.0, 2.0, 4.0], 1, Distance::Euclidean).unwrap();
        let vq = vq.with_projections(projections.clone()).unwrap();
        assert_eq!((vq.dim(), vq.codebook_dim(), vq.codebook_size()), (3, 1, 3));
        let codes = vq.encode(Latents::new(&[1.0, 0.75, 9.0], 3).unwrap(), 1).unwrap();
        assert_eq!(codes.row(0), Some([1].as_slice()));
        assert_eq!(vq.decode(&codes).unwrap(), [2.0, 4.0, 7.0]);
        let other = Vq::new(vec![0.0, 2.0], 2, Distance::Euclidean).unwrap();
        assert!(matches!(
            other.with_projections(projections),
            Err(Error::Shape { expected: 2, actual: 1, .. })
        ));
    }

    #[test]
    fn the_laws_hold() {
        for distance in [Distance::Euclidean, Distance::Cosine] {
            check_laws(&Vq::new(noise(1, 70 * 5), 5, distance).unwrap(), 200);
            check_laws(&Vq::new(noise(2, 1500 * 24), 24, distance).unwrap(), 131);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let vq = Vq::new(vec![0.0, 1.0], 1, Distance::Euclidean).unwrap();
        let latents = Latents::new(&[0.0, f32::NAN], 1).unwrap();
        assert!(matches!(vq.encode(latents, 1), Err(Error::NotFinite { index: 1, .. })));
        assert!(matches!(vq.encode(latents, 0), Err(Error::Range { .. })));
        assert!(matches!(vq.encode(latents, 2), Err(Error::Range { .. })));
        let wide = Latents::new(&[0.0, 0.0], 2).unwrap();
        assert!(matches!(vq.encode(wide, 1), Err(Error::Shape { expected: 1, actual: 2, .. })));
        let other = Codes::empty(CodeLayout::uniform(1, 3).unwrap());
        assert!(matches!(vq.decode(&other), Err(Error::Mismatch { .. })));
        assert!(matches!(Vq::new(vec![], 1, Distance::Euclidean), Err(Error::Range { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn nothing_panics(
            codebook in prop::collection::vec(hostile_f32(), 0..40),
            codebook_dim in hostile_size(),
            cosine: bool,
            xs in prop::collection::vec(hostile_f32(), 0..12),
            dim in hostile_size(),
            n_codebooks in hostile_size(),
        ) {
            let distance = if cosine { Distance::Cosine } else { Distance::Euclidean };
            if let Ok(vq) = Vq::new(codebook.clone(), codebook_dim, distance) {
                check_hostile(&vq, &xs, dim, n_codebooks);
                check_hostile(&vq, &xs, codebook_dim, 1);
            }
            let finite: Vec<f32> = codebook.into_iter().filter(|x| x.is_finite()).collect();
            if let Ok(vq) = Vq::new(finite, 1, distance) {
                check_hostile(&vq, &xs, 1, 1);
            }
        }
    }
}
