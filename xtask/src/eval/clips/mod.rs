//! The clips of a run: from a folder, files, a table, or the built-in ones.

mod synthetic;

use anyhow::{Context, Result, bail, ensure};
use codec_core::AudioBuffer;
use codec_io::{AudioReader, audio};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// A clip to code.
#[derive(Debug)]
pub(crate) struct Clip {
    pub(crate) name: String,
    /// `speech`, `music` or another word; empty when it is not known.
    pub(crate) kind: String,
    /// Of the file, or of the samples of a built-in clip; empty when the file cannot be read.
    pub(crate) sha256: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Memory(AudioBuffer),
}

impl Clip {
    /// The whole clip.
    pub(crate) fn read(&self) -> Result<AudioBuffer> {
        let audio = match &self.source {
            Source::Memory(audio) => audio.clone(),
            Source::File(path) => {
                let mut reader = AudioReader::open(path).with_context(|| path.display().to_string())?;
                reader.read_to_end().with_context(|| path.display().to_string())?
            }
        };
        ensure!(!audio.is_empty(), "holds no samples");
        let odd = audio.channels().any(|samples| samples.iter().any(|x| !x.is_finite()));
        ensure!(!odd, "has samples that are not finite numbers");
        Ok(audio)
    }

    fn from_file(name: String, kind: String, path: PathBuf) -> Self {
        let sha256 = std::fs::read(&path).map(|bytes| hex(&Sha256::digest(bytes))).unwrap_or_default();
        Self { name, kind, sha256, source: Source::File(path) }
    }
}

/// The built-in clips: synthetic speech and sounds, made here.
pub(crate) fn built_in() -> Result<Vec<Clip>> {
    let clip = |(name, kind, audio): (&str, &str, AudioBuffer)| {
        let mut hash = Sha256::new();
        hash.update(audio.spec().sample_rate.to_le_bytes());
        for channel in audio.channels() {
            channel.iter().for_each(|x| hash.update(x.to_le_bytes()));
        }
        let sha256 = hex(&hash.finalize());
        Clip { name: name.to_owned(), kind: kind.to_owned(), sha256, source: Source::Memory(audio) }
    };
    Ok(synthetic::clips()?.into_iter().map(clip).collect())
}

