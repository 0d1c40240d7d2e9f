//! Finds published models on this machine, and fetches them where they were published.
//!
//! This is the only crate of the workspace that uses the network, and only [`Store::pull`] does. A file
//! is accepted when it has the SHA-256 of its card; where no card states one, it has to be of the kind that its
//! name says, its hash is taken down in a lock file at the first pull, and it has to have that from then on.
//! Transfers that break off are gone on with, files appear under their name when they are whole and right, and
//! files that other tools have put into the cache of Hugging Face are found and used where they lie.
//!
//! ```
//! use codec_hub::Store;
//! use codec_io::card;
//! let folder = tempfile::tempdir()?;
//! let store = Store::new(folder.path(), None);
//! let lyra = card::find("lyra-v2").ok_or("no such card")?;
//! assert!(store.find(lyra)?.is_none());
//! assert_eq!(store.folder(lyra)?, folder.path().join("lyra-v2"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cache;
mod client;
mod content;
mod download;
mod error;
mod lock;
mod store;
mod transfer;

pub use client::{Client, Settings, address};
pub use error::{Error, Result};
pub use store::{Checked, Expected, Found, Progress, PullOptions, State, Store};
