//! Changing the sample rate by a ratio of integers.
//!
//! A Kaiser-windowed sinc in polyphase form, one inner product per output sample. All windows of
//! one phase have the same distance, so they are overlapping rows of one matrix, and the phases
//! are the columns of the other: the kernels' product, whose every element is one chain of fused
//! multiply-adds. The result depends neither on the chunks nor on the threads nor on the CPU.

mod design;

use crate::error::{Error, Result};
use codec_core::{AudioBuffer, AudioSpec};
use codec_kernels::{PackedMatrix, Rows, Start, gemm};

/// Output samples per matrix: enough columns to fill vectors, few enough that the zeros around
/// each column's taps stay a small part of the matrix.
const BLOCK: usize = 32;

/// Bound on `max(up, down)`, which makes the filter table at most 80 MiB.
const MAX_TERM: u32 = 100_000;

/// Rows per product: bounds the scratch memory.
const MAX_ROWS: usize = 4096;

/// Changes the sample rate of a stream.
///
/// With `up / down` the reduced ratio of the rates and "Nyquist" half the lower of the two:
///
/// - passband: flat within 0.01 dB up to 0.90 Nyquist, -2.4 dB at 0.95, -6 dB at 0.962;
/// - stopband: below -110 dB from 1.03 Nyquist on;
/// - delay: none, output sample `n` lies exactly at the time of input sample `n * down / up`;
/// - length: exactly `ceil(n_samples * up / down)`; outside, the input counts as silence;
/// - look-ahead: 64 samples of the lower rate, plus up to one period of the ratio.
///
/// Equal rates give back the input's bits.
///
/// ```
/// use codec_core::AudioBuffer;
/// use codec_io::resample::Resampler;
/// let mut resampler = Resampler::new(44_100, 24_000, 1)?;
/// let mut out = resampler.push(&AudioBuffer::mono(44_100, vec![0.1; 44_100])?)?;
/// out.append(&resampler.finish()?)?;
/// assert_eq!(out.n_samples(), 24_000);
/// assert!((out.channel(0).unwrap()[12_000] - 0.1).abs() < 1e-6);
/// # Ok::<(), codec_io::Error>(())
/// ```
#[derive(Debug)]
pub struct Resampler {
    from: AudioSpec,
    to: AudioSpec,
    /// `None` when the rates are equal.
    filter: Option<Filter>,
    /// Per channel: the inputs that windows still need, from the start of the next row on.
    pending: Vec<Vec<f32>>,
    n_in: u64,
    n_out: u64,
    scratch: Vec<f32>,
}

/// One period of outputs, or several where the period is short, as matrices.
#[derive(Debug)]
struct Filter {
    up: u32,
    down: u32,
    /// Inputs to the left of an output's own time.
    left: usize,
    /// Inputs from one row to the next.
    pitch: usize,
    /// Outputs per row.
    n_row: usize,
    /// Inputs that one row needs.
    row_len: usize,
    blocks: Vec<Block>,
}

/// Consecutive outputs of a row.
#[derive(Debug)]
struct Block {
    /// Where its window starts in the row's inputs.
    start: usize,
    matrix: PackedMatrix,
}

impl Resampler {
    /// Prepares the filter.
    ///
    /// # Errors
    /// [`Error::Core`] when a rate or `channels` is zero, [`Error::Limit`] when a term of the
    /// reduced ratio exceeds 100 000. (All pairs of rates up to 100 kHz are within it.)
    pub fn new(from: u32, to: u32, channels: u16) -> Result<Self> {
        let from = AudioSpec { sample_rate: from, channels };
        let to = AudioSpec { sample_rate: to, channels };
        AudioBuffer::empty(from)?;
        AudioBuffer::empty(to)?;
        let filter = (from != to).then(|| Filter::new(from.sample_rate, to.sample_rate)).transpose()?;
        let left = filter.as_ref().map_or(0, |filter| filter.left);
        let pending = vec![vec![0.0; left]; usize::from(channels)];
        Ok(Self { from, to, filter, pending, n_in: 0, n_out: 0, scratch: Vec::new() })
    }

    /// Rate and channels of the output.
    pub fn spec(&self) -> AudioSpec {
        self.to
    }

    /// The exact length of the output for an input of `n_samples`.
    pub fn n_output_samples(&self, n_samples: u64) -> u64 {
        self.filter.as_ref().map_or(n_samples, |filter| filter.n_output_samples(n_samples))
    }

    /// Takes samples and gives those that are complete, which may be none.
    ///
    /// # Errors
    /// [`Error::Spec`] when rate or channels are not those of [`Resampler::new`].
    pub fn push(&mut self, audio: &AudioBuffer) -> Result<AudioBuffer> {
        if audio.spec() != self.from {
            return Err(Error::Spec { expected: self.from, actual: audio.spec() });
        }
        let Some(filter) = &self.filter else { return Ok(audio.clone()) };
        self.n_in += audio.n_samples() as u64;
        for (pending, channel) in self.pending.iter_mut().zip(audio.channels()) {
            pending.extend_from_slice(channel);
        }
        let n_rows = filter.n_rows(self.pending.first().map_or(0, Vec::len));
        let out = filter.run(&mut self.pending, n_rows, &mut self.scratch)?;
        let out = AudioBuffer::from_planar(self.to, out)?;
        self.n_out += out.n_samples() as u64;
        Ok(out)
    }

