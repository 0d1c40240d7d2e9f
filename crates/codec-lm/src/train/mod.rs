//! Training: from token files or audio to a model.
//!
//! The optimizer, checkpoints, log and page are those of codec-train. Everything random is a function of the
//! seed, a purpose and the step, so a resumed run equals an unbroken one, bit for bit on the CPU.

mod config;
mod run;

pub use codec_train::run::Outcome;
pub use config::{DataConfig, ModelSection, PatternKind, RunConfig, default_optimizer};
pub use run::{Watch, export, run};

use crate::baseline::Baseline;
use crate::config::ModelConfig;
use crate::corpus::{Corpus, Recording};
use crate::error::{Error, Result};
use crate::families::{CONFIG, WEIGHTS};
use crate::judge::{Report, judge};
use crate::model::{Model, Steps};
use crate::pattern::check_same_layout;
use crate::predict::LanguageModel;
use crate::quantize::unpack;
use candle_core::{Device, Tensor, Var};
use codec_io::atomic::write_whole;
use codec_nn::weights::{Variables, Weights};
use codec_train::StepReport;
use codec_train::checkpoint::Saved;
use codec_train::data::Fingerprint;
use codec_train::optim::{AdamW, Average, global_norm, learning_rate};
use codec_train::rng::Rng;
use std::collections::BTreeMap;
use std::f64::consts::LN_2;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A weights file without a tensor.
pub(crate) const NO_TENSORS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

/// A run.
#[derive(Debug)]
pub struct Trainer {
    config: RunConfig,
    model_config: ModelConfig,
    device: Device,
    trained: BTreeMap<String, Var>,
    model: Model,
    sequences: Vec<Sequence>,
    /// Running sums of the sequences' shares, the last of them 1.
    shares: Vec<f64>,
    n_frames: usize,
    fingerprint: Fingerprint,
    baseline: Baseline,
    held: Corpus,
    optimizer: AdamW,
    average: Average,
    step: u64,
    seconds: f64,
    /// Frames per second, where the codec is known.
    frame_rate: Option<f64>,
}

/// The steps of one recording.
#[derive(Debug)]
struct Sequence {
    /// `[n_steps, n_streams]`.
    tokens: Vec<u32>,
    class: Option<u32>,
}

/// Sequences of one step of training, `[batch, window, n_streams]`.
#[derive(Debug)]
struct Batch {
    /// The steps that are read: each is the one before its target.
    inputs: Vec<u32>,
    targets: Vec<u32>,
    classes: Vec<Option<u32>>,
}

impl Trainer {
    /// Begins a run on a corpus; `held` is what is judged by, or nothing for a part of the corpus.
    ///
    /// # Errors
    /// What is wrong with the configuration, the model or the data; [`Error::Mismatch`] when `held` has
    /// another layout than the corpus.
    pub fn new(config: RunConfig, corpus: Corpus, held: Option<Corpus>, device: &Device) -> Result<Self> {
        config.check()?;
        let mut model_config = config.model.config(corpus.layout()?)?;
        model_config.codec.clone_from(&corpus.codec);
        if config.data.class.is_some() {
            model_config.classes = corpus.classes();
        }
        let (corpus, held) = match held {
            Some(held) => {
                check_same_layout(corpus.layout()?, held.layout()?)?;
                (corpus, held)
            }
            None => corpus.split(config.data.validation_share, config.seed),
        };
        let baseline = Baseline::of(&corpus)?;
        let variables = Variables::seeded(device, config.seed);
        let weights = Weights::from_bytes(NO_TENSORS.to_vec(), device)?.trained(&variables);
        let model = Model::new(&model_config, &weights)?;
        start(&model, &variables, &baseline, config.seed)?;
        if let Some(folder) = &config.model.from {
            go_on_from(folder, &variables, device)?;
        }
        let (sequences, shares) = sequences(&model, &config, &corpus)?;
        Ok(Self {
            trained: variables.all(),
            frame_rate: corpus.codec.as_ref().map(|codec| codec.frame_rate()),
            n_frames: corpus.n_frames(),
            fingerprint: fingerprint(&config, &corpus),
            device: device.clone(),
            optimizer: AdamW::new(&config.optimizer),
            average: Average::default(),
            step: 0,
            seconds: 0.0,
            config,
            model_config,
            model,
            sequences,
            shares,
            baseline,
            held,
        })
    }

