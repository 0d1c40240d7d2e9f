//! What a pickle of `torch.save` means: tensors by name, and the plain data beside them.
//!
//! # Source
//! Behaviour of `torch/_utils.py` and of the state dicts that torch, audiotools, audiocraft and
//! Lightning write.

use super::checkpoint::Tensors;
use super::source::Source;
use super::{Dtype, Entry};
use crate::error::{Error, Result};
use candle_core::DType;
use codec_pickle::{Heap, Value};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::ops::Range;

/// Keys under which programs keep the state dict when they save more than that, the likeliest first.
const STATE_KEYS: [&str; 3] = ["state_dict", "best_state", "model"];
/// The same, of programs that also keep one part of a model under it, and the others beside.
const STATE_OR_PART_KEYS: [&str; 3] = ["module", "codec", "generator"];
/// Nesting of dicts around the tensors.
const MAX_DEPTH: usize = 4;
/// Most entries of all dicts together, counted along every path that leads to them.
const MAX_ENTRIES: usize = 1 << 16;
/// Longest name of a tensor, in bytes.
const MAX_NAME_BYTES: usize = 1 << 10;
/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;
/// Nesting of the plain data.
const MAX_DATA_DEPTH: usize = 16;
/// Values and bytes of text in the plain data, counted along every path that leads to them.
const MAX_DATA_SIZE: usize = 1 << 20;

/// Whether a checkpoint may name a class: those that make tensors, and those that hold plain data in
/// the parts that training programs save beside the weights. None of them is ever called.
pub(super) fn allows(module: &str, name: &str) -> bool {
    match module {
        "torch._utils" => matches!(name, "_rebuild_tensor_v2" | "_rebuild_parameter"),
        "torch" => {
            Element::of_class(name).is_some() || is_torch_type(name) || matches!(name, "Size" | "device")
        }
        "builtins" | "__builtin__" => is_plain_type(name),
        "collections" => matches!(name, "Counter" | "deque"),
        "datetime" => matches!(name, "date" | "datetime" | "time" | "timedelta" | "timezone"),
        "argparse" => name == "Namespace",
        "pathlib" => matches!(name, "PosixPath" | "PurePosixPath" | "WindowsPath" | "PureWindowsPath"),
        "numpy.core.multiarray" | "numpy._core.multiarray" => matches!(name, "scalar" | "_reconstruct"),
        "numpy" => matches!(name, "dtype" | "ndarray"),
        "_codecs" => name == "encode",
        "omegaconf.dictconfig" => name == "DictConfig",
        "omegaconf.listconfig" => name == "ListConfig",
        "omegaconf.base" => matches!(name, "ContainerMetadata" | "Metadata"),
        "omegaconf.nodes" => name.ends_with("Node"),
        "typing" => name == "Any",
        _ => false,
    }
}

/// Types of plain data, by the names of both Pythons: torch.save writes protocol 2, where `int` is
/// `__builtin__.long`, `str` is `__builtin__.unicode` and `range` is `__builtin__.xrange`.
fn is_plain_type(name: &str) -> bool {
    let numbers = matches!(name, "bool" | "complex" | "float" | "int" | "long");
    let texts = matches!(name, "bytearray" | "bytes" | "str" | "unicode");
    let ranges = matches!(name, "range" | "slice" | "xrange");
    numbers || texts || ranges || matches!(name, "dict" | "frozenset" | "list" | "set" | "tuple")
}

/// Types of elements, which programs save as the precision that they chose.
fn is_torch_type(name: &str) -> bool {
    let floats = matches!(name, "bfloat16" | "float16" | "float32" | "float64");
    let small_floats = name.starts_with("float8_e") || name.starts_with("float4_e");
    let complex = matches!(name, "complex32" | "complex64" | "complex128");
    let integers = matches!(name, "bool" | "int8" | "int16" | "int32" | "int64");
    let unsigned = matches!(name, "uint8" | "uint16" | "uint32" | "uint64");
    let quantized = matches!(name, "qint8" | "qint32" | "quint8" | "quint2x4" | "quint4x2");
    floats || small_floats || complex || integers || unsigned || quantized
}

