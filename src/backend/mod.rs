//! What the blocks are written against: the operations of a [`Backend`], on matrices of activations.
//!
//! Two backends exist: `cpu`, the fast one, and `reference`, one obvious loop per operation. Every
//! operation treats each row (in attention: each sequence) by itself and adds up in an order that depends
//! on nothing but the row's own length, so a result is the same to the bit whatever else is in the batch
//! and however many threads there are.

mod activation;
mod counting;
mod kv_cache;
mod pair;
pub mod quantise;
mod weight_type;

use std::fmt;
use std::ops::Range;

use crate::tensor::{Array, Tensor};
pub use activation::Activation;
#[cfg(test)]
pub(crate) use activation::erfc;
pub use counting::{Counting, Work};
pub use kv_cache::{HeadLayout, KvCache, PAGE_KEYS};
pub use pair::Pair;
pub(crate) use pair::rounded;
pub use weight_type::{Compute, WeightType};

/// Elements of linear maps that are packed before the stored ones are let go: few beside a model.
pub const PACKED_AT_ONCE: usize = 1 << 20;

/// The operations that blocks are made of.
///
/// Shapes are checked when the plan is made; an operation that is given others panics.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Name for people, such as `cpu (avx2, 2 threads)`.
    fn name(&self) -> String;

    /// How many rows are best computed at once: enough for its arithmetic to run at full speed, few enough for what lies between two
    /// operations to stay in the caches.
    fn rows_at_once(&self) -> usize;

    /// The type in which attention multiplies, and in which its caches keep keys and values.
    fn compute(&self) -> Compute;

    /// Lays out the weights of linear maps `[in] -> [out]` the way [`Linear::apply`] wants them. Those that are used one after another
    /// best lie one behind another. What is stored is let go of ([`Array::release_storage`]).
    ///
    /// `packed` are weights that were laid out before ([`LaidOut::packed`]), of equal maps and under an equal
    /// [`packing`](Self::packing): then nothing stored is read.
    fn linears(&self, maps: &[LinearWeights<'_>], packed: Option<Array>) -> LaidOut;

    /// Lays out the weights of one linear map.
    fn linear(&self, parts: &[LinearPart<'_>], kept: WeightType) -> Box<dyn Linear> {
        // As many as it is given.
        self.linears(&[LinearWeights { parts: parts.to_vec(), kept }], None).maps.remove(0)
    }

    /// What tells the bytes of [`LaidOut::packed`] from those that other backends make of the same weights; none if there are no such bytes.
    fn packing(&self) -> Option<String> {
        None
    }

    /// Bytes that [`linears`](Self::linears) will keep for a map of `inputs` to `outputs`; [`Linear::bytes`] tells those of unusual weights.
    fn linear_bytes(&self, inputs: usize, outputs: usize, kept: WeightType) -> u64;

    /// Row `i` of `out`, `[ids, cols]`, becomes row `ids[i]` of `table`, `[vocab, cols]`, or is increased by it if
    /// `accumulate`. Panics for ids that the table has no row for.
    fn embedding(&self, table: &Array, ids: &[u32], accumulate: bool, out: &mut Tensor);

    /// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, all `[rows, cols]`, over each run of `width` columns; the
    /// variance is biased. `weight` and `bias` have `width` elements, or one for every column.
    fn layer_norm(&self, x: &Tensor, norm: &Norm<'_>, out: &mut Tensor);

    /// `out = x / sqrt(mean(x²) + eps) * weight`, as [`layer_norm`](Self::layer_norm).
    fn rms_norm(&self, x: &Tensor, norm: &Norm<'_>, out: &mut Tensor);

    /// The same in place, of some columns of `x`: with `centre` as [`layer_norm`](Self::layer_norm), without it as
    /// [`rms_norm`](Self::rms_norm).
    fn norm_columns(&self, x: &mut Tensor, columns: Range<usize>, norm: &Norm<'_>, centre: bool);

    /// Calls `task` with the number of each row of `x` and with the row, to be written, on all threads that there are.
    fn each_row(&self, x: &mut Tensor, task: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let cols = x.cols().max(1);
        x.data_mut().chunks_mut(cols).enumerate().for_each(|(i, row)| task(i, row));
    }

    /// `x = act(x)`.
    fn activate(&self, act: Activation, x: &mut Tensor);

    /// `x = x + y`, of the same shape.
    fn add(&self, x: &mut Tensor, y: &Tensor);

    /// `x = x * factor`.
    fn scale(&self, x: &mut Tensor, factor: f32);

    /// Rotates heads in place: in each of the `heads` runs of `head_dim` columns from column `start` on,
    /// pair `p` turns by the angle whose cosine and sine are at `[row, p]` of the tables. Columns beyond the
    /// pairs pass.
    fn rope(&self, x: &mut Tensor, start: usize, heads: usize, head_dim: usize, rope: &Rotation<'_>);

    /// Appends rows of keys and values to caches: those of `spans[i]` to `caches[i]`. Keys are the
    /// `kv_heads * k_dim` columns of `x` from `k_start` on, values the `kv_heads * v_dim` from `v_start` on.
    fn append_kv(
        &self,
        x: &Tensor,
        k_start: usize,
        v_start: usize,
        spans: &[Span],
        caches: &mut [&mut KvCache],
    );

    /// Softmax attention of the queries in columns `q_start ..` of `x` over the keys and values in the caches,
    /// `spans[i]` over `caches[i]`. `out` is `[rows, heads * v_dim]`.
    ///
    /// The cache holds the keys of positions `0 .. len`; row `r` of a span has position `past + r`. Where keys and values are kept
    /// in bfloat16, queries and weights are rounded to it as well, if the backend is made for that.
    fn attention(
        &self,
        x: &Tensor,
        q_start: usize,
        spans: &[Span],
        caches: &[&KvCache],
        params: &AttentionParams<'_>,
        out: &mut Tensor,
    );

    /// Products of rows: `out[i, j] = x[i] · y[j]`.
    fn products(&self, x: &Tensor, y: &Tensor, out: &mut Tensor);

    /// Runs a causal convolution over the rows of each span; `states[i]`, `[kernel - 1, channels]`, has the last inputs before those of
    /// `spans[i]`, zeros before its first row. `out` is `[rows, channels]`.
    fn causal_conv(&self, conv: &CausalConv<'_>, spans: &[Span], states: &mut [&mut [f32]], out: &mut Tensor);

    /// Runs a selective state space over the rows of each span; `states[i]`, `[state, inner]`, is that of `spans[i]`: zeros before
    /// its first row. `out` is `[rows, inner]`.
    fn scan(&self, scan: &Scan<'_>, spans: &[Span], states: &mut [&mut [f32]], out: &mut Tensor);

    /// Runs a selective state space of heads over the rows of each span; `states[i]`, `[heads, state, head_dim]`, is that of
    /// `spans[i]`, zeros before its first row. `out` is `[rows, heads * head_dim]`.
    fn scan_heads(&self, scan: &HeadScan<'_>, spans: &[Span], states: &mut [&mut [f32]], out: &mut Tensor);
}

/// Linear maps whose weights a backend has laid out.
pub struct LaidOut {
    /// The maps, as many as there were weights for.
    pub maps: Vec<Box<dyn Linear>>,
    /// The weights of all of them as bytes, for [`Backend::linears`] to begin with another time. None where that has begun with such, or there is
    /// no [`packing`](Backend::packing).
    pub packed: Option<Array>,
}

/// A linear map whose weights a backend has laid out for itself.
pub trait Linear: Send + Sync + fmt::Debug {
    /// Columns of the input.
    fn inputs(&self) -> usize;

    /// Columns of the output.
    fn outputs(&self) -> usize;

    /// Bytes that the weights take.
    fn bytes(&self) -> u64;

    /// `out = epilogue(x Wᵀ)`; `x` is `[rows, inputs]`, `out` is `[rows, outputs]`.
    ///
    /// # Panics
    /// If they, or what the epilogue has, are of other shapes.
    fn apply(&self, x: &Tensor, epilogue: &Epilogue<'_>, out: &mut Tensor);
}

/// The weights of one [`Linear`].
#[derive(Clone, Debug)]
pub struct LinearWeights<'a> {
    /// Parts with the same input, put side by side: their outputs follow each other.
    pub parts: Vec<LinearPart<'a>>,
    /// How they are kept.
    pub kept: WeightType,
}

/// Weights that go into one [`Linear`].
#[derive(Clone, Copy, Debug)]
pub struct LinearPart<'a> {
    /// The stored matrix.
    pub weight: &'a Array,
    /// How it is stored.
    pub layout: Layout,
    /// Which of its outputs are taken, in which order; none for all, as they are.
    pub outputs: Option<&'a [u32]>,
}

/// Which axis of a stored linear weight comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[out, in]`, as `torch.nn.Linear` stores it.
    OutIn,
    /// `[in, out]`.
    InOut,
}

/// What happens to each element of a product before it is stored, in this order: bias added, activation
/// applied, multiplied by the same element of `mul`, and, if `accumulate`, added to what `out` held before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One element per output.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub act: Option<Activation>,
    /// `[rows, outputs]`.
    pub mul: Option<&'a Tensor>,
    /// Add to `out` instead of replacing it.
    pub accumulate: bool,
}

/// Parameters of a norm.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Scale; none for 1.
    pub weight: Option<&'a [f32]>,
    /// Shift; none for 0.
    pub bias: Option<&'a [f32]>,
    /// Added inside the root.
    pub eps: f32,
    /// How many columns are normalised together.
    pub width: usize,
}

/// Angles of a rotary position embedding.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Cosines, `[rows, pairs]`.
    pub cos: &'a Tensor,
    /// Sines, `[rows, pairs]`.
    pub sin: &'a Tensor,
    /// Whether pair `p` is columns `(2p, 2p + 1)` instead of `(p, p + pairs)`.
    pub interleaved: bool,
}

/// Rows of a batch that belong to one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The rows.
    pub rows: Range<usize>,
    /// How many tokens of the sequence came before them.
    pub past: usize,
}

impl Span {
    /// Whether spans follow each other, without overlaps, inside of `rows` rows.
    pub fn are_in_order(spans: &[Span], rows: usize) -> bool {
        let (mut ends, mut at) = (spans.iter(), 0);
        ends.all(|Span { rows: Range { start, end }, .. }| {
            let follows = at <= *start && start <= end && *end <= rows;
            at = *end;
            follows
        })
    }
}

/// What attention computes.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams<'a> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Columns of one query or key head.
    pub k_dim: usize,
    /// Columns of one value head.
    pub v_dim: usize,
    /// Scores are `scale * q·k`, with what [`DistanceVectors`] add to the product.
    pub scale: f32,
    /// Scores become `c * tanh(score / c)`, before the bias.
    pub softcap: Option<f32>,
    /// Added to the scores.
    pub bias: Option<&'a PositionBias>,
    /// Which keys a query sees.
    pub reach: Reach,
    /// One extra score per head that takes part in the softmax but has no value.
    pub sinks: Option<&'a [f32]>,
    /// Vectors of the distances between queries and keys. With them every query head has a key head of its own.
    pub distances: Option<&'a DistanceVectors<'a>>,
}

/// Vectors of the distances between queries and keys (He et al., “DeBERTa”, 2021): to the product `q_i·k_j` of head `h` come
/// `q_i·keys[b, h] + k_j·queries[b, h]` for the bucket `b` of `i - j`.
#[derive(Clone, Copy, Debug)]
pub struct DistanceVectors<'a> {
    /// Keys of the buckets, for the queries: `[buckets, heads * k_dim]`.
    pub keys: Option<&'a Tensor>,
    /// Queries of the buckets, for the keys: `[buckets, heads * k_dim]`.
    pub queries: Option<&'a Tensor>,
    /// The bucket of each distance from `-(n - 1)` to `n - 1`, for sequences of up to `n` tokens.
    pub bucket: &'a [u32],
}

impl DistanceVectors<'_> {
    /// The row of the bucket of the distance from the key at position `j` to the query at position `i`.
    pub fn row(&self, i: usize, j: usize) -> usize {
        self.bucket[i + self.bucket.len() / 2 - j] as usize
    }

    /// How many products they add to each score.
    pub fn parts(&self) -> usize {
        usize::from(self.keys.is_some()) + usize::from(self.queries.is_some())
    }
}

