//! X-codec2 and NeuCodec, which shares its codes: decoders from one code of sixteen bits per frame to audio.
//!
//! A grid of eight values, four levels each, a transformer that sees the whole clip, and an inverse Fourier
//! transform: X-codec2 at 16 kHz, NeuCodec and its distilled sibling at 24 kHz, 50 frames a second each. No audio
//! comes before the codes are over; memory grows with the clip and time with the square of it.
//!
//! Their encoders listen through a speech model of 600 million weights (w2v-BERT 2.0; DistilHuBERT in the distilled
//! one) that is a model of its own and not implemented here, so the family decodes and does not encode.
//!
//! # Source
//! Ye et al. 2025, "Llasa: scaling train-time and inference-time compute for Llama-based speech synthesis", arXiv
//! 2502.04128; Julian et al. 2025, "Finite scalar quantization enables redundant and transmission-robust neural
//! audio compression at low bit-rates", arXiv 2509.09550; huggingface/transformers 5.23.0, models/xcodec2 and
//! models/neucodec; PyPI `neucodec` 0.0.6. Vectors: `tests/vectors/xcodec2_*.safetensors`.
//!
//! # Deviations
//! The references turn queries and keys by the number of their head instead of their place in time. Both sides of
//! a product are turned alike, so that the turns cancel; here nothing is turned.

use super::Family;
use crate::codec::NetCodec;
use crate::error::{Error, Result};
use crate::layers::{
    Activation, Attention, AttentionSpec, AttentionWeights, DynLayer, Heads, Linear, Norm, RmsNorm, Sight,
    Unary, transformer_layer,
};
use crate::nets::convnext::{layer_norm, linear};
use crate::nets::vocos;
use crate::ops::{joined, load_both};
use crate::quantizer::{LinearNet, ProjectionsNet, QuantizerNet};
use crate::weights::{Checkpoint, Weights};
use candle_core::Device;
use codec_core::{AudioSpec, Codec, CodecInfo, Delays};
use serde::Deserialize;

/// See the module.
pub(super) const FAMILY: Family = Family { name: "xcodec2", recognizes, signs: &[], load, networks: None };

/// Of all models.
const FRAME_RATE: u32 = 50;
/// Frames that a window of the Fourier transform reaches over.
const FRAMES_PER_WINDOW: usize = 4;
/// Window in front of the network.
const KERNEL: usize = 7;
/// On either side of the transformer.
const N_RESIDUAL_BLOCKS: usize = 2;
const NORM_EPSILON: f32 = 1e-6;
/// Levels of each value, and heads, where no configuration says so.
const N_LEVELS: u32 = 4;
const N_HEADS: usize = 16;
/// Beyond this a checkpoint is not a codec's but a mistake or an attack.
const MAX_SIZE: usize = 1 << 13;
const MAX_LAYERS: usize = 128;

/// What has a part in encoding or in training alone, in either dialect.
const OF_THE_ENCODER: [&str; 11] = [
    "acoustic_encoder.",
    "CodecEnc.",
    "codec_encoder.",
    "fc_encoder.",
    "fc_post_s.",
    "fc_prior.",
    "fc_sq_prior.",
    "semantic_",
    "SemanticDecoder_module.",
    "SemanticEncoder_module.",
    // Buffers of the grid, which its levels say already.
    "generator.quantizer.layers.",
];

fn recognizes(checkpoint: &Checkpoint) -> bool {
    checkpoint.weights().is_some_and(|weights| Dialect::of(weights).is_some())
}

fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Codec>> {
    let found = checkpoint.weights().and_then(|weights| Some((weights, Dialect::of(weights)?)));
    let Some((weights, dialect)) = found else {
        return Err(checkpoint.unrecognized());
    };
    let config = match (dialect, checkpoint.config()) {
        (Dialect::HuggingFace, Some(config)) => serde_json::from_str(config)
            .map_err(|e| Error::Config { field: "config.json", why: e.to_string() })?,
        // The original one has none, or one of other things.
        _ => Config::default(),
    };
    let is_distilled = weights.contains("fc_sq_prior.weight");
    let weights = weights.without(|name| OF_THE_ENCODER.iter().any(|start| name.starts_with(start)));
    let weights = match dialect {
        Dialect::HuggingFace => weights,
        Dialect::Original => weights.renamed(modern_name)?,
    };
    Ok(Box::new(build(&weights, &config, is_distilled, device)?))
}

