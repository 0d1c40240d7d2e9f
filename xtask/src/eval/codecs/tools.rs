//! MP3, Speex and FLAC through the programs that people use, where they are installed.

use super::pcm::write_wav;
use super::{Coded, Coder, System, classical, ogg_payload_bits, process, short};
use crate::eval::clips;
use crate::eval::results::{Group, SystemInfo};
use anyhow::{Context, Result, ensure};
use codec_core::{AudioBuffer, AudioSpec};
use codec_io::{AudioReader, Converter};
use codec_metrics::align::{self, Resolution};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Names of the files in the scratch folder.
const INPUT: &str = "clip.wav";
const DECODED: &str = "decoded.wav";

/// One way to a format.
#[derive(Clone, Copy, Debug)]
struct Tool {
    encoder: &'static str,
    version: &'static str,
    /// Decodes what [`AudioReader`] does not read.
    decoder: Option<&'static str>,
    /// Arguments of the encoder for a bitrate in bit/s and a sample rate in Hz.
    arguments: fn(u32, u32) -> Vec<String>,
    decoder_arguments: fn() -> Vec<String>,
}

#[derive(Debug)]
struct Program {
    tool: Tool,
    format: Format,
    bits_per_second: u32,
    /// Samples by which the format itself is late, by rate; taken off the start of what is decoded.
    delays: BTreeMap<u32, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Mp3,
    Speex,
    Flac,
}

impl Format {
    fn by_name(name: &str) -> Option<Self> {
        match name {
            "mp3" => Some(Self::Mp3),
            "speex" => Some(Self::Speex),
            "flac" => Some(Self::Flac),
            _ => None,
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Mp3 => "coded.mp3",
            Self::Speex => "coded.spx",
            Self::Flac => "coded.flac",
        }
    }

    /// From the best to the last.
    fn tools(self) -> [Tool; 2] {
        let ffmpeg = Tool {
            encoder: "ffmpeg",
            version: "-version",
            decoder: None,
            arguments: |_, _| Vec::new(),
            decoder_arguments: Vec::new,
        };
        match self {
            Self::Mp3 => [
                Tool {
                    encoder: "lame",
                    version: "--version",
                    arguments: |bits, _| words(&format!("-S --cbr -b {} {INPUT} coded.mp3", bits / 1000)),
                    ..ffmpeg
                },
                Tool { arguments: |bits, _| ffmpeg_words("libmp3lame", Some(bits), "coded.mp3"), ..ffmpeg },
            ],
            Self::Speex => [
                Tool {
                    encoder: "speexenc",
                    version: "--version",
                    decoder: Some("speexdec"),
                    arguments: |bits, rate| {
                        let mode = match rate {
                            8_000 => "-n",
                            16_000 => "-w",
                            _ => "-u",
                        };
                        words(&format!("{mode} --bitrate {bits} --comp 10 {INPUT} coded.spx"))
                    },
                    decoder_arguments: || words(&format!("coded.spx {DECODED}")),
                },
                Tool {
                    decoder: Some("ffmpeg"),
                    arguments: |bits, _| ffmpeg_words("libspeex", Some(bits), "coded.spx"),
                    decoder_arguments: || words(&format!("-v error -y -i coded.spx {DECODED}")),
                    ..ffmpeg
                },
            ],
            Self::Flac => [
                Tool {
                    encoder: "flac",
                    version: "--version",
                    // Padding and seek points are for editing, not for the size of a clip.
                    arguments: |_, _| {
                        words(&format!("-s -8 --no-padding --no-seektable -o coded.flac {INPUT}"))
                    },
                    ..ffmpeg
                },
                Tool { arguments: |_, _| ffmpeg_words("flac", None, "coded.flac"), ..ffmpeg },
            ],
        }
    }

    /// What the format can code instead of some audio.
    fn spec(self, audio: AudioSpec) -> AudioSpec {
        let nearest = |rates: &[u32]| {
            // As little as possible above, else as much as there is.
            let above = rates.iter().copied().filter(|rate| *rate >= audio.sample_rate).min();
            above.or_else(|| rates.iter().copied().max()).unwrap_or(audio.sample_rate)
        };
        let stereo = if audio.channels > 2 { 1 } else { audio.channels };
        match self {
            Self::Flac => audio,
            Self::Mp3 => AudioSpec {
                sample_rate: nearest(&[
                    8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000,
                ]),
                channels: stereo,
            },
            // A codec for speech: above 16 kHz only where it has to be asked for.
            Self::Speex => AudioSpec { sample_rate: nearest(&[8_000, 16_000]), channels: 1 },
        }
    }
}

