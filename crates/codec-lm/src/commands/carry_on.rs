//! `continue` and `sample`.

use super::models::{CodecArgs, LmArgs};
use super::prompt;
use crate::report::Reporter;
use crate::{INTERRUPTED, is_stopping, watch_for_stop};
use anyhow::{Context, Result, bail};
use codec_core::{AudioBuffer, Codec, Codes, Decoder};
use codec_io::atomic::remove_stale;
use codec_io::{AudioReader, WavFormat, WavWriter};
use codec_lm::LanguageModel;
use codec_lm::generate::{Generator, Options};
use codec_lm::sampling::{Sampler, Sampling};
use codec_models::Purpose;
use serde::Serialize;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Stands for stdin and stdout.
const STD: &str = "-";
/// Frames that are decoded together while audio is streamed, and while it is not.
const FRAMES: [usize; 2] = [4, 50];
/// Shortest prompt and output.
const MIN_SECONDS: f64 = 0.001;
/// Longest prompt and output: a day.
const MAX_SECONDS: f64 = 86_400.0;

/// Carry on from a recording.
///
/// The same prompt, models, settings and seed give the same audio on every machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec-lm continue prompt.wav                       writes prompt-continued.wav
  codec-lm continue prompt.mp3 -o out.wav --seconds 10 --seed 7
  codec-lm continue prompt.flac --stream | aplay     plays while it is made
  codec-lm continue prompt.wav --stream -o out.wav   out.wav can be played while it grows
  codec-lm continue prompt.wav --lm runs/speech/model --codec my-codec --temperature 1,0.9,0.8")]
pub(crate) struct ContinueArgs {
    /// Audio of any format, rate and number of channels; - for stdin.
    prompt: PathBuf,
    /// Seconds at the prompt's end that are listened to.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, allow_negative_numbers = true)]
    prompt_seconds: f64,
    /// Write the prompt, as the codec hears it, in front.
    #[arg(long)]
    with_prompt: bool,
    #[command(flatten)]
    common: Common,
}

/// Make audio out of nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec-lm sample -o out.wav --seconds 10 --seed 7
  codec-lm sample --class music --guidance 3 --lm runs/all/model --codec my-codec")]
pub(crate) struct SampleArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// WAV file to write; - for stdout [default: beside the prompt, or stdout with --stream].
    #[arg(short, long, value_name = "OUT.wav")]
    output: Option<PathBuf>,
    /// Seconds to make.
    #[arg(short, long, default_value_t = 5.0, allow_negative_numbers = true)]
    seconds: f64,
    /// Let audio out while it is being made: to stdout, or into the file of -o.
    ///
    /// Without it a file appears when it is whole. With it the file stands there from the start, in the
    /// place of what was there, and others can read it while it grows; its header says how long it is only
    /// when it is finished, which Ctrl-C does early. The header of a stream never says it.
    #[arg(long)]
    stream: bool,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Temperatures of the codebooks, coarse to fine; the last is that of all behind it. 0 takes the
    /// likeliest code.
    #[arg(short, long, value_name = "T,..", value_delimiter = ',', default_values_t = [0.95], allow_negative_numbers = true)]
    temperature: Vec<f64>,
    /// Likeliest codes to choose from, in the same way; 0 for all.
    #[arg(long, value_name = "K,..", value_delimiter = ',', default_values_t = [0])]
    top_k: Vec<usize>,
    /// Probability of the codes to choose from, in the same way.
    #[arg(long, value_name = "P,..", value_delimiter = ',', default_values_t = [1.0])]
    top_p: Vec<f64>,
    /// A class that the model was trained on.
    #[arg(long, value_name = "NAME")]
    class: Option<String>,
    /// How far to move away from what comes without class or prompt; 1 for not at all. It takes half as
    /// long again.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    guidance: f64,
    #[command(flatten)]
    lm: LmArgs,
    #[command(flatten)]
    codec: CodecArgs,
}

#[derive(Serialize)]
struct Outcome {
    prompt: Option<String>,
    output: String,
    prompt_seconds: f64,
    seconds: f64,
    seed: u64,
    /// From when the prompt has been read to the first samples.
    first_audio_seconds: f64,
    /// Seconds made per second.
    speed: f64,
}

