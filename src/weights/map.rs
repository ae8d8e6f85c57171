//! The only `unsafe` outside of the kernels: mapping a file.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A file's bytes, mapped into memory and read when they are touched.
pub fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io(path, &e))?;
    // SAFETY: the map is read-only and private. Bytes are read as numbers, for which every bit pattern is valid, so another
    // process that writes to the file can change results but not break an invariant. One that shortens the file while it is
    // mapped ends this process with a signal: mapping has no defence against that, and the documentation says so.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, &e))
}
