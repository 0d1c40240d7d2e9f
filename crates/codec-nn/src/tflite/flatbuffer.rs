//! Flatbuffers, read without trust: every offset and every length is checked before it is followed.
//!
//! A reader of our own, because the `flatbuffers` crate works through generated code that is full
//! of `unsafe`, and `planus` would add ten thousand generated lines for the thirty fields that are
//! read here.
//!
//! # Source
//! flatbuffers.dev, "FlatBuffer Internals": everything is little-endian; a reference is a `u32`
//! forward from where it stands; a table starts with an `i32` back to its vtable, which holds its
//! own length, the table's, and a `u16` position in the table for every field, zero when absent.

use crate::error::{Error, Result};
use std::cell::Cell;

/// The bytes of a file and how many more vector elements it may make us read.
///
/// An honest file stores a vector where it is used, so that all of them together are no longer than
/// the file; without this bound, references to one long vector could multiply it.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    elements_left: Cell<usize>,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, elements_left: Cell::new(bytes.len()) }
    }

    /// The root table of a file with the given identifier.
    ///
    /// # Errors
    /// [`Error::Format`] when the file is of another kind or cut off.
    pub(super) fn root(&self, identifier: &[u8; 4]) -> Result<Table<'a, '_>> {
        if self.array(4)? != *identifier {
            return Err(format(4, "the identifier of the file format is missing"));
        }
        Table::new(self, self.reference(0)?)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let end = at.checked_add(N).filter(|&end| end <= self.bytes.len());
        let bytes = end.and_then(|end| self.bytes[at..end].try_into().ok());
        bytes.ok_or_else(|| format(at, "the file ends here"))
    }

    fn reference(&self, at: usize) -> Result<usize> {
        let distance = u32::from_le_bytes(self.array(at)?) as usize;
        let target = at.checked_add(distance).filter(|&target| target < self.bytes.len());
        target.ok_or_else(|| format(at, "a reference leads out of the file"))
    }

    /// Where the elements of the vector at `at` start and how many there are, all inside the file.
    fn vector(&self, at: usize, element_size: usize) -> Result<(usize, usize)> {
        let n_elements = u32::from_le_bytes(self.array(at)?) as usize;
        let start = at + 4;
        let n_bytes = n_elements.checked_mul(element_size);
        if n_bytes.is_none_or(|n| n > self.bytes.len() - start) {
            return Err(format(at, "a vector is longer than the file"));
        }
        Ok((start, n_elements))
    }

    fn charge(&self, at: usize, n_elements: usize) -> Result<()> {
        let left = self.elements_left.get().checked_sub(n_elements);
        self.elements_left.set(left.ok_or_else(|| format(at, "vectors overlap"))?);
        Ok(())
    }
}

/// A table of a flatbuffer; fields are named by their position in the schema.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a, 'r> {
    reader: &'r Reader<'a>,
    at: usize,
    vtable: usize,
    vtable_len: usize,
}

impl<'a, 'r> Table<'a, 'r> {
    fn new(reader: &'r Reader<'a>, at: usize) -> Result<Self> {
        let back = i64::from(i32::from_le_bytes(reader.array(at)?));
        let vtable = i64::try_from(at).ok().and_then(|at| usize::try_from(at - back).ok());
        let vtable = vtable.ok_or_else(|| format(at, "a table's description lies before the file"))?;
        let vtable_len = usize::from(u16::from_le_bytes(reader.array(vtable)?));
        if vtable_len < 4 || vtable_len > reader.bytes.len() - vtable {
            return Err(format(vtable, "a table's description has an impossible length"));
        }
        Ok(Self { reader, at, vtable, vtable_len })
    }

    /// Where the table stands in the file.
    pub(super) fn offset(self) -> usize {
        self.at
    }

    fn field(self, field: usize) -> Result<Option<usize>> {
        let slot = 4 + 2 * field;
        if slot + 2 > self.vtable_len {
            return Ok(None);
        }
        let position = u16::from_le_bytes(self.reader.array(self.vtable + slot)?);
        Ok((position != 0).then(|| self.at + usize::from(position)))
    }

