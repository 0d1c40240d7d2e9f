//! `codec cut`: a part of a token file, without decoding it.

use crate::Global;
use crate::inputs::Place;
use crate::report::Reporter;
use crate::tokens::{EditTarget, open_seekable};
use anyhow::{Context, Result, bail};
use codec_io::tokens::{TokenReader, edit};
use serde::Serialize;
use std::io::Cursor;
use std::path::PathBuf;
use std::process::ExitCode;

/// Cut a time range out of a token file, or drop its finer codebooks, without decoding.
///
/// Codes are cut between frames and the rest is trimmed when the file is decoded, so that the range
/// is exact to the sample. `--warm-up` keeps frames in front of the range, which are trimmed too,
/// for decoders with a memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec cut talk.nac --start 60 --end 75.5 -o part.nac
  codec cut talk.nac -n 4 -o low.nac               all of it, with the four coarsest codebooks")]
pub(crate) struct Args {
    /// The token file, or `-`.
    input: PathBuf,
    /// Output: a file, or `-` for stdout.
    #[arg(short, long)]
    output: PathBuf,
    /// Start in seconds [default: the start of the file].
    #[arg(long, value_name = "SECONDS")]
    start: Option<f64>,
    /// End in seconds [default: the end of the file].
    #[arg(long, value_name = "SECONDS")]
    end: Option<f64>,
    /// Frames kept in front of the range and trimmed when it is decoded.
    #[arg(long, value_name = "FRAMES", default_value_t = 0)]
    warm_up: u32,
    /// Keep only the first N codebooks.
    #[arg(short = 'n', long, value_name = "N")]
    codebooks: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    input: String,
    output: String,
    start: f64,
    end: f64,
    n_frames: u64,
    start_trim: u64,
    n_codebooks: usize,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let input = Place::parse(&args.input);
    let name = input.to_string();
    let target = EditTarget::new(&args.output);
    let reporter = Reporter::new(global, target.place() == &Place::Std);
    for (flag, time) in [("--start", args.start), ("--end", args.end)] {
        if time.is_some_and(|time| !time.is_finite() || time < 0.0) {
            bail!("{flag}: a time in seconds from the start, 0 or later");
        }
    }
    if let (Some(start), Some(end)) = (args.start, args.end)
        && start >= end
    {
        bail!("--start {start} is not before --end {end}");
    }
    let mut reader = open_seekable(&input)?;
    let rate = f64::from(reader.header().audio.sample_rate);
    let start = args.start.map_or(0, |time| edit::sample_at(reader.header(), time));
    let end = args.end.map_or(u64::MAX, |time| edit::sample_at(reader.header(), time));
    if start >= reader.n_samples() {
        bail!("{name}: nothing from --start on, the audio ends at {:.3} s", reader.n_samples() as f64 / rate);
    }
    let n_all = reader.header().layout.n_codebooks();
    let n_codebooks = args.codebooks.unwrap_or(n_all);
    let cut = target.write(|sink| {
        let (sink, cut) = if n_codebooks == n_all {
            edit::cut(&mut reader, start..end, args.warm_up, sink)?
        } else {
            // Codes are small: what is kept of an hour at 6 kbit/s is 3 MB.
            let (kept, cut) = edit::cut(&mut reader, start..end, args.warm_up, Cursor::new(Vec::new()))?;
            let kept = Cursor::new(kept.into_inner());
            (edit::keep_codebooks(&mut TokenReader::open(kept)?, n_codebooks, sink)?, cut)
        };
        Ok((sink, cut))
    });
    let cut = cut.with_context(|| name.clone())?;
    let outcome = Outcome {
        output: target.place().to_string(),
        start: cut.samples.start as f64 / rate,
        end: cut.samples.end as f64 / rate,
        n_frames: cut.frames.end - cut.frames.start,
        start_trim: cut.start_trim,
        n_codebooks,
        input: name,
    };
    let text = format!(
        "{} -> {}: {:.3} s to {:.3} s, {} frames, {} codebooks",
        outcome.input, outcome.output, outcome.start, outcome.end, outcome.n_frames, outcome.n_codebooks
    );
    reporter.result(|| text, &outcome)?;
    Ok(ExitCode::SUCCESS)
}
