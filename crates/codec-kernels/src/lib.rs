//! Deterministic CPU arithmetic for neural audio codecs: the same bits on every machine.
//!
//! A result depends on its inputs alone: not on how many rows or items share a call, nor on the number of
//! threads, nor on where a stream was cut, nor on the instructions of the CPU. So codes that were computed in
//! one call equal those of a stream, and a file that one machine wrote is the file that another would write.
//! Three rules give that:
//!
//! - Every element of a product ([`gemm`](gemm()), [`depthwise`](depthwise()), the recurrence of
//!   [`lstm_sequence`]) is one chain of fused multiply-adds with k ascending, started from the bias. It is never
//!   split over k.
//! - Every other sum ([`softmax`], [`layer_norm`], [`rms_norm`], [`group_norm`], the scores of [`attention`](attention())) has
//!   one fixed order.
//! - Functions such as [`Unary::Exp`] are polynomials in operations that IEEE 754 defines to the last bit.
//!
//! Data is time-major, `[time, channels]`: then the window of a convolution is one contiguous row, neighbouring
//! windows overlap, and a convolution is a product without a copy of its input.
//!
//! ```
//! use codec_kernels::{PackedMatrix, Rows, Start, gemm};
//!
//! // Six steps of two channels, and a convolution to one channel with kernel 3 and stride 1.
//! let (n_in, c_in, c_out, kernel, stride) = (6, 2, 1, 3, 1);
//! let xs: Vec<f32> = (0..n_in * c_in).map(|i| i as f32).collect();
//! // [kernel, c_in, c_out]: the difference between the last and the first step of channel 1.
//! let weights = [0.0, -1.0, 0.0, 0.0, 0.0, 1.0];
//! let bias = [0.5];
//!
//! let matrix = PackedMatrix::new(&weights, kernel * c_in, c_out)?;
//! let n_out = (n_in - kernel) / stride + 1;
//! let windows = Rows::new(&xs, n_out, kernel * c_in, stride * c_in)?;
//! let mut out = vec![0.0; n_out * c_out];
//! gemm(windows, &matrix, Start::Bias(&bias), &mut out)?;
//! assert_eq!(out, [4.5; 4]);
//! # Ok::<(), codec_kernels::Error>(())
//! ```
//!
//! Work is split over rayon's current pool, so `ThreadPool::install` chooses the number of threads; small calls
//! stay on the calling thread, as do all within [`on_this_thread`]. The instructions are chosen at run time
//! ([`level`]): AVX-512, AVX2 with FMA, or portable code on `f32::mul_add`. Where FMA is part of the target, as
//! on aarch64, the compiler makes vectors of the portable code (compiled for x86-64 with FMA it is as fast as the
//! AVX2 level); on an x86-64 CPU without FMA it is correct but slow.
//!
//! The guarantee holds for finite results and infinities; which bits a NaN has is not promised. It assumes the
//! default floating-point environment: rounding to nearest, subnormal numbers kept.

mod attention;
mod combine;
mod depthwise;
mod distances;
mod elementwise;
mod error;
mod gaussian;
mod gemm;
mod lstm;
mod memory;
mod norm;
mod pages;
mod peak;
mod pool;
mod process;
mod reduce;
mod rotary;
mod scope;
mod simd;
pub mod sinc;
#[cfg(test)]
mod testing;

pub use attention::{Heads, attention};
pub use combine::{add, add_scaled_rows, add_to, scale_channels};
pub use depthwise::{Depthwise, depthwise, depthwise_input_gradient, depthwise_weight_gradient};
pub use distances::{covered_by_minimum, n_minima, squared_distances};
pub use elementwise::{Unary, snake, snake_beta, snake_gradient, unary, unary_gradient, unary_in_place};
pub use error::{Error, Result};
pub use gaussian::gaussian;
pub use gemm::{PackedMatrix, Rows, Start, gemm, gemm_transposed, quantize_columns};
pub use lstm::{LstmGradient, LstmRun, lstm_cell, lstm_gradient, lstm_sequence};
pub use memory::Memory;
pub use norm::{group_norm, layer_norm, layer_norm_gradient, rms_norm};
pub use peak::multiply_adds;
pub use pool::{for_items, on_this_thread, zeros};
pub use process::{keep_candle_single_threaded, keep_freed_memory};
pub use reduce::{argmax, argmin, softmax, squared_norms};
pub use rotary::{Rotary, rotate, sin_cos};
pub use scope::with_value;
pub use simd::{Level, available_levels, level, with_level};
