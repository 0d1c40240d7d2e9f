//! Every format but WAV and Ogg Opus: symphonia demuxes and decodes, this file trims.
//!
//! # Same bits
//! symphonia is built without its SIMD features, so one build decodes to the same samples on
//! every CPU. The lossless formats are exact everywhere; MP3, AAC and Vorbis take their tables
//! from the platform's `sin`, `cos` and `pow`, so the last bit may differ between platforms.

use super::Pieces;
use super::mkv::Matroska;
use super::mp4::{self, Heard, Movie};
use super::opus::{OpusHead, PacketDecoder};
use super::source::{Position, Source, SyncBytes};
use crate::error::{Error, Result};
use codec_core::{AudioBuffer, AudioSpec};
use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::well_known::{
    CODEC_ID_AAC, CODEC_ID_ALAC, CODEC_ID_MP1, CODEC_ID_MP2, CODEC_ID_MP3, CODEC_ID_OPUS, CODEC_ID_VORBIS,
};
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::codecs::registry::CodecRegistry;
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::{Hint, Probe, ProbeOptions};
use symphonia::core::formats::{FormatOptions, FormatReader, Track, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;
use symphonia::default::{register_enabled_codecs, register_enabled_formats};

/// Padding between a tag and the audio that is searched through.
const MAX_PADDING: u32 = 64 << 10;

/// Packets in a row without a sample after which the input counts as broken.
const MAX_BAD_PACKETS: u32 = 256;

/// A file that symphonia demuxes.
pub(crate) struct Demuxed {
    reader: Box<dyn FormatReader>,
    decoder: Decoder,
    position: Position,
    format: &'static str,
    spec: AudioSpec,
    track: TrackFacts,
    /// The part of the media that is to be heard.
    heard: Heard,
    /// Samples of the media that came by.
    n_media: u64,
    /// Samples to drop from the end, which is known only when it is there.
    n_padding: usize,
    /// The last samples, which may turn out to be that padding.
    held: Vec<Vec<f32>>,
    /// A piece decoded at the start, to learn the rate and the channels.
    first: Option<AudioBuffer>,
    n_samples: Option<u64>,
    n_emitted: u64,
    is_truncated: bool,
    n_corrupt: u64,
}

enum Decoder {
    Symphonia(Box<dyn AudioDecoder>),
    Opus(PacketDecoder),
}

/// What the track says that the packets need.
struct TrackFacts {
    id: u32,
    /// Ticks per second when a tick is one over an integer.
    ticks_per_second: Option<u32>,
    /// The decoder drops a packet's padding itself.
    trims_itself: bool,
    /// A packet's duration is exact, so that what the decoder gives beyond it is padding.
    has_exact_durations: bool,
    /// Every sample is accounted for in the header, so that fewer mean truncation.
    has_exact_length: bool,
    /// The demuxer calls a proper end of this format unexpected.
    has_early_end: bool,
}

impl Demuxed {
    pub(crate) fn new(source: Source) -> Result<Self> {
        if !is_known(&source.head) {
            return Err(not_audio(&source.head));
        }
        let is_mp4 = mp4::is_mp4(&source.head);
        let is_caf = source.head.starts_with(b"caff");
        // Both may need a table that follows the samples.
        let mut source = if is_mp4 || is_caf { source.spooled()? } else { source };
        let movie = if is_mp4 { Movie::scan(&mut source.bytes)? } else { None };
        if is_mp4 && movie.is_none() {
            let (what, offset) = ("there is no moov box, as in an unfinished recording", source.bytes.len());
            return Err(Error::Format { format: "MP4", what, offset: offset.unwrap_or(0) });
        }
        let matroska = Matroska::scan(&source.head, &mut source.bytes)?;
        let position = source.bytes.position();
        // A demuxer that may seek looks for the end first and gives up when it is not there.
        let ends = [
            form_end(&source.head),
            matroska.as_ref().and_then(Matroska::end),
            movie.as_ref().map(Movie::end),
        ];
        let promised = ends.into_iter().flatten().max();
        let is_truncated = source.bytes.len().zip(promised).is_some_and(|(len, end)| end > len);
        let is_seekable = source.bytes.len().is_some() && !is_truncated;
        let reader = probe(SyncBytes::new(source.bytes, is_seekable), &source.head, &position)?;
        let format = format_name(reader.format_info().short_name);

        let track = reader.default_track(TrackType::Audio);
        let Some((track, params)) = track.and_then(|track| Some((track, audio_params(track)?))) else {
            let what = "there is no audio track that can be read";
            return Err(Error::Format { format, what, offset: position.get() });
        };
        let (decoder, codec_skip) = make_decoder(params, format, &position)?;
        let declared = params.sample_rate.unwrap_or(0);
        let mut heard = Heard { start: codec_skip, end: None };
        let facts = TrackFacts {
            id: track.id,
            ticks_per_second: track.time_base.filter(|t| t.numer.get() == 1).map(|t| t.denom.get()),
            trims_itself: matches!(
                params.codec,
                CODEC_ID_MP1 | CODEC_ID_MP2 | CODEC_ID_MP3 | CODEC_ID_VORBIS
            ),
            has_exact_durations: is_mp4,
            has_exact_length: matches!(format, "FLAC" | "MP4" | "AIFF" | "MP3"),
            has_early_end: match format {
                // Frame after frame, until there is none.
                "MP3" | "MP2" | "MP1" | "AAC" => true,
                // The demuxer looks for one more element than a stream has.
                "Matroska" => !is_seekable,
                _ => false,
            },
        };
        if let Some(edit) = movie.and_then(|movie| movie.heard(track.id, declared).transpose()).transpose()? {
            heard = edit;
        }
        let mut n_padding = 0;
        if let Some(matroska) = matroska {
            n_padding = matroska.padding(track.id, declared).min(declared.into());
            // Opus states its delay in its own header too, in samples.
            if params.codec == CODEC_ID_AAC {
                heard.start = matroska.delay(track.id, declared);
            }
        }
        let n_samples = n_media(track, params, format, &source.head)
            .map(|n| heard.end.map_or(n, |end| end.min(n)).saturating_sub(heard.start));
        let spec = AudioSpec { sample_rate: declared, channels: 0 };
        let mut this = Self {
            reader,
            decoder,
            position,
            format,
            spec,
            track: facts,
            heard,
            n_media: 0,
            n_padding: n_padding as usize,
            held: Vec::new(),
            first: None,
            n_samples,
            n_emitted: 0,
            is_truncated,
            n_corrupt: 0,
        };
        this.first = this.next_piece()?;
        if this.first.is_none() {
            return Err(this.nothing());
        }
        Ok(this)
    }

    /// The error when a whole input has no sample.
    fn nothing(&self) -> Error {
        let (format, offset) = (self.format, self.position.get());
        if self.n_corrupt > 0 {
            return Error::Format { format, what: "no packet can be decoded", offset };
        }
        Error::Truncated { format, offset }
    }

    fn next_piece(&mut self) -> Result<Option<AudioBuffer>> {
        let mut n_bad = 0;
        loop {
            if self.heard.end.is_some_and(|end| self.n_media >= end) {
                return Ok(None);
            }
            let packet = match self.reader.next_packet() {
                Ok(Some(packet)) if packet.track_id == self.track.id => packet,
                Ok(Some(_)) => continue,
                Ok(None) => return Ok(self.end()),
                Err(SymphoniaError::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    self.is_truncated |= !self.track.has_early_end;
                    return Ok(self.end());
                }
                Err(SymphoniaError::ResetRequired) => {
                    self.restart()?;
                    continue;
                }
                Err(e) => return Err(fault(e, self.format, &self.position)),
            };
            let Some(mut channels) = self.decode(&packet)? else {
                self.n_corrupt += 1;
                n_bad += 1;
                if n_bad >= MAX_BAD_PACKETS {
                    let what = "too many packets in a row cannot be decoded";
                    return Err(Error::Format { format: self.format, what, offset: self.position.get() });
                }
                continue;
            };
            self.trim(&packet, &mut channels);
            self.hold(&mut channels);
            if channels.first().is_some_and(|c| !c.is_empty()) {
                let piece = AudioBuffer::from_planar(self.spec, channels)?;
                self.n_emitted += piece.n_samples() as u64;
                return Ok(Some(piece));
            }
        }
    }

    fn end(&mut self) -> Option<AudioBuffer> {
        let is_short = self.n_samples.is_some_and(|n| self.n_emitted < n);
        self.is_truncated |= is_short && self.track.has_exact_length;
        None
    }

    /// One vector per channel; `None` for a packet that cannot be decoded.
    fn decode(&mut self, packet: &Packet) -> Result<Option<Vec<Vec<f32>>>> {
        let (spec, channels) = match &mut self.decoder {
            Decoder::Opus(decoder) => match decoder.decode(&packet.data) {
                Some(channels) => (decoder.spec(), channels),
                None => return Ok(None),
            },
            Decoder::Symphonia(decoder) => match decoder.decode(packet) {
                Ok(buffer) => {
                    let mut channels: Vec<Vec<f32>> = Vec::new();
                    buffer.copy_to_vecs_planar(&mut channels);
                    let sample_rate = buffer.spec().rate();
                    (AudioSpec { sample_rate, channels: channels.len() as u16 }, channels)
                }
                Err(SymphoniaError::DecodeError(_)) => return Ok(None),
                Err(SymphoniaError::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Ok(None);
                }
                Err(e) => return Err(fault(e, self.format, &self.position)),
            },
        };
        let n_samples = channels.first().map_or(0, Vec::len);
        if n_samples > 0 {
            self.check(spec)?;
        }
        Ok(Some(channels))
    }

    /// The first packet sets rate and channels, the others must have the same.
    fn check(&mut self, spec: AudioSpec) -> Result<()> {
        let (format, offset) = (self.format, self.position.get());
        if spec.sample_rate == 0 {
            return Err(Error::Field { format, what: "the sample rate", actual: 0, offset });
        }
        if self.spec.channels == 0 {
            self.spec = spec;
        }
        if self.spec != spec {
            let what = format!("a change from {} to {spec}", self.spec);
            return Err(Error::Unsupported { format, what, offset });
        }
        Ok(())
    }

    /// Exchanges the end of these samples for the samples held back before.
    fn hold(&mut self, channels: &mut [Vec<f32>]) {
        if self.n_padding == 0 {
            return;
        }
        self.held.resize(channels.len(), Vec::new());
        for (held, channel) in self.held.iter_mut().zip(channels) {
            held.append(channel);
            let end = held.len().saturating_sub(self.n_padding);
            channel.extend(held.drain(..end));
        }
    }

    fn trim(&mut self, packet: &Packet, channels: &mut [Vec<f32>]) {
        let is_in_samples = self.track.ticks_per_second == Some(self.spec.sample_rate);
        let n = channels.first().map_or(0, Vec::len) as u64;
        let (mut begin, mut end) = (0, n);
        if is_in_samples && !self.track.trims_itself {
            let dur = packet.dur.get();
            if packet.block_dur().get() == n {
                begin = packet.trim_start.get().min(n);
                end = n - packet.trim_end.get().min(n);
            } else if self.track.has_exact_durations && dur > 0 {
                end = dur.min(n);
            }
        }
        let from = self.n_media + begin;
        let to = self.n_media + end;
        let begin = begin + self.heard.start.saturating_sub(from).min(end.saturating_sub(begin));
        let end = end.min(self.heard.end.map_or(end, |limit| limit.saturating_sub(self.n_media)));
        self.n_media = to;
        for channel in channels {
            channel.truncate(end as usize);
            channel.drain(..(begin as usize).min(channel.len()));
        }
    }

    /// Ogg files may hold several streams one after the other.
    fn restart(&mut self) -> Result<()> {
        let (format, position) = (self.format, &self.position);
        let track = self.reader.default_track(TrackType::Audio);
        let Some((track, params)) = track.and_then(|track| Some((track, audio_params(track)?))) else {
            let what = "the next stream has no audio track";
            return Err(Error::Format { format, what, offset: position.get() });
        };
        let (decoder, _) = make_decoder(params, format, position)?;
        self.track.id = track.id;
        self.decoder = decoder;
        Ok(())
    }
}

impl Pieces for Demuxed {
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
        self.n_corrupt
    }

    fn read(&mut self) -> Result<Option<AudioBuffer>> {
        match self.first.take() {
            Some(piece) => Ok(Some(piece)),
            None => self.next_piece(),
        }
    }
}

