//! A `.nemo` file: a tar archive with a configuration in YAML and a torch file.
//!
//! # Source
//! Behaviour of NVIDIA/NeMo, nemo/core/connectors/save_restore_connector.py.

use super::checkpoint::{Tensors, read_tensors};
use super::source::Source;
use crate::error::{Error, Result};
use std::io::Read;

/// Where the first header of a tar archive says what it is, and what it says.
const MAGIC_OFFSET: usize = 257;
const MAGIC: &[u8] = b"ustar";
/// First bytes of what gzip makes.
const GZIP_MAGIC: &[u8] = b"\x1f\x8b";

const CONFIG: &str = "model_config.yaml";
const WEIGHTS: &str = "model_weights.ckpt";
/// A configuration of a codec has some ten thousand bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// An archive holds three files or so.
const MAX_MEMBERS: usize = 256;

/// Bytes that tell an archive.
pub(super) const N_MAGIC_BYTES: usize = MAGIC_OFFSET + MAGIC.len();

/// Whether a file that begins so is a tar archive, or one that went through gzip.
pub(super) fn is_archive(bytes: &[u8]) -> bool {
    let magic = bytes.get(MAGIC_OFFSET..MAGIC_OFFSET + MAGIC.len());
    magic == Some(MAGIC) || bytes.starts_with(GZIP_MAGIC)
}

/// Reads the tensors of the torch file; the configuration is that of the archive, as JSON.
pub(super) fn read(source: &Source) -> Result<Tensors> {
    if source.start(GZIP_MAGIC.len())? == GZIP_MAGIC {
        return Err(Error::unsupported("compression", "gzip of a .nemo file"));
    }
    let broken = |why: String| Error::Format { what: ".nemo archive", offset: 0, why };
    let mut archive = tar::Archive::new(source.reader());
    let (mut config, mut weights) = (None, None);
    for (member_idx, member) in archive.entries_with_seek().map_err(|e| broken(e.to_string()))?.enumerate() {
        if member_idx == MAX_MEMBERS {
            return Err(broken(format!("more than {MAX_MEMBERS} members")));
        }
        let member = member.map_err(|e| broken(e.to_string()))?;
        // Names begin with `./` or not.
        let name = member.path().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        match name.as_deref() {
            Some(CONFIG) => {
                let mut text = String::new();
                let mut start = member.take(MAX_CONFIG_BYTES + 1);
                start.read_to_string(&mut text).map_err(|e| broken(format!("{CONFIG}: {e}")))?;
                if text.len() as u64 > MAX_CONFIG_BYTES {
                    return Err(broken(format!("{CONFIG} has more than {MAX_CONFIG_BYTES} bytes")));
                }
                config = Some(text);
            }
            Some(WEIGHTS) => {
                let start = usize::try_from(member.raw_file_position()).ok();
                let size = usize::try_from(member.size()).ok();
                let part =
                    start.zip(size).and_then(|(start, size)| source.part(start..start.checked_add(size)?));
                weights = Some(part.ok_or_else(|| broken(format!("{WEIGHTS} lies outside the file")))?);
            }
            _ => {}
        }
    }
    let (Some(config), Some(weights)) = (config, weights) else {
        return Err(broken(format!("{CONFIG} or {WEIGHTS} is not in it")));
    };
    if is_archive(&weights.start(N_MAGIC_BYTES)?) {
        return Err(broken(format!("{WEIGHTS} is an archive of this kind itself")));
    }
    let config: serde_json::Value =
        serde_saphyr::from_str(&config).map_err(|e| broken(format!("{CONFIG}: {e}")))?;
    let tensors = read_tensors(&weights)?;
    Ok(Tensors { config: Some(config.to_string()), format: ".nemo", ..tensors })
}
