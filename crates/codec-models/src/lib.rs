//! From the name of a model, or the path of a checkpoint, to a codec.
//!
//! Whatever a user may write after `--model` is understood here, so that every program of the workspace
//! understands the same.
//!
//! ```
//! use candle_core::Device;
//!
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/encodec-tiny");
//! let codec = codec_models::load(path, &Device::Cpu)?.codec;
//! assert_eq!(codec.info().family, "encodec");
//!
//! let misspelt = codec_models::load("lyra-v3", &Device::Cpu).map(drop).unwrap_err();
//! assert!(misspelt.to_string().contains("did you mean lyra-v2?"));
//! # Ok::<(), codec_models::Error>(())
//! ```

mod embedded;
mod error;
mod named;

pub use codec_nn::{LoadOptions, Loaded, Precision, Purpose};
pub use embedded::embedded;
pub use error::{Error, Result};

use candle_core::Device;
use codec_core::{CodeLayout, CodecInfo};
use codec_hub::{Found, Store};
use codec_io::card::{self, CardSource, ModelCard};
use codec_io::tokens::WeightsHash;
use codec_nn::families::load_checkpoint;
use codec_nn::weights::Checkpoint;
use named::named;
use std::collections::BTreeMap;
use std::path::Path;

/// The model that is used when none is named; it is part of the program.
pub const DEFAULT: &str = "codec-16khz";

/// Loads the model of that name, or the checkpoint at that path.
///
/// A model has the name of its card, which leads back to it from a token file; a checkpoint at a path has the one
/// that its family gives it.
///
/// # Errors
/// [`Error::Unknown`] when it is neither; [`Error::Absent`] when the model's files are not on this machine;
/// [`Error::Changed`] when they are not those that its card names; [`Error::Load`] when they do not load;
/// [`Error::OtherCodec`] when they are not of such a codec as the card describes.
pub fn load(name: &str, device: &Device) -> Result<Loaded> {
    load_with(name, device, LoadOptions::default())
}

/// As [`load`], in a precision and for a purpose.
///
/// # Errors
/// As [`load`].
pub fn load_with(name: &str, device: &Device, options: impl Into<LoadOptions>) -> Result<Loaded> {
    let (checkpoint, of_card) = find(name, device)?;
    let checkpoint = checkpoint.with_options(options);
    let loaded = load_checkpoint(&checkpoint, device);
    // The digests take as long as the loading, beside which they are computed; other files than those that are
    // expected are the better explanation of a failure.
    let loaded = match of_card {
        Some((card, found)) => {
            check_files(card, &found, digests(&checkpoint, name)?)?;
            let loaded = loaded.map_err(Error::load_card(card))?;
            check_codec(card, loaded.codec.info())?;
            Loaded { codec: named(loaded.codec, &card.name), ..loaded }
        }
        None => loaded.map_err(Error::load(name))?,
    };
    tracing::info!(model = loaded.codec.info().model, %name, "model loaded");
    Ok(loaded)
}

/// The checkpoint of the model of that name, or at that path, before it is made into a codec, which nobody has
/// compared with the card then.
///
/// # Errors
/// As [`load`], but for [`Error::OtherCodec`].
pub fn open(name: &str, device: &Device) -> Result<Checkpoint> {
    let (checkpoint, of_card) = find(name, device)?;
    if let Some((card, found)) = of_card {
        check_files(card, &found, digests(&checkpoint, name)?)?;
    }
    Ok(checkpoint)
}

/// The card of that name.
///
/// # Errors
/// [`Error::Unknown`] when there is none; it lists the known ones and says which one may be meant.
pub fn card(name: &str) -> Result<&'static ModelCard> {
    card::find(name).ok_or_else(|| Error::unknown(name, false))
}

/// The card of the model with these weights, where a card states their SHA-256.
pub fn card_of_weights(sha256: &WeightsHash) -> Option<&'static ModelCard> {
    let has = |card: &&ModelCard| card.files.iter().any(|file| file.sha256.as_ref() == Some(sha256));
    card::cards().iter().find(has)
}

/// Whether the model of that name, which was found to be no path, is on this machine, or part of the program.
///
/// # Errors
/// [`Error::Unknown`] when there is none, and [`Error::Hub`] when the lock file cannot be read.
pub fn is_here(name: &str) -> Result<bool> {
    let card = card::find(name).ok_or_else(|| Error::unknown(name, true))?;
    Ok(embedded(&card.name).is_some() || store().find(card)?.is_some())
}

/// Where models lie on this machine.
pub fn store() -> Store {
    Store::from_env()
}

/// Where a model was published, as text for a person.
pub fn origin(source: &CardSource) -> String {
    let detail = |what: &str, value: &Option<String>| {
        value.as_ref().map(|value| format!(", {what} {value}")).unwrap_or_default()
    };
    format!(
        "{}{}{}{}",
        source.url,
        detail("release", &source.release),
        detail("revision", &source.revision),
        detail("folder", &source.folder)
    )
}

