//! `$name` and `${ expression }` in the strings of a description.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use minijinja::value::ValueKind;
use minijinja::{Environment, UndefinedBehavior, Value};

use super::listed;
use super::tree::Tree;

/// Numbers, texts, lists and maps that the value of one expression may have: it is computed for each layer anew.
const MAX_ITEMS: usize = 20_000;

/// Names that expressions may use, each with its value. What is long is converted once; copies share it.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    names: BTreeMap<String, Arc<Named>>,
}

/// A value, also as minijinja has it.
#[derive(Debug)]
struct Named {
    tree: Tree,
    value: Value,
    /// Bytes of the longest text in it.
    longest: usize,
}

impl Scope {
    /// Gives a name this value, whatever it had.
    pub fn insert(&mut self, name: String, tree: Tree) {
        let (value, longest) = (to_jinja(&tree), tree.longest_text());
        self.names.insert(name, Arc::new(Named { tree, value, longest }));
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&Tree> {
        self.names.get(name).map(|named| &named.tree)
    }

    /// Whether a name has a value.
    pub fn contains_key(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Whether no name has a value.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// All names with their values, in the order of the alphabet.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Tree)> {
        self.names.iter().map(|(name, named)| (name, &named.tree))
    }

    /// Takes the values of the other names away.
    pub fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.names.retain(|name, _| is_kept(name));
    }
}

/// Longest expression that is accepted, in bytes: one line of YAML. Texts that it uses or gives have the same limit.
const MAX_LENGTH: usize = 1000;

/// Steps of minijinja's machine that one expression may take. It has no loops, so only its length counts.
const FUEL: u64 = 10_000;

/// A string cut into literal text and expressions.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Expression(String),
}

impl Template {
    /// Cuts `text`. `$name` stands for `${ name }`, `$$` for a dollar sign. The error says what is wrong.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            literal += &rest[..dollar];
            rest = &rest[dollar + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                literal.push('$');
                rest = after;
                continue;
            }
            let expression;
            if let Some(inside) = rest.strip_prefix('{') {
                let end = closing_brace(inside).ok_or("`${` without its `}`")?;
                expression = inside[..end].trim();
                rest = &inside[end + 1..];
            } else {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
                expression = &rest[..end];
                rest = &rest[end..];
            }
            if expression.is_empty() {
                return Err("`$` without a name; write `$$` for a dollar sign".into());
            }
            check(expression)?;
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::Expression(expression.to_owned()));
        }
        literal += rest;
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Template { parts })
    }

    /// The names that the expressions use.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for part in &self.parts {
            if let Part::Expression(text) = part {
                names.extend(names_in(text).into_iter().map(str::to_owned));
            }
        }
        names.sort();
        names.dedup();
        names
    }

    /// The value: of any type if the whole string is one expression, else text. The error says what is wrong.
    pub fn value(&self, scope: &Scope) -> Result<Tree, String> {
        if let [Part::Expression(text)] = &self.parts[..] {
            return evaluate(text, scope);
        }
        let mut whole = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => whole += text,
                Part::Expression(text) => match evaluate(text, scope)? {
                    Tree::Text(value) => whole += &value,
                    value @ (Tree::Int(_) | Tree::Bool(_)) => whole += &value.to_string(),
                    other => return Err(format!("`{text}`: {} cannot be put into text", other.kind())),
                },
            }
            if whole.len() > MAX_LENGTH {
                return Err(format!(
                    "`{}…`: {}",
                    whole.chars().take(40).collect::<String>(),
                    too_long_a_text()
                ));
            }
        }
        Ok(Tree::Text(whole))
    }
}

/// The end of an expression: the brace that closes it, not one inside of it or of a string.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(text.len() - rest.len()),
            '}' => depth -= 1,
            _ => {}
        }
        let len = if matches!(c, '"' | '\'') { string_len(rest) } else { c.len_utf8() };
        rest = &rest[len..];
    }
    None
}

/// Bytes of the string at the beginning of a text, quotes included; all of the text if it does not end.
fn string_len(text: &str) -> usize {
    let mut letters = text.char_indices();
    let quote = letters.next().map(|(_, c)| c);
    while let Some((i, c)) = letters.next() {
        match c {
            '\\' => drop(letters.next()),
            c if Some(c) == quote => return i + 1,
            _ => {}
        }
    }
    text.len()
}

