//! Patterns: how codes stand in the sequence that a language model reads.
//!
//! A sequence is a grid, `[n_steps, n_streams]`; a model reads a step at a time. A pattern says which code
//! stands in which cell, and where no code stands there is a special token. [`Arrangement`] binds a pattern
//! to a layout of codebooks and turns [`Codes`] into [`Tokens`] and back, exactly.
//!
//! | pattern | streams | a step holds | used by |
//! | --- | --- | --- | --- |
//! | [`Pattern::Parallel`] | one per codebook | a frame | EnCodec's language model |
//! | [`Pattern::Delay`] | one per codebook | codebook k of the frame `delays[k]` before | MusicGen, Parler |
//! | [`Pattern::Depth`] | one per codebook | as `Delay`, its codes predicted one after the other | RQ-transformer, Moshi, CSM |
//! | [`Pattern::Flatten`] | one | one code, frame by frame | AudioLM's stages, Bark's coarse stage |
//! | [`Pattern::Interleave`] | one | one code, with tokens of its own for each place in a block | SNAC: Orpheus |
//! | [`Pattern::CoarseFirst`] | one per codebook | all of codebook 0, then the others together | MusicGen's ablation |
//! | [`Pattern::ArNar`] | one | all of codebook 0, an end, then codebook by codebook | VALL-E |
//!
//! ```
//! use codec_core::{CodeLayout, Codes};
//! use codec_lm::pattern::{Arrangement, Pattern};
//!
//! let layout = CodeLayout::uniform(2, 10)?;
//! let codes = Codes::new(layout.clone(), vec![vec![1, 2, 3], vec![4, 5, 6]])?;
//! let delayed = Arrangement::new(Pattern::Delay { delays: vec![0, 1] }, layout)?;
//! let tokens = delayed.encode(&codes)?;
//! // 10 is the empty token of both streams.
//! assert_eq!(tokens.steps().collect::<Vec<_>>(), [[1, 10], [2, 4], [3, 5], [10, 6]]);
//! assert_eq!(delayed.decode(&tokens)?, codes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::error::{Error, Result};
use crate::vocabulary::{Special, Vocabulary};
use codec_core::{CodeLayout, Codes};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Longest delay, in steps.
pub const MAX_DELAY: usize = 1 << 12;

/// How codes stand in a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Pattern {
    /// A frame is a step; its codes are predicted together.
    Parallel,
    /// Codebook k comes `delays[k]` steps late, so that a code is predicted with those of its frame known
    /// that have a smaller delay.
    ///
    /// # Source
    /// Copet et al. 2023, "Simple and controllable music generation", section 2.2 and figure 1.
    Delay {
        /// Steps, one for each codebook.
        delays: Vec<usize>,
    },
    /// As [`Pattern::Delay`], but the codes of a step are predicted one after the other.
    ///
    /// # Source
    /// Lee et al. 2022, "Autoregressive image generation using residual quantization", section 3.2; with
    /// delays: Défossez et al. 2024, "Moshi", section 3.4.3.
    Depth {
        /// Steps, one for each codebook.
        delays: Vec<usize>,
    },
    /// One code is a step: frame by frame, the codebooks of each in order. A codebook with a stride has its
    /// code where its frames begin.
    Flatten,
    /// The order of [`Pattern::Flatten`], with tokens of its own for every place in a block of frames:
    /// which for SNAC is the depth-first order of its tree.
    Interleave,
    /// Codebook 0 of all frames, then the other codebooks together, each with its delay.
    ///
    /// # Source
    /// Copet et al. 2023, section 2.2; Wang et al. 2023, "VALL-E".
    CoarseFirst {
        /// Steps, one for each codebook but the first.
        delays: Vec<usize>,
    },
    /// Codebook 0 of all frames, which is predicted code by code, an end token, and the other codebooks one
    /// after the other, each of which is predicted at once from those before it.
    ///
    /// # Source
    /// Wang et al. 2023, "Neural codec language models are zero-shot text to speech synthesizers", section 4.
    ArNar,
}

/// What stands in a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// A code.
    Code {
        /// The codebook.
        codebook_idx: usize,
        /// The place in the codebook's row.
        code_idx: usize,
        /// The slot of the stream's vocabulary.
        slot_idx: usize,
    },
    /// No code.
    Special(Special),
}

/// A sequence.
///
/// # Shapes
/// `[n_steps, n_streams]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    n_streams: usize,
    values: Vec<u32>,
}

