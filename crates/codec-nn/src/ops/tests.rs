//! Every operation: kernel path against plain path, gradients against finite differences.

use super::testing::{Rng, assert_close, bits, check_op, values};
use super::{Filter, Form, Geometry, Past, Recurrent, Sight, Steps};
use super::{attention, combine, conv, depthwise, elementwise, lstm, norm, rotary, weight_norm};
use crate::Error;
use candle_core::{DType, Device, Tensor, Var};
use codec_kernels::{Heads, Rotary, Unary};

const GEOMETRIES: [Geometry; 7] = [
    Geometry::POINTWISE,
    Geometry { kernel: 7, stride: 1, dilation: 1 },
    Geometry { kernel: 3, stride: 1, dilation: 3 },
    Geometry { kernel: 4, stride: 2, dilation: 1 },
    Geometry { kernel: 3, stride: 2, dilation: 2 },
    Geometry { kernel: 5, stride: 5, dilation: 1 },
    Geometry { kernel: 1, stride: 1, dilation: 2 },
];

#[test]
fn conv_agrees_and_has_gradients() {
    let mut rng = Rng::new(1);
    for geometry in GEOMETRIES {
        let (c_in, c_out) = (3, 5);
        let n_in = geometry.span() + 2 * geometry.stride + 1;
        let xs = rng.tensor(&[2, n_in, c_in]);
        let rows = rng.tensor(&[geometry.kernel * c_in, c_out]);
        let bias = rng.tensor(&[c_out]);
        check_op(
            &mut rng,
            [xs.clone(), rows.clone(), bias],
            |[xs, rows, bias]| conv::conv(xs, rows, Some(bias), geometry),
            |[xs, rows, bias]| conv::plain(xs, rows, Some(bias), geometry),
        );
        check_op(
            &mut rng,
            [xs, rows],
            |[xs, rows]| conv::conv(xs, rows, None, geometry),
            |[xs, rows]| conv::plain(xs, rows, None, geometry),
        );
    }
}

#[test]
fn a_frozen_filter_passes_gradients_on() {
    let mut rng = Rng::new(2);
    for geometry in GEOMETRIES {
        let (c_in, c_out) = (4, 3);
        let weight = rng.tensor(&[c_out, c_in, geometry.kernel]);
        let bias = rng.tensor(&[c_out]);
        let filter = Filter::new(Form::Conv, geometry, &weight, Some(&bias)).unwrap();
        let xs = rng.tensor(&[2, geometry.span() + 3, c_in]);
        check_op(
            &mut rng,
            [xs],
            |[xs]| filter.apply(xs.clone().into())?.into_tensor(),
            |[xs]| {
                let dtype = xs.dtype();
                let rows = weight.permute((2, 1, 0))?.reshape((geometry.kernel * c_in, c_out))?;
                conv::plain(xs, &rows.to_dtype(dtype)?, Some(&bias.to_dtype(dtype)?), geometry)
            },
        );
    }
}

#[test]
fn a_filter_gives_the_same_bits_live_and_fixed() {
    let mut rng = Rng::new(3);
    let geometry = Geometry { kernel: 3, stride: 1, dilation: 1 };
    let forms = [
        (Form::Conv, geometry, vec![6, 4, 3], 6),
        (Form::Conv, Geometry { dilation: 2, ..geometry }, vec![6, 4, 3], 6),
        (Form::Depthwise, geometry, vec![4, 1, 3], 4),
        (Form::Transposed { stride: 2 }, geometry, vec![4, 5, 6], 5),
        (Form::TransposedDepthwise { stride: 2 }, Geometry { kernel: 2, ..geometry }, vec![4, 1, 4], 4),
        (Form::Matrix, Geometry::POINTWISE, vec![7, 4], 7),
    ];
    for (form, geometry, dims, c_out) in forms {
        let (weight, bias, xs) = (rng.tensor(&dims), rng.tensor(&[c_out]), rng.tensor(&[2, 9, 4]));
        let apply = |filter: &Filter, xs: Steps| filter.apply(xs).unwrap().into_tensor().unwrap();
        let fixed = Filter::new(form, geometry, &weight, Some(&bias)).unwrap();
        let floats = apply(&fixed, Steps::floats_of(&xs));
        let fixed = apply(&fixed, xs.clone().into());
        assert_eq!(bits(&fixed), bits(&floats), "{form:?}");
        let (weight, bias) = (Var::from_tensor(&weight).unwrap(), Var::from_tensor(&bias).unwrap());
        let live = Filter::new(form, geometry, &weight, Some(&bias)).unwrap();
        assert_eq!(bits(&fixed), bits(&apply(&live, xs.clone().into())), "{form:?}");
        // An optimizer's update is seen at once.
        weight.set(&weight.affine(2.0, 0.0).unwrap()).unwrap();
        let moved = values(&apply(&live, xs.into()));
        assert!(moved.iter().zip(values(&fixed)).any(|(x, y)| (x - y).abs() > 0.01), "{form:?} is stale");
    }
}

