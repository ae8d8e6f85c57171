//! Softmax attention over paged keys and values, block by block, without keeping the scores of a whole sequence.
//!
//! A block is [`BLOCK_KEYS`] keys from a multiple of that on, whatever the query: so the order in which a query's sums run depends
//! on its own position alone. A key that it does not see counts with weight exactly 0, whether its block is passed over or not.

use std::f32::consts::LOG2_E;
use std::marker::PhantomData;
use std::ops::Range;

use super::distances::{AddDistances, MARGIN};
use super::fill::{Word, store_words};
use super::math::{exp2, tanh};
use super::matmul::{ROW_BLOCK, Shared};
use super::simd::{Checked, Kernel, MAX_LANES, Simd, load, store};
use crate::backend::{AttentionParams, KvCache, PAGE_KEYS, Span};
use crate::cpu::pool::{Pool, part};
use crate::tensor::{Spare, Tensor, at_least};

/// Pages of a block.
const PAGES: usize = 16;

/// Keys of a block.
const BLOCK_KEYS: usize = PAGES * PAGE_KEYS;

/// Rows (queries times the query heads that share a key head) that go through the keys together.
const TILE: usize = 24;

/// The same where there are vectors of distances: with few rows, many of the products of keys and distances are of no use.
const TILE_WITH_DISTANCES: usize = 48;

/// From the scores of a row to those of the next one.
pub const SCORES_STEP: usize = BLOCK_KEYS + MARGIN;

/// With so many rows or fewer, memory is slower than their products: so values are fetched while scores are computed, and the next keys
/// while values are added up. Twelve layers of 768 columns after 960 tokens, one row: 19.9 and 18.5 ms a token (Zen 4).
const FEW_ROWS: usize = 12;

/// The number of each element of a vector.
const LANE_NUMBERS: [f32; MAX_LANES] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Attention of all sequences of a batch, with caches of `T`.
pub struct Attend<'a, T> {
    pub pool: &'a Pool,
    pub x: &'a Tensor,
    pub q_start: usize,
    pub spans: &'a [Span],
    pub caches: &'a [&'a KvCache],
    pub params: &'a AttentionParams<'a>,
    /// The keys of distances, in the order in which keys lie.
    pub distance_keys: Option<&'a KvCache>,
    pub out: &'a mut Tensor,
    /// Memory of earlier tasks.
    pub spare: &'a Spare<Scratch>,
    pub kept: PhantomData<T>,
}

/// What a task needs while it goes through the keys.
#[derive(Debug, Default)]
pub struct Scratch {
    rows: Vec<Row>,
    /// Queries, scores, sums of weights and of values.
    numbers: Vec<f32>,
    /// Vectors of distances and products with them.
    distances: Vec<f32>,
}

/// Queries `queries` of span `span`, for the query heads `heads`, which read key head `kv_head`.
#[derive(Clone)]
struct Task {
    span: usize,
    kv_head: usize,
    heads: Range<usize>,
    queries: Range<usize>,
}

