//! The codecs of candle-transformers behind the benchmark's protocol, see `cargo xtask bench --peers`.
//!
//! A request is a line of JSON on stdin, an answer a line of JSON on stdout. Weights are random: the speed does
//! not depend on them.

use anyhow::{Context, Result, bail};
use candle_core::streaming::StreamTensor;
use candle_core::{DType, Device, IndexOp, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use candle_transformers::models::{dac, encodec, mimi, snac};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Request {
    Load { subject: String, audio: PathBuf, n_codebooks: usize, step_samples: usize },
    Encode,
    Decode,
    Step,
}

#[derive(Default, Serialize)]
struct Answer {
    seconds: Vec<f64>,
    peak_bytes: u64,
    error: Option<String>,
}

enum Model {
    Encodec(encodec::Model),
    Mimi(Box<mimi::Model>),
    Dac(dac::Model),
    Snac(snac::Model),
}

struct Worker {
    model: Model,
    audio: Tensor,
    codes: Vec<Tensor>,
    n_codebooks: usize,
    step_samples: usize,
}

fn main() -> Result<()> {
    let mut worker = None;
    for line in std::io::stdin().lock().lines() {
        let request = serde_json::from_str(&line?)?;
        let answer = match answer(&mut worker, request) {
            Ok(seconds) => Answer { seconds, peak_bytes: peak_bytes(), error: None },
            Err(error) => Answer { error: Some(format!("{error:#}")), ..Answer::default() },
        };
        println!("{}", serde_json::to_string(&answer)?);
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn answer(worker: &mut Option<Worker>, request: Request) -> Result<Vec<f64>> {
    if let Request::Load { subject, audio, n_codebooks, step_samples } = request {
        let began = Instant::now();
        let model = load(&subject, n_codebooks)?;
        let seconds = began.elapsed().as_secs_f64();
        let bytes = std::fs::read(audio)?;
        let samples: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let n = samples.len();
        let audio = Tensor::from_vec(samples, (1, 1, n), &Device::Cpu)?;
        *worker = Some(Worker { model, audio, codes: Vec::new(), n_codebooks, step_samples });
        return Ok(vec![seconds]);
    }
    let worker = worker.as_mut().context("nothing is loaded")?;
    match request {
        Request::Encode => worker.encode(),
        Request::Decode => worker.decode(),
        Request::Load { .. } | Request::Step => worker.step(),
    }
}

fn load(subject: &str, n_codebooks: usize) -> Result<Model> {
    let vb = VarBuilder::from_backend(Box::new(Noise), DType::F32, Device::Cpu);
    Ok(match subject {
        "encodec_24khz" => {
            // As many codebooks as the bandwidth of the configuration has.
            let bandwidth = 0.75 * n_codebooks as f64;
            let config = encodec::Config {
                target_bandwidths: vec![bandwidth],
                sampling_rate: 24_000,
                audio_channels: 1,
                normalize: false,
                chunk_length_s: None,
                overlap: None,
                hidden_size: 128,
                num_filters: 32,
                num_residual_layers: 1,
                upsampling_ratios: vec![8, 5, 4, 2],
                norm_type: encodec::NormType::WeightNorm,
                kernel_size: 7,
                last_kernel_size: 7,
                residual_kernel_size: 3,
                dilation_growth_rate: 2,
                use_causal_conv: true,
                // The crate refuses reflection, which the model uses; it is a few samples at each end.
                pad_mode: encodec::PadMode::Replicate,
                compress: 2,
                num_lstm_layers: 2,
                trim_right_ratio: 1.0,
                codebook_size: 1024,
                codebook_dim: Some(128),
                use_conv_shortcut: true,
            };
            Model::Encodec(encodec::Model::new(&config, vb)?)
        }
        "mimi" => Model::Mimi(Box::new(mimi::Model::new(mimi::Config::v0_1(Some(n_codebooks)), vb)?)),
        "dac_44khz" => {
            let config = dac::Config {
                num_codebooks: n_codebooks,
                model_bitrate: 8,
                codebook_size: 1024,
                latent_dim: 1024,
                frame_rate: 86,
                sampling_rate: 44_100,
            };
            Model::Dac(dac::Model::new(&config, vb)?)
        }
        "snac_24khz" => {
            let config = snac::Config {
                sampling_rate: 24_000,
                encoder_dim: 48,
                encoder_rates: vec![2, 4, 8, 8],
                decoder_dim: 1024,
                decoder_rates: vec![8, 8, 4, 2],
                attn_window_size: None,
                codebook_size: 4096,
                codebook_dim: 8,
                vq_strides: vec![4, 2, 1],
                noise: true,
                depthwise: true,
            };
            Model::Snac(snac::Model::new(&config, vb)?)
        }
        _ => bail!("has no such model"),
    })
}

impl Worker {
    fn encode(&mut self) -> Result<Vec<f64>> {
        let began = Instant::now();
        let codes = match &mut self.model {
            Model::Encodec(model) => vec![model.encode(&self.audio)?],
            Model::Mimi(model) => vec![model.encode(&self.audio)?],
            Model::Snac(model) => model.encode(&self.audio)?,
            Model::Dac(_) => bail!("cannot encode"),
        };
        let seconds = began.elapsed().as_secs_f64();
        self.codes = codes;
        Ok(vec![seconds])
    }

    fn decode(&mut self) -> Result<Vec<f64>> {
        if let (Model::Dac(_), []) = (&self.model, self.codes.as_slice()) {
            let n_frames = self.audio.dim(2)?.div_ceil(512);
            self.codes = vec![Tensor::zeros((1, self.n_codebooks, n_frames), DType::U32, &Device::Cpu)?];
        }
        let [first, ..] = self.codes.as_slice() else { bail!("nothing was encoded") };
        let began = Instant::now();
        let audio = match &mut self.model {
            Model::Encodec(model) => model.decode(first)?,
            Model::Mimi(model) => model.decode(first)?,
            Model::Dac(model) => model.decode_codes(first)?,
            Model::Snac(model) => model.decode(&self.codes.iter().collect::<Vec<_>>())?,
        };
        // Something that needs the last sample.
        audio.i((0, 0, audio.dim(2)? - 1))?.to_scalar::<f32>()?;
        Ok(vec![began.elapsed().as_secs_f64()])
    }

    fn step(&mut self) -> Result<Vec<f64>> {
        let Model::Mimi(model) = &mut self.model else { bail!("has no streams") };
        model.reset_state();
        let (n, mut seconds) = (self.audio.dim(2)?, Vec::new());
        for start in (0..n - n % self.step_samples).step_by(self.step_samples) {
            let piece = StreamTensor::from_tensor(self.audio.narrow(2, start, self.step_samples)?);
            let began = Instant::now();
            let codes = model.encode_step(&piece.into())?;
            let coded = began.elapsed().as_secs_f64();
            model.decode_step(&codes)?;
            seconds.extend([coded, began.elapsed().as_secs_f64() - coded]);
        }
        Ok(seconds)
    }
}

/// Random tensors of any name.
struct Noise;

impl SimpleBackend for Noise {
    fn get(
        &self,
        shape: Shape,
        _: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let fan_in = shape.dims().iter().skip(1).product::<usize>().max(1) as f64;
        Tensor::randn(0.0, 1.0 / fan_in.sqrt(), shape, device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name}: of no known shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
