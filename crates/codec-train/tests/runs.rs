//! Whole runs: that they learn, and that a run which is killed and resumed equals one which was not.

use candle_core::Device;
use codec_core::AudioBuffer;
use codec_io::{WavFormat, WavWriter};
use codec_train::checkpoint::Saved;
use codec_train::config::{Revival, RunConfig};
use codec_train::folder::RunFolder;
use codec_train::run::{self, Outcome, Watch};
use codec_train::validation::Report;
use codec_train::{Error, StepReport, Trainer};
use std::path::Path;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Two tones that glide, one second each, at 16 kHz.
fn write_clips(folder: &Path) -> Result {
    for (name, low) in [("a", 200.0_f32), ("b", 500.0)] {
        let sample = |t: usize| {
            let t = t as f32 / 16_000.0;
            0.4 * ((low + 300.0 * t) * t * std::f32::consts::TAU).sin()
        };
        let audio = AudioBuffer::mono(16_000, (0..16_000).map(sample).collect())?;
        let path = folder.join(format!("{name}.wav"));
        let mut writer = WavWriter::create(&path, audio.spec(), WavFormat::Float32)?;
        writer.write(&audio)?;
        writer.finish()?;
    }
    Ok(())
}

/// A tiny model with everything that a run can have.
fn config(folder: &Path, model: &str, extra: &str) -> Result<RunConfig> {
    let path = folder.join("run.toml");
    let text = format!(
        r#"
        seed = 7
        output = "run"
        [data]
        crop_seconds = 0.25
        batch_size = 2
        threads = 2
        mix_probability = 0.5
        gain_db = [-6.0, 0.0]
        [[data.sources]]
        path = "clips"
        kind = "tones"
        [quantizer]
        dropout = 0.5
        kmeans_batches = 4
        [loss]
        windows = [64, 256]
        mel_bands = [8, 20]
        stft = 1.0
        si_sdr = 0.01
        balance = true
        [adversary]
        stft_windows = [128]
        stft_channels = 4
        periods = [3]
        period_channels = 2
        start = 2
        update_probability = 0.7
        [optimizer]
        warm_up = 4
        average = 0.9
        weight_decay = 0.01
        [schedule]
        steps = 12
        log_every = 2
        checkpoint_every = 5
        {extra}
        [model.config]
        {model}
        "#
    );
    std::fs::write(&path, text)?;
    Ok(RunConfig::open(&path)?)
}

const ENCODEC: &str = r#"
    model_type = "encodec"
    sampling_rate = 16000
    num_filters = 4
    hidden_size = 16
    codebook_dim = 16
    codebook_size = 32
    num_lstm_layers = 1
    upsampling_ratios = [5, 4, 4]
    target_bandwidths = [4.0]
"#;

const DAC: &str = r#"
    model_type = "dac"
    sampling_rate = 16000
    encoder_hidden_size = 4
    decoder_hidden_size = 32
    downsampling_ratios = [2, 4, 8]
    upsampling_ratios = [8, 4, 2]
    codebook_dim = 4
    codebook_size = 32
    n_codebooks = 3
    hidden_size = 16
"#;

const LAPPED: &str = r#"
    model_type = "lapped"
    sampling_rate = 16000
    hop_length = 160
    n_codebooks = 3
    codebook_size = 32
    beam = 3
    latent_dim = 8
    encoder = { n_blocks = 1, dim = 8, hidden = 16, kernel = 3 }
    decoder = { n_blocks = 1, dim = 8, hidden = 16, kernel = 3 }
"#;

/// Where a run is killed, and for one of the models quantization starts.
const KILLED: u64 = 7;

/// Stops after some steps.
struct StopAt(u64, u64);

impl Watch for StopAt {
    fn step(&mut self, _: &StepReport) {
        self.1 += 1;
    }
    fn validated(&mut self, _: u64, _: &Report) {}
    fn saved(&mut self, _: &Path) {}
    fn wants_stop(&self) -> bool {
        self.1 >= self.0
    }
}

fn run(trainer: &mut Trainer, watch: &mut dyn Watch) -> codec_train::Result<Outcome> {
    let folder = RunFolder::claim(&trainer.config().output)?;
    run::run(trainer, &folder, &Device::Cpu, watch)
}