#[test]
fn conv_reads_a_range_of_time_in_place() {
    let mut rng = Rng::new(4);
    let geometry = Geometry { kernel: 3, stride: 2, dilation: 1 };
    let (xs, rows) = (rng.tensor(&[3, 12, 2]), rng.tensor(&[6, 4]));
    let range = xs.narrow(1, 4, 7).unwrap();
    assert!(!range.is_contiguous());
    let want = conv::conv(&range.contiguous().unwrap(), &rows, None, geometry).unwrap();
    assert_eq!(bits(&conv::conv(&range, &rows, None, geometry).unwrap()), bits(&want));
    // Channels first needs a copy, and gets one.
    let turned = xs.transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap();
    let want = conv::conv(&xs, &rows, None, geometry).unwrap();
    assert_eq!(bits(&conv::conv(&turned, &rows, None, geometry).unwrap()), bits(&want));
}

#[test]
fn depthwise_agrees_and_has_gradients() {
    let mut rng = Rng::new(5);
    for geometry in GEOMETRIES {
        let channels = 5;
        let xs = rng.tensor(&[2, geometry.span() + 2 * geometry.stride + 1, channels]);
        let taps = rng.tensor(&[geometry.kernel, channels]);
        let bias = rng.tensor(&[channels]);
        check_op(
            &mut rng,
            [xs.clone(), taps.clone(), bias],
            |[xs, taps, bias]| depthwise::depthwise(xs, taps, Some(bias), geometry),
            |[xs, taps, bias]| depthwise::plain(xs, taps, Some(bias), geometry),
        );
        check_op(
            &mut rng,
            [xs, taps],
            |[xs, taps]| depthwise::depthwise(xs, taps, None, geometry),
            |[xs, taps]| depthwise::plain(xs, taps, None, geometry),
        );
    }
}

#[test]
fn activations_agree_and_have_gradients() {
    let mut rng = Rng::new(6);
    let functions = [
        Unary::Exp,
        Unary::Sin,
        Unary::Sigmoid,
        Unary::Tanh,
        Unary::Silu,
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::Elu { alpha: 1.0 },
        Unary::Elu { alpha: 0.7 },
        Unary::LeakyRelu { slope: 0.2 },
        Unary::Relu,
        Unary::SignedRoot { floor: 0.3 },
        Unary::SignedSquare { floor: 0.3 },
    ];
    for function in functions {
        let xs = (rng.tensor(&[2, 7, 3]) * 3.0).unwrap();
        check_op(
            &mut rng,
            [xs],
            |[xs]| elementwise::unary(xs, function),
            |[xs]| elementwise::unary_plain(xs, function),
        );
    }
}

#[test]
fn sums_agree_and_have_gradients() {
    let mut rng = Rng::new(9);
    let (xs, ys, factors) = (rng.tensor(&[2, 5, 3]), rng.tensor(&[2, 5, 3]), rng.tensor(&[1, 5, 1]));
    check_op(&mut rng, [xs.clone(), ys.clone()], |[xs, ys]| combine::add(xs, ys), |[xs, ys]| Ok((xs + ys)?));
    check_op(
        &mut rng,
        [xs, ys],
        |[xs, ys]| combine::add_scaled_steps(xs, ys, &factors),
        |[xs, ys]| Ok((ys.broadcast_mul(&factors.to_dtype(ys.dtype())?)? + xs)?),
    );
}

#[test]
fn snake_agrees_and_has_gradients() {
    let mut rng = Rng::new(7);
    let xs = (rng.tensor(&[2, 6, 4]) * 3.0).unwrap();
    let alpha = (rng.tensor(&[4]) + 1.5).unwrap();
    check_op(
        &mut rng,
        [xs, alpha],
        |[xs, alpha]| elementwise::snake(xs, alpha),
        |[xs, alpha]| elementwise::snake_plain(xs, alpha),
    );
}

#[test]
fn snake_with_two_weights_agrees_and_has_gradients() {
    let mut rng = Rng::new(17);
    let xs = (rng.tensor(&[2, 6, 4]) * 3.0).unwrap();
    let weights = [rng.tensor(&[4]), rng.tensor(&[4])].map(|weight| (weight + 1.5).unwrap());
    let [alpha, beta] = weights;
    check_op(
        &mut rng,
        [xs, alpha, beta],
        |[xs, alpha, beta]| elementwise::snake_beta(xs, alpha, beta),
        |[xs, alpha, beta]| elementwise::snake_beta_plain(xs, alpha, beta),
    );
}

