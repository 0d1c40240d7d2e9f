//! SpeechTokenizer: SEANet with an LSTM in both directions and residual vector quantization, whose first
//! codebook learned from a speech model and carries what is said.
//!
//! The encoder's LSTM reads the clip from its end as well, so no code comes before the clip is over, and its
//! memory grows with the clip: some 50 KB a second. The decoder streams.
//!
//! # Source
//! Zhang et al. 2023, "SpeechTokenizer: unified speech tokenizer for speech language models", arXiv 2308.16692;
//! PyPI `speechtokenizer` 1.0.1, model.py and modules. Vectors: `tests/vectors/speechtokenizer_*.safetensors`.
//!
//! # Deviations
//! None.

use super::Family;
use crate::codec::Networks;
use crate::error::{Error, Result};
use crate::nets::seanet::{Seanet, modern_name};
use crate::ops::{load_both, load_each};
use crate::quantizer::QuantizerNet;
use crate::weights::{Checkpoint, Weights};
use candle_core::Device;
use codec_core::{AudioSpec, CodeLayout, Codec, CodecInfo, Delays};
use serde::Deserialize;

/// See the module.
pub(super) const FAMILY: Family =
    Family { name: "speechtokenizer", recognizes, signs: &[], load, networks: Some(networks) };

/// Buffers of training: how often each entry was used, and whether there are any.
const IGNORED: [&str; 3] = ["cluster_size", "embed_avg", "inited"];
/// The map to what the first codebook learned from; training alone uses it.
const TEACHER: [&str; 2] = ["transform.weight", "transform.bias"];

fn recognizes(checkpoint: &Checkpoint) -> bool {
    let Some(weights) = checkpoint.weights() else { return false };
    match checkpoint.config() {
        // The configuration does not name its model, but no other has these fields.
        Some(config) => {
            serde_json::from_str::<Config>(config).is_ok_and(|config| config.semantic_dimension.is_some())
        }
        None => {
            weights.contains("quantizer.vq.layers.0._codebook.embed")
                && weights.names().any(|name| name.ends_with(".lstm.weight_ih_l0_reverse"))
        }
    }
}

fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Codec>> {
    Ok(Box::new(networks(checkpoint)?.codec(device)?))
}

fn networks(checkpoint: &Checkpoint) -> Result<Networks> {
    let Some(weights) = checkpoint.weights() else {
        return Err(checkpoint.unrecognized());
    };
    let config = match checkpoint.config() {
        Some(config) => {
            serde_json::from_str(config).map_err(|e| Error::config("config.json", e.to_string()))?
        }
        None => Config::default(),
    };
    config.build(&weights.renamed(modern_name)?)
}

/// The JSON beside a checkpoint; among its fields are those of the training. Without one the values are
/// those of the published models.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    activation: String,
    bidirectional: bool,
    codebook_size: u32,
    dilation_base: usize,
    dimension: usize,
    lstm_layers: usize,
    n_filters: usize,
    n_q: usize,
    n_residual_layers: usize,
    residual_kernel_size: usize,
    sample_rate: u32,
    semantic_dimension: Option<usize>,
    strides: Vec<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            activation: "ELU".to_owned(),
            bidirectional: true,
            codebook_size: 1024,
            dilation_base: 2,
            dimension: 1024,
            lstm_layers: 2,
            n_filters: 64,
            n_q: 8,
            n_residual_layers: 1,
            residual_kernel_size: 3,
            sample_rate: 16_000,
            semantic_dimension: Some(768),
            strides: vec![8, 5, 4, 2],
        }
    }
}

impl Config {
    fn build(&self, weights: &Weights) -> Result<Networks> {
        let net = self.net()?;
        let info = CodecInfo {
            model: "speechtokenizer".to_owned(),
            family: FAMILY.name,
            audio: AudioSpec { sample_rate: self.sample_rate, channels: 1 },
            hop_length: net.hop_length()?,
            delays: Delays::default(),
            segment: None,
            layout: CodeLayout::uniform(self.n_q, self.codebook_size)?,
        };
        let shape = (self.codebook_size as usize, self.dimension);
        let codebook = |idx: usize| weights.get(shape, &format!("quantizer.layers.{idx}.codebook.embed"));
        let quantizer = QuantizerNet::residual(load_each(self.n_q, codebook)?);
        let (encoder, decoder) = load_both(
            || net.encoder(&weights.pp("encoder.layers")),
            || net.decoder(&weights.pp("decoder.layers")),
        )?;
        for name in TEACHER.iter().filter(|name| weights.contains(name)) {
            let shape = weights.shape(name).unwrap_or_default().to_vec();
            weights.values(&shape, name)?;
        }
        weights.finish(&IGNORED)?;
        Ok(Networks { info, encoder, decoder, quantizer })
    }

    fn net(&self) -> Result<Seanet> {
        let snake = match self.activation.as_str() {
            "ELU" => false,
            "Snake" => true,
            other => return Err(Error::unsupported("activation", other)),
        };
        if self.sample_rate == 0 {
            return Err(Error::config("sample_rate", "must not be zero"));
        }
        if self.lstm_layers > 16 {
            return Err(Error::config("lstm_layers", "is too large"));
        }
        Ok(Seanet {
            n_residual_layers: self.n_residual_layers,
            residual_kernel_size: self.residual_kernel_size,
            dilation_growth: self.dilation_base,
            n_lstm_layers: self.lstm_layers,
            bidirectional: self.bidirectional,
            snake,
            ..Seanet::usual(self.dimension, self.n_filters, self.strides.clone())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;

    #[test]
    fn what_is_not_implemented_or_wrong_is_refused_at_load() {
        let tensor = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap();
        let weights = safetensors::serialize([("x", tensor)], None).unwrap();
        let weights = Weights::from_bytes(weights, &Device::Cpu).unwrap();
        let published = Config::default;
        for (config, expected) in [
            (Config { activation: "ReLU".to_owned(), ..published() }, "activation `ReLU` is not supported"),
            (Config { sample_rate: 0, ..published() }, "configuration: sample_rate: must not be zero"),
            (Config { strides: vec![], ..published() }, "configuration: upsampling_ratios: must not be zero"),
            (Config { lstm_layers: 17, ..published() }, "configuration: lstm_layers: is too large"),
            (published(), "the checkpoint lacks quantizer.layers.0.codebook.embed"),
        ] {
            assert_eq!(config.build(&weights).unwrap_err().to_string(), expected);
        }
    }
}
