//! `codec tokenize`: audio to token files.

use super::{Outcome, for_each, is_there, skip};
use crate::inputs::{self, AUDIO_EXTENSIONS, Job, Kinds, Place};
use crate::model::{ChannelArgs, Model, ModelArgs, RateArgs};
use crate::report::Reporter;
use crate::source::Source;
use crate::tokens::{TokenSink, open};
use crate::{Global, interrupt};
use anyhow::{Context, Result, bail};
use codec_core::{Codec, Codes};
use codec_io::tokens::{EXTENSION, TokenHeader, TokenReader, Totals};
use codec_models::Purpose;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Turn audio into token files.
///
/// Takes files of any audio format, folders (searched recursively), or `-` for stdin.
/// A finished output is left alone, so that a run that was interrupted can be run again; one that another model
/// or another number of codebooks made counts as failed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec tokenize speech.mp3                          writes speech.nac
  codec tokenize speech.wav -o out.nac --bitrate 6   6 kbit/s or the next below
  codec tokenize corpus/ -o codes/ -m encodec_24khz  a tree of files, resumable
  codec tokenize song.flac -m dac_44khz --each-channel
  arecord -t wav | codec tokenize - -o - > live.nac  a stream")]
pub(crate) struct Args {
    /// Audio files, folders, or `-`.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Output: a file, `-` for stdout, or a folder for several results [default: beside the input].
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    rate: RateArgs,
    #[command(flatten)]
    channels: ChannelArgs,
    /// Write outputs anew that are already there.
    #[arg(short, long)]
    force: bool,
    /// A tag for the token file; may be given several times.
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
}

#[derive(Debug, Serialize)]
struct Done {
    model: String,
    n_codebooks: usize,
    n_frames: u64,
    seconds: f64,
    /// Nominal: the packed codes alone.
    kbps: f64,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let kinds = Kinds { takes: &AUDIO_EXTENSIONS, makes: EXTENSION };
    let jobs = inputs::pair(&args.inputs, args.output.as_deref(), kinds)?;
    let reporter = Reporter::new(global, jobs.iter().any(|job| job.output == Place::Std));
    let model = args.model.load(Purpose::Encoding)?;
    model.expect_encoder()?;
    Ok(for_each(&jobs, &reporter, |job| {
        if !args.force && is_there(&job.output) {
            check_same(job, args, &model)?;
            return skip::<Done>(job, &reporter);
        }
        let done = tokenize(job, args, &model, &reporter)?;
        let text = format!(
            "{} -> {}: {:.2} s, {} frames, {} codebooks, {:.2} kbit/s",
            job.input, job.output, done.seconds, done.n_frames, done.n_codebooks, done.kbps
        );
        reporter.result(|| text, &Outcome::done(job, done))
    }))
}

/// Fails unless the output that is there is what was asked for, as far as its header tells.
fn check_same(job: &Job, args: &Args, model: &Model) -> Result<()> {
    let output = &job.output;
    let header = TokenReader::new(open(output)?).map(|reader| reader.header().clone());
    let header = header.with_context(|| format!("{output}: is there already, --force writes it anew"))?;
    let wanted = model.codec.info();
    let (weights, had) = (args.model.weights.name(), header.weight_numbers());
    // With the same weights it is the same model, whatever its name: a card and a path give it different ones.
    let is_same = header.check_weights(&model.sha256).is_ok()
        && header.family == wanted.family
        && (header.audio.sample_rate, header.hop_length) == (wanted.audio.sample_rate, wanted.hop_length);
    let difference = if !is_same && header.model != wanted.model {
        Some(format!("{} made it, not {}", header.model, wanted.model))
    } else if !is_same {
        Some(format!("other weights of {}, or the same in another file, made it", header.model))
    } else if had != weights {
        Some(format!("{had} weights made it, not {weights}"))
    } else {
        let channels = args.channels.spec(model, header.source).channels;
        let codec = model.for_channels(channels)?;
        let n_codebooks = args.rate.n_codebooks(codec.info(), model.n_streams(codec.as_ref()))?;
        let has = header.layout.n_codebooks();
        (has != n_codebooks).then(|| format!("it has {has} codebooks, not {n_codebooks}"))
    };
    match difference {
        Some(difference) => bail!("{output}: is there already, but {difference}; --force writes it anew"),
        None => Ok(()),
    }
}

fn tokenize(job: &Job, args: &Args, model: &Model, reporter: &Reporter) -> Result<Done> {
    let mut source = Source::open(&job.input, |from| args.channels.spec(model, from), reporter)?;
    let codec = model.for_channels(source.to().channels)?;
    let info = codec.info();
    let n_codebooks = args.rate.n_codebooks(info, model.n_streams(codec.as_ref()))?;
    let mut header = TokenHeader::new(info, n_codebooks, model.sha256, source.from())?;
    for (key, value) in &args.tags {
        header = header.with_tag(key, value);
    }
    header = args.model.weights.tag(header);
    let mut sink = TokenSink::create(&job.output, header)?;
    let mut n_frames = 0;
    let n_samples = encode(codec.as_ref(), n_codebooks, &mut source, |codes| {
        n_frames += codes.n_frames() as u64;
        sink.push(codes)
    })
    .with_context(|| job.input.to_string())?;
    let totals = Totals { n_samples, source_samples: source.n_read() };
    source.close(reporter);
    if n_samples == 0 {
        bail!("{}: holds no samples", job.input);
    }
    interrupt::check()?;
    sink.finish(totals)?;
    Ok(Done {
        model: info.model.clone(),
        n_codebooks,
        n_frames,
        seconds: n_samples as f64 / f64::from(info.audio.sample_rate),
        kbps: info.bitrate(n_codebooks)?.to_f64() / 1000.0,
    })
}

/// Codes a whole source, piece by piece; returns the samples that went into the codec.
fn encode(
    codec: &dyn Codec,
    n_codebooks: usize,
    source: &mut Source,
    mut sink: impl FnMut(&Codes) -> Result<()>,
) -> Result<u64> {
    let mut encoder = codec.encoder(n_codebooks)?;
    let mut n_samples = 0;
    while let Some(piece) = source.read()? {
        n_samples += piece.n_samples() as u64;
        sink(&encoder.push(&piece)?)?;
    }
    sink(&encoder.finish()?)?;
    Ok(n_samples)
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a tag has the form KEY=VALUE")?;
    if key == TokenHeader::WEIGHTS_TAG {
        return Err(format!("`{key}` says what --weights was"));
    }
    Ok((key.to_owned(), value.to_owned()))
}
