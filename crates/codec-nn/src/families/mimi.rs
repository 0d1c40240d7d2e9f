//! Mimi: SEANet and a causal transformer on either side of split residual vector quantization.
//!
//! 24 kHz mono at 12.5 frames a second, one semantic and up to 31 acoustic codebooks; strictly causal, so
//! every 80 ms of audio give a frame, and every frame gives its 80 ms. Checkpoints come in three dialects,
//! told apart by their tensors: Hugging Face's, Kyutai's own, and that of MLX. They say the same; only the
//! first has a configuration. The others have the published sizes, or those that their tensors show.
//!
//! # Source
//! Défossez et al. 2024, "Moshi: a speech-text foundation model for real-time dialogue", arXiv 2410.00037,
//! section 3.3; Hugging Face transformers 5.23, models/mimi; PyPI `moshi` 0.2.13, moshi/models/loaders.py and
//! moshi/modules. Vectors: `tests/vectors/mimi_*.safetensors`.
//!
//! # Deviations
//! - The end of a clip that is not whole frames is padded layer by layer, as `MimiModel` does; `moshi` pads the
//!   audio with zeros. Only the last frame differs, and not at all for whole frames.
//! - A step sees itself and 249 before it, as in whole clips of both. The streams of `moshi` hold 250 steps and
//!   take two at a time, so there the first of two sees one step less.
//! - Rotary angles are formed in f64, which both form in f32: hours into a stream theirs have drifted from the
//!   exact ones, ours have not.
//! - Fewer codebooks than there are semantic ones can be asked for, which both refuse.

use super::Family;
use crate::codec::Networks;
use crate::error::{Error, Result};
use crate::layers::{
    Activation, Attention, AttentionSpec, AttentionWeights, ChannelScale, Conv1d, ConvSpec, ConvTranspose1d,
    DynLayer, Fill, Heads, LayerNorm, Linear, Norm, Padding, Sight, TransformerLayer, Unary, half_split,
    transformer_layer,
};
use crate::nets::seanet::{Seanet, fill};
use crate::ops::{joined, load_both, load_each};
use crate::quantizer::{AveragesNet, LinearNet, ProjectionsNet, QuantizerNet, ResidualNet, StageNet};
use crate::weights::{Checkpoint, Weights};
use candle_core::Device;
use codec_core::{AudioSpec, CodeLayout, Codec, CodecInfo, Delays};
use serde::Deserialize;
use std::collections::BTreeSet;

/// See the module.
pub(super) const FAMILY: Family =
    Family { name: "mimi", recognizes, signs: &[], load, networks: Some(networks) };

/// A flag of training: whether a codebook has been filled.
const IGNORED: [&str; 1] = ["initialized"];
/// How often an entry was used is at least this when its sum is divided by it.
const USAGE_FLOOR: f32 = 1e-5;
/// Channels per head of a checkpoint without a configuration.
const HEAD_DIM: usize = 64;
/// Beyond this a configuration is not a codec's but a mistake or an attack.
const MAX_SIZE: usize = 1 << 16;
/// Names of the quantizers' stacks.
const STACKS: [&str; 2] = ["semantic_residual_vector_quantizer", "acoustic_residual_vector_quantizer"];

fn recognizes(checkpoint: &Checkpoint) -> bool {
    match checkpoint.config().and_then(crate::weights::model_type) {
        Some(model_type) => model_type == FAMILY.name,
        None => checkpoint.weights().is_some_and(|weights| dialect(weights).is_some()),
    }
}

fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Codec>> {
    Ok(Box::new(networks(checkpoint)?.codec(device)?))
}

fn networks(checkpoint: &Checkpoint) -> Result<Networks> {
    let Some(weights) = checkpoint.weights() else {
        return Err(checkpoint.unrecognized());
    };
    let weights = match dialect(weights) {
        Some(Dialect::HuggingFace) => weights.clone(),
        Some(Dialect::Kyutai) => weights.renamed(from_kyutai)?,
        Some(Dialect::Mlx) => weights.permuted(order_in_mlx)?.renamed(from_mlx(weights))?,
        None if weights.are_new() => weights.clone(),
        None => return Err(checkpoint.unrecognized()),
    };
    let config = match checkpoint.config() {
        Some(config) => {
            serde_json::from_str(config).map_err(|e| Error::config("config.json", e.to_string()))?
        }
        None => Config::of_tensors(|name| weights.shape(name))?,
    };
    config.build(&weights)
}

