//! Split residual vector quantization: two stacks that code the same latents (Mimi).

use crate::codes::CodeLayout;
use crate::error::{Error, Result};
use crate::quantizer::blocks::{decode_blocks, grown};
use crate::quantizer::{Latents, Quantizer, Rvq, check_latents};

/// A semantic and an acoustic stack, side by side; their outputs are summed.
///
/// Codebook order: the semantic codebooks, then the acoustic ones. A prefix that ends inside the
/// semantic ones decodes without the acoustic stack.
///
/// # Source
/// Défossez et al. 2024, arXiv 2410.00037, section 3.3.2; kyutai-labs/moshi, `quantization/vq.py`,
/// `SplitResidualVectorQuantizer`: the acoustic stack gets the latents, not a residual.
#[derive(Clone, Debug)]
pub struct SplitRvq {
    layout: CodeLayout,
    semantic: Rvq,
    acoustic: Rvq,
}

impl SplitRvq {
    /// Takes the two stacks.
    ///
    /// # Errors
    /// [`Error::Shape`] when their dimensions differ, [`Error::Range`] as [`CodeLayout::new`].
    pub fn new(semantic: Rvq, acoustic: Rvq) -> Result<Self> {
        if acoustic.dim() != semantic.dim() {
            let what = "dimension of the acoustic stack";
            return Err(Error::Shape { what, expected: semantic.dim(), actual: acoustic.dim() });
        }
        let codebooks = [semantic.layout().codebooks(), acoustic.layout().codebooks()].concat();
        Ok(Self { layout: CodeLayout::new(codebooks)?, semantic, acoustic })
    }

    /// The stack that carries the first codebooks.
    pub fn semantic(&self) -> &Rvq {
        &self.semantic
    }

    /// The stack that carries the other codebooks.
    pub fn acoustic(&self) -> &Rvq {
        &self.acoustic
    }
}

impl Quantizer for SplitRvq {
    fn layout(&self) -> &CodeLayout {
        &self.layout
    }

    fn dim(&self) -> usize {
        self.semantic.dim()
    }

    fn encode_to(&self, latents: Latents<'_>, rows: &mut [Vec<u32>]) -> Result<()> {
        check_latents(&self.layout, self.dim(), latents, rows.len())?;
        let n_semantic = self.semantic.layout().n_codebooks().min(rows.len());
        let (semantic, acoustic) = rows.split_at_mut(n_semantic);
        self.semantic.encode_to(latents, semantic)?;
        if acoustic.is_empty() { Ok(()) } else { self.acoustic.encode_to(latents, acoustic) }
    }

    fn decode_to(&self, rows: &[&[u32]], out: &mut [f32]) -> Result<()> {
        decode_blocks(&self.layout, self.dim(), rows, out, |more: &mut Vec<f32>, rows, out| {
            let (semantic, acoustic) = rows.split_at(self.semantic.layout().n_codebooks().min(rows.len()));
            self.semantic.decode_to(semantic, out)?;
            if acoustic.is_empty() {
                return Ok(());
            }
            let more = grown(more, out.len());
            self.acoustic.decode_to(acoustic, more)?;
            out.iter_mut().zip(more).for_each(|(sum, x)| *sum += *x);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantizer::testing::{check_hostile, check_laws, hostile_f32, hostile_size, noise};
    use crate::quantizer::{Distance, Projection, Projections, Vq};
    use proptest::prelude::*;

    fn rvq(seed: u64, n_codebooks: usize, dim: usize) -> Rvq {
        Rvq::from_codebooks(&noise(seed, n_codebooks * 60 * dim), 60, dim).unwrap()
    }

    /// Mimi's shape: each stack between projections of its own, without bias.
    fn mimi() -> SplitRvq {
        let projection = |seed, n_in: usize, n_out: usize| {
            Projection::new(noise(seed, n_in * n_out), None, n_in, n_out).unwrap()
        };
        let projected = |seed, n| {
            let projections = Projections::new(projection(seed, 12, 6), projection(seed + 1, 6, 12)).unwrap();
            rvq(seed + 2, n, 6).with_projections(projections).unwrap()
        };
        SplitRvq::new(projected(1, 1), projected(5, 4)).unwrap()
    }

    #[test]
    fn both_stacks_code_the_same_latents() {
        let split = mimi();
        let xs = noise(8, 40 * 12);
        let latents = Latents::new(&xs, 12).unwrap();
        let codes = split.encode(latents, 5).unwrap();
        let semantic = split.semantic().encode(latents, 1).unwrap();
        let acoustic = split.acoustic().encode(latents, 4).unwrap();
        assert!(codes.rows().eq(semantic.rows().chain(acoustic.rows())));
        let sum: Vec<f32> = split.semantic().decode(&semantic).unwrap();
        let sum: Vec<f32> =
            sum.iter().zip(&split.acoustic().decode(&acoustic).unwrap()).map(|(a, b)| a + b).collect();
        assert_eq!(split.decode(&codes).unwrap(), sum);
    }

    #[test]
    fn the_laws_hold() {
        check_laws(&mimi(), 150);
        let strided = |strides: &[u32]| {
            let vq = |(k, &stride): (usize, &u32)| {
                (Vq::new(noise(k as u64, 160), 4, Distance::Euclidean).unwrap(), stride)
            };
            Rvq::with_strides(strides.iter().enumerate().map(vq).collect()).unwrap()
        };
        check_laws(&SplitRvq::new(strided(&[4]), strided(&[6, 1])).unwrap(), 200);
    }

    #[test]
    fn stacks_must_share_a_dimension() {
        let error = SplitRvq::new(rvq(0, 1, 3), rvq(0, 1, 4)).unwrap_err();
        assert!(matches!(error, Error::Shape { expected: 3, actual: 4, .. }));
        let error = SplitRvq::new(rvq(0, 200, 1), rvq(0, 57, 1)).unwrap_err();
        assert!(matches!(error, Error::Range { actual: 257, .. }));
    }

    proptest! {
        #[test]
        fn nothing_panics(
            xs in prop::collection::vec(hostile_f32(), 0..24),
            dim in hostile_size(),
            n_codebooks in hostile_size(),
        ) {
            let split = SplitRvq::new(rvq(1, 1, 3), rvq(2, 2, 3)).unwrap();
            check_hostile(&split, &xs, dim, n_codebooks);
            check_hostile(&split, &xs, 3, n_codebooks);
        }
    }
}
