//! `codec verify`: are token files whole?

use super::for_each;
use crate::Global;
use crate::inputs::{self, Place};
use crate::report::{Reported, Reporter};
use crate::tokens::open;
use anyhow::{Context, Result};
use codec_io::tokens;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Check that token files are whole and undamaged.
///
/// Every fault is named with its place. The exit code is 1 when any file has one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec verify speech.nac
  codec verify codes/ --json")]
pub(crate) struct Args {
    /// Token files, folders, or `-`.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    input: String,
    intact: bool,
    n_packets: u64,
    n_frames: u64,
    n_frames_lost: u64,
    truncated: bool,
    has_index: bool,
    n_faults: u64,
    faults: Vec<String>,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let places = inputs::list(&args.inputs, &[tokens::EXTENSION])?;
    let reporter = Reporter::new(global, false);
    Ok(for_each(&places, &reporter, |place| verify(place, &reporter)))
}

fn verify(place: &Place, reporter: &Reporter) -> Result<()> {
    let (_, report) = tokens::verify(open(place)?, |_| {}).with_context(|| place.to_string())?;
    let outcome = Outcome {
        input: place.to_string(),
        intact: report.is_intact(),
        n_packets: report.n_packets,
        n_frames: report.n_frames,
        n_frames_lost: report.n_frames_lost,
        truncated: report.truncated,
        has_index: report.has_index,
        n_faults: report.n_faults,
        faults: report.faults.iter().map(ToString::to_string).collect(),
    };
    let state = if outcome.intact { "whole".to_owned() } else { outcome.faults.join("; ") };
    let text =
        format!("{}: {state}, {} packets, {} frames", outcome.input, outcome.n_packets, outcome.n_frames);
    reporter.result(|| text, &outcome)?;
    if !outcome.intact {
        let Outcome { input, n_faults, n_frames_lost, .. } = outcome;
        return Err(Reported(format!("{input}: {n_faults} fault(s), {n_frames_lost} frames lost")).into());
    }
    Ok(())
}
