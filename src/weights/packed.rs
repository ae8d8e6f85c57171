//! Weights as a backend has laid them out, in a file.
//!
//! It is a safetensors file with one tensor of bytes, whose name says of what it was made.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::blob::{Blob, replace};
use super::header::{self, PREFIX, Stored, shown};
use crate::error::{Error, ErrorKind, Problem, Result, count};
use crate::tensor::{Array, DType};

/// How the names of all packed weights begin.
const NAME: &str = "packed weights";

/// Where the bytes may begin: at a line of the cache.
const ALIGN: usize = 64;

/// A file that packed weights are written to, and read from the next time.
#[derive(Debug)]
pub struct PackedFile {
    path: PathBuf,
    name: String,
}

impl PackedFile {
    /// The file at `path`, of weights that `of` tells from all others.
    pub fn new(path: &Path, of: &str) -> PackedFile {
        PackedFile { path: path.to_owned(), name: format!("{NAME}: {of}") }
    }

    /// Maps the weights; none if there is no such file, or its weights are others.
    ///
    /// The file must not be changed in place while they are in use.
    ///
    /// # Errors
    /// `Checkpoint` if there is something else in the file, or it is cut off; `Io` if it cannot be read.
    pub fn read(&self) -> Result<Option<Array>> {
        let Some(blob) = Blob::open(&self.path)? else { return Ok(None) };
        let label = self.path.display().to_string();
        let other = |found: &str, why: Option<&Problem>| {
            let mut problem = Problem::new(format!("`{label}`: expected packed weights, found {found}"));
            if let Some(Problem { message, .. }) = why {
                problem = problem.note(message);
            }
            let help = "name another file, or remove this one: then packed weights are written there";
            problem.help(help).into_error(ErrorKind::Checkpoint)
        };
        let tensors = header::read(&label, &blob, false).map_err(|error| match error.kind() {
            ErrorKind::Checkpoint => other("something else, or a part of them", error.problems().first()),
            _ => error,
        })?;
        let [Stored { name, range, .. }] = &tensors[..] else {
            return Err(other(&count(tensors.len(), "tensor"), None));
        };
        if !name.starts_with(NAME) {
            return Err(other(&format!("a tensor `{}`", shown(name)), None));
        }
        if *name != self.name || range.start % ALIGN != 0 {
            return Ok(None);
        }
        // None if it has become shorter since its header was read.
        Ok(Array::new(DType::U8, vec![range.len()], blob.bytes()?, range.clone()))
    }

    /// Writes the weights. A file of that name is replaced in one go, so that programs that have it open keep the old one.
    ///
    /// # Errors
    /// `Io` if the file cannot be written.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        let info = json!({"dtype": "U8", "shape": [bytes.len()], "data_offsets": [0, bytes.len()]});
        let mut header = json!({ &self.name: info }).to_string();
        let padding =
            (PREFIX as usize + header.len()).next_multiple_of(ALIGN) - PREFIX as usize - header.len();
        header.extend(std::iter::repeat_n(' ', padding));
        // A link stays one.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        replace(&path, |file| {
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(header.as_bytes())?;
            file.write_all(bytes)?;
            // A name for bytes that a failing machine has lost would be worse than none.
            file.sync_all()
        })
        .map_err(|e| Error::new(ErrorKind::Io, format!("cannot write `{}`: {e}", self.path.display())))
    }
}
