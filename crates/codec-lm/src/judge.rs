//! How well a model predicts codes it has not seen: bits per code, codebook by codebook, beside baselines.

use crate::baseline::Baseline;
use crate::corpus::{Corpus, Recording};
use crate::error::{Error, Result};
use crate::pattern::Cell;
use crate::predict::LanguageModel;
use codec_core::Codes;
use serde::Serialize;

/// Mean bits of a codebook's codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CodebookBits {
    /// By the model.
    pub model: f64,
    /// By how often codes occur, where that was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unigram: Option<f64>,
    /// By the code before, where that was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bigram: Option<f64>,
    /// If every code were as likely.
    pub uniform: f64,
    /// Codes per frame.
    #[serde(skip)]
    per_frame: f64,
}

/// A judgement.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Coarse to fine.
    pub codebooks: Vec<CodebookBits>,
    /// Frames that were judged.
    pub n_frames: usize,
    /// Recordings that they are from.
    pub n_recordings: usize,
    /// Frames per second, where the codec is known.
    pub frame_rate: Option<f64>,
}

/// What each codebook costs in bits per frame, all codebooks together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Totals {
    /// By the model.
    pub model: f64,
    /// By how often codes occur.
    pub unigram: Option<f64>,
    /// By the code before.
    pub bigram: Option<f64>,
    /// If every code were as likely.
    pub uniform: f64,
}

impl Report {
    /// Bits per frame.
    pub fn bits_per_frame(&self) -> Totals {
        let sum = |of: fn(&CodebookBits) -> f64| -> f64 {
            self.codebooks.iter().map(|book| book.per_frame * of(book)).sum()
        };
        let sum_some = |of: fn(&CodebookBits) -> Option<f64>| -> Option<f64> {
            self.codebooks.iter().map(|book| Some(book.per_frame * of(book)?)).sum()
        };
        Totals {
            model: sum(|book| book.model),
            unigram: sum_some(|book| book.unigram),
            bigram: sum_some(|book| book.bigram),
            uniform: sum(|book| book.uniform),
        }
    }

    /// Mean bits of a code by the model.
    pub fn bits_per_code(&self) -> f64 {
        let n: f64 = self.codebooks.iter().map(|book| book.per_frame).sum();
        self.bits_per_frame().model / n.max(f64::MIN_POSITIVE)
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let totals = self.bits_per_frame();
        let rate = self
            .frame_rate
            .map_or(String::new(), |rate| format!(" = {:.3} kbit/s", totals.model * rate / 1000.0));
        let against = |name: &str, other: Option<f64>| {
            other.map_or(String::new(), |other| {
                format!(", {:+.1} % against {name}", 100.0 * (totals.model / other - 1.0))
            })
        };
        format!(
            "{:.3} bits per code{rate}{}{}{}",
            self.bits_per_code(),
            against("uniform", Some(totals.uniform)),
            against("unigram", totals.unigram),
            against("bigram", totals.bigram),
        )
    }

    /// A table for people, a line for each codebook.
    pub fn table(&self) -> String {
        let cell = |x: Option<f64>| x.map_or_else(|| format!("{:>9}", "-"), |x| format!("{x:9.3}"));
        let row = |name: &str, x: [Option<f64>; 4]| format!("{name:>10}{}\n", x.map(cell).concat());
        let mut text =
            format!("{:>10}{:>9}{:>9}{:>9}{:>9}\n", "codebook", "model", "bigram", "unigram", "uniform");
        for (i, book) in self.codebooks.iter().enumerate() {
            let values = [Some(book.model), book.bigram, book.unigram, Some(book.uniform)];
            text += &row(&format!("{}", i + 1), values);
        }
        let totals = self.bits_per_frame();
        let all = [Some(totals.model), totals.bigram, totals.unigram, Some(totals.uniform)];
        text += &row("per frame", all);
        if let Some(rate) = self.frame_rate {
            text += &row("kbit/s", all.map(|bits| bits.map(|bits| bits * rate / 1000.0)));
        }
        text
    }
}

