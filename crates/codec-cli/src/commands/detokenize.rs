//! `codec detokenize`: token files to audio.

use super::{Outcome, for_each, is_there, skip};
use crate::audio_sink::{AudioArgs, AudioSink, Trim};
use crate::inputs::{self, Job, Kinds, Place};
use crate::model::{Model, ModelArgs};
use crate::report::{Reported, Reporter};
use crate::tokens::open;
use crate::{Global, interrupt};
use anyhow::{Context, Result, anyhow, bail};
use codec_io::tokens::{self, TokenError, TokenHeader, TokenReader, WeightsHash};
use codec_models::{Purpose, card_of_weights};
use serde::Serialize;
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Turn token files back into audio (WAV).
///
/// The model is the one that the file names; the weights must be those that made the codes.
/// A file that was cut off gives all that is whole in it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec detokenize speech.nac                    writes speech.wav
  codec detokenize speech.nac -o low.wav -n 2    only the two coarsest codebooks
  codec detokenize codes/ -o audio/ --rate 48000 a tree of files, resumable
  codec detokenize - -o - < live.nac | aplay     a stream")]
pub(crate) struct Args {
    /// Token files, folders, or `-`.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Output: a file, `-` for stdout, or a folder for several results [default: beside the input].
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    audio: AudioArgs,
    /// Decode with the first N codebooks only.
    #[arg(short = 'n', long, value_name = "N")]
    codebooks: Option<usize>,
    /// Decode even if other weights made the codes.
    #[arg(long)]
    allow_other_weights: bool,
    /// Go on behind damaged packets; the audio is then shorter by what is lost.
    #[arg(long)]
    skip_damaged: bool,
    /// Write outputs anew that are already there.
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Serialize)]
struct Done {
    model: String,
    n_codebooks: usize,
    n_samples: u64,
    seconds: f64,
    complete: bool,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let kinds = Kinds { takes: &[tokens::EXTENSION], makes: "wav" };
    let jobs = inputs::pair(&args.inputs, args.output.as_deref(), kinds)?;
    let reporter = Reporter::new(global, jobs.iter().any(|job| job.output == Place::Std));
    let models = Models::of(&jobs, args);
    Ok(for_each(&jobs, &reporter, |job| {
        if !args.force && is_there(&job.output) {
            return skip::<Done>(job, &reporter);
        }
        let done = detokenize(job, args, &models, &reporter)?;
        let complete = done.complete;
        let (input, output) = (&job.input, &job.output);
        let text = format!("{input} -> {output}: {:.2} s, {} codebooks", done.seconds, done.n_codebooks);
        reporter.result(|| text, &Outcome::done(job, done))?;
        if complete { Ok(()) } else { Err(Reported(format!("{input}: some of the audio is lost")).into()) }
    }))
}

