//! What an adapted description does not explain, and what is seen at its attention.

use super::adapt::Candidate;
use super::edit::{get_mut, owner, same_axes, set, value_mut};
use super::known::{Known, declared};
use super::patterns::Pattern;
use super::print::NOTE;
use super::sizes::{evaluate, size};
use crate::plan::Config;
use crate::spec::Tree;

impl Candidate {
    /// Lists what is open, and ignores what other descriptions ignore; gives the number of tensors that are missing.
    pub(super) fn settle(
        &mut self,
        known: &Known,
        config: &Config,
        task: Option<&str>,
        stored: &[Pattern],
    ) -> usize {
        let state = self.state(config, task);
        let all = declared(&state.tensors);
        let has = |name: &str| stored.iter().any(|p| p.name == name);
        let fits = |pattern: &str, name: &str| {
            pattern.split('.').count() == name.split('.').count()
                && pattern.split('.').zip(name.split('.')).all(|(p, n)| p == "*" || p == n)
        };
        let own: Vec<String> = match self.tree.get("weights").and_then(|w| w.get("ignore")) {
            Some(Tree::List(items)) => items.iter().filter_map(Tree::as_text).map(str::to_owned).collect(),
            Some(Tree::Text(text)) => vec![text.clone()],
            _ => Vec::new(),
        };
        let mut ignored = own.clone();
        for pattern in stored.iter().filter(|p| !all.iter().any(|(d, _)| d.name == p.name)) {
            if own.iter().any(|i| fits(i, &pattern.name)) {
                continue;
            }
            let end = |name: &str| name.split('.').rev().take(2).map(str::to_owned).collect::<Vec<_>>();
            if known.ignored.iter().any(|i| end(i) == end(&pattern.name)) {
                ignored.push(pattern.name.clone());
            } else {
                self.open.push((pattern.clone(), "no block uses it".into()));
            }
        }
        if ignored != own
            && let Some(weights) = get_mut(&mut self.tree, "weights")
        {
            set(weights, "ignore", Tree::List(ignored.into_iter().map(Tree::Text).collect()));
        }
        let mut missing = 0;
        for (pattern, i) in &all {
            let tensor = &state.tensors[*i];
            let tied = tensor.tie.as_deref().is_some_and(has)
                || state.tensors.iter().any(|t| t.tie.as_ref() == Some(&tensor.name) && has(&t.name));
            match stored.iter().find(|p| p.name == pattern.name) {
                Some(found) if !same_axes(&found.shape, &pattern.shape) => {
                    missing += 1;
                    self.problems.push(format!(
                        "tensor `{}` has shape {:?}, where {} asks for {:?}",
                        found.name, found.shape, tensor.label, pattern.shape
                    ));
                }
                None if *i < state.of_head && !tied => {
                    missing += 1;
                    self.problems.push(format!(
                        "no tensor of shape {:?} for `{}` ({})",
                        pattern.shape, pattern.name, tensor.label
                    ));
                }
                _ => {}
            }
        }
        self.problems.extend(state.problems);
        missing
    }

    /// Says at the attention what the shapes mean.
    pub(super) fn explain(&mut self, config: &Config, task: Option<&str>) {
        let state = self.state(config, task);
        let Some(k) = state.tensors.iter().find(|t| t.label.starts_with("`k` of") && t.layer.is_some())
        else {
            return;
        };
        let q = state.tensors.iter().find(|t| t.label.starts_with("`q` of") && t.layer == k.layer);
        let scope = self.values(config).scope;
        let Some(owner) = owner(&self.tree, &k.at, "heads") else { return };
        let heads = value_mut(&mut self.tree, &owner).and_then(|fields| fields.get("heads").cloned());
        let heads = heads.and_then(|heads| evaluate(&heads, &scope)).as_ref().and_then(size);
        let (Some(q), Some(heads)) = (q, heads) else { return };
        if !q.shape[0].is_multiple_of(heads) {
            return;
        }
        let dim = q.shape[0] / heads;
        if let Some(fields @ Tree::Map(_)) = value_mut(&mut self.tree, &owner)
            && dim > 0
            && fields.get(NOTE).is_none()
        {
            let kv = k.shape[0] / dim;
            let text = format!(
                "{heads} heads of {dim}: q has {} rows; {kv} kv heads: k has {} rows",
                q.shape[0], k.shape[0]
            );
            set(fields, NOTE, Tree::Text(text));
        }
    }
}
