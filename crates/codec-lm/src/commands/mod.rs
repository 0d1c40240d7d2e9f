//! One file per command.

mod carry_on;
mod eval;
mod info;
mod models;
mod prompt;
mod train;

use crate::report::Reporter;
use anyhow::Result;
use std::process::ExitCode;

/// The commands of `codec-lm`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Continue(carry_on::ContinueArgs),
    Sample(carry_on::SampleArgs),
    Train(train::TrainArgs),
    Resume(train::ResumeArgs),
    Export(train::ExportArgs),
    Eval(eval::Args),
    Info(info::Args),
}

/// Runs a command.
pub(crate) fn run(command: Command, reporter: Reporter) -> Result<ExitCode> {
    match command {
        Command::Continue(args) => carry_on::carry_on(&args, reporter),
        Command::Sample(args) => carry_on::sample(&args, reporter),
        Command::Train(args) => train::train(&args, reporter),
        Command::Resume(args) => train::resume(&args, reporter),
        Command::Export(args) => train::export(&args, reporter),
        Command::Eval(args) => eval::run(&args, reporter),
        Command::Info(args) => info::run(&args, reporter),
    }
}
