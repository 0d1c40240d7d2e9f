//! Generation: codes that carry on.
//!
//! A [`Generator`] reads a prompt and then gives frames as long as it is asked. Its memory does not grow:
//! the model keeps the keys and values of its context, and codes are kept until their frame is whole.

use crate::error::{Error, Result};
use crate::pattern::{Arrangement, Cell};
use crate::predict::{LanguageModel, Opening, Reader};
use crate::sampling::Sampler;
use codec_core::{CodebookSpec, Codes};
use std::collections::VecDeque;
use std::sync::Arc;

/// Largest [`Options::guidance`], in both directions: no logit overflows.
pub const MAX_GUIDANCE: f64 = 1000.0;

/// How a sequence is to be made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Draws the codes.
    pub sampler: Sampler,
    /// The class of the sequence, `None` for that of none.
    pub class: Option<u32>,
    /// How far logits are moved away from those without class or prompt: 1 leaves them as they are.
    ///
    /// # Source
    /// Ho and Salimans 2022, "Classifier-free diffusion guidance", eq. 6, on logits as in MusicGen.
    pub guidance: f64,
    /// Frames after which the sequence ends, those of the prompt included, where the model is to know it.
    pub end: Option<usize>,
}

impl Options {
    /// The default sampling of all codebooks, nothing that guides, no end.
    pub fn new(seed: u64) -> Self {
        Self { sampler: Sampler::usual(seed), class: None, guidance: 1.0, end: None }
    }

    /// Refuses what can be meant for no model.
    ///
    /// # Errors
    /// [`Error::Config`] for a guidance that is no number, or beyond [`MAX_GUIDANCE`].
    pub fn check(&self) -> Result<()> {
        if !(-MAX_GUIDANCE..=MAX_GUIDANCE).contains(&self.guidance) {
            let why = format!("{} is not in -{MAX_GUIDANCE}..={MAX_GUIDANCE}", self.guidance);
            return Err(Error::config("guidance", why));
        }
        Ok(())
    }

    /// Whether logits are moved at all.
    pub fn is_guided(&self) -> bool {
        self.guidance != 1.0
    }

    /// Frames of the whole sequence, `usize::MAX` for one that goes on.
    fn end(&self) -> usize {
        self.end.unwrap_or(usize::MAX)
    }
}

/// Makes codes, frame after frame.
#[derive(Debug)]
pub struct Generator<'m> {
    arrangement: &'m Arrangement,
    options: Options,
    /// The sequence, and behind it, where it is guided, the same without what guides it.
    reader: Box<dyn Reader + 'm>,
    step_idx: usize,
    rows: Vec<Row>,
    /// Frames given so far, those of the prompt included.
    n_given: usize,
}

/// The codes of one codebook that are still needed.
#[derive(Debug, Default)]
struct Row {
    /// Index of the first code that is kept.
    first: usize,
    codes: VecDeque<u32>,
}

impl Row {
    fn end(&self) -> usize {
        self.first + self.codes.len()
    }

    fn get(&self, code_idx: usize) -> Option<u32> {
        self.codes.get(code_idx.checked_sub(self.first)?).copied()
    }
}

impl<'m> Generator<'m> {
    /// Reads a prompt, which may be empty.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the prompt has another layout; [`Error::Unsupported`] for a pattern that
    /// cannot go on without an end; [`Error::Config`] for more settings than codebooks, for a guidance that
    /// has nothing to guide by, and as [`Options::check`].
    pub fn new(model: &'m dyn LanguageModel, prompt: &Codes, options: Options) -> Result<Self> {
        let arrangement = model.arrangement();
        if !arrangement.is_open() && options.end.is_none() {
            let value = format!("{:?}", arrangement.pattern());
            return Err(Error::Unsupported { what: "generation with the pattern", value });
        }
        arrangement.check_layout(prompt.layout())?;
        options.check()?;
        let (n_settings, n_codebooks) = (options.sampler.n_settings(), arrangement.layout().n_codebooks());
        if n_settings > n_codebooks {
            let why = format!("has settings for {n_settings} codebooks, the model {n_codebooks}");
            return Err(Error::config("sampler", why));
        }
        if options.is_guided() && options.class.is_none() && prompt.is_empty() {
            return Err(Error::config("guidance", "needs a class or a prompt to guide by"));
        }
        let row = |codes: &[u32]| Row { first: 0, codes: codes.iter().copied().collect() };
        let rows: Vec<Row> = prompt.rows().map(row).collect();
        let steps = known_steps(arrangement, &rows, options.end());
        let sequence = Opening { class: options.class, steps: &steps };
        // Guidance by the prompt compares with a sequence that has not seen it.
        let unguided = if options.class.is_some() { &steps } else { [].as_slice() };
        let pair = [sequence, Opening { class: None, steps: unguided }];
        let openings = if options.is_guided() { &pair } else { &pair[..1] };
        let mut generator = Self {
            arrangement,
            reader: model.begin_together(openings)?,
            options,
            step_idx: steps.len() / arrangement.n_streams(),
            rows,
            n_given: prompt.n_frames(),
        };
        generator.forget();
        Ok(generator)
    }

    /// The token of a cell, if it is determined.
    fn known(&self, stream_idx: usize) -> Option<u32> {
        known(self.arrangement, &self.rows, self.options.end(), self.step_idx, stream_idx)
    }

