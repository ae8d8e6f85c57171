//! What a block sees while the plan is made: the values of names, the path it stands under, and the place where
//! it declares the tensors it owns.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;

use super::fields::{Bias, FieldType, Fields, Given, Path, Projection, ValueName};
use super::rope::Rope;
use super::trace::{RoundUse, Site, StepUse};
use crate::backend::{Compute, HeadLayout, Layout, PositionBias};
use crate::error::Problem;
use crate::spec::{Address, Defaults, Problems, Scope, Source, Template, Tree};

/// Whose rows a matrix has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One per token of this stream.
    Tokens(Stream),
    /// This many for each item of a stream: the patches of an image, the frames of a sound.
    Fixed(Stream, usize),
    /// The patches of images that may have any size, and this many rows before those of each image.
    Patches(Grid, usize),
    /// One per sequence or item of this stream.
    Sequences(Stream),
    /// This many for the whole batch: learned vectors.
    Learned(usize),
}

impl Rows {
    /// The stream whose sequences or items the rows belong to, if to any.
    pub fn stream(self) -> Option<Stream> {
        match self {
            Rows::Tokens(stream) | Rows::Fixed(stream, _) | Rows::Sequences(stream) => Some(stream),
            Rows::Patches(..) => Some(Stream::Images),
            Rows::Learned(_) => None,
        }
    }

    /// How many there are for each item, or for the whole batch if they are learned; of images of the usual size. None where that depends
    /// on the tokens.
    pub fn usual(self) -> Option<usize> {
        match self {
            Rows::Fixed(_, n) | Rows::Learned(n) => Some(n),
            Rows::Patches(grid, before) => Some(before + grid.usual()),
            Rows::Sequences(_) => Some(1),
            Rows::Tokens(_) => None,
        }
    }
}

/// How images are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Height and width of the images that the config names.
    pub image: [usize; 2],
    /// Height and width of a patch.
    pub patch: [usize; 2],
}

impl Grid {
    /// Patches down and across an image; what is left at the edges is not looked at.
    pub fn of(self, image: [usize; 2]) -> [usize; 2] {
        [image[0] / self.patch[0], image[1] / self.patch[1]]
    }

    /// Number of patches of the images that the config names.
    pub fn usual(self) -> usize {
        let [down, across] = self.of(self.image);
        down * across
    }
}

/// What a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// The tokens of the input.
    Input,
    /// The tokens that the decoder of an encoder-decoder has written so far.
    Decoder,
    /// Images.
    Images,
    /// The spectra of sounds.
    Audio,
}

/// What a block gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A matrix.
    Matrix {
        /// Whose rows.
        rows: Rows,
        /// How many columns.
        cols: usize,
    },
    /// A bias on attention scores.
    Bias {
        /// Which.
        id: BiasId,
        /// For how many heads.
        heads: usize,
    },
    /// A number for each pair of sequences of two streams: `[of, with]`.
    Pairs {
        /// Whose rows.
        of: Stream,
        /// Whose columns.
        with: Stream,
    },
}

