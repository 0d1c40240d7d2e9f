//! Layers side by side, each over its share of the channels.

use crate::Result;
use crate::layers::{Chunk, Flow, Layer, Steps, Work};
use candle_core::Tensor;

/// One layer per equal share of the channels; their outputs follow each other along the channels.
///
/// All must give as many steps for the same input, as convolutions of one geometry do.
#[derive(Debug)]
pub(crate) struct Groups<L>(pub(crate) Vec<L>);

impl<L: Layer> Layer for Groups<L> {
    type State = Vec<L::State>;

    fn init(&self) -> Self::State {
        self.0.iter().map(Layer::init).collect()
    }

    fn step(&self, states: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        if let ([only], [state]) = (self.0.as_slice(), states.as_mut_slice()) {
            return only.step(state, chunk);
        }
        let end = chunk.end;
        let mut outputs = Vec::with_capacity(self.0.len());
        for (group_idx, (layer, state)) in self.0.iter().zip(states).enumerate() {
            let share = |steps: &Steps| {
                let (_, _, channels) = steps.dims3()?;
                let width = channels / self.0.len();
                steps.channels(group_idx * width, width)
            };
            let steps = chunk.steps.as_ref().map(share).transpose()?;
            outputs.extend(layer.step(state, Chunk { steps, end })?.steps);
        }
        let mut outputs = outputs.into_iter();
        let first = outputs.next();
        let others: Vec<_> = outputs.map(Steps::into_tensor).collect::<Result<_>>()?;
        let beside = |first| Ok(Tensor::cat(&[vec![first], others].concat(), 2)?);
        let steps = first.map(|first| first.map_tensor(beside)).transpose()?;
        Ok(Chunk { steps, end })
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        let last_inputs = self.0.iter().map(|layer| layer.last_input(output_idx));
        last_inputs.reduce(|one, other| Some(one?.max(other?))).unwrap_or(Some(output_idx))
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        let share = Flow { channels: input.channels / self.0.len().max(1), ..input };
        let outputs: Vec<Flow> = self.0.iter().map(|layer| layer.list_work(share, list)).collect();
        let channels = outputs.iter().map(|output| output.channels).sum();
        Flow { channels, ..outputs.first().copied().unwrap_or(input) }
    }
}
