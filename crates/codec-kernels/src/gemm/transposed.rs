//! Products whose left matrix is read by columns: what a convolution's weights owe to a batch.

use super::{Order, PackedMatrix, Product, Rows, Start, Weights};
use crate::error::{Error, Result, expect_len, product};

/// Threads get whole multiples of this many rows: whole tiles on every level.
const ROW_UNIT: usize = 24;

/// Multiplies the transpose of rows that may overlap with a matrix: `out[r, c] = Σ_t xs[t * step + r] *
/// matrix[t, c]`, as one chain of fused multiply-adds with t ascending.
///
/// With the windows of a convolution as rows and the gradient of its output as the matrix this is the
/// gradient of its weight.
///
/// # Shapes
/// `xs`: `[(k - 1) * step + n_rows]` or more, `matrix`: `[k, n]` from [`PackedMatrix::for_transposed`],
/// `out`: `[n_rows, n]`.
///
/// # Errors
/// [`Error::Shape`] where the sizes do not agree, [`Error::Packing`] for a matrix that was packed for
/// [`super::gemm`] in another way, [`Error::Zero`] for a step of zero.
pub fn gemm_transposed(
    xs: &[f32],
    n_rows: usize,
    step: usize,
    matrix: &PackedMatrix,
    start: Start<'_>,
    out: &mut [f32],
) -> Result<()> {
    let (k, n) = (matrix.k, matrix.n);
    if step == 0 {
        return Err(Error::Zero { what: "step" });
    }
    let values = match &matrix.weights {
        Weights::Floats(values) => values.as_slice(),
        _ => return Err(Error::Packing),
    };
    expect_len("out", product("n_rows * n", n_rows, n)?, out.len())?;
    if let Start::Bias(bias) = start {
        expect_len("bias", n, bias.len())?;
    }
    if out.is_empty() {
        return Ok(());
    }
    if k > 0 {
        let last = product("k * step", k - 1, step)?;
        let needed = last.checked_add(n_rows).ok_or(Error::Overflow { what: "k * step" })?;
        if xs.len() < needed {
            return Err(Error::Shape { what: "xs", expected: needed, actual: xs.len() });
        }
    }
    // Rows without elements lie nowhere.
    let pitch = usize::from(k > 0);
    let rows = Rows { data: xs, n_rows, row_len: k, pitch, step };
    let order = Order::Forwards;
    Product::<_, true> { rows, matrix, values, scales: &[], start, order }.run(ROW_UNIT, out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, noise, same_everywhere};
    use proptest::prelude::proptest;

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        #[test]
        fn is_one_chain_for_any_level_and_number_of_threads(
            k in 0..700_usize,
            n_rows in 0..120_usize,
            n in 1..200_usize,
            step in 1..40_usize,
            goes_on: bool,
            seed in 0..1000_u64,
        ) {
            let xs = noise(seed, k.saturating_sub(1) * step + n_rows);
            let ys = noise(seed + 1, k * n);
            let before = noise(seed + 2, n_rows * n);
            let matrix = PackedMatrix::for_transposed(&ys, k, n).unwrap();
            let start = if goes_on { Start::Accumulate } else { Start::Zero };
            let got = same_everywhere(|| {
                let mut out = before.clone();
                gemm_transposed(&xs, n_rows, step, &matrix, start, &mut out).unwrap();
                out
            });
            let chain = |r: usize, c: usize| {
                let start = if goes_on { before[r * n + c] } else { 0.0 };
                (0..k).fold(start, |sum, t| xs[t * step + r].mul_add(ys[t * n + c], sum))
            };
            let want: Vec<f32> = (0..n_rows * n).map(|i| chain(i / n, i % n)).collect();
            assert_eq!(bits(&got), bits(&want));
        }
    }

    #[test]
    fn sizes_that_disagree_are_refused() {
        let matrix = PackedMatrix::for_transposed(&[0.0; 6], 3, 2).unwrap();
        let call = |len: usize, n_rows, step, n_out: usize| {
            gemm_transposed(&vec![0.0; len], n_rows, step, &matrix, Start::Zero, &mut vec![0.0; n_out])
        };
        assert!(call(8, 4, 2, 8).is_ok());
        assert!(call(7, 4, 2, 8).is_err());
        assert!(call(8, 4, 2, 7).is_err());
        assert!(call(8, 4, 0, 8).is_err());
        // Without elements there is nothing to read, whatever the number of rows.
        let empty = PackedMatrix::for_transposed(&[], 0, 70).unwrap();
        let mut out = vec![1.0; 300 * 70];
        gemm_transposed(&[], 300, 1, &empty, Start::Zero, &mut out).unwrap();
        assert_eq!(out, vec![0.0; 300 * 70]);
        let narrow = PackedMatrix::new(&[0.0; 6], 3, 2).unwrap();
        let bytes = PackedMatrix::new(&vec![0.5; 3 << 14], 3, 1 << 14).unwrap();
        for (matrix, n) in [(narrow, 2), (bytes, 1 << 14)] {
            let refused = gemm_transposed(&[0.0; 8], 4, 2, &matrix, Start::Zero, &mut vec![0.0; 4 * n]);
            assert_eq!(refused, Err(Error::Packing));
        }
    }
}
