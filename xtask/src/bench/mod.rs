//! `cargo xtask bench`: how fast the codecs are, here and elsewhere.
//!
//! Each side is a process of its own that answers requests; all sides have loaded the model before the first is
//! timed, and take turns, so that whatever else the machine does meets all of them.

mod layers;
mod machine;
mod peers;
mod protocol;
mod report;
mod side;
mod subjects;
mod worker;

use self::machine::Machine;
use self::peers::Peers;
use self::protocol::Request;
use self::report::{ModelReport, Report, SideReport, Spread};
use self::side::Side;
use self::subjects::{SUBJECTS, Subject};
use crate::environment::{root, run_command};
use anyhow::{Context, Result, bail, ensure};
use codec_core::{AudioBuffer, AudioSpec};
use codec_io::{WavFormat, WavWriter};
use codec_nn::Precision;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench                               our codecs alone
  cargo xtask bench --peers --only mimi,snac_24khz
  cargo xtask bench --only dac_44khz --layers     what each layer costs
  cargo xtask bench --only mimi --clips 200       many files at once")]
pub(crate) struct Args {
    /// Models to measure; all when none is named.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Measure other implementations too; their packages go into an environment below target/.
    #[arg(long)]
    peers: bool,
    /// A Python that has the peers' packages already.
    #[arg(long, requires = "peers", value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Threads of every side.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Seconds of audio.
    #[arg(long, default_value_t = 10)]
    seconds: usize,
    /// Times that every side does everything, in turns; the medians count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measure what each layer computes, and what it costs by itself on one thread.
    #[arg(long)]
    layers: bool,
    /// Encode so many clips of 2 to 10 seconds as well, side by side and one after the other.
    #[arg(long, default_value_t = 0, value_name = "N")]
    clips: usize,
    /// Measure our codecs with weights of 8 bits as well.
    #[arg(long)]
    int8: bool,
    /// Folder for `bench.md` and `bench.json` [default: target/bench].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Answer requests on stdin: what the benchmark starts for itself.
    #[arg(long, hide = true)]
    worker: bool,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.worker {
        return worker::run(if args.int8 { Precision::Int8 } else { Precision::Float32 });
    }
    // As the programs do; layers are measured in this process.
    codec_kernels::keep_freed_memory();
    ensure!(args.rounds > 0 && args.seconds > 0 && args.threads > 0, "nothing to measure");
    let subjects = chosen(&args.only)?;
    let out = args.out.clone().unwrap_or_else(|| root().join("target/bench"));
    std::fs::create_dir_all(&out).with_context(|| format!("{}: cannot be made", out.display()))?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    let machine = pool.install(Machine::new)?;
    let peers = if args.peers { Some(Peers::prepare(args.python.as_deref())?) } else { None };
    let codec = build_codec()?;
    let mut report = Report { machine, n_threads: args.threads, seconds: args.seconds, models: Vec::new() };
    for subject in subjects {
        eprintln!("{}", subject.name);
        let measured = measure(subject, args, peers.as_ref(), &codec)?;
        let Some(model) = measured else {
            eprintln!("{}: its files are not on this machine", subject.name);
            continue;
        };
        report.models.push(model);
        // What has been measured stays, whatever happens to the next model.
        save(&report, &out)?;
    }
    save(&report, &out)?;
    print!("{}", report.markdown());
    let own = report.models.iter().filter_map(|model| Some((model, model.sides.first()?)));
    let failed: Vec<_> =
        own.filter(|(_, own)| !own.failures.is_empty()).map(|(model, _)| &model.name).collect();
    ensure!(failed.is_empty(), "our own side failed with {failed:?}");
    Ok(())
}

fn save(report: &Report, out: &Path) -> Result<()> {
    for (name, content) in
        [("bench.md", report.markdown()), ("bench.json", serde_json::to_string_pretty(report)?)]
    {
        let path = out.join(name);
        std::fs::write(&path, content).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn chosen(only: &[String]) -> Result<Vec<&'static Subject>> {
    if let Some(name) = only.iter().find(|name| SUBJECTS.iter().all(|subject| subject.name != **name)) {
        let names: Vec<_> = SUBJECTS.iter().map(|subject| subject.name).collect();
        bail!("{name} is not measured; there are: {}", names.join(", "));
    }
    let is_chosen = |subject: &&Subject| only.is_empty() || only.iter().any(|name| name == subject.name);
    Ok(SUBJECTS.iter().filter(is_chosen).collect())
}

/// The command line, whose start is measured too.
fn build_codec() -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name(format!("codec{}", std::env::consts::EXE_SUFFIX));
    if !beside.is_file() {
        // With the features of the whole workspace, or the tensor library would be built again.
        let build = ["build", "--release", "--workspace", "--bins"];
        run_command(Command::new("cargo").args(build).current_dir(root()))?;
    }
    Ok(beside)
}

