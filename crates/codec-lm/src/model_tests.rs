//! Tests of the model and of generation with it.

use super::*;
use crate::generate::{Generator, Options, carry_on};
use crate::pattern::{Pattern, Tokens};
use crate::predict::{LanguageModel, Opening};
use crate::sampling::{Sampler, Sampling};
use crate::train::NO_TENSORS;
use candle_core::DType;
use codec_core::{CodeLayout, CodebookSpec, Codes};
use codec_nn::weights::Variables;
use codec_train::rng::Rng;

/// A model whose tensors are random, and its variables if it trains.
pub(crate) fn random(config: &ModelConfig, seed: u64, trains: bool) -> (Model, Variables) {
    let variables = Variables::seeded(&Device::Cpu, seed);
    let empty = Weights::from_bytes(NO_TENSORS.to_vec(), &Device::Cpu).unwrap();
    let live = Model::new(config, &empty.trained(&variables)).unwrap();
    // Biases and gains that do something.
    for (name, var) in variables.all() {
        if var.rank() == 1 {
            let mut rng = Rng::of(seed, &name, 0);
            let values: Vec<f32> = (0..var.elem_count()).map(|_| rng.between(0.2, 1.5) as f32).collect();
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
    }
    if trains {
        return (live, variables);
    }
    let tensors = variables.all().into_iter().map(|(name, var)| (name, var.as_detached_tensor()));
    let bytes = safetensors::serialize(tensors.collect::<Vec<_>>(), None).unwrap();
    let weights = Weights::from_bytes(bytes, &Device::Cpu).unwrap();
    let model = Model::new(config, &weights).unwrap();
    weights.finish(&[]).unwrap();
    assert_eq!(model.n_parameters(), variables.all().values().map(|var| var.elem_count()).sum::<usize>());
    (model, variables)
}

pub(crate) fn tiny() -> Shape {
    Shape { dim: 24, n_layers: 2, n_heads: 3, hidden: 40, context: Some(7), ..Shape::small() }
}

/// One configuration for every pattern that can go on, and for every choice of a shape.
pub(crate) fn configs() -> Vec<ModelConfig> {
    let uniform = CodeLayout::uniform(3, 12).unwrap();
    let uneven = CodeLayout::new([9, 5].map(|size| CodebookSpec { size, stride: 1 }).to_vec()).unwrap();
    let snac = CodeLayout::new([4, 2, 1].map(|stride| CodebookSpec { size: 6, stride }).to_vec()).unwrap();
    let depth = DepthShape { dim: 16, n_layers: 2, n_heads: 2, hidden: 20 };
    let deep = Shape { tied: false, depth: Some(depth), ..tiny() };
    let added = Shape {
        positions: Positions::Sinusoidal,
        norm: NormKind::Layer,
        tied: false,
        head_bias: false,
        context: None,
        ..tiny()
    };
    let mut classes = ModelConfig::new(&uniform, Pattern::Delay { delays: vec![0, 2, 1] }, tiny());
    classes.classes = vec!["speech".to_owned(), "music".to_owned()];
    vec![
        classes,
        ModelConfig::new(&uneven, Pattern::Parallel, added),
        ModelConfig::new(&uniform, Pattern::Depth { delays: vec![0, 1, 1] }, deep),
        ModelConfig::new(&snac, Pattern::Interleave, tiny()),
        ModelConfig::new(&snac, Pattern::Flatten, tiny()),
    ]
}

pub(crate) fn codes(layout: &CodeLayout, n_frames: usize, seed: u64) -> Codes {
    let mut rng = Rng::of(seed, "codes", 0);
    let row = |book: &CodebookSpec| {
        let n = n_frames / book.stride as usize;
        (0..n).map(|_| rng.below(book.size as usize) as u32).collect::<Vec<_>>()
    };
    Codes::new(layout.clone(), layout.codebooks().iter().map(row).collect()).unwrap()
}

fn bits(xs: &Tensor) -> Vec<u32> {
    let values = xs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

fn options(seed: u64, class: Option<u32>, guidance: f64) -> Options {
    let sampler = Sampler::new(vec![Sampling::default()], seed).unwrap();
    Options { sampler, class, guidance, end: None }
}

#[test]
fn steps_and_batches_have_the_bits_of_one_sequence_read_at_once() {
    for config in configs() {
        let (model, _) = random(&config, 1, false);
        let layout = config.layout().unwrap();
        let items: Vec<Tokens> =
            (0..3).map(|seed| model.arrangement().encode(&codes(&layout, 20, seed)).unwrap()).collect();
        let n_streams = model.arrangement().n_streams();
        let whole: Vec<Vec<u32>> = items
            .iter()
            .map(|tokens| bits(&model.step(&mut model.init(), Steps::one(tokens.values())).unwrap()))
            .collect();
        assert!(whole[0] != whole[1]);
        for (tokens, want) in items.iter().zip(&whole) {
            for n in [1, 2, 7] {
                let mut state = model.init();
                let pieces = tokens.values().chunks(n * n_streams);
                let got = pieces.flat_map(|s| bits(&model.step(&mut state, Steps::one(s)).unwrap()));
                assert_eq!(got.collect::<Vec<_>>(), *want, "{n} steps of {:?}", config.pattern);
            }
        }
        let all: Vec<u32> = items.iter().flat_map(|tokens| tokens.values()).copied().collect();
        let steps = Steps { tokens: &all, batch: 3, classes: &[] };
        let hidden = model.step(&mut model.init(), steps).unwrap();
        assert_eq!(bits(&hidden), whole.concat(), "{:?}", config.pattern);
        // The predictions of a batch as well.
        if model.depth().is_none() {
            let logits = bits(&model.logits(&hidden).unwrap());
            let single = model.logits(&hidden.narrow(0, 1, 1).unwrap()).unwrap();
            assert_eq!(bits(&single), logits[logits.len() / 3..logits.len() / 3 * 2]);
        }
    }
}

#[test]
fn a_training_model_computes_what_a_fixed_one_does() {
    for config in configs() {
        let ((fixed, _), (live, _)) = (random(&config, 2, false), random(&config, 2, true));
        let tokens = fixed.arrangement().encode(&codes(&config.layout().unwrap(), 12, 5)).unwrap();
        let of = |model: &Model| {
            let hidden =
                model.step(&mut model.init(), Steps::one(tokens.values())).unwrap().squeeze(0).unwrap();
            bits(&model.cost(&hidden, tokens.values()).unwrap())
        };
        assert_eq!(of(&fixed), of(&live));
    }
}

#[test]
fn gradients_reach_every_variable() {
    for config in configs() {
        let (model, variables) = random(&config, 3, true);
        let tokens = model.arrangement().encode(&codes(&config.layout().unwrap(), 16, 5)).unwrap();
        let hidden = model.step(&mut model.init(), Steps::one(tokens.values())).unwrap().squeeze(0).unwrap();
        let loss = model.cost(&hidden, tokens.values()).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        for (name, var) in variables.all() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
            let size = grad.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size > 0.0 && size.is_finite(), "{name}: {size}");
        }
    }
}