/// How the tensors of a checkpoint are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    HuggingFace,
    Kyutai,
    Mlx,
}

fn dialect(weights: &Weights) -> Option<Dialect> {
    let signs = [
        ("quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum", Dialect::HuggingFace),
        ("quantizer.rvq_first.vq.layers.0._codebook.embedding_sum", Dialect::Kyutai),
        ("quantizer.rvq_first.vq.layers.0.codebook.embedding_sum", Dialect::Mlx),
    ];
    signs.into_iter().find_map(|(name, dialect)| weights.contains(name).then_some(dialect))
}

/// Hugging Face's name of a tensor that Kyutai names; the input of an attention stays one tensor.
fn from_kyutai(name: &str) -> String {
    const PARTS: [(&str, &str); 22] = [
        ("encoder.model.", "encoder.layers."),
        ("decoder.model.", "decoder.layers."),
        ("conv.conv.conv.", "conv."),
        ("conv.conv.", "conv."),
        ("convtr.convtr.convtr.", "conv."),
        ("convtr.convtr.", "conv."),
        ("_transformer.transformer.", "_transformer."),
        (".self_attn.in_proj_weight", ".self_attn.in_proj.weight"),
        (".self_attn.in_projs.0.", ".self_attn.in_proj."),
        (".self_attn.out_proj.", ".self_attn.o_proj."),
        (".self_attn.out_projs.0.", ".self_attn.o_proj."),
        (".norm1.", ".input_layernorm."),
        (".norm2.", ".post_attention_layernorm."),
        (".linear1.", ".mlp.fc1."),
        (".linear2.", ".mlp.fc2."),
        (".layer_scale_1.", ".self_attn_layer_scale."),
        (".layer_scale_2.", ".mlp_layer_scale."),
        ("quantizer.rvq_first.", "quantizer.semantic_residual_vector_quantizer."),
        ("quantizer.rvq_rest.", "quantizer.acoustic_residual_vector_quantizer."),
        (".vq.layers.", ".layers."),
        ("._codebook._", "._codebook."),
        ("._codebook.embedding_sum", "._codebook.embed_sum"),
    ];
    let name = PARTS.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new));
    name.replace("._codebook.", ".codebook.")
}

/// Hugging Face's names of the tensors that MLX names; the places of SEANet's layers depend on how many of
/// each kind there are.
fn from_mlx(weights: &Weights) -> impl Fn(&str) -> String + use<> {
    let numbers = |prefix: &str| -> usize {
        let names = weights.names().filter_map(|name| name.strip_prefix(prefix)?.split('.').next());
        names.collect::<BTreeSet<_>>().len()
    };
    let (n_stages, n_residuals) = (numbers("encoder.layers."), numbers("encoder.layers.0.residuals."));
    move |name: &str| {
        let kyutai = seanet_from_mlx(name, n_stages, n_residuals).unwrap_or_else(|| name.to_owned());
        let kyutai = kyutai.replace(".gating.linear", ".linear").replace(".codebook.", "._codebook.");
        from_kyutai(&kyutai)
    }
}

