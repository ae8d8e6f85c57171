//! The fixtures under `tests/golden`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use smelt::backend::Backend;
use smelt::model::{LoadOptions, Network};
use smelt::plan::{Config, Plan, Target, builtin};
use smelt::weights::{Checkpoint, Index, Repository};

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

/// Loads a fixture.
pub fn load(dir: &Path, backend: Arc<dyn Backend>) -> smelt::Result<Network> {
    let repository = Repository::open(dir)?;
    let config = Config::parse("config.json", repository.text("config.json")?.unwrap())?;
    let index = Index::open(&repository)?;
    let plan = Plan::new(builtin::find(&config)?, &config, &index, &Target::Config)?;
    Network::load(plan, &Checkpoint::map(&repository, &index)?, backend, &LoadOptions::default())
}
