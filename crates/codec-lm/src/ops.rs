//! The two operations that only a language model has: sums of embeddings, and what a prediction costs.
//!
//! Both have a path for `f32` on the CPU, whose bits depend on nothing but the item, and a path of candle
//! operations for other devices.

use crate::error::{Error, Result};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Shape, Tensor};
use codec_kernels::softmax;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Marks a cell whose token is not predicted.
pub(crate) const NO_TARGET: u32 = u32::MAX;

fn on_cpu(xs: &Tensor) -> bool {
    xs.device().is_cpu() && xs.dtype() == DType::F32
}

/// The sum of some rows of a table, for each item.
///
/// # Shapes
/// `table` `[n_rows, dim]`, `rows` `[n_items, n_per_item]`, the result `[n_items, dim]`.
pub(crate) fn sum_of_rows(table: &Tensor, rows: Vec<u32>, n_per_item: usize) -> Result<Tensor> {
    let (n_rows, dim) = table.dims2()?;
    if let Some(&row) = rows.iter().find(|&&row| row as usize >= n_rows) {
        return Err(Error::Shape { what: "row of an embedding", expected: n_rows, actual: row as usize });
    }
    if on_cpu(table) {
        let op = SumOfRows { rows: rows.into(), n_per_item };
        return Ok(table.contiguous()?.apply_op1(op)?);
    }
    let n_items = rows.len() / n_per_item.max(1);
    let rows = Tensor::from_vec(rows, n_items * n_per_item, table.device())?;
    Ok(table.index_select(&rows, 0)?.reshape((n_items, n_per_item, dim))?.sum(1)?)
}

#[derive(Clone)]
struct SumOfRows {
    rows: Arc<[u32]>,
    n_per_item: usize,
}

impl CustomOp1 for SumOfRows {
    fn name(&self) -> &'static str {
        "codec-lm-sum-of-rows"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, dim) = layout.shape().dims2()?;
        let table = flat(table, layout)?;
        let n_items = self.rows.len() / self.n_per_item.max(1);
        let mut out = vec![0.0_f32; n_items * dim];
        let items = out.chunks_exact_mut(dim.max(1)).zip(self.rows.chunks_exact(self.n_per_item.max(1)));
        for (out, rows) in items {
            for &row in rows {
                let row = &table[row as usize * dim..][..dim];
                out.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((n_items, dim))))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let op = Spread { sum: self.clone(), n_rows: table.dim(0)? };
        grad.detach().contiguous()?.apply_op1_no_bwd(&op).map(Some)
    }
}

/// Adds the gradient of every item to its rows, items in order.
struct Spread {
    sum: SumOfRows,
    n_rows: usize,
}

impl CustomOp1 for Spread {
    fn name(&self) -> &'static str {
        "codec-lm-spread-over-rows"
    }

    fn cpu_fwd(&self, grad: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, dim) = layout.shape().dims2()?;
        let grad = flat(grad, layout)?;
        let mut out = vec![0.0_f32; self.n_rows * dim];
        let items = grad.chunks_exact(dim.max(1)).zip(self.sum.rows.chunks_exact(self.sum.n_per_item.max(1)));
        for (grad, rows) in items {
            for &row in rows {
                let row = &mut out[row as usize * dim..][..dim];
                row.iter_mut().zip(grad).for_each(|(sum, x)| *sum += x);
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((self.n_rows, dim))))
    }
}

