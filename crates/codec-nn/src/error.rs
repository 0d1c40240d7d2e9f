//! The error of this crate.

use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a checkpoint was not loaded or a layer did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{path}: cannot be read", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What lies at a path is not a codec that we know.
    #[error("{path}: not a known codec: {found}", path = path.display())]
    Unrecognized {
        /// The file or directory.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// A weight is not a finite number.
    #[error("{name}: value {index} is not finite")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Which of its values.
        index: usize,
    },
    /// The bytes of a checkpoint break its format.
    #[error("{what} at byte {offset}: {why}")]
    Format {
        /// The kind of file.
        what: &'static str,
        /// Where it breaks.
        offset: usize,
        /// How it breaks.
        why: String,
    },
    /// The configuration asks for something that is specified but not implemented.
    #[error("{what} `{value}` is not supported")]
    Unsupported {
        /// The setting.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// The configuration is wrong.
    #[error("configuration: {field}: {why}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Tensors that the model needs are not in the checkpoint.
    #[error("the checkpoint lacks {}", some_of(names))]
    MissingTensors {
        /// Their names.
        names: Vec<String>,
    },
    /// Tensors of the checkpoint that the model never read.
    #[error("the checkpoint holds tensors that the model does not know: {}", some_of(names))]
    UnreadTensors {
        /// Their names.
        names: Vec<String>,
    },
    /// The checkpoint was recognized, and its tensors are not those of the model.
    #[error(
        "recognized as {family}: {n_fit} of the {n_needed} tensors that it needs are there{missing}{unknown}{other}",
        n_needed = n_fit + missing.len(),
        missing = list("; missing are ", missing),
        unknown = list("; not known are ", unknown),
        other = looks_like.as_ref().map_or_else(String::new, |family| {
            format!("; the configuration leads there, but the tensors are named like those of {family}")
        })
    )]
    Misfit {
        /// The family.
        family: &'static str,
        /// How many of the tensors that the model needs are there.
        n_fit: usize,
        /// Names of those that are not.
        missing: Vec<String>,
        /// Names of tensors that the model does not know.
        unknown: Vec<String>,
        /// The families whose tensors are named so, where that is not this one.
        looks_like: Option<String>,
    },
    /// The checkpoint was recognized, and does not load for another reason.
    #[error("recognized as {family}")]
    Recognized {
        /// The family.
        family: &'static str,
        /// The reason.
        source: Box<Error>,
    },
    /// A tensor or an input has another shape than needed.
    #[error("{name}: expected shape {expected:?}, got {actual:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// What was needed.
        expected: Vec<usize>,
        /// What was given.
        actual: Vec<usize>,
    },
    /// The state of a stream was given to a layer that did not make it.
    #[error("the state of a stream belongs to another layer: expected a {expected}")]
    ForeignState {
        /// The type that the layer makes.
        expected: &'static str,
    },
    /// The tensor library failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The arithmetic kernels refused their input.
    #[error(transparent)]
    Kernels(#[from] codec_kernels::Error),
    /// A pickle holds what no checkpoint of ours has, or is broken.
    #[error(transparent)]
    Pickle(#[from] codec_pickle::Error),
    /// Codes, audio or a quantizer are not as they must be.
    #[error(transparent)]
    Core(#[from] codec_core::Error),
}

/// Names that a message has room for.
const N_NAMES_SHOWN: usize = 5;

/// The first names of a list, and how many there are beside them.
fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(N_NAMES_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(N_NAMES_SHOWN) {
        0 => shown,
        n_more => format!("{shown} and {n_more} more"),
    }
}

/// The same after what it is about; nothing when there are none.
fn list(about: &str, names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("{about}{}", some_of(names)) }
}

impl Error {
    /// [`Error::Config`].
    pub(crate) fn config(field: &'static str, why: impl Into<String>) -> Self {
        Self::Config { field, why: why.into() }
    }

    /// [`Error::Unsupported`].
    pub(crate) fn unsupported(what: &'static str, value: impl ToString) -> Self {
        Self::Unsupported { what, value: value.to_string() }
    }
}

impl From<Error> for codec_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Core(core) => core,
            other => Self::backend(other),
        }
    }
}
