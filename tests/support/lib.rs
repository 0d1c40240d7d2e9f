//! What the tests of the workspace share: reference vectors and how results are compared with them.

pub mod compare;
pub mod vectors;

use std::io::Write;

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// Result of a test.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Says that something was skipped, on the standard error itself: the test harness keeps what passing
/// tests print.
pub fn say_skipped(what: &str) {
    // A closed standard error is no reason to fail.
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}
