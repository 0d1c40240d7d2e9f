//! `cargo xtask eval` as a user meets it, and whether codecs are as good as they were.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// In the folder `out`, without the models that lie on this machine.
fn eval(out: &Path, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    for variable in ["CODEC_MODELS", "CODEC_SHARED", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "CODEC_MODEL"] {
        command.env_remove(variable);
    }
    for variable in ["XDG_CACHE_HOME", "HF_HOME"] {
        command.env(variable, "nowhere");
    }
    command.current_dir(root()).arg("eval").args(arguments).arg("-o").arg(out).output().unwrap()
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn results(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap()
}

const QUICK: [&str; 10] = [
    "--codec",
    "default",
    "--codec",
    "opus@8,24",
    "--codec",
    "pcm",
    "--metrics",
    "si_sdr,snr,stoi,mel_dac",
    "--no-speed",
    "--max-clips=3",
];

#[test]
fn a_run_writes_a_report_and_is_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let output = eval(&out, &[&QUICK[..], &["--listen=2"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("| opus@24 |") && printed.contains("| pcm |"), "{printed}");

    let found = results(&out);
    let measured = found["measurements"].as_array().unwrap();
    let n_systems = found["systems"].as_array().unwrap().len();
    assert_eq!(measured.len(), 3 * n_systems);
    assert!(n_systems > 4, "{n_systems}");
    for one in measured {
        let number = |name: &str| one[name].as_f64().unwrap();
        let kbps = number("n_bytes") * 8.0 / number("seconds") / 1000.0;
        assert!((number("kbps") / kbps - 1.0).abs() < 1e-9, "{one}");
        assert!(one["payload_kbps"].as_f64().is_none_or(|payload| payload < kbps), "{one}");
        assert!(one["scores"]["mel_dac"].as_f64().is_some_and(f64::is_finite), "{one}");
        // Sixteen bits are what the clips have.
        let snr = one["scores"]["snr"].as_f64().unwrap();
        assert_eq!(one["system"] == "pcm", snr > 80.0, "{one}");
    }
    let mean = |system: &str, metric: &str| {
        let of_system = measured.iter().filter(|one| one["system"] == system);
        let scores: Vec<f64> = of_system.filter_map(|one| one["scores"][metric].as_f64()).collect();
        scores.iter().sum::<f64>() / scores.len() as f64
    };
    assert!(mean("opus@24", "mel_dac") < mean("opus@8", "mel_dac"));
    assert!(mean("opus@24", "si_sdr") > mean("opus@8", "si_sdr"));
    assert!(!found["codebooks"].as_array().unwrap().is_empty());
    assert_eq!(found["failures"].as_array().unwrap().len(), 0);

    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    // Not as letters of a sound in base64.
    for wrong in ["http:", "https:", ">NaN", "\"NaN", " NaN", "<script", "<link"] {
        assert!(!page.contains(wrong), "{wrong}");
    }
    // The originals of two clips and what all but PCM made of them.
    assert_eq!(page.matches("<audio ").count(), 2 * n_systems);
    assert_eq!(page.matches("src=\"data:image/png;base64,").count(), 2 * n_systems);
    let table = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(table.contains("## Provenance"), "{table}");
    let rows = std::fs::read_to_string(out.join("results.csv")).unwrap();
    assert_eq!(rows.lines().count(), 1 + measured.len());

    // What is there is not done again, and what is lost is.
    let items = || -> Vec<(PathBuf, std::time::SystemTime)> {
        let entries = std::fs::read_dir(out.join("items")).unwrap().map(|entry| entry.unwrap().path());
        let mut items: Vec<PathBuf> = entries.filter(|path| path.extension().unwrap() == "json").collect();
        items.sort();
        items.into_iter().map(|path| (path.clone(), path.metadata().unwrap().modified().unwrap())).collect()
    };
    let before = items();
    assert_eq!(before.len(), measured.len());
    std::fs::remove_file(&before[0].0).unwrap();
    assert!(eval(&out, &[&QUICK[..], &["--listen=2"]].concat()).status.success());
    let after = items();
    assert_eq!(before[1..], after[1..]);
    assert_ne!(before[0], after[0]);
    assert_eq!(results(&out)["measurements"], found["measurements"]);
}

#[test]
fn a_clip_that_fails_does_not_end_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let clips = dir.path().join("clips");
    std::fs::create_dir(&clips).unwrap();
    std::fs::copy(root().join("examples/chirp.wav"), clips.join("good.wav")).unwrap();
    std::fs::write(clips.join("broken.wav"), "RIFF and nothing else").unwrap();
    let out = dir.path().join("out");
    let arguments =
        ["--data", clips.to_str().unwrap(), "--codec", "opus@16", "--metrics=si_sdr", "--no-speed"];
    let output = eval(&out, &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let found = results(&out);
    assert_eq!(found["measurements"][0]["clip"], "good");
    assert_eq!(found["failures"][0]["clip"], "broken");
    assert!(std::fs::read_to_string(out.join("report.html")).unwrap().contains("1 clip failed in 1 system"));
}

#[test]
fn mistakes_are_told_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str], why: &str| {
        let output = eval(&dir.path().join("out"), arguments);
        assert!(
            !output.status.success() && stderr(&output).contains(why),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(!dir.path().join("out").exists());
    };
    refused(&["--codec", "lyra-v3"], "did you mean lyra-v2?");
    refused(&["--codec", "opus@3"], "Opus goes from 6");
    refused(&["--codec", "opus@fast"], "not a bitrate");
    refused(&["--codec", "opus@8", "--codec", "opus@8"], "named twice");
    refused(&["--codec", "pcm@16"], "no bitrate to choose");
    refused(&["--codec", "opus", "--data", "nowhere"], "no such file or folder");
    refused(&["--codec", "opus", "--against", "README.md"], "not the results of an evaluation");
    refused(&["--codec", "opus", "--metrics", "visqol"], "no such metric");
    refused(&["--codec", "opus", "--scores", "nosuch.csv"], "nosuch.csv");
    refused(&["--codec", "opus", "--report-size=-1"], "must not be negative");
    let table = dir.path().join("scores.csv");
    let table = table.to_str().unwrap();
    std::fs::write(table, "clip,system,utmos\nspeech-1,nobody@3,4\n").unwrap();
    refused(&["--codec", "opus@8", "--scores", table], "no system is called nobody@3");
    std::fs::write(table, "clip,system,stoi\nspeech-1,opus@8,1\n").unwrap();
    refused(&["--codec", "opus@8", "--scores", table], "stoi is measured here");
    let other = dir.path().join("encodec-tiny");
    std::fs::create_dir(&other).unwrap();
    for file in std::fs::read_dir(root().join("examples/encodec-tiny")).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, other.join(path.file_name().unwrap())).unwrap();
    }
    refused(
        &["--codec", "examples/encodec-tiny", "--codec", other.to_str().unwrap()],
        "both called encodec-tiny",
    );
}

