//! The built-in clips. Sounds are computed; speech was made by espeak-ng (`speech/make_speech.sh`).

use anyhow::{Context, Result};
use codec_core::{AudioBuffer, AudioSpec};
use codec_io::AudioReader;
use std::f64::consts::TAU;
use std::io::Cursor;

const RATE: u32 = 24_000;
const SECONDS: f64 = 2.0;

const SPEECH: [(&str, &[u8]); 4] = [
    ("speech-1", include_bytes!("speech/speech-1.flac")),
    ("speech-2", include_bytes!("speech/speech-2.flac")),
    ("speech-3", include_bytes!("speech/speech-3.flac")),
    ("speech-4", include_bytes!("speech/speech-4.flac")),
];

/// Name, kind and audio of each.
pub(super) fn clips() -> Result<Vec<(&'static str, &'static str, AudioBuffer)>> {
    let mut clips = Vec::new();
    for (name, file) in SPEECH {
        let mut reader = AudioReader::from_seekable(Cursor::new(file)).context(name)?;
        clips.push((name, "speech", reader.read_to_end().context(name)?));
    }
    clips.push(("chords", "music", mono(chords)?));
    clips.push(("strings", "music", strings()?));
    clips.push(("chirp", "other", mono(chirp)?));
    clips.push(("noise", "other", noise()?));
    clips.push(("transients", "other", transients()?));
    Ok(clips)
}

/// A sound at 24 kHz, in 16-bit steps: what the last bit of a sine is, libraries differ on.
fn mono(sound: impl Fn(f64) -> f64) -> Result<AudioBuffer> {
    let n_samples = (SECONDS * f64::from(RATE)) as usize;
    let samples = (0..n_samples).map(|i| stepped(sound(i as f64 / f64::from(RATE)))).collect();
    Ok(AudioBuffer::mono(RATE, samples)?)
}

fn stepped(x: f64) -> f32 {
    ((x.clamp(-1.0, 1.0) * 32_767.0).round() / 32_768.0) as f32
}

/// Four chords of plucked notes with falling harmonics.
fn chords(t: f64) -> f64 {
    const ROOTS: [f64; 4] = [220.0, 174.61, 261.63, 196.0];
    let beat = (t / 0.5) as usize;
    let since = t - 0.5 * beat as f64;
    let root = ROOTS[beat % ROOTS.len()];
    let note = |pitch: f64, late: f64| {
        let t = since - late;
        if t < 0.0 {
            return 0.0;
        }
        let partial = |k: f64| (TAU * k * pitch * t).sin() * (-t * (3.0 + 2.0 * k)).exp() / k;
        (1..=8).map(f64::from).map(partial).sum::<f64>() * (t / 0.004).min(1.0)
    };
    0.3 * (note(root, 0.0) + note(root * 1.25, 0.03) + note(root * 1.5, 0.06))
}

/// Detuned saws, swelling, in stereo at 44.1 kHz.
fn strings() -> Result<AudioBuffer> {
    let spec = AudioSpec { sample_rate: 44_100, channels: 2 };
    let n_samples = (SECONDS * f64::from(spec.sample_rate)) as usize;
    let channel = |detune: f64| -> Vec<f32> {
        let voice = |pitch: f64, t: f64| {
            let vibrato = 0.3 * (TAU * 5.5 * t).sin();
            let partial = |k: f64| ((TAU * pitch * t + vibrato) * k).sin() / k;
            (1..=20).map(f64::from).map(partial).sum::<f64>()
        };
        let swell = |t: f64| (t / 0.5).min(1.0) * (1.0 - 0.5 * t / SECONDS);
        (0..n_samples)
            .map(|i| i as f64 / f64::from(spec.sample_rate))
            .map(|t| stepped(0.12 * swell(t) * (voice(196.0 * detune, t) + voice(293.66 / detune, t))))
            .collect()
    };
    Ok(AudioBuffer::from_planar(spec, vec![channel(1.003), channel(0.998)])?)
}

/// An exponential sweep from 60 Hz to 10 kHz.
fn chirp(t: f64) -> f64 {
    let (low, octaves_per_second) = (60.0, (10_000.0_f64 / 60.0).log2() / SECONDS);
    let growth = octaves_per_second * 2.0_f64.ln();
    let fade = (t / 0.05).min((SECONDS - t) / 0.05).clamp(0.0, 1.0);
    0.5 * fade * (TAU * low * ((growth * t).exp() - 1.0) / growth).sin()
}

/// Bursts of noise, each darker than the one before.
fn noise() -> Result<AudioBuffer> {
    let mut random = Random(1);
    let n_samples = (SECONDS * f64::from(RATE)) as usize;
    let mut low = 0.0;
    let samples = (0..n_samples).map(|i| {
        let t = i as f64 / f64::from(RATE);
        let burst = (t / 0.5) as i32;
        // A one-pole low-pass; its gain is made up for.
        let pole = 1.0 - 0.5_f64.powi(burst);
        low = pole * low + (1.0 - pole) * random.next();
        let gain = 0.25 / (1.0 - pole).sqrt();
        let envelope = ((t % 0.5) / 0.02).min((0.5 - t % 0.5) / 0.1).clamp(0.0, 1.0);
        stepped(gain * envelope * low)
    });
    Ok(AudioBuffer::mono(RATE, samples.collect())?)
}

/// Wooden clicks at uneven times.
fn transients() -> Result<AudioBuffer> {
    const STARTS: [f64; 9] = [0.1, 0.35, 0.45, 0.5, 0.8, 1.12, 1.2, 1.55, 1.8];
    let mut random = Random(2);
    let n_samples = (SECONDS * f64::from(RATE)) as usize;
    let samples = (0..n_samples).map(|i| {
        let t = i as f64 / f64::from(RATE);
        let grain = random.next();
        let click = |(idx, start): (usize, &f64)| {
            let since = t - start;
            let pitch = 900.0 + 350.0 * (idx % 4) as f64;
            let body = (TAU * pitch * since).sin() + 0.6 * (TAU * 2.7 * pitch * since).sin();
            if since < 0.0 { 0.0 } else { (body + 0.5 * grain) * (-since * 90.0).exp() }
        };
        stepped(0.45 * STARTS.iter().enumerate().map(click).sum::<f64>())
    });
    Ok(AudioBuffer::mono(RATE, samples.collect())?)
}

/// xorshift64* (Vigna 2016): the same noise everywhere.
struct Random(u64);

impl Random {
    /// Uniform in [-1, 1).
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        bits as f64 / (1_u64 << 52) as f64 - 1.0
    }
}
