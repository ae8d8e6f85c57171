//! Model type, classes and the head that a config asks for.

use std::collections::{BTreeSet, HashSet};

use super::adapt::Candidate;
use super::edit::{first_tie, get_mut, rename_ties, set, stem};
use super::fold::names;
use super::known::{Family, Known, stem_of};
use super::patterns::Pattern;
use super::print::NOTE;
use crate::plan::Config;
use crate::spec::{Address, Tree};

impl Candidate {
    /// Names the model type and the classes; gives the task that the config asks for.
    pub(super) fn heads(
        &mut self,
        known: &Known,
        config: &Config,
        stored: &[Pattern],
        prefix: &str,
    ) -> Option<String> {
        let classes = config.texts("architectures").unwrap_or_default();
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
        // The base under a prefix is part of a model with a head, whatever its class is called.
        let generates = ["seq2seq_lm", "causal_lm", "masked_lm"];
        let is_own = |task: &&str| self.section("heads").iter().any(|(name, _)| name == *task);
        let of_base = generates
            .iter()
            .find(|task| is_own(task))
            .filter(|_| !prefix.is_empty() && task.as_deref() == Some("features"));
        let own_name = config.text("model_type").unwrap_or_default().replace(['-', '_'], "").to_lowercase();
        let named = own.filter(|(stem, ..)| of_base.is_some() && stem.to_lowercase().starts_with(&own_name));
        let task = of_base.map(|task| (*task).to_owned()).or(task);
        let replaced = task.as_deref().is_some_and(|task| self.other_head(known, stored, task));
        let stem = own.map_or("", |(stem, ..)| stem);
        let stem = named.and_then(|(stem, ..)| stem.get(..own_name.len())).unwrap_or(stem);
        let all: Vec<String> = self.section("heads").iter().flat_map(|(_, head)| classes_of(head)).collect();
        if let Some(Tree::Map(heads)) = get_mut(&mut self.tree, "heads") {
            for (name, head) in heads {
                let mut renamed: Vec<String> = Vec::new();
                for class in classes_of(head) {
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
                set(head, "match", one_or_many(&renamed));
            }
        }
        self.one_head_per_class(task.as_deref());
        task.or_else(|| Some("features".into()))
    }

    /// Leaves each class to one head, that of the task if it is among them, and drops heads that have none left.
    fn one_head_per_class(&mut self, task: Option<&str>) {
        let Some(Tree::Map(heads)) = get_mut(&mut self.tree, "heads") else { return };
        let mut taken: HashSet<String> = HashSet::new();
        let mut order: Vec<usize> = (0..heads.len()).collect();
        order.sort_by_key(|&i| Some(heads[i].0.as_str()) != task);
        for i in order {
            let head = &mut heads[i].1;
            let left: Vec<String> =
                classes_of(head).into_iter().filter(|c| taken.insert(c.clone())).collect();
            if left.len() < classes_of(head).len() {
                set(head, "match", one_or_many(&left));
            }
        }
        heads.retain(|(_, head)| head.get("match") != Some(&Tree::List(Vec::new())));
    }

    /// Takes the head of another description for a task, if more of its names are stored; says whether it did.
    pub(super) fn other_head(&mut self, known: &Known, stored: &[Pattern], task: &str) -> bool {
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
        let tie = first_tie(&self.tree);
        if let (Some(new), Some(old)) = (&tie, first_tie(&head)) {
            rename_ties(&mut head, &old, new);
        }
        set(
            &mut head,
            NOTE,
            Tree::Text(format!("this head is that of {}: its names are stored", family.name)),
        );
        let mut wanted = names(&head);
        // Values that it begins with come along, where this model has none of that name.
        let mut began = Vec::new();
        head.visit_texts(&Address::root(), &mut |text, _| began.push(text.to_owned()));
        let mut i = 0;
        while let Some(name) = began.get(i).cloned() {
            i += 1;
            if self.tree.get("model").is_some_and(|model| model.get(&name).is_some()) {
                continue;
            }
            let other = family.tree.get("model").and_then(|model| model.get(&name)).cloned();
            if let (Some(mut value), Some(model)) = (other, get_mut(&mut self.tree, "model")) {
                if let (Some(new), Some(old)) = (&tie, first_tie(&value)) {
                    rename_ties(&mut value, &old, new);
                }
                wanted.extend(names(&value));
                value.visit_texts(&Address::root(), &mut |text, _| began.push(text.to_owned()));
                set(model, &name, value);
            }
        }
        while let Some(name) = wanted.pop() {
            let other = family.tree.get("config").and_then(|c| c.get(&name));
            if let (Some(value), Some(Tree::Map(entries))) = (other, get_mut(&mut self.tree, "config"))
                && !entries.iter().any(|(n, _)| *n == name)
            {
                wanted.extend(names(value));
                entries.insert(0, (name, value.clone()));
            }
        }
        self.order_names();
        match get_mut(&mut self.tree, "heads") {
            Some(heads) => set(heads, task, head),
            None => set(&mut self.tree, "heads", Tree::Map(vec![(task.to_owned(), head)])),
        }
        true
    }
}

/// The classes that ask for a head.
fn classes_of(head: &Tree) -> Vec<String> {
    match head.get("match") {
        Some(Tree::Text(text)) => vec![text.clone()],
        Some(Tree::List(items)) => items.iter().filter_map(Tree::as_text).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn one_or_many(classes: &[String]) -> Tree {
    match classes {
        [one] => Tree::Text(one.clone()),
        many => Tree::List(many.iter().cloned().map(Tree::Text).collect()),
    }
}
