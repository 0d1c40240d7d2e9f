//! Transposed convolution: `stride` steps out for each step in.

use super::{Chunk, Flow, Layer, Steps, Work};
use crate::ops::{Filter, Form, Geometry};
use crate::{Error, Result};
use candle_core::Tensor;

/// Transposed convolution with `kernel >= stride`.
///
/// A row of `stride` outputs is reached by `ceil(kernel / stride)` neighbouring inputs, so the layer is an
/// ordinary product over overlapping rows of input; nothing is summed twice and every output is one chain,
/// oldest input first, wherever the stream is cut.
#[derive(Debug)]
pub struct ConvTranspose1d {
    filter: Filter,
    kernel: usize,
    stride: usize,
    n_neighbours: usize,
    trim_left: usize,
    trim_right: usize,
}

impl ConvTranspose1d {
    /// Takes a weight `[c_in, c_out, kernel]` and a bias `[c_out]`, as `torch.nn.ConvTranspose1d` has them.
    ///
    /// The first `trim_left` and the last `trim_right` outputs of the full length,
    /// `(n_in - 1) * stride + kernel`, are dropped.
    ///
    /// # Errors
    /// [`Error::Shape`] when weight and bias do not fit, [`Error::Unsupported`] for a kernel shorter than
    /// its stride, [`Error::Config`] for a trim that the kernel does not leave room for.
    pub fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        trim_left: usize,
        trim_right: usize,
    ) -> Result<Self> {
        Self::of_form(Form::Transposed { stride }, weight, bias, stride, [trim_left, trim_right])
    }

    /// As [`ConvTranspose1d::new`] with one group per channel: takes a weight `[channels, 1, kernel]`.
    ///
    /// # Errors
    /// As [`ConvTranspose1d::new`].
    pub fn depthwise(
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        trim_left: usize,
        trim_right: usize,
    ) -> Result<Self> {
        Self::of_form(Form::TransposedDepthwise { stride }, weight, bias, stride, [trim_left, trim_right])
    }

    fn of_form(
        form: Form,
        weight: &Tensor,
        bias: Option<&Tensor>,
        stride: usize,
        [trim_left, trim_right]: [usize; 2],
    ) -> Result<Self> {
        let (_, _, kernel) = weight.dims3()?;
        if stride == 0 || kernel < stride {
            let value = format!("kernel {kernel}, stride {stride}");
            return Err(Error::Unsupported { what: "transposed convolution", value });
        }
        if trim_right > kernel - stride || trim_left >= kernel - trim_right {
            let why = format!("{trim_left} and {trim_right} do not fit kernel {kernel} with stride {stride}");
            return Err(Error::Config { field: "trim", why });
        }
        let n_neighbours = kernel.div_ceil(stride);
        let geometry = Geometry { kernel: n_neighbours, stride: 1, dilation: 1 };
        let filter = Filter::new(form, geometry, weight, bias)?;
        Ok(Self { filter, kernel, stride, n_neighbours, trim_left, trim_right })
    }

    /// Takes `kernel - stride` outputs off, `trim_right` of them at the right: EnCodec's rule, where a causal
    /// model takes all at the right.
    ///
    /// # Errors
    /// As [`ConvTranspose1d::new`].
    ///
    /// # Source
    /// facebookresearch/encodec, encodec/modules/conv.py, `SConvTranspose1d` with `trim_right_ratio` 1.
    pub fn same(weight: &Tensor, bias: Option<&Tensor>, stride: usize, causal: bool) -> Result<Self> {
        let total = weight.dim(2)?.saturating_sub(stride);
        let trim_right = if causal { total } else { total / 2 };
        Self::new(weight, bias, stride, total - trim_right, trim_right)
    }
}

/// The state of [`ConvTranspose1d`].
#[derive(Debug, Default)]
pub struct ConvTransposeState {
    /// The last `n_neighbours - 1` inputs; zeros before the first.
    past: Option<Steps>,
    n_trimmed: usize,
}

impl Layer for ConvTranspose1d {
    type State = ConvTransposeState;

    fn init(&self) -> ConvTransposeState {
        ConvTransposeState::default()
    }

