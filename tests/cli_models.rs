//! The command `codec models`, against a web server of its own.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "../crates/codec-hub/tests/support/mod.rs"]
#[expect(dead_code, reason = "how servers misbehave is tested where they are asked")]
mod support;

use assert_cmd::Command;
use candle_core::{Device, Tensor};
use codec_hub::{Client, Settings};
use codec_nn::families::networks;
use codec_nn::weights::{Checkpoint, Variables};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::LazyLock;
use support::{Reply, Server};

/// A model on the hub of which the card states no hash, so that any files are accepted for it.
const MODEL: &str = "dac_16khz";
const EMBEDDED: &str = "codec-16khz";
/// What it is, as its card has it, with hardly any weights.
const CONFIG: &str = r#"{"model_type": "dac", "sampling_rate": 16000, "n_codebooks": 12, "codebook_size": 1024,
    "codebook_dim": 2, "downsampling_ratios": [2, 4, 5, 8], "encoder_hidden_size": 2, "hidden_size": 32,
    "decoder_hidden_size": 16}"#;
/// Another such model, whose family gives it the name of a third.
const RENAMED: &str = "speechtokenizer-snake";
const RENAMED_CONFIG: &str = r#"{"activation": "Snake", "bidirectional": true, "codebook_size": 1024,
    "dilation_base": 2, "dimension": 4, "lstm_layers": 1, "n_filters": 2, "n_q": 8, "n_residual_layers": 1,
    "residual_kernel_size": 3, "sample_rate": 16000, "semantic_dimension": 4, "strides": [8, 5, 4, 2]}"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// New weights for a configuration, as a safetensors file.
fn new_weights(config: &str) -> Vec<u8> {
    let variables = Variables::seeded(&Device::Cpu, 1);
    networks(&Checkpoint::from_config(config, &Device::Cpu).trained(&variables)).unwrap();
    let values = variables.all().into_iter().map(|(name, var)| (name, var.as_detached_tensor()));
    let tensors: HashMap<String, Tensor> = values.chain(variables.constants()).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    candle_core::safetensors::save(&tensors, file.path()).unwrap();
    std::fs::read(file.path()).unwrap()
}

/// A file of the model.
fn tiny(name: &str) -> Vec<u8> {
    static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(|| new_weights(CONFIG));
    if name == "config.json" { CONFIG.into() } else { WEIGHTS.clone() }
}

/// Puts the files of a model where a pull would.
fn put(folder: &Path, model: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let place = folder.join("cache/codec/models").join(model);
    std::fs::create_dir_all(&place).unwrap();
    for (name, bytes) in files {
        std::fs::write(place.join(name), bytes).unwrap();
    }
    place
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
        put(folder.path(), MODEL, &[("config.json", &tiny("config.json")), ("model.safetensors", &bytes)]);
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
    let place = put(folder.path(), MODEL, &[("config.json", b"{}"), ("model.safetensors", b"")]);
    std::fs::write(place.join("codec-lock.json"), "{").unwrap();
    let listed = run(&["models", "list", "--json"]);
    assert_eq!((listed.status.code(), json(&listed).len()), (Some(1), n_models));
    for model in json(&listed) {
        assert_eq!(model["problem"].is_string(), model["name"] == MODEL, "{model}");
    }
    assert!(stderr(&listed).contains("not a lock file"), "{}", stderr(&listed));
    let text = String::from_utf8(run(&["models", "list"]).stdout).unwrap();
    assert!(text.contains(&format!("\n! {MODEL} ")), "{text}");

    // A cause is told, and told once.
    std::fs::remove_file(place.join("codec-lock.json")).unwrap();
    std::fs::create_dir(place.join("codec-lock.json")).unwrap();
    let listed = run(&["models", "list", "--json"]);
    let problems: Vec<_> =
        json(&listed).iter().filter_map(|it| it["problem"].as_str().map(str::to_owned)).collect();
    assert!(matches!(problems.as_slice(), [it] if it.matches("(os error ").count() == 1), "{problems:?}");
    for arguments in [&["models", "list"][..], &["models", "verify"], &["models", "path", MODEL]] {
        let message = stderr(&run(arguments));
        assert_eq!(message.matches("(os error ").count(), 1, "{message}");
    }
}

