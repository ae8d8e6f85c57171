//! The one call into OpenBLAS.

use cblas::{Layout, Transpose, sgemm as cblas_sgemm};

use crate::tensor::Tensor;

/// `out[m, n] = x[m, k] W[n, k]ᵀ`.
pub fn sgemm(x: &Tensor, weights: &[f32], k: usize, out: &mut Tensor) {
    let (m, n) = (out.rows(), out.cols());
    assert_eq!((x.rows(), x.cols(), weights.len()), (m, k, n * k), "shapes of a product");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let size =
        |n: usize| i32::try_from(n).unwrap_or_else(|_| panic!("a matrix of {n} rows is too large for BLAS"));
    let (no, yes) = (Transpose::None, Transpose::Ordinary);
    let (lda, ldb, ldc) = (size(k), size(k), size(n));
    // SAFETY: the lengths are checked above.
    unsafe {
        cblas_sgemm(
            Layout::RowMajor,
            no,
            yes,
            size(m),
            size(n),
            size(k),
            1.0,
            x.data(),
            lda,
            weights,
            ldb,
            0.0,
            out.data_mut(),
            ldc,
        );
    }
}
