//! A distance of loudness: what of an error is heard, by a model of the ear in the manner of PESQ.
//!
//! Powers in bands of equal width in Bark become loudness. Differences within a quarter of the lower loudness
//! are not heard. What is heard counts twice: as it is, and once more where the decoded audio has power that
//! its target lacks, which disturbs more than what is missing.
//!
//! # Source
//! ITU-T P.862 (2001), sections 10.2.3 to 10.2.8, for the steps; Traunmüller 1990, "Analytical expressions for
//! the tonotopic sensory scale", for Bark; Terhardt 1979, "Calculating virtual pitch", for the threshold in
//! quiet. Bands, threshold and scale are these formulas and not the tables of the recommendation, and delays,
//! filters and the norms over time are left out: the distance leads training where PESQ leads and is no
//! substitute for it.

use super::mel::{Band, matrix};
use crate::error::{Error, Result};
use candle_core::{D, DType, Tensor};
use realfft::num_complex::Complex32;

/// The level at which a target is heard, dB.
const LEVEL: f64 = 79.0;
/// Mean square below which a target is taken for silence and raised no further.
const SILENCE: f64 = 1e-7;
/// Width of a band, about that of the recommendation at 16 kHz.
const BAND_BARK: f64 = 0.44;
/// Zwicker's exponent.
const EXPONENT: f64 = 0.23;
/// Share of the lower loudness that a difference must exceed to be heard.
const DEADZONE: f64 = 0.25;
/// Weights of the two disturbances in PESQ.
const SYMMETRIC: f64 = 0.1;
const ASYMMETRIC: f64 = 0.0309;
/// Powers to which the asymmetry is blind, its exponent, and where it begins and ends.
const ASYMMETRY_FLOOR: f64 = 50.0;
const ASYMMETRY_EXPONENT: f64 = 1.2;
const ASYMMETRY_RANGE: [f64; 2] = [3.0, 12.0];
/// Keeps the slope of the root finite where nothing is heard.
const ROOT_FLOOR: f64 = 1e-4;

/// The ear.
#[derive(Clone, Debug)]
pub struct Ear {
    bands: Vec<Hearing>,
    n_bins: usize,
    /// Bark of all bands.
    width: f64,
}

/// One band.
#[derive(Clone, Debug)]
struct Hearing {
    bins: Band,
    /// Power that is just heard in quiet.
    threshold: f64,
    /// Loudness, sone per Bark, per unit of the bent ratio of power and threshold.
    scale: f64,
}

/// Buffers of [`Ear::frame`].
#[derive(Default)]
pub(crate) struct Hearings {
    /// Of each band the slopes of the two disturbances by its power.
    heard: Vec<[f64; 2]>,
    /// Of each bin that of both by its power.
    slopes: Vec<f32>,
}

impl Hearing {
    /// Loudness in sone per Bark, and its slope.
    fn loudness(&self, power: f64) -> (f64, f64) {
        let ratio = 0.5 + 0.5 * power / self.threshold;
        let raised = ratio.powf(EXPONENT);
        (self.scale * (raised - 1.0), self.scale * EXPONENT * raised / ratio * 0.5 / self.threshold)
    }
}

impl Ear {
    /// An ear for spectra of `window_len` samples, see [`super::Stft::unit_gain`].
    ///
    /// # Errors
    /// [`Error::Config`] for a window without frequencies.
    pub fn new(sample_rate: u32, window_len: usize) -> Result<Self> {
        if window_len < 2 || sample_rate == 0 {
            return Err(Error::config("loss.loudness", "needs a window and a rate"));
        }
        let n_bins = window_len / 2 + 1;
        let spacing = f64::from(sample_rate) / window_len as f64;
        let top = bark(f64::from(sample_rate) / 2.0);
        let n_bands = (top / BAND_BARK).floor().max(1.0) as usize;
        let width = top / n_bands as f64;
        let band = |band_idx: usize| {
            let [low, high] = [0, 1].map(|i| hertz(width * (band_idx + i) as f64));
            // A bin stands for the frequencies around it; a band takes the part that it covers.
            let share = |bin: usize| {
                let (from, to) = ((bin as f64 - 0.5) * spacing, (bin as f64 + 0.5) * spacing);
                (((to.min(high) - from.max(low)) / spacing).max(0.0) / n_bins as f64) as f32
            };
            let first = (0..n_bins).find(|&bin| share(bin) > 0.0).unwrap_or(0);
            let weights = (first..n_bins).map(share).take_while(|&share| share > 0.0).collect();
            let threshold = 10_f64.powf(0.1 * threshold_in_quiet(hertz(width * (band_idx as f64 + 0.5))));
            let scale = (threshold / 0.5).powf(EXPONENT);
            Hearing { bins: Band { first, weights }, threshold, scale }
        };
        let mut bands: Vec<Hearing> = (0..n_bands).map(band).collect();
        // A tone of 1 kHz at 40 dB has a loudness of one sone.
        let reference = ((bark(1000.0) / width) as usize).min(n_bands - 1);
        let sone = bands[reference].loudness(1e4).0 * width;
        bands.iter_mut().for_each(|band| band.scale /= sone);
        Ok(Self { bands, n_bins, width: width * n_bands as f64 })
    }