impl Tokens {
    /// Takes steps one after the other.
    ///
    /// # Errors
    /// [`Error::Shape`] when the last step lacks streams, or there are no streams.
    pub fn new(n_streams: usize, values: Vec<u32>) -> Result<Self> {
        if n_streams == 0 || !values.len().is_multiple_of(n_streams) {
            let expected = values.len().next_multiple_of(n_streams.max(1));
            return Err(Error::Shape { what: "tokens", expected, actual: values.len() });
        }
        Ok(Self { n_streams, values })
    }

    /// Tokens per step.
    pub fn n_streams(&self) -> usize {
        self.n_streams
    }

    /// How many steps there are.
    pub fn n_steps(&self) -> usize {
        self.values.len() / self.n_streams
    }

    /// The steps in order, each `[n_streams]`.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.values.chunks_exact(self.n_streams)
    }

    /// All tokens, `[n_steps, n_streams]`.
    pub fn values(&self) -> &[u32] {
        &self.values
    }

    /// Adds a step.
    ///
    /// # Errors
    /// [`Error::Shape`] when it has another number of streams.
    pub fn push(&mut self, step: &[u32]) -> Result<()> {
        if step.len() != self.n_streams {
            return Err(Error::Shape { what: "streams", expected: self.n_streams, actual: step.len() });
        }
        self.values.extend_from_slice(step);
        Ok(())
    }
}

/// A pattern for the codes of one layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrangement {
    pattern: Pattern,
    layout: Arc<CodeLayout>,
    /// One for each stream, or none where streams wait for no other.
    delays: Vec<usize>,
    /// The codes of a block in the order of [`Pattern::Flatten`].
    block: Vec<Place>,
    vocabulary: Vocabulary,
}

/// The place of a code in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    codebook_idx: usize,
    /// Among the codebook's codes in the block.
    code_idx: usize,
    /// How many codes of the codebook a block has.
    n_codes: usize,
}

impl Arrangement {
    /// Binds a pattern to a layout.
    ///
    /// # Errors
    /// [`Error::Config`] when there are not as many delays as codebooks, or one is longer than
    /// [`MAX_DELAY`]; [`Error::Unsupported`] for codebooks with strides in a pattern that has one code of
    /// each codebook in a step, and for codes with scales, which no token stands for.
    pub fn new(pattern: Pattern, layout: impl Into<Arc<CodeLayout>>) -> Result<Self> {
        let layout = layout.into();
        let n_codebooks = layout.n_codebooks();
        if layout.scale_frames().is_some() {
            return Err(Error::Unsupported { what: "codes with scales", value: layout.to_string() });
        }
        let by_frames = !matches!(pattern, Pattern::Flatten | Pattern::Interleave);
        if by_frames && layout.stride_frames() != 1 {
            let value = layout.to_string();
            return Err(Error::Unsupported { what: "a pattern of whole frames for codebooks", value });
        }
        let delays = match &pattern {
            Pattern::Delay { delays } | Pattern::Depth { delays } => checked(delays, n_codebooks)?,
            // Codebook 0 has no delay; the others count from the end of it.
            Pattern::CoarseFirst { delays } => checked(delays, n_codebooks - 1)?,
            _ => Vec::new(),
        };
        let block = places(&layout);
        let each: Vec<usize> = (0..n_codebooks).collect();
        let by_codebook = || each.iter().map(|&codebook_idx| vec![codebook_idx]).collect::<Vec<_>>();
        let streams = match pattern {
            Pattern::Flatten | Pattern::ArNar => vec![each],
            Pattern::Interleave => vec![block.iter().map(|place| place.codebook_idx).collect()],
            _ => by_codebook(),
        };
        let vocabulary = Vocabulary::new(&layout, &streams, pattern == Pattern::ArNar);
        Ok(Self { pattern, layout, delays, block, vocabulary })
    }

    /// The pattern.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// The layout of the codes.
    pub fn layout(&self) -> &Arc<CodeLayout> {
        &self.layout
    }

    /// The tokens of every stream.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Tokens per step.
    pub fn n_streams(&self) -> usize {
        self.vocabulary.n_streams()
    }

    /// Whether the codes of a step are predicted one after the other.
    pub fn is_deep(&self) -> bool {
        matches!(self.pattern, Pattern::Depth { .. })
    }

    /// Whether a sequence can go on without its length being known, so that it can be a stream.
    pub fn is_open(&self) -> bool {
        !matches!(self.pattern, Pattern::CoarseFirst { .. } | Pattern::ArNar)
    }

