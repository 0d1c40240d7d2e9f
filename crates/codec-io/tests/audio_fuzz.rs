//! Damaged files: never a panic, never a hang, never much memory.

#![expect(clippy::unwrap_used, reason = "a helper of tests may stop them")]

mod support;

use codec_io::AudioReader;
use std::time::{Duration, Instant};
use support::{chunk, fmt, riff, seekable, stream, vector, vector_names};

/// Mutated files per vector.
const N_MUTATIONS: u64 = 1_000;

/// One damaged file of a few kilobytes must be done with in this time on a busy machine.
const MAX_TIME: Duration = Duration::from_secs(5);

/// What the process may have used at its peak, in KiB.
const MAX_PEAK: u64 = 512 << 10;

/// A small generator, so that a failure can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n.max(1)
    }
}

fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        // The headers are where it hurts: half of the changes go there.
        let reach = if random.below(2) == 0 { bytes.len().min(300) } else { bytes.len() };
        let at = random.below(reach);
        match random.below(7) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at.max(1)),
            3 => bytes[at..].iter_mut().take(4).for_each(|b| *b = 0xFF),
            4 => bytes[at..].iter_mut().take(8).for_each(|b| *b = 0),
            5 => drop(bytes.drain(at..(at + 1 + random.below(16)).min(bytes.len()))),
            _ => {
                let piece = bytes[at..(at + 32).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
}

/// Reads to the end or to the first error, and counts the samples.
fn drain(reader: codec_io::Result<AudioReader>) -> u64 {
    let Ok(mut reader) = reader else { return 0 };
    let mut n_samples = 0;
    while let Ok(Some(piece)) = reader.read() {
        assert!(piece.n_samples() <= 1 << 17, "a piece is bounded");
        assert_eq!(piece.spec(), reader.spec());
        n_samples += piece.n_samples() as u64;
        // A mutated header may promise anything, the bytes cannot hold more than this.
        assert!(n_samples < 1 << 26);
    }
    n_samples
}

fn vectors() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = vector_names().into_iter().map(|name| (name.clone(), vector(&name))).collect();
    let data: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let mut ds64 = [3100u64, 3000, 1000].map(u64::to_le_bytes).concat();
    ds64.extend([0; 4]);
    let mut rf64 = riff(&[chunk(b"ds64", &ds64), fmt(1, 1, 8_000, 24), chunk(b"data", &data)]);
    rf64[..4].copy_from_slice(b"RF64");
    all.push(("rf64".into(), rf64));
    for (tag, bits) in [(1, 16), (3, 64), (6, 8)] {
        let wav = riff(&[fmt(tag, 3, 8_000, bits), chunk(b"LIST", b"abc"), chunk(b"data", &data)]);
        all.push((format!("wav {tag}"), wav));
    }
    all
}

#[test]
fn mutations() {
    let mut n_read = 0u64;
    for (name, original) in vectors() {
        for seed in 0..N_MUTATIONS {
            let mut random = Random((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let mut bytes = original.clone();
            damage(&mut bytes, &mut random);
            let start = Instant::now();
            let n = drain(if seed % 4 == 0 { stream(&bytes) } else { seekable(&bytes) });
            assert!(start.elapsed() < MAX_TIME, "{name}, seed {seed}: {:?}", start.elapsed());
            n_read += u64::from(n > 0);
        }
    }
    // Most damage leaves something to hear: the test is not one of early refusals.
    let n_all = vectors().len() as u64 * N_MUTATIONS;
    println!("{n_read} of {n_all} damaged files gave samples");
    assert!(n_read > n_all / 4);
    check_peak();
}

#[test]
fn truncations() {
    for (_, original) in vectors() {
        let step = (original.len() / 150).max(1);
        for len in (1..original.len()).step_by(step).chain(1..original.len().min(100)) {
            drain(seekable(&original[..len]));
            drain(stream(&original[..len]));
        }
    }
    check_peak();
}

/// The peak of the whole process, where the system tells it.
fn check_peak() {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("peak memory {kib} KiB");
    assert!(kib < MAX_PEAK, "{kib} KiB");
}
