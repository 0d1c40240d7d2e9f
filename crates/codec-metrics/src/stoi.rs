//! STOI and ESTOI: how much of noisy speech can be understood.
//!
//! Both correlate the short-time envelopes of third-octave bands up to 4.3 kHz over 384 ms.
//! They cannot judge music or other sounds, what lies above 4.3 kHz, how natural a voice sounds, or anything in
//! the pauses of the reference; and they need alignment to a few milliseconds.

mod resample;

use crate::error::{Error, Result};
use crate::pair::Pair;
use crate::stft::Fourier;
use resample::to_analysis_rate;

/// Rate of the analysis in Hz.
const RATE: u32 = 10_000;
const WINDOW: usize = 256;
const HOP: usize = WINDOW / 2;
const FFT: usize = 512;
const N_BANDS: usize = 15;
/// Centre of the lowest band in Hz.
const LOWEST: f64 = 150.0;
/// Frames that are correlated with one another: 384 ms.
const SEGMENT: usize = 30;
/// Frames that lie further below the loudest one are pauses, dB.
const DYNAMIC_RANGE: f64 = 40.0;
/// A band's degraded envelope may exceed the clean one by this factor: -15 dB of signal to distortion.
const CLIP: f64 = 6.623_413_251_903_491;

type Band = [f64; N_BANDS];

/// Short-time objective intelligibility, about 0 to 1, higher is better.
///
/// Takes rates of 8000 Hz and more that are multiples of 25 Hz, and brings them to 10 kHz itself, with the filter
/// of the reference implementation.
///
/// # Source
/// Taal et al. 2011, "An Algorithm for Intelligibility Prediction of Time-Frequency Weighted Noisy Speech";
/// `pystoi.stoi(reference, degraded, rate)` of PyPI pystoi 0.4.1, which gives 1e-5 where this is
/// [`Error::TooShort`].
///
/// # Errors
/// [`Error::Rate`], [`Error::Silent`] when either signal is constant, and [`Error::TooShort`] when the reference
/// holds less than 30 frames (0.4 s) of sound.
pub fn stoi(pair: &Pair<'_>) -> Result<f64> {
    judge(pair, "STOI", |reference, degraded| {
        let per_band = (0..N_BANDS).map(|band| {
            let row = |frames: &[Band]| -> [f64; SEGMENT] { std::array::from_fn(|i| frames[i][band]) };
            let (x, y) = (row(reference), row(degraded));
            let gain = norm(&x) / (norm(&y) + f64::EPSILON);
            let clipped: [f64; SEGMENT] = std::array::from_fn(|i| (y[i] * gain).min(x[i] * CLIP));
            dot(&unit(x), &unit(clipped))
        });
        per_band.sum::<f64>() / N_BANDS as f64
    })
}

/// Extended STOI, about 0 to 1, higher is better: fairer to noise that comes and goes.
///
/// Rates as for [`stoi`].
///
/// # Source
/// Jensen and Taal 2016, "An Algorithm for Predicting the Intelligibility of Speech Masked by Modulated Noise
/// Maskers"; `pystoi.stoi(.., extended=True)`. The latter adds random numbers of 1e-16, which decide the result
/// where a band is digitally silent for 384 ms; here such a band counts nothing.
///
/// # Errors
/// As [`stoi`].
pub fn estoi(pair: &Pair<'_>) -> Result<f64> {
    judge(pair, "ESTOI", |reference, degraded| {
        let (x, y) = (normalize(reference), normalize(degraded));
        x.iter().zip(&y).map(|(x, y)| dot(x, y)).sum::<f64>() / SEGMENT as f64
    })
}

/// The mean of `similarity` over all segments of both envelopes.
fn judge(pair: &Pair<'_>, metric: &'static str, similarity: impl Fn(&[Band], &[Band]) -> f64) -> Result<f64> {
    pair.check_audible()?;
    let at_rate = |samples| to_analysis_rate(samples, pair.sample_rate(), metric);
    let (reference, degraded) = (at_rate(pair.reference())?, at_rate(pair.degraded())?);
    let (reference, degraded) = without_pauses(&reference, &degraded);
    let (reference, degraded) = (envelopes(&reference), envelopes(&degraded));
    if reference.len() < SEGMENT {
        let unit = "frames of 12.8 ms with sound";
        return Err(Error::TooShort { metric, unit, needed: SEGMENT, actual: reference.len() });
    }
    let segments = reference.windows(SEGMENT).zip(degraded.windows(SEGMENT));
    let n_segments = segments.len();
    Ok(segments.map(|(x, y)| similarity(x, y)).sum::<f64>() / n_segments as f64)
}

/// Cuts the frames that are silent in the reference out of both signals.
fn without_pauses(reference: &[f64], degraded: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let window = window();
    let starts = || frame_starts(reference.len());
    let level = |start: usize| {
        let frame = reference[start..start + WINDOW].iter().zip(&window);
        20.0 * (frame.map(|(x, w)| (x * w) * (x * w)).sum::<f64>().sqrt() + f64::EPSILON).log10()
    };
    let levels: Vec<f64> = starts().map(level).collect();
    let loudest = levels.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let kept: Vec<usize> = starts()
        .zip(&levels)
        .filter(|(_, level)| **level > loudest - DYNAMIC_RANGE)
        .map(|(s, _)| s)
        .collect();
    let join = |samples: &[f64]| {
        let mut out = vec![0.0; if kept.is_empty() { 0 } else { (kept.len() - 1) * HOP + WINDOW }];
        for (i, start) in kept.iter().enumerate() {
            let frame = samples[*start..start + WINDOW].iter().zip(&window);
            for (out, (x, w)) in out[i * HOP..].iter_mut().zip(frame) {
                *out += x * w;
            }
        }
        out
    };
    (join(reference), join(degraded))
}

