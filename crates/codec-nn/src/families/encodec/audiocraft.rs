//! The configuration that audiocraft writes into its checkpoints: YAML text under `xp.cfg`.
//!
//! Only what OmegaConf writes is read: mappings by indentation, lists of scalars, and references such
//! as `${encodec.causal}` as whole values.
//!
//! # Source
//! facebookresearch/audiocraft, audiocraft/utils/export.py, config/model/encodec/default.yaml, and
//! `_get_encodec` in audiocraft/models/builders.py.

use super::Config;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::str::FromStr;

/// Most references in a row.
const MAX_REFERENCES: usize = 8;
/// Settings that may have the one value that is implemented, or be left out.
const FIXED: [(&str, &str); 10] = [
    ("compression_model", "encodec"),
    ("encodec.autoencoder", "seanet"),
    ("encodec.quantizer", "rvq"),
    ("encodec.renormalize", "false"),
    ("seanet.activation", "ELU"),
    ("seanet.activation_params.alpha", "1.0"),
    ("seanet.disable_norm_outer_blocks", "0"),
    ("seanet.decoder.final_activation", "null"),
    ("seanet.decoder.final_activation_params", "null"),
    ("seanet.encoder", "{}"),
];
/// Settings of one side of the network that are read; any other would make it another network.
const SIDES: [&str; 2] = ["seanet.encoder.", "seanet.decoder."];

/// Reads the configuration of a checkpoint.
///
/// # Errors
/// [`Error::Config`] for a setting that is missing or no number, [`Error::Unsupported`] for one that is
/// not implemented.
pub(super) fn read(yaml: &str) -> Result<Config> {
    let settings = Settings::parse(yaml);
    for (name, expected) in FIXED {
        if let Some(value) = settings.find(name).filter(|value| *value != expected) {
            return Err(Error::unsupported(name, value));
        }
    }
    let known = |name: &str| {
        name == "seanet.decoder.trim_right_ratio" || FIXED.iter().any(|(fixed, _)| *fixed == name)
    };
    let is_of_side = |name: &&String| SIDES.iter().any(|side| name.starts_with(side));
    if let Some(name) = settings.values.keys().find(|name| is_of_side(name) && !known(name)) {
        return Err(Error::unsupported("setting of one side of the network", name));
    }
    let ratios = settings.get("seanet.ratios")?;
    let upsampling_ratios: Vec<usize> =
        ratios.iter().map(|text| number("seanet.ratios", text)).collect::<Result<_>>()?;
    let sampling_rate: u32 = settings.number("encodec.sample_rate")?;
    let codebook_size: u32 = settings.number("rvq.bins")?;
    let n_codebooks: u32 = settings.number("rvq.n_q")?;
    let hop_length = upsampling_ratios.iter().try_fold(1_u32, |hop, &ratio| {
        u32::try_from(ratio).ok().and_then(|ratio| hop.checked_mul(ratio)).filter(|&hop| hop > 0)
    });
    let hop_length = hop_length.ok_or_else(|| Error::config("seanet.ratios", "make no hop"))?;
    // As many codebooks as there are; their bandwidth, in kbit/s, is how Hugging Face counts them.
    let frame_rate = f64::from(sampling_rate.div_ceil(hop_length));
    let bits = codebook_size.checked_ilog2().ok_or_else(|| Error::config("rvq.bins", "must not be zero"))?;
    let bandwidth = f64::from(n_codebooks) * f64::from(bits) * frame_rate / 1000.0;
    Ok(Config {
        audio_channels: settings.number("seanet.channels")?,
        chunk_length_s: None,
        codebook_dim: None,
        codebook_size,
        compress: settings.number("seanet.compress")?,
        dilation_growth_rate: settings.number("seanet.dilation_base")?,
        hidden_size: settings.number("seanet.dimension")?,
        kernel_size: settings.number("seanet.kernel_size")?,
        last_kernel_size: settings.number("seanet.last_kernel_size")?,
        norm_type: settings.one("seanet.norm")?.to_owned(),
        normalize: false,
        num_filters: settings.number("seanet.n_filters")?,
        num_lstm_layers: settings.number("seanet.lstm")?,
        num_residual_layers: settings.number("seanet.n_residual_layers")?,
        overlap: None,
        pad_mode: settings.one("seanet.pad_mode")?.to_owned(),
        residual_kernel_size: settings.number("seanet.residual_kernel_size")?,
        sampling_rate,
        target_bandwidths: vec![bandwidth],
        trim_right_ratio: settings.number("seanet.decoder.trim_right_ratio")?,
        upsampling_ratios,
        use_causal_conv: settings.number("seanet.causal")?,
        use_conv_shortcut: !settings.number::<bool>("seanet.true_skip")?,
    })
}

/// Scalars by their path of keys; a list has several.
struct Settings<'a> {
    values: BTreeMap<String, Vec<&'a str>>,
}

