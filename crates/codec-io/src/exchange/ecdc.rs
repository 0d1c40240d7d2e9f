//! The files of the `encodec` package: EnCodec's codes, packed, without its language model.
//!
//! The head is `ECDC`, a version, the length of a JSON object and that object: the model's name, the
//! samples per channel, the number of codebooks, and whether a language model coded the codes. Then come
//! the segments, each with its scale where the model has scales, and its codes frame by frame, 10 bits
//! each, lowest bit first, filled up to a byte. Nothing says how many frames there are: it follows from
//! the samples.
//!
//! # Source
//! Behaviour of encodec 0.1.1, encodec/binary.py and encodec/compress.py.
//!
//! # Deviations
//! The package computes the frames of a segment in floats, and at some lengths finds one more than it
//! has written, so that it cannot read its own file. Here they are counted in integers, as the encoder
//! makes them.
//!
//! Where the last whole step of a 48 kHz clip leaves less than a frame to its end, the package codes that
//! remainder twice: at the end of a segment that comes out one frame short, and as a segment of one frame
//! of its own. Token files have whole segments but for the last, so the segment of one frame is left out
//! on reading; on writing such a clip ends where that segment would start, at most 160 samples earlier.

use super::published_name;
use crate::error::{Error, Result};
use crate::tokens::{BitReader, BitWriter, TokenHeader};
use codec_core::{AudioSpec, CodeLayout, CodecInfo, Codes, Delays, Segment};
use serde::Deserialize;
use std::io::{Read, Write};

const FORMAT: &str = "ecdc";
const MAGIC: &[u8; 4] = b"ECDC";
/// Magic, version, and the length of the JSON object, big-endian.
const HEAD_BYTES: u64 = 9;
/// What the package writes has some sixty.
const MAX_JSON_BYTES: u32 = 1 << 12;
/// Three days of audio.
const MAX_SAMPLES: u64 = 1 << 34;
/// Bits of a code: all published models have codebooks of 1024 entries.
const CODE_BITS: u32 = 10;
const HOP_LENGTH: u32 = 320;
/// Frames that are read at once where there are no segments.
const PIECE_FRAMES: u64 = 1500;

#[derive(Deserialize)]
struct Head {
    /// Name of the model.
    m: String,
    /// Samples per channel.
    al: u64,
    /// Codebooks.
    nc: usize,
    /// Whether the codes were coded with the language model.
    lm: bool,
}

/// What the format knows of a model of that name.
///
/// # Errors
/// [`Error::Unsupported`] for a name that is not that of a model of the package, or of the card of its file.
pub fn info(model: &str) -> Result<CodecInfo> {
    let (sample_rate, channels, n_codebooks, segment) = match published_name(model) {
        "encodec_24khz" => (24_000, 1, 32, None),
        // One second, of which the last hundredth is the start of the next.
        "encodec_48khz" => {
            (48_000, 2, 16, Some(Segment { n_samples: 48_000, stride: 47_520, n_frames: 150 }))
        }
        _ => {
            return Err(Error::Unsupported {
                format: FORMAT,
                what: format!("model `{model}`"),
                offset: HEAD_BYTES,
            });
        }
    };
    let mut layout = CodeLayout::uniform(n_codebooks, 1 << CODE_BITS)?;
    if let Some(segment) = segment {
        layout = layout.with_scales(segment.n_frames)?;
    }
    Ok(CodecInfo {
        model: model.to_owned(),
        family: "encodec",
        audio: AudioSpec { sample_rate, channels },
        hop_length: HOP_LENGTH,
        delays: Delays::default(),
        segment,
        layout,
    })
}

/// The segments of a clip: samples of each, and frames.
#[derive(Clone, Copy, Debug)]
struct Plan {
    n_samples: u64,
    segment: Option<Segment>,
}