    /// Frames that a sequence is made of at least: its frames are a multiple of it.
    pub fn block_frames(&self) -> usize {
        self.layout.stride_frames() as usize
    }

    /// Steps from the first code of a frame to its last one.
    pub fn delay(&self) -> usize {
        self.delays.iter().copied().max().unwrap_or(0)
    }

    /// Steps of a sequence of `n_frames` frames; saturates.
    pub fn n_steps(&self, n_frames: usize) -> usize {
        match self.pattern {
            Pattern::Parallel => n_frames,
            Pattern::Delay { .. } | Pattern::Depth { .. } if n_frames == 0 => 0,
            Pattern::Delay { .. } | Pattern::Depth { .. } => n_frames.saturating_add(self.delay()),
            Pattern::Flatten | Pattern::Interleave => {
                (n_frames / self.block_frames()).saturating_mul(self.block.len())
            }
            Pattern::CoarseFirst { .. } if self.delays.is_empty() || n_frames == 0 => n_frames,
            Pattern::CoarseFirst { .. } => n_frames.saturating_mul(2).saturating_add(self.delay()),
            Pattern::ArNar => n_frames.saturating_mul(self.layout.n_codebooks()).saturating_add(1),
        }
    }

    /// Frames of a sequence of so many steps; `None` when no number of frames has them.
    pub fn n_frames(&self, n_steps: usize) -> Option<usize> {
        let n_frames = match self.pattern {
            Pattern::Parallel => n_steps,
            Pattern::Delay { .. } | Pattern::Depth { .. } => n_steps.saturating_sub(self.delay()),
            Pattern::Flatten | Pattern::Interleave => n_steps / self.block.len() * self.block_frames(),
            Pattern::CoarseFirst { .. } if self.delays.is_empty() => n_steps,
            Pattern::CoarseFirst { .. } => n_steps.saturating_sub(self.delay()) / 2,
            Pattern::ArNar => n_steps.saturating_sub(1) / self.layout.n_codebooks(),
        };
        (self.n_steps(n_frames) == n_steps).then_some(n_frames)
    }

    /// What stands in a cell of a sequence of `n_frames` frames, `usize::MAX` for one that goes on
    /// ([`Arrangement::is_open`]). Behind the end everything is empty.
    pub fn cell(&self, step_idx: usize, stream_idx: usize, n_frames: usize) -> Cell {
        let empty = Cell::Special(Special::Empty);
        let frame = |codebook_idx, frame_idx: Option<usize>, slot_idx| match frame_idx {
            Some(code_idx) if code_idx < n_frames => Cell::Code { codebook_idx, code_idx, slot_idx },
            _ => empty,
        };
        if stream_idx >= self.n_streams() {
            return empty;
        }
        match self.pattern {
            Pattern::Parallel => frame(stream_idx, Some(step_idx), 0),
            Pattern::Delay { .. } | Pattern::Depth { .. } => {
                frame(stream_idx, step_idx.checked_sub(self.delays[stream_idx]), 0)
            }
            Pattern::Flatten | Pattern::Interleave => {
                let (block_idx, place_idx) = (step_idx / self.block.len(), step_idx % self.block.len());
                let Place { codebook_idx, code_idx, n_codes } = self.block[place_idx];
                if block_idx >= n_frames / self.block_frames() {
                    return empty;
                }
                let slot_idx = if self.pattern == Pattern::Flatten { codebook_idx } else { place_idx };
                Cell::Code { codebook_idx, code_idx: block_idx * n_codes + code_idx, slot_idx }
            }
            Pattern::CoarseFirst { .. } => {
                let late = stream_idx.checked_sub(1).map(|i| n_frames.saturating_add(self.delays[i]));
                frame(stream_idx, step_idx.checked_sub(late.unwrap_or(0)), 0)
            }
            Pattern::ArNar if step_idx < n_frames => frame(0, Some(step_idx), 0),
            Pattern::ArNar if step_idx == n_frames => Cell::Special(Special::End),
            Pattern::ArNar => {
                let (pass, code_idx) = match n_frames {
                    0 => return empty,
                    _ => ((step_idx - n_frames - 1) / n_frames, (step_idx - n_frames - 1) % n_frames),
                };
                let codebook_idx = pass + 1;
                if codebook_idx >= self.layout.n_codebooks() {
                    return empty;
                }
                Cell::Code { codebook_idx, code_idx, slot_idx: codebook_idx }
            }
        }
    }

