#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::map::map;
use crate::error::{Error, ErrorKind, Result};

/// Bytes that somebody owns: a mapped file, or a part of the program.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Largest text file that is read: the largest known `tokenizer.json` has some 35 MB.
const MAX_TEXT: u64 = 256 << 20;

/// A model directory, on disk or embedded in the program.
#[derive(Debug)]
pub struct Repository {
    name: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Dir(PathBuf),
    Embedded(&'static [(&'static str, &'static [u8])]),
}

impl Repository {
    /// A directory.
    ///
    /// # Errors
    /// `Io` if it is not one.
    pub fn open(dir: &Path) -> Result<Repository> {
        let name = dir.display().to_string();
        if dir.is_dir() {
            return Ok(Repository { name, place: Place::Dir(dir.to_owned()) });
        }
        let found = if dir.exists() { "a file" } else { "nothing" };
        let message = format!("expected a model directory at `{name}`, found {found}");
        Err(Error::new(ErrorKind::Io, message)
            .help("give the directory that holds config.json, model.safetensors and tokenizer.json"))
    }

    /// Files that are part of the program, by their names.
    pub fn embedded(name: &'static str, files: &'static [(&'static str, &'static [u8])]) -> Repository {
        Repository { name: name.to_owned(), place: Place::Embedded(files) }
    }

    /// The directory as the user wrote it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A file as messages call it.
    pub fn label(&self, file: &str) -> String {
        format!("{}/{file}", self.name.trim_end_matches('/'))
    }

    /// Whether a file is there.
    pub fn has(&self, file: &str) -> bool {
        match &self.place {
            Place::Dir(_) => self.path(file).is_ok_and(|path| path.is_file()),
            Place::Embedded(files) => files.iter().any(|(name, _)| *name == file),
        }
    }

    /// The text of a file, or none if it is not there.
    ///
    /// # Errors
    /// `Io` if it cannot be read, is not UTF-8, or is larger than any text file of a model.
    pub fn text(&self, file: &str) -> Result<Option<String>> {
        if !self.has(file) {
            return Ok(None);
        }
        let bytes = match &self.place {
            Place::Dir(_) => {
                let path = self.path(file)?;
                let mut bytes = Vec::new();
                let opened = File::open(&path).map_err(|e| Error::io(&path, &e))?;
                opened.take(MAX_TEXT + 1).read_to_end(&mut bytes).map_err(|e| Error::io(&path, &e))?;
                bytes
            }
            Place::Embedded(_) => (*self.bytes(file)?).as_ref().to_vec(),
        };
        if bytes.len() as u64 > MAX_TEXT {
            let message = format!("`{}` is larger than {MAX_TEXT} bytes", self.label(file));
            return Err(Error::new(ErrorKind::Io, message));
        }
        let text = String::from_utf8(bytes);
        text.map(Some)
            .map_err(|_| Error::new(ErrorKind::Io, format!("`{}` is not UTF-8 text", self.label(file))))
    }

    /// The bytes of a file: mapped, not read.
    ///
    /// # Errors
    /// `Io` if it is not there or cannot be mapped.
    pub fn bytes(&self, file: &str) -> Result<Bytes> {
        match &self.place {
            Place::Dir(_) => Ok(Arc::new(map(&self.path(file)?)?)),
            Place::Embedded(files) => match files.iter().find(|(name, _)| *name == file) {
                Some((_, bytes)) => Ok(Arc::new(*bytes)),
                None => Err(Error::new(ErrorKind::Io, format!("no `{}`", self.label(file)))),
            },
        }
    }

    /// The first bytes of a file, at most `n`, and its length.
    pub(super) fn beginning(&self, file: &str, n: u64) -> Result<(Vec<u8>, u64)> {
        match &self.place {
            Place::Dir(_) => {
                let path = self.path(file)?;
                let opened = File::open(&path).map_err(|e| Error::io(&path, &e))?;
                let len = opened.metadata().map_err(|e| Error::io(&path, &e))?.len();
                let mut bytes = Vec::new();
                opened.take(n).read_to_end(&mut bytes).map_err(|e| Error::io(&path, &e))?;
                Ok((bytes, len))
            }
            Place::Embedded(_) => {
                let bytes = self.bytes(file)?;
                let all = (*bytes).as_ref();
                let n = usize::try_from(n).unwrap_or(usize::MAX).min(all.len());
                Ok((all[..n].to_vec(), all.len() as u64))
            }
        }
    }

    /// Where a file lies. Names may have folders, but must not leave the directory.
    fn path(&self, file: &str) -> Result<PathBuf> {
        let Place::Dir(dir) = &self.place else {
            return Err(Error::new(ErrorKind::Io, format!("`{}` is not on disk", self.label(file))));
        };
        let inside = Path::new(file).components().all(|c| matches!(c, Component::Normal(_)));
        if !inside || file.contains(['\\', ':', '\0']) {
            let message = format!("`{file}` is not a file inside of `{}`", self.name);
            return Err(Error::new(ErrorKind::Checkpoint, message));
        }
        Ok(dir.join(file))
    }
}
