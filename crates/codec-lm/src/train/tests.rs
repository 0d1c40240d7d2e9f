//! Tests of training: that it learns, resumes exactly, and reads what it is given.

use super::*;
use crate::config::Shape;
use crate::corpus::{Columns, Tokenizer};
use crate::pattern::Pattern;
use codec_core::{CodeLayout, Codes};
use codec_train::config::{ScheduleConfig, SourceConfig};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

fn config(output: &Path, shape: Shape, steps: u64) -> RunConfig {
    let source = SourceConfig { path: PathBuf::new(), kind: None, only: BTreeMap::new(), weight: 1.0 };
    let schedule =
        ScheduleConfig { steps, log_every: 10, checkpoint_every: 1000, keep: 2, validate_every: 0 };
    let data = format!("sources = []\nwindow = {}\nbatch_size = 4", 64);
    let mut data: DataConfig = toml::from_str(&data).unwrap();
    data.sources.push(source);
    RunConfig {
        seed: 1,
        output: output.to_owned(),
        model: ModelSection { shape, ..ModelSection::default() },
        data,
        optimizer: OptimizerConfig { warm_up: 20, weight_decay: 0.0, ..OptimizerConfig::default() },
        schedule,
    }
}

fn corpus(rows: Vec<Vec<u32>>, size: u32) -> Corpus {
    let layout = CodeLayout::uniform(rows.len(), size).unwrap();
    let codes = Codes::new(layout, rows).unwrap();
    let recording =
        Recording { path: PathBuf::new(), speaker: "s".to_owned(), class: None, source_idx: 0, codes };
    Corpus { recordings: vec![recording], codec: None }
}

fn random_rows(n_codebooks: usize, size: usize, n_frames: usize) -> Vec<Vec<u32>> {
    let row = |k: usize| {
        let mut rng = Rng::of(3, "row", k as u64);
        (0..n_frames).map(|_| rng.below(size) as u32).collect()
    };
    (0..n_codebooks).map(row).collect()
}

fn small() -> Shape {
    Shape { dim: 64, n_layers: 2, n_heads: 2, hidden: 128, context: Some(64), ..Shape::small() }
}

#[test]
fn a_minute_of_codes_is_learnt_by_heart() {
    let folder = tempfile::tempdir().unwrap();
    // A minute at 12.5 frames per second, of codes that only memory can tell.
    let all = corpus(random_rows(2, 32, 750), 32);
    let mut config = config(folder.path(), small(), 500);
    config.optimizer.learning_rate = 6e-3;
    config.data.from_start = 0.1;
    let mut trainer = Trainer::new(config, all.clone(), Some(all), &Device::Cpu).unwrap();
    let before = trainer.judge().unwrap();
    while trainer.step() < 500 {
        trainer.advance().unwrap();
    }
    let report = trainer.judge().unwrap();
    println!("{} after {}", report.line(), before.line());
    assert_eq!(report.n_frames, 750);
    assert!(before.bits_per_code() > 4.5, "{}", before.line());
    assert!(report.bits_per_code() < 0.1, "{}", report.line());
    let totals = report.bits_per_frame();
    assert!(totals.uniform == 10.0 && totals.unigram.unwrap() < 10.0);
}

