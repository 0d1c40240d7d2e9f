//! Clip by clip: sounds, spectrograms and all numbers.

use super::listen::{Heard, HeardClip, Media};
use super::tables::heading;
use crate::eval::results::{Group, Measurement, Results};
use crate::eval::summary::{Shown, Summaries};
use maud::{Markup, html};

/// Clips with a table of their own; more are in the CSV file.
pub(super) const MAX_CLIPS: usize = 100;

/// Clips that are named as a model's worst.
const N_WORST: usize = 3;

/// Scores beside a player, where there are some.
const ON_CARDS: [&str; 4] = ["pesq_wb", "stoi", "si_sdr", "mel_dac"];

pub(super) fn section(summaries: &Summaries<'_>, heard: &Heard) -> Markup {
    let results = summaries.results;
    let metrics = summaries.metrics();
    html! {
        h2 id="clips" { "Clips" }
        (worst(summaries))
        @if !heard.clips.is_empty() {
            p {
                (heard.clips.len()) " of " (results.clips.len()) " clips can be heard. The sounds are "
                (heard.packing) ", aligned with the original. Spectrograms show the same excerpt, on one scale of "
                "brightness per clip and a mel scale up to half the original's sample rate."
            }
        }
        @for (clip_idx, clip) in results.clips.iter().take(MAX_CLIPS).enumerate() {
            @let measured: Vec<&Measurement> = results.measurements.iter().filter(|m| m.clip == clip.name).collect();
            details id=(format!("clip-{clip_idx}")) open[clip_idx == 0] {
                summary { (clip.name) " " span.dim { (clip.kind) } }
                @if let Some(media) = heard.clips.get(&clip.name) {
                    (cards(results, media, &measured, &metrics))
                    details { summary { "All numbers of " (clip.name) } (numbers(&measured, &metrics)) }
                } @else {
                    (numbers(&measured, &metrics))
                }
            }
        }
        @if results.clips.len() > MAX_CLIPS {
            p.dim { "The other clips are in results.csv." }
        }
    }
}

/// Where each model does worst, by the first metric that judges all it can.
fn worst(summaries: &Summaries<'_>) -> Markup {
    let results = summaries.results;
    let metric = ["mel_dac", "mel_audiotools", "stft", "pesq_wb"]
        .into_iter()
        .map(|name| Shown::of(name, &results.directions));
    let mut metric =
        metric.filter(|metric| results.measurements.iter().any(|m| m.scores.contains_key(&metric.name)));
    let Some(metric) = metric.next() else { return html! {} };
    let models: Vec<(&str, Vec<&Measurement>)> = (super::codecs(results).into_iter())
        .filter_map(|(_, systems)| systems.last().copied())
        .filter(|system| system.group == Group::Neural)
        .map(|system| {
            let own = results.measurements.iter().filter(|m| m.system == system.id);
            let mut own: Vec<&Measurement> = own.filter(|m| m.scores.contains_key(&metric.name)).collect();
            own.sort_by(|a, b| metric.gain(a.scores[&metric.name], b.scores[&metric.name]).total_cmp(&0.0));
            own.truncate(N_WORST);
            (system.id.as_str(), own)
        })
        .collect();
    let anchor = |name: &str| {
        let clip_idx = results.clips.iter().position(|clip| clip.name == name);
        format!("#clip-{}", clip_idx.unwrap_or_default())
    };
    html! {
        @for (system, clips) in models {
            p {
                "Worst clips of " (system) " by " (metric.name) ": "
                @for (idx, measured) in clips.iter().enumerate() {
                    @if idx > 0 { ", " }
                    a href=(anchor(&measured.clip)) { (measured.clip) } " (" (metric.digits(measured.scores[&metric.name])) ")"
                }
                "."
            }
        }
    }
}

fn cards(results: &Results, media: &HeardClip, measured: &[&Measurement], metrics: &[Shown]) -> Markup {
    let on_cards: Vec<&Shown> =
        metrics.iter().filter(|metric| ON_CARDS.contains(&metric.name.as_str())).collect();
    let excerpt = format!("{:.1} to {:.1} s", media.start, media.start + media.seconds);
    html! {
        div.cards {
            (card("original", &excerpt, &media.original, true, &html! {}))
            @for system in &results.systems {
                @let own = measured.iter().find(|m| m.system == system.id);
                @if let (Some(own), Some(media)) = (own, media.systems.get(&system.id)) {
                    @let scores = html! {
                        div.scores {
                            @for metric in &on_cards {
                                @if let Some(score) = own.scores.get(&metric.name) {
                                    span { span.dim { (metric.name) } " " (metric.digits(*score)) }
                                }
                            }
                        }
                    };
                    (card(&system.id, &format!("{:.2} kbit/s", own.kbps), media, false, &scores))
                }
            }
        }
    }
}

fn card(title: &str, detail: &str, media: &Media, is_original: bool, scores: &Markup) -> Markup {
    html! {
        div.card.original[is_original] {
            h4 { span { (title) } span.dim { (detail) } }
            img src=(media.picture) alt=(format!("spectrogram: {title}")) width="256" height="80" decoding="async";
            audio controls preload="none" src=(media.sound) aria-label=(title) {}
            (scores)
        }
    }
}

fn numbers(measured: &[&Measurement], metrics: &[Shown]) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table {
                thead { tr {
                    th { "system" } th { "kbit/s" } th { "bytes" } th { "delay" br; "samples" } th { "corre-" br; "lation" }
                    @for metric in metrics { (heading(metric)) }
                } }
                tbody {
                    @for m in measured {
                        tr {
                            td { (m.system) } td { (format!("{:.2}", m.kbps)) } td { (m.n_bytes) }
                            @if let Some(delay) = m.delay {
                                td { @if delay.taken_out { (format!("{:.2}", delay.samples)) } @else { span title="too unlike to tell" { "?" } } }
                                td { (format!("{:.2}", delay.correlation)) @if delay.inverted { " ↕" } }
                            } @else { td { "–" } td { "–" } }
                            @for metric in metrics {
                                @let why = m.not_judged.get(&metric.name);
                                td title=[why] { (m.scores.get(&metric.name).map_or_else(|| "–".to_owned(), |score| metric.digits(*score))) }
                            }
                        }
                    }
                }
            }
        }
    }
}
