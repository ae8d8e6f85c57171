//! Norms that other layers of a description do not have, and what it has and is not stored.

use super::adapt::Candidate;
use super::edit::{get_mut, owner, set, stem, value_mut};
use super::fit::View;
use super::known::inside;
use super::print::{NOTE, yaml};
use crate::nn::TensorUse;
use crate::spec::{Address, Tree};

impl Candidate {
    /// Norms of queries and keys, which other layers of this description do not have.
    pub(super) fn head_norms(&mut self, view: &View) -> usize {
        for norm in view.free.iter().filter(|p| !p.group().is_empty() && p.name.ends_with(".weight")) {
            let path = stem(inside(&norm.name));
            let mut named = path.split('.').filter(|s| s.contains("norm") && s.starts_with(['q', 'k']));
            let last = named.next_back().unwrap_or_else(|| path.rsplit('.').next().unwrap_or(path));
            let (field, part) = match last.chars().next() {
                Some('q') if last.contains("norm") => ("q_norm", "`q` of"),
                Some('k') if last.contains("norm") => ("k_norm", "`k` of"),
                _ => continue,
            };
            let map = view.all.iter().find(|(p, i)| {
                p.group() == norm.group() && p.shape.len() == 2 && view.tensors[*i].label.starts_with(part)
            });
            let Some((map, i)) = map else { continue };
            let Some(owner) = owner(&self.tree, &view.tensors[*i].at, "o") else { continue };
            let has_bias = view.has(&format!("{}.bias", stem(&norm.name)));
            let text = yaml(&self.tree);
            let has_eps = self.section("config").iter().any(|(name, _)| name == "eps");
            let Some(attention) = value_mut(&mut self.tree, &owner) else { continue };
            if attention.get(field).is_some() {
                continue;
            }
            let over = match norm.shape.as_slice() {
                [_, _] => "each",
                _ if path.contains('*') => "each",
                [n] if *n == map.shape[0] => "all",
                _ => "head",
            };
            let mut fields = vec![("at".to_owned(), Tree::Text(path.to_owned()))];
            if !text.contains("rms_norm") {
                fields.push(("kind".into(), Tree::Text("layer_norm".into())));
            }
            if over != "head" {
                fields.push(("over".into(), Tree::Text(over.into())));
            }
            if has_eps {
                fields.push(("eps".into(), Tree::Text("$eps".into())));
            }
            if has_bias {
                fields.push(("bias".into(), Tree::Bool(true)));
            }
            let why = format!(
                "`{field}`: `{}` {:?}, beside {} rows of queries or keys",
                norm.name, norm.shape, map.shape[0]
            );
            fields.push((NOTE.into(), Tree::Text(why)));
            set(attention, field, Tree::Map(fields));
            return 1;
        }
        0
    }

    /// Norms that the first layer does not have.
    pub(super) fn partial(&mut self, view: &View) -> usize {
        for (pattern, i) in view.all.iter().filter(|(p, _)| !p.group().is_empty()) {
            let tensor = &view.tensors[*i];
            let Some(found) = view.stored.iter().find(|p| p.name == pattern.name) else { continue };
            // The pattern has the layers that are planned, which are a few of those that are alike.
            let Some((_, n)) = tensor.layer.filter(|_| pattern.layers.contains(&0)) else { continue };
            let has = |layer: usize| found.layers.contains(&layer);
            if has(0) || !(1..n).all(has) || !tensor.label.ends_with("norm`") {
                continue;
            }
            let steps = tensor.at.steps();
            for n in (1..steps.len()).rev() {
                let Some(Tree::List(items)) = value_mut(&mut self.tree, &steps[..n]) else { continue };
                let Some(item) = items.get_mut(steps[n]).filter(|item| item.get("when").is_none()) else {
                    break;
                };
                set(item, "when", Tree::Text("${i > 0}".into()));
                set(item, NOTE, Tree::Text(format!("the first layer has no `{}`", inside(&found.name))));
                return 1;
            }
        }
        0
    }

    /// What is not stored, if it can be left out.
    pub(super) fn leave(&mut self, view: &View) -> usize {
        for (_, i) in &view.missing {
            if leave_branch(&mut self.tree, view, *i) {
                self.lost += 0.3;
                return 1;
            }
        }
        for (_, i) in &view.missing {
            if self.leave_value(view, *i) {
                self.lost += 0.3;
                return 1;
            }
        }
        for (_, i) in view.missing.iter().filter(|(p, _)| !p.name.ends_with(".bias")) {
            if leave_out(&mut self.tree, &view.tensors[*i]) {
                self.lost += if view.tensors[*i].label == "`embedding`" { 1.0 } else { 0.3 };
                return 1;
            }
        }
        0
    }
}

