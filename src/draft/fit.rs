//! What the names and shapes of stored tensors contradict is changed, one kind of difference after another.

use std::collections::{BTreeSet, HashSet};

use super::adapt::{Candidate, State};
use super::edit::{
    get_mut, move_repeat, rename, same_axes, set, set_bias, set_layout, stem, to_layer_norms, value_mut,
};
use super::known::{Known, declared, inside, roles};
use super::patterns::{Pattern, likeness};
use super::print::NOTE;
use super::sizes::Values;
use crate::nn::TensorUse;
use crate::plan::Config;
use crate::spec::{Address, Tree};

/// What a description asks for and what is stored.
pub(super) struct View<'a> {
    pub known: &'a Known,
    pub config: &'a Config,
    pub values: Values,
    pub stored: &'a [Pattern],
    /// What is asked for, each with the number of one of its tensors.
    pub all: Vec<(Pattern, usize)>,
    pub tensors: &'a [TensorUse],
    pub roles: Vec<String>,
    /// Stored, and asked for by nothing.
    pub free: Vec<&'a Pattern>,
    /// Asked for, and not stored.
    pub missing: Vec<(Pattern, usize)>,
}

impl<'a> View<'a> {
    pub fn new(
        known: &'a Known,
        config: &'a Config,
        values: Values,
        stored: &'a [Pattern],
        state: &'a State,
    ) -> View<'a> {
        let tensors = &state.tensors[..];
        let all = declared(tensors);
        let names: HashSet<&str> = stored.iter().map(|p| p.name.as_str()).collect();
        let asked: HashSet<&str> = all.iter().map(|(p, _)| p.name.as_str()).collect();
        let free = stored.iter().filter(|p| !asked.contains(p.name.as_str())).collect();
        let tied = |tensor: &TensorUse| {
            let is_stored = |name: &String| names.contains(name.as_str());
            tensor.tie.as_ref().is_some_and(is_stored)
                || tensors.iter().any(|t| t.tie.as_ref() == Some(&tensor.name) && is_stored(&t.name))
        };
        let is_missing = |(p, i): &&(Pattern, usize)| {
            *i < state.of_head && !names.contains(p.name.as_str()) && !tied(&tensors[*i])
        };
        let missing = all.iter().filter(is_missing).cloned().collect();
        View { known, config, values, stored, tensors, roles: roles(tensors), free, missing, all }
    }

    /// Whether a linear map says that its weight is stored the other way round.
    pub fn is_turned(&self, map: Option<&Tree>) -> bool {
        map.and_then(|map| map.get("layout")).and_then(Tree::as_text) == Some("in_out")
    }

    /// Whether shapes agree, but for sizes that the config does not say.
    pub fn may_fit(&self, stored: &[usize], asked: &[usize], label: &str) -> bool {
        let is_projection = label.starts_with("`qkv`");
        let is_guess = |n: &usize| self.values.guessed.iter().any(|(_, guess)| guess == n);
        // A vector is a norm's or a bias, not a map to one column.
        let is_vector = stored.len() == 1 && asked.len() > 1;
        !is_vector && same_axes(stored, asked)
            || (stored.len() == asked.len()
                && stored.len() > 1
                && stored.iter().zip(asked).any(|(a, b)| a == b)
                && (is_projection || stored.iter().zip(asked).all(|(a, b)| a == b || is_guess(b))))
    }

    pub fn has(&self, name: &str) -> bool {
        self.stored.iter().any(|p| p.name == name)
    }
}

impl Candidate {
    /// Layers under another name.
    pub(super) fn move_layers(&mut self, view: &View) -> usize {
        let groups: BTreeSet<&str> =
            view.stored.iter().map(Pattern::group).filter(|g| !g.is_empty()).collect();
        let wanted: BTreeSet<&str> =
            view.all.iter().map(|(p, _)| p.group()).filter(|g| !g.is_empty()).collect();
        let size = |g: &str| view.stored.iter().filter(|p| p.group() == g).count();
        let mut spare: Vec<&str> = groups.difference(&wanted).copied().collect();
        spare.sort_by_key(|g| std::cmp::Reverse(size(g)));
        let lost = wanted.difference(&groups).copied();
        let mut changes = 0;
        for old in lost {
            let best = spare
                .iter()
                .enumerate()
                .max_by(|(_, a), (_, b)| likeness(a, old).total_cmp(&likeness(b, old)));
            if let Some((i, new)) = best.map(|(i, new)| (i, *new)) {
                spare.remove(i);
                let (old, new) = (old.trim_end_matches('*'), new.trim_end_matches('*'));
                changes += move_repeat(&mut self.tree, old, new);
            }
        }
        changes
    }

