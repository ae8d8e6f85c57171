//! A mistake in a description is pinned to its line, by comparison with what torch modules take and give.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use smelt::cpu::Cpu;
use smelt::model::Network;
use smelt::task::{Bundle, Culprit, open_network};
use smelt::weights::{Repository, read_bundle};
use smelt::{Arch, OpenOptions};

/// That of `smelt verify`.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Change {
    change: String,
    to: String,
}

#[derive(Deserialize)]
struct Mistake {
    mistake: String,
    model: String,
    #[serde(flatten)]
    change: Change,
    also: Option<Change>,
    fault: String,
    module: String,
    blamed: String,
    note: Option<String>,
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn modules(name: &str) -> PathBuf {
    golden(&format!("modules/{name}.safetensors"))
}

/// The file of a case alone, if there is one.
fn own(model: &str) -> Option<PathBuf> {
    Some(modules(&model.replace('/', "-"))).filter(|file| file.exists())
}

fn bundle(model: &str) -> Bundle {
    // That of an architecture is of its first case.
    let file = own(model).unwrap_or_else(|| modules(model.split('/').next().unwrap()));
    Bundle::new(read_bundle(&file).unwrap()).unwrap()
}

fn load(model: &str, arch: Option<Arch>) -> Network {
    let options = OpenOptions { arch, ..OpenOptions::default() };
    let repository = Repository::open(&golden(model)).unwrap();
    open_network(&repository, &options, Arc::new(Cpu::new(Some(2)))).unwrap_or_else(|e| panic!("{e}"))
}

fn mistakes() -> Vec<Mistake> {
    let text = std::fs::read_to_string(golden("modules/mistakes.yaml")).unwrap();
    serde_yaml::from_str(&text).unwrap()
}

fn culprit(model: &str, network: &Network) -> Option<Culprit> {
    let bundle = bundle(model);
    let outputs = bundle.compare(network).unwrap();
    bundle.trace(network).unwrap().culprit(&outputs, TOLERANCE)
}

#[test]
fn right_descriptions_agree_in_every_module() {
    let mut models: Vec<String> = mistakes().into_iter().map(|mistake| mistake.model).collect();
    models.dedup();
    assert!(models.len() >= 4);
    for model in models {
        let network = load(&model, None);
        let trace = bundle(&model).trace(&network).unwrap();
        assert!(culprit(&model, &network).is_none(), "{model}");
        // What is left are the modules that hold others.
        for name in &trace.only_recorded {
            let inner = format!(".{}.", name.split_once('.').map_or("", |(_, rest)| rest));
            let holds = |module: &str| {
                module.starts_with(&format!("{name}.")) || format!(".{module}").contains(&inner)
            };
            let known = trace.compared.iter().any(|c| holds(&c.recorded));
            assert!(known || trace.only_recorded.iter().any(|other| holds(other)), "{model}: {name}");
        }
        // Those of architectures may have fused weights, and so fewer modules.
        let least = if own(&model).is_some() { 18 } else { 17 };
        assert!(trace.compared.len() >= least, "{model}: {}", trace.compared.len());
    }
}

#[test]
fn mistakes_are_pinned_to_their_lines() {
    let mut failures = Vec::new();
    for mistake in mistakes() {
        let family = mistake.model.split('/').next().unwrap();
        let arch = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("architectures/{family}.yaml"));
        let mut text = std::fs::read_to_string(arch).unwrap();
        for Change { change, to } in [&mistake.change].into_iter().chain(&mistake.also) {
            assert!(text.contains(change), "{}: `{change}` is not there", mistake.mistake);
            text = text.replacen(change, to, 1);
        }
        let network = load(&mistake.model, Some(Arch::yaml("mine.yaml", text.as_str())));
        let Some(found) = culprit(&mistake.model, &network) else {
            failures.push(format!("{}: nothing found", mistake.mistake));
            continue;
        };
        let line =
            found.place.as_ref().and_then(|place| text.lines().nth(place.line - 1)).unwrap_or_default();
        let noted = mistake.note.iter().all(|note| found.notes.iter().any(|found| found.contains(note)));
        if found.name != mistake.module
            || format!("{:?}", found.fault) != mistake.fault
            || !line.contains(&mistake.blamed)
            || !noted
        {
            let message = format!("{}: {:?}, {}\n{line}", mistake.mistake, found.fault, found.problem());
            failures.push(message);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
