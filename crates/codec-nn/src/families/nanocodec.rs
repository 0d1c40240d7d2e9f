//! NanoCodec and its kin from NVIDIA NeMo: HiFi-GAN networks around several small grids.
//!
//! Speech at 22.05 kHz: four, eight or thirteen codes of a frame, each the nearest point of a grid of four values.
//! NanoCodec's decoder is causal; its encoder, and the decoder of the low-frame-rate speech codec before it, see both
//! sides. A `.nemo` archive carries its configuration. Zeros complete the last frame of a clip.
//!
//! # Source
//! Casanova et al. 2025, "NanoCodec: towards high-quality ultra fast speech LLM inference", arXiv 2508.05835;
//! Casanova et al. 2024, "Low frame-rate speech codec", arXiv 2409.12117; NVIDIA/NeMo 3.0.0,
//! nemo/collections/tts/modules/audio_codec_modules.py. Vectors: `tests/vectors/nanocodec_*.safetensors`.
//!
//! # Deviations
//! Where a reflecting padding is longer than the steps there are, as in the last layers for a clip of few frames, the
//! reference fails; here EnCodec's rule goes on.

use super::Family;
use crate::codec::NetCodec;
use crate::error::{Error, Result};
use crate::layers::{
    Activation, ChannelScale, Chunk, Conv1d, ConvSpec, ConvTranspose1d, DynLayer, Fill, FillBlocks, Layer,
    Padding, Residual, Steps, SumGroups, Unary,
};
use crate::ops::load_both;
use crate::weights::{Checkpoint, Weights};
use candle_core::{Device, Tensor};
use codec_core::quantizer::{Fsq, Grouped, Quantizer};
use codec_core::{AudioSpec, Codec, CodecInfo, Delays};
use serde::Deserialize;

/// See the module.
pub(super) const FAMILY: Family = Family { name: "nanocodec", recognizes, signs: &[], load, networks: None };

/// PyTorch's default, which the reference leaves in place.
const LEAKY_SLOPE: f32 = 0.01;
/// What the grids leave between their outermost levels and the bounds; the grid has it built in.
const FSQ_EPSILON: f64 = 1e-3;
/// Beyond this a configuration is not a codec's but a mistake or an attack.
const MAX_SIZE: usize = 1 << 14;
const MAX_RATES: usize = 16;
const MAX_GROUPS: usize = 256;
/// Buffers of the grids, which their levels say already.
const IGNORED: [&str; 2] = ["dim_base_index", "num_levels"];
/// What has a part in training alone.
const OF_TRAINING: [&str; 4] = ["discriminator.", "slm_encoder.", "slm_predictor.", "speaker_encoder."];

fn recognizes(checkpoint: &Checkpoint) -> bool {
    let names = ["audio_encoder.pre_conv.conv.bias", "audio_decoder.post_conv.conv.bias"];
    let has_networks = |weights: &Weights| names.iter().all(|name| weights.contains(name));
    checkpoint.weights().is_some_and(has_networks)
}

fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Codec>> {
    let Some(weights) = checkpoint.weights() else {
        return Err(checkpoint.unrecognized());
    };
    let Some(config) = checkpoint.config() else {
        return Err(Error::config("model_config.yaml", "is missing: the weights alone do not say all"));
    };
    let config: Config = serde_json::from_str(config)
        .map_err(|e| Error::Config { field: "model_config.yaml", why: e.to_string() })?;
    let weights = weights.without(|name| OF_TRAINING.iter().any(|start| name.starts_with(start)));
    Ok(Box::new(config.build(&weights, device)?))
}

/// `model_config.yaml`: what there is beside the networks has a part in training.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    audio_decoder: Network,
    audio_encoder: Network,
    output_sample_rate: Option<u32>,
    sample_rate: u32,
    samples_per_frame: u32,
    semantic_codec: Option<serde::de::IgnoredAny>,
    vector_quantizer: Grids,
}

/// `GroupFiniteScalarQuantizer`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grids {
    _target_: String,
    eps: Option<f64>,
    num_groups: usize,
    num_levels_per_group: Vec<u32>,
}

/// Either network: the arguments of its constructor, those left out as they are there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    _target_: String,
    #[serde(default = "leaky")]
    activation: String,
    base_channels: Option<usize>,
    #[serde(default, alias = "encoded_dim")]
    input_dim: usize,
    #[serde(default = "seven")]
    in_kernel_size: usize,
    n_groups_equal_to_out_channels: Option<bool>,
    out_kernel_size: Option<usize>,
    output_activation: Option<String>,
    pad_mode: Option<String>,
    #[serde(default = "kernels")]
    resblock_kernel_sizes: Vec<usize>,
    #[serde(default = "dilations")]
    resblock_dilation_sizes: Vec<usize>,
    #[serde(default, alias = "down_sample_rates")]
    up_sample_rates: Vec<usize>,
}

