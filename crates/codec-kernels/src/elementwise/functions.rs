//! The polynomials behind the activations, on vectors.

use crate::simd::{MAX_LANES, ROUND, ROUND_WIDE, Simd};

/// A function on vectors.
pub(crate) trait Function: Copy {
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V;
}

/// Arguments from which on `x/π` no longer leaves enough bits in f64.
const SIN_LIMIT: f32 = 1_099_511_627_776.0; // 2^40

/// Angles from which on [`snake_lanes`] counts half turns in f64.
const SNAKE_LIMIT: f32 = 1_048_576.0; // 2^20

/// π as a sum of two f32.
const PI_PARTS: [f32; 2] = [std::f32::consts::PI, -8.742_278e-8];

/// Minimax for `(sin(r)^2 / r^2 - 1) / r^2` in powers of `r^2` on ±π/2, relative error of the square of the sine
/// below 2e-8.
const SIN_SQUARED: [f32; 5] =
    [-0.333_333_08, 0.044_443_13, -0.003_172_298, 0.000_139_291_35, -3.620_557_3e-6];

/// `x + sin(alpha x)^2 * inverse`.
#[inline(always)]
pub(super) fn snake_lanes<S: Simd>(s: S, x: S::V, alpha: S::V, inverse: S::V) -> S::V {
    let angle = s.mul(alpha, x);
    let excess = s.fnma(alpha, x, angle);
    let round = s.splat(ROUND);
    let n = s.sub(s.fma(angle, s.splat(std::f32::consts::FRAC_1_PI), round), round);
    // The first difference is exact; what the product lost counts again once most of it is gone.
    let r = s.fnma(n, s.splat(PI_PARTS[1]), s.fnma(n, s.splat(PI_PARTS[0]), angle));
    let r = s.sub(r, excess);
    let u = s.mul(r, r);
    let mut p = s.splat(SIN_SQUARED[4]);
    for &c in SIN_SQUARED[..4].iter().rev() {
        p = s.fma(p, u, s.splat(c));
    }
    // The square does not know the sign.
    let y = s.fma(s.fma(s.mul(u, u), p, u), inverse, x);
    let near = s.lt(s.abs(angle), s.splat(SNAKE_LIMIT));
    if s.all(near) { y } else { s.select(near, y, snake_far(s, x, alpha, inverse)) }
}

/// [`snake_lanes`] for large angles, in f64.
#[inline(always)]
fn snake_far<S: Simd>(s: S, x: S::V, alpha: S::V, inverse: S::V) -> S::V {
    let x = s.widen(x);
    // The product of two f32 is exact in f64.
    let angle = s.wide_mul(s.widen(alpha), x);
    // Farther out the sine adds less than 2^-40 of x, so any angle will do.
    let limit = f64::from(SIN_LIMIT);
    let inside = s.wide_lt(s.wide_mul(angle, angle), s.wide_splat(limit * limit));
    let (_, sin) = sin_reduced(s, s.wide_select(inside, angle, s.wide_splat(0.0)));
    s.narrow(s.wide_fma(s.wide_mul(sin, sin), s.widen(inverse), x))
}

/// The exponential of `x` within -112 and 89 as `(high + low) * 2^n`; returns high, low and n.
#[inline(always)]
fn exp_parts<S: Simd>(s: S, x: S::V) -> (S::V, S::V, S::V) {
    let (n, z) = exp_reduced(s, x);
    let one = s.splat(1.0);
    let high = s.add(one, z);
    (high, s.sub(z, s.sub(high, one)), n)
}

/// n and `e^r - 1` where `x = n ln 2 + r`.
#[inline(always)]
fn exp_reduced<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let round = s.splat(ROUND);
    let n = s.sub(s.fma(x, s.splat(std::f32::consts::LOG2_E), round), round);
    // The high part of ln 2 has 12 bits to spare, so the first step is exact.
    let r = s.fnma(n, s.splat(0.693_115_23), x);
    let r = s.fnma(n, s.splat(3.194_618_3e-5), r);
    // Minimax on ±ln(2)/2, relative error of e^r below 5e-11.
    let mut q = s.splat(0.000_199_141_91);
    for c in [0.001_394_083, 0.008_333_273, 0.041_666_36, 0.166_666_67, 0.5] {
        q = s.fma(q, r, s.splat(c));
    }
    (n, s.fma(s.mul(r, r), q, r))
}

