//! The loop.

use crate::adversary::Adversary;
use crate::balancer::Balancer;
use crate::checkpoint::Saved;
use crate::config::RunConfig;
use crate::data::{Batch, Library, Loader, batch};
use crate::error::{Error, Result};
use crate::losses::{AudioLosses, LossTerm};
use crate::model::Model;
use crate::optim::{AdamW, Average, global_norm, learning_rate};
use crate::quantizer::{QuantizerTrainer, UsageSummary};
use candle_core::{DType, Device, Tensor, Var};
use codec_core::CodecInfo;
use codec_nn::Networks;
use codec_nn::layers::Layer;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// A loss that grows to this many times its smoothed value has exploded.
const EXPLOSION: f64 = 100.0;
/// Keeps a loss near zero from exploding by chance.
const EXPLOSION_FLOOR: f64 = 1.0;
/// Share of the past in the smoothed losses.
const SMOOTHING: f64 = 0.98;
/// Added to the loudness by which a segment is divided, as in the codec.
const SCALE_FLOOR: f64 = 1e-8;
/// Batches for k-means are drawn from here on, far from those of the run.
const START_BATCHES: u64 = 1 << 48;
const DEFAULT_KMEANS_BATCHES: usize = 8;

/// A run.
#[derive(Debug)]
pub struct Trainer {
    config: RunConfig,
    device: Device,
    model: Model,
    info: CodecInfo,
    library: Arc<Library>,
    loader: Option<Loader>,
    losses: AudioLosses,
    adversary: Option<Adversary>,
    balancer: Balancer,
    quantizer: QuantizerTrainer,
    /// Of gradients: without those that follow averages.
    trained: BTreeMap<String, Var>,
    optimizer: AdamW,
    average: Average,
    smoothed: BTreeMap<String, f64>,
    step: u64,
    seconds: f64,
}

/// What a step did.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// The step, from 0.
    pub step: u64,
    /// Every loss without its weight.
    pub losses: BTreeMap<String, f64>,
    /// Length of the gradient before clipping.
    pub gradient: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Entries that were revived.
    pub n_revived: usize,
    /// Seconds of audio.
    pub audio_seconds: f64,
    /// Whether the batch was there when it was needed.
    pub was_ready: bool,
}

impl Trainer {
    /// Begins a run.
    ///
    /// # Errors
    /// What is wrong with the configuration, the model or the data.
    pub fn new(config: RunConfig, device: &Device) -> Result<Self> {
        Self::prepare(config, device)
    }

    /// Goes on with a run.
    ///
    /// # Errors
    /// As [`Trainer::new`]; when the checkpoint is not one of this configuration.
    pub fn resume(saved: &Saved, config: RunConfig, device: &Device) -> Result<Self> {
        let mut trainer = Self::prepare(config, device)?;
        trainer.model.restore(&saved.part("model"))?;
        trainer.optimizer.restore(saved.part("moments"));
        trainer.average.restore(saved.part("average"));
        trainer.quantizer.restore(&saved.part("quantizer"));
        trainer.quantizer.usage.restore(&saved.part("usage"))?;
        if let Some(adversary) = &mut trainer.adversary {
            adversary.restore(["adversary", "adversary-moments"].map(|part| saved.part(part)))?;
        }
        trainer.balancer.restore(saved.state.balancer.clone());
        let smoothed = saved.state.losses.iter();
        trainer.smoothed = smoothed.map(|(name, &bits)| (name.clone(), f64::from_bits(bits))).collect();
        trainer.step = saved.state.step;
        trainer.seconds = saved.state.seconds;
        Ok(trainer)
    }

