//! Vectors of float32 behind one trait. A CPU feature is a token that only its own detection can make, so a kernel cannot be
//! run without the feature it needs.

use super::coded::RestProducts;
use crate::backend::Pair;

/// A kernel, written once for all vector types.
pub trait Kernel {
    /// What it gives.
    type Output;

    /// Runs it.
    ///
    /// # Safety
    /// Only through [`Simd::run`], which turns the features of `S` on; and whatever the kernel's own documentation asks for.
    unsafe fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A kernel that asks for nothing but the features: what it counts on, it checks by itself.
///
/// # Safety
/// [`Kernel::run`], with the features turned on, is sound whatever the kernel is made of.
pub unsafe trait Checked: Kernel {}

/// How weights that are used once are brought into a cache before they are needed, where the processor does not do it well enough by
/// itself.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // which is best is a matter of the machine
pub enum Fetch {
    /// So many steps of k before they are used.
    Near(usize),
    /// So many bytes before they are used, into the second cache: the first has no room for them beside the rows. Where several tiles
    /// use a part of a panel, the next part, by two of them. With one row, which takes weights as fast as memory gives them, not at all.
    Second(usize),
    /// A panel before they are used, in so many streams side by side.
    Streams(usize),
}

/// Elements of the longest vectors: buffers have room for one of these.
pub const MAX_LANES: usize = 16;

/// Width of the widest panel.
pub const MAX_WIDTH: usize = 2 * MAX_LANES;

/// Vectors of float32 of one instruction set.
///
/// All methods are `unsafe` for the same reason: they may only be called where the features of the token are turned on, that
/// is, inside of a [`Kernel`]. Those with pointers also need the elements they name to be readable or writable.
#[allow(clippy::missing_safety_doc)] // said above, once
pub trait Simd: Copy + Send + Sync + 'static {
    /// A vector.
    type V: Copy;

    /// As many 32-bit whole numbers.
    type I: Copy;

    /// Groups of [`Simd::GROUP`] small whole numbers, one for each of those.
    type W: Copy;

    /// Elements of a vector, at most [`MAX_LANES`].
    const LANES: usize;

    /// Rows that a tile of the matrix product has at most, two vectors wide: what the registers hold.
    const TILE_ROWS: usize;

    /// Steps of a product that its loop takes at once, where processors are narrow and what counts the steps costs as much as the
    /// arithmetic.
    const STEPS: usize = 4;

    /// Numbers of a group: 2 of 16 bits, or, where there are instructions for sums of four products, 4 of 8 bits.
    const GROUP: usize = 2;

    /// Whether weights in groups have a sign. Instructions that want none get them with something added.
    const SIGNED: bool = true;

    /// Whether products of two neighbours of a group are added up in 16 bits on the way.
    const PAIRED: bool = false;

    /// Whether weights in bfloat16 are kept in 12 bits, for which there must be [`Simd::load_coded`].
    const CODED: bool = false;

    /// Runs a kernel with the features turned on.
    unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output;

    /// How weights in memory are best fetched ahead of their use.
    ///
    /// Measured, GB/s of float32 weights from memory on one core: with eight rows 25 in four streams and 40 nearby on a Zen 5 with
    /// AVX-512; with four rows 27 in four streams and 18 nearby on a Zen 3 with AVX2.
    #[inline(always)]
    fn fetch(self) -> Fetch {
        Fetch::Streams(4)
    }

