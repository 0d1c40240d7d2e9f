//! The header of a token file: what made the codes, and how they are laid out.

use super::error::{TokenError, TokenResult};
use super::packet::Packing;
use super::scan::Window;
use super::{MAX_FRAMES, MAX_HEADER_BYTES, MAX_HOP_LENGTH, MAX_TAG_VALUE_BYTES, MAX_TAGS};
use codec_core::codes::MAX_CODEBOOKS;
use codec_core::{AudioSpec, CodeLayout, CodebookSpec, CodecInfo, Segment};
use std::fmt;
use std::io::Read;
use std::str::FromStr;

/// The first bytes of every token file.
///
/// The first one is not ASCII and starts no UTF-8 character; the line ends and the end-of-file
/// byte show a transfer in text mode, as in PNG.
pub(super) const MAGIC: [u8; 8] = *b"\x8eNAC\r\n\x1a\n";
const VERSION: u8 = 1;
const MINOR: u8 = 0;
/// Magic, version and length of the header's body.
const PREFIX_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const UNKNOWN: u64 = u64::MAX;

/// Whole seconds that a packet spans by default at most, and at least one.
const MAX_DEFAULT_SECONDS: u64 = 4;
/// Payload that makes the frame of a packet, 24 bytes, cheap.
const GOOD_PAYLOAD_BYTES: u64 = 1024;

/// SHA-256 of a model's weights.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightsHash(pub [u8; 32]);

impl WeightsHash {
    /// For codes of which nobody knows which weights made them: no file has this hash.
    pub const UNKNOWN: Self = Self([0; 32]);
}

impl fmt::Display for WeightsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for WeightsHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeightsHash({self})")
    }
}

/// A text is not the hexadecimal form of a SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not 64 hexadecimal digits")]
pub struct ParseHashError;

impl FromStr for WeightsHash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(ParseHashError) };
        let mut hash = [0; 32];
        if pairs.len() != hash.len() {
            return Err(ParseHashError);
        }
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        for (byte, &[high, low]) in hash.iter_mut().zip(pairs) {
            *byte = digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low).ok_or(ParseHashError)?;
        }
        Ok(Self(hash))
    }
}

impl From<[u8; 32]> for WeightsHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// How much audio the codes stand for, per channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Samples at the codec's rate: the length of the decoded audio, after the start was trimmed.
    pub n_samples: u64,
    /// Samples at the rate of the audio that was encoded.
    pub source_samples: u64,
}

/// Everything that a token file says before its first code.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenHeader {
    /// Name of the codec's family, for example `encodec`.
    pub family: String,
    /// Name of the model, for example `encodec_24khz`.
    pub model: String,
    /// SHA-256 of the weights that made the codes.
    pub weights: WeightsHash,
    /// The audio that the codec codes.
    pub audio: AudioSpec,
    /// Samples per frame at the codec's rate.
    pub hop_length: u32,
    /// Segments, where the codec codes audio in pieces.
    pub segment: Option<Segment>,
    /// The codebooks that the file holds.
    pub layout: CodeLayout,
    /// How many codebooks the codec has; those beyond the layout's were not kept.
    pub n_codebooks_total: usize,
    /// Rate and channels of the audio that was encoded, before any conversion.
    pub source: AudioSpec,
    /// Samples to drop from the start of the decoded audio; not 0 after a cut inside a block.
    pub start_trim: u64,
    /// How much audio there is; `None` when that was not known yet: then only the end packet says.
    pub totals: Option<Totals>,
    /// Frames in every packet but the last, which may have fewer.
    pub packet_frames: u32,
    /// Free tags, in order: key and value.
    pub tags: Vec<(String, String)>,
}

impl TokenHeader {
    /// The header for the first `n_codebooks` codebooks of a codec, with packets of about a second.
    ///
    /// `source` is the audio as it was before it was converted to the codec's rate and channels.
    ///
    /// # Errors
    /// [`TokenError::Codes`] when the codec has not that many codebooks, [`TokenError::Limit`] or
    /// [`TokenError::Header`] when a value is beyond what a file can hold.
    pub fn new(
        info: &CodecInfo,
        n_codebooks: usize,
        weights: impl Into<WeightsHash>,
        source: AudioSpec,
    ) -> TokenResult<Self> {
        let mut header = Self {
            family: info.family.to_owned(),
            model: info.model.clone(),
            weights: weights.into(),
            audio: info.audio,
            hop_length: info.hop_length,
            segment: info.segment,
            layout: info.layout.truncated(n_codebooks)?,
            n_codebooks_total: info.layout.n_codebooks(),
            source,
            start_trim: 0,
            totals: None,
            packet_frames: 0,
            tags: Vec::new(),
        };
        header.packet_frames = header.default_packet_frames();
        header.validate()?;
        Ok(header)
    }

