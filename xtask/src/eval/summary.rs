//! From measurements to statements: means with intervals, differences on the same clips, what is not monotone.

use super::clips::Clip;
use super::results::{Direction, Group, Measurement, Results, SystemInfo};
use anyhow::{Context, Result, bail};
use codec_metrics::stats::{PairedDifference, Summary};
use codec_metrics::{Better, Metric, Scores, clip_name, table_delimiter};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How a metric is shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shown {
    pub(crate) name: String,
    pub(crate) label: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
}

/// The scores of a run, ready to be summarized.
#[derive(Debug)]
pub(crate) struct Summaries<'a> {
    pub(crate) results: &'a Results,
    scores: Scores,
    seed: u64,
}

/// A system that is worse than the one below it, of the same codec.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dip {
    pub(crate) metric: String,
    pub(crate) lower: String,
    pub(crate) higher: String,
    /// What the higher bitrate has more, on the same clips.
    pub(crate) difference: f64,
    /// Whether the interval leaves out zero.
    pub(crate) is_significant: bool,
}

impl Shown {
    /// One of our metrics, or a neural judge from a table; `directions` are those that tables state.
    pub(crate) fn of(name: &str, directions: &BTreeMap<String, Direction>) -> Self {
        if let Some(metric) = Metric::by_name(name) {
            let described = metric.describe();
            return Self {
                name: name.to_owned(),
                label: described.label.to_owned(),
                unit: described.unit.to_owned(),
                better: described.better,
            };
        }
        // Error rates are the only judges in use that are better when lower; a table may say it of others.
        let lower = name.to_ascii_lowercase();
        let is_rate = lower.split(['_', '-', ' ', '.']).any(|word| matches!(word, "wer" | "cer" | "per"));
        let better = match directions.get(name) {
            Some(Direction::Lower) => Better::Lower,
            Some(Direction::Higher) => Better::Higher,
            None if is_rate => Better::Lower,
            None => Better::Higher,
        };
        Self { name: name.to_owned(), label: format!("{name} (from a table)"), unit: String::new(), better }
    }

    /// An arrow towards the good values.
    pub(crate) fn arrow(&self) -> &'static str {
        match self.better {
            Better::Higher => "↑",
            Better::Lower => "↓",
            Better::Zero => "→0",
        }
    }

    /// A value with as many digits as mean something.
    pub(crate) fn digits(&self, value: f64) -> String {
        match self.name.as_str() {
            "stoi" | "estoi" => format!("{value:.3}"),
            "l1" => format!("{value:.4}"),
            _ if value.abs() >= 10.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        }
    }

    /// How much better the first value is than the second; negative when it is worse.
    pub(crate) fn gain(&self, first: f64, second: f64) -> f64 {
        match self.better {
            Better::Higher => first - second,
            Better::Lower => second - first,
            Better::Zero => second.abs() - first.abs(),
        }
    }
}

impl<'a> Summaries<'a> {
    /// # Errors
    /// When a clip has two scores of one metric by one system.
    pub(crate) fn new(results: &'a Results) -> Result<Self> {
        Ok(Self { results, scores: scores(&results.measurements)?, seed: results.provenance.seed })
    }

    /// The metrics with scores: ours in their order, then those from tables.
    pub(crate) fn metrics(&self) -> Vec<Shown> {
        let own = Metric::ALL.map(|metric| metric.describe().name);
        let rank = |name: &str| own.iter().position(|own| *own == name).unwrap_or(own.len());
        let mut names = self.scores.metrics();
        names.sort_by_key(|name| rank(name));
        names.into_iter().map(|name| Shown::of(name, &self.results.directions)).collect()
    }

    /// The kinds of clips, when there are several.
    pub(crate) fn kinds(&self) -> Vec<&str> {
        let kinds = self.scores.kinds();
        if kinds.len() > 1 { kinds } else { Vec::new() }
    }

    /// The mean of a metric over the clips of a kind, or all; `None` without scores.
    pub(crate) fn of(&self, metric: &str, system: &str, kind: Option<&str>) -> Option<Summary> {
        self.scores.summarize(metric, system, kind, self.seed).ok()
    }