/// Words of an expression that are not names of values.
const KEYWORDS: [&str; 13] =
    ["if", "else", "and", "or", "not", "in", "is", "none", "None", "true", "True", "false", "False"];

/// Filters that expressions may use.
const FILTERS: [&str; 5] = ["int", "length", "ln", "merged", "unrolled"];

/// The words of an expression that are no parts of strings, each with what stands before it: a word, a sign or nothing.
fn words(text: &str) -> Vec<(&str, &str)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut words = Vec::new();
    let mut rest = text;
    let mut before = "";
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '"' | '\'' => string_len(rest),
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let part = &rest[..len];
        if c.is_ascii_alphabetic() || c == '_' {
            words.push((before, part));
        }
        if !c.is_whitespace() {
            before = part;
        }
        rest = &rest[len..];
    }
    words
}

/// The names of values in an expression: identifiers that are not attributes, filters or keywords.
/// (minijinja's own list leaves out what is sliced.)
fn names_in(text: &str) -> Vec<&str> {
    let is_name = |(before, word): &(&str, &str)| !matches!(*before, "." | "|") && !KEYWORDS.contains(word);
    words(text).into_iter().filter(is_name).map(|(_, word)| word).collect()
}

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut env = Environment::empty();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_fuel(Some(FUEL));
    env.add_filter("length", minijinja::filters::length);
    env.add_filter("int", minijinja::filters::int);
    env.add_filter("ln", |x: f64| x.ln());
    env.add_filter("unrolled", unrolled);
    env.add_filter("merged", merged);
    env
});

/// Whether an expression is nothing but a name.
fn is_name(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.chars().all(is_word)
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && !KEYWORDS.contains(&text)
}

/// The longest list that [`unrolled`] gives.
const MAX_UNROLLED: usize = 10_000;

/// `[[[a, b], 2], [[c], 1]]` to `[a, b, a, b, c]`.
fn unrolled(runs: Value) -> Result<Value, minijinja::Error> {
    let wrong = |what: &'static str| minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, what);
    let mut all: Vec<Value> = Vec::new();
    for run in runs.try_iter()? {
        let (items, times) = (run.get_item_by_index(0)?, run.get_item_by_index(1)?);
        let times = usize::try_from(times).map_err(|_| wrong("expected lists of a list and a number"))?;
        let items: Vec<Value> = items.try_iter()?.collect();
        if items.len().saturating_mul(times) > MAX_UNROLLED - all.len() {
            return Err(wrong("the list is too long"));
        }
        (0..times).for_each(|_| all.extend(items.iter().cloned()));
    }
    Ok(Value::from(all))
}

/// `[{a: 1, b: 2}, {b: 3}]` to `{a: 1, b: 3}`.
fn merged(maps: Value) -> Result<Value, minijinja::Error> {
    let mut all = BTreeMap::new();
    for map in maps.try_iter()? {
        if map.kind() != ValueKind::Map {
            return Err(minijinja::Error::new(
                minijinja::ErrorKind::InvalidOperation,
                "expected a list of maps",
            ));
        }
        for key in map.try_iter()? {
            let value = map.get_item(&key)?;
            all.insert(key, value);
        }
    }
    Ok(Value::from(all))
}

fn check(text: &str) -> Result<(), String> {
    if text.len() > MAX_LENGTH {
        return Err(format!("an expression of {} bytes; at most {MAX_LENGTH} are accepted", text.len()));
    }
    if is_name(text) {
        return Ok(());
    }
    ENVIRONMENT.compile_expression(text).map_err(|e| explain(text, &e))?;
    for (before, word) in words(text) {
        if before == "|" && !FILTERS.contains(&word) {
            return Err(format!("`{text}`: unknown filter `{word}`: expected {}", listed(&FILTERS)));
        }
        if word == "is" && before != "." {
            return Err(format!("`{text}`: there are no tests: expected `==` or `!=`, found `is`"));
        }
    }
    Ok(())
}