macro_rules! ids {
    ($($(#[doc = $doc:literal])* $Name:ident),*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $Name(pub usize);
    )*};
}

ids!(
    /// A tensor of [`Declared::tensors`].
    TensorId,
    /// A linear map of [`Declared::linears`].
    LinearId,
    /// A vector of [`Declared::vectors`].
    VectorId,
    /// An embedding table of [`Declared::tables`].
    TableId,
    /// A position bias of [`Declared::biases`].
    BiasId,
    /// A key-value cache of [`Declared::caches`], of those that are kept.
    CacheId,
    /// A recurrent state of [`Declared::recurrent`].
    StateId,
    /// Rotary settings of [`Declared::ropes`].
    RopeId,
    /// A round of a loop, of [`Declared::rounds`].
    RoundId,
    /// A value of the model, in the order in which they were planned.
    ValueId
);

/// A tensor that a block needs.
#[derive(Clone, Debug)]
pub struct TensorUse {
    /// Its name, without prefix.
    pub name: String,
    /// Another name that stands in when this one is not stored.
    pub tie: Option<String>,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where it is asked for.
    pub at: Address,
    /// By what: `` `k` of `attention` ``.
    pub label: String,
    /// Index and count of the outermost loop around it.
    pub layer: Option<(usize, usize)>,
}

/// A linear map: several stored weights side by side.
#[derive(Debug, PartialEq, Hash)]
pub struct LinearUse {
    /// The weights.
    pub parts: Vec<PartUse>,
    /// Columns of the input.
    pub inputs: usize,
    /// Columns of the output.
    pub outputs: usize,
}

/// One stored weight of a linear map.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct PartUse {
    /// The weight.
    pub weight: TensorId,
    /// Which item of the first axis of weight and bias, where they hold several maps.
    pub item: Option<usize>,
    /// How it is stored.
    pub layout: Layout,
    /// Which of its outputs are taken, in which order; none for all, as they are.
    pub order: Option<Vec<u32>>,
    /// Its bias.
    pub bias: Option<TensorId>,
    /// Number of its outputs.
    pub outputs: usize,
}

/// A vector of stored ones, one after another.
#[derive(Debug)]
pub struct VectorUse {
    /// The stored vectors.
    pub parts: Vec<TensorId>,
    /// What becomes of its elements.
    pub prepare: Prepare,
}

/// What becomes of the elements of a stored vector when a model is opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prepare {
    /// Nothing.
    AsStored,
    /// Something is added to each.
    Plus(f32),
    /// Rows of so many columns become columns.
    Transpose(usize),
    /// `-exp(x)` of each, and rows of so many columns become columns.
    TransposeRates(usize),
}

impl Prepare {
    /// The elements as they are used.
    pub fn apply(self, mut elements: Vec<f32>) -> Vec<f32> {
        match self {
            Prepare::AsStored => elements,
            Prepare::Plus(offset) => {
                elements.iter_mut().for_each(|x| *x += offset);
                elements
            }
            Prepare::Transpose(cols) => {
                (0..cols).flat_map(|col| elements.iter().skip(col).step_by(cols)).copied().collect()
            }
            Prepare::TransposeRates(cols) => {
                elements.iter_mut().for_each(|x| *x = -x.exp());
                Prepare::Transpose(cols).apply(elements)
            }
        }
    }
}

/// Computes a position bias from the elements of a table.
pub type ComputeBias = Box<dyn Fn(&[f32]) -> PositionBias + Send + Sync>;

/// A bias on attention scores.
pub struct BiasUse {
    /// The stored table that it is computed from; none if it is not learned.
    pub table: Option<TensorId>,
    /// How many numbers the bias has.
    pub elements: usize,
    /// Computes the bias from the table's elements.
    pub compute: ComputeBias,
}

impl std::fmt::Debug for BiasUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BiasUse({:?})", self.table)
    }
}

/// Numbers of tokens that are looked up in a table.
#[derive(Clone, Copy, Debug)]
pub struct IdsUse {
    /// Whose tokens they are numbers of.
    pub stream: Stream,
    /// Whether they are token type ids.
    pub types: bool,
    /// What the language calls them.
    pub name: &'static str,
    /// The table has rows for the numbers below this one.
    pub below: usize,
}

/// The size of a key-value cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheUse {
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of a key.
    pub k_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
    /// Whose rows it holds.
    pub rows: Rows,
    /// Whether it outlives a forward pass.
    pub kept: bool,
}

impl CacheUse {
    /// Bytes that a token takes, where attention multiplies in `compute`.
    pub fn bytes_per_token(&self, compute: Compute) -> u64 {
        HeadLayout { compute, k_dim: self.k_dim, v_dim: self.v_dim }.position_bytes(self.kv_heads)
    }
}

