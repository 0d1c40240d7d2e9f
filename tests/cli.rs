//! The command line as a user meets it: the README's first command, exit codes, no half files.
//!
//! The model is the one in `examples/encodec-tiny`, with random weights.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "cli/compare.rs"]
mod compare;
#[path = "cli/exchange.rs"]
mod exchange;

use assert_cmd::Command;
use std::f32::consts::TAU;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn codec() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codec"));
    command.env("CODEC_MODEL", root().join("examples/encodec-tiny")).env_remove("CODEC_SHARED");
    // The network and what lies on this machine have no part in the tests.
    for variable in ["CODEC_MODELS", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "SSL_CERT_FILE"] {
        command.env_remove(variable);
    }
    for variable in ["XDG_CACHE_HOME", "HF_HOME"] {
        command.env(variable, "nowhere");
    }
    command.env("HF_HUB_OFFLINE", "1");
    command
}

fn stdout(output: &std::process::Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &std::process::Output) -> Vec<serde_json::Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A tone with harmonics, so that codes differ over time.
fn write_wav(path: &Path, sample_rate: u32, channels: u16, seconds: f32) {
    let spec = codec_core::AudioSpec { sample_rate, channels };
    let n_samples = (sample_rate as f32 * seconds) as usize;
    let channel = |c: u16| {
        (0..n_samples).map(|i| i as f32 / sample_rate as f32).map(move |t| {
            let glide = (TAU * (150.0 + 200.0 * t) * t).sin();
            0.4 * glide + 0.2 * (TAU * 1234.5 * t + f32::from(c)).sin()
        })
    };
    let channels = (0..channels).map(|c| channel(c).collect()).collect();
    let audio = codec_core::AudioBuffer::from_planar(spec, channels).unwrap();
    let mut writer = codec_io::WavWriter::create(path, spec, codec_io::WavFormat::Pcm16).unwrap();
    writer.write(&audio).unwrap();
    writer.finish().unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let entry_name =
        |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(entry_name).collect();
    names.sort();
    names
}

#[test]
fn the_first_command_of_the_readme_runs() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let after = readme.split("<!-- command: main -->").nth(1).unwrap();
    let line = after.lines().find(|line| line.starts_with("cargo run")).unwrap();
    let arguments = line.split(" -- ").nth(1).unwrap().split_whitespace();
    let dir = tempfile::tempdir().unwrap();
    let arguments: Vec<String> =
        arguments.map(|word| word.replace("target/", &format!("{}/", dir.path().display()))).collect();
    let output = codec().env_remove("CODEC_MODEL").current_dir(root()).args(&arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("SI-SDR"), "{}", stdout(&output));
    assert_eq!(names(dir.path()), ["speech.wav"]);
}

#[test]
fn a_file_goes_there_and_back_with_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let (wav, tokens, back) = (dir.path().join("a.wav"), dir.path().join("a.nac"), dir.path().join("b.wav"));
    write_wav(&wav, 44_100, 2, 1.3);
    let output = codec().arg("tokenize").arg(&wav).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("resampled from 44100 Hz"), "{}", stderr(&output));
    let output = codec().arg("detokenize").arg(&tokens).arg("-o").arg(&back).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let reader = codec_io::AudioReader::open(&back).unwrap();
    let model_rate = reader.spec().sample_rate;
    assert_eq!(reader.n_samples(), Some((57_330 * u64::from(model_rate)).div_ceil(44_100)));
}

