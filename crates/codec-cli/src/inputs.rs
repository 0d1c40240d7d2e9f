//! Which files a command works on and where each result goes.

use anyhow::{Context, Result, bail};
use codec_io::atomic::remove_stale;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use walkdir::{DirEntry, WalkDir};

pub(crate) use codec_io::audio::EXTENSIONS as AUDIO_EXTENSIONS;

/// A file or a standard stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Std,
    File(PathBuf),
}

impl Place {
    /// `-` is a standard stream.
    pub(crate) fn parse(path: &Path) -> Self {
        if path == Path::new("-") { Self::Std } else { Self::File(path.to_path_buf()) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Std => f.write_str("-"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// One input with the place of its result.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) input: Place,
    pub(crate) output: Place,
}

/// What a command takes and makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kinds<'a> {
    /// Endings that a folder search takes.
    pub(crate) takes: &'a [&'a str],
    /// Ending of the results.
    pub(crate) makes: &'a str,
}

/// Lists the inputs, folders searched recursively in name order. Links to files are followed, links
/// to folders are not.
///
/// # Errors
/// When an input does not exist or a folder cannot be read.
pub(crate) fn list(inputs: &[PathBuf], takes: &[&str]) -> Result<Vec<Place>> {
    Ok(found(inputs, takes, None)?.into_iter().map(|(place, _)| place).collect())
}

/// Pairs every input with its output: beside it, or under `output`.
///
/// One file goes to the file `output`; folders, or several inputs, go under the folder `output`
/// with their tree kept. Where results could be inputs, a search passes over `output`: what an
/// earlier run wrote there is not meant.
///
/// # Errors
/// When an input does not exist, a folder holds nothing to work on, a file takes part twice, two
/// inputs would be written to one place, or several to a file or a stream.
pub(crate) fn pair(inputs: &[PathBuf], output: Option<&Path>, kinds: Kinds<'_>) -> Result<Vec<Job>> {
    let results = output.filter(|_| kinds.takes.contains(&kinds.makes));
    let found = found(inputs, kinds.takes, results)?;
    let single = matches!(inputs, [one] if !one.is_dir());
    let to_stream = output == Some(Path::new("-"));
    let into_folder =
        output.filter(|path| !to_stream && (!single || path.is_dir() || ends_with_separator(path)));
    if to_stream && !single {
        bail!("-o -: one stream holds one result; for several, name a folder");
    }
    if let Some(folder) = into_folder.filter(|path| path.exists() && !path.is_dir()) {
        bail!("{}: is a file; several results need a folder", folder.display());
    }
    if found.iter().filter(|(place, _)| *place == Place::Std).count() > 1 {
        bail!("-: is given more than once, but there is one stdin");
    }
    let mut jobs = Vec::with_capacity(found.len());
    let mut taken: HashMap<PathBuf, PathBuf> = HashMap::new();
    for (input, relative) in found {
        let target = match (&input, output, into_folder) {
            (_, _, Some(folder)) => Place::File(folder.join(relative.with_extension(kinds.makes))),
            (_, Some(file), None) => Place::parse(file),
            (Place::File(path), None, _) => Place::File(path.with_extension(kinds.makes)),
            (Place::Std, None, _) => Place::Std,
        };
        if let (Place::File(path), Place::File(from)) = (&target, &input) {
            if is_same_file(path, from) {
                bail!("{input}: the result would be written over the input; name another place with -o");
            }
            let written = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            if let Some(other) = taken.insert(written, from.clone()) {
                let other = other.display();
                bail!(
                    "{other} and {input} would both be written to {target}; run them apart, each with its own -o"
                );
            }
        }
        jobs.push(Job { input, output: target });
    }
    let folder_of = |job: &Job| match &job.output {
        Place::File(path) => path.parent().map(Path::to_path_buf),
        Place::Std => None,
    };
    let folders: BTreeSet<PathBuf> = jobs.iter().filter_map(folder_of).collect();
    for folder in &folders {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let n_removed = remove_stale(folder);
        tracing::debug!(folder = %folder.display(), n_removed, "looked for what killed runs left");
    }
    Ok(jobs)
}

/// Makes the folder in which a file is to be written.
pub(crate) fn make_folder_of(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot create", folder.display()))
}

/// A file and its counterpart elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Match {
    /// The path below both folders without its ending; the file's own for two files.
    pub(crate) name: String,
    pub(crate) left: Place,
    pub(crate) right: Place,
}

/// Files that only one of two folders has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alone {
    pub(crate) left: Vec<String>,
    pub(crate) right: Vec<String>,
}

