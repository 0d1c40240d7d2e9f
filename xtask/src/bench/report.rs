//! What was measured, as a table for people and as JSON.

use super::layers::{LayerReport, NetReport};
use super::machine::Machine;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Everything of one run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) n_threads: usize,
    /// Of audio.
    pub(super) seconds: usize,
    pub(super) models: Vec<ModelReport>,
}

/// One model, on every side.
#[derive(Debug, Serialize)]
pub(super) struct ModelReport {
    pub(super) name: String,
    pub(super) title: String,
    /// Of streaming.
    pub(super) step_milliseconds: f64,
    /// Per second of audio, of encoder and decoder, from the configuration; none for integer networks.
    pub(super) gflops: Option<[f64; 2]>,
    /// GFLOP/s of multiply-adds on one core, measured in each round.
    pub(super) peak_gflops: Option<Spread>,
    /// Of encoder and decoder, where they were asked for.
    pub(super) layers: Vec<NetReport>,
    /// From file to file with a new process, one second of audio.
    pub(super) cold_start_seconds: Option<Spread>,
    /// Ours first.
    pub(super) sides: Vec<SideReport>,
}

/// One implementation of a model.
#[derive(Debug, Serialize)]
pub(super) struct SideReport {
    pub(super) name: String,
    pub(super) peak_bytes: u64,
    /// Seconds of `load`, `encode`, `decode`, of each `encode_step`, `decode_step` and `step`, which is both, and of
    /// the ways to code many clips.
    pub(super) seconds: BTreeMap<&'static str, Spread>,
    /// What it cannot do, and why.
    pub(super) failures: BTreeMap<&'static str, String>,
}

/// Many timings.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) n: usize,
    pub(super) least: f64,
    pub(super) median: f64,
    /// 999 of 1000 are no longer than this.
    pub(super) slow: f64,
    pub(super) greatest: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(super) fn of(mut xs: Vec<f64>) -> Option<Self> {
        xs.sort_by(f64::total_cmp);
        let (least, greatest) = (*xs.first()?, *xs.last()?);
        let n = xs.len();
        let slow = xs[((n as f64 * 0.999).ceil() as usize).clamp(1, n) - 1];
        // Of an even number the mean of the two in the middle.
        Some(Self { n, least, median: 0.5 * (xs[(n - 1) / 2] + xs[n / 2]), slow, greatest })
    }
}

