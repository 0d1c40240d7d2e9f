//! `train`, `resume` and `export`.

use crate::report::Reporter;
use crate::{INTERRUPTED, is_stopping, watch_for_stop};
use anyhow::{Context, Result, bail};
use candle_core::Device;
use codec_lm::ModelConfig;
use codec_lm::corpus::{Columns, Corpus, Tokenizer};
use codec_lm::families::{save, stored};
use codec_lm::judge::Report;
use codec_lm::quantize::{Precision, pack, unpack};
use codec_lm::train::{Outcome, RunConfig, Trainer, Watch, exported, run};
use codec_models::Purpose;
use codec_train::StepReport;
use codec_train::checkpoint::{Saved, list};
use codec_train::config::SourceConfig;
use codec_train::folder::{RunFolder, folder_of};
use indicatif::ProgressBar;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Begin to train a language model on token files or audio.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec-lm train --config speech.toml        Ctrl-C stops with a checkpoint
  codec-lm train --config speech.toml --device cuda")]
pub(crate) struct TrainArgs {
    /// The run's configuration; see docs/language-models.md.
    #[arg(long)]
    config: PathBuf,
    /// Begin anew where a run has been before.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Go on with a run from its newest checkpoint.
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    /// The run's folder, or one of its checkpoints.
    run: PathBuf,
    /// Train to this step instead of the configuration's.
    #[arg(long)]
    steps: Option<u64>,
    /// Go on although the data is not what the checkpoint was trained on.
    #[arg(long)]
    changed_data: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Write the model of a run, with fewer bits per weight, or a model with others.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec-lm export runs/speech/model -o speech-int8
  codec-lm export runs/speech -o so-far --precision f32     the newest checkpoint of a run")]
pub(crate) struct ExportArgs {
    /// A model folder, as a finished run leaves it, or a run's folder or one of its checkpoints.
    model: PathBuf,
    /// The folder to write.
    #[arg(short, long)]
    output: PathBuf,
    /// How weights are stored.
    #[arg(long, value_enum, default_value_t = PrecisionName::Int8)]
    precision: PrecisionName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum PrecisionName {
    /// Floats of 32 bits.
    F32,
    /// Floats of 16 bits.
    F16,
    /// Integers of 8 bits and a factor for each row.
    Int8,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Self::Float32,
            PrecisionName::F16 => Self::Float16,
            PrecisionName::Int8 => Self::Int8,
        }
    }
}

