//! Softmax attention over paged keys and values, block by block, without keeping the scores of a whole sequence.
//!
//! A block is [`BLOCK_KEYS`] keys from a multiple of that on, whatever the query: so the order in which a query's sums run depends
//! on its own position alone. A key that it does not see counts with weight exactly 0, whether its block is passed over or not.

use std::ops::Range;

use super::math::{exp_to_0, tanh};
use super::matmul::Shared;
use super::simd::{Kernel, Simd, load, store};
use crate::backend::{AttentionParams, KvCache, PAGE_KEYS, Span};
use crate::cpu::pool::Pool;
use crate::tensor::{Spare, Tensor};

/// Pages of a block.
const PAGES: usize = 4;

/// Keys of a block.
const BLOCK_KEYS: usize = PAGES * PAGE_KEYS;

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
    /// Memory of earlier tasks.
    pub spare: &'a Spare<Vec<f32>>,
}

/// Queries `queries` of span `span`, for the query heads that read key head `kv_head`.
#[derive(Clone)]
struct Task {
    span: usize,
    kv_head: usize,
    queries: Range<usize>,
}

impl Kernel for Attend<'_> {
    type Output = ();

    /// # Safety
    /// Lengths are checked here.
    #[inline(always)]
    unsafe fn run<S: Simd>(self, s: S) {
        let Attend { pool, x, q_start, spans, caches, params, out, spare } = self;
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
                spare,
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
    queries: Range<usize>,
    out: Shared,
    spare: &'a Spare<Vec<f32>>,
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
        let mut scratch = self.spare.take();
        scratch.resize(n * (p.k_dim + BLOCK_KEYS + S::LANES + p.v_dim), 0.0);
        let (q, rest) = scratch.split_at_mut(n * p.k_dim);
        let (scores, rest) = rest.split_at_mut(n * BLOCK_KEYS);
        rest.fill(0.0);
        let (sums, values) = rest.split_at_mut(n * S::LANES);
        for (r, row) in rows.iter().enumerate() {
            let from = &self.x.row(row.row)[self.q_start + row.head * p.k_dim..][..p.k_dim];
            for (to, from) in q[r * p.k_dim..][..p.k_dim].iter_mut().zip(from) {
                *to = from * p.scale;
            }
        }
        // What no row sees is not computed.
        let first = rows.iter().map(|row| row.first).min().unwrap_or(0) / BLOCK_KEYS;
        let end = rows.iter().map(|row| row.end).max().unwrap_or(0).div_ceil(PAGE_KEYS);
        for block in first..end.div_ceil(PAGES) {
            let pages = block * PAGES..end.min(block * PAGES + PAGES);
            // SAFETY: pages exist up to the cache's length; scratch rows are `n`.
            unsafe {
                self.scores(s, pages.clone(), n, q, scores);
                for (r, row) in rows.iter_mut().enumerate() {
                    let scores = &mut scores[r * BLOCK_KEYS..][..pages.len() * PAGE_KEYS];
                    let sums = &mut sums[r * S::LANES..][..S::LANES];
                    self.soften(s, block, row, scores, sums, &mut values[r * p.v_dim..][..p.v_dim]);
                }
                self.weigh(s, pages, n, scores, values);
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
                // A row that sees no key has no weights: it gives zeros.
                let (factor, total) = if total == 0.0 { (0.0, 1.0) } else { (factor, total) };
                let to = self.out.at(row.row, row.head * p.v_dim);
                for (d, value) in values[r * p.v_dim..][..p.v_dim].iter().enumerate() {
                    *to.add(d) = value * factor / total;
                }
            }
        }
        self.spare.give(scratch);
    }
}

