//! The delays that a codec declares are those that it has: what comes out is timed, and the future is
//! changed to see from which sample on it matters.

use codec_core::{AudioBuffer, Codec, CodecInfo, Codes, Delays};
use codec_tests::Result;
use codec_tests::vectors::{Subject, subjects};

/// Frames that are looked at: a window of every codec that works in windows.
const N_FRAMES: usize = 16;
/// The same at the start of a clip: as many as a first layer mirrors, and one more.
const N_START_FRAMES: usize = 8;

/// Sample at which a frame starts.
fn start_of(info: &CodecInfo, frame_idx: usize) -> usize {
    let hop_length = info.hop_length as usize;
    match info.segment {
        None => frame_idx * hop_length,
        Some(segment) => {
            let (segment_idx, in_segment) =
                (frame_idx / segment.n_frames as usize, frame_idx % segment.n_frames as usize);
            segment_idx * segment.stride as usize + in_segment * hop_length
        }
    }
}

/// The frames of some whole blocks, or for codecs with segments those of the first one, that lie so far
/// behind the start that no padding there matters and so far before the end that all is there.
fn middle(info: &CodecInfo, n_frames: usize) -> std::ops::Range<usize> {
    let block = info.layout.block_frames() as usize;
    let n_looked_at = N_FRAMES.next_multiple_of(block);
    // Blocks and windows begin at a multiple of this.
    let unit = 8 * block;
    let start = if info.segment.is_some() { 0 } else { (n_frames / 2).next_multiple_of(unit) };
    assert!(start < n_frames, "the clip is too short");
    start..n_frames.min(start + n_looked_at)
}

/// The first frames of a clip; none where every segment is a start.
fn at_start(info: &CodecInfo) -> std::ops::Range<usize> {
    0..if info.segment.is_some() {
        0
    } else {
        N_START_FRAMES.next_multiple_of(info.layout.block_frames() as usize)
    }
}

/// Families whose reach cannot be seen to its end: an activation between low-pass filters passes on their outermost
/// taps, of a thousandth each, and many of them one after the other leave less than a float resolves. What lies
/// beyond the quarters given here, of the encoder's lookahead and the decoder's, is declared and not seen; that such
/// a layer waits for what it reads and for no more, its own tests say with other filters.
const FAINT: [(&str, [usize; 2]); 1] = [("bigcodec", [3, 1])];

/// How many samples of the encoder's lookahead and frames of the decoder's are near enough to be seen.
fn visible(info: &CodecInfo, lookahead: usize, frames: usize) -> [usize; 2] {
    let faint = FAINT.iter().find(|(family, _)| *family == info.family);
    let [of_encoder, of_decoder] = faint.map_or([4, 4], |(_, quarters)| *quarters);
    [lookahead * of_encoder / 4, frames * of_decoder / 4]
}

/// Pushes single samples and gives, for each frame, how many had come when it came.
fn arrival_of_frames(codec: &dyn Codec, clip: &AudioBuffer) -> Result<(Vec<usize>, Codes)> {
    let mut encoder = codec.encoder(codec.info().layout.n_codebooks())?;
    let mut codes = Codes::empty(codec.info().layout.clone());
    let mut arrivals = Vec::new();
    for i in 0..clip.n_samples() {
        codes.append(&encoder.push(&clip.slice(i..i + 1))?)?;
        arrivals.resize(codes.n_frames(), i + 1);
    }
    Ok((arrivals, codes))
}

/// Pushes single blocks and gives, for each sample, how many frames had come when it came.
fn arrival_of_samples(codec: &dyn Codec, codes: &Codes) -> Result<Vec<usize>> {
    let block = codec.info().layout.block_frames() as usize;
    let (mut decoder, mut n_samples, mut arrivals) = (codec.decoder()?, 0, Vec::new());
    for start in (0..codes.n_frames()).step_by(block) {
        let end = codes.n_frames().min(start + block);
        n_samples += decoder.push(&codes.slice(start..end)?)?.n_samples();
        arrivals.resize(n_samples, end);
    }
    Ok(arrivals)
}

