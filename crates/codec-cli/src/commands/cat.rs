//! `codec cat`: token files joined, without decoding them.

use crate::Global;
use crate::inputs::Place;
use crate::report::Reporter;
use crate::tokens::{EditTarget, open_seekable};
use anyhow::{Context, Result};
use codec_io::tokens::edit::{self, PartialBlock};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Join token files of one model and bitrate, without decoding.
///
/// The padding of a file's last frame stays audible at the seam, less than a frame's time; the
/// output says how much.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  codec cat intro.nac talk.nac -o episode.nac")]
pub(crate) struct Args {
    /// Token files, in their order; `-` for stdin.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Output: a file, or `-` for stdout.
    #[arg(short, long)]
    output: PathBuf,
    /// Where a file ends inside a block (strided codebooks, segments), drop the frames behind its
    /// last whole block instead of refusing.
    #[arg(long)]
    drop_partial_blocks: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    inputs: Vec<String>,
    output: String,
    /// Seconds at which each file after the first begins.
    seams: Vec<f64>,
    /// Samples of padding in front of each seam; negative where audio was dropped.
    extra_samples: Vec<i64>,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let target = EditTarget::new(&args.output);
    let reporter = Reporter::new(global, target.place() == &Place::Std);
    let inputs: Vec<Place> = args.inputs.iter().map(|path| Place::parse(path)).collect();
    let mut parts = inputs.iter().map(open_seekable).collect::<Result<Vec<_>>>()?;
    let rate = parts.first().map_or(1.0, |part| f64::from(part.header().audio.sample_rate));
    let partial = if args.drop_partial_blocks { PartialBlock::Drop } else { PartialBlock::Refuse };
    let seams = target
        .write(|sink| edit::concatenate(&mut parts, partial, sink))
        .context("the files were not joined")?;
    let outcome = Outcome {
        inputs: inputs.iter().map(ToString::to_string).collect(),
        output: target.place().to_string(),
        seams: seams.iter().map(|seam| seam.sample as f64 / rate).collect(),
        extra_samples: seams.iter().map(|seam| seam.extra_samples).collect(),
    };
    let seams: Vec<String> = outcome.seams.iter().map(|seam| format!("{seam:.3} s")).collect();
    let at = if seams.is_empty() { String::new() } else { format!(", seams at {}", seams.join(", ")) };
    let text = format!("{} -> {}{at}", outcome.inputs.join(" + "), outcome.output);
    reporter.result(|| text, &outcome)?;
    Ok(ExitCode::SUCCESS)
}
