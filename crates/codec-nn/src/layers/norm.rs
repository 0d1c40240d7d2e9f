//! Normalisations.

use super::{Chunk, Clip, Layer};
use crate::{Error, Result, ops};
use candle_core::Tensor;

/// Mean 0 and variance 1 over the channels of each step, then scale and shift.
///
/// # Source
/// Ba et al. 2016, "Layer normalization".
#[derive(Clone, Debug)]
pub struct LayerNorm {
    gamma: Tensor,
    beta: Option<Tensor>,
    epsilon: f32,
}

impl LayerNorm {
    /// Takes the scale and the shift, both `[channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are not vectors of one length.
    pub fn new(gamma: Tensor, beta: Option<Tensor>, epsilon: f32) -> Result<Self> {
        ops::expect_shape("scale", &gamma, &[gamma.elem_count()])?;
        if let Some(beta) = &beta {
            ops::expect_shape("shift", beta, gamma.dims())?;
        }
        Ok(Self { gamma, beta, epsilon })
    }
}

impl Layer for LayerNorm {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        chunk.map_steps(|xs| xs.layer_norm(&self.gamma, self.beta.as_ref(), self.epsilon))
    }
}

/// Root mean square 1 over the channels of each step, then scale.
///
/// # Source
/// Zhang and Sennrich 2019, "Root mean square layer normalization".
#[derive(Clone, Debug)]
pub struct RmsNorm {
    gamma: Tensor,
    epsilon: f32,
}

impl RmsNorm {
    /// Takes the scale, `[channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is not a vector.
    pub fn new(gamma: Tensor, epsilon: f32) -> Result<Self> {
        ops::expect_shape("scale", &gamma, &[gamma.elem_count()])?;
        Ok(Self { gamma, epsilon })
    }
}

impl Layer for RmsNorm {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        chunk.map_steps(|xs| xs.rms_norm(&self.gamma, self.epsilon))
    }
}

/// A normalisation of each step by itself, as a configuration chooses it.
#[derive(Clone, Debug)]
pub enum Norm {
    /// Mean 0 and variance 1.
    Layer(LayerNorm),
    /// Root mean square 1.
    Rms(RmsNorm),
}

impl Layer for Norm {
    type State = ();

    fn init(&self) {}

    fn step(&self, state: &mut (), chunk: Chunk) -> Result<Chunk> {
        match self {
            Self::Layer(norm) => norm.step(state, chunk),
            Self::Rms(norm) => norm.step(state, chunk),
        }
    }
}

/// Mean 0 and variance 1 over a whole segment and the channels of a group, then scale and shift.
///
/// The statistics need every step, so the layer gives nothing before the end mark and then all: its memory
/// grows with the stream. It is for codecs that work on segments of bounded length.
///
/// # Source
/// Wu and He 2018, "Group normalization".
#[derive(Clone, Debug)]
pub struct GroupNorm {
    n_groups: usize,
    gamma: Tensor,
    beta: Tensor,
    epsilon: f32,
}

impl GroupNorm {
    /// Takes the number of groups, the scale and the shift, both `[channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when scale and shift are not vectors of one length, [`Error::Config`] when the
    /// groups do not divide the channels.
    pub fn new(n_groups: usize, gamma: Tensor, beta: Tensor, epsilon: f32) -> Result<Self> {
        let channels = gamma.elem_count();
        ops::expect_shape("scale", &gamma, &[channels])?;
        ops::expect_shape("shift", &beta, &[channels])?;
        if n_groups == 0 || !channels.is_multiple_of(n_groups) {
            let why = format!("{n_groups} groups do not divide {channels} channels");
            return Err(Error::Config { field: "n_groups", why });
        }
        Ok(Self { n_groups, gamma, beta, epsilon })
    }
}

impl Layer for GroupNorm {
    type State = Clip;

    fn init(&self) -> Clip {
        Clip::default()
    }

    fn step(&self, segment: &mut Clip, chunk: Chunk) -> Result<Chunk> {
        let Chunk { steps, end } = chunk.normalized();
        if !end {
            segment.push(steps)?;
            return Ok(Chunk { steps: None, end });
        }
        let segment = Chunk { steps: segment.close(steps)?, end };
        let norm = |xs: Tensor| ops::group_norm(&xs, self.n_groups, &self.gamma, &self.beta, self.epsilon);
        segment.map_steps(|xs| xs.map_tensor(norm))
    }

