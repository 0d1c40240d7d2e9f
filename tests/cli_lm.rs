//! The command line of `codec-lm` as a user meets it: from audio to a model to audio that carries on.
//!
//! The codec is the one in `examples/encodec-tiny`, with random weights.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use assert_cmd::Command;
use codec_core::{AudioBuffer, AudioSpec};
use codec_io::{AudioReader, WavFormat, WavWriter};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codec-lm"));
    command.env("CODEC_MODEL", root().join("examples/encodec-tiny"));
    command.env_remove("CODEC_SHARED").env_remove("CODEC_LM").env("HF_HUB_OFFLINE", "1");
    command
}

/// A model that was trained for a moment, made once for all tests.
fn model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli_lm");
        let _ = std::fs::remove_dir_all(&folder);
        for (i, seconds) in [(0, 4.0), (1, 3.0), (2, 2.0)] {
            tone(&folder.join(format!("audio/{i}.wav")), 24_000, 1, seconds);
        }
        let text = "output = 'run'\n[data]\nsources = [{ path = 'audio' }]\nn_codebooks = 4\ncache = 'cache'\n\
                    window = 64\nvalidation_share = 0.2\n[model]\ndim = 32\nn_layers = 1\nn_heads = 2\n\
                    hidden = 64\ncontext = 64\n[schedule]\nsteps = 12\nvalidate_every = 6\n";
        let codec = root().join("examples/encodec-tiny").canonicalize().unwrap();
        let text = text.replace("[data]\n", &format!("[data]\ncodec = {:?}\n", codec.display().to_string()));
        let config = folder.join("run.toml");
        std::fs::write(&config, text).unwrap();
        let trained = program().args(["train", "--config"]).arg(&config).assert().success();
        let said = String::from_utf8(trained.get_output().stderr.clone()).unwrap();
        assert!(said.contains("step 6:") && said.contains("against bigram"), "{said}");
        let run = folder.join("run");
        assert!(run.join("index.html").is_file() && run.join("model/config.json").is_file());
        // A second run does not begin where one has been.
        let again = program().args(["train", "--config"]).arg(&config).assert().failure();
        assert!(String::from_utf8_lossy(&again.get_output().stderr).contains("codec-lm resume"));
        // From another folder than that of the first run, with JSON for programs.
        let mut command = program();
        command.current_dir(&folder).args(["resume", "run", "--steps", "14", "--json", "--quiet"]);
        let resumed = command.assert().success();
        assert!(resumed.get_output().stderr.is_empty());
        let said: serde_json::Value = serde_json::from_slice(&resumed.get_output().stdout).unwrap();
        assert_eq!((&said["run"], &said["step"], &said["model"]), (&"run".into(), &14.into(), &"run/model".into()));
        let quiet = program().arg("resume").arg(&run).args(["--steps", "15", "-q"]).assert().success();
        assert!(quiet.get_output().stdout.is_empty() && quiet.get_output().stderr.is_empty());
        let early = program().arg("resume").arg(&run).args(["--steps", "13"]).assert().failure();
        assert!(stderr(&early).contains("at step 15 already"));
        run.join("model")
    })
}

fn stderr(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

fn tone(path: &Path, sample_rate: u32, channels: u16, seconds: f64) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let n = (seconds * f64::from(sample_rate)) as usize;
    let pitch = |t: usize| 0.05 + 0.03 * (t as f32 * 1e-4).sin();
    let channel = |c: u16| (0..n).map(|t| 0.4 * (t as f32 * pitch(t) + f32::from(c)).sin()).collect();
    let spec = AudioSpec { sample_rate, channels };
    let audio = AudioBuffer::from_planar(spec, (0..channels).map(channel).collect()).unwrap();
    let mut writer = WavWriter::create(path, spec, WavFormat::Pcm16).unwrap();
    writer.write(&audio).unwrap();
    writer.finish().unwrap();
}

fn read(path: &Path) -> AudioBuffer {
    AudioReader::open(path).unwrap().read_to_end().unwrap()
}

