//! Activations, from our own polynomials in fused multiply-adds.
//!
//! Where f32 alone would miss 2 ulp, a result is carried as an unevaluated sum of two f32 or in f64 lanes. Snake is
//! the exception: there the references compute in f32 and are no nearer, and f64 would take twice as long.
//! The bounds in the docs are the largest errors found against f64, rounded up, and a test sweeps the floats for
//! them; for subnormal results an ulp is the smallest float. A NaN gives a NaN; which bits it has is not
//! promised.

use self::functions::{
    Elu, Exp, Function, Gelu, GeluTanh, LeakyRelu, Relu, Sigmoid, SignedRoot, SignedSquare, Silu, Sin, Tanh,
    snake_lanes,
};
use crate::error::{Result, count_rows, expect_len};
use crate::memory::Memory;
use crate::pool;
use crate::simd::{Kernel, Level, MAX_LANES, Simd, dispatch, level};

pub(crate) mod functions;
mod gradients;

pub use self::gradients::{snake_gradient, unary_gradient};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Unary {
    /// e^x, within 1 ulp.
    Exp,
    /// sin x, within 0.51 ulp for every finite x.
    Sin,
    /// 1 / (1 + e^-x), within 1 ulp.
    Sigmoid,
    /// The hyperbolic tangent, within 1.5 ulp.
    Tanh,
    /// x sigmoid(x), within 1.1 ulp.
    Silu,
    /// x Φ(x), with the normal distribution's Φ (through erf), within 0.51 ulp.
    Gelu,
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, within 0.51 ulp.
    GeluTanh,
    /// x above zero, alpha (e^x - 1) below, within 1.5 ulp (1 ulp for an alpha of 1).
    Elu {
        /// The negated limit towards minus infinity.
        alpha: f32,
    },
    /// x above zero, slope x below, correctly rounded.
    LeakyRelu {
        /// The slope below zero.
        slope: f32,
    },
    /// x above zero, 0 below, exact.
    Relu,
    /// x / (x² + floor²)^¼, within 0.51 ulp: the root of the magnitude with the sign kept, and straight near
    /// zero.
    SignedRoot {
        /// Where the root begins to bend, above zero.
        floor: f32,
    },
    /// x √(x² + floor²), within 0.51 ulp: the square of the magnitude with the sign kept, and straight near
    /// zero.
    SignedSquare {
        /// Where the square begins to bend, not negative.
        floor: f32,
    },
}

/// Applies `op` to every element of `xs`.
///
/// # Errors
/// [`crate::Error::Shape`] where `out` is not as long as `xs`.
pub fn unary(op: Unary, xs: &[f32], out: &mut [f32]) -> Result<()> {
    expect_len("out", xs.len(), out.len())?;
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(out, 1, MAX_LANES, n_threads, |first, out| {
        apply(level, op, &xs[first..first + out.len()], out);
    });
    Ok(())
}

/// Applies `op` to every element of `xs`, in place.
pub fn unary_in_place(op: Unary, xs: &mut [f32]) {
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(xs, 1, MAX_LANES, n_threads, |_, xs| apply_in_place(level, op, xs));
}

/// The periodic activation `x + sin(alpha x)^2 / (alpha + 1e-9)`, within 3 ulp of the larger of x and the result.
///
/// # Shapes
/// `xs`, `out`: `[time, channels]`; `alpha`: `[channels]`, not negative.
///
/// # Errors
/// [`crate::Error::Shape`] and [`crate::Error::Uneven`] where the sizes do not agree.
///
/// # Source
/// Ziyin et al. 2020, "Neural networks fail to learn periodic functions and how to fix it", eq. 3.
pub fn snake(xs: &[f32], alpha: &[f32], out: &mut [f32]) -> Result<()> {
    snake_beta(xs, alpha, alpha, out)
}

/// [`snake`] whose waves have a height of their own: `x + sin(alpha x)^2 / (beta + 1e-9)`.
///
/// # Shapes
/// `xs`, `out`: `[time, channels]`; `alpha`, `beta`: `[channels]`, not negative.
///
/// # Errors
/// As [`snake`].
///
/// # Source
/// Lee et al. 2022, "BigVGAN: a universal neural vocoder with large-scale training", arXiv 2206.04658, in the
/// form of its code, NVIDIA/BigVGAN, activations.py.
pub fn snake_beta(xs: &[f32], alpha: &[f32], beta: &[f32], out: &mut [f32]) -> Result<()> {
    let channels = alpha.len();
    count_rows("xs", xs.len(), channels)?;
    expect_len("beta", channels, beta.len())?;
    expect_len("out", xs.len(), out.len())?;
    let mut memory = Memory::new(channels);
    for (inverse, &beta) in memory.values_mut().unwrap_or_default().iter_mut().zip(beta) {
        *inverse = (1.0 / (f64::from(beta) + 1e-9)) as f32;
    }
    let inverse = &memory.values()[..channels];
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(out, channels, 1, n_threads, |first, out| {
        let xs = &xs[first * channels..][..out.len()];
        dispatch(level, Snake { xs, alpha, inverse, out });
    });
    Ok(())
}

