//! Scale-invariant signal-to-distortion ratio, over pieces.

use crate::error::{Error, Result};

/// Sums that give the SI-SDR of an estimate against its reference.
///
/// # Source
/// Le Roux et al. 2019, "SDR – half-baked or well done?", equation 5, on signals without their mean.
///
/// ```
/// use codec_core::SiSdr;
/// let mut sums = SiSdr::default();
/// sums.push(&[1.0, -1.0, 0.5, -0.5], &[2.0, -2.0, 1.0, -0.8])?;
/// assert!(sums.decibels().is_some_and(|db| db > 20.0));
/// # Ok::<(), codec_core::Error>(())
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
    /// [`Error::Shape`] when the lengths differ; nothing is taken then.
    pub fn push(&mut self, reference: &[f32], estimate: &[f32]) -> Result<()> {
        if reference.len() != estimate.len() {
            let what = "samples of the estimate";
            return Err(Error::Shape { what, expected: reference.len(), actual: estimate.len() });
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
        let decibels = 10.0 * (target / distortion).log10();
        decibels
            .is_finite()
            .then_some(decibels)
            .or((target > 0.0).then_some(100.0))
            .map(|db| db.clamp(-100.0, 100.0))
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