#[test]
fn a_resumed_run_has_the_bits_of_an_unbroken_one() {
    let folder = tempfile::tempdir().unwrap();
    let all = corpus(random_rows(3, 10, 200), 10);
    let mut config = config(folder.path(), Shape { n_layers: 1, ..small() }, 8);
    config.optimizer.average = 0.9;
    let mut unbroken = Trainer::new(config.clone(), all.clone(), None, &Device::Cpu).unwrap();
    for _ in 0..4 {
        unbroken.advance().unwrap();
    }
    let path = unbroken.checkpoint().unwrap();
    for _ in 0..4 {
        unbroken.advance().unwrap();
    }
    let saved = Saved::read(&path, &Device::Cpu).unwrap();
    let again: RunConfig = toml::from_str(&saved.state.config).unwrap();
    let mut resumed = Trainer::resume(&saved, again, all, None, &Device::Cpu).unwrap();
    assert_eq!(resumed.step(), 4);
    for _ in 0..4 {
        resumed.advance().unwrap();
    }
    assert_eq!(resumed.export().unwrap(), unbroken.export().unwrap());
    // A checkpoint of another model is refused.
    let other = corpus(random_rows(2, 10, 200), 10);
    let wrong = Trainer::resume(&saved, unbroken.config().clone(), other, None, &Device::Cpu);
    assert!(matches!(wrong, Err(Error::Config { .. })));
    // Other codes are told.
    resumed.check_data(&saved).unwrap();
    let mut rows = random_rows(3, 10, 200);
    rows[2][100] ^= 1;
    let changed =
        Trainer::resume(&saved, unbroken.config().clone(), corpus(rows, 10), None, &Device::Cpu).unwrap();
    assert!(matches!(changed.check_data(&saved), Err(Error::Train(codec_train::Error::DataChanged { .. }))));
}

