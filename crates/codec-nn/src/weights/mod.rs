//! Checkpoints: a tree of named tensors, read strictly.
//!
//! What a file is, its bytes say, not its name: safetensors, the zip archive of `torch.save`, the
//! older row of pickles and the archives of NeMo are told apart by their first bytes. Pickles are read without executing
//! anything. A tensor that is missing is an error that names it, and [`Weights::finish`] names every
//! tensor that the model never read.

mod checkpoint;
mod nemo;
mod source;
mod state_dict;
mod torch;
mod variables;

pub use checkpoint::Checkpoint;
pub(crate) use checkpoint::model_type;
pub use variables::Variables;

use crate::error::{Error, Result};
use crate::ops;
use candle_core::{DType, Device, Shape, Tensor};
use source::Source;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A checkpoint seen as a directory of tensors.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use codec_nn::weights::Weights;
/// let bias = Tensor::new(&[0.5f32, 1.0], &Device::Cpu)?;
/// let file = safetensors::serialize([("encoder.bias", bias)], None)?;
///
/// let weights = Weights::from_bytes(file, &Device::Cpu)?;
/// let bias = weights.pp("encoder").get(2, "bias")?;
/// assert_eq!(bias.to_vec1::<f32>()?, [0.5, 1.0]);
/// weights.finish(&[])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Weights {
    shared: Arc<Shared>,
    /// Empty, or a path that ends with a dot.
    prefix: String,
    /// What is handed out instead of tensors while a model trains.
    variables: Option<Variables>,
    /// The gain of a new normalized weight; by default the norm of its rows.
    new_gain: Option<f32>,
    /// Where what is asked for and not there is written down, see [`Checkpoint::surveyed`].
    survey: Option<Survey>,
}

/// What a model asks of a checkpoint, and which of it is there.
///
/// A model asks for one tensor after the other and ends at the first that is missing. In a survey it is given
/// ones instead, so that all that are missing come to light.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey(Arc<Mutex<Findings>>);

/// What a survey found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    /// Paths of the tensors that were asked for and are there.
    pub(crate) fitting: BTreeSet<String>,
    /// Those that are not.
    pub(crate) missing: BTreeSet<String>,
    /// Those that are there and were not asked for.
    pub(crate) unknown: BTreeSet<String>,
    /// Numbers that were made up.
    n_made_up: usize,
}

impl Survey {
    /// What it found so far.
    pub(crate) fn findings(&self) -> Findings {
        self.lock().clone()
    }

    /// Numbers in the place of a tensor that is missing, unless it is larger than a wrong configuration may make
    /// us allocate.
    fn made_up(&self, shape: &[usize], path: &str) -> Option<Vec<f32>> {
        let mut findings = self.lock();
        findings.missing.insert(path.to_owned());
        let n_values = shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim))?;
        findings.n_made_up =
            findings.n_made_up.checked_add(n_values).filter(|&n_made_up| n_made_up <= MAX_MADE_UP)?;
        Some(vec![1.0; n_values])
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Findings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers that a survey makes up: 256 MB, more than any model here lacks but for its largest tensors.
const MAX_MADE_UP: usize = 1 << 26;

#[derive(Debug)]
struct Shared {
    entries: BTreeMap<String, Entry>,
    read: Mutex<BTreeSet<String>>,
    device: Device,
}

/// One tensor: where its elements lie.
#[derive(Clone, Debug)]
struct Entry {
    /// From the first element to the end of the storage.
    data: Source,
    dtype: Dtype,
    shape: Vec<usize>,
    /// In elements; `None` for row-major.
    strides: Option<Vec<usize>>,
}

#[derive(Clone, Debug)]
enum Dtype {
    Float(DType),
    /// A type that weights do not have, by its name.
    Other(String),
}