/// Type of a storage's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
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

impl Element {
    fn of_class(name: &str) -> Option<Self> {
        Some(match name {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes per element.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::F64 => Dtype::Float(DType::F64),
            Self::F32 => Dtype::Float(DType::F32),
            Self::F16 => Dtype::Float(DType::F16),
            Self::Bf16 => Dtype::Float(DType::BF16),
            other => Dtype::Other(format!("{other:?}")),
        }
    }
}

/// Elements that lie outside the pickle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    /// Name of the storage within the file.
    pub(super) key: &'a str,
    pub(super) element: Element,
    n_elements: usize,
}

impl<'a> Storage<'a> {
    /// `("storage", class, key, location, n_elements)`, in old files with a view that must be None.
    pub(super) fn from_id(heap: &Heap<'a>, id: Value<'a>) -> Option<Self> {
        let [Value::Str("storage"), class, Value::Str(key), _, Value::Int(n), view @ ..] =
            heap.sequence(id)?
        else {
            return None;
        };
        let (module, name) = heap.class(*class)?;
        if module != "torch" || !matches!(view, [] | [Value::None]) {
            return None;
        }
        Some(Self { key, element: Element::of_class(name)?, n_elements: usize::try_from(*n).ok()? })
    }
}

/// A strided view of a storage.
struct View<'a> {
    storage: Storage<'a>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl<'a> View<'a> {
    /// A call of `_rebuild_tensor_v2`, or of `_rebuild_parameter` around one; `None` for anything else.
    fn from_value(heap: &Heap<'a>, value: Value<'a>) -> Option<Result<Self>> {
        let mut call = heap.call(value).filter(|call| call.module == "torch._utils")?;
        if call.name == "_rebuild_parameter" {
            call = heap.call(*call.args.first()?).filter(|call| call.module == "torch._utils")?;
        }
        if call.name != "_rebuild_tensor_v2" {
            return None;
        }
        let view = || {
            let &[storage, Value::Int(offset), shape, strides, ..] = call.args else { return None };
            Some(Self {
                storage: Storage::from_id(heap, heap.persistent(storage)?)?,
                offset: usize::try_from(offset).ok()?,
                shape: sizes(heap, shape)?,
                strides: sizes(heap, strides)?,
            })
        };
        Some(view().ok_or_else(|| broken("a tensor with an odd storage, offset, shape or strides".into())))
    }

    /// The view as a place in the file; `None` when it does not fit its storage.
    fn entry(self, source: &Source, range: Range<usize>) -> Option<Entry> {
        let Self { storage, offset, shape, strides } = self;
        let size = storage.element.size();
        if shape.len() != strides.len() || range.len() != storage.n_elements.checked_mul(size)? {
            return None;
        }
        let n_elements = shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim))?;
        // Expanded views repeat elements: none of ours do, and a small file must not become large.
        if n_elements > storage.n_elements {
            return None;
        }
        if n_elements > 0 {
            let reach = shape
                .iter()
                .zip(&strides)
                .try_fold(offset, |at, (&dim, &stride)| at.checked_add((dim - 1).checked_mul(stride)?))?;
            if reach >= storage.n_elements {
                return None;
            }
        }
        let start = range.start + offset.checked_mul(size)?.min(range.len());
        let data = source.part(start..range.end)?;
        let dtype = storage.element.dtype();
        Some(Entry { data, dtype, shape, strides: Some(strides) })
    }
}

fn sizes<'a>(heap: &Heap<'a>, value: Value<'a>) -> Option<Vec<usize>> {
    let size = |value: &Value<'_>| match value {
        Value::Int(n) => usize::try_from(*n).ok(),
        _ => None,
    };
    heap.sequence(value).filter(|sizes| sizes.len() <= MAX_RANK)?.iter().map(size).collect()
}

