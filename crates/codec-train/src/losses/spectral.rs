//! Distances of spectra: log-mel, complex on compressed magnitudes, and of loudness.
//!
//! On the CPU value and gradient come from one pass over the frames; elsewhere from candle operations.

use super::loudness::{Ear, Hearings};
use super::mel::MelBands;
use super::stft::{Stft, flat};
use crate::error::Result;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use realfft::num_complex::Complex32;
use std::sync::{Arc, Mutex, PoisonError};

/// Added to powers, so that the slope of a compressed magnitude is bounded.
const POWER_FLOOR: f64 = 1e-7;
/// Smallest mel value whose logarithm counts (descript-audio-codec, `MelSpectrogramLoss`).
const MEL_FLOOR: f64 = 1e-5;
/// Share of the magnitudes' distance in the compressed distance; the other share is that of the complex
/// spectra.
const MAGNITUDE_SHARE: f64 = 0.3;

/// What is compared in the spectra of two signals.
#[derive(Clone, Debug)]
pub enum SpectralDistance {
    /// Mean absolute difference of the decimal logarithms of mel bands.
    ///
    /// # Source
    /// Kumar et al. 2023, arXiv 2306.06546, section 3.5; descript-audio-codec, nn/loss.py,
    /// `MelSpectrogramLoss` with `pow` 1 and `mag_weight` 0.
    LogMel(Arc<MelBands>),
    /// Mean squared difference of spectra whose magnitudes are raised to this power: 0.3 times that of the
    /// magnitudes and 0.7 times that of the complex values.
    ///
    /// # Source
    /// Braun and Tashev 2020, arXiv 2009.12286, section 3, equation 4, with other shares.
    Compressed(f64),
    /// Mean over frames of the disturbance that is heard, in units of PESQ's raw score; see the module of
    /// [`Ear`].
    Loudness(Arc<Ear>),
}

/// A distance of spectra at one window.
#[derive(Clone, Debug)]
pub struct SpectralLoss {
    stft: Stft,
    distance: SpectralDistance,
}

impl SpectralLoss {
    /// Compares what `stft` gives.
    pub fn new(stft: Stft, distance: SpectralDistance) -> Self {
        Self { stft, distance }
    }

    /// The loss of `decoded` against `target`, a scalar with a gradient for `decoded`.
    ///
    /// # Shapes
    /// Both `[n_signals, n_samples]`.
    ///
    /// # Errors
    /// As [`Stft::transform`].
    pub fn loss(&self, decoded: &Tensor, target: &Tensor) -> Result<Tensor> {
        if !decoded.device().is_cpu() {
            return self.plain(decoded, target);
        }
        // Checks the length before the operation needs it.
        let target = target.contiguous()?.detach();
        let op =
            Fused { loss: self.clone(), target: target.flatten_all()?.to_vec1()?, grads: Mutex::default() };
        self.stft.transform(&target.narrow(0, 0, 1)?)?;
        Ok(decoded.contiguous()?.apply_op1(op)?)
    }

    /// The same mathematics in candle operations, for any device and type.
    pub(crate) fn plain(&self, decoded: &Tensor, target: &Tensor) -> Result<Tensor> {
        let (xs, ys) = (self.stft.plain(decoded)?, self.stft.plain(target)?);
        match &self.distance {
            SpectralDistance::LogMel(bands) => {
                let matrix = bands.matrix(xs.device(), xs.dtype())?;
                let log_mel = |xs: &Tensor| -> Result<Tensor> {
                    let magnitude = (xs.sqr()?.sum(3)? + 1e-20)?.sqrt()?;
                    let mel = magnitude.broadcast_matmul(&matrix)?.maximum(MEL_FLOOR)?;
                    Ok((mel.log()? / std::f64::consts::LN_10)?)
                };
                Ok((log_mel(&xs)? - log_mel(&ys)?)?.abs()?.mean_all()?)
            }
            SpectralDistance::Compressed(exponent) => {
                let power =
                    |xs: &Tensor| -> Result<Tensor> { Ok((xs.sqr()?.sum_keepdim(3)? + POWER_FLOOR)?) };
                let raised = |power: &Tensor, exponent: f64| -> Result<Tensor> {
                    Ok((power.log()? * (0.5 * exponent))?.exp()?)
                };
                let (px, py) = (power(&xs)?, power(&ys)?);
                let complex = (xs.broadcast_mul(&raised(&px, exponent - 1.0)?)?
                    - ys.broadcast_mul(&raised(&py, exponent - 1.0)?)?)?;
                let magnitude = (raised(&px, *exponent)? - raised(&py, *exponent)?)?;
                let complex = (complex.sqr()?.sum(3)?.mean_all()? * (1.0 - MAGNITUDE_SHARE))?;
                Ok((complex + (magnitude.sqr()?.mean_all()? * MAGNITUDE_SHARE)?)?)
            }
            SpectralDistance::Loudness(ear) => ear.plain(&xs, &ys, &Ear::gains(target, xs.dtype())?),
        }
    }

