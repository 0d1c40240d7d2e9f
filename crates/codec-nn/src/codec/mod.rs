//! A codec from two networks and a quantizer: streams, segments and batches, once for all families.
//!
//! A stream runs the networks on chunks of bounded length, whatever it is given, so that memory does
//! not grow with the clip; the layers' states carry what one chunk needs of the one before. A codec
//! with segments runs the networks on each segment apart, several at a time, and joins decoded
//! segments by overlap-add.

mod delays;
mod pipeline;
mod segments;
mod stream;

use self::pipeline::Pipeline;
use crate::error::Result;
use crate::layers::{DynLayer, Flow, Steps};
use crate::quantizer::QuantizerNet;
use candle_core::Device;
use codec_core::quantizer::{Latents, Quantizer};
use codec_core::{AudioBuffer, Codec, CodecInfo, Codes, Decoder, Encoder, Error};
use std::collections::BTreeMap;
use std::ops::Range;

/// Most clips or segments in one tensor.
const MAX_BATCH: usize = 4;

/// An encoder network, a quantizer and a decoder network.
#[derive(Debug)]
pub(crate) struct NetCodec {
    info: CodecInfo,
    /// `[batch, n_samples, channels]` to `[batch, n_frames, dim]`; as many frames as are whole blocks of
    /// the quantizer. None where the family only decodes.
    encoder: Option<Pipeline>,
    /// `[batch, n_frames, dim]` to `[batch, n_samples, channels]`.
    decoder: Pipeline,
    /// Its layout is that of `info` without the scales.
    quantizer: Box<dyn Quantizer>,
    device: Device,
}

/// A network that a family put together.
pub type Net = Vec<DynLayer>;

/// The parts of a codec, as training sees them.
#[derive(Debug)]
pub struct Networks {
    /// What the codec is; its delays are not filled in.
    pub info: CodecInfo,
    /// `[batch, n_samples, channels]` to `[batch, n_frames, dim]`.
    pub encoder: Net,
    /// `[batch, n_frames, dim]` to `[batch, n_samples, channels]`.
    pub decoder: Net,
    /// Between the two.
    pub quantizer: QuantizerNet,
}

impl Networks {
    /// The codec of these networks and the quantizer's present values.
    ///
    /// # Errors
    /// As [`QuantizerNet::fixed`]; [`crate::Error::Unsupported`] when a network gives nothing before
    /// the end of the clip.
    pub(crate) fn codec(self, device: &Device) -> Result<NetCodec> {
        let quantizer = self.quantizer.fixed()?;
        NetCodec::new(self.info, Some(self.encoder), self.decoder, quantizer, device)
    }
}

impl Codec for NetCodec {
    fn info(&self) -> &CodecInfo {
        &self.info
    }

    fn encodes(&self) -> bool {
        self.encoder.is_some()
    }

    fn encoder(&self, n_codebooks: usize) -> codec_core::Result<Box<dyn Encoder + '_>> {
        let layout = self.info.layout.truncated(n_codebooks)?;
        let pipeline = self.encoder_pipeline()?;
        Ok(match self.info.segment {
            None => Box::new(stream::EncoderBatch::new(self, pipeline, layout, 1)),
            Some(segment) => Box::new(segments::EncoderStream::new(self, pipeline, layout, segment)?),
        })
    }

    fn decoder(&self) -> codec_core::Result<Box<dyn Decoder + '_>> {
        Ok(match self.info.segment {
            None => Box::new(stream::DecoderBatch::new(self, 1)),
            Some(segment) => Box::new(segments::DecoderStream::new(self, segment)),
        })
    }

    fn encode_batch(&self, clips: &[AudioBuffer], n_codebooks: usize) -> codec_core::Result<Vec<Codes>> {
        if self.info.segment.is_some() {
            // The segments of one clip are a batch already.
            return clips.iter().map(|clip| self.encode(clip, n_codebooks)).collect();
        }
        let layout = self.info.layout.truncated(n_codebooks)?;
        let pipeline = self.encoder_pipeline()?;
        clips.iter().try_for_each(|clip| self.check_audio(clip))?;
        in_batches(clips, AudioBuffer::n_samples, |batch| {
            let mut stream = stream::EncoderBatch::new(self, pipeline, layout.clone(), batch.len());
            Ok(stream.step(batch, true)?)
        })
    }

    fn decode_batch(&self, clips: &[Codes]) -> codec_core::Result<Vec<AudioBuffer>> {
        if self.info.segment.is_some() {
            return clips.iter().map(|clip| self.decode(clip)).collect();
        }
        clips.iter().try_for_each(|clip| self.check_codes(clip))?;
        in_batches(clips, Codes::n_frames, |batch| {
            let mut stream = stream::DecoderBatch::new(self, batch.len());
            Ok(stream.step(batch, true)?)
        })
    }
}

impl NetCodec {
    /// Puts a codec together; the delays in `info` are those of the networks, whatever it says.
    ///
    /// # Errors
    /// [`crate::Error::Config`] when a delay does not fit its type.
    pub(crate) fn new(
        mut info: CodecInfo,
        encoder: Option<Net>,
        decoder: Net,
        quantizer: Box<dyn Quantizer>,
        device: &Device,
    ) -> Result<Self> {
        info.delays = delays::delays(&info, encoder.as_ref(), &decoder)?;
        let rate = f64::from(info.audio.sample_rate);
        let audio = Flow { rate, channels: usize::from(info.audio.channels) };
        let latents = Flow { rate: rate / f64::from(info.hop_length.max(1)), channels: quantizer.dim() };
        let encoder = encoder.map(|encoder| Pipeline::new(encoder, audio));
        let decoder = Pipeline::new(decoder, latents);
        Ok(Self { info, encoder, decoder, quantizer, device: device.clone() })
    }

