//! `config.json`, and the values that a description's names take from it.

use std::collections::{HashMap, HashSet};

use super::inspect::keys_read;
use super::is_irrelevant;
use super::tensors::Names;
use crate::error::{Error, ErrorKind, Problem, Remark, Result, closest};
use crate::spec::{
    Address, Binding, BindingValue, Problems, Scope, Source, Spec, Template, Test, Tree, either,
};
use crate::weights::{Index, Repository};

/// Most bytes of a config: those with the names of twenty thousand classes have two million.
const MAX_CONFIG: usize = 8 << 20;

/// Numbers and texts that all names of a description may have as values together.
const MAX_WEIGHT: usize = 2_000_000;

/// A model's `config.json`.
#[derive(Debug)]
pub struct Config {
    source: Source,
    /// What `id2label` is, where `num_labels` says it.
    counted_labels: Option<Tree>,
}

impl Config {
    /// Reads the `config.json` of a repository.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), and `Config` when there is none; `Io` when it cannot be read.
    pub fn open(repository: &Repository) -> Result<Config> {
        Config::open_file(repository, "config.json")?.ok_or_else(|| {
            let message = format!("no `{}`", repository.label("config.json"));
            Error::new(ErrorKind::Config, message).help("is this the directory of a model?")
        })
    }

    /// Reads a file of a repository, if it is there.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); `Io` when it cannot be read.
    pub fn open_file(repository: &Repository, file: &str) -> Result<Option<Config>> {
        repository.text(file)?.map(|text| Config::parse(repository.label(file), text)).transpose()
    }

    /// Reads a config; `label` names the file in messages.
    ///
    /// # Errors
    /// `Config` when the text is no JSON, no map, or has a key twice; `Limit` when it is too long.
    pub fn parse(label: impl Into<String>, text: impl Into<String>) -> Result<Config> {
        let (label, text) = (label.into(), text.into());
        if text.len() > MAX_CONFIG {
            let message = format!("`{label}`: expected at most {MAX_CONFIG} bytes, found {}", text.len());
            return Err(Error::new(ErrorKind::Limit, message));
        }
        let source = Source::json(label, text)?;
        let mut problems = Problems::default();
        if !matches!(source.tree, Tree::Map(_)) {
            let message = format!("expected a map of settings, found {}", source.tree.kind());
            problems.at(&source, &Address::root(), message, "");
        }
        repeated_keys(&source, &source.tree, &Address::root(), &mut problems);
        problems.finish(ErrorKind::Config)?;
        Ok(Config { counted_labels: counted_labels(&source.tree), source })
    }

    /// The value of a key, with dots for nested ones, and where it stands.
    pub fn find(&self, key: &str) -> Option<(&Tree, Address)> {
        if let (Some(labels), "id2label") = (&self.counted_labels, key) {
            return Some((labels, self.find("num_labels")?.1));
        }
        let (mut tree, mut at) = (&self.source.tree, Address::root());
        for segment in key.split('.') {
            let i = tree.entries().iter().position(|(k, _)| k == segment)?;
            (tree, at) = (&tree.entries()[i].1, at.child(i));
        }
        Some((tree, at))
    }

    /// The string at a key.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.find(key)?.0.as_text()
    }

    /// The strings at a key: a list of them, or one alone; none where it is null or not there.
    ///
    /// # Errors
    /// `Config` when there is something else.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let Some((value, at)) = self.find(key).filter(|(value, _)| **value != Tree::Null) else {
            return Ok(Vec::new());
        };
        let texts = match value {
            Tree::List(items) => items.iter().map(Tree::as_text).collect(),
            value => value.as_text().map(|text| vec![text]),
        };
        texts.ok_or_else(|| {
            let message = format!("wrong value of `{key}`: expected a list of strings, found `{value}`");
            Problem::new(message).at(self.source.place(&at)).into_error(ErrorKind::Config)
        })
    }

    /// Its keys with their values.
    pub fn entries(&self) -> &[(String, Tree)] {
        self.source.tree.entries()
    }

    /// The file and line of a place: `models/mine/config.json:14`.
    fn whereabouts(&self, at: &Address) -> String {
        match self.source.line(at) {
            Some(line) => format!("{}:{line}", self.source.name),
            None => self.source.name.clone(),
        }
    }

    /// The file.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.source.name
    }
}

