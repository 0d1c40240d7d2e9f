//! The rules of ARCHITECTURE.md that a machine can check: crate edges, lints, the look of the
//! sources, and that every family comes with a vector and a card.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of tests may stop them")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// What a program may use.
const BELOW_PROGRAMS: [&str; 7] =
    ["codec-kernels", "codec-core", "codec-io", "codec-hub", "codec-nn", "codec-metrics", "codec-models"];

/// Each package and the packages of the workspace that it may use outside its tests. An edge points
/// up this list only.
const MAY_USE: [(&str, &[&str]); 13] = [
    ("codec-kernels", &[]),
    ("codec-pickle", &[]),
    ("codec-core", &["codec-kernels"]),
    ("codec-io", &["codec-kernels", "codec-pickle", "codec-core"]),
    ("codec-hub", &["codec-core", "codec-io"]),
    ("codec-nn", &["codec-kernels", "codec-pickle", "codec-core"]),
    ("codec-metrics", &["codec-kernels", "codec-core"]),
    ("codec-models", &["codec-core", "codec-io", "codec-hub", "codec-nn"]),
    (
        "codec-train",
        &["codec-kernels", "codec-core", "codec-io", "codec-nn", "codec-metrics", "codec-models"],
    ),
    ("codec-lm", &["codec-kernels", "codec-core", "codec-io", "codec-nn", "codec-train", "codec-models"]),
    ("codec-cli", &BELOW_PROGRAMS),
    ("xtask", &BELOW_PROGRAMS),
    ("codec-tests", &["codec-kernels", "codec-core", "codec-io", "codec-nn"]),
];

/// Useful without a tensor library, and must stay so.
const WITHOUT_CANDLE: [&str; 4] = ["codec-kernels", "codec-core", "codec-io", "codec-metrics"];

const MAX_LINES: usize = 700;

/// What no source may contain. Written in two halves, so that this file does not contain it.
const FORBIDDEN: [(&str, &str); 10] = [
    (concat!("#[ign", "ore"), "a test that does not run proves nothing"),
    (concat!("to", "do!("), "no stubs"),
    (concat!("unimple", "mented!("), "no stubs"),
    (concat!("db", "g!("), "no debugging output"),
    (concat!("#[al", "low("), "use #[expect(.., reason = ..)], which warns once it is not needed"),
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/Us", "ers/"), "a path of one machine"),
    (concat!("/tm", "p/"), "a path of one machine"),
];

#[test]
fn crates_use_only_what_lies_below_them() {
    let packages = packages();
    let names: BTreeSet<&str> = packages.keys().map(String::as_str).collect();
    let known: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, known, "the packages of the workspace and those of MAY_USE");

    for (i, (name, may_use)) in MAY_USE.iter().enumerate() {
        assert!(
            may_use.iter().all(|used| MAY_USE[..i].iter().any(|(below, _)| below == used)),
            "{name} may use a package that does not lie below it"
        );
        let uses = packages[*name].uses(&["dependencies", "build-dependencies"]);
        let wrong: Vec<_> =
            uses.iter().filter(|u| names.contains(u.as_str()) && !may_use.contains(&u.as_str())).collect();
        assert!(wrong.is_empty(), "{name} uses {wrong:?}");
    }
}

#[test]
fn the_lower_crates_never_reach_candle() {
    let (packages, locked) = (packages(), locked());
    // The lock file mixes a member's own test dependencies with the others, so a member's edges are
    // read from its manifest; all optional ones count.
    let reached_by = |name: &str| {
        let mut reached = BTreeSet::new();
        let mut open = vec![name.to_string()];
        while let Some(name) = open.pop() {
            let uses = match packages.get(&name) {
                Some(package) => package.uses(&["dependencies", "build-dependencies"]),
                None => locked.get(&name).cloned().unwrap_or_default(),
            };
            open.extend(uses.into_iter().filter(|used| reached.insert(used.clone())));
        }
        reached
    };
    let candle = |name: &&String| name.starts_with("candle");
    for name in WITHOUT_CANDLE {
        let reached = reached_by(name);
        assert_eq!(reached.iter().find(candle), None, "{name} reaches candle");
        assert!(reached.contains("rayon-core"), "{name}: the walk over the lock file goes nowhere");
    }
    // The walk finds candle where it is.
    assert!(reached_by("codec-cli").iter().any(|name| candle(&name)));
}

