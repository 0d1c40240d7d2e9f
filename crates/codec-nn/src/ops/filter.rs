//! The weight of a convolution in the form that its operation wants.

use super::conv::{Geometry, Packed, conv, conv_fixed, conv_floats};
use super::depthwise::{depthwise, depthwise_floats};
use super::floats::Floats;
use super::{Steps, expect_shape, linear, loading, on_kernels, on_values};
use crate::{Error, Result};
use candle_core::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// How a weight of a checkpoint becomes the right matrix of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `[c_out, c_in, kernel]` to `[kernel * c_in, c_out]`.
    Conv,
    /// `[channels, 1, kernel]` to `[kernel, channels]`.
    Depthwise,
    /// `[c_in, c_out, kernel]` to `[n_neighbours * c_in, stride * c_out]`: a row of output is `stride`
    /// steps, made from the `n_neighbours` steps of input that reach them, oldest first.
    Transposed {
        /// Steps of output per step of input.
        stride: usize,
    },
    /// `[channels, 1, kernel]` to `[n_neighbours, stride * channels]`: as `Transposed`, each channel by itself.
    TransposedDepthwise {
        /// Steps of output per step of input.
        stride: usize,
    },
    /// `[c_out, c_in]` to `[c_in, c_out]`.
    Matrix,
}

impl Form {
    fn rows(self, weight: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Conv => {
                let (c_out, c_in, kernel) = weight.dims3()?;
                weight.permute((2, 1, 0))?.contiguous()?.reshape((kernel * c_in, c_out))?
            }
            Self::Depthwise => weight.squeeze(1)?.t()?.contiguous()?,
            Self::Transposed { stride } => {
                let (c_in, c_out, kernel) = weight.dims3()?;
                let taps = oldest_first(weight, stride)?.permute((2, 0, 3, 1))?.contiguous()?;
                taps.reshape((kernel.div_ceil(stride) * c_in, stride * c_out))?
            }
            Self::TransposedDepthwise { stride } => {
                let (channels, _, kernel) = weight.dims3()?;
                let taps = oldest_first(weight, stride)?.permute((2, 1, 3, 0))?.contiguous()?;
                taps.reshape((kernel.div_ceil(stride), stride * channels))?
            }
            Self::Matrix => weight.t()?.contiguous()?,
        })
    }

    /// The values of [`Form::rows`] for a weight on the CPU, in one pass over it.
    pub(super) fn values(self, weight: &Tensor) -> Result<Vec<f32>> {
        on_values(&weight.contiguous()?, |values| match (self, weight.dims()) {
            (Self::Conv, &[c_out, c_in, kernel]) => Ok(turned(values, [c_out, c_in, kernel])),
            (Self::Matrix, &[c_out, c_in]) => Ok(turned(values, [c_out, c_in, 1])),
            (Self::Transposed { stride }, &[c_in, c_out, kernel]) => {
                Ok(by_age(values, [c_in, c_out, kernel], stride))
            }
            (_, dims) => {
                let (name, expected) = ("weight".to_owned(), vec![0, 0, 0]);
                Err(Error::Shape { name, expected, actual: dims.to_vec() })
            }
        })
    }

    fn is_depthwise(self) -> bool {
        matches!(self, Self::Depthwise | Self::TransposedDepthwise { .. })
    }

    fn bias(self, bias: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Transposed { stride } | Self::TransposedDepthwise { stride } => bias.repeat(stride)?,
            Self::Conv | Self::Depthwise | Self::Matrix => bias.clone(),
        })
    }
}

/// Splits the taps of a transposed convolution by the age of the input that they meet, the oldest first:
/// `[c_in, c_out, kernel]` to `[c_in, c_out, n_neighbours, stride]`.
fn oldest_first(weight: &Tensor, stride: usize) -> Result<Tensor> {
    let (c_in, c_out, kernel) = weight.dims3()?;
    let n_neighbours = kernel.div_ceil(stride);
    let taps = weight.pad_with_zeros(2, 0, n_neighbours * stride - kernel)?.contiguous()?;
    let taps = taps.reshape((c_in, c_out, n_neighbours, stride))?;
    // The newest neighbour meets the first taps.
    let ages = (0..n_neighbours).rev().map(|age| taps.narrow(2, age, 1));
    Ok(Tensor::cat(&ages.collect::<candle_core::Result<Vec<_>>>()?, 2)?)
}

