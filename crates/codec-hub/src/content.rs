//! Whether a file is of the kind that its name says.
//!
//! Where no hash is known, this tells a file of a model from a page that asks for a password, from an error
//! in plain text, and from nothing at all.

use crate::error::{Error, Result};
use serde::de::IgnoredAny;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Bytes that tell a kind: as far as the mark of a tar archive goes.
const N_START_BYTES: u64 = 262;
const TAR_MARK: (usize, &[u8]) = (257, b"ustar");
const TFLITE_MARK: (usize, &[u8]) = (4, b"TFL3");
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
const GZIP_MAGIC: &[u8] = b"\x1f\x8b";
/// Bytes that an error shows of a file.
const N_SHOWN_BYTES: usize = 24;

/// Fails unless what lies at `at` is of the kind that the name of `path`, the place that it is meant for, says.
/// A name that says nothing allows everything but an empty file.
///
/// # Errors
/// [`Error::Content`], and [`Error::File`] when it cannot be read.
pub(crate) fn check(at: &Path, path: &Path, is_here: bool) -> Result<()> {
    let why = fault(at, path).map_err(Error::file("cannot read", at))?;
    why.map_or(Ok(()), |why| Err(Error::Content { path: path.to_owned(), why, is_here }))
}

/// What is wrong with a file, if anything is.
fn fault(at: &Path, path: &Path) -> std::io::Result<Option<String>> {
    let file = File::open(at)?;
    let n_bytes = file.metadata()?.len();
    if n_bytes == 0 {
        return Ok(Some("empty".to_owned()));
    }
    let mut reader = BufReader::new(file);
    let mut start = Vec::new();
    reader.by_ref().take(N_START_BYTES).read_to_end(&mut start)?;
    let has = |(at, mark): (usize, &[u8])| start.get(at..).is_some_and(|rest| rest.starts_with(mark));
    let (is_right, kind) = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => (is_json(start.as_slice().chain(reader)), "JSON"),
        Some("safetensors") => {
            let header = start.first_chunk().map(|len| u64::from_le_bytes(*len));
            let header = header.filter(|len| *len <= n_bytes - 8 && has((8, b"{")));
            let is_right = header.is_some_and(|len| is_json(start[8..].chain(reader).take(len)));
            (is_right, "a safetensors file")
        }
        Some("bin" | "ckpt" | "dev" | "pt" | "pth" | "th") => {
            let is_pickle = matches!(start[..], [0x80, 2..=5, ..]);
            (is_pickle || start.starts_with(ZIP_MAGIC), "a file of torch.save")
        }
        Some("nemo") => (has(TAR_MARK) || start.starts_with(GZIP_MAGIC), "a tar archive"),
        Some("tflite") => (has(TFLITE_MARK), "a TFLite file"),
        _ => return Ok(None),
    };
    let shown = start[..start.len().min(N_SHOWN_BYTES)].escape_ascii();
    Ok((!is_right).then(|| format!("not {kind}: it starts with `{shown}`")))
}

fn is_json(reader: impl Read) -> bool {
    serde_json::from_reader::<_, IgnoredAny>(reader).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_is_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("part");
        let is_right = |name: &str, bytes: &[u8]| {
            std::fs::write(&at, bytes).unwrap();
            match check(&at, &folder.path().join(name), false) {
                Ok(()) => true,
                Err(Error::Content { .. }) => false,
                Err(error) => panic!("{error}"),
            }
        };
        let safetensors = [&2_u64.to_le_bytes()[..], b"{}"].concat();
        let tar = [&[0; 257][..], b"ustar\0"].concat();
        let right: [(&str, &[u8]); 10] = [
            ("config.json", b" {\"a\": [1]}\n"),
            ("model.safetensors", &safetensors),
            ("pytorch_model.bin", b"PK\x03\x04..."),
            ("weights.pth", b"\x80\x02}q\x00."),
            ("encodec.th", b"\x80\x04}."),
            ("ckpt.dev", b"PK\x03\x04"),
            ("codec.nemo", &tar),
            ("old.nemo", b"\x1f\x8b\x08"),
            ("lyragan.tflite", b"\x1c\0\0\0TFL3"),
            ("LICENSE", b"whatever"),
        ];
        for (name, bytes) in right {
            assert!(is_right(name, bytes), "{name}");
            assert!(!is_right(name, b""), "{name}: empty");
            let is_page_right = name == "LICENSE";
            assert_eq!(is_right(name, b"<html>Log in</html>"), is_page_right, "{name}: a page");
        }
        // Half of a file.
        assert!(!is_right("config.json", b"{\"a\": [1"));
        assert!(!is_right("model.safetensors", &safetensors[..9]));
        assert!(!is_right("model.safetensors", &safetensors[..5]));
        assert!(!is_right("codec.nemo", &tar[..200]));
    }
}
