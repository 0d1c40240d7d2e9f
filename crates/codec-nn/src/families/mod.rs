//! families/mod
