//! What a language model is, apart from its weights: the file `config.json` beside them.

use crate::error::{Error, Result};
use crate::pattern::{Arrangement, Pattern};
use codec_core::{CodeLayout, CodebookSpec, CodecInfo};
use codec_nn::layers::{Heads, Unary};
use serde::{Deserialize, Serialize};

/// How the file names this kind of model.
pub const MODEL_TYPE: &str = "codec-lm";
/// Most channels, of steps and inside the feed-forward networks.
const MAX_DIM: usize = 1 << 16;
/// Most layers.
const MAX_LAYERS: usize = 1 << 10;

/// A decoder-only transformer over codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Always [`MODEL_TYPE`].
    pub model_type: String,
    /// The codebooks, coarse to fine.
    pub codebooks: Vec<Codebook>,
    /// How codes stand in a sequence.
    pub pattern: Pattern,
    /// The transformer.
    #[serde(flatten)]
    pub shape: Shape,
    /// Names of the classes that a sequence can be asked to belong to; none without.
    #[serde(default)]
    pub classes: Vec<String>,
    /// The codec whose codes these are, if that is known.
    #[serde(default)]
    pub codec: Option<CodecIdentity>,
}

/// One codebook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Codebook {
    /// Number of entries.
    pub size: u32,
    /// Frames per code.
    #[serde(default = "one")]
    pub stride: u32,
}

/// Sizes and choices of the transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shape {
    /// Channels of a step.
    pub dim: usize,
    /// Layers.
    pub n_layers: usize,
    /// Heads of the attention.
    pub n_heads: usize,
    /// Channels inside the feed-forward networks.
    pub hidden: usize,
    /// Steps that a step sees, itself included; all of them without.
    pub context: Option<usize>,
    /// What normalises.
    pub norm: NormKind,
    /// Added to what a norm divides by.
    pub norm_epsilon: f64,
    /// How a step knows its place.
    pub positions: Positions,
    /// Between the two maps of a feed-forward network.
    pub activation: ActivationKind,
    /// Whether the heads are the embeddings.
    pub tied: bool,
    /// Whether the heads have a bias.
    pub head_bias: bool,
    /// The transformer over the codes of a step, for [`Pattern::Depth`].
    pub depth: Option<DepthShape>,
}

/// Sizes of the transformer over the codes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepthShape {
    /// Channels of a code.
    pub dim: usize,
    /// Layers.
    pub n_layers: usize,
    /// Heads of the attention.
    pub n_heads: usize,
    /// Channels inside the feed-forward networks.
    pub hidden: usize,
}

/// A normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// By the root mean square, with a gain.
    #[default]
    Rms,
    /// By mean and variance, with gain and shift.
    Layer,
}

/// How a step knows its place.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Positions {
    /// Queries and keys are turned.
    Rotary {
        /// Of the frequencies.
        base: f64,
    },
    /// Cosines, then sines, are added to the embeddings (MusicGen).
    Sinusoidal,
}

impl Default for Positions {
    fn default() -> Self {
        Self::Rotary { base: 10_000.0 }
    }
}

/// An activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationKind {
    /// The exact GELU.
    #[default]
    Gelu,
    /// GELU by a hyperbolic tangent.
    GeluTanh,
    /// SiLU.
    Silu,
    /// The positive part.
    Relu,
}

impl ActivationKind {
    pub(crate) fn unary(self) -> Unary {
        match self {
            Self::Gelu => Unary::Gelu,
            Self::GeluTanh => Unary::GeluTanh,
            Self::Silu => Unary::Silu,
            Self::Relu => Unary::Relu,
        }
    }
}

/// Which codec the codes are from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecIdentity {
    /// As in [`CodecInfo::model`].
    pub model: String,
    /// Of the weights, in hexadecimal digits.
    pub sha256: String,
    /// Samples per second.
    pub sample_rate: u32,
    /// Samples per frame.
    pub hop_length: u32,
}

impl CodecIdentity {
    /// The identity of a codec with the weights of this hash.
    pub fn of(info: &CodecInfo, sha256: &[u8; 32]) -> Self {
        Self {
            model: info.model.clone(),
            sha256: hexadecimal(sha256),
            sample_rate: info.audio.sample_rate,
            hop_length: info.hop_length,
        }
    }

    /// Frames per second.
    pub fn frame_rate(&self) -> f64 {
        f64::from(self.sample_rate) / f64::from(self.hop_length.max(1))
    }

