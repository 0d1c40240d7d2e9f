//! Random and hostile pairs: a score in its range or a typed error, never a panic.
//!
//! `CODEC_HOSTILE_PAIRS` sets the number of pairs; the default is small.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use codec_core::AudioBuffer;
use codec_metrics::align::{Resolution, estimate, level_difference, with_gain};
use codec_metrics::{Error, Metric, Pair};

const DEFAULT_PAIRS: u64 = 200;

/// Xorshift64*: the test has its own, so that it shares nothing with what it tests.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn signal(random: &mut Random, n_samples: usize) -> Vec<f32> {
    let kind = random.below(14);
    let (period, start) = (1 + random.below(400) as usize, random.below(n_samples as u64 + 1) as usize);
    let loud = [1e-45, 1e-30, 1e-5, 0.1, 1.0, 30.0, 1e10, f32::MAX][random.below(8) as usize];
    let gain = if random.below(3) == 0 { loud } else { 0.5 };
    let mut phase = 0.0_f32;
    let mut samples: Vec<f32> = (0..n_samples)
        .map(|i| match kind {
            0 => 0.0,
            1 => 1.0,
            2 => random.uniform(),
            3 => {
                if i == start {
                    1.0
                } else {
                    0.0
                }
            }
            4 => {
                if i % period == 0 {
                    1.0
                } else {
                    0.0
                }
            }
            5 => {
                if i / period % 2 == 0 {
                    1.0
                } else {
                    -1.0
                }
            }
            6 => (i as f32 / period as f32).sin(),
            7 => {
                if i >= start {
                    random.uniform()
                } else {
                    0.0
                }
            }
            8 => {
                if i < start {
                    random.uniform()
                } else {
                    0.0
                }
            }
            // Bursts, which a model of speech takes for words.
            9 => {
                if i / (period * 40) % 2 == 0 {
                    random.uniform()
                } else {
                    0.001 * random.uniform()
                }
            }
            10 => i as f32 / n_samples as f32,
            11 => {
                if random.below(2) == 0 {
                    1.0
                } else {
                    -1.0
                }
            }
            12 => {
                phase += 0.02 + 0.4 * (i as f32 / n_samples as f32);
                phase.sin() * (i as f32 / 4000.0).sin().max(0.0)
            }
            _ => (random.below(3) as f32 - 1.0) / 32768.0,
        })
        .map(|x| x * gain)
        .collect();
    if random.below(20) == 0 && !samples.is_empty() {
        let at = random.below(n_samples as u64) as usize;
        samples[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN][random.below(4) as usize];
    }
    samples
}

/// A version of a signal that is late, cut, louder, rougher or has holes.
fn degrade(random: &mut Random, samples: &[f32]) -> Vec<f32> {
    let n_samples = samples.len();
    let shift = random.below(n_samples as u64 / 2 + 1) as usize;
    let noise = [0.0, 1e-4, 0.1, 10.0][random.below(4) as usize];
    let hole = 1 + random.below(9000) as usize;
    let clip = [0.001, 0.3, 2.0][random.below(3) as usize];
    let is_late = random.below(2) == 0;
    let at = |i: usize| if is_late { i.checked_sub(shift) } else { Some(i + shift) };
    let mut version = Vec::with_capacity(n_samples);
    for i in 0..n_samples {
        let x = at(i).and_then(|at| samples.get(at)).copied().unwrap_or(0.0);
        let x = if i / hole % 3 == 2 { 0.0 } else { x };
        version.push((x + noise * random.uniform()).clamp(-clip, clip));
    }
    version
}

#[test]
fn no_pair_stops_the_program() {
    let n_pairs = std::env::var("CODEC_HOSTILE_PAIRS").ok().and_then(|n| n.parse().ok());
    let n_pairs = n_pairs.unwrap_or(DEFAULT_PAIRS);
    let (mut n_scores, mut n_refused, mut n_failed) = (0, 0, 0);
    for seed in 1..=n_pairs {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let rate = [8_000, 16_000, 16_000, 10_000, 44_100, 1, 7_999, u32::MAX][random.below(8) as usize];
        let longest = [3, 300, 3_000, 9_000, 40_000][random.below(5) as usize];
        let n_samples = random.below(longest) as usize;
        let reference = signal(&mut random, n_samples);
        let degraded = match random.below(3) {
            0 => degrade(&mut random, &reference),
            1 => signal(&mut random, n_samples),
            _ => {
                let n_other = if random.below(4) == 0 { random.below(longest) as usize } else { n_samples };
                signal(&mut random, n_other)
            }
        };
        for metric in Metric::ALL {
            // The models of telephone speech would refuse most pairs for their rate.
            let rate = metric.describe().sample_rate.filter(|_| seed % 4 != 0).unwrap_or(rate);
            let score = Pair::new(&reference, &degraded, rate).and_then(|pair| metric.judge_pair(&pair));
            match score {
                Ok(score) => {
                    n_scores += 1;
                    assert!(is_possible(metric, score), "seed {seed}: {metric:?} is {score}");
                }
                Err(Error::Failed { .. }) => n_failed += 1,
                Err(_) => n_refused += 1,
            }
        }
        align_any(&mut random, rate, reference, degraded);
    }
    println!("{n_pairs} pairs: {n_scores} scores, {n_refused} refused, {n_failed} given up");
    // The signals must reach the metrics.
    assert!(n_scores > n_pairs);
}

fn is_possible(metric: Metric, score: f64) -> bool {
    match metric {
        Metric::PesqWideBand | Metric::PesqNarrowBand => (0.999..4.65).contains(&score),
        Metric::Stoi | Metric::Estoi => (-1.0..=1.000_001).contains(&score),
        Metric::SiSdr | Metric::Snr => (-100.0..=100.0).contains(&score),
        Metric::LoudnessChange => score.is_finite(),
        _ => score.is_finite() && score >= 0.0,
    }
}

fn align_any(random: &mut Random, rate: u32, reference: Vec<f32>, degraded: Vec<f32>) {
    let (Ok(reference), Ok(degraded)) =
        (AudioBuffer::mono(rate, reference), AudioBuffer::mono(rate, degraded))
    else {
        return;
    };
    let resolution = [Resolution::Sample, Resolution::Fraction][random.below(2) as usize];
    let max_delay = [0, 100, usize::MAX][random.below(3) as usize];
    if let Ok(found) = estimate(&reference, &degraded, max_delay, resolution) {
        assert!(found.delay.is_finite() && (0.0..=1.0).contains(&found.correlation), "{found:?}");
        // One or two samples may share none at a delay of a fraction.
        let shortest = reference.n_samples().min(degraded.n_samples());
        let (left, right) = match found.apply(&reference, &degraded) {
            Err(Error::TooShort { .. }) if shortest < 3 => return,
            applied => applied.unwrap(),
        };
        assert_eq!(left.n_samples(), right.n_samples());
        if let Ok(gain) = level_difference(&left, &right) {
            assert!(with_gain(&right, gain).unwrap().n_samples() == right.n_samples());
        }
    }
}
