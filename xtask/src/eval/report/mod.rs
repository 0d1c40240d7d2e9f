//! The report: one page without anything from elsewhere, and a table for documents.

mod chart;
mod clips;
mod listen;
pub(crate) mod markdown;
mod picture;
mod tables;

use super::results::{Group, Results, SystemInfo, count};
use super::run::{Plan, Store};
use super::summary::{Shown, Summaries};
use anyhow::Result;
use chart::{Point, Series};
use codec_metrics::Better;
use listen::Heard;
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("style.css");

/// What the page takes besides sounds and pictures, in bytes, with room to spare: as a whole, for each row of a clip's
/// table, and for each system in the figures and tables of a kind of clips.
const TEXT_BYTES: usize = 300_000;
const ROW_BYTES: usize = 1_200;
const SYSTEM_BYTES: usize = 10_000;

/// The page.
///
/// # Errors
/// When a sound or picture cannot be made.
pub(crate) fn page(
    summaries: &Summaries<'_>,
    plan: &Plan<'_>,
    store: &Store,
    max_bytes: usize,
) -> Result<String> {
    let results = summaries.results;
    let kinds = summaries.kinds();
    let n_systems = results.systems.len();
    let n_rows = results.clips.len().min(clips::MAX_CLIPS) * n_systems;
    let text = TEXT_BYTES + ROW_BYTES * n_rows + SYSTEM_BYTES * n_systems * (1 + kinds.len());
    let heard = Heard::new(plan, store, &results.measurements, max_bytes.saturating_sub(text))?;
    let panels: Vec<(String, Option<&str>)> = std::iter::once(("all clips".to_owned(), None))
        .chain(kinds.iter().map(|kind| ((*kind).to_owned(), Some(*kind))))
        .collect();
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Rate and distortion" }
                style { (PreEscaped(STYLE)) (PreEscaped(tab_rules(panels.len()))) }
            }
            body {
                header {
                    h1 { "Rate and distortion" }
                    p.dim { (headline(results)) }
                    nav {
                        a href="#curves" { "Curves" } a href="#table" { "Table" } a href="#pairs" { "Near the same bitrate" }
                        @if !results.codebooks.is_empty() { a href="#codebooks" { "Codebooks" } }
                        @if !results.speeds.is_empty() { a href="#speed" { "Speed and memory" } }
                        a href="#clips" { "Clips" } a href="#provenance" { "Provenance" }
                    }
                    (notes(summaries))
                }
                main {
                    h2 id="curves" { "Curves" }
                    p {
                        "Mean over clips, with the 95 % interval of the choice of clips. The bitrate is that of the \
                         files as they were written, headers included. PESQ, STOI and MCD judge speech only. "
                        "What loses nothing is drawn at the rim where its score is off the scale."
                    }
                    (legend(summaries))
                    (tabs("curves", &panels, |kind| charts(summaries, kind)))
                    h2 id="table" { "Table" }
                    p.dim { "± is half the width of the 95 % interval; arrows point to the good values; n is the number of clips where a metric judged fewer than all." }
                    (tabs("table", &panels, |kind| tables::summary(summaries, kind)))
                    h2 id="pairs" { "Near the same bitrate" }
                    p {
                        "Each model against the point of each classical codec nearest to it in measured bitrate, up to \
                         twice or half of it: mean difference on the same clips, model minus other. Coloured where the 95 % interval leaves out \
                         zero."
                    }
                    (tables::differences(summaries))
                    (tables::codebooks(summaries))
                    (tables::speed(summaries))
                    (clips::section(summaries, &heard))
                    h2 id="provenance" { "Provenance" }
                    (tables::provenance(results))
                }
            }
        }
    };
    Ok(markup.into_string())
}

fn headline(results: &Results) -> String {
    let seconds: f64 = {
        let first = results.systems.first().map(|system| system.id.as_str());
        let measured = results.measurements.iter().filter(|measured| Some(measured.system.as_str()) == first);
        measured.map(|measured| measured.seconds).sum()
    };
    format!(
        "{} on {} ({seconds:.0} s), {}, commit {}",
        count(results.systems.len(), "system"),
        count(results.clips.len(), "clip"),
        results.provenance.date,
        results.provenance.commit.get(..12).unwrap_or(&results.provenance.commit)
    )
}

