//! `train`, `resume` and `export`.

use crate::{Global, INTERRUPTED, is_stopping};
use anyhow::{Context, Result, bail};
use candle_core::Device;
use codec_io::atomic::write_whole;
use codec_lm::corpus::{Columns, Corpus, Tokenizer};
use codec_lm::judge::Report;
use codec_lm::quantize::{Precision, pack};
use codec_lm::train::{Outcome, RunConfig, Trainer, Watch, exported, run};
use codec_train::StepReport;
use codec_train::checkpoint::{Saved, list};
use codec_train::config::SourceConfig;
use codec_train::folder::{RunFolder, folder_of};
use indicatif::ProgressBar;
use std::path::PathBuf;
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

/// Write the model of a run, with fewer bits per weight.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PrecisionName {
    /// Floats of 32 bits.
    F32,
    /// Floats of 16 bits.
    F16,
    /// Integers of 8 bits and a factor for each row.
    Int8,
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

pub(crate) fn train(args: &TrainArgs, global: &Global) -> Result<ExitCode> {
    let config = RunConfig::open(&args.config)?;
    let folder = RunFolder::claim(&config.output)?;
    let checkpoints = list(folder.path())?;
    if !checkpoints.is_empty() && !args.overwrite {
        let folder = folder.path().display();
        bail!("{folder} holds a run: go on with `codec-lm resume {folder}`, or begin anew with --overwrite");
    }
    let device = args.device.open()?;
    let (corpus, held) = read(&config, global)?;
    let trainer = Trainer::new(config, corpus, held, &device)?;
    checkpoints.iter().try_for_each(std::fs::remove_file).context("removing the old run")?;
    go(trainer, &folder, global)
}

pub(crate) fn resume(args: &ResumeArgs, global: &Global) -> Result<ExitCode> {
    let folder = RunFolder::claim(&folder_of(&args.run)?)?;
    let device = args.device.open()?;
    let saved = Saved::read(&args.run, &device)?;
    let mut config: RunConfig =
        toml::from_str(&saved.state.config).context("the checkpoint's configuration")?;
    // The folder may have moved since.
    config.output = folder.path().to_owned();
    config.schedule.steps = args.steps.unwrap_or(config.schedule.steps);
    let (corpus, held) = read(&config, global)?;
    let trainer = Trainer::resume(&saved, config, corpus, held, &device)?;
    match trainer.check_data(&saved) {
        Err(changed) if args.changed_data => global.note(&format!("{changed}; going on")),
        checked => checked.context("put it back, or go on with --changed-data")?,
    }
    for aside in saved.set_later_aside(folder.path())? {
        global.note(&format!("a checkpoint of a later step is set aside: {}", aside.display()));
    }
    go(trainer, &folder, global)
}

pub(crate) fn export(args: &ExportArgs) -> Result<ExitCode> {
    if let (Ok(from), Ok(to)) = (args.model.canonicalize(), args.output.canonicalize())
        && from == to
    {
        bail!("{}: would be written over the model itself; name another folder", args.output.display());
    }
    let read = |name: &str| {
        let path = args.model.join(name);
        std::fs::read(&path).with_context(|| path.display().to_string())
    };
    let precision = match args.precision {
        PrecisionName::F32 => Precision::Float32,
        PrecisionName::F16 => Precision::Float16,
        PrecisionName::Int8 => Precision::Int8,
    };
    let [config, weights] = if args.model.join("model.safetensors").is_file() {
        [read("config.json")?, read("model.safetensors")?]
    } else {
        exported(&args.model)?
    };
    let weights = pack(&weights, precision)?;
    std::fs::create_dir_all(&args.output).with_context(|| args.output.display().to_string())?;
    for (name, bytes) in [("config.json", config), ("model.safetensors", weights)] {
        let path = args.output.join(name);
        write_whole(&path, &bytes).with_context(|| path.display().to_string())?;
    }
    println!("{}", args.output.display());
    Ok(ExitCode::SUCCESS)
}

/// The codes to train on, and those to judge by if they are named.
fn read(config: &RunConfig, global: &Global) -> Result<(Corpus, Option<Corpus>)> {
    let data = &config.data;
    let loaded = data.codec.as_ref().map(|name| codec_models::load(name, &Device::Cpu)).transpose()?;
    let tokenizer = loaded.as_ref().map(|loaded| Tokenizer {
        n_codebooks: data.n_codebooks.unwrap_or_else(|| loaded.codec.info().layout.n_codebooks()),
        codec: loaded.codec.as_ref(),
        sha256: loaded.sha256,
        cache: data.cache.clone(),
    });
    let columns = Columns { speaker: &data.speaker, class: data.class.as_deref() };
    let read = |name: &str, sources: &[SourceConfig]| -> Result<Corpus> {
        let bar = global.bar(name, 0);
        let each = |n_files: usize| {
            if is_stopping() {
                // What was tokenized is in the cache.
                std::process::exit(i32::from(INTERRUPTED));
            }
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

fn go(mut trainer: Trainer, folder: &RunFolder, global: &Global) -> Result<ExitCode> {
    codec_kernels::keep_freed_memory();
    let [trained, held] = trainer.n_frames();
    let path = folder.path().display();
    global.note(&format!("{trained} frames to train on, {held} to judge by; log and page in {path}"));
    let mut watch = Terminal::new(&trainer, global);
    let outcome = run(&mut trainer, folder, &mut watch);
    watch.bar.finish_and_clear();
    match outcome? {
        Outcome::Finished(folder) => {
            println!("{}", folder.display());
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped(path) => {
            global.note(&format!("stopped; {} stands", path.display()));
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

/// The progress of a run on a terminal.
struct Terminal<'a> {
    bar: ProgressBar,
    global: &'a Global,
    began: Instant,
    n_steps: u64,
    frames_per_step: f64,
}

impl<'a> Terminal<'a> {
    fn new(trainer: &Trainer, global: &'a Global) -> Self {
        let bar = global.bar("", trainer.config().schedule.steps);
        bar.set_position(trainer.step());
        bar.reset_eta();
        let frames_per_step = trainer.frames_per_step();
        Self { bar, global, began: Instant::now(), n_steps: 0, frames_per_step }
    }
}

impl Watch for Terminal<'_> {
    fn step(&mut self, report: &StepReport) {
        self.n_steps += 1;
        let speed = self.n_steps as f64 * self.frames_per_step / self.began.elapsed().as_secs_f64().max(1e-9);
        let bits = report.losses.values().next().copied().unwrap_or_default();
        self.bar.set_message(format!("{bits:.3} bits per code, {speed:.0} frames per second"));
        self.bar.set_position(report.step + 1);
    }

    fn judged(&mut self, step: u64, report: &Report) {
        self.bar.suspend(|| self.global.note(&format!("step {step}: {}", report.line())));
    }

    fn wants_stop(&self) -> bool {
        is_stopping()
    }
}
