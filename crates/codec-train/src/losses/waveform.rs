//! Distances of samples.

use crate::error::Result;
use candle_core::{D, Tensor};

/// Keeps the logarithm and the quotient of silence finite.
const POWER_FLOOR: f64 = 1e-8;

/// Mean absolute difference.
///
/// # Errors
/// What the tensor library fails with.
pub fn l1(decoded: &Tensor, target: &Tensor) -> Result<Tensor> {
    Ok((decoded - target)?.abs()?.mean_all()?)
}

/// Negative scale-invariant signal-to-distortion ratio in dB, the mean over signals, each without its mean.
///
/// # Shapes
/// Both `[n_signals, n_samples]`.
///
/// # Errors
/// What the tensor library fails with.
///
/// # Source
/// Le Roux et al. 2019, arXiv 1811.02508, equation 5.
pub fn negative_si_sdr(decoded: &Tensor, target: &Tensor) -> Result<Tensor> {
    let centred = |xs: &Tensor| -> Result<Tensor> { Ok(xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?) };
    let (xs, ys) = (centred(decoded)?, centred(target)?);
    let power = |xs: &Tensor| -> Result<Tensor> { Ok((xs.sqr()?.mean_keepdim(D::Minus1)? + POWER_FLOOR)?) };
    let share = ((&xs * &ys)?.mean_keepdim(D::Minus1)? / power(&ys)?)?;
    let projected = ys.broadcast_mul(&share)?;
    let ratio = (power(&projected)?.log()? - power(&(&xs - &projected)?)?.log()?)?;
    Ok((ratio.mean_all()? * (-10.0 / std::f64::consts::LN_10))?)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check_gradient, noise, values};
    use super::*;
    use candle_core::DType;

    #[test]
    fn have_gradients() {
        let (xs, ys) = (noise(1, &[2, 40]), noise(2, &[2, 40]));
        let precise = ys.to_dtype(DType::F64).unwrap();
        check_gradient(&xs, |xs| l1(xs, &ys), |xs| l1(xs, &precise));
        check_gradient(&xs, |xs| negative_si_sdr(xs, &ys), |xs| negative_si_sdr(xs, &precise));
    }

    #[test]
    fn si_sdr_is_that_of_the_metric() {
        let (xs, ys) = (noise(1, &[1, 400]), noise(2, &[1, 400]));
        let xs = ((xs * 0.3).unwrap() + &ys).unwrap();
        let mut sums = codec_metrics::SiSdr::default();
        let samples = |xs: &Tensor| -> Vec<f32> { xs.flatten_all().unwrap().to_vec1().unwrap() };
        sums.push(&samples(&ys), &samples(&xs)).unwrap();
        let got = -values(&negative_si_sdr(&xs, &ys).unwrap())[0];
        assert!((got - sums.decibels().unwrap()).abs() < 1e-3, "{got}");
    }
}
