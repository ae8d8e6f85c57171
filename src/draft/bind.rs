//! The names that a description binds, and the keys of a config.

use std::collections::{BTreeSet, HashSet};

use super::adapt::Candidate;
use super::edit::{get_mut, set};
use super::fold::{fold, names};
use super::known::Known;
use super::patterns::Pattern;
use super::print::NOTE;
use crate::plan::Config;
use crate::spec::{Scope, Tree};

impl Candidate {
    /// Decides for one of the model types, where a file describes several.
    pub(super) fn fold_type(&mut self, model_type: Option<&str>) -> f64 {
        let Some(model_type) = model_type else { return 0.0 };
        let mut scope = Scope::default();
        for (name, value) in self.section("config").to_vec() {
            let is_type = value.get("key").unwrap_or(&value).as_text() == Some("model_type");
            if is_type {
                scope.insert(name, Tree::Text(model_type.to_owned()));
            } else if let Tree::Text(text) = &value
                && text.contains('$')
            {
                let mut value = value.clone();
                fold(&mut value, &scope);
                if matches!(value, Tree::Bool(_)) {
                    scope.insert(name, value);
                }
            }
        }
        if scope.is_empty() {
            return 1.0;
        }
        self.fold_names(&scope);
        0.0
    }

    /// Decides for what is stored, where a description is for both.
    pub(super) fn fold_stored(&mut self, stored: &[Pattern]) {
        let mut scope = Scope::default();
        for (name, value) in self.section("config") {
            if let Some(tensor) = value.get("stored").and_then(Tree::as_text) {
                scope.insert(name.clone(), Tree::Bool(stored.iter().any(|p| p.name == tensor)));
            }
        }
        self.fold_names(&scope);
    }

    /// Puts values in the place of names.
    fn fold_names(&mut self, scope: &Scope) {
        for section in ["config", "weights", "defaults", "model", "heads"] {
            if let Some(tree) = get_mut(&mut self.tree, section) {
                if let (Tree::Map(entries), "config") = (&mut *tree, section) {
                    entries.retain(|(name, _)| !scope.contains_key(name));
                }
                fold(tree, scope);
            }
        }
    }

    /// Binds names to the keys that the config has; says what share of both fits.
    pub(super) fn bind(&mut self, known: &Known, config: &Config) -> f64 {
        let mut taken: BTreeSet<String> =
            self.keys().into_iter().filter(|key| config.find(key).is_some()).collect();
        let known_keys: BTreeSet<&String> = known.aliases.values().flatten().collect();
        let (mut found, mut all) = (0.0, 0.0);
        let Some(Tree::Map(entries)) = get_mut(&mut self.tree, "config") else { return 0.0 };
        for (name, value) in entries.iter_mut() {
            let keys: Vec<String> = match value.get("key").unwrap_or(value) {
                Tree::Text(text) if !text.contains('$') => vec![text.clone()],
                Tree::List(items) => items.iter().filter_map(Tree::as_text).map(str::to_owned).collect(),
                _ => continue,
            };
            all += 1.0;
            let mut keys = keys;
            if let Some(nested) = keys.iter().find_map(|key| one_of_kind(config, key)) {
                let note =
                    "a guess: the config has a map for each kind of layer, and this is the first".to_owned();
                set(value, "key", Tree::Text(nested.clone()));
                set(value, NOTE, Tree::Text(note));
                keys = vec![nested];
            }
            let mut present = keys.iter().find(|key| config.find(key).is_some()).cloned();
            if present.is_none() {
                let mut others = known.aliases.get(name).into_iter().flatten();
                let other = others.find(|key| config.find(key).is_some() && !taken.contains(*key)).cloned();
                let is_exact = other.is_some();
                let other = other.or_else(|| synonym(known, config, name, &taken));
                if let Some(key) = other {
                    taken.insert(key.clone());
                    let note = if is_exact {
                        format!("`{key}` is what other descriptions bind `{name}` to")
                    } else {
                        format!("a guess: `{key}` sounds like what others bind `{name}` to")
                    };
                    set(value, "key", Tree::Text(key.clone()));
                    set(value, NOTE, Tree::Text(note));
                    present = Some(key.clone());
                }
            }
            let Some(key) = present else {
                let default = value.get("default").cloned();
                if let Some(default) =
                    default.filter(|d| !matches!(d, Tree::Null | Tree::List(_) | Tree::Map(_)))
                {
                    let note = format!("not in this config: {default} is the default of {}", self.family);
                    set(value, NOTE, Tree::Text(note));
                }
                continue;
            };
            found += 1.0;
            let is_plain = |tree: &Tree| match tree {
                Tree::Text(text) => !text.contains('$'),
                Tree::List(_) | Tree::Map(_) | Tree::Null => false,
                _ => true,
            };
            if let Some((seen, _)) = config.find(&key)
                && value.get("default").is_some_and(is_plain)
                && is_plain(seen)
            {
                // What holds without the key only its configuration class says.
                if let Tree::Map(entries) = &mut *value {
                    entries.retain(|(field, _)| field != "default");
                }
                if let [(_, key @ Tree::Text(_))] = value.entries() {
                    *value = key.clone();
                }
            }
        }
        let structural: Vec<&str> = config
            .entries()
            .iter()
            .map(|(key, _)| key.as_str())
            .filter(|key| known_keys.contains(&key.to_string()))
            .collect();
        let bound = structural
            .iter()
            .filter(|key| taken.iter().any(|t| t == *key || t.split('.').next() == Some(*key)));
        let share = bound.count() as f64 / structural.len().max(1) as f64;
        self.require(config);
        share + found / f64::max(all, 1.0)
    }

