//! What a run found, as it is kept: one file of JSON for programs, one of CSV for tables.

use anyhow::{Context, Result, ensure};
use codec_io::atomic::AtomicFile;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

/// Says what a file of results is; the number changes when older ones can no longer be read.
const FORMAT: &str = "codec-eval/1";

/// Everything that a run found.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Results {
    format: String,
    pub(crate) provenance: Provenance,
    pub(crate) systems: Vec<SystemInfo>,
    pub(crate) clips: Vec<ClipInfo>,
    pub(crate) measurements: Vec<Measurement>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) speeds: Vec<Speed>,
    pub(crate) codebooks: Vec<CodebookUse>,
    /// Which values are good, of metrics whose table says it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) directions: BTreeMap<String, Direction>,
}

/// Which values of a metric from a table are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    Lower,
    Higher,
}

/// Where the numbers come from.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Provenance {
    /// When the run began, RFC 3339 in UTC.
    pub(crate) date: String,
    pub(crate) command: String,
    pub(crate) commit: String,
    pub(crate) version: String,
    pub(crate) machine: String,
    pub(crate) threads: usize,
    /// How the clips were named, and the SHA-256 over their names, kinds and bytes.
    pub(crate) data: String,
    pub(crate) data_sha256: String,
    /// By short name: the metric with its variant and unit.
    pub(crate) metrics: Vec<(String, String)>,
    pub(crate) seed: u64,
    /// Baselines that were asked for and have no program here.
    pub(crate) missing: Vec<String>,
}

/// A codec at a bitrate.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct SystemInfo {
    /// `CODEC@KBPS`, or the codec alone where it has no bitrate to choose.
    pub(crate) id: String,
    pub(crate) codec: String,
    pub(crate) group: Group,
    pub(crate) nominal_kbps: Option<f64>,
    /// What made it: hash of the weights, or name and version of a program.
    pub(crate) identity: String,
}

/// What kind of codec it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Group {
    Neural,
    Classical,
    Lossless,
}

/// A clip that took part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub(crate) struct ClipInfo {
    pub(crate) name: String,
    /// `speech`, `music` or another word; empty when it is not known.
    pub(crate) kind: String,
    pub(crate) sha256: String,
}

/// One clip after one system.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Measurement {
    pub(crate) clip: String,
    pub(crate) kind: String,
    pub(crate) system: String,
    /// Length of the original.
    pub(crate) seconds: f64,
    /// Length of what was decoded; earlier runs did not say.
    #[serde(default)]
    pub(crate) decoded_seconds: Option<f64>,
    /// The coded file as it was written.
    pub(crate) n_bytes: u64,
    /// All bytes of the file over the duration.
    pub(crate) kbps: f64,
    /// Without headers and framing, where the format tells them apart.
    pub(crate) payload_kbps: Option<f64>,
    /// Rate at which the metrics judged, but for those that have their own.
    pub(crate) sample_rate: u32,
    pub(crate) delay: Option<Delay>,
    /// By the metric's short name.
    pub(crate) scores: BTreeMap<String, f64>,
    /// Why a metric gave no score.
    pub(crate) not_judged: BTreeMap<String, String>,
}

/// Decoded audio that is shorter than its original by more than this lacks something that can be heard, in seconds.
/// Frames and delays of codecs take less.
const CUT_OFF_SECONDS: f64 = 0.05;

impl Measurement {
    /// Length of what was decoded, where it is shorter than the original by more than 50 ms. What is missing is not
    /// judged.
    pub(crate) fn cut_off(&self) -> Option<f64> {
        self.decoded_seconds.filter(|decoded| self.seconds - decoded > CUT_OFF_SECONDS)
    }
}

/// By how much the decoded audio was late before it was aligned.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct Delay {
    /// Zero where it is not believed.
    pub(crate) samples: f64,
    pub(crate) correlation: f64,
    pub(crate) inverted: bool,
    /// Where the correlation is low the delay is not believed, and left in.
    pub(crate) taken_out: bool,
}

/// A clip that a system could not do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Failure {
    pub(crate) clip: String,
    pub(crate) system: String,
    pub(crate) reason: String,
}

