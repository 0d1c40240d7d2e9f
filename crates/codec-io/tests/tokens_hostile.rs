//! Files made to harm: no panic, no endless work, no memory beyond the stated limit.

#![expect(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, as tests do")]

mod tokens_support;

use codec_core::CodeLayout;
use codec_io::tokens::edit::{PartialBlock, concatenate, cut, keep_codebooks};
use codec_io::tokens::{MAX_READER_BYTES, TokenError, TokenReader, verify};
use peak_alloc::PeakAlloc;
use std::io::Cursor;
use std::time::{Duration, Instant};
use tokens_support::{Noise, codes, file, header, offsets, segmented_header, strided_layout};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Most mutated files; the loop below runs through all of them.
const N_FILES: usize = 100_000;

// One test, so that no other one allocates at the same time.
#[test]
fn hostile_files_neither_panic_nor_take_memory_nor_time() {
    mutated_files();
    false_packets_in_a_row();
    huge_claims();
}

fn mutated_files() {
    let samples = [
        file(header(strided_layout(), 2), &codes(&strided_layout(), 60, 1)),
        file(segmented_header(1), &codes(&segmented_header(1).layout, 310, 2)),
        file(
            header(CodeLayout::uniform(1, 2).unwrap(), 7),
            &codes(&CodeLayout::uniform(1, 2).unwrap(), 30, 3),
        ),
    ];
    let mut noise = Noise(2026);
    let mut n_read = 0;
    for _ in 0..N_FILES {
        let sample = &samples[noise.below(10) as usize % samples.len()];
        let bytes = mutate(sample, &mut noise);
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let mut n_frames = 0;
        let report = verify(bytes.as_slice(), |codes| n_frames += codes.n_frames() as u64);
        if let Ok((header, report)) = report {
            n_read += 1;
            assert_eq!(report.n_frames, n_frames);
            seek_and_edit(&bytes, &mut noise);
            assert!(!header.family.is_empty() || header.samples_in(n_frames) < u64::MAX);
        }
        let taken = ALLOCATOR.peak_usage() - before;
        assert!(taken <= MAX_READER_BYTES, "{taken} bytes for a file of {}", bytes.len());
    }
    // Both sides of every check are reached.
    assert!(n_read > N_FILES / 4 && n_read < N_FILES, "{n_read} files had a valid header");
}

/// Changes bytes, then makes some of the checksums right again, so that the checks behind them
/// are reached.
fn mutate(sample: &[u8], noise: &mut Noise) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    let offsets = offsets(&bytes);
    for _ in 0..=noise.below(4) {
        if bytes.len() < 2 {
            break;
        }
        let at = noise.below(bytes.len() as u64) as usize;
        match noise.below(8) {
            0 => bytes.truncate(at.max(1)),
            1 => bytes.insert(at, noise.below(256) as u8),
            2 => drop(bytes.remove(at)),
            3 => bytes[at] = [0, 1, 0x7f, 0xff][noise.below(4) as usize],
            4 => {
                let from = noise.below(bytes.len() as u64) as usize;
                let n = (noise.below(60) as usize).min(bytes.len() - from.max(at));
                bytes.copy_within(from..from + n, at);
            }
            _ => bytes[at] ^= 1 << noise.below(8),
        }
    }
    let seal = |bytes: &mut Vec<u8>, start: usize, end: usize| {
        if start < end && end + 4 <= bytes.len() {
            let crc = crc32c::crc32c(&bytes[start..end]);
            bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        }
    };
    if noise.below(4) > 0 {
        seal(&mut bytes, 0, offsets[0] - 4);
        for packet in offsets.windows(2) {
            seal(&mut bytes, packet[0], packet[1] - 4);
        }
        let end = offsets[offsets.len() - 1];
        seal(&mut bytes, end, end + 36);
        seal(&mut bytes, end + 40, end + 40 + 8 * (offsets.len() - 1));
    }
    bytes
}

fn seek_and_edit(bytes: &[u8], noise: &mut Noise) {
    let Ok(mut reader) = TokenReader::open(Cursor::new(bytes)) else { return };
    let n_frames = reader.n_frames();
    for frame in [0, noise.below(n_frames.saturating_add(2)), n_frames, u64::MAX] {
        if reader.seek_frame(frame).is_ok() {
            let _ = reader.next_packet();
        }
    }
    let start = noise.below(reader.n_samples().saturating_add(2));
    let _ = cut(&mut reader, start..start.saturating_add(noise.below(20_000)), 3, std::io::sink());
    let _ = keep_codebooks(&mut reader, 1, std::io::sink());
    if let Ok(other) = TokenReader::open(Cursor::new(bytes)) {
        let _ = concatenate(&mut [reader, other], PartialBlock::Drop, std::io::sink());
    }
}

/// A file of nothing but heads that each claim a long packet: to try them all would take the
/// square of its length.
fn false_packets_in_a_row() {
    let layout = CodeLayout::uniform(1, 1 << 24).unwrap();
    let sample = file(header(layout.clone(), 1 << 18), &codes(&layout, 4, 1));
    let start = offsets(&sample)[0];
    let mut head = sample[start..start + 20].to_vec();
    head[4..8].copy_from_slice(&(3u32 << 18).to_le_bytes());
    head[16..20].copy_from_slice(&(1u32 << 18).to_le_bytes());
    let mut bytes = sample[..start].to_vec();
    bytes.extend(head.iter().cycle().take(16 << 20));
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let started = Instant::now();
    let (_, report) = verify(bytes.as_slice(), |_| ()).unwrap();
    assert!(report.truncated && report.n_packets == 0);
    // A tenth of a second; a search without a budget takes hundreds of times as long.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert!(ALLOCATOR.peak_usage() - before <= MAX_READER_BYTES);
}

/// Headers that claim the most of everything, with right checksums and little behind them.
fn huge_claims() {
    // Packets of the greatest length: codes of 24 bits, and codes that take no bits at all.
    for size in [1 << 24, 1] {
        let layout = CodeLayout::uniform(1, size).unwrap();
        let codes = codes(&layout, 1 << 18, 1);
        let bytes = file(header(layout, 1 << 18), &codes);
        drop(codes);
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let (_, report) = verify(bytes.as_slice(), |codes| assert_eq!(codes.n_frames(), 1 << 18)).unwrap();
        assert!(report.is_intact() && report.n_packets == 1);
        let taken = ALLOCATOR.peak_usage() - before;
        // The codes alone take a mebibyte: the allocator really counts.
        assert!((1 << 20..=MAX_READER_BYTES).contains(&taken), "{taken} bytes for codebooks of {size}");

        // The same claims with nothing behind them cost next to nothing.
        let cut_off = &bytes[..offsets(&bytes)[0] + 20];
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let (_, report) = verify(cut_off, |_| ()).unwrap();
        assert!(report.truncated);
        let taken = ALLOCATOR.peak_usage() - before;
        assert!(taken <= 1 << 16, "{taken} bytes for a packet that is not there");
    }
    let mut bytes = file(header(strided_layout(), 1), &codes(&strided_layout(), 4, 1));
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let error = TokenReader::new(bytes.as_slice()).unwrap_err();
    assert!(matches!(error, TokenError::Header { what: "header length", .. }), "{error}");
    assert!(ALLOCATOR.peak_usage() - before <= 1 << 16);
}
