//! Types, traits and quantizers of neural audio codecs.
//!
//! This crate knows audio buffers, codes, their layout, and how codebooks turn latents into codes.
//! It does no input or output and knows no codec family.
//! No public function panics, whatever it is given.

pub mod audio;
pub mod codec;
pub mod codes;
pub mod error;
pub mod info;
pub mod quantizer;

pub use audio::{AudioBuffer, AudioSpec};
pub use codec::{Codec, Decoder, Encoder};
pub use codes::{CodeLayout, CodebookSpec, Codes};
pub use error::{Error, Result};
pub use info::{CodecInfo, Ratio, Segment};
