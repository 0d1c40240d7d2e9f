//! Language models of others, and how a model at a path is told apart.

pub mod encodec;
pub mod musicgen;

use crate::config::{MODEL_TYPE, ModelConfig};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::predict::LanguageModel;
use crate::quantize::unpack;
use candle_core::Device;
use codec_io::atomic::write_whole;
use codec_nn::weights::Checkpoint;
use std::path::Path;

/// What a model is, in its folder.
pub(crate) const CONFIG: &str = "config.json";
/// Weights of a model folder.
pub(crate) const WEIGHTS: &str = "model.safetensors";

/// Loads the language model at `path`: a folder with `config.json` and `model.safetensors`, or one file.
///
/// `n_codebooks` limits EnCodec's model, which serves any number of its codebooks.
///
/// # Errors
/// What the family refuses; [`Error::Data`] when no family knows what is there; as [`check_n_codebooks`].
pub fn load(path: &Path, n_codebooks: Option<usize>, device: &Device) -> Result<Box<dyn LanguageModel>> {
    let checkpoint = Checkpoint::open(path, device)?;
    #[derive(serde::Deserialize)]
    struct Head {
        model_type: Option<String>,
    }
    let head = checkpoint.config().and_then(|config| serde_json::from_str::<Head>(config).ok());
    let model: Box<dyn LanguageModel> = match head.and_then(|head| head.model_type).as_deref() {
        Some(MODEL_TYPE) => {
            let file = if path.is_dir() { path.join(WEIGHTS) } else { path.to_owned() };
            let bytes = std::fs::read(&file).map_err(Error::io(&file))?;
            Box::new(load_bytes(&bytes, checkpoint.config(), device)?)
        }
        Some("musicgen" | "musicgen_decoder") => Box::new(musicgen::load(&checkpoint, device)?),
        _ if encodec::recognizes(&checkpoint) => Box::new(encodec::load(&checkpoint, n_codebooks)?),
        _ => {
            let why = format!("{}: not a language model that is known", path.display());
            return Err(Error::Data { why });
        }
    };
    check_n_codebooks(model.as_ref(), n_codebooks)?;
    Ok(model)
}

/// Refuses another number of codebooks than the model reads.
///
/// # Errors
/// [`Error::Config`].
pub fn check_n_codebooks(model: &dyn LanguageModel, wanted: Option<usize>) -> Result<()> {
    let n_codebooks = model.arrangement().layout().n_codebooks();
    match wanted {
        Some(wanted) if wanted != n_codebooks => {
            Err(Error::config("n_codebooks", format!("the model reads all {n_codebooks}, never {wanted}")))
        }
        _ => Ok(()),
    }
}

/// The configuration and the weights of a model folder as they are stored; `None` where there is something
/// else.
///
/// # Errors
/// [`Error::Io`]; [`Error::Nn`] for a file that is none of weights; [`Error::Config`] without a configuration.
pub fn stored(folder: &Path) -> Result<Option<[Vec<u8>; 2]>> {
    let file = folder.join(WEIGHTS);
    if !file.is_file() {
        return Ok(None);
    }
    let checkpoint = Checkpoint::open(folder, &Device::Cpu)?;
    let config = checkpoint.config().ok_or_else(no_config)?;
    let weights = std::fs::read(&file).map_err(Error::io(&file))?;
    Ok(Some([config.as_bytes().to_vec(), weights]))
}

fn no_config() -> Error {
    Error::config("config.json", "is not there")
}

/// Writes a model of our own as a folder: `config.json` and `model.safetensors`, each of which appears whole.
///
/// # Errors
/// [`Error::Io`].
pub fn save(folder: &Path, config: &[u8], weights: &[u8]) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    for (name, bytes) in [(CONFIG, config), (WEIGHTS, weights)] {
        let path = folder.join(name);
        write_whole(&path, bytes).map_err(Error::io(&path))?;
    }
    Ok(())
}

/// Loads a model of our own from the bytes of its weights file, which may be packed, see
/// [`crate::quantize`]; the configuration is that of the file unless another is given.
///
/// # Errors
/// [`Error::Config`] without a configuration or with a wrong one; [`Error::Nn`] for tensors that do not fit.
pub fn load_bytes(bytes: &[u8], config: Option<&str>, device: &Device) -> Result<Model> {
    let checkpoint = Checkpoint::from_bytes(unpack(bytes)?.into_owned(), device)?;
    let config = config.or(checkpoint.config()).ok_or_else(no_config)?;
    let weights = checkpoint.weights().ok_or_else(|| Error::config("weights", "are not there"))?;
    let model = Model::new(&ModelConfig::parse(config)?, weights)?;
    weights.finish(&[])?;
    Ok(model)
}
