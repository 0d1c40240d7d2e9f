//! Windowed sinc in f64, from additions, multiplications, divisions and square roots only, so that
//! the taps of a filter have the same bits on every machine.

use std::f64::consts::PI;

/// `sin(pi x) / (pi x)`.
pub fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { sin_pi(x) / (PI * x) }
}

/// The Kaiser window of shape `beta`, 0 to 12, at `x` of its half width; zero at -1 and 1 and beyond.
pub fn kaiser(x: f64, beta: f64) -> f64 {
    let inside = 1.0 - x * x;
    if inside <= 0.0 { 0.0 } else { bessel_i0(beta * inside.sqrt()) / bessel_i0(beta) }
}

/// `sin(pi x)` by its Taylor series around the nearest integer.
fn sin_pi(x: f64) -> f64 {
    let nearest = x.round();
    let angle = PI * (x - nearest);
    let square = angle * angle;
    // |angle| <= pi / 2: the term of degree 27 is below 1e-22.
    let mut sum = 0.0;
    for n in (1..=13).rev() {
        let n = f64::from(n);
        sum = (1.0 + sum) * (-square / ((2.0 * n) * (2.0 * n + 1.0)));
    }
    let sine = angle * (1.0 + sum);
    let is_odd = nearest % 2.0 != 0.0;
    if is_odd { -sine } else { sine }
}

/// The modified Bessel function of the first kind and order zero, for `x` from -12 to 12.
pub fn bessel_i0(x: f64) -> f64 {
    let quarter = x * x / 4.0;
    let mut term = 1.0;
    let mut sum = 1.0;
    // For x <= 12 the terms after the 40th are below 1e-30 of the sum.
    for n in 1..=40 {
        let n = f64::from(n);
        term *= quarter / (n * n);
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Absolute error of the series against the platform's functions, which are good to an ulp.
    const TOLERANCE: f64 = 4e-16;

    #[test]
    fn sine_is_right() {
        for i in -4000..4000 {
            let x = f64::from(i) / 997.0;
            let reference = (PI * (x - x.round())).sin() * if x.round() % 2.0 == 0.0 { 1.0 } else { -1.0 };
            assert!((sin_pi(x) - reference).abs() <= TOLERANCE, "x {x}: {} {reference}", sin_pi(x));
        }
    }

    /// Abramowitz and Stegun, table 9.8 (e^-x I0(x)), and a value known to 15 digits.
    #[test]
    fn bessel_is_right() {
        let table = [(1.0, 0.465_759_607_7), (5.0, 0.183_540_812_6), (10.0, 0.127_833_337_2)];
        for (x, expected) in table {
            let value = bessel_i0(x) * (-x).exp();
            assert!((value - expected).abs() < 2e-10, "x {x}: {value} {expected}");
        }
        assert!((bessel_i0(1.0) - 1.266_065_877_752_008_3).abs() < TOLERANCE);
    }
}
