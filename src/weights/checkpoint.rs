#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};

use super::blob::Blob;
use super::header::{AGAIN, StoredType, broken, shown};
use super::index::{Entry, Index};
use super::repository::Repository;
use crate::error::{Result, closest};
use crate::tensor::{Array, Bytes};

/// The tensors of a checkpoint, in files that are mapped into memory.
///
/// The files must not be changed in place while this or an array of it lives.
pub struct Checkpoint {
    name: String,
    entries: BTreeMap<String, Entry>,
    /// The files of the index.
    files: Vec<MappedFile>,
}

struct MappedFile {
    /// What messages call it.
    label: String,
    blob: Blob,
    bytes: Bytes,
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
            let Some(blob) = repository.blob(&shard.file)? else {
                let message = format!("`{label}` has gone since its header was read");
                return Err(broken(message, "start again when the download has ended"));
            };
            let bytes = blob.bytes()?;
            let found = (*bytes).as_ref().len();
            if found as u64 != shard.len {
                let expected = shard.len;
                let message = format!(
                    "`{label}` has changed since its header was read: expected {expected} bytes, found {found}"
                );
                return Err(broken(message, "start again when the download has ended"));
            }
            files.push(MappedFile { label, blob, bytes });
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
        let MappedFile { label, bytes, .. } = &self.files[entry.file];
        view(label, name, &entry.dtype, &entry.shape, bytes, entry.range.clone())
    }

    /// Hashes what tells this checkpoint from others: names, types and places of its tensors, of each some bytes, and of each file size and
    /// time of the last change. A file without such a time, such as those inside of the program, is read as a whole.
    ///
    /// # Errors
    /// `Io` if a file cannot be read.
    pub fn identify(&self, hasher: &mut impl Hasher) -> Result<()> {
        self.entries.hash(hasher);
        self.files.iter().enumerate().try_for_each(|(i, file)| {
            let tensors = self.entries.values().filter(|entry| entry.file == i);
            file.blob.identify(tensors.map(|entry| &entry.range), hasher)
        })
    }

    /// Says that from now on a few bytes here and there are all that is read.
    pub fn settle(&self) {
        self.files.iter().for_each(|file| file.bytes.settle());
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
