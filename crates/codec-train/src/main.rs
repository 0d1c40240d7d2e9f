//! The command line `codec-train`: from a folder of recordings to a codec.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use clap::{Parser, Subcommand, ValueEnum, value_parser};
use codec_train::StepReport;
use codec_train::Trainer;
use codec_train::checkpoint::Saved;
use codec_train::config::RunConfig;
use codec_train::folder::{RunFolder, folder_of};
use codec_train::run::{Outcome, Watch, export, run};
use codec_train::validation::{Report, Validator};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tracing_subscriber::EnvFilter;

/// Exit code of a run that was interrupted: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Train neural audio codecs.
#[derive(Debug, Parser)]
#[command(name = "codec-train", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    say: Say,
    /// Where tensors live.
    #[arg(long, global = true, value_enum, default_value_t = DeviceKind::Cpu)]
    device: DeviceKind,
    /// Number of threads [default: all cores]. It never changes a result on the CPU.
    #[arg(long, global = true, value_name = "N", env = "CODEC_THREADS", value_parser = value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Begin a run.
    Train {
        /// The run's configuration; see docs/training.md.
        #[arg(long)]
        config: PathBuf,
        /// Begin anew where a run has been before.
        #[arg(long)]
        overwrite: bool,
    },
    /// Go on with a run from its newest checkpoint.
    Resume {
        /// The run's folder, or one of its checkpoints.
        run: PathBuf,
        /// Train to this step instead of the configuration's.
        #[arg(long)]
        steps: Option<u64>,
        /// Peak of the learning rate from here on, such as a lower one after a run that diverged.
        #[arg(long, value_name = "RATE")]
        learning_rate: Option<f64>,
        /// Go on although the data is not what the checkpoint was trained on.
        #[arg(long)]
        changed_data: bool,
    },
    /// Write a run's model as a folder for `codec --model`.
    Export {
        /// The run's folder, or one of its checkpoints.
        run: PathBuf,
        /// The folder to write.
        #[arg(short, long)]
        output: PathBuf,
        /// Store numbers of 16 bits instead of 32: half the size.
        #[arg(long)]
        half: bool,
    },
    /// Judge a run's model on its validation clips.
    Validate {
        /// The run's folder, or one of its checkpoints.
        run: PathBuf,
    },
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DeviceKind {
    /// The same bits for the same run.
    Cpu,
    /// The first CUDA device; needs a build with the feature `cuda`.
    Cuda,
    /// The first Metal device; needs a build with the feature `metal`.
    Metal,
}

/// What is said, and how.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Say {
    /// Print results as JSON, one object per line.
    #[arg(long, global = true)]
    json: bool,
    /// Print errors only: no notes, no progress.
    #[arg(short, long, global = true)]
    quiet: bool,
}

impl Say {
    /// A result: a line for people, or one JSON object.
    fn result(self, text: impl FnOnce() -> String, json: &impl Serialize) -> Result<()> {
        let line = if self.json { serde_json::to_string(json)? } else { text() };
        if self.quiet && !self.json {
            return Ok(());
        }
        match writeln!(std::io::stdout(), "{line}") {
            // Who reads stdout has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => Ok(written?),
        }
    }

    /// Something that the user should know, on stderr.
    fn note(self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }
}

fn say(text: &str) {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What `export` wrote.
#[derive(Serialize)]
struct Exported<'a> {
    output: &'a Path,
    half: bool,
}