fn leaky() -> String {
    "lrelu".to_owned()
}

fn seven() -> usize {
    7
}

fn kernels() -> Vec<usize> {
    vec![3, 7, 11]
}

fn dilations() -> Vec<usize> {
    vec![1, 3, 5]
}

impl Config {
    fn build(&self, weights: &Weights, device: &Device) -> Result<NetCodec> {
        if self.output_sample_rate.is_some_and(|rate| rate != self.sample_rate) {
            return Err(Error::unsupported("output_sample_rate", self.output_sample_rate.unwrap_or(0)));
        }
        if self.semantic_codec.is_some() {
            return Err(Error::unsupported("semantic_codec", "a codec within the codec"));
        }
        if self.sample_rate == 0 {
            return Err(Error::config("sample_rate", "must not be zero"));
        }
        let (encoder, decoder) = (&self.audio_encoder, &self.audio_decoder);
        let hop_length = encoder.hop_length()?;
        if decoder.hop_length()? != hop_length || hop_length != self.samples_per_frame {
            let why = format!("{} are not what the networks make of a frame", self.samples_per_frame);
            return Err(Error::config("samples_per_frame", why));
        }
        let quantizer = self.vector_quantizer.build()?;
        let dim = quantizer.dim();
        if encoder.input_dim != dim || decoder.input_dim != dim {
            return Err(Error::config("encoded_dim", format!("the grids have {dim} values")));
        }
        let layout = quantizer.layout().clone();
        let size = layout.codebooks().first().map_or(0, |codebook| codebook.size);
        let (khz, n_codebooks) = (self.sample_rate / 1000, layout.n_codebooks());
        let info = CodecInfo {
            model: format!("nanocodec_{khz}khz_{n_codebooks}x{size}"),
            family: FAMILY.name,
            audio: AudioSpec { sample_rate: self.sample_rate, channels: 1 },
            hop_length,
            delays: Delays::default(),
            segment: None,
            layout,
        };
        let mut layers = vec![DynLayer::new(FillBlocks { len: hop_length as usize })];
        let (encoder, decoder) = load_both(
            || encoder.encoder(&weights.pp("audio_encoder")),
            || decoder.decoder(&weights.pp("audio_decoder")),
        )?;
        layers.extend(encoder);
        weights.finish(&IGNORED)?;
        NetCodec::new(info, Some(layers), decoder, Box::new(quantizer), device)
    }
}

impl Grids {
    fn build(&self) -> Result<Grouped<Fsq>> {
        if class(&self._target_) != "GroupFiniteScalarQuantizer" {
            return Err(Error::unsupported("vector_quantizer", &self._target_));
        }
        if let Some(eps) = self.eps.filter(|eps| (eps - FSQ_EPSILON).abs() > 1e-9) {
            return Err(Error::unsupported("eps", eps));
        }
        let grid = Fsq::new(&self.num_levels_per_group)?;
        if self.num_groups > MAX_GROUPS {
            return Err(Error::config("num_groups", "are too many"));
        }
        Ok(Grouped::new(vec![grid; self.num_groups])?)
    }
}

/// The name of a class without its modules.
fn class(target: &str) -> &str {
    target.rsplit('.').next().unwrap_or(target)
}

impl Network {
    /// Samples per frame; every size is within reason afterwards.
    fn hop_length(&self) -> Result<u32> {
        let sizes = [
            self.base_channels.unwrap_or(1),
            self.in_kernel_size,
            self.out_kernel_size.unwrap_or(1),
            self.input_dim,
        ];
        let lists = [&self.resblock_kernel_sizes, &self.resblock_dilation_sizes, &self.up_sample_rates];
        let is_absurd = |size: &usize| *size == 0 || *size > MAX_SIZE;
        if sizes.iter().any(is_absurd)
            || lists.iter().any(|list| list.is_empty() || list.iter().any(is_absurd))
        {
            return Err(Error::config("audio_encoder", "a size is zero or too large"));
        }
        if lists.iter().any(|list| list.len() > MAX_RATES) {
            return Err(Error::config("audio_encoder", "too many layers"));
        }
        if self.up_sample_rates.iter().any(|&rate| rate < 2) {
            return Err(Error::config("up_sample_rates", "must not be below two"));
        }
        let product = self.up_sample_rates.iter().try_fold(1_usize, |hop, &rate| hop.checked_mul(rate));
        let product = product.filter(|&hop| hop <= MAX_SIZE).and_then(|hop| u32::try_from(hop).ok());
        product.ok_or_else(|| Error::config("up_sample_rates", "multiply to too much"))
    }

