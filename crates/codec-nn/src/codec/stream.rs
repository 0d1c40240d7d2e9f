//! Streams of codecs without segments: the layers' states carry the context.

use super::pipeline::{Pipeline, State};
use super::{NetCodec, pieces};
use crate::error::Result;
use codec_core::{AudioBuffer, CodeLayout, Codes, Decoder, Encoder, Error};
use std::ops::Range;
use std::slice::from_mut;
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

    /// Codes of the stream's layout, none yet.
    pub(super) fn nothing(&self) -> Codes {
        Codes::empty(Arc::clone(&self.layout))
    }

    /// Codes the next samples of every clip, and appends to each clip's codes.
    pub(super) fn step(&mut self, clips: &[&AudioBuffer], end: bool, codes: &mut [Codes]) -> Result<()> {
        let n_samples = clips.first().map_or(0, |clip| clip.n_samples());
        let piece_samples = (PIECE_SAMPLES / self.n_clips.max(1)).max(1);
        for (range, is_last) in pieces(n_samples, piece_samples, end) {
            let steps = self.codec.steps_of(clips, range)?;
            let latents = self.pipeline.step(&mut self.state, steps, is_last)?;
            self.codec.quantize(latents, codes)?;
        }
        Ok(())
    }
}

impl Encoder for EncoderBatch<'_> {
    fn push(&mut self, audio: &AudioBuffer) -> codec_core::Result<Codes> {
        let mut codes = self.nothing();
        self.push_to(audio, &mut codes)?;
        Ok(codes)
    }

    fn push_to(&mut self, audio: &AudioBuffer, codes: &mut Codes) -> codec_core::Result<()> {
        let _span = tracing::trace_span!("push", n_samples = audio.n_samples()).entered();
        self.codec.check_audio(audio)?;
        if codes.layout() != &self.layout {
            let [left, right] = [codes.layout(), &self.layout].map(ToString::to_string);
            return Err(Error::Mismatch { what: "code layout", left, right });
        }
        Ok(self.step(&[audio], false, from_mut(codes))?)
    }

    fn finish(mut self: Box<Self>) -> codec_core::Result<Codes> {
        let _span = tracing::trace_span!("finish").entered();
        let nothing = AudioBuffer::empty(self.codec.info.audio)?;
        let mut codes = self.nothing();
        self.step(&[&nothing], true, from_mut(&mut codes))?;
        Ok(codes)
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

    /// Decodes the next frames of every clip, and appends to each clip's audio.
    pub(super) fn step(&mut self, clips: &[&Codes], end: bool, audio: &mut [AudioBuffer]) -> Result<()> {
        let n_frames = clips.first().map_or(0, |clip| clip.n_frames());
        let frame_samples = self.codec.info.hop_length as usize * self.n_clips;
        let block = self.codec.info.layout.stride_frames() as usize;
        let piece_frames = (PIECE_SAMPLES / frame_samples.max(1)).max(1).next_multiple_of(block);
        for (range, is_last) in pieces(n_frames, piece_frames, end) {
            let rows = |clip_idx: usize| {
                let Range { start, end } = range;
                let clip: &Codes = clips[clip_idx];
                let strides = clip.layout().codebooks().iter().map(|codebook| codebook.stride as usize);
                clip.rows().zip(strides).map(move |(row, stride)| &row[start / stride..end / stride])
            };
            let latents = self.codec.latents_of(clips.len(), range.len(), rows)?;
            let steps = self.codec.decoder.step(&mut self.state, latents, is_last)?;
            self.codec.append_audio(steps, audio)?;
        }
        Ok(())
    }
}

impl Decoder for DecoderBatch<'_> {
    fn push(&mut self, codes: &Codes) -> codec_core::Result<AudioBuffer> {
        let mut audio = AudioBuffer::empty(self.codec.info.audio)?;
        self.push_to(codes, &mut audio)?;
        Ok(audio)
    }

    fn push_to(&mut self, codes: &Codes, audio: &mut AudioBuffer) -> codec_core::Result<()> {
        let _span = tracing::trace_span!("push", n_frames = codes.n_frames()).entered();
        self.codec.check_codes(codes)?;
        self.codec.check_audio(audio)?;
        Ok(self.step(&[codes], false, from_mut(audio))?)
    }

    fn finish(mut self: Box<Self>) -> codec_core::Result<AudioBuffer> {
        let _span = tracing::trace_span!("finish").entered();
        let nothing = Codes::empty(self.codec.info.layout.clone());
        let mut audio = AudioBuffer::empty(self.codec.info.audio)?;
        self.step(&[&nothing], true, from_mut(&mut audio))?;
        Ok(audio)
    }
}
