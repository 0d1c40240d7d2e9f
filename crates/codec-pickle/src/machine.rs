//! The stack machine.

use crate::error::{Error, Result};
use crate::{Heap, RecordedCall, Value};
use std::collections::HashMap;

/// Most opcodes of a pickle: a state dict takes some thirty per tensor.
pub const MAX_OPCODES: usize = 1 << 20;

/// Runs one pickle that starts at `offset` of `bytes`; `allows` says which module's which name it may
/// hold. Returns its value and the offset after its end.
///
/// Ordered dicts and dicts with a default are plain dicts here and always allowed; a deque is a list where it is
/// allowed.
///
/// # Errors
/// [`Error::Format`] when the pickle breaks off or does not fit together, [`Error::Opcode`] and
/// [`Error::Class`] for what is unknown, [`Error::Limit`] after [`MAX_OPCODES`].
pub fn run<'a>(
    bytes: &'a [u8],
    offset: usize,
    allows: &dyn Fn(&str, &str) -> bool,
    heap: &mut Heap<'a>,
) -> Result<(Value<'a>, usize)> {
    let memo = HashMap::new();
    let mut machine = Machine { bytes, offset, stack: Vec::new(), marks: Vec::new(), memo, allows, heap };
    for _ in 0..MAX_OPCODES {
        if machine.step()? {
            return Ok((machine.pop()?, machine.offset));
        }
    }
    Err(Error::Limit { what: "opcodes", max: MAX_OPCODES })
}

