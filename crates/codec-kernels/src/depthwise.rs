//! Depthwise convolution: every channel has its own filter.

use crate::error::{Error, Result, count_rows, expect_len, product};
use crate::pool;
use crate::simd::{Kernel, MAX_LANES, Simd, dispatch, level};

/// The steps that an output reads: `t * stride + j * dilation` for j below `kernel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depthwise {
    /// Steps of input per output.
    pub kernel: usize,
    /// Steps between the windows of neighbouring outputs.
    pub stride: usize,
    /// Steps between the inputs of one window.
    pub dilation: usize,
}

impl Depthwise {
    /// Steps of output that `n_in` steps of input give, without padding.
    pub fn n_out(&self, n_in: usize) -> usize {
        let span = self.kernel.saturating_sub(1).saturating_mul(self.dilation).saturating_add(1);
        if self.stride == 0 || n_in < span { 0 } else { (n_in - span) / self.stride + 1 }
    }
}

/// Convolves each channel of time-major data with its own filter.
///
/// `out[t, c] = bias[c] + Σ_j weights[j, c] * xs[t * stride + j * dilation, c]`, as one chain of fused
/// multiply-adds with j ascending.
///
/// # Shapes
/// `xs`: `[n_in, channels]`, `weights`: `[kernel, channels]`, `bias`: `[channels]`,
/// `out`: `[conv.n_out(n_in), channels]`.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Uneven`] where the sizes do not agree, [`Error::Zero`] for a kernel, stride or
/// number of channels of zero.
pub fn depthwise(
    xs: &[f32],
    channels: usize,
    conv: Depthwise,
    weights: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    let n_in = count_rows("channels", xs.len(), channels)?;
    for (what, value) in [("kernel", conv.kernel), ("stride", conv.stride)] {
        if value == 0 {
            return Err(Error::Zero { what });
        }
    }
    expect_len("weights", product("kernel * channels", conv.kernel, channels)?, weights.len())?;
    if let Some(bias) = bias {
        expect_len("bias", channels, bias.len())?;
    }
    expect_len("out", conv.n_out(n_in) * channels, out.len())?;
    let level = level();
    let n_threads = pool::threads_for(out.len().saturating_mul(conv.kernel), 8 * pool::GRAIN);
    pool::for_row_blocks(out, channels, 1, n_threads, |first, out| {
        let xs = &xs[first * conv.stride * channels..];
        dispatch(level, Windows { xs, channels, conv, weights, bias, out });
    });
    Ok(())
}

struct Windows<'a> {
    /// Holds the windows of all rows of `out`.
    xs: &'a [f32],
    channels: usize,
    conv: Depthwise,
    weights: &'a [f32],
    bias: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Kernel for Windows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { xs, channels, conv, weights, bias, out } = self;
        for (t, out) in out.chunks_exact_mut(channels).enumerate() {
            let window = &xs[t * conv.stride * channels..];
            let pitch = conv.dilation * channels;
            let mut c = 0;
            while c + S::LANES <= channels {
                let mut acc = match bias {
                    Some(bias) => s.load(&bias[c..]),
                    None => s.splat(0.0),
                };
                for (j, weights) in weights.chunks_exact(channels).enumerate() {
                    acc = s.fma(s.load(&weights[c..]), s.load(&window[j * pitch + c..]), acc);
                }
                s.store(acc, &mut out[c..]);
                c += S::LANES;
            }
            let left = channels - c;
            if left > 0 {
                let part = |xs: &[f32]| {
                    let mut buffer = [0.0; MAX_LANES];
                    buffer[..left].copy_from_slice(&xs[..left]);
                    buffer
                };
                let mut acc = match bias {
                    Some(bias) => s.load(&part(&bias[c..])),
                    None => s.splat(0.0),
                };
                for (j, weights) in weights.chunks_exact(channels).enumerate() {
                    let (w, x) = (part(&weights[c..]), part(&window[j * pitch + c..]));
                    acc = s.fma(s.load(&w), s.load(&x), acc);
                }
                let mut buffer = [0.0; MAX_LANES];
                s.store(acc, &mut buffer);
                out[c..].copy_from_slice(&buffer[..left]);
            }
        }
    }
}
