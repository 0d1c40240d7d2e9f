//! Distances between short-time spectra: mel, multi-resolution STFT, log-spectral, mel-cepstral.
//!
//! They see what a listener may hear at any bandwidth, for speech, music and sounds alike, but weigh it evenly:
//! no masking, no loudness, and noise that was replaced by other noise counts as an error. Level and alignment
//! to some milliseconds matter. Values at different sample rates must not be compared.

use crate::error::Result;
use crate::mel::MelFilters;
use crate::pair::Pair;
use crate::stft::Stft;

/// What a multi-scale distance of magnitudes adds up, for each scale.
#[derive(Clone, Copy, Debug)]
struct Weights {
    /// The logarithm is taken of magnitudes to this power.
    power: i32,
    /// Of the mean absolute difference of logarithms to the base of ten.
    log: f64,
    /// Of the mean absolute difference of magnitudes.
    magnitude: f64,
}

/// Magnitudes below this count as this in the logarithm.
const FLOOR: f64 = 1e-5;

/// Which mel distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MelConfig {
    /// The defaults of audiotools, which Codec-SUPERB reports: 150 and 80 bands under windows of 2048 and 512
    /// samples, logarithm of squares plus difference of magnitudes.
    Audiotools,
    /// What DAC is trained and reported with: 5, 10, .. 320 bands under windows of 32, 64, .. 2048 samples,
    /// logarithm of magnitudes only.
    Dac,
}

/// Mel distance, 0 and up, lower is better.
///
/// Each scale adds the mean over bands and frames of the absolute difference of the logarithms (base ten).
///
/// # Source
/// `audiotools.metrics.spectral.MelSpectrogramLoss` (descript-audiotools 0.7.2); for [`MelConfig::Dac`] with the
/// arguments of descript-audio-codec's `conf/final/44khz.yml`.
///
/// # Errors
/// [`Error::TooShort`](crate::Error::TooShort) for 1024 samples or fewer.
pub fn mel_distance(pair: &Pair<'_>, config: MelConfig) -> Result<f64> {
    let (scales, weights): (&[(usize, usize)], _) = match config {
        MelConfig::Audiotools => (&[(2048, 150), (512, 80)], Weights { power: 2, log: 1.0, magnitude: 1.0 }),
        MelConfig::Dac => (
            &[(32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320)],
            Weights { power: 1, log: 1.0, magnitude: 0.0 },
        ),
    };
    // The longest window first, so that the error names the length that the metric as a whole needs.
    let longest = scales.iter().map(|(window_length, _)| *window_length).max().unwrap_or_default();
    pair.check_length("mel distance", Stft::min_samples(longest))?;
    let nyquist = f64::from(pair.sample_rate()) / 2.0;
    let mut sum = 0.0;
    for &(window_length, n_mels) in scales {
        let stft = stft(pair, "mel distance", window_length)?;
        let filters = MelFilters::new(pair.sample_rate(), stft.n_bins(), n_mels, nyquist);
        let mut bands = Vec::new();
        sum += magnitude_distance(pair, stft, weights, |magnitudes| {
            filters.apply(magnitudes, &mut bands);
            std::mem::swap(magnitudes, &mut bands);
        });
    }
    Ok(sum)
}

/// Multi-resolution STFT distance, 0 and up, lower is better: windows of 2048 and 512 samples, each adding the
/// mean absolute difference of the logarithms (base ten) of squared magnitudes and that of the magnitudes.
///
/// # Source
/// `audiotools.metrics.spectral.MultiScaleSTFTLoss` (descript-audiotools 0.7.2) with its defaults.
///
/// # Errors
/// [`Error::TooShort`](crate::Error::TooShort) for 1024 samples or fewer.
pub fn stft_distance(pair: &Pair<'_>) -> Result<f64> {
    let weights = Weights { power: 2, log: 1.0, magnitude: 1.0 };
    let mut sum = 0.0;
    for window_length in [2048, 512] {
        let stft = stft(pair, "STFT distance", window_length)?;
        sum += magnitude_distance(pair, stft, weights, |_| {});
    }
    Ok(sum)
}

