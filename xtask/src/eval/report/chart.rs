//! Figures as SVG: curves of quality over bitrate, bars of entropy.

use crate::eval::results::{CodebookUse, Group};
use maud::{Markup, html};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 42.0;
/// Colours and shapes to tell series by.
const N_COLOURS: usize = 8;
const N_SHAPES: usize = 4;
const MARK: f64 = 4.5;

/// A codec's points, by bitrate.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) group: Group,
    /// Decides colour and shape; the same in all figures.
    pub(super) index: usize,
    pub(super) points: Vec<Point>,
}

#[derive(Clone, Debug)]
pub(super) struct Point {
    /// Measured, kbit/s.
    pub(super) kbps: f64,
    pub(super) mean: f64,
    /// Ends of the confidence interval.
    pub(super) interval: Option<(f64, f64)>,
    /// Shown on the mouse.
    pub(super) title: String,
}

/// Quality over measured bitrate, on a logarithmic axis, with confidence intervals.
pub(super) fn curves(series: &[Series], unit: &str) -> Markup {
    let points = || series.iter().flat_map(|series| &series.points);
    // What loses nothing has the end of each scale, and would squeeze the others; it is drawn at the rim.
    let lossy = || series.iter().filter(|s| s.group != Group::Lossless).flat_map(|s| &s.points);
    let x = Log::over(points().map(|point| point.kbps));
    let has_lossy = lossy().next().is_some();
    let spans = |points: &mut dyn Iterator<Item = &Point>| {
        Linear::over(points.flat_map(|point| {
            let (low, high) = point.interval.unwrap_or((point.mean, point.mean));
            [low, high, point.mean]
        }))
    };
    let y = if has_lossy { spans(&mut lossy()) } else { spans(&mut points()) };
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let at_x = |kbps: f64| LEFT + x.fraction(kbps) * (right - LEFT);
    let at_y = |value: f64| bottom - y.fraction(value).clamp(0.0, 1.0) * (bottom - TOP);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" {
            @for tick in y.ticks() {
                line.grid x1=(LEFT) x2=(right) y1=(n(at_y(tick))) y2=(n(at_y(tick))) {}
                text x=(LEFT - 6.0) y=(n(at_y(tick) + 4.0)) text-anchor="end" { (y.label(tick)) }
            }
            @for tick in x.ticks() {
                line.grid x1=(n(at_x(tick))) x2=(n(at_x(tick))) y1=(TOP) y2=(bottom) {}
                text x=(n(at_x(tick))) y=(bottom + 16.0) text-anchor="middle" { (plain(tick)) }
            }
            line.axis x1=(LEFT) x2=(right) y1=(bottom) y2=(bottom) {}
            text x=((LEFT + right) / 2.0) y=(HEIGHT - 6.0) text-anchor="middle" { "kbit/s, measured" }
            @if !unit.is_empty() { text x=(LEFT + 4.0) y=(TOP + 10.0) { (unit) } }
            @for series in series {
                g class=(class(series)) {
                    @if series.points.len() > 1 {
                        polyline.curve points=(polyline(&series.points, at_x, at_y)) {}
                    }
                    @for point in &series.points {
                        @let (px, py) = (at_x(point.kbps), at_y(point.mean));
                        @if let Some((low, high)) = point.interval {
                            line.bar x1=(n(px)) x2=(n(px)) y1=(n(at_y(low))) y2=(n(at_y(high))) {}
                        }
                        path.mark d=(shape(series.index, px, py)) { title { (point.title) } }
                    }
                }
            }
        }
    }
}

/// The line and mark of a series, for a legend.
pub(super) fn swatch(series: &Series) -> Markup {
    html! {
        svg viewBox="0 0 34 14" aria-hidden="true" {
            g class=(class(series)) {
                @if series.group != Group::Lossless { line.curve x1="0" x2="34" y1="7" y2="7" {} }
                path.mark d=(shape(series.index, 17.0, 7.0)) {}
            }
        }
    }
}

