//! The command line `codec`: audio to codes and back.

mod audio_sink;
mod commands;
mod device;
mod inputs;
mod interrupt;
mod model;
mod report;
mod source;
mod tokens;

use clap::{CommandFactory, Parser, value_parser};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Neural audio codecs: audio to codes and back, exactly, in bounded memory.
#[derive(Debug, Parser)]
#[command(name = "codec", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: commands::Command,
}

/// What every command understands.
#[derive(Clone, Debug, clap::Args)]
struct Global {
    /// Print results as JSON, one object per line; of an input that failed `input` and `error`.
    #[arg(long, global = true)]
    json: bool,
    /// Print errors only: no notes, no progress.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more on stderr; twice for still more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Number of threads [default: all cores]. It never changes a result.
    #[arg(long, global = true, value_name = "N", env = "CODEC_THREADS", value_parser = value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The buffers of one chunk are those of the next.
    codec_kernels::keep_freed_memory();
    start_log(&cli.global);
    let outcome = set_up(&cli.global).and_then(|()| commands::run(cli.command, &cli.global, Cli::command()));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            report::error(&error);
            if interrupt::requested() { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::FAILURE }
        }
    }
}

fn set_up(global: &Global) -> anyhow::Result<()> {
    interrupt::install()?;
    if let Some(threads) = global.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global()?;
    }
    Ok(())
}

fn start_log(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = EnvFilter::try_from_env("CODEC_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
}
