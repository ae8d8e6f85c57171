#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;

use super::header::{self, Object, Pairs, StoredType, broken, repeated, shown};
use super::repository::{Repository, is_inside};
use crate::error::{Error, ErrorKind, Problem, Result, count};

const ONE: &str = "model.safetensors";
const MANY: &str = "model.safetensors.index.json";

/// Items of a list that a message shows.
const MAX_LISTED: usize = 8;

/// What a checkpoint says about a tensor.
#[derive(Clone, Debug, Hash)]
pub struct Entry {
    /// Type of its elements.
    pub dtype: StoredType,
    /// Sizes of its axes; none for a scalar.
    pub shape: Vec<usize>,
    /// Which file of the index it is in.
    pub(super) file: usize,
    /// Its bytes in that file; they fit shape and type, and lay in the file when it was indexed, unless only its header
    /// had to be there.
    pub(super) range: Range<usize>,
}

/// Names, types and shapes of all tensors of a checkpoint. Only the headers of its files are read.
#[derive(Debug)]
pub struct Index {
    entries: BTreeMap<String, Entry>,
    files: Vec<Shard>,
}

/// A safetensors file.
#[derive(Clone, Debug)]
pub(super) struct Shard {
    /// Its name in the repository.
    pub file: String,
    /// Its bytes when it was indexed.
    pub len: u64,
}

impl Index {
    /// Reads `model.safetensors` of a repository or, without it, the files that the `weight_map` of
    /// `model.safetensors.index.json` lists. A tensor that is in such a file and not in the map belongs to
    /// the checkpoint like any other, as it does for transformers, so that nothing stored goes unnoticed.
    ///
    /// # Errors
    /// `Checkpoint` if there is neither; if anything is wrong with a header, or it does not fit its file
    /// (types that are not known are an error only where they are used); if listed files are missing or
    /// outside of the repository, a tensor is not where it is listed, or two files have the same. `Io` if
    /// a file cannot be read.
    pub fn open(repository: &Repository) -> Result<Index> {
        Index::read(repository, "", false)
    }

    /// The same for a checkpoint of which only the headers need to be there: its files may end anywhere behind them. It
    /// serves to plan a model; [`Checkpoint::array`](super::Checkpoint::array) refuses tensors that are not there.
    ///
    /// # Errors
    /// As [`Index::open`], but for files that are cut off.
    pub fn open_headers(repository: &Repository) -> Result<Index> {
        Index::read(repository, "", true)
    }

    /// The same for the files of a folder inside the repository, such as `2_Dense`; it is the repository
    /// itself if `folder` is empty.
    ///
    /// # Errors
    /// As [`Index::open`]; `Config` if the folder is outside of the repository.
    pub fn open_in(repository: &Repository, folder: &str) -> Result<Index> {
        Index::read(repository, folder, false)
    }

    fn read(repository: &Repository, folder: &str, cut_off: bool) -> Result<Index> {
        let path = |file: &str| match folder {
            "" => file.to_owned(),
            folder => format!("{folder}/{file}"),
        };
        let mut index = Index { entries: BTreeMap::new(), files: Vec::new() };
        if index.add(repository, path(ONE), cut_off)? {
            return Ok(index);
        }
        let Some(text) = repository.text(&path(MANY)).map_err(as_checkpoint)? else {
            return Err(nothing(repository, folder, &path(ONE)));
        };
        let list = repository.label(&path(MANY));
        let mut map = weight_map(&list, &text)?;
        map.sort_by(|(_, a), (_, b)| a.cmp(b));
        let mut missing = Vec::new();
        for shards in map.chunk_by(|(_, a), (_, b)| a == b) {
            let shard = &shards[0].1;
            if !index.add(repository, path(shard), cut_off)? {
                missing.push(format!("`{}`", shown(shard)));
            }
        }
        if !missing.is_empty() {
            let message = format!("{} that `{list}` lists cannot be found", count(missing.len(), "file"));
            return Err(listing(message, &missing, "download the missing files"));
        }
        index.check_listed(repository, &list, &map, path)?;
        Ok(index)
    }

