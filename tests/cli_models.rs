//! The command `codec models`, against a web server of its own.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "../crates/codec-hub/tests/support/mod.rs"]
#[expect(dead_code, reason = "how servers misbehave is tested where they are asked")]
mod support;

use assert_cmd::Command;
use std::path::{Path, PathBuf};
use std::process::Output;
use support::{Reply, Server};

/// A model on the hub whose card states no hash of its weights.
const MODEL: &str = "encodec_48khz";
const REPOSITORY: &str = "facebook/encodec_48khz";
const EMBEDDED: &str = "codec-16khz";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn tiny(name: &str) -> Vec<u8> {
    std::fs::read(root().join("examples/encodec-tiny").join(name)).unwrap()
}

/// The command with folders and a hub of its own.
fn codec(folder: &Path, endpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codec"));
    command.env_clear();
    for (variable, value) in [("XDG_CACHE_HOME", folder.join("cache")), ("HF_HOME", folder.join("hf"))] {
        command.env(variable, value);
    }
    command.env("HF_ENDPOINT", endpoint).current_dir(folder);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Vec<serde_json::Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ok(output: Output) -> Output {
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

#[test]
fn a_model_is_pulled_once_and_used_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    for name in ["config.json", "model.safetensors"] {
        server.on(&format!("/{REPOSITORY}/resolve/main/{name}"), &[Reply::File(tiny(name))]);
    }
    let run = |arguments: &[&str]| codec(folder.path(), &server.url).args(arguments).output().unwrap();
    let wav = root().join("examples/chirp.wav");
    let tokenize = ["tokenize", wav.to_str().unwrap(), "-o", "chirp.nac", "--model", MODEL];

    let missing = run(&tokenize);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains(&format!("codec models pull {MODEL}")), "{}", stderr(&missing));
    assert_eq!(run(&["models", "path", MODEL]).status.code(), Some(1));

    let pulled = json(&ok(run(&["models", "pull", MODEL, "--json"]))).remove(0);
    let place = folder.path().join("cache/codec/models").join(MODEL);
    assert_eq!(pulled["folder"].as_str().map(Path::new), Some(place.as_path()));
    assert_eq!(json(&ok(run(&["models", "path", MODEL, "--json"])))[0]["folder"], pulled["folder"]);
    ok(run(&tokenize));
    let states: Vec<_> =
        json(&ok(run(&["models", "verify", "--json"]))).iter().map(|file| file["state"].clone()).collect();
    assert_eq!(states, ["locked", "locked"]);
    let listed = json(&ok(run(&["models", "list", "--json"])));
    let is_here = |model: &serde_json::Value| (model["name"] == MODEL) == model["folder"].is_string();
    assert!(listed.len() > 4 && listed.iter().all(is_here));
    assert_eq!(server.requests().len(), 2, "everything after the pull is offline");

    // The codes of a changed file would be other codes.
    let mut weights = tiny("model.safetensors");
    *weights.last_mut().unwrap() ^= 1;
    std::fs::write(place.join("model.safetensors"), weights).unwrap();
    for arguments in [&["models", "verify"][..], &["tokenize", tokenize[1], "-o", "b.nac", "-m", MODEL]] {
        let refused = run(arguments);
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&refused).contains("SHA-256"), "{}", stderr(&refused));
    }
}

#[test]
fn a_model_in_the_cache_of_hugging_face_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("hf/hub/models--facebook--encodec_48khz/snapshots/c0ffee");
    std::fs::create_dir_all(&snapshot).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::write(snapshot.join(name), tiny(name)).unwrap();
    }
    let wav = root().join("examples/chirp.wav");
    let output = codec(folder.path(), &support::nobody())
        .args(["tokenize", wav.to_str().unwrap(), "-o", "chirp.nac", "-m", MODEL])
        .output()
        .unwrap();
    ok(output);
}

