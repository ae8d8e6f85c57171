use super::builder::{
    BiasId, Builder, CacheId, CacheUse, LinearId, RopeId, Rows, Shape, Stream, ValueId, VectorId,
};
use super::fields::{FieldType, NonNegative, Path, Positive, Projection, ValueName, fields, read_choice};
use super::head_norm::{HeadNorm, PlannedHeadNorm};
use super::rope::RopeFields;
use super::run::Run;
use super::then_linear::{Inner, ThenLinear};
use super::{BlockFields, Built};
use crate::backend::{AttentionParams, KvCache, Reach};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::{Address, Tree, listed};
use crate::tensor::Tensor;

fields! {
    /// Multi-head softmax attention: `o(concat_h(softmax(scale · q_h k_hᵀ + bias_h) v_h))`.
    ///
    /// `[tokens, cols] -> [tokens, cols]`. Each token attends to tokens of its own sequence, or, with `memory`, to those of
    /// the same sequence in another value; then a row per sequence or item will do as well. Vaswani et al., “Attention Is All You
    /// Need”, 2017; grouped heads as in Ainslie et al., “GQA”, 2023.
    pub struct Attention("attention") {
        /// Queries, `heads * head_dim` columns.
        q: Option<Projection>,
        /// Keys, `kv_heads * head_dim` columns.
        k: Option<Projection>,
        /// Values, `kv_heads * head_dim` columns.
        v: Option<Projection>,
        /// Queries, keys and values in one weight, instead of `q`, `k` and `v`.
        qkv: Option<Projection>,
        /// How many groups of rows, one after another, `qkv` consists of: 1 where all queries come first, `heads` where each
        /// head has its query, key and value side by side. A group holds its share of the queries, the keys and the values.
        qkv_groups: usize = "1",
        /// The order inside of a group of `qkv`.
        qkv_order: Order = "qkv",
        /// Queries, keys and values are clamped to this magnitude.
        clamp: Option<NonNegative>,
        /// Norm of the queries, before they are rotated.
        q_norm: Option<HeadNorm>,
        /// Norm of the keys, before they are rotated.
        k_norm: Option<HeadNorm>,
        /// From the heads back to the width of the input.
        o: Projection,
        /// Number of query heads.
        heads: usize,
        /// Number of key and value heads; `heads` by default. Each serves `heads / kv_heads` neighbouring query heads.
        kv_heads: Option<usize>,
        /// Columns of one head; the width of the input divided by `heads` by default.
        head_dim: Option<usize>,
        /// Whether a token sees only itself and the tokens before it.
        causal: bool = "false",
        /// When causal: how many tokens it sees, itself included. Otherwise: how far it sees to both sides.
        window: Option<usize>,
        /// Factor of the scores; `1 / sqrt(head_dim)` by default.
        scale: Option<f64>,
        /// Scores become `softcap · tanh(score / softcap)`.
        softcap: Option<Positive>,
        /// Rotary position embedding of queries and keys.
        rope: Option<RopeFields>,
        /// Name of the value whose tokens are attended to instead of the own ones.
        memory: Option<ValueName>,
        /// Name of a position bias that is added to the scores.
        bias: Option<ValueName>,
        /// Path of a parameter with a score per head that takes part in the softmax but has no value: `[heads]`.
        sinks: Option<Path>,
    }
}

/// The order of queries, keys and values in a group of a fused weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Queries, keys, values.
    Qkv,
    /// Queries, values, keys.
    Qvk,
}

const ORDERS: [(&str, Order); 2] = [("qkv", Order::Qkv), ("qvk", Order::Qvk)];

impl FieldType for Order {
    fn kind() -> String {
        listed(&ORDERS.map(|(name, _)| name))
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        read_choice(builder, value, at, &ORDERS)
    }
}

/// The rows of a fused weight in the order queries, keys, values; none if they are in that order.
fn fused_rows(q_cols: usize, kv_cols: usize, groups: usize, order: Order) -> Option<Vec<u32>> {
    if groups == 1 && order == Order::Qkv {
        return None;
    }
    let (q, kv) = (q_cols / groups, kv_cols / groups);
    let rows = |first: usize, n: usize| {
        (0..groups).flat_map(move |g| (0..n).map(move |i| (g * (q + 2 * kv) + first + i) as u32))
    };
    let (k, v) = match order {
        Order::Qkv => (q, q + kv),
        Order::Qvk => (q + kv, q),
    };
    Some(rows(0, q).chain(rows(k, kv)).chain(rows(v, kv)).collect())
}

