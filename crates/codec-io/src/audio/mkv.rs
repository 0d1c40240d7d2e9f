//! What the demuxer leaves out of Matroska: the exact delay of a track's codec, and the padding
//! that its last block ends with.
//!
//! # Source
//! RFC 9559 (Matroska: Segment, Tracks, TrackEntry, CodecDelay, Cluster, BlockGroup,
//! DiscardPadding), RFC 8794 (EBML).

use super::source::Bytes;
use crate::error::{Error, Result};
use std::io::{Read, Seek, SeekFrom};

const SEGMENT: u32 = 0x1853_8067;
const TRACKS: u32 = 0x1654_AE6B;
const CLUSTER: u32 = 0x1F43_B675;
const TRACK_ENTRY: u32 = 0xAE;
const TRACK_NUMBER: u32 = 0xD7;
const CODEC_DELAY: u32 = 0x56AA;
const BLOCK_GROUP: u32 = 0xA0;
const BLOCK: u32 = 0xA1;
const DISCARD_PADDING: u32 = 0x75A2;

/// The part of the file that is searched for the tracks, which precede the audio.
const SEARCH_LEN: u64 = 1 << 20;

/// Elements of the file that are looked at on the way to the last block: days of clusters.
const MAX_ELEMENTS: usize = 1 << 17;

/// A last cluster beyond this is not searched.
const MAX_CLUSTER_LEN: u64 = 64 << 20;

/// Delays of the tracks of one file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matroska {
    /// Track number and delay in nanoseconds.
    delays: Vec<(u64, u64)>,
    /// Where the segment says that it ends.
    end: Option<u64>,
    /// Track number of the last block group, and the nanoseconds at its end to be dropped.
    padding: Option<(u64, u64)>,
}

impl Matroska {
    /// Looks through the start of the file, or, where it cannot seek, through its head.
    pub(crate) fn scan(head: &[u8], bytes: &mut Bytes) -> Result<Option<Self>> {
        if !head.starts_with(&[0x1A, 0x45, 0xDF, 0xA3]) {
            return Ok(None);
        }
        if bytes.len().is_none() {
            return Ok(Some(Self::parse(head)));
        }
        let failed = |source| Error::Io { what: "cannot read the Matroska header", offset: 0, source };
        let mut start = Vec::new();
        (&mut *bytes).take(SEARCH_LEN).read_to_end(&mut start).map_err(failed)?;
        let mut this = Self::parse(&start);
        this.padding = last_cluster(bytes, &start).map_err(failed)?.and_then(|cluster| padding(&cluster));
        bytes.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(Some(this))
    }

    fn parse(file: &[u8]) -> Self {
        let mut delays = Vec::new();
        let segment = elements(file).find(|e| e.id == SEGMENT);
        let end = segment.as_ref().and_then(|e| e.size?.checked_add(e.start as u64));
        let segment = segment.map_or(&[][..], |e| e.body);
        let tracks = elements(segment).take_while(|e| e.id != CLUSTER).find(|e| e.id == TRACKS);
        for entry in elements(tracks.map_or(&[][..], |e| e.body)).filter(|e| e.id == TRACK_ENTRY) {
            let find = |wanted| {
                let found = elements(entry.body).find(|e| e.id == wanted);
                found.and_then(|e| unsigned(e.body))
            };
            if let (Some(number), Some(delay)) = (find(TRACK_NUMBER), find(CODEC_DELAY)) {
                delays.push((number, delay));
            }
        }
        Self { delays, end, padding: None }
    }

    /// Where the file ends, if it says so.
    pub(crate) fn end(&self) -> Option<u64> {
        self.end
    }

    /// The delay of a track in samples.
    pub(crate) fn delay(&self, track_id: u32, sample_rate: u32) -> u64 {
        let delay = self.delays.iter().find(|(number, _)| *number == u64::from(track_id));
        n_samples(delay.map_or(0, |(_, delay)| *delay), sample_rate)
    }

    /// The samples to drop from the end of a track; known only where the source can seek.
    pub(crate) fn padding(&self, track_id: u32, sample_rate: u32) -> u64 {
        let padding = self.padding.filter(|(number, _)| *number == u64::from(track_id));
        n_samples(padding.map_or(0, |(_, padding)| padding), sample_rate)
    }
}

fn n_samples(nanoseconds: u64, sample_rate: u32) -> u64 {
    let samples = (u128::from(nanoseconds) * u128::from(sample_rate) + 500_000_000) / 1_000_000_000;
    u64::try_from(samples).unwrap_or(u64::MAX)
}