fn evaluate(text: &str, scope: &Scope) -> Result<Tree, String> {
    // Most expressions are names.
    if let Some(value) = scope.get(text).filter(|_| is_name(text)) {
        return match value.nodes(MAX_ITEMS) {
            Some(_) => Ok(value.clone()),
            None => Err(format!("`{text}`: {}", too_long())),
        };
    }
    let expression = ENVIRONMENT.compile_expression(text).map_err(|e| explain(text, &e))?;
    let mut used = BTreeMap::new();
    for name in names_in(text) {
        if let Some(named) = scope.names.get(name) {
            if named.longest > MAX_LENGTH {
                return Err(format!("`{name}`: {}", too_long_a_text()));
            }
            used.insert(name, named.value.clone());
        }
    }
    let value = expression.eval(Value::from(used)).map_err(|e| explain(text, &e))?;
    if value.is_undefined() {
        return Err(format!("`{text}`: no such item"));
    }
    let mut left = MAX_ITEMS;
    from_jinja(&value, &mut left).map_err(|message| format!("`{text}`: {message}"))
}

fn too_long_a_text() -> String {
    format!("expected texts of at most {MAX_LENGTH} bytes, found a longer one")
}

fn too_long() -> String {
    format!("expected at most {MAX_ITEMS} items, found more")
}

fn explain(text: &str, error: &minijinja::Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    format!("`{text}`: {detail}")
}

fn to_jinja(tree: &Tree) -> Value {
    match tree {
        Tree::Null => Value::from(()),
        Tree::Bool(x) => Value::from(*x),
        Tree::Int(x) => Value::from(*x),
        Tree::Float(x) => Value::from(*x),
        Tree::Text(x) => Value::from(x.as_str()),
        Tree::List(items) => items.iter().map(to_jinja).collect(),
        Tree::Map(entries) => {
            Value::from(entries.iter().map(|(k, v)| (k.as_str(), to_jinja(v))).collect::<BTreeMap<_, _>>())
        }
    }
}