/// Log-spectral distance in dB, 0 and up, lower is better.
///
/// The root of the mean over bins of the squared difference of `10 log10(power)`, averaged over frames; windows
/// of 2048 samples (periodic Hann), one every 512. Powers count as at least 1e-7, about the noise of 16-bit audio;
/// a lower floor would let bins that nobody hears decide.
///
/// # Source
/// The distance of Gray and Markel 1976, "Distance Measures for Speech Processing"; papers differ in windows and
/// floors, so compare values of this crate only.
///
/// # Errors
/// [`Error::TooShort`](crate::Error::TooShort) for 1024 samples or fewer.
pub fn log_spectral_distance(pair: &Pair<'_>) -> Result<f64> {
    let stft = stft(pair, "log-spectral distance", 2048)?;
    Ok(mean_over_frames(pair, stft, |reference, degraded| {
        let level = |magnitude: f64| 10.0 * (magnitude * magnitude).max(1e-7).log10();
        let squares = reference.iter().zip(&*degraded).map(|(r, d)| (level(*r) - level(*d)).powi(2));
        (squares.sum::<f64>() / reference.len() as f64).sqrt()
    }))
}

/// Mel-cepstral distance in dB, 0 and up, lower is better: the shape of the spectrum without level and fine
/// structure. For speech.
///
/// `10 / ln 10 * sqrt(2 sum (c - c')^2)` over coefficients 1 to 24 of the cosine transform of the logarithms of 80
/// mel bands from 0 to 8 kHz (or the Nyquist frequency), averaged over frames; windows of the power of two
/// nearest to 32 ms (periodic Hann), four to a window. Powers count as at least 1e-10, about the noise of 16-bit
/// audio in a band.
///
/// # Source
/// Kubichek 1993, "Mel-Cepstral Distance Measure for Objective Speech Quality Assessment", on cepstra of a mel
/// filter bank. Toolkits that fit an all-pole or WORLD envelope, or warp time, give other values: label it
/// "MCD (mel-DCT)".
///
/// # Errors
/// [`Error::TooShort`](crate::Error::TooShort) when half a window or less is there.
pub fn mel_cepstral_distance(pair: &Pair<'_>) -> Result<f64> {
    const N_MELS: usize = 80;
    const N_COEFFICIENTS: usize = 24;
    let window_length = (0.032 * f64::from(pair.sample_rate())).max(16.0).log2().round().exp2() as usize;
    let stft = stft(pair, "mel-cepstral distance", window_length)?;
    let max_frequency = (f64::from(pair.sample_rate()) / 2.0).min(8000.0);
    let filters = MelFilters::new(pair.sample_rate(), stft.n_bins(), N_MELS, max_frequency);
    let basis = |k: usize, band: usize| {
        (std::f64::consts::PI * k as f64 * (band as f64 + 0.5) / N_MELS as f64).cos() / N_MELS as f64
    };
    let basis: Vec<Vec<f64>> =
        (1..=N_COEFFICIENTS).map(|k| (0..N_MELS).map(|band| basis(k, band)).collect()).collect();
    let (mut left, mut right) = (Vec::new(), Vec::new());
    Ok(mean_over_frames(pair, stft, |reference, degraded| {
        for (spectrum, bands) in [(reference, &mut left), (degraded, &mut right)] {
            spectrum.iter_mut().for_each(|magnitude| *magnitude *= *magnitude);
            filters.apply(spectrum, bands);
        }
        let log = |power: f64| power.max(1e-10).ln();
        let differences: Vec<f64> = left.iter().zip(&right).map(|(l, r)| log(*l) - log(*r)).collect();
        let squares = basis.iter().map(|row| {
            let coefficient: f64 = row.iter().zip(&differences).map(|(b, d)| b * d).sum();
            coefficient * coefficient
        });
        10.0 / std::f64::consts::LN_10 * (2.0 * squares.sum::<f64>()).sqrt()
    }))
}

/// The weighted distance of magnitudes at one scale, after `transform`.
fn magnitude_distance(
    pair: &Pair<'_>,
    stft: Stft,
    weights: Weights,
    mut transform: impl FnMut(&mut Vec<f64>),
) -> f64 {
    mean_over_frames(pair, stft, |reference, degraded| {
        transform(reference);
        transform(degraded);
        let log = |magnitude: f64| magnitude.max(FLOOR).powi(weights.power).log10();
        let (mut logs, mut magnitudes) = (0.0, 0.0);
        for (r, d) in reference.iter().zip(&*degraded) {
            logs += (log(*r) - log(*d)).abs();
            magnitudes += (r - d).abs();
        }
        (weights.log * logs + weights.magnitude * magnitudes) / reference.len() as f64
    })
}

