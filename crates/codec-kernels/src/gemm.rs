//! Matrix products over overlapping rows.
//!
//! A convolution over time-major data is such a product: the window of `kernel` steps of `channels` floats is
//! one contiguous row, and the next window starts `stride * channels` further on. Every output element is one
//! chain of fused multiply-adds with k ascending, started from zero, the bias or what `out` holds. The chain is
//! never split, so tile sizes, vector widths and threads cannot change a bit.

use std::ops::Range;

use rayon::prelude::*;

pub use self::transposed::gemm_transposed;
pub use self::weights::quantize_columns;

use self::narrow::NarrowRows;
use self::operands::{Ahead, Fetch, LeftRows, Operands, load_columns, store_columns};
use self::weights::{Weight, Weights};
use crate::error::{Error, Result, expect_len, product};
use crate::memory::Memory;
use crate::pages::{LINE, Lines};
use crate::pool;
use crate::simd::{Kernel, Simd, dispatch, level};

mod narrow;
mod operands;
#[cfg(test)]
mod tests;
mod transposed;
mod weights;

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
/// Threads get whole multiples of this many rows: whole blocks, and so whole tiles on every level.
const ROW_UNIT: usize = BLOCK_ROWS;
/// Part of k that passes at a time, so that the part of a panel, or of a pair, stays in the second-level cache for all
/// rows of a block, and these in what is left of it.
const BLOCK_DEPTH: usize = 512;
/// Floats of a matrix that the second-level cache does not keep from one product to the next.
const UNCACHED: usize = 1 << 17;
/// Up to so many rows a product waits for its weights alone, and the CPU sees by itself which come next.
const FEWEST_ROWS: usize = 2;
/// Steps of k in one round of the innermost loop.
const UNROLLED: usize = 4;
/// Rows of the tallest tile.
const TALLEST: usize = 12;
/// Rows of a tile that share a pointer: an address is that and none to three times the pitch.
const GROUP_ROWS: usize = 4;
/// Panels that may share a tile.
const PAIR: usize = 2;
/// Rows at a multiple of this pitch (1 KiB) meet in a quarter of the sets of the first-level cache.
const COLLIDING_PITCH: usize = 256;
/// The pitch to which such rows are copied: an odd number of cache lines.
const SPREAD_PITCH: usize = BLOCK_DEPTH + 16;

