//! Deterministic CPU arithmetic for neural audio codecs: the same bits on every machine.

mod attention;
mod depthwise;
mod elementwise;
mod error;
mod gemm;
mod lstm;
mod pool;
mod reduce;
mod simd;

pub use attention::attention;
pub use depthwise::{Depthwise, depthwise};
pub use elementwise::{Unary, snake, unary, unary_in_place};
pub use error::{Error, Result};
pub use gemm::{PackedMatrix, Rows, Start, gemm};
pub use lstm::{lstm_cell, lstm_sequence};
pub use reduce::{argmax, argmin, group_norm, layer_norm, softmax, squared_norms};
pub use simd::{Level, available_levels, level, with_level};
#[cfg(test)]
mod smoke {
    use super::*;
    #[test]
    fn gemm_all_levels() {
        let mut seed = 1u32;
        let mut r = |n: usize| -> Vec<f32> {
            (0..n)
                .map(|_| {
                    seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
                    (seed >> 8) as f32 / 8388608.0 - 1.0
                })
                .collect()
        };
        for n in [1, 2, 3, 4, 5, 8, 16, 17, 31, 32, 33, 48, 65, 130] {
            for (m, k, pitch) in [(1, 7, 7), (13, 21, 3), (100, 96, 32), (67, 5, 9), (200, 1, 1)] {
                let (a, w, bias) = (r((m - 1) * pitch + k), r(k * n), r(n));
                let p = PackedMatrix::new(&w, k, n).unwrap();
                let rows = Rows::new(&a, m, k, pitch).unwrap();
                let mut want = vec![0.0f32; m * n];
                for i in 0..m {
                    for j in 0..n {
                        let mut x = bias[j];
                        for l in 0..k {
                            x = a[i * pitch + l].mul_add(w[l * n + j], x);
                        }
                        want[i * n + j] = x;
                    }
                }
                for l in available_levels() {
                    let mut got = vec![0.0; m * n];
                    with_level(l, || gemm(rows, &p, Start::Bias(&bias), &mut got)).unwrap().unwrap();
                    assert_eq!(want, got, "{l:?} {m} {k} {n}");
                }
            }
        }
    }
    #[test]
    fn elementwise_errors() {
        let f: [(Unary, fn(f64) -> f64); 6] = [
            (Unary::Exp, f64::exp),
            (Unary::Sin, f64::sin),
            (Unary::Tanh, f64::tanh),
            (Unary::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
            (Unary::Silu, |x| x / (1.0 + (-x).exp())),
            (Unary::Elu { alpha: 1.0 }, |x| if x > 0.0 { x } else { x.exp_m1() }),
        ];
        for (op, f) in f {
            let xs: Vec<f32> = (0..1u32 << 20)
                .map(|i| f32::from_bits(i.wrapping_mul(4093)))
                .filter(|x| x.is_finite())
                .collect();
            let mut ys = vec![0.0; xs.len()];
            unary(op, &xs, &mut ys).unwrap();
            let mut worst = (0.0, 0.0, 0.0);
            for (&x, &y) in xs.iter().zip(&ys) {
                let want = f(x as f64);
                let w = want as f32;
                if w.is_infinite() {
                    assert_eq!(w, y, "{op:?} {x}");
                    continue;
                }
                let ulp = ((w.abs().next_up() - w.abs()) as f64).max(1.5e-45);
                let e = (y as f64 - want).abs() / ulp;
                if !(e <= worst.0) {
                    worst = (e, x, y);
                }
            }
            println!("{op:?} {worst:?}");
            assert!(worst.0 < 2.0);
        }
    }
}
