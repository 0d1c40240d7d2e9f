//! Turns a TFLite graph that runs frame by frame into layers that run on streams.
//!
//! Such a graph keeps the past in variables: it reads one, puts it before (convolution) or adds it to
//! (transposed convolution) what the frame brings, and stores the new end. Each such group of ops is one
//! of our layers. The graph is followed from its output back to its input, so nothing is known of the
//! network but what the file says; an op that no layer accounts for is an error, whatever it does.

use super::groups::Groups;
use super::int8::{
    ConvTranspose8, Dequantize, LeakyRelu8, Quantize, Requantize, Residual8, Scale, check_sums,
};
use crate::layers::{Activation, Conv1d, ConvSpec, ConvTranspose1d, DynLayer, Padding, Residual, Unary};
use crate::tflite::{Dtype, Graph, Kind, Model, Op, Tensor as Stored};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeSet;
use std::ops::Range;

/// Deepest nesting of residuals; it bounds the recursion.
const MAX_NESTING: usize = 8;

/// The layers of `graph`, from its only input to its only output.
///
/// # Errors
/// [`Error::Format`] when the graph is not made as described, [`Error::Unsupported`] when it has an op
/// that does not belong to a layer.
pub(crate) fn layers(model: &Model<'_>, graph: &Graph<'_>, device: &Device) -> Result<Vec<DynLayer>> {
    let (&[input], &[output]) = (graph.inputs(), graph.outputs()) else {
        let value = format!("{} inputs and {} outputs", graph.inputs().len(), graph.outputs().len());
        return Err(Error::Unsupported { what: "streaming graph with", value });
    };
    let mut walk = Walk { graph, device, accounted: BTreeSet::new(), variables: BTreeSet::new(), nesting: 0 };
    let layers = walk.chain(input, output)?;
    walk.check_start(model)?;
    let rest = graph.ops().iter().enumerate().find(|(op_idx, _)| !walk.accounted.contains(op_idx));
    rest.map_or(Ok(layers), |(_, op)| Err(op.error("belongs to no layer")))
}

struct Walk<'w, 'a> {
    graph: &'w Graph<'a>,
    device: &'w Device,
    /// Ops that have become part of a layer.
    accounted: BTreeSet<usize>,
    /// Names of the variables that layers keep their past in.
    variables: BTreeSet<&'w str>,
    /// Residuals around the layer that is being read.
    nesting: usize,
}

/// A tensor of the graph.
type Idx = usize;

impl<'w, 'a> Walk<'w, 'a> {
    /// The layers that make `to` from `from`.
    fn chain(&mut self, from: Idx, to: Idx) -> Result<Vec<DynLayer>> {
        let mut layers = Vec::new();
        let mut at = to;
        while at != from {
            let (layer, input) = self.layer(at)?;
            layers.extend(layer);
            at = input;
        }
        layers.reverse();
        Ok(layers)
    }

    /// The layer whose output is `output`, and its input. A reshape is no layer.
    fn layer(&mut self, output: Idx) -> Result<(Option<DynLayer>, Idx)> {
        let op = self.made_by(output)?;
        let input = op.input(0)?;
        let layer = match op.kind {
            Kind::Reshape => return Ok((None, input)),
            Kind::Quantize => DynLayer::new(Quantize { to: self.scale(output)? }),
            Kind::Dequantize => DynLayer::new(Dequantize { from: self.scale(input)? }),
            Kind::LeakyRelu { slope } if self.is_int8(output)? => {
                DynLayer::new(LeakyRelu8::new(slope, self.scale(input)?, self.scale(output)?))
            }
            Kind::LeakyRelu { slope } => DynLayer::new(Activation::Unary(Unary::LeakyRelu { slope })),
            Kind::Add => return self.residual(op, output),
            Kind::Conv { stride, dilation } => return self.conv(op, stride, dilation),
            Kind::Depthwise { stride, dilation } => return self.conv(op, stride, dilation),
            Kind::StridedSlice(_) => return self.transposed(&[output]),
            Kind::Concatenation { axis: 3 | -1 } => return self.transposed(&op.inputs),
            _ => return Err(op.error("is no layer of a streaming network")),
        };
        Ok((Some(layer), input))
    }

