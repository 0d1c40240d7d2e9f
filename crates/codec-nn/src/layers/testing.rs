//! What every layer must keep, whatever it computes.

use super::{Chunk, Layer, Steps};
use crate::ops::testing::{Rng, assert_close, bits, values};
use candle_core::{Device, Tensor, Var};
use codec_kernels::Memory;

/// Largest difference between a gradient and a central difference of a loss computed in `f32`, relative to
/// the largest gradient: rounding of 1e-7 over a step of 1e-2, and the cubic term of the step.
const GRADIENT_TOLERANCE: f64 = 4e-3;

/// Half the distance of the central differences.
const STEP: f64 = 1e-2;

/// What a stream is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tensors,
    Floats,
}

impl Kind {
    fn steps(self, xs: &Tensor) -> Steps {
        match self {
            Self::Tensors => xs.clone().into(),
            Self::Floats => Steps::floats_of(xs),
        }
    }
}

/// Runs a stream that is cut at random, with chunks of zero steps among the others.
pub(super) fn run_chunked<L: Layer>(
    layer: &L,
    state: &mut L::State,
    xs: &Tensor,
    kind: Kind,
    rng: &mut Rng,
) -> Option<Tensor> {
    let n_steps = xs.dim(1).unwrap();
    let (mut start, mut outputs) = (0, Vec::new());
    while start < n_steps {
        let n = rng.below(7).min(n_steps - start);
        let end = start + n == n_steps && rng.below(2) == 0;
        // Zero steps come in both spellings.
        let given = || kind.steps(&xs.narrow(1, start, n).unwrap());
        let steps = if n == 0 && rng.below(2) == 0 { None } else { Some(given()) };
        let chunk = layer.step(state, Chunk { steps, end }).unwrap();
        assert_eq!(chunk.end, end, "the end mark is passed on");
        outputs.extend(chunk.into_tensor().unwrap());
        start += n;
        if end {
            return concat(&outputs);
        }
    }
    outputs.extend(layer.step(state, Chunk::end()).unwrap().into_tensor().unwrap());
    concat(&outputs)
}

fn concat(outputs: &[Tensor]) -> Option<Tensor> {
    assert!(outputs.iter().all(|ys| ys.elem_count() > 0), "no steps are said as `None`");
    (!outputs.is_empty()).then(|| Tensor::cat(outputs, 1).unwrap())
}

/// Any chunking, any state that was used before, any batch and any number of threads: the same bits.
#[track_caller]
pub(super) fn assert_streams<L: Layer>(layer: &L, xs: &Tensor, rng: &mut Rng) {
    let whole = layer.forward(xs).unwrap();
    let mut state = layer.init();
    for run in 0..2 {
        let chunked = run_chunked(layer, &mut state, xs, Kind::Tensors, rng);
        assert_same(&format!("chunked, run {run} of one state"), chunked.as_ref(), whole.as_ref());
    }
    assert_streams_floats("floats", layer, xs, whole.as_ref(), rng);
    assert_answers(layer, xs);
    for item_idx in 0..xs.dim(0).unwrap() {
        let xs = xs.narrow(0, item_idx, 1).unwrap();
        let item = layer.forward(&xs).unwrap();
        let want = whole.as_ref().map(|ys| ys.narrow(0, item_idx, 1).unwrap());
        assert_same(&format!("item {item_idx} alone"), item.as_ref(), want.as_ref());
        // What is joined in place has one item.
        assert_streams_floats(&format!("floats of item {item_idx}"), layer, &xs, want.as_ref(), rng);
    }
}

/// The same bits on floats, whole and cut, whatever was in their memory before.
#[track_caller]
fn assert_streams_floats<L: Layer>(what: &str, layer: &L, xs: &Tensor, want: Option<&Tensor>, rng: &mut Rng) {
    spoil_memory();
    let mut state = layer.init();
    let steps = layer.step(&mut state, Chunk::last(Kind::Floats.steps(xs))).unwrap().into_tensor().unwrap();
    assert_same(what, steps.as_ref(), want);
    for run in 0..2 {
        let chunked = run_chunked(layer, &mut state, xs, Kind::Floats, rng);
        assert_same(&format!("{what} chunked, run {run} of one state"), chunked.as_ref(), want);
    }
}

/// Fills what this thread has for small results with numbers that spoil each sum they get into.
fn spoil_memory() {
    let sizes = (6..17).flat_map(|power| (4..8).map(move |quarters| quarters << (power - 2)));
    let mut memory: Vec<_> = sizes.flat_map(|size| [Memory::new(size), Memory::new(size)]).collect();
    memory.iter_mut().filter_map(Memory::values_mut).for_each(|values| values.fill(f32::NAN));
}

