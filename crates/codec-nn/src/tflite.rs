//! Reads TensorFlow Lite models: graphs and their constant tensors. It is not a runtime.
//!
//! Every op is read with its options; what an op may ask for and no model of ours does (padding,
//! fused activations, strides across channels) is an error here, so that nobody downstream can
//! forget to look. In a graph that was read, each tensor has at most one producer and no op comes
//! before the producers of its inputs, so following producers backward always ends.
//!
//! # Source
//! tensorflow/lite/schema/schema.fbs, version 3: the positions of fields and the numbers of ops.

mod flatbuffer;

use crate::error::{Error, Result};
use flatbuffer::{Reader, Table, format};

/// Most values that a tensor's shape may name.
const MAX_ELEMENTS: usize = 1 << 28;
/// How often the ops of a graph may read the whole file as constants, so that what is made of it stays in
/// proportion. Those of Lyra read each constant once, and some zeros three times.
const MAX_READS: usize = 4;

/// A model file.
#[derive(Clone, Debug)]
pub(crate) struct Model<'a> {
    graphs: Vec<Graph<'a>>,
    signatures: Vec<(String, usize)>,
}

/// Ops in the order in which they run, and the tensors between them.
#[derive(Clone, Debug)]
pub(crate) struct Graph<'a> {
    tensors: Vec<Tensor<'a>>,
    ops: Vec<Op>,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    producers: Vec<Option<usize>>,
}

/// A tensor: constant when it has data.
#[derive(Clone, Debug)]
pub(crate) struct Tensor<'a> {
    /// Its name; not unique.
    pub(crate) name: &'a str,
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    /// The type of its values.
    pub(crate) dtype: Dtype,
    /// How its integers stand for real numbers, if they do.
    pub(crate) quantization: Option<Quantization>,
    data: Option<&'a [u8]>,
    offset: usize,
}

/// The types of values that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    I8,
    I32,
    Resource,
    /// Another type, by its number in the schema.
    Other(u8),
}

/// real = scale * (integer - zero_point), one pair for all or one per index of `axis`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Quantization {
    pub(crate) scales: Vec<f32>,
    pub(crate) zero_points: Vec<i64>,
    pub(crate) axis: i32,
}

/// One op.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    /// What it does.
    pub(crate) kind: Kind,
    /// Indices of the tensors that it reads.
    pub(crate) inputs: Vec<usize>,
    /// Indices of the tensors that it makes.
    pub(crate) outputs: Vec<usize>,
    offset: usize,
}

/// What an op does, with its options.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Add,
    ArgMin,
    AssignVariable,
    CallOnce {
        graph_idx: usize,
    },
    Concatenation {
        axis: i32,
    },
    /// Over time (the height), without padding, several groups when the input has more channels
    /// than the filter.
    Conv {
        stride: usize,
        dilation: usize,
    },
    Dequantize,
    /// Over time, without padding, one filter per channel.
    Depthwise {
        stride: usize,
        dilation: usize,
    },
    Gather,
    LeakyRelu {
        slope: f32,
    },
    Mul,
    Quantize,
    ReadVariable,
    Reshape,
    Split {
        n_parts: usize,
    },
    SquaredDifference,
    StridedSlice(Masks),
    Sub,
    Sum,
    /// Over time, without padding.
    TransposeConv {
        stride: usize,
    },
    VarHandle {
        name: String,
    },
    /// Another op, by its number in the schema.
    Other(i32),
}

/// Which of a strided slice's bounds count: bit `i` is for dimension `i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Masks {
    /// Dimensions that start at their beginning.
    pub(crate) begin: i32,
    /// Dimensions that go to their end.
    pub(crate) end: i32,
    /// Dimensions of which one index is taken.
    pub(crate) shrink: i32,
}

