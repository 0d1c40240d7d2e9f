//! Products against one chain of multiply-adds per element, and against f64.

use proptest::prelude::{Just, Strategy, prop_oneof, proptest};

use super::*;
use crate::testing::{bits, noise, same_everywhere};

/// One product with overlapping or spaced rows.
#[derive(Clone, Debug)]
struct Case {
    m: usize,
    k: usize,
    n: usize,
    pitch: usize,
    start: u8,
    seed: u64,
}

impl Case {
    fn data(&self) -> Vec<f32> {
        noise(self.seed, self.m.saturating_sub(1) * self.pitch + self.k)
    }

    fn matrix(&self) -> (Vec<f32>, PackedMatrix) {
        let weights = noise(self.seed + 1, self.k * self.n);
        let matrix = PackedMatrix::new(&weights, self.k, self.n).unwrap();
        (weights, matrix)
    }

    fn start<'a>(&self, bias: &'a [f32]) -> Start<'a> {
        [Start::Zero, Start::Bias(bias), Start::Accumulate][usize::from(self.start)]
    }

    fn reference(&self) -> Vec<f32> {
        self.chains(&self.matrix().0)
    }

    /// The definition: one chain per element.
    fn chains(&self, weights: &[f32]) -> Vec<f32> {
        let data = self.data();
        let (bias, mut out) = (noise(self.seed + 2, self.n), noise(self.seed + 3, self.m * self.n));
        for (i, out) in out.iter_mut().enumerate() {
            let (row, column) = (i / self.n, i % self.n);
            let start = [0.0, bias[column], *out][usize::from(self.start)];
            *out = (0..self.k)
                .fold(start, |acc, j| data[row * self.pitch + j].mul_add(weights[j * self.n + column], acc));
        }
        out
    }

    fn run(&self) -> Vec<f32> {
        let (data, (_, matrix)) = (self.data(), self.matrix());
        let (bias, mut out) = (noise(self.seed + 2, self.n), noise(self.seed + 3, self.m * self.n));
        let rows = Rows::new(&data, self.m, self.k, self.pitch).unwrap();
        gemm(rows, &matrix, self.start(&bias), &mut out).unwrap();
        out
    }
}

