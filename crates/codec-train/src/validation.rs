//! How good the codec is: the model as it would be exported, on clips that it did not train on.

use crate::config::ValidationConfig;
use crate::data::{Clip, Library, decode};
use crate::error::{Error, Result};
use crate::quantizer::{UsageSummary, summary};
use candle_core::Device;
use codec_core::{AudioBuffer, Codec};
use codec_metrics::Metric;
use codec_nn::families::load_checkpoint;
use codec_nn::weights::Checkpoint;
use serde::Serialize;
use std::collections::BTreeMap;

/// What is measured, and the names of the results.
const METRICS: [Metric; 4] = [Metric::PesqWideBand, Metric::Stoi, Metric::SiSdr, Metric::MelDac];

/// Mean scores at one number of codebooks.
#[derive(Clone, Debug, Serialize)]
pub struct Scores {
    /// Codebooks in use.
    pub n_codebooks: usize,
    /// Their bitrate, bit/s.
    pub bitrate: f64,
    /// Per kind of clip and metric the mean, and the number of clips that it is over: a metric that cannot
    /// judge a clip leaves it out.
    pub kinds: BTreeMap<String, BTreeMap<&'static str, Mean>>,
    /// Use of every codebook.
    pub usage: Vec<UsageSummary>,
}

/// A mean over clips.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Clips.
    pub n: usize,
}

/// A validation.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One for every number of codebooks.
    pub scores: Vec<Scores>,
    /// The first clip and what became of it, for pictures.
    #[serde(skip)]
    pub example: Option<[AudioBuffer; 2]>,
}

/// Clips to judge by, decoded once.
#[derive(Debug)]
pub struct Validator {
    config: ValidationConfig,
    clips: Vec<(String, AudioBuffer)>,
}

impl Validator {
    /// Reads the clips.
    ///
    /// # Errors
    /// As [`Library::clips_of`] and [`decode`].
    pub fn new(config: &ValidationConfig, audio: codec_core::AudioSpec) -> Result<Self> {
        let clips = Library::clips_of(&config.sources)?;
        // Evenly from the list, which may be sorted by kind.
        let n = config.n_clips.unwrap_or(clips.len()).min(clips.len());
        let chosen = (0..n).map(|i| &clips[i * clips.len() / n]);
        let read = |clip: &Clip| -> Result<(String, AudioBuffer)> {
            let samples = decode(&clip.path, audio, config.max_seconds)?;
            Ok((clip.kind.clone(), AudioBuffer::from_interleaved(audio, &samples)?))
        };
        Ok(Self { config: config.clone(), clips: chosen.map(read).collect::<Result<_>>()? })
    }

    /// Whether there is anything to judge by.
    pub fn is_empty(&self) -> bool {
        self.clips.is_empty()
    }

    /// Judges a model given as a safetensors file with its configuration inside.
    ///
    /// # Errors
    /// What loading and coding fail with.
    pub fn judge(&self, model: Vec<u8>, device: &Device) -> Result<Report> {
        let codec = load_checkpoint(&Checkpoint::from_bytes(model, device)?, device)?.codec;
        let all = codec.info().layout.n_codebooks();
        let mut counts = self.config.n_codebooks.clone();
        if counts.is_empty() {
            counts.push(all);
        }
        if let Some(n) = counts.iter().find(|n| **n == 0 || **n > all) {
            return Err(Error::config("validation.n_codebooks", format!("{n} is not in 1..={all}")));
        }
        let scores = counts.iter().map(|&n| self.scores(codec.as_ref(), n)).collect::<Result<_>>()?;
        let example = match self.clips.first() {
            Some((_, clip)) => {
                let mut decoded = codec.decode(&codec.encode(clip, all)?)?;
                decoded.truncate(clip.n_samples());
                Some([clip.clone(), decoded])
            }
            None => None,
        };
        Ok(Report { scores, example })
    }

    fn scores(&self, codec: &dyn Codec, n_codebooks: usize) -> Result<Scores> {
        let mut kinds = BTreeMap::<String, BTreeMap<&'static str, Mean>>::new();
        let mut counts: Vec<Vec<f64>> = codec.info().layout.codebooks()[..n_codebooks]
            .iter()
            .map(|c| vec![0.0; c.size as usize])
            .collect();
        for (kind, clip) in &self.clips {
            let codes = codec.encode(clip, n_codebooks)?;
            for (counts, row) in counts.iter_mut().zip(codes.rows()) {
                row.iter().for_each(|&code| counts[code as usize] += 1.0);
            }
            let mut decoded = codec.decode(&codes)?;
            decoded.truncate(clip.n_samples());
            let clip = clip.slice(0..decoded.n_samples());
            for metric in METRICS {
                // A metric refuses what it cannot judge, such as silence or another rate.
                let Ok(score) = metric.judge(&clip, &decoded) else { continue };
                for kind in [kind.as_str(), "all"] {
                    let of_kind = kinds.entry(kind.to_owned()).or_default();
                    let mean = of_kind.entry(metric.describe().name).or_default();
                    mean.n += 1;
                    mean.mean += (score - mean.mean) / mean.n as f64;
                }
            }
        }
        let usage = counts.iter().map(|counts| summary(counts)).collect();
        let bitrate = codec.info().bitrate(n_codebooks)?.to_f64();
        Ok(Scores { n_codebooks, bitrate, kinds, usage })
    }
}

impl Report {
    /// One line for people.
    pub fn line(&self) -> String {
        let part = |scores: &Scores| {
            let all = scores.kinds.get("all");
            let values = all.into_iter().flatten().map(|(name, mean)| format!("{name} {:.3}", mean.mean));
            let values: Vec<String> = values.collect();
            format!("{:.2} kbit/s: {}", scores.bitrate / 1000.0, values.join(", "))
        };
        self.scores.iter().map(part).collect::<Vec<_>>().join("; ")
    }
}
