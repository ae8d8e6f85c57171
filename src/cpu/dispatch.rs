//! Which instructions the machine has: asked once, here.

#![forbid(unsafe_code)]

#[cfg(target_arch = "aarch64")]
use super::kernels::neon::Neon;
use super::kernels::simd::Portable;
#[cfg(target_arch = "x86_64")]
use super::kernels::x86::{Avx2, Avx512};

/// A set of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimdLevel {
    /// Vectors of 16 on x86-64, sums of four products of bytes and of two of bfloat16.
    Avx512Bf16,
    /// Vectors of 16 on x86-64, and sums of four products of bytes.
    Avx512Vnni,
    /// Vectors of 16 on x86-64.
    Avx512,
    /// Vectors of 8 on x86-64, and sums of four products of bytes.
    AvxVnni,
    /// Vectors of 8 on x86-64.
    Avx2,
    /// Vectors on 64-bit Arm, and sums of four products of bytes.
    NeonDot,
    /// Vectors on 64-bit Arm.
    Neon,
    /// Plain Rust.
    Portable,
}

/// A set of instructions that this machine has.
#[derive(Clone, Copy, Debug)]
pub enum Simds {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false, false>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2<false>),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon<false>),
    Portable(Portable),
}

/// The same with what there is for products of small numbers, which most kernels have no use for.
#[derive(Clone, Copy, Debug)]
pub enum ProductSimds {
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512<true, true>),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512<true, false>),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Avx2<true>),
    #[cfg(target_arch = "aarch64")]
    NeonDot(Neon<true>),
    Plain(Simds),
}

impl SimdLevel {
    /// All, the fastest first.
    pub const ALL: [SimdLevel; 8] = [
        SimdLevel::Avx512Bf16,
        SimdLevel::Avx512Vnni,
        SimdLevel::Avx512,
        SimdLevel::AvxVnni,
        SimdLevel::Avx2,
        SimdLevel::NeonDot,
        SimdLevel::Neon,
        SimdLevel::Portable,
    ];

    /// Whether there are sums of products of bytes: q8 and q4 then round activations to 8 bits, elsewhere to 16.
    pub const fn multiplies_bytes(self) -> bool {
        use SimdLevel::{Avx2, Avx512Bf16, Avx512Vnni, AvxVnni, NeonDot};
        matches!(self, Avx512Bf16 | Avx512Vnni | AvxVnni | Avx2 | NeonDot)
    }

    /// The tokens, if this machine has the instructions.
    pub(super) fn detect(self) -> Option<(Simds, ProductSimds)> {
        let plain = match self {
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512Bf16 | SimdLevel::Avx512Vnni | SimdLevel::Avx512 => {
                Avx512::detect().map(Simds::Avx512)?
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::AvxVnni | SimdLevel::Avx2 => Avx2::detect().map(Simds::Avx2)?,
            #[cfg(target_arch = "aarch64")]
            SimdLevel::NeonDot | SimdLevel::Neon => Neon::detect().map(Simds::Neon)?,
            SimdLevel::Portable => Simds::Portable(Portable::detect()),
            #[allow(unreachable_patterns)] // which of them are reachable depends on the target
            _ => return None,
        };
        let products = match self {
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512Bf16 => Avx512::detect().map(ProductSimds::Avx512Bf16)?,
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512Vnni => Avx512::detect().map(ProductSimds::Avx512Vnni)?,
            #[cfg(target_arch = "x86_64")]
            SimdLevel::AvxVnni => Avx2::detect().map(ProductSimds::AvxVnni)?,
            #[cfg(target_arch = "aarch64")]
            SimdLevel::NeonDot => Neon::detect().map(ProductSimds::NeonDot)?,
            _ => ProductSimds::Plain(plain),
        };
        Some((plain, products))
    }
}

/// Evaluates an expression with `$s` standing for the token of whatever instructions there are.
macro_rules! with_simd {
    ($simds:expr, $s:ident => $body:expr) => {
        match $simds {
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::dispatch::Simds::Avx512($s) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::dispatch::Simds::Avx2($s) => $body,
            #[cfg(target_arch = "aarch64")]
            $crate::cpu::dispatch::Simds::Neon($s) => $body,
            $crate::cpu::dispatch::Simds::Portable($s) => $body,
        }
    };
}

/// As [`with_simd`], for products of small numbers.
macro_rules! with_product_simd {
    ($simds:expr, $s:ident => $body:expr) => {
        match $simds {
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::dispatch::ProductSimds::Avx512Bf16($s) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::dispatch::ProductSimds::Avx512Vnni($s) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::dispatch::ProductSimds::AvxVnni($s) => $body,
            #[cfg(target_arch = "aarch64")]
            $crate::cpu::dispatch::ProductSimds::NeonDot($s) => $body,
            $crate::cpu::dispatch::ProductSimds::Plain(simds) => {
                $crate::cpu::dispatch::with_simd!(simds, $s => $body)
            }
        }
    };
}

pub(super) use {with_product_simd, with_simd};
