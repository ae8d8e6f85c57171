//! Softmax attention over paged keys and values, block by block, without keeping the scores of a whole sequence.
//!
//! A block is [`BLOCK_KEYS`] keys from a multiple of that on, whatever the query: so the order in which a query's sums run depends
//! on its own position alone. A key that it does not see counts with weight exactly 0, whether its block is passed over or not.

use super::math::{exp, tanh};
use super::matmul::Shared;
use super::simd::{Kernel, Simd};
use crate::backend::{AttentionParams, KvCache, PAGE_KEYS, Span};
use crate::cpu::pool::Pool;
use crate::tensor::Tensor;

/// Keys of a block.
const BLOCK_KEYS: usize = 4 * PAGE_KEYS;

/// Rows (queries times the query heads that share a key head) that go through the keys together.
const TILE: usize = 24;

/// Attention of all sequences of a batch.
pub struct Attend<'a> {
    pub pool: &'a Pool,
    pub x: &'a Tensor,
    pub q_start: usize,
    pub spans: &'a [Span],
    pub caches: &'a [&'a KvCache],
    pub params: &'a AttentionParams<'a>,
    pub out: &'a mut Tensor,
}

/// Queries `queries` of span `span`, for the query heads that read key head `kv_head`.
#[derive(Clone)]
struct Task {
    span: usize,
    kv_head: usize,
    queries: std::ops::Range<usize>,
}

impl Kernel for Attend<'_> {
    type Output = ();

    /// # Safety
    /// Lengths are checked here.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let Attend { pool, x, q_start, spans, caches, params, out } = self;
        let p = params;
        assert!(p.kv_heads > 0 && p.heads % p.kv_heads == 0, "heads of attention");
        assert!(q_start + p.heads * p.k_dim <= x.cols(), "columns of the queries");
        assert_eq!((out.rows(), out.cols()), (x.rows(), p.heads * p.v_dim), "shape of attention's output");
        assert_eq!(spans.len(), caches.len(), "a cache per sequence");
        for (span, cache) in spans.iter().zip(caches) {
            assert!(span.rows.end <= x.rows(), "rows of a sequence");
            assert_eq!(
                (cache.kv_heads(), cache.k_dim(), cache.v_dim()),
                (p.kv_heads, p.k_dim, p.v_dim),
                "cache"
            );
        }
        let group = p.heads / p.kv_heads;
        let step = (TILE / group).max(1);
        let mut tasks = Vec::new();
        for (span, rows) in spans.iter().map(|span| span.rows.len()).enumerate() {
            for kv_head in 0..p.kv_heads {
                for first in (0..rows).step_by(step) {
                    tasks.push(Task { span, kv_head, queries: first..(first + step).min(rows) });
                }
            }
        }
        let shared = Shared::new(out);
        pool.run(tasks.len(), &|i| {
            let Task { span, kv_head, queries } = tasks[i].clone();
            let tile = Tile {
                x,
                q_start,
                span: &spans[span],
                cache: caches[span],
                params,
                kv_head,
                queries,
                out: shared,
            };
            // SAFETY: the token turns its features on; lengths are checked above; tasks have different rows or heads.
            unsafe { s.run(tile) };
        });
    }
}

struct Tile<'a> {
    x: &'a Tensor,
    q_start: usize,
    span: &'a Span,
    cache: &'a KvCache,
    params: &'a AttentionParams<'a>,
    kv_head: usize,
    queries: std::ops::Range<usize>,
    out: Shared,
}

/// A query head of one position.
#[derive(Clone, Copy)]
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

