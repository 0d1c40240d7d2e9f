//! `eval`.

use super::models::{CodecArgs, LmArgs};
use crate::Global;
use anyhow::{Result, bail};
use codec_lm::baseline::Baseline;
use codec_lm::corpus::{Columns, Corpus, Tokenizer};
use codec_lm::judge::judge;
use codec_train::config::SourceConfig;
use serde::Serialize;
use std::collections::BTreeMap;
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
    /// Frames to judge by at most, evenly from all inputs.
    #[arg(long, value_name = "N", default_value_t = usize::MAX)]
    frames: usize,
    /// Only clips of a manifest whose column has this value.
    #[arg(long, value_name = "COLUMN=VALUE")]
    only: Vec<String>,
    #[command(flatten)]
    lm: LmArgs,
    #[command(flatten)]
    codec: CodecArgs,
}

#[derive(Serialize)]
struct Outcome<'a> {
    #[serde(flatten)]
    report: &'a codec_lm::judge::Report,
    bits_per_frame: codec_lm::judge::Totals,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let model = args.lm.load()?;
    let n_codebooks = model.arrangement().layout().n_codebooks();
    let only = args.only.iter().map(|pair| match pair.split_once('=') {
        Some((column, value)) => Ok((column.to_owned(), value.to_owned())),
        None => bail!("--only {pair}: is not COLUMN=VALUE"),
    });
    let only = only.collect::<Result<BTreeMap<_, _>>>()?;
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
            only: if path.extension().is_some_and(|e| e == "tsv" || e == "jsonl") {
                only.clone()
            } else {
                BTreeMap::new()
            },
            weight: 1.0,
        };
        let sources: Vec<SourceConfig> = paths.iter().map(source).collect();
        let bar = global.bar("files", 0);
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
    let report = judge(model.as_ref(), baseline.as_ref(), &corpus, args.frames)?;
    if global.json {
        let outcome = Outcome { report: &report, bits_per_frame: report.bits_per_frame() };
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        print!("{}", report.table());
        println!("{} frames of {} recordings: {}", report.n_frames, report.n_recordings, report.line());
    }
    Ok(ExitCode::SUCCESS)
}
