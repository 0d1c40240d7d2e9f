//! Codes and the layout that they follow.

use crate::error::{Error, Result};
use crate::info::Ratio;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Most codebooks that a layout may have.
pub const MAX_CODEBOOKS: usize = 256;
/// Largest codebook.
pub const MAX_CODEBOOK_SIZE: u32 = 1 << 24;
/// Most frames that one code, one scale or one block may span.
pub const MAX_BLOCK_FRAMES: u32 = 1 << 16;

/// One codebook of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodebookSpec {
    /// Number of entries; a code is below it.
    pub size: u32,
    /// Frames per code: 1 except in codecs with strided codebooks (SNAC).
    pub stride: u32,
}

impl CodebookSpec {
    /// Bits that one code takes when packed: ceil(log2 size).
    pub fn bits(self) -> u32 {
        u32::BITS - self.size.saturating_sub(1).leading_zeros()
    }
}

/// Which codebooks a stream of codes has, coarse to fine.
///
/// ```
/// use codec_core::{CodebookSpec, CodeLayout};
/// let snac = CodeLayout::new([4, 2, 1].map(|stride| CodebookSpec { size: 4096, stride }).to_vec())?;
/// assert_eq!(snac.block_frames(), 4);
/// assert_eq!(snac.bits_per_block(3)?, 12 + 2 * 12 + 4 * 12);
/// assert_eq!(snac.bits_per_frame(3)?.to_f64(), 21.0);
/// # Ok::<(), codec_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CodeLayout {
    codebooks: Vec<CodebookSpec>,
    scale_frames: Option<u32>,
    block_frames: u32,
}

impl CodeLayout {
    /// A layout of the given codebooks.
    ///
    /// # Errors
    /// [`Error::Range`] when there is no codebook or more than [`MAX_CODEBOOKS`], when a size is
    /// not in 1..=[`MAX_CODEBOOK_SIZE`], or when the strides' least common multiple is not in
    /// 1..=[`MAX_BLOCK_FRAMES`].
    pub fn new(codebooks: Vec<CodebookSpec>) -> Result<Self> {
        check("codebooks", codebooks.len() as u64, MAX_CODEBOOKS as u64)?;
        let mut block_frames = 1;
        for codebook in &codebooks {
            check("codebook size", u64::from(codebook.size), u64::from(MAX_CODEBOOK_SIZE))?;
            block_frames = grow_block(block_frames, codebook.stride)?;
        }
        Ok(Self { codebooks, scale_frames: None, block_frames })
    }

    /// `n_codebooks` codebooks of one size, one code per frame each.
    ///
    /// # Errors
    /// As [`CodeLayout::new`].
    pub fn uniform(n_codebooks: usize, size: u32) -> Result<Self> {
        check("codebooks", n_codebooks as u64, MAX_CODEBOOKS as u64)?;
        Self::new(vec![CodebookSpec { size, stride: 1 }; n_codebooks])
    }

    /// The same codebooks with one scale factor for every `frames` frames (EnCodec 48 kHz: 150).
    ///
    /// A stream may end inside a scale's frames, but is cut and joined only between them.
    ///
    /// # Errors
    /// [`Error::Range`] when the block that strides and scales make together is not in
    /// 1..=[`MAX_BLOCK_FRAMES`].
    pub fn with_scales(mut self, frames: u32) -> Result<Self> {
        let strides = self.codebooks.iter().try_fold(1, |b, c| grow_block(b, c.stride))?;
        self.block_frames = grow_block(strides, frames)?;
        self.scale_frames = Some(frames);
        Ok(self)
    }

    /// The codebooks, coarse to fine.
    pub fn codebooks(&self) -> &[CodebookSpec] {
        &self.codebooks
    }

    /// How many codebooks there are.
    pub fn n_codebooks(&self) -> usize {
        self.codebooks.len()
    }

    /// Frames that share one scale factor; `None` when the stream has no scales.
    pub fn scale_frames(&self) -> Option<u32> {
        self.scale_frames
    }

    /// Frames per block, the unit in which a stream can be cut and joined: the least common
    /// multiple of all strides and of the frames per scale.
    pub fn block_frames(&self) -> u32 {
        self.block_frames
    }

