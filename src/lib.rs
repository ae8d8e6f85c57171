//! smelt runs transformer models on the CPU from a description instead of code.

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
