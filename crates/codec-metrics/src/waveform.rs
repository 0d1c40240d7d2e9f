//! Measures on samples: SI-SDR, SNR, L1.
//!
//! None of them knows how we hear: a delay, a phase or a filter that nobody notices ruins them, and noise
//! where it hurts costs them no more than noise that is masked.

use crate::error::{Error, Result, Signal};
use crate::pair::Pair;

/// Ratios end here in both directions, in dB; f32 samples hold no more.
const MAX_DECIBELS: f64 = 100.0;

/// Scale-invariant signal-to-distortion ratio in dB, -100 to 100, higher is better.
///
/// Gain, polarity and an offset do not matter, time alignment does: a codec that does not keep phases
/// scores badly however it sounds.
///
/// # Source
/// As [`SiSdr`]; equals `audiotools.metrics.distance.SISDRLoss` (descript-audiotools 0.7.2) with its sign
/// turned, but for the 1e-8 that the latter adds to the ratio.
///
/// # Errors
/// [`Error::Silent`] when either signal is constant.
pub fn si_sdr(pair: &Pair<'_>) -> Result<f64> {
    pair.check_audible()?;
    let mut sums = SiSdr::default();
    sums.push(pair.reference(), pair.degraded())?;
    // What differs from a constant by less than rounding is silent as well.
    sums.decibels().ok_or(Error::Silent { signal: Signal::Degraded })
}

/// Signal-to-noise ratio in dB, -100 to 100, higher is better: the energy of the reference over that of the
/// difference.
///
/// Gain and alignment matter; identical signals have 100 dB.
///
/// # Source
/// The definition, `10 log10(sum r^2 / sum (r - d)^2)` over the whole signal; not the segmental SNR of speech coding.
///
/// # Errors
/// [`Error::Silent`] when the reference is constant.
pub fn snr(pair: &Pair<'_>) -> Result<f64> {
    if crate::pair::is_silent(pair.reference()) {
        return Err(Error::Silent { signal: Signal::Reference });
    }
    let (mut signal, mut noise) = (0.0, 0.0);
    for (&r, &d) in pair.reference().iter().zip(pair.degraded()) {
        let (r, d) = (f64::from(r), f64::from(d));
        signal += r * r;
        noise += (r - d) * (r - d);
    }
    Ok(decibels(signal, noise))
}

/// Mean absolute difference of the samples, 0 and up, lower is better.
///
/// # Source
/// `audiotools.metrics.distance.L1Loss` (descript-audiotools 0.7.2).
pub fn l1(pair: &Pair<'_>) -> f64 {
    let differences = pair.reference().iter().zip(pair.degraded());
    let sum: f64 = differences.map(|(&r, &d)| (f64::from(r) - f64::from(d)).abs()).sum();
    sum / pair.n_samples() as f64
}

fn decibels(signal: f64, noise: f64) -> f64 {
    if noise == 0.0 {
        return MAX_DECIBELS;
    }
    (10.0 * (signal / noise).log10()).clamp(-MAX_DECIBELS, MAX_DECIBELS)
}

/// Sums that give the SI-SDR of an estimate against its reference, over pieces.
///
/// # Source
/// Le Roux et al. 2019, "SDR – half-baked or well done?", equation 5, on signals without their mean.
///
/// ```
/// use codec_metrics::SiSdr;
/// let mut sums = SiSdr::default();
/// sums.push(&[1.0, -1.0, 0.5, -0.5], &[2.0, -2.0, 1.0, -0.8])?;
/// assert!(sums.decibels().is_some_and(|db| db > 20.0));
/// # Ok::<(), codec_metrics::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SiSdr {
    n_samples: f64,
    reference: f64,
    estimate: f64,
    reference_squared: f64,
    estimate_squared: f64,
    product: f64,
}

impl SiSdr {
    /// Takes the next samples of both signals, which must be aligned in time.
    ///
    /// # Errors
    /// [`Error::Length`] when the lengths differ; nothing is taken then.
    pub fn push(&mut self, reference: &[f32], estimate: &[f32]) -> Result<()> {
        if reference.len() != estimate.len() {
            return Err(Error::Length { reference: reference.len(), degraded: estimate.len() });
        }
        for (&r, &e) in reference.iter().zip(estimate) {
            let (r, e) = (f64::from(r), f64::from(e));
            self.reference += r;
            self.estimate += e;
            self.reference_squared += r * r;
            self.estimate_squared += e * e;
            self.product += r * e;
        }
        self.n_samples += reference.len() as f64;
        Ok(())
    }

