//! A run from its first step to its last: log, checkpoints, validations.

use crate::error::{Error, Result};
use crate::folder::RunFolder;
use crate::report::Log;
use crate::trainer::{StepReport, Trainer};
use crate::validation::{Report, Validator};
use candle_core::{DType, Device};
use codec_io::atomic::write_whole;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the exported model's folder inside a run's folder.
pub const MODEL: &str = "model";

/// Who wants to know what a run does.
pub trait Watch {
    /// After every step.
    fn step(&mut self, report: &StepReport);
    /// After every validation.
    fn validated(&mut self, step: u64, report: &Report);
    /// After every checkpoint.
    fn saved(&mut self, path: &Path);
    /// Whether to stop, with a checkpoint.
    fn wants_stop(&self) -> bool;
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done; the model lies in this folder.
    Finished(PathBuf),
    /// Stopped by request; the checkpoint is this file.
    Stopped(PathBuf),
}

impl Outcome {
    /// For programs: how the run in the folder `run` ended after `step` steps.
    pub fn ended<'a>(&'a self, run: &'a Path, step: u64) -> Ended<'a> {
        let (model, checkpoint) = match self {
            Self::Finished(model) => (Some(model.as_path()), None),
            Self::Stopped(checkpoint) => (None, Some(checkpoint.as_path())),
        };
        Ended { run, step, model, checkpoint }
    }
}

/// An [`Outcome`] as the programs of this workspace print it with `--json`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ended<'a> {
    /// The run's folder.
    pub run: &'a Path,
    /// Steps done.
    pub step: u64,
    /// The finished model.
    pub model: Option<&'a Path>,
    /// What a run that was stopped goes on from.
    pub checkpoint: Option<&'a Path>,
}

/// Trains until the last step, in a folder that is claimed: that of the configuration.
///
/// # Errors
/// As [`Trainer::advance`]; the last checkpoint then stands. [`Error::Config`] when another folder is claimed.
pub fn run(
    trainer: &mut Trainer,
    folder: &RunFolder,
    device: &Device,
    watch: &mut dyn Watch,
) -> Result<Outcome> {
    let config = trainer.config().clone();
    if folder.path() != config.output {
        return Err(Error::config("output", "is not the folder that is claimed"));
    }
    let schedule = &config.schedule;
    let validator = Validator::new(&config.validation, trainer.info().audio)?;
    let mut log = Log::open(&config.output, trainer.step())?;
    let is_due = |step: u64, every: u64| every > 0 && step.is_multiple_of(every);
    while trainer.step() < schedule.steps {
        let report = match trainer.advance() {
            Ok(report) => report,
            // A file that cannot be read, say: what was learnt since the last checkpoint is kept.
            Err(error) => {
                if !matches!(error, Error::Diverged { .. }) && trainer.step() > 0 {
                    watch.saved(&trainer.checkpoint()?);
                }
                // What went wrong first is what is told.
                log.flush(trainer.seconds(), &usage(trainer)).ok();
                return Err(error);
            }
        };
        watch.step(&report);
        log.push(report);
        let step = trainer.step();
        let is_last = step == schedule.steps;
        if is_last || is_due(step, schedule.log_every) {
            log.flush(trainer.seconds(), &usage(trainer))?;
        }
        let stops = watch.wants_stop() && !is_last;
        let mut saved = None;
        if is_last || stops || is_due(step, schedule.checkpoint_every) {
            let path = trainer.checkpoint()?;
            watch.saved(&path);
            saved = Some(path);
        }
        // After the checkpoint, so that nothing is lost where it fails.
        if !validator.is_empty() && (is_last || is_due(step, schedule.validate_every)) {
            let report = validator.judge(trainer.export(DType::F32)?, device)?;
            watch.validated(step, &report);
            log.validation(step, trainer.seconds(), report)?;
        }
        if let (true, Some(path)) = (stops, saved) {
            log.flush(trainer.seconds(), &usage(trainer))?;
            return Ok(Outcome::Stopped(path));
        }
    }
    let folder = config.output.join(MODEL);
    export(trainer, &folder, DType::F32)?;
    Ok(Outcome::Finished(folder))
}

/// Writes the model as a folder that `codec --model` takes: `config.json` and `model.safetensors`, whose
/// tensors are of type `dtype`.
///
/// # Errors
/// [`Error::Io`].
pub fn export(trainer: &Trainer, folder: &Path, dtype: DType) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let config = trainer.model().config().map(|config| ("config.json", config.as_bytes().to_vec()));
    for (name, bytes) in config.into_iter().chain([("model.safetensors", trainer.export(dtype)?)]) {
        let path = folder.join(name);
        write_whole(&path, &bytes).map_err(Error::io(&path))?;
    }
    Ok(())
}

/// By kind of clip, and `all`, the use of every codebook.
fn usage(trainer: &Trainer) -> BTreeMap<String, Vec<crate::quantizer::UsageSummary>> {
    let kinds = trainer.library().kinds().iter().enumerate();
    let mut usage: BTreeMap<_, _> =
        kinds.map(|(kind_idx, kind)| (kind.clone(), trainer.usage(Some(kind_idx)))).collect();
    usage.insert("all".to_owned(), trainer.usage(None));
    usage
}
