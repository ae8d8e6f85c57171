#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::header::StoredType;
use super::repository::Bytes;
use super::{Entry, Index, Repository};
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::Array;

/// The tensors of a checkpoint, in mapped files. A file must not be shortened while it is in use.
pub struct Checkpoint {
    files: Vec<Bytes>,
    entries: BTreeMap<String, Entry>,
}

impl Checkpoint {
    /// Maps the files of an index.
    ///
    /// # Errors
    /// `Io` when a file cannot be mapped.
    pub fn map(repository: &Repository, index: &Index) -> Result<Checkpoint> {
        let files = index.files.iter().map(|file| repository.bytes(file)).collect::<Result<_>>()?;
        let entries = index.iter().map(|(name, entry)| (name.to_owned(), entry.clone())).collect();
        Ok(Checkpoint { files, entries })
    }

    /// A tensor: a view into its file.
    ///
    /// # Errors
    /// `Checkpoint` when there is none of that name, its type cannot be read, or the file became shorter.
    pub fn array(&self, name: &str) -> Result<Array> {
        let wrong = |what: String| Error::new(ErrorKind::Checkpoint, format!("tensor `{name}`: {what}"));
        let entry = self.entries.get(name).ok_or_else(|| wrong("there is none".into()))?;
        let StoredType::Known(dtype) = entry.dtype else {
            return Err(wrong(format!("its type `{}` cannot be read", entry.dtype)));
        };
        let owner = self.files[entry.file].clone();
        Array::new(dtype, entry.shape.clone(), owner, entry.range.clone())
            .ok_or_else(|| wrong("it lies outside of its file, which has changed".into()))
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({} tensors)", self.entries.len())
    }
}
