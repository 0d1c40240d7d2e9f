//! Writing WAV: streaming, atomic or growing, never wrapping a sample.

use crate::atomic::AtomicFile;
use crate::error::{Error, Result};
use codec_core::{AudioBuffer, AudioSpec};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes of the fields of a `ds64` chunk without a table.
const DS64_LEN: u32 = 28;

/// How samples are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WavFormat {
    /// 16-bit integers.
    #[default]
    Pcm16,
    /// 24-bit integers.
    Pcm24,
    /// 32-bit floats, outside [-1, 1] too.
    Float32,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WavSummary {
    /// Samples per channel.
    pub n_samples: u64,
    /// Values, over all channels, that did not fit and were set to the nearest one that does.
    pub n_clipped: u64,
}

/// Writes a WAV file piece by piece.
///
/// | made by | what others see before [`WavWriter::finish`] | sizes in the header |
/// | --- | --- | --- |
/// | [`WavWriter::create`] | nothing: the samples go to a temporary file beside it, which is removed when the writer is dropped | those of the samples |
/// | [`WavWriter::create_growing`] | the samples so far | 0xFFFFFFFF, at the end those of the samples |
/// | [`WavWriter::to_stream`] | the samples so far | 0xFFFFFFFF |
///
/// A size of 0xFFFFFFFF means "to the end" to most readers.
/// A file beyond 4 GiB becomes RF64; the place for its sizes is reserved in every file.
///
/// # Rounding
/// A value `x` is stored as `x * 2^15` (`x * 2^23`) rounded to the nearest integer, ties to even.
/// What then exceeds the range, +1.0 included, is clipped and counted.
///
/// ```
/// use codec_core::{AudioBuffer, AudioSpec};
/// use codec_io::{WavFormat, WavWriter};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("tone.wav");
/// let audio = AudioBuffer::mono(8_000, vec![0.25, -1.5, 0.75])?;
/// let mut writer = WavWriter::create(&path, audio.spec(), WavFormat::Pcm16)?;
/// writer.write(&audio)?;
/// let summary = writer.finish()?;
/// assert_eq!((summary.n_samples, summary.n_clipped), (3, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct WavWriter {
    sink: Sink,
    spec: AudioSpec,
    format: WavFormat,
    summary: WavSummary,
    raw: Vec<u8>,
}

enum Sink {
    Whole { file: AtomicFile, path: PathBuf },
    Growing { file: File, path: PathBuf },
    Stream(Box<dyn Write + Send>),
}

impl Sink {
    /// Whether the header can be written again.
    fn is_seekable(&self) -> bool {
        !matches!(self, Self::Stream(_))
    }
}

impl std::fmt::Debug for WavWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WavWriter")
            .field("spec", &self.spec)
            .field("format", &self.format)
            .field("summary", &self.summary)
            .finish_non_exhaustive()
    }
}

impl WavWriter {
    /// Starts a file that will appear at `path`.
    ///
    /// # Errors
    /// [`Error::File`] when the folder cannot be written, [`Error::Limit`] when WAV cannot hold
    /// so many channels, [`Error::Core`] when the rate or the number of channels is zero.
    pub fn create(path: impl AsRef<Path>, spec: AudioSpec, format: WavFormat) -> Result<Self> {
        let path = path.as_ref();
        check_spec(spec, format)?;
        let sink = match pipe(path)? {
            Some(pipe) => pipe,
            None => {
                let file = AtomicFile::create(path).map_err(cannot_create(path))?;
                Sink::Whole { file, path: path.to_owned() }
            }
        };
        Self::start(sink, spec, format)
    }

    /// Starts a file that others can read while it grows: it stands at `path` at once, in the
    /// place of what was there, and every piece is handed to the system as it comes.
    ///
    /// Where nobody calls [`WavWriter::finish`] the file keeps the samples so far, without sizes.
    ///
    /// # Errors
    /// As [`WavWriter::create`].
    pub fn create_growing(path: impl AsRef<Path>, spec: AudioSpec, format: WavFormat) -> Result<Self> {
        let path = path.as_ref();
        check_spec(spec, format)?;
        let sink = match pipe(path)? {
            Some(pipe) => pipe,
            None => {
                let file = File::create(path).map_err(cannot_create(path))?;
                Sink::Growing { file, path: path.to_owned() }
            }
        };
        Self::start(sink, spec, format)
    }

    /// Starts a stream that cannot go back, such as stdout: its sizes stay 0xFFFFFFFF.
    ///
    /// # Errors
    /// [`Error::Io`] when the header cannot be written, [`Error::Limit`] and [`Error::Core`] as
    /// [`WavWriter::create`].
    pub fn to_stream(sink: Box<dyn Write + Send>, spec: AudioSpec, format: WavFormat) -> Result<Self> {
        check_spec(spec, format)?;
        Self::start(Sink::Stream(sink), spec, format)
    }

    fn start(sink: Sink, spec: AudioSpec, format: WavFormat) -> Result<Self> {
        let n_samples = matches!(sink, Sink::Whole { .. }).then_some(0);
        let raw = header(spec, format, n_samples, sink.is_seekable());
        let mut writer = Self { sink, spec, format, summary: WavSummary::default(), raw };
        writer.flush_raw(0)?;
        Ok(writer)
    }