/// Third-octave envelopes, one per frame.
fn envelopes(samples: &[f64]) -> Vec<Band> {
    let edges = band_edges();
    let window = window();
    let mut fourier = Fourier::new(FFT);
    let frames = frame_starts(samples.len()).map(|start| {
        let frame = samples[start..start + WINDOW].iter().zip(&window).map(|(x, w)| x * w);
        let spectrum = fourier.spectrum(frame);
        edges.map(|(low, high)| spectrum[low..high].iter().map(|bin| bin.norm_sqr()).sum::<f64>().sqrt())
    });
    frames.collect()
}

/// The reference implementation leaves out a last frame that would end with the signal.
fn frame_starts(n_samples: usize) -> impl Iterator<Item = usize> {
    (0..n_samples.saturating_sub(WINDOW)).step_by(HOP)
}

/// A Hann window without zeros at its ends.
fn window() -> Vec<f64> {
    let phase = |i: usize| std::f64::consts::TAU * (i + 1) as f64 / (WINDOW + 1) as f64;
    (0..WINDOW).map(|i| 0.5 - 0.5 * phase(i).cos()).collect()
}

/// First bin and the one past the last of each band; a band's edges are those of its nearest bins.
fn band_edges() -> [(usize, usize); N_BANDS] {
    let bin = |frequency: f64| (frequency * FFT as f64 / f64::from(RATE)).round() as usize;
    std::array::from_fn(|k| {
        let edge = |sixths: f64| bin(LOWEST * (sixths / 6.0).exp2());
        (edge(2.0 * k as f64 - 1.0), edge(2.0 * k as f64 + 1.0))
    })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// Without its mean and of length one; zero for a constant.
fn unit<const N: usize>(mut a: [f64; N]) -> [f64; N] {
    let mean = a.iter().sum::<f64>() / N as f64;
    a.iter_mut().for_each(|a| *a -= mean);
    let norm = norm(&a) + f64::EPSILON;
    a.map(|a| a / norm)
}

/// Each band over time made unit, then each time over the bands: `[SEGMENT][N_BANDS]`.
fn normalize(frames: &[Band]) -> Vec<Band> {
    let rows: [[f64; SEGMENT]; N_BANDS] = std::array::from_fn(|band| {
        // Rounding leaves something of a constant row, which must not be blown up.
        let row: [f64; SEGMENT] = std::array::from_fn(|i| frames[i][band]);
        unit(row)
    });
    (0..SEGMENT).map(|i| unit(std::array::from_fn(|band| rows[band][i]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Signal;
    use crate::testing::{noise, speech};

    #[test]
    fn the_clip_is_15_db() {
        assert_eq!(CLIP, 1.0 + 10_f64.powf(15.0 / 20.0));
    }

    #[test]
    fn bands_are_third_octaves() {
        let edges = band_edges();
        assert_eq!((edges[0], edges[14]), ((7, 9), (174, 219)));
        assert!(edges.windows(2).all(|pair| pair[0].1 == pair[1].0), "{edges:?}");
    }

    #[test]
    fn noise_lowers_both_and_level_neither() {
        for rate in [8_000, 10_000, 16_000, 44_100] {
            let clean = speech(rate, 2.0);
            let of = |amplitude: f32, gain: f32| {
                let noise = noise(clean.len(), 2);
                let degraded: Vec<f32> =
                    clean.iter().zip(noise).map(|(x, n)| gain * (x + amplitude * n)).collect();
                let pair = Pair::new(&clean, &degraded, rate).unwrap();
                (stoi(&pair).unwrap(), estoi(&pair).unwrap())
            };
            let (same, little, much) = (of(0.0, 0.3), of(0.01, 1.0), of(0.3, 1.0));
            assert!((same.0 - 1.0).abs() < 1e-9 && (same.1 - 1.0).abs() < 1e-6, "{rate} Hz: {same:?}");
            assert!(little.0 > much.0 + 0.1 && little.1 > much.1 + 0.1, "{rate} Hz: {little:?} {much:?}");
            let (loud, quiet) = (of(0.01, 1.0), of(0.01, 0.001));
            assert!((loud.0 - quiet.0).abs() < 1e-6 && (loud.1 - quiet.1).abs() < 1e-6, "{loud:?} {quiet:?}");
        }
    }

    #[test]
    fn what_cannot_be_judged_is_named() {
        let clean = speech(16_000, 1.0);
        let silent = vec![0.0; clean.len()];
        let of =
            |reference: &[f32], degraded: &[f32], rate| stoi(&Pair::new(reference, degraded, rate).unwrap());
        assert_eq!(of(&clean, &silent, 16_000), Err(Error::Silent { signal: Signal::Degraded }));
        assert_eq!(of(&silent, &clean, 16_000), Err(Error::Silent { signal: Signal::Reference }));
        for rate in [7_975, 16_001, u32::MAX] {
            assert!(matches!(of(&clean, &clean, rate), Err(Error::Rate { .. })), "{rate}");
        }
        let click: Vec<f32> = (0..16_000).map(|i| if i == 8000 { 1.0 } else { 0.0 }).collect();
        assert!(matches!(of(&click, &clean, 16_000), Err(Error::TooShort { needed: 30, .. })));
        for n_samples in [1, 255, 256, 257, 300] {
            let (a, b) = (noise(n_samples + 1, 1), noise(n_samples + 1, 2));
            assert!(matches!(of(&a, &b, 10_000), Err(Error::TooShort { .. })), "{n_samples}");
        }
    }
}