macro_rules! with_function {
    ($op:expr, $f:ident => $body:expr) => {
        match $op {
            Unary::Exp => {
                let $f = Exp;
                $body
            }
            Unary::Sin => {
                let $f = Sin;
                $body
            }
            Unary::Sigmoid => {
                let $f = Sigmoid;
                $body
            }
            Unary::Tanh => {
                let $f = Tanh;
                $body
            }
            Unary::Silu => {
                let $f = Silu;
                $body
            }
            Unary::Gelu => {
                let $f = Gelu;
                $body
            }
            Unary::GeluTanh => {
                let $f = GeluTanh;
                $body
            }
            Unary::Elu { alpha } => {
                let $f = Elu { alpha };
                $body
            }
            Unary::LeakyRelu { slope } => {
                let $f = LeakyRelu { slope };
                $body
            }
            Unary::Relu => {
                let $f = Relu;
                $body
            }
            Unary::SignedRoot { floor } => {
                let $f = SignedRoot { floor };
                $body
            }
            Unary::SignedSquare { floor } => {
                let $f = SignedSquare { floor };
                $body
            }
        }
    };
}

fn apply(level: Level, op: Unary, xs: &[f32], out: &mut [f32]) {
    with_function!(op, f => dispatch(level, Map { f, xs, out }));
}

fn apply_in_place(level: Level, op: Unary, xs: &mut [f32]) {
    with_function!(op, f => dispatch(level, MapInPlace { f, xs }));
}

struct Map<'a, F> {
    f: F,
    xs: &'a [f32],
    out: &'a mut [f32],
}

impl<F: Function> Kernel for Map<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut xs = self.xs.chunks_exact(S::LANES);
        let mut out = self.out.chunks_exact_mut(S::LANES);
        for (xs, out) in (&mut xs).zip(&mut out) {
            s.store(self.f.apply(s, s.load(xs)), out);
        }
        let (xs, out) = (xs.remainder(), out.into_remainder());
        if !xs.is_empty() {
            let mut buffer = [0.0; MAX_LANES];
            buffer[..xs.len()].copy_from_slice(xs);
            let y = self.f.apply(s, s.load(&buffer));
            s.store(y, &mut buffer);
            out.copy_from_slice(&buffer[..xs.len()]);
        }
    }
}

pub(crate) struct MapInPlace<'a, F> {
    pub(crate) f: F,
    pub(crate) xs: &'a mut [f32],
}

impl<F: Function> Kernel for MapInPlace<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut xs = self.xs.chunks_exact_mut(S::LANES);
        for xs in &mut xs {
            s.store(self.f.apply(s, s.load(xs)), xs);
        }
        let xs = xs.into_remainder();
        if !xs.is_empty() {
            let mut buffer = [0.0; MAX_LANES];
            buffer[..xs.len()].copy_from_slice(xs);
            let y = self.f.apply(s, s.load(&buffer));
            s.store(y, &mut buffer);
            xs.copy_from_slice(&buffer[..xs.len()]);
        }
    }
}

