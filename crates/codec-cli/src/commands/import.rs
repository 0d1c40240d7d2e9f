//! `codec import`: the files of other programs to token files.

mod clips;

use self::clips::Clips;
use super::{Outcome, for_each, is_there, skip};
use crate::device::DeviceKind;
use crate::inputs::{self, Job, Kinds, Place};
use crate::model::{ModelArgs, WeightKind};
use crate::report::Reporter;
use crate::tokens::open;
use crate::{Global, interrupt};
use anyhow::{Context, Result, bail};
use codec_core::{AudioSpec, CodecInfo, Codes, Delays};
use codec_io::exchange::dac::DacFile;
use codec_io::exchange::ecdc::EcdcReader;
use codec_io::exchange::{self, TokenArrays};
use codec_io::tokens::{EXTENSION, TokenHeader, Totals, WeightsHash};
use codec_models::Purpose;
use serde::Serialize;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Turn files of other programs into token files, without decoding them.
///
/// Reads `.ecdc` (EnCodec without its language model), `.dac` (Descript audio codec), `.npy` (an array of
/// codes, whose model --model names), and the `.npz` and `.safetensors` of `codec export`, told apart by their
/// content. Pickles are parsed and never run.
/// docs/exchange.md tells what becomes of each field.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec import song.ecdc                       writes song.nac
  codec import old/ -o codes/                  a tree of files
  codec import song.dac -m dac_44khz --split   a file per window: song/00000.nac and on
  codec import codes.npy -m neucodec           codes of one clip, of a codec that only decodes here
  codec import codes.npy -m mimi --channels 2  what --each-channel made, exported as npy
  codec import speech.npz                      the token file that was exported")]
pub(crate) struct Args {
    /// Files, folders, or `-`.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Output: a file, `-` for stdout, or a folder for several results [default: beside the input].
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// The model that made the codes: the name of a card, or the path of a checkpoint [default: the one
    /// that an .ecdc file names, or that has as many codebooks as a .dac file].
    #[arg(short, long, value_name = "NAME|PATH")]
    model: Option<String>,
    /// Channels that were coded each by itself, for .npy files: row k * N + c is codebook k of channel c
    /// [default: as many as make the rows all codebooks of the model].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    channels: Option<u16>,
    /// Write what is decoded apart, the windows of a .dac file, to files of its own. The output is then a folder,
    /// which holds 00000.nac and on; an ending .nac of its name is left out.
    #[arg(long)]
    split: bool,
    /// Write outputs anew that are already there.
    #[arg(short, long)]
    force: bool,
}

/// Endings that a folder search takes.
const TAKES: [&str; 5] = ["ecdc", "dac", "npy", "npz", "safetensors"];
/// The family of which a .dac file holds codes.
const DAC: &str = "dac";
/// The head of a NumPy file has some hundred bytes.
const HEAD_BYTES: u64 = 1 << 14;

#[derive(Debug, Serialize)]
struct Done {
    model: String,
    n_codebooks: usize,
    n_frames: u64,
    n_samples: u64,
    /// Token files that were written.
    n_files: usize,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let jobs = if args.split { folders(args)? } else { files(args)? };
    let reporter = Reporter::new(global, jobs.iter().any(|job| job.output == Place::Std));
    Ok(for_each(&jobs, &reporter, |job| {
        if !args.split && !args.force && is_there(&job.output) {
            return skip::<Done>(job, &reporter);
        }
        let (input, output) = (&job.input, &job.output);
        let Some(done) = import(job, args, &reporter).with_context(|| input.to_string())? else {
            return skip::<Done>(job, &reporter);
        };
        let files = match (args.split, done.n_files) {
            (false, _) => String::new(),
            (true, 1) => ", 1 file".to_owned(),
            (true, n_files) => format!(", {n_files} files"),
        };
        let text = format!(
            "{input} -> {output}: {}, {} frames, {} codebooks{files}",
            done.model, done.n_frames, done.n_codebooks
        );
        reporter.result(|| text, &Outcome::done(job, done))
    }))
}

