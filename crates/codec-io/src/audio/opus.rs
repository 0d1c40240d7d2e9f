//! Opus: Ogg Opus files, and the packet decoder that Matroska shares.
//!
//! # Source
//! RFC 7845 (Ogg encapsulation, pre-skip, end trimming, channel mapping), RFC 6716 section 3.1
//! (duration of a packet).

use super::Pieces;
use super::source::{Bytes, Position};
use crate::error::{Error, Result};
use codec_core::{AudioBuffer, AudioSpec};
use ogg::reading::{OggReadError, PacketReader};
use opus_pure::{MAX_PACKET_SAMPLES, OpusDecoder, OpusMSDecoder};
use std::collections::VecDeque;
use std::io::{Read, Seek, SeekFrom};

/// Opus always decodes at this rate here; granule positions count in it too.
pub(crate) const RATE: u32 = 48_000;

/// 255 frames of 1275 bytes and their lengths: more bytes than any packet of 120 ms needs.
const MAX_PACKET_LEN: usize = 1 << 19;

/// Where to put the channels of mapping family 1, which come in Vorbis order, so that they lie in
/// the order of WAV: `WAV_ORDER[channels - 1][wav_idx]` is the Vorbis index.
const WAV_ORDER: [&[usize]; 8] = [
    &[0],
    &[0, 1],
    &[0, 2, 1],
    &[0, 1, 2, 3],
    &[0, 2, 1, 3, 4],
    &[0, 2, 1, 5, 3, 4],
    &[0, 2, 1, 6, 5, 3, 4],
    &[0, 2, 1, 7, 5, 6, 3, 4],
];

/// Whether an Ogg file that starts with these bytes has Opus as its first stream.
pub(crate) fn is_ogg_opus(head: &[u8]) -> bool {
    let n_segments = head.get(26).copied().map_or(0, usize::from);
    head.starts_with(b"OggS") && head.get(27 + n_segments..).is_some_and(|p| p.starts_with(b"OpusHead"))
}

/// The identification header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpusHead {
    pub(crate) channels: u8,
    /// Samples at 48 kHz to drop at the start.
    pub(crate) pre_skip: u16,
    gain_q8: i16,
    family: u8,
    /// Number of streams, of coupled streams, and the mapping, for families other than 0.
    table: Vec<u8>,
}

impl OpusHead {
    pub(crate) fn parse(bytes: &[u8], offset: u64) -> Result<Self> {
        let broken = |what| Error::Format { format: "Opus", what, offset };
        let fixed: &[u8; 19] = bytes.first_chunk().ok_or(broken("the identification header is short"))?;
        if !fixed.starts_with(b"OpusHead") {
            return Err(broken("the identification header does not start with OpusHead"));
        }
        // The upper half of the version is the incompatible part.
        if fixed[8] >> 4 != 0 {
            let what = format!("version {}", fixed[8]);
            return Err(Error::Unsupported { format: "Opus", what, offset });
        }
        let head = Self {
            channels: fixed[9],
            pre_skip: u16::from_le_bytes([fixed[10], fixed[11]]),
            gain_q8: i16::from_le_bytes([fixed[16], fixed[17]]),
            family: fixed[18],
            table: bytes[19..].to_vec(),
        };
        if head.channels == 0 {
            let what = "the number of channels";
            return Err(Error::Field { format: "Opus", what, actual: 0, offset });
        }
        Ok(head)
    }
}

/// Decodes packets to interleaved samples in WAV channel order.
pub(crate) struct PacketDecoder {
    streams: Streams,
    n_channels: usize,
    pcm: Vec<f32>,
}

enum Streams {
    One(Box<OpusDecoder>),
    Many(Box<OpusMSDecoder>),
}

