//! Packets: their heads, and codes to payload bytes and back.

use super::bits::{BitReader, BitWriter};
use super::error::{DamageReason, TokenError, TokenResult};
use super::header::{TokenHeader, Totals};
use super::{MAX_FRAMES, MAX_PACKET_VALUES, MAX_PAYLOAD_BYTES};
use codec_core::{CodeLayout, Codes};
use std::sync::Arc;

/// The bytes that every packet starts with.
pub(super) const SYNC: [u8; 3] = [0x8e, b'P', 0xd5];
pub(super) const HEAD_BYTES: usize = 20;
pub(super) const CRC_BYTES: usize = 4;
/// Payload of the end packet: the two totals.
pub(super) const END_PAYLOAD_BYTES: u32 = 16;
/// The last bytes of the file, after the offset of the end packet.
pub(super) const FOOTER_MAGIC: [u8; 8] = *b"\x8eNACEND\n";

pub(super) const KIND_END: u8 = 0;
pub(super) const KIND_PACKED: u8 = 1;
/// Kinds from here on carry no codes; a reader passes over those that it does not know.
pub(super) const FIRST_ANCILLARY_KIND: u8 = 128;

/// The fixed part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) payload_bytes: u32,
    pub(super) first_frame: u64,
    pub(super) n_frames: u32,
}

impl Head {
    pub(super) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..3].copy_from_slice(&SYNC);
        bytes[3] = self.kind;
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first_frame.to_le_bytes());
        bytes[16..].copy_from_slice(&self.n_frames.to_le_bytes());
        bytes
    }

    /// Reads a head and checks everything that can be checked without the payload.
    pub(super) fn parse(bytes: &[u8; HEAD_BYTES], header: &TokenHeader) -> Result<Self, DamageReason> {
        let [s0, s1, s2, kind, l0, l1, l2, l3, f0, f1, f2, f3, f4, f5, f6, f7, n0, n1, n2, n3] = *bytes;
        if [s0, s1, s2] != SYNC {
            return Err(DamageReason::Sync);
        }
        let payload_bytes = u32::from_le_bytes([l0, l1, l2, l3]);
        let first_frame = u64::from_le_bytes([f0, f1, f2, f3, f4, f5, f6, f7]);
        let n_frames = u32::from_le_bytes([n0, n1, n2, n3]);
        let bad = |what, actual: u64| Err(DamageReason::Head { what, actual });
        let carries_codes = (KIND_PACKED..FIRST_ANCILLARY_KIND).contains(&kind);
        if carries_codes {
            if n_frames == 0 || n_frames > header.packet_frames {
                return bad("the frame count", n_frames.into());
            }
            if first_frame % u64::from(header.packet_frames) != 0 {
                return bad("the first frame", first_frame);
            }
        } else if n_frames != 0 {
            return bad("the frame count of a packet without codes", n_frames.into());
        }
        if first_frame.saturating_add(n_frames.into()) > MAX_FRAMES {
            return bad("the first frame", first_frame);
        }
        let right_length = match kind {
            KIND_END => payload_bytes == END_PAYLOAD_BYTES,
            KIND_PACKED => {
                let packing = Packing::new(&header.layout);
                n_frames % packing.group_frames == 0
                    && packing.payload_bytes(n_frames) == u64::from(payload_bytes)
            }
            _ => payload_bytes <= MAX_PAYLOAD_BYTES,
        };
        if !right_length {
            return bad("the payload length", payload_bytes.into());
        }
        Ok(Self { kind, payload_bytes, first_frame, n_frames })
    }

    /// Length of the packet with its checksum. The head was checked, so it is small.
    pub(super) fn total_bytes(self) -> usize {
        HEAD_BYTES + self.payload_bytes as usize + CRC_BYTES
    }
}

/// Appends a whole packet: head, payload, checksum.
pub(super) fn put_packet(bytes: &mut Vec<u8>, head: Head, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend(head.to_bytes());
    payload(bytes);
    let crc = crc32c::crc32c(&bytes[start..]);
    bytes.extend(crc.to_le_bytes());
}

/// The payload of an end packet.
pub(super) fn parse_totals(payload: &[u8]) -> Option<Totals> {
    let (n_samples, rest) = payload.split_first_chunk()?;
    let source_samples = rest.first_chunk()?;
    Some(Totals {
        n_samples: u64::from_le_bytes(*n_samples),
        source_samples: u64::from_le_bytes(*source_samples),
    })
}

