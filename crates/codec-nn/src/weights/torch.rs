//! The two containers of `torch.save`: the zip archive and the older row of pickles.
//!
//! # Source
//! Behaviour of `torch/serialization.py`. A zip archive holds `NAME/data.pkl` and one stored,
//! uncompressed member `NAME/data/KEY` per storage. The older file is a magic number, a protocol
//! number, a description of the machine, the object, the list of its storage keys (a pickle each),
//! and then per key a 64-bit element count and the elements.

use super::checkpoint::Tensors;
use super::source::Source;
use super::state_dict::{self, Storage};
use crate::error::{Error, Result};
use codec_pickle::{Heap, Value};
use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::ops::Range;

/// The first pickle of the older container: its magic number.
pub(super) const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// First bytes of a zip archive.
pub(super) const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// First bytes of the record that ends a zip archive, and the room that it has: a comment follows it.
const ZIP_END: &[u8] = b"PK\x05\x06";
const ZIP_END_BYTES: usize = 22 + 0xffff;

/// The byte order that is read, as an archive says it.
const LITTLE: &[u8] = b"little";

/// Pickles of the older container after its magic number: protocol, machine, object and keys.
const N_PICKLES: usize = 4;
const LEGACY_PROTOCOL: i64 = 1001;
/// A state dict takes some 200 bytes of pickle per tensor; this is room for 20,000 tensors.
const MAX_PICKLE_BYTES: usize = 4 << 20;

/// Reads the names and places of the tensors in a zip archive.
pub(super) fn read_zip(source: &Source) -> Result<Tensors> {
    let broken = |why: String| Error::Format { what: "torch archive", offset: 0, why };
    let reader = BufReader::new(source.reader());
    let mut archive = match zip::ZipArchive::new(reader) {
        Ok(archive) => archive,
        Err(_) if !has_directory(source)? => {
            let why = "the file is cut off: the directory of the archive, which ends it, is not there";
            return Err(broken(why.to_owned()));
        }
        Err(error) => return Err(broken(error.to_string())),
    };
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
            source.part(start..end).map(|_| start..end)
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
    let member = |name: &str| source.part(members.get(&format!("{root}{name}"))?.clone());
    if let Some(order) = member("byteorder")
        && *order.start(LITTLE.len() + 1)? != *LITTLE
    {
        return Err(Error::Unsupported { what: "byte order of", value: format!("{root}data.pkl") });
    }
    let pickle = member("data.pkl").ok_or_else(|| broken("no data.pkl".to_owned()))?;
    let pickle = pickle.start(MAX_PICKLE_BYTES)?;
    let mut heap = Heap::default();
    let (object, _) = run_bounded(&pickle, 0, &mut heap)?;
    let place = |storage: &Storage<'_>| members.get(&format!("{root}data/{}", storage.key)).cloned();
    state_dict::read(source, &heap, object, "torch archive", place)
}

/// Whether a zip archive has the record that ends it.
fn has_directory(source: &Source) -> Result<bool> {
    let start = source.len().saturating_sub(ZIP_END_BYTES);
    let Some(end) = source.part(start..source.len()) else { return Ok(false) };
    Ok(end.read()?.windows(ZIP_END.len()).any(|window| window == ZIP_END))
}

/// Reads the names and places of the tensors in a row of pickles.
pub(super) fn read_legacy(source: &Source) -> Result<Tensors> {
    // The pickles stand before everything else.
    let bytes = &source.start(LEGACY_MAGIC.len() + N_PICKLES * MAX_PICKLE_BYTES)?;
    let mut heap = Heap::default();
    let (protocol, offset) = run_bounded(bytes, LEGACY_MAGIC.len(), &mut heap)?;
    if !matches!(protocol, Value::Int(LEGACY_PROTOCOL)) {
        return Err(Error::Unsupported { what: "torch protocol", value: format!("{protocol:?}") });
    }
    let (machine, offset) = run_bounded(bytes, offset, &mut heap)?;
    if !matches!(heap.get(machine, "little_endian"), Some(Value::Bool(true))) {
        return Err(Error::Unsupported { what: "byte order of", value: "a torch file".to_owned() });
    }
    let (object, offset) = run_bounded(bytes, offset, &mut heap)?;
    let (keys, mut offset) = run_bounded(bytes, offset, &mut heap)?;
    let storages = heap.persistents().iter().filter_map(|&id| Storage::from_id(&heap, id));
    let elements: HashMap<&str, _> = storages.map(|storage| (storage.key, storage.element)).collect();
    let mut places = HashMap::new();
    for &key in heap.sequence(keys).unwrap_or_default() {
        let place = match key {
            Value::Str(key) => {
                let element = elements.get(key);
                let range = element.map(|e| legacy_storage(source, offset, e.size())).transpose()?;
                range.flatten().map(|range| (key, range))
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
    state_dict::read(source, &heap, object, "older torch file", |storage| places.get(storage.key).cloned())
}

/// Where the elements of the storage at `offset` are; `None` when they are not all there.
fn legacy_storage(source: &Source, offset: usize, element_size: usize) -> Result<Option<Range<usize>>> {
    let start = offset.saturating_add(size_of::<u64>());
    let Some(count) = source.part(offset..start) else { return Ok(None) };
    let count = count.read()?;
    let range = || {
        let n = usize::try_from(u64::from_le_bytes(*count.first_chunk()?)).ok()?;
        let end = start.checked_add(n.checked_mul(element_size)?)?;
        source.part(start..end).map(|_| start..end)
    };
    Ok(range())
}

/// Runs one pickle of bounded length.
fn run_bounded<'a>(bytes: &'a [u8], offset: usize, heap: &mut Heap<'a>) -> Result<(Value<'a>, usize)> {
    let end = bytes.len().min(offset.saturating_add(MAX_PICKLE_BYTES));
    Ok(codec_pickle::run(&bytes[..end], offset, &state_dict::allows, heap)?)
}
