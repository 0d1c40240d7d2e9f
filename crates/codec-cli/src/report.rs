//! What the user sees: results on stdout, everything else on stderr, a bar for what takes long.

use crate::Global;
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

    /// A file that failed while others go on.
    pub(crate) fn failure(&self, error: &anyhow::Error) {
        self.bars.suspend(|| self::error(error));
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

/// Prints an error with its causes.
pub(crate) fn error(error: &anyhow::Error) {
    note(&format!("error: {error:#}"));
}

fn note(text: &str) {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}
