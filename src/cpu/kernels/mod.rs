//! Slices in, slices out: the arithmetic of the fast backend. All `unsafe` code lives here, but for the calls that start a kernel, the
//! thread pool and the mapping of files.
//!
//! Read `simd.rs` first: a kernel is written once over its trait. `matmul.rs` and `attention.rs` are where the time goes.

// An index names a row or a vector of a tile, in several arrays at once.
#![allow(clippy::needless_range_loop)]

pub mod attention;
#[cfg(feature = "openblas")]
pub mod blas;
pub mod causal_conv;
pub mod coded;
pub mod distances;
pub mod fill;
pub mod math;
pub mod matmul;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod pairs;
pub mod panels;
pub mod peaks;
pub mod quantised;
pub mod rows;
pub mod scan;
pub mod simd;
#[cfg(target_arch = "x86_64")]
pub mod x86;
