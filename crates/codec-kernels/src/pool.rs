//! Work split over rayon's current pool, so that `ThreadPool::install` chooses the number of threads.
//!
//! No kernel's result depends on how its work was split: only whole outputs are handed out, never parts of
//! a sum.

use crate::scope::with_value;
use crate::simd::MAX_LANES;
use rayon::prelude::*;
use std::cell::Cell;
use std::mem::MaybeUninit;

/// Floats of a plain pass (copies, activations) below which a second thread costs more than it brings.
pub(crate) const GRAIN: usize = 1 << 15;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with every call that it makes on this thread, for a caller that keeps the other threads busy.
pub fn on_this_thread<R>(f: impl FnOnce() -> R) -> R {
    with_value(&ALONE, true, f)
}

/// Threads that a call which performs `work` operations is worth, at most those of the current pool.
pub(crate) fn threads_for(work: usize, grain: usize) -> usize {
    if work < 2 * grain || ALONE.get() { 1 } else { rayon::current_num_threads().min(work / grain) }
}

/// Calls `f(first_row, rows)` on parts of `out`, which holds rows of `row_len`; every part but the last holds
/// a multiple of `unit` rows, and as many as the others up to one `unit`.
pub(crate) fn for_row_blocks<T: Send>(
    out: &mut [T],
    row_len: usize,
    unit: usize,
    n_threads: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let n_units = (out.len() / row_len.max(1)).div_ceil(unit);
    // Four parts per thread even out threads that other work delays.
    let n_parts = if n_threads <= 1 { 1 } else { n_units.min(4 * n_threads) };
    halve(out, 0, row_len, unit, n_parts, &f);
}

/// Shares rows out in `n_parts` parts, by halves.
fn halve<T: Send>(
    out: &mut [T],
    first_row: usize,
    row_len: usize,
    unit: usize,
    n_parts: usize,
    f: &(impl Fn(usize, &mut [T]) + Sync),
) {
    if n_parts <= 1 {
        return f(first_row, out);
    }
    let (n_rows, n_left) = (out.len() / row_len.max(1), n_parts / 2);
    let n_rows_left = n_rows.div_ceil(unit) * n_left / n_parts * unit;
    let (left, right) = out.split_at_mut(n_rows_left * row_len);
    let middle = first_row + n_rows_left;
    rayon::join(
        || halve(left, first_row, row_len, unit, n_left, f),
        || halve(right, middle, row_len, unit, n_parts - n_left, f),
    );
}

/// Zeros, written by all threads where they are many: what `vec![0.0; len]` is in memory that was used before.
pub fn zeros(len: usize) -> Vec<f32> {
    match threads_for(len, GRAIN) {
        0 | 1 => vec![0.0; len],
        _ => filled(Vec::with_capacity(len), len, 0.0),
    }
}

/// Empties `out` and writes `len` times `value` to it, by all threads where that is much.
pub(crate) fn filled<T: Copy + Send + Sync>(mut out: Vec<T>, len: usize, value: T) -> Vec<T> {
    out.clear();
    out.reserve(len);
    let n_threads = threads_for(len * size_of::<T>() / size_of::<f32>(), GRAIN);
    for_row_blocks(&mut out.spare_capacity_mut()[..len], 1, MAX_LANES, n_threads, |_, part| {
        part.fill(MaybeUninit::new(value));
    });
    #[expect(unsafe_code, reason = "no pass over memory by one thread")]
    // SAFETY: the vector has room for `len` elements, each of which lies in one of the parts that were filled.
    unsafe {
        out.set_len(len);
    }
    out
}

/// Calls `f(item_idx, item)` on the items of `out`, each `len` long, and gives the first error by their order.
///
/// The items are shared out where they are enough for all threads, and `f` then keeps to its own; else they come
/// one after the other, and `f` may use all threads.
///
/// # Errors
/// Those of `f`.
pub fn for_items<E: Send>(
    out: &mut [f32],
    len: usize,
    f: impl Fn(usize, &mut [f32]) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let (len, n_threads) = (len.max(1), threads_for(out.len(), GRAIN));
    if n_threads <= 1 || out.len() / len < n_threads {
        return out.chunks_exact_mut(len).enumerate().try_for_each(|(item_idx, item)| f(item_idx, item));
    }
    let each = |(item_idx, item)| on_this_thread(|| f(item_idx, item).err());
    let errors: Vec<Option<E>> = out.par_chunks_exact_mut(len).enumerate().map(each).collect();
    errors.into_iter().flatten().next().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::same_everywhere;

    #[test]
    fn parts_are_whole_units_of_one_size_up_to_a_unit() {
        for (n_rows, row_len, unit, n_threads) in
            [(960, 3, 96, 2), (640, 1, 24, 2), (7, 2, 4, 3), (1, 5, 8, 4), (0, 5, 8, 4), (100, 1, 1, 1)]
        {
            let mut owners = vec![usize::MAX; n_rows * row_len];
            for_row_blocks(&mut owners, row_len, unit, n_threads, |first, part| part.fill(first));
            let starts: std::collections::BTreeSet<usize> = owners.iter().copied().collect();
            let mut ends: Vec<usize> = starts.iter().copied().skip(1).collect();
            ends.push(n_rows);
            for (start, end) in starts.iter().zip(&ends) {
                assert_eq!(start % unit, 0);
                assert!(owners[start * row_len..end * row_len].iter().all(|owner| owner == start));
            }
            let sizes: Vec<usize> =
                starts.iter().zip(&ends).map(|(start, end)| (end - start).div_ceil(unit)).collect();
            let spread = sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0);
            assert!(spread <= 1 && sizes.len() <= 4 * n_threads, "{sizes:?}");
        }
    }

    #[test]
    fn zeros_are_zeros() {
        for len in [0, 1, 100, 3 * GRAIN + 5] {
            // Also in memory that was used before.
            drop(vec![1.0_f32; len]);
            assert!(same_everywhere(|| zeros(len)).into_iter().eq(std::iter::repeat_n(0.0, len)));
        }
    }

    #[test]
    fn every_item_is_seen_and_the_first_error_is_told() {
        for (n, len) in [(0, 4), (1, 3), (5, GRAIN), (40, 10_000)] {
            let mut out = vec![0.0; n * len];
            let all = for_items(&mut out, len, |i, item| {
                item.fill(i as f32);
                Ok::<(), usize>(())
            });
            assert_eq!(all, Ok(()));
            assert!(out.chunks_exact(len).enumerate().all(|(i, item)| item.iter().all(|x| *x == i as f32)));
            let refused = for_items(&mut out, len, |i, _| if i % 2 == 1 { Err(i) } else { Ok(()) });
            assert_eq!(refused, if n > 1 { Err(1) } else { Ok(()) });
        }
    }
}
