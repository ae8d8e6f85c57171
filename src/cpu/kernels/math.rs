//! Elementary functions on vectors. Errors are measured in the tests below, against float64.

use super::simd::Simd;
use crate::backend::Activation;

/// Below this `exp(x)` is no normal number; it counts as 0.
const EXP_LOW: f32 = -87.336_54;

/// `exp(x)` for x up to 0, at most 2 ULP from exact; exactly 0 below -87.3 and 1 at 0.
///
/// Cephes' `expf`: x is reduced by a multiple of ln 2, the rest goes through a polynomial of degree 6.
///
/// # Safety
/// Only inside of a kernel.
#[inline(always)]
pub unsafe fn exp_to_0<S: Simd>(s: S, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        // The order of the operands lets what is not a number pass.
        let y = s.max(s.splat(EXP_LOW), x);
        let n = s.round(s.mul(y, s.splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, the first of which has few enough bits for its product with n to be exact.
        let r = s.fma(n, s.splat(-0.693_359_4), y);
        let r = s.fma(n, s.splat(2.121_944_4e-4), r);
        let c = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
        let p = polynomial(s, r, c);
        let p = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
        s.if_less(x, s.splat(EXP_LOW), s.splat(0.0), s.mul_exp2(p, n))
    }
}

/// The polynomial with these coefficients, the highest first.
#[inline(always)]
unsafe fn polynomial<S: Simd, const N: usize>(s: S, x: S::V, coefficients: [f32; N]) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let mut p = s.splat(coefficients[0]);
        for c in &coefficients[1..] {
            p = s.fma(p, x, s.splat(*c));
        }
        p
    }
}

/// `|x|`.
#[inline(always)]
unsafe fn abs<S: Simd>(s: S, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe { s.max(s.sub(s.splat(0.0), x), x) }
}

/// `1 / (1 + exp(-x))`, from `exp(-|x|)`, which cannot overflow.
#[inline(always)]
unsafe fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let e = exp_to_0(s, s.sub(s.splat(0.0), abs(s, x)));
        let one = s.splat(1.0);
        s.div(s.if_less(x, s.splat(0.0), e, one), s.add(one, e))
    }
}

/// `tanh(x)`, at most 4e-7 from exact relative to its value.
///
/// Near 0 by Cephes' polynomial, beyond by `(1 - e) / (1 + e)` with `e = exp(-2|x|)`.
///
/// # Safety
/// Only inside of a kernel.
#[inline(always)]
pub unsafe fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let z = s.mul(x, x);
        let p =
            polynomial(s, z, [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_4e-2, 0.133_314_42, -0.333_332_8]);
        let small = s.fma(s.mul(p, z), x, x);
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let e = exp_to_0(s, s.mul(abs(s, x), s.splat(-2.0)));
        let large = s.div(s.sub(one, e), s.add(one, e));
        let large = s.if_less(x, zero, s.sub(zero, large), large);
        s.if_less(z, s.splat(0.625 * 0.625), small, large)
    }
}

/// `2^x` for x up to 127, at most 2e-7 from exact relative to its value; exactly 0 below -126 and 1 at 0. The polynomial, of degree 5, is
/// fitted to 1.1e-7 over x from -½ to ½.
///
/// # Safety
/// Only inside of a kernel.
#[inline(always)]
pub unsafe fn exp2<S: Simd>(s: S, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let low = s.splat(-126.0);
        // The order of the operands lets what is not a number pass.
        let y = s.max(low, x);
        let n = s.round(y);
        let r = s.sub(y, n);
        let ln_2 = std::f32::consts::LN_2;
        let p = polynomial(s, r, [1.330_060_5e-3, 9.669_691e-3, 5.550_558_5e-2, 0.240_222_83, ln_2, 1.0]);
        s.if_less(x, low, s.splat(0.0), s.mul_exp2(p, n))
    }
}

