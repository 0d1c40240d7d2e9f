//! Audio in memory: planar f32.

use crate::error::{Error, Result};
use std::ops::Range;

/// Sample rate and number of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AudioSpec {
    /// The sample rate in Hz.
    pub sample_rate: u32,
    /// The number of channels.
    pub channels: u16,
}

impl std::fmt::Display for AudioSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} Hz, {} channel(s)", self.sample_rate, self.channels)
    }
}

/// Audio samples, planar, nominally in [-1, 1].
///
/// # Shapes
/// `[channels, n_samples]`; `n_samples` is per channel.
///
/// ```
/// use codec_core::{AudioBuffer, AudioSpec};
/// let spec = AudioSpec { sample_rate: 16_000, channels: 2 };
/// let audio = AudioBuffer::from_planar(spec, vec![vec![0.0, 0.5], vec![0.25, -0.5]])?;
/// assert_eq!(audio.n_samples(), 2);
/// assert_eq!(audio.channel(1), Some([0.25, -0.5].as_slice()));
/// # Ok::<(), codec_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct AudioBuffer {
    spec: AudioSpec,
    channels: Vec<Vec<f32>>,
}

impl AudioBuffer {
    /// A buffer without samples.
    ///
    /// # Errors
    /// [`Error::Range`] when the rate or the number of channels is zero.
    pub fn empty(spec: AudioSpec) -> Result<Self> {
        check_spec(spec)?;
        Ok(Self { spec, channels: vec![Vec::new(); usize::from(spec.channels)] })
    }

    /// Takes one vector of samples per channel.
    ///
    /// # Errors
    /// [`Error::Range`] when the rate or the number of channels is zero,
    /// [`Error::Shape`] when there are too few or too many channels or their lengths differ.
    pub fn from_planar(spec: AudioSpec, channels: Vec<Vec<f32>>) -> Result<Self> {
        check_spec(spec)?;
        let expected = usize::from(spec.channels);
        if channels.len() != expected {
            return Err(Error::Shape { what: "channels", expected, actual: channels.len() });
        }
        let n_samples = channels.first().map_or(0, Vec::len);
        if let Some(odd) = channels.iter().find(|c| c.len() != n_samples) {
            let what = "samples of a channel";
            return Err(Error::Shape { what, expected: n_samples, actual: odd.len() });
        }
        Ok(Self { spec, channels })
    }

    /// Takes one channel.
    ///
    /// # Errors
    /// [`Error::Range`] when the rate is zero.
    pub fn mono(sample_rate: u32, samples: Vec<f32>) -> Result<Self> {
        Self::from_planar(AudioSpec { sample_rate, channels: 1 }, vec![samples])
    }

    /// Splits interleaved samples, `[n_samples, channels]`.
    ///
    /// # Errors
    /// [`Error::Range`] when the rate or the number of channels is zero,
    /// [`Error::Shape`] when the last sample lacks channels.
    pub fn from_interleaved(spec: AudioSpec, samples: &[f32]) -> Result<Self> {
        let mut audio = Self::empty(spec)?;
        audio.append_interleaved(samples)?;
        Ok(audio)
    }

    /// Rate and channels.
    pub fn spec(&self) -> AudioSpec {
        self.spec
    }

    /// Samples per channel.
    pub fn n_samples(&self) -> usize {
        self.channels.first().map_or(0, Vec::len)
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.n_samples() == 0
    }

    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        self.n_samples() as f64 / f64::from(self.spec.sample_rate)
    }

    /// The samples of one channel, if there is such a channel.
    pub fn channel(&self, channel_idx: usize) -> Option<&[f32]> {
        self.channels.get(channel_idx).map(Vec::as_slice)
    }

    /// All channels in order.
    pub fn channels(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.channels.iter().map(Vec::as_slice)
    }

    /// Gives the channels away.
    pub fn into_channels(self) -> Vec<Vec<f32>> {
        self.channels
    }

    /// Samples in `[n_samples, channels]` order.
    pub fn to_interleaved(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n_samples() * self.channels.len()];
        self.write_interleaved(0, &mut out);
        out
    }

    /// Writes samples from `start` on to `out`, `[n, channels]`, as far as they go.
    pub fn write_interleaved(&self, start: usize, out: &mut [f32]) {
        let n_channels = self.channels.len();
        for (channel_idx, channel) in self.channels.iter().enumerate() {
            let places = out.iter_mut().skip(channel_idx).step_by(n_channels);
            let samples = channel.get(start..).unwrap_or_default();
            places.zip(samples).for_each(|(place, sample)| *place = *sample);
        }
    }

    /// Appends interleaved samples, `[n_samples, channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the last sample lacks channels; nothing is appended then.
    pub fn append_interleaved(&mut self, samples: &[f32]) -> Result<()> {
        let n_channels = self.channels.len();
        check_whole(samples, n_channels)?;
        for (channel_idx, channel) in self.channels.iter_mut().enumerate() {
            channel.extend(samples.iter().skip(channel_idx).step_by(n_channels));
        }
        Ok(())
    }

    /// Drops all samples and keeps their memory for others.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Copies a range of samples; what lies past the end is left out.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let end = range.end.min(self.n_samples());
        let start = range.start.min(end);
        let channels = self.channels.iter().map(|c| c[start..end].to_vec()).collect();
        Self { spec: self.spec, channels }
    }

    /// Appends samples of the same rate and channels.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the specs differ; nothing is appended then.
    pub fn append(&mut self, tail: &Self) -> Result<()> {
        if self.spec != tail.spec {
            return Err(Error::Mismatch {
                what: "audio",
                left: self.spec.to_string(),
                right: tail.spec.to_string(),
            });
        }
        for (channel, more) in self.channels.iter_mut().zip(&tail.channels) {
            channel.extend_from_slice(more);
        }
        Ok(())
    }

    /// Drops samples from the end until at most `n_samples` are left.
    pub fn truncate(&mut self, n_samples: usize) {
        for channel in &mut self.channels {
            channel.truncate(n_samples);
        }
    }
}

