//! How fast are the operations of the CPU backend, alone? `cargo bench --bench kernels [FILTER]`
//!
//! Weights are as many as a model of twelve layers has, and taken in turn, so that they come from memory as they do there.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use smelt::WeightType;
use smelt::backend::{
    Activation, AttentionParams, Backend, Compute, Epilogue, KvCache, Layout, Linear, LinearPart, Norm,
    Reach, Span,
};
use smelt::cpu::Cpu;
use smelt::tensor::{Array, Tensor};

fn main() {
    divan::main();
}

const THREADS: [usize; 2] = [1, 2];

fn tensor(rows: usize, cols: usize) -> Tensor {
    let data = (0..rows * cols).map(|i| (i * 7919 % 1000) as f32 / 1000.0 - 0.5).collect();
    Tensor::from_vec(rows, cols, data)
}

fn linears(cpu: &Cpu, kept: WeightType, copies: usize) -> Vec<Box<dyn Linear>> {
    let weight = Array::from_f32(vec![N, K], tensor(N, K).data());
    let part = || LinearPart { weight: &weight, layout: Layout::OutIn, outputs: None };
    (0..copies).map(|_| cpu.linear(&[part()], kept)).collect()
}

const K: usize = 768;
const N: usize = 2304;

/// `[rows, 768] x [2304, 768]ᵀ`; items are floating-point operations, bytes those of the weights.
fn product(bencher: Bencher<'_, '_>, rows: usize, threads: usize, kept: WeightType, copies: usize) {
    let cpu = Cpu::new(Some(threads));
    let linears = linears(&cpu, kept, copies);
    let (x, mut out, mut turn) = (tensor(rows, K), Tensor::zeros(rows, N), 0);
    bencher
        .counter(ItemsCount::new(2 * rows * K * N))
        .counter(BytesCount::new(linears[0].bytes()))
        .bench_local(|| {
            turn = (turn + 1) % linears.len();
            linears[turn].apply(black_box(&x), &Epilogue::default(), &mut out);
        });
}

mod linear {
    use super::*;

    const ROWS: [usize; 11] = [1, 2, 3, 4, 6, 8, 12, 16, 32, 128, 512];

    #[divan::bench(args = ROWS, consts = THREADS)]
    fn f32<const T: usize>(bencher: Bencher<'_, '_>, rows: usize) {
        product(bencher, rows, T, WeightType::F32, 12);
    }

    #[divan::bench(args = ROWS, consts = THREADS)]
    fn bf16<const T: usize>(bencher: Bencher<'_, '_>, rows: usize) {
        product(bencher, rows, T, WeightType::Bf16, 12);
    }

    #[divan::bench(args = ROWS, consts = THREADS)]
    fn q8<const T: usize>(bencher: Bencher<'_, '_>, rows: usize) {
        product(bencher, rows, T, WeightType::Q8, 12);
    }

    #[divan::bench(args = ROWS, consts = THREADS)]
    fn q4<const T: usize>(bencher: Bencher<'_, '_>, rows: usize) {
        product(bencher, rows, T, WeightType::Q4, 12);
    }

    #[divan::bench(args = ROWS)]
    fn f32_in_cache(bencher: Bencher<'_, '_>, rows: usize) {
        product(bencher, rows, 1, WeightType::F32, 1);
    }
}

/// Attention of 12 heads of 64 columns; items are floating-point operations, or, where keys and values are kept for it, numbers.
mod attention {
    use super::*;

    const HEADS: usize = 12;
    const DIM: usize = 64;

    fn cpu(threads: usize, compute: Compute) -> Cpu {
        Cpu::new(Some(threads)).with_compute(compute)
    }

    fn cache(compute: Compute) -> KvCache {
        KvCache::new(compute, HEADS, DIM, DIM)
    }

