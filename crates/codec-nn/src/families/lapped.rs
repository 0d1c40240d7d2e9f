//! This project's own codec: spectra of a lapped transform in and out, ConvNeXt blocks at the rate of frames
//! between.
//!
//! The encoder takes cosine and sine transforms of frames that overlap by half, with the roots of their
//! magnitudes. Beside its network runs a matrix, so that the codec begins as a plain transform codec and the
//! network learns what that lacks: context before the quantizer and prediction after it. The decoder squares
//! what it makes of the latents and transforms it back. Everything looks back in time alone, except that a
//! frame reaches one hop beyond its own.
//!
//! The first hop of a clip, 20 ms at the published rate, comes windowed and folded: it has no frame before it.
//!
//! # Source
//! The transform: see `nets/mdct.rs`; the blocks: see `nets/convnext.rs`; coding spectra with ConvNeXt blocks
//! follows Siuzdak 2023, "Vocos", arXiv 2306.00814, and Jiang et al. 2024, "MDCTCodec", arXiv 2411.00464.
//! Vectors: `tests/vectors/lapped_*.safetensors`.

use super::Family;
use crate::codec::{Net, Networks};
use crate::error::{Error, Result};
use crate::layers::{Activation, ChannelScale, DynLayer, Linear, Padding, Residual, Unary};
use crate::nets::convnext::{ConvNext, layer_norm, linear};
use crate::nets::mdct;
use crate::ops::load_both;
use crate::quantizer::QuantizerNet;
use crate::weights::{Checkpoint, Weights, model_type};
use candle_core::Device;
use codec_core::{AudioSpec, CodeLayout, Codec, CodecInfo, Delays};
use serde::Deserialize;

/// See the module.
pub(super) const FAMILY: Family = Family {
    name: "lapped",
    recognizes,
    signs: &[&["encoder.embed.weight", "quantizer.0.codebook"]],
    load,
    networks: Some(networks),
};

const NORM_EPSILON: f32 = 1e-6;
/// Below this magnitude, -60 dB, the root of a transform's value goes over into a line.
const ROOT_FLOOR: f32 = 1e-3;
/// As [`ROOT_FLOOR`], for the square that undoes the root.
const SQUARE_FLOOR: f32 = 1e-2;
/// Beyond this a configuration is not a codec's but a mistake or an attack.
const MAX_SIZE: usize = 1 << 12;

fn recognizes(checkpoint: &Checkpoint) -> bool {
    checkpoint.config().and_then(model_type).as_deref() == Some(FAMILY.name)
}

fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Codec>> {
    Ok(Box::new(networks(checkpoint)?.codec(device)?))
}

fn networks(checkpoint: &Checkpoint) -> Result<Networks> {
    let (Some(config), Some(weights)) = (checkpoint.config(), checkpoint.weights()) else {
        return Err(checkpoint.unrecognized());
    };
    let config: Config = serde_json::from_str(config)
        .map_err(|e| Error::Config { field: "config.json", why: e.to_string() })?;
    config.check()?;
    config.build(weights)
}

/// `config.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(rename = "model_type")]
    _model_type: String,
    /// What the codec calls itself.
    #[serde(default = "family_name")]
    name: String,
    sampling_rate: u32,
    /// Samples per frame.
    hop_length: usize,
    n_codebooks: usize,
    codebook_size: u32,
    /// Paths that the search for codes keeps.
    #[serde(default = "one_path")]
    beam: usize,
    /// Values per latent.
    latent_dim: usize,
    encoder: NetConfig,
    decoder: NetConfig,
}

/// One of the two networks.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetConfig {
    n_blocks: usize,
    /// Channels.
    dim: usize,
    /// Channels inside a block.
    hidden: usize,
    /// Frames that a block's convolution sees.
    kernel: usize,
}

fn family_name() -> String {
    FAMILY.name.to_owned()
}

fn one_path() -> usize {
    1
}

impl Config {
    fn check(&self) -> Result<()> {
        let Self { encoder, decoder, .. } = self;
        let sizes = [
            ("hop_length", self.hop_length),
            ("latent_dim", self.latent_dim),
            ("dim", encoder.dim.min(decoder.dim)),
            ("dim", encoder.dim.max(decoder.dim)),
            ("hidden", encoder.hidden.min(decoder.hidden)),
            ("hidden", encoder.hidden.max(decoder.hidden)),
            ("kernel", encoder.kernel.min(decoder.kernel)),
            ("kernel", encoder.kernel.max(decoder.kernel)),
            // None is fine.
            ("n_blocks", 1 + encoder.n_blocks.max(decoder.n_blocks)),
        ];
        for (field, size) in sizes {
            if size == 0 || size > MAX_SIZE {
                return Err(Error::config(field, "is not within reason"));
            }
        }
        if self.sampling_rate == 0 {
            return Err(Error::config("sampling_rate", "must not be zero"));
        }
        Ok(())
    }

    fn build(&self, weights: &Weights) -> Result<Networks> {
        let info = CodecInfo {
            model: self.name.clone(),
            family: FAMILY.name,
            audio: AudioSpec { sample_rate: self.sampling_rate, channels: 1 },
            hop_length: self.hop_length as u32,
            delays: Delays::default(),
            segment: None,
            layout: CodeLayout::uniform(self.n_codebooks, self.codebook_size)?,
        };
        let codebooks = weights.pp("quantizer");
        let shape = (self.codebook_size as usize, self.latent_dim);
        let codebook = |idx: usize| codebooks.pp(idx).get(shape, "codebook");
        let codebooks = (0..self.n_codebooks).map(codebook).collect::<Result<_>>()?;
        let quantizer = QuantizerNet::beam(codebooks, self.beam);
        let (encoder, decoder) =
            load_both(|| self.encoder(&weights.pp("encoder")), || self.decoder(&weights.pp("decoder")))?;
        weights.finish(&[])?;
        Ok(Networks { info, encoder, decoder, quantizer })
    }

