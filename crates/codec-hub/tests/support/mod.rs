//! A web server that serves files and misbehaves on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What the server does with a path.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Sends the bytes, or the range that is asked for.
    File(Vec<u8>),
    /// Sends the bytes and does not know ranges.
    WithoutRanges(Vec<u8>),
    /// Announces all bytes and hangs up after so many, each time it is asked.
    Breaks { bytes: Vec<u8>, after: usize },
    /// Sends elsewhere.
    Redirect { to: String, linked_etag: Option<String> },
    /// Sends the bytes without their number, and hangs up.
    Unmeasured(Vec<u8>),
    /// Sends the bytes as a chunk, with or without the empty one that ends the body.
    Chunked { bytes: Vec<u8>, is_whole: bool },
    /// Announces all bytes, sends so many and nothing more for a minute.
    Stalls { bytes: Vec<u8>, after: usize },
    /// Refuses.
    Status(u16),
    /// Refuses for the time being.
    Later { status: u16, retry_after: u32 },
    /// Says nothing for a minute.
    Silent,
    /// Hangs up without an answer.
    HangUp,
}

/// A request as it came; that for a tunnel has its first line for a path.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

/// Serves until the test ends.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The replies to the next requests; the last one stays.
    replies: Mutex<BTreeMap<String, Vec<Reply>>>,
    requests: Mutex<Vec<Request>>,
}

impl Shared {
    fn note(&self, request: Request) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let server = Self { url, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                // A client that hangs up is no failure of the test.
                std::thread::spawn(move || drop(answer(stream.unwrap(), &shared)));
            }
        });
        server
    }

    /// Gives a path its replies, one after the other.
    pub(crate) fn on(&self, path: &str, replies: &[Reply]) {
        self.replies().insert(path.to_owned(), replies.to_vec());
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replies(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<Reply>>> {
        self.shared.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address of a server that is not there.
pub(crate) fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut headers) = head(&mut reader)?;
    if first.starts_with("CONNECT ") {
        // As a proxy it is every server that it is asked for.
        shared.note(Request { path: first.clone(), headers });
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
        (first, headers) = head(&mut reader)?;
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let range = headers.get("range").cloned();
    let if_range = headers.get("if-range").cloned();
    shared.note(Request { path: path.clone(), headers });
    let reply = {
        let mut replies = shared.replies.lock().unwrap_or_else(PoisonError::into_inner);
        match replies.get_mut(&path) {
            None => Reply::Status(404),
            Some(next) if next.len() > 1 => next.remove(0),
            Some(last) => last[0].clone(),
        }
    };
    let head = |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n");
    match reply {
        Reply::HangUp => Ok(()),
        Reply::Silent => {
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        Reply::Stalls { bytes, after } => {
            stream.write_all(head("200 OK", &format!("Content-Length: {}\r\n", bytes.len())).as_bytes())?;
            stream.write_all(&bytes[..after])?;
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        Reply::Unmeasured(bytes) => {
            stream.write_all(head("200 OK", "").as_bytes())?;
            stream.write_all(&bytes)
        }
        Reply::Chunked { bytes, is_whole } => {
            stream.write_all(head("200 OK", "Transfer-Encoding: chunked\r\n").as_bytes())?;
            stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
            stream.write_all(&bytes)?;
            stream.write_all(if is_whole { b"\r\n0\r\n\r\n" } else { b"\r\n" })
        }
        Reply::Later { status, retry_after } => {
            let more = format!("Content-Length: 0\r\nRetry-After: {retry_after}\r\n");
            stream.write_all(head(&format!("{status} Later"), &more).as_bytes())
        }
        Reply::Status(status) => {
            stream.write_all(head(&format!("{status} Refused"), "Content-Length: 0\r\n").as_bytes())
        }
        Reply::Redirect { to, linked_etag } => {
            let etag = linked_etag.map(|etag| format!("X-Linked-Etag: \"{etag}\"\r\n")).unwrap_or_default();
            let more = format!("Location: {to}\r\nContent-Length: 0\r\n{etag}");
            stream.write_all(head("302 Found", &more).as_bytes())
        }
        Reply::WithoutRanges(bytes) => {
            stream.write_all(head("200 OK", &format!("Content-Length: {}\r\n", bytes.len())).as_bytes())?;
            stream.write_all(&bytes)
        }
        Reply::File(bytes) => {
            let after = bytes.len();
            send(&mut stream, &bytes, range.as_deref(), if_range.as_deref(), after, head)
        }
        Reply::Breaks { bytes, after } => {
            send(&mut stream, &bytes, range.as_deref(), if_range.as_deref(), after, head)
        }
    }
}

/// The first line of a request, and its headers.
fn head(reader: &mut impl BufRead) -> std::io::Result<(String, BTreeMap<String, String>)> {
    let mut lines = reader.lines();
    let first = lines.next().ok_or(std::io::ErrorKind::UnexpectedEof)??;
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    Ok((first, headers))
}

/// The tag of a version of a file.
fn etag(bytes: &[u8]) -> String {
    format!("\"{:x}\"", bytes.iter().fold(bytes.len() as u64, |h, b| h.wrapping_mul(31) ^ u64::from(*b)))
}

fn send(
    stream: &mut TcpStream,
    bytes: &[u8],
    range: Option<&str>,
    if_range: Option<&str>,
    n_sent: usize,
    head: impl Fn(&str, &str) -> String,
) -> std::io::Result<()> {
    let etag = etag(bytes);
    let same = if_range.is_none_or(|version| version == etag);
    let start: usize = range
        .filter(|_| same)
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        .unwrap_or(0);
    if start > 0 && start >= bytes.len() {
        return stream.write_all(head("416 Range Not Satisfiable", "Content-Length: 0\r\n").as_bytes());
    }
    let length = bytes.len() - start;
    let mut more = format!("Content-Length: {length}\r\nETag: {etag}\r\n");
    let status = if start > 0 {
        more += &format!("Content-Range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len());
        "206 Partial Content"
    } else {
        "200 OK"
    };
    stream.write_all(head(status, &more).as_bytes())?;
    stream.write_all(&bytes[start..(start + n_sent).min(bytes.len())])
}
