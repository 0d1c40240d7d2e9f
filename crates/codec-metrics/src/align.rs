//! Delay and level between two signals: measured, reported, and taken out only when asked.
//!
//! A codec that delays its output by a few samples loses all of its SI-SDR and sounds the same, so the delay is a
//! result of its own.

use crate::error::{Error, Result, Signal};
use crate::pair::{check_finite, is_silent};
use crate::stft::Fourier;
use codec_core::AudioBuffer;
use codec_kernels::sinc::{kaiser, sinc};
use realfft::RealFftPlanner;
use realfft::num_complex::Complex;

/// Samples on each side that an interpolated sample is made of.
const REACH: usize = 32;

/// Shape of the interpolation's window: about 80 dB.
const BETA: f64 = 8.0;

/// Below this normalized correlation a delay is not believed: codecs that keep no phase have none that could be
/// measured.
pub const MIN_CORRELATION: f64 = 0.5;

/// How finely a delay is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// To the sample.
    Sample,
    /// To about a hundredth of a sample; taking it out interpolates the degraded signal.
    Fraction,
}

/// The delay of a degraded signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alignment {
    /// Samples by which the degraded signal is late; negative when it is early.
    pub delay: f64,
    /// Normalized correlation at that delay, 0 to 1. Where it is low, doubt the delay.
    pub correlation: f64,
    /// Whether the degraded signal is upside down. It is left so.
    pub is_inverted: bool,
}

impl Alignment {
    /// Cuts both signals to the part that they share, without the delay.
    ///
    /// # Errors
    /// [`Error::Format`] when rate or channels differ, [`Error::TooShort`] when nothing is shared,
    /// [`Error::Argument`] when the delay is not finite.
    pub fn apply(
        &self,
        reference: &AudioBuffer,
        degraded: &AudioBuffer,
    ) -> Result<(AudioBuffer, AudioBuffer)> {
        check_specs(reference, degraded)?;
        if !self.delay.is_finite() {
            return Err(Error::Argument { what: "a delay", needed: "finite", actual: self.delay });
        }
        // Reference sample i belongs to degraded sample i + delay. A cast stops at the ends of its range.
        let start = (-self.delay).ceil().max(0.0) as usize;
        let end = (degraded.n_samples() as f64 - self.delay).ceil().max(0.0) as usize;
        let end = end.min(reference.n_samples());
        if start >= end {
            let unit = "shared samples";
            return Err(Error::TooShort { metric: "alignment", unit, needed: 1, actual: 0 });
        }
        let moved: Vec<Vec<f32>> =
            degraded.channels().map(|samples| moved(samples, self.delay, start, end)).collect();
        let spec = reference.spec();
        let degraded = AudioBuffer::from_planar(spec, moved).map_err(|_| unreachable_format())?;
        Ok((reference.slice(start..end), degraded))
    }
}

/// Finds the delay of the degraded signal, up to `max_delay` samples in either direction.
///
/// It is where the cross-correlation, normalized by the energies of what overlaps, has its largest magnitude,
/// over delays that leave at least half of the shorter signal; channels add up. One delay is taken for the whole
/// signal: a codec that stretches time has none. Periodic sounds have several; one of them is found.
///
/// # Errors
/// [`Error::Format`] when rate or channels differ, [`Error::NotFinite`], [`Error::Silent`] when either signal is
/// constant, [`Error::TooShort`] for an empty one, and [`Error::Unlike`] when the correlation stays below
/// [`MIN_CORRELATION`].
pub fn estimate(
    reference: &AudioBuffer,
    degraded: &AudioBuffer,
    max_delay: usize,
    resolution: Resolution,
) -> Result<Alignment> {
    check_specs(reference, degraded)?;
    for (audio, signal) in [(reference, Signal::Reference), (degraded, Signal::Degraded)] {
        if audio.is_empty() {
            return Err(Error::TooShort { metric: "alignment", unit: "samples", needed: 1, actual: 0 });
        }
        for channel in audio.channels() {
            check_finite(channel, signal)?;
        }
        if audio.channels().all(is_silent) {
            return Err(Error::Silent { signal });
        }
    }
    let (n_reference, n_degraded) = (reference.n_samples(), degraded.n_samples());
    let half = n_reference.min(n_degraded).div_ceil(2);
    // At least `half` samples overlap.
    let latest = max_delay.min(n_degraded - half);
    let earliest = max_delay.min(n_reference - half);
    let margin = earliest.max(latest) + REACH + 1;
    let mut correlation = vec![0.0; 2 * margin + 1];
    let mut energies = vec![0.0; 2 * margin + 1];
    let (mut left, mut right) = (Energy::default(), Energy::default());
    for (reference, degraded) in reference.channels().zip(degraded.channels()) {
        correlate(reference, degraded, margin, &mut correlation);
        left.add(reference);
        right.add(degraded);
    }
    let lags = margin - earliest..=margin + latest;
    for lag_idx in lags.clone() {
        // Of the reference, samples from `start` to `end` overlap.
        let start = margin.saturating_sub(lag_idx);
        let end = (n_degraded + margin - lag_idx).min(n_reference);
        let shifted = (start + lag_idx - margin, end + lag_idx - margin);
        energies[lag_idx] = (left.between(start, end) * right.between(shifted.0, shifted.1)).sqrt();
    }
    let quiet = 1e-6 * (left.between(0, n_reference) * right.between(0, n_degraded)).sqrt();
    let score = |lag_idx: usize| {
        if energies[lag_idx] > quiet { correlation[lag_idx].abs() / energies[lag_idx] } else { 0.0 }
    };
    // Of equal ones the smallest delay.
    let best =
        lags.min_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.abs_diff(margin).cmp(&b.abs_diff(margin))));
    let best = best.unwrap_or(margin);
    let is_inverted = correlation[best] < 0.0;
    let whole = best as f64 - margin as f64;
    let (delay, peak) = match resolution {
        Resolution::Sample => (whole, correlation[best].abs()),
        Resolution::Fraction => {
            let (fraction, peak) = refine(&correlation[best - REACH..=best + REACH], is_inverted);
            // Below the accuracy of the measure, and whole samples need no interpolation.
            (if fraction.abs() < 1e-3 { whole } else { whole + fraction }, peak)
        }
    };
    let correlation = if energies[best] > quiet { (peak / energies[best]).min(1.0) } else { 0.0 };
    // What is not a number is not enough either.
    if correlation.is_nan() || correlation < MIN_CORRELATION {
        return Err(Error::Unlike { correlation, needed: MIN_CORRELATION });
    }
    Ok(Alignment { delay, correlation, is_inverted })
}