/// Kyutai's name of a tensor in SEANet that MLX names; `None` for other tensors.
fn seanet_from_mlx(name: &str, n_stages: usize, n_residuals: usize) -> Option<String> {
    let (net, rest) = name.split_once('.').filter(|(net, _)| ["encoder", "decoder"].contains(net))?;
    // A stage is an activation and a change of rate beside its residual blocks.
    let n_layers = n_residuals + 2;
    if let Some(rest) = rest.strip_prefix("init_conv1d.") {
        return Some(format!("{net}.model.0.{rest}"));
    }
    if let Some(rest) = rest.strip_prefix("final_conv1d.") {
        return Some(format!("{net}.model.{}.{rest}", n_stages * n_layers + 2));
    }
    let (stage, rest) = rest.strip_prefix("layers.")?.split_once('.')?;
    let first = 1 + stage.parse::<usize>().ok()? * n_layers;
    if let Some(rest) = rest.strip_prefix("downsample.") {
        return Some(format!("{net}.model.{}.{rest}", first + n_residuals + 1));
    }
    if let Some(rest) = rest.strip_prefix("upsample.") {
        return Some(format!("{net}.model.{}.{rest}", first + 1));
    }
    let (residual, rest) = rest.strip_prefix("residuals.")?.split_once('.')?;
    let before = if net == "decoder" { 2 } else { 0 };
    let place = first + before + residual.parse::<usize>().ok()?;
    // Here activations are counted too.
    let (conv, rest) = rest.strip_prefix("block.")?.split_once('.')?;
    Some(format!("{net}.model.{place}.block.{}.{rest}", 2 * conv.parse::<usize>().ok()? + 1))
}

/// Where PyTorch's dimensions are in MLX, whose convolutions have their channels last.
fn order_in_mlx(name: &str) -> Option<&'static [usize]> {
    if name.ends_with(".convtr.weight") {
        return Some(&[2, 0, 1]);
    }
    let ends = [".conv.weight", ".input_proj.weight", ".output_proj.weight"];
    ends.iter().any(|end| name.ends_with(end)).then_some(&[0, 2, 1])
}

/// `config.json` of a Hugging Face checkpoint. Fields that it leaves out have the values of the published
/// model, as there.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default)]
struct Config {
    attention_bias: bool,
    audio_channels: u16,
    codebook_dim: usize,
    codebook_size: u32,
    compress: usize,
    dilation_growth_rate: usize,
    frame_rate: Option<f64>,
    head_dim: Option<usize>,
    hidden_act: String,
    hidden_size: usize,
    intermediate_size: usize,
    kernel_size: usize,
    last_kernel_size: usize,
    norm_eps: f64,
    num_attention_heads: usize,
    num_filters: usize,
    num_hidden_layers: usize,
    num_key_value_heads: usize,
    num_quantizers: usize,
    num_residual_layers: usize,
    num_semantic_quantizers: usize,
    pad_mode: String,
    residual_kernel_size: usize,
    rope_parameters: Option<Rope>,
    rope_theta: f64,
    sampling_rate: u32,
    sliding_window: usize,
    trim_right_ratio: f64,
    upsample_groups: usize,
    upsampling_ratios: Vec<usize>,
    use_causal_conv: bool,
    use_conv_shortcut: bool,
    vector_quantization_hidden_dimension: usize,
}

/// How transformers 5 writes down rotary positions.
#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Rope {
    rope_theta: f64,
    rope_type: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            attention_bias: false,
            audio_channels: 1,
            codebook_dim: 256,
            codebook_size: 2048,
            compress: 2,
            dilation_growth_rate: 2,
            frame_rate: None,
            head_dim: None,
            hidden_act: "gelu".to_owned(),
            hidden_size: 512,
            intermediate_size: 2048,
            kernel_size: 7,
            last_kernel_size: 3,
            norm_eps: 1e-5,
            num_attention_heads: 8,
            num_filters: 64,
            num_hidden_layers: 8,
            num_key_value_heads: 8,
            num_quantizers: 32,
            num_residual_layers: 1,
            num_semantic_quantizers: 1,
            pad_mode: "constant".to_owned(),
            residual_kernel_size: 3,
            rope_parameters: None,
            rope_theta: 10_000.0,
            sampling_rate: 24_000,
            sliding_window: 250,
            trim_right_ratio: 1.0,
            upsample_groups: 512,
            upsampling_ratios: vec![8, 6, 5, 4],
            use_causal_conv: true,
            use_conv_shortcut: false,
            vector_quantization_hidden_dimension: 256,
        }
    }
}

