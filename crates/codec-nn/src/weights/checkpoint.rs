//! What lies at a path: weights with their configuration, or the parts of a TFLite codec.

use super::source::Source;
use super::{Dtype, Entry, Survey, Weights, nemo, torch};
use crate::LoadOptions;
use crate::error::{Error, Result};
use candle_core::{DType, Device};
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const CONFIG: &str = "config.json";
/// Weights of a directory, the first that exists; an index lists the shards.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// Names that weights have where a directory does not follow a convention.
const WEIGHTS_EXTENSIONS: [&str; 7] = ["safetensors", "th", "pth", "pt", "bin", "ckpt", "nemo"];
/// Key of the configuration in the metadata of a safetensors file.
const CONFIG_KEY: &str = "config";

/// Names of modules that training programs put around a whole model.
const WRAPPERS: [&str; 5] = ["module.", "_orig_mod.", "model.", "codec.", "generator."];
/// Tensors that an error names when it says what was found.
const N_NAMES_SHOWN: usize = 5;
/// Longest header of a safetensors file, as its library has it.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// Bytes from which on a thread computes their digest while the model is built.
const WORTH_A_THREAD: usize = 1 << 20;

/// A checkpoint before its family is known.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Option<String>,
    /// Where the configuration was found.
    config_place: ConfigPlace,
    metadata: Option<String>,
    /// Kinds of its weights files.
    formats: BTreeSet<&'static str>,
    weights: Option<Weights>,
    parts: BTreeMap<String, Arc<Vec<u8>>>,
    digests: Digests,
    options: LoadOptions,
}

/// Where the configuration of a checkpoint was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConfigPlace {
    /// In a weights file, or the caller gave it.
    Inside,
    /// In a file of the checkpoint.
    File,
    /// In a file beside the weights file that was asked for, which need not belong to it.
    Beside,
}

type ByName = BTreeMap<String, [u8; 32]>;

/// SHA-256 of each file with weights, by its name, computed beside the loading.
#[derive(Clone, Debug)]
struct Digests {
    files: Vec<(String, Source)>,
    by_name: Arc<OnceLock<Result<ByName>>>,
}

impl Digests {
    /// Begins to compute them.
    fn of(files: Vec<(String, Source)>) -> Self {
        let digests = Self { files, by_name: Arc::default() };
        if digests.files.iter().map(|(_, source)| source.len()).sum::<usize>() > WORTH_A_THREAD {
            let beside = digests.clone();
            // Without a thread they are computed when they are wanted.
            let compute = move || {
                beside.computed();
            };
            std::thread::Builder::new().spawn(compute).ok();
        }
        digests
    }

    /// Waits for them.
    fn get(&self) -> Result<&ByName> {
        self.computed().as_ref().map_err(|error| match error {
            // Which cannot be cloned whole.
            Error::Io { path, source } => io_error(path, source.kind().into()),
            other => Error::Format { what: "weights", offset: 0, why: other.to_string() },
        })
    }

    fn computed(&self) -> &Result<ByName> {
        let digest = |(name, source): &(String, Source)| {
            let mut sha256 = Sha256::new();
            source.pieces(|piece| sha256.update(piece))?;
            Ok((name.clone(), sha256.finalize().into()))
        };
        self.by_name.get_or_init(|| self.files.iter().map(digest).collect())
    }
}

