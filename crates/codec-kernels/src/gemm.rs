//! Matrix products over overlapping rows.
//!
//! A convolution over time-major data is such a product: the window of `kernel` steps of `channels` floats is
//! one contiguous row, and the next window starts `stride * channels` further on. Every output element is one
//! chain of fused multiply-adds with k ascending, started from zero, the bias or what `out` holds. The chain is
//! never split, so tile sizes, vector widths and threads cannot change a bit.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::{Error, Result, expect_len, product};
use crate::pool;
use crate::simd::{Kernel, Simd, dispatch, level};

/// Columns of a panel: two AVX-512 vectors.
const PANEL: usize = 32;
/// Columns of the last panel where no more are left.
const HALF_PANEL: usize = 16;
/// Up to this many columns, lanes run over rows instead of over columns.
const NARROW: usize = 4;
/// Multiply-adds below which a second thread costs more than it brings.
const GRAIN: usize = 1 << 18;
/// Rows whose left operands stay in the cache while all panels pass.
const BLOCK_ROWS: usize = 96;
/// Part of k that passes at a time, so that a panel's part stays in the cache for all rows of a block.
const BLOCK_DEPTH: usize = 512;
/// Rows that the narrow kernel transposes at a time.
const NARROW_ROWS: usize = 64;

/// A right matrix `[k, n]`, packed once for the order in which the kernels read it.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    k: usize,
    n: usize,
    /// Narrow: `[n, k]`. Otherwise panels `[k, width]`, all `PANEL` wide but the last, which may be
    /// `HALF_PANEL` wide; columns past `n` are zero.
    data: Vec<f32>,
}

impl PackedMatrix {
    /// Packs a row-major matrix.
    ///
    /// # Shapes
    /// `weights`: `[k, n]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where `weights` does not hold `k * n` floats.
    pub fn new(weights: &[f32], k: usize, n: usize) -> Result<Self> {
        expect_len("weights", product("k * n", k, n)?, weights.len())?;
        Ok(Self::pack(k, n, |row, column| weights[row * n + column]))
    }

    /// Packs the transpose of a row-major matrix, the layout of a linear layer's weights.
    ///
    /// # Shapes
    /// `weights`: `[n, k]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where `weights` does not hold `k * n` floats.
    pub fn from_transposed(weights: &[f32], k: usize, n: usize) -> Result<Self> {
        expect_len("weights", product("k * n", k, n)?, weights.len())?;
        Ok(Self::pack(k, n, |row, column| weights[column * k + row]))
    }

    /// Rows: the length of the chains.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns: the length of an output row.
    pub fn n(&self) -> usize {
        self.n
    }

    fn pack(k: usize, n: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        let mut data = Vec::with_capacity(k * n.next_multiple_of(HALF_PANEL));
        if n <= NARROW {
            for column in 0..n {
                data.extend((0..k).map(|row| at(row, column)));
            }
        } else {
            for first in (0..n).step_by(PANEL) {
                let columns = first..first + panel_width(n - first);
                for row in 0..k {
                    data.extend(columns.clone().map(|c| if c < n { at(row, c) } else { 0.0 }));
                }
            }
        }
        Self { k, n, data }
    }

    fn n_panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }
}

fn panel_width(columns_left: usize) -> usize {
    if columns_left <= HALF_PANEL { HALF_PANEL } else { PANEL }
}

/// A left matrix: rows at a regular pitch in one slice, which may overlap.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: &'a [f32],
    n_rows: usize,
    row_len: usize,
    pitch: usize,
}