fn cases() -> impl Strategy<Value = Case> {
    // Every remainder of tiles and panels, and sizes that are split over threads and parts of k.
    let small = (1..40_usize, 0..40_usize, 1..70_usize);
    let paired = (13..110_usize, 1..40_usize, 49..200_usize);
    let tall = (300..900_usize, 1..40_usize, prop_oneof![1..6_usize, 30..70_usize]);
    let deep = (1..110_usize, 500..1100_usize, prop_oneof![1..6_usize, 10..34_usize, 49..140_usize]);
    let wide = (1..4_usize, 300..600_usize, 900..1300_usize);
    // Pairs of panels within the part of a thread, and what they fetch ahead.
    let shared = (13..96_usize, 400..1100_usize, 145..340_usize);
    let sizes = prop_oneof![4 => small, 2 => paired, 2 => tall, 1 => deep, 1 => wide, 1 => shared];
    // The last ones are those of rows that collide in the cache.
    let pitches = prop_oneof![4 => 1..80_usize, 1 => Just(COLLIDING_PITCH), 1 => Just(2 * COLLIDING_PITCH)];
    (sizes, pitches, 0..3_u8, 0..1000_u64).prop_map(|((m, k, n), pitch, start, seed)| Case {
        m,
        k,
        n,
        pitch,
        start,
        seed,
    })
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(96))]

    #[test]
    fn is_one_chain_on_every_level_and_number_of_threads(case in cases()) {
        let got = same_everywhere(|| case.run());
        assert_eq!(bits(&case.reference()), bits(&got));
    }

    #[test]
    fn the_order_of_the_panels_does_not_matter(case in cases(), quantized: bool) {
        let (data, (mut weights, mut matrix)) = (case.data(), case.matrix());
        if quantized {
            quantize_columns(&mut weights, case.n).unwrap();
            matrix = PackedMatrix::new(&weights, case.k, case.n).unwrap();
        }
        let bias = noise(case.seed + 2, case.n);
        let run = |order: Order| {
            let mut out = noise(case.seed + 3, case.m * case.n);
            let rows = Rows::new(&data, case.m, case.k, case.pitch).unwrap();
            gemm_in_order(rows, &matrix, case.start(&bias), &mut out, order).unwrap();
            out
        };
        assert_eq!(bits(&run(Order::Forwards)), bits(&same_everywhere(|| run(Order::Backwards))));
    }

    #[test]
    fn does_not_depend_on_the_other_rows_of_the_call(case in cases(), cuts in [0.0..1.0, 0.0..1.0]) {
        let whole = case.run();
        let (data, (_, matrix)) = (case.data(), case.matrix());
        let (bias, mut out) = (noise(case.seed + 2, case.n), noise(case.seed + 3, case.m * case.n));
        let mut cuts = cuts.map(|cut: f64| (cut * case.m as f64) as usize);
        cuts.sort_unstable();
        for rows in [0..cuts[0], cuts[0]..cuts[1], cuts[1]..case.m] {
            let part = Rows::new(&data[rows.start * case.pitch..], rows.len(), case.k, case.pitch).unwrap();
            let out = &mut out[rows.start * case.n..rows.end * case.n];
            gemm(part, &matrix, case.start(&bias), out).unwrap();
        }
        assert_eq!(bits(&whole), bits(&out));
    }

    #[test]
    fn is_within_the_bound_of_an_exact_product(case in cases()) {
        let (data, (weights, _)) = (case.data(), case.matrix());
        let (bias, old) = (noise(case.seed + 2, case.n), noise(case.seed + 3, case.m * case.n));
        for (i, &got) in case.run().iter().enumerate() {
            let (row, column) = (i / case.n, i % case.n);
            let start = f64::from([0.0, bias[column], old[i]][usize::from(case.start)]);
            let (mut sum, mut size) = (start, start.abs());
            for j in 0..case.k {
                let term =
                    f64::from(data[row * case.pitch + j]) * f64::from(weights[j * case.n + column]);
                sum += term;
                size += term.abs();
            }
            // Each of the k roundings is at most half an ulp of a partial sum.
            let bound = case.k as f64 * f64::from(f32::EPSILON) / 2.0 * size;
            let off = (f64::from(got) - sum).abs();
            assert!(off <= bound, "element {i}: {got} against {sum}, off by {off}, bound {bound}");
        }
    }

    #[test]
    fn a_product_in_two_parts_of_k_is_the_same_chain(case in cases(), cut in 0.0..1.0) {
        let whole = case.run();
        let (data, (weights, _)) = (case.data(), case.matrix());
        let (bias, mut out) = (noise(case.seed + 2, case.n), noise(case.seed + 3, case.m * case.n));
        let cut = (cut * case.k as f64) as usize;
        for (k, start) in [(0..cut, case.start(&bias)), (cut..case.k, Start::Accumulate)] {
            let part = &weights[k.start * case.n..k.end * case.n];
            let matrix = PackedMatrix::new(part, k.len(), case.n).unwrap();
            let rows = Rows::new(&data[k.start..], case.m, k.len(), case.pitch).unwrap();
            gemm(rows, &matrix, start, &mut out).unwrap();
        }
        assert_eq!(bits(&whole), bits(&out));
    }
}

#[test]
fn tiles_fetch_every_line_of_the_panels_ahead_once() {
    let (depth, k) = (40, 100);
    for (n_panels, lines_per_step) in [(1, 1), (1, 2), (2, 2)] {
        let to_panel = PANEL * k;
        let values = vec![0.0_f32; n_panels * to_panel];
        let ahead = Ahead { first: values.as_ptr(), n_panels, lines_per_step, to_panel };
        let mut want: Vec<usize> = (0..n_panels)
            .flat_map(|panel| (0..depth * lines_per_step).map(move |line| panel * to_panel + line * LINE))
            .collect();
        want.sort_unstable();
        for n_tiles in n_panels..9 {
            let fetched = (0..n_tiles).filter_map(|tile_idx| ahead.share(tile_idx, n_tiles, depth));
            let mut lines: Vec<usize> = fetched
                .flat_map(|Fetch { next, n_lines }| {
                    let first = (next.addr() - values.as_ptr().addr()) / size_of::<f32>();
                    (0..depth * n_lines).map(move |line| first + line * LINE)
                })
                .collect();
            lines.sort_unstable();
            assert_eq!(lines, want, "{n_panels} panels, {n_tiles} tiles");
        }
    }
}

