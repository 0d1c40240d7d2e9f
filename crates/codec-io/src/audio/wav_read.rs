//! Reading WAV: RIFF, RF64 and BW64, finished or not.
//!
//! Written here because the libraries refuse what pipes and long recordings leave behind: sizes
//! of 0 or 0xFFFFFFFF, 64-bit sizes in a `ds64` chunk, odd-length chunks before the samples.
//!
//! # Source
//! Microsoft/IBM "Multimedia Programming Interface and Data Specifications 1.0" (RIFF, WAVE),
//! Microsoft "Multiple channel audio data and WAVE files" (EXTENSIBLE), ITU-R BS.2088 (BW64,
//! RF64, `ds64`), ITU-T G.711 (A-law, mu-law).

use super::Pieces;
use super::source::Bytes;
use crate::error::{Error, Result};
use codec_core::{AudioBuffer, AudioSpec};
use std::io::Read;

/// Samples per piece and channel; the piece is also bounded in bytes.
const PIECE_SAMPLES: usize = 16_384;
const PIECE_BYTES: usize = 1 << 20;

const FORMAT_PCM: u16 = 1;
const FORMAT_ADPCM_MICROSOFT: u16 = 2;
const FORMAT_FLOAT: u16 = 3;
const FORMAT_ALAW: u16 = 6;
const FORMAT_MULAW: u16 = 7;
const FORMAT_ADPCM_IMA: u16 = 0x11;
const FORMAT_EXTENSIBLE: u16 = 0xFFFE;

/// The last 14 bytes of the sub-format GUIDs whose first two are a format tag.
const GUID_TAIL: [u8; 14] = [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xAA, 0, 0x38, 0x9B, 0x71];

/// How one sample is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    U8,
    I16,
    I24,
    I32,
    F32,
    F64,
    ALaw,
    MuLaw,
}

/// A WAV file read from front to back.
pub(crate) struct WavReader {
    bytes: Bytes,
    offset: u64,
    data_offset: u64,
    format: &'static str,
    spec: AudioSpec,
    encoding: Encoding,
    /// Bytes of samples still to come; `None` reads to the end of the stream.
    remaining: Option<u64>,
    n_samples: Option<u64>,
    /// The size is one that a writer leaves when it cannot go back.
    is_placeholder: bool,
    is_truncated: bool,
    raw: Vec<u8>,
}

/// Whether a WAV file that starts with these bytes holds ADPCM, which symphonia decodes.
pub(crate) fn is_adpcm(head: &[u8]) -> bool {
    matches!(format_tag(head), Some(FORMAT_ADPCM_MICROSOFT | FORMAT_ADPCM_IMA))
}

/// The format tag, if these bytes reach that far.
fn format_tag(head: &[u8]) -> Option<u16> {
    let mut at = 12;
    loop {
        let chunk = head.get(at..)?;
        let size = le32(chunk, 4)? as usize;
        if chunk.starts_with(b"fmt ") {
            return le16(chunk, 8);
        }
        at = at.checked_add(8)?.checked_add(size)?.checked_add(size % 2)?;
    }
}

/// Whether a file that starts with these bytes is WAV.
pub(crate) fn is_wav(head: &[u8]) -> bool {
    matches!(head.get(..4), Some(b"RIFF" | b"RF64" | b"BW64")) && head.get(8..12) == Some(b"WAVE")
}

