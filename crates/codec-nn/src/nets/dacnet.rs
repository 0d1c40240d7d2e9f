//! The convolutional encoder and decoder of DAC and SNAC, and their factorized quantizer.
//!
//! # Source
//! Kumar et al. 2023, arXiv 2306.06546; descriptinc/descript-audio-codec 1.0.0, dac/model/dac.py and
//! dac/nn/{layers,quantize}.py. Siuzdak et al. 2024, arXiv 2410.14411; hubertsiuzdak/snac 1.2.1,
//! snac/{layers,attention,vq}.py. Layers are numbered, and their tensors named, as there.

use super::numbered::Numbered;
use crate::error::{Error, Result};
use crate::layers::{
    Activation, Attention, AttentionSpec, AttentionWeights, Conv1d, ConvSpec, ConvTranspose1d, DynLayer,
    FillBlocks, Heads, LayerNorm, Linear, Noise, Padding, Residual, Sight, Unary, WholeBlocks, Windows,
};
use crate::quantizer::{LinearNet, ProjectionsNet, QuantizerNet, ResidualNet, StageNet};
use crate::weights::Weights;
use candle_core::Tensor;
use codec_core::quantizer::Distance;

/// Windows at both ends of either network, and inside residual units.
const KERNEL: usize = 7;
/// Window at the end of DAC's encoder.
const LAST_KERNEL: usize = 3;
/// Of the three residual units at each rate.
const DILATIONS: [usize; 3] = [1, 3, 9];
/// Channels per head of SNAC's attention, and the base of its rotary frequencies.
const HEAD_DIM: usize = 64;
const ROTARY_BASE: f64 = 10_000.0;
/// PyTorch's default, which the reference leaves in place.
const LAYER_NORM_EPSILON: f32 = 1e-5;
/// Seed of the noise in the first block of a decoder; the others count on from it.
const NOISE_SEED: u64 = 0x534e_4143;
/// Beyond this a configuration is not a codec's but a mistake or an attack.
const MAX_SIZE: usize = 1 << 16;
const MAX_RATES: usize = 16;

/// What networks and quantizer are built from.
#[derive(Clone, Debug)]
pub(crate) struct Dacnet {
    /// Channels at the audio's rate; doubled with every change of rate.
    pub(crate) encoder_dim: usize,
    /// Changes of rate, from the audio on.
    pub(crate) encoder_rates: Vec<usize>,
    /// Values per latent.
    pub(crate) latent_dim: usize,
    /// Channels at the frame rate; halved with every change of rate.
    pub(crate) decoder_dim: usize,
    /// Changes of rate, from the frames on.
    pub(crate) decoder_rates: Vec<usize>,
    /// Entries per codebook.
    pub(crate) codebook_size: usize,
    /// Values per entry.
    pub(crate) codebook_dim: usize,
    /// What the two families do not share.
    pub(crate) kind: Kind,
}

/// What DAC and SNAC do not share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An odd rate of the decoder takes a step off what it makes of a clip.
    Dac,
    /// The encoder ends without an activation, at its own width; every rate gives whole steps.
    Snac {
        /// Whether residual units and the last windows of the encoder see each channel by itself.
        depthwise: bool,
        /// Frames per window of the attention on either side of the quantizer.
        window: Option<usize>,
        /// Whether each block of the decoder adds noise.
        noise: bool,
    },
}