/// The gain in dB that brings the degraded signal to the root mean square of the reference.
///
/// # Errors
/// [`Error::Format`] when rate or channels differ, [`Error::NotFinite`], and [`Error::Silent`] when either signal
/// has no energy.
pub fn level_difference(reference: &AudioBuffer, degraded: &AudioBuffer) -> Result<f64> {
    check_specs(reference, degraded)?;
    let level = |audio: &AudioBuffer, signal: Signal| -> Result<f64> {
        let mut sum = 0.0;
        for channel in audio.channels() {
            check_finite(channel, signal)?;
            sum += channel.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        }
        if sum == 0.0 {
            return Err(Error::Silent { signal });
        }
        Ok(10.0 * (sum / audio.n_samples() as f64).log10())
    };
    Ok(level(reference, Signal::Reference)? - level(degraded, Signal::Degraded)?)
}

/// The signal louder by some dB.
///
/// # Errors
/// [`Error::Argument`] when the gain is not finite.
pub fn with_gain(audio: &AudioBuffer, decibels: f64) -> Result<AudioBuffer> {
    let factor = 10_f64.powf(decibels / 20.0);
    if !factor.is_finite() {
        return Err(Error::Argument { what: "a gain in dB", needed: "below 6000", actual: decibels });
    }
    let scaled = |samples: &[f32]| samples.iter().map(|x| (f64::from(*x) * factor) as f32).collect();
    let channels = audio.channels().map(scaled).collect();
    AudioBuffer::from_planar(audio.spec(), channels).map_err(|_| unreachable_format())
}

pub(crate) fn check_specs(reference: &AudioBuffer, degraded: &AudioBuffer) -> Result<()> {
    let (reference, degraded) = (reference.spec(), degraded.spec());
    let same = |what, expected, actual| {
        if expected == actual { Ok(()) } else { Err(Error::Format { what, expected, actual }) }
    };
    same("sample rate in Hz", reference.sample_rate, degraded.sample_rate)?;
    same("channels", reference.channels.into(), degraded.channels.into())
}

/// Channels of one length always make a buffer.
fn unreachable_format() -> Error {
    Error::Failed { metric: "alignment", reason: "the channels differ in length".to_owned() }
}

/// Running sums of squares.
#[derive(Default)]
struct Energy(Vec<f64>);

impl Energy {
    fn add(&mut self, samples: &[f32]) {
        self.0.resize(samples.len() + 1, 0.0);
        let mut sum = 0.0;
        for (total, x) in self.0[1..].iter_mut().zip(samples) {
            sum += f64::from(*x).powi(2);
            *total += sum;
        }
    }

    fn between(&self, start: usize, end: usize) -> f64 {
        (self.0[end] - self.0[start]).max(0.0)
    }
}