impl Plan {
    /// Frames of the segment that starts at a sample, and the start of the next one.
    fn segment_at(&self, start: u64) -> Option<(u64, u64)> {
        let left = self.n_samples.checked_sub(start).filter(|&left| left > 0)?;
        let (length, stride) = self.segment.map_or((left, left), |s| (s.n_samples.into(), s.stride.into()));
        Some((left.min(length).div_ceil(HOP_LENGTH.into()), start.saturating_add(stride)))
    }

    /// Where a last segment of one frame starts that repeats the end of the one before it.
    fn repeated(&self) -> Option<u64> {
        let segment = self.segment?;
        let stride = u64::from(segment.stride);
        let before = self.n_samples.div_ceil(stride).checked_sub(2)? * stride;
        let (n_frames, last) = self.segment_at(before)?;
        (n_frames < u64::from(segment.n_frames)).then_some(last)
    }
}

/// Reads codes out of an `.ecdc` file, in order and in bounded memory.
#[derive(Debug)]
pub struct EcdcReader<R> {
    source: R,
    offset: u64,
    info: CodecInfo,
    layout: CodeLayout,
    plan: Plan,
    /// First sample of the next segment.
    next_segment: u64,
    /// Frames of the current segment that are still to come.
    n_left: u64,
    scale: Option<f32>,
    /// Bits of a byte that the codes so far have not used up.
    held: u8,
    n_held: u32,
}

