//! Attention and the keys and values that a stream keeps for it.

use super::floats::Floats;
use super::rotary::{rotate, rotate_floats};
use super::{Steps, expect_shape, flat, on_kernels, on_values, vector_jacobian, wrap};
use crate::{Error, Result};
use candle_core::{CpuStorage, CustomOp3, Device, Layout, Shape, Tensor};
use codec_kernels::{Heads, Rotary};
use std::ops::Range;

/// Which steps a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Every step of the clip.
    Clip,
    /// Itself and the steps before it.
    Past {
        /// How many in all, itself included; `None` for every step of the stream. With a context the state of
        /// a stream is bounded.
        context: Option<usize>,
    },
}

impl Sight {
    /// The keys that query `query_idx` of `n_queries` sees; the queries are the last steps of the keys.
    fn keys(self, query_idx: usize, n_queries: usize, n_keys: usize) -> Range<usize> {
        match self {
            Self::Clip => 0..n_keys,
            Self::Past { context } => {
                let end = n_keys - n_queries + query_idx + 1;
                end.saturating_sub(context.unwrap_or(end))..end
            }
        }
    }

    /// The steps of `n` that later queries may see.
    fn n_kept(self, n: usize) -> usize {
        match self {
            Self::Clip => 0,
            Self::Past { context: None } => n,
            Self::Past { context: Some(context) } => n.min(context.saturating_sub(1)),
        }
    }
}

/// The keys and values of earlier steps.
///
/// On the CPU they lie in buffers that are moved to their start only when they are full, so a step of a
/// stream costs no copy of its past. Where a gradient is tracked, and on other devices, they are tensors.
#[derive(Debug, Default)]
pub(crate) enum Past {
    #[default]
    None,
    /// Keys and values per item of the batch.
    Buffers(Vec<[Rows; 2]>),
    /// `[batch, time, n_kv_heads * dim]`.
    Tensors([Tensor; 2]),
}

impl Steps {
    /// Attention of queries, keys and values that stand side by side in every step, the first of which stands at
    /// `position`.
    ///
    /// # Shapes
    /// `self` `[batch, time, (n_heads + 2 * n_kv_heads) * dim]`, result `[batch, time, n_heads * dim]`.
    ///
    /// # Errors
    /// As [`attend`].
    pub(crate) fn attend(
        self,
        (rotary, position): (Option<&Rotary>, u64),
        past: &mut Past,
        heads: Heads,
        sight: Sight,
    ) -> Result<Self> {
        let Heads { n_heads, n_kv_heads, dim } = heads;
        let (width, kv_width) = (n_heads * dim, n_kv_heads * dim);
        self.expect_channels("queries, keys and values", width + 2 * kv_width)?;
        if let Some(qkv) = self.floats().filter(|_| !matches!(past, Past::Tensors(_))) {
            let part = |start: usize, n_heads: usize| -> Result<Floats> {
                let xs = qkv.channels(start, n_heads * dim)?;
                match rotary {
                    Some(rotary) => rotate_floats(xs, rotary, n_heads, position),
                    None => Ok(xs),
                }
            };
            let (q, k) = (part(0, n_heads)?, part(width, n_kv_heads)?);
            let v = qkv.channels(width + kv_width, kv_width)?;
            let [batch, n_steps, _] = q.dims();
            let ys = Floats::new([batch, n_steps, width], |out| {
                let [q, k, v] = [&q, &k, &v].map(|xs| xs.values().unwrap_or_default());
                attend_values([q, k, v], batch, past, heads, sight, out)
            });
            return Ok(ys?.into());
        }
        self.map_tensor(|qkv| {
            let mut q = qkv.narrow(2, 0, width)?;
            let mut k = qkv.narrow(2, width, kv_width)?;
            let v = qkv.narrow(2, width + kv_width, kv_width)?;
            if let Some(rotary) = rotary {
                q = rotate(&q, rotary, n_heads, position)?;
                k = rotate(&k, rotary, n_kv_heads, position)?;
            }
            attend([&q, &k, &v], past, heads, sight)
        })
    }
}

