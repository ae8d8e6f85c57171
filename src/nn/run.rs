//! A forward pass under way: the batch, the weights, and what blocks have computed so far.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use super::builder::{
    BiasId, CacheId, CacheUse, Declared, Grid, LinearId, RopeId, StateId, Stream, TableId, ValueId, VectorId,
};
use super::rope::Rope;
use super::trace::{Call, Site};
use super::{Block, Rows, Shape};
use crate::backend::{
    Activation, Backend, Compute, Epilogue, KvCache, Linear, PositionBias, Rotation, Span, WeightType,
};
use crate::error::Result;
use crate::tensor::{Array, Buffers, Tensor};

/// Weights as blocks use them, in the order in which they were declared.
#[derive(Debug, Default)]
pub struct Parameters {
    /// Linear maps.
    pub linears: Vec<BoundLinear>,
    /// Vectors.
    pub vectors: Vec<Vec<f32>>,
    /// Embedding tables.
    pub tables: Vec<Array>,
    /// Position biases.
    pub biases: Vec<PositionBias>,
}

/// A linear map with its weights.
#[derive(Debug)]
pub struct BoundLinear {
    /// The product.
    pub map: Box<dyn Linear>,
    /// Columns of what it gives.
    pub outputs: usize,
    /// One element per output.
    pub bias: Option<Vec<f32>>,
    /// How its weights are kept.
    pub kept: WeightType,
}

/// A value of the model with the blocks that compute it.
#[derive(Debug)]
pub struct PlannedValue {
    /// Its name.
    pub name: String,
    /// Computes it.
    pub body: Box<dyn Block>,
    /// What it is.
    pub shape: Shape,
    /// The streams that it is computed from.
    pub streams: BTreeSet<Stream>,
}

/// The tokens of one stream: all sequences end to end.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// Where each sequence lies.
    pub spans: Vec<Span>,
    /// Token ids.
    pub ids: Vec<u32>,
    /// Token type ids, or nothing where all are 0.
    pub type_ids: Vec<u32>,
}

impl Tokens {
    /// The tokens of sequences that begin at position 0.
    pub fn of<'s>(sequences: impl IntoIterator<Item = &'s [u32]>) -> Self {
        let mut tokens = Tokens::default();
        for ids in sequences {
            tokens.push(ids, 0);
        }
        tokens
    }

    /// Adds a sequence of which `past` tokens are in its cache already.
    pub fn push(&mut self, ids: &[u32], past: usize) {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.spans.push(Span { rows: start..self.ids.len(), past });
    }

    /// Adds sequence `i` of others, if they have it.
    fn push_from(&mut self, others: &Tokens, i: usize) {
        if let Some(Span { rows, past }) = others.spans.get(i) {
            self.push(&others.ids[rows.clone()], *past);
            if !others.type_ids.is_empty() {
                self.type_ids.extend_from_slice(&others.type_ids[rows.clone()]);
            }
        }
    }

    /// The position of each token in its sequence.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.spans.iter().flat_map(|span| span.past..span.past + span.rows.len())
    }
}

/// What a model computes from: sequences of tokens, end to end and without padding, and items of numbers.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The tokens of the input.
    pub input: Tokens,
    /// What the decoder of an encoder-decoder is given; empty for other models.
    pub decoder: Tokens,
    /// `[images, channels, height, width]`, normalised.
    pub images: Option<Array>,
    /// Spectra: `[sounds, bins, frames]`.
    pub audio: Option<Array>,
}

const STREAMS: [Stream; 4] = [Stream::Input, Stream::Decoder, Stream::Images, Stream::Audio];

