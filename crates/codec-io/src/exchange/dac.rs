//! The files of the `descript-audio-codec` package: DAC's codes in a NumPy file around a pickle.
//!
//! The pickle is read and never run: what it may name are the classes that make up a NumPy array. It
//! holds a dict with the codes, `[channels, n_codebooks, n_frames]`, and what is known of the audio; which
//! model made the codes is not in it.
//!
//! Audio longer than a window (5 s by default) is coded window by window, each without padding, and the
//! frames of one window do not continue those of the one before: each window is a clip of its own.
//! [`DacFile::clips`] gives them with the samples that they stand for.
//!
//! # Source
//! Behaviour of descript-audio-codec 1.0.0, dac/model/base.py; numpy/lib/format.py.
//!
//! # Deviations
//! The package decodes a window without padding too, so that the samples at its ends lack the frames
//! beyond it. Here they are decoded with padding and cut to the same samples: equal in the middle of a
//! window, and different where two windows meet.

use super::arrays::{self, Array};
use super::published_name;
use crate::error::{Error, Result};
use codec_core::{CodecInfo, Codes};
use codec_pickle::{Heap, Value};
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

const FORMAT: &str = "dac";
/// The version of the format that the package reads and writes.
const VERSION: &str = "1.0.0";
/// Samples that the first and the last layer take from each end, and the layers of a residual unit.
const EDGE: u64 = 3;
const UNIT_EDGE: u64 = 3 + 9 + 27;

/// A published model, as far as its codes tell.
#[derive(Clone, Copy, Debug)]
struct Model {
    name: &'static str,
    sample_rate: u32,
    n_codebooks: usize,
    /// Upsampling of the decoder's blocks.
    rates: [u64; 4],
}

const MODELS: [Model; 4] = [
    Model { name: "dac_16khz", sample_rate: 16_000, n_codebooks: 12, rates: [8, 5, 4, 2] },
    Model { name: "dac_24khz", sample_rate: 24_000, n_codebooks: 32, rates: [8, 5, 4, 2] },
    Model { name: "dac_44khz", sample_rate: 44_100, n_codebooks: 9, rates: [8, 8, 4, 2] },
    Model { name: "dac_44khz_16kbps", sample_rate: 44_100, n_codebooks: 18, rates: [8, 8, 4, 2] },
];

/// What a `.dac` file says.
#[derive(Clone, Debug, PartialEq)]
pub struct DacFile {
    /// Codes, `[channels][n_codebooks][n_frames]`.
    codes: Vec<Vec<Vec<u32>>>,
    /// Frames of a window.
    chunk_length: usize,
    /// Samples per channel of the audio, at its own rate.
    pub original_length: u64,
    /// The rate of the audio, not of the model.
    pub sample_rate: u32,
    /// Loudness that the audio had, in LUFS, per item of the batch; the codes are those of audio at
    /// -16 LUFS.
    pub input_db: Vec<f32>,
    /// Whether it was coded at once and not in windows.
    pub padding: bool,
}

/// Codes that are decoded on their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// The codes; codebook `k` of channel `c` is row `k * channels + c`.
    pub codes: Codes,
    /// Samples to drop from the start of the decoded audio.
    pub start_trim: u64,
    /// Samples after that which are audio, at the model's rate.
    pub n_samples: u64,
}