    /// The least common multiple of the codebooks' strides: a stream's frames are a multiple of it.
    pub fn stride_frames(&self) -> u32 {
        // Every stride divides `block_frames`, so this cannot overflow.
        self.codebooks.iter().fold(1, |b, c| b / gcd(b, c.stride) * c.stride)
    }

    /// Bits that the codes of the first `n_codebooks` codebooks take in one block, without scales.
    ///
    /// # Errors
    /// [`Error::Range`] when `n_codebooks` is not in 1..=`self.n_codebooks()`.
    pub fn bits_per_block(&self, n_codebooks: usize) -> Result<u64> {
        self.check_n_codebooks(n_codebooks)?;
        let bits = |c: &CodebookSpec| u64::from(c.bits()) * u64::from(self.block_frames / c.stride);
        Ok(self.codebooks[..n_codebooks].iter().map(bits).sum())
    }

    /// Bits that the codes of the first `n_codebooks` codebooks take per frame, without scales.
    ///
    /// # Errors
    /// [`Error::Range`] when `n_codebooks` is not in 1..=`self.n_codebooks()`.
    pub fn bits_per_frame(&self, n_codebooks: usize) -> Result<Ratio> {
        let bits = self.bits_per_block(n_codebooks)?;
        Ratio::new(bits, self.block_frames.into()).ok_or(Error::Range {
            what: "frames per block",
            min: 1,
            max: MAX_BLOCK_FRAMES.into(),
            actual: 0,
        })
    }

    /// The layout of the first `n_codebooks` codebooks.
    ///
    /// # Errors
    /// [`Error::Range`] when `n_codebooks` is not in 1..=`self.n_codebooks()`.
    pub fn truncated(&self, n_codebooks: usize) -> Result<Self> {
        self.check_n_codebooks(n_codebooks)?;
        let kept = Self::new(self.codebooks[..n_codebooks].to_vec())?;
        self.scale_frames.map_or(Ok(kept.clone()), |frames| kept.with_scales(frames))
    }

    /// Whether `self` is a prefix of `other`: the same codebooks as far as they go, the same scales.
    pub fn is_prefix_of(&self, other: &Self) -> bool {
        self.scale_frames == other.scale_frames && other.codebooks.starts_with(&self.codebooks)
    }

    /// Checks a number of codebooks against this layout.
    ///
    /// # Errors
    /// [`Error::Range`] when `n_codebooks` is not in 1..=`self.n_codebooks()`.
    pub fn check_n_codebooks(&self, n_codebooks: usize) -> Result<()> {
        check("codebooks", n_codebooks as u64, self.n_codebooks() as u64)
    }
}

/// Codebooks of one kind together: `8 x 1024`, `1 x 4096 every 2 frames + 1 x 4096`.
impl fmt::Display for CodeLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (run_idx, run) in self.codebooks.chunk_by(|a, b| a == b).enumerate() {
            let CodebookSpec { size, stride } = run[0];
            let plus = if run_idx > 0 { " + " } else { "" };
            write!(f, "{plus}{} x {size}", run.len())?;
            if stride != 1 {
                write!(f, " every {stride} frames")?;
            }
        }
        self.scale_frames.map_or(Ok(()), |frames| write!(f, ", a scale every {frames} frames"))
    }
}

/// Codes of consecutive frames.
///
/// # Shapes
/// `[n_codebooks, n_frames]`: row `k` has `n_frames / stride_k` codes, all below `size_k`.
/// With scales in the layout there is one finite scale for every started group of `scale_frames`.
/// The invariant is checked at construction and kept by every method.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    layout: Arc<CodeLayout>,
    n_frames: usize,
    rows: Vec<Vec<u32>>,
    scales: Vec<f32>,
}

impl Codes {
    /// No frames yet.
    pub fn empty(layout: impl Into<Arc<CodeLayout>>) -> Self {
        let layout = layout.into();
        let rows = vec![Vec::new(); layout.n_codebooks()];
        Self { layout, n_frames: 0, rows, scales: Vec::new() }
    }

