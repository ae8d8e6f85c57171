//! From a description, a config and a checkpoint's headers to a plan in which every block is resolved, every shape is a
//! number and every tensor is accounted for. No weight data is read.
//!
//! Read [`Plan::new`] first: it is the list of the steps.

#![forbid(unsafe_code)]

mod blocks;
pub mod builtin;
mod check;
mod config;
mod expand;
mod inspect;
mod memory;
mod report;
mod rounds;
mod tensors;

use std::collections::BTreeSet;
use std::io::Read;

use crate::error::{Error, ErrorKind, Remark, Result, closest};
use crate::nn::{Builder, Declared, PlannedValue, Rows, Shape, Stream, TensorUse, ValueId};
use crate::spec::{Address, Head, Problems, Source, Spec, Tree, listed};
use crate::weights::{Index, Repository};
pub use blocks::{PlannedBlock, Ranges, Within};
pub use check::TASKS;
pub use config::Config;
pub(crate) use expand::MAX_REPEAT;
pub use inspect::{Finding, Severity, inspect};
pub(crate) use inspect::{fits, is_irrelevant};
pub use memory::{Memory, linear_type, shown, token_limit};
pub use report::{Cost, Row, Stored, Tokens, Use, costs, peak, ranges, rows, stored, stored_type, totals};
pub use tensors::Tensors;

use expand::Expander;

/// What a plan is to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The head that the config's `architectures` ask for.
    Config,
    /// The head of this task.
    Task(String),
    /// The token vectors, whatever head the checkpoint has.
    Features,
}

impl Target {
    /// What a repository is asked for with the name of a task, `embed` for token vectors, or without one.
    pub fn of(repository: &Repository, task: Option<&str>) -> Target {
        match task {
            // A repository with a pipeline for sentences is there for their vectors.
            None if repository.has("modules.json") => Target::Features,
            None => Target::Config,
            Some("embed") => Target::Features,
            Some(task) => Target::Task(task.to_owned()),
        }
    }
}

/// A model that is checked in every respect but its numbers.
#[derive(Debug)]
pub struct Plan {
    /// Name of the description.
    pub name: String,
    /// The description.
    pub spec: Spec,
    /// The task of the head; none without a head.
    pub task: Option<String>,
    /// All values, in the order in which they can be computed.
    pub values: Vec<PlannedValue>,
    /// What is to be computed, by the names that transformers gives the outputs.
    pub outputs: Vec<(String, ValueId)>,
    /// The values whose layers the head calls something else than usual, each with that name for what they take.
    pub hidden_states: Vec<(ValueId, String)>,
    /// What the blocks need.
    pub declared: Declared,
    /// Where the tensors are stored.
    pub tensors: Tensors,
    /// The token that goes before the input to make the tokens of a decoder that is not given any.
    pub decoder_start: Option<u32>,
    /// How many tokens shorter texts are filled up to.
    pub pad_to: Option<usize>,
    /// What is known of each block, for reports.
    pub blocks: Vec<PlannedBlock>,
}

impl Plan {
    /// Plans a model.
    ///
    /// # Errors
    /// `Spec` if the description is wrong by itself, with what is wrong with the config, in one go; `Config` if only that is, and for
    /// everything that does not fit; `Unsupported` when the config says that the weights are quantised; then `Checkpoint` for everything
    /// that is wrong with the tensors.
    pub fn new(source: Source, config: &Config, index: &Index, target: &Target) -> Result<Plan> {
        let mut problems = Problems::default();
        let spec = parse(source, &mut problems);
        let kind = if problems.is_empty() { ErrorKind::Config } else { ErrorKind::Spec };
        let bound = config::bind(&spec, config, Some(index), &mut problems);
        // Of a model that the description is not for, nothing needs to be said of its heads.
        let head = if bound.matches { choose_head(&spec, config, target, &mut problems) } else { None };
        // What stands in the way of a plan may lie in either file; a mistake in the description comes first.
        problems.finish(kind)?;
        if let Some(problem) = config::quantised(config) {
            return Err(problem.into_error(ErrorKind::Unsupported));
        }

        let mut expander = expander(&spec, head, &bound, &mut problems);
        let (decoder_start, pad_to) = build(&spec, head, &mut expander);
        let (values, declared, blocks) = expander.finish();
        problems.finish(ErrorKind::Config)?;

        let elsewhere = elsewhere(&spec, head, &bound, false);
        let tensors = tensors::resolve(&spec, &declared, &elsewhere, &bound, index, &mut problems);
        let missing = problems.finish(ErrorKind::Checkpoint);
        if head.is_some_and(|head| head.task == "features") {
            // A base model is often stored without what only some of its outputs need.
            missing
                .map_err(|e| e.help("for vectors of texts or images alone, open it for the task `embed`"))?;
        } else {
            missing?;
        }

        let task = head.map(|head| head.task.clone());
        let outputs = head.map_or(&[][..], |head| &head.outputs);
        let named = outputs.iter().filter_map(|(name, output, _)| Some((name.clone(), output.clone()?)));
        let named: Vec<(String, String)> = named.collect();
        let mut plan = Plan {
            name: spec.source.name.clone(),
            task,
            outputs: Vec::new(),
            hidden_states: Vec::new(),
            values,
            declared,
            tensors,
            decoder_start,
            pad_to,
            spec,
            blocks,
        };
        plan.outputs = (0..plan.values.len())
            .filter(|i| !matches!(plan.values[*i].shape, Shape::Bias { .. }))
            .map(|i| (plan.output_name(ValueId(i)), ValueId(i)))
            .collect();
        let vectors = token_vectors(&plan.spec).filter(|_| plan.task.is_none());
        let vectors = vectors.map(|value| (value.to_owned(), TOKEN_VECTORS.to_owned()));
        for (value, output) in vectors.into_iter().chain(named) {
            plan.name_output(&value, output);
        }
        Ok(plan)
    }

