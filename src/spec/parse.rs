//! The tree of a file to a [`Spec`].

use super::expression::Template;
use super::problems::Problems;
use super::source::Source;
use super::tree::{Address, Tree};
use crate::error::closest;

/// An architecture description.
#[derive(Debug)]
pub struct Spec {
    /// The file.
    pub source: Source,
    /// Config keys with the values that this file describes.
    pub matches: Vec<Test>,
    /// Names for values of the config, in the order of the file.
    pub config: Vec<Binding>,
    /// Config keys that must have one of the values that are implemented.
    pub require: Vec<Test>,
    /// Patterns of config keys that do not change results; `*` stands for any characters.
    pub irrelevant: Vec<(String, Address)>,
    /// How tensor names are to be read.
    pub weights: Weights,
    /// Fields that blocks take when they do not name them: per block, its fields.
    pub defaults: Vec<Defaults>,
    /// The named values of the model.
    pub values: Vec<NamedValue>,
    /// What answers which task.
    pub heads: Vec<Head>,
}

/// A config key and the values that it may have.
#[derive(Debug)]
pub struct Test {
    /// Key, with dots for nested ones.
    pub key: String,
    /// Accepted values.
    pub accepted: Vec<Tree>,
    /// What holds when the config lacks the key; without it the key must be there.
    pub default: Option<Tree>,
    /// The entry.
    pub at: Address,
}

/// A name for a value of the config.
#[derive(Debug)]
pub struct Binding {
    /// The name.
    pub name: String,
    /// Where the value comes from.
    pub value: BindingValue,
    /// The entry.
    pub at: Address,
}

/// Where the value of a [`Binding`] comes from.
#[derive(Debug)]
pub enum BindingValue {
    /// The first of these keys that the config has and that is not null, nor, of several, an empty map.
    Key {
        /// Keys in order, with dots for nested ones.
        keys: Vec<String>,
        /// Taken when none is there; may be an expression over earlier names.
        default: Option<(Tree, Address)>,
        /// Taken instead of `default` when a key is there but null.
        when_null: Option<(Tree, Address)>,
    },
    /// Whether the checkpoint has a tensor of this name.
    Stored(String),
    /// An expression over earlier names.
    Derived(Tree, Address),
}

impl Binding {
    /// The config keys that it reads.
    pub fn keys(&self) -> &[String] {
        match &self.value {
            BindingValue::Key { keys, .. } => keys,
            BindingValue::Stored(_) | BindingValue::Derived(..) => &[],
        }
    }
}

/// How tensor names are to be read.
#[derive(Debug, Default)]
pub struct Weights {
    /// Prefixes under which a tensor is looked up, in order.
    pub prefixes: Vec<String>,
    /// Runs of segments in stored names and what they are read as, each with its entry.
    pub rename: Vec<(String, String, Address)>,
    /// Patterns of names that do not matter; `*` stands for one segment.
    pub ignore: Vec<(String, Address)>,
}

/// Fields that a block takes when it does not name them.
#[derive(Debug)]
pub struct Defaults {
    /// Name of the block.
    pub block: String,
    /// Its fields.
    pub fields: Tree,
    /// The entry.
    pub at: Address,
}

/// A value with a name, computed by a sequence of blocks.
#[derive(Debug)]
pub struct NamedValue {
    /// The name.
    pub name: String,
    /// What computes it.
    pub body: Vec<Item>,
    /// The entry.
    pub at: Address,
}

/// What answers a task.
#[derive(Debug)]
pub struct Head {
    /// The task.
    pub task: String,
    /// Names in the config's `architectures` that ask for it.
    pub classes: Vec<String>,
    /// Whether there is this head; there is without it.
    pub when: Option<(Tree, Address)>,
    /// Values of the model that are outputs too, each with the name that transformers gives it, if that is another.
    pub outputs: Vec<(String, Option<String>, Address)>,
    /// The token that goes before the input to make the tokens of a decoder that is not given any.
    pub decoder_start: Option<(Tree, Address)>,
    /// How many tokens the model was always given of a text: shorter ones are filled up.
    pub pad_to: Option<(Tree, Address)>,
    /// The head's own values.
    pub values: Vec<NamedValue>,
    /// The entry.
    pub at: Address,
}