/// `x * 2^n` for n within ±250, rounded once even where the result is subnormal.
#[inline(always)]
fn scale<S: Simd>(s: S, x: S::V, n: S::V) -> S::V {
    let round = s.splat(ROUND);
    let first = s.fma(n, s.splat(0.5), round);
    let second = s.add(s.sub(n, s.sub(first, round)), round);
    s.mul(s.mul(x, s.pow2(first)), s.pow2(second))
}

/// `e^x - 1` as a sum of two, for x within -30 and 30.
#[inline(always)]
fn expm1_parts<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let (n, z) = exp_reduced(s, x);
    let power = s.pow2(s.add(n, s.splat(ROUND)));
    let base = s.sub(power, s.splat(1.0));
    let high = s.fma(power, z, base);
    (high, s.sub(s.mul(power, z), s.sub(high, base)))
}

/// `(high + low) / (s_high + s_low)` where 1 <= s, about half an ulp off.
#[inline(always)]
fn quotient<S: Simd>(s: S, high: S::V, low: S::V, s_high: S::V, s_low: S::V) -> S::V {
    let inverse = s.div(s.splat(1.0), s_high);
    let q = s.mul(high, inverse);
    let rest = s.fnma(q, s_low, s.add(s.fnma(q, s_high, high), low));
    s.fma(rest, inverse, q)
}

/// `factor * sigmoid(x)`; `factor` is finite where x is -inf.
#[inline(always)]
fn times_sigmoid<S: Simd>(s: S, factor: S::V, x: S::V) -> S::V {
    let zero = s.splat(0.0);
    // Negative as in the formula e^-|x|, and NaN where x is.
    let minus = s.max(s.splat(-112.0), s.sub(zero, s.abs(x)));
    let (high, low, n) = exp_parts(s, minus);
    let below = s.lt(x, zero);
    // Below zero the numerator keeps its scale apart: it may be subnormal where the product is not.
    let product = s.mul(factor, high);
    let rest = s.fma(factor, low, s.sub(zero, s.fnma(factor, high, product)));
    let (top, top_low) = (s.select(below, product, factor), s.select(below, rest, zero));
    let (e, e_low) = (scale(s, high, n), scale(s, low, n));
    let one = s.splat(1.0);
    let bottom = s.add(one, e);
    let bottom_low = s.add(s.sub(e, s.sub(bottom, one)), e_low);
    let q = quotient(s, top, top_low, bottom, bottom_low);
    scale(s, q, s.select(below, n, zero))
}

/// e^x within 1 ulp.
#[derive(Clone, Copy)]
pub(crate) struct Exp;
impl Function for Exp {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let x = s.min(s.splat(89.0), s.max(s.splat(-112.0), x));
        let (high, _, n) = exp_parts(s, x);
        scale(s, high, n)
    }
}

/// 1 / (1 + e^-x).
#[derive(Clone, Copy)]
pub(crate) struct Sigmoid;
impl Function for Sigmoid {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        times_sigmoid(s, s.splat(1.0), x)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Silu;
impl Function for Silu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let x = s.max(s.splat(-112.0), x);
        let y = times_sigmoid(s, x, x);
        // inf / 1 leaves a NaN in the remainder.
        s.select(s.lt(s.splat(112.0), x), x, y)
    }
}