/// Most classes that a number alone may say.
const MAX_LABELS: i64 = 1 << 16;

/// As transformers: where `num_labels` is another number than `id2label` has names for, classes have numbers as names.
fn counted_labels(config: &Tree) -> Option<Tree> {
    let Some(Tree::Int(n @ 0..=MAX_LABELS)) = config.get("num_labels") else { return None };
    match config.get("id2label") {
        None | Some(Tree::Null) => {}
        Some(Tree::Map(named)) if named.len() as i64 != *n => {}
        Some(_) => return None,
    }
    let named = |id: i64| (id.to_string(), Tree::Text(format!("LABEL_{id}")));
    Some(Tree::Map((0..*n).map(named).collect()))
}

fn repeated_keys(source: &Source, tree: &Tree, at: &Address, problems: &mut Problems) {
    let mut seen = std::collections::HashSet::new();
    for (i, (key, value)) in tree.entries().iter().enumerate() {
        if !seen.insert(key) {
            problems.at(source, &at.child(i).key(), format!("repeated key `{key}`"), "already given above");
        }
        repeated_keys(source, value, &at.child(i), problems);
    }
    if let Tree::List(items) = tree {
        items.iter().enumerate().for_each(|(i, item)| repeated_keys(source, item, &at.child(i), problems));
    }
}

/// What names stand for, and where each value comes from.
#[derive(Debug, Default)]
pub struct Bound {
    /// The values.
    pub scope: Scope,
    /// Whether the description is for this config.
    pub matches: bool,
    /// Notes such as `` `heads` is `num_attention_heads` (12) in config.json:7 ``.
    pub origins: HashMap<String, String>,
    /// Names that have their default, as the config says nothing.
    pub defaulted: HashSet<String>,
}

/// Gives each name of a description its value, and checks what it matches and requires. Without a checkpoint, what it may lack is
/// taken to be stored.
pub fn bind(spec: &Spec, config: &Config, index: Option<&Index>, problems: &mut Problems) -> Bound {
    let mut bound = Bound { matches: true, ..Bound::default() };
    // A test that accepts nothing is reported already.
    for test in spec.matches.iter().filter(|test| !test.accepted.is_empty()) {
        // A key that is not there does not speak against the description: old files lack many.
        if let Some((found, at)) = config.find(&test.key)
            && !accepts(test, found)
        {
            bound.matches = false;
            let message =
                mismatch(&format!("{} does not describe this model", spec.source.name), test, found);
            let problem = problems.brief(&spec.source, &test.at, message, "");
            note(problem, format!("set in {}", config.whereabouts(&at)));
        }
    }
    for test in spec.require.iter().filter(|test| !test.accepted.is_empty()) {
        let (found, at) = match config.find(&test.key) {
            Some((found, at)) if *found != Tree::Null || test.default.is_none() => (found.clone(), Some(at)),
            _ => match &test.default {
                Some(default) => (default.clone(), None),
                None => {
                    problems.push(missing_key(spec, config, &test.key, &test.at, "which `require` asks for"));
                    continue;
                }
            },
        };
        if !accepts(test, &found) {
            let problem = problems.brief(
                &spec.source,
                &test.at,
                mismatch(&format!("unsupported `{}`", test.key), test, &found),
                "",
            );
            if let Some(at) = at {
                note(problem, format!("set in {}", config.whereabouts(&at)));
            }
        }
    }
    classes_and_labels(config, problems);
    misspelt_keys(spec, config, problems);
    let asks = spec.config.iter().any(|binding| matches!(binding.value, BindingValue::Stored(_)));
    let names = index.filter(|_| asks).map(|index| Names::new(&spec.weights, index));
    let mut weight = 0;
    for binding in &spec.config {
        if let Some(value) = value_of(spec, config, names.as_ref(), binding, &mut bound, problems) {
            weight += value.weight();
            if weight > MAX_WEIGHT {
                problems.at(&spec.source, &binding.at, "the values of `config` are too long", "up to here");
                break;
            }
            bound.scope.insert(binding.name.clone(), value);
        }
    }
    bound
}

