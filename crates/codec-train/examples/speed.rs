//! Times forward and backward of a model's encoder and decoder: `speed CONFIG.json BATCH SECONDS ROUNDS`.
//!
//! Prints the milliseconds of the fastest and of the median round. `tests/reference/train_speed.py` runs it
//! beside PyTorch.

use candle_core::{Device, Tensor};
use codec_nn::families::networks;
use codec_nn::layers::Layer;
use codec_nn::weights::{Checkpoint, Variables};
use std::time::Instant;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    codec_kernels::keep_candle_single_threaded();
    codec_kernels::keep_freed_memory();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [config, batch, seconds, rounds] = args.as_slice() else {
        return Err("speed CONFIG.json BATCH SECONDS ROUNDS".into());
    };
    let (batch, seconds, rounds): (usize, f64, usize) = (batch.parse()?, seconds.parse()?, rounds.parse()?);
    let variables = Variables::seeded(&Device::Cpu, 1);
    let checkpoint =
        Checkpoint::from_config(std::fs::read_to_string(config)?, &Device::Cpu).trained(&variables);
    let info = networks(&checkpoint)?.info;
    let n_samples = (seconds * f64::from(info.audio.sample_rate)) as usize;
    let channels = usize::from(info.audio.channels);
    let samples: Vec<f32> = (0..batch * n_samples * channels).map(|i| (i as f32 * 0.05).sin()).collect();
    let xs = Tensor::from_vec(samples, (batch, n_samples, channels), &Device::Cpu)?;
    let mut times = Vec::new();
    let mut round = || -> Result<(), Error> {
        let began = Instant::now();
        let nets = networks(&checkpoint)?;
        let latents = nets.encoder.forward(&xs)?.ok_or("no latents")?;
        let decoded = nets.decoder.forward(&latents)?.ok_or("no audio")?;
        decoded.sqr()?.mean_all()?.backward()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        Ok(())
    };
    // In rayon's pool, where the trainer is too.
    for _ in 0..rounds {
        rayon::scope(|_| round())?;
    }
    times.sort_by(f64::total_cmp);
    println!("{:.1} {:.1}", times[0], times[times.len() / 2]);
    Ok(())
}
