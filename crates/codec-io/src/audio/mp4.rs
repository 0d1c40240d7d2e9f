//! What the demuxer leaves out of MP4: which samples of a track are audio and which are padding.
//!
//! An AAC encoder starts with 1024 or more samples of its own delay and ends with a padded frame.
//! Two places say how much: the edit list, and iTunes' `iTunSMPB` comment.
//!
//! # Source
//! ISO/IEC 14496-12 (8.6.6 edit list, 8.2.2 movie header, 8.4.2 media header); Apple QuickTime
//! File Format, appendix "Audio Priming - Handling Encoder Delay in AAC".

use super::source::Bytes;
use crate::error::{Error, Result};
use std::io::{Read, Seek, SeekFrom};

/// No `moov` of a sane file comes near; a larger one is not read.
const MAX_MOOV_LEN: u64 = 256 << 20;

/// Boxes of the file that are looked at: more fragments than a day of a broadcast has.
const MAX_BOXES: usize = 1 << 18;

/// The part of a track's media that is to be heard, in samples of the media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Samples to drop at the start.
    pub(crate) start: u64,
    /// Where to stop.
    pub(crate) end: Option<u64>,
}

/// Edit list of one track.
#[derive(Clone, Debug, Default)]
pub(crate) struct Track {
    id: u32,
    is_sound: bool,
    /// Ticks per second of the media.
    timescale: u32,
    /// Edits as (duration in movie ticks, media time in media ticks or -1).
    edits: Vec<(u64, i64)>,
}

/// What `moov` says about time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Movie {
    /// Ticks per second of the movie.
    timescale: u32,
    tracks: Vec<Track>,
    /// Delay and length from `iTunSMPB`.
    itunes: Option<(u64, u64)>,
    /// Where the last box of the file says that it ends.
    end: u64,
}

/// Whether a file that starts with these bytes is MP4 or QuickTime.
pub(crate) fn is_mp4(head: &[u8]) -> bool {
    matches!(head.get(4..8), Some(b"ftyp" | b"moov" | b"mdat" | b"free" | b"skip" | b"wide" | b"pnot"))
}

impl Movie {
    /// Finds a whole `moov` anywhere in the file and leaves the source at its start.
    pub(crate) fn scan(bytes: &mut Bytes) -> Result<Option<Self>> {
        let movie = Self::find(bytes).map_err(|(offset, source)| Error::Io {
            what: "cannot read the MP4 boxes",
            offset,
            source,
        })?;
        let failed = |source| Error::Io { what: "cannot seek", offset: 0, source };
        bytes.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(movie)
    }

    fn find(bytes: &mut Bytes) -> Result<Option<Self>, (u64, std::io::Error)> {
        let len = bytes.len().unwrap_or(0);
        let mut found: Option<Self> = None;
        let mut at = 0u64;
        for _ in 0..MAX_BOXES {
            if at.checked_add(8).is_none_or(|end| end > len) {
                break;
            }
            bytes.seek(SeekFrom::Start(at)).map_err(|e| (at, e))?;
            let mut header = Vec::with_capacity(16);
            bytes.take(16).read_to_end(&mut header).map_err(|e| (at, e))?;
            let Some((kind, header_len, size)) = box_header(&header, len - at) else { break };
            let body_len = size - header_len;
            if kind == *b"moov" && found.is_none() && size <= len - at && body_len <= MAX_MOOV_LEN {
                let mut body = Vec::new();
                bytes.seek(SeekFrom::Start(at + header_len)).map_err(|e| (at, e))?;
                bytes.take(body_len).read_to_end(&mut body).map_err(|e| (at, e))?;
                found = Some(Self::parse(&body));
            }
            let Some(next) = at.checked_add(size) else { break };
            at = next;
        }
        Ok(found.map(|movie| Self { end: at, ..movie }))
    }

    /// Where the file ends, if it is whole.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// What cannot be understood is left out: the demuxer is the judge of the file.
    fn parse(moov: &[u8]) -> Self {
        let mut movie = Self::default();
        for (kind, body) in boxes(moov) {
            match &kind {
                b"mvhd" => movie.timescale = timescale(body).unwrap_or(0),
                b"trak" => movie.tracks.push(Track::parse(body)),
                b"udta" => movie.itunes = movie.itunes.or_else(|| itunes(body)),
                _ => {}
            }
        }
        movie
    }

