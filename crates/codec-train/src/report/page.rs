//! One page without anything outside it: curves as SVG, spectrograms as bitmaps.

use super::Line;
use super::image::spectrogram;
use codec_core::AudioBuffer;
use std::collections::BTreeMap;
use std::fmt::Write;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 240.0;
/// Room for the numbers at the left and below.
const MARGIN: (f64, f64) = (64.0, 28.0);
/// Points of a curve; more lines are averaged.
const MAX_POINTS: usize = 400;
const COLOURS: [&str; 8] =
    ["#1b6ca8", "#d1495b", "#3a7d44", "#edae49", "#6f4e7c", "#00798c", "#8d5a2b", "#555555"];
/// Seconds after which a browser loads the page again.
const REFRESH: u32 = 20;

const STYLE: &str = "body{font:15px/1.4 system-ui,sans-serif;margin:1.5rem;color:#222;background:#fff}\
    h1{font-size:1.3rem}h2{font-size:1rem;margin:.2rem 0}.all{display:flex;flex-wrap:wrap;gap:1.2rem}\
    figure{margin:0}figcaption span{margin-right:.9em;white-space:nowrap}img{max-width:100%;height:256px;display:block}\
    svg{background:#fafafa;border:1px solid #ddd}text{font-size:11px;fill:#666}";

type Curve = Vec<(f64, f64)>;

/// The page of a run.
pub(super) fn page(title: &str, lines: &[Line], example: Option<&[AudioBuffer; 2]>) -> String {
    let title = escaped(title);
    let mut body = String::new();
    if let Some(last) = lines.iter().rev().find(|line| line.kind == "train") {
        let hours = last.seconds / 3600.0;
        let _ =
            write!(body, "<p>{} steps, {hours:.2} h, {:.1} s of audio per second</p>", last.step, last.speed);
    }
    body.push_str("<div class=all>");
    for (name, curves) in charts(lines) {
        body.push_str(&chart(&name, &curves));
    }
    body.push_str("</div>");
    if let Some([original, decoded]) = example {
        for (name, audio) in [("original", original), ("decoded", decoded)] {
            let image = spectrogram(audio);
            let _ = write!(body, "<h2>{name}</h2><img alt=\"spectrogram, {name}\" src=\"{image}\">");
        }
    }
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content={REFRESH}>\
         <title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{body}</html>\n"
    )
}

/// All charts: their names, and their curves by name.
fn charts(lines: &[Line]) -> Vec<(String, BTreeMap<String, Curve>)> {
    let mut charts = BTreeMap::<(u8, String), BTreeMap<String, Curve>>::new();
    let mut put = |order: u8, chart: &str, curve: &str, step: u64, value: f64| {
        let curves = charts.entry((order, chart.to_owned())).or_default();
        curves.entry(curve.to_owned()).or_default().push((step as f64, value));
    };
    for line in lines {
        for (name, &loss) in &line.losses {
            put(1, &format!("loss: {name}"), name, line.step, loss);
        }
        for (name, kinds) in &line.scores {
            kinds
                .iter()
                .for_each(|(kind, &score)| put(0, &format!("validation: {name}"), kind, line.step, score));
        }
        if line.kind != "train" {
            continue;
        }
        put(2, "learning rate", "rate", line.step, line.learning_rate);
        put(2, "gradient", "length", line.step, line.gradient);
        put(2, "speed", "audio seconds per second", line.step, line.speed);
        for (kind, codebooks) in &line.used {
            for (i, &used) in codebooks.iter().enumerate() {
                put(3, &format!("codebook entries in use, {kind}"), &format!("{}", i + 1), line.step, used);
            }
        }
        for (i, &perplexity) in line.perplexity.get("all").into_iter().flatten().enumerate() {
            put(3, "perplexity of codebooks", &format!("{}", i + 1), line.step, perplexity);
        }
    }
    charts.into_iter().map(|((_, name), curves)| (name, curves)).collect()
}

