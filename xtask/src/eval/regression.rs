//! Has anything become worse since an earlier run?

use super::results::{Measurement, Results};
use super::summary::{Shown, scores};
use anyhow::{Result, ensure};
use codec_metrics::stats::{Interval, summarize};
use std::collections::{BTreeMap, BTreeSet};

/// What became worse.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fall {
    pub(crate) system: String,
    pub(crate) metric: String,
    pub(crate) before: f64,
    pub(crate) now: f64,
    /// Of the mean difference, now minus before, on the same clips.
    pub(crate) interval: Option<Interval>,
    pub(crate) n_clips: usize,
}

/// How two runs compare.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Comparison {
    pub(crate) falls: Vec<Fall>,
    /// Clips that were measured before and failed now.
    pub(crate) lost: Vec<(String, String)>,
    /// Means that were compared.
    pub(crate) n_compared: usize,
    /// What else the reader should know.
    pub(crate) notes: Vec<String>,
}

impl Comparison {
    pub(crate) fn is_good(&self) -> bool {
        self.falls.is_empty() && self.lost.is_empty()
    }
}

/// Compares two runs, system by system and metric by metric, on the clips that both have.
///
/// A metric has fallen when the 95 % interval of its mean difference lies on the bad side of zero, and the
/// difference is more than rounding and another machine can make. The bitrate counts as a metric: a codec must not
/// buy its scores with bits.
///
/// # Errors
/// When the runs have no system and clip in common.
pub(crate) fn compare(before: &Results, now: &Results) -> Result<Comparison> {
    let mut comparison = Comparison::default();
    let (old, new) = (by_system(before), by_system(now));
    for system in before.systems.iter().filter(|system| !new.contains_key(system.id.as_str())) {
        comparison.notes.push(format!("{} is not part of this run", system.id));
    }
    let changed: Vec<&str> = (before.clips.iter())
        .filter(|clip| now.clips.iter().any(|other| other.name == clip.name && other.sha256 != clip.sha256))
        .map(|clip| clip.name.as_str())
        .collect();
    if !changed.is_empty() {
        comparison.notes.push(format!("clips with other samples than before: {}", changed.join(", ")));
    }
    for (system, old) in &old {
        let Some(new) = new.get(system) else { continue };
        compare_system(system, old, new, now, &mut comparison)?;
    }
    ensure!(comparison.n_compared > 0, "the earlier run has no system and clip in common with this one");
    Ok(comparison)
}

type ByClip<'a> = BTreeMap<&'a str, &'a Measurement>;

fn by_system(results: &Results) -> BTreeMap<&str, ByClip<'_>> {
    let mut systems: BTreeMap<&str, ByClip<'_>> = BTreeMap::new();
    for measured in &results.measurements {
        systems.entry(&measured.system).or_default().insert(&measured.clip, measured);
    }
    systems
}

fn compare_system(
    system: &str,
    old: &ByClip<'_>,
    new: &ByClip<'_>,
    now: &Results,
    comparison: &mut Comparison,
) -> Result<()> {
    for failure in now.failures.iter().filter(|failure| failure.system == system) {
        if old.contains_key(failure.clip.as_str()) {
            comparison.lost.push((system.to_owned(), failure.clip.clone()));
        }
    }
    let pairs: Vec<(&Measurement, &Measurement)> =
        old.iter().filter_map(|(clip, old)| Some((*old, *new.get(clip)?))).collect();
    let mut metrics: BTreeSet<&str> =
        pairs.iter().flat_map(|(old, _)| old.scores.keys()).map(String::as_str).collect();
    metrics.insert(BITRATE);
    for metric in metrics {
        let value = |measured: &Measurement| {
            if metric == BITRATE { Some(measured.kbps) } else { measured.scores.get(metric).copied() }
        };
        let values: Vec<(f64, f64)> =
            pairs.iter().filter_map(|(old, new)| Some((value(old)?, value(new)?))).collect();
        if values.is_empty() {
            continue;
        }
        comparison.n_compared += 1;
        if let Some(fall) = fall(metric, &values)? {
            comparison.falls.push(Fall { system: system.to_owned(), ..fall });
        }
    }
    Ok(())
}

/// Stands among the metrics for the measured bitrate.
pub(crate) const BITRATE: &str = "kbps";

