//! The plain backend: one obvious loop per operation, sums in float64. Slow, and the truth that `cpu` is
//! tested against.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::backend::{
    Activation, AttentionParams, Backend, CausalConv, Compute, Epilogue, HeadScan, KvCache, LaidOut, Layout,
    Linear, LinearWeights, Norm, Rotation, Scan, Span, WeightType,
    quantise::{block_inputs, quantise, scale},
};
use crate::tensor::{Array, Tensor};

/// The plain backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// Weights as they are stored, `[outputs, inputs]`.
#[derive(Debug)]
struct Matrix {
    inputs: usize,
    weights: Vec<f32>,
}

impl Matrix {
    fn new(map: &LinearWeights<'_>) -> Self {
        let mut weights = Vec::new();
        let mut inputs = 0;
        for part in &map.parts {
            let stored = part.weight.to_f32();
            let [rows, cols] = part.weight.shape() else { panic!("a linear weight has two axes") };
            let (outputs, at): (usize, &dyn Fn(usize, usize) -> usize) = match part.layout {
                Layout::OutIn => (*rows, &|o, i| o * cols + i),
                Layout::InOut => (*cols, &|o, i| i * cols + o),
            };
            inputs = stored.len() / outputs;
            let order: Vec<usize> = match part.outputs {
                Some(order) => order.iter().map(|o| *o as usize).collect(),
                None => (0..outputs).collect(),
            };
            for o in order {
                let row: Vec<f32> = (0..inputs).map(|i| stored[at(o, i)]).collect();
                weights.extend(round(&row, map.kept));
            }
            part.weight.release_storage();
        }
        Matrix { inputs, weights }
    }
}