pub(crate) fn carry_on(args: &ContinueArgs, reporter: Reporter) -> Result<ExitCode> {
    check_seconds("--prompt-seconds", args.prompt_seconds)?;
    let prompt = Some(Prompt { path: &args.prompt, seconds: args.prompt_seconds, is_kept: args.with_prompt });
    make(&args.common, prompt, reporter)
}

pub(crate) fn sample(args: &SampleArgs, reporter: Reporter) -> Result<ExitCode> {
    make(&args.common, None, reporter)
}

fn check_seconds(name: &str, seconds: f64) -> Result<()> {
    if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
        bail!("{name} {seconds}: must be {MIN_SECONDS} to {MAX_SECONDS}");
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Prompt<'a> {
    path: &'a Path,
    seconds: f64,
    is_kept: bool,
}

impl Common {
    /// What is asked for, as far as it does not depend on the model: without the class.
    fn options(&self, has_prompt: bool) -> Result<Options> {
        check_seconds("--seconds", self.seconds)?;
        let n = self.lists().map(|(_, n)| n).into_iter().max().unwrap_or(0);
        fn nth<T: Copy>(all: &[T], i: usize, otherwise: T) -> T {
            all.get(i).or(all.last()).copied().unwrap_or(otherwise)
        }
        let usual = Sampling::default();
        let setting = |i| Sampling {
            temperature: nth(&self.temperature, i, usual.temperature),
            top_k: nth(&self.top_k, i, usual.top_k),
            top_p: nth(&self.top_p, i, usual.top_p),
        };
        let sampler = Sampler::new((0..n).map(setting).collect(), self.seed)?;
        let options = Options { sampler, class: None, guidance: self.guidance, end: None };
        options.check()?;
        if options.is_guided() && !has_prompt && self.class.is_none() {
            bail!("--guidance {}: needs a --class to guide by", self.guidance);
        }
        Ok(options)
    }