impl<'a> Model<'a> {
    /// Reads a `.tflite` file.
    ///
    /// # Errors
    /// [`Error::Format`] when the bytes break the format, [`Error::Unsupported`] when they use a
    /// part of it that is not implemented.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let reader = Reader::new(bytes);
        let root = reader.root(b"TFL3")?;
        let version = root.u32(0)?;
        if version != 3 {
            return Err(unsupported("TFLite schema version", version));
        }
        let codes = root.tables(1)?.into_iter().map(op_code).collect::<Result<Vec<_>>>()?;
        let buffers = root.tables(4)?.into_iter().map(buffer).collect::<Result<Vec<_>>>()?;
        let graphs = root.tables(2)?.into_iter().map(|table| Graph::parse(table, &codes, &buffers));
        let graphs = graphs.collect::<Result<Vec<_>>>()?;
        if graphs.iter().any(|graph| graph.n_bytes_read() / MAX_READS > bytes.len()) {
            return Err(unsupported("TFLite graph", "that reads its constants over and over"));
        }
        let signature = |table: Table<'_, '_>| {
            let graph_idx = index(table, table.u32(4)?, graphs.len(), "graph")?;
            Ok((table.string(2)?.to_owned(), graph_idx))
        };
        let signatures = root.tables(7)?.into_iter().map(signature).collect::<Result<Vec<_>>>()?;
        Ok(Self { graphs, signatures })
    }

    /// The graph that a signature names.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no such signature.
    pub(crate) fn graph(&self, signature: &str) -> Result<&Graph<'a>> {
        let found = self.signatures.iter().find(|(name, _)| name == signature);
        let graph = found.and_then(|(_, graph_idx)| self.graphs.get(*graph_idx));
        graph.ok_or_else(|| unsupported("TFLite model without the signature", signature))
    }

    /// The graph that an op refers to by its index.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no such graph.
    pub(crate) fn graph_at(&self, graph_idx: usize) -> Result<&Graph<'a>> {
        self.graphs.get(graph_idx).ok_or_else(|| unsupported("TFLite graph", graph_idx))
    }
}

impl<'a> Graph<'a> {
    fn parse(table: Table<'a, '_>, codes: &[i32], buffers: &[&'a [u8]]) -> Result<Self> {
        let tensors = table.tables(0)?.into_iter().map(|table| Tensor::parse(table, buffers));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let inputs = indices(table, 1, tensors.len())?;
        let outputs = indices(table, 2, tensors.len())?;
        let ops = table.tables(3)?.into_iter().map(|table| Op::parse(table, codes, tensors.len()));
        let ops = ops.collect::<Result<Vec<_>>>()?;

        let mut producers = vec![None; tensors.len()];
        let mut known: Vec<bool> = tensors.iter().map(|tensor| tensor.data.is_some()).collect();
        for &input in &inputs {
            known[input] = true;
        }
        for (op_idx, op) in ops.iter().enumerate() {
            if let Some(&early) = op.inputs.iter().find(|&&input| !known[input]) {
                let why = format!("an op reads tensor {early} before anything makes it");
                return Err(format(op.offset, why));
            }
            for &output in &op.outputs {
                if std::mem::replace(&mut known[output], true) {
                    return Err(format(op.offset, format!("tensor {output} is made twice")));
                }
                producers[output] = Some(op_idx);
            }
        }
        Ok(Self { tensors, ops, inputs, outputs, producers })
    }

    /// Bytes of constants that the ops read, each as often as it is read.
    fn n_bytes_read(&self) -> usize {
        let inputs = self.ops.iter().flat_map(|op| &op.inputs);
        let data = inputs.filter_map(|&input| self.tensors.get(input)?.data);
        data.fold(0, |n, data| n.saturating_add(data.len()))
    }

    /// A tensor of this graph.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is no such tensor.
    pub(crate) fn tensor(&self, tensor_idx: usize) -> Result<&Tensor<'a>> {
        self.tensors.get(tensor_idx).ok_or_else(|| unsupported("TFLite tensor", tensor_idx))
    }

    /// All ops, in the order in which they run.
    pub(crate) fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The tensors that come from outside.
    pub(crate) fn inputs(&self) -> &[usize] {
        &self.inputs
    }

    /// The tensors that go outside.
    pub(crate) fn outputs(&self) -> &[usize] {
        &self.outputs
    }

    /// The op that makes a tensor, by its index; `None` for constants and inputs.
    pub(crate) fn producer(&self, tensor_idx: usize) -> Option<usize> {
        self.producers.get(tensor_idx).copied().flatten()
    }
}

