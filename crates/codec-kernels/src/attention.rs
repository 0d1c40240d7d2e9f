//! Attention, query by query and head by head, so that no query's result depends on the others in the call.

use std::ops::Range;

use crate::error::{Error, Result, count_rows, expect_len, product};
use crate::memory::Memory;
use crate::pool;
use crate::reduce::{Dot, exp_and_sum};
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch, level};

/// Floats in a line of the cache.
const LINE: usize = 16;
/// Rows of keys or values that are fetched ahead: a head's part of a row is too far from that of the next for
/// the CPU to see by itself what comes.
const AHEAD: usize = 8;
/// Vectors of an output that are summed in one pass over the values.
const PASS: usize = 4;

/// How the channels of queries, keys and values are split into heads, one head after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Heads of the queries.
    pub n_heads: usize,
    /// Heads of keys and values; each serves `n_heads / n_kv_heads` neighbouring heads of the queries.
    pub n_kv_heads: usize,
    /// Channels per head.
    pub dim: usize,
}

impl Heads {
    /// One head of `dim` channels.
    pub fn one(dim: usize) -> Self {
        Self { n_heads: 1, n_kv_heads: 1, dim }
    }

    /// Channels of queries and of keys.
    fn widths(self) -> Result<(usize, usize)> {
        if self.n_kv_heads == 0 {
            return Err(Error::Zero { what: "n_kv_heads" });
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(Error::Uneven { what: "n_heads", unit: self.n_kv_heads, actual: self.n_heads });
        }
        Ok((product("queries", self.n_heads, self.dim)?, product("keys", self.n_kv_heads, self.dim)?))
    }
}

/// Scaled dot-product attention.
///
/// Query i sees the keys in `visible(i)`, counted from that range's start: where the range lies in `k` does not
/// change a bit. A query that sees no key gets zeros.
///
/// # Shapes
/// `q`, `out`: `[n_queries, n_heads * dim]`; `k`, `v`: `[n_keys, n_kv_heads * dim]`; `visible(i)` lies within
/// `0..n_keys`.
///
/// # Errors
/// [`Error::Shape`], [`Error::Uneven`] or [`Error::Zero`] where the sizes do not agree, [`Error::KeyRange`] for
/// a range outside the keys.
///
/// # Source
/// Vaswani et al. 2017, "Attention is all you need", eq. 1, with `scale` in place of 1/√dim; shared keys:
/// Ainslie et al. 2023, "GQA", section 2.2.
pub fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    heads: Heads,
    scale: f32,
    visible: impl Fn(usize) -> Range<usize> + Sync,
    out: &mut [f32],
) -> Result<()> {
    let (width, kv_width) = heads.widths()?;
    let n_queries = count_rows("q", q.len(), width)?;
    let n_keys = count_rows("k", k.len(), kv_width)?;
    expect_len("v", k.len(), v.len())?;
    expect_len("out", q.len(), out.len())?;
    let mut n_pairs = 0_usize;
    for query_idx in 0..n_queries {
        let Range { start, end } = visible(query_idx);
        if start > end || end > n_keys {
            return Err(Error::KeyRange { query_idx, start, end, n_keys });
        }
        n_pairs = n_pairs.saturating_add(end - start);
    }
    let level = level();
    let n_threads = pool::threads_for(n_pairs.saturating_mul(width), 4 * pool::GRAIN);
    pool::for_row_blocks(out, width, 1, n_threads, |first, out| {
        let mut memory = Memory::new(n_keys);
        let weights = memory.values_mut().unwrap_or_default();
        let per_kv = heads.n_heads / heads.n_kv_heads;
        // Head by head, so that a head's keys and values come from memory for the first query alone.
        for head_idx in 0..heads.n_heads {
            let (place, offset) = (head_idx * heads.dim, head_idx / per_kv * heads.dim);
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                let query_idx = first + i;
                let keys = visible(query_idx);
                let span = keys.start * kv_width..keys.end * kv_width;
                // `visible` may answer differently the second time: a slice out of bounds would panic.
                let (Some(k), Some(v)) = (k.get(span.clone()), v.get(span)) else { continue };
                let q = &q[query_idx * width + place..][..heads.dim];
                let out = &mut out[place..][..heads.dim];
                let ahead = if i == 0 { AHEAD } else { 0 };
                let weights = &mut weights[..k.len() / kv_width];
                dispatch(level, Query { q, k, v, offset, pitch: kv_width, scale, ahead, weights, out });
            }
        }
    });
    Ok(())
}