/// Who wrote the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    HuggingFace,
    Original,
}

impl Dialect {
    fn of(weights: &Weights) -> Option<Self> {
        let has = |names: [&str; 2]| names.iter().all(|name| weights.contains(name));
        if has(["acoustic_decoder.prior_net.0.norm1.weight", "quantizer.project_out.weight"]) {
            return Some(Self::HuggingFace);
        }
        let original =
            ["generator.backbone.prior_net.0.norm1.weight", "generator.quantizer.project_out.weight"];
        has(original).then_some(Self::Original)
    }
}

/// `config.json` of Hugging Face: what the tensors do not show.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Config {
    attention_bias: bool,
    hidden_act: String,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    quantization_levels: Option<Vec<u32>>,
    rms_norm_eps: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            attention_bias: false,
            hidden_act: "silu".to_owned(),
            num_attention_heads: N_HEADS,
            num_key_value_heads: N_HEADS,
            quantization_levels: None,
            rms_norm_eps: NORM_EPSILON,
        }
    }
}

impl Config {
    /// Refuses what no published model has.
    fn check(&self, dim: usize) -> Result<()> {
        if self.attention_bias {
            return Err(Error::unsupported("attention_bias", true));
        }
        if self.hidden_act != "silu" {
            return Err(Error::unsupported("hidden_act", &self.hidden_act));
        }
        let n_heads = self.num_attention_heads;
        if n_heads != self.num_key_value_heads {
            return Err(Error::unsupported("num_key_value_heads", self.num_key_value_heads));
        }
        if n_heads == 0 || !dim.is_multiple_of(n_heads) {
            return Err(Error::config(
                "num_attention_heads",
                format!("{n_heads} do not divide {dim} channels"),
            ));
        }
        Ok(())
    }
}

fn build(weights: &Weights, config: &Config, is_distilled: bool, device: &Device) -> Result<NetCodec> {
    let [n_bins, dim] = dims(weights, "acoustic_decoder.head.linear.weight")?;
    config.check(dim)?;
    let n_fft = n_bins.saturating_sub(2);
    if n_fft == 0 || !n_fft.is_multiple_of(2 * FRAMES_PER_WINDOW) {
        return Err(Error::config("n_fft", format!("{n_fft} is not a window of four frames")));
    }
    let hop_length = n_fft / FRAMES_PER_WINDOW;
    let (quantizer, latent_dim) = quantizer(&weights.pp("quantizer"), config)?;
    let sizes = [latent_dim, dim, n_fft, hop_length];
    let ((), net) = load_both(|| Ok(()), || decoder(&weights.pp("acoustic_decoder"), config, sizes))?;
    weights.finish(&[])?;
    let hop_length = u32::try_from(hop_length).map_err(|_| Error::config("n_fft", "is too large"))?;
    let model = match (is_distilled, hop_length) {
        (true, _) => "distill-neucodec",
        (false, 480) => "neucodec",
        _ => "xcodec2",
    };
    let info = CodecInfo {
        model: model.to_owned(),
        family: FAMILY.name,
        audio: AudioSpec { sample_rate: FRAME_RATE * hop_length, channels: 1 },
        hop_length,
        delays: Delays::default(),
        segment: None,
        layout: quantizer.layout()?,
    };
    NetCodec::new(info, None, net, quantizer.fixed()?, device)
}

