//! What a plan remembers of each block, for reports: computing needs none of it.

use std::ops::Range;

use super::expand::Expander;
use crate::nn::{Declared, Definition, FieldDef, FieldShape, LinearId, Shape};
use crate::spec::{Address, Tree};

/// A block of a plan.
#[derive(Clone, Debug)]
pub struct PlannedBlock {
    /// Its name in the language.
    pub name: &'static str,
    /// Where the description has it.
    pub at: Address,
    /// The value of the model that it helps to compute.
    pub value: String,
    /// The path that the loops around it put before its own.
    pub prefix: String,
    /// Index and count of the loops around it, from the outermost on.
    pub loops: Vec<(usize, usize)>,
    /// The combinators around it, from the outermost on.
    pub within: Vec<Within>,
    /// Its fields that are numbers, flags or words, defaults included; `rope.theta` for one that is inside of another.
    pub settings: Vec<(String, Tree)>,
    /// What it takes.
    pub input: Option<Shape>,
    /// What it gives.
    pub output: Shape,
    /// The other value that it reads.
    pub reads: Option<(String, Shape)>,
    /// What it declared first: what other blocks declared before it is theirs.
    pub declared: Vec<Ranges>,
    /// The linear maps that it applies, its own and shared ones.
    pub linears: Vec<LinearId>,
}

/// A combinator around a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Within {
    /// `residual`, `sum`, `product` or `repeat`.
    pub kind: &'static str,
    /// Tells it from others of its kind.
    pub id: usize,
    /// Which branch of a sum or product.
    pub branch: usize,
}

/// Parts of the lists of [`Declared`].
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    /// Of the tensors.
    pub tensors: Range<usize>,
    /// Of the linear maps.
    pub linears: Range<usize>,
    /// Of the vectors.
    pub vectors: Range<usize>,
    /// Of the embedding tables.
    pub tables: Range<usize>,
    /// Of the key-value caches.
    pub caches: Range<usize>,
}

impl Ranges {
    /// Empty ranges at the ends of the lists.
    fn begin(declared: &Declared) -> Ranges {
        let empty = |n: usize| n..n;
        Ranges {
            tensors: empty(declared.tensors.len()),
            linears: empty(declared.linears.len()),
            vectors: empty(declared.vectors.len()),
            tables: empty(declared.tables.len()),
            caches: empty(declared.caches.len()),
        }
    }

    fn end(mut self, declared: &Declared) -> Ranges {
        self.tensors.end = declared.tensors.len();
        self.linears.end = declared.linears.len();
        self.vectors.end = declared.vectors.len();
        self.tables.end = declared.tables.len();
        self.caches.end = declared.caches.len();
        self
    }
}

impl PlannedBlock {
    /// A whole number that a field has.
    pub fn number(&self, field: &str) -> Option<u64> {
        self.settings.iter().find_map(|(name, value)| match value {
            Tree::Int(n) if name == field => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    /// Whether a field is true.
    pub fn is(&self, field: &str) -> bool {
        self.settings.iter().any(|(name, value)| name == field && *value == Tree::Bool(true))
    }

    /// The indices of what it declared in one of the lists.
    pub fn indices(&self, list: impl Fn(&Ranges) -> &Range<usize>) -> impl Iterator<Item = usize> {
        self.declared.iter().flat_map(move |ranges| list(ranges).clone())
    }

    /// The path that all its tensors have in common; that of the loops where it has none.
    pub fn path(&self, declared: &Declared) -> String {
        let mut own = self.indices(|ranges| &ranges.tensors).map(|i| &declared.tensors[i]);
        let Some(first) = own.next() else { return self.prefix.clone() };
        let mut path: Vec<&str> = first.name.split('.').collect();
        path.pop();
        for tensor in own {
            let same = path.iter().zip(tensor.name.split('.')).take_while(|(a, b)| **a == *b).count();
            path.truncate(same);
        }
        path.join(".")
    }
}

/// Attempts to build a block: those that found that a value is missing, and one that goes on.
#[derive(Default)]
pub struct Attempts {
    done: Vec<Ranges>,
    now: Ranges,
    used: usize,
}

impl Expander<'_, '_> {
    /// Notes where a block's declarations begin.
    pub(super) fn begin(&self, attempts: &mut Attempts) {
        attempts.now = Ranges::begin(&self.builder.declared);
        attempts.used = self.builder.used.len();
    }

    /// Notes where they end.
    pub(super) fn end(&self, attempts: &mut Attempts) {
        attempts.done.push(std::mem::take(&mut attempts.now).end(&self.builder.declared));
    }

    /// Remembers a block that is built.
    pub(super) fn record(
        &mut self,
        attempts: Attempts,
        definition: &'static Definition,
        (fields, at): (&Tree, &Address),
        (input, output): (Option<Shape>, Shape),
    ) {
        let settings = self.settings(definition.name, (definition.fields)(), fields, at);
        let is_reference = |name: &str| {
            let field = (definition.fields)().iter().find(|field| field.name == name);
            field.is_some_and(|field| matches!(field.shape, FieldShape::ValueName))
        };
        let reads = settings.iter().find_map(|(field, value)| {
            let name = value.as_text().filter(|_| is_reference(field))?;
            let shape = self.builder.values.get(name)?.shape;
            matches!(shape, Shape::Matrix { .. }).then(|| (name.to_owned(), shape))
        });
        let block = PlannedBlock {
            name: definition.name,
            at: at.clone(),
            value: self.open.last().cloned().unwrap_or_default(),
            prefix: self.builder.path.clone(),
            loops: self.builder.loops.clone(),
            within: self.within.clone(),
            settings,
            input,
            output,
            reads,
            declared: attempts.done,
            linears: self.builder.used[attempts.used..].to_vec(),
        };
        self.recorded.push(block);
    }
    /// The values of a block's fields, or of those of a group of fields, but for what is the path of a weight.
    fn settings(
        &mut self,
        owner: &str,
        fields: &'static [FieldDef],
        given: &Tree,
        at: &Address,
    ) -> Vec<(String, Tree)> {
        let mut settings = Vec::new();
        for (i, field) in fields.iter().enumerate() {
            let value = match given {
                Tree::Map(_) => given.get(field.name).cloned(),
                Tree::Null => None,
                value => (i == 0).then(|| value.clone()),
            };
            let value = value.or_else(|| Some(self.builder.default_of(owner, field.name)?.0));
            let value = match value {
                // It has been evaluated before, or there would be no block.
                Some(value @ Tree::Text(_)) => self.builder.evaluate(&value, at),
                Some(value) => Some(value),
                None => field.default.and_then(Tree::constant),
            };
            match (value, field.shape) {
                (None | Some(Tree::Null), _) => {}
                (Some(value), FieldShape::Fields(group, inner)) => {
                    let inner = self.settings(group, inner(), &value, at);
                    settings.extend(inner.into_iter().map(|(name, x)| (format!("{}.{name}", field.name), x)));
                }
                (Some(_), FieldShape::Path | FieldShape::PathOrFields(..)) => {}
                (Some(value), _) => settings.push((field.name.to_owned(), value)),
            }
        }
        settings
    }
}