impl Weights {
    /// Opens the checkpoint at `path`: a weights file, or a directory that holds one or its shards.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::Unrecognized`] when there are no tensors.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let checkpoint = Checkpoint::open(path, device)?;
        checkpoint.weights().cloned().ok_or_else(|| checkpoint.unrecognized())
    }

    /// Takes the bytes of one weights file.
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::Unsupported`] when the bytes are no weights file.
    pub fn from_bytes(bytes: Vec<u8>, device: &Device) -> Result<Self> {
        Ok(Self::new(checkpoint::read_tensors(&Source::new(bytes))?.entries, device))
    }

    fn new(entries: BTreeMap<String, Entry>, device: &Device) -> Self {
        let shared = Shared { entries, read: Mutex::default(), device: device.clone() };
        Self {
            shared: Arc::new(shared),
            prefix: String::new(),
            variables: None,
            new_gain: None,
            survey: None,
        }
    }

    /// The directory `name` below this one ("push prefix").
    pub fn pp(&self, name: impl Display) -> Self {
        let prefix = format!("{}{name}.", self.prefix);
        Self { shared: Arc::clone(&self.shared), prefix, ..self.clone() }
    }

    /// The same tensors, for a network whose new normalized weights start with this gain instead of the one that
    /// they would have without normalization.
    #[must_use]
    pub fn with_new_gain(&self, gain: f32) -> Self {
        Self { new_gain: Some(gain), ..self.clone() }
    }

    /// The same tensors under other names; `rename` sees whole names.
    ///
    /// # Errors
    /// [`Error::Config`] when two tensors get one name.
    pub fn renamed(&self, rename: impl Fn(&str) -> String) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for (old, entry) in &self.shared.entries {
            let new = rename(old);
            if entries.contains_key(&new) {
                let why = format!("two tensors of the checkpoint mean {new}");
                return Err(Error::Config { field: "names", why });
            }
            entries.insert(new, entry.clone());
        }
        Ok(self.holding(entries))
    }

    /// The tensors but those that the model has no use for; `is_useless` sees whole names.
    pub fn without(&self, is_useless: impl Fn(&str) -> bool) -> Self {
        let entries = self.shared.entries.iter().filter(|(name, _)| !is_useless(name));
        let entries = entries.map(|(name, entry)| (name.clone(), entry.clone())).collect();
        self.holding(entries)
    }

    /// The same tensors, some of them with their dimensions in another order: `order` sees whole names and
    /// gives, for each new dimension, the old one that it is.
    ///
    /// # Errors
    /// [`Error::Shape`] when an order has another number of dimensions than its tensor.
    pub fn permuted(&self, order: impl Fn(&str) -> Option<&'static [usize]>) -> Result<Self> {
        let mut entries = self.shared.entries.clone();
        for (name, entry) in &mut entries {
            let Some(order) = order(name) else { continue };
            let strides = entry.strides.clone().unwrap_or_else(|| row_major(&entry.shape));
            let by_order = |sizes: &[usize]| -> Option<Vec<usize>> {
                let sizes = order.iter().map(|&dim| sizes.get(dim).copied()).collect::<Option<Vec<_>>>()?;
                (sizes.len() == entry.shape.len()).then_some(sizes)
            };
            let (Some(shape), Some(strides)) = (by_order(&entry.shape), by_order(&strides)) else {
                let (name, expected) = (name.clone(), order.to_vec());
                return Err(Error::Shape { name, expected, actual: entry.shape.clone() });
            };
            (entry.shape, entry.strides) = (shape, Some(strides));
        }
        Ok(self.holding(entries))
    }

    /// Other tensors in the same place.
    fn holding(&self, entries: BTreeMap<String, Entry>) -> Self {
        Self { shared: Self::new(entries, &self.shared.device).shared, ..self.clone() }
    }

    /// The device that tensors are put on.
    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        let is_variable = |variables: &Variables| variables.contains(&self.path(name));
        self.contains_stored(name) || self.variables.as_ref().is_some_and(is_variable)
    }

    fn contains_stored(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// The shape of a tensor of the checkpoint, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shared.entries.get(&self.path(name)).map(|entry| entry.shape.as_slice())
    }

    /// Whether there is no tensor here, and those that are asked for are made.
    pub(crate) fn are_new(&self) -> bool {
        self.shared.entries.is_empty() && self.variables.as_ref().is_some_and(Variables::are_seeded)
    }

    /// The names of the tensors below this directory, relative to it, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shared.entries.keys().filter_map(|name| name.strip_prefix(self.prefix.as_str()))
    }

    /// Reads a tensor as f32; of a network that is not wanted it is none, but a placeholder of its shape.
    ///
    /// # Errors
    /// [`Error::MissingTensors`] when it is not there, [`Error::Shape`] when its shape is not `shape`,
    /// [`Error::Unsupported`] when it does not hold floats, [`Error::NotFinite`] when a value is not
    /// finite.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        let shape = shape.into();
        if let Some(variables) = &self.variables {
            let stored = || self.contains_stored(name).then(|| self.stored(shape.dims(), name));
            return variables.get(shape.dims(), &self.path(name), stored);
        }
        if ops::is_unwanted() {
            return self.unread(shape, name);
        }
        let values = self.stored(shape.dims(), name)?;
        Ok(Tensor::from_vec(values, shape, self.device())?)
    }

    /// Reads a tensor's values in row-major order. No training moves them.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn values(&self, shape: &[usize], name: &str) -> Result<Vec<f32>> {
        let values = self.stored(shape, name)?;
        if let Some(variables) = &self.variables {
            variables.put_constant(&self.path(name), shape, &values)?;
        }
        Ok(values)
    }

    /// As [`Weights::values`] for a list that a new model has to begin with.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn values_or(&self, name: &str, of_new: &[f32]) -> Result<Vec<f32>> {
        match &self.variables {
            Some(variables) if variables.are_seeded() && !self.contains_stored(name) => {
                variables.put_constant(&self.path(name), &[of_new.len()], of_new)?;
                Ok(of_new.to_vec())
            }
            _ => self.values(&[of_new.len()], name),
        }
    }

    /// As [`Weights::get`] for a tensor that a new model has to begin with as zeros, whatever its name says.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn zeros_if_new(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        let shape = shape.into();
        match &self.variables {
            Some(variables) if variables.are_seeded() && !self.contains_stored(name) => {
                variables.get(shape.dims(), &self.path(name), || Some(Ok(vec![0.0; shape.elem_count()])))
            }
            _ => self.get(shape, name),
        }
    }

    /// A tensor that nobody will compute with: one that fits the checkpoint's and takes no memory.
    fn unread(&self, shape: Shape, name: &str) -> Result<Tensor> {
        let path = self.path(name);
        self.entry(shape.dims(), &path)?.dtype(&path)?;
        self.note_read(path);
        ops::placeholder(shape, self.device())
    }

    /// Reads the checkpoint.
    fn stored(&self, shape: &[usize], name: &str) -> Result<Vec<f32>> {
        let path = self.path(name);
        let entry = match self.entry(shape, &path) {
            Err(missing @ Error::MissingTensors { .. }) => {
                let made_up = self.survey.as_ref().and_then(|survey| survey.made_up(shape, &path));
                return made_up.ok_or(missing);
            }
            entry => entry?,
        };
        let values = entry.values(&path)?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite { name: path, index });
        }
        if let Some(survey) = &self.survey {
            survey.lock().fitting.insert(path.clone());
        }
        self.note_read(path);
        Ok(values)
    }

    /// The tensor at a path, which has to have this shape.
    fn entry(&self, shape: &[usize], path: &str) -> Result<&Entry> {
        let missing = || Error::MissingTensors { names: vec![path.to_owned()] };
        let entry = self.shared.entries.get(path).ok_or_else(missing)?;
        if entry.shape != shape {
            let (name, expected) = (path.to_owned(), shape.to_vec());
            return Err(Error::Shape { name, expected, actual: entry.shape.clone() });
        }
        Ok(entry)
    }

    fn note_read(&self, path: String) {
        self.shared.read.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
    }

    /// Reads the weight of a convolution, folding weight normalization in any of its spellings:
    /// `NAME_g` and `NAME_v`, `parametrizations.NAME.original0` and `original1`, or `NAME` alone.
    ///
    /// The norm runs over all dimensions but the first, in f64, in order.
    ///
    /// # Shapes
    /// The weight: `shape`; the gain: `[shape[0], 1, ...]`.
    ///
    /// # Errors
    /// As [`Weights::get`]; [`Error::NotFinite`] also when a row to normalize is zero.
    ///
    /// # Source
    /// Salimans and Kingma 2016, equation 2, `w = g v / |v|`; `torch.nn.utils.weight_norm`, dim 0.
    pub fn conv_weight(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        let spellings = [
            (format!("{name}_g"), format!("{name}_v")),
            (format!("parametrizations.{name}.original0"), format!("parametrizations.{name}.original1")),
        ];
        let is_new = || !self.contains(name) && self.variables.as_ref().is_some_and(Variables::are_seeded);
        let found = spellings.iter().find(|(_, v)| self.contains(v));
        let Some((gain_name, direction_name)) = found.or_else(|| spellings.last().filter(|_| is_new()))
        else {
            return self.get(shape, name);
        };
        let shape = shape.into();
        let mut gain_shape = vec![1; shape.rank()];
        if let (Some(gain_rows), Some(&rows)) = (gain_shape.first_mut(), shape.dims().first()) {
            *gain_rows = rows;
        }
        if let Some(variables) = &self.variables {
            let direction = self.get(shape, direction_name)?;
            let new = || match self.new_gain {
                Some(gain) => Ok(vec![gain; gain_shape.iter().product()]),
                None => ops::row_norms(&direction),
            };
            let stored = || match self.contains_stored(gain_name) {
                true => Some(self.stored(&gain_shape, gain_name)),
                false => variables.are_seeded().then(new),
            };
            return ops::weight_norm(&direction, &variables.get(&gain_shape, &self.path(gain_name), stored)?);
        }
        if ops::is_unwanted() {
            self.unread(Shape::from(gain_shape), gain_name)?;
            return self.unread(shape, direction_name);
        }
        let gains = self.values(&gain_shape, gain_name)?;
        let mut weight = self.values(shape.dims(), direction_name)?;
        ops::fold_weight_norm(&gains, &mut weight).map_err(|row_idx| Error::NotFinite {
            name: self.path(name),
            index: row_idx * (weight.len() / gains.len().max(1)),
        })?;
        Ok(Tensor::from_vec(weight, shape, self.device())?)
    }

    /// Ends the loading: every tensor below this directory must have been read.
    ///
    /// `ignored` holds last parts of names, such as `cluster_size`, that the model has no use for.
    ///
    /// # Errors
    /// [`Error::UnreadTensors`] with the names of the others.
    pub fn finish(&self, ignored: &[&str]) -> Result<()> {
        let read = self.shared.read.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ignored = |name: &str| ignored.contains(&name.rsplit('.').next().unwrap_or(name));
        let mut names: Vec<_> =
            self.names().filter(|name| !is_ignored(name)).map(|name| self.path(name)).collect();
        names.retain(|path| !read.contains(path));
        if let Some(survey) = &self.survey {
            survey.lock().unknown.extend(names.iter().cloned());
        }
        if names.is_empty() { Ok(()) } else { Err(Error::UnreadTensors { names }) }
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl Entry {
    /// The type of the floats.
    fn dtype(&self, path: &str) -> Result<DType> {
        match &self.dtype {
            Dtype::Float(dtype) => Ok(*dtype),
            Dtype::Other(name) => {
                Err(Error::Unsupported { what: "type of a weight", value: format!("{name} of {path}") })
            }
        }
    }

    fn values(&self, path: &str) -> Result<Vec<f32>> {
        let dtype = self.dtype(path)?;
        let n_elements = self.shape.iter().product::<usize>();
        let size = dtype.size_in_bytes();
        let strides = self.strides.as_deref().filter(|strides| !is_row_major(&self.shape, strides));
        let dense = match strides {
            None => {
                let outside = || Error::Format {
                    what: "weights",
                    offset: self.data.len(),
                    why: format!("{path} ends too early"),
                };
                let data = self.data.part(0..n_elements * size).ok_or_else(outside)?;
                if dtype == DType::F32 {
                    // What most checkpoints hold: one pass over the bytes.
                    let mut values = Vec::with_capacity(n_elements);
                    let word = |word: &[u8; 4]| f32::from_le_bytes(*word);
                    data.pieces(|piece| values.extend(piece.as_chunks().0.iter().map(word)))?;
                    return Ok(values);
                }
                data.read()?.into_owned()
            }
            Some(strides) => gather(&self.data.read()?, size, &self.shape, strides),
        };
        let tensor = Tensor::from_raw_buffer(&dense, dtype, &[n_elements], &Device::Cpu)?;
        Ok(tensor.to_dtype(DType::F32)?.to_vec1()?)
    }
}

/// The strides of a tensor without gaps, in elements.
fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i]);
    }
    strides
}

fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&dim, &stride)| {
        let fits = dim == 1 || stride == expected;
        expected *= dim;
        fits
    }) || shape.contains(&0)
}

/// Copies a strided view into row-major order; the view was checked against its storage.
fn gather(data: &[u8], size: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let n_elements = shape.iter().product::<usize>();
    let mut out = Vec::with_capacity(n_elements * size);
    for element_idx in 0..n_elements {
        let mut rest = element_idx;
        let mut at = 0;
        for (&dim, &stride) in shape.iter().zip(strides).rev() {
            at += rest % dim * stride;
            rest /= dim;
        }
        out.extend_from_slice(&data[at * size..(at + 1) * size]);
    }
    out
}