/// Attention of new steps over themselves and the past, which then takes them up.
///
/// # Shapes
/// `q` `[batch, time, n_heads * dim]`, `k` and `v` `[batch, time, n_kv_heads * dim]`, result as `q`.
///
/// # Errors
/// [`Error::Shape`] also when the past has another batch.
pub(crate) fn attend([q, k, v]: [&Tensor; 3], past: &mut Past, heads: Heads, sight: Sight) -> Result<Tensor> {
    let on_kernels = on_kernels(q)?;
    let tracked = [q, k, v].iter().any(|xs| xs.track_op());
    if on_kernels && !tracked && !matches!(past, Past::Tensors(_)) {
        return attend_buffers([q, k, v], past, heads, sight);
    }
    let (k, v) = match past.take_tensors(heads)? {
        Some([past_k, past_v]) => {
            (Tensor::cat(&[&past_k, k], 1)?.contiguous()?, Tensor::cat(&[&past_v, v], 1)?.contiguous()?)
        }
        None => (k.contiguous()?, v.contiguous()?),
    };
    let ys = attention([q, &k, &v], heads, sight)?;
    let n_keys = k.dim(1)?;
    let n_kept = sight.n_kept(n_keys);
    if n_kept > 0 {
        let kept = |xs: &Tensor| xs.narrow(1, n_keys - n_kept, n_kept)?.force_contiguous();
        *past = Past::Tensors([kept(&k)?, kept(&v)?]);
    }
    Ok(ys)
}

/// Attention of queries that are the last steps of the keys.
///
/// # Shapes
/// As [`attend`], `k` and `v` at least as long as `q`.
pub(crate) fn attention([q, k, v]: [&Tensor; 3], heads: Heads, sight: Sight) -> Result<Tensor> {
    let (batch, n_queries, _) = q.dims3()?;
    let n_keys = k.dim(1)?;
    expect_shape("queries", q, &[batch, n_queries, heads.n_heads * heads.dim])?;
    expect_shape("keys", k, &[batch, n_keys, heads.n_kv_heads * heads.dim])?;
    expect_shape("values", v, k.dims())?;
    if !on_kernels(q)? {
        return plain([q, k, v], heads, sight);
    }
    Ok(q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, Attention { heads, sight })?)
}

/// The same mathematics in candle operations, for any device.
pub(crate) fn plain([q, k, v]: [&Tensor; 3], heads: Heads, sight: Sight) -> Result<Tensor> {
    let (batch, n_queries, width) = q.dims3()?;
    let n_keys = k.dim(1)?;
    let Heads { n_heads, n_kv_heads, dim } = heads;
    let by_head = |xs: &Tensor, n_heads: usize| -> Result<Tensor> {
        Ok(xs.reshape((batch, xs.dim(1)?, n_heads, dim))?.transpose(1, 2)?.contiguous()?)
    };
    let shared = |xs: &Tensor| -> Result<Tensor> {
        let xs = by_head(xs, n_kv_heads)?.unsqueeze(2)?;
        let repeated = xs.broadcast_as((batch, n_kv_heads, n_heads / n_kv_heads, n_keys, dim))?;
        Ok(repeated.contiguous()?.reshape((batch, n_heads, n_keys, dim))?)
    };
    let scores = by_head(q, n_heads)?.matmul(&shared(k)?.transpose(2, 3)?.contiguous()?)?;
    let mask = (0..n_queries).flat_map(|query_idx| {
        let seen = sight.keys(query_idx, n_queries, n_keys);
        (0..n_keys).map(move |key_idx| if seen.contains(&key_idx) { 0.0 } else { f32::NEG_INFINITY })
    });
    let mask = Tensor::from_vec(mask.collect::<Vec<_>>(), (1, 1, n_queries, n_keys), &Device::Cpu)?;
    let mask = mask.to_dtype(q.dtype())?.to_device(q.device())?;
    let scores = (scores * f64::from(scale(dim)))?.broadcast_add(&mask)?;
    let ys = candle_nn::ops::softmax(&scores, 3)?.matmul(&shared(v)?)?;
    Ok(ys.transpose(1, 2)?.contiguous()?.reshape((batch, n_queries, width))?)
}

/// One over the square root of the channels of a head.
fn scale(dim: usize) -> f32 {
    (1.0 / (dim as f64).sqrt()) as f32
}

/// The kernel over one item.
fn run(q: &[f32], k: &[f32], v: &[f32], heads: Heads, sight: Sight, out: &mut [f32]) -> Result<()> {
    let n_queries = q.len() / (heads.n_heads * heads.dim).max(1);
    let n_keys = k.len() / (heads.n_kv_heads * heads.dim).max(1);
    let keys = |query_idx| sight.keys(query_idx, n_queries, n_keys);
    Ok(codec_kernels::attention(q, k, v, heads, scale(heads.dim), keys, out)?)
}