#[test]
fn pipes_give_the_same_codes_as_files() {
    let dir = tempfile::tempdir().unwrap();
    let wav = dir.path().join("a.wav");
    write_wav(&wav, 24_000, 1, 0.7);
    assert!(codec().arg("tokenize").arg(&wav).output().unwrap().status.success());
    let piped = codec()
        .args(["tokenize", "-", "-o", "-"])
        .write_stdin(std::fs::read(&wav).unwrap())
        .output()
        .unwrap();
    assert!(piped.status.success(), "{}", stderr(&piped));
    let from_pipe = codec().args(["detokenize", "-", "-o", "-"]).write_stdin(piped.stdout).output().unwrap();
    assert!(from_pipe.status.success(), "{}", stderr(&from_pipe));
    let tokens = std::fs::read(dir.path().join("a.nac")).unwrap();
    let from_file = codec().args(["detokenize", "-", "-o", "-"]).write_stdin(tokens).output().unwrap();
    assert!(from_pipe.stdout.len() > 20_000);
    assert_eq!(from_pipe.stdout, from_file.stdout);
}

#[test]
fn a_folder_is_resumed_and_a_bad_file_does_not_stop_it() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, codes) = (dir.path().join("corpus"), dir.path().join("codes"));
    std::fs::create_dir_all(corpus.join("deep")).unwrap();
    write_wav(&corpus.join("a.wav"), 24_000, 1, 0.3);
    write_wav(&corpus.join("deep/b.wav"), 24_000, 1, 0.3);
    std::fs::write(corpus.join("broken.wav"), "RIFF but no more").unwrap();
    std::fs::write(corpus.join("notes.txt"), "not audio").unwrap();
    let run = || codec().args(["tokenize", "--json"]).arg(&corpus).arg("-o").arg(&codes).output().unwrap();

    let first = run();
    assert_eq!(first.status.code(), Some(1));
    assert!(stderr(&first).contains("broken.wav"), "{}", stderr(&first));
    assert!(stderr(&first).contains("1 of 3 failed"), "{}", stderr(&first));
    let lines = json(&first);
    assert_eq!(lines.len(), 3);
    let failed: Vec<_> = lines.iter().filter(|line| line.get("error").is_some()).collect();
    let input = corpus.join("broken.wav").display().to_string();
    assert_eq!((failed.len(), &failed[0]["input"]), (1, &input.clone().into()));
    // The name is not part of what is wrong twice.
    assert_eq!(failed[0]["error"].as_str().unwrap().matches("broken.wav").count(), 1, "{lines:?}");
    assert_eq!(names(&codes), ["a.nac", "deep"]);

    let before = std::fs::metadata(codes.join("a.nac")).unwrap().modified().unwrap();
    let second = run();
    let is_skipped = |line: &serde_json::Value| line["skipped"] == true || line.get("error").is_some();
    assert!(json(&second).iter().all(is_skipped), "{}", stdout(&second));
    assert_eq!(std::fs::metadata(codes.join("a.nac")).unwrap().modified().unwrap(), before);
}

#[test]
fn threads_do_not_change_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let wav = dir.path().join("a.wav");
    write_wav(&wav, 24_000, 1, 1.0);
    let with_threads = |n: &str| {
        let output = codec().args(["--threads", n, "tokenize", "-o", "-"]).arg(&wav).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        output.stdout
    };
    assert_eq!(with_threads("1"), with_threads("3"));
}

