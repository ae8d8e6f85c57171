//! The header of a safetensors file: names, types, shapes and places of its tensors.
//!
//! Read here instead of by the `safetensors` crate because that keeps the last of repeated names and refuses a file for one
//! tensor of a type it does not know, even if nobody wants that tensor.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::spec::Tree;
use crate::tensor::DType;

/// Longest header that is read, as in the `safetensors` crate.
const MAX_HEADER: u64 = 100_000_000;

/// The type that a file gives a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// One that can be read.
    Known(DType),
    /// Another one, by its name.
    Unknown(String),
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoredType::Known(dtype) => dtype.fmt(f),
            StoredType::Unknown(name) => f.write_str(name),
        }
    }
}

/// A tensor as a header describes it.
#[derive(Clone, Debug)]
pub struct Described {
    pub name: String,
    pub dtype: StoredType,
    pub shape: Vec<usize>,
    /// Bytes of the file.
    pub range: Range<usize>,
}

/// How many bytes of a file have to be read to have its whole header; `first` are its first bytes, at least eight if the file
/// has that many, and `len` is its length.
pub fn header_end(file: &str, first: &[u8], len: u64) -> Result<u64> {
    let Some(bytes) = first.first_chunk::<8>() else {
        let message = format!("`{file}` has {len} bytes, too few for a safetensors file");
        return Err(broken(message, "is the download complete?"));
    };
    if first.starts_with(b"version https://git-lfs") {
        let message = format!("`{file}` is a Git LFS pointer, not the file itself");
        return Err(broken(message, "run `git lfs pull` in its directory"));
    }
    if first.starts_with(b"<") {
        let message = format!("`{file}` is a web page, not a safetensors file");
        return Err(broken(message, "download the raw file"));
    }
    let size = u64::from_le_bytes(*bytes);
    if size > MAX_HEADER {
        let message = format!("`{file}`: expected a header of at most {MAX_HEADER} bytes, found {size}");
        return Err(broken(message, "is it a safetensors file?"));
    }
    if size + 8 > len {
        let message = format!("`{file}`: expected a header of {size} bytes, found {} in the file", len - 8);
        return Err(broken(message, "is the download complete?"));
    }
    Ok(size + 8)
}

/// Reads a header; `bytes` is the file up to its end, `len` the length of the file.
pub fn parse(file: &str, bytes: &[u8], len: u64) -> Result<Vec<Described>> {
    let wrong = |what: String| broken(format!("`{file}`: {what}"), "is the file damaged?");
    let text = std::str::from_utf8(&bytes[8..]).map_err(|_| wrong("the header is not UTF-8".into()))?;
    let tree = Tree::from_json(text).map_err(|e| wrong(format!("the header is not JSON: {e}")))?;
    if !matches!(tree, Tree::Map(_)) {
        return Err(wrong(format!("expected a map of tensors in the header, found {}", tree.kind())));
    }
    let start = bytes.len();
    let mut tensors = Vec::new();
    for (name, entry) in tree.entries() {
        if name != "__metadata__" {
            let tensor =
                describe(name, entry, start).map_err(|what| wrong(format!("tensor `{name}`: {what}")))?;
            tensors.push(tensor);
        }
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(wrong(format!("tensor `{}` is there twice", pair[0].name)));
    }
    check_layout(&tensors, start, len)
        .map_err(|what| broken(format!("`{file}`: {what}"), "is the download complete?"))?;
    Ok(tensors)
}

fn describe(name: &str, entry: &Tree, start: usize) -> Result<Described, String> {
    let dtype = match entry.get("dtype") {
        Some(Tree::Text(dtype)) => match dtype.as_str() {
            "F32" => StoredType::Known(DType::F32),
            "F16" => StoredType::Known(DType::F16),
            "BF16" => StoredType::Known(DType::Bf16),
            "F64" => StoredType::Known(DType::F64),
            "I64" => StoredType::Known(DType::I64),
            "I32" => StoredType::Known(DType::I32),
            "U8" => StoredType::Known(DType::U8),
            "BOOL" => StoredType::Known(DType::Bool),
            other => StoredType::Unknown(other.to_owned()),
        },
        _ => return Err("expected a `dtype`".into()),
    };
    let shape = sizes(entry, "shape")?;
    let offsets = sizes(entry, "data_offsets")?;
    let [begin, end] = offsets[..] else {
        return Err(format!("expected two `data_offsets`, found {}", offsets.len()));
    };
    let place =
        |offset: usize| offset.checked_add(start).ok_or_else(|| "`data_offsets` are too large".to_owned());
    let range = place(begin)?..place(end)?;
    if begin > end {
        return Err(format!("expected `data_offsets` in order, found {begin} and {end}"));
    }
    if let StoredType::Known(dtype) = &dtype {
        let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let bytes = elements.and_then(|n| n.checked_mul(dtype.size()));
        let bytes = bytes.ok_or_else(|| format!("a shape of {shape:?} is too large"))?;
        if bytes != range.len() {
            return Err(format!("expected {bytes} bytes for {dtype} {shape:?}, found {}", range.len()));
        }
    }
    Ok(Described { name: name.to_owned(), dtype, shape, range })
}

fn sizes(entry: &Tree, key: &str) -> Result<Vec<usize>, String> {
    let Some(Tree::List(items)) = entry.get(key) else { return Err(format!("expected a list `{key}`")) };
    let size = |item: &Tree| match item {
        Tree::Int(n) => usize::try_from(*n).ok(),
        _ => None,
    };
    let sizes = items
        .iter()
        .map(|item| size(item).ok_or_else(|| format!("`{key}` holds `{item}`, which is not a size")));
    sizes.collect()
}

/// Checks that the tensors fill the file without holes and without lying over each other.
fn check_layout(tensors: &[Described], start: usize, len: u64) -> Result<(), String> {
    let mut order: Vec<&Described> = tensors.iter().collect();
    order.sort_by_key(|t| (t.range.start, t.range.end));
    let mut end = start;
    for tensor in order {
        if tensor.range.start != end {
            let what =
                if tensor.range.start < end { "lies over another one" } else { "leaves a hole before it" };
            return Err(format!("tensor `{}` {what}", tensor.name));
        }
        end = tensor.range.end;
    }
    if end as u64 != len {
        return Err(format!("expected {end} bytes, found {len}"));
    }
    Ok(())
}

fn broken(message: String, help: &str) -> Error {
    Error::new(ErrorKind::Checkpoint, message).help(help)
}
