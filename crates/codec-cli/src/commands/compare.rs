//! `codec compare`: how far audio is from its original, by every metric that can tell.

use super::{Item, for_each};
use crate::Global;
use crate::inputs::{self, AUDIO_EXTENSIONS, Match, Place};
use crate::report::Reporter;
use crate::source::Source;
use anyhow::{Context, Result, bail};
use codec_core::AudioBuffer;
use codec_io::Converter;
use codec_metrics::align::{self, Resolution};
use codec_metrics::stats::Summary;
use codec_metrics::{Error, Metric, Scores, Versions, table_delimiter};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

/// Compare audio with its original: PESQ, STOI, SI-SDR, mel, STFT and other distances.
///
/// Takes two files, or two folders with files of the same names. The degraded audio is resampled to the rate of
/// its original, channels are mixed where their numbers differ, and the longer of the two is cut; a note says
/// so. PESQ and STOI judge a mono mix, at the rate that they need. A metric that cannot judge a pair says why,
/// and the others go on.
///
/// Exit codes: 0 every original was compared; 1 a pair failed, an original has no counterpart, or nothing could
/// be done; 130 interrupted. Degraded audio without an original is noted and left out.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec compare speech.wav decoded.wav --align
  codec compare clips/ decoded/ --align --json
  codec compare clips/ decoded/ --kinds clips.tsv --scores utmos.csv")]
pub(crate) struct Args {
    /// The original: a file or a folder.
    reference: PathBuf,
    /// What became of it: a file or a folder.
    degraded: PathBuf,
    /// Take out the delay of the degraded audio, to a fraction of a sample or to whole ones (`--align=sample`). It
    /// is reported. Where the correlation stays below 0.5 nothing is moved, and the result says so.
    #[arg(
        long,
        value_enum,
        value_name = "HOW",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "fraction"
    )]
    align: Option<Align>,
    /// Longest delay to look for, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5, requires = "align", value_parser = max_delay)]
    max_delay: f64,
    /// Bring the degraded audio to the level (RMS) of the original. The gain is reported.
    #[arg(long)]
    match_level: bool,
    /// Only these metrics, by short name [default: all].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    metrics: Vec<Metric>,
    /// Table of scores from elsewhere (UTMOS, word error rates, ..): CSV, or TSV by its ending, with a column `clip`
    /// or `file` and one per metric. A column `system` names the degraded folder or file.
    #[arg(long, value_name = "FILE")]
    scores: Vec<PathBuf>,
    /// Table of the kinds of clips for the summary, with the columns `clip` or `file`, and `kind` [default: the
    /// topmost folder below the given one].
    #[arg(long, value_name = "FILE")]
    kinds: Option<PathBuf>,
    /// Seed of the bootstrap behind the confidence intervals.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Degraded audio that is shorter than its original by more than this lacks something that can be heard.
const CUT_OFF_SECONDS: f64 = 0.05;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Align {
    /// To about a hundredth of a sample; interpolates the degraded audio.
    Fraction,
    /// To whole samples; leaves the samples as they are.
    Sample,
}

#[derive(Debug, Serialize)]
struct Outcome {
    clip: String,
    reference: String,
    degraded: String,
    sample_rate: u32,
    channels: u16,
    /// What was compared, after aligning and cutting.
    seconds: f64,
    reference_seconds: f64,
    degraded_seconds: f64,
    /// Whether the degraded audio is shorter than the original by more than 50 ms.
    is_cut_off: bool,
    /// None unless asked for, and where there is none to name.
    alignment: Option<Delay>,
    /// Why no delay was taken out although one was asked for.
    not_aligned: Option<String>,
    /// Applied to the degraded audio; none unless asked for.
    gain_db: Option<f64>,
    /// By the short name of the metric.
    scores: BTreeMap<String, f64>,
    /// Why a metric gave no score.
    not_judged: BTreeMap<&'static str, String>,
}

/// By how much the degraded audio was late; it is no longer.
#[derive(Debug, Serialize)]
struct Delay {
    samples: f64,
    seconds: f64,
    correlation: f64,
    inverted: bool,
}