    fn step(&self, state: &mut ConvTransposeState, chunk: Chunk) -> Result<Chunk> {
        let Chunk { steps, end } = chunk.normalized();
        let n_past = self.n_neighbours - 1;
        let past = match (state.past.take(), &steps) {
            (None, Some(first)) if n_past > 0 => Some(first.zeros(n_past)?),
            (past, _) => past,
        };
        let like = past.as_ref().filter(|_| end && n_past > 0);
        // The last inputs reach beyond themselves.
        let beyond = like.map(|like| like.zeros(n_past)).transpose()?;
        let mut outputs = None;
        if let Some(rows) = Steps::join(&mut [past, steps, beyond])? {
            let n_in = rows.n_steps()?;
            if n_past > 0 {
                state.past = Some(rows.keep(n_in - n_past, n_past)?);
            }
            if n_in > n_past {
                outputs = self.outputs(rows, state, end)?;
            }
        }
        if end {
            *state = self.init();
        }
        Ok(Chunk { steps: outputs, end })
    }

    fn last_input(&self, output_idx: u64) -> Option<u64> {
        Some(output_idx.saturating_add(self.trim_left as u64) / self.stride as u64)
    }

    fn list_work<'a>(&'a self, input: Flow, list: &mut Vec<Work<'a>>) -> Flow {
        let name = format!("transposed {} k{} s{}", self.filter.name(), self.kernel, self.stride);
        // A row of the product is `stride` steps.
        let mut work = Work::of(self, name, input).with_product(self.filter.n_weights());
        work = work.giving(self.stride as f64, self.filter.c_out());
        let output = work.output;
        list.push(work);
        output
    }
}

