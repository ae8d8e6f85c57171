//! What treats each row by itself: norms, activations, sums. Rows are shared between threads when there is enough to do.

use std::ops::Range;

use super::math::activate;
use super::matmul::Shared;
use super::simd::{Checked, Kernel, Simd, load, store};
use crate::backend::{Activation, Norm, Rotation};
use crate::cpu::pool::Pool;
use crate::tensor::Tensor;

/// Elements below which it does not pay to hand rows to another thread.
const TASK_ELEMENTS: usize = 16 << 10;

/// Rows that are handed to a thread together.
pub fn rows_of_task(cols: usize) -> usize {
    (TASK_ELEMENTS / cols.max(1)).max(1)
}

/// Calls `task` with ranges of rows that together are all rows.
pub fn each_rows(pool: &Pool, rows: usize, cols: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
    let some = rows_of_task(cols);
    pool.run(rows.div_ceil(some), &|i| task(i * some..((i + 1) * some).min(rows)));
}

/// Calls `task` with groups of rows that together are all rows, to be written, each with the number of its first one.
pub fn each_rows_mut(pool: &Pool, x: &mut Tensor, task: impl Fn(usize, &mut [f32]) + Sync) {
    let cols = x.cols().max(1);
    let some = rows_of_task(cols);
    pool.run_each(x.data_mut().chunks_mut(some * cols).enumerate(), |(i, rows)| task(i * some, rows));
}

/// Layer norm, or, without `centre`, RMS norm.
pub struct Normalise<'a> {
    pub pool: &'a Pool,
    pub x: &'a Tensor,
    pub norm: &'a Norm<'a>,
    pub centre: bool,
    pub out: &'a mut Tensor,
}

impl Kernel for Normalise<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let Normalise { pool, x, norm, centre, out } = self;
        let (rows, cols) = (x.rows(), x.cols());
        assert_eq!((out.rows(), out.cols()), (rows, cols), "shapes of a norm");
        let (from, to) = (Shared::of_read(x), Shared::new(out));
        // SAFETY: the columns lie inside of both matrices.
        unsafe { norm_all(s, pool, rows, NormRows { from, to, columns: 0..cols, norm, centre, rows: 0..0 }) }
    }
}

// SAFETY: lengths are checked before anything else.
unsafe impl Checked for Normalise<'_> {}

/// As [`Normalise`], of some columns in place.
pub struct NormaliseColumns<'a> {
    pub pool: &'a Pool,
    pub x: &'a mut Tensor,
    pub columns: Range<usize>,
    pub norm: &'a Norm<'a>,
    pub centre: bool,
}

impl Kernel for NormaliseColumns<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let NormaliseColumns { pool, x, columns, norm, centre } = self;
        let rows = x.rows();
        assert!(columns.start <= columns.end && columns.end <= x.cols(), "columns of a norm");
        let of = Shared::new(x);
        // SAFETY: the columns lie inside of the matrix.
        unsafe { norm_all(s, pool, rows, NormRows { from: of, to: of, columns, norm, centre, rows: 0..0 }) }
    }
}

// SAFETY: lengths are checked before anything else.
unsafe impl Checked for NormaliseColumns<'_> {}

/// Norms so many rows as `some` says, which has none yet.
///
/// # Safety
/// Only inside of a kernel; `some.columns` lie inside of both matrices, which have that many rows.
#[inline(always)]
unsafe fn norm_all<S: Simd>(s: S, pool: &Pool, rows: usize, some: NormRows<'_>) {
    let (norm, cols) = (some.norm, some.columns.len());
    assert!(norm.width > 0 && cols % norm.width == 0, "columns of a norm");
    for v in norm.weight.iter().chain(&norm.bias) {
        assert!(v.len() == norm.width || v.len() == cols, "weights of a norm");
    }
    each_rows(pool, rows, cols, &|rows| {
        // SAFETY: the token turns its features on; lengths are checked above; ranges of rows do not overlap.
        unsafe { s.run(NormRows { rows, ..some.clone() }) }
    });
}

#[derive(Clone)]
struct NormRows<'a> {
    from: Shared,
    /// Perhaps the same.
    to: Shared,
    columns: Range<usize>,
    norm: &'a Norm<'a>,
    centre: bool,
    rows: Range<usize>,
}

