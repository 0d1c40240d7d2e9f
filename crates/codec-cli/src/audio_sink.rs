//! Decoded audio on its way out: start and end trimmed, the rate changed when asked, WAV written.

use crate::inputs::{Place, make_folder_of};
use crate::report::Reporter;
use anyhow::{Context, Result};
use codec_core::{AudioBuffer, AudioSpec};
use codec_io::{Converter, WavFormat, WavWriter};

/// Highest rate that is written, Hz: twice that of any recording. A slip of the keyboard shall not
/// fill the disk.
const MAX_RATE: i64 = 1_536_000;

/// Sample format of the WAV files written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SampleFormat {
    /// 16-bit integers.
    #[value(name = "16")]
    Pcm16,
    /// 24-bit integers.
    #[value(name = "24")]
    Pcm24,
    /// 32-bit floats: nothing is clipped or rounded.
    #[value(name = "float")]
    Float32,
}

/// How decoded audio is to be written.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct AudioArgs {
    /// Sample format of the WAV file.
    #[arg(long, value_enum, default_value = "16")]
    format: SampleFormat,
    /// Resample to this rate in Hz [default: the codec's].
    #[arg(long, value_name = "HZ", value_parser = clap::value_parser!(u32).range(1..=MAX_RATE))]
    rate: Option<u32>,
}

impl AudioArgs {
    /// The rate of what is written, in Hz.
    pub(crate) fn rate_or(self, codec_rate: u32) -> u32 {
        self.rate.unwrap_or(codec_rate)
    }
}

/// Takes what a decoder gives and writes a WAV file.
pub(crate) struct AudioSink {
    name: String,
    writer: WavWriter,
    converter: Converter,
    trim: Trim,
}

impl AudioSink {
    pub(crate) fn create(place: &Place, codec: AudioSpec, trim: Trim, args: AudioArgs) -> Result<Self> {
        let name = place.to_string();
        let spec = AudioSpec { sample_rate: args.rate_or(codec.sample_rate), ..codec };
        let format = match args.format {
            SampleFormat::Pcm16 => WavFormat::Pcm16,
            SampleFormat::Pcm24 => WavFormat::Pcm24,
            SampleFormat::Float32 => WavFormat::Float32,
        };
        let writer = match place {
            Place::Std => WavWriter::to_stream(Box::new(std::io::stdout()), spec, format),
            Place::File(path) => {
                make_folder_of(path)?;
                WavWriter::create(path, spec, format)
            }
        };
        let writer = writer.with_context(|| name.clone())?;
        let converter = Converter::new(codec, spec).with_context(|| name.clone())?;
        Ok(Self { name, writer, converter, trim })
    }

    /// Takes the next decoded samples; returns those that are part of the audio.
    pub(crate) fn push(&mut self, decoded: AudioBuffer) -> Result<AudioBuffer> {
        let kept = self.trim.apply(decoded);
        let converted = self.converter.push(&kept)?;
        self.writer.write(&converted).with_context(|| format!("{}: cannot write", self.name))?;
        Ok(kept)
    }

    /// Ends the file; returns its samples per channel.
    pub(crate) fn finish(mut self, reporter: &Reporter) -> Result<u64> {
        let failed = || format!("{}: cannot write", self.name);
        self.writer.write(&self.converter.finish()?).with_context(failed)?;
        let summary = self.writer.finish().with_context(failed)?;
        if summary.n_clipped > 0 {
            let n_clipped = summary.n_clipped;
            reporter
                .note(&format!("{}: {n_clipped} samples were beyond full scale and are clipped", self.name));
        }
        Ok(summary.n_samples)
    }
}

/// Drops samples at the start and ends the audio where the original ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trim {
    n_drop: u64,
    n_left: u64,
}

impl Trim {
    /// Drops the first `start` samples, then keeps `n_samples`; all when that is not known.
    pub(crate) fn new(start: u64, n_samples: Option<u64>) -> Self {
        Self { n_drop: start, n_left: n_samples.unwrap_or(u64::MAX) }
    }

    fn apply(&mut self, audio: AudioBuffer) -> AudioBuffer {
        let n = audio.n_samples() as u64;
        let start = self.n_drop.min(n);
        let kept = (n - start).min(self.n_left);
        self.n_drop -= start;
        self.n_left -= kept;
        if kept == n {
            return audio;
        }
        // Both lie within the buffer.
        audio.slice(start as usize..(start + kept) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trims_across_pieces() {
        let mut trim = Trim::new(3, Some(4));
        let mut kept = Vec::new();
        for piece in [vec![0.0, 1.0], vec![2.0, 3.0, 4.0], vec![], vec![5.0, 6.0, 7.0, 8.0]] {
            let audio = AudioBuffer::mono(8000, piece).unwrap();
            kept.extend_from_slice(trim.apply(audio).channel(0).unwrap());
        }
        assert_eq!(kept, [3.0, 4.0, 5.0, 6.0]);
    }
}
