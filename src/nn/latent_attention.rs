use super::builder::{Builder, CacheId, CacheUse, LinearId, RopeId, Rows, Shape, Stream, VectorId};
use super::fields::{NonNegative, Path, Projection, fields};
use super::rope::RopeFields;
use super::run::Run;
use super::then_linear::{Inner, ThenLinear};
use super::trace::Site;
use super::{BlockFields, Built};
use crate::backend::{AttentionParams, KvCache, Norm, Reach};
use crate::error::Result;
use crate::spec::Address;
use crate::tensor::Tensor;

fields! {
    /// Causal attention whose keys and values are computed from one small vector per token.
    ///
    /// `[tokens, cols] -> [tokens, cols]`. `[latent; r] = kv_down(x)`; each head's key is `[k; rotated r]`, where `k` and its value come
    /// from `kv_up(norm(latent))`, and its query is `[q; rotated r']`. Liu et al., “DeepSeek-V2”, 2024.
    pub struct LatentAttention("latent_attention") {
        /// Queries, `heads * (nope_dim + rope_dim)` columns; without `q_down`.
        q: Option<Projection>,
        /// To `q_latent` columns, from which the queries are computed.
        q_down: Option<Projection>,
        /// Path of the rms norm of those columns.
        q_norm: Option<Path>,
        /// Queries, from `q_latent` columns.
        q_up: Option<Projection>,
        /// Columns between `q_down` and `q_up`.
        q_latent: Option<usize>,
        /// To `latent + rope_dim` columns.
        kv_down: Projection,
        /// Path of the rms norm of the latent columns.
        kv_norm: Path,
        /// Keys and values of each head side by side, `heads * (nope_dim + v_dim)` columns.
        kv_up: Projection,
        /// From the heads back to the width of the input.
        o: Projection,
        /// Number of heads.
        heads: usize,
        /// Columns from which keys and values are computed.
        latent: usize,
        /// Columns of a head's query and key that are not rotated.
        nope_dim: usize,
        /// Columns of a head's query and key that are rotated.
        rope_dim: usize,
        /// Columns of a head's value.
        v_dim: usize,
        /// Rotary position embedding.
        rope: RopeFields,
        /// Factor of the scores; `1 / sqrt(nope_dim + rope_dim)` by default.
        scale: Option<f64>,
        /// Added to the mean inside of the root of both norms.
        eps: NonNegative = "1e-6",
    }
}

/// How queries are computed.
#[derive(Debug)]
enum Queries {
    Direct(LinearId),
    Latent { down: LinearId, norm: VectorId, up: LinearId },
}

#[derive(Debug)]
struct Planned {
    stream: Stream,
    queries: Queries,
    kv_down: LinearId,
    kv_norm: VectorId,
    kv_up: LinearId,
    cache: CacheId,
    rope: RopeId,
    heads: usize,
    latent: usize,
    nope_dim: usize,
    rope_dim: usize,
    v_dim: usize,
    scale: f32,
    eps: f32,
}

/// Columns of one head beyond this are a mistake.
const MAX_DIM: usize = 1 << 16;

impl BlockFields for LatentAttention {
    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (stream, cols) = b.tokens(input, at)?;
        let (heads, nope, rotated, v_dim) = (self.heads, self.nope_dim, self.rope_dim, self.v_dim);
        let k_dim = nope.saturating_add(rotated);
        if heads > MAX_DIM || k_dim > MAX_DIM || v_dim > MAX_DIM {
            let message = format!("{heads} heads of {k_dim} and {v_dim} columns are too many");
            b.wrong_fields(at, &["heads", "nope_dim", "rope_dim", "v_dim"], message);
            return None;
        }
        b.order(heads.saturating_mul(k_dim + nope + v_dim), at)?;
        // The columns that turn come first in each head; the order matters to nobody but the scores' sum.
        let order = |b: &mut Builder<'_>, field, of: &Projection, inputs| {
            let head = |h: usize| (nope..k_dim).chain(0..nope).map(move |i| (h * k_dim + i) as u32);
            let rows = Some((0..heads).flat_map(head).collect());
            let part = b.linear_part(field, of, heads * k_dim, inputs, rows)?;
            Some(b.linear_of(vec![part], inputs))
        };
        let queries = match (&self.q, &self.q_down, &self.q_norm, &self.q_up, self.q_latent) {
            (Some(q), None, None, None, None) => Queries::Direct(order(b, "q", q, cols)?),
            (None, Some(down), Some(norm), Some(up), Some(latent)) => {
                let down = b.linear(&[("q_down", down, latent)], cols)?;
                b.field = "q_norm";
                let norm = b.vector(norm, "weight", latent)?;
                Queries::Latent { down, norm, up: order(b, "q_up", up, latent)? }
            }
            _ => {
                let message = "`latent_attention` needs `q`, or `q_down`, `q_norm`, `q_up` and `q_latent`";
                b.problem(&at.key(), message);
                return None;
            }
        };
        let kv_down = b.linear(&[("kv_down", &self.kv_down, self.latent + rotated)], cols)?;
        b.field = "kv_norm";
        let kv_norm = b.vector(&self.kv_norm, "weight", self.latent)?;
        // All keys first, then all values.
        let each = nope + v_dim;
        let rows_of = |from: usize, n: usize| {
            (0..heads).flat_map(move |h| (from..from + n).map(move |i| (h * each + i) as u32))
        };
        let rows = rows_of(0, nope).chain(rows_of(nope, v_dim)).collect();
        let part = b.linear_part("kv_up", &self.kv_up, heads * each, self.latent, Some(rows))?;
        let kv_up = b.linear_of(vec![part], self.latent);
        let last = b.linear(&[("o", &self.o, cols)], heads * v_dim)?;
        let rope = self.rope.plan(b, rotated, stream, at)?;
        let rope = b.rope(rope);
        let rows = Rows::Tokens(stream);
        let cache = b.cache(CacheUse { kv_heads: heads, k_dim, v_dim, rows, kept: true })?;
        b.note_width(heads * (2 * k_dim + v_dim));
        let inner = Planned {
            stream,
            queries,
            kv_down,
            kv_norm,
            kv_up,
            cache,
            rope,
            heads,
            latent: self.latent,
            nope_dim: nope,
            rope_dim: rotated,
            v_dim,
            scale: self.scale.unwrap_or(1.0 / (k_dim as f64).sqrt()) as f32,
            eps: self.eps.0 as f32,
        };
        Some((Box::new(ThenLinear { inner, last }), Shape::Matrix { rows, cols }))
    }
}

