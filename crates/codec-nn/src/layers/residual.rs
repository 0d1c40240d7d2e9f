//! Two branches that are added.

use super::steps::Queue;
use super::{Chunk, Layer};
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
            (Some(ys), Some(xs)) => Some((ys + xs)?),
            _ => None,
        };
        Ok(Chunk { steps, end })
    }
}

/// Passes its input on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity;

impl Layer for Identity {
    type State = ();

    fn init(&self) {}

    fn step(&self, (): &mut (), chunk: Chunk) -> Result<Chunk> {
        Ok(chunk)
    }
}
