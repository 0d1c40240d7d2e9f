//! Two signals that can be compared: checked once, so that no metric has to.

use crate::error::{Error, Result, Signal};

/// A reference and its degraded version: one channel each, of the same length and rate, finite.
///
/// Both are nominally in [-1, 1].
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    reference: &'a [f32],
    degraded: &'a [f32],
    sample_rate: u32,
}

impl<'a> Pair<'a> {
    /// Takes two signals of one rate in Hz, which must be aligned in time (see [`align`](crate::align)).
    ///
    /// # Errors
    /// [`Error::Rate`] when the rate is zero, [`Error::Length`] when the lengths differ,
    /// [`Error::TooShort`] when there is no sample, [`Error::NotFinite`] at the first sample that is no
    /// number.
    pub fn new(reference: &'a [f32], degraded: &'a [f32], sample_rate: u32) -> Result<Self> {
        if sample_rate == 0 {
            return Err(Error::Rate { metric: "a comparison", needed: "at least 1 Hz", actual: 0 });
        }
        if reference.len() != degraded.len() {
            return Err(Error::Length { reference: reference.len(), degraded: degraded.len() });
        }
        if reference.is_empty() {
            return Err(too_short("a comparison", 1, 0));
        }
        check_finite(reference, Signal::Reference)?;
        check_finite(degraded, Signal::Degraded)?;
        Ok(Self { reference, degraded, sample_rate })
    }

    /// The original.
    pub fn reference(&self) -> &'a [f32] {
        self.reference
    }

    /// What became of it.
    pub fn degraded(&self) -> &'a [f32] {
        self.degraded
    }

    /// The rate in Hz.
    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// Samples of each signal, at least one.
    pub fn n_samples(&self) -> usize {
        self.reference.len()
    }

    /// Refuses a pair with a constant signal, for metrics that would call it perfect or divide by zero.
    pub(crate) fn check_audible(&self) -> Result<()> {
        for (samples, signal) in [(self.reference, Signal::Reference), (self.degraded, Signal::Degraded)] {
            if is_silent(samples) {
                return Err(Error::Silent { signal });
            }
        }
        Ok(())
    }

    pub(crate) fn check_length(&self, metric: &'static str, needed: usize) -> Result<()> {
        if self.n_samples() < needed {
            return Err(too_short(metric, needed, self.n_samples()));
        }
        Ok(())
    }
}

/// Whether no sample differs from the first; nothing is silent too.
pub(crate) fn is_silent(samples: &[f32]) -> bool {
    samples.iter().all(|x| *x == samples[0])
}

pub(crate) fn check_finite(samples: &[f32], signal: Signal) -> Result<()> {
    match samples.iter().position(|x| !x.is_finite()) {
        Some(index) => Err(Error::NotFinite { signal, index }),
        None => Ok(()),
    }
}

fn too_short(metric: &'static str, needed: usize, actual: usize) -> Error {
    Error::TooShort { metric, unit: "samples", needed, actual }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_compared_is_named() {
        let new =
            |reference: &[f32], degraded: &[f32], rate| Pair::new(reference, degraded, rate).map(|_| ());
        assert!(matches!(new(&[0.0], &[0.0], 0), Err(Error::Rate { actual: 0, .. })));
        assert_eq!(new(&[0.0; 3], &[0.0; 2], 8000), Err(Error::Length { reference: 3, degraded: 2 }));
        assert!(matches!(new(&[], &[], 8000), Err(Error::TooShort { needed: 1, actual: 0, .. })));
        let (signal, index) = (Signal::Reference, 1);
        assert_eq!(new(&[0.0, f32::NAN], &[0.0; 2], 8000), Err(Error::NotFinite { signal, index }));
        let (signal, index) = (Signal::Degraded, 0);
        assert_eq!(new(&[0.0; 2], &[f32::INFINITY, 0.0], 8000), Err(Error::NotFinite { signal, index }));
    }

    #[test]
    fn a_constant_is_silent() {
        let silent = |degraded: &[f32]| Pair::new(&[0.5, 0.0], degraded, 8000).unwrap().check_audible();
        assert_eq!(silent(&[0.25, 0.25]), Err(Error::Silent { signal: Signal::Degraded }));
        assert_eq!(silent(&[0.0, 0.0]), Err(Error::Silent { signal: Signal::Degraded }));
        assert_eq!(silent(&[0.0, 1e-30]), Ok(()));
    }
}
