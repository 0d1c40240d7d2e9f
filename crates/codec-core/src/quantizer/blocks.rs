//! The loop that the quantizers share: frames in blocks, one block per task.
//!
//! A frame's codes depend on the frame alone (with strides: on its block alone), so how the frames
//! are cut into blocks and which thread takes which cannot change a bit.

use crate::codes::{CodeLayout, CodebookSpec, Codes};
use crate::error::Result;
use crate::quantizer::{Latents, check_codes, check_latents, zeros};
use rayon::prelude::*;

/// Frames per task, before it is made a whole number of strides: enough rows for the matrix
/// product to run at full speed, few enough to occupy several threads with a second of audio.
const BLOCK_FRAMES: usize = 64;

/// Codes all frames with the first `n_codebooks` codebooks of `layout`.
///
/// `encode_block` gets the latents of one block and the places of its codes, row after row.
pub(crate) fn encode_blocks<S: Default>(
    layout: &CodeLayout,
    dim: usize,
    latents: Latents<'_>,
    n_codebooks: usize,
    encode_block: impl Fn(&mut S, &[f32], &mut [u32]) -> Result<()> + Sync,
) -> Result<Codes> {
    check_latents(layout, dim, latents, n_codebooks)?;
    let layout = layout.truncated(n_codebooks)?;
    let rows_of = |n_frames: usize| layout.codebooks().iter().map(move |c| n_frames / frames_per_code(c));

    let block_frames = block_frames(&layout);
    let encode = |scratch: &mut S, xs: &[f32]| {
        let mut codes = vec![0; rows_of(xs.len() / dim).sum()];
        encode_block(scratch, xs, &mut codes).map(|()| codes)
    };
    let data = latents.data();
    let blocks: Vec<Vec<u32>> = if latents.n_frames() <= block_frames {
        // A stream's chunk is not worth a trip to another thread.
        vec![encode(&mut S::default(), data)?]
    } else {
        data.par_chunks(block_frames.saturating_mul(dim))
            .map_init(S::default, encode)
            .collect::<Result<_>>()?
    };

    let mut rows: Vec<Vec<u32>> = rows_of(latents.n_frames()).map(Vec::with_capacity).collect();
    for (block_idx, block) in blocks.iter().enumerate() {
        let n_frames = block_frames.min(latents.n_frames() - block_idx * block_frames);
        let mut rest = block.as_slice();
        for (row, n_codes) in rows.iter_mut().zip(rows_of(n_frames)) {
            let (codes, tail) = rest.split_at(n_codes);
            row.extend_from_slice(codes);
            rest = tail;
        }
    }
    Codes::new(layout, rows)
}

/// Decodes all frames of a prefix of `layout` to `[n_frames, dim]`.
///
/// `decode_block` gets the codes of one block, one slice per codebook, and its latents, all zero.
pub(crate) fn decode_blocks<S: Default>(
    layout: &CodeLayout,
    dim: usize,
    codes: &Codes,
    decode_block: impl Fn(&mut S, &[&[u32]], &mut [f32]) -> Result<()> + Sync,
) -> Result<Vec<f32>> {
    check_codes(layout, codes)?;
    let mut out = zeros("decoded latents", codes.n_frames(), dim)?;
    let block_frames = block_frames(layout);
    let decode = |scratch: &mut S, (block_idx, out): (usize, &mut [f32])| {
        let start = block_idx * block_frames;
        let end = start + out.len() / dim;
        let of_block = |(row, spec): (_, &CodebookSpec)| -> &[u32] {
            let row: &[u32] = row;
            let stride = frames_per_code(spec);
            &row[start / stride..end / stride]
        };
        let rows: Vec<&[u32]> = codes.rows().zip(layout.codebooks()).map(of_block).collect();
        decode_block(scratch, &rows, out)
    };
    if codes.n_frames() <= block_frames {
        decode(&mut S::default(), (0, &mut out))?;
    } else {
        let blocks = out.par_chunks_mut(block_frames.saturating_mul(dim)).enumerate();
        blocks.map_init(S::default, decode).collect::<Result<()>>()?;
    }
    Ok(out)
}

/// The first `len` values of a buffer that only grows.
pub(crate) fn grown(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

fn frames_per_code(codebook: &CodebookSpec) -> usize {
    codebook.stride as usize
}

fn block_frames(layout: &CodeLayout) -> usize {
    BLOCK_FRAMES.next_multiple_of(layout.stride_frames() as usize)
}
