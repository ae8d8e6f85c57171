#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;

use super::blob::Bytes;
use super::header::{AGAIN, StoredType, broken, shown};
use super::index::{Entry, Index};
use super::repository::Repository;
use crate::error::{Result, closest};
use crate::tensor::Array;

/// The tensors of a checkpoint, in files that are mapped into memory.
///
/// The files must not be changed in place while this or an array of it lives.
pub struct Checkpoint {
    name: String,
    entries: BTreeMap<String, Entry>,
    /// The files of the index, each with what messages call it.
    files: Vec<(String, Bytes)>,
}

impl Checkpoint {
    /// Maps the files of an index. Nothing is read yet: the system does that where an array is used.
    ///
    /// # Errors
    /// `Checkpoint` if a file is gone or has another size than when it was indexed; `Io` if it cannot be
    /// mapped.
    pub fn map(repository: &Repository, index: &Index) -> Result<Checkpoint> {
        let mut files = Vec::with_capacity(index.files().len());
        for shard in index.files() {
            let label = repository.label(&shard.file);
            let Some(bytes) = repository.bytes(&shard.file)? else {
                let message = format!("`{label}` has gone since its header was read");
                return Err(broken(message, "start again when the download has ended"));
            };
            let found = (*bytes).as_ref().len();
            if found as u64 != shard.len {
                let expected = shard.len;
                let message = format!(
                    "`{label}` has changed since its header was read: expected {expected} bytes, found {found}"
                );
                return Err(broken(message, "start again when the download has ended"));
            }
            files.push((label, bytes));
        }
        let entries = index.iter().map(|(name, entry)| (name.to_owned(), entry.clone())).collect();
        Ok(Checkpoint { name: repository.name().to_owned(), entries, files })
    }

    /// A tensor by its stored name; it shares the memory of the file.
    ///
    /// # Errors
    /// `Checkpoint` if there is no such tensor, or its type is not known.
    pub fn array(&self, name: &str) -> Result<Array> {
        let Some(entry) = self.entries.get(name) else {
            let message = format!("expected a tensor `{}` in `{}`, found none", shown(name), self.name);
            let help = match closest(name, self.entries.keys().map(String::as_str)) {
                Some(close) => format!("did you mean `{}`?", shown(close)),
                None => "is the checkpoint the one that belongs to the model?".to_owned(),
            };
            return Err(broken(message, &help));
        };
        let (label, bytes) = &self.files[entry.file];
        view(label, name, &entry.dtype, &entry.shape, bytes, entry.range.clone())
    }

    /// Says that from now on a few bytes here and there are all that is read.
    pub fn settle(&self) {
        self.files.iter().for_each(|(_, bytes)| bytes.settle());
    }
}

/// The array of a tensor that a header describes.
pub(super) fn view(
    label: &str,
    name: &str,
    dtype: &StoredType,
    shape: &[usize],
    bytes: &Bytes,
    range: std::ops::Range<usize>,
) -> Result<Array> {
    let StoredType::Known(known) = dtype else {
        let message = format!(
            "`{label}`: tensor `{}`: expected a type such as float32, float16 or bfloat16, found {dtype}",
            shown(name)
        );
        return Err(broken(message, "quantised checkpoints are not read; convert it to one of these types"));
    };
    // Shape, type and range were checked with the header, so this means that the file is another one now.
    Array::new(*known, shape.to_vec(), bytes.clone(), range).ok_or_else(|| {
        broken(format!("`{label}`: tensor `{}` is not where its header says", shown(name)), AGAIN)
    })
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.name, self.entries.len())
    }
}