fn bits(saved: &Saved) -> Result<Vec<(String, Vec<u32>)>> {
    let bits = |(name, tensor): (&String, &candle_core::Tensor)| -> Result<(String, Vec<u32>)> {
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        Ok((name.clone(), values.into_iter().map(f32::to_bits).collect()))
    };
    saved.tensors.iter().map(bits).collect()
}

#[test]
fn a_run_that_is_killed_and_resumed_equals_one_that_was_not() -> Result {
    for model in [ENCODEC, DAC, LAPPED] {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("clips"))?;
        write_clips(&folder.path().join("clips"))?;
        let device = Device::Cpu;
        let mut config = config(folder.path(), model, "")?;
        if model == LAPPED {
            config.quantizer.start = KILLED;
            config.loss.loudness = 0.5;
            config.loss.intelligibility = 0.5;
            config.data.crop_seconds = 0.5;
        }
        let mut unbroken = Trainer::new(config.clone(), &device)?;
        for _ in 0..12 {
            unbroken.advance()?;
        }
        let whole = unbroken.save()?;

        let mut first = Trainer::new(config.clone(), &device)?;
        let outcome = run(&mut first, &mut StopAt(KILLED, 0))?;
        assert!(matches!(outcome, Outcome::Stopped(_)), "{outcome:?}");
        drop(first);
        // A process that dies after its checkpoint leaves steps behind that nobody may see.
        let saved = Saved::read(&config.output, &device)?;
        assert_eq!(saved.state.step, KILLED);
        let mut lost = Trainer::resume(&saved, config.clone(), &device)?;
        lost.advance()?;
        drop(lost);

        let mut second = Trainer::resume(&Saved::read(&config.output, &device)?, config, &device)?;
        let outcome = run(&mut second, &mut StopAt(u64::MAX, 0))?;
        let Outcome::Finished(model_folder) = outcome else { panic!("{outcome:?}") };
        let resumed = second.save()?;
        let (got, want) = (bits(&resumed)?, bits(&whole)?);
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            assert!(got == want, "{} differs", want.0);
        }
        assert_eq!(resumed.state.balancer, whole.state.balancer);
        assert_eq!(resumed.state.losses, whole.state.losses);
        // What the log says of the codes counts on too.
        assert_eq!(second.usage(None), unbroken.usage(None));
        // What was written is what `codec` loads.
        let codec = codec_nn::load(&model_folder, &device)?.codec;
        let audio = AudioBuffer::mono(16_000, vec![0.1; 1000])?;
        codec.decode(&codec.encode(&audio, codec.info().layout.n_codebooks())?)?;
    }
    Ok(())
}

#[test]
fn threads_do_not_change_a_run() -> Result {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("clips"))?;
    write_clips(&folder.path().join("clips"))?;
    let train = |n_threads: usize| -> Result<Vec<(String, Vec<u32>)>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build()?;
        let config = config(folder.path(), ENCODEC, "")?;
        pool.install(|| -> Result<_> {
            let mut trainer = Trainer::new(config, &Device::Cpu)?;
            (0..4).try_for_each(|_| trainer.advance().map(|_| ()))?;
            bits(&trainer.save()?)
        })
    };
    assert!(train(1)? == train(3)?);
    Ok(())
}

#[test]
fn a_run_learns_and_its_log_says_so() -> Result {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("clips"))?;
    write_clips(&folder.path().join("clips"))?;
    let mut config = config(folder.path(), ENCODEC, "")?;
    config.adversary = None;
    config.loss.balance = false;
    config.loss.si_sdr = 0.0;
    config.schedule.steps = 60;
    config.optimizer.learning_rate = 3e-3;
    config.validation.sources = config.data.sources.clone();
    let mut trainer = Trainer::new(config.clone(), &Device::Cpu)?;
    run(&mut trainer, &mut StopAt(u64::MAX, 0))?;
    let log = std::fs::read_to_string(config.output.join("log.jsonl"))?;
    let lines: Vec<serde_json::Value> =
        log.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?;
    let mel = |line: &serde_json::Value| line["losses"]["mel"].as_f64();
    let losses: Vec<f64> = lines.iter().filter_map(mel).collect();
    assert_eq!(losses.len(), 30);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert!(mean(&losses[25..]) < 0.7 * mean(&losses[..3]), "{losses:?}");
    let last = lines.last().ok_or("no lines")?;
    assert_eq!(last["type"], "validation");
    assert!(last["scores"].as_object().is_some_and(|scores| scores.keys().any(|k| k.starts_with("si_sdr"))));
    let page = std::fs::read_to_string(config.output.join("index.html"))?;
    assert!(page.contains("spectrogram, decoded") && page.contains("perplexity"));
    Ok(())
}