/// Everything that the blocks of a plan have declared.
#[derive(Debug, Default)]
pub struct Declared {
    /// Stored tensors.
    pub tensors: Vec<TensorUse>,
    /// Linear maps.
    pub linears: Vec<LinearUse>,
    /// Vectors.
    pub vectors: Vec<VectorUse>,
    /// Embedding tables.
    pub tables: Vec<TensorId>,
    /// Position biases.
    pub biases: Vec<BiasUse>,
    /// Key-value caches.
    pub caches: Vec<CacheUse>,
    /// Rotary settings.
    pub ropes: Vec<Rope>,
    /// Rounds of loops that have a path.
    pub rounds: Vec<RoundUse>,
    /// The step of the description that each module belongs to.
    pub steps: HashMap<Site, StepUse>,
    /// Most tokens that a sequence of a stream can have, each with the reason.
    pub limits: Vec<(Stream, usize, String)>,
    /// What the items of streams of numbers are.
    pub items: Vec<ItemUse>,
    /// What is kept of a sequence beside keys and values: elements of each block's state.
    pub recurrent: Vec<usize>,
    /// What is computed from weights alone, and kept: elements, at most.
    pub kept: usize,
    /// Streams that are read.
    pub streams: BTreeSet<Stream>,
    /// What is looked up in tables.
    pub ids: Vec<IdsUse>,
    /// Columns of the widest matrix inside of a layer.
    pub widest_in_layers: usize,
    /// Columns of the widest matrix, logits included.
    pub widest: usize,
}

/// What the items of a stream of numbers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemUse {
    /// Whose.
    pub stream: Stream,
    /// Axis by axis: `[channels, height, width]` of an image, `[bins, frames]` of a spectrum.
    pub shape: Vec<usize>,
    /// The least height and width of images that may have any size.
    pub at_least: Option<[usize; 2]>,
}

impl ItemUse {
    /// Whether an item may be like this.
    pub fn takes(&self, shape: &[usize]) -> bool {
        match (self.at_least, &self.shape[..], shape) {
            (Some([height, width]), [channels, ..], [found, h, w]) => {
                found == channels && *h >= height && *w >= width
            }
            _ => self.shape == shape,
        }
    }
}

impl fmt::Display for ItemUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.at_least, &self.shape[..]) {
            (Some([height, width]), [channels, ..]) => {
                write!(f, "[{channels}, {height} or more, {width} or more]")
            }
            _ => write!(f, "{:?}", self.shape),
        }
    }
}

/// A value that is planned already.
#[derive(Debug)]
pub struct KnownValue {
    /// Which one it is.
    pub id: ValueId,
    /// What it is.
    pub shape: Shape,
    /// The streams that it is computed from.
    pub streams: BTreeSet<Stream>,
}

/// The context in which a block is built.
pub struct Builder<'a> {
    /// The description.
    pub source: &'a Source,
    /// What is wrong so far.
    pub problems: &'a mut Problems,
    /// Fields that blocks do not need to name.
    pub defaults: &'a [Defaults],
    /// What names stand for.
    pub scope: Scope,
    /// Where a name's value comes from, for notes.
    pub origins: HashMap<String, String>,
    /// Path that is put before every path.
    pub path: String,
    /// Index and count of the loops around this block, from the outermost on.
    pub loops: Vec<(usize, usize)>,
    /// Name of the block that is being built.
    pub block: String,
    /// The step that is being built.
    pub step: Address,
    /// The step whose output it takes.
    pub before: Option<Address>,
    /// Name of the field that was read last.
    pub field: &'static str,
    /// What was declared so far.
    pub declared: Declared,
    /// Values that are planned already.
    pub values: HashMap<String, KnownValue>,
    /// A value that the block asked for and that is not planned yet.
    pub wanted: Option<ValueName>,
    /// Linear maps in the order in which blocks asked for them, for reports.
    pub used: Vec<LinearId>,
    tensors: HashMap<String, TensorId>,
    /// Rows of weights that are named one by one so far.
    ordered: usize,
    /// The linear maps of each list of weights.
    maps: HashMap<Vec<TensorId>, Vec<LinearId>>,
}

/// Most tensors of a model; the largest known have some tens of thousands.
const MAX_TENSORS: usize = 1 << 20;

/// Most rows of weights that are taken in another order than they are stored, all together: each is a number in memory before
/// any shape is compared with a file.
const MAX_ORDERED: usize = 1 << 26;

