use super::builder::{Builder, LinearId, Rows, Shape, ValueId};
use super::fields::{Projection, ValueName, fields};
use super::run::Run;
use super::then_linear::{Inner, ThenLinear};
use super::{BlockFields, Built};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::{AttentionParams, DistanceVectors, Reach};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// Attention in both directions whose scores have parts for content and for distance:
    /// `(q_i·k_j + q_i·pos_k(r) + k_j·pos_q(r)) / sqrt(head_dim · n)`, where `r` is the learned row of the distance `i - j` and `n` the
    /// number of parts.
    ///
    /// `[tokens, cols] -> [tokens, cols]`. He et al., “DeBERTa”, 2021; the buckets are those of transformers 5.23.
    pub struct DisentangledAttention("disentangled_attention") {
        /// Queries, `cols` columns.
        q: Projection,
        /// Keys, `cols` columns.
        k: Projection,
        /// Values, `cols` columns.
        v: Projection,
        /// Back to the width of the input.
        o: Projection,
        /// Number of heads.
        heads: usize,
        /// Name of a value with learned rows, `[2 * span, cols]`: one for each distance, or bucket of distances.
        distances: Option<ValueName>,
        /// Keys of the distances, for the queries; `k` itself if the model shares it.
        pos_k: Option<Projection>,
        /// Queries of the distances, for the keys; `q` itself if the model shares it.
        pos_q: Option<Projection>,
        /// With it, distances of more than half of `span` fall into buckets at logarithmic steps up to this distance.
        max_distance: Option<usize>,
    }
}

#[derive(Debug)]
struct Distances {
    value: ValueId,
    /// Rows of the value.
    rows: usize,
    pos_k: Option<LinearId>,
    pos_q: Option<LinearId>,
    max_distance: Option<usize>,
    /// Those that have occurred so far: they depend on weights alone.
    projected: Mutex<Arc<Projected>>,
}

/// Keys and queries of some distances.
#[derive(Debug, Default)]
struct Projected {
    /// Of these learned rows.
    rows: Range<usize>,
    keys: Option<Tensor>,
    queries: Option<Tensor>,
}

impl Distances {
    /// Keys and queries of these learned rows at least, for a width of `cols`.
    fn projected(&self, run: &mut Run<'_>, mut rows: Range<usize>, cols: usize) -> Result<Arc<Projected>> {
        // A trace shows what a pass by itself computes.
        let keeps = !run.is_traced();
        // What was put there is whole, whoever panicked afterwards.
        let kept = || self.projected.lock().unwrap_or_else(PoisonError::into_inner);
        if keeps {
            let found = kept().clone();
            if found.rows.start <= rows.start && rows.end <= found.rows.end {
                return Ok(found);
            }
            if !found.rows.is_empty() {
                rows = rows.start.min(found.rows.start)..rows.end.max(found.rows.end);
            }
        }
        let learned = run.value(self.value)?;
        let mut some = run.take(rows.len(), cols);
        some.data_mut().copy_from_slice(&learned.data()[rows.start * cols..rows.end * cols]);
        let mut project = |map: Option<LinearId>| {
            map.map(|map| {
                let projected = run.linear(map, &some, None, None);
                let copy = projected.clone(); // in memory of its own size
                run.give(projected);
                copy
            })
        };
        let (keys, queries) = (project(self.pos_k), project(self.pos_q));
        run.give(some);
        let projected = Arc::new(Projected { rows, keys, queries });
        if keeps {
            *kept() = projected.clone();
        }
        Ok(projected)
    }
}

#[derive(Debug)]
struct Planned {
    rows: Rows,
    qkv: LinearId,
    distances: Option<Distances>,
    heads: usize,
    head_dim: usize,
    scale: f32,
}

impl BlockFields for DisentangledAttention {
    fn check(&self, b: &mut Builder<'_>, at: &Address) -> Option<()> {
        let relative = ("`distances`", self.distances.is_some());
        b.only_with(at, ("pos_k", self.pos_k.is_some()), relative)?;
        b.only_with(at, ("pos_q", self.pos_q.is_some()), relative)?;
        b.only_with(at, ("max_distance", self.max_distance.is_some()), relative)
    }

    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (stream, cols) = b.tokens(input, at)?;
        let heads = self.heads;
        if cols % heads != 0 {
            let message = format!("expected `heads` to divide the width {cols}, found {heads}");
            b.wrong_fields(at, &["heads"], message);
            return None;
        }
        let qkv = b.linear(&[("q", &self.q, cols), ("k", &self.k, cols), ("v", &self.v, cols)], cols)?;
        let last = b.linear(&[("o", &self.o, cols)], cols)?;
        let mut parts = 1;
        let distances = match &self.distances {
            None => None,
            Some(reference) => {
                let (value, shape) = b.refer(reference)?;
                let rows = match shape {
                    Shape::Matrix { rows: Rows::Learned(rows), cols: found }
                        if found == cols && rows % 2 == 0 =>
                    {
                        rows
                    }
                    _ => {
                        let message = format!("expected an even number of learned rows of {cols} columns");
                        b.problem(&reference.at, message);
                        return None;
                    }
                };
                let mut map = |field, of: &Option<Projection>| match of {
                    Some(projection) => {
                        parts += 1;
                        b.linear(&[(field, projection, cols)], cols).map(Some)
                    }
                    None => Some(None),
                };
                let (pos_k, pos_q) = (map("pos_k", &self.pos_k)?, map("pos_q", &self.pos_q)?);
                b.keep((parts - 1) * rows, cols);
                Some(Distances {
                    value,
                    rows,
                    pos_k,
                    pos_q,
                    max_distance: self.max_distance,
                    projected: Mutex::default(),
                })
            }
        };
        let head_dim = cols / heads;
        let scale = 1.0 / ((head_dim * parts) as f64).sqrt();
        let rows = Rows::Tokens(stream);
        let inner = Planned { rows, qkv, distances, heads, head_dim, scale: scale as f32 };
        Some((Box::new(ThenLinear { inner, last }), Shape::Matrix { rows, cols }))
    }
}