impl<T: Word> Kernel for Attend<'_, T> {
    type Output = ();

    /// # Safety
    /// None beyond the features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let Attend { pool, x, q_start, spans, caches, params, distance_keys, out, spare, kept } = self;
        let p = params;
        assert!(p.kv_heads > 0 && p.heads % p.kv_heads == 0, "heads of attention");
        assert!(q_start + p.heads * p.k_dim <= x.cols(), "columns of the queries");
        assert_eq!((out.rows(), out.cols()), (x.rows(), p.heads * p.v_dim), "shape of attention's output");
        assert_eq!(spans.len(), caches.len(), "a cache per sequence");
        assert!(Span::are_in_order(spans, x.rows()), "rows of sequences");
        for cache in caches {
            assert_eq!(
                (cache.kv_heads(), cache.k_dim(), cache.v_dim()),
                (p.kv_heads, p.k_dim, p.v_dim),
                "cache"
            );
            assert_eq!(cache.layout().compute, T::COMPUTE, "what a cache is kept for");
        }
        let group = p.heads / p.kv_heads;
        if let Some(distances) = p.distances {
            let known = distances.bucket.len().div_ceil(2);
            assert!(caches.iter().all(|cache| cache.len() <= known), "distances between keys");
            let is_known = |span: &Span| span.past <= known && span.rows.len() <= known - span.past;
            assert!(spans.iter().all(is_known), "distances of queries");
            assert_eq!(group, 1, "query heads of a key head with distances");
        }
        if let Some(keys) = distance_keys {
            let known = p.distances.map_or(0, |distances| distances.bucket.len().div_ceil(2));
            assert_eq!((keys.kv_heads(), keys.k_dim()), (p.heads, p.k_dim), "keys of distances");
            assert!(keys.len() == 2 * known.next_multiple_of(PAGE_KEYS), "pages of distances");
            assert_eq!(keys.layout().compute, T::COMPUTE, "what keys of distances are kept for");
        }
        let tile = if p.distances.is_some() { TILE_WITH_DISTANCES } else { TILE };
        let step = (tile / group).max(1);
        // With few queries and key heads, threads share the query heads of a key head, whose keys all of them read then.
        let pieces = pool.threads().div_ceil((x.rows() * p.kv_heads).max(1)).min(group);
        let mut tasks = Vec::with_capacity(x.rows().div_ceil(step) * p.kv_heads * pieces);
        for (span, rows) in spans.iter().map(|span| span.rows.len()).enumerate() {
            // Rows of a long sequence stay with the thread that has computed them.
            let parts = rows.div_ceil(ROW_BLOCK).min(pool.threads());
            for rows in (0..parts).map(|i| part(&(0..rows), i, parts)) {
                for kv_head in 0..p.kv_heads {
                    let heads = kv_head * group..(kv_head + 1) * group;
                    for heads in (0..pieces).map(|i| part(&heads, i, pieces)) {
                        for first in rows.clone().step_by(step) {
                            let queries = first..(first + step).min(rows.end);
                            tasks.push(Task { span, kv_head, heads: heads.clone(), queries });
                        }
                    }
                }
            }
        }
        let shared = Shared::new(out);
        pool.run(tasks.len(), &|i| {
            let Task { span, kv_head, heads, queries } = tasks[i].clone();
            let tile = Tile {
                x,
                q_start,
                span: &spans[span],
                cache: caches[span],
                params,
                distance_keys,
                kv_head,
                heads,
                queries,
                out: shared,
                spare,
                kept,
            };
            // SAFETY: the token turns its features on; lengths are checked above; tasks have different rows or heads.
            unsafe { s.run(tile) };
        });
    }
}

// SAFETY: lengths are checked before anything else.
unsafe impl<T: Word> Checked for Attend<'_, T> {}

struct Tile<'a, T> {
    x: &'a Tensor,
    q_start: usize,
    span: &'a Span,
    cache: &'a KvCache,
    params: &'a AttentionParams<'a>,
    distance_keys: Option<&'a KvCache>,
    kv_head: usize,
    heads: Range<usize>,
    queries: Range<usize>,
    out: Shared,
    spare: &'a Spare<Scratch>,
    kept: PhantomData<T>,
}

/// A query head of one position.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// Row of the batch.
    row: usize,
    head: usize,
    position: usize,
    /// The keys that it sees.
    first: usize,
    end: usize,
    /// The largest score so far.
    largest: f32,
}

impl Row {
    /// Which keys of some pages it sees.
    #[inline(always)]
    fn seen(&self, pages: &Range<usize>) -> Range<usize> {
        let (start, end) = (pages.start * PAGE_KEYS, pages.end * PAGE_KEYS);
        self.first.clamp(start, end) - start..self.end.clamp(start, end) - start
    }
}