    /// Goes on with a run.
    ///
    /// # Errors
    /// As [`Trainer::new`]; [`Error::Config`] when the checkpoint is of another model.
    pub fn resume(
        saved: &Saved,
        config: RunConfig,
        corpus: Corpus,
        held: Option<Corpus>,
        device: &Device,
    ) -> Result<Self> {
        let mut trainer = Self::new(config, corpus, held, device)?;
        let tensors = saved.part("model");
        for (name, var) in &trainer.trained {
            let tensor = tensors.get(name).filter(|tensor| tensor.dims() == var.dims());
            let wrong = || Error::config("checkpoint", format!("does not hold {name} as this run has it"));
            var.set(tensor.ok_or_else(wrong)?)?;
        }
        trainer.optimizer.restore(saved.part("moments"));
        trainer.average.restore(saved.part("average"));
        (trainer.step, trainer.seconds) = (saved.state.step, saved.state.seconds);
        Ok(trainer)
    }

    /// The run's configuration.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// What the model is.
    pub fn model_config(&self) -> &ModelConfig {
        &self.model_config
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Frames of what is trained on, and of what is judged by.
    pub fn n_frames(&self) -> [usize; 2] {
        [self.n_frames, self.held.n_frames()]
    }

    /// Whether the codes are still those that a checkpoint was trained on.
    ///
    /// # Errors
    /// [`Error::Train`]: a run that goes on is then another one.
    pub fn check_data(&self, saved: &Saved) -> Result<()> {
        Ok(self.fingerprint.check(saved.state.data.as_ref())?)
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Seconds of training so far, those before a resumption included.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Frames that a step of training reads.
    pub fn frames_per_step(&self) -> f64 {
        let arrangement = self.model.arrangement();
        let block = arrangement.block_frames();
        let steps_per_block = arrangement.n_steps(block) - arrangement.n_steps(0);
        let steps_per_block = if arrangement.n_streams() > 1 { 1 } else { steps_per_block };
        let n_steps = self.config.data.batch_size * self.config.data.window;
        n_steps as f64 * block as f64 / steps_per_block.max(1) as f64
    }

    /// One step: a batch, its cost and gradients, and the change of all variables.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the cost or the gradient is not finite: the variables are then as they were.
    pub fn advance(&mut self) -> Result<StepReport> {
        let began = Instant::now();
        // In the pool, or every product would go to other threads and back.
        let report = rayon::scope(|_| self.learn())?;
        self.seconds += began.elapsed().as_secs_f64();
        Ok(report)
    }

    /// What [`Trainer::advance`] does.
    fn learn(&mut self) -> Result<StepReport> {
        let step = self.step;
        let batch = self.batch(step);
        let steps = Steps {
            tokens: &batch.inputs,
            batch: self.config.data.batch_size,
            classes: if self.model_config.classes.is_empty() { &[] } else { &batch.classes },
        };
        let hidden = self.model.step(&mut self.model.init(), steps)?.flatten_to(1)?;
        let costs = self.model.cost(&hidden, &batch.targets)?;
        let counts = self.n_targets(&batch.targets);
        let n_targets: usize = counts.iter().sum();
        let loss = (costs.sum_all()? / n_targets.max(1) as f64)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Err(Error::NotFinite { step, what: "the cost of a code".to_owned(), value });
        }
        let grads = loss.backward()?;
        let length = global_norm(&self.trained, &grads)?;
        if !length.is_finite() {
            return Err(Error::NotFinite { step, what: "the gradient".to_owned(), value: length });
        }
        let optimizer = &self.config.optimizer;
        let scale =
            if optimizer.clip > 0.0 && length > optimizer.clip { optimizer.clip / length } else { 1.0 };
        let rate = learning_rate(optimizer, optimizer.learning_rate, step, self.config.schedule.steps);
        self.optimizer.step(&self.trained, &grads, rate, scale, step)?;
        if optimizer.average > 0.0 {
            self.average.push(&self.trained, optimizer.average, step)?;
        }
        self.step += 1;
        Ok(StepReport {
            step,
            losses: BTreeMap::from([("bits per code".to_owned(), value / LN_2)]),
            gradient: length,
            learning_rate: rate,
            n_revived: 0,
            audio_seconds: self.frames_per_step() / self.frame_rate.unwrap_or(1.0),
            was_ready: true,
        })
    }

    /// Targets of each stream that are no empty tokens.
    fn n_targets(&self, targets: &[u32]) -> Vec<usize> {
        let start = self.model.arrangement().start();
        let mut counts = vec![0; start.len()];
        for step in targets.chunks_exact(start.len()) {
            for ((count, token), empty) in counts.iter_mut().zip(step).zip(&start) {
                *count += usize::from(token != empty);
            }
        }
        counts
    }

    fn batch(&self, step: u64) -> Batch {
        let data = &self.config.data;
        let empty = self.model.arrangement().start();
        let n_streams = empty.len();
        let mut batch = Batch { inputs: Vec::new(), targets: Vec::new(), classes: Vec::new() };
        for item_idx in 0..data.batch_size as u64 {
            let mut rng = Rng::of(self.config.seed, "window", step * data.batch_size as u64 + item_idx);
            let at = rng.uniform();
            let sequence_idx = self.shares.partition_point(|&sum| sum <= at).min(self.sequences.len() - 1);
            let sequence = &self.sequences[sequence_idx];
            let n_steps = sequence.tokens.len() / n_streams;
            let from_start = rng.uniform() < data.from_start;
            let first = rng.below(n_steps.saturating_sub(data.window) + 1);
            let first = if from_start { 0 } else { first };
            let last = n_steps.min(first + data.window);
            let step_at = |step_idx: usize| &sequence.tokens[step_idx * n_streams..][..n_streams];
            for step_idx in first..first + data.window {
                let before = step_idx.checked_sub(1).filter(|before| *before < last);
                batch.inputs.extend_from_slice(before.map_or(&empty, |before| step_at(before)));
                // Behind its end a short recording has nothing to predict.
                batch.targets.extend_from_slice(if step_idx < last { step_at(step_idx) } else { &empty });
            }
            let keeps = rng.uniform() >= data.class_dropout;
            batch.classes.push(sequence.class.filter(|_| keeps));
        }
        batch
    }

    /// The model's tensors as a weights file: the averages, if the run keeps them.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn export(&self) -> Result<Vec<u8>> {
        let values = self.trained.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor()));
        weights_file(values.collect(), self.average.tensors(), self.model_config.text()?)
    }

    /// The model as it would be exported.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn exported(&self) -> Result<Model> {
        Model::new(&self.model_config, &Weights::from_bytes(self.export()?, &self.device)?)
    }

    /// Judges the model by what was held out.
    ///
    /// # Errors
    /// As [`judge`].
    pub fn judge(&self) -> Result<Report> {
        judge(&self.exported()?, Some(&self.baseline), &self.held, self.config.data.validation_frames)
    }

    /// Writes a checkpoint into the run's folder.
    ///
    /// # Errors
    /// As [`Saved::write`].
    pub fn checkpoint(&self) -> Result<PathBuf> {
        let folder = &self.config.output;
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        // With it a checkpoint can be made into a model.
        let path = folder.join(CONFIG);
        write_whole(&path, self.model_config.text()?.as_bytes()).map_err(Error::io(path))?;
        let config = toml::to_string(&self.config).map_err(|e| Error::format(folder, e))?;
        let mut saved = Saved::new(self.step, config, self.seconds);
        saved.state.data = Some(self.fingerprint.clone());
        let values = self.trained.iter();
        saved.put("model", values.map(|(name, var)| (name.clone(), var.as_detached_tensor())));
        saved.put("moments", self.optimizer.tensors().clone());
        saved.put("average", self.average.tensors().clone());
        Ok(saved.write(folder, self.config.schedule.keep)?)
    }
}

