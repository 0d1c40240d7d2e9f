//! A pair at the rates that metrics need.

use crate::error::{Error, Result, Signal};
use crate::metric::Metric;
use crate::pair::is_silent;
use codec_core::{AudioBuffer, AudioSpec};
use std::fmt;

/// A pair with the versions of it that some metrics need, each made once.
///
/// How audio is resampled and mixed is the caller's: this crate does neither. Nothing is ever resampled
/// upwards: what lies above the old Nyquist frequency would be missing, and be judged.
///
/// ```
/// use codec_core::AudioBuffer;
/// use codec_metrics::{Metric, Versions};
/// let sound = |t: usize| (t as f32 * 0.05).sin() * (t as f32 * 0.0007).sin();
/// let reference = AudioBuffer::mono(16_000, (0..16_000).map(sound).collect())?;
/// let degraded = AudioBuffer::mono(16_000, (0..16_000).map(|t| 0.5 * sound(t)).collect())?;
/// // Takes every second sample, for want of a resampler.
/// let mut versions = Versions::new(reference, degraded, |audio, spec| {
///     let step = (audio.spec().sample_rate / spec.sample_rate) as usize;
///     let samples = audio.channel(0).unwrap_or_default();
///     AudioBuffer::mono(spec.sample_rate, samples.iter().step_by(step).copied().collect())
/// });
/// assert!(versions.judge(Metric::SiSdr)? > 60.0);
/// assert!(versions.judge(Metric::PesqNarrowBand).is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Versions<C> {
    convert: C,
    versions: Vec<(AudioBuffer, AudioBuffer)>,
}

impl<C> fmt::Debug for Versions<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let specs: Vec<AudioSpec> = self.versions.iter().map(|(reference, _)| reference.spec()).collect();
        f.debug_struct("Versions").field("specs", &specs).finish_non_exhaustive()
    }
}

impl<C, E> Versions<C>
where
    C: Fn(&AudioBuffer, AudioSpec) -> Result<AudioBuffer, E>,
    E: fmt::Display,
{
    /// Takes a pair of one rate, with one number of channels and one length.
    pub fn new(reference: AudioBuffer, degraded: AudioBuffer, convert: C) -> Self {
        Self { convert, versions: vec![(reference, degraded)] }
    }

    /// Judges the pair at the rate and with the channels that the metric needs.
    ///
    /// # Errors
    /// [`Error::RateTooLow`] when the pair has not enough to be judged, [`Error::Silent`] when it would have to be
    /// converted and either signal is constant, [`Error::Failed`] when it could not be converted, and those of
    /// [`Metric::judge`].
    pub fn judge(&mut self, metric: Metric) -> Result<f64> {
        let needs = metric.describe();
        let own = self.versions[0].0.spec();
        let spec = AudioSpec {
            sample_rate: needs.sample_rate.unwrap_or(own.sample_rate),
            channels: if needs.is_mono { 1 } else { own.channels },
        };
        if spec.sample_rate > own.sample_rate {
            let (needed, actual) = (spec.sample_rate, own.sample_rate);
            return Err(Error::RateTooLow { metric: needs.label, needed, actual });
        }
        let known = self.versions.iter().position(|(reference, _)| reference.spec() == spec);
        let version_idx = match known {
            Some(idx) => idx,
            None => {
                let convert = |audio: &AudioBuffer| {
                    (self.convert)(audio, spec)
                        .map_err(|error| Error::Failed { metric: needs.label, reason: error.to_string() })
                };
                let (reference, degraded) = &self.versions[0];
                // Filters ring at the ends of a constant, which would then seem audible.
                for (audio, signal) in [(reference, Signal::Reference), (degraded, Signal::Degraded)] {
                    if audio.channels().all(is_silent) {
                        return Err(Error::Silent { signal });
                    }
                }
                let version = (convert(reference)?, convert(degraded)?);
                self.versions.push(version);
                self.versions.len() - 1
            }
        };
        let (reference, degraded) = &self.versions[version_idx];
        metric.judge(reference, degraded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::speech;
    use std::cell::Cell;

    #[test]
    fn a_version_is_made_once_and_never_upwards() {
        let audio = |rate| AudioBuffer::mono(rate, speech(rate, 1.0)).unwrap();
        let n_made = Cell::new(0);
        let convert = |_: &AudioBuffer, spec: AudioSpec| {
            n_made.set(n_made.get() + 1);
            Ok::<_, Error>(audio(spec.sample_rate))
        };
        let mut versions = Versions::new(audio(8_000), audio(8_000), convert);
        assert!(versions.judge(Metric::PesqNarrowBand).unwrap() > 4.0);
        assert_eq!(
            versions.judge(Metric::PesqWideBand),
            Err(Error::RateTooLow {
                metric: "PESQ-WB (P.862.2 without Corrigendum 2)",
                needed: 16_000,
                actual: 8_000
            })
        );
        assert_eq!(n_made.get(), 0);
        let mut versions = Versions::new(audio(16_000), audio(16_000), convert);
        for _ in 0..2 {
            assert!(versions.judge(Metric::PesqNarrowBand).is_ok());
            assert!(versions.judge(Metric::Stoi).is_ok());
        }
        assert_eq!(n_made.get(), 2, "the reference and the degraded signal");
        // The made-up version of the constant is audible, as a resampler's is at its ends.
        let constant = AudioBuffer::mono(16_000, vec![0.5; 16_000]).unwrap();
        let mut versions = Versions::new(constant.clone(), audio(16_000), convert);
        assert_eq!(versions.judge(Metric::PesqNarrowBand), Err(Error::Silent { signal: Signal::Reference }));
        let mut versions = Versions::new(audio(16_000), constant, convert);
        assert_eq!(versions.judge(Metric::PesqNarrowBand), Err(Error::Silent { signal: Signal::Degraded }));
        let broken = |_: &AudioBuffer, _: AudioSpec| Err::<AudioBuffer, _>("no resampler");
        let mut versions = Versions::new(audio(16_000), audio(16_000), broken);
        assert!(matches!(versions.judge(Metric::PesqNarrowBand), Err(Error::Failed { .. })));
    }
}
