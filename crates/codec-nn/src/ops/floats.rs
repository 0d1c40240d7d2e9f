//! Activations on the CPU that track no gradient, in [memory that is used again](Memory).

use super::Items;
use crate::{Error, Result};
use codec_kernels::Memory;
use std::fmt;

/// Steps for which there is room before a result, so that the end of the chunk before it can be put there without
/// a copy of the result: as many as most convolutions reach back ...
const ROOM_STEPS: usize = 64;
/// ... and floats of that room at most, where steps are wide and few: 128 KiB.
const MAX_ROOM: usize = 1 << 15;

/// Values `[batch, time, channels]`; a clone shares them.
#[derive(Clone)]
pub(crate) struct Floats {
    memory: Memory,
    batch: usize,
    n_steps: usize,
    channels: usize,
    /// Where the first item begins; before it there is room.
    start: usize,
    /// From one item to the next.
    pitch: usize,
}

impl fmt::Debug for Floats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Floats{:?}", self.dims())
    }
}

impl Floats {
    /// Values that `fill` writes, all of them.
    pub(crate) fn new(dims: [usize; 3], fill: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<Self> {
        // The items of a batch lie side by side, as products want them.
        let room = if dims[0] == 1 { (ROOM_STEPS * dims[2]).min(MAX_ROOM) } else { 0 };
        Self::behind(room, dims, fill)
    }

    /// [`Floats::new`] with so much room before the values.
    fn behind(
        room: usize,
        [batch, n_steps, channels]: [usize; 3],
        fill: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let len = batch * n_steps * channels;
        let mut memory = Memory::new(room + len);
        // Nobody else can have what was just made.
        let values = memory.values_mut().ok_or_else(|| Error::unsupported("memory", "shared"))?;
        fill(&mut values[room..room + len])?;
        Ok(Self { memory, batch, n_steps, channels, start: room, pitch: n_steps * channels })
    }

    /// A copy of `values`.
    pub(crate) fn copied(values: &[f32], dims: [usize; 3]) -> Result<Self> {
        if values.len() != dims.iter().product::<usize>() {
            let (name, actual) = ("values".into(), vec![values.len()]);
            return Err(Error::Shape { name, expected: dims.to_vec(), actual });
        }
        Self::new(dims, |out| {
            out.copy_from_slice(values);
            Ok(())
        })
    }

    pub(crate) fn dims(&self) -> [usize; 3] {
        [self.batch, self.n_steps, self.channels]
    }

    /// Whether somebody else reads the memory.
    pub(super) fn is_shared(&self) -> bool {
        self.memory.is_shared()
    }

    /// Floats in the memory.
    #[cfg(test)]
    pub(super) fn n_held(&self) -> usize {
        self.memory.values().len()
    }

    /// Number of values.
    fn len(&self) -> usize {
        self.batch * self.n_steps * self.channels
    }

    /// The items, each one run of memory.
    pub(super) fn items(&self) -> Items<'_> {
        Items {
            data: &self.memory.values()[self.start..],
            pitch: self.pitch,
            batch: self.batch,
            n_steps: self.n_steps,
            channels: self.channels,
        }
    }

    /// The values of item `item_idx`, `[time, channels]`.
    pub(super) fn item(&self, item_idx: usize) -> &[f32] {
        let start = self.start + item_idx * self.pitch;
        &self.memory.values()[start..start + self.n_steps * self.channels]
    }

    /// All values, where the items follow each other without a gap.
    pub(crate) fn values(&self) -> Option<&[f32]> {
        let is_dense = self.batch == 1 || self.pitch == self.n_steps * self.channels;
        is_dense.then(|| &self.memory.values()[self.start..self.start + self.len()])
    }

    /// The same values without a gap between the items.
    pub(crate) fn dense(self) -> Result<Self> {
        if self.values().is_some() { Ok(self) } else { self.keep(0, self.n_steps) }
    }

    /// The same values as other dimensions.
    pub(super) fn reshaped(self, dims: [usize; 3]) -> Result<Self> {
        let dense = self.dense()?;
        if dims.iter().product::<usize>() != dense.len() {
            let (expected, actual) = (dense.dims().to_vec(), dims.to_vec());
            return Err(Error::Shape { name: "steps".into(), expected, actual });
        }
        let [batch, n_steps, channels] = dims;
        Ok(Self { batch, n_steps, channels, pitch: n_steps * channels, ..dense })
    }

