//! SNAC: DAC's networks with depthwise convolutions and codebooks of several frame rates.
//!
//! The published models at 24, 32 and 44.1 kHz. A code of a coarse codebook stands for several frames, so
//! codes come in blocks; with attention, frames come in windows of 32. Zeros complete the last block and
//! window of a clip, so decoded audio is longer than the clip and to be truncated to its length.
//!
//! The decoder adds noise where the network asks for it. The reference draws it anew at each decoding; here
//! it depends on the place in the stream alone, so the same codes give the same audio, to the bit.
//!
//! # Source
//! Siuzdak et al. 2024, "SNAC: multi-scale neural audio codec", arXiv 2410.14411; hubertsiuzdak/snac 1.2.1,
//! snac/snac.py. Vectors: `tests/vectors/snac_*.safetensors`.
//!
//! # Deviations
//! Codes may end inside a window, with which the reference's attention fails: what there is of it is then a
//! shorter window. The noise is ours. As in DAC, a stage hands on the entry itself.

use super::Family;
use crate::codec::Networks;
use crate::error::{Error, Result};
use crate::nets::dacnet::{Dacnet, Kind};
use crate::ops::load_both;
use crate::weights::{Checkpoint, Weights};
use candle_core::Device;
use codec_core::{AudioSpec, Codec, CodecInfo, Delays};
use serde::Deserialize;

/// See the module.
pub(super) const FAMILY: Family = Family {
    name: "snac",
    recognizes,
    signs: &[&["encoder.block.0.bias", "quantizer.quantizers.0.codebook.weight"]],
    load,
    networks: Some(networks),
};

/// Longest window of the attention and largest stride of a codebook, in frames.
const MAX_FRAMES: usize = 512;

fn recognizes(checkpoint: &Checkpoint) -> bool {
    #[derive(Deserialize)]
    struct Head {
        vq_strides: Vec<u32>,
        encoder_rates: Vec<usize>,
    }
    let head = checkpoint.config().and_then(|config| serde_json::from_str::<Head>(config).ok());
    head.is_some_and(|head| !head.vq_strides.is_empty() && !head.encoder_rates.is_empty())
}

fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Codec>> {
    Ok(Box::new(networks(checkpoint)?.codec(device)?))
}

fn networks(checkpoint: &Checkpoint) -> Result<Networks> {
    let (Some(weights), Some(config)) = (checkpoint.weights(), checkpoint.config()) else {
        return Err(checkpoint.unrecognized());
    };
    let config: Config = serde_json::from_str(config)
        .map_err(|e| Error::Config { field: "config.json", why: e.to_string() })?;
    config.build(weights)
}

/// `config.json`: the arguments of the model's constructor. Fields that it leaves out have the values that
/// they have there.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    attn_window_size: Option<usize>,
    codebook_dim: usize,
    codebook_size: usize,
    decoder_dim: usize,
    decoder_rates: Vec<usize>,
    depthwise: bool,
    encoder_dim: usize,
    encoder_rates: Vec<usize>,
    latent_dim: Option<usize>,
    noise: bool,
    sampling_rate: u32,
    vq_strides: Vec<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            attn_window_size: Some(32),
            codebook_dim: 8,
            codebook_size: 4096,
            decoder_dim: 1536,
            decoder_rates: vec![7, 7, 3, 3],
            depthwise: true,
            encoder_dim: 64,
            encoder_rates: vec![3, 3, 7, 7],
            latent_dim: None,
            noise: true,
            sampling_rate: 44_100,
            vq_strides: vec![8, 4, 2, 1],
        }
    }
}

impl Config {
    fn build(&self, weights: &Weights) -> Result<Networks> {
        let net = self.net();
        let (hop_length, block) = (net.hop_length()?, self.block()?);
        if self.sampling_rate == 0 {
            return Err(config("sampling_rate", "must not be zero"));
        }
        let quantizer = net.quantizer(weights, &self.vq_strides)?;
        let layout = quantizer.layout()?;
        if !block.is_multiple_of(layout.stride_frames() as usize) {
            return Err(config("vq_strides", "must divide the first of them"));
        }
        let info = CodecInfo {
            model: format!("snac_{}khz", self.sampling_rate / 1000),
            family: FAMILY.name,
            audio: AudioSpec { sample_rate: self.sampling_rate, channels: 1 },
            hop_length,
            delays: Delays::default(),
            segment: None,
            layout,
        };
        let (encoder, decoder) = load_both(|| net.encoder(weights, block), || net.decoder(weights))?;
        weights.finish(&[])?;
        Ok(Networks { info, encoder, decoder, quantizer })
    }

