//! One kind of block in the place of another, where the stored weights are those of the other.

use super::adapt::Candidate;
use super::edit::{at_owner, get_mut, owner, set, stem, value_mut};
use super::fit::View;
use super::known::inside;
use super::patterns::{Pattern, likeness};
use super::print::NOTE;
use super::sizes::product;
use crate::spec::Tree;

/// Whether a path in a layer belongs to an attention, by its name.
pub(super) fn is_attention(path: &str) -> bool {
    let path = path.to_lowercase();
    path.contains("att") || path.contains("qkv") || path.contains("query")
}

/// How alike a path and the known paths of a part are.
fn fits(view: &View, part: &str, path: &str) -> f64 {
    let roles = ["mlp", "gated_mlp", "moe", "attention"].map(|block| format!("`{part}` of `{block}` weight"));
    let known = roles.iter().filter_map(|role| view.known.roles.get(role)).flatten();
    known.map(|known| likeness(stem(known), path)).fold(0.0, f64::max)
}

/// Which weight is which part: the choice that fits the known names best.
fn assign<'p>(view: &View, parts: &[&str], hidden: usize, weights: &[&'p Pattern]) -> Vec<&'p Pattern> {
    let Some((part, rest)) = parts.split_first() else { return Vec::new() };
    // As a rule weights are stored as `[out, in]`.
    let lies = |part: &str, p: &Pattern| {
        if (part == "down") == (p.shape.first() == Some(&hidden)) { 0.2 } else { 0.0 }
    };
    let value = |choice: &[&Pattern], parts: &[&str]| -> f64 {
        choice
            .iter()
            .zip(parts)
            .map(|(p, part)| fits(view, part, stem(inside(&p.name))) + lies(part, p))
            .sum()
    };
    let mut best: Option<(f64, Vec<&'p Pattern>)> = None;
    for (i, first) in weights.iter().enumerate() {
        let mut others = weights.to_vec();
        others.remove(i);
        let mut choice = vec![*first];
        choice.extend(assign(view, rest, hidden, &others));
        let score = value(&choice[..1], &[part]) + value(&choice[1..], rest);
        if choice.len() == parts.len() && best.as_ref().is_none_or(|(s, _)| score > *s) {
            best = Some((score, choice));
        }
    }
    best.map_or(Vec::new(), |(_, choice)| choice)
}

impl Candidate {
    /// Two or three weights behind the attention: with a gate, without, or with both in one.
    pub(super) fn feed_forward(&mut self, view: &View) -> usize {
        let downs = view.all.iter().filter(|(p, i)| {
            let label = &view.tensors[*i].label;
            !p.group().is_empty()
                && p.name.ends_with(".weight")
                && ["mlp", "gated_mlp", "moe"].iter().any(|b| label.starts_with(&format!("`down` of `{b}`")))
        });
        for (down, i) in downs {
            let at = &view.tensors[*i].at;
            let Some(owner) = owner(&self.tree, at, "down") else { continue };
            let is_moe = view.tensors[*i].label.contains("`moe`");
            let is_own = |p: &Pattern| {
                view.all.iter().any(|(a, j)| a.name == p.name && at_owner(&view.tensors[*j].at, &owner))
            };
            let is_other = |p: &Pattern| view.all.iter().any(|(a, _)| a.name == p.name) && !is_own(p);
            let weights: Vec<&Pattern> = view
                .stored
                .iter()
                .filter(|p| {
                    let path = inside(&p.name);
                    p.group() == down.group()
                        && p.shape.len() == 2
                        && p.name.ends_with(".weight")
                        && path.contains('*') == is_moe
                        && !is_attention(path)
                        && !is_other(p)
                })
                .collect();
            let Some(fields) = value_mut(&mut self.tree, &owner) else { continue };
            let hidden = down.shape[usize::from(view.is_turned(fields.get("down")))];
            let wide = |p: &Pattern| product(&p.shape) / hidden.max(1);
            let is_fused = fields.get("gate_up").is_some();
            let is_gated = is_fused || fields.get("gate").is_some();
            let wanted: &[&str] = match weights.len() {
                2 => {
                    let pair = assign(view, &["up", "down"], hidden, &weights);
                    let [up, down] = pair[..] else { continue };
                    match (wide(up), wide(down)) {
                        (a, b) if a == b => &["up", "down"],
                        (a, b) if a == b.saturating_mul(2) || b == a.saturating_mul(2) => {
                            &["gate_up", "down"]
                        }
                        _ => continue,
                    }
                }
                3 if weights.iter().all(|p| wide(p) == wide(weights[0])) => &["gate", "up", "down"],
                _ => continue,
            };
            let is_same = match wanted {
                ["up", "down"] => !is_gated,
                ["gate_up", "down"] => is_fused,
                _ => is_gated && !is_fused,
            };
            let is_stored = weights.iter().any(|p| is_own(p));
            if (is_same && is_stored) || (is_moe && (!is_same || wanted.len() < 3)) {
                continue;
            }
            if self.inline(
                at.steps(),
                if is_moe {
                    "moe"
                } else if is_gated {
                    "gated_mlp"
                } else {
                    "mlp"
                },
            ) {
                return 1;
            }
            let names = if wanted[0] == "gate_up" { &["up", "down"] } else { wanted };
            let mut chosen = assign(view, names, hidden, &weights);
            // The two maps of a pair cannot be taken for one another if their shapes differ.
            if wanted[0] == "gate_up" && wide(chosen[0]) < wide(chosen[1]) {
                chosen.reverse();
            }
            let Some(fields @ Tree::Map(_)) = value_mut(&mut self.tree, &owner) else { continue };
            if let Tree::Map(entries) = &mut *fields {
                entries.retain(|(key, _)| !["gate", "up", "gate_up", "down"].contains(&key.as_str()));
                for (n, (part, weight)) in wanted.iter().zip(&chosen).enumerate() {
                    let path = stem(inside(&weight.name)).to_owned();
                    entries.insert(n, ((*part).to_owned(), Tree::Text(path)));
                }
            }
            let shapes: Vec<String> =
                chosen.iter().map(|p| format!("`{}` {:?}", inside(&p.name), p.shape)).collect();
            set(fields, NOTE, Tree::Text(format!("the weights behind the attention: {}", shapes.join(", "))));
            if !is_same {
                self.lost += 0.25;
            }
            let kind = if is_moe {
                "moe"
            } else if wanted[0] == "up" {
                "mlp"
            } else {
                "gated_mlp"
            };
            rename_entry(&mut self.tree, &owner, kind);
            return 1;
        }
        0
    }

