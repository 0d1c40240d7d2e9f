//! Where the numbers of a run come from: sources, machine, data, metrics.

use super::clips::{Clip, data_sha256};
use super::results::Provenance;
use codec_metrics::Metric;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Of a run that begins now; what is missing is added later.
pub(crate) fn new(root: &Path, data: String, clips: &[Clip], metrics: &[Metric], seed: u64) -> Provenance {
    let describe = |metric: &Metric| {
        let described = metric.describe();
        let unit = if described.unit.is_empty() { String::new() } else { format!(", {}", described.unit) };
        (described.name.to_owned(), format!("{}{unit}", described.label))
    };
    Provenance {
        date: date(SystemTime::now()),
        command: command(),
        commit: commit(root),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        machine: machine(),
        threads: rayon::current_num_threads(),
        data,
        data_sha256: data_sha256(clips),
        metrics: metrics.iter().map(describe).collect(),
        seed,
        missing: Vec::new(),
    }
}

/// As it was typed, but for where the program lies.
fn command() -> String {
    let quote = |word: String| if word.contains(char::is_whitespace) { format!("'{word}'") } else { word };
    let words: Vec<String> = std::env::args().skip(1).map(quote).collect();
    format!("cargo xtask {}", words.join(" "))
}

fn commit(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return "unknown".to_owned() };
    let is_changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    if is_changed { format!("{commit} with changes") } else { commit }
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let cpu = cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let n_cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cpu}, {n_cores} core(s), {}", std::env::consts::OS)
}

/// RFC 3339 in UTC, to the second.
///
/// # Source
/// Days to a date as in Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_826_154, "2000-02-29T12:09:14Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