impl<'a> Tensor<'a> {
    fn parse(table: Table<'a, '_>, buffers: &[&'a [u8]]) -> Result<Self> {
        let name = table.string(3)?;
        let dim = |dim: i32| {
            usize::try_from(dim).map_err(|_| format(table.offset(), format!("{name} has a negative size")))
        };
        let shape = table.i32s(0)?.into_iter().map(dim).collect::<Result<Vec<_>>>()?;
        let n_elements = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        if n_elements.is_none_or(|n| n > MAX_ELEMENTS) {
            return Err(format(table.offset(), format!("{name} has the impossible shape {shape:?}")));
        }
        if table.has(6)? {
            return Err(unsupported("sparse TFLite tensor", name));
        }
        let dtype = match table.u8(1)? {
            0 => Dtype::F32,
            2 => Dtype::I32,
            9 => Dtype::I8,
            13 => Dtype::Resource,
            other => Dtype::Other(other),
        };
        let buffer_idx = index(table, table.u32(2)?, buffers.len(), "buffer")?;
        let data = buffers.get(buffer_idx).copied().filter(|data| !data.is_empty());
        let quantization = table.table(4)?.map(Quantization::parse).transpose()?.flatten();
        Ok(Self { name, shape, dtype, quantization, data, offset: table.offset() })
    }

    /// The floats of a constant, row-major.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no constant of floats, not as long as its shape says, or not finite.
    pub(crate) fn f32s(&self) -> Result<Vec<f32>> {
        let values = self.values(Dtype::F32, f32::from_le_bytes)?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(self.error("holds a value that is not finite"));
        }
        Ok(values)
    }

    /// The integers of a constant, row-major.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no constant of such integers, or not as long as its shape says.
    pub(crate) fn i32s(&self) -> Result<Vec<i32>> {
        self.values(Dtype::I32, i32::from_le_bytes)
    }

    /// The bytes of a constant as signed integers, row-major.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no constant of bytes, or not as long as its shape says.
    pub(crate) fn i8s(&self) -> Result<Vec<i8>> {
        self.values(Dtype::I8, i8::from_le_bytes)
    }

    /// Scale and zero point of a tensor that has one of each.
    ///
    /// # Errors
    /// [`Error::Format`] when it has none or several.
    pub(crate) fn scale(&self) -> Result<(f32, i32)> {
        let quantization = self.quantization.as_ref();
        let pair = quantization.and_then(|q| match (q.scales.as_slice(), q.zero_points.as_slice()) {
            ([scale], [zero_point]) => Some((*scale, i32::try_from(*zero_point).ok()?)),
            _ => None,
        });
        pair.ok_or_else(|| self.error("needs one scale and one zero point"))
    }

    /// An error about this tensor.
    pub(crate) fn error(&self, why: &str) -> Error {
        format(self.offset, format!("tensor `{}` {why}", self.name))
    }

    fn values<const N: usize, T>(&self, dtype: Dtype, read: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let data = self.data.filter(|_| self.dtype == dtype);
        let data = data.ok_or_else(|| self.error(&format!("is no constant of type {dtype:?}")))?;
        // The product was checked when the shape was read.
        if data.len() != N * self.shape.iter().product::<usize>() {
            return Err(self.error("is not as long as its shape says"));
        }
        let (values, _) = data.as_chunks::<N>();
        Ok(values.iter().map(|value| read(*value)).collect())
    }
}

impl Quantization {
    fn parse(table: Table<'_, '_>) -> Result<Option<Self>> {
        if table.u8(4)? != 0 {
            return Err(unsupported("TFLite quantization details", table.u8(4)?));
        }
        let (scales, zero_points) = (table.f32s(2)?, table.i64s(3)?);
        if scales.is_empty() {
            return Ok(None);
        }
        if scales.len() != zero_points.len() {
            return Err(format(table.offset(), "there are more scales than zero points, or fewer"));
        }
        if scales.iter().any(|scale| !scale.is_normal() || scale.is_sign_negative()) {
            return Err(format(table.offset(), "a scale is not a positive number"));
        }
        Ok(Some(Self { scales, zero_points, axis: table.i32(6, 0)? }))
    }
}

impl Op {
    fn parse(table: Table<'_, '_>, codes: &[i32], n_tensors: usize) -> Result<Self> {
        let code = codes[index(table, table.u32(0)?, codes.len(), "op code")?];
        let kind = match table.table(4)? {
            Some(options) => Kind::parse(code, options)?,
            None => Kind::without_options(code),
        };
        let inputs = indices(table, 1, n_tensors)?;
        let outputs = indices(table, 2, n_tensors)?;
        Ok(Self { kind, inputs, outputs, offset: table.offset() })
    }

    /// The input at a position.
    ///
    /// # Errors
    /// [`Error::Format`] when the op has fewer inputs.
    pub(crate) fn input(&self, position: usize) -> Result<usize> {
        let input = self.inputs.get(position).copied();
        input.ok_or_else(|| format(self.offset, format!("an op lacks input {position}")))
    }

    /// The only output.
    ///
    /// # Errors
    /// [`Error::Format`] when the op has none or several.
    pub(crate) fn output(&self) -> Result<usize> {
        match self.outputs.as_slice() {
            [output] => Ok(*output),
            _ => Err(format(self.offset, "an op has not one output")),
        }
    }