/// What each stream's targets cost: the sum of `-ln p` over the items, in nats.
///
/// # Shapes
/// `logits` `[n_items, n_columns]`, stream k in the columns `segments[k]`; `targets`
/// `[n_items, n_streams]`, an index into the segment or [`NO_TARGET`]; the result `[n_streams]`.
pub(crate) fn cost(logits: &Tensor, segments: &[Range<usize>], targets: Vec<u32>) -> Result<Tensor> {
    let (n_items, _) = logits.dims2()?;
    let expected = n_items * segments.len();
    if targets.len() != expected {
        return Err(Error::Shape { what: "targets", expected, actual: targets.len() });
    }
    for (target, segment) in targets.iter().zip(segments.iter().cycle()) {
        if *target != NO_TARGET && *target as usize >= segment.len() {
            return Err(Error::Shape { what: "target", expected: segment.len(), actual: *target as usize });
        }
    }
    if on_cpu(logits) {
        let op = Cost { segments: segments.into(), targets: targets.into() };
        return Ok(logits.contiguous()?.apply_op1(op)?);
    }
    let costs = segments.iter().enumerate().map(|(stream_idx, segment)| -> Result<Tensor> {
        let own: Vec<u32> = targets.iter().skip(stream_idx).step_by(segments.len()).copied().collect();
        let mask: Vec<f32> = own.iter().map(|&t| if t == NO_TARGET { 0.0 } else { 1.0 }).collect();
        let own: Vec<u32> = own.iter().map(|&t| if t == NO_TARGET { 0 } else { t }).collect();
        let own = Tensor::from_vec(own, (n_items, 1), logits.device())?;
        let mask = Tensor::from_vec(mask, n_items, logits.device())?.to_dtype(logits.dtype())?;
        let xs = logits.narrow(1, segment.start, segment.len())?.contiguous()?;
        let shifted = xs.broadcast_sub(&xs.max_keepdim(1)?.detach())?;
        let log_p = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
        Ok((log_p.gather(&own, 1)?.squeeze(1)? * mask)?.sum_all()?.neg()?)
    });
    Ok(Tensor::stack(&costs.collect::<Result<Vec<_>>>()?, 0)?)
}

/// The natural logarithm of the probability that logits give to a target; they become probabilities.
pub(crate) fn log_probability(logits: &mut [f32], target: usize) -> Result<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let own = logits.get(target).copied().unwrap_or(f32::NEG_INFINITY);
    let n = logits.len();
    softmax(logits, n)?;
    // The largest probability is one over the sum of all exponentials, which cannot underflow.
    let largest = logits.iter().copied().fold(0.0_f32, f32::max);
    Ok(f64::from(own - top) + f64::from(largest).ln())
}

#[derive(Clone)]
struct Cost {
    segments: Arc<[Range<usize>]>,
    targets: Arc<[u32]>,
}

impl CustomOp1 for Cost {
    fn name(&self) -> &'static str {
        "codec-lm-cost"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n_items, n_columns) = layout.shape().dims2()?;
        let logits = flat(logits, layout)?;
        let n_streams = self.segments.len();
        let of_item = |item_idx: usize| -> Result<Vec<f64>> {
            let row = &logits[item_idx * n_columns..][..n_columns];
            let targets = &self.targets[item_idx * n_streams..][..n_streams];
            let mut buffer = Vec::new();
            let costs = self.segments.iter().zip(targets).map(|(segment, &target)| {
                if target == NO_TARGET {
                    return Ok(0.0);
                }
                buffer.clear();
                buffer.extend_from_slice(&row[segment.clone()]);
                Ok(-log_probability(&mut buffer, target as usize)?)
            });
            costs.collect()
        };
        let items: Result<Vec<Vec<f64>>> = (0..n_items).into_par_iter().map(of_item).collect();
        let mut sums = vec![0.0; n_streams];
        for item in items.map_err(candle_core::Error::wrap)? {
            sums.iter_mut().zip(item).for_each(|(sum, x)| *sum += x);
        }
        let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        Ok((CpuStorage::F32(sums), Shape::from(n_streams)))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (logits, grad) = (logits.detach().contiguous()?, grad.detach().contiguous()?);
        logits.apply_op2_no_bwd(&grad, &CostGradient(self.clone())).map(Some)
    }
}

/// Probabilities less one at the target, times the stream's gradient.
struct CostGradient(Cost);

impl CustomOp2 for CostGradient {
    fn name(&self) -> &'static str {
        "codec-lm-cost-gradient"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let Cost { segments, targets } = &self.0;
        let (_, n_columns) = layout.shape().dims2()?;
        let grads = flat(grad, grad_layout)?;
        let mut out = flat(logits, layout)?.to_vec();
        let rows = out.par_chunks_exact_mut(n_columns.max(1)).zip(targets.par_chunks_exact(segments.len()));
        let done: Result<()> = rows
            .map(|(row, targets)| {
                for ((segment, &target), &grad) in segments.iter().zip(targets).zip(grads) {
                    let row = &mut row[segment.clone()];
                    if target == NO_TARGET {
                        row.fill(0.0);
                        continue;
                    }
                    let n = row.len();
                    softmax(row, n)?;
                    row[target as usize] -= 1.0;
                    row.iter_mut().for_each(|x| *x *= grad);
                }
                Ok(())
            })
            .collect();
        done.map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// The values of a contiguous tensor.
fn flat<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (start, end) =
        layout.contiguous_offsets().ok_or(candle_core::Error::RequiresContiguous { op: "codec-lm" })?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use codec_train::rng::Rng;

