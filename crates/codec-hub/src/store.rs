//! Where models lie on this machine, and how they come there.

use crate::cache;
use crate::client::{Client, variable};
use crate::content;
use crate::download::{Step, download, sha256_of};
use crate::error::{Error, Result};
use crate::lock::Lock;
use codec_io::card::{CardFile, ModelCard, Origin};
use codec_io::tokens::WeightsHash;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folders in which models are looked for.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// Folders of models by name; new ones go into the first.
    folders: Vec<PathBuf>,
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
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256.
    pub sha256: WeightsHash,
    /// Its length in bytes.
    pub size: u64,
    /// What it was compared with.
    pub state: State,
}

/// What a file was compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It has the SHA-256 that the card states.
    Published,
    /// It has the SHA-256 that it had when it was first seen.
    Locked,
    /// Nothing was known of it.
    Unknown,
    /// It is not the file that it has to be.
    Changed(Expected),
}

/// What a file has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// As long as the card says, in bytes.
    Size(u64),
    /// Of the SHA-256 in the card or the lock file, in hexadecimal; of one that starts so, where `...` follows.
    Sha256(String),
}

impl Checked {
    /// The same, when it is the file that it has to be.
    ///
    /// # Errors
    /// [`Error::Size`] and [`Error::Hash`] for one that is not.
    pub fn accepted(self) -> Result<Self> {
        match self.state {
            State::Changed(Expected::Size(expected)) => {
                Err(Error::Size { path: self.path, expected, actual: self.size })
            }
            State::Changed(Expected::Sha256(expected)) => {
                Err(Error::Hash { path: self.path, expected, actual: self.sha256 })
            }
            State::Published | State::Locked | State::Unknown => Ok(self),
        }
    }
}

impl Found {
    /// Compares one of the files, by its name in the card, with what is known of it.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read.
    pub fn check(&self, file: &CardFile) -> Result<Checked> {
        let (_, sha256) = sha256_of(&self.folder.join(&file.name))?;
        self.check_digest(file, sha256)
    }

    /// As [`Found::check`], for a file whose SHA-256 is known already.
    ///
    /// # Errors
    /// [`Error::File`] when it has no length.
    pub fn check_digest(&self, file: &CardFile, sha256: WeightsHash) -> Result<Checked> {
        let path = self.folder.join(&file.name);
        let size = path.metadata().map_err(Error::file("cannot read", &path))?.len();
        Ok(compared(file, path, size, sha256, self.sha256.get(&file.name)))
    }
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
    /// An attempt to fetch a file failed, and another one is made after a pause.
    Retry {
        /// Its name.
        file: &'a str,
        /// The number of the attempt to come.
        attempt: u32,
        /// Attempts in all, as long as none brings a byte.
        n_attempts: u32,
        /// The time until then.
        pause: Duration,
        /// What happened.
        why: &'a Error,
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
        Self { folders, hub_cache: cache::hub() }
    }

    /// One folder for models and, where there is one, the cache of Hugging Face's tools.
    pub fn new(folder: impl Into<PathBuf>, hub_cache: Option<PathBuf>) -> Self {
        Self { folders: vec![folder.into()], hub_cache }
    }

