//! From `--lm` and `--codec` to a language model and its codec.

use crate::report::Reporter;
use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::builder::NonEmptyStringValueParser;
use codec_core::CodecInfo;
use codec_io::card::ModelCard;
use codec_lm::LanguageModel;
use codec_lm::config::CodecIdentity;
use codec_lm::families::check_n_codebooks;
use codec_models::{Loaded, Purpose};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Which language model is meant.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LmArgs {
    /// Language model: a folder with config.json and model.safetensors, or one file
    /// [default: the one inside this program].
    #[arg(short = 'm', long, value_name = "PATH", env = "CODEC_LM")]
    pub(crate) lm: Option<PathBuf>,
    /// Codebooks in use, of a model that serves any number of them: EnCodec's. Every other model, the one
    /// inside this program as well, reads all of its own [default: all].
    #[arg(short = 'n', long, value_name = "N")]
    codebooks: Option<NonZeroUsize>,
}

impl LmArgs {
    pub(crate) fn load(&self) -> Result<Box<dyn LanguageModel>> {
        let n_codebooks = self.codebooks.map(NonZeroUsize::get);
        if let Some(path) = &self.lm {
            let model = codec_lm::load(path, n_codebooks, &Device::Cpu);
            return model.with_context(|| format!("{}: the language model does not load", path.display()));
        }
        match codec_lm::embedded::load(&Device::Cpu).context("the language model of this program")? {
            Some(model) => {
                let checked = check_n_codebooks(&model, n_codebooks);
                checked.context("the language model of this program")?;
                Ok(Box::new(model))
            }
            None => bail!(
                "this build has no language model inside: name one with --lm\n\
                 Train one on token files or audio with\n  codec-lm train --config RUN.toml\n\
                 as docs/language-models.md shows; a finished run leaves its model in RUN/model"
            ),
        }
    }
}

/// Which codec is meant.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CodecArgs {
    /// Codec whose codes the language model knows: the name of a model, or the path of a checkpoint, as for
    /// `codec --model` [default: the language model's, or that of `codec`].
    #[arg(long, value_name = "NAME|PATH", env = "CODEC_MODEL", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) codec: Option<String>,
}

impl CodecArgs {
    /// The codec that was named, or that of the language model.
    ///
    /// A codec of the same name or kind with other weights, such as a later training of it, or the same weights in
    /// another file, is used with a note.
    pub(crate) fn load(
        &self,
        expected: Option<&CodecIdentity>,
        purpose: Purpose,
        reporter: Reporter,
    ) -> Result<Loaded> {
        let own = expected.map(|codec| codec.model.as_str()).filter(|name| codec_models::card(name).is_ok());
        let name = self.codec.as_deref().or(own).unwrap_or(codec_models::DEFAULT);
        let codec = codec_models::load_with(name, &Device::Cpu, purpose)?;
        if let Some(expected) = expected
            && let Err(error) = expected.check(codec.codec.info(), &codec.sha256)
        {
            if !is_of_kind(expected, codec.codec.info()) {
                let other = || format!("the codec {name}: name that of the language model with --codec");
                return Err(error).with_context(other);
            }
            reporter.note(&format!("{error}; what it makes may be worse than it could be"));
        }
        Ok(codec)
    }

    /// The codec that was named, or the published one that the language model names, to encode only; none where
    /// neither is.
    pub(crate) fn load_known(&self, expected: Option<&CodecIdentity>) -> Result<Option<Loaded>> {
        let own = expected.map(|codec| codec.model.as_str()).filter(|name| codec_models::card(name).is_ok());
        let name = self.codec.as_deref().or(own);
        Ok(name.map(|name| codec_models::load_with(name, &Device::Cpu, Purpose::Encoding)).transpose()?)
    }
}

/// Whether a codec is one like that which a language model expects: by its name, or by what the card of that says.
fn is_of_kind(expected: &CodecIdentity, info: &CodecInfo) -> bool {
    let is_like = |card: &ModelCard| {
        card.family == info.family
            && (card.sample_rate, card.hop_length) == (info.audio.sample_rate, info.hop_length)
    };
    expected.model == info.model || codec_models::card(&expected.model).is_ok_and(is_like)
}