/// The inputs, each with its token file.
fn files(args: &Args) -> Result<Vec<Job>> {
    inputs::pair(&args.inputs, args.output.as_deref(), Kinds { takes: &TAKES, makes: EXTENSION })
}

/// The inputs, each with the folder of its token files.
fn folders(args: &Args) -> Result<Vec<Job>> {
    let output = args.output.as_deref().map(without_ending);
    let mut jobs = inputs::pair(&args.inputs, output.as_deref(), Kinds { takes: &TAKES, makes: "" })?;
    if let ([input], [job], Some(folder)) = (args.inputs.as_slice(), jobs.as_mut_slice(), output)
        && !input.is_dir()
        && job.output != Place::Std
    {
        // Whether it is there or not, so that the same command again means the same folder.
        job.output = Place::File(folder);
    }
    if jobs.iter().any(|job| job.output == Place::Std) {
        bail!("--split writes files, not to stdout; -o names their folder");
    }
    Ok(jobs)
}

/// The name of a folder for what would be one token file of that name.
fn without_ending(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|e| e == EXTENSION) { path.with_extension("") } else { path.to_owned() }
}

/// `None` when the result is there already.
fn import(job: &Job, args: &Args, reporter: &Reporter) -> Result<Option<Done>> {
    let mut source = open(&job.input)?;
    let mut head = Vec::new();
    // Enough of a NumPy file to say what it holds.
    source.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
    let whole = head.as_slice().chain(source);
    let is_numpy = head.first() == Some(&0x93);
    let is_array = is_numpy && !exchange::holds_objects(&head);
    if args.channels.is_some() && !is_array {
        bail!("--channels is for .npy files; this one says itself how many it has");
    }
    if is_numpy && !is_array {
        return import_dac(&DacFile::read(whole)?, job, args, reporter);
    }
    let Some(mut output) = Clips::open(job, 1, args)? else { return Ok(None) };
    let done = match head.as_slice() {
        _ if is_array => import_npy(exchange::read_npy(whole)?, job, &mut output, args, reporter)?,
        [b'E', b'C', b'D', b'C', ..] => import_ecdc(EcdcReader::new(whole)?, &mut output, args, reporter)?,
        [b'P', b'K', 3, 4, ..] => import_arrays(&exchange::read_npz(whole)?, &mut output, args)?,
        [_, _, _, _, _, _, _, _, b'{', ..] => {
            import_arrays(&exchange::read_safetensors(whole)?, &mut output, args)?
        }
        _ => bail!("neither an .ecdc nor a .dac nor an .npy, .npz or .safetensors file"),
    };
    output.finish()?;
    Ok(Some(done))
}

/// Writes the token file that was exported.
fn import_arrays(arrays: &TokenArrays, output: &mut Clips<'_>, args: &Args) -> Result<Done> {
    let TokenArrays { header, totals, codes } = arrays;
    if let Some(name) = args.model.as_deref().filter(|name| *name != header.model) {
        bail!("the file says itself that {} made its codes, not {name}", header.model);
    }
    let mut sink = output.sink(header.clone())?;
    sink.push(codes)?;
    sink.finish(*totals)?;
    Ok(Done {
        model: header.model.clone(),
        n_codebooks: codes.n_codebooks(),
        n_frames: codes.n_frames() as u64,
        n_samples: totals.n_samples,
        n_files: 1,
    })
}

