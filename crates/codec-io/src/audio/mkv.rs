//! What the demuxer leaves out of Matroska: the exact delay of a track's codec.
//!
//! # Source
//! RFC 9559 (Matroska: Segment, Tracks, TrackEntry, CodecDelay), RFC 8794 (EBML).

use super::source::Bytes;
use crate::error::{Error, Result};
use std::io::{Read, Seek, SeekFrom};

const SEGMENT: u32 = 0x1853_8067;
const TRACKS: u32 = 0x1654_AE6B;
const CLUSTER: u32 = 0x1F43_B675;
const TRACK_ENTRY: u32 = 0xAE;
const TRACK_NUMBER: u32 = 0xD7;
const CODEC_DELAY: u32 = 0x56AA;

/// The part of the file that is searched for the tracks, which precede the audio.
const SEARCH_LEN: u64 = 1 << 20;

/// Delays of the tracks of one file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matroska {
    /// Track number and delay in nanoseconds.
    delays: Vec<(u64, u64)>,
    /// Where the segment says that it ends.
    end: Option<u64>,
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
        bytes.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(Some(Self::parse(&start)))
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
        Self { delays, end }
    }

    /// Where the file ends, if it says so.
    pub(crate) fn end(&self) -> Option<u64> {
        self.end
    }

    /// The delay of a track in samples.
    pub(crate) fn delay(&self, track_id: u32, sample_rate: u32) -> u64 {
        let delay = self.delays.iter().find(|(number, _)| *number == u64::from(track_id));
        let nanoseconds = u128::from(delay.map_or(0, |(_, delay)| *delay));
        let samples = (nanoseconds * u128::from(sample_rate) + 500_000_000) / 1_000_000_000;
        u64::try_from(samples).unwrap_or(u64::MAX)
    }
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
