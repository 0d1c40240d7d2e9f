//! The resampler keeps what its documentation states.

#![expect(clippy::unwrap_used, reason = "a helper of tests may stop them")]

mod support;

use codec_core::{AudioBuffer, AudioSpec};
use codec_io::{Error, Resampler};
use proptest::prelude::*;
use std::f64::consts::TAU;
use support::snr;

/// The pairs that codecs and files bring together, and two odd ones.
const PAIRS: [(u32, u32); 12] = [
    (44_100, 24_000),
    (44_100, 16_000),
    (44_100, 48_000),
    (48_000, 44_100),
    (48_000, 16_000),
    (48_000, 24_000),
    (16_000, 24_000),
    (16_000, 48_000),
    (24_000, 16_000),
    (11_025, 16_000),
    (8_000, 48_000),
    (96_000, 22_050),
];

fn resample(from: u32, to: u32, xs: Vec<f32>) -> Vec<f32> {
    let mut resampler = Resampler::new(from, to, 1).unwrap();
    let mut out = resampler.push(&AudioBuffer::mono(from, xs).unwrap()).unwrap();
    out.append(&resampler.finish().unwrap()).unwrap();
    out.into_channels().remove(0)
}

fn tone(hz: f64, rate: u32, n: usize) -> Vec<f32> {
    (0..n).map(|t| (0.5 * (TAU * hz * t as f64 / f64::from(rate) + 0.3).sin()) as f32).collect()
}

/// The part that lies further from both ends than the filter reaches.
fn middle(xs: &[f32]) -> &[f32] {
    &xs[xs.len() / 4..xs.len() * 3 / 4]
}

/// A chirp through the whole passband against its formula at the new times.
///
/// A delay of 1e-3 sample alone would leave 52 dB at the top of the band.
#[test]
fn chirp_comes_out_where_and_as_it_should() {
    const MIN_SNR: f64 = 120.0;
    for (from, to) in PAIRS {
        let n = from as usize;
        let top = 0.9 * f64::from(from.min(to)) / 2.0;
        // Silent at both ends, so that the ends do not count as clicks.
        let chirp = |seconds: f64| {
            let envelope = (seconds * TAU / 2.0).sin().powi(2);
            envelope * 0.9 * (TAU / 2.0 * top * seconds * seconds).sin()
        };
        let at = |rate: u32, n: usize| -> Vec<f32> {
            (0..n).map(|t| chirp(t as f64 / f64::from(rate)) as f32).collect()
        };
        let out = resample(from, to, at(from, n));
        let ratio = snr(&at(to, out.len()), &out);
        println!("{from} -> {to}: {ratio:.1} dB");
        assert!(ratio > MIN_SNR, "{from} -> {to}: {ratio:.1} dB");
    }
}

#[test]
fn passband_and_stopband_are_as_documented() {
    for (from, to) in PAIRS {
        let nyquist = f64::from(from.min(to)) / 2.0;
        let gain = |hz: f64| {
            let out = resample(from, to, tone(hz, from, 12_000));
            let power: f64 = middle(&out).iter().map(|&y| f64::from(y).powi(2)).sum();
            10.0 * (power / middle(&out).len() as f64 / 0.125).log10()
        };
        // The level of the middle of a tone is right within this, whatever its phase.
        const LEAKAGE: f64 = 0.01;
        for part in [0.05, 0.3, 0.6, 0.8, 0.9] {
            let db = gain(part * nyquist);
            assert!(db.abs() < 0.01 + LEAKAGE, "{from} -> {to}: {db} dB at {part} Nyquist");
        }
        let edge = gain(0.962 * nyquist);
        assert!((edge + 6.0).abs() < 0.3, "{from} -> {to}: {edge} dB at the cut-off");
        // Only when the rate falls is there anything above the lower Nyquist frequency.
        for part in [1.03, 1.05, 1.1, 1.3].into_iter().filter(|p| p * nyquist < f64::from(from) / 2.0) {
            let db = gain(part * nyquist);
            assert!(db < -110.0, "{from} -> {to}: {db} dB at {part} Nyquist");
        }
    }
}

/// When the rate rises, the images above the old Nyquist frequency are the noise.
#[test]
fn images_are_rejected() {
    for (from, to) in PAIRS.into_iter().filter(|(from, to)| to > from) {
        for part in [0.1, 0.5, 0.89] {
            let hz = part * f64::from(from) / 2.0;
            let out = resample(from, to, tone(hz, from, 12_000));
            let ratio = snr(middle(&tone(hz, to, out.len())), middle(&out));
            assert!(ratio > 110.0, "{from} -> {to} at {hz} Hz: {ratio:.1} dB");
        }
    }
}

