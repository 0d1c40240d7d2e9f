//! K-means, from which codebooks start.

use super::search::nearest;
use crate::error::Result;
use crate::rng::Rng;
use candle_core::{DType, Tensor};
use codec_core::quantizer::Distance;

/// `k` centres of `rows` and how many rows each has.
///
/// Starts from rows drawn at random; a centre without rows moves to a row drawn at random.
///
/// # Shapes
/// `rows` `[n, dim]`, centres `[k, dim]`, counts `[k]`.
///
/// # Source
/// Lloyd 1982, "Least squares quantization in PCM".
pub(crate) fn kmeans(
    rows: &Tensor,
    k: usize,
    distance: Distance,
    n_rounds: usize,
    rng: &mut Rng,
) -> Result<(Tensor, Tensor)> {
    let n = rows.dim(0)?;
    let device = rows.device();
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in 0..n.min(k) {
        order.swap(i, i + rng.below(n - i));
    }
    // With fewer rows than centres, rows come again.
    let start: Vec<u32> = (0..k).map(|i| order[i % n]).collect();
    let mut centres = rows.index_select(&Tensor::from_vec(start, k, device)?, 0)?;
    let mut counts = Tensor::ones(k, DType::F32, device)?;
    for _ in 0..n_rounds {
        let codes = nearest(rows, &centres, distance)?;
        let (sizes, sums) = gather(rows, &codes, k)?;
        let sizes_on_host: Vec<f32> = sizes.to_vec1()?;
        let replaced: Vec<u32> = sizes_on_host
            .iter()
            .enumerate()
            .map(|(i, &size)| if size > 0.0 { (n + i) as u32 } else { rng.below(n) as u32 })
            .collect();
        let means = sums.broadcast_div(&sizes.maximum(1.0)?.unsqueeze(1)?)?;
        let all = Tensor::cat(&[rows, &means], 0)?;
        centres = all.index_select(&Tensor::from_vec(replaced, k, device)?, 0)?;
        counts = sizes;
    }
    Ok((centres, counts))
}

/// How many rows have each code, and their sums.
///
/// # Shapes
/// `rows` `[n, dim]`, `codes` `[n]`, counts `[k]`, sums `[k, dim]`.
pub(crate) fn gather(rows: &Tensor, codes: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let (n, dim) = rows.dims2()?;
    let ones = Tensor::ones(n, DType::F32, rows.device())?;
    let counts = Tensor::zeros(k, DType::F32, rows.device())?.index_add(codes, &ones, 0)?;
    let sums = Tensor::zeros((k, dim), DType::F32, rows.device())?;
    Ok((counts, sums.index_add(codes, &rows.contiguous()?, 0)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::testing::{noise, values};

    #[test]
    fn finds_clusters_and_leaves_no_centre_empty() {
        // Eight tight clusters at the corners of a cube.
        let n = 800;
        let corners: Vec<f32> = (0..n)
            .flat_map(|i| (0..3).map(move |axis| if i >> axis & 1 == 0 { -1.0 } else { 1.0 }))
            .collect();
        let rows = (noise(1, &[n, 3]) * 0.05).unwrap();
        let rows = (rows + Tensor::from_vec(corners, (n, 3), &candle_core::Device::Cpu).unwrap()).unwrap();
        let (centres, counts) = kmeans(&rows, 16, Distance::Euclidean, 20, &mut Rng::of(1, "k", 0)).unwrap();
        let codes = nearest(&rows, &centres, Distance::Euclidean).unwrap();
        let error = (rows - centres.index_select(&codes, 0).unwrap()).unwrap();
        let error = values(&error.sqr().unwrap().mean_all().unwrap())[0];
        assert!(error < 0.003, "{error}");
        assert_eq!(values(&counts).iter().sum::<f64>(), n as f64);
    }

    #[test]
    fn more_centres_than_rows_is_no_error() {
        let rows = noise(1, &[5, 2]);
        let (centres, _) = kmeans(&rows, 8, Distance::Euclidean, 3, &mut Rng::of(1, "k", 0)).unwrap();
        assert_eq!(centres.dims(), [8, 2]);
    }
}