/// The grid, and the width of the latents around it.
fn quantizer(weights: &Weights, config: &Config) -> Result<(QuantizerNet, usize)> {
    let [n_values, dim] = dims(weights, "project_in.weight")?;
    let levels = config.quantization_levels.clone().unwrap_or_else(|| vec![N_LEVELS; n_values]);
    if levels.len() != n_values {
        let why = format!("{} for {n_values} values", levels.len());
        return Err(Error::config("quantization_levels", why));
    }
    let linear = |name: &str, n_in: usize, n_out: usize| -> Result<LinearNet> {
        let weights = weights.pp(name);
        Ok(LinearNet {
            weight: weights.get((n_out, n_in), "weight")?,
            bias: Some(weights.get(n_out, "bias")?),
        })
    };
    let input = linear("project_in", dim, n_values)?;
    let output = linear("project_out", n_values, dim)?;
    Ok((QuantizerNet::Fsq { levels, projections: Some(ProjectionsNet { input, output }) }, dim))
}

/// `[batch, n_frames, latent_dim]` to `[batch, n_frames * hop_length, 1]`.
fn decoder(
    weights: &Weights,
    config: &Config,
    [latent_dim, dim, n_fft, hop_length]: [usize; 4],
) -> Result<Vec<DynLayer>> {
    let mut net = vec![
        DynLayer::new(linear(&weights.pp("fc"), latent_dim, dim)?),
        DynLayer::new(vocos::conv(&weights.pp("embed"), dim, dim, KERNEL)?),
    ];
    let push_residuals = |net: &mut Vec<DynLayer>, name: &str| -> Result<()> {
        for idx in 0..N_RESIDUAL_BLOCKS {
            net.push(DynLayer::new(vocos::residual_block(&weights.pp(name).pp(idx), dim)?));
        }
        Ok(())
    };
    push_residuals(&mut net, "prior_net")?;
    let layers = weights.pp("layers");
    let is_there = |idx: &usize| layers.contains(&format!("{idx}.mlp.fc1.weight"));
    for idx in (0..MAX_LAYERS).take_while(is_there) {
        net.push(layer(&layers.pp(idx), config, dim)?);
    }
    push_residuals(&mut net, "post_net")?;
    net.push(DynLayer::new(layer_norm(&weights.pp("norm"), dim, NORM_EPSILON)?));
    let head = weights.pp("head");
    let window = if head.contains("window") { head.values(&[n_fft], "window")? } else { vocos::hann(n_fft) };
    net.extend(vocos::to_audio(&head.pp("linear"), dim, window, hop_length)?);
    Ok(net)
}

/// A layer of the transformer.
fn layer(weights: &Weights, config: &Config, dim: usize) -> Result<DynLayer> {
    let norm = |name: &str| -> Result<Norm> {
        Ok(Norm::Rms(RmsNorm::new(weights.pp(name).get(dim, "weight")?, config.rms_norm_eps)?))
    };
    let attention = weights.pp("self_attn");
    let matrix = |name: &str, rows: usize| attention.pp(name).get((rows, dim), "weight");
    let input = if attention.contains("qkv_proj.weight") {
        matrix("qkv_proj", 3 * dim)?
    } else {
        joined(&[matrix("q_proj", dim)?, matrix("k_proj", dim)?, matrix("v_proj", dim)?])?
    };
    let parts =
        AttentionWeights { input, input_bias: None, output: matrix("o_proj", dim)?, output_bias: None };
    let n_heads = config.num_attention_heads;
    let heads = Heads { n_heads, n_kv_heads: n_heads, dim: dim / n_heads };
    let attention = Attention::new(&parts, AttentionSpec { heads, sight: Sight::Clip, rotary_base: None })?;
    let mlp = weights.pp("mlp");
    let [hidden, _] = dims(&mlp, "fc1.weight")?;
    let feed_forward = (
        Linear::new(&mlp.get((hidden, dim), "fc1.weight")?, None)?,
        Activation::Unary(Unary::Silu),
        Linear::new(&mlp.get((dim, hidden), "fc2.weight")?, None)?,
    );
    let norms = [norm("input_layernorm")?, norm("post_attention_layernorm")?];
    Ok(DynLayer::new(transformer_layer(norms, attention, feed_forward, [None, None])))
}

