//! NumPy files: one array in `.npy`, several in `.npz`.
//!
//! # Source
//! numpy/lib/format.py, version 1.0 of the format.

use super::arrays::{self, MAGIC};
use super::metadata::{Metadata, TokenArrays};
use crate::error::{Error, Result};
use crate::tokens::{TokenHeader, Totals};
use codec_core::Codes;
use std::io::{Cursor, Read, Seek, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

const FORMAT: &str = "npy";
/// The head of a NumPy file is filled up to a multiple of this.
const ALIGNMENT: usize = 64;

/// Whether the bytes are a NumPy file that holds Python objects, as `.dac` files do.
pub fn holds_objects(bytes: &[u8]) -> bool {
    arrays::holds_objects(bytes)
}

/// Reads codes, one row per codebook: an array of integers, `[n_codebooks, n_frames]`, `[n_frames]` of one
/// codebook, or either with dimensions of one before them, as models give the codes of one clip.
///
/// # Errors
/// [`Error::Format`] when it is no such array or a code is negative or beyond 32 bits, [`Error::Limit`],
/// [`Error::Io`].
pub fn read_npy(source: impl Read) -> Result<Vec<Vec<u32>>> {
    let bytes = super::read_whole(source, "bytes of an npy file")?;
    let rows = rows_of(&bytes)?;
    let is_empty = rows.first().is_none_or(Vec::is_empty);
    if is_empty {
        Err(Error::Format { format: FORMAT, what: "it holds no codes", offset: 0 })
    } else {
        Ok(rows)
    }
}

/// The codes in a NumPy file, one row per codebook.
fn rows_of(bytes: &[u8]) -> Result<Vec<Vec<u32>>> {
    let bad = |what| Error::Format { format: FORMAT, what, offset: 0 };
    let numbers = arrays::numbers(FORMAT, bytes)?;
    let mut dims = numbers.shape.as_slice();
    while let [1, rest @ ..] = dims
        && rest.len() > 1
    {
        dims = rest;
    }
    let (n_rows, n_columns) = match *dims {
        [n_frames] => (1, n_frames),
        [n_codebooks, n_frames] => (n_codebooks, n_frames),
        _ => return Err(bad("its shape is not that of the codes of one clip")),
    };
    let codes = numbers.integers().ok_or(bad("not all of its numbers are codes"))?;
    if numbers.column_major && n_rows > 0 {
        let row = |row_idx: usize| codes.iter().skip(row_idx).step_by(n_rows).copied().collect();
        return Ok((0..n_rows).map(row).collect());
    }
    Ok(rows(&codes, n_rows, n_columns))
}

/// The rows of an array, which may have no columns.
pub(super) fn rows(values: &[u32], n_rows: usize, n_columns: usize) -> Vec<Vec<u32>> {
    if n_columns == 0 {
        // No layout has so many codebooks that more rows than these are needed to refuse them.
        return vec![Vec::new(); n_rows.min(codec_core::codes::MAX_CODEBOOKS + 1)];
    }
    values.chunks_exact(n_columns).map(<[u32]>::to_vec).collect()
}

/// Reads what [`write_npz`] wrote, or NumPy from the same arrays, uncompressed.
///
/// # Errors
/// [`Error::Format`] when it is no such file, [`Error::Core`] when its codes do not fit what it says of them,
/// [`Error::Limit`], [`Error::Io`].
pub fn read_npz(source: impl Read) -> Result<TokenArrays> {
    const FORMAT: &str = "npz";
    let bytes = super::read_whole(source, "bytes of an npz file")?;
    let bad = |what| Error::Format { format: FORMAT, what, offset: 0 };
    let mut archive =
        ZipArchive::new(Cursor::new(bytes.as_slice())).map_err(|_| bad("it is no whole archive"))?;
    let mut member = |name: String| -> Result<Option<Vec<u8>>> {
        let Some(index) = archive.index_for_name(&format!("{name}.npy")) else { return Ok(None) };
        let mut member =
            archive.by_index(index).map_err(|_| bad("a member of the archive cannot be read"))?;
        let mut array = Vec::new();
        // Nothing is compressed, so no member is longer than the archive.
        let read = member.by_ref().take(bytes.len() as u64).read_to_end(&mut array);
        read.map_err(|_| bad("a member of the archive is damaged"))?;
        Ok(Some(array))
    };
    let text = member("metadata".to_owned())?.map(|array| arrays::text(FORMAT, &array)).transpose()?;
    let metadata = text.and_then(|text| serde_json::from_str::<Metadata>(&text).ok());
    let metadata = metadata.ok_or(bad("it does not say what `codec export` puts beside codes"))?;
    let mut rows = Vec::new();
    if let Some(array) = member("codes".to_owned())? {
        rows = rows_of(&array)?;
    } else {
        while let Some(array) = member(format!("codes_{}", rows.len()))? {
            rows.append(&mut rows_of(&array)?);
        }
    }
    let scales = match member("scales".to_owned())? {
        Some(array) => arrays::numbers(FORMAT, &array)?.floats().ok_or(bad("its scales are no floats"))?,
        None => Vec::new(),
    };
    metadata.with_codes(FORMAT, rows, scales)
}

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
    let failed = |source: std::io::Error| Error::Io { what: "writing codes", offset: 0, source };
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
    let metadata = serde_json::to_string(&Metadata::new(header, totals));
    let metadata: Vec<char> = metadata.map_err(|e| failed(e.into()))?.chars().collect();
    let data = metadata.iter().flat_map(|&letter| u32::from(letter).to_le_bytes());
    members.push(("metadata.npy".to_owned(), with_head(&format!("<U{}", metadata.len()), "()", data)));

    let mut archive = ZipWriter::new(sink);
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in members {
        archive.start_file(name.as_str(), options).map_err(|e| failed(std::io::Error::other(e)))?;
        archive.write_all(&bytes).map_err(failed)?;
    }
    archive.finish().map_err(|e| failed(std::io::Error::other(e)))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use codec_core::CodeLayout;
    use proptest::prelude::*;

    fn npy(dtype: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        with_head(dtype, shape, data.iter().copied())
    }

    #[test]
    fn what_is_written_is_read() {
        for size in [3_u32, 70_000] {
            let rows = vec![vec![0, 1, 2], vec![2, size - 1, 0]];
            let codes = Codes::new(CodeLayout::uniform(2, size).unwrap(), rows.clone()).unwrap();
            let mut bytes = Vec::new();
            write_npy(&mut bytes, &codes).unwrap();
            assert_eq!(read_npy(bytes.as_slice()).unwrap(), rows);
            assert!(!holds_objects(&bytes));
            for end in 0..bytes.len() {
                assert!(read_npy(&bytes[..end]).is_err(), "{end}");
            }
        }
    }

    #[test]
    fn arrays_of_a_batch_of_one_and_of_other_types_are_read() {
        let read = |dtype, shape, data: &[u8]| read_npy(npy(dtype, shape, data).as_slice());
        assert_eq!(read("|u1", "(3,)", &[1, 2, 3]).unwrap(), [[1, 2, 3]]);
        assert_eq!(read("|u1", "(1, 1, 3)", &[1, 2, 3]).unwrap(), [[1, 2, 3]]);
        assert_eq!(read("|u1", "(1, 2, 2)", &[1, 2, 3, 4]).unwrap(), [[1, 2], [3, 4]]);
        assert_eq!(read(">i2", "(1, 2)", &[1, 2, 0, 4]).unwrap(), [[258, 4]]);
        assert_eq!(read("<i8", "(1,)", &[5, 0, 0, 0, 0, 0, 0, 0]).unwrap(), [[5]]);
        for (dtype, shape, data) in [
            ("<i2", "(1,)", &[0, 128][..]),
            ("<f4", "(1,)", &[0, 0, 128, 63]),
            ("<i8", "(1,)", &[0, 0, 0, 0, 1, 0, 0, 0]),
            ("|u1", "(2, 2, 1)", &[1, 2, 3, 4]),
            ("|u1", "(0,)", &[]),
            ("|u1", "()", &[1]),
            ("|u1", "(x,)", &[1]),
            ("|u1", "(2,)", &[1, 2, 3]),
            ("|b1", "(1,)", &[1]),
            ("<u2", "(9223372036854775807, 2)", &[1, 2]),
        ] {
            assert!(matches!(read(dtype, shape, data), Err(Error::Format { .. })), "{dtype} {shape}");
        }
        let text = String::from_utf8_lossy(&npy("|u1", "(2, 1)", &[1, 2])).replace("False", "True ");
        let bytes: Vec<u8> = text.chars().map(|c| if c == '\u{fffd}' { 0x93 } else { c as u8 }).collect();
        assert_eq!(read_npy(bytes.as_slice()).unwrap(), [[1], [2]]);
        let file = npy("|u1", "(1, 2, 3)", &[1, 4, 2, 5, 3, 6]);
        let text = String::from_utf8_lossy(&file).replace("False", "True ");
        let bytes: Vec<u8> = text.chars().map(|c| if c == '\u{fffd}' { 0x93 } else { c as u8 }).collect();
        assert_eq!(read_npy(bytes.as_slice()).unwrap(), [[1, 2, 3], [4, 5, 6]]);
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0_usize..100, byte: u8, end in 0_usize..120) {
            let mut bytes = npy("<u2", "(2, 3)", &[0; 12]);
            let n = bytes.len();
            bytes[at % n] = byte;
            bytes.truncate(end.max(1));
            drop(read_npy(bytes.as_slice()));
        }
    }
}