impl Inputs {
    /// Sequences of token ids.
    pub fn of<'s>(sequences: impl IntoIterator<Item = &'s [u32]>) -> Self {
        Inputs { input: Tokens::of(sequences), ..Inputs::default() }
    }

    /// The tokens of a stream; none for a stream of numbers.
    pub fn tokens(&self, stream: Stream) -> Option<&Tokens> {
        match stream {
            Stream::Input => Some(&self.input),
            Stream::Decoder => Some(&self.decoder),
            Stream::Images | Stream::Audio => None,
        }
    }

    /// The numbers of a stream, if it has been given any.
    pub fn items(&self, stream: Stream) -> Option<&Array> {
        match stream {
            Stream::Input | Stream::Decoder => None,
            Stream::Images => self.images.as_ref(),
            Stream::Audio => self.audio.as_ref(),
        }
    }

    /// What these streams are given, without the rest.
    pub fn only(&self, streams: &BTreeSet<Stream>) -> Cow<'_, Inputs> {
        let has = |stream: Stream| streams.contains(&stream);
        if STREAMS.into_iter().all(|stream| has(stream) || self.count(stream) == 0) {
            return Cow::Borrowed(self);
        }
        Cow::Owned(Inputs {
            input: if has(Stream::Input) { self.input.clone() } else { Tokens::default() },
            decoder: if has(Stream::Decoder) { self.decoder.clone() } else { Tokens::default() },
            images: self.images.clone().filter(|_| has(Stream::Images)),
            audio: self.audio.clone().filter(|_| has(Stream::Audio)),
        })
    }

    /// How many sequences or items a stream has.
    pub fn count(&self, stream: Stream) -> usize {
        match self.tokens(stream) {
            Some(tokens) => tokens.spans.len(),
            None => self.items(stream).and_then(|items| items.shape().first().copied()).unwrap_or(0),
        }
    }

    /// How many sequences there are: of the stream that has most.
    pub fn len(&self) -> usize {
        STREAMS.into_iter().map(|stream| self.count(stream)).max().unwrap_or(0)
    }

    /// Whether there are no sequences.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Height and width of the images; 0 without any.
    pub fn image_size(&self) -> [usize; 2] {
        match self.images.as_ref().map(Array::shape) {
            Some([_, _, height, width]) => [*height, *width],
            _ => [0, 0],
        }
    }

    /// Number of patches of each image.
    fn patches(&self, grid: Grid) -> usize {
        let [down, across] = grid.of(self.image_size());
        down * across
    }

    /// Where the rows of each sequence or item lie.
    pub fn spans(&self, rows: Rows) -> Cow<'_, [Span]> {
        let each = |stream: Stream, n: usize| {
            let span = |i: usize| Span { rows: i * n..(i + 1) * n, past: 0 };
            (0..self.count(stream)).map(span).collect()
        };
        match rows {
            Rows::Tokens(stream) => match self.tokens(stream) {
                Some(tokens) => Cow::Borrowed(&tokens.spans),
                None => Cow::Borrowed(&[]),
            },
            Rows::Fixed(stream, n) => Cow::Owned(each(stream, n)),
            Rows::Patches(grid, before) => Cow::Owned(each(Stream::Images, before + self.patches(grid))),
            Rows::Sequences(stream) => Cow::Owned(each(stream, 1)),
            Rows::Learned(n) => Cow::Owned(vec![Span { rows: 0..n, past: 0 }]),
        }
    }

    /// The sequences in groups, in order, of as many as have up to `tokens` tokens together, but at least one.
    pub fn groups(&self, tokens: usize) -> Vec<Inputs> {
        let mut groups: Vec<Inputs> = Vec::new();
        let mut left = 0;
        for i in 0..self.len() {
            let span = |of: &Tokens| of.spans.get(i).map_or(0, |span| span.rows.len());
            let needed = span(&self.input) + span(&self.decoder);
            if needed > left || groups.is_empty() {
                groups.push(Inputs::default());
                left = tokens.max(needed);
            }
            left -= needed;
            if let Some(group) = groups.last_mut() {
                group.input.push_from(&self.input, i);
                group.decoder.push_from(&self.decoder, i);
            }
        }
        groups
    }

    /// How many rows there are.
    pub fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens(stream) => self.tokens(stream).map_or(0, |tokens| tokens.ids.len()),
            Rows::Fixed(stream, n) => self.count(stream) * n,
            Rows::Patches(grid, before) => self.count(Stream::Images) * (before + self.patches(grid)),
            Rows::Sequences(stream) => self.count(stream),
            Rows::Learned(n) => n,
        }
    }
}

/// What a sequence leaves behind for its next tokens.
#[derive(Clone, Debug)]
pub struct SequenceState {
    /// One per declared cache that is kept.
    pub caches: Vec<KvCache>,
    /// One per declared recurrent state, once the first tokens come.
    pub recurrent: Vec<Vec<f32>>,
}

impl SequenceState {
    /// The state of a sequence without tokens, for a backend whose attention multiplies in `compute`.
    pub fn new(declared: &Declared, compute: Compute) -> Self {
        let cache = |c: &CacheUse| KvCache::new(compute, c.kv_heads, c.k_dim, c.v_dim);
        let kept = declared.caches.iter().filter(|cache| cache.kept);
        SequenceState { caches: kept.map(cache).collect(), recurrent: Vec::new() }
    }