    /// Appends samples; a stream gets them at once.
    ///
    /// # Errors
    /// [`Error::Spec`] when rate or channels differ, [`Error::NotFinite`] when a sample is NaN or
    /// infinite (nothing of this piece is written then), [`Error::Io`] when the sink refuses.
    pub fn write(&mut self, audio: &AudioBuffer) -> Result<()> {
        if audio.spec() != self.spec {
            return Err(Error::Spec { expected: self.spec, actual: audio.spec() });
        }
        for (channel_idx, channel) in audio.channels().enumerate() {
            if let Some(at) = channel.iter().position(|x| !x.is_finite()) {
                let sample_idx = self.summary.n_samples + at as u64;
                return Err(Error::NotFinite { channel_idx, sample_idx });
            }
        }
        let at = self.position();
        let n_clipped = encode(self.format, &audio.to_interleaved(), &mut self.raw);
        self.flush_raw(at)?;
        self.summary.n_samples += audio.n_samples() as u64;
        self.summary.n_clipped += n_clipped;
        Ok(())
    }

    /// Completes the header of a file, waits until its data is on the disk and gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] when the system refuses; of [`WavWriter::create`] nothing
    /// appears then.
    pub fn finish(mut self) -> Result<WavSummary> {
        let end = self.position();
        let n_data = self.n_data_bytes();
        if n_data % 2 == 1 {
            self.raw = vec![0];
            self.flush_raw(end)?;
        }
        let failed = |source| Error::Io { what: "cannot finish the file", offset: end, source };
        let header = header(self.spec, self.format, Some(self.summary.n_samples), true);
        let (committed, path) = match self.sink {
            Sink::Stream(mut sink) => return sink.flush().map_err(failed).map(|()| self.summary),
            Sink::Whole { mut file, path } => {
                write_at_start(&mut file, &header).map_err(failed)?;
                (file.commit(), path)
            }
            Sink::Growing { mut file, path } => {
                write_at_start(&mut file, &header).map_err(failed)?;
                (file.sync_all(), path)
            }
        };
        committed.map_err(|source| Error::File { what: "cannot complete", path, source })?;
        Ok(self.summary)
    }

    /// What was written so far.
    pub fn summary(&self) -> WavSummary {
        self.summary
    }

    fn n_data_bytes(&self) -> u64 {
        self.summary.n_samples * block(self.spec, self.format)
    }

    fn position(&self) -> u64 {
        header_len(self.format, self.sink.is_seekable()) + self.n_data_bytes()
    }

    fn flush_raw(&mut self, offset: u64) -> Result<()> {
        let written = match &mut self.sink {
            Sink::Whole { file, .. } => file.write_all(&self.raw),
            Sink::Growing { file, .. } => file.write_all(&self.raw),
            // Who listens shall not wait until a buffer is full.
            Sink::Stream(sink) => sink.write_all(&self.raw).and_then(|()| sink.flush()),
        };
        self.raw.clear();
        written.map_err(|source| Error::Io { what: "cannot write", offset, source })
    }
}

impl WavFormat {
    fn n_bytes(self) -> u16 {
        match self {
            Self::Pcm16 => 2,
            Self::Pcm24 => 3,
            Self::Float32 => 4,
        }
    }

    fn tag(self) -> u16 {
        if self == Self::Float32 { 3 } else { 1 }
    }
}

fn cannot_create(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    |source| Error::File { what: "cannot create", path: path.to_owned(), source }
}

/// What is neither a file nor a folder, such as a pipe, opened as it is: it has no place to go back to.
fn pipe(path: &Path) -> Result<Option<Sink>> {
    if !fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return Ok(None);
    }
    let pipe = OpenOptions::new().write(true).open(path).map_err(cannot_create(path))?;
    Ok(Some(Sink::Stream(Box::new(BufWriter::new(pipe)))))
}

fn write_at_start(file: &mut (impl Write + Seek), header: &[u8]) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(header)
}

fn check_spec(spec: AudioSpec, format: WavFormat) -> Result<()> {
    AudioBuffer::empty(spec)?;
    let bytes = u64::from(spec.channels) * u64::from(format.n_bytes());
    let limit = u64::from(u16::MAX);
    if bytes > limit {
        return Err(Error::Limit { what: "bytes of one WAV sample over all channels", limit, actual: bytes });
    }
    Ok(())
}

fn block(spec: AudioSpec, format: WavFormat) -> u64 {
    u64::from(format.n_bytes()) * u64::from(spec.channels)
}

