//! The error of this crate: what a caller can act on, never a bare string.

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a codec operation was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size is not the one that the operation needs.
    #[error("{what}: expected {expected}, got {actual}")]
    Shape {
        /// The quantity that is wrong.
        what: &'static str,
        /// What was needed.
        expected: usize,
        /// What was given.
        actual: usize,
    },
    /// A value lies outside its range.
    #[error("{what}: {actual} is not in {min}..={max}")]
    Range {
        /// The quantity that is wrong.
        what: &'static str,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
        /// What was given.
        actual: u64,
    },
    /// A code is not an index into its codebook.
    #[error(
        "codebook {codebook_idx}, position {position}: code {code} is not below the codebook size {size}"
    )]
    Code {
        /// Which codebook.
        codebook_idx: usize,
        /// Which entry of the row.
        position: usize,
        /// The code found.
        code: u32,
        /// Number of entries in the codebook.
        size: u32,
    },
    /// Two things that must describe the same stream do not.
    #[error("{what} differs: {left} against {right}")]
    Mismatch {
        /// The property that differs.
        what: &'static str,
        /// On the one side.
        left: String,
        /// On the other side.
        right: String,
    },
    /// A value is not a finite number.
    #[error("{what}: value {index} is not finite")]
    NotFinite {
        /// The quantity that is wrong.
        what: &'static str,
        /// Where it was found.
        index: usize,
    },
    /// The result does not fit into memory.
    #[error("{what}: no memory for {n_rows} x {row_len} values")]
    Memory {
        /// The quantity that is too large.
        what: &'static str,
        /// Number of rows.
        n_rows: usize,
        /// Values per row.
        row_len: usize,
    },
    /// The codec has no such part.
    #[error("{what} `{value}` is not supported")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Of which codec.
        value: String,
    },
    /// The arithmetic refused its operands.
    #[error(transparent)]
    Kernel(#[from] codec_kernels::Error),
    /// The codec that runs behind the trait failed.
    #[error(transparent)]
    Backend(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Wraps the error of a codec implementation, for example a tensor library's.
    pub fn backend(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Backend(source.into())
    }
}
