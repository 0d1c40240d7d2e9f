//! What the quantizers' tests share: noise, a slow search in f64, and the laws that all keep.

use crate::error::Error;
use crate::quantizer::{Distance, Latents, Quantizer};
use proptest::prelude::*;

/// Noise of an approximately normal distribution, from a seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    // Four uniform numbers of variance 1/12 each make up a variance of 1/3.
    (0..len).map(|_| (uniform() + uniform() + uniform() + uniform()) * 3.0_f32.sqrt()).collect()
}

/// The two smallest distances of `x` to the entries, in f64, with the index of the smallest.
pub(crate) fn brute_force(x: &[f64], codebook: &[f32], distance: Distance) -> (usize, f64, f64) {
    let unit = |v: &[f64]| -> Vec<f64> {
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
        v.iter().map(|x| x / norm).collect()
    };
    let scale = |v: &[f64]| if distance == Distance::Cosine { unit(v) } else { v.to_vec() };
    let x = scale(x);
    let mut best = (0, f64::INFINITY, f64::INFINITY);
    for (idx, entry) in codebook.chunks_exact(x.len()).enumerate() {
        let entry = scale(&entry.iter().map(|&e| f64::from(e)).collect::<Vec<_>>());
        let d: f64 = x.iter().zip(&entry).map(|(x, e)| (x - e) * (x - e)).sum();
        if d < best.1 {
            best = (idx, d, best.1);
        } else if d < best.2 {
            best.2 = d;
        }
    }
    best
}

/// Largest relative error of a computed distance: `dim` products and a few roundings, each half a
/// unit in the last place of at most `|x|^2 + |e|^2 + 2 |x| |e|`.
pub(crate) fn float_error(dim: usize, magnitude: f64) -> f64 {
    (dim as f64 + 8.0) * f64::from(f32::EPSILON) * magnitude
}

/// Checks what every quantizer promises, on noise: any prefix of the codebooks encodes to the same
/// first rows; frames in pieces, or on one, two or three threads, give the same bits both ways.
#[track_caller]
pub(crate) fn check_laws(quantizer: &(impl Quantizer + ?Sized), n_frames: usize) {
    let (layout, dim) = (quantizer.layout(), quantizer.dim());
    let stride = layout.stride_frames() as usize;
    let n_frames = n_frames.next_multiple_of(stride);
    let xs = noise(n_frames as u64, n_frames * dim);
    let latents = Latents::new(&xs, dim).unwrap();
    let n_codebooks = layout.n_codebooks();
    let all = quantizer.encode(latents, n_codebooks).unwrap();
    for (row, spec) in all.rows().zip(layout.codebooks()) {
        let distinct: std::collections::HashSet<_> = row.iter().collect();
        assert!(n_frames < 32 || spec.size == 1 || distinct.len() > 1, "a codebook is used with one code");
    }

    for n in 1..=n_codebooks {
        let prefix = quantizer.encode(latents, n).unwrap();
        assert_eq!(prefix, all.truncated(n).unwrap(), "the first {n} codebooks");
        let decoded = bits(&quantizer.decode(&prefix).unwrap());
        assert_eq!(decoded.len(), n_frames * dim);

        for blocks_per_piece in [1, 3, 100] {
            let mut codes = crate::Codes::empty(prefix.layout().as_ref().clone());
            let mut pieces = Vec::new();
            for piece in xs.chunks(blocks_per_piece * stride * dim) {
                let piece = quantizer.encode(Latents::new(piece, dim).unwrap(), n).unwrap();
                pieces.extend(bits(&quantizer.decode(&piece).unwrap()));
                codes.append(&piece).unwrap();
            }
            assert_eq!(codes, prefix, "codes in pieces of {blocks_per_piece} blocks");
            assert_eq!(pieces, decoded, "latents in pieces of {blocks_per_piece} blocks");
        }
    }

    let mut out = vec![0.0; n_frames * dim];
    let rows: Vec<&[u32]> = all.rows().collect();
    quantizer.decode_to(&rows, &mut out).unwrap();
    assert_eq!(bits(&out), bits(&quantizer.decode(&all).unwrap()), "into values of before");
    let mut odd = rows.clone();
    odd[0] = &rows[0][1..];
    assert!(matches!(quantizer.decode_to(&odd, &mut out), Err(Error::Shape { .. })), "a row is too short");
    let beyond = vec![layout.codebooks()[0].size; rows[0].len()];
    odd[0] = &beyond;
    assert!(matches!(quantizer.decode_to(&odd, &mut out), Err(Error::Code { .. })), "no such code");
    for none in [&[][..], &[&rows[..], &rows[..1]].concat()[..]] {
        assert!(matches!(quantizer.decode_to(none, &mut out), Err(Error::Range { .. })), "no such codebooks");
    }

    for n_threads in 1..=3 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let (codes, decoded) = pool.install(|| {
            let codes = quantizer.encode(latents, n_codebooks).unwrap();
            let decoded = quantizer.decode(&codes).unwrap();
            (codes, decoded)
        });
        assert_eq!(codes, all, "{n_threads} threads");
        assert_eq!(bits(&decoded), bits(&quantizer.decode(&all).unwrap()), "{n_threads} threads");
    }
}

/// Calls a quantizer with what it may refuse but must survive.
#[track_caller]
pub(crate) fn check_hostile(
    quantizer: &(impl Quantizer + ?Sized),
    xs: &[f32],
    dim: usize,
    n_codebooks: usize,
) {
    let Ok(latents) = Latents::new(xs, dim) else { return };
    match quantizer.encode(latents, n_codebooks) {
        Ok(codes) => {
            assert!(xs.iter().all(|x| x.is_finite()));
            assert_eq!(codes.n_frames(), latents.n_frames());
            assert_eq!(codes.n_codebooks(), n_codebooks);
            assert_eq!(quantizer.decode(&codes).unwrap().len(), xs.len());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Any f32, most of them finite; among them zeros, infinities, and the largest and smallest numbers.
pub(crate) fn hostile_f32() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -2.0_f32..2.0,
        2 => any::<f32>().prop_filter("finite", |x| x.is_finite()),
        1 => Just(0.0),
        1 => Just(f32::MAX),
        1 => Just(f32::MIN),
        1 => Just(f32::MIN_POSITIVE / 4.0),
        1 => prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY)],
    ]
}

/// Any size, most of them small.
pub(crate) fn hostile_size() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0_usize..6, 1 => Just(usize::MAX), 1 => Just(usize::MAX / 2 + 1), 1 => any::<usize>()]
}

/// The bit patterns: equality that tells -0 from 0.
pub(crate) fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}