impl Dacnet {
    /// Samples per frame; every size is within reason afterwards.
    ///
    /// # Errors
    /// [`Error::Config`] for a size that is zero or absurd, or rates that do not lead back.
    pub(crate) fn hop_length(&self) -> Result<u32> {
        let sizes = [
            ("encoder_dim", self.encoder_dim),
            ("latent_dim", self.latent_dim),
            ("decoder_dim", self.decoder_dim),
            ("codebook_size", self.codebook_size),
            ("codebook_dim", self.codebook_dim),
            ("encoder_rates", self.encoder_rates.len()),
            ("decoder_rates", self.decoder_rates.len()),
        ];
        for (field, size) in sizes {
            if size == 0 || size > MAX_SIZE {
                return Err(config(field, "is zero or too large"));
            }
        }
        let n_rates = self.encoder_rates.len().max(self.decoder_rates.len());
        if n_rates > MAX_RATES || self.encoder_dim << self.encoder_rates.len() > MAX_SIZE {
            return Err(config("encoder_rates", "are too many"));
        }
        let widest = self.encoder_dim << self.encoder_rates.len();
        if let Kind::Snac { window, .. } = self.kind {
            if self.latent_dim != widest {
                return Err(config("latent_dim", "must be the width at the encoder's end"));
            }
            if window.is_some()
                && [widest, self.decoder_dim].iter().any(|width| !width.is_multiple_of(HEAD_DIM))
            {
                return Err(config("attn_window_size", "needs widths that are whole heads of 64 channels"));
            }
        }
        if self.decoder_dim >> self.decoder_rates.len() == 0 {
            return Err(config("decoder_dim", "leaves no channels"));
        }
        let rates = [("encoder_rates", &self.encoder_rates), ("decoder_rates", &self.decoder_rates)];
        if let Some((field, _)) = rates.iter().find(|(_, rates)| rates.iter().any(|&rate| rate < 2)) {
            return Err(config(field, "must not be below two"));
        }
        let product = |rates: &[usize]| rates.iter().try_fold(1_usize, |hop, &rate| hop.checked_mul(rate));
        let hop_length = product(&self.encoder_rates).filter(|&hop| hop <= MAX_SIZE);
        let hop_length = hop_length.and_then(|hop| u32::try_from(hop).ok());
        let hop_length = hop_length.ok_or_else(|| config("encoder_rates", "multiply to too much"))?;
        if product(&self.decoder_rates) != Some(hop_length as usize) {
            return Err(config("decoder_rates", "do not lead back to the audio's rate"));
        }
        Ok(hop_length)
    }

    /// `[batch, n_samples, 1]` to `[batch, n_frames, latent_dim]`, in blocks of `block` frames; zeros
    /// complete the last one.
    pub(crate) fn encoder(&self, weights: &Weights, block: usize) -> Result<Vec<DynLayer>> {
        let mut net = Numbered::new(&weights.pp("encoder.block"));
        let mut width = self.encoder_dim;
        net.push(self.conv(&net.weights(), 1, width, KERNEL, 1)?);
        for &rate in &self.encoder_rates {
            let mut block = Numbered::new(&net.weights().pp("block"));
            self.push_residuals(&mut block, width)?;
            block.push(snake(&block.weights(), width)?);
            block.push(self.down(&block.weights(), width, 2 * width, rate)?);
            net.push(block.layers);
            width *= 2;
        }
        match self.kind {
            Kind::Dac => {
                net.push(snake(&net.weights(), width)?);
                net.push(self.conv(&net.weights(), width, self.latent_dim, LAST_KERNEL, 1)?);
            }
            Kind::Snac { window, .. } => {
                if let Some(window) = window {
                    net.push(attention(&net.weights(), width, window)?);
                }
                net.push(self.windowed(&net.weights(), width, 1)?);
            }
        }
        let hop_length: usize = self.encoder_rates.iter().product();
        let mut layers = vec![DynLayer::new(FillBlocks { len: hop_length * block })];
        layers.append(&mut net.layers);
        layers.push(DynLayer::new(WholeBlocks { len: block }));
        Ok(layers)
    }

    /// `[batch, n_frames, latent_dim]` to `[batch, n_samples, 1]`, in -1..=1.
    pub(crate) fn decoder(&self, weights: &Weights) -> Result<Vec<DynLayer>> {
        let mut net = Numbered::new(&weights.pp("decoder.model"));
        let mut width = self.decoder_dim;
        if let Kind::Snac { depthwise: true, .. } = self.kind {
            net.push(self.windowed(&net.weights(), self.latent_dim, 1)?);
            net.push(self.conv(&net.weights(), self.latent_dim, width, 1, 1)?);
        } else {
            net.push(self.conv(&net.weights(), self.latent_dim, width, KERNEL, 1)?);
        }
        if let Kind::Snac { window: Some(window), .. } = self.kind {
            net.push(attention(&net.weights(), width, window)?);
        }
        for (&rate, seed) in self.decoder_rates.iter().zip(NOISE_SEED..) {
            let mut block = Numbered::new(&net.weights().pp("block"));
            block.push(snake(&block.weights(), width)?);
            block.push(self.up(&block.weights(), width, width / 2, rate)?);
            width /= 2;
            if let Kind::Snac { noise: true, .. } = self.kind {
                let weight = block.weights().pp("linear").conv_weight((width, width, 1), "weight")?;
                block.push(Noise::new(Linear::new(&weight.squeeze(2)?, None)?, seed));
            }
            self.push_residuals(&mut block, width)?;
            net.push(block.layers);
        }
        net.push(snake(&net.weights(), width)?);
        net.push(self.conv(&net.weights(), width, 1, KERNEL, 1)?);
        net.push(Activation::Unary(Unary::Tanh));
        Ok(net.layers)
    }

