//! Networks that several families share.

pub(crate) mod seanet;
