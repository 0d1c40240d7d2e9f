//! ConvNeXt blocks over time.
//!
//! # Source
//! Liu et al. 2022, "A ConvNet for the 2020s", arXiv 2201.03545, section 2; over time: Siuzdak 2023, "Vocos",
//! arXiv 2306.00814, section 3.3.

use crate::error::Result;
use crate::layers::{
    Activation, ChannelScale, Conv1d, ConvSpec, DynLayer, LayerNorm, Linear, Padding, Residual, Unary,
};
use crate::weights::Weights;

/// The sizes of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvNext {
    /// Channels.
    pub(crate) dim: usize,
    /// Channels between the two matrices.
    pub(crate) hidden: usize,
    /// Steps that the depthwise convolution sees.
    pub(crate) kernel: usize,
    /// What the depthwise convolution sees at the ends.
    pub(crate) padding: Padding,
    pub(crate) epsilon: f32,
}

impl ConvNext {
    /// `[batch, time, dim]` to the same shape; `norm` reads the normalization at its place.
    pub(crate) fn block(
        &self,
        weights: &Weights,
        norm: impl FnOnce(&Weights) -> Result<LayerNorm>,
    ) -> Result<DynLayer> {
        let (dim, depthwise) = (self.dim, weights.pp("dwconv"));
        let spec = ConvSpec { groups: dim, padding: self.padding, ..ConvSpec::default() };
        let weight = depthwise.get((dim, 1, self.kernel), "weight")?;
        Ok(DynLayer::new(Residual::new((
            Conv1d::new(&weight, Some(&depthwise.get(dim, "bias")?), spec)?,
            norm(&weights.pp("norm"))?,
            linear(&weights.pp("pwconv1"), dim, self.hidden)?,
            Activation::Unary(Unary::Gelu),
            linear(&weights.pp("pwconv2"), self.hidden, dim)?,
            ChannelScale::new(weights.get(dim, "gamma")?)?,
        ))))
    }

    /// As [`ConvNext::block`] with a norm of its own.
    pub(crate) fn plain_block(&self, weights: &Weights) -> Result<DynLayer> {
        self.block(weights, |weights| layer_norm(weights, self.dim, self.epsilon))
    }
}

/// A matrix with a bias.
pub(crate) fn linear(weights: &Weights, c_in: usize, c_out: usize) -> Result<Linear> {
    Linear::new(&weights.get((c_out, c_in), "weight")?, Some(&weights.get(c_out, "bias")?))
}

/// A norm with scale and shift.
pub(crate) fn layer_norm(weights: &Weights, dim: usize, epsilon: f32) -> Result<LayerNorm> {
    LayerNorm::new(weights.get(dim, "weight")?, Some(weights.get(dim, "bias")?), epsilon)
}
