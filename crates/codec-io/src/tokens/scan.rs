//! Finds packets in a stream of bytes, and finds back to them after damage.

use super::error::{Damage, DamageReason, IndexFault, TokenError, TokenResult};
use super::header::{TokenHeader, Totals};
use super::packet::{CRC_BYTES, FOOTER_MAGIC, HEAD_BYTES, Head, KIND_END, SYNC, parse_totals};
use super::packet::{FIRST_ANCILLARY_KIND, KIND_PACKED};
use super::writer::check_totals;
use std::io::Read;

/// Bytes per read. Memory grows with bytes that arrived, never with a length that was claimed.
const READ_BYTES: usize = 1 << 14;
/// Checksums of false packets cost at most this many times the bytes of the file. Beyond it the
/// search skips whole false packets: only files made to be slow get there.
const MAX_SEARCH_FACTOR: u64 = 32;

/// A packet that carries codes, whole and with the right checksum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) head: Head,
    pub(super) offset: u64,
}

/// Reads packets one after the other.
#[derive(Debug)]
pub(super) struct Scanner<R> {
    window: Window<R>,
    /// Bytes at the window's start that belong to the packet handed out last.
    held: usize,
    /// Found behind a gap that had to be reported first.
    waiting: Option<Head>,
    next_frame: u64,
    n_packets: u64,
    n_frames: u64,
    /// Checksum over the offsets of the packets, as the index has it; `None` once one is missing.
    offsets_crc: Option<u32>,
    n_searched: u64,
    totals: Option<Totals>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Packets,
    Truncated,
    Index { n_entries: u64 },
    Done,
}

impl<R: Read> Scanner<R> {
    /// Reads the header.
    pub(super) fn new(source: R) -> TokenResult<(TokenHeader, Self)> {
        let mut window = Window { source, bytes: Vec::new(), start: 0, offset: 0, ended: false };
        let (header, n_bytes) = TokenHeader::read(&mut window)?;
        window.consume(n_bytes);
        let scanner = Self {
            window,
            held: 0,
            waiting: None,
            next_frame: 0,
            n_packets: 0,
            n_frames: 0,
            offsets_crc: Some(0),
            n_searched: 0,
            totals: None,
            state: State::Packets,
        };
        Ok((header, scanner))
    }

    /// The next packet with codes; `None` after the last.
    ///
    /// After an error other than [`TokenError::Io`] the next call goes on behind what it reported.
    pub(super) fn next(&mut self, header: &TokenHeader) -> TokenResult<Option<Found>> {
        let result = self.advance(header);
        if let Err(TokenError::Io { .. }) = result {
            self.state = State::Done;
        }
        result
    }

    /// The payload of the packet that [`Scanner::next`] returned last.
    pub(super) fn payload(&self) -> &[u8] {
        self.window.seen().get(HEAD_BYTES..self.held.saturating_sub(CRC_BYTES)).unwrap_or_default()
    }

    /// The frame that the next packet starts with, when none is lost.
    pub(super) fn next_frame(&self) -> u64 {
        self.next_frame
    }

    pub(super) fn offset(&self) -> u64 {
        self.window.offset
    }

    pub(super) fn n_packets(&self) -> u64 {
        self.n_packets
    }

    /// The totals, once the end packet was read.
    pub(super) fn totals(&self) -> Option<Totals> {
        self.totals
    }

    pub(super) fn source_mut(&mut self) -> &mut R {
        &mut self.window.source
    }

    /// Starts over at another packet; the source has been moved there.
    pub(super) fn restart(&mut self, offset: u64, next_frame: u64, header_bytes: u64) {
        self.window.restart(offset);
        self.held = 0;
        self.waiting = None;
        self.next_frame = next_frame;
        (self.n_packets, self.n_frames) = (0, 0);
        self.offsets_crc = (offset == header_bytes).then_some(0);
        self.state = State::Packets;
    }

