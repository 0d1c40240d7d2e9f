//! How good does it sound? Objective measures of degraded audio, with statistics over clips.
//!
//! Every function says where its definition comes from, what it takes, its unit and range, and what it cannot
//! judge. Nothing is resampled, mixed, aligned or cut in silence: a [`Pair`] has one rate and length, delays are
//! measured and taken out by [`align`], and a pair that a metric cannot judge is an [`Error`], never a number.
//!
//! ```
//! use codec_core::AudioBuffer;
//! use codec_metrics::align::{self, Resolution};
//! use codec_metrics::Metric;
//!
//! let sound = |t: usize| (t as f32 * 0.05).sin() * (t as f32 * 0.0007).sin();
//! let reference = AudioBuffer::mono(16_000, (0..16_000).map(sound).collect())?;
//! // Thirty samples late and a little rough.
//! let rough = |t: usize| 0.9 * sound(t - 30) + if t % 2 == 0 { 0.01 } else { -0.01 };
//! let degraded = (0..16_000).map(|t| if t < 30 { 0.0 } else { rough(t) }).collect();
//! let degraded = AudioBuffer::mono(16_000, degraded)?;
//! assert!(Metric::SiSdr.judge(&reference, &degraded)? < 0.0);
//!
//! let alignment = align::estimate(&reference, &degraded, 1000, Resolution::Sample)?;
//! assert_eq!(alignment.delay, 30.0);
//! let (reference, degraded) = alignment.apply(&reference, &degraded)?;
//! assert!(Metric::SiSdr.judge(&reference, &degraded)? > 30.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! All arithmetic is f64. It is repeatable to rounding, not to the bit: transforms use the instructions that a
//! machine has.
//!
//! Not here: ViSQOL, and judges that are neural networks (UTMOS, DNSMOS, word error rates, speaker similarity);
//! [`Scores::merge_csv`] takes their results from a table.

pub mod align;
mod error;
pub mod loudness;
mod mel;
mod metric;
mod pair;
pub mod pesq;
mod scores;
pub mod spectral;
pub mod stats;
mod stft;
pub mod stoi;
#[cfg(test)]
mod testing;
mod versions;
pub mod waveform;

pub use error::{Error, Result, Signal};
pub use metric::{Better, Description, Metric};
pub use pair::Pair;
pub use scores::{Merged, Scores, clip_name, table_delimiter};
pub use versions::Versions;
pub use waveform::SiSdr;