    /// `inner(x) + x`.
    fn residual(&mut self, op: &Op, output: Idx) -> Result<(Option<DynLayer>, Idx)> {
        let (inner, input) = (op.input(0)?, op.input(1)?);
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(op.error("is nested too deeply"));
        }
        let layers = self.chain(input, inner)?;
        self.nesting -= 1;
        let layer = if self.is_int8(output)? {
            let (inner, from, to) = (self.scale(inner)?, self.scale(input)?, self.scale(output)?);
            DynLayer::new(Residual8::new(layers, inner, from, to)?)
        } else {
            DynLayer::new(Residual::new(layers))
        };
        Ok((Some(layer), input))
    }

    /// A causal convolution.
    fn conv(&mut self, op: &Op, stride: usize, dilation: usize) -> Result<(Option<DynLayer>, Idx)> {
        let (windowed, output) = (op.input(0)?, op.output()?);
        let (input, left) = self.left_context(windowed)?;
        let weight = self.graph.tensor(op.input(1)?)?;
        let c_in = self.shape(windowed)?[3];
        let &[n_filters, kernel, 1, width] = weight.shape.as_slice() else {
            return Err(weight.error("is no filter over time"));
        };
        // Only then a frame gives the same number of steps whatever came before it.
        if left + stride != kernel.saturating_sub(1) * dilation + 1 {
            return Err(op.error("does not have the left context of a causal convolution"));
        }

        let depthwise = matches!(op.kind, Kind::Depthwise { .. });
        let filter = self.filter(weight, self.graph.tensor(op.input(2)?)?, windowed, depthwise)?;
        let (weights, group_width) = if depthwise && (n_filters, width) == (1, c_in) {
            (filter.weights.reshape((kernel, width))?.t()?.unsqueeze(1)?, 1)
        } else {
            (filter.weights.reshape((n_filters, kernel, width))?.permute((0, 2, 1))?, width)
        };
        let c_out = weights.dim(0)?;
        let fits = |n: &usize| *n > 0 && n * group_width == c_in && c_out % n == 0;
        let n_groups = c_in.checked_div(group_width).filter(fits);
        let n_groups = n_groups.ok_or_else(|| weight.error("does not fit its input"))?;

        // `Conv1d` has groups of one channel; wider ones run side by side.
        let (n_parts, groups) = if group_width == 1 { (1, n_groups) } else { (n_groups, 1) };
        let spec = ConvSpec { stride, dilation, groups, padding: Padding { left, ..Padding::default() } };
        let part = |part_idx: usize| {
            let (start, len) = (part_idx * c_out / n_parts, c_out / n_parts);
            let weight = weights.narrow(0, start, len)?.contiguous()?;
            Conv1d::new(&weight, Some(&filter.bias.narrow(0, start, len)?), spec)
        };
        let conv = Groups((0..n_parts).map(part).collect::<Result<Vec<_>>>()?);
        let layer = match filter.scales {
            Some(scales) => DynLayer::new((conv, self.requantize(windowed, &scales, output)?)),
            None => DynLayer::new(conv),
        };
        Ok((Some(layer), input))
    }

    /// What a convolution reads before its variable is put in front, and how many steps that are.
    fn left_context(&mut self, windowed: Idx) -> Result<(Idx, usize)> {
        let real = match self.kind(windowed) {
            Some(Kind::Quantize) => self.made_by(windowed)?.input(0)?,
            _ => windowed,
        };
        let Some(Kind::Concatenation { axis: 1 }) = self.kind(real) else { return Ok((windowed, 0)) };
        let op = self.made_by(real)?;
        let (past, mut input) = (op.input(0)?, op.input(1)?);
        if real != windowed {
            // Integers are kept as the real numbers that they stand for, which loses nothing.
            input = self.dequantized(input, windowed)?;
        }

        let (left, n_steps) = (self.shape(past)?[1], self.shape(windowed)?[1]);
        let mut stored = self.stored(past)?;
        if real != windowed {
            stored = self.dequantized(stored, windowed)?;
        }
        if self.time_slice(stored)? != (windowed, n_steps.saturating_sub(left)..n_steps) {
            return Err(op.error("is not followed by its own end in the next frame"));
        }
        Ok((input, left))
    }

    /// A causal transposed convolution, of one part or with one per share of the channels.
    fn transposed(&mut self, outputs: &[Idx]) -> Result<(Option<DynLayer>, Idx)> {
        let parts = outputs.iter().map(|&output| self.transposed_part(output)).collect::<Result<Vec<_>>>()?;
        let (inputs, layers): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let input = match inputs.as_slice() {
            [input] => *input,
            [first, ..] => {
                let split = self.made_by(*first)?;
                let axis = self.graph.tensor(split.input(0)?)?.i32s()?;
                let shares = matches!(split.kind, Kind::Split { n_parts } if n_parts == inputs.len());
                if !shares || split.outputs != inputs || !matches!(axis.as_slice(), [3 | -1]) {
                    return Err(split.error("does not share the channels out"));
                }
                split.input(1)?
            }
            [] => return Err(Error::Unsupported { what: "concatenation of", value: "nothing".into() }),
        };
        Ok((Some(DynLayer::new(Groups(layers))), input))
    }

    fn transposed_part(&mut self, output: Idx) -> Result<(Idx, DynLayer)> {
        let (sum, now) = self.time_slice(output)?;
        let add = self.made_by(sum)?;
        let (made, added) = (add.input(0)?, add.input(1)?);
        let converted =
            if self.kind(made) == Some(&Kind::Dequantize) { self.made_by(made)?.input(0)? } else { made };
        let op = self.made_by(converted)?;
        let &Kind::TransposeConv { stride } = &op.kind else {
            return Err(op.error("stands where a transposed convolution must"));
        };
        let input = op.input(2)?;
        let weight = self.graph.tensor(op.input(1)?)?;
        let &[c_out, kernel, 1, c_in] = weight.shape.as_slice() else {
            return Err(weight.error("is no filter over time"));
        };
        let n_in = self.shape(input)?[1];
        let n_out = n_in * stride;
        let n_beyond = kernel.saturating_sub(stride);
        let n_sums = self.shape(sum)?[1];
        if n_sums != n_out + n_beyond || now != (0..n_out) || self.shape(input)?[3] != c_in {
            return Err(op.error("does not give one frame for each frame"));
        }

        let bias = self.carried_sums(added, sum, n_out, n_beyond)?;
        let filter = self.filter(weight, self.graph.tensor(op.input(3)?)?, input, false)?;
        let weights = filter.weights.reshape((c_out, kernel, c_in))?.permute((2, 0, 1))?.contiguous()?;
        let Some(scales) = filter.scales else {
            if filter.bias.to_vec1::<f32>()? != bias {
                return Err(op.error("adds one bias and takes off another"));
            }
            let conv = ConvTranspose1d::new(&weights, Some(&filter.bias), stride, 0, n_beyond)?;
            return Ok((input, DynLayer::new(conv)));
        };
        let frame = (
            ConvTranspose1d::new(&weights, Some(&filter.bias), stride, 0, 0)?,
            self.requantize(input, &scales, converted)?,
            Dequantize { from: self.scale(converted)? },
        );
        let bias = Tensor::from_vec(bias, c_out, self.device)?;
        Ok((input, DynLayer::new(ConvTranspose8::new(frame, (n_in, n_out, n_beyond), bias)?)))
    }

    /// Checks that `added` is a variable with zeros after it, and that the variable becomes the sums
    /// beyond the frame less a bias; gives that bias.
    fn carried_sums(&mut self, added: Idx, sum: Idx, n_out: usize, n_beyond: usize) -> Result<Vec<f32>> {
        let padded = self.made_by(added)?;
        let (past, zeros) = (padded.input(0)?, self.graph.tensor(padded.input(1)?)?);
        let zeros_follow = zeros.f32s()?.iter().all(|&zero| zero == 0.0);
        if padded.kind != (Kind::Concatenation { axis: 1 })
            || !zeros_follow
            || self.shape(past)?[1] != n_beyond
        {
            return Err(padded.error("is not the past with zeros after it"));
        }
        let stored = self.stored(past)?;
        let less = self.made_by(stored)?;
        let beyond = self.time_slice(less.input(0)?)?;
        if less.kind != Kind::Sub || beyond != (sum, n_out..n_out + n_beyond) {
            return Err(less.error("is not what lies beyond the frame, less the bias"));
        }
        self.graph.tensor(less.input(1)?)?.f32s()
    }

    /// The value that the variable read as `past` has after the frame.
    fn stored(&mut self, past: Idx) -> Result<Idx> {
        let read = self.made_by(past)?;
        let handle = read.input(0)?;
        let Kind::VarHandle { name } = &self.made_by(handle)?.kind else {
            return Err(read.error("does not read a variable"));
        };
        if read.kind != Kind::ReadVariable || !self.variables.insert(name) {
            return Err(read.error("does not have a variable for itself"));
        }
        let graph = self.graph;
        let assigns = |op: &Op| op.kind == Kind::AssignVariable && op.inputs.first() == Some(&handle);
        let mut found = graph.ops().iter().enumerate().filter(|(_, op)| assigns(op));
        match (found.next(), found.next()) {
            (Some((op_idx, op)), None) => {
                self.accounted.insert(op_idx);
                op.input(1)
            }
            _ => Err(read.error("reads a variable that is not stored once")),
        }
    }

    /// Checks that all variables start as zeros, as the state of our layers does.
    fn check_start(&mut self, model: &Model<'_>) -> Result<()> {
        let mut started = BTreeSet::new();
        for (op_idx, op) in self.graph.ops().iter().enumerate() {
            let Kind::CallOnce { graph_idx } = op.kind else { continue };
            self.accounted.insert(op_idx);
            let start = model.graph_at(graph_idx)?;
            for assign in start.ops().iter().filter(|op| op.kind == Kind::AssignVariable) {
                let handle = start.producer(assign.input(0)?).and_then(|op_idx| start.ops().get(op_idx));
                let zeros = start.tensor(assign.input(1)?)?.f32s()?.iter().all(|&zero| zero == 0.0);
                match handle.map(|op| &op.kind) {
                    Some(Kind::VarHandle { name }) if zeros => started.insert(name.as_str()),
                    _ => return Err(assign.error("does not start a variable with zeros")),
                };
            }
        }
        match self.variables.iter().find(|name| !started.contains(*name)) {
            Some(name) => Err(Error::Unsupported { what: "variable without a start", value: (*name).into() }),
            None => Ok(()),
        }
    }

    /// A run of time cut out by a slice: of which tensor, and which steps.
    fn time_slice(&mut self, output: Idx) -> Result<(Idx, Range<usize>)> {
        const TIME: i32 = 1 << 1;
        const ALL: i32 = 0b1111;
        let op = self.made_by(output)?;
        let input = op.input(0)?;
        let bound = |position: usize| -> Result<i32> {
            let bounds = self.graph.tensor(op.input(position)?)?.i32s()?;
            bounds.get(1).copied().ok_or_else(|| op.error("has no bounds for the time"))
        };
        let Kind::StridedSlice(masks) = op.kind else { return Err(op.error("is no slice")) };
        let whole = masks.shrink == 0 && masks.begin == ALL - TIME && masks.end | TIME == ALL;
        if !whole || bound(3)? != 1 {
            return Err(op.error("does not cut out a run of time"));
        }
        let n_steps = self.shape(input)?[1];
        // Negative bounds count from the end.
        let step = |bound: i32| {
            let distance = usize::try_from(bound.unsigned_abs()).unwrap_or(usize::MAX);
            if bound < 0 { n_steps.checked_sub(distance) } else { Some(distance) }
        };
        let end = if masks.end & TIME == 0 { step(bound(2)?) } else { Some(n_steps) };
        let steps = step(bound(1)?).zip(end).map(|(start, end)| start..end);
        let fits = |steps: &Range<usize>| steps.start < steps.end && steps.end <= n_steps;
        let steps = steps.filter(fits).ok_or_else(|| op.error("cuts beyond its input"))?;
        Ok((input, steps))
    }

    /// The integers that `real` was made from, which must have the scale of `like`.
    fn dequantized(&mut self, real: Idx, like: Idx) -> Result<Idx> {
        let op = self.made_by(real)?;
        let integers = op.input(0)?;
        if op.kind != Kind::Dequantize || self.scale(integers)? != self.scale(like)? {
            return Err(op.error("does not give the integers of the variable"));
        }
        Ok(integers)
    }

    /// Reads the constants of a convolution whose input is `input`.
    fn filter(
        &self,
        weight: &Stored<'a>,
        bias: &Stored<'a>,
        input: Idx,
        channels_last: bool,
    ) -> Result<Filter> {
        let axis = if channels_last { 3 } else { 0 };
        let c_out = weight.shape.get(axis).copied().unwrap_or(0);
        if bias.shape != [c_out] {
            return Err(bias.error("is not one number per filter"));
        }
        let device = self.device;
        if !self.is_int8(input)? {
            let weights = Tensor::new(weight.f32s()?, device)?;
            return Ok(Filter { weights, bias: Tensor::new(bias.f32s()?, device)?, scales: None });
        }
        let (weights, bias) = (weight.i8s()?, bias.i32s()?);
        let from = self.scale(input)?;
        for (channel_idx, &bias) in bias.iter().enumerate() {
            let (skip, step, take) = if channels_last {
                (channel_idx, c_out, weights.len())
            } else {
                let len = weights.len() / c_out;
                (channel_idx * len, 1, len)
            };
            check_sums(weights.iter().skip(skip).step_by(step).take(take).copied(), bias, from)?;
        }
        let quantization = weight.quantization.as_ref().filter(|q| {
            let per_channel = q.scales.len() == c_out && usize::try_from(q.axis) == Ok(axis);
            (q.scales.len() == 1 || per_channel) && q.zero_points.iter().all(|&zero_point| zero_point == 0)
        });
        let scales =
            quantization.ok_or_else(|| weight.error("needs one scale, or one per filter"))?.scales.clone();
        Ok(Filter {
            weights: Tensor::new(weights.into_iter().map(f32::from).collect::<Vec<_>>(), device)?,
            // Below 2^24, as was checked.
            bias: Tensor::new(bias.into_iter().map(|bias| bias as f32).collect::<Vec<_>>(), device)?,
            scales: Some(scales),
        })
    }

    fn requantize(&self, input: Idx, weight_scales: &[f32], output: Idx) -> Result<Requantize> {
        Requantize::new(self.scale(input)?, weight_scales, self.scale(output)?, self.device)
    }

    /// The op that makes a tensor, from now on accounted for.
    fn made_by(&mut self, tensor: Idx) -> Result<&'w Op> {
        let found = self.graph.producer(tensor).and_then(|idx| Some((idx, self.graph.ops().get(idx)?)));
        let Some((op_idx, op)) = found else {
            return Err(self.graph.tensor(tensor)?.error("does not come from the input"));
        };
        self.accounted.insert(op_idx);
        Ok(op)
    }

    /// What makes a tensor.
    fn kind(&self, tensor: Idx) -> Option<&'w Kind> {
        Some(&self.graph.ops().get(self.graph.producer(tensor)?)?.kind)
    }

    /// `[batch, time, 1, channels]`.
    fn shape(&self, tensor: Idx) -> Result<[usize; 4]> {
        let tensor = self.graph.tensor(tensor)?;
        let shape = <[usize; 4]>::try_from(tensor.shape.as_slice()).ok();
        shape.filter(|shape| shape[0] == 1 && shape[2] == 1).ok_or_else(|| tensor.error("is no run of steps"))
    }

    fn is_int8(&self, tensor: Idx) -> Result<bool> {
        let tensor = self.graph.tensor(tensor)?;
        match tensor.dtype {
            Dtype::I8 => Ok(true),
            Dtype::F32 => Ok(false),
            _ => Err(tensor.error("is no activation")),
        }
    }

    fn scale(&self, tensor: Idx) -> Result<Scale> {
        let tensor = self.graph.tensor(tensor)?;
        if tensor.dtype != Dtype::I8 {
            return Err(tensor.error("must hold 8-bit integers"));
        }
        let (scale, zero_point) = tensor.scale()?;
        Scale::new(scale, zero_point)
    }
}

/// Weights in the file's order, flat, and their scales when they are integers.
struct Filter {
    weights: Tensor,
    bias: Tensor,
    scales: Option<Vec<f32>>,
}
