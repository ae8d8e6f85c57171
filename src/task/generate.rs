use std::collections::VecDeque;

use super::generation_config::GenerationConfig;
use super::model::{Model, Text};
use crate::error::Result;
use crate::generate::{Constraints, Sampler, SamplingOptions, StopStrings};
use crate::model::Session;
use crate::nn::Stream;
use crate::tokenizer;

/// How text is generated.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most new tokens.
    pub max_tokens: usize,
    /// How each token is chosen; the likeliest by default.
    pub sampling: SamplingOptions,
    /// How many texts were generated with these options before: each has random numbers of its own.
    pub before: usize,
    /// Generation ends where one of these would appear; they are not part of the text.
    pub stop: Vec<String>,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 64,
            sampling: SamplingOptions::default(),
            before: 0,
            stop: Vec::new(),
            ignore_eos: false,
        }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    Eos,
    /// A stop string appeared.
    Stop,
    /// It has as many tokens as were asked for, or as the model can take.
    Length,
}

/// A generated text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The text, without the prompt.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens that were cut off the prompt.
    pub truncated: usize,
}

impl Model {
    /// Continues texts, or answers them with an encoder-decoder. All texts go through the network together; what is generated
    /// for one does not depend on the others, but where tokens are drawn on its place among them.
    ///
    /// What `generation_config.json` (`config.json` without one) says of tokens is obeyed, as [`Constraints`] lists it. How they are
    /// chosen is for `options` to say: `num_beams`, `do_sample` and what belongs to sampling are not read.
    ///
    /// ```
    /// use smelt::GenerateOptions;
    /// # fn main() -> smelt::Result<()> {
    /// let model = smelt::Model::open("examples/models/prose")?;
    /// let options = GenerateOptions { max_tokens: 8, ..GenerateOptions::default() };
    /// let texts = model.generate(&["The view".into(), "You can use".into()], &options)?;
    /// assert!(texts.iter().all(|t| !t.text.is_empty()));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Input` when the model is for another task, an option is out of its range, or a text is too long; `Unsupported` when
    /// `generation_config.json` has a setting that would change the text and is not implemented.
    pub fn generate(&self, texts: &[Text<'_>], options: &GenerateOptions) -> Result<Vec<Generation>> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let mut generator = Generator::new(self, texts, options)?;
        while generator.step()? {}
        Ok(generator.into_generations())
    }

    /// Continues a text, giving pieces of it as soon as they are certain. The pieces together are what
    /// [`generate`](Self::generate) gives.
    ///
    /// ```
    /// use smelt::GenerateOptions;
    /// # fn main() -> smelt::Result<()> {
    /// let model = smelt::Model::open("examples/models/prose")?;
    /// let options = GenerateOptions { max_tokens: 8, ..GenerateOptions::default() };
    /// for piece in model.stream("The view".into(), &options)? {
    ///     print!("{}", piece?);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn stream(&self, text: Text<'_>, options: &GenerateOptions) -> Result<TextStream<'_>> {
        Ok(TextStream(self.stream_batch(&[text], options)?))
    }

    /// Continues texts together as [`generate`](Self::generate) does, giving pieces of them as soon as they are certain, each with the
    /// number of its text.
    ///
    /// ```
    /// use smelt::GenerateOptions;
    /// # fn main() -> smelt::Result<()> {
    /// let model = smelt::Model::open("examples/models/prose")?;
    /// let options = GenerateOptions { max_tokens: 8, ..GenerateOptions::default() };
    /// let mut texts = [String::from("The view"), String::from("You can use")];
    /// let prompts = texts.clone();
    /// for piece in model.stream_batch(&[prompts[0].as_str().into(), prompts[1].as_str().into()], &options)? {
    ///     let (text, piece) = piece?;
    ///     texts[text] += &piece;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn stream_batch(&self, texts: &[Text<'_>], options: &GenerateOptions) -> Result<BatchStream<'_>> {
        Ok(BatchStream { generator: Generator::new(self, texts, options)?, done: false })
    }
}

/// Pieces of a text that is being generated. Whoever drops it ends the generation.
#[derive(Debug)]
pub struct TextStream<'m>(BatchStream<'m>);

impl TextStream<'_> {
    /// Tokens that were cut off the prompt.
    pub fn truncated(&self) -> usize {
        self.0.truncated(0)
    }

    /// Why the text ended, once it has.
    pub fn finish(&self) -> Option<FinishReason> {
        self.0.finish(0)
    }
}

