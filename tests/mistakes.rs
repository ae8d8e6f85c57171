//! What a user reads after a mistake: one golden file per mistake under `tests/mistakes`.
//!
//! A file is a header, a line `---` and the exact message. The header says what to break, one edit a line:
//!
//! ```text
//! base: FAMILY/CASE                           a fixture under tests/golden; `FAMILY.yaml` and `config.json` are its files
//! yaml: OLD ==> NEW                           replaces OLD, which must be there, once in the architecture
//! yaml-text: TEXT                             replaces the whole architecture
//! config: KEY = JSON                          sets a key, with dots for nested ones
//! config: KEY removed
//! config-text: OLD ==> NEW                    replaces OLD in the text of the config, after all `config` edits
//! tensor: NAME removed                        `*` in NAME stands for one segment, in all four
//! tensor: NAME renamed NEW                    `*` in NEW is the segment that the `*` of NAME stood for
//! tensor: NAME shape [2, 3]
//! tensor: NAME dtype I64
//! tensor: NAME added [2, 3]
//! task: token_classification                  the task to plan; without it what the config asks for
//! # anything                                  a remark
//! ```
//!
//! `\n` in OLD, NEW and TEXT is a line break. `SMELT_BLESS=1 cargo test --test mistakes` writes the messages anew: read
//! what `git diff` says of them.

use std::fs;
use std::path::{Path, PathBuf};

use smelt::plan::{Config, Plan, Target, builtin};
use smelt::spec::Source;
use smelt::weights::{BundleData, Index, Repository, read_bundle, write_bundle};

/// The least number of golden files: a run from the wrong directory must not pass.
const AT_LEAST: usize = 45;

type Tensors = Vec<(String, Vec<usize>, BundleData)>;

/// A model as its files say it, before and after the edits.
struct Case {
    name: String,
    yaml: String,
    config: serde_json::Value,
    config_edits: Vec<(String, String)>,
    tensors: Tensors,
    target: Target,
}

impl Case {
    /// The fixture `base` with the architecture that describes it.
    fn new(base: &str) -> Case {
        let dir = root().join("tests/golden").join(base);
        let text = fs::read_to_string(dir.join("config.json")).unwrap();
        let source = builtin::find(&Config::parse("config.json", text.as_str()).unwrap()).unwrap();
        let stored = read_bundle(&dir.join("model.safetensors")).unwrap();
        let tensors = stored.iter().map(|(name, array)| zeros(name, array.shape().to_vec(), "F32")).collect();
        Case {
            name: format!("{}.yaml", source.name.trim_end_matches(".yaml").rsplit('/').next().unwrap()),
            yaml: source.text,
            config: serde_json::from_str(&text).unwrap(),
            config_edits: Vec::new(),
            tensors,
            target: Target::Config,
        }
    }

    /// Carries out a line of a header.
    fn edit(&mut self, kind: &str, what: &str) {
        let replace = || {
            let (old, new) = what.split_once(" ==> ").expect("OLD ==> NEW");
            (old.replace("\\n", "\n"), new.replace("\\n", "\n"))
        };
        match kind {
            "yaml" => self.yaml = replaced(&self.yaml, &replace()),
            "yaml-text" => self.yaml = what.replace("\\n", "\n"),
            "config" => self.config(what),
            "config-text" => self.config_edits.push(replace()),
            "tensor" => self.tensor(what),
            "task" => self.target = Target::Task(what.to_owned()),
            _ => panic!("unknown edit `{kind}`"),
        }
    }

    fn config(&mut self, what: &str) {
        let (key, value) = match what.strip_suffix(" removed") {
            Some(key) => (key, None),
            None => {
                let (key, json) = what.split_once(" = ").expect("KEY = JSON");
                (key, Some(serde_json::from_str(json).expect("JSON")))
            }
        };
        let (parents, last) = key.rsplit_once('.').unwrap_or(("", key));
        let map =
            parents.split('.').filter(|p| !p.is_empty()).fold(&mut self.config, |map, key| &mut map[key]);
        let map = map.as_object_mut().expect("a map");
        match value {
            Some(value) => drop(map.insert(last.to_owned(), value)),
            None => drop(map.remove(last).expect("the key is there")),
        }
    }

