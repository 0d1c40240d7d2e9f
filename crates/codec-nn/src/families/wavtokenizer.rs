//! WavTokenizer: EnCodec's encoder, one codebook, and a Vocos decoder with attention over the whole clip.
//!
//! The sizes are those that the tensors show: 75 frames a second (hop 320) or 40 (hop 600). The decoder's norms
//! and its attention need all frames, so no audio comes before the codes are over, and its memory grows with
//! the clip and its time with the square of it. The encoder streams.
//!
//! # Source
//! Ji et al. 2024, "WavTokenizer: an efficient acoustic discrete codec tokenizer for audio language modeling",
//! arXiv 2408.16532; jishengpeng/WavTokenizer, decoder/pretrained.py, decoder/feature_extractors.py and
//! encoder, commit 5cf440d. Vectors: `tests/vectors/wavtokenizer_*.safetensors`.
//!
//! # Deviations
//! None. Of the four sets of norms, the first is taken, as in all examples of the reference.

use super::Family;
use crate::codec::Networks;
use crate::error::{Error, Result};
use crate::nets::seanet::{Seanet, modern_name};
use crate::nets::vocos::Vocos;
use crate::ops::load_both;
use crate::quantizer::QuantizerNet;
use crate::weights::{Checkpoint, Weights};
use candle_core::Device;
use codec_core::{AudioSpec, CodeLayout, Codec, CodecInfo, Delays};

/// See the module.
pub(super) const FAMILY: Family =
    Family { name: "wavtokenizer", recognizes, signs: &[], load, networks: Some(networks) };

/// The rate is that of the code, not of a configuration.
const SAMPLE_RATE: u32 = 24_000;
/// Buffers of training: how often each entry was used, and whether there are any.
const IGNORED: [&str; 3] = ["cluster_size", "embed_avg", "inited"];
/// What has a part in training alone: EnCodec's decoder, discriminators and losses.
const OF_TRAINING: [&str; 8] = [
    "feature_extractor.encodec.decoder.",
    "multiperioddisc.",
    "multiresddisc.",
    "dac.",
    "disc_loss.",
    "gen_loss.",
    "feat_matching_loss.",
    "melspec_loss.",
];
/// Beyond this a checkpoint is not a codec's but a mistake or an attack.
const MAX_SIZE: usize = 1 << 16;
/// As [`MAX_SIZE`], for the Fourier transform, whose matrix has the square of it.
const MAX_N_FFT: usize = 1 << 12;

fn recognizes(checkpoint: &Checkpoint) -> bool {
    let names = ["feature_extractor.encodec.encoder.model.0.conv.conv.bias", "backbone.pos_net.2.q.weight"];
    checkpoint.weights().is_some_and(|weights| names.iter().all(|name| weights.contains(name)))
}

fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Codec>> {
    Ok(Box::new(networks(checkpoint)?.codec(device)?))
}

fn networks(checkpoint: &Checkpoint) -> Result<Networks> {
    let Some(weights) = checkpoint.weights() else {
        return Err(checkpoint.unrecognized());
    };
    let weights = weights.without(|name| OF_TRAINING.iter().any(|start| name.starts_with(start)));
    build(&weights.renamed(modern_name)?)
}

fn build(weights: &Weights) -> Result<Networks> {
    let encodec = weights.pp("feature_extractor.encodec");
    let n_codebooks = (0..MAX_SIZE)
        .take_while(|i| encodec.contains(&format!("quantizer.layers.{i}.codebook.embed")))
        .count();
    let (size, dim) = pair(weights, "feature_extractor.encodec.quantizer.layers.0.codebook.embed")?;
    let net = seanet(&encodec.pp("encoder.layers"), dim)?;
    let hop_length = net.hop_length()?;
    let vocos = vocos(weights, hop_length as usize)?;
    let codebook_size = u32::try_from(size).map_err(|_| Error::config("vq_bins", "is too large"))?;
    let info = CodecInfo {
        model: "wavtokenizer".to_owned(),
        family: FAMILY.name,
        audio: AudioSpec { sample_rate: SAMPLE_RATE, channels: 1 },
        hop_length,
        delays: Delays::default(),
        segment: None,
        layout: CodeLayout::uniform(n_codebooks, codebook_size)?,
    };
    let codebook = |idx: usize| encodec.get((size, dim), &format!("quantizer.layers.{idx}.codebook.embed"));
    let quantizer = QuantizerNet::residual((0..n_codebooks).map(codebook).collect::<Result<_>>()?);
    let (encoder, decoder) =
        load_both(|| net.encoder(&encodec.pp("encoder.layers")), || vocos.decoder(weights))?;
    weights.finish(&IGNORED)?;
    Ok(Networks { info, encoder, decoder, quantizer })
}

