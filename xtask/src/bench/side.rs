//! A process that is measured: ours or a peer's.

use super::protocol::{Answer, Request};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running process.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) name: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub(super) peak_bytes: u64,
}

impl Side {
    /// Starts the process with so many threads.
    pub(super) fn start(name: &str, command: &mut Command, n_threads: usize) -> Result<Self> {
        for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
            command.env(variable, n_threads.to_string());
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context(name.to_owned())?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{name}: no pipes");
        };
        Ok(Self { name: name.to_owned(), child, stdin, stdout: BufReader::new(stdout), peak_bytes: 0 })
    }

    /// The seconds of a request, or why the process cannot do it.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Result<Vec<f64>, String>> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.stdin.write_all(line.as_bytes()).with_context(|| format!("{}: is gone", self.name))?;
        line.clear();
        self.stdout.read_line(&mut line)?;
        let answer: Answer =
            serde_json::from_str(&line).with_context(|| format!("{}: answered {line:?}", self.name))?;
        self.peak_bytes = self.peak_bytes.max(answer.peak_bytes);
        Ok(match answer.error {
            Some(error) => Err(error),
            None => Ok(answer.seconds),
        })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It ends when its stdin does; a peer that hangs must not outlive us.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
