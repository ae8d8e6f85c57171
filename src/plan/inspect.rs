//! Everything that can be said of a description, a config and a checkpoint without reading a weight: what is wrong, and
//! what may be.

use super::config::{self, Bound};
use super::{Config, Target, build, choose_head, expander, parse, tensors};
use crate::error::{Error, ErrorKind, Problem};
use crate::spec::{Address, Binding, Problems, Source, Spec, Tree};
use crate::weights::Index;

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The model cannot be opened.
    Error,
    /// It can, and its results may be wrong.
    Warning,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub problem: Problem,
}

impl Finding {
    /// The problems of an error.
    pub fn all_of(error: &Error) -> Vec<Finding> {
        let finding = |problem: &Problem| Finding { severity: Severity::Error, problem: problem.clone() };
        error.problems().iter().map(finding).collect()
    }
}

/// Keys of `config.json` that change no result of a forward pass, whatever the architecture: names and versions, training,
/// labels, what is returned, and how tokens are chosen. `*` stands for any characters.
const IRRELEVANT: [&str; 68] = [
    // names and versions
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation*",
    "architectures",
    "attn_implementation",
    "auto_map",
    "model_type",
    "processor_class",
    "tokenizer_class",
    "transformers_version",
    // types of numbers: those of the stored tensors count
    "dtype",
    "torch_dtype",
    "use_bfloat16",
    // training
    "*dropout*",
    "*_pdrop",
    "*layerdrop",
    "*_loss",
    "*_loss_*",
    "*init*_factor",
    "drop_path_rate",
    "finetuning_task",
    "gradient_checkpointing",
    "init_device",
    "init_std",
    "initializer_*",
    "label2id",
    "id2label",
    "num_labels",
    "problem_type",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "mask_time_*",
    "mask_feature_*",
    "apply_spec_augment",
    // how the same numbers are computed, kept or returned
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "output_*",
    "quantization_config", // refused
    "pretraining_tp",
    "return_dict*",
    "tf_legacy_loss",
    "tie_*",
    "torchscript",
    "use_cache",
    "use_return_dict",
    "summary_*",
    // how tokens are chosen
    "*_token_id",
    "*_token_ids",
    "*suppress_tokens",
    "bad_words_ids",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "exponential_decay_length_penalty",
    "length_penalty",
    "max_length",
    "min_length",
    "*no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "task_specific_params",
    "temperature",
    "top_*",
    "typical_p",
];

/// Whether a key of `config.json` changes no result, whatever the architecture.
pub(crate) fn is_irrelevant(key: &str) -> bool {
    IRRELEVANT.iter().any(|pattern| fits(pattern, key))
}

/// Reports everything that is wrong with a description; with a config, with every head planned for it and with keys that
/// nobody reads; with a checkpoint's headers, with the tensors of the head that `target` asks for. What is wrong with the
/// description by itself comes alone: the rest may follow from it.
pub fn inspect(
    source: Source,
    config: Option<&Config>,
    index: Option<&Index>,
    target: &Target,
) -> Vec<Finding> {
    let mut problems = Problems::default();
    let spec = parse(source, &mut problems);
    let Some(config) = config.filter(|_| problems.is_empty()) else {
        return findings(&mut problems, ErrorKind::Spec);
    };
    let bound = config::bind(&spec, config, index, &mut problems);
    if !bound.matches {
        return findings(&mut problems, ErrorKind::Config);
    }
    let chosen = index.map(|index| (index, choose_head(&spec, config, target, &mut problems)));
    let mut found = findings(&mut problems, ErrorKind::Config);
    found.extend(config::quantised(config).map(|problem| Finding { severity: Severity::Error, problem }));
    if found.is_empty() {
        heads(&spec, &bound, &mut problems);
        let asked = chosen.map(|(index, head)| {
            let mut expander = expander(&spec, head, &bound, &mut problems);
            build(&spec, head, &mut expander);
            (index, head, expander.finish().1)
        });
        found = findings(&mut problems, ErrorKind::Config);
        if let Some((index, head, declared)) = asked.filter(|_| found.is_empty()) {
            let elsewhere = super::elsewhere(&spec, head, &bound, false);
            tensors::resolve(&spec, &declared, &elsewhere, &bound, index, &mut problems);
            found = findings(&mut problems, ErrorKind::Checkpoint);
        }
    }
    found.extend(unread(&spec, config));
    found
}

