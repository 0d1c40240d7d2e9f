//! How gradients pass a look-up, which has none.

use super::search::normalized;
use crate::config::GradientEstimator;
use crate::error::Result;
use candle_core::{D, Tensor};

/// Added to squared norms, so that zero vectors divide.
const FLOOR: f64 = 1e-12;
/// Longest that a gradient may become: what stands for silence has no length to compare an entry's with.
const MAX_SCALE: f64 = 10.0;

/// The entries `entries`, with a gradient for the vectors `xs` that they stand for.
///
/// Their values are exact to a rounding error of the largest vector.
///
/// # Shapes
/// Both, and the result, `[..., dim]`.
///
/// # Source
/// Straight through: Bengio, Léonard and Courville 2013, arXiv 1308.3432. Rotation: Fifty et al. 2024,
/// arXiv 2410.06424, section 4.2: the entry is the vector after a rotation and a scaling, both of which are
/// constants to the gradient. The scaling is bounded here; the paper's is not.
pub(crate) fn pass_gradient(xs: &Tensor, entries: &Tensor, estimator: GradientEstimator) -> Result<Tensor> {
    let moved = match estimator {
        GradientEstimator::StraightThrough => xs.clone(),
        GradientEstimator::Rotation => rotated(xs, &entries.detach())?,
    };
    let rest = (entries.detach() - moved.detach())?;
    Ok((moved + rest)?)
}

/// `xs` rotated onto the direction of `entries` and scaled to their length.
fn rotated(xs: &Tensor, entries: &Tensor) -> Result<Tensor> {
    let fixed = xs.detach();
    let (from, to) = (normalized(&fixed)?, normalized(entries)?);
    let middle = normalized(&(&from + &to)?)?;
    let norm =
        |rows: &Tensor| -> Result<Tensor> { Ok((rows.sqr()?.sum_keepdim(D::Minus1)? + FLOOR)?.sqrt()?) };
    let scale = (norm(entries)? / norm(&fixed)?)?.minimum(MAX_SCALE)?;
    let along = |direction: &Tensor| -> Result<Tensor> { Ok((xs * direction)?.sum_keepdim(D::Minus1)?) };
    let reflected = (xs - (middle.broadcast_mul(&along(&middle)?)? * 2.0)?)?;
    Ok((reflected + (to.broadcast_mul(&along(&from)?)? * 2.0)?)?.broadcast_mul(&scale)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::testing::{assert_close, noise, values};
    use candle_core::Var;

    /// The gradient of `sum(pass_gradient(xs, entries) * grads)`.
    fn gradient(xs: &Tensor, entries: &Tensor, grads: &Tensor, estimator: GradientEstimator) -> Vec<f64> {
        let xs = Var::from_tensor(xs).unwrap();
        let ys = pass_gradient(&xs, entries, estimator).unwrap();
        assert_close("value", &values(&ys), &values(entries), 1e-6);
        let loss = (ys * grads).unwrap().sum_all().unwrap();
        values(loss.backward().unwrap().get(&xs).unwrap())
    }

    #[test]
    fn straight_through_copies_the_gradient() {
        let (xs, entries, grads) = (noise(1, &[5, 4]), noise(2, &[5, 4]), noise(3, &[5, 4]));
        let got = gradient(&xs, &entries, &grads, GradientEstimator::StraightThrough);
        assert_eq!(got, values(&grads));
    }

    #[test]
    fn rotation_keeps_the_angle_between_gradient_and_vector() {
        let (xs, entries, grads) = (noise(1, &[5, 4]), noise(2, &[5, 4]), noise(3, &[5, 4]));
        let got = gradient(&xs, &entries, &grads, GradientEstimator::Rotation);
        let (xs, entries, grads) = (values(&xs), values(&entries), values(&grads));
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| x * y).sum() };
        for i in 0..5 {
            let row = i * 4..(i + 1) * 4;
            let (x, e, g, got) = (&xs[row.clone()], &entries[row.clone()], &grads[row.clone()], &got[row]);
            let scale = (dot(e, e) / dot(x, x)).sqrt();
            // The map is a scaled rotation: its transpose takes e to scale^2 x and keeps angles.
            assert!((dot(got, got).sqrt() - scale * dot(g, g).sqrt()).abs() < 1e-4);
            let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
            assert!((cosine(got, x) - cosine(g, e)).abs() < 1e-4);
        }
    }

    #[test]
    fn the_gradient_of_silence_is_finite() {
        let (entries, grads) = (noise(2, &[4, 3]), noise(3, &[4, 3]));
        for size in [0.0, 1e-30, 1e-12, 1e-6] {
            let xs = (noise(1, &[4, 3]) * size).unwrap();
            let got = gradient(&xs, &entries, &grads, GradientEstimator::Rotation);
            let length = |xs: &[f64]| xs.iter().map(|x| x * x).sum::<f64>().sqrt();
            for (got, grad) in got.chunks(3).zip(values(&grads).chunks(3)) {
                // What has hardly a direction is not only rotated.
                assert!(length(got) <= 3.0 * MAX_SCALE * length(grad), "{size}: {got:?} of {grad:?}");
            }
        }
    }
}