/// The difference quotient along a random direction: f32 leaves some three digits.
const QUOTIENT_TOLERANCE: f64 = 2e-2;

#[test]
fn gradients_are_those_of_the_cost() {
    for config in configs() {
        let (model, variables) = random(&config, 4, true);
        let tokens = model.arrangement().encode(&codes(&config.layout().unwrap(), 8, 6)).unwrap();
        let loss = || {
            // Tied heads and projections are built from the variables of the moment.
            let hidden = model.step(&mut model.init(), Steps::one(tokens.values())).unwrap();
            let hidden = hidden.squeeze(0).unwrap();
            model.cost(&hidden, tokens.values()).unwrap().sum_all().unwrap()
        };
        let grads = loss().backward().unwrap();
        let mut slope = 0.0;
        let mut directions = Vec::new();
        for (name, var) in variables.all() {
            let mut rng = Rng::of(9, &name, 0);
            let values: Vec<f32> = (0..var.elem_count()).map(|_| rng.between(-1.0, 1.0) as f32).collect();
            let direction = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
            let product = (grads.get(&var).unwrap() * &direction).unwrap().to_dtype(DType::F64).unwrap();
            slope += product.sum_all().unwrap().to_scalar::<f64>().unwrap();
            directions.push((var, direction));
        }
        let step = 1e-3;
        let moved = |factor: f64| {
            let from: Vec<Tensor> =
                directions.iter().map(|(var, _)| var.as_detached_tensor().copy().unwrap()).collect();
            for (var, direction) in &directions {
                var.set(&(var.as_detached_tensor() + (direction * factor).unwrap()).unwrap()).unwrap();
            }
            let value = f64::from(loss().to_scalar::<f32>().unwrap());
            for ((var, _), from) in directions.iter().zip(from) {
                var.set(&from).unwrap();
            }
            value
        };
        let quotient = (moved(step) - moved(-step)) / (2.0 * step);
        assert!(
            (quotient - slope).abs() <= QUOTIENT_TOLERANCE * slope.abs().max(1.0),
            "{:?}: {quotient} against {slope}",
            config.pattern
        );
    }
}

