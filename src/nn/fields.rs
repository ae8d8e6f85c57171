//! One definition per block: the fields that a description may give it, with types, defaults and documentation.
//!
//! [`fields!`] turns a documented struct into that definition. From it come the parser, the suggestions for
//! misspelt fields, the block reference and the schema for editors.

use super::builder::Builder;
use crate::backend::{Activation, Layout};
use crate::spec::{Address, Tree, listed};

/// What is known of a field.
#[derive(Debug)]
pub struct FieldDef {
    /// Name in the YAML.
    pub name: &'static str,
    /// Its type, for people.
    pub kind: fn() -> String,
    /// Its type.
    pub shape: FieldShape,
    /// Whether it must be given.
    pub required: bool,
    /// What holds without it, as YAML.
    pub default: Option<&'static str>,
    /// What it means, line by line.
    pub doc: &'static [&'static str],
    /// Reports what is wrong with a value that holds no expression.
    pub check: fn(&mut Builder<'_>, &Tree, &Address),
}

/// What a field's value is built of, as far as checks before evaluation need to know it.
#[derive(Clone, Copy, Debug)]
pub enum FieldShape {
    /// A plain value.
    Plain,
    /// The path of a module or parameter.
    Path,
    /// The name of another value of the model.
    ValueName,
    /// A list of names of other values.
    ValueNames,
    /// A map with fields of its own, those of the definition of this name.
    Fields(&'static str, fn() -> &'static [FieldDef]),
    /// A path, or a map with the fields of the definition of this name.
    PathOrFields(&'static str, fn() -> &'static [FieldDef]),
}

/// A struct that is read from the fields of a block.
pub trait Fields: Sized {
    /// Name of the block or group of fields.
    const NAME: &'static str;
    /// What it computes, line by line.
    const DOC: &'static [&'static str];
    /// Its fields; a value that is not a map stands for the first of them.
    fn fields() -> &'static [FieldDef];
    /// Reads them. Problems are reported to the builder.
    fn read(given: &mut Given<'_, '_>) -> Option<Self>;
}

/// A type that a field can have.
pub trait FieldType: Sized {
    /// Whether the field may be left out or null.
    const OPTIONAL: bool = false;
    /// See [`FieldDef::shape`].
    const SHAPE: FieldShape = FieldShape::Plain;
    /// The type, for people: `a positive integer`.
    fn kind() -> String;
    /// Reads an evaluated value. Problems are reported to the builder.
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self>;
}

/// The fields that a description gives a block.
pub struct Given<'b, 'a> {
    /// Where problems go and what names stand for.
    pub builder: &'b mut Builder<'a>,
    block: &'static str,
    first: &'static str,
    fields: &'b Tree,
    at: &'b Address,
}

impl<'b, 'a> Given<'b, 'a> {
    /// The fields `fields` at `at`, given to `T`.
    pub fn new<T: Fields>(builder: &'b mut Builder<'a>, fields: &'b Tree, at: &'b Address) -> Self {
        let first = T::fields().first().map_or("", |f| f.name);
        Given { builder, block: T::NAME, first, fields, at }
    }

    /// Reads field `name`: what the block says, else `defaults` for this block, else `default`.
    pub fn field<T: FieldType>(&mut self, name: &'static str, default: Option<&str>) -> Option<T> {
        let (value, at) = match self.find(name) {
            Some((value, at)) => (self.builder.evaluate(&value, &at)?, at),
            None => match default.and_then(Tree::constant) {
                Some(value) => (value, self.at.clone()),
                None if T::OPTIONAL => (Tree::Null, self.at.clone()),
                None => {
                    let message = format!("`{}` needs `{name}`", self.block);
                    self.builder
                        .problem(&self.at.key(), message)
                        .help(format!("add `{name}`: {}", T::kind()));
                    return None;
                }
            },
        };
        self.builder.field = name;
        T::read(self.builder, &value, &at)
    }

    fn find(&self, name: &str) -> Option<(Tree, Address)> {
        match self.fields {
            Tree::Map(entries) => {
                if let Some(i) = entries.iter().position(|(key, _)| key == name) {
                    return Some((entries[i].1.clone(), self.at.child(i)));
                }
            }
            Tree::Null => {}
            value if name == self.first => return Some((value.clone(), self.at.clone())),
            _ => {}
        }
        self.builder.default_of(self.block, name)
    }
}

