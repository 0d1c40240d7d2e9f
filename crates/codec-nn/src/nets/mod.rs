//! Networks that several families share.

mod groups;
mod int8;
pub(crate) mod seanet;
pub(crate) mod streaming_graph;