/// A causal depthwise convolution with an activation behind it: in each channel `act(Σ_k weight[k] · x[row + k + 1 - kernel] + bias)`.
#[derive(Debug)]
pub struct CausalConv<'a> {
    /// The channels are columns of it, from `start` on.
    pub x: &'a Tensor,
    /// See `x`.
    pub start: usize,
    /// `[kernel, channels]`, what belongs to the oldest row first.
    pub weight: &'a [f32],
    /// One per channel.
    pub bias: Option<&'a [f32]>,
    /// Applied to the sums.
    pub act: Activation,
}

/// A selective state space, without the maps before and after it: for each channel `c` of `inner` and each of its `state`
/// numbers `n`, `s = exp(dt · a[n, c]) · s + dt · b[n] · x` and `y = Σ_n c[n] · s + d[c] · x`, token by token. Gu and Dao, arXiv:2312.00752,
/// 2023.
#[derive(Debug)]
pub struct Scan<'a> {
    /// `[rows, inner]`.
    pub x: &'a Tensor,
    /// Step sizes, `[rows, inner]`.
    pub dt: &'a Tensor,
    /// Per row the `state` numbers `b`, then the `state` numbers `c`, from column `start` on.
    pub bc: &'a Tensor,
    /// See `bc`.
    pub start: usize,
    /// `[state, inner]`, at most 0.
    pub a: &'a [f32],
    /// One per channel.
    pub d: &'a [f32],
}

