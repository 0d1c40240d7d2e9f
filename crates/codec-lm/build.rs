//! Embeds the default language model, if `models/` holds one.

use std::path::Path;

const NAME: &str = "models/codec-16khz-lm/model.safetensors";

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    println!("cargo::rerun-if-changed={}", root.join(NAME).display());
    // The folder as well, so that a file that appears is seen.
    println!("cargo::rerun-if-changed={}", root.join("models").display());
    let file = root.join(NAME);
    let value = if file.is_file() {
        format!("Some(include_bytes!({:?}).as_slice())", file.canonicalize()?)
    } else {
        "None".to_owned()
    };
    let out = std::env::var_os("OUT_DIR").ok_or(std::io::ErrorKind::NotFound)?;
    let text = format!("/// The file, if this build has one.\nconst FILE: Option<&[u8]> = {value};\n");
    std::fs::write(Path::new(&out).join("embedded.rs"), text)
}
