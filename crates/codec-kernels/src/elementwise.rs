//! Activations, from our own polynomials in fused multiply-adds.
//!
//! Where f32 alone would miss 2 ulp, a result is carried as an unevaluated sum of two f32 or in f64 lanes.
//! The bounds in the docs are the largest errors measured against f64 over the ranges that the tests sweep,
//! rounded up. A NaN gives a NaN; which bits it has is not promised.

use self::functions::{Elu, Exp, Function, Gelu, GeluTanh, LeakyRelu, Sigmoid, Silu, Sin, Tanh, snake_lanes};
use crate::error::{Result, count_rows, expect_len};
use crate::pool;
use crate::simd::{Kernel, Level, MAX_LANES, Simd, dispatch, level};

pub(crate) mod functions;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Unary {
    /// e^x.
    Exp,
    /// sin x, for every finite x.
    Sin,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
    /// x sigmoid(x).
    Silu,
    /// x Φ(x), with the normal distribution's Φ (through erf).
    Gelu,
    /// x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.
    GeluTanh,
    /// x above zero, alpha (e^x - 1) below.
    Elu {
        /// The negated limit towards minus infinity.
        alpha: f32,
    },
    /// x above zero, slope x below.
    LeakyRelu {
        /// The slope below zero.
        slope: f32,
    },
    /// x above zero, 0 below.
    Relu,
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

/// The periodic activation `x + sin(alpha x)^2 / (alpha + 1e-9)`.
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
    let channels = alpha.len();
    count_rows("xs", xs.len(), channels)?;
    expect_len("out", xs.len(), out.len())?;
    let inverse: Vec<f64> = alpha.iter().map(|&alpha| 1.0 / (f64::from(alpha) + 1e-9)).collect();
    let level = level();
    let n_threads = pool::threads_for(xs.len(), pool::GRAIN);
    pool::for_row_blocks(out, channels, 1, n_threads, |first, out| {
        let xs = &xs[first * channels..][..out.len()];
        dispatch(level, Snake { xs, alpha, inverse: &inverse, out });
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
                let $f = LeakyRelu { slope: 0.0 };
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
    /// 1 / (alpha + 1e-9), as many as `alpha`.
    inverse: &'a [f64],
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
                let (alpha, inverse) = (s.load(&self.alpha[c..]), s.load_wide(&self.inverse[c..]));
                s.store(snake_lanes(s, s.load(&xs[c..]), alpha, inverse), &mut out[c..]);
            }
            if left > 0 {
                let mut buffer = [0.0; MAX_LANES];
                buffer[..left].copy_from_slice(&xs[whole..]);
                let (alpha, inverse) = (s.load(&last_alpha), s.load_wide(&last_inverse));
                let y = snake_lanes(s, s.load(&buffer), alpha, inverse);
                s.store(y, &mut buffer);
                out[whole..].copy_from_slice(&buffer[..left]);
            }
        }
    }
}
