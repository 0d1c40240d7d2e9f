//! What the tests share: numbers, bits, and every way in which a call may run.

use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::simd::{available_levels, with_level};

/// `n` numbers in [-1, 1), the same for the same seed.
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The bits of each number, which unlike the numbers tell 0 from -0.
pub(crate) fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}

/// Runs `f` on every level of this CPU in pools of one, two and three threads; all must give the bits of the
/// first, which are returned.
pub(crate) fn same_everywhere(f: impl Fn() -> Vec<f32> + Sync) -> Vec<f32> {
    static POOLS: OnceLock<Vec<ThreadPool>> = OnceLock::new();
    let pools = POOLS.get_or_init(|| {
        (1..=3).map(|n| ThreadPoolBuilder::new().num_threads(n).build().expect("threads")).collect()
    });
    let mut first: Option<Vec<f32>> = None;
    for pool in pools {
        for level in available_levels() {
            let got = pool.install(|| with_level(level, &f)).expect("an available level");
            let want = first.get_or_insert_with(|| got.clone());
            let differs = want.iter().zip(&got).position(|(a, b)| a.to_bits() != b.to_bits());
            if let Some(i) = differs {
                let n_threads = pool.current_num_threads();
                panic!("{level:?}, {n_threads} threads: element {i} is {}, not {}", got[i], want[i]);
            }
            assert_eq!(want.len(), got.len());
        }
    }
    first.expect("at least one level")
}

/// The distance of `got` from `want` in units of the last place of an f32 of that size; 0 where both are the
/// same infinity or NaN.
pub(crate) fn ulps(got: f32, want: f64) -> f64 {
    let nearest = want as f32;
    if nearest.is_nan() || nearest.is_infinite() {
        let same = nearest.is_nan() && got.is_nan() || got == nearest;
        return if same { 0.0 } else { f64::INFINITY };
    }
    let magnitude = nearest.abs().min(f32::MAX.next_down());
    let unit = f64::from(magnitude.next_up()) - f64::from(magnitude);
    let distance = (f64::from(got) - want).abs() / unit;
    if distance.is_nan() { f64::INFINITY } else { distance }
}

/// Rows enough to be split over threads where `long`.
pub(crate) fn n_rows(long: bool, cols: usize) -> usize {
    if long { 3 * crate::pool::GRAIN / cols + 1 } else { 5 }
}

/// Fails with the worst position where the two are further apart than `bound`.
pub(crate) fn assert_close(got: &[f32], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(got) - want).abs();
        assert!(off <= bound, "element {i}: {got} against {want}, off by {off}, bound {bound}");
    }
}
