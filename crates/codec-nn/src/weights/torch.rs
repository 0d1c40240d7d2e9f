//! The two containers of `torch.save`: the zip archive and the older row of pickles.
//!
//! # Source
//! Behaviour of `torch/serialization.py`. A zip archive holds `NAME/data.pkl` and one stored,
//! uncompressed member `NAME/data/KEY` per storage. The older file is a magic number, a protocol
//! number, a description of the machine, the object, the list of its storage keys (a pickle each),
//! and then per key a 64-bit element count and the elements.

use super::pickle::{self, ElementType, Heap, Storage, TensorView, Value};
use super::{Dtype, Entry};
use crate::error::{Error, Result};
use candle_core::DType;
use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::ops::Range;
use std::sync::Arc;

/// The first pickle of the older container: its magic number.
pub(super) const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// First bytes of a zip archive.
pub(super) const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

const LEGACY_PROTOCOL: i64 = 1001;
/// A state dict takes some 200 bytes of pickle per tensor; this is room for 20,000 tensors. A hostile
/// pickle makes values of some 50 bytes out of each byte.
const MAX_PICKLE_BYTES: usize = 4 << 20;
/// Nesting of dicts around the tensors, such as `{"state_dict": {...}}`.
const MAX_DEPTH: usize = 4;
/// Most entries of all dicts together, counted along every path that leads to them.
const MAX_ENTRIES: usize = 1 << 18;

/// Reads the names and places of the tensors in a zip archive.
pub(super) fn read_zip(bytes: &Arc<Vec<u8>>) -> Result<BTreeMap<String, Entry>> {
    let broken = |why: String| Error::Format { what: "torch archive", offset: 0, why };
    let mut archive =
        zip::ZipArchive::new(Cursor::new(bytes.as_slice())).map_err(|e| broken(e.to_string()))?;
    let mut members = HashMap::new();
    for member_idx in 0..archive.len() {
        let mut member = archive.by_index(member_idx).map_err(|e| broken(e.to_string()))?;
        let name = member.name().map_err(|e| broken(e.to_string()))?.into_owned();
        if member.compression() != zip::CompressionMethod::Stored {
            let value = format!("{} of {name}", member.compression());
            return Err(Error::Unsupported { what: "compression", value });
        }
        let range = member.data_start().and_then(|start| {
            let start = usize::try_from(start).ok()?;
            let end = start.checked_add(usize::try_from(member.size()).ok()?)?;
            bytes.get(start..end).map(|_| start..end)
        });
        let Some(range) = range else {
            return Err(broken(format!("{name} lies outside the file")));
        };
        // Reading to the end checks the member's CRC.
        let mut rest = member.by_ref().take(range.len() as u64 + 1);
        std::io::copy(&mut rest, &mut std::io::sink()).map_err(|e| broken(format!("{name}: {e}")))?;
        members.insert(name, range);
    }
    let mut pickles = members.keys().filter_map(|name| name.strip_suffix("data.pkl"));
    let (Some(root), None) = (pickles.next(), pickles.next()) else {
        return Err(broken("not exactly one data.pkl".to_owned()));
    };
    let order = members.get(&format!("{root}byteorder"));
    if order.is_some_and(|order| bytes[order.clone()] != *b"little") {
        return Err(Error::Unsupported { what: "byte order of", value: format!("{root}data.pkl") });
    }
    let pickle = members[&format!("{root}data.pkl")].clone();
    let mut heap = Heap::default();
    let (object, _) = run_bounded(&bytes[..pickle.end], pickle.start, &mut heap)?;
    let place = |storage: &Storage<'_>| members.get(&format!("{root}data/{}", storage.key)).cloned();
    entries(bytes, &heap, object, place)
}