    /// Stages of a normalized look-up between two projections each; `strides` are the frames per code.
    pub(crate) fn quantizer(&self, weights: &Weights, strides: &[u32]) -> Result<QuantizerNet> {
        let Self { latent_dim, codebook_size, codebook_dim, .. } = *self;
        let linear = |weights: &Weights, n_in: usize, n_out: usize| -> Result<LinearNet> {
            let weight = weights.conv_weight((n_out, n_in, 1), "weight")?.squeeze(2)?;
            Ok(LinearNet { weight, bias: Some(self.bias(weights, n_out)?) })
        };
        let stage = |(codebook_idx, &stride): (usize, &u32)| -> Result<StageNet> {
            let weights = weights.pp("quantizer.quantizers").pp(codebook_idx);
            let codebook = weights.get((codebook_size, codebook_dim), "codebook.weight")?;
            let input = linear(&weights.pp("in_proj"), latent_dim, codebook_dim)?;
            let output = linear(&weights.pp("out_proj"), codebook_dim, latent_dim)?;
            let projections = Some(ProjectionsNet { input, output });
            Ok(StageNet { codebook, averages: None, stride, distance: Distance::Cosine, projections })
        };
        let stages = strides.iter().enumerate().map(stage).collect::<Result<_>>()?;
        Ok(QuantizerNet::Residual(ResidualNet { stages, projections: None, beam: 1 }))
    }

    /// Three residual units over growing spans.
    fn push_residuals(&self, block: &mut Numbered, width: usize) -> Result<()> {
        for dilation in DILATIONS {
            let mut unit = Numbered::new(&block.weights().pp("block"));
            unit.push(snake(&unit.weights(), width)?);
            unit.push(self.windowed(&unit.weights(), width, dilation)?);
            unit.push(snake(&unit.weights(), width)?);
            unit.push(self.conv(&unit.weights(), width, width, 1, 1)?);
            block.push(Residual::new(unit.layers));
        }
        Ok(())
    }

    /// A convolution over a window that keeps the channels.
    fn windowed(&self, weights: &Weights, width: usize, dilation: usize) -> Result<Conv1d> {
        let Kind::Snac { depthwise: true, .. } = self.kind else {
            return self.conv(weights, width, width, KERNEL, dilation);
        };
        let weight = weights.conv_weight((width, 1, KERNEL), "weight")?;
        let padding = Padding::symmetric((KERNEL - 1) * dilation / 2);
        Conv1d::new(
            &weight,
            Some(&self.bias(weights, width)?),
            ConvSpec { dilation, groups: width, padding, ..ConvSpec::default() },
        )
    }

    /// A convolution that keeps the number of steps.
    fn conv(
        &self,
        weights: &Weights,
        c_in: usize,
        c_out: usize,
        kernel: usize,
        dilation: usize,
    ) -> Result<Conv1d> {
        let padding = Padding::symmetric((kernel - 1) * dilation / 2);
        let weight = weights.conv_weight((c_out, c_in, kernel), "weight")?;
        let spec = ConvSpec { dilation, padding, ..ConvSpec::default() };
        Conv1d::new(&weight, Some(&self.bias(weights, c_out)?), spec)
    }

    fn down(&self, weights: &Weights, c_in: usize, c_out: usize, rate: usize) -> Result<Conv1d> {
        let padding = Padding::symmetric(rate.div_ceil(2));
        let weight = weights.conv_weight((c_out, c_in, 2 * rate), "weight")?;
        let spec = ConvSpec { stride: rate, padding, ..ConvSpec::default() };
        Conv1d::new(&weight, Some(&self.bias(weights, c_out)?), spec)
    }

