//! Quantizers in training against those of codec-core, and their gradients.

use super::*;
use crate::losses::testing::{assert_close, check_gradient, noise, values};
use candle_core::Device;
use codec_core::quantizer::Latents;
use codec_nn::quantizer::ProjectionsNet;
use codec_nn::weights::Checkpoint;

fn config() -> QuantizerConfig {
    QuantizerConfig::default()
}

/// Three stages that need several codes to say much.
fn euclidean(variables: &Variables) -> QuantizerNet {
    let weights = Checkpoint::from_config("{}", &Device::Cpu).trained(variables).weights().cloned().unwrap();
    QuantizerNet::residual((0..3).map(|i| weights.get((16, 4), &format!("{i}.embed")).unwrap()).collect())
}

/// Two stages as DAC has them, the second at half the rate.
fn projected(variables: &Variables) -> QuantizerNet {
    let weights = Checkpoint::from_config("{}", &Device::Cpu).trained(variables).weights().cloned().unwrap();
    let map = |name: String, n_in: usize, n_out: usize| LinearNet {
        weight: weights.get((n_out, n_in), &format!("{name}.weight")).unwrap(),
        bias: Some(weights.get(n_out, &format!("{name}.bias")).unwrap()),
    };
    let stage = |i: usize| StageNet {
        codebook: weights.get((16, 3), &format!("{i}.codebook.weight")).unwrap(),
        averages: None,
        stride: 1 + i as u32,
        distance: Distance::Cosine,
        projections: Some(ProjectionsNet {
            input: map(format!("{i}.in"), 4, 3),
            output: map(format!("{i}.out"), 3, 4),
        }),
    };
    QuantizerNet::Residual(ResidualNet { stages: vec![stage(0), stage(1)], projections: None, beam: 1 })
}

/// The codes of a codebook; those of a grid are mixed-radix numbers, the first value least significant.
fn codes_of(net: &QuantizerNet, quantized: &Quantized, codebook_idx: usize) -> Vec<u32> {
    let codes = |looked_up: &LookedUp| looked_up.codes.to_vec1::<u32>().unwrap();
    let QuantizerNet::Fsq { levels, .. } = net else { return codes(&quantized.looked_up[codebook_idx]) };
    let mut all = vec![0; quantized.looked_up[0].items.len()];
    for (looked_up, n) in quantized.looked_up.iter().zip(levels).rev() {
        all.iter_mut().zip(codes(looked_up)).for_each(|(code, digit)| *code = *code * n + digit);
    }
    all
}

#[test]
fn codes_and_values_are_those_of_the_finished_codec() {
    let fsq = |_: &Variables| QuantizerNet::Fsq { levels: vec![5, 4, 3, 8], projections: None };
    let nets: [&dyn Fn(&Variables) -> QuantizerNet; 3] = [&euclidean, &projected, &fsq];
    for net in nets {
        let variables = Variables::seeded(&Device::Cpu, 3);
        let net = net(&variables);
        let latents = noise(1, &[2, 6, 4]);
        let fixed = net.fixed().unwrap();
        let n_codebooks = fixed.layout().n_codebooks();
        let trainer = QuantizerTrainer::new(&config(), 1);
        let got = trainer.forward(&net, &latents, &[n_codebooks; 2]).unwrap();
        let flat: Vec<f32> = latents.flatten_all().unwrap().to_vec1().unwrap();
        let codes = fixed.encode(Latents::new(&flat, 4).unwrap(), n_codebooks).unwrap();
        for (codebook_idx, row) in codes.rows().enumerate() {
            assert_eq!(row, codes_of(&net, &got, codebook_idx));
        }
        let want: Vec<f64> = fixed.decode(&codes).unwrap().into_iter().map(f64::from).collect();
        assert_close("decoded", &values(&got.latents), &want, 1e-5);
    }
}

#[test]
fn commitment_pulls_latents_to_their_entries() {
    let variables = Variables::seeded(&Device::Cpu, 3);
    let net = euclidean(&variables);
    let trainer = QuantizerTrainer::new(&config(), 1);
    let latents = noise(5, &[2, 4, 4]);
    let QuantizerNet::Residual(stack) = &net else { panic!() };
    let codebooks: Vec<Vec<f64>> = stack.stages.iter().map(|stage| values(&stage.codebook)).collect();
    // The codes are held, as they are for small moves.
    let quantized = trainer.forward(&net, &latents, &[3, 3]).unwrap();
    let codes: Vec<Vec<u32>> = quantized.looked_up.iter().map(|l| l.codes.to_vec1().unwrap()).collect();
    check_gradient(
        &latents,
        |xs| Ok(trainer.forward(&net, xs, &[3, 3])?.commitment),
        |xs| {
            let mut residual = values(xs);
            let mut loss = 0.0;
            for (codebook, codes) in codebooks.iter().zip(&codes) {
                for (row, &code) in residual.chunks_exact_mut(4).zip(codes) {
                    for (x, e) in row.iter_mut().zip(&codebook[4 * code as usize..]) {
                        *x -= e;
                        loss += *x * *x / 32.0;
                    }
                }
            }
            Ok(Tensor::new(loss, &Device::Cpu)?)
        },
    );
}