    /// Gives what is left, so that the length is exact.
    ///
    /// # Errors
    /// None in practice; the arithmetic checks its shapes.
    pub fn finish(mut self) -> Result<AudioBuffer> {
        let Some(filter) = &self.filter else { return Ok(AudioBuffer::empty(self.to)?) };
        let n_left = filter.n_output_samples(self.n_in).saturating_sub(self.n_out) as usize;
        let n_rows = n_left.div_ceil(filter.n_row);
        if let Some(n_more) = n_rows.checked_sub(1) {
            let len = n_more * filter.pitch + filter.row_len;
            self.pending.iter_mut().for_each(|pending| pending.resize(len.max(pending.len()), 0.0));
        }
        let out = filter.run(&mut self.pending, n_rows, &mut self.scratch)?;
        let mut out = AudioBuffer::from_planar(self.to, out)?;
        out.truncate(n_left);
        Ok(out)
    }
}

impl Filter {
    fn new(from: u32, to: u32) -> Result<Self> {
        let divisor = gcd(from, to);
        let (up, down) = (to / divisor, from / divisor);
        let (limit, actual) = (MAX_TERM.into(), up.max(down).into());
        if actual > limit {
            return Err(Error::Limit {
                what: "term of the reduced ratio of the sample rates",
                limit,
                actual,
            });
        }
        let reach = design::reach(up, down);
        let n_periods = BLOCK.div_ceil(up as usize);
        let n_row = up as usize * n_periods;
        let pitch = down as usize * n_periods;
        // The input sample at or before an output, counted from the row's first one.
        let centre = |output: usize| output * down as usize / up as usize;
        let mut blocks = Vec::new();
        for first in (0..n_row).step_by(BLOCK) {
            let outputs = first..n_row.min(first + BLOCK);
            let n = outputs.len();
            let start = centre(first);
            let k = centre(outputs.end - 1) - start + 2 * reach;
            let mut weights = vec![0.0; k * n];
            for (column, output) in outputs.enumerate() {
                let phase = (output as u64 * u64::from(down) % u64::from(up)) as u32;
                let offset = centre(output) - start;
                for (i, tap) in design::taps(up, down, phase).into_iter().enumerate() {
                    weights[(offset + i) * n + column] = tap as f32;
                }
            }
            blocks.push(Block { start, matrix: PackedMatrix::new(&weights, k, n)? });
        }
        let row_len = blocks.iter().map(|block| block.start + block.matrix.k()).max().unwrap_or(0);
        Ok(Self { up, down, left: reach - 1, pitch, n_row, row_len, blocks })
    }

    fn n_output_samples(&self, n_samples: u64) -> u64 {
        let exact = (u128::from(n_samples) * u128::from(self.up)).div_ceil(u128::from(self.down));
        u64::try_from(exact).unwrap_or(u64::MAX)
    }

    /// Rows whose windows are complete.
    fn n_rows(&self, n_pending: usize) -> usize {
        n_pending.checked_sub(self.row_len).map_or(0, |spare| spare / self.pitch + 1)
    }

    /// Computes rows and drops the inputs that no later row needs.
    fn run(&self, pending: &mut [Vec<f32>], n_rows: usize, scratch: &mut Vec<f32>) -> Result<Vec<Vec<f32>>> {
        let mut out = Vec::with_capacity(pending.len());
        for pending in pending {
            let mut channel = vec![0.0; n_rows * self.n_row];
            for (i, rows) in channel.chunks_mut(MAX_ROWS * self.n_row).enumerate() {
                self.rows(&pending[i * MAX_ROWS * self.pitch..], rows, scratch)?;
            }
            pending.drain(..n_rows * self.pitch);
            out.push(channel);
        }
        Ok(out)
    }

    fn rows(&self, xs: &[f32], out: &mut [f32], scratch: &mut Vec<f32>) -> Result<()> {
        let n_rows = out.len() / self.n_row;
        for (block_idx, block) in self.blocks.iter().enumerate() {
            let n = block.matrix.n();
            let window = Rows::new(&xs[block.start..], n_rows, block.matrix.k(), self.pitch)?;
            if n == self.n_row {
                gemm(window, &block.matrix, Start::Zero, out)?;
                continue;
            }
            scratch.resize(n_rows * n, 0.0);
            gemm(window, &block.matrix, Start::Zero, scratch)?;
            let at = block_idx * BLOCK;
            for (row, part) in out.chunks_exact_mut(self.n_row).zip(scratch.chunks_exact(n)) {
                row[at..at + n].copy_from_slice(part);
            }
        }
        Ok(())
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