    /// The token of a special in a stream.
    pub(crate) fn special(&self, stream_idx: usize, special: Special) -> u32 {
        // A pattern that has an end has its token.
        self.vocabulary.special(stream_idx, special).unwrap_or(u32::MAX)
    }

    /// The step that stands before a sequence.
    pub fn start(&self) -> Vec<u32> {
        (0..self.n_streams()).map(|stream_idx| self.special(stream_idx, Special::Empty)).collect()
    }

    /// The sequence of some codes, without the step that starts it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the codes have another layout.
    pub fn encode(&self, codes: &Codes) -> Result<Tokens> {
        self.check_layout(codes.layout())?;
        let (n_frames, n_streams) = (codes.n_frames(), self.n_streams());
        let n_steps = self.n_steps(n_frames);
        let mut values = Vec::with_capacity(n_steps.saturating_mul(n_streams));
        for step_idx in 0..n_steps {
            for stream_idx in 0..n_streams {
                values.push(match self.cell(step_idx, stream_idx, n_frames) {
                    Cell::Special(special) => self.special(stream_idx, special),
                    Cell::Code { codebook_idx, code_idx, slot_idx } => {
                        let code = codes.row(codebook_idx).and_then(|row| row.get(code_idx));
                        let token = code.and_then(|&code| self.vocabulary.code(stream_idx, slot_idx, code));
                        token.ok_or(Error::Token { step_idx, stream_idx, token: u32::MAX })?
                    }
                });
            }
        }
        Tokens::new(n_streams, values)
    }

    /// The codes of a whole sequence, without the step that starts it.
    ///
    /// # Errors
    /// [`Error::Shape`] when no number of frames has so many steps or streams; [`Error::Token`] when a token
    /// stands where its pattern has another.
    pub fn decode(&self, tokens: &Tokens) -> Result<Codes> {
        let n_streams = self.n_streams();
        if tokens.n_streams() != n_streams {
            let what = "streams of a sequence";
            return Err(Error::Shape { what, expected: n_streams, actual: tokens.n_streams() });
        }
        let n_frames = self.n_frames(tokens.n_steps()).ok_or_else(|| Error::Shape {
            what: "steps of a sequence",
            expected: self.n_steps(self.block_frames()),
            actual: tokens.n_steps(),
        })?;
        let codebooks = self.layout.codebooks().iter();
        let mut rows: Vec<Vec<u32>> =
            codebooks.map(|book| vec![0; n_frames / book.stride as usize]).collect();
        for (step_idx, step) in tokens.steps().enumerate() {
            for (stream_idx, &token) in step.iter().enumerate() {
                let wrong = || Error::Token { step_idx, stream_idx, token };
                match self.cell(step_idx, stream_idx, n_frames) {
                    Cell::Special(special) if token == self.special(stream_idx, special) => {}
                    Cell::Special(_) => return Err(wrong()),
                    Cell::Code { codebook_idx, code_idx, slot_idx } => {
                        let code = self.code(stream_idx, slot_idx, token).ok_or_else(wrong)?;
                        rows[codebook_idx][code_idx] = code;
                    }
                }
            }
        }
        Ok(Codes::new(Arc::clone(&self.layout), rows)?)
    }

    /// The code of a token that stands in this slot.
    pub(crate) fn code(&self, stream_idx: usize, slot_idx: usize, token: u32) -> Option<u32> {
        let slot = self.vocabulary.slots(stream_idx).get(slot_idx)?;
        slot.tokens.contains(&token).then(|| token - slot.tokens.start)
    }

    pub(crate) fn check_layout(&self, layout: &CodeLayout) -> Result<()> {
        check_same_layout(&self.layout, layout)
    }
}

/// Refuses codes of another layout than those before.
pub(crate) fn check_same_layout(expected: &CodeLayout, actual: &CodeLayout) -> Result<()> {
    if expected != actual {
        let (left, right) = (expected.to_string(), actual.to_string());
        return Err(Error::Mismatch { what: "layout of the codes", left, right });
    }
    Ok(())
}

fn checked(delays: &[usize], expected: usize) -> Result<Vec<usize>> {
    if delays.len() != expected {
        let why = format!("needs {expected} delays, has {}", delays.len());
        return Err(Error::config("pattern", why));
    }
    if delays.iter().any(|&delay| delay > MAX_DELAY) {
        return Err(Error::config("pattern", format!("a delay is longer than {MAX_DELAY} steps")));
    }
    Ok(delays.to_vec())
}