/// A right matrix `[k, n]`, packed once for the order in which the kernels read it.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    k: usize,
    n: usize,
    weights: Weights,
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
        if n <= NARROW {
            return Ok(Self::pack_narrow(k, n, |row, column| weights[row * n + column]));
        }
        Ok(Self { k, n, weights: Weights::of(rows_in_panels(weights, k, n), k) })
    }

    /// Packs a row-major matrix for [`gemm_transposed`], which wants columns side by side however few.
    ///
    /// # Shapes
    /// `weights`: `[k, n]`.
    ///
    /// # Errors
    /// [`Error::Shape`] where `weights` does not hold `k * n` floats.
    pub fn for_transposed(weights: &[f32], k: usize, n: usize) -> Result<Self> {
        expect_len("weights", product("k * n", k, n)?, weights.len())?;
        Ok(Self { k, n, weights: Weights::Floats(rows_in_panels(weights, k, n)) })
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
        let at = |row: usize, column: usize| weights[column * k + row];
        if n <= NARROW {
            return Ok(Self::pack_narrow(k, n, at));
        }
        let floats = in_panels(k, n, |columns, row, out| {
            columns.zip(out).for_each(|(column, out)| *out = at(row, column));
        });
        Ok(Self { k, n, weights: Weights::of(floats, k) })
    }

    /// The matrix as [`PackedMatrix::new`] took it, `[k, n]`.
    pub fn unpacked(&self) -> Vec<f32> {
        let (k, n) = (self.k, self.n);
        let mut out = vec![0.0; k * n];
        if out.is_empty() {
            return out;
        }
        let panels = (0..n).step_by(PANEL).map(|first| {
            let (width, columns) = (panel_width(n - first), first..n.min(first + PANEL));
            (width, columns, first * k..first * k + k * width)
        });
        match &self.weights {
            Weights::Narrow(values) => {
                out.iter_mut().enumerate().for_each(|(i, x)| *x = values[i % n * k + i / n]);
            }
            Weights::Floats(values) => {
                for (width, columns, panel) in panels {
                    let rows = values.as_slice()[panel].chunks_exact(width);
                    for (out, row) in out.chunks_exact_mut(n).zip(rows) {
                        out[columns.clone()].copy_from_slice(&row[..columns.len()]);
                    }
                }
            }
            Weights::Bytes { values, scales } => {
                for (width, columns, panel) in panels {
                    for (out, row) in out.chunks_exact_mut(n).zip(values[panel].chunks_exact(width)) {
                        let products =
                            row.iter().zip(&scales[columns.start..]).map(|(&x, scale)| f32::from(x) * scale);
                        out[columns.clone()].iter_mut().zip(products).for_each(|(out, x)| *out = x);
                    }
                }
            }
        }
        out
    }

    /// Rows: the length of the chains.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns: the length of an output row.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Packs columns one after the other.
    fn pack_narrow(k: usize, n: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        let places = (0..n).flat_map(|column| (0..k).map(move |row| (row, column)));
        let values = places.map(|(row, column)| at(row, column)).collect();
        Self { k, n, weights: Weights::Narrow(values) }
    }

    fn n_panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }
}

/// A row-major matrix in panels.
fn rows_in_panels(weights: &[f32], k: usize, n: usize) -> Lines {
    in_panels(k, n, |columns, row, out| out[..columns.len()].copy_from_slice(&weights[row * n..][columns]))
}

/// Calls `fill(columns, row, out)` for each row of each panel, whole stretches of columns at a time; `out` may be wider
/// than `columns`.
fn in_panels(k: usize, n: usize, fill: impl Fn(Range<usize>, usize, &mut [f32]) + Sync) -> Lines {
    // `n` is too large to be padded only where `k` is zero.
    let mut lines = Lines::zeros(k * n.checked_next_multiple_of(HALF_PANEL).unwrap_or(n));
    let data = lines.as_mut_slice();
    let fill = |(panel_idx, panel): (usize, &mut [f32])| {
        let first = panel_idx * PANEL;
        let width = panel_width(n - first);
        for (row, out) in panel.chunks_exact_mut(width).enumerate() {
            fill(first..n.min(first + width), row, out);
        }
    };
    let panel_len = (k * PANEL).max(1);
    match pool::threads_for(data.len(), pool::GRAIN) {
        0 | 1 => data.chunks_mut(panel_len).enumerate().for_each(fill),
        _ => data.par_chunks_mut(panel_len).enumerate().for_each(fill),
    }
    lines
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
    /// From an element of a row to the next.
    step: usize,
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
        let pitch = if n_rows > 1 { pitch } else { row_len.max(1) };
        Ok(Self { data, n_rows, row_len, pitch, step: 1 })
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

    /// The elements in `range`, which lies within `0..row_len`, of every row.
    fn part(&self, range: Range<usize>) -> Self {
        let data = if self.n_rows == 0 { &[] } else { &self.data[range.start * self.step..] };
        Self { data, row_len: range.len(), ..*self }
    }

    /// Copies the rows to `out` at another pitch.
    fn copy_to(&self, out: &mut [f32], pitch: usize) {
        for (r, out) in out.chunks_mut(pitch).enumerate().take(self.n_rows) {
            out[..self.row_len].copy_from_slice(&self.data[r * self.pitch..][..self.row_len]);
        }
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
    gemm_in_order(rows, matrix, start, out, Order::Forwards)
}

/// In which order a product reads the matrix; its result does not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Forwards,
    /// From the last panel to the first. A matrix that does not fit into the cache leaves its end there, which the
    /// next product with it can begin with.
    Backwards,
}