impl WavReader {
    pub(crate) fn new(mut bytes: Bytes) -> Result<Self> {
        let len = bytes.len();
        let mut header = HeaderReader { bytes: &mut bytes, offset: 0, format: "WAV" };
        let riff = header.array::<12>()?;
        if riff.starts_with(b"RF64") {
            header.format = "RF64";
        } else if riff.starts_with(b"BW64") {
            header.format = "BW64";
        }
        let format = header.format;
        let is_64 = format != "WAV";
        let riff_size = le32(&riff, 4).unwrap_or(0);
        let mut long_data_size = None;
        let mut fmt = None;
        loop {
            let at = header.offset;
            let chunk = header.array::<8>()?;
            let size = u64::from(le32(&chunk, 4).unwrap_or(0));
            match chunk.first_chunk::<4>() {
                Some(b"ds64") if is_64 => {
                    let body = header.array::<16>()?;
                    long_data_size = le64(&body, 8);
                    header.skip(padded(size).saturating_sub(16))?;
                }
                Some(b"fmt ") => {
                    let (spec, encoding, read) = header.fmt(at, size)?;
                    fmt = Some((spec, encoding));
                    header.skip(padded(size).saturating_sub(read))?;
                }
                Some(b"data") => {
                    let Some((spec, encoding)) = fmt else {
                        let what = "the data chunk comes before the fmt chunk";
                        return Err(Error::Format { format, what, offset: at });
                    };
                    let data_offset = header.offset;
                    let size = if size == 0xFFFF_FFFF { long_data_size.unwrap_or(size) } else { size };
                    let declared = declared_size(size, riff_size, data_offset);
                    let reader = Self {
                        bytes,
                        offset: data_offset,
                        data_offset,
                        format,
                        spec,
                        encoding,
                        remaining: declared,
                        n_samples: None,
                        is_placeholder: declared.is_none() || is_placeholder(size),
                        is_truncated: false,
                        raw: Vec::new(),
                    };
                    return reader.measured(len);
                }
                _ => header.skip(padded(size))?,
            }
        }
    }

    /// Compares the declared size with the length of the source, where that is known.
    fn measured(mut self, len: Option<u64>) -> Result<Self> {
        let block = self.block();
        if let Some(len) = len {
            let there = len.saturating_sub(self.offset);
            if let Some(declared) = self.remaining {
                self.is_truncated = declared > there && !self.is_placeholder;
                if self.is_truncated && there < block {
                    return Err(Error::Truncated { format: self.format, offset: len });
                }
            }
            let usable = self.remaining.map_or(there, |declared| declared.min(there));
            self.remaining = Some(usable - usable % block);
        }
        if !self.is_placeholder || len.is_some() {
            self.n_samples = self.remaining.map(|bytes| bytes / block);
        }
        Ok(self)
    }

    /// The stream ended before the declared size, or at last if none was declared.
    fn end_early(&mut self) -> Result<()> {
        let is_promised = self.remaining.is_some() && !self.is_placeholder;
        self.remaining = Some(0);
        self.is_truncated |= is_promised;
        if is_promised && self.offset - self.data_offset < self.block() {
            return Err(Error::Truncated { format: self.format, offset: self.offset });
        }
        Ok(())
    }

    /// Bytes of one sample of all channels.
    fn block(&self) -> u64 {
        self.encoding.n_bytes() as u64 * u64::from(self.spec.channels)
    }
}

impl Pieces for WavReader {
    fn format(&self) -> &'static str {
        self.format
    }

    fn spec(&self) -> AudioSpec {
        self.spec
    }

    fn n_samples(&self) -> Option<u64> {
        self.n_samples
    }

    fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    fn n_corrupt(&self) -> u64 {
        0
    }

    fn read(&mut self) -> Result<Option<AudioBuffer>> {
        let block = self.block();
        let most = (PIECE_SAMPLES as u64).min((PIECE_BYTES as u64 / block).max(1)) * block;
        let want = self.remaining.map_or(most, |left| left.min(most));
        if want == 0 {
            return Ok(None);
        }
        self.raw.clear();
        let offset = self.offset;
        (&mut self.bytes).take(want).read_to_end(&mut self.raw).map_err(|source| Error::Io {
            what: "cannot read samples",
            offset,
            source,
        })?;
        let n = self.raw.len() as u64;
        self.offset += n;
        self.remaining = self.remaining.map(|left| left - n);
        if n < want {
            self.end_early()?;
        }
        // A cut through the middle of a sample leaves bytes that belong to no sample.
        let usable = self.raw.len() - self.raw.len() % block as usize;
        if usable == 0 {
            return Ok(None);
        }
        let samples = self.encoding.decode(&self.raw[..usable]);
        Ok(Some(AudioBuffer::from_interleaved(self.spec, &samples)?))
    }
}