    /// The loss of one frame before the division by [`SpectralLoss::n_values`], and its gradient in place
    /// of the spectrum `xs`; `gain` is that of the target, [`SpectralLoss::gain`].
    fn frame(&self, xs: &mut [Complex32], ys: &[Complex32], gain: f64, memory: &mut Memory) -> f64 {
        match &self.distance {
            SpectralDistance::LogMel(bands) => log_mel_frame(bands, xs, ys, memory),
            SpectralDistance::Compressed(exponent) => {
                let mut total = 0.0;
                for (x, y) in xs.iter_mut().zip(ys) {
                    let (value, grad) = compressed(*x, *y, *exponent as f32);
                    total += f64::from(value);
                    *x = grad;
                }
                total
            }
            SpectralDistance::Loudness(ear) => ear.frame(xs, ys, gain, &mut memory.hearings),
        }
    }

    /// What the powers of a target are multiplied by.
    fn gain(&self, target: &[f32]) -> f64 {
        match &self.distance {
            SpectralDistance::Loudness(_) => Ear::gain(target),
            SpectralDistance::LogMel(_) | SpectralDistance::Compressed(_) => 1.0,
        }
    }

    /// Numbers that the mean is over, per frame.
    fn n_values(&self) -> usize {
        match &self.distance {
            SpectralDistance::LogMel(bands) => bands.n_bands(),
            SpectralDistance::Compressed(_) => self.stft.n_bins(),
            SpectralDistance::Loudness(_) => 1,
        }
    }

    fn fused(&self, decoded: &[f32], target: &[f32], n_signals: usize) -> (f64, Vec<f32>) {
        let n_samples = decoded.len() / n_signals.max(1);
        let n_bins = self.stft.n_bins();
        let n_values = (n_signals * self.stft.n_frames(n_samples) * self.n_values()) as f64;
        let scale = (1.0 / n_values) as f32;
        let (total, grads) = self.stft.over_frames(n_signals, n_samples, |signal_idx, frames, stretch| {
            let at = signal_idx * n_samples..(signal_idx + 1) * n_samples;
            let (decoded, target) = (&decoded[at.clone()], &target[at]);
            let mut xs = vec![Complex32::default(); n_bins];
            let mut ys = vec![Complex32::default(); n_bins];
            let mut memory = Memory::default();
            let gain = self.gain(target);
            let mut total = 0.0;
            for frame_idx in frames {
                self.stft.frame(decoded, frame_idx, &mut stretch.scratch, &mut xs);
                self.stft.frame(target, frame_idx, &mut stretch.scratch, &mut ys);
                total += self.frame(&mut xs, &ys, gain, &mut memory);
                xs.iter_mut().for_each(|x| *x *= scale);
                stretch.add(frame_idx, &xs);
            }
            total
        });
        (total / n_values, grads)
    }
}

/// Buffers of one frame.
#[derive(Default)]
struct Memory {
    magnitudes: Vec<f32>,
    targets: Vec<f32>,
    slopes: Vec<f32>,
    hearings: Hearings,
}

fn log_mel_frame(bands: &MelBands, xs: &mut [Complex32], ys: &[Complex32], memory: &mut Memory) -> f64 {
    let Memory { magnitudes, targets, slopes, .. } = memory;
    magnitudes.clear();
    magnitudes.extend(xs.iter().map(|x| x.norm_sqr().sqrt()));
    targets.clear();
    targets.extend(ys.iter().map(|y| y.norm_sqr().sqrt()));
    slopes.clear();
    slopes.resize(xs.len(), 0.0);
    let mut total = 0.0;
    for band in bands.bands() {
        let bins = band.first..band.first + band.weights.len();
        let sum = |magnitudes: &[f32]| -> f64 {
            let pairs = magnitudes[bins.clone()].iter().zip(&band.weights);
            pairs.map(|(m, w)| f64::from(m * w)).sum()
        };
        let (mel, target) = (sum(magnitudes), sum(targets));
        let difference = mel.max(MEL_FLOOR).log10() - target.max(MEL_FLOOR).log10();
        total += difference.abs();
        if mel > MEL_FLOOR && difference != 0.0 {
            let slope = (difference.signum() / (mel * std::f64::consts::LN_10)) as f32;
            slopes[bins].iter_mut().zip(&band.weights).for_each(|(sum, w)| *sum += slope * w);
        }
    }
    for ((x, &magnitude), &slope) in xs.iter_mut().zip(magnitudes.iter()).zip(slopes.iter()) {
        *x *= if magnitude > 0.0 { slope / magnitude } else { 0.0 };
    }
    total
}

