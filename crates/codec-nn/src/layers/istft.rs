//! From spectra to audio: the inverse short-time Fourier transform as a transposed convolution.

use super::conv_transpose::{ConvTranspose1d, ConvTransposeState};
use super::{Chunk, Flow, Layer, Steps, Unary, Work};
use crate::ops;
use crate::{Error, Result};
use candle_core::Tensor;
use codec_kernels::sin_cos;

/// Magnitudes are at most this, so that a stray logarithm cannot blow the audio up.
const MAX_MAGNITUDE: f64 = 1e2;
/// What the squared windows over a sample must add up to, at least, to be divided by.
const MIN_ENVELOPE: f32 = 1e-11;

/// Turns logarithms of magnitudes and phases, half of the channels each, into real and imaginary parts.
///
/// # Source
/// Siuzdak 2023, "Vocos", arXiv 2306.00814, section 3.2.
#[derive(Clone, Copy, Debug)]
pub struct Polar;

impl Layer for Polar {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        let parts = |xs: Tensor| {
            let n = xs.dim(2)? / 2;
            ops::expect_channels("magnitudes and phases", &xs, 2 * n)?;
            let magnitude = ops::unary(&xs.narrow(2, 0, n)?, Unary::Exp)?.minimum(MAX_MAGNITUDE)?;
            let phase = xs.narrow(2, n, n)?;
            let sine = ops::unary(&phase, Unary::Sin)?;
            // The cosine from the sine of the half, whose argument is exact.
            let cosine = ops::unary(&(phase * 0.5)?, Unary::Sin)?.sqr()?.affine(-2.0, 1.0)?;
            Ok(Tensor::cat(&[(&magnitude * cosine)?, (magnitude * sine)?], 2)?)
        };
        chunk.map_steps(|xs| xs.map_tensor(parts))
    }
}

/// Inverse short-time Fourier transform: windowed inverse transforms are added where they overlap and divided by
/// the sum of the squared windows; a frame gives `hop_length` samples.
///
/// A frame adds a fixed combination of `n_fft` sequences to the audio, so the transform is a transposed
/// convolution, and streams as one.
///
/// # Shapes
/// `[batch, n_frames, n_fft + 2]`, real parts and then imaginary parts, to `[batch, n_frames * hop_length, 1]`.
///
/// # Source
/// Griffin and Lim 1984, "Signal estimation from modified short-time Fourier transform", eq. 6.
#[derive(Debug)]
pub struct Istft {
    signal: ConvTranspose1d,
    envelope: ConvTranspose1d,
}

/// The state of [`Istft`].
#[derive(Debug)]
pub struct IstftState {
    signal: ConvTransposeState,
    envelope: ConvTransposeState,
}

impl Istft {
    /// Takes the window, `[n_fft]`; what reaches beyond the frames, `n_fft - hop_length` samples, comes off at
    /// both ends in equal parts.
    ///
    /// # Errors
    /// [`Error::Config`] when window and hop do not fit or leave samples without a window.
    pub fn new(window: &Tensor, hop_length: usize) -> Result<Self> {
        let values = window.to_vec1::<f32>()?;
        let n_fft = values.len();
        let fits = hop_length > 0 && hop_length <= n_fft && n_fft.is_multiple_of(2);
        if !fits || !(n_fft - hop_length).is_multiple_of(2) {
            let why = format!("{hop_length} does not fit a window of {n_fft}");
            return Err(Error::config("hop_length", why));
        }
        let pad = (n_fft - hop_length) / 2;
        // A single frame has the least of it.
        if values[pad..pad + hop_length].iter().any(|x| x * x < MIN_ENVELOPE) {
            return Err(Error::config("window", "leaves samples out"));
        }
        let (device, shape) = (window.device(), (n_fft + 2, 1, n_fft));
        let weight = match ops::is_unwanted() {
            true => ops::placeholder(shape, device)?,
            false => Tensor::from_vec(waves(&values), shape, device)?,
        };
        let squares = window.sqr()?.reshape((1, 1, n_fft))?;
        Ok(Self {
            signal: ConvTranspose1d::new(&weight, None, hop_length, pad, pad)?,
            envelope: ConvTranspose1d::new(&squares, None, hop_length, pad, pad)?,
        })
    }
}

/// What each bin adds to a frame, window included: real parts, then imaginary ones, `[n_fft + 2, n_fft]`.
fn waves(window: &[f32]) -> Vec<f32> {
    let n_fft = window.len();
    let n_bins = n_fft / 2 + 1;
    let mut waves = vec![0.0; 2 * n_bins * n_fft];
    for (row_idx, row) in waves.chunks_exact_mut(n_fft).enumerate() {
        let (bin_idx, is_imaginary) = (row_idx % n_bins, row_idx >= n_bins);
        let is_edge = bin_idx == 0 || bin_idx == n_bins - 1;
        // The bins that are not kept mirror those between the edges; the edges have no imaginary part.
        let share = if is_edge { 1.0 } else { 2.0 } / n_fft as f64;
        for (i, (value, window)) in row.iter_mut().zip(window).enumerate() {
            let turns = (bin_idx * i % n_fft) as f64 / n_fft as f64;
            let (sine, cosine) = sin_cos(std::f64::consts::TAU * turns);
            let wave = match (is_imaginary, is_edge) {
                (false, _) => f64::from(cosine),
                (true, false) => -f64::from(sine),
                (true, true) => 0.0,
            };
            *value = (wave * share * f64::from(*window)) as f32;
        }
    }
    waves
}