/// The hyperbolic tangent.
#[derive(Clone, Copy)]
pub(crate) struct Tanh;
impl Function for Tanh {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let magnitude = s.abs(x);
        let two = s.splat(2.0);
        // tanh(10) is 1 in f32. With t = e^2|x| - 1 the tangent is t / (t + 2), which damps errors of t.
        let clamped = s.min(s.splat(10.0), magnitude);
        let (t, t_low) = expm1_parts(s, s.mul(clamped, two));
        let bottom = s.add(t, two);
        let rounded = s.sub(bottom, t);
        let bottom_low = s.add(s.sub(t, s.sub(bottom, rounded)), s.sub(two, rounded));
        let y = quotient(s, t, t_low, bottom, s.add(bottom_low, t_low));
        let y = s.select(s.lt(x, s.splat(0.0)), s.sub(s.splat(0.0), y), y);
        // Keeps subnormal numbers and the sign of zero.
        s.select(s.lt(magnitude, s.splat(1e-4)), x, y)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Elu {
    pub(super) alpha: f32,
}
impl Function for Elu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let zero = s.splat(0.0);
        let (high, low) = expm1_parts(s, s.min(zero, s.max(s.splat(-30.0), x)));
        let alpha = s.splat(self.alpha);
        s.select(s.lt(x, zero), s.fma(alpha, high, s.mul(alpha, low)), x)
    }
}

#[derive(Clone, Copy)]
pub(super) struct LeakyRelu {
    pub(super) slope: f32,
}
impl Function for LeakyRelu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.select(s.lt(x, s.splat(0.0)), s.mul(x, s.splat(self.slope)), x)
    }
}

#[derive(Clone, Copy)]
pub(super) struct Relu;
impl Function for Relu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        s.select(s.lt(x, s.splat(0.0)), s.splat(0.0), x)
    }
}

#[derive(Clone, Copy)]
pub(super) struct SignedRoot {
    pub(super) floor: f32,
}
impl Function for SignedRoot {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let wide = s.widen(x);
        let root = s.wide_sqrt(smooth_magnitude(s, wide, self.floor));
        let y = s.narrow(s.wide_div(wide, root));
        // inf / inf is no number.
        s.select(s.lt(s.splat(f32::MAX), s.abs(x)), x, y)
    }
}

#[derive(Clone, Copy)]
pub(super) struct SignedSquare {
    pub(super) floor: f32,
}
impl Function for SignedSquare {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let wide = s.widen(x);
        s.narrow(s.wide_mul(wide, smooth_magnitude(s, wide, self.floor)))
    }
}

/// √(x² + floor²).
#[inline(always)]
pub(super) fn smooth_magnitude<S: Simd>(s: S, x: S::W, floor: f32) -> S::W {
    let floor = f64::from(floor);
    s.wide_sqrt(s.wide_fma(x, x, s.wide_splat(floor * floor)))
}

#[derive(Clone, Copy)]
pub(super) struct Sin;
impl Function for Sin {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        let y = s.narrow(sin_wide(s, s.widen(x)));
        if s.all(s.lt(s.abs(x), s.splat(SIN_LIMIT))) {
            return y;
        }
        let (mut xs, mut ys) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
        s.store(x, &mut xs);
        s.store(y, &mut ys);
        for (x, y) in xs.into_iter().zip(&mut ys) {
            if x.is_nan() || x.abs() >= SIN_LIMIT {
                *y = sin_far(x);
            }
        }
        s.load(&ys)
    }
}

/// Minimax of (sin r - r) / r³ in r² on ±π/2, lowest power first.
const SIN: [f64; 6] = [
    -0.16666666666526941,
    0.008333333322329965,
    -0.00019841266955396812,
    2.7556971055460547e-6,
    -2.5030845936572576e-8,
    1.5418274780581285e-10,
];
const PI_LOW: f64 = 1.2246467991473532e-16;

/// The sine for |x| < 2^40.
#[inline(always)]
fn sin_wide<S: Simd>(s: S, x: S::W) -> S::W {
    let (t, sin) = sin_reduced(s, x);
    s.wide_negate_odd(t, sin)
}

/// `t = ROUND_WIDE + n` for the n half turns next to x, and the sine of what is left, for |x| < 2^40.
#[inline(always)]
fn sin_reduced<S: Simd>(s: S, x: S::W) -> (S::W, S::W) {
    let round = s.wide_splat(ROUND_WIDE);
    let t = s.wide_fma(x, s.wide_splat(std::f64::consts::FRAC_1_PI), round);
    let n = s.wide_sub(t, round);
    let r = s.wide_fnma(n, s.wide_splat(std::f64::consts::PI), x);
    let r = s.wide_fnma(n, s.wide_splat(PI_LOW), r);
    let u = s.wide_mul(r, r);
    let mut p = s.wide_splat(SIN[5]);
    for &c in SIN[..5].iter().rev() {
        p = s.wide_fma(p, u, s.wide_splat(c));
    }
    (t, s.wide_fma(s.wide_mul(r, u), p, r))
}