impl<T: Word> Kernel for Tile<'_, T> {
    type Output = ();

    /// # Safety
    /// `Attend` has checked the lengths.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let p = self.params;
        let mut scratch = self.spare.take();
        let Scratch { rows, numbers, distances } = &mut scratch;
        self.begin(rows);
        let n = rows.len();
        // Queries are written in whole vectors.
        let q_step = p.k_dim.next_multiple_of(2 * S::LANES) / T::NUMBERS;
        let numbers = at_least(numbers, MARGIN + n * (q_step + SCORES_STEP + S::LANES + p.v_dim));
        let (q, rest) = numbers.split_at_mut(n * q_step);
        let q = View { first: q.as_mut_ptr().cast::<T>(), step: q_step };
        let (scores, rest) = rest.split_at_mut(MARGIN + n * SCORES_STEP);
        rest.fill(0.0);
        let (sums, values) = rest.split_at_mut(n * S::LANES);
        for (r, row) in rows.iter().enumerate() {
            let from = &self.x.row(row.row)[self.q_start + row.head * p.k_dim..][..p.k_dim];
            for (i, from) in from.chunks(2 * S::LANES).enumerate() {
                // SAFETY: there is room for `n` rows of whole pairs of vectors.
                unsafe {
                    let to = q.first.add(r * q.step + i * 2 * S::LANES / T::NUMBERS);
                    store_words::<S, T>(s, from, p.scale, to);
                }
            }
        }
        // What no row sees is not computed.
        let first = rows.iter().map(|row| row.first).min().unwrap_or(0) / PAGE_KEYS;
        let end = rows.iter().map(|row| row.end).max().unwrap_or(0).div_ceil(PAGE_KEYS);
        for block in first / PAGES..end.div_ceil(PAGES) {
            let pages = first.max(block * PAGES)..end.min((block + 1) * PAGES);
            if pages.is_empty() {
                continue;
            }
            // SAFETY: pages exist up to the cache's length; scratch rows are `n`.
            unsafe {
                let a = View { first: q.first.cast_const(), step: q.step };
                let c = View { first: scores.as_mut_ptr().add(MARGIN), step: SCORES_STEP };
                times_pages::<S, T>(s, n, a, self.cache, self.kv_head, pages.clone(), c, false);
                if let Some(vectors) = p.distances {
                    let add = AddDistances {
                        vectors,
                        keys: self.distance_keys,
                        cache: self.cache,
                        pages: pages.clone(),
                        head: self.kv_head,
                        position: self.span.past + self.queries.start,
                        n,
                        q: a,
                        scale: p.scale,
                        scores: c.first,
                        memory: distances,
                    };
                    add.run(s);
                }
                // Of all rows first the largest, then the weights: what a row waits for, others do in the meantime.
                for (r, row) in rows.iter_mut().enumerate() {
                    let scores = &mut scores[MARGIN + r * SCORES_STEP..][..BLOCK_KEYS];
                    let sums = &mut sums[r * S::LANES..][..S::LANES];
                    self.limit(s, &pages, row, scores, sums, &mut values[r * p.v_dim..][..p.v_dim]);
                }
                for (r, row) in rows.iter().enumerate() {
                    let scores = &mut scores[MARGIN + r * SCORES_STEP..][..BLOCK_KEYS];
                    self.weigh(s, &pages, row, scores, &mut sums[r * S::LANES..][..S::LANES]);
                }
                // Of the next block, or of the next head, which most often is this thread's as well.
                let next = if pages.end < end {
                    self.cache.keys_at(pages.end, self.kv_head)
                } else {
                    self.cache.keys_at(first, self.kv_head + 1)
                };
                self.add_values(s, pages, n, &scores[MARGIN..], values, next);
            }
        }
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: `LANES` sums, and a value for each column of the head.
            unsafe {
                self.finish(s, row, &sums[r * S::LANES..][..S::LANES], &values[r * p.v_dim..][..p.v_dim])
            };
        }
        self.spare.give(scratch);
    }
}