impl ConvTranspose1d {
    fn outputs(&self, rows: Steps, state: &mut ConvTransposeState, end: bool) -> Result<Option<Steps>> {
        let ys = self.filter.apply(rows)?;
        let (batch, n_rows, columns) = ys.dims3()?;
        let n_full = n_rows * self.stride;
        let ys = ys.reshaped((batch, n_full, columns / self.stride))?;
        // The rows run on to whole strides; the taps end at `kernel`.
        let excess = self.n_neighbours * self.stride - self.kernel;
        let right = if end { excess + self.trim_right } else { 0 };
        let left = (self.trim_left - state.n_trimmed).min(n_full);
        state.n_trimmed += left;
        let n_out = n_full.saturating_sub(left + right);
        Ok(if n_out > 0 { Some(ys.narrow(left, n_out)?) } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_streams, assert_threads_agree, assert_trains};
    use super::*;
    use crate::ops::testing::{Rng, values};
    use proptest::prelude::*;

    /// One item `[time, c_in]`: every input adds its taps to the outputs that it reaches.
    fn reference(
        xs: &[f64],
        weight: &Tensor,
        bias: &[f64],
        stride: usize,
        left: usize,
        right: usize,
    ) -> Vec<f64> {
        let (c_in, c_out, kernel) = weight.dims3().unwrap();
        let (w, n) = (values(weight), xs.len() / c_in);
        let n_full = (n - 1) * stride + kernel;
        let mut ys: Vec<f64> = (0..n_full).flat_map(|_| bias.iter().copied()).collect();
        for t in 0..n {
            for i in 0..c_in {
                for o in 0..c_out {
                    for j in 0..kernel {
                        ys[(t * stride + j) * c_out + o] +=
                            xs[t * c_in + i] * w[(i * c_out + o) * kernel + j];
                    }
                }
            }
        }
        ys[left * c_out..(n_full - right) * c_out].to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn matches_the_reference_and_streams(
            stride in 1usize..6,
            overlap in 0usize..9,
            (left, right) in any::<(prop::sample::Index, prop::sample::Index)>(),
            n_steps in 1usize..30,
            (c_in, c_out) in (1usize..4, 1usize..4),
            seed in any::<u64>(),
        ) {
            let mut rng = Rng::new(seed);
            let kernel = stride + overlap;
            let right = right.index(overlap + 1);
            let left = left.index(kernel - right);
            let (weight, bias) = (rng.integers(&[c_in, c_out, kernel]), rng.integers(&[c_out]));
            let xs = rng.integers(&[3, n_steps, c_in]);
            let layer = ConvTranspose1d::new(&weight, Some(&bias), stride, left, right).unwrap();
            let all = values(&xs);
            let items = all.chunks_exact(n_steps * c_in);
            let want: Vec<f64> =
                items.flat_map(|item| reference(item, &weight, &values(&bias), stride, left, right)).collect();
            prop_assert_eq!(values(&layer.forward(&xs).unwrap().unwrap()), want);

            let (weight, bias) = (rng.tensor(weight.dims()), rng.tensor(bias.dims()));
            let layer = ConvTranspose1d::new(&weight, Some(&bias), stride, left, right).unwrap();
            assert_streams(&layer, &rng.tensor(xs.dims()), &mut rng);
        }

        #[test]
        fn depthwise_is_a_diagonal_weight(
            stride in 1usize..6,
            overlap in 0usize..9,
            n_steps in 1usize..30,
            channels in 1usize..20,
            seed in any::<u64>(),
        ) {
            let mut rng = Rng::new(seed);
            let kernel = stride + overlap;
            let (weight, bias) = (rng.integers(&[channels, 1, kernel]), rng.integers(&[channels]));
            let xs = rng.integers(&[2, n_steps, channels]);
            let mut diagonal = vec![0.0; channels * channels * kernel];
            for (i, taps) in values(&weight).chunks_exact(kernel).enumerate() {
                diagonal[i * (channels + 1) * kernel..][..kernel].copy_from_slice(taps);
            }
            let diagonal = Tensor::from_vec(diagonal, (channels, channels, kernel), xs.device()).unwrap();
            let all = values(&xs);
            let want: Vec<f64> = all
                .chunks_exact(n_steps * channels)
                .flat_map(|item| reference(item, &diagonal, &values(&bias), stride, 0, overlap))
                .collect();
            let layer = ConvTranspose1d::depthwise(&weight, Some(&bias), stride, 0, overlap).unwrap();
            prop_assert_eq!(values(&layer.forward(&xs).unwrap().unwrap()), want);
            assert_streams(&layer, &rng.tensor(xs.dims()), &mut rng);
        }
    }

    #[test]
    fn an_empty_stream_gives_nothing() {
        let layer = ConvTranspose1d::same(&Rng::new(1).tensor(&[2, 3, 8]), None, 4, true).unwrap();
        let mut state = layer.init();
        assert!(layer.step(&mut state, Chunk { steps: None, end: false }).unwrap().steps.is_none());
        assert!(layer.step(&mut state, Chunk::end()).unwrap().steps.is_none());
    }

    #[test]
    fn same_gives_stride_steps_per_step() {
        let mut rng = Rng::new(2);
        for (kernel, stride, causal) in
            [(8, 4, true), (8, 4, false), (10, 5, true), (10, 5, false), (7, 3, false)]
        {
            let layer = ConvTranspose1d::same(&rng.tensor(&[2, 3, kernel]), None, stride, causal).unwrap();
            let ys = layer.forward(&rng.tensor(&[1, 7, 2])).unwrap().unwrap();
            assert_eq!(ys.dims(), [1, 7 * stride, 3], "kernel {kernel}, stride {stride}, causal {causal}");
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let mut rng = Rng::new(3);
        let layer =
            ConvTranspose1d::same(&rng.tensor(&[96, 48, 16]), Some(&rng.tensor(&[48])), 8, true).unwrap();
        assert_threads_agree(&layer, &rng.tensor(&[2, 150, 96]));
    }

    #[test]
    fn trains() {
        let mut rng = Rng::new(4);
        for (kernel, stride, left, right) in [(4, 2, 0, 2), (5, 2, 1, 2), (3, 3, 1, 0), (4, 1, 0, 3)] {
            let weights = [rng.tensor(&[3, 2, kernel]), rng.tensor(&[2])];
            let xs = rng.tensor(&[2, 6, 3]);
            assert_trains(&mut rng, xs, &weights, |weights| {
                ConvTranspose1d::new(&weights[0], Some(&weights[1]), stride, left, right).unwrap()
            });
            let weights = [rng.tensor(&[3, 1, kernel]), rng.tensor(&[3])];
            let xs = rng.tensor(&[2, 6, 3]);
            assert_trains(&mut rng, xs, &weights, |weights| {
                ConvTranspose1d::depthwise(&weights[0], Some(&weights[1]), stride, left, right).unwrap()
            });
        }
    }

    #[test]
    fn refuses_what_it_cannot_do() {
        let weight = Rng::new(5).tensor(&[2, 3, 4]);
        let build =
            |stride, left, right| ConvTranspose1d::new(&weight, None, stride, left, right).unwrap_err();
        assert!(matches!(build(5, 0, 0), Error::Unsupported { .. }));
        assert!(matches!(build(0, 0, 0), Error::Unsupported { .. }));
        assert!(matches!(build(2, 0, 3), Error::Config { field: "trim", .. }));
        assert!(matches!(build(2, 3, 1), Error::Config { field: "trim", .. }));
        let error = ConvTranspose1d::depthwise(&weight, None, 2, 0, 2).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
}
