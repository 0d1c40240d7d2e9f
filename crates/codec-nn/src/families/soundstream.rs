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
use crate::layers::{DynLayer, FillBlocks};
use crate::nets::streaming_graph;
use crate::tflite::{Graph, Kind, Model};
use crate::weights::Checkpoint;
use candle_core::Device;
use codec_core::quantizer::{Quantizer, Rvq};
use codec_core::{AudioSpec, Codec, CodecInfo, Delays};

/// See the module.
pub(super) const FAMILY: Family =
    Family { name: "soundstream", recognizes, signs: &[], load, networks: None };

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

    let mut encoder_net = vec![DynLayer::new(FillBlocks { len: hop_length })];
    encoder_net.append(&mut streaming_graph::layers(&encoder, encoder_graph, device)?);
    let hop_length = u32::try_from(hop_length)
        .map_err(|_| Error::Config { field: "hop length", why: hop_length.to_string() })?;
    let info = CodecInfo {
        model: "lyra-v2".to_owned(),
        family: FAMILY.name,
        audio: AudioSpec { sample_rate: SAMPLE_RATE, channels: 1 },
        hop_length,
        delays: Delays::default(),
        segment: None,
        layout: quantizer.layout().clone(),
    };
    let decoder_net = streaming_graph::layers(&decoder, decoder_graph, device)?;
    NetCodec::new(info, Some(encoder_net), decoder_net, Box::new(quantizer), device)
}

/// Values of the only one of `tensors`, which holds one frame.
fn width(graph: &Graph<'_>, tensors: &[usize]) -> Result<usize> {
    match tensors {
        [tensor] => Ok(graph.tensor(*tensor)?.shape.iter().product()),
        _ => Err(Error::Unsupported {
            what: "tensors at one end of a graph",
            value: tensors.len().to_string(),
        }),
    }
}

/// Reads the codebooks from the graph that decodes, and checks that the graph that encodes has the same.
fn rvq(model: &Model<'_>) -> Result<Rvq> {
    let decoding = codebooks(model.graph("decode")?)?;
    let graph = model.graph("encode")?;
    // The graph runs the stages in order; what the last one leaves over is never looked up.
    let n_stages = decoding.values.len();
    let (mut n_searched, mut n_taken) = (0, 0);
    for op in graph.ops() {
        let (position, n) = match op.kind {
            Kind::SquaredDifference => (1, &mut n_searched),
            Kind::Gather => (0, &mut n_taken),
            _ => continue,
        };
        if decoding.values.get(*n) != Some(&graph.tensor(op.input(position)?)?.f32s()?) {
            return Err(op.error("has another codebook than the graph that decodes"));
        }
        *n += 1;
    }
    if n_searched != n_stages || n_taken + 1 < n_stages {
        let value = format!("with {n_searched} stages for encoding and {n_stages} for decoding");
        return Err(Error::Unsupported { what: "quantizer", value });
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

#[cfg(test)]
mod tests {
    use super::*;
    use codec_core::{AudioBuffer, Error as CoreError};

    const TINY: [&[u8]; 3] = [
        include_bytes!("../../../../tests/vectors/soundstream_tiny/soundstream_encoder.tflite"),
        include_bytes!("../../../../tests/vectors/soundstream_tiny/quantizer.tflite"),
        include_bytes!("../../../../tests/vectors/soundstream_tiny/lyragan.tflite"),
    ];

    fn load([encoder, quantizer, decoder]: [&[u8]; 3]) -> Result<NetCodec> {
        from_tflite(encoder, quantizer, decoder, &Device::Cpu)
    }

    fn tiny() -> NetCodec {
        load(TINY).unwrap()
    }

    #[test]
    fn the_files_say_what_the_codec_is() {
        let codec = tiny();
        let info = codec.info();
        assert_eq!((info.hop_length, info.delays.lookahead, info.audio.channels), (16, Some(0), 1));
        assert_eq!((info.layout.n_codebooks(), info.layout.codebooks()[5].size), (6, 16));
        assert_eq!(info.bitrate(6).unwrap().to_f64(), 24_000.0);
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let [encoder, quantizer, decoder] = TINY;
        for files in
            [[decoder, quantizer, decoder], [encoder, quantizer, encoder], [encoder, encoder, decoder]]
        {
            assert!(load(files).is_err());
        }
    }

    #[test]
    fn zeros_complete_the_last_frame() {
        let codec = tiny();
        let signal: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        for n in [1, 15, 16, 17, 63, 64] {
            let mut padded = signal[..n].to_vec();
            padded.resize(n.next_multiple_of(16), 0.0);
            let [short, whole] = [signal[..n].to_vec(), padded]
                .map(|samples| codec.encode(&AudioBuffer::mono(SAMPLE_RATE, samples).unwrap(), 6).unwrap());
            assert_eq!(short, whole, "{n}");
            assert_eq!(short.n_frames(), n.div_ceil(16));
            assert_eq!(codec.decode(&short).unwrap().n_samples(), n.next_multiple_of(16));
        }
    }

    #[test]
    fn audio_that_is_not_a_number_is_an_error() {
        let codec = tiny();
        let mut samples = vec![0.1; 64];
        samples[20] = f32::NAN;
        let error = codec.encode(&AudioBuffer::mono(SAMPLE_RATE, samples).unwrap(), 6).unwrap_err();
        assert!(matches!(error, CoreError::NotFinite { .. }), "{error}");
    }

    /// Changed files load or are refused: no panic, whichever bytes of whichever file change.
    #[test]
    fn mutated_files_never_panic() {
        // Knuth's MMIX generator.
        let mut state = 1_u64;
        let mut random = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let (mut n_loaded, mut n_refused) = (0, 0);
        for _ in 0..10_000 {
            let mut files = TINY;
            let file_idx = random(3);
            let mut bytes = files[file_idx].to_vec();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes[at] ^= 1 << random(8),
                    1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                    2 => {
                        let from = random(bytes.len());
                        let n = random(16).min(bytes.len() - at.max(from));
                        bytes.copy_within(from..from + n, at);
                    }
                    _ => bytes.truncate(bytes.len().max(2) - random(bytes.len().max(2) / 64 + 1)),
                }
            }
            files[file_idx] = &bytes;
            match load(files) {
                Ok(_) => n_loaded += 1,
                Err(_) => n_refused += 1,
            }
        }
        // Weights may change without harm; a test that only meets one side of it tests nothing.
        assert!(n_loaded > 500 && n_refused > 500, "{n_loaded} loaded, {n_refused} refused");
    }
}
