//! Language models of others against what their own packages make of the same weights and codes.

use candle_core::Device;
use codec_core::Codes;
use codec_lm::families::{encodec, musicgen};
use codec_lm::generate::{Options, carry_on};
use codec_lm::predict::Opening;
use codec_lm::sampling::{Sampler, Sampling};
use codec_lm::{LanguageModel, Model};
use codec_nn::weights::Checkpoint;
use codec_tests::Result;
use codec_tests::vectors::Vectors;
use std::sync::Arc;

/// Of a natural logarithm of a probability. The reference itself differs by 3e-6 between reading at once and
/// frame by frame; a start without the zero vector is a thousand times as much.
const LOG_TOLERANCE: f64 = 1e-5;
/// Of a logit, whose size is about 30 here: the reference sums in another order.
const LOGIT_TOLERANCE: f64 = 2e-4;

fn rows(vectors: &Vectors, name: &str) -> Result<Vec<Vec<u32>>> {
    let code = |row: Vec<f64>| row.into_iter().map(|code| code as u32).collect();
    Ok(vectors.rows(name)?.into_iter().map(code).collect())
}

fn open(name: &str) -> Result<(Vectors, Checkpoint)> {
    let vectors = Vectors::open(name)?;
    let checkpoint = vectors.open_checkpoint()?;
    Ok((vectors, checkpoint))
}

/// Prints and returns the largest difference.
fn worst(what: &str, got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "{what}");
    let differences = got.iter().zip(want).map(|(x, y)| (x - y).abs());
    let (at, worst) = differences.enumerate().fold((0, 0.0), |a, b| if b.1 > a.1 { b } else { a });
    println!("{what}: worst at {at}: {} against {}, {worst:.1e} apart", got[at], want[at]);
    worst
}

#[test]
fn encodec_predicts_what_the_package_does() -> Result<()> {
    let (vectors, checkpoint) = open("lm_encodec")?;
    let model = encodec::load(&checkpoint, None)?;
    let arrangement = model.arrangement();
    let codes = Codes::new(Arc::clone(arrangement.layout()), rows(&vectors, "codes")?)?;
    assert_eq!(codes.n_frames(), 500);
    let tokens = arrangement.encode(&codes)?;
    // At once, and frame by frame; the same bits.
    let whole = model.costs(&tokens, None)?;
    let mut reader = model.begin(None)?;
    let mut streamed = Vec::new();
    for step in tokens.steps() {
        streamed.append(&mut reader.costs(step)?);
    }
    assert_eq!(whole, streamed);
    // By codebook, as the reference has them.
    let n_streams = arrangement.n_streams();
    let by_codebook = |k: usize| whole.iter().skip(k).step_by(n_streams).map(|cost| -cost);
    let ours: Vec<f64> = (0..n_streams).flat_map(by_codebook).collect();
    for name in ["streamed", "whole"] {
        assert!(worst(name, &ours, &vectors.rows(name)?.concat()) <= LOG_TOLERANCE, "{name}");
    }
    // Every probability of the last frame.
    let mut reader = model.begin(None)?;
    reader.read(&tokens.values()[..tokens.values().len() - n_streams])?;
    let mut last = Vec::new();
    for stream_idx in 0..n_streams {
        let logits = reader.logits(&vec![0; stream_idx])?;
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        last.extend(logits.iter().map(|&x| f64::from(x) - total.ln()));
    }
    assert!(worst("last frame", &last, &vectors.rows("last")?.concat()) <= LOG_TOLERANCE);
    // Sequences that are read together are each what they are alone.
    let tokens = arrangement.encode(&codes.slice(0..30)?)?;
    let (steps, step) = tokens.values().split_at(29 * n_streams);
    let openings = [Opening { class: None, steps }, Opening::default()];
    let mut together = model.begin_together(&openings)?;
    let mut both = Vec::new();
    for opening in openings {
        let mut alone = model.begin_together(&[opening])?;
        alone.read(step)?;
        both.extend(alone.logits(&[0])?);
    }
    together.read(step)?;
    assert_eq!(together.logits(&[0])?, both);
    // Fewer codebooks are another sequence of the same model.
    let fewer = encodec::load(&checkpoint, Some(2))?;
    assert_eq!(fewer.arrangement().n_streams(), 2);
    assert!(encodec::load(&checkpoint, Some(5)).is_err());
    Ok(())
}

#[test]
fn musicgen_generates_what_transformers_does() -> Result<()> {
    let (vectors, checkpoint) = open("lm_musicgen")?;
    let model: Model = musicgen::load(&checkpoint, &Device::Cpu)?;
    let layout = Arc::clone(model.arrangement().layout());
    let prompt = Codes::new(Arc::clone(&layout), rows(&vectors, "codes")?)?;
    // Logits behind the prompt, its delay pattern and the start step included.
    let tokens = model.arrangement().encode(&prompt)?;
    let steps: Vec<u32> = model.arrangement().start().into_iter().chain(tokens.values().to_vec()).collect();
    let hidden = model.step(&mut model.init(), codec_lm::model::Steps::one(&steps))?;
    let logits = model.logits(&hidden)?.flatten_all()?.to_vec1::<f32>()?;
    let want = vectors.rows("logits")?.concat();
    let size = want.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    println!("logits up to {size:.1}");
    let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
    assert!(worst("logits", &logits, &want) <= LOGIT_TOLERANCE);
    // The likeliest codes, from nothing and from the prompt.
    let empty = Codes::empty(layout);
    for (name, prompt) in [("greedy", &empty), ("continued", &prompt)] {
        let want = rows(&vectors, name)?;
        let n_frames = want[0].len();
        let sampler = Sampler::new(vec![Sampling::GREEDY], 0)?;
        let options = Options { sampler, class: None, guidance: 1.0, end: Some(n_frames) };
        let mut codes = prompt.clone();
        codes.append(&carry_on(&model, prompt, n_frames, options)?)?;
        let ours: Vec<Vec<u32>> = codes.into_rows();
        assert_eq!(ours, want, "{name}");
    }
    Ok(())
}
