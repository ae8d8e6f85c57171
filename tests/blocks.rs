//! Every block on a ragged batch: the fast backend against the plain one.

use std::sync::Arc;

use smelt::backend::{Backend, Counting, WeightType};
use smelt::cpu::{Cpu, SimdLevel};
use smelt::model::{Batch, LoadOptions, Network, Output};
use smelt::nn::BLOCKS;
use smelt::plan::{self, Config, Plan, Target};
use smelt::reference::Reference;
use smelt::spec::Source;
use smelt::tensor::{Array, Tensor};
use smelt::weights::{BundleData, Checkpoint, Index, Repository, write_bundle};

/// A value that begins with token vectors of width 20, and the tensors that it needs beside theirs.
struct Case {
    block: &'static str,
    steps: &'static str,
    tensors: &'static [(&'static str, &'static [usize])],
}

const QKV: &[(&str, &[usize])] = &[
    ("q.weight", &[20, 20]),
    ("q.bias", &[20]),
    ("k.weight", &[10, 20]),
    ("k.bias", &[10]),
    ("v.weight", &[10, 20]),
    ("v.bias", &[10]),
    ("o.weight", &[20, 20]),
    ("o.bias", &[20]),
];

const SQUARE: &[(&str, &[usize])] = &[
    ("q.weight", &[20, 20]),
    ("q.bias", &[20]),
    ("k.weight", &[20, 20]),
    ("k.bias", &[20]),
    ("v.weight", &[20, 20]),
    ("v.bias", &[20]),
    ("o.weight", &[20, 20]),
    ("o.bias", &[20]),
];

