//! Judges what a model makes of held-out prompts: loudness, entropy of the codes, and whether the voice stays.
//!
//!     cargo run --release -p codec-lm --example continuations -- MANIFEST.tsv [LM] [CODEC] [TEMPERATURE] [TOP_K]
//!
//! The manifest lists clips (`file`, `kind`, `speaker`); its first twenty of speech that are long enough give
//! a prompt of three seconds each, or a little less, which is carried on for five. A continuation stays with
//! its speaker as often as its spectrum, or its pitch, is nearer to its own prompt than to that of another
//! speaker; chance is one half.

use candle_core::Device;
use codec_core::{AudioBuffer, Codes};
use codec_lm::LanguageModel;
use codec_lm::generate::{Options, carry_on};
use codec_lm::sampling::{Sampler, Sampling};
use codec_train::config::SourceConfig;
use codec_train::data::{clips, decode};
use realfft::RealFftPlanner;
use std::error::Error;

const N_PROMPTS: usize = 20;
const PROMPT_SECONDS: f64 = 3.0;
/// Shorter clips are left out.
const MIN_SECONDS: f64 = 2.8;
const SECONDS: f64 = 5.0;
/// Samples of a window; at 16 kHz 32 ms.
const WINDOW: usize = 512;
/// Bands of a mean spectrum.
const N_BANDS: usize = 32;

struct Clip {
    speaker: String,
    prompt: AudioBuffer,
    continuation: AudioBuffer,
    codes: Codes,
    /// Of the whole clip.
    real: Codes,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let manifest = arguments.first().ok_or("name a manifest")?;
    let model: Box<dyn LanguageModel> = match arguments.get(1) {
        Some(path) => codec_lm::load(path.as_ref(), None, &Device::Cpu)?,
        None => Box::new(codec_lm::embedded::load(&Device::Cpu)?.ok_or("this build has no model inside")?),
    };
    let codec = arguments.get(2).map_or(codec_models::DEFAULT, String::as_str);
    let codec = codec_models::load(codec, &Device::Cpu)?.codec;
    let mut sampling = Sampling::default();
    if let Some(text) = arguments.get(3) {
        sampling.temperature = text.parse()?;
    }
    if let Some(text) = arguments.get(4) {
        sampling.top_k = text.parse()?;
    }
    let options = || -> Result<Options, codec_lm::Error> {
        Ok(Options { sampler: Sampler::new(vec![sampling], 1)?, ..Options::new(1) })
    };
    let (spec, hop) = (codec.info().audio, codec.info().hop_length as usize);
    let n_codebooks = model.arrangement().layout().n_codebooks();
    let frames = |seconds: f64| (seconds * f64::from(spec.sample_rate) / hop as f64).round() as usize;

    let only = [("kind".to_owned(), "speech".to_owned())].into_iter().collect();
    let source = SourceConfig { path: manifest.into(), kind: None, only, weight: 1.0 };
    let mut found = Vec::new();
    for clip in clips(&source)? {
        if found.len() == N_PROMPTS {
            break;
        }
        let samples = decode(&clip.path, spec, Some(PROMPT_SECONDS + SECONDS))?;
        let audio = AudioBuffer::from_interleaved(spec, &samples)?;
        let codes = codec.encode(&audio, n_codebooks)?;
        if audio.seconds() < MIN_SECONDS {
            continue;
        }
        // Whole frames: the last one of a clip may be half empty.
        let n_prompt = frames(PROMPT_SECONDS).min(audio.n_samples() / hop);
        let prompt = codes.slice(0..n_prompt)?;
        let made = carry_on(model.as_ref(), &prompt, frames(SECONDS), options()?)?;
        let again = carry_on(model.as_ref(), &prompt, frames(SECONDS), options()?)?;
        assert_eq!(made, again, "not repeatable");
        let mut whole = prompt.clone();
        whole.append(&made)?;
        let decoded = codec.decode(&whole)?;
        let n_prompt = n_prompt * hop;
        found.push(Clip {
            speaker: clip.columns.get("speaker").cloned().unwrap_or_default(),
            prompt: audio.slice(0..n_prompt),
            continuation: decoded.slice(n_prompt..usize::MAX),
            codes: made,
            real: codes,
        });
    }
    println!(
        "{} prompts of {PROMPT_SECONDS} s, {SECONDS} s each, made twice with the same codes",
        found.len()
    );

    let finite = found.iter().all(|clip| clip.continuation.channels().flatten().all(|x| x.is_finite()));
    let changes: Vec<f64> =
        found.iter().map(|clip| level(&clip.continuation) - level(&clip.prompt)).collect();
    let within = changes.iter().filter(|change| change.abs() <= 6.0).count();
    let (low, high) = changes.iter().fold((0.0_f64, 0.0_f64), |(a, b), x| (a.min(*x), b.max(*x)));
    println!("samples all finite: {finite}");
    println!("level against the prompt: {low:+.1} to {high:+.1} dB, {within} of {} within 6 dB", found.len());

    // Entropies of as many codes of either kind: a count of few codes finds less than there is.
    let total = |of: fn(&Clip) -> &Codes| found.iter().map(|clip| of(clip).n_frames()).sum::<usize>();
    let n = total(|clip| &clip.real).min(total(|clip| &clip.codes));
    for codebook_idx in 0..n_codebooks {
        let of = |codes: fn(&Clip) -> &Codes| {
            // Evenly from all clips.
            let share = n.div_ceil(found.len().max(1));
            let row = |clip| codes(clip).row(codebook_idx).unwrap_or_default().iter().take(share);
            entropy(&found.iter().flat_map(row).copied().collect::<Vec<u32>>())
        };
        let (made, real) = (of(|clip| &clip.codes), of(|clip| &clip.real));
        let change = 100.0 * (made / real - 1.0);
        println!(
            "codebook {}: entropy {made:.2} bits, real speech {real:.2} ({change:+.1} %)",
            codebook_idx + 1
        );
    }

