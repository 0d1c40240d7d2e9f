//! Work split over rayon's current pool, so that `ThreadPool::install` chooses the number of threads.
//!
//! No kernel's result depends on how its work was split: only whole outputs are handed out, never parts of
//! a sum.

use rayon::prelude::*;
use std::cell::Cell;

/// Floats of a plain pass (copies, activations) below which a second thread costs more than it brings.
pub(crate) const GRAIN: usize = 1 << 15;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with every call that it makes on this thread, for a caller that keeps the other threads busy.
pub fn on_this_thread<R>(f: impl FnOnce() -> R) -> R {
    /// Puts the former choice back, also when `f` unwinds.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _restore = Restore(ALONE.replace(true));
    f()
}

/// Threads that a call which performs `work` operations is worth, at most those of the current pool.
pub(crate) fn threads_for(work: usize, grain: usize) -> usize {
    if work < 2 * grain || ALONE.get() { 1 } else { rayon::current_num_threads().min(work / grain) }
}

/// Calls `f(first_row, rows)` on parts of `out`, which holds rows of `row_len`; every part but the last holds
/// a multiple of `unit` rows.
pub(crate) fn for_row_blocks<T: Send>(
    out: &mut [T],
    row_len: usize,
    unit: usize,
    n_threads: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let n_rows = out.len() / row_len.max(1);
    if n_threads <= 1 || n_rows <= unit {
        f(0, out);
        return;
    }
    // Four parts per thread even out threads that other work delays.
    let block = n_rows.div_ceil(4 * n_threads).next_multiple_of(unit);
    out.par_chunks_mut(block * row_len).enumerate().for_each(|(i, rows)| f(i * block, rows));
}
