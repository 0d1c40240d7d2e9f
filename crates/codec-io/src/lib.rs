//! codec-io