/// As [`gemm`], with a choice of the order.
pub(crate) fn gemm_in_order(
    rows: Rows<'_>,
    matrix: &PackedMatrix,
    start: Start<'_>,
    out: &mut [f32],
    order: Order,
) -> Result<()> {
    expect_len("row_len", matrix.k, rows.row_len)?;
    expect_len("out", product("n_rows * n", rows.n_rows, matrix.n)?, out.len())?;
    if let Start::Bias(bias) = start {
        expect_len("bias", matrix.n, bias.len())?;
    }
    if out.is_empty() {
        return Ok(());
    }
    match &matrix.weights {
        Weights::Narrow(values) => {
            let n_threads = pool::threads_for(out.len().saturating_mul(matrix.k), GRAIN);
            let level = level();
            pool::for_row_blocks(out, matrix.n, narrow::BLOCK_ROWS, n_threads, |first, out| {
                let rows = rows.slice(first..first + out.len() / matrix.n);
                dispatch(level, NarrowRows { rows, columns: values, n: matrix.n, start, out });
            });
        }
        Weights::Floats(values) => {
            let values = values.as_slice();
            Product::<_, false> { rows, matrix, values, scales: &[], start, order }.run(ROW_UNIT, out);
        }
        Weights::Bytes { values, scales } => {
            Product::<_, false> { rows, matrix, values, scales, start, order }.run(ROW_UNIT, out);
        }
    }
    Ok(())
}

/// A product with a matrix in panels; `T` when rows are columns of a row-major matrix.
#[derive(Clone, Copy)]
struct Product<'a, W, const T: bool> {
    /// Every row is `matrix.k` long and inside its slice.
    rows: Rows<'a>,
    matrix: &'a PackedMatrix,
    /// The panels of `matrix`.
    values: &'a [W],
    /// For weights that are scaled: of the columns of all panels.
    scales: &'a [f32],
    /// A bias is `matrix.n` long.
    start: Start<'a>,
    order: Order,
}

impl<W: Weight, const T: bool> Product<'_, W, T> {
    /// Shares the work out: threads get multiples of `unit` rows, or panels. `out` holds all rows and is not empty.
    fn run(self, unit: usize, out: &mut [f32]) {
        let Self { rows, matrix, order, .. } = self;
        let (level, n_panels) = (level(), matrix.n_panels());
        let n_threads = pool::threads_for(out.len().saturating_mul(matrix.k), GRAIN);
        if n_threads > 1 && n_panels > 1 && rows.n_rows < BLOCK_ROWS {
            // Few rows: the weights are the larger side, and each thread reads only its own.
            let out = Columns { data: out.as_mut_ptr(), pitch: matrix.n };
            // Pairs stay together; those of a row or two where there are enough for all threads.
            let unit = if rows.n_rows > TALLEST || n_panels >= 2 * PAIR * n_threads { PAIR } else { 1 };
            let n_units = n_panels.div_ceil(unit);
            let n_parts = n_units.min(2 * n_threads);
            (0..n_parts).into_par_iter().for_each(|part| {
                // A thread takes two neighbours, and backwards the second first.
                let part = if order == Order::Backwards { (part ^ 1).min(n_parts - 1) } else { part };
                let bound = |part: usize| n_panels.min(part * n_units / n_parts * unit);
                let panels = bound(part)..bound(part + 1);
                dispatch(level, Tiles { product: self, panels, out });
            });
            return;
        }
        pool::for_row_blocks(out, matrix.n, unit, n_threads, |first, out| {
            let rows = rows.slice(first..first + out.len() / matrix.n);
            let out = Columns { data: out.as_mut_ptr(), pitch: matrix.n };
            dispatch(level, Tiles { product: Self { rows, ..self }, panels: 0..n_panels, out });
        });
    }
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