    /// Calls a value, or what its layers take, by another name.
    fn name_output(&mut self, value: &str, output: String) {
        let Some(id) = self.values.iter().position(|v| v.name == value).map(ValueId) else { return };
        if output.ends_with(HIDDEN_STATES) {
            self.hidden_states.push((id, output));
            return;
        }
        for (name, other) in &mut self.outputs {
            if *other == id {
                name.clone_from(&output);
            } else if *name == output {
                name.clone_from(&self.values[other.0].name);
            }
        }
    }

    /// Whether some value is computed from what a decoder has written.
    pub fn has_decoder(&self) -> bool {
        self.values.iter().any(|value| stream_of(value.shape) == Some(Stream::Decoder))
    }

    /// The name that transformers gives a value: `hidden`, `encoder` and `pooled` have others there.
    fn output_name(&self, id: ValueId) -> String {
        match (self.values[id.0].name.as_str(), self.has_decoder()) {
            ("encoder", true) => "encoder_last_hidden_state",
            ("encoder", false) if self.values.iter().any(|value| value.name == "hidden") => "encoder",
            ("encoder", false) | ("hidden", _) => TOKEN_VECTORS,
            ("pooled", _) => "pooler_output",
            (name, _) => name,
        }
        .to_owned()
    }

    /// The name that transformers gives the inputs of a value's layers, if it has one.
    pub fn hidden_states_name(&self, id: ValueId) -> String {
        if let Some((_, name)) = self.hidden_states.iter().find(|(of, _)| *of == id) {
            return name.clone();
        }
        match (self.values[id.0].name.as_str(), self.has_decoder()) {
            ("encoder", true) => "encoder_hidden_states".into(),
            ("hidden", true) => "decoder_hidden_states".into(),
            ("encoder" | "hidden", false) => "hidden_states".into(),
            (name, _) => format!("{name}.hidden_states"),
        }
    }

    /// The streams that values are computed from.
    pub fn streams(&self, ids: &[ValueId]) -> BTreeSet<Stream> {
        ids.iter().flat_map(|id| &self.values[id.0].streams).copied().collect()
    }

    /// Whether a value is computed from this stream, and from no other.
    pub fn is_of(&self, id: ValueId, stream: Stream) -> bool {
        self.values[id.0].streams.iter().eq([&stream])
    }

    /// The output of that name.
    pub fn output(&self, name: &str) -> Option<ValueId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    /// The paths that the description may have for a module of that name in the reference implementation: renamed, with and
    /// without the prefixes of the weights.
    pub fn module_names(&self, name: &str) -> Vec<String> {
        tensors::bare_names(name, &self.spec.weights)
    }

    /// The last step of each output.
    pub fn ends(&self) -> Vec<(String, Address)> {
        let heads = self.spec.heads.iter().filter(|head| Some(&head.task) == self.task.as_ref());
        let values: Vec<_> = heads.flat_map(|head| &head.values).chain(&self.spec.values).collect();
        let end = |(name, id): &(String, ValueId)| {
            let value = values.iter().find(|value| value.name == self.values[id.0].name)?;
            Some((name.clone(), value.body.last()?.at.clone()))
        };
        self.outputs.iter().filter_map(end).collect()
    }

