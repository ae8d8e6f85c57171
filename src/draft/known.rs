//! What the built-in descriptions say about names: which config keys mean the same, what parts of a layer are called,
//! how classes are built from the name of a model.

use std::collections::{BTreeMap, BTreeSet};

use super::patterns::{Pattern, group, patterns};
use crate::error::Result;
use crate::nn::TensorUse;
use crate::plan::{Config, builtin, declare};
use crate::spec::{BindingValue, Problems, Source, Spec, Tree};

/// A built-in description.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// Its tree.
    pub tree: Tree,
    /// The model types that it is for.
    pub types: Vec<String>,
}

/// What all descriptions say together.
#[derive(Debug, Default)]
pub struct Known {
    /// The descriptions.
    pub families: Vec<Family>,
    /// For the name of a binding all config keys that it is bound to somewhere.
    pub aliases: BTreeMap<String, BTreeSet<String>>,
    /// For what a tensor is used as the paths that it has somewhere.
    pub roles: BTreeMap<String, BTreeSet<String>>,
    /// Patterns of tensors that do not matter.
    pub ignored: BTreeSet<String>,
    /// What classes append to the name of the model, each with its tasks.
    pub suffixes: BTreeMap<String, BTreeSet<String>>,
}

impl Known {
    /// Reads all built-in descriptions but those.
    ///
    /// # Errors
    /// When a built-in description cannot be read, which its tests exclude.
    pub fn new(without: &[&str]) -> Result<Known> {
        let mut known = Known::default();
        let mut specs = Vec::new();
        for name in builtin::names().into_iter().filter(|name| !without.contains(name)) {
            let Some(text) = builtin::text(name) else { continue };
            let source = Source::yaml(name, text)?;
            let tree = source.tree.clone();
            specs.push((name, tree, Spec::parse(source, &mut Problems::default())));
        }
        for (_, _, spec) in &specs {
            for binding in &spec.config {
                if let BindingValue::Key { keys, .. } = &binding.value {
                    known.aliases.entry(binding.name.clone()).or_default().extend(keys.iter().cloned());
                }
            }
        }
        // Names do not depend on how many layers there are: two will do.
        let few = known.aliases.iter().filter(|(name, _)| name.ends_with("layers"));
        let few: BTreeSet<String> = few.flat_map(|(_, keys)| keys).map(|key| format!("{key:?}: 2")).collect();
        let few: Vec<String> = few.into_iter().collect();
        let few = Config::parse("config.json", format!("{{{}}}", few.join(", ")))?;
        for (name, tree, spec) in specs {
            known.ignored.extend(spec.weights.ignore.iter().map(|(pattern, _)| pattern.clone()));
            for head in &spec.heads {
                for class in &head.classes {
                    let stem = stem_of(class, spec.heads.iter().flat_map(|h| &h.classes));
                    known
                        .suffixes
                        .entry(class[stem.len()..].to_owned())
                        .or_default()
                        .insert(head.task.clone());
                }
            }
            let (tensors, ..) = declare(&spec, &few, None);
            for (tensor, role) in tensors.iter().zip(roles(&tensors)) {
                let path = patterns(std::iter::once((tensor.name.as_str(), &[][..])));
                let path = path.first().map_or(String::new(), |p| inside(&p.name).to_owned());
                known.roles.entry(role).or_default().insert(path);
            }
            let types = spec.matches.iter().filter(|test| test.key == "model_type");
            let types = types.flat_map(|t| t.accepted.iter().filter_map(Tree::as_text));
            known.families.push(Family { name, tree, types: types.map(str::to_owned).collect() });
        }
        Ok(known)
    }

    /// The name of the model in a class, what the class appends to it, and the tasks that it may mean.
    pub fn take_apart<'c>(&self, class: &'c str) -> Option<(&'c str, &'c str, &BTreeSet<String>)> {
        let fitting = self.suffixes.iter().filter(|(suffix, _)| class.ends_with(suffix.as_str()));
        let (suffix, tasks) = fitting.max_by_key(|(suffix, _)| suffix.len())?;
        let (stem, suffix) = class.split_at(class.len() - suffix.len());
        Some((stem, suffix, tasks))
    }
}

/// The longest beginning, up to a capital letter, that a class shares with another of the same description.
pub fn stem_of<'a>(class: &'a str, all: impl Iterator<Item = &'a String>) -> &'a str {
    let shared = |other: &String| class.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let most = all.filter(|other| *other != class).map(shared).max().unwrap_or(0);
    // `XForMaskedLM` and `XForTokenClassification` share `XFor`.
    let cut = [class.find("For"), class.find("LMHead"), class.find("Model")].into_iter().flatten().min();
    let end = cut.unwrap_or(most).min(class.len());
    &class[..end]
}

/// The part of a pattern inside of its layer, or all of it.
pub fn inside(name: &str) -> &str {
    name[group(name).len()..].trim_start_matches('.')
}

/// What each tensor is used as; for norms also between what they stand.
pub fn roles(tensors: &[TensorUse]) -> Vec<String> {
    let part = |label: &str| -> &'static str {
        if label.contains("norm` of") || label.ends_with("norm`") {
            "norm"
        } else if label.contains("attention`") {
            if label.starts_with("`o`") { "out" } else { "attention" }
        } else if label.contains("mlp`") || label.contains("moe`") {
            "mlp"
        } else {
            ""
        }
    };
    let at_edge = |i: usize, j: Option<usize>| -> &'static str {
        let Some(other) = j.and_then(|j| tensors.get(j)) else { return "" };
        let same = other.layer.map(|l| l.0) == tensors[i].layer.map(|l| l.0);
        if same { part(&other.label) } else { "" }
    };
    (0..tensors.len())
        .map(|i| {
            let tensor = &tensors[i];
            let end = tensor.name.rsplit('.').next().unwrap_or_default();
            if part(&tensor.label) != "norm" || tensor.label.contains("norm` of") {
                return format!("{} {end}", tensor.label);
            }
            let is_norm = |j: &usize| part(&tensors[*j].label) == "norm";
            let before = (0..i).rev().find(|j| !is_norm(j));
            let behind = (i + 1..tensors.len()).find(|j| !is_norm(j));
            format!("norm {} {} {end}", at_edge(i, before), at_edge(i, behind))
        })
        .collect()
}

/// The declared tensors as patterns, each with the number of one of its tensors.
pub fn declared(tensors: &[TensorUse]) -> Vec<(Pattern, usize)> {
    let all = patterns(tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())));
    let of = |name: &str| -> Option<usize> {
        tensors.iter().position(|t| {
            t.name.split('.').count() == name.split('.').count()
                && name.split('.').zip(t.name.split('.')).all(|(p, s)| p == "*" || p == s)
        })
    };
    let mut found: Vec<(Pattern, usize)> =
        all.into_iter().filter_map(|p| of(&p.name).map(|i| (p, i))).collect();
    found.sort_by_key(|(_, i)| *i);
    found
}