#[test]
fn the_hashes_of_a_pull_count_whatever_codec_models_is_by_then() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    for name in ["config.json", "model.safetensors"] {
        server.on(&address(name), &[Reply::File(tiny(name))]);
    }
    ok(codec(folder.path(), &server.url).args(["models", "pull", MODEL]).output().unwrap());
    let wav = root().join("examples/chirp.wav");
    let run = |arguments: &[&str]| {
        let mut command = codec(folder.path(), &server.url);
        command.env("CODEC_MODELS", folder.path().join("empty")).args(arguments).output().unwrap()
    };
    let tokenize = ["tokenize", wav.to_str().unwrap(), "-o", "chirp.nac", "-m", MODEL];
    ok(run(&tokenize));
    let states = |output: &Output| -> Vec<_> {
        json(output).iter().map(|file| file["state"].as_str().unwrap().to_owned()).collect()
    };
    let verify = ["models", "verify", "--json"];
    assert_eq!(states(&ok(run(&verify))), ["locked", "locked"]);

    let mut weights = tiny("model.safetensors");
    *weights.last_mut().unwrap() ^= 1;
    put(folder.path(), MODEL, &[("model.safetensors", &weights)]);
    let verified = run(&verify);
    assert_eq!(
        (verified.status.code(), states(&verified)),
        (Some(1), vec!["locked".into(), "changed".into()])
    );
    let refused = run(&["tokenize", tokenize[1], "-o", "b.nac", "-m", MODEL]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("SHA-256"), "{}", stderr(&refused));
}

#[test]
fn token_files_carry_the_name_of_the_card_and_lead_back_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let weights = new_weights(RENAMED_CONFIG);
    let place =
        put(folder.path(), RENAMED, &[("config.json", RENAMED_CONFIG.as_bytes()), ("ckpt.dev", &weights)]);
    let path = place.join("ckpt.dev");
    let run = |arguments: &[&str]| codec(folder.path(), &support::nobody()).args(arguments).output().unwrap();
    let wav = root().join("examples/chirp.wav");
    let tokenize = |model: &str, to: &str| {
        ok(run(&["tokenize", "--json", wav.to_str().unwrap(), "-o", to, "-m", model]))
    };
    let model_of = |tokens: &str| json(&ok(run(&["info", "--json", tokens]))).remove(0)["model"].clone();
    // By its name, or another one that it has.
    tokenize(RENAMED, "a.nac");
    tokenize("fnlp/AnyGPT-speech-modules", "b.nac");
    assert_eq!((model_of("a.nac"), model_of("b.nac")), (RENAMED.into(), RENAMED.into()));
    ok(run(&["detokenize", "a.nac", "-o", "a.wav"]));

    // A path has the family's name, as token files had it before; with the name of the card they decode alike.
    tokenize(path.to_str().unwrap(), "old.nac");
    assert_eq!(model_of("old.nac"), "speechtokenizer");
    let missing = run(&["detokenize", "old.nac", "-o", "old.wav"]);
    assert!(
        stderr(&missing).contains("model speechtokenizer is not on this machine"),
        "{}",
        stderr(&missing)
    );
    ok(run(&["detokenize", "old.nac", "-o", "old.wav", "-m", RENAMED]));
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(read("old.wav") == read("a.wav"));
    // And they are finished outputs of it.
    assert_eq!(json(&tokenize(RENAMED, "old.nac"))[0]["skipped"], true);
    assert_eq!(json(&tokenize(path.to_str().unwrap(), "a.nac"))[0]["skipped"], true);
}

#[test]
fn files_of_another_model_than_the_card_says_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| codec(folder.path(), &support::nobody()).args(arguments).output().unwrap();
    let wav = root().join("examples/chirp.wav");
    let encodec = |name: &str| std::fs::read(root().join("examples/encodec-tiny").join(name)).unwrap();
    let fewer = CONFIG.replace("\"n_codebooks\": 12", "\"n_codebooks\": 2");
    for (config, weights, expected) in [
        (encodec("config.json"), encodec("model.safetensors"), "family encodec, not dac"),
        (fewer.clone().into(), new_weights(&fewer), "codebooks 2 x 1024, not 12 x 1024;"),
    ] {
        put(folder.path(), MODEL, &[("config.json", &config), ("model.safetensors", &weights)]);
        let refused = run(&["tokenize", wav.to_str().unwrap(), "-o", "a.nac", "-m", MODEL]);
        assert_eq!(refused.status.code(), Some(1));
        let message = stderr(&refused);
        for part in [MODEL, expected, "than its card says", &format!("pull {MODEL} --force")] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!folder.path().join("a.nac").exists());
    }
}

