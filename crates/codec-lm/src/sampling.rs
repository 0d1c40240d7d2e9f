//! Drawing a token from logits: the same token on every machine, for any number of threads.
//!
//! Every draw is a function of the logits, the seed, the step and the stream. Sums run in a fixed order and
//! exponentials are those of codec-kernels.

use crate::error::{Error, Result};
use codec_kernels::softmax;
use codec_train::rng::Rng;
use serde::{Deserialize, Serialize};

/// How a codebook's tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only the likeliest so many tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability; 1 for all.
    pub top_p: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.95, top_k: 0, top_p: 1.0 }
    }
}

impl Sampling {
    /// The likeliest token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0 };

    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            let why = format!("{} is not a number from 0 on", self.temperature);
            return Err(Error::config("temperature", why));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let why = format!("{} is not above 0 and at most 1", self.top_p);
            return Err(Error::config("top_p", why));
        }
        Ok(())
    }
}

/// Draws tokens, each codebook in its own way.
#[derive(Clone, Debug)]
pub struct Sampler {
    /// Coarse to fine; the last serves the codebooks behind it as well.
    settings: Vec<Sampling>,
    seed: u64,
}

impl Sampler {
    /// Settings for the codebooks, coarse to fine; the last serves those behind it as well.
    ///
    /// # Errors
    /// [`Error::Config`] for no settings, or as [`Sampling::check`].
    pub fn new(settings: Vec<Sampling>, seed: u64) -> Result<Self> {
        if settings.is_empty() {
            return Err(Error::config("sampling", "needs settings"));
        }
        settings.iter().try_for_each(Sampling::check)?;
        Ok(Self { settings, seed })
    }

    /// How many codebooks have settings of their own.
    pub fn n_settings(&self) -> usize {
        self.settings.len()
    }

    /// The default settings for all codebooks.
    pub fn usual(seed: u64) -> Self {
        Self { settings: vec![Sampling::default()], seed }
    }

    /// Draws from the logits of one codebook at some place of the sequence.
    ///
    /// # Shapes
    /// `logits`: one per token, which are then probabilities; the result indexes it.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a logit is not a finite number.
    pub fn draw(&self, logits: &mut [f32], codebook_idx: usize, place: u64) -> Result<usize> {
        if let Some(odd) = logits.iter().find(|x| !x.is_finite()) {
            let (what, value) = (format!("a logit of codebook {}", codebook_idx + 1), f64::from(*odd));
            return Err(Error::NotFinite { step: place, what, value });
        }
        let last = self.settings.len() - 1;
        let settings = self.settings[codebook_idx.min(last)];
        let best = likeliest(logits);
        if settings.temperature == 0.0 || logits.len() < 2 {
            return Ok(best);
        }
        // Below this all but the best are at zero, and a division would overflow.
        let temperature = settings.temperature.max(1e-4) as f32;
        // Sorting takes longer than all the rest.
        let is_limited = settings.top_k > 0 || settings.top_p < 1.0;
        let order = if is_limited { by_likelihood(logits) } else { Vec::new() };
        let top = logits[best];
        logits.iter_mut().for_each(|x| *x = (*x - top) / temperature);
        if settings.top_k > 0 {
            order.iter().skip(settings.top_k).for_each(|&idx| logits[idx] = f32::NEG_INFINITY);
        }
        let n = logits.len();
        softmax(logits, n)?;
        if settings.top_p < 1.0 {
            let mut sum = 0.0;
            for &idx in &order {
                if sum >= settings.top_p {
                    logits[idx] = 0.0;
                }
                sum += f64::from(logits[idx]);
            }
        }
        let total: f64 = logits.iter().map(|&p| f64::from(p)).sum();
        let mut rng = Rng::of(self.seed, "token", place.wrapping_mul(1 << 10) + codebook_idx as u64);
        let mut left = rng.uniform() * total;
        for (idx, &p) in logits.iter().enumerate() {
            left -= f64::from(p);
            if left < 0.0 {
                return Ok(idx);
            }
        }
        Ok(best)
    }
}

/// The likeliest token, of equal ones the lowest.
fn likeliest(logits: &[f32]) -> usize {
    (1..logits.len())
        .fold(0, |best, idx| if logits[idx].total_cmp(&logits[best]).is_gt() { idx } else { best })
}

/// The tokens, likeliest first; of equal ones the lower first.
fn by_likelihood(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, 2.0, -1.0];

    fn counts(settings: Sampling, seed: u64) -> [usize; 5] {
        let sampler = Sampler::new(vec![settings], seed).unwrap();
        let mut counts = [0; 5];
        (0..20_000).for_each(|place| counts[sampler.draw(&mut LOGITS.clone(), 0, place).unwrap()] += 1);
        counts
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let settings = Sampling { temperature: 0.8, top_k: 0, top_p: 1.0 };
        let weights = LOGITS.map(|x| (f64::from(x) / 0.8).exp());
        let total: f64 = weights.iter().sum();
        for (n, weight) in counts(settings, 1).iter().zip(weights) {
            // Five standard deviations of a binomial count are below 350.
            assert!((*n as f64 - 20_000.0 * weight / total).abs() < 350.0, "{n}");
        }
    }

    #[test]
    fn limits_keep_the_likeliest() {
        let all = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
        // Of equal logits the lower index stays.
        assert_eq!(
            counts(Sampling { top_k: 1, ..all }, 2).map(|n| n > 0),
            [false, true, false, false, false]
        );
        let three = counts(Sampling { top_k: 3, ..all }, 2).map(|n| n > 0);
        assert_eq!(three, [false, true, true, true, false]);
        // The two best have 0.38 each.
        assert_eq!(
            counts(Sampling { top_p: 0.7, ..all }, 2).map(|n| n > 0),
            [false, true, false, true, false]
        );
        assert_eq!(counts(Sampling::GREEDY, 3), [0, 20_000, 0, 0, 0]);
    }

    #[test]
    fn draws_depend_on_seed_place_and_codebook_alone() {
        let sampler = |seed| Sampler::new(vec![Sampling::default()], seed).unwrap();
        let draws = |seed, codebook| -> Vec<usize> {
            let place = |place| sampler(seed).draw(&mut LOGITS.clone(), codebook, place).unwrap();
            (0..100).map(place).collect()
        };
        assert_eq!(draws(1, 0), draws(1, 0));
        assert!(draws(1, 0) != draws(2, 0) && draws(1, 0) != draws(1, 1));
    }

    #[test]
    fn codebooks_have_their_own_settings_and_odd_ones_are_refused() {
        let hot = Sampling { temperature: 3.0, top_k: 0, top_p: 1.0 };
        let sampler = Sampler::new(vec![hot, Sampling::GREEDY], 1).unwrap();
        let draw = |codebook, place| sampler.draw(&mut LOGITS.clone(), codebook, place).unwrap();
        assert!((0..100).all(|place| draw(1, place) == 1 && draw(7, place) == 1));
        assert!((0..100).any(|place| draw(0, place) != 1));
        assert!(Sampler::new(Vec::new(), 1).is_err());
        let odd = |settings| assert!(Sampler::new(vec![settings], 1).is_err());
        odd(Sampling { temperature: -1.0, ..hot });
        odd(Sampling { temperature: f64::NAN, ..hot });
        odd(Sampling { top_p: 0.0, ..hot });
        let mut broken = LOGITS;
        broken[2] = f32::NAN;
        assert!(matches!(sampler.draw(&mut broken, 0, 9), Err(Error::NotFinite { step: 9, .. })));
    }
}
