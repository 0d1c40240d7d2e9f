//! One file: fetched in as many attempts as it takes, checked, and moved to its name when it is whole.
//!
//! What has arrived lies beside the final name as `NAME.part`, so that the next attempt, also of a later
//! run, goes on there; `NAME.part.etag` names the version that it is a part of. Neither is there before the
//! first byte.

use crate::client::{Answer, Client, Outcome};
use crate::error::{Error, Result};
use crate::transfer::{Transfer, pause};
use codec_io::tokens::WeightsHash;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BUFFER_BYTES: usize = 1 << 16;
/// A server that wants to be left alone for longer is not waited for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// How a transfer goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step<'a> {
    /// Bytes that are there, and the length of the file if it is known.
    Bytes(u64, Option<u64>),
    /// An attempt failed, and another one is made after a pause.
    Retry {
        /// The number of the attempt to come.
        attempt: u32,
        n_attempts: u32,
        pause: Duration,
        why: &'a Error,
    },
}

/// Told how a transfer goes, and at least some times a second; can stop it.
pub(crate) type OnStep<'a> = dyn FnMut(Step<'_>) -> ControlFlow<()> + 'a;

/// Fetches `url` to the path `to`. `check` is told where the file lies for the time being, its length and its
/// SHA-256; `is_known` says that it knows a length or a hash to compare them with.
///
/// # Errors
/// Those of the transfer, and those of `check`, after which nothing is kept of the file.
pub(crate) fn download(
    client: &Client,
    url: &str,
    to: &Path,
    is_known: bool,
    check: impl FnOnce(&Path, u64, WeightsHash) -> Result<()>,
    on_step: &mut OnStep<'_>,
) -> Result<WeightsHash> {
    let part = with_suffix(to, ".part");
    let mut partial = Partial::open(&part)?;
    let linked = partial.complete(client, url, is_known, on_step)?;
    let Some((n_bytes, sha256)) = partial.hash()? else {
        let why = "the server sends an empty file".to_owned();
        return Err(Error::Content { path: to.to_owned(), why, is_here: false });
    };
    let checked = match linked.filter(|linked| *linked != sha256.to_string()) {
        Some(expected) => Err(Error::Hash { path: to.to_owned(), expected, actual: sha256 }),
        None => check(&part, n_bytes, sha256),
    };
    if let Err(error) = checked {
        // Going on from wrong bytes would never end well.
        partial.remove();
        return Err(error);
    }
    partial.file()?.sync_all().map_err(Error::file("cannot write", &part))?;
    std::fs::rename(&part, to).map_err(Error::file("cannot create", to))?;
    drop(std::fs::remove_file(with_suffix(&part, ".etag")));
    Ok(sha256)
}

/// The SHA-256 of a file.
pub(crate) fn sha256_of(path: &Path) -> Result<(u64, WeightsHash)> {
    let mut file = File::open(path).map_err(Error::file("cannot read", path))?;
    hash(&mut file).map_err(Error::file("cannot read", path))
}

/// A file of which some bytes may be there; it is ours alone from then on.
struct Partial {
    path: PathBuf,
    file: Option<File>,
}