/// `ln(1 + exp(x))`, at most 4e-7 from exact relative to its value; 0 where `exp(x)` is no normal number.
///
/// `max(x, 0) + ln(1 + e)` with `e = exp(-|x|)`. The logarithm is `2 artanh t` with `t = e / (2 + e)`, which is at most ⅓: `t` times a
/// polynomial in `t²` of degree 4, fitted to 4e-9.
#[inline(always)]
unsafe fn softplus<S: Simd>(s: S, x: S::V) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let e = exp_to_0(s, s.sub(s.splat(0.0), abs(s, x)));
        let t = s.div(e, s.add(s.splat(2.0), e));
        let p = polynomial(s, s.mul(t, t), [0.140_891_67, 0.139_803, 0.200_124_55, 0.333_331_58, 1.0]);
        s.fma(s.add(t, t), p, s.max(s.splat(0.0), x))
    }
}

/// `x Φ(x)`, at most 4e-7 from exact relative to `max(|x|, 1)`.
///
/// Φ(-|x|) = 2^P(|x|), with P of degree 8 fitted such that |x| Φ(-|x|) is off by 5.5e-9 for |x| up to 5.5; beyond, P falls faster than
/// what it stands for.
#[inline(always)]
unsafe fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let p = [
        -2.490_571e-6,
        3.525_876_3e-5,
        -1.666_483_7e-4,
        -1.839_539_8e-4,
        7.124_422_6e-3,
        -5.253_775_8e-2,
        -0.459_195,
        -1.151_106_6,
        -1.0,
    ];
    // SAFETY: the caller's.
    unsafe { gate(s, x, p) }
}

/// `½ x (1 + tanh u)` with u = √(2/π) (x + 0.044715 x³), at most 4e-7 from exact relative to `max(|x|, 1)`.
///
/// As [`gelu`], with a polynomial of degree 9 and 2.6e-8 for |x| up to 5.
#[inline(always)]
unsafe fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let p = [
        -6.646_303e-6,
        6.318_117e-5,
        -5.907_612_3e-5,
        -9.467_291e-4,
        1.184_759_8e-3,
        6.419_223_3e-3,
        -5.082_894_5e-2,
        -0.459_378_78,
        -1.151_091_7,
        -1.0,
    ];
    // SAFETY: the caller's.
    unsafe { gate(s, x, p) }
}

