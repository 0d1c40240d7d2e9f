//! The learning rate over a run.

use crate::config::OptimizerConfig;

/// The learning rate of `step` (from 0) of `n_steps`: linear growth, then half a cosine.
///
/// # Source
/// Loshchilov and Hutter 2017, "SGDR", arXiv 1608.03983, equation 5, with one period.
pub fn learning_rate(config: &OptimizerConfig, peak: f64, step: u64, n_steps: u64) -> f64 {
    if step < config.warm_up {
        return peak * (step + 1) as f64 / config.warm_up as f64;
    }
    let n_left = n_steps.saturating_sub(config.warm_up).max(1);
    let progress = ((step - config.warm_up) as f64 / n_left as f64).min(1.0);
    let share = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
    peak * (config.final_share + (1.0 - config.final_share) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_then_falls_to_its_share() {
        let config = OptimizerConfig { warm_up: 10, final_share: 0.1, ..OptimizerConfig::default() };
        let at = |step| learning_rate(&config, 2.0, step, 110);
        assert!((at(0) - 0.2).abs() < 1e-12 && (at(9) - 2.0).abs() < 1e-12 && (at(10) - 2.0).abs() < 1e-12);
        assert!((at(60) - 1.1).abs() < 1e-12 && (at(110) - 0.2).abs() < 1e-12);
        assert!((0..110).skip(10).all(|step| at(step + 1) <= at(step)));
    }
}
