//! Streams of codecs that code audio in segments: each is normalized and coded apart, and decoded
//! segments are joined where they overlap.
//!
//! # Deviations
//! From facebookresearch/encodec, in the last segments of a clip only:
//! - A segment that comes out one frame short and yet is followed by another of a single frame, whose
//!   samples it holds already, ends the clip: a stream of codes is joined only after whole segments.
//! - A last segment that ends before the one before it does, with which the original fails to decode,
//!   is joined like any other; the audio ends where the longer of them ends.

use super::{MAX_BATCH, NetCodec, Pipeline, pieces};
use crate::error::Result;
use codec_core::{AudioBuffer, CodeLayout, Codes, Decoder, Encoder, Error, Segment};
use std::collections::VecDeque;
use std::sync::Arc;

/// Added to the loudness of a segment, so that silence can be divided by it.
///
/// Source: facebookresearch/encodec, encodec/model.py, `_encode_frame`.
const SCALE_FLOOR: f32 = 1e-8;

/// Collects segments and codes them as they fill up.
#[derive(Debug)]
pub(super) struct EncoderStream<'a> {
    codec: &'a NetCodec,
    pipeline: &'a Pipeline,
    layout: Arc<CodeLayout>,
    segment: Segment,
    /// Samples from the start of the next segment on.
    pending: AudioBuffer,
}

impl<'a> EncoderStream<'a> {
    /// Takes the codec with its encoder.
    pub(super) fn new(
        codec: &'a NetCodec,
        pipeline: &'a Pipeline,
        layout: CodeLayout,
        segment: Segment,
    ) -> codec_core::Result<Self> {
        let pending = AudioBuffer::empty(codec.info.audio)?;
        Ok(Self { codec, pipeline, layout: Arc::new(layout), segment, pending })
    }

    /// Takes at most a few segments of samples.
    fn take(&mut self, audio: &AudioBuffer) -> Result<Codes> {
        self.pending.append(audio)?;
        let (length, stride) = (self.segment.n_samples as usize, self.segment.stride as usize);
        let mut codes = Codes::empty(Arc::clone(&self.layout));
        let mut clips = Vec::new();
        let mut start = 0;
        while self.pending.n_samples() >= start + length {
            clips.push(self.pending.slice(start..start + length));
            start += stride;
        }
        for clips in clips.chunks(MAX_BATCH) {
            for segment in self.encode(clips)? {
                codes.append(&segment)?;
            }
        }
        if start > 0 {
            self.pending = self.pending.slice(start..self.pending.n_samples());
        }
        Ok(codes)
    }

    /// Codes what is left, in segments that need not be whole.
    fn end(&self) -> Result<Codes> {
        let mut codes = Codes::empty(Arc::clone(&self.layout));
        let (length, n_samples) = (self.segment.n_samples as usize, self.pending.n_samples());
        for start in (0..n_samples).step_by(self.segment.stride as usize) {
            let clip = self.pending.slice(start..n_samples.min(start + length));
            for segment in self.encode(&[clip])? {
                codes.append(&segment)?;
            }
            if !codes.n_frames().is_multiple_of(self.segment.n_frames as usize) {
                break;
            }
        }
        Ok(codes)
    }

    /// Codes segments of one length.
    fn encode(&self, segments: &[AudioBuffer]) -> Result<Vec<Codes>> {
        let scales: Vec<f32> = segments.iter().map(loudness).collect();
        let normalized = segments.iter().zip(&scales).map(|(segment, scale)| scaled(segment, |x| x / scale));
        let normalized = normalized.collect::<codec_core::Result<Vec<_>>>()?;
        let n_samples = normalized.first().map_or(0, AudioBuffer::n_samples);
        let steps = self.codec.steps_of(&normalized, 0..n_samples)?;
        let latents = self.pipeline.step(&mut self.pipeline.init(), steps, true)?;
        // The quantizer knows of no scales.
        let plain = CodeLayout::new(self.layout.codebooks().to_vec())?;
        let mut items = vec![Codes::empty(plain); segments.len()];
        self.codec.quantize(latents, &mut items)?;
        let codes = |(codes, scale): (Codes, f32)| {
            Codes::with_scales(Arc::clone(&self.layout), codes.into_rows(), vec![scale])
        };
        Ok(items.into_iter().zip(scales).map(codes).collect::<codec_core::Result<_>>()?)
    }
}