#[test]
fn audio_carries_on_for_prompts_of_any_rate_and_length() {
    let folder = tempfile::tempdir().unwrap();
    for (rate, channels, seconds) in [(24_000, 1, 1.0), (44_100, 2, 0.1), (8_000, 1, 30.0), (48_000, 1, 0.01)]
    {
        let prompt = folder.path().join(format!("{rate}.wav"));
        tone(&prompt, rate, channels, seconds);
        let mut command = program();
        command.arg("continue").arg(&prompt).args(["--seconds", "1.5", "--json", "--lm"]).arg(model());
        let done = command.assert().success();
        let said: serde_json::Value = serde_json::from_slice(&done.get_output().stdout).unwrap();
        let output = folder.path().join(format!("{rate}-continued.wav"));
        let audio = read(&output);
        assert_eq!(said["output"], output.display().to_string());
        assert_eq!(audio.n_samples(), (1.5 * f64::from(audio.spec().sample_rate)) as usize);
        assert!(audio.channel(0).unwrap().iter().any(|x| *x != 0.0));
    }
}

#[test]
fn audio_carries_on_for_prompts_of_any_format_with_the_embedded_models() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["chirp.mp3", "chirp.flac", "chirp.ogg", "chirp.opus", "chirp.m4a"] {
        let prompt = root().join("crates/codec-io/tests/data").join(name);
        let output = folder.path().join(name).with_extension("wav");
        let mut command = program();
        command.env_remove("CODEC_MODEL").arg("continue").arg(&prompt).args(["--seconds", "0.5", "-o"]);
        command.arg(&output).assert().success();
        let audio = read(&output);
        assert_eq!(audio.spec(), AudioSpec { sample_rate: 16_000, channels: 1 }, "{name}");
        assert!(audio.seconds() == 0.5 && audio.channels().flatten().any(|x| x.abs() > 0.01), "{name}");
    }
}

#[test]
fn the_same_seed_gives_the_same_audio_streamed_or_not_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = folder.path().join("prompt.wav");
    tone(&prompt, 24_000, 1, 1.0);
    let make = |name: &str, more: &[&str]| -> AudioBuffer {
        let output = folder.path().join(name);
        let mut command = program();
        command.arg("continue").arg(&prompt).arg("-o").arg(&output).arg("--lm").arg(model());
        command.args(["--seconds", "1"]).args(more).assert().success();
        read(&output)
    };
    let first = make("a.wav", &["--seed", "3"]);
    assert_eq!(make("b.wav", &["--seed", "3", "--threads", "1"]), first);
    assert_eq!(make("c.wav", &["--seed", "3", "--stream"]), first);
    assert_ne!(make("d.wav", &["--seed", "4"]), first);
    assert_ne!(make("e.wav", &["--seed", "3", "--temperature", "0"]), first);
    assert_ne!(make("f.wav", &["--seed", "3", "--guidance", "2"]), first);
    // In front stands what the codec makes of the prompt.
    // What streams into a file ends as the file that appears whole.
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(bytes("c.wav"), bytes("a.wav"));
    let with_prompt = make("g.wav", &["--seed", "3", "--with-prompt"]);
    let n = with_prompt.n_samples() - first.n_samples();
    assert_eq!(with_prompt.slice(n..usize::MAX), first);
    // stdout is the same stream.
    let mut command = program();
    command.arg("continue").arg(&prompt).args(["--stream", "--seconds", "1", "--seed", "3"]);
    let streamed = command.arg("--lm").arg(model()).assert().success();
    // Its header cannot say how long it is.
    assert_eq!(streamed.get_output().stdout[4..8], [0xFF; 4]);
    let piped = folder.path().join("piped.wav");
    std::fs::write(&piped, &streamed.get_output().stdout).unwrap();
    assert_eq!(read(&piped), first);
    let sample = folder.path().join("sample.wav");
    program().args(["sample", "-s", "0.5", "--lm"]).arg(model()).arg("-o").arg(&sample).assert().success();
    assert_eq!(read(&sample).n_samples(), 12_000);
}

