//! The recurrent half of an LSTM layer.

use super::filter::Form;
use super::floats::Floats;
use super::loading;
use super::{Steps, expect_channels, expect_shape, flat, on_kernels, wrap};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor};
use codec_kernels::{LstmRun, PackedMatrix, lstm_gradient, lstm_sequence};
use std::sync::{Arc, Mutex, PoisonError};

/// The weight that goes from the hidden state to the gates.
#[derive(Clone, Debug)]
pub(crate) struct Recurrent {
    /// `[hidden, 4 * hidden]`, a view where `packed` is there.
    rows: Tensor,
    /// Made once when the weight is fixed and on the CPU.
    packed: Option<Arc<PackedMatrix>>,
}

impl Recurrent {
    /// Takes `weight`, `[4 * hidden, hidden]` with the gates in the order i, f, g, o.
    pub(crate) fn new(weight: &Tensor) -> Result<Self> {
        let (n_gates, hidden) = weight.dims2()?;
        expect_shape("recurrent weight", weight, &[4 * hidden, hidden])?;
        let rows = weight.t()?;
        if loading::is_unwanted() {
            // The layer's other weight keeps it from being used.
            return Ok(Self { rows, packed: None });
        }
        if weight.track_op() || !on_kernels(weight)? {
            return Ok(Self { rows: rows.contiguous()?, packed: None });
        }
        let values = Form::Matrix.values(weight)?;
        let packed = PackedMatrix::new(&loading::precision().rounded(&values, n_gates)?, hidden, n_gates)?;
        Ok(Self { rows, packed: Some(Arc::new(packed)) })
    }

    /// Width of the hidden state.
    pub(crate) fn hidden(&self) -> Result<usize> {
        Ok(self.rows.dim(0)?)
    }
}

/// Runs the recurrence over a sequence.
///
/// # Shapes
/// `gates` `[batch, time, 4 * hidden]`: what the input and the biases give, in the order i, f, g, o;
/// `state` `[batch, 2, hidden]`: hidden, then cell. The results are the outputs, `[batch, time, hidden]`,
/// and the next state.
///
/// # Source
/// Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000, as `torch.nn.LSTM` states it.
pub(crate) fn lstm(gates: &Tensor, recurrent: &Recurrent, state: &Tensor) -> Result<(Tensor, Tensor)> {
    let hidden = recurrent.hidden()?;
    expect_channels("gates", gates, 4 * hidden)?;
    let n_steps = gates.dim(1)?;
    let all = if on_kernels(gates)? {
        let op = LstmOp { packed: recurrent.packed.clone(), sums: Mutex::default() };
        gates.contiguous()?.apply_op3(&recurrent.rows, &state.contiguous()?, op)?
    } else {
        plain(gates, &recurrent.rows, state)?
    };
    let outputs = all.narrow(1, 0, n_steps)?;
    Ok((outputs, all.narrow(1, n_steps - 1, 2)?.force_contiguous()?))
}

/// Where the recurrence of a stream stands; at its start hidden state and cell are zeros.
#[derive(Clone, Debug, Default)]
pub struct LstmState(Kept);

#[derive(Clone, Debug, Default)]
enum Kept {
    #[default]
    Zeros,
    /// Hidden states of all items, then their cells, `[2, batch, hidden]`.
    Floats(Vec<f32>),
    /// `[batch, 2, hidden]`.
    Tensor(Tensor),
}

impl Steps {
    /// [`lstm`] of these gates.
    ///
    /// # Errors
    /// [`Error::ForeignState`] for the state of another batch.
    pub(crate) fn lstm(self, recurrent: &Recurrent, LstmState(state): &mut LstmState) -> Result<Self> {
        let hidden = recurrent.hidden()?;
        self.expect_channels("gates", 4 * hidden)?;
        let (batch, _, _) = self.dims3()?;
        if let (Some(gates), Some(packed)) = (self.floats(), &recurrent.packed)
            && !matches!(state, Kept::Tensor(_))
        {
            if matches!(state, Kept::Zeros) {
                *state = Kept::Floats(vec![0.0; 2 * batch * hidden]);
            }
            return match state {
                Kept::Floats(state) if state.len() == 2 * batch * hidden => {
                    let gates = gates.clone();
                    drop(self);
                    Ok(lstm_floats(gates, packed, state.split_at_mut(batch * hidden))?.into())
                }
                _ => Err(Error::ForeignState { expected: "state of an LSTM" }),
            };
        }
        self.map_tensor(|gates| {
            let before = match std::mem::take(state) {
                Kept::Zeros => Tensor::zeros((batch, 2, hidden), gates.dtype(), gates.device())?,
                Kept::Floats(state) => {
                    let state = Tensor::from_vec(state, (2, batch, hidden), gates.device())?;
                    state.transpose(0, 1)?.contiguous()?
                }
                Kept::Tensor(state) => state,
            };
            let (outputs, after) = lstm(&gates, recurrent, &before)?;
            *state = Kept::Tensor(after);
            Ok(outputs)
        })
    }
}

/// The recurrence of floats; `gates` are worked on in their place where nobody else reads them.
fn lstm_floats(
    gates: Floats,
    packed: &PackedMatrix,
    (hiddens, cells): (&mut [f32], &mut [f32]),
) -> Result<Floats> {
    let [batch, n_steps, n_gates] = gates.dims();
    Floats::new([batch, n_steps, n_gates / 4], |out| {
        gates.map_in_place(|gates| lstm_sequence(gates, packed, batch, hiddens, cells, out)).map(drop)
    })
}