/// All rows of a product times the columns in `panels`.
struct Tiles<'a, W, const T: bool> {
    product: Product<'a, W, T>,
    /// Within the panels of the matrix.
    panels: Range<usize>,
    /// Row r, column c lies at `r * pitch + c`; valid for all rows and the columns of `panels`.
    out: Columns,
}

impl<W: Weight, const T: bool> Kernel for Tiles<'_, W, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { rows: all, matrix, .. } = self.product;
        let (n_rows, k) = (all.n_rows, matrix.k);
        // A few rows pass the weights once, in the order in which they lie.
        let few = n_rows <= S::TILE_ROWS;
        let max_depth = if few { k.max(1) } else { BLOCK_DEPTH };
        let must_spread = !few && self.panels.len() > 1 && collides(all.pitch);
        let mut spread = must_spread.then(|| Memory::new(BLOCK_ROWS * SPREAD_PITCH));
        for first in (0..n_rows).step_by(BLOCK_ROWS) {
            let rows = first..(first + BLOCK_ROWS).min(n_rows);
            // At least one round, which stores the start where k is zero.
            for first in (0..k.max(1)).step_by(max_depth) {
                let depth = first..(first + max_depth).min(k);
                let mut left = all.slice(rows.clone()).part(depth.clone());
                if let Some(spread) = spread.as_mut().and_then(Memory::values_mut) {
                    left.copy_to(spread, SPREAD_PITCH);
                    left = Rows { data: spread, pitch: SPREAD_PITCH, ..left };
                }
                let block = Block { left, row: rows.start, depth: depth.start };
                let mut n_done = 0;
                while n_done < self.panels.len() {
                    let panels = self.next_panels::<S>(n_done);
                    n_done += panels.len();
                    self.columns(s, block, panels);
                }
            }
        }
    }
}

