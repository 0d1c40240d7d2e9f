//! Split residual vector quantization: two stacks that code the same latents (Mimi).

use crate::codes::{CodeLayout, Codes};
use crate::error::{Error, Result};
use crate::quantizer::{Latents, Quantizer, Rvq, check_codes, check_latents};

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

    fn encode(&self, latents: Latents<'_>, n_codebooks: usize) -> Result<Codes> {
        check_latents(&self.layout, self.dim(), latents, n_codebooks)?;
        let n_semantic = self.semantic.layout().n_codebooks().min(n_codebooks);
        let mut rows = self.semantic.encode(latents, n_semantic)?.into_rows();
        if n_codebooks > n_semantic {
            rows.append(&mut self.acoustic.encode(latents, n_codebooks - n_semantic)?.into_rows());
        }
        Codes::new(self.layout.truncated(n_codebooks)?, rows)
    }

    fn decode(&self, codes: &Codes) -> Result<Vec<f32>> {
        check_codes(&self.layout, codes)?;
        let n_semantic = self.semantic.layout().n_codebooks().min(codes.n_codebooks());
        let mut out = self.semantic.decode(&codes.truncated(n_semantic)?)?;
        if codes.n_codebooks() > n_semantic {
            let layout = self.acoustic.layout().truncated(codes.n_codebooks() - n_semantic)?;
            let rows = codes.rows().skip(n_semantic).map(<[u32]>::to_vec).collect();
            let acoustic = self.acoustic.decode(&Codes::new(layout, rows)?)?;
            out.iter_mut().zip(&acoustic).for_each(|(sum, x)| *sum += x);
        }
        Ok(out)
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
