//! Discriminators: networks that learn to tell decoded audio from real, and the losses between them and
//! the codec.

mod multi_period;
mod multi_scale_stft;

use crate::config::{AdversarialForm, AdversaryConfig, OptimizerConfig};
use crate::error::{Error, Result};
use crate::losses::{LossTerm, signals};
use crate::model::restore;
use crate::optim::{AdamW, global_norm};
use crate::rng::Rng;
use candle_core::{Device, Tensor, Var};
use codec_nn::weights::{Checkpoint, Variables, Weights};
use multi_period::PeriodDiscriminator;
use multi_scale_stft::StftDiscriminator;
use std::collections::BTreeMap;

/// Slope below zero of every activation.
const SLOPE: f32 = 0.2;
/// Longest gradient of the discriminators (DAC).
const CLIP: f64 = 10.0;
/// Keeps the relative difference of features finite.
const FEATURE_FLOOR: f64 = 1e-6;

/// What a discriminator says of some signals.
#[derive(Debug)]
struct Judgement {
    /// High where it takes them for real.
    scores: Tensor,
    /// What its inner layers gave.
    features: Vec<Tensor>,
}

/// One discriminator; its networks are built anew for every use.
trait Discriminator {
    fn judge(&self, signals: &Tensor) -> Result<Judgement>;
}

/// All discriminators of a run, and how they learn.
#[derive(Debug)]
pub struct Adversary {
    config: AdversaryConfig,
    variables: Variables,
    weights: Weights,
    optimizer: AdamW,
    seed: u64,
}

impl Adversary {
    /// New discriminators, whose tensors follow from `seed`.
    ///
    /// # Errors
    /// [`Error::Config`] when there is none.
    pub fn new(config: &AdversaryConfig, betas: [f64; 2], seed: u64, device: &Device) -> Result<Self> {
        if config.stft_windows.is_empty() && config.periods.is_empty() {
            return Err(Error::config("adversary", "has no discriminator"));
        }
        let variables = Variables::seeded(device, seed ^ 0xAD);
        let checkpoint = Checkpoint::from_config("{}", device).trained(&variables);
        let weights = checkpoint.weights().cloned();
        let weights = weights.ok_or_else(|| Error::config("adversary", "has no weights"))?;
        let optimizer = AdamW::new(&OptimizerConfig { betas, ..OptimizerConfig::default() });
        let own = Self { config: config.clone(), variables, weights, optimizer, seed };
        // Makes the variables, so that a checkpoint of before the first judgement holds them.
        own.discriminators()?;
        Ok(own)
    }

    /// Whether they judge at `step`.
    pub fn judges(&self, step: u64) -> bool {
        step >= self.config.start
    }

    /// The codec's losses: to be taken for real, and to look like the target in every layer.
    ///
    /// # Shapes
    /// Both `[batch, n_samples, channels]`.
    ///
    /// # Source
    /// Défossez et al. 2022, arXiv 2210.13438, section 3.4, equations 2 and 3 (the feature loss is relative
    /// to the mean of the target's features); Mao et al. 2017, arXiv 1611.04076, for least squares.
    ///
    /// # Errors
    /// As the transforms of the discriminators.
    pub fn losses(&self, decoded: &Tensor, target: &Tensor) -> Result<Vec<LossTerm>> {
        let (decoded, target) = (signals(decoded)?, signals(target)?);
        let (mut scores, mut features) = (Vec::new(), Vec::new());
        for discriminator in self.discriminators()? {
            let fake = discriminator.judge(&decoded)?;
            let real = discriminator.judge(&target)?;
            scores.push(match self.config.form {
                AdversarialForm::Hinge => (1.0 - fake.scores)?.relu()?.mean_all()?,
                AdversarialForm::LeastSquares => (1.0 - fake.scores)?.sqr()?.mean_all()?,
            });
            for (fake, real) in fake.features.iter().zip(&real.features) {
                let real = real.detach();
                let size = (real.abs()?.mean_all()? + FEATURE_FLOOR)?;
                features.push(((fake - &real)?.abs()?.mean_all()? / size)?);
            }
        }
        let mean = |losses: Vec<Tensor>| -> Result<Tensor> { Ok(Tensor::stack(&losses, 0)?.mean_all()?) };
        Ok(vec![
            LossTerm { name: "adversarial", weight: self.config.weight, loss: mean(scores)? },
            LossTerm { name: "features", weight: self.config.features, loss: mean(features)? },
        ])
    }

    /// Lets the discriminators learn from a batch; gives their loss, if they learn at this step.
    ///
    /// # Shapes
    /// As [`Adversary::losses`].
    ///
    /// # Errors
    /// As [`Adversary::losses`].
    pub fn learn(&mut self, decoded: &Tensor, target: &Tensor, rate: f64, step: u64) -> Result<Option<f64>> {
        if Rng::of(self.seed, "adversary", step).uniform() >= self.config.update_probability {
            return Ok(None);
        }
        let (decoded, target) = (signals(&decoded.detach())?, signals(target)?);
        let mut losses = Vec::new();
        for discriminator in self.discriminators()? {
            let fake = discriminator.judge(&decoded)?.scores;
            let real = discriminator.judge(&target)?.scores;
            losses.push(match self.config.form {
                AdversarialForm::Hinge => {
                    ((1.0 - real)?.relu()?.mean_all()? + (1.0 + fake)?.relu()?.mean_all()?)?
                }
                AdversarialForm::LeastSquares => {
                    ((1.0 - real)?.sqr()?.mean_all()? + fake.sqr()?.mean_all()?)?
                }
            });
        }
        let loss = Tensor::stack(&losses, 0)?.mean_all()?;
        let grads = loss.backward()?;
        let vars = self.variables.all();
        let length = global_norm(&vars, &grads)?;
        let scale = if length > CLIP { CLIP / length } else { 1.0 };
        self.optimizer.step(&vars, &grads, rate, scale, step.saturating_sub(self.config.start))?;
        Ok(Some(f64::from(loss.to_scalar::<f32>()?)))
    }

