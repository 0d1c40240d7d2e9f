//! `codec models`: which models there are, what they are, and how they come to this machine.

use crate::report::Reporter;
use crate::{Global, interrupt};
use anyhow::{Context, Result, bail};
use codec_hub::{Client, Error, Progress, PullOptions, Settings, State, Store};
use codec_io::card::{ModelCard, cards};
use codec_models::{card, origin, store};
use serde::Serialize;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

/// List, describe, fetch and check published models.
///
/// Files go into $CODEC_MODELS, or into codec/models in the user's cache; files that other tools have put
/// into the cache of Hugging Face are used where they lie. Every file is checked against the SHA-256 of
/// the model's card, or against the one that it had when it was first fetched.
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
    List,
    /// Show what is known of a model: rates, files, origin, licences.
    Show(Names),
    /// Fetch models; a transfer that was interrupted goes on where it was.
    Pull(PullArgs),
    /// Check the files of models against what is known of them [default: all that are there].
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
    /// Published ones, in kbit/s.
    kbps: Vec<f64>,
    size: Option<u64>,
    code_licence: &'a str,
    weights_licence: Option<&'a str>,
    non_commercial: Option<bool>,
    /// Whether it is part of the program.
    embedded: bool,
    /// Where the files lie, when they are there.
    folder: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    listed: Listed<'a>,
    source: String,
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
    /// `published`, `locked` or `unknown`: what the hash was compared with.
    state: &'static str,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let reporter = Reporter::new(global, false);
    let store = store();
    match &args.action {
        Action::List => list(&store, &reporter)?,
        Action::Show(names) => {
            let client = Client::new(Settings::from_env()?)?;
            for card in named(&names.names)? {
                show(card, &store, &client, &reporter)?;
            }
        }
        Action::Path(names) => {
            for card in named(&names.names)? {
                let Some(found) = store.find(card)? else {
                    refuse_embedded(card)?;
                    bail!("model {0} is not on this machine; `codec models pull {0}` fetches it", card.name);
                };
                let folder = found.folder.display().to_string();
                let (name, files) = (card.name.as_str(), found.files);
                reporter.result(|| folder, &Pulled { name, folder: found.folder, files })?;
            }
        }
        Action::Pull(args) => {
            let client = Client::new(Settings::from_env()?)?;
            for card in named(&args.names.names)? {
                refuse_embedded(card)?;
                pull(card, args, &store, &client, &reporter)?;
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

/// Fails for a model that has no files.
fn refuse_embedded(card: &ModelCard) -> Result<()> {
    if card.embedded {
        bail!("model {} is part of this program: there is nothing to fetch or to check", card.name);
    }
    Ok(())
}

fn list(store: &Store, reporter: &Reporter) -> Result<()> {
    let mut sorted: Vec<&ModelCard> = cards().iter().collect();
    sorted.sort_by_key(|card| &card.name);
    for card in sorted {
        let listed = listed(card, store)?;
        let text = || {
            let rates = match listed.kbps.as_slice() {
                [] => String::new(),
                [only] => format!("{only:.2} kbit/s"),
                [first, .., last] => format!("{first:.2} to {last:.2} kbit/s"),
            };
            format!(
                "{}{:<24}{:<14}{:>6.1} kHz  {:<22}{:<14}{}",
                if listed.embedded || listed.folder.is_some() { "* " } else { "  " },
                listed.name,
                listed.family,
                f64::from(listed.sample_rate) / 1000.0,
                rates,
                listed.weights_licence.unwrap_or("not stated"),
                listed.size.map(megabytes).unwrap_or_default(),
            )
        };
        reporter.result(text, &listed)?;
    }
    reporter.note("* is on this machine; `codec models show NAME` tells more");
    Ok(())
}

fn listed<'a>(card: &'a ModelCard, store: &Store) -> Result<Listed<'a>> {
    Ok(Listed {
        name: &card.name,
        aliases: &card.aliases,
        family: &card.family,
        description: &card.description,
        sample_rate: card.sample_rate,
        channels: card.channels,
        frame_rate: card.frame_rate().map(|rate| rate.to_f64()),
        n_codebooks: card.layout()?.n_codebooks(),
        kbps: card.bitrates.iter().map(|rate| rate / 1000.0).collect(),
        size: card.size(),
        code_licence: &card.licence.code,
        weights_licence: card.licence.weights.as_deref(),
        non_commercial: card.licence.non_commercial,
        embedded: card.embedded,
        folder: store.find(card)?.map(|found| found.folder),
    })
}

fn show(card: &ModelCard, store: &Store, client: &Client, reporter: &Reporter) -> Result<()> {
    let file = |file: &'_ codec_io::card::CardFile| -> (Option<String>, Option<String>) {
        let prefix = || file.sha256_prefix.as_ref().map(|prefix| format!("{prefix}..."));
        let sha256 = file.sha256.map(|sha256| sha256.to_string()).or_else(prefix);
        (card.origin(file).map(|origin| client.url(&origin)), sha256)
    };
    let files = card.files.iter().map(|it| {
        let (url, sha256) = file(it);
        ShownFile { name: &it.name, url, size: it.size, sha256 }
    });
    let shown = Shown {
        listed: listed(card, store)?,
        source: origin(&card.source),
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
    let rates: Vec<String> = listed.kbps.iter().map(f64::to_string).collect();
    line("bitrates", format!("{} kbit/s", rates.join(", ")));
    line("origin", shown.source.clone());
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
    line("here", folder.unwrap_or_else(|| absent.to_owned()));
    text
}

fn pull(
    card: &ModelCard,
    args: &PullArgs,
    store: &Store,
    client: &Client,
    reporter: &Reporter,
) -> Result<()> {
    let options = PullOptions { accept_non_commercial: args.accept_non_commercial, force: args.force };
    if let (None, Some(notes)) = (&card.licence.weights, &card.licence.notes) {
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
    let found = match store.pull(card, client, options, &mut on_progress) {
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
    for card in cards {
        let checked = match store.verify(card) {
            Ok(Some(checked)) => checked,
            Ok(None) if all => continue,
            Ok(None) => {
                refuse_embedded(card)?;
                bail!("model {0} is not on this machine; `codec models pull {0}` fetches it", card.name)
            }
            Err(error) => {
                reporter.failure(&anyhow::Error::new(error).context(format!("model {}", card.name)));
                code = ExitCode::FAILURE;
                continue;
            }
        };
        for file in &checked {
            let state = match file.state {
                State::Published => "published",
                State::Locked => "locked",
                _ => "unknown",
            };
            let verdict = match file.state {
                State::Published => "is the published file",
                State::Locked => "is as it was when it was first fetched",
                _ => "nothing is known to compare it with; a pull takes its hash down",
            };
            let verified = Verified {
                name: &card.name,
                file: &file.name,
                size: file.size,
                sha256: file.sha256.to_string(),
                state,
            };
            let text = format!("{}/{}: {verdict}", card.name, file.name);
            reporter.result(|| text, &verified)?;
        }
    }
    Ok(code)
}

fn megabytes(n_bytes: u64) -> String {
    format!("{:>6.1} MB", n_bytes as f64 / 1e6)
}
