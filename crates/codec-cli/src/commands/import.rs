//! `codec import`: the files of other programs to token files.

use super::{Outcome, for_each, is_there, skip};
use crate::Global;
use crate::device::DeviceKind;
use crate::inputs::{self, Job, Kinds, Place};
use crate::model::{ModelArgs, WeightKind};
use crate::report::Reporter;
use crate::tokens::{TokenSink, open};
use anyhow::{Context, Result, bail};
use codec_core::{AudioSpec, CodecInfo, Codes, Delays};
use codec_io::exchange::dac::{Clip, DacFile};
use codec_io::exchange::ecdc::EcdcReader;
use codec_io::exchange::{self, TokenArrays};
use codec_io::tokens::{EXTENSION, TokenHeader, Totals, WeightsHash};
use codec_models::Purpose;
use serde::Serialize;
use std::io::Read;
use std::path::PathBuf;
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
  codec import song.dac -m dac_44khz --split   a file per window, in song/
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
    /// Write what is decoded apart to files of its own, in a folder named after the output: the windows of
    /// a .dac file.
    #[arg(long)]
    split: bool,
    /// Write outputs anew that are already there.
    #[arg(short, long)]
    force: bool,
}

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
    let kinds = Kinds { takes: &["ecdc", "dac", "npy", "npz", "safetensors"], makes: EXTENSION };
    let jobs = inputs::pair(&args.inputs, args.output.as_deref(), kinds)?;
    let reporter = Reporter::new(global, jobs.iter().any(|job| job.output == Place::Std));
    Ok(for_each(&jobs, &reporter, |job| {
        if !args.force && is_there(&job.output) {
            return skip::<Done>(job, &reporter);
        }
        let (input, output) = (&job.input, &job.output);
        let done = import(job, args, &reporter).with_context(|| input.to_string())?;
        let files = if done.n_files == 1 { String::new() } else { format!(", {} files", done.n_files) };
        let text = format!(
            "{input} -> {output}: {}, {} frames, {} codebooks{files}",
            done.model, done.n_frames, done.n_codebooks
        );
        reporter.result(|| text, &Outcome::done(job, done))
    }))
}

fn import(job: &Job, args: &Args, reporter: &Reporter) -> Result<Done> {
    let mut source = open(&job.input)?;
    let mut head = Vec::new();
    // Enough of a NumPy file to say what it holds.
    source.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
    let whole = head.as_slice().chain(source);
    if head.first() == Some(&0x93) && !exchange::holds_objects(&head) {
        return import_npy(exchange::read_npy(whole)?, job, args, reporter);
    }
    if args.channels.is_some() {
        bail!("--channels is for .npy files; this one says itself how many it has");
    }
    match head.as_slice() {
        [b'E', b'C', b'D', b'C', ..] => import_ecdc(EcdcReader::new(whole)?, &job.output, args, reporter),
        [b'P', b'K', 3, 4, ..] => import_arrays(&exchange::read_npz(whole)?, &job.output, args),
        [0x93, ..] => import_dac(&DacFile::read(whole)?, job, args, reporter),
        [_, _, _, _, _, _, _, _, b'{', ..] => {
            import_arrays(&exchange::read_safetensors(whole)?, &job.output, args)
        }
        _ => bail!("neither an .ecdc nor a .dac nor an .npy, .npz or .safetensors file"),
    }
}

/// Writes the token file that was exported.
fn import_arrays(arrays: &TokenArrays, output: &Place, args: &Args) -> Result<Done> {
    let TokenArrays { header, totals, codes } = arrays;
    if let Some(name) = args.model.as_deref().filter(|name| *name != header.model) {
        bail!("the file says itself that {} made its codes, not {name}", header.model);
    }
    let mut sink = TokenSink::create(output, header.clone())?;
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

fn import_npy(rows: Vec<Vec<u32>>, job: &Job, args: &Args, reporter: &Reporter) -> Result<Done> {
    let Some(name) = args.model.as_deref() else {
        bail!("the file does not say which model made its codes; --model does");
    };
    let (info, weights) = identify(args.model.as_deref(), name, None, reporter)?;
    if info.layout.scale_frames().is_some() {
        bail!("{} has a factor for each segment beside its codes, and the file has none", info.model);
    }
    let n_codebooks = rows.len();
    let info = of_channels(info, n_codebooks, job, args, reporter)?;
    let codes = Codes::new(info.layout.truncated(n_codebooks)?, rows)?;
    let n_frames = codes.n_frames() as u64;
    let n_samples = n_frames * u64::from(info.hop_length);
    let header = TokenHeader::new(&info, n_codebooks, weights, info.audio)?;
    let mut sink = TokenSink::create(&job.output, header)?;
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
    output: &Place,
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
    let mut sink = TokenSink::create(output, header)?;
    let mut n_frames = 0;
    while let Some(codes) = reader.next_codes()? {
        n_frames += codes.n_frames() as u64;
        sink.push(&codes)?;
    }
    sink.finish(Totals { n_samples, source_samples: n_samples })?;
    Ok(Done { model: info.model, n_codebooks: reader.n_codebooks(), n_frames, n_samples, n_files: 1 })
}

fn import_dac(file: &DacFile, job: &Job, args: &Args, reporter: &Reporter) -> Result<Done> {
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
    let write = |window_idx: usize, clip: &Clip, place: &Place| -> Result<()> {
        let mut header = TokenHeader::new(&info, n_codebooks, weights, source)?;
        header.start_trim = clip.start_trim;
        header = header.with_tag("input_db", loudness.join(","));
        let mut source_samples = file.original_length;
        if clips.len() > 1 {
            source_samples = header.to_source_samples(clip.n_samples);
            header = header.with_tag("window", window_idx.to_string());
        }
        let mut sink = TokenSink::create(place, header)?;
        sink.push(&clip.codes)?;
        sink.finish(Totals { n_samples: clip.n_samples, source_samples })
    };
    match (clips.as_slice(), &job.output, args.split) {
        ([clip], place, false) => write(0, clip, place)?,
        (_, _, false) => {
            bail!("{} windows that are decoded apart; --split writes each to a file of its own", clips.len())
        }
        (_, Place::Std, true) => bail!("--split writes files, not to stdout"),
        (clips, Place::File(path), true) => {
            for (window_idx, clip) in clips.iter().enumerate() {
                let name = format!("{window_idx:05}.{EXTENSION}");
                write(window_idx, clip, &Place::File(path.with_extension("").join(name)))?;
            }
        }
    }
    Ok(Done {
        n_frames: clips.iter().map(|clip| clip.codes.n_frames() as u64).sum(),
        n_samples: clips.iter().map(|clip| clip.n_samples).sum(),
        n_files: clips.len(),
        model: info.model,
        n_codebooks,
    })
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