/// Where keys and values come from.
#[derive(Debug)]
enum Source {
    /// The own tokens: queries, keys and values are computed by one linear map.
    Own { qkv: LinearId },
    /// Another value: its keys and values are computed once.
    Memory { q: LinearId, kv: LinearId, value: ValueId, rows: Rows },
}

#[derive(Debug)]
struct Planned {
    rows: Rows,
    stream: Stream,
    source: Source,
    /// Of the keys and values that outlive a pass.
    cache: Option<CacheId>,
    rope: Option<RopeId>,
    bias: Option<BiasId>,
    sinks: Option<VectorId>,
    clamp: Option<f32>,
    q_norm: Option<PlannedHeadNorm>,
    k_norm: Option<PlannedHeadNorm>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    softcap: Option<f32>,
    reach: Reach,
}

/// A value whose tokens are attended to.
#[derive(Clone, Copy)]
struct Memory {
    value: ValueId,
    rows: Rows,
    cols: usize,
}

impl BlockFields for Attention {
    fn check(&self, b: &mut Builder<'_>, at: &Address) -> Option<()> {
        let (heads, kv_heads, groups) = (self.heads, self.kv_heads(), self.qkv_groups);
        if heads % kv_heads != 0 {
            let message = format!("expected `kv_heads` to divide `heads`, found {kv_heads} and {heads}");
            b.wrong_fields(at, &["kv_heads", "heads"], message);
            return None;
        }
        match (&self.q, &self.k, &self.v, &self.qkv) {
            (Some(_), Some(_), Some(_), None) | (None, None, None, Some(_)) => {}
            _ => {
                b.problem(&at.key(), "`attention` needs `q`, `k` and `v`, or `qkv` alone");
                return None;
            }
        }
        let fused = ("`qkv`", self.qkv.is_some());
        b.only_with(at, ("qkv_groups", groups != 1), fused)?;
        b.only_with(at, ("qkv_order", self.qkv_order != Order::Qkv), fused)?;
        if !heads.is_multiple_of(groups) || !kv_heads.is_multiple_of(groups) {
            let message = format!("expected `qkv_groups` to divide `heads` and `kv_heads`, found {groups}");
            b.wrong_fields(at, &["qkv_groups"], message);
            return None;
        }
        let by_position = self.causal || self.window.is_some() || self.rope.is_some() || self.bias.is_some();
        if self.memory.is_some() && by_position {
            b.wrong_fields(
                at,
                &["memory"],
                "`memory` excludes `causal`, `window`, `rope` and `bias`: its positions are not the own ones",
            );
            return None;
        }
        Some(())
    }

    fn plan(self, b: &mut Builder<'_>, input: Option<Shape>, at: &Address) -> Built {
        let (rows, stream, cols) = match input {
            Some(Shape::Matrix { rows: rows @ Rows::Sequences(stream), cols }) if self.memory.is_some() => {
                (rows, stream, cols)
            }
            _ => b.positions(input, at)?,
        };
        let (heads, kv_heads) = (self.heads, self.kv_heads());
        if self.head_dim.is_none() && cols % heads != 0 {
            let message = format!("expected `heads` to divide the width {cols}, found {heads}");
            b.wrong_fields(at, &["heads"], message);
            return None;
        }
        let head_dim = self.head_dim.unwrap_or(cols / heads);
        let (q_cols, kv_cols) = (size(b, heads, head_dim, at)?, size(b, kv_heads, head_dim, at)?);
        let memory = match &self.memory {
            Some(reference) => Some(planned_memory(b, reference, rows, stream)?),
            None => None,
        };
        let bias = match &self.bias {
            Some(reference) => Some(planned_bias(b, reference, heads)?),
            None => None,
        };
        let source = self.source(b, cols, (q_cols, kv_cols), memory, at)?;
        if self.rope.is_some() && !matches!(rows, Rows::Tokens(_)) {
            b.wrong_fields(at, &["rope"], "`rope` turns by the positions of tokens, and there are none here");
            return None;
        }
        let norm = |b: &mut Builder<'_>, norm: Option<&HeadNorm>, field, heads| match norm {
            Some(norm) => norm.plan(b, field, heads, head_dim).map(Some),
            None => Some(None),
        };
        let q_norm = norm(b, self.q_norm.as_ref(), "q_norm", heads)?;
        let k_norm = norm(b, self.k_norm.as_ref(), "k_norm", kv_heads)?;
        b.field = "sinks";
        let sinks = match &self.sinks {
            Some(path) => Some(b.vector(path, "", heads)?),
            None => None,
        };
        let last = b.linear(&[("o", &self.o, cols)], q_cols)?;
        let rope = match &self.rope {
            Some(rope) => {
                let rope = rope.plan(b, head_dim, stream, at)?;
                Some(b.rope(rope))
            }
            None => None,
        };
        // What a decoder reads stays the same from token to token, unless it is made of these tokens.
        let stays = |memory: Memory| memory.rows.stream() != Some(stream);
        let kept = self.causal || (memory.is_some_and(stays) && matches!(rows, Rows::Tokens(_)));
        let cache_rows = memory.map_or(rows, |memory| memory.rows);
        let cache = b.cache(CacheUse { kv_heads, k_dim: head_dim, v_dim: head_dim, rows: cache_rows, kept });
        let reach = match (self.causal, self.window) {
            (true, window) => Reach { back: window.map(|w| w - 1), ahead: Some(0) },
            (false, window) => Reach { back: window, ahead: window },
        };
        let inner = Planned {
            rows,
            stream,
            source,
            cache,
            rope,
            bias,
            sinks,
            clamp: self.clamp.map(|limit| limit.0 as f32),
            q_norm,
            k_norm,
            heads,
            kv_heads,
            head_dim,
            scale: self.scale.unwrap_or(1.0 / (head_dim as f64).sqrt()) as f32,
            softcap: self.softcap.map(|c| c.0 as f32),
            reach,
        };
        Some((Box::new(ThenLinear { inner, last }), Shape::Matrix { rows, cols }))
    }
}

