//! Loops that do nothing but what a machine can do at most of: multiply and add, and read memory.

use super::simd::{Kernel, Simd};

/// Multiplies and adds in registers; gives the number of floating-point operations.
pub struct Multiply {
    pub rounds: usize,
}

impl Kernel for Multiply {
    type Output = u64;

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) -> u64 {
        /// Enough sums under way to hide the latency of one operation.
        const SUMS: usize = 12;
        // SAFETY: the features are on.
        unsafe {
            let (factor, term) = (s.splat(0.999), s.splat(0.001));
            // Different ones, which the compiler does not know: it would compute equal sums only once.
            let mut sums: [S::V; SUMS] = std::array::from_fn(|i| s.splat(std::hint::black_box(i as f32)));
            for _ in 0..self.rounds {
                for sum in &mut sums {
                    *sum = s.fma(*sum, factor, term);
                }
            }
            std::hint::black_box(sums.map(|sum| s.sum(sum)));
        }
        (self.rounds * SUMS * S::LANES * 2) as u64
    }
}

/// Reads every element once.
pub struct Read<'a> {
    pub data: &'a [f32],
}

impl Kernel for Read<'_> {
    type Output = f32;

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) -> f32 {
        /// Vectors that are read at once.
        const SUMS: usize = 8;
        let chunks = self.data.chunks_exact(SUMS * S::LANES);
        // SAFETY: a chunk has that many elements.
        unsafe {
            let mut sums = [s.splat(0.0); SUMS];
            for chunk in chunks {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = s.add(*sum, s.load(chunk.as_ptr().add(i * S::LANES)));
                }
            }
            sums.into_iter().map(|sum| s.sum(sum)).sum()
        }
    }
}
