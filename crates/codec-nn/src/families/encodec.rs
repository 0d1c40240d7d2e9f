//! EnCodec: SEANet with an LSTM and residual vector quantization.
//!
//! The configuration of the checkpoint decides: 24 kHz mono, 48 kHz stereo in segments, 32 kHz
//! (MusicGen), 16 kHz (AudioGen), and whatever else it can say; it is that of Hugging Face or the one that
//! audiocraft puts beside the weights. A setting that is not implemented is an error at load. The two
//! checkpoints that the paper's authors published, torch files without a configuration, are told apart
//! by their tensors.
//!
//! # Source
//! Défossez et al. 2022, "High fidelity neural audio compression", arXiv 2210.13438;
//! facebookresearch/encodec, encodec/model.py and encodec/quantization; Hugging Face transformers,
//! models/encodec. Vectors: `tests/vectors/encodec_*.safetensors`.
//!
//! # Deviations
//! From Hugging Face: a last segment of the 48 kHz model has the frames that its samples need, as in
//! the original, where `EncodecModel` appends zero codes or its feature extractor zero samples to make
//! it whole. Those of the segments stand in `codec/segments.rs`.

mod audiocraft;

use super::Family;
use crate::codec::Networks;
use crate::error::{Error, Result};
use crate::nets::seanet::{Seanet, fill, modern_name};
use crate::ops::{load_both, load_each};
use crate::quantizer::QuantizerNet;
use crate::weights::{Checkpoint, Weights};
use candle_core::Device;
use codec_core::{AudioSpec, CodeLayout, Codec, CodecInfo, Delays, Segment};
use serde::Deserialize;

/// See the module.
pub(super) const FAMILY: Family = Family {
    name: "encodec",
    recognizes,
    signs: &[&["encoder.layers.0.conv.bias", "quantizer.layers.0.codebook.embed"]],
    load,
    networks: Some(networks),
};

/// Buffers of training: how often each entry was used, and whether there are any.
const IGNORED: [&str; 3] = ["cluster_size", "embed_avg", "inited"];

fn recognizes(checkpoint: &Checkpoint) -> bool {
    match checkpoint.config() {
        Some(config) => crate::weights::model_type(config).as_deref() == Some(FAMILY.name),
        None => {
            // Mimi names its networks so too, and SpeechTokenizer all of it, with an LSTM in both directions.
            let names = ["encoder.model.0.conv.conv.bias", "quantizer.vq.layers.0._codebook.embed"];
            checkpoint.weights().is_some_and(|weights| {
                names.iter().all(|name| weights.contains(name))
                    && !weights.contains("encoder.model.13.lstm.weight_ih_l0_reverse")
            })
        }
    }
}

fn load(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Codec>> {
    Ok(Box::new(networks(checkpoint)?.codec(device)?))
}

fn networks(checkpoint: &Checkpoint) -> Result<Networks> {
    let Some(weights) = checkpoint.weights() else {
        return Err(checkpoint.unrecognized());
    };
    let weights = weights.renamed(modern_name)?;
    let config = match checkpoint.config() {
        Some(config) => serde_json::from_str(config)
            .map_err(|e| Error::Config { field: "config.json", why: e.to_string() })?,
        None => match training_config(checkpoint) {
            Some(yaml) => audiocraft::read(&yaml)?,
            None => Config::original(&weights)?,
        },
    };
    config.build(&weights)
}

/// The configuration that audiocraft puts beside the weights.
fn training_config(checkpoint: &Checkpoint) -> Option<String> {
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(rename = "xp.cfg")]
        config: String,
    }
    serde_json::from_str::<Metadata>(checkpoint.metadata()?).ok().map(|metadata| metadata.config)
}