/// The model of a run's newest checkpoint, or of one of its checkpoints: `config.json` and the weights file.
///
/// # Errors
/// As [`Saved::read`]; [`Error::Io`] when the run's folder has no `config.json`.
pub fn exported(run: &Path) -> Result<[Vec<u8>; 2]> {
    let saved = Saved::read(run, &Device::Cpu)?;
    let folder = if run.is_dir() { run } else { run.parent().unwrap_or(Path::new("")) };
    let path = folder.join(CONFIG);
    let config = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let file = weights_file(saved.part("model"), &saved.part("average"), config.clone())?;
    Ok([config.into_bytes(), file])
}

/// Tensors, or their averages where there are any, as a weights file.
fn weights_file(
    tensors: BTreeMap<String, Tensor>,
    averages: &BTreeMap<String, Tensor>,
    config: String,
) -> Result<Vec<u8>> {
    let tensor = |(name, value): (String, Tensor)| -> Result<(String, Tensor)> {
        let value = averages.get(&name).cloned().unwrap_or(value);
        Ok((name, value.contiguous()?))
    };
    let tensors = tensors.into_iter().map(tensor).collect::<Result<Vec<_>>>()?;
    let metadata = [("config".to_owned(), config)].into_iter().collect();
    Ok(safetensors::serialize(tensors, Some(metadata)).map_err(candle_core::Error::from)?)
}

