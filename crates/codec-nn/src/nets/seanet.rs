//! SEANet: the convolutional encoder and decoder of EnCodec and its kin.
//!
//! # Source
//! Tagliasacchi et al. 2020, arXiv 2009.02095; Défossez et al. 2022, arXiv 2210.13438, section 3.1;
//! facebookresearch/encodec, encodec/modules/{seanet,conv,lstm}.py. Layers are numbered, and their
//! tensors named, as Hugging Face's `EncodecModel` does.

use super::numbered::Numbered;
use crate::error::{Error, Result};
use crate::layers::{
    Activation, BiLstm, Chunk, Conv1d, ConvSpec, ConvTranspose1d, DynLayer, Fill, Flow, GroupNorm, Layer,
    Lstm, LstmWeights, Padding, Residual, Steps, Trim, Work,
};
use crate::weights::Weights;
use candle_core::Tensor;

/// PyTorch's default, which the reference leaves in place.
const GROUP_NORM_EPSILON: f32 = 1e-5;
const ELU_ALPHA: f32 = 1.0;
/// The gain of new convolutions, whose biases are zero, so that each keeps the size of what it sees. With PyTorch's
/// start, which the references leave in place, what comes from the audio fades from layer to layer beside the
/// biases: after 200 steps `examples/train/encodec-tiny.toml` is at an SI-SDR of 0 dB instead of 16.
const NEW_GAIN: f32 = 1.0;
/// Beyond this a configuration is not a codec's but a mistake or an attack.
const MAX_SIZE: usize = 1 << 16;

/// What the two networks are built from.
#[derive(Clone, Debug)]
pub(crate) struct Seanet {
    /// Channels of the audio.
    pub(crate) channels: usize,
    /// Values per latent.
    pub(crate) dim: usize,
    /// Channels at the audio's rate; doubled with every change of rate.
    pub(crate) n_filters: usize,
    /// Changes of rate in the order of the decoder.
    pub(crate) ratios: Vec<usize>,
    pub(crate) n_residual_layers: usize,
    pub(crate) kernel_size: usize,
    pub(crate) last_kernel_size: usize,
    pub(crate) residual_kernel_size: usize,
    pub(crate) dilation_growth: usize,
    /// Channels over those inside a residual block.
    pub(crate) compress: usize,
    /// Layers of LSTM at the latents' rate; none for 0.
    pub(crate) n_lstm_layers: usize,
    /// Whether the encoder's LSTM runs in both directions, over the whole clip.
    pub(crate) bidirectional: bool,
    /// Whether activations are Snake, with an alpha for each channel, instead of ELU.
    pub(crate) snake: bool,
    pub(crate) causal: bool,
    /// Share of a causal transposed convolution's surplus that comes off at the right.
    pub(crate) trim_right_ratio: f64,
    pub(crate) fill: Fill,
    /// Whether a residual block's shortcut is a convolution.
    pub(crate) conv_shortcut: bool,
    /// Whether every convolution is followed by a normalization over time and channels.
    pub(crate) group_norm: bool,
}

/// Hugging Face's name of a tensor of the original package: `encoder.model.0.conv.conv.bias` is
/// `encoder.layers.0.conv.bias`.
pub(crate) fn modern_name(name: &str) -> String {
    let Some((net, rest)) = name.split_once(".model.") else {
        return name
            .replace("quantizer.vq.layers.", "quantizer.layers.")
            .replace("._codebook.", ".codebook.");
    };
    let rest = rest
        .replace("convtr.convtr.", "conv.")
        .replace("convtr.norm.", "norm.")
        .replace("conv.conv.", "conv.")
        .replace("conv.norm.", "norm.");
    format!("{net}.layers.{rest}")
}

/// The padding that a configuration of Hugging Face calls `pad_mode`.
pub(crate) fn fill(pad_mode: &str) -> Result<Fill> {
    Ok(match pad_mode {
        "constant" => Fill::Zero,
        "reflect" => Fill::Reflect,
        "replicate" => Fill::Replicate,
        _ => return Err(Error::unsupported("pad_mode", pad_mode)),
    })
}