    /// An error about this op.
    pub(crate) fn error(&self, why: &str) -> Error {
        format(self.offset, format!("{:?} {why}", self.kind))
    }
}

impl Kind {
    fn without_options(code: i32) -> Self {
        match code {
            6 => Self::Dequantize,
            22 => Self::Reshape,
            36 => Self::Gather,
            79 => Self::ArgMin,
            99 => Self::SquaredDifference,
            114 => Self::Quantize,
            143 => Self::ReadVariable,
            144 => Self::AssignVariable,
            other => Self::Other(other),
        }
    }

    fn parse(code: i32, options: Table<'_, '_>) -> Result<Self> {
        Ok(match code {
            0 => {
                no_activation(options, 0)?;
                Self::Add
            }
            2 => {
                no_activation(options, 1)?;
                Self::Concatenation { axis: options.i32(0, 0)? }
            }
            3 => {
                no_activation(options, 3)?;
                let (stride, dilation) = (over_time(options, 1, 0)?, over_time(options, 4, 1)?);
                Self::Conv { stride, dilation }
            }
            4 => {
                no_activation(options, 4)?;
                let multiplier = options.i32(3, 0)?;
                if multiplier != 1 {
                    return Err(unsupported("TFLite depth multiplier", multiplier));
                }
                let (stride, dilation) = (over_time(options, 1, 0)?, over_time(options, 5, 1)?);
                Self::Depthwise { stride, dilation }
            }
            18 => {
                no_activation(options, 0)?;
                Self::Mul
            }
            41 => {
                no_activation(options, 0)?;
                Self::Sub
            }
            45 => {
                let masks =
                    Masks { begin: options.i32(0, 0)?, end: options.i32(1, 0)?, shrink: options.i32(4, 0)? };
                if options.i32(2, 0)? != 0 || options.i32(3, 0)? != 0 || options.u8(5)? != 0 {
                    return Err(unsupported("TFLite slice", "with ellipsis, new axes or offsets"));
                }
                Self::StridedSlice(masks)
            }
            49 => Self::Split { n_parts: positive(options, "number of parts", options.i32(0, 0)?)? },
            67 => {
                no_activation(options, 3)?;
                Self::TransposeConv { stride: over_time(options, 1, 0)? }
            }
            74 => Self::Sum,
            98 => Self::LeakyRelu { slope: options.f32(0)? },
            129 => Self::CallOnce { graph_idx: positive(options, "graph", options.i32(0, 0)?)? },
            142 => Self::VarHandle { name: options.string(1)?.to_owned() },
            code => Self::without_options(code),
        })
    }
}

fn op_code(table: Table<'_, '_>) -> Result<i32> {
    // Files from before there were more than 127 ops hold the number in the first field alone.
    Ok(table.i32(3, 0)?.max(i32::from(table.u8(0)?)))
}

fn buffer<'a>(table: Table<'a, '_>) -> Result<&'a [u8]> {
    if table.u64(1)? > 1 || table.u64(2)? > 1 {
        return Err(unsupported("TFLite buffer", "outside the flatbuffer"));
    }
    table.bytes(0)
}

/// A size along time, the first dimension of an image, after one across it that must be 1. Of
/// convolutions, only those without padding come this far.
fn over_time(options: Table<'_, '_>, field: usize, default: i32) -> Result<usize> {
    if options.u8(0)? != 1 {
        return Err(unsupported("TFLite padding", "SAME"));
    }
    let across = options.i32(field, default)?;
    if across != 1 {
        return Err(unsupported("TFLite stride or dilation across the image", across));
    }
    positive(options, "stride or dilation", options.i32(field + 1, default)?)
}

fn no_activation(options: Table<'_, '_>, field: usize) -> Result<()> {
    match options.u8(field)? {
        0 => Ok(()),
        other => Err(unsupported("fused TFLite activation", other)),
    }
}

fn positive(table: Table<'_, '_>, what: &str, value: i32) -> Result<usize> {
    let value = usize::try_from(value).ok().filter(|&value| value > 0);
    value.ok_or_else(|| format(table.offset(), format!("{what} is not positive")))
}

fn index(table: Table<'_, '_>, value: u32, len: usize, what: &str) -> Result<usize> {
    let idx = value as usize;
    if idx < len { Ok(idx) } else { Err(format(table.offset(), format!("there is no {what} {value}"))) }
}

fn indices(table: Table<'_, '_>, field: usize, n_tensors: usize) -> Result<Vec<usize>> {
    let idx = |value: i32| {
        let idx = usize::try_from(value).ok().filter(|&idx| idx < n_tensors);
        idx.ok_or_else(|| format(table.offset(), format!("there is no tensor {value}")))
    };
    table.i32s(field)?.into_iter().map(idx).collect()
}

