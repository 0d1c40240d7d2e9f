//! Convolution with every padding that the families use.

use super::steps::{head, join, keep, tail, zeros};
use super::{Chunk, Layer};
use crate::ops::{Filter, Form, Geometry, expect_channels};
use crate::{Error, Result};
use candle_core::Tensor;

/// What stands before the first and after the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// Zeros.
    #[default]
    Zero,
    /// The outermost step, again and again.
    Replicate,
    /// The steps mirrored about the outermost one.
    ///
    /// A clip no longer than the padding is first extended with zeros at the right and the extension is cut
    /// off after mirroring, as EnCodec's `pad1d` does.
    Reflect,
}

/// How a stream is extended at its ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Steps before the first.
    pub left: usize,
    /// Steps after the last.
    pub right: usize,
    /// Whether the right grows until the last window is full, so that no step is left over.
    pub align: bool,
    /// What the steps hold.
    pub fill: Fill,
}

impl Padding {
    /// Zeros, the same number on both sides, as `torch.nn.Conv1d` pads.
    pub fn symmetric(n_steps: usize) -> Self {
        Self { left: n_steps, right: n_steps, align: false, fill: Fill::Zero }
    }

    /// EnCodec's rule: `span - stride` steps in all, every one at the left when causal, otherwise half of
    /// them, rounded down, at the right; the last window is filled.
    ///
    /// # Source
    /// facebookresearch/encodec, encodec/modules/conv.py, `SConv1d`.
    pub fn same(kernel: usize, stride: usize, dilation: usize, causal: bool, fill: Fill) -> Self {
        let total = Geometry { kernel, stride, dilation }.span().saturating_sub(stride);
        let right = if causal { 0 } else { total / 2 };
        Self { left: total - right, right, align: true, fill }
    }
}

/// The shape of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// Steps of input per step of output.
    pub stride: usize,
    /// Steps between the inputs of one window.
    pub dilation: usize,
    /// 1, or the number of channels.
    pub groups: usize,
    /// What happens at the ends.
    pub padding: Padding,
}

impl Default for ConvSpec {
    fn default() -> Self {
        Self { stride: 1, dilation: 1, groups: 1, padding: Padding::default() }
    }
}

/// Convolution over time.
#[derive(Debug)]
pub struct Conv1d {
    filter: Filter,
    geometry: Geometry,
    padding: Padding,
    c_in: usize,
}

impl Conv1d {
    /// Takes a weight `[c_out, c_in / groups, kernel]` and a bias `[c_out]`, as `torch.nn.Conv1d` has them.
    ///
    /// # Errors
    /// [`Error::Shape`] when weight, bias and groups do not fit, [`Error::Unsupported`] for groups of several
    /// channels and for a stride that skips inputs, [`Error::Config`] for a zero.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, spec: ConvSpec) -> Result<Self> {
        let (c_out, group_width, kernel) = weight.dims3()?;
        for (field, value) in [
            ("kernel", kernel),
            ("stride", spec.stride),
            ("dilation", spec.dilation),
            ("groups", spec.groups),
        ] {
            if value == 0 {
                return Err(Error::Config { field, why: "must not be 0".into() });
            }
        }
        let geometry = Geometry { kernel, stride: spec.stride, dilation: spec.dilation };
        if spec.stride > geometry.span() {
            let value = format!("{} over {} steps", spec.stride, geometry.span());
            return Err(Error::Unsupported { what: "convolution stride", value });
        }
        let form = match (spec.groups, group_width) {
            (1, _) => Form::Conv,
            (groups, 1) if groups == c_out => Form::Depthwise,
            (groups, _) => {
                let value = format!("{groups} of {group_width} to {c_out} channels");
                return Err(Error::Unsupported { what: "convolution groups", value });
            }
        };
        let filter = Filter::new(form, geometry, weight, bias)?;
        Ok(Self { filter, geometry, padding: spec.padding, c_in: group_width * spec.groups })
    }

    /// Steps that a stream must bring before the padding at the left is known.
    fn n_needed(&self) -> usize {
        match self.padding.fill {
            Fill::Zero => 0,
            Fill::Replicate => 1,
            Fill::Reflect => self.padding.left + 1,
        }
    }

    /// Raw steps to remember for the padding at the right.
    fn n_remembered(&self) -> usize {
        let Padding { right, align, fill, .. } = self.padding;
        let pads = right > 0 || (align && self.geometry.stride > 1);
        if pads && fill != Fill::Zero { right + self.geometry.stride } else { 0 }
    }

    /// Steps after the last, once the length is known.
    fn n_right(&self, n_seen: usize) -> usize {
        let Padding { left, right, align, .. } = self.padding;
        // The windows of a padded clip start at 0, stride, ... <= slack; the rest of the division is missing.
        let (padded, span, stride) = (n_seen + left + right, self.geometry.span(), self.geometry.stride);
        let missing = match padded.checked_sub(span) {
            Some(slack) => slack.next_multiple_of(stride) - slack,
            None => (span - padded) % stride,
        };
        right + if align { missing } else { 0 }
    }

    /// The steps before the first.
    fn left_padding(&self, pieces: &[Tensor]) -> Result<Option<Tensor>> {
        let left = self.padding.left;
        let Some(first) = head(pieces, if self.padding.fill == Fill::Reflect { left + 1 } else { 1 })? else {
            return Ok(None);
        };
        Ok(match self.padding.fill {
            _ if left == 0 => None,
            Fill::Zero => Some(zeros(&first, left)?),
            Fill::Replicate => Some(repeat(&first, left)?),
            Fill::Reflect => {
                let missing = left + 1 - first.dim(1)?;
                let mirrored = first.pad_with_zeros(1, 0, missing)?.narrow(1, 1, left)?;
                Some(mirrored.contiguous()?.flip(&[1])?)
            }
        })
    }

    /// The steps after the last.
    fn right_padding(&self, pieces: &[Tensor], n_seen: usize) -> Result<Option<Tensor>> {
        let right = self.n_right(n_seen);
        let Some(last) = tail(pieces, self.n_remembered().clamp(1, n_seen.max(1)))? else {
            return Ok(None);
        };
        let n_last = last.dim(1)?;
        Ok(match self.padding.fill {
            _ if right == 0 => None,
            Fill::Zero => Some(zeros(&last, right)?),
            Fill::Replicate => Some(repeat(&last.narrow(1, n_last - 1, 1)?, right)?),
            Fill::Reflect => {
                // EnCodec mirrors a short clip about the end of its extension; the cut then takes as many
                // steps as the extension has, so its zeros come first.
                let n_zeros = (self.padding.left.max(right) + 1).saturating_sub(n_seen);
                let n_mirrored = right.saturating_sub(n_zeros);
                let extended = last.pad_with_zeros(1, 0, n_zeros)?;
                let mut parts = Vec::new();
                if n_zeros > 0 {
                    parts.push(zeros(&last, n_zeros.min(right))?);
                }
                if n_mirrored > 0 {
                    let start = n_last + n_zeros - 1 - n_mirrored;
                    parts.push(extended.narrow(1, start, n_mirrored)?.contiguous()?.flip(&[1])?);
                }
                join(&parts)?
            }
        })
    }
}

