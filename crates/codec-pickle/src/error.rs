//! The error of this crate.

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a pickle was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The pickle breaks off or does not fit together.
    #[error("pickle at byte {offset}: {why}")]
    Format {
        /// Where it breaks.
        offset: usize,
        /// How it breaks.
        why: &'static str,
    },
    /// An opcode that the machine does not know.
    #[error("pickle opcode {opcode:#04x} at byte {offset} is not supported")]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// Where it stands.
        offset: usize,
    },
    /// A class or function that the caller did not allow.
    #[error("pickle class `{class}` at byte {offset} is not allowed")]
    Class {
        /// Its module and name.
        class: String,
        /// Where its name ends.
        offset: usize,
    },
    /// The pickle is longer than any that the caller expects.
    #[error("the pickle takes more than {max} {what}")]
    Limit {
        /// The quantity.
        what: &'static str,
        /// Its limit.
        max: usize,
    },
}