    fn net(&self) -> Dacnet {
        let widest = u32::try_from(self.encoder_rates.len()).ok().and_then(|n| 1_usize.checked_shl(n));
        let widest = widest.and_then(|factor| self.encoder_dim.checked_mul(factor)).unwrap_or(0);
        Dacnet {
            encoder_dim: self.encoder_dim,
            encoder_rates: self.encoder_rates.clone(),
            latent_dim: self.latent_dim.unwrap_or(widest),
            decoder_dim: self.decoder_dim,
            decoder_rates: self.decoder_rates.clone(),
            codebook_size: self.codebook_size,
            codebook_dim: self.codebook_dim,
            kind: Kind::Snac { depthwise: self.depthwise, window: self.attn_window_size, noise: self.noise },
        }
    }

    /// Frames to whole multiples of which a clip is extended: the least that are whole codes of the first
    /// codebook and whole windows.
    fn block(&self) -> Result<usize> {
        let strides = self.vq_strides.iter().map(|&stride| stride as usize);
        if self.vq_strides.is_empty() || strides.clone().any(|stride| stride == 0 || stride > MAX_FRAMES) {
            return Err(config("vq_strides", "are none, zero or too large"));
        }
        let window = self.attn_window_size.unwrap_or(1);
        if window == 0 || window > MAX_FRAMES {
            return Err(config("attn_window_size", "is zero or too large"));
        }
        let stride = self.vq_strides[0] as usize;
        let multiple = (1..=window).find(|n| (n * stride).is_multiple_of(window)).unwrap_or(window);
        Ok(multiple * stride)
    }
}

fn config(field: &'static str, why: &str) -> Error {
    Error::Config { field, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Config {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn published_configurations() {
        let small = r#"{"sampling_rate": 24000, "encoder_dim": 48, "encoder_rates": [2, 4, 8, 8],
            "decoder_dim": 1024, "decoder_rates": [8, 8, 4, 2], "attn_window_size": null,
            "codebook_size": 4096, "codebook_dim": 8, "vq_strides": [4, 2, 1], "noise": true,
            "depthwise": true}"#;
        let small = parse(small);
        assert_eq!((small.net().hop_length().unwrap(), small.block().unwrap()), (512, 4));
        assert_eq!(small.net().latent_dim, 768);
        let large = parse(
            r#"{"sampling_rate": 44100, "encoder_rates": [2, 3, 8, 8], "decoder_rates": [8, 8, 3, 2]}"#,
        );
        assert_eq!((large.net().hop_length().unwrap(), large.block().unwrap()), (384, 32));
    }

    #[test]
    fn a_block_holds_whole_codes_and_windows() {
        for (strides, window, block) in
            [("[8, 1]", "32", 32), ("[8, 1]", "12", 24), ("[4]", "null", 4), ("[3, 1]", "7", 21)]
        {
            let json = format!(r#"{{"vq_strides": {strides}, "attn_window_size": {window}}}"#);
            assert_eq!(parse(&json).block().unwrap(), block, "{json}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused_at_load() {
        let weights = Weights::from_bytes(b"\x02\0\0\0\0\0\0\0{}".to_vec(), &Device::Cpu).unwrap();
        for (json, expected) in [
            (r#"{"vq_strides": []}"#, "configuration: vq_strides: are none, zero or too large"),
            (r#"{"vq_strides": [4, 0]}"#, "configuration: vq_strides: are none, zero or too large"),
            (r#"{"attn_window_size": 0}"#, "configuration: attn_window_size: is zero or too large"),
            (
                r#"{"decoder_dim": 1000}"#,
                "configuration: attn_window_size: needs widths that are whole heads of 64 channels",
            ),
            (r#"{"latent_dim": 512}"#, "configuration: latent_dim: must be the width at the encoder's end"),
            (
                r#"{"encoder_rates": [3, 3, 7]}"#,
                "configuration: decoder_rates: do not lead back to the audio's rate",
            ),
            (r#"{"sampling_rate": 0}"#, "configuration: sampling_rate: must not be zero"),
            ("{}", "the checkpoint lacks quantizer.quantizers.0.codebook.weight"),
        ] {
            let error = parse(json).build(&weights).unwrap_err();
            assert_eq!(error.to_string(), expected, "{json}");
        }
        assert!(serde_json::from_str::<Config>(r#"{"causal": true}"#).is_err());
    }
}
