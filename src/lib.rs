//! smelt runs transformer models on the CPU from a description instead of code.
//!
//! A model is an ordinary Hugging Face directory and an architecture: a YAML file that names config keys, blocks and tensors.
//!
//! ```
//! # fn main() -> smelt::Result<()> {
//! let model = smelt::Model::open("examples/models/language-id")?;
//! let answer = &model.classify(&["Where is the nearest station?".into()])?[0];
//! assert_eq!(answer.labels[0].label, "en");
//! # Ok(()) }
//! ```
//!
//! [`Model`] is the way in: its methods are the tasks. Below it, in the order in which a model comes to be: [`spec`] reads the
//! YAML, [`plan`] joins it with `config.json` and the headers of the checkpoint ([`weights`]) and checks everything, [`nn`] holds
//! the blocks, [`model`] runs them on a [`backend`], of which there are two: [`cpu`] and [`reference`]. [`tokenizer`],
//! [`generate`] and [`task`] turn text into answers.

#![warn(missing_docs)]

pub mod backend;
pub mod cpu;
pub mod docs;
pub mod error;
pub mod generate;
pub mod model;
pub mod nn;
pub mod plan;
pub mod reference;
pub mod spec;
pub mod task;
pub mod tensor;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, ErrorKind, Result};
pub use generate::SamplingOptions;
pub use task::{
    Answer, AnswerOptions, BackendKind, Classification, Embedding, FinishReason, GenerateOptions, Generation,
    Label, MaskFills, Model, OpenOptions, Pooling, Text, TokenLabels, load_from_spec,
};