fn findings(problems: &mut Problems, kind: ErrorKind) -> Vec<Finding> {
    problems.finish(kind).err().map(|error| Finding::all_of(&error)).unwrap_or_default()
}

/// Builds what all heads ask for; without a head, the model.
fn heads(spec: &Spec, bound: &Bound, problems: &mut Problems) {
    let mut expander = expander(spec, None, bound, problems);
    if spec.heads.is_empty() {
        build(spec, None, &mut expander);
    }
    for head in &spec.heads {
        // A head that the config lacks is a problem where it is asked for.
        if expander.included(&head.when) == Some(false) {
            continue;
        }
        expander.turn_to(head);
        build(spec, Some(head), &mut expander);
    }
}

/// The config keys that a description reads.
pub fn keys_read(spec: &Spec) -> Vec<&str> {
    let tests = spec.matches.iter().chain(&spec.require).map(|test| test.key.as_str());
    let bindings = spec.config.iter().flat_map(Binding::keys);
    tests.chain(bindings.map(String::as_str)).collect()
}

/// Warnings of keys that say something and that nobody reads.
fn unread(spec: &Spec, config: &Config) -> Vec<Finding> {
    let source = config.source();
    let mut unread = Unread { read: keys_read(spec), spec, found: Vec::new() };
    unread.walk("", &source.tree, &Address::root());
    let warning = |(key, value, at): (String, String, Address)| {
        let message = format!("`{key}` is `{value}`, and {} does not read it", spec.source.name);
        let help = "bind it, list what is implemented under `require`, or list the key under `irrelevant`";
        let place = source.place(&at).map(|place| crate::error::Place { excerpt: None, ..place });
        Finding { severity: Severity::Warning, problem: Problem::new(message).at(place).help(help) }
    };
    unread.found.into_iter().map(warning).collect()
}

struct Unread<'s> {
    read: Vec<&'s str>,
    spec: &'s Spec,
    /// Key, value and place.
    found: Vec<(String, String, Address)>,
}

impl Unread<'_> {
    fn walk(&mut self, prefix: &str, tree: &Tree, at: &Address) {
        for (i, (name, value)) in tree.entries().iter().enumerate() {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let is_listed = self.spec.irrelevant.iter().any(|(pattern, _)| fits(pattern, &key));
            let says_nothing = match value {
                Tree::Null => true,
                Tree::List(items) => items.is_empty(),
                Tree::Map(entries) => entries.is_empty(),
                _ => false,
            };
            let is_known = self.read.contains(&key.as_str()) || is_irrelevant(name);
            if is_known || is_listed || says_nothing {
                continue;
            }
            let below = format!("{key}.");
            if matches!(value, Tree::Map(_)) && self.read.iter().any(|read| read.starts_with(&below)) {
                self.walk(&key, value, &at.child(i));
            } else {
                let mut shown = value.to_string();
                if shown.chars().count() > 60 {
                    shown = shown.chars().take(60).chain("…".chars()).collect();
                }
                self.found.push((key, shown, at.child(i).key()));
            }
        }
    }
}

/// Whether a name fits a pattern in which `*` stands for any characters.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(i) => rest = &rest[i + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        let cases = [
            ("a", "a", true),
            ("a", "ab", false),
            ("*_token_id", "pad_token_id", true),
            ("*_token_id", "token_id", false),
            ("*dropout*", "dropout", true),
            ("*init*_factor", "a_init_b_factor", true),
            ("*init*_factor", "init_b_factors", false),
            ("a*a", "a", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
