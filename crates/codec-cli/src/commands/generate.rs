//! `codec completions` and `codec man`.

use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::ExitCode;

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  codec completions bash > /etc/bash_completion.d/codec")]
pub(crate) struct CompletionsArgs {
    /// Which shell.
    shell: clap_complete::Shell,
}

/// Write the manual pages.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  codec man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Folder for the pages; without it `codec.1` goes to stdout.
    folder: Option<PathBuf>,
}

pub(crate) fn completions(args: &CompletionsArgs, mut cli: clap::Command) -> Result<ExitCode> {
    clap_complete::generate(args.shell, &mut cli, "codec", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(args: &ManArgs, cli: &clap::Command) -> Result<ExitCode> {
    match &args.folder {
        Some(folder) => clap_mangen::generate_to(cli.clone(), folder)
            .with_context(|| format!("{}: cannot write the pages", folder.display()))?,
        None => clap_mangen::Man::new(cli.clone()).render(&mut std::io::stdout())?,
    }
    Ok(ExitCode::SUCCESS)
}