/// Time and memory, measured with nothing else of the run going on.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Speed {
    pub(crate) system: String,
    /// Length of the clip.
    pub(crate) seconds: f64,
    /// Median times.
    pub(crate) encode_seconds: f64,
    pub(crate) decode_seconds: f64,
    /// To load the model; none for classical codecs.
    pub(crate) load_seconds: Option<f64>,
    /// Largest resident memory of the process that coded, where the system tells.
    pub(crate) peak_bytes: Option<u64>,
    /// Whether starting a program is part of the times.
    pub(crate) is_program: bool,
}

/// How a codebook was used over all clips.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct CodebookUse {
    pub(crate) codec: String,
    /// Counted from one, coarse to fine.
    pub(crate) codebook: usize,
    pub(crate) size: u32,
    pub(crate) n_codes: u64,
    pub(crate) n_used: u64,
    pub(crate) entropy_bits: f64,
    pub(crate) perplexity: f64,
}

impl Results {
    /// Nothing measured yet.
    pub(crate) fn new(provenance: Provenance, systems: Vec<SystemInfo>, clips: Vec<ClipInfo>) -> Self {
        Self {
            format: FORMAT.to_owned(),
            provenance,
            systems,
            clips,
            measurements: Vec::new(),
            failures: Vec::new(),
            speeds: Vec::new(),
            codebooks: Vec::new(),
            directions: BTreeMap::new(),
        }
    }

    /// What was decoded too short, as sentences without their end.
    pub(crate) fn cut_off(&self) -> Vec<String> {
        let sentence = |measured: &Measurement| {
            let Measurement { clip, system, seconds, .. } = measured;
            let decoded = measured.cut_off()?;
            Some(format!("{system} gives back {decoded:.2} of the {seconds:.2} s of {clip}"))
        };
        self.measurements.iter().filter_map(sentence).collect()
    }

    /// How many clips failed in how many systems.
    pub(crate) fn failed(&self) -> String {
        let clips: BTreeSet<&str> = self.failures.iter().map(|failure| failure.clip.as_str()).collect();
        let systems: BTreeSet<&str> = self.failures.iter().map(|failure| failure.system.as_str()).collect();
        format!("{} failed in {}", count(clips.len(), "clip"), count(systems.len(), "system"))
    }

    /// Reads the results of an earlier run.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let failed = || format!("{}: not the results of an evaluation", path.display());
        let results: Self = serde_json::from_slice(&text).with_context(failed)?;
        ensure!(
            results.format == FORMAT,
            "{}: has the format {}, not {FORMAT}",
            path.display(),
            results.format
        );
        Ok(results)
    }

    pub(crate) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// One row per clip and system, one column per metric.
    pub(crate) fn to_csv(&self) -> Result<Vec<u8>> {
        let metrics: BTreeSet<&String> =
            self.measurements.iter().flat_map(|measured| measured.scores.keys()).collect();
        let mut table = csv::Writer::from_writer(Vec::new());
        let fixed = [
            "clip",
            "kind",
            "system",
            "seconds",
            "decoded_seconds",
            "n_bytes",
            "kbps",
            "payload_kbps",
            "delay_samples",
        ];
        table.write_record(fixed.iter().copied().chain(metrics.iter().map(|name| name.as_str())))?;
        let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        for measured in &self.measurements {
            let Measurement {
                clip, kind, system, seconds, decoded_seconds, n_bytes, kbps, payload_kbps, ..
            } = measured;
            let fixed = [
                clip.clone(),
                kind.clone(),
                system.clone(),
                seconds.to_string(),
                number(*decoded_seconds),
                n_bytes.to_string(),
                kbps.to_string(),
                number(*payload_kbps),
                number(measured.delay.filter(|delay| delay.taken_out).map(|delay| delay.samples)),
            ];
            let scores = metrics.iter().map(|name| number(measured.scores.get(*name).copied()));
            table.write_record(fixed.into_iter().chain(scores))?;
        }
        Ok(table.into_inner()?)
    }
}

/// `1 clip`, `2 clips`.
pub(crate) fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// Writes a file that appears when it is whole.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = AtomicFile::create(path)?;
        file.write_all(bytes)?;
        file.commit()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
