//! Sizes that a config does not name as a description expects it, found from the shapes of what is stored.

use super::adapt::Candidate;
use super::edit::{get_mut, owner, same_axes, set, value_mut};
use super::fit::View;
use super::patterns::Pattern;
use super::print::{NOTE, yaml};
use crate::plan::Config;
use crate::spec::{Scope, Template, Tree};

/// The values of names, and those among them that the config does not say: they may be wrong.
pub(super) struct Values {
    pub scope: Scope,
    pub guessed: Vec<(String, usize)>,
}

/// A positive whole number.
pub(super) fn size(tree: &Tree) -> Option<usize> {
    match tree {
        Tree::Int(n) => usize::try_from(*n).ok().filter(|n| *n > 0),
        _ => None,
    }
}

/// How many numbers there are, or the most that can be counted.
pub(super) fn product(shape: &[usize]) -> usize {
    shape.iter().fold(1, |n, side| n.saturating_mul(*side))
}

/// What a field of a block comes to outside of loops.
pub(super) fn evaluate(tree: &Tree, scope: &Scope) -> Option<Tree> {
    match tree {
        Tree::Text(text) if text.contains('$') => Template::parse(text).ok()?.value(scope).ok(),
        other => Some(other.clone()),
    }
}

impl Candidate {
    /// What the names stand for with this config.
    pub(super) fn values(&self, config: &Config) -> Values {
        let mut values = Values { scope: Scope::default(), guessed: Vec::new() };
        for (name, binding) in self.section("config") {
            let keys: Vec<&str> = match binding.get("key").unwrap_or(binding) {
                Tree::Text(key) if !key.contains('$') => vec![key],
                Tree::List(keys) => keys.iter().filter_map(Tree::as_text).collect(),
                _ => Vec::new(),
            };
            let found = keys.iter().filter_map(|key| config.find(key)).map(|(found, _)| found.clone());
            let found = found.into_iter().find(|found| *found != Tree::Null);
            let is_said = found.is_some();
            let plain = if keys.is_empty() { Some(binding) } else { binding.get("default") };
            let Some(value) = found.or_else(|| evaluate(plain?, &values.scope)) else { continue };
            if let (false, Some(n)) = (is_said, size(&value)) {
                values.guessed.push((name.clone(), n));
            }
            values.scope.insert(name.clone(), value);
        }
        values
    }

    /// Numbers of layers that nothing in the config said: those that are stored.
    pub(super) fn layer_counts(&mut self, config: &Config, stored: &[Pattern]) {
        let guessed: Vec<String> = self.values(config).guessed.into_iter().map(|(name, _)| name).collect();
        let count = stored.iter().map(|p| p.layers.len()).max().unwrap_or(0);
        let text = yaml(&self.tree);
        let loops = |name: &&String| text.contains(&format!("repeat: ${name}\n"));
        let used = self.keys();
        let key = config.entries().iter().find(|(key, value)| {
            let is_count = ["layer", "depth", "block"].iter().any(|word| key.contains(word));
            is_count && size(value) == Some(count) && !used.contains(key)
        });
        for name in guessed.iter().filter(loops).filter(|_| count > 0) {
            let Some(binding) = get_mut(&mut self.tree, "config").and_then(|c| get_mut(c, name)) else {
                continue;
            };
            *binding = match key {
                Some((key, _)) => Tree::Map(vec![
                    ("key".into(), Tree::Text(key.clone())),
                    (NOTE.into(), Tree::Text(format!("a guess: {count} layers are stored"))),
                ]),
                None => Tree::Text(format!("${{{count}}}")),
            };
        }
    }

    /// Leaves out tables to which the config gives no rows.
    pub(super) fn empty_tables(&mut self, config: &Config) {
        let scope = self.values(config).scope;
        if let Some(model) = get_mut(&mut self.tree, "model") {
            drop_empty(model, &scope);
        }
    }