/// One step of a sequence.
#[derive(Debug)]
pub struct Item {
    /// The step is left out unless this holds.
    pub when: Option<(Tree, Address)>,
    /// What it does.
    pub step: Step,
    /// The entry that names the block or combinator.
    pub at: Address,
}

/// What a step does.
#[derive(Debug)]
pub enum Step {
    /// `x + body(x)`.
    Residual(Vec<Item>),
    /// The sum of all branches.
    Sum(Vec<Vec<Item>>),
    /// The product of all branches.
    Product(Vec<Vec<Item>>),
    /// The body again and again.
    Repeat {
        /// How often.
        count: (Tree, Address),
        /// Put before every path inside.
        path: Option<(Tree, Address)>,
        /// Name of the loop index.
        index: String,
        /// What is repeated.
        body: Vec<Item>,
    },
    /// A block.
    Block {
        /// Its name.
        name: String,
        /// Its fields: a map, or the value of its first field alone.
        fields: Tree,
    },
}

/// The top-level keys of a file.
pub(crate) const SECTIONS: [&str; 9] =
    ["smelt", "match", "config", "require", "irrelevant", "weights", "defaults", "model", "heads"];

/// The language version that this crate reads.
const VERSION: i64 = 1;

impl Spec {
    /// Reads a description. What can be read is read even if something is wrong, so that later checks can report
    /// more; the spec must not be used unless `problems` stays empty.
    pub fn parse(source: Source, problems: &mut Problems) -> Spec {
        let mut spec = Spec {
            matches: Vec::new(),
            config: Vec::new(),
            require: Vec::new(),
            irrelevant: Vec::new(),
            weights: Weights { prefixes: vec![String::new()], ..Weights::default() },
            defaults: Vec::new(),
            values: Vec::new(),
            heads: Vec::new(),
            source,
        };
        let mut reader = Reader { source: &spec.source, problems };
        let tree = &spec.source.tree;
        let root = Address::root();
        if !matches!(tree, Tree::Map(_)) {
            let message = format!("expected a map with `smelt`, `model` and so on, found {}", tree.kind());
            reader.wrong(&root, message, "");
            return spec;
        }
        for (key, value, at) in reader.entries(tree, &root) {
            match key {
                "smelt" => reader.version(value, &at),
                "match" => spec.matches = reader.tests(value, &at, true),
                "config" => spec.config = reader.config(value, &at),
                "require" => spec.require = reader.tests(value, &at, false),
                "irrelevant" => spec.irrelevant = reader.names(value, &at, "irrelevant"),
                "weights" => spec.weights = reader.weights(value, &at),
                "defaults" => spec.defaults = reader.defaults(value, &at),
                "model" => spec.values = reader.values(value, &at, &[]),
                "heads" => spec.heads = reader.heads(value, &at),
                _ => reader.unknown("section", key, &at, &SECTIONS),
            }
        }
        for section in ["smelt", "match", "model"] {
            if tree.get(section).is_none() {
                reader.wrong(&root, format!("expected a section `{section}`"), "");
            }
        }
        let is_empty =
            |(section, value): &(String, Tree)| section == "model" && *value == Tree::Map(Vec::new());
        if spec.heads.iter().all(|head| head.values.is_empty())
            && let Some(i) = tree.entries().iter().position(is_empty)
        {
            reader.wrong(&root.child(i).key(), "expected a value of `model`, found none", "");
        }
        spec
    }
}

struct Reader<'a> {
    source: &'a Source,
    problems: &'a mut Problems,
}

impl<'a> Reader<'a> {
    fn wrong(&mut self, at: &Address, message: impl Into<String>, label: &str) {
        self.problems.at(self.source, at, message, label);
    }

    fn unknown(&mut self, what: &str, name: &str, at: &Address, known: &[&str]) {
        let problem = self.problems.at(self.source, &at.key(), format!("unknown {what} `{name}`"), "");
        let help = match closest(name, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("expected one of {}", listed(known)),
        };
        problem.remarks.push(crate::error::Remark { tag: "help", text: help });
    }

