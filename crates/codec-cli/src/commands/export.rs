//! `codec export`: token files to the files of other programs.

use super::{Outcome, for_each, is_there, skip};
use crate::Global;
use crate::inputs::{self, Job, Kinds, Place, make_folder_of};
use crate::report::Reporter;
use crate::tokens::open_seekable;
use anyhow::{Context, Result, anyhow};
use codec_io::atomic::AtomicFile;
use codec_io::exchange::ecdc::EcdcWriter;
use codec_io::exchange::{write_npy, write_npz, write_safetensors};
use codec_io::tokens::{EXTENSION, TokenReader, Totals};
use serde::Serialize;
use std::io::{Cursor, Read, Seek, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Turn token files into files of other programs, without decoding them.
///
/// Arrays hold codes as `[n_codebooks, n_frames]`; npz and safetensors also carry scales and what the
/// header says. What a format cannot carry is told in docs/exchange.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec export speech.nac -o speech.npz
  codec export codes/ -o arrays/ --to safetensors
  codec export song.nac --to ecdc                  for the encodec package")]
pub(crate) struct Args {
    /// Token files, folders, or `-`.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Output: a file, `-` for stdout, or a folder for several results [default: beside the input].
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// The format [default: that of the output's extension].
    #[arg(long, value_enum)]
    to: Option<Format>,
    /// Write outputs anew that are already there.
    #[arg(short, long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// The file of the encodec package, for its two models.
    Ecdc,
    /// One NumPy array, codes only.
    Npy,
    /// NumPy arrays: codes, scales, metadata.
    Npz,
    /// Tensors: codes, scales, metadata.
    Safetensors,
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Self::Ecdc => "ecdc",
            Self::Npy => "npy",
            Self::Npz => "npz",
            Self::Safetensors => "safetensors",
        }
    }
}

#[derive(Debug, Serialize)]
struct Done {
    n_codebooks: usize,
    n_frames: u64,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let format = format(args)?;
    let kinds = Kinds { takes: &[EXTENSION], makes: format.extension() };
    let jobs = inputs::pair(&args.inputs, args.output.as_deref(), kinds)?;
    let reporter = Reporter::new(global, jobs.iter().any(|job| job.output == Place::Std));
    Ok(for_each(&jobs, &reporter, |job| {
        if !args.force && is_there(&job.output) {
            return skip::<Done>(job, &reporter);
        }
        let (input, output) = (&job.input, &job.output);
        let (n_codebooks, n_frames) = export(job, format).with_context(|| input.to_string())?;
        let text = format!("{input} -> {output}: {n_frames} frames, {n_codebooks} codebooks");
        reporter.result(|| text, &Outcome::done(job, Done { n_codebooks, n_frames }))
    }))
}

fn format(args: &Args) -> Result<Format> {
    let extension = args.output.as_ref().and_then(|path| path.extension()).and_then(|e| e.to_str());
    let known = [Format::Ecdc, Format::Npy, Format::Npz, Format::Safetensors];
    let of_output = || known.into_iter().find(|format| extension == Some(format.extension()));
    args.to.or_else(of_output).ok_or_else(|| {
        let names = known.map(Format::extension).join(", ");
        anyhow!("no format is named: give --to, or an output with one of the extensions {names}")
    })
}

fn export(job: &Job, format: Format) -> Result<(usize, u64)> {
    let mut reader = open_seekable(&job.input)?;
    match &job.output {
        Place::File(path) => {
            make_folder_of(path)?;
            let mut file =
                AtomicFile::create(path).with_context(|| format!("{}: cannot create", path.display()))?;
            write(&mut reader, format, &mut file)?;
            file.commit().with_context(|| format!("{}: cannot write", path.display()))?;
        }
        Place::Std => {
            // An npz file is patched after its members are written.
            let mut whole = Cursor::new(Vec::new());
            write(&mut reader, format, &mut whole)?;
            std::io::stdout().write_all(whole.get_ref())?;
        }
    }
    Ok((reader.header().layout.n_codebooks(), reader.n_frames()))
}

fn write<R: Read + Seek>(reader: &mut TokenReader<R>, format: Format, sink: impl Write + Seek) -> Result<()> {
    let header = reader.header().clone();
    let n_samples = reader.n_samples();
    let source_samples =
        reader.totals().map_or_else(|| header.to_source_samples(n_samples), |totals| totals.source_samples);
    let totals = Totals { n_samples, source_samples };
    match format {
        Format::Ecdc => {
            let mut writer = EcdcWriter::new(sink, &header, n_samples)?;
            while let Some(codes) = reader.next_packet()? {
                writer.push(&codes)?;
            }
            writer.finish()?;
        }
        // Whoever loads an array has all of it in memory, too.
        Format::Npy => write_npy(sink, &reader.read_all()?)?,
        Format::Npz => write_npz(sink, &header, totals, &reader.read_all()?)?,
        Format::Safetensors => write_safetensors(sink, &header, totals, &reader.read_all()?)?,
    }
    Ok(())
}