/// Sizes of the packed form of a layout.
///
/// Codes are written group by group: a group is the least number of frames that holds whole codes
/// of every codebook. Inside a group they go codebook by codebook, each in the order of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing {
    group_frames: u32,
    group_bits: u64,
    group_codes: u64,
    scale_frames: Option<u32>,
}

impl Packing {
    pub(super) fn new(layout: &CodeLayout) -> Self {
        let group_frames = layout.stride_frames();
        let codes = |stride: u32| u64::from(group_frames / stride);
        let codebooks = layout.codebooks();
        Self {
            group_frames,
            group_bits: codebooks.iter().map(|c| u64::from(c.bits()) * codes(c.stride)).sum(),
            group_codes: codebooks.iter().map(|c| codes(c.stride)).sum(),
            scale_frames: layout.scale_frames(),
        }
    }

    /// Bits of the scales and codes of that many frames.
    pub(super) fn bits(&self, n_frames: u32) -> u64 {
        u64::from(n_frames / self.group_frames) * self.group_bits + 32 * self.n_scales(n_frames)
    }

    pub(super) fn payload_bytes(&self, n_frames: u32) -> u64 {
        self.bits(n_frames).div_ceil(8)
    }

    fn n_scales(&self, n_frames: u32) -> u64 {
        self.scale_frames.map_or(0, |frames| u64::from(n_frames.div_ceil(frames)))
    }

    /// Checks that a packet of that many frames stays within the limits.
    pub(super) fn check(&self, n_frames: u32) -> TokenResult<()> {
        let n_codes = u64::from(n_frames / self.group_frames) * self.group_codes;
        let n_values = n_codes + self.n_scales(n_frames);
        let max = MAX_PACKET_VALUES;
        if n_values > max {
            return Err(TokenError::Limit { what: "codes and scales per packet", max, actual: n_values });
        }
        Ok(())
    }
}

/// Appends the payload of a packed packet.
pub(super) fn pack(codes: &Codes, bytes: &mut Vec<u8>) {
    for scale in codes.scales() {
        bytes.extend(scale.to_le_bytes());
    }
    let layout = codes.layout();
    let group_frames = layout.stride_frames();
    // Per codebook: its width, how many of its codes make a group, and its codes.
    let mut rows: Vec<_> = layout
        .codebooks()
        .iter()
        .zip(codes.rows())
        .map(|(codebook, row)| (codebook.bits(), row.chunks_exact((group_frames / codebook.stride) as usize)))
        .collect();
    let mut writer = BitWriter::new(bytes);
    for _ in 0..codes.n_frames() / group_frames as usize {
        for (n_bits, groups) in &mut rows {
            for &code in groups.next().unwrap_or_default() {
                writer.put(code, *n_bits);
            }
        }
    }
    writer.finish();
}

/// Reads the payload of a packed packet; its length and frame count were checked with the head.
pub(super) fn unpack(layout: &Arc<CodeLayout>, n_frames: u32, payload: &[u8]) -> Result<Codes, DamageReason> {
    let packing = Packing::new(layout);
    // Within MAX_PACKET_VALUES, as the header was checked.
    let n_scale_bytes = packing.n_scales(n_frames) as usize * 4;
    let (scales, packed) = payload.split_at_checked(n_scale_bytes).unwrap_or((payload, &[]));
    let scales = scales.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let group_frames = packing.group_frames;
    let mut rows: Vec<Vec<u32>> =
        layout.codebooks().iter().map(|c| Vec::with_capacity((n_frames / c.stride) as usize)).collect();
    let mut reader = BitReader::new(packed);
    for _ in 0..n_frames / group_frames {
        for (row, codebook) in rows.iter_mut().zip(layout.codebooks()) {
            let n_bits = codebook.bits();
            row.extend((0..group_frames / codebook.stride).map(|_| reader.take(n_bits)));
        }
    }
    let padding = reader.padding();
    if padding != 0 {
        return Err(DamageReason::Payload { what: "the padding after the last code", actual: padding });
    }
    Codes::with_scales(Arc::clone(layout), rows, scales).map_err(|refused| match refused {
        codec_core::Error::Code { code, .. } => {
            DamageReason::Payload { what: "a code that its codebook does not have", actual: code.into() }
        }
        codec_core::Error::NotFinite { index, .. } => {
            DamageReason::Payload { what: "the position of a scale that is not finite", actual: index as u64 }
        }
        _ => DamageReason::Payload { what: "the payload length", actual: payload.len() as u64 },
    })
}
