//! The language: YAML text to a typed tree of names, bindings and blocks.
//!
//! Start with [`Spec`]. This module knows the shape of a file, expressions, and where things stand; it knows
//! neither which blocks exist nor any config or checkpoint.

#![forbid(unsafe_code)]

mod expression;
mod parse;
mod problems;
mod source;
mod tree;

pub use expression::{Scope, Template};
pub use parse::{Binding, BindingValue, Defaults, Head, Item, NamedValue, Spec, Step, Test, Weights};
pub(crate) use parse::{either, listed};
pub use problems::Problems;
pub use source::Source;
pub use tree::{Address, Tree};
