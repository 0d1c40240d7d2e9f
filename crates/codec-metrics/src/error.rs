//! The error of this crate: why a pair cannot be judged.

use std::fmt;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One of the two signals of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The original.
    Reference,
    /// What became of it.
    Degraded,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reference => "reference",
            Self::Degraded => "degraded signal",
        })
    }
}

/// Why there is no score.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The metric is not defined at this sample rate.
    #[error("{metric} needs {needed}, not {actual} Hz")]
    Rate {
        /// The metric.
        metric: &'static str,
        /// The rates that it is defined at.
        needed: &'static str,
        /// The rate given, in Hz.
        actual: u32,
    },
    /// What the metric listens to lies above what this rate can hold.
    #[error("{metric} needs audio at {needed} Hz or more, this has {actual}")]
    RateTooLow {
        /// The metric.
        metric: &'static str,
        /// The lowest rate, in Hz.
        needed: u32,
        /// The rate given, in Hz.
        actual: u32,
    },
    /// The two signals differ in length; align or cut them first.
    #[error("the reference has {reference} samples, the degraded signal {degraded}")]
    Length {
        /// Samples of the reference.
        reference: usize,
        /// Samples of the degraded signal.
        degraded: usize,
    },
    /// The two signals differ in rate or channels, or the metric is for one channel only.
    #[error("{what}: expected {expected}, got {actual}")]
    Format {
        /// The property.
        what: &'static str,
        /// Its value in the reference, or the one that the metric needs.
        expected: u32,
        /// What was given.
        actual: u32,
    },
    /// There is not enough to judge by.
    #[error("{metric} needs {needed} {unit}, there are {actual}")]
    TooShort {
        /// The metric.
        metric: &'static str,
        /// What is counted.
        unit: &'static str,
        /// How many are needed.
        needed: usize,
        /// How many there are.
        actual: usize,
    },
    /// A signal is constant, so there is nothing to hear in it.
    #[error("the {signal} is silent")]
    Silent {
        /// Which one.
        signal: Signal,
    },
    /// A sample is infinite or not a number.
    #[error("sample {index} of the {signal} is not finite")]
    NotFinite {
        /// Which one.
        signal: Signal,
        /// The first such sample.
        index: usize,
    },
    /// The signals are too unlike for their delay to be named.
    #[error("the signals are not alike at any delay (correlation {correlation:.3}, {needed} is needed)")]
    Unlike {
        /// The highest normalized correlation over all delays, 0 to 1.
        correlation: f64,
        /// The least that is believed.
        needed: f64,
    },
    /// No metric has this short name.
    #[error("no such metric as {name}; there are {known}")]
    NoMetric {
        /// The name given.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// The metric is for speech and found none.
    #[error("{metric} finds no speech in the pair")]
    NoSpeech {
        /// The metric.
        metric: &'static str,
    },
    /// The implementation of the metric gave up on this pair.
    #[error("{metric} failed on this pair: {reason}")]
    Failed {
        /// The metric.
        metric: &'static str,
        /// What it said.
        reason: String,
    },
    /// An argument that is not one of the signals lies outside its range.
    #[error("{what} must be {needed}, not {actual}")]
    Argument {
        /// The argument.
        what: &'static str,
        /// Its range.
        needed: &'static str,
        /// What was given.
        actual: f64,
    },
    /// A score exists already for this clip, system and metric.
    #[error("two scores for {metric} of {clip} by {system}")]
    Duplicate {
        /// The clip.
        clip: String,
        /// The system.
        system: String,
        /// The metric.
        metric: String,
    },
    /// A table of scores cannot be read.
    #[error("line {line}: {reason}")]
    Table {
        /// The line, counted from one.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
}