struct Machine<'a, 'h> {
    bytes: &'a [u8],
    offset: usize,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
    allows: &'h dyn Fn(&str, &str) -> bool,
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
            b'0' => drop(self.pop()?),
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
                // The only number of a pickle that is big-endian.
                let bits = self.take(8)?.iter().fold(0, |bits, &byte| bits << 8 | u64::from(byte));
                self.push(Value::Float(f64::from_bits(bits)));
            }
            0x8c => self.push_str(1)?,
            b'X' => self.push_str(4)?,
            0x8d => self.push_str(8)?,
            b'C' => self.push_bytes(1)?,
            b'B' => self.push_bytes(4)?,
            0x8e => self.push_bytes(8)?,
            b')' => self.push_tuple(0)?,
            0x85 => self.push_tuple(1)?,
            0x86 => self.push_tuple(2)?,
            0x87 => self.push_tuple(3)?,
            b't' => {
                let n_items = self.pop_to_mark()?;
                self.push_tuple(n_items)?;
            }
            b']' => self.push_list(),
            b'}' => self.push_dict(),
            b'a' => self.append(1)?,
            b'e' => {
                let n_items = self.pop_to_mark()?;
                self.append(n_items)?;
            }
            b's' => self.set_items(2)?,
            b'u' => {
                let n_values = self.pop_to_mark()?;
                self.set_items(n_values)?;
            }
            b'q' => self.memo_put(1)?,
            b'r' => self.memo_put(4)?,
            0x94 => {
                let value = self.top()?;
                self.memo.insert(self.memo.len() as u64, value);
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
                    return self.broken("a class is named by two texts");
                };
                self.push_class(module, name)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.heap.persistent.push(id);
                self.push(Value::Persistent(self.heap.persistent.len() - 1));
            }
            // REDUCE and NEWOBJ: a function or the making of an object; neither is called.
            b'R' | 0x81 => self.reduce()?,
            b'b' => self.build()?,
            opcode => return Err(Error::Opcode { opcode, offset: self.offset - 1 }),
        }
        Ok(false)
    }

    fn push_class(&mut self, module: &'a str, name: &'a str) -> Result<()> {
        if !is_dict(module, name) && !(self.allows)(module, name) {
            return Err(Error::Class { class: format!("{module}.{name}"), offset: self.offset });
        }
        self.heap.classes.push((module, name));
        self.push(Value::Class(self.heap.classes.len() - 1));
        Ok(())
    }

    fn reduce(&mut self) -> Result<()> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let (Value::Class(class_idx), Value::Tuple(args_idx)) = (callable, args) else {
            return self.broken("a call of something that is no class, or without a tuple of arguments");
        };
        match self.heap.class(callable) {
            Some((module, name)) if is_dict(module, name) => {
                self.push_dict();
                return Ok(());
            }
            Some((module, name)) if is_list(module, name) => {
                let has_items =
                    |arg: &Value<'a>| self.heap.sequence(*arg).is_some_and(|items| !items.is_empty());
                if self.heap.sequence(args).is_some_and(|args| args.iter().any(has_items)) {
                    return self.broken("a deque whose items stand in its arguments");
                }
                self.push_list();
                return Ok(());
            }
            _ => {}
        }
        self.heap.calls.push(RecordedCall { class_idx, args_idx, state: None });
        self.push(Value::Call(self.heap.calls.len() - 1));
        Ok(())
    }

    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        match self.top()? {
            // Attributes of a dict, such as `_metadata` of a state dict, are not its entries.
            Value::Dict(_) => {}
            Value::Call(idx) => self.heap.calls[idx].state = Some(state),
            _ => return self.broken("a state for something that is no object"),
        }
        Ok(())
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
            // Seeds and states of random generators are so long, and no size is.
            let bytes = self.take(n_bytes)?;
            self.push(Value::BigInt(bytes));
            return Ok(());
        }
        let value = self.unsigned(n_bytes)?;
        // The number is as many bytes of two's complement as there are.
        let unused = 64 - 8 * n_bytes as u32;
        let signed = value.checked_shl(unused).map_or(0, |v| v.cast_signed() >> unused);
        self.push(Value::Int(signed));
        Ok(())
    }

    fn push_str(&mut self, length_bytes: usize) -> Result<()> {
        match std::str::from_utf8(self.counted(length_bytes)?) {
            Ok(text) => self.push(Value::Str(text)),
            Err(_) => return self.broken("a text that is not UTF-8"),
        }
        Ok(())
    }

    fn push_bytes(&mut self, length_bytes: usize) -> Result<()> {
        let bytes = self.counted(length_bytes)?;
        self.push(Value::Bytes(bytes));
        Ok(())
    }

    fn counted(&mut self, length_bytes: usize) -> Result<&'a [u8]> {
        let length = self.unsigned(length_bytes)?;
        // A length beyond all memory is also beyond the pickle's end.
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn push_tuple(&mut self, n_items: usize) -> Result<()> {
        let items = self.pop_n(n_items)?;
        self.heap.sequences.push(items);
        self.push(Value::Tuple(self.heap.sequences.len() - 1));
        Ok(())
    }

    fn push_list(&mut self) {
        self.heap.sequences.push(Vec::new());
        self.push(Value::List(self.heap.sequences.len() - 1));
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
        let key = self.unsigned(n_bytes)?;
        let value = self.top()?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn memo_get(&mut self, n_bytes: usize) -> Result<()> {
        let key = self.unsigned(n_bytes)?;
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
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return self.broken("a name without an end");
        };
        match std::str::from_utf8(self.take(length + 1)?) {
            Ok(text) => Ok(text.trim_end()),
            Err(_) => self.broken("a name that is not UTF-8"),
        }
    }

    fn take(&mut self, n_bytes: usize) -> Result<&'a [u8]> {
        match self.bytes.get(self.offset..).and_then(|rest| rest.get(..n_bytes)) {
            Some(bytes) => {
                self.offset += n_bytes;
                Ok(bytes)
            }
            None => self.broken("it ends too early"),
        }
    }

    fn broken<T>(&self, why: &'static str) -> Result<T> {
        Err(Error::Format { offset: self.offset, why })
    }
}

/// Kinds of dicts whose arguments and state hold no entries.
fn is_dict(module: &str, name: &str) -> bool {
    module == "collections" && matches!(name, "OrderedDict" | "defaultdict")
}

