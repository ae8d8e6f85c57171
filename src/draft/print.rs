//! A tree as YAML in the style of `architectures/`: what fits on a line stands on one.

use crate::spec::Tree;

/// The key under which a map carries comments; it is always the last one, so that addresses hold.
pub const NOTE: &str = "#";

/// Longest line.
const WIDTH: usize = 112;

/// Keys whose values get lines of their own even if they would fit on one.
const OPEN: [&str; 8] = ["config", "model", "heads", "body", "repeat", "residual", "sum", "product"];

/// The tree as YAML; what maps carry under `NOTE` becomes comments above their lines.
pub fn yaml(tree: &Tree) -> String {
    let mut out = String::new();
    for (key, value) in tree.entries().iter().filter(|(key, _)| key != NOTE) {
        entry(&mut out, 0, "", key, value);
    }
    out
}

fn entry(out: &mut String, indent: usize, lead: &str, key: &str, value: &Tree) {
    let start = format!("{}{lead}{}:", " ".repeat(indent), scalar(key));
    let inner = indent + lead.len() + 2;
    let line = format!("{start} {}", flow(value));
    let is_open = OPEN.contains(&key) && matches!(value, Tree::Map(_) | Tree::List(_));
    if !is_open && line.chars().count() <= WIDTH && !has_sequence(value) {
        for note in notes(value) {
            out.push_str(&format!("{}# {note}\n", " ".repeat(indent)));
        }
        out.push_str(&line);
        out.push('\n');
        return;
    }
    match value {
        Tree::Map(entries) => {
            own_notes(out, indent, value);
            out.push_str(&format!("{start}\n"));
            for (key, value) in entries.iter().filter(|(key, _)| key != NOTE) {
                entry(out, inner, "", key, value);
            }
        }
        Tree::List(items) => {
            out.push_str(&format!("{start}\n"));
            items.iter().for_each(|x| item(out, inner, x));
        }
        _ => out.push_str(&format!("{line}\n")),
    }
}

fn item(out: &mut String, indent: usize, value: &Tree) {
    let entries: Vec<_> = value.entries().iter().filter(|(key, _)| key != NOTE).collect();
    if entries.is_empty() || (entries.len() > 1 && fits(indent + 2, value) && !has_sequence(value)) {
        for note in notes(value) {
            out.push_str(&format!("{}# {note}\n", " ".repeat(indent)));
        }
        if let (Tree::List(items), false) = (value, fits(indent + 2, value)) {
            out.push_str(&format!("{}-\n", " ".repeat(indent)));
            items.iter().for_each(|x| item(out, indent + 2, x));
        } else {
            out.push_str(&format!("{}- {}\n", " ".repeat(indent), flow(value)));
        }
        return;
    }
    own_notes(out, indent, value);
    for (i, (key, value)) in entries.into_iter().enumerate() {
        if i == 0 {
            // Comments of the first entry must stand above the dash.
            let mut first = String::new();
            entry(&mut first, indent, "- ", key, value);
            out.push_str(&first);
        } else {
            entry(out, indent + 2, "", key, value);
        }
    }
}

fn own_notes(out: &mut String, indent: usize, value: &Tree) {
    if let Some(Tree::Text(text)) = value.get(NOTE) {
        for line in text.lines() {
            out.push_str(&format!("{}# {line}\n", " ".repeat(indent)));
        }
    }
}

fn fits(indent: usize, value: &Tree) -> bool {
    indent + flow(value).chars().count() <= WIDTH
}

/// Whether there is a combinator in here that is easier to read over several lines.
fn has_sequence(value: &Tree) -> bool {
    match value {
        Tree::Map(entries) => entries.iter().any(|(key, x)| {
            ["repeat", "residual", "sum", "product"].contains(&key.as_str()) || has_sequence(x)
        }),
        Tree::List(items) => items.iter().any(has_sequence),
        _ => false,
    }
}

/// All comments in here.
fn notes(value: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    match value {
        Tree::Map(entries) => {
            for (key, value) in entries {
                match value {
                    Tree::Text(text) if key == NOTE => found.extend(text.lines().map(str::to_owned)),
                    other => found.extend(notes(other)),
                }
            }
        }
        Tree::List(items) => items.iter().for_each(|x| found.extend(notes(x))),
        _ => {}
    }
    found
}

/// On one line.
pub fn flow(tree: &Tree) -> String {
    match tree {
        Tree::Null => "null".into(),
        Tree::Bool(x) => x.to_string(),
        Tree::Int(x) => x.to_string(),
        Tree::Float(x) if x.is_infinite() => if *x > 0.0 { ".inf" } else { "-.inf" }.into(),
        Tree::Float(x) => format!("{x:?}"),
        Tree::Text(text) => scalar(text),
        Tree::List(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Tree::Map(entries) => {
            let shown = entries.iter().filter(|(key, _)| key != NOTE);
            let shown: Vec<String> = shown.map(|(key, x)| format!("{}: {}", scalar(key), flow(x))).collect();
            format!("{{{}}}", shown.join(", "))
        }
    }
}

/// A string, quoted where YAML would take it for something else.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_.-/$*".contains(c);
    let begins_well = text.starts_with(|c: char| c.is_alphanumeric() || "_$/".contains(c));
    let is_text = serde_yaml::from_str::<Tree>(text).is_ok_and(|tree| tree == Tree::Text(text.to_owned()));
    if begins_well && text.chars().all(plain) && is_text {
        return text.to_owned();
    }
    // JSON strings are YAML strings.
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::builtin;

    #[test]
    fn what_is_printed_is_read_back() {
        for name in builtin::names() {
            let tree = Tree::from_yaml(builtin::text(name).unwrap()).unwrap();
            let text = yaml(&tree);
            assert_eq!(Tree::from_yaml(&text).unwrap(), tree, "{name}:\n{text}");
        }
    }
}