/// Appends the stored form of samples; counts those that did not fit.
fn encode(format: WavFormat, samples: &[f32], raw: &mut Vec<u8>) -> u64 {
    let mut n_clipped = 0;
    // A power of two scales exactly, so the only rounding is the one to an integer.
    let mut quantize = |x: f32, scale: f32| {
        let rounded = (x * scale).round_ties_even();
        let clipped = rounded.clamp(-scale, scale - 1.0);
        n_clipped += u64::from(clipped != rounded);
        clipped as i32
    };
    match format {
        WavFormat::Pcm16 => {
            raw.extend(samples.iter().flat_map(|&x| (quantize(x, 32_768.0) as i16).to_le_bytes()));
        }
        WavFormat::Pcm24 => {
            raw.extend(samples.iter().flat_map(|&x| {
                let [a, b, c, _] = quantize(x, 8_388_608.0).to_le_bytes();
                [a, b, c]
            }));
        }
        WavFormat::Float32 => raw.extend(samples.iter().flat_map(|x| x.to_le_bytes())),
    }
    n_clipped
}

fn header_len(format: WavFormat, is_seekable: bool) -> u64 {
    let fmt_and_fact = if format == WavFormat::Float32 { 26 + 12 } else { 24 };
    12 + if is_seekable { 8 + u64::from(DS64_LEN) } else { 0 } + fmt_and_fact + 8
}

/// The bytes before the samples, of which there are `n_samples` where that is known; every seekable header of
/// one format has the same length.
fn header(spec: AudioSpec, format: WavFormat, n_samples: Option<u64>, is_seekable: bool) -> Vec<u8> {
    let block = block(spec, format);
    let is_float = format == WavFormat::Float32;
    let is_known = n_samples.is_some();
    let n_samples = n_samples.unwrap_or(u64::MAX);
    let data = n_samples.saturating_mul(block);
    let riff = (header_len(format, is_seekable) - 8).saturating_add(data).saturating_add(data % 2);
    let is_long = is_known && riff > u64::from(u32::MAX);
    // 0xFFFFFFFF stands for "see ds64" and for "unknown".
    let short = |size: u64| u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes();
    let mut out = Vec::new();
    out.extend(if is_long { b"RF64" } else { b"RIFF" });
    out.extend(if is_long { u32::MAX.to_le_bytes() } else { short(riff) });
    out.extend(b"WAVE");
    if is_seekable {
        out.extend(if is_long { b"ds64" } else { b"JUNK" });
        out.extend(DS64_LEN.to_le_bytes());
        let fields = if is_long { [riff, data, n_samples] } else { [0; 3] };
        out.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        out.extend([0; 4]);
    }
    out.extend(b"fmt ");
    out.extend(if is_float { 18u32 } else { 16 }.to_le_bytes());
    out.extend(format.tag().to_le_bytes());
    out.extend(spec.channels.to_le_bytes());
    out.extend(spec.sample_rate.to_le_bytes());
    out.extend(short(block.saturating_mul(spec.sample_rate.into())));
    out.extend((block as u16).to_le_bytes());
    out.extend((format.n_bytes() * 8).to_le_bytes());
    if is_float {
        // Formats other than PCM carry the size of their extension and a fact chunk.
        out.extend(0u16.to_le_bytes());
        out.extend(b"fact");
        out.extend(4u32.to_le_bytes());
        out.extend(short(n_samples));
    }
    out.extend(b"data");
    out.extend(if is_long { u32::MAX.to_le_bytes() } else { short(data) });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEREO: AudioSpec = AudioSpec { sample_rate: 48_000, channels: 2 };

    #[test]
    fn header_lengths_agree() {
        for format in [WavFormat::Pcm16, WavFormat::Pcm24, WavFormat::Float32] {
            for n_samples in [None, Some(0), Some(1), Some(1 << 20), Some(1 << 33)] {
                let bytes = header(STEREO, format, n_samples, true);
                assert_eq!(bytes.len() as u64, header_len(format, true));
            }
            let bytes = header(STEREO, format, None, false);
            assert_eq!(bytes.len() as u64, header_len(format, false));
        }
    }

    /// The largest RIFF file, and the first sample that needs RF64.
    #[test]
    fn rf64_begins_where_riff_ends() {
        let largest = (u64::from(u32::MAX) - 72) / 4;
        let bytes = header(STEREO, WavFormat::Pcm16, Some(largest), true);
        assert_eq!(bytes[..4], *b"RIFF");
        let bytes = header(STEREO, WavFormat::Pcm16, Some(largest + 1), true);
        assert_eq!(bytes[..8], *b"RF64\xFF\xFF\xFF\xFF");
        assert_eq!(bytes[12..16], *b"ds64");
        let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let data = (largest + 1) * 4;
        assert_eq!([field(20), field(28), field(36)], [data + 72, data, largest + 1]);
        assert_eq!(bytes[bytes.len() - 8..], *b"data\xFF\xFF\xFF\xFF");
    }

    #[test]
    fn rounds_ties_to_even_and_clips() {
        let lsb = 1.0 / 32_768.0;
        let xs = [0.5 * lsb, 1.5 * lsb, -0.5 * lsb, 1.0, -1.0, -1.5, 3e38, 1.0 - lsb];
        let mut raw = Vec::new();
        let n_clipped = encode(WavFormat::Pcm16, &xs, &mut raw);
        let values: Vec<i16> = raw.as_chunks().0.iter().map(|b| i16::from_le_bytes(*b)).collect();
        assert_eq!(values, [0, 2, 0, 32_767, -32_768, -32_768, 32_767, 32_767]);
        assert_eq!(n_clipped, 3);
    }
}
