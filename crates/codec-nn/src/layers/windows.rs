//! A layer that runs on windows of the stream, each by itself.

use super::steps::Queue;
use super::{Chunk, Flow, Layer, Steps, Work};
use crate::{Error, Result};

/// Runs a layer on each `len` steps as if they were a clip; what is left at the end is a shorter one.
#[derive(Clone, Copy, Debug)]
pub struct Windows<L> {
    inner: L,
    len: usize,
}

impl<L: Layer> Windows<L> {
    /// Takes a layer that gives as many steps as it gets, and the steps per window.
    ///
    /// # Errors
    /// [`Error::Config`] when there are none.
    pub fn new(inner: L, len: usize) -> Result<Self> {
        if len == 0 {
            return Err(Error::Config { field: "window", why: "must not be 0".into() });
        }
        Ok(Self { inner, len })
    }
}

/// The state of [`Windows`].
#[derive(Debug, Default)]
pub struct WindowsState(Queue);

impl<L: Layer> Layer for Windows<L> {
    type State = WindowsState;

    fn init(&self) -> WindowsState {
        WindowsState::default()
    }

    /// Takes the next steps, see [`Layer::step`].
    ///
    /// # Errors
    /// [`Error::Shape`] also when the inner layer gives another number of steps than it got.
    fn step(&self, state: &mut WindowsState, chunk: Chunk) -> Result<Chunk> {
        let Chunk { steps, end } = chunk.normalized();
        let WindowsState(queue) = state;
        if let Some(steps) = steps {
            queue.push(steps)?;
        }
        let mut outputs = Queue::default();
        let n_whole = queue.len() / self.len * self.len;
        if let Some(steps) = queue.take(n_whole)? {
            // Windows are items of a batch.
            let (batch, _, channels) = steps.dims3()?;
            let windows = steps.reshaped((batch * n_whole / self.len, self.len, channels))?;
            let windows = self.run(windows)?;
            let (_, _, channels) = windows.dims3()?;
            outputs.push(windows.reshaped((batch, n_whole, channels))?)?;
        }
        if end && let Some(rest) = queue.take(usize::MAX)? {
            outputs.push(self.run(rest)?)?;
        }
        Ok(Chunk { steps: outputs.take(usize::MAX)?, end })
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        let len = self.len as u64;
        Some((output_idx / len + 1).saturating_mul(len) - 1)
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        self.inner.list_work(input, list)
    }
}

impl<L: Layer> Windows<L> {
    fn run(&self, windows: Steps) -> Result<Steps> {
        let (n_windows, n_steps, channels) = windows.dims3()?;
        let outputs = self.inner.step(&mut self.inner.init(), Chunk::last(windows))?.steps;
        let fits = |outputs: &Steps| outputs.n_steps().is_ok_and(|n| n == n_steps);
        outputs.filter(fits).ok_or_else(|| Error::Shape {
            name: "steps of a window".into(),
            expected: vec![n_windows, n_steps, channels],
            actual: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_trains};
    use super::*;
    use crate::layers::{Conv1d, ConvSpec, Padding, Trim};
    use crate::ops::testing::{Rng, values};
    use candle_core::Tensor;

    fn conv(weight: &Tensor) -> Conv1d {
        let spec = ConvSpec { padding: Padding::symmetric(1), ..ConvSpec::default() };
        Conv1d::new(weight, None, spec).unwrap()
    }

    #[test]
    fn every_window_is_a_clip_of_its_own() {
        let mut rng = Rng::new(1);
        let weight = rng.tensor(&[3, 2, 3]);
        for n_steps in 1..20 {
            for len in [1, 3, 4] {
                let xs = rng.tensor(&[3, n_steps, 2]);
                let layer = Windows::new(conv(&weight), len).unwrap();
                assert_streams(&layer, &xs, &mut rng);
                let clip = |start: usize| {
                    let steps = xs.narrow(1, start, len.min(n_steps - start)).unwrap();
                    conv(&weight).forward(&steps).unwrap().unwrap()
                };
                let want: Vec<Tensor> = (0..n_steps).step_by(len).map(clip).collect();
                let got = layer.forward(&xs).unwrap().unwrap();
                assert_eq!(values(&got), values(&Tensor::cat(&want, 1).unwrap()));
            }
        }
    }

    #[test]
    fn trains() {
        let mut rng = Rng::new(2);
        let (xs, weight) = (rng.tensor(&[2, 7, 2]), rng.tensor(&[2, 2, 3]));
        assert_trains(&mut rng, xs, &[weight], |weights| Windows::new(conv(&weights[0]), 3).unwrap());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert!(matches!(Windows::new(Trim { left: 0, right: 0 }, 0), Err(Error::Config { .. })));
        let layer = Windows::new(Trim { left: 1, right: 0 }, 2).unwrap();
        let error = layer.forward(&Rng::new(3).tensor(&[1, 4, 1])).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
}
