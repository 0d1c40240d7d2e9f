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
use crate::ops::{LoadOptions, Purpose, with_options};
use crate::weights::Checkpoint;
use candle_core::Device;
use codec_core::Codec;
use std::borrow::Cow;
use std::path::Path;

/// A kind of codec and how to load one.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Name of the family, as in `CodecInfo::family`.
    pub name: &'static str,
    /// Whether the checkpoint is one of this family, by its content.
    pub recognizes: fn(&Checkpoint) -> bool,
    /// Sets of tensors by which weights show that they are of this family, where only a configuration says the
    /// rest: for an error's sake.
    pub signs: &'static [&'static [&'static str]],
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
/// errors of the family's own loading, in [`Error::Misfit`] or [`Error::Recognized`], which name the family.
pub fn load(path: &Path, device: &Device) -> Result<Loaded> {
    let _span = tracing::info_span!("load", path = %path.display()).entered();
    load_checkpoint(&Checkpoint::open(path, device)?, device)
}

/// Loads the codec in an open checkpoint.
///
/// # Errors
/// As [`load`].
pub fn load_checkpoint(checkpoint: &Checkpoint, device: &Device) -> Result<Loaded> {
    let (family, checkpoint) = recognized(checkpoint)?;
    let codec = with_options(checkpoint.options(), || (family.load)(&checkpoint, device));
    let codec = codec.map_err(|error| explained(error, family, &checkpoint, device))?;
    Ok(Loaded { codec, sha256: checkpoint.sha256()? })
}

/// The parts of the codec in `checkpoint`, all of them, for training: tie it to variables first
/// ([`Checkpoint::trained`]).
///
/// # Errors
/// As [`load`]; [`Error::Unsupported`] for a family that is not trained here.
pub fn networks(checkpoint: &Checkpoint) -> Result<Networks> {
    let (family, checkpoint) = recognized(checkpoint)?;
    match family.networks {
        Some(networks) => {
            let options = LoadOptions { purpose: Purpose::Both, ..checkpoint.options() };
            with_options(options, || networks(&checkpoint))
        }
        None => Err(Error::Unsupported { what: "training of", value: family.name.to_owned() }),
    }
}

/// The family of a checkpoint, and what of the checkpoint belongs to it: a configuration that lies beside a file
/// does not when the tensors in that file say that they are another family's.
fn recognized(checkpoint: &Checkpoint) -> Result<(&'static Family, Cow<'_, Checkpoint>)> {
    checkpoint.check_config()?;
    let family = by_content(checkpoint);
    if checkpoint.has_config_beside() {
        let alone = checkpoint.without_config();
        let of_tensors = by_content(&alone);
        if let Some(of_tensors) = of_tensors.filter(|found| family.is_none_or(|it| it.name != found.name)) {
            let path = checkpoint.path().display();
            tracing::warn!(
                "{path}: has the tensors of {}; the config.json beside it is passed over",
                of_tensors.name
            );
            return Ok((of_tensors, Cow::Owned(alone)));
        }
    }
    match (family, named_like(checkpoint)) {
        (Some(family), _) => Ok((family, Cow::Borrowed(checkpoint))),
        (None, Some(families)) => Err(checkpoint.unrecognized_but(&format!(
            "the tensors are named like those of {families}, whose configuration is needed"
        ))),
        (None, None) => Err(checkpoint.unrecognized()),
    }
}

fn by_content(checkpoint: &Checkpoint) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| (family.recognizes)(checkpoint))
}

/// The families whose tensors are named as those of a checkpoint, whatever its configuration says.
fn named_like(checkpoint: &Checkpoint) -> Option<String> {
    if let Some(family) = by_content(&checkpoint.without_config()) {
        return Some(family.name.to_owned());
    }
    let weights = checkpoint.weights()?;
    let has_signs =
        |family: &&Family| family.signs.iter().any(|names| names.iter().all(|name| weights.contains(name)));
    let names: Vec<&str> = FAMILIES.iter().filter(has_signs).map(|family| family.name).collect();
    (!names.is_empty()).then(|| names.join(" or "))
}

/// What kept a checkpoint of a family from being loaded, with all that does not fit.
fn explained(error: Error, family: &Family, checkpoint: &Checkpoint, device: &Device) -> Error {
    let is_misfit = matches!(error, Error::MissingTensors { .. } | Error::UnreadTensors { .. });
    if !is_misfit || checkpoint.weights().is_none() {
        return Error::Recognized { family: family.name, source: Box::new(error) };
    }
    let (surveyed, survey) = checkpoint.surveyed();
    let again = with_options(LoadOptions::default(), || (family.load)(&surveyed, device)).err();
    let mut findings = survey.findings();
    for error in [Some(error), again].into_iter().flatten() {
        if let Error::MissingTensors { names } = error {
            findings.missing.extend(names);
        }
    }
    let looks_like =
        named_like(checkpoint).filter(|like| !like.split(" or ").any(|name| name == family.name));
    Error::Misfit {
        family: family.name,
        n_fit: findings.fitting.len(),
        missing: findings.missing.into_iter().collect(),
        unknown: findings.unknown.into_iter().collect(),
        looks_like,
    }
}
