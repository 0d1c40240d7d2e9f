//! Files that appear under their name only when they are complete.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::{Builder, NamedTempFile};

/// Names of temporary files start so.
pub const PREFIX: &str = ".codec-";
/// Names of temporary files end so.
pub const SUFFIX: &str = ".tmp";
/// A temporary file is locked right after it was made; until then its age protects it.
const MIN_STALE_AGE: Duration = Duration::from_secs(60);

/// The temporary files that this process is writing, for [`remove_unfinished`].
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An entry of [`UNFINISHED`].
#[derive(Debug)]
struct Entry(PathBuf);

impl Entry {
    fn new(path: &Path) -> Self {
        unfinished().insert(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        unfinished().remove(&self.0);
    }
}

/// A file that is written beside its final place and moved there by [`AtomicFile::commit`].
///
/// Whatever happens before the commit, an error, a drop or a killed process, leaves the final
/// name as it was. A drop also removes the temporary file; a killed process leaves it behind as
/// `.codec-*.tmp`, which [`remove_stale`] removes. Writes are buffered.
///
/// A path that names something other than a regular file, such as `/dev/null` or a FIFO, is
/// written in place: to rename over a device would destroy it.
///
/// ```
/// use codec_io::atomic::AtomicFile;
/// use std::io::Write;
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("out.bin");
/// let mut file = AtomicFile::create(&path)?;
/// file.write_all(b"whole")?;
/// assert!(!path.exists());
/// file.commit()?;
/// assert_eq!(std::fs::read(&path)?, b"whole");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct AtomicFile {
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Beside { temporary: BufWriter<NamedTempFile>, entry: Entry, folder: PathBuf, path: PathBuf },
    InPlace(BufWriter<File>),
}

impl AtomicFile {
    /// Opens a temporary file in the folder of `path`; a link is followed to what it names.
    ///
    /// # Errors
    /// As creating a file in that folder; `IsADirectory` when `path` is a folder.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let path = match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(found) if !found.is_file() => {
                let file = OpenOptions::new().write(true).open(path)?;
                return Ok(Self { sink: Sink::InPlace(BufWriter::new(file)) });
            }
            Ok(_) => fs::canonicalize(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
            Err(error) => return Err(error),
        };
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        // Not derived from the file's name: that one may already be as long as names can be.
        let options = options(&path);
        // Opened here, so that an error is the system's and does not name the temporary file.
        let temporary =
            Builder::new().prefix(PREFIX).suffix(SUFFIX).make_in(&folder, |path| options.open(path))?;
        // The lock goes with the process. Where a file system has none, the file is never taken for stale.
        drop(temporary.as_file().try_lock());
        let entry = Entry::new(temporary.path());
        let temporary = BufWriter::new(temporary);
        Ok(Self { sink: Sink::Beside { temporary, entry, folder, path } })
    }

    /// Moves the file to its final name, after its bytes have reached the disk.
    ///
    /// # Errors
    /// As writing, synchronising and renaming a file; the final name is then as it was before,
    /// except when only the folder could not be synchronised.
    pub fn commit(self) -> io::Result<()> {
        match self.sink {
            Sink::Beside { temporary, entry, folder, path } => {
                let temporary = temporary.into_inner().map_err(io::IntoInnerError::into_error)?;
                temporary.as_file().sync_all()?;
                temporary.persist(path).map_err(|refused| refused.error)?;
                drop(entry);
                sync_folder(&folder)
            }
            Sink::InPlace(mut file) => file.flush(),
        }
    }
}

/// Writes all of a file: it is there whole, or as it was before.
///
/// # Errors
/// As [`AtomicFile::create`], writing, and [`AtomicFile::commit`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Removes the temporary files that this process is writing, for one that ends at once; returns how many.
///
/// What is written to them after that is lost, and [`AtomicFile::commit`] fails.
pub fn remove_unfinished() -> usize {
    remove_those(|_| true)
}

fn remove_those(are_meant: impl Fn(&Path) -> bool) -> usize {
    unfinished().iter().filter(|path| are_meant(path) && fs::remove_file(path).is_ok()).count()
}

/// Removes the temporary files in a folder that dead processes have left there; returns how many.
///
/// A living process holds a lock on each of its own. What cannot be looked at is left alone.
pub fn remove_stale(folder: &Path) -> usize {
    remove_older(folder, MIN_STALE_AGE)
}

/// As [`remove_stale`], also files that are seconds old: for a folder that no other process writes to.
pub fn remove_abandoned(folder: &Path) -> usize {
    remove_older(folder, Duration::ZERO)
}

