//! `smelt explain` agrees with what is computed and with what is stored.

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use smelt::backend::Counting;
use smelt::model::Batch;
use smelt::nn::Stream;
use smelt::plan::{self, Tokens, Use};
use smelt::reference::Reference;
use smelt::weights::{BundleData, Index, Repository, write_bundle};

/// Tokens of each sequence.
const TOKENS: u64 = 8;

#[test]
fn flops_are_those_that_are_counted() {
    let (mut compared, mut wrong) = (0, Vec::new());
    for dir in common::cases() {
        let counting = Arc::new(Counting::new(Arc::new(Reference)));
        let network = common::load(&dir, counting.clone()).unwrap();
        let plan = network.plan();
        let streams: Vec<Stream> = plan.declared.streams.iter().copied().collect();
        // What a decoder is given is the input, one token later, only where the plan says so.
        if streams != [Stream::Input] {
            continue;
        }
        let ids: Vec<u32> = (0..TOKENS as u32).map(|i| 3 + 5 * i).collect();
        let batch = Batch::of([&ids[..]]);
        counting.take();
        if network.forward(&batch, &[], false).is_err() {
            continue;
        }
        let counted = counting.take().flops;
        let index = Index::open(&Repository::open(&dir).unwrap()).unwrap();
        let tokens = Tokens { new: TOKENS, past: 0 };
        let found = plan::totals(&plan::costs(plan, &index, &Reference, None, tokens)).flops;
        compared += 1;
        if found != counted {
            wrong.push(format!("{}: counted {counted}, explained {found}", dir.display()));
        }
    }
    assert!(compared > 40, "{compared}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_stored_tensor_is_told_and_counted_once() {
    for dir in common::cases() {
        let network = common::load(&dir, Arc::new(Reference)).unwrap();
        let index = Index::open(&Repository::open(&dir).unwrap()).unwrap();
        let stored = plan::stored(network.plan(), &index);
        let names: HashSet<&str> = stored.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names.len(), index.len(), "{}", dir.display());
        let used: HashSet<&str> = stored
            .iter()
            .filter(|tensor| matches!(tensor.role, Use::Declared(..)))
            .map(|tensor| tensor.name.as_str())
            .collect();
        let elements: u64 =
            used.iter().map(|name| index.get(name).unwrap().shape.iter().product::<usize>() as u64).sum();
        let tokens = Tokens { new: TOKENS, past: 0 };
        let costs = plan::costs(network.plan(), &index, &Reference, None, tokens);
        assert_eq!(plan::totals(&costs).parameters, elements, "{}", dir.display());
        // Rows stand for all blocks.
        let rows = plan::rows(network.plan(), &costs, false);
        assert_eq!(rows.iter().map(plan::Row::count).sum::<usize>(), network.plan().blocks.len());
        assert!(plan::rows(network.plan(), &costs, true).len() >= rows.len());
    }
}

