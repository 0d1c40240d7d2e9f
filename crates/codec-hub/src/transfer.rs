//! A request on a thread of its own, so that whoever waits for its bytes can stop waiting.
//!
//! A server may be silent for minutes before it is taken for dead, in a look-up of its name, in the handshake or
//! in the middle of a body. A transfer that nobody waits for any more ends with its next byte or its timeout.

use crate::client::{Client, Outcome};
use crate::error::{Error, Result};
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

const PIECE_BYTES: usize = 1 << 16;
/// Pieces that wait to be written.
const N_PIECES: usize = 4;
/// How often whoever waits is asked whether to go on.
const TICK: Duration = Duration::from_millis(100);

/// Asked again and again while nothing happens.
pub(crate) type OnTick<'a> = dyn FnMut() -> ControlFlow<()> + 'a;

/// A request that runs.
#[derive(Debug)]
pub(crate) struct Transfer {
    url: String,
    outcome: Receiver<Result<Outcome>>,
    /// An empty piece is the end of the body.
    pieces: Receiver<std::io::Result<Vec<u8>>>,
}

impl Transfer {
    /// Asks for the bytes of a file, as [`Client::get`].
    pub(crate) fn start(client: &Client, url: &str, from: u64, etag: Option<String>) -> Result<Self> {
        let (to_outcome, outcome) = sync_channel(1);
        let (to_pieces, pieces) = sync_channel(N_PIECES);
        let (client, asked) = (client.clone(), url.to_owned());
        let run = move || {
            let (outcome, body) = match client.get(&asked, from, etag.as_deref()) {
                Ok((outcome, body)) => (Ok(outcome), body),
                Err(error) => (Err(error), None),
            };
            if to_outcome.send(outcome).is_err() {
                return;
            }
            let Some(mut body) = body else { return };
            let mut reader = body.as_reader();
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let read = match reader.read(&mut piece) {
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                    read => read,
                };
                let is_last = !matches!(read, Ok(1..));
                let sent = to_pieces.send(read.map(|n| {
                    piece.truncate(n);
                    piece
                }));
                if is_last || sent.is_err() {
                    return;
                }
            }
        };
        let failed = |e: std::io::Error| Error::Connection { url: url.to_owned(), why: e.to_string() };
        std::thread::Builder::new().name("transfer".to_owned()).spawn(run).map_err(failed)?;
        Ok(Self { url: url.to_owned(), outcome, pieces })
    }

    /// What came of the request.
    ///
    /// # Errors
    /// Those of [`Client::get`], and [`Error::Stopped`].
    pub(crate) fn outcome(&self, on_tick: &mut OnTick<'_>) -> Result<Outcome> {
        self.wait(&self.outcome, on_tick)?
    }

    /// The next bytes of the body; none at its end, and an error where the connection broke.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub(crate) fn piece(&self, on_tick: &mut OnTick<'_>) -> Result<std::io::Result<Vec<u8>>> {
        self.wait(&self.pieces, on_tick)
    }

    fn wait<T>(&self, receiver: &Receiver<T>, on_tick: &mut OnTick<'_>) -> Result<T> {
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(value) => return Ok(value),
                Err(RecvTimeoutError::Timeout) if on_tick().is_break() => return Err(Error::Stopped),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let why = "the transfer ended unexpectedly".to_owned();
                    return Err(Error::Connection { url: self.url.clone(), why });
                }
            }
        }
    }
}

/// Sleeps for that long.
///
/// # Errors
/// [`Error::Stopped`].
pub(crate) fn pause(duration: Duration, on_tick: &mut OnTick<'_>) -> Result<()> {
    let start = Instant::now();
    while let Some(left) = duration.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        if on_tick().is_break() {
            return Err(Error::Stopped);
        }
        std::thread::sleep(left.min(TICK));
    }
    Ok(())
}
