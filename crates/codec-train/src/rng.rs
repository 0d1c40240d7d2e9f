//! Random numbers that need no state between steps.
//!
//! Every draw is a function of the run's seed, a purpose and an index (the step, the crop), so a run that
//! is killed and resumed draws what it would have drawn, and threads cannot change anything.

/// A sequence of random numbers (SplitMix64).
///
/// # Source
/// Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of `purpose` at `index` in the run with `seed`.
    pub fn of(seed: u64, purpose: &str, index: u64) -> Self {
        // FNV-1a tells the purposes apart; each part is mixed before the next is added.
        let hash = purpose.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        Self(mix(mix(mix(seed) ^ hash) ^ index))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// In [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Below `n`; 0 for an `n` of 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.uniform() * n as f64) as usize).min(n.saturating_sub(1))
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_and_depend_on_every_part() {
        let draw = |seed, purpose, index| Rng::of(seed, purpose, index).bits();
        let all = [draw(1, "a", 0), draw(2, "a", 0), draw(1, "b", 0), draw(1, "a", 1)];
        assert!((1..4).all(|i| all[i] != all[0]));
        assert_eq!(draw(1, "a", 0), all[0]);
        let mut counts = [0; 8];
        (0..8000).for_each(|index| counts[Rng::of(7, "x", index).below(8)] += 1);
        assert!(counts.iter().all(|&n| (900..1100).contains(&n)), "{counts:?}");
    }
}
