//! `codec roundtrip`: how audio sounds after a codec.

use super::for_each;
use crate::Global;
use crate::audio_sink::{AudioArgs, AudioSink, Trim};
use crate::inputs::{self, AUDIO_EXTENSIONS, Job, Kinds, Place};
use crate::model::{ChannelArgs, Model, ModelArgs, RateArgs, WeightKind};
use crate::report::Reporter;
use crate::source::Source;
use anyhow::{Context, Result, bail};
use codec_core::{AudioBuffer, Codec, Codes, Decoder, Encoder};
use codec_io::tokens::{TokenHeader, TokenWriter, Totals, file_bitrate};
use codec_metrics::SiSdr;
use codec_models::Purpose;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Code audio and decode it again: writes the reconstruction, prints SI-SDR and the true bitrate.
///
/// SI-SDR compares samples, at the codec's rate and channels. A codec that keeps no phase, as most
/// below 3 kbit/s, has a low SI-SDR however good it sounds. With `--weights int8` the model codes as float32 too, and
/// what differs is printed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec roundtrip song.flac -o again.wav --bitrate 6
  codec roundtrip clips/ -o out/ -m encodec_24khz --json
  codec roundtrip speech.wav -o again.wav -m mimi --weights int8   what rounded weights cost")]
pub(crate) struct Args {
    /// Audio files, folders, or `-`.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Output: a file, `-` for stdout, or a folder for several results.
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    rate: RateArgs,
    #[command(flatten)]
    channels: ChannelArgs,
    #[command(flatten)]
    audio: AudioArgs,
}

#[derive(Debug, Serialize)]
struct Outcome {
    input: String,
    output: String,
    model: String,
    n_codebooks: usize,
    seconds: f64,
    /// In dB; none for silence.
    si_sdr: Option<f64>,
    /// The token file's bytes over the duration.
    kbps: Option<f64>,
    n_bytes: u64,
    /// For rounded weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    beside_float32: Option<Beside>,
}

/// What rounded weights change.
#[derive(Debug, Serialize)]
struct Beside {
    /// Share of the codes that are those of the weights as they are.
    equal_codes: f64,
    /// Of what is decoded from those, with those weights.
    si_sdr: Option<f64>,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let kinds = Kinds { takes: &AUDIO_EXTENSIONS, makes: "wav" };
    let jobs = inputs::pair(&args.inputs, Some(&args.output), kinds)?;
    let reporter = Reporter::new(global, jobs.iter().any(|job| job.output == Place::Std));
    let model = args.model.load(Purpose::Both)?;
    model.expect_encoder()?;
    let exact = match args.model.weights {
        WeightKind::Float32 => None,
        WeightKind::Int8 => {
            Some(ModelArgs { weights: WeightKind::Float32, ..args.model.clone() }.load(Purpose::Both)?)
        }
    };
    Ok(for_each(&jobs, &reporter, |job| {
        let outcome = roundtrip(job, args, &model, exact.as_ref(), &reporter);
        let outcome = outcome.with_context(|| job.input.to_string())?;
        let decibels = |db: Option<f64>| db.map_or("none".into(), |db| format!("{db:.2} dB"));
        let si_sdr = decibels(outcome.si_sdr);
        let beside = outcome.beside_float32.as_ref().map_or(String::new(), |beside| {
            let (share, si_sdr) = (100.0 * beside.equal_codes, decibels(beside.si_sdr));
            format!("; {share:.1} % of the codes as of float32 weights, whose SI-SDR is {si_sdr}")
        });
        let kbps = outcome.kbps.map_or("none".into(), |kbps| format!("{kbps:.3} kbit/s"));
        let Outcome { input, output, seconds, n_codebooks, .. } = &outcome;
        let text = format!(
            "{input} -> {output}: {seconds:.2} s, {n_codebooks} codebooks, SI-SDR {si_sdr}, \
             token file {kbps}{beside}"
        );
        reporter.result(|| text, &outcome)
    }))
}

