use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{
    Activation, AttentionParams, Backend, CausalConv, Compute, Epilogue, HeadScan, KvCache, LaidOut, Linear,
    LinearWeights, Norm, Rotation, Scan, Span, WeightType,
};
use crate::tensor::{Array, Tensor};

/// What a computation did, as [`Counting`] saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Multiplications and additions of linear maps, of attention and of state spaces.
    pub flops: u64,
    /// Bytes of weights, keys and values that were read: each linear map once per product, each cache once per query head group.
    pub bytes: u64,
    /// Time in the backend: the rest of a pass is the interpreter's, and what the clock takes, which is read twice for each operation.
    pub time: Duration,
    /// Operations that were timed.
    pub operations: u64,
}

/// A backend that counts the work of another one, each time after it was done: what is cold until then belongs to the work.
#[derive(Debug)]
pub struct Counting {
    inner: Arc<dyn Backend>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    flops: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    operations: AtomicU64,
}

impl Counts {
    /// Times `operation`, which gives the floating-point operations and the bytes that it took.
    fn counted(&self, operation: impl FnOnce() -> (u64, u64)) {
        let start = Instant::now();
        let (flops, bytes) = operation();
        self.add(start, flops, bytes);
    }

    /// Adds an operation that began at `start`.
    fn add(&self, start: Instant, flops: u64, bytes: u64) {
        self.flops.fetch_add(flops, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.operations.fetch_add(1, Ordering::Relaxed);
        // Last, so that fetching the counters, which the operation has pushed out of the caches, is not taken for the interpreter's work.
        self.nanoseconds.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    /// Times an operation without such work.
    fn timed(&self, operation: impl FnOnce()) {
        self.counted(|| {
            operation();
            (0, 0)
        });
    }
}

impl Counting {
    /// Counts the work of `inner`.
    pub fn new(inner: Arc<dyn Backend>) -> Counting {
        Counting { inner, counts: Arc::default() }
    }

    /// The work since this was asked last.
    pub fn take(&self) -> Work {
        let take = |n: &AtomicU64| n.swap(0, Ordering::Relaxed);
        Work {
            flops: take(&self.counts.flops),
            bytes: take(&self.counts.bytes),
            time: Duration::from_nanos(take(&self.counts.nanoseconds)),
            operations: take(&self.counts.operations),
        }
    }
}

#[derive(Debug)]
struct CountingLinear {
    inner: Box<dyn Linear>,
    counts: Arc<Counts>,
}

impl Linear for CountingLinear {
    fn inputs(&self) -> usize {
        self.inner.inputs()
    }

    fn outputs(&self) -> usize {
        self.inner.outputs()
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn apply(&self, x: &Tensor, epilogue: &Epilogue<'_>, out: &mut Tensor) {
        // First, so that what is fetched of the map belongs to the work.
        let start = Instant::now();
        self.inner.apply(x, epilogue, out);
        self.counts.add(start, 2 * (x.rows() * x.cols() * out.cols()) as u64, self.bytes());
    }
}

impl Backend for Counting {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn rows_at_once(&self) -> usize {
        self.inner.rows_at_once()
    }

    fn compute(&self) -> Compute {
        self.inner.compute()
    }

    fn linears(&self, maps: &[LinearWeights<'_>], packed: Option<Array>) -> LaidOut {
        let counted =
            |inner| Box::new(CountingLinear { inner, counts: self.counts.clone() }) as Box<dyn Linear>;
        let LaidOut { maps, packed } = self.inner.linears(maps, packed);
        LaidOut { maps: maps.into_iter().map(counted).collect(), packed }
    }

    fn packing(&self) -> Option<String> {
        self.inner.packing()
    }

    fn linear_bytes(&self, inputs: usize, outputs: usize, kept: WeightType) -> u64 {
        self.inner.linear_bytes(inputs, outputs, kept)
    }

    fn embedding(&self, table: &Array, ids: &[u32], accumulate: bool, out: &mut Tensor) {
        self.counts.timed(|| self.inner.embedding(table, ids, accumulate, out));
    }

    fn layer_norm(&self, x: &Tensor, norm: &Norm<'_>, out: &mut Tensor) {
        self.counts.timed(|| self.inner.layer_norm(x, norm, out));
    }

    fn rms_norm(&self, x: &Tensor, norm: &Norm<'_>, out: &mut Tensor) {
        self.counts.timed(|| self.inner.rms_norm(x, norm, out));
    }

    fn norm_columns(&self, x: &mut Tensor, columns: Range<usize>, norm: &Norm<'_>, centre: bool) {
        self.counts.timed(|| self.inner.norm_columns(x, columns, norm, centre));
    }

    fn activate(&self, act: Activation, x: &mut Tensor) {
        self.counts.timed(|| self.inner.activate(act, x));
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        self.counts.timed(|| self.inner.add(x, y));
    }

    fn each_row(&self, x: &mut Tensor, task: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        self.counts.timed(|| self.inner.each_row(x, task));
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        self.counts.timed(|| self.inner.scale(x, factor));
    }

    fn rope(&self, x: &mut Tensor, start: usize, heads: usize, head_dim: usize, rope: &Rotation<'_>) {
        self.counts.timed(|| self.inner.rope(x, start, heads, head_dim, rope));
    }

    fn append_kv(
        &self,
        x: &Tensor,
        k_start: usize,
        v_start: usize,
        spans: &[Span],
        caches: &mut [&mut KvCache],
    ) {
        self.counts.timed(|| self.inner.append_kv(x, k_start, v_start, spans, caches));
    }

    fn attention(
        &self,
        x: &Tensor,
        q_start: usize,
        spans: &[Span],
        caches: &[&KvCache],
        params: &AttentionParams<'_>,
        out: &mut Tensor,
    ) {
        self.counts.counted(|| {
            self.inner.attention(x, q_start, spans, caches, params, out);
            let work = spans.iter().zip(caches).map(|(span, cache)| {
                let positions = span.past..span.past + span.rows.len();
                let scores: usize = positions.map(|i| params.reach.of(i, cache.len()).len()).sum();
                let k_dim = params.k_dim * (1 + params.distances.map_or(0, |distances| distances.parts()));
                (2 * scores * params.heads * (k_dim + params.v_dim), cache.bytes())
            });
            work.fold((0, 0), |(flops, bytes), (f, b)| (flops + f as u64, bytes + b))
        });
    }

    fn products(&self, x: &Tensor, y: &Tensor, out: &mut Tensor) {
        self.counts.counted(|| {
            self.inner.products(x, y, out);
            (2 * (x.rows() * y.rows() * x.cols()) as u64, 0)
        });
    }

    fn causal_conv(
        &self,
        conv: &CausalConv<'_>,
        spans: &[Span],
        states: &mut [&mut [f32]],
        out: &mut Tensor,
    ) {
        self.counts.counted(|| {
            self.inner.causal_conv(conv, spans, states, out);
            (2 * (out.rows() * conv.weight.len()) as u64, 0)
        });
    }

    fn scan(&self, scan: &Scan<'_>, spans: &[Span], states: &mut [&mut [f32]], out: &mut Tensor) {
        self.counts.counted(|| {
            self.inner.scan(scan, spans, states, out);
            (6 * (scan.x.rows() * scan.a.len()) as u64, 0)
        });
    }

    fn scan_heads(&self, scan: &HeadScan<'_>, spans: &[Span], states: &mut [&mut [f32]], out: &mut Tensor) {
        self.counts.counted(|| {
            self.inner.scan_heads(scan, spans, states, out);
            (5 * (out.rows() * out.cols() * scan.state) as u64, 0)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Layout, LinearPart};
    use super::*;
    use crate::reference::Reference;

    #[test]
    fn a_product_counts_its_weights_once() {
        let backend = Counting::new(Arc::new(Reference));
        let weight = Array::from_f32(vec![3, 5], &[1.0; 15]);
        let part = LinearPart { weight: &weight, layout: Layout::OutIn, outputs: None };
        let linear = backend.linear(&[part], WeightType::F32);
        linear.apply(&Tensor::zeros(2, 5), &Epilogue::default(), &mut Tensor::zeros(2, 3));
        let work = backend.take();
        assert_eq!((work.flops, work.bytes, work.operations), (2 * 2 * 3 * 5, 15 * 4, 1));
        assert!(work.time > Duration::ZERO);
        assert_eq!(backend.take(), Work::default());
    }
}
