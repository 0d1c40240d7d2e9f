//! The resampler that belongs to STOI: another filter changes its fourth digit.

use super::RATE;
use crate::error::{Error, Result};
use codec_kernels::sinc::{bessel_i0, sinc};

/// Below this rate the highest bands lie above the Nyquist frequency, in Hz.
const MIN_RATE: u32 = 8_000;
const MAX_RATE: u32 = 768_000;

/// A rate must share this divisor with the analysis rate, or the filter would have millions of taps.
const MIN_DIVISOR: u32 = 25;

/// Attenuation of the filter in dB.
const REJECTION: f64 = 60.0;

/// Brings samples to the analysis rate.
///
/// # Source
/// The function `resample` of Octave's signal package, through `pystoi.utils.resample_oct`: a Kaiser window of 60 dB
/// with a roll-off of a tenth of the cut-off, and a sum of taps of one.
pub(super) fn to_analysis_rate(samples: &[f32], rate: u32, metric: &'static str) -> Result<Vec<f64>> {
    let divisor = gcd(RATE, rate);
    if !(MIN_RATE..=MAX_RATE).contains(&rate) || divisor < MIN_DIVISOR {
        let needed = "a multiple of 25 Hz from 8000 Hz to 768000 Hz";
        return Err(Error::Rate { metric, needed, actual: rate });
    }
    if rate == RATE {
        return Ok(samples.iter().map(|x| f64::from(*x)).collect());
    }
    let (up, down) = ((RATE / divisor) as usize, (rate / divisor) as usize);
    let taps = taps(up, down);
    let half = taps.len() / 2;
    let n_out = (samples.len() * up).div_ceil(down);
    let sample = |m: usize| {
        // Between the input samples that it lies on, stuffed with zeros to `up` times the rate.
        let centre = m * down;
        let first = (centre.saturating_sub(half)).div_ceil(up);
        let last = ((centre + half) / up).min(samples.len().saturating_sub(1));
        let inputs = samples.iter().enumerate().take(last + 1).skip(first);
        up as f64 * inputs.map(|(i, x)| f64::from(*x) * taps[centre + half - i * up]).sum::<f64>()
    };
    Ok((0..n_out).map(sample).collect())
}

/// The taps at `up` times the input rate, an odd number of them.
fn taps(up: usize, down: usize) -> Vec<f64> {
    let cut_off = 0.5 / up.max(down) as f64;
    let half = ((REJECTION - 8.0) / (28.714 * cut_off / 10.0)).ceil() as usize;
    let beta = 0.1102 * (REJECTION - 8.7);
    let tap = |i: usize| {
        let t = i as f64 - half as f64;
        // A Kaiser window that is not zero at its ends.
        let x = t / half as f64;
        sinc(2.0 * cut_off * t) * bessel_i0(beta * (1.0 - x * x).sqrt()) / bessel_i0(beta)
    };
    let mut taps: Vec<f64> = (0..=2 * half).map(tap).collect();
    let sum: f64 = taps.iter().sum();
    taps.iter_mut().for_each(|tap| *tap /= sum);
    taps
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_keeps_its_phase_and_the_length_is_rounded_up() {
        for rate in [8_000, 16_000, 22_050, 44_100, 48_000] {
            let n_samples = rate as usize / 2 + 1;
            let tone =
                |rate: u32, i: usize| (i as f64 * 1000.0 * std::f64::consts::TAU / f64::from(rate)).sin();
            let samples: Vec<f32> = (0..n_samples).map(|i| tone(rate, i) as f32).collect();
            let out = to_analysis_rate(&samples, rate, "STOI").unwrap();
            assert_eq!(out.len(), (n_samples * 10_000).div_ceil(rate as usize));
            // The attenuation of the filter is 60 dB.
            let inside = out.iter().enumerate().skip(200).take(out.len() - 400);
            let error = inside.map(|(i, y)| (y - tone(RATE, i)).abs()).fold(0.0, f64::max);
            assert!(error < 2e-3, "{rate} Hz: {error}");
        }
    }

    #[test]
    fn one_sample_is_enough() {
        assert_eq!(to_analysis_rate(&[1.0], 48_000, "STOI").unwrap().len(), 1);
        assert_eq!(to_analysis_rate(&[], 48_000, "STOI").unwrap().len(), 0);
    }
}
