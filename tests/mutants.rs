//! How good the errors are, measured: every architecture file is spoilt in many ways, one at a time. Each mutant must be
//! refused, with the line that was spoilt or the name that is wrong, or, where only the numbers can tell, pinned to the right lines
//! by the recordings of `tests/golden/modules`, as `smelt verify` does it.
//!
//! `cargo test --test mutants -- --nocapture` prints the shares. Rules are textual, so that they make the mistakes that people make.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use smelt::cpu::Cpu;
use smelt::model::{LoadOptions, Network};
use smelt::plan::{Config, Plan, Target, builtin};
use smelt::spec::Source;
use smelt::task::{Bundle, Comparison};
use smelt::weights::{Checkpoint, Index, Repository, read_bundle};

/// A spoilt file.
struct Mutant {
    rule: &'static str,
    text: String,
    /// The lines, from 1, that an error may point to: the spoilt ones.
    lines: Vec<usize>,
    /// What an error may name instead.
    names: Vec<String>,
}

/// What became of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// Refused, and the error points to the line or names what is wrong.
    Explained,
    /// Refused, and the error speaks of something else.
    Unexplained,
    /// Loaded, the numbers differ, and the recording of the modules leads to the spoilt lines.
    Pinned,
    /// Loaded, the numbers differ, and the recording leads elsewhere, or to nothing.
    Unpinned,
    /// Loaded, and every bit is the same: nothing was wrong.
    Same,
}

