//! Pairs of bfloat16 numbers, for products that round both sides to bfloat16: twice as fast as those of float32 where the processor has
//! instructions for it.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::rows::rows_of_task;
use super::simd::{Kernel, Simd, Weight};
use crate::cpu::pool::Pool;
use crate::tensor::Tensor;

/// The weights of two inputs, one after the other, in bfloat16. What they are multiplied with is rounded to bfloat16 as well.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(transparent)]
pub struct Pair(pub u32);

impl Pair {
    /// Two numbers, rounded.
    #[inline(always)]
    pub fn new(first: f32, second: f32) -> Pair {
        // Ties go to even. What is no number stays one: its upper bits are kept, and one that rounding cannot carry away.
        let round = |x: f32| {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
            (if x.is_nan() { bits | 0x40_0000 } else { rounded }) >> 16
        };
        Pair(round(first) | round(second) << 16)
    }
}

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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn numbers_are_rounded_as_elsewhere() {
        let values = [
            0.0,
            -0.0,
            1.0,
            1.003_906_3,
            1.011_718_8,
            3.4e38,
            f32::INFINITY,
            f32::MIN_POSITIVE,
            1e-45,
            -7.77,
        ];
        for x in values {
            let Pair(pair) = Pair::new(x, -x);
            assert_eq!(pair as u16, bf16::from_f32(x).to_bits(), "{x}");
            assert_eq!((pair >> 16) as u16, bf16::from_f32(-x).to_bits(), "-{x}");
        }
        let nan = Pair::new(f32::NAN, f32::from_bits(0xffff_ffff)).0;
        assert!(bf16::from_bits(nan as u16).is_nan() && bf16::from_bits((nan >> 16) as u16).is_nan());
    }
}