    /// `[batch, n_samples, 1]` to `[batch, n_frames, latent_dim]`.
    fn encoder(&self, weights: &Weights) -> Result<Net> {
        let hop_length = self.hop_length;
        Ok(vec![
            DynLayer::new(mdct::analysis(hop_length, weights.device())?),
            DynLayer::new(Activation::Unary(Unary::SignedRoot { floor: ROOT_FLOOR })),
            DynLayer::new(self.encoder.net(weights, 2 * hop_length, self.latent_dim)?),
        ])
    }

    /// `[batch, n_frames, latent_dim]` to `[batch, n_frames * hop_length, 1]`.
    fn decoder(&self, weights: &Weights) -> Result<Net> {
        let hop_length = self.hop_length;
        Ok(vec![
            DynLayer::new(self.decoder.net(weights, self.latent_dim, hop_length)?),
            DynLayer::new(Activation::Unary(Unary::SignedSquare { floor: SQUARE_FLOOR })),
            DynLayer::new(mdct::synthesis(hop_length, weights.device())?),
        ])
    }
}

impl NetConfig {
    /// A matrix, and beside it blocks that only look back.
    fn net(self, weights: &Weights, c_in: usize, c_out: usize) -> Result<Residual<Net, Linear>> {
        let Self { dim, hidden, kernel, .. } = self;
        let padding = Padding { left: kernel - 1, ..Padding::default() };
        let block = ConvNext { dim, hidden, kernel, padding, epsilon: NORM_EPSILON };
        let mut net = vec![
            DynLayer::new(linear(&weights.pp("embed"), c_in, dim)?),
            DynLayer::new(layer_norm(&weights.pp("norm"), dim, NORM_EPSILON)?),
        ];
        for block_idx in 0..self.n_blocks {
            net.push(block.plain_block(&weights.pp("blocks").pp(block_idx))?);
        }
        net.push(DynLayer::new(layer_norm(&weights.pp("final_norm"), dim, NORM_EPSILON)?));
        net.push(DynLayer::new(linear(&weights.pp("head"), dim, c_out)?));
        net.push(DynLayer::new(ChannelScale::new(weights.pp("head").get(c_out, "scale")?)?));
        let shortcut = Linear::new(&weights.pp("shortcut").get((c_out, c_in), "weight")?, None)?;
        Ok(Residual::with_shortcut(net, shortcut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Layer;
    use crate::ops::testing::values;
    use crate::weights::Variables;
    use candle_core::Tensor;

    const HOP_LENGTH: usize = 40;

    fn config(latent_dim: usize) -> String {
        format!(
            r#"{{"model_type": "lapped", "sampling_rate": 8000, "hop_length": {HOP_LENGTH}, "n_codebooks": 2,
                "codebook_size": 8, "latent_dim": {latent_dim},
                "encoder": {{"n_blocks": 1, "dim": 8, "hidden": 16, "kernel": 3}},
                "decoder": {{"n_blocks": 2, "dim": 12, "hidden": 8, "kernel": 5}}}}"#
        )
    }

    #[test]
    fn a_new_model_is_a_transform_codec() {
        let variables = Variables::seeded(&Device::Cpu, 1);
        let checkpoint = Checkpoint::from_config(config(HOP_LENGTH), &Device::Cpu).trained(&variables);
        let Networks { encoder, decoder, .. } = networks(&checkpoint).unwrap();
        let n_samples = 20 * HOP_LENGTH;
        let wave: Vec<f32> = (0..n_samples).map(|i| 0.3 * (0.002 * (i * i) as f32).sin()).collect();
        let xs = Tensor::from_vec(wave, (1, n_samples, 1), &Device::Cpu).unwrap();
        let latents = encoder.forward(&xs).unwrap().unwrap();
        assert_eq!(latents.dims(), [1, 20, HOP_LENGTH]);
        let ys = decoder.forward(&latents).unwrap().unwrap();
        assert_eq!(ys.dims(), xs.dims());
        let (xs, ys) = (&values(&xs)[HOP_LENGTH..], &values(&ys)[HOP_LENGTH..]);
        let error: f64 = xs.iter().zip(ys).map(|(x, y)| (x - y).powi(2)).sum();
        let power: f64 = xs.iter().map(|x| x * x).sum();
        assert!(error < 0.01 * power, "{error} of {power}");
    }

    #[test]
    fn what_is_not_within_reason_is_refused() {
        let good = config(4);
        assert!(serde_json::from_str::<Config>(&good).unwrap().check().is_ok());
        for (from, to) in [
            ("\"hop_length\": 40", "\"hop_length\": 0"),
            ("\"hop_length\": 40", "\"hop_length\": 100000"),
            ("\"kernel\": 3", "\"kernel\": 0"),
            ("\"hidden\": 16", "\"hidden\": 1000000"),
            ("\"sampling_rate\": 8000", "\"sampling_rate\": 0"),
        ] {
            let bad: Config = serde_json::from_str(&good.replace(from, to)).unwrap();
            assert!(matches!(bad.check(), Err(Error::Config { .. })), "{to}");
        }
    }
}
