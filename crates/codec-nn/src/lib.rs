//! codec-nn
