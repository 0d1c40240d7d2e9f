//! What can go wrong in training.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of training.
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
    /// The configuration of a run is wrong.
    #[error("configuration: {field}: {why}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Another process trains in the folder of a run.
    #[error("{folder}: another process trains in this folder", folder = folder.display())]
    Busy {
        /// The run's folder.
        folder: PathBuf,
    },
    /// The data is not what a checkpoint was trained on.
    #[error("the data is not what the checkpoint was trained on: {then} then, {now} now")]
    DataChanged {
        /// What it was.
        then: String,
        /// What it is.
        now: String,
    },
    /// There is nothing to train on.
    #[error("data: {why}")]
    Data {
        /// What is missing.
        why: String,
    },
    /// A run went wrong numerically; its last good checkpoint stands.
    #[error("step {step}: {what} is {value}; resume from an earlier checkpoint with a lower learning rate")]
    Diverged {
        /// The step.
        step: u64,
        /// What exploded.
        what: String,
        /// Its value.
        value: f64,
    },
    /// A thread of the loader ended.
    #[error("a thread that loads audio has ended")]
    Loader,
    /// From the search for a model to go on from.
    #[error(transparent)]
    Model(Box<codec_models::Error>),
    /// From the networks.
    #[error(transparent)]
    Nn(#[from] codec_nn::Error),
    /// From the audio files.
    #[error(transparent)]
    Audio(#[from] codec_io::Error),
    /// From the quantizers and buffers.
    #[error(transparent)]
    Core(#[from] codec_core::Error),
    /// From the tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<codec_models::Error> for Error {
    fn from(error: codec_models::Error) -> Self {
        Self::Model(Box::new(error))
    }
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn config(field: &'static str, why: impl Into<String>) -> Self {
        Self::Config { field, why: why.into() }
    }
}
