//! The model of a run: its variables, and the networks built from them.

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor, Var};
use codec_nn::Networks;
use codec_nn::families::load_checkpoint;
use codec_nn::weights::{Checkpoint, Variables};
use std::collections::BTreeMap;

/// A codec while it trains.
#[derive(Debug)]
pub struct Model {
    checkpoint: Checkpoint,
    variables: Variables,
    /// As in `config.json`, unless the family does without.
    config: Option<String>,
}

impl Model {
    /// Opens the checkpoint, or prepares a new model whose tensors follow from `seed`.
    ///
    /// # Errors
    /// What the family refuses; [`Error::Config`] for a model that could not be loaded again once it was
    /// exported, such as one whose family needs a configuration that the checkpoint does not have.
    pub fn new(config: &ModelConfig, seed: u64, device: &Device) -> Result<Self> {
        let own = config.config.as_ref().map(serde_json::to_string).transpose();
        let own = own.map_err(|e| Error::config("model.config", e.to_string()))?;
        let (checkpoint, variables) = match (&config.checkpoint, own) {
            (Some(name), own) => {
                let checkpoint = codec_models::open(name, device)?;
                let checkpoint = match own {
                    Some(own) => checkpoint.or_config(own),
                    None => checkpoint,
                };
                (checkpoint, Variables::new(device))
            }
            (None, Some(own)) => (Checkpoint::from_config(own, device), Variables::seeded(device, seed)),
            (None, None) => return Err(Error::config("model", "needs `config` or `checkpoint`")),
        };
        let config_json = checkpoint.config().map(str::to_owned);
        config.freeze.iter().for_each(|prefix| variables.freeze(prefix.clone()));
        let model = Self { checkpoint: checkpoint.trained(&variables), variables, config: config_json };
        // Makes every variable, and finds what is wrong before the first step.
        model.networks()?;
        let names = model.variables.all();
        if let Some(prefix) =
            config.freeze.iter().find(|&prefix| !names.keys().any(|n| n.starts_with(prefix)))
        {
            let why = format!("`{prefix}` is the start of no tensor's name");
            return Err(Error::config("model.freeze", why));
        }
        let exported = Checkpoint::from_bytes(model.export(&BTreeMap::new(), DType::F32)?, device)?;
        load_checkpoint(&exported, device).map_err(|e| {
            let why = format!("a model trained from this could not be loaded again ({e}): set model.config");
            Error::config("model", why)
        })?;
        Ok(model)
    }

    /// The networks of the variables' present values; to be built anew after every change.
    ///
    /// # Errors
    /// What the family refuses.
    pub fn networks(&self) -> Result<Networks> {
        Ok(codec_nn::families::networks(&self.checkpoint)?)
    }

    /// The variables.
    pub fn variables(&self) -> &Variables {
        &self.variables
    }

    /// The model's configuration, as in `config.json`, unless the family does without.
    pub fn config(&self) -> Option<&str> {
        self.config.as_deref()
    }

    /// The model as a safetensors file of this type, with `averages` in place of the variables that have one.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn export(&self, averages: &BTreeMap<String, Tensor>, dtype: DType) -> Result<Vec<u8>> {
        let values = self.variables.all().into_iter().map(|(name, var)| {
            let value = averages.get(&name).cloned().unwrap_or_else(|| var.as_detached_tensor());
            (name, value)
        });
        let values = values.chain(self.variables.constants());
        let rounded = values.map(|(name, value)| Ok((name, value.to_dtype(dtype)?)));
        let values = rounded.collect::<Result<BTreeMap<_, _>>>()?.into_iter();
        let metadata = self.config.iter().map(|config| ("config".to_owned(), config.clone())).collect();
        let metadata = Some(metadata);
        serialize(values, metadata)
    }

    /// Sets the variables.
    ///
    /// # Errors
    /// [`Error::Config`] when a tensor is missing or has another shape.
    pub fn restore(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        restore(&self.variables.all(), tensors)
    }
}

/// Sets variables from tensors of the same names.
pub(crate) fn restore(vars: &BTreeMap<String, Var>, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    for (name, var) in vars {
        let tensor = tensors.get(name).filter(|tensor| tensor.dims() == var.dims());
        let wrong = || Error::config("checkpoint", format!("does not hold {name} as this run has it"));
        var.set(tensor.ok_or_else(wrong)?)?;
    }
    Ok(())
}

/// Tensors as the bytes of a safetensors file.
pub(crate) fn serialize(
    tensors: impl Iterator<Item = (String, Tensor)>,
    metadata: Option<std::collections::HashMap<String, String>>,
) -> Result<Vec<u8>> {
    let tensors: Vec<(String, Tensor)> =
        tensors.map(|(name, tensor)| Ok((name, tensor.detach().contiguous()?))).collect::<Result<_>>()?;
    let bytes = safetensors::serialize(tensors, metadata);
    Ok(bytes.map_err(candle_core::Error::from)?)
}
