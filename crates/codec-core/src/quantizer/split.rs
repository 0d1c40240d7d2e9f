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
