//! Every family trains: each of its tensors gets a gradient or follows an average, and new models start.

use candle_core::{DType, Device, Tensor};
use codec_nn::families::{FAMILIES, networks};
use codec_nn::layers::Layer;
use codec_nn::weights::{Checkpoint, Variables};
use codec_tests::Result;
use codec_tests::vectors::{Vectors, names};
use codec_train::config::{GradientEstimator, QuantizerConfig};
use codec_train::quantizer::QuantizerTrainer;
use std::collections::BTreeSet;

/// Families whose networks are not made of floats that could learn, that have no encoder, or whose quantizer has no
/// form that learns.
const NOT_TRAINED: [&str; 3] = ["nanocodec", "soundstream", "xcodec2"];
/// Blocks of frames of the clip.
const N_BLOCKS: usize = 6;

/// A clip of some tones and a little noise, `[2, n_samples, channels]`.
fn clip(n_samples: usize, channels: usize) -> Result<Tensor> {
    let sample = |i: usize| {
        let t = (i / channels) as f32;
        let noise = ((i as f32 * 12.9898).sin() * 43758.547).fract();
        0.4 * (t * 0.11).sin() + 0.2 * (t * 0.031 + i as f32 * 1e-4).cos() + 0.1 * noise
    };
    let samples: Vec<f32> = (0..2 * n_samples * channels).map(sample).collect();
    Ok(Tensor::from_vec(samples, (2, n_samples, channels), &Device::Cpu)?)
}

/// Runs the model once and checks that nothing is left out.
fn check(name: &str, checkpoint: &Checkpoint, variables: &Variables) -> Result<()> {
    let nets = networks(checkpoint)?;
    let info = &nets.info;
    let block = (info.hop_length * info.layout.block_frames()) as usize;
    let n_samples = info.segment.map_or(N_BLOCKS * block, |segment| segment.n_samples as usize);
    let xs = clip(n_samples, usize::from(info.audio.channels))?;
    let config = QuantizerConfig { gradient: GradientEstimator::Rotation, ..QuantizerConfig::default() };
    let mut trainer = QuantizerTrainer::new(&config, 1);
    let latents = nets.encoder.forward(&xs)?.ok_or("no latents")?;
    let n_codebooks = [info.layout.n_codebooks(); 2];
    let quantized = trainer.forward(&nets.quantizer, &latents, &n_codebooks)?;
    let decoded = nets.decoder.forward(&quantized.latents)?.ok_or("no audio")?;
    let n = decoded.dim(1)?.min(n_samples);
    let difference = (decoded.narrow(1, 0, n)? - (xs.narrow(1, 0, n)? + 0.3)?)?;
    let mut loss = (difference.sqr()?.sum_all()? + quantized.commitment.clone())?;
    if let Some(codebook) = &quantized.codebook {
        loss = (loss + codebook)?;
    }
    let grads = loss.backward()?;

    let averaged: BTreeSet<String> = trainer.averaged(&nets.quantizer, variables)?.into_iter().collect();
    let before: Vec<(String, Tensor)> =
        variables.all().into_iter().map(|(name, var)| Ok((name, var.copy()?))).collect::<Result<_>>()?;
    trainer.update(&nets.quantizer, variables, &quantized, &[0, 0], 0)?;
    let all = variables.all();
    for (tensor, old) in &before {
        let var = &all[tensor];
        let moves = |xs: &Tensor| -> Result<bool> {
            let size: f32 = xs.abs()?.to_dtype(DType::F32)?.sum_all()?.to_scalar()?;
            Ok(size > 0.0 && size.is_finite())
        };
        let reached = if averaged.contains(tensor) {
            moves(&(var.as_detached_tensor() - old)?)?
        } else {
            grads.get(var).map(&moves).transpose()?.unwrap_or(false)
        };
        // The direction of a single number does not turn.
        let is_number = var.dims()[1..].iter().product::<usize>() == 1;
        let is_direction = tensor.ends_with("original1") || tensor.ends_with("weight_v");
        if !(reached || is_number && is_direction) {
            return Err(format!("{name}: nothing moves {tensor}").into());
        }
    }
    if before.len() < 20 {
        return Err(format!("{name} has only {} tensors", before.len()).into());
    }
    Ok(())
}

#[test]
fn every_tensor_of_every_family_learns() -> Result<()> {
    for family in FAMILIES {
        assert_eq!(
            family.networks.is_none(),
            NOT_TRAINED.contains(&family.name),
            "{}: is it trained?",
            family.name
        );
        if family.networks.is_none() {
            continue;
        }
        for name in names(family.name)? {
            let Some(vectors) = Vectors::open_if_there(&name)? else { continue };
            // From the checkpoint.
            let variables = Variables::new(&Device::Cpu);
            let checkpoint = vectors.open_checkpoint()?;
            check(&name, &checkpoint.clone().trained(&variables), &variables)?;
            // And anew, where the checkpoint has a configuration of its own.
            if let Some(config) = checkpoint.config() {
                let variables = Variables::seeded(&Device::Cpu, 3);
                let new = Checkpoint::from_config(config, &Device::Cpu).trained(&variables);
                check(&format!("{name}, new"), &new, &variables)?;
            }
        }
    }
    Ok(())
}
