//! The command `codec models`, against a web server of its own.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "../crates/codec-hub/tests/support/mod.rs"]
#[expect(dead_code, reason = "how servers misbehave is tested where they are asked")]
mod support;

use assert_cmd::Command;
use codec_hub::{Client, Settings};
use std::path::{Path, PathBuf};
use std::process::Output;
use support::{Reply, Server};

/// A model on the hub of which the card states no hash, so that any files are accepted for it.
const MODEL: &str = "dac_16khz";
const EMBEDDED: &str = "codec-16khz";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn tiny(name: &str) -> Vec<u8> {
    std::fs::read(root().join("examples/encodec-tiny").join(name)).unwrap()
}

/// Where the hub has a file of the model.
fn address(name: &str) -> String {
    let card = codec_io::card::find(MODEL).unwrap();
    let file = card.files.iter().find(|file| file.name == name).unwrap();
    assert!(file.sha256.is_none() && file.size.is_none(), "{MODEL} is of no use here any more");
    let url = Client::new(Settings::default()).unwrap().url(&card.origin(file).unwrap());
    url.strip_prefix("https://huggingface.co").unwrap().to_owned()
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
        server.on(&address(name), &[Reply::File(tiny(name))]);
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
        assert!(stderr(&refused).contains(&format!("pull {MODEL} --force")), "{}", stderr(&refused));
    }
    let refused = run(&["models", "verify", "--json"]);
    assert_eq!(refused.status.code(), Some(1));
    let files = json(&refused);
    let states: Vec<_> = files.iter().map(|file| file["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["locked", "changed"]);
    assert_ne!(files[1]["expected_sha256"], files[1]["sha256"]);
    assert_eq!(files[1]["expected_sha256"].as_str().unwrap().len(), 64);
}

#[test]
fn a_changed_configuration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    for name in ["config.json", "model.safetensors"] {
        server.on(&address(name), &[Reply::File(tiny(name))]);
    }
    let run = |arguments: &[&str]| codec(folder.path(), &server.url).args(arguments).output().unwrap();
    let place = folder.path().join("cache/codec/models").join(MODEL);
    ok(run(&["models", "pull", MODEL]));
    let wav = root().join("examples/chirp.wav");
    let tokenize = ["tokenize", wav.to_str().unwrap(), "-o", "chirp.nac", "--model", MODEL];
    let config = String::from_utf8(tiny("config.json")).unwrap();
    // One that loads, and one that does not.
    for config in [format!("{config} "), "{}".to_owned()] {
        std::fs::write(place.join("config.json"), config).unwrap();
        let refused = run(&tokenize);
        assert_eq!(refused.status.code(), Some(1));
        let message = stderr(&refused);
        for part in ["config.json: SHA-256", &format!("pull {MODEL} --force")] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let files = json(&run(&["models", "verify", "--json"]));
        let states: Vec<_> = files.iter().map(|file| file["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["changed", "locked"], "one file does not hide the next");
    }
    ok(run(&["models", "pull", MODEL, "--force"]));
    ok(run(&tokenize));
}

#[test]
fn files_that_are_not_known_to_be_the_published_ones_can_be_fetched_anew() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let run = |arguments: &[&str]| codec(folder.path(), &server.url).args(arguments).output().unwrap();
    let wav = root().join("examples/chirp.wav");
    // A page of the server's own.
    server.on(&address("config.json"), &[Reply::File(tiny("config.json"))]);
    server.on(&address("model.safetensors"), &[Reply::File(b"<html>Log in</html>".to_vec())]);
    let refused = run(&["models", "pull", MODEL]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("not a safetensors file"), "{}", stderr(&refused));
    // A file of the right kind without the right tensors.
    let empty = [&2_u64.to_le_bytes()[..], b"{}"].concat();
    for bytes in [empty, tiny("model.safetensors")[..1000].to_vec()] {
        let place = folder.path().join("cache/codec/models").join(MODEL);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("config.json"), tiny("config.json")).unwrap();
        std::fs::write(place.join("model.safetensors"), bytes).unwrap();
        let refused = run(&["tokenize", wav.to_str().unwrap(), "-o", "chirp.nac", "--model", MODEL]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(&format!("pull {MODEL} --force")), "{}", stderr(&refused));
        std::fs::remove_file(folder.path().join("chirp.nac")).ok();
    }
}

