//! Tasks of this workspace: `cargo xtask <task>`.

mod bench;
mod download;
mod environment;
mod eval;
mod shared;
mod vectors;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Tasks of this workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measures how fast the codecs are, beside other implementations.
    Bench(bench::Args),
    /// Fetches published models.
    Download(download::Args),
    // Its help is with its options: a comment of documentation here would hide the long one.
    Eval(Box<eval::Args>),
    /// Measures the speed of one system; what `eval` runs.
    #[command(hide = true)]
    EvalSpeed(eval::speed::Args),
    /// Makes the committed reference vectors again, with the original Python packages.
    Vectors(vectors::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().task {
        Task::Bench(args) => bench::run(&args)?,
        Task::Download(args) => download::run(&args)?,
        Task::Eval(args) => return eval::run(&args),
        Task::EvalSpeed(args) => eval::speed::run_one(&args)?,
        Task::Vectors(args) => vectors::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
