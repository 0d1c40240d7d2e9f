//! A run from start to end: steps, log, page, judgements, checkpoints, and the model at last.

use super::Trainer;
use crate::error::{Error, Result};
use crate::families::save;
use crate::judge::Report;
use crate::quantize::{Precision, pack};
use codec_train::StepReport;
use codec_train::folder::RunFolder;
use codec_train::report::Log;
use codec_train::run::{MODEL, Outcome};
use std::collections::BTreeMap;
use std::path::Path;

/// Who wants to know what a run does.
pub trait Watch {
    /// After every step.
    fn step(&mut self, report: &StepReport);
    /// After every judgement.
    fn judged(&mut self, step: u64, report: &Report);
    /// Whether to stop, with a checkpoint.
    fn wants_stop(&self) -> bool;
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
        let stops = watch.wants_stop() && !is_last;
        let mut saved = None;
        if is_last || stops || is_due(step, schedule.checkpoint_every) {
            saved = Some(trainer.checkpoint()?);
        }
        // After the checkpoint, so that nothing is lost where it fails.
        if judges && (is_last || is_due(step, schedule.validate_every)) {
            let report = trainer.judge()?;
            watch.judged(step, &report);
            log.scores(step, trainer.seconds(), scores(&report))?;
        }
        if let (true, Some(path)) = (stops, saved) {
            log.flush(trainer.seconds(), &BTreeMap::new())?;
            return Ok(Outcome::Stopped(path));
        }
    }
    let folder = config.output.join(MODEL);
    export(trainer, &folder, Precision::Float32)?;
    Ok(Outcome::Finished(folder))
}

/// Curves of the page: bits per code of the model and the baselines, and of every codebook.
fn scores(report: &Report) -> BTreeMap<String, BTreeMap<String, f64>> {
    let totals = report.bits_per_frame();
    let n_per_frame = totals.model / report.bits_per_code().max(f64::MIN_POSITIVE);
    let mut all = BTreeMap::from([("model".to_owned(), report.bits_per_code())]);
    for (name, bits) in [("bigram", totals.bigram), ("unigram", totals.unigram)] {
        all.extend(bits.map(|bits| (name.to_owned(), bits / n_per_frame)));
    }
    let books = report.codebooks.iter().enumerate();
    let books = books.map(|(i, book)| (format!("codebook {:02}", i + 1), book.model)).collect();
    BTreeMap::from([("bits per code".to_owned(), all), ("bits per code of each codebook".to_owned(), books)])
}

/// Writes the model as a folder.
///
/// # Errors
/// As [`save`].
pub fn export(trainer: &Trainer, folder: &Path, precision: Precision) -> Result<()> {
    save(folder, trainer.model_config().text()?.as_bytes(), &pack(&trainer.export()?, precision)?)
}