    /// The part of a track that is to be heard, in samples at `sample_rate`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the edit list cuts the track into several parts or changes
    /// nothing but speed: playing it as one part would be wrong.
    pub(crate) fn heard(&self, track_id: u32, sample_rate: u32) -> Result<Option<Heard>> {
        let Some(track) = self.tracks.iter().find(|t| t.id == track_id && t.is_sound) else {
            return Ok(None);
        };
        // An edit without media is a pause before the track; the samples are what is wanted.
        let media: Vec<_> = track.edits.iter().filter(|(_, time)| *time >= 0).collect();
        if media.len() > 1 {
            let what = format!("an edit list of {} parts", media.len());
            return Err(Error::Unsupported { format: "MP4", what, offset: 0 });
        }
        if let Some((delay, length)) = self.itunes {
            let from_edits = media.first().map_or(0, |(_, time)| time.unsigned_abs());
            if from_edits == 0 || from_edits == delay {
                return Ok(Some(Heard { start: delay, end: delay.checked_add(length) }));
            }
        }
        let Some(&&(duration, time)) = media.first() else { return Ok(None) };
        if track.timescale == 0 || self.timescale == 0 {
            return Ok(None);
        }
        let start = rescale(time.unsigned_abs(), sample_rate, track.timescale);
        // The duration counts in movie ticks, mostly milliseconds. It is rounded up, so that
        // it never cuts audio off; the tables of the track then give the exact end.
        let end = (duration > 0)
            .then(|| rescale(duration.saturating_add(1), sample_rate, self.timescale))
            .and_then(|length| start.checked_add(length));
        Ok(Some(Heard { start, end }))
    }
}

