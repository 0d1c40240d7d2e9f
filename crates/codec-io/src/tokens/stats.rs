//! Statistics of codes: how a codebook is used, and what its codes would cost at best.

use codec_core::{CodeLayout, Codes};
use std::collections::HashMap;

/// Codebooks up to this size are counted in a table, larger ones code by code.
const MAX_TABLE: u32 = 1 << 12;

/// Counts the codes of a stream.
///
/// Memory is bounded by the codebooks' sizes up to 4096 entries, and beyond that by the number of
/// different codes that occur.
#[derive(Clone, Debug)]
pub struct CodeStats {
    counts: Vec<Counts>,
}

#[derive(Clone, Debug)]
struct Counts {
    size: u32,
    table: Vec<u64>,
    rare: HashMap<u32, u64>,
}

/// How one codebook was used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodebookStats {
    /// Entries of the codebook.
    pub size: u32,
    /// Codes counted.
    pub n_codes: u64,
    /// Different codes among them.
    pub n_used: u64,
    /// Entropy of the histogram in bits per code, at most log2 of the size.
    pub entropy_bits: f64,
}

impl CodebookStats {
    /// Share of the entries that occur, 0 to 1.
    pub fn usage(&self) -> f64 {
        self.n_used as f64 / f64::from(self.size.max(1))
    }

    /// Number of equally frequent codes with the same entropy.
    pub fn perplexity(&self) -> f64 {
        self.entropy_bits.exp2()
    }
}

impl CodeStats {
    /// Nothing counted yet.
    pub fn new(layout: &CodeLayout) -> Self {
        let counts = layout.codebooks().iter().map(|codebook| {
            let n_table = if codebook.size <= MAX_TABLE { codebook.size as usize } else { 0 };
            Counts { size: codebook.size, table: vec![0; n_table], rare: HashMap::new() }
        });
        Self { counts: counts.collect() }
    }

    /// Counts codes; codebooks beyond those of the layout are passed over.
    pub fn push(&mut self, codes: &Codes) {
        for (counts, row) in self.counts.iter_mut().zip(codes.rows()) {
            for &code in row {
                match counts.table.get_mut(code as usize) {
                    Some(count) => *count += 1,
                    None => *counts.rare.entry(code).or_default() += 1,
                }
            }
        }
    }

    /// The statistics of every codebook, coarse to fine.
    pub fn codebooks(&self) -> Vec<CodebookStats> {
        self.counts.iter().map(Counts::stats).collect()
    }
}

impl Counts {
    fn stats(&self) -> CodebookStats {
        // A fixed order of summation: the figures do not depend on the hash map.
        let mut counts: Vec<u64> =
            self.table.iter().chain(self.rare.values()).copied().filter(|&count| count > 0).collect();
        counts.sort_unstable();
        let n_codes: u64 = counts.iter().sum();
        let total = n_codes as f64;
        let entropy: f64 = counts.iter().map(|&count| count as f64 / total).map(|p| -p * p.log2()).sum();
        // One code alone has -0.0, which reads badly.
        CodebookStats { size: self.size, n_codes, n_used: counts.len() as u64, entropy_bits: entropy.abs() }
    }
}

/// Bits per second that a file of `n_bytes` really takes; `None` for no audio.
pub fn file_bitrate(n_bytes: u64, n_samples: u64, sample_rate: u32) -> Option<f64> {
    (n_samples > 0).then(|| n_bytes as f64 * 8.0 * f64::from(sample_rate) / n_samples as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_of_known_histograms() {
        let layout = CodeLayout::new(
            [8, 1 << 20, 4].map(|size| codec_core::CodebookSpec { size, stride: 1 }).to_vec(),
        )
        .unwrap();
        // Four equal codes: 2 bits. Half, quarter, quarter: 1.5 bits. One code: 0 bits.
        let rows = vec![vec![0, 1, 2, 7], vec![9, 9, 500_000, 70_000], vec![3; 4]];
        let mut stats = CodeStats::new(&layout);
        let codes = Codes::new(layout, rows).unwrap();
        stats.push(&codes);
        stats.push(&codes);
        let stats = stats.codebooks();
        let entropies: Vec<f64> = stats.iter().map(|s| s.entropy_bits).collect();
        assert_eq!(entropies, [2.0, 1.5, 0.0]);
        assert!(entropies.iter().all(|bits| bits.is_sign_positive()));
        assert_eq!(stats.iter().map(|s| s.n_used).collect::<Vec<_>>(), [4, 3, 1]);
        assert_eq!(stats.iter().map(|s| s.n_codes).collect::<Vec<_>>(), [8, 8, 8]);
        assert_eq!(stats[0].usage(), 0.5);
        assert_eq!(stats[1].perplexity(), 1.5f64.exp2());
    }

    #[test]
    fn nothing_counted_has_no_entropy() {
        let stats = CodeStats::new(&CodeLayout::uniform(1, 16).unwrap()).codebooks();
        assert_eq!((stats[0].n_codes, stats[0].entropy_bits), (0, 0.0));
        assert_eq!(file_bitrate(10, 0, 16_000), None);
        assert_eq!(file_bitrate(1000, 16_000, 16_000), Some(8000.0));
    }
}