    /// The factor for powers at which `target` has its level.
    pub(crate) fn gain(target: &[f32]) -> f64 {
        let sum: f64 = target.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        10_f64.powf(0.1 * LEVEL) / (sum / target.len().max(1) as f64).max(SILENCE)
    }

    /// The disturbance in a frame, and its gradient in place of the spectrum `xs`.
    pub(crate) fn frame(
        &self,
        xs: &mut [Complex32],
        ys: &[Complex32],
        gain: f64,
        memory: &mut Hearings,
    ) -> f64 {
        let step = self.width / self.bands.len() as f64;
        let power = |spectrum: &[Complex32], band: &Hearing| -> f64 {
            let pairs = spectrum[band.bins.first..].iter().zip(&band.bins.weights);
            gain * pairs.map(|(x, w)| f64::from(x.norm_sqr() * w)).sum::<f64>()
        };
        let Hearings { heard, slopes } = memory;
        heard.clear();
        let (mut squares, mut asymmetric) = (ROOT_FLOOR, 0.0);
        for band in &self.bands {
            let (px, py) = (power(xs, band), power(ys, band));
            let ((lx, slope), (ly, _)) = (band.loudness(px), band.loudness(py));
            let difference = lx - ly;
            let beyond = difference.abs() - DEADZONE * lx.min(ly).max(0.0);
            if beyond <= 0.0 {
                heard.push([0.0; 2]);
                continue;
            }
            // Of what is heard, by the loudness of the decoded audio.
            let by_loudness = match difference < 0.0 {
                true if lx > 0.0 => -1.0 - DEADZONE,
                true => -1.0,
                false => 1.0,
            };
            let (factor, factor_slope) = asymmetry(px, py);
            squares += beyond * beyond;
            asymmetric += beyond * factor;
            let of_asymmetric = by_loudness * slope * factor + beyond * factor_slope;
            heard.push([beyond * by_loudness * slope, of_asymmetric]);
        }
        let root = (squares * step * self.width).sqrt();
        slopes.clear();
        slopes.resize(xs.len(), 0.0);
        for (band, [of_squares, of_asymmetric]) in self.bands.iter().zip(heard.iter()) {
            let by_power =
                SYMMETRIC * of_squares * step * self.width / root + ASYMMETRIC * step * of_asymmetric;
            let by_power = (2.0 * gain * by_power) as f32;
            let bins = slopes[band.bins.first..].iter_mut().zip(&band.bins.weights);
            bins.for_each(|(sum, w)| *sum += by_power * w);
        }
        xs.iter_mut().zip(slopes.iter()).for_each(|(x, &slope)| *x *= slope);
        SYMMETRIC * (root - self.silence()) + ASYMMETRIC * step * asymmetric
    }

    /// What the floor of the root adds where nothing is heard.
    fn silence(&self) -> f64 {
        (ROOT_FLOOR * self.width * self.width / self.bands.len() as f64).sqrt()
    }

    /// The mean over frames of spectra `[n_signals, n_frames, n_bins, 2]` in candle operations; `gain`
    /// `[n_signals, 1, 1]`.
    pub(crate) fn plain(&self, xs: &Tensor, ys: &Tensor, gain: &Tensor) -> Result<Tensor> {
        let (device, dtype, n_bands) = (xs.device(), xs.dtype(), self.bands.len());
        let bins: Vec<&Band> = self.bands.iter().map(|band| &band.bins).collect();
        let matrix = matrix(&bins, self.n_bins, device, dtype)?;
        let row = |f: fn(&Hearing) -> f64| -> Result<Tensor> {
            Ok(Tensor::from_iter(self.bands.iter().map(f), device)?.to_dtype(dtype)?)
        };
        let (thresholds, scales) = (row(|band| band.threshold)?, row(|band| band.scale)?);
        let power = |xs: &Tensor| -> Result<Tensor> {
            Ok(xs.sqr()?.sum(3)?.broadcast_matmul(&matrix)?.broadcast_mul(gain)?)
        };
        let raised = |xs: &Tensor, exponent: f64| -> Result<Tensor> { Ok((xs.log()? * exponent)?.exp()?) };
        let loudness = |power: &Tensor| -> Result<Tensor> {
            let ratio = ((power.broadcast_div(&thresholds)? * 0.5)? + 0.5)?;
            Ok((raised(&ratio, EXPONENT)? - 1.0)?.broadcast_mul(&scales)?)
        };
        let (px, py) = (power(xs)?, power(ys)?);
        let (lx, ly) = (loudness(&px)?, loudness(&py)?);
        let heard = ((&lx - &ly)?.abs()? - (lx.minimum(&ly)?.relu()? * DEADZONE)?)?.relu()?;
        let [from, to] = ASYMMETRY_RANGE;
        let ratio = ((px + ASYMMETRY_FLOOR)? / (py + ASYMMETRY_FLOOR)?)?;
        let factor = (raised(&ratio, ASYMMETRY_EXPONENT)? - from)?.clamp(0.0, to - from)?;
        let factor = (factor * (to / (to - from)))?;
        let step = self.width / n_bands as f64;
        let root = ((heard.sqr()?.sum(D::Minus1)? + ROOT_FLOOR)? * (step * self.width))?.sqrt()?;
        let asymmetric = (heard * factor)?.sum(D::Minus1)?;
        let root = (root - self.silence())?;
        Ok(((root * SYMMETRIC)? + (asymmetric * (ASYMMETRIC * step))?)?.mean_all()?)
    }

