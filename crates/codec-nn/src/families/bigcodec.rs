//! BigCodec: DAC's networks with anti-aliased activations and an LSTM each, and one large codebook.
//!
//! The published model codes 16 kHz speech as 80 codes of 13 bits a second. Its sizes are those that the tensors
//! show. Zeros complete the last frame of a clip, so decoded audio is longer than the clip and to be truncated to
//! its length.
//!
//! # Source
//! Xin et al. 2024, "BigCodec: pushing the limits of low-bitrate neural speech codec", arXiv 2409.05377;
//! Aria-K-Alethia/BigCodec, vq/, commit 09845ab. Vectors: `tests/vectors/bigcodec_*.safetensors`.
//!
//! # Deviations
//! A clip of whole frames gets no frame of zeros after them, as the reference's inference.py gives it. As in DAC,
//! a stage hands on the entry itself.

use super::Family;
use crate::codec::Networks;
use crate::error::{Error, Result};
use crate::layers::{
    Activation, Conv1d, ConvSpec, ConvTranspose1d, DynLayer, FillBlocks, Lstm, LstmWeights, Oversampled,
    Padding, Residual, Unary,
};
use crate::nets::numbered::Numbered;
use crate::ops::load_both;
use crate::quantizer::{LinearNet, ProjectionsNet, QuantizerNet, ResidualNet, StageNet};
use crate::weights::{Checkpoint, Weights};
use candle_core::{Device, Tensor};
use codec_core::quantizer::Distance;
use codec_core::{AudioSpec, Codec, CodecInfo, Delays};

/// See the module.
pub(super) const FAMILY: Family =
    Family { name: "bigcodec", recognizes, signs: &[], load, networks: Some(networks) };

/// The rate is that of the code, not of a configuration.
const SAMPLE_RATE: u32 = 16_000;
/// Windows at both ends of the decoder, at the start of the encoder, and inside residual units.
const KERNEL: usize = 7;
/// Window at the end of the encoder.
const LAST_KERNEL: usize = 3;
/// Of the filters around an activation.
const FILTER_KERNEL: usize = 12;
/// Of the three residual units at each rate.
const DILATIONS: [usize; 3] = [1, 3, 9];
/// Beyond this a checkpoint is not a codec's but a mistake or an attack.
const MAX_SIZE: usize = 1 << 16;
const MAX_RATES: usize = 16;
const MAX_LAYERS: usize = 64;

fn recognizes(checkpoint: &Checkpoint) -> bool {
    let names =
        ["CodecEnc.block.0.bias", "generator.model.0.bias", "generator.quantizer.layers.0._codebook.weight"];
    checkpoint.weights().is_some_and(|weights| names.iter().all(|name| weights.contains(name)))
}

fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Codec>> {
    Ok(Box::new(networks(checkpoint)?.codec(device)?))
}

fn networks(checkpoint: &Checkpoint) -> Result<Networks> {
    let Some(weights) = checkpoint.weights() else {
        return Err(checkpoint.unrecognized());
    };
    build(weights)
}

fn build(weights: &Weights) -> Result<Networks> {
    let (encoder, decoder) = (weights.pp("CodecEnc.block"), weights.pp("generator.model"));
    // A block of the encoder ends with the change of rate; one of the decoder has it after an activation.
    let (down, up) = (Rates::read(&encoder, 1, 4)?, Rates::read(&decoder, decoder_start(&decoder), 1)?);
    let hop_length = down.hop_length()?;
    if up.hop_length()? != hop_length {
        return Err(Error::config("up_ratios", "do not lead back to the audio's rate"));
    }
    let quantizer = quantizer(&weights.pp("generator.quantizer.layers"))?;
    let info = CodecInfo {
        model: "bigcodec".to_owned(),
        family: FAMILY.name,
        audio: AudioSpec { sample_rate: SAMPLE_RATE, channels: 1 },
        hop_length,
        delays: Delays::default(),
        segment: None,
        layout: quantizer.layout()?,
    };
    let dim = dims(weights, "generator.quantizer.layers.0.out_proj.bias", 1)?[0];
    let (encoder, decoder) = load_both(
        || encoder_net(&encoder, &down, hop_length as usize, dim),
        || decoder_net(&decoder, &up, dim),
    )?;
    weights.finish(&[])?;
    Ok(Networks { info, encoder, decoder, quantizer })
}

/// The changes of rate that tensors show.
struct Rates(Vec<usize>);

