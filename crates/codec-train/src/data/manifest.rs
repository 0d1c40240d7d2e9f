//! Which clips there are: folders, and manifests in TSV or JSON lines.

use crate::config::SourceConfig;
use crate::error::{Error, Result};
use codec_io::AudioReader;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Endings of names that a folder is searched for; what a file is, its content says later.
const EXTENSIONS: [&str; 17] = [
    "aac", "aif", "aiff", "caf", "flac", "m4a", "mka", "mkv", "mp2", "mp3", "mp4", "oga", "ogg", "opus",
    "wav", "wave", "webm",
];
/// Kind of clips of which nobody says one.
const NO_KIND: &str = "audio";

/// One audio file.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// The file.
    pub path: PathBuf,
    /// What it is, such as `speech`.
    pub kind: String,
    /// Length, where it is known without decoding.
    pub seconds: Option<f64>,
    /// How often it is chosen, relative to the others of its source and to its length.
    pub weight: f64,
    /// What else its manifest says of it, by column.
    pub columns: BTreeMap<String, String>,
}

/// Whether a file is a manifest, by its name.
pub fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "tsv" || e == "jsonl")
}

/// The clips of a source, in a fixed order.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`]; [`Error::Data`] when there is none.
pub fn clips(source: &SourceConfig) -> Result<Vec<Clip>> {
    let mut clips = if source.path.is_dir() { folder(source)? } else { manifest(source)? };
    for clip in clips.iter_mut().filter(|clip| clip.seconds.is_none()) {
        clip.seconds = seconds(&clip.path);
    }
    if clips.is_empty() {
        return Err(Error::Data { why: format!("{} holds no audio", source.path.display()) });
    }
    Ok(clips)
}

fn folder(source: &SourceConfig) -> Result<Vec<Clip>> {
    let mut paths = Vec::new();
    for entry in walkdir::WalkDir::new(&source.path).follow_links(true) {
        let entry = entry.map_err(|e| Error::Io { path: source.path.clone(), source: e.into() })?;
        let extension = entry.path().extension().and_then(|e| e.to_str()).map(str::to_lowercase);
        if entry.file_type().is_file() && extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str())) {
            paths.push(entry.into_path());
        }
    }
    paths.sort();
    let kind = source.kind.as_deref().unwrap_or(NO_KIND);
    let clip =
        |path| Clip { path, kind: kind.to_owned(), seconds: None, weight: 1.0, columns: BTreeMap::new() };
    Ok(paths.into_iter().map(clip).collect())
}

fn manifest(source: &SourceConfig) -> Result<Vec<Clip>> {
    let path = &source.path;
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let rows = match path.extension().and_then(|e| e.to_str()) {
        Some("jsonl") => json_lines(path, &text)?,
        Some("tsv") => tab_separated(&text),
        _ => {
            let why = "a source is a folder, a .tsv or a .jsonl".to_owned();
            return Err(Error::Format { path: path.clone(), why });
        }
    };
    let base = path.parent().unwrap_or(Path::new(""));
    let mut clips = Vec::new();
    for (row_idx, row) in rows.into_iter().enumerate() {
        if source.only.iter().any(|(column, value)| row.get(column) != Some(value)) {
            continue;
        }
        let number = |column: &str| -> Result<Option<f64>> {
            let Some(text) = row.get(column) else { return Ok(None) };
            let value = text.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0);
            let why = || format!("clip {}: {column} is `{text}`, not a number", row_idx + 1);
            Ok(Some(value.ok_or_else(|| Error::Format { path: path.clone(), why: why() })?))
        };
        let Some(file) = row.get("file").or_else(|| row.get("path")) else {
            let why = format!("clip {} has no `file`", row_idx + 1);
            return Err(Error::Format { path: path.clone(), why });
        };
        let kind = source.kind.as_ref().or_else(|| row.get("kind"));
        clips.push(Clip {
            path: base.join(file),
            kind: kind.map_or(NO_KIND, String::as_str).to_owned(),
            seconds: number("seconds")?,
            weight: number("weight")?.unwrap_or(1.0),
            columns: row,
        });
    }
    Ok(clips)
}

type Row = BTreeMap<String, String>;

fn tab_separated(text: &str) -> Vec<Row> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let names: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
    let row = |line: &str| {
        let cells = names.iter().zip(line.split('\t'));
        cells.map(|(name, cell)| ((*name).to_owned(), cell.to_owned())).collect()
    };
    lines.map(row).collect()
}

fn json_lines(path: &Path, text: &str) -> Result<Vec<Row>> {
    let row = |(line_idx, line): (usize, &str)| {
        let object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line);
        let object = object.map_err(|e| Error::Format {
            path: path.to_owned(),
            why: format!("line {}: {e}", line_idx + 1),
        })?;
        let text = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        Ok(object.into_iter().map(|(name, value)| (name, text(value))).collect())
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(row).collect()
}

/// Length by the header alone.
fn seconds(path: &Path) -> Option<f64> {
    let reader = AudioReader::open(path).ok()?;
    Some(reader.n_samples()? as f64 / f64::from(reader.spec().sample_rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: PathBuf) -> SourceConfig {
        SourceConfig { path, kind: None, only: BTreeMap::new(), weight: 1.0 }
    }

    #[test]
    fn manifests_say_what_clips_are() {
        let folder = tempfile::tempdir().unwrap();
        let tsv = folder.path().join("all.tsv");
        std::fs::write(&tsv, "file\tkind\tseconds\na.ogg\tspeech\t3.5\nb/c.ogg\tmusic\t2\n").unwrap();
        let clips_of = |source: &SourceConfig| clips(source).unwrap();
        let all = clips_of(&source(tsv.clone()));
        assert_eq!((all.len(), all[0].kind.as_str(), all[0].seconds), (2, "speech", Some(3.5)));
        assert_eq!(all[1].path, folder.path().join("b/c.ogg"));
        let only = BTreeMap::from([("kind".to_owned(), "music".to_owned())]);
        assert_eq!(clips_of(&SourceConfig { only, ..source(tsv) }).len(), 1);

        let jsonl = folder.path().join("all.jsonl");
        std::fs::write(&jsonl, "{\"path\": \"a.ogg\", \"weight\": 2}\n").unwrap();
        let all = clips_of(&source(jsonl));
        assert_eq!((all[0].weight, all[0].kind.as_str()), (2.0, NO_KIND));
    }

    #[test]
    fn wrong_manifests_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("a.tsv", "name\nx\n"),
            ("b.tsv", "file\tseconds\nx\tlong\n"),
            ("c.jsonl", "{\"file\": 1"),
            ("d.txt", "x"),
            ("e.tsv", "file\n"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            assert!(clips(&source(path)).is_err(), "{name}");
        }
    }
}