fn import_npy(
    rows: Vec<Vec<u32>>,
    job: &Job,
    output: &mut Clips<'_>,
    args: &Args,
    reporter: &Reporter,
) -> Result<Done> {
    let Some(name) = args.model.as_deref() else {
        bail!("the file does not say which model made its codes; --model does");
    };
    let (info, weights) = identify(args.model.as_deref(), name, None, reporter)?;
    if info.layout.scale_frames().is_some() {
        bail!("{} has a factor for each segment beside its codes, and the file has none", info.model);
    }
    let n_codebooks = rows.len();
    let info = of_channels(info, n_codebooks, job, args, reporter)?;
    let layout = info.layout.truncated(n_codebooks)?;
    if layout.codebooks().windows(2).any(|pair| pair[0].stride != pair[1].stride) {
        bail!(
            "{} has codebooks of several rates, which are no array; .npz and .safetensors files hold them",
            info.model
        );
    }
    let codes = Codes::new(layout, rows)?;
    let n_frames = codes.n_frames() as u64;
    let n_samples = n_frames * u64::from(info.hop_length);
    let header = TokenHeader::new(&info, n_codebooks, weights, info.audio)?;
    let mut sink = output.sink(header)?;
    sink.push(&codes)?;
    sink.finish(Totals { n_samples, source_samples: n_samples })?;
    Ok(Done { model: info.model, n_codebooks, n_frames, n_samples, n_files: 1 })
}

/// The codec of an array with so many rows, which may be those of several channels.
fn of_channels(
    info: CodecInfo,
    n_rows: usize,
    job: &Job,
    args: &Args,
    reporter: &Reporter,
) -> Result<CodecInfo> {
    let n_all = info.layout.n_codebooks();
    let derived = n_rows > n_all && n_rows.is_multiple_of(n_all) && info.audio.channels == 1;
    let n_channels = match args.channels {
        Some(n_channels) => n_channels,
        None if derived => {
            let n_channels = u16::try_from(n_rows / n_all)?;
            reporter.note(&format!(
                "{}: {n_rows} rows are taken for {n_channels} channels of {n_all} codebooks each",
                job.input
            ));
            n_channels
        }
        None => info.audio.channels,
    };
    if n_channels == info.audio.channels {
        if n_rows > n_all {
            bail!(
                "{n_rows} rows of codes, but {} has {n_all} codebooks; --channels tells several channels",
                info.model
            );
        }
        return Ok(info);
    }
    if !n_rows.is_multiple_of(n_channels.into()) {
        bail!("{n_rows} rows of codes are not those of {n_channels} channels");
    }
    Ok(info.per_channel(n_channels)?)
}

fn import_ecdc(
    mut reader: EcdcReader<impl Read>,
    output: &mut Clips<'_>,
    args: &Args,
    reporter: &Reporter,
) -> Result<Done> {
    let written = reader.info().clone();
    let (info, weights) = identify(args.model.as_deref(), &written.model, Some(&written), reporter)?;
    let same = info.audio == written.audio
        && info.hop_length == written.hop_length
        && info.segment == written.segment
        && written.layout.is_prefix_of(&info.layout);
    if !same {
        bail!("{} made its codes, which are not those of {}", written.model, info.model);
    }
    let n_samples = reader.n_samples();
    let header = TokenHeader::new(&info, reader.n_codebooks(), weights, info.audio)?;
    let mut sink = output.sink(header)?;
    let mut n_frames = 0;
    while let Some(codes) = reader.next_codes()? {
        n_frames += codes.n_frames() as u64;
        sink.push(&codes)?;
    }
    sink.finish(Totals { n_samples, source_samples: n_samples })?;
    Ok(Done { model: info.model, n_codebooks: reader.n_codebooks(), n_frames, n_samples, n_files: 1 })
}

