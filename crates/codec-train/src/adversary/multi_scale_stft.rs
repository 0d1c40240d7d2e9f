//! A discriminator of complex spectra.
//!
//! # Source
//! Défossez et al. 2022, arXiv 2210.13438, section 3.4 and figure 2; facebookresearch/encodec,
//! encodec/msstftd.py, `DiscriminatorSTFT`. A convolution in time and frequency is a sum, over the taps in
//! time, of convolutions along frequency.

use super::multi_period::whole;
use super::{Discriminator, Judgement, SLOPE};
use crate::error::Result;
use crate::losses::Stft;
use candle_core::Tensor;
use codec_nn::layers::{Activation, Conv1d, ConvSpec, Layer, Padding, Unary};
use codec_nn::weights::Weights;

/// Taps in frequency; in time there are [`TIME_KERNEL`].
const KERNEL: usize = 9;
const TIME_KERNEL: usize = 3;
/// Steps between the taps in time of the inner layers.
const DILATIONS: [usize; 3] = [1, 2, 4];

#[derive(Debug)]
pub(super) struct StftDiscriminator {
    stft: Stft,
    layers: Vec<Conv2d>,
    last: Conv2d,
}

impl StftDiscriminator {
    pub(super) fn new(weights: &Weights, window: usize, channels: usize) -> Result<Self> {
        let mut layers = vec![Conv2d::new(&weights.pp(0), (2, channels), (TIME_KERNEL, KERNEL), 1, 1)?];
        for (i, dilation) in DILATIONS.into_iter().enumerate() {
            let weights = weights.pp(i + 1);
            layers.push(Conv2d::new(&weights, (channels, channels), (TIME_KERNEL, KERNEL), dilation, 2)?);
        }
        let square = (TIME_KERNEL, TIME_KERNEL);
        layers.push(Conv2d::new(&weights.pp(DILATIONS.len() + 1), (channels, channels), square, 1, 1)?);
        let last = Conv2d::new(&weights.pp("last"), (channels, 1), square, 1, 1)?;
        Ok(Self { stft: Stft::new(window, window / 4, Stft::unit_gain(window))?, layers, last })
    }
}

impl Discriminator for StftDiscriminator {
    fn judge(&self, signals: &Tensor) -> Result<Judgement> {
        let mut xs = self.stft.transform(signals)?;
        let mut features = Vec::new();
        let activation = Activation::Unary(Unary::LeakyRelu { slope: SLOPE });
        for layer in &self.layers {
            let ys = layer.forward(&xs)?;
            let (n_signals, n_frames, n_bins, channels) = ys.dims4()?;
            let flat = ys.reshape((n_signals * n_frames, n_bins, channels))?;
            xs = whole(activation.forward(&flat)?)?.reshape((n_signals, n_frames, n_bins, channels))?;
            features.push(xs.clone());
        }
        Ok(Judgement { scores: self.last.forward(&xs)?, features })
    }
}

/// A convolution over `[n, time, frequency, channels]`, zeros around it, every frame kept.
#[derive(Debug)]
struct Conv2d {
    /// One per tap in time.
    taps: Vec<Conv1d>,
    dilation: usize,
}

impl Conv2d {
    fn new(
        weights: &Weights,
        (c_in, c_out): (usize, usize),
        (time_kernel, kernel): (usize, usize),
        dilation: usize,
        stride: usize,
    ) -> Result<Self> {
        let weight = weights.conv_weight((c_out, c_in, time_kernel, kernel), "weight")?;
        let bias = weights.get(c_out, "bias")?;
        let padding = Padding::symmetric(kernel / 2);
        let tap = |tap_idx: usize| -> Result<Conv1d> {
            let weight = weight.narrow(2, tap_idx, 1)?.squeeze(2)?;
            // The bias is added once.
            let bias = (tap_idx == 0).then_some(&bias);
            Ok(Conv1d::new(&weight, bias, ConvSpec { stride, padding, ..ConvSpec::default() })?)
        };
        Ok(Self { taps: (0..time_kernel).map(tap).collect::<Result<_>>()?, dilation })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (n, n_frames, n_bins, channels) = xs.dims4()?;
        let around = (self.taps.len() / 2) * self.dilation;
        let padded = xs.pad_with_zeros(1, around, around)?;
        let mut sum: Option<Tensor> = None;
        for (tap_idx, tap) in self.taps.iter().enumerate() {
            let frames = padded.narrow(1, tap_idx * self.dilation, n_frames)?.contiguous()?;
            let ys = whole(tap.forward(&frames.reshape((n * n_frames, n_bins, channels))?)?)?;
            sum = Some(match sum {
                Some(sum) => (sum + ys)?,
                None => ys,
            });
        }
        let sum = whole(sum)?;
        let (_, n_bins, channels) = sum.dims3()?;
        Ok(sum.reshape((n, n_frames, n_bins, channels))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::testing::{assert_close, noise, values};
    use candle_core::Device;
    use codec_nn::weights::{Checkpoint, Variables};

    #[test]
    fn is_a_convolution_in_two_dimensions() {
        let variables = Variables::seeded(&Device::Cpu, 1);
        let checkpoint = Checkpoint::from_config("{}", &Device::Cpu).trained(&variables);
        let weights = checkpoint.weights().unwrap();
        let conv = Conv2d::new(weights, (2, 3), (3, 5), 2, 2).unwrap();
        let xs = noise(1, &[2, 7, 11, 2]);
        let got = conv.forward(&xs).unwrap();
        let weight = weights.conv_weight((3, 2, 3, 5), "weight").unwrap();
        // candle's own, channels first; it has one stride for both dimensions.
        let first = xs.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap();
        let padded = first.pad_with_zeros(2, 2, 2).unwrap().pad_with_zeros(3, 2, 2).unwrap();
        let mut want = vec![0.0; got.elem_count()];
        let (xs, w) = (values(&padded), values(&weight));
        let bias = values(&weights.get(3, "bias").unwrap());
        let (height, width) = (11, 15);
        for n in 0..2 {
            for t in 0..7 {
                for f in 0..6 {
                    for o in 0..3 {
                        let at = ((n * 7 + t) * 6 + f) * 3 + o;
                        want[at] = bias[o];
                        for i in 0..2 {
                            for j in 0..3 {
                                for k in 0..5 {
                                    let x = xs[((n * 2 + i) * height + t + 2 * j) * width + 2 * f + k];
                                    want[at] += x * w[((o * 2 + i) * 3 + j) * 5 + k];
                                }
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(got.dims(), [2, 7, 6, 3]);
        assert_close("convolution", &values(&got), &want, 1e-5);
    }
}
