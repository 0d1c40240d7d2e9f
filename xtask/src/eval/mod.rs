//! `cargo xtask eval`: codecs by bitrates by clips, and what came of it on one page.

mod clips;
mod codecs;
mod interrupt;
mod judge;
mod provenance;
mod regression;
mod report;
mod results;
mod run;
pub(crate) mod speed;
mod summary;

use crate::environment::root;
use anyhow::{Context, Result};
use clips::Clip;
use codec_metrics::Metric;
use codecs::{Asked, Spec};
use regression::Comparison;
use results::{ClipInfo, Results, count, write_file};
use run::{Plan, Store};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use summary::{Shown, Summaries};

/// Exit code of a run that is worse than the one it was compared with.
const EXIT_WORSE: u8 = 3;

/// Metrics of the table that is printed.
const PRINTED: [&str; 5] = ["pesq_wb", "estoi", "si_sdr", "mel_dac", "stft"];

/// Options of `cargo xtask eval`.
#[derive(Debug, clap::Args)]
#[command(
    about = "Measures codecs over clips and bitrates, and writes a report",
    long_about = "Code clips with several codecs at several bitrates, judge what comes back, and write a report.

Writes report.html (one page without anything from elsewhere), report.md, results.json and results.csv. What was \
                  measured is kept in the output folder and taken up again by the next run, as long as clips, models, \
                  programs and metrics are the same.

A codec is a model, by name or path as for `codec --model`, or one of the baselines opus, mp3, speex, flac and pcm; \
                  a list of bitrates in kbit/s may follow. NAME=PATH gives a model a name of its own in the results. MP3, Speex and FLAC need lame, speexenc and speexdec, and \
                  flac, or ffmpeg for any of them; the report says what was missing.

Exit codes: 0 all went well, 1 a clip failed or nothing could be done, 3 worse than the run of --against \
                  or without what that run had, 130 interrupted.",
    after_help = "Examples:
  cargo xtask eval                                          built-in clips, default model, all baselines
  cargo xtask eval --data clips/ --codec lyra-v2@3.2,6,9.2 --codec opus@6,8,12 --codec mp3
  cargo xtask eval --data clips.tsv --codec my-run/best --codec opus --scores utmos.csv -o target/mine
  cargo xtask eval --codec my-run/best --against target/mine/results.json"
)]
pub(crate) struct Args {
    /// Clips: folders, audio files, or tables (.tsv, .csv) with the columns `file` and `kind` [default: the built-in
    /// ones].
    #[arg(long, value_name = "DIR|FILE", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Codec, with bitrates in kbit/s if you wish; `default` is the default model [default: default, opus, mp3,
    /// speex, flac, pcm].
    #[arg(long = "codec", value_name = "[NAME=]CODEC[@KBPS,..]")]
    codecs: Vec<String>,
    /// Folder of the results.
    #[arg(short, long, value_name = "DIR", default_value = "target/eval")]
    out: PathBuf,
    /// Results of an earlier run (results.json): fail when this one is worse.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Only these metrics, by short name [default: all].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    metrics: Vec<Metric>,
    /// Table of scores from elsewhere (UTMOS, word error rates, ..): CSV, or TSV by its ending, with the columns
    /// `clip` or `file`, `system`, and one per metric; `NAME:lower` or `NAME:higher` says which values are good.
    #[arg(long, value_name = "FILE")]
    scores: Vec<PathBuf>,
    /// At most so many clips, the kinds in turn.
    #[arg(long, value_name = "N")]
    max_clips: Option<NonZeroUsize>,
    /// Clips that can be heard in the report.
    #[arg(long, value_name = "N", default_value_t = 20)]
    listen: usize,
    /// Largest size of the report in MB: players get what is left of it.
    #[arg(long, value_name = "MB", default_value_t = 14.5, value_parser = megabytes)]
    report_size: f64,
    /// Leave speed and memory out.
    #[arg(long)]
    no_speed: bool,
    /// Measure everything anew.
    #[arg(long)]
    fresh: bool,
    /// Number of threads [default: all cores].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Seed of the bootstrap behind the confidence intervals.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn megabytes(text: &str) -> Result<f64, String> {
    let size: f64 = text.parse().map_err(|_| "not a number of megabytes".to_owned())?;
    if size.is_finite() && size >= 0.0 { Ok(size) } else { Err("must not be negative".to_owned()) }
}

/// Runs the evaluation.
///
/// # Errors
/// When nothing can be evaluated, or the results cannot be written.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupt::install()?;
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global()?;
    }
    match evaluate(args) {
        Err(error) if interrupt::requested() => {
            eprintln!("{error:#}");
            Ok(ExitCode::from(interrupt::EXIT_CODE))
        }
        outcome => outcome,
    }
}