impl PacketDecoder {
    pub(crate) fn new(head: &OpusHead, offset: u64) -> Result<Self> {
        let unsupported = |what| Error::Unsupported { format: "Opus", what, offset };
        let n_channels = usize::from(head.channels);
        let refused = |e: opus_pure::Error| unsupported(format!("{n_channels} channels: {e}"));
        let gain = i32::from(head.gain_q8);
        let streams = match head.family {
            0 => {
                let mut decoder = OpusDecoder::new(RATE as i32, n_channels).map_err(refused)?;
                decoder.gain_q8 = gain;
                Streams::One(Box::new(decoder))
            }
            1 => {
                let mut decoder = OpusMSDecoder::new(RATE as i32, n_channels, 1).map_err(refused)?;
                let layout = decoder.layout();
                // The decoder knows the layouts that RFC 7845 lists, not arbitrary tables.
                let mut expected = vec![layout.nb_streams as u8, layout.nb_coupled_streams as u8];
                expected.extend(layout.mapping.iter().copied());
                if head.table.get(..expected.len()) != Some(&expected) {
                    return Err(unsupported("a channel mapping other than the standard one".into()));
                }
                decoder.streams_mut().iter_mut().for_each(|stream| stream.gain_q8 = gain);
                Streams::Many(Box::new(decoder))
            }
            family => return Err(unsupported(format!("channel mapping family {family}"))),
        };
        let pcm = vec![0.0; MAX_PACKET_SAMPLES * n_channels];
        Ok(Self { streams, n_channels, pcm })
    }

    pub(crate) fn spec(&self) -> AudioSpec {
        AudioSpec { sample_rate: RATE, channels: self.n_channels as u16 }
    }

    /// One vector per channel; `None` when the packet cannot be decoded.
    pub(crate) fn decode(&mut self, packet: &[u8]) -> Option<Vec<Vec<f32>>> {
        if packet.is_empty() || packet.len() > MAX_PACKET_LEN {
            return None;
        }
        let n_samples = match &mut self.streams {
            Streams::One(decoder) => decoder.decode(packet, MAX_PACKET_SAMPLES, &mut self.pcm),
            Streams::Many(decoder) => decoder.decode(packet, MAX_PACKET_SAMPLES, &mut self.pcm),
        };
        let pcm = self.pcm.get(..n_samples.ok()? * self.n_channels)?;
        let order = WAV_ORDER.get(self.n_channels - 1)?;
        Some(order.iter().map(|&c| pcm.iter().skip(c).step_by(self.n_channels).copied().collect()).collect())
    }
}

/// Duration of a packet at 48 kHz, from its first two bytes.
pub(crate) fn n_packet_samples(packet: &[u8]) -> Option<u64> {
    let toc = *packet.first()?;
    let config = toc >> 3;
    let frame: u64 = match config {
        // SILK: 10, 20, 40, 60 ms.
        0..=11 => [480, 960, 1920, 2880][usize::from(config % 4)],
        // Hybrid: 10, 20 ms.
        12..=15 => [480, 960][usize::from(config % 2)],
        // CELT: 2.5, 5, 10, 20 ms.
        _ => [120, 240, 480, 960][usize::from(config % 4)],
    };
    let n_frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => u64::from(packet.get(1)? & 63),
    };
    let n_samples = frame * n_frames;
    (1..=MAX_PACKET_SAMPLES as u64).contains(&n_samples).then_some(n_samples)
}

/// An Ogg Opus file read from front to back.
pub(crate) struct OggOpus {
    packets: PacketReader<Bytes>,
    position: Position,
    decoder: PacketDecoder,
    head: OpusHead,
    serial: u32,
    /// Packets of the first page, which were needed to know where the stream starts.
    waiting: VecDeque<ogg::Packet>,
    /// Granule position at which the first packet starts.
    start: u64,
    /// Samples decoded of this stream, the dropped ones included.
    n_decoded: u64,
    n_samples: Option<u64>,
    is_ended: bool,
    is_truncated: bool,
    n_corrupt: u64,
}