impl Attention {
    fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads)
    }

    /// The maps that queries, keys and values come from: of the own tokens one for all of them.
    fn source(
        &self,
        b: &mut Builder<'_>,
        cols: usize,
        (q_cols, kv_cols): (usize, usize),
        memory: Option<Memory>,
        at: &Address,
    ) -> Option<Source> {
        if let Some(qkv) = &self.qkv {
            let all = q_cols.saturating_add(kv_cols.saturating_mul(2));
            b.order(all, at)?;
            let order = fused_rows(q_cols, kv_cols, self.qkv_groups, self.qkv_order);
            let mut part = |order| {
                let part = b.linear_part("qkv", qkv, all, cols, order)?;
                Some(b.linear_of(vec![part], cols))
            };
            let Some(Memory { value, rows, cols: memory_cols }) = memory else {
                return Some(Source::Own { qkv: part(order)? });
            };
            if memory_cols != cols {
                let message = format!("`qkv` takes {cols} columns, and those of `memory` are {memory_cols}");
                b.wrong_fields(at, &["qkv", "memory"], message);
                return None;
            }
            let mut q: Vec<u32> = order.unwrap_or_else(|| (0..all as u32).collect());
            let kv = q.split_off(q_cols);
            return Some(Source::Memory { q: part(Some(q))?, kv: part(Some(kv))?, value, rows });
        }
        // One of the two forms is there, as `check` has seen.
        let (q, k, v) = (self.q.as_ref()?, self.k.as_ref()?, self.v.as_ref()?);
        let [q, k, v] = [("q", q, q_cols), ("k", k, kv_cols), ("v", v, kv_cols)];
        Some(match memory {
            None => Source::Own { qkv: b.linear(&[q, k, v], cols)? },
            Some(Memory { value, rows, cols: memory_cols }) => {
                Source::Memory { q: b.linear(&[q], cols)?, kv: b.linear(&[k, v], memory_cols)?, value, rows }
            }
        })
    }
}

/// What rows of a stream attend to instead of themselves.
fn planned_memory(b: &mut Builder<'_>, reference: &ValueName, rows: Rows, stream: Stream) -> Option<Memory> {
    let (value, shape) = b.refer(reference)?;
    let (memory_rows, memory_stream, cols) = b.positions(Some(shape), &reference.at)?;
    if !matches!(rows, Rows::Tokens(_)) && memory_stream != stream {
        b.problem(&reference.at, "`memory` belongs to other sequences or items than the input");
        return None;
    }
    Some(Memory { value, rows: memory_rows, cols })
}

/// A position bias for so many heads.
fn planned_bias(b: &mut Builder<'_>, reference: &ValueName, heads: usize) -> Option<BiasId> {
    let found = match b.refer(reference)?.1 {
        Shape::Bias { id, heads: found } if found == heads => return Some(id),
        Shape::Bias { heads, .. } => format!("one for {heads} heads"),
        _ => "a matrix".into(),
    };
    b.problem(&reference.at, format!("expected a position bias for {heads} heads, found {found}"));
    None
}

