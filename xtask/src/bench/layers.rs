//! What the layers of a model compute, and what each costs by itself.

use super::machine;
use anyhow::Result;
use candle_core::Device;
use codec_nn::layers::{Flow, Work, work};
use codec_nn::weights::Checkpoint;
use codec_nn::{Networks, families};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// A layer is timed at least so often and so long; the shortest time counts, since others only add to it.
const REPEATS: usize = 5;
const MIN_DURATION: Duration = Duration::from_millis(30);
/// Samples of audio that a layer takes at a time.
const PIECE_SAMPLES: f64 = 8192.0;

/// The networks of a model; `None` where its family's networks are not made of floats.
pub(super) fn networks(model: &Path) -> Option<Networks> {
    families::networks(&Checkpoint::open(model, &Device::Cpu).ok()?).ok()
}

/// Operations per second of audio: the encoder's and the decoder's.
pub(super) fn flops(nets: &Networks) -> [f64; 2] {
    let encoder = work(&nets.encoder, audio(nets));
    let latents = encoder.last().map_or(audio(nets), |last| last.output);
    [encoder, work(&nets.decoder, latents)].map(|list| list.iter().map(Work::flops).sum())
}

/// The layers of a network.
#[derive(Debug, Serialize)]
pub(super) struct NetReport {
    pub(super) title: &'static str,
    /// GFLOP/s of multiply-adds on one core, measured just before.
    pub(super) peak_gflops: f64,
    pub(super) layers: Vec<LayerReport>,
}

/// One layer, for each second of audio, by itself on one thread.
#[derive(Debug, Serialize)]
pub(super) struct LayerReport {
    pub(super) name: String,
    /// Of its output, as `channels`.
    pub(super) steps_per_second: f64,
    pub(super) channels: usize,
    pub(super) flops: f64,
    /// Input, output, and weights once for each piece.
    pub(super) bytes: f64,
    pub(super) seconds: f64,
}

/// Measures every layer of both networks.
pub(super) fn measure(nets: &Networks) -> Result<Vec<NetReport>> {
    let mut input = audio(nets);
    let mut reports = Vec::new();
    for (title, net) in [("encoder", &nets.encoder), ("decoder", &nets.decoder)] {
        let list = work(net, input);
        input = list.last().map_or(input, |last| last.output);
        let peak_gflops = machine::peak();
        let piece_seconds = PIECE_SAMPLES / audio(nets).rate;
        let layers = list.iter().map(|each| measure_layer(each, piece_seconds)).collect::<Result<_>>()?;
        reports.push(NetReport { title, peak_gflops, layers });
    }
    Ok(reports)
}

fn audio(nets: &Networks) -> Flow {
    let spec = nets.info.audio;
    Flow { rate: f64::from(spec.sample_rate), channels: usize::from(spec.channels) }
}

fn measure_layer(work: &Work<'_>, piece_seconds: f64) -> Result<LayerReport> {
    Ok(LayerReport {
        name: work.name.clone(),
        steps_per_second: work.output.rate,
        channels: work.output.channels,
        flops: work.flops(),
        bytes: work.bytes(1.0 / piece_seconds),
        seconds: time(work, piece_seconds)?,
    })
}

/// Seconds of computing for each second of audio, in pieces of so many seconds.
fn time(work: &Work<'_>, piece_seconds: f64) -> Result<f64> {
    let n_steps = ((work.input.rate * piece_seconds).round() as usize).max(1);
    let values: Vec<f32> =
        (0..n_steps * work.input.channels).map(|i| ((i * 7919 % 1000) as f32 - 500.0) * 1e-3).collect();
    let (mut best, mut n_runs, all) = (f64::INFINITY, 0, Instant::now());
    while n_runs < REPEATS || all.elapsed() < MIN_DURATION {
        best = best.min(work.time(&values)?.as_secs_f64());
        n_runs += 1;
    }
    Ok(best / n_steps as f64 * work.input.rate)
}
