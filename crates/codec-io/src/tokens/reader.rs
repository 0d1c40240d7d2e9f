//! Reads a token file: forwards from any stream, and at any frame where the source can seek.

use super::error::{Damage, TokenError, TokenResult};
use super::header::{TokenHeader, Totals};
use super::packet::{CRC_BYTES, END_PAYLOAD_BYTES, FOOTER_MAGIC, HEAD_BYTES, Head, KIND_END};
use super::packet::{parse_totals, unpack};
use super::scan::{END_PACKET_BYTES, INDEX_TAIL_BYTES, Scanner};
use super::writer::check_totals;
use codec_core::{CodeLayout, Codes};
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

const FOOTER_BYTES: u64 = 16;
const ENTRY_BYTES: u64 = 8;

/// Reads the codes of a token file, packet by packet.
///
/// Memory stays under [`super::MAX_READER_BYTES`] whatever the file holds, except that opening a
/// file whose index is missing takes 16 bytes for every packet that is there.
#[derive(Debug)]
pub struct TokenReader<R> {
    scanner: Scanner<R>,
    header: TokenHeader,
    layout: Arc<CodeLayout>,
    header_bytes: u64,
    map: Option<Map>,
}

/// What is known about the whole of a file that can seek.
#[derive(Debug)]
struct Map {
    n_frames: u64,
    n_packets: u64,
    totals: Option<Totals>,
    places: Places,
}

#[derive(Debug)]
enum Places {
    /// The index of the file; entries are read when they are needed.
    Index { first_entry: u64, end_offset: u64 },
    /// First frame and offset of every packet that a scan found.
    Scanned { packets: Vec<(u64, u64)>, end: u64 },
}

impl<R: Read> TokenReader<R> {
    /// Reads the header; the packets are then read in their order.
    ///
    /// # Errors
    /// [`TokenError::Empty`], [`TokenError::NotTokens`], [`TokenError::TextMode`], [`TokenError::HeaderTruncated`] or
    /// [`TokenError::HeaderChecksum`] when there is no whole header, [`TokenError::Header`],
    /// [`TokenError::Text`], [`TokenError::Layout`] or [`TokenError::Limit`] when it says what it
    /// cannot say, [`TokenError::Unsupported`] for another version, [`TokenError::Io`].
    pub fn new(source: R) -> TokenResult<Self> {
        let (header, scanner) = Scanner::new(source)?;
        let layout = Arc::new(header.layout.clone());
        let header_bytes = scanner.offset();
        Ok(Self { scanner, header, layout, header_bytes, map: None })
    }

    /// The header.
    pub fn header(&self) -> &TokenHeader {
        &self.header
    }

    /// The totals, from the end of the file or from the header; `None` as long as neither is known.
    pub fn totals(&self) -> Option<Totals> {
        let of_map = self.map.as_ref().and_then(|map| map.totals);
        self.scanner.totals().or(of_map).or(self.header.totals)
    }

    /// The frame behind the packet that was returned last: where the next one starts, if none
    /// is lost.
    pub fn position(&self) -> u64 {
        self.scanner.next_frame()
    }

    /// Whole packets read so far, since the last seek.
    pub fn n_packets_read(&self) -> u64 {
        self.scanner.n_packets()
    }

    /// The codes of the next packet; `None` after the last.
    ///
    /// An error other than [`TokenError::Io`] ends nothing: the next call goes on behind what it
    /// reported, so that all whole packets of a damaged file can be had.
    ///
    /// # Errors
    /// [`TokenError::Damaged`] for lost packets, [`TokenError::Truncated`] when the file ends
    /// before its end packet, [`TokenError::Unsupported`] for a packet of an unknown kind,
    /// [`TokenError::Totals`] and [`TokenError::Index`] for faults behind the last code,
    /// [`TokenError::Io`].
    pub fn next_packet(&mut self) -> TokenResult<Option<Codes>> {
        let Some(found) = self.scanner.next(&self.header)? else { return Ok(None) };
        let codes = unpack(&self.layout, found.head.n_frames, self.scanner.payload());
        codes.map(Some).map_err(|reason| {
            TokenError::Damaged(Damage {
                packet: found.head.first_frame / u64::from(self.header.packet_frames.max(1)),
                offset: found.offset,
                first_frame: found.head.first_frame,
                n_frames: Some(found.head.n_frames.into()),
                reason,
            })
        })
    }

    /// All codes that are left, in memory.
    ///
    /// # Errors
    /// As [`TokenReader::next_packet`].
    pub fn read_all(&mut self) -> TokenResult<Codes> {
        let mut all = Codes::empty(Arc::clone(&self.layout));
        while let Some(codes) = self.next_packet()? {
            all.append(&codes)?;
        }
        Ok(all)
    }
}

