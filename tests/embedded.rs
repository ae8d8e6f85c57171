//! The models in `examples/models`: what transformers computes with them.

mod common;

use std::path::Path;
use std::sync::Arc;

use smelt::cpu::Cpu;
use smelt::task::Bundle;
use smelt::weights::read_bundle;

/// Largest absolute difference from transformers on the float32 values of the stored float16 weights.
const TOLERANCE: f32 = 1e-4;

#[test]
fn embedded_models_agree_with_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for entry in std::fs::read_dir(root.join("examples/models")).unwrap().flatten() {
        seen += 1;
        let name = entry.file_name().into_string().unwrap();
        let network = common::load(&entry.path(), Arc::new(Cpu::new(Some(2)))).unwrap();
        let bundle = root.join(format!("tests/golden/embedded/{name}.safetensors"));
        let comparisons = Bundle::new(read_bundle(&bundle).unwrap()).unwrap().compare(&network).unwrap();
        assert!(!comparisons.is_empty());
        for c in comparisons {
            assert!(c.largest <= TOLERANCE, "{name}: {c:?}");
        }
    }
    assert_eq!(seen, 2);
}