impl Candidate {
    /// Leaves out a value beside the main ones of which nothing is stored, and the heads that read it.
    fn leave_value(&mut self, view: &View, i: usize) -> bool {
        let steps = view.tensors[i].at.steps();
        let (Tree::Map(sections), [section, value, ..]) = (&self.tree, steps) else { return false };
        if sections.get(*section).is_none_or(|(key, _)| key != "model") {
            return false;
        }
        let Some((name, _)) = sections[*section].1.entries().get(*value) else { return false };
        let name = name.clone();
        let is_there = view.all.iter().any(|(_, j)| {
            view.tensors[*j].at.steps().starts_with(&steps[..2]) && !view.missing.iter().any(|(_, m)| m == j)
        });
        // A value may also be an optional field: the bias of an attention.
        let reads = |tree: &Tree| {
            let mut found = false;
            let mut rest = tree.clone();
            drop_references(&mut rest, &name);
            rest.visit_texts(&Address::root(), &mut |text, _| found |= text == name);
            found
        };
        if is_there || ["hidden", "encoder"].contains(&name.as_str()) {
            return false;
        }
        if sections[*section].1.entries().iter().any(|(other, x)| *other != name && reads(x)) {
            return false;
        }
        let Some(Tree::Map(heads)) = get_mut(&mut self.tree, "heads") else { return false };
        let outputs = |head: &Tree| head.get("outputs").cloned().unwrap_or(Tree::Null);
        heads.retain(|(_, head)| {
            let mut values = head.clone();
            set(&mut values, "outputs", Tree::Null);
            outputs(head) != Tree::Null || !reads(&values)
        });
        for (_, head) in heads.iter_mut() {
            match get_mut(head, "outputs") {
                Some(Tree::List(outputs)) => outputs.retain(|x| x.as_text() != Some(&name)),
                Some(Tree::Map(outputs)) => outputs.retain(|(_, x)| x.as_text() != Some(&name)),
                _ => {}
            }
        }
        if let Some(Tree::Map(values)) = get_mut(&mut self.tree, "model") {
            values.retain(|(key, _)| *key != name);
            values.iter_mut().for_each(|(_, value)| drop_references(value, &name));
        }
        true
    }
}

/// Drops the fields in which blocks name a value that they can do without.
fn drop_references(tree: &mut Tree, name: &str) {
    match tree {
        Tree::Map(entries) => {
            entries.retain(|(key, value)| {
                !["bias", "distances"].contains(&key.as_str()) || value.as_text() != Some(name)
            });
            entries.iter_mut().for_each(|(_, x)| drop_references(x, name));
        }
        Tree::List(items) => items.iter_mut().for_each(|x| drop_references(x, name)),
        _ => {}
    }
}

/// Fields of blocks that may be left out.
const OPTIONAL: [&str; 3] = ["q_norm", "k_norm", "sinks"];

/// Leaves out the optional field, the norm or the embedding that asks for a tensor.
fn leave_out(tree: &mut Tree, tensor: &TensorUse) -> bool {
    let steps = tensor.at.steps();
    for n in (0..steps.len()).rev() {
        match value_mut(tree, &steps[..n]) {
            Some(Tree::Map(entries)) => {
                let key = entries.get(steps[n]).map(|(key, _)| key.as_str()).unwrap_or_default();
                if OPTIONAL.contains(&key) {
                    entries.remove(steps[n]);
                    return true;
                }
            }
            Some(Tree::List(items)) if items.len() > 1 => {
                let droppable =
                    tensor.label.contains("norm`") || ["`embedding`", "`scale`"].contains(&&*tensor.label);
                let is_block = items[steps[n]]
                    .entries()
                    .iter()
                    .any(|(key, _)| ["layer_norm", "rms_norm", "embedding", "scale"].contains(&key.as_str()));
                // Without its embedding a sequence has no input; a branch of a sum can go.
                let is_branch =
                    items.iter().all(|x| matches!(x, Tree::List(_)) || x.get("embedding").is_some());
                if droppable && is_block && (is_branch || tensor.label != "`embedding`") {
                    items.remove(steps[n]);
                    return true;
                }
                return false;
            }
            _ => {}
        }
    }
    false
}

/// Leaves out the branch of a sum of which nothing is stored.
fn leave_branch(tree: &mut Tree, view: &View, i: usize) -> bool {
    let steps = view.tensors[i].at.steps();
    for n in 1..steps.len() {
        let is_sum = match value_mut(tree, &steps[..n - 1]) {
            Some(Tree::Map(entries)) => entries.get(steps[n - 1]).is_some_and(|(key, _)| key == "sum"),
            _ => false,
        };
        let Some(Tree::List(branches)) = value_mut(tree, &steps[..n]).filter(|_| is_sum) else { continue };
        let branch = &steps[..=n];
        let is_there = view.all.iter().any(|(_, j)| {
            view.tensors[*j].at.steps().starts_with(branch) && !view.missing.iter().any(|(_, m)| m == j)
        });
        let reads_tokens = branches[steps[n]].get("embedding").is_some();
        if is_there || branches.len() < 2 || reads_tokens {
            continue;
        }
        branches.remove(steps[n]);
        if branches.len() == 1
            && n >= 1
            && let Some(Tree::List(items)) = n.checked_sub(2).and_then(|n| value_mut(tree, &steps[..n]))
            && let Some(Tree::List(left)) = items.get(steps[n - 2]).and_then(|item| item.get("sum")).cloned()
        {
            let left = left.into_iter().flat_map(|x| match x {
                Tree::List(items) => items,
                one => vec![one],
            });
            items.splice(steps[n - 2]..=steps[n - 2], left);
        }
        return true;
    }
    false
}
