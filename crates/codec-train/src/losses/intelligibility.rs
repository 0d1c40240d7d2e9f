//! How far the envelopes of bands follow those of the target: what STOI measures, as a loss.
//!
//! # Source
//! Taal et al. 2011, "An algorithm for intelligibility prediction of time-frequency weighted noisy speech",
//! section II. Here at the audio's own rate instead of 10 kHz, and segments without speech are left out
//! instead of frames.

use super::correlation::Correlation;
use super::mel::{Band, matrix};
use super::stft::Stft;
use crate::error::{Error, Result};
use candle_core::{D, Tensor};

/// Frames per second, about; STOI's are 12.8 ms apart.
const FRAME_RATE: u32 = 78;
/// Frames of a segment, 384 ms.
pub(super) const SEGMENT: usize = 30;
/// Bands of a third of an octave, and the centre of the lowest.
const N_BANDS: usize = 15;
const LOWEST: f64 = 150.0;
/// Largest value of a decoded envelope over that of the target: -15 dB of signal to distortion.
pub(super) const CLIP: f64 = 6.623_413_251_903_491;
/// A segment counts down to this share of the loudest one's power, -40 dB.
pub(super) const QUIET: f64 = 1e-4;
/// Keeps roots and quotients of silence finite.
pub(super) const POWER_FLOOR: f64 = 1e-9;

/// A loss on envelopes.
#[derive(Clone, Debug)]
pub struct Intelligibility {
    stft: Stft,
    bands: Vec<Band>,
}

impl Intelligibility {
    /// Prepares the bands for a rate.
    ///
    /// # Errors
    /// [`Error::Config`] for a rate without frames.
    pub fn new(sample_rate: u32) -> Result<Self> {
        let hop = (sample_rate / FRAME_RATE / 2 * 2) as usize;
        if hop == 0 {
            return Err(Error::config("loss.intelligibility", "needs a higher sample rate"));
        }
        let window = 2 * hop;
        let stft = Stft::new(window, hop, Stft::unit_gain(window))?;
        let (n_bins, spacing) = (stft.n_bins(), f64::from(sample_rate) / window as f64);
        let edge = |i: usize| LOWEST * 2_f64.powf((2.0 * i as f64 - 1.0) / 6.0);
        let band = |band_idx: usize| {
            let [low, high] = [0, 1].map(|i| ((edge(band_idx + i) / spacing).round() as usize).min(n_bins));
            Band { first: low, weights: vec![1.0; high.saturating_sub(low)] }
        };
        let bands = (0..N_BANDS).map(band).filter(|band| !band.weights.is_empty()).collect();
        Ok(Self { stft, bands })
    }

    /// One minus the mean correlation of envelopes, a scalar with a gradient for `decoded`.
    ///
    /// # Shapes
    /// Both `[n_signals, n_samples]`.
    ///
    /// # Errors
    /// [`Error::Config`] for signals shorter than a segment.
    pub fn loss(&self, decoded: &Tensor, target: &Tensor) -> Result<Tensor> {
        let n_frames = self.stft.n_frames(decoded.dim(1)?);
        if n_frames < SEGMENT {
            let why = format!("needs crops of {SEGMENT} frames and not {n_frames}");
            return Err(Error::config("loss.intelligibility", why));
        }
        let (xs, ys) = (self.stft.transform(decoded)?, self.stft.transform(target)?.detach());
        if !xs.device().is_cpu() {
            return self.plain(&xs, &ys);
        }
        let op = Correlation::new(&self.bands, ys.flatten_all()?.to_vec1()?);
        Ok(xs.contiguous()?.apply_op1(op)?)
    }