/// `config.json` of a Hugging Face checkpoint. Fields that it leaves out have the values of the
/// 24 kHz model, as there.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Config {
    audio_channels: u16,
    chunk_length_s: Option<f64>,
    codebook_dim: Option<usize>,
    codebook_size: u32,
    compress: usize,
    dilation_growth_rate: usize,
    hidden_size: usize,
    kernel_size: usize,
    last_kernel_size: usize,
    norm_type: String,
    normalize: bool,
    num_filters: usize,
    num_lstm_layers: usize,
    num_residual_layers: usize,
    overlap: Option<f64>,
    pad_mode: String,
    residual_kernel_size: usize,
    sampling_rate: u32,
    target_bandwidths: Vec<f64>,
    trim_right_ratio: f64,
    upsampling_ratios: Vec<usize>,
    use_causal_conv: bool,
    use_conv_shortcut: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            audio_channels: 1,
            chunk_length_s: None,
            codebook_dim: None,
            codebook_size: 1024,
            compress: 2,
            dilation_growth_rate: 2,
            hidden_size: 128,
            kernel_size: 7,
            last_kernel_size: 7,
            norm_type: "weight_norm".to_owned(),
            normalize: false,
            num_filters: 32,
            num_lstm_layers: 2,
            num_residual_layers: 1,
            overlap: None,
            pad_mode: "reflect".to_owned(),
            residual_kernel_size: 3,
            sampling_rate: 24_000,
            target_bandwidths: vec![1.5, 3.0, 6.0, 12.0, 24.0],
            trim_right_ratio: 1.0,
            upsampling_ratios: vec![8, 5, 4, 2],
            use_causal_conv: true,
            use_conv_shortcut: true,
        }
    }
}

impl Config {
    /// The configuration of an original checkpoint, which holds only tensors.
    fn original(weights: &Weights) -> Result<Self> {
        let normed = weights.contains("encoder.layers.0.norm.weight");
        let channels = ["conv.weight_v", "conv.weight", "conv.parametrizations.weight.original1"]
            .iter()
            .find_map(|name| weights.pp("encoder.layers.0").shape(name)?.get(1).copied());
        match (channels, normed) {
            (Some(1), false) => Ok(Self::default()),
            (Some(2), true) => Ok(Self {
                audio_channels: 2,
                chunk_length_s: Some(1.0),
                norm_type: "time_group_norm".to_owned(),
                normalize: true,
                overlap: Some(0.01),
                sampling_rate: 48_000,
                target_bandwidths: vec![3.0, 6.0, 12.0, 24.0],
                use_causal_conv: false,
                ..Self::default()
            }),
            (channels, normed) => {
                let value = format!("of {} channels, group norm {normed}", channels.unwrap_or(0));
                Err(Error::Unsupported { what: "EnCodec without a configuration", value })
            }
        }
    }

    fn build(&self, weights: &Weights) -> Result<Networks> {
        let net = self.net()?;
        let hop_length = net.hop_length()?;
        let segment = self.segment(hop_length)?;
        let n_codebooks = self.n_codebooks(hop_length)?;
        let mut layout = CodeLayout::uniform(n_codebooks, self.codebook_size)?;
        if let Some(segment) = segment {
            layout = layout.with_scales(segment.n_frames)?;
        }
        let info = CodecInfo {
            model: format!("encodec_{}khz", f64::from(self.sampling_rate) / 1000.0),
            family: FAMILY.name,
            audio: AudioSpec { sample_rate: self.sampling_rate, channels: self.audio_channels },
            hop_length,
            delays: Delays::default(),
            segment,
            layout,
        };
        let shape = (self.codebook_size as usize, self.hidden_size);
        let codebook = |idx: usize| weights.get(shape, &format!("quantizer.layers.{idx}.codebook.embed"));
        let codebooks = load_each(n_codebooks, codebook)?;
        let (encoder, decoder) = load_both(
            || net.encoder(&weights.pp("encoder.layers")),
            || net.decoder(&weights.pp("decoder.layers")),
        )?;
        let quantizer = QuantizerNet::residual(codebooks);
        let networks = Networks { info, encoder, decoder, quantizer };
        weights.finish(&IGNORED)?;
        Ok(networks)
    }

