//! What a run says of itself: a log in JSON lines, and a page with curves.

mod image;
mod page;

use crate::error::{Error, Result};
use crate::quantizer::UsageSummary;
use crate::trainer::StepReport;
use crate::validation;
use codec_core::AudioBuffer;
use codec_io::atomic::write_whole;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the log in the run's folder.
pub const LOG: &str = "log.jsonl";
/// Name of the page in the run's folder.
pub const PAGE: &str = "index.html";

/// A line of the log: means over the steps since the line before.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Line {
    /// `train` or `validation`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Steps done.
    pub step: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Means of the losses, without their weights.
    #[serde(default)]
    pub losses: BTreeMap<String, f64>,
    /// Mean length of the gradient.
    #[serde(default)]
    pub gradient: f64,
    /// The learning rate.
    #[serde(default)]
    pub learning_rate: f64,
    /// Seconds of audio per second.
    #[serde(default)]
    pub speed: f64,
    /// Batches that the trainer had to wait for.
    #[serde(default)]
    pub n_waits: u64,
    /// Entries that were revived.
    #[serde(default)]
    pub n_revived: usize,
    /// Per kind of clip and codebook the share of entries in use; `all` is every kind.
    #[serde(default)]
    pub used: BTreeMap<String, Vec<f64>>,
    /// The same for the perplexity.
    #[serde(default)]
    pub perplexity: BTreeMap<String, Vec<f64>>,
    /// Of a validation: by `METRIC at BITRATE`, for every kind.
    #[serde(default)]
    pub scores: BTreeMap<String, BTreeMap<String, f64>>,
}

/// Collects steps and writes lines.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    title: String,
    file: File,
    lines: Vec<Line>,
    pending: Vec<StepReport>,
    began: std::time::Instant,
    example: Option<[AudioBuffer; 2]>,
}

impl Log {
    /// Opens the log of a run that has done `step` steps; later lines, of a run that was killed after them,
    /// are taken out.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let path = folder.join(LOG);
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(path)(e)),
        };
        // The last line of a run that was killed may be a part of one.
        let lines = text.lines().filter_map(|text| Some((text, serde_json::from_str::<Line>(text).ok()?)));
        // As they were written: numbers that are read and written again may differ in their last digit.
        let (kept, lines): (Vec<&str>, Vec<Line>) = lines.filter(|(_, line)| line.step <= step).unzip();
        let kept: String = kept.iter().flat_map(|line| [line, "\n"]).collect();
        write_whole(&path, kept.as_bytes()).map_err(Error::io(&path))?;
        let file = OpenOptions::new().append(true).open(&path);
        let title = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Self {
            folder: folder.to_owned(),
            title,
            file: file.map_err(Error::io(&path))?,
            lines,
            pending: Vec::new(),
            began: std::time::Instant::now(),
            example: None,
        })
    }

    /// Takes a step.
    pub fn push(&mut self, report: StepReport) {
        self.pending.push(report);
    }

    /// Writes a line of the steps since the last one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn flush(&mut self, seconds: f64, usage: &BTreeMap<String, Vec<UsageSummary>>) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let (Some(last), n) = (pending.last(), pending.len() as f64) else { return Ok(()) };
        let mut losses = BTreeMap::<String, (f64, f64)>::new();
        for (name, value) in pending.iter().flat_map(|report| &report.losses) {
            let (sum, n) = losses.entry(name.clone()).or_default();
            (*sum, *n) = (*sum + value, *n + 1.0);
        }
        let elapsed = self.began.elapsed().as_secs_f64();
        self.began = std::time::Instant::now();
        let of = |value: fn(&UsageSummary) -> f64| {
            let kinds = usage.iter();
            kinds.map(|(kind, all)| (kind.clone(), all.iter().map(value).collect())).collect()
        };
        self.put(Line {
            kind: "train".to_owned(),
            step: last.step + 1,
            seconds,
            losses: losses.into_iter().map(|(name, (sum, n))| (name, sum / n)).collect(),
            gradient: pending.iter().map(|report| report.gradient).sum::<f64>() / n,
            learning_rate: last.learning_rate,
            speed: pending.iter().map(|report| report.audio_seconds).sum::<f64>() / elapsed.max(1e-9),
            n_waits: pending.iter().filter(|report| !report.was_ready).count() as u64,
            n_revived: pending.iter().map(|report| report.n_revived).sum(),
            used: of(|usage| usage.used),
            perplexity: of(|usage| usage.perplexity),
            scores: BTreeMap::new(),
        })?;
        self.write_page()
    }

    /// Writes a line of a validation.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn validation(&mut self, step: u64, seconds: f64, report: validation::Report) -> Result<()> {
        let mut scores = BTreeMap::<String, BTreeMap<String, f64>>::new();
        let mut used = BTreeMap::new();
        for at in &report.scores {
            for (kind, metrics) in &at.kinds {
                for (name, mean) in metrics {
                    let name = format!("{name} at {:.2} kbit/s", at.bitrate / 1000.0);
                    scores.entry(name).or_default().insert(kind.clone(), mean.mean);
                }
            }
            used.insert("all".to_owned(), at.usage.iter().map(|usage| usage.used).collect());
        }
        self.example = report.example;
        let kind = "validation".to_owned();
        self.put(Line { kind, step, seconds, scores, used, ..Line::default() })?;
        self.write_page()
    }

    /// Writes a line of a judgement of another kind: its scores by name and by what they are of.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scores(
        &mut self,
        step: u64,
        seconds: f64,
        scores: BTreeMap<String, BTreeMap<String, f64>>,
    ) -> Result<()> {
        let kind = "validation".to_owned();
        self.put(Line { kind, step, seconds, scores, ..Line::default() })?;
        self.write_page()
    }

    /// The lines so far.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    fn put(&mut self, line: Line) -> Result<()> {
        let path = self.folder.join(LOG);
        // In one piece, and on the disk before the run goes on.
        let text = json_line(&line, &path)?;
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(Error::io(path))?;
        self.lines.push(line);
        Ok(())
    }

    fn write_page(&self) -> Result<()> {
        let text = page::page(&self.title, &self.lines, self.example.as_ref());
        let path = self.folder.join(PAGE);
        write_whole(&path, text.as_bytes()).map_err(Error::io(path))
    }
}