    /// Leaves out what few descriptions have, where it only says a number that the config does not have.
    pub(super) fn unasked(&mut self, known: &Known, config: &Config) {
        let guessed: Vec<String> = self.section("config").iter().map(|(name, _)| name.clone()).collect();
        let values = self.values(config);
        let lacks = |name: &str| {
            let binding = self.tree.get("config").and_then(|c| c.get(name));
            let keys = match binding.and_then(|binding| binding.get("key")) {
                Some(Tree::List(keys)) => keys.iter().filter_map(Tree::as_text).collect(),
                Some(Tree::Text(key)) => vec![key.as_str()],
                _ => Vec::new(),
            };
            !keys.is_empty()
                && !keys.iter().any(|key| config.find(key).is_some())
                && matches!(values.scope.get(name), Some(Tree::Float(_)))
        };
        let names: BTreeSet<String> =
            guessed.into_iter().filter(|name| lacks(name)).map(|name| format!("${name}")).collect();
        if let Some(model) = get_mut(&mut self.tree, "model") {
            drop_unasked(model, "", known, &names);
        }
    }

    /// Keeps what is required of keys that the config has.
    pub(super) fn require(&mut self, config: &Config) {
        let mut refused = Vec::new();
        if let Some(Tree::Map(entries)) = get_mut(&mut self.tree, "require") {
            entries.retain(|(key, value)| {
                let Some((found, _)) = config.find(key) else { return false };
                let accepted = value.get("is").unwrap_or(value);
                let fits = match accepted {
                    Tree::List(items) => items.contains(found),
                    one => one == found,
                };
                if !fits && *found != Tree::Null {
                    refused
                        .push(format!("config key `{key}` is {found}, where {accepted} would be required"));
                }
                fits
            });
        }
        if let Tree::Map(sections) = &mut self.tree {
            sections.retain(|(name, value)| name != "require" || !value.entries().is_empty());
        }
        self.refused.extend(refused);
    }

    /// Puts each name behind those that it is computed from.
    pub(super) fn order_names(&mut self) {
        let Some(Tree::Map(entries)) = get_mut(&mut self.tree, "config") else { return };
        let mut left = std::mem::take(entries);
        while !left.is_empty() {
            let waits =
                |value: &Tree| names(value).iter().any(|name| left.iter().any(|(other, _)| other == name));
            // Names that wait for each other stay as they are: they are reported.
            let next = left.iter().position(|(_, value)| !waits(value)).unwrap_or(0);
            entries.push(left.remove(next));
        }
    }

    /// Drops names that nothing uses any more.
    pub(super) fn unused(&mut self) {
        loop {
            let mut used: HashSet<String> = names(&self.tree).into_iter().collect();
            let Some(Tree::Map(entries)) = get_mut(&mut self.tree, "config") else { return };
            used.retain(|name| entries.iter().any(|(n, _)| n == name));
            let before = entries.len();
            entries.retain(|(name, _)| used.contains(name));
            if entries.len() == before {
                return;
            }
        }
    }
}

/// A key of the config of which most words are those of a key that a name is bound to elsewhere.
fn synonym(known: &Known, config: &Config, name: &str, taken: &BTreeSet<String>) -> Option<String> {
    let words = |key: &str| -> BTreeSet<String> { key.split(['_', '.']).map(str::to_owned).collect() };
    let is_bound =
        |key: &String| known.aliases.values().any(|keys| keys.contains(key)) || taken.contains(key);
    let aliases = known.aliases.get(name)?;
    let mut best: Option<(f64, &String)> = None;
    for (key, value) in config.entries().iter().filter(|(key, _)| !is_bound(key)) {
        if matches!(value, Tree::Null | Tree::List(_) | Tree::Map(_)) || key.contains("dropout") {
            continue;
        }
        for alias in aliases.iter().filter(|alias| !alias.contains('.')) {
            let (a, b) = (words(key), words(alias));
            let alike = a.intersection(&b).count() as f64 / a.len().max(b.len()) as f64;
            if a.len() > 1 && alike >= 0.6 && best.is_none_or(|(score, _)| alike > score) {
                best = Some((alike, key));
            }
        }
    }
    best.map(|(_, key)| key.clone())
}

/// Where a config has a map of maps in the place of a map: the same key in the first of them.
fn one_of_kind(config: &Config, key: &str) -> Option<String> {
    let (outer, rest) = key.split_once('.').map_or((key, None), |(outer, rest)| (outer, Some(rest)));
    let kinds = config.find(outer)?.0.entries();
    let (kind, first) = kinds.first()?;
    let are_maps = kinds.iter().all(|(_, kind)| !kind.entries().is_empty());
    match rest {
        _ if !are_maps => None,
        None => Some(format!("{outer}.{kind}")),
        Some(rest) => first.get(rest).map(|_| format!("{outer}.{kind}.{rest}")),
    }
}

/// Drops rare fields, and factors, whose value is one of the names.
fn drop_unasked(tree: &mut Tree, block: &str, known: &Known, names: &BTreeSet<String>) {
    let is_name = |tree: &Tree| tree.as_text().is_some_and(|text| names.contains(text));
    match tree {
        Tree::Map(entries) => {
            let all = known.fields.get(block).copied().unwrap_or(0);
            let is_rare =
                |key: &str| known.fields.get(&format!("{block}.{key}")).is_some_and(|n| 2 * n < all);
            entries.retain(|(key, value)| !(is_name(value) && is_rare(key)));
            entries.iter_mut().for_each(|(key, x)| drop_unasked(x, key, known, names));
        }
        Tree::List(items) => {
            if items.len() > 1 {
                items.retain(|item| !item.get("scale").is_some_and(is_name));
            }
            items.iter_mut().for_each(|x| drop_unasked(x, "", known, names));
        }
        _ => {}
    }
}
