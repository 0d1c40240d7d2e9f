//! Other programs: found, run to their end, and watched for their memory.

use crate::eval::interrupt;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program that takes longer than this for a clip is stuck.
const MAX_TIME: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(2);

/// What a program said when it failed.
#[derive(Debug, thiserror::Error)]
#[error("{program}: {status}{said}")]
pub(crate) struct ProgramError {
    program: String,
    status: String,
    /// Starts with a separator where there is something.
    said: String,
}

/// The line in which a program states its version; `None` when it does not start.
pub(super) fn version(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().map(str::trim).find(|line| line.chars().any(|c| c.is_ascii_digit()))?;
    // Where a program goes on about itself after its version, that is left out.
    let line = line.split(" Copyright").next().unwrap_or(line);
    Some(line.trim().to_owned())
}

/// Runs a program to its end; gives its largest resident memory in bytes, where the system tells.
///
/// # Errors
/// When it does not start, fails, takes too long, or the run is interrupted.
pub(super) fn run(program: &str, arguments: &[&str], scratch: &Path) -> Result<Option<u64>> {
    let log = scratch.join("stderr.txt");
    let stderr = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let start = Instant::now();
    let mut peak = None;
    let status = loop {
        peak = peak_memory(child.id()).or(peak);
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if interrupt::requested() || start.elapsed() > MAX_TIME {
            end(&mut child);
            interrupt::check()?;
            bail!("{program} was stopped after {} s", MAX_TIME.as_secs());
        }
        std::thread::sleep(POLL);
    };
    if status.success() {
        return Ok(peak);
    }
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    let said = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    let said = said.map(|line| format!(": {line}")).unwrap_or_default();
    Err(ProgramError { program: program.to_owned(), status: status.to_string(), said }.into())
}

fn end(child: &mut Child) {
    // It may have ended by itself in the meantime.
    let _ = child.kill();
    let _ = child.wait();
}

/// The largest resident memory that a living process has had, in bytes; Linux only.
pub(crate) fn peak_memory(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kib)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn programs_are_run_and_their_words_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let peak = run("sleep", &["0.05"], scratch.path()).unwrap().unwrap();
        assert!((100_000..100_000_000).contains(&peak), "{peak}");
        let error = run("sh", &["-c", "echo no such codec >&2; exit 3"], scratch.path()).unwrap_err();
        let error = error.downcast::<ProgramError>().unwrap().to_string();
        assert!(error.ends_with(": no such codec") && error.contains('3'), "{error}");
        assert!(run("no-such-program", &[], scratch.path()).is_err());
        assert_eq!(version("no-such-program", "--version"), None);
    }
}
