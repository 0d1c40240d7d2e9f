//! Codes and decodes clips for the scripts in `tests/reference`.
//!
//! Usage: `recode MODEL CLIPS OUT`. `CLIPS` and `OUT` are safetensors files:
//!
//! - in: `NAME.audio`, `[channels, n_samples]`, and for decoding `NAME.codes`, `[n_codebooks, n_frames]`
//!   with `NAME.scales`, `[n_segments]`, where the model has scales;
//! - out: `NAME.codes` and `NAME.scales` for every audio, and `NAME.decoded.K` for the first `K`
//!   codebooks of every codes, `K` a power of two or all.
//!
//! The SHA-256 of the weights goes to the standard output.

use candle_core::{DType, Device, Tensor};
use codec_core::{AudioBuffer, Codes};
use codec_tests::Result;
use std::collections::HashMap;
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, clips, out] = args.as_slice() else {
        return Err("usage: recode MODEL CLIPS OUT".into());
    };
    let device = Device::Cpu;
    let codec_nn::Loaded { codec, sha256 } = codec_nn::load(Path::new(model), &device)?;
    let hex: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{hex}");
    let layout = &codec.info().layout;
    let tensors = candle_core::safetensors::load(clips, &device)?;
    let mut results: HashMap<String, Tensor> = HashMap::new();
    for (key, tensor) in &tensors {
        if let Some(name) = key.strip_suffix(".audio") {
            let clip = AudioBuffer::from_planar(codec.info().audio, tensor.to_vec2()?)?;
            let codes = codec.encode(&clip, layout.n_codebooks())?;
            let rows: Vec<u32> = codes.rows().flatten().copied().collect();
            let shape = (codes.n_codebooks(), codes.n_frames());
            results.insert(format!("{name}.codes"), Tensor::from_vec(rows, shape, &device)?);
            if layout.scale_frames().is_some() {
                results.insert(format!("{name}.scales"), Tensor::new(codes.scales(), &device)?);
            }
        }
        if let Some(name) = key.strip_suffix(".codes") {
            let rows = tensor.to_dtype(DType::U32)?.to_vec2()?;
            let scales = tensors.get(&format!("{name}.scales")).map(Tensor::to_vec1).transpose()?;
            let all = Codes::with_scales(layout.truncated(rows.len())?, rows, scales.unwrap_or_default())?;
            let n_codebooks = all.n_codebooks();
            for kept in (1..=n_codebooks).filter(|kept| kept.is_power_of_two() || *kept == n_codebooks) {
                let audio = codec.decode(&all.truncated(kept)?)?;
                let shape = (usize::from(audio.spec().channels), audio.n_samples());
                let samples = audio.into_channels().concat();
                results.insert(format!("{name}.decoded.{kept}"), Tensor::from_vec(samples, shape, &device)?);
            }
        }
    }
    candle_core::safetensors::save(&results, out)?;
    Ok(())
}