impl Seanet {
    /// What the relatives of EnCodec leave as it is in a model that is not causal.
    pub(crate) fn usual(dim: usize, n_filters: usize, ratios: Vec<usize>) -> Self {
        Self {
            channels: 1,
            dim,
            n_filters,
            ratios,
            n_residual_layers: 1,
            kernel_size: 7,
            last_kernel_size: 7,
            residual_kernel_size: 3,
            dilation_growth: 2,
            compress: 2,
            n_lstm_layers: 2,
            bidirectional: false,
            snake: false,
            causal: false,
            trim_right_ratio: 1.0,
            fill: Fill::Reflect,
            conv_shortcut: true,
            group_norm: false,
        }
    }

    /// Samples per latent, once every size is found to be within reason; errors name the fields of
    /// Hugging Face's configurations.
    pub(crate) fn hop_length(&self) -> Result<u32> {
        let sizes = [
            ("audio_channels", self.channels),
            ("hidden_size", self.dim),
            ("num_filters", self.n_filters),
            ("kernel_size", self.kernel_size),
            ("last_kernel_size", self.last_kernel_size),
            ("residual_kernel_size", self.residual_kernel_size),
            ("dilation_growth_rate", self.dilation_growth),
            ("compress", self.compress),
            ("upsampling_ratios", self.ratios.iter().copied().min().unwrap_or(0)),
            ("upsampling_ratios", self.ratios.iter().copied().max().unwrap_or(0)),
            ("upsampling_ratios", self.ratios.len()),
        ];
        if let Some((field, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::config(field, "must not be zero"));
        }
        let too_large = |field| Error::config(field, "is too large");
        if let Some((field, _)) = sizes.iter().find(|(_, size)| *size > MAX_SIZE) {
            return Err(too_large(field));
        }
        let width = u32::try_from(self.ratios.len()).ok().and_then(|n| self.n_filters.checked_shl(n));
        if self.ratios.len() > 16 || width.is_none_or(|width| width > MAX_SIZE) {
            return Err(too_large("num_filters"));
        }
        let last_dilation = u32::try_from(self.n_residual_layers.saturating_sub(1));
        let last_dilation = last_dilation.ok().and_then(|n| self.dilation_growth.checked_pow(n));
        if last_dilation.is_none_or(|dilation| dilation > MAX_SIZE) {
            return Err(too_large("num_residual_layers"));
        }
        if self.n_filters < self.compress {
            return Err(Error::config("compress", "leaves no channels"));
        }
        if !(0.0..=1.0).contains(&self.trim_right_ratio) {
            return Err(Error::config("trim_right_ratio", "must lie in 0..=1"));
        }
        let hop_length = self.ratios.iter().try_fold(1_usize, |hop, &ratio| hop.checked_mul(ratio));
        let hop_length = hop_length.filter(|&hop| hop <= MAX_SIZE).and_then(|hop| u32::try_from(hop).ok());
        hop_length.ok_or_else(|| too_large("upsampling_ratios"))
    }

    /// `[batch, n_samples, channels]` to `[batch, n_frames, dim]`.
    pub(crate) fn encoder(&self, weights: &Weights) -> Result<Vec<DynLayer>> {
        let mut net = Numbered::new(weights);
        let mut width = self.n_filters;
        net.push(self.conv(&net.weights(), self.channels, width, self.plain(self.kernel_size))?);
        for &ratio in self.ratios.iter().rev() {
            self.push_residuals(&mut net, width)?;
            net.push(self.activation(&net.weights(), width)?);
            net.push(self.conv(&net.weights(), width, 2 * width, self.down(ratio))?);
            width *= 2;
        }
        if self.n_lstm_layers > 0 && self.bidirectional {
            net.push(self.bidirectional_lstm(&net.weights(), width)?);
            width *= 2;
        } else if self.n_lstm_layers > 0 {
            net.push(self.lstm(&net.weights(), width)?);
        }
        net.push(self.activation(&net.weights(), width)?);
        net.push(self.conv(&net.weights(), width, self.dim, self.plain(self.last_kernel_size))?);
        Ok(net.layers)
    }