struct Snake<'a> {
    /// Whole rows of `alpha.len()` channels.
    xs: &'a [f32],
    alpha: &'a [f32],
    /// 1 / (beta + 1e-9), as many as `alpha`.
    inverse: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Snake<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let channels = self.alpha.len();
        let whole = channels - channels % S::LANES;
        let left = channels - whole;
        let (mut last_alpha, mut last_inverse) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
        last_alpha[..left].copy_from_slice(&self.alpha[whole..]);
        last_inverse[..left].copy_from_slice(&self.inverse[whole..]);
        for (xs, out) in self.xs.chunks_exact(channels).zip(self.out.chunks_exact_mut(channels)) {
            for c in (0..whole).step_by(S::LANES) {
                let (alpha, inverse) = (s.load(&self.alpha[c..]), s.load(&self.inverse[c..]));
                s.store(snake_lanes(s, s.load(&xs[c..]), alpha, inverse), &mut out[c..]);
            }
            if left > 0 {
                let mut buffer = [0.0; MAX_LANES];
                buffer[..left].copy_from_slice(&xs[whole..]);
                let (alpha, inverse) = (s.load(&last_alpha), s.load(&last_inverse));
                let y = snake_lanes(s, s.load(&buffer), alpha, inverse);
                s.store(y, &mut buffer);
                out[whole..].copy_from_slice(&buffer[..left]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;
    use crate::testing::{bits, noise, same_everywhere};

    const ALL: [Unary; 12] = [
        Unary::Exp,
        Unary::Sin,
        Unary::Sigmoid,
        Unary::Tanh,
        Unary::Silu,
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::Elu { alpha: 0.7 },
        Unary::LeakyRelu { slope: 0.1 },
        Unary::Relu,
        Unary::SignedRoot { floor: 0.2 },
        Unary::SignedSquare { floor: 0.2 },
    ];

    /// Numbers of many sizes and of both signs, subnormal ones and infinities among them.
    fn mixed(seed: u64, n: usize) -> Vec<f32> {
        let any = noise(seed, n).into_iter().zip(noise(seed + 1, n));
        any.map(|(x, size)| if size < 0.6 { 20.0 * x } else { x * (900.0 * (size - 0.75)).exp2() }).collect()
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

        #[test]
        fn every_level_and_thread_gives_the_same_bits(seed in 0..1000_u64, n in 0..300_usize, long: bool) {
            let xs = mixed(seed, if long { n + 3 * pool::GRAIN } else { n });
            for op in if long { &ALL[seed as usize % ALL.len()..][..1] } else { &ALL[..] } {
                let got = same_everywhere(|| {
                    let mut out = vec![0.0; xs.len()];
                    unary(*op, &xs, &mut out).unwrap();
                    out
                });
                let mut in_place = xs.clone();
                unary_in_place(*op, &mut in_place);
                assert_eq!(bits(&got), bits(&in_place), "{op:?}");
            }
        }

        #[test]
        fn snake_gives_the_same_bits(seed in 0..1000_u64, channels in 1..40_usize, long: bool) {
            let n_steps = if long { 3 * pool::GRAIN / channels } else { seed as usize % 20 };
            let xs = mixed(seed, n_steps * channels);
            let alpha: Vec<f32> = noise(seed, channels).iter().map(|a| a.abs() + 0.1).collect();
            let beta: Vec<f32> = noise(seed + 1, channels).iter().map(|b| b.abs() + 0.1).collect();
            let run = |xs: &[f32]| {
                let mut out = vec![0.0; xs.len()];
                snake_beta(xs, &alpha, &beta, &mut out).unwrap();
                out
            };
            let got = same_everywhere(|| run(&xs));
            let (first, last) = xs.split_at(n_steps / 3 * channels);
            assert_eq!(bits(&got), bits(&[run(first), run(last)].concat()));
        }

        #[test]
        fn an_element_does_not_depend_on_its_neighbours(seed in 0..1000_u64, n in 1..50_usize) {
            let xs = mixed(seed, n);
            for op in ALL {
                let mut whole = vec![0.0; n];
                unary(op, &xs, &mut whole).unwrap();
                for (&x, &y) in xs.iter().zip(&whole) {
                    let mut alone = [x];
                    unary_in_place(op, &mut alone);
                    assert_eq!(y.to_bits(), alone[0].to_bits(), "{op:?} of {x:e}");
                }
            }
        }
    }

    #[test]
    fn snake_is_its_waves_of_equal_rate_and_height() {
        let (xs, alpha) = (mixed(3, 60), [0.3, 1.0, 2.5]);
        let (mut plain, mut equal, mut low) = (vec![0.0; 60], vec![0.0; 60], vec![0.0; 60]);
        snake(&xs, &alpha, &mut plain).unwrap();
        snake_beta(&xs, &alpha, &alpha, &mut equal).unwrap();
        assert_eq!(bits(&plain), bits(&equal));
        // The higher beta, the lower the waves.
        let beta = alpha.map(|alpha| 4.0 * alpha);
        snake_beta(&xs, &alpha, &beta, &mut low).unwrap();
        for ((&x, &wave), &low) in xs.iter().zip(&plain).zip(&low).filter(|((x, _), _)| x.abs() < 20.0) {
            assert!((4.0 * (low - x) - (wave - x)).abs() < 1e-5, "{x}: {wave} and {low}");
        }
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        assert!(unary(Unary::Exp, &[0.0; 3], &mut [0.0; 2]).is_err());
        assert!(snake(&[0.0; 3], &[1.0; 2], &mut [0.0; 3]).is_err());
        assert!(snake(&[0.0; 4], &[1.0; 2], &mut [0.0; 3]).is_err());
        assert!(snake(&[], &[], &mut []).is_err());
        assert!(snake_beta(&[0.0; 4], &[1.0; 2], &[1.0; 3], &mut [0.0; 4]).is_err());
    }
}
