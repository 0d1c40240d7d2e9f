//! Audio to train on: clips, crops, and batches that are ready when they are needed.

mod fingerprint;
mod library;
mod loader;
mod manifest;

pub use fingerprint::Fingerprint;
pub use library::{Crop, Library, decode};
pub(crate) use loader::batch;
pub use loader::{Batch, Loader};
pub use manifest::{Clip, clips, is_manifest};
