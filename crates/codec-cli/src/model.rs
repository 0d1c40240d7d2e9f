//! From `--model` to a loaded codec.

use crate::device::DeviceKind;
use anyhow::{Context, Result, bail};
use codec_core::{Codec, CodecInfo};
use codec_io::card::{self, CardSource};
use std::path::{Path, PathBuf};

/// The model that is used when none is named.
const DEFAULT_MODEL: &str = "lyra-v2";

/// How the user names a model and where it is to run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Model: the name of a card, or the path of a checkpoint (a folder or a file)
    /// [default: lyra-v2, when its files are found].
    #[arg(short, long, value_name = "NAME|PATH", env = "CODEC_MODEL")]
    pub(crate) model: Option<String>,
    /// Where the networks run. Other devices than the CPU are not held to the same bits.
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) device: DeviceKind,
}

/// How many codebooks to keep.
#[derive(Clone, Debug, clap::Args)]
#[group(multiple = false)]
pub(crate) struct RateArgs {
    /// Bitrate in kbit/s: as many codebooks as fit into it [default: all codebooks].
    #[arg(short, long, value_name = "KBPS")]
    bitrate: Option<f64>,
    /// Number of codebooks.
    #[arg(short = 'n', long, value_name = "N")]
    codebooks: Option<usize>,
}

impl RateArgs {
    /// The number of codebooks asked for.
    ///
    /// # Errors
    /// When the model has fewer codebooks, or none fits the bitrate.
    pub(crate) fn n_codebooks(&self, info: &CodecInfo) -> Result<usize> {
        let n_all = info.layout.n_codebooks();
        let Some(kbps) = self.bitrate else {
            let n = self.codebooks.unwrap_or(n_all);
            info.layout.check_n_codebooks(n).with_context(|| format!("model {}", info.model))?;
            return Ok(n);
        };
        let lowest = info.bitrate(1)?.to_f64() / 1000.0;
        if !kbps.is_finite() || kbps < lowest {
            bail!("--bitrate {kbps}: model {} starts at {lowest:.3} kbit/s", info.model);
        }
        // Exact for every bitrate that a person would write.
        Ok(info.n_codebooks_for_bitrate((kbps * 1000.0).round() as u64))
    }
}

/// A codec with what a token file says of it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) codec: Box<dyn Codec>,
    pub(crate) sha256: [u8; 32],
}

impl ModelArgs {
    /// Loads the model that the user named, or the default.
    ///
    /// # Errors
    /// When the model is unknown, its files are not found, or they do not load.
    pub(crate) fn load(&self) -> Result<Model> {
        self.load_or(DEFAULT_MODEL)
    }

    /// Loads the model that the user named, or the one that made a token file.
    ///
    /// # Errors
    /// As [`ModelArgs::load`].
    pub(crate) fn load_or(&self, otherwise: &str) -> Result<Model> {
        let name = self.model.as_deref().unwrap_or(otherwise);
        let path = locate(name)?;
        let device = self.device.open()?;
        let loaded = codec_nn::families::load(&path, &device)
            .with_context(|| format!("{}: the model does not load", path.display()))?;
        tracing::info!(model = loaded.codec.info().model, path = %path.display(), "model loaded");
        Ok(Model { codec: loaded.codec, sha256: loaded.sha256 })
    }
}

/// Finds the files of a model.
fn locate(name: &str) -> Result<PathBuf> {
    let as_path = Path::new(name);
    if as_path.exists() {
        return Ok(as_path.to_path_buf());
    }
    let Some(card) = card::find(name) else {
        let known: Vec<&str> = card::cards().iter().map(|card| card.name.as_str()).collect();
        let meant = card::suggest(name).map_or(String::new(), |near| format!(" (did you mean {near}?)"));
        bail!("{name}: neither a file or folder nor a known model{meant}; known are {}", known.join(", "));
    };
    let places = places(&card.name);
    let whole = |place: &&PathBuf| card.files.iter().all(|file| place.join(&file.name).is_file());
    if let Some(place) = places.iter().find(whole) {
        return Ok(place.clone());
    }
    let files: Vec<&str> = card.files.iter().map(|file| file.name.as_str()).collect();
    let places: Vec<String> = places.iter().map(|place| format!("  {}", place.display())).collect();
    bail!(
        "model {name} is not on this machine\n\
         Download {files} from\n  {url}\n\
         and put them into one of\n{places}\n\
         or name their folder with --model",
        name = card.name,
        files = files.join(", "),
        url = origin(&card.source),
        places = places.join("\n"),
    )
}

/// Where a model was published, as text for a person.
fn origin(source: &CardSource) -> String {
    let revision = source.revision.as_ref().map(|revision| format!(", revision {revision}"));
    let folder = source.folder.as_ref().map(|folder| format!(", folder {folder}"));
    format!("{}{}{}", source.url, revision.unwrap_or_default(), folder.unwrap_or_default())
}

/// Where the files of a model are looked for, in order.
fn places(name: &str) -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut places = Vec::new();
    if let Some(folder) = variable("CODEC_MODELS") {
        places.push(folder.join(name));
    }
    let cache = variable("XDG_CACHE_HOME").or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    if let Some(cache) = cache {
        places.push(cache.join("codec").join("models").join(name));
    }
    // The optional shared test data names its folders by family.
    if name == DEFAULT_MODEL {
        places.push(variable("CODEC_SHARED").unwrap_or_else(|| PathBuf::from("../shared")).join("lyra"));
    }
    places
}
