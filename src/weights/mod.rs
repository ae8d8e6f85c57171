//! TEMPORARY
#![allow(missing_docs)]
use crate::error::*;
use crate::tensor::{Array, DType};
use std::collections::BTreeMap;
use std::path::*;
use std::sync::Arc;
#[derive(Debug, Clone, PartialEq)]
pub enum StoredType {
    Known(DType),
    Unknown(String),
}
impl std::fmt::Display for StoredType {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            StoredType::Known(d) => write!(f, "{d}"),
            StoredType::Unknown(s) => write!(f, "{s}"),
        }
    }
}
#[derive(Debug)]
pub struct Entry {
    pub dtype: StoredType,
    pub shape: Vec<usize>,
    pub file: PathBuf,
    pub range: std::ops::Range<usize>,
}
#[derive(Debug)]
pub struct Index {
    e: BTreeMap<String, Entry>,
}
#[derive(Debug)]
pub struct Repository {
    pub dir: PathBuf,
}
impl Repository {
    pub fn open(p: &Path) -> Result<Self> {
        Ok(Self { dir: p.to_owned() })
    }
    pub fn has(&self, f: &str) -> bool {
        self.dir.join(f).exists()
    }
    pub fn label(&self, f: &str) -> String {
        self.dir.join(f).display().to_string()
    }
    pub fn text(&self, f: &str) -> Result<Option<String>> {
        Ok(std::fs::read_to_string(self.dir.join(f)).ok())
    }
}
impl Index {
    pub fn open(r: &Repository) -> Result<Self> {
        let mut e = BTreeMap::new();
        let mut files = vec![];
        for f in std::fs::read_dir(&r.dir).unwrap() {
            let p = f.unwrap().path();
            let n = p.file_name().unwrap().to_string_lossy().to_string();
            if n.starts_with("model") && n.ends_with(".safetensors") {
                files.push(p);
            }
        }
        for p in files {
            let b = std::fs::read(&p).unwrap();
            let (n, m) = safetensors::SafeTensors::read_metadata(&b).unwrap();
            for (k, t) in m.tensors() {
                let d = match t.dtype {
                    safetensors::Dtype::F32 => DType::F32,
                    safetensors::Dtype::F16 => DType::F16,
                    safetensors::Dtype::BF16 => DType::Bf16,
                    safetensors::Dtype::I64 => DType::I64,
                    _ => DType::U8,
                };
                e.insert(
                    k.clone(),
                    Entry {
                        dtype: StoredType::Known(d),
                        shape: t.shape.clone(),
                        file: p.clone(),
                        range: n + 8 + t.data_offsets.0..n + 8 + t.data_offsets.1,
                    },
                );
            }
        }
        Ok(Self { e })
    }
    pub fn get(&self, n: &str) -> Option<&Entry> {
        self.e.get(n)
    }
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.e.iter().map(|(k, v)| (k.as_str(), v))
    }
}
#[derive(Debug)]
pub struct Checkpoint {
    m: BTreeMap<String, Array>,
}
impl Checkpoint {
    pub fn map(_r: &Repository, i: &Index) -> Result<Self> {
        let mut m = BTreeMap::new();
        let mut c: BTreeMap<PathBuf, Arc<Vec<u8>>> = BTreeMap::new();
        for (k, e) in i.iter() {
            let b =
                c.entry(e.file.clone()).or_insert_with(|| Arc::new(std::fs::read(&e.file).unwrap())).clone();
            let StoredType::Known(d) = e.dtype else { panic!() };
            m.insert(k.to_owned(), Array::new(d, e.shape.clone(), b, e.range.clone()).unwrap());
        }
        Ok(Self { m })
    }
    pub fn array(&self, n: &str) -> Result<Array> {
        Ok(self.m[n].clone())
    }
}
pub fn read_bundle(p: &Path) -> Result<BTreeMap<String, Array>> {
    let b = Arc::new(std::fs::read(p).unwrap());
    let (n, m) = safetensors::SafeTensors::read_metadata(&b).unwrap();
    let mut o = BTreeMap::new();
    for (k, t) in m.tensors() {
        let d = match t.dtype {
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::I64 => DType::I64,
            _ => DType::U8,
        };
        o.insert(
            k.clone(),
            Array::new(d, t.shape.clone(), b.clone(), n + 8 + t.data_offsets.0..n + 8 + t.data_offsets.1)
                .unwrap(),
        );
    }
    Ok(o)
}
