//! How much memory a plan needs, before any is taken.

use crate::backend::{Backend, PAGE_KEYS, Span, WeightType};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Declared, LinearUse, PartUse, Stream};
use crate::tensor::DType;

/// What a model needs, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights as they are kept.
    pub weights: u64,
    /// Stored weights that stay in the mapped file: read where needed, never copied.
    pub mapped: u64,
    /// Keys and values of one token, all layers together. They come in pages of [`PAGE_KEYS`] tokens.
    pub cache_per_token: u64,
    /// What a sequence remembers beside keys and values, all layers together.
    pub state_per_sequence: u64,
    /// What is computed from weights alone and kept, at most.
    pub derived: u64,
    /// Activations of one token, at most.
    pub activations_per_token: u64,
    /// Keys and values of one token that do not outlive their block, of the block that has most. They come in pages too.
    pub passing_cache_per_token: u64,
}

impl Memory {
    /// The needs of what was declared, on a backend that keeps weights as `asked`, or as they are stored.
    pub fn of(
        declared: &Declared,
        backend: &dyn Backend,
        stored: &dyn Fn(usize) -> DType,
        asked: Option<WeightType>,
    ) -> Memory {
        let mut memory = Memory::default();
        for linear in &declared.linears {
            memory.weights = memory.weights.saturating_add(linear_bytes(linear, backend, stored, asked));
        }
        let elements = |tensor: usize| -> u64 {
            let shape = &declared.tensors[tensor].shape;
            shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64))
        };
        for part in declared.vectors.iter().flat_map(|vector| &vector.parts) {
            memory.weights = memory.weights.saturating_add(elements(part.0).saturating_mul(4));
        }
        for bias in &declared.biases {
            memory.weights = memory.weights.saturating_add((bias.elements as u64).saturating_mul(4));
        }
        // Values that embed with the same table share it.
        let tables: std::collections::BTreeSet<_> = declared.tables.iter().collect();
        for table in tables {
            let bytes = elements(table.0).saturating_mul(stored(table.0).size() as u64);
            memory.mapped = memory.mapped.saturating_add(bytes);
        }
        for cache in &declared.caches {
            let bytes = cache.bytes_per_token(backend.compute());
            // Caches that do not outlive their block are alive one at a time.
            if cache.kept {
                memory.cache_per_token += bytes;
            } else {
                memory.passing_cache_per_token = memory.passing_cache_per_token.max(bytes);
            }
        }
        memory.derived = (declared.kept as u64).saturating_mul(4);
        for elements in &declared.recurrent {
            memory.state_per_sequence = memory.state_per_sequence.saturating_add(4 * *elements as u64);
        }
        // At most five matrices are alive in a layer: the sum, its normed copy, and the block's own three. The logits come
        // when the layers are done, and once more when they are handed out.
        let layer = 5 * 4 * declared.widest_in_layers as u64;
        memory.activations_per_token = layer.max(2 * 4 * declared.widest as u64);
        memory
    }

    /// An error if the weights need more than `limit` bytes.
    pub fn check(&self, limit: u64) -> Result<()> {
        if self.weights <= limit {
            return Ok(());
        }
        let message =
            format!("the weights need {}, more than the limit of {}", shown(self.weights), shown(limit));
        Err(Error::new(ErrorKind::Limit, message).help("set a higher limit, or keep them in half precision"))
    }

    /// An error if sequences that are computed at once, with the bytes of their `results`, do not fit beside the weights into `limit`
    /// bytes.
    pub fn check_batch<'s>(
        &self,
        spans: impl Iterator<Item = &'s Span>,
        results: u64,
        limit: u64,
    ) -> Result<()> {
        // Keys and values lie in whole pages.
        let in_pages = |tokens: usize| tokens.next_multiple_of(PAGE_KEYS) as u64;
        let (mut tokens, mut batch) = (0, results.saturating_add(self.derived));
        for Span { rows, past } in spans {
            tokens += rows.len();
            batch = batch
                .saturating_add((rows.len() as u64).saturating_mul(self.activations_per_token))
                .saturating_add(in_pages(rows.len()).saturating_mul(self.passing_cache_per_token))
                .saturating_add(in_pages(past + rows.len()).saturating_mul(self.cache_per_token))
                .saturating_add(self.state_per_sequence);
        }
        if self.weights.saturating_add(batch) <= limit {
            return Ok(());
        }
        let message = format!(
            "{tokens} tokens at once need {} beside the weights, more than the limit of {}",
            shown(batch),
            shown(limit)
        );
        Err(Error::new(ErrorKind::Limit, message).help("give fewer or shorter texts at once"))
    }
}

/// Bytes of a linear map with its bias.
pub(super) fn linear_bytes(
    linear: &LinearUse,
    backend: &dyn Backend,
    stored: &dyn Fn(usize) -> DType,
    asked: Option<WeightType>,
) -> u64 {
    let kept = |part: &PartUse| asked.unwrap_or(WeightType::of(stored(part.weight.0)));
    let dtype = linear_type(linear.parts.iter().map(kept));
    let bias = linear.parts.iter().any(|part| part.bias.is_some());
    backend.linear_bytes(linear.inputs, linear.outputs, dtype)
        + if bias { 4 * linear.outputs as u64 } else { 0 }
}

/// The type in which a linear map of several stored weights is kept: theirs if they agree, else float32.
pub fn linear_type(mut parts: impl Iterator<Item = WeightType>) -> WeightType {
    let first = parts.next().unwrap_or(WeightType::F32);
    if parts.all(|kept| kept == first) { first } else { WeightType::F32 }
}

/// Most tokens that a sequence of a stream can have, with the reason.
pub fn token_limit(declared: &Declared, stream: Stream) -> Option<(usize, &str)> {
    let limits = declared.limits.iter().filter(|(of, ..)| *of == stream);
    limits.map(|(_, limit, why)| (*limit, why.as_str())).min()
}

/// A size for people.
pub fn shown(bytes: u64) -> String {
    match bytes as f64 {
        b if b >= 1e9 => format!("{:.1} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b if b >= 1e3 => format!("{:.1} kB", b / 1e3),
        _ => format!("{bytes} B"),
    }
}
