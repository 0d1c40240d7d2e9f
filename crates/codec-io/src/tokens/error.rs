//! The error of token files: which bytes are wrong, and what was lost with them.

use super::header::WeightsHash;
use std::fmt;

/// Result of the functions on token files.
pub type TokenResult<T> = Result<T, TokenError>;

/// Why a token file could not be read, written or edited.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The operating system refused to read or write.
    #[error("{what} at byte {offset}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Position in the file.
        offset: u64,
        /// The system's reason.
        source: std::io::Error,
    },
    /// There is not a single byte.
    #[error("not a token file: it is empty")]
    Empty,
    /// The first bytes are not those of a token file.
    #[error("not a token file: it starts with the bytes {head}")]
    NotTokens {
        /// The first bytes, in hexadecimal.
        head: String,
    },
    /// The magic shows that line ends were converted or high bits stripped.
    #[error("a token file that was damaged by a transfer in text mode: it starts with the bytes {head}")]
    TextMode {
        /// The first bytes, in hexadecimal.
        head: String,
    },
    /// The file ends inside its header, before any code.
    #[error("the file ends at byte {offset}, inside the header: no packet can be read")]
    HeaderTruncated {
        /// Length of the file.
        offset: u64,
    },
    /// The header's bytes are not those that were written.
    #[error(
        "the header is damaged: its checksum at byte {offset} is {stored:08x}, its bytes give {computed:08x}"
    )]
    HeaderChecksum {
        /// Where the checksum stands.
        offset: u64,
        /// The checksum in the file.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// A header field has a value that it cannot have.
    #[error("header: {what} (byte {offset}) is {actual}, not in {min}..={max}")]
    Header {
        /// The field.
        what: &'static str,
        /// Where it stands.
        offset: u64,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
        /// What was found.
        actual: u64,
    },
    /// A text in the header is not UTF-8.
    #[error("header: {what} (byte {offset}) is not UTF-8")]
    Text {
        /// The field.
        what: &'static str,
        /// Where it stands.
        offset: u64,
    },
    /// The codebooks of the header make no layout.
    #[error("header: the codebooks (byte {offset}) make no layout")]
    Layout {
        /// Where the layout stands.
        offset: u64,
        /// What is wrong with it.
        source: codec_core::Error,
    },
    /// The file uses a part of the format that this version does not know.
    #[error("{what} {value} at byte {offset} is not supported by this version")]
    Unsupported {
        /// The part.
        what: &'static str,
        /// Its number.
        value: u64,
        /// Where it stands.
        offset: u64,
    },
    /// Packets are damaged or missing; reading can go on after them.
    #[error("{0}")]
    Damaged(Damage),
    /// The file ends before its end packet.
    #[error("truncated at byte {offset}: {n_packets} whole packets, {n_frames} frames were read")]
    Truncated {
        /// Length of the file.
        offset: u64,
        /// Whole packets before it.
        n_packets: u64,
        /// Frames in them.
        n_frames: u64,
    },
    /// What follows the end packet is damaged; no code is lost.
    #[error(
        "the index at byte {offset} {fault}: seeking is slower, all {n_packets} packets ({n_frames} frames) are there"
    )]
    Index {
        /// Where the fault stands.
        offset: u64,
        /// What is wrong.
        fault: IndexFault,
        /// Packets before the index.
        n_packets: u64,
        /// Frames in them.
        n_frames: u64,
    },
    /// The sample counts do not fit the frames, or the header's differ from the end packet's.
    #[error("{what} at byte {offset}: expected {expected}, got {actual}")]
    Totals {
        /// The count.
        what: &'static str,
        /// Where the end packet stands.
        offset: u64,
        /// What it can be, or the most that it can be.
        expected: u64,
        /// What was given.
        actual: u64,
    },
    /// A quantity exceeds a limit of this version.
    #[error("{what}: {actual} exceeds the limit of {max}")]
    Limit {
        /// The quantity.
        what: &'static str,
        /// The limit.
        max: u64,
        /// What was asked for.
        actual: u64,
    },
    /// A request lies outside the file.
    #[error("{what}: {actual} is not in {min}..={max}")]
    Range {
        /// The quantity.
        what: &'static str,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
        /// What was asked for.
        actual: u64,
    },
    /// The codes were made with other weights.
    #[error("the codes were made with weights of SHA-256 {expected}, the model at hand has {actual}")]
    Weights {
        /// The hash in the header.
        expected: WeightsHash,
        /// The hash of the weights at hand.
        actual: WeightsHash,
    },
    /// Two token files cannot be joined.
    #[error("{what} differs: {left} against {right}")]
    Differ {
        /// The property that differs.
        what: &'static str,
        /// On the one side.
        left: String,
        /// On the other side.
        right: String,
    },
    /// A file that is not the last of a concatenation ends inside a block.
    #[error(
        "file {part} of the concatenation ends {over} frames into a block of {block_frames}: \
         codes are joined between blocks"
    )]
    Join {
        /// Which file, from 1.
        part: usize,
        /// Frames after the last whole block.
        over: u64,
        /// Frames per block.
        block_frames: u32,
    },
    /// Codes do not fit the file's layout.
    #[error(transparent)]
    Codes(#[from] codec_core::Error),
}

/// A stretch of the file that could not be read as packets, and the frames that it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Damage {
    /// Number of the first packet that is lost, from 0.
    pub packet: u64,
    /// Where the damage was met.
    pub offset: u64,
    /// First frame that is lost.
    pub first_frame: u64,
    /// How many frames are lost; `None` when nothing readable follows.
    pub n_frames: Option<u64>,
    /// What is wrong with the first lost packet.
    pub reason: DamageReason,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packet, offset, first_frame, n_frames, reason } = self;
        match n_frames {
            Some(0) => write!(f, "before packet {packet}, at byte {offset}: {reason}; no frame is lost"),
            Some(n) => {
                let end = first_frame.saturating_add(*n);
                write!(f, "packet {packet} at byte {offset}: {reason}; frames {first_frame}..{end} are lost")
            }
            None => {
                write!(f, "packet {packet} at byte {offset}: {reason}; frames from {first_frame} on are lost")
            }
        }
    }
}

/// What is wrong with a packet.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DamageReason {
    /// There is no sync word where a packet must start.
    #[error("no sync word")]
    Sync,
    /// A field of the packet's head has a value that it cannot have.
    #[error("{what} is {actual}")]
    Head {
        /// The field.
        what: &'static str,
        /// What was found.
        actual: u64,
    },
    /// The packet's bytes are not those that were written.
    #[error("the checksum is {stored:08x}, the bytes give {computed:08x}")]
    Checksum {
        /// The checksum in the file.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The file ends inside the packet.
    #[error("the file ends inside the packet")]
    CutOff,
    /// Packets are missing before the one that was found.
    #[error("packets are missing")]
    Missing,
    /// The checksum is right, but the payload holds what no writer writes.
    #[error("{what} is {actual}")]
    Payload {
        /// What was found.
        what: &'static str,
        /// Its value.
        actual: u64,
    },
}

/// What is wrong with the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexFault {
    /// The file ends inside it.
    #[error("is cut off")]
    CutOff,
    /// Its bytes are not those that were written.
    #[error("has a wrong checksum")]
    Checksum,
    /// It points elsewhere than at the packets.
    #[error("does not point at the packets")]
    Offsets,
    /// The footer is not one.
    #[error("has no valid footer")]
    Footer,
    /// Bytes follow the footer.
    #[error("is followed by other bytes")]
    Trailing,
}