#[test]
fn streams_wait_as_long_as_declared() -> Result<()> {
    for Subject { name, codec, clip } in subjects()? {
        let (info, codec) = (codec.info(), codec.as_ref());
        let hop_length = info.hop_length as usize;
        let (of_frames, mut codes) = arrival_of_frames(codec, &clip)?;
        if info.delays.lookahead.is_none() {
            assert!(codes.is_empty(), "{name}: a frame came before the end of the clip");
            codes = codec.encode(&clip, info.layout.n_codebooks())?;
        }
        let of_samples = arrival_of_samples(codec, &codes)?;
        if info.delays.decoder_lookahead.is_none() {
            assert!(of_samples.is_empty(), "{name}: a sample came before the end of the codes");
        }
        let frames = match info.segment {
            Some(segment) => 0..segment.n_frames as usize,
            None => middle(info, codes.n_frames()),
        };
        let mut lookahead = info.delays.lookahead.and(Some(0));
        let mut decoder_lookahead = info.delays.decoder_lookahead.and(Some(0));
        for frame_idx in frames.clone() {
            let end = start_of(info, frame_idx) + hop_length;
            if let Some(n_samples) = of_frames.get(frame_idx) {
                let waited = n_samples.saturating_sub(end) as u32;
                lookahead = lookahead.map(|longest| longest.max(waited));
            }
            if let Some(n_frames) = of_samples.get(end - 1) {
                let waited = (n_frames - (frame_idx + 1)) as u32;
                decoder_lookahead = decoder_lookahead.map(|longest| longest.max(waited));
            }
        }
        let samples = start_of(info, frames.start)..start_of(info, frames.end);
        let waited = |i| Some((of_frames.get(of_samples.get(i)? - 1)? - i) as u32);
        let algorithmic_delay = samples.map(waited).max().flatten();
        let start_lookahead = of_frames.first().map(|n_samples| (n_samples - hop_length) as u32);
        // The first frame's last sample, where the decoder gives as many.
        let last_sample = hop_length.min(of_samples.len()).checked_sub(1);
        let start_decoder_lookahead = last_sample.map(|i| (of_samples[i] - 1) as u32);
        let start_delay = of_samples.first().and_then(|n_frames| of_frames.get(n_frames - 1));
        let measured = Delays {
            lookahead,
            decoder_lookahead,
            algorithmic_delay,
            start_lookahead,
            start_decoder_lookahead,
            start_delay: start_delay.map(|n_samples| *n_samples as u32),
        };
        assert_eq!(measured, info.delays, "{name}");
        println!("{name}: {measured:?}");
    }
    Ok(())
}

/// The clip with other samples, as large as `size`.
fn changed(clip: &AudioBuffer, samples: std::ops::Range<usize>, size: f32) -> Result<AudioBuffer> {
    let change = |i: usize, x: f32| if samples.contains(&i) { size - x } else { x };
    let channels = clip.channels().map(|c| c.iter().enumerate().map(|(i, &x)| change(i, x)).collect());
    Ok(AudioBuffer::from_planar(clip.spec(), channels.collect())?)
}

/// Sizes of a changed sample: at the edge of what a frame reads, the weights of all layers multiply to
/// next to nothing.
const SIZES: [f32; 8] = [1e3, -1e3, 1e8, -1e8, 1e14, -1e14, 1e20, -1e20];

