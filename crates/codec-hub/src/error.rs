//! The error of this crate.

use codec_io::tokens::WeightsHash;
use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model was not found, fetched or accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read, written or renamed.
    #[error("{what} {path}", path = path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// No server answered, or the connection broke and did not come back.
    #[error("{url}: {why}")]
    Connection {
        /// What was asked for.
        url: String,
        /// What happened last.
        why: String,
    },
    /// The server refused.
    #[error("{url}: the server answers {status}{hint}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status code.
        status: u16,
        /// What can be done about it, if anything; starts with a separator.
        hint: String,
    },
    /// The server sends elsewhere in a way that is not followed.
    #[error("{url}: {why}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// Why it is not followed.
        why: &'static str,
    },
    /// The server gives fewer bytes than it announced, again and again.
    #[error("{url}: the transfer ends after {actual} of {expected} bytes; run it again to go on there")]
    Truncated {
        /// What was asked for.
        url: String,
        /// Length of the file.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// Neither the server nor anything else says where the file ends.
    #[error("{url}: the server does not say how long the file is, and nothing else is known to check it by")]
    NoLength {
        /// What was asked for.
        url: String,
    },
    /// A file is of another kind than its name says.
    #[error(
        "{path}: {why}; a server may have sent something else in its place{anew}",
        path = path.display(),
        anew = if *is_here { "; a pull with --force fetches it anew" } else { "" }
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What it is, and what it should be.
        why: String,
        /// Whether it is on this machine, and was not fetched just now.
        is_here: bool,
    },
    /// A file has another length than its card says.
    #[error("{path}: {actual} bytes, expected {expected}", path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Length in the card.
        expected: u64,
        /// Length of the file.
        actual: u64,
    },
    /// A file is not the one that it has to be.
    #[error("{path}: SHA-256 is {actual}, expected {expected}", path = path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// The hash, or the start of the hash, in the card or the lock file.
        expected: String,
        /// The hash of the file.
        actual: WeightsHash,
    },
    /// The weights may be used only without commercial advantage, and that was not accepted.
    #[error("the weights of {model} are licensed under {licence}: they may not be used commercially")]
    NonCommercial {
        /// The model.
        model: String,
        /// Its licence.
        licence: String,
    },
    /// The environment forbids the use of the network.
    #[error("{url}: not fetched, because {variable} is set")]
    Offline {
        /// What would have been asked for.
        url: String,
        /// The variable that forbids it.
        variable: &'static str,
    },
    /// The card does not say where a file can be fetched.
    #[error("the card of {model} does not say where {file} can be fetched")]
    NoOrigin {
        /// The model.
        model: String,
        /// The file.
        file: String,
    },
    /// There is no folder that models could be put into.
    #[error("no folder for models: neither CODEC_MODELS nor XDG_CACHE_HOME nor a home directory is set")]
    NoFolder,
    /// A lock file is not one of ours.
    #[error("{path}: not a lock file: {why}; a pull with --force writes it anew", path = path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process is fetching the same file.
    #[error("{path}: another process is fetching it", path = path.display())]
    Busy {
        /// The unfinished file.
        path: PathBuf,
    },
    /// A setting of the environment cannot be used.
    #[error("{variable}: {why}")]
    Setting {
        /// The variable.
        variable: &'static str,
        /// What is wrong with its value.
        why: String,
    },
    /// The caller asked to stop.
    #[error("stopped; run it again to go on")]
    Stopped,
}

impl Error {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn the_cause_of_a_file_error_is_its_source_alone() {
        let cause = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = Error::file("cannot read", "a.json")(cause());
        assert_eq!(error.to_string(), "cannot read a.json");
        assert_eq!(error.source().map(ToString::to_string), Some(cause().to_string()));
    }
}