    fn prepare(config: RunConfig, device: &Device) -> Result<Self> {
        config.check()?;
        let model = Model::new(&config.model, config.seed, device)?;
        let Networks { info, quantizer: net, .. } = model.networks()?;
        let n_codebooks = info.layout.n_codebooks();
        if config.validation.n_codebooks.iter().any(|&n| n == 0 || n > n_codebooks) {
            let why = format!("must lie in 1..={n_codebooks}");
            return Err(Error::config("validation.n_codebooks", why));
        }
        let crop_len = crop_len(&config, &info)?;
        let library = Arc::new(Library::new(&config.data, info.audio, crop_len, config.seed)?);
        let losses = AudioLosses::new(&config.loss, info.audio.sample_rate)?;
        let adversary = config.adversary.as_ref();
        let betas = config.optimizer.betas;
        let adversary = adversary.map(|own| Adversary::new(own, betas, config.seed, device)).transpose()?;
        let quantizer = QuantizerTrainer::new(&config.quantizer, config.seed);
        let averaged = quantizer.averaged(&net, model.variables())?;
        let mut trained = model.variables().trainable();
        trained.retain(|name, _| !averaged.contains(name));
        Ok(Self {
            device: device.clone(),
            info,
            library,
            loader: None,
            losses,
            adversary,
            balancer: Balancer::new(config.loss.balance),
            quantizer,
            trained,
            optimizer: AdamW::new(&config.optimizer),
            average: Average::default(),
            smoothed: BTreeMap::new(),
            step: 0,
            seconds: 0.0,
            model,
            config,
        })
    }

