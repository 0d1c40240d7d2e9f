//! Networks that several families share.

pub(crate) mod convnext;
pub(crate) mod dacnet;
mod groups;
mod int8;
pub(crate) mod mdct;
pub(crate) mod numbered;
pub(crate) mod seanet;
pub(crate) mod streaming_graph;
pub(crate) mod vocos;