impl Track {
    fn parse(trak: &[u8]) -> Self {
        let mut track = Self::default();
        for (kind, body) in boxes(trak) {
            match &kind {
                // Version 1 has 64-bit times before the number.
                b"tkhd" => track.id = be32(body, if body.first() == Some(&1) { 20 } else { 12 }).unwrap_or(0),
                b"edts" => {
                    let list = boxes(body).find(|(kind, _)| kind == b"elst");
                    track.edits = list.and_then(|(_, body)| edits(body)).unwrap_or_default();
                }
                b"mdia" => {
                    for (kind, body) in boxes(body) {
                        match &kind {
                            b"mdhd" => track.timescale = timescale(body).unwrap_or(0),
                            b"hdlr" => track.is_sound = body.get(8..12) == Some(b"soun"),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        track
    }
}

/// Both `mvhd` and `mdhd` have it behind two times of 32 or 64 bits.
fn timescale(body: &[u8]) -> Option<u32> {
    be32(body, if body.first()? == &1 { 20 } else { 12 })
}

fn edits(body: &[u8]) -> Option<Vec<(u64, i64)>> {
    let is_long = body.first()? == &1;
    let n = be32(body, 4)? as usize;
    let size = if is_long { 20 } else { 12 };
    let entries = body.get(8..)?.chunks_exact(size).take(n);
    entries
        .map(|e| {
            if is_long {
                Some((be64(e, 0)?, be64(e, 8)? as i64))
            } else {
                Some((be32(e, 0)?.into(), (be32(e, 4)? as i32).into()))
            }
        })
        .collect()
}

/// `udta/meta/ilst/----` with the name `iTunSMPB`: hexadecimal words, of which the second is the
/// delay and the fourth the length.
fn itunes(udta: &[u8]) -> Option<(u64, u64)> {
    let (_, meta) = boxes(udta).find(|(kind, _)| kind == b"meta")?;
    let (_, ilst) = boxes(meta.get(4..)?).find(|(kind, _)| kind == b"ilst")?;
    for (_, item) in boxes(ilst).filter(|(kind, _)| kind == b"----") {
        let find = |wanted: &[u8; 4]| boxes(item).find(|(kind, _)| kind == wanted).map(|(_, body)| body);
        if find(b"name").and_then(|body| body.get(4..)) != Some(b"iTunSMPB") {
            continue;
        }
        let text = std::str::from_utf8(find(b"data")?.get(8..)?).ok()?;
        let mut words = text.split_ascii_whitespace().map(|word| u64::from_str_radix(word, 16).ok());
        let (delay, length) = (words.nth(1)??, words.nth(1)??);
        return (length > 0).then_some((delay, length));
    }
    None
}

/// Kind, length of the header, and total size of a box; `None` where none can be.
fn box_header(bytes: &[u8], available: u64) -> Option<([u8; 4], u64, u64)> {
    let kind = *bytes.get(4..8)?.first_chunk()?;
    let (header_len, size) = match be32(bytes, 0)? {
        // The box reaches to the end.
        0 => (8, available),
        1 => (16, be64(bytes, 8)?),
        size => (8, size.into()),
    };
    (size >= header_len).then_some((kind, header_len, size))
}

/// The boxes in a body; stops at the first one that does not fit.
fn boxes(mut body: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (kind, header_len, size) = box_header(body, body.len() as u64)?;
        let size = usize::try_from(size).ok()?;
        let inner = body.get(header_len as usize..size)?;
        body = &body[size..];
        Some((kind, inner))
    })
}

fn rescale(ticks: u64, to: u32, from: u32) -> u64 {
    let exact = u128::from(ticks) * u128::from(to);
    let from = u128::from(from);
    u64::try_from((exact + from / 2) / from).unwrap_or(u64::MAX)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_be_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxed(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32 + 8).to_be_bytes(), kind.as_slice(), body].concat()
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// A movie of 1000 ticks per second with one sound track of 44 100, number 7.
    fn movie(edits: &[[u32; 2]], smpb: Option<&str>) -> Movie {
        let mut list = words(&[0, edits.len() as u32]);
        edits.iter().for_each(|edit| list.extend(words(&[edit[0], edit[1], 0x10000])));
        let media = [
            boxed(b"mdhd", &words(&[0, 0, 0, 44_100, 0, 0])),
            boxed(b"hdlr", &[words(&[0, 0]), b"soun".to_vec(), words(&[0, 0, 0])].concat()),
        ];
        let track = [
            boxed(b"tkhd", &words(&[0, 0, 0, 7, 0, 0])),
            boxed(b"edts", &boxed(b"elst", &list)),
            boxed(b"mdia", &media.concat()),
        ];
        let item = smpb.map_or_else(Vec::new, |text| {
            let name = [words(&[0]), b"iTunSMPB".to_vec()].concat();
            let data = [words(&[1, 0]), text.as_bytes().to_vec()].concat();
            boxed(b"----", &[boxed(b"name", &name), boxed(b"data", &data)].concat())
        });
        let meta = [words(&[0]), boxed(b"ilst", &item)].concat();
        let moov = [
            boxed(b"mvhd", &words(&[0, 0, 0, 1000, 0])),
            boxed(b"trak", &track.concat()),
            boxed(b"udta", &boxed(b"meta", &meta)),
        ];
        Movie::parse(&moov.concat())
    }

    #[track_caller]
    fn check(movie: &Movie, expected: Option<(u64, Option<u64>)>) {
        let heard = movie.heard(7, 44_100).unwrap();
        assert_eq!(heard, expected.map(|(start, end)| Heard { start, end }));
    }

    #[test]
    fn edit_lists() {
        check(&movie(&[], None), None);
        check(&movie(&[[2000, 1024]], None), Some((1024, Some(1024 + 2001 * 441 / 10))));
        check(&movie(&[[0, 1024]], None), Some((1024, None)));
        // A pause of 500 ms before the track.
        check(&movie(&[[500, u32::MAX], [0, 2112]], None), Some((2112, None)));
        assert_eq!(movie(&[[0, 1024]], None).heard(8, 44_100).unwrap(), None);
        let parts = movie(&[[100, 0], [100, 9000]], None).heard(7, 44_100);
        assert!(matches!(parts, Err(Error::Unsupported { format: "MP4", .. })));
    }

    #[test]
    fn itunes_comment() {
        let smpb = " 00000000 00000840 000001CA 00000000003F31F6 00000000 00000000";
        let expected = Some((0x840, Some(0x840 + 0x3F_31F6)));
        check(&movie(&[], Some(smpb)), expected);
        check(&movie(&[[0, 0x840]], Some(smpb)), expected);
        // Where the two contradict each other, the edit list was written by the last program.
        check(&movie(&[[0, 1024]], Some(smpb)), Some((1024, None)));
        check(&movie(&[], Some(" 00000000 zzz")), None);
    }

    #[test]
    fn sizes_that_do_not_fit_end_the_search() {
        assert_eq!(boxes(&[0, 0, 0, 7, 1, 2, 3, 4]).count(), 0);
        assert_eq!(boxes(&[0, 0, 0, 9, 1, 2, 3, 4]).count(), 0);
        assert_eq!(boxes(&[0xFF; 40]).count(), 0);
        let long = [words(&[1]), b"free".to_vec(), u64::MAX.to_be_bytes().to_vec()].concat();
        assert_eq!(boxes(&long).count(), 0);
    }
}