impl Encoding {
    fn n_bytes(self) -> usize {
        match self {
            Self::U8 | Self::ALaw | Self::MuLaw => 1,
            Self::I16 => 2,
            Self::I24 => 3,
            Self::I32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Integers are divided by their full scale, which is exact up to 24 bits.
    fn decode(self, raw: &[u8]) -> Vec<f32> {
        match self {
            Self::U8 => raw.iter().map(|&b| (f32::from(b) - 128.0) / 128.0).collect(),
            Self::ALaw => raw.iter().map(|&b| f32::from(alaw(b)) / 32_768.0).collect(),
            Self::MuLaw => raw.iter().map(|&b| f32::from(mulaw(b)) / 32_768.0).collect(),
            Self::I16 => chunks(raw, |b: [u8; 2]| f32::from(i16::from_le_bytes(b)) / 32_768.0),
            Self::I24 => {
                chunks(raw, |[a, b, c]: [u8; 3]| (i32::from_le_bytes([0, a, b, c]) >> 8) as f32 / 8_388_608.0)
            }
            Self::I32 => chunks(raw, |b: [u8; 4]| i32::from_le_bytes(b) as f32 / 2_147_483_648.0),
            Self::F32 => chunks(raw, f32::from_le_bytes),
            Self::F64 => chunks(raw, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
        }
    }
}

fn chunks<const N: usize>(raw: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    raw.as_chunks::<N>().0.iter().map(|&bytes| convert(bytes)).collect()
}

/// G.711 A-law to 16-bit linear.
fn alaw(code: u8) -> i16 {
    let code = code ^ 0x55;
    let exponent = (code >> 4) & 7;
    let mantissa = i16::from(code & 15);
    let magnitude = match exponent {
        0 => (mantissa << 4) + 8,
        _ => ((mantissa << 4) + 0x108) << (exponent - 1),
    };
    if code & 0x80 == 0 { -magnitude } else { magnitude }
}

/// G.711 mu-law to 16-bit linear.
fn mulaw(code: u8) -> i16 {
    let code = !code;
    let exponent = (code >> 4) & 7;
    let magnitude = (((i16::from(code & 15) << 3) + 0x84) << exponent) - 0x84;
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The size of the samples, or `None` when the header was never finished.
///
/// A size of 0 is real when the RIFF size reaches past it, as it does in an empty but finished
/// file with a chunk behind the samples.
fn declared_size(size: u64, riff_size: u32, data_offset: u64) -> Option<u64> {
    let riff_end = u64::from(riff_size) + 8;
    let is_open = riff_size == u32::MAX || riff_end <= data_offset;
    match size {
        0xFFFF_FFFF | u64::MAX => None,
        0 if is_open => None,
        _ => Some(size),
    }
}

/// Sizes just below 2 GiB are what sox writes into a pipe.
fn is_placeholder(size: u64) -> bool {
    (0x7FFF_F000..=0x7FFF_FFFF).contains(&size)
}

/// Chunks start at even offsets; a pad byte follows an odd one.
fn padded(size: u64) -> u64 {
    size + size % 2
}

struct HeaderReader<'a> {
    bytes: &'a mut Bytes,
    offset: u64,
    format: &'static str,
}

impl HeaderReader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        let (format, offset) = (self.format, self.offset);
        self.bytes.read_exact(&mut out).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                Error::Truncated { format, offset: self.bytes.position().get() }
            }
            _ => Error::Io { what: "cannot read the header", offset, source },
        })?;
        self.offset += N as u64;
        Ok(out)
    }

    fn skip(&mut self, n: u64) -> Result<()> {
        let offset = self.offset;
        let skipped = std::io::copy(&mut self.bytes.take(n), &mut std::io::sink())
            .map_err(|source| Error::Io { what: "cannot skip a chunk", offset, source })?;
        if skipped < n {
            return Err(Error::Truncated { format: self.format, offset: offset + skipped });
        }
        self.offset += n;
        Ok(())
    }

    /// Reads a `fmt ` chunk; the last value is how many of its bytes were read.
    fn fmt(&mut self, at: u64, size: u64) -> Result<(AudioSpec, Encoding, u64)> {
        let format = self.format;
        if size < 16 {
            let what = "the size of the fmt chunk";
            return Err(Error::Field { format, what, actual: size, offset: at });
        }
        let body = self.array::<16>()?;
        let field = |i| le16(&body, i).unwrap_or(0);
        let (mut tag, channels, block, bits) = (field(0), field(2), field(12), field(14));
        let sample_rate = le32(&body, 4).unwrap_or(0);
        let mut read = 16;
        if tag == FORMAT_EXTENSIBLE {
            if size < 40 {
                let what = "the size of the extensible fmt chunk";
                return Err(Error::Field { format, what, actual: size, offset: at });
            }
            // cbSize, valid bits, channel mask, then the GUID. Fewer valid bits than the
            // container has are stored left-justified, so the container's scale is right.
            let extension = self.array::<24>()?;
            read = 40;
            tag = le16(&extension, 8).unwrap_or(0);
            if extension[10..] != GUID_TAIL {
                let what = "this sub-format GUID".to_owned();
                return Err(Error::Unsupported { format, what, offset: at + 8 + 24 });
            }
        }
        if sample_rate == 0 {
            return Err(Error::Field { format, what: "the sample rate", actual: 0, offset: at + 12 });
        }
        if channels == 0 {
            let what = "the number of channels";
            return Err(Error::Field { format, what, actual: 0, offset: at + 10 });
        }
        let encoding = match (tag, bits) {
            (FORMAT_PCM, 1..=8) => Encoding::U8,
            (FORMAT_PCM, 9..=16) => Encoding::I16,
            (FORMAT_PCM, 17..=24) => Encoding::I24,
            (FORMAT_PCM, 25..=32) => Encoding::I32,
            (FORMAT_FLOAT, 32) => Encoding::F32,
            (FORMAT_FLOAT, 64) => Encoding::F64,
            (FORMAT_ALAW, 8) => Encoding::ALaw,
            (FORMAT_MULAW, 8) => Encoding::MuLaw,
            _ => {
                let what = format!("format tag {tag:#06x} with {bits} bits per sample");
                return Err(Error::Unsupported { format, what, offset: at + 8 });
            }
        };
        if usize::from(block) != encoding.n_bytes() * usize::from(channels) {
            let what = "the block size";
            return Err(Error::Field { format, what, actual: block.into(), offset: at + 20 });
        }
        Ok((AudioSpec { sample_rate, channels }, encoding, read))
    }
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end points and signs that G.711 tables 1a and 2a give, in 16-bit units.
    #[test]
    fn g711_tables() {
        assert_eq!([alaw(0xD5), alaw(0x55), alaw(0xAA), alaw(0x2A)], [8, -8, 32_256, -32_256]);
        assert_eq!([mulaw(0xFF), mulaw(0x7F), mulaw(0x80), mulaw(0x00)], [0, 0, 32_124, -32_124]);
        // Both laws rise with the magnitude of their code.
        assert!((0x80..0xFFu8).all(|code| mulaw(code) > mulaw(code + 1)));
    }

    #[test]
    fn unfinished_sizes() {
        assert_eq!(declared_size(0, 0, 44), None);
        assert_eq!(declared_size(0, 36, 44), None);
        assert_eq!(declared_size(0, u32::MAX, 44), None);
        assert_eq!(declared_size(0, 36 + 18, 44), Some(0));
        assert_eq!(declared_size(0xFFFF_FFFF, 0, 44), None);
        assert_eq!(declared_size(8, 0, 44), Some(8));
    }
}
