//! The configuration of a run: one TOML file.
//!
//! Every setting is used or refused; `docs/training.md` explains them.

use crate::error::{Error, Result};
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
    pub model: ModelConfig,
    /// What it is trained on.
    pub data: DataConfig,
    /// How codes are learnt.
    #[serde(default)]
    pub quantizer: QuantizerConfig,
    /// What is minimized.
    #[serde(default)]
    pub loss: LossConfig,
    /// Discriminators, if there are any.
    #[serde(default)]
    pub adversary: Option<AdversaryConfig>,
    /// How it is minimized.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How long, and what is written when.
    pub schedule: ScheduleConfig,
    /// How progress is judged.
    #[serde(default)]
    pub validation: ValidationConfig,
}

/// What is trained: one of `config` and `checkpoint`, or both, when a configuration goes with tensors that
/// have none.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The configuration of a new model, as in its family's `config.json`.
    #[serde(default)]
    pub config: Option<toml::Table>,
    /// A model to go on from: a path, relative to the configuration's folder, or the name of a model, as
    /// `codec --model` takes it.
    #[serde(default)]
    pub checkpoint: Option<String>,
    /// Tensors that stay as they are, by the starts of their names.
    #[serde(default)]
    pub freeze: Vec<String>,
}

/// What is trained on.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folders and manifests.
    pub sources: Vec<SourceConfig>,
    /// Length of a crop.
    #[serde(default = "one")]
    pub crop_seconds: f64,
    /// Crops per step.
    #[serde(default = "eight")]
    pub batch_size: usize,
    /// Threads that read audio.
    #[serde(default = "one_thread")]
    pub threads: usize,
    /// Decoded audio that is kept in memory, GiB.
    #[serde(default = "four")]
    pub cache_gib: f64,
    /// Crops quieter than this are drawn again, dB of full scale (RMS).
    #[serde(default = "silence")]
    pub silence_db: f64,
    /// Gain, uniform in this range of dB.
    #[serde(default)]
    pub gain_db: [f64; 2],
    /// Share of crops that get a second one mixed in.
    #[serde(default)]
    pub mix_probability: f64,
    /// Level of the first over the second, uniform in this range of dB.
    #[serde(default = "mix_snr")]
    pub mix_snr_db: [f64; 2],
}

/// A folder of audio files, or a manifest (`.tsv` with a header, or `.jsonl`) that lists them in `file` or
/// `path`, relative to itself, with `kind`, `weight` and `seconds` if it has them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// The folder or manifest; relative to the configuration's folder.
    pub path: PathBuf,
    /// What the clips are, where the manifest does not say it.
    #[serde(default)]
    pub kind: Option<String>,
    /// Only the manifest's clips whose columns have these values.
    #[serde(default)]
    pub only: std::collections::BTreeMap<String, String>,
    /// Share of the crops, relative to the other sources.
    #[serde(default = "one")]
    pub weight: f64,
}

impl SourceConfig {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        if !is_from_zero(self.weight) {
            return Err(Error::config("data.sources.weight", "must be 0 or above"));
        }
        Ok(())
    }
}

/// How codes are learnt.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuantizerConfig {
    /// How codebooks learn: by moving averages of what they code, or by gradient. By default Euclidean
    /// codebooks learn by averages and normalized ones by gradient.
    pub codebooks: Option<CodebookLearning>,
    /// How gradients pass the quantizer.
    pub gradient: GradientEstimator,
    /// Share of the past in the moving averages.
    pub decay: f64,
    /// An entry that codes fewer vectors than this share of the mean is replaced.
    pub revive_below: f64,
    /// Where such an entry goes.
    pub revive_as: Revival,
    /// Batches from which the codebooks start; 0 leaves them as they are. By default 8 for a new model
    /// and 0 for a checkpoint.
    pub kmeans_batches: Option<usize>,
    /// Rounds of k-means.
    pub kmeans_rounds: usize,
    /// Share of items that use a random number of codebooks.
    pub dropout: f64,
    /// The step at which quantization starts; before, latents pass as they are.
    pub start: u64,
}

impl Default for QuantizerConfig {
    fn default() -> Self {
        Self {
            codebooks: None,
            gradient: GradientEstimator::StraightThrough,
            decay: 0.99,
            revive_below: 0.1,
            revive_as: Revival::Row,
            kmeans_batches: None,
            kmeans_rounds: 10,
            dropout: 0.0,
            start: 0,
        }
    }
}