    /// The lists with a value for each codebook, and how long they are.
    fn lists(&self) -> [(&'static str, usize); 3] {
        [
            ("--temperature", self.temperature.len()),
            ("--top-k", self.top_k.len()),
            ("--top-p", self.top_p.len()),
        ]
    }

    /// Refuses lists that are longer than the model has codebooks, and finds the class.
    fn fit(&self, options: Options, model: &dyn LanguageModel) -> Result<Options> {
        let n_codebooks = model.arrangement().layout().n_codebooks();
        for (name, n) in self.lists() {
            if n > n_codebooks {
                bail!("{name}: has {n} values, but the language model has {n_codebooks} codebooks");
            }
        }
        let class = self.class.as_ref().map(|name| {
            let known = || match model.classes() {
                [] => format!("--class {name}: the language model has no classes"),
                all => format!("--class {name}: the language model knows {}", all.join(", ")),
            };
            model.class_idx(name).with_context(known)
        });
        Ok(Options { class: class.transpose()?, ..options })
    }

    /// Where the audio goes; [`STD`] for stdout.
    fn output(&self, prompt: Option<&Path>) -> PathBuf {
        let beside = |prompt: &Path| {
            let stem = prompt.file_stem().map_or("prompt".into(), |stem| stem.to_string_lossy());
            prompt.with_file_name(format!("{stem}-continued.wav"))
        };
        match (&self.output, prompt.filter(|prompt| *prompt != Path::new(STD))) {
            (Some(output), _) => output.clone(),
            (None, _) if self.stream => PathBuf::from(STD),
            (None, Some(prompt)) => beside(prompt),
            (None, None) => PathBuf::from("sample.wav"),
        }
    }
}

/// Refuses a place where no audio can go, before anything is loaded.
fn check_output(output: &Path, prompt: Option<&Path>) -> Result<()> {
    let name = output.display();
    if output == Path::new(STD) {
        if std::io::stdout().is_terminal() {
            bail!("stdout is a terminal, which cannot play audio: name a file with -o, or a player behind |");
        }
        return Ok(());
    }
    if output.is_dir() {
        bail!("{name}: is a folder; name a file in it");
    }
    let folder = folder_of(output);
    if !folder.is_dir() {
        bail!("{name}: there is no folder {}", folder.display());
    }
    if prompt.is_some_and(|prompt| is_same_file(prompt, output)) {
        bail!("{name}: would be written over the prompt; name another place with -o");
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether two paths lead to one file, by whatever names and links.
fn is_same_file(a: &Path, b: &Path) -> bool {
    a != Path::new(STD) && matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn make(args: &Common, prompt: Option<Prompt<'_>>, reporter: Reporter) -> Result<ExitCode> {
    let options = args.options(prompt.is_some())?;
    let output = args.output(prompt.map(|prompt| prompt.path));
    check_output(&output, prompt.map(|prompt| prompt.path))?;
    let reporter = reporter.beside_audio(output == Path::new(STD));
    let reader = prompt.map(|prompt| prompt::open(prompt.path)).transpose()?;
    let model = args.lm.load()?;
    let options = args.fit(options, model.as_ref())?;
    let purpose = if prompt.is_some() { Purpose::Both } else { Purpose::Decoding };
    let loaded = args.codec.load(model.codec(), purpose, reporter)?;
    let (model, codec) = (model.as_ref(), loaded.codec.as_ref());
    check_codec(model, codec)?;

    watch_for_stop();
    let mut audio = None;
    if let (Some(prompt), Some(reader)) = (prompt, reader) {
        audio = Some(hear(prompt, reader, codec, reporter)?);
    }
    // What killed runs left there.
    remove_stale(folder_of(&output));
    let job = Job { args, prompt, output: &output, model, codec };
    let outcome = job.run(audio.as_ref(), options, reporter)?;
    reporter.result(|| outcome.text(), &outcome)?;
    Ok(if is_stopping() { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// Refuses a codec whose codes the language model does not read.
fn check_codec(model: &dyn LanguageModel, codec: &dyn Codec) -> Result<()> {
    let (info, layout) = (codec.info(), model.arrangement().layout());
    if !info.layout.truncated(layout.n_codebooks()).is_ok_and(|own| own == **layout) {
        bail!("the language model reads {layout}, the codec {} writes {}", info.model, info.layout);
    }
    Ok(())
}

/// The end of the prompt, as the codec takes it.
fn hear(
    prompt: Prompt<'_>,
    mut reader: AudioReader,
    codec: &dyn Codec,
    reporter: Reporter,
) -> Result<AudioBuffer> {
    let info = codec.info();
    let block_len = info.hop_length as usize * info.layout.block_frames() as usize;
    let audio = prompt::read(&mut reader, prompt.path, info.audio, prompt.seconds, block_len)?;
    let name = prompt.path.display();
    if reader.is_truncated() {
        reporter.note(&format!("{name}: the file is cut off; what is there was read"));
    }
    let n_corrupt = reader.n_corrupt_packets();
    if n_corrupt > 0 {
        reporter.note(&format!("{name}: {n_corrupt} damaged packet(s) were left out"));
    }
    Ok(audio)
}

/// What is made, of what, and where it goes.
struct Job<'a> {
    args: &'a Common,
    prompt: Option<Prompt<'a>>,
    output: &'a Path,
    model: &'a dyn LanguageModel,
    codec: &'a dyn Codec,
}

impl Job<'_> {
    /// Writes what follows the end of a prompt, `audio`.
    fn run(&self, audio: Option<&AudioBuffer>, options: Options, reporter: Reporter) -> Result<Outcome> {
        let info = self.codec.info();
        let (rate, hop) = (f64::from(info.audio.sample_rate), info.hop_length as usize);
        let n_wanted = (self.args.seconds * rate).round() as usize;
        let name = self.output.display().to_string();
        let writer = self.open().with_context(|| name.clone())?;

        // From here on a listener waits.
        let began = Instant::now();
        let layout = self.model.arrangement().layout();
        let codes = match audio {
            Some(audio) => {
                let of = || self.prompt.map_or_else(String::new, |prompt| prompt.path.display().to_string());
                self.codec.encode(audio, layout.n_codebooks()).with_context(of)?
            }
            None => Codes::empty(Arc::clone(layout)),
        };
        let keeps_prompt = self.prompt.is_some_and(|prompt| prompt.is_kept);
        let n_prompt = codes.n_frames() * hop;
        let n_skip = if keeps_prompt { 0 } else { n_prompt };
        let n_left = n_wanted + n_prompt - n_skip;
        let mut sink = Sink { name: name.clone(), writer, n_skip, n_left, first: None };
        self.generate(&codes, n_wanted.div_ceil(hop), options, &mut sink, reporter)?;
        // What is not streamed appears whole or not at all.
        if is_stopping() && !self.is_streamed() {
            bail!("interrupted");
        }
        let took = began.elapsed().as_secs_f64();
        let first = sink.first.map_or(took, |first| (first - began).as_secs_f64());
        let n_out = sink.writer.finish().with_context(|| name.clone())?.n_samples as f64;
        let seconds = n_out / rate - if keeps_prompt { n_prompt as f64 / rate } else { 0.0 };
        Ok(Outcome {
            prompt: self.prompt.map(|prompt| prompt.path.display().to_string()),
            output: name,
            prompt_seconds: n_prompt as f64 / rate,
            seconds,
            seed: self.args.seed,
            first_audio_seconds: first,
            speed: seconds / took.max(1e-9),
        })
    }

    /// Whether others get to hear the audio while it is made.
    fn is_streamed(&self) -> bool {
        self.args.stream || self.output == Path::new(STD)
    }

    fn open(&self) -> codec_io::Result<WavWriter> {
        let (spec, format) = (self.codec.info().audio, WavFormat::Pcm16);
        if self.output == Path::new(STD) {
            WavWriter::to_stream(Box::new(std::io::stdout()), spec, format)
        } else if self.args.stream {
            WavWriter::create_growing(self.output, spec, format)
        } else {
            WavWriter::create(self.output, spec, format)
        }
    }

    /// Decodes the codes of a prompt and `n_frames` frames that carry on from them, or fewer after Ctrl-C.
    fn generate(
        &self,
        codes: &Codes,
        n_frames: usize,
        options: Options,
        sink: &mut Sink,
        reporter: Reporter,
    ) -> Result<()> {
        let bar = reporter.bar("frames", n_frames as u64);
        let mut decoder: Box<dyn Decoder + '_> = self.codec.decoder()?;
        if !codes.is_empty() {
            sink.push(&decoder.push(codes)?)?;
        }
        let mut generator = Generator::new(self.model, codes, options)?;
        let at_once = if self.args.stream { FRAMES[0] } else { FRAMES[1] };
        let mut n_made = 0;
        while n_made < n_frames && !is_stopping() {
            let mut frames = generator.next_frames()?;
            while frames.n_frames() < at_once.min(n_frames - n_made) {
                frames.append(&generator.next_frames()?)?;
            }
            n_made += frames.n_frames();
            sink.push(&decoder.push(&frames)?)?;
            bar.set_position(n_made as u64);
        }
        sink.push(&decoder.finish()?)?;
        bar.finish_and_clear();
        Ok(())
    }
}

/// Takes the samples of a stream that lie behind the prompt and before the end.
struct Sink {
    name: String,
    writer: WavWriter,
    n_skip: usize,
    n_left: usize,
    first: Option<Instant>,
}

impl Sink {
    fn push(&mut self, audio: &AudioBuffer) -> Result<()> {
        let start = self.n_skip.min(audio.n_samples());
        let n = (audio.n_samples() - start).min(self.n_left);
        self.n_skip -= start;
        self.n_left -= n;
        if n > 0 {
            self.writer.write(&audio.slice(start..start + n)).with_context(|| self.name.clone())?;
            self.first.get_or_insert_with(Instant::now);
        }
        Ok(())
    }
}

impl Outcome {
    /// A line for people.
    fn text(&self) -> String {
        let Self { output, seconds, prompt_seconds, seed, speed, .. } = self;
        let after = self.prompt.as_ref().map_or(String::new(), |_| format!(" after {prompt_seconds:.2} s"));
        format!("{output}: {seconds:.2} s{after}, seed {seed}, {speed:.1} times as fast as it plays")
    }
}