    fn tensor(&mut self, what: &str) {
        let (pattern, action) = what.split_once(' ').expect("NAME and what is done to it");
        let (action, argument) = action.split_once(' ').unwrap_or((action, ""));
        if action == "added" {
            self.tensors.push(zeros(pattern, shape(argument), "F32"));
            return;
        }
        let mut edited = Tensors::new();
        let mut met = false;
        for (name, old, data) in std::mem::take(&mut self.tensors) {
            let Some(star) = fits(pattern, &name) else {
                edited.push((name, old, data));
                continue;
            };
            met = true;
            match action {
                "removed" => {}
                "renamed" => edited.push((argument.replace('*', &star), old, data)),
                "shape" => edited.push(zeros(&name, shape(argument), "F32")),
                "dtype" => edited.push(zeros(&name, old, argument)),
                _ => panic!("unknown action `{action}`"),
            }
        }
        assert!(met, "a tensor `{pattern}` to edit");
        self.tensors = edited;
    }

    /// What the user sees; the error is that a plan was made.
    fn message(&self) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        write_bundle(&dir.path().join("model.safetensors"), &self.tensors).unwrap();
        let text = serde_json::to_string_pretty(&self.config).unwrap();
        let text = self.config_edits.iter().fold(text, |text, edit| replaced(&text, edit));
        let plan = || {
            let config = Config::parse("config.json", text)?;
            let source = Source::yaml(self.name.as_str(), self.yaml.as_str())?;
            let index = Index::open(&Repository::open(dir.path())?)?;
            Plan::new(source, &config, &index, &self.target)
        };
        match plan() {
            Ok(_) => Err("expected a mistake, but the plan was made".into()),
            Err(error) => {
                let shown = format!("error: {error}\n");
                Ok(shown.replace(&dir.path().display().to_string(), "DIR"))
            }
        }
    }
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn zeros(name: &str, shape: Vec<usize>, dtype: &str) -> (String, Vec<usize>, BundleData) {
    let len = shape.iter().product();
    let data = match dtype {
        "F32" => BundleData::F32(vec![0.0; len]),
        "I64" => BundleData::I64(vec![0; len]),
        _ => panic!("unknown type `{dtype}`"),
    };
    (name.to_owned(), shape, data)
}

fn shape(json: &str) -> Vec<usize> {
    serde_json::from_str(json).expect("a shape such as [2, 3]")
}

fn replaced(text: &str, (old, new): &(String, String)) -> String {
    assert!(text.contains(old), "`{old}` is there to be replaced");
    text.replacen(old, new, 1)
}

/// The segment that the `*` of a pattern stands for, if the name fits.
fn fits(pattern: &str, name: &str) -> Option<String> {
    let (p, n): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), name.split('.').collect());
    let fit = p.len() == n.len() && p.iter().zip(&n).all(|(p, n)| *p == "*" || p == n);
    fit.then(|| p.iter().zip(&n).find(|(p, _)| **p == "*").map_or("", |(_, n)| n).to_owned())
}

/// What a golden file says is wrong, or why that cannot be told.
fn found(header: &str) -> Result<String, String> {
    let mut case = None;
    for line in header.lines().filter(|line| !line.starts_with('#')) {
        let (kind, what) = line.split_once(": ").ok_or(format!("expected `kind: edit`, found `{line}`"))?;
        match (&mut case, kind) {
            (_, "base") => case = Some(Case::new(what)),
            (Some(case), kind) => case.edit(kind, what),
            (None, _) => return Err("expected `base` first".into()),
        }
    }
    case.ok_or("expected `base`")?.message()
}

fn check(path: &Path, bless: bool) -> Result<(), String> {
    let text = fs::read_to_string(path).unwrap();
    let (header, expected) = text.split_once("---\n").ok_or("expected a line `---`")?;
    let found = found(header)?;
    if bless {
        fs::write(path, format!("{header}---\n{found}")).unwrap();
    } else if found != expected {
        return Err(format!("expected\n{expected}found\n{found}"));
    }
    Ok(())
}

#[test]
fn mistakes_are_explained() {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(root().join("tests/mistakes")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= AT_LEAST, "found {} golden files", paths.len());
    let bless = std::env::var_os("SMELT_BLESS").is_some();
    let failures: Vec<String> = paths
        .iter()
        .filter_map(|path| {
            let name = path.file_name().unwrap().display();
            // A panic is a failure like any other: the rest is checked all the same.
            match std::panic::catch_unwind(|| check(path, bless)) {
                Ok(result) => result.err().map(|why| format!("== {name}: {why}")),
                Err(_) => Some(format!("== {name}: panicked, see above")),
            }
        })
        .collect();
    assert!(failures.is_empty(), "{} of {} fail\n{}", failures.len(), paths.len(), failures.join("\n"));
}
