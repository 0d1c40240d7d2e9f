//! Layers one after the other, and layers of mixed types.

use super::{Chunk, Layer};
use crate::{Error, Result};
use std::any::Any;
use std::fmt::Debug;

/// A layer whose type is chosen at run time: `Vec<DynLayer>` is a network read from a configuration.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use codec_nn::layers::{Activation, DynLayer, Layer, Trim, Unary};
///
/// let net = vec![
///     DynLayer::new(Activation::Unary(Unary::Relu)),
///     DynLayer::new(Trim { left: 1, right: 0 }),
/// ];
/// let xs = Tensor::new(&[[[1.0f32], [-2.0], [3.0]]], &Device::Cpu)?;
/// let ys = net.forward(&xs)?.map(|ys| ys.flatten_all()?.to_vec1::<f32>()).transpose()?;
/// assert_eq!(ys, Some(vec![0.0, 3.0]));
/// # Ok::<(), codec_nn::Error>(())
/// ```
#[derive(Debug)]
pub struct DynLayer(Box<dyn Erased>);

/// The state of a [`DynLayer`].
#[derive(Debug)]
pub struct DynState(Box<dyn Any + Send>);

impl DynLayer {
    /// Hides the type of a layer.
    pub fn new(layer: impl Layer + 'static) -> Self {
        Self(Box::new(layer))
    }
}

impl Layer for DynLayer {
    type State = DynState;

    fn init(&self) -> DynState {
        DynState(self.0.init_erased())
    }

    /// Takes the next steps, as [`Layer::step`] of the hidden layer.
    ///
    /// # Errors
    /// [`Error::ForeignState`] when the state was made by a layer of another type, and those of the hidden
    /// layer.
    fn step(&self, state: &mut DynState, chunk: Chunk) -> Result<Chunk> {
        self.0.step_erased(state.0.as_mut(), chunk)
    }
}

/// [`Layer`] without its associated type, so that it can be a trait object.
trait Erased: Debug + Send + Sync {
    fn init_erased(&self) -> Box<dyn Any + Send>;
    fn step_erased(&self, state: &mut (dyn Any + Send), chunk: Chunk) -> Result<Chunk>;
}

impl<L: Layer> Erased for L {
    fn init_erased(&self) -> Box<dyn Any + Send> {
        Box::new(self.init())
    }

    fn step_erased(&self, state: &mut (dyn Any + Send), chunk: Chunk) -> Result<Chunk> {
        let state = state
            .downcast_mut::<L::State>()
            .ok_or(Error::ForeignState { expected: std::any::type_name::<L::State>() })?;
        self.step(state, chunk)
    }
}

impl<L: Layer> Layer for Vec<L> {
    type State = Vec<L::State>;

    fn init(&self) -> Self::State {
        self.iter().map(Layer::init).collect()
    }

    fn step(&self, states: &mut Self::State, mut chunk: Chunk) -> Result<Chunk> {
        if states.len() != self.len() {
            return Err(Error::ForeignState { expected: std::any::type_name::<Self::State>() });
        }
        for (layer, state) in self.iter().zip(states) {
            chunk = layer.step(state, chunk)?;
        }
        Ok(chunk)
    }
}

impl<L: Layer + ?Sized> Layer for Box<L> {
    type State = L::State;

    fn init(&self) -> Self::State {
        self.as_ref().init()
    }

    fn step(&self, state: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        self.as_ref().step(state, chunk)
    }
}

/// An optional layer; `None` passes its input on.
impl<L: Layer> Layer for Option<L> {
    type State = Option<L::State>;

    fn init(&self) -> Self::State {
        self.as_ref().map(Layer::init)
    }

    fn step(&self, state: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        match (self, state) {
            (Some(layer), Some(state)) => layer.step(state, chunk),
            (None, None) => Ok(chunk),
            _ => Err(Error::ForeignState { expected: std::any::type_name::<Self::State>() }),
        }
    }
}

macro_rules! impl_layer_for_tuple {
    ($($layer:ident $idx:tt),+) => {
        impl<$($layer: Layer),+> Layer for ($($layer,)+) {
            type State = ($($layer::State,)+);

            fn init(&self) -> Self::State {
                ($(self.$idx.init(),)+)
            }

            fn step(&self, state: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
                $(let chunk = self.$idx.step(&mut state.$idx, chunk)?;)+
                Ok(chunk)
            }
        }
    };
}

impl_layer_for_tuple!(A 0, B 1);
impl_layer_for_tuple!(A 0, B 1, C 2);
impl_layer_for_tuple!(A 0, B 1, C 2, D 3);
impl_layer_for_tuple!(A 0, B 1, C 2, D 3, E 4);
impl_layer_for_tuple!(A 0, B 1, C 2, D 3, E 4, F 5);
