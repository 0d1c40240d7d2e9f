//! `eval`.

use super::models::{CodecArgs, LmArgs};
use crate::report::Reporter;
use anyhow::{Context, Result, bail};
use codec_lm::baseline::Baseline;
use codec_lm::corpus::{Columns, Corpus, Tokenizer};
use codec_lm::judge::{Report, Totals, judge};
use codec_train::config::SourceConfig;
use codec_train::data::is_manifest;
use serde::Serialize;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Judge a language model: bits per code, codebook by codebook.
///
/// The kbit/s are what an ideal entropy coder would need with the model's predictions, beside raw codes and
/// what counting codes would give.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec-lm eval held-out/*.nac --lm runs/speech/model
  codec-lm eval held-out.tsv --codec my-codec --lm runs/speech/model --counts-from train.tsv")]
pub(crate) struct Args {
    /// Token files, audio, folders or manifests of either.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Count codes in these token files or audio for the baselines.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    counts_from: Vec<PathBuf>,
    /// Frames to judge by at most, evenly from the beginnings of all recordings [default: all].
    #[arg(long, value_name = "N")]
    frames: Option<NonZeroUsize>,
    /// Only clips of a manifest whose column has this value.
    #[arg(long, value_name = "COLUMN=VALUE", value_parser = pair)]
    only: Vec<(String, String)>,
    #[command(flatten)]
    lm: LmArgs,
    #[command(flatten)]
    codec: CodecArgs,
}

#[derive(Serialize)]
struct Outcome<'a> {
    #[serde(flatten)]
    report: &'a Report,
    bits_per_frame: Totals,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (column, value) = text.split_once('=').ok_or("is not COLUMN=VALUE")?;
    Ok((column.to_owned(), value.to_owned()))
}

pub(crate) fn run(args: &Args, reporter: Reporter) -> Result<ExitCode> {
    let all = || args.inputs.iter().chain(&args.counts_from);
    for path in all() {
        std::fs::metadata(path).with_context(|| path.display().to_string())?;
    }
    if !args.only.is_empty() && !all().any(|path| is_manifest(path)) {
        bail!("--only: none of the inputs is a manifest (.tsv or .jsonl)");
    }
    let model = args.lm.load()?;
    let n_codebooks = model.arrangement().layout().n_codebooks();
    let loaded = args.codec.load_known(model.codec())?;
    if let (Some(expected), Some(loaded)) = (model.codec(), &loaded) {
        expected.check(loaded.codec.info(), &loaded.sha256)?;
    }
    let tokenizer = loaded.as_ref().map(|loaded| Tokenizer {
        codec: loaded.codec.as_ref(),
        sha256: loaded.sha256,
        n_codebooks,
        cache: None,
    });
    let read = |paths: &[PathBuf]| -> Result<Corpus> {
        let source = |path: &PathBuf| SourceConfig {
            path: path.clone(),
            kind: None,
            only: args.only.iter().filter(|_| is_manifest(path)).cloned().collect(),
            weight: 1.0,
        };
        let sources: Vec<SourceConfig> = paths.iter().map(source).collect();
        let bar = reporter.bar("files", 0);
        let each = |n_files: usize| {
            bar.set_length(n_files as u64);
            bar.inc(1);
        };
        let columns = Columns { speaker: "speaker", class: None };
        let corpus = Corpus::read(&sources, columns, Some(n_codebooks), tokenizer.as_ref(), &each)?;
        bar.finish_and_clear();
        Ok(corpus)
    };
    let corpus = read(&args.inputs)?;
    let mut baseline = None;
    if !args.counts_from.is_empty() {
        baseline = Some(Baseline::of(&read(&args.counts_from)?)?);
    }
    let max_frames = args.frames.map_or(usize::MAX, NonZeroUsize::get);
    let report = judge(model.as_ref(), baseline.as_ref(), &corpus, max_frames)?;
    let text = || {
        let Report { n_frames, n_recordings, .. } = report;
        format!("{}{n_frames} frames of {n_recordings} recordings: {}", report.table(), report.line())
    };
    let outcome = Outcome { report: &report, bits_per_frame: report.bits_per_frame() };
    reporter.result(text, &outcome)?;
    Ok(ExitCode::SUCCESS)
}