/// Matches the files of two folders by their path and name without its ending, or two single files.
///
/// Gives the matches and the files without one.
///
/// # Errors
/// When an input does not exist, one is a folder and the other is not, a folder has two files of one name, or
/// nothing matches.
pub(crate) fn match_up(left: &Path, right: &Path, takes: &[&str]) -> Result<(Vec<Match>, Alone)> {
    if left.is_dir() != right.is_dir() {
        bail!("{} and {}: compare two files or two folders", left.display(), right.display());
    }
    let by_name = |folder: &Path| -> Result<BTreeMap<String, Place>> {
        let mut files = BTreeMap::new();
        for (place, relative) in found(&[folder.to_path_buf()], takes, None)? {
            let relative = relative.with_extension("");
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
            if let Some(other) = files.insert(parts.join("/"), place.clone()) {
                bail!("{other} and {place} have one name: which is meant?");
            }
        }
        Ok(files)
    };
    let (lefts, mut rights) = (by_name(left)?, by_name(right)?);
    if !left.is_dir() {
        let pairs = lefts.into_iter().zip(rights);
        let matches = pairs.map(|((name, left), (_, right))| Match { name, left, right });
        return Ok((matches.collect(), Alone::default()));
    }
    let mut alone = Alone::default();
    let mut matches = Vec::new();
    for (name, left) in lefts {
        match rights.remove(&name) {
            Some(right) => matches.push(Match { name, left, right }),
            None => alone.left.push(left.to_string()),
        }
    }
    alone.right = rights.values().map(ToString::to_string).collect();
    if matches.is_empty() {
        bail!("{} and {} have no file of the same name", left.display(), right.display());
    }
    Ok((matches, alone))
}

/// Each input with its path below the folder in which it was found; folders are not searched in
/// `results`.
fn found(inputs: &[PathBuf], takes: &[&str], results: Option<&Path>) -> Result<Vec<(Place, PathBuf)>> {
    let mut found = Vec::new();
    for input in inputs {
        if input == Path::new("-") {
            found.push((Place::Std, PathBuf::from("stdin")));
        } else if input.is_dir() {
            let before = found.len();
            let is_searched = |entry: &DirEntry| {
                let below = entry.depth() > 0 && entry.file_type().is_dir();
                !(below && results.is_some_and(|results| is_same_file(results, entry.path())))
            };
            for entry in WalkDir::new(input).sort_by_file_name().into_iter().filter_entry(is_searched) {
                let entry = entry.with_context(|| format!("{}: cannot be searched", input.display()))?;
                if has_extension(entry.path(), takes) && entry.path().is_file() {
                    let relative = entry.path().strip_prefix(input).unwrap_or(entry.path()).to_path_buf();
                    found.push((Place::File(entry.into_path()), relative));
                }
            }
            if found.len() == before {
                bail!("{}: no file to work on (looked for .{})", input.display(), takes.join(", ."));
            }
        } else {
            std::fs::metadata(input).with_context(|| format!("{}: cannot be read", input.display()))?;
            let name = input.file_name().map_or_else(|| input.clone(), PathBuf::from);
            found.push((Place::File(input.clone()), name));
        }
    }
    Ok(found)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|e| extensions.contains(&e.as_str()))
}

