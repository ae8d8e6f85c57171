//! Tensor names: which stored tensor each declared one is, and whether all are accounted for, both ways.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::config::Bound;
use crate::error::{Place, Problem, Remark, count};
use crate::nn::{Declared, TensorUse};
use crate::spec::{Problems, Spec, Step, Tree, Weights};
use crate::tensor::DType;
use crate::weights::{Entry, Index, StoredType};

/// The stored tensors of a plan.
#[derive(Debug, Default)]
pub struct Tensors {
    /// For each declared tensor the name under which it is stored.
    pub stored: Vec<String>,
    /// Stored tensors that say the same thing twice: loading checks that they do.
    pub twins: Vec<(String, String)>,
    /// Stored tensors that the description says do not matter.
    pub ignored: Vec<String>,
}

/// A checkpoint's names, read the way a description says.
pub struct Names<'a> {
    weights: &'a Weights,
    index: &'a Index,
    /// Names after renaming, with all stored names that become them.
    renamed: HashMap<String, Vec<&'a str>>,
}

impl<'a> Names<'a> {
    /// The names of a checkpoint.
    pub fn new(weights: &'a Weights, index: &'a Index) -> Self {
        let mut renamed: HashMap<String, Vec<&str>> = HashMap::new();
        for (name, _) in index.iter() {
            renamed.entry(rename(name, weights)).or_default().push(name);
        }
        Names { weights, index, renamed }
    }

    /// The stored tensors that a declared name means, the first prefix first.
    pub fn find(&self, name: &str) -> Option<&[&'a str]> {
        let mut names = self.weights.prefixes.iter().map(|prefix| with_prefix(prefix, name));
        names.find_map(|name| self.renamed.get(&name)).map(Vec::as_slice)
    }

    fn entry(&self, stored: &str) -> Option<&'a Entry> {
        self.index.get(stored)
    }

    /// Whether `ignore` lists a stored name, with or without one of the prefixes.
    fn is_ignored(&self, stored: &str) -> bool {
        let name = rename(stored, self.weights);
        let bare = self.weights.prefixes.iter().filter_map(|prefix| match prefix.as_str() {
            "" => Some(name.as_str()),
            prefix => name.strip_prefix(prefix)?.strip_prefix('.'),
        });
        bare.into_iter().any(|bare| self.weights.ignore.iter().any(|(pattern, _)| matches(pattern, bare)))
    }
}

