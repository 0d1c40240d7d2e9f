//! From the audio of a file to the audio that a model codes: channels and rate, piece by piece.

use anyhow::Result;
use codec_core::{AudioBuffer, AudioSpec};
use codec_io::mix;
use codec_io::resample::Resampler;

/// Changes channels, then the rate, where they differ.
#[derive(Debug)]
pub(crate) struct Converter {
    to: AudioSpec,
    resampler: Option<Resampler>,
}

impl Converter {
    /// # Errors
    /// When the two rates have no ratio that the resampler supports.
    pub(crate) fn new(from: AudioSpec, to: AudioSpec) -> Result<Self> {
        let resampler = (from.sample_rate != to.sample_rate)
            .then(|| Resampler::new(from.sample_rate, to.sample_rate, to.channels))
            .transpose()?;
        Ok(Self { to, resampler })
    }

    /// What the conversion does, in words; `None` when it does nothing.
    pub(crate) fn describe(from: AudioSpec, to: AudioSpec) -> Option<String> {
        let rate = (from.sample_rate != to.sample_rate)
            .then(|| format!("resampled from {} Hz to {} Hz", from.sample_rate, to.sample_rate));
        let channels = (from.channels != to.channels)
            .then(|| format!("mixed from {} to {} channel(s)", from.channels, to.channels));
        let steps: Vec<String> = channels.into_iter().chain(rate).collect();
        (!steps.is_empty()).then(|| steps.join(", "))
    }

    /// Takes a piece and gives what is complete.
    pub(crate) fn push(&mut self, piece: &AudioBuffer) -> Result<AudioBuffer> {
        let mixed = mix::to_channels(piece, self.to.channels)?;
        match &mut self.resampler {
            Some(resampler) => Ok(resampler.push(&mixed)?),
            None => Ok(mixed),
        }
    }

    /// Gives the rest.
    pub(crate) fn finish(self) -> Result<AudioBuffer> {
        match self.resampler {
            Some(resampler) => Ok(resampler.finish()?),
            None => Ok(AudioBuffer::empty(self.to)?),
        }
    }
}