/// Reads the saved object: the tensors of its state dict by their path of dict keys, and the plain
/// data around it.
///
/// A saved object is a state dict, or a dict that holds one under a usual name; what else such a dict
/// holds (an optimizer's state, best scores, the state of a random generator) is no part of the model.
pub(super) fn read<'a>(
    source: &Source,
    heap: &Heap<'a>,
    object: Value<'a>,
    format: &'static str,
    place: impl Fn(&Storage<'_>) -> Option<Range<usize>>,
) -> Result<Tensors> {
    let Some(root) = heap.dict(object) else {
        return Err(broken("the saved object is not a dict".to_owned()));
    };
    let (state, metadata) = match outermost_state(heap, object) {
        Some((key, state)) => (state, plain_entries(heap, root, Some(key))),
        None => (object, plain_entries(heap, root, None)),
    };
    // Best states and models lie in one another: {"best_state": {"model": {...}}}.
    let mut state = state;
    for _ in 1..MAX_DEPTH {
        state = outermost_state(heap, state).map_or(state, |(_, inner)| inner);
    }

    let mut entries = BTreeMap::new();
    let mut n_visited = 0;
    let mut dicts = vec![(String::new(), heap.dict(state).unwrap_or_default(), 1)];
    while let Some((prefix, dict, depth)) = dicts.pop() {
        n_visited += dict.len();
        if n_visited > MAX_ENTRIES {
            return Err(broken(format!("more than {MAX_ENTRIES} entries")));
        }
        for &(key, value) in dict {
            let Value::Str(key) = key else { continue };
            if prefix.len() + key.len() > MAX_NAME_BYTES {
                return Err(broken(format!("a name of more than {MAX_NAME_BYTES} bytes")));
            }
            let name = format!("{prefix}{key}");
            if let Some(view) = View::from_value(heap, value) {
                let view = view?;
                let Some(range) = place(&view.storage) else {
                    return Err(broken(format!("the storage of {name} is missing")));
                };
                let Some(entry) = view.entry(source, range) else {
                    return Err(broken(format!("{name} reaches beyond its storage or over itself")));
                };
                if entries.insert(name.clone(), entry).is_some() {
                    return Err(broken(format!("{name} occurs twice")));
                }
            } else if let Some(inner) = heap.dict(value) {
                if depth == MAX_DEPTH {
                    return Err(broken(format!("{name}: more than {MAX_DEPTH} nested dicts")));
                }
                dicts.push((format!("{name}."), inner, depth + 1));
            }
        }
    }
    Ok(Tensors { entries, config: None, metadata, format })
}

/// The state dict that a dict holds under a usual name, whatever lies beside it: the first of these names that
/// leads to tensors. A name that is also that of a part counts where no other dict of tensors lies beside.
fn outermost_state<'a>(heap: &Heap<'a>, object: Value<'a>) -> Option<(&'static str, Value<'a>)> {
    let entries = heap.dict(object)?;
    let state = |key: &&'static str| {
        let state = heap.get(object, key)?;
        // Of its own, so that what hides under one key does not hide the others.
        let mut budget = MAX_ENTRIES;
        holds_tensors(heap, state, MAX_DEPTH, &mut budget).then_some((*key, state))
    };
    if let Some(found) = STATE_KEYS.iter().find_map(state) {
        return Some(found);
    }
    let (key, state) = STATE_OR_PART_KEYS.iter().find_map(state)?;
    let mut budget = MAX_ENTRIES;
    // The state dict of a part is flat; what programs keep of their own lies deeper.
    let is_part = |&(name, value): &(Value<'a>, Value<'a>)| {
        matches!(name, Value::Str(name) if name != key) && holds_tensors(heap, value, 1, &mut budget)
    };
    let has_parts = entries.iter().any(is_part);
    (!has_parts && budget > 0).then_some((key, state))
}

