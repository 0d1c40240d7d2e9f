//! Quantizers that learn.
//!
//! The forward pass looks codes up as the finished codec does and lets gradients through; afterwards
//! codebooks follow the averages of what they coded, or their gradient, and entries that code nothing are
//! revived.

mod averages;
mod estimator;
mod fsq;
mod kmeans;
mod search;
mod usage;

pub use usage::{Usage, UsageSummary, summary};

use crate::config::{CodebookLearning, GradientEstimator, QuantizerConfig, Revival};
use crate::error::{Error, Result};
use crate::optim::with_rows_of;
use crate::rng::Rng;
use averages::Averages;
use candle_core::{DType, Tensor, Var};
use codec_core::quantizer::Distance;
use codec_nn::quantizer::{LinearNet, QuantizerNet, ResidualNet, StageNet};
use codec_nn::weights::Variables;
use estimator::pass_gradient;
use std::collections::BTreeMap;

/// What the quantizer made of a batch.
#[derive(Debug)]
pub struct Quantized {
    /// `[batch, n_frames, dim]`, with a gradient for the latents.
    pub latents: Tensor,
    /// Latents to entries, a scalar: per codebook the mean of squared differences, summed.
    pub commitment: Tensor,
    /// Entries to latents, where codebooks learn by gradient.
    pub codebook: Option<Tensor>,
    /// Per codebook what was looked up; each value of a grid is a codebook of its levels.
    pub looked_up: Vec<LookedUp>,
}

/// What one codebook coded.
#[derive(Debug)]
pub struct LookedUp {
    /// `[n, codebook_dim]`, without a gradient.
    pub rows: Tensor,
    /// `[n]`.
    pub codes: Tensor,
    /// The item of the batch of each row.
    pub items: Vec<usize>,
}

/// Entries of a codebook that coded nothing and began anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revived {
    /// The variables that hold the codebook, or the sums and counts that it is a quotient of.
    pub names: Vec<String>,
    /// Their rows.
    pub rows: Vec<u32>,
}

/// The state of a quantizer beside its tensors.
#[derive(Debug)]
pub struct QuantizerTrainer {
    config: QuantizerConfig,
    seed: u64,
    /// Per codebook; made when they are first needed.
    averages: Vec<Option<Averages>>,
    /// How evenly codes are used.
    pub usage: Usage,
}

impl QuantizerTrainer {
    /// No state yet.
    pub fn new(config: &QuantizerConfig, seed: u64) -> Self {
        Self { config: config.clone(), seed, averages: Vec::new(), usage: Usage::default() }
    }

    /// How many codebooks each item of step `step` uses: quantizer dropout.
    ///
    /// # Source
    /// Zeghidour et al. 2021, arXiv 2107.03312, section III.D.
    pub fn draw_n_codebooks(&self, batch: usize, n_codebooks: usize, step: u64) -> Vec<usize> {
        let mut rng = Rng::of(self.seed, "quantizer dropout", step);
        let draw = |_| {
            let drops = rng.uniform() < self.config.dropout;
            if drops { 1 + rng.below(n_codebooks) } else { n_codebooks }
        };
        (0..batch).map(draw).collect()
    }

    /// Quantizes latents; item `i` uses its first `n_codebooks[i]` codebooks.
    ///
    /// # Shapes
    /// `latents` `[batch, n_frames, dim]`.
    ///
    /// # Errors
    /// [`Error::Config`] when the frames are no whole blocks.
    pub fn forward(&self, net: &QuantizerNet, latents: &Tensor, n_codebooks: &[usize]) -> Result<Quantized> {
        let mut pass = Pass::new(&self.config, latents)?;
        let quantized = match net {
            QuantizerNet::Residual(net) => self.stack(&mut pass, net, latents, n_codebooks)?,
            QuantizerNet::Split { semantic, acoustic } => {
                let n_semantic = semantic.stages.len();
                let first = self.stack(&mut pass, semantic, latents, n_codebooks)?;
                let rest: Vec<usize> = n_codebooks.iter().map(|n| n.saturating_sub(n_semantic)).collect();
                (first + self.stack(&mut pass, acoustic, latents, &rest)?)?
            }
            QuantizerNet::Fsq { levels, projections } => {
                fsq::forward(&mut pass, levels, projections.as_ref(), latents)?
            }
            _ => return Err(Error::config("model", "has a quantizer that is not trained here")),
        };
        Ok(Quantized {
            latents: quantized,
            commitment: pass.commitment,
            codebook: pass.codebook,
            looked_up: pass.looked_up,
        })
    }

