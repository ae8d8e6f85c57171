//! A loaded model: runs a plan on its weights, and keeps what sequences leave behind for their next tokens.
//!
//! [`Network`] is the thing; [`Network::forward`] computes a batch at once, a [`Session`] goes on with it.

#![forbid(unsafe_code)]

mod load;
mod machine;
mod session;
mod trace;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::backend::{Backend, Span, WeightType};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{IdsUse, Inputs, Parameters, Rows, Run, SequenceState, Shape, Stream, Tokens, ValueId};
use crate::plan::{Memory, Plan};
use crate::tensor::{Array, Buffers, Spare, Tensor};
pub use load::LoadOptions;
pub use session::Session;
pub use trace::ModuleCall;

/// A plan with its weights, ready to compute. Any number of threads may use one network at once.
#[derive(Debug)]
pub struct Network {
    plan: Plan,
    parameters: Parameters,
    backend: Arc<dyn Backend>,
    memory: Memory,
    memory_limit: u64,
    /// Buffers of earlier passes, one set per pass that ran at the same time.
    buffers: Spare<Buffers>,
}

/// What a network computes from.
pub type Batch = Inputs;

/// A named result.
#[derive(Clone, Debug)]
pub struct Output {
    /// The name that transformers gives it.
    pub name: String,
    /// Whose rows the matrix has.
    pub rows: Rows,
    /// The result.
    pub value: Arc<Tensor>,
}

impl Network {
    /// What is computed, and how.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The backend.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// How the weights of linear maps are kept; none if not all in the same way.
    pub fn weight_type(&self) -> Option<WeightType> {
        let (first, rest) = self.parameters.linears.split_first()?;
        rest.iter().all(|linear| linear.kept == first.kept).then_some(first.kept)
    }

    /// Number of token ids: rows of the embedding of tokens.
    pub fn vocab(&self) -> Option<usize> {
        self.plan.declared.ids.iter().rfind(|ids| !ids.types).map(|ids| ids.below)
    }

    /// Whether it looks at the type ids of a stream's tokens.
    pub fn reads_types(&self, stream: Stream) -> bool {
        self.plan.declared.ids.iter().any(|ids| ids.types && ids.stream == stream)
    }

    /// What it needs.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Computes the outputs named in `wanted` (all of the plan's without names) for a batch. With `hidden_states`, the
    /// inputs of all layers and the end of the stack as well, named `hidden_states.0`, `hidden_states.1` and so on. Outputs come
    /// in the order of the plan. Streams that these outputs are not computed from need not be given, and are not looked at.
    ///
    /// # Errors
    /// `Input` for ids out of range, type ids that the model does not read, sequences that are empty, too long or go on from others
    /// ([`Span::past`]; that is for a [`Session`]), and names that the plan lacks; `Limit` when the batch needs too much memory; `Checkpoint` when a result is infinite or no number.
    pub fn forward(&self, batch: &Batch, wanted: &[&str], hidden_states: bool) -> Result<Vec<Output>> {
        let ids = self.ids_of(wanted)?;
        let batch = &*self.checked(batch, &self.plan.streams(&ids))?;
        let at_once = self.backend.rows_at_once();
        let tokens = batch.input.ids.len() + batch.decoder.ids.len();
        let hidden = if hidden_states { self.hidden_bytes(batch) } else { 0 };
        if tokens <= at_once || batch.len() < 2 || !self.is_separable(batch, &ids) {
            self.check_memory(batch, hidden)?;
            return self.forward_at_once(batch, &ids, hidden_states, &[]);
        }
        let groups = batch.groups(at_once);
        let bytes = ids.iter().map(|id| bytes(batch, self.plan.values[id.0].shape));
        let results = bytes.fold(hidden, u64::saturating_add);
        groups.iter().try_for_each(|group| self.check_memory(group, results))?;
        // Outputs of the whole batch, and how many of their elements are there.
        let mut joined: Vec<(Output, Tensor, usize)> = Vec::new();
        for group in groups {
            for output in self.forward_at_once(&group, &ids, hidden_states, &[])? {
                let at = joined.iter().position(|(of, ..)| of.name == output.name).unwrap_or(joined.len());
                if at == joined.len() {
                    let all = Tensor::zeros(batch.rows(output.rows), output.value.cols());
                    joined.push((Output { value: Arc::default(), ..output.clone() }, all, 0));
                }
                let (_, all, done) = &mut joined[at];
                let part = output.value.data();
                all.data_mut()[*done..*done + part.len()].copy_from_slice(part);
                *done += part.len();
            }
        }
        Ok(joined.into_iter().map(|(output, all, _)| Output { value: Arc::new(all), ..output }).collect())
    }