    /// Takes one row of codes per codebook, for a layout without scales.
    ///
    /// # Errors
    /// As [`Codes::with_scales`].
    pub fn new(layout: impl Into<Arc<CodeLayout>>, rows: Vec<Vec<u32>>) -> Result<Self> {
        Self::with_scales(layout, rows, Vec::new())
    }

    /// Takes one row of codes per codebook and the scales.
    ///
    /// # Errors
    /// [`Error::Shape`] when a row or the scales have another length than the layout asks for,
    /// [`Error::Code`] when a code is not below its codebook's size,
    /// [`Error::NotFinite`] when a scale is not a finite number.
    pub fn with_scales(
        layout: impl Into<Arc<CodeLayout>>,
        rows: Vec<Vec<u32>>,
        scales: Vec<f32>,
    ) -> Result<Self> {
        let layout = layout.into();
        let expected = layout.n_codebooks();
        if rows.len() != expected {
            return Err(Error::Shape { what: "rows of codes", expected, actual: rows.len() });
        }
        // More frames than can be counted are not equal to any other number of frames.
        let frames_of = |row: &Vec<u32>, c: &CodebookSpec| row.len().checked_mul(c.stride as usize);
        let n_frames = rows.first().zip(layout.codebooks.first()).and_then(|(r, c)| frames_of(r, c));
        let n_frames = n_frames.ok_or(too_many_frames())?;
        for (codebook_idx, (row, spec)) in rows.iter().zip(&layout.codebooks).enumerate() {
            if frames_of(row, spec) != Some(n_frames) {
                let what = "codes of a row";
                let expected = n_frames / spec.stride as usize;
                return Err(Error::Shape { what, expected, actual: row.len() });
            }
            if let Some(position) = row.iter().position(|&code| code >= spec.size) {
                let code = row[position];
                return Err(Error::Code { codebook_idx, position, code, size: spec.size });
            }
        }
        let expected = layout.scale_frames.map_or(0, |frames| n_frames.div_ceil(frames as usize));
        if scales.len() != expected {
            return Err(Error::Shape { what: "scales", expected, actual: scales.len() });
        }
        if let Some(index) = scales.iter().position(|s| !s.is_finite()) {
            return Err(Error::NotFinite { what: "scales", index });
        }
        Ok(Self { layout, n_frames, rows, scales })
    }

    /// The layout.
    pub fn layout(&self) -> &Arc<CodeLayout> {
        &self.layout
    }

    /// How many codebooks the codes have.
    pub fn n_codebooks(&self) -> usize {
        self.rows.len()
    }

    /// How many frames there are.
    pub fn n_frames(&self) -> usize {
        self.n_frames
    }

    /// Whether there is no frame.
    pub fn is_empty(&self) -> bool {
        self.n_frames == 0
    }

    /// The codes of one codebook, if there is such a codebook: `[n_frames / stride]`.
    pub fn row(&self, codebook_idx: usize) -> Option<&[u32]> {
        self.rows.get(codebook_idx).map(Vec::as_slice)
    }