    /// Queries, keys and values apart, where a description has them in one weight.
    pub(super) fn split(&mut self, view: &View) -> usize {
        let fused = view.missing.iter().filter(|(p, i)| {
            p.name.ends_with(".weight") && view.tensors[*i].label.starts_with("`qkv` of `attention`")
        });
        for (pattern, i) in fused {
            let at = &view.tensors[*i].at;
            let Some(owner) = owner(&self.tree, at, "qkv") else { continue };
            let is_free = |p: &&&Pattern| {
                p.group() == pattern.group() && p.shape.len() == 2 && p.name.ends_with(".weight")
            };
            let free: Vec<&Pattern> = view.free.iter().filter(is_free).copied().collect();
            let best = |part: &str| {
                free.iter()
                    .map(|p| (fits(view, part, stem(inside(&p.name))), *p))
                    .max_by(|a, b| a.0.total_cmp(&b.0))
                    .filter(|(score, _)| *score >= 0.4)
            };
            let (Some((_, q)), Some((_, k)), Some((_, v))) = (best("q"), best("k"), best("v")) else {
                continue;
            };
            if q.name == k.name || q.name == v.name || k.name == v.name || k.shape != v.shape {
                continue;
            }
            if self.inline(at.steps(), "attention") {
                return 1;
            }
            let Some(fields @ Tree::Map(_)) = value_mut(&mut self.tree, &owner) else { continue };
            if let Tree::Map(entries) = &mut *fields {
                let place = entries.iter().position(|(key, _)| key == "qkv").unwrap_or(0);
                entries.retain(|(key, _)| !key.starts_with("qkv"));
                for (n, (part, weight)) in [("q", q), ("k", k), ("v", v)].into_iter().enumerate() {
                    let path = stem(inside(&weight.name)).to_owned();
                    entries.insert((place + n).min(entries.len()), (part.to_owned(), Tree::Text(path)));
                }
            }
            self.lost += 0.25;
            let text = format!(
                "queries, keys and values have weights of their own: `{}` {:?}",
                inside(&q.name),
                q.shape
            );
            set(fields, NOTE, Tree::Text(text));
            return 1;
        }
        0
    }

    /// Writes what `defaults` says of a block into the blocks, if a place is in there; says whether it did.
    pub(super) fn inline(&mut self, steps: &[usize], block: &str) -> bool {
        let section = |tree: &Tree| match tree {
            Tree::Map(entries) => Some(entries.get(*steps.first()?)?.0.clone()),
            _ => None,
        };
        if section(&self.tree).as_deref() != Some("defaults") {
            return false;
        }
        let Some(Tree::Map(defaults)) = get_mut(&mut self.tree, "defaults") else { return false };
        let Some(at) = defaults.iter().position(|(key, _)| key == block) else { return false };
        let (_, fields) = defaults.remove(at);
        for part in ["model", "heads"] {
            if let Some(tree) = get_mut(&mut self.tree, part) {
                merge(tree, block, &fields);
            }
        }
        if let Tree::Map(sections) = &mut self.tree {
            sections.retain(|(name, value)| name != "defaults" || !value.entries().is_empty());
        }
        true
    }
}

/// Gives all blocks of a name the fields that they do not have.
fn merge(tree: &mut Tree, block: &str, fields: &Tree) {
    match tree {
        Tree::Map(entries) => {
            for (key, value) in entries {
                if key == block
                    && let Tree::Map(own) = value
                {
                    for (field, default) in fields.entries() {
                        if !own.iter().any(|(key, _)| key == field) {
                            own.push((field.clone(), default.clone()));
                        }
                    }
                } else {
                    merge(value, block, fields);
                }
            }
        }
        Tree::List(items) => items.iter_mut().for_each(|x| merge(x, block, fields)),
        _ => {}
    }
}

/// Gives the entry whose value is at a place another key.
fn rename_entry(tree: &mut Tree, steps: &[usize], key: &str) {
    if let Some((last, parents)) = steps.split_last()
        && let Some(Tree::Map(entries)) = value_mut(tree, parents)
        && let Some((old, _)) = entries.get_mut(*last)
    {
        *old = key.to_owned();
    }
}
