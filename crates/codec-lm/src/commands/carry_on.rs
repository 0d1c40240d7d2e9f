//! `continue` and `sample`.

use super::models::{CodecArgs, LmArgs};
use super::prompt;
use crate::{Global, INTERRUPTED, is_stopping};
use anyhow::{Context, Result, bail};
use codec_core::{AudioBuffer, Codec, Codes, Decoder};
use codec_io::{WavFormat, WavWriter};
use codec_lm::LanguageModel;
use codec_lm::generate::{Generator, Options};
use codec_lm::sampling::{Sampler, Sampling};
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Stands for stdin and stdout.
const STD: &str = "-";
/// Frames that are decoded together while audio is streamed, and while it is not.
const FRAMES: [usize; 2] = [4, 50];
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
  codec-lm continue prompt.wav --lm runs/speech/model --codec my-codec --temperature 1,0.9,0.8")]
pub(crate) struct ContinueArgs {
    /// Audio of any format, rate and number of channels; - for stdin.
    prompt: PathBuf,
    /// Seconds at the prompt's end that are listened to.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
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
    /// Let audio out while it is being made.
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
    /// How far to move away from what comes without class or prompt; 1 for not at all. It doubles the time.
    #[arg(long, default_value_t = 1.0)]
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

pub(crate) fn carry_on(args: &ContinueArgs, global: &Global) -> Result<ExitCode> {
    if !(args.prompt_seconds > 0.0 && args.prompt_seconds <= MAX_SECONDS) {
        bail!("--prompt-seconds {}: must be above 0 and at most {MAX_SECONDS}", args.prompt_seconds);
    }
    let prompt = Some(Prompt { path: &args.prompt, seconds: args.prompt_seconds, is_kept: args.with_prompt });
    make(&args.common, prompt, global)
}

pub(crate) fn sample(args: &SampleArgs, global: &Global) -> Result<ExitCode> {
    make(&args.common, None, global)
}

#[derive(Clone, Copy)]
struct Prompt<'a> {
    path: &'a Path,
    seconds: f64,
    is_kept: bool,
}