#[test]
fn norms_agree_and_have_gradients() {
    let mut rng = Rng::new(8);
    let xs = (rng.tensor(&[2, 5, 6]) + 0.3).unwrap();
    let (gamma, beta) = (rng.tensor(&[6]), rng.tensor(&[6]));
    let all = [xs.clone(), gamma.clone(), beta];
    check_op(
        &mut rng,
        all.clone(),
        |[xs, gamma, beta]| norm::layer_norm(xs, gamma, Some(beta), 1e-5),
        |[xs, gamma, beta]| norm::layer_norm_plain(xs, gamma, Some(beta), 1e-5),
    );
    check_op(
        &mut rng,
        [xs.clone(), gamma.clone()],
        |[xs, gamma]| norm::layer_norm(xs, gamma, None, 1e-5),
        |[xs, gamma]| norm::layer_norm_plain(xs, gamma, None, 1e-5),
    );
    check_op(
        &mut rng,
        [xs, gamma],
        |[xs, gamma]| norm::rms_norm(xs, gamma, 1e-5),
        |[xs, gamma]| norm::rms_norm_plain(xs, gamma, 1e-5),
    );
    for n_groups in [1, 2, 6] {
        check_op(
            &mut rng,
            all.clone(),
            |[xs, gamma, beta]| norm::group_norm(xs, n_groups, gamma, beta, 1e-5),
            |[xs, gamma, beta]| norm::group_norm_plain(xs, n_groups, gamma, beta, 1e-5),
        );
    }
}

#[test]
fn lstm_agrees_and_has_gradients() {
    let mut rng = Rng::new(9);
    let (hidden, n_steps) = (3, 4);
    let gates = (rng.tensor(&[2, n_steps, 4 * hidden]) * 2.0).unwrap();
    let weight = rng.tensor(&[4 * hidden, hidden]);
    let state = rng.tensor(&[2, 2, hidden]);
    // The outputs and the next state are both results, and both must carry gradients.
    let joined = |(outputs, next): (Tensor, Tensor)| Tensor::cat(&[&outputs, &next], 1);
    check_op(
        &mut rng,
        [gates, weight, state],
        |[gates, weight, state]| Ok(joined(lstm::lstm(gates, &Recurrent::new(weight)?, state)?)?),
        |[gates, weight, state]| {
            let all = lstm::plain(gates, &weight.t()?.contiguous()?, state)?;
            let next = all.narrow(1, n_steps - 1, 2)?;
            Ok(joined((all.narrow(1, 0, n_steps)?, next))?)
        },
    );
}

#[test]
fn attention_agrees_and_has_gradients() {
    let mut rng = Rng::new(11);
    let all = [
        Sight::Clip,
        Sight::Past { context: None },
        Sight::Past { context: Some(3) },
        Sight::Past { context: Some(1) },
    ];
    for (n_heads, n_kv_heads) in [(1, 1), (2, 2), (4, 2)] {
        let heads = Heads { n_heads, n_kv_heads, dim: 6 };
        // As many queries as keys, and queries with a past.
        for (n_queries, n_keys) in [(5, 5), (2, 7)] {
            for sight in all {
                // With one key there is no choice, so queries and keys have no influence.
                if sight == (Sight::Past { context: Some(1) }) {
                    let v = rng.tensor(&[2, n_keys, n_kv_heads * 6]);
                    let (q, k) = (rng.tensor(&[2, n_queries, n_heads * 6]), rng.tensor(v.dims()));
                    check_op(
                        &mut rng,
                        [v],
                        |[v]| attention::attention([&q, &k, v], heads, sight),
                        |[v]| {
                            let (q, k) = (q.to_dtype(v.dtype())?, k.to_dtype(v.dtype())?);
                            attention::plain([&q, &k, v], heads, sight)
                        },
                    );
                    continue;
                }
                let q = (rng.tensor(&[2, n_queries, n_heads * 6]) * 2.0).unwrap();
                let k = (rng.tensor(&[2, n_keys, n_kv_heads * 6]) * 2.0).unwrap();
                let v = rng.tensor(&[2, n_keys, n_kv_heads * 6]);
                check_op(
                    &mut rng,
                    [q, k, v],
                    |qkv| attention::attention(qkv, heads, sight),
                    |qkv| attention::plain(qkv, heads, sight),
                );
            }
        }
    }
}