/// Reports classes and labels, which mean the same in every config, that have another type than there.
fn classes_and_labels(config: &Config, problems: &mut Problems) {
    if let Err(error) = config.texts("architectures") {
        for problem in error.problems() {
            problems.push(problem.clone());
        }
    }
    let Some((labels, at)) = config.find("id2label") else { return };
    let wrong = match labels {
        Tree::Null => None,
        Tree::Map(entries) => {
            let wrong = entries.iter().position(|(id, _)| id.parse::<i64>().is_err());
            wrong.map(|i| (at.child(i).key(), format!("the key `{}`", entries[i].0)))
        }
        other => Some((at, format!("`{other}`"))),
    };
    if let Some((at, found)) = wrong {
        let message =
            format!("wrong value of `id2label`: expected a map from numbers to names, found {found}");
        problems.at(&config.source, &at, message, "");
    }
}

/// Reports keys that the config lacks where it has one spelt almost the same that nothing reads: a default would hide that.
fn misspelt_keys(spec: &Spec, config: &Config, problems: &mut Problems) {
    let read: HashSet<&str> = keys_read(spec).into_iter().collect();
    for binding in &spec.config {
        if binding.keys().iter().any(|key| config.find(key).is_some()) {
            continue;
        }
        for key in binding.keys() {
            let (parent, name) = key.rsplit_once('.').unwrap_or(("", key));
            let siblings = if parent.is_empty() {
                config.source.tree.entries()
            } else {
                config.find(parent).map_or(&[][..], |(tree, _)| tree.entries())
            };
            let full = |sibling: &str| match parent {
                "" => sibling.to_owned(),
                parent => format!("{parent}.{sibling}"),
            };
            // Other tokens than the one that is meant have keys that differ in one letter.
            let unread = siblings
                .iter()
                .map(|(sibling, _)| sibling.as_str())
                .filter(|sibling| !read.contains(full(sibling).as_str()) && !is_irrelevant(sibling));
            let Some(near) = unread.into_iter().find(|sibling| is_misspelt(name, sibling)) else { continue };
            let message = format!(
                "`{}` has no `{key}`, and has `{near}`, which nothing reads",
                file_name(config.name())
            );
            let problem = problems.at(&spec.source, &binding.at, message, "");
            let help = format!("did you mean `{near}`?");
            problem.remarks.push(Remark { tag: "help", text: help });
        }
    }
}

/// Whether two keys differ by two neighbouring letters exchanged, or one letter more, less or other. Short ones do not count.
fn is_misspelt(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (x, y) = (&a[same..], &b[same..]);
    if a.len().min(b.len()) < 5 || a == b {
        return false;
    }
    // An `s` at the end makes another word of it.
    let tail = |x: &[char], y: &[char]| x == y && !(same + 1 == a.len().max(b.len()) && x.is_empty());
    match (x, y) {
        ([p, q, x @ ..], [r, s, y @ ..]) if (p, q) == (s, r) && x == y => true,
        ([_, x @ ..], [_, y @ ..]) if x == y && !x.is_empty() => true,
        ([_, rest @ ..], y) if tail(rest, y) => true,
        (x, [_, rest @ ..]) if tail(x, rest) => true,
        _ => false,
    }
}

fn note(problem: &mut Problem, text: String) {
    problem.remarks.push(Remark { tag: "note", text });
}

fn mismatch(what: &str, test: &Test, found: &Tree) -> String {
    let accepted: Vec<String> = test.accepted.iter().map(Tree::quoted).collect();
    let key = if what.ends_with('`') { String::new() } else { format!("`{}` ", test.key) };
    format!("{what}: expected {key}{}, found {}", either(&accepted), found.quoted())
}