/// A selective state space of heads, without the maps before and after it: for each head and each of its `head_dim` channels
/// `x`, `s = exp(dt · a) · s + dt · x · b` and `y = Σ c · s + d · x`, token by token, where `b` and `c`, of `state` numbers, are those of
/// the head's group. Head `h` is in group `h / (heads / groups)`. Dao and Gu, arXiv:2405.21060, 2024.
#[derive(Debug)]
pub struct HeadScan<'a> {
    /// Per row `x`, `[heads, head_dim]`, then `b` and `c`, both `[groups, state]`.
    pub xbc: &'a Tensor,
    /// Step sizes, `[rows, heads]`.
    pub dt: &'a Tensor,
    /// One per head.
    pub a: &'a [f32],
    /// One per head.
    pub d: &'a [f32],
    /// Channels of a head.
    pub head_dim: usize,
    /// Groups of heads; divides their number.
    pub groups: usize,
    /// Numbers that a channel remembers.
    pub state: usize,
}

/// Which keys a query at position `i` sees: those at `i - back ..= i + ahead`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// How many keys before its own position; none for all.
    pub back: Option<usize>,
    /// How many keys after its own position; none for all, 0 when causal.
    pub ahead: Option<usize>,
}

impl Reach {
    /// Every key.
    pub const ALL: Reach = Reach { back: None, ahead: None };
    /// Keys up to the own position.
    pub const CAUSAL: Reach = Reach { back: None, ahead: Some(0) };

