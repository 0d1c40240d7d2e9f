//! Memory for results, used again.
//!
//! A step of a stream makes the same results as the step before it. Their memory goes back to the thread that lets
//! go of it and serves the next ones, so the steady state of a stream allocates nothing, nothing has to be cleared
//! before it is written, and what is written next lies in the cache.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

/// Least floats of a piece of memory.
const MIN_LEN: usize = 64;
/// Most floats of a piece that is kept: 8 MiB.
const MAX_LEN: usize = 1 << 21;
/// Most floats that a thread keeps, to its end: 32 MiB.
const MAX_KEPT: usize = 1 << 23;

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// Memory that a thread keeps for its next results.
#[derive(Default)]
struct Kept {
    /// By the number of its size.
    by_size: Vec<Vec<Arc<Vec<f32>>>>,
    /// Floats in all of it.
    len: usize,
}

impl Kept {
    fn take(&mut self, number: usize) -> Option<Arc<Vec<f32>>> {
        let memory = self.by_size.get_mut(number)?.pop()?;
        self.len -= memory.len();
        Some(memory)
    }

    /// Floats in the pieces of one size.
    fn len_of(&self, number: usize) -> usize {
        let pieces = &self.by_size[number];
        pieces.first().map_or(0, |piece| pieces.len() * piece.len())
    }

    /// Keeps `memory`; where that is too much, lets go of pieces of the size that holds most, so that no size is
    /// without a place.
    fn put(&mut self, memory: Arc<Vec<f32>>) {
        let (size, number) = size_for(memory.len());
        while self.len + size > MAX_KEPT {
            let fullest = (0..self.by_size.len()).max_by_key(|&number| self.len_of(number));
            if fullest == Some(number) || fullest.and_then(|fullest| self.take(fullest)).is_none() {
                return;
            }
        }
        self.len += size;
        if self.by_size.len() <= number {
            self.by_size.resize_with(number + 1, Vec::new);
        }
        self.by_size[number].push(memory);
    }
}

/// The size of the memory for `len` floats, and its number: four sizes from each power of two to the next.
fn size_for(len: usize) -> (usize, usize) {
    let len = len.max(MIN_LEN);
    let power = len.ilog2();
    let (base, quarter) = (1 << power, 1 << (power - 2));
    let n_quarters = (len - base).div_ceil(quarter);
    (base + n_quarters * quarter, 4 * power as usize + n_quarters)
}

/// Floats of earlier results, to be written over; a clone shares them.
///
/// ```
/// use codec_kernels::Memory;
/// let mut memory = Memory::new(100);
/// memory.values_mut().unwrap_or_default()[..100].fill(1.0);
/// let reader = memory.clone();
/// assert!(reader.values().len() >= 100 && reader.values()[99] == 1.0);
/// assert!(memory.values_mut().is_none(), "somebody else reads them");
/// ```
#[derive(Clone)]
pub struct Memory(Option<Arc<Vec<f32>>>);

impl Memory {
    /// Room for `len` floats or some more, with what was there before.
    pub fn new(len: usize) -> Self {
        let (size, number) = size_for(len);
        let used_before = KEPT.with_borrow_mut(|kept| kept.take(number));
        // By this thread alone: whoever asks may hold a lock, and a thread that shares out work takes up other work.
        Self(Some(used_before.unwrap_or_else(|| Arc::new(vec![0.0; size]))))
    }

    /// The floats.
    pub fn values(&self) -> &[f32] {
        self.0.as_ref().map_or(&[], |values| values)
    }

    /// The floats, where nobody else reads them.
    pub fn values_mut(&mut self) -> Option<&mut [f32]> {
        Arc::get_mut(self.0.as_mut()?).map(Vec::as_mut_slice)
    }

    /// Whether somebody else reads the floats.
    pub fn is_shared(&self) -> bool {
        self.0.as_ref().is_some_and(|values| Arc::strong_count(values) > 1)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({})", self.values().len())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Some(mut values) = self.0.take() else { return };
        if values.len() > MAX_LEN || Arc::get_mut(&mut values).is_none() {
            return;
        }
        // At the end of a thread there is nobody to keep it.
        let _ = KEPT.try_with(|kept| kept.borrow_mut().put(values));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn sizes_hold_their_floats_and_have_numbers_of_their_own() {
        let mut sizes = BTreeMap::new();
        for len in (0..5000).chain((1..30).map(|i| 1 << i)) {
            let (size, number) = size_for(len);
            assert!(size >= len && (len < MIN_LEN || size <= len + len.div_ceil(4)), "{size} for {len}");
            assert_eq!(*sizes.entry(number).or_insert(size), size);
            assert_eq!(size_for(size), (size, number));
        }
        assert_eq!(sizes.values().collect::<BTreeSet<_>>().len(), sizes.len());
    }

    #[test]
    fn is_used_again_once_nobody_reads_it() {
        let mut first = Memory::new(2331);
        first.values_mut().unwrap()[2330] = 7.0;
        let place = first.values().as_ptr();
        let reader = first.clone();
        assert!(first.is_shared() && first.values_mut().is_none());
        drop(first);
        assert_ne!(Memory::new(2331).values().as_ptr(), place);
        assert!(!reader.is_shared() && reader.values()[2330] == 7.0);
        drop(reader);
        let again: BTreeSet<_> = [Memory::new(2331), Memory::new(2331)].map(|m| m.values().as_ptr()).into();
        assert!(again.contains(&place) && again.len() == 2);
    }

    #[test]
    fn a_thread_keeps_no_more_than_its_share() {
        let many: Vec<_> = (0..40).map(|_| Memory::new(MAX_LEN / 2)).collect();
        let huge = Memory::new(MAX_LEN + 1);
        drop((many, huge));
        let check = || {
            KEPT.with_borrow(|kept| {
                assert!(kept.len <= MAX_KEPT && kept.len > MAX_KEPT / 2);
                assert_eq!(kept.len, kept.by_size.iter().flatten().map(|memory| memory.len()).sum::<usize>());
            });
        };
        check();
        // Pieces of other sizes find a place all the same, and where small ones have taken it, large ones do.
        let finds_a_place = |len: usize| {
            let piece = Memory::new(len);
            let place = piece.values().as_ptr();
            drop(piece);
            check();
            KEPT.with_borrow(|kept| assert!(!kept.by_size[size_for(len).1].is_empty(), "{len}"));
            assert_eq!(Memory::new(len).values().as_ptr(), place);
        };
        finds_a_place(1000);
        drop((0..2 * MAX_KEPT / 4096).map(|_| Memory::new(4096)).collect::<Vec<_>>());
        finds_a_place(100_000);
        finds_a_place(MAX_LEN);
    }
}
