//! A reader of the pickles that `torch.save` writes. Nothing is executed.
//!
//! Python's pickle is a program for a stack machine that may call anything. This machine knows the
//! opcodes that a state dict needs and a handful of classes; any other opcode or class is an error
//! that names it. Memory is bounded: each opcode makes at most one value, every length is checked
//! against the bytes at hand before anything is allocated, and containers are referred to, not copied.
//!
//! # Source
//! The opcode table of CPython's `Lib/pickletools.py`; the classes are those of `torch/_utils.py`.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// A class or function that a state dict may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and its like.
    Storage(ElementType),
}

/// Type of a storage's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl ElementType {
    /// Bytes per element.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}

/// A value on the machine's stack. Containers live in the heap and are referred to by index.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float,
    Str(&'a str),
    Class(Class),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
}

/// A storage that a pickle refers to: elements that lie outside it.
#[derive(Clone, Debug)]
pub(crate) struct Storage<'a> {
    /// Name of the storage within the archive.
    pub(crate) key: &'a str,
    pub(crate) element: ElementType,
    /// Number of elements.
    pub(crate) n_elements: usize,
}

/// A strided view of a storage.
#[derive(Clone, Debug)]
pub(crate) struct TensorView {
    /// Index into [`Heap::storages`].
    pub(crate) storage_idx: usize,
    /// First element.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    /// Elements from one index to the next, per dimension.
    pub(crate) strides: Vec<usize>,
}

/// What values refer to.
#[derive(Debug, Default)]
pub(crate) struct Heap<'a> {
    sequences: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub(crate) storages: Vec<Storage<'a>>,
    pub(crate) tensors: Vec<TensorView>,
}

impl<'a> Heap<'a> {
    /// The entries of a dict value, in order.
    pub(crate) fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match value {
            Value::Dict(idx) => self.dicts.get(idx).map(Vec::as_slice),
            _ => None,
        }
    }

    /// The items of a tuple or list value.
    pub(crate) fn sequence(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Tuple(idx) | Value::List(idx) => self.sequences.get(idx).map(Vec::as_slice),
            _ => None,
        }
    }
}

/// Runs one pickle that starts at `offset` of `bytes`.
///
/// Returns its value and the offset after its end.
///
/// # Errors
/// [`Error::Format`] when the pickle breaks off or does not fit together, [`Error::Unsupported`] for
/// an opcode or class that a state dict does not need.
pub(crate) fn run<'a>(bytes: &'a [u8], offset: usize, heap: &mut Heap<'a>) -> Result<(Value<'a>, usize)> {
    let mut machine =
        Machine { bytes, offset, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), heap };
    while !machine.step()? {}
    let value = machine.pop()?;
    Ok((value, machine.offset))
}

struct Machine<'a, 'h> {
    bytes: &'a [u8],
    offset: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<usize, Value<'a>>,
    heap: &'h mut Heap<'a>,
}

