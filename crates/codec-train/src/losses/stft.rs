//! The short-time Fourier transform with a gradient.
//!
//! On the CPU by fast transforms, elsewhere as a product with the matrix of the discrete transform; both
//! are tested against each other.

use crate::error::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};
use rayon::prelude::*;
use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use std::f64::consts::TAU;
use std::ops::Range;
use std::sync::Arc;

/// Frames of one task; fixed, so that sums do not depend on the number of threads.
const TASK_FRAMES: usize = 128;

/// A transform of frames around every `hop`-th sample, mirrored at both ends, under a periodic Hann window.
#[derive(Clone)]
pub struct Stft {
    window_len: usize,
    hop: usize,
    window: Arc<Vec<f32>>,
    forward: Arc<dyn RealToComplex<f32>>,
    backward: Arc<dyn ComplexToReal<f32>>,
}

impl std::fmt::Debug for Stft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stft").field("window_len", &self.window_len).field("hop", &self.hop).finish()
    }
}

impl Stft {
    /// Frames of `window_len` samples, `hop` apart; spectra are multiplied by `gain`.
    ///
    /// # Errors
    /// [`Error::Config`] unless `hop` divides `window_len` and the window is even.
    pub fn new(window_len: usize, hop: usize, gain: f32) -> Result<Self> {
        if hop == 0 || window_len < 2 || !window_len.is_multiple_of(2) || !window_len.is_multiple_of(hop) {
            return Err(Error::config("loss.windows", "must be even multiples of their hops"));
        }
        let mut planner = RealFftPlanner::new();
        let hann = |i: usize| 0.5 - 0.5 * (TAU * i as f64 / window_len as f64).cos();
        Ok(Self {
            window_len,
            hop,
            window: Arc::new((0..window_len).map(|i| gain * hann(i) as f32).collect()),
            forward: planner.plan_fft_forward(window_len),
            backward: planner.plan_fft_inverse(window_len),
        })
    }

    /// The gain that makes white noise keep its level: 1 over the norm of the window.
    pub fn unit_gain(window_len: usize) -> f32 {
        // The squares of a periodic Hann window sum to 3/8 of its length.
        (1.0 / (0.375 * window_len as f64).sqrt()) as f32
    }

    /// Samples of a frame.
    pub fn window_len(&self) -> usize {
        self.window_len
    }

    /// Frequencies from zero to half the sample rate, both counted.
    pub fn n_bins(&self) -> usize {
        self.window_len / 2 + 1
    }

    /// Frames of `n_samples` samples.
    pub fn n_frames(&self, n_samples: usize) -> usize {
        n_samples / self.hop + 1
    }

    /// The spectra of some signals, with a gradient.
    ///
    /// # Shapes
    /// `xs` `[n_signals, n_samples]`, result `[n_signals, n_frames, n_bins, 2]`, real and imaginary part.
    ///
    /// # Errors
    /// [`Error::Config`] for signals no longer than half a window, which cannot be mirrored.
    pub fn transform(&self, xs: &Tensor) -> Result<Tensor> {
        self.check(xs.dim(1)?)?;
        if !xs.device().is_cpu() {
            return self.plain(xs);
        }
        Ok(xs.contiguous()?.apply_op1(Transform(self.clone()))?)
    }

    /// The same mathematics in candle operations, for any device and type.
    pub(crate) fn plain(&self, xs: &Tensor) -> Result<Tensor> {
        let (n_signals, n_samples) = xs.dims2()?;
        self.check(n_samples)?;
        let (n_frames, n_bins, device) = (self.n_frames(n_samples), self.n_bins(), xs.device());
        let half = self.window_len as i64 / 2;
        let padded = (-half..n_samples as i64 + half).map(|at| mirror(at, n_samples) as u32);
        let padded = xs.index_select(&Tensor::from_iter(padded, device)?, 1)?;
        let n_shifts = self.window_len / self.hop;
        let blocks = padded.narrow(1, 0, (n_frames + n_shifts - 1) * self.hop)?;
        let blocks = blocks.reshape((n_signals, n_frames + n_shifts - 1, self.hop))?;
        let shifted = (0..n_shifts).map(|shift| blocks.narrow(1, shift, n_frames));
        let frames = Tensor::cat(&shifted.collect::<candle_core::Result<Vec<_>>>()?, 2)?;
        let mut matrix = Vec::with_capacity(self.window_len * n_bins * 2);
        for (i, &w) in self.window.iter().enumerate() {
            for k in 0..n_bins {
                let angle = TAU * (i * k % self.window_len) as f64 / self.window_len as f64;
                matrix.extend([f64::from(w) * angle.cos(), -f64::from(w) * angle.sin()]);
            }
        }
        let matrix = Tensor::from_vec(matrix, (self.window_len, n_bins * 2), device)?;
        let spectra = frames.contiguous()?.broadcast_matmul(&matrix.to_dtype(xs.dtype())?)?;
        Ok(spectra.reshape((n_signals, n_frames, n_bins, 2))?)
    }

