//! What the tests of the workspace share: reference vectors and how results are compared with them.

pub mod compare;
pub mod vectors;

/// Result of a test.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