    /// As [`forward`](Self::forward), for a batch of which some values are `known`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub(crate) fn forward_from(
        &self,
        batch: &Batch,
        wanted: &[&str],
        known: &[(ValueId, Arc<Tensor>)],
    ) -> Result<Vec<Output>> {
        let ids = self.ids_of(wanted)?;
        let batch = &*self.checked(batch, &self.plan.streams(&ids))?;
        self.check_memory(batch, 0)?;
        self.forward_at_once(batch, &ids, false, known)
    }

    /// Bytes of the hidden states of a batch: the input of each layer, and the end of the stack.
    fn hidden_bytes(&self, batch: &Batch) -> u64 {
        let stacks = self.plan.values.iter().filter(|value| value.body.layers() > 0);
        stacks.fold(0, |sum, stack| {
            let states = stack.body.layers() as u64 + 1;
            bytes(batch, stack.shape).saturating_mul(states).saturating_add(sum)
        })
    }

    /// Whether sequences can be computed in groups: all that is given and wanted belongs to one of them.
    fn is_separable(&self, batch: &Batch, ids: &[ValueId]) -> bool {
        let of_sequences = |id: &ValueId| {
            let shape = &self.plan.values[id.0].shape;
            matches!(shape, Shape::Matrix { rows: Rows::Tokens(_) | Rows::Sequences(_), .. })
        };
        batch.images.is_none() && batch.audio.is_none() && ids.iter().all(of_sequences)
    }

    /// The outputs of a batch that has been checked, and the hidden states.
    fn forward_at_once(
        &self,
        batch: &Batch,
        ids: &[ValueId],
        hidden_states: bool,
        known: &[(ValueId, Arc<Tensor>)],
    ) -> Result<Vec<Output>> {
        let mut states = self.new_states(batch.len());
        self.pass(batch, &mut states, |run| {
            for (id, value) in known {
                run.computed[id.0] = Some(value.clone());
            }
            if hidden_states {
                run.hidden_states = Some(Default::default());
            }
            let mut outputs = Vec::new();
            for id in ids {
                run.value(*id)?;
            }
            for (name, id) in &self.plan.outputs {
                if let Some(value) = run.computed[id.0].clone().filter(|_| ids.contains(id)) {
                    // What leaves takes no memory along that the next pass has a use for.
                    let value = if value.is_in_larger_memory() { Arc::new((*value).clone()) } else { value };
                    outputs.push(Output { name: name.clone(), rows: self.rows(*id), value });
                }
            }
            for (id, states) in run.hidden_states.take().unwrap_or_default() {
                let name = self.plan.hidden_states_name(id);
                let rows = self.rows(id);
                outputs.extend(states.into_iter().enumerate().map(|(i, value)| Output {
                    name: format!("{name}.{i}"),
                    rows,
                    value: Arc::new(value),
                }));
            }
            outputs.iter().try_for_each(|output| numbers(&output.name, &output.value))?;
            Ok(outputs)
        })
    }

    /// A batch that can be computed: what these streams are given, with the tokens of a decoder that was given none.
    fn checked<'b>(&self, batch: &'b Batch, streams: &BTreeSet<Stream>) -> Result<Cow<'b, Batch>> {
        let batch = batch.only(streams);
        let is_decoded = streams.contains(&Stream::Decoder);
        let batch = match self.plan.decoder_start {
            Some(start) if is_decoded && batch.decoder.spans.is_empty() => {
                // The input, one token later.
                let mut decoder = Tokens::default();
                for span in &batch.input.spans {
                    // Sequences that are not there are found below.
                    if let Some([ids @ .., _]) = batch.input.ids.get(span.rows.clone()) {
                        decoder.push(&[&[start], ids].concat(), 0);
                    }
                }
                Cow::Owned(Inputs { decoder, ..batch.into_owned() })
            }
            _ => batch,
        };
        for stream in streams {
            let spans = batch.tokens(*stream).map_or(&[][..], |tokens| &tokens.spans);
            if let Some(span) = spans.iter().find(|span| span.past > 0) {
                let message = format!(
                    "expected sequences from their first token on, found one with {} before",
                    span.past
                );
                return Err(Error::new(ErrorKind::Input, message).help("a session goes on with sequences"));
            }
            self.check(&batch, *stream)?;
        }
        let read = streams.iter().find(|stream| **stream != Stream::Decoder);
        let (expected, found) = (read.map(|stream| batch.count(*stream)), batch.decoder.spans.len());
        if is_decoded && expected.is_some_and(|expected| expected != found) {
            let message = format!(
                "expected decoder tokens for {} sequences, found {found}",
                expected.unwrap_or_default()
            );
            return Err(Error::new(ErrorKind::Input, message));
        }
        Ok(batch)
    }

    /// An error if a batch that is computed at once needs too much memory, with that of the `results` of others.
    fn check_memory(&self, batch: &Batch, results: u64) -> Result<()> {
        let items = [Stream::Images, Stream::Audio].map(|stream| {
            let rows = self.plan.values.iter().filter_map(|value| match value.shape {
                Shape::Matrix { rows, .. } if rows.stream() == Some(stream) => Some(rows),
                _ => None,
            });
            batch.spans(rows.max_by_key(|rows| batch.rows(*rows)).unwrap_or(Rows::Sequences(stream)))
        });
        let tokens = [&batch.input.spans, &batch.decoder.spans];
        let spans = tokens.into_iter().flatten().chain(items.iter().flat_map(|spans| spans.iter()));
        self.memory.check_batch(spans, results, self.memory_limit)
    }

    /// Begins sequences that tokens can be added to.
    ///
    /// # Panics
    /// If there is no memory for so many.
    pub fn session(&self, sequences: usize) -> Session<'_> {
        Session::new(self, sequences)
    }

    fn ids_of(&self, wanted: &[&str]) -> Result<Vec<ValueId>> {
        if wanted.is_empty() {
            return Ok(self.plan.outputs.iter().map(|(_, id)| *id).collect());
        }
        wanted
            .iter()
            .map(|name| {
                self.plan.output(name).ok_or_else(|| {
                    let known: Vec<&str> = self.plan.outputs.iter().map(|(name, _)| name.as_str()).collect();
                    let message = format!("no output `{name}`: expected {}", crate::spec::listed(&known));
                    Error::new(ErrorKind::Input, message)
                })
            })
            .collect()
    }

    fn rows(&self, id: ValueId) -> Rows {
        match self.plan.values[id.0].shape {
            Shape::Matrix { rows, .. } => rows,
            Shape::Pairs { of, .. } => Rows::Sequences(of),
            Shape::Bias { .. } => Rows::Learned(0), // has no rows, and is never asked for any
        }
    }

    fn new_states(&self, n: usize) -> Vec<SequenceState> {
        let compute = self.backend.compute();
        (0..n).map(|_| SequenceState::new(&self.plan.declared, compute)).collect()
    }

    /// Checks what a stream is given.
    fn check(&self, inputs: &Inputs, stream: Stream) -> Result<()> {
        match inputs.tokens(stream) {
            Some(tokens) => self.check_tokens(tokens, stream),
            None => self.check_items(inputs.items(stream), stream),
        }
    }

    /// Checks the sizes of the items of a stream of numbers.
    fn check_items(&self, items: Option<&Array>, stream: Stream) -> Result<()> {
        let name = if stream == Stream::Images { "images" } else { "spectra" };
        let expected = self.plan.declared.items.iter().find(|items| items.stream == stream);
        let found = items.map_or(&[][..], |items| items.shape());
        match expected {
            Some(expected) if found.len() < 2 || found[0] == 0 || !expected.takes(&found[1..]) => {
                let message = format!("expected {name} of {expected}, one or more, found {found:?}");
                Err(Error::new(ErrorKind::Input, message))
            }
            _ => Ok(()),
        }
    }

    /// Checks the sequences of a stream: their lengths and their ids.
    fn check_tokens(&self, tokens: &Tokens, stream: Stream) -> Result<()> {
        if tokens.spans.is_empty() {
            let what = if stream == Stream::Decoder { "the decoder's input" } else { "the input" };
            let message = format!("expected at least one sequence in {what}, found none");
            return Err(Error::new(ErrorKind::Input, message));
        }
        if !tokens.type_ids.is_empty() && tokens.type_ids.len() != tokens.ids.len() {
            let (expected, found) = (tokens.ids.len(), tokens.type_ids.len());
            let message = format!("expected {expected} `type_ids`, one per token, or none, found {found}");
            return Err(Error::new(ErrorKind::Input, message));
        }
        if !self.reads_types(stream) && tokens.type_ids.iter().any(|id| *id != 0) {
            let message = "this model reads no `type_ids`: expected none, or zeros";
            return Err(Error::new(ErrorKind::Input, message));
        }
        let held = tokens.spans.iter().map(|span| span.rows.len()).sum::<usize>();
        if !Span::are_in_order(&tokens.spans, tokens.ids.len()) || held != tokens.ids.len() {
            let message =
                format!("expected sequences end to end in {} tokens, found others", tokens.ids.len());
            return Err(Error::new(ErrorKind::Input, message));
        }
        let limit = crate::plan::token_limit(&self.plan.declared, stream);
        for span in &tokens.spans {
            let len = span.past + span.rows.len();
            if span.rows.is_empty() {
                return Err(Error::new(
                    ErrorKind::Input,
                    "expected at least one token in each sequence, found none",
                ));
            }
            if let Some((limit, why)) = limit
                && len > limit
            {
                let message = format!("expected at most {limit} tokens in a sequence ({why}), found {len}");
                return Err(Error::new(ErrorKind::Input, message));
            }
        }
        for IdsUse { types, name, below, .. } in
            self.plan.declared.ids.iter().filter(|ids| ids.stream == stream)
        {
            let mut ids = if *types { &tokens.type_ids } else { &tokens.ids }.iter();
            if let Some(found) = ids.find(|id| **id as usize >= *below) {
                let message = format!("`{name}` out of range: expected below {below}, found {found}");
                return Err(Error::new(ErrorKind::Input, message));
            }
        }
        Ok(())
    }

    /// Runs one pass with buffers of an earlier one.
    fn pass<T>(
        &self,
        inputs: &Inputs,
        states: &mut [SequenceState],
        compute: impl FnOnce(&mut Run<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut buffers = self.buffers.take();
        let plan = &self.plan;
        states.iter_mut().for_each(|state| state.begin(&plan.declared));
        let mut run = Run::new(
            &*self.backend,
            &self.parameters,
            &plan.values,
            &plan.declared.ropes,
            inputs,
            states,
            &mut buffers,
        );
        let result = compute(&mut run);
        let computed = std::mem::take(&mut run.computed);
        for value in computed.into_iter().flatten() {
            if let Ok(value) = Arc::try_unwrap(value) {
                buffers.give(value);
            }
        }
        self.buffers.give(buffers);
        result
    }
}

/// Bytes of a matrix of this shape.
fn bytes(batch: &Batch, shape: Shape) -> u64 {
    match shape {
        Shape::Matrix { rows, cols } => 4 * (batch.rows(rows) as u64).saturating_mul(cols as u64),
        _ => 0,
    }
}

/// An error if some element is infinite or no number.
fn numbers(name: &str, value: &Tensor) -> Result<()> {
    if !value.is_below_infinity() {
        let message = format!("the model's `{name}` is not a finite number");
        return Err(Error::new(ErrorKind::Checkpoint, message)
            .help("a weight is not a number, or too large for the type it is kept in"));
    }
    Ok(())
}