/// The sine for |x| >= 2^40: the angle in turns of π, from as many bits of 1/π as matter.
fn sin_far(x: f32) -> f32 {
    /// The first 256 bits after the point of 1/π.
    const FRAC_1_PI: [u64; 4] =
        [0x517c_c1b7_2722_0a94, 0xfe13_abe8_fa9a_6ee0, 0x6db1_4acc_9e21_c820, 0xff28_b1d5_ef5d_e2b0];
    /// 2^-128.
    const TURN: f64 = 2.938735877055719e-39;
    if !x.is_finite() {
        return f32::NAN;
    }
    // |x| = mantissa * 2^exponent with 17 <= exponent <= 104.
    let mantissa = u128::from(x.to_bits() & 0x7f_ffff | 0x80_0000);
    let exponent = (x.to_bits() >> 23 & 0xff) - 150;
    // The 128 bits of 1/π that start at weight 2^(-exponent): those before give whole turns of 2π.
    let skip = exponent as usize - 1;
    let word = |i: usize| u128::from(FRAC_1_PI[i]) << 64 | u128::from(FRAC_1_PI[i + 1]);
    let (i, shift) = (skip / 64, skip % 64);
    let next = FRAC_1_PI.get(i + 2).copied().unwrap_or(0);
    let window = if shift == 0 { word(i) } else { word(i) << shift | u128::from(next >> (64 - shift)) };
    // One bit of half turns and 127 of their fraction.
    let angle = mantissa.wrapping_mul(window);
    let half_turns = (angle >> 127) as u32;
    // The fraction as a signed number in ±1/2 half turns.
    let signed = (angle << 1) as i128;
    let odd = half_turns + u32::from(signed < 0);
    let r = signed as f64 * TURN * std::f64::consts::PI;
    let u = r * r;
    let p = SIN.iter().rev().fold(0.0_f64, |p, &c| p.mul_add(u, c));
    let y = (r * u).mul_add(p, r);
    let negative = (odd % 2 == 1) != (x < 0.0);
    (if negative { -y } else { y }) as f32
}

/// The exponential in f64, relative error below 1e-12, for x within ±700.
#[inline(always)]
fn exp_wide<S: Simd>(s: S, x: S::W) -> S::W {
    let round = s.wide_splat(ROUND_WIDE);
    let t = s.wide_fma(x, s.wide_splat(std::f64::consts::LOG2_E), round);
    let n = s.wide_sub(t, round);
    let r = s.wide_fnma(n, s.wide_splat(std::f64::consts::LN_2), x);
    let mut q = s.wide_splat(2.7632943580400824e-6);
    for c in [
        2.4868136067672656e-5,
        0.00019841192291020535,
        0.0013888838710276784,
        0.008333333363595905,
        0.04166666678771295,
        0.16666666666633487,
        0.4999999999995438,
        1.0,
        1.0,
    ] {
        q = s.wide_fma(q, r, s.wide_splat(c));
    }
    s.wide_mul(q, s.wide_pow2(t))
}