/// The name of Hugging Face for a tensor of the original.
fn modern_name(name: &str) -> String {
    const BACKBONE: &str = "generator.backbone.";
    const PARTS: [(&str, &str); 6] = [
        ("att_norm.", "input_layernorm."),
        ("ffn_norm.", "post_attention_layernorm."),
        ("att.c_attn.", "self_attn.qkv_proj."),
        ("att.c_proj.", "self_attn.o_proj."),
        ("mlp.fc1.", "mlp.fc1."),
        ("mlp.fc2.", "mlp.fc2."),
    ];
    const STARTS: [(&str, &str); 6] = [
        ("fc_post_a.", "acoustic_decoder.fc."),
        ("generator.head.istft.", "acoustic_decoder.head."),
        ("generator.head.out.", "acoustic_decoder.head.linear."),
        ("generator.quantizer.", "quantizer."),
        ("generator.backbone.final_layer_norm.", "acoustic_decoder.norm."),
        (BACKBONE, "acoustic_decoder."),
    ];
    let of_layer = || {
        let (idx, rest) = name.strip_prefix(BACKBONE)?.strip_prefix("transformers.")?.split_once('.')?;
        let (part, modern) = PARTS.iter().find(|(part, _)| rest.starts_with(part))?;
        Some(format!("acoustic_decoder.layers.{idx}.{modern}{}", &rest[part.len()..]))
    };
    let of_start = || {
        let (start, modern) = STARTS.iter().find(|(start, _)| name.starts_with(start))?;
        Some(format!("{modern}{}", &name[start.len()..]))
    };
    of_layer().or_else(of_start).unwrap_or_else(|| name.to_owned())
}

/// The dimensions of a matrix, each within reason.
fn dims(weights: &Weights, name: &str) -> Result<[usize; 2]> {
    match weights.shape(name) {
        Some(&[rows, columns]) if rows.max(columns) <= MAX_SIZE => Ok([rows, columns]),
        Some(shape) => {
            Err(Error::Shape { name: name.into(), expected: vec![MAX_SIZE; 2], actual: shape.to_vec() })
        }
        None => Err(Error::MissingTensors { names: vec![name.into()] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_original() {
        for (original, modern) in [
            ("fc_post_a.bias", "acoustic_decoder.fc.bias"),
            ("generator.quantizer.project_in.weight", "quantizer.project_in.weight"),
            ("generator.backbone.embed.bias", "acoustic_decoder.embed.bias"),
            ("generator.backbone.prior_net.1.norm2.weight", "acoustic_decoder.prior_net.1.norm2.weight"),
            (
                "generator.backbone.transformers.11.att_norm.weight",
                "acoustic_decoder.layers.11.input_layernorm.weight",
            ),
            (
                "generator.backbone.transformers.0.att.c_attn.weight",
                "acoustic_decoder.layers.0.self_attn.qkv_proj.weight",
            ),
            (
                "generator.backbone.transformers.0.att.c_proj.weight",
                "acoustic_decoder.layers.0.self_attn.o_proj.weight",
            ),
            (
                "generator.backbone.transformers.3.ffn_norm.weight",
                "acoustic_decoder.layers.3.post_attention_layernorm.weight",
            ),
            ("generator.backbone.transformers.3.mlp.fc2.weight", "acoustic_decoder.layers.3.mlp.fc2.weight"),
            ("generator.backbone.final_layer_norm.bias", "acoustic_decoder.norm.bias"),
            ("generator.head.out.weight", "acoustic_decoder.head.linear.weight"),
            ("generator.head.istft.window", "acoustic_decoder.head.window"),
            ("something.else", "something.else"),
        ] {
            assert_eq!(modern_name(original), modern);
        }
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        let parse = |json: &str| serde_json::from_str::<Config>(json).unwrap();
        assert!(parse("{}").check(1024).is_ok());
        for (json, want) in [
            (r#"{"attention_bias": true}"#, "attention_bias `true` is not supported"),
            (r#"{"hidden_act": "gelu"}"#, "hidden_act `gelu` is not supported"),
            (r#"{"num_key_value_heads": 4}"#, "num_key_value_heads `4` is not supported"),
            (
                r#"{"num_attention_heads": 3, "num_key_value_heads": 3}"#,
                "configuration: num_attention_heads: 3 do not divide 1024 channels",
            ),
        ] {
            assert_eq!(parse(json).check(1024).unwrap_err().to_string(), want);
        }
    }
}