    /// Takes the memory of the recurrent states if that has not happened. Whether there is enough is known only when the tokens
    /// are.
    pub fn begin(&mut self, declared: &Declared) {
        if self.recurrent.is_empty() {
            self.recurrent = declared.recurrent.iter().map(|n| vec![0.0; *n]).collect();
        }
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        let recurrent = self.recurrent.iter().map(|state| 4 * state.len() as u64);
        self.caches.iter().map(KvCache::bytes).chain(recurrent).sum()
    }
}

/// A forward pass under way.
pub struct Run<'r> {
    /// Does the arithmetic.
    pub backend: &'r dyn Backend,
    /// The weights.
    pub parameters: &'r Parameters,
    /// All values of the plan.
    pub values: &'r [PlannedValue],
    /// Rotary settings.
    pub ropes: &'r [Rope],
    /// What is computed from; without tokens of the input while only the decoder goes on.
    pub inputs: &'r Inputs,
    /// One per sequence.
    pub states: &'r mut [SequenceState],
    /// Memory for activations.
    pub buffers: &'r mut Buffers,
    /// Values that are computed already.
    pub computed: Vec<Option<Arc<Tensor>>>,
    /// Inputs of the layers of each value, if they are wanted.
    pub hidden_states: Option<BTreeMap<ValueId, Vec<Tensor>>>,
    /// A value of which only these rows are wanted, if it can be computed row by row.
    pub only_rows: Option<(ValueId, Vec<usize>)>,
    /// What modules took and gave so far, if the pass is traced.
    pub trace: Option<Vec<Call>>,
    /// The values that are being computed, the innermost last.
    open: Vec<ValueId>,
    rotations: HashMap<(RopeId, Stream), Arc<(Tensor, Tensor)>>,
}

impl<'r> Run<'r> {
    /// A pass in which nothing is computed yet.
    pub fn new(
        backend: &'r dyn Backend,
        parameters: &'r Parameters,
        values: &'r [PlannedValue],
        ropes: &'r [Rope],
        inputs: &'r Inputs,
        states: &'r mut [SequenceState],
        buffers: &'r mut Buffers,
    ) -> Self {
        Run {
            backend,
            parameters,
            values,
            ropes,
            inputs,
            states,
            buffers,
            computed: vec![None; values.len()],
            hidden_states: None,
            only_rows: None,
            trace: None,
            open: Vec::new(),
            rotations: HashMap::new(),
        }
    }