impl Config {
    /// The configuration of a checkpoint that holds only tensors: its sizes are theirs, and what sizes do not
    /// show is as in the published model.
    fn of_tensors<'a>(shape: impl Fn(&str) -> Option<&'a [usize]>) -> Result<Self> {
        let dim = |name: &str, dim_idx: usize| -> Result<usize> {
            let size = shape(name).and_then(|shape| shape.get(dim_idx)).copied();
            size.ok_or_else(|| Error::MissingTensors { names: vec![name.to_owned()] })
        };
        let count =
            |name: &dyn Fn(usize) -> String| (0..MAX_SIZE).take_while(|&i| shape(&name(i)).is_some()).count();
        let hidden_size = dim("encoder_transformer.layers.0.mlp.fc1.weight", 1)?;
        let codebook = format!("quantizer.{}.layers.0.codebook.embed_sum", STACKS[0]);
        let [n_semantic, n_acoustic] =
            STACKS.map(|stack| count(&|i| format!("quantizer.{stack}.layers.{i}.codebook.embed_sum")));
        // An activation, a change of rate and a residual block make a stage.
        let rate_change = |i: usize| format!("decoder.layers.{}.conv.weight", 3 * i + 2);
        let upsampling_ratios = (0..count(&|i| format!("decoder.layers.{}.block.1.conv.weight", 3 * i + 3)))
            .map(|i| Ok(dim(&rate_change(i), 2)? / 2))
            .collect::<Result<_>>()?;
        let n_heads = hidden_size / HEAD_DIM;
        Ok(Self {
            codebook_dim: dim(&codebook, 1)?,
            codebook_size: u32::try_from(dim(&codebook, 0)?).map_err(|_| too_large("codebook_size"))?,
            hidden_size,
            intermediate_size: dim("encoder_transformer.layers.0.mlp.fc1.weight", 0)?,
            num_attention_heads: n_heads,
            num_filters: dim("encoder.layers.0.conv.weight", 0)?,
            num_hidden_layers: count(&|i| format!("encoder_transformer.layers.{i}.mlp.fc1.weight")),
            num_key_value_heads: n_heads,
            num_quantizers: n_semantic + n_acoustic,
            num_semantic_quantizers: n_semantic,
            upsample_groups: hidden_size,
            upsampling_ratios,
            vector_quantization_hidden_dimension: dim(&codebook, 1)?,
            ..Self::default()
        })
    }

    fn build(&self, weights: &Weights) -> Result<Networks> {
        self.check()?;
        let net = self.net()?;
        let hop_length = net.hop_length()?;
        let stride = self.latent_stride(hop_length)?;
        let layout = CodeLayout::uniform(self.num_quantizers, self.codebook_size)?;
        let info = CodecInfo {
            model: "mimi".to_owned(),
            family: FAMILY.name,
            audio: AudioSpec { sample_rate: self.sampling_rate, channels: self.audio_channels },
            hop_length: hop_length * stride,
            delays: Delays::default(),
            segment: None,
            layout,
        };
        let encoder = || -> Result<Vec<DynLayer>> {
            let mut encoder = net.encoder(&weights.pp("encoder.layers"))?;
            encoder.push(DynLayer::new(self.transformer(&weights.pp("encoder_transformer.layers"))?));
            if stride > 1 {
                encoder.push(DynLayer::new(self.downsample(weights, stride as usize)?));
            }
            Ok(encoder)
        };
        let decoder = || -> Result<Vec<DynLayer>> {
            let mut decoder = Vec::new();
            if stride > 1 {
                decoder.push(DynLayer::new(self.upsample(weights, stride as usize)?));
            }
            decoder.push(DynLayer::new(self.transformer(&weights.pp("decoder_transformer.layers"))?));
            decoder.append(&mut net.decoder(&weights.pp("decoder.layers"))?);
            Ok(decoder)
        };
        let (encoder, decoder) = load_both(encoder, decoder)?;
        let n_acoustic = self.num_quantizers - self.num_semantic_quantizers;
        let quantizer = QuantizerNet::Split {
            semantic: self.stack(&weights.pp("quantizer").pp(STACKS[0]), self.num_semantic_quantizers)?,
            acoustic: self.stack(&weights.pp("quantizer").pp(STACKS[1]), n_acoustic)?,
        };
        weights.finish(&IGNORED)?;
        Ok(Networks { info, encoder, decoder, quantizer })
    }

    /// Refuses what is not implemented or not within reason.
    fn check(&self) -> Result<()> {
        let sizes = [
            ("sampling_rate", self.sampling_rate.min(1) as usize),
            ("codebook_dim", self.codebook_dim),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("num_hidden_layers", self.num_hidden_layers),
            ("sliding_window", self.sliding_window),
            ("num_semantic_quantizers", self.num_semantic_quantizers),
            ("num_quantizers", self.num_quantizers.saturating_sub(self.num_semantic_quantizers)),
        ];
        if let Some((field, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::config(field, "leaves nothing"));
        }
        if let Some((field, _)) = sizes.iter().find(|(_, size)| *size > MAX_SIZE) {
            return Err(too_large(field));
        }
        if self.attention_bias {
            return Err(Error::unsupported("attention_bias", true));
        }
        if self.hidden_act != "gelu" {
            return Err(Error::unsupported("hidden_act", &self.hidden_act));
        }
        if !self.use_causal_conv {
            return Err(Error::unsupported("use_causal_conv", false));
        }
        if self.upsample_groups != self.hidden_size {
            return Err(Error::unsupported("upsample_groups", self.upsample_groups));
        }
        if self.vector_quantization_hidden_dimension != self.codebook_dim {
            return Err(Error::unsupported(
                "codebook_dim",
                "other than vector_quantization_hidden_dimension",
            ));
        }
        if let Some(rope) = self.rope_parameters.as_ref().filter(|rope| rope.rope_type != "default") {
            return Err(Error::unsupported("rope_type", &rope.rope_type));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(Error::config("norm_eps", "must lie between 0 and 1"));
        }
        Ok(())
    }

    fn net(&self) -> Result<Seanet> {
        Ok(Seanet {
            channels: usize::from(self.audio_channels),
            dim: self.hidden_size,
            n_filters: self.num_filters,
            ratios: self.upsampling_ratios.clone(),
            n_residual_layers: self.num_residual_layers,
            kernel_size: self.kernel_size,
            last_kernel_size: self.last_kernel_size,
            residual_kernel_size: self.residual_kernel_size,
            dilation_growth: self.dilation_growth_rate,
            compress: self.compress,
            n_lstm_layers: 0,
            bidirectional: false,
            snake: false,
            causal: true,
            trim_right_ratio: self.trim_right_ratio,
            fill: fill(&self.pad_mode)?,
            conv_shortcut: self.use_conv_shortcut,
            group_norm: false,
        })
    }

    /// Steps of the transformers per frame: two where no rate of frames is given.
    fn latent_stride(&self, hop_length: u32) -> Result<u32> {
        let Some(frame_rate) = self.frame_rate else { return Ok(2) };
        let stride = f64::from(self.sampling_rate.div_ceil(hop_length)) / frame_rate;
        if !(1.0..=256.0).contains(&stride) || stride.fract() != 0.0 {
            return Err(Error::config("frame_rate", "does not divide the rate of the encoder"));
        }
        Ok(stride as u32)
    }

    fn downsample(&self, weights: &Weights, stride: usize) -> Result<Conv1d> {
        let kernel = 2 * stride;
        let weight =
            weights.pp("downsample.conv").get((self.hidden_size, self.hidden_size, kernel), "weight")?;
        let padding = Padding::same(kernel, stride, 1, true, Fill::Replicate);
        Conv1d::new(&weight, None, ConvSpec { stride, dilation: 1, groups: 1, padding })
    }

    fn upsample(&self, weights: &Weights, stride: usize) -> Result<ConvTranspose1d> {
        let weight = weights.pp("upsample.conv").get((self.hidden_size, 1, 2 * stride), "weight")?;
        let right = (stride as f64 * self.trim_right_ratio).ceil() as usize;
        ConvTranspose1d::depthwise(&weight, None, stride, stride - right, right)
    }

    fn transformer(&self, weights: &Weights) -> Result<Vec<TransformerLayer>> {
        (0..self.num_hidden_layers).map(|i| self.transformer_layer(&weights.pp(i))).collect()
    }

    fn transformer_layer(&self, weights: &Weights) -> Result<TransformerLayer> {
        let size = self.hidden_size;
        let norm = |name: &str| -> Result<Norm> {
            let weights = weights.pp(name);
            let (gamma, beta) = (weights.get(size, "weight")?, weights.get(size, "bias")?);
            Ok(Norm::Layer(LayerNorm::new(gamma, Some(beta), self.norm_eps as f32)?))
        };
        let scale = |name: &str| -> Result<Option<ChannelScale>> {
            Ok(Some(ChannelScale::new(weights.pp(name).get(size, "scale")?)?))
        };
        let linear = |name: &str, c_out: usize, c_in: usize| -> Result<Linear> {
            Linear::new(&weights.pp("mlp").pp(name).get((c_out, c_in), "weight")?, None)
        };
        let feed_forward = (
            linear("fc1", self.intermediate_size, size)?,
            Activation::Unary(Unary::Gelu),
            linear("fc2", size, self.intermediate_size)?,
        );
        Ok(transformer_layer(
            [norm("input_layernorm")?, norm("post_attention_layernorm")?],
            self.attention(&weights.pp("self_attn"))?,
            feed_forward,
            [scale("self_attn_layer_scale")?, scale("mlp_layer_scale")?],
        ))
    }

    fn attention(&self, weights: &Weights) -> Result<Attention> {
        let size = self.hidden_size;
        let dim = self.head_dim.unwrap_or(size / self.num_attention_heads);
        let heads = Heads { n_heads: self.num_attention_heads, n_kv_heads: self.num_key_value_heads, dim };
        let width = heads.n_heads.saturating_mul(dim);
        let kv_width = heads.n_kv_heads.saturating_mul(dim);
        if width.max(kv_width) > MAX_SIZE {
            return Err(too_large("head_dim"));
        }
        let input = if weights.contains("in_proj.weight") {
            // Here the heads pair neighbouring channels.
            let all = weights.get((width + 2 * kv_width, size), "in_proj.weight")?;
            let part = |start, n| all.narrow(0, start, n);
            let (q, k) = (half_split(&part(0, width)?, dim)?, half_split(&part(width, kv_width)?, dim)?);
            joined(&[q, k, part(width + kv_width, kv_width)?])?
        } else {
            let part = |name: &str, n: usize| weights.get((n, size), &format!("{name}.weight"));
            joined(&[part("q_proj", width)?, part("k_proj", kv_width)?, part("v_proj", kv_width)?])?
        };
        let output = weights.get((size, width), "o_proj.weight")?;
        let weights = AttentionWeights { input, input_bias: None, output, output_bias: None };
        let base = self.rope_parameters.as_ref().map_or(self.rope_theta, |rope| rope.rope_theta);
        let sight = Sight::Past { context: Some(self.sliding_window) };
        Attention::new(&weights, AttentionSpec { heads, sight, rotary_base: Some(base) })
    }

    /// One of the two stacks of codebooks, between its projections.
    fn stack(&self, weights: &Weights, n_codebooks: usize) -> Result<ResidualNet> {
        let (size, dim) = (self.codebook_size as usize, self.codebook_dim);
        let stage = |codebook_idx: usize| -> Result<StageNet> {
            let weights = weights.pp("layers").pp(codebook_idx).pp("codebook");
            let sums = weights.get((size, dim), "embed_sum")?;
            let counts = weights.get(size, "cluster_usage")?;
            let averages = AveragesNet { sums, counts };
            let codebook = averages.entries(USAGE_FLOOR)?;
            Ok(StageNet { averages: Some(averages), ..StageNet::euclidean(codebook) })
        };
        let stages = load_each(n_codebooks, stage)?;
        if !weights.contains("input_proj.weight") && dim == self.hidden_size {
            return Ok(ResidualNet { stages, projections: None, beam: 1 });
        }
        let projection = |name: &str, n_in: usize, n_out: usize| -> Result<LinearNet> {
            let weight = weights.pp(name).get((n_out, n_in, 1), "weight")?.squeeze(2)?;
            Ok(LinearNet { weight, bias: None })
        };
        let input = projection("input_proj", self.hidden_size, dim)?;
        let output = projection("output_proj", dim, self.hidden_size)?;
        Ok(ResidualNet { stages, projections: Some(ProjectionsNet { input, output }), beam: 1 })
    }
}

