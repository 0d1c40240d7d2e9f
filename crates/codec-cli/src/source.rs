//! Audio from a file or stdin in pieces of a useful size, in a model's rate and channels.

use crate::convert::Converter;
use crate::inputs::Place;
use crate::interrupt;
use crate::report::Reporter;
use anyhow::{Context, Result};
use codec_core::{AudioBuffer, AudioSpec};
use codec_io::AudioReader;
use indicatif::ProgressBar;

/// Pieces handed to a codec hold at least this much, so that its products have enough rows.
const PIECE_SECONDS: u64 = 2;

/// An audio input that is read piece by piece.
#[derive(Debug)]
pub(crate) struct Source {
    name: String,
    reader: AudioReader,
    converter: Option<Converter>,
    from: AudioSpec,
    to: AudioSpec,
    n_read: u64,
    bar: ProgressBar,
}

impl Source {
    /// Opens an input; with `to`, its audio is converted to that rate and number of channels.
    pub(crate) fn open(input: &Place, to: Option<AudioSpec>, reporter: &Reporter) -> Result<Self> {
        let name = input.to_string();
        let reader = match input {
            Place::Std => AudioReader::from_stdin(),
            Place::File(path) => AudioReader::open(path),
        };
        let reader = reader.with_context(|| name.clone())?;
        let from = reader.spec();
        let to = to.unwrap_or(from);
        if let Some(steps) = Converter::describe(from, to) {
            reporter.note(&format!("{name}: {steps}, as the model needs it"));
        }
        let bar = reporter.bar(&name, reader.n_samples());
        let converter = Some(Converter::new(from, to).with_context(|| name.clone())?);
        Ok(Self { name, reader, converter, from, to, n_read: 0, bar })
    }

    /// Rate and channels of the input itself.
    pub(crate) fn from(&self) -> AudioSpec {
        self.from
    }

    /// Samples per channel that the input held, so far as it was read.
    pub(crate) fn n_read(&self) -> u64 {
        self.n_read
    }

    /// The next piece; `None` at the end.
    pub(crate) fn read(&mut self) -> Result<Option<AudioBuffer>> {
        let mut piece = AudioBuffer::empty(self.to)?;
        let enough = PIECE_SECONDS * u64::from(self.to.sample_rate);
        while (piece.n_samples() as u64) < enough {
            interrupt::check()?;
            let Some(converter) = &mut self.converter else { break };
            match self.reader.read().with_context(|| self.name.clone())? {
                Some(raw) => {
                    self.n_read += raw.n_samples() as u64;
                    self.bar.set_position(self.n_read);
                    piece.append(&converter.push(&raw)?)?;
                }
                None => {
                    if let Some(converter) = self.converter.take() {
                        piece.append(&converter.finish()?)?;
                    }
                }
            }
        }
        let at_end = self.converter.is_none() && piece.is_empty();
        Ok((!at_end).then_some(piece))
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

impl Drop for Source {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
