//! The language model inside the program: that of the default codec.

use crate::error::Result;
use crate::families::load_bytes;
use crate::model::Model;
use candle_core::Device;

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Size of the embedded file in bytes; `None` when this build has none.
pub fn size() -> Option<usize> {
    FILE.map(<[u8]>::len)
}

/// Loads the embedded model; `None` when this build has none.
///
/// # Errors
/// As [`load_bytes`].
pub fn load(device: &Device) -> Result<Option<Model>> {
    FILE.map(|bytes| load_bytes(bytes, None, device)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::LanguageModel;

    #[test]
    fn what_is_embedded_loads() {
        let model = load(&Device::Cpu).unwrap();
        assert_eq!(model.is_some(), size().is_some());
        if let Some(model) = model {
            assert!(size().unwrap() <= 12_000_000);
            assert!(LanguageModel::codec(&model).is_some(), "nobody would know whose codes it reads");
        }
    }
}