/// `[columns, channels, taps]` to rows, `[taps, channels, columns]`.
fn turned(values: &[f32], [n_columns, n_channels, n_taps]: [usize; 3]) -> Vec<f32> {
    /// Neighbouring values of a column that are turned together: some lines of the cache, each read once.
    const WIDTH: usize = 32;
    /// Columns that are turned together. They often lie a power of two apart, so that the cache would keep few of
    /// them: they are copied side by side first.
    const STRETCH: usize = 64;
    let mut rows = vec![0.0; values.len()];
    if values.is_empty() {
        return rows;
    }
    let n_block = (WIDTH / n_taps).max(1);
    let mut blocks: Vec<Vec<&mut [f32]>> = Vec::new();
    blocks.resize_with(n_channels.div_ceil(n_block), Vec::new);
    for tap in rows.chunks_exact_mut(n_channels * n_columns) {
        blocks.iter_mut().zip(tap.chunks_mut(n_block * n_columns)).for_each(|(block, rows)| block.push(rows));
    }
    blocks.into_par_iter().enumerate().for_each(|(block_idx, mut taps)| {
        let first = block_idx * n_block * n_taps;
        let width = (n_block * n_taps).min(n_channels * n_taps - first);
        let mut tile = vec![0.0; STRETCH * width];
        for start in (0..n_columns).step_by(STRETCH) {
            let columns = values.chunks_exact(n_channels * n_taps).skip(start);
            for (to, column) in tile.chunks_exact_mut(width).zip(columns) {
                to.copy_from_slice(&column[first..][..width]);
            }
            for (tap_idx, rows) in taps.iter_mut().enumerate() {
                for (channel_idx, row) in rows.chunks_exact_mut(n_columns).enumerate() {
                    let place = channel_idx * n_taps + tap_idx;
                    let row = row[start..].iter_mut().zip(tile.chunks_exact(width));
                    row.for_each(|(to, column)| *to = column[place]);
                }
            }
        }
    });
    rows
}

/// `[c_in, c_out, kernel]` to rows by the age of the input, `[n_neighbours, c_in, stride, c_out]`, as
/// [`oldest_first`].
fn by_age(values: &[f32], [c_in, c_out, kernel]: [usize; 3], stride: usize) -> Vec<f32> {
    let n_neighbours = kernel.div_ceil(stride);
    let row_len = stride * c_out;
    let mut rows = vec![0.0; n_neighbours * c_in * row_len];
    if values.is_empty() {
        return rows;
    }
    // Of one channel of input: the rows of all ages.
    let mut inputs: Vec<Vec<&mut [f32]>> = Vec::new();
    inputs.resize_with(c_in, Vec::new);
    for age in rows.chunks_exact_mut(c_in * row_len) {
        inputs.iter_mut().zip(age.chunks_exact_mut(row_len)).for_each(|(input, row)| input.push(row));
    }
    inputs.into_par_iter().zip(values.par_chunks_exact(c_out * kernel)).for_each(|(rows, values)| {
        for (newest_first, row) in rows.into_iter().rev().enumerate() {
            // The newest meets the first taps. Taps beyond the kernel are zeros.
            for (tap, row) in (newest_first * stride..kernel).zip(row.chunks_exact_mut(c_out)) {
                let taps = values.chunks_exact(kernel);
                row.iter_mut().zip(taps).for_each(|(to, taps)| *to = taps[tap]);
            }
        }
    });
    rows
}

