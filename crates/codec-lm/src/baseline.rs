//! What a model has to beat: codes by how often they occur, alone and behind the code before.

use crate::corpus::Corpus;
use crate::error::Result;
use crate::pattern::check_same_layout;
use codec_core::{CodeLayout, Codes};
use std::collections::HashMap;

/// Added to the count of every code, so that none is impossible.
const UNSEEN: f64 = 0.5;
/// Weights of the unigram beside the counts of a bigram, among which the best is taken.
const INTERPOLATIONS: [f64; 6] = [4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0];

/// Counts of codes.
#[derive(Clone, Debug)]
pub struct Baseline {
    layout: CodeLayout,
    books: Vec<Book>,
}

#[derive(Clone, Debug)]
struct Book {
    /// How often every code occurs.
    counts: Vec<f64>,
    total: f64,
    /// How often a code follows another one of its codebook.
    pairs: HashMap<(u32, u32), f64>,
    /// How often a code is followed by any.
    followed: Vec<f64>,
}

/// Bits of a codebook's codes, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BaselineBits {
    /// By how often they occur.
    pub unigram: f64,
    /// By the code before, which is interpolated with the unigram. The weight of the two is the one that
    /// suits the judged codes best, which favours the baseline.
    pub bigram: f64,
}

impl Baseline {
    /// Counts the codes of all recordings.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) for an empty corpus, [`Error::Mismatch`](crate::Error::Mismatch)
    /// when recordings have different layouts.
    pub fn of(corpus: &Corpus) -> Result<Self> {
        let mut baseline = Self::new(corpus.layout()?);
        for recording in &corpus.recordings {
            baseline.count(&recording.codes)?;
        }
        Ok(baseline)
    }

    /// No counts yet.
    fn new(layout: &CodeLayout) -> Self {
        let book = |size: u32| Book {
            counts: vec![UNSEEN; size as usize],
            total: UNSEEN * f64::from(size),
            pairs: HashMap::new(),
            followed: vec![0.0; size as usize],
        };
        let books = layout.codebooks().iter().map(|spec| book(spec.size)).collect();
        Self { layout: layout.clone(), books }
    }

    fn count(&mut self, codes: &Codes) -> Result<()> {
        check_same_layout(&self.layout, codes.layout())?;
        for (book, row) in self.books.iter_mut().zip(codes.rows()) {
            for &code in row {
                book.counts[code as usize] += 1.0;
                book.total += 1.0;
            }
            for pair in row.windows(2) {
                *book.pairs.entry((pair[0], pair[1])).or_default() += 1.0;
                book.followed[pair[0] as usize] += 1.0;
            }
        }
        Ok(())
    }

    /// The logarithm of every code's probability by how often it occurs, codebook after codebook.
    pub fn log_unigrams(&self) -> Vec<Vec<f64>> {
        let logs = |book: &Book| book.counts.iter().map(|n| (n / book.total).ln()).collect();
        self.books.iter().map(logs).collect()
    }

    /// What the codes of some recordings cost, codebook by codebook.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for codes of another layout than those counted.
    pub fn judge<'a>(
        &self,
        recordings: impl Iterator<Item = &'a Codes> + Clone,
    ) -> Result<Vec<BaselineBits>> {
        for codes in recordings.clone() {
            check_same_layout(&self.layout, codes.layout())?;
        }
        let of_book = |(codebook_idx, book): (usize, &Book)| {
            let mut unigram = 0.0;
            let mut bigrams = [0.0; INTERPOLATIONS.len()];
            for row in recordings.clone().filter_map(|codes| codes.row(codebook_idx)) {
                let mut before = None;
                for &code in row {
                    let own = book.unigram(code);
                    unigram -= own.log2();
                    for (bits, weight) in bigrams.iter_mut().zip(INTERPOLATIONS) {
                        *bits -= before.map_or(own, |before| book.bigram(before, code, weight)).log2();
                    }
                    before = Some(code);
                }
            }
            BaselineBits { unigram, bigram: bigrams.into_iter().fold(unigram, f64::min) }
        };
        Ok(self.books.iter().enumerate().map(of_book).collect())
    }
}

impl Book {
    fn unigram(&self, code: u32) -> f64 {
        self.counts[code as usize] / self.total
    }

    fn bigram(&self, before: u32, code: u32, weight: f64) -> f64 {
        let pair = self.pairs.get(&(before, code)).copied().unwrap_or(0.0);
        (pair + weight * self.unigram(code)) / (self.followed[before as usize] + weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn probabilities_sum_to_one_and_a_chain_is_recognized() {
        let layout = CodeLayout::uniform(2, 4).unwrap();
        // Codebook 0 counts up; codebook 1 never changes.
        let rows = vec![(0..400).map(|i| i % 4).collect(), vec![2; 400]];
        let codes = Codes::new(layout.clone(), rows).unwrap();
        let mut baseline = Baseline::new(&layout);
        baseline.count(&codes).unwrap();
        for book in &baseline.books {
            let total: f64 = (0..4).map(|code| book.unigram(code)).sum();
            assert!((total - 1.0).abs() < 1e-12);
            for before in 0..4 {
                let total: f64 = (0..4).map(|code| book.bigram(before, code, 3.0)).sum();
                assert!((total - 1.0).abs() < 1e-12);
            }
        }
        let bits = baseline.judge(std::iter::once(&codes)).unwrap();
        assert!((bits[0].unigram - 800.0).abs() < 1.0 && bits[0].bigram < 30.0, "{bits:?}");
        assert!(bits[1].unigram < 5.0 && bits[1].bigram <= bits[1].unigram, "{bits:?}");
        let logs = baseline.log_unigrams();
        assert!((logs[1][2].exp() - 400.5 / 402.0).abs() < 1e-12);
        // Codes that no counts are for.
        let other = Codes::new(CodeLayout::uniform(2, 9).unwrap(), vec![vec![8]; 2]).unwrap();
        assert!(matches!(baseline.judge(std::iter::once(&other)), Err(Error::Mismatch { .. })));
        assert!(matches!(baseline.count(&other), Err(Error::Mismatch { .. })));
    }
}