const CASES: &[Case] = &[
    Case { block: "embedding", steps: "[]", tensors: &[] },
    Case {
        block: "embedding",
        steps: "[{sum: [{from: tokens}, {embedding: {at: p, of: positions, rows: 99, width: 20}}]}]",
        tensors: &[("p.weight", &[99, 20])],
    },
    Case { block: "from", steps: "[]", tensors: &[] },
    Case {
        block: "linear",
        steps: "[{linear: {at: l, out: 33}}]",
        tensors: &[("l.weight", &[33, 20]), ("l.bias", &[33])],
    },
    Case {
        block: "linear",
        steps: "[{residual: [{linear: {at: l, out: 20, layout: in_out, bias: b}}]}]",
        tensors: &[("l.weight", &[20, 20]), ("b", &[20])],
    },
    Case {
        block: "attention",
        steps: "[{residual: [{attention: {q: q, k: k, v: v, o: o, heads: 4, kv_heads: 2}}]}]",
        tensors: QKV,
    },
    Case {
        block: "attention",
        steps:
            "[{attention: {q: q, k: k, v: v, o: o, heads: 2, kv_heads: 1, causal: true, window: 3, softcap: 2,
                             rope: {theta: 100, dim: 4, interleaved: true}}}]",
        tensors: QKV,
    },
    Case {
        block: "attention",
        steps: "[{attention: {qkv: a, o: o, heads: 5, causal: true, scale: 0.3, rope: {}}}]",
        tensors: &[("a.weight", &[60, 20]), ("a.bias", &[60]), ("o.weight", &[20, 20]), ("o.bias", &[20])],
    },
    Case {
        block: "attention",
        steps: "[{attention: {q: q, k: k, v: v, o: o, heads: 2, kv_heads: 1, memory: tokens}}]",
        tensors: QKV,
    },
    Case {
        block: "attention",
        steps: "[{attention: {qkv: a, qkv_groups: 5, o: o, heads: 5, memory: tokens}}]",
        tensors: &[("a.weight", &[60, 20]), ("a.bias", &[60]), ("o.weight", &[20, 20]), ("o.bias", &[20])],
    },
    Case {
        block: "relative_bias",
        steps: "[{attention: {q: q, k: k, v: v, o: o, heads: 4, kv_heads: 2, bias: distances}}]",
        tensors: QKV,
    },
    Case {
        block: "mlp",
        steps: "[{residual: [{mlp: {up: u, down: d, inner: 37, act: gelu}}]}]",
        tensors: &[("u.weight", &[37, 20]), ("u.bias", &[37]), ("d.weight", &[20, 37]), ("d.bias", &[20])],
    },
    Case {
        block: "gated_mlp",
        steps: "[{sum: [[{gated_mlp: {gate: g, up: u, down: d, inner: 37, act: silu}}], [{scale: 0.5}]]}]",
        tensors: &[
            ("g.weight", &[37, 20]),
            ("g.bias", &[37]),
            ("u.weight", &[37, 20]),
            ("u.bias", &[37]),
            ("d.weight", &[20, 37]),
            ("d.bias", &[20]),
        ],
    },
    Case {
        block: "layer_norm",
        steps: "[{layer_norm: n}]",
        tensors: &[("n.weight", &[20]), ("n.bias", &[20])],
    },
    Case { block: "rms_norm", steps: "[{residual: [{rms_norm: n}]}]", tensors: &[("n.weight", &[20])] },
    Case { block: "activation", steps: "[{activation: gelu_new}]", tensors: &[] },
    Case { block: "scale", steps: "[{repeat: 3, body: {scale: 1.5}}]", tensors: &[] },
    Case { block: "pool", steps: "[{pool: first}]", tensors: &[] },
    Case { block: "pool", steps: "[{pool: mean}]", tensors: &[] },
    Case { block: "pool", steps: "[{pool: {rows: last, skip: 3}}]", tensors: &[] },
    Case { block: "concat", steps: "[{concat: [tokens, tokens]}]", tensors: &[] },
    Case {
        block: "parameter",
        steps: "[{parameter: {at: p, rows: 3, width: 7}}]",
        tensors: &[("p", &[3, 7])],
    },
    Case { block: "sinusoidal", steps: "[{sinusoidal: {of: positions, width: 12}}]", tensors: &[] },
    Case {
        block: "patches",
        steps: "[{patches: {at: p, width: 14, image: [8, 11], patch: [4, 5]}}]",
        tensors: &[("p.weight", &[14, 3, 4, 5]), ("p.bias", &[14])],
    },
    Case {
        block: "prepend",
        steps: "[{patches: {at: p, width: 14, image: [8, 11], patch: 4, bias: false}}, {prepend: [a, b]}]",
        tensors: &[("p.weight", &[14, 3, 4, 4]), ("a", &[1, 1, 14]), ("b", &[14])],
    },
    Case {
        block: "frames",
        steps: "[{frames: {frames: 9, bins: 6}}, {residual: {positions: p}},
                 {attention: {q: q, k: k, v: v, o: o, heads: 2}}]",
        tensors: &[
            ("p", &[9, 6]),
            ("q.weight", &[6, 6]),
            ("q.bias", &[6]),
            ("k.weight", &[6, 6]),
            ("k.bias", &[6]),
            ("v.weight", &[6, 6]),
            ("v.bias", &[6]),
            ("o.weight", &[6, 6]),
            ("o.bias", &[6]),
        ],
    },
    Case {
        block: "positions",
        steps: "[{frames: {frames: 9, bins: 6}}, {residual: {positions: p}}]",
        tensors: &[("p", &[1, 9, 6])],
    },
    Case {
        block: "conv1d",
        steps: "[{frames: {frames: 9, bins: 6}}, {conv1d: {at: c, out: 5, kernel: 3, stride: 2, padding: 1}}]",
        tensors: &[("c.weight", &[5, 6, 3]), ("c.bias", &[5])],
    },
    Case {
        block: "conv1d",
        steps: "[{residual: {conv1d: {at: c, out: 20, kernel: 5, padding: 2, bias: false}}}]",
        tensors: &[("c.weight", &[20, 20, 5])],
    },
    Case {
        block: "attention",
        steps: "[{attention: {qkv: a, qkv_groups: 2, qkv_order: qvk, o: o, heads: 4, kv_heads: 2, clamp: 0.4, sinks: s,
                  q_norm: {at: n, over: each}, k_norm: {at: m.*, over: each, kind: layer_norm, bias: true}}}]",
        tensors: &[
            ("a.weight", &[40, 20]),
            ("a.bias", &[40]),
            ("o.weight", &[20, 20]),
            ("o.bias", &[20]),
            ("s", &[4]),
            ("n.weight", &[4, 5]),
            ("m.0.weight", &[5]),
            ("m.0.bias", &[5]),
            ("m.1.weight", &[5]),
            ("m.1.bias", &[5]),
        ],
    },
    Case {
        block: "alibi",
        steps: "[{attention: {q: q, k: k, v: v, o: o, heads: 4, kv_heads: 2, causal: true, bias: slopes}}]",
        tensors: QKV,
    },
    Case {
        block: "alibi",
        steps: "[{attention: {q: q, k: k, v: v, o: o, heads: 4, kv_heads: 2, causal: true, bias: rounded}}]",
        tensors: QKV,
    },
    Case {
        block: "disentangled_attention",
        steps: "[{disentangled_attention: {q: q, k: k, v: v, o: o, heads: 4, distances: learned, pos_k: k, pos_q: q,
                  max_distance: 30}}]",
        tensors: SQUARE,
    },
    Case {
        block: "disentangled_attention",
        steps: "[{disentangled_attention: {q: q, k: k, v: v, o: o, heads: 4, distances: learned, pos_k: k, pos_q: q}}]",
        tensors: SQUARE,
    },
    Case {
        block: "disentangled_attention",
        steps: "[{disentangled_attention: {q: q, k: k, v: v, o: o, heads: 4, distances: learned, pos_k: q}}]",
        tensors: SQUARE,
    },
    Case {
        block: "disentangled_attention",
        steps: "[{disentangled_attention: {q: q, k: k, v: v, o: o, heads: 2, distances: learned, pos_q: v,
                  max_distance: 3}}]",
        tensors: SQUARE,
    },
    Case {
        block: "disentangled_attention",
        steps: "[{disentangled_attention: {q: q, k: k, v: v, o: o, heads: 4, distances: learned}}]",
        tensors: SQUARE,
    },
    Case {
        block: "latent_attention",
        steps: "[{latent_attention: {q_down: qd, q_norm: qn, q_up: qu, q_latent: 6, kv_down: kd, kv_norm: kn, kv_up: ku,
                  o: o, heads: 3, latent: 7, nope_dim: 5, rope_dim: 4, v_dim: 6, rope: {interleaved: true}}}]",
        tensors: &[
            ("qd.weight", &[6, 20]),
            ("qd.bias", &[6]),
            ("qn.weight", &[6]),
            ("qu.weight", &[27, 6]),
            ("qu.bias", &[27]),
            ("kd.weight", &[11, 20]),
            ("kd.bias", &[11]),
            ("kn.weight", &[7]),
            ("ku.weight", &[33, 7]),
            ("ku.bias", &[33]),
            ("o.weight", &[20, 18]),
            ("o.bias", &[20]),
        ],
    },
    Case {
        block: "gated_mlp",
        steps: "[{gated_mlp: {gate_up: g, down: d, inner: 9, act: gelu}}]",
        tensors: &[("g.weight", &[18, 20]), ("g.bias", &[18]), ("d.weight", &[20, 9]), ("d.bias", &[20])],
    },
    Case {
        block: "moe",
        steps: "[{product: [{moe: {router: r2, experts: 4, chosen: 2, normalise: true, score: sigmoid, correction: c,
                  groups: 2, chosen_groups: 1, gate_up: {at: e, bias: eb, layout: in_out}, interleaved: true,
                  down: {at: f, bias: fb}, inner: 6, act: quick_gelu, clamp: 0.5, up_offset: 1}},
                  [{linear: {at: l, out: 1}}, {activation: sigmoid}]]}]",
        tensors: &[
            ("r2.weight", &[4, 20]),
            ("r2.bias", &[4]),
            ("c", &[4]),
            ("e", &[4, 20, 12]),
            ("eb", &[4, 12]),
            ("f", &[4, 20, 6]),
            ("fb", &[4, 20]),
            ("l.weight", &[1, 20]),
            ("l.bias", &[1]),
        ],
    },
    Case {
        block: "moe",
        steps: "[{moe: {router: r2, experts: 3, chosen: 1, gate: e.*.g, up: e.*.u, down: e.*.d, inner: 4, act: silu}}]",
        tensors: &[
            ("r2.weight", &[3, 20]),
            ("r2.bias", &[3]),
            ("e.0.g.weight", &[4, 20]),
            ("e.0.g.bias", &[4]),
            ("e.0.u.weight", &[4, 20]),
            ("e.0.u.bias", &[4]),
            ("e.0.d.weight", &[20, 4]),
            ("e.0.d.bias", &[20]),
            ("e.1.g.weight", &[4, 20]),
            ("e.1.g.bias", &[4]),
            ("e.1.u.weight", &[4, 20]),
            ("e.1.u.bias", &[4]),
            ("e.1.d.weight", &[20, 4]),
            ("e.1.d.bias", &[20]),
            ("e.2.g.weight", &[4, 20]),
            ("e.2.g.bias", &[4]),
            ("e.2.u.weight", &[4, 20]),
            ("e.2.u.bias", &[4]),
            ("e.2.d.weight", &[20, 4]),
            ("e.2.d.bias", &[20]),
        ],
    },
    Case {
        block: "state_space",
        steps: "[{state_space: {in_proj: i, conv: c, x_proj: x, dt_proj: t, a_log: a, d: d, out_proj: o, inner: 70, state: 3,
                  kernel: 4, dt_rank: 2}}]",
        tensors: &[
            ("i.weight", &[140, 20]),
            ("i.bias", &[140]),
            ("c.weight", &[70, 1, 4]),
            ("c.bias", &[70]),
            ("x.weight", &[8, 70]),
            ("x.bias", &[8]),
            ("t.weight", &[70, 2]),
            ("t.bias", &[70]),
            ("a", &[70, 3]),
            ("d", &[70]),
            ("o.weight", &[20, 70]),
            ("o.bias", &[20]),
        ],
    },
    Case {
        block: "multi_head_state_space",
        steps: "[{multi_head_state_space: {in_proj: i, conv: c, dt_bias: t, dt_limit: [0.5, 0.8], a_log: a, d: d, norm: n,
                  out_proj: o, heads: 6, head_dim: 5, groups: 3, state: 19, kernel: 4}}]",
        tensors: &[
            ("i.weight", &[180, 20]),
            ("i.bias", &[180]),
            ("c.weight", &[144, 1, 4]),
            ("c.bias", &[144]),
            ("t", &[6]),
            ("a", &[6]),
            ("d", &[6]),
            ("n.weight", &[30]),
            ("o.weight", &[20, 30]),
            ("o.bias", &[20]),
        ],
    },
    Case {
        block: "multi_head_state_space",
        steps: "[{residual: {multi_head_state_space: {in_proj: {at: i, bias: false}, conv: c, conv_bias: false, dt_bias: t, a_log: a,
                  d: d, out_proj: {at: o, bias: false}, heads: 2, head_dim: 35, state: 3, kernel: 1, act: gelu}}}]",
        tensors: &[
            ("i.weight", &[148, 20]),
            ("c.weight", &[76, 1, 1]),
            ("t", &[2]),
            ("a", &[2]),
            ("d", &[2]),
            ("o.weight", &[20, 70]),
        ],
    },
    Case {
        block: "multi_head_state_space",
        steps: "[{multi_head_state_space: {in_proj: {at: i, bias: false}, conv: c, dt_bias: t, dt_limit: [0.1, .inf], a_log: a, d: d,
                  norm: {at: n, eps: 1e-3, groups: 1, before_gate: true}, out_proj: {at: o, bias: false}, heads: 4, head_dim: 3,
                  groups: 2, state: 16, kernel: 7}}]",
        tensors: &[
            ("i.weight", &[92, 20]),
            ("c.weight", &[76, 1, 7]),
            ("c.bias", &[76]),
            ("t", &[4]),
            ("a", &[4]),
            ("d", &[4]),
            ("n.weight", &[12]),
            ("o.weight", &[20, 12]),
        ],
    },
    Case { block: "scale", steps: "[{scale: {at: s}}]", tensors: &[("s", &[20])] },
    Case { block: "pool", steps: "[{pool: {rows: last, of: 3, ids_of: token_ids}}]", tensors: &[] },
    Case { block: "pool", steps: "[{pool: {rows: mean, start: 1}}]", tensors: &[] },
    Case { block: "pool", steps: "[{pool: largest_id}]", tensors: &[] },
    Case { block: "normalise", steps: "[{normalise: {}}]", tensors: &[] },
    Case {
        block: "similarity",
        steps: "[{pool: mean}, {similarity: {with: means, scale: s, bias: b}}]",
        tensors: &[("s", &[]), ("b", &[1])],
    },
    Case { block: "columns", steps: "[{columns: {start: 3, count: 7}}]", tensors: &[] },
];

