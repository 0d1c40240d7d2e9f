//! Streams of hours: memory that does not grow, and late codes that are what early ones would be.

use candle_core::Device;
use codec_core::{AudioBuffer, CodeLayout, Codec, Codes};
use codec_lm::config::Shape;
use codec_lm::generate::{Generator, Options};
use codec_lm::pattern::Pattern;
use codec_lm::{Model, ModelConfig};
use codec_nn::weights::{Variables, Weights};
use codec_tests::Result;
use codec_tests::compare::audio;
use codec_tests::vectors::{Subject, Vectors, subjects};
use peak_alloc::PeakAlloc;
use std::sync::Mutex;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The tests measure one memory, so they run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Frames that are coded alike in every period.
const PERIOD: usize = 50;

/// Steps of three hours of the published Mimi, which has 25 a second: a table of positions for as many
/// would hold eight thousand.
const N_STEPS: usize = 270_000;

/// Of full scale, between early and late audio from the same codes: the cosines and sines of late
/// positions are as good as those of early ones, but they are other numbers.
const DRIFT: f32 = 1e-5;

/// Pushes `clip` again and again, back and forth, and gives the codes and the audio of each time to `each`.
fn repeat(
    codec: &dyn Codec,
    clip: &AudioBuffer,
    n: usize,
    mut each: impl FnMut(usize, Codes, AudioBuffer) -> Result<()>,
) -> Result<()> {
    let mut encoder = codec.encoder(codec.info().layout.n_codebooks())?;
    let mut decoder = codec.decoder()?;
    for i in 0..n {
        let codes = encoder.push(clip)?;
        let audio = decoder.push(&codes)?;
        each(i, codes, audio)?;
    }
    Ok(())
}

#[test]
fn the_memory_of_a_stream_does_not_grow() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock();
    // Which of several threads are at work at a moment is chance, and so is what they need then.
    rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(memory_of_streams)
}

fn memory_of_streams() -> Result<()> {
    for Subject { name, codec, clip } in subjects()? {
        if codec.info().delays.algorithmic_delay.is_none() {
            // It codes whole clips, so it holds them.
            continue;
        }
        let clip = clip.slice(0..clip.n_samples().min(4_000));
        // What is fetched once, such as threads, is there from then on.
        repeat(codec.as_ref(), &clip, 30, |_, _, _| Ok(()))?;
        let mut peaks = [0; 2];
        let n = 120;
        MEMORY.reset_peak_usage();
        repeat(codec.as_ref(), &clip, n, |i, _, _| {
            // Buffers that wander may be twice their content for a while, so the first half has many rounds.
            if i + 1 == n / 2 || i + 1 == n {
                peaks[(i + 1) * 2 / n - 1] = MEMORY.peak_usage();
                MEMORY.reset_peak_usage();
            }
            Ok(())
        })?;
        println!("{name}: at most {} KB, then {} KB", peaks[0] / 1024, peaks[1] / 1024);
        assert!(peaks[1] <= peaks[0] + peaks[0] / 50, "{name}: {peaks:?} bytes");
    }
    Ok(())
}

/// Frames of ten minutes at 50 a second.
const TEN_MINUTES: usize = 30_000;

#[test]
fn the_memory_of_generation_does_not_grow() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock();
    rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(memory_of_generation)
}

fn memory_of_generation() -> Result<()> {
    let layout = CodeLayout::uniform(3, 16)?;
    let shape = Shape { dim: 16, n_layers: 2, n_heads: 2, hidden: 32, context: Some(100), ..Shape::small() };
    let config = ModelConfig::new(&layout, Pattern::Delay { delays: vec![0, 1, 2] }, shape);
    // Random tensors of the shapes that the model asks for, then the model that does not train.
    let variables = Variables::seeded(&Device::Cpu, 1);
    let none = safetensors::serialize(Vec::<(String, candle_core::Tensor)>::new(), None)?;
    Model::new(&config, &Weights::from_bytes(none, &Device::Cpu)?.trained(&variables))?;
    let tensors = variables.all().into_iter().map(|(name, var)| (name, var.as_detached_tensor()));
    let file = safetensors::serialize(tensors.collect::<Vec<_>>(), None)?;
    let model = Model::new(&config, &Weights::from_bytes(file, &Device::Cpu)?)?;

    let mut generator = Generator::new(&model, &Codes::empty(layout), Options::new(1))?;
    let mut peaks = [0; 2];
    for peak in &mut peaks {
        MEMORY.reset_peak_usage();
        for _ in 0..TEN_MINUTES / 2 {
            generator.next_frames()?;
        }
        *peak = MEMORY.peak_usage();
    }
    println!("generation: at most {} KB, then {} KB", peaks[0] / 1024, peaks[1] / 1024);
    assert!(peaks[1] <= peaks[0] + peaks[0] / 50, "{peaks:?} bytes");
    Ok(())
}

#[test]
fn hours_into_a_stream_codes_are_what_they_were_at_its_start() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock();
    let vectors = Vectors::open("mimi_hf")?;
    let codec = vectors.codec()?;
    let clip = vectors.cases(codec.as_ref())?.pop().ok_or("no cases")?.audio;
    // The clip repeats, and a step remembers less than two of its periods, so from the third on the history
    // of every frame is the same, and only its position is not.
    let clip = clip.slice(0..PERIOD * codec.info().hop_length as usize);
    let mut early: Option<(Codes, AudioBuffer)> = None;
    let n = N_STEPS / (2 * PERIOD) + 1;
    let mut worst = 0.0_f32;
    repeat(codec.as_ref(), &clip, n, |i, codes, decoded| {
        assert_eq!(codes.n_frames(), PERIOD);
        match &early {
            None if i == 2 => early = Some((codes, decoded)),
            None => {}
            Some((early_codes, early_audio)) => {
                assert!(codes.rows().eq(early_codes.rows()), "period {i} has other codes");
                worst =
                    worst.max(audio(&decoded, early_audio, DRIFT).map_err(|e| format!("period {i}: {e}"))?);
            }
        }
        Ok(())
    })?;
    println!("{n} periods of {PERIOD} frames: the same codes, audio within {worst:.1e}");
    Ok(())
}