impl Checkpoint {
    /// Opens what lies at `path`: a directory with `config.json` and weights as Hugging Face saves
    /// them (whole or in shards), a directory of `.tflite` files, or one weights file, whose
    /// configuration is in its metadata or in a `config.json` beside it.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read, [`Error::Format`] or [`Error::Unsupported`] when a
    /// file is broken or of an unknown kind, [`Error::Unrecognized`] when a directory holds neither
    /// weights nor TFLite files.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|source| io_error(path, source))?;
        if metadata.is_dir() {
            return Self::open_dir(path, device);
        }
        let config = read_config(path.parent().unwrap_or(Path::new("")))?;
        let checkpoint = Self::from_files(path, vec![path.to_owned()], config, device)?;
        let config_place = match checkpoint.config_place {
            ConfigPlace::File => ConfigPlace::Beside,
            place => place,
        };
        Ok(Self { config_place, ..checkpoint })
    }

    /// Opens exactly these files: weights in one or more files, with or without a `config.json`, or
    /// `.tflite` files. What lies beside them is not looked at.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_files(files: &[PathBuf], device: &Device) -> Result<Self> {
        let path = files.first().and_then(|file| file.parent()).unwrap_or(Path::new(""));
        let is = |file: &&PathBuf, extension: &str| file.extension().is_some_and(|e| e == extension);
        let parts: BTreeMap<_, _> = files
            .iter()
            .filter(|file| is(file, "tflite"))
            .map(|file| Ok((file_name(file), Arc::new(read_file(file)?))))
            .collect::<Result<_>>()?;
        if !parts.is_empty() {
            return Ok(Self::from_parts(path, parts));
        }
        let config = files.iter().find(|file| file_name(file) == CONFIG).map(|file| read_text(file));
        let weights = files.iter().filter(|file| !is(file, "json")).cloned().collect();
        Self::from_files(path, weights, config.transpose()?, device)
    }

    /// Takes the bytes of one weights file; its metadata may hold the configuration.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(bytes: Vec<u8>, device: &Device) -> Result<Self> {
        let source = Source::new(bytes);
        let tensors = read_tensors(&source)?;
        Ok(Self {
            path: PathBuf::new(),
            config: tensors.config,
            config_place: ConfigPlace::Inside,
            metadata: tensors.metadata,
            formats: BTreeSet::from([tensors.format]),
            weights: Some(Weights::new(without_wrapper(tensors.entries), device)),
            parts: BTreeMap::new(),
            digests: Digests::of(vec![(String::new(), source)]),
            options: LoadOptions::default(),
        })
    }

    /// A model without a checkpoint: its configuration, as JSON, and no tensors.
    pub fn from_config(config: impl Into<String>, device: &Device) -> Self {
        Self {
            path: PathBuf::new(),
            config: Some(config.into()),
            config_place: ConfigPlace::Inside,
            metadata: None,
            formats: BTreeSet::new(),
            weights: Some(Weights::new(BTreeMap::new(), device)),
            parts: BTreeMap::new(),
            digests: Digests::of(Vec::new()),
            options: LoadOptions::default(),
        }
    }

    /// The same checkpoint, for a model that does not train and is loaded so, whatever options it had before.
    #[must_use]
    pub fn with_options(self, options: impl Into<LoadOptions>) -> Self {
        Self { options: options.into(), ..self }
    }

    /// How the model is to be loaded.
    pub(crate) fn options(&self) -> LoadOptions {
        if self.weights.is_some() { self.options } else { LoadOptions::default() }
    }

    /// The same checkpoint, its tensors tied to `variables`.
    #[must_use]
    pub fn trained(mut self, variables: &super::Variables) -> Self {
        self.weights = self.weights.map(|weights| weights.trained(variables));
        self
    }

    /// The same checkpoint, of which a model may ask for tensors that it lacks; the survey says what it did.
    pub(crate) fn surveyed(&self) -> (Self, Survey) {
        let survey = Survey::default();
        let surveyed = |weights: Weights| Weights { survey: Some(survey.clone()), ..weights };
        (Self { weights: self.weights.clone().map(surveyed), ..self.clone() }, survey)
    }

    /// The tensors and what their files say of them, without a configuration.
    pub(crate) fn without_config(&self) -> Self {
        Self { config: None, config_place: ConfigPlace::Inside, ..self.clone() }
    }

    /// Where it lies; empty for bytes.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the configuration lies beside the file that was asked for and need not belong to it.
    pub(crate) fn has_config_beside(&self) -> bool {
        self.config.is_some() && self.config_place == ConfigPlace::Beside
    }

    /// Fails when the configuration was read from a file that is no JSON.
    pub(crate) fn check_config(&self) -> Result<()> {
        let Some(config) = self.config.as_deref().filter(|_| self.config_place != ConfigPlace::Inside) else {
            return Ok(());
        };
        let parsed = serde_json::from_str::<serde::de::IgnoredAny>(config);
        parsed.map(drop).map_err(|error| Error::config(CONFIG, error.to_string()))
    }

    /// The configuration, as JSON.
    pub fn config(&self) -> Option<&str> {
        self.config.as_deref()
    }

    /// Gives the checkpoint a configuration, as JSON, if it came without one.
    #[must_use]
    pub fn or_config(mut self, config: impl Into<String>) -> Self {
        self.config.get_or_insert_with(|| config.into());
        self
    }

    /// What a weights file says beside its tensors, as a JSON object: the plain data around the state
    /// dict of a torch file (`{"metadata": {"kwargs": ...}}` in one of audiotools), or the metadata
    /// of a safetensors file.
    pub fn metadata(&self) -> Option<&str> {
        self.metadata.as_deref()
    }

    /// The tensors.
    pub fn weights(&self) -> Option<&Weights> {
        self.weights.as_ref()
    }

    /// The bytes of one TFLite file.
    pub fn part(&self, name: &str) -> Option<&[u8]> {
        self.parts.get(name).map(|bytes| bytes.as_slice())
    }

    /// Identity of the weights.
    ///
    /// For one file its SHA-256; for several the SHA-256 of the lines `HEX  NAME\n` in the order of
    /// their names, as `sha256sum * | sha256sum` prints it.
    ///
    /// # Errors
    /// As [`Checkpoint::files`].
    pub fn sha256(&self) -> Result<[u8; 32]> {
        let files = self.files()?;
        if let (1, Some(sha256)) = (files.len(), files.values().next()) {
            return Ok(*sha256);
        }
        let mut list = Sha256::new();
        for (name, sha256) in files {
            let hex: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
            list.update(format!("{hex}  {name}\n"));
        }
        Ok(list.finalize().into())
    }

    /// SHA-256 of each file with weights, by its name. They are computed beside the loading; this waits for
    /// them.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read any more.
    pub fn files(&self) -> Result<&BTreeMap<String, [u8; 32]>> {
        self.digests.get()
    }

    /// The error that says what was found.
    pub(crate) fn unrecognized(&self) -> Error {
        self.unrecognized_but("no family here has such tensors")
    }

    /// The same with what follows from it.
    pub(crate) fn unrecognized_but(&self, conclusion: &str) -> Error {
        let Some(weights) = &self.weights else {
            let names: Vec<_> = self.parts.keys().map(String::as_str).collect();
            let found = format!("the TFLite files {}", names.join(", "));
            return Error::Unrecognized { path: self.path.clone(), found };
        };
        let n_tensors = weights.names().count();
        let first: Vec<_> = weights.names().take(N_NAMES_SHOWN).collect();
        let more = if n_tensors > first.len() { ", ..." } else { "" };
        let formats: Vec<_> = self.formats.iter().copied().collect();
        let config = match &self.config {
            Some(config) => match model_type(config) {
                Some(model_type) => format!("the configuration of a model of type `{model_type}`"),
                None => "a configuration without a model_type".to_owned(),
            },
            None => format!("no {CONFIG}"),
        };
        let keys: Option<serde_json::Map<_, serde_json::Value>> =
            self.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let keys: Vec<_> = keys.into_iter().flatten().map(|(key, _)| key).take(N_NAMES_SHOWN).collect();
        let beside = if keys.is_empty() { String::new() } else { format!(", beside {}", keys.join(", ")) };
        let found = format!(
            "{} with {n_tensors} tensors ({}{more}){beside}, and {config}; {conclusion}",
            formats.join(" and "),
            first.join(", ")
        );
        Error::Unrecognized { path: self.path.clone(), found }
    }

    fn open_dir(path: &Path, device: &Device) -> Result<Self> {
        let names = file_names(path)?;
        if let Some(name) = WEIGHTS.iter().find(|name| names.contains(**name)) {
            let files =
                if name.ends_with(".json") { shards(&path.join(name))? } else { vec![path.join(name)] };
            return Self::from_files(path, files, read_config(path)?, device);
        }
        let with = |extensions: &[&str]| -> Vec<String> {
            let matches = |name: &&String| {
                let extension = Path::new(name).extension().and_then(|e| e.to_str());
                extension.is_some_and(|e| extensions.contains(&e))
            };
            names.iter().filter(matches).cloned().collect()
        };
        let parts = with(&["tflite"]);
        match with(&WEIGHTS_EXTENSIONS).as_slice() {
            [] if parts.is_empty() => {
                let found = match n_folders(path)? {
                    0 => format!("a directory of {} files, none of them weights", names.len()),
                    n => format!(
                        "a directory of {} files and {n} folders, no weights among the files",
                        names.len()
                    ),
                };
                Err(Error::Unrecognized { path: path.to_owned(), found })
            }
            [] => {
                let read = |name: String| Ok((name.clone(), Arc::new(read_file(&path.join(name))?)));
                let parts = parts.into_iter().map(read).collect::<Result<BTreeMap<_, _>>>()?;
                Ok(Self::from_parts(path, parts))
            }
            [name] => Self::from_files(path, vec![path.join(name)], read_config(path)?, device),
            several => {
                let found = format!("several weights files: {}", several.join(", "));
                Err(Error::Unrecognized { path: path.to_owned(), found })
            }
        }
    }

    fn from_parts(path: &Path, parts: BTreeMap<String, Arc<Vec<u8>>>) -> Self {
        let files =
            parts.iter().map(|(name, bytes)| (name.clone(), Source::new(Arc::clone(bytes)))).collect();
        let (path, digests) = (path.to_owned(), Digests::of(files));
        Self {
            path,
            config: None,
            config_place: ConfigPlace::Inside,
            metadata: None,
            formats: BTreeSet::new(),
            weights: None,
            parts,
            digests,
            options: LoadOptions::default(),
        }
    }

    /// Joins the tensors of all `paths`; a configuration in one of them goes before `config`.
    fn from_files(path: &Path, paths: Vec<PathBuf>, config: Option<String>, device: &Device) -> Result<Self> {
        let (mut entries, mut own_config, mut metadata) = (BTreeMap::new(), None, None);
        let (mut formats, mut files) = (BTreeSet::new(), Vec::new());
        for file in paths {
            let source = Source::open(&file)?;
            let tensors = read_tensors(&source)?;
            if let Some(name) = tensors.entries.keys().find(|name| entries.contains_key(*name)) {
                let why = format!("{name} is in two of the checkpoint's files");
                return Err(Error::Config { field: "shards", why });
            }
            entries.extend(tensors.entries);
            own_config = own_config.or(tensors.config);
            metadata = metadata.or(tensors.metadata);
            formats.insert(tensors.format);
            files.push((file_name(&file), source));
        }
        Ok(Self {
            path: path.to_owned(),
            config_place: if own_config.is_some() { ConfigPlace::Inside } else { ConfigPlace::File },
            config: own_config.or(config),
            metadata,
            formats,
            weights: Some(Weights::new(without_wrapper(entries), device)),
            parts: BTreeMap::new(),
            digests: Digests::of(files),
            options: LoadOptions::default(),
        })
    }
}

