//! Layers whose tensors are named by their place in a row, as those of `torch.nn.Sequential` are.

use crate::layers::{DynLayer, Layer};
use crate::weights::Weights;

/// Layers with the numbers that their tensors have.
#[derive(Debug)]
pub(crate) struct Numbered {
    pub(crate) layers: Vec<DynLayer>,
    weights: Weights,
}

impl Numbered {
    /// No layers yet; their tensors are below `weights`.
    pub(crate) fn new(weights: &Weights) -> Self {
        Self { layers: Vec::new(), weights: weights.clone() }
    }

    /// The tensors of the layer that comes next.
    pub(crate) fn weights(&self) -> Weights {
        self.weights.pp(self.layers.len())
    }

    pub(crate) fn push(&mut self, layer: impl Layer + 'static) {
        self.layers.push(DynLayer::new(layer));
    }
}