impl<R: Read + Seek> TokenReader<R> {
    /// Reads the header and finds the index; without a valid one, scans the file for its packets.
    ///
    /// The file begins where the source does, wherever the source stands.
    ///
    /// Damage is not reported here but where the codes are read.
    ///
    /// # Errors
    /// As [`TokenReader::new`].
    pub fn open(mut source: R) -> TokenResult<Self> {
        source.rewind().map_err(io_error(0))?;
        let mut reader = Self::new(source)?;
        let n_bytes = reader.scanner.source_mut().seek(SeekFrom::End(0)).map_err(io_error(0))?;
        let map = match reader.read_index(n_bytes)? {
            Some(map) => map,
            None => reader.scan()?,
        };
        reader.map = Some(map);
        reader.go(reader.header_bytes, 0)?;
        Ok(reader)
    }

    /// Frames in the file; in a truncated one, up to the end of its last whole packet.
    pub fn n_frames(&self) -> u64 {
        self.map.as_ref().map_or(0, |map| map.n_frames)
    }

    /// Packets in the file: those that the index names or that a scan found.
    pub fn n_packets(&self) -> u64 {
        self.map.as_ref().map_or(0, |map| map.n_packets)
    }

    /// Whether the file has a valid index; if not, opening it took a scan.
    pub fn has_index(&self) -> bool {
        self.map.as_ref().is_some_and(|map| matches!(map.places, Places::Index { .. }))
    }

    /// Samples of the decoded audio: those of the totals, and without totals all that the frames
    /// make.
    pub fn n_samples(&self) -> u64 {
        let all = self.header.samples_in(self.n_frames()).saturating_sub(self.header.start_trim);
        self.totals().map_or(all, |totals| totals.n_samples.min(all))
    }

    /// Moves to the packet that holds a frame, and returns the packet's first frame.
    ///
    /// The next call of [`TokenReader::next_packet`] gives that packet, or reports it as lost.
    ///
    /// # Errors
    /// [`TokenError::Range`] beyond the last frame; the place behind it may be sought.
    /// [`TokenError::Io`].
    pub fn seek_frame(&mut self, frame: u64) -> TokenResult<u64> {
        let max = self.n_frames();
        if frame > max {
            return Err(TokenError::Range { what: "frame", min: 0, max, actual: frame });
        }
        let packet_frames = u64::from(self.header.packet_frames.max(1));
        let packet = frame / packet_frames;
        let first_frame = (packet * packet_frames).min(max);
        let offset = match self.map.as_ref().map(|map| &map.places) {
            // Only `open` gives this method to callers, so there is a map.
            None => self.header_bytes,
            Some(&Places::Index { end_offset, .. }) if frame == max => end_offset,
            Some(&Places::Index { first_entry, end_offset }) => {
                let at = first_entry + packet * ENTRY_BYTES;
                let offset = u64::from_le_bytes(self.read_at(at)?);
                // The index's checksum was right; a wrong entry only makes the packet a lost one.
                offset.clamp(self.header_bytes, end_offset)
            }
            Some(Places::Scanned { packets, end }) => {
                let next = packets.partition_point(|&(first, _)| first < first_frame);
                packets.get(next).map_or(*end, |&(_, offset)| offset)
            }
        };
        // Behind the last frame stands the end packet, which starts where the frames end.
        let next_frame = if frame == max { max } else { first_frame };
        self.go(offset, next_frame)?;
        Ok(next_frame)
    }

    fn go(&mut self, offset: u64, next_frame: u64) -> TokenResult<()> {
        self.scanner.source_mut().seek(SeekFrom::Start(offset)).map_err(io_error(offset))?;
        self.scanner.restart(offset, next_frame, self.header_bytes);
        Ok(())
    }

    fn read_at<const N: usize>(&mut self, offset: u64) -> TokenResult<[u8; N]> {
        let mut bytes = [0; N];
        let source = self.scanner.source_mut();
        source.seek(SeekFrom::Start(offset)).map_err(io_error(offset))?;
        source.read_exact(&mut bytes).map_err(io_error(offset))?;
        Ok(bytes)
    }

