//! Files mapped into memory.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::Mmap;

use crate::tensor::Storage;

/// A mapped file.
pub(super) struct Mapped(Mmap);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Storage for Mapped {
    fn release(&self) {
        // SAFETY: the advice would lose what was written to a private map. Nothing is written to this one, so the pages come back
        // from the file with the same bytes. If the system does not take the advice, pages merely stay.
        #[cfg(unix)]
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }

    fn settle(&self) {
        // For a byte the system would map 2 MiB of a file that it keeps in large pages, and read megabytes of one that it does not have.
        #[cfg(target_os = "linux")]
        let _ = self.0.advise(memmap2::Advice::NoHugePage);
        #[cfg(unix)]
        let _ = self.0.advise(memmap2::Advice::Random);
        self.release();
    }
}

/// Maps a file for reading.
///
/// The file must not be changed while the map lives: overwriting it in place changes the values that are
/// read, and cutting it short kills the program (`SIGBUS`) when a part that is gone is read. Replacing it
/// by another file of the same name, as downloads and [`write_bundle`](super::write_bundle) do, is harmless.
pub(super) fn map(file: &File) -> io::Result<Mapped> {
    // SAFETY: the bytes of a map must not change while a slice of them is alive, and no system in use can
    // keep another process from writing to the file. This is the contract of every program that maps
    // weights, and the one above states it. What follows from a breach is bounded by what this crate does
    // with the bytes: they are plain numbers, for which every pattern of bits is valid, copied out (see `Array::read_f32`) or, of a
    // `PackedFile`, multiplied where they are, never used as references. Lengths and places, of which coded panels have some, are
    // checked where they are read. Headers and texts, which are parsed, are read into memory of our own instead. The map is read-only,
    // so we never write either.
    unsafe { Mmap::map(file) }.map(Mapped)
}
