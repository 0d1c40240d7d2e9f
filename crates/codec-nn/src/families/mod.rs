//! Codec families: each is one file that turns a checkpoint into a [`Codec`].

mod bigcodec;
mod dac;
mod encodec;
mod lapped;
mod mimi;
mod nanocodec;
mod snac;
mod soundstream;
mod speechtokenizer;
mod wavtokenizer;
mod xcodec2;

use crate::codec::Networks;
use crate::error::{Error, Result};
use crate::weights::Checkpoint;
use candle_core::Device;
use codec_core::Codec;
use std::path::Path;

/// A kind of codec and how to load one.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Name of the family, as in `CodecInfo::family`.
    pub name: &'static str,
    /// Whether the checkpoint is one of this family, by its content.
    pub recognizes: fn(&Checkpoint) -> bool,
    /// Builds the codec.
    ///
    /// # Errors
    /// Whatever keeps the checkpoint from being read exactly: see [`crate::Error`].
    pub load: fn(&Checkpoint, &Device) -> Result<Box<dyn Codec>>,
    /// Builds the parts that training needs; `None` for a family that is not trained here, or only decodes.
    ///
    /// # Errors
    /// As [`Family::load`].
    pub networks: Option<fn(&Checkpoint) -> Result<Networks>>,
}

/// All families, in the order in which they are tried.
pub const FAMILIES: &[Family] = &[
    bigcodec::FAMILY,
    dac::FAMILY,
    encodec::FAMILY,
    lapped::FAMILY,
    mimi::FAMILY,
    nanocodec::FAMILY,
    snac::FAMILY,
    soundstream::FAMILY,
    speechtokenizer::FAMILY,
    wavtokenizer::FAMILY,
    xcodec2::FAMILY,
];

/// A codec and the identity of the weights that it was made from.
#[derive(Debug)]
pub struct Loaded {
    /// The codec.
    pub codec: Box<dyn Codec>,
    /// See [`Checkpoint::sha256`].
    pub sha256: [u8; 32],
}

/// Loads the codec at `path`, of whichever family its content says.
///
/// # Errors
/// As [`Checkpoint::open`]; [`crate::Error::Unrecognized`] when no family knows what is there; the
/// errors of the family's own loading.
pub fn load(path: &Path, device: &Device) -> Result<Loaded> {
    let _span = tracing::info_span!("load", path = %path.display()).entered();
    load_checkpoint(&Checkpoint::open(path, device)?, device)
}

/// Loads the codec in an open checkpoint.
///
/// # Errors
/// As [`load`].
pub fn load_checkpoint(checkpoint: &Checkpoint, device: &Device) -> Result<Loaded> {
    let family = FAMILIES.iter().find(|family| (family.recognizes)(checkpoint));
    let family = family.ok_or_else(|| checkpoint.unrecognized())?;
    Ok(Loaded { codec: (family.load)(checkpoint, device)?, sha256: checkpoint.sha256()? })
}

/// The parts of the codec in `checkpoint`, for training: tie it to variables first
/// ([`Checkpoint::trained`]).
///
/// # Errors
/// As [`load`]; [`Error::Unsupported`] for a family that is not trained here.
pub fn networks(checkpoint: &Checkpoint) -> Result<Networks> {
    let family = FAMILIES.iter().find(|family| (family.recognizes)(checkpoint));
    let family = family.ok_or_else(|| checkpoint.unrecognized())?;
    match family.networks {
        Some(networks) => networks(checkpoint),
        None => Err(Error::Unsupported { what: "training of", value: family.name.to_owned() }),
    }
}
