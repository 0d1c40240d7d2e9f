//! Where the clips of an input go: to one token file, or each to a file of its own, which then appear together.

use super::Args;
use crate::inputs::{Job, Place};
use crate::tokens::TokenSink;
use anyhow::{Context, Result, bail};
use codec_io::atomic::{AtomicFile, PREFIX, SUFFIX, remove_stale, sync_folder};
use codec_io::tokens::{EXTENSION, TokenHeader, TokenWriter};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tempfile::{Builder, TempPath};

/// Digits of a file's number, and more where there are more files.
const N_DIGITS: usize = 5;

/// The output of a job.
#[derive(Debug)]
pub(super) enum Clips<'a> {
    /// One file, or stdout.
    Together(&'a Place),
    /// A folder.
    Apart(Folder),
}

impl<'a> Clips<'a> {
    /// Looks at the output of a job for so many clips; `None` when all of it is there and to be left alone.
    pub(super) fn open(job: &'a Job, n_clips: usize, args: &Args) -> Result<Option<Self>> {
        match &job.output {
            Place::File(folder) if args.split => {
                Ok(Folder::open(folder, n_clips, args.force)?.map(Self::Apart))
            }
            place => Ok(Some(Self::Together(place))),
        }
    }

    /// Begins the next clip.
    pub(super) fn sink(&mut self, header: TokenHeader) -> Result<TokenSink> {
        match self {
            Self::Together(place) => TokenSink::create(place, header),
            Self::Apart(folder) => folder.sink(header),
        }
    }

    /// Puts the files in place when all of them are whole.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            // Its sink did so.
            Self::Together(_) => Ok(()),
            Self::Apart(folder) => folder.finish(),
        }
    }
}

/// The files of one input: `00000.nac` and on.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Whether this run made it.
    is_new: bool,
    /// The files under the names that they have until all are whole. Closed, as there may be thousands.
    staged: Vec<TempPath>,
}

impl Folder {
    fn open(path: &Path, n_clips: usize, force: bool) -> Result<Option<Self>> {
        if path.exists() && !path.is_dir() {
            bail!("{}: is no folder, which --split needs", path.display());
        }
        let files: Vec<_> =
            (0..n_clips).map(|clip_idx| file(path, clip_idx)).filter(|file| file.exists()).collect();
        if let Some(odd) = files.iter().find(|file| !file.is_file()) {
            bail!("{}: is there already and no file", odd.display());
        }
        match files.first() {
            Some(_) if !force && files.len() == n_clips => return Ok(None),
            Some(first) if !force => bail!(
                "{}: is there already, but not all of {n_clips} files are; --force writes them anew",
                first.display()
            ),
            _ => {}
        }
        if let Some(other) = beyond(path, n_clips) {
            bail!(
                "{}: is there already, but is none of {n_clips} files; remove it, or name another folder with -o",
                other.display()
            );
        }
        remove_stale(path);
        Ok(Some(Self { path: path.to_path_buf(), is_new: false, staged: Vec::new() }))
    }

    fn sink(&mut self, header: TokenHeader) -> Result<TokenSink> {
        let name = file(&self.path, self.staged.len()).display().to_string();
        let failed = || format!("{name}: cannot create");
        if !self.path.is_dir() {
            fs::create_dir_all(&self.path).with_context(failed)?;
            self.is_new = true;
        }
        // Named so that a later run removes what a killed one left. Made like any file, since what tempfile itself makes
        // is for its owner alone.
        let mut options = File::options();
        options.write(true).create_new(true);
        let mut named = Builder::new();
        let made = named.prefix(PREFIX).suffix(SUFFIX).make_in(&self.path, |path| options.open(path));
        let staged = made.with_context(failed)?.into_temp_path();
        let writer = AtomicFile::create(&staged).with_context(failed)?;
        self.staged.push(staged);
        Ok(TokenSink::File { writer: TokenWriter::new(writer, header).with_context(|| name.clone())?, name })
    }

    fn finish(mut self) -> Result<()> {
        for (clip_idx, staged) in std::mem::take(&mut self.staged).into_iter().enumerate() {
            let file = file(&self.path, clip_idx);
            let failed = || format!("{}: cannot write", file.display());
            // What is written anew is for the same readers as before.
            if let Ok(replaced) = fs::metadata(&file) {
                fs::set_permissions(&staged, replaced.permissions()).with_context(failed)?;
            }
            staged.persist(&file).map_err(|refused| refused.error).with_context(failed)?;
        }
        sync_folder(&self.path).with_context(|| format!("{}: cannot write", self.path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.staged.clear();
        if self.is_new {
            // Stays where it holds files.
            drop(fs::remove_dir(&self.path));
        }
    }
}

fn file(folder: &Path, clip_idx: usize) -> PathBuf {
    folder.join(format!("{clip_idx:0N_DIGITS$}.{EXTENSION}"))
}

/// A file with a number that the clips of an input do not reach: one of another input.
fn beyond(folder: &Path, n_clips: usize) -> Option<PathBuf> {
    let is_beyond = |path: &PathBuf| {
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<usize>().ok());
        number.is_some_and(|clip_idx| clip_idx >= n_clips && *path == file(folder, clip_idx))
    };
    let mut paths = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    paths.find(is_beyond)
}
