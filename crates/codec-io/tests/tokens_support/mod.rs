//! Token files for the tests.

#![expect(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, as tests do")]

use codec_core::{AudioSpec, CodeLayout, CodebookSpec, CodecInfo, Codes, Segment};
use codec_io::tokens::{TokenHeader, TokenWriter, Totals};
use std::io::Cursor;

/// A small generator of repeatable numbers (Numerical Recipes' linear congruence).
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    /// The next number, below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

pub(crate) fn info(layout: CodeLayout) -> CodecInfo {
    CodecInfo {
        model: "test_24khz".into(),
        family: "test",
        audio: AudioSpec { sample_rate: 24_000, channels: 1 },
        hop_length: 320,
        delays: Default::default(),
        segment: None,
        layout,
    }
}

/// A header with packets of `packet_blocks` blocks.
pub(crate) fn header(layout: CodeLayout, packet_blocks: u32) -> TokenHeader {
    let n_codebooks = layout.n_codebooks();
    let source = AudioSpec { sample_rate: 44_100, channels: 2 };
    let mut header = TokenHeader::new(&info(layout), n_codebooks, [0xa5; 32], source).unwrap();
    header.packet_frames = packet_blocks * header.layout.block_frames();
    header.with_tag("title", "Grüße").with_tag("", "")
}

/// Three strided codebooks, one of a size that is no power of two, with scales.
pub(crate) fn strided_layout() -> CodeLayout {
    let spec = |size, stride| CodebookSpec { size, stride };
    CodeLayout::new(vec![spec(1000, 4), spec(16, 2), spec(1 << 11, 1)]).unwrap().with_scales(8).unwrap()
}

/// The shape of EnCodec 48 kHz: segments that overlap, a scale for each.
pub(crate) fn segmented_header(packet_blocks: u32) -> TokenHeader {
    let layout = CodeLayout::uniform(2, 1024).unwrap().with_scales(150).unwrap();
    let mut header = header(layout, packet_blocks);
    header.audio = AudioSpec { sample_rate: 48_000, channels: 2 };
    header.source = header.audio;
    header.segment = Some(Segment { n_samples: 48_000, stride: 47_520, n_frames: 150 });
    header.validate().unwrap();
    header
}

/// Codes that use the whole range of every codebook.
pub(crate) fn codes(layout: &CodeLayout, n_frames: usize, seed: u64) -> Codes {
    let mut noise = Noise(seed);
    let row = |c: &CodebookSpec| {
        let n = n_frames / c.stride as usize;
        (0..n).map(|_| noise.below(c.size.into()) as u32).collect::<Vec<_>>()
    };
    let rows = layout.codebooks().iter().map(row).collect();
    let n_scales = layout.scale_frames().map_or(0, |frames| n_frames.div_ceil(frames as usize));
    let scales = (0..n_scales).map(|_| noise.below(1 << 20) as f32 / 4096.0 - 100.0).collect();
    Codes::with_scales(layout.clone(), rows, scales).unwrap()
}

/// All samples that the frames make, less a few at the end.
pub(crate) fn totals(header: &TokenHeader, n_frames: usize) -> Totals {
    let n_samples = header.samples_in(n_frames as u64).saturating_sub(header.start_trim + 5);
    Totals { n_samples, source_samples: header.to_source_samples(n_samples) }
}

/// The file that holds the codes.
pub(crate) fn file(header: TokenHeader, codes: &Codes) -> Vec<u8> {
    let totals = totals(&header, codes.n_frames());
    let mut writer = TokenWriter::new(Cursor::new(Vec::new()), header).unwrap();
    writer.push(codes).unwrap();
    writer.finish_seekable(totals).unwrap().into_inner()
}

/// Where the packets start: header length, every packet with codes, the end packet.
pub(crate) fn offsets(file: &[u8]) -> Vec<usize> {
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let mut offsets = vec![16 + word(12) + 4];
    while file[offsets[offsets.len() - 1] + 3] != 0 {
        let at = offsets[offsets.len() - 1];
        offsets.push(at + 20 + word(at + 4) + 4);
    }
    offsets
}
