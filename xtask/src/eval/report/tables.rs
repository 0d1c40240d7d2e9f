//! The tables of the page, apart from those of single clips.

use super::{chart, codecs};
use crate::eval::results::{CodebookUse, Group, Results, SystemInfo};
use crate::eval::summary::{Shown, Summaries};
use maud::{Markup, html};

/// One row per system, one column per metric.
pub(super) fn summary(summaries: &Summaries<'_>, kind: Option<&str>) -> Markup {
    let metrics: Vec<Shown> = summaries.metrics();
    let with_scores: Vec<&Shown> = (metrics.iter())
        .filter(|metric| {
            summaries
                .results
                .systems
                .iter()
                .any(|system| summaries.of(&metric.name, &system.id, kind).is_some())
        })
        .collect();
    let clips = summaries.results.clips.iter();
    let n_all = clips.filter(|clip| kind.is_none_or(|kind| clip.kind == kind)).count();
    html! {
        div.scroll tabindex="0" {
            table {
                thead { tr {
                    th { "system" } th { "kbit/s" br; "measured" } th { "kbit/s" br; "payload" } th { "clips" }
                    @for metric in &with_scores {
                        (heading_with(metric, summaries.n_scores(&metric.name, kind).filter(|n| *n < n_all)))
                    }
                } }
                tbody {
                    @for system in &summaries.results.systems {
                        @if let Some((kbps, n_clips)) = summaries.kbps(&system.id, kind) {
                            tr {
                                td { (system.id) }
                                td { (format!("{kbps:.2}")) }
                                td { (summaries.payload_kbps(&system.id, kind).map(|kbps| format!("{kbps:.2}")).unwrap_or_default()) }
                                td { (n_clips) }
                                @for metric in &with_scores { (cell(summaries, metric, system, kind)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Longest line of a heading, in characters.
const LINE: usize = 10;

/// The name of a metric on lines short enough for a column of numbers.
pub(super) fn heading(metric: &Shown) -> Markup {
    heading_with(metric, None)
}

/// The same, with the number of clips where it is not that of all.
fn heading_with(metric: &Shown, n: Option<usize>) -> Markup {
    let mut lines: Vec<String> = Vec::new();
    for part in metric.name.split_inclusive('_') {
        let chars: Vec<char> = part.chars().collect();
        match lines.last_mut() {
            Some(line) if line.len() + part.len() <= LINE => line.push_str(part),
            _ => lines.extend(chars.chunks(LINE).map(|line| line.iter().collect::<String>())),
        }
    }
    // There is no other MOS among them.
    let unit = metric.unit.split('-').next().unwrap_or_default();
    html! {
        th title=(metric.label) {
            @for line in &lines { (line) br; }
            (metric.arrow()) " " span.unit { (unit) }
            @if let Some(n) = n { br; span.unit { "n=" (n) } }
        }
    }
}

fn cell(summaries: &Summaries<'_>, metric: &Shown, system: &SystemInfo, kind: Option<&str>) -> Markup {
    let Some(summary) = summaries.of(&metric.name, &system.id, kind) else { return html! { td { "–" } } };
    let n_clips = summaries.kbps(&system.id, kind).map_or(0, |(_, n_clips)| n_clips);
    let is_alike = summaries.n_scores(&metric.name, kind).is_some();
    let n = (!is_alike && summary.n != n_clips).then_some(summary.n);
    let interval = summary.interval.map(|interval| {
        let title = format!("{:.4} to {:.4}, {} clips", interval.low, interval.high, summary.n);
        (title, (interval.high - interval.low) / 2.0)
    });
    html! {
        td title=[interval.as_ref().map(|(title, _)| title)] {
            (metric.digits(summary.mean))
            @if let Some((_, half)) = interval { span.pm { "±" (metric.digits(half)) } }
            @if let Some(n) = n { span.pm { " n=" (n) } }
        }
    }
}

/// Every model against the classical codecs nearest to it in bitrate.
pub(super) fn differences(summaries: &Summaries<'_>) -> Markup {
    let neural = || summaries.results.systems.iter().filter(|system| system.group == Group::Neural);
    let rows: Vec<(&SystemInfo, &SystemInfo)> = neural()
        .flat_map(|system| summaries.rivals(system).into_iter().map(move |rival| (system, rival)))
        .collect();
    if rows.is_empty() {
        let has = |group| summaries.results.systems.iter().any(|system| system.group == group);
        let why = match (has(Group::Neural), has(Group::Classical)) {
            (false, _) => "the run has no model",
            (_, false) => "the run has no classical codec",
            _ => "no classical codec has a point between half and twice the measured bitrate of a model",
        };
        return html! { p.dim { "There is nothing to compare: " (why) "." } };
    }
    let metrics = summaries.metrics();
    let kbps = |system: &SystemInfo| summaries.kbps(&system.id, None).map_or(0.0, |(kbps, _)| kbps);
    html! {
        div.scroll tabindex="0" {
            table {
                thead { tr {
                    th { "model" } th.text { "against" } th { "kbit/s" }
                    @for metric in &metrics { (heading(metric)) }
                } }
                tbody {
                    @for (system, rival) in rows {
                        tr {
                            td { (system.id) } td.text { (rival.id) }
                            td { (format!("{:.1} : {:.1}", kbps(system), kbps(rival))) }
                            @for metric in &metrics { (difference(summaries, metric, system, rival)) }
                        }
                    }
                }
            }
        }
    }
}

fn difference(summaries: &Summaries<'_>, metric: &Shown, system: &SystemInfo, rival: &SystemInfo) -> Markup {
    let Some(found) = summaries.compare(&metric.name, &system.id, &rival.id) else {
        return html! { td { "–" } };
    };
    let mean = found.difference.mean;
    let is_known = matches!(metric.better, codec_metrics::Better::Higher | codec_metrics::Better::Lower);
    let class = match (found.is_significant() && is_known, metric.gain(mean, 0.0) > 0.0) {
        (false, _) => None,
        (true, true) => Some("better"),
        (true, false) => Some("worse"),
    };
    let interval = found.difference.interval;
    let interval = interval.map(|i| format!("{:.4} to {:.4}; ", i.low, i.high)).unwrap_or_default();
    let title = format!(
        "{interval}higher on {}, lower on {} of {} clips",
        found.n_higher, found.n_lower, found.difference.n
    );
    let sign = if mean >= 0.0 { "+" } else { "−" };
    html! { td class=[class] title=(title) { (sign) (metric.digits(mean.abs())) } }
}

/// Use and entropy of each model's codebooks.
pub(super) fn codebooks(summaries: &Summaries<'_>) -> Markup {
    let all = &summaries.results.codebooks;
    if all.is_empty() {
        return html! {};
    }
    let models: Vec<(&str, Vec<&CodebookUse>)> = codecs(summaries.results)
        .into_iter()
        .map(|(codec, _)| (codec, all.iter().filter(|codebook| codebook.codec == codec).collect()))
        .filter(|(_, codebooks): &(_, Vec<_>)| !codebooks.is_empty())
        .collect();
    html! {
        h2 id="codebooks" { "Codebooks" }
        p {
            "Over all clips, at the highest bitrate. A bar is filled up to the entropy of the codes: an ideal coder \
             without context would need so many bits; the frame is what they take."
        }
        div.charts {
            @for (codec, codebooks) in &models {
                @let taken: f64 = codebooks.iter().map(|c| f64::from(c.size.max(2)).log2() * c.n_codes as f64).sum();
                @let needed: f64 = codebooks.iter().map(|c| c.entropy_bits * c.n_codes as f64).sum();
                figure {
                    figcaption {
                        (codec) " "
                        span.dim { (format!("{:.1} % of the bits are entropy", 100.0 * needed / taken.max(1.0))) }
                    }
                    (chart::entropies(codebooks))
                }
            }
        }
        @for (codec, codebooks) in &models {
            details {
                summary { "Numbers of " (codec) }
                div.scroll tabindex="0" {
                    table {
                        thead { tr { th { "codebook" } th { "size" } th { "codes" } th { "used" } th { "used, %" } th { "entropy, bits" } th { "perplexity" } } }
                        tbody {
                            @for c in codebooks {
                                tr {
                                    td { (c.codebook) } td { (c.size) } td { (c.n_codes) } td { (c.n_used) }
                                    td { (format!("{:.1}", 100.0 * c.n_used as f64 / f64::from(c.size.max(1)))) }
                                    td { (format!("{:.2}", c.entropy_bits)) } td { (format!("{:.1}", c.perplexity)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Time and memory of each system.
pub(super) fn speed(summaries: &Summaries<'_>) -> Markup {
    let results = summaries.results;
    let Some(first) = results.speeds.first() else { return html! {} };
    let times = |seconds: f64, took: f64| format!("{:.0}×", seconds / took.max(1e-9));
    html! {
        h2 id="speed" { "Speed and memory" }
        p {
            (format!("On a clip of {:.1} s, median of three, each system in a process of its own with {} thread(s). ",
                first.seconds, results.provenance.threads))
            "Times real time: higher is faster. The times of other programs include their start and their files. \
             Memory is the largest resident set of the process, its code and weights included."
        }
        div.scroll tabindex="0" {
            table {
                thead { tr { th { "system" } th { "encode" } th { "decode" } th { "load, s" } th { "peak memory, MB" } } }
                tbody {
                    @for speed in &results.speeds {
                        tr {
                            td { (speed.system) @if speed.is_program { span.dim { " (program)" } } }
                            td { (times(speed.seconds, speed.encode_seconds)) }
                            td { (times(speed.seconds, speed.decode_seconds)) }
                            td { (speed.load_seconds.map(|s| format!("{s:.2}")).unwrap_or_else(|| "–".to_owned())) }
                            td { (speed.peak_bytes.map(|b| format!("{:.1}", b as f64 / 1e6)).unwrap_or_else(|| "–".to_owned())) }
                        }
                    }
                }
            }
        }
    }
}

/// Where the numbers come from.
pub(super) fn provenance(results: &Results) -> Markup {
    let provenance = &results.provenance;
    html! {
        dl.facts {
            dt { "command" } dd { code { (provenance.command) } }
            dt { "commit" } dd { code { (provenance.commit) } " (version " (provenance.version) ")" }
            dt { "date" } dd { (provenance.date) }
            dt { "machine" } dd { (provenance.machine) ", " (provenance.threads) " thread(s) used" }
            dt { "clips" } dd { (provenance.data) ": " (results.clips.len()) " clips, SHA-256 " code { (provenance.data_sha256) } }
            dt { "bootstrap" } dd { "percentile, over clips, seed " (provenance.seed) }
            @for (codec, systems) in codecs(results) {
                @if let Some(system) = systems.first() { dt { (codec) } dd { (system.identity) } }
            }
            @for missing in &provenance.missing { dt { "missing" } dd { (missing) } }
            @for (name, label) in &provenance.metrics { dt { (name) } dd { (label) } }
        }
        p.dim {
            "PESQ is that of PyPI pesq 0.0.4, which most papers use: without Corrigendum 2 of P.862.2. Decoded audio is \
             brought to the rate of its original; a delay is measured by cross-correlation and taken out where the \
             correlation is 0.5 or more. ViSQOL and neural judges are not part of this; their scores can be brought in \
             from a table."
        }
    }
}