    /// Most tokens that a sequence of a stream can have.
    pub fn token_limit(&self, stream: Stream) -> Option<usize> {
        token_limit(&self.declared, stream).map(|(limit, _)| limit)
    }
}

pub(crate) fn stream_of(shape: Shape) -> Option<Stream> {
    match shape {
        Shape::Matrix { rows: Rows::Tokens(stream), .. } => Some(stream),
        _ => None,
    }
}

/// An expander that says where the values of names come from.
fn expander<'s>(
    spec: &'s Spec,
    head: Option<&'s Head>,
    bound: &config::Bound,
    problems: &'s mut Problems,
) -> Expander<'s, 's> {
    let mut builder = Builder::new(&spec.source, &spec.defaults, bound.scope.clone(), problems);
    builder.origins = bound.origins.clone();
    Expander::new(spec, head, builder)
}

/// Builds what a head asks for, or the model without one, and gives the token with which the head's decoder starts, and how many tokens
/// it wants of a text.
fn build<'s>(
    spec: &'s Spec,
    head: Option<&'s Head>,
    expander: &mut Expander<'s, '_>,
) -> (Option<u32>, Option<usize>) {
    if let Some(head) = head
        && expander.included(&head.when) == Some(false)
    {
        let at = head.when.as_ref().map_or_else(|| head.at.key(), |(_, at)| at.clone());
        expander.builder.problem(&at, format!("the config has no `{}`", head.task));
        return (None, None);
    }
    for (name, at) in targets(spec, head) {
        let built = expander.value(name, &at);
        let b = &mut expander.builder;
        debug_assert!(built.is_some() || !b.problems.is_empty(), "a value that cannot be built is a problem");
        if let (Some(head), Some((_, shape))) = (head, built) {
            check_rows(head, name, shape, &at, b);
        }
    }
    let b = &mut expander.builder;
    let mut number = |given: Option<&(Tree, Address)>, what: &str, least: u32| {
        let (tree, at) = given?;
        match b.evaluate(tree, at)? {
            Tree::Int(n) if u32::try_from(n).is_ok_and(|n| n >= least) => Some(n as u32),
            other => {
                b.wrong_value(at, format!("expected {what}, found `{other}`"));
                None
            }
        }
    };
    let decoder_start = number(head.and_then(|head| head.decoder_start.as_ref()), "a token id", 0);
    let pad_to = number(head.and_then(|head| head.pad_to.as_ref()), "a number of tokens from 1 on", 1);
    (decoder_start, pad_to.map(|n| n as usize))
}

/// Reports an output of a head that has other rows than its task wants: a missing `pool` would go unnoticed else.
fn check_rows(head: &Head, value: &str, shape: Shape, at: &Address, b: &mut Builder<'_>) {
    const PAIRS: &str = "image, with a column for each text";
    let named = head.outputs.iter().find(|(name, ..)| name == value);
    let output = named.and_then(|(_, output, _)| output.as_deref()).unwrap_or(value);
    let wanted = match (head.task.as_str(), output) {
        ("sequence_classification", "logits") | ("text_embedding", "text_embeds") => "sequence",
        ("image_classification", "logits") => "image",
        ("similarity", "logits_per_image") => PAIRS,
        (
            "token_classification" | "masked_lm" | "causal_lm" | "seq2seq_lm" | "speech_recognition",
            "logits",
        )
        | ("question_answering", "start_logits" | "end_logits") => "token",
        _ => return,
    };
    let found = match shape {
        Shape::Matrix { rows: Rows::Tokens(_), .. } => "token",
        Shape::Matrix { rows: Rows::Sequences(Stream::Images), .. } => "image",
        Shape::Matrix { rows: Rows::Sequences(_), .. } => "sequence",
        Shape::Matrix { rows: Rows::Fixed(..) | Rows::Patches(..), .. } => "patch or frame",
        Shape::Pairs { of: Stream::Images, with: Stream::Input } => PAIRS,
        _ => "something else",
    };
    if found != wanted {
        let task = &head.task;
        b.problem(
            &at.key(),
            format!("`{output}` of `{task}` needs a row for each {wanted}, and has one for each {found}"),
        );
    } else if head.task == "question_answering" && !matches!(shape, Shape::Matrix { cols: 1, .. }) {
        b.problem(&at.key(), format!("`{output}` needs one column"));
    }
}

/// Reads a description and reports everything that is wrong with it by itself.
fn parse(source: Source, problems: &mut Problems) -> Spec {
    let spec = Spec::parse(source, problems);
    check::check(&spec, problems);
    spec
}