/// Whether a dict holds tensors by name, itself or in dicts as deep as `depth`. A budget that is used up finds
/// none.
fn holds_tensors<'a>(heap: &Heap<'a>, value: Value<'a>, depth: usize, budget: &mut usize) -> bool {
    let (Some(entries), Some(depth)) = (heap.dict(value), depth.checked_sub(1)) else { return false };
    entries.iter().any(|&(key, value)| {
        let Some(left) = budget.checked_sub(1) else { return false };
        *budget = left;
        matches!(key, Value::Str(_))
            && (View::from_value(heap, value).is_some() || holds_tensors(heap, value, depth, budget))
    })
}

/// The plain data of a dict as JSON, without the entry `except`; `None` when there is none.
fn plain_entries(heap: &Heap<'_>, dict: &[(Value<'_>, Value<'_>)], except: Option<&str>) -> Option<String> {
    let mut budget = MAX_DATA_SIZE;
    let mut data = serde_json::Map::new();
    for &(key, value) in dict {
        if let Value::Str(key) = key
            && Some(key) != except
            && let Some(value) = plain(heap, value, MAX_DATA_DEPTH, &mut budget)
        {
            data.insert(key.to_owned(), value);
        }
    }
    if data.is_empty() { None } else { serde_json::to_string(&data).ok() }
}

/// A value as JSON; an object is its attributes. `None` for what is no plain data, is nested too deep
/// or exceeds the budget.
fn plain(heap: &Heap<'_>, value: Value<'_>, depth: usize, budget: &mut usize) -> Option<Json> {
    let depth = depth.checked_sub(1)?;
    let cost = if let Value::Str(text) = value { 1 + text.len() } else { 1 };
    *budget = budget.checked_sub(cost)?;
    if let Some(items) = heap.sequence(value) {
        return items.iter().map(|&item| plain(heap, item, depth, budget)).collect();
    }
    let attributes = heap.call(value).and_then(|call| heap.dict(call.state?));
    if let Some(entries) = heap.dict(value).or(attributes) {
        let mut data = serde_json::Map::new();
        for &(key, value) in entries {
            let key = match key {
                Value::Str(key) => key.to_owned(),
                Value::Int(key) => key.to_string(),
                _ => continue,
            };
            *budget = budget.checked_sub(key.len())?;
            if let Some(value) = plain(heap, value, depth, budget) {
                data.insert(key, value);
            }
        }
        return Some(Json::Object(data));
    }
    match value {
        Value::None => Some(Json::Null),
        Value::Bool(value) => Some(value.into()),
        Value::Int(value) => Some(value.into()),
        Value::Float(value) => Some(value.into()),
        Value::Str(text) => Some(text.into()),
        _ => None,
    }
}