fn probe(bytes: SyncBytes, head: &[u8], position: &Position) -> Result<Box<dyn FormatReader>> {
    let options = ProbeOptions { max_probe_depth: MAX_PADDING, ..ProbeOptions::default() };
    let mut probe = Probe::new_with_options(&options);
    register_enabled_formats(&mut probe);
    let stream = MediaSourceStream::new(Box::new(bytes), MediaSourceStreamOptions::default());
    let found = probe.probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default());
    match found {
        Ok(reader) => Ok(reader),
        Err(SymphoniaError::Unsupported(what)) if what.starts_with("core (probe)") => Err(not_audio(head)),
        Err(e) => Err(fault(e, likely_format(head), position)),
    }
}

/// What the first bytes promise, for errors before the demuxer knows.
fn likely_format(head: &[u8]) -> &'static str {
    match head {
        [b'f', b'L', b'a', b'C', ..] => "FLAC",
        [b'O', b'g', b'g', b'S', ..] => "Ogg",
        [b'c', b'a', b'f', b'f', ..] => "CAF",
        [b'F', b'O', b'R', b'M', ..] => "AIFF",
        [b'R', b'I', b'F', b'F', ..] => "WAV",
        [0x1A, 0x45, 0xDF, 0xA3, ..] => "Matroska",
        _ if mp4::is_mp4(head) => "MP4",
        _ => "MPEG audio",
    }
}