    fn last_input(&self, _: u64) -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_threads_agree, assert_trains};
    use super::*;
    use crate::ops::testing::{Rng, assert_close, values};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn stream(n_groups in 1usize..4, width in 1usize..5, n_steps in 1usize..20, seed in any::<u64>()) {
            let mut rng = Rng::new(seed);
            let channels = n_groups * width;
            let (gamma, beta) = (rng.tensor(&[channels]), rng.tensor(&[channels]));
            let xs = rng.tensor(&[3, n_steps, channels]);
            assert_streams(&LayerNorm::new(gamma.clone(), Some(beta.clone()), 1e-5).unwrap(), &xs, &mut rng);
            assert_streams(&RmsNorm::new(gamma.clone(), 1e-5).unwrap(), &xs, &mut rng);
            assert_streams(&GroupNorm::new(n_groups, gamma, beta, 1e-5).unwrap(), &xs, &mut rng);
        }
    }

    #[test]
    fn group_norm_matches_its_definition() {
        let mut rng = Rng::new(1);
        let (n_steps, channels, n_groups) = (9, 6, 2);
        let xs = (rng.tensor(&[1, n_steps, channels]) + 0.5).unwrap();
        let (gamma, beta) = (rng.tensor(&[channels]), rng.tensor(&[channels]));
        let layer = GroupNorm::new(n_groups, gamma.clone(), beta.clone(), 1e-5).unwrap();
        let (x, g, b) = (values(&xs), values(&gamma), values(&beta));
        let want: Vec<f64> = (0..n_steps * channels)
            .map(|i| {
                let (channel, width) = (i % channels, channels / n_groups);
                let in_group = |j: &usize| j % channels / width == channel / width;
                let group: Vec<f64> = (0..x.len()).filter(in_group).map(|j| x[j]).collect();
                let mean = group.iter().sum::<f64>() / group.len() as f64;
                let variance = group.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / group.len() as f64;
                (x[i] - mean) / (variance + 1e-5).sqrt() * g[channel] + b[channel]
            })
            .collect();
        assert_close("group norm", &values(&layer.forward(&xs).unwrap().unwrap()), &want, 1e-5);
    }

    #[test]
    fn threads_do_not_change_bits() {
        let mut rng = Rng::new(2);
        let (gamma, beta, xs) = (rng.tensor(&[64]), rng.tensor(&[64]), rng.tensor(&[2, 4000, 64]));
        assert_threads_agree(&LayerNorm::new(gamma.clone(), None, 1e-5).unwrap(), &xs);
        assert_threads_agree(&RmsNorm::new(gamma.clone(), 1e-5).unwrap(), &xs);
        assert_threads_agree(&GroupNorm::new(1, gamma, beta, 1e-5).unwrap(), &xs);
    }

    #[test]
    fn train() {
        let mut rng = Rng::new(3);
        let weights = [rng.tensor(&[4]), rng.tensor(&[4])];
        // Spread channels, so that no variance is small and the difference quotient is good.
        let xs = (rng.tensor(&[2, 5, 4]) * 2.0).unwrap();
        let xs = xs.broadcast_add(&Tensor::new(&[-3f32, -1.0, 1.0, 3.0], xs.device()).unwrap()).unwrap();
        assert_trains(&mut rng, xs.clone(), &weights, |w| {
            LayerNorm::new(w[0].clone(), Some(w[1].clone()), 1e-5).unwrap()
        });
        assert_trains(&mut rng, xs.clone(), &weights[..1], |w| RmsNorm::new(w[0].clone(), 1e-5).unwrap());
        assert_trains(&mut rng, xs, &weights, |w| {
            GroupNorm::new(2, w[0].clone(), w[1].clone(), 1e-5).unwrap()
        });
    }

    #[test]
    fn refuse_weights_that_do_not_fit() {
        let mut rng = Rng::new(4);
        let (four, three) = (rng.tensor(&[4]), rng.tensor(&[3]));
        assert!(matches!(LayerNorm::new(four.clone(), Some(three.clone()), 0.0), Err(Error::Shape { .. })));
        assert!(matches!(GroupNorm::new(1, four.clone(), three, 0.0), Err(Error::Shape { .. })));
        assert!(matches!(GroupNorm::new(3, four.clone(), four.clone(), 0.0), Err(Error::Config { .. })));
        assert!(matches!(GroupNorm::new(0, four.clone(), four, 0.0), Err(Error::Config { .. })));
    }
}