    /// Whether the field is there.
    pub(super) fn has(self, field: usize) -> Result<bool> {
        Ok(self.field(field)?.is_some())
    }

    fn scalar<const N: usize>(self, field: usize) -> Result<Option<[u8; N]>> {
        self.field(field)?.map(|at| self.reader.array(at)).transpose()
    }

    /// A byte, or zero.
    pub(super) fn u8(self, field: usize) -> Result<u8> {
        Ok(self.scalar(field)?.map_or(0, u8::from_le_bytes))
    }

    /// A signed integer, or `default`.
    pub(super) fn i32(self, field: usize, default: i32) -> Result<i32> {
        Ok(self.scalar(field)?.map_or(default, i32::from_le_bytes))
    }

    /// An unsigned integer, or zero.
    pub(super) fn u32(self, field: usize) -> Result<u32> {
        Ok(self.scalar(field)?.map_or(0, u32::from_le_bytes))
    }

    /// An unsigned integer of 64 bits, or zero.
    pub(super) fn u64(self, field: usize) -> Result<u64> {
        Ok(self.scalar(field)?.map_or(0, u64::from_le_bytes))
    }

    /// A float, or zero.
    pub(super) fn f32(self, field: usize) -> Result<f32> {
        Ok(self.scalar(field)?.map_or(0.0, f32::from_le_bytes))
    }

    /// A table, if it is there.
    pub(super) fn table(self, field: usize) -> Result<Option<Self>> {
        let Some(at) = self.field(field)? else { return Ok(None) };
        Self::new(self.reader, self.reader.reference(at)?).map(Some)
    }

    /// The tables of a vector; none when it is absent.
    pub(super) fn tables(self, field: usize) -> Result<Vec<Self>> {
        let Some(at) = self.field(field)? else { return Ok(Vec::new()) };
        let at = self.reader.reference(at)?;
        let (start, n_elements) = self.reader.vector(at, 4)?;
        self.reader.charge(at, n_elements)?;
        let table = |i| Self::new(self.reader, self.reader.reference(start + 4 * i)?);
        (0..n_elements).map(table).collect()
    }

    /// The bytes of a vector; none when it is absent.
    pub(super) fn bytes(self, field: usize) -> Result<&'a [u8]> {
        let Some(at) = self.field(field)? else { return Ok(&[]) };
        let (start, n_elements) = self.reader.vector(self.reader.reference(at)?, 1)?;
        Ok(&self.reader.bytes[start..start + n_elements])
    }

    /// A string; empty when it is absent.
    pub(super) fn string(self, field: usize) -> Result<&'a str> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| format(self.at, "a name is not UTF-8"))
    }

    /// Integers of a vector; none when it is absent.
    pub(super) fn i32s(self, field: usize) -> Result<Vec<i32>> {
        self.numbers(field, i32::from_le_bytes)
    }

    /// Integers of 64 bits of a vector; none when it is absent.
    pub(super) fn i64s(self, field: usize) -> Result<Vec<i64>> {
        self.numbers(field, i64::from_le_bytes)
    }

    /// Floats of a vector; none when it is absent.
    pub(super) fn f32s(self, field: usize) -> Result<Vec<f32>> {
        self.numbers(field, f32::from_le_bytes)
    }

    fn numbers<const N: usize, T>(self, field: usize, read: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let Some(at) = self.field(field)? else { return Ok(Vec::new()) };
        let at = self.reader.reference(at)?;
        let (start, n_elements) = self.reader.vector(at, N)?;
        self.reader.charge(at, n_elements)?;
        (0..n_elements).map(|i| self.reader.array(start + N * i).map(read)).collect()
    }
}

/// The error of a file that breaks the format.
pub(super) fn format(offset: usize, why: impl Into<String>) -> Error {
    Error::Format { what: "TFLite", offset, why: why.into() }
}