    unsafe fn splat(self, x: f32) -> Self::V;
    /// Asks for a place to be brought into the first cache, or only into the `SECOND`; it need not be readable.
    #[inline(always)]
    unsafe fn prefetch<const SECOND: bool>(self, _: *const u8) {}
    unsafe fn load(self, p: *const f32) -> Self::V;
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// The first `n` elements, then zeros.
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V;
    /// Stores the first `n` elements.
    unsafe fn store_part(self, p: *mut f32, n: usize, v: Self::V);
    unsafe fn load_f16(self, p: *const u16) -> Self::V;
    unsafe fn load_bf16(self, p: *const u16) -> Self::V;
    unsafe fn add(self, a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the machine can.
    unsafe fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger one; `b` if either is not a number.
    unsafe fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// Each element as what comes together in 16 bits on the way: where products are [`Simd::PAIRED`], the sum of it and its neighbour.
    #[inline(always)]
    unsafe fn pair_sums(self, v: Self::V) -> Self::V {
        v
    }
    /// `yes` where `a < b`, else `no`.
    unsafe fn if_less(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// The nearest whole number; of two equally near ones, the even one.
    unsafe fn round(self, a: Self::V) -> Self::V;
    /// `2^n` for whole `n` from -126 to 127.
    unsafe fn exp2_whole(self, n: Self::V) -> Self::V;
    /// `x * 2^n` for such `n`.
    #[inline(always)]
    unsafe fn mul_exp2(self, x: Self::V, n: Self::V) -> Self::V {
        // SAFETY: the caller's.
        unsafe { self.mul(x, self.exp2_whole(n)) }
    }

    unsafe fn splat_i32(self, x: i32) -> Self::I;
    unsafe fn to_f32(self, x: Self::I) -> Self::V;
    /// The same group of numbers everywhere: the first in the lowest bits of `x`.
    unsafe fn splat_group(self, x: i32) -> Self::W;
    /// `4 * LANES` bytes as they are.
    unsafe fn load_bytes(self, p: *const u8) -> Self::W;
    /// Groups of numbers of 8 bits, `GROUP * LANES` bytes.
    #[inline(always)]
    unsafe fn load_eights(self, p: *const u8) -> Self::W {
        // SAFETY: the caller's; groups of four are as they lie.
        unsafe { self.load_bytes(p) }
    }
    /// Stores whole numbers in `32 / GROUP` bits each, which must be enough for them.
    #[inline(always)]
    unsafe fn store_integers(self, p: *mut u8, v: Self::V) {
        let mut x = [0.0f32; MAX_LANES];
        // SAFETY: a vector has at most `MAX_LANES` elements; `4 / GROUP * LANES` bytes are the caller's promise.
        unsafe {
            self.store(x.as_mut_ptr(), v);
            for (i, x) in x.into_iter().enumerate().take(Self::LANES) {
                if Self::GROUP == 4 {
                    p.add(i).write(x as i8 as u8);
                } else {
                    p.add(2 * i).cast::<[u8; 2]>().write((x as i16).to_le_bytes());
                }
            }
        }
    }
    /// Group `J` of the eight numbers of 4 bits in each 32 bits; [`crate::cpu::kernels::quantised::Bits`] says how they lie.
    unsafe fn nibbles<const J: u32>(self, x: Self::W) -> Self::W;
    /// The lower and the upper 16 bits of each 32 as bfloat16 numbers.
    unsafe fn halves(self, x: Self::W) -> [Self::V; 2];
    /// 16 bytes, as often as there is room for them.
    #[inline(always)]
    unsafe fn load_table(self, _: *const u8) -> Self::W {
        unreachable!("{} has no coded weights", std::any::type_name::<Self>())
    }
    /// Two vectors of [`CodedFour`](super::coded::CodedFour), whose upper bytes are in the table: each as one of float32 for each input.
    #[inline(always)]
    unsafe fn load_coded(self, _: Self::W, _: *const u8) -> [[Self::V; 4]; 2] {
        unreachable!("{} has no coded weights", std::any::type_name::<Self>())
    }
    /// Stores two vectors as bfloat16, rounded to the nearest, ties to even. What is too small for a normal number may become 0.
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut Pair, v: [Self::V; 2]) {
        // SAFETY: the caller's.
        unsafe { store_rounded(self, p, v) }
    }
    /// `sum + Σ wᵢ xᵢ` over pairs of bfloat16 numbers.
    #[inline(always)]
    unsafe fn add_bf16_products(self, sum: Self::V, w: Self::W, x: Self::W) -> Self::V {
        // SAFETY: the caller's.
        unsafe { add_widened_products(self, sum, w, x) }
    }
    /// `sum + Σ wᵢ xᵢ` over each group. Exact as long as nothing exceeds 32 bits.
    unsafe fn add_products(self, sum: Self::I, w: Self::W, x: Self::W) -> Self::I;
    /// The same where products are [`Simd::PAIRED`], with a sum of 16 bits for each half of a group. Exact as long as nothing exceeds
    /// these.
    #[inline(always)]
    unsafe fn add_paired_products(self, _: Self::I, _: Self::W, _: Self::W) -> Self::I {
        unreachable!("{} has no paired products", std::any::type_name::<Self>())
    }
    /// `sum` and both of these sums of each group.
    #[inline(always)]
    unsafe fn add_pairs(self, _: Self::I, _: Self::I) -> Self::I {
        unreachable!("{} has no paired products", std::any::type_name::<Self>())
    }

    /// Swaps rows and columns of `LANES` rows of as many words of 32 bits, `step` words apart.
    #[inline(always)]
    unsafe fn transpose(self, words: *mut f32, step: usize) {
        for i in 0..Self::LANES {
            for j in 0..i {
                // SAFETY: words that are the caller's promise.
                unsafe { words.add(i * step + j).swap(words.add(j * step + i)) };
            }
        }
    }

    /// The sum of all elements, in a fixed order: halves onto each other.
    #[inline(always)]
    unsafe fn reduce_sum(self, v: Self::V) -> f32 {
        let mut x = [0.0f32; MAX_LANES];
        // SAFETY: a vector has at most `MAX_LANES` elements.
        unsafe { self.store(x.as_mut_ptr(), v) };
        let mut n = Self::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                x[i] += x[i + n];
            }
        }
        x[0]
    }

    /// The largest element, if all are numbers.
    #[inline(always)]
    unsafe fn reduce_max(self, v: Self::V) -> f32 {
        let mut x = [0.0f32; MAX_LANES];
        // SAFETY: a vector has at most `MAX_LANES` elements.
        unsafe { self.store(x.as_mut_ptr(), v) };
        x[1..Self::LANES].iter().fold(x[0], |a, b| if *b > a { *b } else { a })
    }
}

