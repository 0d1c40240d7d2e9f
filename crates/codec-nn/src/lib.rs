//! Neural audio codec networks on candle.
//!
//! On the CPU every layer runs through `codec-kernels`, so that its bits do not depend on chunking,
//! batch, threads or the CPU model; CUDA and Metal run the same mathematics through candle.

mod codec;
pub mod error;
pub mod families;
pub mod layers;
mod nets;
mod ops;
mod tflite;
pub mod weights;

pub use error::{Error, Result};
pub use families::{Loaded, load};
