//! What can be known of a description by itself: every block, field and name in it exists, and every name is used.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::expand::{MAX_DEPTH, circle, no_branches, rounds};
use crate::error::{Problem, Remark, closest};
use crate::nn::{self, Builder, FieldDef, FieldShape};
use crate::spec::{
    Address, Binding, BindingValue, Head, Item, NamedValue, Problems, Scope, Spec, Step, Template, Tree,
    listed,
};

/// Tasks that a head can answer.
pub const TASKS: [&str; 14] = [
    "features",
    "masked_lm",
    "causal_lm",
    "seq2seq_lm",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "pretraining",
    "image_classification",
    "image_features",
    "image_embedding",
    "text_embedding",
    "similarity",
    "speech_recognition",
];

/// The outputs that a task needs of a head.
fn needed(task: &str) -> &'static [&'static str] {
    match task {
        "masked_lm"
        | "causal_lm"
        | "seq2seq_lm"
        | "sequence_classification"
        | "token_classification"
        | "image_classification"
        | "speech_recognition" => &["logits"],
        "question_answering" => &["start_logits", "end_logits"],
        "similarity" => &["logits_per_image"],
        "text_embedding" => &["text_embeds"],
        _ => &[],
    }
}

/// Reports everything that is wrong with a description whatever the config.
pub fn check(spec: &Spec, problems: &mut Problems) {
    let mut checker = Checker {
        spec,
        problems,
        used: HashSet::new(),
        known: BTreeSet::new(),
        values: Vec::new(),
        value: None,
        conditions: 0,
        needs: HashMap::new(),
    };
    for binding in &spec.config {
        checker.binding(binding);
    }
    checker.irrelevant();
    checker.classes();
    let model: Vec<&str> = spec.values.iter().map(|v| v.name.as_str()).collect();
    for defaults in &spec.defaults {
        match nn::fields_of(&defaults.block) {
            Some(fields) => checker.defaults(fields, &defaults.block, &defaults.fields, &defaults.at),
            None => checker.unknown_block(&defaults.block, &defaults.at),
        }
    }
    checker.values = model.clone();
    for value in &spec.values {
        checker.value(value);
    }
    let mut met = HashSet::new();
    for value in &spec.values {
        checker.circles(&value.name, &value.at, &mut Vec::new(), &mut met);
    }
    for head in &spec.heads {
        if !TASKS.contains(&head.task.as_str()) {
            let problem = checker.problems.at(
                &spec.source,
                &head.at.key(),
                format!("unknown task `{}`", head.task),
                "",
            );
            suggest(problem, &head.task, &TASKS);
        }
        checker.outputs(head);
        checker.values = model.iter().copied().chain(head.values.iter().map(|v| v.name.as_str())).collect();
        for value in &head.values {
            if model.contains(&value.name.as_str()) {
                let message = format!("repeated value `{}`", value.name);
                checker.problems.at(
                    &spec.source,
                    &value.at.key(),
                    message,
                    "a value of `model` has this name",
                );
            }
            checker.value(value);
        }
        let mut met = met.clone();
        for value in &head.values {
            checker.circles(&value.name, &value.at, &mut Vec::new(), &mut met);
        }
        // Other heads may have values of the same names.
        head.values.iter().for_each(|value| drop(checker.needs.remove(value.name.as_str())));
        for (output, _, at) in &head.outputs {
            checker.reference(output, at);
        }
        for (tree, at) in head.decoder_start.iter().chain(&head.when).chain(&head.pad_to) {
            checker.names(tree, at);
        }
    }
    let used = std::mem::take(&mut checker.used);
    // What is misspelt or left out above may be the use of a name: that is to be mended first.
    let bindings = if problems.is_empty() { &spec.config[..] } else { &[] };
    for binding in bindings {
        if !used.contains(&binding.name) {
            let message = format!("unused binding `{}`", binding.name);
            let problem = problems.at(&spec.source, &binding.at.key(), message, "");
            let help = "bind only what changes the result; what is not implemented belongs under `require`";
            problem.remarks.push(Remark { tag: "help", text: help.into() });
        }
    }
}

