//! A YAML or JSON file that errors can point into.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::tree::{Address, Tree};
use crate::error::{Error, ErrorKind, Place, Problem};

/// A file's name, text and tree.
#[derive(Debug)]
pub struct Source {
    /// The file as the user would name it.
    pub name: String,
    /// Its text.
    pub text: String,
    /// What it says.
    pub tree: Tree,
    /// Bytes that were read to find places.
    searched: AtomicUsize,
}

/// Most bytes that are read to find places, each time the file up to there: in a large one, the first that are asked for are found.
const MAX_SEARCHED: usize = 16 << 20;

impl Source {
    fn new(name: String, text: String, tree: Tree) -> Source {
        Source { name, text, tree, searched: AtomicUsize::new(0) }
    }

    /// What was never a file: nothing in it has a place.
    pub(crate) fn of_tree(name: &str, tree: Tree) -> Source {
        Source::new(name.to_owned(), String::new(), tree)
    }

    /// Reads a YAML file.
    ///
    /// # Errors
    /// `Spec` for what is no YAML, shown where it stands.
    pub fn yaml(name: impl Into<String>, text: impl Into<String>) -> Result<Source, Error> {
        let (name, text) = (name.into(), without_mark(text.into()));
        match Tree::from_yaml(&text) {
            Ok(tree) => Ok(Source::new(name, text, tree)),
            Err(e) => {
                let place = e.location().map(|l| place(&name, &text, l.line(), l.column(), None));
                let message = e.to_string();
                let message = match (without_position(&message), &place) {
                    (what, Some(_)) => format!("invalid YAML: {what}"),
                    ("repetition limit exceeded", _) => {
                        format!("invalid YAML in `{name}`: aliases repeat too much")
                    }
                    (what, None) => format!("invalid YAML in `{name}`: {what}"),
                };
                let line =
                    place.as_ref().and_then(|place| place.excerpt.as_ref()).map_or("", |(line, _)| line);
                let help = match line {
                    line if line.trim_start_matches(' ').starts_with('\t') => {
                        Some("indent with spaces, not with tabs")
                    }
                    line if line.contains("${") => Some("put an expression in quotes: `\"${…}\"`"),
                    _ => None,
                };
                let error = Problem::new(message).at(place).into_error(ErrorKind::Spec);
                Err(help.into_iter().fold(error, Error::help))
            }
        }
    }

    /// Reads a JSON file.
    ///
    /// # Errors
    /// `Config` for what is no JSON, shown where it stands.
    pub fn json(name: impl Into<String>, text: impl Into<String>) -> Result<Source, Error> {
        let (name, text) = (name.into(), without_mark(text.into()));
        match Tree::from_json(&text) {
            Ok(tree) => Ok(Source::new(name, text, tree)),
            Err(e) => {
                let place = place(&name, &text, e.line(), e.column().max(1), None);
                let message = format!("invalid JSON: {}", without_position(&e.to_string()));
                Err(Problem::new(message).at(Some(place)).into_error(ErrorKind::Config))
            }
        }
    }

    /// Where `at` stands, with its line as an excerpt; none where too many places of a large file were asked for before.
    pub fn place(&self, at: &Address) -> Option<Place> {
        let (line, column) = self.locate(at)?;
        let path = at.path(&self.tree);
        Some(Place { path, ..place(&self.name, &self.text, line, column, self.spelling(at)) })
    }

    /// The line on which the value of the entry at `at` begins; none as for [`place`](Self::place).
    pub fn line(&self, at: &Address) -> Option<usize> {
        self.locate(at).map(|(line, _)| line)
    }

    /// Line and column (both from 1) of the node at `at`.
    ///
    /// serde_yaml tells positions only in errors. So the file is walked once more along the address, and the visit
    /// of the node there ends in an error, which then carries the node's position.
    fn locate(&self, at: &Address) -> Option<(usize, usize)> {
        if self.searched.fetch_add(self.text.len(), Ordering::Relaxed) > MAX_SEARCHED {
            return None;
        }
        let walk = Walk { steps: at.steps(), key: at.is_key() };
        let error = walk.deserialize(serde_yaml::Deserializer::from_str(&self.text)).err()?;
        error.location().map(|l| (l.line(), l.column()))
    }