fn remove_older(folder: &Path, min_age: Duration) -> usize {
    let mut n_removed = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        if is_ours
            && is_stale(&entry.path(), min_age).unwrap_or(false)
            && fs::remove_file(entry.path()).is_ok()
        {
            n_removed += 1;
        }
    }
    n_removed
}

fn is_stale(path: &Path, min_age: Duration) -> io::Result<bool> {
    let found = fs::symlink_metadata(path)?;
    let is_old = min_age.is_zero() || found.modified()?.elapsed().is_ok_and(|age| age >= min_age);
    Ok(found.is_file() && is_old && OpenOptions::new().write(true).open(path)?.try_lock().is_ok())
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.sink {
            Sink::Beside { temporary, .. } => temporary.write(bytes),
            Sink::InPlace(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Beside { temporary, .. } => temporary.flush(),
            Sink::InPlace(file) => file.flush(),
        }
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match &mut self.sink {
            Sink::Beside { temporary, .. } => temporary.seek(to),
            Sink::InPlace(file) => file.seek(to),
        }
    }
}

/// How a new file is opened in the place of `path`, with the permissions of the file that it replaces.
#[cfg_attr(not(unix), expect(unused_variables, reason = "elsewhere a new file has those of its folder"))]
fn options(path: &Path) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    if let Ok(replaced) = fs::metadata(path) {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        options.mode(replaced.permissions().mode());
    }
    options
}

/// Makes new names in a folder durable, where folders can be synchronised.
///
/// # Errors
/// As opening and synchronising the folder.
#[cfg(unix)]
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network file systems do not know the operation.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Ok(())
        }
        result => result,
    }
}

/// Nothing, where folders cannot be synchronised.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        fs::read_dir(folder).unwrap().map(name).collect()
    }

    #[test]
    fn a_drop_leaves_nothing_and_keeps_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(&[1; 100_000]).unwrap();
        assert_eq!(names(folder.path()).len(), 1, "the temporary file");
        drop(file);
        assert!(names(folder.path()).is_empty());

        fs::write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.flush().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_commit_replaces_and_seeking_back_patches() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, b"old and longer").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"..cd").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(b"ab").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abcd");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn what_dead_processes_left_is_removed_and_what_is_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - 2 * MIN_STALE_AGE;
        let make = |name: &str, modified| {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_modified(modified).unwrap();
        };
        make(".codec-dead.tmp", old);
        make(".codec-young.tmp", std::time::SystemTime::now());
        make("codec-other.tmp", old);
        let used = AtomicFile::create(folder.path().join("out")).unwrap();
        let Sink::Beside { temporary, .. } = &used.sink else { panic!("not beside") };
        temporary.get_ref().as_file().set_modified(old).unwrap();
        assert_eq!(remove_stale(folder.path()), 1);
        assert!(!folder.path().join(".codec-dead.tmp").exists());
        assert_eq!(names(folder.path()).len(), 3);
        assert_eq!(remove_abandoned(folder.path()), 1);
        assert!(!folder.path().join(".codec-young.tmp").exists());
        used.commit().unwrap();
        assert_eq!(remove_stale(folder.path()), 0);
        assert_eq!(remove_stale(&folder.path().join("nowhere")), 0);
    }

    #[test]
    fn a_process_that_ends_at_once_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(folder.path().join("out")).unwrap();
        file.write_all(&[1; 100_000]).unwrap();
        let finished = AtomicFile::create(folder.path().join("done")).unwrap();
        finished.commit().unwrap();
        // Other tests of this process write files, too.
        assert_eq!(remove_those(|path| path.starts_with(folder.path())), 1);
        assert_eq!(names(folder.path()), ["done"]);
        assert!(file.commit().is_err());
    }

    #[cfg(unix)]
    #[test]
    fn an_error_does_not_name_the_temporary_file() {
        let error = AtomicFile::create("/proc/out").unwrap_err();
        assert!(!error.to_string().contains(PREFIX), "{error}");
        assert!(error.raw_os_error().is_some(), "{error:?}");
    }

    #[test]
    fn a_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = AtomicFile::create(folder.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_has_the_permissions_that_any_new_file_has() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let [ours, plain] = ["ours", "plain"].map(|name| folder.path().join(name));
        AtomicFile::create(&ours).unwrap().commit().unwrap();
        fs::write(&plain, b"").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_written_in_place_and_links_are_followed() {
        use std::os::unix::fs::FileTypeExt;
        let mut file = AtomicFile::create("/dev/null").unwrap();
        file.write_all(b"gone").unwrap();
        file.commit().unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());

        let folder = tempfile::tempdir().unwrap();
        let [target, link] = ["target", "link"].map(|name| folder.path().join(name));
        fs::write(&target, b"old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let mut file = AtomicFile::create(&link).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }
}
