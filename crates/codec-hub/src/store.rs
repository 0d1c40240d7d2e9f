//! Where models lie on this machine, and how they come there.

use crate::cache;
use crate::client::{Client, variable};
use crate::download::{download, sha256_of};
use crate::error::{Error, Result};
use crate::lock::Lock;
use codec_io::card::{CardFile, ModelCard, Origin};
use codec_io::tokens::WeightsHash;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The folders in which models are looked for.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// Folders of models by name; new ones go into the first.
    folders: Vec<PathBuf>,
    /// Folders that hold one model each.
    extra: Vec<(String, PathBuf)>,
    /// The cache of Hugging Face's own tools.
    hub_cache: Option<PathBuf>,
}

/// A model whose files are all there.
#[derive(Clone, Debug)]
pub struct Found {
    /// The folder that they lie in.
    pub folder: PathBuf,
    /// The files in the order of the card.
    pub files: Vec<PathBuf>,
    /// What is known of their SHA-256, by name: from the card, or from the lock file.
    pub sha256: BTreeMap<String, WeightsHash>,
}

/// How one file compares with what is known of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Checked {
    /// Name of the file.
    pub name: String,
    /// Its SHA-256.
    pub sha256: WeightsHash,
    /// Its length in bytes.
    pub size: u64,
    /// What it was compared with.
    pub state: State,
}

/// What a file was compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It has the SHA-256 that the card states.
    Published,
    /// It has the SHA-256 that it had when it was first seen.
    Locked,
    /// Nothing was known of it.
    Unknown,
}

/// How a pull goes.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A file is being fetched.
    Transfer {
        /// Its name.
        file: &'a str,
        /// Bytes that are there.
        n_bytes: u64,
        /// Length of the file, if it is known.
        size: Option<u64>,
    },
    /// A file is there and is as it has to be.
    Done {
        /// Its name.
        file: &'a str,
    },
}

/// What a pull may do.
#[derive(Clone, Copy, Debug, Default)]
pub struct PullOptions {
    /// Fetch weights that may be used only without commercial advantage.
    pub accept_non_commercial: bool,
    /// Fetch files anew that are already there, and forget what the lock file says of them.
    pub force: bool,
}

impl Store {
    /// The folders that the environment names: `CODEC_MODELS`, `codec/models` in the user's cache, and
    /// the cache of Hugging Face's tools (`HF_HUB_CACHE`, `HF_HOME`).
    pub fn from_env() -> Self {
        let home = || std::env::home_dir().map(|home| home.join(".cache"));
        let cache = variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        let own = cache.map(|cache| cache.join("codec").join("models"));
        let folders = variable("CODEC_MODELS").map(PathBuf::from).into_iter().chain(own).collect();
        Self { folders, extra: Vec::new(), hub_cache: cache::hub() }
    }

    /// One folder for models and, where there is one, the cache of Hugging Face's tools.
    pub fn new(folder: impl Into<PathBuf>, hub_cache: Option<PathBuf>) -> Self {
        Self { folders: vec![folder.into()], extra: Vec::new(), hub_cache }
    }

    /// Looks for one model in a folder of its own, too.
    #[must_use]
    pub fn with_folder(mut self, model: &str, folder: impl Into<PathBuf>) -> Self {
        self.extra.push((model.to_owned(), folder.into()));
        self
    }

    /// The folder that a pull puts the files of a model into.
    ///
    /// # Errors
    /// [`Error::NoFolder`] when the environment names none.
    pub fn folder(&self, card: &ModelCard) -> Result<PathBuf> {
        Ok(self.folders.first().ok_or(Error::NoFolder)?.join(&card.name))
    }

    /// Finds a model of which all files are there.
    ///
    /// # Errors
    /// [`Error::Lock`] and [`Error::File`] when its lock file cannot be read.
    pub fn find(&self, card: &ModelCard) -> Result<Option<Found>> {
        let own = self.folders.iter().map(|folder| folder.join(&card.name));
        let extra = self.extra.iter().filter(|(model, _)| *model == card.name).map(|(_, path)| path.clone());
        let whole = |folder: &PathBuf| card.files.iter().all(|file| folder.join(&file.name).is_file());
        let found = own.chain(extra).chain(self.snapshots(card)).find(whole);
        let Some(folder) = found else { return Ok(None) };
        let files = card.files.iter().map(|file| folder.join(&file.name)).collect();
        let lock = self.lock(card)?;
        let known = |file: &CardFile| {
            let sha256 = file.sha256.or_else(|| lock.sha256(&file.name))?;
            Some((file.name.clone(), sha256))
        };
        Ok(Some(Found { folder, files, sha256: card.files.iter().filter_map(known).collect() }))
    }

