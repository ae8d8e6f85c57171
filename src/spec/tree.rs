//! The plain tree that YAML and JSON files are read into, and addresses of places in it.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A value of a YAML or JSON file. Maps keep their order and their repeated keys.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Tree>),
    /// A map.
    Map(Vec<(String, Tree)>),
}

/// Nodes that one file may have, aliases expanded: a page of YAML has some hundreds.
const MAX_NODES: usize = 1_000_000;

/// Brackets that may be open at once. The parser refuses far fewer, but first reads all of them, in time that grows
/// with the square of their number.
const MAX_BRACKETS: usize = 1000;

/// Most brackets that are open at once; those in strings and comments are counted as well.
fn brackets(text: &str) -> usize {
    let (mut open, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// The key of a map that stands for a number.
const SPECIAL_FLOAT: &str = "__float__";

/// Numbers that JSON has no words for. What is not a number is not among them: no config can mean it.
const SPECIAL_FLOATS: [(&str, f64); 2] = [("-Infinity", f64::NEG_INFINITY), ("Infinity", f64::INFINITY)];

/// JSON in which such words, outside of strings, are maps that stand for them.
fn with_special_floats(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    let (mut rest, mut quoted) = (text, false);
    while let Some(c) = rest.chars().next() {
        let found = SPECIAL_FLOATS.iter().find(|(word, _)| !quoted && rest.starts_with(word));
        let taken = match (found, c) {
            (Some((word, _)), _) => {
                out += &format!("{{\"{SPECIAL_FLOAT}\":\"{word}\"}}");
                rest = &rest[word.len()..];
                continue;
            }
            // What is escaped ends no string.
            (None, '\\') => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, c) => c.len_utf8(),
        };
        quoted ^= c == '"';
        out += &rest[..taken];
        rest = &rest[taken..];
    }
    out
}

impl Tree {
    /// Reads a YAML file; the error names line and column.
    pub fn from_yaml(text: &str) -> Result<Tree, serde_yaml::Error> {
        if brackets(text) > MAX_BRACKETS {
            return Err(de::Error::custom("lists and maps are nested too deeply"));
        }
        let tree: Tree = serde_yaml::from_str(text)?;
        match tree.nodes(MAX_NODES) {
            Some(_) => Ok(tree),
            None => Err(de::Error::custom("the file is too large once its aliases are expanded")),
        }
    }

    /// A value that a field has by default, written as YAML: mostly a number, a flag or a word, read many times, for which a
    /// parser would be slow.
    pub fn constant(text: &str) -> Option<Tree> {
        let is_word = text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        match text {
            "true" => Some(Tree::Bool(true)),
            "false" => Some(Tree::Bool(false)),
            word if is_word && !["", "null"].contains(&word) => Some(Tree::Text(word.to_owned())),
            text => {
                let number = text.parse().map(Tree::Int).or_else(|_| text.parse().map(Tree::Float));
                number.or_else(|_| Tree::from_yaml(text)).ok()
            }
        }
    }

    /// Reads a JSON file; the error names line and column. Infinite numbers, which JSON cannot write, are read as Python writes them
    /// (`Infinity`), and as transformers does since version 5 (`{"__float__": "Infinity"}`).
    pub fn from_json(text: &str) -> Result<Tree, serde_json::Error> {
        let strict: Result<Tree, serde_json::Error> = serde_json::from_str(text);
        let tree = strict.or_else(|first| {
            // Columns are those of the text on lines behind the first that has such a word.
            let second = serde_json::from_str(&with_special_floats(text));
            second.map_err(|e: serde_json::Error| if e.line() > first.line() { e } else { first })
        })?;
        Ok(tree.special_floats())
    }

    /// Maps that stand for numbers become numbers.
    fn special_floats(self) -> Tree {
        match self {
            Tree::List(items) => Tree::List(items.into_iter().map(Tree::special_floats).collect()),
            Tree::Map(entries) => {
                if let [(key, Tree::Text(word))] = &entries[..]
                    && key == SPECIAL_FLOAT
                    && let Some((_, x)) = SPECIAL_FLOATS.iter().find(|(known, _)| known == word)
                {
                    return Tree::Float(*x);
                }
                let entries = entries.into_iter().map(|(key, value)| (key, value.special_floats()));
                Tree::Map(entries.collect())
            }
            plain => plain,
        }
    }

    /// Number of nodes, or none if there are more than `limit`.
    pub(super) fn nodes(&self, limit: usize) -> Option<usize> {
        let mut left = limit.checked_sub(1)?;
        let children: Box<dyn Iterator<Item = &Tree>> = match self {
            Tree::List(items) => Box::new(items.iter()),
            Tree::Map(entries) => Box::new(entries.iter().map(|(_, value)| value)),
            _ => return Some(1),
        };
        for child in children {
            left -= child.nodes(left)?;
        }
        Some(limit - left)
    }

    /// Bytes of the longest text.
    pub(super) fn longest_text(&self) -> usize {
        match self {
            Tree::Text(text) => text.len(),
            Tree::List(items) => items.iter().map(Tree::longest_text).max().unwrap_or(0),
            Tree::Map(entries) => entries.iter().map(|(_, value)| value.longest_text()).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// Numbers, texts, lists and maps in it, longer texts counted as several.
    pub fn weight(&self) -> usize {
        const TEXT: usize = 32;
        match self {
            Tree::Text(text) => 1 + text.len() / TEXT,
            Tree::List(items) => 1 + items.iter().map(Tree::weight).sum::<usize>(),
            Tree::Map(entries) => {
                1 + entries.iter().map(|(key, value)| 1 + key.len() / TEXT + value.weight()).sum::<usize>()
            }
            _ => 1,
        }
    }

    /// The value of `key`, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Tree> {
        self.entries().iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// The entries, if this is a map; otherwise none.
    pub fn entries(&self) -> &[(String, Tree)] {
        if let Tree::Map(entries) = self { entries } else { &[] }
    }

    /// The string, if this is one.
    pub fn as_text(&self) -> Option<&str> {
        if let Tree::Text(text) = self { Some(text) } else { None }
    }

    /// What kind of value this is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Tree::Null => "null",
            Tree::Bool(_) => "a bool",
            Tree::Int(_) | Tree::Float(_) => "a number",
            Tree::Text(_) => "a string",
            Tree::List(_) => "a list",
            Tree::Map(_) => "a map",
        }
    }

    /// In backquotes, for messages. A string that reads as something else is called a text: `"8"` is no number.
    pub fn quoted(&self) -> String {
        let is_plain = |text: &str| matches!(Tree::constant(text), Some(Tree::Text(_)) | None);
        match self {
            Tree::Text(text) if !is_plain(text) => format!("the text `{self}`"),
            _ => format!("`{self}`"),
        }
    }

    /// Every string in here, each with its address; `at` is the address of this value.
    pub fn visit_texts<'a>(&'a self, at: &Address, visit: &mut dyn FnMut(&'a str, &Address)) {
        match self {
            Tree::Text(text) => visit(text, at),
            Tree::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    item.visit_texts(&at.child(i), visit);
                }
            }
            Tree::Map(entries) => {
                for (i, (_, value)) in entries.iter().enumerate() {
                    value.visit_texts(&at.child(i), visit);
                }
            }
            _ => {}
        }
    }
}

