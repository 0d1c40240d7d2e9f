//! Every clip through every system: in parallel, with what an earlier run has done taken up again.

use super::clips::{Clip, hex};
use super::codecs::{Coded, System};
use super::judge;
use super::results::{CodebookUse, Failure, Measurement, write_file};
use super::{interrupt, results};
use anyhow::{Context, Result, anyhow};
use codec_core::AudioBuffer;
use codec_io::tokens::{CodeStats, TokenReader, file_bitrate};
use codec_io::{WavFormat, WavWriter};
use codec_metrics::Metric;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folder in which every measurement is kept by a name made of all that decides it.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    /// Of what is the same for all clips and systems: this program and the metrics.
    common: String,
}

/// What a run works on.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) clips: &'a [Clip],
    /// Clips whose decoded audio is kept for listening.
    pub(crate) heard: &'a BTreeSet<usize>,
    pub(crate) systems: &'a [System],
    pub(crate) metrics: &'a [Metric],
}

impl Store {
    /// # Errors
    /// When the folder cannot be made or this program's file cannot be read.
    pub(crate) fn open(folder: PathBuf, metrics: &[Metric]) -> Result<Self> {
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        codec_io::atomic::remove_stale(&folder);
        let names: Vec<&str> = metrics.iter().map(|metric| metric.describe().name).collect();
        Ok(Self { folder, common: format!("{} {}", program()?, names.join(" ")) })
    }

    /// The file of a measurement, without its ending.
    fn place(&self, clip: &Clip, system: &System) -> PathBuf {
        let mut hash = Sha256::new();
        for part in
            [&clip.name, &clip.kind, &clip.sha256, &system.info.id, &system.info.identity, &self.common]
        {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        self.folder.join(&hex(&hash.finalize())[..32])
    }

    fn read(&self, clip: &Clip, system: &System, needs_audio: bool) -> Option<Measurement> {
        let place = self.place(clip, system);
        if needs_audio && !place.with_extension("wav").is_file() {
            return None;
        }
        // What cannot be read is measured again.
        serde_json::from_slice(&std::fs::read(place.with_extension("json")).ok()?).ok()
    }

    /// Keeps what was decoded, the tokens, and last the measurement, which makes it count.
    fn write(
        &self,
        clip: &Clip,
        system: &System,
        coded: &Coded,
        measured: &Measurement,
        with_audio: bool,
    ) -> Result<()> {
        let place = self.place(clip, system);
        if with_audio {
            let path = place.with_extension("wav");
            let mut writer = WavWriter::create(&path, coded.audio.spec(), WavFormat::Pcm16)?;
            writer.write(&coded.audio)?;
            writer.finish()?;
        }
        if coded.is_tokens {
            write_file(&place.with_extension(codec_io::tokens::EXTENSION), &coded.file)?;
        }
        write_file(&place.with_extension("json"), &serde_json::to_vec(measured)?)
    }

    /// What a system made of a clip, for listening.
    ///
    /// # Errors
    /// When it was not kept.
    pub(crate) fn decoded(&self, clip: &Clip, system: &System) -> Result<AudioBuffer> {
        let path = self.place(clip, system).with_extension("wav");
        let mut reader = codec_io::AudioReader::open(&path).with_context(|| path.display().to_string())?;
        Ok(reader.read_to_end()?)
    }

    fn tokens(&self, clip: &Clip, system: &System) -> Option<Vec<u8>> {
        std::fs::read(self.place(clip, system).with_extension(codec_io::tokens::EXTENSION)).ok()
    }
}

/// SHA-256 of the program that runs: codecs, resampling and metrics are its code, so that measurements of another
/// build are not taken up again.
fn program() -> Result<String> {
    let path = std::env::current_exe().context("cannot find this program")?;
    let program = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&Sha256::digest(program)))
}

/// Measures all clips through all systems; a clip that fails does not end the run.
///
/// # Errors
/// When the run is interrupted; what is measured by then is kept.
pub(crate) fn measure(plan: &Plan<'_>, store: &Store) -> Result<(Vec<Measurement>, Vec<Failure>)> {
    let items: Vec<(usize, &System)> = (0..plan.clips.len())
        .flat_map(|clip_idx| plan.systems.iter().map(move |system| (clip_idx, system)))
        .collect();
    let bar = progress(items.len());
    let outcomes: Vec<Result<Measurement, Failure>> = items
        .par_iter()
        .map(|&(clip_idx, system)| {
            let clip = &plan.clips[clip_idx];
            bar.set_message(format!("{} {}", clip.name, system.info.id));
            let outcome = measure_one(plan, store, clip_idx, system);
            bar.inc(1);
            outcome.map_err(|error| {
                let reason = format!("{error:#}");
                if !interrupt::requested() {
                    bar.suspend(|| eprintln!("{} {}: {reason}", clip.name, system.info.id));
                }
                Failure { clip: clip.name.clone(), system: system.info.id.clone(), reason }
            })
        })
        .collect();
    bar.finish_and_clear();
    interrupt::check().context("what is measured is kept; run it again to go on")?;
    let (mut measured, mut failed) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        match outcome {
            Ok(measurement) => measured.push(measurement),
            Err(failure) => failed.push(failure),
        }
    }
    Ok((measured, failed))
}