impl<'a> Settings<'a> {
    fn parse(yaml: &'a str) -> Self {
        let mut values: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        // The keys above the current line, with their indentation.
        let mut keys: Vec<(usize, &str)> = Vec::new();
        for line in yaml.lines() {
            let text = line.trim_start();
            let indent = line.len() - text.len();
            let path =
                |keys: &[(usize, &str)]| keys.iter().map(|(_, key)| *key).collect::<Vec<_>>().join(".");
            if let Some(item) = text.strip_prefix("- ") {
                // A list may be as far out as its key.
                keys.retain(|(key_indent, _)| *key_indent <= indent);
                values.entry(path(&keys)).or_default().push(scalar(item));
            } else if let Some((key, value)) = text.split_once(':') {
                keys.retain(|(key_indent, _)| *key_indent < indent);
                keys.push((indent, key));
                if !value.trim().is_empty() {
                    values.insert(path(&keys), vec![scalar(value)]);
                }
            }
        }
        Self { values }
    }

    fn get(&self, name: &'static str) -> Result<&[&'a str]> {
        let mut path = name;
        for _ in 0..MAX_REFERENCES {
            match self.values.get(path).map(Vec::as_slice) {
                Some([reference]) if reference.starts_with("${") => {
                    path = reference.trim_start_matches("${").trim_end_matches('}');
                }
                Some(values) => return Ok(values),
                None => break,
            }
        }
        Err(Error::config(name, "is not in xp.cfg"))
    }

    fn one(&self, name: &'static str) -> Result<&'a str> {
        match self.get(name)? {
            [value] => Ok(value),
            _ => Err(Error::config(name, "is a list")),
        }
    }

    fn find(&self, name: &'static str) -> Option<&'a str> {
        self.one(name).ok()
    }

    fn number<T: FromStr>(&self, name: &'static str) -> Result<T> {
        number(name, self.one(name)?)
    }
}

fn scalar(text: &str) -> &str {
    let text = text.trim();
    let quoted = |quote: char| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    quoted('\'').or_else(|| quoted('"')).unwrap_or(text)
}

fn number<T: FromStr>(name: &'static str, text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::Config { field: name, why: format!("`{text}` is not possible") })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As OmegaConf writes the configuration of the 16 kHz model.
    const YAML: &str = "\
device: cpu
sample_rate: 16000
channels: 1
compression_model: encodec
dataset:
  train:
    num_samples: 500000
encodec:
  autoencoder: seanet
  quantizer: rvq
  sample_rate: ${sample_rate}
  channels: ${channels}
  causal: false
  renormalize: false
seanet:
  dimension: 128
  channels: ${channels}
  causal: ${encodec.causal}
  n_filters: 64
  n_residual_layers: 1
  ratios:
  - 8
  - 5
  - 4
  - 2
  activation: ELU
  activation_params:
    alpha: 1.0
  norm: weight_norm
  norm_params: {}
  kernel_size: 7
  residual_kernel_size: 3
  last_kernel_size: 7
  dilation_base: 2
  pad_mode: constant
  true_skip: true
  compress: 2
  lstm: 2
  disable_norm_outer_blocks: 0
  decoder:
    trim_right_ratio: 1.0
    final_activation: null
    final_activation_params: null
  encoder: {}
rvq:
  n_q: 4
  bins: 2048
";

    #[test]
    fn the_published_configuration() {
        let config = read(YAML).unwrap();
        let expected = Config {
            codebook_size: 2048,
            num_filters: 64,
            pad_mode: "constant".to_owned(),
            sampling_rate: 16_000,
            target_bandwidths: vec![2.2],
            use_causal_conv: false,
            use_conv_shortcut: false,
            ..Config::default()
        };
        assert_eq!(format!("{config:?}"), format!("{expected:?}"));
        assert_eq!(config.n_codebooks(320).unwrap(), 4);
    }

    #[test]
    fn what_is_missing_odd_or_not_implemented_is_named() {
        for (from, to, expected) in [
            ("  pad_mode: constant\n", "", "seanet.pad_mode: is not in xp.cfg"),
            ("n_filters: 64", "n_filters: many", "seanet.n_filters: `many` is not possible"),
            ("causal: false", "causal: ${encodec.causal}", "seanet.causal: is not in xp.cfg"),
            ("activation: ELU", "activation: Snake", "seanet.activation `Snake` is not supported"),
            ("renormalize: false", "renormalize: true", "encodec.renormalize `true` is not supported"),
            ("encoder: {}", "encoder:\n    n_filters: 32", "`seanet.encoder.n_filters` is not supported"),
            ("  - 8\n", "  - 0\n", "seanet.ratios: make no hop"),
            ("bins: 2048", "bins: 0", "rvq.bins: must not be zero"),
        ] {
            assert!(YAML.contains(from), "{from}");
            let error = read(&YAML.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