    fn advance(&mut self, header: &TokenHeader) -> TokenResult<Option<Found>> {
        loop {
            self.window.consume(std::mem::take(&mut self.held));
            match self.state {
                State::Done => return Ok(None),
                State::Truncated => {
                    self.state = State::Done;
                    return Err(self.truncated());
                }
                State::Index { n_entries } => {
                    self.state = State::Done;
                    self.read_index(n_entries)?;
                    continue;
                }
                State::Packets => {}
            }
            let head = match self.waiting.take() {
                Some(head) => head,
                None => self.find(header)?,
            };
            if head.kind >= FIRST_ANCILLARY_KIND {
                self.held = head.total_bytes();
                continue;
            }
            // A gap is reported before what follows it.
            if head.first_frame > self.next_frame {
                return Err(self.lost(header, self.window.offset, Some(head), DamageReason::Missing));
            }
            self.held = head.total_bytes();
            let offset = self.window.offset;
            if head.kind == KIND_END {
                self.end(header, offset)?;
                continue;
            }
            self.next_frame = head.first_frame + u64::from(head.n_frames);
            self.offsets_crc = self.offsets_crc.map(|crc| crc32c::crc32c_append(crc, &offset.to_le_bytes()));
            if head.kind != KIND_PACKED {
                return Err(TokenError::Unsupported { what: "packet kind", value: head.kind.into(), offset });
            }
            self.n_packets += 1;
            self.n_frames += u64::from(head.n_frames);
            return Ok(Some(Found { head, offset }));
        }
    }

    /// The head of the next whole packet; searches for it where there is none.
    fn find(&mut self, header: &TokenHeader) -> TokenResult<Head> {
        let offset = self.window.offset;
        if self.window.fill(1)?.is_empty() {
            self.state = State::Done;
            return Err(self.truncated());
        }
        let reason = match self.probe(header)? {
            Ok(head) => return Ok(head),
            Err(refused) => refused.reason,
        };
        self.window.consume(1);
        while self.search()? {
            match self.probe(header)? {
                // Ancillary packets say nothing about how many frames were lost before them.
                Ok(head) if head.kind >= FIRST_ANCILLARY_KIND => self.window.consume(head.total_bytes()),
                Ok(head) => return Err(self.lost(header, offset, Some(head), reason)),
                Err(refused) => {
                    self.n_searched += refused.n_bytes as u64;
                    let seen =
                        (self.window.offset + refused.n_bytes as u64).saturating_mul(MAX_SEARCH_FACTOR);
                    let in_time = self.n_searched <= seen;
                    self.window.consume(if in_time { 1 } else { refused.n_bytes.max(1) });
                }
            }
        }
        if reason == DamageReason::CutOff {
            self.state = State::Done;
            return Err(self.truncated());
        }
        self.state = State::Truncated;
        Err(self.lost(header, offset, None, reason))
    }

    /// Moves to the next sync word; `false` when there is none.
    fn search(&mut self) -> TokenResult<bool> {
        loop {
            let seen = self.window.fill(SYNC.len())?;
            if seen.len() < SYNC.len() {
                return Ok(false);
            }
            match seen.windows(SYNC.len()).position(|bytes| bytes == SYNC) {
                Some(at) => {
                    self.window.consume(at);
                    return Ok(true);
                }
                None => {
                    let passed = seen.len() + 1 - SYNC.len();
                    self.window.consume(passed);
                }
            }
        }
    }

    /// Checks the packet at the window's start, with its checksum.
    fn probe(&mut self, header: &TokenHeader) -> TokenResult<Result<Head, Refused>> {
        let next_frame = self.next_frame;
        let cut_off = Refused { reason: DamageReason::CutOff, n_bytes: 0 };
        let seen = self.window.fill(HEAD_BYTES)?;
        let Some(bytes) = seen.first_chunk::<HEAD_BYTES>() else {
            let whole_sync = seen.iter().zip(SYNC).all(|(&byte, sync)| byte == sync);
            return Ok(Err(if whole_sync {
                cut_off
            } else {
                Refused { reason: DamageReason::Sync, n_bytes: 0 }
            }));
        };
        let head = match Head::parse(bytes, header) {
            Ok(head) => head,
            Err(reason) => return Ok(Err(Refused { reason, n_bytes: 0 })),
        };
        if head.first_frame < next_frame && head.kind < FIRST_ANCILLARY_KIND {
            let reason = DamageReason::Head { what: "the first frame", actual: head.first_frame };
            return Ok(Err(Refused { reason, n_bytes: 0 }));
        }
        let n_bytes = head.total_bytes();
        let seen = self.window.fill(n_bytes)?;
        let Some((covered, crc)) = seen.get(..n_bytes).and_then(|packet| packet.split_last_chunk()) else {
            return Ok(Err(cut_off));
        };
        let (stored, computed) = (u32::from_le_bytes(*crc), crc32c::crc32c(covered));
        if stored != computed {
            let reason = DamageReason::Checksum { stored, computed };
            return Ok(Err(Refused { reason, n_bytes }));
        }
        Ok(Ok(head))
    }

