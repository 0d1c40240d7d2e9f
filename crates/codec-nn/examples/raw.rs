//! Codes raw audio: `raw encode MODEL N_CODEBOOKS < samples > codes`, `raw decode MODEL N_CODEBOOKS
//! < codes > samples`.
//!
//! Samples are `f32`, interleaved, at the model's rate; codes are `u32`, frame by frame; both in the
//! byte order of the machine. It lets scripts in other languages see a codec's numbers without files.

use candle_core::Device;
use codec_core::{AudioBuffer, Codec, Codes};
use std::error::Error;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Output bytes and seconds of audio.
type Coded = (Vec<[u8; 4]>, f64);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [task, model, n_codebooks] = arguments.as_slice() else {
        return Err("usage: raw encode|decode MODEL N_CODEBOOKS".into());
    };
    let codec = codec_nn::load(Path::new(model), &Device::Cpu)?.codec;
    let n_codebooks = n_codebooks.parse()?;
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let (words, _) = input.as_chunks::<4>();
    let start = Instant::now();
    let (output, seconds) = match task.as_str() {
        "encode" => encode(codec.as_ref(), words, n_codebooks)?,
        "decode" => decode(codec.as_ref(), words, n_codebooks)?,
        other => return Err(format!("{other} is neither encode nor decode").into()),
    };
    let speed = seconds / start.elapsed().as_secs_f64();
    eprintln!("{task}: {seconds:.2} s of audio, {speed:.1} x real time");
    Ok(std::io::stdout().write_all(output.as_flattened())?)
}

fn encode(codec: &dyn Codec, samples: &[[u8; 4]], n_codebooks: usize) -> Result<Coded> {
    let samples: Vec<f32> = samples.iter().map(|sample| f32::from_ne_bytes(*sample)).collect();
    let audio = AudioBuffer::from_interleaved(codec.info().audio, &samples)?;
    let codes = codec.encode(&audio, n_codebooks)?;
    let rows: Vec<_> = codes.rows().collect();
    let frames = (0..codes.n_frames()).flat_map(|frame_idx| rows.iter().map(move |row| row[frame_idx]));
    Ok((frames.map(u32::to_ne_bytes).collect(), audio.seconds()))
}

fn decode(codec: &dyn Codec, codes: &[[u8; 4]], n_codebooks: usize) -> Result<Coded> {
    let layout = codec.info().layout.truncated(n_codebooks)?;
    let row =
        |row_idx: usize| codes.iter().skip(row_idx).step_by(n_codebooks).map(|c| u32::from_ne_bytes(*c));
    let codes = Codes::new(layout, (0..n_codebooks).map(|row_idx| row(row_idx).collect()).collect())?;
    let audio = codec.decode(&codes)?;
    Ok((audio.to_interleaved().into_iter().map(f32::to_ne_bytes).collect(), audio.seconds()))
}
