//! Variables: the tensors of a model while it trains.
//!
//! A model is built from [`Weights`] whether it runs or trains. Weights that are tied to variables hand
//! out the variables themselves, so that gradients reach them; each variable is made the first time that
//! the model asks for it, from the checkpoint, or by a rule where the checkpoint has no tensors.

use super::Weights;
use crate::error::{Error, Result};
use candle_core::{Device, Tensor, TensorId, Var};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The variables of one model, by the names of its tensors.
///
/// Clones share the variables.
#[derive(Clone, Debug)]
pub struct Variables {
    shared: Arc<Mutex<Shared>>,
    device: Device,
    /// Seed of the tensors that no checkpoint has; without one they are missing.
    seed: Option<u64>,
}

#[derive(Debug, Default)]
struct Shared {
    by_name: BTreeMap<String, Var>,
    constants: BTreeMap<String, Tensor>,
    names: HashMap<TensorId, String>,
    frozen: Vec<String>,
}

impl Variables {
    /// No variables yet; they start as the checkpoint's tensors.
    pub fn new(device: &Device) -> Self {
        Self { shared: Arc::default(), device: device.clone(), seed: None }
    }

    /// No variables yet; those that the checkpoint lacks start from random numbers.
    ///
    /// What a new tensor holds follows from its name and shape as PyTorch would start it: weights, and the
    /// biases beside them, are uniform within `1 / sqrt(fan in)`, those of LSTMs within `1 / sqrt(width)`, gains
    /// of norms and the alphas of Snake one, shifts of norms zero, codebooks normal, matrices beside a network
    /// the identity. Convolutions get weight normalization, with the norms of their weights as gains. A network
    /// that starts otherwise says so by [`Weights::zeros_if_new`] and [`Weights::with_new_gain`]. The numbers
    /// depend on the seed and the tensor's name alone.
    pub fn seeded(device: &Device, seed: u64) -> Self {
        Self { seed: Some(seed), ..Self::new(device) }
    }

    /// Keeps the tensors whose names start with `prefix` as they are: they get no gradient.
    pub fn freeze(&self, prefix: impl Into<String>) {
        self.lock().frozen.push(prefix.into());
    }

    /// All variables, by name.
    pub fn all(&self) -> BTreeMap<String, Var> {
        self.lock().by_name.clone()
    }

    /// What the model reads beside its variables and no training moves, by name.
    pub fn constants(&self) -> BTreeMap<String, Tensor> {
        self.lock().constants.clone()
    }

