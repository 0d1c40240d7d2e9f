//! Environments of Python packages.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Starts a line of requirements that are installed without what they ask for.
const ALONE: &str = "# no-deps:";

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

/// The Python of the environment in `venv` that holds the requirements; it is made again when they change.
pub(crate) fn make(python: &Path, requirements: &Path, venv: &Path) -> Result<PathBuf> {
    let bin = venv.join(if cfg!(windows) { "Scripts" } else { "bin" }).join("python");
    let read =
        |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let wanted = read(requirements)?;
    // Written last, so an environment that was not finished is made again.
    let installed = venv.join("requirements.txt");
    if installed.exists() && read(&installed)? == wanted {
        return Ok(bin);
    }
    run_command(Command::new(python).args(["-m", "venv", "--clear"]).arg(venv))?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run_command(Command::new(&bin).args(install).arg("-r").arg(requirements))?;
    for alone in wanted.lines().filter_map(|line| line.strip_prefix(ALONE)) {
        run_command(Command::new(&bin).args(install).arg("--no-deps").args(alone.split_whitespace()))?;
    }
    fs::write(&installed, wanted).with_context(|| format!("cannot write {}", installed.display()))?;
    Ok(bin)
}

/// Runs a command to its end.
pub(crate) fn run_command(command: &mut Command) -> Result<()> {
    let status = match command.status() {
        Ok(status) => status,
        Err(error) => bail!("{command:?}: {error}"),
    };
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