fn fall(metric: &str, values: &[(f64, f64)]) -> Result<Option<Fall>> {
    let mut shown = Shown::of(metric);
    if metric == BITRATE {
        shown.better = codec_metrics::Better::Lower;
    }
    let n = values.len() as f64;
    let mean = |value: fn(&(f64, f64)) -> f64| values.iter().map(value).sum::<f64>() / n;
    let (before, now) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let gains: Vec<f64> = values.iter().map(|(old, new)| shown.gain(*new, *old)).collect();
    let gain = summarize(&gains, 0)?;
    // A single clip has no interval: then any fall that is one counts.
    let is_sure = gain.interval.is_none_or(|interval| interval.high < 0.0);
    if !is_sure || gain.mean > -noise(&shown, before) {
        return Ok(None);
    }
    let differences: Vec<f64> = values.iter().map(|(old, new)| new - old).collect();
    let interval = summarize(&differences, 0)?.interval;
    let (system, metric, n_clips) = (String::new(), metric.to_owned(), values.len());
    Ok(Some(Fall { system, metric, before, now, interval, n_clips }))
}

/// A difference that nobody hears and that another machine can make, in the metric's unit.
fn noise(metric: &Shown, value: f64) -> f64 {
    match metric.unit.as_str() {
        "MOS-LQO" => 0.01,
        "dB" | "LU" => 0.02,
        _ => 0.002 * value.abs(),
    }
}

/// The scores of an earlier run can be read at all.
///
/// # Errors
/// When a clip has two scores of one metric by one system.
pub(crate) fn check(before: &Results) -> Result<()> {
    scores(&before.measurements).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::results::{Failure, Provenance};

    fn results(values: &[(&str, &str, f64, f64)]) -> Results {
        let mut results = Results::new(Provenance::default(), Vec::new(), Vec::new());
        results.measurements = values
            .iter()
            .map(|(system, clip, kbps, pesq)| Measurement {
                clip: (*clip).to_owned(),
                kind: String::new(),
                system: (*system).to_owned(),
                seconds: 1.0,
                n_bytes: 1,
                kbps: *kbps,
                payload_kbps: None,
                sample_rate: 16_000,
                delay: None,
                scores: BTreeMap::from([("pesq_wb".to_owned(), *pesq)]),
                not_judged: BTreeMap::new(),
            })
            .collect();
        results
    }

    const BEFORE: [(&str, &str, f64, f64); 3] =
        [("x@6", "a", 6.0, 3.0), ("x@6", "b", 6.1, 2.0), ("x@6", "c", 5.9, 4.0)];

    fn moved(kbps: f64, pesq: [f64; 3]) -> Results {
        let values: Vec<_> =
            BEFORE.iter().zip(pesq).map(|(v, by)| (v.0, v.1, v.2 * kbps, v.3 + by)).collect();
        results(&values)
    }

    #[test]
    fn the_same_and_the_better_pass() {
        let before = results(&BEFORE);
        for now in [moved(1.0, [0.0; 3]), moved(0.9, [0.2; 3]), moved(1.0, [-0.005; 3])] {
            let comparison = compare(&before, &now).unwrap();
            assert!(comparison.is_good(), "{comparison:?}");
            assert_eq!(comparison.n_compared, 2);
        }
    }

    #[test]
    fn a_fall_on_all_clips_is_found_and_one_within_the_interval_is_not() {
        let before = results(&BEFORE);
        let comparison = compare(&before, &moved(1.0, [-0.1, -0.12, -0.08])).unwrap();
        let [fall] = comparison.falls.as_slice() else { panic!("{comparison:?}") };
        assert_eq!((fall.metric.as_str(), fall.n_clips, fall.before), ("pesq_wb", 3, 3.0));
        assert!(fall.interval.unwrap().high < 0.0 && (fall.now - 2.9).abs() < 1e-9);
        // Worse on the whole, but not surely so.
        assert!(compare(&before, &moved(1.0, [-0.5, 0.3, 0.1])).unwrap().is_good());
        // Bits count.
        let comparison = compare(&before, &moved(1.05, [0.1; 3])).unwrap();
        assert_eq!(comparison.falls[0].metric, BITRATE);
    }

    #[test]
    fn lost_clips_and_strangers_are_told() {
        let before = results(&BEFORE);
        let mut now = results(&BEFORE[..2]);
        let (clip, system, reason) = ("c".to_owned(), "x@6".to_owned(), String::new());
        now.failures.push(Failure { clip: clip.clone(), system: system.clone(), reason });
        let comparison = compare(&before, &now).unwrap();
        assert_eq!(comparison.lost, [(system, clip)]);
        assert!(!comparison.is_good());
        assert!(compare(&before, &results(&[("y@6", "a", 6.0, 3.0)])).is_err());
        assert!(compare(&before, &results(&[("x@6", "z", 6.0, 3.0)])).is_err());
    }
}
