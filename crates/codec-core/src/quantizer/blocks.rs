//! The loop that the quantizers share: frames in blocks, one block per task.
//!
//! A frame's codes depend on the frame alone (with strides: on its block alone), so how the frames
//! are cut into blocks and which thread takes which cannot change a bit.

use crate::codes::{CodeLayout, CodebookSpec};
use crate::error::Result;
use crate::quantizer::{Latents, check_latents, check_rows, with_rows};
use rayon::prelude::*;
use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;

/// Frames per task, before it is made a whole number of strides: enough rows for the matrix
/// product to run at full speed, few enough to occupy several threads with a second of audio.
const BLOCK_FRAMES: usize = 64;

thread_local! {
    /// What tasks of this thread worked in, by its type.
    static SCRATCH: RefCell<HashMap<TypeId, Box<dyn Any>>> = RefCell::default();
}

/// Lends `work` what an earlier call on this thread has left, or a new one.
pub(crate) fn with_scratch<S: Default + 'static, R>(work: impl FnOnce(&mut S) -> R) -> R {
    let mut lent = SCRATCH.with_borrow_mut(|all| {
        // Taken out, so that `work` may borrow one of the same type.
        let place = all.get_mut(&TypeId::of::<Option<Box<S>>>());
        place
            .and_then(|place| place.downcast_mut::<Option<Box<S>>>())
            .and_then(Option::take)
            .unwrap_or_default()
    });
    let result = work(&mut lent);
    SCRATCH.with_borrow_mut(|all| {
        let place = all.entry(TypeId::of::<Option<Box<S>>>()).or_insert_with(|| Box::new(None::<Box<S>>));
        if let Some(place) = place.downcast_mut::<Option<Box<S>>>() {
            *place = Some(lent);
        }
    });
    result
}

/// Codes all frames with the first codebooks of `layout`, as many as there are `rows`, and appends to each row.
///
/// `encode_block` gets the latents of one block and the places of its codes, row after row.
pub(crate) fn encode_blocks<S: Default + 'static>(
    layout: &CodeLayout,
    dim: usize,
    latents: Latents<'_>,
    rows: &mut [Vec<u32>],
    encode_block: impl Fn(&mut S, &[f32], &mut [u32]) -> Result<()> + Sync,
) -> Result<()> {
    check_latents(layout, dim, latents, rows.len())?;
    let codebooks = &layout.codebooks()[..rows.len()];
    let rows_of = |n_frames: usize| codebooks.iter().map(move |c| n_frames / frames_per_code(c));
    let encode = |(scratch, codes): &mut (S, Vec<u32>), xs: &[f32]| {
        codes.clear();
        codes.resize(rows_of(xs.len() / dim).sum(), 0);
        encode_block(scratch, xs, codes)
    };
    let mut append = |n_frames: usize, codes: &[u32]| {
        let mut rest = codes;
        for (row, n_codes) in rows.iter_mut().zip(rows_of(n_frames)) {
            let (codes, tail) = rest.split_at(n_codes);
            row.extend_from_slice(codes);
            rest = tail;
        }
    };
    let (data, block_frames) = (latents.data(), block_frames(layout));
    if latents.n_frames() <= block_frames {
        // A stream's chunk is not worth a trip to another thread.
        return with_scratch(|scratch| {
            encode(scratch, data)?;
            append(latents.n_frames(), &scratch.1);
            Ok(())
        });
    }
    let blocks = data.par_chunks(block_frames.saturating_mul(dim));
    let blocks = blocks.map(|xs| with_scratch(|scratch| encode(scratch, xs).map(|()| scratch.1.clone())));
    for (block_idx, block) in blocks.collect::<Result<Vec<_>>>()?.iter().enumerate() {
        append(block_frames.min(latents.n_frames() - block_idx * block_frames), block);
    }
    Ok(())
}

/// Decodes all frames of a prefix of `layout` to `out`, `[n_frames, dim]`.
///
/// `decode_block` gets the codes of one block, one slice per codebook, and its latents, all zero.
pub(crate) fn decode_blocks<S: Default + 'static>(
    layout: &CodeLayout,
    dim: usize,
    rows: &[&[u32]],
    out: &mut [f32],
    decode_block: impl Fn(&mut S, &[&[u32]], &mut [f32]) -> Result<()> + Sync,
) -> Result<()> {
    check_rows(layout, dim, rows, out)?;
    let block_frames = block_frames(layout);
    let decode = |(block_idx, out): (usize, &mut [f32])| {
        out.fill(0.0);
        let start = block_idx * block_frames;
        let end = start + out.len() / dim;
        let of_block = rows.iter().zip(layout.codebooks()).map(|(row, spec)| {
            let stride = frames_per_code(spec);
            &row[start / stride..end / stride]
        });
        with_rows(of_block, |rows| with_scratch(|scratch| decode_block(scratch, rows, out)))
    };
    let block_len = block_frames.saturating_mul(dim);
    if out.len() <= block_len {
        decode((0, out))
    } else {
        out.par_chunks_mut(block_len).enumerate().try_for_each(decode)
    }
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
