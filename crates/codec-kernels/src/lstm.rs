//! The recurrence of an LSTM layer; its input product is one GEMM over all steps, done by the caller.

use crate::elementwise::functions::{Function, Sigmoid, Tanh};
use crate::error::{Error, Result, expect_len, product};
use crate::gemm::{PackedMatrix, Rows, Start, gemm};
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch, level};

/// Runs one layer over a sequence.
///
/// `gates` come in holding `bias + W x` of every step and go out holding the sums of both products: the chain
/// of multiply-adds of the recurrent product goes on from the input product's.
///
/// # Shapes
/// `gates`: `[batch, time, 4 * hidden]` in the order input, forget, cell, output; `recurrent`:
/// `[hidden, 4 * hidden]`; `hidden_state`, `cell_state`: `[batch, hidden]`, updated; `out`:
/// `[batch, time, hidden]`.
///
/// # Errors
/// [`Error::Shape`] where the sizes do not agree, [`Error::Zero`] for a batch of zero.
///
/// # Source
/// Hochreiter and Schmidhuber 1997 with forget gates (Gers et al. 2000); gate order and one bias per gate as in
/// PyTorch's `nn.LSTM` with both biases added.
pub fn lstm_sequence(
    gates: &mut [f32],
    recurrent: &PackedMatrix,
    batch: usize,
    hidden_state: &mut [f32],
    cell_state: &mut [f32],
    out: &mut [f32],
) -> Result<()> {
    let hidden = recurrent.k();
    let n_gates = product("4 * hidden", 4, hidden)?;
    expect_len("recurrent columns", n_gates, recurrent.n())?;
    if batch == 0 || hidden == 0 {
        return Err(Error::Zero { what: if batch == 0 { "batch" } else { "hidden" } });
    }
    let state_len = product("batch * hidden", batch, hidden)?;
    expect_len("hidden_state", state_len, hidden_state.len())?;
    expect_len("cell_state", state_len, cell_state.len())?;
    let n_steps = out.len() / state_len;
    expect_len("out", n_steps * state_len, out.len())?;
    expect_len("gates", product("gates", out.len(), 4)?, gates.len())?;
    let level = level();
    // One step of all items side by side, so that the items share the weights.
    let mut step = vec![0.0; if batch > 1 { batch * n_gates } else { 0 }];
    for t in 0..n_steps {
        let at = |item: usize| (item * n_steps + t) * n_gates;
        if batch == 1 {
            let sums = &mut gates[at(0)..][..n_gates];
            gemm(Rows::new(hidden_state, 1, hidden, hidden)?, recurrent, Start::Accumulate, sums)?;
        } else {
            for (item, step) in step.chunks_exact_mut(n_gates).enumerate() {
                step.copy_from_slice(&gates[at(item)..][..n_gates]);
            }
            let rows = Rows::new(hidden_state, batch, hidden, hidden)?;
            gemm(rows, recurrent, Start::Accumulate, &mut step)?;
            for (item, step) in step.chunks_exact(n_gates).enumerate() {
                gates[at(item)..][..n_gates].copy_from_slice(step);
            }
        }
        for item in 0..batch {
            let gates = &gates[at(item)..][..n_gates];
            let cell = &mut cell_state[item * hidden..][..hidden];
            let state = &mut hidden_state[item * hidden..][..hidden];
            dispatch(level, Cell { gates, cell, hidden: state });
            out[(item * n_steps + t) * hidden..][..hidden].copy_from_slice(state);
        }
    }
    Ok(())
}

/// One step of one item, from the sums of both products.
///
/// `cell = σ(forget) cell + σ(input) tanh(cell gate)`, `hidden = σ(output) tanh(cell)`.
///
/// # Shapes
/// `gates`: `[4 * hidden]` in the order input, forget, cell, output; `cell` (updated), `hidden` (written):
/// `[hidden]`.
///
/// # Errors
/// [`Error::Shape`] where the sizes do not agree.
pub fn lstm_cell(gates: &[f32], cell: &mut [f32], hidden: &mut [f32]) -> Result<()> {
    expect_len("gates", product("4 * hidden", 4, hidden.len())?, gates.len())?;
    expect_len("cell", hidden.len(), cell.len())?;
    dispatch(level(), Cell { gates, cell, hidden });
    Ok(())
}

struct Cell<'a> {
    /// Four times as long as the others.
    gates: &'a [f32],
    cell: &'a mut [f32],
    hidden: &'a mut [f32],
}

impl Kernel for Cell<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.hidden.len();
        let mut j = 0;
        while j < n {
            let left = (n - j).min(S::LANES);
            let mut buffers = [[0.0; MAX_LANES]; 5];
            for (i, buffer) in buffers.iter_mut().take(4).enumerate() {
                buffer[..left].copy_from_slice(&self.gates[i * n + j..][..left]);
            }
            buffers[4][..left].copy_from_slice(&self.cell[j..][..left]);
            let [input, forget, update, output, cell] = buffers.map(|buffer| s.load(&buffer));
            let gain = s.mul(Sigmoid.apply(s, input), Tanh.apply(s, update));
            let cell = s.fma(Sigmoid.apply(s, forget), cell, gain);
            let hidden = s.mul(Sigmoid.apply(s, output), Tanh.apply(s, cell));
            let mut buffer = [0.0; MAX_LANES];
            s.store(cell, &mut buffer);
            self.cell[j..][..left].copy_from_slice(&buffer[..left]);
            s.store(hidden, &mut buffer);
            self.hidden[j..][..left].copy_from_slice(&buffer[..left]);
            j += left;
        }
    }
}
