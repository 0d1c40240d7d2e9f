//! Edits token files without decoding them: cut, drop codebooks, join. One packet is held at a time.

use super::MAX_FRAMES;
use super::error::{TokenError, TokenResult};
use super::header::{TokenHeader, Totals, WeightsHash};
use super::reader::TokenReader;
use super::writer::TokenWriter;
use codec_core::Segment;
use std::io::{Read, Seek, Write};
use std::ops::Range;

/// What a cut gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Samples of the file's decoded audio that the new file decodes to.
    pub samples: Range<u64>,
    /// Frames of the file that the new file holds: whole blocks, except at the file's end.
    pub frames: Range<u64>,
    /// Samples of these frames that the new file's decoder drops at the start.
    pub start_trim: u64,
}

/// What stands between two joined files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seam {
    /// Sample of the joined audio where the second file's audio starts.
    pub sample: u64,
    /// Samples between the end of the first file's audio and that place: what the first file
    /// padded at its end and the second trims at its start. Negative when audio was dropped.
    pub extra_samples: i64,
}

/// What to do with a file that ends inside a block and has another one behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PartialBlock {
    /// Stop with [`TokenError::Join`].
    #[default]
    Refuse,
    /// Drop the frames after its last whole block.
    Drop,
}

/// Sample of a file's decoded audio that lies nearest to a time; negative times and those that
/// are not a number are the start.
pub fn sample_at(header: &TokenHeader, seconds: f64) -> u64 {
    // The cast saturates, which is what a time beyond every file should do.
    (seconds * f64::from(header.audio.sample_rate)).round() as u64
}

/// Keeps a range of samples of the decoded audio, and the blocks that it needs.
///
/// Codes are cut between blocks; what the first block has before the range is trimmed by the
/// decoder, so the range is kept to the sample. `warm_up_frames` more frames are kept in front and
/// trimmed too: a decoder with memory then starts the range as it does in the uncut file.
/// The range may end beyond the audio; it is cut off there.
///
/// # Errors
/// [`TokenError::Range`] when nothing of the range lies in the audio; as
/// [`TokenReader::next_packet`] when the packets needed are damaged; as [`TokenWriter::new`].
pub fn cut<R: Read + Seek, W: Write>(
    reader: &mut TokenReader<R>,
    range: Range<u64>,
    warm_up_frames: u32,
    sink: W,
) -> TokenResult<(W, Cut)> {
    let mut header = reader.header().clone();
    let (n_frames, n_samples) = (reader.n_frames(), reader.n_samples());
    let samples = range.start..range.end.min(n_samples);
    if samples.is_empty() {
        let (what, max) = ("first sample of the cut", samples.end.saturating_sub(1));
        return Err(TokenError::Range { what, min: 0, max, actual: range.start });
    }
    let block = u64::from(header.layout.block_frames());
    let block_samples = header.block_samples().max(1);
    // Positions in the decoder's output, before it trims.
    let [start, end] = [samples.start, samples.end].map(|sample| sample + header.start_trim);
    // The last segment is longer than the way to a next one: its tail lies in it, not behind it.
    let last_block = n_frames.saturating_sub(1) / block;
    let first_block = (start / block_samples).min(last_block);
    let first_block = first_block.saturating_sub(u64::from(warm_up_frames).div_ceil(block));
    let last_frame = end.div_ceil(block_samples).saturating_mul(block).min(n_frames);
    let frames = first_block * block..last_frame;
    let start_trim = start - first_block * block_samples;

    let totals = if samples == (0..n_samples) { reader.totals() } else { None };
    let n_samples = samples.end - samples.start;
    let totals = totals.unwrap_or(Totals { n_samples, source_samples: header.to_source_samples(n_samples) });
    header.start_trim = start_trim;
    header.totals = Some(totals);
    let mut writer = TokenWriter::new(sink, header)?;
    copy_frames(reader, &frames, &mut writer)?;
    Ok((writer.finish(totals)?, Cut { samples, frames, start_trim }))
}

/// Keeps the first `n_codebooks` codebooks.
///
/// # Errors
/// [`TokenError::Codes`] when the file has not that many; as [`TokenReader::next_packet`] and
/// [`TokenWriter::new`].
pub fn keep_codebooks<R: Read, W: Write>(
    reader: &mut TokenReader<R>,
    n_codebooks: usize,
    sink: W,
) -> TokenResult<W> {
    let mut header = reader.header().clone();
    let was_default = header.layout_is_default();
    header.layout = header.layout.truncated(n_codebooks)?;
    if was_default {
        // The file is then the one that the encoder writes for so many codebooks.
        header.packet_frames = header.default_packet_frames();
    }
    header.totals = reader.totals();
    let mut writer = TokenWriter::new(sink, header)?;
    while let Some(codes) = reader.next_packet()? {
        writer.push(&codes.truncated(n_codebooks)?)?;
    }
    let available = writer.header().samples_in(writer.n_frames());
    let n_samples = available.saturating_sub(writer.header().start_trim);
    let source_samples = writer.header().to_source_samples(n_samples);
    writer.finish(reader.totals().unwrap_or(Totals { n_samples, source_samples }))
}

