//! `codec models`: which models there are, what they are, and how they come to this machine.

use crate::report::Reporter;
use crate::{Global, interrupt};
use anyhow::{Context, Result, anyhow, bail};
use codec_hub::{Checked, Client, Error, Expected, Progress, PullOptions, Settings, State, Store, address};
use codec_io::card::{ModelCard, cards};
use codec_models::{card, origin, store};
use serde::Serialize;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

/// Titles of the columns of `list`.
const COLUMNS: [&str; 7] = ["", "name", "family", "kHz", "kbit/s", "licence of the weights", "MB"];
/// Columns of numbers, which are flush on the right.
const NUMBERS: [usize; 2] = [3, 6];

/// List, describe, fetch and check published models.
///
/// Files go into $CODEC_MODELS, or into codec/models in the user's cache; files that other tools have put
/// into the cache of Hugging Face are used where they lie. Every file is checked against the SHA-256 of
/// the model's card, or against the one that it had when it was first fetched; again when the model is loaded.
///
/// HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE, HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE are respected.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  codec models list
  codec models show encodec_24khz
  codec models pull lyra-v2
  codec models pull encodec_32khz --accept-non-commercial
  codec models verify --json | jq .state")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the models, and which of them are on this machine.
    ///
    /// The bitrates are those of one codebook to all of them. With --json, `kbps` has all of them and
    /// `published_kbps` those that the authors speak of; `size` is null where the length of a file is not known, and
    /// `size_at_least` is the length of the others; `problem` says why a model that is here cannot be used. A model
    /// with a problem is marked with !, and the exit code is 1.
    List,
    /// Show what is known of a model: rates, files, origin, licences.
    ///
    /// --json has all that `list --json` has, and more; `is_pinned` says whether the files are those of one
    /// revision for good.
    Show(Names),
    /// Fetch models; a transfer that was interrupted goes on where it was.
    Pull(PullArgs),
    /// Check the files of models against what is known of them [default: all that are there].
    ///
    /// Every file has a line, with --json an object whose `state` is `published` (it has the SHA-256 of the card),
    /// `locked` (that which it had when it was first fetched), `unknown` (nothing is known of it) or `changed`, with
    /// `expected_sha256` or `expected_size`. The exit code is 1 when a file has changed or cannot be read, or when a
    /// model that is named is not there.
    Verify {
        /// Names of models.
        names: Vec<String>,
    },
    /// Print the folder that the files of a model lie in.
    Path(Names),
}

#[derive(Debug, clap::Args)]
struct Names {
    /// Names of models.
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct PullArgs {
    #[command(flatten)]
    names: Names,
    /// Fetch weights that may not be used commercially; you accept their licence.
    #[arg(long)]
    accept_non_commercial: bool,
    /// Fetch anew what is already there, and accept it if it has changed.
    #[arg(short, long)]
    force: bool,
}

/// What `list` and `show` tell of a model.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    name: &'a str,
    aliases: &'a [String],
    family: &'a str,
    description: &'a str,
    sample_rate: u32,
    channels: u16,
    frame_rate: Option<f64>,
    n_codebooks: usize,
    /// In kbit/s: of one codebook, of two, and so on.
    kbps: Vec<f64>,
    /// Those that the authors speak of.
    published_kbps: Vec<f64>,
    /// Bytes of all files, where they are known.
    size: Option<u64>,
    /// Bytes of those files of which the length is known, where that of others is not.
    size_at_least: Option<u64>,
    code_licence: &'a str,
    weights_licence: Option<&'a str>,
    non_commercial: Option<bool>,
    /// Whether it is part of the program.
    embedded: bool,
    /// Where the files lie, when they are there.
    folder: Option<PathBuf>,
    /// Why it cannot be told whether the files are there.
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    listed: Listed<'a>,
    source: String,
    /// Whether the address of every file names one revision.
    is_pinned: bool,
    files: Vec<ShownFile<'a>>,
    licence_notes: Option<&'a str>,
    notes: Option<&'a str>,
    citation: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct ShownFile<'a> {
    name: &'a str,
    url: Option<String>,
    size: Option<u64>,
    sha256: Option<String>,
}