impl<'a> Machine<'a, '_> {
    /// Runs one opcode; true after the last.
    fn step(&mut self) -> Result<bool> {
        let opcode = self.byte()?;
        match opcode {
            // PROTO: the opcodes themselves say what is used.
            0x80 => drop(self.byte()?),
            // FRAME: a hint for readers of streams.
            0x95 => drop(self.take(8)?),
            b'.' => return Ok(true),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => self.push_int(1)?,
            b'M' => self.push_int(2)?,
            b'J' => {
                let value = self.unsigned(4)? as u32;
                self.push(Value::Int(i64::from(value.cast_signed())));
            }
            0x8a => self.push_long()?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Float);
            }
            0x8c => self.push_str(1)?,
            b'X' => self.push_str(4)?,
            0x8d => self.push_str(8)?,
            b')' => self.push_tuple(0)?,
            0x85 => self.push_tuple(1)?,
            0x86 => self.push_tuple(2)?,
            0x87 => self.push_tuple(3)?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_tuple(items)?;
            }
            b']' => {
                self.heap.sequences.push(Vec::new());
                self.push(Value::List(self.heap.sequences.len() - 1));
            }
            b'}' => self.push_dict(),
            b'a' => self.append(1)?,
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => self.set_items(2)?,
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(items)?;
            }
            b'q' => self.memo_put(1)?,
            b'r' => self.memo_put(4)?,
            0x94 => {
                let value = self.top()?;
                self.memo.insert(self.memo.len(), value);
            }
            b'h' => self.memo_get(1)?,
            b'j' => self.memo_get(4)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_class(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Str(module), Value::Str(name)) = (module, name) else {
                    return self.broken("a class is named by two strings");
                };
                self.push_class(module, name)?;
            }
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            other => {
                let value = format!("{other:#04x} at byte {}", self.offset - 1);
                return Err(Error::Unsupported { what: "pickle opcode", value });
            }
        }
        Ok(false)
    }

    fn push_class(&mut self, module: &str, name: &str) -> Result<()> {
        let class = match (module, name) {
            ("collections", "OrderedDict") => Class::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Class::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Class::RebuildParameter,
            ("torch", "DoubleStorage") => Class::Storage(ElementType::F64),
            ("torch", "FloatStorage") => Class::Storage(ElementType::F32),
            ("torch", "HalfStorage") => Class::Storage(ElementType::F16),
            ("torch", "BFloat16Storage") => Class::Storage(ElementType::Bf16),
            ("torch", "LongStorage") => Class::Storage(ElementType::I64),
            ("torch", "IntStorage") => Class::Storage(ElementType::I32),
            ("torch", "ShortStorage") => Class::Storage(ElementType::I16),
            ("torch", "CharStorage") => Class::Storage(ElementType::I8),
            ("torch", "ByteStorage") => Class::Storage(ElementType::U8),
            ("torch", "BoolStorage") => Class::Storage(ElementType::Bool),
            _ => return Err(Error::Unsupported { what: "pickle class", value: format!("{module}.{name}") }),
        };
        self.push(Value::Class(class));
        Ok(())
    }

    /// `("storage", class, key, location, n_elements)`, in old files with a view that must be None.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = match self.heap.sequence(id) {
            Some(
                &[
                    Value::Str("storage"),
                    Value::Class(Class::Storage(element)),
                    Value::Str(key),
                    _,
                    Value::Int(n),
                ],
            )
            | Some(
                &[
                    Value::Str("storage"),
                    Value::Class(Class::Storage(element)),
                    Value::Str(key),
                    _,
                    Value::Int(n),
                    Value::None,
                ],
            ) => usize::try_from(n).ok().map(|n_elements| Storage { key, element, n_elements }),
            _ => None,
        };
        let Some(storage) = storage else {
            return self.broken("a persistent value that is not a storage");
        };
        self.heap.storages.push(storage);
        self.push(Value::Storage(self.heap.storages.len() - 1));
        Ok(())
    }

    fn reduce(&mut self) -> Result<()> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let args = self.heap.sequence(args);
        match (callable, args) {
            (Value::Class(Class::OrderedDict), Some([])) => self.push_dict(),
            (
                Value::Class(Class::RebuildTensor),
                Some(&[Value::Storage(idx), Value::Int(offset), shape, strides, ..]),
            ) => {
                let (Ok(offset), Some(shape), Some(strides)) =
                    (usize::try_from(offset), self.sizes(shape), self.sizes(strides))
                else {
                    return self.broken("a tensor with an odd offset, shape or strides");
                };
                self.heap.tensors.push(TensorView { storage_idx: idx, offset, shape, strides });
                self.push(Value::Tensor(self.heap.tensors.len() - 1));
            }
            (Value::Class(Class::RebuildParameter), Some(&[tensor @ Value::Tensor(_), ..])) => {
                self.push(tensor)
            }
            _ => return self.broken("a call with odd arguments"),
        }
        Ok(())
    }

    /// Attributes of a dict (`_metadata` of a state dict) carry no tensors.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.top()? {
            Value::Dict(_) => Ok(()),
            _ => self.broken("attributes of something that is not a dict"),
        }
    }

    fn sizes(&self, value: Value<'a>) -> Option<Vec<usize>> {
        let size = |value: &Value<'_>| match value {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        self.heap.sequence(value)?.iter().map(size).collect()
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(value);
    }

    fn push_int(&mut self, n_bytes: usize) -> Result<()> {
        let value = self.unsigned(n_bytes)?.cast_signed();
        self.push(Value::Int(value));
        Ok(())
    }

    fn push_long(&mut self) -> Result<()> {
        let n_bytes = usize::from(self.byte()?);
        if n_bytes > 8 {
            return self.broken("an integer of more than 64 bits");
        }
        let value = self.unsigned(n_bytes)?;
        // The number is as many bytes of two's complement as there are.
        let unused = 64 - 8 * n_bytes as u32;
        let signed = value.checked_shl(unused).map_or(0, |v| v.cast_signed() >> unused);
        self.push(Value::Int(signed));
        Ok(())
    }

    fn push_str(&mut self, length_bytes: usize) -> Result<()> {
        let length = self.unsigned(length_bytes)?;
        let Some(text) = usize::try_from(length).ok().and_then(|n| self.take(n).ok()) else {
            return self.broken("a string that ends after the file");
        };
        match std::str::from_utf8(text) {
            Ok(text) => self.push(Value::Str(text)),
            Err(_) => return self.broken("a string that is not UTF-8"),
        }
        Ok(())
    }

    fn push_tuple(&mut self, n_items: usize) -> Result<()> {
        let items = self.pop_n(n_items)?;
        self.heap.sequences.push(items);
        self.push(Value::Tuple(self.heap.sequences.len() - 1));
        Ok(())
    }

    fn push_dict(&mut self) {
        self.heap.dicts.push(Vec::new());
        self.push(Value::Dict(self.heap.dicts.len() - 1));
    }

    fn append(&mut self, n_items: usize) -> Result<()> {
        let items = self.pop_n(n_items)?;
        match self.top()? {
            Value::List(idx) => self.heap.sequences[idx].extend(items),
            _ => return self.broken("items for something that is not a list"),
        }
        Ok(())
    }

    fn set_items(&mut self, n_values: usize) -> Result<()> {
        let items = self.pop_n(n_values)?;
        let (pairs, rest) = items.as_chunks::<2>();
        match self.top()? {
            Value::Dict(idx) if rest.is_empty() => {
                self.heap.dicts[idx].extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            _ => return self.broken("entries for something that is not a dict"),
        }
        Ok(())
    }

    fn memo_put(&mut self, n_bytes: usize) -> Result<()> {
        let key = self.unsigned(n_bytes)? as usize;
        let value = self.top()?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn memo_get(&mut self, n_bytes: usize) -> Result<()> {
        let key = self.unsigned(n_bytes)? as usize;
        match self.memo.get(&key) {
            Some(&value) => self.push(value),
            None => return self.broken("a memo entry that was never stored"),
        }
        Ok(())
    }

    fn top(&self) -> Result<Value<'a>> {
        // A mark hides what lies below it.
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&value) if self.stack.len() > floor => Ok(value),
            _ => self.broken("too few values on the stack"),
        }
    }

    fn pop(&mut self) -> Result<Value<'a>> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn pop_n(&mut self, n_values: usize) -> Result<Vec<Value<'a>>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(n_values) {
            Some(height) if height >= floor => Ok(self.stack.split_off(height)),
            _ => self.broken("too few values on the stack"),
        }
    }

    /// Closes the innermost mark; says how many values lie above it.
    fn pop_to_mark(&mut self) -> Result<usize> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.len() - height),
            None => self.broken("the end of a group that was never opened"),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.unsigned(1)? as u8)
    }

    fn unsigned(&mut self, n_bytes: usize) -> Result<u64> {
        let bytes = self.take(n_bytes)?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.offset..];
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return self.broken("a name without an end");
        };
        match std::str::from_utf8(self.take(length + 1)?) {
            Ok(text) => Ok(text.trim_end()),
            Err(_) => self.broken("a name that is not UTF-8"),
        }
    }

    fn take(&mut self, n_bytes: usize) -> Result<&'a [u8]> {
        match self.bytes[self.offset..].get(..n_bytes) {
            Some(bytes) => {
                self.offset += n_bytes;
                Ok(bytes)
            }
            None => self.broken("the pickle ends too early"),
        }
    }

    fn broken<T>(&self, why: &str) -> Result<T> {
        Err(Error::Format { what: "pickle", offset: self.offset, why: why.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_all(bytes: &[u8]) -> Result<usize> {
        let mut heap = Heap::default();
        run(bytes, 0, &mut heap).map(|(_, end)| end)
    }

    #[test]
    fn integers_of_every_length() {
        for (bytes, expected) in [
            (&b"K\xff."[..], 255),
            (b"M\x01\x02.", 0x201),
            (b"J\xff\xff\xff\xff.", -1),
            (b"\x8a\x00.", 0),
            (b"\x8a\x01\xff.", -1),
            (b"\x8a\x02\xff\x00.", 255),
            (b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f.", i64::MAX),
        ] {
            let mut heap = Heap::default();
            let (value, _) = run(bytes, 0, &mut heap).unwrap();
            assert!(matches!(value, Value::Int(n) if n == expected), "{bytes:?}: {value:?}");
        }
    }

    #[test]
    fn other_classes_are_named() {
        let error = run_all(b"\x80\x02cposix\nsystem\n.").unwrap_err().to_string();
        assert_eq!(error, "pickle class `posix.system` is not supported");
        let error = run_all(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.").unwrap_err().to_string();
        assert_eq!(error, "pickle class `posix.system` is not supported");
    }

    #[test]
    fn other_opcodes_are_named() {
        let error = run_all(b"\x80\x02I1\n.").unwrap_err().to_string();
        assert_eq!(error, "pickle opcode `0x49 at byte 2` is not supported");
    }

    #[test]
    fn a_dict_filled_after_it_was_memoized_is_one_dict() {
        // d = {}; t = (d, d) through the memo, of which one is filled before and one after.
        let mut heap = Heap::default();
        let pickle = b"}q\x00h\x00X\x01\x00\x00\x00aK\x01s\x86.";
        let (value, _) = run(pickle, 0, &mut heap).unwrap();
        let items = heap.sequence(value).unwrap();
        assert!(items.iter().all(|&item| heap.dict(item).unwrap().len() == 1));
    }

    #[test]
    fn truncation_is_an_error_everywhere() {
        let whole = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00b\x8a\x02\x01\x02u.";
        assert_eq!(run_all(whole).unwrap(), whole.len());
        for length in 0..whole.len() {
            assert!(run_all(&whole[..length]).is_err(), "cut at {length}");
        }
    }
}
