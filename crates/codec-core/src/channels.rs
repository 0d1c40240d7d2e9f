//! A mono codec for audio of several channels: each is coded by itself.

use crate::audio::{AudioBuffer, AudioSpec};
use crate::codec::{Codec, Decoder, Encoder};
use crate::codes::{CodeLayout, Codes};
use crate::error::{Error, Result};
use crate::info::CodecInfo;
use std::sync::Arc;

/// Codes every channel with the same mono codec, as DAC's own program does.
///
/// Codebook `k` of channel `c` is codebook `k * channels + c` here, so that a prefix of the codebooks is a
/// prefix for every channel; there are as many times the codebooks, and the bitrate is as many times higher.
/// At least one codebook per channel is coded.
#[derive(Debug)]
pub struct PerChannel<'a> {
    inner: &'a dyn Codec,
    info: CodecInfo,
}

impl CodecInfo {
    /// What the codec is when every one of `channels` channels is coded by itself, see [`PerChannel`].
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the codec is not mono or codes in segments, [`Error::Range`] for no channel
    /// or more codebooks than a layout may have.
    pub fn per_channel(&self, channels: u16) -> Result<Self> {
        if self.audio.channels != 1 || self.segment.is_some() {
            let left = format!("{} of {}", self.model, self.audio);
            return Err(Error::Mismatch { what: "codec", left, right: "mono without segments".to_owned() });
        }
        let codebooks = self.layout.codebooks().iter();
        let layout = CodeLayout::new(codebooks.flat_map(|c| vec![*c; channels.into()]).collect())?;
        Ok(Self { audio: AudioSpec { channels, ..self.audio }, layout, ..self.clone() })
    }
}

impl<'a> PerChannel<'a> {
    /// Takes a mono codec and the number of channels.
    ///
    /// # Errors
    /// As [`CodecInfo::per_channel`].
    pub fn new(inner: &'a dyn Codec, channels: u16) -> Result<Self> {
        let info = inner.info().per_channel(channels)?;
        Ok(Self { inner, info })
    }

    /// Codebooks of channel `channel_idx` among the first `n_codebooks`.
    fn n_of_channel(&self, n_codebooks: usize, channel_idx: usize) -> usize {
        n_codebooks.saturating_sub(channel_idx).div_ceil(self.n_channels())
    }

    fn n_channels(&self) -> usize {
        self.info.audio.channels.into()
    }

    /// The channels of a clip as clips of their own.
    fn split(&self, audio: &AudioBuffer) -> Result<Vec<AudioBuffer>> {
        if audio.spec() != self.info.audio {
            let [left, right] = [audio.spec(), self.info.audio].map(|spec| spec.to_string());
            return Err(Error::Mismatch { what: "audio", left, right });
        }
        audio.channels().map(|c| AudioBuffer::mono(self.info.audio.sample_rate, c.to_vec())).collect()
    }

    /// The clips of the channels as one.
    fn join(&self, channels: Vec<AudioBuffer>) -> Result<AudioBuffer> {
        let channels = channels.into_iter().flat_map(AudioBuffer::into_channels).collect();
        AudioBuffer::from_planar(self.info.audio, channels)
    }

    /// The codes of the channels as those of one clip.
    fn interleave(layout: &Arc<CodeLayout>, channels: Vec<Codes>) -> Result<Codes> {
        let n_channels = channels.len().max(1);
        let mut channels: Vec<_> = channels.into_iter().map(|codes| codes.into_rows().into_iter()).collect();
        let row = |codebook_idx: usize| channels[codebook_idx % n_channels].next().unwrap_or_default();
        Codes::new(Arc::clone(layout), (0..layout.n_codebooks()).map(row).collect())
    }

