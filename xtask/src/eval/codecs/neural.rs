//! Models of this workspace, through token files as `codec tokenize` writes them.

use super::{Coded, Coder, System, id};
use crate::eval::results::{Group, SystemInfo};
use crate::shared;
use anyhow::{Context, Result, bail};
use candle_core::Device;
use codec_core::{AudioBuffer, CodecInfo};
use codec_io::Converter;
use codec_io::tokens::{TokenHeader, TokenReader, TokenWriter, Totals, WeightsHash};
use codec_models::Loaded;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const LYRA: &str = "lyra-v2";
/// Pieces that the encoder is given, in seconds.
const PIECE_SECONDS: usize = 2;

#[derive(Debug)]
struct Model {
    loaded: Arc<Loaded>,
    n_codebooks: usize,
}

/// A model at the bitrates given, or at some of its own; called `label`, or by its folder, file or card.
///
/// # Errors
/// When the model does not load or starts above a bitrate.
pub(super) fn systems(name: &str, label: Option<&str>, kbps: &[f64]) -> Result<Vec<System>> {
    let start = Instant::now();
    let loaded = Arc::new(load(name)?);
    let load_seconds = Some(start.elapsed().as_secs_f64());
    let info = loaded.codec.info();
    let file_name = Path::new(name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let codec = if let Some(label) = label {
        label.to_owned()
    } else if Path::new(name).exists() {
        file_name.unwrap_or_default()
    } else {
        // It may have been named by an alias.
        codec_models::card(name)?.name.clone()
    };
    let counts = if kbps.is_empty() { own_counts(name, info) } else { counts(info, kbps)? };
    let identity = format!("{} {}, weights {}", info.family, info.model, WeightsHash(loaded.sha256));
    counts
        .into_iter()
        .map(|n_codebooks| {
            let kbps = info.kilobits_per_second(n_codebooks)?.to_f64();
            let info = SystemInfo {
                id: id(&codec, Some(kbps)),
                codec: codec.clone(),
                group: Group::Neural,
                nominal_kbps: Some(kbps),
                identity: identity.clone(),
            };
            let coder = Box::new(Model { loaded: Arc::clone(&loaded), n_codebooks });
            let spec = format!("{name}@{kbps}");
            Ok(System { info, source: name.to_owned(), spec, load_seconds, is_program: false, coder })
        })
        .collect()
}

/// Loads a model; Lyra from the optional shared test data, where it was not fetched.
fn load(name: &str) -> Result<Loaded> {
    let is_lyra = !Path::new(name).exists() && codec_models::card(name).is_ok_and(|card| card.name == LYRA);
    if is_lyra
        && let Some(folder) = shared::lyra()
        && !codec_models::is_here(LYRA)?
    {
        return Ok(codec_nn::load(&folder, &Device::Cpu)?);
    }
    Ok(codec_models::load(name, &Device::Cpu)?)
}

/// Codebooks for each bitrate, in kbit/s: as many as fit, to a thousandth.
fn counts(info: &CodecInfo, kbps: &[f64]) -> Result<Vec<usize>> {
    let lowest = info.kilobits_per_second(1)?.to_f64();
    if let Some(low) = kbps.iter().find(|kbps| **kbps * 1.001 < lowest) {
        bail!("{} starts at {lowest:.3} kbit/s, not {low}", info.model);
    }
    // People write three digits of 1.378125.
    let mut counts: Vec<usize> =
        kbps.iter().map(|kbps| info.n_codebooks_for_bitrate((kbps * 1001.0).ceil() as u64)).collect();
    counts.sort_unstable();
    counts.dedup();
    Ok(counts)
}

/// The bitrates that the model's card names, or all codebooks, a half, a quarter and an eighth of them.
fn own_counts(name: &str, info: &CodecInfo) -> Vec<usize> {
    let named = codec_models::card(name).map(|card| card.bitrates.as_slice()).unwrap_or_default();
    let n_all = info.layout.n_codebooks();
    let mut counts: Vec<usize> = if named.is_empty() {
        [8, 4, 2, 1].into_iter().map(|part| n_all / part).filter(|n| *n > 0).collect()
    } else {
        named.iter().map(|rate| info.n_codebooks_for_bitrate(rate.round() as u64)).collect()
    };
    counts.sort_unstable();
    counts.dedup();
    counts
}

impl Coder for Model {
    fn code(&self, clip: &AudioBuffer, _: &Path) -> Result<Coded> {
        let codec = self.loaded.codec.as_ref();
        let info = codec.info();
        let audio = Converter::whole(clip, info.audio).context("converting the clip for the model")?;
        let start = Instant::now();
        let header = TokenHeader::new(info, self.n_codebooks, self.loaded.sha256, clip.spec())?;
        let mut writer = TokenWriter::new(Vec::new(), header)?;
        let mut encoder = codec.encoder(self.n_codebooks)?;
        let piece = PIECE_SECONDS * info.audio.sample_rate as usize;
        for at in (0..audio.n_samples()).step_by(piece) {
            writer.push(&encoder.push(&audio.slice(at..at + piece))?)?;
        }
        writer.push(&encoder.finish()?)?;
        let totals = Totals { n_samples: audio.n_samples() as u64, source_samples: clip.n_samples() as u64 };
        let file = writer.finish(totals)?;
        let encode_seconds = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let codes = TokenReader::new(file.as_slice())?.read_all()?;
        let mut decoded = codec.decode(&codes)?;
        decoded.truncate(audio.n_samples());
        let decode_seconds = start.elapsed().as_secs_f64();

        let bits = codes.layout().codebooks().iter().zip(codes.rows());
        let bits: u64 = bits.map(|(codebook, row)| u64::from(codebook.bits()) * row.len() as u64).sum();
        let payload_bits = Some(bits + 32 * codes.scales().len() as u64);
        let (program_bytes, is_tokens) = (None, true);
        Ok(Coded {
            file,
            payload_bits,
            audio: decoded,
            encode_seconds,
            decode_seconds,
            program_bytes,
            is_tokens,
        })
    }
}
