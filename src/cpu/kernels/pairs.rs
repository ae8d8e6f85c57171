//! Pairs of bfloat16 numbers, for products that round both sides to bfloat16: twice as fast as those of float32 where the processor has
//! instructions for it.

use super::rows::rows_of_task;
use super::simd::{Kernel, Simd, Weight};
use crate::backend::Pair;
use crate::cpu::pool::Pool;
use crate::tensor::Tensor;

impl Weight for Pair {
    type X = Pair;
    type Vector<S: Simd> = S::W;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::W {
        // SAFETY: the caller's.
        unsafe { s.load_bytes(p.cast()) }
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
    /// What memory is used.
    pub pairs: Vec<Pair>,
}

impl Kernel for RoundToPairs<'_> {
    type Output = Vec<Pair>;

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) -> Vec<Pair> {
        let RoundToPairs { pool, x, mut pairs } = self;
        let (cols, width) = (x.cols().max(1), x.cols().div_ceil(2).max(1));
        pairs.resize(x.rows() * x.cols().div_ceil(2), Pair(0));
        let some = rows_of_task(cols);
        pool.run_each(pairs.chunks_mut(some * width).enumerate(), |(i, pairs)| {
            for (row, pairs) in x.data()[i * some * cols..].chunks(cols).zip(pairs.chunks_mut(width)) {
                // SAFETY: the token turns its features on.
                unsafe { s.run(RoundRow { row, pairs }) };
            }
        });
        pairs
    }
}

struct RoundRow<'a> {
    row: &'a [f32],
    pairs: &'a mut [Pair],
}

impl Kernel for RoundRow<'_> {
    type Output = ();

    /// # Safety
    /// None beyond the features, with which the compiler makes vectors of this loop.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, _: S) {
        let (whole, rest) = self.row.as_chunks::<2>();
        self.pairs.iter_mut().zip(whole).for_each(|(to, [a, b])| *to = Pair::new(*a, *b));
        if let ([last], Some(to)) = (rest, self.pairs.last_mut()) {
            *to = Pair::new(*last, 0.0);
        }
    }
}