struct Checker<'s, 'p> {
    spec: &'s Spec,
    problems: &'p mut Problems,
    /// Names that some expression uses.
    used: HashSet<String>,
    /// Names that have a value here, in an order that does not change: some are suggested.
    known: BTreeSet<String>,
    /// Values that may be referred to here.
    values: Vec<&'s str>,
    /// The value that is being checked.
    value: Option<&'s str>,
    /// How many `when`s are around what is being checked.
    conditions: usize,
    /// For each value the values that it needs whatever the config, and where it says so.
    needs: HashMap<&'s str, Vec<(&'s str, Address)>>,
}

impl<'s> Checker<'s, '_> {
    /// Reports outputs that the task of a head needs and that it lacks.
    fn outputs(&mut self, head: &Head) {
        let needed = needed(&head.task);
        let outputs = head.outputs.iter().map(|(name, output, _)| output.as_deref().unwrap_or(name));
        let has: Vec<&str> = outputs.chain(head.values.iter().map(|v| v.name.as_str())).collect();
        for name in needed.iter().filter(|name| !has.contains(name)) {
            let message = format!("`{}` needs an output `{name}`", head.task);
            let problem = self.problems.at(&self.spec.source, &head.at.key(), message, "");
            suggest(problem, name, &has);
        }
        if needed.is_empty() && has.is_empty() && !self.spec.values.is_empty() {
            let message = format!("`{}` has no outputs", head.task);
            self.problems.at(&self.spec.source, &head.at.key(), message, "");
        }
    }

    /// Checks that no key is said to be irrelevant and read all the same.
    fn irrelevant(&mut self) {
        let read = super::inspect::keys_read(self.spec);
        for (key, at) in &self.spec.irrelevant {
            if read.contains(&key.as_str()) {
                let message = format!("`{key}` is read, and listed as irrelevant");
                self.problems.at(&self.spec.source, at, message, "");
            }
        }
    }

    /// Checks that each class has one head.
    fn classes(&mut self) {
        let mut known: HashMap<&str, &str> = HashMap::new();
        for head in &self.spec.heads {
            for class in &head.classes {
                if let Some(other) = known.insert(class, &head.task) {
                    let message = format!("`{class}` is matched by two heads, `{other}` and `{}`", head.task);
                    self.problems.at(&self.spec.source, &head.at.key(), message, "");
                }
            }
        }
    }

    fn binding(&mut self, binding: &'s Binding) {
        match &binding.value {
            BindingValue::Stored(_) => {}
            BindingValue::Derived(tree, at) => self.names(tree, at),
            BindingValue::Key { default, when_null, .. } => {
                for (tree, at) in default.iter().chain(when_null) {
                    self.names(tree, at);
                }
            }
        }
        self.known.insert(binding.name.clone());
    }

    /// Checks that the names in all expressions of a value are bound.
    fn names(&mut self, tree: &Tree, at: &Address) {
        let mut found = Vec::new();
        tree.visit_texts(at, &mut |text, at| {
            if let Ok(template) = Template::parse(text) {
                found.extend(template.names().into_iter().map(|name| (name, at.clone())));
            }
        });
        for (name, at) in found {
            if !self.known.contains(&name) {
                let problem = self.problems.at(&self.spec.source, &at, format!("unknown name `{name}`"), "");
                match closest(&name, self.known.iter().map(String::as_str)) {
                    _ if self.spec.config.iter().any(|binding| binding.name == name) => {
                        let help = format!("`{name}` is bound further down; move it up");
                        problem.remarks.push(Remark { tag: "help", text: help });
                    }
                    Some(near) => {
                        problem.remarks.push(Remark { tag: "help", text: format!("did you mean `{near}`?") });
                    }
                    None => {
                        let help = format!("bind it under `config`: `{name}: key_in_config_json`");
                        problem.remarks.push(Remark { tag: "help", text: help });
                    }
                }
            }
            self.used.insert(name);
        }
    }

    fn value(&mut self, value: &'s NamedValue) {
        self.value = Some(&value.name);
        self.sequence(&value.body);
        self.value = None;
        self.beginning(&value.body, &value.at);
    }

    /// Checks that a sequence that is given nothing begins with a block that takes nothing, whatever the config.
    fn beginning(&mut self, items: &[Item], at: &Address) {
        if items.is_empty() {
            self.problems.at(&self.spec.source, at, "a sequence without blocks", "");
        }
        for item in items {
            let name = match &item.step {
                Step::Residual(_) => "residual",
                Step::Block { name, .. } if nn::block(name).is_some_and(|block| !block.is_source) => name,
                // Only a config tells whether it is there, and is the beginning.
                _ if item.when.is_some() => return,
                Step::Sum(branches) | Step::Product(branches) => {
                    for (i, branch) in branches.iter().enumerate() {
                        self.beginning(branch, &item.at.child(i));
                    }
                    return;
                }
                Step::Repeat { body, .. } => return self.beginning(body, &item.at),
                Step::Block { .. } => return,
            };
            if item.when.is_none() {
                let message = format!("`{name}` has no input");
                let problem = self.problems.at(&self.spec.source, &item.at.key(), message, "");
                let help = "begin the sequence with `embedding` or `from`";
                problem.remarks.push(Remark { tag: "help", text: help.into() });
                return;
            }
        }
    }

    /// Checks that a value does not need itself, whatever the config. `way` leads to it; `met` have been looked at.
    fn circles(&mut self, name: &'s str, at: &Address, way: &mut Vec<&'s str>, met: &mut HashSet<&'s str>) {
        if way.contains(&name) {
            self.problems.at(&self.spec.source, at, circle(way, name), "");
            return;
        }
        // A longer way is refused by the plan.
        if way.len() == MAX_DEPTH || !met.insert(name) {
            return;
        }
        way.push(name);
        for (needed, at) in self.needs.get(name).cloned().unwrap_or_default() {
            self.circles(needed, &at, way, met);
        }
        way.pop();
    }

    fn sequence(&mut self, items: &'s [Item]) {
        for item in items {
            if let Some((tree, at)) = &item.when {
                self.names(tree, at);
            }
            self.conditions += usize::from(item.when.is_some());
            match &item.step {
                Step::Residual(body) => self.sequence(body),
                Step::Sum(branches) | Step::Product(branches) => {
                    if branches.is_empty() {
                        let kind = if matches!(item.step, Step::Sum(_)) { "sum" } else { "product" };
                        self.problems.at(&self.spec.source, &item.at, no_branches(kind), "");
                    }
                    branches.iter().for_each(|branch| self.sequence(branch))
                }
                Step::Repeat { count, path, index, body } => {
                    self.names(&count.0, &count.1);
                    if !holds_expression(&count.0)
                        && let Err(message) = rounds(&count.0)
                    {
                        self.problems.at(&self.spec.source, &count.1, message, "");
                    }
                    if self.spec.config.iter().any(|binding| binding.name == *index) {
                        let message = format!("the index `{index}` is bound under `config` too");
                        let problem = self.problems.at(&self.spec.source, &item.at.key(), message, "");
                        let help = "call it something else: `as: layer`, `at: encoder.layer.$layer`".into();
                        problem.remarks.push(Remark { tag: "help", text: help });
                    }
                    let fresh = self.known.insert(index.clone());
                    if let Some((path, at)) = path {
                        self.names(path, at);
                    }
                    self.sequence(body);
                    if fresh {
                        self.known.remove(index);
                    }
                }
                Step::Block { name, fields } => match nn::block(name) {
                    Some(block) => {
                        self.fields((block.fields)(), name, fields, &item.at);
                        let source = &self.spec.source;
                        let mut builder =
                            Builder::new(source, &self.spec.defaults, Scope::default(), self.problems);
                        (block.check)(&mut builder, fields, &item.at);
                    }
                    None => self.unknown_block(name, &item.at),
                },
            }
            self.conditions -= usize::from(item.when.is_some());
        }
    }

    fn unknown_block(&mut self, name: &str, at: &Address) {
        let problem =
            self.problems.at(&self.spec.source, &at.key(), format!("unknown block `{name}`"), "not a block");
        let names = nn::BLOCKS.iter().map(|b| b.name).chain(nn::COMBINATORS);
        let lists = "`smelt blocks` lists them all";
        let help = match closest(name, names) {
            Some(near) => format!("did you mean `{near}`? {lists}"),
            None => lists.to_owned(),
        };
        problem.remarks.push(Remark { tag: "help", text: help });
    }

    /// Checks what `defaults` says of a block.
    fn defaults(&mut self, known: &'static [FieldDef], block: &str, tree: &'s Tree, at: &Address) {
        for (i, (name, value)) in tree.entries().iter().enumerate() {
            self.field(known, block, name, value, &at.child(i));
        }
    }

    fn fields(&mut self, known: &'static [FieldDef], block: &str, tree: &'s Tree, at: &Address) {
        let given: Vec<&str> = match tree {
            Tree::Map(entries) => {
                for (i, (name, value)) in entries.iter().enumerate() {
                    self.field(known, block, name, value, &at.child(i));
                }
                entries.iter().map(|(name, _)| name.as_str()).collect()
            }
            Tree::Null => Vec::new(),
            value => {
                let Some(first) = known.first() else { return };
                self.field(known, block, first.name, value, at);
                vec![first.name]
            }
        };
        let defaults = self.spec.defaults.iter().find(|d| d.block == block);
        for field in known {
            let is_default = defaults.is_some_and(|d| d.fields.get(field.name).is_some());
            if field.required && !is_default && !given.contains(&field.name) {
                let message = format!("`{block}` needs `{}`", field.name);
                let problem = self.problems.at(&self.spec.source, &at.key(), message, "");
                let help = format!("add `{}`: {}", field.name, (field.kind)());
                problem.remarks.push(Remark { tag: "help", text: help });
            }
        }
    }

    fn field(&mut self, known: &'static [FieldDef], block: &str, name: &str, value: &'s Tree, at: &Address) {
        let Some(field) = known.iter().find(|f| f.name == name) else {
            let message = format!("unknown field `{name}` of `{block}`");
            let problem = self.problems.at(&self.spec.source, &at.key(), message, "");
            suggest(problem, name, &known.iter().map(|f| f.name).collect::<Vec<_>>());
            if let Some(blocks) = blocks_with(name) {
                problem.remarks.push(Remark { tag: "note", text: format!("a field of `{blocks}`") });
            }
            return;
        };
        self.names(value, at);
        match field.shape {
            FieldShape::Fields(group, fields) | FieldShape::PathOrFields(group, fields)
                if matches!(value, Tree::Map(_)) =>
            {
                self.repeated(value, at);
                self.fields(fields(), group, value, at);
            }
            FieldShape::ValueNames if !holds_expression(value) && matches!(value, Tree::List(_)) => {
                value.visit_texts(at, &mut |text, at| self.reference(text, at));
            }
            FieldShape::ValueName if value.as_text().is_some_and(|text| !text.contains('$')) => {
                if let Some(text) = value.as_text() {
                    self.reference(text, at);
                }
            }
            _ if !holds_expression(value) => {
                let mut builder = Builder::new(&self.spec.source, &[], Scope::default(), self.problems);
                builder.block = block.into();
                builder.field = field.name;
                (field.check)(&mut builder, value, at);
            }
            _ => {}
        }
    }

    fn repeated(&mut self, tree: &Tree, at: &Address) {
        let mut seen = HashSet::new();
        for (i, (key, _)) in tree.entries().iter().enumerate() {
            if !seen.insert(key) {
                let message = format!("repeated key `{key}`");
                self.problems.at(&self.spec.source, &at.child(i).key(), message, "already given above");
            }
        }
    }

    fn reference(&mut self, name: &'s str, at: &Address) {
        if let Some(value) = self.value.filter(|_| self.conditions == 0) {
            self.needs.entry(value).or_default().push((name, at.clone()));
        }
        if !self.values.contains(&name) {
            let problem = self.problems.at(&self.spec.source, at, format!("unknown value `{name}`"), "");
            suggest(problem, name, &self.values);
        }
    }
}

fn holds_expression(tree: &Tree) -> bool {
    let mut found = false;
    tree.visit_texts(&Address::root(), &mut |text, _| found |= text.contains('$'));
    found
}

fn suggest(problem: &mut Problem, name: &str, known: &[&str]) {
    if known.is_empty() {
        return;
    }
    let begins = |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with('_'));
    let near = closest(name, known.iter().copied())
        .or_else(|| known.iter().copied().find(|other| begins(name, other) || begins(other, name)));
    let help = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("expected one of {}", listed(known)),
    };
    problem.remarks.push(Remark { tag: "help", text: help });
}

/// The blocks that have a field of this name, if they are few.
fn blocks_with(field: &str) -> Option<String> {
    let has = |block: &&nn::Definition| (block.fields)().iter().any(|other| other.name == field);
    let blocks: Vec<&str> = nn::BLOCKS.iter().filter(has).map(|block| block.name).collect();
    (1..=3).contains(&blocks.len()).then(|| blocks.join("`, `"))
}
