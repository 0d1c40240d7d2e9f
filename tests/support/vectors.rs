//! Reference vectors: `tests/vectors/*.safetensors`, written by the scripts in `tests/reference`.
//!
//! A file holds the weights of a tiny model, its configuration, and under `vector.` what the
//! reference implementation makes of an input; the head of the script lists the entries. A model of
//! several files lies in the folder of the same name, or, if its weights are published ones, in the
//! optional shared test data.

use crate::Result;
use candle_core::Device;
use codec_core::{AudioBuffer, Codec, Codes};
use codec_nn::families;
use codec_nn::weights::Checkpoint;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

const PREFIX: &str = "vector.";

/// One file of vectors.
#[derive(Debug)]
pub struct Vectors {
    bytes: Vec<u8>,
    model: Option<PathBuf>,
}

/// Vectors whose model is in the optional shared test data, and the folder that it has there.
const SHARED: [(&str, &str); 1] = [("soundstream_lyra", "lyra")];

/// What the reference made of a clip.
#[derive(Debug)]
pub struct Case {
    /// The clip.
    pub audio: AudioBuffer,
    /// Its codes: per codebook a row of `n_frames / stride`.
    pub rows: Vec<Vec<u32>>,
    /// How far a residual is from having another code, over the norm of its latent; as the codes.
    pub margins: Vec<Vec<f32>>,
    /// One per segment, where the model has scales.
    pub scales: Vec<f32>,
    /// Decoded audio by number of codebooks.
    pub decoded: Vec<(usize, AudioBuffer)>,
}

impl Vectors {
    /// Reads `tests/vectors/NAME.safetensors`.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn open(name: &str) -> Result<Self> {
        let path = folder().join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let beside = Some(folder().join(name)).filter(|path| path.is_dir());
        let shared =
            SHARED.iter().find(|(vectors, _)| *vectors == name).map(|(_, model)| shared().join(model));
        Ok(Self { bytes, model: beside.or(shared) })
    }

    /// The weights and the configuration, as the bytes of a checkpoint.
    ///
    /// # Errors
    /// When the file is broken.
    pub fn checkpoint(&self) -> Result<Vec<u8>> {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes)?;
        let tensors = SafeTensors::deserialize(&self.bytes)?;
        let weights: Vec<(String, TensorView<'_>)> =
            tensors.tensors().into_iter().filter(|(name, _)| !name.starts_with(PREFIX)).collect();
        Ok(safetensors::serialize(weights, metadata.metadata().clone())?)
    }

    /// The same, or none with a line that says so where the model lies in data that not everyone has.
    ///
    /// # Errors
    /// As [`Vectors::open`].
    pub fn open_if_there(name: &str) -> Result<Option<Self>> {
        let vectors = Self::open(name)?;
        let is_there = vectors.model.as_ref().is_none_or(|path| path.is_dir());
        if !is_there {
            crate::say_skipped(&format!("{name}, whose model is in the optional shared test data"));
        }
        Ok(is_there.then_some(vectors))
    }

    /// The codec.
    ///
    /// # Errors
    /// When it does not load.
    pub fn codec(&self) -> Result<Box<dyn Codec>> {
        Ok(families::load_checkpoint(&self.open_checkpoint()?, &Device::Cpu)?.codec)
    }

    /// The checkpoint that the codec is made from.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open_checkpoint(&self) -> Result<Checkpoint> {
        if let Some(path) = &self.model {
            return Ok(Checkpoint::open(path, &Device::Cpu)?);
        }
        Ok(Checkpoint::from_bytes(self.checkpoint()?, &Device::Cpu)?)
    }

    /// The rows of the matrix `vector.NAME`.
    ///
    /// # Errors
    /// When the file is broken or has no such entry.
    pub fn rows(&self, name: &str) -> Result<Vec<Vec<f64>>> {
        Entries::read(&self.bytes)?.rows(name)
    }

    /// The clips, shortest first.
    ///
    /// # Errors
    /// When the file is broken or its entries do not fit `codec`.
    pub fn cases(&self, codec: &dyn Codec) -> Result<Vec<Case>> {
        let tensors = Entries::read(&self.bytes)?;
        // Nothing goes into a codec that only decodes.
        let input = if codec.encodes() { tensors.rows("input")? } else { Vec::new() };
        let spec = codec.info().audio;
        let lengths: BTreeSet<usize> =
            tensors.0.keys().filter_map(|name| name.split_once(".codes")?.0.parse().ok()).collect();
        let case = |n: usize| -> Result<Case> {
            let clip = input.iter().map(|row| row[..n].iter().map(|&x| (x / 32768.0) as f32).collect());
            let to_f32 = |rows: Vec<Vec<f64>>| -> Vec<Vec<f32>> {
                rows.into_iter().map(|row| row.into_iter().map(|x| x as f32).collect()).collect()
            };
            let codes = tensors.per_codebook(&format!("{n}.codes"))?;
            let mut decoded = Vec::new();
            for n_codebooks in 1..=codes.len() {
                let name = format!("{n}.audio.{n_codebooks}");
                if tensors.0.contains_key(&name) {
                    decoded
                        .push((n_codebooks, AudioBuffer::from_planar(spec, to_f32(tensors.rows(&name)?))?));
                }
            }
            let scales = if codec.info().layout.scale_frames().is_some() {
                to_f32(tensors.rows(&format!("{n}.scales"))?).concat()
            } else {
                Vec::new()
            };
            let audio = match codec.encodes() {
                true => AudioBuffer::from_planar(spec, clip.collect())?,
                false => AudioBuffer::empty(spec)?,
            };
            Ok(Case {
                audio,
                rows: codes.iter().map(|row| row.iter().map(|&code| code as u32).collect()).collect(),
                margins: to_f32(tensors.per_codebook(&format!("{n}.margins"))?),
                scales,
                decoded,
            })
        };
        lengths.into_iter().map(case).collect()
    }
}