/// The body of the segment's last cluster, found by stepping from element to element.
fn last_cluster(bytes: &mut Bytes, start: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
    let Some(len) = bytes.len() else { return Ok(None) };
    let Some(mut at) = elements(start).find(|e| e.id == SEGMENT).map(|e| e.start as u64) else {
        return Ok(None);
    };
    let mut last = None;
    for _ in 0..MAX_ELEMENTS {
        if at >= len {
            break;
        }
        let mut header = Vec::with_capacity(12);
        bytes.seek(SeekFrom::Start(at))?;
        (&mut *bytes).take(12).read_to_end(&mut header)?;
        let Some(element) = elements(&header).next() else { break };
        // Without its size the next element cannot be found.
        let Some(size) = element.size else { return Ok(None) };
        let body = at + element.start as u64;
        if element.id == CLUSTER {
            last = Some((body, size));
        }
        match body.checked_add(size) {
            Some(next) => at = next,
            None => break,
        }
    }
    let Some((body, size)) = last.filter(|(_, size)| *size <= MAX_CLUSTER_LEN) else { return Ok(None) };
    let mut cluster = Vec::new();
    bytes.seek(SeekFrom::Start(body))?;
    (&mut *bytes).take(size).read_to_end(&mut cluster)?;
    Ok(Some(cluster))
}

/// The padding of the last block, if that is in a group and has one.
fn padding(cluster: &[u8]) -> Option<(u64, u64)> {
    let group = elements(cluster).last().filter(|e| e.id == BLOCK_GROUP)?;
    let find = |wanted| elements(group.body).find(|e| e.id == wanted).map(|e| e.body);
    // The track number has the form of an element's size.
    let block = find(BLOCK)?;
    let number_len = block.first()?.leading_zeros() as usize + 1;
    let number = unsigned(block.get(..number_len).filter(|_| number_len <= 8)?)? & !(1 << (7 * number_len));
    let padding = find(DISCARD_PADDING)?;
    // A negative one would be for the block's start.
    let is_positive = padding.first()? & 0x80 == 0;
    Some((number, unsigned(padding)?)).filter(|_| is_positive)
}

/// One EBML element.
struct Element<'a> {
    id: u32,
    /// What the header says, unless it says "unknown".
    size: Option<u64>,
    /// Position of the body in what was searched.
    start: usize,
    /// The body, as far as it is there.
    body: &'a [u8],
}

/// The elements in a body; the last one may be cut off or of unknown length.
fn elements(bytes: &[u8]) -> impl Iterator<Item = Element<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let header = bytes.get(at..)?;
        let id_len = header.first()?.leading_zeros() as usize + 1;
        let id = unsigned(header.get(..id_len).filter(|_| id_len <= 4)?)?;
        let size_bytes = header.get(id_len..)?;
        let size_len = size_bytes.first()?.leading_zeros() as usize + 1;
        let marked = unsigned(size_bytes.get(..size_len).filter(|_| size_len <= 8)?)?;
        // The length marker is the highest bit of the bytes; all ones mean "unknown".
        let ones = (1u64 << (7 * size_len)) - 1;
        let size = Some(marked & ones).filter(|size| *size != ones);
        let start = at + id_len + size_len;
        let end = size.and_then(|size| start.checked_add(usize::try_from(size).ok()?));
        at = end.unwrap_or(bytes.len()).min(bytes.len());
        Some(Element { id: id as u32, size, start, body: &bytes[start..at] })
    })
}

fn unsigned(bytes: &[u8]) -> Option<u64> {
    (bytes.len() <= 8).then(|| bytes.iter().fold(0, |acc, &b| acc << 8 | u64::from(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(id: &[u8], body: &[u8]) -> Vec<u8> {
        [id, &[0x80 | body.len() as u8], body].concat()
    }

    #[test]
    fn delay_and_padding_are_found() {
        let entry = [element(&[0xD7], &[3]), element(&[0x56, 0xAA], &6_500_000u32.to_be_bytes())].concat();
        let tracks = element(&[0x16, 0x54, 0xAE, 0x6B], &element(&[0xAE], &entry));
        let group =
            [element(&[0xA1], &[0x83, 0, 0, 0, 1]), element(&[0x75, 0xA2], &[0x00, 0xCD, 0xFE, 0x60])];
        let simple = element(&[0xA3], &[0x83, 0, 0, 0, 1]);
        let cluster = [simple.clone(), element(&[0xA0], &group.concat())].concat();
        let file = [element(&[0x1A, 0x45, 0xDF, 0xA3], &[]), element(&[0x18, 0x53, 0x80, 0x67], &tracks)];
        let matroska = Matroska::parse(&file.concat());
        assert_eq!([matroska.delay(3, 48_000), matroska.delay(1, 48_000)], [312, 0]);
        assert_eq!(matroska.end(), Some(file.concat().len() as u64));
        assert_eq!(padding(&cluster), Some((3, 13_500_000)));
        assert_eq!(n_samples(13_500_000, 48_000), 648);
        // A last block without a group has no padding.
        assert_eq!(padding(&[cluster, simple].concat()), None);
    }

    #[test]
    fn anything_can_be_parsed() {
        for first in 0..=255u8 {
            for fill in [0, 1, 0x80, 0xFF] {
                let mut bytes = [fill; 30];
                bytes[0] = first;
                assert!(elements(&bytes).count() <= 30);
                padding(&bytes);
            }
        }
    }
}