/// See [`QuantizerConfig::codebooks`].
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum CodebookLearning {
    /// Moving averages (van den Oord et al. 2017, appendix A.1).
    Averages,
    /// Gradient of the codebook loss.
    Gradient,
}

/// See [`QuantizerConfig::revive_as`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Revival {
    /// To any row of the step.
    #[default]
    Row,
    /// Beside one of the most used entries, whose work they share (Linde, Buzo and Gray 1980, "An algorithm for vector
    /// quantizer design"): for codebooks that learn by averages.
    Split,
}

/// See [`QuantizerConfig::gradient`].
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum GradientEstimator {
    /// The gradient is copied (Bengio et al. 2013).
    StraightThrough,
    /// The gradient is rotated and scaled as the vector was (Fifty et al. 2024, arXiv 2410.06424).
    Rotation,
}

/// Weights of the losses; a loss of weight 0 is not computed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Mean absolute difference of the samples.
    pub waveform: f64,
    /// Log-mel distance at several scales (DAC).
    pub mel: f64,
    /// Complex distance of compressed spectra at several scales.
    pub stft: f64,
    /// Disturbance of loudness that is heard, in units of PESQ's raw score.
    pub loudness: f64,
    /// One minus the correlation of the envelopes of bands, as in STOI.
    pub intelligibility: f64,
    /// Negative SI-SDR, in dB.
    pub si_sdr: f64,
    /// Latents to their codebook entries.
    pub commitment: f64,
    /// Codebook entries to latents, where codebooks learn by gradient.
    pub codebook: f64,
    /// Exponent of the compression in `stft`.
    pub compression: f64,
    /// Windows of `stft` and `mel`, samples.
    pub windows: Vec<usize>,
    /// Mel bands at each window.
    pub mel_bands: Vec<usize>,
    /// Whether each loss on the audio gets a share of the gradient by its weight, whatever its own scale
    /// is (EnCodec's balancer).
    pub balance: bool,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            waveform: 1.0,
            mel: 1.0,
            stft: 0.0,
            loudness: 0.0,
            intelligibility: 0.0,
            si_sdr: 0.0,
            commitment: 0.25,
            codebook: 1.0,
            compression: 0.3,
            windows: vec![32, 64, 128, 256, 512, 1024, 2048],
            mel_bands: vec![5, 10, 20, 40, 80, 160, 320],
            balance: false,
        }
    }
}

/// Discriminators.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdversaryConfig {
    /// The step from which on they judge.
    pub start: u64,
    /// Windows of the multi-scale STFT discriminator (EnCodec); none without.
    pub stft_windows: Vec<usize>,
    /// Channels of its layers.
    pub stft_channels: usize,
    /// Periods of the multi-period discriminator (HiFi-GAN, DAC); none without.
    pub periods: Vec<usize>,
    /// Channels of its first layer.
    pub period_channels: usize,
    /// Form of the losses.
    pub form: AdversarialForm,
    /// Weight of the generator's loss.
    pub weight: f64,
    /// Weight of the difference of features.
    pub features: f64,
    /// Learning rate at its peak.
    pub learning_rate: f64,
    /// Share of the steps at which the discriminators learn.
    pub update_probability: f64,
}

impl Default for AdversaryConfig {
    fn default() -> Self {
        Self {
            start: 0,
            stft_windows: vec![1024, 512, 256],
            stft_channels: 32,
            periods: Vec::new(),
            period_channels: 16,
            form: AdversarialForm::Hinge,
            weight: 1.0,
            features: 2.0,
            learning_rate: 3e-4,
            update_probability: 1.0,
        }
    }
}

/// See [`AdversaryConfig::form`].
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum AdversarialForm {
    /// Hinge (EnCodec).
    Hinge,
    /// Least squares (DAC).
    LeastSquares,
}

/// AdamW.
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
            learning_rate: 3e-4,
            final_share: 0.1,
            warm_up: 200,
            betas: [0.8, 0.99],
            weight_decay: 0.0,
            clip: 1.0,
            average: 0.0,
        }
    }
}