/// Entropy of each codebook within the bits that its codes take.
pub(super) fn entropies(codebooks: &[&CodebookUse]) -> Markup {
    let bits = |codebook: &CodebookUse| f64::from(codebook.size.max(2)).log2();
    let top = codebooks.iter().map(|codebook| bits(codebook)).fold(1.0, f64::max);
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let step = (right - LEFT) / codebooks.len().max(1) as f64;
    let width = (step * 0.8).min(40.0);
    let at_y = |value: f64| bottom - value / top * (bottom - TOP);
    let y = Linear { low: 0.0, high: top };
    // At most a dozen numbers below the bars.
    let every = codebooks.len().div_ceil(12).max(1);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" {
            @for tick in y.ticks() {
                line.grid x1=(LEFT) x2=(right) y1=(n(at_y(tick))) y2=(n(at_y(tick))) {}
                text x=(LEFT - 6.0) y=(n(at_y(tick) + 4.0)) text-anchor="end" { (y.label(tick)) }
            }
            @for (idx, codebook) in codebooks.iter().enumerate() {
                @let left = LEFT + step * (idx as f64 + 0.5) - width / 2.0;
                @let (full, entropy) = (bits(codebook), codebook.entropy_bits.max(0.0));
                rect.bits x=(n(left)) y=(n(at_y(full))) width=(n(width)) height=(n(bottom - at_y(full))) {}
                rect.used x=(n(left)) y=(n(at_y(entropy))) width=(n(width)) height=(n(bottom - at_y(entropy))) {
                    title {
                        (format!("codebook {}: {entropy:.2} of {full:.2} bits, {} of {} codes used",
                            codebook.codebook, codebook.n_used, codebook.size))
                    }
                }
                @if idx % every == 0 {
                    text x=(n(left + width / 2.0)) y=(bottom + 16.0) text-anchor="middle" { (codebook.codebook) }
                }
            }
            line.axis x1=(LEFT) x2=(right) y1=(bottom) y2=(bottom) {}
            text x=((LEFT + right) / 2.0) y=(HEIGHT - 6.0) text-anchor="middle" { "codebook" }
            text x=(LEFT + 4.0) y=(TOP + 10.0) { "bits per code" }
        }
    }
}

fn class(series: &Series) -> String {
    let group = match series.group {
        Group::Neural => "neural",
        Group::Classical => "classical",
        Group::Lossless => "lossless",
    };
    format!("series {group} s{}", series.index % N_COLOURS)
}

fn polyline(points: &[Point], at_x: impl Fn(f64) -> f64, at_y: impl Fn(f64) -> f64) -> String {
    let pairs: Vec<String> =
        points.iter().map(|point| format!("{},{}", n(at_x(point.kbps)), n(at_y(point.mean)))).collect();
    pairs.join(" ")
}

/// A disc, a square, a diamond or a triangle.
fn shape(index: usize, x: f64, y: f64) -> String {
    let r = MARK;
    let polygon = |corners: &[(f64, f64)]| {
        let corners: Vec<String> =
            corners.iter().map(|(dx, dy)| format!("{} {}", n(x + dx), n(y + dy))).collect();
        format!("M{}Z", corners.join("L"))
    };
    match index % N_SHAPES {
        0 => format!("M{} {}a{r} {r} 0 1 0 {} 0a{r} {r} 0 1 0 {} 0Z", n(x - r), n(y), 2.0 * r, -2.0 * r),
        1 => polygon(&[(-0.9 * r, -0.9 * r), (0.9 * r, -0.9 * r), (0.9 * r, 0.9 * r), (-0.9 * r, 0.9 * r)]),
        2 => polygon(&[(0.0, -1.25 * r), (1.25 * r, 0.0), (0.0, 1.25 * r), (-1.25 * r, 0.0)]),
        _ => polygon(&[(0.0, -1.2 * r), (1.15 * r, 0.9 * r), (-1.15 * r, 0.9 * r)]),
    }
}

