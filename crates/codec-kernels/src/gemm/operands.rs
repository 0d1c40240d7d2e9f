//! What a tile of a product reads, and what it fetches ahead.

use super::weights::Weight;
use super::{GROUP_ROWS, PANEL, TALLEST};
use crate::pages::LINE;
use crate::simd::Simd;

/// Parts of panels that will be wanted soon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    pub(super) first: *const f32,
    pub(super) n_panels: usize,
    /// Of one panel, for each step of k.
    pub(super) lines_per_step: usize,
    /// To the same place of the next panel.
    pub(super) to_panel: usize,
}

impl Ahead {
    /// What the tile `tile_idx` of about `n_tiles` fetches, of parts that are `n_steps` long: half a panel, or a whole one
    /// where there are few tiles. Memory takes few requests at a time.
    #[inline(always)]
    pub(super) fn share(self, tile_idx: usize, n_tiles: usize, n_steps: usize) -> Option<Fetch> {
        let Self { first, n_panels, lines_per_step, to_panel } = self;
        let n_parts = if n_tiles >= n_panels * lines_per_step { lines_per_step } else { 1 };
        let n_lines = lines_per_step / n_parts;
        let (panel, part) = (tile_idx / n_parts, tile_idx % n_parts);
        let place = panel * to_panel + part * n_lines * LINE * n_steps;
        (panel < n_panels).then(|| Fetch { next: first.wrapping_add(place), n_lines })
    }
}

/// What a tile fetches while it computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetch {
    pub(super) next: *const f32,
    /// For each step of k.
    pub(super) n_lines: usize,
}

impl Fetch {
    /// Fetches what is due in the next `n_steps` steps.
    #[inline(always)]
    pub(super) fn fetch<S: Simd>(&mut self, s: S, n_steps: usize) {
        for _ in 0..n_steps * self.n_lines {
            s.prefetch(self.next);
            self.next = self.next.wrapping_add(LINE);
        }
    }
}

/// Where the rows of a tile are, as few pointers.
///
/// A pointer for each row does not fit into the registers. A compiler that knows how far rows are from each other
/// computes each address from the one before, an instruction for each row and step, and where two programs share a
/// core, they share its decoder too.
pub(super) struct LeftRows<const R: usize> {
    groups: [*const f32; TALLEST.div_ceil(GROUP_ROWS)],
    /// From a row to the next.
    pitch: usize,
}

impl<const R: usize> LeftRows<R> {
    #[inline(always)]
    pub(super) fn new(first: *const f32, pitch: usize) -> Self {
        const { assert!(R <= TALLEST) };
        let group = |i: usize| unrelated(first.wrapping_add(i * GROUP_ROWS * pitch));
        Self { groups: std::array::from_fn(group), pitch }
    }

    /// Where the element of row `r` lies that is `offset` from the present one.
    #[inline(always)]
    fn place(&self, r: usize, offset: usize) -> *const f32 {
        self.groups[r / GROUP_ROWS].wrapping_add(r % GROUP_ROWS * self.pitch + offset)
    }

    #[inline(always)]
    pub(super) fn advance(&mut self, offset: usize) {
        for group in &mut self.groups[..R.div_ceil(GROUP_ROWS)] {
            *group = unrelated(group.wrapping_add(offset));
        }
    }
}

/// Hides from the compiler where a pointer comes from.
#[inline(always)]
fn unrelated<T>(pointer: *const T) -> *const T {
    #[cfg(all(not(miri), any(target_arch = "x86_64", target_arch = "aarch64")))]
    let pointer = {
        let mut pointer = pointer;
        #[expect(unsafe_code, reason = "`black_box` would go through memory")]
        #[expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read there")]
        // SAFETY: no instruction and no access to memory. The pointer comes out as it went in, for the same use.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags));
        }
        pointer
    };
    pointer
}

/// What a tile reads next.
pub(super) struct Operands<S: Simd, W, const R: usize, const V: usize> {
    pub(super) left: LeftRows<R>,
    pub(super) right: *const W,
    /// From a row of the panel to the next.
    pub(super) width: usize,
    /// To the same row of the next panel, where the rest of the vectors is.
    pub(super) to_panel: usize,
    pub(super) factors: [S::V; V],
}

impl<S: Simd, W: Weight, const R: usize, const V: usize> Operands<S, W, R, V> {
    /// Adds the products of one step of k, the one that is `offset` from the present one, and goes on to the next row
    /// of the panel.
    ///
    /// # Safety
    /// At `offset` an element of each of the `R` rows can be read, at `right` as many of the `V` vectors as a panel is
    /// wide, and the rest `to_panel` further on.
    #[inline(always)]
    #[expect(unsafe_code, reason = "no checks of bounds in the innermost loop")]
    pub(super) unsafe fn multiply_add(
        &mut self,
        s: S,
        offset: usize,
        mut acc: [[S::V; V]; R],
    ) -> [[S::V; V]; R] {
        let per_panel = PANEL / S::LANES;
        let mut right = [s.splat(0.0); V];
        // SAFETY: as the caller's.
        unsafe {
            for (v, right) in right.iter_mut().enumerate() {
                let place = v / per_panel * self.to_panel + v % per_panel * S::LANES;
                *right = W::load(s, self.right.add(place), self.factors[v]);
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = s.splat(*self.left.place(r, offset));
                for (acc, &right) in acc.iter_mut().zip(&right) {
                    *acc = s.fma(x, right, *acc);
                }
            }
        }
        self.right = unrelated(self.right.wrapping_add(self.width));
        acc
    }
}

/// Loads `cols` columns into `V` vectors.
///
/// # Safety
/// `cols` floats can be read at `xs`.
#[inline(always)]
#[expect(unsafe_code, reason = "no checks of bounds around the innermost loop")]
pub(super) unsafe fn load_columns<S: Simd, const V: usize>(s: S, xs: *const f32, cols: usize) -> [S::V; V] {
    let mut out = [s.splat(0.0); V];
    for (v, out) in out.iter_mut().enumerate() {
        // Wrapping: a vector of which no column is left may begin past the end.
        let (left, place) = (cols.saturating_sub(v * S::LANES), xs.wrapping_add(v * S::LANES));
        // SAFETY: `left` is what the caller's `cols` leave at this offset.
        *out = unsafe { if left >= S::LANES { s.load_ptr(place) } else { s.load_part(place, left) } };
    }
    out
}

/// Stores `cols` columns of `V` vectors.
///
/// # Safety
/// `cols` floats can be written at `out`.
#[inline(always)]
#[expect(unsafe_code, reason = "no checks of bounds around the innermost loop")]
pub(super) unsafe fn store_columns<S: Simd, const V: usize>(
    s: S,
    vectors: [S::V; V],
    out: *mut f32,
    cols: usize,
) {
    for (v, vector) in vectors.into_iter().enumerate() {
        let (left, place) = (cols.saturating_sub(v * S::LANES), out.wrapping_add(v * S::LANES));
        // SAFETY: `left` is what the caller's `cols` leave at this offset.
        unsafe {
            if left >= S::LANES {
                s.store_ptr(vector, place);
            } else {
                s.store_part(vector, place, left);
            }
        }
    }
}
