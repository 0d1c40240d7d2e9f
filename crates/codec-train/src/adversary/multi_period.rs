//! A discriminator of every `period`-th sample.
//!
//! # Source
//! Kong et al. 2020, "HiFi-GAN", arXiv 2010.05646, section 2.3; as in descript-audio-codec,
//! dac/model/discriminator.py, `MPD`. Channels are a setting.

use super::{Discriminator, Judgement, SLOPE};
use crate::error::Result;
use candle_core::Tensor;
use codec_nn::layers::{Activation, Conv1d, ConvSpec, Layer, Padding, Unary};
use codec_nn::weights::Weights;

const KERNEL: usize = 5;
const LAST_KERNEL: usize = 3;
/// Growth of the channels and stride of each layer.
const LAYERS: [(usize, usize); 5] = [(1, 3), (4, 3), (16, 3), (32, 3), (32, 1)];

#[derive(Debug)]
pub(super) struct PeriodDiscriminator {
    period: usize,
    layers: Vec<Conv1d>,
    last: Conv1d,
}

impl PeriodDiscriminator {
    pub(super) fn new(weights: &Weights, period: usize, channels: usize) -> Result<Self> {
        let mut c_in = 1;
        let mut layers = Vec::new();
        for (layer_idx, (growth, stride)) in LAYERS.into_iter().enumerate() {
            let c_out = channels * growth;
            layers.push(conv(&weights.pp(layer_idx), c_in, c_out, KERNEL, stride)?);
            c_in = c_out;
        }
        Ok(Self { period, layers, last: conv(&weights.pp("last"), c_in, 1, LAST_KERNEL, 1)? })
    }
}

fn conv(weights: &Weights, c_in: usize, c_out: usize, kernel: usize, stride: usize) -> Result<Conv1d> {
    let weight = weights.conv_weight((c_out, c_in, kernel), "weight")?;
    let spec = ConvSpec { stride, padding: Padding::symmetric(kernel / 2), ..ConvSpec::default() };
    Ok(Conv1d::new(&weight, Some(&weights.get(c_out, "bias")?), spec)?)
}

impl Discriminator for PeriodDiscriminator {
    fn judge(&self, signals: &Tensor) -> Result<Judgement> {
        let (n_signals, n_samples) = signals.dims2()?;
        let n_steps = n_samples / self.period;
        // Every phase of the period is an item of its own.
        let phases = signals.narrow(1, 0, n_steps * self.period)?;
        let phases = phases.reshape((n_signals, n_steps, self.period))?.transpose(1, 2)?.contiguous()?;
        let mut xs = phases.reshape((n_signals * self.period, n_steps, 1))?;
        let mut features = Vec::new();
        let activation = Activation::Unary(Unary::LeakyRelu { slope: SLOPE });
        for layer in &self.layers {
            xs = whole(activation.forward(&whole(layer.forward(&xs)?)?)?)?;
            features.push(xs.clone());
        }
        Ok(Judgement { scores: whole(self.last.forward(&xs)?)?, features })
    }
}

/// What a layer gave; too short a clip gives nothing.
pub(super) fn whole(ys: Option<Tensor>) -> Result<Tensor> {
    ys.ok_or_else(|| crate::Error::config("data.crop_seconds", "is too short for the discriminators"))
}
