//! The configuration of a run: one TOML file.
//!
//! Every setting is used or refused; `docs/language-models.md` explains them.

use crate::config::{ModelConfig, Shape};
use crate::error::{Error, Result};
use crate::pattern::Pattern;
use codec_core::CodeLayout;
use codec_train::config::{OptimizerConfig, ScheduleConfig, SourceConfig};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::path::{Path, PathBuf};

/// A run.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Everything random follows from it.
    #[serde(default)]
    pub seed: u64,
    /// Where checkpoints, log and page go; relative to the configuration's folder.
    pub output: PathBuf,
    /// What is trained.
    #[serde(default)]
    pub model: ModelSection,
    /// What it is trained on.
    pub data: DataConfig,
    /// How it is trained; by default as [`default_optimizer`].
    #[serde(default = "default_optimizer", deserialize_with = "optimizer")]
    pub optimizer: OptimizerConfig,
    /// How long, and what is written when.
    pub schedule: ScheduleConfig,
}

/// What is trained.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// How codes stand in a sequence.
    pub pattern: PatternKind,
    /// Of `delay` and `depth`, one for each codebook; by default 0, 1, 2 and so on for `delay` and none for
    /// `depth`.
    pub delays: Option<Vec<usize>>,
    /// A model to go on from: a folder with tensors of the same shapes, also of another codec's codes.
    pub from: Option<PathBuf>,
    /// The transformer.
    #[serde(flatten)]
    pub shape: Shape,
}

/// The patterns that are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatternKind {
    /// [`Pattern::Delay`], or [`Pattern::Interleave`] for codebooks with strides.
    #[default]
    Auto,
    /// [`Pattern::Parallel`].
    Parallel,
    /// [`Pattern::Delay`].
    Delay,
    /// [`Pattern::Depth`].
    Depth,
    /// [`Pattern::Flatten`].
    Flatten,
    /// [`Pattern::Interleave`].
    Interleave,
}

/// What a model is trained on.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folders, manifests or files, of token files or of audio.
    pub sources: Vec<SourceConfig>,
    /// The codec that tokenizes audio: the name of a model, or the path of a checkpoint.
    #[serde(default)]
    pub codec: Option<String>,
    /// Codebooks in use; all of them by default.
    #[serde(default)]
    pub n_codebooks: Option<usize>,
    /// Folder of the codes of audio that was tokenized before.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// The manifests' column of speakers. Recordings of which no speaker is known have one each.
    #[serde(default = "speaker")]
    pub speaker: String,
    /// The manifests' column of classes; without it the model has none.
    #[serde(default)]
    pub class: Option<String>,
    /// Share of the steps that are trained without their class.
    #[serde(default = "tenth")]
    pub class_dropout: f64,
    /// Share of every source's frames whose speakers are held out to judge by.
    #[serde(default = "twentieth")]
    pub validation_share: f64,
    /// What is judged by instead.
    #[serde(default)]
    pub validation: Vec<SourceConfig>,
    /// Frames that are judged by at most.
    #[serde(default = "frames")]
    pub validation_frames: usize,
    /// Steps of a sequence in a batch.
    #[serde(default = "window")]
    pub window: usize,
    /// Sequences of a batch.
    #[serde(default = "two")]
    pub batch_size: usize,
    /// Share of the sequences that begin where their recording does.
    #[serde(default = "twentieth")]
    pub from_start: f64,
}

/// AdamW as a small language model wants it, where a run does not say otherwise.
pub fn default_optimizer() -> OptimizerConfig {
    OptimizerConfig {
        learning_rate: 1.5e-3,
        warm_up: 100,
        betas: [0.9, 0.95],
        weight_decay: 0.1,
        ..OptimizerConfig::default()
    }
}

