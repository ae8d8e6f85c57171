//! A built-in description, made to fit a config and a checkpoint step by step.

use std::collections::BTreeSet;

use super::edit::{get_mut, set, turn_a_share, without_notes};
use super::fit::View;
use super::fold::names;
use super::known::{Family, Known, declared, fields};
use super::patterns::Pattern;
use super::print::{NOTE, yaml};
use super::sizes::evaluate;
use crate::nn::TensorUse;
use crate::plan::{Config, declare};
use crate::spec::{Problems, Source, Spec, Tree};

/// Rounds of changes; each settles one kind of difference, and brings the next to light.
const MAX_ROUNDS: usize = 24;

/// A description that was adapted, and how well it fits.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The description.
    pub tree: Tree,
    /// What it was made from.
    pub family: &'static str,
    /// Patterns of the checkpoint.
    pub patterns: usize,
    /// Those that had their names in the built-in description.
    pub exact: usize,
    /// Paths that were renamed.
    pub renamed: usize,
    /// Tensors without a use, each with what is known of it.
    pub open: Vec<(Pattern, String)>,
    /// What is missing or wrong.
    pub problems: Vec<String>,
    /// What would be required of the config and does not hold.
    pub(super) refused: Vec<String>,
    /// Whether the layout of linear maps was changed.
    pub(super) turned: bool,
    /// What was left out: a position embedding costs more than a norm.
    pub(super) lost: f64,
    /// How well it fits: more is better.
    pub score: f64,
}

/// What a description asks for, beside what is stored.
pub(super) struct State {
    pub tensors: Vec<TensorUse>,
    pub of_head: usize,
    pub problems: Vec<String>,
}

/// What one kind of difference is settled by; gives the number of changes.
type Step = fn(&mut Candidate, &View) -> usize;

/// In this order: what comes later takes for granted that what comes before has nothing left to do.
const STEPS: [Step; 17] = [
    Candidate::move_layers,
    Candidate::split,
    Candidate::feed_forward,
    Candidate::layer_norms,
    Candidate::parallel,
    Candidate::rename_weights,
    Candidate::turn,
    Candidate::sizes,
    Candidate::shared_heads,
    Candidate::biases,
    Candidate::fuse,
    Candidate::head_norms,
    Candidate::outside,
    Candidate::factors,
    Candidate::shared_experts,
    Candidate::partial,
    Candidate::leave,
];

impl Candidate {
    /// A description as it is, taken for one of its model types.
    pub fn new(family: &Family, model_type: Option<&str>) -> Candidate {
        let mut this = Candidate {
            tree: family.tree.clone(),
            family: family.name,
            patterns: 0,
            exact: 0,
            renamed: 0,
            open: Vec::new(),
            problems: Vec::new(),
            refused: Vec::new(),
            turned: false,
            lost: 0.0,
            score: 0.0,
        };
        this.score = 0.01 * this.fold_type(model_type);
        this
    }

    /// The description, made to fit.
    pub fn adapt(
        self,
        known: &Known,
        config: &Config,
        stored: &[Pattern],
        prefix: &str,
        family: &Family,
    ) -> Candidate {
        let mut this = Candidate { patterns: stored.len(), ..self };
        let kept = this.score;
        let bound = this.bind(known, config);
        let share = |settings: &String| config.find(&format!("{settings}.partial_rotary_factor")).is_some();
        if known.aliases.get("scaling").into_iter().flatten().any(share) {
            turn_a_share(&mut this.tree);
        }
        let task = this.heads(known, config, stored, prefix);
        let stored = this.weights(stored, prefix, family, config);
        this.fold_stored(&stored);
        this.linear_defaults(&stored, config);
        this.layer_counts(config, &stored);
        this.empty_tables(config);
        this.unasked(known, config);
        this.flip(known, config, task.as_deref(), &stored);
        let first = this.state(config, task.as_deref());
        let has = |name: &str| stored.iter().any(|p| p.name == name);
        let all = declared(&first.tensors);
        this.exact = all.iter().filter(|(p, _)| has(&p.name)).count();
        let mut edits = 0;
        for _ in 0..MAX_ROUNDS {
            let state = this.state(config, task.as_deref());
            let view = View::new(known, config, this.values(config), &stored, &state);
            match STEPS.iter().map(|step| step(&mut this, &view)).find(|n| *n > 0) {
                None => break,
                Some(n) => edits += n,
            }
        }
        this.unused();
        let missing = this.settle(known, config, task.as_deref(), &stored);
        this.explain(config, task.as_deref());
        let n = this.patterns.max(1) as f64;
        let used = n - this.open.len() as f64;
        let shared = first.tensors.len().min(all.len()).max(1) as f64;
        let source = Source::yaml("draft.yaml", yaml(&this.tree));
        // Where no plan can be made, nothing is known to be missing.
        let is_planned = this.state(config, task.as_deref()).problems.is_empty();
        let is_accepted = source.and_then(crate::plan::check_spec).is_ok();
        let is_complete = missing == 0 && this.open.is_empty() && this.problems.is_empty();
        this.score = 4.0 * used / n + 3.0 * this.exact as f64 / n + this.exact as f64 / shared + 3.0 * bound
            - 0.03 * edits as f64
            - this.lost
            - missing as f64
            - 3.0 * this.problems.len().min(3) as f64
            - this.unlike(known, config, task.as_deref())
            + if is_complete { 3.0 } else { 0.0 }
            - if is_accepted { 0.0 } else { 30.0 }
            - if is_planned { 0.0 } else { 20.0 }
            + kept;
        let refused = std::mem::take(&mut this.refused);
        this.problems.extend(refused);
        this
    }