fn check_whole(samples: &[f32], n_channels: usize) -> Result<()> {
    match samples.len() % n_channels.max(1) {
        0 => Ok(()),
        over => Err(Error::Shape { what: "channels of the last sample", expected: n_channels, actual: over }),
    }
}

fn check_spec(spec: AudioSpec) -> Result<()> {
    if spec.sample_rate == 0 {
        let max = u64::from(u32::MAX);
        return Err(Error::Range { what: "sample rate in Hz", min: 1, max, actual: 0 });
    }
    if spec.channels == 0 {
        let max = u64::from(u16::MAX);
        return Err(Error::Range { what: "channels", min: 1, max, actual: 0 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stereo(n_samples: usize) -> AudioBuffer {
        let spec = AudioSpec { sample_rate: 8000, channels: 2 };
        let samples: Vec<f32> = (0..2 * n_samples).map(|i| i as f32).collect();
        AudioBuffer::from_interleaved(spec, &samples).unwrap()
    }

    #[test]
    fn interleaving_goes_both_ways() {
        let audio = stereo(3);
        assert_eq!(audio.channel(0), Some([0.0, 2.0, 4.0].as_slice()));
        assert_eq!(audio.channel(1), Some([1.0, 3.0, 5.0].as_slice()));
        assert_eq!(audio.channel(2), None);
        assert_eq!(audio.to_interleaved(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(audio.seconds(), 3.0 / 8000.0);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let spec = |sample_rate, channels| AudioSpec { sample_rate, channels };
        assert!(matches!(AudioBuffer::empty(spec(0, 1)), Err(Error::Range { .. })));
        assert!(matches!(AudioBuffer::empty(spec(1, 0)), Err(Error::Range { .. })));
        let uneven = AudioBuffer::from_interleaved(spec(1, 2), &[0.0; 3]);
        assert!(matches!(uneven, Err(Error::Shape { expected: 2, actual: 1, .. })));
        let uneven = AudioBuffer::from_planar(spec(1, 2), vec![vec![0.0], vec![]]);
        assert!(matches!(uneven, Err(Error::Shape { expected: 1, actual: 0, .. })));
        let mut audio = stereo(2);
        let mono = AudioBuffer::mono(8000, vec![0.0]).unwrap();
        assert!(matches!(audio.append(&mono), Err(Error::Mismatch { .. })));
        assert_eq!(audio, stereo(2));
    }

    proptest! {
        #[test]
        fn any_range_can_be_asked_for(
            n_samples in 0_usize..20,
            start in prop_oneof![0_usize..25, Just(usize::MAX)],
            end in prop_oneof![0_usize..25, Just(usize::MAX)],
        ) {
            let audio = stereo(n_samples);
            let slice = audio.slice(start..end);
            let expected = audio.channel(1).unwrap().iter().take(end).skip(start).copied().collect::<Vec<_>>();
            prop_assert_eq!(slice.channel(1).unwrap(), expected);
            let mut joined = audio.slice(0..start);
            joined.append(&audio.slice(start..usize::MAX)).unwrap();
            prop_assert_eq!(&joined, &audio);
            joined.truncate(end);
            prop_assert_eq!(joined, audio.slice(0..end));
        }

        #[test]
        fn nothing_panics(
            (sample_rate, channels) in any::<(u32, u16)>(),
            lens in prop::collection::vec(0_usize..4, 0..4),
            samples in prop::collection::vec(any::<f32>(), 0..20),
        ) {
            let spec = AudioSpec { sample_rate, channels };
            let planar = lens.iter().map(|&n| vec![0.5; n]).collect();
            let small = AudioSpec { channels: channels % 4, ..spec };
            let made = [
                AudioBuffer::empty(spec),
                AudioBuffer::from_planar(small, planar),
                AudioBuffer::mono(sample_rate, samples.clone()),
                AudioBuffer::from_interleaved(spec, &samples),
                AudioBuffer::from_interleaved(small, &samples),
            ];
            for audio in made.into_iter().flatten() {
                prop_assert_eq!(audio.channels().len(), usize::from(audio.spec().channels));
                prop_assert!(audio.channels().all(|channel| channel.len() == audio.n_samples()));
                prop_assert_eq!(audio.to_interleaved().len(), audio.n_samples() * audio.channels().len());
                prop_assert!(audio.seconds().is_finite());
            }
        }
    }

    #[test]
    fn interleaved_samples_go_both_ways() {
        let spec = AudioSpec { sample_rate: 8_000, channels: 2 };
        let mut audio = AudioBuffer::from_interleaved(spec, &[1.0, 2.0]).unwrap();
        audio.append_interleaved(&[3.0, 4.0, 5.0, 6.0]).unwrap();
        assert!(matches!(audio.append_interleaved(&[7.0]), Err(Error::Shape { .. })));
        assert_eq!(audio.to_interleaved(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut out = [0.0; 6];
        audio.write_interleaved(1, &mut out);
        assert_eq!(out, [3.0, 4.0, 5.0, 6.0, 0.0, 0.0]);
        audio.write_interleaved(9, &mut out);
        assert_eq!(out[0], 3.0);
        audio.clear();
        assert!(audio.is_empty() && audio.spec() == spec);
    }
}
