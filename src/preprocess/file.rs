//! Files to bytes, and what is wrong with these.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// What is wrong with the bytes of a file.
pub(super) struct Wrong(pub(super) ErrorKind, pub(super) String);

impl From<Wrong> for Error {
    fn from(Wrong(kind, what): Wrong) -> Error {
        Error::new(kind, what)
    }
}

/// What a file holds, which has at most so many bytes; errors name it.
pub(super) fn read<T>(
    path: &Path,
    most: u64,
    decode: impl FnOnce(&[u8]) -> std::result::Result<T, Wrong>,
) -> Result<T> {
    let mut bytes = Vec::new();
    // One more than allowed, because a file may grow, or not know its size.
    let reading = File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    reading.map_err(|e| Error::io(path, &e))?;
    let found = if bytes.len() as u64 > most {
        Err(Wrong(ErrorKind::Limit, format!("expected a file of at most {most} bytes")))
    } else {
        decode(&bytes)
    };
    found.map_err(|Wrong(kind, what)| Error::new(kind, format!("`{}`: {what}", path.display())))
}
