//! The table of a run for documents and pull requests.

use crate::eval::summary::{Shown, Summaries};
use std::fmt::Write;

/// One row per system: measured bitrate and every metric, with half the width of its interval.
pub(crate) fn table(summaries: &Summaries<'_>, metrics: &[Shown]) -> String {
    let mut text = String::from("| system | kbit/s, file | kbit/s, payload | clips |");
    for metric in metrics {
        // Writing to a string cannot fail.
        let _ = write!(text, " {} {} |", metric.name, metric.arrow());
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
            let cell = summaries.of(&metric.name, &system.id, None).map_or_else(String::new, |summary| {
                let half = summary.interval.map(|interval| (interval.high - interval.low) / 2.0);
                let half = half.map(|half| format!(" ±{}", metric.digits(half))).unwrap_or_default();
                format!("{}{half}", metric.digits(summary.mean))
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
        "# Rate and distortion\n\n{} systems on {} clips, {}, commit {}.\n\n```sh\n{}\n```\n\n",
        results.systems.len(),
        results.clips.len(),
        provenance.date,
        provenance.commit,
        provenance.command
    );
    text += &table(summaries, &summaries.metrics());
    text += "\nMeans over clips, ± half the width of the 95 % interval.\n";
    for missing in &provenance.missing {
        let _ = write!(text, "\nNot measured, for want of its program: {missing}.\n");
    }
    if !results.failures.is_empty() {
        text += "\n## Failures\n\n";
        for failure in &results.failures {
            let _ = writeln!(text, "- {} by {}: {}", failure.clip, failure.system, failure.reason);
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