/// Checks a description by itself: its syntax, blocks, fields and names.
///
/// # Errors
/// `Spec` for everything that is wrong with it.
pub fn check_spec(source: Source) -> Result<()> {
    let mut problems = Problems::default();
    parse(source, &mut problems);
    problems.finish(ErrorKind::Spec)
}

/// What to do about a description that has no heads.
const ADD_HEADS: &str = "add a section `heads`, such as `heads: {features: {match: CLASS, outputs: [hidden]}}`, or open it for the \
                         task `embed`, which needs none";

fn choose_head<'s>(
    spec: &'s Spec,
    config: &Config,
    target: &Target,
    problems: &mut Problems,
) -> Option<&'s Head> {
    if spec.heads.is_empty() && !problems.is_empty() {
        return None; // they could not be read
    }
    let tasks: Vec<&str> = spec.heads.iter().map(|head| head.task.as_str()).collect();
    match target {
        Target::Features => None,
        Target::Task(task) => {
            let found = spec.heads.iter().find(|head| head.task == *task);
            if found.is_none() {
                let message = format!("{} has no head for the task `{task}`", spec.source.name);
                let problem = problems.push(crate::error::Problem::new(message));
                let help = match closest(task, tasks.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if tasks.is_empty() => ADD_HEADS.to_owned(),
                    None => format!("expected one of {}", listed(&tasks)),
                };
                problem.remarks.push(Remark { tag: "help", text: help });
            }
            found
        }
        Target::Config => {
            let classes = config.texts("architectures").unwrap_or_default(); // what is wrong with them is reported
            let asked = |head: &&Head| head.classes.iter().any(|class| classes.contains(&class.as_str()));
            let found = spec.heads.iter().find(asked);
            if found.is_none() && !classes.is_empty() {
                let known: Vec<&str> =
                    spec.heads.iter().flat_map(|h| &h.classes).map(String::as_str).collect();
                let classes = classes.join("`, `");
                let message = match known.is_empty() {
                    true => format!("{} has no head for the class `{classes}`", spec.source.name),
                    false => format!("unsupported class `{classes}`: expected {}", listed(&known)),
                };
                let problem = problems.push(crate::error::Problem::new(message));
                let note = format!("`architectures` in {}", config.name());
                problem.remarks.push(Remark { tag: "note", text: note });
                let help = match tasks.is_empty() {
                    true => ADD_HEADS.to_owned(),
                    false => format!("name the task to use another head: one of {}", listed(&tasks)),
                };
                problem.remarks.push(Remark { tag: "help", text: help });
            }
            // A config without classes is that of a bare model.
            found.or_else(|| spec.heads.iter().find(|head| head.task == "features"))
        }
    }
}

/// The tensors that a description asks for under a config, of layers of one kind those of the first few: first those of the head
/// of that task, then those of the rest, and what is wrong with the description and the config; nothing that is stored is looked
/// at, so that what only some checkpoints have is among them.
pub(crate) fn declare(
    spec: &Spec,
    config: &Config,
    task: Option<&str>,
) -> (Vec<TensorUse>, usize, Vec<String>) {
    let mut problems = Problems::default();
    let bound = config::bind(spec, config, None, &mut problems);
    let head = spec.heads.iter().find(|head| Some(head.task.as_str()) == task);
    let mut expander = expander(spec, head, &bound, &mut problems);
    expander.few = true;
    for (name, at) in targets(spec, head) {
        expander.value(name, &at);
    }
    let mut tensors = expander.finish().1.tensors;
    let of_head = tensors.len();
    let known: std::collections::HashSet<String> = tensors.iter().map(|t| t.name.clone()).collect();
    tensors.extend(elsewhere(spec, head, &bound, true).into_iter().filter(|t| !known.contains(&t.name)));
    let messages = match problems.finish(ErrorKind::Config) {
        Ok(()) => Vec::new(),
        Err(error) => error.problems().iter().map(|p| p.message.clone()).collect(),
    };
    (tensors, of_head, messages)
}

/// The end of the names of what layers take.
const HIDDEN_STATES: &str = "hidden_states";

/// The name that transformers gives the vectors of all tokens.
const TOKEN_VECTORS: &str = "last_hidden_state";

/// The value that the head for features calls by that name.
fn token_vectors(spec: &Spec) -> Option<&str> {
    let head = spec.heads.iter().find(|head| head.task == "features")?;
    let is_named = |output: &&(String, Option<String>, Address)| output.1.as_deref() == Some(TOKEN_VECTORS);
    head.outputs.iter().find(is_named).map(|(value, ..)| value.as_str())
}

