//! DAC, the Descript audio codec: convolutions with Snake and a factorized, normalized quantizer.
//!
//! All four published models: 16, 24 and 44.1 kHz at 6, 24 and 7.75 kbit/s, and 44.1 kHz at 15.5 kbit/s,
//! whose narrower latents only the original checkpoint can express. Channels are coded as they come from
//! the caller, one at a time: the networks are mono. Nothing is normalized in loudness.
//!
//! The decoders of the 16 and 24 kHz models give 8 samples less than 320 for every frame, as in the
//! reference: a clip that ends within 8 samples of a whole frame comes back that much shorter.
//!
//! # Source
//! Kumar et al. 2023, "High-fidelity audio compression with improved RVQGAN", arXiv 2306.06546;
//! descriptinc/descript-audio-codec 1.0.0, dac/model/dac.py; Hugging Face transformers, models/dac.
//! Vectors: `tests/vectors/dac_*.safetensors`.
//!
//! # Deviations
//! The reference's `compress` cuts long audio into windows, without padding in any convolution, and its
//! codes depend on the window. Here a clip of any length has the codes of `encode`.
//! A stage hands on the entry itself, where the reference adds a rounding error (`z + (entry - z)`).

use super::Family;
use crate::codec::Networks;
use crate::error::{Error, Result};
use crate::nets::dacnet::{Dacnet, Kind};
use crate::ops::load_both;
use crate::weights::{Checkpoint, Weights, model_type};
use candle_core::Device;
use codec_core::{AudioSpec, Codec, CodecInfo, Delays};
use serde::Deserialize;

/// See the module.
pub(super) const FAMILY: Family = Family {
    name: "dac",
    recognizes,
    signs: &[
        &["encoder.conv1.bias", "quantizer.quantizers.0.codebook.weight"],
        &["encoder.block.0.bias", "quantizer.quantizers.0.codebook.weight"],
    ],
    load,
    networks: Some(networks),
};

fn recognizes(checkpoint: &Checkpoint) -> bool {
    match checkpoint.config() {
        Some(config) => model_type(config).as_deref() == Some(FAMILY.name),
        None => Original::of(checkpoint).is_ok_and(|original| original.is_some()),
    }
}

fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Codec>> {
    Ok(Box::new(networks(checkpoint)?.codec(device)?))
}

fn networks(checkpoint: &Checkpoint) -> Result<Networks> {
    let Some(weights) = checkpoint.weights() else {
        return Err(checkpoint.unrecognized());
    };
    match (checkpoint.config(), Original::of(checkpoint)?) {
        (Some(config), _) => {
            let config: Config = serde_json::from_str(config)
                .map_err(|e| Error::Config { field: "config.json", why: e.to_string() })?;
            let model = config.model();
            model.build(&weights.renamed(|name| original_name(name, &model.net))?)
        }
        (None, Some(original)) => original.model().build(weights),
        (None, None) => Err(checkpoint.unrecognized()),
    }
}

/// What both kinds of configuration say.
#[derive(Clone, Debug)]
struct Model {
    net: Dacnet,
    n_codebooks: usize,
    sample_rate: u32,
}

impl Model {
    fn build(&self, weights: &Weights) -> Result<Networks> {
        let hop_length = self.net.hop_length()?;
        if self.n_codebooks > codec_core::codes::MAX_CODEBOOKS {
            return Err(Error::Config { field: "n_codebooks", why: "are too many".to_owned() });
        }
        if self.sample_rate == 0 {
            return Err(Error::Config { field: "sample_rate", why: "must not be zero".to_owned() });
        }
        let quantizer = self.net.quantizer(weights, &vec![1; self.n_codebooks])?;
        let info = CodecInfo {
            model: self.name(),
            family: FAMILY.name,
            audio: AudioSpec { sample_rate: self.sample_rate, channels: 1 },
            hop_length,
            delays: Delays::default(),
            segment: None,
            layout: quantizer.layout()?,
        };
        let (encoder, decoder) = load_both(|| self.net.encoder(weights, 1), || self.net.decoder(weights))?;
        weights.finish(&[])?;
        Ok(Networks { info, encoder, decoder, quantizer })
    }

    /// The published name, which two models of one rate share but for the bitrate.
    fn name(&self) -> String {
        let suffix = if (self.sample_rate, self.n_codebooks) == (44_100, 18) { "_16kbps" } else { "" };
        format!("dac_{}khz{suffix}", self.sample_rate / 1000)
    }
}

/// `config.json` of a Hugging Face checkpoint. Fields that it leaves out have the values that they
/// have there.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Config {
    codebook_dim: usize,
    codebook_size: usize,
    decoder_hidden_size: usize,
    downsampling_ratios: Vec<usize>,
    encoder_hidden_size: usize,
    /// Follows from the encoder when it is left out.
    hidden_size: Option<usize>,
    n_codebooks: usize,
    sampling_rate: u32,
    /// The same rates backwards when it is left out.
    upsampling_ratios: Option<Vec<usize>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            codebook_dim: 8,
            codebook_size: 1024,
            decoder_hidden_size: 1536,
            downsampling_ratios: vec![2, 4, 8, 8],
            encoder_hidden_size: 64,
            hidden_size: None,
            n_codebooks: 9,
            sampling_rate: 16_000,
            upsampling_ratios: None,
        }
    }
}

