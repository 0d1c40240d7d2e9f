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
        for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CANDLE_NUM_THREADS"] {
            command.env(variable, n_threads.to_string());
        }
        // What somebody has set would hold for some sides only.
        for variable in ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"] {
            command.env_remove(variable);
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context(name.to_owned())?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{name}: no pipes");
        };
        Ok(Self { name: name.to_owned(), child, stdin, stdout: BufReader::new(stdout), peak_bytes: 0 })
    }

    /// The seconds of a request.
    ///
    /// # Errors
    /// Why the process cannot do it, which may be that it is gone.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Vec<f64>, String> {
        let answer = self.exchange(request).map_err(|error| format!("{error:#}"))?;
        self.peak_bytes = self.peak_bytes.max(answer.peak_bytes);
        answer.error.map_or(Ok(answer.seconds), Err)
    }

    fn exchange(&mut self, request: &Request) -> Result<Answer> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.stdin.write_all(line.as_bytes()).context("the process is gone")?;
        line.clear();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("the process has ended: {}", self.child.wait()?);
        }
        serde_json::from_str(&line).with_context(|| format!("the process answered {line:?}"))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // It ends when its stdin does; a peer that hangs must not outlive us.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_is_no_error_of_ours() {
        let mut side = Side::start("gone", &mut Command::new("true"), 1).unwrap();
        for _ in 0..2 {
            assert!(side.ask(&Request::Encode).unwrap_err().starts_with("the process"));
        }
    }
}
