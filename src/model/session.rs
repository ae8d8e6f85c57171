use std::sync::Arc;

use super::{Network, numbers};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Inputs, Rows, SequenceState, Stream, Tokens};
use crate::tensor::{Array, Tensor};

/// Sequences under way: tokens are added, and keys and values of earlier ones are kept.
///
/// What a step gives for a sequence has the same bits whether its tokens came at once or one by one, and whatever other
/// sequences there are.
#[derive(Debug)]
pub struct Session<'n> {
    network: &'n Network,
    states: Vec<SequenceState>,
    lengths: Vec<usize>,
    /// What an encoder reads; set once, and forgotten when it has read it.
    encoder: Option<Inputs>,
    encoded: bool,
    /// Whether a step failed after it had begun: some layers may have taken its tokens in, others not.
    broken: bool,
}

impl<'n> Session<'n> {
    pub(super) fn new(network: &'n Network, sequences: usize) -> Self {
        let states = network.new_states(sequences);
        Session { network, states, lengths: vec![0; sequences], encoder: None, encoded: false, broken: false }
    }

    /// Gives the encoder of an encoder-decoder its tokens, one list per sequence, before the first step.
    ///
    /// # Errors
    /// `Input` when the model is no encoder-decoder of texts, when there are not as many lists as sequences, when there was a step
    /// already, or when tokens do not fit the model, as in [`Network::forward`]; `Limit` when they need too much memory.
    pub fn encode(&mut self, sequences: &[&[u32]]) -> Result<()> {
        let input = Tokens::of(sequences.iter().copied());
        self.encode_inputs(Inputs { input, ..Inputs::default() }, Stream::Input)
    }

    /// Gives the encoder of an encoder-decoder spectra, one per sequence, before the first step: `[sequences, bins, frames]`.
    ///
    /// # Errors
    /// `Input` when the model is no encoder-decoder of sounds, when there are not as many spectra as sequences, when there was a step
    /// already, or when their shape is another than the model's; `Limit` when they need too much memory.
    pub fn encode_audio(&mut self, spectra: Array) -> Result<()> {
        self.encode_inputs(Inputs { audio: Some(spectra), ..Inputs::default() }, Stream::Audio)
    }

    fn encode_inputs(&mut self, inputs: Inputs, stream: Stream) -> Result<()> {
        let network = self.network;
        let reads = network.plan.declared.streams.contains(&stream);
        if !network.plan.has_decoder() || !reads || inputs.len() != self.states.len() {
            return Err(Error::new(
                ErrorKind::Input,
                "expected one encoder input per sequence of an encoder-decoder",
            ));
        }
        if self.lengths.iter().any(|length| *length > 0) {
            let message = "the decoder has read what the encoder was given before";
            return Err(Error::new(ErrorKind::Input, message).help("begin another session"));
        }
        network.check(&inputs, stream)?;
        network.check_memory(&inputs, 0)?;
        self.encoder = Some(inputs);
        self.encoded = true;
        Ok(())
    }