/// The mutants of a text by all rules.
fn mutants(text: &str) -> Vec<Mutant> {
    let lines: Vec<&str> = text.lines().collect();
    let body = lines.iter().position(|line| *line == "model:").unwrap_or(0);
    let mut mutants = Vec::new();
    let mut add = |rule, line: usize, new: String, names: Vec<String>| {
        let mut all: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        all[line] = new;
        // The parser sees a wrong indentation where the next line does not fit.
        let lines = if rule == "bad indentation" { (line..line + 6).collect() } else { entry(&lines, line) };
        mutants.push(Mutant { rule, text: all.join("\n") + "\n", lines, names });
    };
    let mut seen = std::collections::HashSet::new();
    for (i, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        if code.starts_with('#') || code.is_empty() {
            continue;
        }
        if i > body {
            for block in smelt::nn::BLOCKS.iter().map(|block| block.name).chain(["residual", "repeat"]) {
                let used = format!("- {block}:");
                if line.contains(&used) && seen.insert(used.clone()) {
                    let wrong = misspelt(block);
                    add("misspelt block", i, line.replacen(&used, &format!("- {wrong}:"), 1), vec![wrong]);
                }
            }
            for field in [
                "heads", "kv_heads", "q", "o", "inner", "act", "up", "down", "gate", "of", "rows", "width",
                "causal", "out",
            ] {
                for used in [format!("{{{field}: "), format!(", {field}: ")] {
                    if line.contains(&used) && seen.insert(field.to_owned()) {
                        let wrong = misspelt(field);
                        let new = line.replacen(&used, &used.replace(field, &wrong), 1);
                        add("misspelt field", i, new, vec![wrong]);
                    }
                }
            }
            for (path, rule) in paths(line) {
                if seen.insert(path.clone()) {
                    let wrong = misspelt(&path);
                    add(rule, i, line.replacen(&path, &wrong, 1), vec![wrong]);
                }
            }
            for (old, new, rule) in [
                ("heads: $heads", "heads: many", "wrong type"),
                ("causal: true", "causal: 7", "wrong type"),
                ("causal: true", "causal: false", "causal off"),
                ("causal: $causal", "causal: 7", "wrong type"),
                ("causal: $causal", "causal: \"${not causal}\"", "causal off"),
                ("heads: $heads", "heads: \"${heads + 1}\"", "wrong head count"),
                ("kv_heads: $kv_heads", "kv_heads: $heads", "wrong head count"),
                ("width: $hidden", "width: \"${hidden + 1}\"", "wrong width"),
                ("act: $act", "act: tanh", "wrong activation"),
                ("scale: ", "scale: 2.5 # ", "wrong scale"),
                ("theta: $theta", "theta: 77", "wrong theta"),
                ("bias: false", "bias: true", "bias added"),
                ("interleaved: true", "interleaved: false", "rope pairing"),
                ("window: ", "window: 1 # ", "wrong window"),
                ("inner: $inner", "inner: \"${inner - 1}\"", "wrong inner"),
                ("groups: $heads", "groups: 1", "wrong fused layout"),
                ("rows: last", "rows: first", "wrong pooling"),
            ] {
                if line.contains(old) && !line.contains("when") && seen.insert(format!("{old}{new}")) {
                    // What follows on the line would become a comment only where nothing does.
                    if new.ends_with("# ") && (line.contains('{') || line.ends_with(',')) {
                        continue;
                    }
                    // Where a name is not used any more, that is what the error says.
                    let is_name = |c: char| c.is_alphanumeric() || c == '_';
                    let of_line = if new.ends_with("# ") { *line } else { old };
                    let unused = of_line.split('$').skip(1).map(|rest| {
                        let name: String =
                            rest.chars().skip_while(|c| *c == '{').take_while(|c| is_name(*c)).collect();
                        format!("unused binding `{name}`")
                    });
                    let names = match rule {
                        "wrong width" => vec!["the width ".into(), "learned rows of ".into()],
                        "wrong head count" => unused.chain(["position bias for ".into()]).collect(),
                        _ => unused.collect(),
                    };
                    add(rule, i, line.replacen(old, new, 1), names);
                }
            }
            if code == "- residual:" && seen.insert(format!("residual {}", line.len())) {
                let indent = line.len() - code.len();
                let new = format!(
                    "{}- repeat: 1\n{}as: once\n{}body:",
                    " ".repeat(indent),
                    " ".repeat(indent + 2),
                    " ".repeat(indent + 2)
                );
                add("missing residual", i, new, Vec::new());
            }
            if line.contains("q: ") && line.contains(" k: ") {
                let swapped =
                    line.replacen("q: ", "@: ", 1).replacen(" k: ", " q: ", 1).replacen("@: ", "k: ", 1);
                if seen.insert("swap".into()) {
                    add("swapped q and k", i, swapped, Vec::new());
                }
            }
            if code.starts_with("- ") && seen.insert("indent".into()) {
                add("bad indentation", i, format!(" {line}"), Vec::new());
            }
            if (code.starts_with("- layer_norm: ") || code.starts_with("- rms_norm: "))
                && seen.insert("norm".into())
            {
                let (other, this) =
                    if code.contains("layer_norm") { ("rms", "layer") } else { ("layer", "rms") };
                let new = line.replacen(&format!("{this}_norm"), &format!("{other}_norm"), 1);
                let path = code.split(": ").nth(1).unwrap_or_default().to_owned();
                add("wrong norm", i, new, vec![path, "head_norm".into()]);
            }
        } else if let Some((name, rest)) = code.split_once(": {key: ") {
            let key =
                rest.split([',', '}', ']']).next().unwrap_or_default().trim_start_matches('[').to_owned();
            let wrong = misspelt(&key);
            let names = vec![name.to_owned(), wrong.clone(), key.clone()];
            add("wrong config key", i, line.replacen(&key, &wrong, 1), names);
            if ["hidden", "layers", "heads", "vocab"].contains(&name) {
                add("misspelt binding", i, line.replacen(name, &misspelt(name), 1), vec![name.to_owned()]);
            }
        }
    }
    mutants
}

/// The lines, from 1, of the block that line `i` belongs to.
fn entry(lines: &[&str], i: usize) -> Vec<usize> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let first = (0..=i).rev().find(|j| lines[*j].trim_start().starts_with("- ") || indent(lines[*j]) <= 2);
    let first = first.unwrap_or(i);
    let last =
        (first + 1..lines.len()).find(|j| indent(lines[*j]) <= indent(lines[first])).unwrap_or(lines.len());
    (first + 1..last.max(i + 1) + 1).collect()
}

