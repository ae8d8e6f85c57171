//! Norms, factors and experts in layers that a description does not have: where they go is read off their names.

use std::collections::BTreeSet;

use super::adapt::Candidate;
use super::convert::is_attention;
use super::edit::{get_mut, stem, value_mut};
use super::fit::View;
use super::known::inside;
use super::patterns::Pattern;
use super::print::{NOTE, yaml};
use super::sizes::{evaluate, size};
use crate::spec::{Scope, Tree};

const FEED_FORWARD: [&str; 3] = ["gated_mlp", "mlp", "moe"];

/// Whether a path is that of a norm over whole rows.
pub(super) fn is_norm(pattern: &Pattern) -> bool {
    let path = inside(&pattern.name).to_lowercase();
    let last = stem(&path).rsplit('.').next().unwrap_or_default().to_owned();
    pattern.shape.len() == 1
        && path.ends_with(".weight")
        && (path.contains("norm") || path.contains("ln"))
        && !(last.contains("norm") && (last.starts_with('q') || last.starts_with('k')))
}

fn is_of_feed_forward(path: &str) -> bool {
    ["ffn", "mlp", "feedforward", "feed_forward", "_ff_"].iter().any(|part| path.contains(part))
}

/// The steps to the first block of one of these kinds in the layers of a group.
fn find(tree: &Tree, group: &str, kinds: &[&str], scope: &Scope) -> Option<Vec<usize>> {
    fn walk(tree: &Tree, inside: bool, wanted: &Wanted, steps: &mut Vec<usize>) -> bool {
        let mut descend = |i: usize, child: &Tree, inside: bool| {
            steps.push(i);
            let found = walk(child, inside, wanted, steps);
            if !found {
                steps.pop();
            }
            found
        };
        match tree {
            Tree::Map(entries) => {
                let is_out = tree
                    .get("when")
                    .is_some_and(|when| evaluate(when, wanted.scope) == Some(Tree::Bool(false)));
                if is_out {
                    return false;
                }
                let is_block = entries.iter().any(|(key, _)| wanted.kinds.contains(&key.as_str()));
                if inside && is_block {
                    return true;
                }
                let at = tree.get("at").and_then(Tree::as_text).unwrap_or_default();
                let is_group =
                    tree.get("repeat").is_some() && at.replacen("$i", "*", 1).starts_with(wanted.group);
                entries.iter().enumerate().any(|(i, (_, child))| descend(i, child, inside || is_group))
            }
            Tree::List(items) => items.iter().enumerate().any(|(i, child)| descend(i, child, inside)),
            _ => false,
        }
    }
    struct Wanted<'a> {
        group: &'a str,
        kinds: &'a [&'a str],
        scope: &'a Scope,
    }
    let Tree::Map(sections) = tree else { return None };
    let model = sections.iter().position(|(key, _)| key == "model")?;
    let mut steps = vec![model];
    walk(&sections[model].1, false, &Wanted { group, kinds, scope }, &mut steps).then_some(steps)
}

/// The list that a block stands in, and its number there.
pub(super) fn sequence<'t>(tree: &'t mut Tree, steps: &[usize]) -> Option<(&'t mut Vec<Tree>, usize)> {
    let (last, parents) = steps.split_last()?;
    match value_mut(tree, parents)? {
        Tree::List(items) if *last < items.len() => Some((items, *last)),
        _ => None,
    }
}

pub(super) fn path_of_norm(block: &Tree) -> Option<&str> {
    let norm = block.get("rms_norm").or_else(|| block.get("layer_norm"))?;
    norm.get("at").unwrap_or(norm).as_text()
}

impl Candidate {
    pub(super) fn norm_block(&self, view: &View, norm: &Pattern, path: &str, why: String) -> Tree {
        let has_bias = view.has(&format!("{}.bias", stem(&norm.name)));
        let kind =
            if has_bias || !yaml(&self.tree).contains("rms_norm:") { "layer_norm" } else { "rms_norm" };
        Tree::Map(vec![(kind.into(), Tree::Text(path.into())), (NOTE.into(), Tree::Text(why))])
    }