impl<R: Read> EcdcReader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Field`] when it is none, [`Error::Unsupported`] for codes of the
    /// language model, unknown models and versions, [`Error::Io`].
    pub fn new(source: R) -> Result<Self> {
        let mut reader = Self {
            source,
            offset: 0,
            info: info("encodec_24khz")?,
            layout: CodeLayout::uniform(1, 1 << CODE_BITS)?,
            plan: Plan { n_samples: 0, segment: None },
            next_segment: 0,
            n_left: 0,
            scale: None,
            held: 0,
            n_held: 0,
        };
        let mut head = [0; HEAD_BYTES as usize];
        reader.fill(&mut head, "it ends inside its head")?;
        let ([magic @ .., version], length) = (
            [head[0], head[1], head[2], head[3], head[4]],
            u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
        );
        if magic != *MAGIC {
            return Err(Error::Format { format: FORMAT, what: "it does not start with ECDC", offset: 0 });
        }
        if version != 0 {
            let what = format!("version {version}");
            return Err(Error::Unsupported { format: FORMAT, what, offset: 4 });
        }
        if length > MAX_JSON_BYTES {
            let (what, actual) = ("length of the JSON object", length.into());
            return Err(Error::Limit { what, limit: MAX_JSON_BYTES.into(), actual });
        }
        let mut json = vec![0; length as usize];
        reader.fill(&mut json, "it ends inside its head")?;
        let bad =
            Error::Format { format: FORMAT, what: "its head is not the expected JSON", offset: HEAD_BYTES };
        let head: Head = serde_json::from_slice(&json).map_err(|_| bad)?;
        if head.lm {
            let what = "codes that the language model has coded (only files without it can be read; \
                        encodec decodes them with the float arithmetic of the machine that made them)";
            return Err(Error::Unsupported { format: FORMAT, what: what.to_owned(), offset: HEAD_BYTES });
        }
        if head.al > MAX_SAMPLES {
            return Err(Error::Limit {
                what: "samples of an ecdc file",
                limit: MAX_SAMPLES,
                actual: head.al,
            });
        }
        let info = info(&head.m)?;
        reader.layout = info.layout.truncated(head.nc)?;
        reader.plan = Plan { n_samples: head.al, segment: info.segment };
        reader.info = info;
        Ok(reader)
    }

    /// The model, with all its codebooks.
    pub fn info(&self) -> &CodecInfo {
        &self.info
    }

    /// How many codebooks the file holds.
    pub fn n_codebooks(&self) -> usize {
        self.layout.n_codebooks()
    }

    /// Samples per channel of the audio.
    pub fn n_samples(&self) -> u64 {
        self.plan.n_samples
    }

    /// The next codes: a whole segment, or some twenty seconds where there are no segments; `None` after
    /// the last.
    ///
    /// # Errors
    /// [`Error::Format`] when the file ends too early or too late or a scale is no number, [`Error::Io`].
    pub fn next_codes(&mut self) -> Result<Option<Codes>> {
        if self.n_left == 0 {
            let Some((n_frames, next)) = self.plan.segment_at(self.next_segment) else {
                return self.end().map(|()| None);
            };
            if self.plan.repeated() == Some(self.next_segment) {
                let n_bits = n_frames * self.n_codebooks() as u64 * u64::from(CODE_BITS);
                // A frame has at most 32 codes.
                let mut bytes = vec![0; 4 + n_bits.div_ceil(8) as usize];
                self.fill(&mut bytes, "it ends inside its last segment")?;
                return self.end().map(|()| None);
            }
            (self.n_left, self.next_segment) = (n_frames, next);
            if self.plan.segment.is_some() {
                let offset = self.offset;
                let mut scale = [0; 4];
                self.fill(&mut scale, "it ends before the scale of a segment")?;
                let scale = f32::from_be_bytes(scale);
                if !scale.is_finite() {
                    return Err(Error::Format {
                        format: FORMAT,
                        what: "a scale is not a finite number",
                        offset,
                    });
                }
                self.scale = Some(scale);
            }
        }
        // A segment is one piece; its codes start with a fresh byte.
        let n_frames = if self.plan.segment.is_some() { self.n_left } else { self.n_left.min(PIECE_FRAMES) };
        let n_codebooks = self.n_codebooks();
        let n_bits = n_frames * n_codebooks as u64 * u64::from(CODE_BITS) - u64::from(self.n_held);
        let mut bytes = vec![0; n_bits.div_ceil(8) as usize];
        self.fill(&mut bytes, "it ends inside the codes")?;
        let mut bits = BitReader::resume(&bytes, self.held, self.n_held);
        let mut rows = vec![Vec::with_capacity(n_frames as usize); n_codebooks];
        for _ in 0..n_frames {
            for row in &mut rows {
                row.push(bits.take(CODE_BITS));
            }
        }
        self.n_left -= n_frames;
        (self.held, self.n_held) = if self.n_left == 0 { (0, 0) } else { bits.rest() };
        let scales = self.scale.into_iter().collect();
        Ok(Some(Codes::with_scales(self.layout.clone(), rows, scales)?))
    }

    fn end(&mut self) -> Result<()> {
        match self.source.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => {
                let what = "there is more after the last code";
                Err(Error::Format { format: FORMAT, what, offset: self.offset })
            }
            Err(source) => Err(Error::Io { what: "reading codes", offset: self.offset, source }),
        }
    }

    fn fill(&mut self, bytes: &mut [u8], short: &'static str) -> Result<()> {
        match self.source.read_exact(bytes) {
            Ok(()) => {
                self.offset += bytes.len() as u64;
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(Error::Format { format: FORMAT, what: short, offset: self.offset })
            }
            Err(source) => Err(Error::Io { what: "reading codes", offset: self.offset, source }),
        }
    }
}

/// Writes codes as the package does.
#[derive(Debug)]
pub struct EcdcWriter<W> {
    sink: W,
    plan: Plan,
    layout: CodeLayout,
    next_segment: u64,
    n_left: u64,
    held: u8,
    n_held: u32,
    n_written: u64,
}

impl<W: Write> EcdcWriter<W> {
    /// Writes the head for `n_samples` samples of the codes that a token file's header describes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the package has no such model, or when the audio starts inside the
    /// first frame, which the format cannot say; [`Error::Io`].
    pub fn new(mut sink: W, header: &TokenHeader, n_samples: u64) -> Result<Self> {
        let info = info(&header.model)?;
        let same = header.audio == info.audio
            && header.hop_length == info.hop_length
            && header.segment == info.segment
            && header.layout.is_prefix_of(&info.layout);
        let refused = |what: &str| Error::Unsupported { format: FORMAT, what: what.to_owned(), offset: 0 };
        if !same {
            return Err(refused("a model of that name with other codes than the published one"));
        }
        if header.start_trim > 0 {
            return Err(refused("a clip that starts inside a frame (it was cut out of a longer one)"));
        }
        if n_samples > MAX_SAMPLES {
            let what = "samples of an ecdc file";
            return Err(Error::Limit { what, limit: MAX_SAMPLES, actual: n_samples });
        }
        let mut plan = Plan { n_samples, segment: info.segment };
        plan.n_samples = plan.repeated().unwrap_or(n_samples);
        let nc = header.layout.n_codebooks();
        let name = published_name(&info.model);
        // Spaced as Python spaces it, so that files are the same to the byte.
        let json = format!("{{\"m\": \"{name}\", \"al\": {}, \"nc\": {nc}, \"lm\": false}}", plan.n_samples);
        let mut bytes = MAGIC.to_vec();
        bytes.push(0);
        // A name, three numbers and a switch.
        bytes.extend((json.len() as u32).to_be_bytes());
        bytes.extend(json.as_bytes());
        sink.write_all(&bytes).map_err(|source| Error::Io { what: "writing codes", offset: 0, source })?;
        let (layout, n_written) = (header.layout.clone(), bytes.len() as u64);
        Ok(Self { sink, plan, layout, next_segment: 0, n_left: 0, held: 0, n_held: 0, n_written })
    }

    /// Writes the next codes; pieces with scales are whole segments but for the last. Frames beyond the
    /// audio are left out.
    ///
    /// # Errors
    /// [`Error::Core`] when the codes are of another layout, [`Error::Io`].
    pub fn push(&mut self, codes: &Codes) -> Result<()> {
        if **codes.layout() != self.layout {
            let [left, right] = [codes.layout().as_ref(), &self.layout].map(ToString::to_string);
            return Err(codec_core::Error::Mismatch { what: "code layout", left, right }.into());
        }
        let mut bytes = Vec::new();
        let mut scales = codes.scales().iter();
        let mut frame_idx = 0;
        while frame_idx < codes.n_frames() {
            if self.n_left == 0 {
                let Some((n_frames, next)) = self.plan.segment_at(self.next_segment) else { break };
                (self.n_left, self.next_segment) = (n_frames, next);
                bytes.extend(scales.next().iter().flat_map(|scale| scale.to_be_bytes()));
            }
            let n_frames =
                (codes.n_frames() - frame_idx).min(usize::try_from(self.n_left).unwrap_or(usize::MAX));
            let mut bits = BitWriter::resume(&mut bytes, self.held, self.n_held);
            for frame_idx in frame_idx..frame_idx + n_frames {
                for row in codes.rows() {
                    bits.put(row[frame_idx], CODE_BITS);
                }
            }
            frame_idx += n_frames;
            self.n_left -= n_frames as u64;
            (self.held, self.n_held) = if self.n_left == 0 {
                bits.finish();
                (0, 0)
            } else {
                bits.rest()
            };
        }
        let offset = self.n_written;
        self.sink.write_all(&bytes).map_err(|source| Error::Io { what: "writing codes", offset, source })?;
        self.n_written += bytes.len() as u64;
        Ok(())
    }

    /// Ends the file, after the last codes.
    ///
    /// # Errors
    /// [`Error::Format`] when there are fewer frames than the audio takes.
    pub fn finish(self) -> Result<W> {
        if self.n_left > 0 || self.plan.segment_at(self.next_segment).is_some() {
            let what = "there are fewer frames than the audio takes";
            return Err(Error::Format { format: FORMAT, what, offset: self.n_written });
        }
        Ok(self.sink)
    }
}
