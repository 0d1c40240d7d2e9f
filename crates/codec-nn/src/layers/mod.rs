//! Layers with one body: [`Layer::step`] is the only place where a layer's arithmetic is written.
//!
//! A stream is a sequence of [`Chunk`]s, the last of which carries the end mark. A layer gives what is
//! complete and keeps the rest in its state, outside the weights, so one set of weights serves any number
//! of streams. Offline is one step with the end mark from a fresh state; on the CPU any chunking gives the
//! same bits.
//!
//! | layer | state | at the end of the stream |
//! | --- | --- | --- |
//! | [`Conv1d`] | inputs of unfinished windows; the raw inputs that the right padding mirrors; inputs seen | right padding, and with `align` what fills the last window |
//! | [`ConvTranspose1d`] | the inputs that reach the next outputs; outputs still to trim at the left | the remaining sums, less `trim_right` |
//! | [`Istft`] | as [`ConvTranspose1d`], twice | the remaining sums |
//! | [`Residual`] | outputs of one branch that the other has not met yet | nothing: both branches end at the same length |
//! | [`Lstm`] | hidden and cell state of each layer | nothing |
//! | [`BiLstm`] | the clip | the clip's outputs |
//! | [`Trim`] | the last `right` steps; steps still to drop at the left | drops what it holds |
//! | [`FillBlocks`] | how much of a block has passed | zeros that complete the block |
//! | [`WholeBlocks`] | steps of an unfinished block | nothing: a stream ends with a whole block |
//! | [`Windows`] | steps of an unfinished window | the window that is not whole |
//! | [`Oversampled`] | as [`Conv1d`], at either rate; a step of the doubled rate that waits for its turn | the remaining windows |
//! | [`Noise`] | how many steps have passed | nothing |
//! | [`GroupNorm`] | everything: its statistics need the whole segment | the normalised segment |
//! | [`Attention`] | position; keys and values of the context, or the clip where it sees all of it; [`Merge`] | the clip's outputs |
//! | [`Activation`], [`LayerNorm`], [`RmsNorm`], [`Linear`], [`ChannelScale`], [`Polar`], [`SumGroups`] | none | nothing |
//!
//! # How a layer is written
//! - `step` takes any number of steps, none included, and never looks at how they were cut.
//! - It passes the end mark on, and at the end leaves its state as [`Layer::init`] makes it, so that the
//!   next stream may begin.
//! - Arithmetic is an operation of `ops`, which has a gradient; devices part there, not here.
//! - It gives away what it does not keep and keeps copies ([`Steps`] of a few steps), so that the memory of its
//!   input serves its output or the next layer's.
//! - Weights come in PyTorch's layout. Weights that track a gradient are read at each step, others are
//!   brought into the kernels' form once. A weight that was computed from trained variables is a value of
//!   the moment of its computation: build the layer anew after the variables change.

mod activation;
mod attention;
mod blocks;
mod conv;
mod conv_transpose;
mod groups;
mod istft;
mod linear;
mod lstm;
mod merge;
mod noise;
mod norm;
mod oversampled;
mod residual;
mod sequence;
mod steps;
#[cfg(test)]
mod testing;
mod transformer;
mod windows;
mod work;

pub use crate::ops::{LstmState, Sight, Steps};
pub use activation::Activation;
pub use attention::{Attention, AttentionSpec, AttentionState, AttentionWeights, half_split};
pub use blocks::{FillBlocks, WholeBlocks};
pub use codec_kernels::{Heads, Unary};
pub use conv::{Conv1d, ConvSpec, ConvState, Fill, Padding};
pub use conv_transpose::{ConvTranspose1d, ConvTransposeState};
pub use groups::SumGroups;
pub use istft::{Istft, IstftState, Polar};
pub use linear::{ChannelScale, Linear};
pub use lstm::{BiLstm, Lstm, LstmWeights};
pub use merge::Merge;
pub use noise::Noise;
pub use norm::{GroupNorm, LayerNorm, Norm, RmsNorm};
pub use oversampled::{DoubledState, Oversampled};
pub use residual::{Identity, Residual, ResidualState};
pub use sequence::{DynLayer, DynState};
pub use steps::{Clip, Trim, TrimState};
pub use transformer::{Branch, FeedForward, TransformerLayer, transformer_layer};
pub use windows::{Windows, WindowsState};
pub use work::{Flow, Work, work};