    /// Steps `start` to `start + n` of every item, which share the memory.
    pub(super) fn narrow(&self, start: usize, n: usize) -> Result<Self> {
        self.expect_steps(start, n)?;
        Ok(Self { start: self.start + start * self.channels, n_steps: n, ..self.clone() })
    }

    /// A copy of steps `start` to `start + n`.
    pub(super) fn keep(&self, start: usize, n: usize) -> Result<Self> {
        self.expect_steps(start, n)?;
        let (first, len) = (start * self.channels, n * self.channels);
        Self::behind(0, [self.batch, n, self.channels], |out| {
            for (item_idx, out) in out.chunks_exact_mut(len.max(1)).enumerate() {
                out.copy_from_slice(&self.item(item_idx)[first..first + len]);
            }
            Ok(())
        })
    }

    /// A copy of channels `start` to `start + n`.
    pub(super) fn channels(&self, start: usize, n: usize) -> Result<Self> {
        if start + n > self.channels {
            let expected = vec![self.batch, self.n_steps, start + n];
            return Err(Error::Shape { name: "channels".into(), expected, actual: self.dims().to_vec() });
        }
        let rows = (0..self.batch).flat_map(|i| self.item(i).chunks_exact(self.channels.max(1)));
        Self::new([self.batch, self.n_steps, n], |out| {
            for (out, row) in out.chunks_exact_mut(n.max(1)).zip(rows) {
                out.copy_from_slice(&row[start..start + n]);
            }
            Ok(())
        })
    }

    /// The channels of every step `n` times, one after the other.
    pub(super) fn repeated(&self, n: usize) -> Result<Self> {
        let rows = (0..self.batch).flat_map(|i| self.item(i).chunks_exact(self.channels.max(1)));
        Self::new([self.batch, self.n_steps, n * self.channels], |out| {
            for (out, row) in out.chunks_exact_mut((n * self.channels).max(1)).zip(rows) {
                out.chunks_exact_mut(self.channels.max(1)).for_each(|out| out.copy_from_slice(row));
            }
            Ok(())
        })
    }

    fn expect_steps(&self, start: usize, n: usize) -> Result<()> {
        if start + n > self.n_steps {
            let expected = vec![self.batch, start + n, self.channels];
            return Err(Error::Shape { name: "steps".into(), expected, actual: self.dims().to_vec() });
        }
        Ok(())
    }

    /// What `f` makes of all values, in memory of their own.
    pub(super) fn map<E>(self, f: impl FnOnce(&[f32], &mut [f32]) -> Result<(), E>) -> Result<Self>
    where
        Error: From<E>,
    {
        let dense = self.dense()?;
        let values = dense.values().unwrap_or_default();
        Self::new(dense.dims(), |out| Ok(f(values, out)?))
    }

    /// What `f` makes of all values, in their place where nobody else reads them.
    pub(super) fn map_in_place<E>(self, f: impl FnOnce(&mut [f32]) -> Result<(), E>) -> Result<Self>
    where
        Error: From<E>,
    {
        let mut dense = self.dense()?;
        let range = dense.start..dense.start + dense.len();
        if let Some(values) = dense.memory.values_mut() {
            f(&mut values[range])?;
            return Ok(dense);
        }
        let values = dense.values().unwrap_or_default();
        Self::new(dense.dims(), |out| {
            out.copy_from_slice(values);
            Ok(f(out)?)
        })
    }

    /// These steps after the `earlier` ones, which are put before them without a copy of these where there is room.
    pub(super) fn after<'a>(mut self, earlier: impl Iterator<Item = &'a Self> + Clone) -> Result<Self> {
        let [batch, n_last, channels] = self.dims();
        for piece in earlier.clone() {
            if [piece.batch, piece.channels] != [batch, channels] {
                let (expected, actual) = (self.dims().to_vec(), piece.dims().to_vec());
                return Err(Error::Shape { name: "steps to join".into(), expected, actual });
            }
        }
        let n_earlier: usize = earlier.clone().map(|piece| piece.n_steps).sum();
        if n_earlier == 0 {
            return Ok(self);
        }
        let (n_steps, len) = (n_earlier + n_last, n_earlier * channels);
        if batch == 1 && self.start >= len {
            let start = self.start - len;
            if let Some(values) = self.memory.values_mut() {
                write(earlier, 0, &mut values[start..start + len]);
                return Ok(Self { start, n_steps, pitch: n_steps * channels, ..self });
            }
        }
        let item_len = (n_steps * channels).max(1);
        Self::new([batch, n_steps, channels], |out| {
            for (item_idx, out) in out.chunks_exact_mut(item_len).enumerate() {
                write(earlier.clone(), item_idx, &mut out[..len]);
                out[len..].copy_from_slice(self.item(item_idx));
            }
            Ok(())
        })
    }
}