/// Two letters of a word exchanged, or one doubled.
fn misspelt(word: &str) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    let at = (1..letters.len().saturating_sub(1)).rev().find(|i| {
        letters[*i] != letters[*i + 1] && letters[*i].is_alphabetic() && letters[*i + 1].is_alphabetic()
    });
    match at {
        Some(at) => letters.swap(at, at + 1),
        None => letters.push('x'),
    }
    letters.into_iter().collect()
}

/// Paths of modules on a line.
fn paths(line: &str) -> Vec<(String, &'static str)> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == '.' || c == '*';
    let mut paths = Vec::new();
    for field in ["q: ", "k: ", "v: ", "o: ", "qkv: ", "up: ", "down: ", "gate: ", "at: ", "_norm: "] {
        if let Some((_, rest)) = line.split_once(field) {
            let path: String = rest.chars().take_while(|c| is_path(*c)).collect();
            if path.len() > 3 && !path.contains('$') {
                paths.push((path, "misspelt path"));
            }
        }
    }
    paths
}

struct Fixture {
    dir: PathBuf,
    name: String,
    text: String,
}

/// For each architecture file a fixture: the one whose outputs tell most.
fn fixtures() -> Vec<Fixture> {
    let mut found: BTreeMap<String, Fixture> = BTreeMap::new();
    for dir in common::cases() {
        if dir.parent().is_some_and(|parent| parent.ends_with("variants")) {
            continue;
        }
        let source = builtin::find(&config(&dir)).unwrap();
        let name = source.name.clone();
        found.entry(name.clone()).or_insert(Fixture { dir, name, text: source.text });
    }
    found.into_values().collect()
}