impl<T: Word> Tile<'_, T> {
    /// The rows of the tile, before any key.
    #[inline(always)]
    fn begin(&self, rows: &mut Vec<Row>) {
        rows.clear();
        for i in self.queries.clone() {
            let (row, position) = (self.span.rows.start + i, self.span.past + i);
            let Range { start: first, end } = self.params.reach.of(position, self.cache.len());
            let largest = f32::NEG_INFINITY;
            rows.extend(self.heads.clone().map(|head| Row { row, head, position, first, end, largest }));
        }
    }

    /// Writes the result of a row: the sum of its values by the sum of their weights.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, row: &Row, sums: &[f32], values: &[f32]) {
        let p = self.params;
        // SAFETY: the caller's; the head's columns lie inside of the row.
        unsafe {
            let mut total = s.reduce_sum(s.load(sums.as_ptr()));
            let mut factor = 1.0;
            if let Some(sinks) = p.sinks {
                // The sink joins at the end: everything so far is relative to the largest score without it.
                let (sink, largest) = (sinks[row.head], row.largest);
                let both = if sink > largest { sink } else { largest };
                factor = if total == 0.0 { 0.0 } else { ((largest - both) * LOG2_E).exp2() };
                total = total * factor + ((sink - both) * LOG2_E).exp2();
            }
            // A row that sees no key has no weights: it gives zeros.
            let (factor, total) = if row.first == row.end { (0.0, 1.0) } else { (factor, total) };
            let (factor, total) = (s.splat(factor), s.splat(total));
            let to = self.out.at(row.row, row.head * p.v_dim);
            for (i, value) in values.chunks(S::LANES).enumerate() {
                let y = s.div(s.mul(load(s, value.as_ptr(), value.len()), factor), total);
                store(s, to.add(i * S::LANES), value.len(), y);
            }
        }
    }

    /// The scores of one row for the keys of some pages: capped, biased, masked, and the largest so far found. What was summed relative
    /// to an earlier one is scaled down.
    #[inline(always)]
    unsafe fn limit<S: Simd>(
        &self,
        s: S,
        pages: &Range<usize>,
        row: &mut Row,
        scores: &mut [f32],
        sums: &mut [f32],
        values: &mut [f32],
    ) {
        let p = self.params;
        let (start, seen) = (pages.start * PAGE_KEYS, row.seen(pages));
        if seen.is_empty() {
            return;
        }
        let scores = &mut scores[..seen.end.next_multiple_of(S::LANES)];
        // SAFETY: a multiple of `LANES` scores; `LANES` sums.
        unsafe {
            if let Some(cap) = p.softcap {
                for chunk in scores.chunks_exact_mut(S::LANES) {
                    let y = s.mul(tanh(s, s.div(s.load(chunk.as_ptr()), s.splat(cap))), s.splat(cap));
                    s.store(chunk.as_mut_ptr(), y);
                }
            }
            if let Some(bias) = p.bias {
                let keys = start + seen.start..start + seen.end;
                bias.add(row.head, row.position, keys, &mut scores[seen.clone()]);
            }
            let none = s.splat(f32::NEG_INFINITY);
            let mut largest = none;
            for (i, chunk) in scores.chunks_exact_mut(S::LANES).enumerate() {
                let mut y = s.load(chunk.as_ptr());
                let at = i * S::LANES;
                if at < seen.start || at + S::LANES > seen.end {
                    // In a register: a vector that is put together in memory is not there yet when it is read.
                    let lanes = s.load(LANE_NUMBERS.as_ptr());
                    let (start, end) = (seen.start as f32 - at as f32, seen.end as f32 - at as f32);
                    y = s.if_less(lanes, s.splat(start), none, s.if_less(lanes, s.splat(end), y, none));
                    s.store(chunk.as_mut_ptr(), y);
                }
                largest = s.max(largest, y);
            }
            let largest = s.reduce_max(largest);
            let largest = if row.largest > largest { row.largest } else { largest };
            if row.largest != largest && row.largest != f32::NEG_INFINITY {
                let mut factor = [0.0f32; MAX_LANES];
                s.store(factor.as_mut_ptr(), exp2(s, s.splat((row.largest - largest) * LOG2_E)));
                let sum = s.mul(s.load(sums.as_ptr()), s.splat(factor[0]));
                s.store(sums.as_mut_ptr(), sum);
                for value in values {
                    *value *= factor[0];
                }
            }
            row.largest = largest;
        }
    }

    /// Scores of one row for the keys of some pages to weights, relative to the largest so far, which are added to the sums. They are
    /// written over the scores, as words from the row's start.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(
        &self,
        s: S,
        pages: &Range<usize>,
        row: &Row,
        scores: &mut [f32],
        sums: &mut [f32],
    ) {
        let seen = row.seen(pages);
        // So far a bias may have ruled every key out.
        if seen.is_empty() || row.largest == f32::NEG_INFINITY {
            scores.fill(0.0);
            return;
        }
        let some = seen.end.next_multiple_of(S::LANES);
        // SAFETY: a row of whole pairs of vectors; `LANES` sums. Words are not larger than the numbers that have been read.
        unsafe {
            let mut sum = s.load(sums.as_ptr());
            // The difference first: the product of a large score would be off by more than the exponent of its weight.
            let (largest, log2_e) = (s.splat(row.largest), s.splat(LOG2_E));
            let from = scores.as_mut_ptr();
            let to = from.cast::<T>();
            let mut at = 0;
            while at < some {
                let first = exp2(s, s.mul(s.sub(s.load(from.add(at)), largest), log2_e));
                sum = s.add(sum, first);
                let mut second = s.splat(0.0);
                if at + S::LANES < some {
                    let score = s.load(from.add(at + S::LANES));
                    second = exp2(s, s.mul(s.sub(score, largest), log2_e));
                    sum = s.add(sum, second);
                }
                T::store(s, to.add(at / T::NUMBERS), [first, second]);
                at += 2 * S::LANES;
            }
            while at < pages.len() * PAGE_KEYS {
                T::store(s, to.add(at / T::NUMBERS), [s.splat(0.0); 2]);
                at += 2 * S::LANES;
            }
            s.store(sums.as_mut_ptr(), sum);
        }
    }

    /// Adds the values of some pages of a block, each with its weight. `next` is where in the cache the keys lie that are read next.
    #[inline(always)]
    unsafe fn add_values<S: Simd>(
        &self,
        s: S,
        pages: Range<usize>,
        n: usize,
        weights: &[f32],
        values: &mut [f32],
        next: usize,
    ) {
        let v = self.params.v_dim;
        let at = self.cache.values_at(pages.start, self.kv_head);
        let stored = self.cache.pages()[at..].as_ptr().cast::<T>();
        // Places behind the last key hold anything.
        let last = PAGE_KEYS.min(self.cache.len() - (pages.end - 1) * PAGE_KEYS).div_ceil(T::NUMBERS);
        let mut d = 0;
        while d < v {
            let vectors = (v - d) / S::LANES;
            let width = if vectors == 0 { v - d } else { S::LANES };
            // SAFETY: `n` rows of weights and values; a page has `PAGE_KEYS` rows of values, of which `v - d` columns are left.
            unsafe {
                let product = Product {
                    n,
                    k: PAGE_KEYS / T::NUMBERS,
                    runs: pages.len(),
                    last,
                    a: View { first: weights.as_ptr().cast::<T>(), step: SCORES_STEP },
                    b: View { first: stored.add(d), step: v },
                    b_run: self.cache.page_len(),
                    b_page: PAGE_KEYS,
                    c: View { first: values.as_mut_ptr().add(d), step: v },
                    width,
                    add: true,
                    ahead: next.wrapping_sub(at),
                };
                d += match vectors {
                    8.. if n == 1 => {
                        product.run::<S, 8>(s);
                        8 * S::LANES
                    }
                    4.. if n == 1 || S::TILE_ROWS >= 12 => {
                        product.run::<S, 4>(s);
                        4 * S::LANES
                    }
                    2.. => {
                        product.run::<S, 2>(s);
                        2 * S::LANES
                    }
                    _ => {
                        product.run::<S, 1>(s);
                        width
                    }
                };
            }
        }
    }
}