fn broken(why: String) -> Error {
    Error::Format { what: "state dict", offset: 0, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dict as a pickle has it, of entries that are pickles without their end.
    fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = b"}(".to_vec();
        for (key, value) in entries {
            bytes.extend([b'X', key.len() as u8, 0, 0, 0]);
            bytes.extend(key.as_bytes());
            bytes.extend(value);
        }
        bytes.push(b'u');
        bytes
    }

    /// A tensor of one number.
    fn tensor() -> Vec<u8> {
        let mut bytes =
            b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec();
        bytes.extend(b"X\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\0K\x01\x85K\x01\x85\x89}tR");
        bytes
    }

    fn read_dict(entries: &[(&str, Vec<u8>)]) -> Result<Tensors> {
        let pickle = [dict(entries), b".".to_vec()].concat();
        let mut heap = Heap::default();
        let (object, _) = codec_pickle::run(&pickle, 0, &allows, &mut heap)?;
        read(&Source::new(vec![0; 4]), &heap, object, "test", |_| Some(0..4))
    }

    fn names(entries: &[(&str, Vec<u8>)]) -> Vec<String> {
        read_dict(entries).unwrap().entries.into_keys().collect()
    }

    fn state(name: &str) -> Vec<u8> {
        dict(&[(name, tensor())])
    }

    #[test]
    fn a_state_dict_is_found_whatever_lies_beside_it() {
        let beside = || [("rng_state", tensor()), ("scores", state("best")), ("epoch", b"K\x03".to_vec())];
        for key in ["state_dict", "best_state", "model"] {
            let entries = [&beside()[..], &[(key, state("a.b"))], &[("optimizer", state("x"))]].concat();
            assert_eq!(names(&entries), ["a.b"], "{key}");
            let metadata = read_dict(&entries).unwrap().metadata.unwrap();
            assert!(metadata.contains(r#""epoch":3"#) && !metadata.contains(key), "{metadata}");
        }
        let nested = dict(&[("model", state("a")), ("decay", tensor())]);
        assert_eq!(names(&[("best_state", nested), ("rng_state", tensor())]), ["a"]);
        // Of several, the likeliest, in whatever order they lie.
        let both = [("model", state("a")), ("state_dict", state("b"))];
        assert_eq!(names(&both), ["b"]);
    }

    #[test]
    fn a_name_that_leads_to_no_tensors_hides_none() {
        let settings = dict(&[("width", b"K\x08".to_vec())]);
        assert_eq!(names(&[("model", settings.clone()), ("a.b", tensor())]), ["a.b"]);
        assert_eq!(names(&[("model", settings), ("generator", state("a"))]), ["a"]);
        assert_eq!(names(&[("model", b"K\x08".to_vec()), ("module", state("a"))]), ["a"]);
    }

    #[test]
    fn the_name_of_a_part_is_that_of_the_model_where_it_is_alone() {
        for key in ["module", "codec", "generator"] {
            assert_eq!(names(&[(key, state("a")), ("rng_state", tensor())]), ["a"], "{key}");
            let parts = [("CodecEnc", state("a")), (key, state("b"))];
            assert_eq!(names(&parts), ["CodecEnc.a".to_owned(), format!("{key}.b")]);
        }
        // What an optimizer keeps has numbers for names.
        let moments = [b"}(K\0".to_vec(), state("exp_avg"), b"u".to_vec()].concat();
        let optimizer = dict(&[("state", moments)]);
        assert_eq!(names(&[("generator", state("a")), ("optimizer", optimizer), ("seed", tensor())]), ["a"]);
    }

    #[test]
    fn the_search_for_a_state_dict_is_bounded() {
        // a = {...}; b = {"0": a, "1": a, ...}; ..., each under all the usual names.
        let mut object = dict(&[]);
        object.extend(b"q\0");
        for _ in 0..MAX_DEPTH + 2 {
            let names = (0..200).map(|i| i.to_string());
            let names: Vec<_> = names.chain(STATE_KEYS.map(str::to_owned)).collect();
            let entries: Vec<_> = names.iter().map(|name| (name.as_str(), b"h\0".to_vec())).collect();
            object.extend(dict(&entries));
            object.extend(b"q\0");
        }
        object.push(b'.');
        let mut heap = Heap::default();
        let (value, _) = codec_pickle::run(&object, 0, &allows, &mut heap).unwrap();
        let mut budget = MAX_ENTRIES;
        assert!(!holds_tensors(&heap, value, MAX_DEPTH, &mut budget) && budget == 0);
        assert!(outermost_state(&heap, value).is_none());
    }

    #[test]
    fn classes_of_plain_data_are_named_and_no_others() {
        for (module, name) in [
            ("__builtin__", "long"),
            ("__builtin__", "unicode"),
            ("__builtin__", "frozenset"),
            ("builtins", "int"),
            ("torch", "float32"),
            ("torch", "float8_e4m3fn"),
            ("collections", "Counter"),
            ("datetime", "timedelta"),
        ] {
            assert!(allows(module, name), "{module}.{name}");
        }
        for (module, name) in [
            ("__builtin__", "eval"),
            ("__builtin__", "getattr"),
            ("builtins", "open"),
            ("torch", "load"),
            ("torch", "float"),
            ("collections", "namedtuple"),
            ("datetime", "sys"),
            ("functools", "partial"),
        ] {
            assert!(!allows(module, name), "{module}.{name}");
        }
    }
}
