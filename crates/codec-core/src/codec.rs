//! The traits that every codec implements.

use crate::audio::AudioBuffer;
use crate::codes::Codes;
use crate::error::Result;
use crate::info::CodecInfo;
use std::fmt::Debug;

/// A codec: audio to codes and back.
///
/// The whole-clip methods are the streaming ones run once, so both give the same bits.
pub trait Codec: Debug + Send + Sync {
    /// Rates, sizes and identity.
    fn info(&self) -> &CodecInfo;

    /// Whether the codec has an encoder; of some families only the decoder is implemented, and one may be loaded to
    /// decode only.
    fn encodes(&self) -> bool {
        true
    }

    /// Starts a stream that codes with the first `n_codebooks` codebooks.
    ///
    /// # Errors
    /// [`crate::Error::Range`] when `n_codebooks` is not in 1..=`info().layout.n_codebooks()`;
    /// [`crate::Error::Unsupported`] for a codec that only decodes.
    fn encoder(&self, n_codebooks: usize) -> Result<Box<dyn Encoder + '_>>;

    /// Starts a stream that decodes.
    ///
    /// # Errors
    /// What the implementation may fail with at the start of a stream; [`crate::Error::Unsupported`] for a codec that
    /// was loaded to encode only.
    fn decoder(&self) -> Result<Box<dyn Decoder + '_>>;

    /// Codes a whole clip.
    ///
    /// # Errors
    /// As [`Codec::encoder`] and [`Encoder::push`].
    fn encode(&self, audio: &AudioBuffer, n_codebooks: usize) -> Result<Codes> {
        let mut encoder = self.encoder(n_codebooks)?;
        let mut codes = encoder.push(audio)?;
        codes.append(&encoder.finish()?)?;
        Ok(codes)
    }

    /// Decodes a whole clip. Its length is a matter of frames: a caller who knows the number of
    /// samples that went in truncates to it.
    ///
    /// # Errors
    /// As [`Codec::decoder`] and [`Decoder::push`].
    fn decode(&self, codes: &Codes) -> Result<AudioBuffer> {
        let mut decoder = self.decoder()?;
        let mut audio = decoder.push(codes)?;
        audio.append(&decoder.finish()?)?;
        Ok(audio)
    }

    /// Codes several clips; each result equals [`Codec::encode`] of its clip, bit for bit.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    fn encode_batch(&self, clips: &[AudioBuffer], n_codebooks: usize) -> Result<Vec<Codes>> {
        clips.iter().map(|clip| self.encode(clip, n_codebooks)).collect()
    }

    /// Decodes several clips; each result equals [`Codec::decode`] of its codes, bit for bit.
    ///
    /// # Errors
    /// As [`Codec::decode`].
    fn decode_batch(&self, clips: &[Codes]) -> Result<Vec<AudioBuffer>> {
        clips.iter().map(|clip| self.decode(clip)).collect()
    }
}

impl<C: Codec + ?Sized> Codec for &C {
    fn info(&self) -> &CodecInfo {
        (**self).info()
    }

    fn encodes(&self) -> bool {
        (**self).encodes()
    }

    fn encoder(&self, n_codebooks: usize) -> Result<Box<dyn Encoder + '_>> {
        (**self).encoder(n_codebooks)
    }

    fn decoder(&self) -> Result<Box<dyn Decoder + '_>> {
        (**self).decoder()
    }

    fn encode_batch(&self, clips: &[AudioBuffer], n_codebooks: usize) -> Result<Vec<Codes>> {
        (**self).encode_batch(clips, n_codebooks)
    }

    fn decode_batch(&self, clips: &[Codes]) -> Result<Vec<AudioBuffer>> {
        (**self).decode_batch(clips)
    }
}

/// A stream from audio to codes.
pub trait Encoder: Send {
    /// Takes the next samples, of any number, and gives the codes that are complete.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] when rate or channels are not the codec's; the stream is then
    /// as it was. After any other error the stream is lost.
    fn push(&mut self, audio: &AudioBuffer) -> Result<Codes>;

    /// [`Encoder::push`] that appends to `codes`, whose layout is that of the stream, so that a caller who clears
    /// and keeps them need not allocate.
    ///
    /// # Errors
    /// As [`Encoder::push`] and [`Codes::append`]; the stream is lost after the latter.
    fn push_to(&mut self, audio: &AudioBuffer, codes: &mut Codes) -> Result<()> {
        codes.append(&self.push(audio)?)
    }

    /// Ends the stream and gives the remaining codes.
    ///
    /// # Errors
    /// What the implementation may fail with.
    fn finish(self: Box<Self>) -> Result<Codes>;
}

/// A stream from codes to audio.
pub trait Decoder: Send {
    /// Takes the codes of the next frames, any prefix of the codec's codebooks, and gives the
    /// samples that are complete.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] when the layout is not a prefix of the codec's; the stream is
    /// then as it was. After any other error the stream is lost.
    fn push(&mut self, codes: &Codes) -> Result<AudioBuffer>;

    /// [`Decoder::push`] that appends to `audio`, so that a caller who clears and keeps it need not allocate.
    ///
    /// # Errors
    /// As [`Decoder::push`] and [`AudioBuffer::append`]; the stream is lost after the latter.
    fn push_to(&mut self, codes: &Codes, audio: &mut AudioBuffer) -> Result<()> {
        audio.append(&self.push(codes)?)
    }

    /// Ends the stream and gives the remaining samples.
    ///
    /// # Errors
    /// What the implementation may fail with.
    fn finish(self: Box<Self>) -> Result<AudioBuffer>;
}