#[test]
fn the_channels_of_a_file_are_coded_by_themselves_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_wav(&path("a.wav"), 24_000, 2, 0.6);
    let output = codec()
        .arg("tokenize")
        .arg(path("a.wav"))
        .args(["--each-channel", "--codebooks", "2", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(json(&output)[0]["n_codebooks"], 4);
    let output = codec()
        .arg("detokenize")
        .arg(path("a.nac"))
        .arg("-o")
        .arg(path("b.wav"))
        .args(["-n", "1", "--json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(json(&output)[0]["n_codebooks"], 2);
    let mut reader = codec_io::AudioReader::open(path("b.wav")).unwrap();
    assert_eq!((reader.spec().channels, reader.n_samples()), (2, Some(14_400)));
    let audio = reader.read().unwrap().unwrap();
    assert_ne!(audio.channel(0), audio.channel(1));
}

#[test]
fn cut_cat_info_and_verify_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_wav(&path("a.wav"), 24_000, 1, 2.0);
    assert!(codec().arg("tokenize").arg(path("a.wav")).output().unwrap().status.success());
    let cut = |start: &str, end: &str, to: &str| {
        let mut command = codec();
        command.arg("cut").arg(path("a.nac")).args(["--start", start, "--end", end, "-o"]).arg(path(to));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    };
    cut("0", "0.8", "b.nac");
    cut("0.8", "2", "c.nac");
    let output = codec()
        .arg("cat")
        .args([path("b.nac"), path("c.nac")])
        .arg("-o")
        .arg(path("d.nac"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let info =
        |name: &str| json(&codec().args(["info", "--json"]).arg(path(name)).output().unwrap()).remove(0);
    let (whole, joined) = (info("a.nac"), info("d.nac"));
    assert_eq!(whole["n_frames"], joined["n_frames"]);
    assert_eq!(whole["codebooks"], joined["codebooks"]);
    assert!(whole["codebooks"][0]["entropy_bits"].as_f64().unwrap() > 0.5, "{whole}");
    assert!(codec().arg("verify").arg(dir.path()).output().unwrap().status.success());

    // The model that made the codes says what it waits for: causal, so a frame.
    let model = json(&codec().args(["info", "--json"]).output().unwrap()).remove(0);
    for outcome in [&whole, &model] {
        assert_eq!(outcome["algorithmic_delay"], outcome["hop_length"], "{outcome}");
        assert_eq!(outcome["lookahead"], 0, "{outcome}");
        // Its first layers mirror six frames, so that the first one waits for them.
        assert_eq!(outcome["start_lookahead"], 6 * model["hop_length"].as_u64().unwrap(), "{outcome}");
        assert_eq!(outcome["start_decoder_lookahead"], 6, "{outcome}");
        assert_eq!(outcome["start_delay"], 7 * model["hop_length"].as_u64().unwrap(), "{outcome}");
    }

    let text = stdout(&codec().arg("info").output().unwrap());
    assert!(text.contains("at a start  encoder 1920 samples, decoder 6 frames"), "{text}");

    // One flipped bit in the middle is found and named.
    let mut bytes = std::fs::read(path("a.nac")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path("a.nac"), bytes).unwrap();
    let output = codec().arg("verify").arg(path("a.nac")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("a.nac"), "{}", stderr(&output));
}

#[test]
fn other_weights_are_refused_with_both_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_wav(&path("a.wav"), 24_000, 1, 0.3);
    assert!(codec().arg("tokenize").arg(path("a.wav")).output().unwrap().status.success());
    // A byte of the weights' last tensor changed.
    let model = path("other");
    std::fs::create_dir(&model).unwrap();
    let config = root().join("examples/encodec-tiny/config.json");
    std::fs::copy(config, model.join("config.json")).unwrap();
    let mut weights = std::fs::read(root().join("examples/encodec-tiny/model.safetensors")).unwrap();
    let last = weights.len() - 4;
    weights[last] ^= 1;
    std::fs::write(model.join("model.safetensors"), weights).unwrap();
    let detokenize = |more: &[&str]| {
        let mut command = codec();
        command.env("CODEC_MODEL", &model).arg("detokenize").arg(path("a.nac")).args(more);
        command.arg("-o").arg(path("b.wav")).output().unwrap()
    };
    let refused = detokenize(&[]);
    assert_eq!(refused.status.code(), Some(1));
    let message = stderr(&refused);
    let hashes = message.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64).count();
    assert_eq!(hashes, 2, "{message}");
    assert!(!path("b.wav").exists());
    assert!(detokenize(&["--allow-other-weights"]).status.success());
}

#[test]
fn the_default_model_needs_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let wav = dir.path().join("a.wav");
    write_wav(&wav, 16_000, 1, 1.0);
    let run = |arguments: &[&str], path: &Path| {
        let mut command = codec();
        command.env_remove("CODEC_MODEL").env("CODEC_SHARED", "nowhere").env("XDG_CACHE_HOME", dir.path());
        let output = command.args(arguments).arg(path).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        output
    };
    run(&["tokenize", "--bitrate", "3"], &wav);
    let tokens = dir.path().join("a.nac");
    let info: serde_json::Value = serde_json::from_slice(&run(&["info", "--json"], &tokens).stdout).unwrap();
    assert_eq!(info["model"], "codec-16khz", "{info}");
    run(&["detokenize", "-o", dir.path().join("b.wav").to_str().unwrap()], &tokens);
    let read =
        |name: &str| codec_io::AudioReader::open(dir.path().join(name)).unwrap().read_to_end().unwrap();
    let samples = |name: &str| read(name).n_samples();
    assert_eq!(samples("a.wav"), samples("b.wav"));
}

#[test]
fn rounded_weights_say_what_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let speech = root().join("examples/speech.flac");
    let tokens = dir.path().join("a.nac");
    let run = |arguments: &[&str], output: &Path| {
        let mut command = codec();
        command.env_remove("CODEC_MODEL").args(arguments).arg(&speech).arg("-o").arg(output);
        command.output().unwrap()
    };
    let output = run(&["roundtrip", "--weights", "int8", "--json"], &dir.path().join("a.wav"));
    let outcome = &json(&output)[0];
    let beside = &outcome["beside_float32"];
    let equal = beside["equal_codes"].as_f64().unwrap();
    assert!(equal > 0.5 && equal < 1.0, "{outcome}");
    let (rounded, exact) = (outcome["si_sdr"].as_f64().unwrap(), beside["si_sdr"].as_f64().unwrap());
    assert!(rounded != exact && (rounded - exact).abs() < 1.0, "{outcome}");
    let plain = json(&run(&["roundtrip", "--json"], &dir.path().join("b.wav")));
    assert_eq!(plain[0]["si_sdr"].as_f64(), Some(exact));
    assert!(plain[0].get("beside_float32").is_none());

    assert!(run(&["tokenize", "--weights", "int8"], &tokens).status.success());
    let bytes = std::fs::read(&tokens).unwrap();
    assert_eq!(outcome["n_bytes"], bytes.len());
    let again = run(&["tokenize", "--weights", "int8", "--threads", "1", "--force"], &tokens);
    assert!(again.status.success() && std::fs::read(&tokens).unwrap() == bytes);
    // Those of other weights are not taken for done.
    let other = run(&["tokenize"], &tokens);
    assert!(!other.status.success() && stderr(&other).contains("int8 weights made it, not float32"));
    let decoded = codec().env_remove("CODEC_MODEL").arg("detokenize").arg(&tokens).output().unwrap();
    assert!(decoded.status.success(), "{}", stderr(&decoded));
    // Nor are they joined with those, or marked by hand.
    let plain = dir.path().join("b.nac");
    assert!(run(&["tokenize", "--tag", "weights=mine"], &plain).status.success());
    assert!(run(&["tokenize", "--tag", "weights=mine"], &plain).status.success());
    let joined = codec().arg("cat").args([&plain, &tokens]).arg("-o").arg(dir.path().join("c.nac")).output();
    let joined = joined.unwrap();
    assert!(!joined.status.success() && stderr(&joined).contains("int8"), "{}", stderr(&joined));
    let marked = run(&["tokenize", "--tag", "codec.weights=int8"], &dir.path().join("d.nac"));
    assert!(!marked.status.success() && stderr(&marked).contains("--weights"), "{}", stderr(&marked));
}

