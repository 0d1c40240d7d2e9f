//! Deterministic CPU arithmetic for neural audio codecs: the same bits on every machine.

mod attention;
mod depthwise;
mod elementwise;
mod error;
mod gemm;
mod lstm;
mod pool;
mod reduce;
mod simd;
#[cfg(test)]
mod testing;

pub use attention::attention;
pub use depthwise::{Depthwise, depthwise};
pub use elementwise::{Unary, snake, unary, unary_in_place};
pub use error::{Error, Result};
pub use gemm::{PackedMatrix, Rows, Start, gemm};
pub use lstm::{lstm_cell, lstm_sequence};
pub use reduce::{argmax, argmin, group_norm, layer_norm, softmax, squared_norms};
pub use simd::{Level, available_levels, level, with_level};