    /// Weights of another name.
    pub(super) fn rename_weights(&mut self, view: &View) -> usize {
        let mut changes = 0;
        let mut pairs: Vec<(f64, usize, &Pattern)> = Vec::new();
        for (pattern, i) in view.missing.iter().filter(|(p, _)| !p.name.ends_with(".bias")) {
            let end = pattern.name.rsplit('.').next();
            for other in &view.free {
                let same_end = end == other.name.rsplit('.').next();
                // A norm of the embeddings is not the one behind the layers.
                let of_embeddings = |name: &str| name.contains("emb");
                let label = &view.tensors[*i].label;
                if pattern.layers.is_empty()
                    && label.ends_with("norm`")
                    && of_embeddings(&other.name) != of_embeddings(&pattern.name)
                {
                    continue;
                }
                if other.group() != pattern.group()
                    || !view.may_fit(&other.shape, &pattern.shape, &view.tensors[*i].label)
                    || !same_end
                {
                    continue;
                }
                let vocabulary = view.known.roles.get(&view.roles[*i]).into_iter().flatten();
                let seen =
                    vocabulary.map(|v| likeness(stem(v), stem(inside(&other.name)))).fold(0.0, f64::max);
                let own = likeness(stem(inside(&pattern.name)), stem(inside(&other.name)));
                pairs.push((seen.max(own) + 0.01 * own, *i, other));
            }
        }
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut done, mut used) = (HashSet::new(), HashSet::new());
        for (score, i, other) in &pairs {
            let alone = pairs.iter().filter(|(_, j, _)| j == i).count() == 1;
            if (*score < 0.3 && !alone) || done.contains(i) || used.contains(&other.name) {
                continue;
            }
            done.insert(*i);
            used.insert(other.name.clone());
            let name =
                &view.all.iter().find(|(_, j)| j == i).map(|(p, _)| p.name.clone()).unwrap_or_default();
            if rename(&mut self.tree, &view.tensors[*i].at, name, &other.name) {
                changes += 1;
                self.renamed += 1;
            }
        }
        changes
    }

    /// Weights the other way round: as a rule, then one by one.
    pub(super) fn turn(&mut self, view: &View) -> usize {
        let turned: Vec<&(Pattern, usize)> = view
            .all
            .iter()
            .filter(|(p, i)| {
                let found = view.stored.iter().find(|s| s.name == p.name);
                p.shape.len() == 2
                    && p.shape[0] != p.shape[1]
                    && !view.tensors[*i].label.contains("embedding")
                    && found.is_some_and(|s| s.shape.iter().rev().eq(&p.shape))
            })
            .collect();
        if let Some((_, first)) = turned.first() {
            let linear = self.tree.get("defaults").and_then(|d| d.get("linear")).cloned();
            let mut linear = linear.unwrap_or(Tree::Map(Vec::new()));
            let is_turned = linear.get("layout").and_then(Tree::as_text) == Some("in_out");
            if turned.iter().any(|(p, _)| !p.group().is_empty()) && !self.turned {
                self.turned = true;
                let layout = if is_turned { "out_in" } else { "in_out" };
                set(&mut linear, "layout", Tree::Text(layout.into()));
                set(&mut linear, NOTE, Tree::Text("weights that are not square show the layout".into()));
                let mut defaults = self.tree.get("defaults").cloned().unwrap_or(Tree::Map(Vec::new()));
                set(&mut defaults, "linear", linear);
                self.set_defaults(defaults);
                // A head is tied to the embeddings, or a linear map of its own kind.
                if let (Some(heads), false) = (get_mut(&mut self.tree, "heads"), is_turned) {
                    head_layouts(heads);
                }
                return 1;
            }
            let layout = if is_turned { "out_in" } else { "in_out" };
            if set_layout(&mut self.tree, &view.tensors[*first].at, layout) {
                return 1;
            }
        }
        0
    }

    /// Biases that are stored or not.
    pub(super) fn biases(&mut self, view: &View) -> usize {
        let mut changes = 0;
        for (pattern, i) in view.missing.iter().filter(|(p, _)| p.layers.is_empty() && p.shape.len() == 1) {
            let at = &view.tensors[*i].at;
            let own = own_bias(&self.tree, at);
            if own.is_none() && !pattern.name.ends_with(".bias") {
                continue;
            }
            // The bias of a map whose weight is tied may have any name.
            let is_bias =
                |p: &&&Pattern| p.layers.is_empty() && p.shape == pattern.shape && p.name.ends_with("bias");
            let has_weight =
                pattern.name.strip_suffix("bias").is_some_and(|s| view.has(&format!("{s}weight")));
            let other = view.free.iter().find(is_bias).filter(|_| !has_weight);
            let done = match (&own, other) {
                (Some(path), _) if view.has(&format!("{path}.bias")) => set_bias(&mut self.tree, at, true),
                (Some(_), Some(other)) => rename(&mut self.tree, at, &pattern.name, &other.name),
                (None, Some(other)) => bias_at(&mut self.tree, at, &other.name),
                (Some(_), None) => set_bias(&mut self.tree, at, false),
                (None, None) => false,
            };
            if done {
                return 1;
            }
        }
        for (pattern, i) in &view.missing {
            if let Some(weight) = pattern.name.strip_suffix("bias").map(|s| format!("{s}weight"))
                && view.has(&weight)
            {
                changes += usize::from(set_bias(&mut self.tree, &view.tensors[*i].at, false));
                // The tree has changed in shape: other addresses may be wrong.
                if changes > 0 {
                    return changes;
                }
            }
        }
        for bias in view.free.iter().filter(|p| p.name.ends_with(".bias")) {
            let weight = format!("{}weight", bias.name.trim_end_matches("bias"));
            let Some((_, i)) = view.all.iter().find(|(p, _)| p.name == weight) else { continue };
            if view.tensors[*i].label.contains("rms_norm") {
                to_layer_norms(&mut self.tree);
                return 1;
            }
            if set_bias(&mut self.tree, &view.tensors[*i].at, true) {
                return 1;
            }
        }
        0
    }
}