impl Encoder for EncoderStream<'_> {
    fn push(&mut self, audio: &AudioBuffer) -> codec_core::Result<Codes> {
        let _span = tracing::trace_span!("push", n_samples = audio.n_samples()).entered();
        self.codec.check_audio(audio)?;
        let mut codes = Codes::empty(Arc::clone(&self.layout));
        let size = MAX_BATCH * self.segment.stride as usize;
        for (range, _) in pieces(audio.n_samples(), size, false) {
            codes.append(&self.take(&audio.slice(range))?)?;
        }
        Ok(codes)
    }

    fn finish(self: Box<Self>) -> codec_core::Result<Codes> {
        let _span = tracing::trace_span!("finish").entered();
        Ok(self.end()?)
    }
}

/// Decodes segments and joins them.
#[derive(Debug)]
pub(super) struct DecoderStream<'a> {
    codec: &'a NetCodec,
    segment: Segment,
    overlap: OverlapAdd,
    /// Frames of the segment that is not whole: nothing may follow it.
    n_last_frames: usize,
}

impl<'a> DecoderStream<'a> {
    pub(super) fn new(codec: &'a NetCodec, segment: Segment) -> Self {
        let overlap = OverlapAdd::new(segment.stride as usize, usize::from(codec.info.audio.channels));
        Self { codec, segment, overlap, n_last_frames: 0 }
    }

    fn take(&mut self, codes: &Codes) -> Result<AudioBuffer> {
        let spec = self.codec.info.audio;
        let mut audio = AudioBuffer::empty(spec)?;
        let n_frames = self.segment.n_frames as usize;
        let segments: Vec<_> = pieces(codes.n_frames(), n_frames, false).map(|(range, _)| range).collect();
        // Only the last segment may be short, so those before it make equal batches.
        let whole = codes.n_frames() / n_frames;
        let (whole, rest) = segments.split_at(whole);
        for ranges in whole.chunks(MAX_BATCH).chain(rest.chunks(1)) {
            let rows = |idx: usize| codes.rows().map(move |row| &row[ranges[idx].clone()]);
            let len = ranges.first().map_or(0, ExactSizeIterator::len);
            let latents = self.codec.latents_of(ranges.len(), len, rows)?;
            let decoder = &self.codec.decoder;
            let steps = decoder.step(&mut decoder.init(), latents, true)?;
            let mut decoded = vec![AudioBuffer::empty(spec)?; ranges.len()];
            self.codec.append_audio(steps, &mut decoded)?;
            for (range, segment) in ranges.iter().zip(decoded) {
                let scale = codes.scales().get(range.start / n_frames).copied().unwrap_or(1.0);
                let joined = self.overlap.add(&scaled(&segment, |y| y * scale)?);
                audio.append(&AudioBuffer::from_planar(spec, joined)?)?;
            }
        }
        self.n_last_frames = codes.n_frames() % n_frames;
        Ok(audio)
    }
}

impl Decoder for DecoderStream<'_> {
    fn push(&mut self, codes: &Codes) -> codec_core::Result<AudioBuffer> {
        let _span = tracing::trace_span!("push", n_frames = codes.n_frames()).entered();
        self.codec.check_codes(codes)?;
        if codes.is_empty() {
            return AudioBuffer::empty(self.codec.info.audio);
        }
        if self.n_last_frames > 0 {
            let (what, actual) = ("frames after the last whole segment", self.n_last_frames as u64);
            return Err(Error::Range { what, min: 0, max: 0, actual });
        }
        Ok(self.take(codes)?)
    }

    fn finish(mut self: Box<Self>) -> codec_core::Result<AudioBuffer> {
        let _span = tracing::trace_span!("finish").entered();
        AudioBuffer::from_planar(self.codec.info.audio, self.overlap.emit(usize::MAX))
    }
}

/// Sum of segments that start `stride` samples apart, each weighted with a triangle, over the sum of
/// the weights: where two overlap, one fades into the other linearly.
///
/// # Source
/// facebookresearch/encodec, encodec/utils.py, `_linear_overlap_add`.
#[derive(Debug)]
struct OverlapAdd {
    stride: usize,
    /// One per sample of the first segment.
    triangle: Vec<f32>,
    /// Per channel, from the start of the next segment on.
    sums: Vec<VecDeque<f32>>,
    weights: VecDeque<f32>,
}

impl OverlapAdd {
    fn new(stride: usize, n_channels: usize) -> Self {
        let sums = vec![VecDeque::new(); n_channels];
        Self { stride, triangle: Vec::new(), sums, weights: VecDeque::new() }
    }