static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    codec_kernels::keep_candle_single_threaded();
    let cli = Cli::parse();
    let level = if cli.say.quiet { "error" } else { "warn" };
    let filter = EnvFilter::try_from_env("CODEC_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    match start(cli) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> Result<ExitCode> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })?;
    if let Some(threads) = cli.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global()?;
    }
    let device = match cli.device {
        DeviceKind::Cpu => Device::Cpu,
        DeviceKind::Cuda => Device::new_cuda(0).context("no CUDA device; build with `--features cuda`")?,
        DeviceKind::Metal => {
            Device::new_metal(0).context("no Metal device; build with `--features metal`")?
        }
    };
    let say = cli.say;
    match cli.command {
        Command::Train { config, overwrite } => {
            let config = RunConfig::open(&config)?;
            let folder = RunFolder::claim(&config.output)?;
            let old = old_run(folder.path(), overwrite)?;
            let trainer = Trainer::new(config, &device)?;
            // Only now that the new run can begin.
            old.iter().try_for_each(std::fs::remove_file).context("removing the old run")?;
            train(trainer, &folder, &device, say)
        }
        Command::Resume { run, steps, learning_rate, changed_data } => {
            let folder = RunFolder::claim(&folder_of(&run)?)?;
            let (saved, mut config) = open(&run, &device)?;
            config.schedule.steps = steps.unwrap_or(config.schedule.steps);
            let (step, steps) = (saved.state.step, config.schedule.steps);
            if steps < step {
                bail!("--steps {steps}: the checkpoint is at step {step} already");
            }
            config.optimizer.learning_rate = learning_rate.unwrap_or(config.optimizer.learning_rate);
            let trainer = Trainer::resume(&saved, config, &device)?;
            match trainer.check_data(&saved) {
                Err(changed) if changed_data => say.note(&format!("{changed}; going on")),
                checked => checked.context("put it back, or go on with --changed-data")?,
            }
            for aside in saved.set_later_aside(folder.path())? {
                say.note(&format!("a checkpoint of a later step is set aside: {}", aside.display()));
            }
            train(trainer, &folder, &device, say)
        }
        Command::Export { run, output, half } => {
            let (saved, config) = open(&run, &device)?;
            let dtype = if half { DType::F16 } else { DType::F32 };
            export(&Trainer::resume(&saved, config, &device)?, &output, dtype)?;
            say.result(|| output.display().to_string(), &Exported { output: &output, half })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Validate { run } => {
            let (saved, config) = open(&run, &device)?;
            let trainer = Trainer::resume(&saved, config, &device)?;
            let validator = Validator::new(&trainer.config().validation, trainer.info().audio)?;
            if validator.is_empty() {
                bail!("the run's configuration names no clips under [validation]");
            }
            let report = validator.judge(trainer.export(DType::F32)?, &device)?;
            say.result(|| report.line(), &report)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A run's newest checkpoint, and its configuration.
fn open(run: &Path, device: &Device) -> Result<(Saved, RunConfig)> {
    let saved = Saved::read(run, device)?;
    let mut config: RunConfig =
        toml::from_str(&saved.state.config).context("the checkpoint's configuration")?;
    // The folder may have moved since.
    config.output = folder_of(run)?;
    Ok((saved, config))
}

/// The checkpoints that a new run takes the place of; refuses to begin where a run has been.
fn old_run(output: &Path, overwrite: bool) -> Result<Vec<PathBuf>> {
    let checkpoints = codec_train::checkpoint::list(output)?;
    if !checkpoints.is_empty() && !overwrite {
        let folder = output.display();
        bail!(
            "{folder} holds a run: go on with `codec-train resume {folder}`, or begin anew with --overwrite"
        );
    }
    Ok(checkpoints)
}

fn train(mut trainer: Trainer, folder: &RunFolder, device: &Device, say: Say) -> Result<ExitCode> {
    codec_kernels::keep_freed_memory();
    let mut watch = Terminal::new(&trainer, say);
    let name = folder.path().display();
    say.note(&format!("{} clips; log and page in {name}", trainer.library().n_clips()));
    let outcome = run(&mut trainer, folder, device, &mut watch);
    watch.bar.finish_and_clear();
    let (folder, step) = (folder.path(), trainer.step());
    let outcome = outcome?;
    let (path, code) = match &outcome {
        Outcome::Finished(model) => (model, ExitCode::SUCCESS),
        Outcome::Stopped(checkpoint) => {
            say.note(&format!("stopped; go on with `codec-train resume {}`", folder.display()));
            (checkpoint, ExitCode::from(INTERRUPTED))
        }
    };
    say.result(|| path.display().to_string(), &outcome.ended(folder, step))?;
    Ok(code)
}

/// The progress of a run on a terminal.
struct Terminal {
    bar: ProgressBar,
    say: Say,
    began: Instant,
    audio_seconds: f64,
}

impl Terminal {
    fn new(trainer: &Trainer, say: Say) -> Self {
        let n_steps = trainer.config().schedule.steps;
        let bar = if say.quiet { ProgressBar::hidden() } else { ProgressBar::new(n_steps) };
        bar.set_position(trainer.step());
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {eta_precise} left, {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.reset_eta();
        Self { bar, say, began: Instant::now(), audio_seconds: 0.0 }
    }
}

impl Watch for Terminal {
    fn step(&mut self, report: &StepReport) {
        self.audio_seconds += report.audio_seconds;
        let speed = self.audio_seconds / self.began.elapsed().as_secs_f64().max(1e-9);
        let losses: Vec<String> = report.losses.iter().map(|(name, x)| format!("{name} {x:.4}")).collect();
        self.bar.set_message(format!("{speed:.1} s of audio per second, {}", losses.join(", ")));
        self.bar.set_position(report.step + 1);
    }

    fn validated(&mut self, step: u64, report: &Report) {
        self.bar.suspend(|| self.say.note(&format!("step {step}: {}", report.line())));
    }

    fn saved(&mut self, path: &Path) {
        tracing::info!(path = %path.display(), "checkpoint");
    }

    fn wants_stop(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}
