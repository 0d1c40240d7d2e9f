//! The lock file of a model: the hashes of its files as they were first seen.
//!
//! Published files do not change, but what a server sends might. A hash that no card states is taken down
//! at the first pull; from then on the file has to have it.

use crate::error::{Error, Result};
use codec_io::atomic::AtomicFile;
use codec_io::tokens::WeightsHash;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

const NAME: &str = "codec-lock.json";

/// What is known of the files of one model.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Lock {
    files: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    sha256: String,
    size: u64,
    /// Where it came from.
    source: String,
}

impl Lock {
    /// Reads the lock file of a folder; one that is not there is empty.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = path(folder);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(Error::file("cannot read", &path)(e)),
        };
        let bad = |why: String| Error::Lock { path: path.clone(), why };
        let lock: Self = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        for (name, entry) in &lock.files {
            entry.sha256.parse::<WeightsHash>().map_err(|e| bad(format!("{name}: {e}")))?;
        }
        Ok(lock)
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = path(folder);
        let write = || {
            std::fs::create_dir_all(folder)?;
            let mut file = AtomicFile::create(&path)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.commit()
        };
        write().map_err(Error::file("cannot write", &path))
    }

    /// Takes over what the other lock says of files of which this one says nothing.
    pub(crate) fn fill_up(&mut self, other: Self) {
        for (name, entry) in other.files {
            self.files.entry(name).or_insert(entry);
        }
    }

    pub(crate) fn sha256(&self, name: &str) -> Option<WeightsHash> {
        self.files.get(name)?.sha256.parse().ok()
    }

    pub(crate) fn insert(&mut self, name: &str, sha256: &WeightsHash, size: u64, source: &str) {
        let entry = Entry { sha256: sha256.to_string(), size, source: source.to_owned() };
        self.files.insert(name.to_owned(), entry);
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}
