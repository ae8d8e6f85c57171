//! Raw tensors: padded batches of ids in, padded outputs back, and comparison with a reference.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{Batch, Network, Output};
use crate::nn::{Rows, Stream, Tokens};
use crate::tensor::{Array, Tensor};

/// Tensors by their names, as files with inputs and reference outputs hold them.
///
/// Inputs are `input_ids`, `attention_mask` and `token_type_ids` of shape `[batch, seq]`, `decoder_input_ids` of shape
/// `[batch, decoder seq]`, `pixel_values` of shape `[batch, channels, height, width]` and `input_features` of shape
/// `[batch, bins, frames]`, with or without `input.` before their names. The mask must be ones followed by zeros.
#[derive(Debug)]
pub struct Bundle {
    pub(super) tensors: BTreeMap<String, Array>,
    pub(super) batch: Batch,
    /// Length of the padded rows of each stream.
    widths: [usize; 2],
}

/// How one output agrees with its reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The output.
    pub name: String,
    /// The largest absolute difference over the positions that are not masked; infinite when a value is not a number.
    pub largest: f32,
    /// The largest absolute value of the reference, padding included.
    pub magnitude: f32,
    /// Number of elements that were compared.
    pub elements: usize,
    /// How far the reference itself is from exact, where the file says so (`noise.…`), else 0.
    pub noise: f32,
    /// Of greedy tokens the first that is another.
    pub other_token: Option<OtherToken>,
}

/// A token that is not the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherToken {
    /// Its place among the new tokens, from 0.
    pub index: usize,
    /// The token, where there is one.
    pub found: Option<u32>,
    /// The reference's, where there is one.
    pub expected: Option<u32>,
}

/// The tolerance for values relative to their largest, as a part of the absolute one: it counts where values are beyond 100, of which
/// float32 leaves no more.
const RELATIVE: f32 = 1e-2;

/// Two computations may each be as far from exact as the reference is.
pub(super) const BOTH: f32 = 2.0;

impl Comparison {
    /// Whether it differs by no more than `tolerance`, a hundredth of that times the largest value, or twice the noise.
    pub fn agrees(&self, tolerance: f32) -> bool {
        self.largest <= tolerance.max(RELATIVE * tolerance * self.magnitude).max(BOTH * self.noise)
    }
}

/// A greedy continuation: the tokens, and the logits from which each was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Greedy {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// `[new tokens, vocab]`.
    pub logits: Tensor,
}

/// What a continuation begins with.
enum Prompt {
    Tokens(Vec<u32>),
    Audio(Array),
}

/// What to do where the model lacks an output.
const SKIP: &str = "`--skip NAME` leaves an output of the reference out";

/// Names of inputs that are understood.
const INPUTS: [&str; 6] =
    ["input_ids", "attention_mask", "token_type_ids", "decoder_input_ids", "pixel_values", "input_features"];

impl Bundle {
    /// Reads the inputs among `tensors`.
    ///
    /// # Errors
    /// `Input` when there is nothing to compute from, when an input is not understood, or when shapes, types or values do not fit.
    pub fn new(tensors: BTreeMap<String, Array>) -> Result<Bundle> {
        let mut inputs = BTreeMap::new();
        let mut batch = Batch::default();
        for (name, array) in &tensors {
            let bare = name.strip_prefix("input.").unwrap_or(name);
            if bare == "pixel_values" {
                batch.images = Some(numbers(name, array, 4)?);
            } else if bare == "input_features" {
                batch.audio = Some(numbers(name, array, 3)?);
            } else if INPUTS.contains(&bare) {
                inputs.insert(bare, Grid::read(name, array)?);
            } else if name.starts_with("input.") || !name.contains('.') {
                let message = format!("unknown input `{name}`: expected {}", crate::spec::listed(&INPUTS));
                return Err(input_error(message));
            }
        }
        let mut widths = [0, 0];
        if let Some(ids) = inputs.get("input_ids") {
            widths[0] = ids.cols;
            let lengths = match inputs.get("attention_mask") {
                Some(mask) => ids.masked_lengths(mask)?,
                None => vec![ids.cols; ids.rows],
            };
            for (i, len) in lengths.iter().enumerate() {
                batch.input.push(&ids.ids(i, *len)?, 0);
                if let Some(types) = inputs.get("token_type_ids") {
                    types.same_size(ids)?;
                    batch.input.type_ids.extend(types.ids(i, *len)?);
                }
            }
        } else if batch.is_empty() {
            return Err(input_error("no `input_ids`, `pixel_values` or `input_features`"));
        }
        if let Some(decoder) = inputs.get("decoder_input_ids") {
            widths[1] = decoder.cols;
            for i in 0..decoder.rows {
                batch.decoder.push(&decoder.ids(i, decoder.cols)?, 0);
            }
        }
        Ok(Bundle { batch, widths, tensors })
    }

