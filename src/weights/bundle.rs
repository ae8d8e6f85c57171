//! Single safetensors files of named arrays: inputs, reference outputs and results.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

use super::blob::{Blob, write_whole};
use super::checkpoint::view;
use super::header::{read, repeated, shown};
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::Array;

/// Elements of an array to be written, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum BundleData {
    /// float32.
    F32(Vec<f32>),
    /// 64-bit integers.
    I64(Vec<i64>),
}

impl BundleData {
    fn len(&self) -> usize {
        match self {
            BundleData::F32(data) => data.len(),
            BundleData::I64(data) => data.len(),
        }
    }

    fn to_bytes(&self) -> (Dtype, Vec<u8>) {
        match self {
            BundleData::F32(data) => (Dtype::F32, data.iter().flat_map(|x| x.to_le_bytes()).collect()),
            BundleData::I64(data) => (Dtype::I64, data.iter().flat_map(|x| x.to_le_bytes()).collect()),
        }
    }
}

/// Writes arrays, each a name, a shape and the elements, into a safetensors file. A file of that name is
/// replaced in one go, so that programs that have it open keep the old one.
///
/// # Errors
/// `Input` if a name occurs twice or is `__metadata__`, or elements do not fit their shape; `Io` if the file
/// cannot be written.
pub fn write_bundle(path: &Path, tensors: &[(String, Vec<usize>, BundleData)]) -> Result<()> {
    let label = path.display();
    let wrong = |what: String| Error::new(ErrorKind::Input, format!("cannot write `{label}`: {what}"));
    let names: Vec<(String, ())> = tensors.iter().map(|(name, ..)| (name.clone(), ())).collect();
    if let Some(name) = repeated(&names) {
        return Err(wrong(format!("expected each tensor once, found `{}` twice", shown(name))));
    }
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, shape, data) in tensors {
        if name == "__metadata__" {
            return Err(wrong("`__metadata__` cannot be the name of a tensor".into()));
        }
        if shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)) != Some(data.len()) {
            let (name, found) = (shown(name), data.len());
            return Err(wrong(format!("tensor `{name}`: expected the elements of {shape:?}, found {found}")));
        }
        stored.push((name, shape, data.to_bytes()));
    }
    let views: Vec<(&String, TensorView<'_>)> = stored
        .iter()
        .map(|(name, shape, (dtype, bytes))| Ok((*name, TensorView::new(*dtype, (*shape).clone(), bytes)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()
        .map_err(|e| wrong(e.to_string()))?;
    let file = serialize(views, None).map_err(|e| wrong(e.to_string()))?;
    write_whole(path, &file)
}

/// Reads all arrays of a safetensors file; they share its mapped memory.
///
/// # Errors
/// `Checkpoint` if anything is wrong with the file or a type is not known; `Io` if it cannot be read.
pub fn read_bundle(path: &Path) -> Result<BTreeMap<String, Array>> {
    let label = path.display().to_string();
    let Some(blob) = Blob::open(path)? else {
        // The system says it in words that people know.
        let cause = fs::metadata(path).err().unwrap_or_else(|| std::io::ErrorKind::NotFound.into());
        return Err(Error::io(path, &cause));
    };
    let tensors = read(&label, &blob, false)?;
    let bytes = blob.bytes()?;
    let array = |t: super::header::Stored| {
        let array = view(&label, &t.name, &t.dtype, &t.shape, &bytes, t.range)?;
        Ok((t.name, array))
    };
    tensors.into_iter().map(array).collect()
}