    /// Gives switches that the config lacks the value with which more of the names are stored.
    fn flip(&mut self, known: &Known, config: &Config, task: Option<&str>, stored: &[Pattern]) {
        let switches = self.section("config").iter().filter_map(|(name, binding)| {
            let keys = match binding.get("key")? {
                Tree::List(keys) => keys.iter().filter_map(Tree::as_text).collect(),
                key => vec![key.as_text()?],
            };
            let is_there = keys.iter().any(|key| config.find(key).is_some());
            match binding.get("default") {
                Some(Tree::Bool(default)) if !is_there => Some((name.clone(), *default)),
                _ => None,
            }
        });
        let wants_rope = self.wants_rope(known, config);
        let fit = |this: &Candidate| {
            let state = this.state(config, task);
            let all = declared(&state.tensors);
            let has = |name: &str| stored.iter().any(|p| p.name == name);
            let asked = all.iter().filter(|(_, i)| *i < state.of_head);
            let (there, missing): (Vec<_>, Vec<_>) = asked.partition(|(p, _)| has(&p.name));
            there.len() as i64 - missing.len() as i64 + i64::from(this.turns(config) == wants_rope)
        };
        let switches: Vec<(String, bool)> = switches.take(8).collect();
        for (name, default) in switches {
            let mut other = self.clone();
            let Some(binding) = get_mut(&mut other.tree, "config").and_then(|c| get_mut(c, &name)) else {
                continue;
            };
            set(binding, "default", Tree::Bool(!default));
            set(
                binding,
                NOTE,
                Tree::Text("not in this config: with this value more of what is stored has a use".into()),
            );
            if fit(&other) > fit(self) {
                *self = other;
            }
        }
    }

    /// Whether the config has a key for how positions turn queries and keys.
    fn wants_rope(&self, known: &Known, config: &Config) -> bool {
        let keys = ["theta", "scaling"].iter().filter_map(|name| known.aliases.get(*name)).flatten();
        keys.into_iter().any(|key| config.find(key).is_some_and(|(v, _)| *v != Tree::Null))
            || config.entries().iter().any(|(key, _)| key.contains("rotary") || key.contains("rope"))
    }

    /// Whether positions turn queries and keys.
    fn turns(&self, config: &Config) -> bool {
        self.has(config, "attention.rope", |value| value != Some(Tree::Null))
    }

    /// Whether a field has a value somewhere, with this config, of which `holds` is true.
    fn has(&self, config: &Config, name: &str, holds: impl Fn(Option<Tree>) -> bool) -> bool {
        let scope = self.values(config).scope;
        let mut found = false;
        for section in ["defaults", "model"] {
            if let Some(tree) = self.tree.get(section) {
                fields(tree, "", &mut |field, value| {
                    found |= field == name && holds(evaluate(value, &scope));
                });
            }
        }
        found
    }

    /// What speaks against the kind of model that it describes.
    fn unlike(&self, known: &Known, config: &Config, task: Option<&str>) -> f64 {
        let is_causal = self.has(config, "attention.causal", |value| value == Some(Tree::Bool(true)));
        let wants_causal = match task {
            Some("causal_lm" | "seq2seq_lm") => Some(true),
            Some("masked_lm" | "image_classification") => Some(false),
            _ => None,
        };
        let wants_rope = self.wants_rope(known, config);
        let mut against = 0.0;
        if wants_causal.is_some_and(|wanted| wanted != is_causal) {
            against += 4.0;
        }
        if wants_rope != self.turns(config) {
            against += 2.5;
        }
        // A switch that other descriptions know, and this one does not.
        let used = self.keys();
        let is_known =
            |key: &String| known.aliases.values().any(|keys| keys.contains(key)) && !used.contains(key);
        let on = config.entries().iter().filter(|(key, value)| *value == Tree::Bool(true) && is_known(key));
        against += 0.9 * on.filter(|(key, _)| !key.contains("tie")).count() as f64;
        // What few descriptions do, and no key of this config asks for.
        let values = self.values(config);
        let is_said = |name: &String| {
            values.scope.contains_key(name) && !values.guessed.iter().any(|(guess, _)| guess == name)
        };
        let mut odd = BTreeSet::new();
        for section in ["defaults", "model"] {
            if let Some(tree) = self.tree.get(section) {
                fields(tree, "", &mut |field, value| {
                    let block = field.split('.').next().unwrap_or_default();
                    let all = known.fields.get(block).copied().unwrap_or(0);
                    let few = known.fields.get(field).is_none_or(|n| n * 4 < all);
                    if few
                        && !names(value).iter().any(is_said)
                        && evaluate(value, &values.scope) != Some(Tree::Null)
                    {
                        odd.insert(field.to_owned());
                    }
                });
            }
        }
        against += 0.5 * odd.len().min(6) as f64;
        against + self.refused.len() as f64 * 0.3
    }

    /// The keys of the config that it uses.
    pub fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        for (_, value) in self.section("config") {
            match value.get("key").unwrap_or(value) {
                Tree::Text(key) if !key.contains('$') => keys.push(key.clone()),
                Tree::List(items) => keys.extend(items.iter().filter_map(Tree::as_text).map(str::to_owned)),
                _ => {}
            }
        }
        keys.extend(self.section("require").iter().map(|(key, _)| key.clone()));
        keys
    }

    pub(super) fn section(&self, name: &str) -> &[(String, Tree)] {
        self.tree.get(name).map_or(&[], Tree::entries)
    }

    pub(super) fn state(&self, config: &Config, task: Option<&str>) -> State {
        let tree = without_notes(&self.tree);
        let mut problems = Problems::default();
        let spec = Spec::parse(Source::of_tree("draft", tree), &mut problems);
        let (tensors, of_head, problems) = declare(&spec, config, task);
        State { tensors, of_head, problems }
    }
}
