//! A built-in description, made to fit a config and a checkpoint step by step.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::fold::{fold, names};
use super::known::{Family, Known, declared, inside, roles, stem_of};
use super::patterns::{Pattern, group, likeness};
use super::print::{NOTE, yaml};
use crate::nn::TensorUse;
use crate::plan::{Config, declare};
use crate::spec::{Address, Problems, Scope, Source, Spec, Tree};

/// Rounds of changes; each settles one kind of difference, and brings the next to light.
const MAX_ROUNDS: usize = 12;

/// A description that was adapted, and how well it fits.
#[derive(Debug)]
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
    /// Whether the layout of linear maps was changed.
    turned: bool,
    /// What was left out: a position embedding costs more than a norm.
    lost: f64,
    /// How well it fits: more is better.
    pub score: f64,
}

/// What a description asks for, beside what is stored.
struct State {
    tensors: Vec<TensorUse>,
    of_head: usize,
    problems: Vec<String>,
}

impl Candidate {
    /// Adapts a description, taken for one of its model types.
    pub fn new(
        known: &Known,
        config: &Config,
        stored: &[Pattern],
        prefix: &str,
        family: &Family,
        model_type: Option<&str>,
    ) -> Candidate {
        let mut this = Candidate {
            tree: family.tree.clone(),
            family: family.name,
            patterns: stored.len(),
            exact: 0,
            renamed: 0,
            open: Vec::new(),
            problems: Vec::new(),
            turned: false,
            lost: 0.0,
            score: 0.0,
        };
        let kept = this.fold_type(model_type);
        let bound = this.bind(known, config);
        let task = this.heads(known, config, stored);
        let stored = this.weights(stored, prefix, family, config);
        this.linear_defaults(&stored, config);
        let first = this.state(config, task.as_deref());
        let has = |name: &str| stored.iter().any(|p| p.name == name);
        let all = declared(&first.tensors);
        this.exact = all.iter().filter(|(p, _)| has(&p.name)).count();
        let mut edits = 0;
        for _ in 0..MAX_ROUNDS {
            let state = this.state(config, task.as_deref());
            match this.round(known, &stored, &state) {
                0 => break,
                n => edits += n,
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
        this.score = 4.0 * used / n + 2.0 * this.exact as f64 / n + this.exact as f64 / shared + 2.0 * bound
            - 0.03 * edits as f64
            - this.lost
            - missing as f64
            - 3.0 * this.problems.len().min(3) as f64
            + if is_complete { 3.0 } else { 0.0 }
            - if is_accepted { 0.0 } else { 30.0 }
            - if is_planned { 0.0 } else { 20.0 }
            + 0.01 * kept;
        this
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

    fn section(&self, name: &str) -> &[(String, Tree)] {
        self.tree.get(name).map_or(&[], Tree::entries)
    }

    /// Decides for one of the model types, where a file describes several.
    fn fold_type(&mut self, model_type: Option<&str>) -> f64 {
        let Some(model_type) = model_type else { return 0.0 };
        let mut scope = Scope::default();
        for (name, value) in self.section("config").to_vec() {
            let is_type = value.get("key").unwrap_or(&value).as_text() == Some("model_type");
            if is_type {
                scope.insert(name, Tree::Text(model_type.to_owned()));
            } else if let Tree::Text(text) = &value
                && text.contains('$')
            {
                let mut value = value.clone();
                fold(&mut value, &scope);
                if matches!(value, Tree::Bool(_)) {
                    scope.insert(name, value);
                }
            }
        }
        if scope.is_empty() {
            return 1.0;
        }
        for section in ["config", "weights", "defaults", "model", "heads"] {
            if let Some(tree) = get_mut(&mut self.tree, section) {
                if let (Tree::Map(entries), "config") = (&mut *tree, section) {
                    entries.retain(|(name, _)| !scope.contains_key(name));
                }
                fold(tree, &scope);
            }
        }
        0.0
    }

    /// Binds names to the keys that the config has; says what share of both fits.
    fn bind(&mut self, known: &Known, config: &Config) -> f64 {
        let mut taken: BTreeSet<String> =
            self.keys().into_iter().filter(|key| config.find(key).is_some()).collect();
        let known_keys: BTreeSet<&String> = known.aliases.values().flatten().collect();
        let (mut found, mut all) = (0.0, 0.0);
        let Some(Tree::Map(entries)) = get_mut(&mut self.tree, "config") else { return 0.0 };
        for (name, value) in entries.iter_mut() {
            let keys: Vec<String> = match value.get("key").unwrap_or(value) {
                Tree::Text(text) if !text.contains('$') => vec![text.clone()],
                Tree::List(items) => items.iter().filter_map(Tree::as_text).map(str::to_owned).collect(),
                _ => continue,
            };
            all += 1.0;
            let mut present = keys.iter().find(|key| config.find(key).is_some()).cloned();
            if present.is_none() {
                let mut others = known.aliases.get(name).into_iter().flatten();
                let other = others.find(|key| config.find(key).is_some() && !taken.contains(*key));
                if let Some(key) = other {
                    taken.insert(key.clone());
                    let note = format!("`{key}` is what other descriptions bind `{name}` to");
                    set(value, "key", Tree::Text(key.clone()));
                    set(value, NOTE, Tree::Text(note));
                    present = Some(key.clone());
                }
            }
            let Some(key) = present else {
                let default = value.get("default").cloned();
                if let Some(default) =
                    default.filter(|d| !matches!(d, Tree::Null | Tree::List(_) | Tree::Map(_)))
                {
                    let note = format!("not in this config: {default} is the default of {}", self.family);
                    set(value, NOTE, Tree::Text(note));
                }
                continue;
            };
            found += 1.0;
            let is_plain = |tree: &Tree| match tree {
                Tree::Text(text) => !text.contains('$'),
                Tree::List(_) | Tree::Map(_) | Tree::Null => false,
                _ => true,
            };
            if let Some((seen, _)) = config.find(&key)
                && value.get("default").is_some_and(is_plain)
                && is_plain(seen)
            {
                set(value, "default", seen.clone());
            }
        }
        let structural: Vec<&str> = config
            .entries()
            .iter()
            .map(|(key, _)| key.as_str())
            .filter(|key| known_keys.contains(&key.to_string()))
            .collect();
        let bound = structural
            .iter()
            .filter(|key| taken.iter().any(|t| t == *key || t.split('.').next() == Some(*key)));
        let share = bound.count() as f64 / structural.len().max(1) as f64;
        self.require(config);
        share + found / f64::max(all, 1.0)
    }

    /// Keeps what is required of keys that the config has.
    fn require(&mut self, config: &Config) {
        let mut refused = Vec::new();
        if let Some(Tree::Map(entries)) = get_mut(&mut self.tree, "require") {
            entries.retain(|(key, value)| {
                let Some((found, _)) = config.find(key) else { return false };
                let accepted = value.get("is").unwrap_or(value);
                let fits = match accepted {
                    Tree::List(items) => items.contains(found),
                    one => one == found,
                };
                if !fits && *found != Tree::Null {
                    refused
                        .push(format!("config key `{key}` is {found}, where {accepted} would be required"));
                }
                fits
            });
        }
        if let Tree::Map(sections) = &mut self.tree {
            sections.retain(|(name, value)| name != "require" || !value.entries().is_empty());
        }
        self.problems.extend(refused);
    }

    /// Names the model type and the classes; gives the task that the config asks for.
    fn heads(&mut self, known: &Known, config: &Config, stored: &[Pattern]) -> Option<String> {
        let classes = config.texts("architectures");
        let own = classes.first().and_then(|class| known.take_apart(class));
        if let Some(model_type) = config.text("model_type") {
            set(
                &mut self.tree,
                "match",
                Tree::Map(vec![("model_type".into(), Tree::Text(model_type.into()))]),
            );
        }
        // A suffix may mean several tasks: the one that this description has.
        let task = own.and_then(|(_, _, tasks)| {
            let has = |task: &&String| self.section("heads").iter().any(|(name, _)| name == *task);
            tasks.iter().find(has).or(tasks.first()).cloned()
        });
        let replaced = task.as_deref().is_some_and(|task| self.other_head(known, stored, task));
        let of = |head: &Tree| -> Vec<String> {
            match head.get("match") {
                Some(Tree::Text(text)) => vec![text.clone()],
                Some(Tree::List(items)) => {
                    items.iter().filter_map(Tree::as_text).map(str::to_owned).collect()
                }
                _ => Vec::new(),
            }
        };
        let stem = own.map_or("", |(stem, ..)| stem);
        let all: Vec<String> = self.section("heads").iter().flat_map(|(_, head)| of(head)).collect();
        if let Some(Tree::Map(heads)) = get_mut(&mut self.tree, "heads") {
            for (name, head) in heads {
                let mut renamed: Vec<String> = Vec::new();
                for class in of(head) {
                    let suffix = &class[stem_of(&class, all.iter()).len()..];
                    let suffix = if known.suffixes.contains_key(suffix) { suffix } else { class.as_str() };
                    let class = format!("{stem}{suffix}");
                    if !renamed.contains(&class) {
                        renamed.push(class);
                    }
                }
                if let (true, Some(class)) = (task.as_deref() == Some(name.as_str()), classes.first())
                    && (replaced || !renamed.iter().any(|c| c == class))
                {
                    renamed = vec![(*class).to_owned()];
                }
                let classes = match renamed.as_slice() {
                    [one] => Tree::Text(one.clone()),
                    many => Tree::List(many.iter().cloned().map(Tree::Text).collect()),
                };
                set(head, "match", classes);
            }
        }
        task.or_else(|| Some("features".into()))
    }

    /// Takes the head of another description for a task, if more of its names are stored; says whether it did.
    fn other_head(&mut self, known: &Known, stored: &[Pattern], task: &str) -> bool {
        let outside: HashSet<&str> =
            stored.iter().filter(|p| p.layers.is_empty()).map(|p| stem(&p.name)).collect();
        let count = |head: &Tree| {
            let mut found = BTreeSet::new();
            head.visit_texts(&Address::root(), &mut |text, _| {
                found.extend(outside.get(text).copied());
            });
            found.len()
        };
        let own = self.tree.get("heads").and_then(|heads| heads.get(task));
        let least = own.map_or(-1, |head| count(head) as i64);
        let mut best: Option<(i64, &Family, &Tree)> = None;
        for family in &known.families {
            if let Some(head) = family.tree.get("heads").and_then(|heads| heads.get(task))
                && best.as_ref().map_or(least, |b| b.0) < count(head) as i64
            {
                best = Some((count(head) as i64, family, head));
            }
        }
        let Some((_, family, head)) = best else { return false };
        let mut head = head.clone();
        // What it is tied to is here what heads are tied to here, and the values it begins with must be there.
        if let (Some(new), Some(old)) = (first_tie(&self.tree), first_tie(&head)) {
            rename_ties(&mut head, &old, &new);
        }
        set(
            &mut head,
            NOTE,
            Tree::Text(format!("this head is that of {}: its names are stored", family.name)),
        );
        let mut wanted = names(&head);
        while let Some(name) = wanted.pop() {
            let other = family.tree.get("config").and_then(|c| c.get(&name));
            if let (Some(value), Some(Tree::Map(entries))) = (other, get_mut(&mut self.tree, "config"))
                && !entries.iter().any(|(n, _)| *n == name)
            {
                wanted.extend(names(value));
                // What it is computed from comes later in this loop, and must stand before it.
                entries.insert(0, (name, value.clone()));
            }
        }
        match get_mut(&mut self.tree, "heads") {
            Some(heads) => set(heads, task, head),
            None => set(&mut self.tree, "heads", Tree::Map(vec![(task.to_owned(), head)])),
        }
        true
    }

    /// Sets the prefixes; gives the patterns as the description reads them.
    fn weights(
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
    fn linear_defaults(&mut self, stored: &[Pattern], config: &Config) {
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

    fn set_defaults(&mut self, defaults: Tree) {
        let Tree::Map(sections) = &mut self.tree else { return };
        let at = sections.iter().position(|(key, _)| key == "model").unwrap_or(0);
        match sections.iter_mut().find(|(key, _)| key == "defaults") {
            Some((_, old)) => *old = defaults,
            None => sections.insert(at, ("defaults".into(), defaults)),
        }
    }

    fn state(&self, config: &Config, task: Option<&str>) -> State {
        let Ok(source) = Source::yaml("draft.yaml", yaml(&self.tree)) else {
            return State { tensors: Vec::new(), of_head: 0, problems: vec!["the draft is no YAML".into()] };
        };
        let mut problems = Problems::default();
        let spec = Spec::parse(source, &mut problems);
        let (tensors, of_head, problems) = declare(&spec, config, task);
        State { tensors, of_head, problems }
    }

    /// Changes what the checkpoint contradicts; gives the number of changes.
    fn round(&mut self, known: &Known, stored: &[Pattern], state: &State) -> usize {
        let all = declared(&state.tensors);
        let roles = roles(&state.tensors);
        let has = |name: &str| stored.iter().any(|p| p.name == name);
        let asked: HashSet<&str> = all.iter().map(|(p, _)| p.name.as_str()).collect();
        let free: Vec<&Pattern> = stored.iter().filter(|p| !asked.contains(p.name.as_str())).collect();
        let tied = |i: usize| {
            let tie = state.tensors[i].tie.as_deref();
            tie.is_some_and(has)
                || state
                    .tensors
                    .iter()
                    .any(|t| t.tie.as_ref() == Some(&state.tensors[i].name) && has(&t.name))
        };
        let missing: Vec<&(Pattern, usize)> =
            all.iter().filter(|(p, i)| *i < state.of_head && !has(&p.name) && !tied(*i)).collect();

        // Layers under another name.
        let groups: BTreeSet<&str> = stored.iter().map(Pattern::group).filter(|g| !g.is_empty()).collect();
        let wanted: BTreeSet<&str> = all.iter().map(|(p, _)| p.group()).filter(|g| !g.is_empty()).collect();
        let size = |g: &str| stored.iter().filter(|p| p.group() == g).count();
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
        if changes > 0 {
            return changes;
        }

        // Weights of another name.
        let mut pairs: Vec<(f64, usize, &Pattern)> = Vec::new();
        for (pattern, i) in missing.iter().filter(|(p, _)| !p.name.ends_with(".bias")) {
            let end = pattern.name.rsplit('.').next();
            for other in &free {
                let same_end = end == other.name.rsplit('.').next();
                if other.group() != pattern.group() || !same_axes(&other.shape, &pattern.shape) || !same_end {
                    continue;
                }
                let vocabulary = known.roles.get(&roles[*i]).into_iter().flatten();
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
            let name = &all.iter().find(|(_, j)| j == i).map(|(p, _)| p.name.clone()).unwrap_or_default();
            if rename(&mut self.tree, &state.tensors[*i].at, name, &other.name) {
                changes += 1;
                self.renamed += 1;
            }
        }
        if changes > 0 {
            return changes;
        }

        // Weights the other way round: as a rule, then one by one.
        let turned: Vec<&(Pattern, usize)> = all
            .iter()
            .filter(|(p, i)| {
                let found = stored.iter().find(|s| s.name == p.name);
                p.shape.len() == 2
                    && p.shape[0] != p.shape[1]
                    && !state.tensors[*i].label.contains("embedding")
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
                return 1;
            }
            let layout = if is_turned { "out_in" } else { "in_out" };
            if set_layout(&mut self.tree, &state.tensors[*first].at, layout) {
                return 1;
            }
        }

        // Biases.
        for (pattern, i) in &missing {
            if let Some(weight) = pattern.name.strip_suffix("bias").map(|s| format!("{s}weight"))
                && has(&weight)
            {
                changes += usize::from(set_bias(&mut self.tree, &state.tensors[*i].at, false));
                // The tree has changed in shape: other addresses may be wrong.
                if changes > 0 {
                    return changes;
                }
            }
        }
        for bias in free.iter().filter(|p| p.name.ends_with(".bias")) {
            let weight = format!("{}weight", bias.name.trim_end_matches("bias"));
            let Some((_, i)) = all.iter().find(|(p, _)| p.name == weight) else { continue };
            if state.tensors[*i].label.contains("rms_norm") {
                to_layer_norms(&mut self.tree);
                return 1;
            }
            if set_bias(&mut self.tree, &state.tensors[*i].at, true) {
                return 1;
            }
        }

        // One weight instead of several.
        for (parts, whole) in [(&["q", "k", "v"][..], "qkv"), (&["gate", "up"][..], "gate_up")] {
            for (pattern, i) in &missing {
                let at = &state.tensors[*i].at;
                let Some(owner) = owner(&self.tree, at, parts[0]) else { continue };
                let siblings: Vec<&(Pattern, usize)> = missing
                    .iter()
                    .filter(|(p, j)| {
                        p.shape.len() == 2
                            && at_owner(&state.tensors[*j].at, &owner)
                            && p.group() == pattern.group()
                    })
                    .copied()
                    .collect();
                let rows: usize = parts
                    .iter()
                    .filter_map(|part| {
                        siblings
                            .iter()
                            .find(|(_, j)| state.tensors[*j].label.starts_with(&format!("`{part}`")))
                    })
                    .map(|(p, _)| p.shape[0])
                    .sum();
                let fused = free.iter().find(|p| {
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
                    fields.push((NOTE.into(), Tree::Text(text)));
                    return 1;
                }
            }
        }

        // Norms of queries and keys, which other layers of this description do not have.
        for norm in free.iter().filter(|p| !p.group().is_empty() && p.name.ends_with(".weight")) {
            let path = stem(inside(&norm.name));
            let last = path.rsplit('.').next().unwrap_or(path);
            let (field, part) = match last.chars().next() {
                Some('q') if last.contains("norm") => ("q_norm", "`q` of"),
                Some('k') if last.contains("norm") => ("k_norm", "`k` of"),
                _ => continue,
            };
            let map = all.iter().find(|(p, i)| {
                p.group() == norm.group() && p.shape.len() == 2 && state.tensors[*i].label.starts_with(part)
            });
            let Some((map, i)) = map else { continue };
            let Some(owner) = owner(&self.tree, &state.tensors[*i].at, "o") else { continue };
            let has_bias = has(&format!("{}.bias", stem(&norm.name)));
            let text = yaml(&self.tree);
            let has_eps = self.section("config").iter().any(|(name, _)| name == "eps");
            let Some(attention) = value_mut(&mut self.tree, &owner) else { continue };
            if attention.get(field).is_some() {
                continue;
            }
            let over = match norm.shape.as_slice() {
                [_, _] => "each",
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

        // What is not stored, if it can be left out.
        for (_, i) in missing.iter().filter(|(p, _)| !p.name.ends_with(".bias")) {
            if leave_out(&mut self.tree, &state.tensors[*i]) {
                self.lost += if state.tensors[*i].label == "`embedding`" { 1.5 } else { 0.3 };
                return 1;
            }
        }
        0
    }

    /// Drops names that nothing uses any more.
    fn unused(&mut self) {
        loop {
            let mut used: HashSet<String> = names(&self.tree).into_iter().collect();
            let Some(Tree::Map(entries)) = get_mut(&mut self.tree, "config") else { return };
            used.retain(|name| entries.iter().any(|(n, _)| n == name));
            let before = entries.len();
            entries.retain(|(name, _)| used.contains(name));
            if entries.len() == before {
                return;
            }
        }
    }

    /// Lists what is open, and ignores what other descriptions ignore; gives the number of tensors that are missing.
    fn settle(&mut self, known: &Known, config: &Config, task: Option<&str>, stored: &[Pattern]) -> usize {
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
    fn explain(&mut self, config: &Config, task: Option<&str>) {
        let state = self.state(config, task);
        let Some(k) = state.tensors.iter().find(|t| t.label.starts_with("`k` of") && t.layer.is_some())
        else {
            return;
        };
        let q = state.tensors.iter().find(|t| t.label.starts_with("`q` of") && t.layer == k.layer);
        let heads =
            ["num_attention_heads", "n_head", "n_heads"].iter().find_map(|key| match config.find(key)?.0 {
                Tree::Int(n) => usize::try_from(*n).ok(),
                _ => None,
            });
        let (Some(q), Some(heads)) = (q, heads) else { return };
        if heads == 0 || q.shape[0] % heads != 0 {
            return;
        }
        let dim = q.shape[0] / heads;
        let Some(owner) = owner(&self.tree, &k.at, "k") else { return };
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

/// The module that the first tie names.
fn first_tie(tree: &Tree) -> Option<String> {
    match tree {
        Tree::Map(entries) => entries.iter().find_map(|(key, value)| match value {
            Tree::Text(text) if key == "tie" => Some(text.split('\'').nth(1).unwrap_or(text).to_owned()),
            other => first_tie(other),
        }),
        Tree::List(items) => items.iter().find_map(first_tie),
        _ => None,
    }
}

/// Makes all RMS norms layer norms.
fn to_layer_norms(tree: &mut Tree) {
    match tree {
        Tree::Map(entries) => {
            for (key, value) in entries {
                if key == "rms_norm" {
                    *key = "layer_norm".into();
                    if let Tree::Map(fields) = value {
                        fields.retain(|(field, _)| field != "offset");
                    }
                }
                to_layer_norms(value);
            }
        }
        Tree::List(items) => items.iter_mut().for_each(to_layer_norms),
        _ => {}
    }
}

/// Says how a weight is stored, at its place.
fn set_layout(tree: &mut Tree, at: &Address, layout: &str) -> bool {
    let Some((last, parents)) = at.steps().split_last() else { return false };
    let is_at = matches!(value_mut(tree, parents), Some(Tree::Map(e)) if e.get(*last).is_some_and(|(k, _)| k == "at"));
    let steps = if is_at { parents } else { at.steps() };
    match value_mut(tree, steps) {
        Some(value) if value.get("layout").and_then(Tree::as_text) != Some(layout) => {
            set(value, "layout", Tree::Text(layout.into()));
            true
        }
        _ => false,
    }
}

/// A name without the parameter.
fn stem(name: &str) -> &str {
    name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name)
}

fn same_axes(a: &[usize], b: &[usize]) -> bool {
    a.iter().filter(|n| **n != 1).eq(b.iter().filter(|n| **n != 1))
}

fn get_mut<'t>(tree: &'t mut Tree, key: &str) -> Option<&'t mut Tree> {
    let Tree::Map(entries) = tree else { return None };
    entries.iter_mut().find(|(k, _)| k == key).map(|(_, value)| value)
}

/// Sets a field of a map; comments stay at the end.
fn set(tree: &mut Tree, key: &str, value: Tree) {
    if !matches!(tree, Tree::Map(_)) {
        let first = if key == NOTE || key == "key" { "key" } else { "at" };
        *tree = Tree::Map(vec![(first.into(), tree.clone())]);
    }
    let Tree::Map(entries) = tree else { return };
    match entries.iter_mut().find(|(k, _)| k == key) {
        Some((_, old)) => *old = value,
        None if key == NOTE => entries.push((key.into(), value)),
        None => {
            let end = entries.iter().position(|(k, _)| k == NOTE).unwrap_or(entries.len());
            entries.insert(end, (key.into(), value));
        }
    }
}

fn value_mut<'t>(tree: &'t mut Tree, steps: &[usize]) -> Option<&'t mut Tree> {
    steps.iter().try_fold(tree, |tree, &i| match tree {
        Tree::List(items) => items.get_mut(i),
        Tree::Map(entries) => entries.get_mut(i).map(|(_, value)| value),
        _ => None,
    })
}

/// The steps to the nearest map around a place that has a field.
fn owner(tree: &Tree, at: &Address, field: &str) -> Option<Vec<usize>> {
    let steps = at.steps();
    (0..steps.len()).rev().map(|n| steps[..n].to_vec()).find(|steps| {
        let mut here = Address::root();
        steps.iter().for_each(|i| here = here.child(*i));
        here.value(tree).is_some_and(|value| value.get(field).is_some())
    })
}

fn at_owner(at: &Address, owner: &[usize]) -> bool {
    at.steps().starts_with(owner)
}

/// Puts other layers under the loops at `old`; gives the number of loops.
fn move_repeat(tree: &mut Tree, old: &str, new: &str) -> usize {
    match tree {
        Tree::Map(entries) => {
            let is_repeat = entries.iter().any(|(key, _)| key == "repeat");
            let mut moved = 0;
            for (key, value) in entries.iter_mut() {
                if let (true, "at", Tree::Text(text)) = (is_repeat, key.as_str(), &mut *value)
                    && let Some(rest) = text.strip_prefix(old)
                    && rest.starts_with('$')
                {
                    *text = format!("{new}{rest}");
                    moved += 1;
                } else {
                    moved += move_repeat(value, old, new);
                }
            }
            if moved > 0 && is_repeat {
                let text = format!("layers are stored at `{new}*`");
                entries.retain(|(key, _)| key != NOTE);
                entries.push((NOTE.into(), Tree::Text(text)));
            }
            moved
        }
        Tree::List(items) => items.iter_mut().map(|x| move_repeat(x, old, new)).sum(),
        _ => 0,
    }
}

/// Gives the path at a place the name of a stored tensor.
fn rename(tree: &mut Tree, at: &Address, declared: &str, stored: &str) -> bool {
    let Some(Tree::Text(text)) = value_mut(tree, at.steps()) else { return false };
    let old = text.clone();
    // A path in an expression is a string there.
    let literals: Vec<&str> = old.split('\'').skip(1).step_by(2).collect();
    let path = if old.contains("${") {
        match literals.iter().find(|l| stem(declared).ends_with(**l)) {
            Some(literal) => (*literal).to_owned(),
            None => return false,
        }
    } else {
        old.clone()
    };
    let bare = path.trim_start_matches('/').replace("$i", "*");
    let (declared, stored) =
        if declared.ends_with(&bare) { (declared, stored) } else { (stem(declared), stem(stored)) };
    let Some(before) = declared.strip_suffix(bare.as_str()) else { return false };
    let new = match stored.strip_prefix(before) {
        Some(rest) if path.starts_with('/') => format!("/{rest}"),
        Some(rest) => rest.to_owned(),
        None => format!("/{}", stored.replacen('*', "$i", 1)),
    };
    if new == path || new.is_empty() || group(declared) != group(stored) {
        return false;
    }
    *text =
        if old.contains("${") { old.replace(&format!("'{path}'"), &format!("'{new}'")) } else { new.clone() };
    if group(declared).is_empty() {
        let (old, new) = (path.trim_start_matches('/'), new.trim_start_matches('/'));
        rename_ties(tree, old, new);
    }
    true
}

/// Renames the modules that stand in for others.
fn rename_ties(tree: &mut Tree, old: &str, new: &str) {
    match tree {
        Tree::Map(entries) => {
            for (key, value) in entries {
                if let ("tie", Tree::Text(text)) = (key.as_str(), &mut *value) {
                    *text = if text == old {
                        new.to_owned()
                    } else {
                        text.replace(&format!("'{old}'"), &format!("'{new}'"))
                    };
                } else {
                    rename_ties(value, old, new);
                }
            }
        }
        Tree::List(items) => items.iter_mut().for_each(|x| rename_ties(x, old, new)),
        _ => {}
    }
}

/// Says whether the map or norm at a place has a bias.
fn set_bias(tree: &mut Tree, at: &Address, bias: bool) -> bool {
    let Some((last, parents)) = at.steps().split_last() else { return false };
    let key = match value_mut(tree, parents) {
        Some(Tree::Map(entries)) => entries.get(*last).map(|(key, _)| key.clone()),
        _ => None,
    };
    let value = Tree::Bool(bias);
    match key.as_deref() {
        Some("bias") => value_mut(tree, at.steps()).map(|old| *old = value).is_some(),
        Some("at") => match value_mut(tree, parents) {
            Some(map) if map.get("bias") != Some(&value) => {
                set(map, "bias", value);
                true
            }
            _ => false,
        },
        _ => match value_mut(tree, at.steps()) {
            Some(path @ Tree::Text(_)) if !path.as_text().is_some_and(|t| t.contains("${")) => {
                set(path, "bias", value);
                true
            }
            _ => false,
        },
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
                let droppable = tensor.label.contains("norm`") || tensor.label == "`embedding`";
                let is_block = items[steps[n]]
                    .entries()
                    .iter()
                    .any(|(key, _)| ["layer_norm", "rms_norm", "embedding"].contains(&key.as_str()));
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
