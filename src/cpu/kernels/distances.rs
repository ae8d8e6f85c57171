//! What the vectors of distances add to scores, without a score of each query or key with each distance.
//!
//! A query's scores with the distances to neighbouring keys are themselves neighbours if the distances lie in the order of the keys. So
//! the product of some queries with pages of distances goes straight to the scores, each row one place further than the row before. A
//! key's scores with the distances to neighbouring queries are neighbours in the other direction: the products of some keys with the
//! distances to all rows are computed beside, and then each key takes those of its own distances.

use std::ops::Range;

use super::attention::{Product, SCORES_STEP, View, times_pages};
use super::fill::{Word, store_words};
use super::simd::{Kernel, MAX_LANES, Simd};
use crate::backend::{DistanceVectors, KvCache, PAGE_KEYS};
use crate::tensor::{Tensor, at_least};

/// Rows that are multiplied with the same pages of distances: more of them want more pages.
const GROUP: usize = 12;

/// How far such a product may go beyond the keys on either side.
pub const MARGIN: usize = (GROUP + PAGE_KEYS).next_multiple_of(MAX_LANES);

/// Distances that are multiplied with a vector of keys at once.
const TILE: usize = 8;

/// Which lanes are to move by 1, 2, 4 and 8 rows, so that the last one stays and each before it moves by one more: those below 0.
const MOVES: [[f32; MAX_LANES]; 4] = {
    let mut moves = [[0.0; MAX_LANES]; 4];
    let mut i = 0;
    while i < 4 * MAX_LANES {
        if ((MAX_LANES - 1 - i / 4) >> (i % 4)) & 1 == 1 {
            moves[i % 4][i / 4] = -1.0;
        }
        i += 1;
    }
    moves
};

/// For whole pages of keys on both sides of a query, the row of the bucket of each distance, in the order of the keys.
pub fn in_order_of_keys(bucket: &[u32]) -> Vec<u32> {
    let Some(last) = bucket.len().checked_sub(1) else { return Vec::new() };
    let side = (last / 2 + 1).next_multiple_of(PAGE_KEYS);
    // Places beyond the longest sequence are filled with its last distances.
    (0..2 * side).map(|at| bucket[(last / 2 + side).saturating_sub(at).min(last)]).collect()
}

/// Adds to the scores of consecutive queries of a head, for the keys of some pages, what the vectors of their distances say.
pub struct AddDistances<'a, T> {
    pub vectors: &'a DistanceVectors<'a>,
    /// The keys of the distances, as [`in_order_of_keys`].
    pub keys: Option<&'a KvCache>,
    pub cache: &'a KvCache,
    pub pages: Range<usize>,
    pub head: usize,
    /// Position of the first query.
    pub position: usize,
    /// How many queries there are.
    pub n: usize,
    /// The queries, times `scale`.
    pub q: View<*const T>,
    pub scale: f32,
    /// The score of the first query for the first key; each other query has its [`SCORES_STEP`] further, and there are [`MARGIN`] places
    /// around those of each.
    pub scores: *mut f32,
    /// Memory for anything.
    pub memory: &'a mut Vec<f32>,
}

impl<T: Word> Kernel for AddDistances<'_, T> {
    type Output = ();

    /// # Safety
    /// Queries and scores must be there, and distances between all keys of the cache.
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self, s: S) {
        // SAFETY: the caller's.
        unsafe {
            if let Some(keys) = self.keys {
                self.of_queries(s, keys);
            }
            if let Some(queries) = self.vectors.queries {
                self.of_keys(s, queries);
            }
        }
    }
}