/// The tensors of one weights file, and the configuration if it carries one.
#[derive(Debug)]
pub(super) struct Tensors {
    pub(super) entries: BTreeMap<String, Entry>,
    pub(super) config: Option<String>,
    /// See [`Checkpoint::metadata`].
    pub(super) metadata: Option<String>,
    /// Kind of the file.
    pub(super) format: &'static str,
}

/// Reads a weights file of any kind.
pub(super) fn read_tensors(source: &Source) -> Result<Tensors> {
    let start = source.start(nemo::N_MAGIC_BYTES)?;
    if start.starts_with(torch::ZIP_MAGIC) {
        return torch::read_zip(source);
    }
    if start.starts_with(torch::LEGACY_MAGIC) {
        return torch::read_legacy(source);
    }
    if nemo::is_archive(&start) {
        return nemo::read(source);
    }
    // A safetensors file starts with the length of its header, which is JSON.
    if start.get(8) == Some(&b'{') {
        return read_safetensors(source);
    }
    let why = "neither safetensors nor a file of torch.save or NeMo".to_owned();
    Err(Error::Format { what: "weights", offset: 0, why })
}

fn read_safetensors(source: &Source) -> Result<Tensors> {
    let broken = |why: String| Error::Format { what: "safetensors", offset: 0, why };
    let start = source.start(size_of::<u64>())?;
    let len = start.first_chunk().and_then(|len| usize::try_from(u64::from_le_bytes(*len)).ok());
    let len =
        len.filter(|&len| len <= MAX_HEADER_BYTES).ok_or_else(|| broken("odd length of header".into()))?;
    let base = start.len() + len;
    let header = source.part(start.len()..base).ok_or_else(|| broken("the header ends too early".into()))?;
    let metadata: Metadata = serde_json::from_slice(&header.read()?).map_err(|e| broken(e.to_string()))?;
    let data = source.part(base..source.len()).filter(|data| data.len() == metadata.data_len());
    let data = data.ok_or_else(|| broken("the tensors do not fill the file".to_owned()))?;
    let entry = |(name, info): (String, &TensorInfo)| {
        let dtype = match info.dtype {
            safetensors::Dtype::F64 => Dtype::Float(DType::F64),
            safetensors::Dtype::F32 => Dtype::Float(DType::F32),
            safetensors::Dtype::F16 => Dtype::Float(DType::F16),
            safetensors::Dtype::BF16 => Dtype::Float(DType::BF16),
            other => Dtype::Other(format!("{other:?}")),
        };
        let Some(data) = data.part(info.data_offsets.0..info.data_offsets.1) else {
            return Err(broken(format!("{name} lies outside the file")));
        };
        Ok((name, Entry { data, dtype, shape: info.shape.clone(), strides: None }))
    };
    let entries = metadata.tensors().into_iter().map(entry).collect::<Result<_>>()?;
    let texts = metadata.metadata().as_ref();
    let config = texts.and_then(|texts| texts.get(CONFIG_KEY)).cloned();
    let metadata = texts.and_then(|texts| serde_json::to_string(texts).ok());
    Ok(Tensors { entries, config, metadata, format: "safetensors" })
}

