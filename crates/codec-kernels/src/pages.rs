//! Weights in large pages.

use crate::pool;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::{mem::MaybeUninit, ops::Range};

/// Bytes of a large page.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_PAGE: usize = 1 << 21;

/// Zeros for weights, in large pages where there are enough of them and the system has such pages.
///
/// A step of a stream reads all weights once: with pages of 4 KiB it would look up the place of each, and the
/// processor would stop reading ahead at the end of each.
pub(crate) fn zeros(n: usize) -> Vec<f32> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if n * size_of::<f32>() >= 2 * LARGE_PAGE {
        let mut zeros = Vec::with_capacity(n);
        let memory = zeros.spare_capacity_mut().as_mut_ptr_range();
        // For pages that are touched for the first time now, then for those of freed memory.
        advise(memory.clone(), libc::MADV_HUGEPAGE);
        zeros.resize(n, 0.0);
        advise(memory, libc::MADV_COLLAPSE);
        return zeros;
    }
    pool::zeros(n)
}

/// Gives `advice` on the large pages that lie wholly in `memory`; where the system cannot follow it, pages stay
/// small.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn advise(memory: Range<*mut MaybeUninit<f32>>, advice: libc::c_int) {
    let start = memory.start.addr().next_multiple_of(LARGE_PAGE);
    let end = memory.end.addr() / LARGE_PAGE * LARGE_PAGE;
    if start < end {
        #[expect(unsafe_code, reason = "advice to the system")]
        // SAFETY: `HUGEPAGE` and `COLLAPSE` change how memory is mapped and leave its contents alone.
        unsafe {
            libc::madvise(memory.start.with_addr(start).cast(), end - start, advice);
        }
    }
}