fn with_prefix(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// Longest name that renaming gives, in bytes; one that would become longer stays as it is.
const MAX_NAME: usize = 4096;

/// The name with each run of segments that `rename` lists replaced: from the left, by the first rule that fits.
fn rename(name: &str, weights: &Weights) -> String {
    let mut renamed = String::with_capacity(name.len());
    let mut rest = Some(name);
    while let Some(here) = rest {
        let fitting =
            weights.rename.iter().find_map(|(from, to, _)| match here.strip_prefix(from.as_str())? {
                "" => Some((to.as_str(), None)),
                behind => Some((to.as_str(), Some(behind.strip_prefix('.')?))),
            });
        let (segment, behind) = fitting.unwrap_or(match here.split_once('.') {
            Some((segment, behind)) => (segment, Some(behind)),
            None => (here, None),
        });
        if renamed.len() + segment.len() > MAX_NAME {
            return name.to_owned();
        }
        renamed += segment;
        if behind.is_some() {
            renamed.push('.');
        }
        rest = behind;
    }
    renamed
}

/// A name after renaming, with and without each of the prefixes.
pub fn bare_names(name: &str, weights: &Weights) -> Vec<String> {
    let name = rename(name, weights);
    let bare = |prefix: &String| name.strip_prefix(prefix.as_str())?.strip_prefix('.').map(str::to_owned);
    let mut names: Vec<String> = weights.prefixes.iter().filter_map(bare).collect();
    names.push(name.clone());
    names
}

/// Whether a name fits a pattern in which `*` stands for one segment, and `**` at the end for one or more.
fn matches(pattern: &str, name: &str) -> bool {
    let mut segments = name.split('.');
    let mut patterns = pattern.split('.').peekable();
    while let Some(pattern) = patterns.next() {
        match segments.next() {
            Some(_) if pattern == "**" && patterns.peek().is_none() => return true,
            Some(segment) if pattern == "*" || pattern == segment => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

/// Finds every declared tensor in a checkpoint. `elsewhere` are the tensors of what the description can do but was
/// not asked for.
pub fn resolve(
    spec: &Spec,
    declared: &Declared,
    elsewhere: &[TensorUse],
    bound: &Bound,
    index: &Index,
    problems: &mut Problems,
) -> Tensors {
    let names = Names::new(&spec.weights, index);
    let mut tensors = Tensors::default();
    let mut used: HashSet<&str> = HashSet::new();
    let mut missing: Vec<&TensorUse> = Vec::new();
    let mut misshapen: Vec<(&TensorUse, &str, &Entry)> = Vec::new();
    let mut tied: HashMap<&str, Vec<&str>> = HashMap::new();
    for tensor in &declared.tensors {
        if let Some(tie) = &tensor.tie {
            tied.entry(tie).or_default().push(&tensor.name);
        }
    }
    for tensor in &declared.tensors {
        // A tie holds both ways: if only the other one is stored, it serves as this one.
        let partners = tied.get(tensor.name.as_str()).into_iter().flatten();
        let found = names
            .find(&tensor.name)
            .or_else(|| names.find(tensor.tie.as_ref()?))
            .or_else(|| partners.into_iter().find_map(|partner| names.find(partner)));
        let Some(stored) = found else {
            missing.push(tensor);
            tensors.stored.push(String::new());
            continue;
        };
        used.extend(stored);
        tensors.stored.push(stored[0].to_owned());
        tensors.twins.extend(stored[1..].iter().map(|twin| (stored[0].to_owned(), (*twin).to_owned())));
        if let Some(entry) = names.entry(stored[0]) {
            if !same_axes(&entry.shape, &tensor.shape) {
                misshapen.push((tensor, stored[0], entry));
            }
            check_type(spec, tensor, stored[0], entry, problems);
        }
    }
    for tensor in elsewhere {
        used.extend(names.find(&tensor.name).into_iter().flatten());
    }
    let unused: Vec<&str> = index
        .iter()
        .map(|(name, _)| name)
        .filter(|name| !used.contains(name) && !names.is_ignored(name))
        .collect();
    let ignored = index.iter().map(|(name, _)| name).filter(|name| names.is_ignored(name));
    tensors.ignored = ignored.filter(|name| !used.contains(name)).map(str::to_owned).collect();
    report_misshapen(spec, bound, &misshapen, problems);
    report_missing(spec, &names, &missing, &unused, problems);
    report_unused(spec, &unused, declared, &tensors.stored, problems);
    tensors
}

/// Whether two shapes agree; axes of length 1 do not count.
fn same_axes(a: &[usize], b: &[usize]) -> bool {
    a.iter().filter(|n| **n != 1).eq(b.iter().filter(|n| **n != 1))
}

/// Reports tensors of the wrong shape; the same mistake in many layers once.
fn report_misshapen(
    spec: &Spec,
    bound: &Bound,
    misshapen: &[(&TensorUse, &str, &Entry)],
    problems: &mut Problems,
) {
    // The first of each kind, and how many there are.
    let mut kinds: Vec<(&(&TensorUse, &str, &Entry), usize)> = Vec::new();
    let mut numbers = HashMap::new();
    for one in misshapen {
        let (tensor, stored, entry) = one;
        let kind = *numbers.entry((pattern(stored), &tensor.shape, &entry.shape)).or_insert(kinds.len());
        if kind == kinds.len() {
            kinds.push((one, 0));
        }
        kinds[kind].1 += 1;
    }
    for ((tensor, stored, entry), count) in kinds {
        let (what, label) = match count {
            1 => (format!("tensor `{stored}`"), label(tensor)),
            n => (format!("{n} tensors `{}`", pattern(stored)), tensor.label.clone()),
        };
        let message =
            format!("shape mismatch for {what}: expected {:?}, found {:?}", tensor.shape, entry.shape);
        let problem = problems.brief(&spec.source, &tensor.at, message, &label);
        let swapped = entry.shape.len() == 2 && entry.shape.iter().rev().eq(&tensor.shape);
        let mut notes = sizes(spec, bound, tensor, entry);
        if notes.is_empty() && !swapped {
            notes = defaults(spec, bound);
        }
        let mut defaults = bound.defaulted.iter().filter_map(|name| bound.origins.get(name));
        let has_default = defaults.any(|origin| notes.iter().any(|note| note.contains(origin)));
        for note in notes {
            problem.remarks.push(Remark { tag: "note", text: note });
        }
        let help = if swapped {
            "the sizes are swapped; does this checkpoint store linear weights as `layout: in_out`?"
        } else if has_default {
            "where config.json lacks a key the description's default is the size; is the key spelt as it is there?"
        } else {
            "the sizes come from config.json; is it the one that belongs to this checkpoint?"
        };
        problem.remarks.push(Remark { tag: "help", text: help.into() });
    }
}

/// Where the expected sizes that are not those found come from, as far as names of the description have such values.
fn sizes(spec: &Spec, bound: &Bound, tensor: &TensorUse, entry: &Entry) -> Vec<String> {
    let wrong = tensor.shape.iter().filter(|n| !entry.shape.contains(n));
    let wrong: Vec<i64> = wrong.map(|n| *n as i64).collect();
    let named = spec.config.iter().filter(|binding| {
        bound.scope.get(&binding.name).is_some_and(|value| matches!(value, Tree::Int(n) if wrong.contains(n)))
    });
    let notes: Vec<String> =
        named.filter_map(|binding| bound.origins.get(&binding.name).cloned()).take(2).collect();
    if notes.is_empty() { products(spec, bound, &wrong) } else { notes }
}

/// Sizes that the config does not name, where it is not known what a shape is made of.
fn defaults(spec: &Spec, bound: &Bound) -> Vec<String> {
    let sized = spec
        .config
        .iter()
        .filter(|binding| matches!(bound.scope.get(&binding.name), Some(Tree::Int(n)) if *n > 1));
    let defaulted = sized.filter(|binding| bound.defaulted.contains(&binding.name));
    defaulted.filter_map(|binding| bound.origins.get(&binding.name)).take(3).cloned().collect()
}

/// The same for a size that is the product of two names, if it is that of no others.
fn products(spec: &Spec, bound: &Bound, wrong: &[i64]) -> Vec<String> {
    // How many layers there are is the size of nothing.
    let counts = spec.values.iter().flat_map(|value| &value.body).filter_map(|item| match &item.step {
        Step::Repeat { count: (Tree::Text(count), _), .. } => count.strip_prefix('$'),
        _ => None,
    });
    let counts: Vec<&str> = counts.collect();
    let sizes: Vec<(&str, i64)> = spec
        .config
        .iter()
        .filter_map(|binding| match bound.scope.get(&binding.name) {
            Some(Tree::Int(n)) if *n > 1 => Some((binding.name.as_str(), *n)),
            _ => None,
        })
        .filter(|(name, _)| !counts.iter().any(|count| count == name))
        .collect();
    let pairs = sizes.iter().enumerate().flat_map(|(i, a)| sizes[i..].iter().map(move |b| (a, b)));
    let mut notes = Vec::new();
    for ((a, m), (b, n)) in pairs {
        let Some(size) = m.checked_mul(*n).filter(|size| wrong.contains(size)) else { continue };
        let origins = [a, b].map(|name| bound.origins.get(*name).cloned().unwrap_or_default());
        notes.push(format!("{size} is `{a}` * `{b}`: {}; {}", origins[0], origins[1]));
    }
    if notes.len() > 1 { Vec::new() } else { notes }
}

fn check_type(spec: &Spec, tensor: &TensorUse, stored: &str, entry: &Entry, problems: &mut Problems) {
    if !matches!(&entry.dtype, StoredType::Known(dtype) if dtype.is_weight()) {
        let message = format!(
            "unsupported type of tensor `{stored}`: expected {}, {} or {}, found {}",
            DType::F32,
            DType::F16,
            DType::Bf16,
            entry.dtype
        );
        let problem = problems.brief(&spec.source, &tensor.at, message, &label(tensor));
        let help = match entry.dtype {
            StoredType::Known(DType::F64) => "convert it to one of these types",
            _ => "quantised checkpoints are not read; convert it to one of these types",
        };
        problem.remarks.push(Remark { tag: "help", text: help.into() });
    }
}

/// `` `k` of `attention`, layer 3 of 6 ``.
fn label(tensor: &TensorUse) -> String {
    match tensor.layer {
        Some((i, n)) => format!("{}, layer {i} of {n}", tensor.label),
        None => tensor.label.clone(),
    }
}

/// A name with its numbers replaced by `*`.
pub(super) fn pattern(name: &str) -> String {
    let star = |segment: &str| {
        if segment.bytes().all(|b| b.is_ascii_digit()) { "*".into() } else { segment.to_owned() }
    };
    name.split('.').map(star).collect::<Vec<_>>().join(".")
}

/// Most spellings that a missing name is compared with.
const MAX_SPELLINGS: usize = 1000;

fn report_missing(
    spec: &Spec,
    names: &Names<'_>,
    missing: &[&TensorUse],
    unused: &[&str],
    problems: &mut Problems,
) {
    let mut groups: BTreeMap<(usize, String), Vec<&TensorUse>> = BTreeMap::new();
    let mut order: HashMap<String, usize> = HashMap::new();
    for tensor in missing {
        let pattern = pattern(&tensor.name);
        let next = order.len();
        let rank = *order.entry(pattern.clone()).or_insert(next);
        groups.entry((rank, pattern)).or_default().push(tensor);
    }
    let mut by_pattern: HashMap<String, Vec<&str>> = HashMap::new();
    for stored in names.renamed.keys() {
        by_pattern.entry(pattern(stored)).or_default().push(stored);
    }
    // One of each pattern: the same tensor of other layers is spelt alike.
    let mut patterns = HashSet::new();
    let spellings = unused.iter().copied().filter(|name| patterns.insert(pattern(name)));
    let spellings: Vec<&str> = spellings.take(MAX_SPELLINGS).collect();
    for ((_, pattern), group) in groups {
        let first = group[0];
        let name = if group.len() == 1 { &first.name } else { &pattern };
        let shape = &first.shape;
        let message = match group.len() {
            1 => format!("missing tensor `{name}`, expected shape {shape:?}"),
            n => format!("missing {n} tensors `{name}`, expected shape {shape:?}"),
        };
        let label = if group.len() == 1 { label(first) } else { first.label.clone() };
        let problem = problems.brief(&spec.source, &first.at, message, &label);
        let mut remark = |tag, text| problem.remarks.push(Remark { tag, text });
        let prefixes: Vec<String> = spec.weights.prefixes.iter().map(|p| shown_prefix(p)).collect();
        remark("tried", format!("prefixes: {}", prefixes.join(", ")));
        if let Some(tie) = &first.tie {
            remark("tried", format!("`{tie}`, to which it is tied"));
        }
        // The same tensor of other layers tells a wrong name from an incomplete file.
        let prefixed: BTreeSet<String> =
            spec.weights.prefixes.iter().map(|p| with_prefix(p, &pattern)).collect();
        let mut present: Vec<usize> = prefixed
            .iter()
            .filter_map(|name| by_pattern.get(name))
            .flatten()
            .filter_map(|stored| stored.split('.').find_map(|s| s.parse().ok()))
            .collect();
        let suffix = format!(".{}", first.name);
        if !present.is_empty() && pattern.contains('*') {
            present.sort_unstable();
            let have = layers(&present);
            remark("note", format!("{have} it; is the checkpoint complete, and `config.json` its own?"));
        } else if let Some(stored) = unused.iter().find(|stored| stored.ends_with(&suffix)) {
            let prefix = &stored[..stored.len() - suffix.len()];
            remark("found", format!("`{stored}`, which nothing uses"));
            remark("help", format!("list `{prefix}` under `weights: prefix` if it is the same tensor"));
        } else if let Some(near) = nearest(&first.name, names, &spellings) {
            remark("found", format!("`{near}`, which nothing uses, looks close"));
        }
    }
}

fn shown_prefix(prefix: &str) -> String {
    if prefix.is_empty() { "none".into() } else { format!("`{prefix}`") }
}

/// `layer 0 has`, `layers 0-2 and 4 have`, for sorted numbers.
fn layers(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let shown: Vec<String> =
        runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    match shown.split_last() {
        Some((one, [])) if numbers.len() == 1 => format!("layer {one} has"),
        Some((one, [])) => format!("layers {one} have"),
        Some((last, first)) => format!("layers {} and {last} have", first.join(", ")),
        None => String::new(),
    }
}

/// The spelling that is most like `name` under one of the prefixes.
fn nearest<'a>(name: &str, names: &Names<'_>, spellings: &[&'a str]) -> Option<&'a str> {
    let prefixes = names.weights.prefixes.iter();
    prefixes
        .filter_map(|prefix| crate::error::closest(&with_prefix(prefix, name), spellings.iter().copied()))
        .next()
}

/// Reports tensors that nothing uses, with what uses others of their modules; `stored` are the stored names of those declared.
fn report_unused(
    spec: &Spec,
    unused: &[&str],
    declared: &Declared,
    stored: &[String],
    problems: &mut Problems,
) {
    if unused.is_empty() {
        return;
    }
    let uses = declared.tensors.iter().zip(stored);
    let modules: HashMap<&str, &TensorUse> =
        uses.filter_map(|(tensor, stored)| Some((stored.rsplit_once('.')?.0, tensor))).collect();
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in unused {
        groups.entry(pattern(name)).or_default().push(name);
    }
    let verb = if unused.len() == 1 { "is" } else { "are" };
    let what = count(unused.len(), "stored tensor");
    let mut problem = Problem::new(format!("{what} {verb} not used by {}", spec.source.name));
    problem.place = None::<Place>;
    for (pattern, names) in groups.iter().take(20) {
        let mut text = match names.len() {
            1 => format!("`{}`", names[0]),
            n => format!("`{pattern}` ({n} tensors)"),
        };
        let beside = names[0].rsplit_once('.').and_then(|(module, _)| modules.get(module));
        if let Some((tensor, line)) = beside.and_then(|tensor| Some((tensor, spec.source.line(&tensor.at)?)))
        {
            text += &format!(": {}:{line} binds its module ({})", spec.source.name, tensor.label);
        }
        problem.remarks.push(Remark { tag: "", text });
    }
    if groups.len() > 20 {
        problem.remarks.push(Remark { tag: "", text: format!("and {} more patterns", groups.len() - 20) });
    }
    let help = match unused.len() {
        1 => "bind it, or list it under `weights: ignore` if it does not change the result",
        _ => "bind them, or list them under `weights: ignore` if they do not change the result",
    };
    problem.remarks.push(Remark { tag: "help", text: help.into() });
    problems.push(problem);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Address;

    #[test]
    fn names_are_matched_by_segment() {
        let cases = [
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a.b.b.c", false),
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("h.*.attn.bias", "h.12.attn.bias", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn patterns_stand_for_segments() {
        let cases = [
            ("a.*.c", "a.b.c", true),
            ("a.*", "a.b.c", false),
            ("a.**", "a.b.c", true),
            ("a.**", "a", false),
            ("a.b", "a.b.c", false),
            ("a.**.c", "a.b.c", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn names_are_renamed_by_segment() {
        let rule = |from: &str, to: &str| (from.to_owned(), to.to_owned(), Address::root());
        let weights = Weights {
            rename: vec![rule("norm.gamma", "norm.weight"), rule("old", "new.er")],
            ..Weights::default()
        };
        let cases = [
            ("a.norm.gamma", "a.norm.weight"),
            ("a.mynorm.gamma", "a.mynorm.gamma"),
            ("old.x.old", "new.er.x.new.er"),
            ("older.x", "older.x"),
        ];
        for (name, expected) in cases {
            assert_eq!(rename(name, &weights), expected);
        }
    }
}