/// The compressed distance of two values, and its gradient for the first.
fn compressed(x: Complex32, y: Complex32, exponent: f32) -> (f32, Complex32) {
    let (complex_share, magnitude_share) = ((1.0 - MAGNITUDE_SHARE) as f32, MAGNITUDE_SHARE as f32);
    let (px, py) = (x.norm_sqr() + POWER_FLOOR as f32, y.norm_sqr() + POWER_FLOOR as f32);
    // |x|^(p - 1) and |y|^(p - 1).
    let sx = (0.5 * (exponent - 1.0) * px.ln()).exp();
    let sy = (0.5 * (exponent - 1.0) * py.ln()).exp();
    let (mx, my) = (sx * px.sqrt(), sy * py.sqrt());
    let d = x * sx - y * sy;
    let m = mx - my;
    let value = complex_share * d.norm_sqr() + magnitude_share * m * m;
    let along = (d.re * x.re + d.im * x.im) * (exponent - 1.0) * sx / px;
    let complex = (d * sx + x * along) * (2.0 * complex_share);
    let magnitude = x * (2.0 * magnitude_share * m * exponent * sx / px.sqrt());
    (value, complex + magnitude)
}

/// Value and gradient in one pass; the gradient waits for the way back.
struct Fused {
    loss: SpectralLoss,
    target: Vec<f32>,
    grads: Mutex<Vec<f32>>,
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "codec-spectral-loss"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let decoded = flat(storage, layout)?;
        let (n_signals, _) = layout.shape().dims2()?;
        let (value, grads) = self.loss.fused(decoded, &self.target, n_signals);
        *self.grads.lock().unwrap_or_else(PoisonError::into_inner) = grads;
        Ok((CpuStorage::F32(vec![value as f32]), Shape::from(())))
    }

    fn bwd(&self, decoded: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let grads = self.grads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let grads = Tensor::from_vec(grads, decoded.shape(), decoded.device())?;
        Ok(Some(grads.broadcast_mul(&grad.detach())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, check_gradient, noise, values};
    use super::*;
    use candle_core::DType;

    fn losses() -> Vec<SpectralLoss> {
        let bands = Arc::new(MelBands::new(16_000, 64, 8).unwrap());
        vec![
            SpectralLoss::new(Stft::new(64, 16, 1.0).unwrap(), SpectralDistance::LogMel(bands)),
            SpectralLoss::new(
                Stft::new(32, 8, Stft::unit_gain(32)).unwrap(),
                SpectralDistance::Compressed(0.3),
            ),
            SpectralLoss::new(Stft::new(16, 4, 1.0).unwrap(), SpectralDistance::Compressed(1.0)),
            SpectralLoss::new(
                Stft::new(64, 16, Stft::unit_gain(64)).unwrap(),
                SpectralDistance::Loudness(Arc::new(Ear::new(16_000, 64).unwrap())),
            ),
        ]
    }

    #[test]
    fn both_paths_agree_and_have_one_gradient() {
        for loss in losses() {
            let (xs, ys) = (noise(1, &[2, 150]), noise(2, &[2, 150]));
            let got = values(&loss.loss(&xs, &ys).unwrap());
            assert_close("loss", &got, &values(&loss.plain(&xs, &ys).unwrap()), 1e-5);
            let precise = ys.to_dtype(DType::F64).unwrap();
            check_gradient(&xs, |xs| loss.loss(xs, &ys), |xs| loss.plain(xs, &precise));
            assert_eq!(values(&loss.loss(&ys, &ys).unwrap()), [0.0]);
        }
    }

    #[test]
    fn silence_has_a_finite_gradient() {
        for loss in losses() {
            let silence = candle_core::Var::zeros((1, 200), DType::F32, &candle_core::Device::Cpu).unwrap();
            let grads = loss.loss(&silence, &noise(1, &[1, 200])).unwrap().backward().unwrap();
            assert!(values(grads.get(&silence).unwrap()).iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let run = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let (xs, ys) = (noise(1, &[3, 4_000]), noise(2, &[3, 4_000]));
                let xs = candle_core::Var::from_tensor(&xs).unwrap();
                let loss = losses()[0].loss(&xs, &ys).unwrap();
                (values(&loss), values(loss.backward().unwrap().get(&xs).unwrap()))
            })
        };
        assert_eq!(run(1), run(4));
    }
}