#[test]
fn a_frame_depends_on_the_samples_of_its_lookahead_and_none_after_them() -> Result<()> {
    for Subject { name, codec, clip } in subjects()? {
        let info = codec.info();
        let Some(lookahead) = info.delays.lookahead else { continue };
        let n_codebooks = info.layout.n_codebooks();
        let codes = codec.encode(&clip, n_codebooks)?;
        let codes_of = |codes: &Codes, frame_idx: usize| -> Vec<u32> {
            let strides = info.layout.codebooks().iter().map(|codebook| codebook.stride as usize);
            codes.rows().zip(strides).map(|(row, stride)| row[frame_idx / stride]).collect()
        };
        let start_lookahead = info.delays.start_lookahead.unwrap_or_default() as usize;
        let mut depends = false;
        for frame_idx in at_start(info).chain(middle(info, codes.n_frames())) {
            let end = start_of(info, frame_idx) + info.hop_length as usize;
            // What the first frame waits for, those after it wait for, too.
            let horizon = (end + lookahead as usize).max(info.hop_length as usize + start_lookahead);
            let after = codec.encode(&changed(&clip, horizon..clip.n_samples(), 1e3)?, n_codebooks)?;
            assert_eq!(
                codes_of(&after, frame_idx),
                codes_of(&codes, frame_idx),
                "{name}: frame {frame_idx} depends on a sample beyond {horizon}"
            );
            let depends_on = |seen: usize| -> Result<bool> {
                for size in SIZES {
                    let last = codec.encode(&changed(&clip, seen - 1..seen, size)?, n_codebooks)?;
                    if codes_of(&last, frame_idx) != codes_of(&codes, frame_idx) {
                        return Ok(true);
                    }
                }
                Ok(false)
            };
            if frame_idx == 0 && start_lookahead > lookahead as usize {
                let seen = info.hop_length as usize + start_lookahead;
                assert!(depends_on(seen)?, "{name}: the first frame does not depend on sample {}", seen - 1);
            } else if !depends && !at_start(info).contains(&frame_idx) {
                depends = depends_on(end + visible(info, lookahead as usize, 0)[0])?;
            }
        }
        assert!(depends, "{name}: no frame depends on the last sample of its lookahead");
    }
    Ok(())
}

#[test]
fn a_sample_depends_on_the_frames_of_the_lookahead_and_none_after_them() -> Result<()> {
    for Subject { name, codec, clip } in subjects()? {
        let info = codec.info();
        let Some(lookahead) = info.delays.decoder_lookahead else { continue };
        let codes = codec.encode(&clip, info.layout.n_codebooks())?;
        let audio = codec.decode(&codes)?;
        let frames = match info.segment {
            // What is long depends on where the segments overlap.
            Some(segment) => 0..segment.n_frames as usize,
            None => middle(info, codes.n_frames()),
        };
        let start_lookahead = info.delays.start_decoder_lookahead.unwrap_or_default() as usize;
        let other = |from: usize, to: usize| -> Result<AudioBuffer> {
            let rows = codes.rows().zip(info.layout.codebooks()).map(|(row, codebook)| {
                let stride = codebook.stride as usize;
                let change = |(i, &code): (usize, &u32)| {
                    let is_in = (from / stride..to.div_ceil(stride)).contains(&i);
                    if is_in { (code + codebook.size / 2) % codebook.size } else { code }
                };
                row.iter().enumerate().map(change).collect()
            });
            let layout = info.layout.clone();
            Ok(codec.decode(&Codes::with_scales(layout, rows.collect(), codes.scales().to_vec())?)?)
        };
        let is_same = |decoded: &AudioBuffer, frame_idx: usize| {
            let start = start_of(info, frame_idx);
            let samples = start..(start + info.hop_length as usize).min(audio.n_samples());
            decoded.slice(samples.clone()) == audio.slice(samples)
        };
        if start_lookahead > lookahead as usize {
            let last = other(start_lookahead, start_lookahead + 1)?;
            assert!(!is_same(&last, 0), "{name}: the first samples do not depend on frame {start_lookahead}");
        }
        let mut depends = false;
        for frame_idx in at_start(info).chain(frames) {
            let horizon = (frame_idx + 1 + lookahead as usize).max(1 + start_lookahead);
            if horizon > codes.n_frames() {
                break;
            }
            // A code that the frame shares with later ones is not after it.
            let after = horizon.next_multiple_of(info.layout.stride_frames() as usize);
            let after = other(after, codes.n_frames())?;
            assert!(is_same(&after, frame_idx), "{name}: frame {frame_idx} depends on frame {horizon}");
            let seen = frame_idx + 1 + visible(info, 0, lookahead as usize)[1];
            depends |= !at_start(info).contains(&frame_idx) && !is_same(&other(seen - 1, seen)?, frame_idx);
        }
        assert!(depends, "{name}: no sample depends on the last frame of the lookahead");
    }
    Ok(())
}
