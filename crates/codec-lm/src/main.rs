//! The command line `codec-lm`: audio that carries on.

mod commands;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
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
    #[arg(long, global = true, value_name = "N", env = "CODEC_THREADS")]
    threads: Option<std::num::NonZeroUsize>,
}

impl Global {
    /// Says something on stderr.
    fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// A bar over units of work.
    fn bar(&self, name: &str, n_units: u64) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(n_units);
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {elapsed} (left {eta})") {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        bar
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Whether an end was asked for.
fn is_stopping() -> bool {
    STOP.load(Ordering::Relaxed)
}

fn main() -> ExitCode {
    codec_kernels::keep_candle_single_threaded();
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("CODEC_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    match start(cli) {
        Ok(code) => code,
        // Who reads the stream has heard enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if is_stopping() { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_it = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is_it))
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    // The first Ctrl-C asks for an end, the second one ends.
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })?;
    if let Some(threads) = cli.global.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global()?;
    }
    commands::run(cli.command, &cli.global)
}
