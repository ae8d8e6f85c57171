//! Prefixes of stored names, and what holds for all linear maps and norms.

use std::collections::BTreeMap;

use super::adapt::Candidate;
use super::edit::{get_mut, set};
use super::known::Family;
use super::patterns::Pattern;
use super::print::{NOTE, yaml};
use crate::plan::Config;
use crate::spec::Tree;

impl Candidate {
    /// Sets the prefixes; gives the patterns as the description reads them.
    pub(super) fn weights(
        &mut self,
        stored: &[Pattern],
        prefix: &str,
        family: &Family,
        config: &Config,
    ) -> Vec<Pattern> {
        let own = config.text("model_type").unwrap_or_default().replace('-', "_");
        let types: Vec<String> = family.types.iter().map(|t| t.replace('-', "_")).collect();
        let mut weights = self.tree.get("weights").cloned().unwrap_or(Tree::Map(Vec::new()));
        let mut prefixes = match weights.get("prefix") {
            Some(Tree::List(items)) => items.clone(),
            _ => vec![Tree::Text(String::new())],
        };
        for item in &mut prefixes {
            if item.as_text().is_some_and(|text| types.iter().any(|t| t == text)) {
                *item = Tree::Text(own.clone());
            }
        }
        prefixes.dedup();
        if !prefix.is_empty() && !prefixes.iter().any(|p| p.as_text() == Some(prefix)) {
            prefixes = vec![Tree::Text(String::new()), Tree::Text(prefix.to_owned())];
        }
        set(&mut weights, "prefix", Tree::List(prefixes));
        let rules: Vec<(String, String)> = weights.get("rename").map_or(Vec::new(), |rules| {
            rules.entries().iter().filter_map(|(a, b)| Some((a.clone(), b.as_text()?.to_owned()))).collect()
        });
        if let Tree::Map(sections) = &mut self.tree
            && !sections.iter().any(|(key, _)| key == "weights")
        {
            let at =
                sections.iter().position(|(k, _)| k == "defaults" || k == "model").unwrap_or(sections.len());
            sections.insert(at, ("weights".into(), weights));
        } else {
            set(&mut self.tree, "weights", weights);
        }
        let lead = format!("{prefix}.");
        let mut read: BTreeMap<String, Pattern> = BTreeMap::new();
        for pattern in stored {
            let bare = pattern.name.strip_prefix(&lead).unwrap_or(&pattern.name);
            let mut name = format!(".{bare}.");
            for (from, to) in &rules {
                name = name.replace(&format!(".{from}."), &format!(".{to}."));
            }
            let name = name.trim_matches('.').to_owned();
            read.insert(name.clone(), Pattern { name, ..pattern.clone() });
        }
        read.into_values().collect()
    }

    /// Whether linear maps and norms have biases as a rule.
    pub(super) fn linear_defaults(&mut self, stored: &[Pattern], config: &Config) {
        let has = |name: &str| stored.iter().any(|p| p.name == name);
        for (block, axes) in [("linear", 2), ("layer_norm", 1)] {
            let weights: Vec<&Pattern> = stored
                .iter()
                .filter(|p| !p.layers.is_empty() && p.shape.len() == axes && p.name.ends_with(".weight"))
                .collect();
            let bias = |p: &&&Pattern| has(&format!("{}bias", p.name.trim_end_matches("weight")));
            let with = weights.iter().filter(bias).count();
            let current = self.tree.get("defaults").and_then(|d| d.get(block)?.get("bias")).cloned();
            // A key of the config that says it is left to say it.
            if let Some(Tree::Text(text)) = &current {
                let key = text.strip_prefix('$').and_then(|name| {
                    let value = self.tree.get("config")?.get(name)?;
                    Some(value.get("key").unwrap_or(value).as_text()?.to_owned())
                });
                let said = key.and_then(|key| Some(config.find(&key)?.0.clone()));
                if said == Some(Tree::Bool(with > 0)) {
                    continue;
                }
            }
            if weights.is_empty() {
                continue;
            }
            if with == weights.len() && current.is_some() {
                let blocks = self.tree.get("defaults").cloned();
                if let Some(mut defaults) = blocks {
                    if let Some(Tree::Map(fields)) = get_mut(&mut defaults, block) {
                        fields.retain(|(key, _)| key != "bias");
                    }
                    if let Tree::Map(blocks) = &mut defaults {
                        blocks.retain(|(_, fields)| !fields.entries().is_empty());
                    }
                    set(&mut self.tree, "defaults", defaults);
                }
            } else if with == 0 && current != Some(Tree::Bool(false)) {
                if block == "layer_norm" && !yaml(&self.tree).contains("layer_norm:") {
                    continue;
                }
                let mut defaults = self.tree.get("defaults").cloned().unwrap_or(Tree::Map(Vec::new()));
                let mut fields = defaults.get(block).cloned().unwrap_or(Tree::Map(Vec::new()));
                set(&mut fields, "bias", Tree::Bool(false));
                set(
                    &mut fields,
                    NOTE,
                    Tree::Text(format!("no `{block}` inside of layers has a stored bias")),
                );
                set(&mut defaults, block, fields);
                self.set_defaults(defaults);
            }
        }
        if let Tree::Map(sections) = &mut self.tree {
            sections.retain(|(name, value)| name != "defaults" || !value.entries().is_empty());
        }
    }

    pub(super) fn set_defaults(&mut self, defaults: Tree) {
        let Tree::Map(sections) = &mut self.tree else { return };
        let at = sections.iter().position(|(key, _)| key == "model").unwrap_or(0);
        match sections.iter_mut().find(|(key, _)| key == "defaults") {
            Some((_, old)) => *old = defaults,
            None => sections.insert(at, ("defaults".into(), defaults)),
        }
    }
}
