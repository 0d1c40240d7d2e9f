//! What layers pass on: floats in memory that is used again, or a tensor.

use super::floats::Floats;
use super::on_values;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// Consecutive steps of streams side by side, `[batch, time, channels]`.
///
/// A codec's streams on the CPU begin as floats in memory that is used again, and stay so from layer to layer. What
/// tracks a gradient, and what lives on another device, is a tensor, as is what a caller gives as one. Both have the
/// same bits; a layer may give the other kind than it got.
#[derive(Clone, Debug)]
pub struct Steps(pub(super) Kind);

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Floats(Floats),
    Tensor(Tensor),
}

impl From<Tensor> for Steps {
    fn from(steps: Tensor) -> Self {
        Self(Kind::Tensor(steps))
    }
}

impl From<Floats> for Steps {
    fn from(steps: Floats) -> Self {
        Self(Kind::Floats(steps))
    }
}

impl Steps {
    /// Steps of a stream on `device`, `[batch, time, channels]`, whose values `fill` writes, all of them.
    ///
    /// # Errors
    /// Those of `fill`, and what the tensor library fails with.
    pub(crate) fn new(
        dims: [usize; 3],
        device: &Device,
        fill: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        if device.is_cpu() {
            return Ok(Floats::new(dims, fill)?.into());
        }
        let mut values = vec![0.0; dims.iter().product()];
        fill(&mut values)?;
        Ok(Tensor::from_vec(values, &dims, device)?.into())
    }

    /// [`Steps::new`] with a copy of the values of a tensor.
    #[cfg(test)]
    pub(crate) fn floats_of(xs: &Tensor) -> Self {
        let dims = xs.dims3().unwrap();
        on_values(&xs.contiguous().unwrap(), |values| Floats::copied(values, dims.into())).unwrap().into()
    }

    /// Floats that these steps hold in memory.
    #[cfg(test)]
    pub(crate) fn n_held(&self) -> usize {
        match &self.0 {
            Kind::Floats(steps) => steps.n_held(),
            Kind::Tensor(steps) => match &*steps.storage_and_layout().0 {
                candle_core::Storage::Cpu(storage) => storage.as_slice::<f32>().unwrap().len(),
                _ => 0,
            },
        }
    }

    /// Batch, time and channels.
    ///
    /// # Errors
    /// What the tensor library fails with where the tensor is of another rank.
    pub fn dims3(&self) -> Result<(usize, usize, usize)> {
        match &self.0 {
            Kind::Floats(steps) => Ok(steps.dims().into()),
            Kind::Tensor(steps) => Ok(steps.dims3()?),
        }
    }

