//! Small changes of a tree: at a place, or wherever something is said.

use super::patterns::group;
use super::print::NOTE;
use crate::spec::{Address, Tree};

/// The module that the first tie names.
pub(super) fn first_tie(tree: &Tree) -> Option<String> {
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
pub(super) fn to_layer_norms(tree: &mut Tree) {
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

/// Lets settings of rope say what share of the columns turns.
pub(super) fn turn_a_share(tree: &mut Tree) {
    match tree {
        Tree::Map(entries) => {
            for (key, value) in entries {
                match value {
                    Tree::Text(text) if key == "rope" && !text.contains("'partial'") => {
                        *text = text.replace("'scaling'", "'partial': 1, 'scaling'");
                    }
                    Tree::Map(_)
                        if key == "rope"
                            && value.get("scaling").is_some()
                            && value.get("partial").is_none() =>
                    {
                        set(value, "partial", Tree::Int(1));
                        let why = "`partial_rotary_factor` in the settings counts only beside this";
                        set(value, NOTE, Tree::Text(why.into()));
                    }
                    _ => turn_a_share(value),
                }
            }
        }
        Tree::List(items) => items.iter_mut().for_each(turn_a_share),
        _ => {}
    }
}

/// Says how a weight is stored, at its place.
pub(super) fn set_layout(tree: &mut Tree, at: &Address, layout: &str) -> bool {
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
pub(super) fn stem(name: &str) -> &str {
    name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name)
}

pub(super) fn same_axes(a: &[usize], b: &[usize]) -> bool {
    a.iter().filter(|n| **n != 1).eq(b.iter().filter(|n| **n != 1))
}

pub(super) fn get_mut<'t>(tree: &'t mut Tree, key: &str) -> Option<&'t mut Tree> {
    let Tree::Map(entries) = tree else { return None };
    entries.iter_mut().find(|(k, _)| k == key).map(|(_, value)| value)
}

/// Sets a field of a map; comments stay at the end.
pub(super) fn set(tree: &mut Tree, key: &str, value: Tree) {
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

pub(super) fn value_mut<'t>(tree: &'t mut Tree, steps: &[usize]) -> Option<&'t mut Tree> {
    steps.iter().try_fold(tree, |tree, &i| match tree {
        Tree::List(items) => items.get_mut(i),
        Tree::Map(entries) => entries.get_mut(i).map(|(_, value)| value),
        _ => None,
    })
}

/// The steps to the nearest map around a place that has a field.
pub(super) fn owner(tree: &Tree, at: &Address, field: &str) -> Option<Vec<usize>> {
    let steps = at.steps();
    (0..steps.len()).rev().map(|n| steps[..n].to_vec()).find(|steps| {
        let mut here = Address::root();
        steps.iter().for_each(|i| here = here.child(*i));
        here.value(tree).is_some_and(|value| value.get(field).is_some())
    })
}

pub(super) fn at_owner(at: &Address, owner: &[usize]) -> bool {
    at.steps().starts_with(owner)
}

/// Puts other layers under the loops at `old`; gives the number of loops.
pub(super) fn move_repeat(tree: &mut Tree, old: &str, new: &str) -> usize {
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
pub(super) fn rename(tree: &mut Tree, at: &Address, declared: &str, stored: &str) -> bool {
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
pub(super) fn rename_ties(tree: &mut Tree, old: &str, new: &str) {
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
pub(super) fn set_bias(tree: &mut Tree, at: &Address, bias: bool) -> bool {
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

/// The tree without comments, which are no part of the language.
pub(super) fn without_notes(tree: &Tree) -> Tree {
    match tree {
        Tree::Map(entries) => {
            let kept = entries.iter().filter(|(key, _)| key != NOTE);
            Tree::Map(kept.map(|(key, value)| (key.clone(), without_notes(value))).collect())
        }
        Tree::List(items) => Tree::List(items.iter().map(without_notes).collect()),
        other => other.clone(),
    }
}