    /// Name of the tag that says in what numbers the weights were held, unless it was those of the checkpoint.
    pub const WEIGHTS_TAG: &str = "codec.weights";

    /// Adds a tag.
    #[must_use]
    pub fn with_tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.push((key.into(), value.into()));
        self
    }

    /// The value of the first tag of that name.
    pub fn tag(&self, key: &str) -> Option<&str> {
        self.tags.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The numbers that held the weights: `float32`, unless [`TokenHeader::WEIGHTS_TAG`] says something else.
    pub fn weight_numbers(&self) -> &str {
        self.tag(Self::WEIGHTS_TAG).unwrap_or("float32")
    }

    /// Checks that the codes were made with the weights at hand.
    ///
    /// # Errors
    /// [`TokenError::Weights`], which names both hashes.
    pub fn check_weights(&self, sha256: &[u8; 32]) -> TokenResult<()> {
        if self.weights.0 == *sha256 {
            return Ok(());
        }
        Err(TokenError::Weights { expected: self.weights, actual: WeightsHash(*sha256) })
    }

    /// Samples that `n_frames` frames decode to, before anything is trimmed.
    pub fn samples_in(&self, n_frames: u64) -> u64 {
        let plain = |n: u64| n.saturating_mul(self.hop_length.into());
        let Some(segment) = self.segment else { return plain(n_frames) };
        let per_segment = u64::from(segment.n_frames.max(1));
        let (whole, rest) = (n_frames / per_segment, n_frames % per_segment);
        let start = |n: u64| n.saturating_mul(segment.stride.into());
        match (whole, rest) {
            (0, 0) => 0,
            (whole, 0) => start(whole - 1).saturating_add(segment.n_samples.into()),
            (whole, rest) => start(whole).saturating_add(plain(rest).min(segment.n_samples.into())),
        }
    }

    /// Samples from the start of one block to the start of the next.
    pub fn block_samples(&self) -> u64 {
        let block = u64::from(self.layout.block_frames());
        let Some(segment) = self.segment else { return block.saturating_mul(self.hop_length.into()) };
        (block / u64::from(segment.n_frames.max(1))).saturating_mul(segment.stride.into())
    }

    /// Converts a count of samples at the codec's rate to the rate of the source, rounded.
    pub fn to_source_samples(&self, n_samples: u64) -> u64 {
        let rate = u128::from(self.audio.sample_rate.max(1));
        let scaled = (u128::from(n_samples) * u128::from(self.source.sample_rate) + rate / 2) / rate;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    /// Frames per packet for a file whose writer does not choose: at least one second, and more,
    /// up to four, until the payload reaches 1 KiB; always whole blocks.
    pub fn default_packet_frames(&self) -> u32 {
        let block = self.layout.block_frames();
        let packing = Packing::new(&self.layout);
        let per_second = u64::from(self.audio.sample_rate).div_ceil(u64::from(self.hop_length.max(1)));
        let blocks_of = |seconds: u64| (per_second * seconds).div_ceil(block.into()).max(1);
        let block_bits = packing.bits(block).max(1);
        let good = (GOOD_PAYLOAD_BYTES * 8).div_ceil(block_bits);
        let n_blocks = good.clamp(blocks_of(1), blocks_of(MAX_DEFAULT_SECONDS));
        // Layouts with huge blocks: as many as fit, and one at least, which validation may refuse.
        let fitting =
            |n: u64| u32::try_from(n * u64::from(block)).ok().filter(|&frames| packing.check(frames).is_ok());
        let mut n_blocks = n_blocks;
        while n_blocks > 1 && fitting(n_blocks).is_none() {
            n_blocks /= 2;
        }
        fitting(n_blocks).unwrap_or(block)
    }

    /// Checks every field against what a file can hold.
    ///
    /// # Errors
    /// [`TokenError::Header`] for a value out of its range, [`TokenError::Limit`] for one beyond a
    /// limit of this version.
    pub fn validate(&self) -> TokenResult<()> {
        self.check_fields(&mut |_| 0)
    }

    pub(super) fn layout_is_default(&self) -> bool {
        self.packet_frames == self.default_packet_frames()
    }

    /// Checks fields; `offset_of` gives the place of a field in the body, for the error.
    fn check_fields(&self, offset_of: &mut dyn FnMut(usize) -> u64) -> TokenResult<()> {
        let mut check = |what, at: usize, actual: u64, min: u64, max: u64| {
            if (min..=max).contains(&actual) {
                return Ok(());
            }
            Err(TokenError::Header { what, offset: offset_of(at), min, max, actual })
        };
        let block = u64::from(self.layout.block_frames());
        let n_codebooks = self.layout.n_codebooks() as u64;
        let u32_max = u64::from(u32::MAX);
        check("sample rate", 56, self.audio.sample_rate.into(), 1, u32_max)?;
        check("hop length", 60, self.hop_length.into(), 1, MAX_HOP_LENGTH.into())?;
        check("source sample rate", 64, self.source.sample_rate.into(), 1, u32_max)?;
        check("channels", 68, self.audio.channels.into(), 1, u16::MAX.into())?;
        check("source channels", 70, self.source.channels.into(), 1, u16::MAX.into())?;
        check(
            "codebooks of the codec",
            74,
            self.n_codebooks_total as u64,
            n_codebooks,
            MAX_CODEBOOKS as u64,
        )?;
        check("packet frames", 80, self.packet_frames.into(), block, u32_max)?;
        check("packet frames beyond whole blocks", 80, u64::from(self.packet_frames) % block, 0, 0)?;
        let max_samples = MAX_FRAMES * u64::from(MAX_HOP_LENGTH);
        check("samples trimmed at the start", 48, self.start_trim, 0, max_samples)?;
        if let Some(totals) = self.totals {
            check("samples", 32, totals.n_samples, 0, max_samples)?;
            check("source samples", 40, totals.source_samples, 0, UNKNOWN - 1)?;
        }
        if let Some(segment) = self.segment {
            let most = u64::from(segment.n_frames) * u64::from(self.hop_length);
            check("segment samples", 84, segment.n_samples.into(), 1, most.min(u32_max).max(1))?;
            check("segment stride", 88, segment.stride.into(), 1, segment.n_samples.into())?;
            check("segment frames", 92, segment.n_frames.into(), 1, block)?;
            check("block frames beyond whole segments", 92, block % u64::from(segment.n_frames), 0, 0)?;
        }
        Packing::new(&self.layout).check(self.packet_frames)
    }

    /// The bytes of the header, from the magic to the checksum.
    ///
    /// # Errors
    /// As [`TokenHeader::validate`].
    pub(super) fn to_bytes(&self) -> TokenResult<Vec<u8>> {
        self.validate()?;
        let mut body = Vec::new();
        body.extend(self.weights.0);
        let [n_samples, source_samples] =
            self.totals.map_or([UNKNOWN; 2], |totals| [totals.n_samples, totals.source_samples]);
        for value in [n_samples, source_samples, self.start_trim] {
            body.extend(value.to_le_bytes());
        }
        for value in [self.audio.sample_rate, self.hop_length, self.source.sample_rate] {
            body.extend(value.to_le_bytes());
        }
        body.extend(self.audio.channels.to_le_bytes());
        body.extend(self.source.channels.to_le_bytes());
        for value in [self.layout.n_codebooks(), self.n_codebooks_total] {
            body.extend(small(value, "codebooks")?.to_le_bytes());
        }
        let segment = self.segment.map_or([0; 3], |s| [s.n_samples, s.stride, s.n_frames]);
        let [scale_frames, packet_frames] = [self.layout.scale_frames().unwrap_or(0), self.packet_frames];
        for value in [scale_frames, packet_frames].into_iter().chain(segment) {
            body.extend(value.to_le_bytes());
        }
        for codebook in self.layout.codebooks() {
            body.extend(codebook.size.to_le_bytes());
            body.extend(codebook.stride.to_le_bytes());
        }
        for (what, text) in [("family name", &self.family), ("model name", &self.model)] {
            put_text8(&mut body, what, text)?;
        }
        limit("tags", self.tags.len(), MAX_TAGS)?;
        body.extend(small(self.tags.len(), "tags")?.to_le_bytes());
        for (key, value) in &self.tags {
            put_text8(&mut body, "bytes of a tag's key", key)?;
            limit("bytes of a tag's value", value.len(), MAX_TAG_VALUE_BYTES)?;
            body.extend(small(value.len(), "bytes of a tag's value")?.to_le_bytes());
            body.extend(value.as_bytes());
        }
        limit("header bytes", body.len(), MAX_HEADER_BYTES)?;

        let mut bytes = MAGIC.to_vec();
        bytes.extend([VERSION, MINOR, 0, 0]);
        // At most MAX_HEADER_BYTES.
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        Ok(bytes)
    }

    /// Reads a header from the start of a window, and says how many bytes it has.
    ///
    /// # Errors
    /// As [`super::TokenReader::new`].
    pub(super) fn read<R: Read>(window: &mut Window<R>) -> TokenResult<(Self, usize)> {
        let bytes = window.fill(PREFIX_BYTES)?;
        check_magic(bytes)?;
        let Some(&prefix) = bytes.first_chunk::<PREFIX_BYTES>() else {
            return Err(TokenError::HeaderTruncated { offset: bytes.len() as u64 });
        };
        let [.., major, minor, flags_low, flags_high, l0, l1, l2, l3] = prefix;
        if major != VERSION {
            return Err(TokenError::Unsupported { what: "format version", value: major.into(), offset: 8 });
        }
        let flags = u16::from_le_bytes([flags_low, flags_high]);
        if flags != 0 {
            return Err(TokenError::Unsupported { what: "feature flags", value: flags.into(), offset: 10 });
        }
        let n_body = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
        let max = MAX_HEADER_BYTES as u64;
        let n_body = match usize::try_from(n_body) {
            Ok(n) if n <= MAX_HEADER_BYTES => n,
            _ => {
                let what = "header length";
                return Err(TokenError::Header { what, offset: 12, min: 0, max, actual: n_body });
            }
        };
        let n_covered = PREFIX_BYTES + n_body;
        let bytes = window.fill(n_covered + CRC_BYTES)?;
        let Some((covered, crc)) = bytes.split_at_checked(n_covered) else {
            return Err(TokenError::HeaderTruncated { offset: bytes.len() as u64 });
        };
        let Some(crc) = crc.first_chunk() else {
            return Err(TokenError::HeaderTruncated { offset: bytes.len() as u64 });
        };
        let (stored, computed) = (u32::from_le_bytes(*crc), crc32c::crc32c(covered));
        if stored != computed {
            return Err(TokenError::HeaderChecksum { offset: n_covered as u64, stored, computed });
        }
        let mut fields = Fields { body: &covered[PREFIX_BYTES..], at: 0 };
        let header = fields.header()?;
        // A later minor version may append fields; this one knows all of its own.
        if minor == MINOR && fields.at != n_body {
            let (offset, actual) = (fields.offset(fields.at), (n_body - fields.at) as u64);
            let what = "bytes after the last tag";
            return Err(TokenError::Header { what, offset, min: 0, max: 0, actual });
        }
        header.check_fields(&mut |at| (PREFIX_BYTES + at) as u64)?;
        Ok((header, n_covered + CRC_BYTES))
    }
}

/// Reads the fields of a header's body in their order.
struct Fields<'a> {
    body: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn header(&mut self) -> TokenResult<TokenHeader> {
        let weights = WeightsHash(self.take()?);
        let totals_at = self.at;
        let (n_samples, source_samples) = (self.u64()?, self.u64()?);
        let totals = (n_samples != UNKNOWN).then_some(Totals { n_samples, source_samples });
        if (n_samples == UNKNOWN) != (source_samples == UNKNOWN) {
            let (what, offset) = ("source samples", self.offset(totals_at + 8));
            let (min, max) = if totals.is_some() { (0, UNKNOWN - 1) } else { (UNKNOWN, UNKNOWN) };
            return Err(TokenError::Header { what, offset, min, max, actual: source_samples });
        }
        let start_trim = self.u64()?;
        let (sample_rate, hop_length, source_rate) = (self.u32()?, self.u32()?, self.u32()?);
        let (channels, source_channels) = (self.u16()?, self.u16()?);
        let n_codebooks_at = self.at;
        let (n_codebooks, n_codebooks_total) = (usize::from(self.u16()?), usize::from(self.u16()?));
        let (scale_frames, packet_frames) = (self.u32()?, self.u32()?);
        let segment_at = self.at;
        let [n_samples, stride, n_frames] = [self.u32()?, self.u32()?, self.u32()?];
        let segment = (n_frames != 0).then_some(Segment { n_samples, stride, n_frames });
        if segment.is_none() && (n_samples != 0 || stride != 0) {
            let (what, offset) = ("segment samples and stride", self.offset(segment_at));
            let actual = u64::from(n_samples.max(stride));
            return Err(TokenError::Header { what, offset, min: 0, max: 0, actual });
        }
        if !(1..=MAX_CODEBOOKS).contains(&n_codebooks) {
            let (what, offset) = ("codebooks", self.offset(n_codebooks_at));
            let (max, actual) = (MAX_CODEBOOKS as u64, n_codebooks as u64);
            return Err(TokenError::Header { what, offset, min: 1, max, actual });
        }
        let layout_at = self.offset(self.at);
        let codebooks = (0..n_codebooks)
            .map(|_| Ok(CodebookSpec { size: self.u32()?, stride: self.u32()? }))
            .collect::<TokenResult<Vec<_>>>()?;
        let layout = CodeLayout::new(codebooks)
            .and_then(|layout| if scale_frames == 0 { Ok(layout) } else { layout.with_scales(scale_frames) })
            .map_err(|source| TokenError::Layout { offset: layout_at, source })?;
        let family = self.text8("family name")?;
        let model = self.text8("model name")?;
        let n_tags_at = self.at;
        let n_tags = usize::from(self.u16()?);
        if n_tags > MAX_TAGS {
            let (offset, max) = (self.offset(n_tags_at), MAX_TAGS as u64);
            return Err(TokenError::Header { what: "tags", offset, min: 0, max, actual: n_tags as u64 });
        }
        let tags = (0..n_tags).map(|_| Ok((self.text8("tag key")?, self.text16("tag value")?)));
        let tags = tags.collect::<TokenResult<Vec<_>>>()?;
        Ok(TokenHeader {
            family,
            model,
            weights,
            audio: AudioSpec { sample_rate, channels },
            hop_length,
            segment,
            layout,
            n_codebooks_total,
            source: AudioSpec { sample_rate: source_rate, channels: source_channels },
            start_trim,
            totals,
            packet_frames,
            tags,
        })
    }

    /// Position in the file of a position in the body.
    fn offset(&self, at: usize) -> u64 {
        (PREFIX_BYTES + at) as u64
    }

    fn bytes(&mut self, n: usize) -> TokenResult<&[u8]> {
        let rest = &self.body[self.at..];
        let Some(taken) = rest.get(..n) else {
            let (offset, max) = (self.offset(self.at), rest.len() as u64);
            let what = "bytes of a field, which the header's length allows,";
            return Err(TokenError::Header { what, offset, min: 0, max, actual: n as u64 });
        };
        self.at += n;
        Ok(taken)
    }

    fn take<const N: usize>(&mut self) -> TokenResult<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> TokenResult<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> TokenResult<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> TokenResult<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text8(&mut self, what: &'static str) -> TokenResult<String> {
        let [n] = self.take()?;
        self.text(what, n.into())
    }

    fn text16(&mut self, what: &'static str) -> TokenResult<String> {
        let n = self.u16()?;
        self.text(what, n.into())
    }

    fn text(&mut self, what: &'static str, n: usize) -> TokenResult<String> {
        let offset = self.offset(self.at);
        let bytes = self.bytes(n)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| TokenError::Text { what, offset })
    }
}