impl Kernel for Tile<'_> {
    type Output = ();

    /// # Safety
    /// `Attend` has checked the lengths.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let p = self.params;
        let group = p.heads / p.kv_heads;
        let mut rows = Vec::with_capacity(self.queries.len() * group);
        for i in self.queries.clone() {
            let position = self.span.past + i;
            let seen = p.reach.of(position, self.cache.len());
            for head in self.kv_head * group..(self.kv_head + 1) * group {
                let row = self.span.rows.start + i;
                rows.push(Row {
                    row,
                    head,
                    position,
                    first: seen.start,
                    end: seen.end,
                    largest: f32::NEG_INFINITY,
                });
            }
        }
        let n = rows.len();
        let mut q = Vec::with_capacity(n * p.k_dim);
        for row in &rows {
            q.extend_from_slice(&self.x.row(row.row)[self.q_start + row.head * p.k_dim..][..p.k_dim]);
        }
        let mut scores = vec![0.0f32; n * BLOCK_KEYS];
        let mut sums = vec![0.0f32; n * S::LANES];
        let mut values = vec![0.0f32; n * p.v_dim];
        let first = rows.iter().map(|row| row.first).min().unwrap_or(0) / BLOCK_KEYS;
        let end = rows.iter().map(|row| row.end).max().unwrap_or(0).div_ceil(BLOCK_KEYS);
        for block in first..end {
            // SAFETY: pages exist up to the cache's length; scratch rows are `n`.
            unsafe {
                self.scores(s, block, n, &q, &mut scores);
                for (r, row) in rows.iter_mut().enumerate() {
                    let scores = &mut scores[r * BLOCK_KEYS..][..BLOCK_KEYS];
                    let sums = &mut sums[r * S::LANES..][..S::LANES];
                    self.soften(s, block, row, scores, sums, &mut values[r * p.v_dim..][..p.v_dim]);
                }
                self.weigh(s, block, n, &scores, &mut values);
            }
        }
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: `LANES` sums; the head's columns lie inside of the row.
            unsafe {
                let mut total = s.sum(s.load(sums[r * S::LANES..][..S::LANES].as_ptr()));
                let mut factor = 1.0;
                if let Some(sinks) = p.sinks {
                    // The sink joins at the end: everything so far is relative to the largest score without it.
                    let sink = sinks[row.head];
                    let largest = if sink > row.largest { sink } else { row.largest };
                    factor = if total == 0.0 { 0.0 } else { (row.largest - largest).exp() };
                    total = total * factor + (sink - largest).exp();
                }
                let to = self.out.at(row.row, row.head * p.v_dim);
                for (d, value) in values[r * p.v_dim..][..p.v_dim].iter().enumerate() {
                    // A row that sees no key has no weights: it gives zeros.
                    *to.add(d) = if total == 0.0 { 0.0 } else { value * factor / total };
                }
            }
        }
    }
}

impl Tile<'_> {
    /// Scores of all rows for the keys of a block; keys beyond the last page get whatever was there.
    #[inline(always)]
    unsafe fn scores<S: Simd>(&self, s: S, block: usize, n: usize, q: &[f32], scores: &mut [f32]) {
        let k = self.params.k_dim;
        let pages = self.cache.len().div_ceil(PAGE_KEYS);
        for page in block * 4..(block * 4 + 4).min(pages) {
            let keys = self.cache.pages()[self.cache.keys_at(page, self.kv_head)..][..k * PAGE_KEYS].as_ptr();
            let to = scores[page % 4 * PAGE_KEYS..].as_mut_ptr();
            for half in (0..PAGE_KEYS).step_by(2 * S::LANES) {
                // SAFETY: `n` rows of queries and scores; a page has `k` rows of keys.
                unsafe {
                    let a = View { first: q.as_ptr(), step: k };
                    let b = View { first: keys.add(half), step: PAGE_KEYS };
                    let c = View { first: to.add(half), step: BLOCK_KEYS };
                    let product = Product { n, k, a, b, c, width: S::LANES, add: false };
                    if S::LANES == PAGE_KEYS { product.run::<S, 1>(s) } else { product.run::<S, 2>(s) }
                }
            }
        }
    }

    /// Scores of one row to weights, in place: scaled, capped, biased, masked, and relative to the largest so far. What was summed
    /// relative to an earlier one is scaled down.
    #[inline(always)]
    unsafe fn soften<S: Simd>(
        &self,
        s: S,
        block: usize,
        row: &mut Row,
        scores: &mut [f32],
        sums: &mut [f32],
        values: &mut [f32],
    ) {
        let p = self.params;
        let start = block * BLOCK_KEYS;
        let seen = row.first.max(start).min(start + BLOCK_KEYS) - start
            ..row.end.max(start).min(start + BLOCK_KEYS) - start;
        if seen.is_empty() {
            scores.fill(0.0);
            return;
        }
        // SAFETY: `BLOCK_KEYS` scores, a multiple of the vector's width; `LANES` sums.
        unsafe {
            for chunk in scores.chunks_exact_mut(S::LANES) {
                let mut y = s.mul(s.load(chunk.as_ptr()), s.splat(p.scale));
                if let Some(cap) = p.softcap {
                    y = s.mul(tanh(s, s.div(y, s.splat(cap))), s.splat(cap));
                }
                s.store(chunk.as_mut_ptr(), y);
            }
            if let Some(bias) = p.bias {
                for j in seen.clone() {
                    scores[j] += bias.at(row.head, row.position, start + j);
                }
            }
            scores[..seen.start].fill(f32::NEG_INFINITY);
            scores[seen.end..].fill(f32::NEG_INFINITY);
            let mut largest = s.splat(f32::NEG_INFINITY);
            for chunk in scores.chunks_exact(S::LANES) {
                largest = s.max(largest, s.load(chunk.as_ptr()));
            }
            let largest = s.largest(largest);
            let largest = if row.largest > largest { row.largest } else { largest };
            let before = if row.largest == f32::NEG_INFINITY { 0.0 } else { row.largest - largest };
            let mut factor = [0.0f32; 16];
            s.store(factor.as_mut_ptr(), exp(s, s.splat(before)));
            row.largest = largest;
            let mut sum = s.mul(s.load(sums.as_ptr()), s.splat(factor[0]));
            for chunk in scores.chunks_exact_mut(S::LANES) {
                let weight = exp(s, s.sub(s.load(chunk.as_ptr()), s.splat(largest)));
                s.store(chunk.as_mut_ptr(), weight);
                sum = s.add(sum, weight);
            }
            s.store(sums.as_mut_ptr(), sum);
            if factor[0] != 1.0 {
                values.iter_mut().for_each(|v| *v *= factor[0]);
            }
        }
    }

    /// Adds the values of a block, each with its weight.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(&self, s: S, block: usize, n: usize, weights: &[f32], values: &mut [f32]) {
        let v = self.params.v_dim;
        let pages = self.cache.len().div_ceil(PAGE_KEYS);
        for page in block * 4..(block * 4 + 4).min(pages) {
            let stored =
                self.cache.pages()[self.cache.values_at(page, self.kv_head)..][..v * PAGE_KEYS].as_ptr();
            let weights = weights[page % 4 * PAGE_KEYS..].as_ptr();
            let mut d = 0;
            while d < v {
                // SAFETY: `n` rows of weights and values; a page has `PAGE_KEYS` rows of values, of which `v - d` columns are left.
                unsafe {
                    let a = View { first: weights, step: BLOCK_KEYS };
                    let b = View { first: stored.add(d), step: v };
                    let c = View { first: values.as_mut_ptr().add(d), step: v };
                    let wide = d + 2 * S::LANES <= v;
                    let width = if wide { S::LANES } else { (v - d).min(S::LANES) };
                    let product = Product { n, k: PAGE_KEYS, a, b, c, width, add: true };
                    if wide {
                        product.run::<S, 2>(s)
                    } else {
                        product.run::<S, 1>(s)
                    }
                    d += if wide { 2 * S::LANES } else { width };
                }
            }
        }
    }
}

