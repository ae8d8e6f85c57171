//! What the built-in descriptions say about names: which config keys mean the same, what parts of a layer are called,
//! how classes are built from the name of a model.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::OnceLock;

use super::patterns::{Pattern, group, patterns};
use super::print::NOTE;
use crate::error::Result;
use crate::nn::TensorUse;
use crate::plan::{Config, builtin, declare};
use crate::spec::{Problems, Source, Spec, Tree};

/// A built-in description.
#[derive(Clone, Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// Its tree.
    pub tree: Tree,
    /// The model types that it is for.
    pub types: Vec<String>,
    /// The paths of its tensors, inside of their layers.
    pub paths: BTreeSet<String>,
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
    /// For the last name of a weight of queries, keys and values the groups that its rows are in somewhere.
    pub fused: BTreeMap<String, Vec<Option<Tree>>>,
    /// In how many descriptions a block is, and a field of one: `attention`, `attention.scale`.
    pub fields: BTreeMap<String, usize>,
    /// Patterns of tensors that do not matter.
    pub ignored: BTreeSet<String>,
    /// What classes append to the name of the model, each with its tasks.
    pub suffixes: BTreeMap<String, BTreeSet<String>>,
}

impl Known {
    /// What all built-in descriptions but those say.
    ///
    /// # Errors
    /// When a built-in description cannot be read, which its tests exclude.
    pub fn new(without: &[&str]) -> Result<Known> {
        let mut known = Known::default();
        for read in read_all()?.iter().filter(|read| !without.contains(&read.family.name)) {
            for (name, keys) in &read.aliases {
                known.aliases.entry(name.clone()).or_default().extend(keys.iter().cloned());
            }
            for (name, groups) in &read.fused {
                known.fused.entry(name.clone()).or_default().push(groups.clone());
            }
            known.ignored.extend(read.ignored.iter().cloned());
            for (suffix, task) in &read.suffixes {
                known.suffixes.entry(suffix.clone()).or_default().insert(task.clone());
            }
            let blocks: BTreeSet<&str> =
                read.fields.iter().filter_map(|field| field.split('.').next()).collect();
            for block in blocks {
                *known.fields.entry(block.to_owned()).or_default() += 1;
            }
            for field in &read.fields {
                *known.fields.entry(field.clone()).or_default() += 1;
            }
            for (role, path) in &read.roles {
                known.roles.entry(role.clone()).or_default().insert(path.clone());
            }
            known.families.push(read.family.clone());
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

/// A built-in description and what it says about names.
struct Read {
    family: Family,
    aliases: Vec<(String, Vec<String>)>,
    roles: Vec<(String, String)>,
    fused: Vec<(String, Option<Tree>)>,
    fields: BTreeSet<String>,
    ignored: Vec<String>,
    suffixes: Vec<(String, String)>,
}

/// All built-in descriptions, which are read once.
fn read_all() -> Result<&'static [Read]> {
    static ALL: OnceLock<Vec<Read>> = OnceLock::new();
    if let Some(all) = ALL.get() {
        return Ok(all);
    }
    let names = builtin::names().into_iter();
    let all =
        names.filter_map(|name| Some(read(name, builtin::text(name)?))).collect::<Result<Vec<Read>>>()?;
    Ok(ALL.get_or_init(|| all))
}

fn read(name: &'static str, text: &str) -> Result<Read> {
    let source = Source::yaml(name, text)?;
    let tree = source.tree.clone();
    let spec = Spec::parse(source, &mut Problems::unseen());
    let bindings = spec.config.iter().filter(|binding| !binding.keys().is_empty());
    let aliases: Vec<(String, Vec<String>)> =
        bindings.map(|binding| (binding.name.clone(), binding.keys().to_vec())).collect();
    let mut suffixes = Vec::new();
    for head in &spec.heads {
        for class in &head.classes {
            let stem = stem_of(class, spec.heads.iter().flat_map(|h| &h.classes));
            suffixes.push((class[stem.len()..].to_owned(), head.task.clone()));
        }
    }
    // Names do not depend on how many layers there are: two will do.
    let few = aliases.iter().filter(|(name, _)| name.ends_with("layers"));
    let few: BTreeSet<String> = few.flat_map(|(_, keys)| keys).map(|key| format!("{key:?}: 2")).collect();
    let few: Vec<String> = few.into_iter().collect();
    let few = Config::parse("config.json", format!("{{{}}}", few.join(", ")))?;
    let (tensors, ..) = declare(&spec, &few, None);
    let path = |tensor: &TensorUse| {
        let path = patterns(std::iter::once((tensor.name.as_str(), &[][..])));
        path.first().map_or(String::new(), |p| inside(&p.name).to_owned())
    };
    let paths = tensors.iter().map(path).collect();
    let roles = tensors.iter().zip(roles(&tensors)).map(|(tensor, role)| (role, path(tensor))).collect();
    let mut fused = Vec::new();
    fused_weights(&tree, &mut fused);
    let mut used = BTreeSet::new();
    for section in ["defaults", "model"] {
        if let Some(tree) = tree.get(section) {
            fields(tree, "", &mut |field, _| {
                used.insert(field.to_owned());
            });
        }
    }
    let ignored = spec.weights.ignore.iter().map(|(pattern, _)| pattern.clone()).collect();
    let types = spec.matches.iter().filter(|test| test.key == "model_type");
    let types = types.flat_map(|t| t.accepted.iter().filter_map(Tree::as_text)).map(str::to_owned).collect();
    Ok(Read {
        family: Family { name, tree, types, paths },
        aliases,
        roles,
        fused,
        fields: used,
        ignored,
        suffixes,
    })
}

/// The last names of weights of queries, keys and values, each with its groups.
fn fused_weights(tree: &Tree, found: &mut Vec<(String, Option<Tree>)>) {
    if let Some(path) = tree.get("qkv")
        && let Some(path) = path.get("at").unwrap_or(path).as_text()
    {
        let last = path.rsplit('.').next().unwrap_or(path);
        found.push((last.to_owned(), tree.get("qkv_groups").cloned()));
    }
    match tree {
        Tree::Map(entries) => entries.iter().for_each(|(_, x)| fused_weights(x, found)),
        Tree::List(items) => items.iter().for_each(|x| fused_weights(x, found)),
        _ => {}
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
    // A pattern has a star for the first number of a name, or for the first two.
    let mut numbers: HashMap<String, usize> = HashMap::new();
    for (i, tensor) in tensors.iter().enumerate() {
        let mut segments: Vec<&str> = tensor.name.split('.').collect();
        numbers.entry(tensor.name.clone()).or_insert(i);
        for _ in 0..2 {
            let number = segments.iter().position(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()));
            let Some(at) = number else { break };
            segments[at] = "*";
            numbers.entry(segments.join(".")).or_insert(i);
        }
    }
    let of = |name: &str| numbers.get(name).copied();
    let mut found: Vec<(Pattern, usize)> =
        all.into_iter().filter_map(|p| of(&p.name).map(|i| (p, i))).collect();
    found.sort_by_key(|(_, i)| *i);
    found
}

/// Calls `see` with all fields of blocks, `attention.scale`, and their values.
pub fn fields(tree: &Tree, block: &str, see: &mut dyn FnMut(&str, &Tree)) {
    match tree {
        Tree::Map(entries) => {
            for (key, value) in entries.iter().filter(|(key, _)| key != NOTE) {
                if !block.is_empty() {
                    see(&format!("{block}.{key}"), value);
                }
                fields(value, key, see);
            }
        }
        Tree::List(items) => items.iter().for_each(|x| fields(x, "", see)),
        _ => {}
    }
}