fn not_audio(head: &[u8]) -> Error {
    Error::NotAudio { head: head.iter().take(8).map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ") }
}

/// Whether a file that starts with these bytes may be given to the probe.
///
/// The probe searches for the two bytes that start an MPEG frame, which occur in any file; here
/// they must be where a file has them.
fn is_known(head: &[u8]) -> bool {
    let magic: [&[u8]; 7] = [b"fLaC", b"OggS", b"caff", b"FORM", b"RIFF", b"ID3", b"\x1A\x45\xDF\xA3"];
    let is_sync = |frame: &[u8]| matches!(frame, [0xFF, second, ..] if second & 0xE0 == 0xE0);
    // Encoders' delays have been seen as zeros before the first frame.
    let padded = head.iter().position(|&b| b != 0).map_or(&[][..], |start| &head[start..]);
    magic.iter().any(|magic| head.starts_with(magic)) || mp4::is_mp4(head) || is_sync(padded)
}

/// Where an AIFF or WAV file says that it ends; sizes that pipes leave say nothing.
fn form_end(head: &[u8]) -> Option<u64> {
    let size = match head.first_chunk::<8>()? {
        [b'F', b'O', b'R', b'M', size @ ..] => u32::from_be_bytes(*size),
        [b'R', b'I', b'F', b'F', size @ ..] => u32::from_le_bytes(*size),
        _ => return None,
    };
    (size < 0x7FFF_F000).then_some(u64::from(size) + 8)
}

/// The decoder of a track, and the samples that its header says to drop.
fn make_decoder(
    params: &AudioCodecParameters,
    format: &'static str,
    position: &Position,
) -> Result<(Decoder, u64)> {
    if params.codec == CODEC_ID_OPUS {
        let offset = position.get();
        let head = OpusHead::parse(params.extra_data.as_deref().unwrap_or_default(), offset)?;
        let decoder = PacketDecoder::new(&head, offset)?;
        return Ok((Decoder::Opus(decoder), head.pre_skip.into()));
    }
    let mut registry = CodecRegistry::new();
    register_enabled_codecs(&mut registry);
    let decoder = registry
        .make_audio_decoder(params, &AudioDecoderOptions::default())
        .map_err(|e| fault(e, format, position))?;
    Ok((Decoder::Symphonia(decoder), 0))
}

fn audio_params(track: &Track) -> Option<&AudioCodecParameters> {
    match track.codec_params.as_ref()? {
        CodecParameters::Audio(params) => Some(params),
        _ => None,
    }
}

fn format_name(short_name: &'static str) -> &'static str {
    match short_name {
        "flac" => "FLAC",
        "mp3" => "MP3",
        "mp2" => "MP2",
        "mp1" => "MP1",
        "aac" => "AAC",
        "ogg" => "Ogg",
        "isomp4" => "MP4",
        "matroska" => "Matroska",
        "caf" => "CAF",
        "aiff" => "AIFF",
        "wave" => "WAV",
        other => other,
    }
}

/// Length of the media in samples, where the file states it and does not have it guessed.
fn n_media(track: &Track, params: &AudioCodecParameters, format: &str, head: &[u8]) -> Option<u64> {
    let n = track.num_frames.filter(|n| *n > 0)?;
    match format {
        "MP3" | "MP2" | "MP1" => has_xing(head).then_some(n),
        // A guess from the bitrate; a duration in milliseconds.
        "AAC" | "Matroska" => None,
        // Counts whole packets.
        "CAF" if matches!(params.codec, CODEC_ID_ALAC | CODEC_ID_AAC) => None,
        _ => Some(n),
    }
}

/// Whether an MP3 carries the exact number of its frames.
fn has_xing(head: &[u8]) -> bool {
    head.windows(4).any(|w| matches!(w, b"Xing" | b"Info" | b"VBRI"))
}

fn fault(error: SymphoniaError, format: &'static str, position: &Position) -> Error {
    let offset = position.get();
    match error {
        SymphoniaError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            Error::Truncated { format, offset }
        }
        SymphoniaError::IoError(source) => Error::Io { what: "cannot read", offset, source },
        SymphoniaError::DecodeError(what) | SymphoniaError::LimitError(what) => {
            Error::Format { format, what, offset }
        }
        SymphoniaError::Unsupported(what) => Error::Unsupported { format, what: what.to_owned(), offset },
        _ => Error::Format { format, what: "the stream cannot be continued", offset },
    }
}