#[test]
fn the_delay_is_zero() {
    for (from, to) in PAIRS {
        let hz = 0.5 * f64::from(from.min(to)) / 2.0;
        let out = resample(from, to, tone(hz, from, 20_000));
        // The phase of the output against the phase of the formula.
        let (mut re, mut im) = (0.0, 0.0);
        let start = out.len() / 4;
        for (t, &y) in middle(&out).iter().enumerate() {
            let phase = TAU * hz * (start + t) as f64 / f64::from(to) + 0.3;
            re += f64::from(y) * phase.sin();
            im += f64::from(y) * phase.cos();
        }
        let delay = -(im / re).atan() / TAU / hz * f64::from(to);
        assert!(delay.abs() < 1e-3, "{from} -> {to}: {delay} samples");
    }
}

#[test]
fn a_constant_stays_and_silence_is_silent() {
    for (from, to) in PAIRS {
        let out = resample(from, to, vec![0.7; 4000]);
        let worst = middle(&out).iter().map(|y| (y - 0.7).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{from} -> {to}: {worst}");
        assert!(resample(from, to, vec![0.0; 1000]).iter().all(|&y| y == 0.0));
    }
}

#[test]
fn equal_rates_change_nothing_and_odd_ratios_have_a_limit() {
    let xs = tone(1000.0, 48_000, 777);
    assert_eq!(resample(48_000, 48_000, xs.clone()), xs);
    assert!(matches!(
        Resampler::new(384_000, 8_001, 1),
        Err(Error::Limit { limit: 100_000, actual: 128_000, .. })
    ));
    assert!(matches!(Resampler::new(0, 8_000, 1), Err(Error::Core(_))));
    assert!(matches!(Resampler::new(8_000, 16_000, 0), Err(Error::Core(_))));
    let mut resampler = Resampler::new(8_000, 16_000, 1).unwrap();
    assert!(matches!(resampler.push(&AudioBuffer::mono(8_001, vec![]).unwrap()), Err(Error::Spec { .. })));
}

/// A ratio whose terms are near the rates themselves.
#[test]
fn nearly_equal_rates_work() {
    let xs = tone(3_000.0, 8_000, 20_000);
    let out = resample(8_000, 7_999, xs);
    let expected = tone(3_000.0, 7_999, out.len());
    assert!(snr(middle(&expected), middle(&out)) > 120.0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn length_is_exact(from in 1_000u32..20_000, to in 1_000u32..20_000, n in 0usize..300) {
        let (from, to) = (from / 50 * 50, to / 50 * 50);
        let out = resample(from, to, vec![0.5; n]);
        let expected = (n as u64 * u64::from(to)).div_ceil(u64::from(from));
        prop_assert_eq!(out.len() as u64, expected);
        prop_assert_eq!(Resampler::new(from, to, 1).unwrap().n_output_samples(n as u64), expected);
    }

    /// Chunks and threads change no bit.
    #[test]
    fn chunks_and_threads_do_not_matter(
        pair in 0usize..PAIRS.len(),
        n in 1usize..6_000,
        chunks in prop::collection::vec(1usize..1_500, 1..20),
        n_threads in 1usize..3,
        seed in any::<u32>(),
    ) {
        let (from, to) = PAIRS[pair];
        let mut state = seed;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as i32 as f32 / 2f32.powi(31)
        };
        let spec = AudioSpec { sample_rate: from, channels: 2 };
        let planar = (0..2).map(|_| (0..n).map(|_| noise()).collect()).collect();
        let audio = AudioBuffer::from_planar(spec, planar).unwrap();
        let mut whole = Resampler::new(from, to, 2).unwrap();
        let mut expected = whole.push(&audio).unwrap();
        expected.append(&whole.finish().unwrap()).unwrap();

        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let actual = pool.install(|| {
            let mut parts = Resampler::new(from, to, 2).unwrap();
            let mut out = AudioBuffer::empty(parts.spec()).unwrap();
            let (mut at, mut sizes) = (0, chunks.iter().cycle());
            while at < n {
                let size = *sizes.next().unwrap();
                out.append(&parts.push(&audio.slice(at..at + size)).unwrap()).unwrap();
                at += size;
            }
            out.append(&parts.finish().unwrap()).unwrap();
            out
        });
        let bits = |audio: &AudioBuffer| audio.to_interleaved().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&actual), bits(&expected));
    }
}
