//! Gradients against finite differences.

use crate::error::Result;
use crate::rng::Rng;
use candle_core::{DType, Device, Tensor, Var};

/// Half the distance of the central differences.
const STEP: f64 = 1e-5;
/// Largest difference between a gradient in `f32` and a central difference in `f64`, relative to the largest
/// gradient.
const TOLERANCE: f64 = 1e-3;

/// Values in [-1, 1).
pub(crate) fn noise(seed: u64, dims: &[usize]) -> Tensor {
    let mut rng = Rng::of(seed, "noise", 0);
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.between(-1.0, 1.0) as f32).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

pub(crate) fn values(xs: &Tensor) -> Vec<f64> {
    xs.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
pub(crate) fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let scale = want.iter().fold(1e-6_f64, |scale, x| scale.max(x.abs()));
    for (i, (x, y)) in got.iter().zip(want).enumerate() {
        assert!((x - y).abs() <= tolerance * scale, "{what}: at {i} {x} instead of {y}, scale {scale}");
    }
}

/// Checks the gradient of a scalar function in `f32` against central differences of the same in `f64`.
#[track_caller]
pub(crate) fn check_gradient(
    xs: &Tensor,
    fast: impl Fn(&Tensor) -> Result<Tensor>,
    precise: impl Fn(&Tensor) -> Result<Tensor>,
) {
    let var = Var::from_tensor(xs).unwrap();
    let grads = fast(&var).unwrap().backward().unwrap();
    let got = values(grads.get(&var).expect("a gradient"));
    let at = values(xs);
    let want: Vec<f64> = (0..at.len())
        .map(|i| {
            let moved = |step: f64| {
                let mut moved = at.clone();
                moved[i] += step;
                let moved = Tensor::from_vec(moved, xs.dims(), &Device::Cpu).unwrap();
                values(&precise(&moved).unwrap())[0]
            };
            (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
        })
        .collect();
    assert!(want.iter().any(|x| x.abs() > 1e-6), "no influence");
    assert_close("gradient", &got, &want, TOLERANCE);
}
