//! One file per command.

mod cat;
mod compare;
mod cut;
mod detokenize;
mod export;
mod generate;
mod import;
mod info;
mod models;
mod roundtrip;
mod tokenize;
mod verify;

use crate::inputs::{Job, Place};
use crate::report::Reporter;
use crate::{Global, interrupt};
use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;
use std::process::ExitCode;

/// The commands of `codec`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Tokenize(tokenize::Args),
    Detokenize(detokenize::Args),
    Roundtrip(roundtrip::Args),
    Info(info::Args),
    Verify(verify::Args),
    Compare(compare::Args),
    Cut(cut::Args),
    Cat(cat::Args),
    Import(import::Args),
    Export(export::Args),
    Models(models::Args),
    Completions(generate::CompletionsArgs),
    Man(generate::ManArgs),
}

/// Runs a command.
///
/// # Errors
/// What ended the command before it could work on its inputs.
pub(crate) fn run(command: Command, global: &Global, cli: clap::Command) -> Result<ExitCode> {
    match command {
        Command::Tokenize(args) => tokenize::run(&args, global),
        Command::Detokenize(args) => detokenize::run(&args, global),
        Command::Roundtrip(args) => roundtrip::run(&args, global),
        Command::Info(args) => info::run(&args, global),
        Command::Verify(args) => verify::run(&args, global),
        Command::Compare(args) => compare::run(&args, global),
        Command::Cut(args) => cut::run(&args, global),
        Command::Cat(args) => cat::run(&args, global),
        Command::Import(args) => import::run(&args, global),
        Command::Export(args) => export::run(&args, global),
        Command::Models(args) => models::run(&args, global),
        Command::Completions(args) => generate::completions(&args, cli),
        Command::Man(args) => generate::man(&args, &cli),
    }
}

/// What came of one input of a command that leaves finished outputs alone.
#[derive(Debug, Serialize)]
struct Outcome<D> {
    input: String,
    output: String,
    skipped: bool,
    #[serde(flatten)]
    done: Option<D>,
}

impl<D> Outcome<D> {
    fn done(job: &Job, done: D) -> Self {
        Self {
            input: job.input.to_string(),
            output: job.output.to_string(),
            skipped: false,
            done: Some(done),
        }
    }
}

/// Whether an output was written by an earlier run.
fn is_there(output: &Place) -> bool {
    matches!(output, Place::File(path) if path.is_file())
}

/// Reports a job whose output is there.
fn skip<D: Serialize>(job: &Job, reporter: &Reporter) -> Result<()> {
    let text = format!("{}: is there already, left alone (--force writes it anew)", job.output);
    let (input, output) = (job.input.to_string(), job.output.to_string());
    reporter.result(|| text, &Outcome::<D> { input, output, skipped: true, done: None })
}

/// What a command works on: a failure is reported by its input.
trait Item: Sync {
    fn input(&self) -> &Place;
}

impl Item for Place {
    fn input(&self) -> &Place {
        self
    }
}

impl Item for Job {
    fn input(&self) -> &Place {
        &self.input
    }
}

/// Works on every item, reports those that fail and goes on; the exit code says whether all went well.
fn for_each<T: Item>(items: &[T], reporter: &Reporter, work: impl Fn(&T) -> Result<()> + Sync) -> ExitCode {
    let failed = |item: &T| {
        let outcome = interrupt::check().and_then(|()| work(item));
        if let Err(error) = &outcome
            && !interrupt::requested()
        {
            // Where the result cannot be printed, the exit code still says that the input failed.
            reporter.failed_input(item.input(), error).unwrap_or_default();
        }
        usize::from(outcome.is_err())
    };
    let n_failed: usize = items.par_iter().map(failed).sum();
    if interrupt::requested() {
        reporter.note("interrupted; what was unfinished is removed, run again to go on");
        return ExitCode::from(interrupt::EXIT_CODE);
    }
    if n_failed > 0 && items.len() > 1 {
        reporter.note(&format!("{n_failed} of {} failed", items.len()));
    }
    if n_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