    /// Latents as they are: what the decoder gets before quantization starts.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn bypass(latents: &Tensor) -> Result<Quantized> {
        let commitment = Tensor::zeros((), DType::F32, latents.device())?;
        Ok(Quantized { latents: latents.clone(), commitment, codebook: None, looked_up: Vec::new() })
    }

    /// Starts the codebooks as the centres of what they have to code; gives the names of the variables that hold
    /// them.
    ///
    /// # Shapes
    /// `latents`: each `[batch, n_frames, dim]`.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn start(
        &mut self,
        net: &QuantizerNet,
        variables: &Variables,
        latents: &[Tensor],
    ) -> Result<Vec<String>> {
        let all = Tensor::cat(latents, 0)?.detach();
        let n_batches = latents.len().max(1) as f64;
        let mut offset = 0;
        for stack in stacks(net) {
            let mut residual = match &stack.projections {
                Some(projections) => linear(&projections.input, &all)?,
                None => all.clone(),
            };
            for (stage_idx, stage) in stack.stages.iter().enumerate() {
                let pooled = pooled(&residual, stage.stride as usize)?;
                let rows = match &stage.projections {
                    Some(projections) => linear(&projections.input, &pooled)?,
                    None => pooled,
                };
                let rows = rows.flatten_to(1)?.detach();
                let size = stage.codebook.dim(0)?;
                let mut rng = Rng::of(self.seed, "k-means", (offset + stage_idx) as u64);
                let rounds = self.config.kmeans_rounds;
                let (centres, counts) = kmeans::kmeans(&rows, size, stage.distance, rounds, &mut rng)?;
                let counts = (counts / n_batches)?;
                let sums = centres.broadcast_mul(&counts.unsqueeze(1)?)?;
                let averages = Averages { counts, sums };
                set_codebook(variables, stage, &centres, &averages)?;
                *self.averages_at(offset + stage_idx) = Some(averages);
                let codes = search::nearest(&rows, &centres, stage.distance)?;
                let entries = centres.index_select(&codes, 0)?;
                residual = (&residual - self.decoded(stage, &entries, &residual)?)?.detach();
            }
            offset += stack.stages.len();
        }
        Ok(stages(net).flat_map(|stage| names(variables, stage)).collect())
    }

    /// Counts what was used and moves the codebooks after a step; gives the entries that were revived.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn update(
        &mut self,
        net: &QuantizerNet,
        variables: &Variables,
        quantized: &Quantized,
        kinds: &[usize],
        step: u64,
    ) -> Result<Vec<Revived>> {
        for (codebook_idx, (size, looked_up)) in sizes(net)?.zip(&quantized.looked_up).enumerate() {
            let codes: Vec<u32> = looked_up.codes.to_vec1()?;
            let kinds = looked_up.items.iter().map(|&item| kinds.get(item).copied().unwrap_or(0));
            self.usage.push(codebook_idx, size, &codes, kinds);
        }
        // The averages are borrowed from the same value.
        let config = self.config.clone();
        let mut all_revived = Vec::new();
        for (codebook_idx, (stage, looked_up)) in stages(net).zip(&quantized.looked_up).enumerate() {
            let n_codes = looked_up.items.len();
            let Some((_, var)) = variable(variables, stage).filter(|_| n_codes > 0) else {
                continue;
            };
            let mut rng = Rng::of(self.seed, "revive", step << 8 | codebook_idx as u64);
            let mean_count = n_codes as f64 / stage.codebook.dim(0)? as f64;
            let averages = self.averages_at(codebook_idx);
            if averages.is_none() {
                *averages = Some(Averages::of(&stage.codebook, mean_count)?);
            }
            let Some(averages) = averages else { continue };
            let update = averages.update(&looked_up.rows, &looked_up.codes, &config, &mut rng)?;
            let averages = averages.clone();
            if self.learning(stage) == CodebookLearning::Averages {
                set_codebook(variables, stage, &update.codebook, &averages)?;
            } else if !update.revived.is_empty() {
                var.set(&with_rows_of(&var, &update.codebook, &update.revived)?)?;
            }
            if !update.revived.is_empty() {
                all_revived.push(Revived { names: names(variables, stage), rows: update.revived });
            }
        }
        Ok(all_revived)
    }

    /// Names of the variables that follow averages and no gradient.
    ///
    /// # Errors
    /// [`Error::Config`] when entries are to be split of a codebook that learns by gradient: the averages do not say
    /// where its entries are.
    pub fn averaged(&self, net: &QuantizerNet, variables: &Variables) -> Result<Vec<String>> {
        let (averaged, others): (Vec<_>, Vec<_>) =
            stages(net).partition(|stage| self.learning(stage) == CodebookLearning::Averages);
        if self.config.revive_as == Revival::Split && !others.is_empty() {
            return Err(Error::config(
                "quantizer.revive_as",
                "`split` needs codebooks that learn by averages",
            ));
        }
        Ok(averaged.into_iter().flat_map(|stage| names(variables, stage)).collect())
    }

    /// The averages of the codebooks, by name, for a checkpoint.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        for (codebook_idx, averages) in self.averages.iter().enumerate() {
            if let Some(averages) = averages {
                tensors.insert(format!("averages.{codebook_idx}.counts"), averages.counts.clone());
                tensors.insert(format!("averages.{codebook_idx}.sums"), averages.sums.clone());
            }
        }
        tensors
    }

    /// Puts back what [`QuantizerTrainer::tensors`] gave.
    pub fn restore(&mut self, tensors: &BTreeMap<String, Tensor>) {
        for codebook_idx in 0.. {
            let tensor = |name: &str| tensors.get(&format!("averages.{codebook_idx}.{name}")).cloned();
            let (Some(counts), Some(sums)) = (tensor("counts"), tensor("sums")) else { return };
            *self.averages_at(codebook_idx) = Some(Averages { counts, sums });
        }
    }

    fn averages_at(&mut self, codebook_idx: usize) -> &mut Option<Averages> {
        if self.averages.len() <= codebook_idx {
            self.averages.resize(codebook_idx + 1, None);
        }
        &mut self.averages[codebook_idx]
    }

    fn learning(&self, stage: &StageNet) -> CodebookLearning {
        match (&stage.averages, stage.distance, &stage.projections) {
            // There is nothing else that a gradient could move.
            (Some(_), _, _) => CodebookLearning::Averages,
            (None, Distance::Euclidean, None) => self.config.codebooks.unwrap_or(CodebookLearning::Averages),
            _ => self.config.codebooks.unwrap_or(CodebookLearning::Gradient),
        }
    }

    /// Codes latents by the stages of one stack.
    fn stack(
        &self,
        pass: &mut Pass,
        net: &ResidualNet,
        latents: &Tensor,
        n_codebooks: &[usize],
    ) -> Result<Tensor> {
        let latents = match &net.projections {
            Some(projections) => linear(&projections.input, latents)?,
            None => latents.clone(),
        };
        let projects = net.stages.iter().any(|stage| stage.projections.is_some());
        let mut residual = latents.clone();
        let mut sum = latents.zeros_like()?;
        for (stage_idx, stage) in net.stages.iter().enumerate() {
            let items: Vec<usize> = (0..n_codebooks.len()).filter(|&i| n_codebooks[i] > stage_idx).collect();
            let pooled = pooled(&residual, stage.stride as usize)?;
            let rows = match &stage.projections {
                Some(projections) => linear(&projections.input, &pooled)?,
                None => pooled,
            };
            let entries = pass.look_up(stage, &rows, &items, self.learning(stage))?;
            let entries =
                if projects { pass_gradient(&rows, &entries, pass.estimator)? } else { entries.detach() };
            let decoded = self.decoded(stage, &entries, &residual)?;
            residual = (residual - &decoded)?;
            let decoded = if items.len() == n_codebooks.len() {
                decoded
            } else {
                let mask = n_codebooks.iter().map(|&n| if n > stage_idx { 1.0_f32 } else { 0.0 });
                let mask = Tensor::from_iter(mask, decoded.device())?.reshape((n_codebooks.len(), 1, 1))?;
                decoded.broadcast_mul(&mask)?
            };
            sum = (sum + decoded)?;
        }
        let sum = if projects { sum } else { pass_gradient(&latents, &sum, pass.estimator)? };
        Ok(match &net.projections {
            Some(projections) => linear(&projections.output, &sum)?,
            None => sum,
        })
    }

    /// What entries mean for the residual: projected back, once for each frame that shares a code.
    fn decoded(&self, stage: &StageNet, entries: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let (batch, n_frames, _) = residual.dims3()?;
        let stride = stage.stride as usize;
        let entries = entries.reshape((batch, n_frames / stride, ()))?;
        let decoded = match &stage.projections {
            Some(projections) => linear(&projections.output, &entries)?,
            None => entries,
        };
        if stride == 1 {
            return Ok(decoded);
        }
        let (batch, n_codes, dim) = decoded.dims3()?;
        let repeated = decoded.unsqueeze(2)?.broadcast_as((batch, n_codes, stride, dim))?;
        Ok(repeated.contiguous()?.reshape((batch, n_codes * stride, dim))?)
    }
}

