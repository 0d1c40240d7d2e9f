//! What a codec waits for, from its layers.

use super::Net;
use crate::error::{Error, Result};
use crate::layers::Layer;
use codec_core::{CodecInfo, Delays, Segment};

/// A block so far from the start of a stream that no padding there matters.
const MIDDLE: u64 = 1 << 16;
/// Frames to look at, at least: more than any window that networks work in.
const MIN_FRAMES: u64 = 512;

/// The delays of a codec with these networks; without an encoder there are those of the decoder alone.
///
/// # Errors
/// [`Error::Config`] when one does not fit its type.
pub(super) fn delays(info: &CodecInfo, encoder: Option<&Net>, decoder: &Net) -> Result<Delays> {
    if let Some(segment) = info.segment {
        return of_segments(segment, u64::from(info.hop_length)).narrow();
    }
    let (hop_length, block) = (u64::from(info.hop_length), u64::from(info.layout.block_frames()));
    // Codes come in whole blocks.
    let frame_for = |sample_idx: u64| Some((decoder.last_input(sample_idx)? / block + 1) * block - 1);
    // What nobody encodes comes from nowhere.
    let last_sample = |frame_idx: u64| encoder?.last_input(frame_idx);
    let of_frame = |frame_idx: u64| {
        let end = (frame_idx + 1) * hop_length;
        let delay = || {
            // Of the samples that wait for this frame, the first waits longest.
            let first_idx = first(2 * end, |sample_idx| frame_for(sample_idx).is_none_or(|f| f >= frame_idx));
            let last_idx = last_sample(frame_for(first_idx)?)?;
            Some((last_idx + 1).saturating_sub(first_idx))
        };
        Waits {
            encoder: last_sample(frame_idx).map(|last_idx| (last_idx + 1).saturating_sub(end)),
            decoder: frame_for(end - 1).map(|last_idx| last_idx.saturating_sub(frame_idx)),
            both: delay(),
        }
    };
    let middle = MIDDLE * block..MIDDLE * block + block.max(MIN_FRAMES);
    All { middle: middle.map(of_frame).reduce(Waits::longest).unwrap_or_default(), start: of_frame(0) }
        .narrow()
}

/// What one frame waits for, or those that wait longest: samples for the encoder, frames for the decoder, samples
/// for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waits {
    encoder: Option<u64>,
    decoder: Option<u64>,
    both: Option<u64>,
}

impl Waits {
    fn longest(self, other: Self) -> Self {
        let longest = |one: Option<u64>, other: Option<u64>| Some(one?.max(other?));
        Self {
            encoder: longest(self.encoder, other.encoder),
            decoder: longest(self.decoder, other.decoder),
            both: longest(self.both, other.both),
        }
    }
}

/// [`Delays`] before they are known to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct All {
    middle: Waits,
    start: Waits,
}

impl All {
    fn narrow(self) -> Result<Delays> {
        let narrow = |delay: Option<u64>| {
            let delay = delay.map(u32::try_from).transpose();
            delay.map_err(|_| Error::config("kernel_size", "a delay is too long"))
        };
        let Self { middle, start } = self;
        Ok(Delays {
            lookahead: narrow(middle.encoder)?,
            decoder_lookahead: narrow(middle.decoder)?,
            algorithmic_delay: narrow(middle.both)?,
            start_lookahead: narrow(start.encoder)?,
            start_decoder_lookahead: narrow(start.decoder)?,
            start_delay: narrow(start.both)?,
        })
    }
}

/// The delays when audio is coded in segments, each of which waits for its end.
fn of_segments(segment: Segment, hop_length: u64) -> All {
    let Segment { n_samples, stride, n_frames } = segment;
    let [n_samples, stride, n_frames] = [n_samples, stride, n_frames].map(u64::from);
    let decoder_lookahead = |frame_idx: u64| {
        let last_sample = ((frame_idx + 1) * hop_length).min(n_samples) - 1;
        // Where segments overlap, a sample waits for the last one that reaches it.
        let n_segments = last_sample / stride.max(1) + 1;
        (n_segments * n_frames - 1).saturating_sub(frame_idx)
    };
    let of_frame = |frame_idx: u64| Waits {
        encoder: Some(n_samples.saturating_sub((frame_idx + 1) * hop_length)),
        decoder: Some(decoder_lookahead(frame_idx)),
        both: Some(n_samples),
    };
    // Every segment is a start.
    let start = of_frame(0);
    All { middle: (0..n_frames).map(of_frame).fold(start, Waits::longest), start }
}

