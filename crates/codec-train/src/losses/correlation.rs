//! The correlation of envelopes and its gradient in one pass over the segments of each signal, on the CPU.

use super::intelligibility::{CLIP, POWER_FLOOR, QUIET, SEGMENT};
use super::mel::Band;
use super::stft::flat;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Bands side by side, so that sums over time need no order among lanes; at most as many as there may be bands.
const LANES: usize = 16;

/// One number for each band.
type Lanes = [f32; LANES];

/// One minus the mean correlation, as an operation on spectra; the gradient waits for the way back.
pub(super) struct Correlation {
    bands: Vec<Band>,
    /// Spectra, `[n_signals, n_frames, n_bins, 2]`.
    target: Vec<f32>,
    grads: Mutex<Vec<f32>>,
}

/// What a signal adds to the loss.
struct Share {
    /// Sum of the correlations of the bands of all segments that count.
    sum: f64,
    /// Segments that count.
    n_segments: usize,
    /// Of the sum for the spectra.
    grads: Vec<f32>,
}

impl Correlation {
    /// Compares with the spectra `target`; there are at most [`LANES`] bands.
    pub(super) fn new(bands: &[Band], target: Vec<f32>) -> Self {
        debug_assert!(bands.len() <= LANES);
        Self { bands: bands.to_vec(), target, grads: Mutex::default() }
    }

    /// `xs`, `ys`: `[n_frames, n_bins, 2]`.
    fn of_signal(&self, xs: &[f32], ys: &[f32], n_bins: usize) -> Share {
        let (own, target) = (self.envelopes(xs, n_bins), self.envelopes(ys, n_bins));
        let n_bands = self.bands.len();
        let energy = |frames: &[Lanes]| -> f64 {
            let squares = frames.iter().flat_map(|frame| &frame[..n_bands]);
            squares.map(|y| f64::from(*y) * f64::from(*y)).sum()
        };
        let energies: Vec<f64> = target.windows(SEGMENT).map(energy).collect();
        let loudest = energies.iter().copied().fold(0.0, f64::max);
        let mut slopes = vec![[0.0; LANES]; own.len()];
        let (mut sum, mut n_segments) = (0.0, 0);
        for (first, _) in energies.iter().enumerate().filter(|(_, energy)| **energy > loudest * QUIET) {
            let frames = first..first + SEGMENT;
            let correlations = segment(&own[frames.clone()], &target[frames.clone()], &mut slopes[frames]);
            sum += correlations[..n_bands].iter().map(|x| f64::from(*x)).sum::<f64>();
            n_segments += 1;
        }
        // An envelope is the root of a power, whose slope is twice the spectrum.
        let mut grads = vec![0.0; xs.len()];
        let frames = grads.chunks_exact_mut(2 * n_bins).zip(xs.chunks_exact(2 * n_bins));
        for ((grads, xs), (slopes, own)) in frames.zip(slopes.iter().zip(&own)) {
            for ((band, slope), envelope) in self.bands.iter().zip(slopes).zip(own) {
                let bins = 2 * band.first..2 * (band.first + band.weights.len());
                let parts = grads[bins.clone()].iter_mut().zip(&xs[bins]).enumerate();
                parts.for_each(|(i, (grad, x))| *grad += band.weights[i / 2] * slope / envelope * x);
            }
        }
        Share { sum, n_segments, grads }
    }

    /// The root of each band's power in each frame.
    fn envelopes(&self, spectra: &[f32], n_bins: usize) -> Vec<Lanes> {
        let of_frame = |frame: &[f32]| {
            let mut envelopes = [(POWER_FLOOR as f32).sqrt(); LANES];
            for (band, envelope) in self.bands.iter().zip(&mut envelopes) {
                let bins = frame[2 * band.first..].chunks_exact(2).zip(&band.weights);
                let power: f32 = bins.map(|(x, weight)| weight * (x[0] * x[0] + x[1] * x[1])).sum();
                *envelope = (power + POWER_FLOOR as f32).sqrt();
            }
            envelopes
        };
        spectra.chunks_exact(2 * n_bins).map(of_frame).collect()
    }
}

