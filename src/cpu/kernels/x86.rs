//! AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::simd::{Fetch, Kernel, Simd, add_widened_products, store_rounded};
use crate::backend::Pair;

/// See [`Simd::prefetch`].
#[inline(always)]
unsafe fn prefetch<const SECOND: bool>(p: *const u8) {
    // SAFETY: the place may lie anywhere.
    unsafe {
        match SECOND {
            true => _mm_prefetch::<_MM_HINT_T1>(p.cast()),
            false => _mm_prefetch::<_MM_HINT_T0>(p.cast()),
        }
    }
}

/// AVX2 with fused multiply-add and half-precision conversion; with `VNNI` also with sums of four products of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// The token, on a machine that has the features.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && (!VNNI || is_x86_feature_detected!("avxvnni"));
        has.then_some(Avx2(()))
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn go<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the caller's promise for the kernel; the features are on.
        unsafe { kernel.run(self) }
    }

    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn go_vnni<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: as above.
        unsafe { kernel.run(self) }
    }

    /// All ones in the first `n` elements.
    #[inline(always)]
    unsafe fn mask(n: usize) -> __m256i {
        const ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: `n` is at most 8, so the eight elements lie inside of the table.
        unsafe { _mm256_loadu_si256(ONES.as_ptr().add(8 - n.min(8)).cast()) }
    }
}

/// The sum of eight: halves onto each other.
#[inline(always)]
unsafe fn sum_of_eight(v: __m256) -> f32 {
    // SAFETY: the caller has turned AVX on.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }
}

/// The largest of eight.
#[inline(always)]
unsafe fn largest_of_eight(v: __m256) -> f32 {
    // SAFETY: as above.
    unsafe {
        let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
    }
}

