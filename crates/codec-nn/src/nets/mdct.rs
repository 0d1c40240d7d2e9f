//! The modified discrete cosine transform as a convolution: frames of twice the hop, windowed, that overlap by
//! half.
//!
//! Analysis gives as many values per hop as there are samples, and synthesis gives the samples back: what one
//! frame folds over, its neighbour folds over with the other sign.
//!
//! # Source
//! Princen, Johnson and Bradley 1987, "Subband/transform coding using filter bank designs based on time domain
//! aliasing cancellation"; the sine window: Malvar 1990, "Lapped transforms for efficient transform/subband
//! coding".

use crate::error::Result;
use crate::layers::{Conv1d, ConvSpec, ConvTranspose1d, Padding};
use candle_core::{Device, Tensor};
use codec_kernels::sin_cos;
use std::sync::{Arc, Mutex, PoisonError};

/// `[batch, n_samples, 1]` to `[batch, n_frames, 2 * hop_length]`: the cosine transform of each frame, and then
/// the sine transform, which together tell magnitude from phase.
///
/// Frame `t` sees the samples from `t * hop_length` on, so it waits for one hop beyond its own.
pub(crate) fn analysis(hop_length: usize, device: &Device) -> Result<Conv1d> {
    let bases = bases(hop_length);
    let weight = Tensor::from_slice(&bases, (2 * hop_length, 1, 2 * hop_length), device)?;
    let padding = Padding { right: hop_length, align: true, ..Padding::default() };
    Conv1d::new(&weight, None, ConvSpec { stride: hop_length, padding, ..ConvSpec::default() })
}

/// `[batch, n_frames, hop_length]`, cosine transforms, to `[batch, n_frames * hop_length, 1]`.
///
/// The samples of the first hop lack a frame before them: they come windowed and folded.
pub(crate) fn synthesis(hop_length: usize, device: &Device) -> Result<ConvTranspose1d> {
    let bases = bases(hop_length);
    let cosines = &bases[..2 * hop_length * hop_length];
    let weight = Tensor::from_slice(cosines, (hop_length, 1, 2 * hop_length), device)?;
    ConvTranspose1d::new(&weight, None, hop_length, 0, hop_length)
}

/// The orthonormal basis of cosines and, after it, that of sines, each `[hop_length, 2 * hop_length]`.
///
/// The last ones are kept: training builds its networks anew for every step.
fn bases(hop_length: usize) -> Arc<[f32]> {
    static LAST: Mutex<Option<(usize, Arc<[f32]>)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match last.as_ref() {
        Some((known, bases)) if *known == hop_length => Arc::clone(bases),
        _ => {
            let (cosines, sines) = compute_bases(hop_length);
            let bases: Arc<[f32]> = [cosines, sines].concat().into();
            *last = Some((hop_length, Arc::clone(&bases)));
            bases
        }
    }
}

fn compute_bases(hop_length: usize) -> (Vec<f32>, Vec<f32>) {
    let n_parts = 8 * hop_length;
    let angle = |part: usize| std::f64::consts::TAU * (part as f64 / n_parts as f64);
    let turn: Vec<(f32, f32)> = (0..n_parts).map(|part| sin_cos(angle(part))).collect();
    let gain = (2.0 / hop_length as f64).sqrt();
    let window: Vec<f64> = (0..2 * hop_length).map(|n| gain * f64::from(turn[2 * n + 1].0)).collect();
    let value = |k: usize, n: usize| turn[(2 * n + 1 + hop_length) * (2 * k + 1) % n_parts];
    let all = (0..hop_length).flat_map(|k| (0..2 * hop_length).map(move |n| (k, n)));
    all.map(|(k, n)| {
        let (sine, cosine) = value(k, n);
        ((window[n] * f64::from(cosine)) as f32, (window[n] * f64::from(sine)) as f32)
    })
    .unzip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Layer;
    use crate::ops::testing::{Rng, assert_close, values};

    #[test]
    fn synthesis_undoes_analysis_from_the_second_hop_on() {
        let mut rng = Rng::new(1);
        for (hop_length, n_frames) in [(4, 5), (20, 3), (320, 4)] {
            let xs = rng.tensor(&[2, hop_length * n_frames, 1]);
            let spectra = analysis(hop_length, &Device::Cpu).unwrap().forward(&xs).unwrap().unwrap();
            assert_eq!(spectra.dims(), [2, n_frames, 2 * hop_length]);
            let cosines = spectra.narrow(2, 0, hop_length).unwrap();
            let ys = synthesis(hop_length, &Device::Cpu).unwrap().forward(&cosines).unwrap().unwrap();
            assert_eq!(ys.dims(), xs.dims());
            let inside =
                |xs: &Tensor| values(&xs.narrow(1, hop_length, hop_length * (n_frames - 1)).unwrap());
            assert_close("audio", &inside(&ys), &inside(&xs), 1e-5);
        }
    }

    #[test]
    fn analysis_is_its_formula() {
        let hop_length = 6;
        let xs = Rng::new(2).tensor(&[1, 2 * hop_length, 1]);
        let got = analysis(hop_length, &Device::Cpu).unwrap().forward(&xs).unwrap().unwrap();
        let (x, h) = (values(&xs), hop_length as f64);
        let coefficient = |k: usize, wave: fn(f64) -> f64| -> f64 {
            let term = |n: usize| {
                let window = (std::f64::consts::PI / (2.0 * h) * (n as f64 + 0.5)).sin();
                let angle = std::f64::consts::PI / h * (n as f64 + 0.5 + h / 2.0) * (k as f64 + 0.5);
                (2.0 / h).sqrt() * window * x[n] * wave(angle)
            };
            (0..2 * hop_length).map(term).sum()
        };
        let cosines = (0..hop_length).map(|k| coefficient(k, f64::cos));
        let want: Vec<f64> = cosines.chain((0..hop_length).map(|k| coefficient(k, f64::sin))).collect();
        assert_close("spectrum", &values(&got.narrow(1, 0, 1).unwrap()), &want, 1e-5);
    }
}
