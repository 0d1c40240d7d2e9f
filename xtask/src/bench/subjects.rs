//! What is measured: published models at their full size, with seeded random weights.

use crate::shared;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use codec_nn::families::networks;
use codec_nn::weights::{Checkpoint, Variables};
use std::path::{Path, PathBuf};

/// The networks' speed does not depend on it.
const SEED: u64 = 1;

/// A model at its published size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject {
    /// As its card.
    pub(super) name: &'static str,
    /// For the table.
    pub(super) title: &'static str,
    pub(super) source: Source,
    /// Codebooks that are coded and decoded.
    pub(super) n_codebooks: usize,
    /// Samples per step of the streaming measurement: 80 ms, or a whole block where that is more.
    pub(super) step_samples: usize,
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// As `config.json` of Hugging Face says; the weights are random.
    Config(&'static str),
    /// Lyra's published files, from the optional shared test data.
    Lyra,
}

/// In the order of the table.
pub(super) const SUBJECTS: &[Subject] = &[
    Subject {
        name: "encodec_24khz",
        title: "EnCodec 24 kHz, 8 codebooks",
        source: Source::Config(r#"{"model_type": "encodec"}"#),
        n_codebooks: 8,
        step_samples: 1920,
    },
    Subject {
        name: "encodec_48khz",
        title: "EnCodec 48 kHz stereo, 8 codebooks",
        source: Source::Config(
            r#"{"model_type": "encodec", "audio_channels": 2, "chunk_length_s": 1.0,
            "norm_type": "time_group_norm", "normalize": true, "overlap": 0.01, "sampling_rate": 48000,
            "target_bandwidths": [3.0, 6.0, 12.0, 24.0], "use_causal_conv": false}"#,
        ),
        n_codebooks: 8,
        step_samples: 48_000,
    },
    Subject {
        name: "dac_44khz",
        title: "DAC 44.1 kHz, 9 codebooks",
        source: Source::Config(
            r#"{"model_type": "dac", "sampling_rate": 44100, "hidden_size": 1024, "n_codebooks": 9}"#,
        ),
        n_codebooks: 9,
        step_samples: 3584,
    },
    Subject {
        name: "mimi",
        title: "Mimi 24 kHz, 8 codebooks",
        source: Source::Config(r#"{"model_type": "mimi"}"#),
        n_codebooks: 8,
        step_samples: 1920,
    },
    Subject {
        name: "snac_24khz",
        title: "SNAC 24 kHz, 3 codebooks",
        source: Source::Config(
            r#"{"sampling_rate": 24000, "encoder_dim": 48, "encoder_rates": [2, 4, 8, 8],
            "decoder_dim": 1024, "decoder_rates": [8, 8, 4, 2], "attn_window_size": null,
            "codebook_size": 4096, "codebook_dim": 8, "vq_strides": [4, 2, 1], "noise": true,
            "depthwise": true}"#,
        ),
        n_codebooks: 3,
        step_samples: 2048,
    },
    Subject {
        name: "lyra-v2",
        title: "Lyra v2 (SoundStream, int8), 46 codebooks",
        source: Source::Lyra,
        n_codebooks: 46,
        step_samples: 1280,
    },
];

impl Subject {
    /// The model as a file or folder, made in `folder` when it is not one that exists; `None` when its files
    /// are not on this machine.
    pub(super) fn checkpoint(&self, folder: &Path) -> Result<Option<PathBuf>> {
        match self.source {
            Source::Config(config) => {
                let folder = folder.join(self.name);
                write_random(config, &folder).with_context(|| format!("{}: cannot be made", self.name))?;
                Ok(Some(folder))
            }
            Source::Lyra => Ok(shared::lyra()),
        }
    }
}

/// Writes a model with random weights as Hugging Face lays it out.
fn write_random(config: &str, folder: &Path) -> Result<()> {
    let variables = Variables::seeded(&Device::Cpu, SEED);
    networks(&Checkpoint::from_config(config, &Device::Cpu).trained(&variables))?;
    let values = variables.all().into_iter().map(|(name, var)| (name, var.as_detached_tensor()));
    let tensors: Vec<(String, Tensor)> = values.chain(variables.constants()).collect();
    std::fs::create_dir_all(folder)?;
    safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors"))?;
    Ok(std::fs::write(folder.join("config.json"), config)?)
}

/// A signal with tones, a beat and noise, in [-1, 1]: `n_samples` of each channel, interleaved.
pub(super) fn signal(n_samples: usize, channels: usize, sample_rate: u32) -> Vec<f32> {
    let mut state = SEED;
    let mut noise = move || {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1_u32 << 23) - 1.0
    };
    let sample = |i: usize| {
        let (t, channel) = ((i / channels) as f64 / f64::from(sample_rate), (i % channels) as f64);
        let swell = 0.5 + 0.5 * (std::f64::consts::TAU * 3.0 * t).sin();
        let chirp = (std::f64::consts::TAU * (220.0 + 40.0 * channel + 60.0 * t) * t).sin();
        (0.4 * swell * chirp + 0.1 * (1.0 - swell) * noise() + 0.01 * noise()) as f32
    };
    (0..n_samples * channels).map(sample).collect()
}
