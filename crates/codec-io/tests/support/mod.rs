//! Small writers of audio files, byte by byte, and a measure.
#![allow(dead_code, reason = "each test program uses a part")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of tests may stop them")]

use codec_io::{AudioReader, Result};
use std::io::Cursor;
use std::path::PathBuf;

pub(crate) fn vector(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(crate) fn vector_names() -> Vec<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("chirp"))
        .collect();
    names.sort();
    assert_eq!(names.len(), 15, "{names:?}");
    names
}

pub(crate) fn seekable(bytes: &[u8]) -> Result<AudioReader> {
    AudioReader::from_seekable(Cursor::new(bytes.to_vec()))
}

pub(crate) fn stream(bytes: &[u8]) -> Result<AudioReader> {
    AudioReader::from_reader(Box::new(Cursor::new(bytes.to_vec())))
}

/// A chunk with its pad byte.
pub(crate) fn chunk(id: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut out = [id, (body.len() as u32).to_le_bytes().as_slice(), body].concat();
    out.resize(out.len().next_multiple_of(2), 0);
    out
}

pub(crate) fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
    let body = [b"WAVE".to_vec(), chunks.concat()].concat();
    chunk(b"RIFF", &body)
}

pub(crate) fn fmt(tag: u16, channels: u16, rate: u32, bits: u16) -> Vec<u8> {
    let block = channels * bits.div_ceil(8);
    let mut body = Vec::new();
    body.extend(tag.to_le_bytes());
    body.extend(channels.to_le_bytes());
    body.extend(rate.to_le_bytes());
    body.extend((rate * u32::from(block)).to_le_bytes());
    body.extend(block.to_le_bytes());
    body.extend(bits.to_le_bytes());
    chunk(b"fmt ", &body)
}

/// Signal to noise ratio in dB.
pub(crate) fn snr(reference: &[f32], actual: &[f32]) -> f64 {
    assert_eq!(reference.len(), actual.len());
    let energy: f64 = reference.iter().map(|&x| f64::from(x).powi(2)).sum();
    let noise: f64 = reference.iter().zip(actual).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    10.0 * (energy / noise.max(1e-300)).log10()
}