#[test]
fn the_help_tells_the_exit_codes() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(["eval", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.contains("Exit codes: 0 all went well") && help.contains("130"), "{help}");
}

/// The default model is compared in the same way by `.ci/run`. Make the file again as docs/evaluation.md says when a
/// change is meant to move it.
#[test]
fn codecs_are_as_good_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let baseline = root().join("tests/vectors/eval.json");
    let out = dir.path().join("out");
    let codecs = ["--codec", "examples/encodec-tiny@0.75", "--codec", "opus@12", "--no-speed", "--listen=0"];
    let run = |against: &Path| eval(&out, &[&codecs[..], &["--against", against.to_str().unwrap()]].concat());
    let output = run(&baseline);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("no worse than before"), "{}", stderr(&output));

    // The same run against one that was better in one metric, by less than a twentieth.
    let mut better: Value = serde_json::from_slice(&std::fs::read(&baseline).unwrap()).unwrap();
    for one in better["measurements"].as_array_mut().unwrap() {
        if one["system"] == "opus@12" {
            let score = one["scores"]["mel_dac"].as_f64().unwrap();
            one["scores"]["mel_dac"] = (0.96 * score).into();
        }
    }
    let path = dir.path().join("better.json");
    std::fs::write(&path, serde_json::to_vec(&better).unwrap()).unwrap();
    let output = run(&path);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("worse: mel_dac of opus@12") && said.matches("worse: ").count() == 1, "{said}");
}