impl Common {
    fn options(&self, model: &dyn LanguageModel) -> Result<Options> {
        let n = self.temperature.len().max(self.top_k.len()).max(self.top_p.len());
        fn nth<T: Copy>(all: &[T], i: usize, otherwise: T) -> T {
            all.get(i).or(all.last()).copied().unwrap_or(otherwise)
        }
        let usual = Sampling::default();
        let setting = |i| Sampling {
            temperature: nth(&self.temperature, i, usual.temperature),
            top_k: nth(&self.top_k, i, usual.top_k),
            top_p: nth(&self.top_p, i, usual.top_p),
        };
        let class = self.class.as_ref().map(|name| {
            let found = model.classes().iter().position(|known| known == name);
            found.map(|idx| idx as u32).with_context(|| {
                let known = model.classes().join(", ");
                format!("--class {name}: the model knows {}", if known.is_empty() { "none" } else { &known })
            })
        });
        Ok(Options {
            sampler: Sampler::new((0..n).map(setting).collect(), self.seed)?,
            class: class.transpose()?,
            guidance: self.guidance,
            end: None,
        })
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

fn make(args: &Common, prompt: Option<Prompt<'_>>, global: &Global) -> Result<ExitCode> {
    if !(args.seconds > 0.0 && args.seconds <= MAX_SECONDS) {
        bail!("--seconds {}: must be above 0 and at most {MAX_SECONDS}", args.seconds);
    }
    let output = args.output(prompt.map(|prompt| prompt.path));
    if let Some(prompt) = prompt
        && is_same_file(prompt.path, &output)
    {
        bail!("{}: would be written over the prompt; name another place with -o", output.display());
    }
    let model = args.lm.load()?;
    let loaded = args.codec.load(model.codec(), global)?;
    let codec = loaded.codec.as_ref();
    let options = args.options(model.as_ref())?;
    let audio = prompt.map(|prompt| hear(&prompt, model.as_ref(), codec)).transpose()?;
    // From here on a listener waits.
    let began = Instant::now();
    let layout = model.arrangement().layout();
    let codes = match &audio {
        Some(audio) => codec.encode(audio, layout.n_codebooks())?,
        None => Codes::empty(Arc::clone(layout)),
    };
    let outcome = write(args, prompt, &output, model.as_ref(), codec, &codes, options, began, global)?;
    let to_stdout = output == Path::new(STD);
    let line = if global.json {
        serde_json::to_string(&outcome)?
    } else {
        let Outcome { seconds, prompt_seconds, seed, speed, .. } = &outcome;
        let after = prompt.map_or(String::new(), |_| format!(" after {prompt_seconds:.2} s"));
        let output = &outcome.output;
        format!("{output}: {seconds:.2} s{after}, seed {seed}, {speed:.1} times as fast as it plays")
    };
    match to_stdout {
        true => global.note(&line),
        false if global.quiet && !global.json => {}
        false => println!("{line}"),
    }
    Ok(if is_stopping() { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// The end of the prompt, as the codec takes it.
fn hear(prompt: &Prompt<'_>, model: &dyn LanguageModel, codec: &dyn Codec) -> Result<AudioBuffer> {
    let info = codec.info();
    let layout = model.arrangement().layout();
    let fits = info.layout.truncated(layout.n_codebooks()).is_ok_and(|own| own == **layout);
    if !fits {
        bail!("the language model reads {layout}, the codec {} writes {}", info.model, info.layout);
    }
    let block_len = info.hop_length as usize * info.layout.block_frames() as usize;
    prompt::read(prompt.path, info.audio, prompt.seconds, block_len)
}

/// Whether two paths lead to one file, by whatever names and links.
fn is_same_file(a: &Path, b: &Path) -> bool {
    a != Path::new(STD) && matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Takes the samples of a stream that lie behind the prompt and before the end.
struct Sink {
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
            self.writer.write(&audio.slice(start..start + n))?;
            self.first.get_or_insert_with(Instant::now);
        }
        Ok(())
    }
}

#[expect(clippy::too_many_arguments, reason = "one caller hands on what it has found out")]
fn write(
    args: &Common,
    prompt: Option<Prompt<'_>>,
    output: &Path,
    model: &dyn LanguageModel,
    codec: &dyn Codec,
    codes: &Codes,
    options: Options,
    began: Instant,
    global: &Global,
) -> Result<Outcome> {
    let info = codec.info();
    let (rate, hop) = (f64::from(info.audio.sample_rate), info.hop_length as usize);
    let n_wanted = (args.seconds * rate).round() as usize;
    let n_frames = n_wanted.div_ceil(hop);
    let (to_stdout, n_prompt) = (output == Path::new(STD), codes.n_frames() * hop);
    let name = || output.display().to_string();
    let writer = if to_stdout {
        WavWriter::to_stream(Box::new(std::io::stdout()), info.audio, WavFormat::Pcm16)
    } else if args.stream {
        let file = File::create(output).with_context(name)?;
        WavWriter::to_stream(Box::new(file), info.audio, WavFormat::Pcm16)
    } else {
        WavWriter::create(output, info.audio, WavFormat::Pcm16)
    };
    let keeps_prompt = prompt.is_some_and(|prompt| prompt.is_kept);
    let n_skip = if keeps_prompt { 0 } else { n_prompt };
    let n_left = n_wanted + n_prompt - n_skip;
    let mut sink = Sink { writer: writer.with_context(name)?, n_skip, n_left, first: None };
    let bar = global.bar("frames", n_frames as u64);

    let mut decoder: Box<dyn Decoder + '_> = codec.decoder()?;
    if !codes.is_empty() {
        sink.push(&decoder.push(codes)?)?;
    }
    let mut generator = Generator::new(model, codes, options)?;
    let at_once = if args.stream { FRAMES[0] } else { FRAMES[1] };
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
    // What is not streamed appears whole or not at all.
    if is_stopping() && !args.stream && !to_stdout {
        bail!("interrupted");
    }
    sink.push(&decoder.finish()?)?;
    bar.finish_and_clear();
    let took = began.elapsed().as_secs_f64();
    let first = sink.first.map_or(took, |first| (first - began).as_secs_f64());
    let n_out = sink.writer.finish().with_context(name)?.n_samples as f64;
    let seconds = n_out / rate - if keeps_prompt { n_prompt as f64 / rate } else { 0.0 };
    Ok(Outcome {
        prompt: prompt.map(|prompt| prompt.path.display().to_string()),
        output: output.display().to_string(),
        prompt_seconds: n_prompt as f64 / rate,
        seconds,
        seed: args.seed,
        first_audio_seconds: first,
        speed: seconds / took.max(1e-9),
    })
}
