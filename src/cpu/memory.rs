//! Memory for packed weights.

#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;

use memmap2::{Advice, MmapMut};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Zeros at first, beginning at a page. In large pages where the system has them: what reads weights from end to end then looks up
/// one address in 2 MiB instead of one in 4 KiB, and the processor fetches ahead across all of it.
pub struct Memory<T> {
    map: MmapMut,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: FromBytes + IntoBytes + Immutable> Memory<T> {
    /// `len` elements.
    pub fn new(len: usize) -> Self {
        let bytes = len.saturating_mul(size_of::<T>());
        let map = MmapMut::map_anon(bytes.max(1)).unwrap_or_else(|_| {
            // As everything else that is allocated: without memory there is no going on.
            let layout = std::alloc::Layout::array::<T>(len).unwrap_or(std::alloc::Layout::new::<T>());
            std::alloc::handle_alloc_error(layout)
        });
        // A wish: without it everything is right, if slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(Advice::HugePage);
        Memory { map, len, elements: PhantomData }
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        // A map begins at a page, so elements are aligned, and it has the bytes that were asked for.
        <[T]>::ref_from_bytes(&self.map[..self.len * size_of::<T>()]).unwrap_or_default()
    }

    /// The elements, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // As above.
        <[T]>::mut_from_bytes(&mut self.map[..self.len * size_of::<T>()]).unwrap_or_default()
    }
}

impl<T> fmt::Debug for Memory<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} elements)", self.len)
    }
}
