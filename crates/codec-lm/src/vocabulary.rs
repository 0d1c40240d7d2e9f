//! Which number stands for which code, and for what is no code.
//!
//! This is the only place that knows it. Every stream of a sequence has a vocabulary of its own: the codes
//! of its slots, one slot after the other, then the specials. The last code of a stream is followed by
//! [`Special::Empty`], which is also what a sequence starts from, so that a stream of one codebook has the
//! convention of MusicGen and Moshi: the special token is the codebook's size.

use codec_core::CodeLayout;
use std::ops::Range;

/// A token that is no code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    /// Nothing stands here; also the step from which a sequence starts.
    Empty,
    /// A part of the sequence ends.
    End,
}

/// A run of codes inside a stream's vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The codebook whose codes these are.
    pub codebook_idx: usize,
    /// Their tokens, the token of code 0 first.
    pub tokens: Range<u32>,
}

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Meaning {
    /// A code of a slot.
    Code {
        /// The slot of the stream.
        slot_idx: usize,
        /// The code.
        code: u32,
    },
    /// No code.
    Special(Special),
}

/// The tokens of all streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    first: u32,
    streams: Vec<Vec<Slot>>,
    n_specials: u32,
}

impl Vocabulary {
    /// Streams of slots that hold the codes of these codebooks.
    pub(crate) fn new(layout: &CodeLayout, streams: &[Vec<usize>], has_end: bool) -> Self {
        let slots = |codebooks: &Vec<usize>| {
            let mut next = 0_u32;
            let slot = |&codebook_idx: &usize| {
                let size = layout.codebooks().get(codebook_idx).map_or(0, |codebook| codebook.size);
                let tokens = next..next.saturating_add(size);
                next = tokens.end;
                Slot { codebook_idx, tokens }
            };
            codebooks.iter().map(slot).collect()
        };
        let n_specials = if has_end { 2 } else { 1 };
        Self { first: 0, streams: streams.iter().map(slots).collect(), n_specials }
    }

    /// The same vocabulary behind `first` tokens of something else, such as text.
    #[must_use]
    pub fn behind(mut self, first: u32) -> Self {
        self.first = first;
        self
    }

    /// How many streams there are.
    pub fn n_streams(&self) -> usize {
        self.streams.len()
    }

    /// The slots of a stream; their ranges do not count what stands before the vocabulary.
    pub fn slots(&self, stream_idx: usize) -> &[Slot] {
        self.streams.get(stream_idx).map_or(&[], Vec::as_slice)
    }

    /// Tokens of a stream that are codes.
    pub fn n_codes(&self, stream_idx: usize) -> u32 {
        self.slots(stream_idx).last().map_or(0, |slot| slot.tokens.end)
    }

    /// All tokens of a stream, specials included, without what stands before them.
    pub fn n_tokens(&self, stream_idx: usize) -> u32 {
        self.n_codes(stream_idx).saturating_add(self.n_specials)
    }

    /// The token of a code.
    pub fn code(&self, stream_idx: usize, slot_idx: usize, code: u32) -> Option<u32> {
        let tokens = &self.slots(stream_idx).get(slot_idx)?.tokens;
        let token = tokens.start.checked_add(code).filter(|token| tokens.contains(token))?;
        token.checked_add(self.first)
    }

    /// The token of a special, if the vocabulary has it.
    pub fn special(&self, stream_idx: usize, special: Special) -> Option<u32> {
        let place = match special {
            Special::Empty => 0,
            Special::End if self.n_specials > 1 => 1,
            Special::End => return None,
        };
        self.first.checked_add(self.n_codes(stream_idx))?.checked_add(place)
    }

    /// What a token of a stream stands for; `None` for a token that the stream does not have.
    pub fn meaning(&self, stream_idx: usize, token: u32) -> Option<Meaning> {
        let token = token.checked_sub(self.first)?;
        let slots = self.slots(stream_idx);
        let slot_idx = slots.partition_point(|slot| slot.tokens.end <= token);
        if let Some(slot) = slots.get(slot_idx) {
            return Some(Meaning::Code { slot_idx, code: token - slot.tokens.start });
        }
        let all = [Special::Empty, Special::End];
        let is_it = |special: &Special| self.special(stream_idx, *special) == token.checked_add(self.first);
        all.into_iter().find(is_it).map(Meaning::Special)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_meanings_are_inverse() {
        let layout = CodeLayout::uniform(3, 5).unwrap();
        for (has_end, first) in [(false, 0), (true, 7)] {
            let vocabulary = Vocabulary::new(&layout, &[vec![0, 1, 1], vec![2]], has_end).behind(first);
            for stream_idx in 0..2 {
                let tokens = first..first + vocabulary.n_tokens(stream_idx);
                for token in tokens.clone() {
                    let back = match vocabulary.meaning(stream_idx, token).unwrap() {
                        Meaning::Code { slot_idx, code } => vocabulary.code(stream_idx, slot_idx, code),
                        Meaning::Special(special) => vocabulary.special(stream_idx, special),
                    };
                    assert_eq!(back, Some(token));
                }
                assert_eq!(vocabulary.meaning(stream_idx, tokens.end), None);
                assert_eq!(first.checked_sub(1).and_then(|t| vocabulary.meaning(stream_idx, t)), None);
            }
            assert_eq!((vocabulary.n_codes(0), vocabulary.n_codes(1)), (15, 5));
            assert_eq!(vocabulary.code(1, 0, 5), None);
            assert_eq!(vocabulary.special(1, Special::End).is_some(), has_end);
        }
    }
}
