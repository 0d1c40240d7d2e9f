//! Tasks of this workspace: `cargo xtask <task>`.

mod download;
mod vectors;

use clap::{Parser, Subcommand};

/// Tasks of this workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetches published models.
    Download(download::Args),
    /// Makes the committed reference vectors again, with the original Python packages.
    Vectors(vectors::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Download(args) => download::run(&args),
        Task::Vectors(args) => vectors::run(&args),
    }
}
