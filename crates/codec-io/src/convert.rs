//! From the audio of a file to the audio that a model codes: channels and rate, piece by piece.

use crate::error::Result;
use crate::mix;
use crate::resample::Resampler;
use codec_core::{AudioBuffer, AudioSpec};

/// Changes channels, then the rate, where they differ.
///
/// ```
/// use codec_core::{AudioBuffer, AudioSpec};
/// use codec_io::Converter;
/// let spec = |sample_rate, channels| AudioSpec { sample_rate, channels };
/// let stereo = AudioBuffer::from_planar(spec(48_000, 2), vec![vec![0.5; 480], vec![0.5; 480]])?;
/// let mono = Converter::whole(&stereo, spec(16_000, 1))?;
/// assert_eq!((mono.spec(), mono.n_samples()), (spec(16_000, 1), 160));
/// # Ok::<(), codec_io::Error>(())
/// ```
#[derive(Debug)]
pub struct Converter {
    to: AudioSpec,
    resampler: Option<Resampler>,
}

impl Converter {
    /// Starts a conversion.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) when the two rates have no ratio that the resampler supports.
    pub fn new(from: AudioSpec, to: AudioSpec) -> Result<Self> {
        let resampler = (from.sample_rate != to.sample_rate)
            .then(|| Resampler::new(from.sample_rate, to.sample_rate, to.channels))
            .transpose()?;
        Ok(Self { to, resampler })
    }

    /// What the conversion does, in words; `None` when it does nothing.
    pub fn describe(from: AudioSpec, to: AudioSpec) -> Option<String> {
        let rate = (from.sample_rate != to.sample_rate)
            .then(|| format!("resampled from {} Hz to {} Hz", from.sample_rate, to.sample_rate));
        let channels = (from.channels != to.channels)
            .then(|| format!("mixed from {} to {} channel(s)", from.channels, to.channels));
        let steps: Vec<String> = channels.into_iter().chain(rate).collect();
        (!steps.is_empty()).then(|| steps.join(", "))
    }

    /// Takes a piece and gives what is complete.
    ///
    /// # Errors
    /// [`Error::Mix`](crate::Error::Mix) when there is no one way to change the channels.
    pub fn push(&mut self, piece: &AudioBuffer) -> Result<AudioBuffer> {
        let mixed = mix::to_channels(piece, self.to.channels)?;
        match &mut self.resampler {
            Some(resampler) => resampler.push(&mixed),
            None => Ok(mixed),
        }
    }

    /// Gives the rest.
    ///
    /// # Errors
    /// When the arithmetic of the resampler refuses.
    pub fn finish(self) -> Result<AudioBuffer> {
        match self.resampler {
            Some(resampler) => resampler.finish(),
            None => Ok(AudioBuffer::empty(self.to)?),
        }
    }

    /// Converts a whole clip.
    ///
    /// # Errors
    /// As [`Converter::new`], [`Converter::push`] and [`Converter::finish`].
    pub fn whole(audio: &AudioBuffer, to: AudioSpec) -> Result<AudioBuffer> {
        let mut converter = Self::new(audio.spec(), to)?;
        let mut converted = converter.push(audio)?;
        converted.append(&converter.finish()?)?;
        Ok(converted)
    }
}