impl<'a> Rows<'a> {
    /// Sees `n_rows` rows of `row_len` floats in `data`; row r starts at `r * pitch`.
    ///
    /// # Errors
    /// [`Error::Shape`] where `data` is shorter than the last row needs, [`Error::Zero`] for a zero pitch
    /// with more than one row.
    pub fn new(data: &'a [f32], n_rows: usize, row_len: usize, pitch: usize) -> Result<Self> {
        if n_rows > 1 && pitch == 0 {
            return Err(Error::Zero { what: "pitch" });
        }
        if n_rows > 0 {
            let last = product("n_rows * pitch", n_rows - 1, pitch)?;
            let needed = last.checked_add(row_len).ok_or(Error::Overflow { what: "n_rows * pitch" })?;
            if data.len() < needed {
                return Err(Error::Shape { what: "rows", expected: needed, actual: data.len() });
            }
        }
        Ok(Self { data, n_rows, row_len, pitch: if n_rows > 1 { pitch } else { row_len.max(1) } })
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Floats per row.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// The rows in `range`, which lies within `0..n_rows`.
    fn slice(&self, range: Range<usize>) -> Self {
        let data = if range.is_empty() { &[] } else { &self.data[range.start * self.pitch..] };
        Self { data, n_rows: range.len(), ..*self }
    }
}

/// What every accumulator starts from.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Zero.
    Zero,
    /// The bias of its column: `[n]`.
    Bias(&'a [f32]),
    /// What `out` holds: the chain of an earlier product goes on.
    Accumulate,
}

/// Multiplies `rows` with `matrix` into `out`.
///
/// # Shapes
/// `rows`: `[n_rows, k]`, `matrix`: `[k, n]`, `out`: `[n_rows, n]`.
///
/// # Errors
/// [`Error::Shape`] where the sizes do not agree.
pub fn gemm(rows: Rows<'_>, matrix: &PackedMatrix, start: Start<'_>, out: &mut [f32]) -> Result<()> {
    expect_len("row_len", matrix.k, rows.row_len)?;
    expect_len("out", product("n_rows * n", rows.n_rows, matrix.n)?, out.len())?;
    if let Start::Bias(bias) = start {
        expect_len("bias", matrix.n, bias.len())?;
    }
    if out.is_empty() {
        return Ok(());
    }
    let level = level();
    let work = out.len().saturating_mul(matrix.k);
    let n_threads = pool::threads_for(work, GRAIN);
    let n_panels = matrix.n_panels();
    if rows.n_rows < BLOCK_ROWS && n_panels > 1 {
        // Few rows: the panels are the larger side, and each weight is read once.
        let out = Columns { data: out.as_mut_ptr(), pitch: matrix.n };
        let per_part = n_panels.div_ceil(2 * n_threads).max(4);
        let parts = n_panels.div_ceil(per_part);
        let run = |part: usize| {
            let panels = part * per_part..((part + 1) * per_part).min(n_panels);
            dispatch(level, Tiles { rows, matrix, panels, start, out });
        };
        if n_threads > 1 { (0..parts).into_par_iter().for_each(run) } else { (0..parts).for_each(run) }
    } else {
        let unit = if matrix.n <= NARROW { NARROW_ROWS } else { 48 };
        pool::for_row_blocks(out, matrix.n, unit, n_threads, |first, out| {
            let rows = rows.slice(first..first + out.len() / matrix.n);
            if matrix.n <= NARROW {
                dispatch(level, NarrowRows { rows, matrix, start, out });
            } else {
                let out = Columns { data: out.as_mut_ptr(), pitch: matrix.n };
                dispatch(level, Tiles { rows, matrix, panels: 0..n_panels, start, out });
            }
        });
    }
    Ok(())
}

/// The output of a product as a place to write tiles to.
#[derive(Clone, Copy)]
struct Columns {
    data: *mut f32,
    pitch: usize,
}
// SAFETY: whoever holds a copy writes only to the rows and panels of its own task, which no other task has.
#[expect(unsafe_code, reason = "disjoint columns of one matrix cannot be split as slices")]
unsafe impl Send for Columns {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "disjoint columns of one matrix cannot be split as slices")]
unsafe impl Sync for Columns {}

/// All `rows` times the columns in `panels`.
struct Tiles<'a> {
    /// Every row is `matrix.k` long and inside its slice.
    rows: Rows<'a>,
    matrix: &'a PackedMatrix,
    /// Within the panels of `matrix`.
    panels: Range<usize>,
    /// A bias is `matrix.n` long.
    start: Start<'a>,
    /// Row r, column c lies at `r * pitch + c`; valid for `rows.n_rows` rows and the columns of `panels`.
    out: Columns,
}