/// Gives the bias of the map at a place a name of its own.
fn bias_at(tree: &mut Tree, at: &Address, name: &str) -> bool {
    let Some((last, parents)) = at.steps().split_last() else { return false };
    let Some(map @ Tree::Map(_)) = value_mut(tree, parents) else { return false };
    if map.entries().get(*last).is_none_or(|(key, _)| key != "at") {
        return false;
    }
    set(map, "bias", Tree::Text(name.to_owned()));
    true
}

/// The path of a map whose bias has a name of its own, from the place of that name.
fn own_bias(tree: &Tree, at: &Address) -> Option<String> {
    let (last, parents) = at.steps().split_last()?;
    let mut here = Address::root();
    parents.iter().for_each(|i| here = here.child(*i));
    let map = here.value(tree)?;
    let (key, value) = map.entries().get(*last)?;
    let path = map.get("at")?.as_text()?;
    (key == "bias" && value.as_text().is_some()).then(|| path.trim_start_matches('/').to_owned())
}

/// Says of the linear maps of heads that they are stored as usual.
fn head_layouts(tree: &mut Tree) {
    match tree {
        Tree::Map(entries) => {
            for (key, value) in entries {
                if key == "linear" && value.get("layout").is_none() {
                    set(value, "layout", Tree::Text("out_in".into()));
                } else {
                    head_layouts(value);
                }
            }
        }
        Tree::List(items) => items.iter_mut().for_each(head_layouts),
        _ => {}
    }
}