    /// The ratio in dB, between -100 and 100; `None` when either signal is constant or not finite.
    pub fn decibels(&self) -> Option<f64> {
        let centred = |sum: f64, a: f64, b: f64| sum - a * b / self.n_samples.max(1.0);
        let reference = centred(self.reference_squared, self.reference, self.reference);
        let estimate = centred(self.estimate_squared, self.estimate, self.estimate);
        let product = centred(self.product, self.reference, self.estimate);
        // What remains of a constant signal after rounding.
        let nothing = |centred: f64, whole: f64| centred.is_nan() || centred <= whole * 1e-12;
        if nothing(reference, self.reference_squared) || nothing(estimate, self.estimate_squared) {
            return None;
        }
        let target = product * product / reference;
        let distortion = (estimate - target).max(0.0);
        (target.is_finite() && distortion.is_finite()).then(|| decibels(target, distortion))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(reference: &[f32], estimate: &[f32]) -> Option<f64> {
        let mut sums = SiSdr::default();
        sums.push(reference, estimate).unwrap();
        sums.decibels()
    }

    #[test]
    fn orthogonal_noise_at_a_tenth_is_20_db() {
        let reference: Vec<f32> = [1.0, 1.0, -1.0, -1.0].repeat(100);
        let noise = [0.1, -0.1, 0.1, -0.1].repeat(100);
        let estimate: Vec<f32> = reference.iter().zip(&noise).map(|(r, n)| 3.0 * (r + n) + 0.5).collect();
        let decibels = of(&reference, &estimate).unwrap();
        assert!((decibels - 20.0).abs() < 1e-4, "{decibels}");
    }

    #[test]
    fn silence_and_nonsense_have_no_ratio() {
        assert_eq!(of(&[], &[]), None);
        assert_eq!(of(&[0.0; 8], &[0.5; 8]), None);
        assert_eq!(of(&[0.1; 8], &[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]), None);
        assert_eq!(of(&[1.0, -1.0], &[f32::NAN, 0.0]), None);
        assert_eq!(of(&[1.0, -1.0], &[1.0, -1.0]), Some(100.0));
    }

    #[test]
    fn noise_and_difference_are_measured() {
        let reference: Vec<f32> = [0.5, 0.5, -0.5, -0.5].repeat(10);
        let degraded: Vec<f32> = reference.iter().map(|x| 1.5 * x).collect();
        let pair = Pair::new(&reference, &degraded, 8000).unwrap();
        assert!((snr(&pair).unwrap() - 6.020_599_913_279_624).abs() < 1e-12);
        assert_eq!(l1(&pair), 0.25);
        assert_eq!(si_sdr(&pair), Ok(100.0));
        let same = Pair::new(&reference, &reference, 8000).unwrap();
        assert_eq!((snr(&same), l1(&same)), (Ok(100.0), 0.0));
        let silent = [0.0; 40];
        let nothing = Pair::new(&reference, &silent, 8000).unwrap();
        assert_eq!(snr(&nothing), Ok(0.0));
        assert_eq!(si_sdr(&nothing), Err(Error::Silent { signal: Signal::Degraded }));
        let from_nothing = Pair::new(&silent, &reference, 8000).unwrap();
        assert_eq!(snr(&from_nothing), Err(Error::Silent { signal: Signal::Reference }));
    }

    #[test]
    fn pieces_give_the_same_bits() {
        let reference: Vec<f32> = (0..99).map(|i| (i as f32 * 0.37).sin()).collect();
        let estimate: Vec<f32> = (0..99).map(|i| (i as f32 * 0.38).sin()).collect();
        let mut sums = SiSdr::default();
        for range in [0..1, 1..50, 50..99] {
            sums.push(&reference[range.clone()], &estimate[range]).unwrap();
        }
        assert_eq!(sums.decibels(), of(&reference, &estimate));
    }
}