/// What is wrong with a config that says that the weights are quantised: what they are stored as may not show it.
pub fn quantised(config: &Config) -> Option<Problem> {
    let (value, at) = config.find("quantization_config").filter(|(value, _)| **value != Tree::Null)?;
    let method = value.get("quant_method").map_or(String::new(), |method| format!(" ({method})"));
    let mut problem =
        Problem::new(format!("`quantization_config`: quantised checkpoints are not read{method}"));
    let help = "take the model that it was made from; it can be quantised when it is opened (`--dtype q8`, `--dtype q4`)";
    problem.remarks.push(Remark { tag: "help", text: help.into() });
    Some(problem.at(config.source().place(&at)))
}

/// Whether a test is met.
pub fn accepts(test: &Test, found: &Tree) -> bool {
    test.accepted.iter().any(|accepted| match (accepted, found) {
        (Tree::Int(a), Tree::Float(b)) | (Tree::Float(b), Tree::Int(a)) => *a as f64 == *b,
        (a, b) => a == b,
    })
}

/// Where the values come from that an expression names.
fn computed_from(tree: &Tree, bound: &Bound) -> Option<String> {
    let names = Template::parse(tree.as_text()?).ok()?.names();
    let from: Vec<&str> = names
        .iter()
        .filter_map(|name| bound.origins.get(name))
        .map(String::as_str)
        .filter(|origin| !origin.contains(" is computed (")) // that of what it comes from will do
        .collect();
    (!from.is_empty()).then(|| from.join("; "))
}

fn value_of(
    spec: &Spec,
    config: &Config,
    names: Option<&Names<'_>>,
    binding: &Binding,
    bound: &mut Bound,
    problems: &mut Problems,
) -> Option<Tree> {
    let (keys, default, when_null) = match &binding.value {
        BindingValue::Derived(tree, at) => {
            let value = evaluate(spec, tree, at, bound, problems)?;
            if let Some(from) = computed_from(tree, bound) {
                let origin = format!("`{}` is computed ({value}): {from}", binding.name);
                bound.origins.insert(binding.name.clone(), origin);
            }
            return Some(value);
        }
        BindingValue::Key { keys, default, when_null } => (keys, default, when_null),
        BindingValue::Stored(tensor) => {
            let is_stored = names.is_none_or(|names| names.find(tensor).is_some());
            let why = match (names, is_stored) {
                (None, _) => "is taken to be stored",
                (_, true) => "is stored",
                (_, false) => "is not stored",
            };
            let origin = format!("`{}` is {is_stored}, as `{tensor}` {why}", binding.name);
            bound.origins.insert(binding.name.clone(), origin);
            return Some(Tree::Bool(is_stored));
        }
    };
    let mut null = None;
    for key in keys {
        match config.find(key) {
            Some((Tree::Null, at)) => null = null.or(Some((key, at))),
            // Where another key may say more.
            Some((Tree::Map(entries), _)) if keys.len() > 1 && entries.is_empty() => {}
            Some((value, at)) => {
                let origin =
                    format!("`{}` is `{key}` ({value}) in {}", binding.name, config.whereabouts(&at));
                bound.origins.insert(binding.name.clone(), origin);
                return Some(value.clone());
            }
            None => {}
        }
    }
    if let Some((tree, at)) = when_null.as_ref().filter(|_| null.is_some()).or(default.as_ref()) {
        let value = evaluate(spec, tree, at, bound, problems)?;
        let config = file_name(config.name());
        let why = if null.is_some() { "has null for" } else { "has no" };
        let mut origin = format!("`{}` is {value}, as {config} {why} `{}`", binding.name, keys.join("`, `"));
        if let Some(from) = computed_from(tree, bound) {
            origin.push_str(&format!("; {from}"));
        }
        bound.origins.insert(binding.name.clone(), origin);
        bound.defaulted.insert(binding.name.clone());
        return Some(value);
    }
    if let Some((key, at)) = null {
        let message =
            format!("`{key}` is null in {}, needed by `${}`", config.whereabouts(&at), binding.name);
        let problem = problems.brief(&spec.source, &binding.at, message, "");
        let help = "give it a value there, or a `default` or `when_null` here".into();
        problem.remarks.push(Remark { tag: "help", text: help });
        return None;
    }
    let reason = format!("needed by `${}`", binding.name);
    let key = keys.first().map_or("", String::as_str);
    problems.push(missing_key(spec, config, key, &binding.at, &reason));
    None
}