#[test]
fn a_missing_model_says_how_to_get_it() {
    let dir = tempfile::tempdir().unwrap();
    write_wav(&dir.path().join("a.wav"), 16_000, 1, 0.1);
    let mut command = codec();
    command.env_remove("CODEC_MODEL").env("CODEC_SHARED", "nowhere").env("XDG_CACHE_HOME", dir.path());
    let output = command.args(["tokenize", "-m", "lyra-v2"]).arg(dir.path().join("a.wav")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    for part in ["codec models pull lyra-v2", "lyragan.tflite", "https://", "codec/models/lyra-v2", "--model"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert_eq!(names(dir.path()), ["a.wav"]);
}

#[test]
fn bad_arguments_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    write_wav(&dir.path().join("a.wav"), 24_000, 1, 0.1);
    std::fs::write(dir.path().join("empty.wav"), "").unwrap();
    let wav = dir.path().join("a.wav");
    for arguments in
        [["--bitrate", "0.01"], ["--bitrate", "NaN"], ["--codebooks", "0"], ["--codebooks", "999"]]
    {
        let output = codec().arg("tokenize").arg(&wav).args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
    }
    for missing in ["empty.wav", "none.wav"] {
        let output = codec().arg("tokenize").arg(dir.path().join(missing)).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(missing), "{}", stderr(&output));
    }
    assert_eq!(names(dir.path()), ["a.wav", "empty.wav"]);
}