impl Case {
    /// The reference's codes of the first `n_codebooks` codebooks.
    ///
    /// # Errors
    /// When they do not fit the codec.
    pub fn codes(&self, codec: &dyn Codec, n_codebooks: usize) -> Result<Codes> {
        let layout = codec.info().layout.truncated(n_codebooks)?;
        Ok(Codes::with_scales(layout, self.rows[..n_codebooks].to_vec(), self.scales.clone())?)
    }
}

/// A codec with audio for it.
#[derive(Debug)]
pub struct Subject {
    /// Name of the vectors.
    pub name: String,
    /// The codec.
    pub codec: Box<dyn Codec>,
    /// The longest clip that there are vectors of.
    pub clip: AudioBuffer,
}

/// A codec that only decodes, with codes for it.
#[derive(Debug)]
pub struct DecoderSubject {
    /// Name of the vectors.
    pub name: String,
    /// The codec.
    pub codec: Box<dyn Codec>,
    /// The longest codes that there are vectors of.
    pub codes: Codes,
}

/// Every family's codecs that the tests can build and that encode; says what is skipped.
///
/// # Errors
/// When a family has no vectors, or one of its codecs does not load.
pub fn subjects() -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for Longest { name, codec, case } in longest_cases()? {
        if codec.encodes() {
            subjects.push(Subject { name, codec, clip: case.audio });
        }
    }
    Ok(subjects)
}

/// The others: those that only decode.
///
/// # Errors
/// As [`subjects`].
pub fn decoder_subjects() -> Result<Vec<DecoderSubject>> {
    let mut subjects = Vec::new();
    for Longest { name, codec, case } in longest_cases()? {
        if !codec.encodes() {
            let codes = case.codes(codec.as_ref(), codec.info().layout.n_codebooks())?;
            subjects.push(DecoderSubject { name, codec, codes });
        }
    }
    Ok(subjects)
}

/// A codec with the last case of its vectors.
struct Longest {
    name: String,
    codec: Box<dyn Codec>,
    case: Case,
}

/// Every family's codecs that the tests can build.
fn longest_cases() -> Result<Vec<Longest>> {
    let mut cases = Vec::new();
    for family in families::FAMILIES {
        let names = names(family.name)?;
        if names.is_empty() {
            return Err(format!("{} has no vectors", family.name).into());
        }
        for name in names {
            let Some(vectors) = Vectors::open_if_there(&name)? else {
                continue;
            };
            let codec = vectors.codec()?;
            let case = vectors.cases(codec.as_ref())?.pop().ok_or("no cases")?;
            cases.push(Longest { name, codec, case });
        }
    }
    Ok(cases)
}

/// The names of all vectors of a family, such as `encodec_causal`.
///
/// # Errors
/// When the folder cannot be read.
pub fn names(family: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder())? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_safetensors = path.extension().is_some_and(|e| e == "safetensors");
        if is_safetensors && stem.strip_prefix(family).is_some_and(|rest| rest.starts_with('_')) {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The optional shared test data: `CODEC_SHARED`, or `shared` beside the checkout.
pub fn shared() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    std::env::var_os("CODEC_SHARED").map_or_else(beside, PathBuf::from)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// Entries under `vector.`: shape and values.
struct Entries(HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Entries {
    fn read(bytes: &[u8]) -> Result<Self> {
        let mut entries = HashMap::new();
        for (name, view) in SafeTensors::deserialize(bytes)?.tensors() {
            if let Some(name) = name.strip_prefix(PREFIX) {
                entries.insert(name.to_owned(), (view.shape().to_vec(), values(&view)?));
            }
        }
        Ok(Self(entries))
    }

    /// One row per codebook: those of `NAME`, or `NAME.0`, `NAME.1`, ... where their lengths differ.
    fn per_codebook(&self, name: &str) -> Result<Vec<Vec<f64>>> {
        if self.0.contains_key(name) {
            return self.rows(name);
        }
        let names = (0..).map(|codebook_idx| format!("{name}.{codebook_idx}"));
        let rows = names.take_while(|name| self.0.contains_key(name)).map(|name| self.rows(&name));
        Ok(rows.collect::<Result<Vec<_>>>()?.concat())
    }

    /// The values as rows over the last dimension.
    fn rows(&self, name: &str) -> Result<Vec<Vec<f64>>> {
        let (shape, values) = self.0.get(name).ok_or_else(|| format!("no entry {PREFIX}{name}"))?;
        let (row_len, rows) = shape.split_last().map_or((1, 1), |(len, rest)| (*len, rest.iter().product()));
        Ok((0..rows).map(|row| values[row * row_len..(row + 1) * row_len].to_vec()).collect())
    }
}

fn values(view: &TensorView<'_>) -> Result<Vec<f64>> {
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::U8 => data.iter().map(|&byte| f64::from(byte)).collect(),
        Dtype::I16 => data.as_chunks().0.iter().map(|&b| f64::from(i16::from_le_bytes(b))).collect(),
        Dtype::I32 => data.as_chunks().0.iter().map(|&b| f64::from(i32::from_le_bytes(b))).collect(),
        Dtype::F32 => data.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|&b| half(u16::from_le_bytes(b))).collect(),
        other => return Err(format!("vectors of {other:?}").into()),
    })
}

/// A finite half-precision number.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => mantissa * 2.0_f64.powi(-24),
        _ => (1024.0 + mantissa) * 2.0_f64.powi(exponent - 25),
    };
    sign * magnitude
}