#[derive(Clone, Copy)]
pub(super) struct Gelu;
impl Function for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        /// Minimax of (a + 4) Φ(-a) e^(a²/2) in (a - 4) / (a + 4) for a in 0..15, lowest power first.
        const TAIL: [f64; 13] = [
            0.7552851304271805,
            -0.6078966421921014,
            0.3871373990484163,
            -0.18652184624421655,
            0.06039662026160164,
            -0.007540350563701286,
            -0.003480189873561524,
            0.001631631846973332,
            0.00013601065621070426,
            -0.0002322395697026899,
            -8.74199564039317e-6,
            3.286729431374194e-5,
            7.192003809155085e-6,
        ];
        // Beyond 15 the tail of Φ is less than the smallest f32.
        let x = s.max(s.splat(-15.0), x);
        let a = s.widen(s.min(s.splat(15.0), s.abs(x)));
        let inverse = s.wide_div(s.wide_splat(1.0), s.wide_add(a, s.wide_splat(4.0)));
        let t = s.wide_mul(s.wide_sub(a, s.wide_splat(4.0)), inverse);
        let mut p = s.wide_splat(TAIL[12]);
        for &c in TAIL[..12].iter().rev() {
            p = s.wide_fma(p, t, s.wide_splat(c));
        }
        let density = exp_wide(s, s.wide_mul(s.wide_mul(a, a), s.wide_splat(-0.5)));
        let tail = s.wide_mul(s.wide_mul(p, inverse), density);
        let x = s.widen(x);
        let above = s.wide_sub(s.wide_splat(1.0), tail);
        let cdf = s.wide_select(s.wide_lt(x, s.wide_splat(0.0)), tail, above);
        s.narrow(s.wide_mul(x, cdf))
    }
}

#[derive(Clone, Copy)]
pub(super) struct GeluTanh;
impl Function for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, x: S::V) -> S::V {
        /// 2 √(2/π).
        const SLOPE: f64 = 1.5957691216057308;
        // Beyond ±20 the result is 0 or x.
        let x = s.max(s.splat(-20.0), x);
        let a = s.widen(s.min(s.splat(20.0), x));
        let inner = s.wide_fma(s.wide_mul(s.wide_mul(a, a), a), s.wide_splat(0.044715), a);
        let e = exp_wide(s, s.wide_mul(inner, s.wide_splat(-SLOPE)));
        s.narrow(s.wide_div(s.widen(x), s.wide_add(s.wide_splat(1.0), e)))
    }
}

#[cfg(test)]
mod tests {
    use crate::elementwise::{Unary, snake, unary};
    use crate::testing::{noise, ulps};