fn unsupported(what: &'static str, value: impl ToString) -> Error {
    Error::Unsupported { what, value: value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &[u8] = include_bytes!("../../../tests/vectors/soundstream_tiny/soundstream_encoder.tflite");

    fn why(bytes: &[u8]) -> String {
        Model::parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn reads_graphs_tensors_and_options() {
        let model = Model::parse(TINY).unwrap();
        let graph = model.graph("serving_default").unwrap();
        let input = graph.tensor(graph.inputs()[0]).unwrap();
        assert_eq!(
            (input.name, input.shape.as_slice(), input.dtype),
            ("audio", [1, 16].as_slice(), Dtype::F32)
        );
        assert!(input.f32s().is_err());

        let conv = graph.ops().iter().find(|op| matches!(op.kind, Kind::Conv { .. })).unwrap();
        assert_eq!(conv.kind, Kind::Conv { stride: 4, dilation: 1 });
        let weight = graph.tensor(conv.input(1).unwrap()).unwrap();
        assert_eq!(weight.shape, [8, 8, 1, 1]);
        let weights = weight.f32s().unwrap();
        assert_eq!(weights.len(), 64);
        assert!(weights.iter().all(|w| (1e-4..2.0).contains(&w.abs())), "{weights:?}");
        assert!(weight.i8s().is_err());

        let dilated =
            graph.ops().iter().find(|op| op.kind == Kind::Depthwise { stride: 1, dilation: 3 }).unwrap();
        let weight = graph.tensor(dilated.input(1).unwrap()).unwrap();
        let quantization = weight.quantization.as_ref().unwrap();
        assert_eq!((quantization.scales.len(), quantization.axis), (16, 3));
        assert_eq!(weight.i8s().unwrap().iter().map(|w| w.abs()).max(), Some(127));
        assert!(weight.scale().is_err());
        assert!(graph.tensor(dilated.output().unwrap()).unwrap().scale().is_ok());
        assert!(graph.ops().iter().any(|op| op.kind == Kind::LeakyRelu { slope: 0.3 }));
    }

    #[test]
    fn errors_say_where() {
        assert_eq!(why(b""), "TFLite at byte 4: the file ends here");
        assert_eq!(why(b"0000TFL2"), "TFLite at byte 4: the identifier of the file format is missing");
        assert_eq!(why(b"\xff\0\0\0TFL3"), "TFLite at byte 0: a reference leads out of the file");
        for cut in (0..TINY.len()).step_by(101) {
            // Files are written back to front, so that a cut takes away what stands first.
            let error = Model::parse(&TINY[..cut]).unwrap_err();
            assert!(matches!(error, Error::Format { offset, .. } if offset <= cut.max(4)), "{cut}: {error}");
        }
    }

    /// Where [`repeated`] has the length of the list of tensors.
    const N_TENSORS: usize = 56;

    /// A file with one graph whose `n` tensors are one and the same table.
    fn repeated(n: u32) -> Vec<u8> {
        let mut words = vec![
            // 0: the model stands at 20.
            vec![20, u32::from_le_bytes(*b"TFL3")],
            // 8: its description: version at 4, graphs at 8; 20: itself; 32: the list of graphs.
            vec![12 << 16 | 10, 4, 8, 12, 3, 4, 1, 12],
            // 40: the graph's description: tensors at 4; 48: itself; 56: the list of tensors.
            vec![8 << 16 | 6, 4, 8, 4, n],
        ];
        words.push((0..n).map(|i| 4 + 4 * (n - i)).collect());
        // The tensor, which has no fields, behind its description.
        words.push(vec![4 << 16 | 4, 4]);
        words.concat().into_iter().flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn a_vector_longer_than_the_file_and_one_read_twice_are_refused() {
        let mut file = repeated(3);
        // There are no buffers, so the reader got as far as the tensors.
        assert!(why(&file).contains("there is no buffer 0"), "{}", why(&file));
        let reader = Reader::new(&file);
        let graph = reader.root(b"TFL3").unwrap().tables(2).unwrap()[0];
        let n_reads = (0..100).take_while(|_| graph.tables(0).is_ok()).count();
        assert_eq!(n_reads, (file.len() - 1) / 3, "every element read counts against the length of the file");
        file[N_TENSORS + 3] = 0x7f;
        assert!(why(&file).ends_with("a vector is longer than the file"), "{}", why(&file));
    }
}
