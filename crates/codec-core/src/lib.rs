//! Types, traits and quantizers of neural audio codecs.
//!
//! This crate knows audio buffers, codes, their layout, and how codebooks turn latents into codes.
//! It does no input or output and knows no codec family.
//! No public function panics, whatever it is given.
//!
//! # Quick start
//! ```
//! use codec_core::quantizer::{Latents, Quantizer, Rvq};
//!
//! // Two codebooks of four entries with two values each: a coarse grid and a fine one.
//! let codebooks = [
//!     [-1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0],
//!     [-0.3, -0.3, -0.3, 0.3, 0.3, -0.3, 0.3, 0.3],
//! ];
//! let rvq = Rvq::from_codebooks(codebooks.as_flattened(), 4, 2)?;
//!
//! // Three frames in, one row of codes per codebook out.
//! let latents = [0.8, -1.4, -0.6, 1.2, 1.1, 0.9];
//! let codes = rvq.encode(Latents::new(&latents, 2)?, 2)?;
//! assert_eq!(codes.row(0), Some([2, 1, 3].as_slice()));
//! assert_eq!(codes.row(1), Some([0, 3, 2].as_slice()));
//!
//! // The first codebook alone gives a coarser version of the same frames.
//! let coarse = rvq.decode(&codes.truncated(1)?)?;
//! assert_eq!(coarse, [1.0, -1.0, -1.0, 1.0, 1.0, 1.0]);
//! let fine = rvq.decode(&codes)?;
//! let squared_error = |xs: &[f32]| xs.iter().zip(&latents).map(|(x, y)| (x - y) * (x - y)).sum::<f32>();
//! assert!(squared_error(&fine) < squared_error(&coarse));
//! # Ok::<(), codec_core::Error>(())
//! ```

pub mod audio;
pub mod channels;
pub mod codec;
pub mod codes;
pub mod error;
pub mod info;
pub mod quantizer;

pub use audio::{AudioBuffer, AudioSpec};
pub use channels::PerChannel;
pub use codec::{Codec, Decoder, Encoder};
pub use codes::{CodeLayout, CodebookSpec, Codes};
pub use error::{Error, Result};
pub use info::{CodecInfo, Delays, Ratio, Segment};