fn chart(name: &str, curves: &BTreeMap<String, Curve>) -> String {
    let values = || curves.values().flatten().copied().filter(|(_, y)| y.is_finite());
    let last_step = values().map(|(x, _)| x).fold(1.0, f64::max);
    let low = values().map(|(_, y)| y).fold(f64::INFINITY, f64::min);
    let high = values().map(|(_, y)| y).fold(f64::NEG_INFINITY, f64::max);
    // A constant curve lies in the middle, one without a number nowhere.
    let (low, high) = match high - low {
        range if range > 0.0 && range.is_finite() => (low, high),
        0.0 => (low - 0.5_f64.max(0.1 * low.abs()), low + 0.5_f64.max(0.1 * low.abs())),
        _ => (0.0, 1.0),
    };
    let x_at = |x: f64| MARGIN.0 + x / last_step * (WIDTH - MARGIN.0 - 8.0);
    let y_at = |y: f64| 8.0 + (high - y) / (high - low) * (HEIGHT - MARGIN.1 - 8.0);
    let name = escaped(name);
    let mut text = format!("<figure><h2>{name}</h2><svg width={WIDTH} height={HEIGHT} role=img>");
    for i in 0..=4 {
        let y = low + (high - low) * f64::from(i) / 4.0;
        let at = y_at(y);
        let (left, right, middle) = (MARGIN.0, WIDTH - 8.0, at + 4.0);
        let _ = write!(text, "<path d='M{left} {at:.1}H{right}' stroke='#e4e4e4'/>");
        let _ = write!(text, "<text x=4 y={middle:.1}>{}</text>", number(y));
    }
    let below = HEIGHT - 8.0;
    let _ = write!(text, "<text x={} y={below}>0</text>", MARGIN.0);
    let _ = write!(text, "<text x={} y={below} text-anchor=end>step {last_step}</text>", WIDTH - 8.0);
    let mut legend = String::new();
    for ((name, curve), colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let points = thinned(curve);
        let mut path = String::new();
        for (i, (x, y)) in points.iter().filter(|(_, y)| y.is_finite()).enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, x_at(*x), y_at(*y));
        }
        let _ = write!(text, "<path d='{path}' fill=none stroke='{colour}' stroke-width=1.4 />");
        let last = curve.last().map_or(f64::NAN, |(_, y)| *y);
        let _ = write!(legend, "<span style='color:{colour}'>{} {}</span>", escaped(name), number(last));
    }
    let _ = write!(text, "</svg><figcaption>{legend}</figcaption></figure>");
    text
}

/// At most [`MAX_POINTS`] points, each the mean of its neighbours.
fn thinned(curve: &Curve) -> Curve {
    let group = curve.len().div_ceil(MAX_POINTS).max(1);
    let mean = |points: &[(f64, f64)]| {
        let n = points.len() as f64;
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / n, sum.1 / n)
    };
    curve.chunks(group).map(mean).collect()
}

fn number(x: f64) -> String {
    let size = x.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        format!("{x:.2e}")
    } else if size >= 100.0 {
        format!("{x:.0}")
    } else {
        format!("{x:.3}")
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_every_loss_and_score_and_escapes_names() {
        let line = |step: u64| Line {
            kind: "train".to_owned(),
            step,
            losses: BTreeMap::from([("a<b".to_owned(), step as f64)]),
            used: BTreeMap::from([("speech".to_owned(), vec![0.5, 0.7])]),
            ..Line::default()
        };
        let mut lines: Vec<Line> = (1..1000).map(line).collect();
        lines.push(Line {
            kind: "validation".to_owned(),
            step: 999,
            scores: BTreeMap::from([("stoi".to_owned(), BTreeMap::from([("all".to_owned(), 0.9)]))]),
            ..Line::default()
        });
        let page = page("x", &lines, None);
        assert!(page.contains("loss: a&lt;b") && page.contains("validation: stoi"));
        assert!(page.contains("codebook entries in use, speech"));
        assert!(!page.contains("NaN") && page.len() < 120_000, "{}", page.len());
    }

    #[test]
    fn a_constant_curve_lies_in_the_middle_and_one_without_numbers_nowhere() {
        let coordinates = |value: f64| -> Vec<f64> {
            let curve = (1..5).map(|step| (f64::from(step), value)).collect();
            let text = chart("x", &BTreeMap::from([("y".to_owned(), curve)]));
            let svg = text.split("<figcaption>").next().unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            let path = svg.rsplit("<path d='").next().unwrap().split('\'').next().unwrap();
            path.split(['M', 'L', ' ']).filter(|part| !part.is_empty()).map(|x| x.parse().unwrap()).collect()
        };
        let middle = 8.0 + (HEIGHT - MARGIN.1 - 8.0) / 2.0;
        for value in [0.0, 1.0, -3e-7, 1e17, -1e300] {
            let path = coordinates(value);
            assert!(path.len() == 8 && path.iter().skip(1).step_by(2).all(|y| (y - middle).abs() < 0.1));
        }
        for value in [f64::NAN, f64::INFINITY] {
            assert!(coordinates(value).is_empty());
        }
    }

    #[test]
    fn long_curves_are_thinned_by_means() {
        let curve: Curve = (0..1000).map(|i| (f64::from(i), f64::from(i % 3))).collect();
        let thin = thinned(&curve);
        assert!(thin.len() <= MAX_POINTS && thin.iter().take(300).all(|(_, y)| (*y - 1.0).abs() < 1e-9));
    }
}
