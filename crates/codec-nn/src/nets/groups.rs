//! Layers side by side, each over its share of the channels.

use crate::Result;
use crate::layers::{Chunk, Flow, Layer, Work};
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
            let share = |steps: &Tensor| -> Result<Tensor> {
                let width = steps.dim(2)? / self.0.len();
                Ok(steps.narrow(2, group_idx * width, width)?)
            };
            let steps = chunk.steps.as_ref().map(share).transpose()?;
            outputs.extend(layer.step(state, Chunk { steps, end })?.steps);
        }
        let steps = if outputs.is_empty() { None } else { Some(Tensor::cat(&outputs, 2)?) };
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