/// How steps begin that take no input.
const SOURCES: [&str; 6] = ["{sum: [{from", "{concat", "{parameter", "{sinusoidal", "{patches", "{frames"];

fn plan(case: &Case, dir: &std::path::Path) -> smelt::Result<Plan> {
    // Steps that do not begin by themselves go on from the token vectors.
    let steps = match &case.steps[1..case.steps.len() - 1] {
        "" => "[{from: tokens}]".into(),
        steps if SOURCES.iter().any(|source| steps.starts_with(source)) => case.steps.to_owned(),
        steps => format!("[{{from: tokens}}, {steps}]"),
    };
    let yaml = format!(
        "smelt: 1
match: {{model_type: test}}
model:
  distances: {{relative_bias: {{at: r, buckets: 8, heads: 4, max_distance: 9, bidirectional: true}}}}
  slopes: {{alibi: {{heads: 4}}}}
  rounded: {{alibi: {{heads: 4, rounded: 2}}}}
  learned: {{parameter: {{at: w, rows: 16, width: 20}}}}
  means: [{{from: tokens}}, {{pool: first}}]
  tokens: {{embedding: {{at: e, of: token_ids, rows: 50, width: 20}}}}
heads:
  features: {{match: Test, result: {steps}}}
"
    );
    let index = Index::open(&Repository::open(dir).unwrap()).unwrap();
    let config =
        Config::parse("config.json", "{\"model_type\": \"test\", \"architectures\": [\"Test\"]}").unwrap();
    Plan::new(Source::yaml("test.yaml", yaml).unwrap(), &config, &index, &Target::Config)
}