/// The clips that the user named: folders, audio files, and tables with the columns `file` or `clip`, and `kind`.
///
/// In a folder the topmost folder below it is the kind.
///
/// # Errors
/// When a place does not exist, a table has no such column, or two clips have one name.
pub(crate) fn open(places: &[PathBuf]) -> Result<Vec<Clip>> {
    let mut clips = Vec::new();
    for place in places {
        if place.is_dir() {
            from_folder(place, &mut clips)?;
        } else if is_table(place) {
            from_table(place, &mut clips)?;
        } else {
            ensure!(place.is_file(), "{}: no such file or folder", place.display());
            let name = place.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            clips.push(Clip::from_file(name, String::new(), place.clone()));
        }
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = clips.iter().find(|clip| !names.insert(clip.name.as_str())) {
        bail!("two clips are called {}", twice.name);
    }
    ensure!(!clips.is_empty(), "no clips");
    Ok(clips)
}

/// At most `n` clips, the kinds in turn, each spread over its clips; in their first order.
pub(crate) fn choose(clips: &[Clip], n: usize) -> BTreeSet<usize> {
    let mut by_kind: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (clip_idx, clip) in clips.iter().enumerate() {
        by_kind.entry(clip.kind.as_str()).or_default().push(clip_idx);
    }
    // How many of each kind: one after the other until there are enough.
    let mut shares: BTreeMap<&str, usize> = by_kind.keys().map(|kind| (*kind, 0)).collect();
    let mut n_left = n.min(clips.len());
    while n_left > 0 {
        for (kind, of_kind) in &by_kind {
            let share = shares.entry(kind).or_default();
            if n_left > 0 && *share < of_kind.len() {
                *share += 1;
                n_left -= 1;
            }
        }
    }
    let spread =
        |of_kind: &Vec<usize>, n: usize| (0..n).map(|i| of_kind[i * of_kind.len() / n]).collect::<Vec<_>>();
    by_kind.iter().flat_map(|(kind, of_kind)| spread(of_kind, shares[kind])).collect()
}

/// The SHA-256 over names, kinds and hashes of clips.
pub(crate) fn data_sha256(clips: &[Clip]) -> String {
    let mut lines: Vec<String> =
        clips.iter().map(|clip| format!("{}\t{}\t{}\n", clip.name, clip.kind, clip.sha256)).collect();
    lines.sort();
    hex(&Sha256::digest(lines.concat()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_folder(folder: &Path, clips: &mut Vec<Clip>) -> Result<()> {
    let before = clips.len();
    for entry in WalkDir::new(folder).sort_by_file_name() {
        let path = entry.with_context(|| format!("{}: cannot be searched", folder.display()))?.into_path();
        if !path.is_file() || !audio::has_audio_extension(&path) {
            continue;
        }
        let name = slashed(path.strip_prefix(folder).unwrap_or(&path));
        let kind = name.split_once('/').map(|(kind, _)| kind.to_owned()).unwrap_or_default();
        clips.push(Clip::from_file(name, kind, path));
    }
    let looked_for = audio::EXTENSIONS.join(", .");
    ensure!(clips.len() > before, "{}: no audio file (looked for .{looked_for})", folder.display());
    Ok(())
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "tsv" || ending == "csv")
}

/// Files are named as they are found from the table's own folder.
fn from_table(table: &Path, clips: &mut Vec<Clip>) -> Result<()> {
    let delimiter = codec_metrics::table_delimiter(table);
    let failed = || table.display().to_string();
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_path(table).with_context(failed)?;
    let headers = reader.headers().with_context(failed)?.clone();
    let column = |name: &str| headers.iter().position(|header| header.trim().eq_ignore_ascii_case(name));
    let file = column("file").or_else(|| column("clip"));
    let file_idx = file.with_context(|| format!("{}: no column `file` or `clip`", table.display()))?;
    let kind_idx = column("kind");
    let folder = table.parent().unwrap_or(Path::new(""));
    for row in reader.records() {
        let row = row.with_context(failed)?;
        let cell = |idx: usize| row.get(idx).unwrap_or_default().trim();
        let kind = kind_idx.map(cell).unwrap_or_default().to_owned();
        let path = Path::new(cell(file_idx));
        clips.push(Clip::from_file(slashed(path), kind, folder.join(path)));
    }
    Ok(())
}

/// A relative path without its ending, as the name of a clip.
fn slashed(path: &Path) -> String {
    let path = path.with_extension("");
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

/// Clips without audio, for tests of what needs their names.
#[cfg(test)]
pub(crate) fn named(names: &[&str]) -> Vec<Clip> {
    names.iter().map(|name| Clip::from_file((*name).to_owned(), String::new(), PathBuf::new())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(name: &str, kind: &str) -> Clip {
        Clip::from_file(name.to_owned(), kind.to_owned(), PathBuf::new())
    }

    #[test]
    fn kinds_are_chosen_in_turn() {
        let kinds = ["a", "a", "a", "a", "a", "a", "b", "b"];
        let clips: Vec<Clip> = kinds.iter().enumerate().map(|(i, kind)| clip(&i.to_string(), kind)).collect();
        assert_eq!(choose(&clips, 4), BTreeSet::from([0, 3, 6, 7]));
        assert_eq!(choose(&clips, 5), BTreeSet::from([0, 2, 4, 6, 7]));
        assert_eq!(choose(&clips, 100).len(), 8);
        assert!(choose(&clips, 0).is_empty());
    }

    #[test]
    fn folders_and_tables_give_names_and_kinds() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["speech/a.wav", "music/b.FLAC", "notes.txt"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let named = |clips: &[Clip]| -> Vec<(String, String)> {
            clips.iter().map(|clip| (clip.name.clone(), clip.kind.clone())).collect()
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let clips = open(&[dir.path().to_owned()]).unwrap();
        assert_eq!(named(&clips), [pair("music/b", "music"), pair("speech/a", "speech")]);

        let table = dir.path().join("clips.tsv");
        std::fs::write(&table, "file\tkind\nspeech/a.wav\tvoice\nnone.wav\t\n").unwrap();
        let clips = open(std::slice::from_ref(&table)).unwrap();
        assert_eq!(named(&clips), [pair("speech/a", "voice"), pair("none", "")]);
        // A file that is not there is found out when the clip is read, and does not end a run.
        assert!(clips[1].sha256.is_empty() && clips[1].read().is_err());

        let twice = open(&[table.clone(), table]).unwrap_err();
        assert_eq!(twice.to_string(), "two clips are called speech/a");
        assert!(open(&[dir.path().join("nowhere")]).unwrap_err().to_string().contains("no such file"));
    }

    #[test]
    fn the_built_in_clips_are_audible_and_of_several_kinds() {
        let clips = built_in().unwrap();
        let kinds: BTreeSet<&str> = clips.iter().map(|clip| clip.kind.as_str()).collect();
        assert_eq!(kinds, BTreeSet::from(["music", "other", "speech"]));
        for clip in &clips {
            let audio = clip.read().unwrap();
            let peak = audio.channels().flatten().fold(0.0_f32, |peak, x| peak.max(x.abs()));
            assert!((0.1..=1.0).contains(&peak), "{}: {peak}", clip.name);
            assert!((1.5..5.0).contains(&audio.seconds()), "{}", clip.name);
        }
        assert_eq!(data_sha256(&clips), data_sha256(&built_in().unwrap()));
    }
}
