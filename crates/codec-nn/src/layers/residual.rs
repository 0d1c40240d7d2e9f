//! Two branches that are added.

use super::steps::Queue;
use super::{Chunk, Flow, Layer, Merge, Work};
use crate::{Error, Result};

/// `inner(x) + shortcut(x)`; either branch may lag behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Residual<L, S = Identity> {
    /// The branch with the work.
    pub inner: L,
    /// The branch beside it.
    pub shortcut: S,
}

impl<L: Layer> Residual<L> {
    /// Adds a layer's input to its output.
    pub fn new(inner: L) -> Self {
        Self { inner, shortcut: Identity }
    }
}

impl<L: Layer, S: Layer> Residual<L, S> {
    /// Adds what `shortcut` makes of the input.
    pub fn with_shortcut(inner: L, shortcut: S) -> Self {
        Self { inner, shortcut }
    }
}

/// The state of [`Residual`].
#[derive(Debug)]
pub struct ResidualState<L, S> {
    inner: L,
    shortcut: S,
    from_inner: Queue,
    from_shortcut: Queue,
}

impl<L: Merge, S: Merge> Merge for ResidualState<L, S> {
    fn merge(streams: Vec<Self>) -> Result<Self> {
        let (mut inner, mut shortcut) = (Vec::new(), Vec::new());
        for stream in streams {
            if stream.from_inner.len() + stream.from_shortcut.len() > 0 {
                return Err(Error::unsupported("merging streams", "a branch that lags"));
            }
            inner.push(stream.inner);
            shortcut.push(stream.shortcut);
        }
        let (from_inner, from_shortcut) = (Queue::default(), Queue::default());
        Ok(Self { inner: L::merge(inner)?, shortcut: S::merge(shortcut)?, from_inner, from_shortcut })
    }
}

impl<L: Layer, S: Layer> Layer for Residual<L, S> {
    type State = ResidualState<L::State, S::State>;

    fn init(&self) -> Self::State {
        ResidualState {
            inner: self.inner.init(),
            shortcut: self.shortcut.init(),
            from_inner: Queue::default(),
            from_shortcut: Queue::default(),
        }
    }

    /// Takes the next steps, see [`Layer::step`].
    ///
    /// # Errors
    /// [`Error::Shape`] also when the branches end at different lengths.
    fn step(&self, state: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        let end = chunk.end;
        if let Some(steps) = self.inner.step(&mut state.inner, chunk.clone())?.steps {
            state.from_inner.push(steps)?;
        }
        if let Some(steps) = self.shortcut.step(&mut state.shortcut, chunk)?.steps {
            state.from_shortcut.push(steps)?;
        }
        let (n_inner, n_shortcut) = (state.from_inner.len(), state.from_shortcut.len());
        if end && n_inner != n_shortcut {
            return Err(Error::Shape {
                name: "steps that a residual branch gives beyond the other".into(),
                expected: vec![n_inner],
                actual: vec![n_shortcut],
            });
        }
        let n_steps = n_inner.min(n_shortcut);
        let pair = (state.from_inner.take(n_steps)?, state.from_shortcut.take(n_steps)?);
        let steps = match pair {
            (Some(ys), Some(xs)) => Some(ys.add(xs)?),
            _ => None,
        };
        Ok(Chunk { steps, end })
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        Some(self.inner.last_input(output_idx)?.max(self.shortcut.last_input(output_idx)?))
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        let output = self.inner.list_work(input, list);
        self.shortcut.list_work(input, list);
        list.push(Work::of(&Identity, "addition", output));
        output
    }
}

/// Passes its input on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity;

impl Layer for Identity {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        Ok(chunk.normalized())
    }

    fn list_work<'a>(&'a self, input: Flow, _: &mut Vec<Work<'a>>) -> Flow {
        input
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_trains};
    use super::*;
    use crate::layers::{Activation, Conv1d, ConvSpec, Fill, Padding, Trim};
    use crate::ops::testing::{Rng, values};
    use candle_core::Tensor;
    use proptest::prelude::*;

    fn conv(weight: &Tensor, causal: bool, fill: Fill) -> Conv1d {
        let padding = Padding::same(weight.dim(2).unwrap(), 1, 1, causal, fill);
        Conv1d::new(weight, None, ConvSpec { padding, ..ConvSpec::default() }).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(120))]

        #[test]
        fn streams(
            kernels in (1usize..7, 1usize..7),
            causal in any::<(bool, bool)>(),
            n_steps in 1usize..25,
            seed in any::<u64>(),
        ) {
            let mut rng = Rng::new(seed);
            let xs = rng.tensor(&[3, n_steps, 2]);
            let first = conv(&rng.tensor(&[2, 2, kernels.0]), causal.0, Fill::Reflect);
            let second = conv(&rng.tensor(&[2, 2, kernels.1]), causal.1, Fill::Zero);
            // Either branch may be the one that lags.
            let whole = first.forward(&xs).unwrap().unwrap() + second.forward(&xs).unwrap().unwrap();
            let block = Residual::with_shortcut(first, second);
            prop_assert_eq!(values(&block.forward(&xs).unwrap().unwrap()), values(&whole.unwrap()));
            assert_streams(&block, &xs, &mut rng);

            let inner = (Activation::elu(1.0), block.inner, Activation::elu(1.0));
            let block = Residual::new(inner);
            let whole = block.inner.forward(&xs).unwrap().unwrap() + &xs;
            prop_assert_eq!(values(&block.forward(&xs).unwrap().unwrap()), values(&whole.unwrap()));
            assert_streams(&block, &xs, &mut rng);
        }
    }

    #[test]
    fn trains() {
        let mut rng = Rng::new(1);
        let (xs, weights) = (rng.tensor(&[2, 9, 2]), [rng.tensor(&[2, 2, 3]), rng.tensor(&[2, 2, 1])]);
        assert_trains(&mut rng, xs, &weights, |weights| {
            let inner =
                (Activation::Unary(crate::layers::Unary::Tanh), conv(&weights[0], false, Fill::Reflect));
            Residual::with_shortcut(inner, conv(&weights[1], true, Fill::Zero))
        });
    }

    #[test]
    fn branches_of_different_lengths_are_an_error() {
        let block = Residual::new(Trim { left: 1, right: 0 });
        let error = block.forward(&Rng::new(2).tensor(&[1, 5, 1])).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
}