    /// All rows, coarse to fine.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.rows.iter().map(Vec::as_slice)
    }

    /// Gives the rows away, coarse to fine.
    pub fn into_rows(self) -> Vec<Vec<u32>> {
        self.rows
    }

    /// One scale per `scale_frames` frames; empty when the layout has none.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The codes of the first `n_codebooks` codebooks.
    ///
    /// # Errors
    /// [`Error::Range`] when `n_codebooks` is not in 1..=`self.n_codebooks()`.
    pub fn truncated(&self, n_codebooks: usize) -> Result<Self> {
        let layout = Arc::new(self.layout.truncated(n_codebooks)?);
        let rows = self.rows[..n_codebooks].to_vec();
        Ok(Self { layout, n_frames: self.n_frames, rows, scales: self.scales.clone() })
    }

    /// The codes of a range of frames.
    ///
    /// # Errors
    /// [`Error::Range`] when the range does not lie inside the frames, or starts or ends inside a
    /// block; it may end where the codes end.
    pub fn slice(&self, frames: Range<usize>) -> Result<Self> {
        let max = self.n_frames as u64;
        if frames.end > self.n_frames || frames.start > frames.end {
            let actual = frames.end.max(frames.start) as u64;
            return Err(Error::Range { what: "frame range", min: 0, max, actual });
        }
        let block = self.layout.block_frames as usize;
        let at_end = frames.end == self.n_frames;
        let is_cut = |frame: usize| !frame.is_multiple_of(block);
        if is_cut(frames.start) || (is_cut(frames.end) && !at_end) {
            let odd = if is_cut(frames.start) { frames.start } else { frames.end };
            let what = "distance of the cut from a block's first frame";
            return Err(Error::Range { what, min: 0, max: 0, actual: (odd % block) as u64 });
        }
        let cut = |(row, spec): (&Vec<u32>, &CodebookSpec)| {
            let stride = spec.stride as usize;
            row[frames.start / stride..frames.end / stride].to_vec()
        };
        let rows = self.rows.iter().zip(&self.layout.codebooks).map(cut).collect();
        let scales = self.layout.scale_frames.map_or(Vec::new(), |n| {
            let n = n as usize;
            self.scales[frames.start / n..frames.end.div_ceil(n)].to_vec()
        });
        Ok(Self { layout: Arc::clone(&self.layout), n_frames: frames.len(), rows, scales })
    }

    /// Drops all frames and keeps their memory for others.
    pub fn clear(&mut self) {
        self.n_frames = 0;
        self.rows.iter_mut().for_each(Vec::clear);
        self.scales.clear();
    }

    /// Appends what `encode` appends to the rows: as many frames to each. For a layout without scales.
    ///
    /// # Errors
    /// Those of `encode`; [`Error::Mismatch`] when the layout has scales, [`Error::Range`] when `self` ends inside
    /// a block, and as [`Codes::new`] for what was appended. Nothing is appended then; where `encode` has taken codes
    /// away that were there before, no codes are left.
    pub fn append_with<E: From<Error>>(
        &mut self,
        encode: impl FnOnce(&mut [Vec<u32>]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.layout.scale_frames.is_some() {
            let (left, right) = (self.layout.to_string(), "a layout without scales".into());
            return Err(Error::Mismatch { what: "code layout", left, right }.into());
        }
        let appended = encode(&mut self.rows).and_then(|()| Ok(self.check_appended()?));
        match appended {
            Ok(n_frames) => self.n_frames = n_frames,
            Err(_) => self.drop_appended(),
        }
        appended.map(drop)
    }

    /// Shortens every row to the frames that there are.
    fn drop_appended(&mut self) {
        let mut is_whole = true;
        for (row, spec) in self.rows.iter_mut().zip(&self.layout.codebooks) {
            let n_codes = self.n_frames / spec.stride as usize;
            row.truncate(n_codes);
            is_whole &= row.len() == n_codes;
        }
        if !is_whole {
            self.clear();
        }
    }

    /// The number of frames, if all rows agree about it and their new codes are below their sizes.
    fn check_appended(&self) -> Result<usize> {
        let frames_of = |row: &Vec<u32>, c: &CodebookSpec| row.len().checked_mul(c.stride as usize);
        let first = self.rows.first().zip(self.layout.codebooks.first());
        let n_frames = first.and_then(|(row, spec)| frames_of(row, spec)).ok_or(too_many_frames())?;
        for (codebook_idx, (row, spec)) in self.rows.iter().zip(&self.layout.codebooks).enumerate() {
            let start = self.n_frames / spec.stride as usize;
            if frames_of(row, spec) != Some(n_frames) || row.len() < start {
                let expected = n_frames / spec.stride as usize;
                return Err(Error::Shape { what: "codes of a row", expected, actual: row.len() });
            }
            if let Some(position) = row[start..].iter().position(|&code| code >= spec.size) {
                let (position, size) = (start + position, spec.size);
                return Err(Error::Code { codebook_idx, position, code: row[position], size });
            }
        }
        self.check_can_grow(n_frames - self.n_frames)?;
        Ok(n_frames)
    }

    /// Fails when frames are to follow a block that is not whole.
    fn check_can_grow(&self, n_more: usize) -> Result<()> {
        let over = (self.n_frames % self.layout.block_frames as usize) as u64;
        if over != 0 && n_more > 0 {
            let what = "frames after the last whole block";
            return Err(Error::Range { what, min: 0, max: 0, actual: over });
        }
        Ok(())
    }

    /// Appends codes of the same layout.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the layouts differ, [`Error::Range`] when `self` ends inside a
    /// block and `tail` is not empty; nothing is appended then.
    pub fn append(&mut self, tail: &Self) -> Result<()> {
        if self.layout != tail.layout {
            let [left, right] = [&self.layout, &tail.layout].map(|layout| layout.to_string());
            return Err(Error::Mismatch { what: "code layout", left, right });
        }
        self.check_can_grow(tail.n_frames)?;
        let n_frames = self.n_frames.checked_add(tail.n_frames).ok_or(too_many_frames())?;
        for (row, more) in self.rows.iter_mut().zip(&tail.rows) {
            row.extend_from_slice(more);
        }
        self.scales.extend_from_slice(&tail.scales);
        self.n_frames = n_frames;
        Ok(())
    }
}

