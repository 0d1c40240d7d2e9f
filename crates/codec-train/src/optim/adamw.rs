//! AdamW on named variables.

use crate::config::OptimizerConfig;
use crate::error::Result;
use crate::losses::flat;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, DType, InplaceOp2, Layout, Shape, Tensor, Var};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Added to the root of the second moment.
const EPSILON: f64 = 1e-8;
/// Values of one task.
const TASK_LEN: usize = 1 << 14;

/// Adam with decoupled weight decay.
///
/// # Source
/// Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; Kingma and Ba 2015, arXiv 1412.6980.
#[derive(Debug)]
pub struct AdamW {
    betas: [f64; 2],
    weight_decay: f64,
    /// Per variable both moments, `[2, n]`.
    moments: BTreeMap<String, Tensor>,
}

impl AdamW {
    /// No moments yet.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self { betas: config.betas, weight_decay: config.weight_decay, moments: BTreeMap::new() }
    }

    /// One step, number `step` from 0, with gradients scaled by `scale`.
    ///
    /// Weights with more than one dimension decay; biases, gains and the like do not.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn step(
        &mut self,
        vars: &BTreeMap<String, Var>,
        grads: &GradStore,
        learning_rate: f64,
        scale: f64,
        step: u64,
    ) -> Result<()> {
        let corrections = self.betas.map(|beta| 1.0 - beta.powf((step + 1) as f64));
        for (name, var) in vars {
            let Some(grad) = grads.get(var) else { continue };
            let n = var.elem_count();
            let grad = grad.detach().contiguous()?.flatten_all()?;
            let moments = match self.moments.get(name) {
                Some(moments) => moments,
                None => {
                    let zeros = Tensor::zeros((2, n), DType::F32, var.device())?;
                    self.moments.entry(name.clone()).or_insert(zeros)
                }
            };
            let n_wide = var.dims().iter().filter(|&&dim| dim > 1).count();
            let decay = if n_wide > 1 { learning_rate * self.weight_decay } else { 0.0 };
            let update = Update {
                learning_rate: learning_rate / corrections[0],
                root_correction: corrections[1].sqrt(),
                decay,
            };
            if var.device().is_cpu() {
                moments.inplace_op2(&grad, &Moments { betas: self.betas, scale })?;
                var.inplace_op2(moments, &update)?;
            } else {
                let (moments, new) = plain(var, moments, &(grad * scale)?, self.betas, update)?;
                self.moments.insert(name.clone(), moments);
                var.set(&new)?;
            }
        }
        Ok(())
    }

    /// Forgets the moments of some rows of a variable, because the rows are new.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn forget_rows(&mut self, name: &str, n_rows: usize, rows: &[u32]) -> Result<()> {
        let Some(moments) = self.moments.get(name) else { return Ok(()) };
        let mut keep = vec![1.0_f32; n_rows];
        rows.iter().for_each(|&row| keep[row as usize] = 0.0);
        let keep = Tensor::from_vec(keep, (1, n_rows, 1), moments.device())?;
        let shape = moments.shape().clone();
        let kept = moments.reshape((2, n_rows, ()))?.broadcast_mul(&keep)?.reshape(shape)?;
        self.moments.insert(name.to_owned(), kept);
        Ok(())
    }

    /// The moments, for a checkpoint.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.moments
    }

    /// Puts back what [`AdamW::tensors`] gave.
    pub fn restore(&mut self, moments: BTreeMap<String, Tensor>) {
        self.moments = moments;
    }
}

/// The length of all gradients of `vars` together.
///
/// # Errors
/// What the tensor library fails with.
pub fn global_norm(vars: &BTreeMap<String, Var>, grads: &GradStore) -> Result<f64> {
    let mut total = 0.0;
    for grad in vars.values().filter_map(|var| grads.get(var)) {
        total += if grad.device().is_cpu() {
            grad.contiguous()?.apply_op1_no_bwd(&Power)?.to_scalar::<f64>()?
        } else {
            // Scaled, or the square of a large gradient would not fit.
            let peak = f64::from(grad.abs()?.max_all()?.to_scalar::<f32>()?);
            let scale = if peak > 0.0 { peak } else { 1.0 };
            peak * peak * f64::from((grad / scale)?.sqr()?.sum_all()?.to_scalar::<f32>()?)
        };
    }
    Ok(total.sqrt())
}