    /// `[batch, n_samples, 1]` to `[batch, n_frames, encoded_dim]`.
    fn encoder(&self, weights: &Weights) -> Result<Vec<DynLayer>> {
        let parts = self.parts(["HiFiGANEncoder", "CausalHiFiGANEncoder"])?;
        let mut width = self.base_channels.unwrap_or(32);
        if width << self.up_sample_rates.len() > MAX_SIZE {
            return Err(Error::config("base_channels", "grow to too many"));
        }
        let mut net = vec![parts.conv(&weights.pp("pre_conv"), 1, width, self.in_kernel_size, 1)?];
        for (idx, &rate) in self.up_sample_rates.iter().enumerate() {
            net.push(self.residual_layer(&parts, &weights.pp("res_layers").pp(idx), width)?);
            net.push(parts.activation(&weights.pp("activations").pp(idx), width)?);
            net.push(parts.down(&weights.pp("down_sample_conv_layers").pp(idx), width, rate)?);
            width *= 2;
        }
        net.push(parts.activation(&weights.pp("post_activation"), width)?);
        let kernel = self.out_kernel_size.unwrap_or(7);
        net.push(parts.conv(&weights.pp("post_conv"), width, self.input_dim, kernel, 1)?);
        Ok(net)
    }

    /// `[batch, n_frames, input_dim]` to `[batch, n_samples, 1]`, in -1..=1.
    fn decoder(&self, weights: &Weights) -> Result<Vec<DynLayer>> {
        let parts = self.parts(["HiFiGANDecoder", "CausalHiFiGANDecoder"])?;
        let mut width = self.base_channels.unwrap_or(512);
        if !width.is_multiple_of(1 << self.up_sample_rates.len()) {
            return Err(Error::config("base_channels", "cannot be halved at each rate"));
        }
        let in_groups = self.n_groups_equal_to_out_channels.unwrap_or(parts.is_causal);
        let mut net =
            vec![parts.conv(&weights.pp("pre_conv"), self.input_dim, width, self.in_kernel_size, 1)?];
        for (idx, &rate) in self.up_sample_rates.iter().enumerate() {
            net.push(parts.activation(&weights.pp("activations").pp(idx), width)?);
            net.push(parts.up(&weights.pp("up_sample_conv_layers").pp(idx), width, rate, in_groups)?);
            width /= 2;
            net.push(self.residual_layer(&parts, &weights.pp("res_layers").pp(idx), width)?);
        }
        net.push(parts.activation(&weights.pp("post_activation"), width)?);
        let kernel = self.out_kernel_size.unwrap_or(3);
        net.push(parts.conv(&weights.pp("post_conv"), width, 1, kernel, 1)?);
        net.push(match self.output_activation.as_deref().unwrap_or("tanh") {
            "tanh" => DynLayer::new(Activation::Unary(Unary::Tanh)),
            "clamp" => DynLayer::new(Clamp),
            other => return Err(Error::unsupported("output_activation", other)),
        });
        Ok(net)
    }

    /// What the layers have in common.
    fn parts(&self, [symmetric, causal]: [&str; 2]) -> Result<Parts> {
        let class = class(&self._target_);
        if class != symmetric && class != causal {
            return Err(Error::unsupported("network", &self._target_));
        }
        let is_causal = class == causal;
        let fill = match self.pad_mode.as_deref() {
            // Causal layers pad by themselves, with zeros.
            _ if is_causal => Fill::Zero,
            None | Some("reflect") => Fill::Reflect,
            Some("replicate") => Fill::Replicate,
            Some("zeros") => Fill::Zero,
            Some(other) => return Err(Error::unsupported("pad_mode", other)),
        };
        let kind = match self.activation.to_lowercase().as_str() {
            "elu" => Kind::Elu,
            "lrelu" => Kind::Leaky,
            "snake" => Kind::Snake,
            "half_snake" => Kind::HalfSnake,
            other => return Err(Error::unsupported("activation", other)),
        };
        Ok(Parts { is_causal, fill, kind })
    }

