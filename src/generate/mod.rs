//! Choosing the next token from logits, and knowing when to stop. Works on numbers and text alone.

#![forbid(unsafe_code)]

mod constraints;
mod sample;
mod stop;

pub use constraints::Constraints;
pub use sample::{Sampler, SamplingOptions, argmax};
pub use stop::{Piece, StopStrings};
