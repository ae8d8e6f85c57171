//! Elementary functions on vectors. Errors are measured in the tests below against float64.

use super::simd::Simd;
use crate::backend::Activation;

/// `exp(x)`, at most 2 ULP from exact; exactly 0 below -87.3 and 1 at 0, infinity above 88.7.
///
/// Cephes' `expf`: x is reduced by a multiple of ln 2, the rest goes through a polynomial of degree 6.
///
/// # Safety
/// Only inside of a kernel.
#[inline(always)]
pub unsafe fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let (low, high) = (s.splat(-87.336_54), s.splat(88.722_83));
        // The order of the operands lets what is not a number pass.
        let y = s.min(s.splat(88.0), s.max(low, x));
        let n = s.round(s.mul(y, s.splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, the first of which has few enough bits for its product with n to be exact.
        let r = s.fma(n, s.splat(-0.693_359_4), y);
        let r = s.fma(n, s.splat(2.121_944_4e-4), r);
        let mut p = s.splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            p = s.fma(p, r, s.splat(c));
        }
        let p = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
        let y = s.mul(p, s.exp2_whole(n));
        let y = s.if_less(x, low, s.splat(0.0), y);
        // Between 88 and the largest exponent one step more is needed.
        let more = s.mul(y, exp_small(s, s.sub(x, s.splat(88.0))));
        let y = s.if_less(s.splat(88.0), x, more, y);
        s.if_less(high, x, s.splat(f32::INFINITY), y)
    }
}

/// `exp(x)` for x from 0 to 1.
#[inline(always)]
unsafe fn exp_small<S: Simd>(s: S, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let mut p = s.splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = s.fma(p, x, s.splat(c));
        }
        p
    }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
unsafe fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let e = exp(s, s.sub(s.splat(0.0), x));
        s.div(s.splat(1.0), s.add(s.splat(1.0), e))
    }
}

/// `tanh(x)`, at most 4e-7 from exact relative to its value.
///
/// Near 0 by Cephes' polynomial, beyond by `1 - 2 / (exp(2x) + 1)`.
///
/// # Safety
/// Only inside of a kernel.
#[inline(always)]
pub unsafe fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let z = s.mul(x, x);
        let mut p = s.splat(-5.704_988_7e-3);
        for c in [2.063_909e-2, -5.373_971_4e-2, 0.133_314_42, -0.333_332_8] {
            p = s.fma(p, z, s.splat(c));
        }
        let small = s.fma(s.mul(p, z), x, x);
        let e = exp(s, s.add(x, x));
        let large = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
        s.if_less(z, s.splat(0.625 * 0.625), small, large)
    }
}

/// `x Φ(x)`, at most 4e-7 from exact relative to `max(|x|, 1)`.
///
/// Φ(-|x|) = ½ erfcx(z) exp(-z²) with z = |x|/√2; erfcx(z) = t P(t) with t = 1/(1 + 0.3275911 z), the form of Abramowitz and
/// Stegun 7.1.26, with P of degree 8 fitted to 9e-8 relative over z from 0 to 10.
#[inline(always)]
unsafe fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let a = s.max(x, s.sub(s.splat(0.0), x));
        let z = s.mul(a, s.splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = s.div(s.splat(1.0), s.fma(z, s.splat(0.327_591_1), s.splat(1.0)));
        let mut p = s.splat(-0.010_121_88);
        for c in [
            -0.093_228_06,
            0.400_135_5,
            -0.297_766_3,
            0.379_722_87,
            0.056_466_82,
            0.197_951_25,
            0.181_854_28,
            0.184_985_43,
        ] {
            p = s.fma(p, t, s.splat(c));
        }
        let tail = s.mul(s.mul(s.splat(0.5), s.mul(p, t)), exp(s, s.mul(s.mul(a, a), s.splat(-0.5))));
        let below = s.mul(x, tail);
        s.if_less(x, s.splat(0.0), below, s.sub(x, below))
    }
}

/// A vector through an activation.
///
/// # Safety
/// Only inside of a kernel.
#[inline(always)]
pub unsafe fn activate<S: Simd>(s: S, act: Activation, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        match act {
            Activation::Gelu => gelu(s, x),
            Activation::GeluTanh => {
                // sqrt(2/π) (x + 0.044715 x³)
                let cubic = s.fma(s.mul(x, x), s.splat(0.044_715), s.splat(1.0));
                let u = s.mul(s.mul(x, cubic), s.splat(0.797_884_6));
                let half = s.mul(x, s.splat(0.5));
                s.fma(half, tanh(s, u), half)
            }
            Activation::QuickGelu => s.mul(x, sigmoid(s, s.mul(x, s.splat(1.702)))),
            Activation::Relu => s.max(s.splat(0.0), x),
            Activation::Relu2 => {
                let y = s.max(s.splat(0.0), x);
                s.mul(y, y)
            }
            Activation::Silu => s.mul(x, sigmoid(s, x)),
            Activation::Tanh => tanh(s, x),
            Activation::Sigmoid => sigmoid(s, x),
        }
    }
}
