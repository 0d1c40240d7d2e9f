//! What a run is trained on, in short, so that a resumed one notices other data.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Component, Path};

/// A digest of a list of recordings, in its order.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Fingerprint {
    /// Recordings.
    n_clips: u64,
    /// FNV-1a of everything that was pushed.
    hash: u64,
}

impl Default for Fingerprint {
    fn default() -> Self {
        Self { n_clips: 0, hash: 0xCBF2_9CE4_8422_2325 }
    }
}

impl Fingerprint {
    /// Takes the next recording: its path as seen from the folder or the manifest `source`, its kind, and numbers
    /// that training depends on.
    pub fn push(&mut self, source: &Path, path: &Path, kind: &str, numbers: impl IntoIterator<Item = u64>) {
        let base = if source.is_dir() { Some(source) } else { source.parent() };
        let own = base.and_then(|base| path.strip_prefix(base).ok()).unwrap_or(path);
        // The same on every system.
        for part in own.components().filter(|part| !matches!(part, Component::CurDir)) {
            self.bytes(part.as_os_str().to_string_lossy().as_bytes());
            self.bytes(b"/");
        }
        self.bytes(b"\0");
        self.bytes(kind.as_bytes());
        self.bytes(b"\0");
        numbers.into_iter().for_each(|number| self.bytes(&number.to_le_bytes()));
        self.n_clips += 1;
    }

    /// Compares with what a checkpoint was trained on; one that does not say it is believed.
    ///
    /// # Errors
    /// [`Error::DataChanged`].
    pub fn check(&self, then: Option<&Self>) -> Result<()> {
        match then {
            Some(then) if then != self => {
                let text = |own: &Self| format!("{} clips ({:016x})", own.n_clips, own.hash);
                Err(Error::DataChanged { then: text(then), now: text(self) })
            }
            _ => Ok(()),
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let next = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        self.hash = bytes.iter().fold(self.hash, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(source: &str, clips: &[(&str, &str, u64)]) -> Fingerprint {
        let mut own = Fingerprint::default();
        for (path, kind, number) in clips {
            own.push(Path::new(source), &Path::new(source).with_file_name(path), kind, [*number]);
        }
        own
    }

    #[test]
    fn tells_lists_apart_but_not_where_they_lie() {
        let own = of("x/all.tsv", &[("a.wav", "speech", 1), ("b/c.wav", "music", 2)]);
        assert_eq!(own, of("y/z/all.tsv", &[("a.wav", "speech", 1), ("./b/c.wav", "music", 2)]));
        for other in [
            &[("a.wav", "speech", 1)][..],
            &[("b/c.wav", "music", 2), ("a.wav", "speech", 1)],
            &[("a.wav", "speech", 1), ("b/d.wav", "music", 2)],
            &[("a.wav", "speech", 1), ("b/c.wav", "sound", 2)],
            &[("a.wav", "speech", 1), ("b/c.wav", "music", 3)],
        ] {
            let error = of("x/all.tsv", other).check(Some(&own)).unwrap_err();
            assert!(matches!(error, Error::DataChanged { .. }));
            assert!(error.to_string().contains("2 clips"), "{error}");
        }
        own.check(Some(&own)).unwrap();
        own.check(None).unwrap();
    }
}
