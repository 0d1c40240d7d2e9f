//! `cargo xtask vectors`: runs `tests/reference/<family>_vectors.py` in an environment of its own.
//!
//! The environment lies in `target/venv` and holds the versions that
//! `tests/reference/requirements.txt` pins; it is made again when that file changes.

use crate::environment::{make, root, run_command};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUFFIX: &str = "_vectors.py";

/// Options of `cargo xtask vectors`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Families to make vectors of; all that have a script when none is named.
    families: Vec<String>,
    /// The Python that makes the environment.
    #[arg(long, default_value = "python3", value_name = "PROGRAM")]
    python: PathBuf,
    /// Where the vectors go.
    #[arg(long, value_name = "DIR", default_value_os_t = root().join("tests/vectors"))]
    out: PathBuf,
}

/// Makes the vectors of the families that `args` names.
pub(crate) fn run(args: &Args) -> Result<()> {
    let reference = root().join("tests/reference");
    let scripts = choose(scripts(&reference)?, &args.families)?;
    let python = make(&args.python, &reference.join("requirements.txt"), &root().join("target/venv"))?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    for (family, script) in scripts {
        eprintln!("{family}: {} -> {}", script.display(), args.out.display());
        run_command(Command::new(&python).arg(&script).arg(&args.out).env("PYTHONDONTWRITEBYTECODE", "1"))?;
    }
    Ok(())
}

/// All families that have a script, in order of their names.
fn scripts(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut scripts = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(family) = name.and_then(|name| name.strip_suffix(SUFFIX)) {
            scripts.push((family.to_string(), path));
        }
    }
    ensure!(!scripts.is_empty(), "{} holds no *{SUFFIX}", dir.display());
    scripts.sort();
    Ok(scripts)
}

/// The scripts of the families that are named; all when none is.
fn choose(scripts: Vec<(String, PathBuf)>, families: &[String]) -> Result<Vec<(String, PathBuf)>> {
    let known = |family: &&String| scripts.iter().any(|(name, _)| name == *family);
    if let Some(unknown) = families.iter().find(|family| !known(family)) {
        let names: Vec<_> = scripts.iter().map(|(name, _)| name.as_str()).collect();
        bail!("no script for {unknown}; there are: {}", names.join(", "));
    }
    Ok(scripts.into_iter().filter(|(name, _)| families.is_empty() || families.contains(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_chosen_by_name() {
        let all =
            || vec![("a".to_string(), PathBuf::from("a_vectors.py")), ("b".to_string(), PathBuf::new())];
        assert_eq!(choose(all(), &[]).unwrap(), all());
        assert_eq!(choose(all(), &["b".to_string()]).unwrap(), all()[1..]);
        let error = choose(all(), &["c".to_string()]).unwrap_err();
        assert_eq!(error.to_string(), "no script for c; there are: a, b");
    }

    #[test]
    fn the_scripts_are_found() {
        let scripts = scripts(&root().join("tests/reference")).unwrap();
        assert!(scripts.iter().any(|(family, _)| family == "encodec"), "{scripts:?}");
    }
}
