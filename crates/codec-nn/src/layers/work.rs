//! How much a network computes: the arithmetic and the memory of each layer, from its configuration.

use super::sequence::Erased;
use super::{Chunk, Layer, Steps};
use crate::Result;
use candle_core::Device;
use std::time::{Duration, Instant};

/// Steps between two layers, in the middle of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flow {
    /// Steps per second.
    pub rate: f64,
    /// Values per step.
    pub channels: usize,
}

impl Flow {
    /// Values per second.
    pub fn values(&self) -> f64 {
        self.rate * self.channels as f64
    }

    /// What comes of it at another rate and width.
    fn to(self, ratio: f64, channels: usize) -> Self {
        Self { rate: self.rate * ratio, channels }
    }
}

/// What one layer does for each second of a stream.
#[derive(Debug)]
pub struct Work<'a> {
    /// What the layer is.
    pub name: String,
    /// What it takes.
    pub input: Flow,
    /// What it gives.
    pub output: Flow,
    /// Multiply-adds of products per second; an activation has none.
    pub multiply_adds: f64,
    /// Weights that it holds.
    pub n_weights: usize,
    layer: &'a dyn Erased,
}

impl<'a> Work<'a> {
    /// What a layer does that has no products and keeps rate and width.
    pub(super) fn of(layer: &'a dyn Erased, name: impl Into<String>, input: Flow) -> Self {
        Self { name: name.into(), input, output: input, multiply_adds: 0.0, n_weights: 0, layer }
    }

    /// The same, giving `ratio` steps of `channels` for each step that it takes.
    pub(super) fn giving(mut self, ratio: f64, channels: usize) -> Self {
        self.output = self.input.to(ratio, channels);
        self
    }

    /// The same with a product of so many weights, each used once in every step of the output.
    pub(super) fn with_product(mut self, n_weights: usize) -> Self {
        self.multiply_adds += self.output.rate * n_weights as f64;
        self.n_weights += n_weights;
        self
    }

    /// Floating-point operations per second of a stream: two for each multiply-add.
    pub fn flops(&self) -> f64 {
        2.0 * self.multiply_adds
    }

    /// Bytes per second that have to be read and written once when `n_calls` calls do the work.
    pub fn bytes(&self, n_calls: f64) -> f64 {
        4.0 * (self.input.values() + self.output.values() + n_calls * self.n_weights as f64)
    }

    /// How long the layer alone takes on the CPU for the start of a stream, as floats in memory that is used again.
    ///
    /// # Shapes
    /// `values`: `[time, input.channels]`.
    ///
    /// # Errors
    /// As [`Layer::step`].
    pub fn time(&self, values: &[f32]) -> Result<Duration> {
        let channels = self.input.channels;
        let dims = [1, values.len() / channels.max(1), channels];
        let steps = Steps::new(dims, &Device::Cpu, |out| {
            out.copy_from_slice(&values[..out.len()]);
            Ok(())
        })?;
        let mut state = self.layer.init_erased();
        let began = Instant::now();
        let result = self.layer.step_erased(state.as_mut(), Chunk { steps: Some(steps), end: false })?;
        let took = began.elapsed();
        drop(result);
        Ok(took)
    }
}

/// The work of all layers of a network that takes `input`, in order.
pub fn work<L: Layer>(net: &L, input: Flow) -> Vec<Work<'_>> {
    let mut list = Vec::new();
    net.list_work(input, &mut list);
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{
        Activation, Conv1d, ConvSpec, ConvTranspose1d, DynLayer, Linear, Lstm, LstmWeights, Padding, Residual,
    };
    use crate::ops::testing::Rng;

    #[test]
    fn counts_what_the_layers_do() {
        let mut rng = Rng::new(1);
        let conv = |rng: &mut Rng, shape: &[usize; 3], stride: usize, groups: usize| {
            let padding = Padding::same(shape[2], stride, 1, true, crate::layers::Fill::Zero);
            let spec = ConvSpec { stride, padding, groups, ..ConvSpec::default() };
            Conv1d::new(&rng.tensor(shape), None, spec).unwrap()
        };
        let lstm = LstmWeights {
            input: rng.tensor(&[24, 6]),
            recurrent: rng.tensor(&[24, 6]),
            input_bias: rng.tensor(&[24]),
            recurrent_bias: rng.tensor(&[24]),
        };
        let net = vec![
            DynLayer::new(conv(&mut rng, &[6, 2, 8], 4, 1)),
            DynLayer::new(Residual::new((Activation::elu(1.0), conv(&mut rng, &[6, 1, 3], 1, 6)))),
            DynLayer::new(Residual::new(Lstm::new(vec![lstm]).unwrap())),
            DynLayer::new(Linear::new(&rng.tensor(&[5, 6]), None).unwrap()),
            DynLayer::new(ConvTranspose1d::same(&rng.tensor(&[5, 3, 4]), None, 2, true).unwrap()),
        ];
        let list = work(&net, Flow { rate: 400.0, channels: 2 });
        let outputs: Vec<_> = list.iter().map(|work| (work.output.rate, work.output.channels)).collect();
        let sums: Vec<_> = list.iter().map(|work| work.multiply_adds).collect();
        let ends =
            [(100.0, 6), (100.0, 6), (100.0, 6), (100.0, 6), (100.0, 6), (100.0, 6), (100.0, 5), (200.0, 3)];
        assert_eq!(outputs, ends);
        // 8 taps of 2 to 6; an activation; 3 taps of 6; an addition; 4 gates of 6 from 12; an addition; 6 to 5;
        // each of 2 steps from 2 inputs of 5 to 3.
        assert_eq!(sums, [9_600.0, 0.0, 1_800.0, 0.0, 28_800.0, 0.0, 3_000.0, 6_000.0]);
        for work in &list {
            let values = rng.tensor(&[9 * work.input.channels]).to_vec1().unwrap();
            work.time(&values).unwrap();
        }
    }
}
