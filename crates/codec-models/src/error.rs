//! The error of this crate.

use codec_io::card::{self, ModelCard};
use std::path::PathBuf;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no codec of that name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is that of no card, nor a path where one may be given.
    #[error(
        "{what}{meant}; known are {known}",
        what = match may_be_path {
            true => format!("{name}: neither a file or folder nor a known model"),
            false => format!("`{name}` is not the name of a model"),
        },
        meant = near.map_or_else(String::new, |near| format!(" (did you mean {near}?)")),
        known = known.join(", ")
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// Whether it could have been a path.
        may_be_path: bool,
        /// The known name that is most like it, when one is.
        near: Option<&'static str>,
        /// All known names.
        known: Vec<&'static str>,
    },
    /// The model is known, its files are not on this machine.
    #[error(
        "model {model} is not on this machine\n\
         Fetch it with\n  codec models pull {model}{consent}\n\
         or download {files} from\n  {url}\n\
         into {folder}, or name their folder with --model",
        folder = folder.display()
    )]
    Absent {
        /// The name of its card.
        model: String,
        /// What the command needs where the licence asks for consent; starts with a space.
        consent: &'static str,
        /// Names of its files.
        files: String,
        /// Where it was published.
        url: String,
        /// The folder in which its files are looked for.
        folder: PathBuf,
    },
    /// A file is not the one that it has to be.
    #[error("{change}; `codec models pull {model} --force` fetches it anew")]
    Changed {
        /// The name of its card.
        model: String,
        /// What it is, and what the card or the first pull knew.
        change: Box<codec_hub::Error>,
    },
    /// The files of a card hold another codec than the card says.
    #[error(
        "model {model}: its files hold another codec than its card says: {differences}; \
         `codec models pull {model} --force` fetches them anew",
        differences = differences.join(", ")
    )]
    OtherCodec {
        /// The name of its card.
        model: String,
        /// What is there, and what the card says.
        differences: Vec<String>,
    },
    /// What is there is no checkpoint of a family, or a broken one.
    #[error(
        "{name}: the model does not load{anew}",
        anew = unverified.as_ref().map_or_else(String::new, |model| format!(
            "; its files may not be the published ones, of which its card does not state every SHA-256: \
             `codec models pull {model} --force` fetches them anew"
        ))
    )]
    Load {
        /// What was asked for.
        name: String,
        /// The name of the card, where it does not say for every file which one it has to be.
        unverified: Option<String>,
        /// The reason.
        source: Box<codec_nn::Error>,
    },
    /// The models on this machine cannot be looked through.
    #[error(transparent)]
    Hub(Box<codec_hub::Error>),
}

impl Error {
    /// For a name that may be a path, or not.
    pub(crate) fn unknown(name: &str, may_be_path: bool) -> Self {
        let known = card::cards().iter().map(|card| card.name.as_str()).collect();
        Self::Unknown { name: name.to_owned(), may_be_path, near: card::suggest(name), known }
    }

    pub(crate) fn load(name: &str) -> impl FnOnce(codec_nn::Error) -> Self {
        let name = name.to_owned();
        move |source| Self::Load { name, unverified: None, source: Box::new(source) }
    }

    /// As [`Error::load`], for files that were fetched.
    pub(crate) fn load_card(card: &ModelCard) -> impl FnOnce(codec_nn::Error) -> Self {
        let name = card.name.clone();
        let is_open = card.files.iter().any(|file| file.sha256.is_none());
        move |source| Self::Load { unverified: is_open.then(|| name.clone()), name, source: Box::new(source) }
    }
}

impl From<codec_hub::Error> for Error {
    fn from(error: codec_hub::Error) -> Self {
        Self::Hub(Box::new(error))
    }
}