/// The sum of all squares, in f64.
struct Power;

impl CustomOp1 for Power {
    fn name(&self) -> &'static str {
        "codec-power"
    }

    fn cpu_fwd(&self, values: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        /// Partial sums side by side, so that the loop has lanes.
        const LANES: usize = 8;
        let power = |task: &[f32]| {
            let mut sums = [0.0_f64; LANES];
            for part in task.chunks(LANES) {
                sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
            }
            sums.iter().sum::<f64>()
        };
        let parts: Vec<f64> = flat(values, layout)?.par_chunks(TASK_LEN).map(power).collect();
        Ok((CpuStorage::F64(vec![parts.iter().sum()]), Shape::from(())))
    }
}

/// Both moments from a gradient.
struct Moments {
    betas: [f64; 2],
    scale: f64,
}

impl InplaceOp2 for Moments {
    fn name(&self) -> &'static str {
        "codec-adamw-moments"
    }

    fn cpu_fwd(
        &self,
        moments: &mut CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<()> {
        let grad = flat(grad, grad_layout)?;
        let (first, second) = flat_mut(moments, layout)?.split_at_mut(grad.len());
        let [beta1, beta2] = self.betas.map(|beta| beta as f32);
        let scale = self.scale as f32;
        let tasks = first.par_chunks_mut(TASK_LEN).zip(second.par_chunks_mut(TASK_LEN));
        tasks.zip(grad.par_chunks(TASK_LEN)).for_each(|((first, second), grad)| {
            for ((m, v), g) in first.iter_mut().zip(second).zip(grad) {
                let g = g * scale;
                *m += (1.0 - beta1) * (g - *m);
                *v += (1.0 - beta2) * (g * g - *v);
            }
        });
        Ok(())
    }
}

/// A variable from its moments.
#[derive(Clone, Copy)]
struct Update {
    /// Over the correction of the first moment.
    learning_rate: f64,
    /// Root of the correction of the second moment.
    root_correction: f64,
    decay: f64,
}

impl InplaceOp2 for Update {
    fn name(&self) -> &'static str {
        "codec-adamw-update"
    }

    fn cpu_fwd(
        &self,
        var: &mut CpuStorage,
        layout: &Layout,
        moments: &CpuStorage,
        moments_layout: &Layout,
    ) -> candle_core::Result<()> {
        let values = flat_mut(var, layout)?;
        let (first, second) = flat(moments, moments_layout)?.split_at(values.len());
        let (rate, keep) = (self.learning_rate as f32, 1.0 - self.decay as f32);
        let (root, epsilon) = (1.0 / self.root_correction as f32, EPSILON as f32);
        let tasks = values.par_chunks_mut(TASK_LEN).zip(first.par_chunks(TASK_LEN));
        tasks.zip(second.par_chunks(TASK_LEN)).for_each(|((values, first), second)| {
            for ((x, m), v) in values.iter_mut().zip(first).zip(second) {
                *x = *x * keep - rate * m / (v.sqrt() * root + epsilon);
            }
        });
        Ok(())
    }
}

/// The same mathematics in candle operations, for any device: the new moments and values.
fn plain(
    var: &Var,
    moments: &Tensor,
    grad: &Tensor,
    betas: [f64; 2],
    update: Update,
) -> Result<(Tensor, Tensor)> {
    let average = |i: usize, x: &Tensor| -> Result<Tensor> {
        Ok(((moments.narrow(0, i, 1)? * betas[i])? + (x.unsqueeze(0)? * (1.0 - betas[i]))?)?)
    };
    let (first, second) = (average(0, grad)?, average(1, &grad.sqr()?)?);
    let divisor = ((second.sqrt()? / update.root_correction)? + EPSILON)?;
    let change = ((&first / divisor)? * update.learning_rate)?.reshape(var.shape())?;
    let new = ((var.as_detached_tensor() * (1.0 - update.decay))? - change)?;
    Ok((Tensor::cat(&[first, second], 0)?, new))
}

fn flat_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    let (start, end) =
        layout.contiguous_offsets().ok_or(candle_core::Error::RequiresContiguous { op: "codec-train" })?;
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        _ => Err(candle_core::Error::UnsupportedDTypeForOp(DType::F64, "codec-train").bt()),
    }
}

