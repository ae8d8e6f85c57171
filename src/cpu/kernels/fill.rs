//! Keys and values on their way into the pages of caches, where attention finds them.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::matmul::ROW_BLOCK;
use super::simd::{Checked, Kernel, MAX_LANES, Simd, Weight, load, store};
use crate::backend::{Compute, HeadLayout, KvCache, PAGE_KEYS, Pair, Span};
use crate::tensor::Tensor;

/// What keys and values are kept as, and queries and weights rounded to: words of 4 bytes.
///
/// # Safety
/// As the methods of [`Simd`] that these come to.
#[allow(clippy::missing_safety_doc)] // said here, once
pub trait Word: Weight<X = Self> {
    /// What caches of such words are for.
    const COMPUTE: Compute;
    /// Numbers in a word.
    const NUMBERS: usize;
    /// The first `n` words, up to a whole vector, then zeros.
    unsafe fn load_part<S: Simd>(s: S, p: *const Self, n: usize) -> Self::Vector<S>;
    /// Stores two vectors of numbers.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: [S::V; 2]);
}

impl Word for f32 {
    const COMPUTE: Compute = Compute::F32;
    const NUMBERS: usize = 1;
    #[inline(always)]
    unsafe fn load_part<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe { load(s, p, n) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut f32, v: [S::V; 2]) {
        // SAFETY: the caller's.
        unsafe {
            s.store(p, v[0]);
            s.store(p.add(S::LANES), v[1]);
        }
    }
}

impl Word for Pair {
    const COMPUTE: Compute = Compute::Bf16;
    const NUMBERS: usize = 2;
    #[inline(always)]
    unsafe fn load_part<S: Simd>(s: S, p: *const Pair, n: usize) -> S::W {
        // SAFETY: the caller's; a vector has at most `MAX_LANES` words.
        unsafe {
            if n == S::LANES {
                return s.load_bytes(p.cast());
            }
            let mut words = [Pair::default(); MAX_LANES];
            std::ptr::copy_nonoverlapping(p, words.as_mut_ptr(), n);
            s.load_bytes(words.as_ptr().cast())
        }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Pair, v: [S::V; 2]) {
        // SAFETY: the caller's.
        unsafe { s.store_bf16(p, v) }
    }
}

/// Stores up to two vectors of numbers, each times a factor, as words: whole pairs of vectors, with zeros behind the last number.
///
/// # Safety
/// Only inside of a kernel; there must be room for the words.
#[inline(always)]
pub unsafe fn store_words<S: Simd, T: Word>(s: S, numbers: &[f32], factor: f32, to: *mut T) {
    let (first, second) = numbers.split_at(numbers.len().min(S::LANES));
    // SAFETY: the caller's; parts of vectors are as long as said.
    unsafe {
        let first = s.mul(load(s, first.as_ptr(), first.len()), s.splat(factor));
        let second = s.mul(load(s, second.as_ptr(), second.len()), s.splat(factor));
        T::store(s, to, [first, second]);
    }
}

/// Places of some heads in a page, and what gets there.
pub struct Places<'a> {
    /// The heads' part of the page.
    heads: &'a mut [f32],
    pub layout: HeadLayout,
    /// Which places of the page are filled, with the rows from `first_row` on. No later one holds anything.
    lanes: Range<usize>,
    x: &'a Tensor,
    /// Which row of `x` each row is; none where they are the same.
    rows: Option<&'a [u32]>,
    first_row: usize,
    k_start: usize,
    v_start: usize,
}

/// Keys and values on their way into a page, as [`HeadLayout`] says.
pub struct FillPage<'a, T> {
    pub places: Places<'a>,
    pub kept: PhantomData<T>,
}

impl<T: Word> Kernel for FillPage<'_, T> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let FillPage { mut places, .. } = self;
        let (heads, lanes) = (std::mem::take(&mut places.heads), places.lanes.clone());
        for (h, head) in heads.chunks_mut(places.layout.words().max(1)).enumerate() {
            // SAFETY: the caller has the features on.
            unsafe {
                let (keys, values) = head.split_at_mut(places.layout.key_words());
                let mut first = lanes.start;
                while first < lanes.end {
                    let some = first..lanes.end.min(first + S::LANES);
                    places.fill_keys::<S, T>(s, h, &some, keys);
                    first = some.end;
                }
                places.fill_values::<T>(h, values);
            }
        }
    }
}

// SAFETY: every place is a slice of its own length.
unsafe impl<T: Word> Checked for FillPage<'_, T> {}

