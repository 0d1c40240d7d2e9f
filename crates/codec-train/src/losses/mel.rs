//! Mel bands.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// Triangles on Slaney's mel scale, each of area one over frequency.
///
/// # Source
/// Slaney 1998, "Auditory toolbox", technical report 1998-010; `librosa.filters.mel` with its defaults.
#[derive(Clone, Debug)]
pub struct MelBands {
    bands: Vec<Band>,
    n_bins: usize,
}

/// One triangle.
#[derive(Clone, Debug)]
pub(crate) struct Band {
    /// Bin of the first weight.
    pub(crate) first: usize,
    pub(crate) weights: Vec<f32>,
}

/// Bands as a matrix, `[n_bins, n_bands]`.
pub(crate) fn matrix(bands: &[&Band], n_bins: usize, device: &Device, dtype: DType) -> Result<Tensor> {
    let n_bands = bands.len();
    let mut matrix = vec![0.0_f32; n_bins * n_bands];
    for (band_idx, band) in bands.iter().enumerate() {
        for (i, &weight) in band.weights.iter().enumerate() {
            matrix[(band.first + i) * n_bands + band_idx] = weight;
        }
    }
    Ok(Tensor::from_vec(matrix, (n_bins, n_bands), device)?.to_dtype(dtype)?)
}

impl MelBands {
    /// `n_bands` bands from 0 to half of `sample_rate`, over the bins of a window.
    ///
    /// # Errors
    /// [`Error::Config`] without a band.
    pub fn new(sample_rate: u32, window_len: usize, n_bands: usize) -> Result<Self> {
        if n_bands == 0 || window_len < 2 {
            return Err(Error::config("loss.mel_bands", "must not be zero"));
        }
        let n_bins = window_len / 2 + 1;
        let top = mel(f64::from(sample_rate) / 2.0);
        let edge = |i: usize| hertz(top * i as f64 / (n_bands + 1) as f64);
        let frequency = |bin: usize| bin as f64 * f64::from(sample_rate) / window_len as f64;
        let band = |band_idx: usize| {
            let [low, centre, high] = [0, 1, 2].map(|i| edge(band_idx + i));
            let weight = |bin: usize| {
                let f = frequency(bin);
                let height = ((f - low) / (centre - low)).min((high - f) / (high - centre)).max(0.0);
                (height * 2.0 / (high - low)) as f32
            };
            let first = (0..n_bins).find(|&bin| weight(bin) > 0.0).unwrap_or(0);
            let weights = (first..n_bins).map(weight).take_while(|&weight| weight > 0.0).collect();
            Band { first, weights }
        };
        Ok(Self { bands: (0..n_bands).map(band).collect(), n_bins })
    }

    /// Number of bands.
    pub fn n_bands(&self) -> usize {
        self.bands.len()
    }

    pub(crate) fn bands(&self) -> &[Band] {
        &self.bands
    }

    /// `[n_bins, n_bands]`.
    pub(crate) fn matrix(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        matrix(&self.bands.iter().collect::<Vec<_>>(), self.n_bins, device, dtype)
    }
}

/// Linear to 1 kHz, logarithmic from there on.
fn mel(hertz: f64) -> f64 {
    if hertz < 1000.0 { hertz * 3.0 / 200.0 } else { 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4_f64.ln() }
}

fn hertz(mel: f64) -> f64 {
    if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4_f64.ln() / 27.0).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_and_its_inverse() {
        for f in [0.0, 440.0, 1000.0, 6400.0] {
            assert!((hertz(mel(f)) - f).abs() < 1e-9);
        }
        // Slaney's scale: 15 at 1 kHz, 42 at 6.4 kHz.
        assert!((mel(1000.0) - 15.0).abs() < 1e-12 && (mel(6400.0) - 42.0).abs() < 1e-12);
    }

    #[test]
    fn wide_bands_have_unit_area() {
        let bands = MelBands::new(16_000, 2048, 40).unwrap();
        let width = 16_000.0 / 2048.0;
        for band in &bands.bands()[5..] {
            let area = f64::from(band.weights.iter().sum::<f32>()) * width;
            assert!((area - 1.0).abs() < 0.05, "{area}");
        }
        let covered = bands.matrix(&Device::Cpu, DType::F32).unwrap().sum(1).unwrap();
        let covered: Vec<f32> = covered.to_vec1().unwrap();
        assert!(covered[2..1023].iter().all(|&sum| sum > 0.0));
    }
}
