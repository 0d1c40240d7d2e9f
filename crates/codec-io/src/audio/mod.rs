//! Reading and writing audio files.

mod demux;
mod mkv;
mod mp4;
mod opus;
mod source;
mod wav_read;
mod wav_write;

pub use wav_write::{WavFormat, WavSummary, WavWriter};

use crate::error::Result;
use codec_core::{AudioBuffer, AudioSpec};
use demux::Demuxed;
use opus::OggOpus;
use source::Source;
use std::io::{Read, Seek};
use std::path::Path;
use wav_read::WavReader;

/// File name endings that a search through a folder takes for audio. A file named outright may have any name.
pub const EXTENSIONS: [&str; 17] = [
    "aac", "aif", "aiff", "alac", "caf", "flac", "m4a", "mka", "mkv", "mp3", "mp4", "oga", "ogg", "opus",
    "wav", "wave", "webm",
];

/// Whether a path ends like an audio file.
pub fn has_audio_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

/// Reads an audio file from front to back, in pieces.
///
/// The format is told by the content, never by the name:
///
/// | format | codecs |
/// | --- | --- |
/// | WAV, RF64, BW64 | PCM 8 to 32 bits, float 32 and 64, A-law, mu-law; ADPCM (IMA, Microsoft) |
/// | FLAC, Ogg FLAC | FLAC |
/// | MP3, MP2, MP1 streams | MPEG-1/2/2.5 layer III |
/// | Ogg | Vorbis, Opus (mono, stereo and the standard surround layouts) |
/// | MP4, M4A, MOV | AAC-LC, ALAC, FLAC, MP3, PCM |
/// | AIFF, AIFC, CAF | PCM, ALAC |
/// | ADTS | AAC-LC |
/// | Matroska, WebM | the codecs above |
///
/// Nothing is converted: the samples have the file's rate and channels. Integers become floats by
/// exact division by their full scale. What encoders put around the audio is removed where the
/// file says how much it is: the delay and padding of MP3 and AAC, the pre-skip and end of Opus.
/// (A bare AAC stream does not say it. Matroska says it at the very end, so that a stream which
/// cannot seek keeps up to one packet of padding.)
///
/// HE-AAC is refused where its header says so; where only its packets do, its AAC-LC core is
/// decoded, at half the rate, as by every AAC-LC decoder.
///
/// A file is never held whole. MP4 from a stream is copied to a temporary file first, because its
/// tables may come last.
///
/// # Same bits
/// WAV, FLAC, ALAC, AIFF and CAF give the same samples everywhere. MP3, AAC and Vorbis do so on
/// one platform, on every CPU: symphonia's SIMD features are off. The Opus decoder chooses its
/// arithmetic by the CPU, so its last bits may differ between CPU models.
pub struct AudioReader {
    pieces: Box<dyn Pieces>,
}

/// What every kind of input can do.
trait Pieces: Send {
    fn format(&self) -> &'static str;
    fn spec(&self) -> AudioSpec;
    fn n_samples(&self) -> Option<u64>;
    fn is_truncated(&self) -> bool;
    fn n_corrupt(&self) -> u64;
    fn read(&mut self) -> Result<Option<AudioBuffer>>;
}

impl std::fmt::Debug for AudioReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioReader")
            .field("format", &self.format())
            .field("spec", &self.spec())
            .field("n_samples", &self.n_samples())
            .finish_non_exhaustive()
    }
}

impl AudioReader {
    /// Opens a file. A pipe or a device is read as a stream.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) when it cannot be opened, otherwise as
    /// [`AudioReader::from_reader`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Source::open(path.as_ref())?)
    }

    /// Reads standard input.
    ///
    /// # Errors
    /// As [`AudioReader::from_reader`].
    pub fn from_stdin() -> Result<Self> {
        Self::from_reader(Box::new(std::io::stdin()))
    }

    /// Reads a stream that cannot seek.
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty) without a byte,
    /// [`Error::NotAudio`](crate::Error::NotAudio) when no format fits,
    /// [`Error::Format`](crate::Error::Format) and [`Error::Field`](crate::Error::Field) when the
    /// header is broken, [`Error::Unsupported`](crate::Error::Unsupported) when its codec is not
    /// implemented, [`Error::Truncated`](crate::Error::Truncated) when it promises samples and
    /// there is none, [`Error::Io`](crate::Error::Io) when reading fails.
    pub fn from_reader(reader: Box<dyn Read + Send>) -> Result<Self> {
        Self::new(Source::stream(reader)?)
    }

    /// Reads from a source that can seek, from its first byte on.
    ///
    /// # Errors
    /// As [`AudioReader::from_reader`].
    pub fn from_seekable(source: impl Read + Seek + Send + 'static) -> Result<Self> {
        Self::new(Source::seekable(Box::new(source))?)
    }

    fn new(source: Source) -> Result<Self> {
        let head = &source.head;
        let is_own_wav = wav_read::is_wav(head) && !wav_read::is_adpcm(head);
        let pieces: Box<dyn Pieces> = if is_own_wav {
            Box::new(WavReader::new(source.bytes)?)
        } else if opus::is_ogg_opus(head) {
            Box::new(OggOpus::new(source.bytes)?)
        } else {
            Box::new(Demuxed::new(source)?)
        };
        Ok(Self { pieces })
    }

    /// Short name of the container.
    pub fn format(&self) -> &'static str {
        self.pieces.format()
    }

    /// Rate and channels of the file.
    pub fn spec(&self) -> AudioSpec {
        self.pieces.spec()
    }

    /// Samples per channel, where the header or the length of the file tells.
    pub fn n_samples(&self) -> Option<u64> {
        self.pieces.n_samples()
    }

    /// Whether the file ends before its header says. Certain after the last piece.
    pub fn is_truncated(&self) -> bool {
        self.pieces.is_truncated()
    }

    /// Packets so far that could not be decoded: silence in Ogg Opus, left out elsewhere.
    pub fn n_corrupt_packets(&self) -> u64 {
        self.pieces.n_corrupt()
    }

    /// The next samples, at most some tens of thousands per channel; `None` at the end.
    ///
    /// # Errors
    /// As [`AudioReader::from_reader`]. After an error, and after `None`, there is nothing more.
    pub fn read(&mut self) -> Result<Option<AudioBuffer>> {
        self.pieces.read()
    }

    /// Reads everything that is left into memory.
    ///
    /// # Errors
    /// As [`AudioReader::read`].
    pub fn read_to_end(&mut self) -> Result<AudioBuffer> {
        let mut audio = AudioBuffer::empty(self.spec())?;
        while let Some(piece) = self.read()? {
            audio.append(&piece)?;
        }
        Ok(audio)
    }
}