/// Classes whose objects are lists here. Python 3 appends the items of a deque as it does those of a list; its
/// arguments hold none.
fn is_list(module: &str, name: &str) -> bool {
    (module, name) == ("collections", "deque")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: &dyn Fn(&str, &str) -> bool = &|_, _| false;

    fn run_all(bytes: &[u8]) -> Result<usize> {
        run(bytes, 0, NOTHING, &mut Heap::default()).map(|(_, end)| end)
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
            let (value, _) = run(bytes, 0, NOTHING, &mut Heap::default()).unwrap();
            assert!(matches!(value, Value::Int(n) if n == expected), "{bytes:?}: {value:?}");
        }
    }

    #[test]
    fn longer_integers_are_their_bytes() {
        // pickle.dumps([2**63, -2**63 - 1, 2**2039 - 1], protocol=2)[2:]
        let mut longest = b"\x8a\xff".to_vec();
        longest.extend([0xff; 254]);
        longest.extend(b"\x7f.");
        for bytes in [
            &b"\x8a\x09\0\0\0\0\0\0\0\x80\0."[..],
            b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\x7f\xff.",
            &longest,
        ] {
            let (value, end) = run(bytes, 0, NOTHING, &mut Heap::default()).unwrap();
            assert!(matches!(value, Value::BigInt(n) if n == &bytes[2..end - 1]), "{value:?}");
            for length in 0..bytes.len() {
                assert!(run_all(&bytes[..length]).is_err(), "cut at {length}");
            }
        }
        let error = run_all(b"\x8b\xff\xff\xff\x7f").unwrap_err().to_string();
        assert_eq!(error, "pickle opcode 0x8b at byte 0 is not supported");
    }

    #[test]
    fn a_deque_is_a_list_where_it_is_allowed() {
        // pickle.dumps(deque([1, 2], 3), protocol=2)[2:], memo left out
        let pickle = b"ccollections\ndeque\n)K\x03\x86R(K\x01K\x02e.";
        let allows = |module: &str, name: &str| (module, name) == ("collections", "deque");
        let mut heap = Heap::default();
        let (value, _) = run(pickle, 0, &allows, &mut heap).unwrap();
        let items = heap.sequence(value).unwrap();
        assert!(matches!(items, [Value::Int(1), Value::Int(2)]), "{items:?}");
        let error = run_all(pickle).unwrap_err().to_string();
        assert!(error.starts_with("pickle class `collections.deque`"), "{error}");
        let with_items = b"ccollections\ndeque\n](K\x01e\x85R.";
        assert!(run(with_items, 0, &allows, &mut Heap::default()).is_err());
    }

    #[test]
    fn floats_and_bytes() {
        let mut heap = Heap::default();
        let (value, _) = run(b"G\xbf\xf8\0\0\0\0\0\0C\x02\xff\x00\x86.", 0, NOTHING, &mut heap).unwrap();
        let items = heap.sequence(value).unwrap();
        assert!(matches!(items, [Value::Float(f), Value::Bytes([0xff, 0])] if *f == -1.5), "{items:?}");
    }

    #[test]
    fn other_classes_are_named() {
        for bytes in [&b"\x80\x02cposix\nsystem\n."[..], b"\x80\x04\x8c\x05posix\x8c\x06system\x93."] {
            let error = run_all(bytes).unwrap_err().to_string();
            assert!(error.starts_with("pickle class `posix.system` at byte 1"), "{error}");
        }
    }

    #[test]
    fn other_opcodes_are_named() {
        let error = run_all(b"\x80\x02I1\n.").unwrap_err().to_string();
        assert_eq!(error, "pickle opcode 0x49 at byte 2 is not supported");
        // INST, OBJ and the extension registry name classes in ways that no data needs.
        for opcode in *b"io\x82\x83\x84" {
            assert_eq!(run_all(&[opcode]), Err(Error::Opcode { opcode, offset: 0 }));
        }
    }

    #[test]
    fn a_call_is_written_down() {
        let mut heap = Heap::default();
        let allows = |module: &str, name: &str| module == "a.b" && name == "make";
        let (value, _) = run(b"ca.b\nmake\nK\x05\x85RNb.", 0, &allows, &mut heap).unwrap();
        let call = heap.call(value).unwrap();
        assert_eq!((call.module, call.name), ("a.b", "make"));
        assert!(matches!(call.args, [Value::Int(5)]) && matches!(call.state, Some(Value::None)));
        assert!(run(b"K\x01K\x05\x85R.", 0, &allows, &mut heap).is_err(), "an integer cannot be called");
    }

    #[test]
    fn a_dict_filled_after_it_was_memoized_is_one_dict() {
        // d = {}; t = (d, d) through the memo, of which one is filled before and one after.
        let mut heap = Heap::default();
        let pickle = b"}q\x00h\x00X\x01\x00\x00\x00aK\x01s\x86.";
        let (value, _) = run(pickle, 0, NOTHING, &mut heap).unwrap();
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

    #[test]
    fn an_endless_row_of_opcodes_is_cut_off() {
        let bytes = vec![b'N'; MAX_OPCODES + 1];
        assert_eq!(run_all(&bytes), Err(Error::Limit { what: "opcodes", max: MAX_OPCODES }));
    }
}