    /// `[batch, n_frames, dim]` to `[batch, n_frames * hop_length, channels]`.
    pub(crate) fn decoder(&self, weights: &Weights) -> Result<Vec<DynLayer>> {
        let mut net = Numbered::new(weights);
        let mut width = self.n_filters << self.ratios.len();
        net.push(self.conv(&net.weights(), self.dim, width, self.plain(self.kernel_size))?);
        if self.n_lstm_layers > 0 {
            net.push(self.lstm(&net.weights(), width)?);
        }
        for &ratio in &self.ratios {
            net.push(self.activation(&net.weights(), width)?);
            net.push(self.conv_transpose(&net.weights(), width, width / 2, ratio)?);
            width /= 2;
            self.push_residuals(&mut net, width)?;
        }
        net.push(self.activation(&net.weights(), width)?);
        net.push(self.conv(&net.weights(), width, self.channels, self.plain(self.last_kernel_size))?);
        Ok(net.layers)
    }

    fn push_residuals(&self, net: &mut Numbered, width: usize) -> Result<()> {
        for layer_idx in 0..self.n_residual_layers {
            let weights = net.weights();
            let hidden = width / self.compress;
            let mut block = Numbered::new(&weights.pp("block"));
            block.push(self.activation(&block.weights(), width)?);
            block.push(self.conv(&block.weights(), width, hidden, self.residual(layer_idx))?);
            block.push(self.activation(&block.weights(), hidden)?);
            block.push(self.conv(&block.weights(), hidden, width, self.plain(1))?);
            net.push(if self.conv_shortcut {
                let shortcut = self.conv(&weights.pp("shortcut"), width, width, self.plain(1))?;
                DynLayer::new(Residual::with_shortcut(block.layers, shortcut))
            } else {
                DynLayer::new(Residual::new(block.layers))
            });
        }
        Ok(())
    }

    fn conv(&self, weights: &Weights, c_in: usize, c_out: usize, window: Window) -> Result<DynLayer> {
        let Window { kernel, stride, dilation, padding } = window;
        let conv = weights.pp("conv").with_new_gain(NEW_GAIN);
        let weight = conv.conv_weight((c_out, c_in, kernel), "weight")?;
        let bias = conv.zeros_if_new(c_out, "bias")?;
        let spec = ConvSpec { stride, dilation, groups: 1, padding };
        self.normalized(weights, c_out, DynLayer::new(Conv1d::new(&weight, Some(&bias), spec)?), None)
    }

    fn conv_transpose(&self, weights: &Weights, c_in: usize, c_out: usize, ratio: usize) -> Result<DynLayer> {
        let (kernel, surplus) = (2 * ratio, ratio);
        let right =
            if self.causal { (surplus as f64 * self.trim_right_ratio).ceil() as usize } else { surplus / 2 };
        let trim = Trim { left: surplus - right, right };
        let conv = weights.pp("conv").with_new_gain(NEW_GAIN);
        let weight = conv.conv_weight((c_in, c_out, kernel), "weight")?;
        let bias = conv.zeros_if_new(c_out, "bias")?;
        if !self.group_norm {
            let conv = ConvTranspose1d::new(&weight, Some(&bias), ratio, trim.left, trim.right)?;
            return Ok(DynLayer::new(conv));
        }
        // The surplus counts in the statistics, so it comes off after them.
        let conv = ConvTranspose1d::new(&weight, Some(&bias), ratio, 0, 0)?;
        self.normalized(weights, c_out, DynLayer::new(conv), Some(trim))
    }

    fn normalized(
        &self,
        weights: &Weights,
        channels: usize,
        conv: DynLayer,
        trim: Option<Trim>,
    ) -> Result<DynLayer> {
        if !self.group_norm {
            return Ok(conv);
        }
        let norm = weights.pp("norm");
        let (gamma, beta) = (norm.get(channels, "weight")?, norm.get(channels, "bias")?);
        let mut layers = vec![conv, DynLayer::new(GroupNorm::new(1, gamma, beta, GROUP_NORM_EPSILON)?)];
        layers.extend(trim.map(DynLayer::new));
        Ok(DynLayer::new(layers))
    }

    fn activation(&self, weights: &Weights, width: usize) -> Result<Activation> {
        if self.snake {
            return Activation::snake(&weights.get((1, width, 1), "alpha")?);
        }
        Ok(Activation::elu(ELU_ALPHA))
    }