impl Kernel for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (n_rows, k, n) = (self.rows.n_rows, self.matrix.k, self.matrix.n);
        // A few rows pass the weights once, in the order in which they lie.
        let max_depth = if n_rows <= S::TILE_ROWS { k.max(1) } else { BLOCK_DEPTH };
        for first in (0..n_rows).step_by(BLOCK_ROWS) {
            let rows = first..(first + BLOCK_ROWS).min(n_rows);
            // At least one round, which stores the start where k is zero.
            for first in (0..k.max(1)).step_by(max_depth) {
                let depth = first..(first + max_depth).min(k);
                for panel in self.panels.clone() {
                    let end = n.min((panel + 1) * PANEL);
                    let mut column = panel * PANEL;
                    while column < end {
                        let cols = (end - column).min(2 * S::LANES);
                        let stripe = Stripe { rows: rows.clone(), depth: depth.clone(), column, cols };
                        if cols > S::LANES {
                            self.stripe::<S, 2>(s, stripe);
                        } else {
                            self.stripe::<S, 1>(s, stripe);
                        }
                        column += cols;
                    }
                }
            }
        }
    }
}

/// A part of a product: some rows times some columns of one panel, over a part of k.
#[derive(Clone)]
struct Stripe {
    rows: Range<usize>,
    depth: Range<usize>,
    /// The first column.
    column: usize,
    /// Number of columns.
    cols: usize,
}

impl Tiles<'_> {
    /// Computes `stripe` in tiles of `V` vectors, as tall as registers and rows allow.
    #[inline(always)]
    fn stripe<S: Simd, const V: usize>(&self, s: S, mut stripe: Stripe) {
        if S::TILE_ROWS == 12 {
            while stripe.rows.len() >= 12 {
                self.tile::<S, 12, V>(s, &stripe);
                stripe.rows.start += 12;
            }
            if stripe.rows.len() >= 8 {
                self.tile::<S, 8, V>(s, &stripe);
                stripe.rows.start += 8;
            }
        } else {
            while stripe.rows.len() >= 6 {
                self.tile::<S, 6, V>(s, &stripe);
                stripe.rows.start += 6;
            }
        }
        if stripe.rows.len() >= 4 {
            self.tile::<S, 4, V>(s, &stripe);
            stripe.rows.start += 4;
        }
        if stripe.rows.len() >= 2 {
            self.tile::<S, 2, V>(s, &stripe);
            stripe.rows.start += 2;
        }
        if !stripe.rows.is_empty() {
            self.tile::<S, 1, V>(s, &stripe);
        }
    }

    /// Computes the first `R` rows of `stripe`.
    #[inline(always)]
    #[expect(unsafe_code, reason = "no checks of bounds in the innermost loop")]
    fn tile<S: Simd, const R: usize, const V: usize>(&self, s: S, stripe: &Stripe) {
        let Stripe { rows: Range { start: row, .. }, ref depth, column, cols } = *stripe;
        let (k, n, pitch) = (self.matrix.k, self.matrix.n, self.rows.pitch);
        let first = column / PANEL * PANEL;
        let width = panel_width(n - first);
        debug_assert!(row + R <= self.rows.n_rows && depth.end <= k);
        debug_assert!(column + cols <= n && cols <= V * S::LANES);
        debug_assert!(column - first + V * S::LANES <= width);
        // Later parts of k go on with the chain that the first part stored.
        let start = if depth.start == 0 { self.start } else { Start::Accumulate };
        // SAFETY: the rows exist and are k long; the panel holds `k * width` floats from `first * k` on, and
        // `V` vectors from `column - first` on lie within its width; `out` and the bias hold the columns.
        unsafe {
            let a = self.rows.data.as_ptr().add(row * pitch);
            let b = self.matrix.data.as_ptr().add(first * k + (column - first));
            let out = self.out.data.add(row * self.out.pitch + column);
            let mut acc = [[s.splat(0.0); V]; R];
            match start {
                Start::Zero => {}
                Start::Bias(bias) => {
                    acc = [load_columns(s, bias.as_ptr().add(column), cols); R];
                }
                Start::Accumulate => {
                    for (r, acc) in acc.iter_mut().enumerate() {
                        *acc = load_columns(s, out.add(r * self.out.pitch), cols);
                    }
                }
            }
            for i in depth.clone() {
                let mut right = [s.splat(0.0); V];
                for (v, right) in right.iter_mut().enumerate() {
                    *right = s.load_ptr(b.add(i * width + v * S::LANES));
                }
                for r in 0..R {
                    let left = s.splat(*a.add(r * pitch + i));
                    for v in 0..V {
                        acc[r][v] = s.fma(left, right[v], acc[r][v]);
                    }
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                store_columns(s, acc, out.add(r * self.out.pitch), cols);
            }
        }
    }
}