fn detokenize(job: &Job, args: &Args, models: &Models<'_>, reporter: &Reporter) -> Result<Done> {
    let name = job.input.to_string();
    let mut reader = TokenReader::new(open(&job.input)?).with_context(|| name.clone())?;
    let header = reader.header().clone();
    let model = models.get(&header.model)?;
    if header.weights == WeightsHash::UNKNOWN {
        reporter.note(&format!(
            "{name}: does not say which weights made its codes; {} decodes them",
            header.model
        ));
    } else if !args.allow_other_weights {
        let checked = header.check_weights(&model.sha256);
        checked.with_context(|| help_with_weights(&header)).with_context(|| name.clone())?;
    }
    let codec = model.for_channels(header.audio.channels).with_context(|| name.clone())?;
    let n_streams = model.n_streams(codec.as_ref());
    let n_codebooks = args.codebooks.map_or(header.layout.n_codebooks(), |n| n.saturating_mul(n_streams));
    header.layout.check_n_codebooks(n_codebooks).with_context(|| format!("{name}: --codebooks"))?;
    let n_samples = header.totals.map(|totals| totals.n_samples);
    let trim = Trim::new(header.start_trim, n_samples);
    let bar = reporter.bar(&name, n_samples);

    let info = codec.info();
    let mut decoder = codec.decoder()?;
    let mut sink = AudioSink::create(&job.output, info.audio, trim, args.audio)?;
    // Without totals in the header, how much of the last piece is audio shows only at the end.
    let mut held = None;
    let mut n_decoded = 0;
    let mut complete = true;
    loop {
        interrupt::check()?;
        match reader.next_packet() {
            Ok(None) => break,
            Ok(Some(codes)) => {
                let audio = decoder.push(&codes.truncated(n_codebooks)?).with_context(|| name.clone())?;
                if let Some(before) = held.replace(audio) {
                    n_decoded += before.n_samples() as u64;
                    bar.set_position(n_decoded);
                    sink.push(before)?;
                }
            }
            Err(error @ TokenError::Truncated { .. }) => {
                reporter.note(&format!("{name}: {error}; what is whole is decoded"));
                complete = false;
            }
            Err(error @ TokenError::Damaged(_)) if args.skip_damaged => {
                reporter.note(&format!("{name}: {error}"));
                complete = false;
            }
            Err(error @ (TokenError::Index { .. } | TokenError::Totals { .. })) => {
                reporter.note(&format!("{name}: {error}; no code is lost"));
            }
            Err(error @ TokenError::Damaged(_)) => {
                return Err(error).context("--skip-damaged leaves out what is lost").context(name);
            }
            Err(error) => return Err(error).context(name),
        }
    }
    let mut rest = held.map_or_else(|| codec_core::AudioBuffer::empty(info.audio), Ok)?;
    rest.append(&decoder.finish().with_context(|| name.clone())?)?;
    if let (None, Some(totals)) = (n_samples, reader.totals()) {
        let left = (header.start_trim + totals.n_samples).saturating_sub(n_decoded);
        rest.truncate(usize::try_from(left).unwrap_or(usize::MAX));
    }
    if !complete && reader.n_packets_read() == 0 {
        bail!("{name}: no packet is whole");
    }
    sink.push(rest)?;
    bar.finish_and_clear();
    let n_samples = sink.finish(reporter)?;
    let rate = args.audio.rate_or(info.audio.sample_rate);
    let seconds = n_samples as f64 / f64::from(rate);
    Ok(Done { model: info.model.clone(), n_codebooks, n_samples, seconds, complete })
}

/// What can be done about codes that the weights at hand did not make.
fn help_with_weights(header: &TokenHeader) -> String {
    let made = card_of_weights(&header.weights)
        .map(|card| format!("{0} made the codes, --model {0} decodes them; ", card.name));
    // A hash is that of a file, and several can have the same weights.
    format!(
        "{}codes mean nothing to other weights, unless they are the same ones in another file, as those of dac_44khz \
         and dac_44khz-original are; --allow-other-weights decodes all the same",
        made.unwrap_or_default()
    )
}

/// The models that the files name, each loaded once, and before the files share the threads: one that waits for
/// others in a loading may begin with another file, which would wait for that loading.
struct Models<'a> {
    args: &'a ModelArgs,
    loaded: HashMap<String, Result<Arc<Model>>>,
}

impl<'a> Models<'a> {
    fn of(jobs: &[Job], args: &'a Args) -> Self {
        let mut models = Self { args: &args.model, loaded: HashMap::new() };
        for job in jobs.iter().filter(|job| args.force || !is_there(&job.output)) {
            // A pipe is read once. What cannot be read says so when its turn comes.
            let is_file = matches!(&job.input, Place::File(path) if path.is_file());
            if !is_file || interrupt::requested() {
                continue;
            }
            let Ok(reader) = open(&job.input).and_then(|file| Ok(TokenReader::new(file)?)) else { continue };
            let name = &reader.header().model;
            if !models.loaded.contains_key(name) {
                models.loaded.insert(name.clone(), models.load(name));
            }
        }
        models
    }

    fn get(&self, name: &str) -> Result<Arc<Model>> {
        match self.loaded.get(name) {
            Some(Ok(model)) => Ok(Arc::clone(model)),
            Some(Err(error)) => Err(anyhow!("{error:#}")),
            None => self.load(name),
        }
    }

    fn load(&self, name: &str) -> Result<Arc<Model>> {
        Ok(Arc::new(self.args.load_or(name, Purpose::Decoding)?))
    }
}
