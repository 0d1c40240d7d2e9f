//! Audio from a file or stdin in pieces of a useful size, in a model's rate and channels.

use crate::inputs::Place;
use crate::interrupt;
use crate::report::Reporter;
use anyhow::{Context, Result, bail};
use codec_core::{AudioBuffer, AudioSpec};
use codec_io::{AudioReader, Converter};
use indicatif::ProgressBar;

/// Pieces handed to a codec hold at least this much, so that its products have enough rows; pieces
/// handed to the resampler hold at most this much, so that a low rate in a header costs no memory.
const PIECE_SECONDS: u32 = 2;

/// An audio input that is read piece by piece.
#[derive(Debug)]
pub(crate) struct Source {
    name: String,
    reader: AudioReader,
    /// Samples that were read and not yet converted.
    raw: AudioBuffer,
    converter: Option<Converter>,
    from: AudioSpec,
    to: AudioSpec,
    n_read: u64,
    bar: ProgressBar,
}

impl Source {
    /// Opens an input, whose audio is converted to the rate and channels that `to` makes of its own.
    pub(crate) fn open(
        input: &Place,
        to: impl FnOnce(AudioSpec) -> AudioSpec,
        reporter: &Reporter,
    ) -> Result<Self> {
        let name = input.to_string();
        let reader = match input {
            Place::Std => AudioReader::from_stdin(),
            Place::File(path) => AudioReader::open(path),
        };
        let reader = reader.with_context(|| name.clone())?;
        let from = reader.spec();
        let to = to(from);
        if let Some(steps) = Converter::describe(from, to) {
            reporter.note(&format!("{name}: {steps}, as the model needs it"));
        }
        let bar = reporter.bar(&name, reader.n_samples());
        let converter = Some(Converter::new(from, to).with_context(|| name.clone())?);
        Ok(Self { name, reader, raw: AudioBuffer::empty(from)?, converter, from, to, n_read: 0, bar })
    }

    /// Rate and channels of the input itself.
    pub(crate) fn from(&self) -> AudioSpec {
        self.from
    }

    /// Rate and channels of what is read.
    pub(crate) fn to(&self) -> AudioSpec {
        self.to
    }

    /// Samples per channel that the input held, so far as it was read.
    pub(crate) fn n_read(&self) -> u64 {
        self.n_read
    }

    /// The next piece; `None` at the end.
    pub(crate) fn read(&mut self) -> Result<Option<AudioBuffer>> {
        let mut piece = AudioBuffer::empty(self.to)?;
        while (piece.n_samples() as u64) < samples_of_piece(self.to) {
            interrupt::check()?;
            let raw = self.read_raw()?;
            let Some(converter) = &mut self.converter else { break };
            if raw.is_empty() {
                if let Some(converter) = self.converter.take() {
                    piece.append(&converter.finish()?)?;
                }
            } else {
                piece.append(&converter.push(&raw)?)?;
            }
        }
        let at_end = self.converter.is_none() && piece.is_empty();
        Ok((!at_end).then_some(piece))
    }

    /// The next samples as they are in the input; none at its end.
    fn read_raw(&mut self) -> Result<AudioBuffer> {
        while self.raw.is_empty() {
            let Some(raw) = self.reader.read().with_context(|| self.name.clone())? else { break };
            let odd = raw.channels().filter_map(|xs| xs.iter().position(|x| !x.is_finite())).min();
            if let Some(position) = odd {
                bail!("{}: sample {} is not a finite number", self.name, self.n_read + position as u64);
            }
            self.n_read += raw.n_samples() as u64;
            self.bar.set_position(self.n_read);
            self.raw = raw;
        }
        let n = usize::try_from(samples_of_piece(self.from)).unwrap_or(usize::MAX);
        let rest = self.raw.slice(n..usize::MAX);
        let mut raw = std::mem::replace(&mut self.raw, rest);
        raw.truncate(n);
        Ok(raw)
    }

    /// Tells what was wrong with the input but could be read all the same, at its end.
    pub(crate) fn close(self, reporter: &Reporter) {
        if self.reader.is_truncated() {
            reporter.note(&format!("{}: the file is cut off; what is there was read", self.name));
        }
        let n_corrupt = self.reader.n_corrupt_packets();
        if n_corrupt > 0 {
            reporter.note(&format!("{}: {n_corrupt} damaged packet(s) were left out", self.name));
        }
    }
}

fn samples_of_piece(spec: AudioSpec) -> u64 {
    u64::from(PIECE_SECONDS) * u64::from(spec.sample_rate)
}

impl Drop for Source {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Global;
    use codec_io::{WavFormat, WavWriter};

    fn reporter() -> Reporter {
        Reporter::new(&Global { json: false, quiet: true, verbose: 0, threads: None }, false)
    }

    fn source(sample_rate: u32, samples: Vec<f32>, to: AudioSpec) -> Source {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        let audio = AudioBuffer::mono(sample_rate, samples).unwrap();
        let mut writer = WavWriter::create(&path, audio.spec(), WavFormat::Float32).unwrap();
        writer.write(&audio).unwrap();
        writer.finish().unwrap();
        Source::open(&Place::File(path), |_| to, &reporter()).unwrap()
    }

    #[test]
    fn a_low_rate_in_a_header_makes_no_large_pieces() {
        let to = AudioSpec { sample_rate: 16_000, channels: 1 };
        let mut source = source(1, vec![0.5; 3_000], to);
        for _ in 0..5 {
            let piece = source.read().unwrap().unwrap();
            assert!(piece.n_samples() as u64 <= 4 * samples_of_piece(to), "{}", piece.n_samples());
        }
    }

    #[test]
    fn pieces_make_the_whole_input() {
        let to = AudioSpec { sample_rate: 8_000, channels: 1 };
        let samples: Vec<f32> = (0..40_001).map(|i| (i as f32 * 0.01).sin()).collect();
        let mut source = source(8_000, samples.clone(), to);
        let mut whole = AudioBuffer::empty(to).unwrap();
        while let Some(piece) = source.read().unwrap() {
            whole.append(&piece).unwrap();
        }
        assert_eq!(whole.channel(0), Some(samples.as_slice()));
        assert_eq!(source.n_read(), 40_001);
    }
}
