//! Runs of steps: cutting, joining, queueing, and the layer that trims both ends of a stream.

use super::{Chunk, Layer, Steps};
use crate::Result;

/// Drops steps at both ends of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trim {
    /// Steps to drop at the beginning.
    pub left: usize,
    /// Steps to drop at the end.
    pub right: usize,
}

/// The state of [`Trim`].
#[derive(Debug, Default)]
pub struct TrimState {
    n_dropped: usize,
    queue: Queue,
}

impl Layer for Trim {
    type State = TrimState;

    fn init(&self) -> TrimState {
        TrimState::default()
    }

    fn step(&self, state: &mut TrimState, chunk: Chunk) -> Result<Chunk> {
        let chunk = chunk.normalized();
        if let Some(steps) = chunk.steps {
            state.queue.push(steps)?;
        }
        let n_dropped = (self.left - state.n_dropped).min(state.queue.len());
        state.queue.take(n_dropped)?;
        state.n_dropped += n_dropped;
        let steps = state.queue.take(state.queue.len().saturating_sub(self.right))?;
        if chunk.end {
            *state = self.init();
        }
        Ok(Chunk { steps, end: chunk.end })
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        Some(output_idx.saturating_add(self.left as u64).saturating_add(self.right as u64))
    }
}

/// Steps that wait for others.
#[derive(Debug, Default)]
pub(super) struct Queue {
    steps: Option<Steps>,
    len: usize,
}

impl Queue {
    /// Number of waiting steps.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds steps at the end.
    pub(super) fn push(&mut self, steps: Steps) -> Result<()> {
        self.len += steps.n_steps()?;
        self.steps = Steps::join(&mut [self.steps.take(), Some(steps)])?;
        Ok(())
    }

    /// Takes the first `n` steps; `None` for zero.
    pub(super) fn take(&mut self, n: usize) -> Result<Option<Steps>> {
        let n = n.min(self.len);
        let Some(steps) = self.steps.take_if(|_| n > 0) else {
            return Ok(None);
        };
        let rest = self.len - n;
        self.len = rest;
        if rest == 0 {
            return Ok(Some(steps));
        }
        self.steps = Some(steps.keep(n, rest)?);
        Ok(Some(steps.narrow(0, n)?))
    }
}

/// The state of a layer that needs a whole clip: steps that are collected until the stream ends.
#[derive(Debug, Default)]
pub struct Clip {
    pieces: Vec<Option<Steps>>,
}

impl Clip {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds a copy of `steps` at the end, so that the memory of the chunk, and the room before it, is free again.
    pub(super) fn push(&mut self, steps: Option<Steps>) -> Result<()> {
        if let Some(steps) = steps {
            self.pieces.push(Some(steps.keep(0, steps.n_steps()?)?));
        }
        Ok(())
    }

    /// Takes all steps, of which these are the last; `None` where there are none.
    pub(super) fn close(&mut self, last: Option<Steps>) -> Result<Option<Steps>> {
        self.pieces.push(last);
        Steps::join(&mut std::mem::take(&mut self.pieces))
    }
}

/// The first `n` of all steps, or all when there are fewer.
pub(super) fn head(pieces: &[Option<Steps>], n: usize) -> Result<Option<Steps>> {
    let mut missing = n;
    let mut found = Vec::new();
    for piece in pieces.iter().flatten() {
        let len = piece.n_steps()?.min(missing);
        if len == 0 {
            break;
        }
        found.push(Some(piece.narrow(0, len)?));
        missing -= len;
    }
    Steps::join(&mut found)
}

/// The last `n` of all steps, or all when there are fewer.
pub(super) fn tail(pieces: &[Option<Steps>], n: usize) -> Result<Option<Steps>> {
    let mut missing = n;
    let mut found = Vec::new();
    for piece in pieces.iter().flatten().rev() {
        let n_steps = piece.n_steps()?;
        let len = n_steps.min(missing);
        if len == 0 {
            break;
        }
        found.push(Some(piece.narrow(n_steps - len, len)?));
        missing -= len;
    }
    found.reverse();
    Steps::join(&mut found)
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_streams;
    use super::*;
    use crate::ops::testing::{Rng, values};

    #[test]
    fn trim_drops_both_ends_and_streams() {
        let mut rng = Rng::new(1);
        for n_steps in 1..20 {
            let xs = rng.tensor(&[3, n_steps, 2]);
            for (left, right) in [(0, 0), (3, 0), (0, 3), (2, 5)] {
                let layer = Trim { left, right };
                assert_streams(&layer, &xs, &mut rng);
                let got = layer.forward(&xs).unwrap();
                assert_eq!(got.is_some(), n_steps > left + right);
                if let Some(ys) = got {
                    let want = xs.narrow(1, left, n_steps - left - right).unwrap();
                    assert_eq!(values(&ys), values(&want));
                }
            }
        }
    }

    #[test]
    fn a_state_does_not_hold_the_memory_of_a_chunk() {
        let xs = Rng::new(2).tensor(&[1, 1000, 1]);
        for steps in [Steps::from(xs.clone()), Steps::floats_of(&xs)] {
            let mut queue = Queue::default();
            queue.push(steps.clone()).unwrap();
            queue.take(998).unwrap();
            assert!(queue.steps.as_ref().unwrap().n_held() <= 64);
            assert_eq!(queue.take(2).unwrap().unwrap().n_steps().unwrap(), 2);
            let mut clip = Clip::default();
            clip.push(None).unwrap();
            assert!(clip.is_empty());
            clip.push(Some(steps.narrow(3, 50).unwrap())).unwrap();
            assert!(clip.pieces.iter().flatten().all(|piece| piece.n_held() <= 64));
            assert_eq!(clip.close(Some(steps)).unwrap().unwrap().n_steps().unwrap(), 1050);
            assert!(clip.is_empty() && clip.close(None).unwrap().is_none());
        }
    }
}