/// The mean of `distance` over frames; it gets the magnitudes of both signals and may change them.
fn mean_over_frames(
    pair: &Pair<'_>,
    mut stft: Stft,
    mut distance: impl FnMut(&mut Vec<f64>, &mut Vec<f64>) -> f64,
) -> f64 {
    let n_frames = stft.n_frames(pair.n_samples());
    let (mut reference, mut degraded) = (Vec::new(), Vec::new());
    let mut sum = 0.0;
    for frame_idx in 0..n_frames {
        stft.magnitudes(pair.reference(), frame_idx, &mut reference);
        stft.magnitudes(pair.degraded(), frame_idx, &mut degraded);
        sum += distance(&mut reference, &mut degraded);
    }
    sum / n_frames as f64
}

/// Frames that overlap by three quarters; checked first, because a rate may ask for windows of any length.
fn stft(pair: &Pair<'_>, metric: &'static str, window_length: usize) -> Result<Stft> {
    pair.check_length(metric, Stft::min_samples(window_length))?;
    Ok(Stft::new(window_length, window_length / 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::testing::{noise, speech};

    type Distance = fn(&Pair<'_>) -> Result<f64>;

    const ALL: [Distance; 5] = [
        |pair| mel_distance(pair, MelConfig::Audiotools),
        |pair| mel_distance(pair, MelConfig::Dac),
        stft_distance,
        log_spectral_distance,
        mel_cepstral_distance,
    ];

    #[test]
    fn more_noise_is_further_away() {
        for rate in [8_000, 16_000, 44_100] {
            let clean = speech(rate, 0.5);
            for (i, distance) in ALL.iter().enumerate() {
                let of = |amplitude: f32| {
                    let noise = noise(clean.len(), 3);
                    let degraded: Vec<f32> =
                        clean.iter().zip(noise).map(|(x, n)| x + amplitude * n).collect();
                    distance(&Pair::new(&clean, &degraded, rate).unwrap()).unwrap()
                };
                assert_eq!(of(0.0), 0.0);
                assert!(0.0 < of(0.001) && of(0.001) < of(0.01) && of(0.01) < of(0.1), "{i} at {rate} Hz");
            }
        }
    }

    /// A gain adds the same to every logarithm that is above the floor.
    #[test]
    fn a_gain_has_a_known_distance() {
        let reference = noise(20_000, 4);
        let degraded: Vec<f32> = reference.iter().map(|x| x * 0.5).collect();
        let pair = Pair::new(&reference, &degraded, 16_000).unwrap();
        let log2 = 2_f64.log10();
        assert!((log_spectral_distance(&pair).unwrap() - 20.0 * log2).abs() < 1e-9);
        // The level is in the coefficient that is left out.
        assert!(mel_cepstral_distance(&pair).unwrap() < 1e-9);
        assert!((mel_distance(&pair, MelConfig::Dac).unwrap() - 7.0 * log2).abs() < 0.2);
    }

    #[test]
    fn silence_has_a_distance_and_few_samples_have_none() {
        let clean = speech(16_000, 0.5);
        let silent = vec![0.0; clean.len()];
        for distance in ALL {
            let of = |a: &[f32], b: &[f32]| distance(&Pair::new(a, b, 16_000).unwrap());
            assert_eq!(of(&silent, &silent), Ok(0.0));
            assert!(of(&clean, &silent).unwrap() > 0.5);
            assert!(matches!(of(&clean[..256], &clean[..256]), Err(Error::TooShort { actual: 256, .. })));
            // What is said to be enough is enough.
            let Err(Error::TooShort { needed, .. }) = of(&clean[..9], &clean[..9]) else { panic!() };
            assert!(of(&clean[..needed], &clean[..needed]).is_ok(), "{needed}");
            assert!(of(&clean[..1025], &silent[..1025]).is_ok());
        }
    }
}
