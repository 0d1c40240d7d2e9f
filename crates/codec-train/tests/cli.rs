//! What a user of `codec-train` sees.

use codec_core::AudioBuffer;
use codec_io::{WavFormat, WavWriter};
use codec_train::folder::RunFolder;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn codec_train(args: &[&str], path: &Path, more: &[&str]) -> Result<Output> {
    Ok(Command::new(env!("CARGO_BIN_EXE_codec-train")).args(args).arg(path).args(more).output()?)
}

fn write_clip(path: &Path) -> Result {
    let audio = AudioBuffer::mono(16_000, (0..16_000).map(|t| (t as f32 * 0.1).sin() * 0.3).collect())?;
    let mut writer = WavWriter::create(path, audio.spec(), WavFormat::Float32)?;
    writer.write(&audio)?;
    writer.finish()?;
    Ok(())
}

/// A run of two steps: its configuration.
fn prepare(folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir(folder.join("clips"))?;
    write_clip(&folder.join("clips/a.wav"))?;
    let config = folder.join("run.toml");
    let text = r#"
        output = "run"
        [model.config]
        model_type = "lapped"
        sampling_rate = 16000
        hop_length = 160
        n_codebooks = 1
        codebook_size = 8
        latent_dim = 8
        encoder = { n_blocks = 1, dim = 8, hidden = 16, kernel = 3 }
        decoder = { n_blocks = 1, dim = 8, hidden = 16, kernel = 3 }
        [data]
        crop_seconds = 0.2
        batch_size = 1
        sources = [{ path = "clips" }]
        [loss]
        windows = [64]
        mel_bands = [8]
        [schedule]
        steps = 2
    "#;
    std::fs::write(&config, text)?;
    Ok(config)
}

fn succeeds(output: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(said) } else { Err(said.into()) }
}

fn fails(output: &Output) -> Result<String> {
    match succeeds(output) {
        Ok(_) => Err("did not fail".into()),
        Err(said) => Ok(said.to_string()),
    }
}

#[test]
fn a_folder_is_not_trained_in_twice_at_a_time() -> Result {
    let folder = tempfile::tempdir()?;
    let (config, run) = (prepare(folder.path())?, folder.path().join("run"));
    succeeds(&codec_train(&["train", "--config"], &config, &[])?)?;
    let other = RunFolder::claim(&run)?;
    for said in [
        fails(&codec_train(&["train", "--config"], &config, &["--overwrite"])?)?,
        fails(&codec_train(&["resume"], &run, &["--steps", "3"])?)?,
    ] {
        assert!(said.contains("another process") && said.contains(&run.display().to_string()), "{said}");
    }
    // To look is not to write.
    succeeds(&codec_train(&["export"], &run, &["-o", &folder.path().join("so-far").display().to_string()])?)?;
    drop(other);
    succeeds(&codec_train(&["resume"], &run, &["--steps", "3"])?)?;
    Ok(())
}

#[test]
fn other_data_is_refused_until_it_is_meant() -> Result {
    let folder = tempfile::tempdir()?;
    let (config, run) = (prepare(folder.path())?, folder.path().join("run"));
    succeeds(&codec_train(&["train", "--config"], &config, &[])?)?;
    write_clip(&folder.path().join("clips/b.wav"))?;
    let said = fails(&codec_train(&["resume"], &run, &["--steps", "3"])?)?;
    assert!(said.contains("1 clips") && said.contains("--changed-data"), "{said}");
    let said = succeeds(&codec_train(&["resume"], &run, &["--steps", "3", "--changed-data"])?)?;
    assert!(said.contains("2 clips"), "{said}");
    // What is trained on now is what the new checkpoint knows.
    succeeds(&codec_train(&["resume"], &run, &["--steps", "4"])?)?;
    Ok(())
}