/// Whether two paths lead to one file or folder, by whatever names and links.
fn is_same_file(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn ends_with_separator(path: &Path) -> bool {
    path.as_os_str().to_string_lossy().ends_with(std::path::is_separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: Kinds<'_> = Kinds { takes: &["wav"], makes: "tok" };

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.wav", "b.WAV", "notes.txt", "deep/a.wav"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        dir
    }

    #[test]
    fn a_folder_keeps_its_tree() {
        let dir = tree();
        let jobs = pair(&[dir.path().into()], Some(Path::new("out")), KINDS).unwrap();
        let outputs: Vec<String> = jobs.iter().map(|job| job.output.to_string()).collect();
        assert_eq!(outputs, ["out/a.tok", "out/b.tok", "out/deep/a.tok"]);
    }

    #[test]
    fn one_file_goes_where_it_is_told() {
        let dir = tree();
        let input = dir.path().join("a.wav");
        let jobs = pair(std::slice::from_ref(&input), Some(Path::new("x.bin")), KINDS).unwrap();
        assert_eq!(jobs[0].output, Place::File("x.bin".into()));
        let jobs = pair(std::slice::from_ref(&input), Some(dir.path()), KINDS).unwrap();
        assert_eq!(jobs[0].output, Place::File(dir.path().join("a.tok")));
        let jobs = pair(&[input], None, KINDS).unwrap();
        assert_eq!(jobs[0].output, Place::File(dir.path().join("a.tok")));
    }

    #[test]
    fn two_inputs_for_one_place_are_refused() {
        let dir = tree();
        let inputs = [dir.path().join("a.wav"), dir.path().join("deep/a.wav")];
        let error = pair(&inputs, Some(Path::new("out")), KINDS).unwrap_err().to_string();
        assert!(error.contains("would both be written to"), "{error}");
    }

    fn refusal(inputs: &[PathBuf], output: Option<&Path>, kinds: Kinds<'_>) -> String {
        pair(inputs, output, kinds).unwrap_err().to_string()
    }

    #[test]
    fn several_results_go_neither_to_a_file_nor_to_stdout() {
        let dir = tree();
        let inputs = [dir.path().join("a.wav"), dir.path().join("b.WAV")];
        let error = refusal(&inputs, Some(Path::new("-")), KINDS);
        assert!(error.contains("one stream"), "{error}");
        let error = refusal(&inputs, Some(&dir.path().join("notes.txt")), KINDS);
        assert!(error.contains("notes.txt: is a file"), "{error}");
        let error = refusal(&["-".into(), "-".into()], None, KINDS);
        assert!(error.contains("one stdin"), "{error}");
        // A folder of that name does not turn stdout into a file.
        let jobs = pair(&inputs[..1], Some(Path::new("-")), KINDS).unwrap();
        assert_eq!(jobs[0].output, Place::Std);
    }

    #[test]
    fn an_input_is_not_overwritten_under_another_name() {
        let dir = tree();
        let same = Kinds { takes: &["wav"], makes: "wav" };
        let input = dir.path().join("a.wav");
        let around = dir.path().join("deep/../a.wav");
        for output in [&input, &around] {
            let error = refusal(std::slice::from_ref(&input), Some(output), same);
            assert!(error.contains("written over the input"), "{error}");
        }
    }

    #[test]
    fn results_inside_the_searched_folder_are_not_inputs() {
        let dir = tree();
        let same = Kinds { takes: &["wav"], makes: "wav" };
        let names = |output: &Path| {
            let jobs = pair(&[dir.path().into()], Some(output), same).unwrap();
            jobs.iter().map(|job| job.input.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(Path::new("out")).len(), 3);
        let without = names(&dir.path().join("deep/."));
        assert_eq!(without.len(), 2);
        assert!(without.iter().all(|name| !name.contains("deep")), "{without:?}");
    }

    #[cfg(unix)]
    #[test]
    fn links_to_files_are_followed() {
        let dir = tree();
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, dir.path().join(name)).unwrap();
        link("deep/a.wav", "link.wav");
        link("nowhere", "broken.wav");
        link("..", "deep/loop.wav");
        let places = list(&[dir.path().into()], KINDS.takes).unwrap();
        let found: Vec<String> = places.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.contains(&dir.path().join("link.wav").display().to_string()), "{found:?}");
    }

    #[test]
    fn folders_are_matched_by_name() {
        let (left, right) = (tree(), tempfile::tempdir().unwrap());
        std::fs::create_dir(right.path().join("deep")).unwrap();
        for name in ["a.mp3", "deep/a.flac", "z.wav"] {
            std::fs::write(right.path().join(name), "").unwrap();
        }
        let (matches, alone) = match_up(left.path(), right.path(), &["wav", "mp3", "flac"]).unwrap();
        let names: Vec<&str> = matches.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["a", "deep/a"]);
        assert_eq!(alone.right, [right.path().join("z.wav").display().to_string()]);
        assert_eq!(alone.left, [left.path().join("b.WAV").display().to_string()]);
        let error = match_up(left.path(), &right.path().join("z.wav"), &["wav"]).unwrap_err().to_string();
        assert!(error.contains("two files or two folders"), "{error}");
        std::fs::write(right.path().join("z.mp3"), "").unwrap();
        let error = match_up(left.path(), right.path(), &["wav", "mp3"]).unwrap_err().to_string();
        assert!(error.contains("one name"), "{error}");
    }

    #[test]
    fn what_is_missing_or_empty_is_named() {
        let dir = tree();
        let error = pair(&[dir.path().join("none.wav")], None, KINDS).unwrap_err().to_string();
        assert!(error.contains("none.wav"), "{error}");
        let error = pair(&[dir.path().into()], None, Kinds { takes: &["mp3"], makes: "tok" }).unwrap_err();
        assert!(error.to_string().contains("no file to work on"), "{error}");
    }
}