impl OggOpus {
    pub(crate) fn new(mut bytes: Bytes) -> Result<Self> {
        let last_granule = last_granule(&mut bytes)?;
        let position = bytes.position();
        let mut packets = PacketReader::new(bytes);
        let first = expect(packets.read_packet(), &position)?;
        let head = OpusHead::parse(&first.data, 28)?;
        let decoder = PacketDecoder::new(&head, 28)?;
        let serial = first.stream_serial();
        let mut reader = Self {
            packets,
            position,
            decoder,
            head,
            serial,
            waiting: VecDeque::new(),
            start: 0,
            n_decoded: 0,
            n_samples: None,
            is_ended: false,
            is_truncated: false,
            n_corrupt: 0,
        };
        reader.start_stream()?;
        if reader.waiting.is_empty() && !reader.is_ended {
            return Err(Error::Truncated { format: "Ogg Opus", offset: reader.position.get() });
        }
        reader.n_samples = last_granule.filter(|(serial, _)| *serial == reader.serial).map(|(_, granule)| {
            granule.saturating_sub(reader.start).saturating_sub(reader.head.pre_skip.into())
        });
        Ok(reader)
    }

    /// Skips the comment header and reads the first page of audio.
    fn start_stream(&mut self) -> Result<()> {
        let Some(tags) = self.next_packet()? else {
            self.is_truncated = true;
            return Ok(());
        };
        if !tags.data.starts_with(b"OpusTags") {
            let what = "the second packet does not start with OpusTags";
            return Err(Error::Format { format: "Ogg Opus", what, offset: self.position.get() });
        }
        let mut n_page = 0u64;
        while let Some(packet) = self.next_packet()? {
            n_page += n_packet_samples(&packet.data).unwrap_or(0);
            let (is_last, is_end, granule) =
                (packet.last_in_page(), packet.last_in_stream(), packet.absgp_page());
            self.waiting.push_back(packet);
            if is_last {
                // A recording that was joined late starts with a high position. On the last
                // page a position short of the sum means trimming at the end instead.
                self.start = if is_end || granule == u64::MAX { 0 } else { granule.saturating_sub(n_page) };
                break;
            }
        }
        self.n_decoded = 0;
        Ok(())
    }

    /// The next packet of this stream; other streams of the file are passed over.
    fn next_packet(&mut self) -> Result<Option<ogg::Packet>> {
        loop {
            match self.packets.read_packet() {
                Ok(Some(packet)) if packet.stream_serial() == self.serial => return Ok(Some(packet)),
                Ok(Some(packet)) if packet.data.starts_with(b"OpusHead") && self.is_ended => {
                    return Ok(Some(packet));
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                // Something other than Ogg follows the end mark.
                Err(OggReadError::NoCapturePatternFound) if self.is_ended => return Ok(None),
                Err(OggReadError::ReadError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(None);
                }
                Err(e) => return Err(fault(e, &self.position)),
            }
        }
    }

    /// A file may hold several streams one after the other.
    fn chain(&mut self, first: &ogg::Packet) -> Result<()> {
        let offset = self.position.get();
        let head = OpusHead::parse(&first.data, offset)?;
        if head.channels != self.head.channels {
            let what = format!("a change from {} to {} channels", self.head.channels, head.channels);
            return Err(Error::Unsupported { format: "Ogg Opus", what, offset });
        }
        self.decoder = PacketDecoder::new(&head, offset)?;
        self.head = head;
        self.serial = first.stream_serial();
        self.is_ended = false;
        self.start_stream()
    }

    /// Drops the samples before the pre-skip and those after the page's position.
    fn heard(&mut self, packet: &ogg::Packet, channels: &mut [Vec<f32>]) {
        let n = channels.first().map_or(0, Vec::len) as u64;
        let begin = u64::from(self.head.pre_skip).saturating_sub(self.n_decoded).min(n);
        let end = match packet.absgp_page() {
            u64::MAX => n,
            granule => granule.saturating_sub(self.start).saturating_sub(self.n_decoded).min(n),
        };
        self.n_decoded += n;
        for channel in channels {
            channel.truncate(end as usize);
            channel.drain(..(begin as usize).min(channel.len()));
        }
    }
}

impl Pieces for OggOpus {
    fn format(&self) -> &'static str {
        "Ogg Opus"
    }

