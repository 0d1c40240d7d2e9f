//! Checkpoints: everything that a run needs to go on, in one file that is there whole or not at all.

use crate::data::Fingerprint;
use crate::error::{Error, Result};
use crate::model::serialize;
use candle_core::{Device, Tensor};
use codec_io::atomic::write_whole;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const PREFIX: &str = "checkpoint-";
const SUFFIX: &str = ".safetensors";
const STATE_KEY: &str = "codec-train";
/// Of the layout of the file.
const VERSION: u32 = 1;

/// What a checkpoint holds beside tensors.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct State {
    /// Layout of the file.
    pub version: u32,
    /// Steps done; the next batch has this number.
    pub step: u64,
    /// The run's configuration, as TOML.
    pub config: String,
    /// See [`crate::balancer::Balancer::state`].
    pub balancer: BTreeMap<String, [u64; 2]>,
    /// Smoothed losses, exactly.
    pub losses: BTreeMap<String, u64>,
    /// Seconds of training so far.
    pub seconds: f64,
    /// What was trained on; checkpoints of earlier versions do not say it.
    #[serde(default)]
    pub data: Option<Fingerprint>,
}

/// A run at some step.
#[derive(Debug)]
pub struct Saved {
    /// Counters and settings.
    pub state: State,
    /// Tensors, by `PART/NAME`.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Saved {
    /// A checkpoint of this layout.
    pub fn new(step: u64, config: String, seconds: f64) -> Self {
        let (balancer, losses) = (BTreeMap::new(), BTreeMap::new());
        let state = State { version: VERSION, step, config, balancer, losses, seconds, data: None };
        Self { state, tensors: BTreeMap::new() }
    }

    /// Adds the tensors of one part.
    pub fn put(&mut self, part: &str, tensors: impl IntoIterator<Item = (String, Tensor)>) {
        let named = tensors.into_iter().map(|(name, tensor)| (format!("{part}/{name}"), tensor));
        self.tensors.extend(named);
    }

    /// The tensors of one part.
    pub fn part(&self, part: &str) -> BTreeMap<String, Tensor> {
        let of_part = |(name, tensor): (&String, &Tensor)| {
            let name = name.strip_prefix(part)?.strip_prefix('/')?;
            Some((name.to_owned(), tensor.clone()))
        };
        self.tensors.iter().filter_map(of_part).collect()
    }

    /// Writes the file of this step into `folder`, then removes all but the newest `keep` up to this step.
    ///
    /// # Errors
    /// [`Error::Io`]; what was there before stands.
    pub fn write(&self, folder: &Path, keep: usize) -> Result<PathBuf> {
        let text = serde_json::to_string(&self.state);
        let text = text.map_err(|e| Error::Format { path: folder.to_owned(), why: e.to_string() })?;
        let metadata = Some([(STATE_KEY.to_owned(), text)].into_iter().collect());
        let bytes = serialize(self.tensors.clone().into_iter(), metadata)?;
        let path = folder.join(format!("{PREFIX}{:08}{SUFFIX}", self.state.step));
        write_whole(&path, &bytes).map_err(Error::io(&path))?;
        let mut all = list(folder)?;
        all.retain(|other| other.file_name() <= path.file_name());
        for old in all.iter().rev().skip(keep.max(1)) {
            std::fs::remove_file(old).map_err(Error::io(old))?;
        }
        Ok(path)
    }

    /// Renames the checkpoints in `folder` of later steps than this one, so that a run which goes on from here
    /// is not taken up from them later; gives their new names.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_later_aside(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let own = format!("{PREFIX}{:08}{SUFFIX}", self.state.step);
        let mut aside = Vec::new();
        for later in list(folder)?.into_iter().filter(|path| path.file_name() > Some(own.as_ref())) {
            let new = later.with_extension("set-aside");
            std::fs::rename(&later, &new).map_err(Error::io(&later))?;
            aside.push(new);
        }
        Ok(aside)
    }

    /// Reads a checkpoint: a file, or the newest in a folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] when the folder has none; [`Error::Format`] for another kind of file.
    pub fn read(path: &Path, device: &Device) -> Result<Self> {
        let newest;
        let path = if path.is_dir() {
            let why = || format!("{} holds no checkpoint", path.display());
            newest = list(path)?.pop().ok_or_else(|| Error::Data { why: why() })?;
            newest.as_path()
        } else {
            path
        };
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let format = |why: String| Error::Format { path: path.to_owned(), why };
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes)
            .map_err(|e| format(format!("is not a checkpoint: {e}")))?;
        let text = metadata.metadata().as_ref().and_then(|texts| texts.get(STATE_KEY));
        let text = text.ok_or_else(|| format("is not a checkpoint of codec-train".to_owned()))?;
        let state: State = serde_json::from_str(text).map_err(|e| format(e.to_string()))?;
        if state.version != VERSION {
            return Err(format(format!("has version {}, not {VERSION}", state.version)));
        }
        let tensors = candle_core::safetensors::load_buffer(&bytes, device)?;
        Ok(Self { state, tensors: tensors.into_iter().collect() })
    }
}

/// The checkpoints in a folder, oldest first.
///
/// # Errors
/// [`Error::Io`].
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::testing::{noise, values};

    #[test]
    fn gives_back_what_was_written_and_keeps_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        for step in [3, 20, 100] {
            let mut saved = Saved::new(step, "seed = 1".to_owned(), 1.5);
            saved.put("model", [("a.b".to_owned(), noise(step, &[2, 3]))]);
            saved.put("moments", [("a.b".to_owned(), noise(step + 1, &[2, 6]))]);
            saved.state.losses.insert("mel".to_owned(), 0.1_f64.to_bits());
            saved.write(folder.path(), 2).unwrap();
        }
        assert_eq!(list(folder.path()).unwrap().len(), 2);
        let read = Saved::read(folder.path(), &Device::Cpu).unwrap();
        assert_eq!((read.state.step, f64::from_bits(read.state.losses["mel"])), (100, 0.1));
        assert_eq!(values(&read.part("model")["a.b"]), values(&noise(100, &[2, 3])));
        assert_eq!(read.part("moments")["a.b"].dims(), [2, 6]);
    }

    #[test]
    fn a_run_from_an_older_checkpoint_keeps_its_own() {
        let folder = tempfile::tempdir().unwrap();
        for step in [2, 8] {
            Saved::new(step, String::new(), 1.0).write(folder.path(), 2).unwrap();
        }
        let old = Saved::read(&list(folder.path()).unwrap()[0], &Device::Cpu).unwrap();
        assert_eq!(old.set_later_aside(folder.path()).unwrap().len(), 1);
        Saved::new(4, String::new(), 1.0).write(folder.path(), 1).unwrap();
        assert_eq!(Saved::read(folder.path(), &Device::Cpu).unwrap().state.step, 4);
        assert!(folder.path().join("checkpoint-00000008.set-aside").is_file());
        assert_eq!(list(folder.path()).unwrap().len(), 1);
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Saved::read(folder.path(), &Device::Cpu), Err(Error::Data { .. })));
        let path = folder.path().join("checkpoint-1.safetensors");
        std::fs::write(&path, b"\x02\0\0\0\0\0\0\0{}").unwrap();
        assert!(matches!(Saved::read(&path, &Device::Cpu), Err(Error::Format { .. })));
        std::fs::write(&path, b"x").unwrap();
        assert!(matches!(Saved::read(&path, &Device::Cpu), Err(Error::Format { .. })));
    }
}
