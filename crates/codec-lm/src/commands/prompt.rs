//! Audio of any kind as the end of it that a model is to carry on from.

use crate::is_stopping;
use anyhow::{Context, Result, bail};
use codec_core::{AudioBuffer, AudioSpec};
use codec_io::{AudioReader, Converter};
use std::path::Path;

/// Opens a recording of any format, rate and number of channels; - for stdin.
pub(super) fn open(path: &Path) -> Result<AudioReader> {
    let reader = if path == Path::new("-") { AudioReader::from_stdin() } else { AudioReader::open(path) };
    reader.with_context(|| path.display().to_string())
}

/// The last `seconds` of the recording at `path` in a codec's rate and channels, cut at the front to whole
/// blocks of `block_len` samples; what is shorter than a block is left as it is.
pub(super) fn read(
    reader: &mut AudioReader,
    path: &Path,
    spec: AudioSpec,
    seconds: f64,
    block_len: usize,
) -> Result<AudioBuffer> {
    let name = || path.display().to_string();
    let mut converter = Converter::new(reader.spec(), spec).with_context(name)?;
    let longest = ((seconds * f64::from(spec.sample_rate)) as usize).max(block_len);
    let mut audio = AudioBuffer::empty(spec)?;
    while let Some(piece) = reader.read().with_context(name)? {
        if is_stopping() {
            bail!("interrupted");
        }
        if piece.channels().flatten().any(|x| !x.is_finite()) {
            bail!("{}: holds samples that are not finite numbers", path.display());
        }
        audio.append(&converter.push(&piece)?)?;
        // Not at every piece: what is kept is moved.
        if audio.n_samples() > 2 * longest {
            audio = audio.slice(audio.n_samples() - longest..usize::MAX);
        }
    }
    audio.append(&converter.finish()?)?;
    if audio.is_empty() {
        bail!("{}: holds no audio", path.display());
    }
    let kept = audio.n_samples().min(longest);
    let kept = if kept > block_len { kept - kept % block_len } else { kept };
    Ok(audio.slice(audio.n_samples() - kept..usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec_io::{WavFormat, WavWriter};

    fn write(path: &Path, rate: u32, samples: Vec<f32>) {
        let audio = AudioBuffer::mono(rate, samples).unwrap();
        let mut writer = WavWriter::create(path, audio.spec(), WavFormat::Float32).unwrap();
        writer.write(&audio).unwrap();
        writer.finish().unwrap();
    }

    fn end_of(path: &Path, spec: AudioSpec, seconds: f64, block_len: usize) -> Result<AudioBuffer> {
        read(&mut open(path)?, path, spec, seconds, block_len)
    }

    #[test]
    fn the_end_of_a_recording_is_kept_in_whole_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        let spec = AudioSpec { sample_rate: 8_000, channels: 1 };
        let samples: Vec<f32> = (0..50_123).map(|i| (i as f32 * 0.01).sin()).collect();
        write(&path, 8_000, samples.clone());
        let audio = end_of(&path, spec, 2.0, 300).unwrap();
        assert_eq!(audio.n_samples(), 15_900);
        assert_eq!(audio.channel(0).unwrap(), &samples[50_123 - 15_900..]);
        write(&path, 8_000, samples[..200].to_vec());
        assert_eq!(end_of(&path, spec, 2.0, 300).unwrap().n_samples(), 200);
        write(&path, 16_000, samples.clone());
        assert_eq!(end_of(&path, spec, 60.0, 300).unwrap().n_samples(), 24_900);
        write(&path, 8_000, Vec::new());
        assert!(end_of(&path, spec, 2.0, 300).unwrap_err().to_string().contains("no audio"));
        std::fs::write(&path, b"this is no audio").unwrap();
        assert!(end_of(&path, spec, 2.0, 300).is_err());
    }
}