/// The first `n` elements, up to a whole vector. A function, not a closure, which would not get the features of the kernel unless the
/// compiler chose to inline it.
///
/// # Safety
/// As [`Simd::load_part`].
#[inline(always)]
pub unsafe fn load<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's.
    unsafe { if n == S::LANES { s.load(p) } else { s.load_part(p, n) } }
}

/// Stores the first `n` elements, up to a whole vector.
///
/// # Safety
/// As [`Simd::store_part`].
#[inline(always)]
pub unsafe fn store<S: Simd>(s: S, p: *mut f32, n: usize, v: S::V) {
    // SAFETY: the caller's.
    unsafe { if n == S::LANES { s.store(p, v) } else { s.store_part(p, n, v) } }
}

/// [`Simd::store_bf16`], number by number.
///
/// # Safety
/// As that.
#[inline(always)]
pub unsafe fn store_rounded<S: Simd>(s: S, p: *mut Pair, v: [S::V; 2]) {
    let mut x = [0.0f32; 2 * MAX_LANES];
    // SAFETY: two vectors have at most `2 * MAX_LANES` elements; `LANES` pairs are the caller's promise.
    unsafe {
        s.store(x.as_mut_ptr(), v[0]);
        s.store(x.as_mut_ptr().add(S::LANES), v[1]);
        for (i, pair) in x.as_chunks::<2>().0.iter().enumerate().take(S::LANES) {
            p.add(i).write(Pair::new(pair[0], pair[1]));
        }
    }
}

/// [`Simd::add_bf16_products`] by products of float32.
///
/// # Safety
/// As that.
#[inline(always)]
pub unsafe fn add_widened_products<S: Simd>(s: S, sum: S::V, w: S::W, x: S::W) -> S::V {
    // SAFETY: the caller's.
    unsafe {
        let (w, x) = (s.halves(w), s.halves(x));
        s.fma(w[1], x[1], s.fma(w[0], x[0], sum))
    }
}

/// What weights are kept as, and how they are multiplied.
///
/// # Safety
/// As the methods of [`Simd`] that these come to.
#[allow(clippy::missing_safety_doc)] // said here, once
pub trait Weight: Copy + Send + Sync + 'static {
    /// What is multiplied with one of them.
    type X: Copy + Send + Sync + 'static;
    /// As many as a vector has.
    type Vector<S: Simd>: Copy;
    /// What weights of a panel have in common.
    type Panel<S: Simd>: Copy;
    /// Whether to make float32 of them takes so long that it is done once for several tiles.
    const WIDENED_ONCE: bool;
    /// Elements that follow for a panel of so many, behind all of them.
    fn behind(_elements: usize) -> usize {
        0
    }
    unsafe fn panel<S: Simd>(s: S, behind: *const Self) -> Self::Panel<S>;
    /// What has to be added to the sums of a panel, for rows of `k` elements.
    #[inline(always)]
    unsafe fn rest<S: Simd>(_behind: *const Self, _x: *const Self::X, _k: usize) -> Option<RestProducts> {
        None
    }
    /// The two vectors of a step of k.
    unsafe fn load<S: Simd>(s: S, panel: Self::Panel<S>, p: *const Self) -> [Self::Vector<S>; 2];
    /// Stores the two vectors of a step of k as float32, one step after another, if they are [`Weight::WIDENED_ONCE`].
    unsafe fn widen<S: Simd>(s: S, w: [Self::Vector<S>; 2], to: *mut f32);
    unsafe fn splat<S: Simd>(s: S, x: Self::X) -> Self::Vector<S>;
    /// `w * x + sum`.
    unsafe fn fma<S: Simd>(s: S, w: Self::Vector<S>, x: Self::Vector<S>, sum: S::V) -> S::V;
}