    /// All bytes over all time, in kbit/s, and the number of clips.
    pub(crate) fn kbps(&self, system: &str, kind: Option<&str>) -> Option<(f64, usize)> {
        let measured = self.measured(system, kind);
        let seconds: f64 = measured.iter().map(|measured| measured.seconds).sum();
        let n_bytes: u64 = measured.iter().map(|measured| measured.n_bytes).sum();
        (seconds > 0.0).then(|| (n_bytes as f64 * 8.0 / seconds / 1000.0, measured.len()))
    }

    /// The same without headers and framing; `None` where the format does not tell them apart.
    pub(crate) fn payload_kbps(&self, system: &str, kind: Option<&str>) -> Option<f64> {
        let measured = self.measured(system, kind);
        let seconds: f64 = measured.iter().map(|measured| measured.seconds).sum();
        let bits = |measured: &&Measurement| Some(measured.payload_kbps? * measured.seconds);
        let bits: Option<f64> = measured.iter().map(bits).sum();
        bits.filter(|_| seconds > 0.0).map(|bits| bits / seconds)
    }

    /// The number of clips behind each mean of a metric, where all systems have the same; none are of no concern.
    pub(crate) fn n_scores(&self, metric: &str, kind: Option<&str>) -> Option<usize> {
        let systems = self.results.systems.iter();
        let counts: BTreeSet<usize> =
            systems.filter_map(|system| Some(self.of(metric, &system.id, kind)?.n)).collect();
        counts.first().copied().filter(|_| counts.len() == 1)
    }

    fn measured(&self, system: &str, kind: Option<&str>) -> Vec<&'a Measurement> {
        let all = self.results.measurements.iter().filter(|measured| measured.system == system);
        all.filter(|measured| kind.is_none_or(|kind| measured.kind == kind)).collect()
    }

    /// The first system minus the second on the clips of both.
    pub(crate) fn compare(&self, metric: &str, first: &str, second: &str) -> Option<PairedDifference> {
        self.scores.compare(metric, first, second, None, self.seed).ok()
    }

    /// The classical system of each codec whose measured bitrate is nearest to that of a neural one, if it is no
    /// more than twice or half of it.
    pub(crate) fn rivals(&self, system: &SystemInfo) -> Vec<&'a SystemInfo> {
        let Some((kbps, _)) = self.kbps(&system.id, None) else { return Vec::new() };
        let systems = &self.results.systems;
        let distance = |other: &&SystemInfo| {
            self.kbps(&other.id, None).map_or(f64::INFINITY, |(other, _)| (other / kbps).ln().abs())
        };
        let classical = || systems.iter().filter(|other| other.group == Group::Classical);
        let codecs: BTreeSet<&str> = classical().map(|other| other.codec.as_str()).collect();
        let nearest = |codec: &str| {
            let own = classical().filter(|other| other.codec == codec);
            own.min_by(|a, b| distance(a).total_cmp(&distance(b)))
        };
        let is_near = |other: &&SystemInfo| distance(other) <= 2.0_f64.ln();
        codecs.into_iter().filter_map(nearest).filter(is_near).collect()
    }

    /// Where more bits of one codec, as measured, give a worse score.
    pub(crate) fn dips(&self) -> Vec<Dip> {
        let mut dips = Vec::new();
        let rate = |system: &SystemInfo| self.kbps(&system.id, None).map_or(0.0, |(kbps, _)| kbps);
        let mut systems: Vec<&SystemInfo> = self.results.systems.iter().collect();
        systems.sort_by(|a, b| a.codec.cmp(&b.codec).then(rate(a).total_cmp(&rate(b))));
        for metric in self.metrics().iter().filter(|metric| metric.better != Better::Zero) {
            for (lower, higher) in systems.iter().zip(systems.iter().skip(1)) {
                if lower.codec != higher.codec {
                    continue;
                }
                let Some(found) = self.compare(&metric.name, &higher.id, &lower.id) else { continue };
                if metric.gain(found.difference.mean, 0.0) < 0.0 {
                    dips.push(Dip {
                        metric: metric.name.clone(),
                        lower: lower.id.clone(),
                        higher: higher.id.clone(),
                        difference: found.difference.mean,
                        is_significant: found.is_significant(),
                    });
                }
            }
        }
        dips
    }
}

/// Scores by clip, system and metric.
///
/// # Errors
/// As [`Summaries::new`].
pub(crate) fn scores(measurements: &[Measurement]) -> Result<Scores> {
    let mut scores = Scores::default();
    for measured in measurements {
        for (metric, score) in &measured.scores {
            scores.insert(&measured.clip, &measured.system, metric, *score)?;
        }
        if !measured.kind.is_empty() {
            scores.set_kind(&measured.clip, &measured.kind);
        }
    }
    Ok(scores)
}

