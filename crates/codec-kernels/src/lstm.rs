//! The recurrence of an LSTM layer; its input product is one GEMM over all steps, done by the caller.

use crate::elementwise::functions::{Function, Sigmoid, Tanh};
use crate::error::{Error, Result, expect_len, product};
use crate::gemm::{Order, PackedMatrix, Rows, Start, gemm_in_order};
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch, level};

mod gradient;

pub use self::gradient::{LstmGradient, LstmRun, lstm_gradient};

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
        // There and back: a step begins with the weights that the one before it read last.
        let order = if t % 2 == 0 { Order::Forwards } else { Order::Backwards };
        let at = |item: usize| (item * n_steps + t) * n_gates;
        if batch == 1 {
            let sums = &mut gates[at(0)..][..n_gates];
            let rows = Rows::new(hidden_state, 1, hidden, hidden)?;
            gemm_in_order(rows, recurrent, Start::Accumulate, sums, order)?;
        } else {
            for (item, step) in step.chunks_exact_mut(n_gates).enumerate() {
                step.copy_from_slice(&gates[at(item)..][..n_gates]);
            }
            let rows = Rows::new(hidden_state, batch, hidden, hidden)?;
            gemm_in_order(rows, recurrent, Start::Accumulate, &mut step, order)?;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;
    use crate::testing::{bits, noise, same_everywhere};

    /// One layer and its input product.
    struct Case {
        hidden: usize,
        batch: usize,
        n_steps: usize,
        weights: Vec<f32>,
        gates: Vec<f32>,
    }

    impl Case {
        fn new(seed: u64, hidden: usize, batch: usize, n_steps: usize) -> Self {
            // Sums of about one: neither linear nor saturated.
            let size = 2.0 / (hidden as f32).sqrt();
            let weights = noise(seed, 4 * hidden * hidden).iter().map(|w| size * w).collect();
            let gates = noise(seed + 1, batch * n_steps * 4 * hidden).iter().map(|g| 2.0 * g).collect();
            Self { hidden, batch, n_steps, weights, gates }
        }

        /// Runs the items in `items` in one call, cut in two at step `cut`; the outputs, then both states.
        fn run(&self, items: std::ops::Range<usize>, cut: usize) -> Vec<f32> {
            let Self { hidden, n_steps, .. } = *self;
            let recurrent = PackedMatrix::new(&self.weights, hidden, 4 * hidden).unwrap();
            let batch = items.len();
            let (mut state, mut cell) = (vec![0.0; batch * hidden], vec![0.0; batch * hidden]);
            let mut outs = vec![Vec::new(); batch];
            for steps in [0..cut, cut..n_steps] {
                let mut gates = Vec::new();
                for item in items.clone() {
                    let item = &self.gates[item * n_steps * 4 * hidden..][..n_steps * 4 * hidden];
                    gates.extend(&item[steps.start * 4 * hidden..steps.end * 4 * hidden]);
                }
                let mut out = vec![0.0; batch * steps.len() * hidden];
                lstm_sequence(&mut gates, &recurrent, batch, &mut state, &mut cell, &mut out).unwrap();
                for (item, outs) in outs.iter_mut().enumerate() {
                    outs.extend(&out[item * steps.len() * hidden..][..steps.len() * hidden]);
                }
            }
            [outs.concat(), state, cell].concat()
        }

        /// The outputs in f64.
        fn reference(&self) -> Vec<f64> {
            let Self { hidden, batch, n_steps, .. } = *self;
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let mut out = Vec::new();
            for item in 0..batch {
                let (mut state, mut cell) = (vec![0.0; hidden], vec![0.0; hidden]);
                for t in 0..n_steps {
                    let sums: Vec<f64> = (0..4 * hidden)
                        .map(|g| {
                            let input = f64::from(self.gates[(item * n_steps + t) * 4 * hidden + g]);
                            let weight = |j: usize| f64::from(self.weights[j * 4 * hidden + g]);
                            input + (0..hidden).map(|j| weight(j) * state[j]).sum::<f64>()
                        })
                        .collect();
                    for j in 0..hidden {
                        let [i, f, g, o] = [0, 1, 2, 3].map(|gate| sums[gate * hidden + j]);
                        cell[j] = sigmoid(f) * cell[j] + sigmoid(i) * g.tanh();
                        state[j] = sigmoid(o) * cell[j].tanh();
                    }
                    out.extend(&state);
                }
            }
            out
        }
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

        #[test]
        fn is_right_and_the_same_for_any_batch_cut_level_and_number_of_threads(
            seed in 0..1000_u64,
            hidden in 1..50_usize,
            batch in 1..4_usize,
            n_steps in 1..9_usize,
            cut in 0.0..1.0,
        ) {
            let case = Case::new(seed, hidden, batch, n_steps);
            let got = same_everywhere(|| case.run(0..batch, 0));
            for (i, (&got, want)) in got.iter().zip(case.reference()).enumerate() {
                // Sums of up to 50 products with a rounding each, over up to 8 steps that damp errors.
                assert!((f64::from(got) - want).abs() < 5e-6, "element {i}: {got} against {want}");
            }
            assert_eq!(bits(&got), bits(&case.run(0..batch, (cut * n_steps as f64) as usize)));
            let out_len = n_steps * hidden;
            for item in 0..batch {
                let alone = case.run(item..item + 1, 0);
                assert_eq!(bits(&got[item * out_len..][..out_len]), bits(&alone[..out_len]));
            }
        }
    }

    #[test]
    fn a_step_split_over_threads_gives_the_same_bits() {
        let case = Case::new(7, 384, 2, 3);
        let got = same_everywhere(|| case.run(0..2, 1));
        assert!(got.iter().any(|x| x.abs() > 0.1), "the layer does nothing");
        let alone = same_everywhere(|| case.run(1..2, 0));
        assert_eq!(bits(&got[3 * 384..6 * 384]), bits(&alone[..3 * 384]));
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        let recurrent = PackedMatrix::new(&[0.0; 16], 2, 8).unwrap();
        let run = |gates: usize, batch: usize, state: usize, cell: usize, out: usize| {
            let (mut state, mut cell) = (vec![0.0; state], vec![0.0; cell]);
            lstm_sequence(
                &mut vec![0.0; gates],
                &recurrent,
                batch,
                &mut state,
                &mut cell,
                &mut vec![0.0; out],
            )
        };
        run(24, 1, 2, 2, 6).unwrap();
        run(48, 2, 4, 4, 12).unwrap();
        for (gates, batch, state, cell, out) in
            [(23, 1, 2, 2, 6), (24, 2, 2, 2, 6), (24, 1, 2, 3, 6), (24, 1, 2, 2, 5), (24, 0, 0, 0, 6)]
        {
            assert!(run(gates, batch, state, cell, out).is_err());
        }
        assert!(lstm_cell(&[0.0; 7], &mut [0.0; 2], &mut [0.0; 2]).is_err());
        assert!(lstm_cell(&[0.0; 8], &mut [0.0; 1], &mut [0.0; 2]).is_err());
    }
}