#[test]
fn a_sample_that_is_no_number_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.wav");
    let spec = codec_core::AudioSpec { sample_rate: 24_000, channels: 1 };
    let audio = codec_core::AudioBuffer::mono(24_000, vec![0.25; 30_000]).unwrap();
    let mut writer = codec_io::WavWriter::create(&path, spec, codec_io::WavFormat::Float32).unwrap();
    writer.write(&audio).unwrap();
    writer.finish().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 4 * 1_000;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let output = codec().arg("tokenize").arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("sample 29000 is not a finite number"), "{}", stderr(&output));
    assert_eq!(names(dir.path()), ["a.wav"]);
}

#[test]
fn edits_take_stdin_make_folders_and_speak_in_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_wav(&path("a.wav"), 24_000, 1, 1.0);
    assert!(codec().arg("tokenize").arg(path("a.wav")).output().unwrap().status.success());
    let tokens = std::fs::read(path("a.nac")).unwrap();
    let edit = |arguments: &[&str], output: &str| {
        let mut command = codec();
        command.args(arguments).arg("-o").arg(path(output)).write_stdin(tokens.clone());
        command.output().unwrap()
    };
    let output = edit(&["cut", "-", "--start", "0.5"], "new/part.nac");
    assert!(output.status.success(), "{}", stderr(&output));
    let output = edit(&["cat", "-"], "newer/same.nac");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(std::fs::read(path("newer/same.nac")).unwrap(), tokens);
    let late = edit(&["cut", "-", "--start", "1.5"], "late.nac");
    assert!(stderr(&late).contains("the audio ends at 1.000 s"), "{}", stderr(&late));
    let reversed = edit(&["cut", "-", "--start", "0.5", "--end", "0.25"], "reversed.nac");
    assert!(stderr(&reversed).contains("--start 0.5 is not before --end 0.25"), "{}", stderr(&reversed));
    let fewer = edit(&["cut", "-", "-n", "2"], "fewer.nac");
    assert!(fewer.status.success(), "{}", stderr(&fewer));
    let fewer = path("fewer.nac");
    let unlike = edit(&["cat", "-", fewer.to_str().unwrap()], "unlike.nac");
    assert!(stderr(&unlike).contains("8 x 32 against 2 x 32"), "{}", stderr(&unlike));
    assert_eq!(names(dir.path()), ["a.nac", "a.wav", "fewer.nac", "new", "newer"]);
}