impl Config {
    fn model(&self) -> Model {
        let backwards = || self.downsampling_ratios.iter().rev().copied().collect();
        let net = Dacnet {
            encoder_dim: self.encoder_hidden_size,
            encoder_rates: self.downsampling_ratios.clone(),
            latent_dim: self
                .hidden_size
                .unwrap_or_else(|| widest(self.encoder_hidden_size, &self.downsampling_ratios)),
            decoder_dim: self.decoder_hidden_size,
            decoder_rates: self.upsampling_ratios.clone().unwrap_or_else(backwards),
            codebook_size: self.codebook_size,
            codebook_dim: self.codebook_dim,
            kind: Kind::Dac,
        };
        Model { net, n_codebooks: self.n_codebooks, sample_rate: self.sampling_rate }
    }
}

/// What an original checkpoint says beside its tensors: the arguments of the model's constructor.
#[derive(Clone, Debug, Deserialize)]
struct Original {
    codebook_dim: usize,
    codebook_size: usize,
    decoder_dim: usize,
    decoder_rates: Vec<usize>,
    encoder_dim: usize,
    encoder_rates: Vec<usize>,
    latent_dim: Option<usize>,
    n_codebooks: usize,
    sample_rate: u32,
}

impl Original {
    /// The arguments in a checkpoint of audiotools; `None` in any other.
    fn of(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Outer {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Metadata {
            kwargs: serde_json::Value,
        }
        let outer = checkpoint.metadata().and_then(|text| serde_json::from_str::<Outer>(text).ok());
        let Some(kwargs) = outer.map(|outer| outer.metadata.kwargs) else {
            return Ok(None);
        };
        let wrong = |e: serde_json::Error| Error::Config { field: "kwargs", why: e.to_string() };
        serde_json::from_value(kwargs).map(Some).map_err(wrong)
    }

    fn model(self) -> Model {
        let latent_dim = self.latent_dim.unwrap_or_else(|| widest(self.encoder_dim, &self.encoder_rates));
        let net = Dacnet {
            encoder_dim: self.encoder_dim,
            encoder_rates: self.encoder_rates,
            latent_dim,
            decoder_dim: self.decoder_dim,
            decoder_rates: self.decoder_rates,
            codebook_size: self.codebook_size,
            codebook_dim: self.codebook_dim,
            kind: Kind::Dac,
        };
        Model { net, n_codebooks: self.n_codebooks, sample_rate: self.sample_rate }
    }
}

/// Channels at the encoder's end; zero, which is refused, where they are too many to count.
fn widest(encoder_dim: usize, rates: &[usize]) -> usize {
    u32::try_from(rates.len())
        .ok()
        .and_then(|n| encoder_dim.checked_mul(1_usize.checked_shl(n)?))
        .unwrap_or(0)
}

/// The original package's name of a tensor of Hugging Face: `encoder.block.0.res_unit1.conv1.bias` is
/// `encoder.block.1.block.0.block.1.bias`.
fn original_name(name: &str, net: &Dacnet) -> String {
    let renamed = || {
        let (part, rest) = name.split_once('.')?;
        let (row, n_rates) = match part {
            "encoder" => ("encoder.block", net.encoder_rates.len()),
            "decoder" => ("decoder.model", net.decoder_rates.len()),
            _ => return None,
        };
        let (layer, rest) = rest.split_once('.')?;
        let place = match layer {
            "conv1" => 0,
            "snake1" => n_rates + 1,
            "conv2" => n_rates + 2,
            "block" => {
                let (block_idx, rest) = rest.split_once('.')?;
                let place = block_idx.parse::<usize>().ok()?.checked_add(1)?;
                let inner = place_in_block(part == "encoder", rest)?;
                return Some(format!("{row}.{place}.block.{inner}"));
            }
            _ => return None,
        };
        Some(format!("{row}.{place}.{rest}"))
    };
    renamed().unwrap_or_else(|| name.to_owned())
}

/// The same within a block, where the residual units stand before or after the change of rate.
fn place_in_block(encodes: bool, name: &str) -> Option<String> {
    let (layer, rest) = name.split_once('.')?;
    let place = match (layer, encodes) {
        ("res_unit1", true) => 0,
        ("res_unit2", true) => 1,
        ("res_unit3", true) => 2,
        ("snake1", true) => 3,
        ("conv1", true) => 4,
        ("snake1", false) => 0,
        ("conv_t1", false) => 1,
        ("res_unit1", false) => 2,
        ("res_unit2", false) => 3,
        ("res_unit3", false) => 4,
        _ => return None,
    };
    if !layer.starts_with("res_unit") {
        return Some(format!("{place}.{rest}"));
    }
    let (layer, rest) = rest.split_once('.')?;
    let inner = ["snake1", "conv1", "snake2", "conv2"].iter().position(|name| *name == layer)?;
    Some(format!("{place}.block.{inner}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Config {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn published_configurations() {
        for (json, name, hop_length, bitrate) in [
            (
                r#"{"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 12, "sampling_rate": 16000}"#,
                "dac_16khz",
                320,
                6_000.0,
            ),
            (
                r#"{"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32, "sampling_rate": 24000}"#,
                "dac_24khz",
                320,
                24_000.0,
            ),
            (r#"{"sampling_rate": 44100}"#, "dac_44khz", 512, 7_751.953_125),
        ] {
            let model = parse(json).model();
            assert_eq!((model.name().as_str(), model.net.hop_length().unwrap()), (name, hop_length));
            assert_eq!(model.net.latent_dim, 1024);
            let frame_rate = f64::from(model.sample_rate) / f64::from(hop_length);
            assert_eq!(frame_rate * 10.0 * model.n_codebooks as f64, bitrate);
        }
        let original = r#"{"encoder_dim": 64, "encoder_rates": [2, 4, 8, 8], "latent_dim": 128,
            "decoder_dim": 1536, "decoder_rates": [8, 8, 4, 2], "n_codebooks": 18, "codebook_size": 1024,
            "codebook_dim": 8, "quantizer_dropout": 0.5, "sample_rate": 44100}"#;
        let model = serde_json::from_str::<Original>(original).unwrap().model();
        assert_eq!((model.name().as_str(), model.net.latent_dim), ("dac_44khz_16kbps", 128));
    }

    #[test]
    fn what_is_wrong_is_refused_at_load() {
        let weights = Weights::from_bytes(b"\x02\0\0\0\0\0\0\0{}".to_vec(), &Device::Cpu).unwrap();
        for (json, expected) in [
            (r#"{"downsampling_ratios": []}"#, "configuration: encoder_rates: is zero or too large"),
            (r#"{"downsampling_ratios": [2, 1]}"#, "configuration: encoder_rates: must not be below two"),
            (
                r#"{"downsampling_ratios": [60000, 60000]}"#,
                "configuration: encoder_rates: multiply to too much",
            ),
            (
                r#"{"upsampling_ratios": [2, 4]}"#,
                "configuration: decoder_rates: do not lead back to the audio's rate",
            ),
            (
                r#"{"encoder_hidden_size": 60000, "hidden_size": 8}"#,
                "configuration: encoder_rates: are too many",
            ),
            (
                r#"{"encoder_hidden_size": 18446744073709551615}"#,
                "configuration: encoder_dim: is zero or too large",
            ),
            (r#"{"decoder_hidden_size": 15}"#, "configuration: decoder_dim: leaves no channels"),
            (r#"{"codebook_dim": 0}"#, "configuration: codebook_dim: is zero or too large"),
            (r#"{"n_codebooks": 1000}"#, "configuration: n_codebooks: are too many"),
            (r#"{"sampling_rate": 0}"#, "configuration: sample_rate: must not be zero"),
            ("{}", "the checkpoint lacks quantizer.quantizers.0.codebook.weight"),
        ] {
            let error = parse(json).model().build(&weights).unwrap_err();
            assert_eq!(error.to_string(), expected, "{json}");
        }
    }

    #[test]
    fn names_of_hugging_face() {
        let net = parse("{}").model().net;
        for (modern, original) in [
            ("encoder.conv1.weight", "encoder.block.0.weight"),
            ("encoder.block.0.res_unit1.snake1.alpha", "encoder.block.1.block.0.block.0.alpha"),
            ("encoder.block.2.res_unit3.conv2.bias", "encoder.block.3.block.2.block.3.bias"),
            ("encoder.block.3.snake1.alpha", "encoder.block.4.block.3.alpha"),
            ("encoder.block.3.conv1.weight_v", "encoder.block.4.block.4.weight_v"),
            ("encoder.snake1.alpha", "encoder.block.5.alpha"),
            ("encoder.conv2.bias", "encoder.block.6.bias"),
            ("decoder.conv1.weight", "decoder.model.0.weight"),
            ("decoder.block.0.snake1.alpha", "decoder.model.1.block.0.alpha"),
            ("decoder.block.1.conv_t1.bias", "decoder.model.2.block.1.bias"),
            ("decoder.block.3.res_unit2.snake2.alpha", "decoder.model.4.block.3.block.2.alpha"),
            ("decoder.snake1.alpha", "decoder.model.5.alpha"),
            ("decoder.conv2.bias", "decoder.model.6.bias"),
            ("quantizer.quantizers.3.codebook.weight", "quantizer.quantizers.3.codebook.weight"),
            ("encoder.block.x.conv1.bias", "encoder.block.x.conv1.bias"),
        ] {
            assert_eq!(original_name(modern, &net), original);
        }
    }
}
