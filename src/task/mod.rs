//! Text in, answer out: joins a tokenizer and a network.

#![forbid(unsafe_code)]

mod bundle;

pub use bundle::{Bundle, Comparison, Greedy};