    /// As [`Ear::gain`] for all of `targets`, `[n_signals, n_samples]`.
    pub(crate) fn gains(targets: &Tensor, dtype: DType) -> Result<Tensor> {
        let squares = targets.to_dtype(dtype)?.sqr()?.mean_keepdim(1)?.maximum(SILENCE)?;
        Ok((squares.recip()? * 10_f64.powf(0.1 * LEVEL))?.unsqueeze(2)?)
    }
}

/// How much more power disturbs that the target lacks, and its slope by the decoded power.
///
/// The recommendation's factor jumps from nothing to 3; here it grows from nothing.
fn asymmetry(px: f64, py: f64) -> (f64, f64) {
    let [from, to] = ASYMMETRY_RANGE;
    let stretch = to / (to - from);
    let ratio = ((px + ASYMMETRY_FLOOR) / (py + ASYMMETRY_FLOOR)).powf(ASYMMETRY_EXPONENT);
    match ratio {
        _ if ratio <= from => (0.0, 0.0),
        _ if ratio >= to => (to, 0.0),
        _ => (stretch * (ratio - from), stretch * ASYMMETRY_EXPONENT * ratio / (px + ASYMMETRY_FLOOR)),
    }
}

/// Traunmüller's scale, from 0 at 39 Hz on; below it is 0.
fn bark(frequency: f64) -> f64 {
    (26.81 * frequency / (1960.0 + frequency) - 0.53).max(0.0)
}

/// The inverse of [`bark`]; 0 Bark begins at 0 Hz.
fn hertz(bark: f64) -> f64 {
    if bark <= 0.0 { 0.0 } else { 1960.0 * (bark + 0.53) / (26.28 - bark) }
}

/// dB.
fn threshold_in_quiet(frequency: f64) -> f64 {
    let f = frequency.max(20.0) / 1000.0;
    3.64 * f.powf(-0.8) - 6.5 * (-0.6 * (f - 3.3).powi(2)).exp() + 1e-3 * f.powi(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_take_every_frequency_once() {
        let ear = Ear::new(16_000, 512).unwrap();
        assert_eq!(ear.bands.len(), 47);
        let mut sums = vec![0.0; ear.n_bins];
        for band in &ear.bands {
            for (i, w) in band.bins.weights.iter().enumerate() {
                sums[band.bins.first + i] += w * ear.n_bins as f32;
            }
        }
        // The first and the last bin reach beyond the spectrum by half.
        assert!(sums[1..ear.n_bins - 1].iter().all(|sum| (sum - 1.0).abs() < 1e-4), "{sums:?}");
        assert!((sums[0] - 0.5).abs() < 1e-4 && (sums[ear.n_bins - 1] - 0.5).abs() < 1e-4);
    }

    #[test]
    fn loudness_grows_by_half_for_six_decibels_and_is_one_sone_at_forty() {
        let ear = Ear::new(16_000, 512).unwrap();
        let step = ear.width / ear.bands.len() as f64;
        let band = &ear.bands[(bark(1000.0) / step) as usize];
        assert!((band.loudness(1e4).0 * step - 1.0).abs() < 1e-9);
        // Zwicker's exponent: four times the power, 4^0.23.
        let growth = band.loudness(4e8).0 / band.loudness(1e8).0;
        assert!((growth - 4_f64.powf(EXPONENT)).abs() < 0.02, "{growth}");
    }

    #[test]
    fn small_differences_are_not_heard_and_added_power_weighs_more() {
        let ear = Ear::new(16_000, 64).unwrap();
        let spectrum = |scale: f32| vec![Complex32::new(scale, 0.0); ear.n_bins];
        let disturbance = |scale: f32| {
            let gain = 10_f64.powf(0.1 * LEVEL);
            ear.frame(&mut spectrum(scale), &spectrum(1.0), gain, &mut Hearings::default())
        };
        assert!(disturbance(1.2).abs() < 1e-9);
        assert!(disturbance(4.0) > 3.0 * disturbance(0.25), "{} {}", disturbance(4.0), disturbance(0.25));
    }
}