    /// The sequences.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// An output as transformers would give it: `[batch, seq, cols]` with zeros at masked positions, or `[batch, cols]`.
    pub fn padded(&self, output: &Output) -> (Vec<usize>, Vec<f32>) {
        let shape = self.padded_shape(output);
        let Rows::Tokens(stream) = output.rows else { return (shape, output.value.data().to_vec()) };
        let ((tokens, width), cols) = (self.tokens(stream), output.value.cols());
        let mut padded = vec![0.0; tokens.spans.len() * width * cols];
        for (i, span) in tokens.spans.iter().enumerate() {
            let values = &output.value.data()[span.rows.start * cols..span.rows.end * cols];
            padded[i * width * cols..][..values.len()].copy_from_slice(values);
        }
        (shape, padded)
    }

    fn padded_shape(&self, output: &Output) -> Vec<usize> {
        let (rows, cols) = (output.value.rows(), output.value.cols());
        let stream = match output.rows {
            Rows::Tokens(stream) => stream,
            Rows::Fixed(..) | Rows::Patches(..) => {
                let items = output.rows.stream().map_or(0, |stream| self.batch.count(stream));
                return vec![items, rows / items.max(1), cols];
            }
            _ => return vec![rows, cols],
        };
        let (tokens, width) = self.tokens(stream);
        // transformers gives these without their last axis.
        if cols == 1 && ["start_logits", "end_logits"].contains(&output.name.as_str()) {
            return vec![tokens.spans.len(), width];
        }
        vec![tokens.spans.len(), width, cols]
    }

    /// Computes everything that the file has reference outputs for and compares.
    ///
    /// # Errors
    /// `Input` when the model lacks an output that the reference has, or gives it another shape; whatever
    /// [`Network::forward`] gives.
    pub fn compare(&self, network: &Network) -> Result<Vec<Comparison>> {
        let wanted: Vec<(&str, &Array)> =
            self.tensors.iter().filter_map(|(name, a)| Some((name.strip_prefix("output.")?, a))).collect();
        let is_state = |name: &str| name.contains("hidden_states.");
        let names: Vec<&str> = wanted.iter().map(|(name, _)| *name).filter(|name| !is_state(name)).collect();
        let hidden = wanted.iter().any(|(name, _)| is_state(name));
        let is_missing = |name: &&str| network.plan().output(name).is_none();
        let outputs = network.forward(&self.batch, &names, hidden);
        let outputs =
            outputs.map_err(|error| if names.iter().any(is_missing) { error.help(SKIP) } else { error })?;
        let mut comparisons = Vec::new();
        for (name, reference) in wanted {
            let Some(output) = outputs.iter().find(|output| output.name == name) else {
                return Err(input_error(format!(
                    "the reference has `{name}`, which the model does not compute"
                ))
                .help(SKIP));
            };
            let shape = self.padded_shape(output);
            // transformers leaves out the last axis of some outputs that have one column.
            let squeezed = shape.len() == 3 && shape[2] == 1 && *reference.shape() == shape[..2];
            if shape != reference.shape() && !squeezed {
                let message = format!("`{name}`: expected shape {:?}, found {shape:?}", reference.shape());
                return Err(input_error(message));
            }
            // Not before it is known that the file holds as much: a mask may leave few of many tokens.
            let (_, padded) = self.padded(output);
            comparisons.push(self.difference(output, &padded, &reference.to_f32()));
        }
        comparisons.sort_by_key(|c| order(&c.name));
        for (i, prompt, tokens, logits) in self.prompts()? {
            let greedy = self.greedy_of(network, &prompt, tokens.len())?;
            let other_token = other_token(&greedy.tokens, &tokens);
            comparisons.push(Comparison {
                name: format!("generate.{i}.tokens"),
                largest: if other_token.is_some() { f32::INFINITY } else { 0.0 },
                magnitude: 0.0,
                elements: tokens.len(),
                noise: 0.0,
                other_token,
            });
            let name = format!("generate.{i}.logits");
            comparisons.push(Comparison {
                largest: largest(greedy.logits.data(), &logits),
                magnitude: magnitude(&logits),
                elements: logits.len(),
                noise: self.noise(&name),
                other_token: None,
                name,
            });
        }
        Ok(comparisons)
    }

