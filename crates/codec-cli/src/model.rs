//! From `--model` to a loaded codec.

use crate::device::DeviceKind;
use crate::interrupt;
use anyhow::{Context, Result, bail};
use codec_core::{AudioSpec, Codec, CodecInfo, PerChannel};
use codec_io::tokens::TokenHeader;
use codec_models::{LoadOptions, Precision, Purpose};

/// How the user names a model and where it is to run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// Model: the name of a card, or the path of a checkpoint (a folder or a file)
    /// [default: codec-16khz, which is part of this program].
    #[arg(short, long, value_name = "NAME|PATH", env = "CODEC_MODEL")]
    pub(crate) model: Option<String>,
    /// Where the networks run. Other devices than the CPU are not held to the same bits.
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) device: DeviceKind,
    /// Numbers that hold the weights, on the CPU. With `int8` codes and audio differ a little; `codec roundtrip`
    /// says how much.
    #[arg(long, value_enum, default_value = "float32")]
    pub(crate) weights: WeightKind,
}

/// `--weights`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum WeightKind {
    /// As the checkpoint has them.
    #[default]
    Float32,
    /// Rounded to 8 bits: less memory, and a faster stream where memory is slow.
    Int8,
}

impl WeightKind {
    /// Its name on the command line and in token files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Int8 => "int8",
        }
    }

    /// Writes into a header that other weights than those of the checkpoint made the codes.
    pub(crate) fn tag(self, header: TokenHeader) -> TokenHeader {
        match self {
            Self::Float32 => header,
            Self::Int8 => header.with_tag(TokenHeader::WEIGHTS_TAG, self.name()),
        }
    }

    fn precision(self) -> Precision {
        match self {
            Self::Float32 => Precision::Float32,
            Self::Int8 => Precision::Int8,
        }
    }
}

/// How many codebooks to keep.
#[derive(Clone, Debug, clap::Args)]
#[group(multiple = false)]
pub(crate) struct RateArgs {
    /// Bitrate in kbit/s: as many codebooks as fit into it [default: all codebooks].
    #[arg(short, long, value_name = "KBPS")]
    bitrate: Option<f64>,
    /// Number of codebooks.
    #[arg(short = 'n', long, value_name = "N")]
    codebooks: Option<usize>,
}

impl RateArgs {
    /// The number of codebooks asked for, the same number for each of `n_streams` that share them.
    ///
    /// # Errors
    /// When the model has fewer codebooks, or none fits the bitrate.
    pub(crate) fn n_codebooks(&self, info: &CodecInfo, n_streams: usize) -> Result<usize> {
        let n_all = info.layout.n_codebooks();
        let Some(kbps) = self.bitrate else {
            let n = self.codebooks.map_or(n_all, |n| n.saturating_mul(n_streams));
            info.layout.check_n_codebooks(n).with_context(|| format!("model {}", info.model))?;
            return Ok(n);
        };
        let lowest = info.bitrate(n_streams)?.to_f64() / 1000.0;
        if !kbps.is_finite() || kbps < lowest {
            bail!("--bitrate {kbps}: model {} starts at {lowest:.3} kbit/s", info.model);
        }
        // Exact for every bitrate that a person would write.
        let n = info.n_codebooks_for_bitrate((kbps * 1000.0).round() as u64);
        Ok((n - n % n_streams).max(n_streams))
    }
}

/// What happens to the channels of an input.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct ChannelArgs {
    /// Code every channel of the input by itself when the model is mono, instead of mixing them down:
    /// that many times the bitrate.
    #[arg(long)]
    each_channel: bool,
}

impl ChannelArgs {
    /// The audio that a model is given when the input has the audio `from`.
    pub(crate) fn spec(self, model: &Model, from: AudioSpec) -> AudioSpec {
        let audio = model.codec.info().audio;
        let apart = self.each_channel && audio.channels == 1;
        AudioSpec { channels: if apart { from.channels } else { audio.channels }, ..audio }
    }
}

/// A codec with what a token file says of it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) codec: Box<dyn Codec>,
    pub(crate) sha256: [u8; 32],
}

impl Model {
    /// The codec for audio of so many channels: a mono codec codes each by itself.
    ///
    /// # Errors
    /// When the model codes audio of another number of channels only.
    pub(crate) fn for_channels(&self, channels: u16) -> Result<Box<dyn Codec + '_>> {
        if channels == self.codec.info().audio.channels {
            return Ok(Box::new(self.codec.as_ref()));
        }
        Ok(Box::new(PerChannel::new(self.codec.as_ref(), channels)?))
    }

    /// Refuses a model that only decodes, before anything is read or written for it.
    ///
    /// # Errors
    /// When it does.
    pub(crate) fn expect_encoder(&self) -> Result<()> {
        let CodecInfo { model, family, .. } = self.codec.info();
        if !self.codec.encodes() {
            bail!("model {model} only decodes: the encoder of the family {family} is not supported");
        }
        Ok(())
    }

    /// How many streams of codes such a codec makes.
    pub(crate) fn n_streams(&self, codec: &dyn Codec) -> usize {
        codec.info().layout.n_codebooks() / self.codec.info().layout.n_codebooks()
    }
}

impl ModelArgs {
    /// Loads the model that the user named, or the default.
    ///
    /// # Errors
    /// When the model is unknown, its files are not found, or they do not load.
    pub(crate) fn load(&self, purpose: Purpose) -> Result<Model> {
        self.load_or(codec_models::DEFAULT, purpose)
    }

    /// Loads the model that the user named, or the one that made a token file.
    ///
    /// # Errors
    /// As [`ModelArgs::load`].
    pub(crate) fn load_or(&self, otherwise: &str, purpose: Purpose) -> Result<Model> {
        let name = self.model.as_deref().unwrap_or(otherwise);
        if name.is_empty() {
            bail!("--model: no name is given");
        }
        if self.weights != WeightKind::Float32 && self.device != DeviceKind::Cpu {
            bail!("--weights {} works on the CPU alone", self.weights.name());
        }
        let options = LoadOptions { precision: self.weights.precision(), purpose };
        let loaded = codec_models::load_with(name, &self.device.open()?, options)?;
        interrupt::check()?;
        Ok(Model { codec: loaded.codec, sha256: loaded.sha256 })
    }
}
