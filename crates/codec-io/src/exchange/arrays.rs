//! NumPy arrays inside pickles, and the head of a NumPy file.

use crate::error::{Error, Result};
use codec_pickle::{Heap, Value};

pub(super) const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy itself warns of longer heads.
const MAX_HEAD_BYTES: usize = 10_000;
/// Most dimensions of an array.
const MAX_RANK: usize = 8;

/// An array of a pickle.
#[derive(Debug)]
pub(super) enum Array<'a, 'h> {
    /// An array of any Python objects.
    Objects(&'h [Value<'a>]),
    Numbers(Numbers<'a>),
}

/// An array of numbers: its bytes were checked against its shape.
#[derive(Debug)]
pub(super) struct Numbers<'a> {
    pub(super) shape: Vec<usize>,
    /// Kind (`u`, `i`, `f`) and bytes of an element.
    kind: u8,
    size: usize,
    big_endian: bool,
    /// Whether the first index counts fastest.
    pub(super) column_major: bool,
    bytes: &'a [u8],
}

/// Whether a pickle of arrays may name a class: those that arrays consist of.
pub(super) fn allows(module: &str, name: &str) -> bool {
    match module {
        "numpy.core.multiarray" | "numpy._core.multiarray" => name == "_reconstruct",
        "numpy" => matches!(name, "ndarray" | "dtype"),
        _ => false,
    }
}

/// The text of a NumPy file's head, and where the array starts.
fn head<'a>(format: &'static str, bytes: &'a [u8]) -> Result<(&'a [u8], usize)> {
    let bad = |what| Error::Format { format, what, offset: 0 };
    let head = bytes.strip_prefix(MAGIC).ok_or(bad("it does not start like a NumPy file"))?;
    let (length, length_bytes) = match head {
        [1, _, low, high, ..] => (usize::from(u16::from_le_bytes([*low, *high])), 2),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 4),
        _ => return Err(bad("its NumPy version is not known")),
    };
    let text_start = MAGIC.len() + 2 + length_bytes;
    let text = bytes.get(text_start..text_start.saturating_add(length.min(MAX_HEAD_BYTES)));
    let text = text.filter(|text| text.len() == length).ok_or(bad("its NumPy head is not whole"))?;
    Ok((text, text_start + length))
}

fn has(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}

/// Whether a NumPy file holds Python objects.
pub(super) fn holds_objects(bytes: &[u8]) -> bool {
    head("npy", bytes).is_ok_and(|(text, _)| has(text, b"'descr': '|O'"))
}

/// Where the pickle starts in a NumPy file that holds one object.
pub(super) fn object_start(format: &'static str, bytes: &[u8]) -> Result<usize> {
    let (text, start) = head(format, bytes)?;
    if !has(text, b"'descr': '|O'") || !has(text, b"'shape': ()") {
        return Err(Error::Format { format, what: "it holds another array than one object", offset: 0 });
    }
    Ok(start)
}

/// The array of numbers that a NumPy file holds.
pub(super) fn numbers<'a>(format: &'static str, bytes: &'a [u8]) -> Result<Numbers<'a>> {
    let bad = |what, offset: usize| Error::Format { format, what, offset: offset as u64 };
    let (text, start) = head(format, bytes)?;
    let text = std::str::from_utf8(text).map_err(|_| bad("its NumPy head is no text", 0))?;
    let field = |key: &str, end: char| text.split_once(key)?.1.split_once(end).map(|(value, _)| value);
    let descr = field("'descr': '", '\'').map(str::as_bytes);
    let Some(&[order @ (b'<' | b'>' | b'|'), kind @ (b'u' | b'i' | b'f'), digit @ b'1'..=b'8']) = descr
    else {
        return Err(bad("it holds no plain numbers", 0));
    };
    let shape = field("'shape': (", ')').ok_or(bad("it has no shape", 0))?;
    let dims = shape.split(',').map(str::trim).filter(|dim| !dim.is_empty()).map(str::parse);
    let shape: Vec<usize> =
        dims.collect::<std::result::Result<_, _>>().map_err(|_| bad("it has no shape", 0))?;
    let column_major = has(text.as_bytes(), b"'fortran_order': True");
    let (size, bytes) = (usize::from(digit - b'0'), &bytes[start..]);
    let n_elements = shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim));
    if shape.len() > MAX_RANK || n_elements.and_then(|n| n.checked_mul(size)) != Some(bytes.len()) {
        return Err(bad("its length is not that of its shape", start));
    }
    Ok(Numbers { shape, kind, size, big_endian: order == b'>', column_major, bytes })
}

