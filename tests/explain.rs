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
use smelt::weights::{Index, Repository};

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
        assert_eq!(rows.iter().map(|row| row.count).sum::<usize>(), network.plan().blocks.len());
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