/// A coordinate with as many digits as a screen shows.
fn n(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

fn plain(value: f64) -> String {
    if value >= 1.0 { format!("{value:.0}") } else { format!("{value}") }
}

/// A linear scale.
struct Linear {
    low: f64,
    high: f64,
}

impl Linear {
    /// A little wider than the values.
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = ends(values).unwrap_or((0.0, 1.0));
        let margin = if high > low { 0.05 * (high - low) } else { 0.5 * high.abs().max(0.1) };
        Self { low: low - margin, high: high + margin }
    }

    fn fraction(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    fn step(&self) -> f64 {
        let rough = (self.high - self.low) / 6.0;
        let power = 10.0_f64.powf(rough.log10().floor());
        let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough).unwrap_or(10.0);
        factor * power
    }

    fn ticks(&self) -> Vec<f64> {
        let step = self.step();
        let (first, last) = ((self.low / step).ceil() as i64, (self.high / step).floor() as i64);
        (first..=last).map(|i| i as f64 * step).collect()
    }

    fn label(&self, tick: f64) -> String {
        let digits = (-self.step().log10().floor()).max(0.0) as usize;
        let text = format!("{tick:.digits$}");
        // A rounded zero keeps its sign.
        if text.trim_start_matches('-').chars().all(|c| c == '0' || c == '.') {
            text.replace('-', "")
        } else {
            text
        }
    }
}

/// A logarithmic scale.
struct Log {
    low: f64,
    high: f64,
}

impl Log {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = ends(values.filter(|value| *value > 0.0)).unwrap_or((1.0, 10.0));
        Self { low: (low * 0.85).ln(), high: (high * 1.18).ln() }
    }

    fn fraction(&self, value: f64) -> f64 {
        (value.max(1e-9).ln() - self.low) / (self.high - self.low)
    }

    /// One, two and five times powers of ten; the powers alone where those would be too many.
    fn ticks(&self) -> Vec<f64> {
        let powers = (self.low / 10.0_f64.ln()).floor() as i32..=(self.high / 10.0_f64.ln()).ceil() as i32;
        let all = |factors: &[f64]| -> Vec<f64> {
            let ticks =
                powers.clone().flat_map(|power| factors.iter().map(move |f| f * 10.0_f64.powi(power)));
            ticks.filter(|tick| (0.0..=1.0).contains(&self.fraction(*tick))).collect()
        };
        let ticks = all(&[1.0, 2.0, 5.0]);
        if ticks.len() > 11 { all(&[1.0]) } else { ticks }
    }
}

fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |ends, value| {
        let (low, high) = ends.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let scale = Linear { low: -1.3, high: 4.7 };
        assert_eq!(scale.ticks(), [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(scale.label(-1.0), "-1");
        let fine = Linear { low: 0.82, high: 0.97 };
        assert_eq!(fine.ticks().iter().map(|t| fine.label(*t)).collect::<Vec<_>>()[..2], ["0.85", "0.90"]);
        let log = Log::over([3.2, 256.0].into_iter());
        assert_eq!(
            log.ticks().iter().map(|t| plain(*t)).collect::<Vec<_>>(),
            ["5", "10", "20", "50", "100", "200"]
        );
        assert_eq!(Log::over([0.2, 0.2].into_iter()).ticks(), [0.2]);
    }

    #[test]
    fn what_loses_nothing_does_not_squeeze_the_others() {
        let point = |kbps, mean| Point { kbps, mean, interval: None, title: String::new() };
        let series = |group, index, points| Series { group, index, points };
        let lossy = series(Group::Neural, 0, vec![point(3.0, 1.0), point(6.0, 5.0)]);
        let lossless = series(Group::Lossless, 1, vec![point(256.0, 100.0)]);
        let svg = curves(&[lossy, lossless], "dB").into_string();
        assert!(svg.contains(">5</text>") && !svg.contains(">100</text>\n"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let empty = curves(&[], "").into_string();
        assert!(!empty.contains("NaN") && !empty.contains("inf"), "{empty}");
    }
}
