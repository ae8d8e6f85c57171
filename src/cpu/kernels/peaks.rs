//! Loops that do nothing but what a machine can do at most of: multiply and add, and read memory.

use super::simd::{Checked, Kernel, Simd};

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
            std::hint::black_box(sums.map(|sum| s.reduce_sum(sum)));
        }
        (self.rounds * SUMS * S::LANES * 2) as u64
    }
}

// SAFETY: nothing but registers.
unsafe impl Checked for Multiply {}

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
        /// Memory gives more when it is read in several streams than in one.
        const STREAMS: usize = 4;
        /// Vectors of a stream that are read together.
        const VECTORS: usize = 2;
        let len = self.data.len() / STREAMS;
        // SAFETY: the vectors lie inside of the streams.
        unsafe {
            let mut sums = [[s.splat(0.0); VECTORS]; STREAMS];
            for at in (0..len / (VECTORS * S::LANES)).map(|i| i * VECTORS * S::LANES) {
                for (stream, sums) in sums.iter_mut().enumerate() {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let p = self.data.as_ptr().add(stream * len + at + i * S::LANES);
                        *sum = s.add(*sum, s.load(p));
                    }
                }
            }
            sums.into_iter().flatten().map(|sum| s.reduce_sum(sum)).sum()
        }
    }
}

// SAFETY: streams are parts of the data.
unsafe impl Checked for Read<'_> {}
