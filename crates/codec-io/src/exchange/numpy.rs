//! NumPy files: one array in `.npy`, several in `.npz`.
//!
//! # Source
//! numpy/lib/format.py, version 1.0 of the format.

use super::arrays::MAGIC;
use crate::error::{Error, Result};
use crate::tokens::{TokenHeader, Totals};
use codec_core::Codes;
use std::io::{Seek, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The head of a NumPy file is filled up to a multiple of this.
const ALIGNMENT: usize = 64;

/// Writes the codes as one array, `[n_codebooks, n_frames]`, of the smallest unsigned type that holds
/// them. Scales and everything that the header says are lost.
///
/// # Errors
/// [`Error::Unsupported`] when the codebooks have different strides: then their rows are no array;
/// [`Error::Io`].
pub fn write_npy(mut sink: impl Write, codes: &Codes) -> Result<()> {
    let stride = codes.layout().codebooks().first().map(|codebook| codebook.stride);
    if codes.layout().codebooks().iter().any(|codebook| Some(codebook.stride) != stride) {
        let what = "codebooks of different strides (npz holds one array for each)".to_owned();
        return Err(Error::Unsupported { format: "npy", what, offset: 0 });
    }
    let bytes = array(codes.rows(), Some(codes.n_codebooks()));
    sink.write_all(&bytes).map_err(|source| Error::Io { what: "writing codes", offset: 0, source })
}

/// Writes `codes` (`[n_codebooks, n_frames]`, or `codes_0`, `codes_1`, ... when their strides differ), the
/// `scales` where there are any, and `metadata`, a JSON text of what the header says.
///
/// # Errors
/// [`Error::Io`].
pub fn write_npz(sink: impl Write + Seek, header: &TokenHeader, totals: Totals, codes: &Codes) -> Result<()> {
    let mut members = Vec::new();
    let strides: Vec<u32> = codes.layout().codebooks().iter().map(|codebook| codebook.stride).collect();
    if strides.windows(2).all(|pair| pair[0] == pair[1]) {
        members.push(("codes.npy".to_owned(), array(codes.rows(), Some(codes.n_codebooks()))));
    } else {
        for (codebook_idx, row) in codes.rows().enumerate() {
            members.push((format!("codes_{codebook_idx}.npy"), array([row], None)));
        }
    }
    if !codes.scales().is_empty() {
        let data = codes.scales().iter().flat_map(|scale| scale.to_le_bytes());
        members
            .push(("scales.npy".to_owned(), with_head("<f4", &format!("({},)", codes.scales().len()), data)));
    }
    let metadata: Vec<char> = super::safetensors::metadata(header, totals).to_string().chars().collect();
    let data = metadata.iter().flat_map(|&letter| u32::from(letter).to_le_bytes());
    members.push(("metadata.npy".to_owned(), with_head(&format!("<U{}", metadata.len()), "()", data)));

    let mut archive = ZipWriter::new(sink);
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let failed = |e: zip::result::ZipError| Error::Io {
        what: "writing codes",
        offset: 0,
        source: std::io::Error::other(e),
    };
    for (name, bytes) in members {
        archive.start_file(name.as_str(), options).map_err(failed)?;
        archive.write_all(&bytes).map_err(|source| Error::Io { what: "writing codes", offset: 0, source })?;
    }
    archive.finish().map_err(failed)?;
    Ok(())
}

/// Rows of codes as a NumPy file, of two dimensions when the number of rows is given.
fn array<'a>(rows: impl IntoIterator<Item = &'a [u32]>, n_rows: Option<usize>) -> Vec<u8> {
    let rows: Vec<&[u32]> = rows.into_iter().collect();
    let n_columns = rows.first().map_or(0, |row| row.len());
    let shape = n_rows.map_or_else(|| format!("({n_columns},)"), |n| format!("({n}, {n_columns})"));
    let codes = rows.iter().flat_map(|row| row.iter());
    let max = codes.clone().max().copied().unwrap_or(0);
    if max <= u32::from(u16::MAX) {
        with_head("<u2", &shape, codes.flat_map(|&code| (code as u16).to_le_bytes()))
    } else {
        with_head("<u4", &shape, codes.flat_map(|code| code.to_le_bytes()))
    }
}

fn with_head(dtype: &str, shape: &str, data: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut head = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}");
    let before = MAGIC.len() + 4;
    let length = (before + head.len() + 1).next_multiple_of(ALIGNMENT) - before;
    head.push_str(&" ".repeat(length - head.len() - 1));
    head.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    // At most a few hundred.
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(head.as_bytes());
    bytes.extend(data);
    bytes
}