/// `heads * head_dim`, if it is of a size that a matrix can have.
fn size(b: &mut Builder<'_>, heads: usize, head_dim: usize, at: &Address) -> Option<usize> {
    let size = heads.checked_mul(head_dim).filter(|n| *n <= super::fields::MAX_SIZE as usize);
    if size.is_none() {
        b.wrong_fields(
            at,
            &["heads", "head_dim"],
            format!("{heads} heads of {head_dim} columns are too many"),
        );
    }
    size
}

impl Planned {
    /// Clamps queries, keys and values.
    fn limit(&self, x: &mut Tensor) {
        if let Some(limit) = self.clamp {
            x.data_mut().iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
        }
    }
}

impl Inner for Planned {
    fn is_row_wise(&self) -> bool {
        false
    }

    fn inner(&self, run: &mut Run<'_>, x: &Tensor) -> Result<Tensor> {
        let params = AttentionParams {
            heads: self.heads,
            kv_heads: self.kv_heads,
            k_dim: self.head_dim,
            v_dim: self.head_dim,
            scale: self.scale,
            softcap: self.softcap,
            bias: self.bias.map(|id| run.bias(id)),
            reach: self.reach,
            sinks: self.sinks.map(|id| run.vector(id)),
            distances: None,
        };
        let (q_cols, kv_cols) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let spans = run.spans(self.rows);
        let spans = &*spans;
        let mut out = run.take(x.rows(), q_cols); // the heads side by side
        match &self.source {
            Source::Own { qkv } => {
                let mut qkv = run.linear(*qkv, x, None, None); // [tokens, q_cols + 2 kv_cols]
                self.limit(&mut qkv);
                if let Some(norm) = &self.q_norm {
                    norm.apply(run, &mut qkv, 0);
                }
                if let Some(norm) = &self.k_norm {
                    norm.apply(run, &mut qkv, q_cols);
                }
                if let Some(rope) = self.rope {
                    // Queries and keys lie side by side, so they turn as if they were one set of heads.
                    run.rotate(rope, self.stream, &mut qkv, 0, self.heads + self.kv_heads, self.head_dim);
                }
                let mut own: Vec<KvCache> = Vec::new();
                let mut caches = match self.cache {
                    Some(cache) => Run::caches(run.states, cache, spans.len()),
                    None => {
                        own = run.own_caches(self.kv_heads, self.head_dim, spans);
                        own.iter_mut().collect()
                    }
                };
                run.backend.append_kv(&qkv, q_cols, q_cols + kv_cols, spans, &mut caches);
                let caches: Vec<&KvCache> = caches.into_iter().map(|c| &*c).collect();
                run.backend.attention(&qkv, 0, spans, &caches, &params, &mut out);
                run.buffers.give(qkv);
                run.give_caches(own);
            }
            Source::Memory { q, kv, value, rows } => {
                let memory_spans = run.spans(*rows);
                let mut own: Vec<KvCache> = Vec::new();
                if self.cache.is_none() {
                    own = run.own_caches(self.kv_heads, self.head_dim, &memory_spans);
                }
                let mut states = run.states.iter().take(spans.len());
                if self.cache.is_none_or(|cache| states.any(|state| state.caches[cache.0].is_empty())) {
                    let (items, sequences) = (memory_spans.len(), spans.len());
                    if items != sequences {
                        let message = format!(
                            "expected one item to attend to for each of {sequences} sequences, found {items}"
                        );
                        return Err(Error::new(ErrorKind::Input, message));
                    }
                    let memory = run.value(*value)?;
                    let mut kv = run.linear(*kv, &memory, None, None); // [memory tokens, 2 kv_cols]
                    self.limit(&mut kv);
                    if let Some(norm) = &self.k_norm {
                        norm.apply(run, &mut kv, 0);
                    }
                    let mut caches = match self.cache {
                        Some(cache) => Run::caches(run.states, cache, spans.len()),
                        None => own.iter_mut().collect(),
                    };
                    run.backend.append_kv(&kv, 0, kv_cols, &memory_spans, &mut caches);
                    run.buffers.give(kv);
                }
                let mut q = run.linear(*q, x, None, None); // [tokens, q_cols]
                self.limit(&mut q);
                if let Some(norm) = &self.q_norm {
                    norm.apply(run, &mut q, 0);
                }
                let caches: Vec<&KvCache> = match self.cache {
                    Some(cache) => {
                        let kept = Run::caches(run.states, cache, spans.len());
                        kept.into_iter().map(|cache| &*cache).collect()
                    }
                    None => own.iter().collect(),
                };
                run.backend.attention(&q, 0, spans, &caches, &params, &mut out);
                run.buffers.give(q);
                run.give_caches(own);
            }
        }
        Ok(out)
    }
}
