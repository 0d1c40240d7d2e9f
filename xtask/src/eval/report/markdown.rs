//! The table of a run for documents and pull requests.

use crate::eval::results::count;
use crate::eval::summary::{Shown, Summaries};
use std::fmt::Write;

/// One row per system: measured bitrate and every metric, with half the width of its interval.
pub(crate) fn table(summaries: &Summaries<'_>, metrics: &[Shown]) -> String {
    let mut text = String::from("| system | kbit/s, file | kbit/s, payload | clips |");
    let n_all = summaries.results.clips.len();
    for metric in metrics {
        // Writing to a string cannot fail.
        let _ = write!(text, " {} {}", metric.name, metric.arrow());
        // How many clips where a metric does not judge all.
        if let Some(n) = summaries.n_scores(&metric.name, None).filter(|n| *n != n_all) {
            let _ = write!(text, " n={n}");
        }
        text += " |";
    }
    text += "\n| --- | --- | --- | --- |";
    text += &" --- |".repeat(metrics.len());
    text += "\n";
    for system in &summaries.results.systems {
        let Some((kbps, n_clips)) = summaries.kbps(&system.id, None) else { continue };
        let payload =
            summaries.payload_kbps(&system.id, None).map(|kbps| format!("{kbps:.2}")).unwrap_or_default();
        let _ = write!(text, "| {} | {kbps:.2} | {payload} | {n_clips} |", system.id);
        for metric in metrics {
            let is_alike = summaries.n_scores(&metric.name, None).is_some();
            let cell = summaries.of(&metric.name, &system.id, None).map_or_else(String::new, |summary| {
                let n = if is_alike || summary.n == n_clips {
                    String::new()
                } else {
                    format!(" n={}", summary.n)
                };
                let half = summary.interval.map(|interval| (interval.high - interval.low) / 2.0);
                let half = half.map(|half| format!(" ±{}", metric.digits(half))).unwrap_or_default();
                format!("{}{half}{n}", metric.digits(summary.mean))
            });
            let _ = write!(text, " {cell} |");
        }
        text += "\n";
    }
    text
}

/// A whole document: the table, what is missing and where the numbers come from.
pub(crate) fn document(summaries: &Summaries<'_>) -> String {
    let results = summaries.results;
    let provenance = &results.provenance;
    let mut text = format!(
        "# Rate and distortion\n\n{} on {}, {}, commit {}.\n\n```sh\n{}\n```\n\n",
        count(results.systems.len(), "system"),
        count(results.clips.len(), "clip"),
        provenance.date,
        provenance.commit,
        provenance.command
    );
    text += &table(summaries, &summaries.metrics());
    text +=
        "\nMeans over clips, ± half the width of the 95 % interval; n where a metric judged fewer of them.\n";
    for missing in &provenance.missing {
        let _ = write!(text, "\nNot measured, for want of its program: {missing}.\n");
    }
    if !results.failures.is_empty() {
        text += "\n## Failures\n\n";
        for failure in &results.failures {
            let _ = writeln!(text, "- {} by {}: {}", failure.clip, failure.system, failure.reason);
        }
    }
    let cut_off = results.cut_off();
    if !cut_off.is_empty() {
        text += "\n## Ends early\n\nWhat is missing is not judged.\n\n";
        for sentence in cut_off {
            let _ = writeln!(text, "- {sentence}");
        }
    }
    text += "\n## Provenance\n\n";
    let _ = writeln!(text, "- machine: {}", provenance.machine);
    let _ = writeln!(text, "- clips: {}, SHA-256 {}", provenance.data, provenance.data_sha256);
    for system in &results.systems {
        let _ = writeln!(text, "- {}: {}", system.id, system.identity);
    }
    for (name, label) in &provenance.metrics {
        let _ = writeln!(text, "- {name}: {label}");
    }
    text
}
