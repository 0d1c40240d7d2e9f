//! Audio files, resampling, token files, the files of other programs, and model cards.
//!
//! ```
//! use codec_core::AudioBuffer;
//! use codec_io::resample::Resampler;
//! use codec_io::{AudioReader, WavFormat, WavWriter};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("tone.wav");
//! let tone = AudioBuffer::mono(44_100, (0..44_100).map(|t| (t as f32 * 0.05).sin() / 2.0).collect())?;
//! let mut writer = WavWriter::create(&path, tone.spec(), WavFormat::Float32)?;
//! writer.write(&tone)?;
//! let summary = writer.finish()?;
//! assert_eq!(summary.n_clipped, 0);
//!
//! let mut reader = AudioReader::open(&path)?;
//! let mut resampler = Resampler::new(reader.spec().sample_rate, 24_000, reader.spec().channels)?;
//! let mut audio = AudioBuffer::empty(resampler.spec())?;
//! while let Some(piece) = reader.read()? {
//!     audio.append(&resampler.push(&piece)?)?;
//! }
//! audio.append(&resampler.finish()?)?;
//! assert_eq!(audio.n_samples(), 24_000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod atomic;
pub mod audio;
pub mod card;
mod convert;
mod error;
pub mod exchange;
pub mod mix;
pub mod resample;
pub mod tokens;

pub use audio::{AudioReader, WavFormat, WavSummary, WavWriter};
pub use convert::Converter;
pub use error::{Error, Result};
pub use resample::Resampler;
