//! The way back through the recurrence of an LSTM layer.

use crate::elementwise::{Unary, unary, unary_in_place};
use crate::error::{Error, Result, expect_len, product};
use crate::gemm::{PackedMatrix, Rows, Start, gemm, gemm_transposed};

/// What a layer owes its inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct LstmGradient {
    /// `[batch, time, 4 * hidden]`, before the gates' functions.
    pub gates: Vec<f32>,
    /// `[hidden, 4 * hidden]`.
    pub recurrent: Vec<f32>,
    /// `[batch, hidden]`.
    pub hidden_state: Vec<f32>,
    /// `[batch, hidden]`.
    pub cell_state: Vec<f32>,
}

/// A layer as [`super::lstm_sequence`] ran it.
#[derive(Clone, Copy, Debug)]
pub struct LstmRun<'a> {
    /// `[batch, time, 4 * hidden]` as it came out: the sums of both products.
    pub gates: &'a [f32],
    /// `[hidden, 4 * hidden]`, row-major.
    pub recurrent: &'a [f32],
    /// `[batch, hidden]` before the first step.
    pub hidden_state: &'a [f32],
    /// `[batch, hidden]` before the first step.
    pub cell_state: &'a [f32],
    /// `[batch, time, hidden]`.
    pub outputs: &'a [f32],
}

/// Backpropagation through time.
///
/// # Shapes
/// `for_outputs`: `[batch, time, hidden]`, `for_cell`: `[batch, hidden]`, of the cell after the last step.
///
/// # Errors
/// [`Error::Shape`] where the sizes do not agree, [`Error::Zero`] for a batch of zero.
pub fn lstm_gradient(
    run: LstmRun<'_>,
    batch: usize,
    for_outputs: &[f32],
    for_cell: &[f32],
) -> Result<LstmGradient> {
    let LstmRun { gates, recurrent, hidden_state, cell_state, outputs } = run;
    if batch == 0 || hidden_state.is_empty() {
        return Err(Error::Zero { what: "batch" });
    }
    let hidden = hidden_state.len() / batch;
    let n_gates = 4 * hidden;
    let n_steps = outputs.len() / hidden_state.len();
    expect_len("cell_state", hidden_state.len(), cell_state.len())?;
    expect_len("for_cell", hidden_state.len(), for_cell.len())?;
    expect_len("recurrent", product("hidden * gates", hidden, n_gates)?, recurrent.len())?;
    expect_len("outputs", n_steps * batch * hidden, outputs.len())?;
    expect_len("for_outputs", outputs.len(), for_outputs.len())?;
    expect_len("gates", product("gates", outputs.len(), 4)?, gates.len())?;

    // The gates, then the cells, as they were.
    let mut opened = gates.to_vec();
    for step in opened.chunks_exact_mut(n_gates) {
        unary_in_place(Unary::Sigmoid, &mut step[..2 * hidden]);
        unary_in_place(Unary::Tanh, &mut step[2 * hidden..3 * hidden]);
        unary_in_place(Unary::Sigmoid, &mut step[3 * hidden..]);
    }
    let mut cells = vec![0.0; outputs.len()];
    for item in 0..batch {
        for t in 0..n_steps {
            let gates = &opened[(item * n_steps + t) * n_gates..][..n_gates];
            let (past, now) = cells.split_at_mut((item * n_steps + t) * hidden);
            let before = if t == 0 {
                &cell_state[item * hidden..][..hidden]
            } else {
                &past[(item * n_steps + t - 1) * hidden..]
            };
            for j in 0..hidden {
                now[j] = gates[hidden + j].mul_add(before[j], gates[j] * gates[2 * hidden + j]);
            }
        }
    }
    let mut bounded = vec![0.0; cells.len()];
    unary(Unary::Tanh, &cells, &mut bounded)?;

    let back = PackedMatrix::from_transposed(recurrent, n_gates, hidden)?;
    let mut for_gates = vec![0.0; gates.len()];
    let mut for_hidden = vec![0.0; batch * hidden];
    let mut for_cells = for_cell.to_vec();
    let mut step = vec![0.0; batch * n_gates];
    for t in (0..n_steps).rev() {
        for item in 0..batch {
            let at = (item * n_steps + t) * hidden;
            let gates = &opened[4 * at..][..n_gates];
            let sums = &mut step[item * n_gates..][..n_gates];
            let before = if t == 0 { &cell_state[item * hidden..] } else { &cells[at - hidden..] };
            for j in 0..hidden {
                let [input, forget, update, output] = [0, 1, 2, 3].map(|gate| gates[gate * hidden + j]);
                let (tanh, at_hidden) = (bounded[at + j], item * hidden + j);
                let owed = for_outputs[at + j] + for_hidden[at_hidden];
                let cell = for_cells[at_hidden] + owed * output * (1.0 - tanh * tanh);
                sums[j] = cell * update * input * (1.0 - input);
                sums[hidden + j] = cell * before[j] * forget * (1.0 - forget);
                sums[2 * hidden + j] = cell * input * (1.0 - update * update);
                sums[3 * hidden + j] = owed * tanh * output * (1.0 - output);
                for_cells[at_hidden] = cell * forget;
            }
            for_gates[4 * at..][..n_gates].copy_from_slice(sums);
        }
        gemm(Rows::new(&step, batch, n_gates, n_gates)?, &back, Start::Zero, &mut for_hidden)?;
    }

    let mut for_recurrent = vec![0.0; recurrent.len()];
    let mut states = vec![0.0; n_steps * hidden];
    for item in 0..batch {
        if n_steps == 0 {
            break;
        }
        // The hidden state that each step began with.
        states[..hidden].copy_from_slice(&hidden_state[item * hidden..][..hidden]);
        let outputs = &outputs[item * n_steps * hidden..][..(n_steps - 1) * hidden];
        states[hidden..].copy_from_slice(outputs);
        let sums = &for_gates[item * n_steps * n_gates..][..n_steps * n_gates];
        let sums = PackedMatrix::for_transposed(sums, n_steps, n_gates)?;
        gemm_transposed(&states, hidden, hidden, &sums, Start::Accumulate, &mut for_recurrent)?;
    }
    Ok(LstmGradient {
        gates: for_gates,
        recurrent: for_recurrent,
        hidden_state: for_hidden,
        cell_state: for_cells,
    })
}