fn too_many_frames() -> Error {
    Error::Range { what: "frames", min: 0, max: usize::MAX as u64, actual: u64::MAX }
}

fn check(what: &'static str, actual: u64, max: u64) -> Result<()> {
    if actual == 0 || actual > max {
        return Err(Error::Range { what, min: 1, max, actual });
    }
    Ok(())
}

/// Least common multiple, as long as it is a block size that we allow.
fn grow_block(block: u32, frames: u32) -> Result<u32> {
    let max = u64::from(MAX_BLOCK_FRAMES);
    check("frames per code", u64::from(frames), max)?;
    let lcm = u64::from(block / gcd(block, frames)) * u64::from(frames);
    check("frames per block", lcm, max)?;
    u32::try_from(lcm).map_err(|_| Error::Range { what: "frames per block", min: 1, max, actual: lcm })
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantizer::testing::hostile_size;
    use proptest::prelude::*;

    fn strided(strides: &[u32]) -> CodeLayout {
        CodeLayout::new(strides.iter().map(|&stride| CodebookSpec { size: 10, stride }).collect()).unwrap()
    }

    /// Codes that count up, so that no two places hold the same pair of neighbours.
    fn counting(layout: CodeLayout, n_frames: usize) -> Codes {
        let row = |c: &CodebookSpec| (0..n_frames as u32 / c.stride).map(|i| i % c.size).collect();
        let rows = layout.codebooks().iter().map(row).collect();
        let n_scales = layout.scale_frames().map_or(0, |frames| n_frames.div_ceil(frames as usize));
        Codes::with_scales(layout, rows, (0..n_scales).map(|i| i as f32).collect()).unwrap()
    }

    #[test]
    fn a_code_takes_as_many_bits_as_its_largest_value() {
        let bits = |size| CodebookSpec { size, stride: 1 }.bits();
        let sizes = [0, 1, 2, 3, 4, 5, 1000, 1024, 1025, MAX_CODEBOOK_SIZE, u32::MAX];
        assert_eq!(sizes.map(bits), [0, 0, 1, 2, 2, 3, 10, 10, 11, 24, 32]);
    }

    #[test]
    fn a_layout_reads_as_runs_of_equal_codebooks() {
        let text = |layout: CodeLayout| layout.to_string();
        assert_eq!(text(CodeLayout::uniform(8, 1024).unwrap()), "8 x 1024");
        assert_eq!(text(strided(&[4, 2, 2, 1])), "1 x 10 every 4 frames + 2 x 10 every 2 frames + 1 x 10");
        let scaled = CodeLayout::uniform(2, 16).unwrap().with_scales(150).unwrap();
        assert_eq!(text(scaled), "2 x 16, a scale every 150 frames");
    }

    #[test]
    fn blocks_are_common_multiples() {
        assert_eq!(strided(&[4, 2, 1]).block_frames(), 4);
        assert_eq!(strided(&[4, 6]).block_frames(), 12);
        let scaled = strided(&[4, 6]).with_scales(10).unwrap();
        assert_eq!((scaled.block_frames(), scaled.stride_frames()), (60, 12));
        // New scales replace the old ones.
        assert_eq!(scaled.with_scales(24).unwrap().block_frames(), 24);
        let coprime = [65_536, 3].map(|stride| CodebookSpec { size: 2, stride }).to_vec();
        assert!(matches!(CodeLayout::new(coprime), Err(Error::Range { actual: 196_608, .. })));
        assert!(matches!(strided(&[2]).with_scales(0), Err(Error::Range { .. })));
        assert!(matches!(strided(&[2]).with_scales(u32::MAX), Err(Error::Range { .. })));
    }

    #[test]
    fn a_prefix_has_the_same_codebooks_and_scales() {
        let layout = strided(&[4, 2, 1]);
        let prefix = layout.truncated(2).unwrap();
        assert!(prefix.is_prefix_of(&layout) && layout.is_prefix_of(&layout));
        assert!(!layout.is_prefix_of(&prefix));
        assert!(!prefix.clone().with_scales(4).unwrap().is_prefix_of(&layout));
        assert!(!strided(&[2, 4]).is_prefix_of(&layout));
        assert_eq!(counting(layout, 8).truncated(2).unwrap(), counting(prefix, 8));
    }

    #[test]
    fn what_breaks_the_invariant_is_refused() {
        let new = |rows| Codes::new(strided(&[2, 1]), rows);
        assert!(new(vec![vec![0], vec![0, 9]]).is_ok());
        assert!(matches!(new(vec![vec![0]]), Err(Error::Shape { expected: 2, actual: 1, .. })));
        assert!(matches!(new(vec![vec![0], vec![0]]), Err(Error::Shape { expected: 2, actual: 1, .. })));
        let error = new(vec![vec![0], vec![0, 10]]).unwrap_err();
        assert!(matches!(error, Error::Code { codebook_idx: 1, position: 1, code: 10, size: 10 }));
        let scaled = |scales| {
            let layout = strided(&[1]).with_scales(2).unwrap();
            Codes::with_scales(layout, vec![vec![0; 3]], scales)
        };
        assert!(scaled(vec![1.0, 2.0]).is_ok());
        assert!(matches!(scaled(vec![1.0]), Err(Error::Shape { expected: 2, actual: 1, .. })));
        assert!(matches!(scaled(vec![1.0, f32::NAN]), Err(Error::NotFinite { index: 1, .. })));
        let unscaled = Codes::with_scales(strided(&[1]), vec![vec![0]], vec![1.0]);
        assert!(matches!(unscaled, Err(Error::Shape { expected: 0, actual: 1, .. })));
    }

    #[test]
    fn a_stream_that_ended_inside_a_block_takes_no_more() {
        let layout = strided(&[1]).with_scales(4).unwrap();
        let mut codes = counting(layout.clone(), 6);
        let before = codes.clone();
        assert!(matches!(codes.append(&counting(layout.clone(), 4)), Err(Error::Range { actual: 2, .. })));
        codes.append(&Codes::empty(layout)).unwrap();
        assert!(matches!(codes.append(&Codes::empty(strided(&[1]))), Err(Error::Mismatch { .. })));
        assert_eq!(codes, before);
    }

    proptest! {
        #[test]
        fn what_is_cut_and_joined_is_whole(
            strides in prop::collection::vec(prop_oneof![Just(1_u32), Just(2), Just(3), Just(4)], 1..5),
            scale_frames in prop::option::of(1_u32..6),
            n_blocks in 0_usize..6,
            cut in 0_usize..6,
        ) {
            let layout = strided(&strides);
            let layout = scale_frames.map_or(layout.clone(), |frames| layout.with_scales(frames).unwrap());
            let block = layout.block_frames() as usize;
            // The last block is cut short as far as the strides allow.
            let n_frames = (n_blocks * block + 1).next_multiple_of(layout.stride_frames() as usize);
            let codes = counting(layout, n_frames);
            let cut = cut.min(n_blocks) * block;
            let mut joined = codes.slice(0..cut).unwrap();
            joined.append(&codes.slice(cut..n_frames).unwrap()).unwrap();
            prop_assert_eq!(joined, codes);
        }

        #[test]
        fn nothing_panics(
            specs in prop::collection::vec(
                (prop_oneof![0_u32..4, any::<u32>()], prop_oneof![0_u32..4, Just(1 << 16), any::<u32>()]), 0..5),
            scale_frames in prop_oneof![0_u32..5, any::<u32>()],
            rows in prop::collection::vec(prop::collection::vec(0_u32..4, 0..5), 0..5),
            scales in prop::collection::vec(any::<f32>(), 0..3),
            (start, end) in (hostile_size(), hostile_size()),
            n_codebooks in hostile_size(),
            uniform_size: u32,
        ) {
            let _ = CodeLayout::uniform(n_codebooks, uniform_size);
            let specs = specs.into_iter().map(|(size, stride)| CodebookSpec { size, stride }).collect();
            let Ok(layout) = CodeLayout::new(specs) else { return Ok(()) };
            let scaled = layout.clone().with_scales(scale_frames).unwrap_or(layout.clone());
            for layout in [layout, scaled] {
                prop_assert_eq!(layout.block_frames() % layout.stride_frames(), 0);
                let inside = (1..=layout.n_codebooks()).contains(&n_codebooks);
                prop_assert_eq!(layout.truncated(n_codebooks).is_ok(), inside);
                prop_assert_eq!(layout.bits_per_block(n_codebooks).is_ok(), inside);
                prop_assert_eq!(layout.bits_per_frame(n_codebooks).is_ok(), inside);
                let made = [
                    Ok(Codes::empty(layout.clone())),
                    Codes::new(layout.clone(), rows.clone()),
                    Codes::with_scales(layout.clone(), rows.clone(), scales.clone()),
                ];
                for mut codes in made.into_iter().flatten() {
                    if let Ok(slice) = codes.slice(start..end) {
                        prop_assert_eq!(slice.n_frames(), end - start);
                        let _ = codes.append(&slice);
                    }
                    let _ = (codes.truncated(n_codebooks), codes.row(n_codebooks));
                    let n_frames = codes.n_frames();
                    let again = Codes::with_scales(layout.clone(), codes.clone().into_rows(), codes.scales().to_vec());
                    prop_assert_eq!(again.unwrap().n_frames(), n_frames);
                }
            }
        }
    }

    #[test]
    fn rows_that_were_appended_count_or_are_taken_back() {
        let layout = CodeLayout::new([2, 1].map(|stride| CodebookSpec { size: 8, stride }).to_vec()).unwrap();
        let mut codes = Codes::new(layout.clone(), vec![vec![1], vec![2, 3]]).unwrap();
        let append = |codes: &mut Codes, first: &[u32], second: &[u32]| {
            codes.append_with::<Error>(|rows| {
                rows[0].extend_from_slice(first);
                rows[1].extend_from_slice(second);
                Ok(())
            })
        };
        append(&mut codes, &[4, 5], &[7, 6, 5, 4]).unwrap();
        let want = Codes::new(layout, vec![vec![1, 4, 5], vec![2, 3, 7, 6, 5, 4]]).unwrap();
        assert_eq!(codes, want);
        assert!(matches!(
            append(&mut codes, &[8], &[1, 2]),
            Err(Error::Code { codebook_idx: 0, position: 3, .. })
        ));
        assert!(matches!(append(&mut codes, &[1], &[1]), Err(Error::Shape { .. })));
        let refused = codes.append_with(|rows| {
            rows[1].push(1);
            Err(Error::NotFinite { what: "latents", index: 0 })
        });
        assert!(matches!(refused, Err(Error::NotFinite { .. })));
        assert_eq!(codes, want, "nothing is left of what was refused");
        for end in [Ok(()), Err(Error::NotFinite { what: "latents", index: 0 })] {
            let mut robbed = codes.clone();
            let taken = robbed.append_with(|rows| {
                rows[1].clear();
                end
            });
            assert!(taken.is_err() && robbed.is_empty() && robbed.rows().all(<[u32]>::is_empty));
        }
        codes.clear();
        assert!(codes.is_empty() && codes.rows().all(<[u32]>::is_empty));
        append(&mut codes, &[], &[]).unwrap();
        let mut scaled = Codes::empty(CodeLayout::uniform(1, 4).unwrap().with_scales(2).unwrap());
        assert!(matches!(scaled.append_with::<Error>(|_| Ok(())), Err(Error::Mismatch { .. })));
    }
}