impl Report {
    /// The tables.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        self.write(&mut text).ok();
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let Machine { cpu, n_cores, instructions, system, peak_gflops, memory_gigabytes, load } =
            &self.machine;
        writeln!(
            text,
            "{cpu}, {n_cores} cores, {instructions}, {system}; {peak_gflops:.0} GFLOP/s of multiply-adds on one \
             core, {memory_gigabytes:.0} GB/s of memory; {} s of audio, {} threads on every side",
            self.seconds, self.n_threads
        )?;
        if let Some(load) = load {
            writeln!(text, "Load average at the start: {load:.1}.")?;
        }
        for model in &self.models {
            self.write_model(text, model)?;
        }
        Ok(())
    }

    fn write_model(&self, text: &mut String, model: &ModelReport) -> std::fmt::Result {
        writeln!(text, "\n### {}\n", model.title)?;
        let step = format!("{:.0} ms", model.step_milliseconds);
        writeln!(
            text,
            "| | encode | least..greatest | decode | least..greatest | {step}: encode | decode | 99.9 % of both | memory |"
        )?;
        writeln!(text, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
        let times = |spread: Option<&Spread>| {
            let speed = |seconds: f64| format!("{:.1}", self.seconds as f64 / seconds);
            spread.map_or_else(
                || ("-".to_owned(), String::new()),
                |s| (format!("{}x", speed(s.median)), format!("{}..{}", speed(s.greatest), speed(s.least))),
            )
        };
        let milliseconds = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
        for side in &model.sides {
            let get = |what| side.seconds.get(what);
            let ((encode, encodes), (decode, decodes)) = (times(get("encode")), times(get("decode")));
            let steps = [get("encode_step"), get("decode_step")];
            let [coded, decoded] =
                steps.map(|step| step.map_or_else(|| "-".to_owned(), |step| milliseconds(step.median)));
            let slow = get("step").map_or_else(|| "-".to_owned(), |step| milliseconds(step.slow));
            let memory = format!("{} MB", side.peak_bytes >> 20);
            writeln!(
                text,
                "| {} | {encode} | {encodes} | {decode} | {decodes} | {coded} | {decoded} | {slow} | {memory} |",
                side.name
            )?;
        }
        self.write_notes(text, model)
    }

    fn write_notes(&self, text: &mut String, model: &ModelReport) -> std::fmt::Result {
        let Some(ours) = model.sides.first() else { return Ok(()) };
        writeln!(text)?;
        for (what, flops) in ["encode", "decode"].into_iter().zip(model.gflops.unwrap_or_default()) {
            if let (Some(spread), true) = (ours.seconds.get(what), flops > 0.0) {
                let of_core = model.peak_gflops.map_or(self.machine.peak_gflops, |peak| peak.median);
                let peak = of_core * self.n_threads.min(self.machine.n_cores) as f64;
                let share = percent(flops * self.seconds as f64 / spread.median, peak);
                writeln!(
                    text,
                    "- {what}: {flops:.1} GFLOP per second of audio, {share} % of the peak of {} threads",
                    self.n_threads
                )?;
            }
        }
        if let Some(peak) = model.peak_gflops {
            let Spread { median, least, greatest, .. } = peak;
            writeln!(
                text,
                "- peak of one core in each round: {median:.0} GFLOP/s ({least:.0}..{greatest:.0})"
            )?;
        }
        for side in model.sides.iter().skip(1) {
            let ratio = |what| Some(side.seconds.get(what)?.median / ours.seconds.get(what)?.median);
            let ratios: Vec<String> = ["encode", "decode", "encode_step", "decode_step"]
                .into_iter()
                .filter_map(|what| Some(format!("{} {:.1}", what.replace('_', " "), ratio(what)?)))
                .collect();
            writeln!(text, "- times as long as ours, {}: {}", side.name, ratios.join(", "))?;
        }
        for side in &model.sides {
            for (what, why) in &side.failures {
                writeln!(text, "- {}: no {}: {why}", side.name, what.replace('_', " "))?;
            }
        }
        if let Some(Spread { median, least, greatest, .. }) = model.cold_start_seconds {
            writeln!(
                text,
                "- cold start, `codec tokenize` of one second from file to file: {median:.3} s \
                 ({least:.3}..{greatest:.3})"
            )?;
        }
        let clips = ["clips_side_by_side", "clips_in_turn", "clips_on_one_thread"];
        if let [Some(side_by_side), Some(in_turn), Some(alone)] =
            clips.map(|way| ours.seconds.get(way).map(|seconds| seconds.median))
        {
            writeln!(
                text,
                "- clips of 2 to 10 s, coded side by side: {side_by_side:.2} s; one after the other with all threads: \
                 {in_turn:.2} s ({:.2} times), with one thread: {alone:.2} s ({:.2} times); the same codes",
                in_turn / side_by_side,
                alone / side_by_side
            )?;
        }
        for net in &model.layers {
            write_layers(text, net)?;
        }
        Ok(())
    }
}

