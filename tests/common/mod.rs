//! The fixtures under `tests/golden`.

#![allow(dead_code)] // each test file uses what it needs

use std::path::{Path, PathBuf};
use std::sync::Arc;

use smelt::backend::Backend;
use smelt::cpu::{Cpu, SimdLevel};
use smelt::model::Network;
use smelt::weights::Repository;
use smelt::{OpenOptions, WeightType};
use tempfile::TempDir;

/// All directories that hold a model with its reference.
pub fn cases() -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.file_name().unwrap() == "reference.safetensors" {
                found.push(dir.to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), &mut found);
    found.sort();
    assert!(found.len() >= 25, "the fixtures are there");
    found
}

/// A copy of a fixture that can be changed.
pub fn copy(dir: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

/// The instructions that this machine has.
pub fn levels() -> impl Iterator<Item = SimdLevel> {
    SimdLevel::ALL.into_iter().filter(|level| Cpu::with_level(*level, Some(1)).is_some())
}

/// Loads a fixture.
pub fn load(dir: &Path, backend: Arc<dyn Backend>) -> smelt::Result<Network> {
    load_as(dir, backend, None)
}

/// Loads a fixture, its weights kept in some way.
pub fn load_as(dir: &Path, backend: Arc<dyn Backend>, dtype: Option<WeightType>) -> smelt::Result<Network> {
    load_with(dir, backend, &OpenOptions { dtype, ..OpenOptions::default() })
}

/// Loads a fixture with options.
pub fn load_with(dir: &Path, backend: Arc<dyn Backend>, options: &OpenOptions) -> smelt::Result<Network> {
    smelt::task::open_network(&Repository::open(dir)?, options, backend)
}