#[test]
fn a_prompt_is_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = folder.path().join("prompt.wav");
    tone(&prompt, 24_000, 1, 0.2);
    let before = std::fs::read(&prompt).unwrap();
    for more in [&["--seconds", "0.2"][..], &["--seconds", "0.2", "--stream"], &["--seconds", "1e30"]] {
        let mut command = program();
        command.arg("continue").arg(&prompt).arg("-o").arg(&prompt).args(more).arg("--lm").arg(model());
        command.assert().failure();
        assert_eq!(std::fs::read(&prompt).unwrap(), before);
    }
}

#[test]
fn what_is_no_prompt_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.wav");
    tone(&empty, 24_000, 1, 0.0);
    let text = folder.path().join("text.wav");
    std::fs::write(&text, "this is no audio").unwrap();
    let nothing = folder.path().join("nothing.wav");
    std::fs::write(&nothing, "").unwrap();
    let output = folder.path().join("out.wav");
    for prompt in [&empty, &text, &nothing, &folder.path().join("missing.wav")] {
        let mut command = program();
        command.arg("continue").arg(prompt).arg("-o").arg(&output).arg("--lm").arg(model());
        let failed = command.assert().failure().code(1);
        let said = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
        assert!(said.contains(&prompt.display().to_string()), "{said}");
        assert!(!output.exists(), "{}", prompt.display());
    }
    let prompt = root().join("examples/chirp.wav");
    // Finite samples whose latents are not.
    let loud = folder.path().join("loud.wav");
    let audio = AudioBuffer::mono(24_000, vec![3e38; 24_000]).unwrap();
    let mut writer = WavWriter::create(&loud, audio.spec(), WavFormat::Float32).unwrap();
    writer.write(&audio).unwrap();
    writer.finish().unwrap();
    let mut command = program();
    command.arg("continue").arg(&loud).arg("-o").arg(&output).arg("--lm").arg(model());
    assert!(stderr(&command.assert().failure()).contains("loud.wav") && !output.exists());
    // Without a model in sight, what is wrong in itself is said first.
    let refused = |lm: &Path, more: &[&str], expected: &str| {
        let mut command = program();
        command.arg("continue").arg(&prompt).arg("-o").arg(&output).arg("--lm").arg(lm).args(more);
        let said = stderr(&command.assert().failure());
        assert!(said.contains(expected) && !output.exists(), "{more:?}: {said}");
    };
    let nowhere = Path::new("nowhere");
    refused(nowhere, &["--seconds", "0"], "--seconds 0");
    refused(nowhere, &["--seconds", "1e-9"], "--seconds");
    refused(nowhere, &["--seconds", "nan"], "--seconds NaN");
    refused(nowhere, &["--prompt-seconds", "-1"], "--prompt-seconds -1");
    refused(nowhere, &["--temperature=-1"], "temperature");
    refused(nowhere, &["--temperature", "nan"], "temperature: NaN is not a number from 0 on");
    refused(nowhere, &["--top-p", "0"], "top_p");
    refused(nowhere, &["--guidance", "nan"], "guidance: NaN is not in");
    refused(nowhere, &["--guidance", "1e30"], "guidance");
    refused(nowhere, &["-n", "0"], "codebooks");
    refused(nowhere, &["--threads", "100000"], "--threads");
    refused(nowhere, &["--codec", ""], "--codec");
    refused(nowhere, &[], "nowhere");
    refused(model(), &["--class", "music"], "--class music: the language model has no classes");
    refused(
        model(),
        &["--top-k", "5,4,3,2,1"],
        "--top-k: has 5 values, but the language model has 4 codebooks",
    );
    refused(model(), &["-n", "3"], "n_codebooks: the model reads all 4, never 3");
    let mut command = program();
    command.arg("continue").arg(&prompt).args(["-s", "0.2", "-n", "4", "-o"]).arg(&output);
    command.arg("--lm").arg(model()).assert().success();
    let failed = program().args(["sample", "--guidance", "2", "--lm", "nowhere"]).assert().failure();
    assert!(stderr(&failed).contains("--guidance 2: needs a --class"));
    // Nowhere to write, which shows before the model is looked for.
    for (place, expected) in [("", "is a folder"), ("no/folder.wav", "there is no folder")] {
        let mut command = program();
        command.arg("continue").arg(&prompt).arg("-o").arg(folder.path().join(place));
        let said = stderr(&command.args(["--lm", "nowhere"]).assert().failure());
        assert!(said.contains(expected), "{said}");
    }
    let failed = program().arg("continue").arg(&prompt).args(["--lm", "nowhere"]).assert().failure();
    assert!(String::from_utf8_lossy(&failed.get_output().stderr).contains("nowhere"));
    if let Some(embedded) = codec_lm::embedded::load(&candle_core::Device::Cpu).unwrap() {
        let n = embedded.arrangement().layout().n_codebooks();
        let mut command = program();
        command.env_remove("CODEC_MODEL").arg("continue").arg(&prompt).args(["-n", "3"]);
        assert!(stderr(&command.assert().failure()).contains(&format!("reads all {n}, never 3")));
    } else {
        let failed = program().arg("continue").arg(&prompt).assert().failure();
        assert!(String::from_utf8_lossy(&failed.get_output().stderr).contains("codec-lm train"));
    }
}

