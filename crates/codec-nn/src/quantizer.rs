//! A quantizer as tensors: what a family reads from a checkpoint and what training changes.
//!
//! The look-up itself is codec-core's; [`QuantizerNet::fixed`] makes it from the tensors.

use crate::error::Result;
use crate::ops::load_each;
use candle_core::Tensor;
use codec_core::quantizer::{BeamRvq, Distance, Fsq, Projection, Projections, Quantizer, Rvq, SplitRvq, Vq};
use codec_core::{CodeLayout, CodebookSpec};

/// The tensors of a quantizer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum QuantizerNet {
    /// Stages on residuals.
    Residual(ResidualNet),
    /// A semantic and an acoustic stack over the same latents (Mimi).
    Split {
        /// The first codebooks.
        semantic: ResidualNet,
        /// The others.
        acoustic: ResidualNet,
    },
    /// A grid without a table.
    Fsq {
        /// Levels of each value.
        levels: Vec<u32>,
        /// Around the grid.
        projections: Option<ProjectionsNet>,
    },
}

/// Stages of one codebook each, coarse to fine.
#[derive(Clone, Debug)]
pub struct ResidualNet {
    /// The stages.
    pub stages: Vec<StageNet>,
    /// Around the whole stack.
    pub projections: Option<ProjectionsNet>,
    /// Paths through the stages that the finished codec keeps; 1 where it takes the nearest entry of each.
    pub beam: usize,
}

/// One codebook.
#[derive(Clone, Debug)]
pub struct StageNet {
    /// `[codebook_size, codebook_dim]`.
    pub codebook: Tensor,
    /// What the codebook is the quotient of, where a checkpoint keeps that instead (Mimi).
    pub averages: Option<AveragesNet>,
    /// Frames per code.
    pub stride: u32,
    /// How it is searched.
    pub distance: Distance,
    /// Around this codebook.
    pub projections: Option<ProjectionsNet>,
}

/// Sums of vectors and how many they are: their quotients are the entries of a codebook.
#[derive(Clone, Debug)]
pub struct AveragesNet {
    /// `[codebook_size, codebook_dim]`.
    pub sums: Tensor,
    /// `[codebook_size]`.
    pub counts: Tensor,
}

/// Linear maps into and out of a look-up.
#[derive(Clone, Debug)]
pub struct ProjectionsNet {
    /// Before it.
    pub input: LinearNet,
    /// After it.
    pub output: LinearNet,
}

/// A linear map.
#[derive(Clone, Debug)]
pub struct LinearNet {
    /// `[n_out, n_in]`.
    pub weight: Tensor,
    /// `[n_out]`.
    pub bias: Option<Tensor>,
}

impl AveragesNet {
    /// The entries: the sums over the counts, of which none is taken below `floor`.
    ///
    /// # Shapes
    /// The result: `[codebook_size, codebook_dim]`.
    ///
    /// # Errors
    /// When sums and counts do not fit.
    pub(crate) fn entries(&self, floor: f32) -> Result<Tensor> {
        let Self { sums, counts } = self;
        if sums.track_op() || counts.track_op() || !sums.device().is_cpu() {
            let counts = counts.maximum(f64::from(floor))?.unsqueeze(1)?;
            return Ok(sums.broadcast_div(&counts)?);
        }
        let (mut entries, counts) = (values(sums)?, values(counts)?);
        let rows = entries.chunks_exact_mut(sums.dim(1)?.max(1));
        for (entry, count) in rows.zip(counts) {
            let count = count.max(floor);
            entry.iter_mut().for_each(|x| *x /= count);
        }
        Ok(Tensor::from_vec(entries, sums.dims(), sums.device())?)
    }
}

impl QuantizerNet {
    /// Euclidean stages of one code per frame, without projections.
    ///
    /// # Shapes
    /// `codebooks`: each `[codebook_size, dim]`, coarse to fine.
    pub fn residual(codebooks: Vec<Tensor>) -> Self {
        Self::beam(codebooks, 1)
    }

    /// As [`QuantizerNet::residual`], searched along `width` paths.
    pub fn beam(codebooks: Vec<Tensor>, width: usize) -> Self {
        let stages = codebooks.into_iter().map(StageNet::euclidean).collect();
        Self::Residual(ResidualNet { stages, projections: None, beam: width })
    }