    fn check(&self, n_samples: usize) -> Result<()> {
        if n_samples <= self.window_len / 2 {
            let why = format!("a window of {} needs longer crops than {n_samples}", self.window_len);
            return Err(Error::config("loss.windows", why));
        }
        Ok(())
    }

    /// Scratch memory for [`Stft::frame`] and [`Stft::add_frame`].
    pub(crate) fn scratch(&self) -> Scratch {
        Scratch {
            samples: vec![0.0; self.window_len],
            work: vec![Complex32::default(); self.window_len],
            spectrum: vec![Complex32::default(); self.n_bins()],
        }
    }

    /// The spectrum of frame `frame_idx` of a signal.
    pub(crate) fn frame(&self, xs: &[f32], frame_idx: usize, scratch: &mut Scratch, out: &mut [Complex32]) {
        let start = (frame_idx * self.hop) as i64 - self.window_len as i64 / 2;
        for (i, (x, &w)) in scratch.samples.iter_mut().zip(self.window.iter()).enumerate() {
            *x = w * xs[mirror(start + i as i64, xs.len())];
        }
        // The lengths are those of the plan.
        let _ = self.forward.process_with_scratch(&mut scratch.samples, out, &mut scratch.work);
    }

    /// Adds what the gradient of a frame's spectrum means for the samples to `out`, whose first sample is
    /// `first` of the mirrored signal.
    pub(crate) fn add_frame(
        &self,
        grads: &[Complex32],
        frame_idx: usize,
        first: i64,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        // The inverse transform counts the inner bins twice.
        scratch.spectrum.copy_from_slice(grads);
        let last = scratch.spectrum.len() - 1;
        scratch.spectrum[1..last].iter_mut().for_each(|x| *x *= 0.5);
        scratch.spectrum[0].im = 0.0;
        scratch.spectrum[last].im = 0.0;
        let (spectrum, samples) = (&mut scratch.spectrum, &mut scratch.samples);
        let _ = self.backward.process_with_scratch(spectrum, samples, &mut scratch.work);
        let start = ((frame_idx * self.hop) as i64 - self.window_len as i64 / 2 - first) as usize;
        let sums = out[start..start + self.window_len].iter_mut();
        for ((sum, x), w) in sums.zip(samples.iter()).zip(self.window.iter()) {
            *sum += w * x;
        }
    }

    /// Runs `work` on the frames of all signals in parallel tasks; each gives a value and adds gradients
    /// to a stretch of its signal. Gives the sum of the values and the gradient, in fixed orders.
    ///
    /// # Shapes
    /// The gradient: `[n_signals, n_samples]`.
    pub(crate) fn over_frames(
        &self,
        n_signals: usize,
        n_samples: usize,
        work: impl Fn(usize, Range<usize>, &mut Stretch<'_>) -> f64 + Sync,
    ) -> (f64, Vec<f32>) {
        let n_frames = self.n_frames(n_samples);
        let n_tasks = n_frames.div_ceil(TASK_FRAMES);
        let results: Vec<(f64, i64, Vec<f32>)> = (0..n_signals * n_tasks)
            .into_par_iter()
            .map(|task_idx| {
                let first_frame = task_idx % n_tasks * TASK_FRAMES;
                let frames = first_frame..n_frames.min(first_frame + TASK_FRAMES);
                let first = (frames.start * self.hop) as i64 - self.window_len as i64 / 2;
                let mut sums = vec![0.0; (frames.len() - 1) * self.hop + self.window_len];
                let mut stretch = Stretch { stft: self, first, sums: &mut sums, scratch: self.scratch() };
                let value = work(task_idx / n_tasks, frames, &mut stretch);
                (value, first, sums)
            })
            .collect();
        let mut grads = vec![0.0; n_signals * n_samples];
        let mut total = 0.0;
        for (task_idx, (value, first, sums)) in results.into_iter().enumerate() {
            total += value;
            let signal = &mut grads[task_idx / n_tasks * n_samples..][..n_samples];
            for (i, sum) in sums.into_iter().enumerate() {
                signal[mirror(first + i as i64, n_samples)] += sum;
            }
        }
        (total, grads)
    }
}

/// Where one task of [`Stft::over_frames`] puts its gradients.
pub(crate) struct Stretch<'a> {
    stft: &'a Stft,
    first: i64,
    sums: &'a mut [f32],
    pub(crate) scratch: Scratch,
}

impl Stretch<'_> {
    pub(crate) fn add(&mut self, frame_idx: usize, grads: &[Complex32]) {
        self.stft.add_frame(grads, frame_idx, self.first, &mut self.scratch, self.sums);
    }
}

/// Memory of one thread.
pub(crate) struct Scratch {
    samples: Vec<f32>,
    work: Vec<Complex32>,
    spectrum: Vec<Complex32>,
}