struct Query<'a> {
    q: &'a [f32],
    /// Rows of `pitch`; the head starts at `offset` of each and is as long as `q`.
    k: &'a [f32],
    v: &'a [f32],
    offset: usize,
    pitch: usize,
    scale: f32,
    /// How many rows ahead `k` and `v` are fetched: not at all for zero.
    ahead: usize,
    /// One per key.
    weights: &'a mut [f32],
    out: &'a mut [f32],
}

impl Kernel for Query<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { q, k, v, offset, pitch, scale, ahead, weights, out } = self;
        let dim = q.len();
        if weights.is_empty() {
            out.fill(0.0);
            return;
        }
        for (weight, k) in weights.iter_mut().zip(k.chunks_exact(pitch)) {
            let k = &k[offset..][..dim];
            if ahead > 0 {
                fetch(s, k, ahead * pitch);
            }
            *weight = Dot { a: q, b: k }.run(s) * scale;
        }
        let sum = s.splat(exp_and_sum(s, weights));
        let whole = dim - dim % (PASS * S::LANES);
        for c in (0..whole).step_by(PASS * S::LANES) {
            let mut acc = [s.splat(0.0); PASS];
            for (&weight, v) in weights.iter().zip(v.chunks_exact(pitch)) {
                let (weight, v) = (s.splat(weight), &v[offset + c..][..PASS * S::LANES]);
                if ahead > 0 {
                    fetch(s, v, ahead * pitch);
                }
                for (acc, v) in acc.iter_mut().zip(v.chunks_exact(S::LANES)) {
                    *acc = s.fma(weight, s.load(v), *acc);
                }
            }
            for (acc, out) in acc.into_iter().zip(out[c..].chunks_exact_mut(S::LANES)) {
                s.store(s.div(acc, sum), out);
            }
        }
        for c in (whole..dim).step_by(S::LANES) {
            let left = (dim - c).min(S::LANES);
            let mut acc = s.splat(0.0);
            let mut buffer = [0.0; MAX_LANES];
            for (&weight, v) in weights.iter().zip(v.chunks_exact(pitch)) {
                buffer[..left].copy_from_slice(&v[offset + c..][..left]);
                acc = s.fma(s.splat(weight), s.load(&buffer), acc);
            }
            s.store(s.div(acc, sum), &mut buffer);
            out[c..][..left].copy_from_slice(&buffer[..left]);
        }
    }
}