/// A weight and its bias: brought into form once when they are fixed, at each use while they train.
#[derive(Debug)]
pub(crate) struct Filter {
    form: Form,
    geometry: Geometry,
    c_in: usize,
    c_out: usize,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    /// In the layout of the checkpoint, because an optimizer may change them between two uses.
    Live { weight: Tensor, bias: Option<Tensor> },
    /// In row form.
    Rows { rows: Tensor, bias: Option<Tensor> },
    /// In row form, on the CPU; the tensor itself is let go.
    Packed { packed: Arc<Packed>, bias: Option<Arc<[f32]>> },
    /// Of a network that is not wanted.
    Absent,
}

impl Filter {
    /// Takes a weight in the layout of a checkpoint.
    pub(crate) fn new(
        form: Form,
        geometry: Geometry,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Self> {
        let (c_in, c_out) = match form {
            Form::Conv => weight.dims3().map(|(c_out, c_in, _)| (c_in, c_out))?,
            Form::Depthwise | Form::TransposedDepthwise { .. } => {
                let (channels, group_width, kernel) = weight.dims3()?;
                expect_shape("depthwise weight", weight, &[channels, group_width.min(1), kernel])?;
                (channels, channels)
            }
            Form::Transposed { .. } => weight.dims3().map(|(c_in, c_out, _)| (c_in, c_out))?,
            Form::Matrix => weight.dims2().map(|(c_out, c_in)| (c_in, c_out))?,
        };
        if let Some(bias) = bias {
            expect_shape("bias", bias, &[c_out])?;
        }
        let live = weight.track_op() || bias.is_some_and(Tensor::track_op);
        let weights = if live {
            Weights::Live { weight: weight.clone(), bias: bias.cloned() }
        } else if loading::is_unwanted() {
            Weights::Absent
        } else {
            let bias = bias.map(|bias| form.bias(bias)).transpose()?;
            if on_kernels(weight)? && !form.is_depthwise() {
                let stride = if let Form::Transposed { stride } = form { stride } else { 1 };
                let (rows, columns) = (form.values(weight)?, stride * c_out);
                let packed = Packed::in_precision(loading::precision(), &rows, columns, geometry)?;
                Weights::Packed {
                    packed: Arc::new(packed),
                    bias: bias.map(|bias| bias.to_vec1::<f32>()).transpose()?.map(Arc::from),
                }
            } else {
                Weights::Rows { rows: form.rows(weight)?, bias }
            }
        };
        Ok(Self { form, geometry, c_in, c_out, weights })
    }

    /// Channels of a step of output.
    pub(crate) fn c_out(&self) -> usize {
        self.c_out
    }

    /// Weights that a row of output is made with: `stride` steps of a transposed convolution.
    pub(crate) fn n_weights(&self) -> usize {
        let phases = match self.form {
            Form::Transposed { stride } | Form::TransposedDepthwise { stride } => stride,
            Form::Conv | Form::Depthwise | Form::Matrix => 1,
        };
        let c_in = if self.form.is_depthwise() { 1 } else { self.c_in };
        self.geometry.kernel * c_in * phases * self.c_out
    }

    /// What it maps to what.
    pub(crate) fn name(&self) -> String {
        let kind = if self.form.is_depthwise() { "depthwise " } else { "" };
        format!("{kind}{} to {}", self.c_in, self.c_out)
    }

    /// Convolves whole windows: `[batch, n_in, c_in]` to `[batch, n_out, columns]`.
    pub(crate) fn apply(&self, xs: Steps) -> Result<Steps> {
        xs.expect_channels("input", self.c_in)?;
        match (&self.weights, xs.floats()) {
            (Weights::Packed { packed, bias }, Some(xs)) => {
                Ok(conv_floats(xs, packed, bias.as_deref(), self.geometry)?.into())
            }
            (Weights::Rows { rows, bias }, Some(xs)) if self.form.is_depthwise() => {
                Ok(self.depthwise_floats(xs, rows, bias.as_ref())?.into())
            }
            _ => xs.map_tensor(|xs| self.apply_to_tensor(&xs)),
        }
    }

    /// The products of a depthwise form.
    fn depthwise_floats(&self, xs: &Floats, rows: &Tensor, bias: Option<&Tensor>) -> Result<Floats> {
        let repeated;
        let xs = match self.form {
            // Every phase of the output reads the same input.
            Form::TransposedDepthwise { stride } => {
                repeated = xs.repeated(stride)?;
                &repeated
            }
            _ => xs,
        };
        depthwise_floats(xs, rows, bias, self.geometry)
    }

    fn apply_to_tensor(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.weights {
            Weights::Absent => {
                Err(Error::Unsupported { what: "use of", value: "weights that were not loaded".into() })
            }
            Weights::Packed { packed, bias } => {
                on_kernels(xs)?;
                conv_fixed(xs, packed, bias, self.geometry)
            }
            Weights::Rows { rows, bias } => self.product(xs, rows, bias.as_ref()),
            Weights::Live { weight, bias } if self.form == Form::Matrix => linear(xs, weight, bias.as_ref()),
            Weights::Live { weight, bias } => {
                let bias = bias.as_ref().map(|bias| self.form.bias(bias)).transpose()?;
                self.product(xs, &self.form.rows(weight)?, bias.as_ref())
            }
        }
    }

    fn product(&self, xs: &Tensor, rows: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self.form {
            Form::Depthwise => depthwise(xs, rows, bias, self.geometry),
            // Every phase of the output reads the same input.
            Form::TransposedDepthwise { stride } => {
                depthwise(&xs.repeat((1, 1, stride))?, rows, bias, self.geometry)
            }
            Form::Conv | Form::Transposed { .. } | Form::Matrix => conv(xs, rows, bias, self.geometry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Rng;
    use super::super::{Purpose, load_both, with_options};
    use super::*;

    #[test]
    fn rows_are_the_same_by_tensors_and_by_hand() {
        let mut rng = Rng::new(9);
        // Fewer and more columns than are turned together, whole blocks of channels and the rest of one.
        let convs = [[1, 1, 1], [70, 33, 1], [64, 9, 7], [130, 5, 16], [3, 2, 40], [200, 70, 3]];
        let convs = convs.map(|dims| (Form::Conv, dims.to_vec()));
        let matrices = [[1, 1], [129, 65], [4, 300]].map(|dims| (Form::Matrix, dims.to_vec()));
        // Kernels that are multiples of the stride, are not, and are shorter.
        let transposed =
            [([1, 1, 1], 1), ([33, 70, 16], 8), ([5, 9, 7], 3), ([4, 6, 2], 5), ([2, 130, 10], 5)];
        let transposed = transposed.map(|(dims, stride)| (Form::Transposed { stride }, dims.to_vec()));
        for (form, dims) in convs.into_iter().chain(matrices).chain(transposed) {
            let weight = rng.tensor(&dims);
            // And as a view of it lies in memory.
            for weight in [weight.transpose(0, 1).unwrap(), weight] {
                let rows = form.rows(&weight).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(form.values(&weight).unwrap(), rows, "{form:?} {dims:?}");
            }
        }
        assert!(Form::Depthwise.values(&rng.tensor(&[3, 1, 2])).is_err());
        for dims in [vec![0, 4, 3], vec![4, 0, 3], vec![4, 3, 0]] {
            let weight = rng.tensor(&dims);
            assert!(Form::Conv.values(&weight).unwrap().is_empty());
        }
    }

    #[test]
    fn weights_that_were_not_loaded_cannot_be_used() {
        let mut rng = Rng::new(10);
        let (weight, xs) = (rng.tensor(&[6, 4]), rng.tensor(&[1, 3, 4]));
        let filter = || Filter::new(Form::Matrix, Geometry::POINTWISE, &weight, None);
        for purpose in [Purpose::Encoding, Purpose::Decoding] {
            let (encoder, decoder) = with_options(purpose.into(), || load_both(filter, filter)).unwrap();
            for (filter, is_wanted) in [(encoder, purpose.encodes()), (decoder, purpose.decodes())] {
                assert_eq!((filter.c_in, filter.c_out(), filter.n_weights()), (4, 6, 24));
                for xs in [Steps::floats_of(&xs), xs.clone().into()] {
                    assert_eq!(filter.apply(xs).is_ok(), is_wanted);
                }
            }
        }
    }
}