    /// The tokens of a stream of tokens.
    pub fn tokens(&self, stream: Stream) -> &'r Tokens {
        let inputs = self.inputs;
        inputs.tokens(stream).unwrap_or(&inputs.input)
    }

    /// Where the rows of each sequence lie.
    pub fn spans(&self, rows: Rows) -> Cow<'r, [Span]> {
        let inputs = self.inputs;
        inputs.spans(rows)
    }

    /// The matrix of a value, computed when it is asked for first.
    ///
    /// # Errors
    /// As computing it: `Input` when the batch is not what one of its blocks takes.
    pub fn value(&mut self, id: ValueId) -> Result<Arc<Tensor>> {
        if let Some(value) = &self.computed[id.0] {
            return Ok(value.clone());
        }
        let values = self.values;
        self.open.push(id);
        let value = values[id.0].body.forward(self, &Tensor::default());
        self.open.pop();
        let value = Arc::new(value?);
        if let Some(states) = self.hidden_states.as_mut().and_then(|all| all.get_mut(&id)) {
            states.push((*value).clone());
        }
        self.computed[id.0] = Some(value.clone());
        Ok(value)
    }

    /// The rows that the value which is being computed is wanted for; none for all.
    pub fn wanted_rows(&self) -> Option<&[usize]> {
        let (value, rows) = self.only_rows.as_ref()?;
        (self.open.last() == Some(value)).then_some(rows)
    }

    /// A matrix of unspecified contents.
    pub fn take(&mut self, rows: usize, cols: usize) -> Tensor {
        self.buffers.take(rows, cols)
    }

    /// A matrix of some columns of another.
    pub fn columns(&mut self, x: &Tensor, columns: Range<usize>) -> Tensor {
        let mut some = self.take(x.rows(), columns.len());
        self.backend.each_row(&mut some, &|i, row| row.copy_from_slice(&x.row(i)[columns.clone()]));
        some
    }

    /// A cache for each sequence that this pass alone needs, in memory that [`give_caches`](Self::give_caches) gives back.
    pub fn own_caches(&mut self, heads: usize, head_dim: usize, spans: &[Span]) -> Vec<KvCache> {
        let cache = |span: &Span| {
            let cache = KvCache::new(self.backend.compute(), heads, head_dim, head_dim);
            let pages = self.buffers.take_memory(cache.elements(span.rows.len()));
            cache.in_memory(pages)
        };
        spans.iter().map(cache).collect()
    }

    /// Gives the memory of such caches back.
    pub fn give_caches(&mut self, caches: Vec<KvCache>) {
        caches.into_iter().for_each(|cache| self.buffers.give_memory(cache.into_pages()));
    }

    /// Gives the memory of a matrix back.
    pub fn give(&mut self, x: Tensor) {
        self.buffers.give(x);
    }

    /// `epilogue(x Wᵀ + b)` in a new matrix.
    pub fn linear(
        &mut self,
        id: LinearId,
        x: &Tensor,
        act: Option<Activation>,
        mul: Option<&Tensor>,
    ) -> Tensor {
        self.trace_linear(id, x);
        let BoundLinear { map, outputs, bias, .. } = &self.parameters.linears[id.0];
        let mut out = self.buffers.take(x.rows(), *outputs);
        map.apply(x, &Epilogue { bias: bias.as_deref(), act, mul, accumulate: false }, &mut out);
        out
    }

    /// `sum += x Wᵀ + b`.
    pub fn linear_add(&mut self, id: LinearId, x: &Tensor, sum: &mut Tensor) {
        self.trace_linear(id, x);
        let BoundLinear { map, bias, .. } = &self.parameters.linears[id.0];
        map.apply(x, &Epilogue { bias: bias.as_deref(), accumulate: true, ..Epilogue::default() }, sum);
    }

    /// A vector.
    pub fn vector(&self, id: VectorId) -> &'r [f32] {
        &self.parameters.vectors[id.0]
    }

    /// An embedding table.
    pub fn table(&self, id: TableId) -> &'r Array {
        &self.parameters.tables[id.0]
    }

    /// A position bias.
    pub fn bias(&self, id: BiasId) -> &'r PositionBias {
        &self.parameters.biases[id.0]
    }

    /// Cosines and sines for the tokens of a stream, computed when they are asked for first.
    pub fn rotation(&mut self, id: RopeId, stream: Stream) -> Arc<(Tensor, Tensor)> {
        let (rope, tokens) = (&self.ropes[id.0], self.tokens(stream));
        let compute = || Arc::new(rope.angles(tokens.positions()));
        self.rotations.entry((id, stream)).or_insert_with(compute).clone()
    }

    /// Turns the heads in columns `start ..` of `x` by their positions.
    pub fn rotate(
        &mut self,
        id: RopeId,
        stream: Stream,
        x: &mut Tensor,
        start: usize,
        heads: usize,
        head_dim: usize,
    ) {
        let tables = self.rotation(id, stream);
        let rotation = Rotation { cos: &tables.0, sin: &tables.1, interleaved: self.ropes[id.0].interleaved };
        self.backend.rope(x, start, heads, head_dim, &rotation);
    }

    /// The caches of one attention block, one for each of so many sequences; another stream may have more.
    pub fn caches(states: &mut [SequenceState], id: CacheId, sequences: usize) -> Vec<&mut KvCache> {
        states.iter_mut().take(sequences).map(|state| &mut state.caches[id.0]).collect()
    }

    /// The recurrent states of one block, likewise.
    pub fn recurrent(states: &mut [SequenceState], id: StateId, sequences: usize) -> Vec<&mut [f32]> {
        states.iter_mut().take(sequences).map(|state| &mut *state.recurrent[id.0]).collect()
    }

    /// Whether calls of modules are noted.
    pub fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    /// Notes a call of a module, if the pass is traced.
    pub fn trace(&mut self, site: Site, input: Option<&Tensor>, output: &Tensor) {
        if let Some(calls) = &mut self.trace {
            calls.push(Call { site, input: input.cloned(), output: output.clone() });
        }
    }

    /// Notes what a linear map alone gives, if the pass is traced: it is computed once more for that.
    fn trace_linear(&mut self, id: LinearId, x: &Tensor) {
        if let Some(calls) = &mut self.trace {
            let BoundLinear { map, bias, .. } = &self.parameters.linears[id.0];
            let mut output = Tensor::zeros(x.rows(), map.outputs());
            map.apply(x, &Epilogue { bias: bias.as_deref(), ..Epilogue::default() }, &mut output);
            calls.push(Call { site: Site::Linear(id), input: Some(x.clone()), output });
        }
    }

    /// Notes the input of a layer of a value, if such inputs are wanted.
    pub fn layer_input(&mut self, value: ValueId, x: &Tensor) {
        if let Some(all) = &mut self.hidden_states {
            all.entry(value).or_default().push(x.clone());
        }
    }
}
