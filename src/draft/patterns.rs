//! The names of a checkpoint's tensors as patterns: `*` for the numbers of layers.

use std::collections::{BTreeMap, BTreeSet};

/// Tensors that differ in the number of their layer alone.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// The name, with `*` for the number of the layer and for that of an expert.
    pub name: String,
    /// The shape of the first of them.
    pub shape: Vec<usize>,
    /// Numbers of the layers that have it; none outside of layers.
    pub layers: BTreeSet<usize>,
}

impl Pattern {
    /// What stands before the number of the layer, with it: `h.*`. Empty outside of layers.
    pub fn group(&self) -> &str {
        group(&self.name)
    }
}

/// The part of a pattern up to its first `*`.
pub fn group(name: &str) -> &str {
    match name.split_once('*') {
        Some((before, _)) => &name[..before.len() + 1],
        None => "",
    }
}

fn is_number(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_digit())
}

/// Replaces the first number of each name, and a later one where all numbers have the same tensors behind them, as
/// experts have. A number that tells parts of a layer apart stays.
pub fn patterns<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize])>) -> Vec<Pattern> {
    let mut found: BTreeMap<String, Pattern> = BTreeMap::new();
    for (name, shape) in tensors {
        let mut segments: Vec<&str> = name.split('.').collect();
        let first = segments.iter().position(|s| is_number(s));
        let layer: Option<usize> = first.and_then(|i| segments[i].parse().ok());
        if let Some(i) = first {
            segments[i] = "*";
        }
        let name = segments.join(".");
        let pattern = found.entry(name.clone()).or_insert_with(|| Pattern {
            name,
            shape: shape.to_vec(),
            layers: BTreeSet::new(),
        });
        pattern.layers.extend(layer);
    }
    // Per prefix before a second number: the sets of what follows each number.
    let second = |name: &str| {
        let segments: Vec<&str> = name.split('.').collect();
        let at = segments.iter().position(|s| is_number(s))?;
        Some((segments[..at].join("."), segments[at].to_owned(), segments[at + 1..].join(".")))
    };
    let mut behind: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for name in found.keys() {
        if let Some((before, number, after)) = second(name) {
            behind.entry(before).or_default().entry(number).or_default().insert(after);
        }
    }
    let mut merged: BTreeMap<String, Pattern> = BTreeMap::new();
    for (name, pattern) in found {
        let name = match second(&name) {
            Some((before, _, after)) => {
                let sets = &behind[&before];
                let is_same = sets.len() > 1 && sets.values().all(|set| Some(set) == sets.values().next());
                if is_same { format!("{before}.*.{after}") } else { name }
            }
            None => name,
        };
        let into = merged.entry(name.clone()).or_insert_with(|| Pattern { name, ..pattern.clone() });
        into.layers.extend(pattern.layers);
    }
    merged.into_values().collect()
}

/// The segments that stand before everything but heads: all layers are under them, and so is a large tensor outside.
pub fn prefix(patterns: &[Pattern]) -> String {
    let outside = || patterns.iter().filter(|p| p.layers.is_empty());
    let size = |p: &Pattern| p.shape.iter().product::<usize>();
    let largest = outside().map(size).max().unwrap_or(0);
    let mut prefix = String::new();
    loop {
        let rest = |name: &str| -> Option<String> {
            let rest = name.strip_prefix(&prefix)?;
            Some(rest.split_once('.')?.0.to_owned())
        };
        let mut next: BTreeSet<Option<String>> =
            patterns.iter().filter(|p| !p.layers.is_empty()).map(|p| rest(&p.name)).collect();
        let (Some(Some(segment)), true) = (next.pop_first(), next.is_empty()) else { break };
        let longer = format!("{prefix}{segment}.");
        let holds_table =
            outside().any(|p| p.name.starts_with(&longer) && p.shape.len() > 1 && 2 * size(p) >= largest);
        if !holds_table || segment == "*" {
            break;
        }
        prefix = longer;
    }
    prefix.trim_end_matches('.').to_owned()
}

/// How alike two paths are, from 0 to 1.
pub fn likeness(a: &str, b: &str) -> f64 {
    if a == b {
        return 1.0;
    }
    let (x, y): (Vec<&str>, Vec<&str>) = (a.split('.').collect(), b.split('.').collect());
    let tail = x.iter().rev().zip(y.iter().rev()).take_while(|(a, b)| a == b).count();
    let same_end = if tail > 0 { 0.5 + 0.4 * tail as f64 / x.len().max(y.len()) as f64 } else { 0.0 };
    let words = |text: &str| -> BTreeSet<String> {
        text.split(['.', '_']).filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
    };
    let (a, b) = (words(a), words(b));
    let common = a.intersection(&b).count() as f64;
    let shared = 0.8 * common / (a.len().max(b.len()).max(1)) as f64;
    same_end.max(shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Vec<String> {
        patterns(names.iter().map(|n| (*n, &[2usize, 3][..]))).into_iter().map(|p| p.name).collect()
    }

    #[test]
    fn layers_and_experts_become_stars_and_parts_do_not() {
        let names = found(&["m.h.0.a.w", "m.h.1.a.w", "m.h.0.experts.0.w", "m.h.0.experts.1.w", "m.n"]);
        assert_eq!(names, ["m.h.*.a.w", "m.h.*.experts.*.w", "m.n"]);
        let names = found(&["b.0.layer.0.q", "b.0.layer.1.k"]);
        assert_eq!(names, ["b.*.layer.0.q", "b.*.layer.1.k"]);
    }

    #[test]
    fn the_prefix_is_what_layers_and_embeddings_share() {
        let of = |names: &[&str]| prefix(&patterns(names.iter().map(|n| (*n, &[2usize, 3][..]))));
        assert_eq!(of(&["a.h.0.w", "a.wte.weight", "head.weight"]), "a");
        assert_eq!(of(&["h.0.w", "wte.weight"]), "");
        assert_eq!(of(&["m.d.h.0.w", "m.d.wte.weight"]), "m.d");
    }
}