    /// Continues each sequence greedily by `steps` tokens, none of which ends it. Encoder-decoders begin with the first of
    /// the `decoder_input_ids`.
    ///
    /// # Errors
    /// Those of [`Session`](crate::model::Session); `Input` when there is nothing to go on from, or an encoder-decoder has no
    /// `decoder_input_ids`.
    pub fn greedy(&self, network: &Network, steps: usize) -> Result<Vec<Greedy>> {
        let input = &self.batch.input;
        let prompt = |i: usize| match &self.batch.audio {
            Some(audio) => Prompt::Audio(audio.items(&[i])),
            None => Prompt::Tokens(input.ids[input.spans[i].rows.clone()].to_vec()),
        };
        let count = self.batch.audio.as_ref().map_or(input.spans.len(), |audio| audio.shape()[0]);
        if count == 0 {
            return Err(input_error("no `input_ids` or `input_features` to go on from"));
        }
        // One by one: a file can have any number of sounds without a frame.
        (0..count).map(|i| self.greedy_of(network, &prompt(i), steps)).collect()
    }

    fn greedy_of(&self, network: &Network, prompt: &Prompt, steps: usize) -> Result<Greedy> {
        let mut session = network.session(1);
        let mut next = Vec::new();
        match prompt {
            Prompt::Audio(audio) => session.encode_audio(audio.clone())?,
            Prompt::Tokens(ids) if network.plan().has_decoder() => session.encode(&[ids])?,
            Prompt::Tokens(ids) => next.clone_from(ids),
        }
        if network.plan().has_decoder() {
            let start = self.batch.decoder.ids.first();
            next = vec![*start.ok_or_else(|| input_error("no `decoder_input_ids` to begin with"))?];
        }
        let mut greedy = Greedy { tokens: Vec::new(), logits: Tensor::default() };
        let mut logits = Vec::new();
        for _ in 0..steps {
            let step = session.step(&[&next], "logits")?;
            let best = crate::generate::argmax(step.row(0));
            greedy.tokens.push(best);
            logits.extend_from_slice(step.row(0));
            next = vec![best];
        }
        let cols = logits.len() / steps.max(1);
        greedy.logits = Tensor::from_vec(steps, cols, logits);
        Ok(greedy)
    }

    /// The prompts of the reference with their tokens and logits.
    #[allow(clippy::type_complexity)] // a row of the file, taken apart where it is used
    fn prompts(&self) -> Result<Vec<(usize, Prompt, Vec<u32>, Vec<f32>)>> {
        let number = |name: &String| name.strip_prefix("generate.")?.strip_suffix(".tokens")?.parse().ok();
        let mut numbers: Vec<usize> = self.tensors.keys().filter_map(number).collect();
        numbers.sort_unstable();
        let mut prompts = Vec::new();
        for i in numbers {
            let part = |what: &str| self.tensors.get(&format!("generate.{i}.{what}"));
            let (Some(tokens), Some(logits)) = (part("tokens"), part("logits")) else { continue };
            let prompt = match (part("prompt"), &self.batch.audio) {
                (Some(ids), _) => Prompt::Tokens(to_ids("prompt", ids)?),
                (None, Some(audio)) if i < audio.shape()[0] => Prompt::Audio(audio.items(&[i])),
                _ => continue,
            };
            prompts.push((i, prompt, to_ids("tokens", tokens)?, logits.to_f32()));
        }
        Ok(prompts)
    }

    /// Tokens with where they lie, and how long their rows are in the file. A decoder that is given none has those of the input.
    pub(super) fn tokens(&self, stream: Stream) -> (&Tokens, usize) {
        match stream {
            Stream::Decoder if !self.batch.decoder.spans.is_empty() => (&self.batch.decoder, self.widths[1]),
            _ => (&self.batch.input, self.widths[0]),
        }
    }

    /// How far a tensor of the reference is from exact, as far as the file says.
    pub(super) fn noise(&self, tensor: &str) -> f32 {
        let stored = self.tensors.get(&format!("noise.{tensor}"));
        stored.map_or(0.0, |noise| magnitude(&noise.to_f32()))
    }

    /// Whether the file says how far the reference is from exact.
    pub fn has_noise(&self) -> bool {
        self.tensors.keys().any(|name| name.starts_with("noise."))
    }