#[test]
fn averaged_weights_begin_anew_where_an_entry_does() -> Result {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("clips"))?;
    write_clips(&folder.path().join("clips"))?;
    let mut config = config(folder.path(), ENCODEC, "")?;
    config.adversary = None;
    config.optimizer.average = 0.99;
    // Entries far from everything, of which most code nothing.
    config.quantizer.kmeans_batches = Some(0);
    config.quantizer.revive_below = 0.9;
    let mut trainer = Trainer::new(config, &Device::Cpu)?;
    let codebooks = |saved: &Saved, part: &str| -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::new();
        for (_, tensor) in saved.part(part).iter().filter(|(name, _)| name.ends_with("embed")) {
            rows.append(&mut tensor.to_vec2::<f32>()?);
        }
        Ok(rows)
    };
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y).abs()).sum::<f32>();
    for _ in 0..40 {
        let old = codebooks(&trainer.save()?, "model")?;
        let n_revived = trainer.advance()?.n_revived;
        if n_revived == 0 {
            continue;
        }
        let after = trainer.save()?;
        let (new, averages) = (codebooks(&after, "model")?, codebooks(&after, "average")?);
        // Revived entries jump, the others move by a hundredth.
        let mut order: Vec<usize> = (0..old.len()).collect();
        order.sort_by(|&a, &b| distance(&old[b], &new[b]).total_cmp(&distance(&old[a], &new[a])));
        for &row in &order[..n_revived] {
            let moved = distance(&old[row], &new[row]);
            assert!(moved > 1.0 && distance(&averages[row], &new[row]) < 1e-4 * moved, "{moved}");
        }
        return Ok(());
    }
    Err("no entry was revived".into())
}

#[test]
fn moves_of_codebooks_that_cannot_be_are_refused() -> Result {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("clips"))?;
    write_clips(&folder.path().join("clips"))?;
    // The codebooks of DAC learn by gradient.
    for (model, is_refused) in [(DAC, true), (ENCODEC, false)] {
        let mut config = config(folder.path(), model, "")?;
        config.adversary = None;
        config.quantizer.revive_as = Revival::Split;
        let error = Trainer::new(config, &Device::Cpu).err().map(|error| error.to_string());
        assert_eq!(error.is_some(), is_refused, "{error:?}");
        assert!(error.is_none_or(|error| error.contains("quantizer.revive_as")));
    }
    let path = folder.path().join("run.toml");
    let text = std::fs::read_to_string(&path)?;
    for (share, is_refused) in [("-0.1", true), ("0.0", false), ("0.9", false), ("1.0", true), ("nan", true)]
    {
        let changed = path.with_file_name("changed.toml");
        let setting = format!("[quantizer]\nrevive_below = {share}\n");
        std::fs::write(&changed, text.replace("[quantizer]\n", &setting))?;
        let error = RunConfig::open(&changed).err().map(|error| error.to_string());
        assert_eq!(error.is_some(), is_refused, "{share}: {error:?}");
        assert!(error.is_none_or(|error| error.contains("quantizer.revive_below")));
    }
    Ok(())
}