/// The encoder that these tensors are of; its kernels twice its strides, with a residual block before each.
fn seanet(weights: &Weights, dim: usize) -> Result<Seanet> {
    let spellings = ["weight_v", "parametrizations.weight.original1", "weight"];
    let shape = |place: String| -> Option<Vec<usize>> {
        let weights = weights.pp(place).pp("conv");
        spellings.iter().find_map(|name| weights.shape(name).map(<[usize]>::to_vec))
    };
    let first = shape("0".to_owned()).and_then(|shape| shape.first().copied());
    let mut ratios: Vec<usize> = (0..16)
        .map_while(|stage| {
            shape(format!("{}.block.1", 3 * stage + 1))?;
            shape((3 * stage + 3).to_string())?.get(2).map(|kernel| kernel / 2)
        })
        .collect();
    ratios.reverse();
    Ok(Seanet::usual(dim, first.unwrap_or(0), ratios))
}

/// The decoder that these tensors are of.
fn vocos(weights: &Weights, hop_length: usize) -> Result<Vocos> {
    let (n_outputs, dim) = pair(weights, "head.out.weight")?;
    let (hidden, _) = pair(weights, "backbone.convnext.0.pwconv1.weight")?;
    let n_blocks =
        (0..MAX_SIZE).take_while(|i| weights.contains(&format!("backbone.convnext.{i}.gamma"))).count();
    let c_in = weights.shape("backbone.embed.weight").and_then(|shape| shape.get(1)).copied();
    let c_in = c_in.ok_or_else(|| Error::MissingTensors { names: vec!["backbone.embed.weight".into()] })?;
    let Some(n_fft) = n_outputs.checked_sub(2).filter(|n_fft| (1..=MAX_N_FFT).contains(n_fft)) else {
        return Err(Error::config("n_fft", "is not within reason"));
    };
    Ok(Vocos { c_in, dim, hidden, n_blocks, n_fft, hop_length })
}

/// The dimensions of a matrix.
fn pair(weights: &Weights, name: &str) -> Result<(usize, usize)> {
    match weights.shape(name) {
        Some(&[rows, columns]) => Ok((rows, columns)),
        Some(shape) => Err(Error::Shape { name: name.into(), expected: vec![0; 2], actual: shape.to_vec() }),
        None => Err(Error::MissingTensors { names: vec![name.into()] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Tensor};

    /// A checkpoint of zeros of these shapes.
    fn weights(shapes: &[(&str, &[usize])]) -> Weights {
        let zeros = |&(name, shape): &(&str, &[usize])| {
            (name.to_owned(), Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap())
        };
        let bytes = safetensors::serialize(shapes.iter().map(zeros), None).unwrap();
        Weights::from_bytes(bytes, &Device::Cpu).unwrap()
    }

    #[test]
    fn sizes_are_those_of_the_tensors() {
        let decoder = weights(&[
            ("head.out.weight", &[1282, 16]),
            ("backbone.convnext.0.pwconv1.weight", &[48, 16]),
            ("backbone.convnext.0.gamma", &[16]),
            ("backbone.convnext.1.gamma", &[16]),
            ("backbone.embed.weight", &[16, 512, 7]),
        ]);
        let want = Vocos { c_in: 512, dim: 16, hidden: 48, n_blocks: 2, n_fft: 1280, hop_length: 320 };
        assert_eq!(vocos(&decoder, 320).unwrap(), want);

        // Strides are half the kernels; the convolution after the last stage is none of them.
        let mut shapes: Vec<(String, Vec<usize>)> = vec![("0.conv.weight_v".into(), vec![32, 1, 7])];
        for (stage, ratio) in [2, 4, 5, 8].into_iter().enumerate() {
            shapes.push((format!("{}.block.1.conv.weight_v", 3 * stage + 1), vec![1, 1, 3]));
            shapes.push((format!("{}.conv.weight_v", 3 * stage + 3), vec![1, 1, 2 * ratio]));
        }
        shapes.push(("15.conv.weight_v".into(), vec![1, 1, 7]));
        let shapes: Vec<(&str, &[usize])> =
            shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let encoder = seanet(&weights(&shapes), 512).unwrap();
        assert_eq!((encoder.n_filters, encoder.ratios.as_slice()), (32, &[8, 5, 4, 2][..]));
    }

    #[test]
    fn what_is_not_within_reason_is_refused() {
        for n_outputs in [1, 2, 70_000] {
            let decoder = weights(&[
                ("head.out.weight", &[n_outputs, 1]),
                ("backbone.convnext.0.pwconv1.weight", &[1, 1]),
                ("backbone.embed.weight", &[1, 1, 7]),
            ]);
            assert!(matches!(vocos(&decoder, 320), Err(Error::Config { field: "n_fft", .. })));
        }
        let error = build(&weights(&[("x", &[1])])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the checkpoint lacks feature_extractor.encodec.quantizer.layers.0.codebook.embed"
        );
    }
}
