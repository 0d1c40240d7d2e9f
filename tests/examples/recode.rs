//! Codes and decodes clips for the scripts in `tests/reference`.
//!
//! Usage: `recode MODEL CLIPS OUT`. `CLIPS` and `OUT` are safetensors files:
//!
//! - in: `NAME.audio`, `[channels, n_samples]`, and for decoding one row of codes per codebook,
//!   `NAME.codes.0`, `NAME.codes.1`, ..., with `NAME.scales`, `[n_segments]`, where the model has scales,
//!   and `NAME.kept`, the numbers of codebooks to decode;
//! - out: `NAME.codes.0`, ... and `NAME.scales` for every audio, and `NAME.decoded.K` for the first `K`
//!   codebooks of every codes.
//!
//! The SHA-256 of the weights goes to the standard output, and how long it took.

use candle_core::{DType, Device, Tensor};
use codec_core::{AudioBuffer, Codes};
use codec_tests::Result;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

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
    let (mut encoding, mut decoding) = (Duration::ZERO, Duration::ZERO);
    for (key, tensor) in &tensors {
        if let Some(name) = key.strip_suffix(".audio") {
            let clip = AudioBuffer::from_planar(codec.info().audio, tensor.to_vec2()?)?;
            let codes = timed(&mut encoding, || codec.encode(&clip, layout.n_codebooks()))?;
            for (codebook_idx, row) in codes.rows().enumerate() {
                results.insert(format!("{name}.codes.{codebook_idx}"), Tensor::new(row, &device)?);
            }
            if layout.scale_frames().is_some() {
                results.insert(format!("{name}.scales"), Tensor::new(codes.scales(), &device)?);
            }
        }
        if let Some(name) = key.strip_suffix(".kept") {
            let names = (0..layout.n_codebooks()).map(|codebook_idx| format!("{name}.codes.{codebook_idx}"));
            let rows =
                names.map_while(|name| tensors.get(&name)).map(|row| row.to_dtype(DType::U32)?.to_vec1());
            let rows = rows.collect::<candle_core::Result<Vec<_>>>()?;
            let scales = tensors.get(&format!("{name}.scales")).map(Tensor::to_vec1).transpose()?;
            let all = Codes::with_scales(layout.truncated(rows.len())?, rows, scales.unwrap_or_default())?;
            for kept in tensor.to_dtype(DType::U32)?.to_vec1::<u32>()? {
                let audio = timed(&mut decoding, || codec.decode(&all.truncated(kept as usize)?))?;
                let shape = (usize::from(audio.spec().channels), audio.n_samples());
                let samples = audio.into_channels().concat();
                results.insert(format!("{name}.decoded.{kept}"), Tensor::from_vec(samples, shape, &device)?);
            }
        }
    }
    println!("encoding {:.2} s, decoding {:.2} s", encoding.as_secs_f64(), decoding.as_secs_f64());
    candle_core::safetensors::save(&results, out)?;
    Ok(())
}

/// Runs `work` and adds the time that it took.
fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *total += start.elapsed();
    result
}