    /// The variables that are not frozen, by name.
    pub fn trainable(&self) -> BTreeMap<String, Var> {
        let shared = self.lock();
        let is_free = |name: &str| !shared.frozen.iter().any(|prefix| name.starts_with(prefix.as_str()));
        let free = shared.by_name.iter().filter(|(name, _)| is_free(name));
        free.map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// The name and the variable whose tensor this is, if it is one as [`Weights::get`] gave it.
    pub fn of(&self, tensor: &Tensor) -> Option<(String, Var)> {
        let shared = self.lock();
        let name = shared.names.get(&tensor.id())?;
        Some((name.clone(), shared.by_name.get(name)?.clone()))
    }

    /// Whether tensors without a checkpoint are made.
    pub(super) fn are_seeded(&self) -> bool {
        self.seed.is_some()
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.lock().by_name.contains_key(name)
    }

    /// Remembers what the model read as a constant.
    pub(super) fn put_constant(&self, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
        let tensor = Tensor::from_slice(values, shape, &self.device)?;
        self.lock().constants.insert(name.to_owned(), tensor);
        Ok(())
    }

    /// The variable of this name, made from `stored` or by rule if there is none.
    pub(super) fn get(
        &self,
        shape: &[usize],
        name: &str,
        stored: impl FnOnce() -> Option<Result<Vec<f32>>>,
    ) -> Result<Tensor> {
        let known = self.lock().by_name.get(name).cloned();
        if let Some(var) = known {
            if var.dims() != shape {
                let (expected, actual) = (shape.to_vec(), var.dims().to_vec());
                return Err(Error::Shape { name: name.to_owned(), expected, actual });
            }
            return Ok(self.tensor(name, &var));
        }
        let values = match (stored(), self.seed) {
            (Some(values), _) => values?,
            (None, Some(seed)) => initial(shape, name, seed, self.fan_in_beside(name))?,
            (None, None) => return Err(Error::MissingTensors { names: vec![name.to_owned()] }),
        };
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, &self.device)?)?;
        let mut shared = self.lock();
        shared.names.insert(var.id(), name.to_owned());
        shared.by_name.insert(name.to_owned(), var.clone());
        drop(shared);
        Ok(self.tensor(name, &var))
    }

    /// Inputs of each output of the weight that a bias goes with, if it is there yet; a norm's has none.
    fn fan_in_beside(&self, name: &str) -> Option<usize> {
        let (folder, last) = name.rsplit_once('.').map_or(("", name), |(folder, last)| (folder, last));
        let rest = last.strip_prefix("bias")?;
        let weight = match rest.strip_prefix("_ih").or_else(|| rest.strip_prefix("_hh")) {
            // Of an LSTM, whose bounds follow from its width.
            Some(layer) => format!("weight_hh{layer}"),
            None => format!("weight{rest}"),
        };
        let shared = self.lock();
        let spellings = [weight.clone(), format!("parametrizations.{weight}.original1"), weight + "_v"];
        let beside = spellings.iter().find_map(|weight| {
            let path = if folder.is_empty() { weight.clone() } else { format!("{folder}.{weight}") };
            shared.by_name.get(&path)
        });
        beside.filter(|weight| weight.rank() > 1).map(|weight| fan_in(weight.dims()))
    }

    /// The variable as the model sees it.
    fn tensor(&self, name: &str, var: &Var) -> Tensor {
        let is_frozen = self.lock().frozen.iter().any(|prefix| name.starts_with(prefix.as_str()));
        if is_frozen { var.as_detached_tensor() } else { var.as_tensor().clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Weights {
    /// The same tensors, tied to `variables`: what a model reads from here on are variables.
    #[must_use]
    pub fn trained(&self, variables: &Variables) -> Self {
        Self { variables: Some(variables.clone()), ..self.clone() }
    }
}

/// Inputs of each output of a weight.
fn fan_in(shape: &[usize]) -> usize {
    shape.iter().skip(1).product::<usize>().max(1)
}

/// What a new tensor holds; `fan_in_beside` is that of the weight beside a bias.
fn initial(shape: &[usize], name: &str, seed: u64, fan_in_beside: Option<usize>) -> Result<Vec<f32>> {
    let n = shape.iter().product::<usize>();
    let last = name.rsplit('.').next().unwrap_or(name);
    let mut rng = Numbers::new(seed, name);
    let is_matrix = shape.iter().filter(|&&dim| dim > 1).count() > 1 || shape.len() > 1;
    Ok(match last {
        "beta" => vec![0.0; n],
        _ if last.starts_with("bias") => match fan_in_beside {
            Some(fan_in) => rng.within(fan_in, n),
            None => vec![0.0; n],
        },
        "embed" | "codebook" | "embed_sum" => (0..n).map(|_| rng.normal()).collect(),
        // What stands beside a network passes on what it can.
        "weight" if name.ends_with("shortcut.weight") && shape.len() == 2 => identity(shape),
        "weight" if name.ends_with("codebook.weight") => (0..n).map(|_| rng.normal()).collect(),
        "alpha" | "gamma" | "cluster_usage" => vec![1.0; n],
        // LayerScale: a block starts near the identity.
        "scale" => vec![0.01; n],
        // Of an LSTM: four gates of its width.
        _ if last.starts_with("weight_ih_l") => rng.within(shape.first().map_or(1, |&n| n / 4), n),
        _ if is_matrix && (last.starts_with("weight") || last == "original1") => rng.within(fan_in(shape), n),
        "weight" => vec![1.0; n],
        _ => {
            let why = format!("there is no rule for how a new tensor `{name}` starts");
            return Err(Error::Config { field: "names", why });
        }
    })
}

/// Ones on the diagonal of a matrix.
fn identity(shape: &[usize]) -> Vec<f32> {
    let columns = shape.last().copied().unwrap_or(1).max(1);
    (0..shape.iter().product()).map(|i| if i / columns == i % columns { 1.0 } else { 0.0 }).collect()
}

/// Random numbers that depend on a seed and a name (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64, name: &str) -> Self {
        // FNV-1a spreads the name; the seed moves the whole sequence.
        let hash = name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        Self(hash ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    }

    /// `n` numbers within `1 / sqrt(fan_in)`.
    fn within(&mut self, fan_in: usize, n: usize) -> Vec<f32> {
        let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
        (0..n).map(|_| bound * self.uniform()).collect()
    }

    /// Mean 0, variance 1 (Box and Muller 1958).
    fn normal(&mut self) -> f32 {
        let radius = (1.0 - (self.next() >> 11) as f64 / (1_u64 << 53) as f64).ln();
        let angle = (self.next() >> 11) as f64 / (1_u64 << 53) as f64 * std::f64::consts::TAU;
        ((-2.0 * radius).sqrt() * angle.cos()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn empty() -> Weights {
        Weights::from_bytes(b"\x02\0\0\0\0\0\0\0{}".to_vec(), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_variable_is_made_once_and_seen_again() {
        let variables = Variables::seeded(&Device::Cpu, 1);
        let weights = empty().trained(&variables).pp("net");
        let first = weights.get((4, 3), "weight").unwrap();
        assert!(first.track_op());
        assert_eq!(variables.of(&first).unwrap().0, "net.weight");
        variables.all()["net.weight"].set(&Tensor::ones((4, 3), DType::F32, &Device::Cpu).unwrap()).unwrap();
        let again = weights.get((4, 3), "weight").unwrap();
        assert_eq!(again.sum_all().unwrap().to_scalar::<f32>().unwrap(), 12.0);
        assert!(matches!(weights.get((3, 4), "weight"), Err(Error::Shape { .. })));
        assert!(matches!(weights.get(3, "what"), Err(Error::Config { .. })));
    }

    #[test]
    fn new_tensors_follow_seed_name_and_fan_in() {
        let values = |seed, name| -> Vec<f32> {
            let weights = empty().trained(&Variables::seeded(&Device::Cpu, seed));
            weights.get((64, 25, 4), name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let weight = values(1, "a.weight");
        assert_eq!(weight, values(1, "a.weight"));
        assert_ne!(weight, values(2, "a.weight"));
        assert_ne!(weight, values(1, "b.weight"));
        let variance = weight.iter().map(|x| x * x).sum::<f32>() / weight.len() as f32;
        assert!(weight.iter().all(|x| x.abs() <= 0.1) && (variance * 300.0 - 1.0).abs() < 0.05);
        let codebook = values(1, "vq.embed");
        let variance = codebook.iter().map(|x| x * x).sum::<f32>() / codebook.len() as f32;
        assert!((variance - 1.0).abs() < 0.05, "{variance}");
    }

    #[test]
    fn a_new_convolution_starts_as_if_it_were_not_normalized() {
        let variables = Variables::seeded(&Device::Cpu, 1);
        let weights = empty().trained(&variables);
        let weight = weights.conv_weight((64, 25, 4), "weight").unwrap();
        let direction = variables.all()["parametrizations.weight.original1"].as_detached_tensor();
        let differences = (weight - direction).unwrap().abs().unwrap().flatten_all().unwrap();
        assert!(differences.max(0).unwrap().to_scalar::<f32>().unwrap() < 1e-7);
        // Unless its network has a gain of its own.
        let kept = weights.with_new_gain(0.5).pp("kept").conv_weight((64, 25, 4), "weight").unwrap();
        let norms = kept.flatten_from(1).unwrap().sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
        assert!((norms.mean_all().unwrap().to_scalar::<f32>().unwrap() - 0.5).abs() < 1e-6);
    }

    #[test]
    fn new_biases_lie_within_the_bound_of_their_weights() {
        let weights = empty().trained(&Variables::seeded(&Device::Cpu, 1));
        let bias = |weights: &Weights, name: &str| -> Vec<f32> {
            let bias =
                if name == "zeros" { weights.zeros_if_new(400, "bias") } else { weights.get(400, name) };
            bias.unwrap().to_vec1().unwrap()
        };
        let largest = |bias: &[f32]| bias.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let (matrix, conv, lstm) = (weights.pp("matrix"), weights.pp("conv"), weights.pp("lstm"));
        matrix.get((400, 16), "weight").unwrap();
        conv.conv_weight((400, 25, 4), "weight").unwrap();
        for (name, width) in [("weight_ih_l0", 7), ("weight_hh_l0", 100)] {
            let weight = lstm.get((400, width), name).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!((0.099..=0.1).contains(&largest(&weight)), "{name}");
        }
        for (bias, bound) in [
            (bias(&matrix, "bias"), 0.25),
            (bias(&conv, "bias"), 0.1),
            (bias(&lstm, "bias_ih_l0"), 0.1),
            (bias(&lstm, "bias_hh_l0"), 0.1),
        ] {
            assert!((0.97 * bound..=bound).contains(&largest(&bias)), "{} of {bound}", largest(&bias));
        }
        // Those of norms, of no weight, and where the family says so.
        let norm = weights.pp("norm");
        norm.get(400, "weight").unwrap();
        let other = weights.pp("other");
        other.get((400, 16), "weight").unwrap();
        for bias in [bias(&norm, "bias"), bias(&weights.pp("alone"), "bias"), bias(&other, "zeros")] {
            assert_eq!(bias, [0.0; 400]);
        }
    }

    #[test]
    fn a_checkpoint_without_a_tensor_lacks_it() {
        let weights = empty().trained(&Variables::new(&Device::Cpu));
        assert!(matches!(weights.get(3, "bias"), Err(Error::MissingTensors { .. })));
    }

    #[test]
    fn frozen_tensors_track_nothing() {
        let variables = Variables::seeded(&Device::Cpu, 1);
        variables.freeze("encoder.");
        let weights = empty().trained(&variables);
        assert!(!weights.get((2, 2), "encoder.weight").unwrap().track_op());
        assert!(weights.get((2, 2), "decoder.weight").unwrap().track_op());
        assert_eq!(variables.trainable().into_keys().collect::<Vec<_>>(), ["decoder.weight"]);
    }
}
