//! Short-time spectra in f64.

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};
use std::sync::Arc;

/// A real Fourier transform with its buffers.
pub(crate) struct Fourier {
    plan: Arc<dyn RealToComplex<f64>>,
    input: Vec<f64>,
    output: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
}

impl Fourier {
    /// A transform of `n` samples, not zero.
    pub(crate) fn new(n: usize) -> Self {
        let plan = RealFftPlanner::new().plan_fft_forward(n);
        let (input, output, scratch) =
            (plan.make_input_vec(), plan.make_output_vec(), plan.make_scratch_vec());
        Self { plan, input, output, scratch }
    }

    /// The `n / 2 + 1` bins of a frame; zeros follow a frame that is shorter than `n`.
    pub(crate) fn spectrum(&mut self, frame: impl Iterator<Item = f64>) -> &[Complex<f64>] {
        self.input.fill(0.0);
        for (input, x) in self.input.iter_mut().zip(frame) {
            *input = x;
        }
        // Fails for buffers of other sizes only.
        let outcome = self.plan.process_with_scratch(&mut self.input, &mut self.output, &mut self.scratch);
        debug_assert!(outcome.is_ok());
        &self.output
    }
}

/// Frames around the multiples of `hop`, the signal mirrored at its ends, under a periodic Hann window.
///
/// # Source
/// `torch.stft(center=True, pad_mode="reflect", window=hann_window(window_length))`.
pub(crate) struct Stft {
    window: Vec<f64>,
    hop: usize,
    fourier: Fourier,
}

impl Stft {
    /// Frames of `window_length` samples, even, with a new one every `hop` samples, not zero.
    pub(crate) fn new(window_length: usize, hop: usize) -> Self {
        let phase = |i: usize| std::f64::consts::TAU * i as f64 / window_length as f64;
        let window = (0..window_length).map(|i| 0.5 - 0.5 * phase(i).cos()).collect();
        Self { window, hop, fourier: Fourier::new(window_length) }
    }

    /// Fewest samples that can be mirrored.
    pub(crate) fn min_samples(window_length: usize) -> usize {
        window_length / 2 + 1
    }

    pub(crate) fn n_frames(&self, n_samples: usize) -> usize {
        n_samples / self.hop + 1
    }

    pub(crate) fn n_bins(&self) -> usize {
        self.window.len() / 2 + 1
    }

    /// Writes the magnitudes of one frame of a signal with at least `min_samples`.
    pub(crate) fn magnitudes(&mut self, samples: &[f32], frame_idx: usize, out: &mut Vec<f64>) {
        let (half, last) = (self.window.len() / 2, samples.len() - 1);
        let centre = frame_idx * self.hop;
        let mirrored = |i: usize| {
            let i = (centre + i).abs_diff(half);
            f64::from(samples[if i > last { 2 * last - i } else { i }])
        };
        let frame = self.window.iter().enumerate().map(|(i, w)| w * mirrored(i));
        out.clear();
        out.extend(self.fourier.spectrum(frame).iter().map(|bin| bin.norm()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    #[test]
    fn frames_are_mirrored_at_both_ends() {
        let (window_length, hop, n_samples) = (16, 4, 11);
        let samples: Vec<f32> = (0..n_samples).map(|i| ((i * i) % 7) as f32 - 3.0).collect();
        let mut stft = Stft::new(window_length, hop);
        assert_eq!((stft.n_frames(n_samples), stft.n_bins()), (3, 9));
        let mut magnitudes = Vec::new();
        for frame_idx in 0..3 {
            stft.magnitudes(&samples, frame_idx, &mut magnitudes);
            for (bin, magnitude) in magnitudes.iter().enumerate() {
                let (mut re, mut im) = (0.0, 0.0);
                for i in 0..window_length {
                    let at = (frame_idx * hop + i) as isize - 8;
                    let at = if at < 0 {
                        -at
                    } else if at > 10 {
                        20 - at
                    } else {
                        at
                    };
                    let angle = TAU * (bin * i) as f64 / 16.0;
                    let x = f64::from(samples[at as usize]) * (0.5 - 0.5 * (TAU * i as f64 / 16.0).cos());
                    re += x * angle.cos();
                    im -= x * angle.sin();
                }
                assert!((magnitude - re.hypot(im)).abs() < 1e-12, "frame {frame_idx} bin {bin}");
            }
        }
    }
}