/// Judges a model by recordings, at most `max_frames` frames of them, evenly from all.
///
/// # Errors
/// [`Error::Data`] when there is nothing to judge by; [`Error::Mismatch`] when the codes are not of the
/// model's layout or codec, or the baseline is not of their layout.
pub fn judge(
    model: &dyn LanguageModel,
    baseline: Option<&Baseline>,
    corpus: &Corpus,
    max_frames: usize,
) -> Result<Report> {
    if let Some((own, other)) = model.codec().zip(corpus.codec.as_ref())
        && own.sha256 != other.sha256
    {
        let what = "the codec of the model and that of the codes";
        return Err(Error::Mismatch { what, left: own.model.clone(), right: other.model.clone() });
    }
    let clips = excerpts(&corpus.recordings, model.arrangement().block_frames(), max_frames)?;
    let arrangement = model.arrangement();
    let layout = arrangement.layout();
    let mut costs = vec![(0.0_f64, 0_usize); layout.n_codebooks()];
    for (recording, codes) in &clips {
        let class = recording.class.as_deref().and_then(|class| model.class_idx(class));
        let tokens = arrangement.encode(codes)?;
        let cells = model.costs(&tokens, class)?;
        for (cell_idx, cost) in cells.into_iter().enumerate() {
            let (step_idx, stream_idx) = (cell_idx / tokens.n_streams(), cell_idx % tokens.n_streams());
            if let Cell::Code { codebook_idx, .. } = arrangement.cell(step_idx, stream_idx, codes.n_frames())
            {
                costs[codebook_idx].0 += cost;
                costs[codebook_idx].1 += 1;
            }
        }
    }
    let counted =
        baseline.map(|baseline| baseline.judge(clips.iter().map(|(_, codes)| codes))).transpose()?;
    let book = |(codebook_idx, (cost, n)): (usize, (f64, usize))| {
        let mean = |bits: f64| bits / n.max(1) as f64;
        let spec = layout.codebooks()[codebook_idx];
        let counted = counted.as_ref().map(|all| all[codebook_idx]);
        CodebookBits {
            model: mean(cost / std::f64::consts::LN_2),
            unigram: counted.map(|bits| mean(bits.unigram)),
            bigram: counted.map(|bits| mean(bits.bigram)),
            uniform: f64::from(spec.size).log2(),
            per_frame: 1.0 / f64::from(spec.stride),
        }
    };
    Ok(Report {
        codebooks: costs.into_iter().enumerate().map(book).collect(),
        n_frames: clips.iter().map(|(_, codes)| codes.n_frames()).sum(),
        n_recordings: clips.len(),
        frame_rate: corpus.codec.as_ref().or(model.codec()).map(|codec| codec.frame_rate()),
    })
}

/// The beginnings of the recordings, equally long as far as the recordings are, of `max_frames` frames in all
/// or hardly less: whole blocks. What does not divide goes to the first recordings.
fn excerpts(recordings: &[Recording], block: usize, max_frames: usize) -> Result<Vec<(&Recording, Codes)>> {
    let n_blocks = |recording: &Recording| recording.codes.n_frames() / block;
    let total = |most: usize| recordings.iter().map(|recording| n_blocks(recording).min(most)).sum::<usize>();
    // The longest length that all can have, in blocks.
    let max_blocks = max_frames / block;
    let (mut low, mut high) = (0, recordings.iter().map(n_blocks).max().unwrap_or(0));
    if high == 0 {
        return Err(Error::Data { why: "there is nothing to judge by".to_owned() });
    }
    while low < high {
        let middle = (low + high).div_ceil(2);
        if total(middle) <= max_blocks { low = middle } else { high = middle - 1 }
    }
    let mut n_left = max_blocks - total(low);
    let mut clips = Vec::new();
    for recording in recordings {
        let mut n = n_blocks(recording).min(low);
        if n_left > 0 && n < n_blocks(recording) {
            (n, n_left) = (n + 1, n_left - 1);
        }
        if n > 0 {
            clips.push((recording, recording.codes.slice(0..n * block)?));
        }
    }
    if clips.is_empty() {
        let why = format!("{max_frames} frames are none to judge by: a block has {block}");
        return Err(Error::Data { why });
    }
    Ok(clips)
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec_core::{CodeLayout, CodebookSpec};
    use std::path::PathBuf;

    fn recordings(strides: &[u32], lens: &[usize]) -> Vec<Recording> {
        let books = strides.iter().map(|&stride| CodebookSpec { size: 4, stride }).collect();
        let layout = CodeLayout::new(books).unwrap();
        let recording = |&n_frames: &usize| {
            let rows = strides.iter().map(|&stride| vec![1; n_frames / stride as usize]).collect();
            let codes = Codes::new(layout.clone(), rows).unwrap();
            Recording { path: PathBuf::new(), speaker: String::new(), class: None, source_idx: 0, codes }
        };
        lens.iter().map(recording).collect()
    }

    fn lens(recordings: &[Recording], block: usize, max_frames: usize) -> Vec<usize> {
        let clips = excerpts(recordings, block, max_frames).unwrap();
        clips.iter().map(|(_, codes)| codes.n_frames()).collect()
    }

    #[test]
    fn as_many_frames_are_judged_as_were_asked_for() {
        let all = recordings(&[1], &[10, 3, 0, 10]);
        assert_eq!(lens(&all, 1, usize::MAX), [10, 3, 10]);
        assert_eq!(lens(&all, 1, 23), [10, 3, 10]);
        assert_eq!(lens(&all, 1, 14), [6, 3, 5]);
        assert_eq!(lens(&all, 1, 8), [3, 3, 2]);
        // Fewer frames than recordings.
        assert_eq!(lens(&all, 1, 2), [1, 1]);
        assert_eq!(lens(&all, 1, 1), [1]);
        let blocks = recordings(&[4, 1], &[12, 4, 12]);
        assert_eq!(lens(&blocks, 4, 19), [8, 4, 4]);
        assert_eq!(lens(&blocks, 4, 4), [4]);
        for (recordings, block, max_frames) in
            [(&blocks, 4, 3), (&all, 1, 0), (&recordings(&[1], &[0]), 1, 9)]
        {
            assert!(matches!(excerpts(recordings, block, max_frames), Err(Error::Data { .. })));
        }
    }
}