/// The learned row of the distance from key to query.
fn bucket(distance: i64, rows: usize, max_distance: Option<usize>) -> u32 {
    let span = rows as i64 / 2;
    let bucket = match max_distance {
        Some(most) if distance.abs() > span / 2 => {
            // As transformers: float32 arithmetic, rounded up.
            let half = (span / 2) as f32;
            let ratio = ((most as f32 - 1.0) / half).ln();
            let steps = (((distance.abs() as f32) / half).ln() / ratio * (half - 1.0)).ceil();
            (steps + half) as i64 * distance.signum()
        }
        _ => distance,
    };
    (bucket + span).clamp(0, rows as i64 - 1) as u32
}

/// The buckets of the distances from `-(n - 1)` to `n - 1`.
fn buckets(n: usize, rows: usize, max_distance: Option<usize>) -> impl Iterator<Item = u32> {
    let n = n as i64;
    (1 - n..n).map(move |distance| bucket(distance, rows, max_distance))
}

/// From the first to the last of some buckets.
fn range(buckets: impl Iterator<Item = u32>) -> Range<usize> {
    let (first, end) = buckets
        .map(|bucket| bucket as usize)
        .fold((usize::MAX, 0), |(first, end), bucket| (first.min(bucket), end.max(bucket + 1)));
    first.min(end)..end
}

/// How many of the learned rows are read for a sequence of `n` tokens.
pub fn rows_read(n: usize, rows: usize, max_distance: Option<usize>) -> usize {
    range(buckets(n, rows, max_distance)).len()
}

impl Inner for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn inner(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let cols = self.heads * self.head_dim;
        let spans = run.spans(self.rows);
        if spans.iter().any(|span| span.past > 0) {
            return Err(Error::new(ErrorKind::Input, "this attention cannot go on from earlier tokens"));
        }
        let (mut projected, mut bucket) = (Arc::default(), Vec::new());
        if let Some(distances) = &self.distances {
            let longest = spans.iter().map(|span| span.rows.len()).max().unwrap_or(0);
            bucket.extend(buckets(longest, distances.rows, distances.max_distance));
            // Only what occurs is projected: with few tokens, little of it.
            projected = distances.projected(run, range(bucket.iter().copied()), cols)?;
            bucket.iter_mut().for_each(|bucket| *bucket -= projected.rows.start as u32);
        }
        let Projected { keys, queries, .. } = &*projected;
        let distances = DistanceVectors { keys: keys.as_ref(), queries: queries.as_ref(), bucket: &bucket };
        let params = AttentionParams {
            heads: self.heads,
            kv_heads: self.heads,
            k_dim: self.head_dim,
            v_dim: self.head_dim,
            scale: self.scale,
            softcap: None,
            bias: None,
            reach: Reach::ALL,
            sinks: None,
            distances: (distances.parts() > 0).then_some(&distances),
        };
        let qkv = run.linear(self.qkv, x, None, None); // [tokens, 3 cols]
        let mut own = run.own_caches(self.heads, self.head_dim, &spans);
        run.backend.append_kv(&qkv, cols, 2 * cols, &spans, &mut own.iter_mut().collect::<Vec<_>>());
        let mut found = run.take(x.rows(), cols);
        run.backend.attention(&qkv, 0, &spans, &own.iter().collect::<Vec<_>>(), &params, &mut found);
        run.give_caches(own);
        run.give(qkv);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_fall_into_the_buckets_of_transformers() {
        // transformers 5.23: `make_log_bucket_position(d, 8, 37)` + 8, clamped to 0..16
        let distances = [-30, -8, -5, -4, -3, 0, 3, 4, 5, 6, 12, 30];
        let expected = [1, 3, 3, 4, 5, 8, 11, 12, 13, 13, 14, 15];
        for (d, expected) in distances.into_iter().zip(expected) {
            assert_eq!(bucket(d, 16, Some(37)), expected, "{d}");
        }
        assert_eq!(bucket(-20, 16, None), 0);
        assert_eq!(bucket(20, 16, None), 15);
        assert_eq!(bucket(-2, 16, None), 6);
    }

    #[test]
    fn only_rows_of_distances_that_occur_are_read() {
        let v3 = (512, Some(512));
        for (n, (rows, max_distance), expected) in [
            (0, v3, 0),
            (1, v3, 1),
            (8, v3, 15),
            (128, v3, 255),
            (512, v3, 511),
            (4096, v3, 512),
            (5, (16, None), 9),
            (9, (16, None), 16),
            (100, (16, None), 16),
        ] {
            assert_eq!(rows_read(n, rows, max_distance), expected, "{n} tokens, {rows} rows");
        }
        assert_eq!(range([5, 9, 2].into_iter()), 2..10);
    }
}