/// A value with as many items as are `left`, or what is wrong with it.
fn from_jinja(value: &Value, left: &mut usize) -> Result<Tree, String> {
    *left = left.checked_sub(1).ok_or_else(too_long)?;
    let not_plain = || format!("expected a plain value, found {}", value.kind());
    let items = || value.try_iter().map_err(|_| not_plain());
    Ok(match value.kind() {
        ValueKind::None => Tree::Null,
        ValueKind::Bool => Tree::Bool(value.is_true()),
        ValueKind::Number => match value.as_i64() {
            Some(x) if value.is_integer() => Tree::Int(x),
            None if value.is_integer() => {
                return Err(format!("expected a whole number of at most 64 bits, found {value}"));
            }
            _ => Tree::Float(f64::try_from(value.clone()).map_err(|_| not_plain())?),
        },
        ValueKind::String => match value.as_str().ok_or_else(not_plain)? {
            text if text.len() > MAX_LENGTH => return Err(too_long_a_text()),
            text => Tree::Text(text.to_owned()),
        },
        ValueKind::Seq => Tree::List(items()?.map(|x| from_jinja(&x, left)).collect::<Result<_, _>>()?),
        ValueKind::Map => {
            let mut entries = Vec::new();
            for key in items()? {
                let item = value.get_item(&key).map_err(|_| not_plain())?;
                entries.push((key.as_str().ok_or_else(not_plain)?.to_owned(), from_jinja(&item, left)?));
            }
            Tree::Map(entries)
        }
        _ => return Err(not_plain()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        let list = ["full", "window"].map(|x| Tree::Text(x.into())).to_vec();
        let mut scope = Scope::default();
        for (name, value) in [
            ("hidden", Tree::Int(48)),
            ("heads", Tree::Int(6)),
            ("none_set", Tree::Null),
            ("kinds", Tree::List(list)),
            ("i", Tree::Int(1)),
            ("act", Tree::Text("gated-gelu".into())),
        ] {
            scope.insert(name.to_owned(), value);
        }
        scope
    }

    #[test]
    fn expressions_have_values() {
        let text = |x: &str| Tree::Text(x.into());
        let cases = [
            ("plain", text("plain")),
            ("$hidden", Tree::Int(48)),
            ("layer.$i.ln_$i", text("layer.1.ln_1")),
            ("${hidden // heads}", Tree::Int(8)),
            ("${heads if none_set == none else none_set}", Tree::Int(6)),
            ("${kinds[i]}", text("window")),
            ("${hidden ** -0.5}", Tree::Float(48f64.powf(-0.5))),
            ("${act[6:] if act[:6] == 'gated-' else act}", text("gelu")),
            ("${'}' ~ i}", text("}1")),
            ("${kinds | length}", Tree::Int(2)),
            ("${([{'a': 1, 'b': 2}, {'b': 3}] | merged)['a']}", Tree::Int(1)),
            ("${([{'a': 1, 'b': 2}, {'b': 3}] | merged)['b']}", Tree::Int(3)),
            (r"${'\'}' ~ hidden}", text("'}48")),
            ("${'is | abs' if i == 1 else none}", text("is | abs")),
            ("$$5", text("$5")),
        ];
        for (template, expected) in cases {
            assert_eq!(Template::parse(template).unwrap().value(&scope()), Ok(expected), "{template}");
        }
    }

    #[test]
    fn mistakes_are_explained() {
        for template in ["${hidden", "$", "${1 +}", "a $ b"] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
        for (template, message) in [
            ("${hidden | abs}", "unknown filter `abs`: expected `int`, "),
            ("${kinds|lenght}", "unknown filter `lenght`"),
            ("${1 if hidden is none else 2}", "there are no tests: expected `==` or `!=`, found `is`"),
        ] {
            let found = Template::parse(template).unwrap_err();
            assert!(found.contains(message), "{template}: {found}");
        }
        let long = format!("${{{}1}}", "1+".repeat(600));
        assert!(Template::parse(&long).unwrap_err().contains("at most 1000"));
        let nested = format!("${{{}1{}}}", "(".repeat(400), ")".repeat(400));
        assert!(Template::parse(&nested).is_err());
        for template in [
            "$unknown",
            "${hidden.x}",
            "${f(1)}",
            "${'a' * 99999999999}",
            "a$kinds",
            "${1 // 0}",
            "${kinds | merged}",
        ] {
            let found = Template::parse(template).and_then(|t| t.value(&scope()));
            assert!(found.is_err(), "{template}: {found:?}");
        }
        let mut long = scope();
        long.insert("long".into(), Tree::List(vec![Tree::Int(1); MAX_ITEMS]));
        for template in ["$long", "${long}", "${[long]}", "${long if i == 1 else kinds}"] {
            let found = Template::parse(template).and_then(|t| t.value(&long));
            assert!(found.unwrap_err().contains("at most 20000 items"), "{template}");
        }
        let mut doubled = scope();
        doubled.insert("half".into(), Tree::Text("x".repeat(501)));
        doubled.insert("whole".into(), Tree::Text("x".repeat(1001)));
        for template in ["$half$half", "${half ~ half}", "${[half ~ half]}", "${whole | length}", "a$whole"] {
            let found = Template::parse(template).and_then(|t| t.value(&doubled));
            assert!(found.unwrap_err().contains("texts of at most 1000 bytes"), "{template}");
        }
        let length = Template::parse("${long | length}").and_then(|t| t.value(&long));
        assert_eq!(length, Ok(Tree::Int(20_000)));
        // Whole numbers of more than 64 bits are not kept.
        for template in ["${9 ** 9 ** 9}", "${2 ** 63}", "${-2 ** 63 - 1}", "${9223372036854775808}"] {
            assert!(Template::parse(template).and_then(|t| t.value(&scope())).is_err(), "{template}");
        }
    }

    #[test]
    fn names_are_listed() {
        let template = Template::parse("${hidden if i == 0 else x.y}.$z").unwrap();
        assert_eq!(template.names(), ["hidden", "i", "x", "z"]);
        let template = Template::parse("${kinds[i:][0] ~ 'if x' if a | length > 1 else none}").unwrap();
        assert_eq!(template.names(), ["a", "i", "kinds"]);
        assert_eq!(Template::parse(r#"${"\"a" ~ b}"#).unwrap().names(), ["b"]);
        let constants = ["none", "None", "true", "True", "false", "False"];
        assert!(
            constants.iter().all(|word| Template::parse(&format!("${{{word}}}")).unwrap().names().is_empty())
        );
    }
}