fn network(case: &Case, dir: &std::path::Path, backend: Arc<dyn Backend>) -> Network {
    network_with(case, dir, backend, &LoadOptions::default())
}

fn network_with(
    case: &Case,
    dir: &std::path::Path,
    backend: Arc<dyn Backend>,
    options: &LoadOptions,
) -> Network {
    let plan = plan(case, dir).unwrap_or_else(|e| panic!("{}: {e}", case.block));
    let repository = Repository::open(dir).unwrap();
    let index = Index::open(&repository).unwrap();
    Network::load(plan, &Checkpoint::map(&repository, &index).unwrap(), backend, options).unwrap()
}

fn write(case: &Case, dir: &std::path::Path) {
    let mut state = 1u64;
    let mut random = |n: usize| {
        let next = |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n).map(next).collect::<Vec<f32>>()
    };
    let mut tensors: Vec<(&str, &[usize])> =
        vec![("e.weight", &[50, 20]), ("r.weight", &[8, 4]), ("w", &[16, 20])];
    tensors.extend(case.tensors);
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, shape)| {
            (name.to_owned(), shape.to_vec(), BundleData::F32(random(shape.iter().product())))
        })
        .collect();
    write_bundle(&dir.join("model.safetensors"), &tensors).unwrap();
}

/// Forty tokens of the largest id, one of them another.
const LONG: [u32; 40] = {
    let mut ids = [49; 40];
    ids[20] = 3;
    ids
};