    /// Sizes that nothing in the config said, and that the shapes contradict.
    pub(super) fn sizes(&mut self, view: &View) -> usize {
        for (pattern, i) in &view.all {
            let Some(found) = view.stored.iter().find(|p| p.name == pattern.name) else { continue };
            if same_axes(&found.shape, &pattern.shape) || found.shape.len() != pattern.shape.len() {
                continue;
            }
            let axes = pattern.shape.iter().zip(&found.shape).filter(|(asked, is)| asked != is);
            for (asked, is) in axes {
                let names = view.values.guessed.iter().filter(|(_, n)| n == asked).map(|(name, _)| name);
                for name in names {
                    if self.rebind(view, name, *is, &pattern.name) {
                        return 1;
                    }
                }
                let is_double = view.tensors[*i].label.starts_with("`gate_up`") && is % 2 == 0;
                let halves = view.values.guessed.iter().filter(|(_, n)| is_double && 2 * n == *asked);
                for (name, _) in halves {
                    if self.rebind(view, name, *is / 2, &pattern.name) {
                        return 1;
                    }
                }
                if self.inner(view, *i, *is, &pattern.name) {
                    return 1;
                }
                if view.tensors[*i].label == "`linear`"
                    && *is > 0
                    && asked.is_multiple_of(*is)
                    && self.one_of(view, *i)
                {
                    return 1;
                }
            }
            if pattern.group().is_empty()
                && view.tensors[*i].label == "`layer_norm`"
                && self.norm_first(view, *i)
            {
                return 1;
            }
            if view.tensors[*i].label == "`embedding`"
                && found.shape[1..] == pattern.shape[1..]
                && self.table(view, *i, found.shape[0])
            {
                return 1;
            }
        }
        0
    }

    /// Gives a name the value that a shape shows.
    fn rebind(&mut self, view: &View, name: &str, n: usize, tensor: &str) -> bool {
        let is_key = |key: &&String| view.config.find(key).is_some_and(|(found, _)| size(found) == Some(n));
        let used = self.keys();
        let alias = view.known.aliases.get(name).into_iter().flatten().find(is_key).cloned();
        let unused = view.config.entries().iter().map(|(key, _)| key).find(|key| {
            is_key(key) && !used.contains(key) && !key.contains("token") && !key.contains("layer")
        });
        let entries = self.section("config");
        let position = |name: &str| entries.iter().position(|(n, _)| n == name);
        let here = position(name);
        let is_above = |other: &str| position(other) < here && position(other).is_some();
        let hidden = view.values.scope.get("hidden").and_then(size).filter(|_| is_above("hidden"));
        let (value, why) = if let Some(key) = alias.or(unused.cloned()) {
            (Tree::Text(key.clone()), format!("`{key}` is {n}, as is a side of `{tensor}`"))
        } else if let Some(factor) = hidden.filter(|h| n.is_multiple_of(*h) && n / h <= 8).map(|h| n / h) {
            let text = if factor == 1 { "$hidden".to_owned() } else { format!("${{{factor} * hidden}}") };
            (Tree::Text(text), format!("no key of the config says {n}, which is a side of `{tensor}`"))
        } else if let Some((key, ratio)) = hidden.and_then(|h| ratio(view.config, h, n)) {
            let Some(Tree::Map(entries)) = get_mut(&mut self.tree, "config") else { return false };
            let at = here.unwrap_or(entries.len());
            if entries.iter().any(|(n, _)| n == "ratio") {
                return false;
            }
            let note = format!("`{key}` is {ratio}: {n} is a side of `{tensor}`");
            entries.insert(at, ("ratio".into(), Tree::Text(key)));
            (Tree::Text("${(hidden * ratio) | int}".into()), note)
        } else {
            let n = i64::try_from(n).unwrap_or(i64::MAX);
            (Tree::Int(n), format!("a guess: no key of the config says {n}, which is a side of `{tensor}`"))
        };
        let Some(binding) = get_mut(&mut self.tree, "config").and_then(|c| get_mut(c, name)) else {
            return false;
        };
        let is_number = matches!(value, Tree::Int(_));
        let value = match value {
            // A binding is a key or an expression.
            Tree::Int(n) => Tree::Text(format!("${{{n}}}")),
            other => other,
        };
        if binding.get("key").unwrap_or(binding) == &value && !is_number {
            return false;
        }
        *binding = Tree::Map(vec![("key".into(), value), (NOTE.into(), Tree::Text(why))]);
        if let Some(Tree::Text(text)) = binding.get("key")
            && text.contains('$')
        {
            *binding = Tree::Text(text.clone());
        }
        true
    }

    /// The width inside of a feed-forward block that does not take it from a name.
    fn inner(&mut self, view: &View, i: usize, n: usize, tensor: &str) -> bool {
        let label = &view.tensors[i].label;
        let parts = ["`up`", "`gate`", "`gate_up`"];
        let Some(part) =
            parts.iter().find(|part| label.starts_with(*part)).filter(|_| !label.contains("moe"))
        else {
            return false;
        };
        let n = if *part == "`gate_up`" { n / 2 } else { n };
        let Some(owner) = owner(&self.tree, &view.tensors[i].at, "inner") else { return false };
        let keys = view.known.aliases.get("inner").into_iter().flatten();
        let key = keys.clone().find(|key| view.config.find(key).is_some_and(|(v, _)| size(v) == Some(n)));
        let Some(key) = key.cloned() else { return false };
        let Some(fields @ Tree::Map(_)) = value_mut(&mut self.tree, &owner) else { return false };
        if fields.get("inner").and_then(Tree::as_text) == Some("$inner") {
            return false;
        }
        set(fields, "inner", Tree::Text("$inner".into()));
        set(fields, NOTE, Tree::Text(format!("`{key}` is {n}, as is a side of `{tensor}`")));
        if let Some(Tree::Map(entries)) = get_mut(&mut self.tree, "config") {
            entries.retain(|(name, _)| name != "inner");
            entries.push(("inner".into(), Tree::Text(key)));
        }
        true
    }