/// The text that a NumPy file of no dimensions holds: 32 bits each letter.
pub(super) fn text(format: &'static str, bytes: &[u8]) -> Result<String> {
    let bad = |what| Error::Format { format, what, offset: 0 };
    let (head, start) = head(format, bytes)?;
    let is_text = has(head, b"'descr': '<U") && has(head, b"'shape': ()");
    let (letters, []) = bytes[start..].as_chunks::<4>() else { return Err(bad("its text is not whole")) };
    let letters = letters.iter().map(|letter| char::from_u32(u32::from_le_bytes(*letter)));
    let text = letters.collect::<Option<String>>().filter(|_| is_text);
    // NumPy fills a text up with zeros.
    text.map(|text| text.trim_end_matches('\0').to_owned()).ok_or(bad("it holds no text"))
}

impl<'a, 'h> Array<'a, 'h> {
    /// `None` when the value is no array, or its parts do not fit together.
    pub(super) fn from_value(heap: &'h Heap<'a>, value: Value<'a>) -> Option<Self> {
        let call = heap.call(value).filter(|call| call.name == "_reconstruct")?;
        let &[_, shape, dtype, Value::Bool(fortran), data] = heap.sequence(call.state?)? else { return None };
        let size = |value: &Value<'_>| match value {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        let shape: Vec<usize> =
            heap.sequence(shape).filter(|s| s.len() <= MAX_RANK)?.iter().map(size).collect::<Option<_>>()?;
        let n_elements = shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim))?;
        let dtype = heap.call(dtype).filter(|call| (call.module, call.name) == ("numpy", "dtype"))?;
        let Value::Str(name) = dtype.args.first()? else { return None };
        match (name.as_bytes(), data) {
            ([b'O', ..], list) => {
                let objects = heap.sequence(list).filter(|objects| objects.len() == n_elements)?;
                Some(Self::Objects(objects))
            }
            ([kind @ (b'u' | b'i' | b'f'), digit @ b'1'..=b'8'], Value::Bytes(bytes)) => {
                let size = usize::from(digit - b'0');
                // The second part of a type's state is its byte order.
                let order = heap.sequence(dtype.state?)?.get(1)?;
                let big_endian = matches!(order, Value::Str(">"));
                let fits = n_elements.checked_mul(size) == Some(bytes.len());
                // A row-major array is also column-major when it has one dimension.
                let is_row_major = !fortran || shape.len() < 2;
                (fits && is_row_major).then_some(Self::Numbers(Numbers {
                    shape,
                    kind: *kind,
                    size,
                    big_endian,
                    column_major: false,
                    bytes,
                }))
            }
            _ => None,
        }
    }
}

impl Numbers<'_> {
    /// The elements as codes; `None` when they are no integers or one is negative or too large.
    pub(super) fn integers(&self) -> Option<Vec<u32>> {
        let unsigned = |element: u64| u32::try_from(element).ok();
        // The sign is the highest bit of the element, and what has it set is no code.
        let sign = 1_u64.checked_shl(8 * self.size as u32 - 1)?;
        let element = |element: u64| match self.kind {
            b'u' => unsigned(element),
            b'i' if element & sign == 0 => unsigned(element),
            _ => None,
        };
        self.elements().map(element).collect()
    }

    /// The elements as floats; `None` when they are none.
    pub(super) fn floats(&self) -> Option<Vec<f32>> {
        let element = |element: u64| match (self.kind, self.size) {
            (b'f', 4) => Some(f32::from_bits(u32::try_from(element).ok()?)),
            (b'f', 8) => Some(f64::from_bits(element) as f32),
            _ => None,
        };
        self.elements().map(element).collect()
    }

    fn elements(&self) -> impl Iterator<Item = u64> {
        let value = |bytes: &[u8]| {
            let join = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
            if self.big_endian { bytes.iter().fold(0, join) } else { bytes.iter().rev().fold(0, join) }
        };
        self.bytes.chunks_exact(self.size).map(value)
    }
}