#[test]
fn every_block_agrees_with_the_reference_on_a_ragged_batch() {
    for block in &BLOCKS {
        assert!(CASES.iter().any(|case| case.block == block.name), "no case for `{}`", block.name);
    }
    let sequences: [&[u32]; 4] =
        [&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], &[3], &[9, 3, 3], &LONG];
    let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
    let mut batch = Batch::of(sequences);
    batch.images = Some(Array::from_f32(vec![4, 3, 8, 11], &numbers(4 * 3 * 8 * 11)));
    batch.audio = Some(Array::from_f32(vec![4, 6, 9], &numbers(4 * 6 * 9)));
    let result = |outputs: Vec<Output>| outputs.into_iter().find(|o| o.name == "result").unwrap().value;
    for case in CASES {
        let dir = tempfile::tempdir().unwrap();
        write(case, dir.path());
        let plain = network(case, dir.path(), Arc::new(Reference));
        let expected = result(plain.forward(&batch, &["result"], false).unwrap());
        for level in SimdLevel::ALL {
            let Some(cpu) = Cpu::with_level(level, Some(2)) else { continue };
            let found =
                result(network(case, dir.path(), Arc::new(cpu)).forward(&batch, &["result"], false).unwrap());
            assert_eq!((found.rows(), found.cols()), (expected.rows(), expected.cols()));
            for (a, b) in found.data().iter().zip(expected.data()) {
                // Sums of some dozens of products of numbers below 1.
                assert!((a - b).abs() < 1e-5, "{} {level:?}: {a} instead of {b}", case.steps);
            }
        }
    }
}

/// What steps make of two sequences.
fn result(steps: &'static str, tensors: &'static [(&'static str, &'static [usize])]) -> Arc<Tensor> {
    let case = Case { block: "", steps, tensors };
    let dir = tempfile::tempdir().unwrap();
    write(&case, dir.path());
    let network = network(&case, dir.path(), Arc::new(Reference));
    network.forward(&Batch::of([&LONG[..], &[1, 2, 3]]), &["result"], false).unwrap().remove(0).value
}

#[test]
fn attention_to_the_own_tokens_as_memory_is_attention_to_itself() {
    let attention = |rest: &str| {
        let steps =
            format!("[{{attention: {{q: q, k: k, v: v, o: o, heads: 4, kv_heads: 2, clamp: 0.1{rest}}}}}]");
        result(Box::leak(steps.into_boxed_str()), QKV)
    };
    assert_eq!(attention(", memory: tokens"), attention(""));
}

#[test]
fn a_branch_that_is_left_out_is_none_and_one_column_counts_for_all() {
    let tensors: &[(&str, &[usize])] = &[("l.weight", &[1, 20]), ("l.bias", &[1])];
    for (steps, same) in [
        (
            "[{product: [{scale: 2}, {scale: 3, when: false}, {linear: {at: l, out: 1}}]}]",
            "[{product: [{scale: 2}, {linear: {at: l, out: 1}}]}]",
        ),
        (
            "[{product: [{linear: {at: l, out: 1}}, {scale: 2}]}]",
            "[{product: [{scale: 2}, {linear: {at: l, out: 1}}]}]",
        ),
        (
            "[{sum: [[{from: tokens, when: false}, {scale: 2}], {scale: 3, when: false}, {linear: {at: l, out: 1},
                     when: false}]}, {linear: {at: l, out: 1}}]",
            "[{scale: 2}, {linear: {at: l, out: 1}}]",
        ),
        (
            "[{scale: 2}, {product: [[{scale: 9, when: false}, {from: tokens}], {linear: {at: l, out: 1}}]}]",
            "[{product: [[{scale: 2}, {linear: {at: l, out: 1}}], []]}]",
        ),
    ] {
        assert!(result(steps, tensors) == result(same, tensors), "{steps}");
    }
}

#[test]
fn what_remembers_gives_the_same_bits_in_any_batch_and_token_by_token() {
    let ids: [&[u32]; 3] = [&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], &[3], &[9, 3, 3, 7, 12]];
    let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for case in CASES.iter().filter(|case| case.block.ends_with("state_space")) {
        let dir = tempfile::tempdir().unwrap();
        write(case, dir.path());
        for level in SimdLevel::ALL {
            let Some(one) = Cpu::with_level(level, Some(1)) else { continue };
            let one = network(case, dir.path(), Arc::new(one));
            let three = Cpu::with_level(level, Some(3)).unwrap();
            let batch = network(case, dir.path(), Arc::new(three))
                .forward(&Batch::of(ids), &["result"], false)
                .unwrap()
                .remove(0)
                .value;
            let mut row = 0;
            for sequence in ids {
                let mut session = one.session(1);
                for id in sequence {
                    let last = session.step(&[&[*id]], "result").unwrap();
                    assert_eq!(
                        bits(last.row(0)),
                        bits(batch.row(row)),
                        "{} {level:?}: row {row}",
                        case.steps
                    );
                    row += 1;
                }
                // Some tokens at once, then the others.
                let (first, rest) = sequence.split_at(sequence.len() / 2);
                let mut session = one.session(1);
                if !first.is_empty() {
                    session.step(&[first], "result").unwrap();
                }
                let last = session.step(&[rest], "result").unwrap();
                assert_eq!(bits(last.row(0)), bits(batch.row(row - 1)), "{} {level:?}", case.steps);
            }
        }
    }
}