    /// The same mathematics in candle operations, for any device and type.
    fn plain(&self, xs: &Tensor, ys: &Tensor) -> Result<Tensor> {
        let (_, n_frames, n_bins, _) = xs.dims4()?;
        let n_bands = self.bands.len();
        let bands: Vec<&Band> = self.bands.iter().collect();
        let matrix = matrix(&bands, n_bins, xs.device(), xs.dtype())?;
        // `[n_signals, n_segments, n_bands, SEGMENT]`.
        let n_segments = n_frames - SEGMENT + 1;
        let segments = |xs: &Tensor| -> Result<Tensor> {
            let envelopes = (xs.sqr()?.sum(3)?.broadcast_matmul(&matrix)? + POWER_FLOOR)?.sqrt()?;
            let shifted = (0..SEGMENT).map(|i| envelopes.narrow(1, i, n_segments)?.unsqueeze(3));
            Ok(Tensor::cat(&shifted.collect::<candle_core::Result<Vec<_>>>()?, 3)?)
        };
        let (xs, ys) = (segments(xs)?, segments(ys)?);
        let power =
            |xs: &Tensor| -> Result<Tensor> { Ok((xs.sqr()?.sum_keepdim(D::Minus1)? + POWER_FLOOR)?) };
        let level = (power(&ys)? / power(&xs)?)?.sqrt()?;
        let xs = xs.broadcast_mul(&level)?.minimum(&(&ys * CLIP)?)?;
        let centred = |xs: &Tensor| -> Result<Tensor> { Ok(xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?) };
        let (dx, dy) = (centred(&xs)?, centred(&ys)?);
        let correlation = (&dx * &dy)?.sum_keepdim(D::Minus1)?;
        let correlation = (correlation / (power(&dx)? * power(&dy)?)?.sqrt()?)?.squeeze(3)?;
        // A segment's power is that of all its bands.
        let power = ys.sqr()?.sum(D::Minus1)?.sum_keepdim(D::Minus1)?;
        let loudest = power.max_keepdim(1)?;
        let counts = power.broadcast_gt(&(loudest * QUIET)?)?.to_dtype(xs.dtype())?;
        let n = (counts.sum_all()? * n_bands as f64)?;
        let mean = (correlation.broadcast_mul(&counts)?.sum_all()? / n)?;
        Ok(mean.affine(-1.0, 1.0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, check_gradient, noise, values};
    use super::*;
    use candle_core::DType;

    /// Few samples, so that differences are soon taken.
    fn small() -> (Intelligibility, Tensor, Tensor) {
        let stft = Stft::new(8, 4, 0.7).unwrap();
        let band = |first| Band { first, weights: vec![1.0; 2] };
        let loss = Intelligibility { stft, bands: vec![band(1), band(3)] };
        (loss, noise(1, &[2, 140]), noise(2, &[2, 140]))
    }

    #[test]
    fn has_a_gradient() {
        let (loss, xs, ys) = small();
        let spectra = |xs: &Tensor| loss.stft.plain(xs);
        let precise = spectra(&ys.to_dtype(DType::F64).unwrap()).unwrap();
        check_gradient(&xs, |xs| loss.loss(xs, &ys), |xs| loss.plain(&spectra(xs)?, &precise));
    }

    #[test]
    fn both_paths_agree_whatever_the_threads() {
        let loss = Intelligibility::new(16_000).unwrap();
        // A loud and a quiet part, and a part of which the decoded has too much.
        let shape = |t: usize| if t % 9000 < 2000 { 1e-3 } else { 1.0 };
        let shape: Vec<f32> = (0..20_000).map(shape).collect();
        let shape = Tensor::from_vec(shape, (1, 20_000), &candle_core::Device::Cpu).unwrap();
        let ys = noise(6, &[3, 20_000]).broadcast_mul(&shape).unwrap();
        let xs = (noise(7, &[3, 20_000]) + &ys).unwrap();
        let on = |n_threads: usize, by_kernel: bool| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let xs = candle_core::Var::from_tensor(&xs).unwrap();
                let spectra = |xs: &Tensor| loss.stft.transform(xs).unwrap();
                let got = if by_kernel {
                    loss.loss(&xs, &ys).unwrap()
                } else {
                    loss.plain(&spectra(&xs), &spectra(&ys)).unwrap()
                };
                (values(&got), values(got.backward().unwrap().get(&xs).unwrap()))
            })
        };
        let (value, grads) = on(3, true);
        assert_eq!(on(1, true), (value.clone(), grads.clone()));
        let (want, want_grads) = on(1, false);
        assert_close("loss", &value, &want, 1e-5);
        assert_close("gradient", &grads, &want_grads, 1e-3);
    }

    #[test]
    fn silence_has_a_finite_gradient() {
        let loss = Intelligibility::new(16_000).unwrap();
        let silence = candle_core::Var::zeros((2, 8_000), DType::F32, &candle_core::Device::Cpu).unwrap();
        for target in [noise(1, &[2, 8_000]), silence.zeros_like().unwrap()] {
            let got = loss.loss(&silence, &target).unwrap();
            assert!(values(&got)[0].is_finite());
            let grads = got.backward().unwrap();
            assert!(values(grads.get(&silence).unwrap()).iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn is_one_minus_stoi_where_every_frame_is_loud() {
        // At 10 kHz the bands are those of the metric.
        let loss = Intelligibility::new(10_000).unwrap();
        let ys = noise(3, &[1, 30_000]);
        let xs = ((noise(4, &[1, 30_000]) * 0.7).unwrap() + &ys).unwrap();
        let samples = |xs: &Tensor| -> Vec<f32> { xs.flatten_all().unwrap().to_vec1().unwrap() };
        let (reference, degraded) = (samples(&ys), samples(&xs));
        let pair = codec_metrics::Pair::new(&reference, &degraded, 10_000).unwrap();
        let want = codec_metrics::stoi::stoi(&pair).unwrap();
        let got = 1.0 - values(&loss.loss(&xs, &ys).unwrap())[0];
        assert!((got - want).abs() < 0.02, "{got} instead of {want}");
        assert!(values(&loss.loss(&ys, &ys).unwrap())[0].abs() < 1e-3);
    }

    #[test]
    fn short_signals_are_refused() {
        let loss = Intelligibility::new(16_000).unwrap();
        let xs = noise(5, &[1, 4000]);
        assert!(matches!(loss.loss(&xs, &xs), Err(Error::Config { .. })));
    }
}
