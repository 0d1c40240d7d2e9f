//! safetensors files.
//!
//! # Source
//! The format of huggingface/safetensors: the length of a JSON head, the head, the data.

use super::metadata::{Metadata, TokenArrays};
use crate::error::{Error, Result};
use crate::tokens::{TokenHeader, Totals};
use codec_core::Codes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::io::{Read, Write};

const FORMAT: &str = "safetensors";
/// Data starts at a multiple of this.
const ALIGNMENT: usize = 8;
const METADATA: &str = "__metadata__";

/// Shape and elements of a tensor whose elements have 32 bits.
type Words = (Vec<usize>, Vec<[u8; 4]>);

/// Reads what [`write_safetensors`] wrote.
///
/// # Errors
/// [`Error::Format`] when it is no such file, [`Error::Core`] when its codes do not fit what it says of them,
/// [`Error::Limit`], [`Error::Io`].
pub fn read_safetensors(source: impl Read) -> Result<TokenArrays> {
    #[derive(Deserialize)]
    struct Tensor {
        dtype: String,
        shape: Vec<usize>,
        data_offsets: [usize; 2],
    }
    let bytes = super::read_whole(source, "bytes of a safetensors file")?;
    let bad = |what| Error::Format { format: FORMAT, what, offset: 0 };
    let (length, rest) = bytes.split_first_chunk().ok_or(bad("its head is not whole"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (head, data) = rest.split_at_checked(length).ok_or(bad("its head is not whole"))?;
    let head: Map<String, Value> = serde_json::from_slice(head).map_err(|_| bad("its head is no JSON"))?;
    let metadata = head.get(METADATA).and_then(Value::as_object).and_then(Metadata::from_texts);
    let metadata = metadata.ok_or(bad("it does not say what `codec export` puts beside codes"))?;
    // Four bytes each, row after row.
    let tensor = |name: &str, dtype: &str| -> Result<Option<Words>> {
        let Some(value) = head.get(name) else { return Ok(None) };
        let tensor = Tensor::deserialize(value).map_err(|_| bad("its head describes no tensor"))?;
        let [start, end] = tensor.data_offsets;
        let data = data.get(start..end).ok_or(bad("a tensor lies outside of it"))?;
        let n_values = tensor.shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim));
        let (values, []) = data.as_chunks::<4>() else { return Err(bad("a tensor is not whole")) };
        if tensor.dtype != dtype || n_values != Some(values.len()) {
            return Err(bad("a tensor has another type or length than it needs"));
        }
        Ok(Some((tensor.shape, values.to_vec())))
    };
    let code = |bytes: &[u8; 4]| {
        u32::try_from(i32::from_le_bytes(*bytes)).map_err(|_| bad("not all of its numbers are codes"))
    };
    let mut rows = Vec::new();
    if let Some((shape, values)) = tensor("codes", "I32")? {
        let [n_rows, n_columns] = *shape else { return Err(bad("its codes are not those of one clip")) };
        let values = values.iter().map(code).collect::<Result<Vec<u32>>>()?;
        rows = super::numpy::rows(&values, n_rows, n_columns);
    } else {
        while let Some((_, values)) = tensor(&format!("codes_{}", rows.len()), "I32")? {
            rows.push(values.iter().map(code).collect::<Result<Vec<u32>>>()?);
        }
    }
    let scales = tensor("scales", "F32")?.map_or_else(Vec::new, |(_, values)| values);
    metadata.with_codes(FORMAT, rows, scales.into_iter().map(f32::from_le_bytes).collect())
}

/// Writes `codes` (`[n_codebooks, n_frames]`, or `codes_0`, `codes_1`, ... when their strides differ) as
/// 32-bit signed integers, which every framework knows, the `scales` as 32-bit floats where there are any,
/// and what the header says as metadata.
///
/// # Errors
/// [`Error::Limit`] when a codebook has more than 2^31 entries, [`Error::Io`].
pub fn write_safetensors(
    mut sink: impl Write,
    header: &TokenHeader,
    totals: Totals,
    codes: &Codes,
) -> Result<()> {
    let mut data = Vec::new();
    let mut head = Map::new();
    head.insert(METADATA.to_owned(), Value::Object(Metadata::new(header, totals).to_texts()));
    let mut add = |name: String, dtype: &str, shape: Vec<usize>, bytes: &mut Vec<u8>| {
        let start = data.len();
        data.append(bytes);
        head.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
    };
    let limit = |code: &u32| {
        let (what, limit) = ("code", i32::MAX as u64);
        i32::try_from(*code).map_err(|_| Error::Limit { what, limit, actual: (*code).into() })
    };
    let bytes = |row: &[u32]| -> Result<Vec<u8>> {
        let codes = row.iter().map(limit).collect::<Result<Vec<i32>>>()?;
        Ok(codes.into_iter().flat_map(i32::to_le_bytes).collect())
    };
    let strides: Vec<u32> = codes.layout().codebooks().iter().map(|codebook| codebook.stride).collect();
    if strides.windows(2).all(|pair| pair[0] == pair[1]) {
        let rows = codes.rows().map(bytes).collect::<Result<Vec<_>>>()?;
        let n_columns = codes.rows().next().map_or(0, <[u32]>::len);
        add("codes".to_owned(), "I32", vec![codes.n_codebooks(), n_columns], &mut rows.concat());
    } else {
        for (codebook_idx, row) in codes.rows().enumerate() {
            add(format!("codes_{codebook_idx}"), "I32", vec![row.len()], &mut bytes(row)?);
        }
    }
    if !codes.scales().is_empty() {
        let mut bytes = codes.scales().iter().flat_map(|scale| scale.to_le_bytes()).collect();
        add("scales".to_owned(), "F32", vec![codes.scales().len()], &mut bytes);
    }
    let mut head = Value::Object(head).to_string().into_bytes();
    head.resize(head.len().next_multiple_of(ALIGNMENT), b' ');
    let write = |sink: &mut dyn Write| {
        sink.write_all(&(head.len() as u64).to_le_bytes())?;
        sink.write_all(&head)?;
        sink.write_all(&data)
    };
    write(&mut sink).map_err(|source| Error::Io { what: "writing codes", offset: 0, source })
}
