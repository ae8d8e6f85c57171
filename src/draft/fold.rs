//! Names with a known value, worked into the expressions of a description.

use crate::spec::{Scope, Template, Tree};

/// Replaces `names` where an expression depends on nothing else, and decides conditions that do. Steps whose `when` is
/// false are left out.
pub fn fold(tree: &mut Tree, names: &Scope) {
    match tree {
        Tree::Text(text) => {
            if let Some(value) = folded(text, names) {
                *tree = value;
            }
        }
        Tree::List(items) => {
            items.iter_mut().for_each(|x| fold(x, names));
            items.retain(|x| x.get("when") != Some(&Tree::Bool(false)));
        }
        Tree::Map(entries) => {
            entries.iter_mut().for_each(|(_, x)| fold(x, names));
            entries.retain(|(key, x)| key != "when" || *x != Tree::Bool(true));
        }
        _ => {}
    }
}

/// The value that takes the place of a text with expressions, if one does.
fn folded(text: &str, names: &Scope) -> Option<Tree> {
    if !text.contains('$') {
        return None;
    }
    if is_known(text, names) {
        return Template::parse(text).ok()?.value(names).ok();
    }
    let inner = text.strip_prefix("${")?.strip_suffix('}')?;
    let decided = decide(inner, names)?;
    let text = whole(&decided);
    let template = Template::parse(&text).ok()?;
    if template.names().into_iter().next().is_none() {
        return template.value(names).ok();
    }
    Some(folded(&text, names).unwrap_or(Tree::Text(text)))
}

/// Whether a text has names, and all are known.
fn is_known(text: &str, names: &Scope) -> bool {
    let used = Template::parse(text).map(|t| t.names().into_iter().collect::<Vec<_>>()).unwrap_or_default();
    !used.is_empty() && used.iter().all(|name| names.contains_key(name))
}

/// An expression as a value of its own: `$name` for a name alone.
fn whole(expression: &str) -> String {
    let is_name = expression.chars().all(|c| c.is_alphanumeric() || c == '_')
        && expression.starts_with(|c: char| c.is_alphabetic())
        && !["true", "false", "none"].contains(&expression);
    if is_name { format!("${expression}") } else { format!("${{{expression}}}") }
}

/// Drops what a known condition excludes: of `a if c else b`, and of `c and a`.
fn decide(expression: &str, names: &Scope) -> Option<String> {
    let truth = |part: &str| -> Option<bool> {
        let text = format!("${{{part}}}");
        if !is_known(&text, names) {
            return None;
        }
        match Template::parse(&text).ok()?.value(names).ok()? {
            Tree::Bool(x) => Some(x),
            _ => None,
        }
    };
    if let Some((yes, rest)) = split(expression, " if ") {
        let (condition, no) = split(rest, " else ")?;
        return Some(if truth(condition)? { yes } else { no }.trim().to_owned());
    }
    for (word, ends) in [(" or ", true), (" and ", false)] {
        let mut parts = vec![expression];
        while let Some((a, b)) = parts.last().and_then(|last| split(last, word)) {
            parts.pop();
            parts.extend([a, b]);
        }
        if parts.len() > 1 {
            let known: Vec<Option<bool>> = parts.iter().map(|part| truth(part)).collect();
            if known.contains(&Some(ends)) {
                return Some(ends.to_string());
            }
            if known.iter().all(Option::is_none) {
                return None;
            }
            let left = parts.iter().zip(known).filter(|(_, k)| k.is_none()).map(|(p, _)| *p);
            return Some(left.collect::<Vec<_>>().join(word));
        }
    }
    None
}

/// Splits at the first `word` that is in no bracket and no string.
fn split<'a>(text: &'a str, word: &str) -> Option<(&'a str, &'a str)> {
    let (mut depth, mut is_quoted) = (0i32, false);
    for (i, c) in text.char_indices() {
        match c {
            '\'' => is_quoted = !is_quoted,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 && !is_quoted && text[i..].starts_with(word) {
            return Some((&text[..i], &text[i + word.len()..]));
        }
    }
    None
}

/// The names that expressions in here use.
pub fn names(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    tree.visit_texts(&crate::spec::Address::root(), &mut |text, _| {
        if text.contains('$')
            && let Ok(template) = Template::parse(text)
        {
            found.extend(template.names());
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_decided() {
        let mut scope = Scope::default();
        scope.insert("x".to_owned(), Tree::Bool(true));
        let cases = [
            ("$x", "true"),
            ("${8 if x else heads}", "8"),
            ("${8 if not x else heads}", "$heads"),
            ("${a and not x}", "false"),
            ("${a and x}", "$a"),
            ("${(a or x) and b}", "${(a or x) and b}"),
            ("${a if b else c}", "${a if b else c}"),
        ];
        for (text, expected) in cases {
            let mut tree = Tree::Text(text.into());
            fold(&mut tree, &scope);
            assert_eq!(tree.to_string(), expected, "{text}");
        }
    }
}