/// The same mathematics in candle operations, for any device: the outputs, then the last cell.
pub(crate) fn plain(gates: &Tensor, rows: &Tensor, state: &Tensor) -> Result<Tensor> {
    let (_, n_steps, _) = gates.dims3()?;
    let mut hidden = state.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
    let mut cell = state.narrow(1, 1, 1)?.squeeze(1)?;
    let mut steps = Vec::with_capacity(n_steps + 1);
    for step_idx in 0..n_steps {
        let sums = (gates.narrow(1, step_idx, 1)?.squeeze(1)? + hidden.matmul(rows)?)?;
        let gate = sums.chunk(4, 1)?;
        let [input, forget, candidate, output] = gate.as_slice() else {
            return Err(Error::Shape { name: "gates".into(), expected: vec![4], actual: vec![gate.len()] });
        };
        let sigmoid = candle_nn::ops::sigmoid;
        let kept = (sigmoid(&forget.contiguous()?)? * &cell)?;
        cell = (kept + (sigmoid(&input.contiguous()?)? * candidate.tanh()?)?)?;
        hidden = (sigmoid(&output.contiguous()?)? * cell.tanh()?)?;
        steps.push(hidden.unsqueeze(1)?);
    }
    steps.push(cell.unsqueeze(1)?);
    Ok(Tensor::cat(&steps, 1)?)
}

/// One op has one result: the last cell follows the outputs as one more step.
struct LstmOp {
    packed: Option<Arc<PackedMatrix>>,
    /// The sums in the gates, for the way back.
    sums: Mutex<Vec<f32>>,
}

impl LstmOp {
    fn forward(
        &self,
        (gates, gates_layout): (&CpuStorage, &Layout),
        (rows, rows_layout): (&CpuStorage, &Layout),
        (state, state_layout): (&CpuStorage, &Layout),
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, n_steps, n_gates) = gates_layout.shape().dims3()?;
        let hidden = n_gates / 4;
        let packed = match &self.packed {
            Some(packed) => packed.clone(),
            None => Arc::new(PackedMatrix::new(flat(rows, rows_layout)?, hidden, n_gates)?),
        };
        let mut gates = flat(gates, gates_layout)?.to_vec();
        let (mut hiddens, mut cells) = (Vec::new(), Vec::new());
        for item in flat(state, state_layout)?.chunks_exact((2 * hidden).max(1)) {
            hiddens.extend_from_slice(&item[..hidden]);
            cells.extend_from_slice(&item[hidden..]);
        }
        let mut outputs = vec![0.0; batch * n_steps * hidden];
        lstm_sequence(&mut gates, &packed, batch, &mut hiddens, &mut cells, &mut outputs)?;
        let mut all = Vec::with_capacity(batch * (n_steps + 1) * hidden);
        for (output, cell) in outputs.chunks_exact(n_steps * hidden).zip(cells.chunks_exact(hidden)) {
            all.extend_from_slice(output);
            all.extend_from_slice(cell);
        }
        *self.sums.lock().unwrap_or_else(PoisonError::into_inner) = gates;
        Ok((CpuStorage::F32(all), Shape::from((batch, n_steps + 1, hidden))))
    }
}

impl CustomOp3 for LstmOp {
    fn name(&self) -> &'static str {
        "codec-lstm"
    }

    fn cpu_fwd(
        &self,
        gates: &CpuStorage,
        gates_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
        state: &CpuStorage,
        state_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward((gates, gates_layout), (rows, rows_layout), (state, state_layout)).map_err(wrap)
    }

    fn bwd(
        &self,
        gates: &Tensor,
        rows: &Tensor,
        state: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (batch, n_steps, n_gates) = gates.dims3()?;
        let hidden = n_gates / 4;
        let values = |xs: Tensor| -> candle_core::Result<Vec<f32>> { xs.flatten_all()?.to_vec1() };
        // The last step of result and gradient is the cell's.
        let part = |xs: &Tensor, start: usize, n: usize| values(xs.detach().narrow(1, start, n)?);
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let (recurrent, outputs) = (values(rows.detach())?, part(result, 0, n_steps)?);
        let (hidden_state, cell_state) = (part(state, 0, 1)?, part(state, 1, 1)?);
        let run = LstmRun {
            gates: &sums,
            recurrent: &recurrent,
            hidden_state: &hidden_state,
            cell_state: &cell_state,
            outputs: &outputs,
        };
        let (for_outputs, for_cell) = (part(grad, 0, n_steps)?, part(grad, n_steps, 1)?);
        let owed = lstm_gradient(run, batch, &for_outputs, &for_cell).map_err(wrap)?;
        let device = gates.device();
        let for_states = [owed.hidden_state, owed.cell_state]
            .map(|state| Tensor::from_vec(state, (batch, 1, hidden), device));
        let [for_hidden, for_cell] = for_states;
        Ok((
            gates.track_op().then(|| Tensor::from_vec(owed.gates, gates.shape(), device)).transpose()?,
            rows.track_op().then(|| Tensor::from_vec(owed.recurrent, rows.shape(), device)).transpose()?,
            state.track_op().then(|| Tensor::cat(&[for_hidden?, for_cell?], 1)).transpose()?,
        ))
    }
}
