//! PESQ: what a listener would think of telephone speech, ITU-T P.862, P.862.1 and P.862.2.
//!
//! The model is the crate `pesq`, written from a description of its behaviour and free of the ITU's C code.
//! It agrees with the package `pesq` 0.0.4 of PyPI, which most papers on speech codecs use, so it is
//! **without Corrigendum 2 of P.862.2** (03/2018), which raises wide-band scores by half a point on average.
//! Around it stand checks that it lacks: it calls silence perfect and stops the program on a few odd pairs.
//! Its own entry points take sixteen bits, and rounding to them fills empty bands: up to 0.05 for audio without high
//! frequencies. So its stages are called here one by one, with samples that are not rounded, as in the package.
//!
//! PESQ was made for speech through telephone networks. It cannot judge music, other sounds, bandwidth above
//! 8 kHz, level (it equalizes it), constant delay (it aligns by itself), or voices that a codec changes but
//! keeps clean. Scores at different rates or in different modes must not be compared.

use crate::error::{Error, Result};
use crate::pair::Pair;
use ::pesq::input::{AlignedPair, process_pair, process_pair_wideband};
use ::pesq::types::{RATE_8K, RATE_16K, Rate, SignalBuffer};
use ::pesq::{PesqError, disturbance, psychoacoustic, score};
use std::panic::{AssertUnwindSafe, catch_unwind};

const NARROW_BAND: &str = "PESQ-NB";
const WIDE_BAND: &str = "PESQ-WB";

/// Wide-band PESQ of 16 kHz speech: MOS-LQO, 1.04 to 4.64, higher is better.
///
/// # Source
/// ITU-T P.862.2 (2007) without Corrigendum 2; `pesq.pesq(16000, reference, degraded, "wb")` of PyPI
/// pesq 0.0.4.
///
/// # Errors
/// [`Error::Rate`] when the pair is not at 16 kHz, [`Error::Silent`] when either signal is constant,
/// [`Error::TooShort`] below a quarter of a second, [`Error::NoSpeech`] when the reference holds no stretch
/// of speech, [`Error::Failed`] when the model fails.
pub fn wide_band(pair: &Pair<'_>) -> Result<f64> {
    judge(pair, WIDE_BAND, RATE_16K, process_pair_wideband, score::mos_lqo_wb)
}

/// Narrow-band PESQ of 8 kHz speech: MOS-LQO, 1.02 to 4.55, higher is better.
///
/// # Source
/// ITU-T P.862 (2001) with the mapping of P.862.1; `pesq.pesq(8000, reference, degraded, "nb")` of PyPI
/// pesq 0.0.4. The same package at 16 kHz gives other narrow-band scores (0.07 on average): bring the audio to
/// 8 kHz, and say so.
///
/// # Errors
/// As [`wide_band`], but [`Error::Rate`] when the pair is not at 8 kHz.
pub fn narrow_band(pair: &Pair<'_>) -> Result<f64> {
    judge(pair, NARROW_BAND, RATE_8K, process_pair, score::mos_lqo)
}

fn judge(
    pair: &Pair<'_>,
    metric: &'static str,
    rate: Rate,
    align: impl Fn(SignalBuffer, SignalBuffer) -> Result<AlignedPair, PesqError>,
    mos_lqo: impl Fn(f64) -> f32,
) -> Result<f64> {
    if pair.sample_rate() as usize != rate.sample_rate() {
        let needed = if rate == RATE_8K { "8000 Hz" } else { "16000 Hz" };
        return Err(Error::Rate { metric, needed, actual: pair.sample_rate() });
    }
    pair.check_length(metric, rate.min_input_samples())?;
    pair.check_audible()?;
    let model = || {
        let AlignedPair { reference, degraded, utterances } =
            align(buffer(pair.reference(), rate), buffer(pair.degraded(), rate))?;
        let first = psychoacoustic::run_frame_loop(&reference, &degraded, &utterances).frame_range.start;
        let frames = disturbance::frame_disturbances(&reference, &degraded, &utterances);
        let sums = disturbance::aggregate(&frames, first);
        Ok(mos_lqo(score::raw_score(sums.symmetric, sums.asymmetric).into()))
    };
    // The model keeps nothing between calls but tables, which a panic leaves whole.
    let outcome = catch_unwind(AssertUnwindSafe(model));
    let failed = |reason: &str| Error::Failed { metric, reason: reason.to_owned() };
    let score = match outcome {
        Ok(Ok(score)) => f64::from(score),
        Ok(Err(PesqError::NoUtterancesFound)) => return Err(Error::NoSpeech { metric }),
        Ok(Err(error)) => return Err(failed(&error.to_string())),
        Err(_) => return Err(failed("its time alignment went out of bounds")),
    };
    if score.is_finite() { Ok(score) } else { Err(failed("the score is not a number")) }
}

