//! The command line `codec-lm`: audio that carries on.

mod commands;
mod report;

use clap::{Parser, value_parser};
use report::Reporter;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing_subscriber::EnvFilter;

/// Exit code of a run that was interrupted: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Language models over the codes of a neural audio codec.
#[derive(Debug, Parser)]
#[command(name = "codec-lm", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: commands::Command,
}

/// What every command understands.
#[derive(Clone, Debug, clap::Args)]
struct Global {
    /// Print results as JSON, one object per line.
    #[arg(long, global = true)]
    json: bool,
    /// Print errors only: no notes, no progress.
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Number of threads [default: all cores]. It never changes a result on the CPU.
    #[arg(long, global = true, value_name = "N", env = "CODEC_THREADS", value_parser = value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

static STOP: AtomicBool = AtomicBool::new(false);
static IS_WATCHED: AtomicBool = AtomicBool::new(false);

/// From here on the first Ctrl-C only asks for an end, see [`is_stopping`]; before, it ends.
fn watch_for_stop() {
    IS_WATCHED.store(true, Ordering::Relaxed);
}

/// Whether an end was asked for.
fn is_stopping() -> bool {
    STOP.load(Ordering::Relaxed)
}

fn main() -> ExitCode {
    codec_kernels::keep_candle_single_threaded();
    let cli = Cli::parse();
    let level = if cli.global.quiet { "error" } else { "warn" };
    let filter = EnvFilter::try_from_env("CODEC_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    match start(cli) {
        Ok(code) => code,
        // Who reads stdout has heard or seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report::error(&error);
            if is_stopping() { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_it = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is_it))
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) || !IS_WATCHED.load(Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })?;
    if let Some(threads) = cli.global.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global()?;
    }
    commands::run(cli.command, Reporter::new(&cli.global))
}
