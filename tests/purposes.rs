//! A codec that is loaded to encode or to decode only has the bits of one that does both, and leaves the other
//! network's weights where they are.

use candle_core::Device;
use codec_core::{Codec, Error};
use codec_nn::Purpose;
use codec_nn::families::load_checkpoint;
use codec_nn::weights::Checkpoint;
use codec_tests::Result;
use codec_tests::compare::{same_audio, same_codes};
use codec_tests::vectors::{Vectors, decoder_subjects, subjects};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::borrow::Cow;

/// The family whose files are loaded whole.
const WHOLE: &str = "soundstream";

fn load(checkpoint: &Checkpoint, purpose: Purpose) -> codec_nn::Result<Box<dyn Codec>> {
    Ok(load_checkpoint(&checkpoint.clone().with_options(purpose), &Device::Cpu)?.codec)
}

#[test]
fn every_codec_encodes_without_its_decoder_and_decodes_without_its_encoder() -> Result<()> {
    for subject in subjects()? {
        let (name, clip) = (&subject.name, &subject.clip);
        let (both, n_codebooks) = (subject.codec.as_ref(), subject.codec.info().layout.n_codebooks());
        let checkpoint = Vectors::open(name)?.open_checkpoint()?;
        let codes = both.encode(clip, n_codebooks)?;

        let encoding = load(&checkpoint, Purpose::Encoding)?;
        assert_eq!(encoding.info(), both.info());
        same_codes(&encoding.encode(clip, n_codebooks)?, &codes).map_err(|e| format!("{name}: {e}"))?;
        let decoding = load(&checkpoint, Purpose::Decoding)?;
        assert_eq!(decoding.info(), both.info());
        same_audio(&decoding.decode(&codes)?, &both.decode(&codes)?).map_err(|e| format!("{name}: {e}"))?;

        if both.info().family == WHOLE {
            continue;
        }
        assert!(encoding.encodes() && !decoding.encodes(), "{name}");
        let says = |error: Option<Error>, what: &str| {
            let text = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(text.contains(what), "{name}: {text}");
        };
        says(decoding.encoder(n_codebooks).err(), "loaded to decode only");
        says(decoding.encode_batch(std::slice::from_ref(clip), n_codebooks).err(), "loaded to decode only");
        says(encoding.decoder().err(), "loaded to encode only");
        says(encoding.decode_batch(std::slice::from_ref(&codes)).err(), "loaded to encode only");
    }
    Ok(())
}

#[test]
fn what_only_decodes_can_be_loaded_to_decode() -> Result<()> {
    for subject in decoder_subjects()? {
        let checkpoint = Vectors::open(&subject.name)?.open_checkpoint()?;
        let decoding = load(&checkpoint, Purpose::Decoding)?;
        same_audio(&decoding.decode(&subject.codes)?, &subject.codec.decode(&subject.codes)?)?;
        assert!(!load(&checkpoint, Purpose::Encoding)?.encodes());
    }
    Ok(())
}

/// The checkpoint of `vectors` after one tensor was changed.
fn changed(
    vectors: &Vectors,
    name: &str,
    change: impl Fn(&TensorView<'_>) -> (String, Vec<usize>, Vec<u8>),
) -> Result<Checkpoint> {
    let bytes = vectors.checkpoint()?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let tensor = tensors.tensor(name)?;
    let (name_after, shape, data) = change(&tensor);
    let others = tensors.iter().filter(|(other, _)| *other != name);
    let mut all: Vec<(Cow<'_, str>, TensorView<'_>)> =
        others.map(|(name, view)| (Cow::Borrowed(name), view)).collect();
    all.push((Cow::Owned(name_after), TensorView::new(tensor.dtype(), shape, &data)?));
    let bytes = safetensors::serialize(all, metadata.metadata().clone())?;
    Ok(Checkpoint::from_bytes(bytes, &Device::Cpu)?)
}

/// Whether the checkpoint loads although its tensor `name` holds no numbers.
fn ignores(vectors: &Vectors, name: &str, purpose: Purpose) -> Result<bool> {
    // Bytes of ones are not a number of any float type.
    let spoilt =
        changed(vectors, name, |view| (name.into(), view.shape().to_vec(), vec![0xff; view.data().len()]))?;
    Ok(load(&spoilt, purpose).is_ok())
}

#[test]
fn of_every_codec_in_one_file_some_weights_are_read_for_one_purpose_alone() -> Result<()> {
    for subject in subjects()? {
        let vectors = Vectors::open(&subject.name)?;
        let bytes = vectors.checkpoint()?;
        let mut is_found = [false; 2];
        for (name, view) in SafeTensors::deserialize(&bytes)?.iter() {
            if is_found == [true; 2] || view.data().is_empty() {
                continue;
            }
            match [Purpose::Encoding, Purpose::Decoding].map(|purpose| ignores(&vectors, name, purpose)) {
                [Ok(true), Ok(false)] => is_found[1] = true,
                [Ok(false), Ok(true)] => is_found[0] = true,
                [Err(error), _] | [_, Err(error)] => return Err(error),
                _ => {}
            }
        }
        // Models of several files have no weights beside their vectors.
        let is_in_folder = SafeTensors::deserialize(&bytes)?.is_empty();
        assert!(is_in_folder || is_found == [true; 2], "{}: {is_found:?}", subject.name);
    }
    Ok(())
}

#[test]
fn weights_that_nobody_wants_are_not_read_but_have_to_be_there() -> Result<()> {
    let vectors = &Vectors::open("encodec_causal")?;
    let name = "decoder.layers.0.conv.parametrizations.weight.original1";
    assert!(ignores(vectors, name, Purpose::Encoding)?);
    assert!(!ignores(vectors, name, Purpose::Decoding)? && !ignores(vectors, name, Purpose::Both)?);

    let misnamed =
        changed(vectors, name, |view| ("decoder.extra".into(), view.shape().to_vec(), view.data().to_vec()))?;
    let reshaped = changed(vectors, name, |view| {
        let mut shape = view.shape().to_vec();
        shape.push(1);
        (name.into(), shape, view.data().to_vec())
    })?;
    for purpose in [Purpose::Both, Purpose::Encoding, Purpose::Decoding] {
        let error = load(&misnamed, purpose).err().ok_or("a tensor is missing")?.to_string();
        assert!(error.contains("decoder.layers.0") && error.contains("decoder.extra"), "{error}");
        assert!(load(&reshaped, purpose).is_err());
    }
    Ok(())
}
