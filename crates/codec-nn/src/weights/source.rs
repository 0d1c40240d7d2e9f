//! The bytes of a weights file: in memory, or left on disk until a tensor is read.
//!
//! A checkpoint of a gigabyte is never in memory as a whole beside the model that is built from it.

use super::checkpoint::io_error;
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are read from a file at a time: whole elements of every type.
const PIECE: usize = 1 << 20;

/// A file's bytes or a part of them; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Source {
    bytes: Bytes,
    range: Range<usize>,
}

#[derive(Clone, Debug)]
enum Bytes {
    Memory(Arc<Vec<u8>>),
    File(Arc<OpenFile>),
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    /// Every read says where it begins.
    file: Mutex<File>,
}

impl Source {
    pub(super) fn new(bytes: impl Into<Arc<Vec<u8>>>) -> Self {
        let bytes = bytes.into();
        Self { range: 0..bytes.len(), bytes: Bytes::Memory(bytes) }
    }

    /// Opens a file. What has no length, such as a pipe, is read at once.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |source| io_error(path, source);
        let mut file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let len = usize::try_from(metadata.len()).ok().filter(|_| metadata.is_file());
        let Some(len) = len else {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map_err(failed)?;
            return Ok(Self::new(bytes));
        };
        let file = OpenFile { path: path.to_owned(), file: Mutex::new(file) };
        Ok(Self { bytes: Bytes::File(Arc::new(file)), range: 0..len })
    }

    pub(super) fn len(&self) -> usize {
        self.range.len()
    }

    /// A part of it; `None` when it has no such part.
    pub(super) fn part(&self, range: Range<usize>) -> Option<Self> {
        let within = range.start <= range.end && range.end <= self.len();
        let at = |offset| self.range.start + offset;
        within.then(|| Self { bytes: self.bytes.clone(), range: at(range.start)..at(range.end) })
    }

    /// All of its bytes.
    pub(super) fn read(&self) -> Result<Cow<'_, [u8]>> {
        match &self.bytes {
            Bytes::Memory(bytes) => Ok(Cow::Borrowed(&bytes[self.range.clone()])),
            Bytes::File(file) => {
                let mut bytes = vec![0; self.len()];
                file.read(self.range.start, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }

    /// Its first bytes, at most `n`.
    pub(super) fn start(&self, n: usize) -> Result<Vec<u8>> {
        let end = self.range.start + n.min(self.len());
        let start = Self { bytes: self.bytes.clone(), range: self.range.start..end };
        Ok(start.read()?.into_owned())
    }

    /// Its bytes in order, in pieces of whole elements.
    pub(super) fn pieces(&self, mut each: impl FnMut(&[u8])) -> Result<()> {
        match &self.bytes {
            Bytes::Memory(bytes) => each(&bytes[self.range.clone()]),
            Bytes::File(file) => {
                let mut piece = vec![0; PIECE.min(self.len())];
                for at in self.range.clone().step_by(PIECE) {
                    let piece = &mut piece[..PIECE.min(self.range.end - at)];
                    file.read(at, piece)?;
                    each(piece);
                }
            }
        }
        Ok(())
    }

    pub(super) fn reader(&self) -> Reader {
        Reader { source: self.clone(), at: 0 }
    }
}

impl OpenFile {
    /// Fills `bytes` from those that begin at `offset`.
    fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let sought = file.seek(SeekFrom::Start(offset as u64));
        sought.and_then(|_| file.read_exact(bytes)).map_err(|source| io_error(&self.path, source))
    }
}

/// A source as a file, for those who read archives.
#[derive(Debug)]
pub(super) struct Reader {
    source: Source,
    at: usize,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let at = self.at.min(self.source.len());
        let n = buffer.len().min(self.source.len() - at);
        let from = self.source.range.start + at;
        match &self.source.bytes {
            Bytes::Memory(bytes) => buffer[..n].copy_from_slice(&bytes[from..from + n]),
            Bytes::File(file) => file.read(from, &mut buffer[..n]).map_err(|error| match error {
                Error::Io { source, .. } => source,
                other => std::io::Error::other(other),
            })?,
        }
        self.at = at + n;
        Ok(n)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let len = self.source.len() as u64;
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => (self.at as u64).checked_add_signed(by),
            SeekFrom::End(by) => len.checked_add_signed(by),
        };
        let at = at.and_then(|at| usize::try_from(at).ok());
        self.at = at.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        Ok(self.at as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of its own for the caller.
    fn write(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("codec-nn-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn a_file_is_read_as_memory_is() {
        let bytes: Vec<u8> = (0..2 * PIECE + 12).map(|i| (i * 31 % 251) as u8).collect();
        let framed = [b"abc", bytes.as_slice(), b"de"].concat();
        let path = write("source", &framed);
        let whole = [Source::open(&path).unwrap(), Source::new(framed)];
        std::fs::remove_file(path).unwrap();
        for source in whole.map(|whole| whole.part(3..3 + bytes.len()).unwrap()) {
            assert_eq!(source.read().unwrap(), bytes);
            assert_eq!(source.start(5).unwrap(), bytes[..5]);
            assert_eq!(source.start(usize::MAX).unwrap(), bytes);
            let mut joined = Vec::new();
            let join = |piece: &[u8]| {
                assert_eq!(piece.len() % 4, 0);
                joined.extend_from_slice(piece);
            };
            source.pieces(join).unwrap();
            assert_eq!(joined, bytes);

            let mut reader = source.reader();
            assert_eq!(reader.seek(SeekFrom::End(-3)).unwrap(), bytes.len() as u64 - 3);
            let mut end = Vec::new();
            reader.read_to_end(&mut end).unwrap();
            assert_eq!(end, bytes[bytes.len() - 3..]);
            assert!(reader.seek(SeekFrom::Current(-1 << 40)).is_err());
            assert_eq!(reader.seek(SeekFrom::Start(1 << 40)).unwrap(), 1 << 40);
            assert_eq!(reader.read(&mut [0; 4]).unwrap(), 0);

            assert!(source.part(1..bytes.len() + 1).is_none());
            let none = source.part(bytes.len()..bytes.len()).unwrap();
            assert!(none.read().unwrap().is_empty());
        }
    }

    #[test]
    fn a_file_that_was_cut_since_is_an_error() {
        let path = write("cut", &[7; 100]);
        let source = Source::open(&path).unwrap();
        std::fs::write(&path, [7; 50]).unwrap();
        for error in [source.read().unwrap_err(), source.pieces(|_| ()).unwrap_err()] {
            assert!(matches!(&error, Error::Io { path: named, .. } if *named == path), "{error}");
        }
        std::fs::remove_file(path).unwrap();
    }
}
