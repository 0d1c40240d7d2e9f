//! A codec that says the name of its card.
//!
//! A family names a codec by what its files show, which several cards can share: that of a larger training, or of
//! another file with the same weights. The name of the card is the one that leads back to these files.

use codec_core::{AudioBuffer, Codec, CodecInfo, Codes, Decoder, Encoder, Result};

/// The codec under another name.
pub(crate) fn named(codec: Box<dyn Codec>, name: &str) -> Box<dyn Codec> {
    if codec.info().model == name {
        return codec;
    }
    let info = CodecInfo { model: name.to_owned(), ..codec.info().clone() };
    Box::new(Named { codec, info })
}

#[derive(Debug)]
struct Named {
    codec: Box<dyn Codec>,
    info: CodecInfo,
}

impl Codec for Named {
    fn info(&self) -> &CodecInfo {
        &self.info
    }

    fn encodes(&self) -> bool {
        self.codec.encodes()
    }

    fn encoder(&self, n_codebooks: usize) -> Result<Box<dyn Encoder + '_>> {
        self.codec.encoder(n_codebooks)
    }

    fn decoder(&self) -> Result<Box<dyn Decoder + '_>> {
        self.codec.decoder()
    }

    fn encode(&self, audio: &AudioBuffer, n_codebooks: usize) -> Result<Codes> {
        self.codec.encode(audio, n_codebooks)
    }

    fn decode(&self, codes: &Codes) -> Result<AudioBuffer> {
        self.codec.decode(codes)
    }

    fn encode_batch(&self, clips: &[AudioBuffer], n_codebooks: usize) -> Result<Vec<Codes>> {
        self.codec.encode_batch(clips, n_codebooks)
    }

    fn decode_batch(&self, clips: &[Codes]) -> Result<Vec<AudioBuffer>> {
        self.codec.decode_batch(clips)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::path::Path;

    #[test]
    fn another_name_changes_the_name_alone() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/encodec-tiny");
        let load = || codec_nn::load(&path, &Device::Cpu).unwrap().codec;
        let (codec, renamed) = (load(), named(load(), "another"));
        assert_eq!(renamed.info().model, "another");
        assert_eq!(CodecInfo { model: codec.info().model.clone(), ..renamed.info().clone() }, *codec.info());
        assert_eq!(renamed.encodes(), codec.encodes());
        let samples = (0..5_000).map(|i| (i as f32 * 0.05).sin()).collect();
        let audio = AudioBuffer::mono(codec.info().audio.sample_rate, samples).unwrap();
        let codes = codec.encode(&audio, 2).unwrap();
        assert_eq!(renamed.encode(&audio, 2).unwrap(), codes);
        assert_eq!(renamed.encode_batch(&[audio], 2).unwrap(), std::slice::from_ref(&codes));
        assert_eq!(renamed.decode(&codes).unwrap(), codec.decode(&codes).unwrap());
        let name = codec.info().model.clone();
        assert_eq!(named(codec, &name).info().model, name);
    }
}