fn measure(
    subject: &Subject,
    args: &Args,
    peers: Option<&Peers>,
    codec: &Path,
) -> Result<Option<ModelReport>> {
    let folder = tempfile::tempdir()?;
    let Some(model) = subject.checkpoint(folder.path())? else { return Ok(None) };
    let nets = layers::networks(&model);
    let mut layers = Vec::new();
    if let (true, Some(nets)) = (args.layers, &nets) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        layers = pool.install(|| layers::measure(nets))?;
    }
    let gflops = nets.as_ref().map(|nets| layers::flops(nets).map(|flops| flops / 1e9));
    drop(nets);
    let spec = codec_nn::load(&model, &candle_core::Device::Cpu)?.codec.info().audio;
    let n_samples = args.seconds * spec.sample_rate as usize;
    let samples = subjects::signal(n_samples, usize::from(spec.channels), spec.sample_rate);
    let audio = folder.path().join("audio.f32");
    std::fs::write(&audio, samples.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
    let load = Request::Load {
        subject: subject.name.to_owned(),
        model: model.clone(),
        audio,
        n_codebooks: subject.n_codebooks,
        step_samples: subject.step_samples,
        n_threads: args.threads,
    };
    let (sides, peak_gflops) = measure_sides(subject, &load, peers, args)?;
    let cold_start_seconds = Spread::of(cold_starts(codec, &model, folder.path(), spec, args)?);
    let step_milliseconds = 1e3 * subject.step_samples as f64 / f64::from(spec.sample_rate);
    Ok(Some(ModelReport {
        name: subject.name.to_owned(),
        title: subject.title.to_owned(),
        step_milliseconds,
        gflops,
        peak_gflops,
        layers,
        cold_start_seconds,
        sides,
    }))
}

/// Lets all sides work in turns; what they took, and the peaks of one core meanwhile.
fn measure_sides(
    subject: &Subject,
    load: &Request,
    peers: Option<&Peers>,
    args: &Args,
) -> Result<(Vec<SideReport>, Option<Spread>)> {
    let own = |name: &'static str, arguments: &[&str]| -> Result<_> {
        let mut own = Command::new(std::env::current_exe()?);
        own.args(["bench", "--worker"]).args(arguments);
        Ok((name, own))
    };
    let mut all = vec![own("codec", &[])?];
    if args.int8 {
        all.push(own("codec, int8 weights", &["--int8"])?);
    }
    all.extend(peers.map(|peers| peers.of(subject)).unwrap_or_default());
    let mut sides = Vec::new();
    for (name, mut command) in all {
        sides.push((Side::start(name, &mut command, args.threads)?, Timings::default()));
    }
    for (side, timings) in &mut sides {
        timings.ask(side, load, &["load"]);
        // Once before it counts.
        for request in [Request::Encode, Request::Decode] {
            side.ask(&request).ok();
        }
    }
    let mut peaks = Vec::new();
    for _ in 0..args.rounds {
        // What neighbours leave of the machine changes within minutes.
        peaks.push(machine::peak());
        for (request, name) in [(Request::Encode, "encode"), (Request::Decode, "decode")] {
            for (side, timings) in &mut sides {
                timings.ask(side, &request, &[name]);
            }
        }
    }
    for (side, timings) in &mut sides {
        timings.ask(side, &Request::Step, &["encode_step", "decode_step"]);
    }
    if let (true, Some((own, timings))) = (args.clips > 0, sides.first_mut()) {
        let request = Request::Clips { n: args.clips };
        for _ in 0..args.rounds {
            timings.ask(own, &request, &["clips_side_by_side", "clips_in_turn", "clips_on_one_thread"]);
        }
    }
    let sides: Vec<_> = sides.into_iter().map(|(side, timings)| timings.report(&side)).collect();
    Ok((sides, Spread::of(peaks)))
}

/// What one side took.
#[derive(Debug, Default)]
struct Timings {
    seconds: BTreeMap<&'static str, Vec<f64>>,
    failures: BTreeMap<&'static str, String>,
}

impl Timings {
    /// Asks unless it failed before; the seconds that come belong to `names` in turns.
    fn ask(&mut self, side: &mut Side, request: &Request, names: &[&'static str]) {
        if names.iter().chain([&"load"]).any(|name| self.failures.contains_key(name)) {
            return;
        }
        match side.ask(request) {
            Ok(seconds) => {
                for (name, seconds) in names.iter().cycle().zip(seconds) {
                    self.seconds.entry(name).or_default().push(seconds);
                }
            }
            Err(why) => {
                if let Some(name) = names.first() {
                    self.failures.insert(name, why);
                }
            }
        }
    }

    fn report(mut self, side: &Side) -> SideReport {
        if let (Some(encoded), Some(decoded)) =
            (self.seconds.get("encode_step"), self.seconds.get("decode_step"))
        {
            let both = encoded.iter().zip(decoded).map(|(encoded, decoded)| encoded + decoded).collect();
            self.seconds.insert("step", both);
        }
        let spreads = self.seconds.into_iter();
        SideReport {
            name: side.name.clone(),
            peak_bytes: side.peak_bytes,
            seconds: spreads.filter_map(|(name, xs)| Some((name, Spread::of(xs)?))).collect(),
            failures: self.failures,
        }
    }
}

/// Seconds of whole runs of the command line on one second of audio.
fn cold_starts(codec: &Path, model: &Path, folder: &Path, spec: AudioSpec, args: &Args) -> Result<Vec<f64>> {
    let samples = subjects::signal(spec.sample_rate as usize, usize::from(spec.channels), spec.sample_rate);
    let (input, output) = (folder.join("second.wav"), folder.join("second.nac"));
    let mut wav = WavWriter::create(&input, spec, WavFormat::Float32)?;
    wav.write(&AudioBuffer::from_interleaved(spec, &samples)?)?;
    wav.finish()?;
    let mut seconds = Vec::new();
    for _ in 0..=args.rounds {
        let began = Instant::now();
        let mut command = Command::new(codec);
        command.arg("tokenize").arg(&input).arg("-o").arg(&output).args(["--force", "--model"]).arg(model);
        command.env("RAYON_NUM_THREADS", args.threads.to_string()).env_remove("CODEC_THREADS");
        run_command(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    // The first one fills the system's cache of files.
    seconds.remove(0);
    Ok(seconds)
}
