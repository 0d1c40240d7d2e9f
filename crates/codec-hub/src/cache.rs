//! The cache of Hugging Face's own tools, which is read and never written.
//!
//! `HUB/models--OWNER--NAME/refs/REVISION` holds a commit, and `snapshots/COMMIT/PATH` the files, most of
//! them links into `blobs`.

use crate::client::variable;
use std::path::{Path, PathBuf};

/// Where Hugging Face's tools keep their things.
pub(crate) fn home() -> Option<PathBuf> {
    let cache = || {
        let home = || std::env::home_dir().map(|home| home.join(".cache"));
        Some(variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?.join("huggingface"))
    };
    variable("HF_HOME").map(PathBuf::from).or_else(cache)
}

/// Where they keep the files of models.
pub(crate) fn hub() -> Option<PathBuf> {
    let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].into_iter().find_map(variable);
    named.map(PathBuf::from).or_else(|| Some(home()?.join("hub")))
}

/// The snapshots of a repository: the one of the revision first, then that of `main`, then the others.
pub(crate) fn snapshots(hub: &Path, repository: &str, revision: &str) -> Vec<PathBuf> {
    let folder = hub.join(format!("models--{}", repository.replace('/', "--")));
    let all = folder.join("snapshots");
    let commit = |reference: &str| {
        let text = std::fs::read_to_string(folder.join("refs").join(reference)).ok()?;
        Some(text.trim().to_owned())
    };
    let preferred = [Some(revision.to_owned()), commit(revision), commit("main")];
    let mut found: Vec<PathBuf> = Vec::new();
    let mut others: Vec<PathBuf> =
        std::fs::read_dir(&all).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    others.sort();
    for path in preferred.into_iter().flatten().map(|name| all.join(name)).chain(others) {
        if path.is_dir() && !found.contains(&path) {
            found.push(path);
        }
    }
    found
}
