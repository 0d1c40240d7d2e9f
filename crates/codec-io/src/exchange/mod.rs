//! Codes in the files of other programs: `.ecdc`, `.dac`, NumPy and safetensors files are read, all but `.dac`
//! are written.
//!
//! `docs/exchange.md` says field by field what becomes of what, and what a format cannot carry.

mod arrays;
pub mod dac;
pub mod ecdc;
mod metadata;
mod numpy;
mod safetensors;

pub use metadata::TokenArrays;
pub use numpy::{holds_objects, read_npy, read_npz, write_npy, write_npz};
pub use safetensors::{read_safetensors, write_safetensors};

use crate::error::{Error, Result};
use std::io::Read;

/// A day of codes takes some 150 MB.
const MAX_BYTES: u64 = 256 << 20;

/// All bytes of a file that is read at once; `what` says what they are the bytes of.
fn read_whole(source: impl Read, what: &'static str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = source.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| Error::Io { what: "reading codes", offset: bytes.len() as u64, source })?;
    let actual = bytes.len() as u64;
    if actual > MAX_BYTES { Err(Error::Limit { what, limit: MAX_BYTES, actual }) } else { Ok(bytes) }
}

/// What the programs of others call the model of a card: the file of an original package has the weights, and makes
/// the codes, of the model without that addition.
fn published_name(model: &str) -> &str {
    model.strip_suffix("-original").unwrap_or(model)
}