    fn net(&self) -> Result<Seanet> {
        if self.sampling_rate == 0 {
            return Err(Error::config("sampling_rate", "must not be zero"));
        }
        let fill = fill(&self.pad_mode)?;
        let group_norm = match self.norm_type.as_str() {
            "weight_norm" => false,
            "time_group_norm" => true,
            _ => return Err(Error::unsupported("norm_type", &self.norm_type)),
        };
        if group_norm && (self.use_causal_conv || self.chunk_length_s.is_none()) {
            // Its statistics need all samples, so there would be no stream.
            return Err(Error::unsupported("norm_type", "time_group_norm of a whole clip"));
        }
        if self.codebook_dim.is_some_and(|dim| dim != self.hidden_size) {
            return Err(Error::unsupported("codebook_dim", "other than hidden_size"));
        }
        if !self.use_causal_conv && self.trim_right_ratio != 1.0 {
            return Err(Error::config("trim_right_ratio", "other than 1 needs use_causal_conv"));
        }
        Ok(Seanet {
            channels: usize::from(self.audio_channels),
            dim: self.hidden_size,
            n_filters: self.num_filters,
            ratios: self.upsampling_ratios.clone(),
            n_residual_layers: self.num_residual_layers,
            kernel_size: self.kernel_size,
            last_kernel_size: self.last_kernel_size,
            residual_kernel_size: self.residual_kernel_size,
            dilation_growth: self.dilation_growth_rate,
            compress: self.compress,
            n_lstm_layers: self.num_lstm_layers,
            bidirectional: false,
            snake: false,
            causal: self.use_causal_conv,
            trim_right_ratio: self.trim_right_ratio,
            fill,
            conv_shortcut: self.use_conv_shortcut,
            group_norm,
        })
    }

    /// As many as the largest bandwidth, in kbit/s, has room for.
    fn n_codebooks(&self, hop_length: u32) -> Result<usize> {
        if !self.codebook_size.is_power_of_two() {
            return Err(Error::unsupported("codebook_size", self.codebook_size));
        }
        let bits_per_codebook = self.sampling_rate.div_ceil(hop_length) * self.codebook_size.ilog2();
        let bandwidth = self.target_bandwidths.last().copied().unwrap_or(0.0);
        let n_codebooks = (1000.0 * bandwidth / f64::from(bits_per_codebook)).floor();
        if !(1.0..=codec_core::codes::MAX_CODEBOOKS as f64).contains(&n_codebooks) {
            return Err(Error::config("target_bandwidths", "leaves no codebook or too many"));
        }
        Ok(n_codebooks as usize)
    }