#[test]
fn a_file_without_a_whole_packet_gives_no_audio() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_wav(&path("a.wav"), 24_000, 1, 0.3);
    assert!(codec().arg("tokenize").arg(path("a.wav")).output().unwrap().status.success());
    let tokens = std::fs::read(path("a.nac")).unwrap();
    let header_bytes = 16 + 4 + u32::from_le_bytes(tokens[12..16].try_into().unwrap()) as usize;
    std::fs::write(path("a.nac"), &tokens[..header_bytes + 30]).unwrap();
    let output = codec().arg("detokenize").arg(path("a.nac")).arg("-o").arg(path("b.wav")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no packet is whole"), "{}", stderr(&output));
    assert_eq!(names(dir.path()), ["a.nac", "a.wav"]);
}

/// A reason that is part of a message and of its cause would be printed twice.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_once() {
    let dir = tempfile::tempdir().unwrap();
    write_wav(&dir.path().join("a.wav"), 24_000, 1, 0.3);
    for command in ["tokenize", "roundtrip"] {
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_codec"))
            .env("CODEC_MODEL", root().join("examples/encodec-tiny"))
            .arg(command)
            .arg(dir.path().join("a.wav"))
            .args(["-o", "-"])
            .stdout(std::fs::File::create("/dev/full").unwrap())
            .output()
            .unwrap();
        assert_eq!(child.status.code(), Some(1));
        assert_eq!(stderr(&child).matches("No space left").count(), 1, "{}", stderr(&child));
    }
}

/// Killed at any moment, a run leaves nothing under the final name.
#[cfg(unix)]
#[test]
fn kill_leaves_no_file_under_the_final_name() {
    let dir = tempfile::tempdir().unwrap();
    let (wav, tokens) = (dir.path().join("a.wav"), dir.path().join("a.nac"));
    write_wav(&wav, 24_000, 1, 400.0);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_codec"))
        .env("CODEC_MODEL", root().join("examples/encodec-tiny"))
        .args(["--quiet", "tokenize"])
        .arg(&wav)
        .spawn()
        .unwrap();
    // Until the temporary file is there, the run has not begun to write.
    let started = Instant::now();
    while names(dir.path()).len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(30), "the run never began");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!tokens.exists());
    // What it left is removed by the next run, once it is old enough.
    for name in names(dir.path()).iter().filter(|name| name.starts_with(".codec-")) {
        let file = std::fs::File::options().write(true).open(dir.path().join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(120)).unwrap();
    }
    let output = codec().arg("tokenize").arg(&wav).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(names(dir.path()), ["a.nac", "a.wav"]);
}

#[test]
fn an_output_that_is_not_what_was_asked_for_is_no_success() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_wav(&path("a.wav"), 24_000, 1, 0.3);
    let tokenize =
        |more: &[&str]| codec().args(["tokenize", "--json"]).arg(path("a.wav")).args(more).output().unwrap();
    assert!(tokenize(&[]).status.success());
    let before = std::fs::read(path("a.nac")).unwrap();
    assert_eq!(json(&tokenize(&[]))[0]["skipped"], true);
    for (more, expected) in
        [(["-n", "1"], "codebooks, not 1"), (["-m", "codec-16khz"], "made it, not codec-16khz")]
    {
        let output = tokenize(&more);
        assert_eq!(output.status.code(), Some(1), "{more:?}");
        assert!(json(&output)[0]["error"].as_str().unwrap().contains(expected), "{}", stdout(&output));
        assert!(std::fs::read(path("a.nac")).unwrap() == before);
    }
    std::fs::write(path("a.nac"), "no codes").unwrap();
    assert_eq!(tokenize(&[]).status.code(), Some(1));
    assert!(tokenize(&["--force"]).status.success());
    assert!(std::fs::read(path("a.nac")).unwrap() == before);
}