impl Kernel for NormRows<'_> {
    type Output = ();

    /// # Safety
    /// `norm_all` has checked the lengths.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let NormRows { from, to, columns, norm, centre, rows } = self;
        let Norm { weight, bias, eps, width } = *norm;
        // Of a weight per column of the row, each run takes its own part.
        let part = |v: Option<&[f32]>, start: usize| {
            v.map(|v| if v.len() == width { v.as_ptr() } else { v[start..].as_ptr() })
        };
        for row in rows {
            for start in (0..columns.len()).step_by(width) {
                // SAFETY: each access is to at most `width` elements of the run or of its weights.
                unsafe {
                    let x = from.at(row, columns.start + start).cast_const();
                    let mean = if centre { sum(s, x, width, 0.0, false) / width as f32 } else { 0.0 };
                    let variance = sum(s, x, width, mean, true) / width as f32;
                    let factor = s.splat(1.0 / (variance + eps).sqrt());
                    let (mean, to) = (s.splat(mean), to.at(row, columns.start + start));
                    let (weight, bias) = (part(weight, start), part(bias, start));
                    let mut i = 0;
                    while i < width {
                        let n = (width - i).min(S::LANES);
                        let mut y = s.mul(s.sub(load(s, x.add(i), n), mean), factor);
                        if let Some(weight) = weight {
                            y = s.mul(y, load(s, weight.add(i), n));
                        }
                        if let Some(bias) = bias {
                            y = s.add(y, load(s, bias.add(i), n));
                        }
                        store(s, to.add(i), n, y);
                        i += n;
                    }
                }
            }
        }
    }
}

/// The sum of `x - shift`, or of its squares.
#[inline(always)]
unsafe fn sum<S: Simd>(s: S, x: *const f32, n: usize, shift: f32, square: bool) -> f32 {
    /// Sums under way, which hide the latency of an addition.
    const SUMS: usize = 2;
    // SAFETY: the caller's: `n` elements.
    unsafe {
        let shifts = s.splat(shift);
        let mut totals = [s.splat(0.0); SUMS];
        let mut i = 0;
        while i + SUMS * S::LANES <= n {
            for (v, total) in totals.iter_mut().enumerate() {
                let y = s.sub(s.load(x.add(i + v * S::LANES)), shifts);
                *total = if square { s.fma(y, y, *total) } else { s.add(*total, y) };
            }
            i += SUMS * S::LANES;
        }
        let total = s.add(totals[0], totals[1]);
        let mut sum = s.reduce_sum(total);
        // The rest by itself: zeros in its place would be shifted too.
        while i < n {
            let y = *x.add(i) - shift;
            sum += if square { y * y } else { y };
            i += 1;
        }
        sum
    }
}

/// `x = act(x)`.
pub struct Activate<'a> {
    pub act: Activation,
    pub x: &'a mut [f32],
}

impl Kernel for Activate<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        for chunk in self.x.chunks_mut(S::LANES) {
            let (p, n) = (chunk.as_mut_ptr(), chunk.len());
            // SAFETY: the chunk has `n` elements.
            unsafe { store(s, p, n, activate(s, self.act, load(s, p, n))) };
        }
    }
}

// SAFETY: chunks of the data.
unsafe impl Checked for Activate<'_> {}

/// Rotates pairs of columns; see [`Backend::rope`](crate::backend::Backend::rope).
pub fn rotate(x: &mut [f32], heads: usize, head_dim: usize, row: usize, rope: &Rotation<'_>) {
    let (cos, sin) = (rope.cos.row(row), rope.sin.row(row));
    let pairs = cos.len();
    for head in x.chunks_mut(head_dim).take(heads) {
        if rope.interleaved {
            for (pair, (cos, sin)) in head.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
                let (a, b) = (pair[0], pair[1]);
                pair[0] = a * cos - b * sin;
                pair[1] = a * sin + b * cos;
            }
        } else {
            let (first, rest) = head.split_at_mut(pairs);
            for ((a, b), (cos, sin)) in first.iter_mut().zip(rest).zip(cos.iter().zip(sin)) {
                let (u, v) = (*a, *b);
                *a = u * cos - v * sin;
                *b = u * sin + v * cos;
            }
        }
    }
}

/// What happens to a product that somebody else has computed.
#[cfg(feature = "openblas")]
pub struct Finish<'a> {
    pub product: &'a mut Tensor,
    pub epilogue: &'a crate::backend::Epilogue<'a>,
    pub out: &'a mut Tensor,
}

#[cfg(feature = "openblas")]
impl Kernel for Finish<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let Finish { product, epilogue, out } = self;
        for row in 0..product.rows() {
            if let Some(bias) = epilogue.bias {
                product.row_mut(row).iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
            if let Some(act) = epilogue.act {
                // SAFETY: the features are on.
                unsafe { Activate { act, x: product.row_mut(row) }.run(s) };
            }
            if let Some(mul) = epilogue.mul {
                product.row_mut(row).iter_mut().zip(mul.row(row)).for_each(|(y, m)| *y *= m);
            }
            for (to, y) in out.row_mut(row).iter_mut().zip(product.row(row)) {
                *to = if epilogue.accumulate { *to + y } else { *y };
            }
        }
    }
}

// SAFETY: no pointers but those of `Activate`.
#[cfg(feature = "openblas")]
unsafe impl Checked for Finish<'_> {}
