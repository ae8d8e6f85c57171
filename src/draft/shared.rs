//! Heads that share keys and values, and the groups of rows in a fused weight.

use super::adapt::Candidate;
use super::edit::{at_owner, get_mut, owner, set, value_mut};
use super::fit::View;
use super::print::NOTE;
use super::sizes::{evaluate, product, size};
use crate::spec::Tree;

impl Candidate {
    /// How many heads share keys and values, from the rows of the weights.
    pub(super) fn shared_heads(&mut self, view: &View) -> usize {
        for (pattern, i) in &view.all {
            let label = &view.tensors[*i].label;
            let is_fused = label.starts_with("`qkv` of `attention`");
            if pattern.shape.len() != 2 || !(is_fused || label.starts_with("`k` of `attention`")) {
                continue;
            }
            let Some(found) = view.stored.iter().find(|p| p.name == pattern.name) else { continue };
            let differ = pattern.shape.iter().zip(&found.shape).find(|(asked, is)| asked != is);
            let Some((_, rows)) = differ else { continue };
            let Some(owner) = owner(&self.tree, &view.tensors[*i].at, "heads") else { continue };
            let out = view.all.iter().find(|(p, j)| {
                view.tensors[*j].label.starts_with("`o` of `attention`")
                    && p.shape.len() == 2
                    && p.group() == pattern.group()
                    && at_owner(&view.tensors[*j].at, &owner)
            });
            let Some(fields) = value_mut(&mut self.tree, &owner) else { continue };
            let heads = fields.get("heads").and_then(|h| evaluate(h, &view.values.scope));
            let (Some((out, _)), Some(heads)) = (out, heads.as_ref().and_then(size)) else { continue };
            let dim = product(&out.shape)
                / pattern
                    .shape
                    .iter()
                    .find(|n| **n > 0 && out.shape.contains(n))
                    .copied()
                    .unwrap_or(1)
                    .max(1)
                / heads;
            if dim == 0 || rows % dim != 0 {
                continue;
            }
            let units = rows / dim;
            let kv = if is_fused { units.saturating_sub(heads) / 2 } else { units };
            if kv == 0 || heads % kv != 0 || (is_fused && heads + 2 * kv != units) {
                continue;
            }
            let aliases = view.known.aliases.get("kv_heads").into_iter().flatten();
            let bound = view.values.scope.iter().find(|(name, v)| {
                size(v) == Some(kv)
                    && name.contains("kv")
                    && !view.values.guessed.iter().any(|(g, _)| g == *name)
            });
            let key = aliases
                .filter(|key| view.config.find(key).is_some_and(|(found, _)| size(found) == Some(kv)))
                .find(|key| !key.contains('.'))
                .cloned();
            let old = fields.get("kv_heads").cloned();
            let value = match (&bound, &key) {
                _ if kv == heads => None,
                (Some((name, _)), _) => Some(Tree::Text(format!("${name}"))),
                (None, Some(_)) => Some(Tree::Text("$kv_heads".into())),
                _ => i64::try_from(kv).ok().map(Tree::Int),
            };
            if value == old {
                continue;
            }
            let why = format!("{kv} heads of keys and values, of {heads}: `{}` has {rows} rows", found.name);
            match &value {
                Some(value) => set(fields, "kv_heads", value.clone()),
                None => {
                    if let Tree::Map(entries) = fields {
                        entries.retain(|(key, _)| key != "kv_heads");
                    }
                }
            }
            set(fields, NOTE, Tree::Text(why));
            if is_fused && kv == heads {
                set_groups(fields, view, &found.name);
            }
            if let (None, Some(key), true) = (bound, key, kv != heads)
                && let Some(Tree::Map(entries)) = get_mut(&mut self.tree, "config")
            {
                entries.retain(|(name, _)| name != "kv_heads");
                entries.push(("kv_heads".into(), Tree::Text(key)));
            }
            return 1;
        }
        0
    }
}

/// Gives a fused weight the order of rows that weights of that name have in other descriptions.
pub(super) fn set_groups(fields: &mut Tree, view: &View, name: &str) {
    let last = name.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default();
    let Some(others) = view.known.fused.get(last) else { return };
    // Only what depends on nothing but the heads can be taken over.
    let groups = others.iter().flatten().find(|groups| groups.as_text() == Some("$heads"));
    let heads = fields.get("heads").cloned();
    if let Tree::Map(entries) = &mut *fields {
        entries.retain(|(key, _)| key != "qkv_groups");
    }
    if let (Some(_), Some(heads)) = (groups, heads) {
        set(fields, "qkv_groups", heads);
        let why = format!("a guess: rows of `{last}` are in groups, one for each head, as elsewhere");
        let old = fields.get(NOTE).and_then(Tree::as_text).map(|old| format!("{old}\n"));
        set(fields, NOTE, Tree::Text(old.unwrap_or_default() + &why));
    }
}