/// The first index below `end` from which on `is_reached` holds; `end` if there is none.
fn first(end: u64, is_reached: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, end);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_reached(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Conv1d, ConvSpec, ConvTranspose1d, DynLayer, Fill, GroupNorm, Padding, WholeBlocks};
    use candle_core::{DType, Device, Tensor};
    use codec_core::{AudioSpec, CodeLayout, CodebookSpec};

    fn zeros(dims: &[usize]) -> Tensor {
        Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap()
    }

    fn conv(kernel: usize, stride: usize, padding: usize) -> DynLayer {
        let padding = Padding::symmetric(padding);
        let spec = ConvSpec { stride, padding, ..ConvSpec::default() };
        DynLayer::new(Conv1d::new(&zeros(&[1, 1, kernel]), None, spec).unwrap())
    }

    fn info(hop_length: u32, stride: u32) -> CodecInfo {
        CodecInfo {
            model: String::new(),
            family: "test",
            audio: AudioSpec { sample_rate: 8000, channels: 1 },
            hop_length,
            delays: Delays::default(),
            segment: None,
            layout: CodeLayout::new(vec![CodebookSpec { size: 2, stride }]).unwrap(),
        }
    }

    /// In the middle and at the start: for the encoder, the decoder, both.
    fn want(middle: [Option<u32>; 3], start: [Option<u32>; 3]) -> Delays {
        let [lookahead, decoder_lookahead, algorithmic_delay] = middle;
        let [start_lookahead, start_decoder_lookahead, start_delay] = start;
        Delays {
            lookahead,
            decoder_lookahead,
            algorithmic_delay,
            start_lookahead,
            start_decoder_lookahead,
            start_delay,
        }
    }

    #[test]
    fn a_mirrored_start_waits_longer() {
        let causal = |kernel, stride| {
            let padding = Padding::same(kernel, stride, 1, true, Fill::Reflect);
            let spec = ConvSpec { stride, padding, ..ConvSpec::default() };
            DynLayer::new(Conv1d::new(&zeros(&[1, 1, kernel]), None, spec).unwrap())
        };
        // The first frame mirrors the two after it, which reach to sample 11.
        let encoder = vec![causal(8, 4), causal(3, 1)];
        let up = ConvTranspose1d::new(&zeros(&[1, 1, 4]), None, 4, 0, 0).unwrap();
        let decoder = vec![causal(3, 1), DynLayer::new(up)];
        let want = want([Some(0), Some(0), Some(4)], [Some(8), Some(2), Some(12)]);
        assert_eq!(delays(&info(4, 1), Some(&encoder), &decoder).unwrap(), want);
    }

    #[test]
    fn windows_around_a_step_wait_for_what_follows_it() {
        // A frame reads 3 samples before its own 4 and 3 after; a sample reads a frame on either side.
        let encoder = vec![conv(10, 4, 3)];
        let up = ConvTranspose1d::new(&zeros(&[1, 1, 8]), None, 4, 2, 2).unwrap();
        let decoder = vec![DynLayer::new(up)];
        let want = want([Some(3), Some(1), Some(9)], [Some(3), Some(1), Some(7)]);
        // Sample 2 of a frame is the first to wait for the next one: 2 and 4 more, and 3.
        assert_eq!(delays(&info(4, 1), Some(&encoder), &decoder).unwrap(), want);
    }

    #[test]
    fn strided_codebooks_wait_for_whole_blocks() {
        let encoder = vec![conv(2, 2, 0), DynLayer::new(WholeBlocks { len: 4 })];
        let up = ConvTranspose1d::new(&zeros(&[1, 1, 2]), None, 2, 0, 0).unwrap();
        let want = want([Some(6), Some(3), Some(8)], [Some(6), Some(3), Some(8)]);
        assert_eq!(delays(&info(2, 4), Some(&encoder), &vec![DynLayer::new(up)]).unwrap(), want);
    }

    #[test]
    fn segments_wait_for_their_end_and_in_the_overlap_for_the_next() {
        let published = Segment { n_samples: 48_000, stride: 47_520, n_frames: 150 };
        // The overlap begins within frame 148, which waits for frame 299.
        let delays = of_segments(published, 320).narrow().unwrap();
        assert_eq!(delays, want([47_680, 151, 48_000].map(Some), [47_680, 149, 48_000].map(Some)));
        let apart = Segment { n_samples: 40, stride: 40, n_frames: 5 };
        let delays = of_segments(apart, 8).narrow().unwrap();
        assert_eq!(delays, want([32, 4, 40].map(Some), [32, 4, 40].map(Some)));
    }

    #[test]
    fn without_an_encoder_the_decoder_alone_waits() {
        let up = ConvTranspose1d::new(&zeros(&[1, 1, 8]), None, 4, 2, 2).unwrap();
        let want = want([None, Some(1), None], [None, Some(1), None]);
        assert_eq!(delays(&info(4, 1), None, &vec![DynLayer::new(up)]).unwrap(), want);
    }

    #[test]
    fn who_waits_for_the_end_of_the_clip_has_no_delay() {
        let norm = || vec![DynLayer::new(GroupNorm::new(1, zeros(&[1]), zeros(&[1]), 1e-5).unwrap())];
        let up = || vec![DynLayer::new(ConvTranspose1d::new(&zeros(&[1, 1, 8]), None, 4, 2, 2).unwrap())];
        let waits = [None, Some(1), None];
        assert_eq!(delays(&info(4, 1), Some(&norm()), &up()).unwrap(), want(waits, waits));
        let waits = [Some(3), None, None];
        let encoder = vec![conv(10, 4, 3)];
        assert_eq!(delays(&info(4, 1), Some(&encoder), &norm()).unwrap(), want(waits, waits));
    }
}