impl OptimizerConfig {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        let refuse = |field: &'static str, why: &str| Err(Error::config(field, why));
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return refuse("optimizer.learning_rate", "must be above 0");
        }
        if !(0.0..=1.0).contains(&self.final_share) {
            return refuse("optimizer.final_share", "lies in 0..=1");
        }
        if !self.betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
            return refuse("optimizer.betas", "lie in 0..1");
        }
        if !is_from_zero(self.weight_decay) {
            return refuse("optimizer.weight_decay", "must be 0 or above");
        }
        if !is_from_zero(self.clip) {
            return refuse("optimizer.clip", "must be 0 or above");
        }
        if !(0.0..1.0).contains(&self.average) {
            return refuse("optimizer.average", "lies in 0..1");
        }
        Ok(())
    }
}

/// How long, and what is written when.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Steps in all.
    pub steps: u64,
    /// Steps between two lines of the log.
    #[serde(default = "ten")]
    pub log_every: u64,
    /// Steps between two checkpoints.
    #[serde(default = "thousand")]
    pub checkpoint_every: u64,
    /// Checkpoints that are kept.
    #[serde(default = "two")]
    pub keep: usize,
    /// Steps between two validations; 0 for one at the end.
    #[serde(default)]
    pub validate_every: u64,
}

impl ScheduleConfig {
    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        if self.steps == 0 || self.log_every == 0 || self.checkpoint_every == 0 {
            return Err(Error::config("schedule", "needs steps"));
        }
        Ok(())
    }
}

/// How progress is judged.
#[derive(Clone, Debug, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Clips, as for training; `weight` has no meaning here.
    pub sources: Vec<SourceConfig>,
    /// Clips that are judged at most.
    pub n_clips: Option<usize>,
    /// Seconds of each clip at most.
    pub max_seconds: Option<f64>,
    /// Numbers of codebooks to judge with; all of them by default.
    pub n_codebooks: Vec<usize>,
}

impl RunConfig {
    /// Reads a file; relative paths in it count from its folder and become absolute.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], [`Error::Config`].
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let parsed = toml::from_str::<Self>(&text);
        let mut config = parsed.map_err(|e| Error::Format { path: path.to_owned(), why: e.to_string() })?;
        // Absolute, so that a checkpoint finds its data from wherever the run is resumed.
        let path = std::path::absolute(path).map_err(Error::io(path))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config.output = folder.join(&config.output);
        config.model.checkpoint = config.model.checkpoint.map(|named| {
            let as_path = folder.join(&named);
            let is_name = !as_path.exists() && Path::new(&named).components().count() == 1;
            if is_name { named } else { as_path.display().to_string() }
        });
        for source in config.data.sources.iter_mut().chain(&mut config.validation.sources) {
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
        let probability = 0.0..=1.0;
        let decay = 0.0..1.0;
        if self.model.config.is_none() && self.model.checkpoint.is_none() {
            return refuse("model", "needs `config` or `checkpoint`");
        }
        if self.data.sources.is_empty() {
            return refuse("data.sources", "is empty");
        }
        self.data.sources.iter().try_for_each(SourceConfig::check)?;
        if self.data.batch_size == 0 || !(0.0..=600.0).contains(&self.data.crop_seconds) {
            return refuse("data", "needs a batch and a crop of at most 600 seconds");
        }
        for (field, value) in [
            ("data.mix_probability", self.data.mix_probability),
            ("quantizer.dropout", self.quantizer.dropout),
        ] {
            if !probability.contains(&value) {
                return refuse(field, "lies in 0..=1");
            }
        }
        self.optimizer.check()?;
        if !decay.contains(&self.quantizer.decay) {
            return refuse("quantizer.decay", "lies in 0..1");
        }
        if !decay.contains(&self.quantizer.revive_below) {
            return refuse("quantizer.revive_below", "lies in 0..1");
        }
        if self.loss.windows.len() != self.loss.mel_bands.len() {
            return refuse("loss.mel_bands", "must be as many as loss.windows");
        }
        if self.loss.windows.iter().any(|&window| window < 8 || window % 4 != 0) {
            return refuse("loss.windows", "must be multiples of 4, from 8 on");
        }
        self.schedule.check()
    }
}

fn is_from_zero(x: f64) -> bool {
    x >= 0.0 && x.is_finite()
}

fn one() -> f64 {
    1.0
}

fn four() -> f64 {
    4.0
}

fn silence() -> f64 {
    -60.0
}

fn mix_snr() -> [f64; 2] {
    [0.0, 20.0]
}

fn one_thread() -> usize {
    1
}

fn eight() -> usize {
    8
}

fn two() -> usize {
    2
}

fn ten() -> u64 {
    10
}

fn thousand() -> u64 {
    1000
}
