//! The fast backend: packed weights, SIMD kernels chosen at run time, and a thread pool.
//!
//! [`Cpu`] is the backend. The same bits come out whatever the number of threads and whatever else is in a batch; another set of
//! instructions may round differently.

mod dispatch;
mod kernels;
mod linear;
mod memory;
#[cfg(feature = "openblas")]
mod openblas;
mod pack;
mod peaks;
mod pool;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use crate::backend::{
    Activation, AttentionParams, Backend, CausalConv, Compute, DistanceVectors, HeadScan, KvCache, LaidOut,
    LinearWeights, Norm, Pair, Rotation, Scan, Span, WeightType,
};
use crate::error::count;
use crate::tensor::{Array, Spare, Tensor};
pub use dispatch::SimdLevel;
use dispatch::{ProductSimds, Simds, with_product_simd, with_simd};
use kernels::attention::{Attend, Scratch};
use kernels::causal_conv::CausalConvolution;
use kernels::distances::in_order_of_keys;
use kernels::fill::{FillPage, Places};
use kernels::matmul::panel_width;
use kernels::quantised::QuantisedRows;
use kernels::rows::{Activate, Normalise, NormaliseColumns, each_rows_mut, rotate};
use kernels::scan::{ScanChannels, ScanHeads};
use kernels::simd::{Checked, Simd};
use linear::Packed;
use pack::{Format, PACKING};
pub use peaks::{Meter, Peaks};
use pool::Pool;

/// The fast backend.
#[derive(Debug)]
pub struct Cpu {
    engine: Arc<Engine>,
    level: SimdLevel,
    compute: Compute,
    #[cfg(feature = "openblas")]
    openblas: bool,
}

/// Instructions and threads, and memory that is used again.
#[derive(Debug)]
struct Engine {
    simds: Simds,
    products: ProductSimds,
    pool: Pool,
    quantised: Spare<QuantisedRows>,
    pairs: Spare<Vec<Pair>>,
    attention: Spare<Scratch>,
    distances: Spare<Vec<f32>>,
}

impl Engine {
    fn run<K: Checked>(&self, kernel: K) -> K::Output {
        // SAFETY: the token stands for features that the machine has; the kernel asks for nothing else.
        with_simd!(self.simds, s => unsafe { s.run(kernel) })
    }

    /// Runs a kernel that multiplies small numbers.
    fn run_products<K: Checked>(&self, kernel: K) -> K::Output {
        // SAFETY: as above.
        with_product_simd!(self.products, s => unsafe { s.run(kernel) })
    }

    fn panel_width(&self) -> usize {
        fn width<S: Simd>(_: S) -> usize {
            panel_width::<S>()
        }
        with_simd!(self.simds, s => width(s))
    }

    /// Whether weights in bfloat16 are kept in 12 bits.
    fn codes(&self) -> bool {
        fn codes<S: Simd>(_: S) -> bool {
            S::CODED
        }
        with_simd!(self.simds, s => codes(s))
    }
}

impl Cpu {
    /// The backend with the fastest instructions of this machine and `threads` threads, at least one and at most [`MAX_THREADS`]; one per
    /// core by default.
    pub fn new(threads: Option<usize>) -> Cpu {
        let found = SimdLevel::ALL.into_iter().find_map(|level| Cpu::with_level(level, threads));
        // Plain Rust is always there.
        found.unwrap_or_else(|| unreachable!("no instructions"))
    }

