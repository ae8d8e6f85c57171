use super::builder::{Builder, LinearId, Rows, Shape, ValueId};
use super::fields::{Projection, Reference, fields};
use super::run::Run;
use super::{Block, Built, Plan};
use crate::backend::{AttentionParams, DistanceScores, KvCache, Reach};
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
        distances: Option<Reference>,
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
}

#[derive(Debug)]
struct Planned {
    rows: Rows,
    qkv: LinearId,
    o: LinearId,
    distances: Option<Distances>,
    heads: usize,
    head_dim: usize,
    scale: f32,
}

impl Plan for DisentangledAttention {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (stream, cols) = b.tokens(input, at)?;
        let heads = self.heads;
        if cols % heads != 0 {
            let message = format!("expected `heads` to divide the width {cols}, found {heads}");
            b.wrong_fields(at, &["heads"], message);
            return None;
        }
        let qkv = b.linear(&[("q", &self.q, cols), ("k", &self.k, cols), ("v", &self.v, cols)], cols)?;
        let o = b.linear(&[("o", &self.o, cols)], cols)?;
        let relative = ("`distances`", self.distances.is_some());
        b.only_with(at, ("pos_k", self.pos_k.is_some()), relative)?;
        b.only_with(at, ("pos_q", self.pos_q.is_some()), relative)?;
        b.only_with(at, ("max_distance", self.max_distance.is_some()), relative)?;
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
                b.note_width(heads.saturating_mul(rows));
                Some(Distances { value, rows, pos_k, pos_q, max_distance: self.max_distance })
            }
        };
        let head_dim = cols / heads;
        let scale = 1.0 / ((head_dim * parts) as f64).sqrt();
        let rows = Rows::Tokens(stream);
        let block = Planned { rows, qkv, o, distances, heads, head_dim, scale: scale as f32 };
        Some((Box::new(block), Shape::Matrix { rows, cols }))
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

impl Planned {
    /// The scores of queries and keys with all distances.
    fn distance_scores(&self, run: &mut Run<'_>, d: &Distances, qkv: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let learned = run.value(d.value)?;
        let cols = self.heads * self.head_dim;
        let scores = |run: &mut Run<'_>, map: Option<LinearId>, start: usize| {
            let of = run.linear(map?, &learned, None, None); // [2 span, cols]
            let mut out = run.take(qkv.rows(), self.heads * d.rows);
            run.backend.head_products(qkv, start, &of, self.heads, self.head_dim, &mut out);
            run.give(of);
            Some(out)
        };
        Ok([scores(run, d.pos_k, 0), scores(run, d.pos_q, cols)])
    }
}

impl Block for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn forward(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let cols = self.heads * self.head_dim;
        let qkv = run.linear(self.qkv, x, None, None); // [tokens, 3 cols]
        let spans = run.spans(self.rows);
        if spans.iter().any(|span| span.past > 0) {
            return Err(Error::new(ErrorKind::Input, "this attention cannot go on from earlier tokens"));
        }
        let scores = match &self.distances {
            Some(distances) => self.distance_scores(run, distances, &qkv)?,
            None => [None, None],
        };
        let longest = spans.iter().map(|span| span.rows.len()).max().unwrap_or(0) as i64;
        let rows = self.distances.as_ref().map_or(1, |d| d.rows);
        let most = self.distances.as_ref().and_then(|d| d.max_distance);
        let buckets: Vec<u32> = (1 - longest..longest).map(|d| bucket(d, rows, most)).collect();
        let distances = self.distances.as_ref().map(|_| DistanceScores {
            of_queries: scores[0].as_ref(),
            of_keys: scores[1].as_ref(),
            buckets: rows,
            bucket: &buckets,
            factor: self.scale,
        });
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
            distances: distances.as_ref(),
        };
        let cache = || KvCache::new(run.backend.compute(), self.heads, self.head_dim, self.head_dim);
        let mut own: Vec<KvCache> = spans.iter().map(|_| cache()).collect();
        run.backend.append_kv(&qkv, cols, 2 * cols, &spans, &mut own.iter_mut().collect::<Vec<_>>());
        let mut found = run.take(x.rows(), cols);
        run.backend.attention(&qkv, 0, &spans, &own.iter().collect::<Vec<_>>(), &params, &mut found);
        let out = run.linear(self.o, &found, None, None);
        scores.into_iter().flatten().chain([qkv, found]).for_each(|x| run.give(x));
        Ok(out)
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
}