#[test]
fn codes_of_the_same_weights_in_another_file_are_told_from_those_of_others() {
    let folder = tempfile::tempdir().unwrap();
    put(
        folder.path(),
        MODEL,
        &[("config.json", &tiny("config.json")), ("model.safetensors", &tiny("model.safetensors"))],
    );
    let run = |arguments: &[&str]| codec(folder.path(), &support::nobody()).args(arguments).output().unwrap();
    let card = codec_io::card::find("dac_16khz-original").unwrap();
    let model = codec_models::load(
        folder.path().join("cache/codec/models").join(MODEL).to_str().unwrap(),
        &Device::Cpu,
    );
    let codec = model.unwrap().codec;
    let info = codec.info();
    // As earlier versions wrote it: the family's name with the hash of the other file.
    let weights = card.files[0].sha256.unwrap();
    let header = codec_io::tokens::TokenHeader::new(info, 1, weights, info.audio).unwrap();
    let mut writer = codec_io::tokens::TokenWriter::new(Vec::new(), header).unwrap();
    writer
        .push(&codec_core::Codes::new(info.layout.truncated(1).unwrap(), vec![vec![5; 10]]).unwrap())
        .unwrap();
    let totals = codec_io::tokens::Totals { n_samples: 3000, source_samples: 3000 };
    let tokens = folder.path().join("a.nac");
    std::fs::write(&tokens, writer.finish(totals).unwrap()).unwrap();
    let refused = run(&["detokenize", "a.nac", "-o", "a.wav"]);
    assert_eq!(refused.status.code(), Some(1));
    let message = stderr(&refused);
    for part in
        ["--model dac_16khz-original decodes them", "the same ones in another file", "--allow-other-weights"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    ok(run(&["detokenize", "a.nac", "-o", "a.wav", "--allow-other-weights"]));
}

#[test]
fn a_token_that_cannot_be_one_is_named_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let pull = |variable: &str, value: &str| {
        let mut command = codec(folder.path(), &server.url);
        command.env(variable, value).args(["models", "pull", MODEL]).output().unwrap()
    };
    let stored = folder.path().join("token");
    std::fs::write(&stored, "hf_a b\n").unwrap();
    let refused = [
        pull("HF_TOKEN", "hf_a\nhf_b"),
        pull("HF_TOKEN", "hf_\u{e9}"),
        pull("HF_TOKEN_PATH", stored.to_str().unwrap()),
    ];
    for refused in refused {
        let message = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            message.contains("HF_TOKEN: ") && !message.contains("hf_") && !message.contains("again"),
            "{message}"
        );
    }
    assert!(server.requests().is_empty());
}

#[test]
fn what_needs_no_network_does_not_fail_for_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = codec(folder.path(), "hub.example");
        for (variable, value) in [("SSL_CERT_FILE", "nowhere"), ("HF_TOKEN", "a\nb"), ("HTTPS_PROXY", "::")] {
            command.env(variable, value);
        }
        command.args(arguments).output().unwrap()
    };
    let shown = String::from_utf8(ok(run(&["models", "show", MODEL])).stdout).unwrap();
    assert!(shown.contains("https://huggingface.co/descript/dac_16khz/resolve/"), "{shown}");
    ok(run(&["models", "list"]));
    ok(run(&["models", "verify"]));
    assert_eq!(run(&["models", "pull", MODEL]).status.code(), Some(1));
    // A mirror is shown where one is named.
    let mirrored =
        codec(folder.path(), "https://hub.example").args(["models", "show", MODEL]).output().unwrap();
    let mirrored = String::from_utf8(ok(mirrored).stdout).unwrap();
    assert!(mirrored.contains("https://hub.example/descript/dac_16khz/resolve/"), "{mirrored}");
}

#[test]
fn where_only_names_are_taken_no_path_is_offered() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| codec(folder.path(), &support::nobody()).args(arguments).output().unwrap();
    for action in ["show", "pull", "verify", "path"] {
        for name in ["", ".", "lyra-v3"] {
            let refused = run(&["models", action, name]);
            assert_eq!(refused.status.code(), Some(1), "{action} {name}");
            let message = stderr(&refused);
            assert!(message.contains(&format!("`{name}` is not the name of a model")), "{action}: {message}");
            assert!(!message.contains("folder"), "{action}: {message}");
        }
    }
    let refused = run(&["info", "-m", "lyra-v3"]);
    assert!(stderr(&refused).contains("neither a file or folder nor a known model"), "{}", stderr(&refused));
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
    // What is known of a licence that is disputed is told before anything is fetched.
    let disputed = stderr(
        &codec(folder.path(), &support::nobody())
            .env("HF_HUB_OFFLINE", "1")
            .args(["models", "pull", "encodec_48khz"])
            .output()
            .unwrap(),
    );
    assert!(
        disputed.contains("tag MIT") && disputed.contains("others treat them as CC-BY-NC 4.0"),
        "{disputed}"
    );
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