    fn difference(&self, output: &Output, found: &[f32], reference: &[f32]) -> Comparison {
        let name = output.name.clone();
        let mut comparison = Comparison {
            largest: 0.0,
            magnitude: magnitude(reference),
            elements: output.value.data().len(),
            noise: self.noise(&format!("output.{name}")),
            other_token: None,
            name,
        };
        let Rows::Tokens(stream) = output.rows else {
            return Comparison { largest: largest(found, reference), ..comparison };
        };
        let (tokens, width) = self.tokens(stream);
        let row = width * output.value.cols();
        for (i, span) in tokens.spans.iter().enumerate() {
            let range = i * row..i * row + span.rows.len() * output.value.cols();
            comparison.largest = comparison.largest.max(largest(&found[range.clone()], &reference[range]));
        }
        comparison
    }
}

fn other_token(found: &[u32], expected: &[u32]) -> Option<OtherToken> {
    let (a, b) = (|i: usize| found.get(i).copied(), |i: usize| expected.get(i).copied());
    let index = (0..found.len().max(expected.len())).find(|i| a(*i) != b(*i))?;
    Some(OtherToken { index, found: a(index), expected: b(index) })
}

/// Numbers of so many axes.
fn numbers(name: &str, array: &Array, axes: usize) -> Result<Array> {
    if array.shape().len() != axes || array.to_i64().is_some() {
        let (shape, dtype) = (array.shape(), array.dtype());
        let message = format!("expected numbers of {axes} axes in `{name}`, found {dtype} {shape:?}");
        return Err(input_error(message));
    }
    Ok(array.clone())
}

pub(super) fn magnitude(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |a, b| b.abs().max(a))
}

pub(super) fn largest(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    let difference =
        |(a, b): (&f32, &f32)| if a.is_nan() || b.is_nan() { f32::INFINITY } else { (a - b).abs() };
    a.iter().zip(b).map(difference).fold(0.0, f32::max)
}

/// Layers in the order of their numbers, before the results.
fn order(name: &str) -> (bool, String, usize) {
    match name.rsplit_once('.') {
        Some((stem, n)) => (false, stem.to_owned(), n.parse().unwrap_or(0)),
        None => (true, name.to_owned(), 0),
    }
}

fn input_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Input, message)
}

fn to_ids(name: &str, array: &Array) -> Result<Vec<u32>> {
    let ids = array
        .to_i64()
        .ok_or_else(|| input_error(format!("expected integers in `{name}`, found {}", array.dtype())))?;
    ids.into_iter()
        .map(|id| {
            u32::try_from(id).map_err(|_| input_error(format!("`{name}` holds {id}, which is not an id")))
        })
        .collect()
}

/// Integers in rows.
struct Grid {
    name: String,
    rows: usize,
    cols: usize,
    values: Vec<i64>,
}

impl Grid {
    fn read(name: &str, array: &Array) -> Result<Grid> {
        let [rows, cols] = *array.shape() else {
            let message = format!("expected `{name}` of shape [batch, seq], found {:?}", array.shape());
            return Err(input_error(message));
        };
        if rows == 0 || cols == 0 {
            return Err(input_error(format!(
                "expected at least one token in `{name}`, found {:?}",
                [rows, cols]
            )));
        }
        let values = array
            .to_i64()
            .ok_or_else(|| input_error(format!("expected integers in `{name}`, found {}", array.dtype())))?;
        Ok(Grid { name: name.to_owned(), rows, cols, values })
    }

    fn ids(&self, row: usize, len: usize) -> Result<Vec<u32>> {
        let values = &self.values[row * self.cols..row * self.cols + len];
        let id = |id: &i64| {
            u32::try_from(*id)
                .map_err(|_| input_error(format!("`{}` holds {id}, which is not an id", self.name)))
        };
        values.iter().map(id).collect()
    }

    fn same_size(&self, other: &Grid) -> Result<()> {
        if (self.rows, self.cols) == (other.rows, other.cols) {
            return Ok(());
        }
        let message = format!(
            "expected `{}` of shape [{}, {}] as `{}`, found [{}, {}]",
            self.name, other.rows, other.cols, other.name, self.rows, self.cols
        );
        Err(input_error(message))
    }

    /// How many positions of each row a mask leaves.
    fn masked_lengths(&self, mask: &Grid) -> Result<Vec<usize>> {
        mask.same_size(self)?;
        let rows = if self.cols == 0 { Vec::new() } else { mask.values.chunks(self.cols).collect() };
        rows.into_iter()
            .map(|row| {
                let ones = row.iter().take_while(|x| **x == 1).count();
                if row[ones..].iter().all(|x| *x == 0) {
                    Ok(ones)
                } else {
                    let message = format!("`{}` is not ones followed by zeros", mask.name);
                    Err(input_error(message).help("pad on the right"))
                }
            })
            .collect()
    }
}