    /// Says how many tokens each sequence will come to, at most: keys and values of earlier ones have to be moved less often then.
    pub fn expect(&mut self, tokens: usize) {
        let plan = &self.network.plan;
        let stream = if plan.has_decoder() { Stream::Decoder } else { Stream::Input };
        let tokens = tokens.min(plan.token_limit(stream).unwrap_or(usize::MAX));
        let uses = || plan.declared.caches.iter().filter(|cache| cache.kept);
        for state in &mut self.states {
            let grow = state.caches.iter_mut().zip(uses()).filter(|(_, of)| of.rows == Rows::Tokens(stream));
            grow.for_each(|(cache, _)| cache.expect(tokens));
        }
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether there are no sequences.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Number of tokens that a sequence has.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn length(&self, sequence: usize) -> usize {
        self.lengths[sequence]
    }

    /// Adds tokens, one list per sequence, none of them empty, and gives the output `wanted` for the last token of each:
    /// `[sequences, cols]`.
    ///
    /// # Errors
    /// `Input` when there is no such output, when it has no row for each of these tokens, when the model cannot be given tokens one by
    /// one, when its encoder has read nothing, or when the tokens do not fit the model; `Limit` when they need too much memory;
    /// `Checkpoint` when a result is infinite or no number. After an error of the model itself the session takes no more tokens.
    pub fn step(&mut self, tokens: &[&[u32]], wanted: &str) -> Result<Tensor> {
        let network = self.network;
        if tokens.len() != self.states.len() {
            let message =
                format!("expected tokens for {} sequences, found {}", self.states.len(), tokens.len());
            return Err(Error::new(ErrorKind::Input, message));
        }
        let id = network.ids_of(&[wanted])?[0];
        let stream = if network.plan.has_decoder() { Stream::Decoder } else { Stream::Input };
        if network.rows(id) != Rows::Tokens(stream) {
            let message = format!("`{wanted}` has no row for each token");
            return Err(Error::new(ErrorKind::Input, message));
        }
        if network.plan.declared.caches.iter().any(|cache| !cache.kept && cache.rows.stream() == Some(stream))
        {
            let message = "this model cannot be given tokens one by one: its attention is not causal";
            return Err(Error::new(ErrorKind::Input, message));
        }
        if stream == Stream::Decoder && !self.encoded {
            return Err(
                Error::new(ErrorKind::Input, "the encoder has read nothing").help("call `encode` first")
            );
        }
        if self.broken {
            let message = "an earlier step failed on its way";
            return Err(Error::new(ErrorKind::Input, message).help("begin another session"));
        }
        let mut new = Tokens::default();
        for (ids, past) in tokens.iter().zip(&self.lengths) {
            new.push(ids, *past);
        }
        network.check_tokens(&new, stream)?;
        network.memory.check_batch(new.spans.iter(), 0, network.memory_limit)?;
        let last: Vec<usize> = new.spans.iter().map(|span| span.rows.end - 1).collect();
        let inputs = match stream {
            // What the encoder has read lies in the caches after the first step.
            Stream::Decoder => Inputs { decoder: new, ..self.encoder.take().unwrap_or_default() },
            _ => Inputs { input: new, ..Inputs::default() },
        };
        let row_wise = network.plan.values[id.0].body.is_row_wise();
        self.broken = true;
        let out = network.pass(&inputs, &mut self.states, |run| {
            if row_wise {
                run.only_rows = Some((id, last.clone()));
            }
            let value = run.value(id)?;
            if row_wise {
                run.computed[id.0] = None;
                return Ok(Arc::unwrap_or_clone(value));
            }
            let mut out = run.take(last.len(), value.cols());
            for (i, row) in last.iter().enumerate() {
                out.row_mut(i).copy_from_slice(value.row(*row));
            }
            Ok(out)
        })?;
        numbers(wanted, &out)?;
        self.broken = false;
        for (length, ids) in self.lengths.iter_mut().zip(tokens) {
            *length += ids.len();
        }
        Ok(out)
    }

    /// Gives the memory of a result back, for later steps: that is faster than having the system find some for each.
    pub fn give(&self, result: Tensor) {
        let mut buffers = self.network.buffers.take();
        buffers.give(result);
        self.network.buffers.give(buffers);
    }

    /// Forgets sequences: keeps only those for which `keep` holds, in order.
    ///
    /// # Panics
    /// If there are not as many as sequences.
    pub fn retain(&mut self, keep: &[bool]) {
        assert_eq!(keep.len(), self.states.len(), "what is to be kept");
        let mut kept = keep.iter();
        self.states.retain(|_| kept.next().copied().unwrap_or(false));
        let mut kept = keep.iter();
        self.lengths.retain(|_| kept.next().copied().unwrap_or(false));
        if let Some(encoder) = &mut self.encoder {
            let kept = (0..keep.len()).filter(|i| keep[*i]).collect::<Vec<_>>();
            let spans = kept.iter().filter_map(|i| encoder.input.spans.get(*i));
            encoder.input = Tokens::of(spans.map(|span| &encoder.input.ids[span.rows.clone()]));
            encoder.audio = encoder.audio.as_ref().map(|audio| audio.items(&kept));
        }
    }
}