/// Sums over the codebooks of one forward pass.
struct Pass {
    estimator: GradientEstimator,
    commitment: Tensor,
    codebook: Option<Tensor>,
    looked_up: Vec<LookedUp>,
}

impl Pass {
    fn new(config: &QuantizerConfig, latents: &Tensor) -> Result<Self> {
        let commitment = Tensor::zeros((), DType::F32, latents.device())?;
        Ok(Self { estimator: config.gradient, commitment, codebook: None, looked_up: Vec::new() })
    }

    /// Looks `rows`, `[batch, n_codes, codebook_dim]`, up and adds the losses of the `items` that use the
    /// codebook.
    fn look_up(
        &mut self,
        stage: &StageNet,
        rows: &Tensor,
        items: &[usize],
        learning: CodebookLearning,
    ) -> Result<Tensor> {
        let (batch, n_codes, dim) = rows.dims3()?;
        let flat = rows.reshape((batch * n_codes, dim))?;
        let codes = search::nearest(&flat, &stage.codebook, stage.distance)?;
        let entries = stage.codebook.index_select(&codes, 0)?.reshape((batch, n_codes, dim))?;
        let all = items.len() == batch;
        let chosen = Tensor::from_iter(items.iter().map(|&item| item as u32), rows.device())?;
        let choose = |xs: &Tensor| -> Result<Tensor> {
            Ok(if all { xs.clone() } else { xs.index_select(&chosen, 0)? })
        };
        let mut looked_up = LookedUp { rows: flat.detach(), codes: codes.clone(), items: Vec::new() };
        if !all {
            looked_up.rows = choose(&rows.detach())?.reshape((items.len() * n_codes, dim))?;
            looked_up.codes = choose(&codes.reshape((batch, n_codes))?)?.flatten_all()?;
        }
        looked_up.items = items.iter().flat_map(|&item| std::iter::repeat_n(item, n_codes)).collect();
        self.looked_up.push(looked_up);
        if !items.is_empty() {
            let (xs, es) = (choose(rows)?, choose(&entries)?);
            // Items without this codebook count as zeros, so that dropout does not favour the late ones.
            let share = items.len() as f64 / batch as f64;
            let distance =
                |xs: &Tensor, es: &Tensor| -> Result<Tensor> { Ok(((xs - es)?.sqr()?.mean_all()? * share)?) };
            self.commitment = (&self.commitment + distance(&xs, &es.detach())?)?;
            if learning == CodebookLearning::Gradient {
                let loss = distance(&xs.detach(), &es)?;
                self.codebook = Some(match self.codebook.take() {
                    Some(sum) => (sum + loss)?,
                    None => loss,
                });
            }
        }
        Ok(entries)
    }
}