impl<'a> Places<'a> {
    /// The places of all new keys and values, divided as [`Attend`](super::attention::Attend) divides its tasks, so that threads read what they have written: the
    /// heads of few rows, else sequences or rows.
    ///
    /// Spans are of rows of `x`, or of `rows_of_x`.
    pub fn divided(
        x: &'a Tensor,
        rows_of_x: Option<&'a [u32]>,
        k_start: usize,
        v_start: usize,
        spans: &[Span],
        caches: &'a mut [&mut KvCache],
        threads: usize,
    ) -> Vec<Places<'a>> {
        let mut all = Vec::new();
        for (Span { rows, .. }, cache) in spans.iter().zip(caches) {
            let (layout, from, page_len) = (cache.layout(), cache.len(), cache.page_len());
            let groups = if rows.len() > ROW_BLOCK { 1 } else { threads.div_ceil(spans.len()) };
            let heads_of_part = cache.kv_heads().div_ceil(groups);
            let part_len = (heads_of_part * layout.words()).max(1);
            let pages = cache.grow(rows.len()).chunks_mut(page_len.max(1)).enumerate().skip(from / PAGE_KEYS);
            let first_of_span = all.len();
            for (page, heads) in pages {
                let start = page * PAGE_KEYS;
                let lanes = from.saturating_sub(start)..PAGE_KEYS.min(from + rows.len() - start);
                let first_row = rows.start + (start + lanes.start - from);
                all.extend(heads.chunks_mut(part_len).enumerate().map(|(i, heads)| {
                    let head = i * heads_of_part;
                    let (k_start, v_start) = (k_start + head * layout.k_dim, v_start + head * layout.v_dim);
                    Places {
                        heads,
                        layout,
                        lanes: lanes.clone(),
                        x,
                        rows: rows_of_x,
                        first_row,
                        k_start,
                        v_start,
                    }
                }));
            }
            all[first_of_span..].sort_by_key(|places| places.k_start);
        }
        all
    }

    /// The row of `x` for a place of the page.
    #[inline(always)]
    fn row(&self, lane: usize) -> &[f32] {
        let row = self.first_row + lane - self.lanes.start;
        self.x.row(self.rows.map_or(row, |rows| rows[row] as usize))
    }

    /// Up to `LANES` keys of a head.
    ///
    /// # Safety
    /// Only inside of a kernel.
    #[inline(always)]
    unsafe fn fill_keys<S: Simd, T: Word>(&self, s: S, h: usize, lanes: &Range<usize>, keys: &mut [f32]) {
        let k_dim = self.layout.k_dim;
        // Words of two vectors of numbers of each key.
        let step = 2 * S::LANES / T::NUMBERS;
        let mut words = MaybeUninit::<[f32; 2 * MAX_LANES * MAX_LANES]>::uninit();
        let words = words.as_mut_ptr().cast::<f32>();
        for (part, columns) in keys.chunks_mut(step * PAGE_KEYS).enumerate() {
            let start = part * 2 * S::LANES;
            // SAFETY: there is room for `LANES` rows of `step` words, whole pairs of vectors, each of which is written
            // before it is read.
            unsafe {
                for (i, lane) in lanes.clone().enumerate() {
                    let key = &self.row(lane)[self.k_start + h * k_dim + start..]
                        [..(2 * S::LANES).min(k_dim - start)];
                    store_words::<S, T>(s, key, 1.0, words.add(i * step).cast());
                }
                if lanes.len() == 1 {
                    for (i, column) in columns.chunks_mut(PAGE_KEYS).enumerate() {
                        column[lanes.start] = *words.add(i);
                    }
                    continue;
                }
                // Whole vectors are written, with zeros behind the last key.
                for i in (lanes.len() * step..S::LANES * step).step_by(S::LANES) {
                    s.store(words.add(i), s.splat(0.0));
                }
                for i in (0..step).step_by(S::LANES) {
                    s.transpose(words.add(i), step);
                }
                for (i, column) in columns.chunks_mut(PAGE_KEYS).enumerate() {
                    let from = words.add(i % S::LANES * step + i / S::LANES * S::LANES);
                    let to = &mut column[lanes.start..];
                    store(s, to.as_mut_ptr(), to.len().min(S::LANES), s.load(from));
                }
            }
        }
    }

    /// The values of a head.
    #[inline(always)]
    fn fill_values<T: Word>(&self, h: usize, values: &mut [f32]) {
        let v_dim = self.layout.v_dim;
        let start = self.v_start + h * v_dim;
        let mut lane = self.lanes.start;
        while lane < self.lanes.end {
            let value = &self.row(lane)[start..][..v_dim];
            if T::COMPUTE == Compute::Bf16 && lane.is_multiple_of(2) && lane + 1 < self.lanes.end {
                let next = &self.row(lane + 1)[start..][..v_dim];
                let to = &mut values[lane / 2 * v_dim..][..v_dim];
                for i in 0..v_dim {
                    to[i] = Pair::new(value[i], next[i]).as_word();
                }
                lane += 2;
            } else {
                self.layout.put_value(values, lane, value);
                lane += 1;
            }
        }
    }
}