use crate::Result;
use candle_core::Tensor;
use std::fmt::Debug;

/// Consecutive steps of a stream.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// `[batch, time, channels]`; `None` where there are no steps.
    pub steps: Option<Steps>,
    /// Whether the stream ends here.
    pub end: bool,
}

impl Chunk {
    /// Steps with more to come.
    pub fn next(steps: impl Into<Steps>) -> Self {
        Self { steps: Some(steps.into()), end: false }.normalized()
    }

    /// The last steps.
    pub fn last(steps: impl Into<Steps>) -> Self {
        Self { steps: Some(steps.into()), end: true }.normalized()
    }

    /// No steps, only the end mark.
    pub fn end() -> Self {
        Self { steps: None, end: true }
    }

    /// The steps as a tensor.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn into_tensor(self) -> Result<Option<Tensor>> {
        self.steps.map(Steps::into_tensor).transpose()
    }

    /// The same chunk with zero steps said in one way, as `None`: how every layer begins.
    fn normalized(self) -> Self {
        let steps = self.steps.filter(|steps| !steps.is_empty());
        Self { steps, end: self.end }
    }

    /// What a layer without state does: `apply` to the steps, if there are any.
    fn map_steps(self, apply: impl FnOnce(Steps) -> Result<Steps>) -> Result<Self> {
        let Self { steps, end } = self.normalized();
        Ok(Self { steps: steps.map(apply).transpose()?, end })
    }
}

/// A part of a network that runs on streams.
pub trait Layer: Debug + Send + Sync + 'static {
    /// What a stream keeps between two steps.
    type State: Debug + Send + 'static;

    /// The state of a stream that has not begun.
    fn init(&self) -> Self::State;

    /// Takes the next steps of a stream and gives the outputs that are complete.
    ///
    /// After the end mark the state is as [`Layer::init`] makes it.
    ///
    /// # Shapes
    /// `[batch, time, channels]` in and out; the batch is the same in every chunk of a stream, the time
    /// any number, zero included.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] when the channels are not the layer's, [`crate::Error::Unsupported`] for
    /// another type than `f32` on the CPU, and what the tensor library fails with. The stream is then lost.
    fn step(&self, state: &mut Self::State, chunk: Chunk) -> Result<Chunk>;

    /// The last step of input that has to come before a stream gives step `output_idx` of the output; `None`
    /// when it waits for the end mark.
    ///
    /// What is given here is right for a layer that answers every step at once.
    fn last_input(&self, output_idx: u64) -> Option<u64> {
        Some(output_idx)
    }

    /// Adds what this layer does in the middle of a stream to `list`, or what its parts do, in order; gives
    /// what comes out of it.
    ///
    /// A layer that says nothing has no products and gives as many steps and channels as it gets.
    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow
    where
        Self: Sized,
    {
        list.push(Work::of(self, type_name::<Self>(), input));
        input
    }

    /// Runs a whole clip: one step with the end mark. `None` when no output is complete.
    ///
    /// # Errors
    /// As [`Layer::step`].
    fn forward(&self, xs: &Tensor) -> Result<Option<Tensor>> {
        self.step(&mut self.init(), Chunk::last(xs.clone()))?.into_tensor()
    }
}

/// The name of a type without its path.
fn type_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    let path = name.split('<').next().unwrap_or(name);
    path.rsplit("::").next().unwrap_or(path)
}
