//! Text in, answer out: joins a tokenizer and a network.
//!
//! [`Model`] is a loaded model directory. Its methods are the tasks, one file each.

#![forbid(unsafe_code)]

mod answer;
mod bundle;
mod classify;
mod embed;
mod fill_mask;
mod generate;
mod generation_config;
mod images;
mod model;
mod modules;
mod sentence;
mod tokenizer;
mod transcribe;

pub use answer::{Answer, AnswerOptions, Answers};
pub use bundle::{Bundle, Comparison, Greedy, OtherToken};
pub use classify::{Classification, Label, TokenLabel, TokenLabels};
pub use embed::Embedding;
pub use fill_mask::{Fill, MaskFills};
pub use generate::{BatchStream, FinishReason, GenerateOptions, Generation, TextStream};
pub use model::{BackendKind, Model, OpenOptions, Text, load_from_spec, open_network};
pub use modules::{Culprit, Difference, Fault, ModuleComparison, ModuleTrace};
pub use sentence::Pooling;
pub use transcribe::{TranscribeOptions, Transcription};
