//! The taps of the resampling filter: the same bits on every machine.

use codec_kernels::sinc::{kaiser, sinc};

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
            sinc(cut_off * time) * kaiser(time / half_width, BETA)
        })
        .collect();
    // A constant comes out as the same constant, whatever the phase.
    let sum: f64 = taps.iter().sum();
    taps.iter_mut().for_each(|tap| *tap /= sum);
    taps
}

#[cfg(test)]
mod tests {
    use super::*;

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
