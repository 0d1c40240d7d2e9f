//! Lists the model cards of the folder `models` for `src/card.rs`, so that a card is one file.

use std::io;
use std::path::{Path, PathBuf};

fn main() -> io::Result<()> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).ok_or(io::ErrorKind::NotFound);
    let models = variable("CARGO_MANIFEST_DIR")?.join("../../models");
    println!("cargo::rerun-if-changed={}", models.display());
    let mut cards: Vec<PathBuf> =
        std::fs::read_dir(&models)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    cards.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    cards.sort();
    let include = |path: &PathBuf| format!("    include_str!({:?}),\n", path.display().to_string());
    let texts: String = cards.iter().map(include).collect();
    let source = format!("const TEXTS: [&str; {}] = [\n{texts}];\n", cards.len());
    std::fs::write(Path::new(&variable("OUT_DIR")?).join("cards.rs"), source)
}
