//! What the user sees: results on stdout, everything else on stderr, a bar for what takes long.

use crate::Global;
use crate::inputs::Place;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Prints results, notes and progress in the way that the flags ask for.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    json: bool,
    quiet: bool,
    /// Results go to stderr while stdout carries audio or codes.
    stdout_taken: bool,
    /// Whether the reader of stdout has gone, as `head` does.
    is_unread: Arc<AtomicBool>,
    bars: MultiProgress,
}

impl Reporter {
    pub(crate) fn new(global: &Global, stdout_taken: bool) -> Self {
        let target = if global.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bars = MultiProgress::with_draw_target(target);
        let is_unread = Arc::default();
        Self { json: global.json, quiet: global.quiet, stdout_taken, is_unread, bars }
    }

    /// Whether nobody reads the results any more: what makes nothing else may end.
    pub(crate) fn is_unread(&self) -> bool {
        self.is_unread.load(Ordering::Relaxed)
    }

    /// A result: one line for people, or one JSON object. A reader that has gone is no error.
    pub(crate) fn result(&self, text: impl FnOnce() -> String, json: &impl Serialize) -> anyhow::Result<()> {
        let line = if self.json { serde_json::to_string(json)? } else { text() };
        if self.quiet && !self.json {
            return Ok(());
        }
        let written = self.bars.suspend(|| {
            if self.stdout_taken {
                writeln!(std::io::stderr(), "{line}")
            } else {
                writeln!(std::io::stdout(), "{line}")
            }
        });
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.is_unread.store(true, Ordering::Relaxed);
                Ok(())
            }
            written => Ok(written?),
        }
    }

    /// Something that the user should know, on stderr.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.bars.suspend(|| note(text));
        }
    }

    /// What failed while others go on.
    pub(crate) fn failure(&self, error: &anyhow::Error) {
        self.bars.suspend(|| self::error(error));
    }

    /// The same of an input, which then has no other result.
    pub(crate) fn failed_input(&self, input: &Place, error: &anyhow::Error) -> anyhow::Result<()> {
        self.failure(error);
        if !self.json || error.is::<Reported>() {
            return Ok(());
        }
        self.result(String::new, &Failure { input: input.to_string(), error: message(error) })
    }

    /// A bar over bytes, of which the number may become known later.
    pub(crate) fn byte_bar(&self, name: &str) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::no_length());
        let template = "{msg:30!} {bar:30} {bytes} of {total_bytes}  {bytes_per_sec} (left {eta})";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// A bar over `n_units` of work, or a spinner when their number is unknown.
    pub(crate) fn bar(&self, name: &str, n_units: Option<u64>) -> ProgressBar {
        let bar = self.bars.add(n_units.map_or_else(ProgressBar::no_length, ProgressBar::new));
        let known = "{msg:30!} {bar:30} {percent:>3} %  {elapsed} (left {eta})";
        let style = if n_units.is_some() { known } else { "{msg:30!} {spinner} {elapsed}" };
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// The result of an input that has none.
#[derive(Debug, Serialize)]
struct Failure {
    input: String,
    error: String,
}

/// The error of an input whose result was printed all the same, and says what is wrong.
#[derive(Debug)]
pub(crate) struct Reported(pub(crate) String);

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Reported {}

/// Prints an error with its causes.
pub(crate) fn error(error: &anyhow::Error) {
    note(&format!("error: {}", message(error)));
}

/// An error with its causes. Each layer names the file that it had to do with, as it cannot know that others do;
/// here a name is said once, and so is a cause.
fn message(error: &anyhow::Error) -> String {
    let (mut said, mut names) = (Vec::<String>::new(), Vec::<String>::new());
    for cause in error.chain() {
        let mut text = cause.to_string();
        for name in &names {
            if let Some(rest) = text.strip_prefix(&format!("{name}: ")) {
                text = rest.to_owned();
            } else if let Some(rest) = text.strip_suffix(&format!(" {name}")) {
                text = rest.to_owned();
            }
        }
        if said.contains(&text) {
            continue;
        }
        let name = text.split_once(": ").map_or(text.as_str(), |(name, _)| name);
        if !name.is_empty() {
            names.push(name.to_owned());
        }
        said.push(text);
    }
    said.join(": ")
}

fn note(text: &str) {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn a_name_and_a_cause_are_said_once() {
        let denied = || std::io::Error::from(ErrorKind::PermissionDenied);
        for (error, expected) in [
            (anyhow!("a.wav: sample 5 is odd").context("a.wav"), "a.wav: sample 5 is odd"),
            (
                anyhow!("m: not a known codec: b").context("m: the model does not load"),
                "m: the model does not load: not a known codec: b",
            ),
            (anyhow!("cannot open a.wav").context("a.wav"), "a.wav: cannot open"),
            (
                Err::<(), _>(denied()).context(denied().to_string()).context("a: cannot write").unwrap_err(),
                "a: cannot write: permission denied",
            ),
            (anyhow!("b: c").context("a"), "a: b: c"),
        ] {
            assert_eq!(message(&error), expected);
        }
    }
}
