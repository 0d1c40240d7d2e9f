//! Signals for tests.

use std::f64::consts::TAU;

/// Uniform noise in [-1, 1].
pub(crate) fn noise(n_samples: usize, seed: u64) -> Vec<f32> {
    let mut random = crate::stats::Random::new(seed);
    (0..n_samples).map(|_| (2.0 * random.uniform() - 1.0) as f32).collect()
}

/// Syllables of a voice: a gliding pulse of harmonics under two moving formants, with pauses.
pub(crate) fn speech(sample_rate: u32, seconds: f64) -> Vec<f32> {
    let rate = f64::from(sample_rate);
    let n_samples = (rate * seconds) as usize;
    let mut phase = 0.0;
    (0..n_samples)
        .map(|i| {
            let t = i as f64 / rate;
            let pitch = 120.0 + 30.0 * (TAU * 0.7 * t).sin() + 10.0 * (TAU * 2.3 * t).sin();
            phase += TAU * pitch / rate;
            let formants = [500.0 + 250.0 * (TAU * 1.1 * t).sin(), 1700.0 + 500.0 * (TAU * 0.9 * t).cos()];
            let harmonics = (1..=24).map(|h| {
                let frequency = f64::from(h) * pitch;
                let gain: f64 = formants.iter().map(|f| (-((frequency - f) / 200.0).powi(2)).exp()).sum();
                (0.02 / f64::from(h) + gain) * (f64::from(h) * phase).sin()
            });
            let syllable = (TAU * 3.0 * t).sin().max(0.0) * if t % 1.2 < 0.9 { 1.0 } else { 0.0 };
            (0.08 * syllable * harmonics.sum::<f64>()) as f32
        })
        .collect()
}
