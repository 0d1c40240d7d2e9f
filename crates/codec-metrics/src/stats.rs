//! From scores to statements: means with intervals, and differences on the same clips.

use crate::error::{Error, Result};

/// Resamplings of a bootstrap: the ends of the interval then vary by some percent of its width.
const N_RESAMPLES: usize = 4000;

/// The mean of some scores and how far it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Number of scores.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, with n - 1; `None` for a single score.
    pub deviation: Option<f64>,
    /// The 95 % confidence interval of the mean; `None` for a single score.
    pub interval: Option<Interval>,
}

/// A range of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How two systems differ on the same clips.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedDifference {
    /// The differences, first minus second.
    pub difference: Summary,
    /// Clips on which the first has the higher score.
    pub n_higher: usize,
    /// Clips on which it has the lower one.
    pub n_lower: usize,
}

impl PairedDifference {
    /// Whether the interval of the mean difference leaves out zero.
    pub fn is_significant(&self) -> bool {
        self.difference.interval.is_some_and(|interval| interval.low > 0.0 || interval.high < 0.0)
    }
}

/// The mean with its 95 % interval by the percentile bootstrap; `seed` makes it repeatable.
///
/// The interval covers the choice of clips, taken as independent. Below some ten clips it is too narrow.
///
/// # Source
/// Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".
///
/// # Errors
/// [`Error::TooShort`] without scores, [`Error::Argument`] when one is not finite.
pub fn summarize(scores: &[f64], seed: u64) -> Result<Summary> {
    let n = scores.len();
    if n == 0 {
        return Err(Error::TooShort { metric: "a mean", unit: "scores", needed: 1, actual: 0 });
    }
    if let Some(&actual) = scores.iter().find(|score| !score.is_finite()) {
        return Err(Error::Argument { what: "a score", needed: "finite", actual });
    }
    let mean = scores.iter().sum::<f64>() / n as f64;
    if n == 1 {
        return Ok(Summary { n, mean, deviation: None, interval: None });
    }
    let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
    let mut random = Random::new(seed);
    let mut means: Vec<f64> =
        (0..N_RESAMPLES).map(|_| (0..n).map(|_| scores[random.below(n)]).sum::<f64>() / n as f64).collect();
    means.sort_by(f64::total_cmp);
    let interval = Interval { low: quantile(&means, 0.025), high: quantile(&means, 0.975) };
    let deviation = Some((squares / (n - 1) as f64).sqrt());
    Ok(Summary { n, mean, deviation, interval: Some(interval) })
}

/// The difference of two systems over pairs of scores, one pair per clip.
///
/// What all clips have in common cancels, so this finds differences that the two intervals would hide.
///
/// # Errors
/// As [`summarize`].
pub fn paired_difference(scores: &[(f64, f64)], seed: u64) -> Result<PairedDifference> {
    let differences: Vec<f64> = scores.iter().map(|(first, second)| first - second).collect();
    Ok(PairedDifference {
        difference: summarize(&differences, seed)?,
        n_higher: differences.iter().filter(|d| **d > 0.0).count(),
        n_lower: differences.iter().filter(|d| **d < 0.0).count(),
    })
}

/// The quantile of sorted values, linear between neighbours.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let at = fraction * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// SplitMix64 (Steele, Lea and Flood 2014): small, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, not zero; its bias is below `n / 2^64`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// A number in [0, 1).
    #[cfg(test)]
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs for the seed 0, as published with the generator.
    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = Random::new(0);
        assert_eq!(random.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.next(), 0x6e78_9e6a_a1b9_65f4);
    }

    /// The half width of a normal interval is 1.96 standard errors, and the true mean lies inside 19 of 20 times.
    #[test]
    fn the_interval_has_its_width_and_covers_the_mean() {
        let mut random = Random::new(7);
        let n_trials = 200;
        let mut n_covered = 0;
        for trial in 0..n_trials {
            let scores: Vec<f64> =
                (0..60).map(|_| (0..6).map(|_| random.uniform()).sum::<f64>() - 3.0).collect();
            let summary = summarize(&scores, trial).unwrap();
            let interval = summary.interval.unwrap();
            let standard_error = summary.deviation.unwrap() / 60_f64.sqrt();
            let half_width = (interval.high - interval.low) / 2.0;
            assert!((half_width / standard_error / 1.96 - 1.0).abs() < 0.12, "{half_width} {standard_error}");
            n_covered += usize::from(interval.low <= 0.0 && 0.0 <= interval.high);
        }
        assert!((180..=198).contains(&n_covered), "{n_covered}");
    }

    #[test]
    fn a_small_difference_on_varied_clips_is_found() {
        let mut random = Random::new(3);
        let pairs: Vec<(f64, f64)> = (0..40)
            .map(|_| (10.0 * random.uniform(), 0.1 * random.uniform()))
            .map(|(clip, noise)| (clip + 0.2 + noise, clip))
            .collect();
        let difference = paired_difference(&pairs, 1).unwrap();
        assert!((difference.difference.mean - 0.25).abs() < 0.02);
        assert_eq!((difference.n_higher, difference.n_lower), (40, 0));
        assert!(difference.is_significant());
        let same: Vec<(f64, f64)> = pairs.iter().map(|(a, _)| (*a, *a)).collect();
        let none = paired_difference(&same, 1).unwrap();
        assert!(!none.is_significant() && none.n_higher + none.n_lower == 0);
    }

    #[test]
    fn the_seed_decides_and_odd_inputs_are_named() {
        let scores: Vec<f64> = (0..20).map(|i| f64::from(i).sqrt()).collect();
        assert_eq!(summarize(&scores, 5), summarize(&scores, 5));
        assert_ne!(summarize(&scores, 5).unwrap().interval, summarize(&scores, 6).unwrap().interval);
        assert_eq!(summarize(&[3.0], 0).unwrap().interval, None);
        assert!(matches!(summarize(&[], 0), Err(Error::TooShort { .. })));
        assert!(matches!(summarize(&[1.0, f64::NAN], 0), Err(Error::Argument { .. })));
    }
}