#[test]
fn a_past_in_buffers_or_tensors_gives_the_bits_of_the_whole() {
    let mut rng = Rng::new(12);
    let heads = Heads { n_heads: 4, n_kv_heads: 2, dim: 6 };
    for context in [None, Some(1), Some(3), Some(8)] {
        let sight = Sight::Past { context };
        let (n_steps, batch) = (40, 2);
        let q = rng.tensor(&[batch, n_steps, 24]);
        let (k, v) = (rng.tensor(&[batch, n_steps, 12]), rng.tensor(&[batch, n_steps, 12]));
        let whole = attention::attention([&q, &k, &v], heads, sight).unwrap();
        let mut past = Past::default();
        let mut start = 0;
        while start < n_steps {
            let n = 1 + rng.below(6).min(n_steps - start - 1);
            let piece = |xs: &Tensor| xs.narrow(1, start, n).unwrap();
            // A step that tracks a gradient goes on where the buffers stop.
            let q = Var::from_tensor(&piece(&q)).unwrap();
            let q = if start > 25 { q.as_tensor().clone() } else { q.as_detached_tensor() };
            let ys = attention::attend([&q, &piece(&k), &piece(&v)], &mut past, heads, sight).unwrap();
            assert_eq!(bits(&ys), bits(&whole.narrow(1, start, n).unwrap()), "{context:?}, step {start}");
            start += n;
        }
        assert!(matches!(past, Past::Tensors(_)) || context == Some(1));
        let other = rng.tensor(&[batch + 1, 1, 12]);
        let q = rng.tensor(&[batch + 1, 1, 24]);
        let mut past = Past::default();
        attention::attend([&q, &other, &other], &mut past, heads, sight).unwrap();
        let fewer = |xs: &Tensor| xs.narrow(0, 0, batch).unwrap();
        let error = attention::attend([&fewer(&q), &fewer(&other), &fewer(&other)], &mut past, heads, sight);
        assert!(matches!(error, Err(Error::Shape { .. })));
    }
}

#[test]
fn a_long_past_keeps_little() {
    let mut rng = Rng::new(13);
    let (heads, sight) = (Heads::one(2), Sight::Past { context: Some(10) });
    let xs = rng.tensor(&[1, 3, 2]);
    let mut past = Past::default();
    for _ in 0..1000 {
        attention::attend([&xs, &xs, &xs], &mut past, heads, sight).unwrap();
    }
    let Past::Buffers(items) = past else { panic!("{past:?}") };
    assert!(items.iter().flatten().all(|rows| rows.capacity() < 2 * 2 * 2 * 10), "{items:?}");
}

#[test]
fn rotation_agrees_and_has_gradients() {
    let mut rng = Rng::new(14);
    for (dim, n_heads, position) in [(2, 1, 0), (6, 3, 5), (8, 2, 270_000)] {
        let rotary = Rotary::new(dim, 10_000.0).unwrap();
        let n_steps = 4;
        let mut table = vec![0.0; n_steps * dim];
        rotary.fill(position, &mut table).unwrap();
        let turn = rotary::Turn { table: table.into(), dim, n_heads };
        let xs = rng.tensor(&[2, n_steps, n_heads * dim]);
        let rotated = |xs: &Tensor| rotary::rotate(xs, &rotary, n_heads, position);
        check_op(&mut rng, [xs], |[xs]| rotated(xs), |[xs]| turn.plain(xs));
    }
}

#[test]
fn the_plain_conv_trains_through_candle() {
    // On CUDA and Metal candle differentiates the plain path; here it must give what the kernel path gives.
    let mut rng = Rng::new(10);
    let geometry = Geometry { kernel: 4, stride: 2, dilation: 1 };
    let (xs, rows) = (
        Var::from_tensor(&rng.tensor(&[2, 9, 3])).unwrap(),
        Var::from_tensor(&rng.tensor(&[12, 5])).unwrap(),
    );
    let kernel = conv::conv(&xs, &rows, None, geometry).unwrap().sqr().unwrap().sum_all().unwrap();
    let plain = conv::plain(&xs, &rows, None, geometry).unwrap().sqr().unwrap().sum_all().unwrap();
    let (kernel, plain) = (kernel.backward().unwrap(), plain.backward().unwrap());
    for var in [&xs, &rows] {
        let (got, want) = (kernel.get(var).unwrap(), plain.get(var).unwrap());
        assert_close("gradient", &values(got), &values(want), 1e-5);
    }
}

#[test]
fn the_cpu_takes_f32_only() {
    let xs = Tensor::zeros((1, 4, 2), DType::F64, &Device::Cpu).unwrap();
    let error = elementwise::unary(&xs, Unary::Exp).unwrap_err();
    assert!(matches!(error, Error::Unsupported { ref value, .. } if value == "f64"), "{error}");
}

#[test]
fn weight_norm_agrees_and_has_gradients() {
    let mut rng = Rng::new(11);
    let (direction, gain) = (rng.tensor(&[4, 3, 5]), (rng.tensor(&[4, 1, 1]) + 1.5).unwrap());
    check_op(
        &mut rng,
        [direction, gain],
        |[direction, gain]| weight_norm::weight_norm(direction, gain),
        |[direction, gain]| weight_norm::plain(direction, gain),
    );
}
