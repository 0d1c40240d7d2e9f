//! One file: fetched in as many attempts as it takes, checked, and moved to its name when it is whole.
//!
//! What has arrived lies beside the final name as `NAME.part`, so that the next attempt, also of a later
//! run, goes on there; `NAME.part.etag` names the version that it is a part of.

use crate::client::{Answer, Client, Outcome};
use crate::error::{Error, Result};
use codec_io::tokens::WeightsHash;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const BUFFER_BYTES: usize = 1 << 16;

/// How far a transfer is: bytes that are there, and the length of the file if it is known.
pub(crate) type OnBytes<'a> = dyn FnMut(u64, Option<u64>) -> ControlFlow<()> + 'a;

/// Fetches `url` to the path `to`; returns its SHA-256, which `check` has approved.
///
/// # Errors
/// Those of the transfer, and those of `check`, after which nothing is kept of the file.
pub(crate) fn download(
    client: &Client,
    url: &str,
    to: &Path,
    check: impl FnOnce(&Path, u64, &WeightsHash) -> Result<()>,
    on_bytes: &mut OnBytes<'_>,
) -> Result<WeightsHash> {
    let part = with_suffix(to, ".part");
    let mut partial = Partial::open(&part)?;
    let linked = partial.complete(client, url, on_bytes)?;
    let (n_bytes, sha256) = partial.hash()?;
    let checked = match linked.filter(|linked| *linked != sha256.to_string()) {
        Some(expected) => Err(Error::Hash { path: to.to_owned(), expected, actual: sha256 }),
        None => check(to, n_bytes, &sha256),
    };
    if let Err(error) = checked {
        // Going on from wrong bytes would never end well.
        partial.remove();
        return Err(error);
    }
    partial.file.sync_all().map_err(Error::file("cannot write", &part))?;
    std::fs::rename(&part, to).map_err(Error::file("cannot create", to))?;
    drop(std::fs::remove_file(with_suffix(&part, ".etag")));
    Ok(sha256)
}

/// The SHA-256 of a file.
pub(crate) fn sha256_of(path: &Path) -> Result<(u64, WeightsHash)> {
    let mut file = File::open(path).map_err(Error::file("cannot read", path))?;
    hash(&mut file).map_err(Error::file("cannot read", path))
}

struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    fn open(path: &Path) -> Result<Self> {
        let failed = || Error::file("cannot create", path);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let file = file.map_err(failed())?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::Busy { path: path.to_owned() }),
            // A file system without locks leaves it to its user not to fetch a file twice at once.
            Err(TryLockError::Error(_)) | Ok(()) => Ok(Self { path: path.to_owned(), file }),
        }
    }

    /// Fetches what is missing; returns the SHA-256 that the hub states.
    fn complete(&mut self, client: &Client, url: &str, on_bytes: &mut OnBytes<'_>) -> Result<Option<String>> {
        let settings = client.settings();
        let mut n_failed = 0;
        loop {
            let before = self.len()?;
            let etag = std::fs::read_to_string(with_suffix(&self.path, ".etag")).ok();
            let failure = match client.get(url, before, etag.as_deref())? {
                Outcome::Answer(mut answer) => match self.append(url, &mut answer, on_bytes)? {
                    None => return Ok(answer.sha256),
                    Some(failure) => failure,
                },
                Outcome::BeyondEnd => {
                    self.restart()?;
                    Error::Connection { url: url.to_owned(), why: "the file has become shorter".to_owned() }
                }
                Outcome::Failed(error) => error,
            };
            n_failed = if self.len()? > before { 0 } else { n_failed + 1 };
            if n_failed >= settings.max_attempts {
                return Err(failure);
            }
            tracing::debug!(%url, %failure, "trying again");
            std::thread::sleep(settings.pause * 2_u32.saturating_pow(n_failed).min(32));
        }
    }

    /// Writes the answer's bytes; `None` when the file is whole.
    fn append(
        &mut self,
        url: &str,
        answer: &mut Answer,
        on_bytes: &mut OnBytes<'_>,
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
        let etag_path = with_suffix(&self.path, ".etag");
        if let Some(etag) = answer.etag.as_ref().filter(|etag| !etag.starts_with("W/")) {
            std::fs::write(&etag_path, etag).map_err(Error::file("cannot write", &etag_path))?;
        }
        let mut at = self.file.seek(SeekFrom::End(0)).map_err(Error::file("cannot write", &self.path))?;
        let mut reader = answer.body.as_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            if on_bytes(at, answer.length).is_break() {
                return Err(Error::Stopped);
            }
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    self.file.write_all(&buffer[..n]).map_err(Error::file("cannot write", &self.path))?;
                    at += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let url = url.to_owned();
                    return Ok(Some(match answer.length {
                        Some(expected) if at < expected => Error::Truncated { url, expected, actual: at },
                        _ => Error::Connection { url, why: e.to_string() },
                    }));
                }
            }
        }
        Ok(match answer.length {
            Some(expected) if at < expected => {
                Some(Error::Truncated { url: url.to_owned(), expected, actual: at })
            }
            _ => None,
        })
    }

    fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(Error::file("cannot read", &self.path))?.len())
    }

    fn restart(&mut self) -> Result<()> {
        drop(std::fs::remove_file(with_suffix(&self.path, ".etag")));
        self.file.set_len(0).map_err(Error::file("cannot write", &self.path))
    }

    fn hash(&mut self) -> Result<(u64, WeightsHash)> {
        hash(&mut self.file).map_err(Error::file("cannot read", &self.path))
    }

    fn remove(&self) {
        drop(std::fs::remove_file(&self.path));
        drop(std::fs::remove_file(with_suffix(&self.path, ".etag")));
    }
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