/// Moving averages of variables.
///
/// # Source
/// Polyak and Juditsky 1992; the decay grows from zero, so that the start is forgotten
/// (`(1 + step) / (10 + step)`, as in TensorFlow's `ExponentialMovingAverage`).
#[derive(Debug, Default)]
pub struct Average {
    tensors: BTreeMap<String, Tensor>,
}

impl Average {
    /// Takes the variables after step `step`.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn push(&mut self, vars: &BTreeMap<String, Var>, decay: f64, step: u64) -> Result<()> {
        let decay = decay.min((1.0 + step as f64) / (10.0 + step as f64));
        for (name, var) in vars {
            let now = var.as_detached_tensor();
            match self.tensors.get_mut(name) {
                Some(average) if now.device().is_cpu() => average.inplace_op2(&now, &Blend { decay })?,
                Some(average) => *average = ((&*average * decay)? + (now * (1.0 - decay))?)?,
                None => {
                    self.tensors.insert(name.clone(), now.copy()?);
                }
            }
        }
        Ok(())
    }

    /// Begins some rows of an average anew, because the rows of the variable are.
    ///
    /// # Errors
    /// What the tensor library fails with.
    pub fn reset_rows(&mut self, name: &str, var: &Var, rows: &[u32]) -> Result<()> {
        if let Some(average) = self.tensors.get_mut(name) {
            *average = with_rows_of(average, &var.as_detached_tensor(), rows)?;
        }
        Ok(())
    }

    /// Begins an average anew, because the variable is.
    pub fn forget(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// The averages.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Puts back what [`Average::tensors`] gave.
    pub fn restore(&mut self, tensors: BTreeMap<String, Tensor>) {
        self.tensors = tensors;
    }
}

/// An average and what it moves to.
struct Blend {
    decay: f64,
}

impl InplaceOp2 for Blend {
    fn name(&self) -> &'static str {
        "codec-average"
    }

    fn cpu_fwd(
        &self,
        average: &mut CpuStorage,
        layout: &Layout,
        now: &CpuStorage,
        now_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (average, now) = (flat_mut(average, layout)?, flat(now, now_layout)?);
        let (keep, take) = (self.decay as f32, (1.0 - self.decay) as f32);
        average.par_chunks_mut(TASK_LEN).zip(now.par_chunks(TASK_LEN)).for_each(|(average, now)| {
            average.iter_mut().zip(now).for_each(|(average, now)| *average = *average * keep + now * take);
        });
        Ok(())
    }
}