    /// The run's configuration.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// What the codec is.
    pub fn info(&self) -> &CodecInfo {
        &self.info
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The data.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Whether the data is still what a checkpoint was trained on.
    ///
    /// # Errors
    /// [`Error::DataChanged`]: a run that goes on is then another one.
    pub fn check_data(&self, saved: &Saved) -> Result<()> {
        self.library.fingerprint().check(saved.state.data.as_ref())
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Seconds of training so far, those before a resumption included.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// How evenly codes are used, by all clips or those of one kind.
    pub fn usage(&self, kind_idx: Option<usize>) -> Vec<UsageSummary> {
        self.quantizer.usage.summaries(kind_idx)
    }

    /// The model as a safetensors file of this type: the averaged weights, if the run keeps them.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn export(&self, dtype: DType) -> Result<Vec<u8>> {
        self.model.export(self.average.tensors(), dtype)
    }

    /// Everything that a resumed run needs.
    ///
    /// # Errors
    /// [`Error::Format`] when the configuration cannot be written.
    pub fn save(&self) -> Result<Saved> {
        let config = toml::to_string(&self.config);
        let config =
            config.map_err(|e| Error::Format { path: self.config.output.clone(), why: e.to_string() })?;
        let mut saved = Saved::new(self.step, config, self.seconds);
        let values = self.model.variables().all().into_iter();
        saved.put("model", values.map(|(name, var)| (name, var.as_detached_tensor())));
        saved.put("moments", self.optimizer.tensors().clone());
        saved.put("average", self.average.tensors().clone());
        saved.put("quantizer", self.quantizer.tensors());
        saved.put("usage", self.quantizer.usage.tensors()?);
        if let Some(adversary) = &self.adversary {
            let [values, moments] = adversary.tensors();
            saved.put("adversary", values);
            saved.put("adversary-moments", moments);
        }
        saved.state.data = Some(self.library.fingerprint().clone());
        saved.state.balancer = self.balancer.state();
        saved.state.losses = self.smoothed.iter().map(|(name, x)| (name.clone(), x.to_bits())).collect();
        Ok(saved)
    }

    /// Writes a checkpoint into the run's folder.
    ///
    /// # Errors
    /// As [`Saved::write`].
    pub fn checkpoint(&self) -> Result<PathBuf> {
        let folder = &self.config.output;
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        self.save()?.write(folder, self.config.schedule.keep)
    }

    /// One step: a batch, its losses and gradients, and the change of all variables.
    ///
    /// # Errors
    /// [`Error::Diverged`] when a loss explodes, or it or the gradient is not finite: the codec's variables are
    /// then as they were before the step. What data and tensors fail with.
    pub fn advance(&mut self) -> Result<StepReport> {
        let began = Instant::now();
        if self.step == self.config.quantizer.start {
            self.start_codebooks()?;
        }
        let (batch, was_ready) = self.next_batch()?;
        // In the pool, or every product would go to other threads and back. Not the waiting for a batch, whose
        // loader may need the pool.
        let report = rayon::scope(|_| self.learn(&batch))?;
        self.seconds += began.elapsed().as_secs_f64();
        Ok(StepReport { was_ready, ..report })
    }

    /// What [`Trainer::advance`] does with a batch.
    fn learn(&mut self, batch: &Batch) -> Result<StepReport> {
        let networks = self.model.networks()?;
        let target = self.normalized(&self.tensor(batch)?)?;
        let n_items = batch.crops.len();
        let n_codebooks = self.quantizer.draw_n_codebooks(n_items, self.info.layout.n_codebooks(), self.step);

        let latents = forward(&networks.encoder, &target)?;
        let size = scalar(&latents.abs()?.mean_all()?)?;
        if !size.is_finite() {
            return Err(self.diverged("the size of the latents", size));
        }
        let quantizes = self.step >= self.config.quantizer.start;
        let quantized = if quantizes {
            self.quantizer.forward(&networks.quantizer, &latents, &n_codebooks)?
        } else {
            QuantizerTrainer::bypass(&latents)?
        };
        let decoded = forward(&networks.decoder, &quantized.latents)?;
        let n_samples = decoded.dim(1)?.min(target.dim(1)?);
        let (decoded, target) = (decoded.narrow(1, 0, n_samples)?, target.narrow(1, 0, n_samples)?);

        // The losses see a copy, so that their gradients can be weighed against each other.
        let leaf = Var::from_tensor(&decoded.detach().contiguous()?)?;
        let target = target.contiguous()?;
        let mut terms = self.losses.losses(&leaf, &target)?;
        let (step, n_steps) = (self.step, self.config.schedule.steps);
        let mut judged = None;
        if let Some(adversary) = self.adversary.as_mut().filter(|adversary| adversary.judges(step)) {
            let rate = learning_rate(&self.config.optimizer, adversary.learning_rate(), step, n_steps);
            judged = adversary.learn(&leaf, &target, rate, step)?;
            terms.append(&mut adversary.losses(&leaf, &target)?);
        }
        let mut losses = values(&terms)?;
        losses.extend(judged.map(|loss| ("discriminator".to_owned(), loss)));
        // A loss of nothing would make the first real one an explosion.
        if quantizes {
            losses.insert("commitment".to_owned(), scalar(&quantized.commitment)?);
        }
        if let Some(codebook) = &quantized.codebook {
            losses.insert("codebook".to_owned(), scalar(codebook)?);
        }
        self.check_losses(&losses)?;
        let gradient = self.balancer.gradient(&leaf, &terms)?;
        let mut total = (decoded * gradient)?.sum_all()?;
        total = (total + (&quantized.commitment * self.config.loss.commitment)?)?;
        if let Some(codebook) = &quantized.codebook {
            total = (total + (codebook * self.config.loss.codebook)?)?;
        }
        let grads = total.backward()?;

        let length = global_norm(&self.trained, &grads)?;
        if !length.is_finite() {
            return Err(self.diverged("the gradient", length));
        }
        let clip = self.config.optimizer.clip;
        let scale = if clip > 0.0 && length > clip { clip / length } else { 1.0 };
        let rate = learning_rate(&self.config.optimizer, self.config.optimizer.learning_rate, step, n_steps);
        self.optimizer.step(&self.trained, &grads, rate, scale, step)?;
        let kinds: Vec<usize> = batch.crops.iter().map(|crop| crop.kind_idx).collect();
        let variables = self.model.variables();
        let revived = self.quantizer.update(&networks.quantizer, variables, &quantized, &kinds, step)?;
        let all = variables.all();
        for (name, rows) in revived.iter().flat_map(|one| one.names.iter().map(|name| (name, &one.rows))) {
            let Some(var) = all.get(name) else { continue };
            self.optimizer.forget_rows(name, var.dim(0)?, rows)?;
            // Else the entry that is exported would be half the dead one for long. One that was split has hardly moved.
            self.average.reset_rows(name, var, rows)?;
        }
        if self.config.optimizer.average > 0.0 {
            self.average.push(&variables.trainable(), self.config.optimizer.average, step)?;
        }
        self.smooth(&losses);
        self.step += 1;
        let n_samples = n_items * self.library.crop_len();
        Ok(StepReport {
            step,
            losses,
            gradient: length,
            learning_rate: rate,
            n_revived: revived.iter().map(|one| one.rows.len()).sum(),
            audio_seconds: n_samples as f64 / f64::from(self.info.audio.sample_rate),
            was_ready: true,
        })
    }

    fn next_batch(&mut self) -> Result<(Batch, bool)> {
        let data = &self.config.data;
        let loader = self
            .loader
            .get_or_insert_with(|| Loader::new(&self.library, data.batch_size, self.step, data.threads));
        loader.take()
    }

    /// `[batch, n_samples, channels]`.
    fn tensor(&self, batch: &Batch) -> Result<Tensor> {
        let samples: Vec<f32> = batch.crops.iter().flat_map(|crop| crop.samples.iter().copied()).collect();
        let shape = (batch.crops.len(), self.library.crop_len(), usize::from(self.info.audio.channels));
        Ok(Tensor::from_vec(samples, shape, &self.device)?)
    }

    /// What a codec with segments codes: audio of loudness one.
    fn normalized(&self, audio: &Tensor) -> Result<Tensor> {
        if self.info.segment.is_none() {
            return Ok(audio.clone());
        }
        let mono = audio.mean_keepdim(2)?;
        let scale = (mono.sqr()?.mean_keepdim(1)?.sqrt()? + SCALE_FLOOR)?;
        Ok(audio.broadcast_div(&scale)?)
    }

    /// Starts the codebooks from data.
    fn start_codebooks(&mut self) -> Result<()> {
        let default = if self.config.model.checkpoint.is_some() { 0 } else { DEFAULT_KMEANS_BATCHES };
        let n_batches = self.config.quantizer.kmeans_batches.unwrap_or(default);
        if n_batches == 0 {
            return Ok(());
        }
        let networks = self.model.networks()?;
        let latents = |batch_idx: usize| -> Result<Tensor> {
            let size = self.config.data.batch_size as u64;
            let batch = batch(&self.library, START_BATCHES / size + batch_idx as u64, size)?;
            Ok(forward(&networks.encoder, &self.normalized(&self.tensor(&batch)?)?)?.detach())
        };
        let latents = (0..n_batches).map(latents).collect::<Result<Vec<_>>>()?;
        let names = self.quantizer.start(&networks.quantizer, self.model.variables(), &latents)?;
        names.iter().for_each(|name| self.average.forget(name));
        Ok(())
    }

    fn check_losses(&self, losses: &BTreeMap<String, f64>) -> Result<()> {
        for (name, &value) in losses {
            let usual = self.smoothed.get(name).map_or(f64::INFINITY, |x| x.abs().max(EXPLOSION_FLOOR));
            // A negative loss, such as SI-SDR's, only gets better.
            if !value.is_finite() || value > EXPLOSION * usual {
                return Err(self.diverged(&format!("the loss `{name}`"), value));
            }
        }
        Ok(())
    }

    fn diverged(&self, what: &str, value: f64) -> Error {
        Error::Diverged { step: self.step, what: what.to_owned(), value }
    }

    fn smooth(&mut self, losses: &BTreeMap<String, f64>) {
        for (name, &value) in losses {
            let smoothed = self.smoothed.entry(name.clone()).or_insert(value);
            *smoothed = SMOOTHING * *smoothed + (1.0 - SMOOTHING) * value;
        }
    }
}

/// Samples of a crop: whole blocks of frames, or one segment.
fn crop_len(config: &RunConfig, info: &CodecInfo) -> Result<usize> {
    if let Some(segment) = info.segment {
        return Ok(segment.n_samples as usize);
    }
    let block = (info.hop_length * info.layout.block_frames()) as usize;
    let wanted = config.data.crop_seconds * f64::from(info.audio.sample_rate);
    let n_blocks = (wanted / block as f64).round() as usize;
    if n_blocks == 0 {
        return Err(Error::config("data.crop_seconds", "is shorter than a block of frames"));
    }
    Ok(n_blocks * block)
}

fn forward(net: &codec_nn::Net, xs: &Tensor) -> Result<Tensor> {
    let ys = net.forward(xs)?;
    ys.ok_or_else(|| Error::config("data.crop_seconds", "is too short for the model"))
}

fn values(terms: &[LossTerm]) -> Result<BTreeMap<String, f64>> {
    terms.iter().map(|term| Ok((term.name.to_owned(), scalar(&term.loss)?))).collect()
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.to_scalar::<f32>()?))
}
