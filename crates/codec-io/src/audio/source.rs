//! Where the bytes come from: a file that can be rewound, or a stream that cannot.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use symphonia::core::io::MediaSource;

/// How many bytes are looked at to tell the format.
pub(crate) const HEAD_LEN: usize = 4096;

/// A source that can seek.
pub(crate) trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

/// The bytes of one input, positioned at the first one, and a copy of the first few.
pub(crate) struct Source {
    /// The first bytes, at most [`HEAD_LEN`].
    pub(crate) head: Vec<u8>,
    pub(crate) bytes: Bytes,
}

/// The input as a byte stream that knows its position.
pub(crate) struct Bytes {
    inner: Inner,
    position: Arc<AtomicU64>,
}

enum Inner {
    Seekable {
        source: Box<dyn ReadSeek>,
        len: u64,
    },
    /// The head that was looked at goes first, then the rest of the stream.
    Stream(Box<dyn Read + Send>),
}

impl Source {
    /// Opens a file; pipes and devices are read as streams.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::File { what: "cannot open", path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(failed(std::io::ErrorKind::IsADirectory.into()));
        }
        if metadata.is_file() { Self::seekable(Box::new(file)) } else { Self::stream(Box::new(file)) }
    }

    pub(crate) fn seekable(mut source: Box<dyn ReadSeek>) -> Result<Self> {
        let failed = |source| Error::Io { what: "cannot seek", offset: 0, source };
        let len = source.seek(SeekFrom::End(0)).map_err(failed)?;
        source.rewind().map_err(failed)?;
        let head = read_head(&mut source)?;
        source.rewind().map_err(failed)?;
        Ok(Self { head, bytes: Bytes::new(Inner::Seekable { source, len }) })
    }

    pub(crate) fn stream(mut source: Box<dyn Read + Send>) -> Result<Self> {
        let head = read_head(&mut source)?;
        let replay = Cursor::new(head.clone()).chain(source);
        Ok(Self { head, bytes: Bytes::new(Inner::Stream(Box::new(replay))) })
    }

    /// Copies a stream to an unnamed temporary file, for formats that cannot be read forward.
    pub(crate) fn spooled(mut self) -> Result<Self> {
        if matches!(self.bytes.inner, Inner::Seekable { .. }) {
            return Ok(self);
        }
        let failed = |offset| move |source| Error::Io { what: "cannot spool the stream", offset, source };
        let mut file = tempfile::tempfile().map_err(failed(0))?;
        let position = self.bytes.position();
        std::io::copy(&mut self.bytes, &mut file).map_err(|e| failed(position.get())(e))?;
        Self::seekable(Box::new(file))
    }
}

impl Bytes {
    fn new(inner: Inner) -> Self {
        Self { inner, position: Arc::new(AtomicU64::new(0)) }
    }

    /// A view of the position that stays valid when the bytes are given away.
    pub(crate) fn position(&self) -> Position {
        Position(Arc::clone(&self.position))
    }

    /// Total length, where it can be known.
    pub(crate) fn len(&self) -> Option<u64> {
        match self.inner {
            Inner::Seekable { len, .. } => Some(len),
            Inner::Stream(_) => None,
        }
    }
}

/// Reads the position of a source from afar.
#[derive(Clone, Debug)]
pub(crate) struct Position(Arc<AtomicU64>);

impl Position {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Read for Bytes {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = match &mut self.inner {
            Inner::Seekable { source, .. } => source.read(buf),
            Inner::Stream(source) => source.read(buf),
        }?;
        self.position.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Seek for Bytes {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        match &mut self.inner {
            Inner::Seekable { source, len } => {
                let position = source.seek(to)?;
                // A seek past the end is allowed; an offset in an error lies inside.
                self.position.store(position.min(*len), Ordering::Relaxed);
                Ok(position)
            }
            Inner::Stream(_) => Err(std::io::ErrorKind::NotSeekable.into()),
        }
    }
}

/// symphonia asks for `Sync`; nothing here is reachable through a shared reference.
pub(crate) struct SyncBytes {
    bytes: Mutex<Bytes>,
    is_seekable: bool,
    len: Option<u64>,
}

impl SyncBytes {
    /// `is_seekable` may be false for a source that can seek, never the other way round.
    pub(crate) fn new(bytes: Bytes, is_seekable: bool) -> Self {
        let len = bytes.len().filter(|_| is_seekable);
        Self { bytes: Mutex::new(bytes), is_seekable, len }
    }

    fn bytes(&mut self) -> &mut Bytes {
        match self.bytes.get_mut() {
            Ok(bytes) => bytes,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

impl Read for SyncBytes {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.bytes().read(buf)
    }
}

impl Seek for SyncBytes {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.bytes().seek(to)
    }
}

impl MediaSource for SyncBytes {
    fn is_seekable(&self) -> bool {
        self.is_seekable
    }

    fn byte_len(&self) -> Option<u64> {
        self.len
    }
}

fn read_head(source: &mut dyn Read) -> Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_LEN);
    source.take(HEAD_LEN as u64).read_to_end(&mut head).map_err(|source| Error::Io {
        what: "cannot read",
        offset: head.len() as u64,
        source,
    })?;
    if head.is_empty() { Err(Error::Empty) } else { Ok(head) }
}
