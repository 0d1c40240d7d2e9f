//! Changing the number of channels, only when asked.

use crate::error::{Error, Result};
use codec_core::{AudioBuffer, AudioSpec};

/// The mean of all channels, in f64, rounded once.
///
/// # Errors
/// None in practice; the new buffer is checked like any other.
pub fn to_mono(audio: &AudioBuffer) -> Result<AudioBuffer> {
    let spec = audio.spec();
    if spec.channels == 1 {
        return Ok(audio.clone());
    }
    let mut sums = vec![0.0f64; audio.n_samples()];
    for channel in audio.channels() {
        for (sum, &x) in sums.iter_mut().zip(channel) {
            *sum += f64::from(x);
        }
    }
    let n_channels = f64::from(spec.channels);
    Ok(AudioBuffer::mono(spec.sample_rate, sums.iter().map(|sum| (sum / n_channels) as f32).collect())?)
}

/// Audio with `channels` channels: unchanged where it has them, the mean for mono, copies of the
/// one channel from mono.
///
/// ```
/// use codec_core::AudioBuffer;
/// let mono = AudioBuffer::mono(16_000, vec![0.5, -0.25])?;
/// let stereo = codec_io::mix::to_channels(&mono, 2)?;
/// assert_eq!(stereo.channel(1), Some([0.5, -0.25].as_slice()));
/// assert_eq!(codec_io::mix::to_channels(&stereo, 1)?, mono);
/// # Ok::<(), codec_io::Error>(())
/// ```
///
/// # Errors
/// [`Error::Mix`] for any other change: there is no one right way from 5.1 to stereo, so
/// it is the caller's to do. [`Error::Core`] when `channels` is zero.
pub fn to_channels(audio: &AudioBuffer, channels: u16) -> Result<AudioBuffer> {
    let from = audio.spec();
    let spec = AudioSpec { channels, ..from };
    match (from.channels, channels) {
        (a, b) if a == b => Ok(audio.clone()),
        (_, 1) => to_mono(audio),
        (1, _) => {
            let channel = audio.channel(0).unwrap_or_default();
            Ok(AudioBuffer::from_planar(spec, vec![channel.to_vec(); usize::from(channels)])?)
        }
        (_, 0) => Ok(AudioBuffer::empty(spec)?),
        (from, to) => Err(Error::Mix { from, to }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_of_channels() {
        let spec = AudioSpec { sample_rate: 8_000, channels: 3 };
        let channels = vec![vec![0.3, 1.0], vec![0.6, 1.0], vec![-0.3, 1.0]];
        let mono = to_mono(&AudioBuffer::from_planar(spec, channels).unwrap()).unwrap();
        // Sums of f32 in f64 are exact here, so the mean is correctly rounded.
        let mean = ((f64::from(0.3f32) + f64::from(0.6f32) - f64::from(0.3f32)) / 3.0) as f32;
        assert_eq!(mono.channel(0), Some([mean, 1.0].as_slice()));
    }

    #[test]
    fn refuses_what_has_no_one_answer() {
        let audio = AudioBuffer::empty(AudioSpec { sample_rate: 8_000, channels: 6 }).unwrap();
        assert!(matches!(to_channels(&audio, 2), Err(Error::Mix { from: 6, to: 2 })));
        assert!(matches!(to_channels(&audio, 0), Err(Error::Core(_))));
        assert_eq!(to_channels(&audio, 6).unwrap(), audio);
    }
}
