//! How fast a model of some size trains and generates on this machine, on codes that mean nothing.
//!
//!     cargo run --release -p codec-lm --example lm_speed -- [DIM] [LAYERS] [CODEBOOKS] [WINDOW] [BATCH]

use candle_core::Device;
use codec_core::{CodeLayout, Codes};
use codec_lm::config::Shape;
use codec_lm::corpus::{Corpus, Recording};
use codec_lm::generate::{Generator, Options};
use codec_lm::train::{RunConfig, Trainer};
use codec_train::rng::Rng;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

const CODEBOOK_SIZE: u32 = 1024;
const FRAMES_PER_SECOND: f64 = 50.0;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<usize> =
        std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let argument = |i: usize, otherwise| arguments.get(i).copied().unwrap_or(otherwise);
    let (dim, n_layers, n_codebooks) = (argument(0, 256), argument(1, 4), argument(2, 12));
    let (window, batch_size) = (argument(3, 192), argument(4, 2));

    let mut rng = Rng::of(1, "codes", 0);
    let mut row = || (0..4000).map(|_| rng.below(CODEBOOK_SIZE as usize) as u32).collect::<Vec<_>>();
    let layout = CodeLayout::uniform(n_codebooks, CODEBOOK_SIZE)?;
    let codes = Codes::new(layout, (0..n_codebooks).map(|_| row()).collect())?;
    let recording = Recording {
        path: PathBuf::new(),
        speaker: String::new(),
        class: None,
        source_idx: 0,
        codes: codes.clone(),
    };
    let corpus = Corpus { recordings: vec![recording], codec: None };
    let text = format!(
        "output = ''\n[data]\nsources = [{{path = ''}}]\nwindow = {window}\nbatch_size = {batch_size}\n\
         [schedule]\nsteps = 1000\n"
    );
    let mut config: RunConfig = toml::from_str(&text)?;
    config.model.shape =
        Shape { dim, n_layers, n_heads: dim / 64, hidden: 4 * dim, context: Some(window), ..Shape::small() };
    let mut trainer = Trainer::new(config, corpus, None, &Device::Cpu)?;
    let mut speeds: Vec<f64> = Vec::new();
    trainer.advance()?;
    for _ in 0..10 {
        let began = Instant::now();
        trainer.advance()?;
        speeds.push(trainer.frames_per_step() / began.elapsed().as_secs_f64());
    }
    speeds.sort_by(f64::total_cmp);
    let model = trainer.exported()?;
    println!(
        "{:.1} M parameters, {} threads",
        model.n_parameters() as f64 / 1e6,
        rayon::current_num_threads()
    );
    println!("training: {:.0} frames per second (median of 10 steps of {window} x {batch_size})", speeds[5]);

    let began = Instant::now();
    let mut generator = Generator::new(&model, &codes.slice(0..500)?, Options::new(1))?;
    println!("reading a prompt: {:.0} frames per second", 500.0 / began.elapsed().as_secs_f64());
    let mut times = Vec::new();
    for _ in 0..400 {
        let began = Instant::now();
        generator.next_frames()?;
        times.push(began.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let median = times[200];
    println!(
        "generation: {:.2} ms per frame, {:.1} times real time at {FRAMES_PER_SECOND} frames per second",
        median * 1e3,
        1.0 / (median * FRAMES_PER_SECOND)
    );
    Ok(())
}