fn check_magic(bytes: &[u8]) -> TokenResult<()> {
    let head = &bytes[..bytes.len().min(MAGIC.len())];
    if head == MAGIC {
        return Ok(());
    }
    if head.is_empty() {
        return Err(TokenError::Empty);
    }
    if MAGIC.starts_with(head) {
        return Err(TokenError::HeaderTruncated { offset: head.len() as u64 });
    }
    let hex = head.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    // The name is there, but the line ends, the end of file or the first byte's high bit are not.
    let name_only = head.get(1..4) == Some(&MAGIC[1..4]);
    let first = head.first().copied().unwrap_or(0);
    if name_only && (first == MAGIC[0] || first == MAGIC[0] & 0x7f) {
        return Err(TokenError::TextMode { head: hex });
    }
    Err(TokenError::NotTokens { head: hex })
}

fn limit(what: &'static str, actual: usize, max: usize) -> TokenResult<()> {
    if actual > max {
        return Err(TokenError::Limit { what, max: max as u64, actual: actual as u64 });
    }
    Ok(())
}

fn small(value: usize, what: &'static str) -> TokenResult<u16> {
    let (max, actual) = (u16::MAX.into(), value as u64);
    u16::try_from(value).map_err(|_| TokenError::Limit { what, max, actual })
}

fn put_text8(body: &mut Vec<u8>, what: &'static str, text: &str) -> TokenResult<()> {
    let n = u8::try_from(text.len());
    let n = n.map_err(|_| TokenError::Limit { what, max: u8::MAX.into(), actual: text.len() as u64 })?;
    body.push(n);
    body.extend(text.as_bytes());
    Ok(())
}