#[test]
fn another_file_than_the_published_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let model = codec_io::card::find("dac_44khz").unwrap();
    for file in &model.files {
        let Some(codec_io::card::Origin::Hub { repository, revision, path }) = model.origin(file) else {
            panic!("not on the hub");
        };
        server.on(&format!("/{repository}/resolve/{revision}/{path}"), &[Reply::File(b"{}".to_vec())]);
    }
    let output = codec(folder.path(), &server.url).args(["models", "pull", "dac_44khz"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("2 bytes, expected 541"), "{}", stderr(&output));
    let left = std::fs::read_dir(folder.path().join("cache/codec/models/dac_44khz")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn licences_are_told_and_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| codec(folder.path(), &support::nobody()).args(arguments).output().unwrap();
    let refused = run(&["models", "pull", "encodec_32khz"]);
    assert_eq!(refused.status.code(), Some(1));
    for part in ["CC-BY-NC-4.0", "--accept-non-commercial"] {
        assert!(stderr(&refused).contains(part), "{}", stderr(&refused));
    }
    let shown = String::from_utf8(ok(run(&["models", "show", "encodec_24khz", "lyra-v2"])).stdout).unwrap();
    for part in ["no licence stated", "CC-BY-NC 4.0", "Apache-2.0", "237da0b16226fb0a", "/google/lyra/raw/"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let unknown = run(&["models", "show", "encodec_42khz"]);
    assert!(stderr(&unknown).contains("did you mean encodec_24khz?"), "{}", stderr(&unknown));
}

#[test]
fn the_embedded_model_has_nothing_to_fetch() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| codec(folder.path(), &support::nobody()).args(arguments).output().unwrap();
    for action in ["pull", "path", "verify"] {
        let refused = run(&["models", action, EMBEDDED]);
        assert_eq!(refused.status.code(), Some(1), "{action}");
        let message = stderr(&refused);
        assert!(message.contains(&format!("{EMBEDDED} is part of this program")), "{action}: {message}");
        assert!(refused.stdout.is_empty(), "{action}");
    }
    let shown = String::from_utf8(ok(run(&["models", "show", EMBEDDED])).stdout).unwrap();
    assert!(shown.contains("part of this program"), "{shown}");
    for listed in json(&ok(run(&["models", "list", "--json"]))) {
        assert_eq!(listed["embedded"], listed["name"] == EMBEDDED, "{listed}");
    }
    let listed = String::from_utf8(ok(run(&["models", "list"])).stdout).unwrap();
    let is_here: Vec<_> = listed.lines().filter(|line| line.starts_with("* ")).collect();
    assert!(matches!(is_here[..], [line] if line.contains(EMBEDDED)), "{listed}");
}

#[test]
fn the_proxies_of_the_environment_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = Server::start();
    for name in ["config.json", "model.safetensors"] {
        proxy.on(&format!("/{REPOSITORY}/resolve/main/{name}"), &[Reply::File(tiny(name))]);
    }
    let hub = support::nobody();
    let run = |endpoint: &str, no_proxy: &str, more: &[&str]| {
        let mut command = codec(folder.path(), endpoint);
        command.env("HTTP_PROXY", &proxy.url).env("NO_PROXY", no_proxy);
        ok(command.args(["models", "pull", MODEL]).args(more).output().unwrap())
    };
    let n_tunnels = || proxy.requests().iter().filter(|it| it.path.starts_with("CONNECT ")).count();
    run(&hub, "hub.example", &[]);
    assert_eq!(n_tunnels(), 2);
    // A host that is named there is asked itself.
    run(&proxy.url, "127.0.0.1", &["--force"]);
    assert_eq!((n_tunnels(), proxy.requests().len()), (2, 2 + 4));
}

#[test]
fn a_hub_that_does_not_answer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let offline = codec(folder.path(), "http://127.0.0.1:9")
        .env("HF_HUB_OFFLINE", "1")
        .args(["models", "pull", MODEL])
        .output();
    assert!(stderr(&offline.unwrap()).contains("HF_HUB_OFFLINE is set"));
    let wrong = codec(folder.path(), "hub.example").args(["models", "pull", MODEL]).output().unwrap();
    assert!(stderr(&wrong).contains("HF_ENDPOINT"), "{}", stderr(&wrong));
}