impl Rates {
    /// Those of the blocks from number `start` on, each in the layer `place` of its block.
    fn read(net: &Weights, start: usize, place: usize) -> Result<Self> {
        let kernel = |block_idx: usize| -> Option<usize> {
            let conv = net.pp(start + block_idx).pp("block").pp(place);
            let spellings = ["weight_v", "parametrizations.weight.original1", "weight"];
            spellings.iter().find_map(|name| conv.shape(name))?.get(2).copied()
        };
        let rates: Vec<usize> = (0..=MAX_RATES).map_while(kernel).map(|kernel| kernel / 2).collect();
        if rates.is_empty() || rates.len() > MAX_RATES || rates.iter().any(|&rate| rate < 2) {
            return Err(Error::config("up_ratios", "are none, too many, or below two"));
        }
        Ok(Self(rates))
    }

    fn hop_length(&self) -> Result<u32> {
        let product = self.0.iter().try_fold(1_usize, |product, &rate| product.checked_mul(rate));
        let product = product.filter(|&hop_length| hop_length <= MAX_SIZE);
        let hop_length = product.and_then(|hop_length| u32::try_from(hop_length).ok());
        hop_length.ok_or_else(|| Error::config("up_ratios", "multiply to too much"))
    }
}

/// The number of the decoder's first block: an LSTM may stand before it.
fn decoder_start(net: &Weights) -> usize {
    if has_lstm(&net.pp(1)) { 2 } else { 1 }
}

/// `[batch, n_samples, 1]` to `[batch, n_frames, dim]`.
fn encoder_net(weights: &Weights, rates: &Rates, hop_length: usize, dim: usize) -> Result<Vec<DynLayer>> {
    let mut net = Numbered::new(weights);
    let mut width = dims(weights, "0.bias", 1)?[0];
    net.push(conv(&net.weights(), 1, width, KERNEL, 1)?);
    for &rate in &rates.0 {
        let mut block = Numbered::new(&net.weights().pp("block"));
        push_residuals(&mut block, width)?;
        block.push(activation(&block.weights(), width)?);
        block.push(down(&block.weights(), width, 2 * width, rate)?);
        net.push(block.layers);
        width *= 2;
    }
    if has_lstm(&net.weights()) {
        net.push(lstm(&net.weights(), width)?);
    }
    net.push(activation(&net.weights(), width)?);
    net.push(conv(&net.weights(), width, dim, LAST_KERNEL, 1)?);
    let mut layers = vec![DynLayer::new(FillBlocks { len: hop_length })];
    layers.append(&mut net.layers);
    Ok(layers)
}

/// `[batch, n_frames, dim]` to `[batch, n_samples, 1]`, in -1..=1.
fn decoder_net(weights: &Weights, rates: &Rates, dim: usize) -> Result<Vec<DynLayer>> {
    let mut net = Numbered::new(weights);
    let mut width = dims(weights, "0.bias", 1)?[0];
    if width >> rates.0.len() == 0 {
        return Err(Error::config("upsample_initial_channel", "leaves no channels"));
    }
    net.push(conv(&net.weights(), dim, width, KERNEL, 1)?);
    if has_lstm(&net.weights()) {
        net.push(lstm(&net.weights(), width)?);
    }
    for &rate in &rates.0 {
        let mut block = Numbered::new(&net.weights().pp("block"));
        block.push(activation(&block.weights(), width)?);
        block.push(up(&block.weights(), width, width / 2, rate)?);
        width /= 2;
        push_residuals(&mut block, width)?;
        net.push(block.layers);
    }
    net.push(activation(&net.weights(), width)?);
    net.push(conv(&net.weights(), width, 1, KERNEL, 1)?);
    net.push(Activation::Unary(Unary::Tanh));
    Ok(net.layers)
}

/// Stages of a normalized look-up between two projections each.
fn quantizer(weights: &Weights) -> Result<QuantizerNet> {
    let n_stages =
        (0..MAX_LAYERS).take_while(|idx| weights.contains(&format!("{idx}._codebook.weight"))).count();
    let stage = |stage_idx: usize| -> Result<StageNet> {
        let weights = weights.pp(stage_idx);
        let shape = dims(&weights, "_codebook.weight", 2)?;
        let (size, inner, dim) = (shape[0], shape[1], dims(&weights, "out_proj.bias", 1)?[0]);
        let linear = |weights: &Weights, n_in: usize, n_out: usize| -> Result<LinearNet> {
            let weight = weights.conv_weight((n_out, n_in), "weight")?;
            Ok(LinearNet { weight, bias: Some(weights.get(n_out, "bias")?) })
        };
        let input = linear(&weights.pp("in_proj"), dim, inner)?;
        let output = linear(&weights.pp("out_proj"), inner, dim)?;
        Ok(StageNet {
            codebook: weights.get((size, inner), "_codebook.weight")?,
            averages: None,
            stride: 1,
            distance: Distance::Cosine,
            projections: Some(ProjectionsNet { input, output }),
        })
    };
    let stages = (0..n_stages).map(stage).collect::<Result<_>>()?;
    Ok(QuantizerNet::Residual(ResidualNet { stages, projections: None, beam: 1 }))
}