fn too_large(field: &'static str) -> Error {
    Error::config(field, "is too large")
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;
    use std::collections::BTreeMap;

    #[test]
    fn names_of_kyutai() {
        for (kyutai, ours) in [
            ("encoder.model.0.conv.conv.weight", "encoder.layers.0.conv.weight"),
            ("encoder.model.1.block.3.conv.conv.bias", "encoder.layers.1.block.3.conv.bias"),
            ("decoder.model.2.convtr.convtr.weight", "decoder.layers.2.conv.weight"),
            ("downsample.conv.conv.conv.weight", "downsample.conv.weight"),
            ("upsample.convtr.convtr.convtr.weight", "upsample.conv.weight"),
            (
                "encoder_transformer.transformer.layers.0.self_attn.in_proj_weight",
                "encoder_transformer.layers.0.self_attn.in_proj.weight",
            ),
            (
                "encoder_transformer.transformer.layers.0.self_attn.in_projs.0.weight",
                "encoder_transformer.layers.0.self_attn.in_proj.weight",
            ),
            (
                "decoder_transformer.transformer.layers.7.self_attn.out_proj.weight",
                "decoder_transformer.layers.7.self_attn.o_proj.weight",
            ),
            (
                "decoder_transformer.transformer.layers.7.layer_scale_2.scale",
                "decoder_transformer.layers.7.mlp_layer_scale.scale",
            ),
            (
                "decoder_transformer.transformer.layers.7.norm2.bias",
                "decoder_transformer.layers.7.post_attention_layernorm.bias",
            ),
            (
                "decoder_transformer.transformer.layers.7.linear1.weight",
                "decoder_transformer.layers.7.mlp.fc1.weight",
            ),
            (
                "quantizer.rvq_first.input_proj.weight",
                "quantizer.semantic_residual_vector_quantizer.input_proj.weight",
            ),
            (
                "quantizer.rvq_rest.vq.layers.30._codebook._initialized",
                "quantizer.acoustic_residual_vector_quantizer.layers.30.codebook.initialized",
            ),
            (
                "quantizer.rvq_rest.vq.layers.30._codebook.embedding_sum",
                "quantizer.acoustic_residual_vector_quantizer.layers.30.codebook.embed_sum",
            ),
        ] {
            assert_eq!(from_kyutai(kyutai), ours);
        }
    }

    #[test]
    fn names_of_mlx() {
        for (mlx, kyutai) in [
            ("encoder.init_conv1d.conv.conv.bias", "encoder.model.0.conv.conv.bias"),
            ("encoder.layers.0.residuals.0.block.0.conv.conv.bias", "encoder.model.1.block.1.conv.conv.bias"),
            (
                "encoder.layers.3.residuals.0.block.1.conv.conv.bias",
                "encoder.model.10.block.3.conv.conv.bias",
            ),
            ("encoder.layers.3.downsample.conv.conv.weight", "encoder.model.12.conv.conv.weight"),
            ("encoder.final_conv1d.conv.conv.weight", "encoder.model.14.conv.conv.weight"),
            ("decoder.layers.0.upsample.convtr.convtr.weight", "decoder.model.2.convtr.convtr.weight"),
            (
                "decoder.layers.3.residuals.0.block.0.conv.conv.bias",
                "decoder.model.12.block.1.conv.conv.bias",
            ),
            ("decoder.final_conv1d.conv.conv.weight", "decoder.model.14.conv.conv.weight"),
        ] {
            assert_eq!(seanet_from_mlx(mlx, 4, 1).as_deref(), Some(kyutai));
        }
        for other in
            ["upsample.convtr.convtr.convtr.weight", "encoder_transformer.x", "encoder.layers.x.y", "x"]
        {
            assert_eq!(seanet_from_mlx(other, 4, 1), None);
        }
        assert_eq!(order_in_mlx("encoder.init_conv1d.conv.conv.weight"), Some(&[0, 2, 1][..]));
        assert_eq!(order_in_mlx("upsample.convtr.convtr.convtr.weight"), Some(&[2, 0, 1][..]));
        assert_eq!(order_in_mlx("quantizer.rvq_rest.output_proj.weight"), Some(&[0, 2, 1][..]));
        assert_eq!(order_in_mlx("encoder_transformer.transformer.layers.0.self_attn.out_proj.weight"), None);
    }

    #[test]
    fn the_published_tensors_give_the_published_configuration() {
        let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| shapes.insert(name, shape.to_vec());
        for i in 0..8 {
            add(format!("encoder_transformer.layers.{i}.mlp.fc1.weight"), &[2048, 512]);
        }
        add("encoder.layers.0.conv.weight".into(), &[64, 1, 7]);
        for (i, ratio) in [8, 6, 5, 4].into_iter().enumerate() {
            let width = 1024 >> i;
            add(format!("decoder.layers.{}.conv.weight", 3 * i + 2), &[width, width / 2, 2 * ratio]);
            add(format!("decoder.layers.{}.block.1.conv.weight", 3 * i + 3), &[width / 4, width / 2, 3]);
        }
        for (stack, n) in STACKS.into_iter().zip([1, 31]) {
            for i in 0..n {
                add(format!("quantizer.{stack}.layers.{i}.codebook.embed_sum"), &[2048, 256]);
            }
        }
        let of_tensors = |shapes: &BTreeMap<String, Vec<usize>>| {
            Config::of_tensors(|name| shapes.get(name).map(Vec::as_slice))
        };
        assert_eq!(of_tensors(&shapes).unwrap(), Config::default());
        shapes.remove("encoder.layers.0.conv.weight");
        assert!(matches!(of_tensors(&shapes), Err(Error::MissingTensors { .. })));
    }

    #[test]
    fn what_is_not_implemented_or_wrong_is_refused_at_load() {
        let tensor = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap();
        let weights = safetensors::serialize([("x", tensor)], None).unwrap();
        let weights = Weights::from_bytes(weights, &Device::Cpu).unwrap();
        for (json, expected) in [
            (r#"{"attention_bias": true}"#, "attention_bias `true` is not supported"),
            (r#"{"hidden_act": "silu"}"#, "hidden_act `silu` is not supported"),
            (r#"{"use_causal_conv": false}"#, "use_causal_conv `false` is not supported"),
            (r#"{"upsample_groups": 1}"#, "upsample_groups `1` is not supported"),
            (
                r#"{"codebook_dim": 64}"#,
                "codebook_dim `other than vector_quantization_hidden_dimension` is not supported",
            ),
            (
                r#"{"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}"#,
                "rope_type `yarn` is not supported",
            ),
            (r#"{"pad_mode": "circular"}"#, "pad_mode `circular` is not supported"),
            (r#"{"sampling_rate": 0}"#, "configuration: sampling_rate: leaves nothing"),
            (r#"{"num_quantizers": 1}"#, "configuration: num_quantizers: leaves nothing"),
            (r#"{"sliding_window": 0}"#, "configuration: sliding_window: leaves nothing"),
            (r#"{"num_hidden_layers": 70000}"#, "configuration: num_hidden_layers: is too large"),
            (r#"{"norm_eps": 0.0}"#, "configuration: norm_eps: must lie between 0 and 1"),
            (r#"{"upsampling_ratios": [0]}"#, "configuration: upsampling_ratios: must not be zero"),
            (r#"{"frame_rate": 11.0}"#, "configuration: frame_rate: does not divide the rate of the encoder"),
            (r#"{"frame_rate": 0.0}"#, "configuration: frame_rate: does not divide the rate of the encoder"),
            ("{}", "the checkpoint lacks encoder.layers.0.conv.weight"),
        ] {
            let config: Config = serde_json::from_str(json).unwrap();
            let error = config.build(&weights).unwrap_err();
            assert_eq!(error.to_string(), expected, "{json}");
        }
    }
}
