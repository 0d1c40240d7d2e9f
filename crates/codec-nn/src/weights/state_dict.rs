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

/// Keys under which programs keep the state dict when they save more than that, outermost first.
const STATE_KEYS: [&str; 3] = ["state_dict", "best_state", "model"];
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
        "torch" => Element::of_class(name).is_some() || matches!(name, "Size" | "device"),
        "builtins" | "__builtin__" => {
            matches!(name, "bool" | "complex" | "dict" | "float" | "int" | "list" | "set" | "str" | "tuple")
        }
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
/// holds (an optimizer's state, best scores) is no part of the model.
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

/// The state dict that a dict holds under a usual name, unless it holds tensors itself.
fn outermost_state<'a>(heap: &Heap<'a>, object: Value<'a>) -> Option<(&'static str, Value<'a>)> {
    let has_tensors = heap.dict(object)?.iter().any(|&(_, v)| View::from_value(heap, v).is_some());
    if has_tensors {
        return None;
    }
    let state = |key: &&'static str| {
        let state = heap.get(object, key).filter(|&state| heap.dict(state).is_some())?;
        Some((*key, state))
    };
    STATE_KEYS.iter().find_map(state)
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