    /// The text of a key or a plain value, as far as it can be known.
    fn spelling(&self, at: &Address) -> Option<&str> {
        let mut tree = &self.tree;
        let mut key = None;
        for &i in at.steps() {
            match tree {
                Tree::Map(entries) => (key, tree) = (Some(&*entries.get(i)?.0), &entries.get(i)?.1),
                Tree::List(items) => (key, tree) = (None, items.get(i)?),
                _ => return None,
            }
        }
        if at.is_key() { key } else { tree.as_text() }
    }
}

/// A place whose excerpt underlines `spelling` if it stands there, else one word.
fn place(file: &str, text: &str, line: usize, column: usize, spelling: Option<&str>) -> Place {
    // Long lines are cut: an excerpt is for reading.
    let excerpt: String = text.lines().nth(line - 1).unwrap_or("").chars().take(200).collect();
    let rest: String = excerpt.chars().skip(column - 1).collect();
    let width = match (rest.chars().next(), spelling) {
        (_, Some(spelling)) if !spelling.is_empty() && rest.starts_with(spelling) => spelling.chars().count(),
        (Some(quote @ ('"' | '\'')), _) => {
            rest[1..].find(quote).map_or(1, |end| rest[..end + 2].chars().count())
        }
        (Some('[' | '{') | None, _) => 1,
        _ => rest.chars().take_while(|c| !c.is_whitespace() && !",]}:".contains(*c)).count(),
    };
    let excerpt = (column <= excerpt.chars().count().max(1)).then_some((excerpt, width));
    Place { file: file.into(), line, column, excerpt, path: String::new(), label: String::new() }
}

/// The parsers append where it happened; the place says so already.
fn without_position(message: &str) -> &str {
    message.find(" at line ").map_or(message, |end| &message[..end])
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    steps: &'a [usize],
    key: bool,
}

impl Walk<'_> {
    fn arrived<T, E: de::Error>(&self) -> Result<T, E> {
        Err(E::custom("here"))
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.arrived()
    }
    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.arrived()
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        self.arrived()
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.arrived()
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.arrived()
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.arrived()
    }
    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        self.arrived()
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((&first, rest)) = self.steps.split_first() else { return self.arrived() };
        for _ in 0..first {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Walk { steps: rest, key: self.key })?;
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((&first, rest)) = self.steps.split_first() else { return self.arrived() };
        for _ in 0..first {
            map.next_entry::<IgnoredAny, IgnoredAny>()?;
        }
        if self.key && rest.is_empty() {
            map.next_key_seed(Walk { steps: rest, key: false })?;
        } else {
            map.next_key::<IgnoredAny>()?;
            map.next_value_seed(Walk { steps: rest, key: self.key })?;
        }
        Ok(())
    }
}

/// A text without the mark of byte order that some editors put first.
fn without_mark(mut text: String) -> String {
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_of_byte_order_is_skipped() {
        for source in [Source::json("a", "\u{feff}{\"b\": 1}"), Source::yaml("a", "\u{feff}b: 1")] {
            assert_eq!(source.unwrap().tree.get("b"), Some(&Tree::Int(1)));
        }
    }

    #[test]
    fn places_are_found() {
        let text = "smelt: 1\nmodel:\n  hidden:\n    - layernorm: {at: x, \"eps\": '1'}\n    - linear: ü\n";
        let source = Source::yaml("a.yaml", text).unwrap();
        let at = |steps: &[usize]| steps.iter().fold(Address::root(), |a, &i| a.child(i));
        let cases = [
            (at(&[0]), (1, 8, 1)),
            (at(&[1]).key(), (2, 1, 5)),
            (at(&[1, 0, 0, 0]).key(), (4, 7, 9)),
            (at(&[1, 0, 0, 0, 0]), (4, 23, 1)),
            (at(&[1, 0, 0, 0, 1]).key(), (4, 26, 5)),
            (at(&[1, 0, 0, 0, 1]), (4, 33, 3)),
            (at(&[1, 0, 1, 0]), (5, 15, 1)),
        ];
        for (address, (line, column, width)) in cases {
            let place = source.place(&address).unwrap();
            let found = (place.line, place.column, place.excerpt.unwrap().1);
            assert_eq!(found, (line, column, width), "{address:?}");
        }
    }

    #[test]
    fn a_syntax_error_has_a_place() {
        let error = Source::yaml("a.yaml", "a: [1, 2\nb: 3").unwrap_err().to_string();
        assert!(error.contains("a.yaml:"), "{error}");
        let error = Source::json("c.json", "{\n  \"a\": x\n}").unwrap_err().to_string();
        assert!(error.contains("c.json:2:"), "{error}");
    }
}
