//! Pairs of bfloat16 numbers, for products that round both sides to bfloat16: twice as fast as those of float32 where the processor has
//! instructions for it.

use super::rows::rows_of_task;
use super::simd::{Checked, Kernel, Simd, Weight};
use crate::backend::Pair;
use crate::cpu::pool::Pool;
use crate::tensor::Tensor;

impl Weight for Pair {
    type X = Pair;
    type Vector<S: Simd> = S::W;
    type Panel<S: Simd> = ();
    const WIDENED_ONCE: bool = false;
    #[inline(always)]
    unsafe fn panel<S: Simd>(_: S, _: *const Self) {}
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, (): (), p: *const Self) -> [S::W; 2] {
        // SAFETY: the caller's.
        unsafe { [s.load_bytes(p.cast()), s.load_bytes(p.add(S::LANES).cast())] }
    }
    #[inline(always)]
    unsafe fn widen<S: Simd>(_: S, _: [S::W; 2], _: *mut f32) {
        unreachable!("pairs are multiplied as they are")
    }
    #[inline(always)]
    unsafe fn splat<S: Simd>(s: S, x: Pair) -> S::W {
        // SAFETY: the caller's.
        unsafe { s.splat_group(x.0 as i32) }
    }
    #[inline(always)]
    unsafe fn fma<S: Simd>(s: S, w: S::W, x: S::W, sum: S::V) -> S::V {
        // SAFETY: the caller's.
        unsafe { s.add_bf16_products(sum, w, x) }
    }
}

/// Rounds all rows of a matrix: `[rows][pairs]`, the last pair filled up with a zero.
pub struct RoundToPairs<'a> {
    pub pool: &'a Pool,
    pub x: &'a Tensor,
    /// Where they go.
    pub pairs: &'a mut [Pair],
}

impl Kernel for RoundToPairs<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let RoundToPairs { pool, x, pairs } = self;
        let (cols, width) = (x.cols().max(1), x.cols().div_ceil(2).max(1));
        let some = rows_of_task(cols);
        pool.run_each(pairs.chunks_mut(some * width).enumerate(), |(i, pairs)| {
            for (row, pairs) in x.data()[i * some * cols..].chunks(cols).zip(pairs.chunks_mut(width)) {
                // SAFETY: the token turns its features on.
                unsafe { s.run(RoundRow { row, pairs }) };
            }
        });
    }
}

// SAFETY: rows and pairs are slices of their own length.
unsafe impl Checked for RoundToPairs<'_> {}

struct RoundRow<'a> {
    row: &'a [f32],
    pairs: &'a mut [Pair],
}

impl Kernel for RoundRow<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let whole = self.row.chunks_exact(2 * S::LANES);
        let rest = whole.remainder().chunks(2);
        let (pairs, last) = self.pairs.split_at_mut(whole.len() * S::LANES);
        for (to, from) in pairs.chunks_exact_mut(S::LANES).zip(whole) {
            // SAFETY: two vectors of numbers, one of pairs.
            unsafe {
                let first = s.load(from.as_ptr());
                s.store_bf16(to.as_mut_ptr(), [first, s.load(from[S::LANES..].as_ptr())]);
            }
        }
        for (to, from) in last.iter_mut().zip(rest) {
            *to = Pair::new(from[0], from.get(1).copied().unwrap_or(0.0));
        }
    }
}
