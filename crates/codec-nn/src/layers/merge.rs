//! Streams that go on as one batch.

use crate::{Error, Result};

/// The state of a stream that can go on in one batch with others, as sequences of a language model do.
///
/// The streams need not have been equally long. Each item of the batch has the bits of its stream alone.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use codec_nn::layers::{
///     Attention, AttentionSpec, AttentionWeights, Chunk, Heads, Layer, Merge, Sight,
/// };
///
/// let ones = |rows: usize| Tensor::ones((rows, 2), candle_core::DType::F32, &Device::Cpu);
/// let weights =
///     AttentionWeights { input: ones(6)?, input_bias: None, output: ones(2)?, output_bias: None };
/// let spec = AttentionSpec {
///     heads: Heads { n_heads: 1, n_kv_heads: 1, dim: 2 },
///     sight: Sight::Past { context: Some(3) },
///     rotary_base: Some(10_000.0),
/// };
/// let layer = Attention::new(&weights, spec)?;
/// let steps = |batch, n: usize| Tensor::rand(-1.0f32, 1.0, (batch, n, 2), &Device::Cpu);
/// let (mut long, mut short) = (layer.init(), layer.init());
/// layer.step(&mut long, Chunk::next(steps(1, 9)?))?;
/// layer.step(&mut short, Chunk::next(steps(1, 2)?))?;
/// let mut both = Merge::merge(vec![long, short])?;
/// let ys = layer.step(&mut both, Chunk::next(steps(2, 1)?))?.into_tensor()?;
/// assert_eq!(ys.map(|ys| ys.dims().to_vec()), Some(vec![2, 1, 2]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Merge: Sized {
    /// The state of a batch whose items go on from these states, each that of a stream of one item.
    ///
    /// # Errors
    /// [`Error::ForeignState`] when the states are of different layers, [`Error::Unsupported`] when a stream
    /// holds steps back.
    fn merge(streams: Vec<Self>) -> Result<Self>;
}

/// What a layer without a state keeps.
impl Merge for () {
    fn merge(_: Vec<Self>) -> Result<Self> {
        Ok(())
    }
}

/// Layers one after the other.
impl<T: Merge> Merge for Vec<T> {
    fn merge(streams: Vec<Self>) -> Result<Self> {
        let n_layers = streams.first().map_or(0, Vec::len);
        if streams.iter().any(|stream| stream.len() != n_layers) {
            return Err(Error::ForeignState { expected: std::any::type_name::<Self>() });
        }
        let mut streams: Vec<_> = streams.into_iter().map(Vec::into_iter).collect();
        let layer = |_| T::merge(streams.iter_mut().filter_map(Iterator::next).collect());
        (0..n_layers).map(layer).collect()
    }
}

impl<T: Merge> Merge for Option<T> {
    fn merge(streams: Vec<Self>) -> Result<Self> {
        let n_streams = streams.len();
        let states: Vec<T> = streams.into_iter().flatten().collect();
        match states.len() {
            0 => Ok(None),
            n if n == n_streams => T::merge(states).map(Some),
            _ => Err(Error::ForeignState { expected: std::any::type_name::<Self>() }),
        }
    }
}

impl<A: Merge, B: Merge> Merge for (A, B) {
    fn merge(streams: Vec<Self>) -> Result<Self> {
        let (a, b) = streams.into_iter().unzip();
        Ok((A::merge(a)?, B::merge(b)?))
    }
}

impl<A: Merge, B: Merge, C: Merge> Merge for (A, B, C) {
    fn merge(streams: Vec<Self>) -> Result<Self> {
        let (ab, c): (Vec<_>, Vec<_>) = streams.into_iter().map(|(a, b, c)| ((a, b), c)).unzip();
        let (a, b) = Merge::merge(ab)?;
        Ok((a, b, C::merge(c)?))
    }
}
