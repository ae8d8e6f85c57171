//! A first description of a model that none describes, from its config and the names and shapes of its tensors.
//!
//! Each built-in description is adapted to the model (keys of the config, names of tensors, biases), and the one that
//! explains most and had to change least is taken. What a checkpoint does not say (where a residual begins, which
//! activation is written into the code) stays as it was there: a draft has to be read, and verified.

#![forbid(unsafe_code)]

mod adapt;
mod bind;
mod convert;
mod edit;
mod fit;
mod fold;
mod fuse;
mod heads;
mod known;
mod norms;
mod outside;
mod patterns;
mod places;
mod print;
mod report;
mod shared;
mod sizes;
mod weights;

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Config, check_spec, fits, is_irrelevant};
use crate::spec::{Source, Tree};
use crate::weights::{Index, write_whole};

use adapt::Candidate;
use known::Known;
use patterns::Pattern;
pub use print::yaml;

/// A draft.
#[derive(Debug)]
pub struct Draft {
    /// The YAML file, with comments.
    pub text: String,
    /// The built-in description that it is made from.
    pub skeleton: String,
    /// Why `smelt check` would refuse it, if it would.
    pub refused: Option<Error>,
    /// What it does not explain, line by line.
    pub unexplained: Vec<String>,
}

impl Draft {
    /// Writes the YAML file in one go: where that fails, a file of that name is as it was.
    ///
    /// # Errors
    /// `Io` if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_whole(path, self.text.as_bytes())
    }
}

/// Drafts a description. The built-in descriptions `without` are not looked at.
///
/// # Errors
/// `Unsupported` when nothing is left to begin with; `Config` when `architectures` is no list of strings.
pub fn draft(config: &Config, index: &Index, without: &[&str]) -> Result<Draft> {
    config.texts("architectures")?;
    let known = Known::new(without)?;
    let stored = patterns::patterns(index.iter().map(|(name, entry)| (name, entry.shape.as_slice())));
    let prefix = patterns::prefix(&stored);
    let own = config.text("model_type");
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut families: Vec<(f64, &known::Family)> =
        known.families.iter().map(|f| (resemblance(f, config, &stored), f)).collect();
    families.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, family) in families.into_iter().take(MAX_ADAPTED) {
        let mut types: Vec<Option<&str>> = match family.types.as_slice() {
            [] => vec![None],
            types => types.iter().map(|t| Some(t.as_str())).collect(),
        };
        types.sort_by_key(|model_type| *model_type != own);
        let mut starts: Vec<Tree> = Vec::new();
        for model_type in types {
            let mut start = Candidate::new(family, model_type);
            if model_type.is_some() && model_type == own {
                start.score += OWN_TYPE;
            }
            // Most files are the same for all of their types.
            if !starts.contains(&start.tree) {
                starts.push(start.tree.clone());
                candidates.push(start.adapt(&known, config, &stored, &prefix, family));
            }
        }
    }
    // A later one must be better, not only as good.
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut candidates = candidates.into_iter();
    let Some(best) = candidates.next() else {
        return Err(Error::new(ErrorKind::Unsupported, "no description is left to begin with"));
    };
    let runner_up = candidates.find(|c| c.family != best.family);
    Ok(finish(best, runner_up.as_ref(), config, &stored, &prefix, index.len()))
}

/// What it counts that a description is for the model type of the config: as much as that nothing is missing.
const OWN_TYPE: f64 = 3.0;

/// Descriptions that are adapted, of those that resemble the model most.
const MAX_ADAPTED: usize = 16;

/// The share of the tensors whose module a description has somewhere, and of the keys of the config.
fn resemblance(family: &known::Family, config: &Config, stored: &[Pattern]) -> f64 {
    let Some(text) = crate::plan::builtin::text(family.name) else { return 0.0 };
    let is_there = |pattern: &&Pattern| {
        let last = pattern.name.rsplit('.').nth(1).unwrap_or_default();
        text.contains(last)
    };
    let is_same = |pattern: &&Pattern| family.paths.contains(known::inside(&pattern.name));
    let share = |n: usize| n as f64 / stored.len().max(1) as f64;
    let names = share(stored.iter().filter(is_there).count()) + share(stored.iter().filter(is_same).count());
    let keys = config.entries().iter().filter(|(key, _)| text.contains(key.as_str())).count();
    names + keys as f64 / config.entries().len().max(1) as f64
}