/// Writes item `item_idx` of all pieces, one after the other.
fn write<'a>(pieces: impl Iterator<Item = &'a Floats>, item_idx: usize, mut out: &mut [f32]) {
    for piece in pieces {
        let item = piece.item(item_idx);
        let (head, tail) = out.split_at_mut(item.len());
        head.copy_from_slice(item);
        out = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(dims: [usize; 3]) -> Floats {
        Floats::new(dims, |out| {
            out.iter_mut().enumerate().for_each(|(i, x)| *x = i as f32);
            Ok(())
        })
        .unwrap()
    }

    fn of(floats: &Floats) -> Vec<f32> {
        (0..floats.batch).flat_map(|i| floats.item(i).to_vec()).collect()
    }

    #[test]
    fn runs_are_joined_in_place_where_there_is_room() {
        for (batch, n_past, is_shared) in [(1, 6, false), (1, 6, true), (1, 5000, false), (3, 6, false)] {
            let (past, steps) = (counted([batch, n_past, 4]), counted([batch, 9, 4]));
            let want: Vec<f32> = (0..batch).flat_map(|i| [past.item(i), steps.item(i)].concat()).collect();
            let (place, copy) = (steps.item(0).as_ptr(), is_shared.then(|| steps.clone()));
            let joined = steps.after([past].iter()).unwrap();
            assert_eq!(joined.dims(), [batch, n_past + 9, 4]);
            assert_eq!(of(&joined), want);
            let is_in_place = joined.item(0)[n_past * 4..].as_ptr() == place;
            assert_eq!(is_in_place, batch == 1 && n_past == 6 && copy.is_none());
            if let Some(copy) = copy {
                assert_eq!(of(&copy), of(&counted([batch, 9, 4])));
            }
        }
        assert!(counted([1, 2, 3]).after([counted([1, 2, 4])].iter()).is_err());
        assert_eq!(of(&counted([1, 2, 3]).after([].iter()).unwrap()), of(&counted([1, 2, 3])));
    }

    #[test]
    fn a_result_in_place_leaves_other_readers_alone() {
        let negate = |xs: &mut [f32]| -> Result<()> {
            xs.iter_mut().for_each(|x| *x = -*x);
            Ok(())
        };
        for is_shared in [false, true] {
            let xs = counted([2, 5, 3]);
            let (place, reader) = (xs.item(0).as_ptr(), is_shared.then(|| xs.narrow(1, 3).unwrap()));
            let ys = xs.map_in_place(negate).unwrap();
            assert_eq!(ys.item(0).as_ptr() == place, !is_shared);
            assert!(of(&ys).iter().enumerate().all(|(i, y)| *y == -(i as f32)));
            if let Some(reader) = reader {
                let part = reader.map_in_place(negate).unwrap();
                assert_eq!(of(&part)[..3], [-3.0, -4.0, -5.0]);
            }
        }
    }

    #[test]
    fn parts_and_other_shapes() {
        let xs = counted([2, 4, 3]);
        assert_eq!(of(&xs.narrow(1, 2).unwrap()), [3., 4., 5., 6., 7., 8., 15., 16., 17., 18., 19., 20.]);
        assert_eq!(of(&xs.narrow(1, 2).unwrap()), of(&xs.keep(1, 2).unwrap()));
        assert_eq!(of(&xs.channels(1, 1).unwrap()), [1., 4., 7., 10., 13., 16., 19., 22.]);
        let part = xs.narrow(1, 2).unwrap();
        assert!(part.values().is_none());
        assert_eq!(part.clone().reshaped([1, 4, 3]).unwrap().item(0), of(&part));
        assert_eq!(of(&xs.narrow(3, 1).unwrap().repeated(2).unwrap())[..6], [9., 10., 11., 9., 10., 11.]);
        assert!(xs.narrow(3, 2).is_err() && xs.keep(3, 2).is_err() && xs.channels(2, 2).is_err());
        assert!(xs.reshaped([2, 4, 4]).is_err());
        assert!(Floats::copied(&[1.0], [1, 2, 1]).is_err());
    }
}