/// Samples as the model takes them: between zeros, in the range of sixteen bits but not rounded.
///
/// It brings each signal to one level by itself, so the gain here is free: a power of two, which rounds nothing.
fn buffer(samples: &[f32], rate: Rate) -> SignalBuffer {
    let peak = samples.iter().fold(0.0, |peak: f64, x| peak.max(f64::from(x.abs())));
    let gain = (f64::from(i16::MAX) / peak).log2().floor().exp2();
    let margin = rate.margin_samples();
    let nominal_len = samples.len() + 2 * margin;
    let mut padded = vec![0.0; nominal_len + rate.padding_samples()];
    for (padded, x) in padded[margin..].iter_mut().zip(samples) {
        *padded = (f64::from(*x) * gain) as f32;
    }
    SignalBuffer { samples: padded, nominal_len, input_len: samples.len(), rate }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Signal;
    use crate::testing::{noise, speech};

    #[test]
    fn speech_is_perfect_against_itself_and_noise_makes_it_worse() {
        for (rate, model, best) in
            [(16_000, wide_band as fn(&Pair<'_>) -> Result<f64>, 4.643), (8_000, narrow_band, 4.548)]
        {
            let clean = speech(rate, 2.0);
            let score = |degraded: &[f32]| model(&Pair::new(&clean, degraded, rate).unwrap()).unwrap();
            assert!((score(&clean) - best).abs() < 1e-3, "{}", score(&clean));
            let noisy = |amplitude: f32| {
                clean.iter().zip(noise(clean.len(), 1)).map(|(x, n)| x + amplitude * n).collect::<Vec<_>>()
            };
            let (little, much) = (score(&noisy(0.003)), score(&noisy(0.1)));
            assert!(best > little + 0.1 && little > much + 0.5, "{rate} Hz: {little} {much}");
        }
    }

    #[test]
    fn level_does_not_matter() {
        let clean = speech(16_000, 2.0);
        let noisy: Vec<f32> = clean.iter().zip(noise(clean.len(), 1)).map(|(x, n)| x + 0.01 * n).collect();
        let at = |gain: f32| {
            let quiet: Vec<f32> = noisy.iter().map(|x| gain * x).collect();
            wide_band(&Pair::new(&clean, &quiet, 16_000).unwrap()).unwrap()
        };
        assert!((at(1.0) - at(1e-4)).abs() < 1e-3, "{} {}", at(1.0), at(1e-4));
        assert_eq!(at(1.0), at(0.125));
    }

    #[test]
    fn what_the_model_would_praise_or_stop_on_is_refused() {
        let clean = speech(16_000, 1.0);
        let silent = vec![0.0; clean.len()];
        let of = |reference: &[f32], degraded: &[f32], rate| {
            wide_band(&Pair::new(reference, degraded, rate).unwrap())
        };
        assert_eq!(of(&clean, &silent, 16_000), Err(Error::Silent { signal: Signal::Degraded }));
        assert_eq!(of(&silent, &clean, 16_000), Err(Error::Silent { signal: Signal::Reference }));
        assert!(matches!(of(&clean, &clean, 44_100), Err(Error::Rate { actual: 44_100, .. })));
        let short = &clean[..3999];
        assert!(matches!(of(short, short, 16_000), Err(Error::TooShort { needed: 4000, .. })));
        // A tenth of a second is no utterance.
        let burst: Vec<f32> =
            clean.iter().enumerate().map(|(i, x)| if i < 1600 { *x } else { 0.0 }).collect();
        assert_eq!(of(&burst, &clean, 16_000), Err(Error::NoSpeech { metric: "PESQ-WB" }));
    }

    /// The crate's own entry points give the same for samples of sixteen bits.
    #[test]
    fn the_stages_make_the_whole() {
        for rate in [16_000, 8_000] {
            let sixteen_bits = |samples: &[f32]| -> Vec<i16> {
                // The largest sample takes all of the sixteen bits, so that no gain is left.
                let peak = samples.iter().fold(0.0, |peak: f32, x| peak.max(x.abs()));
                samples.iter().map(|x| (x / peak * 32767.0).round() as i16).collect()
            };
            let clean = speech(rate, 2.0);
            let noisy: Vec<f32> =
                clean.iter().zip(noise(clean.len(), 1)).map(|(x, n)| x + 0.01 * n).collect();
            let (clean, noisy) = (sixteen_bits(&clean), sixteen_bits(&noisy));
            let to_f32 = |samples: &[i16]| samples.iter().map(|x| f32::from(*x)).collect::<Vec<_>>();
            let (reference, degraded) = (to_f32(&clean), to_f32(&noisy));
            let pair = Pair::new(&reference, &degraded, rate).unwrap();
            let (ours, whole) = if rate == 16_000 {
                (wide_band(&pair), ::pesq::pesq_wb(&clean, &noisy))
            } else {
                let whole = ::pesq::pesq_8k(&clean, &noisy);
                (narrow_band(&pair), whole.map(|raw| score::mos_lqo(f64::from(raw))))
            };
            assert_eq!(ours.unwrap(), f64::from(whole.unwrap()));
        }
    }

    #[test]
    fn any_level_becomes_that_of_sixteen_bits() {
        for samples in [[1e-45, -1e-45, 0.0], [f32::MAX, -f32::MAX / 2.0, 0.0], [0.3, 0.7, 32768.0]] {
            let buffer = buffer(&samples, RATE_8K);
            let peak = buffer.samples.iter().fold(0.0, |peak: f32, x| peak.max(x.abs()));
            assert!((16_383.0..=32_768.0).contains(&peak), "{peak}");
            assert_eq!(buffer.samples.len(), 3 + 2 * 2400 + 2560);
        }
    }
}