/// `x g(x)`, where `g(x) + g(-x) = 1` and `g(-|x|) = 2^P(|x|)` for the polynomial with these coefficients, the highest first:
/// `max(x, 0) - |x| g(-|x|)`.
#[inline(always)]
unsafe fn gate<S: Simd, const N: usize>(s: S, x: S::V, coefficients: [f32; N]) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let size = abs(s, x);
        let below = s.mul(size, exp2(s, polynomial(s, size, coefficients)));
        // From 8 on that is x; infinity times 0 would be no number.
        s.if_less(x, s.splat(8.0), s.sub(s.max(s.splat(0.0), x), below), x)
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
            Activation::GeluTanh => gelu_tanh(s, x),
            Activation::QuickGelu => s.mul(x, sigmoid(s, s.mul(x, s.splat(1.702)))),
            Activation::Relu => s.max(s.splat(0.0), x),
            Activation::Relu2 => {
                let y = s.max(s.splat(0.0), x);
                s.mul(y, y)
            }
            Activation::Silu => s.mul(x, sigmoid(s, x)),
            Activation::Tanh => tanh(s, x),
            Activation::Sigmoid => sigmoid(s, x),
            Activation::Softplus => softplus(s, x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Kernel;
    use super::*;
    use crate::backend::erfc;
    use crate::cpu::SimdLevel;
    use crate::cpu::dispatch::{Simds, with_simd};

    /// One of the functions, on all elements of a slice.
    #[derive(Clone, Copy, Debug)]
    enum Function {
        ExpTo0,
        Exp2,
        Tanh,
        Softplus,
        Gelu,
        GeluTanh,
    }

    struct Map<'a>(Function, &'a mut [f32]);

    impl Kernel for Map<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<S: Simd>(self, s: S) {
            for chunk in self.1.chunks_mut(S::LANES) {
                // SAFETY: the chunk has that many elements.
                unsafe {
                    let x = s.load_part(chunk.as_ptr(), chunk.len());
                    let y = match self.0 {
                        Function::ExpTo0 => exp_to_0(s, x),
                        Function::Exp2 => exp2(s, x),
                        Function::Tanh => tanh(s, x),
                        Function::Softplus => softplus(s, x),
                        Function::Gelu => gelu(s, x),
                        Function::GeluTanh => gelu_tanh(s, x),
                    };
                    s.store_part(chunk.as_mut_ptr(), chunk.len(), y);
                }
            }
        }
    }

    /// The largest error over every `step`th float: in units of the last place for the exponential, relative for powers of 2, tanh and
    /// softplus, relative to `max(|x|, 1)` for the gelus.
    fn largest_error(simds: Simds, function: Function, step: usize) -> f64 {
        let mut largest = 0.0f64;
        let asked = |x: &f32| match function {
            Function::ExpTo0 => *x <= 0.0,
            Function::Exp2 => *x <= 127.0,
            Function::Tanh | Function::Softplus => !x.is_nan(),
            Function::Gelu | Function::GeluTanh => x.is_finite(),
        };
        let mut bits = (0..=u32::MAX).step_by(step).map(f32::from_bits).filter(asked).peekable();
        while bits.peek().is_some() {
            let x: Vec<f32> = bits.by_ref().take(1 << 16).collect();
            let mut y = x.clone();
            // SAFETY: the token stands for features that the machine has.
            with_simd!(simds, s => unsafe { s.run(Map(function, &mut y)) });
            for (x, y) in x.iter().zip(y) {
                let exact = match function {
                    Function::ExpTo0 => f64::from(*x).exp(),
                    Function::Exp2 => f64::from(*x).exp2(),
                    Function::Tanh => f64::from(*x).tanh(),
                    Function::Softplus => Activation::Softplus.exact(f64::from(*x)),
                    Function::Gelu => {
                        0.5 * f64::from(*x) * erfc(-f64::from(*x) * std::f64::consts::FRAC_1_SQRT_2)
                    }
                    Function::GeluTanh => Activation::GeluTanh.exact(f64::from(*x)),
                };
                let rounded = exact as f32;
                let error = match function {
                    Function::Tanh if exact == 0.0 => f64::from(y).abs(),
                    Function::Exp2 if *x < -126.0 => {
                        assert_eq!(y, 0.0, "exp2({x})");
                        0.0
                    }
                    Function::Softplus if *x < EXP_LOW => {
                        assert_eq!(y, 0.0, "softplus({x})");
                        0.0
                    }
                    _ if exact == f64::INFINITY => {
                        assert_eq!(y, f32::INFINITY, "{function:?}({x})");
                        0.0
                    }
                    Function::Exp2 | Function::Tanh | Function::Softplus => {
                        (f64::from(y) - exact).abs() / exact.abs()
                    }
                    Function::Gelu | Function::GeluTanh => {
                        (f64::from(y) - exact).abs() / f64::from(x.abs()).max(1.0)
                    }
                    // What is smaller than any normal number may be 0.
                    _ if rounded < f32::MIN_POSITIVE => {
                        assert!(y <= 1.2e-38, "exp({x}) is {y}");
                        0.0
                    }
                    _ => {
                        let unit = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
                        (f64::from(y) - exact).abs() / unit
                    }
                };
                assert!(!error.is_nan(), "{function:?}({x}) is {y}");
                largest = largest.max(error);
            }
        }
        largest
    }

    fn check(step: usize) {
        // Products are all that the other levels have of their own.
        let plain = [SimdLevel::Avx512, SimdLevel::Avx2, SimdLevel::Neon, SimdLevel::Portable];
        for (level, (simds, _)) in plain.into_iter().filter_map(|level| Some((level, level.detect()?))) {
            let bounds = [
                (Function::ExpTo0, 2.0),
                (Function::Exp2, 2e-7),
                (Function::Tanh, 4e-7),
                (Function::Softplus, 4e-7),
                (Function::Gelu, 4e-7),
                (Function::GeluTanh, 4e-7),
            ];
            for (function, bound) in bounds {
                let error = largest_error(simds, function, step);
                println!("{level:?} {function:?}: {error:.3e}");
                assert!(error <= bound, "{level:?} {function:?}: {error}");
            }
        }
    }

    #[test]
    fn errors_are_as_stated_for_many_floats() {
        check(4099);
    }

    #[test]
    #[ignore = "every float32: minutes, `cargo test --release math -- --ignored --nocapture`"]
    fn errors_are_as_stated_for_all_floats() {
        check(1);
    }
}