    /// The positions that the query at position `i` sees of `keys` keys.
    pub fn of(&self, i: usize, keys: usize) -> Range<usize> {
        let start = self.back.map_or(0, |back| i.saturating_sub(back));
        let end = self.ahead.map_or(keys, |ahead| i.saturating_add(ahead).saturating_add(1).min(keys));
        start.min(end)..end
    }
}

/// A bias on attention scores that depends on the positions of query `i` and key `j` and on the head.
#[derive(Clone, Debug, PartialEq)]
pub enum PositionBias {
    /// `table[h][clamp(j - i, -limit, limit) + limit]`, with `2 * limit + 1` entries per head.
    Distance {
        /// `[heads, 2 * limit + 1]`.
        table: Vec<f32>,
        /// Largest distance that is told apart.
        limit: usize,
    },
    /// `slopes[h] * (j - i)`.
    Slope {
        /// One per head.
        slopes: Vec<f32>,
    },
    /// `factor * (slopes[h] * j)`, where slope, position and product are rounded to bfloat16.
    RoundedSlope {
        /// One per head.
        slopes: Vec<f32>,
        /// Of the rounded product.
        factor: f32,
    },
}

impl PositionBias {
    /// Adds the bias of head `h` for query position `i` to the scores of some keys.
    #[inline(always)]
    pub fn add(&self, h: usize, i: usize, keys: Range<usize>, scores: &mut [f32]) {
        match self {
            PositionBias::Distance { table, limit } => {
                let row = &table[h * (2 * limit + 1)..][..2 * limit + 1];
                // The keys that are as far before the query as is told apart, those between, and those as far behind it.
                let near = i.saturating_sub(*limit).clamp(keys.start, keys.end);
                let far = (i + limit + 1).clamp(near, keys.end);
                let (before, rest) = scores.split_at_mut(near - keys.start);
                let (between, behind) = rest.split_at_mut(far - near);
                before.iter_mut().for_each(|score| *score += row[0]);
                if !between.is_empty() {
                    let row = &row[near + limit - i..][..between.len()];
                    between.iter_mut().zip(row).for_each(|(score, bias)| *score += bias);
                }
                behind.iter_mut().for_each(|score| *score += row[2 * limit]);
            }
            _ => keys.zip(scores).for_each(|(j, score)| *score += self.at(h, i, j)),
        }
    }

    /// The bias of head `h` for query position `i` and key position `j`.
    pub fn at(&self, h: usize, i: usize, j: usize) -> f32 {
        match self {
            PositionBias::Distance { table, limit } => {
                let limit = *limit as isize;
                let distance = (j as isize - i as isize).clamp(-limit, limit) + limit;
                table[h * (2 * limit as usize + 1) + distance as usize]
            }
            PositionBias::Slope { slopes } => slopes[h] * (j as f32 - i as f32),
            PositionBias::RoundedSlope { slopes, factor } => {
                let round = |x: f32| half::bf16::from_f32(x).to_f32();
                factor * round(round(slopes[h]) * round(j as f32))
            }
        }
    }
}
