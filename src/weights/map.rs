//! Files mapped into memory.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a file for reading.
///
/// The file must not be changed while the map lives: overwriting it in place changes the values that are
/// read, and cutting it short kills the program (`SIGBUS`) when a part that is gone is read. Replacing it
/// by another file of the same name, as downloads and [`write_bundle`](super::write_bundle) do, is harmless.
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the bytes of a map must not change while a slice of them is alive, and no system in use can
    // keep another process from writing to the file. This is the contract of every program that maps
    // weights, and the one above states it. What follows from a breach is bounded by what this crate does
    // with the bytes: they are copied out as plain numbers, for which every pattern of bits is valid (see
    // `Array::read_f32`), never used as references, lengths or indices. Headers and texts, which are
    // parsed, are read into memory of our own instead. The map is read-only, so we never write either.
    unsafe { Mmap::map(file) }
}
