//! A reader of Python pickles. Nothing is executed.
//!
//! A pickle is a program for a stack machine that may call anything. The machine of this crate makes
//! values and writes calls down instead of making them: a [`Call`] is a name with arguments, which the
//! caller interprets or refuses. Classes are named against a list that the caller gives; any other
//! class, and any opcode that data has no use for, is an error that names it.
//!
//! Memory is bounded: an opcode makes at most one value, every length is checked against the bytes at
//! hand before anything is allocated, containers are referred to and never copied, and the number of
//! opcodes has a limit. Containers may contain themselves, so whoever walks them has to count.
//!
//! ```
//! use codec_pickle::{Heap, Value, run};
//! // pickle.dumps({"hop": (320, None)}, protocol=2)
//! let bytes = b"\x80\x02}q\x00X\x03\x00\x00\x00hopq\x01M\x40\x01N\x86q\x02s.";
//! let mut heap = Heap::default();
//! let (value, end) = run(bytes, 0, &|_, _| false, &mut heap)?;
//! assert_eq!(end, bytes.len());
//! let entry = heap.get(value, "hop").and_then(|entry| heap.sequence(entry));
//! assert!(matches!(entry, Some([Value::Int(320), Value::None])));
//! # Ok::<(), codec_pickle::Error>(())
//! ```
//!
//! # Source
//! The opcode table of CPython's `Lib/pickletools.py`, protocols 2 to 5.

mod error;
mod machine;

pub use error::{Error, Result};
pub use machine::{MAX_OPCODES, run};

/// A value of a pickle. What is larger than a word lies in the [`Heap`].
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// `None`
    None,
    /// `True` or `False`
    Bool(bool),
    /// An integer of up to 64 bits.
    Int(i64),
    /// A longer integer: its bytes in two's complement, lowest first, as they stand in the pickle.
    BigInt(&'a [u8]),
    /// A float.
    Float(f64),
    /// A text.
    Str(&'a str),
    /// A row of bytes.
    Bytes(&'a [u8]),
    /// A class or function, see [`Heap::class`].
    Class(usize),
    /// A tuple, see [`Heap::sequence`].
    Tuple(usize),
    /// A list, see [`Heap::sequence`].
    List(usize),
    /// A dict, an ordered one or one with a default, see [`Heap::dict`].
    Dict(usize),
    /// What a call would have made, see [`Heap::call`].
    Call(usize),
    /// Something that lies outside the pickle, see [`Heap::persistent`].
    Persistent(usize),
}

/// A call that was written down instead of made.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a, 'h> {
    /// Module of the class or function.
    pub module: &'a str,
    /// Its name.
    pub name: &'a str,
    /// What it would have been called with.
    pub args: &'h [Value<'a>],
    /// The state that would have been set on the result.
    pub state: Option<Value<'a>>,
}

/// What values refer to.
#[derive(Debug, Default)]
pub struct Heap<'a> {
    classes: Vec<(&'a str, &'a str)>,
    sequences: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    calls: Vec<RecordedCall<'a>>,
    persistent: Vec<Value<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct RecordedCall<'a> {
    class_idx: usize,
    /// Which of the heap's sequences.
    args_idx: usize,
    state: Option<Value<'a>>,
}

impl<'a> Heap<'a> {
    /// Module and name of a class value.
    pub fn class(&self, value: Value<'a>) -> Option<(&'a str, &'a str)> {
        match value {
            Value::Class(idx) => self.classes.get(idx).copied(),
            _ => None,
        }
    }

    /// The items of a tuple or list value.
    pub fn sequence(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::Tuple(idx) | Value::List(idx) => self.sequences.get(idx).map(Vec::as_slice),
            _ => None,
        }
    }

    /// The entries of a dict value, in the order in which they were set.
    pub fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match value {
            Value::Dict(idx) => self.dicts.get(idx).map(Vec::as_slice),
            _ => None,
        }
    }

    /// The entry of a dict value under a text; the last one if it was set more than once.
    pub fn get(&self, value: Value<'a>, key: &str) -> Option<Value<'a>> {
        let is_key = |entry: &&(Value<'a>, Value<'a>)| matches!(entry.0, Value::Str(text) if text == key);
        self.dict(value)?.iter().rev().find(is_key).map(|&(_, value)| value)
    }

    /// The call that would have made a value.
    pub fn call(&self, value: Value<'a>) -> Option<Call<'a, '_>> {
        let Value::Call(idx) = value else { return None };
        let call = self.calls.get(idx)?;
        let &(module, name) = self.classes.get(call.class_idx)?;
        Some(Call { module, name, args: self.sequences.get(call.args_idx)?, state: call.state })
    }

    /// The identity of something that lies outside the pickle.
    pub fn persistent(&self, value: Value<'a>) -> Option<Value<'a>> {
        match value {
            Value::Persistent(idx) => self.persistent.get(idx).copied(),
            _ => None,
        }
    }

    /// The identities of all things outside the pickle, in the order in which they were named.
    pub fn persistents(&self) -> &[Value<'a>] {
        &self.persistent
    }
}