    /// The entries of a map with their addresses; repeated keys are reported and left out.
    fn entries(&mut self, tree: &'a Tree, at: &Address) -> Vec<(&'a str, &'a Tree, Address)> {
        if !matches!(tree, Tree::Map(_)) {
            self.wrong(at, format!("expected a map, found {}", tree.kind()), "");
        }
        let mut entries: Vec<(&str, &Tree, Address)> = Vec::new();
        for (i, (key, value)) in tree.entries().iter().enumerate() {
            let here = at.child(i);
            if entries.iter().any(|(k, _, _)| k == key) {
                self.wrong(&here.key(), format!("repeated key `{key}`"), "already given above");
            } else {
                entries.push((key, value, here));
            }
        }
        entries
    }

    /// A string, or each string of a list.
    fn texts(&mut self, tree: &'a Tree, at: &Address) -> Vec<(&'a str, Address)> {
        let mut texts = Vec::new();
        let mut one = |tree: &'a Tree, at: Address| match tree {
            Tree::Text(text) => texts.push((text.as_str(), at)),
            other => {
                self.problems.at(self.source, &at, format!("expected a string, found {}", other.kind()), "");
            }
        };
        match tree {
            Tree::List(items) => items.iter().enumerate().for_each(|(i, item)| one(item, at.child(i))),
            other => one(other, at.clone()),
        }
        texts
    }

    /// As [`texts`](Self::texts), of a field or section whose texts stand for themselves.
    fn names(&mut self, tree: &'a Tree, at: &Address, place: &str) -> Vec<(String, Address)> {
        let texts = self.texts(tree, at);
        texts.iter().for_each(|(text, at)| self.plain(text, at, place));
        texts.into_iter().map(|(text, at)| (text.into(), at)).collect()
    }

    /// Reports an expression where it has no meaning.
    fn plain(&mut self, text: &str, at: &Address, place: &str) {
        if text.contains('$') {
            self.wrong(at, format!("values under `{place}` are plain, `$` has no meaning here"), "");
        }
    }

    /// Checks the templates in a value.
    fn templates(&mut self, tree: &Tree, at: &Address) {
        tree.visit_texts(at, &mut |text, at| {
            if let Err(message) = Template::parse(text) {
                self.problems.at(self.source, at, format!("invalid expression: {message}"), "");
            }
        });
    }

    fn version(&mut self, tree: &Tree, at: &Address) {
        if *tree != Tree::Int(VERSION) {
            let found =
                if let Tree::Text(text) = tree { format!("the text `{text}`") } else { tree.to_string() };
            let message = format!("unsupported language version: expected {VERSION}, found {found}");
            self.wrong(at, message, "");
        }
    }

    fn tests(&mut self, tree: &'a Tree, at: &Address, is_match: bool) -> Vec<Test> {
        let mut tests = Vec::new();
        for (key, value, at) in self.entries(tree, at) {
            let mut test = Test { key: key.into(), accepted: Vec::new(), default: None, at: at.clone() };
            let accepted = match value {
                Tree::Map(_) if !is_match => {
                    for (field, value, at) in self.entries(value, &at) {
                        match field {
                            "is" => {}
                            "default" => test.default = Some(value.clone()),
                            _ => self.unknown("field", field, &at, &["is", "default"]),
                        }
                    }
                    value.get("is")
                }
                other => Some(other),
            };
            match accepted {
                Some(Tree::List(items)) if items.is_empty() => {
                    self.wrong(&at, format!("expected a value of `{key}`, found none"), "")
                }
                Some(Tree::List(items)) => test.accepted = items.clone(),
                Some(Tree::Map(_)) => {
                    self.wrong(&at, format!("expected a plain value of `{key}`, found a map"), "")
                }
                Some(value) => test.accepted = vec![value.clone()],
                None => self.wrong(
                    &at,
                    format!("expected `is` with the values of `{key}` that are implemented"),
                    "",
                ),
            }
            for text in test.accepted.iter().chain(&test.default).filter_map(Tree::as_text) {
                self.plain(text, &test.at, if is_match { "match" } else { "require" });
            }
            tests.push(test);
        }
        tests
    }

    fn config(&mut self, tree: &'a Tree, at: &Address) -> Vec<Binding> {
        let mut bindings = Vec::new();
        for (name, value, at) in self.entries(tree, at) {
            if !is_name(name) {
                self.wrong(&at.key(), format!("`{name}` cannot be a name"), "letters, digits and `_`");
            }
            self.templates(value, &at);
            let value = match value {
                Tree::Text(text) if !text.contains('$') => {
                    BindingValue::Key { keys: vec![text.clone()], default: None, when_null: None }
                }
                Tree::Map(entries) if entries.iter().any(|(field, _)| field == "stored") => {
                    self.stored_binding(value, &at)
                }
                Tree::Map(_) => self.key_binding(value, &at),
                other => BindingValue::Derived(other.clone(), at.clone()),
            };
            bindings.push(Binding { name: name.into(), value, at });
        }
        bindings
    }

    fn key_binding(&mut self, tree: &'a Tree, at: &Address) -> BindingValue {
        let (mut keys, mut default, mut when_null) = (Vec::new(), None, None);
        for (field, value, at) in self.entries(tree, at) {
            match field {
                "key" => keys = self.names(value, &at, "key").into_iter().map(|(key, _)| key).collect(),
                "default" => default = Some((value.clone(), at)),
                "when_null" => when_null = Some((value.clone(), at)),
                _ => self.unknown("field", field, &at, &["key", "default", "when_null", "stored"]),
            }
        }
        if keys.is_empty() && tree.get("key").is_none() {
            self.wrong(at, "expected `key`, the name in config.json", "");
        }
        BindingValue::Key { keys, default, when_null }
    }

    fn stored_binding(&mut self, tree: &'a Tree, at: &Address) -> BindingValue {
        let mut tensor = String::new();
        for (field, value, at) in self.entries(tree, at) {
            match (field, value) {
                ("stored", Tree::Text(name)) => {
                    self.plain(name, &at, "stored");
                    tensor.clone_from(name);
                }
                ("stored", _) => {
                    self.wrong(&at, format!("expected the name of a tensor, found {}", value.kind()), "");
                }
                _ => self.unknown("field", field, &at, &["stored"]),
            }
        }
        BindingValue::Stored(tensor)
    }

    fn weights(&mut self, tree: &'a Tree, at: &Address) -> Weights {
        let mut weights = Weights { prefixes: vec![String::new()], ..Weights::default() };
        for (field, value, at) in self.entries(tree, at) {
            match field {
                "prefix" => {
                    let names = self.names(value, &at, "weights").into_iter();
                    weights.prefixes = names.map(|(name, _)| name).collect();
                }
                "rename" => {
                    for (from, to, at) in self.entries(value, &at) {
                        match to.as_text() {
                            Some(to) => {
                                self.plain(from, &at.key(), "weights");
                                self.plain(to, &at, "weights");
                                weights.rename.push((from.into(), to.into(), at));
                            }
                            None => self.wrong(&at, format!("expected a name, found {}", to.kind()), ""),
                        }
                    }
                }
                "ignore" => weights.ignore = self.names(value, &at, "weights"),
                _ => self.unknown("field", field, &at, &["prefix", "rename", "ignore"]),
            }
        }
        weights
    }

    fn defaults(&mut self, tree: &'a Tree, at: &Address) -> Vec<Defaults> {
        let mut defaults = Vec::new();
        for (block, fields, at) in self.entries(tree, at) {
            self.entries(fields, &at);
            self.templates(fields, &at);
            defaults.push(Defaults { block: block.into(), fields: fields.clone(), at });
        }
        defaults
    }

    fn values(&mut self, tree: &'a Tree, at: &Address, except: &[&str]) -> Vec<NamedValue> {
        let mut values = Vec::new();
        for (name, body, at) in self.entries(tree, at) {
            if except.contains(&name) {
                continue;
            }
            if !is_name(name) {
                self.wrong(&at.key(), format!("`{name}` cannot be a name"), "letters, digits and `_`");
            }
            values.push(NamedValue { name: name.into(), body: self.sequence(body, &at), at });
        }
        values
    }

    fn heads(&mut self, tree: &'a Tree, at: &Address) -> Vec<Head> {
        let mut heads = Vec::new();
        for (task, fields, at) in self.entries(tree, at) {
            let (mut classes, mut outputs) = (Vec::new(), Vec::new());
            let (mut when, mut decoder_start, mut pad_to) = (None, None, None);
            for (field, value, at) in self.entries(fields, &at) {
                match field {
                    "match" => {
                        let names = self.names(value, &at, "match").into_iter();
                        classes = names.map(|(class, _)| class).collect();
                    }
                    "outputs" if matches!(value, Tree::Map(_)) => {
                        for (name, value, at) in self.entries(value, &at) {
                            match value.as_text() {
                                Some(text) => outputs.push((text.to_owned(), Some(name.to_owned()), at)),
                                None => self.wrong(&at, "expected the name of a value", ""),
                            }
                        }
                    }
                    "outputs" => {
                        let texts = self.texts(value, &at).into_iter();
                        outputs = texts.map(|(text, at)| (text.into(), None, at)).collect();
                    }
                    "when" | "decoder_start" | "pad_to" => {
                        self.templates(value, &at);
                        let given = match field {
                            "when" => &mut when,
                            "pad_to" => &mut pad_to,
                            _ => &mut decoder_start,
                        };
                        *given = Some((value.clone(), at));
                    }
                    _ => {}
                }
            }
            if fields.get("match").is_none() {
                self.wrong(&at.key(), format!("head `{task}` has no `match`"), "");
            }
            let values = self.values(fields, &at, &["match", "when", "outputs", "decoder_start", "pad_to"]);
            heads.push(Head { task: task.into(), classes, when, outputs, decoder_start, pad_to, values, at });
        }
        heads
    }

    /// A list of steps, or one step alone.
    fn sequence(&mut self, tree: &'a Tree, at: &Address) -> Vec<Item> {
        match tree {
            Tree::List(items) => {
                items.iter().enumerate().filter_map(|(i, item)| self.item(item, &at.child(i))).collect()
            }
            other => self.item(other, at).into_iter().collect(),
        }
    }

    fn item(&mut self, tree: &'a Tree, at: &Address) -> Option<Item> {
        if !matches!(tree, Tree::Map(_)) {
            let message = format!("expected a block, found {}", tree.kind());
            let problem = self.problems.at(self.source, at, message, "");
            if let Tree::Text(text) = tree {
                problem
                    .remarks
                    .push(crate::error::Remark { tag: "help", text: format!("write `{text}: ...`") });
            }
            return None;
        }
        let (mut when, mut head, mut path, mut index, mut body) = (None, None, None, None, None);
        let is_repeat = tree.get("repeat").is_some();
        for (key, value, at) in self.entries(tree, at) {
            match key {
                "when" => {
                    self.templates(value, &at);
                    when = Some((value.clone(), at));
                }
                "at" if is_repeat => {
                    self.templates(value, &at);
                    path = Some((value.clone(), at));
                }
                "as" if is_repeat => match value.as_text().filter(|name| is_name(name)) {
                    Some(name) => index = Some(name.to_owned()),
                    None => self.wrong(&at, format!("expected a name for the index, found {value}"), ""),
                },
                "body" if is_repeat => body = Some((value, at)),
                _ if head.is_none() => head = Some((key, value, at)),
                _ if is_repeat && closest(key, ["when", "at", "as", "body"]).is_some() => {
                    self.unknown("field", key, &at, &["when", "at", "as", "body"]);
                }
                _ => {
                    let problem = self.problems.at(self.source, &at.key(), "a second block in one step", "");
                    let help = "begin each block with `- `; indent its fields under its name".into();
                    problem.remarks.push(crate::error::Remark { tag: "help", text: help });
                }
            }
        }
        let Some((name, value, at)) = head else {
            self.wrong(at, "expected a block", "");
            return None;
        };
        let step = match name {
            "residual" => Step::Residual(self.sequence(value, &at)),
            "sum" | "product" => match value {
                Tree::List(branches) => {
                    let branches = branches.iter().enumerate();
                    let branches = branches.map(|(i, b)| self.sequence(b, &at.child(i))).collect();
                    if name == "sum" { Step::Sum(branches) } else { Step::Product(branches) }
                }
                other => {
                    self.wrong(&at, format!("expected a list of branches, found {}", other.kind()), "");
                    return None;
                }
            },
            "repeat" => {
                self.templates(value, &at);
                let count = (value.clone(), at.clone());
                let Some((body, body_at)) = body else {
                    self.wrong(&at.key(), "`repeat` without a `body`", "");
                    return None;
                };
                let body = self.sequence(body, &body_at);
                Step::Repeat { count, path, index: index.unwrap_or_else(|| "i".into()), body }
            }
            _ => {
                if matches!(value, Tree::Map(_)) {
                    self.entries(value, &at);
                }
                self.templates(value, &at);
                Step::Block { name: name.into(), fields: value.clone() }
            }
        };
        Some(Item { when, step, at })
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `` `a`, `b` or `c` ``.
pub(crate) fn listed(words: &[&str]) -> String {
    either(&words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>())
}

/// `a, b or c`.
pub(crate) fn either(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        Spec::parse(Source::yaml("a.yaml", text).unwrap(), &mut problems);
        match problems.finish(ErrorKind::Spec) {
            Ok(()) => Vec::new(),
            Err(e) => e.problems().iter().map(|p| p.message.clone()).collect(),
        }
    }

    #[test]
    fn a_small_file_is_read() {
        let text = "
smelt: 1
match: {model_type: [a, b]}
config:
  hidden: hidden_size
  eps: {key: [eps, epsilon], default: 1e-5}
  width: ${hidden // 2}
require: {scale: {is: [1, 2], default: 1}, other: off}
weights: {prefix: ['', x], rename: {a: b}, ignore: [c.*]}
defaults: {linear: {bias: true}}
model:
  hidden:
    - embedding: {at: e}
    - repeat: $hidden
      at: layer.$i
      body:
        - residual: [{norm: n}, {linear: {at: l}, when: '${i > 0}'}]
  pooled: {pool: first}
heads:
  t: {match: C, logits: [{from: pooled}]}
";
        assert_eq!(problems(text), Vec::<String>::new());
    }

    #[test]
    fn everything_wrong_is_reported() {
        let text = "
smelt: 2
mach: {}
config: {a b: x, c: {kee: d}, e: '${1 +}', c: f}
weights: {prefixes: a}
model:
  hidden:
    - linear
    - {linear: a, norm: b}
    - repeat: 2
    - sum: 3
heads: {t: {logits: []}}
";
        let found = problems(text);
        let expected = [
            "unsupported language version: expected 1, found 2",
            "unknown section `mach`",
            "repeated key `c`",
            "`a b` cannot be a name",
            "unknown field `kee`",
            "expected `key`, the name in config.json",
            "invalid expression",
            "unknown field `prefixes`",
            "expected a block, found a string",
            "a second block in one step",
            "`repeat` without a `body`",
            "expected a list of branches, found a number",
            "head `t` has no `match`",
            "expected a section `match`",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} / {expected}");
        }
    }

    #[test]
    fn a_version_is_no_text() {
        let text = "smelt: \"1\"\nmatch: {}\nmodel: {hidden: {linear: l}}\n";
        assert_eq!(problems(text), ["unsupported language version: expected 1, found the text `1`"]);
    }

    #[test]
    fn a_test_accepts_something() {
        for (tests, key) in [
            ("match: {a: []}", "a"),
            ("match: {}\nrequire: {b: {is: []}}", "b"),
            ("match: {}\nrequire: {c: []}", "c"),
        ] {
            let text = format!("smelt: 1\n{tests}\nmodel: {{hidden: {{linear: l}}}}\n");
            assert_eq!(problems(&text), [format!("expected a value of `{key}`, found none")], "{tests}");
        }
    }
}