/// Adds the scores of a table from elsewhere to the measurements; gives the clips that it alone knows.
///
/// Before anything is measured it finds what is wrong with the table.
///
/// # Errors
/// When the table cannot be read, names a system that is not part of the run, names none while there are several, or
/// has scores of a metric that the run measures.
pub(crate) fn merge_table(results: &mut Results, table: &Path, clips: &[Clip]) -> Result<BTreeSet<String>> {
    let failed = || table.display().to_string();
    let known: BTreeSet<&str> = results.systems.iter().map(|system| system.id.as_str()).collect();
    let unnamed = if let [only] = results.systems.as_slice() { only.id.as_str() } else { "" };
    let names: BTreeSet<&str> = clips.iter().map(|clip| clip.name.as_str()).collect();
    let ours = |written: &str| clip_name(written, &names, &codec_io::audio::EXTENSIONS);
    let file = std::fs::File::open(table).with_context(failed)?;
    let mut scores = scores(&results.measurements)?;
    scores.merge_csv(file, table_delimiter(table), unnamed, ours).with_context(failed)?;
    if let Some(unknown) = scores.systems().into_iter().find(|system| !known.contains(system)) {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        let what = if unknown.is_empty() {
            "its rows need a column `system`".to_owned()
        } else {
            format!("no system is called {unknown}")
        };
        bail!("{}: {what}; there are {known}", table.display());
    }
    let own = |metric: &str| results.provenance.metrics.iter().any(|(name, _)| name == metric);
    if results.measurements.is_empty()
        && let Some(metric) = scores.metrics().into_iter().find(|metric| own(metric))
    {
        bail!(
            "{}: {metric} is measured here; rename the column, or leave it out of --metrics",
            table.display()
        );
    }
    for metric in scores.metrics() {
        let direction = match scores.better(metric) {
            Some(Better::Lower) => Some(Direction::Lower),
            Some(Better::Higher) => Some(Direction::Higher),
            Some(Better::Zero) | None => None,
        };
        if let Some(direction) = direction
            && results.directions.insert(metric.to_owned(), direction).is_some_and(|other| other != direction)
        {
            bail!("{}: another table says the opposite of {metric}", table.display());
        }
        for measured in &mut results.measurements {
            let of_clip = scores.of(metric, &measured.system, None);
            if let Some((_, score)) = of_clip.iter().find(|(clip, _)| *clip == measured.clip) {
                measured.scores.insert(metric.to_owned(), *score);
            }
        }
    }
    let unknown = scores.clips().into_iter().filter(|clip| !names.contains(clip));
    Ok(unknown.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::results::Provenance;
    use std::collections::BTreeMap;

    /// Three clips; the score of a clip grows with its number.
    fn results(systems: &[(&str, Group, f64, f64)]) -> Results {
        let info = |(id, group, ..): &(&str, Group, f64, f64)| SystemInfo {
            id: (*id).to_owned(),
            codec: id.split('@').next().unwrap().to_owned(),
            group: *group,
            nominal_kbps: None,
            identity: String::new(),
        };
        let mut results = Results::new(Provenance::default(), systems.iter().map(info).collect(), Vec::new());
        for (id, _, kbps, score) in systems {
            results.measurements.extend((0..3).map(|clip_idx| Measurement {
                clip: format!("set/{clip_idx}"),
                kind: if clip_idx == 0 { "music".to_owned() } else { "speech".to_owned() },
                system: (*id).to_owned(),
                seconds: f64::from(clip_idx + 1),
                decoded_seconds: None,
                n_bytes: (kbps * 125.0) as u64 * u64::from(clip_idx as u32 + 1),
                kbps: *kbps,
                payload_kbps: (*id != "mp3@16").then_some(kbps / 2.0),
                sample_rate: 16_000,
                delay: None,
                scores: BTreeMap::from([("pesq_wb".to_owned(), score + f64::from(clip_idx))]),
                not_judged: BTreeMap::new(),
            }));
        }
        results
    }

    fn some() -> Results {
        results(&[
            ("net@4", Group::Neural, 4.0, 2.0),
            ("opus@6", Group::Classical, 6.0, 1.5),
            ("opus@12", Group::Classical, 12.0, 1.25),
            ("mp3@16", Group::Classical, 16.0, 2.5),
            ("pcm", Group::Lossless, 256.0, 4.5),
        ])
    }

    #[test]
    fn rates_rivals_and_dips_are_found() {
        let results = some();
        let summaries = Summaries::new(&results).unwrap();
        assert_eq!(summaries.kbps("net@4", None), Some((4.0, 3)));
        assert_eq!(summaries.kbps("net@4", Some("speech")), Some((4.0, 2)));
        assert_eq!(summaries.kbps("none", None), None);
        assert_eq!(summaries.payload_kbps("opus@6", None), Some(3.0));
        assert_eq!(summaries.payload_kbps("mp3@16", None), None);
        assert_eq!(summaries.of("pesq_wb", "net@4", Some("speech")).unwrap().mean, 3.5);
        assert_eq!(summaries.kinds(), ["music", "speech"]);
        // MP3 takes four times as much.
        let rivals: Vec<&str> =
            summaries.rivals(&results.systems[0]).iter().map(|rival| rival.id.as_str()).collect();
        assert_eq!(rivals, ["opus@6"]);
        let dips = summaries.dips();
        let [dip] = dips.as_slice() else { panic!("{dips:?}") };
        assert_eq!((dip.lower.as_str(), dip.higher.as_str(), dip.difference), ("opus@6", "opus@12", -0.25));
        assert!(dip.is_significant);
        // The order in which they were named does not matter.
        let mut turned = some();
        turned.systems.reverse();
        assert_eq!(Summaries::new(&turned).unwrap().dips(), dips);
        assert_eq!(summaries.n_scores("pesq_wb", None), Some(3));
    }

    #[test]
    fn directions_are_those_of_whole_words_or_of_the_table() {
        let better = |name: &str| Shown::of(name, &BTreeMap::new()).better;
        for name in ["wer", "WER_large", "whisper-cer"] {
            assert_eq!(better(name), Better::Lower, "{name}");
        }
        for name in ["certainty_mos", "utmos", "power"] {
            assert_eq!(better(name), Better::Higher, "{name}");
        }
        let stated = BTreeMap::from([("fad".to_owned(), Direction::Lower)]);
        assert_eq!(Shown::of("fad", &stated).better, Better::Lower);
    }

    #[test]
    fn tables_of_other_judges_are_merged() {
        let folder = tempfile::tempdir().unwrap();
        let clips = crate::eval::clips::named(&["set/0", "set/1", "set/2"]);
        let merge = |results: &mut Results, text: &str| {
            let path = folder.path().join("scores.csv");
            std::fs::write(&path, text).unwrap();
            merge_table(results, &path, &clips)
        };
        let mut found = some();
        let table = "file,system,utmos,wer\nset/0.wav,net@4,4.1,0.02\n1.flac,net@4,3.9,\nx,net@4,1,1\n";
        assert_eq!(merge(&mut found, table).unwrap(), BTreeSet::from(["x".to_owned()]));
        let summaries = Summaries::new(&found).unwrap();
        assert_eq!(summaries.of("utmos", "net@4", None).unwrap().mean, 4.0);
        assert_eq!(summaries.of("wer", "net@4", None).unwrap().n, 1);
        let metrics = summaries.metrics();
        assert_eq!(metrics.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["pesq_wb", "utmos", "wer"]);
        assert_eq!((metrics[1].better, metrics[2].better), (Better::Higher, Better::Lower));
        let mut stated = some();
        merge(&mut stated, "clip,system,fad:lower\nset/0,net@4,2\n").unwrap();
        assert_eq!(stated.directions["fad"], Direction::Lower);
        assert_eq!(stated.measurements[0].scores["fad"], 2.0);

        let wrong = |text: &str| merge(&mut some(), text).unwrap_err().to_string();
        assert!(wrong("clip,system,utmos\nset/0,neti,4\n").contains("no system is called neti"));
        assert!(wrong("clip,utmos\nset/0,4\n").contains("need a column `system`"));
        assert!(wrong("clip,system,pesq_wb\nset/0,net@4,4\n").contains("scores.csv"));
        // One system needs no name.
        let mut single = results(&[("net@4", Group::Neural, 4.0, 2.0)]);
        assert!(merge(&mut single, "clip,utmos\nset/0,4\n").unwrap().is_empty());
        assert_eq!(single.measurements[0].scores["utmos"], 4.0);
    }
}