#[test]
fn a_run_goes_on_from_a_model_by_its_name() -> Result {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("clips"))?;
    write_clips(&folder.path().join("clips"))?;
    let path = folder.path().join("run.toml");
    let open = |checkpoint: &str| -> Result<RunConfig> {
        let text = format!(
            "output = 'run'\n[data]\ncrop_seconds = 0.2\nbatch_size = 1\nsources = [{{ path = 'clips' }}]\n\
             [model]\ncheckpoint = '{checkpoint}'\nfreeze = ['encoder.']\n[schedule]\nsteps = 1\n"
        );
        std::fs::write(&path, text)?;
        Ok(RunConfig::open(&path)?)
    };
    let mut trainer = Trainer::new(open(codec_models::DEFAULT)?, &Device::Cpu)?;
    let model = trainer.info().model.clone();
    assert_eq!(model, codec_models::DEFAULT);
    let values_of = |trainer: &Trainer| bits(&trainer.save().unwrap()).unwrap();
    let before = values_of(&trainer);
    let Outcome::Finished(trained) = run(&mut trainer, &mut StopAt(u64::MAX, 0))? else { panic!() };
    let changed = |name: &str| {
        let is_it = |(known, _): &&(String, Vec<u32>)| known.starts_with(name);
        let values = |all: &[(String, Vec<u32>)]| all.iter().filter(is_it).cloned().collect::<Vec<_>>();
        values(&before) != values(&values_of(&trainer))
    };
    assert_eq!([changed("model/decoder."), changed("model/encoder.")], [true, false]);

    // A path counts from the configuration's folder, whatever else has that name.
    let beside = folder.path().join("encodec_24khz");
    std::fs::rename(&trained, &beside)?;
    assert_eq!(open("encodec_24khz")?.model.checkpoint, Some(beside.display().to_string()));
    assert_eq!(Trainer::new(open("encodec_24khz")?, &Device::Cpu)?.info().model, model);
    let missing = Trainer::new(open("encodec_42khz")?, &Device::Cpu).unwrap_err().to_string();
    assert!(missing.contains("did you mean encodec_24khz?"), "{missing}");
    Ok(())
}

#[test]
fn a_new_model_is_not_shaken_by_silence() -> Result {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("clips"))?;
    let audio = AudioBuffer::mono(16_000, vec![0.0; 16_000])?;
    let mut writer = WavWriter::create(folder.path().join("clips/a.wav"), audio.spec(), WavFormat::Float32)?;
    writer.write(&audio)?;
    writer.finish()?;
    let mut config = config(folder.path(), LAPPED, "")?;
    config.adversary = None;
    config.loss.balance = false;
    // Norms in a row, each of which would raise the gradient of nothing a thousandfold.
    let mut trainer = Trainer::new(config, &Device::Cpu)?;
    for _ in 0..3 {
        let report = trainer.advance()?;
        assert!(report.gradient < 1e4, "{report:?}");
    }
    Ok(())
}

#[test]
fn other_data_is_noticed() -> Result {
    let folder = tempfile::tempdir()?;
    let clips = folder.path().join("clips");
    std::fs::create_dir(&clips)?;
    write_clips(&clips)?;
    let config = config(folder.path(), LAPPED, "")?;
    let mut trainer = Trainer::new(config.clone(), &Device::Cpu)?;
    trainer.advance()?;
    trainer.checkpoint()?;
    let saved = Saved::read(&config.output, &Device::Cpu)?;
    let resume = |saved: &Saved| Trainer::resume(saved, config.clone(), &Device::Cpu)?.check_data(saved);
    resume(&saved)?;
    std::fs::copy(clips.join("a.wav"), clips.join("c.wav"))?;
    let error = resume(&saved).unwrap_err();
    assert!(matches!(error, Error::DataChanged { .. }), "{error}");
    assert!(error.to_string().contains("2 clips") && error.to_string().contains("3 clips"), "{error}");
    // A checkpoint of before this was known is believed.
    let mut old = saved;
    old.state.data = None;
    resume(&old)?;
    Ok(())
}

#[test]
fn an_exploding_run_stops_and_says_where() -> Result {
    let folder = tempfile::tempdir()?;
    std::fs::create_dir(folder.path().join("clips"))?;
    write_clips(&folder.path().join("clips"))?;
    let mut config = config(folder.path(), ENCODEC, "")?;
    config.adversary = None;
    config.optimizer.learning_rate = 1e4;
    config.optimizer.warm_up = 0;
    config.optimizer.clip = 0.0;
    config.schedule.checkpoint_every = 1;
    let mut trainer = Trainer::new(config.clone(), &Device::Cpu)?;
    let error = run(&mut trainer, &mut StopAt(u64::MAX, 0)).unwrap_err();
    let Error::Diverged { step, .. } = error else { panic!("{error}") };
    assert!(error.to_string().contains("step"), "{error}");
    // The checkpoint is that of the last step before.
    let saved = Saved::read(&config.output, &Device::Cpu)?;
    assert_eq!(saved.state.step, step);
    assert!(bits(&saved)?.iter().all(|(_, bits)| bits.iter().all(|x| f32::from_bits(*x).is_finite())));
    Ok(())
}