    fn encoder_pipeline(&self) -> codec_core::Result<&Pipeline> {
        let unsupported = || Error::Unsupported { what: "encoding with", value: self.info.model.clone() };
        self.encoder.as_ref().ok_or_else(unsupported)
    }

    fn check_audio(&self, audio: &AudioBuffer) -> codec_core::Result<()> {
        if audio.spec() == self.info.audio {
            return Ok(());
        }
        let [left, right] = [audio.spec(), self.info.audio].map(|spec| spec.to_string());
        Err(Error::Mismatch { what: "audio", left, right })
    }

    fn check_codes(&self, codes: &Codes) -> codec_core::Result<()> {
        if codes.layout().is_prefix_of(&self.info.layout) {
            return Ok(());
        }
        let [left, right] = [codes.layout().as_ref(), &self.info.layout].map(ToString::to_string);
        Err(Error::Mismatch { what: "code layout", left, right })
    }

    /// Clips of one length side by side, `[batch, n_samples, channels]`; none when they are empty.
    fn steps_of(&self, clips: &[AudioBuffer]) -> Result<Option<Steps>> {
        let n_clips = clips.len();
        let mut steps = Vec::new();
        for clip in clips {
            steps.append(&mut clip.to_interleaved());
        }
        let channels = usize::from(self.info.audio.channels);
        let n_samples = steps.len() / (n_clips * channels).max(1);
        if n_samples == 0 {
            return Ok(None);
        }
        Ok(Some(Steps::new(&steps, [n_clips, n_samples, channels], &self.device)?))
    }

    /// Quantizes `[batch, n_frames, dim]`: per item the rows of codes.
    fn quantize(
        &self,
        latents: Option<Steps>,
        n_items: usize,
        n_codebooks: usize,
    ) -> Result<Vec<Vec<Vec<u32>>>> {
        let Some(latents) = latents else {
            return Ok(vec![vec![Vec::new(); n_codebooks]; n_items]);
        };
        let (_, n_frames, dim) = latents.dims3()?;
        let rows = |item: &[f32]| -> Result<Vec<Vec<u32>>> {
            let codes = self.quantizer.encode(Latents::new(item, dim)?, n_codebooks)?;
            Ok(codes.rows().map(<[u32]>::to_vec).collect())
        };
        latents.read(|latents| latents.chunks_exact(n_frames * dim).map(rows).collect())
    }

    /// Latents of rows of codes of one length, `[batch, n_frames, dim]`; none when they are empty.
    fn latents_of(&self, items: Vec<Vec<Vec<u32>>>) -> Result<Option<Steps>> {
        let n_items = items.len();
        let mut latents = Vec::new();
        for rows in items {
            let layout = self.quantizer.layout().truncated(rows.len())?;
            latents.append(&mut self.quantizer.decode(&Codes::new(layout, rows)?)?);
        }
        let dim = self.quantizer.dim();
        let n_frames = latents.len() / (n_items * dim).max(1);
        if n_frames == 0 {
            return Ok(None);
        }
        Ok(Some(Steps::new(&latents, [n_items, n_frames, dim], &self.device)?))
    }

    /// Splits `[batch, n_samples, channels]` into planar clips.
    fn audio_of(&self, steps: Option<Steps>, n_items: usize) -> Result<Vec<AudioBuffer>> {
        let spec = self.info.audio;
        let Some(steps) = steps else {
            return Ok(vec![AudioBuffer::empty(spec)?; n_items]);
        };
        steps.read(|samples| {
            let clips = samples.chunks_exact((samples.len() / n_items.max(1)).max(1));
            let clips = clips.map(|clip| AudioBuffer::from_interleaved(spec, clip));
            Ok(clips.collect::<codec_core::Result<_>>()?)
        })
    }
}

/// Runs `work` on groups of items of one size and puts the results in the order of the items.
fn in_batches<T, R>(
    items: &[T],
    size: impl Fn(&T) -> usize,
    work: impl Fn(&[&T]) -> codec_core::Result<Vec<R>>,
) -> codec_core::Result<Vec<R>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (item_idx, item) in items.iter().enumerate() {
        groups.entry(size(item)).or_default().push(item_idx);
    }
    let mut results = BTreeMap::new();
    for group in groups.values() {
        for item_idxs in group.chunks(MAX_BATCH) {
            let batch: Vec<&T> = item_idxs.iter().map(|&item_idx| &items[item_idx]).collect();
            results.extend(item_idxs.iter().copied().zip(work(&batch)?));
        }
    }
    Ok(results.into_values().collect())
}

/// Cuts `n` steps into pieces of at most `size`, each with whether it is the stream's last.
///
/// At the end of a stream there is a piece even if there are no steps.
fn pieces(n: usize, size: usize, end: bool) -> impl Iterator<Item = (Range<usize>, bool)> {
    let n_pieces = n.div_ceil(size).max(usize::from(end));
    (0..n_pieces).map(move |i| (i * size..n.min((i + 1) * size), end && i + 1 == n_pieces))
}