impl<W: Weight, const T: bool> Tiles<'_, W, T> {
    /// The panels that pass after `n_done` others: two where they share tiles, else one.
    ///
    /// A tile of 6 rows and 4 vectors loads less than one of 12 and 2: where two programs share a core, they share its
    /// load ports too. Bytes would have to be converted twice as often. With a row or two, more vectors are more chains
    /// that do not wait for each other, and two panels are two places at which memory is read.
    #[inline(always)]
    fn next_panels<S: Simd>(&self, n_done: usize) -> Range<usize> {
        let (n_rows, order) = (self.product.rows.n_rows, self.product.order);
        let suits = match const { PANEL / S::LANES } {
            2 if n_rows > S::TILE_ROWS => !W::IS_SCALED && order == Order::Forwards,
            2 => n_rows <= FEWEST_ROWS,
            4 => n_rows == 1 && !W::IS_SCALED,
            _ => false,
        };
        let Range { start, end } = self.panels;
        let next = |n: usize| match order {
            Order::Forwards => start + n_done..start + n_done + n,
            Order::Backwards => end - n_done - n..end - n_done,
        };
        let is_pair = suits && end - start - n_done >= PAIR && self.width(next(PAIR).end - 1) == PANEL;
        next(if is_pair { PAIR } else { 1 })
    }

    /// Columns of a panel.
    fn width(&self, panel: usize) -> usize {
        panel_width(self.product.matrix.n - panel * PANEL)
    }

    /// Multiplies `block` with what [`Tiles::next_panels`] gave.
    #[inline(always)]
    fn columns<S: Simd>(&self, s: S, block: Block<'_>, panels: Range<usize>) {
        let first = panels.start * PANEL;
        let cols = self.product.matrix.n.min(panels.end * PANEL) - first;
        let is_whole = self.width(panels.end - 1) == PANEL;
        let ahead = self.ahead(panels.end, panels.len(), block.depth);
        let stripe = Stripe { block, column: first, cols, ahead };
        // Vectors in a panel, panels, rows. A row or two take panels whole, as they lie in memory.
        match (const { PANEL / S::LANES }, panels.len(), block.left.n_rows) {
            (2, PAIR, _) => self.stripe::<S, 4>(s, stripe),
            (4, PAIR, 1) => _ = self.tile::<S, 1, 8>(s, &stripe, 0, None),
            (4, 1, 1) if is_whole => _ = self.tile::<S, 1, 4>(s, &stripe, 0, None),
            (4, 1, 2) if is_whole => _ = self.tile::<S, 2, 4>(s, &stripe, 0, None),
            _ => {
                let mut ahead = ahead;
                for column in (first..first + cols).step_by(2 * S::LANES) {
                    let cols = (first + cols - column).min(2 * S::LANES);
                    let stripe = Stripe { column, cols, ahead, ..stripe };
                    if cols > S::LANES {
                        self.stripe::<S, 2>(s, stripe);
                    } else {
                        self.stripe::<S, 1>(s, stripe);
                    }
                    ahead = None;
                }
            }
        }
    }

    /// Where the parts of up to `n_panels` panels from `next` on lie that begin at `depth`, if they are worth fetching:
    /// if they are not in a cache anyway, or read before they come, as bytes are.
    fn ahead(&self, next: usize, n_panels: usize, depth: usize) -> Option<Ahead> {
        let Product { rows, matrix, values, order, .. } = self.product;
        if values.len() < UNCACHED
            || W::IS_SCALED
            // What comes next is then not the next panel.
            || order == Order::Backwards
            || rows.n_rows <= FEWEST_ROWS
            || next >= self.panels.end
        {
            return None;
        }
        let is_whole = |panel| panel < self.panels.end && self.width(panel) == PANEL;
        let n_panels = (1..n_panels).take_while(|i| is_whole(next + i)).count() + 1;
        let width = self.width(next);
        let first = values.get(next * PANEL * matrix.k + depth * width..)?.as_ptr().cast();
        Some(Ahead { first, n_panels, lines_per_step: width / LINE, to_panel: PANEL * matrix.k })
    }
}

/// Whether rows at `pitch` fall on so few sets of the first-level cache that those of a tile evict each other.
fn collides(pitch: usize) -> bool {
    pitch.is_multiple_of(COLLIDING_PITCH)
}

/// Some rows, over a part of k.
#[derive(Clone, Copy)]
struct Block<'a> {
    /// The rows, cut to the part of k.
    left: Rows<'a>,
    /// The first row in the output.
    row: usize,
    /// The first k.
    depth: usize,
}

/// A block times some columns of a panel, or of a pair of them.
#[derive(Clone, Copy)]
struct Stripe<'a> {
    block: Block<'a>,
    /// The first column.
    column: usize,
    /// Number of columns.
    cols: usize,
    /// What the stripe after this one wants, to be fetched meanwhile.
    ahead: Option<Ahead>,
}