    /// The backend with these instructions, if the machine has them; `threads` as in [`new`](Self::new).
    pub fn with_level(level: SimdLevel, threads: Option<usize>) -> Option<Cpu> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (simds, products) = level.detect()?;
        let pool = Pool::new(threads.unwrap_or_else(cores).clamp(1, MAX_THREADS));
        Some(Cpu {
            engine: Arc::new(Engine {
                simds,
                products,
                pool,
                quantised: Spare::default(),
                pairs: Spare::default(),
                attention: Spare::default(),
                distances: Spare::default(),
            }),
            level,
            compute: Compute::F32,
            #[cfg(feature = "openblas")]
            openblas: false,
        })
    }

    /// How linear maps with weights in bfloat16 and attention are multiplied, [`Compute::F32`] by default.
    pub fn with_compute(mut self, compute: Compute) -> Cpu {
        self.compute = compute;
        self
    }

    /// How a model is best computed whose weights are kept as `kept`: in bfloat16 if they are quantised, which loses more, and the
    /// processor has instructions for it.
    pub fn compute_for(&self, kept: Option<WeightType>) -> Compute {
        let is_quantised = matches!(kept, Some(WeightType::Q8 | WeightType::Q4));
        if is_quantised && self.level == SimdLevel::Avx512Bf16 { Compute::Bf16 } else { Compute::F32 }
    }

    /// Number of threads that compute.
    pub fn threads(&self) -> usize {
        self.engine.pool.threads()
    }

    /// Matrix products by OpenBLAS, with weights kept in float32, without rounding them first. Its sums run in an order that depends on the batch and on its own threads, so what
    /// this crate promises of equal bits does not hold.
    #[cfg(feature = "openblas")]
    pub fn with_openblas(mut self) -> Cpu {
        self.openblas = true;
        self
    }

    /// Writes keys and values into the pages of caches.
    fn fill(&self, parts: Vec<Places<'_>>) {
        self.engine.pool.run_each(parts.into_iter(), |places| match places.layout.compute {
            Compute::F32 => self.engine.run(FillPage { places, kept: PhantomData::<f32> }),
            Compute::Bf16 => self.engine.run_products(FillPage { places, kept: PhantomData::<Pair> }),
        });
    }

    /// The keys of distances as a cache has them, one for each distance, in the order in which keys lie.
    fn distance_keys(
        &self,
        distances: &DistanceVectors<'_>,
        params: &AttentionParams<'_>,
    ) -> Option<KvCache> {
        let keys = distances.keys?;
        let cache = KvCache::new(self.compute, params.heads, params.k_dim, 0);
        let mut cache = cache.in_memory(self.engine.distances.take());
        let rows = in_order_of_keys(distances.bucket);
        let span = Span { rows: 0..rows.len(), past: 0 };
        self.fill(Places::divided(keys, Some(&rows), 0, 0, &[span], &mut [&mut cache], self.threads()));
        Some(cache)
    }
}

/// The sum of products, in eight sums side by side.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (a, b) = (a.chunks(8), b.chunks(8));
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum()
}

/// Of the rows that are computed at once, those of a thread. Zen 5, 1 MiB of second-level cache, twelve layers of 768 columns with weights
/// of 8 bits: 266 ms for eight sequences of 128 tokens in groups of so many, 299 ms all at once.
const ROWS_OF_THREAD: usize = 256;

/// The most threads of a [`Cpu`]: more are a mistake.
pub const MAX_THREADS: usize = 1024;

impl Backend for Cpu {
    fn name(&self) -> String {
        let threads = count(self.threads(), "thread");
        let products = if self.compute == Compute::Bf16 { ", attention in bf16" } else { "" };
        format!("cpu ({:?}, {threads}{products})", self.level).to_lowercase()
    }

    fn rows_at_once(&self) -> usize {
        ROWS_OF_THREAD * self.threads()
    }

    fn compute(&self) -> Compute {
        self.compute
    }