/// The text, with what was concluded above and what is open below.
fn finish(
    best: Candidate,
    runner_up: Option<&Candidate>,
    config: &Config,
    stored: &[Pattern],
    prefix: &str,
    tensors: usize,
) -> Draft {
    let mut text = format!(
        "# Draft by `smelt new` from the config and the names and shapes of {tensors} tensors. No number was computed: read\n\
         # the reference implementation beside it, then `smelt verify`.\n\
         # Made from {}: {} of {} patterns of names are used as they are there, {} were renamed",
        best.family, best.exact, best.patterns, best.renamed
    );
    match runner_up {
        Some(other) => text += &format!("; the next best was {}.\n", other.family),
        None => text += ".\n",
    }
    match prefix {
        "" => text += "# No prefix: the layers and the largest table have no segment in common.\n",
        prefix => text += &format!("# Prefix `{prefix}`: the layers and the largest table are under it.\n"),
    }
    for note in layer_notes(stored) {
        text += &format!("# {note}\n");
    }
    text += &yaml(&best.tree);
    let unexplained = unexplained(&best, config);
    if unexplained.is_empty() {
        text += "\n# Nothing is left unexplained: all tensors are used, and all keys of the config that look structural.\n";
    } else {
        text += "\n# Not explained:\n";
        for line in &unexplained {
            text += &format!("# - {line}\n");
        }
    }
    let refused = Source::yaml("draft.yaml", text.as_str()).and_then(check_spec).err();
    if let Some(error) = &refused {
        text += "# `smelt check` refuses this draft:\n";
        for problem in error.problems() {
            text += &format!("# - {}\n", problem.message);
        }
    }
    Draft { text, skeleton: best.family.to_owned(), refused, unexplained }
}

/// How many layers there are of which kind, and which of their tensors only some have.
fn layer_notes(stored: &[Pattern]) -> Vec<String> {
    let mut groups: Vec<&str> = stored.iter().map(Pattern::group).filter(|g| !g.is_empty()).collect();
    groups.dedup();
    let mut notes = Vec::new();
    for group in groups {
        let inside: Vec<&Pattern> = stored.iter().filter(|p| p.group() == group).collect();
        let all: std::collections::BTreeSet<usize> = inside.iter().flat_map(|p| p.layers.clone()).collect();
        notes.push(format!("`{group}`: {} layers, {} patterns of tensors.", all.len(), inside.len()));
        for partial in inside.iter().filter(|p| p.layers.len() < all.len()) {
            let layers: Vec<String> = partial.layers.iter().take(8).map(usize::to_string).collect();
            let more = if partial.layers.len() > 8 { ", …" } else { "" };
            notes.push(format!("Only layers {}{more} have `{}`: `when`.", layers.join(", "), partial.name));
        }
    }
    notes
}

fn unexplained(best: &Candidate, config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for (pattern, why) in &best.open {
        lines.push(format!("tensor `{}` {:?}: {why}", pattern.name, pattern.shape));
    }
    lines.extend(best.problems.iter().cloned());
    let used = best.keys();
    let said: Vec<&str> = match best.tree.get("irrelevant") {
        Some(Tree::List(keys)) => keys.iter().filter_map(Tree::as_text).collect(),
        _ => Vec::new(),
    };
    let is_said = |key: &str| said.iter().any(|pattern| fits(pattern, key));
    let is_used = |key: &str| used.iter().any(|u| u == key || u.split('.').next() == Some(key));
    for (key, value) in config.entries() {
        if !is_irrelevant(key) && !is_used(key) && !is_said(key) && *value != Tree::Null {
            lines.push(format!("config key `{key}`, which is {value}"));
        }
    }
    lines
}
