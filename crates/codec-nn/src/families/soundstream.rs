//! SoundStream as published in Lyra v2: causal convolutions around 46 codebooks of 16 entries, 16 kHz.
//!
//! The three TFLite files are read as they are. The networks are mixed: wide layers near the waveform in
//! floats, the narrow ones around the codes in eight-bit integers; both run as the reference runs
//! them, see `nets/int8.rs`. Lyra's three rates, 3.2, 6 and 9.2 kbit/s, are the first 16, 30 and 46
//! codebooks; any other number works as well. Codes and audio come without delay: the encoder looks at
//! no sample after a frame, and sample `i` of the decoder stands for sample `i` of the input.
//!
//! # Source
//! Zeghidour et al. 2021, "SoundStream: an end-to-end neural audio codec", arXiv 2107.03312; google/lyra
//! v1.3.2, lyra/soundstream_encoder.cc, lyra/residual_vector_quantizer.cc, lyra/lyra_gan_model.cc and
//! lyra/lyra_config.cc. Compared with ai-edge-litert by `tests/reference/soundstream_compare.py`.
//!
//! # Deviations
//! Lyra takes and gives 16-bit samples; here they are floats, full scale at 1. Lyra drops samples after
//! the last whole frame; here zeros complete it. A stage subtracts the entry itself from the residual,
//! where the TFLite graph adds a rounding error (`x + (entry - x)`, left over from training).

use super::Family;
use crate::codec::NetCodec;
use crate::error::{Error, Result};
use crate::layers::{Chunk, DynLayer, Layer};
use crate::nets::streaming_graph;
use crate::tflite::{Graph, Kind, Model};
use crate::weights::Checkpoint;
use candle_core::{Device, Tensor};
use codec_core::quantizer::{Quantizer, Rvq};
use codec_core::{AudioSpec, Codec, CodecInfo};

/// See the module.
pub(super) const FAMILY: Family = Family { name: "soundstream", recognizes, load };

const ENCODER: &str = "soundstream_encoder.tflite";
const QUANTIZER: &str = "quantizer.tflite";
const DECODER: &str = "lyragan.tflite";
/// What the files do not say.
const SAMPLE_RATE: u32 = 16_000;
/// The signature of a model that has only one.
const ONLY: &str = "serving_default";

fn recognizes(checkpoint: &Checkpoint) -> bool {
    checkpoint.part(ENCODER).is_some()
}

fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Codec>> {
    let names = [ENCODER, QUANTIZER, DECODER];
    let [Some(encoder), Some(quantizer), Some(decoder)] = names.map(|name| checkpoint.part(name)) else {
        let missing = names.into_iter().filter(|name| checkpoint.part(name).is_none());
        return Err(Error::MissingTensors { names: missing.map(str::to_owned).collect() });
    };
    Ok(Box::new(from_tflite(encoder, quantizer, decoder, device)?))
}

/// Builds the codec from the contents of the three files.
fn from_tflite(encoder: &[u8], quantizer: &[u8], decoder: &[u8], device: &Device) -> Result<NetCodec> {
    let encoder = Model::parse(encoder)?;
    let quantizer = Model::parse(quantizer)?;
    let decoder = Model::parse(decoder)?;
    let (encoder_graph, decoder_graph) = (encoder.graph(ONLY)?, decoder.graph(ONLY)?);

    let hop_length = width(encoder_graph, encoder_graph.inputs())?;
    let quantizer = rvq(&quantizer)?;
    let fits = [
        ("encoder output", encoder_graph, encoder_graph.outputs(), quantizer.dim()),
        ("decoder input", decoder_graph, decoder_graph.inputs(), quantizer.dim()),
        ("decoder output", decoder_graph, decoder_graph.outputs(), hop_length),
    ];
    for (name, graph, tensors, expected) in fits {
        let actual = width(graph, tensors)?;
        if actual != expected {
            return Err(Error::Shape { name: name.into(), expected: vec![expected], actual: vec![actual] });
        }
    }

    let mut encoder_net = vec![DynLayer::new(WholeFrames { hop_length })];
    encoder_net.append(&mut streaming_graph::layers(&encoder, encoder_graph, device)?);
    let hop_length = u32::try_from(hop_length)
        .map_err(|_| Error::Config { field: "hop length", why: hop_length.to_string() })?;
    Ok(NetCodec {
        info: CodecInfo {
            model: "lyra-v2".to_owned(),
            family: FAMILY.name,
            audio: AudioSpec { sample_rate: SAMPLE_RATE, channels: 1 },
            hop_length,
            lookahead: 0,
            segment: None,
            layout: quantizer.layout().clone(),
        },
        encoder: encoder_net,
        decoder: streaming_graph::layers(&decoder, decoder_graph, device)?,
        quantizer: Box::new(quantizer),
        device: device.clone(),
    })
}

/// Values of the only one of `tensors`, which holds one frame.
fn width(graph: &Graph<'_>, tensors: &[usize]) -> Result<usize> {
    match tensors {
        [tensor] => Ok(graph.tensor(*tensor)?.shape.iter().product()),
        _ => Err(Error::Unsupported { what: "tensors at one end of a graph", value: tensors.len().to_string() }),
    }
}