#[test]
fn what_cannot_go_on_token_by_token_says_so() {
    let conv: &[(&str, &[usize])] = &[("c.weight", &[20, 20, 5])];
    let cases = [
        (
            "[{residual: {conv1d: {at: c, out: 20, kernel: 5, padding: 2, bias: false}}}]",
            conv,
            "this convolution",
        ),
        ("[{attention: {q: q, k: k, v: v, o: o, heads: 4, kv_heads: 2, memory: tokens}}]", QKV, "not causal"),
    ];
    for (steps, tensors, part) in cases {
        let case = Case { block: "", steps, tensors };
        let dir = tempfile::tempdir().unwrap();
        write(&case, dir.path());
        let network = network(&case, dir.path(), Arc::new(Reference));
        let mut session = network.session(1);
        let error = session.step(&[&[1, 2, 3]], "result").and_then(|_| session.step(&[&[4]], "result"));
        assert!(error.unwrap_err().to_string().contains(part), "{steps}");
    }
}

#[test]
fn a_step_that_gives_no_number_is_the_last() {
    let steps = "[{scale: 1e38}, {scale: 1e38}, {sum: [{scale: 1}, {scale: -1}]}]";
    let case = Case { block: "", steps, tensors: &[] };
    let dir = tempfile::tempdir().unwrap();
    write(&case, dir.path());
    let network = network(&case, dir.path(), Arc::new(Reference));
    let mut session = network.session(1);
    for part in ["not a finite number", "an earlier step failed"] {
        let error = session.step(&[&[1]], "result").unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(session.length(0), 0);
}

#[test]
fn tables_of_position_biases_count_in_the_limit_of_memory() {
    let weights = |steps: &'static str| {
        let case = Case { block: "", steps, tensors: QKV };
        let dir = tempfile::tempdir().unwrap();
        write(&case, dir.path());
        network(&case, dir.path(), Arc::new(Reference)).memory().weights
    };
    let without = weights("[{attention: {q: q, k: k, v: v, o: o, heads: 4, kv_heads: 2}}]");
    let with = weights("[{attention: {q: q, k: k, v: v, o: o, heads: 4, kv_heads: 2, bias: distances}}]");
    assert_eq!(with, without + 4 * 4 * 19); // for each head 9 distances on either side, and none
}

#[test]
fn sizes_that_a_state_space_cannot_have_are_errors() {
    let fields = |more: &str| {
        format!(
            "{{multi_head_state_space: {{in_proj: i, conv: c, dt_bias: t, a_log: a, d: d, norm: n, out_proj: o, {more}}}}}"
        )
    };
    let cases = [
        (
            "heads: 6, head_dim: 4, groups: 4, state: 3, kernel: 2",
            "expected a number of heads that 4 groups can share",
        ),
        ("heads: 4294967296, head_dim: 4294967296, state: 3, kernel: 2", "are too many"),
        ("heads: 4, head_dim: 4, groups: 4, state: 4294967296, kernel: 2", "are too many"),
        ("heads: 4, head_dim: 4, state: 3, kernel: 4294967296", "are too many"),
        (
            "heads: 4, head_dim: 4, state: 3, kernel: 2, norm: {at: n, groups: 3}",
            "can be cut into 3 parts, found 16",
        ),
        (
            "heads: 4, head_dim: 4, state: 3, kernel: 2, dt_limit: [2, 1]",
            "expected two numbers, the smaller one first",
        ),
        ("heads: 4, head_dim: 4, state: 3, kernel: 2, dt_limit: [0, .nan]", "expected two numbers"),
        ("heads: 4, head_dim: 4, state: 3, kernel: 2, dt_limit: 1", "expected two numbers"),
    ];
    for (more, expected) in cases {
        let more =
            if more.contains("norm") { fields(more).replacen("norm: n, ", "", 1) } else { fields(more) };
        let yaml = format!(
            "smelt: 1\nmatch: {{model_type: test}}\nheads:\n  features: {{match: Test, result: [{{embedding: {{at: e, \
             of: token_ids, rows: 50, width: 20}}}}, {more}]}}\nmodel: {{}}\n"
        );
        let dir = tempfile::tempdir().unwrap();
        write(&CASES[0], dir.path());
        let index = Index::open(&Repository::open(dir.path()).unwrap()).unwrap();
        let config =
            Config::parse("config.json", "{\"model_type\": \"test\", \"architectures\": [\"Test\"]}")
                .unwrap();
        let source = Source::yaml("test.yaml", yaml).unwrap();
        let error = Plan::new(source, &config, &index, &Target::Config).unwrap_err().to_string();
        assert!(error.contains(expected), "{more}: {error}");
    }
}