/// The tensors without a prefix that all of them have and that names no part of a model: what
/// parallel training, compilation or a Lightning module put there.
fn without_wrapper(mut entries: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    let is_of_all = |entries: &BTreeMap<String, Entry>, prefix: &str| {
        !entries.is_empty() && entries.keys().all(|name| name.starts_with(prefix))
    };
    while let Some(prefix) = WRAPPERS.iter().find(|prefix| is_of_all(&entries, prefix)) {
        let stripped = |(name, entry): (String, Entry)| (name[prefix.len()..].to_owned(), entry);
        entries = entries.into_iter().map(stripped).collect();
    }
    entries
}

/// The files that an index lists, each a plain name beside the index.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bad = |why: String| Error::Config { field: "weight_map", why };
    let parsed: Index = serde_json::from_str(&read_text(index)?).map_err(|e| bad(e.to_string()))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if let Some(name) = names.iter().find(|name| Path::new(name).file_name() != Some(name.as_str().as_ref()))
    {
        return Err(bad(format!("`{name}` is not a file name")));
    }
    Ok(names.iter().map(|name| index.with_file_name(name)).collect())
}

/// The `model_type` of a Hugging Face configuration.
pub(crate) fn model_type(config: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Head {
        model_type: Option<String>,
    }
    serde_json::from_str::<Head>(config).ok()?.model_type
}

fn file_names(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(|source| io_error(folder, source))? {
        let entry = entry.map_err(|source| io_error(folder, source))?;
        if entry.path().is_file() {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}

/// How many folders there are in a folder.
fn n_folders(folder: &Path) -> Result<usize> {
    let entries = std::fs::read_dir(folder).map_err(|source| io_error(folder, source))?;
    Ok(entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir())).count())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The configuration in a folder, if there is one.
fn read_config(folder: &Path) -> Result<Option<String>> {
    let path = folder.join(CONFIG);
    if path.is_file() { read_text(&path).map(Some) } else { Ok(None) }
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| io_error(path, source))
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| io_error(path, source))
}

pub(super) fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}
