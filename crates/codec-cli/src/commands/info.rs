//! `codec info`: what a token file says, what its codes look like, and what a model waits for.

use super::for_each;
use crate::Global;
use crate::inputs::{self, Place};
use crate::model::{Model, ModelArgs};
use crate::report::Reporter;
use crate::tokens::open;
use anyhow::{Context, Result};
use codec_core::Codec;
use codec_io::tokens::{self, CodeStats, TokenHeader, Totals, WeightsHash};
use codec_models::Purpose;
use serde::Serialize;
use std::fmt::Write;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show header, duration, bitrate, use of each codebook, and integrity of token files; with a model,
/// its rates and delays.
///
/// The entropy of a codebook is that of its histogram: an ideal coder without context would need
/// so many bits per code. Delays are those in the middle of a stream and, where they are longer, at its
/// start, computing time apart.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec info speech.nac
  codec info codes/ --json | jq .kbps
  codec info --model encodec_24khz               lookahead and delay of a model")]
pub(crate) struct Args {
    /// Token files, folders, or `-`.
    #[arg(required_unless_present = "model")]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

/// What a model says of itself.
#[derive(Debug, Serialize)]
struct OfModel {
    model: String,
    family: &'static str,
    weights_sha256: String,
    sample_rate: u32,
    channels: u16,
    hop_length: u32,
    frame_rate: f64,
    n_codebooks: usize,
    max_kbps: f64,
    #[serde(flatten)]
    delays: Waits,
}

/// [`codec_core::Delays`] with the delays in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Waits {
    /// Whether there is an encoder.
    encodes: bool,
    /// Samples; none where the encoder waits for the end of the clip, or there is none.
    lookahead: Option<u32>,
    /// Frames; none where the decoder waits for the end of the clip.
    decoder_lookahead: Option<u32>,
    /// Samples; none where either of them waits.
    algorithmic_delay: Option<u32>,
    delay_seconds: Option<f64>,
    /// Samples that the first frame waits for after its own.
    start_lookahead: Option<u32>,
    /// Frames that the first frame's samples wait for.
    start_decoder_lookahead: Option<u32>,
    /// Samples until the first one can be decoded.
    start_delay: Option<u32>,
    start_delay_seconds: Option<f64>,
}

impl Waits {
    fn of(codec: &dyn Codec) -> Self {
        let info = codec.info();
        let delays = info.delays;
        Self {
            encodes: codec.encodes(),
            lookahead: delays.lookahead,
            decoder_lookahead: delays.decoder_lookahead,
            algorithmic_delay: delays.algorithmic_delay,
            delay_seconds: info.delay_seconds(),
            start_lookahead: delays.start_lookahead,
            start_decoder_lookahead: delays.start_decoder_lookahead,
            start_delay: delays.start_delay,
            start_delay_seconds: info.start_delay_seconds(),
        }
    }

    /// Lines of a description: name and value. Those of the start are there when it waits longer.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let of =
            |n: Option<u32>, unit| n.map_or_else(|| "the whole clip".to_owned(), |n| format!("{n} {unit}"));
        let lookahead = |samples: Option<u32>, frames: Option<u32>| {
            let decoder = format!("decoder {}", of(frames, "frames"));
            if self.encodes { format!("encoder {}, {decoder}", of(samples, "samples")) } else { decoder }
        };
        let delay = |samples: Option<u32>, seconds: Option<f64>| {
            let seconds = seconds.map_or_else(String::new, |seconds| format!(", {:.1} ms", seconds * 1000.0));
            of(samples, "samples") + &seconds
        };
        let mut lines = vec![("lookahead", lookahead(self.lookahead, self.decoder_lookahead))];
        let starts_late =
            self.start_lookahead > self.lookahead || self.start_decoder_lookahead > self.decoder_lookahead;
        if starts_late {
            lines.push(("at a start", lookahead(self.start_lookahead, self.start_decoder_lookahead)));
        }
        if !self.encodes {
            lines.push(("delay", "none: it only decodes".to_owned()));
            return lines;
        }
        lines.push(("delay", delay(self.algorithmic_delay, self.delay_seconds)));
        if self.start_delay > self.algorithmic_delay {
            lines.push(("at a start", delay(self.start_delay, self.start_delay_seconds)));
        }
        lines
    }
}