/// The files of a card, which still have to be compared with what is known of them.
type OfCard = (&'static ModelCard, Found);

/// The path that `name` means: one at which something lies. Where the name of a model is meant as well, as a
/// folder without a checkpoint that happens to have it, it is no path.
pub fn as_path(name: &str) -> Option<&Path> {
    let path = Path::new(name);
    if !path.exists() {
        return None;
    }
    let is_plain = !name.contains(std::path::is_separator);
    if is_plain && card::find(name).is_some() && Checkpoint::open(path, &Device::Cpu).is_err() {
        tracing::warn!("{name} is taken for the model: what lies here under that name is no checkpoint");
        return None;
    }
    Some(path)
}

/// Opens what lies at that path, or else the model of that name.
fn find(name: &str, device: &Device) -> Result<(Checkpoint, Option<OfCard>)> {
    if let Some(path) = as_path(name) {
        return Ok((Checkpoint::open(path, device).map_err(Error::load(name))?, None));
    }
    open_card(card::find(name).ok_or_else(|| Error::unknown(name, true))?, device)
}

/// Opens the files of a card, or the bytes that are part of the program, where there is nothing to compare.
fn open_card(card: &'static ModelCard, device: &Device) -> Result<(Checkpoint, Option<OfCard>)> {
    if let Some(bytes) = embedded(&card.name) {
        let checkpoint = Checkpoint::from_bytes(bytes.to_vec(), device).map_err(Error::load(&card.name));
        return Ok((checkpoint?, None));
    }
    let Some(found) = store().find(card)? else { return Err(absent(card)?) };
    let mut checkpoint = match Checkpoint::open_files(&found.files, device) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            check_files(card, &found, &BTreeMap::new())?;
            return Err(Error::load_card(card)(error));
        }
    };
    if let Some(config) = card.config_json() {
        checkpoint = checkpoint.or_config(config);
    }
    Ok((checkpoint, Some((card, found))))
}

/// SHA-256 of the files with weights, by name.
fn digests<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a BTreeMap<String, [u8; 32]>> {
    checkpoint.files().map_err(Error::load(name))
}

/// Fails unless all files of the card, the configuration among them, are those that the card or the first pull
/// knew. `digests` are those that are known already.
fn check_files(card: &ModelCard, found: &Found, digests: &BTreeMap<String, [u8; 32]>) -> Result<()> {
    for file in &card.files {
        let checked = match digests.get(&file.name) {
            Some(sha256) => found.check_digest(file, WeightsHash(*sha256))?,
            None => found.check(file)?,
        };
        checked
            .accepted()
            .map_err(|change| Error::Changed { model: card.name.clone(), change: Box::new(change) })?;
    }
    Ok(())
}

/// Fails unless a codec is such a one as the card describes. Where a card states no SHA-256, anything of the right
/// file names could lie there.
fn check_codec(card: &ModelCard, info: &CodecInfo) -> Result<()> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, is: String, expected: String| {
        if is != expected {
            differences.push(format!("{what} {is}, not {expected}"));
        }
    };
    compare("family", info.family.to_owned(), card.family.clone());
    compare("sample rate", info.audio.sample_rate.to_string(), card.sample_rate.to_string());
    compare("channels", info.audio.channels.to_string(), card.channels.to_string());
    compare("samples per frame", info.hop_length.to_string(), card.hop_length.to_string());
    // Cards do not speak of scales.
    let books =
        |layout: codec_core::Result<CodeLayout>| layout.map_or_else(|e| e.to_string(), |l| l.to_string());
    compare("codebooks", books(CodeLayout::new(info.layout.codebooks().to_vec())), books(card.layout()));
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::OtherCodec { model: card.name.clone(), differences })
}

/// What to do when the files of a model are not here.
fn absent(card: &ModelCard) -> Result<Error> {
    let consent = if card.licence.non_commercial == Some(true) { " --accept-non-commercial" } else { "" };
    let files: Vec<&str> = card.files.iter().map(|file| file.name.as_str()).collect();
    Ok(Error::Absent {
        model: card.name.clone(),
        consent,
        files: files.join(", "),
        url: origin(&card.source),
        folder: store().folder(card)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(card: &ModelCard) -> CodecInfo {
        CodecInfo {
            model: card.name.clone(),
            family: "encodec",
            audio: codec_core::AudioSpec { sample_rate: card.sample_rate, channels: card.channels },
            hop_length: card.hop_length,
            delays: codec_core::Delays::default(),
            segment: None,
            layout: card.layout().unwrap(),
        }
    }

    #[test]
    fn a_codec_that_the_card_does_not_describe_is_refused_with_every_difference() {
        let stereo = card("encodec_48khz").unwrap();
        let with_scales =
            CodecInfo { layout: stereo.layout().unwrap().with_scales(150).unwrap(), ..info(stereo) };
        check_codec(stereo, &with_scales).unwrap();
        check_codec(stereo, &info(stereo)).unwrap();
        let error = check_codec(card("dac_16khz").unwrap(), &with_scales).unwrap_err().to_string();
        let differences = "family encodec, not dac, sample rate 48000, not 16000, channels 2, not 1, \
                           codebooks 16 x 1024, not 12 x 1024;";
        assert!(error.contains(differences) && error.contains("pull dac_16khz --force"), "{error}");
        let slower = CodecInfo { hop_length: 640, ..info(stereo) };
        let error = check_codec(stereo, &slower).unwrap_err().to_string();
        assert!(error.contains("says: samples per frame 640, not 320;"), "{error}");
    }

    #[test]
    fn weights_lead_to_the_card_that_states_them() {
        let original = card("dac_16khz-original").unwrap();
        let found = card_of_weights(&original.files[0].sha256.unwrap());
        assert_eq!(found.map(|card| card.name.as_str()), Some("dac_16khz-original"));
        assert!(card_of_weights(&WeightsHash::UNKNOWN).is_none());
    }

    #[test]
    fn what_may_be_given_instead_of_an_unknown_name_is_said() {
        let of_card = card("").unwrap_err().to_string();
        assert!(of_card.starts_with("`` is not the name of a model; known are "), "{of_card}");
        let of_model = load("./lyra-v2", &Device::Cpu).unwrap_err().to_string();
        assert!(of_model.starts_with("./lyra-v2: neither a file or folder nor a known model"), "{of_model}");
    }
}