fn config(dir: &Path) -> Config {
    Config::parse("config.json", std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap()
}

fn network(fixture: &Fixture, text: &str) -> smelt::Result<Network> {
    let repository = Repository::open(&fixture.dir)?;
    let index = Index::open(&repository)?;
    let source = Source::yaml(fixture.name.as_str(), text)?;
    let plan = Plan::new(source, &config(&fixture.dir), &index, &Target::Config)?;
    Network::load(
        plan,
        &Checkpoint::map(&repository, &index)?,
        Arc::new(Cpu::new(Some(1))),
        &LoadOptions::default(),
    )
}

fn fate(fixture: &Fixture, mutant: &Mutant) -> Fate {
    let bundle = Bundle::new(read_bundle(&fixture.dir.join("reference.safetensors")).unwrap()).unwrap();
    let network = match network(fixture, &mutant.text) {
        Ok(network) => network,
        Err(error) => {
            let shown = error.to_string();
            let place = |line: &usize| shown.contains(&format!("{}:{line}:", fixture.name));
            let named = |name: &String| shown.contains(&format!("`{name}`")) || shown.contains(name.as_str());
            let explained = mutant.lines.iter().any(place) || mutant.names.iter().any(named);
            return if explained { Fate::Explained } else { Fate::Unexplained };
        }
    };
    // A model that cannot compute the reference's outputs at all is told so.
    let Ok(comparisons) = bundle.compare(&network) else { return Fate::Explained };
    let good = self::network(fixture, &fixture.text).unwrap();
    let expected = bundle.compare(&good).unwrap();
    if comparisons == expected {
        return Fate::Same;
    }
    let named = lines_of_culprit(fixture, &network);
    let lines: Vec<&str> = mutant.text.lines().collect();
    let is_pinned = |line: &usize| {
        let code = lines[line - 1].trim_start();
        let is_step = ["- residual:", "- sum:", "- product:"].iter().any(|step| code.starts_with(step));
        let within = || mutant.lines.iter().any(|spoilt| entry(&lines, line - 1).contains(spoilt));
        mutant.lines.contains(line) || is_step && within()
    };
    if named.iter().any(is_pinned) { Fate::Pinned } else { Fate::Unpinned }
}

/// The lines that `smelt verify` names for a network.
fn lines_of_culprit(fixture: &Fixture, network: &Network) -> Vec<usize> {
    let recorded = Bundle::new(read_bundle(&recording(fixture)).unwrap()).unwrap();
    let Ok(trace) = recorded.trace(network) else { return Vec::new() };
    let outputs = outputs(&recorded, network);
    let Some(culprit) = trace.culprit(&outputs, TOLERANCE) else { return Vec::new() };
    let file = format!("{}:", fixture.name);
    let of_notes = culprit.notes.iter().flat_map(|note| {
        let places = note.split(&file).skip(1);
        places.filter_map(|rest| rest.split(':').next()?.parse().ok()).collect::<Vec<usize>>()
    });
    culprit.place.iter().map(|place| place.line).chain(of_notes).collect()
}

/// The outputs, without the hidden states: not every class lists the same.
fn outputs(recorded: &Bundle, network: &Network) -> Vec<Comparison> {
    let mut outputs = recorded.compare(network).unwrap_or_default();
    outputs.retain(|output| !output.name.contains("hidden_states."));
    outputs
}

fn recording(fixture: &Fixture) -> PathBuf {
    let stem = fixture.name.trim_end_matches(".yaml");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/modules/{stem}.safetensors"))
}

/// Differences that rounding makes, for values of order 1.
const TOLERANCE: f32 = 1e-4;

#[test]
fn every_module_agrees_with_its_recording() {
    for fixture in fixtures() {
        let network = network(&fixture, &fixture.text).unwrap();
        let recorded = Bundle::new(read_bundle(&recording(&fixture)).unwrap()).unwrap();
        let trace = recorded.trace(&network).unwrap();
        let wrong = trace.culprit(&outputs(&recorded, &network), TOLERANCE);
        assert!(wrong.is_none(), "{}: {}", fixture.name, wrong.unwrap().problem());
        println!("{:20} {} modules", fixture.name, trace.compared.len());
        assert!(trace.compared.len() >= 8, "{}: {} modules", fixture.name, trace.compared.len());
    }
}

#[test]
fn every_mutant_is_refused_or_pinned() {
    let mut counts: BTreeMap<(&str, Fate), usize> = BTreeMap::new();
    let (mut all, mut bad) = (0, Vec::new());
    for fixture in fixtures() {
        for mutant in mutants(&fixture.text) {
            let fate = fate(&fixture, &mutant);
            *counts.entry((mutant.rule, fate)).or_default() += 1;
            all += 1;
            if matches!(fate, Fate::Unexplained | Fate::Unpinned) {
                let error = match network(&fixture, &mutant.text) {
                    Ok(network) => format!(
                        "pinned to {:?}, not {:?}",
                        lines_of_culprit(&fixture, &network),
                        mutant.lines
                    ),
                    Err(error) => error.to_string(),
                };
                let line =
                    mutant.text.lines().nth(mutant.lines[mutant.lines.len() / 2] - 1).unwrap_or_default();
                bad.push(format!("{} {}: {line}\n{error}", fixture.name, mutant.rule));
            }
        }
    }
    for ((rule, fate), n) in &counts {
        println!("{rule:20} {n:5} {fate:?}");
    }
    let of = |fate: Fate| counts.iter().filter(|((_, f), _)| *f == fate).map(|(_, n)| n).sum::<usize>();
    println!(
        "{all} mutants: {} explained, {} unexplained, {} pinned, {} not pinned, {} the same",
        of(Fate::Explained),
        of(Fate::Unexplained),
        of(Fate::Pinned),
        of(Fate::Unpinned),
        of(Fate::Same)
    );
    if std::env::var_os("SMELT_MUTANTS").is_some() {
        println!("{}", bad.join("\n\n"));
    }
    assert!(all >= 300, "{all} mutants");
    let lost = of(Fate::Unexplained) + of(Fate::Unpinned);
    assert!(lost * 200 <= all, "{} of {all} are not explained\n{}", bad.len(), bad.join("\n\n"));
}
