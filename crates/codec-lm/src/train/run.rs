//! A run from start to end: steps, log, page, judgements, checkpoints, and the model at last.

use super::Trainer;
use crate::error::{Error, Result};
use crate::families::{CONFIG, WEIGHTS};
use crate::judge::Report;
use crate::quantize::{Precision, pack};
use codec_io::atomic::write_whole;
use codec_train::StepReport;
use codec_train::folder::RunFolder;
use codec_train::report::Log;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Folder of the finished model inside that of the run.
const MODEL: &str = "model";

/// Who wants to know what a run does.
pub trait Watch {
    /// After every step.
    fn step(&mut self, report: &StepReport);
    /// After every judgement.
    fn judged(&mut self, step: u64, report: &Report);
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

/// Trains until the last step, in a folder that is claimed: that of the configuration.
///
/// # Errors
/// As [`Trainer::advance`]; the last checkpoint then stands. [`Error::Config`] when another folder is claimed.
pub fn run(trainer: &mut Trainer, folder: &RunFolder, watch: &mut dyn Watch) -> Result<Outcome> {
    let config = trainer.config().clone();
    if folder.path() != config.output {
        return Err(Error::config("output", "is not the folder that is claimed"));
    }
    let schedule = &config.schedule;
    let mut log = Log::open(&config.output, trainer.step())?;
    let is_due = |step: u64, every: u64| every > 0 && step.is_multiple_of(every);
    let judges = trainer.n_frames()[1] > 0;
    while trainer.step() < schedule.steps {
        let report = trainer.advance()?;
        watch.step(&report);
        log.push(report);
        let step = trainer.step();
        let is_last = step == schedule.steps;
        if is_last || is_due(step, schedule.log_every) {
            log.flush(trainer.seconds(), &BTreeMap::new())?;
        }
        if judges && (is_last || is_due(step, schedule.validate_every)) {
            let report = trainer.judge()?;
            watch.judged(step, &report);
            log.scores(step, trainer.seconds(), scores(&report))?;
        }
        let stops = watch.wants_stop() && !is_last;
        if is_last || stops || is_due(step, schedule.checkpoint_every) {
            let path = trainer.checkpoint()?;
            if stops {
                return Ok(Outcome::Stopped(path));
            }
        }
    }
    let folder = config.output.join(MODEL);
    export(trainer, &folder, Precision::Float32)?;
    Ok(Outcome::Finished(folder))
}

/// Curves of the page: bits per code of the model and the baselines, and of every codebook.
fn scores(report: &Report) -> BTreeMap<String, BTreeMap<String, f64>> {
    let n_per_frame = report.bits_per_frame().model / report.bits_per_code().max(f64::MIN_POSITIVE);
    let totals = report.bits_per_frame();
    let mut all = BTreeMap::from([("model".to_owned(), report.bits_per_code())]);
    for (name, bits) in [("bigram", totals.bigram), ("unigram", totals.unigram)] {
        all.extend(bits.map(|bits| (name.to_owned(), bits / n_per_frame)));
    }
    let books = report.codebooks.iter().enumerate();
    let books = books.map(|(i, book)| (format!("codebook {:02}", i + 1), book.model)).collect();
    BTreeMap::from([("bits per code".to_owned(), all), ("bits per code of each codebook".to_owned(), books)])
}

/// Writes the model as a folder: `config.json` and `model.safetensors`.
///
/// # Errors
/// [`Error::Io`].
pub fn export(trainer: &Trainer, folder: &Path, precision: Precision) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let config = trainer.model_config().text()?.into_bytes();
    for (name, bytes) in [(CONFIG, config), (WEIGHTS, pack(&trainer.export()?, precision)?)] {
        let path = folder.join(name);
        write_whole(&path, &bytes).map_err(Error::io(path))?;
    }
    Ok(())
}