impl DacFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Format`] when it is none, [`Error::Pickle`] when its pickle names what it should not,
    /// [`Error::Unsupported`] for another version, [`Error::Limit`], [`Error::Io`].
    pub fn read(source: impl Read) -> Result<Self> {
        let bytes = super::read_whole(source, "bytes of a dac file")?;
        let start = arrays::object_start(FORMAT, &bytes)?;
        let mut heap = Heap::default();
        let (value, _) = codec_pickle::run(&bytes, start, &arrays::allows, &mut heap)?;
        let file = Self::from_pickle(&heap, value);
        file.ok_or(Error::Format {
            format: FORMAT,
            what: "it does not hold what a dac file holds",
            offset: start as u64,
        })?
    }

    /// `None` when a part is missing or of another kind.
    fn from_pickle<'a>(heap: &Heap<'a>, value: Value<'a>) -> Option<Result<Self>> {
        let object = match Array::from_value(heap, value)? {
            Array::Objects(objects) => *objects.first()?,
            Array::Numbers(_) => return None,
        };
        let metadata = heap.get(object, "metadata")?;
        let version = match heap.get(metadata, "dac_version")? {
            Value::Str(version) => version,
            _ => return None,
        };
        if version != VERSION {
            let what = format!("version {version}");
            return Some(Err(Error::Unsupported { format: FORMAT, what, offset: 0 }));
        }
        let count = |key: &str| match heap.get(metadata, key)? {
            Value::Int(n) => u64::try_from(n).ok(),
            _ => None,
        };
        let padding = match heap.get(metadata, "padding")? {
            Value::Bool(padding) => padding,
            _ => return None,
        };
        let Array::Numbers(input_db) = Array::from_value(heap, heap.get(metadata, "input_db")?)? else {
            return None;
        };
        let Array::Numbers(codes) = Array::from_value(heap, heap.get(object, "codes")?)? else { return None };
        let &[n_channels, n_codebooks, n_frames] = codes.shape.as_slice() else { return None };
        if count("channels")? != n_channels as u64 || n_channels == 0 || n_codebooks == 0 {
            return None;
        }
        let mut values = codes.integers()?.into_iter();
        let mut row = || values.by_ref().take(n_frames).collect::<Vec<u32>>();
        let mut channel = || (0..n_codebooks).map(|_| row()).collect::<Vec<_>>();
        Some(Ok(Self {
            codes: (0..n_channels).map(|_| channel()).collect(),
            chunk_length: usize::try_from(count("chunk_length")?).ok().filter(|&n| n > 0)?,
            original_length: count("original_length")?,
            sample_rate: u32::try_from(count("sample_rate")?).ok().filter(|&rate| rate > 0)?,
            input_db: input_db.floats()?,
            padding,
        }))
    }

    /// Channels of the audio, which are coded apart.
    pub fn n_channels(&self) -> usize {
        self.codes.len()
    }

    /// How many codebooks the file holds.
    pub fn n_codebooks(&self) -> usize {
        self.codes.first().map_or(0, Vec::len)
    }

    /// How many clips there are: the windows, or one that was coded at once.
    pub fn n_clips(&self) -> usize {
        self.n_frames().div_ceil(self.window_len())
    }

    /// Entries of a codebook of every published model.
    pub const CODEBOOK_SIZE: u32 = 1024;

    /// The model that made the codes, if the number of its codebooks gives it away.
    pub fn likely_model(&self) -> Option<&'static str> {
        let model = MODELS.iter().find(|model| model.n_codebooks == self.n_codebooks())?;
        Some(model.name)
    }

    /// The windows, each a clip that is decoded on its own, for the codes of the model that `info`
    /// describes: that of one channel, as [`CodecInfo::per_channel`] takes it. The clips follow one another
    /// without a gap.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the model is not one of the published ones and there are windows,
    /// [`Error::Core`] when the codes do not fit its layout, [`Error::Format`] when the windows are too
    /// short to have an end.
    pub fn clips(&self, info: &CodecInfo) -> Result<Vec<Clip>> {
        let n_rows = self.n_codebooks() * self.n_channels();
        let channels = u16::try_from(self.n_channels()).unwrap_or(u16::MAX);
        let layout = Arc::new(info.per_channel(channels)?.layout.truncated(n_rows)?);
        // As the package's resampler rounds.
        let scaled = u128::from(self.original_length) * u128::from(info.audio.sample_rate);
        let n_samples = u64::try_from(scaled / u128::from(self.sample_rate)).unwrap_or(u64::MAX);
        let (n_frames, window_len) = (self.n_frames(), self.window_len());
        let mut clips = Vec::new();
        let mut start = 0;
        for first in (0..n_frames).step_by(window_len) {
            let frames = first..n_frames.min(first.saturating_add(window_len));
            let span = self.span(info, frames.len() as u64)?;
            let length = (span.end - span.start).min(n_samples.saturating_sub(start));
            start += length;
            let row = |codebook_idx: usize| {
                let channel = &self.codes[codebook_idx % self.n_channels()];
                channel[codebook_idx / self.n_channels()][frames.clone()].to_vec()
            };
            let codes = Codes::new(Arc::clone(&layout), (0..n_rows).map(row).collect())?;
            clips.push(Clip { codes, start_trim: span.start, n_samples: length });
        }
        Ok(clips)
    }

    fn n_frames(&self) -> usize {
        self.codes.first().and_then(|rows| rows.first()).map_or(0, Vec::len)
    }

    /// Frames of a window, at least one.
    fn window_len(&self) -> usize {
        if self.padding { self.n_frames().max(1) } else { self.chunk_length }
    }

    /// Which of the samples that `n_frames` frames decode to with padding are those of a window.
    fn span(&self, info: &CodecInfo, n_frames: u64) -> Result<Range<u64>> {
        if self.padding {
            return Ok(0..n_frames.saturating_mul(info.hop_length.into()));
        }
        let name = published_name(&info.model);
        let is_known = |known: &&Model| (known.name, known.sample_rate) == (name, info.audio.sample_rate);
        let Some(known) = MODELS.iter().find(is_known) else {
            let what = format!("windows of the model `{}`, which was not published", info.model);
            return Err(Error::Unsupported { format: FORMAT, what, offset: 0 });
        };
        unpadded_span(&known.rates, n_frames).ok_or_else(|| {
            let what = "its windows are too short to be decoded without padding";
            Error::Format { format: FORMAT, what, offset: 0 }
        })
    }
}

/// The samples that the decoder gives for `n_frames` frames without any padding, as a range of those that
/// it gives with padding.
fn unpadded_span(rates: &[u64], n_frames: u64) -> Option<Range<u64>> {
    let (mut start, mut length) = (EDGE, n_frames.checked_sub(2 * EDGE)?);
    for &rate in rates {
        // Without padding nothing is cut off a transposed convolution, whose kernel is two strides.
        start = (start * rate).checked_sub(rate.div_ceil(2))? + UNIT_EDGE;
        length = (length.checked_add(1)?.checked_mul(rate)?).checked_sub(2 * UNIT_EDGE)?;
    }
    let length = length.checked_sub(2 * EDGE).filter(|&length| length > 0)?;
    Some(start + EDGE..start + EDGE + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_of_a_window_are_those_of_the_package() {
        // Lengths from `DAC.get_output_length`, offsets by comparing both ways to decode.
        assert_eq!(unpadded_span(&[8, 8, 4, 2], 72), Some(4171..4171 + 28_522));
        assert_eq!(unpadded_span(&[8, 5, 4, 2], 122), Some(2763..2763 + 33_506));
        assert_eq!(unpadded_span(&[8, 8, 4, 2], 12), None);
    }
}
