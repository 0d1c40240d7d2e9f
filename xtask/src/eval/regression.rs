//! Has anything become worse since an earlier run?

use super::codecs::Asked;
use super::results::{Measurement, Results};
use super::summary::{Shown, scores};
use anyhow::{Result, ensure};
use codec_metrics::Better;
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
    /// What there was and is no longer, or is cut off, as sentences.
    pub(crate) lost: Vec<String>,
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
/// A system, a clip of a system, or a score that this run should have and lacks is worse as well. What the user left
/// out, by `asked`, other clips or other metrics, is noted.
///
/// # Errors
/// When the runs have nothing in common.
pub(crate) fn compare(before: &Results, now: &Results, asked: &Asked) -> Result<Comparison> {
    let mut comparison = Comparison::default();
    let (old, new) = (by_system(before), by_system(now));
    for system in &before.systems {
        if now.systems.iter().any(|other| other.id == system.id) {
            continue;
        }
        let text = format!("{} is not part of this run", system.id);
        let list = if asked.covers(system, now) { &mut comparison.lost } else { &mut comparison.notes };
        list.push(text);
    }
    let has = |name: &str| now.clips.iter().any(|clip| clip.name == name);
    let measured: BTreeSet<&str> =
        before.measurements.iter().map(|measured| measured.clip.as_str()).collect();
    let gone: Vec<&str> = measured.into_iter().filter(|clip| !has(clip)).collect();
    if !gone.is_empty() {
        comparison.notes.push(format!("clips that are not part of this run: {}", gone.join(", ")));
    }
    let (was, is) = (metrics(before), metrics(now));
    let gone: Vec<&str> = was.difference(&is).copied().collect();
    if !gone.is_empty() {
        comparison.notes.push(format!("metrics that are not part of this run: {}", gone.join(", ")));
    }
    let changed: Vec<&str> = (before.clips.iter())
        .filter(|clip| now.clips.iter().any(|other| other.name == clip.name && other.sha256 != clip.sha256))
        .map(|clip| clip.name.as_str())
        .collect();
    if !changed.is_empty() {
        comparison.notes.push(format!("clips with other samples than before: {}", changed.join(", ")));
    }
    let nothing = ByClip::new();
    for (system, old) in &old {
        let new = new.get(system).unwrap_or(&nothing);
        compare_system(system, old, new, now, &mut comparison)?;
    }
    let is_something = comparison.n_compared > 0 || !comparison.lost.is_empty();
    ensure!(is_something, "the earlier run has no system and clip in common with this one");
    Ok(comparison)
}

/// The metrics that a run was to measure or got from tables.
fn metrics(results: &Results) -> BTreeSet<&str> {
    let own = results.provenance.metrics.iter().map(|(name, _)| name.as_str());
    let scores = results.measurements.iter().flat_map(|measured| measured.scores.keys());
    own.chain(scores.map(String::as_str)).collect()
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
            comparison.lost.push(format!("{system} fails on {}, and did not before", failure.clip));
        }
    }
    let pairs: Vec<(&Measurement, &Measurement)> =
        old.iter().filter_map(|(clip, old)| Some((*old, *new.get(clip)?))).collect();
    let known = metrics(now);
    for (old, new) in &pairs {
        if let (None, Some(decoded)) = (old.cut_off(), new.cut_off()) {
            let (clip, seconds) = (&new.clip, new.seconds);
            comparison.lost.push(format!("{system} gives back {decoded:.2} of the {seconds:.2} s of {clip}"));
        }
        let gone = old.scores.keys().filter(|metric| !new.scores.contains_key(*metric));
        for metric in gone.filter(|metric| known.contains(metric.as_str())) {
            let why = new.not_judged.get(metric).map_or("the table has no score", String::as_str);
            comparison.lost.push(format!("{metric} judges {} of {system} no longer: {why}", new.clip));
        }
    }
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
        if let Some(fall) = fall(metric, &values, now)? {
            comparison.falls.push(Fall { system: system.to_owned(), ..fall });
        }
    }
    Ok(())
}

/// Stands among the metrics for the measured bitrate.
pub(crate) const BITRATE: &str = "kbps";