    /// Adds the next segment and gives the samples that no later one reaches.
    fn add(&mut self, segment: &AudioBuffer) -> Vec<Vec<f32>> {
        if self.triangle.is_empty() {
            self.triangle = triangle(segment.n_samples());
        }
        add_to(&mut self.weights, self.triangle.iter().take(segment.n_samples()).copied());
        for (sum, channel) in self.sums.iter_mut().zip(segment.channels()) {
            add_to(sum, channel.iter().zip(&self.triangle).map(|(y, weight)| weight * y));
        }
        self.emit(self.stride)
    }

    fn emit(&mut self, n_samples: usize) -> Vec<Vec<f32>> {
        let n_samples = n_samples.min(self.weights.len());
        let weights: Vec<f32> = self.weights.drain(..n_samples).collect();
        let emit =
            |sum: &mut VecDeque<f32>| sum.drain(..n_samples).zip(&weights).map(|(y, w)| y / w).collect();
        self.sums.iter_mut().map(emit).collect()
    }
}

/// Adds values to the front of `sum`, and at its end those that reach beyond.
fn add_to(sum: &mut VecDeque<f32>, values: impl Iterator<Item = f32>) {
    for (i, value) in values.enumerate() {
        match sum.get_mut(i) {
            Some(sum) => *sum += value,
            None => sum.push_back(value),
        }
    }
}

/// `0.5 - |t - 0.5|` over the inside of `n + 2` even steps from 0 to 1.
fn triangle(n: usize) -> Vec<f32> {
    let step = 1.0 / (n + 1) as f32;
    let weight = |i: usize| {
        // Both halves count from their end, so the triangle is symmetric.
        let t = if i < n.div_ceil(2) { step * (i + 1) as f32 } else { 1.0 - step * (n - i) as f32 };
        0.5 - (t - 0.5).abs()
    };
    (0..n).map(weight).collect()
}

/// Root mean square of the channels' mean.
fn loudness(audio: &AudioBuffer) -> f32 {
    let n_channels = f32::from(audio.spec().channels);
    let square = |i: usize| {
        let mono = audio.channels().map(|channel| channel[i]).sum::<f32>() / n_channels;
        f64::from(mono) * f64::from(mono)
    };
    let power = (0..audio.n_samples()).map(square).sum::<f64>() / audio.n_samples().max(1) as f64;
    power.sqrt() as f32 + SCALE_FLOOR
}

fn scaled(audio: &AudioBuffer, scale: impl Fn(f32) -> f32) -> codec_core::Result<AudioBuffer> {
    let channels = audio.channels().map(|channel| channel.iter().map(|&x| scale(x)).collect()).collect();
    AudioBuffer::from_planar(audio.spec(), channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec_core::AudioSpec;

    fn segment(samples: Vec<f32>) -> AudioBuffer {
        AudioBuffer::from_planar(AudioSpec { sample_rate: 8, channels: 1 }, vec![samples]).unwrap()
    }

    #[test]
    fn segments_of_one_signal_join_to_it() {
        let signal: Vec<f32> = (0..50).map(|i| (i as f32 * 0.3).sin()).collect();
        let mut overlap = OverlapAdd::new(16, 1);
        let mut joined = Vec::new();
        for start in (0..50).step_by(16) {
            joined.append(&mut overlap.add(&segment(signal[start..50.min(start + 20)].to_vec()))[0]);
        }
        joined.append(&mut overlap.emit(usize::MAX)[0]);
        assert_eq!(joined.len(), signal.len());
        for (i, (a, b)) in joined.iter().zip(&signal).enumerate() {
            assert!((a - b).abs() < 1e-6, "sample {i}: {a} against {b}");
        }
    }

    #[test]
    fn an_overlap_fades_linearly() {
        let mut overlap = OverlapAdd::new(8, 1);
        let mut joined = overlap.add(&segment(vec![1.0; 12])).remove(0);
        joined.append(&mut overlap.add(&segment(vec![0.0; 12]))[0]);
        assert_eq!(joined.len(), 16);
        // The weights of the overlap are 4, 3, 2, 1 against 1, 2, 3, 4.
        for (i, expected) in [(7, 1.0), (8, 0.8), (9, 0.6), (10, 0.4), (11, 0.2), (12, 0.0)] {
            assert!((joined[i] - expected).abs() < 1e-6, "sample {i}: {} against {expected}", joined[i]);
        }
    }
}