    /// Norms inside of layers whose names say between what they stand.
    pub(super) fn layer_norms(&mut self, view: &View) -> usize {
        for norm in view.free.iter().filter(|p| !p.group().is_empty() && is_norm(p)) {
            let path = stem(inside(&norm.name)).to_owned();
            let lower = path.to_lowercase();
            let scope = &view.values.scope;
            let Some(block) = find(&self.tree, norm.group(), &FEED_FORWARD, scope) else { continue };
            let attention = find(&self.tree, norm.group(), &["attention"], scope);
            let (is_post, is_pre) = (lower.contains("post"), lower.contains("pre"));
            let shared = block.len() > 2
                && attention.as_ref().is_some_and(|a| a[..a.len() - 1] == block[..block.len() - 1]);
            if is_of_feed_forward(&lower) && (is_post || is_pre) && !shared {
                let place = if is_post { "behind" } else { "before" };
                let new = self.norm_block(
                    view,
                    norm,
                    &path,
                    format!("`{path}` is stored: by its name, {place} the second branch"),
                );
                let all_post = view
                    .stored
                    .iter()
                    .filter(|p| p.group() == norm.group() && is_norm(p))
                    .all(|p| inside(&p.name).contains("post"));
                let Some((items, at)) = sequence(&mut self.tree, &block) else { continue };
                items.insert(if is_post { at + 1 } else { at }, new);
                // What stood there and is called the norm behind the attention goes there.
                let moved = at.checked_sub(1).and_then(|i| {
                    let path = path_of_norm(&items[i])?;
                    (is_attention(path) && path.contains("post") && (is_pre || all_post)).then_some(i)
                });
                let moved = moved.map(|i| items.remove(i));
                if let (Some(mut moved), Some(attention)) = (moved, attention)
                    && let Some((items, at)) = sequence(&mut self.tree, &attention)
                {
                    if let Tree::Map(entries) = &mut moved {
                        entries.retain(|(key, _)| key != NOTE);
                        entries.push((NOTE.into(), Tree::Text("by its name, behind the attention".into())));
                    }
                    items.insert(at + 1, moved);
                }
                return 1;
            }
            if shared {
                // One norm before both branches, and another is stored: each has its own.
                let map = &block[..block.len() - 2];
                let new = self.norm_block(
                    view,
                    norm,
                    &path,
                    "a second norm is stored: of the second branch".into(),
                );
                let Some((outer, at)) = sequence(&mut self.tree, map) else { continue };
                let Some(first) = at.checked_sub(1).filter(|i| path_of_norm(&outer[*i]).is_some()) else {
                    continue;
                };
                let first = outer.remove(first);
                let Some(Tree::List(branches)) = outer.get_mut(at - 1).and_then(|sum| get_mut(sum, "sum"))
                else {
                    continue;
                };
                for branch in branches.iter_mut() {
                    let is_attention = branch.get("attention").is_some();
                    let norm = if is_attention { first.clone() } else { new.clone() };
                    *branch = Tree::List(vec![norm, branch.clone()]);
                }
                return 1;
            }
        }
        0
    }

    /// Maps that all rows go through, beside a mixture of experts.
    pub(super) fn shared_experts(&mut self, view: &View) -> usize {
        let is_shared =
            |p: &&&Pattern| !p.group().is_empty() && p.name.contains("shared") && p.name.ends_with(".weight");
        let shared: Vec<&Pattern> = view.free.iter().filter(is_shared).copied().collect();
        let find_part = |part: &str| {
            shared.iter().find(|p| stem(&p.name).rsplit('.').next().is_some_and(|x| x.starts_with(part)))
        };
        let (Some(gate), Some(up), Some(down)) = (find_part("gate"), find_part("up"), find_part("down"))
        else {
            return 0;
        };
        let scope = &view.values.scope;
        let Some(block) = find(&self.tree, gate.group(), &["moe"], scope) else { return 0 };
        let path = |p: &Pattern| Tree::Text(stem(inside(&p.name)).to_owned());
        let rows = gate.shape.first().copied().unwrap_or(0);
        let of_config =
            view.config.entries().iter().find(|(key, v)| key.contains("shared") && size(v) == Some(rows));
        let inner = match of_config {
            Some(_) => Tree::Text("$shared_inner".into()),
            None => Tree::Int(i64::try_from(rows).unwrap_or(i64::MAX)),
        };
        let Some((items, at)) = sequence(&mut self.tree, &block) else { return 0 };
        let act =
            items[at].get("moe").and_then(|moe| moe.get("act")).cloned().unwrap_or(Tree::Text("silu".into()));
        let when = items[at].get("when").cloned();
        let fields = vec![
            ("gate".to_owned(), path(gate)),
            ("up".to_owned(), path(up)),
            ("down".to_owned(), path(down)),
            ("inner".to_owned(), inner),
            ("act".to_owned(), act),
            (NOTE.to_owned(), Tree::Text("by their names, all rows go through these".into())),
        ];
        let mut branch = Tree::Map(vec![("gated_mlp".into(), Tree::Map(fields))]);
        if let Some(weight) = shared.iter().find(|p| p.shape.len() == 2 && p.shape[0] == 1) {
            let linear = vec![("at".to_owned(), path(weight)), ("out".to_owned(), Tree::Int(1))];
            let gate = vec![
                Tree::Map(vec![("linear".into(), Tree::Map(linear))]),
                Tree::Map(vec![("activation".into(), Tree::Text("sigmoid".into()))]),
            ];
            branch = Tree::Map(vec![("product".into(), Tree::List(vec![branch, Tree::List(gate)]))]);
        }
        let mut moe = items[at].clone();
        if let Tree::Map(entries) = &mut moe {
            entries.retain(|(key, _)| key != "when");
        }
        let mut sum = vec![("sum".to_owned(), Tree::List(vec![moe, branch]))];
        sum.extend(when.map(|when| ("when".to_owned(), when)));
        items[at] = Tree::Map(sum);
        if let (Some((key, _)), Some(Tree::Map(entries))) = (of_config, get_mut(&mut self.tree, "config")) {
            entries.retain(|(name, _)| name != "shared_inner");
            entries.push(("shared_inner".into(), Tree::Text(key.clone())));
        }
        1
    }

