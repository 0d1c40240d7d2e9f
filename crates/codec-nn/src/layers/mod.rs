//! layers/mod