    fn up(&self, weights: &Weights, c_in: usize, c_out: usize, rate: usize) -> Result<ConvTranspose1d> {
        let trim = rate.div_ceil(2);
        let trim_right = if self.kind == Kind::Dac { trim } else { trim - rate % 2 };
        let weight = weights.conv_weight((c_in, c_out, 2 * rate), "weight")?;
        ConvTranspose1d::new(&weight, Some(&weights.get(c_out, "bias")?), rate, trim, trim_right)
    }

    /// The bias of a convolution that is not transposed: in a new DAC zero, as its `init_weights` has it, in a new
    /// SNAC as PyTorch has it.
    fn bias(&self, weights: &Weights, c_out: usize) -> Result<Tensor> {
        match self.kind {
            Kind::Dac => weights.zeros_if_new(c_out, "bias"),
            Kind::Snac { .. } => weights.get(c_out, "bias"),
        }
    }
}

/// Attention among the steps of each window, beside what it reads.
fn attention(
    weights: &Weights,
    width: usize,
    window: usize,
) -> Result<Residual<Windows<(LayerNorm, Attention)>>> {
    let norm = weights.pp("norm");
    let norm =
        LayerNorm::new(norm.get(width, "weight")?, Some(norm.get(width, "bias")?), LAYER_NORM_EPSILON)?;
    // The reference keeps them among the weights, but no training moves them.
    let usual = |pair: usize| ROTARY_BASE.powf(-2.0 * pair as f64 / HEAD_DIM as f64);
    let of_new: Vec<f32> = (0..HEAD_DIM / 2).map(|pair| usual(pair) as f32).collect();
    for (pair, frequency) in weights.values_or("rel_pos.inv_freq", &of_new)?.into_iter().enumerate() {
        if (f64::from(frequency) / usual(pair) - 1.0).abs() > 1e-3 {
            let value = format!("{frequency} of pair {pair}");
            return Err(Error::Unsupported { what: "rotary frequency", value });
        }
    }
    let parts = AttentionWeights {
        input: weights.get((3 * width, width), "to_qkv.weight")?,
        input_bias: None,
        output: weights.get((width, width), "to_out.weight")?,
        output_bias: None,
    };
    let n_heads = width / HEAD_DIM;
    let heads = Heads { n_heads, n_kv_heads: n_heads, dim: HEAD_DIM };
    let spec = AttentionSpec { heads, sight: Sight::Clip, rotary_base: Some(ROTARY_BASE) };
    Ok(Residual::new(Windows::new((norm, Attention::new(&parts, spec)?), window)?))
}

fn snake(weights: &Weights, width: usize) -> Result<Activation> {
    Activation::snake(&weights.get((1, width, 1), "alpha")?)
}

fn config(field: &'static str, why: &str) -> Error {
    Error::Config { field, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Checkpoint, Variables};
    use candle_core::Device;

    #[test]
    fn new_biases_start_as_the_reference_of_each_kind_has_them() {
        let snac = Kind::Snac { depthwise: false, window: None, noise: false };
        for (kind, starts_at_zero) in [(Kind::Dac, true), (snac, false)] {
            let net = Dacnet {
                encoder_dim: 4,
                encoder_rates: vec![2],
                latent_dim: 8,
                decoder_dim: 8,
                decoder_rates: vec![2],
                codebook_size: 4,
                codebook_dim: 2,
                kind,
            };
            let variables = Variables::seeded(&Device::Cpu, 1);
            let weights = Checkpoint::from_config("{}", &Device::Cpu).trained(&variables);
            let weights = weights.weights().unwrap();
            net.encoder(weights, 1).unwrap();
            net.decoder(weights).unwrap();
            net.quantizer(weights, &[1]).unwrap();
            let biases = variables.all().into_iter().filter(|(name, _)| name.ends_with("bias"));
            let biases: Vec<(String, bool)> = biases
                .map(|(name, bias)| (name, bias.to_vec1::<f32>().unwrap().iter().all(|x| *x == 0.0)))
                .collect();
            assert!(biases.len() > 15, "{}", biases.len());
            for (name, is_zero) in biases {
                // The only transposed convolution.
                let is_transposed = name == "decoder.model.1.block.1.bias";
                assert_eq!(is_zero, starts_at_zero && !is_transposed, "{kind:?}: {name}");
            }
        }
    }
}
