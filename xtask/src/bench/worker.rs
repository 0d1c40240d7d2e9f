//! Our side of the measurement, in a process of its own as each peer has one.
//!
//! A request is a line of JSON on stdin, an answer a line of JSON on stdout; `benches/peers` speaks the same.

use super::protocol::{Answer, Request};
use anyhow::{Context, Result, bail};
use candle_core::Device;
use codec_core::{AudioBuffer, AudioSpec, Codec, Codes};
use codec_nn::Precision;
use codec_nn::families::load_checkpoint;
use codec_nn::weights::Checkpoint;
use rayon::prelude::*;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

/// Answers requests until stdin ends.
pub(super) fn run(precision: Precision) -> Result<()> {
    // As the program `codec` does.
    codec_kernels::keep_freed_memory();
    let mut worker = None;
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?).context("not a request")?;
        let answer = match answer(&mut worker, &request, precision) {
            Ok(seconds) => Answer { seconds, peak_bytes: peak_bytes(), error: None },
            Err(error) => Answer { error: Some(format!("{error:#}")), ..Answer::default() },
        };
        println!("{}", serde_json::to_string(&answer)?);
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn answer(worker: &mut Option<Worker>, request: &Request, precision: Precision) -> Result<Vec<f64>> {
    match request {
        Request::Load { model, audio, n_codebooks, step_samples, n_threads, .. } => {
            rayon::ThreadPoolBuilder::new().num_threads(*n_threads).build_global()?;
            let began = Instant::now();
            let checkpoint = Checkpoint::open(model, &Device::Cpu)?.with_options(precision);
            let codec = load_checkpoint(&checkpoint, &Device::Cpu)?.codec;
            let seconds = began.elapsed().as_secs_f64();
            *worker = Some(Worker::new(codec, audio, *n_codebooks, *step_samples)?);
            Ok(vec![seconds])
        }
        Request::Encode => worker.as_mut().context("nothing is loaded")?.encode(),
        Request::Decode => worker.as_mut().context("nothing is loaded")?.decode(),
        Request::Step => worker.as_mut().context("nothing is loaded")?.step(),
        Request::Clips { n } => worker.as_mut().context("nothing is loaded")?.clips(*n),
    }
}

struct Worker {
    codec: Box<dyn Codec>,
    audio: AudioBuffer,
    codes: Codes,
    n_codebooks: usize,
    step_samples: usize,
}

impl Worker {
    fn new(codec: Box<dyn Codec>, audio: &Path, n_codebooks: usize, step_samples: usize) -> Result<Self> {
        let bytes = std::fs::read(audio).with_context(|| audio.display().to_string())?;
        let (words, _) = bytes.as_chunks::<4>();
        let samples: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        let spec: AudioSpec = codec.info().audio;
        let audio = AudioBuffer::from_interleaved(spec, &samples)?;
        let codes = Codes::empty(codec.info().layout.truncated(n_codebooks)?);
        Ok(Self { codec, audio, codes, n_codebooks, step_samples })
    }

    fn encode(&mut self) -> Result<Vec<f64>> {
        let began = Instant::now();
        self.codes = self.codec.encode(&self.audio, self.n_codebooks)?;
        Ok(vec![began.elapsed().as_secs_f64()])
    }

    fn decode(&self) -> Result<Vec<f64>> {
        let began = Instant::now();
        let audio = self.codec.decode(&self.codes)?;
        let seconds = began.elapsed().as_secs_f64();
        if audio.n_samples() < self.audio.n_samples() {
            bail!("{} samples came back from {}", audio.n_samples(), self.audio.n_samples());
        }
        Ok(vec![seconds])
    }

    /// A stream: for each piece of audio the seconds of its encoding and of the decoding of its codes.
    fn step(&self) -> Result<Vec<f64>> {
        let (mut encoder, mut decoder) = (self.codec.encoder(self.n_codebooks)?, self.codec.decoder()?);
        let mut seconds = Vec::new();
        for start in (0..self.audio.n_samples()).step_by(self.step_samples) {
            let piece = self.audio.slice(start..self.audio.n_samples().min(start + self.step_samples));
            let began = Instant::now();
            let codes = encoder.push(&piece)?;
            let coded = began.elapsed().as_secs_f64();
            decoder.push(&codes)?;
            seconds.extend([coded, began.elapsed().as_secs_f64() - coded]);
        }
        Ok(seconds)
    }

    /// Many clips of 2 to 10 s, as a folder has them: side by side as `codec tokenize` codes them, one after the other
    /// with all threads, and with one thread.
    fn clips(&self, n: usize) -> Result<Vec<f64>> {
        let rate = self.audio.spec().sample_rate as usize;
        if self.audio.n_samples() < 10 * rate {
            bail!("clips of 2 to 10 s are cut from 10 s of audio or more");
        }
        // Lengths that no order of the clips favours; the start differs, so that no two are alike.
        let clip = |i: usize| {
            let len = (200 + i * 611 % 801) * rate / 100;
            let start = (self.audio.n_samples() - len) * (i * 37 % 101) / 100;
            self.audio.slice(start..start + len)
        };
        let clips: Vec<AudioBuffer> = (0..n).map(clip).collect();
        let encode = |clip: &AudioBuffer| self.codec.encode(clip, self.n_codebooks);
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
        let mut seconds = Vec::new();
        let mut codes: Vec<Vec<Codes>> = Vec::new();
        type Way<'a> = &'a (dyn Fn() -> codec_core::Result<Vec<Codes>> + Sync);
        let ways: [Way<'_>; 3] =
            [&|| clips.par_iter().map(encode).collect(), &|| clips.iter().map(encode).collect(), &|| {
                one_thread.install(|| clips.iter().map(encode).collect())
            }];
        for way in ways {
            let began = Instant::now();
            codes.push(way()?);
            seconds.push(began.elapsed().as_secs_f64());
        }
        if codes.iter().any(|all| *all != codes[0]) {
            bail!("clips side by side have other codes");
        }
        Ok(seconds)
    }
}

/// The most memory that this process had; 0 where the system does not tell.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
