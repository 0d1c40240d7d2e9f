//! Products with a matrix of a few columns, such as the last convolution of a decoder, with lanes over rows.

use super::{Rows, Start};
use crate::memory::Memory;
use crate::simd::{Kernel, Simd};

/// Rows that are transposed at a time.
pub(super) const BLOCK_ROWS: usize = 64;

/// All `rows` times a matrix of at most `NARROW` columns, with lanes over rows.
pub(super) struct NarrowRows<'a> {
    pub(super) rows: Rows<'a>,
    /// `[n, k]`.
    pub(super) columns: &'a [f32],
    pub(super) n: usize,
    pub(super) start: Start<'a>,
    /// `[n_rows, n]`.
    pub(super) out: &'a mut [f32],
}

impl Kernel for NarrowRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { rows, columns, n, start, out } = self;
        let k = rows.row_len;
        // Rows overlap by whole pitches, so one transposed copy of the data serves all of them: element i of
        // row r is `transposed[i % pitch][r + i / pitch]`.
        let height = rows.pitch.min(k);
        let stride = (BLOCK_ROWS + k.saturating_sub(1) / rows.pitch).next_multiple_of(16);
        let mut memory = Memory::new(height * stride);
        let transposed = &mut memory.values_mut().unwrap_or_default()[..height * stride];
        for first in (0..rows.n_rows).step_by(BLOCK_ROWS) {
            let n_rows = (rows.n_rows - first).min(BLOCK_ROWS);
            let block = rows.slice(first..first + n_rows);
            transpose(&block, height, stride, transposed);
            for column in 0..n {
                let weights = &columns[column * k..(column + 1) * k];
                let out = &mut out[first * n..(first + n_rows) * n];
                let mut buffer = [0.0; BLOCK_ROWS];
                match start {
                    Start::Zero => {}
                    Start::Bias(bias) => buffer.fill(bias[column]),
                    Start::Accumulate => {
                        for (x, row) in buffer.iter_mut().zip(out.chunks_exact(n)) {
                            *x = row[column];
                        }
                    }
                }
                for (offset, part) in buffer.chunks_exact_mut(4 * S::LANES).enumerate() {
                    if offset * 4 * S::LANES >= n_rows {
                        break;
                    }
                    let mut acc = [s.splat(0.0); 4];
                    for (acc, part) in acc.iter_mut().zip(part.chunks_exact(S::LANES)) {
                        *acc = s.load(part);
                    }
                    for (lag, weights) in weights.chunks(rows.pitch).enumerate() {
                        for (&weight, line) in weights.iter().zip(transposed.chunks_exact(stride)) {
                            let line = &line[lag + offset * 4 * S::LANES..][..4 * S::LANES];
                            let weight = s.splat(weight);
                            for (acc, xs) in acc.iter_mut().zip(line.chunks_exact(S::LANES)) {
                                *acc = s.fma(s.load(xs), weight, *acc);
                            }
                        }
                    }
                    for (acc, part) in acc.into_iter().zip(part.chunks_exact_mut(S::LANES)) {
                        s.store(acc, part);
                    }
                }
                for (row, x) in out.chunks_exact_mut(n).zip(buffer) {
                    row[column] = x;
                }
            }
        }
    }
}

/// `out[c][t] = data[t * pitch + c]` for the data of `rows`; what lies past their end is left as it was.
#[inline(always)]
fn transpose(rows: &Rows<'_>, height: usize, stride: usize, out: &mut [f32]) {
    /// Side of the squares that go through registers.
    const SIDE: usize = 8;
    let data = &rows.data[..(rows.n_rows - 1) * rows.pitch + rows.row_len];
    let n_steps = data.len().div_ceil(rows.pitch).min(stride);
    // Steps of which all `height` elements exist.
    let n_whole = if data.len() < height { 0 } else { ((data.len() - height) / rows.pitch + 1).min(n_steps) };
    let (steps_end, height_end) = (n_whole - n_whole % SIDE, height - height % SIDE);
    for t in (0..steps_end).step_by(SIDE) {
        for c in (0..height_end).step_by(SIDE) {
            let mut square = [[0.0; SIDE]; SIDE];
            for i in 0..SIDE {
                let step = &data[(t + i) * rows.pitch + c..][..SIDE];
                for j in 0..SIDE {
                    square[j][i] = step[j];
                }
            }
            for (j, line) in square.into_iter().enumerate() {
                out[(c + j) * stride + t..][..SIDE].copy_from_slice(&line);
            }
        }
    }
    for t in 0..n_steps {
        let first = if t < steps_end { height_end } else { 0 };
        for c in first..height.min(data.len() - t * rows.pitch) {
            out[c * stride + t] = data[t * rows.pitch + c];
        }
    }
}