/// Reads the codebooks from the graph that decodes, and checks that the graph that encodes has the same.
fn rvq(model: &Model<'_>) -> Result<Rvq> {
    let decoding = codebooks(model.graph("decode")?)?;
    let graph = model.graph("encode")?;
    let (mut searched, mut taken) = (Vec::new(), Vec::new());
    for op in graph.ops() {
        match op.kind {
            Kind::SquaredDifference => searched.push(graph.tensor(op.input(1)?)?.f32s()?),
            Kind::Gather => taken.push(graph.tensor(op.input(0)?)?.f32s()?),
            _ => {}
        }
    }
    // What the last stage leaves over is never looked at.
    let same = searched == decoding.values && decoding.values.starts_with(&taken);
    if !same || taken.len() + 1 < decoding.values.len() {
        let value = format!("of {} stages against {}", searched.len(), decoding.values.len());
        return Err(Error::Unsupported { what: "quantizer with other codebooks for encoding", value });
    }
    Ok(Rvq::from_codebooks(&decoding.values.concat(), decoding.size, decoding.dim)?)
}

struct Codebooks {
    /// Coarse to fine, `[size, dim]` each.
    values: Vec<Vec<f32>>,
    size: usize,
    dim: usize,
}

/// Follows the sum `((e0 + e1) + e2) + ...` back; stage `k` must take its entry by row `k` of the codes.
fn codebooks(graph: &Graph<'_>) -> Result<Codebooks> {
    let made_by = |tensor: usize| {
        let op = graph.producer(tensor).and_then(|op_idx| graph.ops().get(op_idx));
        op.ok_or(()).or_else(|()| Err(graph.tensor(tensor)?.error("is made by no op")))
    };
    let &[output] = graph.outputs() else {
        let value = graph.outputs().len().to_string();
        return Err(Error::Unsupported { what: "quantizer outputs", value });
    };
    let (mut sum, mut stages) = (made_by(output)?, Vec::new());
    while sum.kind == Kind::Add {
        stages.push(made_by(sum.input(1)?)?);
        sum = made_by(sum.input(0)?)?;
    }
    stages.push(sum);
    stages.reverse();

    let mut shape: Option<[usize; 2]> = None;
    let mut values = Vec::new();
    for (stage_idx, masked) in stages.into_iter().enumerate() {
        // An entry, times zero when its code is missing.
        let gather = made_by(masked.input(0)?)?;
        if masked.kind != Kind::Mul || gather.kind != Kind::Gather {
            return Err(masked.error("is no stage of a quantizer"));
        }
        let row = made_by(gather.input(1)?)?;
        let start = graph.tensor(row.input(1)?)?.i32s()?;
        let is_row = matches!(row.kind, Kind::StridedSlice(masks) if masks.shrink & 1 == 1);
        if !is_row || start.first().map(|&start| usize::try_from(start)) != Some(Ok(stage_idx)) {
            return Err(row.error("does not take the code of its stage"));
        }
        let codebook = graph.tensor(gather.input(0)?)?;
        let this = <[usize; 2]>::try_from(codebook.shape.as_slice()).ok();
        if this.is_none() || *shape.get_or_insert(this.unwrap_or_default()) != this.unwrap_or_default() {
            return Err(codebook.error("is no codebook like the others"));
        }
        values.push(codebook.f32s()?);
    }
    let [size, dim] = shape.unwrap_or_default();
    Ok(Codebooks { values, size, dim })
}

/// Completes the last frame with zeros.
#[derive(Clone, Copy, Debug)]
struct WholeFrames {
    hop_length: usize,
}

/// The unfinished frame of [`WholeFrames`].
#[derive(Debug)]
struct Unfinished {
    n_samples: usize,
    /// One step of zeros for every clip of the batch.
    zeros: Tensor,
}

impl Layer for WholeFrames {
    /// `None` before the first sample.
    type State = Option<Unfinished>;

    fn init(&self) -> Self::State {
        None
    }

    fn step(&self, state: &mut Self::State, chunk: Chunk) -> Result<Chunk> {
        let mut pieces: Vec<_> = chunk.steps.into_iter().collect();
        if let Some(steps) = pieces.first() {
            let n_before = state.take().map_or(0, |unfinished| unfinished.n_samples);
            let zeros = steps.narrow(1, 0, 1)?.contiguous()?.zeros_like()?;
            *state = Some(Unfinished { n_samples: (n_before + steps.dim(1)?) % self.hop_length, zeros });
        }
        if chunk.end
            && let Some(Unfinished { n_samples: n_samples @ 1.., zeros }) = state.take()
        {
            pieces.push(zeros.repeat((1, self.hop_length - n_samples, 1))?);
        }
        let steps = if pieces.is_empty() { None } else { Some(Tensor::cat(&pieces, 1)?) };
        Ok(Chunk { steps, end: chunk.end })
    }
}