/// The names of the values that have to be built, each with the place that asks for it.
fn targets<'s>(spec: &'s Spec, head: Option<&'s Head>) -> Vec<(&'s str, Address)> {
    let Some(head) = head else {
        // Token vectors are those of the encoder, where there is one and nothing else is said.
        let names = token_vectors(spec).into_iter().chain(["encoder", "hidden"]);
        let mut named = names.filter_map(|name| spec.values.iter().find(|value| value.name == name));
        let value = named.next().or(spec.values.first());
        return value.map(|v| (v.name.as_str(), v.at.clone())).into_iter().collect();
    };
    let outputs = head.outputs.iter().map(|(name, _, at)| (name.as_str(), at.clone()));
    outputs.chain(head.values.iter().map(|v| (v.name.as_str(), v.at.clone()))).collect()
}

/// The tensors of all values and heads but the one that was asked for: a checkpoint may hold them. With `few`, of layers of one
/// kind those of the first few.
fn elsewhere(spec: &Spec, chosen: Option<&Head>, bound: &config::Bound, few: bool) -> Vec<TensorUse> {
    // Whatever keeps one of them from being built is of no concern here.
    let mut ignored = Problems::unseen();
    let builder = Builder::new(&spec.source, &spec.defaults, bound.scope.clone(), &mut ignored);
    let mut expander = Expander::new(spec, None, builder);
    expander.few = few;
    for value in &spec.values {
        expander.value(&value.name, &value.at);
    }
    for head in spec.heads.iter().filter(|head| chosen.is_none_or(|c| c.task != head.task)) {
        if expander.included(&head.when) == Some(false) {
            continue;
        }
        expander.turn_to(head);
        for (name, at) in targets(spec, Some(head)) {
            expander.value(name, &at);
        }
    }
    expander.finish().1.tensors
}

/// A description of an architecture that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arch {
    /// A YAML file, or the name of a built-in one, see [`load_source`].
    Named(String),
    /// The text of a YAML file.
    Yaml {
        /// What messages call it.
        name: String,
        /// Its text.
        text: String,
    },
}

impl Arch {
    /// The text of a YAML file, such as one that was compiled into the program (`include_str!`); `name` is what messages call it.
    pub fn yaml(name: impl Into<String>, text: impl Into<String>) -> Arch {
        Arch::Yaml { name: name.into(), text: text.into() }
    }
}

impl<N: Into<String>> From<N> for Arch {
    fn from(name: N) -> Arch {
        Arch::Named(name.into())
    }
}

/// The description that was asked for, else the built-in one that matches the config.
///
/// # Errors
/// As [`load_source`]; `Unsupported` when no built-in one matches.
pub fn source_for(asked: Option<&Arch>, config: &Config) -> Result<Source> {
    match asked {
        Some(Arch::Named(name)) => load_source(name),
        Some(Arch::Yaml { name, text }) => {
            check_size(name, text.as_bytes())?;
            Source::yaml(name, text)
        }
        None => builtin::find(config),
    }
}

/// Reads a description from a file, or a built-in one by its name.
///
/// # Errors
/// `Io` when it is neither, or cannot be read; `Spec` when it is larger than 1 MiB or no YAML.
pub fn load_source(name: &str) -> Result<Source> {
    let path = std::path::Path::new(name);
    // A directory may be that of a model, and have the name of its architecture.
    if !path.exists() || path.is_dir() {
        if let Some(text) = builtin::text(name) {
            return Source::yaml(name, text);
        }
        let error = Error::new(
            ErrorKind::Io,
            format!("no architecture `{name}`: neither a file nor a built-in name"),
        );
        let near = closest(name, builtin::names()).map(|near| format!("did you mean `{near}`?"));
        return Err(error.help(near.unwrap_or_else(|| format!("built in are {}", listed(&builtin::names())))));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, &e))?;
    // One byte more tells that there are too many; a pipe does not say how many it has.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, &e))?;
    check_size(name, &bytes)?;
    let text =
        String::from_utf8(bytes).map_err(|_| Error::io(path, &std::io::ErrorKind::InvalidData.into()))?;
    Source::yaml(name, text)
}

/// A description is a page; more is a mistake.
const MAX_BYTES: u64 = 1 << 20;

fn check_size(name: &str, bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 <= MAX_BYTES {
        return Ok(());
    }
    let message = format!("`{name}` has more bytes than the {MAX_BYTES} that an architecture may have");
    Err(Error::new(ErrorKind::Spec, message))
}