/// Joins files of one model, bitrate and source format, in their order; one model is what has the same weights, or
/// the same name where they are not known.
///
/// No frame but those of [`PartialBlock::Drop`] is left out, so what a file was padded with at its
/// end stays audible at the seam; the returned seams say how much that is. Tags are the first file's.
///
/// # Errors
/// [`TokenError::Differ`] when the files do not agree, [`TokenError::Join`] when a file ends
/// inside a block and that is to be refused, [`TokenError::Range`] without files; as
/// [`TokenReader::next_packet`] and [`TokenWriter::new`].
pub fn concatenate<R: Read + Seek, W: Write>(
    parts: &mut [TokenReader<R>],
    partial_block: PartialBlock,
    sink: W,
) -> TokenResult<(W, Vec<Seam>)> {
    let [first, others @ ..] = &*parts else {
        return Err(TokenError::Range { what: "files to join", min: 1, max: u64::MAX, actual: 0 });
    };
    let mut header = first.header().clone();
    for other in others {
        check_same(&header, other.header())?;
    }
    let plan = plan(parts, partial_block)?;
    let of_first = first.totals().filter(|_| others.is_empty());
    let source_samples = header.to_source_samples(plan.n_samples);
    let totals = of_first.unwrap_or(Totals { n_samples: plan.n_samples, source_samples });
    header.totals = Some(totals);
    let mut writer = TokenWriter::new(sink, header)?;
    for (part, &n_frames) in parts.iter_mut().zip(&plan.part_frames) {
        copy_frames(part, &(0..n_frames), &mut writer)?;
    }
    Ok((writer.finish(totals)?, plan.seams))
}

/// Frames of every part, and the audio that they make together.
struct Plan {
    part_frames: Vec<u64>,
    n_samples: u64,
    seams: Vec<Seam>,
}

fn plan<R: Read + Seek>(parts: &[TokenReader<R>], partial_block: PartialBlock) -> TokenResult<Plan> {
    let mut plan = Plan { part_frames: Vec::new(), n_samples: 0, seams: Vec::new() };
    let start_trim = parts.first().map_or(0, |part| part.header().start_trim);
    let mut n_frames = 0;
    // Where the audio of the part before ends in the joined audio.
    let mut end = 0;
    for (part_idx, part) in parts.iter().enumerate() {
        let header = part.header();
        let block_frames = header.layout.block_frames();
        let block = u64::from(block_frames);
        // All parts before this one have whole blocks.
        let origin = n_frames / block * header.block_samples();
        let start = (origin + header.start_trim).saturating_sub(start_trim);
        if part_idx > 0 {
            plan.seams.push(Seam { sample: start, extra_samples: start.cast_signed() - end });
        }
        let over = part.n_frames() % block;
        let mut kept = part.n_frames();
        if part_idx + 1 < parts.len() && over != 0 {
            if partial_block == PartialBlock::Refuse {
                return Err(TokenError::Join { part: part_idx + 1, over, block_frames });
            }
            kept -= over;
        }
        n_frames += kept;
        if n_frames > MAX_FRAMES {
            return Err(TokenError::Limit { what: "frames", max: MAX_FRAMES, actual: n_frames });
        }
        plan.part_frames.push(kept);
        end = (start + part.n_samples()).cast_signed();
    }
    plan.n_samples = end.max(0).cast_unsigned();
    Ok(plan)
}

/// Copies whole blocks from a file to a writer.
fn copy_frames<R: Read + Seek, W: Write>(
    reader: &mut TokenReader<R>,
    frames: &Range<u64>,
    writer: &mut TokenWriter<W>,
) -> TokenResult<()> {
    let mut first = reader.seek_frame(frames.start)?;
    while first < frames.end {
        let Some(codes) = reader.next_packet()? else { break };
        let n_frames = codes.n_frames();
        // Both lie inside the packet, whose length is a usize.
        let inside = |frame: u64| frame.saturating_sub(first).min(n_frames as u64) as usize;
        let kept = inside(frames.start)..inside(frames.end);
        if kept.len() == n_frames {
            writer.push(&codes)?;
        } else {
            writer.push(&codes.slice(kept)?)?;
        }
        first += n_frames as u64;
    }
    Ok(())
}

fn in_words(segment: Segment) -> String {
    let Segment { n_samples, stride, n_frames } = segment;
    format!("{n_samples} samples ({n_frames} frames) every {stride}")
}

fn check_same(left: &TokenHeader, right: &TokenHeader) -> TokenResult<()> {
    fn same<T: PartialEq + ToString>(what: &'static str, left: &T, right: &T) -> TokenResult<()> {
        if left == right {
            return Ok(());
        }
        Err(TokenError::Differ { what, left: left.to_string(), right: right.to_string() })
    }
    same("codec family", &left.family, &right.family)?;
    // The same weights are the same model whatever its name: a card and a path give it different ones.
    if left.weights == WeightsHash::UNKNOWN || left.weights != right.weights {
        same("model", &left.model, &right.model)?;
    }
    same("weights", &left.weights, &right.weights)?;
    same("numbers of the weights", &left.weight_numbers(), &right.weight_numbers())?;
    same("audio of the codec", &left.audio, &right.audio)?;
    same("hop length", &left.hop_length, &right.hop_length)?;
    let segments = [left, right].map(|header| header.segment.map_or("none".into(), in_words));
    same("segments", &segments[0], &segments[1])?;
    same("codebooks of the codec", &left.n_codebooks_total, &right.n_codebooks_total)?;
    same("code layout", &left.layout, &right.layout)?;
    same("source audio", &left.source, &right.source)
}
