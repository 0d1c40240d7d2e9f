//! codec-kernels
