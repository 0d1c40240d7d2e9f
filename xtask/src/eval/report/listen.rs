//! What can be heard and seen in the report: excerpts of clips and of what the systems made of them.

use super::picture::Spectrogram;
use crate::eval::clips::Clip;
use crate::eval::codecs::{System, opus};
use crate::eval::judge;
use crate::eval::results::{Group, Measurement};
use crate::eval::run::{Plan, Store};
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use codec_core::AudioBuffer;
use codec_io::{WavFormat, WavWriter};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Longest excerpt.
const MAX_SECONDS: f64 = 8.0;
const MIN_SECONDS: f64 = 2.0;
/// Opus for players, in kbit/s and channel: below the first it would colour what is judged, above the second
/// nothing is gained.
const MIN_KBPS: f64 = 32.0;
const MAX_KBPS: f64 = 96.0;

/// Sounds and pictures of a report, as data URIs.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// By clip.
    pub(super) clips: BTreeMap<String, HeardClip>,
    /// How the sounds are packed, in words.
    pub(super) packing: String,
}

#[derive(Debug)]
pub(super) struct HeardClip {
    pub(super) original: Media,
    /// By system; none for those that lose nothing.
    pub(super) systems: BTreeMap<String, Media>,
    /// Where the excerpt lies, in seconds.
    pub(super) start: f64,
    pub(super) seconds: f64,
}

#[derive(Debug)]
pub(super) struct Media {
    pub(super) sound: String,
    pub(super) picture: String,
}

/// An excerpt before it is packed.
struct Excerpt {
    /// Empty for the original.
    system: String,
    audio: AudioBuffer,
    top: f64,
}

/// How sounds are packed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Packing {
    Wav,
    /// Kbit/s and channel.
    Opus(f64),
}

impl Heard {
    /// Sounds and pictures that take at most `budget` bytes of the page.
    ///
    /// # Errors
    /// When a picture or sound cannot be made. What was not decoded is left out.
    pub(super) fn new(
        plan: &Plan<'_>,
        store: &Store,
        measured: &[Measurement],
        budget: usize,
    ) -> Result<Self> {
        let clips: Vec<&Clip> = plan.heard.iter().map(|clip_idx| &plan.clips[*clip_idx]).collect();
        let excerpts: Result<Vec<Option<Cut>>> =
            clips.par_iter().map(|clip| cut(clip, plan.systems, store, measured)).collect();
        let mut excerpts: Vec<Cut> = excerpts?.into_iter().flatten().collect();
        let (packing, longest) = fit(&mut excerpts, budget)?;
        for excerpt in excerpts.iter_mut().flat_map(|cut| &mut cut.excerpts) {
            let rate = f64::from(excerpt.audio.spec().sample_rate);
            excerpt.audio.truncate((longest * rate) as usize);
        }
        let heard: Result<Vec<(String, HeardClip)>> =
            excerpts.par_iter().map(|cut| Ok((cut.clip.clone(), cut.pack(packing)?))).collect();
        let packing = match packing {
            Packing::Wav => "16-bit WAV, as decoded".to_owned(),
            Packing::Opus(kbps) => {
                format!("Opus at {kbps:.0} kbit/s per channel, so that the page stays small")
            }
        };
        Ok(Self { clips: heard?.into_iter().collect(), packing })
    }
}

/// Leaves out clips until the others fit, and says how they do and how long they can be.
fn fit(cuts: &mut Vec<Cut>, budget: usize) -> Result<(Packing, f64)> {
    // Pictures of one size have nearly one number of bytes, however long they are.
    let bytes = |cut: &Cut| -> Result<usize> {
        let pictures: Vec<String> = cut.excerpts.par_iter().map(picture).collect::<Result<_>>()?;
        Ok(pictures.iter().map(String::len).sum())
    };
    let mut bytes: Vec<usize> = cuts.par_iter().map(bytes).collect::<Result<_>>()?;
    loop {
        let taken: usize = bytes.iter().sum();
        let channel_seconds = |longest: f64| -> f64 {
            let all = cuts.iter().flat_map(|cut| &cut.excerpts);
            all.map(|e| e.audio.seconds().min(longest) * f64::from(e.audio.spec().channels)).sum()
        };
        let (packing, longest) = choose(budget.saturating_sub(taken), &channel_seconds, wav_bytes(cuts));
        let is_coarse = matches!(packing, Packing::Opus(kbps) if kbps < MIN_KBPS);
        if cuts.len() <= 1 || !(is_coarse || taken > budget) {
            return Ok((packing, longest));
        }
        // Every fourth, so that all kinds keep some.
        let is_kept = |idx: usize, n: usize| idx % 4 != 3 && (n > 3 || idx + 1 < n);
        let n = cuts.len();
        let (mut cut_idx, mut byte_idx) = (0.., 0..);
        cuts.retain(|_| cut_idx.next().is_some_and(|idx| is_kept(idx, n)));
        bytes.retain(|_| byte_idx.next().is_some_and(|idx| is_kept(idx, n)));
    }
}