fn roundtrip(
    job: &Job,
    args: &Args,
    model: &Model,
    exact: Option<&Model>,
    reporter: &Reporter,
) -> Result<Outcome> {
    let mut source = Source::open(&job.input, |from| args.channels.spec(model, from), reporter)?;
    let codec = model.for_channels(source.to().channels)?;
    let info = codec.info();
    let n_codebooks = args.rate.n_codebooks(info, model.n_streams(codec.as_ref()))?;
    let header = TokenHeader::new(info, n_codebooks, model.sha256, source.from())?;
    let header = args.model.weights.tag(header);
    let mut tokens = TokenWriter::new(CountingSink::default(), header)?;
    let mut sink = AudioSink::create(&job.output, info.audio, Trim::new(0, None), args.audio)?;
    let mut encoder = codec.encoder(n_codebooks)?;
    let mut decoder = codec.decoder()?;
    let mut compared = Compared::new(AudioBuffer::empty(info.audio)?);
    let exact = exact.map(|exact| exact.for_channels(info.audio.channels)).transpose()?;
    let mut beside = exact.as_deref().map(|exact| BesideExact::new(exact, n_codebooks)).transpose()?;
    let mut n_samples = 0;
    while let Some(piece) = source.read()? {
        n_samples += piece.n_samples() as u64;
        let codes = encoder.push(&piece)?;
        tokens.push(&codes)?;
        if let Some(beside) = &mut beside {
            beside.push(&piece, &codes)?;
        }
        compared.original(&piece)?;
        compared.decoded(sink.push(decoder.push(&codes)?)?)?;
    }
    if n_samples == 0 {
        bail!("holds no samples");
    }
    let codes = encoder.finish()?;
    tokens.push(&codes)?;
    let beside = beside.map(|beside| beside.finish(&codes)).transpose()?;
    let mut rest = decoder.push(&codes)?;
    rest.append(&decoder.finish()?)?;
    // The last frame reaches beyond the end of the original.
    rest.truncate(compared.n_waiting());
    compared.decoded(sink.push(rest)?)?;
    let totals = Totals { n_samples, source_samples: source.n_read() };
    source.close(reporter);
    let n_bytes = tokens.finish(totals)?.n_bytes;
    sink.finish(reporter)?;
    Ok(Outcome {
        input: job.input.to_string(),
        output: job.output.to_string(),
        model: info.model.clone(),
        n_codebooks,
        seconds: n_samples as f64 / f64::from(info.audio.sample_rate),
        si_sdr: compared.si_sdr.decibels(),
        kbps: file_bitrate(n_bytes, n_samples, info.audio.sample_rate).map(|rate| rate / 1000.0),
        n_bytes,
        beside_float32: beside,
    })
}

/// The same model with its weights as they are, on the same audio.
struct BesideExact<'a> {
    encoder: Box<dyn Encoder + 'a>,
    decoder: Box<dyn Decoder + 'a>,
    compared: Compared,
    agreement: Agreement,
}

/// How many codes were compared, and how many of them were equal.
#[derive(Default)]
struct Agreement {
    n_codes: u64,
    n_equal: u64,
}

impl Agreement {
    fn count(&mut self, a: &Codes, b: &Codes) {
        for (a, b) in a.rows().zip(b.rows()) {
            self.n_codes += a.len() as u64;
            self.n_equal += a.iter().zip(b).filter(|(a, b)| a == b).count() as u64;
        }
    }
}

impl<'a> BesideExact<'a> {
    fn new(codec: &'a dyn Codec, n_codebooks: usize) -> Result<Self> {
        let compared = Compared::new(AudioBuffer::empty(codec.info().audio)?);
        let (encoder, decoder) = (codec.encoder(n_codebooks)?, codec.decoder()?);
        Ok(Self { encoder, decoder, compared, agreement: Agreement::default() })
    }

    /// Takes a piece of audio and the codes that the rounded weights made of it.
    fn push(&mut self, piece: &AudioBuffer, codes: &Codes) -> Result<()> {
        let exact = self.encoder.push(piece)?;
        self.compared.original(piece)?;
        self.agreement.count(&exact, codes);
        self.compared.decoded(self.decoder.push(&exact)?)
    }

    /// Takes the last codes.
    fn finish(self, codes: &Codes) -> Result<Beside> {
        let Self { encoder, mut decoder, mut compared, mut agreement } = self;
        let exact = encoder.finish()?;
        agreement.count(&exact, codes);
        let mut rest = decoder.push(&exact)?;
        rest.append(&decoder.finish()?)?;
        compared.decoded(rest)?;
        let equal_codes = agreement.n_equal as f64 / agreement.n_codes.max(1) as f64;
        Ok(Beside { equal_codes, si_sdr: compared.si_sdr.decibels() })
    }
}

/// Compares the original with what comes back, which is later and in other pieces.
struct Compared {
    waiting: AudioBuffer,
    si_sdr: SiSdr,
}

impl Compared {
    fn new(empty: AudioBuffer) -> Self {
        Self { waiting: empty, si_sdr: SiSdr::default() }
    }

    fn n_waiting(&self) -> usize {
        self.waiting.n_samples()
    }

    fn original(&mut self, piece: &AudioBuffer) -> Result<()> {
        Ok(self.waiting.append(piece)?)
    }

    fn decoded(&mut self, piece: AudioBuffer) -> Result<()> {
        let n = piece.n_samples().min(self.n_waiting());
        let (original, decoded) = (self.waiting.slice(0..n), piece.slice(0..n));
        for (original, decoded) in original.channels().zip(decoded.channels()) {
            self.si_sdr.push(original, decoded)?;
        }
        self.waiting = self.waiting.slice(n..self.n_waiting());
        Ok(())
    }
}

/// Counts what a token file would take.
#[derive(Debug, Default)]
struct CountingSink {
    n_bytes: u64,
}

impl Write for CountingSink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.n_bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