fn import_dac(file: &DacFile, job: &Job, args: &Args, reporter: &Reporter) -> Result<Option<Done>> {
    let n_clips = file.n_clips();
    if n_clips == 0 {
        bail!("the file holds no codes");
    }
    if n_clips > 1 && !args.split {
        bail!("{n_clips} windows that are decoded apart; --split writes each to a file of its own");
    }
    let Some(mut output) = Clips::open(job, n_clips, args)? else { return Ok(None) };
    let likely = file.likely_model();
    let Some(name) = args.model.as_deref().or(likely) else {
        bail!(
            "{} codebooks are not those of a whole model, and the file does not name it; --model does",
            file.n_codebooks()
        );
    };
    if args.model.is_none() {
        reporter.note(&format!(
            "{}: {} codebooks are taken for those of {name} (--model names another)",
            job.input,
            file.n_codebooks()
        ));
    }
    let (model, weights) = identify(args.model.as_deref(), name, None, reporter)?;
    let is_dac = model.family == DAC
        && model.layout.codebooks().iter().all(|c| (c.size, c.stride) == (DacFile::CODEBOOK_SIZE, 1));
    if !is_dac {
        bail!("the Descript audio codec made its codes, which are not those of {}", model.model);
    }
    let clips = file.clips(&model)?;
    // Every channel was coded by itself.
    let info = model.per_channel(u16::try_from(file.n_channels())?)?;
    let source = AudioSpec { sample_rate: file.sample_rate, channels: info.audio.channels };
    let n_codebooks = file.n_codebooks() * file.n_channels();
    let loudness: Vec<String> = file.input_db.iter().map(f32::to_string).collect();
    for (clip_idx, clip) in clips.iter().enumerate() {
        interrupt::check()?;
        let mut header = TokenHeader::new(&info, n_codebooks, weights, source)?;
        header.start_trim = clip.start_trim;
        header = header.with_tag("input_db", loudness.join(","));
        let mut source_samples = file.original_length;
        if clips.len() > 1 {
            source_samples = header.to_source_samples(clip.n_samples);
            header = header.with_tag("window", clip_idx.to_string());
        }
        let mut sink = output.sink(header)?;
        sink.push(&clip.codes)?;
        sink.finish(Totals { n_samples: clip.n_samples, source_samples })?;
    }
    output.finish()?;
    Ok(Some(Done {
        n_frames: clips.iter().map(|clip| clip.codes.n_frames() as u64).sum(),
        n_samples: clips.iter().map(|clip| clip.n_samples).sum(),
        n_files: clips.len(),
        model: info.model,
        n_codebooks,
    }))
}

/// What is known of the model that made the codes, and its weights when they are at hand.
fn identify(
    named: Option<&str>,
    otherwise: &str,
    written: Option<&CodecInfo>,
    reporter: &Reporter,
) -> Result<(CodecInfo, WeightsHash)> {
    let name = named.unwrap_or(otherwise);
    if name.is_empty() {
        bail!("--model: no name is given");
    }
    if codec_models::as_path(name).is_some() || codec_models::is_here(name)? {
        // Only what is known of it is wanted, which every purpose gives.
        let model =
            ModelArgs { model: Some(name.to_owned()), device: DeviceKind::Cpu, weights: WeightKind::Float32 }
                .load(Purpose::Encoding)?;
        return Ok((model.codec.info().clone(), model.sha256.into()));
    }
    reporter.note(&format!(
        "{name} is not on this machine: the token file will not say which weights made its codes"
    ));
    if let Some(info) = written.filter(|info| info.model == name) {
        return Ok((info.clone(), WeightsHash::UNKNOWN));
    }
    let card = codec_models::card(name)?;
    // What a card does not say: segments and their scales.
    if let Ok(info) = exchange::ecdc::info(&card.name) {
        return Ok((info, WeightsHash::UNKNOWN));
    }
    let info = CodecInfo {
        model: card.name.clone(),
        // A card has the name of its family in the registry.
        family: codec_nn::families::FAMILIES
            .iter()
            .map(|family| family.name)
            .find(|family| *family == card.family)
            .unwrap_or_default(),
        audio: AudioSpec { sample_rate: card.sample_rate, channels: card.channels },
        hop_length: card.hop_length,
        delays: Delays::default(),
        segment: None,
        layout: card.layout()?,
    };
    Ok((info, WeightsHash::UNKNOWN))
}