#[test]
fn costs_are_those_of_the_predictions_step_by_step() {
    for config in configs() {
        let (model, _) = random(&config, 5, false);
        let arrangement = model.arrangement();
        let tokens = arrangement.encode(&codes(&config.layout().unwrap(), 12, 7)).unwrap();
        let costs = model.costs(&tokens, None).unwrap();
        let mut reader = model.begin(None).unwrap();
        let n_streams = arrangement.n_streams();
        for (step_idx, step) in tokens.steps().enumerate() {
            for stream_idx in 0..n_streams {
                let empty = arrangement.special(stream_idx, Special::Empty);
                let cost = costs[step_idx * n_streams + stream_idx];
                let mut logits = reader.logits(&step[..stream_idx]).unwrap();
                let want = match step[stream_idx] == empty {
                    true => 0.0,
                    false => -ops::log_probability(&mut logits, step[stream_idx] as usize).unwrap(),
                };
                assert_eq!(cost.to_bits(), want.to_bits(), "{:?}", config.pattern);
            }
            // Asked again, and in another order, it says the same.
            assert_eq!(reader.logits(&step[..0]).unwrap(), reader.logits(&step[..0]).unwrap());
            reader.read(step).unwrap();
        }
    }
}

#[test]
fn sequences_read_together_have_the_bits_of_each_alone() {
    for config in configs() {
        let (model, _) = random(&config, 5, false);
        let layout = config.layout().unwrap();
        let tokens = |n_frames, seed| model.arrangement().encode(&codes(&layout, n_frames, seed)).unwrap();
        // One has read more than the context, one a little, one nothing.
        let (long, short, more) = (tokens(20, 1), tokens(4, 2), tokens(12, 3));
        let class = (!config.classes.is_empty()).then_some(1);
        let openings = [
            Opening { class, steps: long.values() },
            Opening { class: None, steps: short.values() },
            Opening::default(),
        ];
        let mut alone: Vec<_> =
            openings.iter().map(|opening| model.begin_together(&[*opening]).unwrap()).collect();
        let mut together = model.begin_together(&openings).unwrap();
        let n_streams = more.n_streams();
        let (steps, rest) = more.values().split_at(5 * n_streams);
        for step in steps.chunks(n_streams) {
            for stream_idx in 0..n_streams {
                let known = &step[..stream_idx];
                let want = alone.iter_mut().map(|reader| reader.logits(known).unwrap());
                let want = want.collect::<Vec<_>>().concat();
                assert_eq!(together.logits(known).unwrap(), want, "{:?}", config.pattern);
            }
            together.read(step).unwrap();
            alone.iter_mut().for_each(|reader| reader.read(step).unwrap());
        }
        let want: Vec<Vec<f64>> = alone.iter_mut().map(|reader| reader.costs(rest).unwrap()).collect();
        assert_eq!(together.costs(rest).unwrap(), want.concat(), "{:?}", config.pattern);
        assert!(want[0] != want[1] && want[1] != want[2]);
        assert!(matches!(model.begin_together(&[]), Err(Error::Shape { .. })));
    }
}

#[test]
fn generation_keeps_its_prompt_and_depends_on_the_seed() {
    for config in configs() {
        let (model, _) = random(&config, 6, false);
        let prompt = codes(&config.layout().unwrap(), 8, 8);
        let make = |seed| carry_on(&model, &prompt, 24, options(seed, None, 1.0)).unwrap();
        let codes = make(1);
        assert_eq!(codes.n_frames(), 24);
        assert_eq!(codes, make(1));
        assert_ne!(codes, make(2));
        // What was drawn is what the model would be asked to judge: greedy codes are the likeliest.
        let greedy = Sampler::new(vec![Sampling::GREEDY], 0).unwrap();
        let greedy = Options { sampler: greedy, class: None, guidance: 1.0, end: Some(32) };
        let mut all = prompt.clone();
        // With its end known it is the sequence of the codes alone.
        all.append(&carry_on(&model, &prompt, 50, greedy).unwrap()).unwrap();
        assert_eq!(all.n_frames(), 32);
        let tokens = model.arrangement().encode(&all).unwrap();
        let mut reader = model.begin(None).unwrap();
        for (step_idx, step) in tokens.steps().enumerate() {
            for stream_idx in 0..step.len() {
                let cell = model.arrangement().cell(step_idx, stream_idx, all.n_frames());
                let crate::pattern::Cell::Code { code_idx, codebook_idx, slot_idx } = cell else { continue };
                let stride = config.codebooks[codebook_idx].stride as usize;
                if code_idx < prompt.n_frames() / stride {
                    continue;
                }
                let slot = &model.arrangement().vocabulary().slots(stream_idx)[slot_idx].tokens;
                let logits = reader.logits(&step[..stream_idx]).unwrap();
                let best = slot
                    .clone()
                    .max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize]).then(b.cmp(&a)));
                assert_eq!(best, Some(step[stream_idx]), "{:?} {step_idx} {stream_idx}", config.pattern);
            }
            reader.read(step).unwrap();
        }
    }
}