// SAFETY of the whole impl: the token proves the features; pointers are the caller's promise.
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type V = __m256;
    type I = __m256i;
    type W = __m256i;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    const GROUP: usize = 4;
    const SIGNED: bool = false;
    const PAIRED: bool = !VNNI;

    #[inline(always)]
    unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        unsafe { if VNNI { self.go_vnni(kernel) } else { self.go(kernel) } }
    }
    #[inline(always)]
    unsafe fn splat(self, x: f32) -> Self::V {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn prefetch<const SECOND: bool>(self, p: *const u8) {
        unsafe { prefetch::<SECOND>(p) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V {
        unsafe { _mm256_maskload_ps(p, Self::mask(n)) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: Self::V) {
        unsafe { _mm256_maskstore_ps(p, Self::mask(n), v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::V {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::V {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn add(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn pair_sums(self, v: Self::V) -> Self::V {
        unsafe { _mm256_add_ps(v, _mm256_permute_ps::<0b10_11_00_01>(v)) }
    }
    #[inline(always)]
    unsafe fn if_less(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }
    #[inline(always)]
    unsafe fn round(self, a: Self::V) -> Self::V {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn splat_i32(self, x: i32) -> Self::I {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn to_f32(self, x: Self::I) -> Self::V {
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat_group(self, x: i32) -> Self::W {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Self::W {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_integers(self, p: *mut u8, v: Self::V) {
        unsafe {
            let v = _mm256_cvtps_epi32(v);
            let v = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(v, v));
        }
    }
    #[inline(always)]
    unsafe fn nibbles<const J: u32>(self, x: Self::W) -> Self::W {
        unsafe {
            let x = if J == 0 { x } else { _mm256_srli_epi16::<4>(x) };
            _mm256_and_si256(x, _mm256_set1_epi8(15))
        }
    }
    #[inline(always)]
    unsafe fn add_products(self, sum: Self::I, w: Self::W, x: Self::W) -> Self::I {
        unsafe {
            if VNNI {
                return _mm256_dpbusd_avx_epi32(sum, w, x);
            }
            self.add_pairs(sum, _mm256_maddubs_epi16(w, x))
        }
    }
    #[inline(always)]
    unsafe fn add_paired_products(self, sum: Self::I, w: Self::W, x: Self::W) -> Self::I {
        unsafe { _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)) }
    }
    #[inline(always)]
    unsafe fn add_pairs(self, sum: Self::I, pairs: Self::I) -> Self::I {
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))) }
    }
    #[inline(always)]
    unsafe fn halves(self, x: Self::W) -> [Self::V; 2] {
        unsafe {
            let high = _mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(x)), _mm256_castsi256_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, words: *mut f32, step: usize) {
        unsafe {
            let at = |row: usize| words.add(row * step);
            // Pairs of rows, then runs of four words, then halves.
            let mut pairs = [_mm256_setzero_ps(); 8];
            for i in [0, 2, 4, 6] {
                let (first, second) = (_mm256_loadu_ps(at(i)), _mm256_loadu_ps(at(i + 1)));
                pairs[i] = _mm256_unpacklo_ps(first, second);
                pairs[i + 1] = _mm256_unpackhi_ps(first, second);
            }
            let mut fours = [_mm256_setzero_ps(); 8];
            for i in [0, 1, 4, 5] {
                let (first, second) = (pairs[i], pairs[i + 2]);
                let four = i / 4 * 4 + i % 2 * 2;
                fours[four] = _mm256_shuffle_ps::<0b01_00_01_00>(first, second);
                fours[four + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(first, second);
            }
            for i in 0..4 {
                let (first, second) = (fours[i], fours[i + 4]);
                _mm256_storeu_ps(at(i), _mm256_permute2f128_ps::<0x20>(first, second));
                _mm256_storeu_ps(at(i + 4), _mm256_permute2f128_ps::<0x31>(first, second));
            }
        }
    }
    #[inline(always)]
    unsafe fn reduce_sum(self, v: Self::V) -> f32 {
        unsafe { sum_of_eight(v) }
    }
    #[inline(always)]
    unsafe fn reduce_max(self, v: Self::V) -> f32 {
        unsafe { largest_of_eight(v) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(self, n: Self::V) -> Self::V {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        }
    }
}

/// AVX-512 with its byte, word, doubleword and short-vector extensions; with `VNNI` also with sums of four products of bytes, with
/// `BF16` of two of bfloat16.
#[derive(Clone, Copy, Debug)]
pub struct Avx512<const VNNI: bool, const BF16: bool> {
    /// Whether the first cache has room for what is fetched ahead beside the rows of a tile.
    roomy: bool,
}

/// Zen 5, 8 rows, 11 million weights of float32: 0.89 ms with 128 steps, 1.04 with 64, 0.96 with 256; with more weights and with
/// other types about the same.
const NEAR: Fetch = Fetch::Near(128);

/// Zen 4, 12 layers of 768 columns, 8 tokens, one thread, float32: 13.8 ms with 8 KiB, 16.1 with 4, 13.9 with 32, 16.3 with [`NEAR`];
/// on two threads 11.2 with 8 and 11.7 with 32. q8: 3.9, 4.6, 3.9 and 5.5.
const SECOND: Fetch = Fetch::Second(8 << 10);

/// Bytes of the first cache for data, if the processor tells.
fn first_cache() -> Option<usize> {
    // The lists of caches of Intel and of AMD: their entries look the same.
    const LISTS: [u32; 2] = [4, 0x8000_001d];
    #[allow(unused_unsafe)] // newer versions of Rust know that it is safe
    // SAFETY: every 64-bit processor has the instruction, and tells at 0 and 1 << 31 which lists it has.
    let entry = |list: u32, i| unsafe {
        let last = __cpuid(list & 1 << 31).eax;
        (list <= last).then(|| __cpuid_count(list, i))
    };
    LISTS.into_iter().flat_map(|list| (0..4).filter_map(move |i| entry(list, i))).find_map(|cache| {
        let (kind, level) = (cache.eax & 31, cache.eax >> 5 & 7);
        let (line, parts, ways) = (cache.ebx & 0xfff, cache.ebx >> 12 & 0x3ff, cache.ebx >> 22);
        let counts = [line, parts, ways, cache.ecx].map(|less| less as usize + 1);
        ((kind, level) == (1, 1)).then(|| counts.into_iter().fold(1, usize::saturating_mul))
    })
}

impl<const VNNI: bool, const BF16: bool> Avx512<VNNI, BF16> {
    /// The token, on a machine that has the features.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && (!VNNI || is_x86_feature_detected!("avx512vnni"))
            && (!BF16 || is_x86_feature_detected!("avx512bf16"))
            && Avx2::<false>::detect().is_some();
        // Eight rows of 768 inputs are 24 KiB, and what is fetched ahead is 16 more.
        has.then(|| Avx512 { roomy: first_cache().is_none_or(|bytes| bytes > 32 << 10) })
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn go<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the caller's promise for the kernel; the features are on.
        unsafe { kernel.run(self) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn go_vnni<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: as above.
        unsafe { kernel.run(self) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
    unsafe fn go_bf16<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: as above.
        unsafe { kernel.run(self) }
    }

    #[inline(always)]
    fn mask(n: usize) -> __mmask16 {
        if n >= 16 { 0xffff } else { (1 << n) - 1 }
    }
}

// SAFETY of the whole impl: the token proves the features; pointers are the caller's promise.
impl<const VNNI: bool, const BF16: bool> Simd for Avx512<VNNI, BF16> {
    type V = __m512;
    type I = __m512i;
    type W = __m512i;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 12;
    /// Zen 5: four at once are no faster.
    const STEPS: usize = 1;
    const GROUP: usize = if VNNI { 4 } else { 2 };
    const SIGNED: bool = !VNNI;
    const CODED: bool = true;

    #[inline(always)]
    fn fetch(self) -> Fetch {
        if self.roomy { NEAR } else { SECOND }
    }
    #[inline(always)]
    unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        unsafe {
            match (VNNI, BF16) {
                (true, true) => self.go_bf16(kernel),
                (true, false) => self.go_vnni(kernel),
                _ => self.go(kernel),
            }
        }
    }
    #[inline(always)]
    unsafe fn splat(self, x: f32) -> Self::V {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn prefetch<const SECOND: bool>(self, p: *const u8) {
        unsafe { prefetch::<SECOND>(p) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::V {
        unsafe { _mm512_maskz_loadu_ps(Self::mask(n), p) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: Self::V) {
        unsafe { _mm512_mask_storeu_ps(p, Self::mask(n), v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::V {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::V {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn add(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(self, a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn if_less(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }
    #[inline(always)]
    unsafe fn round(self, a: Self::V) -> Self::V {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn splat_i32(self, x: i32) -> Self::I {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn to_f32(self, x: Self::I) -> Self::V {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat_group(self, x: i32) -> Self::W {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Self::W {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_eights(self, p: *const u8) -> Self::W {
        unsafe { if VNNI { self.load_bytes(p) } else { _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())) } }
    }
    #[inline(always)]
    unsafe fn store_integers(self, p: *mut u8, v: Self::V) {
        unsafe {
            let v = _mm512_cvtps_epi32(v);
            if VNNI {
                _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(v));
            } else {
                _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(v));
            }
        }
    }
    #[inline(always)]
    unsafe fn nibbles<const J: u32>(self, x: Self::W) -> Self::W {
        unsafe {
            if VNNI {
                let x = if J == 0 { x } else { _mm512_srli_epi16::<4>(x) };
                return _mm512_and_si512(x, _mm512_set1_epi8(15));
            }
            // The shift counts are constants: the compiler sees through the match.
            let x = match J {
                0 => _mm512_slli_epi16::<12>(x),
                1 => _mm512_slli_epi16::<8>(x),
                2 => _mm512_slli_epi16::<4>(x),
                _ => x,
            };
            _mm512_srai_epi16::<12>(x)
        }
    }
    #[inline(always)]
    unsafe fn add_products(self, sum: Self::I, w: Self::W, x: Self::W) -> Self::I {
        unsafe {
            if VNNI {
                return _mm512_dpbusd_epi32(sum, w, x);
            }
            _mm512_add_epi32(sum, _mm512_madd_epi16(w, x))
        }
    }
    #[inline(always)]
    unsafe fn load_table(self, p: *const u8) -> Self::W {
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_coded(self, table: Self::W, p: *const u8) -> [[Self::V; 4]; 2] {
        unsafe {
            let (places, mask) = (self.load_bytes(p), _mm512_set1_epi8(15));
            let places = [places, _mm512_srli_epi16::<4>(places)];
            let mut numbers = [[self.splat(0.0); 4]; 2];
            for half in 0..2 {
                let upper = _mm512_shuffle_epi8(table, _mm512_and_si512(places[half], mask));
                let lower = self.load_bytes(p.add(4 * (half + 1) * Self::LANES));
                let [first, second] = self.halves(_mm512_unpacklo_epi8(lower, upper));
                let [third, fourth] = self.halves(_mm512_unpackhi_epi8(lower, upper));
                numbers[half] = [first, second, third, fourth];
            }
            numbers
        }
    }
    #[inline(always)]
    unsafe fn halves(self, x: Self::W) -> [Self::V; 2] {
        unsafe {
            let high = _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)), _mm512_castsi512_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn add_bf16_products(self, sum: Self::V, w: Self::W, x: Self::W) -> Self::V {
        unsafe {
            if BF16 {
                // The same bits under another type.
                return _mm512_dpbf16_ps(
                    sum,
                    std::mem::transmute::<__m512i, __m512bh>(w),
                    std::mem::transmute::<__m512i, __m512bh>(x),
                );
            }
            add_widened_products(self, sum, w, x)
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut Pair, v: [Self::V; 2]) {
        unsafe {
            if BF16 {
                // The same bits under another type.
                let v = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(v[1], v[0]));
                return _mm512_storeu_si512(p.cast(), v);
            }
            store_rounded(self, p, v)
        }
    }
    #[inline(always)]
    unsafe fn mul_exp2(self, x: Self::V, n: Self::V) -> Self::V {
        unsafe { _mm512_scalef_ps(x, n) }
    }
    #[inline(always)]
    unsafe fn transpose(self, words: *mut f32, step: usize) {
        unsafe {
            let at = |row: usize| words.add(row * step);
            // Pairs of rows, then runs of four words: of rows 4g to 4g + 3, words 4c + i for c from 0 to 3, at `fours[4 * g + i]`.
            let mut fours = [_mm512_setzero_ps(); 16];
            for g in 0..4 {
                let (a, b) = (_mm512_loadu_ps(at(4 * g)), _mm512_loadu_ps(at(4 * g + 1)));
                let (c, d) = (_mm512_loadu_ps(at(4 * g + 2)), _mm512_loadu_ps(at(4 * g + 3)));
                let low = [_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d)];
                let high = [_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d)];
                fours[4 * g] = _mm512_shuffle_ps::<0b01_00_01_00>(low[0], low[1]);
                fours[4 * g + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(low[0], low[1]);
                fours[4 * g + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(high[0], high[1]);
                fours[4 * g + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(high[0], high[1]);
            }
            for i in 0..4 {
                let (a, b, c, d) = (fours[i], fours[i + 4], fours[i + 8], fours[i + 12]);
                let even = [
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d),
                ];
                let odd = [
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d),
                ];
                _mm512_storeu_ps(at(i), _mm512_shuffle_f32x4::<0b10_00_10_00>(even[0], even[1]));
                _mm512_storeu_ps(at(i + 4), _mm512_shuffle_f32x4::<0b10_00_10_00>(odd[0], odd[1]));
                _mm512_storeu_ps(at(i + 8), _mm512_shuffle_f32x4::<0b11_01_11_01>(even[0], even[1]));
                _mm512_storeu_ps(at(i + 12), _mm512_shuffle_f32x4::<0b11_01_11_01>(odd[0], odd[1]));
            }
        }
    }
    #[inline(always)]
    unsafe fn reduce_sum(self, v: Self::V) -> f32 {
        unsafe { sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }
    #[inline(always)]
    unsafe fn reduce_max(self, v: Self::V) -> f32 {
        unsafe { largest_of_eight(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(self, n: Self::V) -> Self::V {
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_cache_is_as_large_as_those_that_there_are() {
        // Nothing where a virtual machine keeps it to itself.
        if let Some(bytes) = first_cache() {
            assert!((8 << 10..=1 << 20).contains(&bytes), "{bytes}");
        }
    }
}
