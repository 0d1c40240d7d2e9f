//! From products with the entries of a codebook to distances, and where the small ones are.

use std::ops::Range;

use crate::error::{Error, Result, expect_len, product};
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch, level};

/// Entries that `MAX_LANES` minima stand for.
const GROUP: usize = 16 * MAX_LANES;

/// Turns the products of rows with entries into squared distances, and finds the smallest of every sixteen.
///
/// A distance is `(|x|^2 - 2 x.e) + |e|^2`, rounded in this order. A minimum is the smallest distance of the
/// entries that [`covered_by_minimum`] names, NaN aside. Whoever looks for small distances passes by those whose
/// minimum is too large.
///
/// # Shapes
/// `distances`: `[rows, entries]`, the products before; `row_norms`: `[rows]` and `entry_norms`: `[entries]`, both
/// squared; `minima`: `[rows, n_minima(entries)]`.
///
/// # Errors
/// [`Error::Shape`] or [`Error::Zero`] where the sizes do not agree.
pub fn squared_distances(
    distances: &mut [f32],
    row_norms: &[f32],
    entry_norms: &[f32],
    minima: &mut [f32],
) -> Result<()> {
    let (n_rows, n_entries) = (row_norms.len(), entry_norms.len());
    if n_entries == 0 {
        return Err(Error::Zero { what: "entries" });
    }
    expect_len("distances", product("rows * entries", n_rows, n_entries)?, distances.len())?;
    expect_len("minima", product("rows * minima", n_rows, n_minima(n_entries))?, minima.len())?;
    dispatch(level(), Distances { distances, row_norms, entry_norms, minima });
    Ok(())
}

/// How many minima [`squared_distances`] finds among `n_entries` distances.
pub fn n_minima(n_entries: usize) -> usize {
    n_entries.div_ceil(GROUP) * MAX_LANES
}

/// Which of `n_entries` distances the minimum stands for, in ascending order.
///
/// They lie sixteen apart, so that a minimum is one lane of a vector.
pub fn covered_by_minimum(minimum_idx: usize, n_entries: usize) -> impl Iterator<Item = usize> {
    let (group_idx, lane) = (minimum_idx / MAX_LANES, minimum_idx % MAX_LANES);
    let Range { start, end } = group_idx * GROUP + lane..n_entries.min((group_idx + 1) * GROUP);
    (start..end).step_by(MAX_LANES)
}

struct Distances<'a> {
    /// Whole rows, each as long as `entry_norms`.
    distances: &'a mut [f32],
    row_norms: &'a [f32],
    /// Not empty.
    entry_norms: &'a [f32],
    minima: &'a mut [f32],
}

impl Kernel for Distances<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n_entries = self.entry_norms.len();
        let rows = self.distances.chunks_exact_mut(n_entries);
        let minima = self.minima.chunks_exact_mut(n_minima(n_entries));
        for ((row, minima), &norm) in rows.zip(minima).zip(self.row_norms) {
            let norm = s.splat(norm);
            let groups = row.chunks_mut(GROUP).zip(self.entry_norms.chunks(GROUP));
            for ((row, entry_norms), minima) in groups.zip(minima.chunks_exact_mut(MAX_LANES)) {
                let mut smallest = [s.splat(f32::INFINITY); 2];
                let mut rows = row.chunks_exact_mut(MAX_LANES);
                let mut norms = entry_norms.chunks_exact(MAX_LANES);
                for (row, entry_norms) in (&mut rows).zip(&mut norms) {
                    pass(s, norm, row, entry_norms, &mut smallest);
                }
                let (row, entry_norms) = (rows.into_remainder(), norms.remainder());
                if !row.is_empty() {
                    // Entries that are not there are too far away to be a minimum.
                    let (mut products, mut norms) = ([0.0; MAX_LANES], [f32::INFINITY; MAX_LANES]);
                    products[..row.len()].copy_from_slice(row);
                    norms[..row.len()].copy_from_slice(entry_norms);
                    pass(s, norm, &mut products, &norms, &mut smallest);
                    row.copy_from_slice(&products[..row.len()]);
                }
                for (i, smallest) in smallest.into_iter().enumerate().take(MAX_LANES / S::LANES) {
                    s.store(smallest, &mut minima[i * S::LANES..]);
                }
            }
        }
    }
}

/// Turns `MAX_LANES` products into distances and lowers the smallest ones, lane by lane.
#[inline(always)]
fn pass<S: Simd>(s: S, norm: S::V, row: &mut [f32], entry_norms: &[f32], smallest: &mut [S::V; 2]) {
    for (i, smallest) in smallest.iter_mut().enumerate().take(MAX_LANES / S::LANES) {
        let (row, entry_norms) = (&mut row[i * S::LANES..], &entry_norms[i * S::LANES..]);
        let rest = s.sub(norm, s.mul(s.splat(2.0), s.load(row)));
        let distance = s.add(rest, s.load(entry_norms));
        s.store(distance, row);
        // The second operand wins against a NaN.
        *smallest = s.min(distance, *smallest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;
    use crate::testing::{bits, noise, same_everywhere};

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        #[test]
        fn distances_and_minima_are_those_of_the_formula(
            seed in 0..1000_u64,
            n_rows in 0..4_usize,
            n_entries in 1..600_usize,
        ) {
            let mut products = noise(seed, n_rows * n_entries);
            products.iter_mut().step_by(7).for_each(|x| *x = f32::NAN);
            let (row_norms, entry_norms) = (noise(seed + 1, n_rows), noise(seed + 2, n_entries));
            let both = same_everywhere(|| {
                let mut distances = products.clone();
                let mut minima = vec![f32::NAN; n_rows * n_minima(n_entries)];
                squared_distances(&mut distances, &row_norms, &entry_norms, &mut minima).unwrap();
                // The bits of a NaN are not promised.
                distances.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = f32::NAN);
                [distances, minima].concat()
            });
            let (distances, minima) = both.split_at(n_rows * n_entries);
            let want: Vec<f32> = (0..n_rows * n_entries)
                .map(|i| (row_norms[i / n_entries] - 2.0 * products[i]) + entry_norms[i % n_entries])
                .map(|x| if x.is_nan() { f32::NAN } else { x })
                .collect();
            assert_eq!(bits(distances), bits(&want));
            let minima = minima.chunks_exact(n_minima(n_entries));
            for (row, minima) in want.chunks_exact(n_entries).zip(minima) {
                let mut covered = Vec::new();
                for (i, &minimum) in minima.iter().enumerate() {
                    let entries: Vec<usize> = covered_by_minimum(i, n_entries).collect();
                    assert!(entries.is_sorted());
                    let smallest = entries.iter().map(|&entry| row[entry]).fold(f32::INFINITY, f32::min);
                    assert_eq!(minimum, smallest);
                    covered.extend(entries);
                }
                covered.sort_unstable();
                assert!(covered.into_iter().eq(0..n_entries), "an entry has no minimum");
            }
        }
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        let run = |distances: usize, rows: usize, entries: usize, minima: usize| {
            let (mut distances, mut minima) = (vec![0.0; distances], vec![0.0; minima]);
            squared_distances(&mut distances, &vec![0.0; rows], &vec![0.0; entries], &mut minima)
        };
        run(6, 2, 3, 32).unwrap();
        for (distances, rows, entries, minima) in [(5, 2, 3, 32), (6, 3, 3, 48), (6, 2, 3, 31), (0, 2, 0, 0)]
        {
            assert!(run(distances, rows, entries, minima).is_err());
        }
    }
}