/// As it would stand in a message: short, strings bare.
impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tree::Null => f.write_str("null"),
            Tree::Bool(x) => write!(f, "{x}"),
            Tree::Int(x) => write!(f, "{x}"),
            Tree::Float(x) => write!(f, "{x:?}"),
            Tree::Text(x) if x.chars().count() > 60 => {
                write!(f, "{}…", x.chars().take(60).collect::<String>())
            }
            Tree::Text(x) => f.write_str(x),
            Tree::List(items) if items.len() <= 4 => {
                let items: Vec<String> = items.iter().map(Tree::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Tree::List(items) => write!(f, "[{}, … {} items]", items[0], items.len()),
            Tree::Map(entries) => {
                let keys: Vec<&str> = entries.iter().map(|(k, _)| k.as_str()).take(4).collect();
                write!(f, "{{{}}}", keys.join(", "))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a plain value")
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }
            fn visit_none<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null) // an empty file
            }
            fn visit_enum<A: de::EnumAccess<'de>>(self, _: A) -> Result<Tree, A::Error> {
                Err(de::Error::custom("expected a plain value, found a tag such as `!name`"))
            }
            fn visit_bool<E>(self, x: bool) -> Result<Tree, E> {
                Ok(Tree::Bool(x))
            }
            fn visit_i64<E>(self, x: i64) -> Result<Tree, E> {
                Ok(Tree::Int(x))
            }
            fn visit_u64<E>(self, x: u64) -> Result<Tree, E> {
                Ok(i64::try_from(x).map_or(Tree::Float(x as f64), Tree::Int))
            }
            fn visit_f64<E>(self, x: f64) -> Result<Tree, E> {
                Ok(Tree::Float(x))
            }
            fn visit_str<E>(self, x: &str) -> Result<Tree, E> {
                Ok(Tree::Text(x.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<Tree>()? {
                    if matches!(key, Tree::List(_) | Tree::Map(_)) {
                        return Err(de::Error::custom(format!("expected a plain key, found {}", key.kind())));
                    }
                    let key = if let Tree::Text(key) = key { key } else { key.to_string() };
                    entries.push((key, map.next_value()?));
                }
                Ok(Tree::Map(entries))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A place in a [`Tree`]: which child of which child, and whether a map's key is meant or its value.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    steps: Vec<usize>,
    key: bool,
}

impl Address {
    /// The root.
    pub fn root() -> Self {
        Address::default()
    }

    /// The value of the `i`-th item or entry of the value here.
    pub fn child(&self, i: usize) -> Self {
        let mut steps = self.steps.clone();
        steps.push(i);
        Address { steps, key: false }
    }

    /// The key instead of the value. The place must be the entry of a map.
    pub fn key(&self) -> Self {
        Address { steps: self.steps.clone(), key: true }
    }

    /// The value here, if there is one.
    pub fn value<'t>(&self, tree: &'t Tree) -> Option<&'t Tree> {
        self.steps.iter().try_fold(tree, |tree, &i| match tree {
            Tree::List(items) => items.get(i),
            Tree::Map(entries) => entries.get(i).map(|(_, value)| value),
            _ => None,
        })
    }

    /// The steps from the root.
    pub fn steps(&self) -> &[usize] {
        &self.steps
    }

    /// Whether the key of the last entry is meant.
    pub fn is_key(&self) -> bool {
        self.key
    }

    /// Written out, such as `model.hidden[2].repeat`.
    pub fn path(&self, mut tree: &Tree) -> String {
        let mut path = String::new();
        for &i in &self.steps {
            match tree {
                Tree::Map(entries) if i < entries.len() => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path += &entries[i].0;
                    tree = &entries[i].1;
                }
                Tree::List(items) if i < items.len() => {
                    path += &format!("[{i}]");
                    tree = &items[i];
                }
                _ => return path,
            }
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_are_kept() {
        let tree = Tree::from_yaml("a: 1\nb: [x, 2.5, null]\na: true").unwrap();
        let expected = Tree::Map(vec![
            ("a".into(), Tree::Int(1)),
            ("b".into(), Tree::List(vec![Tree::Text("x".into()), Tree::Float(2.5), Tree::Null])),
            ("a".into(), Tree::Bool(true)),
        ]);
        assert_eq!(tree, expected);
        assert_eq!(Address::root().child(1).child(2).path(&tree), "b[2]");
    }

    #[test]
    fn constants_are_what_a_parser_makes_of_them() {
        for text in
            ["true", "null", "", "silu", "out_in", "inf", "8", "-1", "1e-6", "0.5", ".inf", "[0, .inf]", "{}"]
        {
            assert_eq!(Tree::constant(text), Tree::from_yaml(text).ok(), "{text}");
        }
    }

    #[test]
    fn texts_that_read_as_something_else_are_called_texts() {
        for (text, expected) in [
            ("\"8\"", "the text `8`"),
            ("8", "`8`"),
            ("\"true\"", "the text `true`"),
            ("'null'", "the text `null`"),
            ("1.5", "`1.5`"),
            ("absolute", "`absolute`"),
            ("'a: {'", "`a: {`"),
        ] {
            assert_eq!(Tree::from_yaml(text).unwrap().quoted(), expected);
        }
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..10 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            text += &format!("a{i}: &a{i} [{refs}]\n");
        }
        assert!(Tree::from_yaml(&text).is_err());
    }

    #[test]
    fn numbers_that_json_cannot_write_are_read() {
        let read = |text: &str| Tree::from_json(text);
        let bare = read(r#"{"a": [0.0, Infinity], "b": "Infinity \" NaN", "c": -Infinity}"#).unwrap();
        let text = Tree::Text("Infinity \" NaN".into());
        let limit = Tree::List(vec![Tree::Float(0.0), Tree::Float(f64::INFINITY)]);
        assert_eq!((bare.get("a"), bare.get("b")), (Some(&limit), Some(&text)));
        assert_eq!(bare.get("c"), Some(&Tree::Float(f64::NEG_INFINITY)));
        assert_eq!(read(r#"[0.0, {"__float__": "Infinity"}]"#).unwrap(), limit);
        let error = read("{\"a\": Infinity,\n\"b\": x}").unwrap_err();
        assert_eq!((error.line(), error.column()), (2, 6));
        for text in ["NaN", "Infinit", "[Infinity", "{\"a\": x, \"b\": Infinity}", "\"\\", "--Infinity"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        for text in ["[".repeat(100_000), format!("{}{}", "[".repeat(5000), "]".repeat(5000))] {
            assert!(Tree::from_yaml(&text).is_err());
            assert!(Tree::from_json(&text).is_err());
        }
    }
}
