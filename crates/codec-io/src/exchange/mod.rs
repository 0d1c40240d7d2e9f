//! Codes in the files of other programs: `.ecdc` and `.dac` are read, `.ecdc`, NumPy and safetensors
//! files are written.
//!
//! `docs/exchange.md` says field by field what becomes of what, and what a format cannot carry.

mod arrays;
pub mod dac;
pub mod ecdc;
mod numpy;
mod safetensors;

pub use numpy::{holds_objects, read_npy, write_npy, write_npz};
pub use safetensors::write_safetensors;