impl Tile<'_> {
    /// Scores of all rows for the keys of some pages of a block.
    #[inline(always)]
    unsafe fn scores<S: Simd>(&self, s: S, pages: Range<usize>, n: usize, q: &[f32], scores: &mut [f32]) {
        let k = self.params.k_dim;
        let keys = self.cache.pages();
        let (mut page, end) = (pages.start, pages.end);
        while page < end {
            let b = keys[self.cache.keys_at(page, self.kv_head)..].as_ptr();
            let to = scores[page % PAGES * PAGE_KEYS..].as_mut_ptr();
            let product = Product {
                n,
                k,
                runs: 1,
                a: View { first: q.as_ptr(), step: k },
                b: View { first: b, step: PAGE_KEYS },
                b_run: 0,
                b_page: self.cache.page_len(),
                c: View { first: to, step: BLOCK_KEYS },
                width: S::LANES,
                add: false,
            };
            // SAFETY: `n` rows of queries and scores; a page has `k` rows of keys, and there are as many pages as are taken.
            page += unsafe {
                match (PAGE_KEYS / S::LANES, end - page) {
                    (1, 4..) => {
                        product.run::<S, 4>(s);
                        4
                    }
                    (1, 2..) => {
                        product.run::<S, 2>(s);
                        2
                    }
                    (1, _) => {
                        product.run::<S, 1>(s);
                        1
                    }
                    _ => {
                        product.run::<S, 2>(s);
                        1
                    }
                }
            };
        }
    }

    /// Scores of one row for the first keys of a block to weights, in place: capped, biased, masked, and relative to the largest
    /// so far. What was summed relative to an earlier one is scaled down.
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
        let (start, keys) = (block * BLOCK_KEYS, scores.len());
        let seen = row.first.clamp(start, start + keys) - start..row.end.clamp(start, start + keys) - start;
        if seen.is_empty() {
            scores.fill(0.0);
            return;
        }
        let (scores, unseen) = scores.split_at_mut(seen.end.next_multiple_of(S::LANES));
        unseen.fill(0.0);
        // SAFETY: a multiple of `LANES` scores; `LANES` sums.
        unsafe {
            if let Some(cap) = p.softcap {
                for chunk in scores.chunks_exact_mut(S::LANES) {
                    let y = s.mul(tanh(s, s.div(s.load(chunk.as_ptr()), s.splat(cap))), s.splat(cap));
                    s.store(chunk.as_mut_ptr(), y);
                }
            }
            if let Some(bias) = p.bias {
                for j in seen.clone() {
                    scores[j] += bias.at(row.head, row.position, start + j);
                }
            }
            if let Some(distances) = p.distances {
                for j in seen.clone() {
                    scores[j] += distances.at(row.head, self.span.rows.start, row.position, start + j);
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
            let mut sum = s.load(sums.as_ptr());
            if row.largest != largest && row.largest != f32::NEG_INFINITY {
                let mut factor = [0.0f32; 16];
                s.store(factor.as_mut_ptr(), exp_to_0(s, s.splat(row.largest - largest)));
                sum = s.mul(sum, s.splat(factor[0]));
                for value in values {
                    *value *= factor[0];
                }
            }
            row.largest = largest;
            for chunk in scores.chunks_exact_mut(S::LANES) {
                let weight = exp_to_0(s, s.sub(s.load(chunk.as_ptr()), s.splat(largest)));
                s.store(chunk.as_mut_ptr(), weight);
                sum = s.add(sum, weight);
            }
            s.store(sums.as_mut_ptr(), sum);
        }
    }

    /// Adds the values of some pages of a block, each with its weight.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(
        &self,
        s: S,
        pages: Range<usize>,
        n: usize,
        weights: &[f32],
        values: &mut [f32],
    ) {
        let v = self.params.v_dim;
        let stored = self.cache.pages()[self.cache.values_at(pages.start, self.kv_head)..].as_ptr();
        let mut d = 0;
        while d < v {
            let vectors = (v - d) / S::LANES;
            let width = if vectors == 0 { v - d } else { S::LANES };
            // SAFETY: `n` rows of weights and values; a page has `PAGE_KEYS` rows of values, of which `v - d` columns are left.
            unsafe {
                let product = Product {
                    n,
                    k: PAGE_KEYS,
                    runs: pages.len(),
                    a: View { first: weights.as_ptr(), step: BLOCK_KEYS },
                    b: View { first: stored.add(d), step: v },
                    b_run: self.cache.page_len(),
                    b_page: PAGE_KEYS,
                    c: View { first: values.as_mut_ptr().add(d), step: v },
                    width,
                    add: true,
                };
                d += match vectors {
                    8.. if n == 1 => {
                        product.tile::<S, 8, 1>(s, 0);
                        8 * S::LANES
                    }
                    4.. if n == 1 => {
                        product.tile::<S, 4, 1>(s, 0);
                        4 * S::LANES
                    }
                    4.. if S::TILE_ROWS >= 12 => {
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

/// A matrix by its first element and the distance between its rows.
#[derive(Clone, Copy)]
struct View<P> {
    first: P,
    step: usize,
}

/// `c = a b`, or `c += a b`: `[n, runs * k]` times `[runs * k, N vectors]`, the last vector with `width` elements.
struct Product {
    n: usize,
    /// Rows of b that follow each other, and how many such runs there are, `b_run` elements apart.
    k: usize,
    runs: usize,
    a: View<*const f32>,
    b: View<*const f32>,
    b_run: usize,
    /// Elements between groups of [`PAGE_KEYS`] columns of b.
    b_page: usize,
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
            // As many rows as the registers hold sums.
            while S::TILE_ROWS >= 12 && N <= 2 && row + 12 <= self.n {
                self.tile::<S, N, 12>(s, row);
                row += 12;
            }
            while row + 6 <= self.n {
                self.tile::<S, N, 6>(s, row);
                row += 6;
            }
            while row + 2 <= self.n {
                self.tile::<S, N, 2>(s, row);
                row += 2;
            }
            if row < self.n {
                self.tile::<S, N, 1>(s, row);
            }
        }
    }

    /// `R` rows from `row` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const N: usize, const R: usize>(&self, s: S, row: usize) {
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
                for i in 0..self.k {
                    let mut w = [s.splat(0.0); N];
                    for v in 0..N {
                        let column = v * S::LANES;
                        let at = column / PAGE_KEYS * self.b_page + column % PAGE_KEYS;
                        w[v] = load(s, b.add(i * self.b.step + at), self.width);
                    }
                    for r in 0..R {
                        let x = s.splat(*a.add(r * self.a.step + i));
                        for v in 0..N {
                            acc[r][v] = s.fma(x, w[v], acc[r][v]);
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