/// What each layer computes and costs for a second of audio, by itself on one thread.
fn write_layers(text: &mut String, net: &NetReport) -> std::fmt::Result {
    let peak = net.peak_gflops;
    writeln!(
        text,
        "\n| {} | steps/s | channels | MFLOP | MB | ms | % of {peak:.0} GFLOP/s | GB/s |",
        net.title
    )?;
    writeln!(text, "| --- | --- | --- | --- | --- | --- | --- | --- |")?;
    for layer in &net.layers {
        let share =
            if layer.flops > 0.0 { percent(layer.flops / 1e9 / layer.seconds, peak) } else { String::new() };
        // The sum behind a branch stands here for what it moves; it is not timed by itself.
        let rate = if layer.seconds > 1e-6 {
            format!("{:.0}", layer.bytes / layer.seconds / 1e9)
        } else {
            String::new()
        };
        writeln!(
            text,
            "| {} | {:.1} | {} | {:.1} | {:.1} | {:.3} | {share} | {rate} |",
            layer.name,
            layer.steps_per_second,
            layer.channels,
            layer.flops / 1e6,
            layer.bytes / 1e6,
            layer.seconds * 1e3
        )?;
    }
    let sum = |of: fn(&LayerReport) -> f64| net.layers.iter().map(of).sum::<f64>();
    let (flops, bytes, seconds) = (sum(|l| l.flops), sum(|l| l.bytes), sum(|l| l.seconds));
    writeln!(
        text,
        "| all, one after the other | | | {:.1} | {:.1} | {:.3} | {} | {:.0} |",
        flops / 1e6,
        bytes / 1e6,
        seconds * 1e3,
        percent(flops / 1e9 / seconds, peak),
        bytes / seconds / 1e9
    )
}

fn percent(part: f64, whole: f64) -> String {
    format!("{:.0}", 100.0 * part / whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_median_and_the_ends() {
        assert!(Spread::of(Vec::new()).is_none());
        let spread = Spread::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.n, spread.least, spread.median, spread.greatest), (3, 1.0, 2.0, 3.0));
        let many = Spread::of((1..=2000).map(f64::from).collect()).unwrap();
        assert_eq!((many.median, many.slow), (1000.5, 1998.0));
    }

    #[test]
    fn the_table_names_what_a_peer_cannot_do() {
        let machine = Machine {
            cpu: "a CPU".to_owned(),
            n_cores: 2,
            instructions: "Avx2".to_owned(),
            system: "linux".to_owned(),
            peak_gflops: 100.0,
            memory_gigabytes: 20.0,
            load: None,
        };
        let side = |name: &str, encode: f64, failures: &[(&'static str, &str)]| SideReport {
            name: name.to_owned(),
            peak_bytes: 5 << 20,
            seconds: Spread::of(vec![encode]).map(|spread| ("encode", spread)).into_iter().collect(),
            failures: failures.iter().map(|(what, why)| (*what, (*why).to_owned())).collect(),
        };
        let layer = LayerReport {
            name: "1 to 2 k7".to_owned(),
            steps_per_second: 50.0,
            channels: 2,
            flops: 4e9,
            bytes: 1e9,
            seconds: 0.1,
        };
        let model = ModelReport {
            name: "m".to_owned(),
            title: "Model".to_owned(),
            step_milliseconds: 80.0,
            gflops: Some([5.0, 0.0]),
            peak_gflops: Spread::of(vec![50.0, 100.0, 150.0]),
            layers: vec![NetReport { title: "encoder", peak_gflops: 100.0, layers: vec![layer] }],
            cold_start_seconds: None,
            sides: vec![side("codec", 0.5, &[]), side("peer", 2.0, &[("decode", "cannot decode")])],
        };
        let report = Report { machine, n_threads: 2, seconds: 10, models: vec![model] };
        let text = report.markdown();
        assert!(text.contains("| codec | 20.0x | 20.0..20.0 | - |"), "{text}");
        assert!(text.contains("50 % of the peak"), "{text}");
        assert!(text.contains("100 GFLOP/s (50..150)"), "{text}");
        assert!(text.contains("| 1 to 2 k7 | 50.0 | 2 | 4000.0 | 1000.0 | 100.000 | 40 | 10 |"), "{text}");
        assert!(text.contains("times as long as ours, peer: encode 4.0"), "{text}");
        assert!(text.contains("peer: no decode: cannot decode"), "{text}");
    }
}