    /// Adds the tensors of a file, which with `cut_off` may lack its end; false if there is no such file.
    fn add(&mut self, repository: &Repository, file: String, cut_off: bool) -> Result<bool> {
        let Some(blob) = repository.blob(&file)? else { return Ok(false) };
        let label = repository.label(&file);
        let number = self.files.len();
        self.files.push(Shard { file, len: blob.len() });
        for tensor in header::read(&label, &blob, cut_off)? {
            let entry = Entry { dtype: tensor.dtype, shape: tensor.shape, file: number, range: tensor.range };
            if let Some(before) = self.entries.get(&tensor.name) {
                let other = repository.label(&self.files[before.file].file);
                let name = shown(&tensor.name);
                let message =
                    format!("expected tensor `{name}` in one file, found it in `{other}` and in `{label}`");
                return Err(broken(
                    message,
                    "the files are not of one checkpoint; download all of them again",
                ));
            }
            self.entries.insert(tensor.name, entry);
        }
        Ok(true)
    }

    /// Checks that each listed tensor is in the file that the list says.
    fn check_listed(
        &self,
        repository: &Repository,
        list: &str,
        map: &[(String, String)],
        path: impl Fn(&str) -> String,
    ) -> Result<()> {
        let mut wrong = Vec::new();
        for (name, shard) in map {
            let entry = self.get(name);
            let found = entry.map(|entry| self.files[entry.file].file.as_str());
            if found != Some(path(shard).as_str()) {
                let found = match found {
                    Some(file) => format!("found in `{}`", repository.label(file)),
                    None => "not found".to_owned(),
                };
                let label = repository.label(&path(shard));
                wrong.push(format!("`{}`: expected in `{label}`, {found}", shown(name)));
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let message = format!("{} not where `{list}` lists them", count(wrong.len(), "tensor"));
        Err(listing(message, &wrong, "the files are not of one checkpoint; download all of them again"))
    }

    /// A tensor by its stored name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All tensors, sorted by name.
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

    /// The files that hold the tensors.
    pub(super) fn files(&self) -> &[Shard] {
        &self.files
    }
}

/// The tensors that an index file lists, each with the file that it is in.
fn weight_map(list: &str, text: &str) -> Result<Vec<(String, String)>> {
    #[derive(Deserialize)]
    struct Listing {
        weight_map: Pairs<String>,
    }
    let again = "download it again";
    let Object(Listing { weight_map: Pairs(map) }) = serde_json::from_str(text)
        .map_err(|e| broken(format!("`{list}`: invalid index: {}", shown(&e.to_string())), again))?;
    if let Some(name) = repeated(&map) {
        let message = format!("`{list}`: expected each tensor once, found `{}` twice", shown(name));
        return Err(broken(message, again));
    }
    for (name, shard) in &map {
        if shard.contains('/') || !is_inside(shard) {
            let message = format!(
                "`{list}`: expected the name of a file beside it for tensor `{}`, found `{}`",
                shown(name),
                shown(shard)
            );
            return Err(broken(
                message,
                "do not use this checkpoint; it reaches for files that are not its own",
            ));
        }
    }
    Ok(map)
}

/// The error of a folder without a checkpoint that can be read.
fn nothing(repository: &Repository, folder: &str, file: &str) -> Error {
    const FORMATS: [&str; 9] =
        [".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx"];
    let is_checkpoint = |name: &String| FORMATS.iter().any(|format| name.ends_with(format));
    let found: Vec<String> = repository.files_in(folder).into_iter().filter(is_checkpoint).collect();
    let mut problem = Problem::new(format!("no `{}`", repository.label(file)));
    if !found.is_empty() {
        let names: Vec<String> = found.iter().take(4).map(|name| format!("`{}`", shown(name))).collect();
        let more = if found.len() > 4 { format!(" and {} more", found.len() - 4) } else { String::new() };
        problem = problem.remark("found", names.join(", ") + &more);
    }
    let help = match found.iter().any(|name| name.ends_with(".safetensors")) {
        true => "smelt reads `model.safetensors`, or the files that `model.safetensors.index.json` lists",
        false if found.is_empty() => "is this the directory of a model, and its download complete?",
        false => {
            "smelt reads safetensors: download that version of the model, or convert it with `save_pretrained` of \
             transformers"
        }
    };
    problem.help(help).into_error(ErrorKind::Checkpoint)
}

/// An error with a list under it.
fn listing(message: String, items: &[String], help: &str) -> Error {
    let mut problem = Problem::new(message);
    for item in items.iter().take(MAX_LISTED) {
        problem = problem.remark("", item.clone());
    }
    if items.len() > MAX_LISTED {
        problem = problem.remark("", format!("and {} more", items.len() - MAX_LISTED));
    }
    problem.help(help).into_error(ErrorKind::Checkpoint)
}

/// A text that is part of the checkpoint is no configuration.
fn as_checkpoint(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Config => Error::many(ErrorKind::Checkpoint, error.problems().to_vec()),
        _ => error,
    }
}
