//! Every fixture under `tests/golden` and the models in `examples/models`: outputs, hidden states and greedy tokens as transformers
//! computes them.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{cases, load};
use serde_json::Value;
use tempfile::TempDir;

use smelt::backend::Backend;
use smelt::cpu::{Cpu, SimdLevel};
use smelt::nn::{Rows, Stream};
use smelt::reference::Reference;
use smelt::task::{Bundle, Comparison};
use smelt::weights::read_bundle;

/// Largest absolute difference from transformers.
const TOLERANCE: f32 = 1e-4;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// How far transformers itself, in float32, is from exact, for the outputs where that is more than half of
/// [`TOLERANCE`]: `measure_noise.py` compares it with float64. There the tolerance is 3e-4, or twice the noise (once for each
/// side) where that is more: sums without a norm behind them that grow to 80, and unscaled softmax.
fn too_far<'a>(comparisons: &'a [Comparison], noise: &Value) -> Vec<&'a Comparison> {
    let tolerance = |output: &str| match noise[output].as_f64() {
        Some(noise) => (2.0 * noise as f32).max(3e-4),
        None => TOLERANCE,
    };
    comparisons.iter().filter(|c| c.largest > tolerance(&c.name)).collect()
}

fn check(backend: Arc<dyn Backend>) {
    let noise = json(&golden().join("noise.json"));
    let mut failures = Vec::new();
    for dir in cases() {
        let name = dir.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string();
        let result = load(&dir, backend.clone()).and_then(|network| {
            Bundle::new(read_bundle(&dir.join("reference.safetensors"))?)?.compare(&network)
        });
        match result {
            Ok(comparisons) => {
                assert!(!comparisons.is_empty(), "{name} compares nothing");
                let case = &noise[name.strip_prefix("tests/golden/").unwrap()];
                let bad = too_far(&comparisons, case);
                if !bad.is_empty() {
                    failures.push(format!("{name}: {bad:?}"));
                }
            }
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_reference_backend_agrees_with_transformers() {
    check(Arc::new(Reference));
}

#[test]
fn the_cpu_backend_agrees_with_transformers() {
    for level in SimdLevel::ALL {
        if let Some(cpu) = Cpu::with_level(level, Some(2)) {
            check(Arc::new(cpu));
        }
    }
}

/// Settings that change nothing in transformers: `settings.json` says why.
#[test]
fn settings_that_change_nothing_in_transformers_change_nothing() {
    let noise = json(&golden().join("noise.json"));
    for setting in json(&golden().join("settings.json")).as_array().unwrap() {
        let case = setting["case"].as_str().unwrap();
        let from = golden().join(case);
        let dir = TempDir::new().unwrap();
        fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
        let mut config = json(&from.join("config.json"));
        for (pointer, value) in setting["set"].as_object().unwrap() {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let map = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            let before = map.insert(key.into(), value.clone());
            assert_ne!(before.as_ref(), Some(value), "{setting} changes nothing");
        }
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let network = load(dir.path(), Arc::new(Reference)).unwrap();
        let bundle = Bundle::new(read_bundle(&from.join("reference.safetensors")).unwrap()).unwrap();
        let comparisons = bundle.compare(&network).unwrap();
        assert!(!comparisons.is_empty(), "{setting}");
        let bad = too_far(&comparisons, &noise[case]);
        assert!(bad.is_empty(), "{setting}: {bad:?}");
    }
}

#[test]
fn embedded_models_agree_with_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for entry in std::fs::read_dir(root.join("examples/models")).unwrap().flatten() {
        seen += 1;
        let name = entry.file_name().into_string().unwrap();
        let network = load(&entry.path(), Arc::new(Cpu::new(Some(2)))).unwrap();
        let bundle = root.join(format!("tests/golden/embedded/{name}.safetensors"));
        let comparisons = Bundle::new(read_bundle(&bundle).unwrap()).unwrap().compare(&network).unwrap();
        assert!(!comparisons.is_empty());
        for c in comparisons {
            assert!(c.largest <= TOLERANCE, "{name}: {c:?}");
        }
    }
    assert_eq!(seen, 2);
}

#[test]
fn a_decoder_that_is_given_nothing_has_the_lengths_of_the_input() {
    let mut found = 0;
    for dir in cases().into_iter().filter(|dir| dir.ends_with("sequence-classification")) {
        let network = load(&dir, Arc::new(Reference)).unwrap();
        if !network.plan().has_decoder() {
            continue;
        }
        let mut tensors = read_bundle(&dir.join("reference.safetensors")).unwrap();
        tensors.retain(|name, _| name != "input.decoder_input_ids");
        let shape = tensors["input.input_ids"].shape().to_vec();
        let bundle = Bundle::new(tensors).unwrap();
        for output in network.forward(bundle.batch(), &[], true).unwrap() {
            if output.rows == Rows::Tokens(Stream::Decoder) {
                let (padded, values) = bundle.padded(&output);
                assert_eq!(
                    (padded[..2].to_vec(), padded[2]),
                    (shape.clone(), output.value.cols()),
                    "{}",
                    output.name
                );
                assert_eq!(
                    values.iter().filter(|x| **x != 0.0).count(),
                    output.value.data().len(),
                    "{}",
                    output.name
                );
                found += 1;
            }
        }
        assert!(bundle.greedy(&network, 1).is_err(), "there is nothing to begin with");
    }
    assert!(found > 1);
}

#[test]
fn what_has_no_tokens_is_not_continued() {
    let dir = cases().into_iter().find(|dir| dir.ends_with("image-classification")).unwrap();
    let network = load(&dir, Arc::new(Reference)).unwrap();
    let bundle = Bundle::new(read_bundle(&dir.join("reference.safetensors")).unwrap()).unwrap();
    let error = bundle.greedy(&network, 1).unwrap_err().to_string();
    assert!(error.contains("to go on from"), "{error}");
}