#[test]
fn models_are_judged_described_and_packed() {
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed");
    let done = program().arg("export").arg(model()).arg("-o").arg(&packed).arg("--json").assert().success();
    let said: serde_json::Value = serde_json::from_slice(&done.get_output().stdout).unwrap();
    assert_eq!((&said["output"], &said["precision"]), (&packed.display().to_string().into(), &"int8".into()));
    let quiet =
        program().arg("export").arg(model()).arg("-qo").arg(folder.path().join("q")).assert().success();
    assert!(quiet.get_output().stdout.is_empty() && quiet.get_output().stderr.is_empty());
    // What is neither a model nor a checkpoint, and a model of something else, are named.
    for (odd, expected) in
        [("examples/chirp.wav", "is not a checkpoint"), ("examples/encodec-tiny", "config")]
    {
        let mut command = program();
        command.arg("export").arg(root().join(odd)).arg("-o").arg(folder.path().join("n"));
        let said = stderr(&command.assert().failure());
        assert!(said.contains(odd) && said.contains(expected), "{said}");
    }
    let failed = program().args(["export", "nowhere", "-o"]).arg(folder.path().join("n")).assert().failure();
    assert!(stderr(&failed).starts_with("error: nowhere: "), "{}", stderr(&failed));
    let size = |folder: &Path| std::fs::metadata(folder.join("model.safetensors")).unwrap().len();
    assert!(size(&packed) * 3 < size(model()));
    // A packed model, packed again.
    let repacked = folder.path().join("repacked");
    program().arg("export").arg(&packed).arg("-o").arg(&repacked).assert().success();
    let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(bytes(&repacked), bytes(&packed));
    // The newest checkpoint is the finished model.
    let again = folder.path().join("again");
    let run = model().parent().unwrap();
    program().arg("export").arg(run).arg("-o").arg(&again).assert().success();
    assert_eq!(bytes(&again), bytes(&packed));
    let audio = folder.path().join("a.wav");
    tone(&audio, 24_000, 1, 2.0);
    let bits = |lm: &Path| -> f64 {
        let mut command = program();
        command.arg("eval").arg(&audio).arg("--codec").arg(root().join("examples/encodec-tiny"));
        let done =
            command.args(["--json", "--counts-from"]).arg(&audio).arg("--lm").arg(lm).assert().success();
        let said: serde_json::Value = serde_json::from_slice(&done.get_output().stdout).unwrap();
        assert_eq!(said["codebooks"].as_array().unwrap().len(), 4);
        assert!(said["codebooks"][0]["bigram"].as_f64().unwrap() > 0.0);
        said["bits_per_frame"]["model"].as_f64().unwrap()
    };
    let (float, int8) = (bits(model()), bits(&packed));
    assert!((int8 / float - 1.0).abs() < 0.01, "{int8} against {float}");
    let info = program().arg("info").arg("--lm").arg(&packed).arg("--json").assert().success();
    let said: serde_json::Value = serde_json::from_slice(&info.get_output().stdout).unwrap();
    assert_eq!(said["pattern"]["kind"], "delay");
    assert_eq!(said["codec"]["sample_rate"], 24_000);
    let mut command = program();
    command.arg("eval").arg(&audio).arg("--lm").arg(model());
    let table = command.arg("--codec").arg(root().join("examples/encodec-tiny")).assert().success();
    assert!(String::from_utf8_lossy(&table.get_output().stdout).contains("kbit/s"));
}