    /// A map of one value, where a description puts several side by side.
    fn one_of(&mut self, view: &View, i: usize) -> bool {
        let steps = view.tensors[i].at.steps();
        for n in (1..steps.len()).rev() {
            if let Some(Tree::List(items)) = value_mut(&mut self.tree, &steps[..n]) {
                let before = steps[n].checked_sub(1).and_then(|at| items.get_mut(at));
                let Some(before) = before else { return false };
                let Some(Tree::List(values)) = before.get("concat") else { return false };
                let Some(first) = values.first().cloned() else { return false };
                let why = format!("a guess: `{}` is as wide as one value", view.tensors[i].name);
                *before = Tree::Map(vec![("from".into(), first), (NOTE.into(), Tree::Text(why))]);
                return true;
            }
        }
        false
    }

    /// A norm has the width that there is before the map in front of it.
    fn norm_first(&mut self, view: &View, i: usize) -> bool {
        let steps = view.tensors[i].at.steps();
        for n in (1..steps.len()).rev() {
            if let Some(Tree::List(items)) = value_mut(&mut self.tree, &steps[..n]) {
                let at = steps[n];
                let is_behind = at > 0 && items.get(at - 1).is_some_and(|x| x.get("linear").is_some());
                if is_behind && at < items.len() {
                    items.swap(at - 1, at);
                }
                return is_behind;
            }
        }
        false
    }

    /// Rows of a table of positions, some of which may be passed over.
    fn table(&mut self, view: &View, i: usize, rows: usize) -> bool {
        let Some((_, parents)) = view.tensors[i].at.steps().split_last() else { return false };
        let named = |extra: usize| {
            let mut names =
                view.values.scope.iter().filter(|(_, v)| size(v).is_some_and(|v| v + extra == rows));
            names.next().map(|(name, _)| name.clone())
        };
        let Some(fields @ Tree::Map(_)) = value_mut(&mut self.tree, parents) else { return false };
        if fields.get("rows").is_none()
            || !fields.get("of").and_then(Tree::as_text).is_some_and(|of| of.contains("positions"))
        {
            return false;
        }
        let Some((extra, name)) = (0..=4).find_map(|extra| Some((extra, named(extra)?))) else {
            return false;
        };
        let text = if extra == 0 { format!("${name}") } else { format!("${{{name} + {extra}}}") };
        if fields.get("rows").and_then(Tree::as_text) == Some(text.as_str()) {
            return false;
        }
        set(fields, "rows", Tree::Text(text));
        if let Tree::Map(entries) = fields {
            entries.retain(|(key, _)| key != "offset");
        }
        if extra > 0 {
            set(fields, "offset", Tree::Int(extra as i64));
        }
        set(fields, NOTE, Tree::Text(format!("the table has {rows} rows")));
        true
    }
}

/// A number of the config that makes `n` of `hidden`.
fn ratio(config: &Config, hidden: usize, n: usize) -> Option<(String, String)> {
    config.entries().iter().find_map(|(key, value)| {
        let ratio = match value {
            Tree::Int(x) => *x as f64,
            Tree::Float(x) => *x,
            _ => return None,
        };
        let is_ratio = key.contains("ratio") || key.contains("expan") || key.contains("mult");
        (is_ratio && (hidden as f64 * ratio) as usize == n).then(|| (key.clone(), value.to_string()))
    })
}

/// Drops the branches of sums that are tables without rows.
fn drop_empty(tree: &mut Tree, scope: &Scope) {
    match tree {
        Tree::Map(entries) => {
            for (key, value) in entries {
                if let ("sum", Tree::List(branches)) = (key.as_str(), &mut *value)
                    && branches.len() > 2
                {
                    branches.retain(|branch| {
                        let rows = branch.get("embedding").and_then(|table| table.get("rows"));
                        rows.and_then(|rows| evaluate(rows, scope)) != Some(Tree::Int(0))
                    });
                }
                drop_empty(value, scope);
            }
        }
        Tree::List(items) => items.iter_mut().for_each(|x| drop_empty(x, scope)),
        _ => {}
    }
}
