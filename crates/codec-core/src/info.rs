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

/// What a codec waits for, in the middle of a stream and where a clip starts. `None` where it waits for the
/// end of the clip, or has no encoder.
///
/// A padding that mirrors what follows makes a start wait longer. Once so much is there, a stream waits as in
/// its middle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Delays {
    /// Samples after a frame's own that the encoder needs before it can emit the frame: of the frame
    /// that waits longest.
    pub lookahead: Option<u32>,
    /// Frames after a frame that the decoder needs before it can emit the frame's last sample: of the
    /// frame that waits longest.
    pub decoder_lookahead: Option<u32>,
    /// Samples that go into the encoder from a sample on, itself included, until the decoder can emit
    /// it: of the sample that waits longest. Never less than a frame.
    pub algorithmic_delay: Option<u32>,
    /// Samples after its own that the encoder needs before it can emit the first frame of a clip.
    pub start_lookahead: Option<u32>,
    /// Frames after it that the decoder needs before it can emit the first frame's last sample.
    pub start_decoder_lookahead: Option<u32>,
    /// Samples of a clip that go into the encoder until the decoder can emit the first one.
    pub start_delay: Option<u32>,
}

/// Identity, rates and layout of a codec.
///
/// ```
/// use codec_core::{AudioSpec, CodeLayout, CodecInfo, Delays};
/// let info = CodecInfo {
///     model: "encodec_24khz".into(),
///     family: "encodec",
///     audio: AudioSpec { sample_rate: 24_000, channels: 1 },
///     hop_length: 320,
///     delays: Delays {
///         lookahead: Some(0),
///         decoder_lookahead: Some(0),
///         algorithmic_delay: Some(320),
///         // The first layer of either network mirrors what follows.
///         start_lookahead: Some(1920),
///         start_decoder_lookahead: Some(6),
///         start_delay: Some(2240),
///     },
///     segment: None,
///     layout: CodeLayout::uniform(32, 1024)?,
/// };
/// assert_eq!(info.frame_rate().to_f64(), 75.0);
/// assert_eq!(info.bitrate(8)?.to_f64(), 6000.0);
/// assert_eq!(info.kilobits_per_second(2)?.to_string(), "3/2");
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
    /// What encoder and decoder wait for.
    pub delays: Delays,
    /// Segments, where the family codes audio in pieces.
    pub segment: Option<Segment>,
    /// All codebooks.
    pub layout: CodeLayout,
}

impl CodecInfo {
    /// Seconds from a sample to its decoded one, computing time apart; `None` as in [`Delays`].
    pub fn delay_seconds(&self) -> Option<f64> {
        Some(self.seconds(self.delays.algorithmic_delay?))
    }

    /// Seconds of a clip until its first decoded sample, computing time apart; `None` as in [`Delays`].
    pub fn start_delay_seconds(&self) -> Option<f64> {
        Some(self.seconds(self.delays.start_delay?))
    }

    fn seconds(&self, n_samples: u32) -> f64 {
        f64::from(n_samples) / f64::from(self.audio.sample_rate.max(1))
    }

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