#[test]
fn gradients_reach_latents_projections_and_codebooks() {
    for gradient in [GradientEstimator::StraightThrough, GradientEstimator::Rotation] {
        let variables = Variables::seeded(&Device::Cpu, 3);
        let net = projected(&variables);
        let trainer = QuantizerTrainer::new(&QuantizerConfig { gradient, ..config() }, 1);
        let latents = Var::from_tensor(&noise(1, &[2, 6, 4])).unwrap();
        let quantized = trainer.forward(&net, &latents, &[2, 2]).unwrap();
        let loss =
            (quantized.latents.sqr().unwrap().sum_all().unwrap() + quantized.codebook.unwrap()).unwrap();
        let grads = (loss + quantized.commitment).unwrap().backward().unwrap();
        for (name, var) in variables.all() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
            assert!(values(grad).iter().any(|x| *x != 0.0), "{name}");
        }
        assert!(values(grads.get(&latents).unwrap()).iter().all(|x| x.is_finite()));
    }
}

#[test]
fn dropout_leaves_out_the_last_codebooks() {
    let variables = Variables::seeded(&Device::Cpu, 3);
    let net = euclidean(&variables);
    let trainer = QuantizerTrainer::new(&QuantizerConfig { dropout: 0.5, ..config() }, 1);
    let latents = noise(1, &[2, 6, 4]);
    let all = trainer.forward(&net, &latents, &[3, 1]).unwrap();
    let first = trainer.forward(&net, &latents, &[1, 1]).unwrap();
    let full = trainer.forward(&net, &latents, &[3, 3]).unwrap();
    let item = |quantized: &Quantized, i: usize| values(&quantized.latents.narrow(0, i, 1).unwrap());
    assert_eq!(item(&all, 0), item(&full, 0));
    assert_eq!(item(&all, 1), item(&first, 1));
    assert_eq!(all.looked_up[1].items, [0; 6]);
    assert_eq!(all.looked_up[1].codes.dims(), [6]);
    let draws: Vec<usize> = (0..200).flat_map(|step| trainer.draw_n_codebooks(2, 3, step)).collect();
    let n_full = draws.iter().filter(|&&n| n == 3).count();
    // Half draw, a third of which draws all.
    assert!((230..305).contains(&n_full), "{n_full} of 400");
    assert!(draws.iter().all(|n| (1..=3).contains(n)));
}

#[test]
fn codebooks_that_start_from_data_code_it_well() {
    let variables = Variables::seeded(&Device::Cpu, 3);
    for net in [euclidean(&variables), projected(&variables)] {
        let mut trainer = QuantizerTrainer::new(&config(), 1);
        let latents = (noise(1, &[8, 60, 4]) * 0.1).unwrap();
        let n = [stages(&net).count(); 8];
        let before = trainer.forward(&net, &latents, &n).unwrap();
        trainer.start(&net, &variables, std::slice::from_ref(&latents)).unwrap();
        let after = trainer.forward(&net, &latents, &n).unwrap();
        let commitment = |quantized: &Quantized| values(&quantized.commitment)[0];
        assert!(commitment(&after) < 0.1 * commitment(&before));
        trainer.update(&net, &variables, &after, &[0; 8], 0).unwrap();
        assert!(trainer.usage.summaries(None).iter().all(|usage| usage.used > 0.9));
    }
}

#[test]
fn the_levels_of_a_grid_are_counted_each() {
    let variables = Variables::seeded(&Device::Cpu, 3);
    let net = QuantizerNet::Fsq { levels: vec![3, 8], projections: None };
    let mut trainer = QuantizerTrainer::new(&config(), 1);
    // The first value goes everywhere, the second is zero.
    let latents: Vec<f32> = (0..64).flat_map(|i| [i as f32 / 8.0 - 4.0, 0.0]).collect();
    let latents = Tensor::from_vec(latents, (1, 64, 2), &Device::Cpu).unwrap();
    let quantized = trainer.forward(&net, &latents, &[1]).unwrap();
    assert_eq!(trainer.update(&net, &variables, &quantized, &[0], 0).unwrap(), []);
    let usage = trainer.usage.summaries(None);
    assert_eq!(usage.iter().map(|usage| usage.used).collect::<Vec<_>>(), [1.0, 0.125]);
    assert!(usage[0].perplexity > 2.0 && usage[1].perplexity == 1.0, "{usage:?}");
}