#[derive(Debug, Serialize)]
struct SummaryLine {
    summary: Vec<Mean>,
    /// Originals without a counterpart; they make the exit code 1.
    missing: Vec<String>,
    /// Degraded audio without an original.
    superfluous: Vec<String>,
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Mean {
    metric: String,
    /// None for all kinds together.
    kind: Option<String>,
    n: usize,
    mean: f64,
    deviation: Option<f64>,
    /// Lower and upper end of the 95 % confidence interval.
    interval: Option<[f64; 2]>,
}

impl Item for Match {
    fn input(&self) -> &Place {
        &self.right
    }
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let (matches, alone) = inputs::match_up(&args.reference, &args.degraded, &AUDIO_EXTENSIONS)?;
    let reporter = Reporter::new(global, false);
    for place in &alone.left {
        reporter.note(&format!("{place}: has no counterpart, which counts as failed"));
    }
    for place in &alone.right {
        reporter.note(&format!("{place}: has no original, left out"));
    }
    // Read before the work: a wrong name should not cost all of it.
    let names: BTreeSet<&str> = matches.iter().map(|pair| pair.name.as_str()).collect();
    let imported = read_tables(args, &names, &reporter)?;
    let scores = Mutex::new(Scores::default());
    let code = for_each(&matches, &reporter, |pair| {
        if reporter.is_unread() {
            return Ok(());
        }
        let mut outcome = compare(pair, args, &reporter).with_context(|| pair.right.to_string())?;
        for metric in imported.metrics() {
            let of_metric = imported.of(metric, system(args), None);
            let of_pair = of_metric.into_iter().filter(|(clip, _)| *clip == pair.name);
            outcome.scores.extend(of_pair.map(|(_, score)| (metric.to_owned(), score)));
        }
        let mut scores = scores.lock().unwrap_or_else(PoisonError::into_inner);
        for (metric, score) in &outcome.scores {
            scores.insert(&pair.name, system(args), metric, *score)?;
        }
        if let Some((folder, _)) = pair.name.split_once('/') {
            scores.set_kind(&pair.name, folder);
        }
        reporter.result(|| describe(&outcome), &outcome)
    });
    let mut scores = scores.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (clip, kind) in imported.kinds_of_clips() {
        scores.set_kind(clip, kind);
    }
    if matches.len() > 1 || !alone.left.is_empty() || !alone.right.is_empty() {
        let summary = summarize(args, &scores)?;
        let line =
            SummaryLine { summary, missing: alone.left.clone(), superfluous: alone.right, seed: args.seed };
        reporter.result(|| describe_summary(&line), &line)?;
    }
    let is_whole = code != ExitCode::SUCCESS || alone.left.is_empty();
    Ok(if is_whole { code } else { ExitCode::FAILURE })
}

fn max_delay(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if seconds >= 0.0 { Ok(seconds) } else { Err("must not be negative".to_owned()) }
}

/// One degraded folder is one system.
fn system(args: &Args) -> &str {
    args.degraded.file_name().and_then(|name| name.to_str()).unwrap_or("degraded")
}

fn compare(pair: &Match, args: &Args, reporter: &Reporter) -> Result<Outcome> {
    let mut reference = read(&pair.left, reporter)?;
    let mut degraded = read(&pair.right, reporter)?;
    let (reference_seconds, degraded_seconds) = (reference.seconds(), degraded.seconds());
    let mut spec = reference.spec();
    if spec.channels != degraded.spec().channels {
        spec.channels = 1;
    }
    for (place, audio) in [(&pair.left, &mut reference), (&pair.right, &mut degraded)] {
        if let Some(steps) = Converter::describe(audio.spec(), spec) {
            reporter.note(&format!("{place}: {steps}, as the comparison needs it"));
            *audio = Converter::whole(audio, spec)?;
        }
    }
    let (mut alignment, mut not_aligned) = (None, None);
    if let Some(how) = args.align {
        let resolution = match how {
            Align::Fraction => Resolution::Fraction,
            Align::Sample => Resolution::Sample,
        };
        let max_delay = (args.max_delay * f64::from(spec.sample_rate)).round() as usize;
        match align::estimate(&reference, &degraded, max_delay, resolution) {
            Ok(found) => {
                (reference, degraded) = found.apply(&reference, &degraded)?;
                alignment = Some(Delay {
                    samples: found.delay,
                    seconds: found.delay / f64::from(spec.sample_rate),
                    correlation: found.correlation,
                    inverted: found.is_inverted,
                });
            }
            // A delay that was made up would spoil what the metrics say.
            Err(error @ (Error::Unlike { .. } | Error::Silent { .. })) => {
                not_aligned = Some(error.to_string())
            }
            Err(error) => return Err(error).context("--align"),
        }
    }
    if reference.n_samples() != degraded.n_samples() {
        let (left, right) = (reference.n_samples(), degraded.n_samples());
        let n_samples = left.min(right);
        let text =
            format!("the original has {left} samples, this {right}; the first {n_samples} are compared");
        reporter.note(&format!("{}: {text}", pair.right));
        reference.truncate(n_samples);
        degraded.truncate(n_samples);
    }
    let gain_db = if args.match_level {
        let gain = align::level_difference(&reference, &degraded).context("--match-level")?;
        degraded = align::with_gain(&degraded, gain)?;
        Some(gain)
    } else {
        None
    };
    let (mut scores, mut not_judged) = (BTreeMap::new(), BTreeMap::new());
    let seconds = reference.seconds();
    let mut versions = Versions::new(reference, degraded, Converter::whole);
    let metrics = if args.metrics.is_empty() { &Metric::ALL[..] } else { &args.metrics };
    for &metric in metrics {
        let name = metric.describe().name;
        match versions.judge(metric) {
            Ok(score) => {
                scores.insert(name.to_owned(), score);
            }
            Err(error) => {
                not_judged.insert(name, error.to_string());
            }
        }
    }
    Ok(Outcome {
        clip: pair.name.clone(),
        reference: pair.left.to_string(),
        degraded: pair.right.to_string(),
        sample_rate: spec.sample_rate,
        channels: spec.channels,
        seconds,
        reference_seconds,
        degraded_seconds,
        is_cut_off: reference_seconds - degraded_seconds > CUT_OFF_SECONDS,
        alignment,
        not_aligned,
        gain_db,
        scores,
        not_judged,
    })
}

fn read(place: &Place, reporter: &Reporter) -> Result<AudioBuffer> {
    let mut source = Source::open(place, |from| from, reporter)?;
    let mut audio = AudioBuffer::empty(source.from())?;
    while let Some(piece) = source.read()? {
        audio.append(&piece)?;
    }
    source.close(reporter);
    if audio.is_empty() {
        bail!("{place}: holds no samples");
    }
    Ok(audio)
}

/// What `--kinds` and `--scores` say of the clips that are compared; what they say of others is named.
fn read_tables(args: &Args, names: &BTreeSet<&str>, reporter: &Reporter) -> Result<Scores> {
    let clip_name = |written: &str| codec_metrics::clip_name(written, names, &AUDIO_EXTENSIONS);
    let open = |path: &Path| std::fs::File::open(path).with_context(|| path.display().to_string());
    let mut all = Scores::default();
    for path in &args.scores {
        // Each by itself first, so that a note names the table.
        let (mut table, delimiter) = (Scores::default(), table_delimiter(path));
        let failed = || path.display().to_string();
        table.merge_csv(open(path)?, delimiter, system(args), clip_name).with_context(failed)?;
        all.merge_csv(open(path)?, delimiter, system(args), clip_name).with_context(failed)?;
        if let Some(metric) = table.metrics().into_iter().find(|name| metrics(args).any(|m| m == *name)) {
            bail!("{}: {metric} is measured here; rename the column, or leave it out of --metrics", failed());
        }
        for name in table.systems().into_iter().filter(|name| *name != system(args)) {
            reporter.note(&format!("{}: rows of {name} are not used, this is {}", failed(), system(args)));
        }
        for clip in table.clips().into_iter().filter(|clip| !names.contains(clip)) {
            reporter.note(&format!("{}: {clip} is not among the compared clips", failed()));
        }
    }
    all.retain(|clip, of| names.contains(clip) && of == system(args));
    if let Some(path) = &args.kinds {
        let merged = all.merge_kinds(open(path)?, table_delimiter(path), clip_name);
        merged.with_context(|| path.display().to_string())?;
    }
    Ok(all)
}

/// Short names of the metrics that are measured.
fn metrics(args: &Args) -> impl Iterator<Item = &'static str> {
    let metrics = if args.metrics.is_empty() { &Metric::ALL[..] } else { &args.metrics };
    metrics.iter().map(|metric| metric.describe().name)
}