#[test]
fn a_run_leaves_a_model_a_log_and_a_page() {
    struct Silent(usize);
    impl Watch for Silent {
        fn step(&mut self, _: &StepReport) {}
        fn judged(&mut self, _: u64, report: &Report) {
            self.0 += 1;
            assert!(report.table().contains("kbit/s") == report.frame_rate.is_some());
        }
        fn wants_stop(&self) -> bool {
            false
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let all = corpus((0..2).map(|k| (0..300).map(|i| (i * (k + 1)) % 7).collect()).collect(), 7);
    let mut config = config(folder.path(), Shape { n_layers: 1, ..small() }, 30);
    config.schedule.validate_every = 15;
    config.model.pattern = PatternKind::Flatten;
    let claimed = codec_train::folder::RunFolder::claim(&config.output).unwrap();
    let mut trainer = Trainer::new(config, all.clone(), Some(all.clone()), &Device::Cpu).unwrap();
    let mut watch = Silent(0);
    let Outcome::Finished(model) = run(&mut trainer, &claimed, &mut watch).unwrap() else {
        panic!("stopped")
    };
    assert_eq!(watch.0, 2);
    let loaded = crate::load(&model, None, &Device::Cpu).unwrap();
    assert_eq!(loaded.arrangement().pattern(), &Pattern::Flatten);
    let judged = judge(loaded.as_ref(), None, &all, 1000).unwrap();
    assert_eq!(judged.bits_per_code().to_bits(), trainer.judge().unwrap().bits_per_code().to_bits());
    let page = std::fs::read_to_string(folder.path().join("index.html")).unwrap();
    assert!(page.contains("bits per code of each codebook") && page.contains("bigram"));
    // Another run goes on from there.
    let mut again = trainer.config().clone();
    again.model.from = Some(model.clone());
    again.output = folder.path().join("again");
    let again = Trainer::new(again, all.clone(), Some(all.clone()), &Device::Cpu).unwrap();
    assert_eq!(again.export().unwrap(), trainer.export().unwrap());
    // Eight bits a weight cost little.
    let packed = folder.path().join("packed");
    export(&trainer, &packed, crate::quantize::Precision::Int8).unwrap();
    let packed = crate::load(&packed, None, &Device::Cpu).unwrap();
    let packed = judge(packed.as_ref(), None, &all, 1000).unwrap().bits_per_code();
    assert!(
        (packed / judged.bits_per_code() - 1.0).abs() < 0.01,
        "{packed} against {}",
        judged.bits_per_code()
    );
}

#[test]
fn audio_is_tokenized_once() {
    let examples = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples"));
    let loaded = codec_nn::load(&examples.join("encodec-tiny"), &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = |cache: Option<PathBuf>| Tokenizer {
        codec: loaded.codec.as_ref(),
        sha256: loaded.sha256,
        n_codebooks: 2,
        cache,
    };
    let path = examples.join("chirp.wav");
    let cache = folder.path().join("cache");
    let first = tokenizer(Some(cache.clone())).tokenize(&path).unwrap();
    assert_eq!(first, tokenizer(None).tokenize(&path).unwrap());
    let files: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let (_, cached) = crate::corpus::read_tokens(&files[0]).unwrap();
    assert_eq!(cached, first);
    // It is the cached file that is read.
    let other = Codes::new(first.layout().clone(), vec![vec![1; 5]; 2]).unwrap();
    let header = crate::corpus::read_tokens(&files[0]).unwrap().0;
    let mut writer = codec_io::tokens::TokenWriter::new(Vec::new(), header).unwrap();
    writer.push(&other).unwrap();
    let totals = codec_io::tokens::Totals { n_samples: 100, source_samples: 100 };
    std::fs::write(&files[0], writer.finish(totals).unwrap()).unwrap();
    assert_eq!(tokenizer(Some(cache.clone())).tokenize(&path).unwrap(), other);
    // A broken one is made anew.
    std::fs::write(&files[0], b"no tokens").unwrap();
    assert_eq!(tokenizer(Some(cache)).tokenize(&path).unwrap(), first);

    let count = AtomicUsize::new(0);
    let source = SourceConfig { path: path.clone(), kind: None, only: BTreeMap::new(), weight: 1.0 };
    let columns = Columns { speaker: "speaker", class: None };
    let each = |_| {
        count.fetch_add(1, Ordering::Relaxed);
    };
    let tokenizer = tokenizer(None);
    let corpus =
        Corpus::read(std::slice::from_ref(&source), columns, Some(1), Some(&tokenizer), &each).unwrap();
    assert_eq!((count.load(Ordering::Relaxed), corpus.n_frames()), (1, first.n_frames()));
    assert_eq!(corpus.layout().unwrap().n_codebooks(), 1);
    assert_eq!(corpus.codec.unwrap().sha256.len(), 64);
    let without = Corpus::read(&[source], columns, None, None, &each);
    assert!(matches!(without, Err(Error::Data { .. })));
}

#[test]
fn settings_are_used_or_refused() {
    let text = "output = 'o'\n[model]\npattern = 'depth'\ndim = 32\n[model.depth]\ndim = 16\nn_layers = 1\n\
                n_heads = 2\nhidden = 32\n[data]\nsources = [{path = 'x'}]\n[schedule]\nsteps = 5\n";
    let config: RunConfig = toml::from_str(text).unwrap();
    config.check().unwrap();
    let model = config.model.config(&CodeLayout::uniform(2, 8).unwrap()).unwrap();
    assert_eq!(model.pattern, Pattern::Depth { delays: vec![0, 0] });
    assert!(!model.shape.tied);
    assert_eq!(model.shape.n_layers, Shape::small().n_layers);
    assert!(toml::from_str::<RunConfig>(&text.replace("steps = 5", "steps = 5\nstep = 6")).is_err());
    assert!(toml::from_str::<RunConfig>(&text.replace("dim = 32", "dims = 32")).is_err());
    let refused = |from: &str, to: &str| {
        let config: RunConfig = toml::from_str(&text.replace(from, to)).unwrap();
        assert!(config.check().is_err(), "{to}");
    };
    refused("steps = 5", "steps = 0");
    refused("[{path = 'x'}]", "[]");
    refused("[{path = 'x'}]", "[{path = 'x'}]\nwindow = 1");
    let delays = text.replace("pattern = 'depth'", "pattern = 'flatten'\ndelays = [0, 1]");
    let config: RunConfig = toml::from_str(&delays).unwrap();
    assert!(config.model.config(&CodeLayout::uniform(2, 8).unwrap()).is_err());
}