/// Adds `sum_i reference[i] degraded[i + lag]` for lags from `-margin` to `margin` to `out`.
///
/// In blocks, so that memory grows with the lags and not with the signal.
fn correlate(reference: &[f32], degraded: &[f32], margin: usize, out: &mut [f64]) {
    let block = (2 * margin).next_power_of_two().max(4096);
    let fft = 2 * block;
    let (mut left, mut right) = (Fourier::new(fft), Fourier::new(fft));
    let mut product = vec![Complex::new(0.0, 0.0); fft / 2 + 1];
    for start in (0..reference.len()).step_by(block) {
        let end = (start + block).min(reference.len());
        let x = reference[start..end].iter().map(|x| f64::from(*x));
        // From `margin` before the block to `margin` after it, zeros outside the signal.
        let y = (0..block + 2 * margin).map(|i| {
            let at = (start + i).checked_sub(margin);
            at.and_then(|at| degraded.get(at)).map_or(0.0, |y| f64::from(*y))
        });
        for ((sum, x), y) in product.iter_mut().zip(left.spectrum(x)).zip(right.spectrum(y)) {
            *sum += x.conj() * y;
        }
    }
    let inverse = RealFftPlanner::<f64>::new().plan_fft_inverse(fft);
    let mut lags = inverse.make_output_vec();
    // What is imaginary there comes from rounding.
    product[0].im = 0.0;
    product[fft / 2].im = 0.0;
    let outcome = inverse.process(&mut product, &mut lags);
    debug_assert!(outcome.is_ok());
    for (out, lag) in out.iter_mut().zip(&lags) {
        *out += lag / fft as f64;
    }
}

