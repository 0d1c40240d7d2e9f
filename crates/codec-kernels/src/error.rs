//! The error of this crate: which size was wrong, what was needed and what was given.

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a kernel refused its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// A length does not divide into whole rows.
    #[error("{what}: {actual} is not a multiple of {unit}")]
    Uneven {
        /// The quantity that is wrong.
        what: &'static str,
        /// What it must be a multiple of.
        unit: usize,
        /// What was given.
        actual: usize,
    },
    /// A size that must be at least one is zero.
    #[error("{what} is zero")]
    Zero {
        /// The quantity that is zero.
        what: &'static str,
    },
    /// A product of sizes does not fit in memory.
    #[error("{what} overflows the address space")]
    Overflow {
        /// The quantity that is too large.
        what: &'static str,
    },
    /// A matrix was packed for another kind of product.
    #[error("the matrix was packed for another kind of product")]
    Packing,
    /// A query's range of keys does not lie within the keys.
    #[error("query {query_idx}: keys {start}..{end} are not within 0..{n_keys}")]
    KeyRange {
        /// Which query.
        query_idx: usize,
        /// First key asked for.
        start: usize,
        /// One past the last key asked for.
        end: usize,
        /// Keys given.
        n_keys: usize,
    },
    /// This CPU cannot run the instructions of a level.
    #[error("this CPU does not have the instructions of {level:?}")]
    Level {
        /// The level asked for.
        level: crate::Level,
    },
}

/// Checks that `actual` is `expected`.
pub(crate) fn expect_len(what: &'static str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual { Ok(()) } else { Err(Error::Shape { what, expected, actual }) }
}

/// Number of rows of `row_len` in `len`.
pub(crate) fn count_rows(what: &'static str, len: usize, row_len: usize) -> Result<usize> {
    if row_len == 0 {
        return Err(Error::Zero { what });
    }
    if len.is_multiple_of(row_len) {
        Ok(len / row_len)
    } else {
        Err(Error::Uneven { what, unit: row_len, actual: len })
    }
}

/// `a * b`, refused where it overflows.
pub(crate) fn product(what: &'static str, a: usize, b: usize) -> Result<usize> {
    a.checked_mul(b).ok_or(Error::Overflow { what })
}