/// Fetches what lies `distance` floats after `xs`.
#[inline(always)]
fn fetch<S: Simd>(s: S, xs: &[f32], distance: usize) {
    for line in xs.chunks(LINE) {
        s.prefetch(line.as_ptr().wrapping_add(distance));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;
    use crate::testing::{bits, noise, same_everywhere};

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

        #[test]
        fn is_right_and_no_query_depends_on_the_call(
            seed in 0..1000_u64,
            n_queries in 1..60_usize,
            dim in 1..70_usize,
            window in 1..50_usize,
        ) {
            // Causal, over a window, as in the transformers of codecs.
            let visible = |i: usize| (i + 1).saturating_sub(window)..i + 1;
            let scale = 2.0;
            let (q, k) = (noise(seed, n_queries * dim), noise(seed + 1, n_queries * dim));
            let v = noise(seed + 2, n_queries * dim);
            let got = same_everywhere(|| {
                let mut out = vec![0.0; q.len()];
                attention(&q, &k, &v, Heads::one(dim), scale, visible, &mut out).unwrap();
                out
            });
            for i in 0..n_queries {
                let rows = visible(i).start * dim..visible(i).end * dim;
                let (k, v, q) = (&k[rows.clone()], &v[rows], &q[i * dim..][..dim]);
                // Alone, with its keys at another place.
                let mut alone = vec![0.0; dim];
                attention(q, k, v, Heads::one(dim), scale, |_| 0..k.len() / dim, &mut alone).unwrap();
                assert_eq!(bits(&got[i * dim..][..dim]), bits(&alone));
                let weights: Vec<f64> = k
                    .chunks_exact(dim)
                    .map(|k| {
                        let dot: f64 = k.iter().zip(q).map(|(&k, &q)| f64::from(k) * f64::from(q)).sum();
                        (dot * f64::from(scale)).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for (c, &got) in alone.iter().enumerate() {
                    let values = v.chunks_exact(dim).map(|v| f64::from(v[c]));
                    let want = weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / sum;
                    // Scores of up to 140 carry an error of a few 2^-17.
                    assert!((f64::from(got) - want).abs() < 5e-5, "query {i}, {c}: {got} against {want}");
                }
            }
        }
    }

    #[test]
    fn heads_are_runs_of_channels_and_share_keys() {
        let (n_queries, dim) = (7, 20);
        for (n_heads, n_kv_heads) in [(1, 1), (3, 3), (6, 2), (4, 1)] {
            let heads = Heads { n_heads, n_kv_heads, dim };
            let q = noise(1, n_queries * n_heads * dim);
            let (k, v) = (noise(2, n_queries * n_kv_heads * dim), noise(3, n_queries * n_kv_heads * dim));
            let visible = |i: usize| i.saturating_sub(3)..i + 1;
            let got = same_everywhere(|| {
                let mut out = vec![0.0; q.len()];
                attention(&q, &k, &v, heads, 0.7, visible, &mut out).unwrap();
                out
            });
            // A head alone, copied out of the rows, gives the same bits.
            let head = |xs: &[f32], n_heads: usize, head_idx: usize| -> Vec<f32> {
                xs.chunks_exact(n_heads * dim).flat_map(|row| row[head_idx * dim..][..dim].to_vec()).collect()
            };
            for head_idx in 0..n_heads {
                let kv_idx = head_idx * n_kv_heads / n_heads;
                let q = head(&q, n_heads, head_idx);
                let (k, v) = (head(&k, n_kv_heads, kv_idx), head(&v, n_kv_heads, kv_idx));
                let mut want = vec![0.0; q.len()];
                attention(&q, &k, &v, Heads::one(dim), 0.7, visible, &mut want).unwrap();
                assert_eq!(bits(&head(&got, n_heads, head_idx)), bits(&want), "head {head_idx} of {heads:?}");
            }
        }
    }

    #[test]
    fn a_query_without_keys_gets_zeros() {
        let mut out = [1.0; 4];
        attention(&[1.0; 4], &[1.0; 2], &[3.0; 2], Heads::one(2), 1.0, |i| 0..i, &mut out).unwrap();
        assert_eq!(out, [0.0, 0.0, 3.0, 3.0]);
    }

    #[test]
    fn ranges_and_sizes_that_disagree_are_refused() {
        let refused =
            attention(&[1.0; 4], &[1.0; 2], &[3.0; 2], Heads::one(2), 1.0, |i| 0..i + 1, &mut [0.0; 4]);
        assert_eq!(refused, Err(Error::KeyRange { query_idx: 1, start: 0, end: 2, n_keys: 1 }));
        assert!(
            attention(&[1.0; 3], &[1.0; 2], &[3.0; 2], Heads::one(2), 1.0, |_| 0..1, &mut [0.0; 3]).is_err()
        );
        assert!(
            attention(&[1.0; 4], &[1.0; 2], &[3.0; 4], Heads::one(2), 1.0, |_| 0..1, &mut [0.0; 4]).is_err()
        );
        assert!(
            attention(&[1.0; 4], &[1.0; 2], &[3.0; 2], Heads::one(2), 1.0, |_| 0..1, &mut [0.0; 2]).is_err()
        );
        for heads in [
            Heads { n_heads: 3, n_kv_heads: 2, dim: 1 },
            Heads { n_heads: 1, n_kv_heads: 0, dim: 1 },
            Heads { n_heads: usize::MAX, n_kv_heads: 1, dim: 2 },
            Heads { n_heads: 0, n_kv_heads: 1, dim: 2 },
            Heads::one(0),
        ] {
            assert!(attention(&[], &[], &[], heads, 1.0, |_| 0..0, &mut []).is_err(), "{heads:?}");
        }
    }
}
