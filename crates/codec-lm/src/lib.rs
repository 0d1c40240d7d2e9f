//! Language models over the codes of a neural audio codec.
//!
//! [`pattern`] turns codes into the sequences that such models read, and back; it is of use to whoever
//! trains elsewhere as well. [`Model`] is a decoder-only transformer over such sequences, and a
//! [`generate::Generator`] makes codes with it that carry on from others.
//!
//! # Quick start
//! A moment of training, and codes that carry on:
//!
//! ```
//! use candle_core::Device;
//! use codec_core::{CodeLayout, Codes};
//! use codec_lm::corpus::{Corpus, Recording};
//! use codec_lm::generate::{Options, carry_on};
//! use codec_lm::train::{RunConfig, Trainer};
//!
//! // Two codebooks of which the second follows the first.
//! let rows = vec![(0..400).map(|t| t * t % 7).collect(), (0..400).map(|t| t * t % 7 + 1).collect()];
//! let codes = Codes::new(CodeLayout::uniform(2, 8)?, rows)?;
//! let (path, speaker) = ("a.nac".into(), "a".to_owned());
//! let recording = Recording { path, speaker, class: None, source_idx: 0, codes: codes.clone() };
//! let corpus = Corpus { recordings: vec![recording], codec: None };
//!
//! let config: RunConfig = toml::from_str(
//!     "output = 'run'
//!     model = { dim = 16, n_layers = 1, n_heads = 1, hidden = 32, context = 32 }
//!     data = { sources = [{ path = 'a.nac' }], window = 32 }
//!     schedule = { steps = 20 }",
//! )?;
//! let mut trainer = Trainer::new(config, corpus, None, &Device::Cpu)?;
//! let first = trainer.advance()?.losses["bits per code"];
//! while trainer.step() < 19 {
//!     trainer.advance()?;
//! }
//! assert!(trainer.advance()?.losses["bits per code"] < first);
//!
//! // The same seed gives the same codes on every machine.
//! let (model, prompt) = (trainer.exported()?, codes.slice(0..30)?);
//! let more = carry_on(&model, &prompt, 50, Options::new(7))?;
//! assert_eq!(more.n_frames(), 50);
//! assert_eq!(more, carry_on(&model, &prompt, 50, Options::new(7))?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod baseline;
pub mod config;
pub mod corpus;
pub mod depth;
pub mod embedded;
pub mod error;
pub mod families;
pub mod generate;
pub mod judge;
pub mod model;
mod ops;
pub mod pattern;
pub mod predict;
pub mod quantize;
pub mod sampling;
pub mod train;
pub mod vocabulary;

pub use config::ModelConfig;
pub use error::{Error, Result};
pub use families::load;
pub use model::Model;
pub use predict::LanguageModel;