    /// The codebooks.
    ///
    /// # Errors
    /// What codec-core refuses in a layout.
    pub fn layout(&self) -> Result<CodeLayout> {
        let specs = match self {
            Self::Residual(net) => net.specs()?,
            Self::Split { semantic, acoustic } => [semantic.specs()?, acoustic.specs()?].concat(),
            Self::Fsq { levels, .. } => return Ok(Fsq::new(levels)?.layout().clone()),
        };
        Ok(CodeLayout::new(specs)?)
    }

    /// The quantizer of the tensors' present values.
    ///
    /// # Errors
    /// What the constructors of codec-core refuse.
    pub fn fixed(&self) -> Result<Box<dyn Quantizer>> {
        Ok(match self {
            Self::Residual(net) if net.beam != 1 => Box::new(BeamRvq::new(net.fixed()?, net.beam)?),
            Self::Residual(net) => Box::new(net.fixed()?),
            Self::Split { semantic, acoustic } => {
                Box::new(SplitRvq::new(semantic.fixed()?, acoustic.fixed()?)?)
            }
            Self::Fsq { levels, projections } => {
                let fsq = Fsq::new(levels)?;
                Box::new(match projections {
                    Some(projections) => fsq.with_projections(projections.fixed()?)?,
                    None => fsq,
                })
            }
        })
    }
}

impl ResidualNet {
    fn specs(&self) -> Result<Vec<CodebookSpec>> {
        let spec = |stage: &StageNet| -> Result<CodebookSpec> {
            let size = u32::try_from(stage.codebook.dim(0)?).unwrap_or(u32::MAX);
            Ok(CodebookSpec { size, stride: stage.stride })
        };
        self.stages.iter().map(spec).collect()
    }

    /// The stack of the tensors' present values.
    ///
    /// # Errors
    /// As [`QuantizerNet::fixed`].
    pub fn fixed(&self) -> Result<Rvq> {
        let stage = |stage_idx: usize| {
            let stage = &self.stages[stage_idx];
            Ok((stage.fixed()?, stage.stride))
        };
        let rvq = Rvq::with_strides(load_each(self.stages.len(), stage)?)?;
        Ok(match &self.projections {
            Some(projections) => rvq.with_projections(projections.fixed()?)?,
            None => rvq,
        })
    }
}

impl StageNet {
    /// One code per frame, searched by Euclidean distance, without projections.
    ///
    /// # Shapes
    /// `codebook`: `[codebook_size, codebook_dim]`.
    pub fn euclidean(codebook: Tensor) -> Self {
        Self { codebook, averages: None, stride: 1, distance: Distance::Euclidean, projections: None }
    }

    /// The stage of the tensors' present values.
    ///
    /// # Errors
    /// As [`QuantizerNet::fixed`].
    pub fn fixed(&self) -> Result<Vq> {
        let vq = Vq::new(values(&self.codebook)?, self.codebook.dim(1)?, self.distance)?;
        Ok(match &self.projections {
            Some(projections) => vq.with_projections(projections.fixed()?)?,
            None => vq,
        })
    }
}

impl ProjectionsNet {
    fn fixed(&self) -> Result<Projections> {
        Ok(Projections::new(self.input.fixed()?, self.output.fixed()?)?)
    }
}

impl LinearNet {
    fn fixed(&self) -> Result<Projection> {
        let (n_out, n_in) = self.weight.dims2()?;
        let bias = self.bias.as_ref().map(values).transpose()?;
        Ok(Projection::new(values(&self.weight)?, bias, n_in, n_out)?)
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Rng, bits};
    use candle_core::{Device, Var};

    #[test]
    fn entries_have_the_same_bits_whether_their_averages_move_or_not() {
        let mut rng = Rng::new(1);
        let sums = rng.tensor(&[30, 7]);
        // One that was never used, and others below and above the floor.
        let counts = Tensor::from_vec((0..30).map(|i| i as f32 * 0.03).collect(), 30, &Device::Cpu).unwrap();
        let moving = Var::from_tensor(&sums).unwrap();
        let fixed = AveragesNet { sums, counts: counts.clone() }.entries(0.1).unwrap();
        let live = AveragesNet { sums: moving.as_tensor().clone(), counts }.entries(0.1).unwrap();
        assert!(live.track_op() && !fixed.track_op());
        assert_eq!((bits(&live), live.dims()), (bits(&fixed), fixed.dims()));
    }
}
