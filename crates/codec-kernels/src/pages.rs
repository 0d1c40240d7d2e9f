//! Memory for weights: in large pages, and from the beginning of a cache line on.

use crate::pool;
use bytemuck::{Pod, Zeroable};
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::{mem::MaybeUninit, ops::Range};

/// Bytes of a large page.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_PAGE: usize = 1 << 21;
/// Floats in a line of the cache.
pub(crate) const LINE: usize = 16;

/// A line of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Floats in whole lines of the cache. Rows of a panel begin at a line, so no vector of a row lies in two.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// Zeros, in large pages where there are enough of them and the system has such pages; as many as `n` rounded up
    /// to whole lines.
    ///
    /// A step of a stream reads all weights once: with pages of 4 KiB it would look up the place of each, and the
    /// processor would stop reading ahead at the end of each.
    pub(crate) fn zeros(n: usize) -> Self {
        let n = n.div_ceil(LINE);
        let lines = Vec::with_capacity(n);
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        if n * size_of::<Line>() >= 2 * LARGE_PAGE {
            return Self(in_large_pages(lines, n));
        }
        Self(pool::filled(lines, n, Line::zeroed()))
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Writes `n` zeros to `lines`, which has room for them.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn in_large_pages(mut lines: Vec<Line>, n: usize) -> Vec<Line> {
    let memory = lines.spare_capacity_mut().as_mut_ptr_range();
    // For pages that are touched for the first time now, then for those of freed memory.
    advise(memory.clone(), libc::MADV_HUGEPAGE);
    let lines = pool::filled(lines, n, Line::zeroed());
    advise(memory, libc::MADV_COLLAPSE);
    lines
}

/// Gives `advice` on the large pages that lie wholly in `memory`; where the system cannot follow it, pages stay
/// small.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn advise(memory: Range<*mut MaybeUninit<Line>>, advice: libc::c_int) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_begin_at_a_line() {
        for n in [0, 1, 16, 100, 1 << 21] {
            let mut lines = Lines::zeros(n);
            assert_eq!(lines.as_slice(), vec![0.0; n.next_multiple_of(LINE)]);
            lines.as_mut_slice().fill(1.0);
            let copy = lines.clone();
            assert_eq!(lines, copy);
            assert!([&lines, &copy].map(|lines| lines.as_slice().as_ptr().addr() % 64) == [0, 0]);
        }
    }
}