impl Partial {
    fn open(path: &Path) -> Result<Self> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Some(locked(file, path)?),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(Error::file("cannot open", path)(e)),
        };
        Ok(Self { path: path.to_owned(), file })
    }

    /// The file, made with its folder when it is not there.
    fn file(&mut self) -> Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let folder = self.path.parent().unwrap_or(Path::new(""));
                std::fs::create_dir_all(folder).map_err(Error::file("cannot create", folder))?;
                let file =
                    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&self.path);
                locked(file.map_err(Error::file("cannot create", &self.path))?, &self.path)?
            }
        };
        Ok(self.file.insert(file))
    }

    /// Fetches what is missing; returns the SHA-256 that the hub states.
    fn complete(
        &mut self,
        client: &Client,
        url: &str,
        is_known: bool,
        on_step: &mut OnStep<'_>,
    ) -> Result<Option<String>> {
        let settings = client.settings();
        let mut n_failed = 0;
        loop {
            let before = self.len()?;
            let etag = std::fs::read_to_string(with_suffix(&self.path, ".etag")).ok();
            let transfer = Transfer::start(client, url, before, etag)?;
            let (failure, after) = match transfer.outcome(&mut || on_step(Step::Bytes(before, None)))? {
                Outcome::Answer(answer) if !(answer.has_end || is_known || answer.sha256.is_some()) => {
                    return Err(Error::NoLength { url: url.to_owned() });
                }
                Outcome::Answer(answer) => match self.append(url, &answer, &transfer, on_step)? {
                    None => return Ok(answer.sha256),
                    Some(failure) => (failure, None),
                },
                Outcome::BeyondEnd => {
                    self.restart()?;
                    let why = "the file has become shorter".to_owned();
                    (Error::Connection { url: url.to_owned(), why }, None)
                }
                Outcome::Failed { error, after } => (error, after),
            };
            n_failed = if self.len()? > before { 0 } else { n_failed + 1 };
            let after = after.unwrap_or_default();
            if n_failed >= settings.max_attempts || after > MAX_RETRY_AFTER {
                return Err(failure);
            }
            tracing::debug!(%url, %failure, "trying again");
            let doubled = settings.pause * 2_u32.saturating_pow(n_failed.saturating_sub(1)).min(32);
            let (attempt, n_attempts, rest) = (n_failed + 1, settings.max_attempts, doubled.max(after));
            if on_step(Step::Retry { attempt, n_attempts, pause: rest, why: &failure }).is_break() {
                return Err(Error::Stopped);
            }
            let here = self.len()?;
            pause(rest, &mut || on_step(Step::Bytes(here, None)))?;
        }
    }

    /// Writes the bytes of an answer; `None` when the file is whole.
    fn append(
        &mut self,
        url: &str,
        answer: &Answer,
        transfer: &Transfer,
        on_step: &mut OnStep<'_>,
    ) -> Result<Option<Error>> {
        let before = self.len()?;
        if answer.from == 0 {
            // The server starts again: it cannot do ranges, or has another version by now.
            self.restart()?;
        } else if answer.from != before {
            self.restart()?;
            let why = format!("the server sends bytes from {} on instead of {before}", answer.from);
            return Ok(Some(Error::Connection { url: url.to_owned(), why }));
        }
        let mut at = answer.from;
        let broken = loop {
            let mut on_bytes = || on_step(Step::Bytes(at, answer.length));
            if on_bytes().is_break() {
                return Err(Error::Stopped);
            }
            match transfer.piece(&mut on_bytes)? {
                Ok(bytes) if bytes.is_empty() => break None,
                Ok(bytes) => {
                    let path = self.path.clone();
                    let file = self.file()?;
                    if at == answer.from {
                        note_version(&path, answer)?;
                        file.seek(SeekFrom::Start(at)).map_err(Error::file("cannot write", &path))?;
                    }
                    file.write_all(&bytes).map_err(Error::file("cannot write", &path))?;
                    at += bytes.len() as u64;
                }
                Err(e) => break Some(e.to_string()),
            }
        };
        let url = url.to_owned();
        Ok(match (answer.length, broken) {
            (Some(expected), _) if at < expected => Some(Error::Truncated { url, expected, actual: at }),
            (_, Some(why)) => Some(Error::Connection { url, why }),
            (_, None) => None,
        })
    }

    fn len(&self) -> Result<u64> {
        let Some(file) = &self.file else { return Ok(0) };
        Ok(file.metadata().map_err(Error::file("cannot read", &self.path))?.len())
    }

    fn restart(&mut self) -> Result<()> {
        drop(std::fs::remove_file(with_suffix(&self.path, ".etag")));
        let Some(file) = &self.file else { return Ok(()) };
        file.set_len(0).map_err(Error::file("cannot write", &self.path))
    }

    /// Length and SHA-256; `None` for an empty file.
    fn hash(&mut self) -> Result<Option<(u64, WeightsHash)>> {
        if self.len()? == 0 {
            self.remove();
            return Ok(None);
        }
        let path = self.path.clone();
        hash(self.file()?).map(Some).map_err(Error::file("cannot read", path))
    }

    fn remove(&self) {
        drop(std::fs::remove_file(&self.path));
        drop(std::fs::remove_file(with_suffix(&self.path, ".etag")));
    }
}

/// The file, which no other process may fetch meanwhile.
fn locked(file: File, path: &Path) -> Result<File> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::Busy { path: path.to_owned() }),
        // A file system without locks leaves it to its user not to fetch a file twice at once.
        Err(TryLockError::Error(_)) | Ok(()) => Ok(file),
    }
}

/// Takes down which version of the file the bytes of an answer are of.
fn note_version(part: &Path, answer: &Answer) -> Result<()> {
    let Some(etag) = answer.etag.as_ref().filter(|etag| !etag.starts_with("W/")) else { return Ok(()) };
    let path = with_suffix(part, ".etag");
    std::fs::write(&path, etag).map_err(Error::file("cannot write", &path))
}

fn hash(file: &mut File) -> std::io::Result<(u64, WeightsHash)> {
    file.seek(SeekFrom::Start(0))?;
    let (mut digest, mut n_bytes, mut buffer) = (Sha256::new(), 0, vec![0; BUFFER_BYTES]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((n_bytes, WeightsHash(digest.finalize().into()))),
            n => {
                digest.update(&buffer[..n]);
                n_bytes += n as u64;
            }
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