#[test]
fn a_pull_tells_that_it_tries_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let config = [Reply::Later { status: 503, retry_after: 1 }, Reply::File(tiny("config.json"))];
    server.on(&address("config.json"), &config);
    server.on(&address("model.safetensors"), &[Reply::File(tiny("model.safetensors"))]);
    let pulled = codec(folder.path(), &server.url).args(["models", "pull", MODEL]).output().unwrap();
    let message = stderr(&ok(pulled));
    assert!(message.contains("503") && message.contains("trying again in 1 s (2 of 5)"), "{message}");
}

#[test]
fn the_list_is_a_table_with_a_title() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| codec(folder.path(), &support::nobody()).args(arguments).output().unwrap();
    let text = String::from_utf8(ok(run(&["models", "list"])).stdout).unwrap();
    let mut lines = text.lines();
    let titles = lines.next().unwrap();
    let family_at = titles.find("family").unwrap();
    let rates_at = titles.find("kbit/s").unwrap();
    for line in lines {
        for at in [family_at, rates_at] {
            assert!(line.as_bytes()[at - 2..at] == *b"  " && line.as_bytes()[at] != b' ', "{line}");
        }
    }
    let models = json(&ok(run(&["models", "list", "--json"])));
    assert_eq!(models.len() + 1, text.lines().count());
    let model = |name: &str| models.iter().find(|model| model["name"] == name).unwrap();
    let kbps = |name: &str| -> Vec<f64> { serde_json::from_value(model(name)["kbps"].clone()).unwrap() };
    assert_eq!(kbps("dac_16khz")[..3], [0.5, 1.0, 1.5]);
    assert_eq!(kbps("dac_16khz").len(), 12);
    assert_eq!((kbps(EMBEDDED)[0], kbps("mimi")[0], kbps("mimi").len()), (0.5, 0.1375, 32));
    assert_eq!(model("lyra-v2")["published_kbps"], serde_json::json!([3.2, 6.0, 9.2]));
    assert!(model("mimi")["size"].is_null() && model("mimi")["size_at_least"].as_u64() > Some(384_000_000));
    assert!(model("lyra-v2")["size"].is_u64() && model("lyra-v2")["size_at_least"].is_null());
    let shown = run(&["models", "show", "dac_24khz", "bigcodec"]);
    let shown = String::from_utf8(ok(shown).stdout).unwrap();
    assert!(shown.contains("0.75 to 24 in steps of 0.75 kbit/s"), "{shown}");
    assert_eq!(shown.matches("the revision is not pinned").count(), 1, "{shown}");
}

#[test]
fn a_broken_lock_file_hides_no_other_model() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| codec(folder.path(), &support::nobody()).args(arguments).output().unwrap();
    let n_models = json(&ok(run(&["models", "list", "--json"]))).len();
    let place = folder.path().join("cache/codec/models").join(MODEL);
    std::fs::create_dir_all(&place).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::write(place.join(name), tiny(name)).unwrap();
    }
    std::fs::write(place.join("codec-lock.json"), "{").unwrap();
    let listed = run(&["models", "list", "--json"]);
    assert_eq!((listed.status.code(), json(&listed).len()), (Some(1), n_models));
    for model in json(&listed) {
        assert_eq!(model["problem"].is_string(), model["name"] == MODEL, "{model}");
    }
    assert!(stderr(&listed).contains("not a lock file"), "{}", stderr(&listed));
    let text = String::from_utf8(run(&["models", "list"]).stdout).unwrap();
    assert!(text.contains(&format!("\n! {MODEL} ")), "{text}");
}

#[test]
fn the_working_directory_does_not_decide_which_models_are_here() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    std::fs::create_dir_all(shared.join("lyra")).unwrap();
    std::fs::create_dir_all(folder.path().join("work")).unwrap();
    for file in &codec_io::card::find("lyra-v2").unwrap().files {
        std::fs::write(shared.join("lyra").join(&file.name), "x").unwrap();
    }
    let mut command = codec(folder.path(), &support::nobody());
    command.current_dir(folder.path().join("work")).env("CODEC_SHARED", &shared);
    let refused = command.args(["models", "path", "lyra-v2"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
}

#[test]
fn a_model_in_the_cache_of_hugging_face_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("hf/hub/models--descript--dac_16khz/snapshots/c0ffee");
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
    for (action, code) in [("pull", 0), ("path", 1), ("verify", 0)] {
        let told = run(&["models", action, EMBEDDED]);
        assert_eq!(told.status.code(), Some(code), "{action}");
        let message = stderr(&told);
        assert!(message.contains(&format!("{EMBEDDED} is part of this program")), "{action}: {message}");
        assert!(told.stdout.is_empty(), "{action}");
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
        proxy.on(&address(name), &[Reply::File(tiny(name))]);
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