/// Three residual units over growing spans.
fn push_residuals(block: &mut Numbered, width: usize) -> Result<()> {
    for dilation in DILATIONS {
        let mut unit = Numbered::new(&block.weights().pp("block"));
        unit.push(activation(&unit.weights(), width)?);
        unit.push(conv(&unit.weights(), width, width, KERNEL, dilation)?);
        unit.push(activation(&unit.weights(), width)?);
        unit.push(conv(&unit.weights(), width, width, 1, 1)?);
        block.push(Residual::new(unit.layers));
    }
    Ok(())
}

fn activation(weights: &Weights, width: usize) -> Result<Oversampled> {
    let filter = |name: &str| -> Result<Tensor> {
        let taps = weights.values(&[1, 1, FILTER_KERNEL], name)?;
        Ok(Tensor::from_vec(taps, FILTER_KERNEL, weights.device())?)
    };
    let (up, down) = (filter("upsample.filter")?, filter("downsample.lowpass.filter")?);
    let act = weights.pp("act");
    // Logarithms, of one at the start.
    let snake =
        Activation::snake_beta(&act.zeros_if_new(width, "alpha")?, &act.zeros_if_new(width, "beta")?)?;
    Oversampled::new(snake, &up, &down, width)
}

fn has_lstm(weights: &Weights) -> bool {
    weights.contains("lstm.weight_ih_l0")
}

/// Beside what it reads.
fn lstm(weights: &Weights, width: usize) -> Result<Residual<Lstm>> {
    let weights = weights.pp("lstm");
    let layer = |idx: usize| -> Result<LstmWeights> {
        Ok(LstmWeights {
            input: weights.get((4 * width, width), &format!("weight_ih_l{idx}"))?,
            recurrent: weights.get((4 * width, width), &format!("weight_hh_l{idx}"))?,
            input_bias: weights.get(4 * width, &format!("bias_ih_l{idx}"))?,
            recurrent_bias: weights.get(4 * width, &format!("bias_hh_l{idx}"))?,
        })
    };
    let n_layers = (0..MAX_LAYERS).take_while(|idx| weights.contains(&format!("weight_ih_l{idx}"))).count();
    Ok(Residual::new(Lstm::new((0..n_layers).map(layer).collect::<Result<_>>()?)?))
}

/// A convolution that keeps the number of steps.
fn conv(weights: &Weights, c_in: usize, c_out: usize, kernel: usize, dilation: usize) -> Result<Conv1d> {
    let padding = Padding::symmetric((kernel - 1) * dilation / 2);
    let weight = weights.conv_weight((c_out, c_in, kernel), "weight")?;
    let spec = ConvSpec { dilation, padding, ..ConvSpec::default() };
    Conv1d::new(&weight, Some(&weights.get(c_out, "bias")?), spec)
}

fn down(weights: &Weights, c_in: usize, c_out: usize, rate: usize) -> Result<Conv1d> {
    let weight = weights.conv_weight((c_out, c_in, 2 * rate), "weight")?;
    let spec =
        ConvSpec { stride: rate, padding: Padding::symmetric(rate.div_ceil(2)), ..ConvSpec::default() };
    Conv1d::new(&weight, Some(&weights.get(c_out, "bias")?), spec)
}

fn up(weights: &Weights, c_in: usize, c_out: usize, rate: usize) -> Result<ConvTranspose1d> {
    let weight = weights.conv_weight((c_in, c_out, 2 * rate), "weight")?;
    let trim = rate.div_ceil(2);
    ConvTranspose1d::new(&weight, Some(&weights.get(c_out, "bias")?), rate, trim, trim - rate % 2)
}

/// The dimensions of a tensor of this rank, each within reason.
fn dims<'a>(weights: &'a Weights, name: &str, rank: usize) -> Result<&'a [usize]> {
    let Some(dims) = weights.shape(name) else {
        return Err(Error::MissingTensors { names: vec![name.to_owned()] });
    };
    if dims.len() != rank || dims.iter().any(|&dim| dim == 0 || dim > MAX_SIZE) {
        return Err(Error::Shape {
            name: name.to_owned(),
            expected: vec![MAX_SIZE; rank],
            actual: dims.to_vec(),
        });
    }
    Ok(dims)
}
