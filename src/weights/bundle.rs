//! Safetensors files of named tensors that are no checkpoint: inputs, outputs, references.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView};

use super::header::{StoredType, header_end, parse};
use super::map::map;
use super::repository::Bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::Array;

/// Elements to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum BundleData {
    /// float32.
    F32(Vec<f32>),
    /// int64.
    I64(Vec<i64>),
}

/// Reads a safetensors file whole.
///
/// # Errors
/// `Io` when it cannot be read, `Checkpoint` when it is not valid.
pub fn read_bundle(path: &Path) -> Result<BTreeMap<String, Array>> {
    let label = path.display().to_string();
    let bytes: Bytes = Arc::new(map(path)?);
    let all: &[u8] = (*bytes).as_ref();
    let len = all.len() as u64;
    let end = header_end(&label, &all[..all.len().min(64)], len)?;
    let mut tensors = BTreeMap::new();
    // The header's end lies inside of the file, so it is a size.
    for tensor in parse(&label, &all[..end as usize], len)? {
        let StoredType::Known(dtype) = tensor.dtype else {
            let message = format!(
                "`{label}`: tensor `{}` is of type `{}`, which cannot be read",
                tensor.name, tensor.dtype
            );
            return Err(Error::new(ErrorKind::Checkpoint, message));
        };
        if let Some(array) = Array::new(dtype, tensor.shape, bytes.clone(), tensor.range) {
            tensors.insert(tensor.name, array);
        }
    }
    Ok(tensors)
}

/// Writes tensors, each with its name and shape, to a safetensors file.
///
/// # Errors
/// `Io` when the file cannot be written.
pub fn write_bundle(path: &Path, tensors: &[(String, Vec<usize>, BundleData)]) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Io, format!("cannot write `{}`: {e}", path.display()))
    };
    let bytes: Vec<(Dtype, Vec<u8>)> = tensors
        .iter()
        .map(|(_, _, data)| match data {
            BundleData::F32(x) => (Dtype::F32, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
            BundleData::I64(x) => (Dtype::I64, x.iter().flat_map(|x| x.to_le_bytes()).collect()),
        })
        .collect();
    let mut views = Vec::new();
    for ((name, shape, _), (dtype, bytes)) in tensors.iter().zip(&bytes) {
        views.push((name, TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| failed(&e))?));
    }
    safetensors::serialize_to_file(views, None, path).map_err(|e| failed(&e))
}