fn evaluate(spec: &Spec, tree: &Tree, at: &Address, bound: &Bound, problems: &mut Problems) -> Option<Tree> {
    let Tree::Text(text) = tree else { return Some(tree.clone()) };
    let template = Template::parse(text).ok()?; // what is wrong with it is reported already
    // A name that has no value is reported already.
    let is_bound = |name: &String| bound.scope.contains_key(name);
    if !template.names().iter().all(is_bound) {
        return None;
    }
    match template.value(&bound.scope) {
        Ok(value) => Some(value),
        Err(message) => {
            let problem = problems.at(&spec.source, at, format!("cannot evaluate {message}"), "");
            for name in template.names() {
                if let Some(origin) = bound.origins.get(&name) {
                    note(problem, origin.clone());
                }
            }
            None
        }
    }
}

fn missing_key(spec: &Spec, config: &Config, key: &str, at: &Address, reason: &str) -> Problem {
    let message = format!("`{}` has no `{key}`, {reason}", file_name(config.name()));
    let mut scratch = Problems::default();
    let mut problem = scratch.brief(&spec.source, at, message, "").clone();
    let present = config.source.tree.entries().iter().map(|(k, _)| k.as_str());
    let near =
        closest(key, present.clone()).or_else(|| present.filter(|k| related(key, k)).min_by_key(|k| k.len()));
    let model_type = config.text("model_type").map(|t| format!("model_type is `{t}`"));
    match (near, model_type) {
        (Some(near), Some(model_type)) => {
            problem = problem.remark("found", format!("`{near}` looks close; {model_type}"));
        }
        (Some(near), None) => problem = problem.remark("found", format!("`{near}` looks close")),
        (None, Some(model_type)) => problem = problem.remark("found", model_type),
        (None, None) => {}
    }
    problem
}

/// Whether two keys end in the same telling word, as `n_head` and `num_attention_heads` do.
fn related(a: &str, b: &str) -> bool {
    let last = |key: &str| key.rsplit(['_', '.']).next().unwrap_or(key).trim_end_matches('s').to_owned();
    let last_of_a = last(a);
    last_of_a == last(b)
        && !["size", "type", "id", "dim", "token", "name", "class"].contains(&last_of_a.as_str())
}

fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_as_many_as_transformers_makes_them() {
        for (config, expected) in [
            (r#"{"num_labels": 3}"#, vec!["LABEL_0", "LABEL_1", "LABEL_2"]),
            (r#"{"num_labels": 1, "id2label": null}"#, vec!["LABEL_0"]),
            (r#"{"num_labels": 2, "id2label": {"0": "no", "1": "yes"}}"#, vec!["no", "yes"]),
            (r#"{"num_labels": 1, "id2label": {"0": "no", "1": "yes"}}"#, vec!["LABEL_0"]),
            (r#"{"num_labels": null, "id2label": {"0": "no"}}"#, vec!["no"]),
            (r#"{"num_labels": 99999999}"#, vec![]),
        ] {
            let parsed = Config::parse("config.json", config).unwrap();
            let labels = parsed.find("id2label").map_or(&[][..], |(labels, _)| labels.entries());
            let labels: Vec<&str> = labels.iter().filter_map(|(_, label)| label.as_text()).collect();
            assert_eq!(labels, expected, "{config}");
        }
    }
}