#[derive(Debug, Serialize)]
struct Outcome {
    input: String,
    family: String,
    model: String,
    weights_sha256: String,
    sample_rate: u32,
    channels: u16,
    hop_length: u32,
    frame_rate: f64,
    n_codebooks: usize,
    n_codebooks_total: usize,
    n_frames: u64,
    n_samples: u64,
    seconds: f64,
    start_trim: u64,
    source: Source,
    tags: Vec<(String, String)>,
    n_bytes: u64,
    /// The whole file over the duration.
    kbps: Option<f64>,
    codebooks: Vec<Codebook>,
    n_packets: u64,
    has_index: bool,
    intact: bool,
    faults: Vec<String>,
    /// When the model that made the codes was named.
    #[serde(flatten)]
    delays: Option<Waits>,
}

#[derive(Debug, Serialize)]
struct Source {
    sample_rate: u32,
    channels: u16,
    n_samples: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Codebook {
    size: u32,
    stride: u32,
    bits: u32,
    n_codes: u64,
    n_used: u64,
    usage: f64,
    entropy_bits: f64,
    perplexity: f64,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let reporter = Reporter::new(global, false);
    let model = if args.model.model.is_some() { Some(args.model.load(Purpose::Both)?) } else { None };
    if let (Some(model), []) = (&model, args.inputs.as_slice()) {
        let outcome = of_model(model)?;
        reporter.result(|| describe_model(&outcome), &outcome)?;
        return Ok(ExitCode::SUCCESS);
    }
    let places = inputs::list(&args.inputs, &[tokens::EXTENSION])?;
    Ok(for_each(&places, &reporter, |place| {
        let outcome = inspect(place, model.as_ref()).with_context(|| place.to_string())?;
        reporter.result(|| describe(&outcome), &outcome)
    }))
}

fn of_model(model: &Model) -> Result<OfModel> {
    let info = model.codec.info();
    let n_codebooks = info.layout.n_codebooks();
    Ok(OfModel {
        model: info.model.clone(),
        family: info.family,
        weights_sha256: tokens::WeightsHash(model.sha256).to_string(),
        sample_rate: info.audio.sample_rate,
        channels: info.audio.channels,
        hop_length: info.hop_length,
        frame_rate: info.frame_rate().to_f64(),
        n_codebooks,
        max_kbps: info.kilobits_per_second(n_codebooks)?.to_f64(),
        delays: Waits::of(model.codec.as_ref()),
    })
}

fn describe_model(outcome: &OfModel) -> String {
    let mut text = format!("{} ({})", outcome.model, outcome.family);
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {name:<12}{value}");
    };
    line("weights", outcome.weights_sha256.clone());
    line("audio", format!("{} Hz, {} channel(s)", outcome.sample_rate, outcome.channels));
    line("frames", format!("of {} samples, {:.3} Hz", outcome.hop_length, outcome.frame_rate));
    line("codebooks", format!("{}, up to {:.3} kbit/s", outcome.n_codebooks, outcome.max_kbps));
    for (name, value) in outcome.delays.lines() {
        line(name, value);
    }
    text
}

