//! The weight of a convolution in the form that its operation wants.

use super::conv::{Geometry, Packed, conv, conv_fixed};
use super::depthwise::depthwise;
use super::{expect_channels, expect_shape, linear, on_kernels};
use crate::Result;
use candle_core::Tensor;
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

/// A weight and its bias: brought into form once when they are fixed, at each use while they train.
#[derive(Debug)]
pub(crate) struct Filter {
    form: Form,
    geometry: Geometry,
    c_in: usize,
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
            let (rows, bias) = (form.rows(weight)?, bias.map(|bias| form.bias(bias)).transpose()?);
            if on_kernels(&rows)? && !form.is_depthwise() {
                let n = rows.dim(1)?;
                let values = rows.flatten_all()?.to_vec1::<f32>()?;
                Weights::Packed {
                    packed: Arc::new(Packed::new(&values, n, geometry)?),
                    bias: bias.map(|bias| bias.to_vec1::<f32>()).transpose()?.map(Arc::from),
                }
            } else {
                Weights::Rows { rows, bias }
            }
        };
        Ok(Self { form, geometry, c_in, weights })
    }

    /// Convolves whole windows: `[batch, n_in, c_in]` to `[batch, n_out, columns]`.
    pub(crate) fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        expect_channels("input", xs, self.c_in)?;
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
