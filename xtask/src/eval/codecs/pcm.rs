//! 16-bit PCM: what is left when nothing is compressed.

use super::{Coded, Coder, System, id};
use crate::eval::results::{Group, SystemInfo};
use anyhow::{Context, Result};
use codec_core::AudioBuffer;
use codec_io::{AudioReader, WavFormat, WavWriter};
use std::path::Path;
use std::time::Instant;

#[derive(Debug)]
struct Pcm;

pub(super) fn system() -> System {
    let info = SystemInfo {
        id: id("pcm", None),
        codec: "pcm".to_owned(),
        group: Group::Lossless,
        nominal_kbps: None,
        identity: "WAV, 16 bit".to_owned(),
    };
    System {
        source: info.id.clone(),
        spec: info.id.clone(),
        info,
        load_seconds: None,
        is_program: false,
        coder: Box::new(Pcm),
    }
}

/// Writes a clip as the programs of the baselines read it.
pub(super) fn write_wav(clip: &AudioBuffer, path: &Path) -> Result<()> {
    let mut writer = WavWriter::create(path, clip.spec(), WavFormat::Pcm16)?;
    writer.write(clip)?;
    writer.finish()?;
    Ok(())
}

impl Coder for Pcm {
    fn code(&self, clip: &AudioBuffer, scratch: &Path) -> Result<Coded> {
        let path = scratch.join("clip.wav");
        let start = Instant::now();
        write_wav(clip, &path)?;
        let encode_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let audio = AudioReader::open(&path)?.read_to_end()?;
        let decode_seconds = start.elapsed().as_secs_f64();
        let file = std::fs::read(&path).context("reading the file again")?;
        let payload_bits = Some(16 * audio.n_samples() as u64 * u64::from(audio.spec().channels));
        let (program_bytes, is_tokens) = (None, false);
        Ok(Coded { file, payload_bits, audio, encode_seconds, decode_seconds, program_bytes, is_tokens })
    }
}
