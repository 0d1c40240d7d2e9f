//! One gradient for the decoded audio from many losses.

use crate::error::Result;
use crate::losses::LossTerm;
use candle_core::{Tensor, Var};
use std::collections::BTreeMap;

/// Share of the past in the averaged lengths of gradients.
const DECAY: f64 = 0.999;
/// Keeps a loss without a gradient from dividing by zero.
const FLOOR: f64 = 1e-12;

/// Adds the gradients of losses by their weights, or, when it balances, by the shares of their weights: each
/// gradient is divided by the moving average of its own length first.
///
/// # Source
/// Défossez et al. 2022, arXiv 2210.13438, section 3.4, equation 6.
#[derive(Clone, Debug, Default)]
pub struct Balancer {
    balances: bool,
    /// Per loss the averaged length and the weight of the average.
    lengths: BTreeMap<String, (f64, f64)>,
}

impl Balancer {
    /// No averages yet.
    pub fn new(balances: bool) -> Self {
        Self { balances, lengths: BTreeMap::new() }
    }

    /// The gradient of all `terms` for `decoded`, on which they depend.
    ///
    /// # Shapes
    /// `decoded` and the result `[batch, n_samples, channels]`.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn gradient(&mut self, decoded: &Var, terms: &[LossTerm]) -> Result<Tensor> {
        let batch = decoded.dim(0)?.max(1) as f64;
        let total_weight: f64 = terms.iter().map(|term| term.weight).sum();
        let mut sum = decoded.zeros_like()?;
        for term in terms {
            let mut grads = term.loss.backward()?;
            let Some(grad) = grads.remove(decoded) else { continue };
            let scale = if self.balances {
                // The mean length over items.
                let length = grad.sqr()?.flatten_from(1)?.sum(1)?.sqrt()?.mean_all()?;
                let length = f64::from(length.to_scalar::<f32>()?);
                let (average, weight) = self.lengths.entry(term.name.to_owned()).or_default();
                *average = *average * DECAY + length * (1.0 - DECAY);
                *weight = *weight * DECAY + (1.0 - DECAY);
                term.weight / total_weight / (*average / *weight + FLOOR) / batch
            } else {
                term.weight
            };
            sum = (sum + (grad * scale)?)?;
        }
        Ok(sum)
    }

    /// The averages, exactly, for a checkpoint.
    pub fn state(&self) -> BTreeMap<String, [u64; 2]> {
        let bits = self.lengths.iter().map(|(name, (a, b))| (name.clone(), [a.to_bits(), b.to_bits()]));
        bits.collect()
    }

    /// Puts back what [`Balancer::state`] gave.
    pub fn restore(&mut self, state: BTreeMap<String, [u64; 2]>) {
        let pair = |(name, [a, b]): (String, [u64; 2])| (name, (f64::from_bits(a), f64::from_bits(b)));
        self.lengths = state.into_iter().map(pair).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::testing::{assert_close, noise, values};

    fn terms(decoded: &Var, scale: f64) -> Vec<LossTerm> {
        let pulls = [noise(2, &[2, 5, 1]), noise(3, &[2, 5, 1])];
        let term = |name, weight, pull: &Tensor, scale: f64| LossTerm {
            name,
            weight,
            loss: ((decoded.as_tensor() * pull).unwrap().sum_all().unwrap() * scale).unwrap(),
        };
        vec![term("a", 1.0, &pulls[0], scale), term("b", 3.0, &pulls[1], 1.0)]
    }

    #[test]
    fn without_balance_it_is_the_weighted_sum() {
        let decoded = Var::from_tensor(&noise(1, &[2, 5, 1])).unwrap();
        let got = Balancer::new(false).gradient(&decoded, &terms(&decoded, 2.0)).unwrap();
        let (a, b) = (values(&noise(2, &[10])), values(&noise(3, &[10])));
        let want: Vec<f64> = a.iter().zip(&b).map(|(a, b)| 2.0 * a + 3.0 * b).collect();
        assert_close("gradient", &values(&got), &want, 1e-6);
    }

    #[test]
    fn with_balance_the_scale_of_a_loss_does_not_matter() {
        let decoded = Var::from_tensor(&noise(1, &[2, 5, 1])).unwrap();
        let gradient = |scale| {
            let mut balancer = Balancer::new(true);
            balancer.gradient(&decoded, &terms(&decoded, scale)).unwrap();
            let mut restored = Balancer::new(true);
            restored.restore(balancer.state());
            let got = values(&restored.gradient(&decoded, &terms(&decoded, scale)).unwrap());
            assert_eq!(got, values(&balancer.gradient(&decoded, &terms(&decoded, scale)).unwrap()));
            got
        };
        assert_close("gradient", &gradient(1000.0), &gradient(1.0), 1e-4);
    }
}
