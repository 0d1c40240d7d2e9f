//! Model files of fewer bits.
//!
//! With [`Precision::Int8`] every row of a matrix is stored as integers of eight bits and one factor: the
//! tensor `NAME` of type I8, and `NAME.scale` with a value for each row. Vectors stay as they are. A model
//! is computed in `f32` whatever its file holds, so a file gives the same bits on every machine.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::borrow::Cow;
use std::collections::HashMap;

/// End of the name of the factors of a tensor's rows.
const SCALE: &str = ".scale";
/// The largest integer that is used.
const LARGEST: f32 = 127.0;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As they are.
    Float32,
    /// Matrices as floats of 16 bits.
    Float16,
    /// Matrices as integers of 8 bits with a factor for each row.
    Int8,
}

/// Some tensor of a file.
struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl safetensors::View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Brings a weights file of `f32` tensors into this precision; what it says beside its tensors is kept.
///
/// # Errors
/// [`Error::Config`] when the bytes are no such file.
pub fn pack(file: &[u8], precision: Precision) -> Result<Vec<u8>> {
    if precision == Precision::Float32 {
        return Ok(file.to_vec());
    }
    let mut out = Vec::new();
    for (name, view) in read(file)?.iter() {
        let values = floats(name, &view)?;
        let shape = view.shape().to_vec();
        let [n_rows, width] = shape.as_slice() else {
            out.push(stored(name, Dtype::F32, shape, view.data().to_vec()));
            continue;
        };
        if precision == Precision::Float16 {
            let halves = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?.to_dtype(DType::F16)?;
            out.push(stored(name, Dtype::F16, shape, safetensors::View::data(&halves).into_owned()));
            continue;
        }
        let mut scales = Vec::with_capacity(*n_rows);
        let mut bytes = Vec::with_capacity(values.len());
        for row in values.chunks_exact((*width).max(1)) {
            let scale = row.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / LARGEST;
            let divisor = if scale > 0.0 { scale } else { 1.0 };
            bytes.extend(row.iter().map(|x| (x / divisor).round_ties_even() as i8 as u8));
            scales.extend(scale.to_le_bytes());
        }
        out.push(stored(&format!("{name}{SCALE}"), Dtype::F32, vec![*n_rows], scales));
        out.push(stored(name, Dtype::I8, shape, bytes));
    }
    write(&out, metadata(file)?)
}

/// Brings a file that [`pack`] wrote back to `f32`; other files are left as they are.
///
/// # Errors
/// [`Error::Config`] when the bytes are no weights file, or factors and rows do not agree.
pub fn unpack(file: &[u8]) -> Result<Cow<'_, [u8]>> {
    let tensors = read(file)?;
    if tensors.iter().all(|(_, view)| view.dtype() != Dtype::I8) {
        return Ok(Cow::Borrowed(file));
    }
    let mut out = Vec::new();
    for (name, view) in tensors.iter() {
        if name.ends_with(SCALE) {
            continue;
        }
        let shape = view.shape().to_vec();
        if view.dtype() != Dtype::I8 {
            out.push(stored(name, view.dtype(), shape, view.data().to_vec()));
            continue;
        }
        let scales = tensors.tensor(&format!("{name}{SCALE}")).map_err(|e| wrong(name, e))?;
        let scales = floats(name, &scales)?;
        let width = shape.get(1).copied().unwrap_or(1).max(1);
        if shape.len() != 2 || scales.len() * width != view.data().len() {
            return Err(wrong(name, "rows and their factors do not agree"));
        }
        let rows = view.data().chunks_exact(width).zip(scales);
        let values = rows.flat_map(|(row, scale)| row.iter().map(move |&x| f32::from(x as i8) * scale));
        out.push(stored(name, Dtype::F32, shape, values.flat_map(f32::to_le_bytes).collect()));
    }
    Ok(Cow::Owned(write(&out, metadata(file)?)?))
}

fn read(file: &[u8]) -> Result<SafeTensors<'_>> {
    SafeTensors::deserialize(file).map_err(|e| wrong("weights", e))
}

fn metadata(file: &[u8]) -> Result<Option<HashMap<String, String>>> {
    let (_, metadata) = SafeTensors::read_metadata(file).map_err(|e| wrong("weights", e))?;
    Ok(metadata.metadata().clone())
}

fn write(tensors: &[Stored], metadata: Option<HashMap<String, String>>) -> Result<Vec<u8>> {
    let named = tensors.iter().map(|tensor| (tensor.name.clone(), tensor));
    safetensors::serialize(named, metadata).map_err(|e| wrong("weights", e))
}

fn stored(name: &str, dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Stored {
    Stored { name: name.to_owned(), dtype, shape, bytes }
}

fn floats(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    if view.dtype() != Dtype::F32 {
        return Err(wrong(name, format!("holds {:?}, not F32", view.dtype())));
    }
    let floats = view.data().chunks_exact(size_of::<f32>());
    Ok(floats.map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect())
}

fn wrong(name: &str, why: impl ToString) -> Error {
    Error::config("weights", format!("{name}: {}", why.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        let matrix: Vec<f32> = (0..60).map(|i| ((i * 37 % 61) as f32 - 30.0) * 0.01).collect();
        let tensors = [
            ("a.weight", Tensor::from_vec(matrix, (6, 10), &Device::Cpu).unwrap()),
            ("b.bias", Tensor::new(&[0.123_f32, -7.0], &Device::Cpu).unwrap()),
            ("zero.weight", Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap()),
        ];
        let metadata = HashMap::from([("config".to_owned(), "{}".to_owned())]);
        safetensors::serialize(tensors, Some(metadata)).unwrap()
    }

    #[test]
    fn rows_come_back_within_half_a_unit() {
        let original = file();
        let packed = pack(&original, Precision::Int8).unwrap();
        let back = unpack(&packed).unwrap();
        assert_eq!(metadata(&back).unwrap(), metadata(&original).unwrap());
        let (original, back) = (read(&original).unwrap(), read(&back).unwrap());
        assert_eq!(original.names().len(), back.names().len());
        for (name, view) in original.iter() {
            let (want, got) =
                (floats(name, &view).unwrap(), floats(name, &back.tensor(name).unwrap()).unwrap());
            let width = if view.shape().len() == 2 { view.shape()[1] } else { 1 };
            for (want, got) in want.chunks(width).zip(got.chunks(width)) {
                let most = want.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                let tolerance = if view.shape().len() == 2 { most / 127.0 * 0.501 } else { 0.0 };
                assert!(want.iter().zip(got).all(|(x, y)| (x - y).abs() <= tolerance), "{name}");
            }
        }
        // Packed again, the same integers come out.
        assert_eq!(pack(&unpack(&packed).unwrap(), Precision::Int8).unwrap(), packed);
    }

    #[test]
    fn other_precisions_are_read_as_they_are() {
        let original = file();
        assert_eq!(pack(&original, Precision::Float32).unwrap(), original);
        let halves = pack(&original, Precision::Float16).unwrap();
        assert!(halves.len() < original.len());
        assert_eq!(read(&halves).unwrap().tensor("a.weight").unwrap().dtype(), Dtype::F16);
        assert_eq!(unpack(&halves).unwrap(), halves);
    }

    #[test]
    fn broken_files_are_refused() {
        let packed = pack(&file(), Precision::Int8).unwrap();
        assert!(unpack(&packed[..packed.len() / 2]).is_err());
        assert!(pack(&packed, Precision::Int8).is_err());
    }
}
