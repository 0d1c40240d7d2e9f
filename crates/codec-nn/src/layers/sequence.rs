//! Layers one after the other, and layers of mixed types.

use super::{Chunk, Flow, Layer, Work};
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

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        self.0.last_input_erased(output_idx)
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        self.0.list_work_erased(input, list)
    }
}

/// [`Layer`] without its associated type, so that it can be a trait object.
pub(super) trait Erased: Debug + Send + Sync {
    fn init_erased(&self) -> Box<dyn Any + Send>;
    fn step_erased(&self, state: &mut (dyn Any + Send), chunk: Chunk) -> Result<Chunk>;
    fn last_input_erased(&self, output_idx: u64) -> Option<u64>;
    fn list_work_erased<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow;
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

    fn last_input_erased(&self, output_idx: u64) -> Option<u64> {
        self.last_input(output_idx)
    }

    fn list_work_erased<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        self.list_work(input, list)
    }
}

impl<L: Layer> Layer for Vec<L> {
    type State = Vec<L::State>;

    fn init(&self) -> Self::State {
        self.iter().map(Layer::init).collect()
    }

    fn step(&self, states: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        let mut chunk = chunk.normalized();
        if states.len() != self.len() {
            return Err(Error::ForeignState { expected: std::any::type_name::<Self::State>() });
        }
        for (layer, state) in self.iter().zip(states) {
            chunk = layer.step(state, chunk)?;
        }
        Ok(chunk)
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        self.iter().rev().try_fold(output_idx, |idx, layer| layer.last_input(idx))
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        self.iter().fold(input, |flow, layer| layer.list_work(flow, list))
    }
}

impl<L: Layer> Layer for Box<L> {
    type State = L::State;

    fn init(&self) -> Self::State {
        self.as_ref().init()
    }

    fn step(&self, state: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        self.as_ref().step(state, chunk)
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        self.as_ref().last_input(output_idx)
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        self.as_ref().list_work(input, list)
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
            (None, None) => Ok(chunk.normalized()),
            _ => Err(Error::ForeignState { expected: std::any::type_name::<Self::State>() }),
        }
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        self.as_ref().map_or(Some(output_idx), |layer| layer.last_input(output_idx))
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        self.as_ref().map_or(input, |layer| layer.list_work(input, list))
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

            fn last_input(&self, output_idx: u64) -> Option<u64> {
                let layers: &[&dyn Fn(u64) -> Option<u64>] = &[$(&|idx| self.$idx.last_input(idx)),+];
                layers.iter().rev().try_fold(output_idx, |idx, last_input| last_input(idx))
            }

            fn list_work<'a>(&'a self, flow: Flow, list: &mut Vec<Work<'a>>) -> Flow {
                $(let flow = self.$idx.list_work(flow, list);)+
                flow
            }
        }
    };
}

impl_layer_for_tuple!(A 0, B 1);
impl_layer_for_tuple!(A 0, B 1, C 2);
impl_layer_for_tuple!(A 0, B 1, C 2, D 3);
impl_layer_for_tuple!(A 0, B 1, C 2, D 3, E 4);
impl_layer_for_tuple!(A 0, B 1, C 2, D 3, E 4, F 5);

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_trains};
    use super::*;
    use crate::layers::{Activation, Conv1d, ConvSpec, ConvTranspose1d, Fill, Padding, Residual, Trim};
    use crate::ops::testing::{Rng, bits};
    use candle_core::Tensor;

    fn conv(weight: &Tensor, stride: usize) -> Conv1d {
        let padding = Padding::same(weight.dim(2).unwrap(), stride, 1, true, Fill::Reflect);
        Conv1d::new(weight, None, ConvSpec { stride, padding, ..ConvSpec::default() }).unwrap()
    }

    /// Down by two, a residual block, up by two: every kind of lag at once.
    fn weights(rng: &mut Rng) -> Vec<Tensor> {
        vec![rng.tensor(&[3, 1, 4]), rng.tensor(&[3, 3, 3]), rng.tensor(&[3, 2, 4])]
    }

    fn boxed(weights: &[Tensor]) -> Vec<DynLayer> {
        vec![
            DynLayer::new(conv(&weights[0], 2)),
            DynLayer::new(Residual::new(vec![
                DynLayer::new(Activation::elu(1.0)),
                DynLayer::new(conv(&weights[1], 1)),
            ])),
            DynLayer::new(ConvTranspose1d::same(&weights[2], None, 2, true).unwrap()),
        ]
    }

    #[test]
    fn a_boxed_network_gives_the_bits_of_a_typed_one() {
        let mut rng = Rng::new(1);
        for n_steps in 1..40 {
            let weights = weights(&mut rng);
            let typed = (
                conv(&weights[0], 2),
                Some(Residual::new((Activation::elu(1.0), conv(&weights[1], 1)))),
                Box::new(ConvTranspose1d::same(&weights[2], None, 2, true).unwrap()),
            );
            let xs = rng.tensor(&[3, n_steps, 1]);
            let want = typed.forward(&xs).unwrap().unwrap();
            let got = boxed(&weights).forward(&xs).unwrap().unwrap();
            assert_eq!(got.dims(), [3, n_steps.next_multiple_of(2), 2]);
            assert_eq!(bits(&got), bits(&want));
            assert_streams(&typed, &xs, &mut rng);
            assert_streams(&boxed(&weights), &xs, &mut rng);
        }
    }

    #[test]
    fn a_network_trains() {
        let mut rng = Rng::new(2);
        let (weights, xs) = (weights(&mut rng), rng.tensor(&[2, 9, 1]));
        assert_trains(&mut rng, xs, &weights, boxed);
    }

    #[test]
    fn the_state_of_another_layer_is_an_error() {
        let [one, other] = [DynLayer::new(Trim { left: 0, right: 0 }), DynLayer::new(Activation::elu(1.0))];
        let error = one.step(&mut other.init(), Chunk::end()).unwrap_err();
        assert!(matches!(error, Error::ForeignState { .. }), "{error}");
        let error = vec![one].step(&mut Vec::new(), Chunk::end()).unwrap_err();
        assert!(matches!(error, Error::ForeignState { .. }), "{error}");
    }
}