impl Iterator for TextStream<'_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        Some(self.0.next()?.map(|(_, piece)| piece))
    }
}

/// Pieces of texts that are being generated together, each with the number of its text. Whoever drops it ends the generation.
#[derive(Debug)]
pub struct BatchStream<'m> {
    generator: Generator<'m>,
    done: bool,
}

impl BatchStream<'_> {
    /// Tokens that were cut off the prompt of a text.
    ///
    /// # Panics
    /// If there is no such text.
    pub fn truncated(&self, text: usize) -> usize {
        self.generator.sequences[text].truncated
    }

    /// Why a text ended, once it has.
    ///
    /// # Panics
    /// If there is no such text.
    pub fn finish(&self, text: usize) -> Option<FinishReason> {
        self.generator.sequences[text].finish
    }
}

impl Iterator for BatchStream<'_> {
    type Item = Result<(usize, String)>;

    fn next(&mut self) -> Option<Result<(usize, String)>> {
        loop {
            let mut sequences = self.generator.sequences.iter_mut().enumerate();
            if let Some(piece) = sequences.find_map(|(i, s)| Some((i, s.pieces.pop_front()?))) {
                return Some(Ok(piece));
            }
            if self.done {
                return None;
            }
            match self.generator.step() {
                Ok(more) => self.done = !more,
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Sequences that are being generated together.
#[derive(Debug)]
pub(super) struct Generator<'m> {
    session: Session<'m>,
    sequences: Vec<Sequence<'m>>,
    /// The sequences that go on, in the order in which the session has them.
    running: Vec<usize>,
    eos: Vec<u32>,
    max_tokens: usize,
    max_length: usize,
    constraints: Constraints,
    /// Tokens from this one on are no text.
    silent_from: Option<u32>,
}

#[derive(Debug)]
struct Sequence<'m> {
    /// Tokens that the network has not seen.
    next: Vec<u32>,
    /// All tokens, for the repetition penalty.
    history: Vec<u32>,
    tokens: Vec<u32>,
    sampler: Sampler,
    stream: tokenizer::Stream<'m>,
    stop: StopStrings,
    pieces: VecDeque<String>,
    finish: Option<FinishReason>,
    truncated: usize,
}

impl<'m> Generator<'m> {
    fn new(model: &'m Model, texts: &[Text<'_>], options: &GenerateOptions) -> Result<Self> {
        model.expect_task(&["causal_lm", "seq2seq_lm"])?;
        let mut encodings = model.encode(texts, None)?;
        let window = model.network.plan().token_limit(Stream::Input);
        if let (Some(window), false) = (window, model.network.plan().has_decoder()) {
            // What has to be cut anyway leaves room for what comes, up to half of the window.
            let most = window + 1 - options.max_tokens.min(window / 2);
            for (text, encoding) in texts.iter().zip(&mut encodings).filter(|(_, e)| e.truncated > 0) {
                *encoding = model.encode(&[*text], Some(most))?.remove(0); // of the one text
            }
        }
        let mut session = model.network.session(encodings.len());
        let file = GenerationConfig::of(model);
        let mut start = None;
        if model.network.plan().has_decoder() {
            start = Some(file.decoder_start()?);
            let prompts: Vec<&[u32]> = encodings.iter().map(|e| e.ids.as_slice()).collect();
            if !prompts.is_empty() {
                session.encode(&prompts)?;
            }
        }
        let prompt = |e: crate::tokenizer::Encoding| (start.map_or(e.ids, |id| vec![id]), 0, e.truncated);
        let mut options = options.clone();
        if options.sampling.repetition_penalty.is_none() {
            options.sampling.repetition_penalty = Some(file.repetition_penalty()?);
        }
        let prompts = encodings.into_iter().map(prompt).collect();
        Generator::begin(model, session, prompts, &options, file.constraints()?)
    }

    /// Goes on with the sequences of a session: for each the tokens that it begins with, how many of them the session has
    /// seen, and how many were cut off before.
    pub(super) fn begin(
        model: &'m Model,
        mut session: Session<'m>,
        prompts: Vec<(Vec<u32>, usize, usize)>,
        options: &GenerateOptions,
        constraints: Constraints,
    ) -> Result<Self> {
        let tokenizer = model.tokenizer()?;
        let plan = model.network.plan();
        let sequences: Vec<Sequence<'m>> = prompts
            .into_iter()
            .enumerate()
            .map(|(i, (prompt, seen, truncated))| {
                Ok(Sequence {
                    next: prompt[seen..].to_vec(),
                    history: prompt,
                    tokens: Vec::new(),
                    sampler: Sampler::new(&options.sampling, options.before.wrapping_add(i))?,
                    stream: tokenizer::Stream::new(tokenizer),
                    stop: StopStrings::new(&options.stop),
                    pieces: VecDeque::new(),
                    finish: (options.max_tokens == 0).then_some(FinishReason::Length),
                    truncated,
                })
            })
            .collect::<Result<_>>()?;
        let longest = sequences.iter().map(|sequence| sequence.history.len()).max().unwrap_or(0);
        session.expect(longest.saturating_add(options.max_tokens));
        let running = if options.max_tokens == 0 { Vec::new() } else { (0..sequences.len()).collect() };
        let stream = if plan.has_decoder() { Stream::Decoder } else { Stream::Input };
        Ok(Generator {
            session,
            sequences,
            running,
            eos: if options.ignore_eos {
                Vec::new()
            } else {
                GenerationConfig::of(model).ids("eos_token_id")?
            },
            max_tokens: options.max_tokens,
            max_length: plan.token_limit(stream).unwrap_or(usize::MAX),
            constraints,
            silent_from: None,
        })
    }

    /// Tokens from this one on may be chosen, but are no text.
    pub(super) fn silence_from(&mut self, id: Option<u32>) {
        self.silent_from = id;
    }

    /// Adds a token to each sequence that goes on; says whether any does after that.
    pub(super) fn step(&mut self) -> Result<bool> {
        if self.running.is_empty() {
            return Ok(false);
        }
        let tokens: Vec<&[u32]> = self.running.iter().map(|i| self.sequences[*i].next.as_slice()).collect();
        let mut logits = self.session.step(&tokens, "logits")?;
        let mut keep = Vec::with_capacity(self.running.len());
        for (row, i) in self.running.iter().enumerate() {
            let full = self.session.length(row) >= self.max_length;
            let sequence = &mut self.sequences[*i];
            let new = sequence.tokens.len();
            let is_last = new + 1 == self.max_tokens;
            self.constraints.apply(logits.row_mut(row), &sequence.history, new, is_last, &self.eos);
            let id = sequence.sampler.pick(logits.row(row), &sequence.history)?;
            sequence.add(id, &self.eos, self.silent_from)?;
            if sequence.finish.is_none() && (sequence.tokens.len() >= self.max_tokens || full) {
                sequence.end(FinishReason::Length)?;
            }
            keep.push(sequence.finish.is_none());
        }
        self.session.give(logits);
        self.session.retain(&keep);
        let mut kept = keep.iter();
        self.running.retain(|_| kept.next().copied().unwrap_or(false));
        Ok(!self.running.is_empty())
    }

    pub(super) fn into_generations(self) -> Vec<Generation> {
        let generation = |s: Sequence<'_>| Generation {
            text: s.pieces.into_iter().collect(),
            tokens: s.tokens,
            finish: s.finish.unwrap_or(FinishReason::Length),
            truncated: s.truncated,
        };
        self.sequences.into_iter().map(generation).collect()
    }
}

impl Sequence<'_> {
    fn add(&mut self, id: u32, eos: &[u32], silent_from: Option<u32>) -> Result<()> {
        if eos.contains(&id) {
            return self.end(FinishReason::Eos);
        }
        self.tokens.push(id);
        self.history.push(id);
        self.next = vec![id];
        if silent_from.is_none_or(|from| id < from) {
            let text = self.stream.push(id)?;
            self.give(&text);
        }
        Ok(())
    }

    fn give(&mut self, text: &str) {
        let piece = self.stop.push(text);
        if !piece.text.is_empty() {
            self.pieces.push_back(piece.text);
        }
        if piece.stopped {
            self.finish = Some(FinishReason::Stop);
        }
    }

    fn end(&mut self, reason: FinishReason) -> Result<()> {
        let text = self.stream.finish()?;
        self.give(&text);
        if self.finish.is_none() {
            let rest = self.stop.finish();
            self.finish = Some(if rest.stopped { FinishReason::Stop } else { reason });
            if !rest.text.is_empty() {
                self.pieces.push_back(rest.text);
            }
        }
        Ok(())
    }
}