    /// Φ(-a) for a >= 0: a series near zero, Lentz's continued fraction of the Mills ratio in the tail.
    fn normal_tail(a: f64) -> f64 {
        let density = (-a * a / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        if a < 2.5 {
            let (mut term, mut sum) = (a, a);
            for i in 1..60 {
                term *= a * a / f64::from(2 * i + 1);
                sum += term;
            }
            0.5 - density * sum
        } else {
            density / (1..300).rev().fold(a, |below, i| a + f64::from(i) / below)
        }
    }

    fn gelu(x: f64) -> f64 {
        let tail = normal_tail(x.abs());
        if x < 0.0 { x * tail } else { x * (1.0 - tail) }
    }

    fn gelu_tanh(x: f64) -> f64 {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        x / (1.0 + (-2.0 * inner).exp())
    }

    fn elu(alpha: f32, x: f64) -> f64 {
        if x > 0.0 { x } else { f64::from(alpha) * x.exp_m1() }
    }

    struct Case {
        op: Unary,
        exact: fn(f64) -> f64,
        /// In ulps, as the docs of [`Unary`] promise it.
        bound: f64,
    }

    fn cases() -> Vec<Case> {
        let case = |op, exact, bound| Case { op, exact, bound };
        vec![
            case(Unary::Exp, f64::exp, 1.0),
            case(Unary::Sin, f64::sin, 0.51),
            case(Unary::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 1.0),
            case(Unary::Tanh, f64::tanh, 1.5),
            case(Unary::Silu, |x| x / (1.0 + (-x).exp()), 1.1),
            case(Unary::Gelu, gelu, 0.51),
            case(Unary::GeluTanh, gelu_tanh, 0.51),
            case(Unary::Elu { alpha: 1.0 }, |x| elu(1.0, x), 1.0),
            case(Unary::Elu { alpha: 0.3 }, |x| elu(0.3, x), 1.5),
            case(Unary::SignedRoot { floor: 0.5 }, |x| x / (x * x + 0.25).powf(0.25), 0.51),
            case(Unary::SignedSquare { floor: 0.5 }, |x| x * (x * x + 0.25).sqrt(), 0.51),
        ]
    }

    /// Every 1021st of all floats, and every 64th of those between 1/8 and 16 on both sides.
    fn sweep() -> Vec<f32> {
        let dense = 0.125_f32.to_bits()..16.0_f32.to_bits();
        let all = (0..=u32::MAX).step_by(1021);
        all.chain(dense.step_by(64).flat_map(|x| [x, x | 1 << 31]))
            .map(f32::from_bits)
            .filter(|x| x.is_finite())
            .collect()
    }

    #[test]
    fn errors_stay_within_their_bounds() {
        let xs = sweep();
        let mut ys = vec![0.0; xs.len()];
        for Case { op, exact, bound } in cases() {
            unary(op, &xs, &mut ys).unwrap();
            let worst = xs
                .iter()
                .zip(&ys)
                .map(|(&x, &y)| (ulps(y, exact(f64::from(x))), x, y))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .unwrap();
            println!("{op:?}: at most {:.3} ulp, at {:e}", worst.0, worst.1);
            assert!(worst.0 <= bound, "{op:?}: {} ulp at {:e}, which gives {:e}", worst.0, worst.1, worst.2);
        }
    }

    #[test]
    fn snake_stays_within_its_bound() {
        const CHANNELS: usize = 37;
        let alpha: Vec<f32> = noise(1, CHANNELS).iter().map(|a| (6.0 * a).exp2()).chain([0.0]).collect();
        let xs: Vec<f32> = noise(2, 60_000 * alpha.len())
            .iter()
            .enumerate()
            .map(|(i, x)| x * ((i / alpha.len() % 40) as f32 - 15.0).exp2())
            .collect();
        let mut ys = vec![0.0; xs.len()];
        snake(&xs, &alpha, &mut ys).unwrap();
        let worst = (0..xs.len())
            .map(|i| {
                let (x, alpha) = (f64::from(xs[i]), f64::from(alpha[i % alpha.len()]));
                let exact = x + (alpha * x).sin().powi(2) / (alpha + 1e-9);
                let scale = exact.abs().max(x.abs()) as f32;
                let ulp = f64::from(scale.next_up() - scale);
                ((f64::from(ys[i]) - exact).abs() / ulp, x, alpha)
            })
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .unwrap();
        println!("snake: at most {:.3} ulp, at {:e}, alpha {:e}", worst.0, worst.1, worst.2);
        assert!(worst.0 <= 3.0, "{worst:?}");
    }

    #[test]
    fn special_values_have_their_limits() {
        const INF: f32 = f32::INFINITY;
        let limits = [
            (Unary::Exp, 0.0, INF),
            (Unary::Sigmoid, 0.0, 1.0),
            (Unary::Tanh, -1.0, 1.0),
            (Unary::Silu, 0.0, INF),
            (Unary::Gelu, 0.0, INF),
            (Unary::GeluTanh, 0.0, INF),
            (Unary::Elu { alpha: 0.5 }, -0.5, INF),
            (Unary::LeakyRelu { slope: 0.1 }, -INF, INF),
            (Unary::Relu, 0.0, INF),
        ];
        for (op, low, high) in limits {
            let mut ys = [1.0; 4];
            unary(op, &[-INF, INF, f32::MIN, f32::MAX], &mut ys).unwrap();
            assert_eq!(ys[..2], [low, high], "{op:?}");
            if high.is_finite() || op == Unary::Exp {
                assert_eq!(ys[2..], [low, high], "{op:?}");
            } else {
                assert_eq!(ys[3], f32::MAX, "{op:?}");
            }
        }
        let mut ys = [0.0; 2];
        unary(Unary::Sin, &[INF, -INF], &mut ys).unwrap();
        assert!(ys.iter().all(|y| y.is_nan()));
        for Case { op, .. } in cases() {
            // A NaN in any lane stays in its lane.
            for lane in 0..19 {
                let mut xs = [0.25; 19];
                xs[lane] = f32::NAN;
                let mut ys = [0.0; 19];
                unary(op, &xs, &mut ys).unwrap();
                for (i, y) in ys.iter().enumerate() {
                    assert_eq!(y.is_nan(), i == lane, "{op:?} lane {lane}");
                }
            }
        }
        let mut y = [0.0];
        snake(&[f32::NAN], &[1.0], &mut y).unwrap();
        assert!(y[0].is_nan());
    }
}
