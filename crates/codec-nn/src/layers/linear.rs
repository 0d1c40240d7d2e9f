//! Maps of each step by itself.

use super::{Chunk, Flow, Layer, Steps, Work};
use crate::Result;
use crate::ops::{self, Filter, Form, Geometry};
use candle_core::Tensor;

/// A matrix product, with or without a bias.
#[derive(Debug)]
pub struct Linear {
    filter: Filter,
}

impl Linear {
    /// Takes a weight `[c_out, c_in]` and a bias `[c_out]`, as `torch.nn.Linear` has them.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] when weight and bias do not fit.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        Ok(Self { filter: Filter::new(Form::Matrix, Geometry::POINTWISE, weight, bias)? })
    }

    /// Weights of the product.
    pub(super) fn n_weights(&self) -> usize {
        self.filter.n_weights()
    }

    pub(super) fn apply(&self, xs: Steps) -> Result<Steps> {
        self.filter.apply(xs)
    }
}

impl Layer for Linear {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        chunk.map_steps(|xs| self.apply(xs))
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        let work = Work::of(self, format!("linear {}", self.filter.name()), input);
        let work = work.giving(1.0, self.filter.c_out()).with_product(self.filter.n_weights());
        let output = work.output;
        list.push(work);
        output
    }
}

/// A factor per channel.
///
/// # Source
/// Touvron et al. 2021, "Going deeper with image transformers", section 2 ("LayerScale").
#[derive(Clone, Debug)]
pub struct ChannelScale {
    scale: Tensor,
}

impl ChannelScale {
    /// Takes the factors, `[channels]`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] when they are not a vector.
    pub fn new(scale: Tensor) -> Result<Self> {
        ops::expect_shape("scale", &scale, &[scale.elem_count()])?;
        Ok(Self { scale })
    }
}

impl Layer for ChannelScale {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        chunk.map_steps(|xs| xs.scale_channels(&self.scale))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_threads_agree, assert_trains};
    use super::*;
    use crate::Error;
    use crate::ops::testing::{Rng, assert_close, values};

    #[test]
    fn a_linear_layer_is_the_affine_map_of_its_weights() {
        let mut rng = Rng::new(1);
        let (weight, bias, xs) = (rng.tensor(&[3, 4]), rng.tensor(&[3]), rng.tensor(&[2, 9, 4]));
        let layer = Linear::new(&weight, Some(&bias)).unwrap();
        let want = xs.broadcast_matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        let got = layer.forward(&xs).unwrap().unwrap();
        assert_close("linear", &values(&got), &values(&want), 1e-6);
        assert_streams(&layer, &xs, &mut rng);
        assert_streams(&ChannelScale::new(rng.tensor(&[4])).unwrap(), &xs, &mut rng);
    }

    #[test]
    fn threads_do_not_change_bits() {
        let mut rng = Rng::new(2);
        let layer = Linear::new(&rng.tensor(&[90, 70]), None).unwrap();
        assert_threads_agree(&layer, &rng.tensor(&[2, 700, 70]));
    }

    #[test]
    fn train() {
        let mut rng = Rng::new(3);
        let xs = rng.tensor(&[2, 5, 4]);
        let weights = [rng.tensor(&[3, 4]), rng.tensor(&[3])];
        assert_trains(&mut rng, xs.clone(), &weights, |w| Linear::new(&w[0], Some(&w[1])).unwrap());
        let scale = rng.tensor(&[4]);
        assert_trains(&mut rng, xs, &[scale], |w| ChannelScale::new(w[0].clone()).unwrap());
    }

    #[test]
    fn refuse_what_does_not_fit() {
        let mut rng = Rng::new(4);
        let (weight, xs) = (rng.tensor(&[3, 4]), rng.tensor(&[1, 2, 5]));
        assert!(matches!(Linear::new(&weight, Some(&rng.tensor(&[4]))), Err(Error::Shape { .. })));
        assert!(Linear::new(&weight, None).unwrap().forward(&xs).is_err());
        assert!(matches!(ChannelScale::new(weight), Err(Error::Shape { .. })));
        assert!(ChannelScale::new(rng.tensor(&[4])).unwrap().forward(&xs).is_err());
    }
}