/// A tensor with some of its rows taken from another one of its shape.
pub(crate) fn with_rows_of(old: &Tensor, new: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let n_rows = old.dim(0)?;
    let mut sources: Vec<u32> = (0..n_rows as u32).collect();
    rows.iter().for_each(|&row| sources[row as usize] += n_rows as u32);
    let both = Tensor::cat(&[&old.detach(), &new.detach()], 0)?;
    Ok(both.index_select(&Tensor::from_vec(sources, n_rows, old.device())?, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::testing::{assert_close, noise, values};

    fn config() -> OptimizerConfig {
        OptimizerConfig { weight_decay: 0.1, ..OptimizerConfig::default() }
    }

    #[test]
    fn follows_the_algorithm() {
        let (start, pull) = (noise(1, &[3, 4]), noise(2, &[3, 4]));
        let vars = BTreeMap::from([("w".to_owned(), Var::from_tensor(&start).unwrap())]);
        let mut optimizer = AdamW::new(&config());
        let (mut w, pull_values) = (values(&start), values(&pull));
        let (mut m, mut v) = (vec![0.0; 12], vec![0.0; 12]);
        for step in 0..5 {
            let loss = (vars["w"].as_tensor() - &pull).unwrap().sqr().unwrap().sum_all().unwrap();
            optimizer.step(&vars, &loss.backward().unwrap(), 0.01, 0.5, step).unwrap();
            for i in 0..12 {
                let g = w[i] - pull_values[i];
                m[i] = 0.8 * m[i] + 0.2 * g;
                v[i] = 0.99 * v[i] + 0.01 * g * g;
                let powers = [0.8_f64, 0.99].map(|beta| 1.0 - beta.powi(step as i32 + 1));
                let change = (m[i] / powers[0]) / ((v[i] / powers[1]).sqrt() + EPSILON);
                w[i] = w[i] * (1.0 - 0.01 * 0.1) - 0.01 * change;
            }
        }
        assert_close("weights", &values(vars["w"].as_tensor()), &w, 1e-5);
    }

    #[test]
    fn both_paths_agree() {
        let (start, grad) = (noise(1, &[6, 5]), noise(2, &[30]));
        let var = Var::from_tensor(&start).unwrap();
        let moments = noise(3, &[2, 30]).abs().unwrap();
        let betas = [0.8, 0.99];
        let update = Update { learning_rate: 0.1, root_correction: 0.3, decay: 0.01 };
        let (want_moments, want) = plain(&var, &moments, &(&grad * 0.5).unwrap(), betas, update).unwrap();
        moments.inplace_op2(&grad, &Moments { betas, scale: 0.5 }).unwrap();
        var.inplace_op2(&moments, &update).unwrap();
        assert_close("moments", &values(&moments), &values(&want_moments), 1e-5);
        assert_close("values", &values(&var), &values(&want), 1e-5);
    }

    #[test]
    fn the_length_of_gradients_is_that_of_all_of_them_however_large() {
        let gradient = |scale: f64| {
            let vars: BTreeMap<String, Var> = [("a", 40_000), ("b", 3)]
                .map(|(name, n)| (name.to_owned(), Var::from_tensor(&noise(n as u64, &[n])).unwrap()))
                .into();
            let losses = vars.values().map(|var| (var.as_tensor() * noise(9, var.dims())).unwrap());
            let losses: Vec<Tensor> = losses.map(|xs| xs.sum_all().unwrap()).collect();
            let loss = (Tensor::stack(&losses, 0).unwrap().sum_all().unwrap() * scale).unwrap();
            global_norm(&vars, &loss.backward().unwrap()).unwrap()
        };
        let squares: f64 = [40_000, 3].iter().flat_map(|&n| values(&noise(9, &[n]))).map(|x| x * x).sum();
        for scale in [1.0, 1e30] {
            assert!((gradient(scale) / (scale * squares.sqrt()) - 1.0).abs() < 1e-6);
        }
        assert!(gradient(f64::NAN).is_nan());
    }

    #[test]
    fn new_rows_forget() {
        let vars = BTreeMap::from([("w".to_owned(), Var::from_tensor(&noise(1, &[3, 2])).unwrap())]);
        let mut optimizer = AdamW::new(&config());
        let loss = vars["w"].as_tensor().sqr().unwrap().sum_all().unwrap();
        optimizer.step(&vars, &loss.backward().unwrap(), 0.01, 1.0, 0).unwrap();
        optimizer.forget_rows("w", 3, &[1]).unwrap();
        let moments = values(&optimizer.tensors()["w"]);
        let zero: Vec<bool> = moments.iter().map(|x| *x == 0.0).collect();
        assert_eq!(zero, [false, false, true, true, false, false].repeat(2));
    }

    #[test]
    fn averages_start_at_the_first_value() {
        let var = Var::from_tensor(&noise(1, &[4])).unwrap();
        let vars = BTreeMap::from([("w".to_owned(), var.clone())]);
        let mut average = Average::default();
        average.push(&vars, 0.5, 0).unwrap();
        let first = values(&var);
        var.set(&(var.as_tensor() + 1.0).unwrap()).unwrap();
        average.push(&vars, 0.5, 1000).unwrap();
        let want: Vec<f64> = first.iter().map(|x| x + 0.5).collect();
        assert_close("average", &values(&average.tensors()["w"]), &want, 1e-6);
    }

    #[test]
    fn new_rows_of_an_average_are_those_of_the_variable() {
        let var = Var::from_tensor(&noise(1, &[4, 2])).unwrap();
        let vars = BTreeMap::from([("w".to_owned(), var.clone())]);
        let mut average = Average::default();
        average.push(&vars, 0.9, 1000).unwrap();
        let old = values(&var);
        var.set(&noise(2, &[4, 2])).unwrap();
        average.reset_rows("w", &var, &[1, 3]).unwrap();
        average.reset_rows("not averaged", &var, &[1]).unwrap();
        let (got, new) = (values(&average.tensors()["w"]), values(&var));
        assert_eq!([&got[..2], &got[4..6]], [&old[..2], &old[4..6]]);
        assert_eq!([&got[2..4], &got[6..]], [&new[2..4], &new[6..]]);
        average.forget("w");
        average.push(&vars, 0.9, 1000).unwrap();
        assert_eq!(values(&average.tensors()["w"]), new);
    }
}