/// Position relative to the middle, within one sample, and height of the peak of a band-limited function.
fn refine(values: &[f64], is_inverted: bool) -> (f64, f64) {
    let sign = if is_inverted { -1.0 } else { 1.0 };
    let at = |x: f64| {
        let terms = values.iter().enumerate().map(|(i, value)| value * kernel(i as f64 - REACH as f64 - x));
        sign * terms.sum::<f64>()
    };
    // Golden sections. The peak lies within half a sample of the largest one, and is the only one so close.
    let golden = (5_f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (-0.75, 0.75);
    while high - low > 1e-6 {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        if at(a) < at(b) { low = a } else { high = b }
    }
    let peak = (low + high) / 2.0;
    (peak, at(peak))
}

/// The samples that lie `delay` after `start..end`; outside the signal there are zeros.
fn moved(samples: &[f32], delay: f64, start: usize, end: usize) -> Vec<f32> {
    let whole = delay.floor();
    let fraction = delay - whole;
    let get =
        |at: i64| usize::try_from(at).ok().and_then(|at| samples.get(at)).map_or(0.0, |x| f64::from(*x));
    let reach = REACH as i64;
    let taps: Vec<(i64, f64)> = if fraction == 0.0 {
        vec![(0, 1.0)]
    } else {
        (1 - reach..=reach).map(|k| (k, kernel(k as f64 - fraction))).collect()
    };
    let sample = |i: usize| {
        let at = i as i64 + whole as i64;
        taps.iter().map(|(k, tap)| tap * get(at + k)).sum::<f64>() as f32
    };
    (start..end).map(sample).collect()
}

/// Windowed sinc of full bandwidth.
fn kernel(x: f64) -> f64 {
    sinc(x) * kaiser(x / REACH as f64, BETA)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{noise, speech};
    use codec_core::AudioSpec;

    fn mono(samples: Vec<f32>) -> AudioBuffer {
        AudioBuffer::mono(16_000, samples).unwrap()
    }

    fn late(samples: &[f32], delay: f64) -> Vec<f32> {
        moved(samples, -delay, 0, samples.len())
    }

    #[test]
    fn whole_delays_are_found_and_taken_out() {
        let clean = speech(16_000, 1.0);
        for delay in [0_i32, 1, -1, 22, -1105, 7999, -7999] {
            let degraded: Vec<f32> = late(&clean, f64::from(delay)).iter().map(|x| -0.3 * x).collect();
            let (reference, degraded) = (mono(clean.clone()), mono(degraded));
            let found = estimate(&reference, &degraded, 8000, Resolution::Sample).unwrap();
            assert_eq!(found.delay, f64::from(delay));
            assert!(found.is_inverted && found.correlation > 0.999, "{found:?}");
            let (reference, degraded) = found.apply(&reference, &degraded).unwrap();
            assert_eq!(reference.n_samples(), 16_000 - delay.unsigned_abs() as usize);
            let pairs = reference.channel(0).unwrap().iter().zip(degraded.channel(0).unwrap());
            assert!(pairs.into_iter().all(|(r, d)| (-0.3 * r - d).abs() < 1e-7));
        }
    }

    #[test]
    fn fractions_are_found_and_taken_out() {
        let clean = speech(16_000, 1.0);
        for delay in [0.5, -0.25, 17.37, -300.9] {
            let reference = mono(clean.clone());
            let degraded = mono(late(&clean, delay));
            let found = estimate(&reference, &degraded, 1000, Resolution::Fraction).unwrap();
            assert!((found.delay - delay).abs() < 0.01, "{delay}: {found:?}");
            let (reference, degraded) = found.apply(&reference, &degraded).unwrap();
            let mut sums = crate::SiSdr::default();
            let n = reference.n_samples();
            // The ends lack what lies outside the signal.
            sums.push(&reference.channel(0).unwrap()[40..n - 40], &degraded.channel(0).unwrap()[40..n - 40])
                .unwrap();
            assert!(sums.decibels().unwrap() > 40.0, "{delay}: {:?}", sums.decibels());
        }
    }

    #[test]
    fn noise_lengths_and_channels_do_not_hide_the_delay() {
        let clean = speech(16_000, 1.0);
        let noisy = |seed| {
            let mut late = vec![0.0; 321];
            late.extend(clean.iter().zip(noise(clean.len(), seed)).map(|(x, n)| x + 0.03 * n));
            late
        };
        let spec = AudioSpec { sample_rate: 16_000, channels: 2 };
        let reference = AudioBuffer::from_planar(spec, vec![clean.clone(), vec![0.0; clean.len()]]).unwrap();
        let degraded = AudioBuffer::from_planar(spec, vec![noisy(1), noisy(2)]).unwrap();
        let found = estimate(&reference, &degraded, 800, Resolution::Sample).unwrap();
        assert_eq!(found.delay, 321.0);
        let (reference, degraded) = found.apply(&reference, &degraded).unwrap();
        assert_eq!((reference.n_samples(), degraded.n_samples()), (16_000, 16_000));
    }

    #[test]
    fn unlike_signals_have_no_delay() {
        let (a, b) = (mono(noise(16_000, 1)), mono(noise(16_000, 2)));
        for resolution in [Resolution::Sample, Resolution::Fraction] {
            assert!(matches!(estimate(&a, &b, 100, resolution), Err(Error::Unlike { .. })));
        }
        // A seventh of the energy in common is more than chance and not enough.
        let part: Vec<f32> =
            noise(16_000, 1).iter().zip(noise(16_000, 2)).map(|(x, n)| 0.4 * x + n).collect();
        let error = estimate(&a, &mono(part), 100, Resolution::Sample).unwrap_err();
        assert!(matches!(error, Error::Unlike { correlation, .. } if correlation > 0.3), "{error}");
        let silent = mono(vec![0.0; 100]);
        let of = |degraded: &AudioBuffer| estimate(&a, degraded, 100, Resolution::Sample);
        assert_eq!(of(&silent), Err(Error::Silent { signal: Signal::Degraded }));
        assert!(matches!(of(&mono(vec![])), Err(Error::TooShort { .. })));
        let other = AudioBuffer::mono(8000, vec![0.5]).unwrap();
        assert!(matches!(of(&other), Err(Error::Format { expected: 16_000, actual: 8000, .. })));
        for delay in [1e300, -1e300, f64::NAN, 16_000.0] {
            let alignment = Alignment { delay, correlation: 1.0, is_inverted: false };
            assert!(alignment.apply(&a, &b).is_err(), "{delay}");
        }
    }

    #[test]
    fn any_length_and_reach_is_fine() {
        for (n_reference, n_degraded) in [(1, 1), (1, 5), (5, 1), (2, 3), (100, 33)] {
            for max_delay in [0, 1, 7, usize::MAX] {
                for resolution in [Resolution::Sample, Resolution::Fraction] {
                    let (a, b) = (mono(noise(n_reference, 1)), mono(noise(n_degraded, 2)));
                    if let Ok(found) = estimate(&a, &b, max_delay, resolution) {
                        assert!(found.delay.abs() <= 100.0 && found.correlation <= 1.0, "{found:?}");
                        let (a, b) = found.apply(&a, &b).unwrap();
                        assert_eq!(a.n_samples(), b.n_samples());
                    }
                }
            }
        }
    }

    #[test]
    fn levels_are_matched() {
        let reference = mono(speech(16_000, 0.5));
        let degraded = with_gain(&reference, -7.5).unwrap();
        let difference = level_difference(&reference, &degraded).unwrap();
        assert!((difference - 7.5).abs() < 1e-5, "{difference}");
        let matched = with_gain(&degraded, difference).unwrap();
        assert!(level_difference(&reference, &matched).unwrap().abs() < 1e-6);
        let silent = mono(vec![0.0; 5]);
        assert_eq!(level_difference(&silent, &degraded), Err(Error::Silent { signal: Signal::Reference }));
        assert!(with_gain(&reference, f64::INFINITY).is_err());
    }
}
