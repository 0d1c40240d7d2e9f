//! The error of this crate.

use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a language model was not loaded, trained or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: cannot be read or written", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file breaks its format.
    #[error("{path}: {why}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// How it breaks.
        why: String,
    },
    /// A configuration is wrong.
    #[error("configuration: {field}: {why}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Something that is specified but not implemented.
    #[error("{what} `{value}` is not supported")]
    Unsupported {
        /// The setting.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// A size is not the one that is needed.
    #[error("{what}: expected {expected}, got {actual}")]
    Shape {
        /// The quantity.
        what: &'static str,
        /// What was needed.
        expected: usize,
        /// What was given.
        actual: usize,
    },
    /// A token stands where its pattern has another.
    #[error("step {step_idx}, stream {stream_idx}: token {token} does not belong here")]
    Token {
        /// The step of the sequence.
        step_idx: usize,
        /// The stream of the sequence.
        stream_idx: usize,
        /// The token found.
        token: u32,
    },
    /// There is nothing to train on or to judge.
    #[error("data: {why}")]
    Data {
        /// What is missing.
        why: String,
    },
    /// Two things that must belong together do not.
    #[error("{what} differs: {left} against {right}")]
    Mismatch {
        /// The property that differs.
        what: &'static str,
        /// On the one side.
        left: String,
        /// On the other side.
        right: String,
    },
    /// The model's numbers are not finite.
    #[error("step {step}: {what} is {value}")]
    NotFinite {
        /// The step of the run or of the sequence.
        step: u64,
        /// What is not finite.
        what: String,
        /// Its value.
        value: f64,
    },
    /// From the layers.
    #[error(transparent)]
    Nn(#[from] codec_nn::Error),
    /// From the codec.
    #[error(transparent)]
    Core(#[from] codec_core::Error),
    /// From the arithmetic.
    #[error(transparent)]
    Kernels(#[from] codec_kernels::Error),
    /// From audio files.
    #[error(transparent)]
    Audio(#[from] codec_io::Error),
    /// From the parts that all training shares.
    #[error(transparent)]
    Train(#[from] codec_train::Error),
    /// From the tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn format(path: impl Into<PathBuf>, why: impl ToString) -> Self {
        Self::Format { path: path.into(), why: why.to_string() }
    }

    pub(crate) fn config(field: &'static str, why: impl Into<String>) -> Self {
        Self::Config { field, why: why.into() }
    }
}