/// The sample that stands at `at` when a signal of `n` is mirrored about its ends.
fn mirror(at: i64, n: usize) -> usize {
    let last = n as i64 - 1;
    let at = if at < 0 { -at } else { at };
    (if at > last { 2 * last - at } else { at }) as usize
}

struct Transform(Stft);

impl CustomOp1 for Transform {
    fn name(&self) -> &'static str {
        "codec-stft"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let xs = flat(storage, layout)?;
        let (n_signals, n_samples) = layout.shape().dims2()?;
        let (n_frames, n_bins) = (self.0.n_frames(n_samples), self.0.n_bins());
        let mut out = vec![0.0; n_signals * n_frames * n_bins * 2];
        out.par_chunks_mut(n_frames * n_bins * 2).enumerate().for_each(|(signal_idx, out)| {
            let xs = &xs[signal_idx * n_samples..][..n_samples];
            let mut scratch = self.0.scratch();
            let mut spectrum = vec![Complex32::default(); n_bins];
            for (frame_idx, out) in out.chunks_exact_mut(n_bins * 2).enumerate() {
                self.0.frame(xs, frame_idx, &mut scratch, &mut spectrum);
                for (pair, x) in out.chunks_exact_mut(2).zip(&spectrum) {
                    pair.copy_from_slice(&[x.re, x.im]);
                }
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((n_signals, n_frames, n_bins, 2))))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (n_signals, n_samples) = xs.dims2()?;
        let op = Adjoint { stft: self.0.clone(), n_signals, n_samples };
        Ok(Some(grad.detach().contiguous()?.apply_op1_no_bwd(&op)?))
    }
}

struct Adjoint {
    stft: Stft,
    n_signals: usize,
    n_samples: usize,
}

impl CustomOp1 for Adjoint {
    fn name(&self) -> &'static str {
        "codec-stft-adjoint"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let grads = flat(storage, layout)?;
        let (n_frames, n_bins) = (self.stft.n_frames(self.n_samples), self.stft.n_bins());
        let (_, out) =
            self.stft.over_frames(self.n_signals, self.n_samples, |signal_idx, frames, stretch| {
                let mut spectrum = vec![Complex32::default(); n_bins];
                for frame_idx in frames {
                    let grads = &grads[(signal_idx * n_frames + frame_idx) * n_bins * 2..][..n_bins * 2];
                    for (x, pair) in spectrum.iter_mut().zip(grads.chunks_exact(2)) {
                        *x = Complex32::new(pair[0], pair[1]);
                    }
                    stretch.add(frame_idx, &spectrum);
                }
                0.0
            });
        Ok((CpuStorage::F32(out), Shape::from((self.n_signals, self.n_samples))))
    }
}

/// The values of a contiguous `f32` tensor.
pub(crate) fn flat<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (start, end) =
        layout.contiguous_offsets().ok_or(candle_core::Error::RequiresContiguous { op: "codec-train" })?;
    match storage {
        CpuStorage::F32(values) => Ok(&values[start..end]),
        _ => Err(candle_core::Error::UnsupportedDTypeForOp(DType::F64, "codec-train").bt()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, check_gradient, noise, values};
    use super::*;

    #[test]
    fn both_paths_agree_and_have_one_gradient() {
        for (window_len, hop, n_samples) in [(8, 2, 30), (32, 8, 100), (16, 16, 45)] {
            let stft = Stft::new(window_len, hop, 0.7).unwrap();
            let xs = noise(3, &[2, n_samples]);
            let got = stft.transform(&xs).unwrap();
            let want = stft.plain(&xs).unwrap();
            assert_eq!(got.dims(), [2, stft.n_frames(n_samples), stft.n_bins(), 2]);
            assert_close("spectra", &values(&got), &values(&want), 1e-5);
            let mask = noise(4, got.dims());
            check_gradient(
                &xs,
                |xs| Ok((stft.transform(xs)? * &mask)?.sum_all()?),
                |xs| Ok((stft.plain(xs)? * mask.to_dtype(DType::F64)?)?.sum_all()?),
            );
        }
    }

    #[test]
    fn unit_gain_keeps_the_level_of_noise() {
        let stft = Stft::new(256, 64, Stft::unit_gain(256)).unwrap();
        let xs = noise(5, &[1, 20_000]);
        let level = |xs: &Tensor| {
            let values = values(xs);
            values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64
        };
        // Two parts share the power of a bin.
        assert!((2.0 * level(&stft.transform(&xs).unwrap()) / level(&xs) - 1.0).abs() < 0.05);
    }

    #[test]
    fn short_signals_and_odd_windows_are_refused() {
        assert!(Stft::new(9, 3, 1.0).is_err());
        assert!(Stft::new(16, 5, 1.0).is_err());
        assert!(Stft::new(16, 4, 1.0).unwrap().transform(&noise(1, &[1, 8])).is_err());
    }
}