impl<W: Weight, const T: bool> Tiles<'_, W, T> {
    /// Computes `stripe` in tiles of `V` vectors, as tall as registers and rows allow.
    ///
    /// The tiles take turns in fetching what comes next: memory and arithmetic work at the same time.
    #[inline(always)]
    fn stripe<S: Simd, const V: usize>(&self, s: S, stripe: Stripe<'_>) {
        let Rows { n_rows, row_len, .. } = stripe.block.left;
        // Wider tiles are less tall.
        let height = if V > 2 { TALLEST / PAIR } else { S::TILE_ROWS };
        let n_tiles = n_rows.div_ceil(height);
        let (mut row, mut tile_idx) = (0, 0);
        while row < n_rows {
            let ahead = stripe.ahead.and_then(|ahead| ahead.share(tile_idx, n_tiles, row_len));
            tile_idx += 1;
            row += match n_rows - row {
                12.. if height == 12 => self.tile::<S, 12, V>(s, &stripe, row, ahead),
                8.. if height == 12 => self.tile::<S, 8, V>(s, &stripe, row, ahead),
                6.. => self.tile::<S, 6, V>(s, &stripe, row, ahead),
                4.. => self.tile::<S, 4, V>(s, &stripe, row, ahead),
                3 => self.tile::<S, 3, V>(s, &stripe, row, ahead),
                2 => self.tile::<S, 2, V>(s, &stripe, row, ahead),
                _ => self.tile::<S, 1, V>(s, &stripe, row, ahead),
            };
        }
    }

    /// Computes `R` rows of `stripe` from its row `row` on; gives `R`.
    #[inline(always)]
    #[expect(unsafe_code, reason = "no checks of bounds in the innermost loop")]
    fn tile<S: Simd, const R: usize, const V: usize>(
        &self,
        s: S,
        stripe: &Stripe<'_>,
        row: usize,
        ahead: Option<Fetch>,
    ) -> usize {
        let &Stripe { block: Block { left, row: first_row, depth }, column, cols, .. } = stripe;
        let Product { rows, matrix, values, scales, start, .. } = self.product;
        let (k, n, pitch, step) = (matrix.k, matrix.n, left.pitch, left.step);
        let first = column / PANEL * PANEL;
        let width = panel_width(n - first);
        debug_assert!(row + R <= left.n_rows && first_row + left.n_rows <= rows.n_rows);
        debug_assert!(depth + left.row_len <= k);
        debug_assert!(column + cols <= n && cols <= V * S::LANES);
        if V * S::LANES > PANEL {
            debug_assert!(column == first && cols > PANEL && self.width(first / PANEL + 1) == PANEL);
        } else {
            debug_assert!(column - first + V * S::LANES <= width);
        }
        // Later parts of k go on with the chain that the first part stored.
        let start = if depth == 0 { start } else { Start::Accumulate };
        // SAFETY: `left` holds its rows, each `row_len` long, which is what the rounds and the rest go through; the
        // panel holds `k * width` floats from `first * k` on, of which those of this part start at `depth * width`. `V`
        // vectors from `column - first` on lie within its width, or the rest of them within the next panel, which is as
        // wide and `PANEL * k` floats further on; the factors, if there are any, are as many; `out` and the bias hold the
        // columns.
        unsafe {
            // Wrapping: where k is 0 there is nothing, not even at the beginning.
            let a = left.data.as_ptr().wrapping_add(if T { row } else { row * pitch });
            let b = values.as_ptr().wrapping_add(first * k + depth * width + (column - first));
            let out = self.out.data.add((first_row + row) * self.out.pitch + column);
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
            let mut factors = [s.splat(0.0); V];
            if W::IS_SCALED {
                for (v, factors) in factors.iter_mut().enumerate() {
                    *factors = s.load_ptr(scales.as_ptr().add(column + v * S::LANES));
                }
            }
            // One of the two is 1, for the compiler to know.
            let (to_row, to_step) = if T { (1, step) } else { (pitch, 1) };
            let to_panel = PANEL * k;
            let mut at = Operands { left: LeftRows::new(a, to_row), right: b, width, to_panel, factors };
            let mut ahead = ahead;
            for _ in 0..left.row_len / UNROLLED {
                if let Some(ahead) = &mut ahead {
                    ahead.fetch(s, UNROLLED);
                }
                for step in 0..UNROLLED {
                    acc = at.multiply_add(s, step * to_step, acc);
                }
                at.left.advance(UNROLLED * to_step);
            }
            for _ in 0..left.row_len % UNROLLED {
                if let Some(ahead) = &mut ahead {
                    ahead.fetch(s, 1);
                }
                acc = at.multiply_add(s, 0, acc);
                at.left.advance(to_step);
            }
            for (r, acc) in acc.into_iter().enumerate() {
                store_columns(s, acc, out.add(r * self.out.pitch), cols);
            }
        }
        R
    }
}
