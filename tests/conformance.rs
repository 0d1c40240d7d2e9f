//! Every family against what its reference implementation makes of the same weights and audio.

use codec_tests::compare::{self, Agreement};
use codec_tests::vectors::{self, Vectors};
use codec_tests::{Result, compare::codes};
use std::collections::BTreeSet;

/// How far a family may be from its reference.
#[derive(Clone, Copy)]
struct Limits {
    /// A residual may have another code where the reference's own choice hangs on less than this share
    /// of its latent.
    margin: f32,
    /// Of full scale, for models whose output peaks around it. A wrong padding or a sample's shift is a
    /// thousand times as much.
    audio: f32,
    /// Whether coding with fewer codebooks is coding with all and dropping the rest.
    nests: bool,
}

/// Both networks round at some 1e-7 per operation, and their latents are 1e-6 apart; measured
/// differences of audio are a tenth of the limit.
const FLOATS: Limits = Limits { margin: 1e-5, audio: 2e-5, nests: true };
/// Eight-bit arithmetic leaves nothing to rounding, and in front of it both sides add in the same order.
const INTEGERS: Limits = Limits { margin: 0.0, audio: 2e-5, nests: true };
/// A search along several paths ends where the codebooks do.
const SEARCHED: Limits = Limits { nests: false, ..FLOATS };
/// The reference sums a segment's squares in f32, in an order of its own.
const SCALE_TOLERANCE: f32 = 1e-6;

/// One test for each family, over all its vectors.
macro_rules! conformance {
    ($($family:ident: $limits:expr;)+) => {
        $(#[test]
        fn $family() -> Result<()> {
            conforms(stringify!($family), $limits)
        })+

        #[test]
        fn every_family_is_compared() {
            let compared = BTreeSet::from([$(stringify!($family)),+]);
            let registered = codec_nn::families::FAMILIES.iter().map(|family| family.name).collect();
            assert_eq!(compared, registered);
        }
    };
}

conformance! {
    bigcodec: FLOATS;
    dac: FLOATS;
    encodec: FLOATS;
    lapped: SEARCHED;
    mimi: FLOATS;
    nanocodec: FLOATS;
    snac: FLOATS;
    soundstream: INTEGERS;
    speechtokenizer: FLOATS;
    wavtokenizer: FLOATS;
    xcodec2: FLOATS;
}

/// Compares all vectors `FAMILY_*` whose model is there.
fn conforms(family: &str, limits: Limits) -> Result<()> {
    let names = vectors::names(family)?;
    assert!(!names.is_empty(), "{family} has no vectors");
    for name in names {
        let Some(vectors) = Vectors::open_if_there(&name)? else {
            continue;
        };
        let codec = vectors.codec()?;
        assert_eq!(codec.info().family, family, "{name}");
        let n_codebooks = codec.info().layout.n_codebooks();
        let (mut agreement, mut worst, mut n_decoded) = (Agreement::NONE, 0.0_f32, 0);
        for case in vectors.cases(codec.as_ref())? {
            let n_samples = case.audio.n_samples();
            let context = |e| format!("{name}, {n_samples} samples: {e}");
            if !codec.encodes() {
                for (n_codebooks, theirs) in &case.decoded {
                    let decoded = codec.decode(&case.codes(codec.as_ref(), *n_codebooks)?)?;
                    worst = worst.max(compare::audio(&decoded, theirs, limits.audio).map_err(context)?);
                }
                n_decoded += case.decoded.len();
                continue;
            }
            let ours = codec.encode(&case.audio, n_codebooks)?;
            let compared = codes(&ours, &case.rows, &case.margins, limits.margin).map_err(context)?;
            agreement = agreement.and(compared);
            assert_eq!(ours.scales().len(), case.scales.len(), "{name}, {n_samples} samples");
            for (our, their) in ours.scales().iter().zip(&case.scales) {
                assert!((our / their - 1.0).abs() < SCALE_TOLERANCE, "{name}: scale {our} against {their}");
            }
            for (n_codebooks, theirs) in &case.decoded {
                if limits.nests {
                    let fewer = codec.encode(&case.audio, *n_codebooks)?;
                    compare::same_codes(&fewer, &ours.truncated(*n_codebooks)?).map_err(context)?;
                }
                let decoded = codec.decode(&case.codes(codec.as_ref(), *n_codebooks)?)?;
                let difference = compare::audio(&decoded, theirs, limits.audio).map_err(context)?;
                worst = worst.max(difference);
            }
        }
        if !codec.encodes() {
            println!("{name}: {n_decoded} clips decoded within {worst:.1e} of full scale");
            assert!(n_decoded > 3, "{name}: only {n_decoded} clips");
            continue;
        }
        println!("{name}: {agreement}; audio within {worst:.1e} of full scale");
        assert!(agreement.n_compared > 150, "{name}: only {} codes", agreement.n_compared);
    }
    Ok(())
}

/// The vectors of Mimi are one model under the names that Hugging Face, Kyutai and MLX give its tensors.
#[test]
fn the_dialects_of_mimi_are_the_same_model() -> Result<()> {
    let names = vectors::names("mimi")?;
    assert_eq!(names, ["mimi_hf", "mimi_kyutai", "mimi_mlx"]);
    let codecs = names.iter().map(|name| Vectors::open(name)?.codec()).collect::<Result<Vec<_>>>()?;
    let clip = Vectors::open("mimi_hf")?.cases(codecs[0].as_ref())?.pop().ok_or("no cases")?.audio;
    let n_codebooks = codecs[0].info().layout.n_codebooks();
    let codes = codecs[0].encode(&clip, n_codebooks)?;
    let audio = codecs[0].decode(&codes)?;
    for (codec, name) in codecs.iter().zip(names) {
        assert_eq!(codec.info(), codecs[0].info(), "{name}");
        compare::same_codes(&codec.encode(&clip, n_codebooks)?, &codes)
            .map_err(|e| format!("{name}: {e}"))?;
        compare::same_audio(&codec.decode(&codes)?, &audio).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

/// The vectors of X-codec2 are one model under the names of Hugging Face and of the published checkpoints.
#[test]
fn the_dialects_of_xcodec2_are_the_same_model() -> Result<()> {
    let names = vectors::names("xcodec2")?;
    assert_eq!(names, ["xcodec2_hf", "xcodec2_original"]);
    let codecs = names.iter().map(|name| Vectors::open(name)?.codec()).collect::<Result<Vec<_>>>()?;
    assert_eq!(codecs[0].info(), codecs[1].info());
    let case = Vectors::open("xcodec2_hf")?.cases(codecs[0].as_ref())?.pop().ok_or("no cases")?;
    let codes = case.codes(codecs[0].as_ref(), 1)?;
    // The window that one of them holds is PyTorch's, whose cosines are rounded in another way.
    compare::audio(&codecs[0].decode(&codes)?, &codecs[1].decode(&codes)?, 1e-6)?;
    Ok(())
}