    /// Compares the files of a model with what is known of them; `None` when they are not there.
    ///
    /// # Errors
    /// [`Error::Hash`] and [`Error::Size`] for a file that is not the one that it has to be.
    pub fn verify(&self, card: &ModelCard) -> Result<Option<Vec<Checked>>> {
        let Some(found) = self.find(card)? else { return Ok(None) };
        let lock = self.lock(card)?;
        let check = |(file, path): (&CardFile, &PathBuf)| check_file(file, path, &lock);
        Ok(Some(card.files.iter().zip(&found.files).map(check).collect::<Result<_>>()?))
    }

    /// Fetches the files of a model that are not there, checks all of them, and takes their hashes down.
    ///
    /// `on_progress` is told how it goes and can stop it; what has arrived is kept for the next pull.
    ///
    /// # Errors
    /// [`Error::NonCommercial`] when the licence asks for a consent that is not given; those of the
    /// transfer; those of [`Store::verify`].
    pub fn pull(
        &self,
        card: &ModelCard,
        client: &Client,
        options: PullOptions,
        on_progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Found> {
        if card.licence.non_commercial == Some(true) && !options.accept_non_commercial {
            let licence = card.licence.weights.clone().unwrap_or_else(|| "terms of its own".to_owned());
            return Err(Error::NonCommercial { model: card.name.clone(), licence });
        }
        let own = self.folder(card)?;
        let mut lock = if options.force { Lock::default() } else { Lock::read(&own)? };
        let present = if options.force { None } else { self.find(card)?.map(|found| found.folder) };
        let folder = present.unwrap_or_else(|| own.clone());
        std::fs::create_dir_all(&folder).map_err(Error::file("cannot create", &folder))?;
        for file in &card.files {
            let path = folder.join(&file.name);
            if options.force || !path.is_file() {
                let origin = card
                    .origin(file)
                    .ok_or_else(|| Error::NoOrigin { model: card.name.clone(), file: file.name.clone() })?;
                let url = client.url(&origin);
                let check = |path: &Path, size: u64, sha256: &WeightsHash| {
                    compare(file, path, size, sha256, &lock).map(drop)
                };
                let mut on_bytes = |n_bytes, size: Option<u64>| {
                    on_progress(Progress::Transfer { file: &file.name, n_bytes, size: size.or(file.size) })
                };
                let sha256 = download(client, &url, &path, check, &mut on_bytes)?;
                let size = path.metadata().map_err(Error::file("cannot read", &path))?.len();
                lock.insert(&file.name, &sha256, size, &url);
            } else {
                let checked = check_file(file, &path, &lock)?;
                if lock.sha256(&file.name).is_none() {
                    let source = path.display().to_string();
                    lock.insert(&file.name, &checked.sha256, checked.size, &source);
                }
            }
            // After every file, so that an interrupted pull has taken down what it has.
            lock.write(&own)?;
            if on_progress(Progress::Done { file: &file.name }).is_break() {
                return Err(Error::Stopped);
            }
        }
        let files = card.files.iter().map(|file| folder.join(&file.name)).collect();
        let known = |file: &CardFile| Some((file.name.clone(), lock.sha256(&file.name)?));
        Ok(Found { folder, files, sha256: card.files.iter().filter_map(known).collect() })
    }

    fn lock(&self, card: &ModelCard) -> Result<Lock> {
        self.folders
            .first()
            .map_or_else(|| Ok(Lock::default()), |folder| Lock::read(&folder.join(&card.name)))
    }

    /// The folders of the hub's cache that can hold the files of a card.
    fn snapshots(&self, card: &ModelCard) -> Vec<PathBuf> {
        let origin = card.files.first().and_then(|file| card.origin(file));
        let (Some(hub), Some(Origin::Hub { repository, revision, .. })) = (&self.hub_cache, origin) else {
            return Vec::new();
        };
        let folder = card.source.folder.as_deref().unwrap_or("");
        cache::snapshots(hub, &repository, &revision).into_iter().map(|path| path.join(folder)).collect()
    }
}

fn check_file(file: &CardFile, path: &Path, lock: &Lock) -> Result<Checked> {
    let (size, sha256) = sha256_of(path)?;
    let state = compare(file, path, size, &sha256, lock)?;
    Ok(Checked { name: file.name.clone(), sha256, size, state })
}

/// Compares a file with the card and the lock file.
fn compare(file: &CardFile, path: &Path, size: u64, sha256: &WeightsHash, lock: &Lock) -> Result<State> {
    if let Some(expected) = file.size.filter(|expected| *expected != size) {
        return Err(Error::Size { path: path.to_owned(), expected, actual: size });
    }
    let refused = |expected: String| Error::Hash { path: path.to_owned(), expected, actual: *sha256 };
    if !file.allows_sha256(sha256) {
        let known = file.sha256.map(|sha256| sha256.to_string());
        return Err(refused(
            known.or_else(|| Some(format!("{}...", file.sha256_prefix.as_ref()?))).unwrap_or_default(),
        ));
    }
    match lock.sha256(&file.name) {
        _ if file.sha256.is_some() => Ok(State::Published),
        Some(locked) if locked != *sha256 => Err(refused(locked.to_string())),
        Some(_) => Ok(State::Locked),
        None => Ok(State::Unknown),
    }
}
