//! smelt runs transformer models on the CPU from a description instead of code.

#![warn(missing_docs)]

pub mod backend;
pub mod cpu;
pub mod error;
pub mod reference;
pub mod tensor;

pub use error::{Error, ErrorKind, Result};
