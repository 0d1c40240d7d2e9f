//! `cargo xtask download`: fetches published models, as `codec models pull` does.

use anyhow::{Context, Result};
use codec_hub::{Client, Progress, PullOptions, Settings, Store};
use codec_io::card::{self, ModelCard};
use std::ops::ControlFlow;

/// Options of `cargo xtask download`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Models by the names of their cards.
    #[arg(required = true)]
    names: Vec<String>,
    /// Fetch weights that may not be used commercially; you accept their licence.
    #[arg(long)]
    accept_non_commercial: bool,
}

/// Fetches the models that `args` names.
pub(crate) fn run(args: &Args) -> Result<()> {
    let cards: Vec<&ModelCard> = args
        .names
        .iter()
        .map(|name| card::find(name).with_context(|| format!("no model is called {name}")))
        .collect::<Result<_>>()?;
    let client = Client::new(Settings::from_env()?)?;
    let store = Store::from_env();
    let options = PullOptions { accept_non_commercial: args.accept_non_commercial, force: false };
    for card in cards {
        let mut on_progress = |progress: Progress<'_>| {
            match progress {
                Progress::Done { file } => eprintln!("{}: {file}", card.name),
                Progress::Retry { why, .. } => eprintln!("{}: {why}: trying again", card.name),
                _ => {}
            }
            ControlFlow::Continue(())
        };
        let found = store.pull(card, &client, options, &mut on_progress)?;
        println!("{}", found.folder.display());
    }
    Ok(())
}