/// Products of `n` rows with the keys of some pages of a head, into `c`, which begins with those of the first page, or added to it.
///
/// # Safety
/// Only inside of a kernel; rows, pages, and elements of `c` must be there.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn times_pages<S: Simd, T: Word>(
    s: S,
    n: usize,
    a: View<*const T>,
    keys: &KvCache,
    head: usize,
    pages: Range<usize>,
    c: View<*mut f32>,
    add: bool,
) {
    let k = keys.k_dim().div_ceil(T::NUMBERS);
    let mut page = pages.start;
    while page < pages.end {
        let b = keys.pages()[keys.keys_at(page, head)..].as_ptr();
        // SAFETY: the caller's; a page has `k` rows of keys, and there are as many pages as are taken.
        page += unsafe {
            let product = Product {
                n,
                k,
                runs: 1,
                last: k,
                a,
                b: View { first: b.cast::<T>(), step: PAGE_KEYS },
                b_run: 0,
                b_page: keys.page_len(),
                c: View { first: c.first.add((page - pages.start) * PAGE_KEYS), step: c.step },
                width: S::LANES,
                add,
                // Values lie behind keys.
                ahead: keys.layout().key_words(),
            };
            let vectors = PAGE_KEYS / S::LANES;
            match (pages.end - page) * vectors {
                // A query by itself waits for memory, which gives more in more streams.
                8.. if n == 1 => {
                    product.run::<S, 8>(s);
                    8 / vectors
                }
                4.. if n == 1 || S::TILE_ROWS >= 12 => {
                    product.run::<S, 4>(s);
                    4 / vectors
                }
                2.. => {
                    product.run::<S, 2>(s);
                    2 / vectors
                }
                _ => {
                    product.run::<S, 1>(s);
                    1
                }
            }
        };
    }
}

/// A matrix by its first element and the distance between its rows.
#[derive(Clone, Copy)]
pub struct View<P> {
    pub first: P,
    pub step: usize,
}

