//! The configuration of a run: one TOML file.
//!
//! Every setting is used or refused; `docs/language-models.md` explains them.

use crate::config::{ModelConfig, Shape};
use crate::error::{Error, Result};
use crate::pattern::Pattern;
use codec_core::CodeLayout;
use codec_train::config::{ScheduleConfig, SourceConfig};
use serde::{Deserialize, Serialize};
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
    /// How it is trained.
    #[serde(default)]
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

/// AdamW, with the defaults of small language models.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// At its peak.
    pub learning_rate: f64,
    /// At the end, as a share of the peak.
    pub final_share: f64,
    /// Steps of linear growth at the start.
    pub warm_up: u64,
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Decay of weight matrices per step and unit of learning rate.
    pub weight_decay: f64,
    /// Longest gradient; 0 for any.
    pub clip: f64,
    /// Share of the past in the averaged weights, which are what is exported; 0 for none.
    pub average: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1.5e-3,
            final_share: 0.1,
            warm_up: 100,
            betas: [0.9, 0.95],
            weight_decay: 0.1,
            clip: 1.0,
            average: 0.0,
        }
    }
}

impl OptimizerConfig {
    /// The same for what all training shares.
    pub(crate) fn shared(&self) -> codec_train::config::OptimizerConfig {
        codec_train::config::OptimizerConfig {
            learning_rate: self.learning_rate,
            final_share: self.final_share,
            warm_up: self.warm_up,
            betas: self.betas,
            weight_decay: self.weight_decay,
            clip: self.clip,
            average: self.average,
        }
    }
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
    /// Reads a file; relative paths in it become relative to its folder.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], [`Error::Config`].
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

    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        let refuse = |field: &'static str, why: &str| Err(Error::config(field, why));
        let share = 0.0..=1.0;
        let data = &self.data;
        if data.sources.is_empty() {
            return refuse("data.sources", "is empty");
        }
        if data.batch_size == 0 || !(2..=1 << 16).contains(&data.window) {
            return refuse("data", "needs a batch, and a window of 2 to 65536 steps");
        }
        if ![data.class_dropout, data.validation_share, data.from_start].iter().all(|x| share.contains(x)) {
            return refuse("data", "shares lie in 0..=1");
        }
        if !(0.0..1.0).contains(&self.optimizer.average) {
            return refuse("optimizer.average", "lies in 0..1");
        }
        if self.schedule.steps == 0 || self.schedule.log_every == 0 || self.schedule.checkpoint_every == 0 {
            return refuse("schedule", "needs steps");
        }
        Ok(())
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