/// Numbers that are widened to float32 before they are multiplied.
macro_rules! widened {
    ($Type:ty, $load:ident, once: $once:literal) => {
        impl Weight for $Type {
            type X = f32;
            type Vector<S: Simd> = S::V;
            type Panel<S: Simd> = ();
            const WIDENED_ONCE: bool = $once;
            #[inline(always)]
            unsafe fn panel<S: Simd>(_: S, _: *const Self) {}
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, (): (), p: *const Self) -> [S::V; 2] {
                // SAFETY: the caller's; the 16-bit types are transparent u16.
                unsafe { [s.$load(p.cast()), s.$load(p.add(S::LANES).cast())] }
            }
            #[inline(always)]
            unsafe fn widen<S: Simd>(s: S, w: [S::V; 2], to: *mut f32) {
                // SAFETY: the caller's.
                unsafe {
                    s.store(to, w[0]);
                    s.store(to.add(S::LANES), w[1]);
                }
            }
            #[inline(always)]
            unsafe fn splat<S: Simd>(s: S, x: f32) -> S::V {
                // SAFETY: the caller's.
                unsafe { s.splat(x) }
            }
            #[inline(always)]
            unsafe fn fma<S: Simd>(s: S, w: S::V, x: S::V, sum: S::V) -> S::V {
                // SAFETY: the caller's.
                unsafe { s.fma(x, w, sum) }
            }
        }
    };
}

widened!(f32, load, once: false);
widened!(half::f16, load_f16, once: true);
widened!(half::bf16, load_bf16, once: false);

/// Plain arrays: what every machine has. Products and sums are rounded separately.
#[derive(Clone, Copy, Debug)]
pub struct Portable(());

impl Portable {
    /// Always there.
    pub fn detect() -> Self {
        Portable(())
    }
}

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 8] {
    std::array::from_fn(f)
}

// SAFETY of the whole impl: pointers are the caller's promise; everything else is safe code.
impl Simd for Portable {
    type V = [f32; 8];
    type I = [i32; 8];
    type W = [i16; 16];
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        unsafe { kernel.run(self) }
    }
    #[inline(always)]
    unsafe fn splat(self, x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V {
        each(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: Self::V) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            unsafe { *p.add(i) = x };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::V {
        each(|i| half::f16::from_bits(unsafe { p.add(i).read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::V {
        each(|i| half::bf16::from_bits(unsafe { p.add(i).read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn add(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(self, a: Self::V, b: Self::V) -> Self::V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn if_less(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        each(|i| if a[i] < b[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    unsafe fn round(self, a: Self::V) -> Self::V {
        each(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn splat_i32(self, x: i32) -> Self::I {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn to_f32(self, x: Self::I) -> Self::V {
        each(|i| x[i] as f32)
    }
    #[inline(always)]
    unsafe fn splat_group(self, x: i32) -> Self::W {
        std::array::from_fn(|i| if i % 2 == 0 { x as i16 } else { (x >> 16) as i16 })
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Self::W {
        std::array::from_fn(|i| i16::from_le_bytes(unsafe { p.cast::<[u8; 2]>().add(i).read() }))
    }
    #[inline(always)]
    unsafe fn load_eights(self, p: *const u8) -> Self::W {
        std::array::from_fn(|i| i16::from(unsafe { p.add(i).cast::<i8>().read() }))
    }
    #[inline(always)]
    unsafe fn nibbles<const J: u32>(self, x: Self::W) -> Self::W {
        x.map(|x| x << (12 - 4 * J) >> 12)
    }
    #[inline(always)]
    unsafe fn add_products(self, sum: Self::I, a: Self::W, b: Self::W) -> Self::I {
        std::array::from_fn(|i| {
            let product = |j: usize| i32::from(a[j]) * i32::from(b[j]);
            sum[i].wrapping_add(product(2 * i)).wrapping_add(product(2 * i + 1))
        })
    }
    #[inline(always)]
    unsafe fn halves(self, x: Self::W) -> [Self::V; 2] {
        [0, 1].map(|half| each(|i| f32::from_bits((x[2 * i + half] as u16 as u32) << 16)))
    }
    #[inline(always)]
    unsafe fn exp2_whole(self, n: Self::V) -> Self::V {
        each(|i| f32::from_bits(((n[i] as i32).wrapping_add(127) as u32) << 23))
    }
}