impl Layer for Istft {
    type State = IstftState;

    fn init(&self) -> IstftState {
        IstftState { signal: self.signal.init(), envelope: self.envelope.init() }
    }

    fn step(&self, state: &mut IstftState, chunk: Chunk) -> Result<Chunk> {
        let chunk = chunk.normalized();
        let end = chunk.end;
        let ones = |xs: &Steps| xs.channels(0, 1)?.map_tensor(|xs| Ok(xs.ones_like()?));
        let ones = chunk.steps.as_ref().map(ones);
        let ones = Chunk { steps: ones.transpose()?, end };
        let signal = self.signal.step(&mut state.signal, chunk)?.steps;
        let envelope = self.envelope.step(&mut state.envelope, ones)?.steps;
        let steps = signal.zip(envelope).map(|(signal, envelope)| {
            let envelope = envelope.into_tensor()?;
            signal.map_tensor(|signal| Ok((signal / envelope)?))
        });
        let steps = steps.transpose()?;
        Ok(Chunk { steps, end })
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        self.signal.last_input(output_idx)
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        self.signal.list_work(input, list)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_trains};
    use super::*;
    use crate::ops::testing::{Rng, assert_close, values};
    use candle_core::Device;
    use std::f64::consts::TAU;

    fn hann(n_fft: usize) -> Tensor {
        let value = |i: usize| (0.5 - 0.5 * (TAU * i as f64 / n_fft as f64).cos()) as f32;
        Tensor::from_vec((0..n_fft).map(value).collect::<Vec<_>>(), n_fft, &Device::Cpu).unwrap()
    }

    /// Analyses a signal with the same windows, one frame at a time, in f64.
    fn spectra(signal: &[f64], window: &[f64], hop_length: usize) -> Vec<f64> {
        let n_fft = window.len();
        let pad = (n_fft - hop_length) / 2;
        let mut frames = Vec::new();
        for start in (0..signal.len()).step_by(hop_length) {
            let at = |i: usize| {
                let sample = (start + i).checked_sub(pad).and_then(|at| signal.get(at)).copied();
                sample.unwrap_or(0.0) * window[i]
            };
            for part in [f64::cos, |angle: f64| -angle.sin()] {
                for bin_idx in 0..=n_fft / 2 {
                    let wave = |i: usize| part(TAU * (bin_idx * i) as f64 / n_fft as f64);
                    frames.push((0..n_fft).map(|i| at(i) * wave(i)).sum::<f64>());
                }
            }
        }
        frames
    }

    #[test]
    fn gives_back_what_was_analysed() {
        let mut rng = Rng::new(1);
        for (n_fft, hop_length) in [(16, 4), (20, 4), (12, 6), (8, 8)] {
            // A window without a zero, which hop 8 of 8 needs.
            let window = (hann(n_fft) + 0.1).unwrap();
            for n_frames in 1..9 {
                let signal = values(&rng.tensor(&[n_frames * hop_length]));
                let frames = spectra(&signal, &values(&window), hop_length);
                let frames: Vec<f32> = frames.into_iter().map(|x| x as f32).collect();
                let xs = Tensor::from_vec(frames, (1, n_frames, n_fft + 2), &Device::Cpu).unwrap();
                let layer = Istft::new(&window, hop_length).unwrap();
                let got = layer.forward(&xs).unwrap().unwrap();
                assert_eq!(got.dims(), [1, n_frames * hop_length, 1]);
                assert_close("istft", &values(&got), &signal, 1e-5);
                assert_streams(&layer, &rng.tensor(&[2, n_frames, n_fft + 2]), &mut rng);
            }
        }
    }

    #[test]
    fn phases_become_parts_of_any_angle() {
        let mut rng = Rng::new(2);
        let xs = (rng.tensor(&[2, 50, 12]) * 6.0).unwrap();
        let (got, xs_values) = (values(&Polar.forward(&xs).unwrap().unwrap()), values(&xs));
        let want: Vec<f64> = xs_values
            .chunks_exact(12)
            .flat_map(|step| {
                let part =
                    |part: fn(f64) -> f64| (0..6).map(move |i| step[i].exp().min(1e2) * part(step[6 + i]));
                part(f64::cos).chain(part(f64::sin)).collect::<Vec<_>>()
            })
            .collect();
        assert!(xs_values.iter().any(|x| x.exp() > 1e2), "no magnitude is cut");
        assert_close("polar", &got, &want, 1e-6);
        assert_streams(&Polar, &xs, &mut rng);
        assert!(Polar.forward(&rng.tensor(&[1, 2, 3])).is_err());
    }

    #[test]
    fn train() {
        let mut rng = Rng::new(3);
        assert_trains(&mut rng, rng_tensor(), &[], |_| Polar);
        assert_trains(&mut rng, rng_tensor(), &[], |_| Istft::new(&hann(8), 2).unwrap());
    }

    fn rng_tensor() -> Tensor {
        Rng::new(4).tensor(&[2, 5, 10])
    }

    #[test]
    fn refuses_windows_that_do_not_fit() {
        for (window, hop_length) in [(hann(8), 0), (hann(8), 9), (hann(7), 3), (hann(8), 3), (hann(8), 8)] {
            let error = Istft::new(&window, hop_length).unwrap_err();
            assert!(matches!(error, Error::Config { .. }), "hop {hop_length}: {error}");
        }
    }
}