/// The mean of every `stride` frames.
fn pooled(xs: &Tensor, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(xs.clone());
    }
    let (batch, n_frames, dim) = xs.dims3()?;
    if n_frames % stride != 0 {
        let why = format!("gives {n_frames} frames, which {stride} does not divide; choose another length");
        return Err(Error::config("data.crop_seconds", why));
    }
    Ok(xs.reshape((batch, n_frames / stride, stride, dim))?.mean(2)?)
}

fn linear(net: &LinearNet, xs: &Tensor) -> Result<Tensor> {
    let ys = xs.broadcast_matmul(&net.weight.t()?)?;
    Ok(match &net.bias {
        Some(bias) => ys.broadcast_add(bias)?,
        None => ys,
    })
}

fn stacks(net: &QuantizerNet) -> Vec<&ResidualNet> {
    match net {
        QuantizerNet::Residual(net) => vec![net],
        QuantizerNet::Split { semantic, acoustic } => vec![semantic, acoustic],
        _ => Vec::new(),
    }
}

/// Entries of each codebook in the order of [`Quantized::looked_up`].
fn sizes(net: &QuantizerNet) -> Result<impl Iterator<Item = usize>> {
    let sizes: Vec<usize> = match net {
        QuantizerNet::Fsq { levels, .. } => levels.iter().map(|&n| n as usize).collect(),
        _ => stages(net).map(|stage| stage.codebook.dim(0)).collect::<candle_core::Result<_>>()?,
    };
    Ok(sizes.into_iter())
}

fn stages(net: &QuantizerNet) -> impl Iterator<Item = &StageNet> {
    stacks(net).into_iter().flat_map(|stack| &stack.stages)
}

/// The variable that holds a codebook, or the sums that it is a quotient of; none when it is frozen.
fn variable(variables: &Variables, stage: &StageNet) -> Option<(String, Var)> {
    variables.of(stage.averages.as_ref().map_or(&stage.codebook, |averages| &averages.sums))
}

/// The variables that a codebook consists of.
fn names(variables: &Variables, stage: &StageNet) -> Vec<String> {
    let counts = stage.averages.as_ref().and_then(|averages| variables.of(&averages.counts));
    let all = [variable(variables, stage), counts];
    all.into_iter().flatten().map(|(name, _)| name).collect()
}

fn set_codebook(
    variables: &Variables,
    stage: &StageNet,
    codebook: &Tensor,
    averages: &Averages,
) -> Result<()> {
    let Some((_, var)) = variable(variables, stage) else { return Ok(()) };
    let Some(net) = &stage.averages else { return Ok(var.set(codebook)?) };
    var.set(&averages.sums)?;
    if let Some((_, counts)) = variables.of(&net.counts) {
        counts.set(&averages.counts)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