#[derive(Debug, Serialize)]
struct Pulled<'a> {
    name: &'a str,
    folder: PathBuf,
    files: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Verified<'a> {
    name: &'a str,
    file: &'a str,
    size: u64,
    sha256: String,
    /// `published`, `locked` or `unknown`: what the hash was compared with; or `changed`.
    state: &'static str,
    /// What a file that has changed should have.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_size: Option<u64>,
    /// As the card or the lock file has it; the start of it, where the card knows no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_sha256: Option<String>,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let reporter = Reporter::new(global, false);
    let store = store();
    match &args.action {
        Action::List => return list(&store, &reporter),
        Action::Show(names) => {
            for card in named(&names.names)? {
                show(card, &store, &reporter)?;
            }
        }
        Action::Path(names) => {
            for card in named(&names.names)? {
                let Some(found) = store.find(card)? else {
                    if card.embedded {
                        bail!(is_embedded(card));
                    }
                    return Err(absent(card));
                };
                let folder = found.folder.display().to_string();
                let (name, files) = (card.name.as_str(), found.files);
                reporter.result(|| folder, &Pulled { name, folder: found.folder, files })?;
            }
        }
        Action::Pull(args) => {
            let client = Client::new(Settings::from_env()?)?;
            for card in named(&args.names.names)? {
                if card.embedded {
                    reporter.note(&is_embedded(card));
                } else {
                    pull(card, args, &store, &client, &reporter)?;
                }
            }
        }
        Action::Verify { names } => return verify(names, &store, &reporter),
    }
    Ok(ExitCode::SUCCESS)
}

/// The cards of these names, all of them before anything is done.
fn named(names: &[String]) -> Result<Vec<&'static ModelCard>> {
    Ok(names.iter().map(|name| card(name)).collect::<Result<_, _>>()?)
}

/// What to say of a model that has no files.
fn is_embedded(card: &ModelCard) -> String {
    format!("model {} is part of this program: there is nothing to fetch or to check", card.name)
}

fn absent(card: &ModelCard) -> anyhow::Error {
    anyhow!("model {0} is not on this machine; `codec models pull {0}` fetches it", card.name)
}