    fn segment(&self, hop_length: u32) -> Result<Option<Segment>> {
        let (seconds, overlap) = match (self.chunk_length_s, self.overlap, self.normalize) {
            // The reference takes no notice of an overlap without a length.
            (None, _, false) => return Ok(None),
            (Some(seconds), Some(overlap), true) => (seconds, overlap),
            (None, _, true) => return Err(Error::unsupported("normalize", "without chunk_length_s")),
            (Some(_), None, _) => return Err(Error::unsupported("chunk_length_s", "without overlap")),
            (Some(_), Some(_), false) => {
                return Err(Error::unsupported("chunk_length_s", "without normalize"));
            }
        };
        // Rounded down in f64, as Python's int() does.
        let n_samples = (seconds * f64::from(self.sampling_rate)).floor();
        let stride = ((1.0 - overlap) * n_samples).floor().max(1.0);
        if !(0.0..1.0).contains(&overlap) || !(1.0..=f64::from(1_u32 << 24)).contains(&n_samples) {
            return Err(Error::config("chunk_length_s", "and overlap do not make a segment"));
        }
        let (n_samples, stride) = (n_samples as u32, stride as u32);
        Ok(Some(Segment { n_samples, stride, n_frames: n_samples.div_ceil(hop_length) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;

    fn parse(json: &str) -> Config {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn published_configurations() {
        let causal = parse("{}");
        assert_eq!(
            (causal.net().unwrap().hop_length().unwrap(), causal.n_codebooks(320).unwrap()),
            (320, 32)
        );
        assert_eq!(causal.segment(320).unwrap(), None);

        let stereo = parse(
            r#"{"sampling_rate": 48000, "target_bandwidths": [3.0, 6.0, 12.0, 24.0], "normalize": true,
                "chunk_length_s": 1.0, "overlap": 0.01, "use_causal_conv": false}"#,
        );
        assert_eq!(stereo.n_codebooks(320).unwrap(), 16);
        let segment = Segment { n_samples: 48_000, stride: 47_520, n_frames: 150 };
        assert_eq!(stereo.segment(320).unwrap(), Some(segment));

        let music = parse(
            r#"{"sampling_rate": 32000, "target_bandwidths": [2.2], "codebook_size": 2048,
                "upsampling_ratios": [8, 5, 4, 4]}"#,
        );
        assert_eq!((music.net().unwrap().hop_length().unwrap(), music.n_codebooks(640).unwrap()), (640, 4));
        let sound = parse(r#"{"sampling_rate": 16000, "target_bandwidths": [2.2], "codebook_size": 2048}"#);
        assert_eq!(sound.n_codebooks(320).unwrap(), 4);
    }

    #[test]
    fn what_is_not_implemented_or_wrong_is_refused_at_load() {
        let weights = Weights::from_bytes(one_tensor("x", (1, 1, 1)), &Device::Cpu).unwrap();
        for (json, expected) in [
            (r#"{"pad_mode": "circular"}"#, "pad_mode `circular` is not supported"),
            (r#"{"norm_type": "layer_norm"}"#, "norm_type `layer_norm` is not supported"),
            (
                r#"{"norm_type": "time_group_norm"}"#,
                "norm_type `time_group_norm of a whole clip` is not supported",
            ),
            (r#"{"codebook_dim": 64}"#, "codebook_dim `other than hidden_size` is not supported"),
            (r#"{"codebook_size": 1000}"#, "codebook_size `1000` is not supported"),
            (r#"{"normalize": true}"#, "normalize `without chunk_length_s` is not supported"),
            (
                r#"{"chunk_length_s": 1.0, "overlap": 0.1}"#,
                "chunk_length_s `without normalize` is not supported",
            ),
            (r#"{"trim_right_ratio": 1.5}"#, "configuration: trim_right_ratio: must lie in 0..=1"),
            (r#"{"sampling_rate": 0}"#, "configuration: sampling_rate: must not be zero"),
            (r#"{"upsampling_ratios": []}"#, "configuration: upsampling_ratios: must not be zero"),
            (r#"{"upsampling_ratios": [4, 0]}"#, "configuration: upsampling_ratios: must not be zero"),
            (r#"{"upsampling_ratios": [60000, 60000]}"#, "configuration: upsampling_ratios: is too large"),
            (r#"{"num_filters": 60000}"#, "configuration: num_filters: is too large"),
            (r#"{"num_residual_layers": 70}"#, "configuration: num_residual_layers: is too large"),
            (r#"{"compress": 64}"#, "configuration: compress: leaves no channels"),
            (
                r#"{"target_bandwidths": []}"#,
                "configuration: target_bandwidths: leaves no codebook or too many",
            ),
            (
                r#"{"target_bandwidths": [1e30]}"#,
                "configuration: target_bandwidths: leaves no codebook or too many",
            ),
            (
                r#"{"chunk_length_s": 1e30, "overlap": 0.1, "normalize": true}"#,
                "configuration: chunk_length_s: and overlap do not make a segment",
            ),
            ("{}", "the checkpoint lacks quantizer.layers.0.codebook.embed"),
        ] {
            let error = parse(json).build(&weights).unwrap_err();
            assert_eq!(error.to_string(), expected, "{json}");
        }
    }

    #[test]
    fn tensors_tell_the_original_models_apart() {
        let config = |name: &str, shape: (usize, usize, usize)| {
            let weights = Weights::from_bytes(one_tensor(name, shape), &Device::Cpu).unwrap();
            Config::original(&weights.renamed(modern_name).unwrap())
        };
        assert_eq!(config("encoder.model.0.conv.conv.weight_v", (32, 1, 7)).unwrap().sampling_rate, 24_000);
        let error = config("encoder.model.0.conv.conv.weight", (32, 2, 7)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }

    fn one_tensor(name: &str, shape: (usize, usize, usize)) -> Vec<u8> {
        let tensor = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        safetensors::serialize([(name, tensor)], None).unwrap()
    }
}
