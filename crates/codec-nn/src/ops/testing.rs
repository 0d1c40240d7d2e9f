//! What the tests of operations and layers share: seeded values and comparisons that say where they fail.

use crate::Result;
use candle_core::{DType, Device, Tensor, Var};

/// Largest difference between the kernel path and the plain path, relative to the largest value: both are
/// `f32`, and sums here have at most a few hundred terms.
const PATH_TOLERANCE: f64 = 1e-5;

/// Largest difference between a gradient in `f32` and a central difference in `f64`, relative to the largest
/// gradient: the difference itself is good to about 1e-7.
const GRADIENT_TOLERANCE: f64 = 1e-4;

/// Half the distance of the central differences.
const STEP: f64 = 1e-4;

/// A seeded source of numbers (xorshift64*).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed | 1 << 63)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }

    /// In [-1, 1).
    pub(crate) fn uniform(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Values in [-1, 1).
    pub(crate) fn tensor(&mut self, dims: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| self.uniform()).collect();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    }

    /// Whole numbers in -4..=4, of which small sums of products are exact in `f32`.
    pub(crate) fn integers(&mut self, dims: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| self.below(9) as f32 - 4.0).collect();
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
    }
}

pub(crate) fn values(xs: &Tensor) -> Vec<f64> {
    xs.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn bits(xs: &Tensor) -> Vec<u32> {
    xs.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Fails with the worst position when two lists differ by more than `tolerance` times the largest value.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let scale = want.iter().fold(1e-3f64, |scale, x| scale.max(x.abs()));
    let errors = got.iter().zip(want).map(|(x, y)| (x - y).abs());
    let (worst, error) = errors.enumerate().fold((0, 0.0), |worst, e| if e.1 > worst.1 { e } else { worst });
    assert!(
        error <= tolerance * scale,
        "{what}: at {worst} {} instead of {}, scale {scale}",
        got[worst],
        want[worst]
    );
    assert!(got.iter().all(|x| x.is_finite()), "{what}: not finite");
}

/// Checks an operation: the kernel path agrees with the plain path, and its gradients for every argument
/// agree with central differences of the plain path in `f64`.
#[track_caller]
pub(crate) fn check_op<const N: usize>(
    rng: &mut Rng,
    args: [Tensor; N],
    kernel: impl Fn([&Tensor; N]) -> Result<Tensor>,
    plain: impl Fn([&Tensor; N]) -> Result<Tensor>,
) {
    let ys = kernel(args.each_ref()).unwrap();
    assert!(!ys.track_op(), "a graph was built where nothing tracks a gradient");
    let want = plain(args.each_ref()).unwrap();
    assert_eq!(ys.dims(), want.dims());
    assert_close("kernel and plain path", &values(&ys), &values(&want), PATH_TOLERANCE);

    let mask = rng.tensor(ys.dims());
    let vars = args.each_ref().map(|arg| Var::from_tensor(arg).unwrap());
    let loss = (kernel(vars.each_ref().map(Var::as_tensor)).unwrap() * &mask).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();

    let precise = args.each_ref().map(|arg| arg.to_dtype(DType::F64).unwrap());
    let mask = mask.to_dtype(DType::F64).unwrap();
    for (arg_idx, arg) in precise.iter().enumerate() {
        let got =
            values(grads.get(&vars[arg_idx]).unwrap_or_else(|| panic!("argument {arg_idx} has no gradient")));
        let mut want = vec![0.0; got.len()];
        for (value_idx, want) in want.iter_mut().enumerate() {
            let loss = |step: f64| {
                let mut moved = values(arg);
                moved[value_idx] += step;
                let moved = Tensor::from_vec(moved, arg.dims(), &Device::Cpu).unwrap();
                let mut inputs = precise.each_ref();
                inputs[arg_idx] = &moved;
                let ys = plain(inputs).unwrap();
                (ys * &mask).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
            };
            *want = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
        }
        assert!(want.iter().any(|x| x.abs() > 1e-3), "argument {arg_idx} has no influence");
        assert_close(&format!("gradient of argument {arg_idx}"), &got, &want, GRADIENT_TOLERANCE);

        // Alone, as when the other arguments are frozen.
        let mut inputs = args.each_ref();
        inputs[arg_idx] = vars[arg_idx].as_tensor();
        let mask = mask.to_dtype(DType::F32).unwrap();
        let loss = (kernel(inputs).unwrap() * mask).unwrap().sum_all().unwrap();
        let alone = values(loss.backward().unwrap().get(&vars[arg_idx]).unwrap());
        assert_eq!(alone, got, "the gradient of argument {arg_idx} depends on who else tracks one");
    }
}