    fn noise(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = Rng::of(seed, "noise", 0);
        (0..n).map(|_| rng.between(-2.0, 2.0) as f32).collect()
    }

    fn values(xs: &Tensor) -> Vec<f64> {
        xs.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (x, y)) in got.iter().zip(want).enumerate() {
            assert!((x - y).abs() <= tolerance * (1.0 + y.abs()), "{what} {i}: {x} against {y}");
        }
    }

    #[test]
    fn sums_of_rows_and_their_gradients_are_those_of_the_definition() {
        let table = Var::from_vec(noise(1, 5 * 3), (5, 3), &Device::Cpu).unwrap();
        let rows = vec![0, 4, 1, 1, 4, 0];
        let sums = sum_of_rows(&table, rows.clone(), 2).unwrap();
        let pull = Tensor::from_vec(noise(2, 9), (3, 3), &Device::Cpu).unwrap();
        let grads = (&sums * &pull).unwrap().sum_all().unwrap().backward().unwrap();
        let (t, p) = (values(&table), values(&pull));
        let (mut want, mut want_grad) = (vec![0.0; 9], vec![0.0; 15]);
        for (i, &row) in rows.iter().enumerate() {
            for c in 0..3 {
                want[i / 2 * 3 + c] += t[row as usize * 3 + c];
                want_grad[row as usize * 3 + c] += p[i / 2 * 3 + c];
            }
        }
        assert_close("sums", &values(&sums), &want, 1e-6);
        assert_close("gradient", &values(grads.get(&table).unwrap()), &want_grad, 1e-6);
        assert!(sum_of_rows(&table, vec![5], 1).is_err());
    }

    #[test]
    fn costs_and_their_gradients_are_those_of_the_definition() {
        let (n_items, segments) = (4, [0..5, 5..8]);
        let logits = Var::from_vec(noise(3, n_items * 8), (n_items, 8), &Device::Cpu).unwrap();
        let targets = vec![1, 2, NO_TARGET, 0, 4, NO_TARGET, 0, 1];
        let costs = cost(&logits, &segments, targets.clone()).unwrap();
        let weights = [0.7_f64, -1.3];
        let pull = Tensor::new(&weights.map(|x| x as f32), &Device::Cpu).unwrap();
        let grads = (&costs * &pull).unwrap().sum_all().unwrap().backward().unwrap();
        let xs = values(&logits);
        let (mut want, mut want_grad) = (vec![0.0; 2], vec![0.0; n_items * 8]);
        for (cell, &target) in targets.iter().enumerate().filter(|(_, target)| **target != NO_TARGET) {
            let (item, stream) = (cell / 2, cell % 2);
            let row = &xs[item * 8..][segments[stream].clone()];
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            want[stream] -= row[target as usize] - sum.ln();
            for (c, x) in row.iter().enumerate() {
                let hit = f64::from(u8::from(c == target as usize));
                want_grad[item * 8 + segments[stream].start + c] = weights[stream] * (x.exp() / sum - hit);
            }
        }
        assert_close("costs", &values(&costs), &want, 1e-5);
        assert_close("gradient", &values(grads.get(&logits).unwrap()), &want_grad, 1e-5);
        assert!(cost(&logits, &segments, vec![0; 7]).is_err());
        assert!(cost(&logits, &segments, vec![3; 8]).is_err());
    }

    #[test]
    fn a_logarithm_survives_what_a_probability_does_not() {
        let mut logits = vec![0.0, -200.0];
        let log_p = log_probability(&mut logits, 1).unwrap();
        assert_eq!((log_p, logits[1]), (-200.0, 0.0));
    }
}