/// `c = a b`, or `c += a b`: `[n, (runs - 1) * k + last]` times as many rows of `N` vectors, the last vector with `width` elements.
pub struct Product<T> {
    pub n: usize,
    /// Rows of b that follow each other, and how many such runs there are, `b_run` elements apart; the last is shorter.
    pub k: usize,
    pub runs: usize,
    pub last: usize,
    pub a: View<*const T>,
    pub b: View<*const T>,
    pub b_run: usize,
    /// Elements between groups of [`PAGE_KEYS`] columns of b.
    pub b_page: usize,
    pub c: View<*mut f32>,
    pub width: usize,
    pub add: bool,
    /// What lies so many elements behind what is read of b is fetched into the second cache, if rows are few. It need not be there.
    pub ahead: usize,
}

impl<T: Word> Product<T> {
    /// # Safety
    /// Only inside of a kernel; the elements of the matrices must be readable, those of `c` writable.
    #[inline(always)]
    unsafe fn run<S: Simd, const N: usize>(&self, s: S) {
        // SAFETY: the caller's; rows never exceed `n`.
        unsafe {
            let mut row = 0;
            if self.n <= FEW_ROWS {
                row = self.rows::<S, N, true>(s, row);
            }
            while row < self.n {
                row = self.rows::<S, N, false>(s, row);
            }
        }
    }

    /// As many rows from `row` on as the registers hold sums; gives the one behind them.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    #[inline(always)]
    unsafe fn rows<S: Simd, const N: usize, const AHEAD: bool>(&self, s: S, row: usize) -> usize {
        // SAFETY: the caller's; there are so many rows.
        unsafe {
            let rows = match self.n - row {
                12.. if N <= 2 && S::TILE_ROWS >= 12 => {
                    self.tile::<S, N, 12, AHEAD>(s, row);
                    12
                }
                8.. if N <= 2 && S::TILE_ROWS >= 12 => {
                    self.tile::<S, N, 8, AHEAD>(s, row);
                    8
                }
                6.. if N <= 4 => {
                    self.tile::<S, N, 6, AHEAD>(s, row);
                    6
                }
                4.. if N <= 4 && S::TILE_ROWS >= 12 => {
                    self.tile::<S, N, 4, AHEAD>(s, row);
                    4
                }
                3 if N <= 4 && S::TILE_ROWS >= 12 => {
                    self.tile::<S, N, 3, AHEAD>(s, row);
                    3
                }
                2.. => {
                    self.tile::<S, N, 2, AHEAD>(s, row);
                    2
                }
                _ => {
                    self.tile::<S, N, 1, AHEAD>(s, row);
                    1
                }
            };
            row + rows
        }
    }

    /// `R` rows from `row` on, while something is fetched `AHEAD` or not.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    #[inline(always)]
    pub unsafe fn tile<S: Simd, const N: usize, const R: usize, const AHEAD: bool>(&self, s: S, row: usize) {
        // SAFETY: the caller's.
        unsafe {
            let a = self.a.first.add(row * self.a.step);
            let c = self.c.first.add(row * self.c.step);
            let mut acc = [[s.splat(0.0); N]; R];
            if self.add {
                for r in 0..R {
                    for v in 0..N {
                        acc[r][v] = load(s, c.add(r * self.c.step + v * S::LANES), self.width);
                    }
                }
            }
            for run in 0..self.runs {
                let a = a.add(run * self.k);
                let b = self.b.first.add(run * self.b_run);
                let k = if run + 1 == self.runs { self.last } else { self.k };
                for i in 0..k {
                    let b = b.add(i * self.b.step);
                    if AHEAD {
                        s.prefetch::<true>(b.wrapping_add(self.ahead).cast());
                    }
                    // All are loaded below but the first: vectors have no default.
                    let mut w = [T::load_part(s, b, self.width); N];
                    for v in 1..N {
                        let column = v * S::LANES;
                        let at = column / PAGE_KEYS * self.b_page + column % PAGE_KEYS;
                        w[v] = T::load_part(s, b.add(at), self.width);
                        if AHEAD && column % PAGE_KEYS == 0 {
                            s.prefetch::<true>(b.wrapping_add(at.wrapping_add(self.ahead)).cast());
                        }
                    }
                    for r in 0..R {
                        let x = T::splat(s, *a.add(r * self.a.step + i));
                        for v in 0..N {
                            acc[r][v] = T::fma(s, w[v], x, acc[r][v]);
                        }
                    }
                }
            }
            for r in 0..R {
                for v in 0..N {
                    store(s, c.add(r * self.c.step + v * S::LANES), self.width, acc[r][v]);
                }
            }
        }
    }
}