impl Planned {
    /// `norm(x)` of the first `width` columns.
    fn norm(&self, run: &mut Run<'_>, x: &Tensor, weight: VectorId, width: usize) -> Tensor {
        let some = (width < x.cols()).then(|| run.columns(x, 0..width));
        let (from, mut out) = (some.as_ref().unwrap_or(x), run.take(x.rows(), width));
        let norm = Norm { weight: Some(run.vector(weight)), bias: None, eps: self.eps, width };
        run.backend.rms_norm(from, &norm, &mut out);
        run.trace(Site::Norm(weight), Some(from), &out);
        some.into_iter().for_each(|some| run.give(some));
        out
    }

    fn queries(&self, run: &mut Run<'_>, x: &Tensor) -> Tensor {
        match &self.queries {
            Queries::Direct(q) => run.linear(*q, x, None, None),
            Queries::Latent { down, norm, up } => {
                let latent = run.linear(*down, x, None, None);
                let normed = self.norm(run, &latent, *norm, latent.cols());
                let q = run.linear(*up, &normed, None, None);
                run.give(latent);
                run.give(normed);
                q
            }
        }
    }
}

impl Inner for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn inner(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let (heads, nope, rotated, v_dim) = (self.heads, self.nope_dim, self.rope_dim, self.v_dim);
        let k_dim = nope + rotated;
        let mut q = self.queries(run, x); // [tokens, heads * k_dim]
        run.rotate(self.rope, self.stream, &mut q, 0, heads, k_dim);
        let down = run.linear(self.kv_down, x, None, None); // [tokens, latent + rope_dim]
        let normed = self.norm(run, &down, self.kv_norm, self.latent);
        let up = run.linear(self.kv_up, &normed, None, None); // [tokens, heads * nope + heads * v_dim]
        run.give(normed);
        let mut shared = run.columns(&down, self.latent..self.latent + rotated);
        run.give(down);
        run.rotate(self.rope, self.stream, &mut shared, 0, 1, rotated);
        let mut kv = run.take(x.rows(), heads * (k_dim + v_dim));
        run.backend.each_row(&mut kv, &|i, row| {
            let (keys, values) = row.split_at_mut(heads * k_dim);
            let (own, v) = up.row(i).split_at(heads * nope);
            for (h, key) in keys.chunks_mut(k_dim).enumerate() {
                key[..rotated].copy_from_slice(shared.row(i));
                key[rotated..].copy_from_slice(&own[h * nope..(h + 1) * nope]);
            }
            values.copy_from_slice(v);
        });
        [up, shared].into_iter().for_each(|x| run.give(x));
        let spans = &run.tokens(self.stream).spans;
        let mut caches = Run::caches(run.states, self.cache, spans.len());
        run.backend.append_kv(&kv, 0, heads * k_dim, spans, &mut caches);
        let caches: Vec<&KvCache> = caches.into_iter().map(|c| &*c).collect();
        let params = AttentionParams {
            heads,
            kv_heads: heads,
            k_dim,
            v_dim,
            scale: self.scale,
            softcap: None,
            bias: None,
            reach: Reach::CAUSAL,
            sinks: None,
            distances: None,
        };
        let mut found = run.buffers.take(x.rows(), heads * v_dim);
        run.backend.attention(&q, 0, spans, &caches, &params, &mut found);
        [q, kv].into_iter().for_each(|x| run.give(x));
        Ok(found)
    }
}