fn evaluate(args: &Args) -> Result<ExitCode> {
    // Read first: a wrong name should not cost a whole run.
    let before = args.against.as_deref().map(Results::read).transpose()?;
    if let Some(before) = &before {
        regression::check(before)?;
    }
    let (data, clips) = clips(args)?;
    let specs: Vec<Spec> = names(args).iter().map(|name| Spec::parse(name)).collect::<Result<_>>()?;
    let (systems, missing) = codecs::systems(&specs)?;
    for missing in &missing {
        eprintln!("left out: {missing}");
    }
    let metrics = if args.metrics.is_empty() { Metric::ALL.to_vec() } else { args.metrics.clone() };
    let mut results = start(args, data, &clips, &systems, &metrics, missing);
    for table in &args.scores {
        // On a copy: there is nothing yet to merge with.
        for clip in summary::merge_table(&mut results.clone(), table, &clips)? {
            eprintln!("{}: {clip} is not among the clips", table.display());
        }
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let items = run::folder(&args.out);
    if args.fresh && items.exists() {
        std::fs::remove_dir_all(&items).with_context(|| format!("cannot remove {}", items.display()))?;
    }
    let store = Store::open(items, &metrics)?;
    let heard = clips::choose(&clips, args.listen);
    let plan = Plan { clips: &clips, heard: &heard, systems: &systems, metrics: &metrics };
    eprintln!("{} on {}", count(systems.len(), "system"), count(clips.len(), "clip"));
    (results.measurements, results.failures) = run::measure(&plan, &store)?;
    results.codebooks = run::codebooks(&plan, &store)?;
    if !args.no_speed {
        // A long clip, of the first kind that there is.
        let longest = results.measurements.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let longest = longest.and_then(|longest| clips.iter().find(|clip| clip.name == longest.clip));
        if let Some(clip) = longest {
            results.speeds = speed::measure(&systems, clip)?;
        }
    }
    for table in &args.scores {
        summary::merge_table(&mut results, table, &clips)?;
    }
    let summaries = Summaries::new(&results)?;
    write(args, &summaries, &plan, &store)?;
    let printed: Vec<Shown> =
        summaries.metrics().into_iter().filter(|metric| PRINTED.contains(&metric.name.as_str())).collect();
    print!("{}", report::markdown::table(&summaries, &printed));
    eprintln!("{}", args.out.join("report.html").display());
    if !results.failures.is_empty() {
        eprintln!("{}", results.failed());
    }
    for sentence in results.cut_off() {
        eprintln!("warning: {sentence}");
    }
    if let Some(before) = &before {
        let asked = Asked::new(&specs, &systems, args.codecs.is_empty());
        let comparison = regression::compare(before, &results, &asked)?;
        tell(&comparison);
        if !comparison.is_good() {
            return Ok(ExitCode::from(EXIT_WORSE));
        }
    }
    Ok(if results.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How the clips were named, and the clips.
fn clips(args: &Args) -> Result<(String, Vec<Clip>)> {
    let (data, mut clips) = if args.data.is_empty() {
        ("built-in".to_owned(), clips::built_in()?)
    } else {
        // The last part alone: where it lies on this machine is nobody's concern.
        let name =
            |path: &PathBuf| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        (args.data.iter().map(name).collect::<Vec<_>>().join(", "), clips::open(&args.data)?)
    };
    if let Some(max) = args.max_clips {
        let chosen = clips::choose(&clips, max.get());
        let mut clip_idx = 0..;
        clips.retain(|_| clip_idx.next().is_some_and(|clip_idx| chosen.contains(&clip_idx)));
    }
    Ok((data, clips))
}

/// The codecs that the user named, or the usual ones.
fn names(args: &Args) -> Vec<String> {
    let usual = || [codec_models::DEFAULT, "opus", "mp3", "speex", "flac", "pcm"].map(str::to_owned).to_vec();
    if args.codecs.is_empty() { usual() } else { args.codecs.clone() }
}

fn start(
    args: &Args,
    data: String,
    clips: &[Clip],
    systems: &[codecs::System],
    metrics: &[Metric],
    missing: Vec<String>,
) -> Results {
    let mut provenance = provenance::new(&root(), data, clips, metrics, args.seed);
    provenance.missing = missing;
    let infos = systems.iter().map(|system| system.info.clone()).collect();
    let clip = |clip: &Clip| ClipInfo {
        name: clip.name.clone(),
        kind: clip.kind.clone(),
        sha256: clip.sha256.clone(),
    };
    Results::new(provenance, infos, clips.iter().map(clip).collect())
}

/// Writes the four files.
fn write(args: &Args, summaries: &Summaries<'_>, plan: &Plan<'_>, store: &Store) -> Result<()> {
    let file = |name: &str| -> PathBuf { Path::new(&args.out).join(name) };
    write_file(&file("results.json"), summaries.results.to_json()?.as_bytes())?;
    write_file(&file("results.csv"), &summaries.results.to_csv()?)?;
    write_file(&file("report.md"), report::markdown::document(summaries).as_bytes())?;
    let page = report::page(summaries, plan, store, (1e6 * args.report_size) as usize)?;
    write_file(&file("report.html"), page.as_bytes())
}

/// Says how this run compares with an earlier one.
fn tell(comparison: &Comparison) {
    for note in &comparison.notes {
        eprintln!("note: {note}");
    }
    for lost in &comparison.lost {
        eprintln!("worse: {lost}");
    }
    for fall in &comparison.falls {
        let interval = fall.interval.map_or_else(String::new, |interval| {
            format!(", 95 % interval of the difference {:+.4} to {:+.4}", interval.low, interval.high)
        });
        eprintln!(
            "worse: {} of {} was {:.4}, is {:.4} on {} clip(s){interval}",
            fall.metric, fall.system, fall.before, fall.now, fall.n_clips
        );
    }
    if comparison.is_good() {
        eprintln!("no worse than before: {} means compared", comparison.n_compared);
    }
}