    /// Makes the next frames: one, or one block where codebooks have strides; none behind the end.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the model's numbers are not; what the layers fail with.
    pub fn next_frames(&mut self) -> Result<Codes> {
        let n_frames = self.arrangement.block_frames();
        let wanted = self.n_given + n_frames;
        if wanted > self.options.end() {
            return Ok(Codes::empty(Arc::clone(self.arrangement.layout())));
        }
        while self.n_whole() < wanted {
            self.advance()?;
        }
        let layout = Arc::clone(self.arrangement.layout());
        let codebooks = layout.codebooks().iter().zip(&self.rows);
        let row = |(book, row): (&CodebookSpec, &Row)| {
            let stride = book.stride as usize;
            let codes = self.n_given / stride..wanted / stride;
            codes.filter_map(|code_idx| row.get(code_idx)).collect()
        };
        let rows = codebooks.map(row).collect();
        self.n_given = wanted;
        self.forget();
        Ok(Codes::new(layout, rows)?)
    }

    /// Frames whose codes are all there.
    fn n_whole(&self) -> usize {
        let codebooks = self.arrangement.layout().codebooks().iter().zip(&self.rows);
        codebooks.map(|(book, row)| row.end() * book.stride as usize).min().unwrap_or(0)
    }

    /// Makes one step.
    fn advance(&mut self) -> Result<()> {
        let n_streams = self.arrangement.n_streams();
        let mut step = Vec::with_capacity(n_streams);
        for stream_idx in 0..n_streams {
            let token = match self.known(stream_idx) {
                Some(token) => token,
                None => self.draw(stream_idx, &step)?,
            };
            step.push(token);
        }
        self.reader.read(&step)?;
        self.step_idx += 1;
        Ok(())
    }

    /// Draws the token of a cell that holds a code, and keeps the code.
    fn draw(&mut self, stream_idx: usize, known: &[u32]) -> Result<u32> {
        let (step_idx, arrangement) = (self.step_idx, self.arrangement);
        let wrong = || Error::Token { step_idx, stream_idx, token: u32::MAX };
        let cell = arrangement.cell(step_idx, stream_idx, self.options.end());
        let Cell::Code { codebook_idx, code_idx, slot_idx } = cell else { return Err(wrong()) };
        let slots = arrangement.vocabulary().slots(stream_idx);
        let tokens = slots.get(slot_idx).ok_or_else(wrong)?.tokens.clone();
        let mut logits = self.reader.logits(known)?;
        if self.options.is_guided() {
            let guidance = self.options.guidance as f32;
            let unguided = logits.split_off(logits.len() / 2);
            let pairs = logits.iter_mut().zip(unguided);
            pairs.for_each(|(guided, without)| *guided = without + (*guided - without) * guidance);
        }
        // A stream of several codebooks is asked for the one whose turn it is.
        let logits = logits.get_mut(tokens.start as usize..tokens.end as usize).ok_or_else(wrong)?;
        let code = self.options.sampler.draw(logits, codebook_idx, step_idx as u64)? as u32;
        let row = self.rows.get_mut(codebook_idx).filter(|row| row.end() == code_idx);
        row.ok_or_else(wrong)?.codes.push_back(code);
        arrangement.vocabulary().code(stream_idx, slot_idx, code).ok_or_else(wrong)
    }

    /// Lets go of codes that were given and that no later step reads.
    fn forget(&mut self) {
        // A step of a single stream is one code, which is read where it is made.
        let n_read = match self.arrangement.n_streams() {
            1 => self.n_given,
            _ => self.step_idx.saturating_sub(self.arrangement.delay()),
        };
        let n_done = self.n_given.min(n_read);
        for (book, row) in self.arrangement.layout().codebooks().iter().zip(&mut self.rows) {
            let keep_from = n_done / book.stride as usize;
            while row.first < keep_from && row.codes.pop_front().is_some() {
                row.first += 1;
            }
        }
    }

    /// Codes that are kept, for the tests of memory.
    #[cfg(test)]
    pub(crate) fn n_kept(&self) -> usize {
        self.rows.iter().map(|row| row.codes.len()).sum()
    }
}

/// The token of a cell of a sequence of `n_frames` frames, if codes so far determine it.
fn known(
    arrangement: &Arrangement,
    rows: &[Row],
    n_frames: usize,
    step_idx: usize,
    stream_idx: usize,
) -> Option<u32> {
    match arrangement.cell(step_idx, stream_idx, n_frames) {
        Cell::Special(special) => Some(arrangement.special(stream_idx, special)),
        Cell::Code { codebook_idx, code_idx, slot_idx } => {
            let code = rows.get(codebook_idx)?.get(code_idx)?;
            arrangement.vocabulary().code(stream_idx, slot_idx, code)
        }
    }
}

/// The steps that the codes so far determine, `[n_steps, n_streams]`.
fn known_steps(arrangement: &Arrangement, rows: &[Row], n_frames: usize) -> Vec<u32> {
    let n_streams = arrangement.n_streams();
    let step = |step_idx: usize| -> Option<Vec<u32>> {
        let token = |stream_idx| known(arrangement, rows, n_frames, step_idx, stream_idx);
        (0..n_streams).map(token).collect()
    };
    (0..arrangement.n_steps(n_frames.min(usize::MAX / 2))).map_while(step).flatten().collect()
}

/// Makes `n_frames` frames, rounded up to whole blocks and not beyond the end, that carry on from a prompt.
///
/// # Errors
/// As [`Generator::new`] and [`Generator::next_frames`].
pub fn carry_on(
    model: &dyn LanguageModel,
    prompt: &Codes,
    n_frames: usize,
    options: Options,
) -> Result<Codes> {
    let mut generator = Generator::new(model, prompt, options)?;
    let mut codes = Codes::empty(Arc::clone(model.arrangement().layout()));
    while codes.n_frames() < n_frames {
        let frames = generator.next_frames()?;
        if frames.is_empty() {
            break;
        }
        codes.append(&frames)?;
    }
    Ok(codes)
}
