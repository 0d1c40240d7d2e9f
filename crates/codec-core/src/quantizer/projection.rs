//! Learned linear maps around a look-up: a 1x1 convolution is one row product per frame.

use crate::error::{Error, Result};
use crate::quantizer::{check_finite, checked_len};
use codec_kernels::{PackedMatrix, Rows, Start, gemm};

/// A linear map of rows, with or without a bias.
///
/// # Shapes
/// `[n, n_in]` to `[n, n_out]`.
#[derive(Clone, Debug)]
pub struct Projection {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    packed: PackedMatrix,
}

impl Projection {
    /// Takes the weight as PyTorch stores that of a linear layer or a 1x1 convolution.
    ///
    /// # Shapes
    /// `weight`: `[n_out, n_in]`; `bias`: `[n_out]`.
    ///
    /// # Errors
    /// [`Error::Range`] when a dimension is zero, [`Error::Shape`] when the weight or the bias has
    /// another size, [`Error::NotFinite`] when a value is not finite.
    pub fn new(weight: Vec<f32>, bias: Option<Vec<f32>>, n_in: usize, n_out: usize) -> Result<Self> {
        let expected = checked_len("projection weight", &[n_in, n_out])?;
        if weight.len() != expected {
            return Err(Error::Shape { what: "projection weight", expected, actual: weight.len() });
        }
        check_finite("projection weight", &weight)?;
        if let Some(bias) = &bias {
            if bias.len() != n_out {
                let what = "projection bias";
                return Err(Error::Shape { what, expected: n_out, actual: bias.len() });
            }
            check_finite("projection bias", bias)?;
        }
        let packed = PackedMatrix::from_transposed(&weight, n_in, n_out)?;
        Ok(Self { weight, bias, packed })
    }

    /// Values per row that go in.
    pub fn n_in(&self) -> usize {
        self.packed.k()
    }

    /// Values per row that come out.
    pub fn n_out(&self) -> usize {
        self.packed.n()
    }

    /// The weight, `[n_out, n_in]`.
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// The bias, `[n_out]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Maps rows `xs`, `[n, n_in]`, to `out`, `[n, n_out]`.
    pub(crate) fn apply(&self, xs: &[f32], out: &mut [f32]) -> Result<()> {
        let n_in = self.n_in();
        let start = self.bias.as_deref().map_or(Start::Zero, Start::Bias);
        gemm(Rows::new(xs, xs.len() / n_in, n_in, n_in)?, &self.packed, start, out)?;
        Ok(())
    }
}

/// The map into a quantizer's space and the map back.
///
/// # Shapes
/// `input`: `dim` to `codebook_dim`; `output`: `codebook_dim` to `dim`.
#[derive(Clone, Debug)]
pub struct Projections {
    input: Projection,
    output: Projection,
}

impl Projections {
    /// Pairs the two maps.
    ///
    /// # Errors
    /// [`Error::Shape`] when the one does not lead back to where the other starts.
    pub fn new(input: Projection, output: Projection) -> Result<Self> {
        if output.n_in() != input.n_out() {
            let what = "input of the output projection";
            return Err(Error::Shape { what, expected: input.n_out(), actual: output.n_in() });
        }
        if output.n_out() != input.n_in() {
            let what = "output of the output projection";
            return Err(Error::Shape { what, expected: input.n_in(), actual: output.n_out() });
        }
        Ok(Self { input, output })
    }

    /// The map from latents to the space of the look-up.
    pub fn input(&self) -> &Projection {
        &self.input
    }

    /// The map back.
    pub fn output(&self) -> &Projection {
        &self.output
    }

    /// Checks that the inner space is the quantizer's.
    pub(crate) fn check_inner(&self, expected: usize) -> Result<()> {
        let actual = self.input.n_out();
        if actual != expected {
            return Err(Error::Shape { what: "output of the input projection", expected, actual });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_projection_is_the_affine_map_of_its_weights() {
        let weight = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let projection = Projection::new(weight, Some(vec![0.5, -0.5, 0.25]), 2, 3).unwrap();
        let mut out = [0.0; 6];
        projection.apply(&[1.0, 10.0, -1.0, 0.0], &mut out).unwrap();
        assert_eq!(out, [21.5, 42.5, 65.25, -0.5, -3.5, -4.75]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let new =
            |n: usize, bias: Option<Vec<f32>>, n_in, n_out| Projection::new(vec![1.0; n], bias, n_in, n_out);
        assert!(matches!(new(0, None, 0, 3), Err(Error::Range { .. })));
        assert!(matches!(new(0, None, usize::MAX, 3), Err(Error::Range { .. })));
        assert!(matches!(new(5, None, 2, 3), Err(Error::Shape { expected: 6, actual: 5, .. })));
        assert!(matches!(new(6, Some(vec![0.0; 2]), 2, 3), Err(Error::Shape { expected: 3, .. })));
        let nan = Some(vec![0.0, f32::NAN, 0.0]);
        assert!(matches!(new(6, nan, 2, 3), Err(Error::NotFinite { index: 1, .. })));
        let (a, b) = (new(6, None, 2, 3).unwrap(), new(6, None, 3, 2).unwrap());
        assert!(Projections::new(a.clone(), b).is_ok());
        assert!(matches!(Projections::new(a.clone(), a), Err(Error::Shape { .. })));
    }
}