fn smelt(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smelt"));
    let output = command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_is_printed() {
    let model = "examples/models/language-id";
    let text = smelt(&["explain", "-m", model]);
    assert!(text.contains("attention ×") && text.contains("peak memory"), "{text}");
    let all = smelt(&["explain", "examples/classifier.yaml", "-m", model, "--all"]);
    assert!(all.lines().count() > text.lines().count() && !all.contains("attention ×"), "{all}");
    let text = smelt(&["explain", "-m", model, "--tensors"]);
    let index = Index::open(&Repository::open(Path::new(model)).unwrap()).unwrap();
    assert_eq!(text.lines().count(), index.len(), "{text}");
    assert!(text.contains("`k` of `attention`") && text.contains(".yaml:"), "{text}");
    let value: Value =
        serde_json::from_str(&smelt(&["explain", "-m", model, "--json", "--tensors", "--tokens", "7"]))
            .unwrap();
    assert_eq!(
        (&value["tokens"], value["tensors"].as_array().unwrap().len()),
        (&Value::from(7), index.len())
    );
    assert!(value["total"]["peak_bytes"].as_u64() > value["total"]["weight_bytes"].as_u64());
}

#[test]
fn two_descriptions_are_compared_on_one_checkpoint() {
    let model = "examples/models/prose";
    let explained: Value = serde_json::from_str(&smelt(&["explain", "-m", model, "--json"])).unwrap();
    let file = format!("architectures/{}", explained["architecture"].as_str().unwrap());
    let name = file.trim_start_matches("architectures/").trim_end_matches(".yaml");
    let same = smelt(&["explain", "--diff", name, &file, "-m", model]);
    assert!(same.contains("the same blocks, with the same settings and tensors"), "{same}");

    let built_in = std::fs::read_to_string(&file).unwrap();
    let changed = built_in
        .replace("is_causal, default: true", "is_causal, default: false")
        .replace("- layer_norm: ln_f", "- layer_norm: ln_f\n    - activation: relu");
    assert_ne!(changed, built_in);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other.yaml");
    std::fs::write(&file, changed).unwrap();
    let file = file.to_str().unwrap();
    let text = smelt(&["explain", "--diff", name, file, "-m", model]);
    assert!(text.contains("causal true → false"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("+ activation") && line.contains("act relu")), "{text}");
    let value: Value =
        serde_json::from_str(&smelt(&["explain", "--diff", name, file, "-m", model, "--json"])).unwrap();
    let kinds: Vec<&str> =
        value["blocks"].as_array().unwrap().iter().map(|b| b["change"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["changed", "added"]);
    assert!(value["before"]["flops"].as_u64() < value["after"]["flops"].as_u64());
}

/// What a field's map takes from `defaults` counts as if it were written there.
#[test]
fn defaults_of_maps_are_settings() {
    const YAML: &str = "
smelt: 1
match: {model_type: test}
defaults: {linear: {bias: false}, head_norm: {over: all, eps: 0.25}, gated_norm: {eps: 0.25}}
model:
  hidden:
    - embedding: {at: e, of: token_ids, rows: 5, width: 4}
    - attention: {heads: 2, q: q, k: k, v: v, o: o, q_norm: q_norm, k_norm: \"${{'at': 'k_norm'}}\"}
    - multi_head_state_space: {in_proj: i, conv: c, conv_bias: false, dt_bias: t, a_log: a, d: d, norm: {at: n},
                               out_proj: p, heads: 2, head_dim: 2, state: 3, kernel: 2}
heads: {features: {match: [], outputs: [hidden]}}
";
    let shapes: [(&str, &[usize]); 14] = [
        ("e.weight", &[5, 4]),
        ("q.weight", &[4, 4]),
        ("k.weight", &[4, 4]),
        ("v.weight", &[4, 4]),
        ("o.weight", &[4, 4]),
        ("q_norm.weight", &[4]),
        ("k_norm.weight", &[4]),
        ("i.weight", &[16, 4]),
        ("c.weight", &[10, 1, 2]),
        ("t", &[2]),
        ("a", &[2]),
        ("d", &[2]),
        ("n.weight", &[4]),
        ("p.weight", &[4, 4]),
    ];
    let zeros = |(name, shape): (&str, &[usize])| {
        (name.to_owned(), shape.to_vec(), BundleData::F32(vec![0.0; shape.iter().product()]))
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |file: &str| folder.path().join(file).to_str().unwrap().to_owned();
    write_bundle(&folder.path().join("model.safetensors"), &shapes.map(zeros)).unwrap();
    std::fs::write(path("config.json"), "{\"model_type\": \"test\"}").unwrap();
    let write = |file: &str, changes: &[(&str, &str)]| {
        let yaml = changes.iter().fold(YAML.to_owned(), |yaml, (old, new)| {
            assert!(yaml.contains(old), "{old}");
            yaml.replace(old, new)
        });
        std::fs::write(path(file), yaml).unwrap();
    };
    write("defaults.yaml", &[]);
    write(
        "written.yaml",
        &[
            ("q_norm: q_norm", "q_norm: {at: q_norm, over: all, eps: 0.25}"),
            ("{'at': 'k_norm'}", "{'at': 'k_norm', 'over': 'all', 'eps': 0.25}"),
            ("norm: {at: n}", "norm: {at: n, eps: 0.25}"),
            (", head_norm: {over: all, eps: 0.25}, gated_norm: {eps: 0.25}", ""),
        ],
    );
    write("other.yaml", &[("eps: 0.25", "eps: 0.5")]);
    let model = path("");
    let diff = |file: &str| smelt(&["explain", "--diff", &path("defaults.yaml"), &path(file), "-m", &model]);
    let same = diff("written.yaml");
    assert!(same.contains("the same blocks, with the same settings and tensors"), "{same}");
    let other = diff("other.yaml");
    for setting in ["q_norm.eps", "k_norm.eps", " norm.eps"] {
        assert!(other.contains(&format!("{setting} 0.25 → 0.5")), "{setting}: {other}");
    }
    let json = smelt(&["explain", &path("defaults.yaml"), "-m", &model, "--json"]);
    assert_eq!(json.matches("_norm.over\": \"all\"").count(), 2, "{json}");
}

#[test]
fn the_picture_in_the_docs_is_what_is_drawn() {
    let drawn = smelt(&["explain", "-m", "examples/models/language-id", "--svg"]);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/language-id.svg");
    if std::env::var_os("SMELT_BLESS").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap();
    assert_eq!(drawn, kept, "SMELT_BLESS=1 cargo test --test explain writes docs/language-id.svg");
}

/// Every case can be drawn: as many boxes as there are rows, nothing left of or above the picture.
#[test]
fn every_model_can_be_drawn() {
    for dir in common::cases() {
        let dir = dir.to_str().unwrap();
        let explained: Value = serde_json::from_str(&smelt(&["explain", "-m", dir, "--json"])).unwrap();
        let picture = smelt(&["explain", "-m", dir, "--svg"]);
        let boxes = picture.matches("class=\"block\"").count();
        assert_eq!(boxes, explained["blocks"].as_array().unwrap().len(), "{dir}");
        assert!(!picture.contains("=\"-") && !picture.contains("NaN"), "{dir}: {picture}");
    }
}

#[test]
fn headers_alone_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let model = Path::new("examples/models/language-id");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(model.join(file), dir.join(file)).unwrap();
    }
    let whole = smelt(&["explain", "-m", dir.to_str().unwrap()]);
    let file = dir.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for len in [header, header + 100] {
        std::fs::write(&file, &bytes[..len]).unwrap();
        assert_eq!(smelt(&["explain", "-m", dir.to_str().unwrap()]), whole);
        assert!(smelt(&["check", "-m", dir.to_str().unwrap()]).contains("nothing wrong"));
        let refused = smelt::Model::open(dir).unwrap_err().to_string();
        assert!(refused.contains("is cut off"), "{refused}");
    }
}