    /// The mean of one row of residual blocks per kernel, a block per dilation.
    fn residual_layer(&self, parts: &Parts, weights: &Weights, width: usize) -> Result<DynLayer> {
        let row = |(idx, &kernel): (usize, &usize)| -> Result<DynLayer> {
            let blocks = weights.pp("res_blocks").pp(idx).pp("res_blocks");
            let block = |(idx, &dilation): (usize, &usize)| -> Result<DynLayer> {
                let weights = blocks.pp(idx);
                Ok(DynLayer::new(Residual::new((
                    parts.activation(&weights.pp("input_activation"), width)?,
                    parts.conv(&weights.pp("input_conv"), width, width, kernel, dilation)?,
                    parts.activation(&weights.pp("skip_activation"), width)?,
                    parts.conv(&weights.pp("skip_conv"), width, width, kernel, 1)?,
                ))))
            };
            let row = self.resblock_dilation_sizes.iter().enumerate().map(block);
            Ok(DynLayer::new(row.collect::<Result<Vec<_>>>()?))
        };
        let mut rows = self.resblock_kernel_sizes.iter().enumerate().map(row);
        let first = rows.next().unwrap_or_else(|| Err(Error::config("resblock_kernel_sizes", "are none")))?;
        let sum = rows.try_fold(first, |sum, row| -> Result<DynLayer> {
            Ok(DynLayer::new(Residual::with_shortcut(row?, sum)))
        })?;
        let share = 1.0 / self.resblock_kernel_sizes.len() as f32;
        let share = Tensor::from_vec(vec![share; width], width, weights.device())?;
        Ok(DynLayer::new((sum, ChannelScale::new(share)?)))
    }
}

/// The layers of a network, as its configuration wants them.
#[derive(Clone, Copy, Debug)]
struct Parts {
    is_causal: bool,
    fill: Fill,
    kind: Kind,
}

/// The activation between convolutions.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Elu,
    Leaky,
    Snake,
    HalfSnake,
}

impl Parts {
    /// A convolution that keeps the number of steps.
    fn conv(
        &self,
        weights: &Weights,
        c_in: usize,
        c_out: usize,
        kernel: usize,
        dilation: usize,
    ) -> Result<DynLayer> {
        let span = (kernel - 1) * dilation;
        let padding = if self.is_causal {
            Padding { left: span, right: 0, align: false, fill: self.fill }
        } else {
            // An even kernel takes a step.
            Padding { left: span / 2, right: span / 2, align: false, fill: self.fill }
        };
        let spec = ConvSpec { dilation, padding, ..ConvSpec::default() };
        self.windowed(weights, (c_out, c_in, kernel), spec)
    }

    /// Twice the channels at a lower rate.
    fn down(&self, weights: &Weights, width: usize, rate: usize) -> Result<DynLayer> {
        let near = rate.div_ceil(2);
        let (left, right) = if self.is_causal { (rate, 0) } else { (near, near) };
        let padding = Padding { left, right, align: false, fill: self.fill };
        let spec = ConvSpec { stride: rate, padding, ..ConvSpec::default() };
        self.windowed(weights, (2 * width, width, 2 * rate), spec)
    }

    fn windowed(&self, weights: &Weights, shape: (usize, usize, usize), spec: ConvSpec) -> Result<DynLayer> {
        let conv = weights.pp("conv");
        let (weight, bias) = (conv.conv_weight(shape, "weight")?, conv.get(shape.0, "bias")?);
        Ok(DynLayer::new(Conv1d::new(&weight, Some(&bias), spec)?))
    }

    /// Half the channels at a higher rate; in groups, each is made of two neighbours.
    fn up(&self, weights: &Weights, width: usize, rate: usize, in_groups: bool) -> Result<DynLayer> {
        let near = rate.div_ceil(2);
        let (left, right) = if self.is_causal { (0, rate) } else { (near, near - rate % 2) };
        let conv = weights.pp("conv");
        let bias = conv.get(width / 2, "bias")?;
        let shape = (width, if in_groups { 1 } else { width / 2 }, 2 * rate);
        let weight = conv.conv_weight(shape, "weight")?;
        Ok(if in_groups {
            let each = ConvTranspose1d::depthwise(&weight, None, rate, left, right)?;
            DynLayer::new((each, SumGroups::new(2, bias)?))
        } else {
            DynLayer::new(ConvTranspose1d::new(&weight, Some(&bias), rate, left, right)?)
        })
    }

    fn activation(&self, weights: &Weights, width: usize) -> Result<DynLayer> {
        let weights = weights.pp("activation");
        Ok(DynLayer::new(match self.kind {
            Kind::Elu => Activation::elu(1.0),
            Kind::Leaky => Activation::Unary(Unary::LeakyRelu { slope: LEAKY_SLOPE }),
            Kind::Snake => Activation::snake(&weights.get((1, width, 1), "alpha")?)?,
            Kind::HalfSnake => {
                let alpha = weights.pp("snake_act").get((1, width / 2, 1), "alpha")?.flatten_all()?;
                Activation::HalfSnake { alpha, slope: LEAKY_SLOPE }
            }
        }))
    }
}

/// Full scale at most.
#[derive(Clone, Copy, Debug)]
struct Clamp;

impl Layer for Clamp {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        let Chunk { steps, end } = chunk;
        let clamp = |xs: Steps| xs.map_tensor(|xs| Ok(xs.clamp(-1.0_f32, 1.0_f32)?));
        Ok(Chunk { steps: steps.map(clamp).transpose()?, end })
    }
}