    /// [`CodecInfo::bitrate`] in kbit/s, of 1000 bit/s each.
    ///
    /// # Errors
    /// As [`CodecInfo::bitrate`].
    pub fn kilobits_per_second(&self, n_codebooks: usize) -> Result<Ratio> {
        let Ratio { num, den } = self.bitrate(n_codebooks)?;
        // The denominator divides hop_length * block_frames, which has 48 bits at most.
        Ok(Ratio::new(num, den * 1000).unwrap_or(Ratio { num: 0, den: 1 }))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::{CodebookSpec, MAX_BLOCK_FRAMES, MAX_CODEBOOK_SIZE, MAX_CODEBOOKS};
    use proptest::prelude::*;

    fn info(sample_rate: u32, hop_length: u32, layout: CodeLayout) -> CodecInfo {
        let audio = AudioSpec { sample_rate, channels: 1 };
        let (model, delays) = ("m".into(), Delays::default());
        CodecInfo { model, family: "f", audio, hop_length, delays, segment: None, layout }
    }

    fn ratio(num: u64, den: u64) -> Ratio {
        Ratio::new(num, den).unwrap()
    }

    #[test]
    fn a_ratio_is_reduced() {
        assert_eq!((ratio(6, 4).num(), ratio(6, 4).den()), (3, 2));
        assert_eq!((ratio(0, 7).num(), ratio(0, 7).den()), (0, 1));
        assert_eq!(ratio(u64::MAX, u64::MAX).to_string(), "1");
        assert_eq!(ratio(44_100, 512).to_string(), "11025/128");
        assert_eq!(Ratio::new(1, 0), None);
        assert_eq!(Ratio::new(0, 0), None);
    }

    #[test]
    fn bitrates_of_published_codecs_are_exact() {
        let encodec = info(24_000, 320, CodeLayout::uniform(32, 1024).unwrap());
        assert_eq!(encodec.frame_rate(), ratio(75, 1));
        for (n, bitrate) in [(2, 1500), (4, 3000), (8, 6000), (16, 12_000), (32, 24_000)] {
            assert_eq!(encodec.bitrate(n).unwrap(), ratio(bitrate, 1));
            assert_eq!(encodec.kilobits_per_second(n).unwrap(), ratio(bitrate, 1000));
            assert_eq!(encodec.n_codebooks_for_bitrate(bitrate), n);
            assert_eq!(encodec.n_codebooks_for_bitrate(bitrate - 1), n - 1);
        }

        let dac = info(44_100, 512, CodeLayout::uniform(9, 1024).unwrap());
        assert_eq!(dac.bitrate(9).unwrap(), ratio(44_100 * 90, 512));
        // 7751.953125 bit/s: not enough for nine codebooks if the fraction is dropped.
        assert_eq!(dac.n_codebooks_for_bitrate(7752), 9);
        assert_eq!(dac.n_codebooks_for_bitrate(7751), 8);

        let spec = |stride| CodebookSpec { size: 4096, stride };
        let snac = info(24_000, 512, CodeLayout::new([4, 2, 1].map(spec).to_vec()).unwrap());
        assert_eq!(snac.bitrate(1).unwrap(), ratio(24_000 * 12, 512 * 4));
        assert_eq!(snac.bitrate(3).unwrap(), ratio(24_000 * 84, 512 * 4));
        assert_eq!(snac.layout.bits_per_frame(1).unwrap(), ratio(3, 1));

        // Segments' scales are no codes: the nominal bitrate is the published one.
        let layout = CodeLayout::uniform(16, 1024).unwrap().with_scales(150).unwrap();
        let stereo = info(48_000, 320, layout);
        assert_eq!(stereo.bitrate(16).unwrap(), ratio(24_000, 1));
        assert_eq!(stereo.bitrate(2).unwrap(), ratio(3000, 1));

        let mimi = info(24_000, 1920, CodeLayout::uniform(32, 2048).unwrap());
        assert_eq!(mimi.frame_rate(), ratio(25, 2));
        assert_eq!(mimi.bitrate(8).unwrap(), ratio(1100, 1));
        let lyra = info(16_000, 320, CodeLayout::uniform(46, 16).unwrap());
        assert_eq!(lyra.bitrate(46).unwrap(), ratio(9200, 1));
        // FSQ [8, 7, 6, 6]: 2016 points take 11 bits.
        let nano = info(22_050, 1024, CodeLayout::uniform(8, 2016).unwrap());
        assert_eq!(nano.bitrate(8).unwrap(), ratio(22_050 * 88, 1024));
    }

    #[test]
    fn the_largest_layout_has_a_bitrate() {
        let mut codebooks = vec![CodebookSpec { size: MAX_CODEBOOK_SIZE, stride: 1 }; MAX_CODEBOOKS];
        codebooks[0].stride = MAX_BLOCK_FRAMES;
        let info = info(u32::MAX, 1, CodeLayout::new(codebooks).unwrap());
        let bits = 24 * (1 + 255 * u64::from(MAX_BLOCK_FRAMES));
        assert_eq!(info.bitrate(256).unwrap(), ratio(bits * u64::from(u32::MAX), MAX_BLOCK_FRAMES.into()));
        assert_eq!(info.n_codebooks_for_bitrate(u64::MAX), 256);
    }

    proptest! {
        #[test]
        fn nothing_panics(
            (sample_rate, hop_length) in any::<(u32, u32)>(),
            sizes in prop::collection::vec(prop_oneof![1_u32..=4, 1..=MAX_CODEBOOK_SIZE], 1..40),
            stride_bits in prop::collection::vec(0_u32..=16, 40),
            n_codebooks in crate::quantizer::testing::hostile_size(),
            bits_per_second: u64,
            (num, den) in any::<(u64, u64)>(),
        ) {
            let spec = |(&size, &bits): (&u32, &u32)| CodebookSpec { size, stride: 1 << bits };
            let codebooks: Vec<_> = sizes.iter().zip(&stride_bits).map(spec).collect();
            let info = info(sample_rate, hop_length, CodeLayout::new(codebooks).unwrap());
            let inside = (1..=sizes.len()).contains(&n_codebooks);
            prop_assert_eq!(info.bitrate(n_codebooks).is_ok(), inside);
            prop_assert_eq!(info.kilobits_per_second(n_codebooks).is_ok(), inside);
            let n = info.n_codebooks_for_bitrate(bits_per_second);
            prop_assert!((1..=sizes.len()).contains(&n));
            let ratio = Ratio::new(num, den);
            prop_assert_eq!(ratio.is_some(), den != 0);
            if let Some(ratio) = ratio {
                let exact = |a: u64, b: u64| u128::from(a) * u128::from(b);
                prop_assert_eq!(exact(ratio.num(), den), exact(num, ratio.den()));
                prop_assert!(!ratio.to_f64().is_nan() && !ratio.to_string().is_empty());
            }
        }
    }
}