/// The codes of a block of frames: frame by frame, codebook by codebook.
fn places(layout: &CodeLayout) -> Vec<Place> {
    let n_frames = layout.stride_frames();
    let at = |frame_idx: u32| {
        let codebooks = layout.codebooks().iter().enumerate();
        let begins = codebooks.filter(move |(_, book)| frame_idx.is_multiple_of(book.stride));
        begins.map(move |(codebook_idx, book)| Place {
            codebook_idx,
            code_idx: (frame_idx / book.stride) as usize,
            n_codes: (n_frames / book.stride) as usize,
        })
    };
    (0..n_frames).flat_map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec_core::CodebookSpec;
    use proptest::prelude::*;

    fn uniform(sizes: &[u32]) -> CodeLayout {
        CodeLayout::new(sizes.iter().map(|&size| CodebookSpec { size, stride: 1 }).collect()).unwrap()
    }

    fn snac(size: u32) -> CodeLayout {
        CodeLayout::new([4, 2, 1].map(|stride| CodebookSpec { size, stride }).to_vec()).unwrap()
    }

    /// Codes that are all different as far as the sizes allow.
    fn codes(layout: &CodeLayout, n_frames: usize, seed: u32) -> Codes {
        let row = |(k, book): (usize, &CodebookSpec)| {
            let n = n_frames / book.stride as usize;
            (0..n).map(|i| (i as u32 * 7 + k as u32 * 13 + seed) % book.size).collect()
        };
        Codes::new(layout.clone(), layout.codebooks().iter().enumerate().map(row).collect()).unwrap()
    }

    /// Every code has one cell, the inverse is exact, and a longer sequence begins alike.
    fn check(pattern: Pattern, layout: &CodeLayout, n_frames: usize, seed: u32) {
        let arrangement = Arrangement::new(pattern, layout.clone()).unwrap();
        let codes = codes(layout, n_frames, seed);
        let tokens = arrangement.encode(&codes).unwrap();
        assert_eq!(tokens.n_steps(), arrangement.n_steps(n_frames));
        assert_eq!(arrangement.n_frames(tokens.n_steps()), Some(n_frames));
        assert_eq!(arrangement.decode(&tokens).unwrap(), codes);
        let n_cells = (0..tokens.n_steps())
            .flat_map(|step_idx| (0..tokens.n_streams()).map(move |stream_idx| (step_idx, stream_idx)))
            .filter(|&(s, k)| matches!(arrangement.cell(s, k, n_frames), Cell::Code { .. }))
            .count();
        assert_eq!(n_cells, codes.rows().map(<[u32]>::len).sum::<usize>());
        for (stream_idx, &token) in tokens.steps().flat_map(|step| step.iter().enumerate()) {
            assert!(token < arrangement.vocabulary().n_tokens(stream_idx));
        }
        if arrangement.is_open() {
            let open = |s, k| match arrangement.cell(s, k, n_frames) {
                Cell::Code { .. } => arrangement.cell(s, k, usize::MAX) == arrangement.cell(s, k, n_frames),
                Cell::Special(_) => true,
            };
            assert!((0..tokens.n_steps()).all(|s| (0..tokens.n_streams()).all(|k| open(s, k))));
        }
        // One wrong special or code out of range is found.
        let mut values = tokens.values().to_vec();
        if let Some(value) = values.last_mut() {
            *value = u32::MAX;
            let broken = Tokens::new(tokens.n_streams(), values).unwrap();
            assert!(matches!(arrangement.decode(&broken), Err(Error::Token { .. })));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(120))]

        #[test]
        fn whole_frames_go_there_and_back(
            sizes in prop::collection::vec(1_u32..40, 1..6),
            delays in prop::collection::vec(0_usize..9, 6),
            n_frames in 0_usize..40,
            seed in 0_u32..100,
        ) {
            let layout = uniform(&sizes);
            let n = sizes.len();
            let all = [
                Pattern::Parallel,
                Pattern::Delay { delays: delays[..n].to_vec() },
                Pattern::Depth { delays: delays[..n].to_vec() },
                Pattern::Flatten,
                Pattern::Interleave,
                Pattern::CoarseFirst { delays: delays[..n - 1].to_vec() },
                Pattern::ArNar,
            ];
            for pattern in all {
                check(pattern, &layout, n_frames, seed);
            }
        }

        #[test]
        fn strided_codebooks_go_there_and_back(
            strides in prop::collection::vec(prop_oneof![Just(1_u32), Just(2), Just(3), Just(4), Just(6)], 1..5),
            size in 1_u32..50,
            n_blocks in 0_usize..6,
            seed in 0_u32..100,
        ) {
            let books = strides.iter().map(|&stride| CodebookSpec { size, stride }).collect();
            let layout = CodeLayout::new(books).unwrap();
            let n_frames = n_blocks * layout.stride_frames() as usize;
            for pattern in [Pattern::Flatten, Pattern::Interleave] {
                check(pattern, &layout, n_frames, seed);
            }
        }
    }

    #[test]
    fn snac_is_read_depth_first() {
        let layout = snac(4096);
        let rows = vec![vec![10], vec![20, 21], vec![30, 31, 32, 33]];
        let codes = Codes::new(layout.clone(), rows).unwrap();
        let interleaved = Arrangement::new(Pattern::Interleave, layout.clone()).unwrap();
        let places = [10, 20, 30, 31, 21, 32, 33];
        let want: Vec<u32> = (0..7).map(|i| i * 4096 + places[i as usize]).collect();
        assert_eq!(interleaved.encode(&codes).unwrap().values(), want);
        assert_eq!(interleaved.vocabulary().n_tokens(0), 7 * 4096 + 1);
        // Flattened, a token tells the codebook and not the place.
        let flat = Arrangement::new(Pattern::Flatten, layout).unwrap();
        let want = [10, 4096 + 20, 8192 + 30, 8192 + 31, 4096 + 21, 8192 + 32, 8192 + 33];
        assert_eq!(flat.encode(&codes).unwrap().values(), want);
    }

    #[test]
    fn delays_are_those_of_musicgen() {
        // As audiocraft's DelayedPatternProvider lays out 4 codebooks of 5 frames, its first step apart.
        let layout = uniform(&[20; 4]);
        let codes = codes(&layout, 5, 0);
        let delayed = Arrangement::new(Pattern::Delay { delays: vec![0, 1, 2, 3] }, layout).unwrap();
        let tokens = delayed.encode(&codes).unwrap();
        assert_eq!(tokens.n_steps(), 8);
        let row = |k: usize| tokens.steps().map(|step| step[k]).collect::<Vec<_>>();
        for k in 0..4 {
            let mut want = vec![20; k];
            want.extend(codes.row(k).unwrap());
            want.resize(8, 20);
            assert_eq!(row(k), want);
        }
        assert_eq!(delayed.start(), [20; 4]);
    }

    #[test]
    fn passes_follow_each_other() {
        let layout = uniform(&[9, 9, 9]);
        let codes = Codes::new(layout.clone(), vec![vec![1, 2], vec![3, 4], vec![5, 6]]).unwrap();
        let passes = Arrangement::new(Pattern::ArNar, layout.clone()).unwrap();
        assert_eq!(passes.encode(&codes).unwrap().values(), [1, 2, 28, 9 + 3, 9 + 4, 18 + 5, 18 + 6]);
        let coarse = Arrangement::new(Pattern::CoarseFirst { delays: vec![0, 1] }, layout).unwrap();
        let steps = coarse.encode(&codes).unwrap();
        let want = [[1, 9, 9], [2, 9, 9], [9, 3, 9], [9, 4, 5], [9, 9, 6]];
        assert_eq!(steps.steps().collect::<Vec<_>>(), want);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let layout = uniform(&[9, 9]);
        let new = |pattern, layout: CodeLayout| Arrangement::new(pattern, layout);
        assert!(matches!(new(Pattern::Delay { delays: vec![0] }, layout.clone()), Err(Error::Config { .. })));
        let long = Pattern::Delay { delays: vec![0, MAX_DELAY + 1] };
        assert!(matches!(new(long, layout.clone()), Err(Error::Config { .. })));
        assert!(matches!(new(Pattern::Parallel, snac(5)), Err(Error::Unsupported { .. })));
        let scaled = layout.clone().with_scales(10).unwrap();
        assert!(matches!(new(Pattern::Parallel, scaled), Err(Error::Unsupported { .. })));
        let delayed = new(Pattern::Delay { delays: vec![0, 3] }, layout.clone()).unwrap();
        let too_short = Tokens::new(2, vec![9; 4]).unwrap();
        assert!(matches!(delayed.decode(&too_short), Err(Error::Shape { .. })));
        let other = Codes::empty(uniform(&[9, 8]));
        assert!(matches!(delayed.encode(&other), Err(Error::Mismatch { .. })));
        assert!(Tokens::new(2, vec![0; 3]).is_err() && Tokens::new(0, Vec::new()).is_err());
    }
}