#[test]
fn a_folder_does_not_hide_the_model_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    write_wav(&dir.path().join("a.wav"), 16_000, 1, 0.1);
    std::fs::create_dir(dir.path().join("codec-16khz")).unwrap();
    let run = |model: &str| {
        codec().current_dir(dir.path()).args(["tokenize", "a.wav", "--force", "-m", model]).output().unwrap()
    };
    let by_name = run("codec-16khz");
    assert!(by_name.status.success(), "{}", stderr(&by_name));
    assert!(stderr(&by_name).contains("is taken for the model"), "{}", stderr(&by_name));
    let by_path = run("./codec-16khz");
    assert_eq!(by_path.status.code(), Some(1));
    assert!(stderr(&by_path).contains("none of them weights"), "{}", stderr(&by_path));
    assert!(stderr(&run("")).contains("--model: no name is given"));
}

#[test]
fn more_threads_than_make_sense_are_refused() {
    for threads in ["0", "1025", "100000"] {
        let output = codec().args(["--threads", threads, "verify", "none.nac"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("1..=1024"), "{}", stderr(&output));
    }
}

/// A second request ends at once, however long the work takes, and leaves nothing.
#[cfg(unix)]
#[test]
fn a_second_interrupt_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let wav = dir.path().join("a.wav");
    write_wav(&wav, 24_000, 1, 400.0);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_codec"))
        .env("CODEC_MODEL", root().join("examples/encodec-tiny"))
        .args(["--quiet", "tokenize"])
        .arg(&wav)
        .spawn()
        .unwrap();
    let started = Instant::now();
    while names(dir.path()).len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(30), "the run never began");
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = child.id().to_string();
    for signal in ["-INT", "-TERM"] {
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(dir.path()), ["a.wav"]);
}

#[test]
fn completions_and_manual_are_generated() {
    let script = codec().args(["completions", "bash"]).output().unwrap();
    assert!(stdout(&script).contains("detokenize"));
    let dir = tempfile::tempdir().unwrap();
    assert!(codec().arg("man").arg(dir.path()).output().unwrap().status.success());
    assert!(names(dir.path()).contains(&"codec-tokenize.1".to_owned()));
}

#[test]
fn a_model_that_only_decodes_does_so_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (wav, tokens, back) = (dir.path().join("a.wav"), dir.path().join("a.nac"), dir.path().join("b.wav"));
    write_wav(&wav, 16_000, 1, 0.2);
    let model = root().join("tests/vectors/xcodec2_original");
    let command = |name: &str| {
        let mut command = codec();
        command.env_remove("CODEC_MODEL").arg(name).arg("--model").arg(&model);
        command
    };
    for (name, out) in [("tokenize", &tokens), ("roundtrip", &back)] {
        let output = command(name).arg(&wav).arg("-o").arg(out).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(stderr(&output).contains("model xcodec2 only decodes"), "{name}: {}", stderr(&output));
        assert_eq!(names(dir.path()), ["a.wav"], "{name}");
    }
    let output = command("info").output().unwrap();
    assert!(stdout(&output).contains("only decodes"), "{}", stdout(&output));
    let output = command("info").arg("--json").output().unwrap();
    let info = &json(&output)[0];
    assert_eq!((&info["encodes"], &info["lookahead"]), (&false.into(), &serde_json::Value::Null));

    // Codes come from elsewhere: forty in an array of one codebook.
    let npy = dir.path().join("a.npy");
    let mut bytes =
        b"\x93NUMPY\x01\0v\0{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1, 40), }".to_vec();
    bytes.resize(127, b' ');
    bytes.push(b'\n');
    bytes.extend((0..40_i32).flat_map(i32::to_le_bytes));
    std::fs::write(&npy, &bytes).unwrap();
    let output = codec().env_remove("CODEC_MODEL").arg("import").arg(&npy).output().unwrap();
    assert!(stderr(&output).contains("--model does"), "{}", stderr(&output));
    let output = command("import").arg(&npy).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let n_samples = 40 * 10;
    let output = command("detokenize").arg(&tokens).arg("-o").arg(&back).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(codec_io::AudioReader::open(&back).unwrap().n_samples(), Some(n_samples));
}