    /// The peak of their learning rate.
    pub fn learning_rate(&self) -> f64 {
        self.config.learning_rate
    }

    /// Variables and moments, for a checkpoint.
    pub fn tensors(&self) -> [BTreeMap<String, Tensor>; 2] {
        let values = self.variables.all().into_iter().map(|(name, var)| (name, var.as_detached_tensor()));
        [values.collect(), self.optimizer.tensors().clone()]
    }

    /// Puts back what [`Adversary::tensors`] gave.
    ///
    /// # Errors
    /// [`Error::Config`] when the tensors are not those of these discriminators.
    pub fn restore(&mut self, [values, moments]: [BTreeMap<String, Tensor>; 2]) -> Result<()> {
        restore(&self.variables.all(), &values)?;
        self.optimizer.restore(moments);
        Ok(())
    }

    /// The variables, by name.
    pub fn variables(&self) -> BTreeMap<String, Var> {
        self.variables.all()
    }

    fn discriminators(&self) -> Result<Vec<Box<dyn Discriminator>>> {
        let config = &self.config;
        let mut all: Vec<Box<dyn Discriminator>> = Vec::new();
        for &window in &config.stft_windows {
            let weights = self.weights.pp("stft").pp(window);
            all.push(Box::new(StftDiscriminator::new(&weights, window, config.stft_channels)?));
        }
        for &period in &config.periods {
            let weights = self.weights.pp("period").pp(period);
            all.push(Box::new(PeriodDiscriminator::new(&weights, period, config.period_channels)?));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::testing::{noise, values};

    fn adversary(form: AdversarialForm) -> Adversary {
        let config = AdversaryConfig {
            stft_windows: vec![64, 32],
            stft_channels: 4,
            periods: vec![2, 3],
            period_channels: 4,
            form,
            learning_rate: 3e-3,
            ..AdversaryConfig::default()
        };
        Adversary::new(&config, [0.5, 0.9], 1, &Device::Cpu).unwrap()
    }

    /// Real: a sum of sines; fake: noise of the same level.
    fn batch(step: u64) -> (Tensor, Tensor) {
        let sine = |i: usize| (i as f32 * 0.2 + step as f32).sin() * 0.7;
        let real: Vec<f32> = (0..2 * 800).map(sine).collect();
        let real = Tensor::from_vec(real, (2, 800, 1), &Device::Cpu).unwrap();
        (noise(step, &[2, 800, 1]), real)
    }

    #[test]
    fn discriminators_learn_to_tell_noise_from_tones() {
        for form in [AdversarialForm::Hinge, AdversarialForm::LeastSquares] {
            let mut adversary = adversary(form);
            let losses: Vec<f64> = (0..25)
                .map(|step| {
                    let (fake, real) = batch(step);
                    adversary.learn(&fake, &real, adversary.learning_rate(), step).unwrap().unwrap()
                })
                .collect();
            assert!(losses[24] < 0.5 * losses[0], "{form:?}: {losses:?}");
        }
    }

    #[test]
    fn every_part_gets_a_gradient() {
        let adversary = adversary(AdversarialForm::Hinge);
        let (fake, real) = batch(1);
        let fake = Var::from_tensor(&fake).unwrap();
        let terms = adversary.losses(&fake, &real).unwrap();
        for term in &terms {
            let grads = term.loss.backward().unwrap();
            let grad = values(grads.get(&fake).unwrap());
            let n_used = grad.iter().filter(|x| **x != 0.0).count();
            assert!(grad.iter().all(|x| x.is_finite()) && n_used > 1500, "{}: {n_used}", term.name);
        }
        let fake = signals(&fake).unwrap();
        let scores = adversary.discriminators().unwrap().into_iter();
        let scores: Vec<Tensor> =
            scores.map(|d| d.judge(&fake).unwrap().scores.sqr().unwrap().sum_all().unwrap()).collect();
        let grads = Tensor::stack(&scores, 0).unwrap().sum_all().unwrap().backward().unwrap();
        for (name, var) in adversary.variables() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
            assert!(values(grad).iter().any(|x| *x != 0.0), "{name}");
        }
    }

    #[test]
    fn discriminators_that_did_not_judge_yet_are_restored() {
        let first = adversary(AdversarialForm::Hinge);
        let [before, _] = first.tensors();
        assert!(!before.is_empty());
        adversary(AdversarialForm::Hinge).restore(first.tensors()).unwrap();
    }

    #[test]
    fn restored_discriminators_go_on_as_they_would_have() {
        let mut first = adversary(AdversarialForm::Hinge);
        let learn = |adversary: &mut Adversary, step| {
            let (fake, real) = batch(step);
            adversary.learn(&fake, &real, 1e-3, step).unwrap().unwrap()
        };
        learn(&mut first, 0);
        let mut second = adversary(AdversarialForm::Hinge);
        second
            .restore(first.tensors().map(|tensors| {
                tensors.into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap())).collect()
            }))
            .unwrap();
        assert_eq!(learn(&mut first, 1).to_bits(), learn(&mut second, 1).to_bits());
        assert_eq!(learn(&mut first, 2).to_bits(), learn(&mut second, 2).to_bits());
    }
}