    /// Refuses a codec with other weights: its codes mean something else.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn check(&self, info: &CodecInfo, sha256: &[u8; 32]) -> Result<()> {
        let given = Self::of(info, sha256);
        if given.sha256 != self.sha256 {
            let name = |own: &Self| format!("{} {}", own.model, own.sha256.get(..12).unwrap_or_default());
            return Err(Error::Mismatch {
                what: "the codec of the language model",
                left: name(self),
                right: name(&given),
            });
        }
        Ok(())
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl ModelConfig {
    /// A model for the codes of a layout.
    pub fn new(layout: &CodeLayout, pattern: Pattern, shape: Shape) -> Self {
        let codebook = |book: &CodebookSpec| Codebook { size: book.size, stride: book.stride };
        Self {
            model_type: MODEL_TYPE.to_owned(),
            codebooks: layout.codebooks().iter().map(codebook).collect(),
            pattern,
            shape,
            classes: Vec::new(),
            codec: None,
        }
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn parse(text: &str) -> Result<Self> {
        let config = serde_json::from_str::<Self>(text);
        let config = config.map_err(|e| Error::config("config.json", e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// The text of a `config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] when a number cannot be written.
    pub fn text(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| Error::config("config.json", e.to_string()))
    }

    /// The layout of the codes.
    ///
    /// # Errors
    /// [`Error::Core`] for codebooks that no layout has.
    pub fn layout(&self) -> Result<CodeLayout> {
        let spec = |book: &Codebook| CodebookSpec { size: book.size, stride: book.stride };
        Ok(CodeLayout::new(self.codebooks.iter().map(spec).collect())?)
    }

    /// The pattern, bound to the layout.
    ///
    /// # Errors
    /// As [`Arrangement::new`].
    pub fn arrangement(&self) -> Result<Arrangement> {
        Arrangement::new(self.pattern.clone(), self.layout()?)
    }

    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// [`Error::Config`], and as [`ModelConfig::arrangement`].
    pub fn check(&self) -> Result<()> {
        if self.model_type != MODEL_TYPE {
            let why = format!("is `{}`, not `{MODEL_TYPE}`", self.model_type);
            return Err(Error::config("model_type", why));
        }
        let is_deep = self.arrangement()?.is_deep();
        self.shape.check()?;
        if is_deep != self.shape.depth.is_some() {
            return Err(Error::config("depth", "goes with the pattern `depth`, and only with it"));
        }
        if is_deep && self.codebooks.len() < 2 {
            return Err(Error::config("depth", "needs two codebooks"));
        }
        if is_deep && self.shape.tied {
            return Err(Error::config("tied", "the heads behind a depth transformer are its own"));
        }
        Ok(())
    }
}

impl Default for Shape {
    fn default() -> Self {
        Self::small()
    }
}

impl Shape {
    /// The size that is trained by default: four layers of 256 channels.
    pub fn small() -> Self {
        Self {
            dim: 256,
            n_layers: 4,
            n_heads: 4,
            hidden: 1024,
            context: Some(256),
            norm: NormKind::default(),
            norm_epsilon: 1e-5,
            positions: Positions::default(),
            activation: ActivationKind::default(),
            tied: true,
            head_bias: true,
            depth: None,
        }
    }

    /// Refuses what can be meant for no codes.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        let Self { dim, n_layers, n_heads, hidden, context, norm_epsilon, positions, depth, .. } = *self;
        check_sizes(dim, n_layers, n_heads, hidden)?;
        if context == Some(0) {
            return Err(Error::config("context", "a step sees at least itself"));
        }
        if !(norm_epsilon >= 0.0 && norm_epsilon.is_finite()) {
            return Err(Error::config("norm_epsilon", format!("{norm_epsilon} is not a number from 0 on")));
        }
        match positions {
            Positions::Sinusoidal if !dim.is_multiple_of(2) || dim < 4 => {
                return Err(Error::config("dim", "sinusoidal positions need an even number from 4 on"));
            }
            Positions::Rotary { .. } if !(dim / n_heads).is_multiple_of(2) => {
                let why = format!("rotary positions need heads of an even size, not {}", dim / n_heads);
                return Err(Error::config("n_heads", why));
            }
            Positions::Rotary { base } if !(base > 1.0 && base.is_finite()) => {
                return Err(Error::config("positions.base", format!("{base} is not above 1")));
            }
            _ => {}
        }
        if let Some(DepthShape { dim, n_layers, n_heads, hidden }) = depth {
            check_sizes(dim, n_layers, n_heads, hidden)?;
        }
        Ok(())
    }
}

fn check_sizes(dim: usize, n_layers: usize, n_heads: usize, hidden: usize) -> Result<()> {
    let limits = [("dim", dim, MAX_DIM), ("hidden", hidden, MAX_DIM), ("n_layers", n_layers, MAX_LAYERS)];
    for (field, value, limit) in limits {
        if !(1..=limit).contains(&value) {
            return Err(Error::config(field, format!("{value} is not in 1..={limit}")));
        }
    }
    if n_heads == 0 || !dim.is_multiple_of(n_heads) {
        return Err(Error::config("n_heads", format!("{n_heads} heads do not share {dim} channels")));
    }
    Ok(())
}

/// Heads that share `dim` channels.
pub(crate) fn heads(dim: usize, n_heads: usize) -> Heads {
    Heads { n_heads, n_kv_heads: n_heads, dim: dim / n_heads.max(1) }
}

fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_goes_there_and_back_and_nonsense_is_refused() {
        let layout = CodeLayout::uniform(3, 16).unwrap();
        let pattern = Pattern::Delay { delays: vec![0, 1, 2] };
        let config = ModelConfig::new(&layout, pattern, Shape::small());
        assert_eq!(ModelConfig::parse(&config.text().unwrap()).unwrap(), config);
        let refused = |change: fn(&mut ModelConfig)| {
            let mut odd = config.clone();
            change(&mut odd);
            assert!(ModelConfig::parse(&odd.text().unwrap()).is_err());
        };
        refused(|c| c.shape.n_heads = 3);
        refused(|c| c.shape.dim = 0);
        refused(|c| c.shape.context = Some(0));
        refused(|c| c.pattern = Pattern::Depth { delays: vec![0; 3] });
        refused(|c| c.pattern = Pattern::Delay { delays: vec![0; 2] });
        refused(|c| c.codebooks.clear());
        refused(|c| c.model_type = "encodec".to_owned());
        refused(|c| c.shape.n_heads = 256);
        refused(|c| c.shape.positions = Positions::Rotary { base: 1.0 });
        refused(|c| c.shape.norm_epsilon = -1.0);
    }
}