#[test]
fn fields_without_effect_are_errors() {
    let q_k_v = "q: q, k: k, v: v, o: o, heads: 4, kv_heads: 2";
    let attention = |field: &str| format!("attention: {{{q_k_v}, {field}}}");
    let latent = "kv_down: kd, kv_norm: kn, kv_up: ku, o: o, heads: 3, latent: 7, nope_dim: 5, rope_dim: 4, v_dim: 6, rope: {}";
    let moe = "router: r, experts: 3, chosen: 1, gate: e.*.g, up: e.*.u, down: e.*.d, inner: 4, act: silu";
    let disentangled =
        |field: &str| format!("disentangled_attention: {{q: q, k: k, v: v, o: o, heads: 4, {field}}}");
    let cases = [
        ("pool: {rows: mean, of: 2}".into(), "`of` has an effect only with `rows: first` or `rows: last`"),
        ("pool: {rows: mean, skip: 4}".into(), "`skip` has an effect only with `rows: last`"),
        ("pool: {rows: first, skip: 1}".into(), "`skip` has"),
        ("pool: {rows: largest_id, skip: 1}".into(), "`skip` has"),
        ("pool: {rows: last, of: 2, skip: 4}".into(), "`skip` has"),
        ("pool: {rows: last, start: 2}".into(), "`start` has an effect only with `rows: mean`"),
        ("pool: {rows: last, ids_of: token_ids}".into(), "`ids_of` has an effect only with `skip`, `of` or"),
        (attention("qkv_groups: 2"), "`qkv_groups` has an effect only with `qkv`"),
        (attention("qkv_order: qvk"), "`qkv_order` has an effect only with `qkv`"),
        (format!("moe: {{{moe}, interleaved: true}}"), "`interleaved` has an effect only with `gate_up`"),
        (format!("latent_attention: {{q: q, q_latent: 6, {latent}}}"), "needs `q`, or `q_down`"),
        (disentangled("pos_k: k"), "`pos_k` has an effect only with `distances`"),
        (disentangled("pos_q: q"), "`pos_q` has an effect only with `distances`"),
        (disentangled("max_distance: 30"), "`max_distance` has an effect only with `distances`"),
    ];
    let dir = tempfile::tempdir().unwrap();
    write(&CASES[0], dir.path());
    for (steps, expected) in cases {
        let steps: &'static str = Box::leak(format!("[{{{steps}}}]").into_boxed_str());
        let error = plan(&Case { block: "", steps, tensors: &[] }, dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{steps}: {error}");
    }
    // What says nothing may be said.
    for steps in [
        "[{pool: {rows: mean, of: null, skip: null, ids_of: null}}]",
        "[{pool: {rows: first, start: 0}}]",
        "[{attention: {q: q, k: k, v: v, o: o, heads: 4, kv_heads: 2, qkv_groups: 1, qkv_order: qkv}}]",
    ] {
        result(steps, if steps.contains("attention") { QKV } else { &[] });
    }
}

#[test]
fn a_norm_for_each_of_too_many_heads_is_refused_soon() {
    let steps = "[{attention: {q: q, k: k, v: v, o: o, heads: 4294967296, head_dim: 1, q_norm: {at: n.*, over: each}}}]";
    let dir = tempfile::tempdir().unwrap();
    write(&CASES[0], dir.path());
    let error = plan(&Case { block: "", steps, tensors: &[] }, dir.path()).unwrap_err().to_string();
    assert!(error.contains("more than 1048576 tensors"), "{error}");
}

#[test]
fn what_takes_no_input_says_so() {
    let sources = [
        ("embedding", "{at: e, of: token_ids, rows: 50, width: 20}"),
        ("from", "tokens"),
        ("concat", "[tokens]"),
        ("parameter", "{at: w, rows: 16, width: 20}"),
        ("sinusoidal", "{of: positions, width: 20}"),
        ("patches", "{at: p, width: 20, image: 8, patch: 4}"),
        ("frames", "{frames: 9, bins: 20}"),
        ("relative_bias", "{at: r, buckets: 8, heads: 4, max_distance: 9, bidirectional: true}"),
        ("alibi", "{heads: 4}"),
    ];
    let dir = tempfile::tempdir().unwrap();
    write(&CASES[0], dir.path());
    for block in BLOCKS.iter().filter(|block| block.is_source) {
        let (name, fields) = sources.iter().find(|(name, _)| *name == block.name).unwrap();
        let steps: &'static str = Box::leak(format!("[{{scale: 2}}, {{{name}: {fields}}}]").into_boxed_str());
        let error = plan(&Case { block: name, steps, tensors: &[] }, dir.path()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{name}` takes no input\n")), "{error}");
        let marked = error.lines().filter_map(|line| line.split_once('^')).map(|(_, rest)| rest.len() + 1);
        assert!(marked.eq([name.len()]) && error.contains("= help: begin a sequence with it"), "{error}");
    }
}

#[test]
fn a_kind_of_rope_that_is_null_is_none() {
    let [old, null, default] = [
        "[{attention: {q: q, k: k, v: v, o: o, heads: 2, kv_heads: 1, rope: {scaling: {type: linear, factor: 8}}}}]",
        "[{attention: {q: q, k: k, v: v, o: o, heads: 2, kv_heads: 1, rope: {scaling: {rope_type: null, type: linear,
                       factor: 8}}}}]",
        "[{attention: {q: q, k: k, v: v, o: o, heads: 2, kv_heads: 1, rope: {scaling: {rope_type: null}}}}]",
    ]
    .map(|steps| result(steps, QKV));
    assert!(null == old && null != default);
}

#[test]
fn the_work_of_a_block_is_what_is_explained() {
    let is_tested = |case: &&Case| case.block.ends_with("state_space") || case.block.starts_with("disent");
    for case in CASES.iter().filter(is_tested) {
        let dir = tempfile::tempdir().unwrap();
        write(case, dir.path());
        let counting = Arc::new(Counting::new(Arc::new(Reference)));
        let network = network(case, dir.path(), counting.clone());
        let work = || {
            counting.take();
            network.forward(&Batch::of([&[1, 2, 3, 4, 5, 6, 7][..]]), &["result"], false).unwrap();
            counting.take().flops
        };
        let (first, second) = (work(), work());
        let index = Index::open(&Repository::open(dir.path()).unwrap()).unwrap();
        let tokens = plan::Tokens { new: 7, past: 0 };
        let costs = plan::costs(network.plan(), &index, &Reference, None, tokens);
        assert_eq!(plan::totals(&costs).flops, first, "{}", case.steps);
        // Keys and queries of distances are kept.
        assert_eq!(second < first, case.steps.contains("pos_"), "{}: {second} of {first}", case.steps);
    }
}

#[test]
fn learned_distances_have_the_same_bits_beside_and_after_other_sequences() {
    let sequences: [&[u32]; 4] = [&[1, 2, 3, 4, 5], &LONG, &[3], &LONG[11..28]];
    let batch = Batch::of(sequences);
    for case in CASES.iter().filter(|case| case.block == "disentangled_attention") {
        let dir = tempfile::tempdir().unwrap();
        write(case, dir.path());
        for level in SimdLevel::ALL {
            for kept in [WeightType::F32, WeightType::Bf16, WeightType::Q8, WeightType::Q4] {
                let Some(cpu) = Cpu::with_level(level, Some(2)) else { continue };
                let compute = cpu.compute_for(Some(kept));
                let cpu = cpu.with_compute(compute);
                let options = LoadOptions { dtype: Some(kept), ..LoadOptions::default() };
                let cpu = Arc::new(cpu);
                let open = || network_with(case, dir.path(), cpu.clone(), &options);
                let result = |network: &Network, batch: &Batch| {
                    network.forward(batch, &["result"], false).unwrap().remove(0).value
                };
                let together = result(&open(), &batch);
                let used = open();
                for (ids, span) in sequences.into_iter().zip(&batch.input.spans) {
                    let alone = result(&open(), &Batch::of([ids]));
                    let after = result(&used, &Batch::of([ids]));
                    let rows = span.rows.start * alone.cols()..span.rows.end * alone.cols();
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    let message = format!("{} {level:?} {kept:?}: {} tokens", case.steps, ids.len());
                    assert_eq!(bits(&together.data()[rows]), bits(alone.data()), "{message}");
                    assert_eq!(bits(after.data()), bits(alone.data()), "{message}, after others");
                }
            }
        }
    }
}

#[test]
fn what_sequences_remember_counts_in_the_limit_of_memory() {
    // 0.9 MB of weights and 4 MB for each sequence.
    let case = Case {
        block: "multi_head_state_space",
        steps: "[{multi_head_state_space: {in_proj: {at: i, bias: false}, conv: c, conv_bias: false, dt_bias: t, a_log: a, d: d,
                  out_proj: {at: o, bias: false}, heads: 1, head_dim: 200, state: 5000, kernel: 1}}]",
        tensors: &[
            ("i.weight", &[10401, 20]),
            ("c.weight", &[10200, 1, 1]),
            ("t", &[1]),
            ("a", &[1]),
            ("d", &[1]),
            ("o.weight", &[20, 200]),
        ],
    };
    let dir = tempfile::tempdir().unwrap();
    write(&case, dir.path());
    let options = LoadOptions { memory_limit: Some(16 << 20), ..LoadOptions::default() };
    let network = network_with(&case, dir.path(), Arc::new(Reference), &options);
    assert!(network.forward(&Batch::of([&[1][..]]), &["result"], false).is_ok());
    // This backend computes one sequence after another; those of a session are all remembered.
    assert!(network.forward(&Batch::of([&[1][..]; 4]), &["result"], false).is_ok());
    let error = network.session(4).step(&[&[1][..]; 4], "result").unwrap_err().to_string();
    assert!(error.contains("more than the limit"), "{error}");
    // Far more than any machine has: asked for when the first tokens come, and refused then.
    let mut session = network.session(1 << 20);
    let error = session.step(&vec![&[1][..]; 1 << 20], "result").unwrap_err().to_string();
    assert!(error.contains("more than the limit"), "{error}");
}
