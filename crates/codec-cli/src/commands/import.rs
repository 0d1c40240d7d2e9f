//! `codec import`: the files of other programs to token files.

use super::for_each;
use crate::Global;
use crate::device::DeviceKind;
use crate::inputs::{self, Job, Kinds, Place};
use crate::model::ModelArgs;
use crate::report::Reporter;
use crate::tokens::{TokenSink, open};
use anyhow::{Context, Result, bail};
use codec_core::{AudioSpec, CodecInfo, Codes, Delays};
use codec_io::exchange;
use codec_io::exchange::dac::{Clip, DacFile};
use codec_io::exchange::ecdc::EcdcReader;
use codec_io::tokens::{EXTENSION, TokenHeader, Totals, WeightsHash};
use serde::Serialize;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Turn files of other programs into token files, without decoding them.
///
/// Reads `.ecdc` (EnCodec without its language model), `.dac` (Descript audio codec) and `.npy` (an array of
/// codes, whose model --model names), told apart by their content. Pickles are parsed and never run.
/// docs/exchange.md tells what becomes of each field.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec import song.ecdc                       writes song.nac
  codec import old/ -o codes/                  a tree of files
  codec import song.dac -m dac_44khz --split   a file per window, in song/
  codec import codes.npy -m neucodec           codes of one clip, of a codec that only decodes here")]
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
    /// Write what is decoded apart to files of its own, in a folder named after the output: the windows of
    /// a .dac file.
    #[arg(long)]
    split: bool,
    /// Write outputs anew that are already there.
    #[arg(short, long)]
    force: bool,
}

/// The head of a NumPy file has some hundred bytes.
const HEAD_BYTES: u64 = 1 << 14;

#[derive(Debug, Serialize)]
struct Outcome {
    input: String,
    output: String,
    skipped: bool,
    #[serde(flatten)]
    done: Option<Done>,
}

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
    let kinds = Kinds { takes: &["ecdc", "dac", "npy"], makes: EXTENSION };
    let jobs = inputs::pair(&args.inputs, args.output.as_deref(), kinds)?;
    let reporter = Reporter::new(global, jobs.iter().any(|job| job.output == Place::Std));
    Ok(for_each(&jobs, &reporter, |job| {
        let (input, output) = (job.input.to_string(), job.output.to_string());
        if let Place::File(path) = &job.output
            && path.exists()
            && !args.force
        {
            let text = format!("{output}: is there already, left alone (--force writes it anew)");
            return reporter.result(|| text, &Outcome { input, output, skipped: true, done: None });
        }
        let done = import(job, args, &reporter).with_context(|| input.clone())?;
        let files = if done.n_files == 1 { String::new() } else { format!(", {} files", done.n_files) };
        let text = format!(
            "{input} -> {output}: {}, {} frames, {} codebooks{files}",
            done.model, done.n_frames, done.n_codebooks
        );
        reporter.result(|| text, &Outcome { input, output, skipped: false, done: Some(done) })
    }))
}

fn import(job: &Job, args: &Args, reporter: &Reporter) -> Result<Done> {
    let mut source = open(&job.input)?;
    let mut head = Vec::new();
    source.by_ref().take(4).read_to_end(&mut head)?;
    match head.as_slice() {
        b"ECDC" => import_ecdc(EcdcReader::new(head.as_slice().chain(source))?, &job.output, args, reporter),
        [0x93, ..] => {
            // Enough of a NumPy file to say what it holds.
            source.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
            let whole = head.as_slice().chain(source);
            match exchange::holds_objects(&head) {
                true => import_dac(&DacFile::read(whole)?, &job.output, args, reporter),
                false => import_npy(exchange::read_npy(whole)?, &job.output, args, reporter),
            }
        }
        _ => bail!("neither an .ecdc nor a .dac nor an .npy file"),
    }
}

fn import_npy(rows: Vec<Vec<u32>>, output: &Place, args: &Args, reporter: &Reporter) -> Result<Done> {
    let Some(name) = args.model.as_deref() else {
        bail!("the file does not say which model made its codes; --model does");
    };
    let (info, weights) = identify(args.model.as_deref(), name, None, reporter)?;
    if info.layout.scale_frames().is_some() {
        bail!("{} has a factor for each segment beside its codes, and the file has none", info.model);
    }
    let n_codebooks = rows.len();
    let codes = Codes::new(info.layout.truncated(n_codebooks)?, rows)?;
    let n_frames = codes.n_frames() as u64;
    let n_samples = n_frames * u64::from(info.hop_length);
    let header = TokenHeader::new(&info, n_codebooks, weights, info.audio)?;
    let mut sink = TokenSink::create(output, header)?;
    sink.push(&codes)?;
    sink.finish(Totals { n_samples, source_samples: n_samples })?;
    Ok(Done { model: info.model, n_codebooks, n_frames, n_samples, n_files: 1 })
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

fn import_dac(file: &DacFile, output: &Place, args: &Args, reporter: &Reporter) -> Result<Done> {
    let likely = file.likely_model();
    let Some(name) = args.model.as_deref().or(likely) else {
        bail!(
            "{} codebooks are not those of a whole model, and the file does not name it; --model does",
            file.n_codebooks()
        );
    };
    let (model, weights) = identify(args.model.as_deref(), name, None, reporter)?;
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
    match (clips.as_slice(), output, args.split) {
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
    if Path::new(name).exists() || codec_models::is_here(name)? {
        let model = ModelArgs { model: Some(name.to_owned()), device: DeviceKind::Cpu }.load()?;
        return Ok((model.codec.info().clone(), model.sha256.into()));
    }
    reporter.note(&format!(
        "{name} is not on this machine: the token file will not say which weights made its codes"
    ));
    if let Some(info) = written.filter(|info| info.model == name) {
        return Ok((info.clone(), WeightsHash::UNKNOWN));
    }
    let card = codec_models::card(name)?;
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
