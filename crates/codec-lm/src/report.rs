//! What the user sees: results on stdout, everything else on stderr, a bar for what takes long.

use crate::Global;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::Write;

/// Prints results, notes and progress in the way that the flags ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reporter {
    json: bool,
    quiet: bool,
    /// Results go to stderr while stdout carries audio.
    stdout_taken: bool,
}

impl Reporter {
    pub(crate) fn new(global: &Global) -> Self {
        Self { json: global.json, quiet: global.quiet, stdout_taken: false }
    }

    /// The same where stdout carries audio.
    pub(crate) fn beside_audio(self, stdout_taken: bool) -> Self {
        Self { stdout_taken, ..self }
    }

    /// A result: lines for people, or one JSON object.
    pub(crate) fn result(self, text: impl FnOnce() -> String, json: &impl Serialize) -> anyhow::Result<()> {
        let text = if self.json { serde_json::to_string(json)? } else { text() };
        if self.quiet && !self.json {
            return Ok(());
        }
        let text = text.trim_end();
        if self.stdout_taken {
            say(text);
            return Ok(());
        }
        let mut stdout = std::io::stdout().lock();
        Ok(writeln!(stdout, "{text}").and_then(|()| stdout.flush())?)
    }

    /// Something that the user should know, on stderr.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// A bar over units of work.
    pub(crate) fn bar(self, name: &str, n_units: u64) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(n_units);
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {elapsed} (left {eta})") {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        bar
    }
}

/// Prints an error with its causes.
pub(crate) fn error(error: &anyhow::Error) {
    say(&format!("error: {error:#}"));
}

fn say(text: &str) {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}
