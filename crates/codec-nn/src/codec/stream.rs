//! Streams of codecs without segments: the layers' states carry the context.

use super::pipeline::{Pipeline, State};
use super::{NetCodec, pieces};
use crate::error::Result;
use codec_core::{AudioBuffer, CodeLayout, Codes, Decoder, Encoder};
use std::sync::Arc;

/// Samples of all clips that are given to a network at a time, which cuts them further: so many that its
/// start and end, when not all stages run, weigh little, and some megabytes of audio and latents at most.
const PIECE_SAMPLES: usize = 1 << 20;

/// Clips of one length, coded side by side.
#[derive(Debug)]
pub(super) struct EncoderBatch<'a> {
    codec: &'a NetCodec,
    pipeline: &'a Pipeline,
    layout: Arc<CodeLayout>,
    state: State,
    n_clips: usize,
}

impl<'a> EncoderBatch<'a> {
    /// Takes the codec with its encoder.
    pub(super) fn new(
        codec: &'a NetCodec,
        pipeline: &'a Pipeline,
        layout: CodeLayout,
        n_clips: usize,
    ) -> Self {
        Self { codec, pipeline, layout: Arc::new(layout), state: pipeline.init(), n_clips }
    }

    /// Codes the next samples of every clip.
    pub(super) fn step(&mut self, clips: &[&AudioBuffer], end: bool) -> Result<Vec<Codes>> {
        let n_samples = clips.first().map_or(0, |clip| clip.n_samples());
        let piece_samples = (PIECE_SAMPLES / self.n_clips.max(1)).max(1);
        let mut codes = vec![Codes::empty(Arc::clone(&self.layout)); self.n_clips];
        for (range, is_last) in pieces(n_samples, piece_samples, end) {
            let clips: Vec<_> = clips.iter().map(|clip| clip.slice(range.clone())).collect();
            let steps = self.codec.steps_of(&clips)?;
            let latents = self.pipeline.step(&mut self.state, steps, is_last)?;
            let items = self.codec.quantize(latents, self.n_clips, self.layout.n_codebooks())?;
            for (codes, rows) in codes.iter_mut().zip(items) {
                codes.append(&Codes::new(Arc::clone(&self.layout), rows)?)?;
            }
        }
        Ok(codes)
    }

    fn step_one(&mut self, clip: &AudioBuffer, end: bool) -> codec_core::Result<Codes> {
        let codes = self.step(&[clip], end)?.pop();
        Ok(codes.unwrap_or_else(|| Codes::empty(Arc::clone(&self.layout))))
    }
}

impl Encoder for EncoderBatch<'_> {
    fn push(&mut self, audio: &AudioBuffer) -> codec_core::Result<Codes> {
        let _span = tracing::trace_span!("push", n_samples = audio.n_samples()).entered();
        self.codec.check_audio(audio)?;
        self.step_one(audio, false)
    }

    fn finish(mut self: Box<Self>) -> codec_core::Result<Codes> {
        let _span = tracing::trace_span!("finish").entered();
        let nothing = AudioBuffer::empty(self.codec.info.audio)?;
        self.step_one(&nothing, true)
    }
}

/// Clips of as many frames, decoded side by side.
#[derive(Debug)]
pub(super) struct DecoderBatch<'a> {
    codec: &'a NetCodec,
    state: State,
    n_clips: usize,
}

impl<'a> DecoderBatch<'a> {
    pub(super) fn new(codec: &'a NetCodec, n_clips: usize) -> Self {
        Self { codec, state: codec.decoder.init(), n_clips }
    }

    /// Decodes the next frames of every clip.
    pub(super) fn step(&mut self, clips: &[&Codes], end: bool) -> Result<Vec<AudioBuffer>> {
        let n_frames = clips.first().map_or(0, |clip| clip.n_frames());
        let frame_samples = self.codec.info.hop_length as usize * self.n_clips;
        let block = self.codec.info.layout.stride_frames() as usize;
        let piece_frames = (PIECE_SAMPLES / frame_samples.max(1)).max(1).next_multiple_of(block);
        let mut audio = vec![AudioBuffer::empty(self.codec.info.audio)?; self.n_clips];
        for (range, is_last) in pieces(n_frames, piece_frames, end) {
            let rows = |clip: &&Codes| {
                let strides = clip.layout().codebooks().iter().map(|codebook| codebook.stride as usize);
                let row =
                    |(row, stride): (&[u32], usize)| row[range.start / stride..range.end / stride].to_vec();
                clip.rows().zip(strides).map(row).collect()
            };
            let latents = self.codec.latents_of(clips.iter().map(rows).collect())?;
            let steps = self.codec.decoder.step(&mut self.state, latents, is_last)?;
            for (audio, piece) in audio.iter_mut().zip(self.codec.audio_of(steps, self.n_clips)?) {
                audio.append(&piece)?;
            }
        }
        Ok(audio)
    }

    fn step_one(&mut self, clip: &Codes, end: bool) -> codec_core::Result<AudioBuffer> {
        let audio = self.step(&[clip], end)?.pop();
        audio.map_or_else(|| AudioBuffer::empty(self.codec.info.audio), Ok)
    }
}

impl Decoder for DecoderBatch<'_> {
    fn push(&mut self, codes: &Codes) -> codec_core::Result<AudioBuffer> {
        let _span = tracing::trace_span!("push", n_frames = codes.n_frames()).entered();
        self.codec.check_codes(codes)?;
        self.step_one(codes, false)
    }

    fn finish(mut self: Box<Self>) -> codec_core::Result<AudioBuffer> {
        let _span = tracing::trace_span!("finish").entered();
        let nothing = Codes::empty(self.codec.info.layout.clone());
        self.step_one(&nothing, true)
    }
}