/// A format at some bitrates; `None` when none of its programs is here.
///
/// # Errors
/// When a bitrate is none of the format.
pub(super) fn systems(name: &str, kbps: &[f64]) -> Result<Option<Vec<System>>> {
    let format = Format::by_name(name).with_context(|| format!("no baseline is called {name}"))?;
    let found = format.tools().into_iter().find_map(|tool| {
        let encoder = process::version(tool.encoder, tool.version)?;
        let Some(decoder) = tool.decoder.filter(|decoder| *decoder != tool.encoder) else {
            return Some((tool, encoder));
        };
        let decoder = process::version(decoder, tool.version)?;
        Some((tool, format!("{encoder}, decoded by {decoder}")))
    });
    let Some((tool, identity)) = found else { return Ok(None) };
    if format == Format::Flac {
        let info = SystemInfo {
            id: name.to_owned(),
            codec: name.to_owned(),
            group: Group::Lossless,
            nominal_kbps: None,
            identity,
        };
        let coder = Box::new(Program { tool, format, bits_per_second: 0, delays: BTreeMap::new() });
        return Ok(Some(vec![System {
            source: info.id.clone(),
            spec: info.id.clone(),
            info,
            load_seconds: None,
            is_program: true,
            coder,
        }]));
    }
    let delays = if format == Format::Speex { delays(tool, format)? } else { BTreeMap::new() };
    let system = |&kbps: &f64| {
        let known = if format == Format::Mp3 { 8.0..=320.0 } else { 2.0..=45.0 };
        let (low, high) = (*known.start(), *known.end());
        ensure!(known.contains(&kbps), "{name} goes from {low} to {high} kbit/s, not {kbps}");
        if format == Format::Mp3 {
            check_mp3_rate(kbps, &[MP3_LOW_RATES, MP3_HIGH_RATES].concat())?;
        }
        let bits_per_second = (kbps * 1000.0).round() as u32;
        let coder = Program { tool, format, bits_per_second, delays: delays.clone() };
        Ok(classical(name, kbps, identity.clone(), true, Box::new(coder)))
    };
    kbps.iter().map(system).collect::<Result<_>>().map(Some)
}

/// Bitrates of MP3 in kbit/s at sample rates up to 24 kHz, and above.
///
/// # Source
/// The tables of layer III in ISO/IEC 13818-3 and ISO/IEC 11172-3.
const MP3_LOW_RATES: &[f64] =
    &[8.0, 16.0, 24.0, 32.0, 40.0, 48.0, 56.0, 64.0, 80.0, 96.0, 112.0, 128.0, 144.0, 160.0];
const MP3_HIGH_RATES: &[f64] =
    &[32.0, 40.0, 48.0, 56.0, 64.0, 80.0, 96.0, 112.0, 128.0, 160.0, 192.0, 224.0, 256.0, 320.0];

/// Programs take another bitrate without a word where the format lacks the one asked for.
fn check_mp3_rate(kbps: f64, known: &[f64]) -> Result<()> {
    let below = known.iter().copied().filter(|rate| *rate < kbps).reduce(f64::max);
    let above = known.iter().copied().filter(|rate| *rate > kbps).reduce(f64::min);
    let nearest = [below, above].into_iter().flatten().map(short).collect::<Vec<_>>().join(" and ");
    ensure!(known.contains(&kbps), "mp3 has no {kbps} kbit/s; nearest are {nearest}");
    Ok(())
}