    fn attend(bencher: Bencher<'_, '_>, len: usize, past: usize, reach: Reach, cpu: Cpu) {
        let compute = cpu.compute();
        let x = tensor(len, 3 * HEADS * DIM);
        let mut cache = cache(compute);
        let one = tensor(1, HEADS * DIM);
        (0..past).for_each(|_| cache.push(one.data(), one.data()));
        let spans = [Span { rows: 0..len, past }];
        cpu.append_kv(&x, HEADS * DIM, 2 * HEADS * DIM, &spans, &mut [&mut cache]);
        let params = AttentionParams {
            heads: HEADS,
            kv_heads: HEADS,
            k_dim: DIM,
            v_dim: DIM,
            scale: 0.125,
            softcap: None,
            bias: None,
            reach,
            sinks: None,
            distances: None,
        };
        let scores: usize = (0..len).map(|i| reach.of(past + i, past + len).len()).sum();
        let mut out = Tensor::zeros(len, HEADS * DIM);
        bencher
            .counter(ItemsCount::new(4 * scores * HEADS * DIM))
            .bench_local(|| cpu.attention(black_box(&x), 0, &spans, &[&cache], &params, &mut out));
    }

    fn append(bencher: Bencher<'_, '_>, len: usize, compute: Compute) {
        let cpu = cpu(1, compute);
        let x = tensor(len, 3 * HEADS * DIM);
        let spans = [Span { rows: 0..len, past: 0 }];
        let mut memory = Vec::new();
        bencher.counter(ItemsCount::new(2 * len * HEADS * DIM)).bench_local(|| {
            let mut cache = cache(compute).in_memory(std::mem::take(&mut memory));
            cpu.append_kv(black_box(&x), HEADS * DIM, 2 * HEADS * DIM, &spans, &mut [&mut cache]);
            memory = cache.into_pages();
        });
    }

    #[divan::bench(args = [1, 8, 128])]
    fn append_f32(bencher: Bencher<'_, '_>, len: usize) {
        append(bencher, len, Compute::F32);
    }

    #[divan::bench(args = [1, 8, 128])]
    fn append_bf16(bencher: Bencher<'_, '_>, len: usize) {
        append(bencher, len, Compute::Bf16);
    }

    #[divan::bench(args = [8, 32, 128, 512], consts = THREADS)]
    fn encoder<const T: usize>(bencher: Bencher<'_, '_>, len: usize) {
        attend(bencher, len, 0, Reach::ALL, cpu(T, Compute::F32));
    }

    #[divan::bench(args = [8, 128])]
    fn encoder_bf16(bencher: Bencher<'_, '_>, len: usize) {
        attend(bencher, len, 0, Reach::ALL, cpu(1, Compute::Bf16));
    }

    #[divan::bench(args = [128, 512, 1024], consts = THREADS)]
    fn prompt<const T: usize>(bencher: Bencher<'_, '_>, len: usize) {
        attend(bencher, len, 0, Reach::CAUSAL, cpu(T, Compute::F32));
    }

    #[divan::bench(args = [16, 128])]
    fn token_bf16(bencher: Bencher<'_, '_>, past: usize) {
        attend(bencher, 1, past, Reach::CAUSAL, cpu(1, Compute::Bf16));
    }

    #[divan::bench(args = [16, 128, 1000], consts = THREADS)]
    fn token<const T: usize>(bencher: Bencher<'_, '_>, past: usize) {
        attend(bencher, 1, past, Reach::CAUSAL, cpu(T, Compute::F32));
    }
}

/// What treats rows one by one, `[128, 768]`; bytes are those of the input.
mod rows {
    use super::*;

    fn each(bencher: Bencher<'_, '_>, mut f: impl FnMut(&Cpu, &mut Tensor, &mut Tensor)) {
        let cpu = Cpu::new(Some(1));
        let (mut x, mut y) = (tensor(128, K), tensor(128, K));
        bencher.counter(BytesCount::new(4 * 128 * K)).bench_local(|| f(&cpu, &mut x, &mut y));
    }

    #[divan::bench]
    fn layer_norm(bencher: Bencher<'_, '_>) {
        let weight = vec![1.0; K];
        each(bencher, |cpu, x, y| {
            let norm = Norm { weight: Some(&weight), bias: Some(&weight), eps: 1e-5, width: K };
            cpu.layer_norm(x, &norm, y);
        });
    }

    #[divan::bench(args = [Activation::Gelu, Activation::GeluTanh, Activation::Silu])]
    fn activate(bencher: Bencher<'_, '_>, act: Activation) {
        let cpu = Cpu::new(Some(1));
        bencher
            .counter(BytesCount::new(4 * 128 * K))
            .with_inputs(|| tensor(128, K))
            .bench_local_refs(|x| cpu.activate(act, x));
    }

    #[divan::bench]
    fn add(bencher: Bencher<'_, '_>) {
        each(bencher, |cpu, x, y| cpu.add(y, x));
    }
}