fn list(store: &Store, reporter: &Reporter) -> Result<ExitCode> {
    let mut sorted: Vec<&ModelCard> = cards().iter().collect();
    sorted.sort_by_key(|card| &card.name);
    let models: Vec<Listed<'_>> =
        sorted.into_iter().map(|card| listed(card, store)).collect::<Result<_>>()?;
    let mut lines = table(&models).into_iter();
    let mut above = lines.next();
    for (listed, line) in models.iter().zip(lines) {
        let text = || above.take().map_or_else(|| line.clone(), |titles| format!("{titles}\n{line}"));
        reporter.result(text, listed)?;
    }
    reporter.note("* is on this machine; `codec models show NAME` tells more");
    let mut code = ExitCode::SUCCESS;
    for listed in &models {
        if let Some(problem) = &listed.problem {
            reporter.failure(&anyhow!("model {}: {problem}", listed.name));
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// The titles and a line for each model, in columns that are as wide as they have to be.
fn table(models: &[Listed<'_>]) -> Vec<String> {
    let rows: Vec<[String; COLUMNS.len()]> =
        std::iter::once(COLUMNS.map(str::to_owned)).chain(models.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
    let line = |row: &[String; COLUMNS.len()]| {
        let cell = |column: usize| {
            let (text, width) = (&row[column], widths[column]);
            if NUMBERS.contains(&column) { format!("{text:>width$}") } else { format!("{text:<width$}") }
        };
        let cells: [String; COLUMNS.len()] = std::array::from_fn(cell);
        format!("{} {}", cells[0], cells[1..].join("  ")).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// What stands in the columns of a model.
fn cells(listed: &Listed<'_>) -> [String; COLUMNS.len()] {
    let mark = match listed {
        Listed { problem: Some(_), .. } => "!",
        Listed { embedded: true, .. } | Listed { folder: Some(_), .. } => "*",
        _ => "",
    };
    let rates = match listed.kbps.as_slice() {
        [] => String::new(),
        [only] => decimal(*only),
        [first, .., last] => format!("{} to {}", decimal(*first), decimal(*last)),
    };
    let megabytes = |n_bytes: u64| format!("{:.1}", n_bytes as f64 / 1e6);
    let at_least = || listed.size_at_least.map(|n_bytes| format!(">= {}", megabytes(n_bytes)));
    [
        mark.to_owned(),
        listed.name.to_owned(),
        listed.family.to_owned(),
        decimal(f64::from(listed.sample_rate) / 1000.0),
        rates,
        listed.weights_licence.unwrap_or("not stated").to_owned(),
        listed.size.map(megabytes).or_else(at_least).unwrap_or_default(),
    ]
}

/// A number with four decimals at most.
fn decimal(number: f64) -> String {
    format!("{number:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn listed<'a>(card: &'a ModelCard, store: &Store) -> Result<Listed<'a>> {
    let size = card.size();
    let known_size = Some(card.known_size()).filter(|n_bytes| size.is_none() && *n_bytes > 0);
    let (folder, problem) = match store.find(card) {
        Ok(found) => (found.map(|found| found.folder), None),
        Err(error) => (None, Some(format!("{:#}", anyhow::Error::new(error)))),
    };
    Ok(Listed {
        name: &card.name,
        aliases: &card.aliases,
        family: &card.family,
        description: &card.description,
        sample_rate: card.sample_rate,
        channels: card.channels,
        frame_rate: card.frame_rate().map(|rate| rate.to_f64()),
        n_codebooks: card.layout()?.n_codebooks(),
        kbps: card.possible_bitrates()?.into_iter().map(|rate| rate.to_f64() / 1000.0).collect(),
        published_kbps: card.bitrates.iter().map(|rate| rate / 1000.0).collect(),
        size,
        size_at_least: known_size,
        code_licence: &card.licence.code,
        weights_licence: card.licence.weights.as_deref(),
        non_commercial: card.licence.non_commercial,
        embedded: card.embedded,
        folder,
        problem,
    })
}

fn show(card: &ModelCard, store: &Store, reporter: &Reporter) -> Result<()> {
    let file = |file: &'_ codec_io::card::CardFile| -> (Option<String>, Option<String>) {
        let prefix = || file.sha256_prefix.as_ref().map(|prefix| format!("{prefix}..."));
        let sha256 = file.sha256.map(|sha256| sha256.to_string()).or_else(prefix);
        (card.origin(file).map(|origin| address(&origin)), sha256)
    };
    let files = card.files.iter().map(|it| {
        let (url, sha256) = file(it);
        ShownFile { name: &it.name, url, size: it.size, sha256 }
    });
    let shown = Shown {
        listed: listed(card, store)?,
        source: origin(&card.source),
        is_pinned: card.is_pinned(),
        files: files.collect(),
        licence_notes: card.licence.notes.as_deref(),
        notes: card.notes.as_deref(),
        citation: card.citation.as_deref(),
    };
    reporter.result(|| describe(&shown), &shown)
}

fn describe(shown: &Shown<'_>) -> String {
    let listed = &shown.listed;
    let mut text = format!("{}: {}", listed.name, listed.description);
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {name:<12}{value}");
    };
    if !listed.aliases.is_empty() {
        line("also", listed.aliases.join(", "));
    }
    line("family", listed.family.to_owned());
    line("audio", format!("{} Hz, {} channel(s)", listed.sample_rate, listed.channels));
    let frame_rate = listed.frame_rate.map(|rate| format!(" at {rate:.3} Hz")).unwrap_or_default();
    line("codebooks", format!("{}{frame_rate}", listed.n_codebooks));
    line("bitrates", format!("{} kbit/s", rates(&listed.kbps)));
    if listed.kbps.len() > 1 {
        let published: Vec<String> = listed.published_kbps.iter().copied().map(decimal).collect();
        line("", format!("published with {}", published.join(", ")));
    }
    line("origin", shown.source.clone());
    if !shown.is_pinned {
        line("", "the revision is not pinned: a pull fetches what main holds by then".to_owned());
    }
    for file in &shown.files {
        let size = file.size.map(|size| format!(", {size} bytes")).unwrap_or_default();
        line("file", format!("{}{size}", file.name));
        if !listed.embedded {
            line("", file.url.clone().unwrap_or_else(|| "no address is known".to_owned()));
        }
        line("", file.sha256.as_ref().map_or("SHA-256 not known".to_owned(), |hex| format!("SHA-256 {hex}")));
    }
    line("code", listed.code_licence.to_owned());
    let limits = if listed.non_commercial == Some(true) { ", not for commercial use" } else { "" };
    line("weights", format!("{}{limits}", listed.weights_licence.unwrap_or("no licence stated")));
    for note in [shown.licence_notes, shown.notes, shown.citation].into_iter().flatten() {
        line("", note.to_owned());
    }
    let folder = listed.folder.as_ref().map(|folder| folder.display().to_string());
    let absent = if listed.embedded { "part of this program" } else { "no" };
    line("here", folder.or_else(|| listed.problem.clone()).unwrap_or_else(|| absent.to_owned()));
    text
}

/// Bitrates in kbit/s; from the first to the last, where all steps are the same.
fn rates(kbps: &[f64]) -> String {
    match kbps {
        [first, second, .., last]
            if kbps.windows(2).all(|pair| (pair[1] - pair[0] - (second - first)).abs() < 1e-9) =>
        {
            format!("{} to {} in steps of {}", decimal(*first), decimal(*last), decimal(second - first))
        }
        _ => kbps.iter().copied().map(decimal).collect::<Vec<_>>().join(", "),
    }
}

fn pull(
    card: &ModelCard,
    args: &PullArgs,
    store: &Store,
    client: &Client,
    reporter: &Reporter,
) -> Result<()> {
    let options = PullOptions { accept_non_commercial: args.accept_non_commercial, force: args.force };
    // Where it is not known what the weights may be used for, the notes say what is.
    if let (None, Some(notes)) = (card.licence.non_commercial, &card.licence.notes) {
        reporter.note(&format!("{}: {}", card.name, notes.trim()));
    }
    let mut bar = None;
    let mut on_progress = |progress: Progress<'_>| {
        match progress {
            Progress::Transfer { file, n_bytes, size } => {
                let bar = bar.get_or_insert_with(|| reporter.byte_bar(file));
                if let Some(size) = size {
                    bar.set_length(size);
                }
                bar.set_position(n_bytes);
            }
            Progress::Retry { attempt, n_attempts, pause, why, .. } => {
                let seconds = pause.as_secs_f64().round();
                reporter.note(&format!("{why}: trying again in {seconds} s ({attempt} of {n_attempts})"));
            }
            Progress::Done { .. } => {
                if let Some(bar) = bar.take() {
                    bar.finish_and_clear();
                }
            }
            // More may be told some day.
            _ => {}
        }
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let pulled = store.pull(card, client, options, &mut on_progress);
    if let Some(bar) = bar.take() {
        bar.finish_and_clear();
    }
    let found = match pulled {
        Err(error @ Error::NonCommercial { .. }) => {
            return Err(error).context("--accept-non-commercial fetches them all the same");
        }
        result => result.with_context(|| format!("model {}", card.name))?,
    };
    let text = format!("{}: {}", card.name, found.folder.display());
    reporter.result(|| text, &Pulled { name: &card.name, folder: found.folder, files: found.files })
}

fn verify(names: &[String], store: &Store, reporter: &Reporter) -> Result<ExitCode> {
    let all = names.is_empty();
    let cards = if all { cards().iter().collect() } else { named(names)? };
    let mut code = ExitCode::SUCCESS;
    let mut fail = |error: anyhow::Error| {
        reporter.failure(&error);
        code = ExitCode::FAILURE;
    };
    for card in cards {
        let of_model = |error: Error| anyhow::Error::new(error).context(format!("model {}", card.name));
        let found = match store.find(card) {
            Ok(Some(found)) => found,
            Ok(None) if all => continue,
            Ok(None) if card.embedded => {
                reporter.note(&is_embedded(card));
                continue;
            }
            Ok(None) => {
                fail(absent(card));
                continue;
            }
            Err(error) => {
                fail(of_model(error));
                continue;
            }
        };
        for file in &card.files {
            match found.check(file) {
                Ok(checked) => {
                    let (text, verified) = verdict(card, &file.name, &checked);
                    reporter.result(|| text, &verified)?;
                    if let Err(change) = checked.accepted() {
                        let (model, change) = (card.name.clone(), Box::new(change));
                        fail(codec_models::Error::Changed { model, change }.into());
                    }
                }
                Err(error) => fail(of_model(error)),
            }
        }
    }
    Ok(code)
}

/// What came of the check of a file, for people and for programs.
fn verdict<'a>(card: &'a ModelCard, file: &'a str, checked: &Checked) -> (String, Verified<'a>) {
    let (mut expected_size, mut expected_sha256) = (None, None);
    let (state, verdict) = match &checked.state {
        State::Published => ("published", "is the published file"),
        State::Locked => ("locked", "is as it was when it was first fetched"),
        State::Changed(expected) => {
            match expected {
                Expected::Size(size) => expected_size = Some(*size),
                Expected::Sha256(sha256) => expected_sha256 = Some(sha256.clone()),
            }
            ("changed", "is not the file that it has to be")
        }
        _ => ("unknown", "nothing is known to compare it with; a pull takes its hash down"),
    };
    let (name, size, sha256) = (card.name.as_str(), checked.size, checked.sha256.to_string());
    let verified = Verified { name, file, size, sha256, state, expected_size, expected_sha256 };
    (format!("{name}/{file}: {verdict}"), verified)
}
