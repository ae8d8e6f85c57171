//! Files of a model: the directory they lie in, safetensors headers, and views of the tensors in mapped files.
//!
//! [`Repository`] is the directory, [`Index`] knows names, types and shapes from the headers alone, [`Checkpoint`] gives the
//! tensors. Knows nothing of blocks.

mod bundle;
mod checkpoint;
mod header;
mod index;
mod map;
mod repository;

pub use bundle::{BundleData, read_bundle, write_bundle};
pub use checkpoint::Checkpoint;
pub use header::StoredType;
pub use index::{Entry, Index};
pub use repository::{Bytes, Repository};