#[test]
fn as_many_frames_are_judged_as_were_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let audio: Vec<PathBuf> = (0..3).map(|i| folder.path().join(format!("{i}.wav"))).collect();
    audio.iter().for_each(|path| tone(path, 24_000, 1, 1.0));
    let eval = |more: &[&str]| {
        let mut command = program();
        command.arg("eval").args(&audio).arg("--codec").arg(root().join("examples/encodec-tiny"));
        command.arg("--lm").arg(model()).args(more).assert()
    };
    for (n_frames, n_recordings) in [(2, 2), (100, 3), (1_000_000, 3)] {
        let done = eval(&["--json", "--frames", &n_frames.to_string()]).success();
        let said: serde_json::Value = serde_json::from_slice(&done.get_output().stdout).unwrap();
        // Three seconds of 75 frames.
        assert_eq!(
            (&said["n_frames"], &said["n_recordings"]),
            (&n_frames.min(225).into(), &n_recordings.into())
        );
    }
    assert!(stderr(&eval(&["--frames", "0"]).failure()).contains("--frames"));
    assert!(stderr(&eval(&["--only", "kind"]).failure()).contains("is not COLUMN=VALUE"));
    assert!(stderr(&eval(&["--only", "kind=speech"]).failure()).contains("none of the inputs is a manifest"));
}

/// Exit codes and messages where nobody reads on.
#[cfg(unix)]
#[test]
fn a_closed_stdout_is_no_error() {
    use std::process::Stdio;
    let prompt = root().join("examples/chirp.wav");
    let closed = |command: &mut std::process::Command| {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        child.wait_with_output().unwrap()
    };
    let command = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_codec-lm"));
        command.env("CODEC_MODEL", root().join("examples/encodec-tiny")).args(args).arg("--lm").arg(model());
        command
    };
    for output in [
        closed(&mut command(&["info"])),
        closed(&mut command(&["info", "--json"])),
        closed(command(&["continue", "--stream", "-s", "3", "-q"]).arg(&prompt)),
    ] {
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_stream_that_is_interrupted_is_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = root().join("examples/chirp.wav");
    let start = |name: &str, more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_codec-lm"));
        command.env("CODEC_MODEL", root().join("examples/encodec-tiny")).arg("continue").arg(&prompt);
        command.args(["-q", "-s", "80000", "-o"]).arg(folder.path().join(name)).args(more);
        command.arg("--lm").arg(model()).spawn().unwrap()
    };
    let interrupt = |mut child: std::process::Child| {
        let id = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        child.wait().unwrap().code()
    };
    // It is there, and grows, from the first samples on.
    let (path, child) = (folder.path().join("out.wav"), start("out.wav", &["--stream"]));
    while std::fs::metadata(&path).map_or(0, |found| found.len()) < 10_000 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(interrupt(child), Some(130));
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes[4..8], (bytes.len() as u32 - 8).to_le_bytes());
    // What is not streamed leaves nothing.
    let child = start("whole.wav", &[]);
    let temporary = || std::fs::read_dir(folder.path()).unwrap().count() > 1;
    while !temporary() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(interrupt(child), Some(130));
    assert!(!temporary());
}
