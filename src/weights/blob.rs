//! One file, on disk or in memory.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::map::map;
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::Bytes;

/// Most bytes of a tensor that are all read to tell a file from another of the same size and time; of a larger one so many at so many
/// places.
const READ_WHOLE: u64 = 1 << 16;
const SAMPLES: u64 = 4;
const SAMPLE_BYTES: u64 = 64;

/// A file that is there.
pub(super) enum Blob {
    Disk { path: PathBuf, file: Mutex<File>, len: u64, modified: Option<SystemTime> },
    Memory(Bytes),
}

impl Blob {
    /// Opens a file; none if there is no such file.
    pub fn open(path: &Path) -> Result<Option<Blob>> {
        // Asked before opening, because opening a pipe would wait for a writer.
        let meta = match fs::metadata(path) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                if fs::symlink_metadata(path).is_err() {
                    return Ok(None);
                }
                let message = format!("`{}` is a link to a file that does not exist", path.display());
                return Err(Error::new(ErrorKind::Io, message).help("download the model again"));
            }
            other => other.map_err(|e| Error::io(path, &e))?,
        };
        if !meta.is_file() {
            let found = if meta.is_dir() { "a directory" } else { "a device or pipe" };
            let message = format!("`{}`: expected a file, found {found}", path.display());
            return Err(Error::new(ErrorKind::Io, message));
        }
        let file = Mutex::new(File::open(path).map_err(|e| Error::io(path, &e))?);
        Ok(Some(Blob::Disk { path: path.to_owned(), file, len: meta.len(), modified: meta.modified().ok() }))
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Blob::Disk { len, .. } => *len,
            Blob::Memory(bytes) => (**bytes).as_ref().len() as u64,
        }
    }

    /// The first `n` bytes, or all if there are fewer.
    pub fn start(&self, n: u64) -> Result<Vec<u8>> {
        self.part(0, n)
    }

    /// `n` bytes from a place on, or as many as there are.
    fn part(&self, from: u64, n: u64) -> Result<Vec<u8>> {
        match self {
            Blob::Disk { path, file, .. } => {
                let mut bytes = Vec::new();
                // Threads that read share the place in the file.
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(from))
                    .and_then(|_| (&*file).take(n).read_to_end(&mut bytes))
                    .map_err(|e| Error::io(path, &e))?;
                Ok(bytes)
            }
            Blob::Memory(bytes) => {
                let bytes = (**bytes).as_ref();
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes[at(from)..at(from.saturating_add(n))].to_vec())
            }
        }
    }

    /// All bytes: the mapped file, see [`map`], or where they are in memory.
    pub fn bytes(&self) -> Result<Bytes> {
        match self {
            Blob::Disk { path, file, .. } => {
                let file = file.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(Arc::new(map(&file).map_err(|e| Error::io(path, &e))?))
            }
            Blob::Memory(bytes) => Ok(bytes.clone()),
        }
    }

    /// Hashes what tells it from other files: size, time of the last change and some bytes of each of its tensors, because times are lost
    /// where files are packed into archives and images. Without a time, all bytes.
    pub fn identify<'r>(
        &self,
        tensors: impl Iterator<Item = &'r Range<usize>>,
        hasher: &mut impl Hasher,
    ) -> Result<()> {
        let modified = self.modified();
        (self.len(), modified).hash(hasher);
        if modified.is_none() {
            (*self.bytes()?).as_ref().hash(hasher);
            return Ok(());
        }
        for tensor in tensors {
            let (start, len) = (tensor.start as u64, tensor.len() as u64);
            // Not from the map: there the system reads megabytes around each.
            if len <= READ_WHOLE {
                self.part(start, len)?.hash(hasher);
                continue;
            }
            for i in 0..SAMPLES {
                self.part(start + len / (2 * SAMPLES) * (2 * i + 1), SAMPLE_BYTES)?.hash(hasher);
            }
        }
        Ok(())
    }

    fn modified(&self) -> Option<SystemTime> {
        match self {
            Blob::Disk { modified, .. } => *modified,
            Blob::Memory(_) => None,
        }
    }
}

/// Writes a file and gives it its name when all is written, so that programs that have one of that name open keep the old one.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    /// Files that this process has begun to write.
    static BEGUN: AtomicU64 = AtomicU64::new(0);
    // Beside the file, because only there renaming is sure to work, and it leaves the permissions that the user's files have. Others
    // who write it have parts of their own.
    let mut part = OsString::from(path);
    part.push(format!(".{}-{}.part", std::process::id(), BEGUN.fetch_add(1, Ordering::Relaxed)));
    File::create(&part)
        .and_then(|mut file| write(&mut file))
        .and_then(|()| fs::rename(&part, path))
        .inspect_err(|_| {
            let _ = fs::remove_file(&part);
        })
}

/// Writes a file in one go: where that fails, the one of that name is as it was. What is no ordinary file, such as a pipe or a link,
/// stays what it is.
///
/// # Errors
/// `Io` if it cannot be written.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let is_special = fs::symlink_metadata(path).is_ok_and(|there| !there.is_file());
    let written =
        if is_special { fs::write(path, bytes) } else { replace(path, |file| file.write_all(bytes)) };
    written.map_err(|e| Error::new(ErrorKind::Io, format!("cannot write `{}`: {e}", path.display())))
}

/// What a file is that is not what its name says, by its first bytes, and what to do then.
///
/// These are what a download leaves that did not do what it should, and formats that are confused.
pub(super) fn impostor(start: &[u8]) -> Option<(&'static str, &'static str)> {
    const PAGE: &str = "download the file itself instead of the page that shows it, or log in first if the \
                        model is gated";
    const OTHER: &str = "smelt reads safetensors; download that version of the model, or convert it";
    const KINDS: [(&[u8], &str, &str); 6] = [
        (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` in the model directory"),
        (b"<!doctype html", "a web page", PAGE),
        (b"<html", "a web page", PAGE),
        (b"<?xml", "an XML page", PAGE),
        (b"pk\x03\x04", "a zip file, as PyTorch writes it", OTHER),
        (b"gguf", "a GGUF file", OTHER),
    ];
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |prefix: &[u8]| start.get(..prefix.len()).is_some_and(|s| s.eq_ignore_ascii_case(prefix));
    KINDS.iter().find(|(prefix, ..)| begins(prefix)).map(|(_, what, help)| (*what, *help))
}
