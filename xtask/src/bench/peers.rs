//! Other implementations of the codecs, each in a process of its own.

use super::subjects::Subject;
use crate::environment;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Another implementation.
#[derive(Clone, Copy, Debug)]
struct Peer {
    name: &'static str,
    /// Argument of `peers.py`; `None` for the crate.
    script: Option<&'static str>,
    subjects: &'static [&'static str],
}

const ENCODEC: [&str; 2] = ["encodec_24khz", "encodec_48khz"];

/// In the order of the table.
const PEERS: &[Peer] = &[
    Peer {
        name: "PyTorch, transformers",
        script: Some("transformers"),
        subjects: &["encodec_24khz", "encodec_48khz", "dac_44khz", "mimi"],
    },
    Peer { name: "PyTorch, encodec", script: Some("encodec"), subjects: &ENCODEC },
    Peer { name: "PyTorch, descript-audio-codec", script: Some("dac"), subjects: &["dac_44khz"] },
    Peer { name: "PyTorch, snac", script: Some("snac"), subjects: &["snac_24khz"] },
    Peer { name: "PyTorch, moshi", script: Some("moshi"), subjects: &["mimi"] },
    Peer { name: "rustymimi (the moshi crate)", script: Some("rustymimi"), subjects: &["mimi"] },
    Peer { name: "TFLite on XNNPACK", script: Some("litert"), subjects: &["lyra-v2"] },
    Peer {
        name: "candle-transformers",
        script: None,
        subjects: &["encodec_24khz", "dac_44khz", "mimi", "snac_24khz"],
    },
];

/// How the peers are started.
#[derive(Debug)]
pub(super) struct Peers {
    python: PathBuf,
    script: PathBuf,
    candle: PathBuf,
}

impl Peers {
    /// Makes the environment of the Python packages, unless `python` is one that has them, and builds the crate.
    pub(super) fn prepare(python: Option<&Path>) -> Result<Self> {
        let folder = environment::root().join("benches/peers");
        let python = match python {
            Some(python) => python.to_path_buf(),
            None => environment::make(
                Path::new("python3"),
                &folder.join("requirements.txt"),
                &environment::root().join("target/venv-peers"),
            )?,
        };
        let target = environment::root().join("target/peers");
        let manifest = folder.join("candle/Cargo.toml");
        let status = Command::new("cargo")
            .args(["build", "--release", "--locked", "--manifest-path"])
            .arg(&manifest)
            .arg("--target-dir")
            .arg(&target)
            .status()
            .context("cargo")?;
        ensure!(status.success(), "{}: does not build", manifest.display());
        let candle = target.join("release").join(format!("candle-peer{}", std::env::consts::EXE_SUFFIX));
        Ok(Self { python, script: folder.join("peers.py"), candle })
    }

    /// The names and commands of those that have the model.
    pub(super) fn of(&self, subject: &Subject) -> Vec<(&'static str, Command)> {
        let command = |peer: &Peer| match peer.script {
            Some(name) => {
                let mut command = Command::new(&self.python);
                command.arg(&self.script).arg(name).env("PYTHONDONTWRITEBYTECODE", "1");
                (peer.name, command)
            }
            None => (peer.name, Command::new(&self.candle)),
        };
        PEERS.iter().filter(|peer| peer.subjects.contains(&subject.name)).map(command).collect()
    }
}
