#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::Repository;
use super::header::{StoredType, header_end, parse};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Tree;

/// Names, types and shapes of the tensors of a checkpoint, from the headers alone.
#[derive(Debug)]
pub struct Index {
    pub(super) files: Vec<String>,
    entries: BTreeMap<String, Entry>,
}

/// A stored tensor.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Element type.
    pub dtype: StoredType,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// Which of the files.
    pub(super) file: usize,
    /// Bytes of that file.
    pub(super) range: Range<usize>,
}

impl Index {
    /// Reads the headers of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// `Checkpoint` when there is neither, when a header is not valid, or when index and shards do not agree: every tensor of
    /// a listed shard must be listed for that shard, and the other way round.
    pub fn open(repository: &Repository) -> Result<Index> {
        Index::open_in(repository, "")
    }

    /// The same for a folder of the repository.
    pub fn open_in(repository: &Repository, folder: &str) -> Result<Index> {
        let inside =
            |file: &str| if folder.is_empty() { file.to_owned() } else { format!("{folder}/{file}") };
        let single = inside("model.safetensors");
        if repository.has(&single) {
            let mut index = Index { files: Vec::new(), entries: BTreeMap::new() };
            index.add(repository, &single)?;
            return Ok(index);
        }
        let list = inside("model.safetensors.index.json");
        let Some(text) = repository.text(&list)? else {
            let message = format!("no `{}`", repository.label(&single));
            let other = ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5"];
            let help = match other.into_iter().find(|file| repository.has(&inside(file))) {
                Some(file) => {
                    format!("`{file}` is not read; save the model with transformers' `save_pretrained`")
                }
                None => "a checkpoint is `model.safetensors`, or shards with `model.safetensors.index.json`"
                    .into(),
            };
            return Err(Error::new(ErrorKind::Checkpoint, message).help(help));
        };
        Index::sharded(repository, &list, &text, &inside)
    }

    fn sharded(
        repository: &Repository,
        list: &str,
        text: &str,
        inside: &dyn Fn(&str) -> String,
    ) -> Result<Index> {
        let label = repository.label(list);
        let wrong = |what: String| Error::new(ErrorKind::Checkpoint, format!("`{label}`: {what}"));
        let tree = Tree::from_json(text).map_err(|e| wrong(format!("not JSON: {e}")))?;
        let Some(Tree::Map(map)) = tree.get("weight_map") else {
            return Err(wrong("expected a map `weight_map` from tensors to files".into()));
        };
        let mut listed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (tensor, shard) in map {
            let Some(shard) =
                shard.as_text().filter(|shard| !shard.is_empty() && !shard.contains(['/', '\\']))
            else {
                return Err(wrong(format!("tensor `{tensor}`: expected a file name, found `{shard}`")));
            };
            if !seen.insert(tensor) {
                return Err(wrong(format!("tensor `{tensor}` is there twice")));
            }
            listed.entry(shard).or_default().insert(tensor);
        }
        let mut index = Index { files: Vec::new(), entries: BTreeMap::new() };
        for (shard, tensors) in listed {
            let file = inside(shard);
            if !repository.has(&file) {
                return Err(
                    wrong(format!("the shard `{shard}` is missing")).help("is the download complete?")
                );
            }
            let found = index.add(repository, &file)?;
            if let Some(missing) = tensors.iter().find(|name| !found.iter().any(|f| f == *name)) {
                return Err(wrong(format!("tensor `{missing}` is not in `{shard}`")));
            }
            if let Some(extra) = found.iter().find(|name| !tensors.contains(name.as_str())) {
                return Err(wrong(format!("`{shard}` holds `{extra}`, which is not listed for it")));
            }
        }
        Ok(index)
    }

    /// Adds the tensors of a file; gives their names.
    fn add(&mut self, repository: &Repository, file: &str) -> Result<Vec<String>> {
        let label = repository.label(file);
        let (first, len) = repository.beginning(file, 64)?;
        let end = header_end(&label, &first, len)?;
        let (bytes, len) = repository.beginning(file, end)?;
        let number = self.files.len();
        self.files.push(file.to_owned());
        let mut names = Vec::new();
        for tensor in parse(&label, &bytes, len)? {
            names.push(tensor.name.clone());
            let entry = Entry { dtype: tensor.dtype, shape: tensor.shape, file: number, range: tensor.range };
            if let Some(other) = self.entries.insert(tensor.name.clone(), entry) {
                let message =
                    format!("tensor `{}` is in `{}` and in `{file}`", tensor.name, self.files[other.file]);
                return Err(Error::new(ErrorKind::Checkpoint, message));
            }
        }
        Ok(names)
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All tensors, by their names in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