    type Distance = dyn Fn(&AudioBuffer, &AudioBuffer) -> Option<f64>;
    let spectral: &Distance = &|a, b| {
        let pairs = spectrum(a).into_iter().zip(spectrum(b));
        Some(pairs.map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt())
    };
    let pitched: &Distance = &|a, b| Some((pitch(a)?.log2() - pitch(b)?.log2()).abs());
    for (name, distance) in [("spectrum", spectral), ("pitch", pitched)] {
        let (mut wins, mut n) = (0.0, 0.0);
        for clip in &found {
            for other in found.iter().filter(|other| other.speaker != clip.speaker) {
                let own = distance(&clip.continuation, &clip.prompt);
                let Some((own, other)) = own.zip(distance(&clip.continuation, &other.prompt)) else {
                    continue;
                };
                n += 1.0;
                wins += if own < other {
                    1.0
                } else if own == other {
                    0.5
                } else {
                    0.0
                };
            }
        }
        println!("{name}: nearer to its own prompt in {:.1} % of {n} pairs", 100.0 * wins / f64::max(n, 1.0));
    }
    Ok(())
}

/// Of all samples, dB of full scale.
fn level(audio: &AudioBuffer) -> f64 {
    let power: f64 = audio.channels().flatten().map(|&x| f64::from(x) * f64::from(x)).sum();
    10.0 * (power / audio.n_samples().max(1) as f64 + 1e-12).log10()
}

fn entropy(codes: &[u32]) -> f64 {
    let mut counts = std::collections::HashMap::<u32, f64>::new();
    codes.iter().for_each(|&code| *counts.entry(code).or_default() += 1.0);
    let n = codes.len() as f64;
    counts.values().map(|count| -count / n * (count / n).log2()).sum()
}

/// Mean logarithm of the power in bands of equal width on a mel-like scale, over the loud half of the windows.
fn spectrum(audio: &AudioBuffer) -> Vec<f64> {
    let xs = audio.channel(0).unwrap_or_default();
    let plan = RealFftPlanner::<f32>::new().plan_fft_forward(WINDOW);
    let (mut frame, mut bins) = (plan.make_input_vec(), plan.make_output_vec());
    let mut windows: Vec<(f64, Vec<f64>)> = Vec::new();
    for window in xs.windows(WINDOW).step_by(WINDOW / 2) {
        for (i, (out, x)) in frame.iter_mut().zip(window).enumerate() {
            *out = x * (0.5 - 0.5 * (std::f32::consts::TAU * i as f32 / WINDOW as f32).cos());
        }
        // The lengths are those of the plan.
        let _ = plan.process(&mut frame, &mut bins);
        let power: Vec<f64> = bins.iter().map(|x| f64::from(x.norm_sqr())).collect();
        let edge = |i: usize| {
            ((WINDOW / 2) as f64 * ((i as f64 / N_BANDS as f64 * 4.0).exp() - 1.0) / 53.6) as usize
        };
        let band = |i: usize| -> f64 {
            let range = edge(i)..edge(i + 1).max(edge(i) + 1);
            (power[range.clone()].iter().sum::<f64>() / range.len() as f64 + 1e-9).log10()
        };
        windows.push((power.iter().sum(), (0..N_BANDS).map(band).collect()));
    }
    windows.sort_by(|a, b| b.0.total_cmp(&a.0));
    windows.truncate(windows.len().div_ceil(2));
    let n = windows.len().max(1) as f64;
    let mut mean = vec![0.0; N_BANDS];
    windows.iter().for_each(|(_, bands)| mean.iter_mut().zip(bands).for_each(|(sum, x)| *sum += x / n));
    // The shape alone: loudness is judged by itself.
    let middle = mean.iter().sum::<f64>() / N_BANDS as f64;
    mean.iter().map(|x| x - middle).collect()
}

/// The median pitch of the voiced windows in Hz, by autocorrelation; `None` where there are hardly any.
fn pitch(audio: &AudioBuffer) -> Option<f64> {
    let xs = audio.channel(0)?;
    let rate = f64::from(audio.spec().sample_rate);
    let (shortest, longest) = ((rate / 400.0) as usize, (rate / 70.0) as usize);
    let mut pitches = Vec::new();
    for window in xs.windows(3 * longest).step_by(longest) {
        let power: f64 = window[..2 * longest].iter().map(|&x| f64::from(x * x)).sum();
        if power / (2 * longest) as f64 <= 1e-4 {
            continue;
        }
        let at = |lag: usize| -> f64 {
            let pairs = window[..2 * longest].iter().zip(&window[lag..]);
            let own: f64 = window[lag..lag + 2 * longest].iter().map(|&x| f64::from(x * x)).sum();
            pairs.map(|(&x, &y)| f64::from(x * y)).sum::<f64>() / (power * own).sqrt().max(1e-12)
        };
        let best = (shortest..=longest).map(|lag| (at(lag), lag)).max_by(|a, b| a.0.total_cmp(&b.0))?;
        if best.0 > 0.5 {
            pitches.push(rate / best.1 as f64);
        }
    }
    pitches.sort_by(f64::total_cmp);
    (pitches.len() >= 5).then(|| pitches[pitches.len() / 2])
}