/// Loads `cols` columns into `V` vectors.
///
/// # Safety
/// `cols` floats can be read at `xs`.
#[inline(always)]
#[expect(unsafe_code, reason = "no checks of bounds around the innermost loop")]
unsafe fn load_columns<S: Simd, const V: usize>(s: S, xs: *const f32, cols: usize) -> [S::V; V] {
    let mut out = [s.splat(0.0); V];
    for (v, out) in out.iter_mut().enumerate() {
        let left = cols.saturating_sub(v * S::LANES);
        // SAFETY: `left` is what the caller's `cols` leave at this offset.
        *out = unsafe {
            if left >= S::LANES {
                s.load_ptr(xs.add(v * S::LANES))
            } else {
                s.load_part(xs.add(v * S::LANES), left)
            }
        };
    }
    out
}

/// Stores `cols` columns of `V` vectors.
///
/// # Safety
/// `cols` floats can be written at `out`.
#[inline(always)]
#[expect(unsafe_code, reason = "no checks of bounds around the innermost loop")]
unsafe fn store_columns<S: Simd, const V: usize>(s: S, vectors: [S::V; V], out: *mut f32, cols: usize) {
    for (v, vector) in vectors.into_iter().enumerate() {
        let left = cols.saturating_sub(v * S::LANES);
        // SAFETY: `left` is what the caller's `cols` leave at this offset.
        unsafe {
            if left >= S::LANES {
                s.store_ptr(vector, out.add(v * S::LANES));
            } else {
                s.store_part(vector, out.add(v * S::LANES), left);
            }
        }
    }
}

/// All `rows` times a matrix of at most `NARROW` columns, with lanes over rows.
struct NarrowRows<'a> {
    rows: Rows<'a>,
    matrix: &'a PackedMatrix,
    start: Start<'a>,
    /// `[n_rows, n]`.
    out: &'a mut [f32],
}

impl Kernel for NarrowRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { rows, matrix, start, out } = self;
        let (k, n) = (matrix.k, matrix.n);
        // Rows overlap by whole pitches, so one transposed copy of the data serves all of them: element i of
        // row r is `transposed[i % pitch][r + i / pitch]`.
        let height = rows.pitch.min(k);
        let stride = NARROW_ROWS + k.saturating_sub(1) / rows.pitch;
        let mut transposed = vec![0.0; height * stride];
        for first in (0..rows.n_rows).step_by(NARROW_ROWS) {
            let n_rows = (rows.n_rows - first).min(NARROW_ROWS);
            let block = rows.slice(first..first + n_rows);
            transpose(&block, height, stride, &mut transposed);
            for column in 0..n {
                let weights = &matrix.data[column * k..(column + 1) * k];
                let out = &mut out[first * n..(first + n_rows) * n];
                let mut buffer = [0.0; NARROW_ROWS];
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
    let end = (rows.n_rows - 1) * rows.pitch + rows.row_len;
    for (t, step) in rows.data[..end].chunks(rows.pitch).enumerate().take(stride) {
        for (c, &x) in step.iter().enumerate().take(height) {
            out[c * stride + t] = x;
        }
    }
}
