//! nets/mod