/// Sets what new variables start from: embeddings as long as the logits want them, projections back into the
/// sum of all layers smaller the more there are, and a bias that predicts how often codes occur.
fn start(model: &Model, variables: &Variables, baseline: &Baseline, seed: u64) -> Result<()> {
    let shape = &model.config().shape;
    let mut logs = vec![0.0_f32; model.columns().last().map_or(0, |range| range.end)];
    let unigrams = baseline.log_unigrams();
    let vocabulary = model.arrangement().vocabulary();
    for (stream_idx, columns) in model.columns().iter().enumerate() {
        let own = &mut logs[columns.clone()];
        for slot in vocabulary.slots(stream_idx) {
            let codes = slot.tokens.clone().zip(unigrams.get(slot.codebook_idx).into_iter().flatten());
            codes.for_each(|(token, log)| own[token as usize] = *log as f32);
        }
    }
    let into_sum = 1.0 / (2.0 * shape.n_layers as f64).sqrt();
    for (name, var) in variables.all() {
        if name == "embed.weight" || name == "depth.embed.weight" {
            let width = var.dim(1)? as f32;
            let mut values = vec![0.0_f32; var.elem_count()];
            let place = Rng::of(seed, &name, 0).bits();
            codec_kernels::gaussian(place, 0, &mut values);
            values.iter_mut().for_each(|x| *x /= width.sqrt());
            var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
        } else if name.ends_with(".output.weight") {
            var.set(&(var.as_detached_tensor() * into_sum)?)?;
        } else if name == "head.bias" {
            var.set(&Tensor::from_vec(logs.clone(), logs.len(), var.device())?)?;
        } else if let Some(stream) = name.strip_prefix("depth.heads.").and_then(|n| n.strip_suffix(".bias")) {
            let columns = stream.parse::<usize>().ok().and_then(|idx| model.columns().get(idx));
            if let Some(columns) = columns {
                let own = logs[columns.clone()].to_vec();
                var.set(&Tensor::from_vec(own, columns.len(), var.device())?)?;
            }
        }
    }
    Ok(())
}

/// Sets variables to the tensors of a model folder.
fn go_on_from(folder: &Path, variables: &Variables, device: &Device) -> Result<()> {
    let path = folder.join(WEIGHTS);
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let weights = Weights::from_bytes(unpack(&bytes)?.into_owned(), device)?;
    for (name, var) in variables.all() {
        var.set(&weights.get(var.shape(), &name)?)?;
    }
    Ok(weights.finish(&[])?)
}

/// What a corpus is, codes included.
fn fingerprint(config: &RunConfig, corpus: &Corpus) -> Fingerprint {
    let mut fingerprint = Fingerprint::default();
    for recording in &corpus.recordings {
        let source = config.data.sources.get(recording.source_idx);
        let source = source.map_or(Path::new(""), |source| &source.path);
        let kind = recording.class.as_deref().unwrap_or_default();
        let codes = recording.codes.rows().flatten().map(|&code| u64::from(code));
        fingerprint.push(source, &recording.path, kind, codes);
    }
    fingerprint
}

/// The recordings as steps, and how often each is drawn from.
fn sequences(model: &Model, config: &RunConfig, corpus: &Corpus) -> Result<(Vec<Sequence>, Vec<f64>)> {
    let mut totals = vec![0.0; config.data.sources.len()];
    let n_frames = |recording: &Recording| recording.codes.n_frames() as f64;
    for recording in &corpus.recordings {
        totals[recording.source_idx] += n_frames(recording);
    }
    let (mut sequences, mut shares) = (Vec::new(), Vec::new());
    for recording in corpus.recordings.iter().filter(|recording| !recording.codes.is_empty()) {
        let class = recording.class.as_deref().and_then(|class| model.class_idx(class));
        let tokens = model.arrangement().encode(&recording.codes)?;
        sequences.push(Sequence { tokens: tokens.values().to_vec(), class });
        let weight = config.data.sources[recording.source_idx].weight;
        shares.push(weight * n_frames(recording) / totals[recording.source_idx]);
    }
    let total: f64 = shares.iter().sum();
    if total.is_nan() || total <= 0.0 {
        return Err(Error::config("data.sources.weight", "leaves nothing to choose"));
    }
    let mut sum = 0.0;
    for share in &mut shares {
        sum += *share / total;
        *share = sum;
    }
    Ok((sequences, shares))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