/// Excerpts of one clip, all of the same time.
struct Cut {
    clip: String,
    /// The original first.
    excerpts: Vec<Excerpt>,
    /// In seconds.
    start: f64,
}

impl Cut {
    fn pack(&self, packing: Packing) -> Result<HeardClip> {
        let media = |excerpt: &Excerpt| -> Result<Media> {
            let sound = sound(excerpt, packing).with_context(|| self.clip.clone())?;
            Ok(Media { sound, picture: picture(excerpt)? })
        };
        let (original, others) = self.excerpts.split_first().context("no excerpt of the original")?;
        let others = others.iter().map(|excerpt| Ok((excerpt.system.clone(), media(excerpt)?)));
        let systems = others.collect::<Result<_>>()?;
        let seconds = original.audio.seconds();
        Ok(HeardClip { original: media(original)?, systems, start: self.start, seconds })
    }
}

/// The original's excerpt and those of the systems that have one; `None` when the clip cannot be read.
fn cut(clip: &Clip, systems: &[System], store: &Store, measured: &[Measurement]) -> Result<Option<Cut>> {
    let Ok(original) = clip.read() else { return Ok(None) };
    let rate = f64::from(original.spec().sample_rate);
    let length = ((MAX_SECONDS * rate) as usize).min(original.n_samples());
    let start = loudest_window(&original, length);
    let window = |audio: &AudioBuffer| audio.slice(start..start + length);
    let own = window(&original);
    let top = Spectrogram::new(&own)?.loudest();
    let mut excerpts = vec![Excerpt { system: String::new(), audio: own, top }];
    for system in systems {
        let score = measured.iter().find(|m| m.clip == clip.name && m.system == system.info.id);
        let is_exact = score.and_then(|m| m.scores.get("snr")).is_some_and(|snr| *snr >= 99.0);
        if system.info.group == Group::Lossless && is_exact {
            continue;
        }
        // What failed has nothing to hear.
        let Ok(decoded) = store.decoded(clip, system) else { continue };
        let (_, decoded, _) = judge::aligned(&original, &decoded)?;
        excerpts.push(Excerpt { system: system.info.id.clone(), audio: window(&decoded), top });
    }
    Ok(Some(Cut { clip: clip.name.clone(), excerpts, start: start as f64 / rate }))
}

/// Where the most energy lies, in steps of half a second.
fn loudest_window(audio: &AudioBuffer, length: usize) -> usize {
    let step = (audio.spec().sample_rate as usize / 2).max(1);
    let energy = |start: &usize| {
        let window = audio.slice(*start..start + length);
        window.channels().flatten().map(|x| f64::from(*x).powi(2)).sum::<f64>()
    };
    let starts = (0..=audio.n_samples() - length).step_by(step).map(|start| (start, energy(&start)));
    // The first of equals.
    starts.fold((0, -1.0), |best, next| if next.1 > best.1 { next } else { best }).0
}

fn wav_bytes(excerpts: &[Cut]) -> usize {
    let all = excerpts.iter().flat_map(|cut| &cut.excerpts);
    all.map(|e| 100 + 2 * e.audio.n_samples() * usize::from(e.audio.spec().channels)).sum()
}