#[test]
fn generation_goes_on_without_growing() {
    for config in configs() {
        let (model, _) = random(&config, 7, false);
        let prompt = codes(&config.layout().unwrap(), 40, 8);
        let mut generator = Generator::new(&model, &prompt, options(3, None, 1.0)).unwrap();
        let mut most = 0;
        for _ in 0..60 {
            generator.next_frames().unwrap();
            most = most.max(generator.n_kept());
        }
        assert!(most <= 3 * 8, "{most} codes are kept with {:?}", config.pattern);
    }
}

#[test]
fn guidance_moves_away_from_what_is_not_guided() {
    let config = &configs()[0];
    let (model, _) = random(config, 8, false);
    let prompt = codes(&config.layout().unwrap(), 10, 8);
    let make = |class, guidance| carry_on(&model, &prompt, 30, options(1, class, guidance));
    assert_eq!(make(None, 1.0).unwrap(), make(None, 1.0).unwrap());
    assert_ne!(make(Some(0), 1.0).unwrap(), make(Some(1), 1.0).unwrap());
    assert_ne!(make(Some(0), 1.0).unwrap(), make(Some(0), 3.0).unwrap());
    assert_ne!(make(None, 1.0).unwrap(), make(None, 3.0).unwrap());
    // Beyond some guidance logits lose their meaning, and no number is none.
    for odd in [f64::NAN, f64::INFINITY, -2e3] {
        assert!(matches!(make(Some(0), odd), Err(crate::Error::Config { field: "guidance", .. })));
    }
    // Without guidance what is not guided alone decides.
    assert_eq!(make(Some(0), 0.0).unwrap(), make(None, 1.0).unwrap());
    let nothing = Codes::empty(config.layout().unwrap());
    assert!(matches!(carry_on(&model, &nothing, 1, options(1, None, 2.0)), Err(Error::Config { .. })));
    assert!(make(Some(9), 1.0).is_err());
    assert_eq!((model.class_idx("music"), model.class_idx("noise")), (Some(1), None));
}

#[test]
fn what_does_not_fit_is_refused() {
    let config = &configs()[1];
    let (model, _) = random(config, 9, false);
    let mut state = model.init();
    let mut step = |tokens: &[u32], batch| model.step(&mut state, Steps { tokens, batch, classes: &[] });
    assert!(matches!(step(&[1, 2, 3], 1), Err(Error::Shape { .. })));
    assert!(matches!(step(&[], 1), Err(Error::Shape { .. })));
    assert!(matches!(step(&[1, 2, 3, 4], 0), Err(Error::Shape { .. })));
    assert!(matches!(step(&[1, 6], 1), Err(Error::Token { stream_idx: 1, token: 6, .. })));
    assert!(model.begin(None).unwrap().logits(&[0, 0]).is_err());
    let other = Codes::empty(CodeLayout::uniform(2, 4).unwrap());
    assert!(matches!(carry_on(&model, &other, 1, options(1, None, 1.0)), Err(Error::Mismatch { .. })));
    assert!(model.begin(Some(0)).is_err());
    // Two codebooks and settings for three.
    let sampler = Sampler::new(vec![Sampling::GREEDY; 3], 1).unwrap();
    let prompt = codes(&config.layout().unwrap(), 3, 1);
    let refused = carry_on(&model, &prompt, 1, Options { sampler, ..options(1, None, 1.0) });
    assert!(matches!(refused, Err(Error::Config { field: "sampler", .. })));
}

#[test]
fn periods_are_powers() {
    for i in 0..=1000 {
        let exponent = i as f32 / 1000.0;
        let want = 10_000_f64.powf(f64::from(exponent));
        assert!((f64::from(power_of_max_period(exponent)) / want - 1.0).abs() < 6.1e-8, "{exponent}");
    }
}