    /// Reports lost frames and goes on with the packet that was found behind them.
    fn lost(
        &mut self,
        header: &TokenHeader,
        offset: u64,
        found: Option<Head>,
        reason: DamageReason,
    ) -> TokenError {
        let first_frame = self.next_frame;
        let n_frames = found.map(|head| head.first_frame.saturating_sub(first_frame));
        if let Some(head) = found {
            self.next_frame = head.first_frame;
        }
        if n_frames != Some(0) {
            self.offsets_crc = None;
        }
        self.waiting = found;
        let packet = first_frame / u64::from(header.packet_frames.max(1));
        TokenError::Damaged(Damage { packet, offset, first_frame, n_frames, reason })
    }

    fn truncated(&self) -> TokenError {
        let offset = self.window.offset + self.window.seen().len() as u64;
        TokenError::Truncated { offset, n_packets: self.n_packets, n_frames: self.n_frames }
    }

    fn end(&mut self, header: &TokenHeader, offset: u64) -> TokenResult<()> {
        self.state = State::Index { n_entries: self.next_frame.div_ceil(header.packet_frames.max(1).into()) };
        let totals = parse_totals(self.payload());
        self.totals = totals;
        totals.map_or(Ok(()), |totals| check_totals(header, self.next_frame, totals, offset))
    }

    /// Checks everything behind the end packet.
    fn read_index(&mut self, n_entries: u64) -> TokenResult<()> {
        let (n_packets, n_frames) = (self.n_packets, self.n_frames);
        // The end packet was the last thing consumed.
        let end_offset = self.window.offset - END_PACKET_BYTES;
        let fault = |offset, fault| Err(TokenError::Index { offset, fault, n_packets, n_frames });
        let mut crc = 0;
        for _ in 0..n_entries {
            let offset = self.window.offset;
            let Some(entry) = self.window.fill(8)?.first_chunk::<8>() else {
                return fault(offset, IndexFault::CutOff);
            };
            crc = crc32c::crc32c_append(crc, entry);
            self.window.consume(8);
        }
        let offset = self.window.offset;
        let Some(tail) = self.window.fill(INDEX_TAIL_BYTES)?.first_chunk::<INDEX_TAIL_BYTES>() else {
            return fault(offset, IndexFault::CutOff);
        };
        let [c0, c1, c2, c3, o0, o1, o2, o3, o4, o5, o6, o7, magic @ ..] = *tail;
        if u32::from_le_bytes([c0, c1, c2, c3]) != crc {
            return fault(offset, IndexFault::Checksum);
        }
        if self.offsets_crc.is_some_and(|of_packets| of_packets != crc) {
            return fault(offset, IndexFault::Offsets);
        }
        let stored = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        if magic != FOOTER_MAGIC || stored != end_offset {
            return fault(offset + 4, IndexFault::Footer);
        }
        self.window.consume(INDEX_TAIL_BYTES);
        if !self.window.fill(1)?.is_empty() {
            return fault(self.window.offset, IndexFault::Trailing);
        }
        Ok(())
    }
}

/// Length of an end packet.
pub(super) const END_PACKET_BYTES: u64 = 40;
/// The index's checksum and the footer.
pub(super) const INDEX_TAIL_BYTES: usize = 20;

/// Why the bytes at the window's start are no packet.
struct Refused {
    reason: DamageReason,
    /// Bytes that a checksum was taken of.
    n_bytes: usize,
}

/// Bytes of the source that were read and are not done with.
#[derive(Debug)]
pub(super) struct Window<R> {
    source: R,
    bytes: Vec<u8>,
    start: usize,
    /// Position of `bytes[start]` in the source.
    offset: u64,
    ended: bool,
}

impl<R: Read> Window<R> {
    /// Reads until `n` bytes are there or the source ends; returns all that is there.
    pub(super) fn fill(&mut self, n: usize) -> TokenResult<&[u8]> {
        while self.bytes.len() - self.start < n && !self.ended {
            if self.start >= READ_BYTES {
                self.bytes.drain(..self.start);
                self.start = 0;
            }
            let n_bytes = self.bytes.len();
            self.bytes.resize(n_bytes + READ_BYTES, 0);
            let result = self.source.read(&mut self.bytes[n_bytes..]);
            let n_read = *result.as_ref().unwrap_or(&0);
            self.bytes.truncate(n_bytes + n_read.min(READ_BYTES));
            match result {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let offset = self.offset + (n_bytes - self.start) as u64;
                    return Err(TokenError::Io { what: "reading", offset, source });
                }
            }
        }
        Ok(self.seen())
    }

    fn seen(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn consume(&mut self, n: usize) {
        let n = n.min(self.bytes.len() - self.start);
        self.start += n;
        self.offset += n as u64;
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    fn restart(&mut self, offset: u64) {
        self.bytes.clear();
        (self.start, self.offset, self.ended) = (0, offset, false);
    }
}
