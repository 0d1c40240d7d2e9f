//! Neural audio codec networks on candle.
//!
//! On the CPU every layer runs through `codec-kernels`, so that its bits do not depend on chunking,
//! batch, threads or the CPU model; CUDA and Metal run the same mathematics through candle.
//!
//! # Quick start
//! [`load`] takes a directory as Hugging Face saves it, a single weights file, or the TFLite files of
//! Lyra v2, and finds out by itself which codec it is:
//!
//! ```
//! use codec_core::AudioBuffer;
//! use std::path::Path;
//!
//! # let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/encodec-tiny"));
//! let codec = codec_nn::load(path, &candle_core::Device::Cpu)?.codec;
//! let info = codec.info();
//! let hum = (0..5_000).map(|i| (i as f32 * 0.05).sin()).collect();
//! let audio = AudioBuffer::mono(info.audio.sample_rate, hum)?;
//!
//! let codes = codec.encode(&audio, info.layout.n_codebooks())?;
//! assert_eq!(codes.n_frames(), 5_000_usize.div_ceil(info.hop_length as usize));
//! let mut decoded = codec.decode(&codes)?;
//! decoded.truncate(audio.n_samples());
//!
//! // A stream gives the same bits, however it is cut.
//! let mut encoder = codec.encoder(info.layout.n_codebooks())?;
//! let mut streamed = encoder.push(&audio.slice(0..1_234))?;
//! streamed.append(&encoder.push(&audio.slice(1_234..5_000))?)?;
//! streamed.append(&encoder.finish()?)?;
//! assert_eq!(streamed, codes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod codec;
pub mod error;
pub mod families;
pub mod layers;
mod nets;
mod ops;
pub mod quantizer;
mod tflite;
pub mod weights;

pub use codec::{Net, Networks};
pub use error::{Error, Result};
pub use families::{Loaded, load};
pub use ops::{LoadOptions, Precision, Purpose};
