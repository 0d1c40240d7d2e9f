//! Blocks of steps: completing the last one, and waiting until one is whole.

use super::steps::Queue;
use super::{Chunk, Layer, Steps};
use crate::{Error, Result};

/// Completes the last block of a stream with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillBlocks {
    /// Steps per block, not 0.
    pub len: usize,
}

/// The state of [`FillBlocks`].
#[derive(Debug, Default)]
pub struct FillBlocksState {
    /// Steps of the unfinished block.
    n_steps: usize,
    /// One step to take batch and type from; `None` before the first.
    like: Option<Steps>,
}

impl Layer for FillBlocks {
    type State = FillBlocksState;

    fn init(&self) -> FillBlocksState {
        FillBlocksState::default()
    }

    fn step(&self, state: &mut FillBlocksState, chunk: Chunk) -> Result<Chunk> {
        let Chunk { steps, end } = chunk.normalized();
        let mut queue = Queue::default();
        if let Some(steps) = steps {
            if state.like.is_none() {
                state.like = Some(steps.zeros(1)?);
            }
            state.n_steps = (state.n_steps + steps.n_steps()?) % self.len;
            queue.push(steps)?;
        }
        if end && let FillBlocksState { n_steps: n_steps @ 1.., like: Some(like) } = &state {
            queue.push(like.zeros(self.len - n_steps)?)?;
        }
        if end {
            *state = self.init();
        }
        Ok(Chunk { steps: queue.take(usize::MAX)?, end })
    }
}

/// Gives steps in whole blocks only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeBlocks {
    /// Steps per block, not 0.
    pub len: usize,
}

/// The state of [`WholeBlocks`].
#[derive(Debug, Default)]
pub struct WholeBlocksState(Queue);

impl Layer for WholeBlocks {
    type State = WholeBlocksState;

    fn init(&self) -> WholeBlocksState {
        WholeBlocksState::default()
    }

    /// Takes the next steps, see [`Layer::step`].
    ///
    /// # Errors
    /// [`Error::Shape`] also when the stream ends inside a block.
    fn step(&self, state: &mut WholeBlocksState, chunk: Chunk) -> Result<Chunk> {
        let Chunk { steps, end } = chunk.normalized();
        let WholeBlocksState(queue) = state;
        if let Some(steps) = steps {
            queue.push(steps)?;
        }
        let n_left = queue.len() % self.len;
        if end && n_left > 0 {
            let name = "steps of the last block".into();
            return Err(Error::Shape { name, expected: vec![self.len], actual: vec![n_left] });
        }
        Ok(Chunk { steps: queue.take(queue.len() - n_left)?, end })
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        let len = self.len as u64;
        Some((output_idx / len + 1).saturating_mul(len) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::assert_streams;
    use super::*;
    use crate::ops::testing::{Rng, values};

    #[test]
    fn zeros_complete_a_block_and_whole_blocks_pass() {
        let mut rng = Rng::new(1);
        for n_steps in 1..20 {
            for len in [1, 2, 5, 7] {
                let xs = rng.tensor(&[3, n_steps, 2]);
                let layer = (FillBlocks { len }, WholeBlocks { len });
                assert_streams(&layer.0, &xs, &mut rng);
                assert_streams(&layer, &xs, &mut rng);
                let n_zeros = n_steps.next_multiple_of(len) - n_steps;
                let want = xs.pad_with_zeros(1, 0, n_zeros).unwrap();
                assert_eq!(values(&layer.forward(&xs).unwrap().unwrap()), values(&want));
            }
        }
    }

    #[test]
    fn a_stream_that_ends_inside_a_block_is_an_error() {
        let xs = Rng::new(2).tensor(&[1, 5, 1]);
        let error = WholeBlocks { len: 3 }.forward(&xs).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
}
