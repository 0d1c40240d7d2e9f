//! Loudness of programme material, ITU-R BS.1770-4 and EBU R 128.

use crate::error::{Error, Result, Signal};
use crate::pair::{check_finite, is_silent};
use codec_core::AudioBuffer;
use ebur128::{EbuR128, Mode};

const METRIC: &str = "loudness";

/// Integrated loudness in LUFS, about -70 to 0: what a listener would call the level of the whole clip.
///
/// Channels are summed, so mono is 3 LU softer than the same signal on two channels. It cannot tell good from
/// bad; use it to find codecs that change the level.
///
/// # Source
/// ITU-R BS.1770-4 with its gates, through the crate `ebur128`.
///
/// # Errors
/// `signal` tells which one it is in errors: [`Error::NotFinite`], [`Error::TooShort`] below 400 ms,
/// [`Error::Silent`] when it is constant or nothing passes the gate of -70 LUFS, [`Error::Failed`] for more than 64 channels or
/// rates that the standard cannot be applied to.
pub fn integrated(audio: &AudioBuffer, signal: Signal) -> Result<f64> {
    let needed = (0.4 * f64::from(audio.spec().sample_rate)).ceil() as usize;
    if audio.n_samples() < needed {
        let actual = audio.n_samples();
        return Err(Error::TooShort { metric: METRIC, unit: "samples", needed, actual });
    }
    for channel in audio.channels() {
        check_finite(channel, signal)?;
    }
    let spec = audio.spec();
    let failed = |error: ebur128::Error| Error::Failed { metric: METRIC, reason: error.to_string() };
    let mut meter = EbuR128::new(u32::from(spec.channels), spec.sample_rate, Mode::I).map_err(failed)?;
    // The filter would turn the start of a constant into a click that passes the gate.
    if audio.channels().all(is_silent) {
        return Err(Error::Silent { signal });
    }
    let channels: Vec<&[f32]> = audio.channels().collect();
    meter.add_frames_planar_f32(&channels).map_err(failed)?;
    let loudness = meter.loudness_global().map_err(failed)?;
    if loudness.is_finite() { Ok(loudness) } else { Err(Error::Silent { signal }) }
}

/// Loudness of the degraded signal minus that of the reference, in LU; 0 is best.
///
/// # Source
/// The difference of two loudnesses as in ITU-R BS.1770-4; see [`integrated`].
///
/// # Errors
/// As [`integrated`].
pub fn change(reference: &AudioBuffer, degraded: &AudioBuffer) -> Result<f64> {
    Ok(integrated(degraded, Signal::Degraded)? - integrated(reference, Signal::Reference)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec_core::AudioSpec;

    fn tone(channels: u16, amplitude: f32) -> AudioBuffer {
        let spec = AudioSpec { sample_rate: 48_000, channels };
        let channel: Vec<f32> = (0..96_000)
            .map(|i| amplitude * (i as f32 * 997.0 * std::f32::consts::TAU / 48_000.0).sin())
            .collect();
        AudioBuffer::from_planar(spec, vec![channel; usize::from(channels)]).unwrap()
    }

    /// BS.1770 calibrates: 997 Hz at full scale on one channel is -3.01 LUFS.
    #[test]
    fn a_tone_has_the_loudness_of_the_standard() {
        let loudness = |audio: &AudioBuffer| integrated(audio, Signal::Reference).unwrap();
        assert!((loudness(&tone(1, 1.0)) + 3.01).abs() < 0.02, "{}", loudness(&tone(1, 1.0)));
        assert!((loudness(&tone(2, 0.1)) + 20.0).abs() < 0.02, "{}", loudness(&tone(2, 0.1)));
        assert!((change(&tone(1, 0.5), &tone(1, 0.25)).unwrap() + 6.02).abs() < 0.01);
    }

    #[test]
    fn silence_and_clicks_have_none() {
        let audio = |samples: Vec<f32>| AudioBuffer::mono(16_000, samples).unwrap();
        let of = |samples| integrated(&audio(samples), Signal::Degraded);
        assert_eq!(of(vec![0.0; 8000]), Err(Error::Silent { signal: Signal::Degraded }));
        assert_eq!(of(vec![0.5; 8000]), Err(Error::Silent { signal: Signal::Degraded }));
        assert!(matches!(of(vec![0.5; 6399]), Err(Error::TooShort { needed: 6400, actual: 6399, .. })));
        let mut broken = vec![0.5; 8000];
        broken[7] = f32::NAN;
        assert_eq!(of(broken), Err(Error::NotFinite { signal: Signal::Degraded, index: 7 }));
        let low = AudioBuffer::mono(2, vec![0.5; 100]).unwrap();
        assert!(matches!(integrated(&low, Signal::Reference), Err(Error::Failed { .. })));
    }
}