/// Defines a struct with its [`Fields`]. A default is written as YAML: `= "true"`.
macro_rules! fields {
    (
        $(#[doc = $doc:literal])*
        $vis:vis struct $Name:ident ($name:literal) {
            $( $(#[doc = $field_doc:literal])* $field:ident: $Type:ty $(= $default:literal)?, )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug)]
        $vis struct $Name { $( $(#[doc = $field_doc])* pub $field: $Type, )* }

        impl $crate::nn::fields::Fields for $Name {
            const NAME: &'static str = $name;
            const DOC: &'static [&'static str] = &[$($doc),*];

            fn fields() -> &'static [$crate::nn::fields::FieldDef] {
                use $crate::nn::fields::{FieldDef, FieldType};
                const FIELDS: &[FieldDef] = &[$(
                    FieldDef {
                        name: stringify!($field),
                        kind: <$Type as FieldType>::kind,
                        shape: <$Type as FieldType>::SHAPE,
                        required: !<$Type as FieldType>::OPTIONAL && $crate::nn::fields::given!($($default)?).is_none(),
                        default: $crate::nn::fields::given!($($default)?),
                        doc: &[$($field_doc),*],
                        check: |builder, value, at| { <$Type as FieldType>::read(builder, value, at); },
                    },
                )*];
                FIELDS
            }

            fn read(given: &mut $crate::nn::fields::Given<'_, '_>) -> Option<Self> {
                $( let $field = given.field::<$Type>(stringify!($field), $crate::nn::fields::given!($($default)?)); )*
                Some($Name { $( $field: $field?, )* })
            }
        }
    };
}

macro_rules! given {
    () => {
        None::<&'static str>
    };
    ($default:literal) => {
        Some($default)
    };
}

pub(crate) use {fields, given};

/// Lets a struct of fields be the type of a field itself: a map.
macro_rules! nested {
    ($Name:ident) => {
        impl $crate::nn::fields::FieldType for $Name {
            const SHAPE: $crate::nn::fields::FieldShape = $crate::nn::fields::FieldShape::Fields(
                <$Name as $crate::nn::fields::Fields>::NAME,
                <$Name as $crate::nn::fields::Fields>::fields,
            );
            fn kind() -> String {
                let names: Vec<&str> =
                    <$Name as $crate::nn::fields::Fields>::fields().iter().map(|f| f.name).collect();
                format!("`{}` {{{}}}", <$Name as $crate::nn::fields::Fields>::NAME, names.join(", "))
            }
            fn read(
                builder: &mut $crate::nn::builder::Builder<'_>,
                value: &$crate::spec::Tree,
                at: &$crate::spec::Address,
            ) -> Option<Self> {
                builder.read_nested(value, at)
            }
        }
    };
}

pub(crate) use nested;

impl<T: FieldType> FieldType for Option<T> {
    const OPTIONAL: bool = true;
    const SHAPE: FieldShape = T::SHAPE;
    fn kind() -> String {
        T::kind()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        match value {
            Tree::Null => Some(None),
            value => T::read(builder, value, at).map(Some),
        }
    }
}

/// Largest size that is accepted for one axis; checked before sizes are multiplied.
pub const MAX_SIZE: i64 = 1 << 32;

impl FieldType for usize {
    fn kind() -> String {
        "a positive integer".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        match value {
            Tree::Int(n @ 1..=MAX_SIZE) => Some(*n as usize),
            Tree::Float(x) if *x >= 1.0 && *x <= MAX_SIZE as f64 && x.fract() == 0.0 => Some(*x as usize),
            Tree::Int(n) if *n > MAX_SIZE => {
                let message =
                    format!("wrong value of `{}`: expected at most {MAX_SIZE}, found `{n}`", builder.field);
                builder.wrong_value(at, message);
                None
            }
            _ => builder.mismatch::<Self>(value, at),
        }
    }
}

/// An integer from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index(pub usize);

impl FieldType for Index {
    fn kind() -> String {
        "an integer from 0 on".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        match value {
            Tree::Int(n @ 0..=MAX_SIZE) => Some(Index(*n as usize)),
            _ => builder.mismatch::<Self>(value, at),
        }
    }
}

/// A token id; none for a negative number, which no token has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenId(pub Option<usize>);

impl FieldType for TokenId {
    fn kind() -> String {
        "an integer".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        match value {
            Tree::Int(n) if *n <= MAX_SIZE => Some(TokenId(usize::try_from(*n).ok())),
            _ => builder.mismatch::<Self>(value, at),
        }
    }
}

/// Reads a number of which `fits` holds. Blocks compute in float32: what it cannot hold is refused.
fn number<T: FieldType>(
    builder: &mut Builder<'_>,
    value: &Tree,
    at: &Address,
    fits: fn(f64) -> bool,
) -> Option<f64> {
    match value {
        Tree::Int(n) if fits(*n as f64) => Some(*n as f64),
        Tree::Float(x) if (*x as f32).is_finite() && fits(*x) => Some(*x),
        Tree::Float(x) if x.is_finite() && fits(*x) => {
            let most = f32::MAX;
            let message = format!(
                "wrong value of `{}`: expected a magnitude of at most {most:e}, found `{value}`",
                builder.field
            );
            builder.wrong_value(at, message);
            None
        }
        _ => {
            builder.mismatch::<T>(value, at);
            None
        }
    }
}

impl FieldType for f64 {
    fn kind() -> String {
        "a number".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        number::<Self>(builder, value, at, |_| true)
    }
}

/// A number from 0 on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NonNegative(pub f64);

impl FieldType for NonNegative {
    fn kind() -> String {
        "a number from 0 on".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        number::<Self>(builder, value, at, |x| x >= 0.0).map(NonNegative)
    }
}

/// A number above 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Positive(pub f64);

impl FieldType for Positive {
    fn kind() -> String {
        "a positive number".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        // In float32 too.
        number::<Self>(builder, value, at, |x| x as f32 > 0.0).map(Positive)
    }
}

/// A share of something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(pub f64);

impl FieldType for Share {
    fn kind() -> String {
        "a number above 0, up to 1".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        number::<Self>(builder, value, at, |x| x > 0.0 && x <= 1.0).map(Share)
    }
}

impl FieldType for bool {
    fn kind() -> String {
        "true or false".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        match value {
            Tree::Bool(x) => Some(*x),
            _ => builder.mismatch::<Self>(value, at),
        }
    }
}

/// A map that the block reads by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct AnyMap(pub Tree, pub Address);

impl FieldType for AnyMap {
    fn kind() -> String {
        "a map".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        match value {
            Tree::Map(_) => Some(AnyMap(value.clone(), at.clone())),
            _ => builder.mismatch::<Self>(value, at),
        }
    }
}

/// Reads one of a few words.
pub fn read_choice<T: FieldType + Copy>(
    builder: &mut Builder<'_>,
    value: &Tree,
    at: &Address,
    choices: &[(&str, T)],
) -> Option<T> {
    if let Some((_, choice)) = choices.iter().find(|(name, _)| value.as_text() == Some(name)) {
        return Some(*choice);
    }
    builder.mismatch(value, at)
}

impl FieldType for Activation {
    fn kind() -> String {
        listed(&Activation::NAMES.map(|(name, _)| name))
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        read_choice(builder, value, at, &Activation::NAMES)
    }
}

const LAYOUTS: [(&str, Layout); 2] = [("out_in", Layout::OutIn), ("in_out", Layout::InOut)];

impl FieldType for Layout {
    fn kind() -> String {
        listed(&LAYOUTS.map(|(name, _)| name))
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        read_choice(builder, value, at, &LAYOUTS)
    }
}

/// The path of a module or parameter, with the paths of the enclosing `repeat`s put before it. A path that begins
/// with `/` stands for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Segments joined by dots.
    pub name: String,
    /// Where it is written.
    pub at: Address,
}

impl FieldType for Path {
    const SHAPE: FieldShape = FieldShape::Path;

    fn kind() -> String {
        "a path".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        match value {
            Tree::Text(path) => Some(Path { name: builder.join(path), at: at.clone() }),
            _ => builder.mismatch::<Self>(value, at),
        }
    }
}

/// Whether a linear map has a bias, and where it is if not beside the weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bias {
    /// None.
    No,
    /// `bias` beside `weight`.
    Beside,
    /// A parameter of its own.
    At(Path),
}

impl FieldType for Bias {
    fn kind() -> String {
        "true, false or a path".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        match value {
            Tree::Bool(false) => Some(Bias::No),
            Tree::Bool(true) => Some(Bias::Beside),
            Tree::Text(_) => Path::read(builder, value, at).map(Bias::At),
            _ => builder.mismatch::<Self>(value, at),
        }
    }
}

/// The name of another value of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueName {
    /// The name.
    pub name: String,
    /// Where it is written.
    pub at: Address,
}

impl FieldType for ValueName {
    const SHAPE: FieldShape = FieldShape::ValueName;
    fn kind() -> String {
        "the name of a value".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        match value {
            Tree::Text(name) => Some(ValueName { name: name.clone(), at: at.clone() }),
            _ => builder.mismatch::<Self>(value, at),
        }
    }
}

fields! {
    /// A linear map inside of another block. Its width comes from the block.
    pub struct Projection("linear") {
        /// Path of the module that owns `weight` and `bias`.
        at: Path,
        /// Whether there is a bias, or its path where it is stored under another name.
        bias: Bias = "true",
        /// How the weight is stored.
        layout: Layout = "out_in",
        /// Path of a module whose weight is used if this one is not stored.
        tie: Option<Path>,
    }
}

impl FieldType for Projection {
    const SHAPE: FieldShape =
        FieldShape::PathOrFields(<Projection as Fields>::NAME, <Projection as Fields>::fields);
    fn kind() -> String {
        "a path, or `linear` {at, bias, layout, tie}".into()
    }
    fn read(builder: &mut Builder<'_>, value: &Tree, at: &Address) -> Option<Self> {
        match value {
            Tree::Text(_) | Tree::Map(_) => builder.read_nested(value, at),
            _ => builder.mismatch::<Self>(value, at),
        }
    }
}
