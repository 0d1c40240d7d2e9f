//! What the layers of a model compute, and what each costs by itself.

use anyhow::Result;
use candle_core::{Device, Tensor};
use codec_nn::layers::{Flow, Work, work};
use codec_nn::weights::Checkpoint;
use codec_nn::{Net, Networks, families};
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

/// Prints the layers of both networks as tables: arithmetic, memory and time per second of audio.
pub(super) fn print(nets: &Networks, peak_gflops: f64) -> Result<()> {
    let encoded = print_net("encoder", &nets.encoder, audio(nets), nets, peak_gflops)?;
    print_net("decoder", &nets.decoder, encoded, nets, peak_gflops)?;
    Ok(())
}

fn audio(nets: &Networks) -> Flow {
    let spec = nets.info.audio;
    Flow { rate: f64::from(spec.sample_rate), channels: usize::from(spec.channels) }
}

fn print_net(title: &str, net: &Net, input: Flow, nets: &Networks, peak_gflops: f64) -> Result<Flow> {
    let piece_seconds = PIECE_SAMPLES / audio(nets).rate;
    println!("\n| {title} | steps/s | channels | MFLOP | MB | ms | % of peak |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let (mut flops, mut seconds) = (0.0, 0.0);
    let list = work(net, input);
    for each in &list {
        let time = time(each, piece_seconds)?;
        println!(
            "| {} | {:.1} | {} | {:.1} | {:.1} | {:.3} | {} |",
            each.name,
            each.output.rate,
            each.output.channels,
            each.flops() / 1e6,
            each.bytes(1.0 / piece_seconds) / 1e6,
            time * 1e3,
            share(each.flops(), time, peak_gflops)
        );
        flops += each.flops();
        seconds += time;
    }
    let share = share(flops, seconds, peak_gflops);
    println!("| all, one after the other | | | {:.1} | | {:.3} | {share} |", flops / 1e6, seconds * 1e3);
    Ok(list.last().map_or(input, |last| last.output))
}

/// Percent of the peak that so many operations in so many seconds are; nothing where there are none.
pub(super) fn share(flops: f64, seconds: f64, peak_gflops: f64) -> String {
    if flops > 0.0 { format!("{:.0}", 100.0 * flops / seconds / 1e9 / peak_gflops) } else { String::new() }
}

/// Seconds of computing for each second of audio, in pieces of so many seconds.
fn time(work: &Work<'_>, piece_seconds: f64) -> Result<f64> {
    let n_steps = ((work.input.rate * piece_seconds).round() as usize).max(1);
    let values = (0..n_steps * work.input.channels).map(|i| ((i * 7919 % 1000) as f32 - 500.0) * 1e-3);
    let shape = (1, n_steps, work.input.channels);
    let xs = Tensor::from_vec(values.collect::<Vec<f32>>(), shape, &Device::Cpu)?;
    let (mut best, mut n_runs, all) = (f64::INFINITY, 0, Instant::now());
    while n_runs < REPEATS || all.elapsed() < MIN_DURATION {
        let began = Instant::now();
        work.run(&xs)?;
        best = best.min(began.elapsed().as_secs_f64());
        n_runs += 1;
    }
    Ok(best / n_steps as f64 * work.input.rate)
}