fn inspect(place: &Place, model: Option<&Model>) -> Result<Outcome> {
    let mut counted = Counted { source: open(place)?, n_bytes: 0 };
    let mut stats: Option<CodeStats> = None;
    let (header, report) = tokens::verify(&mut counted, |codes| {
        stats.get_or_insert_with(|| CodeStats::new(codes.layout())).push(codes);
    })?;
    // What is behind the end packet belongs to the file too.
    std::io::copy(&mut counted, &mut std::io::sink())?;
    let available = header.samples_in(report.n_frames).saturating_sub(header.start_trim);
    let n_samples = report.totals.map_or(available, |totals| totals.n_samples.min(available));
    let stats = stats.unwrap_or_else(|| CodeStats::new(&header.layout));
    let stats = stats.codebooks();
    let codebooks = stats.iter().zip(header.layout.codebooks()).map(|(stats, spec)| Codebook {
        size: spec.size,
        stride: spec.stride,
        bits: spec.bits(),
        n_codes: stats.n_codes,
        n_used: stats.n_used,
        usage: stats.usage(),
        entropy_bits: stats.entropy_bits,
        perplexity: stats.perplexity(),
    });
    let kbps =
        tokens::file_bitrate(counted.n_bytes, n_samples, header.audio.sample_rate).map(|rate| rate / 1000.0);
    let made_it = model.filter(|model| header.check_weights(&model.sha256).is_ok());
    Ok(Outcome {
        input: place.to_string(),
        delays: made_it.map(|model| Waits::of(model.codec.as_ref())),
        weights_sha256: header.weights.to_string(),
        sample_rate: header.audio.sample_rate,
        channels: header.audio.channels,
        hop_length: header.hop_length,
        frame_rate: f64::from(header.audio.sample_rate) / f64::from(header.hop_length),
        n_codebooks: header.layout.n_codebooks(),
        n_codebooks_total: header.n_codebooks_total,
        n_frames: report.n_frames,
        n_samples,
        seconds: n_samples as f64 / f64::from(header.audio.sample_rate),
        start_trim: header.start_trim,
        source: source(&header, report.totals),
        n_bytes: counted.n_bytes,
        kbps,
        codebooks: codebooks.collect(),
        n_packets: report.n_packets,
        has_index: report.has_index,
        intact: report.is_intact(),
        faults: report.faults.iter().map(ToString::to_string).collect(),
        family: header.family,
        model: header.model,
        tags: header.tags,
    })
}

fn source(header: &TokenHeader, totals: Option<Totals>) -> Source {
    let n_samples = totals.map(|totals| totals.source_samples);
    Source { sample_rate: header.source.sample_rate, channels: header.source.channels, n_samples }
}

fn describe(outcome: &Outcome) -> String {
    let mut text = outcome.input.clone();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {name:<12}{value}");
    };
    line("model", format!("{} ({})", outcome.model, outcome.family));
    let unknown = outcome.weights_sha256 == WeightsHash::UNKNOWN.to_string();
    line("weights", if unknown { "not known".to_owned() } else { outcome.weights_sha256.clone() });
    line(
        "audio",
        format!("{} Hz, {} channel(s), {:.3} s", outcome.sample_rate, outcome.channels, outcome.seconds),
    );
    line("made from", format!("{} Hz, {} channel(s)", outcome.source.sample_rate, outcome.source.channels));
    line(
        "frames",
        format!("{} of {} samples, {:.3} Hz", outcome.n_frames, outcome.hop_length, outcome.frame_rate),
    );
    line("codebooks", format!("{} of {}", outcome.n_codebooks, outcome.n_codebooks_total));
    for (name, value) in outcome.delays.iter().flat_map(Waits::lines) {
        line(name, value);
    }
    line("size", format!("{} bytes in {} packets", outcome.n_bytes, outcome.n_packets));
    line("bitrate", outcome.kbps.map_or("none".into(), |kbps| format!("{kbps:.3} kbit/s, the whole file")));
    line("index", if outcome.has_index { "there".into() } else { "missing; seeking takes a scan".into() });
    line("integrity", if outcome.intact { "whole".into() } else { outcome.faults.join("; ") });
    for (key, value) in &outcome.tags {
        line("tag", format!("{key}={value}"));
    }
    let _ = write!(
        text,
        "\n  {:>8}{:>8}{:>7}{:>9}{:>8}{:>9}",
        "codebook", "size", "bits", "entropy", "used", "usage"
    );
    for (codebook_idx, codebook) in outcome.codebooks.iter().enumerate() {
        let _ = write!(
            text,
            "\n  {codebook_idx:>8}{:>8}{:>7}{:>9.3}{:>8}{:>7.1} %",
            codebook.size,
            codebook.bits,
            codebook.entropy_bits,
            codebook.n_used,
            codebook.usage * 100.0,
        );
    }
    text
}

/// Counts the bytes that pass.
struct Counted {
    source: Box<dyn Read + Send>,
    n_bytes: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.source.read(buffer)?;
        self.n_bytes += n as u64;
        Ok(n)
    }
}