/// What `export` wrote.
#[derive(Serialize)]
struct Exported<'a> {
    output: &'a Path,
    precision: PrecisionName,
    /// Size of the weights.
    bytes: usize,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct DeviceArgs {
    /// Where tensors live.
    #[arg(long, value_enum, default_value_t = DeviceKind::Cpu)]
    device: DeviceKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum DeviceKind {
    /// The same bits for the same run.
    Cpu,
    /// The first CUDA device; needs a build with the feature `cuda`.
    Cuda,
    /// The first Metal device; needs a build with the feature `metal`.
    Metal,
}

impl DeviceArgs {
    fn open(self) -> Result<Device> {
        Ok(match self.device {
            DeviceKind::Cpu => Device::Cpu,
            DeviceKind::Cuda => {
                Device::new_cuda(0).context("no CUDA device; build with `--features cuda`")?
            }
            DeviceKind::Metal => {
                Device::new_metal(0).context("no Metal device; build with `--features metal`")?
            }
        })
    }
}

pub(crate) fn train(args: &TrainArgs, reporter: Reporter) -> Result<ExitCode> {
    let config = RunConfig::open(&args.config)?;
    let folder = RunFolder::claim(&config.output)?;
    let checkpoints = list(folder.path())?;
    if !checkpoints.is_empty() && !args.overwrite {
        let folder = folder.path().display();
        bail!("{folder} holds a run: go on with `codec-lm resume {folder}`, or begin anew with --overwrite");
    }
    let device = args.device.open()?;
    let (corpus, held) = read(&config, reporter)?;
    let trainer = Trainer::new(config, corpus, held, &device)?;
    checkpoints.iter().try_for_each(std::fs::remove_file).context("removing the old run")?;
    go(trainer, &folder, reporter)
}

pub(crate) fn resume(args: &ResumeArgs, reporter: Reporter) -> Result<ExitCode> {
    let folder = RunFolder::claim(&folder_of(&args.run)?)?;
    let device = args.device.open()?;
    let saved = Saved::read(&args.run, &device)?;
    let config = toml::from_str(&saved.state.config);
    let mut config: RunConfig = config.with_context(|| {
        format!("{}: the configuration of a run of codec-lm is not in the checkpoint", args.run.display())
    })?;
    // The folder may have moved since.
    config.output = folder.path().to_owned();
    config.schedule.steps = args.steps.unwrap_or(config.schedule.steps);
    let (step, steps) = (saved.state.step, config.schedule.steps);
    if steps < step {
        bail!("--steps {steps}: the checkpoint is at step {step} already");
    }
    let (corpus, held) = read(&config, reporter)?;
    let trainer = Trainer::resume(&saved, config, corpus, held, &device)?;
    match trainer.check_data(&saved) {
        Err(changed) if args.changed_data => reporter.note(&format!("{changed}; going on")),
        checked => checked.context("put it back, or go on with --changed-data")?,
    }
    for aside in saved.set_later_aside(folder.path())? {
        reporter.note(&format!("a checkpoint of a later step is set aside: {}", aside.display()));
    }
    go(trainer, &folder, reporter)
}

pub(crate) fn export(args: &ExportArgs, reporter: Reporter) -> Result<ExitCode> {
    let (from, to) = (args.model.display(), args.output.display());
    std::fs::metadata(&args.model).with_context(|| from.to_string())?;
    if let (Ok(own), Ok(other)) = (args.model.canonicalize(), args.output.canonicalize())
        && own == other
    {
        bail!("{to}: would be written over the model itself; name another folder");
    }
    if args.output.exists() && !args.output.is_dir() {
        bail!("{to}: is no folder");
    }
    let stored = stored(&args.model).with_context(|| from.to_string())?;
    let [config, weights] = stored.map_or_else(|| exported(&args.model), Ok)?;
    // A model of others would not be read back.
    ModelConfig::parse(&String::from_utf8_lossy(&config)).with_context(|| from.to_string())?;
    let packed = unpack(&weights).and_then(|weights| pack(&weights, args.precision.into()));
    let weights = packed.with_context(|| from.to_string())?;
    save(&args.output, &config, &weights)?;
    let outcome = Exported { output: &args.output, precision: args.precision, bytes: weights.len() };
    reporter.result(|| to.to_string(), &outcome)?;
    Ok(ExitCode::SUCCESS)
}

/// The codes to train on, and those to judge by if they are named.
fn read(config: &RunConfig, reporter: Reporter) -> Result<(Corpus, Option<Corpus>)> {
    let data = &config.data;
    let load = |name: &String| codec_models::load_with(name, &Device::Cpu, Purpose::Encoding);
    let loaded = data.codec.as_ref().map(load).transpose()?;
    let tokenizer = loaded.as_ref().map(|loaded| Tokenizer {
        n_codebooks: data.n_codebooks.unwrap_or_else(|| loaded.codec.info().layout.n_codebooks()),
        codec: loaded.codec.as_ref(),
        sha256: loaded.sha256,
        cache: data.cache.clone(),
    });
    if let Some(tokenizer) = &tokenizer {
        // Whether there can be a model for these codes shows before there are any.
        config.model.config(&tokenizer.codec.info().layout.truncated(tokenizer.n_codebooks)?)?;
    }
    let columns = Columns { speaker: &data.speaker, class: data.class.as_deref() };
    let read = |name: &str, sources: &[SourceConfig]| -> Result<Corpus> {
        let bar = reporter.bar(name, 0);
        let each = |n_files: usize| {
            bar.set_length(n_files as u64);
            bar.inc(1);
        };
        let corpus = Corpus::read(sources, columns, data.n_codebooks, tokenizer.as_ref(), &each)?;
        bar.finish_and_clear();
        Ok(corpus)
    };
    let corpus = read("reading codes", &data.sources)?;
    let held = match data.validation.as_slice() {
        [] => None,
        sources => Some(read("reading codes to judge by", sources)?),
    };
    Ok((corpus, held))
}

fn go(mut trainer: Trainer, folder: &RunFolder, reporter: Reporter) -> Result<ExitCode> {
    codec_kernels::keep_freed_memory();
    // What was tokenized until here is in the cache.
    watch_for_stop();
    let [trained, held] = trainer.n_frames();
    let name = folder.path().display();
    reporter.note(&format!("{trained} frames to train on, {held} to judge by; log and page in {name}"));
    let mut watch = Terminal::new(&trainer, reporter);
    let outcome = run(&mut trainer, folder, &mut watch);
    watch.bar.finish_and_clear();
    let (folder, step) = (folder.path(), trainer.step());
    let outcome = outcome?;
    let (path, code) = match &outcome {
        Outcome::Finished(model) => (model, ExitCode::SUCCESS),
        Outcome::Stopped(checkpoint) => {
            reporter.note(&format!("stopped; go on with `codec-lm resume {}`", folder.display()));
            (checkpoint, ExitCode::from(INTERRUPTED))
        }
    };
    reporter.result(|| path.display().to_string(), &outcome.ended(folder, step))?;
    Ok(code)
}

/// The progress of a run on a terminal.
struct Terminal {
    bar: ProgressBar,
    reporter: Reporter,
    began: Instant,
    n_steps: u64,
    frames_per_step: f64,
}

impl Terminal {
    fn new(trainer: &Trainer, reporter: Reporter) -> Self {
        let bar = reporter.bar("", trainer.config().schedule.steps);
        bar.set_position(trainer.step());
        bar.reset_eta();
        let frames_per_step = trainer.frames_per_step();
        Self { bar, reporter, began: Instant::now(), n_steps: 0, frames_per_step }
    }
}

impl Watch for Terminal {
    fn step(&mut self, report: &StepReport) {
        self.n_steps += 1;
        let speed = self.n_steps as f64 * self.frames_per_step / self.began.elapsed().as_secs_f64().max(1e-9);
        let bits = report.losses.values().next().copied().unwrap_or_default();
        self.bar.set_message(format!("{bits:.3} bits per code, {speed:.0} frames per second"));
        self.bar.set_position(report.step + 1);
    }

    fn judged(&mut self, step: u64, report: &Report) {
        self.bar.suspend(|| self.reporter.note(&format!("step {step}: {}", report.line())));
    }

    fn wants_stop(&self) -> bool {
        is_stopping()
    }
}
