//! Attention of one head, query by query, so that no query's result depends on the others in the call.

use std::ops::Range;

use crate::error::{Error, Result, count_rows, expect_len};
use crate::pool;
use crate::reduce::{Dot, exp_and_sum};
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch, level};

/// Scaled dot-product attention of one head.
///
/// Query i sees the keys in `visible(i)`, counted from that range's start: where the range lies in `k` does not
/// change a bit. A query that sees no key gets zeros.
///
/// # Shapes
/// `q`, `out`: `[n_queries, dim]`; `k`, `v`: `[n_keys, dim]`; `visible(i)` lies within `0..n_keys`.
///
/// # Errors
/// [`Error::Shape`], [`Error::Uneven`] or [`Error::Zero`] where the sizes do not agree, [`Error::KeyRange`] for
/// a range outside the keys.
///
/// # Source
/// Vaswani et al. 2017, "Attention is all you need", eq. 1, with `scale` in place of 1/√dim.
pub fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    dim: usize,
    scale: f32,
    visible: impl Fn(usize) -> Range<usize> + Sync,
    out: &mut [f32],
) -> Result<()> {
    let n_queries = count_rows("dim", q.len(), dim)?;
    let n_keys = count_rows("dim", k.len(), dim)?;
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
    let n_threads = pool::threads_for(n_pairs.saturating_mul(dim), 4 * pool::GRAIN);
    pool::for_row_blocks(out, dim, 1, n_threads, |first, out| {
        let mut weights = Vec::new();
        for (i, out) in out.chunks_exact_mut(dim).enumerate() {
            let query_idx = first + i;
            let q = &q[query_idx * dim..][..dim];
            let keys = visible(query_idx);
            let span = keys.start * dim..keys.end * dim;
            // `visible` may answer differently the second time: a slice out of bounds would panic.
            let (Some(k), Some(v)) = (k.get(span.clone()), v.get(span)) else { continue };
            weights.resize(k.len() / dim, 0.0);
            dispatch(level, Query { q, k, v, scale, weights: &mut weights, out });
        }
    });
    Ok(())
}

struct Query<'a> {
    q: &'a [f32],
    /// Rows as long as `q`.
    k: &'a [f32],
    v: &'a [f32],
    scale: f32,
    /// One per key.
    weights: &'a mut [f32],
    out: &'a mut [f32],
}

impl Kernel for Query<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { q, k, v, scale, weights, out } = self;
        let dim = q.len();
        if weights.is_empty() {
            out.fill(0.0);
            return;
        }
        for (weight, k) in weights.iter_mut().zip(k.chunks_exact(dim)) {
            *weight = Dot { a: q, b: k }.run(s) * scale;
        }
        let sum = exp_and_sum(s, weights);
        let mut c = 0;
        while c < dim {
            let left = (dim - c).min(S::LANES);
            let mut acc = s.splat(0.0);
            let mut buffer = [0.0; MAX_LANES];
            for (&weight, v) in weights.iter().zip(v.chunks_exact(dim)) {
                let v = if left == S::LANES {
                    s.load(&v[c..])
                } else {
                    buffer[..left].copy_from_slice(&v[c..]);
                    s.load(&buffer)
                };
                acc = s.fma(s.splat(weight), v, acc);
            }
            s.store(s.div(acc, s.splat(sum)), &mut buffer);
            out[c..][..left].copy_from_slice(&buffer[..left]);
            c += left;
        }
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
                attention(&q, &k, &v, dim, scale, visible, &mut out).unwrap();
                out
            });
            for i in 0..n_queries {
                let rows = visible(i).start * dim..visible(i).end * dim;
                let (k, v, q) = (&k[rows.clone()], &v[rows], &q[i * dim..][..dim]);
                // Alone, with its keys at another place.
                let mut alone = vec![0.0; dim];
                attention(q, k, v, dim, scale, |_| 0..k.len() / dim, &mut alone).unwrap();
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
    fn a_query_without_keys_gets_zeros() {
        let mut out = [1.0; 4];
        attention(&[1.0; 4], &[1.0; 2], &[3.0; 2], 2, 1.0, |i| 0..i, &mut out).unwrap();
        assert_eq!(out, [0.0, 0.0, 3.0, 3.0]);
    }

    #[test]
    fn ranges_and_sizes_that_disagree_are_refused() {
        let refused = attention(&[1.0; 4], &[1.0; 2], &[3.0; 2], 2, 1.0, |i| 0..i + 1, &mut [0.0; 4]);
        assert_eq!(refused, Err(Error::KeyRange { query_idx: 1, start: 0, end: 2, n_keys: 1 }));
        assert!(attention(&[1.0; 3], &[1.0; 2], &[3.0; 2], 2, 1.0, |_| 0..1, &mut [0.0; 3]).is_err());
        assert!(attention(&[1.0; 4], &[1.0; 2], &[3.0; 4], 2, 1.0, |_| 0..1, &mut [0.0; 4]).is_err());
        assert!(attention(&[1.0; 4], &[1.0; 2], &[3.0; 2], 2, 1.0, |_| 0..1, &mut [0.0; 2]).is_err());
    }
}
