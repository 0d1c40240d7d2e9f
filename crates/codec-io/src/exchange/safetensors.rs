//! safetensors files, and the metadata that array files carry.
//!
//! # Source
//! The format of huggingface/safetensors: the length of a JSON head, the head, the data.

use crate::error::{Error, Result};
use crate::tokens::{TokenHeader, Totals};
use codec_core::Codes;
use serde_json::{Map, Value, json};
use std::io::Write;

/// Data starts at a multiple of this.
const ALIGNMENT: usize = 8;

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
    let mut texts = Map::new();
    for (key, value) in metadata(header, totals).as_object().into_iter().flatten() {
        // Metadata values are texts.
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        texts.insert(key.clone(), text.into());
    }
    head.insert("__metadata__".to_owned(), Value::Object(texts));
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

/// What a token file says, as JSON.
pub(super) fn metadata(header: &TokenHeader, totals: Totals) -> Value {
    let codebooks: Vec<Value> = header
        .layout
        .codebooks()
        .iter()
        .map(|codebook| json!({"size": codebook.size, "stride": codebook.stride}))
        .collect();
    let tags: Vec<[&str; 2]> =
        header.tags.iter().map(|(key, value)| [key.as_str(), value.as_str()]).collect();
    let segment = header.segment.map(|segment| {
        json!({"n_samples": segment.n_samples, "stride": segment.stride, "n_frames": segment.n_frames})
    });
    json!({
        "family": header.family,
        "model": header.model,
        "weights_sha256": header.weights.to_string(),
        "sample_rate": header.audio.sample_rate,
        "channels": header.audio.channels,
        "hop_length": header.hop_length,
        "segment": segment,
        "codebooks": codebooks,
        "n_codebooks_total": header.n_codebooks_total,
        "scale_frames": header.layout.scale_frames(),
        "start_trim": header.start_trim,
        "n_samples": totals.n_samples,
        "source_sample_rate": header.source.sample_rate,
        "source_channels": header.source.channels,
        "source_samples": totals.source_samples,
        "tags": tags,
    })
}