/// What a reader must know before the figures.
fn notes(summaries: &Summaries<'_>) -> Markup {
    let results = summaries.results;
    let cut_off = results.cut_off();
    let dips = summaries.dips();
    let certain: Vec<_> = dips.iter().filter(|dip| dip.is_significant).collect();
    html! {
        ul.notes {
            @for missing in &results.provenance.missing { li { "Not measured, for want of its program: " (missing) } }
            @if results.failures.is_empty() {
                li { "No clip failed." }
            } @else {
                li {
                    (results.failed()) ", left out: "
                    @for failure in results.failures.iter().take(10) {
                        (failure.clip) " (" (failure.system) ": " (failure.reason) "). "
                    }
                }
            }
            @if !cut_off.is_empty() {
                li {
                    "Ends early, and what is missing is not judged: "
                    @for sentence in cut_off.iter().take(10) { (sentence) ". " }
                    @if cut_off.len() > 10 { "The others are in results.csv." }
                }
            }
            @if certain.is_empty() {
                li { "Within every codec no metric gets surely worse with more bits"
                    @if !dips.is_empty() { " (" (dips.len()) " mean(s) fall within their interval)" } "." }
            } @else {
                li {
                    "More bits, worse score, beyond the interval: "
                    @for (idx, dip) in certain.iter().enumerate() {
                        @if idx > 0 { "; " }
                        (dip.metric) " of " (dip.higher) " against " (dip.lower) " (" (format!("{:+.3}", dip.difference)) ")"
                    }
                    "."
                }
            }
        }
    }
}

/// Shows the panel of the tab that is chosen; no script is needed.
fn tab_rules(n_panels: usize) -> String {
    let rule = |idx: usize| format!(".tabs > .t{idx}:checked ~ .p{idx} {{ display: block; }}\n");
    (0..n_panels).map(rule).collect()
}

fn tabs(name: &str, panels: &[(String, Option<&str>)], panel: impl Fn(Option<&str>) -> Markup) -> Markup {
    html! {
        div.tabs {
            @if panels.len() > 1 {
                @for (idx, (label, _)) in panels.iter().enumerate() {
                    @let id = format!("{name}-{idx}");
                    input type="radio" name=(name) id=(id) class=(format!("t{idx}")) checked[idx == 0];
                    label for=(id) { (label) }
                }
                @for (idx, (_, kind)) in panels.iter().enumerate() {
                    div class=(format!("panel p{idx}")) { (panel(*kind)) }
                }
            } @else {
                (panel(None))
            }
        }
    }
}

/// The codecs of a run in order, with their systems.
fn codecs(results: &Results) -> Vec<(&str, Vec<&SystemInfo>)> {
    let mut codecs: Vec<(&str, Vec<&SystemInfo>)> = Vec::new();
    for system in &results.systems {
        match codecs.iter_mut().find(|(codec, _)| *codec == system.codec) {
            Some((_, systems)) => systems.push(system),
            None => codecs.push((&system.codec, vec![system])),
        }
    }
    codecs
}

fn legend(summaries: &Summaries<'_>) -> Markup {
    html! {
        ul.legend {
            @for (index, (codec, systems)) in codecs(summaries.results).into_iter().enumerate() {
                @let group = systems.first().map_or(Group::Classical, |system| system.group);
                li { (chart::swatch(&Series { group, index, points: Vec::new() })) (codec) }
            }
        }
    }
}

fn charts(summaries: &Summaries<'_>, kind: Option<&str>) -> Markup {
    html! {
        div.charts {
            @for metric in summaries.metrics() {
                @let series = series(summaries, &metric, kind);
                @if !series.is_empty() {
                    figure {
                        figcaption {
                            (metric.label) " " span.dim { (direction(&metric)) }
                        }
                        (chart::curves(&series, &metric.unit))
                    }
                }
            }
        }
    }
}

fn direction(metric: &Shown) -> &'static str {
    match metric.better {
        Better::Higher => "higher is better",
        Better::Lower => "lower is better",
        Better::Zero => "zero is best",
    }
}

fn series(summaries: &Summaries<'_>, metric: &Shown, kind: Option<&str>) -> Vec<Series> {
    let point = |system: &SystemInfo| {
        let summary = summaries.of(&metric.name, &system.id, kind)?;
        let (kbps, _) = summaries.kbps(&system.id, kind)?;
        let interval = summary.interval.map(|interval| (interval.low, interval.high));
        let spread = interval.map(|(low, high)| format!(" [{low:.3}, {high:.3}]")).unwrap_or_default();
        let title =
            format!("{} at {kbps:.2} kbit/s: {:.3}{spread}, {} clips", system.id, summary.mean, summary.n);
        Some(Point { kbps, mean: summary.mean, interval, title })
    };
    let all = codecs(summaries.results).into_iter().enumerate().map(|(index, (_, systems))| {
        let group = systems.first().map_or(Group::Classical, |system| system.group);
        let mut points: Vec<Point> = systems.into_iter().filter_map(point).collect();
        points.sort_by(|a, b| a.kbps.total_cmp(&b.kbps));
        Series { group, index, points }
    });
    all.filter(|series| !series.points.is_empty()).collect()
}