/// The mean of each metric, over all clips and, where there are several kinds, over each.
fn summarize(args: &Args, scores: &Scores) -> Result<Vec<Mean>> {
    let own = Metric::ALL.map(|metric| metric.describe().name);
    let rank = |name: &str| own.iter().position(|own| *own == name).unwrap_or(own.len());
    let mut metrics = scores.metrics();
    metrics.sort_by_key(|name| rank(name));
    let kinds = scores.kinds();
    let each = if kinds.len() > 1 { kinds.as_slice() } else { &[] };
    let mut means = Vec::new();
    for metric in metrics {
        for kind in [None].into_iter().chain(each.iter().copied().map(Some)) {
            if scores.of(metric, system(args), kind).is_empty() {
                continue;
            }
            let Summary { n, mean, deviation, interval } =
                scores.summarize(metric, system(args), kind, args.seed)?;
            let interval = interval.map(|interval| [interval.low, interval.high]);
            let (metric, kind) = (metric.to_owned(), kind.map(str::to_owned));
            means.push(Mean { metric, kind, n, mean, deviation, interval });
        }
    }
    Ok(means)
}

fn describe(outcome: &Outcome) -> String {
    let Outcome { reference, degraded, seconds, sample_rate, channels, .. } = outcome;
    let mut text =
        format!("{degraded} against {reference}: {seconds:.2} s at {sample_rate} Hz, {channels} channel(s)");
    let mut line = |line: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {line}");
    };
    if outcome.is_cut_off {
        line(format_args!(
            "warning: ends early, {:.2} s of an original of {:.2} s; what is missing is not judged",
            outcome.degraded_seconds, outcome.reference_seconds
        ));
    }
    if let Some(delay) = &outcome.alignment {
        let inverted = if delay.inverted { ", upside down" } else { "" };
        let direction = if delay.samples < 0.0 { "early" } else { "late" };
        line(format_args!(
            "was {:.2} samples ({:.2} ms) {direction}, correlation {:.3}{inverted}",
            delay.samples.abs(),
            1e3 * delay.seconds.abs(),
            delay.correlation
        ));
    }
    if let Some(reason) = &outcome.not_aligned {
        line(format_args!("not aligned: {reason}"));
    }
    if let Some(gain) = outcome.gain_db {
        line(format_args!("level changed by {gain:+.2} dB"));
    }
    for metric in Metric::ALL {
        let about = metric.describe();
        if let Some(score) = outcome.scores.get(about.name) {
            line(format_args!("{:16}{score:>10.4} {:8}{}", about.name, about.unit, about.label));
        } else if let Some(reason) = outcome.not_judged.get(about.name) {
            line(format_args!("{:16}{:>10} {reason}", about.name, "-"));
        }
    }
    for (name, score) in outcome.scores.iter().filter(|(name, _)| Metric::by_name(name).is_none()) {
        line(format_args!("{name:16}{score:>10.4} {:8}from a table", ""));
    }
    text
}

fn describe_summary(line: &SummaryLine) -> String {
    let mut text = "mean over clips, with the 95 % confidence interval of the mean".to_owned();
    for Mean { metric, kind, n, mean, interval, .. } in &line.summary {
        let name = kind.as_ref().map_or_else(|| metric.clone(), |kind| format!("  {kind}"));
        let interval = interval.map_or(String::new(), |[low, high]| format!("[{low:.4}, {high:.4}]"));
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {name:24}{mean:>10.4} {interval:24}{n} clip(s)");
    }
    if !line.missing.is_empty() {
        let _ = write!(text, "\n  without a counterpart: {}", line.missing.join(", "));
    }
    text
}