    /// The same, which looks in this folder as well, after the others.
    #[must_use]
    pub fn with_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
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
        let whole = |folder: &PathBuf| card.files.iter().all(|file| folder.join(&file.name).is_file());
        let found = self.own_folders(card).chain(self.snapshots(card)).find(whole);
        let Some(folder) = found else { return Ok(None) };
        let files = card.files.iter().map(|file| folder.join(&file.name)).collect();
        let lock = self.lock(card, &folder)?;
        let known = |file: &CardFile| {
            let sha256 = file.sha256.or_else(|| lock.sha256(&file.name))?;
            Some((file.name.clone(), sha256))
        };
        Ok(Some(Found { folder, files, sha256: card.files.iter().filter_map(known).collect() }))
    }

    /// Fetches the files of a model that are not there, checks all of them, and takes their hashes down.
    ///
    /// `on_progress` is told how it goes, some times a second, and can stop it; what has arrived is kept for the
    /// next pull.
    ///
    /// # Errors
    /// [`Error::NonCommercial`] when the licence asks for a consent that is not given; those of the
    /// transfer; [`Error::Size`], [`Error::Hash`] and [`Error::Content`] for a file that is not the one that it
    /// has to be.
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
        let first = self.folder(card)?;
        let present = if options.force { None } else { self.find(card)?.map(|found| found.folder) };
        let folder = present.unwrap_or_else(|| first.clone());
        let mut lock = match self.lock(card, &folder) {
            Err(Error::Lock { .. }) if options.force => Lock::default(),
            lock => lock?,
        };
        // Where the lock is written, after every file, so that an interrupted pull has taken down what it has: beside
        // the files, but into no cache of others.
        let locked_in = if self.is_own(card, &folder) { &folder } else { &first };
        for file in &card.files {
            let path = folder.join(&file.name);
            // A file that is fetched anew may be another one; what is known of the others stays.
            let locked = if options.force { None } else { lock.sha256(&file.name) };
            if options.force || !path.is_file() {
                let origin = card
                    .origin(file)
                    .ok_or_else(|| Error::NoOrigin { model: card.name.clone(), file: file.name.clone() })?;
                let url = client.url(&origin);
                let mut n_fetched = 0;
                let check = |at: &Path, size: u64, sha256: WeightsHash| {
                    n_fetched = size;
                    accept(compared(file, path.clone(), size, sha256, locked.as_ref()), at, false).map(drop)
                };
                let mut on_step = |step: Step<'_>| {
                    on_progress(match step {
                        Step::Bytes(n_bytes, size) => {
                            Progress::Transfer { file: &file.name, n_bytes, size: size.or(file.size) }
                        }
                        Step::Retry { attempt, n_attempts, pause, why } => {
                            Progress::Retry { file: &file.name, attempt, n_attempts, pause, why }
                        }
                    })
                };
                let is_known = file.size.is_some()
                    || file.sha256.is_some()
                    || file.sha256_prefix.is_some()
                    || locked.is_some();
                let sha256 = download(client, &url, &path, is_known, check, &mut on_step)?;
                lock.insert(&file.name, &sha256, n_fetched, &url);
                lock.write(locked_in)?;
            } else {
                let (size, sha256) = sha256_of(&path)?;
                let checked = compared(file, path.clone(), size, sha256, locked.as_ref());
                let checked = accept(checked, &path, true)?;
                if locked.is_none() {
                    lock.insert(&file.name, &checked.sha256, checked.size, &path.display().to_string());
                    lock.write(locked_in)?;
                }
            }
            if on_progress(Progress::Done { file: &file.name }).is_break() {
                return Err(Error::Stopped);
            }
        }
        let files = card.files.iter().map(|file| folder.join(&file.name)).collect();
        let known = |file: &CardFile| Some((file.name.clone(), lock.sha256(&file.name)?));
        Ok(Found { folder, files, sha256: card.files.iter().filter_map(known).collect() })
    }

    /// Where the files of a card lie when they were pulled.
    fn own_folders(&self, card: &ModelCard) -> impl Iterator<Item = PathBuf> {
        self.folders.iter().map(|folder| folder.join(&card.name))
    }

    fn is_own(&self, card: &ModelCard, folder: &Path) -> bool {
        self.own_folders(card).any(|own| own == folder)
    }

    /// What is known of the files of a card that lie in `folder`: what the lock beside them says, and of files of
    /// which it says nothing, as there is no lock in the caches of other tools, what those in our own folders say.
    fn lock(&self, card: &ModelCard, folder: &Path) -> Result<Lock> {
        let is_own = self.is_own(card, folder);
        let mut lock = if is_own { Lock::read(folder)? } else { Lock::default() };
        for own in self.own_folders(card) {
            lock.fill_up(Lock::read(&own)?);
        }
        Ok(lock)
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

/// A file that lies at `at`, when it is the one that it has to be; of the kind that its name says, at least.
fn accept(checked: Checked, at: &Path, is_here: bool) -> Result<Checked> {
    let checked = checked.accepted()?;
    if checked.state != State::Published {
        content::check(at, &checked.path, is_here)?;
    }
    Ok(checked)
}

/// A file of this length and SHA-256, compared with the card and with the SHA-256 that it is known to have had.
fn compared(
    file: &CardFile,
    path: PathBuf,
    size: u64,
    sha256: WeightsHash,
    locked: Option<&WeightsHash>,
) -> Checked {
    let expected_size = file.size.filter(|expected| *expected != size);
    let state = if let Some(expected) = expected_size {
        State::Changed(Expected::Size(expected))
    } else if !file.allows_sha256(&sha256) {
        let prefix = || Some(format!("{}...", file.sha256_prefix.as_ref()?));
        let expected = file.sha256.map(|sha256| sha256.to_string()).or_else(prefix);
        State::Changed(Expected::Sha256(expected.unwrap_or_default()))
    } else {
        match locked {
            _ if file.sha256.is_some() => State::Published,
            Some(locked) if *locked != sha256 => State::Changed(Expected::Sha256(locked.to_string())),
            Some(_) => State::Locked,
            None => State::Unknown,
        }
    };
    Checked { path, sha256, size, state }
}