    fn spec(&self) -> AudioSpec {
        self.decoder.spec()
    }

    fn n_samples(&self) -> Option<u64> {
        self.n_samples
    }

    fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    fn n_corrupt(&self) -> u64 {
        self.n_corrupt
    }

    fn read(&mut self) -> Result<Option<AudioBuffer>> {
        loop {
            let packet = match self.waiting.pop_front() {
                Some(packet) => packet,
                None => match self.next_packet()? {
                    Some(packet) => packet,
                    None => {
                        self.is_truncated |= !self.is_ended;
                        return Ok(None);
                    }
                },
            };
            if self.is_ended && packet.data.starts_with(b"OpusHead") {
                self.chain(&packet)?;
                continue;
            }
            let mut channels = match self.decoder.decode(&packet.data) {
                Some(channels) => channels,
                None => {
                    // Silence keeps the time right.
                    self.n_corrupt += 1;
                    let n = n_packet_samples(&packet.data).unwrap_or(0) as usize;
                    vec![vec![0.0; n]; usize::from(self.head.channels)]
                }
            };
            self.is_ended |= packet.last_in_stream();
            self.heard(&packet, &mut channels);
            let piece = AudioBuffer::from_planar(self.spec(), channels)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }
}

/// Serial number and granule position of the last page, where the source can seek.
fn last_granule(bytes: &mut Bytes) -> Result<Option<(u32, u64)>> {
    /// The largest page is a little shorter.
    const TAIL_LEN: u64 = 1 << 16;
    let Some(len) = bytes.len() else { return Ok(None) };
    let start = len.saturating_sub(TAIL_LEN);
    let failed = |source| Error::Io { what: "cannot read the last Ogg page", offset: start, source };
    let mut tail = Vec::new();
    bytes.seek(SeekFrom::Start(start)).map_err(failed)?;
    (&mut *bytes).take(TAIL_LEN).read_to_end(&mut tail).map_err(failed)?;
    bytes.seek(SeekFrom::Start(0)).map_err(failed)?;
    let page = tail.windows(27).rev().find(|page| page.starts_with(b"OggS\0"));
    Ok(page.and_then(|page| {
        let granule = u64::from_le_bytes(*page[6..].first_chunk()?);
        let serial = u32::from_le_bytes(*page[14..].first_chunk()?);
        (granule != u64::MAX).then_some((serial, granule))
    }))
}

fn expect(packet: Result<Option<ogg::Packet>, OggReadError>, position: &Position) -> Result<ogg::Packet> {
    match packet {
        Ok(Some(packet)) => Ok(packet),
        Ok(None) => Err(Error::Truncated { format: "Ogg Opus", offset: position.get() }),
        Err(OggReadError::ReadError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(Error::Truncated { format: "Ogg Opus", offset: position.get() })
        }
        Err(e) => Err(fault(e, position)),
    }
}

fn fault(error: OggReadError, position: &Position) -> Error {
    let offset = position.get();
    let what = match error {
        OggReadError::ReadError(source) => {
            return Error::Io { what: "cannot read an Ogg page", offset, source };
        }
        OggReadError::NoCapturePatternFound => "no Ogg page where one is due",
        OggReadError::InvalidStreamStructVer(_) => "the version of an Ogg page is not 0",
        OggReadError::HashMismatch(..) => "the checksum of an Ogg page does not fit",
        OggReadError::InvalidData => "the fields of an Ogg page contradict each other",
    };
    Error::Format { format: "Ogg Opus", what, offset }
}