#[test]
fn pairs_of_panels_give_the_chains_of_single_ones() {
    // Large enough to be fetched ahead; whole, odd and half panels at the end.
    for m in [1, 2, 3, 4, 13, 19, 97] {
        for n in [96, 112, 113, 160] {
            for pitch in [7, COLLIDING_PITCH] {
                let case = Case { m, k: 1500, n, pitch, start: 1, seed: 9 };
                assert_eq!(bits(&case.reference()), bits(&same_everywhere(|| case.run())), "{m} {n} {pitch}");
            }
        }
    }
}

#[test]
fn a_row_or_two_give_the_same_chains_with_bytes_and_backwards() {
    for m in [1, 2, 3] {
        for n in [49, 96, 113, 145, 177, 400] {
            let case = Case { m, k: 600, n, pitch: 600, start: 1, seed: 5 };
            let (data, bias, mut weights) = (case.data(), noise(case.seed + 2, n), case.matrix().0);
            for is_quantized in [false, true] {
                if is_quantized {
                    quantize_columns(&mut weights, n).unwrap();
                }
                let matrix = PackedMatrix::new(&weights, case.k, n).unwrap();
                assert_eq!(matches!(matrix.weights, Weights::Bytes { .. }), is_quantized);
                let want = bits(&case.chains(&weights));
                for order in [Order::Forwards, Order::Backwards] {
                    let got = same_everywhere(|| {
                        let mut out = vec![0.0; m * n];
                        let rows = Rows::new(&data, m, case.k, case.pitch).unwrap();
                        gemm_in_order(rows, &matrix, case.start(&bias), &mut out, order).unwrap();
                        out
                    });
                    assert_eq!(bits(&got), want, "{m} rows, {n} columns, {is_quantized}, {order:?}");
                }
            }
        }
    }
}

#[test]
fn unpacking_undoes_packing() {
    for (k, n) in [(0, 3), (5, 1), (7, 4), (3, 16), (9, 17), (4, 32), (6, 33), (2, 80)] {
        let weights = noise(1, k * n);
        assert_eq!(PackedMatrix::new(&weights, k, n).unwrap().unpacked(), weights, "{k} x {n}");
        assert_eq!(PackedMatrix::for_transposed(&weights, k, n).unwrap().unpacked(), weights, "{k} x {n}");
    }
}

#[test]
fn packing_the_transpose_gives_the_same_matrix() {
    for n in [1, 4, 5, 16, 17, 33, 64] {
        let (k, weights) = (7, noise(1, 7 * n));
        let transposed: Vec<f32> = (0..k * n).map(|i| weights[i % k * n + i / k]).collect();
        let (a, b) = (
            PackedMatrix::new(&weights, k, n).unwrap(),
            PackedMatrix::from_transposed(&transposed, k, n).unwrap(),
        );
        assert_eq!(a.weights, b.weights);
        assert_eq!((a.k(), a.n()), (k, n));
    }
}

#[test]
fn sizes_that_disagree_are_refused() {
    let matrix = PackedMatrix::new(&[0.0; 6], 2, 3).unwrap();
    let data = [0.0; 5];
    assert!(PackedMatrix::new(&[0.0; 5], 2, 3).is_err());
    assert!(PackedMatrix::new(&[], usize::MAX, 2).is_err());
    assert!(PackedMatrix::new(&[], 0, usize::MAX).unwrap().unpacked().is_empty());
    assert!(Rows::new(&data, 2, 2, 0).is_err());
    assert!(Rows::new(&data, usize::MAX, 2, 2).is_err());
    let short = Rows::new(&data, 3, 2, 2).unwrap_err();
    assert_eq!(short, Error::Shape { what: "rows", expected: 6, actual: 5 });
    let rows = Rows::new(&data, 2, 2, 3).unwrap();
    assert!(gemm(rows, &matrix, Start::Zero, &mut [0.0; 5]).is_err());
    assert!(gemm(rows, &matrix, Start::Bias(&[0.0; 2]), &mut [0.0; 6]).is_err());
    let wrong = Rows::new(&data, 2, 1, 3).unwrap();
    assert!(gemm(wrong, &matrix, Start::Zero, &mut [0.0; 6]).is_err());
    let none = Rows::new(&[], 0, 2, 2).unwrap();
    gemm(none, &matrix, Start::Zero, &mut []).unwrap();
}
