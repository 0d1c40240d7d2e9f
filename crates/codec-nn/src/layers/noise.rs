//! Noise that a network shapes.

use super::{Chunk, Flow, Layer, Linear, Work};
use crate::Result;
use codec_kernels::Memory;

/// `x + noise * linear(x)`, with one number of noise per step for all channels.
///
/// The noise is normally distributed, and depends on the seed and on the step's place in the stream alone:
/// however a stream is cut or batched, and whenever it is run again, it is the same.
///
/// # Source
/// Siuzdak et al. 2024, "SNAC", arXiv 2410.14411, section 2.2; hubertsiuzdak/snac, `NoiseBlock`, which draws
/// from the global generator of PyTorch.
#[derive(Debug)]
pub struct Noise {
    linear: Linear,
    seed: u64,
}

impl Noise {
    /// Takes the map from a step to its share of noise, and the seed of this layer's noise.
    pub fn new(linear: Linear, seed: u64) -> Self {
        Self { linear, seed }
    }
}

impl Layer for Noise {
    /// The place of the next step.
    type State = u64;

    fn init(&self) -> u64 {
        0
    }

    fn step(&self, position: &mut u64, chunk: Chunk) -> Result<Chunk> {
        let end = chunk.end;
        let chunk = chunk.map_steps(|xs| {
            let (_, n_steps, _) = xs.dims3()?;
            let mut memory = Memory::new(n_steps);
            let noise = &mut memory.values_mut().unwrap_or_default()[..n_steps];
            codec_kernels::gaussian(self.seed, *position, noise);
            *position += n_steps as u64;
            let share = self.linear.apply(xs.clone())?;
            xs.add_scaled(share, noise)
        })?;
        if end {
            *position = self.init();
        }
        Ok(chunk)
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        list.push(Work::of(self, "noise", input).with_product(self.linear.n_weights()));
        input
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_threads_agree, assert_trains};
    use super::*;
    use crate::ops::testing::{Rng, values};
    use candle_core::Tensor;

    fn noise(weight: &Tensor, seed: u64) -> Noise {
        Noise::new(Linear::new(weight, None).unwrap(), seed)
    }

    #[test]
    fn streams_and_differs_by_seed() {
        let mut rng = Rng::new(1);
        let weight = rng.tensor(&[4, 4]);
        for n_steps in 1..20 {
            let xs = rng.tensor(&[3, n_steps, 4]);
            assert_streams(&noise(&weight, 1), &xs, &mut rng);
            let [one, other] =
                [1, 2].map(|seed| values(&noise(&weight, seed).forward(&xs).unwrap().unwrap()));
            assert_ne!(one, other);
        }
        assert_threads_agree(&noise(&weight, 1), &rng.tensor(&[2, 9_000, 4]));
    }

    #[test]
    fn a_step_gets_its_share() {
        let weight = Tensor::new(&[[0.0_f32, 2.0], [0.0, 0.0]], &candle_core::Device::Cpu).unwrap();
        let xs = Tensor::new(&[[[1.0_f32, 10.0], [3.0, 0.0]]], weight.device()).unwrap();
        let ys = values(&noise(&weight, 5).forward(&xs).unwrap().unwrap());
        let mut want = [0.0; 2];
        codec_kernels::gaussian(5, 0, &mut want);
        assert!((ys[0] - (1.0 + 20.0 * f64::from(want[0]))).abs() < 1e-5);
        assert_eq!(ys[1..], [10.0, 3.0, 0.0]);
    }

    #[test]
    fn trains() {
        let mut rng = Rng::new(2);
        let (xs, weight) = (rng.tensor(&[2, 7, 3]), rng.tensor(&[3, 3]));
        assert_trains(&mut rng, xs, &[weight], |weights| noise(&weights[0], 3));
    }
}
