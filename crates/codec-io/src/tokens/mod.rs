//! Token files: the codes of one recording, packed, checked and seekable.
//!
//! The format is described byte by byte in `docs/token-format.md`. For files on disk, write into an
//! [`AtomicFile`](crate::atomic::AtomicFile) and commit it after the writer has finished.
//!
//! ```
//! use codec_core::{AudioSpec, CodeLayout, CodecInfo, Codes};
//! use codec_io::tokens::{TokenHeader, TokenReader, TokenWriter, Totals};
//! use std::io::Cursor;
//!
//! // What a codec says about itself, and what the recording was before conversion.
//! let layout = CodeLayout::uniform(2, 1024)?;
//! let info = CodecInfo {
//!     model: "encodec_24khz".into(),
//!     family: "encodec",
//!     audio: AudioSpec { sample_rate: 24_000, channels: 1 },
//!     hop_length: 320,
//!     delays: Default::default(),
//!     segment: None,
//!     layout: layout.clone(),
//! };
//! let source = AudioSpec { sample_rate: 48_000, channels: 2 };
//! let header = TokenHeader::new(&info, 2, [7; 32], source)?.with_tag("title", "Two seconds");
//!
//! // Codes are pushed as they come, in pieces of any length.
//! let codes = Codes::new(layout, vec![(0..150).collect(), (300..450).collect()])?;
//! let mut writer = TokenWriter::new(Cursor::new(Vec::new()), header)?;
//! writer.push(&codes.slice(0..40)?)?;
//! writer.push(&codes.slice(40..150)?)?;
//! let file = writer.finish_seekable(Totals { n_samples: 47_900, source_samples: 95_800 })?;
//!
//! let mut reader = TokenReader::open(file)?;
//! reader.header().check_weights(&[7; 32])?;
//! assert_eq!(reader.header().tag("title"), Some("Two seconds"));
//! assert_eq!(reader.n_samples(), 47_900);
//! assert_eq!(reader.read_all()?, codes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bits;
pub mod edit;
mod error;
mod header;
mod packet;
mod reader;
mod scan;
mod stats;
mod writer;

pub(crate) use bits::{BitReader, BitWriter};
pub use error::{Damage, DamageReason, IndexFault, TokenError, TokenResult};
pub use header::{ParseHashError, TokenHeader, Totals, WeightsHash};
pub use reader::{Report, TokenReader, verify};
pub use stats::{CodeStats, CodebookStats, file_bitrate};
pub use writer::TokenWriter;

/// Extension of token files: neural audio codes.
pub const EXTENSION: &str = "nac";
/// Longest body of a header, in bytes.
pub const MAX_HEADER_BYTES: usize = 1 << 16;
/// Most tags.
pub const MAX_TAGS: usize = 256;
/// Longest value of a tag, in bytes; a key has at most 255.
pub const MAX_TAG_VALUE_BYTES: usize = 1 << 12;
/// Most samples per frame.
pub const MAX_HOP_LENGTH: u32 = 1 << 20;
/// Most frames of a file.
pub const MAX_FRAMES: u64 = 1 << 40;
/// Longest payload of a packet, in bytes.
pub const MAX_PAYLOAD_BYTES: u32 = 1 << 20;
/// Most codes and scales that one packet holds together.
pub const MAX_PACKET_VALUES: u64 = 1 << 18;
/// Most memory that a reader takes, in bytes, the codes that it returns included.
pub const MAX_READER_BYTES: usize = 8 << 20;