impl<T: Word> AddDistances<'_, T> {
    /// The scores of the queries with the keys of the distances.
    #[inline(always)]
    unsafe fn of_queries<S: Simd>(&self, s: S, distances: &KvCache) {
        // Of this place on, keys follow the query.
        let middle = distances.len() / 2;
        let start = self.pages.start * PAGE_KEYS;
        let end = self.cache.len().min(self.pages.end * PAGE_KEYS);
        for first in (0..self.n).step_by(GROUP) {
            let (n, i) = (GROUP.min(self.n - first), self.position + first);
            let from = (middle + start - (i + n - 1)) / PAGE_KEYS;
            let pages = from..(middle + end - 1 - i) / PAGE_KEYS + 1;
            let column = (pages.start * PAGE_KEYS + i) as isize - (middle + start) as isize;
            // SAFETY: rows go beyond the keys by less than a page and than there are rows.
            unsafe {
                let a = View { first: self.q.first.add(first * self.q.step), step: self.q.step };
                let to = self.scores.add(first * SCORES_STEP).offset(column);
                let c = View { first: to, step: SCORES_STEP + 1 };
                times_pages::<S, T>(s, n, a, distances, self.head, pages, c, true);
            }
        }
    }

    /// The scores of the keys with the queries of the distances.
    #[inline(always)]
    unsafe fn of_keys<S: Simd>(&mut self, s: S, distances: &Tensor) {
        let (n, pages, step) = (self.n, self.pages.clone(), self.q.step);
        let (k_dim, end) = (self.cache.k_dim(), pages.end * PAGE_KEYS);
        // From the first query and the last key on; behind them whole tiles of anything.
        let count = n + pages.len() * PAGE_KEYS - 1;
        let words_len = (count + TILE) * step;
        let memory = at_least(self.memory, words_len + (n + S::LANES + TILE) * S::LANES);
        let (words, products) = memory.split_at_mut(words_len);
        let (words, products) = (words.as_mut_ptr().cast::<T>(), products.as_mut_ptr());
        let bucket = self.vectors.bucket;
        for d in 0..count {
            // Behind the last key there is nothing to find: any bucket will do.
            let place = (bucket.len() / 2 + self.position + d + 1).saturating_sub(end).min(bucket.len() - 1);
            let from = &distances.row(bucket[place] as usize)[self.head * k_dim..][..k_dim];
            for (i, from) in from.chunks(2 * S::LANES).enumerate() {
                // SAFETY: there is room for `count` rows of whole pairs of vectors.
                unsafe {
                    let to = words.add(d * step + i * 2 * S::LANES / T::NUMBERS);
                    store_words::<S, T>(s, from, self.scale, to);
                }
            }
        }
        let k = k_dim.div_ceil(T::NUMBERS);
        for first in (pages.start * PAGE_KEYS..end).step_by(S::LANES) {
            let keys = &self.cache.pages()[self.cache.keys_at(first / PAGE_KEYS, self.head)..];
            // SAFETY: the distances of these keys to all queries, and a tile more, are there, and there is room for their products. The
            // scores are the caller's promise.
            unsafe {
                let product = Product {
                    n,
                    k,
                    runs: 1,
                    last: k,
                    a: View { first: words.add((end - first - S::LANES) * step).cast_const(), step },
                    b: View { first: keys.as_ptr().add(first % PAGE_KEYS).cast::<T>(), step: PAGE_KEYS },
                    b_run: 0,
                    b_page: 0,
                    c: View { first: products, step: S::LANES },
                    width: S::LANES,
                    add: false,
                    ahead: 0,
                };
                for row in (0..n + S::LANES - 1).step_by(TILE) {
                    product.tile::<S, 1, TILE, false>(s, row);
                }
                add_diagonals(s, products, n, self.scores.add(first - pages.start * PAGE_KEYS));
            }
        }
    }
}

/// Adds to rows of scores the products of a vector of keys, whose row `r` has, for the key in lane `l`, those that belong to score row
/// `r - (LANES - 1 - l)`.
#[inline(always)]
unsafe fn add_diagonals<S: Simd>(s: S, products: *mut f32, n: usize, scores: *mut f32) {
    let mut rows = n + S::LANES - 1;
    // SAFETY: the caller's: so many vectors of products, and `n` of scores.
    unsafe {
        let none = s.splat(0.0);
        for (i, moves) in MOVES.iter().enumerate() {
            let by = 1 << i;
            if by >= S::LANES {
                break;
            }
            let moves = s.load(moves.as_ptr());
            rows -= by;
            for r in 0..rows {
                let at = products.add(r * S::LANES);
                s.store(at, s.if_less(moves, none, s.load(at.add(by * S::LANES)), s.load(at)));
            }
        }
        for r in 0..n {
            let to = scores.add(r * SCORES_STEP);
            s.store(to, s.add(s.load(to), s.load(products.add(r * S::LANES))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_lie_in_the_order_of_keys() {
        // Sequences of up to 3 tokens: buckets of the distances from -2 to 2.
        let found = in_order_of_keys(&[10, 11, 12, 13, 14]);
        assert_eq!(found.len(), 2 * PAGE_KEYS);
        assert_eq!(found[PAGE_KEYS - 4..PAGE_KEYS + 5], [14, 14, 14, 13, 12, 11, 10, 10, 10]);
        assert_eq!((found[0], found[2 * PAGE_KEYS - 1]), (14, 10));
        assert!(in_order_of_keys(&[]).is_empty());
        assert_eq!(in_order_of_keys(&[0; 33]).len(), 4 * PAGE_KEYS);
        assert_eq!(in_order_of_keys(&[0; 31]).len(), 2 * PAGE_KEYS);
    }
}