/// Reads the names and places of the tensors in a row of pickles.
pub(super) fn read_legacy(bytes: &Arc<Vec<u8>>) -> Result<BTreeMap<String, Entry>> {
    let mut heap = Heap::default();
    let (protocol, offset) = run_bounded(bytes, LEGACY_MAGIC.len(), &mut heap)?;
    if !matches!(protocol, Value::Int(LEGACY_PROTOCOL)) {
        return Err(Error::Unsupported { what: "torch protocol", value: format!("{protocol:?}") });
    }
    let (machine, offset) = run_bounded(bytes, offset, &mut heap)?;
    let is_little = |&(key, value): &(Value<'_>, Value<'_>)| {
        matches!(key, Value::Str("little_endian")) && matches!(value, Value::Bool(true))
    };
    if !heap.dict(machine).is_some_and(|entries| entries.iter().any(is_little)) {
        return Err(Error::Unsupported { what: "byte order of", value: "a torch file".to_owned() });
    }
    let (object, offset) = run_bounded(bytes, offset, &mut heap)?;
    let (keys, mut offset) = run_bounded(bytes, offset, &mut heap)?;
    let elements: HashMap<&str, ElementType> = heap.storages.iter().map(|s| (s.key, s.element)).collect();
    let mut places = HashMap::new();
    for &key in heap.sequence(keys).unwrap_or_default() {
        let place = match key {
            Value::Str(key) => {
                elements.get(key).and_then(|e| legacy_storage(bytes, offset, e.size())).map(|r| (key, r))
            }
            _ => None,
        };
        let Some((key, range)) = place else {
            let why = format!("storage {key:?} is not as it was announced");
            return Err(Error::Format { what: "torch file", offset, why });
        };
        offset = range.end;
        places.insert(key, range);
    }
    entries(bytes, &heap, object, |storage| places.get(storage.key).cloned())
}

fn legacy_storage(bytes: &[u8], offset: usize, element_size: usize) -> Option<Range<usize>> {
    let (count, _) = bytes.get(offset..)?.split_first_chunk::<8>()?;
    let n_bytes = usize::try_from(u64::from_le_bytes(*count)).ok()?.checked_mul(element_size)?;
    let start = offset + count.len();
    let end = start.checked_add(n_bytes)?;
    bytes.get(start..end).map(|_| start..end)
}

/// Runs one pickle of bounded length.
fn run_bounded<'a>(bytes: &'a [u8], offset: usize, heap: &mut Heap<'a>) -> Result<(Value<'a>, usize)> {
    let end = bytes.len().min(offset.saturating_add(MAX_PICKLE_BYTES));
    pickle::run(&bytes[..end], offset, heap)
}

/// The tensors below `object`, by their path of dict keys.
fn entries<'a>(
    bytes: &Arc<Vec<u8>>,
    heap: &Heap<'a>,
    object: Value<'a>,
    place: impl Fn(&Storage<'_>) -> Option<Range<usize>>,
) -> Result<BTreeMap<String, Entry>> {
    let broken = |why: String| Error::Format { what: "state dict", offset: 0, why };
    let Some(root) = heap.dict(object) else {
        return Err(broken("the saved object is not a dict".to_owned()));
    };
    let mut found = BTreeMap::new();
    let mut n_visited = 0;
    let mut dicts = vec![(String::new(), root, 1)];
    while let Some((prefix, dict, depth)) = dicts.pop() {
        n_visited += dict.len();
        if n_visited > MAX_ENTRIES {
            return Err(broken(format!("more than {MAX_ENTRIES} entries")));
        }
        for &(key, value) in dict {
            let Value::Str(key) = key else { continue };
            let name = format!("{prefix}{key}");
            if let Value::Tensor(tensor_idx) = value {
                let view = &heap.tensors[tensor_idx];
                let storage = &heap.storages[view.storage_idx];
                let Some(range) = place(storage) else {
                    return Err(broken(format!("the storage of {name} is missing")));
                };
                let Some(entry) = entry(bytes, view, storage, range) else {
                    return Err(broken(format!("{name} reaches beyond its storage or over itself")));
                };
                if found.insert(name.clone(), entry).is_some() {
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
    Ok(found)
}

/// The view as a place in the file; `None` when it does not fit its storage.
fn entry(
    bytes: &Arc<Vec<u8>>,
    view: &TensorView,
    storage: &Storage<'_>,
    range: Range<usize>,
) -> Option<Entry> {
    let TensorView { offset, shape, strides, .. } = view;
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
            .zip(strides)
            .try_fold(*offset, |at, (&dim, &stride)| at.checked_add((dim - 1).checked_mul(stride)?))?;
        if reach >= storage.n_elements {
            return None;
        }
    }
    let dtype = match storage.element {
        ElementType::F64 => Dtype::Float(DType::F64),
        ElementType::F32 => Dtype::Float(DType::F32),
        ElementType::F16 => Dtype::Float(DType::F16),
        ElementType::Bf16 => Dtype::Float(DType::BF16),
        other => Dtype::Other(format!("{other:?}")),
    };
    let start = range.start + offset.checked_mul(size)?.min(range.len());
    let data = start..range.end;
    Some(Entry {
        bytes: Arc::clone(bytes),
        data,
        dtype,
        shape: shape.clone(),
        strides: Some(strides.clone()),
    })
}