    /// Reads end packet, index and footer; `None` when they are not all there and whole.
    fn read_index(&mut self, n_bytes: u64) -> TokenResult<Option<Map>> {
        let fixed = END_PACKET_BYTES + INDEX_TAIL_BYTES as u64;
        if n_bytes < self.header_bytes + fixed {
            return Ok(None);
        }
        let footer: [u8; FOOTER_BYTES as usize] = self.read_at(n_bytes - FOOTER_BYTES)?;
        let [o0, o1, o2, o3, o4, o5, o6, o7, magic @ ..] = footer;
        let end_offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        if magic != FOOTER_MAGIC || !(self.header_bytes..=n_bytes - fixed).contains(&end_offset) {
            return Ok(None);
        }
        let packet: [u8; END_PACKET_BYTES as usize] = self.read_at(end_offset)?;
        let (covered, crc) = packet.split_at(packet.len() - CRC_BYTES);
        let (head, payload) = covered.split_at(HEAD_BYTES);
        let head = head.first_chunk().map(|bytes| Head::parse(bytes, &self.header));
        let (Some(Ok(head)), Some(totals)) = (head, parse_totals(payload)) else { return Ok(None) };
        let whole = head.kind == KIND_END
            && head.payload_bytes == END_PAYLOAD_BYTES
            && crc32c::crc32c(covered).to_le_bytes() == *crc
            && check_totals(&self.header, head.first_frame, totals, end_offset).is_ok();
        let n_frames = head.first_frame;
        let n_packets = n_frames.div_ceil(self.header.packet_frames.max(1).into());
        let first_entry = end_offset + END_PACKET_BYTES;
        let index_bytes = n_packets.saturating_mul(ENTRY_BYTES);
        if !whole || first_entry.saturating_add(index_bytes) != n_bytes - INDEX_TAIL_BYTES as u64 {
            return Ok(None);
        }
        // The length is that of the file, so this loop ends with it.
        let source = self.scanner.source_mut();
        source.seek(SeekFrom::Start(first_entry)).map_err(io_error(first_entry))?;
        let mut piece = [0; 4096];
        let (mut left, mut crc) = (index_bytes, 0);
        while left > 0 {
            let n = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            let offset = first_entry + index_bytes - left;
            source.read_exact(&mut piece[..n]).map_err(io_error(offset))?;
            crc = crc32c::crc32c_append(crc, &piece[..n]);
            left -= n as u64;
        }
        if self.read_at(first_entry + index_bytes)? != crc.to_le_bytes() {
            return Ok(None);
        }
        let places = Places::Index { first_entry, end_offset };
        Ok(Some(Map { n_frames, n_packets, totals: Some(totals), places }))
    }

    fn scan(&mut self) -> TokenResult<Map> {
        self.go(self.header_bytes, 0)?;
        let mut packets = Vec::new();
        loop {
            match self.scanner.next(&self.header) {
                Ok(Some(found)) => packets.push((found.head.first_frame, found.offset)),
                Ok(None) => break,
                Err(error @ TokenError::Io { .. }) => return Err(error),
                // Reported again when the codes are read.
                Err(_) => {}
            }
        }
        let n_frames = self.scanner.next_frame();
        // With no packet behind it, a sought place leads to whatever ends the file.
        let end = packets.last().map_or(self.header_bytes, |&(_, offset)| offset);
        let n_packets = packets.len() as u64;
        let totals = self.scanner.totals().or(self.header.totals);
        Ok(Map { n_frames, n_packets, totals, places: Places::Scanned { packets, end } })
    }
}

/// What [`verify`] found.
#[derive(Debug, Default)]
pub struct Report {
    /// Whole packets.
    pub n_packets: u64,
    /// Frames in them.
    pub n_frames: u64,
    /// Frames that are known to be lost.
    pub n_frames_lost: u64,
    /// The totals, when the end packet or the header has them.
    pub totals: Option<Totals>,
    /// The first faults, in the order of the file, at most [`Report::MAX_FAULTS`].
    pub faults: Vec<TokenError>,
    /// How many faults there are.
    pub n_faults: u64,
    /// Whether the file ends before its end packet.
    pub truncated: bool,
    /// Whether the index is there and right.
    pub has_index: bool,
}

impl Report {
    /// Most faults that a report keeps.
    pub const MAX_FAULTS: usize = 100;

    /// Whether the file is whole.
    pub fn is_intact(&self) -> bool {
        self.n_faults == 0
    }
}

/// Reads a whole token file and reports every fault; `each` gets the codes of every packet.
///
/// # Errors
/// As [`TokenReader::new`] when there is no header to go by, and [`TokenError::Io`].
pub fn verify<R: Read>(source: R, mut each: impl FnMut(&Codes)) -> TokenResult<(TokenHeader, Report)> {
    let mut reader = TokenReader::new(source)?;
    let mut report = Report { has_index: true, ..Report::default() };
    loop {
        let error = match reader.next_packet() {
            Ok(None) => break,
            Ok(Some(codes)) => {
                report.n_packets += 1;
                report.n_frames += codes.n_frames() as u64;
                each(&codes);
                continue;
            }
            Err(error @ TokenError::Io { .. }) => return Err(error),
            Err(error) => error,
        };
        match &error {
            TokenError::Damaged(damage) => {
                report.n_frames_lost = report.n_frames_lost.saturating_add(damage.n_frames.unwrap_or(0));
            }
            TokenError::Truncated { .. } => (report.truncated, report.has_index) = (true, false),
            TokenError::Index { .. } => report.has_index = false,
            _ => {}
        }
        report.n_faults += 1;
        if report.faults.len() < Report::MAX_FAULTS {
            report.faults.push(error);
        }
    }
    report.totals = reader.totals();
    let TokenReader { header, .. } = reader;
    Ok((header, report))
}

fn io_error(offset: u64) -> impl Fn(std::io::Error) -> TokenError {
    move |source| TokenError::Io { what: "reading", offset, source }
}
