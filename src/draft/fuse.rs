//! One stored weight where a description has several.

use super::adapt::Candidate;
use super::edit::{at_owner, owner, rename, value_mut};
use super::fit::View;
use super::patterns::Pattern;
use super::print::NOTE;
use super::shared::set_groups;
use crate::spec::Tree;

impl Candidate {
    /// One weight instead of several.
    pub(super) fn fuse(&mut self, view: &View) -> usize {
        for (parts, whole) in [(&["q", "k", "v"][..], "qkv"), (&["gate", "up"][..], "gate_up")] {
            for (pattern, i) in &view.missing {
                let at = &view.tensors[*i].at;
                let Some(owner) = owner(&self.tree, at, parts[0]) else { continue };
                let siblings: Vec<&(Pattern, usize)> = view
                    .missing
                    .iter()
                    .filter(|(p, j)| {
                        p.shape.len() == 2
                            && at_owner(&view.tensors[*j].at, &owner)
                            && p.group() == pattern.group()
                    })
                    .collect();
                let rows: usize = parts
                    .iter()
                    .filter_map(|part| {
                        siblings
                            .iter()
                            .find(|(_, j)| view.tensors[*j].label.starts_with(&format!("`{part}`")))
                    })
                    .map(|(p, _)| p.shape[0])
                    .sum();
                let fused = view.free.iter().find(|p| {
                    p.group() == pattern.group()
                        && p.shape.len() == 2
                        && p.shape.contains(&rows)
                        && p.name.ends_with(".weight")
                });
                if let Some(fused) = fused
                    && rename(&mut self.tree, at, &pattern.name, &fused.name)
                    && let Some(Tree::Map(fields)) = value_mut(&mut self.tree, &owner)
                {
                    let text =
                        format!("`{whole}`: a weight {:?} has the rows of {}", fused.shape, parts.join(", "));
                    fields.retain(|(key, _)| !parts[1..].contains(&key.as_str()));
                    if let Some((key, value)) = fields.iter_mut().find(|(key, _)| key == parts[0]) {
                        *key = whole.into();
                        if fused.shape[0] != rows {
                            let path = value.get("at").unwrap_or(value).clone();
                            *value = Tree::Map(vec![
                                ("at".into(), path),
                                ("layout".into(), Tree::Text("in_out".into())),
                            ]);
                        }
                    }
                    fields.retain(|(key, _)| key != NOTE);
                    fields.push((NOTE.into(), Tree::Text(text)));
                    if whole == "qkv"
                        && let Some(fields) = value_mut(&mut self.tree, &owner)
                    {
                        set_groups(fields, view, &fused.name);
                    }
                    return 1;
                }
            }
        }
        0
    }
}