    /// Learned factors of the two branches of a layer.
    pub(super) fn factors(&mut self, view: &View) -> usize {
        let is_factor = |p: &&&Pattern| {
            let path = inside(&p.name).to_lowercase();
            !p.group().is_empty()
                && p.shape.len() == 1
                && (path.contains("scale") || path.contains("gamma") || path.contains("lambda"))
                && !path.ends_with(".weight")
        };
        let factors: Vec<&Pattern> = view.free.iter().filter(is_factor).copied().collect();
        let [first, second] = factors[..] else { return 0 };
        let scope = &view.values.scope;
        for (factor, kinds) in [(first, &["attention"][..]), (second, &FEED_FORWARD[..])] {
            let Some(block) = find(&self.tree, factor.group(), kinds, scope) else { return 0 };
            let Some((items, at)) = sequence(&mut self.tree, &block) else { return 0 };
            let path = inside(&factor.name);
            let fields = vec![
                ("at".to_owned(), Tree::Text(path.to_owned())),
                (NOTE.to_owned(), Tree::Text(format!("`{path}` {:?}: by its name, a factor", factor.shape))),
            ];
            items.insert(at + 1, Tree::Map(vec![("scale".into(), Tree::Map(fields))]));
        }
        2
    }

    /// One norm in a layer: both branches read what it gives.
    pub(super) fn parallel(&mut self, view: &View) -> usize {
        let groups: BTreeSet<&str> =
            view.missing.iter().map(|(p, _)| p.group()).filter(|g| !g.is_empty()).collect();
        for group in groups {
            let norms = view.stored.iter().filter(|p| p.group() == group && is_norm(p)).count();
            let scope = &view.values.scope;
            let Some(attention) = find(&self.tree, group, &["attention"], scope) else { continue };
            let Some(block) = find(&self.tree, group, &FEED_FORWARD, scope) else { continue };
            let has_memory = view.stored.iter().any(|p| p.group() == group && p.name.contains("cross"));
            // Both in a `residual` of their own, one behind the other: `[norm, attention]`, `[norm, block]`.
            let (n, m) = (attention.len(), block.len());
            if norms != 1 || n != m || n < 3 || attention[..n - 3] != block[..n - 3] || has_memory {
                continue;
            }
            if block[n - 3] != attention[n - 3] + 1 || attention[n - 1] != 1 || block[n - 1] != 1 {
                continue;
            }
            let Some(Tree::List(body)) = value_mut(&mut self.tree, &attention[..n - 3]) else { continue };
            let second = body.get(block[n - 3]).and_then(|x| x.get("residual")).cloned();
            let Some(Tree::List(second)) = second else { continue };
            let Some(Tree::List(first)) = body.get_mut(attention[n - 3]).and_then(|x| get_mut(x, "residual"))
            else {
                continue;
            };
            if first.len() != 2
                || second.len() != 2
                || path_of_norm(&first[0]).is_none()
                || path_of_norm(&second[0]).is_none()
            {
                continue;
            }
            let (Some(attention), Some(mut other)) = (first.pop(), second.last().cloned()) else { continue };
            if let Tree::Map(entries) = &mut other {
                entries.retain(|(key, _)| key != NOTE);
            }
            let note = "a guess: layers have one norm, so both branches read what it gives".to_owned();
            first.push(Tree::Map(vec![
                ("sum".into(), Tree::List(vec![attention, other])),
                (NOTE.into(), Tree::Text(note)),
            ]));
            body.remove(block[n - 3]);
            self.lost += 0.25;
            return 1;
        }
        0
    }
}