/// A matrix by its first element and the distance between its rows.
#[derive(Clone, Copy)]
struct View<P> {
    first: P,
    step: usize,
}

/// `c = a b`, or `c += a b`: `[n, k]` times `[k, N vectors]`, the last of which has `width` elements.
struct Product {
    n: usize,
    k: usize,
    a: View<*const f32>,
    b: View<*const f32>,
    c: View<*mut f32>,
    width: usize,
    add: bool,
}

impl Product {
    /// # Safety
    /// Only inside of a kernel; the elements of the matrices must be readable, those of `c` writable.
    #[inline(always)]
    unsafe fn run<S: Simd, const N: usize>(&self, s: S) {
        let mut row = 0;
        // SAFETY: the caller's; row + R never exceeds `n`.
        unsafe {
            while row + 4 <= self.n {
                self.tile::<S, N, 4>(s, row);
                row += 4;
            }
            while row < self.n {
                self.tile::<S, N, 1>(s, row);
                row += 1;
            }
        }
    }

    /// `R` rows from `row` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const N: usize, const R: usize>(&self, s: S, row: usize) {
        let &Product { k, b, width, add, .. } = self;
        // SAFETY: the caller's.
        unsafe {
            let a = self.a.first.add(row * self.a.step);
            let c = self.c.first.add(row * self.c.step);
            // The last vector may be a part of one.
            let whole = |v: usize| v + 1 < N || width == S::LANES;
            let load = |p: *const f32, v: usize| {
                let p = p.add(v * S::LANES);
                if whole(v) { s.load(p) } else { s.load_part(p, width) }
            };
            let mut acc = [[s.splat(0.0); N]; R];
            if add {
                for (r, acc) in acc.iter_mut().enumerate() {
                    for (v, acc) in acc.iter_mut().enumerate() {
                        *acc = load(c.add(r * self.c.step), v);
                    }
                }
            }
            for i in 0..k {
                let w: [S::V; N] = std::array::from_fn(|v| load(b.first.add(i * b.step), v));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = s.splat(*a.add(r * self.a.step + i));
                    for (acc, w) in acc.iter_mut().zip(w) {
                        *acc = s.fma(x, w, *acc);
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, acc) in acc.iter().enumerate() {
                    let to = c.add(r * self.c.step + v * S::LANES);
                    if whole(v) { s.store(to, *acc) } else { s.store_part(to, width, *acc) }
                }
            }
        }
    }
}
