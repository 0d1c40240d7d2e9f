//! The optional shared test data: `CODEC_SHARED`, or `shared` beside the checkout.

use std::path::PathBuf;

/// Lyra's published files, when they are there.
pub(crate) fn lyra() -> Option<PathBuf> {
    let shared = std::env::var_os("CODEC_SHARED").filter(|value| !value.is_empty());
    let folder = shared.map_or_else(|| PathBuf::from("../shared"), PathBuf::from).join("lyra");
    folder.is_dir().then_some(folder)
}
