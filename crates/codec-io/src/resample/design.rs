//! The taps of the resampling filter, from additions, multiplications, divisions and square roots
//! only, so that they have the same bits on every machine.

use std::f64::consts::PI;

/// Zero crossings of the windowed sinc on each side, counted at the lower of the two rates.
pub(super) const HALF_WIDTH: u32 = 64;

/// Shape of the Kaiser window: about 118 dB of attenuation.
const BETA: f64 = 12.0;

/// Cut-off in units of the lower Nyquist frequency.
const ROLL_OFF: f64 = 0.962;

/// Reach of the filter on each side, in input samples.
pub(super) fn reach(up: u32, down: u32) -> usize {
    let longest = u64::from(HALF_WIDTH) * u64::from(down.max(up));
    longest.div_ceil(u64::from(up)) as usize
}

/// The taps for an output sample that lies `phase / up` input samples after the input sample
/// with index `reach - 1` of the window; `2 * reach` of them, with a sum of one.
pub(super) fn taps(up: u32, down: u32, phase: u32) -> Vec<f64> {
    let reach = reach(up, down);
    // Relative to the input rate.
    let scale = f64::from(up.min(down)) / f64::from(down);
    let cut_off = ROLL_OFF * scale;
    let half_width = f64::from(HALF_WIDTH) / scale;
    let fraction = f64::from(phase) / f64::from(up);
    let mut taps: Vec<f64> = (0..2 * reach)
        .map(|i| {
            let time = i as f64 - (reach as f64 - 1.0) - fraction;
            sinc(cut_off * time) * kaiser(time / half_width)
        })
        .collect();
    // A constant comes out as the same constant, whatever the phase.
    let sum: f64 = taps.iter().sum();
    taps.iter_mut().for_each(|tap| *tap /= sum);
    taps
}

/// `sin(pi x) / (pi x)`.
fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { sin_pi(x) / (PI * x) }
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

/// The Kaiser window at `x` of its half width; zero outside.
fn kaiser(x: f64) -> f64 {
    let inside = 1.0 - x * x;
    if inside <= 0.0 { 0.0 } else { bessel_i0(BETA * inside.sqrt()) / bessel_i0(BETA) }
}

/// The modified Bessel function of order zero by its power series.
fn bessel_i0(x: f64) -> f64 {
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

    #[test]
    fn taps_are_symmetric_and_sum_to_one() {
        for (up, down) in [(1, 2), (80, 147), (3, 2), (160, 147)] {
            let middle = taps(up, down, 0);
            // The window reaches one tap further to the right than to the left.
            let n = middle.len();
            for i in 0..n - 1 {
                assert_eq!(middle[i], middle[n - 2 - i], "{up}/{down} tap {i}");
            }
            let sum: f64 = taps(up, down, up - 1).iter().sum();
            assert!((sum - 1.0).abs() < 1e-14);
        }
    }
}
