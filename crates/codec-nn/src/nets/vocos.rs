//! Vocos: a network of ConvNeXt blocks at the rate of frames, and an inverse Fourier transform to audio.
//!
//! # Source
//! Siuzdak 2023, "Vocos: closing the gap between time-domain and Fourier-based neural vocoders", arXiv
//! 2306.00814; the residual blocks and the attention in front of it: jishengpeng/WavTokenizer,
//! decoder/models.py, commit 5cf440d.

use super::convnext::{ConvNext, layer_norm, linear};
use crate::error::Result;
use crate::layers::{
    Activation, Attention, AttentionSpec, AttentionWeights, Conv1d, ConvSpec, DynLayer, GroupNorm, Heads,
    Istft, LayerNorm, Padding, Polar, Residual, Sight, Unary,
};
use crate::ops::joined;
use crate::weights::Weights;
use candle_core::Tensor;

const NORM_EPSILON: f32 = 1e-6;
/// Groups of the group norms.
const N_GROUPS: usize = 32;
/// Kernel of the convolutions in the residual blocks.
const RESIDUAL_KERNEL: usize = 3;
/// Kernel of all other convolutions.
const KERNEL: usize = 7;

/// The sizes of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vocos {
    /// Values per latent.
    pub(crate) c_in: usize,
    /// Channels.
    pub(crate) dim: usize,
    /// Channels inside a ConvNeXt block.
    pub(crate) hidden: usize,
    pub(crate) n_blocks: usize,
    pub(crate) n_fft: usize,
    /// Samples per frame.
    pub(crate) hop_length: usize,
}

impl Vocos {
    /// `[batch, n_frames, c_in]` to `[batch, n_frames * hop_length, 1]`; its group norms wait for the end of the
    /// clip.
    pub(crate) fn decoder(&self, weights: &Weights) -> Result<Vec<DynLayer>> {
        let dim = self.dim;
        let backbone = weights.pp("backbone");
        let mut net = vec![DynLayer::new(conv(&backbone.pp("embed"), self.c_in, dim, KERNEL)?)];
        let before = backbone.pp("pos_net");
        for place in 0..5 {
            net.push(match place {
                2 => self.attention(&before.pp(place))?,
                _ => DynLayer::new(residual_block(&before.pp(place), dim)?),
            });
        }
        net.push(DynLayer::new(group_norm(&before.pp(5), dim)?));
        net.push(DynLayer::new(self.layer_norm(&backbone.pp("norm"))?));
        let block = ConvNext {
            dim,
            hidden: self.hidden,
            kernel: KERNEL,
            padding: Padding::symmetric(KERNEL / 2),
            epsilon: NORM_EPSILON,
        };
        for block_idx in 0..self.n_blocks {
            let weights = backbone.pp("convnext").pp(block_idx);
            net.push(block.block(&weights, |weights| self.layer_norm(weights))?);
        }
        net.push(DynLayer::new(self.layer_norm(&backbone.pp("final_layer_norm"))?));
        let head = weights.pp("head");
        let window = head.pp("istft").values_or("window", &hann(self.n_fft))?;
        net.extend(to_audio(&head.pp("out"), dim, window, self.hop_length)?);
        Ok(net)
    }

    /// One head that sees the whole clip and no positions.
    fn attention(&self, weights: &Weights) -> Result<DynLayer> {
        let dim = self.dim;
        let norm = group_norm(&weights.pp("norm"), dim)?;
        let matrix =
            |name: &str| -> Result<Tensor> { Ok(weights.pp(name).get((dim, dim, 1), "weight")?.squeeze(2)?) };
        let bias = |name: &str| weights.pp(name).get(dim, "bias");
        let weights = AttentionWeights {
            input: joined(&[matrix("q")?, matrix("k")?, matrix("v")?])?,
            input_bias: Some(joined(&[bias("q")?, bias("k")?, bias("v")?])?),
            output: matrix("proj_out")?,
            output_bias: Some(bias("proj_out")?),
        };
        let spec = AttentionSpec { heads: Heads::one(dim), sight: Sight::Clip, rotary_base: None };
        Ok(DynLayer::new(Residual::new((norm, Attention::new(&weights, spec)?))))
    }

    /// A norm whose scale and shift are one of a table, or its own; of a table, the first.
    fn layer_norm(&self, weights: &Weights) -> Result<LayerNorm> {
        let dim = self.dim;
        let (scale, shift) = (weights.pp("scale"), weights.pp("shift"));
        let Some(&[n_rows, _]) = scale.shape("weight") else {
            return layer_norm(weights, dim, NORM_EPSILON);
        };
        let first =
            |weights: &Weights| -> Result<Tensor> { Ok(weights.get((n_rows, dim), "weight")?.get(0)?) };
        LayerNorm::new(first(&scale)?, Some(first(&shift)?), NORM_EPSILON)
    }
}

/// Two normalized convolutions beside what they read; their group norms wait for the end of the clip.
pub(crate) fn residual_block(
    weights: &Weights,
    dim: usize,
) -> Result<Residual<(NormalizedConv, NormalizedConv)>> {
    let part = |idx: usize| -> Result<NormalizedConv> {
        let norm = group_norm(&weights.pp(format!("norm{idx}")), dim)?;
        let conv = conv(&weights.pp(format!("conv{idx}")), dim, dim, RESIDUAL_KERNEL)?;
        Ok((norm, Activation::Unary(Unary::Silu), conv))
    };
    Ok(Residual::new((part(1)?, part(2)?)))
}

/// One half of a residual block.
pub(crate) type NormalizedConv = (GroupNorm, Activation, Conv1d);

/// From channels to audio: magnitudes and phases, and an inverse Fourier transform of the window's length.
pub(crate) fn to_audio(
    weights: &Weights,
    dim: usize,
    window: Vec<f32>,
    hop_length: usize,
) -> Result<[DynLayer; 3]> {
    let n_fft = window.len();
    let spectrum = linear(weights, dim, n_fft + 2)?;
    let window = Tensor::from_vec(window, n_fft, weights.device())?;
    Ok([DynLayer::new(spectrum), DynLayer::new(Polar), DynLayer::new(Istft::new(&window, hop_length)?)])
}

/// The window that all heads have, of the period `n_fft`.
pub(crate) fn hann(n_fft: usize) -> Vec<f32> {
    let hann = |i: usize| 0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / n_fft as f64).cos();
    (0..n_fft).map(|i| hann(i) as f32).collect()
}

/// A convolution that keeps the number of steps.
pub(crate) fn conv(weights: &Weights, c_in: usize, c_out: usize, kernel: usize) -> Result<Conv1d> {
    let weight = weights.get((c_out, c_in, kernel), "weight")?;
    let spec = ConvSpec { padding: Padding::symmetric(kernel / 2), ..ConvSpec::default() };
    Conv1d::new(&weight, Some(&weights.get(c_out, "bias")?), spec)
}

fn group_norm(weights: &Weights, dim: usize) -> Result<GroupNorm> {
    let (gamma, beta) = (weights.get(dim, "weight")?, weights.get(dim, "bias")?);
    GroupNorm::new(N_GROUPS, gamma, beta, NORM_EPSILON)
}
