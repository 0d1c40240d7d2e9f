//! The error of this crate but for token files: what is wrong, and at which byte.

use std::path::PathBuf;

/// Result of this crate's functions but for those on token files.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why audio or the codes of another program could not be read, converted or written.
///
/// `Format` means that the bytes break the format; `Unsupported` that the format allows them
/// and this crate does not implement them; `Limit` that they exceed a bound of this crate.
///
/// Where a demuxer reads ahead, an `offset` is the position that the source had been read to:
/// the fault lies at or before it, by at most the demuxer's 32 KiB block.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open, read or write.
    #[error("{what} at byte {offset}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Position in the file or stream.
        offset: u64,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file could not be opened, created or renamed.
    #[error("{what} {path}", path = path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is not a single byte.
    #[error("the input is empty (0 bytes)")]
    Empty,
    /// The first bytes belong to no audio format that this crate knows.
    #[error("not an audio format that is known here: the input starts with the bytes {head}")]
    NotAudio {
        /// The first bytes, in hexadecimal.
        head: String,
    },
    /// The bytes break their format.
    #[error("{format}: {what} (byte {offset})")]
    Format {
        /// The format's short name.
        format: &'static str,
        /// The rule that is broken.
        what: &'static str,
        /// Position in the source.
        offset: u64,
    },
    /// A header field has a value that no audio can have.
    #[error("{format}: {what} is {actual} (byte {offset})")]
    Field {
        /// The format's short name.
        format: &'static str,
        /// The field.
        what: &'static str,
        /// The value found.
        actual: u64,
        /// Position of the field, or of the header that holds it.
        offset: u64,
    },
    /// The format allows it, this crate does not implement it.
    #[error("{format}: {what} is not supported (byte {offset})")]
    Unsupported {
        /// The format's short name.
        format: &'static str,
        /// The feature.
        what: String,
        /// Position in the source.
        offset: u64,
    },
    /// The input ends before the first sample that its header promises.
    #[error("{format}: the input ends at byte {offset}, before the first sample")]
    Truncated {
        /// The format's short name.
        format: &'static str,
        /// Length of the input in bytes.
        offset: u64,
    },
    /// A size exceeds a bound of this crate.
    #[error("{what}: {actual} exceeds the limit of {limit}")]
    Limit {
        /// The quantity.
        what: &'static str,
        /// The bound.
        limit: u64,
        /// What was asked for.
        actual: u64,
    },
    /// Audio of another rate or another number of channels than the object was made for.
    #[error("audio is {actual}, expected {expected}")]
    Spec {
        /// What was needed.
        expected: codec_core::AudioSpec,
        /// What was given.
        actual: codec_core::AudioSpec,
    },
    /// Channels that have no one right way to become fewer or more.
    #[error("{from} channels cannot be mixed to {to}: only to one, or from one, is there one way")]
    Mix {
        /// Channels given.
        from: u16,
        /// Channels asked for.
        to: u16,
    },
    /// A sample is NaN or infinite and the sink cannot hold that.
    #[error("channel {channel_idx}, sample {sample_idx} is not a finite number")]
    NotFinite {
        /// Which channel.
        channel_idx: usize,
        /// Which sample, counted from the first one written.
        sample_idx: u64,
    },
    /// A pickle inside a file holds what it should not, or is broken.
    #[error(transparent)]
    Pickle(#[from] codec_pickle::Error),
    /// The types of the codecs refused the values.
    #[error(transparent)]
    Core(#[from] codec_core::Error),
    /// The arithmetic refused the shapes.
    #[error(transparent)]
    Kernels(#[from] codec_kernels::Error),
}
