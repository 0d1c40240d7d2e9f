//! The weight of a convolution in the form that its operation wants.

use super::conv::{Geometry, Packed, conv, conv_fixed, conv_floats};
use super::depthwise::{depthwise, depthwise_floats};
use super::floats::Floats;
use super::{Steps, expect_shape, linear, on_kernels, precision};
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
    fn values(self, weight: &Tensor) -> Result<Vec<f32>> {
        let dims = weight.dims().to_vec();
        let weight = weight.flatten_all()?.to_vec1::<f32>()?;
        Ok(match (self, dims.as_slice()) {
            (Self::Conv, &[c_out, c_in, kernel]) => gather(&weight, kernel * c_in, c_out, |row| {
                let (tap, channel) = (row / c_in, row % c_in);
                (channel * kernel + tap, c_in * kernel)
            }),
            (Self::Matrix, &[c_out, c_in]) => gather(&weight, c_in, c_out, |row| (row, c_in)),
            (Self::Transposed { stride }, &[c_in, c_out, kernel]) => {
                let n_neighbours = kernel.div_ceil(stride);
                // Of one input: the outputs of each of its taps, which are as far apart as the kernel is long.
                gather(&weight, n_neighbours * c_in * stride, c_out, |part| {
                    let (row, phase) = (part / stride, part % stride);
                    let (neighbour, channel) = (row / c_in, row % c_in);
                    let tap = (n_neighbours - 1 - neighbour) * stride + phase;
                    // No tap is beyond the kernel: an empty stretch, which is zero.
                    (if tap < kernel { channel * c_out * kernel + tap } else { usize::MAX }, kernel)
                })
            }
            (_, dims) => {
                let (name, expected) = ("weight".to_owned(), vec![0, 0, 0]);
                return Err(Error::Shape { name, expected, actual: dims.to_vec() });
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

/// Rows of values that lie apart: row r holds `n` values from `place(r).0` on, `place(r).1` apart; zeros where a
/// row starts beyond the values.
fn gather(
    values: &[f32],
    n_rows: usize,
    n: usize,
    place: impl Fn(usize) -> (usize, usize) + Sync,
) -> Vec<f32> {
    /// Rows that one task fills: neighbours read the same cache lines.
    const ROWS: usize = 32;
    /// Values of a row that are filled before its neighbour's.
    const STRETCH: usize = 64;
    let mut rows = vec![0.0; n_rows * n];
    rows.par_chunks_mut((ROWS * n).max(1)).enumerate().for_each(|(task_idx, rows)| {
        for start in (0..n).step_by(STRETCH) {
            for (row_idx, row) in rows.chunks_exact_mut(n).enumerate() {
                let (first, pitch) = place(task_idx * ROWS + row_idx);
                let from = values.get(first..).unwrap_or_default().iter().step_by(pitch).skip(start);
                for (to, from) in row[start..].iter_mut().take(STRETCH).zip(from) {
                    *to = *from;
                }
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
        } else {
            let bias = bias.map(|bias| form.bias(bias)).transpose()?;
            if on_kernels(weight)? && !form.is_depthwise() {
                let stride = if let Form::Transposed { stride } = form { stride } else { 1 };
                let (rows, columns) = (form.values(weight)?, stride * c_out);
                let packed = Packed::in_precision(precision::of_loading(), &rows, columns, geometry)?;
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
