//! Every block on a ragged batch: the fast backend against the plain one.

use std::sync::Arc;

use smelt::backend::Backend;
use smelt::cpu::{Cpu, SimdLevel};
use smelt::model::{Batch, LoadOptions, Network, Output};
use smelt::nn::BLOCKS;
use smelt::plan::{Config, Plan, Target};
use smelt::reference::Reference;
use smelt::spec::Source;
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
    Case { block: "columns", steps: "[{columns: {start: 3, count: 7}}]", tensors: &[] },
];

fn network(case: &Case, dir: &std::path::Path, backend: Arc<dyn Backend>) -> Network {
    // Steps that do not begin by themselves go on from the token vectors.
    let steps = match &case.steps[1..case.steps.len() - 1] {
        "" => "[{from: tokens}]".into(),
        steps if steps.starts_with("{sum: [{from") => case.steps.to_owned(),
        steps => format!("[{{from: tokens}}, {steps}]"),
    };
    let yaml = format!(
        "smelt: 1
match: {{model_type: test}}
model:
  distances: {{relative_bias: {{at: r, buckets: 8, heads: 4, max_distance: 9, bidirectional: true}}}}
  tokens: {{embedding: {{at: e, of: token_ids, rows: 50, width: 20}}}}
heads:
  features: {{match: Test, result: {steps}}}
"
    );
    let repository = Repository::open(dir).unwrap();
    let index = Index::open(&repository).unwrap();
    let config =
        Config::parse("config.json", "{\"model_type\": \"test\", \"architectures\": [\"Test\"]}").unwrap();
    let source = Source::yaml("test.yaml", yaml).unwrap();
    let plan =
        Plan::new(source, &config, &index, &Target::Config).unwrap_or_else(|e| panic!("{}: {e}", case.block));
    Network::load(plan, &Checkpoint::map(&repository, &index).unwrap(), backend, &LoadOptions::default())
        .unwrap()
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
    let mut tensors: Vec<(&str, &[usize])> = vec![("e.weight", &[50, 20]), ("r.weight", &[8, 4])];
    tensors.extend(case.tensors);
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, shape)| {
            (name.to_owned(), shape.to_vec(), BundleData::F32(random(shape.iter().product())))
        })
        .collect();
    write_bundle(&dir.join("model.safetensors"), &tensors).unwrap();
}

#[test]
fn every_block_agrees_with_the_reference_on_a_ragged_batch() {
    for block in &BLOCKS {
        assert!(CASES.iter().any(|case| case.block == block.name), "no case for `{}`", block.name);
    }
    let sequences: [&[u32]; 4] =
        [&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], &[3], &[9, 3, 3], &[49; 40]];
    let batch = Batch::of(sequences);
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