/// How late Speex is, measured at its highest bitrates: the delay is the same at the lowest ones, where decoded
/// speech is too unlike its original to tell. (MP3 says its delay in the file, or is like enough.)
///
/// # Errors
/// When the programs fail.
fn delays(tool: Tool, format: Format) -> Result<BTreeMap<u32, usize>> {
    let clips = clips::built_in()?;
    let speech = clips.iter().find(|clip| clip.kind == "speech").context("no built-in speech")?.read()?;
    let mut delays = BTreeMap::new();
    for (sample_rate, bits_per_second) in [(8_000, 24_600), (16_000, 42_200)] {
        let speech = Converter::whole(&speech, AudioSpec { sample_rate, channels: 1 })?;
        let scratch = tempfile::tempdir().context("no temporary folder")?;
        let program = Program { tool, format, bits_per_second, delays: BTreeMap::new() };
        let decoded = program.code(&speech, scratch.path())?.audio;
        let max_delay = sample_rate as usize / 10;
        let found = align::estimate(&speech, &decoded, max_delay, Resolution::Sample);
        let found = found.with_context(|| format!("the delay of {}", tool.encoder))?;
        delays.insert(sample_rate, found.delay.max(0.0) as usize);
    }
    Ok(delays)
}

/// The programs that a format needs, in words.
pub(super) fn wanted(name: &str) -> String {
    let tools = Format::by_name(name).map(Format::tools).into_iter().flatten();
    let names = tools.map(|tool| match tool.decoder {
        Some(decoder) if decoder != tool.encoder => format!("{} and {decoder}", tool.encoder),
        _ => tool.encoder.to_owned(),
    });
    format!("needs {}", names.collect::<Vec<_>>().join(", or "))
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn ffmpeg_words(codec: &str, bits_per_second: Option<u32>, output: &str) -> Vec<String> {
    let rate = bits_per_second.map(|bits| format!("-b:a {bits}")).unwrap_or_default();
    words(&format!("-v error -y -i {INPUT} -c:a {codec} {rate} -map_metadata -1 {output}"))
}

impl Coder for Program {
    fn code(&self, clip: &AudioBuffer, scratch: &Path) -> Result<Coded> {
        let clip = Converter::whole(clip, self.format.spec(clip.spec()))?;
        if self.format == Format::Mp3 {
            let (kbps, sample_rate) = (f64::from(self.bits_per_second) / 1000.0, clip.spec().sample_rate);
            // Below the lowest of a high rate, LAME lowers the sample rate.
            let is_low = sample_rate <= 24_000 || kbps < MP3_HIGH_RATES[0];
            let known = if is_low { MP3_LOW_RATES } else { MP3_HIGH_RATES };
            check_mp3_rate(kbps, known).with_context(|| format!("at {sample_rate} Hz"))?;
        }
        write_wav(&clip, &scratch.join(INPUT))?;
        let arguments = (self.tool.arguments)(self.bits_per_second, clip.spec().sample_rate);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let start = Instant::now();
        let mut program_bytes = process::run(self.tool.encoder, &arguments, scratch)?;
        let encode_seconds = start.elapsed().as_secs_f64();
        let path = scratch.join(self.format.file());
        let start = Instant::now();
        let audio = match self.tool.decoder {
            None => AudioReader::open(&path)?.read_to_end()?,
            Some(decoder) => {
                let arguments = (self.tool.decoder_arguments)();
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                program_bytes = program_bytes.max(process::run(decoder, &arguments, scratch)?);
                AudioReader::open(scratch.join(DECODED))?.read_to_end()?
            }
        };
        let decode_seconds = start.elapsed().as_secs_f64();
        let n_late = self.delays.get(&clip.spec().sample_rate).copied().unwrap_or(0);
        let audio = if n_late > 0 { audio.slice(n_late..usize::MAX) } else { audio };
        let file = std::fs::read(&path).with_context(|| format!("{} wrote no file", self.tool.encoder))?;
        let is_speex = self.format == Format::Speex;
        let payload_bits = is_speex.then(|| ogg_payload_bits(&file, 2)).transpose()?;
        let is_tokens = false;
        Ok(Coded { file, payload_bits, audio, encode_seconds, decode_seconds, program_bytes, is_tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitrates_that_mp3_lacks_are_refused() {
        assert!(check_mp3_rate(16.0, MP3_LOW_RATES).is_ok());
        let error = check_mp3_rate(20.0, MP3_LOW_RATES).unwrap_err().to_string();
        assert_eq!(error, "mp3 has no 20 kbit/s; nearest are 16 and 24");
        assert!(
            check_mp3_rate(320.0, MP3_LOW_RATES).is_err() && check_mp3_rate(320.0, MP3_HIGH_RATES).is_ok()
        );
    }
}
