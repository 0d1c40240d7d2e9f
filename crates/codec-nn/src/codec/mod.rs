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
use crate::ops::{Purpose, purpose};
use crate::quantizer::QuantizerNet;
use candle_core::Device;
use codec_core::quantizer::{Latents, Quantizer, with_rows};
use codec_core::{AudioBuffer, Codec, CodecInfo, Codes, Decoder, Encoder, Error};
use std::borrow::Borrow;
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
    /// What it was loaded for.
    purpose: Purpose,
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
        self.encoder.is_some() && self.purpose.encodes()
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
        self.check_decodes()?;
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
            let mut codes = vec![stream.nothing(); batch.len()];
            stream.step(batch, true, &mut codes)?;
            Ok(codes)
        })
    }

    fn decode_batch(&self, clips: &[Codes]) -> codec_core::Result<Vec<AudioBuffer>> {
        self.check_decodes()?;
        if self.info.segment.is_some() {
            return clips.iter().map(|clip| self.decode(clip)).collect();
        }
        clips.iter().try_for_each(|clip| self.check_codes(clip))?;
        in_batches(clips, Codes::n_frames, |batch| {
            let mut stream = stream::DecoderBatch::new(self, batch.len());
            let mut audio = vec![AudioBuffer::empty(self.info.audio)?; batch.len()];
            stream.step(batch, true, &mut audio)?;
            Ok(audio)
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
        Ok(Self { info, encoder, decoder, quantizer, device: device.clone(), purpose: purpose() })
    }

    fn encoder_pipeline(&self) -> codec_core::Result<&Pipeline> {
        let unsupported = |what| Error::Unsupported { what, value: self.info.model.clone() };
        let encoder = self.encoder.as_ref().ok_or_else(|| unsupported("encoding with"))?;
        if !self.purpose.encodes() {
            return Err(unsupported("encoding, since it was loaded to decode only, with"));
        }
        Ok(encoder)
    }

    fn check_decodes(&self) -> codec_core::Result<()> {
        if self.purpose.decodes() {
            return Ok(());
        }
        let what = "decoding, since it was loaded to encode only, with";
        Err(Error::Unsupported { what, value: self.info.model.clone() })
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

    /// Samples of clips side by side, `[batch, n_samples, channels]`; none where the range is empty.
    fn steps_of(&self, clips: &[impl Borrow<AudioBuffer>], samples: Range<usize>) -> Result<Option<Steps>> {
        let channels = usize::from(self.info.audio.channels);
        if samples.is_empty() {
            return Ok(None);
        }
        let steps = Steps::new([clips.len(), samples.len(), channels], &self.device, |out| {
            for (clip, out) in clips.iter().zip(out.chunks_exact_mut(samples.len() * channels)) {
                clip.borrow().write_interleaved(samples.start, out);
            }
            Ok(())
        });
        steps.map(Some)
    }

    /// Quantizes `[batch, n_frames, dim]` and appends the codes of each item.
    fn quantize(&self, latents: Option<Steps>, items: &mut [Codes]) -> Result<()> {
        let Some(latents) = latents else { return Ok(()) };
        let (_, n_frames, dim) = latents.dims3()?;
        latents.read(|latents| {
            let mut items = latents.chunks_exact(n_frames * dim).zip(items);
            items.try_for_each(|(latents, codes)| {
                let latents = Latents::new(latents, dim)?;
                Ok(codes.append_with(|rows| self.quantizer.encode_to(latents, rows))?)
            })
        })
    }

    /// Latents of items of `n_frames`, `[batch, n_frames, dim]`; none where there are no frames.
    ///
    /// `rows` gives the rows of codes of an item.
    fn latents_of<'c, R: Iterator<Item = &'c [u32]>>(
        &self,
        n_items: usize,
        n_frames: usize,
        rows: impl Fn(usize) -> R,
    ) -> Result<Option<Steps>> {
        let dim = self.quantizer.dim();
        if n_items * n_frames == 0 {
            return Ok(None);
        }
        let latents = Steps::new([n_items, n_frames, dim], &self.device, |out| {
            for (item_idx, out) in out.chunks_exact_mut(n_frames * dim).enumerate() {
                with_rows(rows(item_idx), |rows| self.quantizer.decode_to(rows, out))?;
            }
            Ok(())
        });
        latents.map(Some)
    }

    /// Appends `[batch, n_samples, channels]` to planar clips.
    fn append_audio(&self, steps: Option<Steps>, clips: &mut [AudioBuffer]) -> Result<()> {
        let Some(steps) = steps else { return Ok(()) };
        steps.read(|samples| {
            let items = samples.chunks_exact((samples.len() / clips.len().max(1)).max(1));
            Ok(clips.iter_mut().zip(items).try_for_each(|(clip, item)| clip.append_interleaved(item))?)
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