    /// Number of steps of each stream.
    ///
    /// # Errors
    /// As [`Steps::dims3`].
    pub fn n_steps(&self) -> Result<usize> {
        Ok(self.dims3()?.1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        match &self.0 {
            Kind::Floats(steps) => steps.dims().contains(&0),
            Kind::Tensor(steps) => steps.elem_count() == 0,
        }
    }

    pub(crate) fn is_on_cpu(&self) -> bool {
        match &self.0 {
            Kind::Floats(_) => true,
            Kind::Tensor(steps) => steps.device().is_cpu(),
        }
    }

    /// The steps as a tensor.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self.0 {
            Kind::Floats(steps) => {
                let (dims, dense) = (steps.dims(), steps.dense()?);
                Ok(Tensor::from_slice(dense.values().unwrap_or_default(), &dims, &Device::Cpu)?)
            }
            Kind::Tensor(steps) => Ok(steps),
        }
    }

    /// Hands all values to `f`, item by item and step by step.
    pub(crate) fn read<R>(self, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
        match self.0 {
            Kind::Floats(steps) => f(steps.dense()?.values().unwrap_or_default()),
            Kind::Tensor(steps) => f(&steps.flatten_all()?.to_vec1::<f32>()?),
        }
    }

    /// What `f` makes of the steps as a tensor: for layers that have no way of their own for floats.
    pub(crate) fn map_tensor(self, f: impl FnOnce(Tensor) -> Result<Tensor>) -> Result<Self> {
        let was_floats = matches!(self.0, Kind::Floats(_));
        let steps: Self = f(self.into_tensor()?)?.into();
        if was_floats && steps.may_be_floats() { Ok(steps.into_floats()?.into()) } else { Ok(steps) }
    }

    pub(super) fn floats(&self) -> Option<&Floats> {
        match &self.0 {
            Kind::Floats(steps) => Some(steps),
            Kind::Tensor(_) => None,
        }
    }

    /// What `floats` or `tensor` makes of the steps; `tensor` also where a weight tracks a gradient.
    pub(super) fn by<const N: usize>(
        self,
        weights: [&Tensor; N],
        floats: impl FnOnce(Floats) -> Result<Floats>,
        tensor: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        match self.0 {
            Kind::Floats(steps) if !weights.iter().any(|weight| weight.track_op()) => {
                Ok(floats(steps)?.into())
            }
            Kind::Floats(_) => self.map_tensor(|steps| tensor(&steps)),
            Kind::Tensor(steps) => Ok(tensor(&steps)?.into()),
        }
    }

    /// Whether nothing is lost when these are floats.
    fn may_be_floats(&self) -> bool {
        match &self.0 {
            Kind::Floats(_) => true,
            Kind::Tensor(steps) => {
                steps.device().is_cpu() && steps.dtype() == DType::F32 && !steps.track_op()
            }
        }
    }

    fn into_floats(self) -> Result<Floats> {
        match self.0 {
            Kind::Floats(steps) => Ok(steps),
            Kind::Tensor(steps) => {
                let dims = steps.dims3()?;
                on_values(&steps.contiguous()?, |values| Floats::copied(values, dims.into()))
            }
        }
    }

    /// Fails unless there are so many channels.
    pub(crate) fn expect_channels(&self, name: &str, channels: usize) -> Result<()> {
        let (batch, n_steps, actual) = self.dims3()?;
        if actual != channels {
            let (expected, actual) = (vec![batch, n_steps, channels], vec![batch, n_steps, actual]);
            return Err(Error::Shape { name: name.into(), expected, actual });
        }
        Ok(())
    }

    /// Steps `start` to `start + n`.
    pub(crate) fn narrow(&self, start: usize, n: usize) -> Result<Self> {
        Ok(match &self.0 {
            Kind::Floats(steps) => steps.narrow(start, n)?.into(),
            Kind::Tensor(steps) => steps.narrow(1, start, n)?.into(),
        })
    }

    /// A copy of steps `start` to `start + n`, so that the state of a stream does not hold on to the memory of a
    /// whole chunk.
    pub(crate) fn keep(&self, start: usize, n: usize) -> Result<Self> {
        Ok(match &self.0 {
            Kind::Floats(steps) => steps.keep(start, n)?.into(),
            Kind::Tensor(steps) => steps.narrow(1, start, n)?.force_contiguous()?.into(),
        })
    }

    /// Channels `start` to `start + n` of every step.
    pub(crate) fn channels(&self, start: usize, n: usize) -> Result<Self> {
        Ok(match &self.0 {
            Kind::Floats(steps) => steps.channels(start, n)?.into(),
            Kind::Tensor(steps) => steps.narrow(2, start, n)?.into(),
        })
    }

    /// The same values as other dimensions.
    pub(crate) fn reshaped(self, (batch, n_steps, channels): (usize, usize, usize)) -> Result<Self> {
        Ok(match self.0 {
            Kind::Floats(steps) => steps.reshaped([batch, n_steps, channels])?.into(),
            Kind::Tensor(steps) => steps.contiguous()?.reshape((batch, n_steps, channels))?.into(),
        })
    }

    /// `n` zero steps for the same streams.
    pub(crate) fn zeros(&self, n: usize) -> Result<Self> {
        let (batch, _, channels) = self.dims3()?;
        Ok(match &self.0 {
            Kind::Floats(_) => {
                let zeros = |out: &mut [f32]| {
                    out.fill(0.0);
                    Ok(())
                };
                Floats::new([batch, n, channels], zeros)?.into()
            }
            Kind::Tensor(steps) => Tensor::zeros((batch, n, channels), steps.dtype(), steps.device())?.into(),
        })
    }

    /// Runs of steps one after the other; `None` where there are none.
    pub(crate) fn join(pieces: &mut [Option<Self>]) -> Result<Option<Self>> {
        if pieces.iter().flatten().count() <= 1 {
            return Ok(pieces.iter_mut().find_map(Option::take));
        }
        let are_tensors = pieces.iter().flatten().all(|piece| matches!(piece.0, Kind::Tensor(_)));
        if are_tensors || !pieces.iter().flatten().all(Self::may_be_floats) {
            let pieces = pieces.iter_mut().filter_map(Option::take).map(Self::into_tensor);
            return Ok(Some(join_tensors(&pieces.collect::<Result<Vec<_>>>()?)?.into()));
        }
        for piece in pieces.iter_mut() {
            // Some layers give tensors whatever they get.
            *piece = piece.take().map(Self::into_floats).transpose()?.map(Self::from);
        }
        let Some(last) = pieces.iter_mut().rev().find_map(Option::take) else {
            return Ok(None);
        };
        let earlier = pieces.iter().flatten().filter_map(Self::floats);
        Ok(Some(last.into_floats()?.after(earlier)?.into()))
    }

    /// Adds steps of the same dimensions.
    ///
    /// # Errors
    /// [`Error::Shape`] for others.
    pub(crate) fn add(self, other: Self) -> Result<Self> {
        match (self.0, other.0) {
            (Kind::Floats(xs), Kind::Floats(ys)) => Ok(super::combine::add_floats(xs, ys)?.into()),
            (xs, ys) => {
                let [xs, ys] = [xs, ys].map(|kind| Self(kind).into_tensor());
                Ok(super::add(&xs?, &ys?)?.into())
            }
        }
    }
}

/// Joins runs of steps in time.
fn join_tensors(pieces: &[Tensor]) -> Result<Tensor> {
    match pieces {
        [first, ..] if first.dim(0)? == 1 => Ok(Tensor::cat(pieces, 1)?),
        // candle joins along the second axis in place only what is contiguous.
        _ => {
            let pieces: Vec<_> = pieces.iter().map(Tensor::contiguous).collect::<candle_core::Result<_>>()?;
            Ok(Tensor::cat(&pieces, 1)?)
        }
    }
}
