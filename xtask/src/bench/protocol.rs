//! What the benchmark asks of the processes that it measures.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One line on stdin.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Request {
    /// Comes first.
    Load {
        /// As its card.
        subject: String,
        /// A folder or file with the weights.
        model: PathBuf,
        /// Samples of f32, little-endian, interleaved, at the model's rate.
        audio: PathBuf,
        n_codebooks: usize,
        step_samples: usize,
        n_threads: usize,
    },
    /// The whole clip, once.
    Encode,
    /// The codes of the last encoding, once.
    Decode,
    /// The clip as a stream: the seconds of encoding and decoding of every piece, in turns.
    Step,
    /// So many clips of 2 to 10 seconds: the seconds of encoding them side by side, one after the other with all
    /// threads, and with one thread.
    Clips { n: usize },
}

/// One line on stdout for each request.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Answer {
    #[serde(default)]
    pub(super) seconds: Vec<f64>,
    /// The most memory that the process had so far.
    #[serde(default)]
    pub(super) peak_bytes: u64,
    /// Why there are no seconds.
    #[serde(default)]
    pub(super) error: Option<String>,
}
