//! What a codec is, apart from its weights: rates, sizes, exact bitrates.

use crate::audio::AudioSpec;
use crate::codes::CodeLayout;
use crate::error::{Error, Result};

/// An exact, reduced fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ratio {
    num: u64,
    den: u64,
}

impl Ratio {
    /// The reduced fraction; `None` when the denominator is zero.
    pub fn new(num: u64, den: u64) -> Option<Self> {
        let divisor = gcd(num, den);
        (den != 0).then(|| Self { num: num / divisor, den: den / divisor })
    }

    /// The numerator.
    pub fn num(self) -> u64 {
        self.num
    }

    /// The denominator, never zero.
    pub fn den(self) -> u64 {
        self.den
    }

    /// The nearest f64.
    pub fn to_f64(self) -> f64 {
        self.num as f64 / self.den as f64
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.den == 1 { write!(f, "{}", self.num) } else { write!(f, "{}/{}", self.num, self.den) }
    }
}

/// How a codec cuts audio into segments that it codes apart (EnCodec 48 kHz).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Samples per segment.
    pub n_samples: u32,
    /// Samples from the start of one segment to the start of the next.
    pub stride: u32,
    /// Frames per segment.
    pub n_frames: u32,
}

/// Identity, rates and layout of a codec.
///
/// ```
/// use codec_core::{AudioSpec, CodeLayout, CodecInfo};
/// let info = CodecInfo {
///     model: "encodec_24khz".into(),
///     family: "encodec",
///     audio: AudioSpec { sample_rate: 24_000, channels: 1 },
///     hop_length: 320,
///     lookahead: 0,
///     segment: None,
///     layout: CodeLayout::uniform(32, 1024)?,
/// };
/// assert_eq!(info.frame_rate().to_f64(), 75.0);
/// assert_eq!(info.bitrate(8)?.to_f64(), 6000.0);
/// assert_eq!(info.n_codebooks_for_bitrate(6000), 8);
/// # Ok::<(), codec_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CodecInfo {
    /// Name of the model, for example `encodec_24khz`.
    pub model: String,
    /// Name of the family, for example `encodec`.
    pub family: &'static str,
    /// The audio that it codes.
    pub audio: AudioSpec,
    /// Samples per frame.
    pub hop_length: u32,
    /// Samples after a frame's own that the encoder needs before it can emit the frame, in the
    /// middle of a stream.
    pub lookahead: u32,
    /// Segments, where the family codes audio in pieces.
    pub segment: Option<Segment>,
    /// All codebooks.
    pub layout: CodeLayout,
}

impl CodecInfo {
    /// Frames per second of coded audio, nominal: overlap between segments is not counted.
    pub fn frame_rate(&self) -> Ratio {
        let (num, den) = (u64::from(self.audio.sample_rate), u64::from(self.hop_length.max(1)));
        Ratio::new(num, den).unwrap_or(Ratio { num: 0, den: 1 })
    }

    /// Bits per second of the first `n_codebooks` codebooks: the packed codes alone, nominal.
    ///
    /// # Errors
    /// [`Error::Range`] when `n_codebooks` is not in 1..=`self.layout.n_codebooks()`.
    pub fn bitrate(&self, n_codebooks: usize) -> Result<Ratio> {
        let bits = self.layout.bits_per_block(n_codebooks)?;
        let rate = self.frame_rate();
        let max = u64::MAX;
        let num =
            bits.checked_mul(rate.num).ok_or(Error::Range { what: "bitrate", min: 0, max, actual: max })?;
        let den = rate.den * u64::from(self.layout.block_frames());
        Ok(Ratio::new(num, den).unwrap_or(rate))
    }

    /// The most codebooks whose bitrate is at most `bits_per_second`, but at least one.
    pub fn n_codebooks_for_bitrate(&self, bits_per_second: u64) -> usize {
        let fits = |&n: &usize| {
            let exact = |r: Ratio| u128::from(r.num) <= u128::from(bits_per_second) * u128::from(r.den);
            self.bitrate(n).is_ok_and(exact)
        };
        (1..=self.layout.n_codebooks()).rev().find(fits).unwrap_or(1)
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}