fn fall(metric: &str, values: &[(f64, f64)], now: &Results) -> Result<Option<Fall>> {
    let mut shown = Shown::of(metric, &now.directions);
    if metric == BITRATE {
        shown.better = Better::Lower;
    }
    let n = values.len() as f64;
    let mean = |value: fn(&(f64, f64)) -> f64| values.iter().map(value).sum::<f64>() / n;
    let (before, now) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let gains: Vec<f64> = values.iter().map(|(old, new)| shown.gain(*new, *old)).collect();
    let gain = summarize(&gains, 0)?;
    // A single clip has no interval: then any fall that is one counts.
    let is_sure = gain.interval.is_none_or(|interval| interval.high < 0.0);
    // What is perfect and stays so has no noise, and has not fallen.
    if !is_sure || gain.mean >= 0.0 || gain.mean > -noise(&shown, before) {
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
    use crate::eval::codecs::Spec;
    use crate::eval::results::{ClipInfo, Failure, Group, Provenance, SystemInfo};

    fn results(values: &[(&str, &str, f64, f64)]) -> Results {
        let mut results = Results::new(Provenance::default(), Vec::new(), Vec::new());
        results.measurements = values
            .iter()
            .map(|(system, clip, kbps, pesq)| Measurement {
                clip: (*clip).to_owned(),
                kind: String::new(),
                system: (*system).to_owned(),
                seconds: 1.0,
                decoded_seconds: None,
                n_bytes: 1,
                kbps: *kbps,
                payload_kbps: None,
                sample_rate: 16_000,
                delay: None,
                scores: BTreeMap::from([("pesq_wb".to_owned(), *pesq)]),
                not_judged: BTreeMap::new(),
            })
            .collect();
        let names: BTreeSet<(&str, &str)> =
            values.iter().map(|(system, clip, ..)| (*system, *clip)).collect();
        let clips: BTreeSet<&str> = names.iter().map(|(_, clip)| *clip).collect();
        let systems: BTreeSet<&str> = names.iter().map(|(system, _)| *system).collect();
        let (kind, sha256) = (String::new(), String::new());
        let clip =
            |name: &str| ClipInfo { name: name.to_owned(), kind: kind.clone(), sha256: sha256.clone() };
        results.clips = clips.into_iter().map(clip).collect();
        results.systems = systems.into_iter().map(system).collect();
        results
    }

    fn system(id: &str) -> SystemInfo {
        let (codec, kbps) = id.split_once('@').unwrap();
        SystemInfo {
            id: id.to_owned(),
            codec: codec.to_owned(),
            group: Group::Classical,
            nominal_kbps: Some(kbps.parse().unwrap()),
            identity: String::new(),
        }
    }

    fn compare(before: &Results, now: &Results) -> Result<Comparison> {
        super::compare(before, now, &asked(&["x"]))
    }

    fn asked(names: &[&str]) -> Asked {
        let specs: Vec<Spec> = names.iter().map(|name| Spec::parse(name).unwrap()).collect();
        Asked::new(&specs, &[], names.is_empty())
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
        let failure = |clip: &str| {
            let (clip, system, reason) = (clip.to_owned(), "x@6".to_owned(), String::new());
            Failure { clip, system, reason }
        };
        let mut now = results(&BEFORE[..2]);
        now.failures.push(failure("c"));
        let comparison = compare(&before, &now).unwrap();
        assert_eq!(comparison.lost, ["x@6 fails on c, and did not before"]);
        assert!(!comparison.is_good());
        // On every clip.
        let mut now = results(&BEFORE);
        now.measurements.clear();
        now.failures = ["a", "b", "c"].map(failure).to_vec();
        assert_eq!(compare(&before, &now).unwrap().lost.len(), 3);
        // Clips that the user left out are named only.
        let comparison = compare(&before, &results(&BEFORE[..2])).unwrap();
        assert!(comparison.is_good(), "{comparison:?}");
        assert_eq!(comparison.notes, ["clips that are not part of this run: c"]);
        assert!(super::compare(&before, &results(&[("y@6", "a", 6.0, 3.0)]), &asked(&["y"])).is_err());
        assert!(compare(&before, &results(&[("x@6", "z", 6.0, 3.0)])).is_err());
    }

    #[test]
    fn what_stays_perfect_has_not_fallen() {
        let mut before = results(&BEFORE[..1]);
        before.measurements[0].scores = BTreeMap::from([("l1".to_owned(), 0.0), ("mel_dac".to_owned(), 0.0)]);
        let comparison = compare(&before, &before).unwrap();
        assert!(comparison.is_good() && comparison.n_compared == 3, "{comparison:?}");
    }

    #[test]
    fn scores_that_are_gone_are_worse_unless_nobody_asked() {
        let mut before = results(&BEFORE);
        before.measurements[0].scores.insert("utmos".to_owned(), 4.0);
        let mut now = before.clone();
        now.measurements[1].scores.clear();
        now.measurements[1].not_judged = BTreeMap::from([("pesq_wb".to_owned(), "why".to_owned())]);
        let comparison = compare(&before, &now).unwrap();
        assert_eq!(comparison.lost, ["pesq_wb judges b of x@6 no longer: why"]);
        let comparison = compare(&before, &results(&BEFORE)).unwrap();
        assert!(comparison.is_good(), "{comparison:?}");
        assert_eq!(comparison.notes, ["metrics that are not part of this run: utmos"]);
    }

    #[test]
    fn audio_that_ends_early_is_worse() {
        let before = results(&BEFORE);
        let mut now = results(&BEFORE);
        now.measurements[0].decoded_seconds = Some(0.96);
        assert!(compare(&before, &now).unwrap().is_good());
        now.measurements[0].decoded_seconds = Some(0.5);
        let comparison = compare(&before, &now).unwrap();
        assert_eq!(comparison.lost, ["x@6 gives back 0.50 of the 1.00 s of a"]);
    }

    #[test]
    fn missing_systems_are_worse_where_they_were_asked_for() {
        let both = [BEFORE[0], ("mp3@24", "a", 24.0, 3.0), ("mp3@32", "a", 32.0, 3.0)];
        let is_good = |n_systems: usize, names: &[&str]| {
            let now = results(&both[..n_systems]);
            super::compare(&results(&both), &now, &asked(names)).unwrap().is_good()
        };
        assert!(is_good(1, &["x@6"]), "mp3 is not among the codecs");
        assert!(!is_good(1, &[]), "nothing was left out");
        assert!(!is_good(1, &["x", "mp3"]), "its program is missing, for instance");
        assert!(!is_good(1, &["x", "mp3@24"]));
        assert!(is_good(2, &["x", "mp3@24"]), "another bitrate");
        assert!(is_good(2, &["x", "mp3"]), "its bitrates are ours to choose");
    }
}
