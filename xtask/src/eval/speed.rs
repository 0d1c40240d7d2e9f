//! Time and memory of every system, each in a process of its own and with nothing else of the run going on.

use super::clips::Clip;
use super::codecs::{Spec, System, peak_memory, systems};
use super::results::Speed;
use super::{interrupt, run};
use anyhow::{Context, Result, bail, ensure};
use codec_core::AudioBuffer;
use codec_io::{AudioReader, WavFormat, WavWriter};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Times are the median of so many.
const N_RUNS: usize = 3;

/// At most so much of a clip is coded.
const MAX_SECONDS: usize = 10;

/// Options of the process that measures one system.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The codec at one bitrate.
    codec: String,
    /// The clip.
    clip: PathBuf,
}

/// Measures every system on one clip.
///
/// # Errors
/// When the run is interrupted. A system that fails is told on stderr and left out.
pub(crate) fn measure(systems: &[System], clip: &Clip) -> Result<Vec<Speed>> {
    let scratch = tempfile::tempdir().context("no temporary folder")?;
    let path = scratch.path().join("clip.wav");
    let mut audio = clip.read().with_context(|| clip.name.clone())?;
    audio.truncate(MAX_SECONDS * audio.spec().sample_rate as usize);
    write(&audio, &path)?;
    let bar = run::progress(systems.len());
    let mut speeds = Vec::new();
    for system in systems {
        interrupt::check().context("what is measured is kept; run it again to go on")?;
        bar.set_message(format!("speed {}", system.info.id));
        match in_a_process(&system.spec, &path) {
            Ok(speed) => speeds.push(Speed { system: system.info.id.clone(), ..speed }),
            Err(error) => bar.suspend(|| eprintln!("speed of {}: {error:#}", system.info.id)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(speeds)
}

fn write(audio: &AudioBuffer, path: &Path) -> Result<()> {
    let mut writer = WavWriter::create(path, audio.spec(), WavFormat::Float32)?;
    writer.write(audio)?;
    writer.finish()?;
    Ok(())
}

fn in_a_process(spec: &str, clip: &Path) -> Result<Speed> {
    let program = std::env::current_exe().context("cannot find myself")?;
    let output = Command::new(program)
        .args(["eval-speed", spec])
        .arg(clip)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the process that measures")?;
    if !output.status.success() {
        bail!("the process that measures ended with {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("the process that measures said something else")
}

/// `cargo xtask eval-speed`: measures one system and prints JSON.
///
/// # Errors
/// When it cannot code the clip.
pub(crate) fn run_one(args: &Args) -> Result<()> {
    let (systems, missing) = systems(&[Spec::parse(&args.codec)?])?;
    ensure!(missing.is_empty(), "{} is not here", args.codec);
    let system = systems.first().context("no system")?;
    let audio = AudioReader::open(&args.clip)?.read_to_end()?;
    let mut times = Vec::new();
    let mut program_bytes = None;
    for _ in 0..N_RUNS {
        let scratch = tempfile::tempdir().context("no temporary folder")?;
        let coded = system.coder.code(&audio, scratch.path())?;
        times.push((coded.encode_seconds, coded.decode_seconds));
        program_bytes = program_bytes.max(coded.program_bytes);
    }
    let median = |time: fn(&(f64, f64)) -> f64| {
        let mut times: Vec<f64> = times.iter().map(time).collect();
        times.sort_by(f64::total_cmp);
        times[N_RUNS / 2]
    };
    let own_bytes = || peak_memory(std::process::id());
    let speed = Speed {
        system: system.info.id.clone(),
        seconds: audio.seconds(),
        encode_seconds: median(|times| times.0),
        decode_seconds: median(|times| times.1),
        load_seconds: system.load_seconds,
        peak_bytes: if system.is_program { program_bytes } else { own_bytes() },
        is_program: system.is_program,
    };
    println!("{}", serde_json::to_string(&speed)?);
    Ok(())
}