    fn lstm(&self, weights: &Weights, width: usize) -> Result<DynLayer> {
        let layers = (0..self.n_lstm_layers).map(|idx| lstm_weights(weights, width, width, idx, ""));
        Ok(DynLayer::new(Residual::new(Lstm::new(layers.collect::<Result<_>>()?)?)))
    }

    fn bidirectional_lstm(&self, weights: &Weights, width: usize) -> Result<DynLayer> {
        let layer = |idx: usize| {
            let c_in = if idx == 0 { width } else { 2 * width };
            let direction = |suffix| lstm_weights(weights, width, c_in, idx, suffix);
            Ok([direction("")?, direction("_reverse")?])
        };
        let layers = (0..self.n_lstm_layers).map(layer).collect::<Result<_>>()?;
        Ok(DynLayer::new(Residual::with_shortcut(BiLstm::new(layers)?, Twice)))
    }

    fn plain(&self, kernel: usize) -> Window {
        self.window(kernel, 1, 1)
    }

    fn down(&self, ratio: usize) -> Window {
        self.window(2 * ratio, ratio, 1)
    }

    fn residual(&self, layer_idx: usize) -> Window {
        let growth = u32::try_from(layer_idx).ok().and_then(|idx| self.dilation_growth.checked_pow(idx));
        self.window(self.residual_kernel_size, 1, growth.unwrap_or(usize::MAX))
    }

    fn window(&self, kernel: usize, stride: usize, dilation: usize) -> Window {
        let padding = Padding::same(kernel, stride, dilation, self.causal, self.fill);
        Window { kernel, stride, dilation, padding }
    }
}

/// The weights of layer `idx` in the direction that `suffix` names.
fn lstm_weights(
    weights: &Weights,
    width: usize,
    c_in: usize,
    idx: usize,
    suffix: &str,
) -> Result<LstmWeights> {
    let lstm = weights.pp("lstm");
    Ok(LstmWeights {
        input: lstm.get((4 * width, c_in), &format!("weight_ih_l{idx}{suffix}"))?,
        recurrent: lstm.get((4 * width, width), &format!("weight_hh_l{idx}{suffix}"))?,
        input_bias: lstm.get(4 * width, &format!("bias_ih_l{idx}{suffix}"))?,
        recurrent_bias: lstm.get(4 * width, &format!("bias_hh_l{idx}{suffix}"))?,
    })
}

/// What a convolution reads for one step.
#[derive(Clone, Copy, Debug)]
struct Window {
    kernel: usize,
    stride: usize,
    dilation: usize,
    padding: Padding,
}

/// Every channel twice, all of them and then all of them again.
#[derive(Debug)]
struct Twice;

impl Layer for Twice {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        let Chunk { steps, end } = chunk;
        let twice = |xs: Steps| xs.map_tensor(|xs| Ok(Tensor::cat(&[&xs, &xs], 2)?));
        Ok(Chunk { steps: steps.map(twice).transpose()?, end })
    }

    fn list_work<'a>(&'a self, input: Flow, _: &mut Vec<Work<'a>>) -> Flow {
        Flow { channels: 2 * input.channels, ..input }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_original_package() {
        for (old, new) in [
            ("encoder.model.0.conv.conv.weight_g", "encoder.layers.0.conv.weight_g"),
            ("encoder.model.0.conv.norm.bias", "encoder.layers.0.norm.bias"),
            ("encoder.model.1.block.3.conv.conv.bias", "encoder.layers.1.block.3.conv.bias"),
            ("encoder.model.1.shortcut.conv.conv.bias", "encoder.layers.1.shortcut.conv.bias"),
            ("encoder.model.13.lstm.weight_ih_l0", "encoder.layers.13.lstm.weight_ih_l0"),
            ("decoder.model.3.convtr.convtr.weight_v", "decoder.layers.3.conv.weight_v"),
            ("decoder.model.3.convtr.norm.weight", "decoder.layers.3.norm.weight"),
            ("quantizer.vq.layers.7._codebook.embed", "quantizer.layers.7.codebook.embed"),
        ] {
            assert_eq!(modern_name(old), new);
            assert_eq!(modern_name(new), new);
        }
    }
}