fn measure_one(plan: &Plan<'_>, store: &Store, clip_idx: usize, system: &System) -> Result<Measurement> {
    interrupt::check()?;
    let (clip, is_heard) = (&plan.clips[clip_idx], plan.heard.contains(&clip_idx));
    if let Some(known) = store.read(clip, system, is_heard) {
        return Ok(known);
    }
    // A codec that panics loses its clip, not the run.
    let work = AssertUnwindSafe(|| -> Result<(Coded, Measurement)> {
        let original = clip.read()?;
        let scratch = tempfile::tempdir().context("no temporary folder")?;
        let coded = system.coder.code(&original, scratch.path())?;
        let measured = measurement(plan, clip, system, &original, &coded)?;
        Ok((coded, measured))
    });
    let (coded, measured) = catch_unwind(work).map_err(|_| anyhow!("panicked; the message is above"))??;
    interrupt::check()?;
    store.write(clip, system, &coded, &measured, is_heard)?;
    Ok(measured)
}

fn measurement(
    plan: &Plan<'_>,
    clip: &Clip,
    system: &System,
    original: &AudioBuffer,
    coded: &Coded,
) -> Result<Measurement> {
    let n_bytes = coded.file.len() as u64;
    let (n_samples, rate) = (original.n_samples() as u64, original.spec().sample_rate);
    let bits_per_second = file_bitrate(n_bytes, n_samples, rate).context("holds no samples")?;
    let judged = judge::judge(original, &coded.audio, &clip.kind, plan.metrics)?;
    let seconds = original.seconds();
    Ok(results::Measurement {
        clip: clip.name.clone(),
        kind: clip.kind.clone(),
        system: system.info.id.clone(),
        seconds,
        decoded_seconds: Some(coded.audio.seconds()),
        n_bytes,
        kbps: bits_per_second / 1000.0,
        payload_kbps: coded.payload_bits.map(|bits| bits as f64 / seconds / 1000.0),
        sample_rate: judged.sample_rate,
        delay: judged.delay,
        scores: judged.scores,
        not_judged: judged.not_judged,
    })
}

/// How the codebooks of each model were used over all clips, at its highest bitrate.
///
/// # Errors
/// When a file of tokens that was kept cannot be read.
pub(crate) fn codebooks(plan: &Plan<'_>, store: &Store) -> Result<Vec<CodebookUse>> {
    let mut uses = Vec::new();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut systems: Vec<&System> = plan.systems.iter().collect();
    systems.sort_by(|a, b| b.info.nominal_kbps.total_cmp_option(a.info.nominal_kbps));
    for system in systems {
        let codec = system.info.codec.as_str();
        let mut stats: Option<CodeStats> = None;
        for clip in plan.clips {
            let Some(file) = store.tokens(clip, system) else { continue };
            let codes = TokenReader::new(Cursor::new(file))?.read_all()?;
            stats.get_or_insert_with(|| CodeStats::new(codes.layout())).push(&codes);
        }
        let Some(stats) = stats.filter(|_| done.insert(codec)) else { continue };
        uses.extend(stats.codebooks().iter().zip(1..).map(|(stats, codebook)| CodebookUse {
            codec: codec.to_owned(),
            codebook,
            size: stats.size,
            n_codes: stats.n_codes,
            n_used: stats.n_used,
            entropy_bits: stats.entropy_bits,
            perplexity: stats.perplexity(),
        }));
    }
    Ok(uses)
}

/// Orders rates that may be missing.
trait TotalCmpOption {
    fn total_cmp_option(self, other: Self) -> std::cmp::Ordering;
}

impl TotalCmpOption for Option<f64> {
    fn total_cmp_option(self, other: Self) -> std::cmp::Ordering {
        self.unwrap_or(0.0).total_cmp(&other.unwrap_or(0.0))
    }
}

pub(crate) fn progress(n_steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(n_steps as u64);
    let template = "{bar:30} {pos}/{len}  {elapsed} (left {eta})  {msg:40!}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Where the measurements of a run lie.
pub(crate) fn folder(out: &Path) -> PathBuf {
    out.join("items")
}
