//! smelt runs transformer models on the CPU from a description instead of code.
//!
//! A model is a directory with `config.json`, `*.safetensors` and `tokenizer.json`, and a YAML file that describes its
//! architecture. Some architectures are built in; [`Model::open`] picks one by the config, [`load_from_spec`] takes one
//! of your own.
//!
//! ```
//! # fn main() -> smelt::Result<()> {
//! let model = smelt::Model::open("examples/models/language-id")?;
//! let answers = model.classify(&["Where is the nearest station?".into()])?;
//! let best = &answers[0].labels[0];
//! assert_eq!(best.label, "en");
//! println!("{:.4} {}", best.score, best.label);
//! # Ok(()) }
//! ```
//!
//! [`Model`] has a method for each task: [`classify`](Model::classify), [`classify_tokens`](Model::classify_tokens),
//! [`answer`](Model::answer), [`fill_mask`](Model::fill_mask), [`generate`](Model::generate), [`stream`](Model::stream),
//! [`stream_batch`](Model::stream_batch), [`embed`](Model::embed), [`classify_images`](Model::classify_images),
//! [`embed_images`](Model::embed_images), [`describe_images`](Model::describe_images), [`transcribe`](Model::transcribe), and
//! [`forward`](Model::forward) for raw token ids. Any number of threads may use one model.
//! A text's result does not depend, to the bit, on what else is in the batch or on the number of threads.
//!
//! Everything that can be wrong with a file is an [`Error`] before a weight is read; it holds all problems that were
//! found, each with its place. `docs/language.md` explains the language, `docs/adding-an-architecture.md` writes a
//! description from scratch.
//!
//! # The path of a model
//!
//! | module | what it does |
//! |---|---|
//! | [`spec`] | YAML to a typed tree; expressions |
//! | [`weights`] | safetensors files: names, types and shapes, then the mapped data |
//! | [`plan`] | description, config and names of tensors to a plan in which every shape is a number |
//! | [`nn`] | the blocks, one file each, written against [`backend`] |
//! | [`cpu`], [`mod@reference`] | the fast backend, and the plain one that it is tested against |
//! | [`model`] | a plan with its weights: forward passes and sessions with a key-value cache |
//! | [`tokenizer`], [`generate`] | text to ids and back; choosing the next token |
//! | [`preprocess`] | images and sounds to tensors |
//! | [`task`] | text in, answer out |
//! | [`tensor`], [`error`] | what the others share |
//! | [`docs`], [`schema`] | the block reference and a JSON Schema, made from the definitions of the blocks |
//! | [`draft`] | a first description of a model that none describes |

#![warn(missing_docs)]

pub mod backend;
pub mod cpu;
pub mod docs;
pub mod draft;
pub mod error;
pub mod generate;
pub mod model;
pub mod nn;
pub mod plan;
pub mod preprocess;
pub mod reference;
pub mod schema;
pub mod spec;
pub mod task;
pub mod tensor;
pub mod tokenizer;
pub mod weights;

pub use backend::{Compute, WeightType};
pub use error::{Error, ErrorKind, Result};
pub use generate::SamplingOptions;
pub use plan::Arch;
pub use preprocess::{Image, Sound};
pub use task::{
    Answer, AnswerOptions, Answers, BackendKind, Classification, Embedding, FinishReason, GenerateOptions,
    Generation, Label, MaskFills, Model, OpenOptions, Pooling, Text, TokenLabels, TranscribeOptions,
    Transcription, load_from_spec,
};

// The example in the README is compiled and run with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
