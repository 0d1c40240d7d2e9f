//! The command line of `codec-train`: what it says where.

use codec_core::AudioBuffer;
use codec_io::{WavFormat, WavWriter};
use std::path::Path;
use std::process::{Command, Output};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const CONFIG: &str = r#"
    output = "run"
    [data]
    crop_seconds = 0.25
    batch_size = 1
    [[data.sources]]
    path = "clips"
    [quantizer]
    kmeans_batches = 1
    [loss]
    windows = [64]
    mel_bands = [8]
    [schedule]
    steps = 2
    [model.config]
    model_type = "encodec"
    sampling_rate = 16000
    num_filters = 4
    hidden_size = 16
    codebook_dim = 16
    codebook_size = 32
    num_lstm_layers = 1
    upsampling_ratios = [5, 4, 4]
    target_bandwidths = [4.0]
"#;

fn run(folder: &Path, args: &[&str]) -> Result<Output> {
    Ok(Command::new(env!("CARGO_BIN_EXE_codec-train")).current_dir(folder).args(args).output()?)
}

#[test]
fn results_are_json_where_that_is_asked_for_and_quiet_is_quiet() -> Result {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    std::fs::create_dir(folder.join("clips"))?;
    let audio = AudioBuffer::mono(16_000, (0..16_000).map(|t| (t as f32 * 0.05).sin() * 0.4).collect())?;
    let mut writer = WavWriter::create(folder.join("clips/a.wav"), audio.spec(), WavFormat::Float32)?;
    writer.write(&audio)?;
    writer.finish()?;
    std::fs::write(folder.join("run.toml"), CONFIG)?;

    let json = |args: &[&str]| -> Result<serde_json::Value> {
        let output = run(folder, args)?;
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let said = json(&["train", "--config", "run.toml", "--json", "--quiet"])?;
    assert_eq!((said["step"].as_u64(), said["checkpoint"].is_null()), (Some(2), true));
    assert!(said["model"].as_str().is_some_and(|model| model.ends_with("run/model")), "{said}");
    let said = json(&["resume", "run", "--steps", "3", "--json", "-q"])?;
    assert_eq!((&said["run"], &said["step"]), (&"run".into(), &3.into()));
    let said = json(&["export", "run", "-o", "half", "--half", "--json"])?;
    assert_eq!((&said["output"], &said["half"]), (&"half".into(), &true.into()));
    for args in [&["resume", "run", "--quiet"][..], &["export", "run", "-o", "again", "-q"]] {
        let output = run(folder, args)?;
        assert!(
            output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
    let output = run(folder, &["resume", "run", "--steps", "1"])?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("at step 3 already"), "{output:?}");
    // A cause is said once.
    let output = run(folder, &["resume", "nowhere"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
    Ok(())
}