impl<'a> Builder<'a> {
    /// A context in which nothing is declared.
    pub fn new(
        source: &'a Source,
        defaults: &'a [Defaults],
        scope: Scope,
        problems: &'a mut Problems,
    ) -> Self {
        Builder {
            source,
            problems,
            defaults,
            scope,
            origins: HashMap::new(),
            path: String::new(),
            loops: Vec::new(),
            block: String::new(),
            step: Address::root(),
            before: None,
            field: "",
            declared: Declared::default(),
            values: HashMap::new(),
            wanted: None,
            used: Vec::new(),
            tensors: HashMap::new(),
            ordered: 0,
            maps: HashMap::new(),
        }
    }

    /// Reports a problem at a place of the description; notes may be added to the result.
    pub fn problem(&mut self, at: &Address, message: impl Into<String>) -> Remarks<'_> {
        Remarks(self.problems.at(self.source, at, message, ""))
    }

    /// Reports that a value is not of the type of its field, and gives none.
    pub fn mismatch<T: FieldType>(&mut self, value: &Tree, at: &Address) -> Option<T> {
        let kind = T::kind();
        // `"40"` is no number.
        let text = if matches!(value, Tree::Text(_)) && !kind.starts_with('`') { "the text " } else { "" };
        let message = format!("wrong value of `{}`: expected {kind}, found {text}`{value}`", self.field);
        self.wrong_value(at, message);
        None
    }

    /// Reports a value that does not do, and says where the names in it come from.
    pub fn wrong_value(&mut self, at: &Address, message: impl Into<String>) {
        let notes = self.origins_at(at);
        let mut problem = self.problem(at, message);
        for note in notes {
            problem = problem.note(note);
        }
    }

    /// As [`wrong_value`](Self::wrong_value) for fields of the block at `at` that do not go together: points to the
    /// first that is written down.
    pub fn wrong_fields(&mut self, at: &Address, fields: &[&str], message: impl Into<String>) {
        let places: Vec<Address> = fields.iter().filter_map(|field| self.field_at(at, field)).collect();
        let mut notes: Vec<String> = Vec::new();
        for note in places.iter().flat_map(|place| self.origins_at(place)) {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        let mut problem = self.problem(places.first().unwrap_or(at), message);
        for note in notes {
            problem = problem.note(note);
        }
    }

    /// Reports a field that says something, `(name, whether it does)`, where it has no effect: without `(what, whether it is there)`.
    pub fn only_with(&mut self, at: &Address, field: (&str, bool), with: (&str, bool)) -> Option<()> {
        if !field.1 || with.1 {
            return Some(());
        }
        self.wrong_fields(at, &[field.0], format!("`{}` has an effect only with {}", field.0, with.0));
        None
    }

    /// Where a field of the block at `at` is written: there, or under `defaults`.
    fn field_at(&self, at: &Address, field: &str) -> Option<Address> {
        let entries = at.value(&self.source.tree).map_or(&[][..], Tree::entries);
        match entries.iter().position(|(key, _)| key == field) {
            Some(i) => Some(at.child(i)),
            None => self.default_of(&self.block, field).map(|(_, at)| at),
        }
    }

    fn origins_at(&self, at: &Address) -> Vec<String> {
        let Some(text) = at.value(&self.source.tree).and_then(Tree::as_text) else { return Vec::new() };
        let names = Template::parse(text).map(|t| t.names()).unwrap_or_default();
        names.iter().filter_map(|name| self.origins.get(name).cloned()).collect()
    }

    /// The value of a tree with its expressions computed.
    pub fn evaluate(&mut self, tree: &Tree, at: &Address) -> Option<Tree> {
        Some(match tree {
            Tree::Text(text) => match Template::parse(text).and_then(|t| t.value(&self.scope)) {
                Ok(value) => value,
                Err(message) => {
                    self.wrong_value(at, format!("cannot evaluate {message}"));
                    return None;
                }
            },
            Tree::List(items) => Tree::List(
                items
                    .iter()
                    .enumerate()
                    .map(|(i, x)| self.evaluate(x, &at.child(i)))
                    .collect::<Option<_>>()?,
            ),
            Tree::Map(entries) => Tree::Map(
                entries
                    .iter()
                    .enumerate()
                    .map(|(i, (key, x))| Some((key.clone(), self.evaluate(x, &at.child(i))?)))
                    .collect::<Option<_>>()?,
            ),
            other => other.clone(),
        })
    }

    /// Reads the fields of `T` from an evaluated value.
    pub fn read_nested<T: Fields>(&mut self, value: &Tree, at: &Address) -> Option<T> {
        let field = self.field;
        let fields = T::read(&mut Given::new::<T>(self, value, at));
        self.field = field;
        fields
    }

    /// What `defaults` says of a field.
    pub fn default_of(&self, block: &str, field: &str) -> Option<(Tree, Address)> {
        let defaults = self.defaults.iter().find(|d| d.block == block)?;
        let i = defaults.fields.entries().iter().position(|(key, _)| key == field)?;
        Some((defaults.fields.entries()[i].1.clone(), defaults.at.child(i)))
    }

    /// Puts the current path before `path`.
    pub fn join(&self, path: &str) -> String {
        match path.strip_prefix('/') {
            Some(absolute) => absolute.to_owned(),
            None if self.path.is_empty() => path.to_owned(),
            None if path.is_empty() => self.path.clone(),
            None => format!("{}.{path}", self.path),
        }
    }

    /// The value that a reference names. If it is not planned yet it is noted as wanted: the block is built again
    /// once it is.
    pub fn refer(&mut self, reference: &ValueName) -> Option<(ValueId, Shape)> {
        let Some(known) = self.values.get(&reference.name) else {
            self.wanted = Some(reference.clone());
            return None;
        };
        self.declared.streams.extend(&known.streams);
        Some((known.id, known.shape))
    }

    /// Takes the name from a declared tensor: the next one of that name is another.
    pub fn forget(&mut self, tensor: TensorId) {
        self.tensors.remove(&self.declared.tensors[tensor.0].name);
    }

    /// Declares a tensor.
    pub fn tensor(
        &mut self,
        name: String,
        shape: Vec<usize>,
        tie: Option<String>,
        at: &Address,
    ) -> Option<TensorId> {
        if let Some(&id) = self.tensors.get(&name) {
            let known = &mut self.declared.tensors[id.0];
            if known.shape != shape {
                let message = format!("tensor `{name}` is used as {:?} and as {shape:?}", known.shape);
                self.problem(at, message);
                return None;
            }
            known.tie = known.tie.take().or(tie);
            return Some(id);
        }
        let id = TensorId(self.declared.tensors.len());
        if id.0 >= MAX_TENSORS {
            self.problem(at, format!("more than {MAX_TENSORS} tensors"));
            return None;
        }
        let label = match self.field {
            "" | "at" => format!("`{}`", self.block),
            field => format!("`{field}` of `{}`", self.block),
        };
        let layer = self.loops.first().copied();
        self.tensors.insert(name.clone(), id);
        self.declared.tensors.push(TensorUse { name, tie, shape, at: at.clone(), label, layer });
        Some(id)
    }

    /// Declares a linear map `[rows, inputs] -> [rows, sum of the parts' outputs]`. Each part comes with the name of
    /// its field and its number of outputs.
    pub fn linear(
        &mut self,
        parts: &[(&'static str, &Projection, usize)],
        inputs: usize,
    ) -> Option<LinearId> {
        let mut uses = Vec::new();
        for (field, projection, outputs) in parts {
            uses.push(self.linear_part(field, projection, *outputs, inputs, None)?);
        }
        Some(self.linear_of(uses, inputs))
    }

    /// Asks for room to name `rows` rows of a weight one by one.
    pub fn order(&mut self, rows: usize, at: &Address) -> Option<()> {
        self.ordered = self.ordered.saturating_add(rows);
        if self.ordered <= MAX_ORDERED {
            return Some(());
        }
        self.problem(at, format!("more than {MAX_ORDERED} rows of weights in an order of their own"));
        None
    }

    /// Declares one weight of a linear map; `order` says which of its `outputs` are taken.
    pub fn linear_part(
        &mut self,
        field: &'static str,
        projection: &Projection,
        outputs: usize,
        inputs: usize,
        order: Option<Vec<u32>>,
    ) -> Option<PartUse> {
        self.field = field;
        let shape = match projection.layout {
            Layout::OutIn => vec![outputs, inputs],
            Layout::InOut => vec![inputs, outputs],
        };
        let at = &projection.at;
        let tie = projection.tie.as_ref().map(|tie| format!("{}.weight", tie.name));
        let weight = self.tensor(format!("{}.weight", at.name), shape, tie, &at.at)?;
        let bias = match &projection.bias {
            Bias::No => None,
            Bias::Beside => Some(self.tensor(format!("{}.bias", at.name), vec![outputs], None, &at.at)?),
            Bias::At(path) => Some(self.tensor(path.name.clone(), vec![outputs], None, &path.at)?),
        };
        Some(PartUse { weight, item: None, layout: projection.layout, order, bias, outputs })
    }

    /// Declares a linear map to some outputs of a stored one.
    pub fn linear_rows(
        &mut self,
        field: &'static str,
        projection: &Projection,
        outputs: usize,
        inputs: usize,
        rows: Range<usize>,
        at: &Address,
    ) -> Option<LinearId> {
        self.order(rows.len(), at)?;
        let rows = Some(rows.map(|row| row as u32).collect());
        let part = self.linear_part(field, projection, outputs, inputs, rows)?;
        Some(self.linear_of(vec![part], inputs))
    }

    /// As [`linear_part`](Self::linear_part) for item `of.0` of the `of.1` that one parameter holds; the path is that of the
    /// parameter.
    pub fn stacked_part(
        &mut self,
        field: &'static str,
        projection: &Projection,
        of: (usize, usize),
        outputs: usize,
        inputs: usize,
        order: Option<Vec<u32>>,
    ) -> Option<PartUse> {
        self.field = field;
        let (item, items) = of;
        let shape = match projection.layout {
            Layout::OutIn => vec![items, outputs, inputs],
            Layout::InOut => vec![items, inputs, outputs],
        };
        let at = &projection.at;
        let weight = self.tensor(at.name.clone(), shape, None, &at.at)?;
        let bias = match &projection.bias {
            Bias::No => None,
            Bias::Beside => {
                self.problem(&at.at, "a parameter has no bias beside it: expected `false` or a path");
                return None;
            }
            Bias::At(path) => Some(self.tensor(path.name.clone(), vec![items, outputs], None, &path.at)?),
        };
        Some(PartUse { weight, item: Some(item), layout: projection.layout, order, bias, outputs })
    }

    /// Declares the filters of a convolution, `shape` with those that give one output first, as a linear map.
    pub fn filter(&mut self, at: &Path, bias: &Bias, shape: Vec<usize>) -> Option<LinearId> {
        let (outputs, inputs) = (shape[0], shape[1..].iter().product());
        let weight = self.tensor(format!("{}.weight", at.name), shape, None, &at.at)?;
        let bias = match bias {
            Bias::No => None,
            Bias::Beside => Some(self.tensor(format!("{}.bias", at.name), vec![outputs], None, &at.at)?),
            Bias::At(path) => Some(self.tensor(path.name.clone(), vec![outputs], None, &path.at)?),
        };
        let part = PartUse { weight, item: None, layout: Layout::OutIn, order: None, bias, outputs };
        Some(self.linear_of(vec![part], inputs))
    }

    /// Notes what the items of a stream of numbers are.
    pub fn items(&mut self, items: ItemUse, at: &Address) -> Option<()> {
        let declared = &mut self.declared;
        declared.streams.insert(items.stream);
        match declared.items.iter().find(|known| known.stream == items.stream) {
            Some(known) if *known != items => {
                let message = format!("the items of one stream are used as {known} and as {items}");
                self.problem(at, message);
                None
            }
            Some(_) => Some(()),
            None => {
                declared.items.push(items);
                Some(())
            }
        }
    }

    /// Declares numbers that each sequence keeps.
    pub fn state(&mut self, elements: usize) -> StateId {
        self.declared.recurrent.push(elements);
        StateId(self.declared.recurrent.len() - 1)
    }

    /// Declares a matrix that is computed from weights alone, and kept.
    pub fn keep(&mut self, rows: usize, cols: usize) {
        let kept = &mut self.declared.kept;
        *kept = kept.saturating_add(rows.saturating_mul(cols));
    }

    /// Declares a linear map of these parts; layers that share their weights share the map.
    pub fn linear_of(&mut self, parts: Vec<PartUse>, inputs: usize) -> LinearId {
        let outputs = parts.iter().map(|p| p.order.as_ref().map_or(p.outputs, Vec::len)).sum();
        self.note_width(outputs);
        let key: Vec<TensorId> = parts.iter().map(|part| part.weight).collect();
        let linear = LinearUse { parts, inputs, outputs };
        let linears = &mut self.declared.linears;
        let known = self.maps.entry(key).or_default();
        let found = known.iter().copied().find(|id| linears[id.0] == linear);
        let is_new = found.is_none();
        let id = found.unwrap_or_else(|| {
            linears.push(linear);
            known.push(LinearId(linears.len() - 1));
            LinearId(linears.len() - 1)
        });
        self.used.push(id);
        if is_new {
            self.module(Site::Linear(id));
        }
        id
    }

    /// Notes the columns of a matrix: what a pass needs to hold depends on the widest ones.
    pub fn note_width(&mut self, cols: usize) {
        let declared = &mut self.declared;
        declared.widest = declared.widest.max(cols);
        if !self.loops.is_empty() {
            declared.widest_in_layers = declared.widest_in_layers.max(cols);
        }
    }

    /// Declares the vector `suffix` (`weight`, `bias`) of a module, or the parameter itself if `suffix` is empty.
    pub fn vector(&mut self, path: &Path, suffix: &str, len: usize) -> Option<VectorId> {
        self.parameter(path, suffix, vec![len], Prepare::AsStored)
    }

    /// As [`vector`](Self::vector), of several axes.
    pub fn parameter(
        &mut self,
        path: &Path,
        suffix: &str,
        shape: Vec<usize>,
        prepare: Prepare,
    ) -> Option<VectorId> {
        let name = if suffix.is_empty() { path.name.clone() } else { format!("{}.{suffix}", path.name) };
        let tensor = self.tensor(name, shape, None, &path.at)?;
        Some(self.vector_of(vec![tensor], prepare))
    }

    /// Declares a vector of stored ones, one after another.
    pub fn vector_of(&mut self, parts: Vec<TensorId>, prepare: Prepare) -> VectorId {
        self.declared.vectors.push(VectorUse { parts, prepare });
        let id = VectorId(self.declared.vectors.len() - 1);
        self.module(Site::Norm(id));
        id
    }

    /// Declares an embedding table `[rows, cols]`.
    pub fn table(&mut self, path: &Path, rows: usize, cols: usize) -> Option<TableId> {
        let tensor = self.tensor(format!("{}.weight", path.name), vec![rows, cols], None, &path.at)?;
        self.declared.tables.push(tensor);
        let id = TableId(self.declared.tables.len() - 1);
        self.module(Site::Table(id));
        Some(id)
    }

    /// Declares a position bias of so many numbers that is computed from a stored table.
    pub fn bias(
        &mut self,
        path: &Path,
        shape: Vec<usize>,
        elements: usize,
        compute: impl Fn(&[f32]) -> PositionBias + Send + Sync + 'static,
    ) -> Option<BiasId> {
        let table = self.tensor(format!("{}.weight", path.name), shape, None, &path.at)?;
        Some(self.bias_of(Some(table), elements, compute))
    }

    /// Declares a position bias of so many numbers.
    pub fn bias_of(
        &mut self,
        table: Option<TensorId>,
        elements: usize,
        compute: impl Fn(&[f32]) -> PositionBias + Send + Sync + 'static,
    ) -> BiasId {
        self.declared.biases.push(BiasUse { table, elements, compute: Box::new(compute) });
        BiasId(self.declared.biases.len() - 1)
    }

    /// Declares a key-value cache; none comes back if it does not outlive a pass.
    pub fn cache(&mut self, cache: CacheUse) -> Option<CacheId> {
        let kept = self.declared.caches.iter().filter(|cache| cache.kept).count();
        self.declared.caches.push(cache);
        cache.kept.then_some(CacheId(kept))
    }

    /// Declares a round of a loop whose path is written at `at`.
    pub fn round(&mut self, at: &Address) -> RoundId {
        let (path, layer) = (self.path.clone(), self.loops.first().copied());
        self.declared.rounds.push(RoundUse { path, at: at.clone(), layer });
        let id = RoundId(self.declared.rounds.len() - 1);
        self.module(Site::Round(id));
        id
    }

    /// Notes the step that a module belongs to.
    fn module(&mut self, site: Site) {
        let step = StepUse {
            block: self.block.clone(),
            at: self.step.clone(),
            before: self.before.clone(),
            layer: self.loops.first().copied(),
        };
        self.declared.steps.insert(site, step);
    }

    /// Declares rotary settings; equal ones are computed once.
    pub fn rope(&mut self, rope: Rope) -> RopeId {
        let ropes = &mut self.declared.ropes;
        let found = ropes.iter().position(|r| *r == rope);
        RopeId(found.unwrap_or_else(|| {
            ropes.push(rope);
            ropes.len() - 1
        }))
    }

    /// The columns and rows of a block's input, which must be a matrix.
    pub fn matrix(&mut self, input: Option<Shape>, at: &Address) -> Option<(Rows, usize)> {
        match input {
            Some(Shape::Matrix { rows, cols }) => Some((rows, cols)),
            Some(shape) => {
                let found = match shape {
                    Shape::Pairs { .. } => "the result of `similarity`",
                    _ => "a position bias",
                };
                let message = format!("`{}` takes a matrix, found {found}", self.block);
                self.problem(&at.key(), message);
                None
            }
            None => {
                let message = format!("`{}` has no input", self.block);
                self.problem(&at.key(), message).help("begin the sequence with `embedding` or `from`");
                None
            }
        }
    }

    /// As [`matrix`](Self::matrix), with a row for each position of each sequence, and the stream of the sequences.
    pub fn positions(&mut self, input: Option<Shape>, at: &Address) -> Option<(Rows, Stream, usize)> {
        let found = match self.matrix(input, at)? {
            (rows @ (Rows::Tokens(stream) | Rows::Fixed(stream, _)), cols) => {
                return Some((rows, stream, cols));
            }
            (rows @ Rows::Patches(..), cols) => return Some((rows, Stream::Images, cols)),
            (Rows::Sequences(_), _) => "a row per sequence",
            (Rows::Learned(_), _) => "learned rows",
        };
        let message = format!("`{}` takes a row per token, found {found}", self.block);
        self.problem(&at.key(), message);
        None
    }

    /// As [`positions`](Self::positions), with one row per token.
    pub fn tokens(&mut self, input: Option<Shape>, at: &Address) -> Option<(Stream, usize)> {
        match self.positions(input, at)? {
            (Rows::Tokens(stream), _, cols) => Some((stream, cols)),
            _ => {
                let message = format!("`{}` takes a row per token, found rows of another kind", self.block);
                self.problem(&at.key(), message);
                None
            }
        }
    }
}

/// A reported problem to which remarks can be added.
pub struct Remarks<'p>(&'p mut Problem);

impl Remarks<'_> {
    /// Adds a fact.
    pub fn note(self, text: impl Into<String>) -> Self {
        self.0.remarks.push(crate::error::Remark { tag: "note", text: text.into() });
        self
    }

    /// Adds the next thing to do.
    pub fn help(self, text: impl Into<String>) -> Self {
        self.0.remarks.push(crate::error::Remark { tag: "help", text: text.into() });
        self
    }
}