impl Linear for Matrix {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.weights.len() / self.inputs
    }

    fn bytes(&self) -> u64 {
        4 * self.weights.len() as u64
    }

    fn apply(&self, x: &Tensor, epilogue: &Epilogue<'_>, out: &mut Tensor) {
        assert_eq!((x.cols(), out.cols()), (self.inputs, self.outputs()));
        for i in 0..x.rows() {
            for (j, weights) in self.weights.chunks(self.inputs).enumerate() {
                let mut y = dot(x.row(i), weights);
                if let Some(bias) = epilogue.bias {
                    y += f64::from(bias[j]);
                }
                if let Some(act) = epilogue.act {
                    y = act.exact(y);
                }
                if let Some(mul) = epilogue.mul {
                    y *= f64::from(mul.row(i)[j]);
                }
                if epilogue.accumulate {
                    y += f64::from(out.row(i)[j]);
                }
                out.row_mut(i)[j] = y as f32;
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

impl Backend for Reference {
    fn name(&self) -> String {
        "reference".into()
    }

    fn rows_at_once(&self) -> usize {
        1
    }

    fn compute(&self) -> Compute {
        Compute::F32
    }

    fn linears(&self, maps: &[LinearWeights<'_>], _: Option<Array>) -> LaidOut {
        let maps = maps.iter().map(|map| Box::new(Matrix::new(map)) as Box<dyn Linear>).collect();
        LaidOut { maps, packed: None }
    }

    fn linear_bytes(&self, inputs: usize, outputs: usize, _: WeightType) -> u64 {
        (inputs as u64).saturating_mul(outputs as u64).saturating_mul(4)
    }

    fn embedding(&self, table: &Array, ids: &[u32], accumulate: bool, out: &mut Tensor) {
        let cols = out.cols();
        assert_eq!((ids.len(), table.shape().last()), (out.rows(), Some(&cols)), "shapes of an embedding");
        let mut row = vec![0.0; cols];
        for (i, id) in ids.iter().enumerate() {
            table.read_f32(*id as usize * cols, &mut row);
            for (out, x) in out.row_mut(i).iter_mut().zip(&row) {
                *out = if accumulate { *out + x } else { *x };
            }
        }
    }

    fn layer_norm(&self, x: &Tensor, norm: &Norm<'_>, out: &mut Tensor) {
        each_run(x, norm, out, |x| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
            (mean, (variance + f64::from(norm.eps)).sqrt())
        });
    }

    fn rms_norm(&self, x: &Tensor, norm: &Norm<'_>, out: &mut Tensor) {
        each_run(x, norm, out, |x| {
            let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            (0.0, (square + f64::from(norm.eps)).sqrt())
        });
    }

    fn norm_columns(&self, x: &mut Tensor, columns: Range<usize>, norm: &Norm<'_>, centre: bool) {
        let some = x.columns(columns.clone());
        let mut normed = some.clone();
        if centre {
            self.layer_norm(&some, norm, &mut normed)
        } else {
            self.rms_norm(&some, norm, &mut normed)
        }
        for row in 0..x.rows() {
            x.row_mut(row)[columns.clone()].copy_from_slice(normed.row(row));
        }
    }

    fn activate(&self, act: Activation, x: &mut Tensor) {
        x.data_mut().iter_mut().for_each(|x| *x = act.exact(f64::from(*x)) as f32);
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of a sum");
        x.data_mut().iter_mut().zip(y.data()).for_each(|(x, y)| *x += y);
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        x.data_mut().iter_mut().for_each(|x| *x *= factor);
    }

    fn rope(&self, x: &mut Tensor, start: usize, heads: usize, head_dim: usize, rope: &Rotation<'_>) {
        let pairs = rope.cos.cols();
        for i in 0..x.rows() {
            for h in 0..heads {
                for p in 0..pairs {
                    let first = start + h * head_dim;
                    let (a, b) = match rope.interleaved {
                        true => (first + 2 * p, first + 2 * p + 1),
                        false => (first + p, first + pairs + p),
                    };
                    let (cos, sin) = (f64::from(rope.cos.row(i)[p]), f64::from(rope.sin.row(i)[p]));
                    let (u, v) = (f64::from(x.row(i)[a]), f64::from(x.row(i)[b]));
                    x.row_mut(i)[a] = (u * cos - v * sin) as f32;
                    x.row_mut(i)[b] = (u * sin + v * cos) as f32;
                }
            }
        }
    }

    fn append_kv(
        &self,
        x: &Tensor,
        k_start: usize,
        v_start: usize,
        spans: &[Span],
        caches: &mut [&mut KvCache],
    ) {
        for (span, cache) in spans.iter().zip(caches) {
            let (k, v) = (cache.kv_heads() * cache.k_dim(), cache.kv_heads() * cache.v_dim());
            for i in span.rows.clone() {
                cache.push(&x.row(i)[k_start..k_start + k], &x.row(i)[v_start..v_start + v]);
            }
        }
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
        for (span, cache) in spans.iter().zip(caches) {
            for (i, row) in span.rows.clone().enumerate() {
                for h in 0..params.heads {
                    let q = &x.row(row)[q_start + h * params.k_dim..][..params.k_dim];
                    let head = attend(q, h, span.past + i, cache, params);
                    out.row_mut(row)[h * params.v_dim..][..params.v_dim].copy_from_slice(&head);
                }
            }
        }
    }

    fn products(&self, x: &Tensor, y: &Tensor, out: &mut Tensor) {
        for i in 0..x.rows() {
            for j in 0..y.rows() {
                out.row_mut(i)[j] = dot(x.row(i), y.row(j)) as f32;
            }
        }
    }

    fn causal_conv(
        &self,
        conv: &CausalConv<'_>,
        spans: &[Span],
        states: &mut [&mut [f32]],
        out: &mut Tensor,
    ) {
        let channels = out.cols();
        let before = conv.weight.len() / channels - 1;
        for (span, state) in spans.iter().zip(states) {
            for ch in 0..channels {
                let kept = (0..before).map(|k| state[k * channels + ch]);
                let inputs: Vec<f32> =
                    kept.chain(span.rows.clone().map(|row| conv.x.row(row)[conv.start + ch])).collect();
                let weights: Vec<f32> = (0..=before).map(|k| conv.weight[k * channels + ch]).collect();
                for (i, row) in span.rows.clone().enumerate() {
                    let sum =
                        dot(&inputs[i..=i + before], &weights) + conv.bias.map_or(0.0, |b| b[ch].into());
                    out.row_mut(row)[ch] = conv.act.exact(sum) as f32;
                }
                let last = &inputs[inputs.len() - before..];
                last.iter().enumerate().for_each(|(k, x)| state[k * channels + ch] = *x);
            }
        }
    }

    fn scan(&self, scan: &Scan<'_>, spans: &[Span], states: &mut [&mut [f32]], out: &mut Tensor) {
        let inner = scan.d.len();
        let n = scan.a.len() / inner;
        for (span, state) in spans.iter().zip(states) {
            for row in span.rows.clone() {
                let (b, c) = scan.bc.row(row)[scan.start..scan.start + 2 * n].split_at(n);
                for (ch, d) in scan.d.iter().enumerate() {
                    let (x, dt) = (f64::from(scan.x.row(row)[ch]), f64::from(scan.dt.row(row)[ch]));
                    let mut y = f64::from(*d) * x;
                    for i in 0..n {
                        let s = &mut state[i * inner + ch];
                        let decay = (dt * f64::from(scan.a[i * inner + ch])).exp();
                        *s = (decay * f64::from(*s) + dt * f64::from(b[i]) * x) as f32;
                        y += f64::from(c[i]) * f64::from(*s);
                    }
                    out.row_mut(row)[ch] = y as f32;
                }
            }
        }
    }

    fn scan_heads(&self, scan: &HeadScan<'_>, spans: &[Span], states: &mut [&mut [f32]], out: &mut Tensor) {
        let (heads, head_dim, groups, n) = (scan.a.len(), scan.head_dim, scan.groups, scan.state);
        for (span, state) in spans.iter().zip(states) {
            for row in span.rows.clone() {
                let (x, bc) = scan.xbc.row(row).split_at(heads * head_dim);
                let (b, c) = bc.split_at(groups * n);
                for h in 0..heads {
                    let group = h / (heads / groups);
                    let (dt, d) = (f64::from(scan.dt.row(row)[h]), f64::from(scan.d[h]));
                    let decay = (dt * f64::from(scan.a[h])).exp();
                    for ch in h * head_dim..(h + 1) * head_dim {
                        let x = f64::from(x[ch]);
                        let mut y = d * x;
                        for i in 0..n {
                            let s = &mut state[(h * n + i) * head_dim + ch % head_dim];
                            *s = (decay * f64::from(*s) + dt * x * f64::from(b[group * n + i])) as f32;
                            y += f64::from(c[group * n + i]) * f64::from(*s);
                        }
                        out.row_mut(row)[ch] = y as f32;
                    }
                }
            }
        }
    }
}

/// One query head `h` at position `i`, over a cache; zeros if it sees no key.
fn attend(q: &[f32], h: usize, i: usize, cache: &KvCache, params: &AttentionParams<'_>) -> Vec<f32> {
    let kv_head = h / (params.heads / params.kv_heads);
    let keys = params.reach.of(i, cache.len());
    let score = |j: usize| {
        let k: Vec<f32> = (0..params.k_dim).map(|d| cache.key(kv_head, j, d)).collect();
        let mut product = dot(q, &k);
        if let Some(distances) = params.distances {
            let with = |of: Option<&Tensor>, x: &[f32]| {
                of.map_or(0.0, |of| dot(x, &of.row(distances.row(i, j))[h * params.k_dim..][..params.k_dim]))
            };
            product += with(distances.keys, q) + with(distances.queries, &k);
        }
        let mut score = product * f64::from(params.scale);
        if let Some(cap) = params.softcap {
            score = f64::from(cap) * (score / f64::from(cap)).tanh();
        }
        score + params.bias.map_or(0.0, |bias| f64::from(bias.at(h, i, j)))
    };
    let scores: Vec<f64> = keys.clone().map(score).collect();
    let sink = params.sinks.map(|sinks| f64::from(sinks[h]));
    let largest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - largest).exp());
    let value = |d: usize| {
        let sum: f64 =
            keys.clone().zip(&weights).map(|(j, w)| w * f64::from(cache.value(kv_head, j, d))).sum();
        if weights.is_empty() { 0.0 } else { (sum / total) as f32 }
    };
    (0..params.v_dim).map(value).collect()
}

/// Each run of `width` columns of each row: `(x - shift) / divisor`, then weight and bias.
fn each_run(x: &Tensor, norm: &Norm<'_>, out: &mut Tensor, measure: impl Fn(&[f64]) -> (f64, f64)) {
    for i in 0..x.rows() {
        for start in (0..x.cols()).step_by(norm.width) {
            let run: Vec<f64> = x.row(i)[start..start + norm.width].iter().map(|x| f64::from(*x)).collect();
            let (shift, divisor) = measure(&run);
            for (c, x) in run.iter().enumerate() {
                // One element per column of the run, or one per column of the row.
                let of = |v: &[f32]| f64::from(if v.len() == norm.width { v[c] } else { v[start + c] });
                let y = (x - shift) / divisor * norm.weight.map_or(1.0, of) + norm.bias.map_or(0.0, of);
                out.row_mut(i)[start + c] = y as f32;
            }
        }
    }
}

/// A weight as it is after being kept in `dtype`.
fn round(row: &[f32], kept: WeightType) -> Vec<f32> {
    let each = |f: fn(f32) -> f32| row.iter().map(|x| f(*x)).collect();
    let blocks = |bits| {
        let block = |row: &[f32]| {
            let furthest = row.iter().fold(0.0, |a: f32, b| if b.abs() > a.abs() { *b } else { a });
            let scale = if row.iter().all(|w| w.is_finite()) { scale(furthest, bits) } else { f32::NAN };
            row.iter().map(|w| f32::from(quantise(*w, scale, bits)) * scale).collect::<Vec<_>>()
        };
        row.chunks(block_inputs(bits)).flat_map(block).collect()
    };
    match kept {
        WeightType::F32 => each(|x| x),
        WeightType::F16 => each(|x| half::f16::from_f32(x).to_f32()),
        WeightType::Bf16 => each(|x| half::bf16::from_f32(x).to_f32()),
        WeightType::Q8 => blocks(8),
        WeightType::Q4 => blocks(4),
    }
}
