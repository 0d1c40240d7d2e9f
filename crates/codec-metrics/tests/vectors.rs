//! Our scores against those of the packages that papers use, on committed signals; written by
//! `tests/reference/metrics_vectors.py`.

use codec_metrics::{Metric, Pair};
use safetensors::SafeTensors;
use std::path::Path;

/// How far a score may be from the reference's. Where the latter computes in f32, that sets the limit.
fn tolerance(metric: Metric) -> f64 {
    match metric {
        // Both compute in f32 with transforms of their own.
        Metric::PesqWideBand | Metric::PesqNarrowBand => 1e-3,
        Metric::Stoi => 1e-8,
        // The reference adds random numbers to bands that are digitally silent.
        Metric::Estoi => 1e-3,
        // The reference adds 1e-8 to the ratio.
        Metric::SiSdr => 1e-5,
        Metric::Snr | Metric::LogSpectral | Metric::MelCepstral => 1e-9,
        // The reference has filters of its own, and few gating blocks fit into the clip.
        Metric::LoudnessChange => 0.05,
        Metric::L1 => 1e-7,
        _ => 2e-5,
    }
}

#[test]
fn scores_equal_those_of_the_reference_packages() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/metrics.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let signal = |name: &str| -> Vec<f32> {
        let tensor = tensors.tensor(&format!("signal.{name}")).unwrap();
        let samples = tensor.data().as_chunks().0.iter().map(|x| i16::from_le_bytes(*x));
        samples.map(|x| f32::from(x) / 32768.0).collect()
    };
    let reference = signal("reference");
    let mut n_compared = [0; 2];
    for name in tensors.names() {
        let [rate, metric, version] = name.split('.').collect::<Vec<_>>()[..] else { continue };
        let (rate, metric) = (rate.parse().unwrap(), Metric::by_name(metric).unwrap());
        let expected = tensors.tensor(name).unwrap();
        let expected = f64::from_le_bytes(expected.data().try_into().unwrap());
        let degraded = signal(version);
        let score = metric.judge_pair(&Pair::new(&reference, &degraded, rate).unwrap()).unwrap();
        let difference = (score - expected).abs();
        println!("{name}: {score} {expected} {difference:e}");
        assert!(difference <= tolerance(metric), "{name}: {score}, the reference has {expected}");
        let is_speech = metric.describe().is_mono;
        n_compared[usize::from(is_speech)] += 1;
    }
    // Three versions: seven distances at three rates, SNR and SI-SDR; STOI and ESTOI at three rates, PESQ at two.
    assert_eq!(n_compared, [69, 24]);
}
