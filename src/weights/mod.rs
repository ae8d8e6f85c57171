//! Model directories and the safetensors files in them.
//!
//! A [`Repository`] is where the files of a model are, on disk or inside the program. An [`Index`] knows
//! names, types and shapes of all tensors from the headers alone, so that a description is checked against a
//! checkpoint of many gigabytes in milliseconds. A [`Checkpoint`] maps the files into memory and gives out
//! the tensors, of which nothing is copied. Everything that a file says is checked before it is believed;
//! the format is described at <https://github.com/huggingface/safetensors#format>.

// `map` needs `unsafe`; every other file forbids it for itself.
#![deny(unsafe_code)]

mod blob;
mod bundle;
mod checkpoint;
mod header;
mod index;
mod map;
mod packed;
mod repository;

pub(crate) use blob::write_whole;
pub use bundle::{BundleData, read_bundle, write_bundle};
pub use checkpoint::Checkpoint;
pub use header::StoredType;
pub use index::{Entry, Index};
pub use packed::PackedFile;
pub use repository::Repository;