/// The correlations of one segment's bands; their slopes for `xs` are added to `slopes`.
fn segment(xs: &[Lanes], ys: &[Lanes], slopes: &mut [Lanes]) -> Lanes {
    const FLOOR: Lanes = [POWER_FLOOR as f32; LANES];
    let (mut px, mut py) = (FLOOR, FLOOR);
    for (x, y) in xs.iter().zip(ys) {
        for b in 0..LANES {
            px[b] += x[b] * x[b];
            py[b] += y[b] * y[b];
        }
    }
    // As loud as the target, and clipped where it is far above.
    let mut level = [0.0; LANES];
    (0..LANES).for_each(|b| level[b] = (py[b] / px[b]).sqrt());
    let mut zs = [[0.0; LANES]; SEGMENT];
    let (mut mean_z, mut mean_y) = ([0.0; LANES], [0.0; LANES]);
    for ((z, x), y) in zs.iter_mut().zip(xs).zip(ys) {
        for b in 0..LANES {
            z[b] = (level[b] * x[b]).min(CLIP as f32 * y[b]);
            mean_z[b] += z[b] / SEGMENT as f32;
            mean_y[b] += y[b] / SEGMENT as f32;
        }
    }
    let (mut both, mut pz, mut py) = ([0.0; LANES], FLOOR, FLOOR);
    for (z, y) in zs.iter().zip(ys) {
        for b in 0..LANES {
            let (dz, dy) = (z[b] - mean_z[b], y[b] - mean_y[b]);
            both[b] += dz * dy;
            pz[b] += dz * dz;
            py[b] += dy * dy;
        }
    }
    let (mut norm, mut correlation) = ([0.0; LANES], [0.0; LANES]);
    for b in 0..LANES {
        norm[b] = 1.0 / (pz[b] * py[b]).sqrt();
        correlation[b] = both[b] * norm[b];
    }
    // The slope for z, whose mean over the segment is zero, and from it that for the level.
    let mut of_level = [0.0; LANES];
    for ((z, x), y) in zs.iter_mut().zip(xs).zip(ys) {
        for b in 0..LANES {
            let (dz, dy) = (z[b] - mean_z[b], y[b] - mean_y[b]);
            let passes = level[b] * x[b] <= CLIP as f32 * y[b];
            z[b] = if passes { dy * norm[b] - correlation[b] * dz / pz[b] } else { 0.0 };
            of_level[b] += z[b] * x[b];
        }
    }
    for ((slope, z), x) in slopes.iter_mut().zip(&zs).zip(xs) {
        for b in 0..LANES {
            slope[b] += level[b] * (z[b] - of_level[b] * x[b] / px[b]);
        }
    }
    correlation
}

impl CustomOp1 for Correlation {
    fn name(&self) -> &'static str {
        "codec-envelope-correlation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, n_frames, n_bins, _) = layout.shape().dims4()?;
        let len = (n_frames * n_bins * 2).max(1);
        let signals = flat(storage, layout)?.par_chunks_exact(len).zip(self.target.par_chunks_exact(len));
        let shares: Vec<Share> = signals.map(|(xs, ys)| self.of_signal(xs, ys, n_bins)).collect();
        let n_segments: usize = shares.iter().map(|share| share.n_segments).sum();
        let n_values = (n_segments * self.bands.len()) as f64;
        let value = 1.0 - shares.iter().map(|share| share.sum).sum::<f64>() / n_values;
        let scale = (-1.0 / n_values) as f32;
        let grads = shares.into_iter().flat_map(|share| share.grads).map(|grad| grad * scale).collect();
        *self.grads.lock().unwrap_or_else(PoisonError::into_inner) = grads;
        Ok((CpuStorage::F32(vec![value as f32]), Shape::from(())))
    }

    fn bwd(&self, spectra: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let grads = self.grads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let grads = Tensor::from_vec(grads, spectra.shape(), spectra.device())?;
        Ok(Some(grads.broadcast_mul(&grad.detach())?))
    }
}