    fn linears(&self, maps: &[LinearWeights<'_>], packed: Option<Array>) -> LaidOut {
        #[cfg(feature = "openblas")]
        if self.openblas {
            let blas = |map| Box::new(openblas::Blas::new(self.engine.clone(), map)) as _;
            return LaidOut { maps: maps.iter().map(blas).collect(), packed: None };
        }
        Packed::all(&self.engine, maps, self.compute, packed)
    }

    fn packing(&self) -> Option<String> {
        #[cfg(feature = "openblas")]
        if self.openblas {
            return None;
        }
        Some(format!("{PACKING}, {:?}, {:?}", self.level, self.compute).to_lowercase())
    }

    fn linear_bytes(&self, inputs: usize, outputs: usize, kept: WeightType) -> u64 {
        #[cfg(feature = "openblas")]
        if self.openblas {
            return (4 * inputs as u64).saturating_mul(outputs as u64);
        }
        let width = self.engine.panel_width();
        // Sizes come from a file: only what does not overflow can be packed.
        let fits = (inputs as u64).checked_mul(outputs as u64 + width as u64).is_some_and(|n| n < 1 << 60);
        let format = || Format::of(&self.engine, kept, self.compute, inputs);
        if fits { format().bytes(inputs, outputs, width) } else { u64::MAX / 4 }
    }

    fn embedding(&self, table: &Array, ids: &[u32], accumulate: bool, out: &mut Tensor) {
        let cols = out.cols();
        assert_eq!((ids.len(), table.shape().last()), (out.rows(), Some(&cols)), "shapes of an embedding");
        each_rows_mut(&self.engine.pool, out, |first, rows| {
            let mut row = vec![0.0; if accumulate { cols } else { 0 }];
            for (out, id) in rows.chunks_mut(cols.max(1)).zip(&ids[first..]) {
                if accumulate {
                    table.read_f32(*id as usize * cols, &mut row);
                    out.iter_mut().zip(&row).for_each(|(out, x)| *out += x);
                } else {
                    table.read_f32(*id as usize * cols, out);
                }
            }
        });
    }

    fn layer_norm(&self, x: &Tensor, norm: &Norm<'_>, out: &mut Tensor) {
        self.engine.run(Normalise { pool: &self.engine.pool, x, norm, centre: true, out });
    }

    fn rms_norm(&self, x: &Tensor, norm: &Norm<'_>, out: &mut Tensor) {
        self.engine.run(Normalise { pool: &self.engine.pool, x, norm, centre: false, out });
    }

    fn norm_columns(&self, x: &mut Tensor, columns: Range<usize>, norm: &Norm<'_>, centre: bool) {
        self.engine.run(NormaliseColumns { pool: &self.engine.pool, x, columns, norm, centre });
    }

    fn each_row(&self, x: &mut Tensor, task: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let cols = x.cols().max(1);
        each_rows_mut(&self.engine.pool, x, |first, rows| {
            rows.chunks_mut(cols).enumerate().for_each(|(i, row)| task(first + i, row));
        });
    }

    fn activate(&self, act: Activation, x: &mut Tensor) {
        each_rows_mut(&self.engine.pool, x, |_, x| self.engine.run(Activate { act, x }));
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        let cols = x.cols();
        assert_eq!((x.rows(), cols), (y.rows(), y.cols()), "shapes of a sum");
        each_rows_mut(&self.engine.pool, x, |first, x| {
            x.iter_mut().zip(&y.data()[first * cols..]).for_each(|(x, y)| *x += y)
        });
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        each_rows_mut(&self.engine.pool, x, |_, x| x.iter_mut().for_each(|x| *x *= factor));
    }

    fn rope(&self, x: &mut Tensor, start: usize, heads: usize, head_dim: usize, rope: &Rotation<'_>) {
        self.each_row(x, &|i, row| {
            rotate(&mut row[start..start + heads * head_dim], heads, head_dim, i, rope);
        });
    }

    fn append_kv(
        &self,
        x: &Tensor,
        k_start: usize,
        v_start: usize,
        spans: &[Span],
        caches: &mut [&mut KvCache],
    ) {
        assert_eq!(spans.len(), caches.len(), "a cache per sequence");
        self.fill(Places::divided(x, None, k_start, v_start, spans, caches, self.threads()));
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
        let (pool, spare) = (&self.engine.pool, &self.engine.attention);
        let distance_keys = params.distances.and_then(|distances| self.distance_keys(distances, params));
        macro_rules! attend {
            ($Word:ty) => {
                Attend {
                    pool,
                    x,
                    q_start,
                    spans,
                    caches,
                    params,
                    distance_keys: distance_keys.as_ref(),
                    out,
                    spare,
                    kept: PhantomData::<$Word>,
                }
            };
        }
        match self.compute {
            Compute::F32 => self.engine.run(attend!(f32)),
            Compute::Bf16 => self.engine.run_products(attend!(Pair)),
        }
        if let Some(keys) = distance_keys {
            self.engine.distances.give(keys.into_pages());
        }
    }

    fn products(&self, x: &Tensor, y: &Tensor, out: &mut Tensor) {
        let cols = out.cols();
        let rows = out.data_mut().chunks_mut(cols.max(1)).enumerate();
        self.engine.pool.run_each(rows, |(i, out)| {
            out.iter_mut().enumerate().for_each(|(j, out)| *out = dot(x.row(i), y.row(j)));
        });
    }

    fn causal_conv(
        &self,
        conv: &CausalConv<'_>,
        spans: &[Span],
        states: &mut [&mut [f32]],
        out: &mut Tensor,
    ) {
        self.engine.run(CausalConvolution { pool: &self.engine.pool, conv, spans, states, out });
    }

    fn scan(&self, scan: &Scan<'_>, spans: &[Span], states: &mut [&mut [f32]], out: &mut Tensor) {
        self.engine.run(ScanChannels { pool: &self.engine.pool, scan, spans, states, out });
    }

    fn scan_heads(&self, scan: &HeadScan<'_>, spans: &[Span], states: &mut [&mut [f32]], out: &mut Tensor) {
        self.engine.run(ScanHeads { pool: &self.engine.pool, scan, spans, states, out });
    }
}