/// The state of [`Conv1d`].
#[derive(Debug, Default)]
pub struct ConvState {
    /// The end of the padded input: what later windows or the right padding still read.
    buffer: Option<Tensor>,
    /// Where in the buffer the next window starts.
    next: usize,
    /// Raw steps so far.
    n_seen: usize,
    /// Whether the left padding stands.
    began: bool,
}

impl Layer for Conv1d {
    type State = ConvState;

    fn init(&self) -> ConvState {
        ConvState::default()
    }

    fn step(&self, state: &mut ConvState, chunk: Chunk) -> Result<Chunk> {
        let end = chunk.end;
        let mut pieces: Vec<Tensor> = state.buffer.take().into_iter().collect();
        if let Some(steps) = chunk.normalized().steps {
            expect_channels("input", &steps, self.c_in)?;
            state.n_seen += steps.dim(1)?;
            pieces.push(steps);
        }
        if end && state.n_seen > 0 {
            let padding = self.right_padding(&pieces, state.n_seen)?;
            // The left may mirror steps of a short clip, never its right padding.
            self.begin(state, &mut pieces)?;
            pieces.extend(padding);
        } else if state.n_seen >= self.n_needed().max(1) {
            self.begin(state, &mut pieces)?;
        }
        let Some(buffer) = join(&pieces)? else {
            return Ok(Chunk { steps: None, end });
        };
        let n_steps = buffer.dim(1)?;
        let n_windows = if state.began { self.geometry.n_out(n_steps.saturating_sub(state.next)) } else { 0 };
        let mut steps = None;
        if n_windows > 0 {
            let n_read = (n_windows - 1) * self.geometry.stride + self.geometry.span();
            steps = Some(self.filter.apply(&buffer.narrow(1, state.next, n_read)?)?);
            state.next += n_windows * self.geometry.stride;
        }
        if end {
            *state = self.init();
        } else {
            let remembered = n_steps - self.n_remembered().min(state.n_seen).min(n_steps);
            let start = if state.began { state.next.min(remembered) } else { 0 };
            state.next -= start;
            state.buffer = if start < n_steps { Some(keep(&buffer, start, n_steps - start)?) } else { None };
        }
        Ok(Chunk { steps, end })
    }
}

impl Conv1d {
    /// Puts the left padding before the first steps.
    fn begin(&self, state: &mut ConvState, pieces: &mut Vec<Tensor>) -> Result<()> {
        if !state.began {
            state.began = true;
            let padding = self.left_padding(pieces)?;
            pieces.splice(0..0, padding);
        }
        Ok(())
    }
}

/// One step, `n` times.
fn repeat(step: &Tensor, n: usize) -> Result<Tensor> {
    let (batch, _, channels) = step.dims3()?;
    Ok(step.broadcast_as((batch, n, channels))?.contiguous()?)
}