struct Attention {
    heads: Heads,
    sight: Sight,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "codec-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let batch = q_layout.dims()[0].max(1);
        let (q, k, v) = (flat(q, q_layout)?, flat(k, k_layout)?, flat(v, v_layout)?);
        let mut out = vec![0.0; q.len()];
        let (q_len, kv_len) = ((q.len() / batch).max(1), (k.len() / batch).max(1));
        let items = q.chunks_exact(q_len).zip(k.chunks_exact(kv_len)).zip(v.chunks_exact(kv_len));
        for (((q, k), v), out) in items.zip(out.chunks_exact_mut(q_len)) {
            run(q, k, v, self.heads, self.sight, out).map_err(wrap)?;
        }
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [for_q, for_k, for_v] =
            vector_jacobian([q, k, v], grad, |[q, k, v]| plain([q, k, v], self.heads, self.sight))?;
        Ok((for_q, for_k, for_v))
    }
}

/// [`attend`] without a copy of the past.
fn attend_buffers(qkv: [&Tensor; 3], past: &mut Past, heads: Heads, sight: Sight) -> Result<Tensor> {
    let [q, k, v] = qkv.map(Tensor::contiguous);
    let [q, k, v] = [q?, k?, v?];
    let (batch, n_queries, _) = q.dims3()?;
    let kv_width = heads.n_kv_heads * heads.dim;
    expect_shape("queries", &q, &[batch, n_queries, heads.n_heads * heads.dim])?;
    expect_shape("keys", &k, &[batch, n_queries, kv_width])?;
    expect_shape("values", &v, k.dims())?;
    let mut out = vec![0.0; q.elem_count()];
    on_values(&q, |q| {
        on_values(&k, |k| on_values(&v, |v| attend_values([q, k, v], batch, past, heads, sight, &mut out)))
    })?;
    Ok(Tensor::from_vec(out, q.dims(), q.device())?)
}

/// Attention over past and present values; writes all of `out`, which is as long as the queries.
fn attend_values(
    [q, k, v]: [&[f32]; 3],
    batch: usize,
    past: &mut Past,
    heads: Heads,
    sight: Sight,
    out: &mut [f32],
) -> Result<()> {
    if matches!(past, Past::None) {
        *past = Past::Buffers((0..batch).map(|_| Default::default()).collect());
    }
    let Past::Buffers(items) = past else {
        return Err(Error::ForeignState { expected: "past of an attention on the CPU" });
    };
    let (q_len, kv_len) = (q.len() / batch.max(1), k.len() / batch.max(1));
    let kv_width = heads.n_kv_heads * heads.dim;
    if items.len() != batch {
        let shape = |batch| vec![batch, kv_len / kv_width.max(1), kv_width];
        return Err(Error::Shape { name: "keys".into(), expected: shape(items.len()), actual: shape(batch) });
    }
    for (item_idx, [keys, values]) in items.iter_mut().enumerate() {
        let item = item_idx * kv_len..(item_idx + 1) * kv_len;
        keys.push(&k[item.clone()]);
        values.push(&v[item]);
        let queries = item_idx * q_len..(item_idx + 1) * q_len;
        run(&q[queries.clone()], keys.values(), values.values(), heads, sight, &mut out[queries])?;
        for rows in [keys, values] {
            rows.keep(sight.n_kept(rows.values().len() / kv_width.max(1)) * kv_width);
        }
    }
    Ok(())
}

impl Past {
    /// The past as tensors; it is then empty.
    fn take_tensors(&mut self, heads: Heads) -> Result<Option<[Tensor; 2]>> {
        match std::mem::take(self) {
            Self::None => Ok(None),
            Self::Tensors(tensors) => Ok(Some(tensors)),
            Self::Buffers(items) => {
                let width = heads.n_kv_heads * heads.dim;
                let joined = |which: usize| -> Result<Tensor> {
                    let values: Vec<f32> =
                        items.iter().flat_map(|item| item[which].values()).copied().collect();
                    let n_steps = values.len() / (items.len() * width).max(1);
                    Ok(Tensor::from_vec(values, (items.len(), n_steps, width), &Device::Cpu)?)
                };
                Ok(Some([joined(0)?, joined(1)?]))
            }
        }
    }
}

/// Values of which the oldest are dropped: one run of memory without a move at every step.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    values: Vec<f32>,
    /// Dropped values that still lie at the start.
    n_dropped: usize,
}

impl Rows {
    fn values(&self) -> &[f32] {
        &self.values[self.n_dropped..]
    }

    fn push(&mut self, values: &[f32]) {
        // As many dropped as kept values: each is moved once on average.
        if self.n_dropped > 0 && self.n_dropped >= self.values.len() - self.n_dropped {
            self.values.drain(..self.n_dropped);
            self.n_dropped = 0;
        }
        self.values.extend_from_slice(values);
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.values.capacity()
    }

    /// Drops all but the last `n`.
    fn keep(&mut self, n: usize) {
        self.n_dropped = self.values.len() - n.min(self.values.len());
    }
}
