//! Sums over neighbouring channels: the second half of a convolution in groups.

use super::{Chunk, Flow, Layer, Work};
use crate::{Error, Result, ops};
use candle_core::Tensor;

/// Adds up each `size` neighbouring channels, and a bias.
///
/// Behind a convolution of one channel each it makes one whose groups have `size` channels and one output.
#[derive(Clone, Debug)]
pub struct SumGroups {
    size: usize,
    bias: Tensor,
}

impl SumGroups {
    /// Takes the channels per group and the bias, one per group.
    ///
    /// # Errors
    /// [`Error::Config`] for groups of none, [`Error::Shape`] when the bias is not a vector.
    pub fn new(size: usize, bias: Tensor) -> Result<Self> {
        if size == 0 {
            return Err(Error::config("groups", "have no channels"));
        }
        ops::expect_shape("bias of groups", &bias, &[bias.elem_count()])?;
        Ok(Self { size, bias })
    }
}

impl Layer for SumGroups {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        let sums = |xs: Tensor| {
            let n_groups = self.bias.dim(0)?;
            ops::expect_channels("input of groups", &xs, n_groups.saturating_mul(self.size))?;
            let (batch, n_steps, _) = xs.dims3()?;
            let groups = xs.reshape((batch, n_steps, n_groups, self.size))?;
            // One after the other: a sum in no other order.
            let mut sum = groups.narrow(3, 0, 1)?.squeeze(3)?;
            for i in 1..self.size {
                sum = (sum + groups.narrow(3, i, 1)?.squeeze(3)?)?;
            }
            Ok(sum.broadcast_add(&self.bias)?.contiguous()?)
        };
        chunk.map_steps(|xs| xs.map_tensor(sums))
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        let work = Work::of(self, "sum of groups", input).giving(1.0, self.bias.elem_count());
        let output = work.output;
        list.push(work);
        output
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_trains};
    use super::*;
    use crate::ops::testing::{Rng, values};

    #[test]
    fn neighbours_are_added() {
        let mut rng = Rng::new(1);
        let (xs, bias) = (rng.integers(&[2, 5, 6]), rng.integers(&[2]));
        let layer = SumGroups::new(3, bias.clone()).unwrap();
        let got = values(&layer.forward(&xs).unwrap().unwrap());
        let (bias, xs_values) = (values(&bias), values(&xs));
        let want = xs_values.chunks_exact(3).enumerate().map(|(i, xs)| xs.iter().sum::<f64>() + bias[i % 2]);
        assert_eq!(got, want.collect::<Vec<_>>());
        assert_streams(&layer, &rng.tensor(&[2, 9, 6]), &mut rng);
        assert!(matches!(layer.forward(&rng.tensor(&[1, 2, 5])), Err(Error::Shape { .. })));
        assert!(matches!(SumGroups::new(0, rng.tensor(&[1])), Err(Error::Config { .. })));
    }

    #[test]
    fn trains() {
        let mut rng = Rng::new(2);
        let (xs, bias) = (rng.tensor(&[2, 4, 6]), rng.tensor(&[3]));
        assert_trains(&mut rng, xs, &[bias], |weights| SumGroups::new(2, weights[0].clone()).unwrap());
    }
}