fn json_line(line: &Line, path: &Path) -> Result<String> {
    let text = serde_json::to_string(line);
    let text = text.map_err(|e| Error::Format { path: path.to_owned(), why: e.to_string() })?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64) -> StepReport {
        StepReport {
            step,
            losses: BTreeMap::from([("mel".to_owned(), 1.0 / (step + 1) as f64)]),
            gradient: 0.5,
            learning_rate: 1e-3,
            n_revived: 1,
            audio_seconds: 8.0,
            was_ready: step > 0,
        }
    }

    #[test]
    fn lines_are_means_and_a_resumed_log_goes_on_where_the_run_does() {
        let folder = tempfile::tempdir().unwrap();
        let usage =
            BTreeMap::from([("all".to_owned(), vec![UsageSummary { used: 0.5, perplexity: 9.0 }; 2])]);
        let mut log = Log::open(folder.path(), 0).unwrap();
        for step in 0..6 {
            log.push(report(step));
            if step % 2 == 1 {
                log.flush(step as f64, &usage).unwrap();
            }
        }
        let first = &log.lines()[0];
        assert_eq!((first.step, first.losses["mel"], first.n_waits, first.n_revived), (2, 0.75, 1, 2));
        assert_eq!(first.perplexity["all"], [9.0, 9.0]);
        drop(log);
        // Killed after step 6 in the middle of a line, resumed from step 4.
        let path = folder.path().join(LOG);
        let written = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, written.clone() + "{\"type\":\"tr").unwrap();
        let mut log = Log::open(folder.path(), 4).unwrap();
        assert_eq!(log.lines().iter().map(|line| line.step).collect::<Vec<_>>(), [2, 4]);
        let kept: Vec<&str> = written.lines().take(2).collect();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().collect::<Vec<_>>(), kept);
        log.push(report(4));
        log.flush(5.0, &usage).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().starts_with(&(kept.join("\n") + "\n{")));
        let page = std::fs::read_to_string(folder.path().join(PAGE)).unwrap();
        assert!(page.contains("<svg") && page.contains("mel") && page.contains("learning rate"));
    }

    #[test]
    fn the_old_log_stands_until_the_new_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOG);
        // With a byte that is no text.
        let old = b"{\"type\":\"train\",\"step\":2,\"seconds\":1}\n\xff\n{\"type\":\"train\",\"step\":9,\"seconds\":1}\n";
        std::fs::write(&path, old).unwrap();
        // Another name of the same file shows whether it was written in place.
        let other = folder.path().join("other");
        std::fs::hard_link(&path, &other).unwrap();
        let log = Log::open(folder.path(), 4).unwrap();
        assert_eq!(log.lines().len(), 1);
        assert_eq!(std::fs::read(&other).unwrap(), old);
    }
}
