//! The folder of a run, which belongs to one process at a time.

use crate::error::{Error, Result};
use codec_io::atomic::remove_abandoned;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// Name of the file whose lock says that a process writes to the folder.
const LOCK: &str = ".lock";

/// A run's folder while this process may write to it.
///
/// The lock goes with the value, and with the process however it ends; its file stays.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    _lock: File,
}

impl RunFolder {
    /// Makes the folder if it is not there, locks it, and removes the temporary files that a killed run left in
    /// it and in its folders.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process has it; [`Error::Io`].
    pub fn claim(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(Error::io(path))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(Error::io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { folder: path.to_owned() }),
            // Some network file systems have no locks; the run is then as safe as its user is careful.
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
                tracing::warn!(folder = %path.display(), "cannot be locked against a second run");
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(lock_path)(e)),
        }
        let inner = std::fs::read_dir(path).map_err(Error::io(path))?.flatten();
        let inner = inner.map(|entry| entry.path()).filter(|path| path.is_dir());
        for folder in inner.chain([path.to_owned()]) {
            let n_removed = remove_abandoned(&folder);
            if n_removed > 0 {
                tracing::info!(n_removed, folder = %folder.display(), "removed what a killed run left");
            }
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The folder of a run that is named by its folder or by one of its checkpoints.
///
/// # Errors
/// [`Error::Io`] when there is nothing of that name.
pub fn folder_of(run: &Path) -> Result<PathBuf> {
    let found = run.metadata().map_err(Error::io(run))?;
    let folder = if found.is_dir() { Some(run) } else { run.parent() };
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    Ok(folder.unwrap_or(Path::new(".")).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_run_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("runs/a");
        let first = RunFolder::claim(&path).unwrap();
        let error = RunFolder::claim(&path).unwrap_err();
        assert!(matches!(&error, Error::Busy { folder } if *folder == path), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        RunFolder::claim(&parent.path().join("runs/b")).unwrap();
        drop(first);
        assert_eq!(RunFolder::claim(&path).unwrap().path(), path);
    }

    #[test]
    fn a_checkpoint_names_its_folder_and_a_typing_error_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint-00000001.safetensors");
        assert!(matches!(folder_of(&path), Err(Error::Io { .. })));
        std::fs::write(&path, b"x").unwrap();
        assert_eq!(folder_of(&path).unwrap(), folder.path());
        assert_eq!(folder_of(folder.path()).unwrap(), folder.path());
    }

    #[test]
    fn what_a_killed_run_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        let left = [folder.path().join(".codec-a.tmp"), model.join(".codec-b.tmp")];
        let kept = [folder.path().join("log.jsonl"), model.join("config.json")];
        left.iter().chain(&kept).for_each(|path| std::fs::write(path, b"x").unwrap());
        let _claimed = RunFolder::claim(folder.path()).unwrap();
        assert!(left.iter().all(|path| !path.exists()) && kept.iter().all(|path| path.exists()));
    }
}
