//! Opus in process, through the pure-Rust encoder of `opus-pure`, in Ogg files.

use super::{Coded, Coder, System, classical, ogg_payload_bits};
use anyhow::{Context, Result, ensure};
use codec_core::{AudioBuffer, AudioSpec};
use codec_io::{AudioReader, Converter};
use opus_pure::{Application, MAX_PACKET_BYTES, OggOpusWriter, OpusEncoder, OpusHead};
use std::io::Cursor;
use std::path::Path;
use std::time::Instant;

/// Rates that the encoder takes, Hz.
const RATES: [u32; 5] = [8_000, 12_000, 16_000, 24_000, 48_000];
/// Granule positions count samples at this rate.
const GRANULE_RATE: u64 = 48_000;
/// 20 ms.
const FRAMES_PER_SECOND: usize = 50;

#[derive(Debug)]
struct Opus {
    bits_per_second: i32,
}

/// Opus at some bitrates, in kbit/s.
pub(super) fn systems(kbps: &[f64]) -> Result<Vec<System>> {
    let system = |&kbps: &f64| {
        ensure!((6.0..=510.0).contains(&kbps), "Opus goes from 6 to 510 kbit/s, not {kbps}");
        let coder = Box::new(Opus { bits_per_second: (kbps * 1000.0).round() as i32 });
        let identity = "opus-pure 0.2, constrained VBR, 20 ms, complexity 9, application audio";
        Ok(classical("opus", kbps, identity.to_owned(), false, coder))
    };
    kbps.iter().map(system).collect()
}

/// An Opus file of the audio, as its channels are up to two, at the audio's rate or at 48 kHz.
///
/// # Source
/// RFC 7845, sections 4.2 (pre-skip) and 4.4 (the last page says where the audio ends).
pub(crate) fn encode(audio: &AudioBuffer, bits_per_second: i32) -> Result<Vec<u8>> {
    let spec = spec_for(audio.spec());
    let audio = Converter::whole(audio, spec)?;
    let (rate, channels) = (spec.sample_rate, usize::from(spec.channels));
    let mut encoder = OpusEncoder::new(rate as i32, channels, Application::Audio)?;
    encoder.bitrate_bps = bits_per_second;
    let head = OpusHead::for_encoder(&encoder, rate);
    let frame = rate as usize / FRAMES_PER_SECOND;
    // What the encoder holds back must be pushed out at the end.
    let n_frames = (audio.n_samples() + encoder.lookahead()).div_ceil(frame);
    let mut samples = audio.to_interleaved();
    samples.resize(n_frames * frame * channels, 0.0);
    let granule = |n_samples: usize| n_samples as u64 * GRANULE_RATE / u64::from(rate);
    let end = u64::from(head.pre_skip) + granule(audio.n_samples());
    let mut writer = OggOpusWriter::new(Vec::new(), head)?;
    let mut packet = vec![0; MAX_PACKET_BYTES];
    for (frame_idx, block) in samples.chunks_exact(frame * channels).enumerate() {
        let n_bytes = encoder.encode(block, frame, &mut packet)?;
        let duration = end.saturating_sub(granule(frame_idx * frame)).min(granule(frame));
        writer.write_packet_with_duration(&packet[..n_bytes], duration as u32)?;
    }
    Ok(writer.finish()?)
}

/// What the encoder takes instead of some audio.
fn spec_for(audio: AudioSpec) -> AudioSpec {
    let sample_rate =
        if RATES.contains(&audio.sample_rate) { audio.sample_rate } else { GRANULE_RATE as u32 };
    AudioSpec { sample_rate, channels: if audio.channels > 2 { 1 } else { audio.channels } }
}

impl Coder for Opus {
    fn code(&self, clip: &AudioBuffer, _: &Path) -> Result<Coded> {
        // Converted before, so that the time is that of the codec.
        let audio = Converter::whole(clip, spec_for(clip.spec()))?;
        let start = Instant::now();
        let file = encode(&audio, self.bits_per_second)?;
        let encode_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut reader = AudioReader::from_seekable(Cursor::new(file.clone()))?;
        let audio = reader.read_to_end().context("decoding")?;
        let decode_seconds = start.elapsed().as_secs_f64();
        let payload_bits = Some(ogg_payload_bits(&file, 2)?);
        let (program_bytes, is_tokens) = (None, false);
        Ok(Coded { file, payload_bits, audio, encode_seconds, decode_seconds, program_bytes, is_tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec_metrics::align::{self, Resolution};

    /// The length comes back and nothing is late.
    #[test]
    fn a_file_holds_the_clip_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        for (sample_rate, n_samples) in [(16_000, 16_001), (44_100, 30_000), (48_000, 959)] {
            let sound = |t: usize| {
                let t = t as f32 / sample_rate as f32;
                0.4 * (t * 1200.0).sin() * (t * 31.0).sin()
                    + 0.2 * (t * 5200.0 + 9.0 * (t * 17.0).sin()).sin()
            };
            let clip = AudioBuffer::mono(sample_rate, (0..n_samples).map(sound).collect()).unwrap();
            let coded = Opus { bits_per_second: 32_000 }.code(&clip, scratch.path()).unwrap();
            let expected = (n_samples as u64 * 48_000).div_ceil(u64::from(sample_rate));
            assert!(coded.audio.n_samples().abs_diff(expected as usize) <= 2, "{}", coded.audio.n_samples());
            assert!(coded.payload_bits.unwrap() < 8 * coded.file.len() as u64);
            if n_samples < 1000 {
                continue;
            }
            let mut back = Converter::whole(&coded.audio, clip.spec()).unwrap();
            back.truncate(n_samples);
            let alignment = align::estimate(&clip, &back, 400, Resolution::Sample).unwrap();
            // The filters of the speech mode are not late by whole samples.
            assert!(alignment.delay.abs() <= 1.0, "{alignment:?}");
            assert!(alignment.correlation > 0.9, "{}", alignment.correlation);
        }
    }
}