/// Every output comes as soon as the input comes that [`Layer::last_input`] names.
#[track_caller]
fn assert_answers<L: Layer>(layer: &L, xs: &Tensor) {
    let (mut state, mut n_outputs) = (layer.init(), 0);
    for input_idx in 0..xs.dim(1).unwrap() as u64 {
        let steps = xs.narrow(1, input_idx as usize, 1).unwrap();
        let outputs = layer.step(&mut state, Chunk::next(steps)).unwrap().steps;
        let n_new = outputs.map_or(0, |ys| ys.n_steps().unwrap() as u64);
        for output_idx in n_outputs..n_outputs + n_new {
            assert_eq!(layer.last_input(output_idx), Some(input_idx), "output {output_idx}");
        }
        n_outputs += n_new;
    }
}

/// Fails at the first value whose bits differ.
#[track_caller]
fn assert_same(what: &str, got: Option<&Tensor>, want: Option<&Tensor>) {
    assert_eq!(got.map(Tensor::dims), want.map(Tensor::dims), "{what}");
    let (Some(got), Some(want)) = (got, want) else { return };
    if let Some(at) = bits(got).iter().zip(bits(want)).position(|(x, y)| *x != y) {
        panic!("{what}: at {at} {} instead of {}", values(got)[at], values(want)[at]);
    }
}

/// One, two and three threads give the same bits.
#[track_caller]
pub(super) fn assert_threads_agree<L: Layer>(layer: &L, xs: &Tensor) {
    let run = |n_threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        pool.install(|| bits(&layer.forward(xs).unwrap().unwrap()))
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3), "the number of threads changes bits");
}

/// The gradients of the input and every weight agree with central differences, whole and chunked, and the
/// input has one also when the weights are frozen.
#[track_caller]
pub(super) fn assert_trains<L: Layer>(
    rng: &mut Rng,
    xs: Tensor,
    weights: &[Tensor],
    build: impl Fn(&[Tensor]) -> L,
) {
    let tensors: Vec<Tensor> = [xs].into_iter().chain(weights.iter().cloned()).collect();
    let vars: Vec<Var> = tensors.iter().map(|tensor| Var::from_tensor(tensor).unwrap()).collect();
    let live: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();

    let layer = build(&live[1..]);
    let ys = layer.forward(&live[0]).unwrap().unwrap();
    let mask = rng.tensor(ys.dims());
    let backward = |ys: Tensor| (ys * &mask).unwrap().sum_all().unwrap().backward().unwrap();
    let whole = backward(ys);
    let chunked = backward(run_chunked(&layer, &mut layer.init(), &live[0], Kind::Tensors, rng).unwrap());
    let frozen = backward(build(&tensors[1..]).forward(&live[0]).unwrap().unwrap());

    let loss = |tensors: &[Tensor]| -> f64 {
        let ys = build(&tensors[1..]).forward(&tensors[0]).unwrap().unwrap();
        assert!(!ys.track_op(), "a graph was built where nothing tracks a gradient");
        values(&ys).iter().zip(values(&mask)).map(|(y, m)| y * m).sum()
    };
    for (tensor_idx, tensor) in tensors.iter().enumerate() {
        let got = |grads: &candle_core::backprop::GradStore| values(grads.get(&vars[tensor_idx]).unwrap());
        let want: Vec<f64> = (0..tensor.elem_count())
            .map(|value_idx| {
                let moved_by = |step: f64| {
                    let mut moved = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    moved[value_idx] += step as f32;
                    let mut tensors = tensors.clone();
                    tensors[tensor_idx] = Tensor::from_vec(moved, tensor.dims(), &Device::Cpu).unwrap();
                    loss(&tensors)
                };
                (moved_by(STEP) - moved_by(-STEP)) / (2.0 * STEP)
            })
            .collect();
        assert!(want.iter().any(|x| x.abs() > 1e-2), "tensor {tensor_idx} has no influence");
        assert_close(&format!("gradient {tensor_idx}"), &got(&whole), &want, GRADIENT_TOLERANCE);
        assert_close(&format!("gradient {tensor_idx}, chunked"), &got(&chunked), &want, GRADIENT_TOLERANCE);
        if tensor_idx == 0 {
            assert_close("gradient of the input, frozen", &got(&frozen), &want, GRADIENT_TOLERANCE);
        }
    }
}