#[test]
fn every_package_inherits_the_lints_and_only_the_kernels_may_be_unsafe() {
    let root = read_table(&root().join("Cargo.toml"));
    let workspace = &root["workspace"]["lints"];
    assert_eq!(workspace["rust"]["unsafe_code"].as_str(), Some("forbid"));
    for (name, package) in packages() {
        let lints = &package.manifest["lints"];
        if name != "codec-kernels" {
            assert_eq!(lints.get("workspace"), Some(&Value::Boolean(true)), "{name} has its own lints");
            continue;
        }
        assert_eq!(lints["rust"]["unsafe_code"].as_str(), Some("deny"));
        assert_eq!(lints["clippy"]["undocumented_unsafe_blocks"].as_str(), Some("warn"));
        for tool in ["rust", "clippy"] {
            for (lint, level) in table(&workspace[tool]) {
                let own = lints[tool].get(lint);
                assert!(
                    lint == "unsafe_code" || own == Some(level),
                    "{name}: {lint} is {own:?}, not {level}"
                );
            }
        }
    }
}

#[test]
fn every_source_has_a_head_comment_and_a_readable_length() {
    let mut wrong = Vec::new();
    for (path, text) in texts(&["rs"]) {
        if !text.starts_with("//! ") {
            wrong.push(format!("{} does not start with a `//!` comment", path.display()));
        }
        let n_lines = text.lines().count();
        if n_lines > MAX_LINES {
            wrong.push(format!("{} has {n_lines} lines, more than {MAX_LINES}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_text_contains_what_is_forbidden() {
    let mut wrong = Vec::new();
    for (path, text) in texts(&["rs", "py", "md", "toml", "yml", "sh"]) {
        for (line_idx, line) in text.lines().enumerate() {
            for (needle, reason) in FORBIDDEN {
                if line.contains(needle) {
                    wrong.push(format!("{}:{}: `{needle}`: {reason}", path.display(), line_idx + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_family_has_a_vector_and_a_card() {
    let families = families();
    assert!(!families.is_empty(), "no family was found");
    let cards: Vec<Table> = files(&root().join("models"), &["toml"]).iter().map(|p| read_table(p)).collect();
    let vectors = files(&root().join("tests/vectors"), &["safetensors"]);
    for family in &families {
        let is_of_family = |card: &Table| find(card, "family").is_some_and(|f| f.as_str() == Some(family));
        assert!(cards.iter().any(is_of_family), "no card in models/ has family = \"{family}\"");

        let has_vector = vectors.iter().filter_map(|v| v.file_stem()?.to_str()).any(|stem| {
            stem.strip_prefix(family.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        });
        assert!(has_vector, "tests/vectors holds no {family}*.safetensors");
        let script = root().join(format!("tests/reference/{family}_vectors.py"));
        assert!(script.exists(), "{} does not exist", script.display());
    }
}

#[test]
fn every_card_is_of_a_family_and_can_be_fetched() {
    let families = families();
    for card in codec_io::card::cards() {
        assert!(families.contains(&card.family), "{}: no family is called {}", card.name, card.family);
        for file in &card.files {
            let is_here = || root().join("models").join(&card.name).join(&file.name).is_file();
            let is_had = if card.embedded { is_here() } else { card.origin(file).is_some() };
            assert!(is_had, "{}: no address for {}", card.name, file.name);
        }
    }
}

#[test]
fn no_family_imports_another() {
    for family in families() {
        let dir = root().join("crates/codec-nn/src/families");
        let mut sources = files(&dir.join(&family), &["rs"]);
        sources.extend(Some(dir.join(format!("{family}.rs"))).filter(|path| path.exists()));
        for path in sources {
            let text = fs::read_to_string(&path).unwrap();
            for other in families().iter().filter(|other| **other != family) {
                for import in [format!("families::{other}"), format!("super::{other}")] {
                    assert!(!text.contains(&import), "{} imports {other}", path.display());
                }
            }
        }
    }
}

/// One package of the workspace.
struct Package {
    manifest: Table,
}

impl Package {
    /// Names of the packages in the given sections, those of single targets included.
    fn uses(&self, sections: &[&str]) -> BTreeSet<String> {
        let targets = self.manifest.get("target").map(table).into_iter().flatten();
        let tables = std::iter::once(&self.manifest).chain(targets.map(|(_, target)| table(target)));
        let mut uses = BTreeSet::new();
        for (manifest, section) in tables.flat_map(|t| sections.iter().map(move |s| (t, *s))) {
            for (name, spec) in manifest.get(section).map(table).into_iter().flatten() {
                let renamed = spec.get("package").and_then(Value::as_str);
                uses.insert(renamed.unwrap_or(name).to_string());
            }
        }
        uses
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The workspace's packages by name.
fn packages() -> BTreeMap<String, Package> {
    let crates = fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let dirs = crates.chain([root().join("xtask"), root().join("tests")]);
    let manifests = dirs.map(|dir| dir.join("Cargo.toml")).filter(|path| path.exists());
    manifests
        .map(|path| {
            let manifest = read_table(&path);
            (manifest["package"]["name"].as_str().unwrap().to_string(), Package { manifest })
        })
        .collect()
}

/// What each locked package depends on; several versions of one package are taken together.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let lock = read_table(&root().join("Cargo.lock"));
    let mut locked = BTreeMap::<String, BTreeSet<String>>::new();
    for package in lock["package"].as_array().unwrap() {
        let uses = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        // An entry is a name, and where that is not enough, a version after it.
        let names = uses.filter_map(|used| Some(used.as_str()?.split(' ').next()?.to_string()));
        locked.entry(package["name"].as_str().unwrap().to_string()).or_default().extend(names);
    }
    locked
}

/// The names of the modules in `codec-nn/src/families`.
fn families() -> BTreeSet<String> {
    let entries = fs::read_dir(root().join("crates/codec-nn/src/families")).unwrap();
    let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_string());
    entries.filter_map(|entry| stem(entry.unwrap().path())).filter(|name| name != "mod").collect()
}

/// The workspace's own texts, by path from the root.
fn texts(extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let dirs = ["crates", "xtask", "tests", "docs", "examples", "models", ".github"];
    let mut paths: Vec<_> = dirs.iter().flat_map(|dir| files(&root().join(dir), extensions)).collect();
    let top = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    paths.extend(top.filter(|path| path.is_file() && has_extension(path, extensions)));
    assert!(!paths.is_empty());
    let text = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(root()).unwrap().to_path_buf(), text)
    };
    paths.into_iter().map(text).collect()
}

/// All files with one of the extensions under a directory, which need not exist.
fn files(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let is_output = path.file_name().is_some_and(|name| name == "target" || name == ".venv");
        if path.is_dir() && !is_output {
            found.extend(files(&path, extensions));
        } else if has_extension(&path, extensions) {
            found.push(path);
        }
    }
    found
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|own| extensions.iter().any(|e| own == *e))
}

fn read_table(path: &Path) -> Table {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn table(value: &Value) -> &Table {
    value.as_table().unwrap()
}

/// The first value of a key, in a table or in one of its tables.
fn find<'a>(card: &'a Table, key: &str) -> Option<&'a Value> {
    card.get(key).or_else(|| card.values().filter_map(Value::as_table).find_map(|table| find(table, key)))
}
