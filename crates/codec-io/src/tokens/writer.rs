//! Writes a token file as the codes come.

use super::error::{TokenError, TokenResult};
use super::header::{TokenHeader, Totals};
use super::packet::{
    END_PAYLOAD_BYTES, FOOTER_MAGIC, Head, KIND_END, KIND_PACKED, Packing, pack, put_packet,
};
use super::{MAX_FRAMES, MAX_PAYLOAD_BYTES};
use codec_core::{CodeLayout, Codes};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::sync::Arc;

/// Writes codes into a token file.
///
/// Holds one packet of codes and eight bytes per written packet. The same header and codes give
/// the same bytes, whatever pieces the codes are pushed in. Every packet is one `write`.
#[derive(Debug)]
pub struct TokenWriter<W> {
    sink: W,
    header: TokenHeader,
    layout: Arc<CodeLayout>,
    pending: Codes,
    n_frames: u64,
    offset: u64,
    packet_offsets: Vec<u64>,
    bytes: Vec<u8>,
}

impl<W: Write> TokenWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// As [`TokenHeader::validate`]; [`TokenError::Io`] when the sink refuses.
    pub fn new(sink: W, header: TokenHeader) -> TokenResult<Self> {
        let bytes = header.to_bytes()?;
        let layout = Arc::new(header.layout.clone());
        let pending = Codes::empty(Arc::clone(&layout));
        let (n_frames, offset, packet_offsets) = (0, 0, Vec::new());
        let mut writer = Self { sink, header, layout, pending, n_frames, offset, packet_offsets, bytes };
        writer.write_out("writing the header")?;
        Ok(writer)
    }

    /// The header as it was written.
    pub fn header(&self) -> &TokenHeader {
        &self.header
    }

    /// Frames that were pushed.
    pub fn n_frames(&self) -> u64 {
        self.n_frames
    }

    /// Appends codes; packets are written as they fill up.
    ///
    /// # Errors
    /// [`TokenError::Codes`] when the layout is another than the header's, or when codes follow
    /// a push that ended inside a block; [`TokenError::Limit`] beyond [`MAX_FRAMES`];
    /// [`TokenError::Io`] when the sink refuses.
    pub fn push(&mut self, codes: &Codes) -> TokenResult<()> {
        let n = codes.n_frames();
        if codes.layout().as_ref() != self.layout.as_ref() {
            // Appending nothing makes the error that appending something would.
            self.pending.append(codes)?;
        }
        let actual = self.n_frames.saturating_add(n as u64);
        if actual > MAX_FRAMES {
            return Err(TokenError::Limit { what: "frames", max: MAX_FRAMES, actual });
        }
        let packet_frames = self.header.packet_frames as usize;
        let mut at = 0;
        while at < n {
            let taken = (packet_frames - self.pending.n_frames()).min(n - at);
            self.pending.append(&codes.slice(at..at + taken)?)?;
            at += taken;
            self.n_frames += taken as u64;
            if self.pending.n_frames() == packet_frames {
                self.write_packet()?;
            }
        }
        Ok(())
    }

    /// Writes what is left, the totals and the index, and gives the sink back.
    ///
    /// The header keeps saying what it said; see [`TokenWriter::finish_seekable`].
    ///
    /// # Errors
    /// [`TokenError::Totals`] when there are more samples than the frames make, or other totals
    /// than the header's; [`TokenError::Io`] when the sink refuses.
    pub fn finish(mut self, totals: Totals) -> TokenResult<W> {
        self.write_end(totals)?;
        Ok(self.sink)
    }

    /// As [`TokenWriter::finish`], and goes back to write the totals into the header too.
    ///
    /// A sink that turns out not to seek, such as a FIFO, is left as [`TokenWriter::finish`] does.
    ///
    /// # Errors
    /// As [`TokenWriter::finish`].
    pub fn finish_seekable(mut self, totals: Totals) -> TokenResult<W>
    where
        W: Seek,
    {
        self.write_end(totals)?;
        if self.header.totals.is_none() {
            self.header.totals = Some(totals);
            let bytes = self.header.to_bytes()?;
            let io = |source| TokenError::Io { what: "completing the header", offset: 0, source };
            let end = match self.sink.stream_position() {
                Err(error) if error.kind() == ErrorKind::NotSeekable => return Ok(self.sink),
                position => position.map_err(io)?,
            };
            let start = end.saturating_sub(self.offset);
            self.sink.seek(SeekFrom::Start(start)).map_err(io)?;
            self.sink.write_all(&bytes).map_err(io)?;
            self.sink.seek(SeekFrom::Start(end)).map_err(io)?;
            self.sink.flush().map_err(io)?;
        }
        Ok(self.sink)
    }

    fn write_packet(&mut self) -> TokenResult<()> {
        let codes = std::mem::replace(&mut self.pending, Codes::empty(Arc::clone(&self.layout)));
        let too_long = |actual: u64| {
            let max = MAX_PAYLOAD_BYTES.into();
            TokenError::Limit { what: "payload bytes", max, actual }
        };
        let n_frames = u32::try_from(codes.n_frames()).map_err(|_| too_long(codes.n_frames() as u64))?;
        let n_bytes = Packing::new(&self.layout).payload_bytes(n_frames);
        let payload_bytes = u32::try_from(n_bytes).map_err(|_| too_long(n_bytes))?;
        let first_frame = self.packet_offsets.len() as u64 * u64::from(self.header.packet_frames);
        let head = Head { kind: KIND_PACKED, payload_bytes, first_frame, n_frames };
        put_packet(&mut self.bytes, head, |bytes| pack(&codes, bytes));
        self.packet_offsets.push(self.offset);
        self.write_out("writing a packet")
    }

    fn write_end(&mut self, totals: Totals) -> TokenResult<()> {
        if !self.pending.is_empty() {
            self.write_packet()?;
        }
        check_totals(&self.header, self.n_frames, totals, self.offset)?;
        let end_offset = self.offset;
        let head = Head {
            kind: KIND_END,
            payload_bytes: END_PAYLOAD_BYTES,
            first_frame: self.n_frames,
            n_frames: 0,
        };
        put_packet(&mut self.bytes, head, |bytes| {
            bytes.extend(totals.n_samples.to_le_bytes());
            bytes.extend(totals.source_samples.to_le_bytes());
        });
        let index_start = self.bytes.len();
        self.bytes.extend(self.packet_offsets.iter().flat_map(|offset| offset.to_le_bytes()));
        let crc = crc32c::crc32c(&self.bytes[index_start..]);
        self.bytes.extend(crc.to_le_bytes());
        self.bytes.extend(end_offset.to_le_bytes());
        self.bytes.extend(FOOTER_MAGIC);
        self.write_out("writing the index")?;
        let offset = self.offset;
        self.sink.flush().map_err(|source| TokenError::Io { what: "writing the index", offset, source })
    }

    fn write_out(&mut self, what: &'static str) -> TokenResult<()> {
        let offset = self.offset;
        self.sink.write_all(&self.bytes).map_err(|source| TokenError::Io { what, offset, source })?;
        self.offset += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }
}

/// Checks the totals against the frames, and against the header's if it has any.
pub(super) fn check_totals(
    header: &TokenHeader,
    n_frames: u64,
    totals: Totals,
    offset: u64,
) -> TokenResult<()> {
    let available = header.samples_in(n_frames);
    let actual = header.start_trim.saturating_add(totals.n_samples);
    if actual > available {
        let what = "samples and start trim, at most those of the frames,";
        return Err(TokenError::Totals { what, offset, expected: available, actual });
    }
    let Some(declared) = header.totals else { return Ok(()) };
    for (what, expected, actual) in [
        ("samples, as in the header,", declared.n_samples, totals.n_samples),
        ("source samples, as in the header,", declared.source_samples, totals.source_samples),
    ] {
        if expected != actual {
            return Err(TokenError::Totals { what, offset, expected, actual });
        }
    }
    Ok(())
}