    /// The codes of each channel.
    fn deinterleave(&self, codes: &Codes) -> Result<Vec<Codes>> {
        if !codes.layout().is_prefix_of(&self.info.layout) {
            let [left, right] =
                [codes.layout().as_ref(), &self.info.layout].map(|layout| format!("{layout:?}"));
            return Err(Error::Mismatch { what: "code layout", left, right });
        }
        self.check(codes.n_codebooks())?;
        let channel = |channel_idx: usize| {
            let rows = codes.rows().skip(channel_idx).step_by(self.n_channels());
            let n_codebooks = self.n_of_channel(codes.n_codebooks(), channel_idx);
            let layout = self.inner.info().layout.truncated(n_codebooks)?;
            Codes::new(layout, rows.map(<[u32]>::to_vec).collect())
        };
        (0..self.n_channels()).map(channel).collect()
    }

    /// Refuses fewer codebooks than channels.
    fn check(&self, n_codebooks: usize) -> Result<()> {
        let (min, max) = (self.n_channels(), self.info.layout.n_codebooks());
        if (min..=max).contains(&n_codebooks) {
            return Ok(());
        }
        let [min, max, actual] = [min, max, n_codebooks].map(|n| n as u64);
        Err(Error::Range { what: "codebooks of all channels", min, max, actual })
    }
}

impl Codec for PerChannel<'_> {
    fn info(&self) -> &CodecInfo {
        &self.info
    }

    fn encodes(&self) -> bool {
        self.inner.encodes()
    }

    /// Starts a stream, see [`Codec::encoder`].
    ///
    /// # Errors
    /// [`Error::Range`] also when there are fewer codebooks than channels.
    fn encoder(&self, n_codebooks: usize) -> Result<Box<dyn Encoder + '_>> {
        self.check(n_codebooks)?;
        let encoder = |channel_idx| self.inner.encoder(self.n_of_channel(n_codebooks, channel_idx));
        Ok(Box::new(ChannelEncoders {
            codec: self,
            layout: Arc::new(self.info.layout.truncated(n_codebooks)?),
            encoders: (0..self.n_channels()).map(encoder).collect::<Result<_>>()?,
        }))
    }

    fn decoder(&self) -> Result<Box<dyn Decoder + '_>> {
        let decoders = (0..self.n_channels()).map(|_| self.inner.decoder()).collect::<Result<_>>()?;
        Ok(Box::new(ChannelDecoders { codec: self, decoders }))
    }
}

struct ChannelEncoders<'a> {
    codec: &'a PerChannel<'a>,
    layout: Arc<CodeLayout>,
    encoders: Vec<Box<dyn Encoder + 'a>>,
}

impl Encoder for ChannelEncoders<'_> {
    fn push(&mut self, audio: &AudioBuffer) -> Result<Codes> {
        let channels = self.codec.split(audio)?;
        let codes = self.encoders.iter_mut().zip(&channels).map(|(encoder, channel)| encoder.push(channel));
        PerChannel::interleave(&self.layout, codes.collect::<Result<_>>()?)
    }

    fn finish(self: Box<Self>) -> Result<Codes> {
        let codes = self.encoders.into_iter().map(Encoder::finish).collect::<Result<_>>()?;
        PerChannel::interleave(&self.layout, codes)
    }
}

struct ChannelDecoders<'a> {
    codec: &'a PerChannel<'a>,
    decoders: Vec<Box<dyn Decoder + 'a>>,
}

impl Decoder for ChannelDecoders<'_> {
    fn push(&mut self, codes: &Codes) -> Result<AudioBuffer> {
        let channels = self.codec.deinterleave(codes)?;
        let audio = self.decoders.iter_mut().zip(&channels).map(|(decoder, codes)| decoder.push(codes));
        self.codec.join(audio.collect::<Result<_>>()?)
    }

    fn finish(self: Box<Self>) -> Result<AudioBuffer> {
        let Self { codec, decoders } = *self;
        codec.join(decoders.into_iter().map(Decoder::finish).collect::<Result<_>>()?)
    }
}