/// WAV when it fits, else Opus at the rate that fits; shorter excerpts only when that is too low.
fn choose(budget: usize, channel_seconds: &dyn Fn(f64) -> f64, wav_bytes: usize) -> (Packing, f64) {
    // Base64 takes four bytes for three.
    let bytes = budget as f64 * 0.75;
    if wav_bytes as f64 <= bytes {
        return (Packing::Wav, MAX_SECONDS);
    }
    // Headers and rates that are not met to the bit.
    let bits = bytes * 8.0 * 0.93;
    let mut seconds = MAX_SECONDS;
    while seconds > MIN_SECONDS && bits / channel_seconds(seconds).max(1e-9) < MIN_KBPS * 1000.0 {
        seconds -= 0.5;
    }
    let kbps = bits / channel_seconds(seconds).max(1e-9) / 1000.0;
    (Packing::Opus(kbps.clamp(8.0, MAX_KBPS)), seconds)
}

fn picture(excerpt: &Excerpt) -> Result<String> {
    let png = Spectrogram::new(&excerpt.audio)?.to_png(excerpt.top)?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(png)))
}

fn sound(excerpt: &Excerpt, packing: Packing) -> Result<String> {
    let audio = &excerpt.audio;
    let spec = audio.spec();
    match packing {
        Packing::Opus(kbps) => {
            let channels = f64::from(spec.channels.min(2));
            let file =
                opus::encode(audio, (1000.0 * kbps * channels) as i32).context("packing for the player")?;
            Ok(format!("data:audio/ogg;base64,{}", STANDARD.encode(file)))
        }
        Packing::Wav => {
            let folder = tempfile::tempdir().context("no temporary folder")?;
            let path = folder.path().join("excerpt.wav");
            let mut writer = WavWriter::create(&path, spec, WavFormat::Pcm16)?;
            writer.write(audio)?;
            writer.finish()?;
            Ok(format!("data:audio/wav;base64,{}", STANDARD.encode(std::fs::read(path)?)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packing_fits_the_budget() {
        let seconds = |n: f64| move |longest: f64| n * longest;
        assert_eq!(choose(1_000_000, &seconds(1.0), 700_000), (Packing::Wav, MAX_SECONDS));
        let (packing, longest) = choose(1_000_000, &seconds(10.0), 10_000_000);
        assert!(matches!(packing, Packing::Opus(kbps) if (60.0..80.0).contains(&kbps)), "{packing:?}");
        assert_eq!(longest, MAX_SECONDS);
        // Shorter before it is too coarse.
        let (packing, longest) = choose(1_000_000, &seconds(50.0), 10_000_000);
        assert!(matches!(packing, Packing::Opus(kbps) if kbps >= MIN_KBPS), "{packing:?}");
        assert!((MIN_SECONDS..MAX_SECONDS).contains(&longest));
    }

    #[test]
    fn clips_are_left_out_before_the_page_grows() {
        let cut = |idx: usize| {
            let samples = (0..32_000).map(|t| ((t * (idx + 3)) as f32 * 0.05).sin()).collect();
            let audio = AudioBuffer::mono(16_000, samples).unwrap();
            let excerpt = || Excerpt { system: String::new(), audio: audio.clone(), top: 0.0 };
            Cut { clip: idx.to_string(), excerpts: vec![excerpt(), excerpt()], start: 0.0 }
        };
        let cuts = || (0..9).map(cut).collect::<Vec<_>>();
        let mut all = cuts();
        assert_eq!(fit(&mut all, 10_000_000).unwrap().0, Packing::Wav);
        assert_eq!(all.len(), 9);
        let mut some = cuts();
        let (packing, _) = fit(&mut some, 100_000).unwrap();
        assert!(matches!(packing, Packing::Opus(kbps) if kbps >= MIN_KBPS), "{packing:?}");
        assert!((2..9).contains(&some.len()), "{}", some.len());
        let mut few = cuts();
        fit(&mut few, 10).unwrap();
        assert_eq!(few.len(), 1);
    }

    #[test]
    fn the_excerpt_is_where_the_sound_is() {
        let mut samples = vec![0.0; 20_000];
        samples[12_000..14_000].fill(0.5);
        let audio = AudioBuffer::mono(1_000, samples).unwrap();
        let start = loudest_window(&audio, 8_000);
        assert!((6_000..=12_000).contains(&start), "{start}");
        assert_eq!(loudest_window(&audio, 20_000), 0);
    }
}
