//! MusicGen's decoder, as Hugging Face stores it.
//!
//! It is a [`Model`] with delays, sinusoidal positions, LayerNorm and heads of its own. Text is not read:
//! without a condition the reference's cross-attention sees zeros, gives zeros, and is left out here; its
//! tensors are not read.
//!
//! # Source
//! Copet et al. 2023, "Simple and controllable music generation"; transformers 5.23.0,
//! `models/musicgen/modeling_musicgen.py`; proved by `tests/vectors/lm_musicgen.safetensors`.

use crate::config::{ActivationKind, ModelConfig, NormKind, Positions, Shape};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::pattern::Pattern;
use candle_core::{Device, Tensor};
use codec_core::CodeLayout;
use codec_nn::weights::{Checkpoint, Weights};
use serde::Deserialize;

/// Of the reference's LayerNorm, which no configuration changes.
const NORM_EPSILON: f64 = 1e-5;

#[derive(Deserialize)]
struct Whole {
    decoder: Option<Decoder>,
}

/// The fields of the decoder's configuration that decide its numbers.
#[derive(Deserialize)]
struct Decoder {
    vocab_size: u32,
    num_hidden_layers: usize,
    ffn_dim: usize,
    num_attention_heads: usize,
    hidden_size: usize,
    num_codebooks: usize,
    #[serde(default = "mono")]
    audio_channels: usize,
    activation_function: String,
    #[serde(default)]
    scale_embedding: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
}

fn mono() -> usize {
    1
}

/// Loads the decoder of a checkpoint, alone or inside the whole model.
///
/// # Errors
/// [`Error::Config`], [`Error::Unsupported`] for settings that no published model has, [`Error::Nn`] for
/// tensors that do not fit.
pub fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Model> {
    let text = checkpoint.config().ok_or_else(|| Error::config("config.json", "is not there"))?;
    let parsed = |e: serde_json::Error| Error::config("config.json", e.to_string());
    let whole: Whole = serde_json::from_str(text).map_err(parsed)?;
    let is_whole = whole.decoder.is_some();
    let decoder = whole.decoder.map_or_else(|| serde_json::from_str(text).map_err(parsed), Ok)?;
    let config = config(&decoder)?;
    let weights = checkpoint.weights().ok_or_else(|| Error::config("weights", "are not there"))?;
    let weights = if is_whole { weights.pp("decoder") } else { weights.clone() };
    let weights = weights.without(|name| name.contains(".encoder_attn"));
    let file = renamed(&weights, &decoder)?;
    let renamed = Weights::from_bytes(file, device)?;
    let model = Model::new(&config, &renamed)?;
    renamed.finish(&[])?;
    weights.finish(&[])?;
    Ok(model)
}

fn config(decoder: &Decoder) -> Result<ModelConfig> {
    let activation = match decoder.activation_function.as_str() {
        "gelu" => ActivationKind::Gelu,
        "relu" => ActivationKind::Relu,
        other => return Err(Error::Unsupported { what: "activation_function", value: other.to_owned() }),
    };
    if decoder.scale_embedding || decoder.tie_word_embeddings {
        let value = "scale_embedding or tie_word_embeddings".to_owned();
        return Err(Error::Unsupported { what: "setting", value });
    }
    // The channels of stereo models alternate, and share their delays.
    let delays = (0..decoder.num_codebooks).map(|k| k / decoder.audio_channels.max(1)).collect();
    let layout = CodeLayout::uniform(decoder.num_codebooks, decoder.vocab_size)?;
    let shape = Shape {
        dim: decoder.hidden_size,
        n_layers: decoder.num_hidden_layers,
        n_heads: decoder.num_attention_heads,
        hidden: decoder.ffn_dim,
        context: None,
        norm: NormKind::Layer,
        norm_epsilon: NORM_EPSILON,
        positions: Positions::Sinusoidal,
        activation,
        tied: false,
        head_bias: false,
        depth: None,
    };
    let config = ModelConfig::new(&layout, Pattern::Delay { delays }, shape);
    config.check()?;
    Ok(config)
}

/// The tensors under our names, as a weights file.
fn renamed(weights: &Weights, decoder: &Decoder) -> Result<Vec<u8>> {
    let Decoder { hidden_size: dim, ffn_dim, num_codebooks, vocab_size, .. } = *decoder;
    let size = vocab_size as usize;
    let stack = |weights: &Weights, n_rows: usize| -> Result<Tensor> {
        let each = (0..num_codebooks).map(|k| weights.pp(k).get((n_rows, dim), "weight"));
        Ok(Tensor::cat(&each.collect::<codec_nn::Result<Vec<_>>>()?, 0)?)
    };
    let body = weights.pp("model").pp("decoder");
    let mut tensors = vec![
        ("embed.weight".to_owned(), stack(&body.pp("embed_tokens"), size + 1)?),
        ("head.weight".to_owned(), stack(&weights.pp("lm_heads"), size)?),
    ];
    let mut norm = |name: String, weights: &Weights| -> Result<()> {
        for part in ["weight", "bias"] {
            tensors.push((format!("{name}.{part}"), weights.get(dim, part)?));
        }
        Ok(())
    };
    norm("norm".to_owned(), &body.pp("layer_norm"))?;
    let layers: Vec<Weights> = (0..decoder.num_hidden_layers).map(|idx| body.pp("layers").pp(idx)).collect();
    for (idx, layer) in layers.iter().enumerate() {
        norm(format!("layers.{idx}.norm1"), &layer.pp("self_attn_layer_norm"))?;
        norm(format!("layers.{idx}.norm2"), &layer.pp("final_layer_norm"))?;
    }
    for (idx, layer) in layers.iter().enumerate() {
        let attention = layer.pp("self_attn");
        let square = |name: &str| attention.pp(name).get((dim, dim), "weight");
        let input = Tensor::cat(&[square("q_proj")?, square("k_proj")?, square("v_proj")?], 0)?;
        let prefix = format!("layers.{idx}");
        tensors.extend([
            (format!("{prefix}.attention.input.weight"), input),
            (format!("{prefix}.attention.output.weight"), square("out_proj")?),
            (format!("{prefix}.feed_forward.input.weight"), layer.pp("fc1").get((ffn_dim, dim), "weight")?),
            (format!("{prefix}.feed_forward.output.weight"), layer.pp("fc2").get((dim, ffn_dim), "weight")?),
        ]);
    }
    Ok(safetensors::serialize(tensors, None).map_err(candle_core::Error::from)?)
}
