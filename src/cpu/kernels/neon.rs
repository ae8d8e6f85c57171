//! NEON: two registers as one vector of eight, so that layouts are those of AVX2.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::simd::{Kernel, Simd};

/// NEON, which every 64-bit Arm has; with `DOT` also sums of four products of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Neon<const DOT: bool>(());

impl<const DOT: bool> Neon<DOT> {
    /// The token, on a machine that has the features.
    pub fn detect() -> Option<Self> {
        let has = is_aarch64_feature_detected!("neon") && (!DOT || is_aarch64_feature_detected!("dotprod"));
        has.then_some(Neon(()))
    }

    #[target_feature(enable = "neon")]
    unsafe fn go<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the caller's promise for the kernel; the feature is on.
        unsafe { kernel.run(self) }
    }
}

/// `sum + Σ wᵢ xᵢ` over each four bytes.
///
/// # Safety
/// The machine must have sums of products of bytes (`dotprod`).
#[inline(always)]
unsafe fn add_dot(mut sum: int32x4_t, w: int16x8_t, x: int16x8_t) -> int32x4_t {
    // The intrinsic, `vdotq_s32`, is not stable yet.
    // SAFETY: registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inlateout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Numbers of float16 in float32.
#[inline(always)]
unsafe fn widened(narrow: uint16x4_t) -> float32x4_t {
    // The intrinsic, `vcvt_f32_f16`, is newer than the oldest compiler that this crate takes.
    let wide;
    // SAFETY: registers only.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {narrow:v}.4h",
            wide = lateout(vreg) wide,
            narrow = in(vreg) narrow,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    wide
}

/// The operation on both registers.
macro_rules! both {
    ($f:ident, $($v:ident),*) => {
        unsafe { ($f($($v.0),*), $f($($v.1),*)) }
    };
}

// SAFETY of the whole impl: the token proves the features; pointers are the caller's promise.
impl<const DOT: bool> Simd for Neon<DOT> {
    type V = (float32x4_t, float32x4_t);
    type I = (int32x4_t, int32x4_t);
    /// Bytes under another type in groups of four.
    type W = (int16x8_t, int16x8_t);
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    const GROUP: usize = if DOT { 4 } else { 2 };

    #[inline(always)]
    unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        unsafe { self.go(kernel) }
    }
    #[inline(always)]
    unsafe fn splat(self, x: f32) -> Self::V {
        unsafe { (vdupq_n_f32(x), vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn prefetch<const SECOND: bool>(self, p: *const u8) {
        // The intrinsic, `_prefetch`, is not stable yet.
        unsafe {
            match SECOND {
                true => {
                    asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly))
                }
                false => {
                    asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly))
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        unsafe { (vld1q_f32(p), vld1q_f32(p.add(4))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        unsafe {
            vst1q_f32(p, v.0);
            vst1q_f32(p.add(4), v.1);
        }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V {
        let mut x = [0.0f32; 8];
        unsafe {
            std::ptr::copy_nonoverlapping(p, x.as_mut_ptr(), n.min(8));
            self.load(x.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: Self::V) {
        let mut x = [0.0f32; 8];
        unsafe {
            self.store(x.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(x.as_ptr(), p, n.min(8));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::V {
        unsafe { (widened(vld1_u16(p)), widened(vld1_u16(p.add(4)))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::V {
        unsafe {
            let narrow = vld1q_u16(p);
            let low = vshlq_n_u32::<16>(vmovl_u16(vget_low_u16(narrow)));
            let high = vshlq_n_u32::<16>(vmovl_u16(vget_high_u16(narrow)));
            (vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
        }
    }
    #[inline(always)]
    unsafe fn add(self, a: Self::V, b: Self::V) -> Self::V {
        both!(vaddq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        both!(vsubq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        both!(vmulq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn div(self, a: Self::V, b: Self::V) -> Self::V {
        both!(vdivq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        both!(vfmaq_f32, c, a, b)
    }
    #[inline(always)]
    unsafe fn max(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { self.if_less(b, a, a, b) }
    }
    #[inline(always)]
    unsafe fn if_less(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        let less = both!(vcltq_f32, a, b);
        both!(vbslq_f32, less, yes, no)
    }
    #[inline(always)]
    unsafe fn round(self, a: Self::V) -> Self::V {
        both!(vrndnq_f32, a)
    }
    #[inline(always)]
    unsafe fn splat_i32(self, x: i32) -> Self::I {
        unsafe { (vdupq_n_s32(x), vdupq_n_s32(x)) }
    }
    #[inline(always)]
    unsafe fn to_f32(self, x: Self::I) -> Self::V {
        unsafe { (vcvtq_f32_s32(x.0), vcvtq_f32_s32(x.1)) }
    }
    #[inline(always)]
    unsafe fn splat_group(self, x: i32) -> Self::W {
        unsafe {
            let x = vreinterpretq_s16_s32(vdupq_n_s32(x));
            (x, x)
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Self::W {
        unsafe { (vreinterpretq_s16_u8(vld1q_u8(p)), vreinterpretq_s16_u8(vld1q_u8(p.add(16)))) }
    }
    #[inline(always)]
    unsafe fn load_eights(self, p: *const u8) -> Self::W {
        unsafe {
            if DOT {
                return self.load_bytes(p);
            }
            (vmovl_s8(vld1_s8(p.cast())), vmovl_s8(vld1_s8(p.add(8).cast())))
        }
    }
    #[inline(always)]
    unsafe fn store_integers(self, p: *mut u8, v: Self::V) {
        unsafe {
            let v = (vcvtnq_s32_f32(v.0), vcvtnq_s32_f32(v.1));
            let v = vcombine_s16(vmovn_s32(v.0), vmovn_s32(v.1));
            if DOT { vst1_s8(p.cast(), vmovn_s16(v)) } else { vst1q_u8(p, vreinterpretq_u8_s16(v)) }
        }
    }
    #[inline(always)]
    unsafe fn nibbles<const J: u32>(self, x: Self::W) -> Self::W {
        unsafe {
            if DOT {
                let one = |x| {
                    let x = vreinterpretq_s8_s16(x);
                    vreinterpretq_s16_s8(vshrq_n_s8::<4>(if J == 0 { vshlq_n_s8::<4>(x) } else { x }))
                };
                return (one(x.0), one(x.1));
            }
            let x = match J {
                0 => (vshlq_n_s16::<12>(x.0), vshlq_n_s16::<12>(x.1)),
                1 => (vshlq_n_s16::<8>(x.0), vshlq_n_s16::<8>(x.1)),
                2 => (vshlq_n_s16::<4>(x.0), vshlq_n_s16::<4>(x.1)),
                _ => x,
            };
            (vshrq_n_s16::<12>(x.0), vshrq_n_s16::<12>(x.1))
        }
    }
    #[inline(always)]
    unsafe fn add_products(self, sum: Self::I, a: Self::W, b: Self::W) -> Self::I {
        unsafe {
            if DOT {
                return (add_dot(sum.0, a.0, b.0), add_dot(sum.1, a.1, b.1));
            }
            let low = vpaddq_s32(
                vmull_s16(vget_low_s16(a.0), vget_low_s16(b.0)),
                vmull_s16(vget_high_s16(a.0), vget_high_s16(b.0)),
            );
            let high = vpaddq_s32(
                vmull_s16(vget_low_s16(a.1), vget_low_s16(b.1)),
                vmull_s16(vget_high_s16(a.1), vget_high_s16(b.1)),
            );
            (vaddq_s32(sum.0, low), vaddq_s32(sum.1, high))
        }
    }
    #[inline(always)]
    unsafe fn halves(self, x: Self::W) -> [Self::V; 2] {
        unsafe {
            let (a, b) = (vreinterpretq_u32_s16(x.0), vreinterpretq_u32_s16(x.1));
            let low = |x| vreinterpretq_f32_u32(vshlq_n_u32::<16>(x));
            let high = |x| vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xffff_0000)));
            [(low(a), low(b)), (high(a), high(b))]
        }
    }
    #[inline(always)]
    unsafe fn exp2_whole(self, n: Self::V) -> Self::V {
        unsafe {
            let one = |n| {
                let exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
            };
            (one(n.0), one(n.1))
        }
    }
}