/// What a run says, over [`default_optimizer`]: codec-train has other defaults.
fn optimizer<'de, D: Deserializer<'de>>(run: D) -> std::result::Result<OptimizerConfig, D::Error> {
    let mut all = toml::Table::try_from(default_optimizer()).map_err(D::Error::custom)?;
    all.extend(toml::Table::deserialize(run)?);
    all.try_into().map_err(D::Error::custom)
}

impl ModelSection {
    /// The model for the codes of a layout.
    ///
    /// # Errors
    /// As [`ModelConfig::check`].
    pub fn config(&self, layout: &CodeLayout) -> Result<ModelConfig> {
        let n = layout.n_codebooks();
        let is_strided = layout.stride_frames() != 1;
        let kind = match self.pattern {
            PatternKind::Auto if is_strided => PatternKind::Interleave,
            PatternKind::Auto => PatternKind::Delay,
            other => other,
        };
        if self.delays.is_some() && !matches!(kind, PatternKind::Delay | PatternKind::Depth) {
            return Err(Error::config("model.delays", "go with the patterns `delay` and `depth`"));
        }
        let delays = |of: fn(usize) -> usize| self.delays.clone().unwrap_or_else(|| (0..n).map(of).collect());
        let pattern = match kind {
            PatternKind::Parallel => Pattern::Parallel,
            PatternKind::Depth => Pattern::Depth { delays: delays(|_| 0) },
            PatternKind::Flatten => Pattern::Flatten,
            PatternKind::Interleave => Pattern::Interleave,
            PatternKind::Delay | PatternKind::Auto => Pattern::Delay { delays: delays(|k| k) },
        };
        let mut shape = self.shape.clone();
        // Heads behind a depth transformer are its own.
        shape.tied &= shape.depth.is_none();
        let config = ModelConfig::new(layout, pattern, shape);
        config.check()?;
        Ok(config)
    }
}

impl RunConfig {
    /// Reads a file; relative paths in it count from its folder and become absolute.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], and as [`RunConfig::check`].
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut config = toml::from_str::<Self>(&text).map_err(|e| Error::format(path, e))?;
        // Absolute, so that a checkpoint finds its data from wherever the run is resumed.
        let path = std::path::absolute(path).map_err(Error::io(path))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config.output = folder.join(&config.output);
        let data = &mut config.data;
        for path in config.model.from.iter_mut().chain(&mut data.cache) {
            *path = folder.join(&*path);
        }
        if let Some(codec) = &mut data.codec {
            // What is no path is a name.
            let beside = folder.join(&*codec);
            if beside.exists() {
                *codec = beside.display().to_string();
            }
        }
        for source in data.sources.iter_mut().chain(&mut data.validation) {
            source.path = folder.join(&source.path);
        }
        config.check()?;
        Ok(config)
    }

    /// Refuses what can be meant for no codes: what is left shows when the codes are there.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Train`].
    pub fn check(&self) -> Result<()> {
        let refuse = |field: &'static str, why: &str| Err(Error::config(field, why));
        let data = &self.data;
        if data.sources.is_empty() {
            return refuse("data.sources", "is empty");
        }
        data.sources.iter().try_for_each(SourceConfig::check)?;
        if data.n_codebooks == Some(0) {
            return refuse("data.n_codebooks", "must be above 0");
        }
        if data.batch_size == 0 || !(2..=1 << 16).contains(&data.window) {
            return refuse("data", "needs a batch, and a window of 2 to 65536 steps");
        }
        let shares = [data.class_dropout, data.validation_share, data.from_start];
        if !shares.iter().all(|share| (0.0..=1.0).contains(share)) {
            return refuse("data", "shares lie in 0..=1");
        }
        self.model.shape.check()?;
        self.optimizer.check()?;
        Ok(self.schedule.check()?)
    }
}

fn speaker() -> String {
    "speaker".to_owned()
}

fn tenth() -> f64 {
    0.1
}

fn twentieth() -> f64 {
    0.05
}

fn frames() -> usize {
    8000
}

fn window() -> usize {
    256
}

fn two() -> usize {
    2
}
